//! The admin listener: metrics and probes for everyone, the status page, explain and purge for those whom `guard` admits.
//!
//! **Start at [`Admin::answer`].** A route is a variant of `AdminRoute`; what refuses a request is an `AdminError`.

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
use prometheus::{IntGauge, Registry, TextEncoder};
use serde_json::{Value, json};

use crate::batch::BatchRoute;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{self, Config, ReloadState};
use crate::fetch::Flights;
use crate::limits::budget::Usages;
use crate::message::body::{Body, BodyError, drain, stream, whole};
use crate::server::Peer;
use crate::telemetry::metrics::{Bounded, Metrics};
use crate::upstream::Upstream;
use guard::Guard;
use purge::Purge;

pub use history::{EVERY, History};

/// Most bytes of a request's body.
const MOST_BODY: usize = 256 << 10;

/// Answers other than the status page run, load and frame nothing.
const NO_CONTENT: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");

/// Answers on the admin listener.
pub struct Admin {
    guard: Guard,
    state: AdminState,
}

/// What the routes show and change.
pub struct AdminState {
    /// Where all metrics are registered.
    pub registry: Registry,
    /// sidelink's own metrics.
    pub metrics: Arc<Metrics>,
    /// The entries.
    pub cache: Arc<Cache>,
    /// The endpoint's client.
    pub upstream: Arc<Upstream>,
    /// The batch route.
    pub access_urls: Arc<BatchRoute>,
    /// The last ten minutes.
    pub history: Arc<History>,
    /// The current configuration.
    pub config: Arc<Config>,
    /// The result of the last reload.
    pub reloads: ReloadState,
    /// Ids being fetched.
    pub flights: Arc<Flights>,
    /// Use of the bounded resources.
    pub totals: Usages,
    /// Whether sidelink is ready.
    pub ready: Arc<AtomicBool>,
    /// The clock.
    pub clock: Clock,
}

impl AdminState {
    /// Sets the gauges that are not updated as their values change.
    fn update_gauges(&self) {
        self.upstream.show_breaker();
        let (in_flight, waiters) = self.flights.in_use();
        let gauge = |gauge: &IntGauge| usize::try_from(gauge.get()).unwrap_or(0);
        for (bounded, used) in [
            (Bounded::Connections, gauge(&self.metrics.connections)),
            (Bounded::InFlight, in_flight),
            (Bounded::Waiters, waiters),
            (Bounded::Exchanges, self.totals.exchanges.load(Ordering::Relaxed)),
            (Bounded::BatchBodies, self.totals.batch_bodies.load(Ordering::Relaxed)),
            (Bounded::SignedBodies, self.totals.signed_bodies.load(Ordering::Relaxed)),
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

/// The routes of the admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminRoute {
    Metrics,
    Livez,
    Readyz,
    Page,
    Status,
    Explain,
    Purge,
}

impl AdminRoute {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(AdminRoute::Metrics),
            "/livez" => Some(AdminRoute::Livez),
            "/readyz" => Some(AdminRoute::Readyz),
            "/" => Some(AdminRoute::Page),
            "/status.json" => Some(AdminRoute::Status),
            "/explain" => Some(AdminRoute::Explain),
            "/purge" => Some(AdminRoute::Purge),
            _ => None,
        }
    }

    /// Whether only those whom the guard admits get an answer.
    fn is_guarded(self) -> bool {
        !matches!(self, AdminRoute::Metrics | AdminRoute::Livez | AdminRoute::Readyz)
    }

    /// The methods of the route, as `Allow` lists them.
    fn allowed(self) -> &'static str {
        if self == AdminRoute::Purge { "POST" } else { "GET, HEAD" }
    }

    fn takes(self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }
}

impl Admin {
    /// Admits those whom `config` names, and shows `state`.
    pub fn new(config: &config::Admin, state: AdminState) -> Self {
        Self { guard: Guard::new(config), state }
    }

    /// Answers a request from `peer`.
    pub async fn answer<B>(&self, peer: Peer, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let (head, body) = request.into_parts();
        let answered = match self.admit(peer, &head) {
            Ok(route) => self.route(route, head, body).await,
            Err(error) => {
                drain(body);
                Err(error)
            }
        };
        let mut response = answered.unwrap_or_else(AdminError::response);
        protect(response.headers_mut());
        response
    }

    /// The route of a request that is admitted.
    fn admit(&self, peer: Peer, head: &Parts) -> Result<AdminRoute, AdminError> {
        let route = AdminRoute::of(head.uri.path()).ok_or(AdminError::NotFound)?;
        if !route.takes(&head.method) {
            return Err(AdminError::Method(route));
        }
        if route.is_guarded() {
            self.guard.admit(peer, head)?;
        }
        if head.method == Method::POST && !is_json(&head.headers) {
            return Err(AdminError::ContentType);
        }
        if head.method == Method::POST && head.headers.contains_key(CONTENT_ENCODING) {
            return Err(AdminError::ContentEncoding);
        }
        Ok(route)
    }

