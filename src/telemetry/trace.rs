//! OpenTelemetry spans: one for each sampled request, one for each of its calls and exchanges with the endpoint.
//!
//! Span names and attributes come from a closed set (docs/LOGGING.md): never an id, path, query, header, link or caller. Their
//! names are OpenTelemetry's semantic conventions for HTTP, and sidelink's own.

mod context;
mod export;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanLimits};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::BatchApi;
use crate::config::{self, Endpoint};
use crate::message::ending::Abort;
use crate::message::reply::{Detail, Reply};
use crate::telemetry::metrics::{IdResult, Metrics, Outcome, Route};
pub use context::{TraceContext, pass_on};

/// Most links of one span. Further ones are counted in the span.
const MOST_LINKS: u32 = 32;

/// The export tasks of the current configuration, and of earlier ones until their queues are empty.
#[derive(Default)]
pub struct ExportTasks {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl ExportTasks {
    /// Exports the queued spans, within `limit`.
    pub async fn end(&self, limit: Duration) {
        self.tasks.close();
        self.stop.cancel();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }
}

/// Starts spans as `[trace]` says.
#[derive(Clone)]
pub struct Tracer(SdkTracer);

impl Tracer {
    /// A tracer whose export task runs in `exports`. Must be called within a tokio runtime.
    pub fn start(
        config: &config::Trace,
        tls: Option<ClientConfig>,
        metrics: &Arc<Metrics>,
        exports: &ExportTasks,
    ) -> Result<Self, ExporterBuildError> {
        let queue = export::start(config, tls, metrics, exports)?;
        // Everything is set here: the SDK would read the rest from `OTEL_*` variables.
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample))))
            .with_span_limits(SpanLimits { max_links_per_span: MOST_LINKS, ..SpanLimits::default() })
            .build();
        let scope = InstrumentationScope::builder("sidelink").with_version(env!("CARGO_PKG_VERSION"));
        Ok(Self(provider.tracer_with_scope(scope.build())))
    }

    /// Starts the span of a request if it is sampled: as a valid `traceparent` says, else by `trace.sample`.
    pub fn begin(&self, head: &Parts) -> RequestSpan {
        let incoming = TraceContext::read(&head.headers);
        let (parent, state) = match incoming.span_context() {
            Some(parent) if !parent.is_sampled() => return RequestSpan::default(),
            Some(parent) => (Context::new().with_remote_span_context(parent), incoming.state),
            None => (Context::new(), None),
        };
        let method = known(&head.method);
        let builder = SpanBuilder::from_name(name(method)).with_kind(SpanKind::Server);
        let mut span = self.0.build_with_context(builder, &parent);
        span.set_attribute(KeyValue::new("http.request.method", method));
        span.set_attribute(KeyValue::new("network.protocol.version", version(head.version)));
        let context = span.span_context().clone();
        let span = Mutex::new(LinkedSpan { span, to: Vec::new() });
        RequestSpan(Some(Arc::new(StartedSpan { context, state, span, tracer: self.0.clone() })))
    }
}

/// The span of a request. Cheap to clone.
///
/// `None` without a tracer, or if the client's trace is not sampled; the client's trace context is forwarded unchanged.
#[derive(Clone, Default)]
pub struct RequestSpan(Option<Arc<StartedSpan>>);

struct StartedSpan {
    /// If it is not sampled, only the endpoint gets it.
    context: SpanContext,
    /// The client's tracestate, for the endpoint only, never for the collector.
    state: Option<HeaderValue>,
    span: Mutex<LinkedSpan>,
    tracer: SdkTracer,
}

/// A span, and the spans that it is linked with.
struct LinkedSpan {
    span: Span,
    to: Vec<SpanId>,
}

impl RequestSpan {
    fn sampled(&self) -> Option<&StartedSpan> {
        self.0.as_deref().filter(|started| started.context.is_sampled())
    }

    /// The context to forward for a request with these headers, unless a call has a span of its own.
    pub fn context(&self, headers: &HeaderMap) -> TraceContext {
        match self.0.as_deref() {
            None => TraceContext::read(headers),
            Some(started) => TraceContext::of(&started.context, started.state.clone()),
        }
    }

    /// Links the request's span with a call of another request that answered some of its ids.
    pub fn link_call(&self, call: Option<CallContext>) {
        let (Some(sampled), Some(CallContext(call))) = (self.sampled(), call) else { return };
        let (context, parent) = &*call;
        if *parent != sampled.context.span_id() {
            sampled.span.lock().unwrap_or_else(PoisonError::into_inner).link(context.clone());
        }
    }

    /// Starts the span of an exchange on any other route.
    pub fn exchange(&self, endpoint: &Endpoint, method: &Method) -> CallSpan {
        let method = known(method);
        CallSpan(self.sampled().map(|request| request.call(name(method), method, endpoint)))
    }

