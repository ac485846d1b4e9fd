//! The operators' listener: metrics and probes for everyone who reaches it, the rest for those whom `guard` lets in.

mod guard;
mod history;
mod purge;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};
use serde_json::{Value, json};

use crate::batch::BatchRoute;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{self, Config, ReloadState};
use crate::fetch::Flights;
use crate::limits::budget::Usages;
use crate::message::body::{Body, BodyError, stream, whole};
use crate::server::Peer;
use crate::telemetry::metrics::{Bounded, Metrics};
use crate::upstream::Upstream;
use guard::{Guard, Refusal};
use purge::Purge;

pub use history::{EVERY, History};

/// Most bytes of a request's body.
const MOST_BODY: usize = 256 << 10;

/// Nothing of an answer is to be run, framed, or fetched from elsewhere.
const NO_CONTENT: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");

/// Answers on the admin listener.
pub struct Admin {
    guard: Guard,
    workings: AdminState,
}

/// What operators look into.
pub struct AdminState {
    /// Where all metrics are registered.
    pub registry: Registry,
    /// Those of sidelink's own.
    pub metrics: Arc<Metrics>,
    /// What is kept.
    pub cache: Arc<Cache>,
    /// The endpoint's client.
    pub upstream: Arc<Upstream>,
    /// The batch route.
    pub access_urls: Arc<BatchRoute>,
    /// The last ten minutes.
    pub history: Arc<History>,
    /// What is in force.
    pub config: Arc<Config>,
    /// How reloading has gone.
    pub reloads: ReloadState,
    /// What is in flight.
    pub flights: Arc<Flights>,
    /// What is held at a time.
    pub totals: Usages,
    /// Whether clients are being served.
    pub ready: Arc<AtomicBool>,
    /// The clock of all these.
    pub clock: Clock,
}

impl AdminState {
    /// Sets the gauges of what is not counted as it changes.
    fn measure(&self) {
        self.upstream.show_breaker();
        let (in_flight, waiters) = self.flights.in_use();
        let gauge = |gauge: &IntGauge| usize::try_from(gauge.get()).unwrap_or(0);
        for (bounded, used) in [
            (Bounded::Connections, gauge(&self.metrics.connections)),
            (Bounded::InFlight, in_flight),
            (Bounded::Waiters, waiters),
            (Bounded::Exchanges, self.totals.exchanges.now()),
            (Bounded::BatchBodies, self.totals.batch_bodies.now()),
            (Bounded::SignedBodies, self.totals.signed_bodies.now()),
            (Bounded::Calls, gauge(&self.metrics.upstream_in_flight)),
        ] {
            self.metrics.limits.used.set(bounded, used);
        }
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (links, bytes) = self.cache.size();
        self.metrics.cache_links.set(number(links));
        self.metrics.cache_bytes.set(number(bytes));
        self.metrics.cache_capacity.set(number(self.cache.capacity()));
        self.metrics.purge_marks.set(number(self.cache.purges().count() as u64));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.metrics.tasks.set(number(runtime.metrics().num_alive_tasks() as u64));
        }
    }
}

/// What there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Metrics,
    Livez,
    Readyz,
    Page,
    Status,
    Explain,
    Purge,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Route::Metrics),
            "/livez" => Some(Route::Livez),
            "/readyz" => Some(Route::Readyz),
            "/" => Some(Route::Page),
            "/status.json" => Some(Route::Status),
            "/explain" => Some(Route::Explain),
            "/purge" => Some(Route::Purge),
            _ => None,
        }
    }

    /// Whether `guard` has a say.
    fn is_guarded(self) -> bool {
        !matches!(self, Route::Metrics | Route::Livez | Route::Readyz)
    }

    /// The methods that it takes, as `Allow` has them.
    fn allowed(self) -> &'static str {
        if self == Route::Purge { "POST" } else { "GET, HEAD" }
    }

    fn takes(self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }
}

impl Admin {
    /// Lets in whom `config` says, and shows `workings`.
    pub fn new(config: &config::Admin, workings: AdminState) -> Self {
        Self { guard: Guard::new(config), workings }
    }

    /// Answers a request from `peer`: another method than a route's own is a 405, another path a 404.
    pub async fn answer<B>(&self, peer: Peer, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let (head, body) = request.into_parts();
        let mut response = match self.admit(peer, &head) {
            Ok(route) => self.routed(route, head, body).await,
            Err(no) => {
                crate::message::body::drain(body);
                no.response()
            }
        };
        protect(response.headers_mut());
        response
    }

