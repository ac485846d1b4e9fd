//! The client of the one endpoint: hyper over TCP or TLS, pooled, HTTP/1.1 or HTTP/2 by ALPN.
//!
//! Two ways in: [`Upstream::call`] for a batch's misses, with a deadline and a whole, decoded answer; and
//! [`Upstream::forward`] for everything else, streaming.

mod breaker;
mod coding;
mod connector;
mod failures;
mod trust;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT, VIA};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::DuplexStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::{Budget, TpsBudget};
use tracing::warn;

use crate::body::{Body, whole};
use crate::caller::signature::{self, Signer};
use crate::clock::{Clock, Moment};
use crate::config;
use crate::error::{Error, NoAnswer};
use crate::headers::NAME;
use crate::hold::{self, Hold};
use crate::log::{Seldom, chain};
use crate::metrics::{Metrics, Position, show_position};
use breaker::{Breaker, Health};
use connector::{Connector, Network, tunnel};
use failures::Failures;
use trust::Trust;

pub use failures::Failure;
pub use trust::SetupError;
pub(crate) use trust::trusted_client;

/// How long an idle connection to the endpoint is kept.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// How many are, for calls and for all else each.
const POOL_MOST: usize = 1000;
/// Headers of an answer, and bytes of its head, beyond which it is none; over HTTP/2 the bytes alone count.
const HEADERS: usize = 100;
const HEADER_BYTES: u32 = 64 << 10;
/// Bytes that the endpoint may send ahead, over HTTP/2: for one call, and for all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Answers over HTTP/2 that may be broken before their connection is given up.
const STREAM_ERRORS: usize = 100;
/// How often the endpoint is asked for a sign of life while it owes answers over HTTP/2, and how long it has for it.
const PING: Duration = Duration::from_secs(20);
/// Reasons that no library gives.
const LATE: &str = "none within upstream.deadline";
const UNREADABLE: &str = "it is no JSON that can be read, or its Content-Encoding cannot be undone";
const TOO_LONG: &str = "it is longer than upstream.answer_bytes";

/// One request to the endpoint for a batch's misses.
pub struct Call {
    /// Path and query.
    pub target: String,
    /// Empty for the query forms.
    pub body: Bytes,
    /// The caller's credential and scope headers, and its trace context.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Signs it, each time that it is sent, if the batch was signed.
    pub signer: Option<Signer>,
    /// Sidelinks that the batch had passed before this one.
    pub hops: usize,
    /// How many ids it asks for.
    pub ids: usize,
}

/// What the endpoint answered to a call: whole and decoded.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers; `Content-Encoding` is gone where the body was decoded.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When the call was sent.
    pub sent: Moment,
}