    /// Ends the span of a request, of `api` if it was on a batch route: at the head of its reply, or without one.
    pub fn end(&self, route: Route, api: Option<&BatchApi>, reply: Result<&Reply, Abort>) {
        let Some(sampled) = self.sampled() else { return };
        let span = &mut sampled.span.lock().unwrap_or_else(PoisonError::into_inner).span;
        if let Some(api) = api {
            span.update_name(format!("{} {}", api.method, api.path));
            span.set_attribute(KeyValue::new("http.route", api.path.to_string()));
            span.set_attribute(KeyValue::new("sidelink.api", api.name.to_string()));
        }
        if let Ok(status) = reply.map(|reply| reply.response.status()) {
            set_status(span, status, status.is_server_error());
        }
        let outcome = reply.map_or(Outcome::Error, |reply| reply.info.outcome);
        span.set_attribute(KeyValue::new("sidelink.route", route.name()));
        span.set_attribute(KeyValue::new("sidelink.outcome", outcome.name()));
        let detail = reply.map_or_else(|abort| Some(abort.detail()), |reply| reply.info.detail.map(Detail::name));
        span.set_attributes(detail.map(|detail| KeyValue::new("sidelink.detail", detail)));
        if let Some(tally) = reply.ok().map(|reply| reply.info.tally).filter(|tally| tally.total() > 0) {
            let count = |result: IdResult| {
                KeyValue::new(format!("sidelink.ids.{}", result.name()), i64::from(tally.count(result)))
            };
            span.set_attribute(KeyValue::new("sidelink.ids", i64::from(tally.total())));
            span.set_attributes(IdResult::ALL.map(count));
        }
        span.end();
    }
}

impl StartedSpan {
    fn call(&self, name: impl Into<Cow<'static, str>>, method: &'static str, endpoint: &Endpoint) -> Box<OpenCall> {
        let host = endpoint.authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client).with_attributes([
            KeyValue::new("http.request.method", method),
            KeyValue::new("server.address", host),
            KeyValue::new("server.port", i64::from(endpoint.port())),
        ]);
        let parent = Context::new().with_remote_span_context(self.context.clone());
        let linked = LinkedSpan { span: self.tracer.build_with_context(builder, &parent), to: Vec::new() };
        Box::new(OpenCall { linked, parent: self.context.span_id(), state: self.state.clone() })
    }
}

/// The span of a call or an exchange, if its request is sampled. It ends when it is dropped.
pub struct CallSpan(Option<Box<OpenCall>>);

struct OpenCall {
    linked: LinkedSpan,
    parent: SpanId,
    state: Option<HeaderValue>,
}

impl CallSpan {
    /// Starts the span of a call to `api` for `ids` ids of `requests`: part of the first one that is sampled, linked with the others.
    pub fn start<'r>(
        endpoint: &Endpoint,
        api: &BatchApi,
        ids: usize,
        requests: impl Iterator<Item = &'r RequestSpan>,
    ) -> Self {
        let mut sampled = requests.filter_map(RequestSpan::sampled);
        let Some(first) = sampled.next() else { return Self(None) };
        let mut call = first.call(format!("{} {}", api.method, api.path), known(&api.method), endpoint);
        call.linked.span.set_attribute(KeyValue::new("url.template", api.path.to_string()));
        call.linked.span.set_attribute(KeyValue::new("sidelink.api", api.name.to_string()));
        call.linked.span.set_attribute(KeyValue::new("sidelink.ids", i64::try_from(ids).unwrap_or(i64::MAX)));
        for other in sampled.filter(|other| other.context.span_id() != call.parent) {
            call.linked.link(other.context.clone());
        }
        Self(Some(call))
    }

    /// The context that goes to the endpoint.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|call| TraceContext::of(call.linked.span.span_context(), call.state.clone()))
    }

    /// The call's span context, for requests that joined the call.
    pub fn call_context(&self) -> Option<CallContext> {
        let call = self.0.as_ref()?;
        Some(CallContext(Arc::new((call.linked.span.span_context().clone(), call.parent))))
    }

    /// Ends the span: after `retries`, the endpoint answered with `status`, or not at all. `result` is from a closed set.
    pub fn end(self, status: Option<StatusCode>, result: &'static str, retries: u32) {
        let Some(mut call) = self.0 else { return };
        let span = &mut call.linked.span;
        match status {
            Some(status) => set_status(span, status, status.is_client_error() || status.is_server_error()),
            None => {
                span.set_status(Status::error(""));
                span.set_attribute(KeyValue::new("error.type", result));
            }
        }
        span.set_attribute(KeyValue::new("sidelink.result", result));
        if retries > 0 {
            span.set_attribute(KeyValue::new("http.request.resend_count", i64::from(retries)));
        }
    }
}

/// The span context of a call, and its parent span. A pointer, since each fetched id stores one.
#[derive(Clone)]
pub struct CallContext(Arc<(SpanContext, SpanId)>);

impl LinkedSpan {
    /// Adds a link, once per span. The SDK drops and counts links beyond [`MOST_LINKS`].
    fn link(&mut self, context: SpanContext) {
        if !self.to.contains(&context.span_id()) {
            self.to.push(context.span_id());
            self.span.add_link(context, Vec::new());
        }
    }
}

fn set_status(span: &mut Span, status: StatusCode, failed: bool) {
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if failed {
        span.set_status(Status::error(""));
        span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
    }
}

/// A method from a closed set: clients may invent any.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE"];
    known.into_iter().find(|known| method == known).unwrap_or("_OTHER")
}

/// The span name for a method.
fn name(method: &'static str) -> &'static str {
    if method == "_OTHER" { "HTTP" } else { method }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{TraceFlags, TraceId, TraceState};

    use super::*;

    #[test]
    fn links_are_distinct_and_bounded() {
        let tracer = SdkTracerProvider::builder().with_max_links_per_span(MOST_LINKS).build().tracer("test");
        let mut linked = LinkedSpan { span: tracer.start("test"), to: Vec::new() };
        for span in 1..=100_u64 {
            for _ in 0..2 {
                let (trace, flags) = (TraceId::from(1), TraceFlags::SAMPLED);
                linked.link(SpanContext::new(trace, span.into(), flags, false, TraceState::NONE));
            }
        }
        let links = linked.span.exported_data().unwrap().links;
        assert_eq!((links.len(), links.dropped_count), (MOST_LINKS as usize, 100 - MOST_LINKS));
    }
}
