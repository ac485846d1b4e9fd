//! sidelink by behaviour, over real sockets: one file a behaviour, its invariant on top.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod admin;
mod answer_codings;
mod answer_framing;
mod answers;
mod at_hand;
mod bad_endpoint;
mod bad_input;
mod batches;
mod bounds;
mod browser;
mod cache_control;
mod callers;
#[cfg(feature = "otlp")]
mod collector;
mod command_line;
mod config;
mod corpora;
mod dashboard;
mod documents;
mod egress;
mod expectations;
mod explain;
mod exposition;
mod failures;
mod fleet;
mod freshness;
mod isolation;
mod life_cycle;
mod links;
mod listeners;
mod load;
mod logging;
mod long_headers;
mod max_forwards;
mod metrics;
mod once;
#[cfg(feature = "otlp")]
mod otlp;
mod pass_through;
mod process;
mod prometheus;
mod promql;
mod purge;
mod raw_http;
mod raw_http2;
mod reload;
mod rules;
mod sdk;
mod secrets;
mod signed;
mod signed_attacks;
mod signing;
mod simulated;
mod simulation;
mod status_page;
mod supply_chain;
mod support;
mod tls;
mod tracing;
mod unmatched;
