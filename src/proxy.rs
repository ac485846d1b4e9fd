//! The way of a request: which route it takes ([`router`]), and every route but the batch's, streamed through
//! ([`passthrough`]).
//!
//! May use everything below: batch, upstream, auth, telemetry and the leaves. Start at [`router::Router::answer`].

pub mod passthrough;
pub mod router;
