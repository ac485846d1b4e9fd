//! Batch route or pass-through; and what no route may be given.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::info;

use crate::access_urls::AccessUrls;
use crate::answered::Answered;
use crate::api;
use crate::body::Body;
use crate::error::Error;
use crate::headers::sidelinks;
use crate::metrics::{IdResult, Metrics, Outcome, Route};
use crate::passthrough::Passthrough;
use crate::upstream::Upstream;

/// Most sidelinks that a request may have passed.
const MOST_HOPS: usize = 3;

/// The first to see a request, and the last to see its answer.
pub struct Router {
    access_urls: AccessUrls,
    passthrough: Arc<Passthrough>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    access_log: bool,
}

impl Router {
    /// A router over what the composition root has built.
    pub fn new(
        access_urls: AccessUrls,
        passthrough: Arc<Passthrough>,
        upstream: Arc<Upstream>,
        metrics: Arc<Metrics>,
        access_log: bool,
    ) -> Self {
        Self { access_urls, passthrough, upstream, metrics, access_log }
    }

    /// Answers a request, counts it, and writes its line into the access log.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        let route = route(&request);
        let logged = self.access_log.then(|| (request.method().clone(), request.uri().path().to_owned()));
        let answered = match self.refusal(&request) {
            Some(error) => refuse(error, request),
            None if route == Route::Batch => self.access_urls.answer(request).await,
            None => self.passthrough.forward(request).await,
        };
        let elapsed = began.elapsed();
        self.metrics.count_request(route, answered.outcome, elapsed.as_secs_f64());
        if let Some((method, path)) = logged {
            log(route, &method, &path, &answered, elapsed);
        }
        answered.response
    }

    /// Why a request gets no further than here.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Error> {
        let headers = request.headers();
        if request.method() == Method::CONNECT {
            return Some(Error::Connect);
        }
        if request.version() <= Version::HTTP_11 {
            let mut hosts = headers.get_all(HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(_), None) => {}
                (None, _) if request.version() < Version::HTTP_11 => {}
                (None, _) => return Some(Error::Malformed("the request has no Host header")),
                (Some(_), Some(_)) => return Some(Error::Malformed("the request has more than one Host header")),
            }
            if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
                return Some(Error::Malformed("the request has both Content-Length and Transfer-Encoding"));
            }
            // HTTP/2 always names an authority; in HTTP/1 that is a proxy's form, and this is no open proxy.
            if request.uri().authority().is_some_and(|authority| !self.upstream.is_endpoint(authority)) {
                return Some(Error::Misdirected);
            }
        }
        if request.uri().path() == "*" {
            return Some(Error::Malformed("the asterisk form is not forwarded"));
        }
        (sidelinks(headers) > MOST_HOPS).then_some(Error::Loop)
    }
}

fn route(request: &Request<Incoming>) -> Route {
    if request.method() == Method::GET && request.uri().path() == api::PATH { Route::Batch } else { Route::Passthrough }
}

fn refuse(error: Error, request: Request<Incoming>) -> Answered {
    crate::server::drain(request.into_body());
    Answered::own(error)
}

/// One line a request: no query, no header but the request id, no link.
fn log(route: Route, method: &Method, path: &str, answered: &Answered, elapsed: std::time::Duration) {
    let tally = &answered.tally;
    let request_id = answered.response.headers().get(api::REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("");
    let milliseconds = elapsed.as_secs_f64() * 1000.0;
    let status = answered.response.status().as_u16();
    let outcome = answered.outcome.name();
    let has_tally = route == Route::Batch && answered.outcome != Outcome::Bypass && tally.total() > 0;
    if has_tally {
        info!(
            target: "access",
            method = %method, path, status, route = route.name(), outcome, milliseconds, request_id,
            caller = answered.caller.as_deref().unwrap_or(""),
            ids = tally.total(),
            hit = tally.count(IdResult::Hit),
            stale = tally.count(IdResult::Stale),
            joined = tally.count(IdResult::Joined),
            shared = tally.count(IdResult::Shared),
            fetched = tally.count(IdResult::Fetched),
            absent = tally.count(IdResult::Absent),
            failed = tally.count(IdResult::Failed),
            "request",
        );
    } else {
        info!(
            target: "access",
            method = %method, path, status, route = route.name(), outcome, milliseconds, request_id,
            "request",
        );
    }
}
