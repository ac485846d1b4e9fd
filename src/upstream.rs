//! The client of the one endpoint: hyper over TCP or TLS, pooled, HTTP/1.1 or HTTP/2 by ALPN.
//!
//! Two ways in: [`Upstream::call`] for a batch's misses, with a deadline and a whole, decoded answer; and
//! [`Upstream::forward`] for everything else, streaming.

mod breaker;
mod call;
mod client;
mod coding;
mod connector;
mod evidence;
mod failures;
mod forward;
mod latency;
mod pauses;
mod resolver;
mod trust;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::{Budget, TpsBudget};

use crate::auth::Caller;
use crate::clock::Clock;
use crate::config;
use crate::error::{Error, NoAnswer};
use crate::limits::pause::{self, Pause, Paused};
use crate::message::headers::NAME;
use crate::telemetry::log::{LogThrottle, chain, events};
use crate::telemetry::metrics::{BreakerState, Metrics, show_position};
use breaker::Breaker;
use client::{HttpClient, Outgoing, Progress, SendError};
use connector::{Connector, Protocols};
use evidence::{CallOutcome, FailureKind, MOST_IDS, Source};
use failures::Failures;
use latency::Latency;
use pauses::Pauses;
use resolver::Resolver;
use trust::Trust;

pub use breaker::{BreakerStatus, Counts};
pub use call::{Answer, Call, Rejection};
pub use connector::MemoryEndpoint;
pub use failures::Failure;
pub use trust::SetupError;
pub(crate) use trust::trusted_client;

/// Reasons that no library gives.
const LATE: &str = "none within upstream.deadline";
const UNREADABLE: &str = "it is no JSON that can be read, or its Content-Encoding cannot be undone";
const TOO_LONG: &str = "it is longer than upstream.answer_bytes";