/// The endpoint's client.
pub struct Upstream {
    /// For calls.
    client: Client<Connector, Body>,
    /// For all else, over HTTP/1.1 alone: on HTTP/2's one connection, a client that does not read its download would hold
    /// up everyone's.
    streams: Client<Connector, Body>,
    endpoint: config::Endpoint,
    /// Whom it trusts, over the network.
    trust: Option<Trust>,
    answer_bytes: usize,
    attempts: usize,
    /// Allows retries as a share of calls.
    budget: TpsBudget,
    breaker: Breaker,
    /// The breaker's position as last shown.
    shown: Mutex<Position>,
    /// The endpoint has asked everyone to hold back.
    hold: Hold,
    /// Pauses that it has asked for, as logged.
    pauses: Seldom,
    failures: Failures,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// A client of `config.endpoint`. Connects to nothing yet.
    ///
    /// # Errors
    /// If there are no certificate authorities to trust, or a file does not hold what it should.
    pub fn new(config: &config::Upstream, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, SetupError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(POOL_IDLE));
        let trust = Trust::read(config)?;
        let tls = trust.client()?;
        let secured = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        let network = |all_versions: bool| {
            let connection = match &config.proxy {
                None if all_versions => Network::Direct(secured().enable_all_versions().wrap_connector(tcp.clone())),
                None => Network::Direct(secured().enable_http1().wrap_connector(tcp.clone())),
                Some(proxy) if all_versions => {
                    Network::Tunnel(secured().enable_all_versions().wrap_connector(tunnel(proxy, tcp.clone())))
                }
                Some(proxy) => Network::Tunnel(secured().enable_http1().wrap_connector(tunnel(proxy, tcp.clone()))),
            };
            Connector::Network(Box::new(connection), config.connect_timeout)
        };
        let upstream = Self::over([network(true), network(false)], config, clock, metrics);
        Ok(Self { trust: Some(trust), ..upstream })
    }

    /// A client whose connections are made in memory: `accept` gets the endpoint's side of each.
    pub fn in_memory(
        accept: UnboundedSender<DuplexStream>,
        config: &config::Upstream,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::over([Connector::Memory(accept.clone()), Connector::Memory(accept)], config, clock, metrics)
    }

    fn over(connectors: [Connector; 2], config: &config::Upstream, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let [client, streams] = connectors.map(|connector| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_MOST)
                .http1_max_headers(HEADERS)
                .http1_max_buf_size(HEADER_BYTES as usize)
                .http2_max_header_list_size(HEADER_BYTES)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_max_local_error_reset_streams(STREAM_ERRORS)
                .http2_keep_alive_interval(PING)
                .http2_keep_alive_timeout(PING)
                .build(connector)
        });
        Self {
            client,
            streams,
            endpoint: config.endpoint.clone(),
            trust: None,
            answer_bytes: config.answer_bytes,
            attempts: config.retry.attempts,
            budget: retry_budget(config.retry.budget),
            breaker: Breaker::new(&config.breaker),
            shown: Mutex::new(Position::Closed),
            hold: Hold::default(),
            pauses: Seldom::default(),
            failures: Failures::default(),
            clock,
            metrics,
        }
    }

    /// Whether the files behind `config` still hold what this client was built from.
    pub fn trust_is_unchanged(&self, config: &config::Upstream) -> bool {
        let Some(mine) = &self.trust else { return true };
        Trust::read(config).is_ok_and(|trust| trust.is(mine))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &config::Endpoint {
        &self.endpoint
    }

    /// The endpoint's authority, as it stands in `Host`.
    pub fn authority(&self) -> &http::uri::Authority {
        &self.endpoint.authority
    }

    /// Whether `authority` names the endpoint, the scheme's port being the same as none.
    pub fn is_endpoint(&self, authority: &http::uri::Authority) -> bool {
        let port = |authority: &http::uri::Authority| authority.port_u16().unwrap_or(self.default_port());
        // A userinfo is not part of a name; nobody needs one here.
        !authority.as_str().contains('@')
            && authority.host().eq_ignore_ascii_case(self.endpoint.authority.host())
            && port(authority) == port(&self.endpoint.authority)
    }

    fn default_port(&self) -> u16 {
        if self.endpoint.scheme == Scheme::HTTPS { 443 } else { 80 }
    }

    /// Sends a call and waits for its whole answer, until `deadline` at most. What may pass is tried again; `retries` has how
    /// often.
    ///
    /// # Errors
    /// If there is no answer: refused by the breaker or a hold, no connection, a broken one, an endless or undecodable
    /// body, or none in time.
    pub async fn call(&self, call: &Call, deadline: Instant, retries: &mut u32) -> Result<Answer, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        self.budget.deposit();
        let mut pass = self.breaker.pass().map_err(Error::BreakerOpen)?;
        let mut pauses = PAUSES.with_max_times(self.attempts).build();
        loop {
            let outcome = self.attempt(call, deadline).await;
            pass.record(health(&outcome));
            self.show_breaker();
            if let Ok(answer) = &outcome
                && answer.status == StatusCode::SERVICE_UNAVAILABLE
                && let Some(span) = hold::retry_after(&answer.headers, self.clock.now())
            {
                self.hold.set(self.clock.now(), span);
                if let Some(unsaid) = self.pauses.is_due() {
                    let seconds = span.as_secs_f64();
                    warn!(seconds, unsaid, "the endpoint asks for a pause; everyone is held back");
                }
                return outcome;
            }
            let Some(pause) = pauses.next().filter(|_| may_pass(&outcome)) else { return outcome };
            if Instant::now() + pause >= deadline || !self.budget.withdraw() {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            let Ok(next) = self.breaker.pass() else { return outcome };
            pass = next;
            self.metrics.upstream_retries.inc();
            *retries += 1;
        }
    }

    /// Why no call may be made now: the endpoint is taken to be down, or has asked everyone for a pause.
    pub fn refusal(&self) -> Option<Error> {
        let hold = self.hold.left(self.clock.now()).map(Error::HeldBack);
        hold.or_else(|| self.breaker.refusal().map(Error::BreakerOpen))
    }

    /// Shows in metrics, and on a change in the log, what the breaker lets through.
    pub fn show_breaker(&self) {
        let now = self.breaker.position();
        let before = std::mem::replace(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner), now);
        if before != now {
            let reason = match now {
                Position::Open => self.last_failure().map(|failure| failure.reason).unwrap_or_default(),
                Position::HalfOpen => "upstream.breaker.open is over: one call is let through to see".to_owned(),
                Position::Closed => "the endpoint answers".to_owned(),
            };
            warn!(before = before.name(), now = now.name(), reason, "the breaker has moved");
        }
        show_position(&self.metrics.breaker_state, now);
    }

    /// By what a call, or a request on another route, last came to nothing for the endpoint's sake.
    pub fn last_failure(&self) -> Option<Failure> {
        self.failures.last()
    }

    /// Tells of a whole answer that says 200 and cannot be read.
    pub fn cannot_be_read(&self) {
        self.failures.unusable(&self.clock, UNREADABLE);
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Answer, Error> {
        self.metrics.upstream_call_ids.observe(call.ids as f64);
        self.metrics.upstream_in_flight.inc();
        let _in_flight = scopeguard(|| self.metrics.upstream_in_flight.dec());
        let departed = Instant::now();
        let answer = timeout_at(deadline, self.exchange(call)).await.unwrap_or(Err(Error::Deadline));
        self.metrics.upstream_call_duration.observe(departed.elapsed().as_secs_f64());
        match &answer {
            Ok(answer) if answer.status.is_server_error() => self.failures.server_error(&self.clock, answer.status),
            Err(Error::Deadline) => self.failures.no_answer(&self.clock, LATE),
            Err(Error::NoAnswer(NoAnswer::Unreadable)) => self.failures.unusable(&self.clock, UNREADABLE),
            Err(Error::NoAnswer(NoAnswer::TooLong)) => self.failures.unusable(&self.clock, TOO_LONG),
            _ => {}
        }
        answer
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, Error> {
        let request = self.request_of(call)?;
        let sent = self.clock.now();
        let (head, body) = self.answered(self.client.request(request).await)?.into_parts();
        let body = match Limited::new(body, self.answer_bytes).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Error::NoAnswer(NoAnswer::TooLong)),
            Err(error) => {
                self.failures.broken_off(&self.clock, &chain(&*error));
                return Err(Error::NoAnswer(NoAnswer::Broken));
            }
        };
        let mut headers = head.headers;
        let body = coding::decode(&mut headers, body, self.answer_bytes).map_err(Error::NoAnswer)?;
        Ok(Answer { status: head.status, headers, body, sent })
    }

    fn request_of(&self, call: &Call) -> Result<Request<Body>, Error> {
        let target = PathAndQuery::try_from(call.target.as_str()).map_err(|_| Error::NoAnswer(NoAnswer::Lost))?;
        let mut request = Request::new(whole(call.body.clone()));
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.uri(target.clone())?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidelink/", env!("CARGO_PKG_VERSION"))));
        for _ in 0..=call.hops {
            headers.append(VIA, HeaderValue::from_static("1.1 sidelink"));
        }
        for (name, value) in &call.headers {
            headers.append(name, value.clone());
        }
        if let Some(signer) = &call.signer {
            let (host, now) = (self.endpoint.authority.as_str(), self.clock.now().unix_seconds());
            signer.sign(&Method::GET, &target, headers, host, &signature::hash(&call.body), now);
        }
        Ok(request)
    }

    /// Sends any other request, its hop-by-hop headers gone already, and hands back the answer as it streams in. Its Host
    /// stays as it is; where it has none, it is the endpoint's.
    ///
    /// # Errors
    /// If there is no answer's head. A request of which nothing was sent is sent again by the client's own accord.
    pub async fn forward(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = self.uri(target)?;
        *request.version_mut() = Version::HTTP_11;
        self.answered(self.streams.request(request).await)
    }

    /// An answer, if it is one: a 101 is none to whoever has not asked for an upgrade, and nobody here does.
    fn answered(
        &self,
        response: Result<Response<Incoming>, hyper_util::client::legacy::Error>,
    ) -> Result<Response<Incoming>, Error> {
        match response {
            Ok(response) if response.status().is_informational() => Err(Error::NoAnswer(NoAnswer::Unreadable)),
            Ok(response) => Ok(response),
            Err(error) => Err(self.unanswered(&error)),
        }
    }

    /// Says why there is no answer, and what that is to the client.
    fn unanswered(&self, error: &hyper_util::client::legacy::Error) -> Error {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<hyper::Error>());
        // A client whose upload breaks off says nothing about the endpoint.
        if !cause.is_some_and(hyper::Error::is_user) {
            self.failures.no_answer(&self.clock, &chain(error));
        }
        Error::NoAnswer(if error.is_connect() { NoAnswer::Connect } else { NoAnswer::Broken })
    }

    fn uri(&self, target: PathAndQuery) -> Result<Uri, Error> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.endpoint.scheme.clone());
        parts.authority = Some(self.endpoint.authority.clone());
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).map_err(|_| Error::Malformed("the request target cannot be forwarded"))
    }
}

