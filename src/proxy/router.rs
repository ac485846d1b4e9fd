//! Routes requests: to the batch route, to pass-through, or nowhere, where HTTP forbids it (RFC 9110, RFC 9112, RFC 9113).

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio::time::Instant;

use crate::auth::LastToken;
use crate::batch::{self, BatchRoute, RequestContext};
use crate::config::AccessLines;
use crate::error::{Error, METHODS, NoAnswer};
use crate::message::body::{Body, BodyError, drain};
use crate::message::ending::{Abort, CutOff};
use crate::message::header_filter::{HeaderFilter, Headers};
use crate::message::headers::{
    self, client_request_id, has_outer_space, is_host, is_http2_target, join_cookies, max_forwards, sidelinks,
};
use crate::message::reply::Reply;
use crate::proxy::access::{self, Line};
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::metrics::{Code, Metrics, Outcome, Route, Source};
use crate::telemetry::trace::{RequestSpan, Tracer};
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
    /// Why it is cut off, once it is.
    pub cut_off: CutOff,
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
        let record = Record { route, batch, began, trace };
        let line = || {
            let api = self.batch(&record).map(BatchRoute::api);
            Line::of(&head, connection, (route, api), began, &record.trace)
        };
        let step = match self.refusal(&head, headers) {
            Some(error) => Step::Refuse(error),
            None if ends_here(&head) => Step::Options,
            None => match batch.and_then(|at| self.batches.get(at)) {
                Some(batch) => {
                    let context = RequestContext { filter, last_token: &connection.last_token, trace: &record.trace };
                    match batch.look_up(&head, !body.is_end_stream(), began, context) {
                        Some(batch::Step::Reply(reply)) => {
                            let line = access::may_log(self.access_lines, &reply).then(line);
                            return Ok(self.end(&record, line, reply, client_request_id(headers)));
                        }
                        Some(step) => Step::Batch(step),
                        None => Step::Body,
                    }
                }
                None => Step::Forward,
            },
        };
        let line = (self.access_lines != AccessLines::Off).then(line);
        Err(Box::new(Unanswered { head, body, filter, step, record, line }))
    }

    /// Answers a request that [`Self::look_up`] has not answered.
    pub async fn answer<B>(&self, unanswered: Box<Unanswered<B>>, connection: &Connection) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        // Its fields leave the box where they are used: a future that has them all is as large, and is moved.
        let (record, cut_off) = (&unanswered.record, &connection.cut_off);
        let unended = Unended { record, line: unanswered.line.as_ref(), router: self, cut_off };
        let request_id = client_request_id(unanswered.filter.on(&unanswered.head.headers)).cloned();
        let context =
            RequestContext { filter: unanswered.filter, last_token: &connection.last_token, trace: &record.trace };
        let request = |head, body| Request::from_parts(head, body);
        let reply = match (unanswered.step, self.batch(record)) {
            (Step::Body, Some(batch)) => batch.read_and_answer(&unanswered.head, unanswered.body, context).await,
            (Step::Batch(step), Some(batch)) => {
                Box::pin(batch.finish(step, request(unanswered.head, unanswered.body), context)).await
            }
            (Step::Forward, _) => {
                let request = request(unanswered.head, unanswered.body);
                Box::pin(self.passthrough.forward(request, &record.trace)).await
            }
            (Step::Options, _) => {
                drain(unanswered.body);
                let id = request_id.clone().unwrap_or_else(headers::request_id);
                Reply::local(methods(), Outcome::Bypass, id)
            }
            (Step::Refuse(error), _) => Reply::refuse(error, request(unanswered.head, unanswered.body)),
            (Step::Body | Step::Batch(_), None) => {
                Reply::refuse(Error::NoAnswer(NoAnswer::Lost), request(unanswered.head, unanswered.body))
            }
        };
        std::mem::forget(unended);
        self.end(record, unanswered.line, reply, request_id.as_ref())
    }

    /// Accounts for a reply, and gives it the client's request id.
    fn end(
        &self,
        record: &Record,
        line: Option<Line>,
        mut reply: Reply,
        request_id: Option<&HeaderValue>,
    ) -> Response<Body> {
        // A forwarded reply keeps the endpoint's.
        if reply.info.outcome != Outcome::Bypass {
            reply.set_request_id(request_id);
        }
        let batch = self.batch(record);
        if let Some(batch) = batch.filter(|_| reply.info.error().is_some()) {
            reply.shape_error(&batch.api().errors);
        }
        record.end(&self.metrics, batch, Ok(&reply));
        if let Some(line) = line {
            line.log_at_end(&mut reply, self.access_lines);
        }
        reply.response
    }

    /// The batch route that a request is on, if it is on one.
    fn batch(&self, record: &Record) -> Option<&BatchRoute> {
        record.batch.and_then(|at| self.batches.get(at)).map(|batch| &**batch)
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
        if headers.contains(&CONNECTION)
            && self.batches.iter().any(|batch| batch.callers().is_named_by_connection(headers))
        {
            return Some(Error::NamedByConnection);
        }
        (sidelinks(headers) > MOST_HOPS).then_some(Error::Loop)
    }
}

/// A request that memory does not answer.
pub struct Unanswered<B> {
    head: Parts,
    body: B,
    filter: HeaderFilter,
    step: Step,
    record: Record,
    /// `None` without access lines.
    line: Option<Line>,
}

/// What is left to do for a request.
#[expect(clippy::large_enum_variant, reason = "it is in the box of its request")]
enum Step {
    Refuse(Error),
    /// To answer OPTIONS here.
    Options,
    Batch(batch::Step),
    /// To read the body of a batch, or to ask whose its token is.
    Body,
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

/// What is to be counted, logged and traced of a request.
struct Record {
    route: Route,
    /// The place of its API among the router's.
    batch: Option<usize>,
    began: Instant,
    trace: RequestSpan,
}

impl Record {
    /// Counts a request and ends its span: at the head of its reply, or when it ends without one.
    fn end(&self, metrics: &Metrics, batch: Option<&BatchRoute>, reply: Result<&Reply, Abort>) {
        let (outcome, source, code) = match reply {
            Ok(reply) => (reply.info.outcome, reply.info.source, Code::from(reply.response.status())),
            Err(abort) => (Outcome::Error, Source::Sidelink, Code::from(abort.status())),
        };
        metrics.count_response(self.route, source, code);
        if let Some(batch) = batch {
            batch.api_metrics().batches.of(outcome).inc();
        }
        metrics.observe_request(self.route, outcome, self.began.elapsed().as_secs_f64());
        self.trace.end(self.route, batch.map(BatchRoute::api), reply);
    }
}

/// A request whose reply is not there yet. If it is dropped, it ends without one: its client has left, or its connection is cut off.
struct Unended<'r> {
    record: &'r Record,
    line: Option<&'r Line>,
    router: &'r Router,
    cut_off: &'r CutOff,
}

impl Drop for Unended<'_> {
    fn drop(&mut self) {
        let abort = self.cut_off.by();
        self.record.end(&self.router.metrics, self.router.batch(self.record), Err(abort));
        if let Some(line) = self.line {
            line.log_unanswered(abort);
        }
    }
}
