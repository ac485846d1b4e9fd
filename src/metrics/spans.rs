//! What becomes of spans. Without `[trace]` all of it stays at 0.

use prometheus::IntCounterVec;

use super::SpanResult;
use super::family::families;

families! {
    /// The family of spans.
    pub struct Spans {
        /// Spans of sampled requests and of their calls, by what became of them on the way to the collector.
        pub results: IntCounterVec = "spans_total", vector("result", &SpanResult::ALL.map(SpanResult::name));
    }
}

impl Spans {
    /// Counts `spans` of them.
    pub fn count(&self, result: SpanResult, spans: usize) {
        self.results.with_label_values(&[result.name()]).inc_by(spans as u64);
    }
}