    /// The route that a request may take, or why none.
    fn admit(&self, peer: Peer, head: &Parts) -> Result<Route, No> {
        let route = Route::of(head.uri.path()).ok_or(No::Route)?;
        if !route.takes(&head.method) {
            return Err(No::Method(route));
        }
        if route.is_guarded() {
            self.guard.admit(peer, head).map_err(No::Guard)?;
        }
        if head.method == Method::POST && !is_json(&head.headers) {
            return Err(No::ContentType);
        }
        if head.method == Method::POST && head.headers.contains_key(CONTENT_ENCODING) {
            return Err(No::Coded);
        }
        Ok(route)
    }

    async fn routed<B>(&self, route: Route, mut head: Parts, body: B) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        match route {
            Route::Metrics => self.scrape(),
            Route::Livez => text(StatusCode::OK, "alive\n"),
            Route::Readyz => self.readiness(),
            Route::Page => status::page(),
            Route::Status => answer(&status::status(&self.workings, head.uri.query())),
            Route::Explain => match read(body).await {
                Ok(body) => {
                    self.guard.take_token(&mut head.headers);
                    match serde_json::to_value(self.workings.access_urls.explain(head, &body)) {
                        Ok(explanation) => answer(&explanation),
                        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the explanation could not be written\n"),
                    }
                }
                Err(no) => no.response(),
            },
            Route::Purge => match read(body).await {
                Ok(body) => match Purge::read(&body) {
                    Ok(purge) => answer(&self.purge(&purge).await),
                    Err(wrong) => refusal(StatusCode::BAD_REQUEST, &wrong),
                },
                Err(no) => no.response(),
            },
        }
    }

    async fn purge(&self, purge: &Purge) -> Value {
        purge.run(&self.workings.cache, &self.workings.clock, &self.workings.metrics).await
    }

    fn scrape(&self) -> Response<Body> {
        self.workings.measure();
        let mut page = Vec::new();
        match TextEncoder::new().encode(&self.workings.registry.gather(), &mut page) {
            Ok(()) => typed(StatusCode::OK, page.into(), HeaderValue::from_static(prometheus::TEXT_FORMAT)),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        }
    }

    fn readiness(&self) -> Response<Body> {
        if self.workings.ready.load(Ordering::Acquire) {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
        }
    }
}

/// Why a request gets nothing.
#[derive(Clone, Copy)]
enum No {
    Route,
    Method(Route),
    Guard(Refusal),
    ContentType,
    Coded,
    TooLarge,
    Broken,
}

impl No {
    fn response(self) -> Response<Body> {
        match self {
            No::Route => refusal(
                StatusCode::NOT_FOUND,
                "there are /, /status.json, /explain, /purge, /metrics, /livez and /readyz",
            ),
            No::Method(route) => {
                let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("only {}", route.allowed()));
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(route.allowed()));
                response
            }
            No::Guard(refused) => {
                let mut response = refusal(refused.status(), refused.message());
                if let Some(challenge) = refused.challenge() {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
                response
            }
            No::ContentType => refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"),
            No::Coded => refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body with a Content-Encoding is not read"),
            No::TooLarge => refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 256 KiB; use several"),
            No::Broken => refusal(StatusCode::BAD_REQUEST, "the body broke off"),
        }
    }
}

/// The whole body, within [`MOST_BODY`], or why there is none.
async fn read<B>(body: B) -> Result<Bytes, No>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError> + Send,
{
    if body.size_hint().lower() > MOST_BODY as u64 {
        crate::message::body::drain(body);
        return Err(No::TooLarge);
    }
    let mut body = stream(body);
    match Limited::new(&mut body, MOST_BODY).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            crate::message::body::drain(body);
            Err(No::TooLarge)
        }
        Err(_) => Err(No::Broken),
    }
}

/// Whether the body is said to be JSON, with whatever parameters. A page of another origin cannot say so unasked.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(one), None) = (types.next(), types.next()) else { return false };
    let essence = one.to_str().ok().and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// What a browser is told about every answer: keep nothing, guess nothing, frame nothing, tell nobody.
fn protect(headers: &mut HeaderMap) {
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(NO_CONTENT);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let resource_policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(resource_policy, HeaderValue::from_static("same-origin"));
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    json_of(status, &json!({ "error": message }))
}

fn answer(value: &Value) -> Response<Body> {
    json_of(StatusCode::OK, value)
}

fn json_of(status: StatusCode, value: &Value) -> Response<Body> {
    typed(status, format!("{value}\n").into(), HeaderValue::from_static("application/json"))
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    typed(status, text.into(), HeaderValue::from_static("text/plain; charset=utf-8"))
}

fn typed(status: StatusCode, body: Bytes, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
