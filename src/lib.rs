//! A sidecar that makes batch look-ups cheap: a caching proxy for endpoints that turn a batch of ids into links that expire.
//!
//! It stands in front of the endpoint `GET /v2/servicerequest/accessorys/access-urls`, answers what it can from memory, asks
//! the endpoint only for the ids that are missing, and returns one answer. `docs/ARCHITECTURE.md` lists the modules in the
//! order of a request; imports point down that list, with the exceptions named there.
//!
//! A newcomer starts at [`proxy::router::Router::look_up`], which sees every request, then [`batch::BatchRoute::look_up`].

pub mod demo;

pub(crate) mod admin;
pub mod api;
pub mod app;
pub mod auth;
pub mod batch;
pub mod cache;
pub mod fetch;
pub mod identity;
pub mod proxy;
pub mod server;
pub mod shared;
pub mod upstream;

// Leaves: any module may import them. A leaf imports other leaves, and names of headers and parameters from `api`.
pub mod clock;
pub mod config;
pub mod error;
pub mod limits;
pub mod message;
pub mod telemetry;

pub use admin::{AdminClient, ApiIds, Purge};

/// The revision that this was built from, as `SIDELINK_REVISION` said then.
pub const REVISION: &str = match option_env!("SIDELINK_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
