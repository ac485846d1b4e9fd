//! Log lines ([`log`]), metric families ([`metrics`]), spans ([`trace`]).
//!
//! A leaf: any module may import it. A new metric is a field of a `families!` table in [`metrics`]; a new log line is an entry of
//! `events!` in [`log::events`].

pub mod log;
pub mod metrics;
pub mod trace;
