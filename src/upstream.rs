//! The client of the one endpoint: hyper over TCP or TLS, pooled, HTTP/1.1 or HTTP/2 by ALPN.
//!
//! Two entry points: [`Upstream::call`] for a batch's misses, with a deadline and a complete, decoded answer; and
//! [`Upstream::forward`] for everything else, streaming. A newcomer starts at `retry` (when a call is attempted again), `attempt`
//! (one attempt) and `client` (sending a request on a connection); `breaker` judges by `evidence`.

mod attempt;
mod breaker;
mod call;
mod client;
pub(crate) mod coding;
mod connector;
mod evidence;
mod failures;
mod forward;
mod latency;
mod pause_of_all;
mod provider_client;
mod resolver;
mod retry;
mod trust;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::StatusCode;
use http::uri::{Authority, Scheme};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::retry::budget::TpsBudget;

use crate::auth::Caller;
use crate::clock::Clock;
use crate::config::{Endpoint, UpstreamConfig};
use crate::error::Error;
use crate::limits::pause::{self, Pause, Rejection};
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{BreakerState, Metrics, show_state};
use breaker::Breaker;
use client::HttpClient;
use connector::{ConnectionNumbers, Connector, Protocols};
use evidence::{CallSource, MOST_IDS};
use failures::FailureLog;
use latency::Latency;
use pause_of_all::PausedCallers;
use resolver::Resolver;
use trust::Trust;

pub use breaker::BreakerStatus;
pub use call::{Answer, Call};
pub use connector::{MemoryEndpoint, MemoryNetwork};
pub use evidence::Counts;
pub use failures::{LastError, LastFailure};
pub(crate) use provider_client::{ProviderClient, ProviderError};
pub use trust::SetupError;
pub(crate) use trust::trusted_client;

/// The reason that is logged where an answer cannot be read.
const UNREADABLE: &str = "it is no JSON that can be read, or its Content-Encoding cannot be undone";

/// The endpoint's client.
pub struct Upstream {
    /// Sends calls.
    call_client: HttpClient,
    /// Sends requests of other routes, over HTTP/1.1 alone. HTTP/2 has one connection for all: a client that does not read its
    /// download, or whose headers make the endpoint close the connection, would fail the calls of all callers.
    http1_client: HttpClient,
    /// Whether the endpoint has asked for HTTP/1.1 (RFC 9113 §7). Calls then use `http1_client`.
    http1_only: AtomicBool,
    config: UpstreamConfig,
    /// Certificates, if the endpoint is reached over the network.
    trust: Option<Trust>,
    /// Allows retries as a share of calls.
    retry_budget: TpsBudget,
    breaker: Breaker,
    /// The breaker's state as last logged.
    logged: Mutex<BreakerState>,
    latency: Latency,
    /// Hashes ids for the breaker, which keeps no id itself.
    id_hasher: RandomState,
    /// The pause of all callers.
    pause_of_all: Pause,
    paused_callers: PausedCallers,
    pause_log: LogThrottle,
    failures: FailureLog,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// A client of `config.endpoint`. Connects to nothing yet.
    ///
    /// # Errors
    /// If there are no certificate authorities to trust, or a file's content is not as expected.
    pub fn new(config: &UpstreamConfig, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, SetupError> {
        let trust = Trust::read(config, &trust::UPSTREAM)?;
        let tls = trust.client()?;
        let resolver = Resolver::new(config.connect_timeout);
        let connector =
            |protocols, numbers| connector::network(config, tls.clone(), protocols, resolver.clone(), numbers);
        Ok(Self { trust: Some(trust), ..Self::with_connector(connector, config, clock, metrics) })
    }

    /// A client whose connections are made in memory.
    pub fn in_memory(endpoint: MemoryEndpoint, config: &UpstreamConfig, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let connector = |protocols, numbers| connector::memory(endpoint.clone(), protocols, numbers);
        Self::with_connector(connector, config, clock, metrics)
    }

    fn with_connector(
        connector: impl Fn(Protocols, ConnectionNumbers) -> Connector,
        config: &UpstreamConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let numbers = ConnectionNumbers::new(config.max_connection_age);
        let client = |protocols| {
            let connector = connector(protocols, numbers.clone());
            HttpClient::new(connector, numbers.clone(), config.pool_idle, metrics.upstream_resends.clone())
        };
        Self {
            call_client: client(Protocols::All),
            http1_client: client(Protocols::Http1),
            http1_only: AtomicBool::new(false),
            config: config.clone(),
            trust: None,
            retry_budget: retry::budget(&config.retry),
            breaker: Breaker::new(&config.breaker),
            logged: Mutex::new(BreakerState::Closed),
            latency: Latency::default(),
            id_hasher: RandomState::new(),
            pause_of_all: Pause::default(),
            paused_callers: PausedCallers::default(),
            pause_log: LogThrottle::default(),
            failures: FailureLog::default(),
            clock,
            metrics,
        }
    }

    /// Whether the files that `config` names have the content that this client was built from.
    pub fn trust_is_unchanged(&self, config: &UpstreamConfig) -> bool {
        self.trust.as_ref().is_none_or(|trust| Trust::read(config, &trust::UPSTREAM).is_ok_and(|now| now == *trust))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.config.endpoint
    }

    /// Whether `authority` names the endpoint; a missing port is the scheme's own. One with a user never does.
    pub fn is_endpoint(&self, authority: &Authority) -> bool {
        let default_port = if self.config.endpoint.scheme == Scheme::HTTPS { 443 } else { 80 };
        !authority.as_str().contains('@')
            && authority.host().eq_ignore_ascii_case(self.config.endpoint.authority.host())
            && authority.port_u16().unwrap_or(default_port) == self.config.endpoint.port()
    }

    /// The source of a call, for the breaker.
    fn source_of(&self, call: &Call) -> CallSource {
        self.source(call.caller, call.accepted, call.ids.iter().map(AsRef::as_ref))
    }

    fn source<'i>(&self, caller: Caller, accepted: bool, ids: impl Iterator<Item = &'i str>) -> CallSource {
        CallSource { caller, accepted, ids: ids.take(MOST_IDS).map(|id| self.id_hasher.hash_one(id)).collect() }
    }

