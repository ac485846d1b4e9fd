//! Spans of what sidelink does, for an OpenTelemetry collector: one for each request that is sampled, one for each of its
//! calls and exchanges with the endpoint.
//!
//! What a span says is a closed set: words, counts and the endpoint's name; no id, path, query, header, link or caller.
//! Without the cargo feature `otlp` there is no exporter, so no [`Tracer`] either, and all of this comes to nothing
//! when it is compiled. Taking a span over never waits (`exporter`).

#[cfg(feature = "otlp")]
mod exporter;
#[cfg(not(feature = "otlp"))]
#[path = "spans/none.rs"]
mod exporter;
#[cfg(feature = "otlp")]
mod otlp;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answered::Answered;
use crate::api;
use crate::config::{self, Endpoint};
use crate::metrics::{IdResult, Metrics, Outcome, Route};
use crate::trace_context::{Place, SAMPLED, TraceContext};
use exporter::{Built, Exporter};

/// Most links of one span; what is beyond is counted in it.
pub const MOST_LINKS: usize = 32;

/// What is known under the names of OpenTelemetry's semantic conventions for HTTP.
mod key {
    pub(super) const METHOD: &str = "http.request.method";
    pub(super) const ROUTE: &str = "http.route";
    pub(super) const STATUS: &str = "http.response.status_code";
    pub(super) const RESENT: &str = "http.request.resend_count";
    pub(super) const VERSION: &str = "network.protocol.version";
    pub(super) const HOST: &str = "server.address";
    pub(super) const PORT: &str = "server.port";
    pub(super) const TEMPLATE: &str = "url.template";
    pub(super) const ERROR: &str = "error.type";
    pub(super) const SIDELINK_ROUTE: &str = "sidelink.route";
    pub(super) const OUTCOME: &str = "sidelink.outcome";
    pub(super) const DETAIL: &str = "sidelink.detail";
    pub(super) const RESULT: &str = "sidelink.result";
    pub(super) const IDS: &str = "sidelink.ids";
    /// In the order of [`IdResult::ALL`](super::IdResult::ALL).
    pub(super) const RESULTS: [&str; 7] = [
        "sidelink.ids.hit",
        "sidelink.ids.stale",
        "sidelink.ids.joined",
        "sidelink.ids.shared",
        "sidelink.ids.fetched",
        "sidelink.ids.absent",
        "sidelink.ids.failed",
    ];
}

/// A span that is over.
pub struct Record {
    /// Its place.
    pub place: Place,
    /// The span that it is part of, if any.
    pub parent: Option<u64>,
    /// Whether that one is another program's.
    pub parent_is_remote: bool,
    /// Who asked whom.
    pub kind: Kind,
    /// What it is called.
    pub name: Cow<'static, str>,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub lasted: Duration,
    /// What is said of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans that it has to do with besides.
    pub links: Links,
    /// Whether it came to an error.
    pub failed: bool,
}

/// Who asked whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client asked sidelink.
    Server,
    /// sidelink asked the endpoint.
    Client,
}

