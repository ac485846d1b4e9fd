//! Routes requests: to the batch route, to pass-through, or nowhere, where HTTP forbids it (RFC 9110, RFC 9112, RFC 9113).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use percent_encoding::{CONTROLS, percent_encode};
use tokio::time::Instant;

use crate::api::BatchApi;
use crate::auth::LastToken;
use crate::batch::{self, BatchRoute, RequestContext};
use crate::config::AccessLines;
use crate::error::{Error, METHODS, NoAnswer};
use crate::message::body::{Body, BodyError, drain};
use crate::message::header_filter::{HeaderFilter, Headers};
use crate::message::headers::{
    self, REQUEST_ID, REQUEST_ID_BYTES, client_request_id, has_outer_space, is_host, is_http2_target, join_cookies,
    max_forwards, sidelinks,
};
use crate::message::reply::Reply;
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{Code, IdResult, Metrics, Outcome, Route, Source};
use crate::telemetry::trace::{RequestSpan, TraceContext, Tracer};
use crate::upstream::Upstream;

/// The most sidelinks that a request may have passed.
const MOST_HOPS: usize = 3;

/// Routes each request, and accounts for its reply.
pub struct Router {
    /// The routes of the batch APIs. No request is on two of them.
    pub(crate) batches: Box<[Arc<BatchRoute>]>,
    pub(crate) passthrough: Arc<Passthrough>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_lines: AccessLines,
    pub(crate) tracer: Option<Tracer>,
}

/// A client's connection.
#[derive(Default)]
pub struct Connection {
    /// The client's address; `None` for a process on this machine.
    pub client: Option<IpAddr>,
    /// The token that it has shown last.
    pub last_token: LastToken,
}

