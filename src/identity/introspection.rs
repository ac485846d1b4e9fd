//! Asks an introspection endpoint: one request for a token at a time, within limits, and not while the endpoint fails.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::{Budget, TpsBudget};

use super::breaker::{Blame, Health, ProviderBreaker};
use super::digest::UserDigest;
use super::requests::{Requests, TokenAnswer};
use super::single_flight::SingleFlight;
use super::{keystone, oauth2};
use crate::auth::TokenStatus;
use crate::clock::Clock;
use crate::config::batch::Pointer;
use crate::config::{IdentityConfig, Secret, Style, Url};
use crate::limits::budget::Reservation;
use crate::limits::pause::retry_after;
use crate::limits::permits::Permits;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{IdentityResult, Metrics};
use crate::upstream::{MemoryEndpoint, ProviderError, SetupError};

/// Most questions that wait for their turn or their answer, for each request that may be under way.
const WAITING: usize = 64;
/// Tokens that the endpoint has not accepted use this part of the requests, and of the questions that wait.
const UNACCEPTED_SHARE: usize = 4;

/// Refusals in a row after which sidelink's own credentials are said to be refused: a gateway may refuse a request for its token.
const REFUSALS: u32 = 5;

pub(super) struct Introspection {
    pub(super) requests: Requests,
    url: Url,
    style: AskingStyle,
    /// The fields that make a user, in the order of their texts; none: the style's own.
    fields: Vec<Pointer>,
    timeout: Duration,
    /// By the SHA-256 of their token.
    flights: Arc<SingleFlight<[u8; 32], TokenStatus>>,
    most_flights: usize,
    /// Those of tokens that the endpoint has not accepted.
    unaccepted_flights: Arc<AtomicUsize>,
    permits: Permits,
    unaccepted_permits: Permits,
    unaccepted: TpsBudget,
    pub(super) breaker: ProviderBreaker,
    failed: LogThrottle,
    incomplete: LogThrottle,
    credentials: Credentials,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// A style, with sidelink's own credentials.
enum AskingStyle {
    Keystone { own: Option<Secret> },
    OAuth2 { authorization: HeaderValue },
}

impl Introspection {
    pub(super) fn new(
        config: &IdentityConfig,
        url: &Url,
        memory: Option<&MemoryEndpoint>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let style = match config.style {
            Style::Keystone => {
                AskingStyle::Keystone { own: config.token_file.as_ref().map(|file| file.secret.clone()) }
            }
            Style::OAuth2 => AskingStyle::OAuth2 {
                authorization: oauth2::authorization(config).ok_or(SetupError::NoIdentitySource)?,
            },
        };
        let mut fields = config.identity.clone();
        fields.sort_unstable_by_key(ToString::to_string);
        Ok(Self {
            url: url.clone(),
            style,
            fields,
            timeout: config.timeout,
            requests: Requests::new(config, memory, Arc::clone(&metrics))?,
            flights: Arc::default(),
            most_flights: config.requests * WAITING,
            unaccepted_flights: Arc::default(),
            permits: Permits::new(config.requests),
            unaccepted_permits: Permits::new((config.requests / UNACCEPTED_SHARE).max(1)),
            unaccepted: TpsBudget::new(Duration::from_secs(1), config.unaccepted, 0.0),
            breaker: ProviderBreaker::new(Arc::clone(&metrics)),
            failed: LogThrottle::default(),
            incomplete: LogThrottle::default(),
            credentials: Credentials::default(),
            clock,
            metrics,
        })
    }

    pub(super) async fn ask(self: &Arc<Self>, token: &[u8], was_accepted: bool) -> TokenStatus {
        let deadline = Instant::now() + self.timeout;
        let key: [u8; 32] = Sha256::digest(token).into();
        loop {
            let flight = self.flights.join_or_start(&key, |waiting| {
                let share = self.admit(waiting, was_accepted).inspect_err(|reason| self.count(*reason))?;
                let (this, token, blame) = (Arc::clone(self), Secret::new(token.to_vec()), blame(&key));
                Ok::<_, IdentityResult>(async move {
                    let _share = share;
                    let asked = this.introspect(&token, was_accepted, blame, deadline).await;
                    let status = asked.unwrap_or_else(TokenStatus::NoUser);
                    this.count(status.result());
                    status
                })
            });
            let flight = match flight {
                Ok(flight) => flight,
                Err(reason) => return TokenStatus::NoUser(reason),
            };
            // The task has the deadline of the request that started it.
            let status = if flight.is_own {
                flight.result().await
            } else {
                match timeout_at(deadline, flight.result()).await {
                    // Of a question about a token that the endpoint had not accepted: its limits are not this one's.
                    Ok(Some(TokenStatus::NoUser(IdentityResult::Limited | IdentityResult::Unaccepted)))
                        if was_accepted =>
                    {
                        continue;
                    }
                    status => status.ok().flatten(),
                }
            };
            return status.unwrap_or(TokenStatus::NoUser(IdentityResult::Failed));
        }
    }

    fn count(&self, result: IdentityResult) {
        self.metrics.identity.requests.of(result).inc();
    }

