//! Results of exporting spans.

use prometheus::{IntCounter, Registry};

use super::counters;

/// Spans by result. Without `[trace]` all of them stay at 0.
pub struct Spans {
    /// The collector accepted the span.
    pub exported: IntCounter,
    /// The collector answered that it rejected the span.
    pub rejected: IntCounter,
    /// The collector could not be reached, or refused.
    pub failed: IntCounter,
    /// The queue was full.
    pub dropped: IntCounter,
}

impl Spans {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Spans of sampled requests and of their calls, by what became of them on the way to the collector.";
        let results = &["exported", "rejected", "failed", "dropped"];
        let [exported, rejected, failed, dropped] = counters(registry, "spans_total", help, "result", results)?;
        Ok(Self { exported, rejected, failed, dropped })
    }
}
