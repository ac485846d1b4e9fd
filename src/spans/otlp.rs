//! What goes over the wire: the part of OTLP's messages that is used here, version 1
//! (<https://github.com/open-telemetry/opentelemetry-proto>), whose numbers are fixed. Tests read them with the project's own types.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{Kind, Record, Value};
use crate::trace_context::Place;

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    partial: Option<Partial>,
}

/// `ExportTracePartialSuccess`; the collector's message is read by nobody.
#[derive(Clone, PartialEq, Message)]
struct Partial {
    #[prost(int64, tag = "1")]
    rejected: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

/// Who says it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(uint32, tag = "14")]
    dropped_links_count: u32,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(fixed32, tag = "6")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const STATUS_ERROR: i32 = 2;
/// Bits of a span's flags beyond the W3C's: whether its parent is another program's, and that this is known.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

impl Resource {
    /// A process of this service. `instance` tells it from the service's others.
    pub(super) fn of(service: &str, instance: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let pairs = [("service.name", service), ("service.version", version), ("service.instance.id", instance)];
        let text = |text: &str| Value::Text(Cow::Owned(text.to_owned()));
        Self { attributes: pairs.into_iter().map(|(key, value)| attribute(key, text(value))).collect() }
    }
}

impl Request {
    /// The message that says `spans`.
    pub(super) fn of(resource: &Resource, spans: impl Iterator<Item = Record>) -> Self {
        let scope = Scope { name: "sidelink".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.map(span).collect() }];
        Self { resource_spans: vec![ResourceSpans { resource: Some(resource.clone()), scope_spans }] }
    }
}

impl Response {
    /// How many spans the collector would not have.
    pub(super) fn rejected(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| u64::try_from(partial.rejected).unwrap_or(0))
    }
}

fn span(record: Record) -> Span {
    let began = nanoseconds(record.began);
    let lasted = u64::try_from(record.lasted.as_nanos()).unwrap_or(u64::MAX);
    let remote = if record.parent_is_remote { IS_REMOTE } else { 0 };
    Span {
        trace_id: record.place.trace.to_be_bytes().to_vec(),
        span_id: record.place.span.to_be_bytes().to_vec(),
        parent_span_id: record.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(record.place.flags) | HAS_IS_REMOTE | remote,
        name: record.name.into_owned(),
        kind: match record.kind {
            Kind::Server => SERVER,
            Kind::Client => CLIENT,
        },
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(lasted),
        attributes: record.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        links: record.links.places.iter().map(link).collect(),
        dropped_links_count: record.links.dropped,
        status: record.failed.then_some(Status { code: STATUS_ERROR }),
    }
}

fn link(place: &Place) -> Link {
    Link {
        trace_id: place.trace.to_be_bytes().to_vec(),
        span_id: place.span.to_be_bytes().to_vec(),
        // All of them are sidelink's own.
        flags: u32::from(place.flags) | HAS_IS_REMOTE,
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let any = match value {
        Value::Text(text) => Any::Text(text.into_owned()),
        Value::Number(number) => Any::Number(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(any) }) }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
