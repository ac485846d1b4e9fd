//! The admin listener: metrics and probes for everyone, the status page, explain and purge for those whom `guard` admits.
//!
//! **Start at [`Admin::answer`].** A route is an arm of `Admin::route`; what refuses a request is an `AdminError`.

mod alerts;
mod client;
mod guard;
mod history;
mod purge;
mod status;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus::{IntGauge, Registry, TextEncoder};
use serde_json::{Value, json};

use crate::auth::CallerStates;
use crate::batch::BatchRoute;
use crate::cache::Cache;
use crate::cache::answers::WholeAnswers;
use crate::clock::{Clock, Moment};
use crate::config::{AdminConfig, Config, Limits};
use crate::fetch::FetchState;
use crate::identity::IdentityProvider;
use crate::limits::budget::Usages;
use crate::message::body::{Body, BodyError, drain, stream, whole};
use crate::message::headers::single;
use crate::message::recorded;
use crate::server::Peer;
use crate::shared::{FleetStatus, Tier};
use crate::telemetry::metrics::{Bounded, Metrics, Route};
use crate::upstream::Upstream;
pub use client::AdminClient;
use guard::Guard;
pub use purge::{ApiIds, Purge};

pub(crate) use history::{EVERY, History};

const MOST_BODY: usize = 256 << 10;

/// The methods of routes that change nothing.
const GET: &str = "GET, HEAD";

/// Answers other than the status page run, load and frame nothing.
const LOAD_NOTHING_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");

/// Answers on the admin listener.
pub struct Admin {
    guard: Guard,
    state: AdminState,
}

/// The state that the routes show and change.
pub struct AdminState {
    pub process: ProcessState,
    pub upstream: Arc<Upstream>,
    pub tier: Option<Arc<Tier>>,
    pub(crate) identity_provider: Option<Arc<IdentityProvider>>,
    pub batches: Box<[Arc<BatchRoute>]>,
    pub(crate) answers: Arc<WholeAnswers>,
    pub config: Arc<Config>,
}

/// The part of the state that outlasts a reload.
#[derive(Clone)]
pub struct ProcessState {
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    pub cache: Arc<Cache>,
    pub history: Arc<History>,
    pub last_reload: Arc<ArcSwap<Reload>>,
    pub fetch: Arc<FetchState>,
    pub(crate) caller_states: Arc<CallerStates>,
    pub usages: Usages,
    pub ready: Arc<AtomicBool>,
    /// When the process began to drain.
    pub draining: Arc<OnceLock<Moment>>,
    pub descriptors_short: Arc<ArcSwapOption<DescriptorsShort>>,
    pub clock: Clock,
}

/// The limit of open files is lower than the configured limits need.
pub struct DescriptorsShort {
    /// The limit of open files.
    pub limit: u64,
    /// Descriptors that the configured limits need.
    pub needed: u64,
    /// The connections of clients that there is room for, in place of `limits.connections`.
    pub connections: usize,
    /// `limits.connections`, as configured.
    pub configured: usize,
}

/// The result of loading the configuration.
pub struct Reload {
    pub at: Moment,
    /// When the first load had this result: a refused configuration is tried again and again.
    pub since: Moment,
    /// The errors, one line each with the place in the file; none if it succeeded. No error contains a secret.
    pub errors: Vec<String>,
}

impl Reload {
    /// A configuration is in effect since `at`.
    pub fn succeeded(at: Moment) -> Self {
        Self { at, since: at, errors: Vec::new() }
    }
}

impl AdminState {
    /// The fleet with which this process shares links.
    fn fleet(&self) -> Option<FleetStatus> {
        self.tier.as_ref()?.fleet()
    }

    /// The users that callers are known to be, by their short hashes, with the number of those callers; most callers first.
    fn users(&self) -> Vec<(u32, usize)> {
        let callers = &self.config.callers;
        // Counting looks at each caller.
        let may_be_any = callers.identity.is_some() || callers.keys.iter().any(|key| key.user.is_some());
        let users = may_be_any.then(|| self.process.caller_states.users(self.process.clock.now()));
        let mut users: Vec<_> = users.into_iter().flatten().map(|(user, callers)| (user.short(), callers)).collect();
        users.sort_unstable_by_key(|(user, callers)| (Reverse(*callers), *user));
        users
    }

