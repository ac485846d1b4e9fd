//! Batch route or pass-through; and what no route may be given.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use tokio::time::Instant;

use crate::api;
use crate::batch::BatchRoute;
use crate::error::{Error, METHODS};
use crate::message::answered::Answered;
use crate::message::body::{Body, BodyError};
use crate::message::headers::{
    REQUEST_ID_BYTES, client_request_id, expects_continue, has_outer_space, is_host, is_http2_target, join_cookies,
    max_forwards, sidelinks,
};
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{IdResult, Metrics, Outcome, Route};
use crate::telemetry::trace::{RequestSpan, TraceContext, Tracer};
use crate::upstream::Upstream;

/// Most sidelinks that a request may have passed.
const MOST_HOPS: usize = 3;

/// The first to see a request, and the last to see its answer.
pub struct Router {
    access_urls: Arc<BatchRoute>,
    passthrough: Arc<Passthrough>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    access_log: bool,
    tracer: Option<Tracer>,
}

impl Router {
    /// A router over what the composition root has built.
    pub fn new(
        access_urls: Arc<BatchRoute>,
        passthrough: Arc<Passthrough>,
        upstream: Arc<Upstream>,
        metrics: Arc<Metrics>,
        access_log: bool,
        tracer: Option<Tracer>,
    ) -> Self {
        Self { access_urls, passthrough, upstream, metrics, access_log, tracer }
    }

    /// Answers a request, counts it, writes its line into the access log, and ends its span.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let began = Instant::now();
        let trace = self.tracer.as_ref().map_or_else(RequestSpan::default, |tracer| tracer.begin(&request));
        if let Some(mut answered) = self.access_urls.at_hand(&request, began) {
            name(&mut answered, client_request_id(request.headers()));
            self.log(Route::Batch, began, &request, &trace).end(Some(&answered));
            return answered.response;
        }
        // Boxed, so that what most batches do without is not moved with them: a future is moved as a whole.
        Box::pin(self.dispatch(request, began, trace)).await
    }

    async fn dispatch<B>(&self, mut request: Request<B>, began: Instant, trace: RequestSpan) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        if request.version() == Version::HTTP_2 {
            join_cookies(request.headers_mut());
        }
        let route = route(&request);
        let mut request_log = self.log(route, began, &request, &trace);
        let request_id = client_request_id(request.headers()).cloned();
        let mut answered = match self.refusal(&request) {
            Some(error) => refuse(error, request),
            None if ends_here(&request) => {
                crate::message::body::drain(request.into_body());
                Answered::made_here(methods(), Outcome::Bypass)
            }
            None if route == Route::Batch => self.access_urls.answer(request, &trace).await,
            None => self.passthrough.forward(request, &trace).await,
        };
        name(&mut answered, request_id.as_ref());
        request_log.end(Some(&answered));
        answered.response
    }

    fn log<'l, B>(
        &'l self,
        route: Route,
        began: Instant,
        request: &Request<B>,
        trace: &'l RequestSpan,
    ) -> RequestLog<'l> {
        let line = self.access_log.then(|| Line::of(request, trace));
        RequestLog { metrics: &self.metrics, route, began, line, trace, over: false }
    }

    /// Why a request gets no further than here.
    fn refusal<B>(&self, request: &Request<B>) -> Option<Error> {
        let headers = request.headers();
        if request.method() == Method::CONNECT {
            return Some(Error::Connect);
        }
        let (version, authority) = (request.version(), request.uri().authority());
        let mut hosts = headers.get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => return Some(Error::Malformed("the request has more than one Host header")),
            (Some(host), None) if !is_host(host.as_bytes()) => {
                return Some(Error::Malformed("the Host header is no host and port"));
            }
            (Some(_), None) => {}
            (None, _) if version < Version::HTTP_11 => {}
            // HTTP/2 has an authority in its place.
            (None, _) if version > Version::HTTP_11 && authority.is_some() => {}
            (None, _) => return Some(Error::Malformed("the request has no Host header")),
        }
        match authority {
            // In HTTP/1 that is a proxy's form, and this is no open proxy.
            Some(authority) if version <= Version::HTTP_11 && !self.upstream.is_endpoint(authority) => {
                return Some(Error::Misdirected);
            }
            Some(authority) if version <= Version::HTTP_11 && !is_host(authority.as_str().as_bytes()) => {
                return Some(Error::Malformed("the URL's authority is no host and port"));
            }
            // RFC 9113 §8.3.1. Whoever reads one of two names takes the request for another.
            Some(authority) if version > Version::HTTP_11 && !is_named(authority, headers) => {
                return Some(Error::Malformed("the request's authority has a user in it, or is not its Host"));
            }
            _ => {}
        }
        if version == Version::HTTP_2 {
            if !is_http2_target(request.uri()) {
                return Some(Error::Malformed("the request's :scheme is none, or its :authority is no host and port"));
            }
            if headers.values().any(has_outer_space) {
                return Some(Error::Malformed("a field value begins or ends in space"));
            }
            if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
                return Some(Error::Malformed("the request has more than one Content-Length"));
            }
        }
        // Another coding would have to be undone: what is forwarded is framed anew, and has this one alone.
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
            || codings.next().is_some()
        {
            return Some(Error::Malformed("the only Transfer-Encoding that is taken is chunked"));
        }
        if request.method() == Method::TRACE && max_forwards(request.method(), headers) == Some(0) {
            return Some(Error::Trace);
        }
        if request.uri().path() == "*" && !ends_here(request) {
            return Some(Error::Malformed("the asterisk form is not forwarded"));
        }
        if self.access_urls.callers().is_named_by_connection(headers) {
            return Some(Error::NamedByConnection);
        }
        (sidelinks(headers) > MOST_HOPS).then_some(Error::Loop)
    }
}

