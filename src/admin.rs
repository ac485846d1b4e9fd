//! The operators' listener: metrics and probes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use prometheus::{Encoder, Registry, TextEncoder};

use crate::body::{Body, whole};
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// Answers on the admin listener.
pub struct Admin {
    registry: Registry,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
    upstream: Arc<Upstream>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// `ready` says whether clients are being served.
    pub fn new(
        registry: Registry,
        metrics: Arc<Metrics>,
        cache: Arc<Cache>,
        upstream: Arc<Upstream>,
        ready: Arc<AtomicBool>,
    ) -> Self {
        Self { registry, metrics, cache, upstream, ready }
    }

    /// Answers `/metrics`, `/livez` and `/readyz`; another method is a 405, another path a 404.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let answer: fn(&Self) -> Response<Body> = match request.uri().path() {
            "/metrics" => Self::scrape,
            "/livez" => |_| text(StatusCode::OK, "alive\n"),
            "/readyz" => Self::readiness,
            _ => return text(StatusCode::NOT_FOUND, "not found: there are /metrics, /livez and /readyz\n"),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        answer(self)
    }

    fn scrape(&self) -> Response<Body> {
        self.upstream.show_breaker();
        let (links, bytes) = self.cache.size();
        self.metrics.cache_links.set(i64::try_from(links).unwrap_or(i64::MAX));
        self.metrics.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.metrics.tasks.set(i64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(i64::MAX));
        }
        self.metrics.purge_marks.set(i64::try_from(self.cache.purges().count()).unwrap_or(i64::MAX));
        let mut page = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            Ok(()) => typed(StatusCode::OK, page.into(), HeaderValue::from_static(prometheus::TEXT_FORMAT)),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        }
    }

    fn readiness(&self) -> Response<Body> {
        if self.ready.load(Ordering::Acquire) {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    typed(status, text.into(), HeaderValue::from_static("text/plain; charset=utf-8"))
}

fn typed(status: StatusCode, body: bytes::Bytes, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