    /// Explains a request to any batch API.
    fn explain(&self, request: Request<Bytes>) -> Value {
        let (head, body) = request.into_parts();
        match self.batches.iter().find(|batch| batch.is_for(&head)) {
            Some(batch) => batch.explain(head, &body),
            None => json!({
                "outcome": Route::Passthrough.name(),
                "why": "no batch API has this method and path: it is forwarded untouched, as any other route",
            }),
        }
    }

    /// Sets the gauges that are not updated as their values change.
    fn update_gauges(&self) {
        self.upstream.show_breaker();
        let ProcessState { metrics, cache, usages, .. } = &self.process;
        let Limits { connections, in_flight, waiters, exchanges, batch_bodies, signed_bodies, .. } = self.config.limits;
        let (ids_in_flight, waiting) = self.process.fetch.in_use();
        let gauge = |gauge: &IntGauge| usize::try_from(gauge.get()).unwrap_or(0);
        metrics.show_limits([
            (Bounded::Connections, connections, gauge(&metrics.connections)),
            (Bounded::InFlight, in_flight, ids_in_flight),
            (Bounded::Waiters, waiters, waiting),
            (Bounded::Exchanges, exchanges, usages.exchanges.load(Ordering::Relaxed)),
            (Bounded::BatchBodies, batch_bodies, usages.batch_bodies.load(Ordering::Relaxed)),
            (Bounded::SignedBodies, signed_bodies, usages.signed_bodies.load(Ordering::Relaxed)),
            (Bounded::Calls, self.config.upstream.calls, gauge(&metrics.upstream_in_flight)),
        ]);
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (links, bytes) = cache.size();
        metrics.cache_links.set(number(links));
        metrics.cache_bytes.set(number(bytes));
        metrics.cache_capacity.set(number(cache.capacity()));
        self.answers.sweep();
        let (answers, bytes) = self.answers.size();
        metrics.answers.set(number(answers));
        metrics.answers_bytes.set(number(bytes));
        metrics.purge_marks.set(number(cache.purges().count() as u64));
        let users = self.users();
        metrics.identity.users.set(number(users.len() as u64));
        metrics.identity.callers.set(number(users.iter().map(|(_, callers)| *callers as u64).sum()));
        let fleet = self.fleet();
        let fingerprint = fleet.as_ref().map(|fleet| fleet.fingerprint.to_string());
        metrics.shared.fleet_info.show(fingerprint.as_deref());
        metrics.shared.other_fleets.set(number(fleet.map_or(0, |fleet| fleet.others.len() as u64)));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            metrics.tasks.set(number(runtime.metrics().num_alive_tasks() as u64));
        }
    }
}

impl Admin {
    /// Admits those whom `config` names, and shows `state`.
    pub fn new(config: &AdminConfig, state: AdminState) -> Self {
        Self { guard: Guard::new(config), state }
    }

    /// Answers a request from `peer`.
    pub async fn answer<B>(&self, peer: Peer, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let mut body = stream(body);
        let takes_gzip = takes_gzip(&head.headers);
        let mut response = match self.route(peer, head, &mut body).await {
            Ok(response) => response,
            Err(error) => {
                drain(body);
                error.response()
            }
        };
        if takes_gzip {
            response = compressed(response).await;
        }
        protect(response.headers_mut());
        response
    }

