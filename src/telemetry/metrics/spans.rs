//! Results of exporting spans.

use prometheus::{IntCounter, IntCounterVec};

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
    /// The counter of one result.
    pub fn counter(&self, result: SpanResult) -> IntCounter {
        self.results.with_label_values(&[result.name()])
    }
}
