//! The set of keys that a URL answers with: fetched when it is needed, and again when it is old or lacks a key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, Request, StatusCode};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::breaker::{Blame, Health, ProviderBreaker};
use super::requests::Requests;
use super::single_flight::{Flight, SingleFlight};
use crate::clock::{Clock, Moment};
use crate::config::jwks::KeySet;
use crate::config::{IdentityConfig, Url};
use crate::limits::pause::retry_after;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{IdentityResult, Metrics};
use crate::upstream::{MemoryEndpoint, SetupError};

/// A set that lacks a key is fetched again after this, in milliseconds: tokens name keys as they like.
const LACKING: u64 = 30_000;
/// A set that is older is fetched again in the background, since a key may have been withdrawn.
const OLD: u64 = 5 * 60_000;
/// A set that is older is not used.
const TOO_OLD: u64 = 60 * 60_000;

pub(super) struct RemoteKeys {
    pub(super) requests: Requests,
    url: Url,
    timeout: Duration,
    fetched: Mutex<Option<(Arc<KeySet>, Moment)>>,
    flights: Arc<SingleFlight<(), ()>>,
    pub(super) breaker: ProviderBreaker,
    failed: LogThrottle,
    clock: Clock,
}

impl RemoteKeys {
    pub(super) fn new(
        config: &IdentityConfig,
        url: &Url,
        memory: Option<&MemoryEndpoint>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            url: url.clone(),
            timeout: config.timeout,
            requests: Requests::new(config, memory, Arc::clone(&metrics))?,
            fetched: Mutex::default(),
            flights: Arc::default(),
            breaker: ProviderBreaker::new(metrics),
            failed: LogThrottle::default(),
            clock,
        })
    }

    /// The set, fetched anew where it has not what is `wanted` and is not new.
    ///
    /// # Errors
    /// There is none, for this reason.
    pub(super) async fn keys(
        self: &Arc<Self>,
        wanted: impl Fn(&KeySet) -> bool,
    ) -> Result<Arc<KeySet>, IdentityResult> {
        let now = self.clock.now();
        let (known, age) = match self.known(now) {
            Some((known, age)) => (Some(known), age),
            None => (None, u64::MAX),
        };
        if let Some(known) = known.as_ref().filter(|known| wanted(known)) {
            if age >= OLD {
                drop(self.fetch());
            }
            return Ok(Arc::clone(known));
        }
        let usable = |known: Option<Arc<KeySet>>| known.filter(|keys| !keys.0.is_empty());
        if age < LACKING {
            return usable(known).ok_or(IdentityResult::Failed);
        }
        let Some(flight) = self.fetch() else { return usable(known).ok_or(IdentityResult::BreakerOpen) };
        // The task has a deadline of its own, from when it began.
        let _ = timeout_at(Instant::now() + self.timeout, flight.result()).await;
        let fetched = self.known(self.clock.now()).map(|(keys, _)| keys);
        usable(fetched).ok_or(IdentityResult::Failed)
    }

    /// The set, unless it is too old, and its age.
    fn known(&self, now: Moment) -> Option<(Arc<KeySet>, u64)> {
        let fetched = self.fetched.lock();
        let (keys, at) = fetched.as_ref()?;
        let age = now.since(*at);
        (age < TOO_OLD).then(|| (Arc::clone(keys), age))
    }

    /// Fetches the set, once for all who want it; `None` while the breaker is open.
    fn fetch(self: &Arc<Self>) -> Option<Flight<()>> {
        let flight = self.flights.join_or_start(&(), |_| {
            if self.breaker.is_open() {
                return Err(());
            }
            let this = Arc::clone(self);
            Ok(async move { this.fetch_once().await })
        });
        flight.ok()
    }

    async fn fetch_once(&self) {
        let Some(admission) = self.breaker.admit(true) else { return };
        let accept = HeaderValue::from_static("application/jwk-set+json, application/json");
        let Ok(request) = Request::get(self.url.uri()).header(ACCEPT, accept).body(Bytes::new()) else { return };
        let sent = self.clock.now();
        let answer = self.requests.send(request, Instant::now() + self.timeout).await;
        let wish = answer.as_ref().ok().and_then(|response| retry_after(response.headers(), sent));
        let keys = match answer {
            Ok(response) if response.status() == StatusCode::OK => {
                KeySet::parse(response.body()).map_err(|reason| format!("it {reason}"))
            }
            Ok(response) => Err(format!("its status is {}", response.status().as_u16())),
            Err(error) => Err(error.to_string()),
        };
        let stored = keys.and_then(|keys| {
            let keys = keys.public();
            let is_empty = keys.0.is_empty();
            // Also an empty set, which says that the keys before it are withdrawn.
            *self.fetched.lock() = Some((Arc::new(keys), sent));
            if is_empty { Err("it has no public key that verifies signatures".to_owned()) } else { Ok(()) }
        });
        match stored {
            Ok(()) => admission.record(Health::Works, ""),
            Err(reason) => {
                admission.record(Health::Fails(Blame::Provider, wish), &reason);
                self.failed.when_due(|suppressed| events::IdentityFailed { reason: &reason, suppressed }.log());
            }
        }
    }
}