    /// Why no call of `caller` for these ids may be made now: the pause of all callers, or the breaker.
    pub fn rejection<'i>(&self, caller: Caller, ids: impl Iterator<Item = &'i str>) -> Option<Rejection> {
        self.rejection_of(|| Some(self.source(caller, true, ids)))
    }

    /// Why no call of any caller may be made now.
    pub fn rejection_of_all(&self) -> Option<Rejection> {
        self.rejection_of(|| None)
    }

    fn rejection_of(&self, source: impl FnOnce() -> Option<CallSource>) -> Option<Rejection> {
        let by_breaker = |wait| Rejection { error: Error::BreakerOpen(wait), answer: None };
        self.paused().or_else(|| self.breaker.wait(source).map(by_breaker))
    }

    fn paused(&self) -> Option<Rejection> {
        self.pause_of_all.lasting(self.clock.now())
    }

    /// The pause that a 503 with `Retry-After` asks for.
    pub fn pause_of(&self, answer: &Answer) -> Option<Duration> {
        let asks = answer.status == StatusCode::SERVICE_UNAVAILABLE;
        asks.then(|| pause::retry_after(&answer.headers, self.clock.now())).flatten()
    }

    /// Notes that a 503 asked the caller of `call` to pause for `span`. Pauses all callers if independent callers were asked.
    pub fn asked_to_pause(&self, call: &Call, span: Duration) {
        let now = self.clock.now();
        let Some(span) = self.paused_callers.asked(&self.source_of(call), now, span) else { return };
        // Without an answer to repeat: no caller may get the answer that another caller got.
        self.pause_of_all.set(now, span, None);
        self.pause_log.when_due(|suppressed| events::AllPaused { seconds: span.as_secs_f64(), suppressed }.log());
    }

    /// The time that a call needs to have a fair chance of an answer.
    fn fair_time(&self) -> Duration {
        self.latency.fair(self.config.deadline)
    }

    /// Whether a call that is sent now has a fair chance of an answer by `deadline`.
    pub fn leaves_fair_time(&self, deadline: Instant) -> bool {
        self.fair_time_left(deadline).is_some()
    }

    /// The time after which a call still has a fair chance of an answer by `deadline`; `None`: it has none now.
    pub fn fair_time_left(&self, deadline: Instant) -> Option<Duration> {
        deadline.checked_duration_since(Instant::now() + self.fair_time())
    }

    /// Whether calls take half of the deadline or more, so that one that is sent after half of it will hardly be answered.
    pub fn takes_half_the_deadline(&self) -> bool {
        self.fair_time() * 2 >= self.config.deadline
    }

    /// The breaker's state, and the evidence for it.
    pub fn breaker(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// Shows the breaker's state and the pause of all callers in metrics, and logs a change of the breaker.
    pub fn show_breaker(&self) {
        let pause = self.pause_of_all.left(self.clock.now());
        self.metrics.upstream_pause.set(pause.map_or(0.0, |left| left.as_secs_f64()));
        let BreakerStatus { state: now, counts, refused } = self.breaker.status();
        let before = std::mem::replace(&mut *self.logged.lock(), now);
        if before != now {
            let reason = match now {
                BreakerState::Open => self.last_failure().map(|failure| failure.reason).unwrap_or_default(),
                BreakerState::HalfOpen => "upstream.breaker.open is over: one call is let through to see".to_owned(),
                BreakerState::Closed => "the endpoint answers".to_owned(),
            };
            events::BreakerChanged {
                before: before.name(),
                now: now.name(),
                reason: &reason,
                callers: counts.callers,
                id_sets: counts.id_sets,
                failed_to_connect: counts.connect,
                connections_lost: counts.lost,
                failed_answers: counts.answer,
                no_answers: counts.silence,
            }
            .log();
        }
        show_state(&self.metrics.breaker_state, now);
        let Counts { callers, id_sets, connect, lost, answer, silence } = counts;
        self.metrics.show_breaker_evidence([callers, id_sets, connect, lost, answer, silence, refused]);
    }

    /// Why a call, or a request on another route, last failed because of the endpoint.
    pub fn last_failure(&self) -> Option<LastFailure> {
        self.failures.last.lock().clone()
    }

    /// The error that the endpoint last answered a call with.
    pub fn last_error(&self) -> Option<LastError> {
        self.failures.last_error.lock().clone()
    }

    /// Notes that a call to `api` was answered with an error of this status and, in its body, this code.
    pub fn answered_error(&self, api: &str, status: StatusCode, code: Option<String>) {
        self.failures.error(&self.clock, api, status, code);
    }

    /// Notes that the complete body of a 200 cannot be read, or is in a coding that cannot be undone.
    pub fn cannot_be_read(&self) {
        self.failures.unusable(&self.clock, UNREADABLE);
    }
}