/// Whether `authority` is a host and port and, where there is a Host, the same.
fn is_named(authority: &Authority, headers: &HeaderMap) -> bool {
    let same = |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    !authority.as_str().contains('@') && headers.get(HOST).is_none_or(same)
}

/// Gives an answer of sidelink's own, or made of links, the client's name for its request. What was forwarded keeps the
/// endpoint's.
fn name(answered: &mut Answered, request_id: Option<&HeaderValue>) {
    if let Some(id) = request_id.filter(|_| answered.outcome != Outcome::Bypass) {
        answered.response.headers_mut().insert(api::REQUEST_ID, id.clone());
    }
}

/// Whether a request is about sidelink itself: OPTIONS that no proxy may forward any more (RFC 9110 §7.6.2).
fn ends_here<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && max_forwards(request.method(), request.headers()) == Some(0)
}

/// Which methods are forwarded.
fn methods() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    response
}

fn route<B>(request: &Request<B>) -> Route {
    if request.method() == Method::GET && request.uri().path() == api::PATH { Route::Batch } else { Route::Passthrough }
}

fn refuse<B>(error: Error, request: Request<B>) -> Answered
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
{
    // Nobody is told to upload what is refused: reading on would do that.
    if !expects_continue(&request) {
        crate::message::body::drain(request.into_body());
    }
    Answered::own(error)
}

/// What the access log has of a request.
struct Line {
    method: Method,
    path: String,
    /// The client's own name for the request.
    client_request_id: Option<HeaderValue>,
    trace: TraceContext,
}

impl Line {
    fn of<B>(request: &Request<B>, trace: &RequestSpan) -> Self {
        Self {
            method: request.method().clone(),
            path: shown(request.uri().path()),
            client_request_id: client_request_id(request.headers()).cloned(),
            trace: trace.context(request.headers()),
        }
    }
}

/// A path as the log has it, of ASCII alone: beyond that there is what steers a terminal, or turns a line around.
fn shown(path: &str) -> String {
    let mut shown = utf8_percent_encode(path, CONTROLS).to_string();
    shown.truncate(PATH_BYTES);
    shown
}

/// Counts a request, writes its line and ends its span, once: at its answer, or when its client has left before.
struct RequestLog<'m> {
    metrics: &'m Metrics,
    route: Route,
    began: Instant,
    /// Where there is an access log.
    line: Option<Line>,
    trace: &'m RequestSpan,
    over: bool,
}

/// What the access log gives as the status of a request whose client has left.
const CLIENT_LEFT: u16 = 499;

/// The longest path that is logged: a target may take all of a head.
const PATH_BYTES: usize = 1024;

impl RequestLog<'_> {
    /// No query, no header but the request id, no link.
    fn end(&mut self, answered: Option<&Answered>) {
        self.over = true;
        let elapsed = self.began.elapsed();
        let outcome = answered.map_or(Outcome::Error, |answered| answered.outcome);
        self.metrics.count_request(self.route, outcome, elapsed.as_secs_f64());
        self.trace.end(self.route, answered);
        let Some(Line { method, path, client_request_id, trace }) = &self.line else { return };
        let status = answered.map_or(CLIENT_LEFT, |answered| answered.response.status().as_u16());
        let request_id = answered
            .and_then(|answered| answered.response.headers().get(api::REQUEST_ID)?.to_str().ok())
            .filter(|id| id.len() <= REQUEST_ID_BYTES);
        let client_request_id = client_request_id.as_ref().and_then(|id| id.to_str().ok());
        let detail = answered.map_or(Some("client-left"), |answered| answered.detail);
        let milliseconds = |span: Duration| (span.as_secs_f64() * 1_000_000.0).round() / 1000.0;
        let tally = answered.map(|answered| answered.tally).filter(|tally| tally.total() > 0);
        let count = |result| tally.map(|tally| tally.count(result));
        events::Access {
            method: method.as_str(),
            path,
            status,
            route: self.route.name(),
            outcome: outcome.name(),
            milliseconds: milliseconds(elapsed),
            waited_milliseconds: answered.and_then(|answered| answered.waited).map(milliseconds),
            detail,
            request_id,
            client_request_id: client_request_id.filter(|id| request_id != Some(*id)),
            trace_id: trace.id(),
            caller: answered.and_then(|answered| answered.caller).map(|caller| format!("{caller:08x}")),
            ids: tally.map(|tally| tally.total()),
            hit: count(IdResult::Hit),
            stale: count(IdResult::Stale),
            joined: count(IdResult::Joined),
            shared: count(IdResult::Shared),
            fetched: count(IdResult::Fetched),
            absent: count(IdResult::Absent),
            failed: count(IdResult::Failed),
        }
        .log();
    }
}

impl Drop for RequestLog<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.end(None);
        }
    }
}
