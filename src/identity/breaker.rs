//! The breaker of requests to the identity provider: after failures in a row none is sent for a while, then one to see. Pauses grow
//! while it fails.
//!
//! Failures of one token open it only where nothing succeeds: a token that the provider fails for does not keep it from others.
//! Those of tokens that the endpoint has not accepted never do, unless no connection can be made. Such tokens probe beside the others, once in a pause,
//! so that made-up ones keep no other from probing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::log::events;
use crate::telemetry::metrics::{BreakerState, Metrics, show_state};

/// Failures in a row that open it.
const FAILURES: usize = 5;
/// The first pause, and the longest: each failed probe doubles it. Jitter lengthens it by a fifth at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const JITTER: f64 = 0.2;
/// As long after a success, further failures of one token count once.
const RECENT: Duration = Duration::from_secs(30);

pub(super) struct ProviderBreaker {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    /// Whose failures have counted, in a row.
    failed: Vec<Blame>,
    succeeded: Option<Instant>,
    open: Option<Open>,
}

struct Open {
    since: Instant,
    /// Of the last failure.
    reason: String,
    pause: Duration,
    until: Instant,
    is_probing: bool,
    /// When a token that the endpoint has not accepted may probe.
    unaccepted_from: Instant,
}

/// What may be the reason of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The provider, whatever is asked.
    Provider,
    /// This token, as well as the provider.
    Token(u64),
}

/// What a request has shown of the provider.
#[derive(Clone, Copy, Debug)]
pub(super) enum Health {
    Works,
    /// It fails, and wants no request for as long.
    Fails(Blame, Option<Duration>),
    Unknown,
}

/// The right to send a request. Dropped without a record, it has shown nothing.
pub(super) struct Admission<'h> {
    breaker: &'h ProviderBreaker,
    is_probe: bool,
    was_accepted: bool,
}

impl ProviderBreaker {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        show_state(&metrics.identity.breaker_state, BreakerState::Closed);
        Self { state: Mutex::default(), metrics }
    }

    /// Why it is open, and since when, for an operator.
    pub(super) fn outage(&self) -> Option<(String, Instant)> {
        self.state.lock().open.as_ref().map(|open| (open.reason.clone(), open.since))
    }

    /// Whether no request is sent now.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open.as_ref().is_some_and(|open| open.is_probing || Instant::now() < open.until)
    }

    /// Lets a request through, unless it is open; `was_accepted`: it is not about a token that the endpoint has not accepted.
    pub(super) fn admit(&self, was_accepted: bool) -> Option<Admission<'_>> {
        let (now, mut state) = (Instant::now(), self.state.lock());
        let admission = |is_probe| Some(Admission { breaker: self, is_probe, was_accepted });
        let Some(open) = &mut state.open else { return admission(false) };
        let may_probe = if was_accepted { !open.is_probing } else { now >= open.unaccepted_from };
        if !may_probe || now < open.until {
            return None;
        }
        if was_accepted {
            open.is_probing = true;
        } else {
            open.unaccepted_from = now + open.pause;
        }
        show_state(&self.metrics.identity.breaker_state, BreakerState::HalfOpen);
        admission(true)
    }
}