/// Between one attempt and the next.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(2))
    .with_factor(3.0)
    .with_jitter();

fn retry_budget(share: f64) -> TpsBudget {
    // The share of a quiet endpoint's calls is none at all: one a second is allowed besides.
    let a_second = u32::from(share > 0.0);
    #[allow(clippy::cast_possible_truncation)] // A share, of which seven digits are enough.
    TpsBudget::new(Duration::from_secs(10), a_second, share as f32)
}

/// Whether the same call may well succeed if made again.
fn may_pass(outcome: &Result<Answer, Error>) -> bool {
    match outcome {
        Ok(answer) => matches!(answer.status.as_u16(), 502..=504),
        Err(Error::NoAnswer(reason)) => matches!(reason, NoAnswer::Connect | NoAnswer::Broken),
        Err(_) => false,
    }
}

/// What an attempt says of the endpoint. A 429 is about a caller, a 500 perhaps about one id: they move no breaker.
fn health(outcome: &Result<Answer, Error>) -> Health {
    match outcome {
        Ok(answer) => match answer.status.as_u16() {
            429 | 500 => Health::Unknown,
            502..=504 => Health::Ill,
            _ => Health::Well,
        },
        Err(Error::Deadline | Error::NoAnswer(NoAnswer::Connect | NoAnswer::Broken)) => Health::Ill,
        Err(_) => Health::Unknown,
    }
}

/// Runs `end` when dropped, also when the task is cancelled.
fn scopeguard<F: Fn()>(end: F) -> impl Drop {
    struct Guard<F: Fn()>(F);
    impl<F: Fn()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(NAME).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