    async fn route(&self, peer: Peer, mut head: Parts, body: &mut Body) -> Result<Response<Body>, AdminError> {
        match head.uri.path() {
            "/metrics" => {
                takes(GET, &head)?;
                self.scrape()
            }
            "/livez" => {
                takes(GET, &head)?;
                Ok(text(StatusCode::OK, "alive\n"))
            }
            "/readyz" => {
                takes(GET, &head)?;
                Ok(match self.state.process.ready.load(Ordering::Acquire) {
                    true => text(StatusCode::OK, "ready\n"),
                    false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
                })
            }
            "/" => {
                self.admit(peer, GET, &head)?;
                Ok(status::page())
            }
            "/status.json" => {
                self.admit(peer, GET, &head)?;
                Ok(json_of(StatusCode::OK, &status::status(&self.state, head.uri.query())))
            }
            "/explain" => {
                self.admit(peer, "GET, HEAD, POST", &head)?;
                if head.method == Method::POST {
                    if !has_media_type(&head.headers, "message/http") {
                        return Err(AdminError::NOT_HTTP);
                    }
                    let request = recorded::request(&read(body).await?).map_err(AdminError::bad_request)?;
                    return Ok(json_of(StatusCode::OK, &self.state.explain(request)));
                }
                let body = read(body).await?;
                self.guard.take_token(&mut head.headers);
                let mut batches = self.state.batches.iter();
                let batch = batches.find(|batch| batch.api().is_asked_by_query_alone()).ok_or(AdminError::NO_QUERY)?;
                Ok(json_of(StatusCode::OK, &batch.explain_query(head, &body)))
            }
            "/purge" => {
                self.admit(peer, "POST", &head)?;
                if !has_media_type(&head.headers, "application/json") {
                    return Err(AdminError::NOT_JSON);
                }
                if head.headers.contains_key(CONTENT_ENCODING) {
                    return Err(AdminError::CONTENT_ENCODING);
                }
                let purge =
                    Purge::read(&read(body).await?, &self.state.config.batch).map_err(AdminError::bad_request)?;
                let ProcessState { cache, clock, metrics, .. } = &self.state.process;
                Ok(json_of(StatusCode::OK, &purge.run(cache, clock, metrics, self.state.tier.as_deref()).await))
            }
            _ => Err(AdminError::NOT_FOUND),
        }
    }

    /// Admits a request to a route for those whom the guard admits.
    fn admit(&self, peer: Peer, methods: &'static str, head: &Parts) -> Result<(), AdminError> {
        takes(methods, head)?;
        self.guard.admit(peer, head)
    }