/// An attribute's value.
pub enum Value {
    /// A word.
    Text(Cow<'static, str>),
    /// A count or a code.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// Spans that one has to do with besides its parent: each once, [`MOST_LINKS`] at most.
#[derive(Default)]
pub struct Links {
    /// Where they are.
    pub places: Vec<Place>,
    /// How many there was no room for.
    pub dropped: u32,
}

impl Links {
    fn add(&mut self, place: Place) {
        if self.places.contains(&place) {
            return;
        }
        if self.places.len() < MOST_LINKS { self.places.push(place) } else { self.dropped += 1 }
    }
}

/// A call's span, as those need it whom the call brings something.
#[derive(Clone, Copy)]
pub struct CallPlace {
    place: Place,
    parent: u64,
}

/// Begins spans, as `[trace]` says.
#[derive(Clone)]
pub struct Tracer {
    /// Of 63 random bits of a trace's id: those below are sampled, as other samplers of OpenTelemetry's decide it.
    below: Built<u64>,
    exporter: Exporter,
}

/// Exporters' tasks: that of the configuration in force, and of those before it until they have said all.
#[derive(Default)]
pub struct Exports {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Exports {
    /// Has what is queued exported, and waits for it no longer than `patience`.
    pub async fn end(&self, patience: Duration) {
        self.tasks.close();
        self.stop.cancel();
        let _ = tokio::time::timeout(patience, self.tasks.wait()).await;
    }
}

impl Tracer {
    /// A tracer whose exporter runs among `exports`. `None` in a build without the feature. Must be called within a tokio
    /// runtime.
    pub fn start(
        config: &config::Trace,
        tls: Option<ClientConfig>,
        metrics: &Arc<Metrics>,
        exports: &Exports,
    ) -> Option<Self> {
        let exporter = Exporter::start(config, tls, metrics, &exports.tasks, exports.stop.child_token())?;
        Some(Self { below: exporter.built(below(config.sample)), exporter })
    }

    /// Decides whether a request is traced. A valid `traceparent` has decided it already.
    pub fn begin<B>(&self, request: &Request<B>) -> Trace {
        let context = TraceContext::read(request.headers());
        let (trace, parent, flags, state) = match context.place() {
            Some(parent) if parent.flags & SAMPLED == 0 => return Trace(Decision::AsItCame),
            Some(parent) => (parent.trace, Some(parent.span), parent.flags, context.state()),
            None => {
                let trace = rand::random::<u128>().max(1);
                #[expect(clippy::cast_possible_truncation, reason = "the lower half is what decides")]
                let sampled = (trace as u64) >> 1 < *self.below;
                if !sampled {
                    return Trace(Decision::Unsampled(self.exporter.built(Place::within(trace, 0))));
                }
                (trace, None, SAMPLED, None)
            }
        };
        let open = Open {
            place: Place::within(trace, flags),
            parent,
            state,
            clock: Began::now(),
            method: method(request.method()),
            version: version(request.version()),
            links: Mutex::default(),
            exporter: self.exporter.clone(),
        };
        Trace(Decision::Recorded(self.exporter.built(Arc::new(open))))
    }
}

/// The share of 63 bits. Exact at both ends.
fn below(sample: f64) -> u64 {
    const ALL: u64 = 1 << 63;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a power of two; as casts saturate, nothing leaves its bounds"
    )]
    let part = (sample * ALL as f64) as u64;
    part.min(ALL)
}

// Without the feature there is nothing to carry along, and nothing to be done with it.
#[cfg(not(feature = "otlp"))]
const _: () = assert!(size_of::<(Trace, Option<Tracer>, ClientSpan)>() == 0);

/// Where a request stands in its trace. Cheap to clone; what is not traced costs a comparison.
#[derive(Clone, Default)]
pub struct Trace(Decision);

#[derive(Clone, Default)]
enum Decision {
    /// Nobody traces here, or whoever began the trace does not want it recorded: its context goes on as it came.
    #[default]
    AsItCame,
    /// No trace came, and none is recorded here; who is asked next is told so.
    Unsampled(Built<Place>),
    Recorded(Built<Arc<Open>>),
}

/// A request's span while it lasts.
struct Open {
    place: Place,
    parent: Option<u64>,
    /// The client's tracestate, which goes on.
    state: Option<HeaderValue>,
    clock: Began,
    method: &'static str,
    version: Option<&'static str>,
    links: Mutex<Links>,
    exporter: Exporter,
}

struct Began {
    at: SystemTime,
    since: Instant,
}

impl Began {
    fn now() -> Self {
        Self { at: SystemTime::now(), since: Instant::now() }
    }
}

impl Trace {
    /// Whether there is a span.
    pub fn is_recorded(&self) -> bool {
        matches!(self.0, Decision::Recorded(_))
    }

    /// The span's place, if there is one.
    pub fn place(&self) -> Option<Place> {
        match &self.0 {
            Decision::Recorded(open) => Some(open.place),
            _ => None,
        }
    }

    /// The context that goes on from a request with these headers, where no other span comes in between.
    pub fn context(&self, headers: &HeaderMap) -> TraceContext {
        match &self.0 {
            Decision::AsItCame => TraceContext::read(headers),
            Decision::Unsampled(place) => TraceContext::at(**place, None),
            Decision::Recorded(open) => TraceContext::at(open.place, open.state.clone()),
        }
    }