impl Admission<'_> {
    /// Records what the request has shown; `reason` tells a failure.
    pub(super) fn record(self, health: Health, reason: &str) {
        let (now, breaker) = (Instant::now(), self.breaker);
        let mut state = breaker.state.lock();
        let show = |now| show_state(&breaker.metrics.identity.breaker_state, now);
        match health {
            Health::Works => {
                let was_open = state.open.take().is_some();
                *state = State { succeeded: Some(now), ..State::default() };
                show(BreakerState::Closed);
                drop(state);
                if was_open {
                    events::IdentityBack {}.log();
                }
            }
            Health::Fails(blame, wish) => {
                let is_recent = state.succeeded.is_some_and(|succeeded| now - succeeded < RECENT);
                let counts = blame == Blame::Provider || !is_recent || !state.failed.contains(&blame);
                if state.open.is_none() && counts {
                    state.failed.push(blame);
                }
                let pause = match &state.open {
                    Some(open) if self.is_probe => (open.pause * 2).min(LONGEST_PAUSE),
                    None if state.failed.len() >= FAILURES => FIRST_PAUSE,
                    _ => return,
                };
                let (was_open, since) = (state.open.is_some(), state.open.as_ref().map_or(now, |open| open.since));
                let jittered = pause.mul_f64(1.0 + JITTER * rand::random::<f64>());
                let until = now + jittered.max(wish.unwrap_or_default());
                let reason_now = reason.to_owned();
                state.open =
                    Some(Open { since, reason: reason_now, pause, until, is_probing: false, unaccepted_from: until });
                show(BreakerState::Open);
                drop(state);
                if !was_open {
                    events::IdentityBreakerOpened { reason, seconds: (until - now).as_secs_f64() }.log();
                }
            }
            Health::Unknown => {}
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.state.lock();
        if let Some(open) = state.open.as_mut().filter(|open| self.is_probe && self.was_accepted && open.is_probing) {
            open.is_probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use tokio::time::advance;

    use super::*;

    /// Steps separated by space: `+` works, `-` the provider fails, `-1` it fails for token 1, `?` shows nothing, `!` is not let through;
    /// `10s` passes. `open` or `closed`: the state, before a step and after a pause.
    async fn play(steps: &str) {
        let breaker = ProviderBreaker::new(Arc::new(Metrics::new(&Registry::new()).unwrap()));
        for step in steps.split(' ') {
            match step {
                "open" => assert!(breaker.is_open(), "{steps}"),
                "closed" => assert!(!breaker.is_open(), "{steps}"),
                _ if step.ends_with('s') => {
                    advance(Duration::from_secs(step.trim_end_matches('s').parse().unwrap())).await;
                }
                _ => {
                    let admission = breaker.admit(true);
                    assert_eq!(admission.is_none(), step == "!", "{step} in {steps}");
                    let Some(admission) = admission else { continue };
                    let health = match step {
                        "+" => Health::Works,
                        "?" => Health::Unknown,
                        "-" => Health::Fails(Blame::Provider, None),
                        "~" => Health::Fails(Blame::Provider, Some(Duration::from_secs(10))),
                        token => Health::Fails(Blame::Token(token[1..].parse().unwrap()), None),
                    };
                    admission.record(health, "test");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_probes_in_growing_pauses() {
        for steps in [
            "- - - - closed - open ! 2s closed + closed",
            "- - - - + - - - - closed",
            "- - - - - 2s - open 1s ! 2s - open 2s ! 3s + - closed",
            // A probe that shows nothing, or is given up, lets the next one probe.
            "- - - - - 2s ? ? -",
            "- - - - - 2s - 3s - 5s - 10s - 20s - 40s - 36s + closed",
            // The provider asks for a longer pause.
            "- - - - ~ 9s ! open 1s closed +",
        ] {
            play(steps).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_token_that_the_provider_fails_for_does_not_keep_it_from_others() {
        for steps in [
            "+ -1 -1 -1 -1 -1 -1 -1 closed",
            "+ -1 -2 -3 -4 closed -5 open",
            // Nothing else succeeds: the one token is enough.
            "-1 -1 -1 -1 -1 open",
            "+ -1 -1 31s -1 -1 -1 -1 open",
        ] {
            play(steps).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_under_way_is_the_only_request() {
        let breaker = ProviderBreaker::new(Arc::new(Metrics::new(&Registry::new()).unwrap()));
        for _ in 0..FAILURES {
            breaker.admit(true).unwrap().record(Health::Fails(Blame::Provider, None), "test");
        }
        advance(Duration::from_secs(2)).await;
        let since = breaker.outage().unwrap().1;
        let probe = breaker.admit(true).unwrap();
        assert!(breaker.admit(true).is_none());
        drop(probe);
        breaker.admit(true).unwrap().record(Health::Fails(Blame::Provider, None), "still");
        assert_eq!(breaker.outage(), Some(("still".to_owned(), since)));
        advance(Duration::from_secs(3)).await;
        breaker.admit(true).unwrap().record(Health::Works, "");
        assert_eq!(breaker.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_the_endpoint_has_not_accepted_keep_no_other_from_probing() {
        let breaker = ProviderBreaker::new(Arc::new(Metrics::new(&Registry::new()).unwrap()));
        for _ in 0..FAILURES {
            breaker.admit(true).unwrap().record(Health::Fails(Blame::Provider, None), "test");
        }
        advance(Duration::from_secs(2)).await;
        let made_up = breaker.admit(false).unwrap();
        assert!(breaker.admit(false).is_none(), "one in a pause");
        assert!(!breaker.is_open());
        let accepted = breaker.admit(true).unwrap();
        made_up.record(Health::Unknown, "");
        assert!(breaker.admit(false).is_none() && breaker.admit(true).is_none());
        accepted.record(Health::Works, "");
        assert!(!breaker.is_open());
    }
}
