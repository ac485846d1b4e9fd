//! Batch APIs other than the built-in one, each described in the TOML: sidelink before a scripted endpoint, over sockets.

mod absences;
mod calls;
mod credentials;
mod differential;
mod endpoint;
mod envelopes;
mod errors;
mod expiries;
mod forms;
mod no_json;
mod parts;
mod purges;
mod reloads;
mod scopes;
mod tier;
mod untouched;
