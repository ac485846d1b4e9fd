//! Spans of sampled traces, and their export to a collector.

mod export;
mod spans;

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use sidelink::config::{Config, Endpoint, Trace};
use sidelink::demo::origin::{self, Origin, RecordedCall};

use crate::collector::Collector;
use crate::support::{Stack, query};

const ECHO: &str = "/v2/servicerequest/echo";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

struct Traced {
    stack: Stack,
    collector: Collector,
}

impl Traced {
    async fn start(configure: impl FnOnce(&mut Config)) -> Self {
        Self::before(|_| {}, configure).await
    }

    async fn before(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        let collector = Collector::start().await;
        let trace = Trace::at(Endpoint::parse(&format!("http://{}", collector.address)).unwrap());
        let stack = Stack::with(endpoint, |config| {
            config.trace = Some(trace);
            configure(config);
        });
        Self { stack: stack.await, collector }
    }

    fn trace(config: &mut Config) -> &mut Trace {
        config.trace.as_mut().unwrap()
    }

    async fn batch(&self, ids: &[&str], parent: &str) -> u16 {
        let headers = [("x-auth-token", "t"), ("traceparent", parent), ("tracestate", "a=1")];
        self.stack.client.get(&query(ids), &headers).await.status.as_u16()
    }

    /// Drains sidelink and returns all spans, in the order of their start.
    async fn end(self) -> (Vec<Span>, Origin) {
        self.stack.app.drain().await;
        (self.collector.spans(), self.stack.origin)
    }

    async fn count(&self, result: &str) -> f64 {
        self.stack.metric(&format!("sidelink_spans_total{{result=\"{result}\"}}")).await
    }

    /// Waits until `result` has been counted for so many spans.
    async fn counted(&self, result: &str, spans: f64) {
        while self.count(result).await < spans {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.count(result).await, spans, "{result}");
    }
}

fn parent_of(call: &RecordedCall) -> &str {
    call.headers["traceparent"].to_str().unwrap()
}

fn traceparent(span: &Span) -> String {
    format!("00-{}-{}-01", hex::encode(&span.trace_id), hex::encode(&span.span_id))
}

fn pairs(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn links(span: &Span) -> Vec<String> {
    span.links.iter().map(|link| hex::encode(&link.span_id)).collect()
}