    /// What a call has brought is part of this request's answer.
    pub fn brought_by(&self, call: Option<CallPlace>) {
        if let (Decision::Recorded(open), Some(call)) = (&self.0, call)
            && call.parent != open.place.span
        {
            open.links.lock().unwrap_or_else(PoisonError::into_inner).add(call.place);
        }
    }

    /// Begins the span of a call for `ids` ids, which `others` have ids in, too.
    pub fn call<'t>(&self, endpoint: &Endpoint, ids: usize, others: impl Iterator<Item = &'t Trace>) -> ClientSpan {
        let name = Cow::Owned(format!("GET {}", api::PATH));
        let Some(mut span) = self.client(name, "GET", endpoint) else { return ClientSpan(None) };
        let parent = span.record.parent;
        for place in others.filter_map(Trace::place).filter(|place| Some(place.span) != parent) {
            span.record.links.add(place);
        }
        let ids = i64::try_from(ids).unwrap_or(i64::MAX);
        span.record.attributes.extend([(key::TEMPLATE, api::PATH.into()), (key::IDS, Value::Number(ids))]);
        ClientSpan(Some(span))
    }

    /// Begins the span of an exchange on any other route.
    pub fn exchange(&self, endpoint: &Endpoint, asked: &Method) -> ClientSpan {
        let word = method(asked);
        ClientSpan(self.client(Cow::Borrowed(name(word)), word, endpoint))
    }

    fn client(
        &self,
        name: Cow<'static, str>,
        method: &'static str,
        endpoint: &Endpoint,
    ) -> Option<Built<Box<Underway>>> {
        let Decision::Recorded(open) = &self.0 else { return None };
        let host = endpoint.authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let record = Record {
            place: Place::within(open.place.trace, open.place.flags),
            parent: Some(open.place.span),
            parent_is_remote: false,
            kind: Kind::Client,
            name,
            began: UNIX_EPOCH,
            lasted: Duration::ZERO,
            attributes: vec![
                (key::METHOD, method.into()),
                (key::HOST, Value::Text(Cow::Owned(host))),
                (key::PORT, u32::from(endpoint.port()).into()),
            ],
            links: Links::default(),
            failed: false,
        };
        let exporter = open.exporter.clone();
        let span = Underway { record, clock: Began::now(), state: open.state.clone(), exporter };
        Some(open.exporter.built(Box::new(span)))
    }

    /// Ends the request's span; without an answer, its client has left before.
    pub fn end(&self, route: Route, answered: Option<&Answered>) {
        let Decision::Recorded(open) = &self.0 else { return };
        let mut attributes: Vec<(&'static str, Value)> = vec![(key::METHOD, open.method.into())];
        attributes.extend(open.version.map(|version| (key::VERSION, version.into())));
        let name = match route {
            Route::Batch => {
                attributes.push((key::ROUTE, api::PATH.into()));
                Cow::Owned(format!("{} {}", name(open.method), api::PATH))
            }
            Route::Passthrough => Cow::Borrowed(name(open.method)),
        };
        let status = answered.map(|answered| answered.response.status());
        let failed = status.is_some_and(|status| status.is_server_error());
        attributes.extend(status.into_iter().flat_map(|status| said_of(status, failed)));
        attributes.push((key::SIDELINK_ROUTE, route.name().into()));
        attributes.push((key::OUTCOME, answered.map_or(Outcome::Error, |answered| answered.outcome).name().into()));
        let detail = answered.map_or(Some("client-left"), |answered| answered.detail);
        attributes.extend(detail.map(|detail| (key::DETAIL, detail.into())));
        if let Some(tally) = answered.map(|answered| answered.tally).filter(|tally| tally.total() > 0) {
            attributes.push((key::IDS, tally.total().into()));
            let counts =
                key::RESULTS.into_iter().zip(IdResult::ALL).map(|(key, result)| (key, tally.count(result).into()));
            attributes.extend(counts);
        }
        let links = std::mem::take(&mut *open.links.lock().unwrap_or_else(PoisonError::into_inner));
        open.exporter.take(Record {
            place: open.place,
            parent: open.parent,
            parent_is_remote: open.parent.is_some(),
            kind: Kind::Server,
            name,
            began: open.clock.at,
            lasted: open.clock.since.elapsed(),
            attributes,
            links,
            failed,
        });
    }
}

/// The span of a call or an exchange, if its request has one. It ends when it is dropped, at the latest.
#[derive(Default)]
pub struct ClientSpan(Option<Built<Box<Underway>>>);

struct Underway {
    record: Record,
    clock: Began,
    state: Option<HeaderValue>,
    exporter: Exporter,
}

impl ClientSpan {
    /// The context that goes to the endpoint.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| TraceContext::at(span.record.place, span.state.clone()))
    }

