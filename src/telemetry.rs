//! What operators and their tools see of requests. Traces: a client's trace context goes on to the endpoint, and sampled
//! requests are exported as spans, if `[trace]` names a collector.
//!
//! Start reading at [`trace::Tracer`]. Uses the leaves alone; every room above may use it.

pub mod trace;