/// The endpoint's client.
pub struct Upstream {
    /// For calls.
    calls: HttpClient,
    /// For all else, over HTTP/1.1 alone: on HTTP/2's one connection, a client that does not read its download, or whose
    /// headers make the endpoint close it, would fail everyone's calls.
    streams: HttpClient,
    /// The endpoint has asked for HTTP/1.1 (RFC 9113 §7): calls use the other client.
    http1_only: AtomicBool,
    endpoint: config::Endpoint,
    /// Whom it trusts, over the network.
    trust: Option<Trust>,
    answer_bytes: usize,
    deadline: Duration,
    connect_timeout: Duration,
    attempts: usize,
    /// Allows retries as a share of calls.
    budget: TpsBudget,
    breaker: Breaker,
    /// The breaker's position as last shown.
    shown: Mutex<BreakerState>,
    latency: Latency,
    /// Hashes ids for the breaker, so that it keeps none.
    id_hasher: RandomState,
    /// The endpoint has asked everyone for a pause.
    pause: Pause,
    pauses: Pauses,
    /// Pauses that it has asked for, as logged.
    pause_log: LogThrottle,
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
        let trust = Trust::read(config)?;
        let tls = trust.client()?;
        let (resolver, next) = (Resolver::new(config.connect_timeout), Arc::new(AtomicU64::new(0)));
        let connector = |protocols| Connector::network(config, tls.clone(), protocols, &resolver, &next);
        let connectors = [connector(Protocols::All), connector(Protocols::Http1)];
        Ok(Self { trust: Some(trust), ..Self::over(connectors, config, clock, metrics) })
    }

    /// A client whose connections are made in memory.
    pub fn in_memory(endpoint: MemoryEndpoint, config: &config::Upstream, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let next = Arc::new(AtomicU64::new(0));
        let connector = |protocols| Connector::memory(endpoint.clone(), config, protocols, &next);
        Self::over([connector(Protocols::All), connector(Protocols::Http1)], config, clock, metrics)
    }

    fn over(connectors: [Connector; 2], config: &config::Upstream, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let client = |connector| HttpClient::new(connector, config.pool_idle, metrics.upstream_resends.clone());
        let [calls, streams] = connectors.map(client);
        Self {
            calls,
            streams,
            http1_only: AtomicBool::new(false),
            endpoint: config.endpoint.clone(),
            trust: None,
            answer_bytes: config.answer_bytes,
            deadline: config.deadline,
            connect_timeout: config.connect_timeout,
            attempts: config.retry.attempts,
            budget: retry_budget(config.retry.budget),
            breaker: Breaker::new(&config.breaker),
            shown: Mutex::new(BreakerState::Closed),
            latency: Latency::default(),
            id_hasher: RandomState::new(),
            pause: Pause::default(),
            pauses: Pauses::default(),
            pause_log: LogThrottle::default(),
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
    /// often. `read` reads the body of a 200 that is not [coded](Answer::is_coded), and says whether it is an answer of links.
    ///
    /// # Errors
    /// If there is no answer: refused by the breaker or a pause, no connection, a broken one, an endless or undecodable
    /// body, or none in time.
    pub async fn call<R>(
        &self,
        call: &Call,
        deadline: Instant,
        retries: &mut u32,
        read: impl Fn(&[u8]) -> (R, bool),
    ) -> Result<(Answer, Option<R>), Error> {
        if let Some(paused) = self.paused() {
            return Err(Error::HeldBack(paused.left));
        }
        let source = self.source(call.caller, call.accepted, call.ids.iter().map(AsRef::as_ref));
        self.budget.deposit();
        let mut permit = self.breaker.admit(&source, self.fair_time()).map_err(Error::BreakerOpen)?;
        let mut delays = DELAYS.with_max_times(self.attempts).build();
        // A call that could hardly be answered in time would only cost the endpoint.
        let mut outcome = Err(Error::Deadline);
        let mut reading = None;
        while self.leaves_fair_time(deadline) {
            let progress = Progress::default();
            let probe = permit.is_probe();
            let lost;
            (outcome, lost) = self.attempt(call, deadline, probe, &progress).await;
            let answer = outcome.as_ref().ok();
            let body = answer.filter(|answer| answer.status == StatusCode::OK && !answer.is_coded());
            let has_links;
            (reading, has_links) = body.map(|answer| read(&answer.body)).unzip();
            if permit.record(self.judge(&outcome, has_links.unwrap_or(false), lost, &progress)) {
                self.calls.drop_idle();
                self.streams.drop_idle();
            }
            self.show_breaker();
            let Some(delay) = delays.next().filter(|_| self.may_pass(&outcome)) else { break };
            if !self.leaves_fair_time_after(delay, deadline) || !self.budget.withdraw() {
                break;
            }
            tokio::time::sleep(delay).await;
            let Ok(next) = self.breaker.admit(&source, self.fair_time()) else { break };
            permit = next;
            self.metrics.upstream_retries.inc();
            *retries += 1;
        }
        outcome.map(|answer| (answer, reading))
    }

    /// Who is behind a call, for the breaker.
    fn source<'i>(&self, caller: Caller, accepted: bool, ids: impl Iterator<Item = &'i str>) -> Source {
        Source { caller, accepted, ids: ids.take(MOST_IDS).map(|id| self.id_hasher.hash_one(id)).collect() }
    }

    /// Why no call of `caller` for these ids may be made now.
    pub fn refusal<'i>(&self, caller: Caller, ids: impl Iterator<Item = &'i str>) -> Option<Rejection> {
        if let Some(paused) = self.paused() {
            return Some(Rejection::Pause(paused));
        }
        if self.breaker.is_idle() {
            return None;
        }
        self.breaker.refusal(Some(&self.source(caller, true, ids))).map(Rejection::Breaker)
    }

    /// Why no call of anyone may be made now.
    pub fn refusal_of_all(&self) -> Option<Rejection> {
        let paused = self.paused().map(Rejection::Pause);
        paused.or_else(|| self.breaker.refusal(None).map(Rejection::Breaker))
    }

    fn paused(&self) -> Option<Paused> {
        self.pause.lasting(self.clock.now())
    }

    /// A caller has been told by a 503 to pause for `span`. If that concerns everyone, everyone is held back.
    pub fn asked_to_pause(&self, call: &Call, span: Duration) {
        let source = self.source(call.caller, call.accepted, call.ids.iter().map(AsRef::as_ref));
        let now = self.clock.now();
        let Some(span) = self.pauses.told(&source, now, span) else { return };
        // What one caller was told is no answer for another.
        self.pause.set(now, span, None);
        self.pause_log.when_due(|suppressed| events::AllPaused { seconds: span.as_secs_f64(), suppressed }.log());
    }

    /// The time that a call needs to have a fair chance of an answer.
    fn fair_time(&self) -> Duration {
        self.latency.fair(self.deadline)
    }

    /// Whether a call that is sent now has a fair chance of an answer by `deadline`.
    pub fn leaves_fair_time(&self, deadline: Instant) -> bool {
        self.leaves_fair_time_after(Duration::ZERO, deadline)
    }

    fn leaves_fair_time_after(&self, delay: Duration, deadline: Instant) -> bool {
        Instant::now() + delay + self.fair_time() <= deadline
    }

    /// How the breaker stands, and on what evidence.
    pub fn breaker(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// Shows in metrics, and on a change in the log, what the breaker lets through.
    pub fn show_breaker(&self) {
        let BreakerStatus { position: now, counts, refused } = self.breaker.status();
        let before = std::mem::replace(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner), now);
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
        show_position(&self.metrics.breaker_state, now);
        let Counts { callers, id_sets, connect, lost, answer, silence } = counts;
        self.metrics.show_breaker_evidence([callers, id_sets, connect, lost, answer, silence, refused]);
    }

    /// By what a call, or a request on another route, last came to nothing for the endpoint's sake.
    pub fn last_failure(&self) -> Option<Failure> {
        self.failures.last()
    }

    /// Tells of a whole answer that says 200 and cannot be read, or is in a coding that cannot be undone.
    pub fn cannot_be_read(&self) {
        self.failures.unusable(&self.clock, UNREADABLE);
    }

    /// One attempt of a call; also the number of the connection that it lost.
    async fn attempt(
        &self,
        call: &Call,
        deadline: Instant,
        new_connection: bool,
        progress: &Progress,
    ) -> (Result<Answer, Error>, Option<u64>) {
        self.metrics.upstream_call_ids.observe(call.ids.len() as f64);
        self.metrics.upstream_in_flight.inc();
        let _in_flight = scopeguard(|| self.metrics.upstream_in_flight.dec());
        let departed = Instant::now();
        let exchange = timeout_at(deadline, self.exchange(call, new_connection, progress)).await;
        self.metrics.upstream_call_duration.observe(departed.elapsed().as_secs_f64());
        let (answer, lost) = match exchange {
            Ok(Ok(answer)) => (Ok(answer), None),
            Ok(Err((error, lost))) => (Err(error), lost),
            Err(_) => {
                progress.give_up();
                (Err(Error::Deadline), None)
            }
        };
        match &answer {
            Ok(answer) if answer.status.is_server_error() => self.failures.server_error(&self.clock, answer.status),
            Err(Error::Deadline) => self.failures.no_answer(&self.clock, LATE),
            Err(Error::NoAnswer(NoAnswer::Unreadable)) => self.failures.unusable(&self.clock, UNREADABLE),
            Err(Error::NoAnswer(NoAnswer::TooLong)) => self.failures.unusable(&self.clock, TOO_LONG),
            _ => {}
        }
        (answer, lost)
    }

    async fn exchange(
        &self,
        call: &Call,
        new_connection: bool,
        progress: &Progress,
    ) -> Result<Answer, (Error, Option<u64>)> {
        let target =
            PathAndQuery::try_from(call.target.as_str()).map_err(|_| (Error::NoAnswer(NoAnswer::Lost), None))?;
        let uri = self.uri(target).map_err(|error| (error, None))?;
        let request = call.request(uri, self.endpoint.authority.as_str(), self.clock.now().unix_seconds());
        let sent = self.clock.now();
        let response = self.send_call(request, new_connection, progress).await;
        let response = response.map_err(|error| (self.unanswered(&error), error.lost))?;
        let (head, body) = Self::answered(response).map_err(|error| (error, None))?.into_parts();
        let body = match Limited::new(body, self.answer_bytes).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err((Error::NoAnswer(NoAnswer::TooLong), None)),
            Err(error) => {
                self.failures.broken_off(&self.clock, &chain(&*error));
                let lost = if client::is_stream_reset(&*error) { None } else { progress.connection() };
                return Err((Error::NoAnswer(NoAnswer::Broken), lost));
            }
        };
        let mut headers = head.headers;
        let body = coding::decode(&mut headers, body, self.answer_bytes);
        let body = body.map_err(|error| (Error::NoAnswer(error), None))?;
        Ok(Answer { status: head.status, headers, body, sent })
    }

    /// Sends a call's request over HTTP/2 where that is spoken, until the endpoint asks for HTTP/1.1.
    async fn send_call(
        &self,
        request: Request<Bytes>,
        new_connection: bool,
        progress: &Progress,
    ) -> Result<Response<Incoming>, SendError> {
        if !self.http1_only.load(Ordering::Relaxed) {
            let sent = self.calls.send(Outgoing::Repeatable(request.clone()), new_connection, progress).await;
            match sent {
                Err(error) if error.wants_http1 => {
                    if !self.http1_only.swap(true, Ordering::Relaxed) {
                        events::Http1Required {}.log();
                    }
                }
                sent => return sent,
            }
        }
        self.streams.send(Outgoing::Repeatable(request), new_connection, progress).await
    }

    /// What an attempt says of the endpoint's health.
    fn judge(
        &self,
        outcome: &Result<Answer, Error>,
        has_links: bool,
        lost: Option<u64>,
        progress: &Progress,
    ) -> CallOutcome {
        let took = progress.sent().map(|sent| sent.elapsed());
        match outcome {
            Ok(_) if has_links => {
                took.inspect(|took| self.latency.observe(*took));
                CallOutcome::Success
            }
            // One that asks for a pause gets one; it is not down.
            Ok(answer) if self.pause_of(answer).is_some() => CallOutcome::Neutral,
            Ok(answer) if matches!(answer.status.as_u16(), 502..=504) => CallOutcome::Failure(FailureKind::Answer),
            Err(Error::NoAnswer(NoAnswer::Connect)) => CallOutcome::Failure(FailureKind::Connect),
            Err(Error::NoAnswer(NoAnswer::Broken)) => {
                CallOutcome::Failure(lost.map_or(FailureKind::Answer, FailureKind::Lost))
            }
            Err(Error::Deadline) if took.is_some_and(|took| took >= self.fair_time()) => {
                CallOutcome::Failure(FailureKind::Silence)
            }
            Err(Error::Deadline) if took.is_none() && progress.waited() >= self.connect_timeout => {
                CallOutcome::Failure(FailureKind::Silence)
            }
            _ => CallOutcome::Neutral,
        }
    }

    /// The pause that a 503 with `Retry-After` asks for.
    pub fn pause_of(&self, answer: &Answer) -> Option<Duration> {
        let asks = answer.status == StatusCode::SERVICE_UNAVAILABLE;
        asks.then(|| pause::retry_after(&answer.headers, self.clock.now())).flatten()
    }

    /// Whether the same call may well succeed if made again.
    fn may_pass(&self, outcome: &Result<Answer, Error>) -> bool {
        match outcome {
            Ok(answer) => matches!(answer.status.as_u16(), 502..=504) && self.pause_of(answer).is_none(),
            Err(Error::NoAnswer(reason)) => matches!(reason, NoAnswer::Connect | NoAnswer::Broken),
            Err(_) => false,
        }
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
const DELAYS: ExponentialBuilder = ExponentialBuilder::new()
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
