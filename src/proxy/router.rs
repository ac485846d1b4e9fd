//! Routes requests: to the batch route, to pass-through, or nowhere, where HTTP forbids it (RFC 9110, RFC 9112, RFC 9113).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use tokio::time::Instant;

use crate::api;
use crate::auth::LastToken;
use crate::batch::{Answering, BatchRoute, RequestContext};
use crate::error::{Error, METHODS};
use crate::message::body::{Body, BodyError};
use crate::message::header_filter::{HeaderFilter, Headers};
use crate::message::headers::{
    REQUEST_ID_BYTES, client_request_id, has_outer_space, is_host, is_http2_target, join_cookies, max_forwards,
    sidelinks,
};
use crate::message::reply::Reply;
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{IdResult, Metrics, Outcome, Route};
use crate::telemetry::trace::{RequestSpan, TraceContext, Tracer};
use crate::upstream::Upstream;

/// The most sidelinks that a request may have passed.
const MOST_HOPS: usize = 3;

/// Routes each request, and accounts for its reply.
pub struct Router {
    pub(crate) batch: Arc<BatchRoute>,
    pub(crate) passthrough: Arc<Passthrough>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: bool,
    pub(crate) tracer: Option<Tracer>,
}

impl Router {
    /// Answers a request of a connection that has shown `last_token`, counts it, writes its line into the access log, and ends its
    /// span.
    pub async fn answer<B>(&self, mut request: Request<B>, last_token: &LastToken) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let began = Instant::now();
        let trace = self.tracer.as_ref().map_or_else(RequestSpan::default, |tracer| tracer.begin(&request));
        if request.version() == Version::HTTP_2 {
            join_cookies(request.headers_mut());
        }
        let filter = HeaderFilter::new(request.headers().keys());
        let headers = filter.on(request.headers());
        let route = route(&request);
        let line = self.access_log.then(|| Line::of(&request, &trace));
        let mut request_log = RequestLog { metrics: &self.metrics, route, began, line, trace: &trace, ended: false };
        let request_id = client_request_id(headers).cloned();
        let mut reply = match self.refusal(&request, headers) {
            Some(error) => Reply::refuse(error, request),
            None if ends_here(&request) => {
                crate::message::body::drain(request.into_body());
                let mut reply = Reply::local(methods(), Outcome::Bypass);
                reply.set_request_id(request_id.as_ref());
                reply
            }
            None if route == Route::Batch => {
                let context = RequestContext { filter, last_token, trace: &trace };
                match self.batch.answer(request, began, context) {
                    Answering::Ready(reply) => reply,
                    Answering::Pending(reply) => reply.await,
                }
            }
            // Boxed: a future is moved as a whole, and this one is large.
            None => Box::pin(self.passthrough.forward(request, &trace)).await,
        };
        // A forwarded reply keeps the endpoint's.
        if reply.info.outcome != Outcome::Bypass {
            reply.set_request_id(request_id.as_ref());
        }
        request_log.end(Some(&reply));
        reply.response
    }

    /// Why a request is refused here.
    fn refusal<B>(&self, request: &Request<B>, headers: Headers<'_>) -> Option<Error> {
        if request.method() == Method::CONNECT {
            return Some(Error::Connect);
        }
        let (version, authority) = (request.version(), request.uri().authority());
        let mut hosts = headers.get_all(&HOST);
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
            // In HTTP/1 this is the form for proxies (RFC 9112 §3.2.2), and sidelink is no open proxy.
            Some(authority) if version <= Version::HTTP_11 && !self.upstream.is_endpoint(authority) => {
                return Some(Error::Misdirected);
            }
            Some(authority) if version <= Version::HTTP_11 && !is_host(authority.as_str().as_bytes()) => {
                return Some(Error::Malformed("the URL's authority is no host and port"));
            }
            // RFC 9113 §8.3.1: two names would be two requests, for those who read either.
            Some(authority) if version > Version::HTTP_11 && !is_named(authority, headers) => {
                return Some(Error::Malformed("the request's authority has a user in it, or is not its Host"));
            }
            _ => {}
        }
        if version == Version::HTTP_2 {
            if !is_http2_target(request.uri()) {
                return Some(Error::Malformed("the request's :scheme is none, or its :authority is no host and port"));
            }
            if headers.map().values().any(has_outer_space) {
                return Some(Error::Malformed("a field value begins or ends in space"));
            }
            if headers.get_all(&CONTENT_LENGTH).nth(1).is_some() {
                return Some(Error::Malformed("the request has more than one Content-Length"));
            }
        }
        // Another coding would have to be undone: a forwarded body is always framed as chunked alone.
        let mut codings = headers.get_all(&TRANSFER_ENCODING);
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
        if self.batch.callers().is_named_by_connection(headers) {
            return Some(Error::NamedByConnection);
        }
        (sidelinks(headers) > MOST_HOPS).then_some(Error::Loop)
    }
}

