//! What operators get to see: log lines ([`log`]), metric families ([`metrics`]), spans ([`trace`]).
//!
//! A leaf. A new metric is a field of a `families!` table in [`metrics`]; a new log line needs its row in docs/LOGGING.md.

pub mod log;
pub mod metrics;
pub mod trace;
