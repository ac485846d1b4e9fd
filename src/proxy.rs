//! Routes requests ([`router`]), and streams every route but the batch route through ([`passthrough`]).
//!
//! Start at [`router::Router::answer`]. May use `batch`, `upstream`, `auth`, `telemetry` and the leaves.

pub mod passthrough;
pub mod router;
