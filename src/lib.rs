//! A sidecar that makes batch link look-ups cheap.
//!
//! It stands in front of the endpoint `GET /v2/servicerequest/accessorys/access-urls`, answers what it can from memory, asks
//! the endpoint only for the ids that are missing, and returns one answer. The modules are in the order of a request, which
//! `docs/ARCHITECTURE.md` follows through them.

pub mod app;

pub mod server;

pub mod admin;

pub mod proxy;

pub mod batch;

pub mod fetch;

pub mod cache;

// Imports `cache` as well: it returns entries and applies purges. `cache` never imports it.
pub mod shared;

pub mod upstream;

pub mod auth;

pub mod api;

pub mod telemetry;

pub mod config;

// Leaves: any module may import them.
pub mod clock;
pub mod error;
pub mod limits;
pub mod message;

// Beside the product: the simulated endpoint and the demonstration.
pub mod demo;