    /// Whether a question may be asked at all: its share of those about tokens that the endpoint has not accepted, if it is one of them.
    fn admit(&self, waiting: usize, was_accepted: bool) -> Result<Option<Reservation>, IdentityResult> {
        if self.breaker.is_open() {
            return Err(IdentityResult::BreakerOpen);
        }
        if waiting >= self.most_flights {
            return Err(IdentityResult::Limited);
        }
        if was_accepted {
            return Ok(None);
        }
        let share = Reservation::one_of(&self.unaccepted_flights, self.most_flights / UNACCEPTED_SHARE);
        share.filter(|_| self.unaccepted.withdraw()).map(Some).ok_or(IdentityResult::Unaccepted)
    }

    /// Asks the introspection endpoint about `token`, once a permit is free.
    ///
    /// # Errors
    /// The reason, if no request was sent.
    async fn introspect(
        &self,
        token: &Secret,
        was_accepted: bool,
        blame: Blame,
        deadline: Instant,
    ) -> Result<TokenStatus, IdentityResult> {
        let limit = if was_accepted { IdentityResult::Limited } else { IdentityResult::Unaccepted };
        let permits = timeout_at(deadline, self.permits(was_accepted)).await;
        let _permits = permits.map_err(|_| limit)?;
        let request = self.request(token.expose()).ok_or(IdentityResult::Apart)?;
        let admission = self.breaker.admit(was_accepted).ok_or(IdentityResult::BreakerOpen)?;
        let sent = Instant::now();
        let answer = self.requests.send(request, deadline).await;
        if matches!(answer, Err(ProviderError::Deadline)) && sent.elapsed() < self.timeout / 2 {
            // Its turn came late: that says nothing of the provider.
            return Err(limit);
        }
        let TokenAnswer { status, reason } = match &answer {
            Ok(response) => self.read(response, token.expose()),
            Err(error) => TokenAnswer::unusable(error.to_string()),
        };
        let wish = answer.as_ref().ok().and_then(|response| retry_after(response.headers(), self.clock.now()));
        let result = status.result();
        let health = match result {
            // Made-up tokens do not tell that the provider knows others.
            IdentityResult::Refused if !was_accepted => Health::Unknown,
            IdentityResult::User | IdentityResult::Refused | IdentityResult::Apart => Health::Works,
            _ if matches!(answer, Err(ProviderError::Connect(_))) => Health::Fails(Blame::Provider, wish),
            // A provider, or a gateway in front of it, may refuse sidelink for what it sees in one token.
            _ if was_accepted => Health::Fails(blame, wish),
            _ => Health::Unknown,
        };
        admission.record(health, &reason);
        match result {
            IdentityResult::User | IdentityResult::Refused => self.credentials.not_refused(),
            IdentityResult::Apart => {
                self.credentials.not_refused();
                self.incomplete.when_due(|suppressed| events::IdentityIncomplete { reason: &reason, suppressed }.log());
            }
            IdentityResult::Credentials => {
                let status = answer.map_or(0, |response| response.status().as_u16());
                self.credentials.refused(status);
            }
            _ => {
                self.credentials.not_refused();
                self.failed.when_due(|suppressed| events::IdentityFailed { reason: &reason, suppressed }.log());
            }
        }
        Ok(status)
    }

    /// Since when the endpoint refuses sidelink's own credentials, whatever it is asked about.
    pub(super) fn credentials_refused(&self) -> Option<Instant> {
        self.credentials.refused_since()
    }

    /// The permit of unaccepted tokens first: who waits for it takes none from others.
    async fn permits(&self, was_accepted: bool) -> [Option<OwnedSemaphorePermit>; 2] {
        let unaccepted = if was_accepted { None } else { self.unaccepted_permits.acquire().await.ok() };
        [unaccepted, self.permits.acquire().await.ok()]
    }

    fn request(&self, token: &[u8]) -> Option<Request<Bytes>> {
        match &self.style {
            AskingStyle::Keystone { own } => keystone::request(&self.url, token, own.as_ref()),
            AskingStyle::OAuth2 { authorization } => oauth2::request(&self.url, token, authorization),
        }
    }

    /// What an answer says of `token`.
    pub(super) fn read(&self, response: &Response<Bytes>, token: &[u8]) -> TokenAnswer {
        let now = self.clock.now().unix_millis();
        match &self.style {
            AskingStyle::Keystone { own } => {
                let digest = UserDigest::new("keystone", &self.url.to_string());
                keystone::read(response, token, own.is_some(), &self.fields, digest, now)
            }
            AskingStyle::OAuth2 { .. } => {
                let digest = UserDigest::new("oauth2", &self.url.to_string());
                oauth2::read(response, &self.fields, digest, now)
            }
        }
    }
}

/// How the endpoint has answered to sidelink's own credentials.
#[derive(Default)]
struct Credentials {
    /// When it refused them first in a row of such answers, and how often since.
    refused: Mutex<Option<(Instant, u32)>>,
    log: LogThrottle,
}

impl Credentials {
    /// Records another answer: the row of refusals has ended.
    fn not_refused(&self) {
        *self.refused.lock() = None;
    }

    fn refused(&self, status: u16) {
        self.refused.lock().get_or_insert((Instant::now(), 0)).1 += 1;
        self.log.when_due(|suppressed| events::IdentityCredentials { status, suppressed }.log());
    }

    fn refused_since(&self) -> Option<Instant> {
        self.refused.lock().filter(|(_, times)| *times >= REFUSALS).map(|(since, _)| since)
    }
}

/// A token, for the breaker, which keeps none.
fn blame(key: &[u8; 32]) -> Blame {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    Blame::Token(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}
