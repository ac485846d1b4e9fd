//! What becomes of spans. Without `[trace]` all of it stays at 0.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::vector;

/// What has become of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanResult {
    /// The collector has taken it.
    Exported,
    /// The collector has answered that it would not have it.
    Rejected,
    /// The collector could not be reached, or refused.
    Failed,
    /// Too many waited to be exported.
    Dropped,
}

impl SpanResult {
    /// Every result, for metrics.
    pub const ALL: [SpanResult; 4] =
        [SpanResult::Exported, SpanResult::Rejected, SpanResult::Failed, SpanResult::Dropped];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            SpanResult::Exported => "exported",
            SpanResult::Rejected => "rejected",
            SpanResult::Failed => "failed",
            SpanResult::Dropped => "dropped",
        }
    }
}

/// The family of spans.
pub struct Spans(IntCounterVec);

impl Spans {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self(vector(
            registry,
            "spans_total",
            "Spans of sampled requests and of their calls, by what became of them on the way to the collector.",
            "result",
            &SpanResult::ALL.map(SpanResult::name),
        )?))
    }

    /// The counter of one result.
    pub fn counter(&self, result: SpanResult) -> IntCounter {
        self.0.with_label_values(&[result.name()])
    }

    /// Counts `spans` of them.
    pub fn count(&self, result: SpanResult, spans: usize) {
        self.counter(result).inc_by(spans as u64);
    }
}