    /// Where it is, for those whom the call brings something.
    pub fn place(&self) -> Option<CallPlace> {
        let record = &self.0.as_ref()?.record;
        Some(CallPlace { place: record.place, parent: record.parent? })
    }

    /// The endpoint has answered with `status`; sidelink makes `result` of it.
    pub fn answered(&mut self, status: StatusCode, result: &'static str) {
        if let Some(span) = &mut self.0 {
            span.record.failed = status.is_client_error() || status.is_server_error();
            let said = said_of(status, span.record.failed);
            span.record.attributes.extend(said);
            span.record.attributes.push((key::RESULT, result.into()));
        }
    }

    /// It came to no answer, for a reason out of a closed set.
    pub fn unanswered(&mut self, reason: &'static str) {
        if let Some(span) = &mut self.0 {
            span.record.failed = true;
            span.record.attributes.extend([(key::ERROR, reason.into()), (key::RESULT, reason.into())]);
        }
    }

    /// It is over.
    pub fn end(self) {}

    /// It was sent again so often.
    pub fn resent(&mut self, times: u32) {
        if let (Some(span), 1..) = (&mut self.0, times) {
            span.record.attributes.push((key::RESENT, times.into()));
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let empty = Record {
            place: self.record.place,
            parent: None,
            parent_is_remote: false,
            kind: Kind::Client,
            name: Cow::Borrowed(""),
            began: self.clock.at,
            lasted: Duration::ZERO,
            attributes: Vec::new(),
            links: Links::default(),
            failed: false,
        };
        let record = std::mem::replace(&mut self.record, empty);
        self.exporter.take(Record { began: self.clock.at, lasted: self.clock.since.elapsed(), ..record });
    }
}

fn said_of(status: StatusCode, failed: bool) -> impl Iterator<Item = (&'static str, Value)> {
    let error = failed.then(|| (key::ERROR, Value::Text(Cow::Owned(status.as_str().to_owned()))));
    std::iter::once((key::STATUS, u32::from(status.as_u16()).into())).chain(error)
}

/// A method out of a closed set: clients may make up any.
fn method(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 9] = [
        (Method::GET, "GET"),
        (Method::POST, "POST"),
        (Method::PUT, "PUT"),
        (Method::DELETE, "DELETE"),
        (Method::HEAD, "HEAD"),
        (Method::PATCH, "PATCH"),
        (Method::OPTIONS, "OPTIONS"),
        (Method::CONNECT, "CONNECT"),
        (Method::TRACE, "TRACE"),
    ];
    KNOWN.iter().find(|(known, _)| known == method).map_or("_OTHER", |(_, word)| word)
}

/// What a span is called after its method.
fn name(method: &'static str) -> &'static str {
    if method == "_OTHER" { "HTTP" } else { method }
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_all_traces_is_below_the_bound() {
        assert_eq!((below(0.0), below(0.5), below(1.0)), (0, 1 << 62, 1 << 63));
        // None at 0, all at 1, whatever is drawn.
        assert!((u64::MAX >> 1) < below(1.0) && below(1e-12) < 10_000_000);
    }

    #[test]
    fn links_are_each_there_once_and_bounded() {
        let mut links = Links::default();
        for span in 0..100 {
            for _ in 0..2 {
                links.add(Place { trace: 1, span, flags: 1 });
            }
        }
        assert_eq!(links.places.len(), MOST_LINKS);
        assert_eq!(usize::try_from(links.dropped), Ok(2 * (100 - MOST_LINKS)));
    }

    #[test]
    fn a_method_that_is_made_up_has_no_name() {
        let made_up: Method = "MARKED-TOKEN".parse().unwrap();
        assert_eq!((method(&made_up), name(method(&made_up))), ("_OTHER", "HTTP"));
        assert_eq!((method(&Method::GET), name("GET")), ("GET", "GET"));
    }
}
