//! Asks an introspection endpoint: one request for a token at a time, within limits, and not while the endpoint fails.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::{Budget, TpsBudget};

use super::Outcome;
use super::breaker::{Evidence, ProviderBreaker, Suspect};
use super::digest::UserDigest;
use super::requests::{Reading, Requests};
use super::single_flight::SingleFlight;
use super::{keystone, oauth2};
use crate::clock::Clock;
use crate::config::batch::Pointer;
use crate::config::{IdentityConfig, Secret, Style, Url};
use crate::limits::budget::Reservation;
use crate::limits::pause::retry_after;
use crate::limits::permits::Permits;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::Metrics;
use crate::upstream::{MemoryEndpoint, ProviderError, SetupError};

/// Most questions that wait for their turn or their answer, for each request that may be under way.
const WAITING: usize = 64;
/// Tokens that the endpoint has not accepted use this part of the requests, and of the questions that wait.
const UNACCEPTED_SHARE: usize = 4;

pub(super) struct Introspection {
    pub(super) requests: Requests,
    url: Url,
    style: AskingStyle,
    /// The fields that make a user, in the order of their texts; none: the style's own.
    fields: Vec<Pointer>,
    timeout: Duration,
    /// By the SHA-256 of their token.
    flights: Arc<SingleFlight<[u8; 32], Outcome>>,
    most_flights: usize,
    /// Those of tokens that the endpoint has not accepted.
    unaccepted_flights: Arc<AtomicUsize>,
    permits: Permits,
    unaccepted_permits: Permits,
    unaccepted: TpsBudget,
    pub(super) breaker: ProviderBreaker,
    failed: LogThrottle,
    incomplete: LogThrottle,
    credentials: LogThrottle,
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
            credentials: LogThrottle::default(),
            clock,
            metrics,
        })
    }

    pub(super) async fn ask(self: &Arc<Self>, token: &[u8], was_accepted: bool) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let key: [u8; 32] = Sha256::digest(token).into();
        loop {
            let flight = self.flights.join_or_start(&key, |waiting| {
                let share = self.admit(waiting, was_accepted).inspect_err(|outcome| outcome.count(&self.metrics))?;
                let (this, token, suspect) = (Arc::clone(self), Secret::new(token.to_vec()), suspect(&key));
                Ok::<_, Outcome>(async move {
                    let _share = share;
                    let outcome = this.introspect(&token, was_accepted, suspect, deadline).await;
                    outcome.count(&this.metrics);
                    outcome
                })
            });
            let flight = match flight {
                Ok(flight) => flight,
                Err(outcome) => return outcome,
            };
            // The task has the deadline of the request that started it.
            let outcome = if flight.is_own {
                flight.result().await
            } else {
                match timeout_at(deadline, flight.result()).await {
                    // Of a question about a token that the endpoint had not accepted: its limits are not this one's.
                    Ok(Some(Outcome::Limited)) if was_accepted => continue,
                    outcome => outcome.ok().flatten(),
                }
            };
            return outcome.unwrap_or(Outcome::Failed);
        }
    }

    /// Whether a question may be asked at all: its share of those about tokens that the endpoint has not accepted, if it is one of them.
    fn admit(&self, waiting: usize, was_accepted: bool) -> Result<Option<Reservation>, Outcome> {
        if self.breaker.is_open() {
            return Err(Outcome::BreakerOpen);
        }
        if waiting >= self.most_flights {
            return Err(Outcome::Limited);
        }
        if was_accepted {
            return Ok(None);
        }
        let share = Reservation::one_of(&self.unaccepted_flights, self.most_flights / UNACCEPTED_SHARE);
        share.filter(|_| self.unaccepted.withdraw()).map(Some).ok_or(Outcome::Limited)
    }

    async fn introspect(&self, token: &Secret, was_accepted: bool, suspect: Suspect, deadline: Instant) -> Outcome {
        let Ok(_permits) = timeout_at(deadline, self.permits(was_accepted)).await else { return Outcome::Limited };
        let Some(request) = self.request(token.expose()) else { return Outcome::Apart };
        let Some(admission) = self.breaker.admit(was_accepted) else { return Outcome::BreakerOpen };
        let sent = Instant::now();
        let answer = self.requests.send(request, deadline).await;
        if matches!(answer, Err(ProviderError::Deadline)) && sent.elapsed() < self.timeout / 2 {
            // Its turn came late: that says nothing of the provider.
            return Outcome::Limited;
        }
        let reading = match &answer {
            Ok(response) => self.read(response, token.expose()),
            Err(error) => Reading::Unusable(error.to_string().into()),
        };
        let wish = answer.as_ref().ok().and_then(|response| retry_after(response.headers(), self.clock.now()));
        let evidence = match (&reading, &answer) {
            // Made-up tokens do not tell that the provider knows others.
            (Reading::Refused, _) if !was_accepted => Evidence::Nothing,
            (Reading::User { .. } | Reading::Refused | Reading::Incomplete(_), _) => Evidence::Works,
            (_, Err(ProviderError::Connect(_))) => Evidence::Fails(Suspect::Provider, wish),
            // A provider, or a gateway in front of it, may refuse sidelink for what it sees in one token.
            (Reading::RefusedCredentials(_) | Reading::Unusable(_), _) if was_accepted => {
                Evidence::Fails(suspect, wish)
            }
            (Reading::RefusedCredentials(_) | Reading::Unusable(_), _) => Evidence::Nothing,
        };
        let outcome = Outcome::from(&reading);
        match reading {
            Reading::User { .. } | Reading::Refused => admission.record(evidence, ""),
            Reading::Incomplete(reason) => {
                admission.record(evidence, "");
                self.incomplete.when_due(|suppressed| events::IdentityIncomplete { reason: &reason, suppressed }.log());
            }
            Reading::RefusedCredentials(status) => {
                let status = status.as_u16();
                admission.record(evidence, "it refuses sidelink's own credentials");
                self.credentials.when_due(|suppressed| events::IdentityCredentials { status, suppressed }.log());
            }
            Reading::Unusable(reason) => {
                admission.record(evidence, &reason);
                self.failed.when_due(|suppressed| events::IdentityFailed { reason: &reason, suppressed }.log());
            }
        }
        outcome
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
    pub(super) fn read(&self, response: &Response<Bytes>, token: &[u8]) -> Reading {
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

/// A token, for the breaker, which keeps none.
fn suspect(key: &[u8; 32]) -> Suspect {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    Suspect::Token(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}