impl Router {
    /// Looks up a request of `connection` in memory alone: the response, if it is a batch of which
    /// memory has all. No future is built or moved for it.
    pub fn look_up<B>(&self, request: Request<B>, connection: &Connection) -> Result<Response<Body>, Box<Unanswered<B>>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let began = Instant::now();
        // In parts, which are lent to the look-up: a request is large, and moving it takes time.
        let (mut head, body) = request.into_parts();
        let trace = self.tracer.as_ref().map_or_else(RequestSpan::default, |tracer| tracer.begin(&head));
        if head.version == Version::HTTP_2 {
            join_cookies(&mut head.headers);
        }
        let filter = HeaderFilter::new(head.headers.keys());
        let headers = filter.on(&head.headers);
        let batch = self.batches.iter().position(|batch| batch.is_for(&head));
        let route = if batch.is_some() { Route::Batch } else { Route::Passthrough };
        let line = (self.access_lines != AccessLines::Off).then(|| Line::of(&head, connection, &trace));
        let record =
            Record { route, batch, began, line, errors_alone: self.access_lines == AccessLines::Errors, trace };
        let step = match self.refusal(&head, headers) {
            Some(error) => Step::Refuse(error),
            None if ends_here(&head) => Step::Options,
            None => match batch.and_then(|at| self.batches.get(at)) {
                Some(batch) => {
                    let context = RequestContext { filter, last_token: &connection.last_token, trace: &record.trace };
                    match batch.look_up(&head, !body.is_end_stream(), began, context) {
                        Some(batch::Step::Reply(reply)) => {
                            return Ok(self.end(&record, reply, client_request_id(headers)));
                        }
                        step => Step::Batch(step),
                    }
                }
                None => Step::Forward,
            },
        };
        Err(Box::new(Unanswered { request: Request::from_parts(head, body), filter, step, record }))
    }

    /// Answers a request that [`Self::look_up`] has not answered.
    pub async fn answer<B>(&self, unanswered: Box<Unanswered<B>>, connection: &Connection) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let Unanswered { request, filter, step, record } = *unanswered;
        let unended = UnendedRecord { record: &record, router: self };
        let request_id = client_request_id(filter.on(request.headers())).cloned();
        let reply = match step {
            Step::Refuse(error) => Reply::refuse(error, request),
            Step::Options => {
                drain(request.into_body());
                let id = request_id.clone().unwrap_or_else(headers::request_id);
                Reply::local(methods(), Outcome::Bypass, id)
            }
            Step::Batch(step) => match record.batch.and_then(|at| self.batches.get(at)) {
                Some(batch) => {
                    let context = RequestContext { filter, last_token: &connection.last_token, trace: &record.trace };
                    batch.finish(step, request, context).await
                }
                None => Reply::refuse(Error::NoAnswer(NoAnswer::Lost), request),
            },
            Step::Forward => Box::pin(self.passthrough.forward(request, &record.trace)).await,
        };
        std::mem::forget(unended);
        self.end(&record, reply, request_id.as_ref())
    }

    /// Accounts for a reply, and gives it the client's request id.
    fn end(&self, record: &Record, mut reply: Reply, request_id: Option<&HeaderValue>) -> Response<Body> {
        // A forwarded reply keeps the endpoint's.
        if reply.info.outcome != Outcome::Bypass {
            reply.set_request_id(request_id);
        }
        let api = self.api(record);
        if let Some(api) = api.filter(|_| reply.info.error.is_some()) {
            reply.shape_error(&api.errors);
        }
        record.end(&self.metrics, api, Some(&reply));
        reply.response
    }

    /// The API of a request, if it is on the route of one.
    fn api(&self, record: &Record) -> Option<&BatchApi> {
        record.batch.and_then(|at| self.batches.get(at)).map(|batch| batch.api())
    }

    /// Why a request is refused here.
    fn refusal(&self, head: &Parts, headers: Headers<'_>) -> Option<Error> {
        if head.method == Method::CONNECT {
            return Some(Error::Connect);
        }
        let (version, authority) = (head.version, head.uri.authority());
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
            if !is_http2_target(&head.uri) {
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
        if head.method == Method::TRACE && max_forwards(&head.method, headers) == Some(0) {
            return Some(Error::Trace);
        }
        if head.uri.path() == "*" && !ends_here(head) {
            return Some(Error::Malformed("the asterisk form is not forwarded"));
        }
        if self.batches.iter().any(|batch| batch.callers().is_named_by_connection(headers)) {
            return Some(Error::NamedByConnection);
        }
        (sidelinks(headers) > MOST_HOPS).then_some(Error::Loop)
    }
}

/// A request that memory does not answer.
pub struct Unanswered<B> {
    request: Request<B>,
    filter: HeaderFilter,
    step: Step,
    record: Record,
}

/// What is left to do for a request.
#[expect(clippy::large_enum_variant, reason = "it is in the box of its request")]
enum Step {
    Refuse(Error),
    /// To answer OPTIONS here.
    Options,
    Batch(Option<batch::Step>),
    Forward,
}

/// Whether `authority` is a host and port and, where there is a Host, the same.
fn is_named(authority: &Authority, headers: Headers<'_>) -> bool {
    let same = |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    !authority.as_str().contains('@') && headers.get_all(&HOST).all(same)
}

/// Whether a request is to be answered here: OPTIONS that may be forwarded no further (RFC 9110 §7.6.2).
fn ends_here(head: &Parts) -> bool {
    head.method == Method::OPTIONS && max_forwards(&head.method, &head.headers) == Some(0)
}

/// The methods that are forwarded.
fn methods() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    response
}

/// The fields of a request in the access log.
struct Line {
    method: Method,
    path: String,
    client: Option<IpAddr>,
    user_agent: Option<String>,
    /// The client's request id.
    client_request_id: Option<HeaderValue>,
    trace: TraceContext,
}

