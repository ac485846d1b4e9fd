//! A sidecar that makes batch link look-ups cheap.
//!
//! It stands in front of the endpoint `GET /v2/servicerequest/accessorys/access-urls`, answers what it can from memory,
//! asks the endpoint only for the ids it lacks, and hands back one answer. `docs/ARCHITECTURE.md` walks one batch through
//! the modules, which stand here in the order of a request.

pub mod app;
pub mod server;

pub mod admin;

pub mod router;

pub mod passthrough;

pub mod access_urls;

pub mod caller;

pub mod cache;

pub mod fetch;

pub mod upstream;

// Leaves: anyone may import them.
pub mod answered;
pub mod api;
pub mod body;
pub mod cache_control;
pub mod clock;
pub mod config;
pub mod core_dumps;
pub mod demo;
pub mod error;
pub mod headers;
pub mod held;
pub mod id;
pub mod log;
pub mod metrics;
pub mod origin;
pub mod pause;
pub mod permits;
pub mod telemetry;