/// Whether `authority` is a host and port and, where there is a Host, the same.
fn is_named(authority: &Authority, headers: Headers<'_>) -> bool {
    let same = |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    !authority.as_str().contains('@') && headers.get_all(&HOST).all(same)
}

/// Whether a request is to be answered here: OPTIONS that may be forwarded no further (RFC 9110 §7.6.2).
fn ends_here<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && max_forwards(request.method(), request.headers()) == Some(0)
}

/// The methods that are forwarded.
fn methods() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    response
}

fn route<B>(request: &Request<B>) -> Route {
    if request.method() == Method::GET && request.uri().path() == api::PATH { Route::Batch } else { Route::Passthrough }
}

/// The fields of a request in the access log.
struct Line {
    method: Method,
    path: String,
    /// The client's request id.
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

/// A path as it is logged, in ASCII: other characters may steer a terminal or reverse the text's direction.
fn shown(path: &str) -> String {
    let mut shown = utf8_percent_encode(path, CONTROLS).to_string();
    shown.truncate(PATH_BYTES);
    shown
}

/// Counts a request, logs it and ends its span, once: at its reply, or when its client leaves before.
struct RequestLog<'m> {
    metrics: &'m Metrics,
    route: Route,
    began: Instant,
    /// `None` without an access log.
    line: Option<Line>,
    trace: &'m RequestSpan,
    ended: bool,
}

/// The status in the access log of a request whose client has left.
const CLIENT_LEFT: u16 = 499;

/// The most bytes of a path that are logged: a target may take all of a head.
const PATH_BYTES: usize = 1024;

impl RequestLog<'_> {
    /// Logs no query, no header but the request id, and no link.
    fn end(&mut self, reply: Option<&Reply>) {
        self.ended = true;
        let elapsed = self.began.elapsed();
        let outcome = reply.map_or(Outcome::Error, |reply| reply.info.outcome);
        self.metrics.count_request(self.route, outcome, elapsed.as_secs_f64());
        self.trace.end(self.route, reply);
        let Some(Line { method, path, client_request_id, trace }) = &self.line else { return };
        let status = reply.map_or(CLIENT_LEFT, |reply| reply.response.status().as_u16());
        let request_id = reply
            .and_then(|reply| reply.response.headers().get(api::REQUEST_ID)?.to_str().ok())
            .filter(|id| id.len() <= REQUEST_ID_BYTES);
        let client_request_id = client_request_id.as_ref().and_then(|id| id.to_str().ok());
        let detail = reply.map_or(Some("client-left"), |reply| reply.info.detail);
        let milliseconds = |span: Duration| (span.as_secs_f64() * 1_000_000.0).round() / 1000.0;
        let tally = reply.map(|reply| reply.info.tally).filter(|tally| tally.total() > 0);
        let count = |result| tally.map(|tally| tally.count(result));
        events::Access {
            method: method.as_str(),
            path,
            status,
            route: self.route.name(),
            outcome: outcome.name(),
            milliseconds: milliseconds(elapsed),
            waited_milliseconds: reply.and_then(|reply| reply.info.waited).map(milliseconds),
            detail,
            request_id,
            client_request_id: client_request_id.filter(|id| request_id != Some(*id)),
            trace_id: trace.id(),
            caller: reply.and_then(|reply| reply.info.caller).map(|caller| format!("{caller:08x}")),
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
        if !self.ended {
            self.end(None);
        }
    }
}