impl Line {
    fn of(head: &Parts, connection: &Connection, trace: &RequestSpan) -> Self {
        let user_agent = head.headers.get(USER_AGENT).map(|agent| shown(agent.as_bytes(), USER_AGENT_BYTES));
        Self {
            method: head.method.clone(),
            path: shown(head.uri.path().as_bytes(), PATH_BYTES),
            client: connection.client,
            user_agent,
            client_request_id: client_request_id(&head.headers).cloned(),
            trace: trace.context(&head.headers),
        }
    }
}

/// A client's text as it is logged, in ASCII: other characters may steer a terminal or reverse the text's direction.
fn shown(text: &[u8], most: usize) -> String {
    let mut shown = percent_encode(text, CONTROLS).to_string();
    shown.truncate(most);
    shown
}

/// What is to be counted, logged and traced of a request.
struct Record {
    route: Route,
    /// The place of its API among the router's.
    batch: Option<usize>,
    began: Instant,
    /// `None` without access lines.
    line: Option<Line>,
    /// Whether only errors get a line.
    errors_alone: bool,
    trace: RequestSpan,
}

/// The status in the access log of a request whose client has left.
const CLIENT_LEFT: u16 = 499;

/// The most bytes of a path that are logged: a target may take all of a head.
const PATH_BYTES: usize = 1024;
/// The most bytes of a client's name that are logged.
const USER_AGENT_BYTES: usize = 256;

impl Record {
    /// Counts a request, logs it and ends its span: at its reply, or when its client leaves before. Logs no query, no header but the
    /// request id, and no link.
    fn end(&self, metrics: &Metrics, api: Option<&BatchApi>, reply: Option<&Reply>) {
        let elapsed = self.began.elapsed();
        let outcome = reply.map_or(Outcome::Error, |reply| reply.info.outcome);
        let source = reply.map_or(Source::Sidelink, |reply| reply.info.source);
        let code = reply.map_or(Code::ClientLeft, |reply| Code::from(reply.response.status()));
        metrics.count_response(self.route, source, code);
        metrics.count_request(self.route, outcome, elapsed.as_secs_f64());
        self.trace.end(self.route, api, reply);
        let Some(Line { method, path, client, user_agent, client_request_id, trace }) = &self.line else { return };
        let status = reply.map_or(CLIENT_LEFT, |reply| reply.response.status().as_u16());
        if self.errors_alone && status < 400 {
            return;
        }
        let request_id = reply
            .and_then(|reply| reply.response.headers().get(REQUEST_ID)?.to_str().ok())
            .filter(|id| id.len() <= REQUEST_ID_BYTES);
        let client_request_id = client_request_id.as_ref().and_then(|id| id.to_str().ok());
        let detail = reply.map_or(Some("client-left"), |reply| reply.info.detail);
        let milliseconds = |span: Duration| (span.as_secs_f64() * 1_000_000.0).round() / 1000.0;
        let tally = reply.map(|reply| reply.info.tally).unwrap_or_default();
        let some = |count: u32| Some(count).filter(|count| *count > 0);
        let count = |result| some(tally.count(result));
        events::Access {
            method: method.as_str(),
            path,
            status,
            route: self.route.name(),
            outcome: outcome.name(),
            milliseconds: milliseconds(elapsed),
            waited_milliseconds: reply.and_then(|reply| reply.info.waited).map(milliseconds),
            detail,
            client: client.map(|client| client.to_string()).as_deref(),
            user_agent: user_agent.as_deref(),
            bytes: reply.and_then(|reply| reply.response.body().size_hint().exact()),
            request_id,
            client_request_id: client_request_id.filter(|id| request_id != Some(*id)),
            trace_id: trace.id(),
            caller: reply.and_then(|reply| reply.info.caller).map(|caller| format!("{caller:08x}")),
            ids: some(tally.total()),
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

/// The record of a request whose reply is not there yet. Dropping it ends the record: the client has left.
struct UnendedRecord<'r> {
    record: &'r Record,
    router: &'r Router,
}

impl Drop for UnendedRecord<'_> {
    fn drop(&mut self) {
        self.record.end(&self.router.metrics, self.router.api(self.record), None);
    }
}