    async fn route<B>(&self, route: AdminRoute, mut head: Parts, body: B) -> Result<Response<Body>, AdminError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        Ok(match route {
            AdminRoute::Metrics => self.scrape()?,
            AdminRoute::Livez => text(StatusCode::OK, "alive\n"),
            AdminRoute::Readyz if self.state.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ready\n"),
            AdminRoute::Readyz => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
            AdminRoute::Page => status::page(),
            AdminRoute::Status => json_of(StatusCode::OK, &status::status(&self.state, head.uri.query())),
            AdminRoute::Explain => {
                let body = read(body).await?;
                self.guard.take_token(&mut head.headers);
                let explanation = serde_json::to_value(self.state.access_urls.explain(head, &body));
                json_of(StatusCode::OK, &explanation.map_err(|_| AdminError::Unwritable)?)
            }
            AdminRoute::Purge => {
                let purge = Purge::read(&read(body).await?).map_err(AdminError::Purge)?;
                let AdminState { cache, clock, metrics, .. } = &self.state;
                json_of(StatusCode::OK, &purge.run(cache, clock, metrics).await)
            }
        })
    }

    fn scrape(&self) -> Result<Response<Body>, AdminError> {
        self.state.update_gauges();
        let page = TextEncoder::new().encode_to_string(&self.state.registry.gather());
        let page = page.map_err(|_| AdminError::Unwritable)?;
        Ok(typed(StatusCode::OK, page.into(), HeaderValue::from_static(prometheus::TEXT_FORMAT)))
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AdminError {
    NotFound,
    Method(AdminRoute),
    /// The admin token is missing.
    NoToken,
    WrongToken,
    /// Not from loopback, and no token is configured.
    NotLoopback,
    /// From loopback, but `Host` names another host, and no token is configured.
    ForeignHost,
    /// From loopback, but forwarded by a proxy, and no token is configured.
    Forwarded,
    /// From a browser page of another origin.
    ForeignOrigin,
    ContentType,
    ContentEncoding,
    TooLarge,
    BrokenBody,
    /// The body is not a purge, and why.
    Purge(String),
    /// The answer could not be serialized.
    Unwritable,
}

impl AdminError {
    fn response(self) -> Response<Body> {
        let (status, message) = match &self {
            Self::NotFound => {
                (StatusCode::NOT_FOUND, "there are /, /status.json, /explain, /purge, /metrics, /livez and /readyz")
            }
            Self::Method(AdminRoute::Purge) => (StatusCode::METHOD_NOT_ALLOWED, "only POST"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD"),
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "requests from elsewhere than loopback, for another host's name, or by way of a proxy need the admin token, as Authorization: Bearer TOKEN",
            ),
            Self::WrongToken => {
                (StatusCode::UNAUTHORIZED, "this is not the admin token: admin.token_file names the file that holds it")
            }
            Self::NotLoopback => {
                (StatusCode::FORBIDDEN, "only requests from loopback are admitted; admin.token_file admits others")
            }
            Self::ForeignHost => {
                (StatusCode::FORBIDDEN, "Host names another host; from loopback, ask for localhost or 127.0.0.1")
            }
            Self::Forwarded => (
                StatusCode::FORBIDDEN,
                "requests that a proxy forwards are not admitted; admin.token_file admits its clients",
            ),
            Self::ForeignOrigin => {
                (StatusCode::FORBIDDEN, "pages of another origin are not admitted; enter the address by hand")
            }
            Self::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"),
            Self::ContentEncoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body with a Content-Encoding is not read"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 256 KiB; use several"),
            Self::BrokenBody => (StatusCode::BAD_REQUEST, "the body broke off"),
            Self::Purge(message) => (StatusCode::BAD_REQUEST, message.as_str()),
            Self::Unwritable => (StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written"),
        };
        let mut response = json_of(status, &json!({ "error": message }));
        let headers = response.headers_mut();
        // RFC 6750 §3.
        match self {
            Self::Method(route) => headers.insert(ALLOW, HeaderValue::from_static(route.allowed())),
            Self::NoToken => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="sidelink""#)),
            Self::WrongToken => {
                let challenge = r#"Bearer realm="sidelink", error="invalid_token""#;
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
            }
            _ => None,
        };
        response
    }
}

/// The whole body, within [`MOST_BODY`], or why there is none.
async fn read<B>(body: B) -> Result<Bytes, AdminError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError> + Send,
{
    if body.size_hint().lower() > MOST_BODY as u64 {
        drain(body);
        return Err(AdminError::TooLarge);
    }
    let mut body = stream(body);
    match Limited::new(&mut body, MOST_BODY).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            drain(body);
            Err(AdminError::TooLarge)
        }
        Err(_) => Err(AdminError::BrokenBody),
    }
}

/// Whether `Content-Type` is JSON. A page of another origin cannot send it without a preflight.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(one), None) = (types.next(), types.next()) else { return false };
    let essence = one.to_str().ok().and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Headers of every answer: no storing, sniffing, framing or referrer.
fn protect(headers: &mut HeaderMap) {
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(NO_CONTENT);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let resource_policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(resource_policy, HeaderValue::from_static("same-origin"));
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
