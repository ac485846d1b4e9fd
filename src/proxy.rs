//! Routes requests ([`router`]), streams every route but the batch route through ([`passthrough`]), and writes access lines.
//!
//! Start at [`router::Router::answer`]. May use `batch`, `upstream`, `auth`, `telemetry` and the leaves.

mod access;
pub mod passthrough;
pub mod router;