    fn scrape(&self) -> Result<Response<Body>, AdminError> {
        self.state.update_gauges();
        let page = TextEncoder::new().encode_to_string(&self.state.process.registry.gather());
        let page = page.map_err(|_| AdminError::UNWRITABLE)?;
        Ok(typed(StatusCode::OK, page.into(), HeaderValue::from_static(prometheus::TEXT_FORMAT)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AdminError {
    status: StatusCode,
    message: Cow<'static, str>,
    /// The value of `Allow` (405) or `WWW-Authenticate` (401, RFC 6750 §3, RFC 7617 §2).
    header: &'static str,
}

/// The challenge for which a browser asks its user for a password (RFC 7617 §2).
const BASIC: &str = r#"Basic realm="sidelink", charset="UTF-8""#;

impl AdminError {
    const NOT_FOUND: Self =
        Self::new(StatusCode::NOT_FOUND, "there are /, /status.json, /explain, /purge, /metrics, /livez and /readyz");
    const NO_TOKEN: Self = Self::new(
        StatusCode::UNAUTHORIZED,
        "requests from elsewhere than loopback, for another host's name, or by way of a proxy need the admin token, as Authorization: Bearer TOKEN, or as the password that a browser asks for",
    )
    .with(r#"Bearer realm="sidelink""#);
    const WRONG_TOKEN: Self = Self::new(
        StatusCode::UNAUTHORIZED,
        "this is not the admin token: admin.token_file names the file that holds it",
    )
    .with(r#"Bearer realm="sidelink", error="invalid_token""#);
    // The next three occur only where no token is configured.
    const NOT_LOOPBACK: Self =
        Self::new(StatusCode::FORBIDDEN, "only requests from loopback are admitted; admin.token_file admits others");
    const FOREIGN_HOST: Self =
        Self::new(StatusCode::FORBIDDEN, "Host names another host; from loopback, ask for localhost or 127.0.0.1");
    const FORWARDED: Self = Self::new(
        StatusCode::FORBIDDEN,
        "requests that a proxy forwards are not admitted; admin.token_file admits its clients",
    );
    const FOREIGN_ORIGIN: Self =
        Self::new(StatusCode::FORBIDDEN, "pages of another origin are not admitted; enter the address by hand");
    const NOT_JSON: Self = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json");
    const NOT_HTTP: Self = Self::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "Content-Type must be message/http, and the body a raw request: its line, headers, an empty line and its body",
    );
    const NO_QUERY: Self = Self::new(
        StatusCode::NOT_FOUND,
        "no batch API has its ids in a query to a fixed path: POST a raw request as message/http, with `sidelink explain --request`",
    );
    const CONTENT_ENCODING: Self =
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body with a Content-Encoding is not read");
    const TOO_LARGE: Self = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 256 KiB; use several");
    const BROKEN_BODY: Self = Self::new(StatusCode::BAD_REQUEST, "the body broke off");
    const UNWRITABLE: Self = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written");

    const fn new(status: StatusCode, message: &'static str) -> Self {
        Self { status, message: Cow::Borrowed(message), header: "" }
    }

    const fn with(mut self, header: &'static str) -> Self {
        self.header = header;
        self
    }

    fn method(allowed: &'static str) -> Self {
        let message = format!("only {allowed}").into();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, message, header: allowed }
    }

    fn bad_request(message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), header: "" }
    }

    fn response(self) -> Response<Body> {
        let mut response = json_of(self.status, &json!({ "error": self.message }));
        if !self.header.is_empty() {
            let name = if self.status == StatusCode::UNAUTHORIZED { WWW_AUTHENTICATE } else { ALLOW };
            response.headers_mut().insert(name, HeaderValue::from_static(self.header));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // In a line of its own: browsers read the first challenge of a line.
            response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(BASIC));
        }
        response
    }
}

/// Refuses a request whose method is none of `methods`, which are as `Allow` lists them.
fn takes(methods: &'static str, head: &Parts) -> Result<(), AdminError> {
    let is_taken = methods.split(", ").any(|method| method == head.method.as_str());
    if is_taken { Ok(()) } else { Err(AdminError::method(methods)) }
}

/// The whole body, within [`MOST_BODY`].
async fn read(body: &mut Body) -> Result<Bytes, AdminError> {
    if body.size_hint().lower() > MOST_BODY as u64 {
        return Err(AdminError::TOO_LARGE);
    }
    let read = Limited::new(body, MOST_BODY).collect().await.map_err(|error| match error.is::<LengthLimitError>() {
        true => AdminError::TOO_LARGE,
        false => AdminError::BROKEN_BODY,
    });
    Ok(read?.to_bytes())
}

/// Whether `Content-Type` is this one. A page of another origin cannot send those that are taken without a preflight.
fn has_media_type(headers: &HeaderMap, media_type: &str) -> bool {
    let content_type = single(headers, &CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
}

/// Headers of every answer: no storing, sniffing, framing or referrer.
fn protect(headers: &mut HeaderMap) {
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(LOAD_NOTHING_POLICY);
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

/// Whether the client takes an answer in gzip (RFC 9110 §12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|line| line.split(',')).any(|coding| {
        let coding = coding.to_ascii_lowercase();
        let (name, weight) = coding.split_once(';').unwrap_or((&coding, ""));
        let weight = weight.trim().trim_start_matches("q=").trim_end_matches(['0', '.']);
        name.trim().eq_ignore_ascii_case("gzip") && (!weight.is_empty() || !coding.contains(';'))
    })
}

/// A response in gzip: a scrape shrinks to a tenth.
async fn compressed(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    // All are in memory: nothing is waited for, and nothing fails.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(&body).and_then(|()| encoder.finish());
    let body = match written {
        Ok(written) if written.len() < body.len() => {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
            written.into()
        }
        _ => body,
    };
    Response::from_parts(head, whole(body))
}
