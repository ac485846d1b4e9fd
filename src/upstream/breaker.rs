//! The breaker: while the endpoint is down, calls are refused here instead of waiting there.
//!
//! Closed → open when independent sources fail ([`Evidence`]); open → half-open after a jittered while; half-open → closed or
//! open by a probe. A source that fails while others succeed is refused alone, with a probe of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use super::evidence::Counts;
use super::evidence::{CallOutcome, Evidence, FailureKind, Finding, Source, Suspect};
use crate::config;
use crate::telemetry::metrics::BreakerState;

/// An open breaker stays open for up to this share longer, so that a fleet does not probe in step.
const JITTER: f64 = 0.2;
/// Sources that are refused alone, at most.
const MOST_REFUSED: usize = 1024;
/// How long a source is remembered that does not come back for a probe.
const FORGET: Duration = Duration::from_secs(60);
/// How long a call is told to wait while a probe is under way: nobody knows when it is over.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The breaker of the one endpoint.
pub(super) struct Breaker {
    config: config::Breaker,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    evidence: Evidence,
    /// Sources whose calls are refused, whatever the phase.
    refused: Vec<Refused>,
    /// On what evidence anything was last refused.
    counts: Counts,
    /// Whether only sources are refused, and no other has succeeded since.
    nobody_succeeds: bool,
}

enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { probe: Option<Probe> },
}

/// A probe under way.
struct Probe {
    sent: Instant,
    source: Source,
}

struct Refused {
    suspect: Suspect,
    until: Instant,
    /// Whether a probe for it is under way.
    probing: bool,
}

/// How a breaker stands, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerStatus {
    /// What it lets through.
    pub position: BreakerState,
    /// On what evidence it opened, or refuses sources alone; nothing while it does neither.
    pub counts: Counts,
    /// Sources that are refused alone.
    pub refused: usize,
}

/// The right to make one call. Dropped with nothing recorded, it gives back a probe.
pub(super) struct Permit<'b> {
    breaker: &'b Breaker,
    source: Source,
    /// Whether the call is the phase's probe, and whether it is one for its source.
    probes: [bool; 2],
    recorded: bool,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(config: &config::Breaker) -> Self {
        let state = State {
            phase: Phase::Closed,
            evidence: Evidence::default(),
            refused: Vec::new(),
            counts: Counts::default(),
            nobody_succeeds: false,
        };
        Self { config: config.clone(), state: Mutex::new(state) }
    }

    /// Lets a call of `source` through. A probe that takes longer than `patience` does not keep another source from probing.
    ///
    /// # Errors
    /// The time until the next probe may be made, where calls are refused.
    pub(super) fn admit(&self, source: &Source, patience: Duration) -> Result<Permit<'_>, Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        state.forget(now);
        let refused = state.refused.iter_mut().find(|refused| refused.suspect.is(source));
        if let Some(refused) = &refused
            && let Some(wait) = refused.wait(now)
        {
            return Err(wait);
        }
        let probes_source = refused.is_some();
        let mut overdue = None;
        let probes_phase = match &state.phase {
            Phase::Closed => false,
            Phase::Open { until } if now < *until => return Err(*until - now),
            Phase::HalfOpen { probe: Some(probe) } => {
                let is_overdue = now.duration_since(probe.sent) >= patience;
                // A caller that is not accepted is no reason to keep an accepted one waiting.
                let is_same = Suspect::new(&probe.source).is(source);
                if is_same || (!is_overdue && (probe.source.accepted || !source.accepted)) {
                    return Err(PROBE_WAIT);
                }
                overdue = Some(probe.source.clone()).filter(|_| is_overdue);
                true
            }
            Phase::Open { .. } | Phase::HalfOpen { probe: None } => true,
        };
        if probes_phase {
            state.phase = Phase::HalfOpen { probe: Some(Probe { sent: now, source: source.clone() }) };
        }
        if let Some(refused) = refused {
            refused.probing = true;
        }
        // It shows nothing in time, and takes no turn again before the others.
        if let Some(overdue) = overdue {
            state.refuse(Suspect::new(&overdue), self.reopening(now));
        }
        Ok(Permit { breaker: self, source: source.clone(), probes: [probes_phase, probes_source], recorded: false })
    }

    /// How long calls of `source`, or of anyone, are still refused, without taking the place of a probe.
    pub(super) fn refusal(&self, source: Option<&Source>) -> Option<Duration> {
        let now = Instant::now();
        let state = self.state();
        let open = match state.phase {
            Phase::Open { until } => until.checked_duration_since(now).filter(|left| !left.is_zero()),
            Phase::Closed | Phase::HalfOpen { .. } => None,
        };
        let alone = source.and_then(|source| state.refused.iter().find(|refused| refused.suspect.is(source)));
        open.or_else(|| alone.and_then(|refused| refused.wait(now)))
    }

    /// Whether any call is refused at all.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        matches!(state.phase, Phase::Closed) && state.refused.is_empty()
    }

    /// How it stands. Where one source fails and nobody's calls succeed, the breaker counts as open, although another source
    /// would be let through.
    pub(super) fn status(&self) -> BreakerStatus {
        let now = Instant::now();
        let mut state = self.state();
        state.forget(now);
        let alone = !state.refused.is_empty() && state.nobody_succeeds;
        let position = match state.phase {
            Phase::Open { until } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
            Phase::Closed if alone && state.refused.iter().any(|refused| refused.wait(now).is_some()) => {
                BreakerState::Open
            }
            Phase::Closed if alone => BreakerState::HalfOpen,
            Phase::Closed => BreakerState::Closed,
        };
        let idle = position == BreakerState::Closed && state.refused.is_empty();
        let counts = if idle { Counts::default() } else { state.counts };
        BreakerStatus { position, counts, refused: state.refused.len() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopening(&self, now: Instant) -> Instant {
        now + self.config.open.mul_f64(1.0 + JITTER * rand::random::<f64>())
    }
}

impl Refused {
    /// How long its calls have to wait.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        if left.is_zero() { self.probing.then_some(PROBE_WAIT) } else { Some(left) }
    }
}

impl State {
    /// Acts on what failures show.
    fn act(&mut self, finding: Finding, until: Instant) {
        self.counts = finding.counts;
        self.nobody_succeeds |= finding.nobody_succeeds;
        if finding.is_endpoint {
            self.phase = Phase::Open { until };
        }
        for suspect in finding.suspects {
            self.refuse(suspect, until);
        }
        self.evidence.forget_failures();
    }

    fn refuse(&mut self, suspect: Suspect, until: Instant) {
        match self.refused.iter_mut().find(|refused| refused.suspect.caller == suspect.caller) {
            Some(refused) => {
                for set in &suspect.sets {
                    refused.suspect.add(&set.iter().copied().collect::<Vec<_>>());
                }
                refused.suspect.all |= suspect.all;
                (refused.until, refused.probing) = (until, false);
            }
            None => {
                if self.refused.len() >= MOST_REFUSED {
                    self.refused.remove(0);
                }
                self.refused.push(Refused { suspect, until, probing: false });
            }
        }
    }

    /// Forgets sources that have not come back.
    fn forget(&mut self, now: Instant) {
        self.refused.retain(|refused| now < refused.until + FORGET);
        self.nobody_succeeds &= !self.refused.is_empty();
    }

    /// Whether a failed probe of `source` is no news: others' calls may still succeed. It says nothing of the endpoint that its
    /// caller was never accepted, or that its ids have failed before.
    fn says_nothing(&self, source: &Source) -> bool {
        !source.accepted || self.refused.iter().any(|refused| refused.suspect.has_any(&source.ids))
    }
}

impl Permit<'_> {
    /// Whether the call is to show that the endpoint is up again: on a new connection, or it shows nothing.
    pub(super) fn is_probe(&self) -> bool {
        self.probes.contains(&true)
    }

    /// Tells what the call has shown. Whether the breaker has opened by it.
    pub(super) fn record(mut self, outcome: CallOutcome) -> bool {
        self.recorded = true;
        let [probes_phase, probes_source] = self.probes;
        let now = Instant::now();
        let until = self.breaker.reopening(now);
        let mut state = self.breaker.state();
        let source = &self.source;
        match outcome {
            CallOutcome::Success => {
                state.evidence.add(source, None, now);
                state.nobody_succeeds = false;
                state.refused.retain(|refused| !refused.suspect.is(source));
                if probes_phase {
                    state.phase = Phase::Closed;
                    state.refused.clear();
                }
                false
            }
            CallOutcome::Neutral => {
                state.release(self.probes, source);
                false
            }
            CallOutcome::Failure(kind) => {
                state.evidence.add(source, Some(kind), now);
                let says_nothing = kind != FailureKind::Connect && (probes_source || state.says_nothing(source));
                if probes_source {
                    state.refuse(Suspect::new(source), until);
                }
                match state.phase {
                    Phase::HalfOpen { .. } if probes_phase => {
                        // The next source may probe at once where this one shows nothing.
                        state.phase =
                            if says_nothing { Phase::HalfOpen { probe: None } } else { Phase::Open { until } };
                        state.refuse(Suspect::new(source), until);
                    }
                    Phase::Closed => {
                        if let Some(finding) = state.evidence.judge(source, &self.breaker.config) {
                            let opens = finding.is_endpoint;
                            state.act(finding, until);
                            return opens;
                        }
                    }
                    // A call that left while it was closed says nothing about what came after.
                    Phase::Open { .. } | Phase::HalfOpen { .. } => {}
                }
                false
            }
        }
    }
}

impl State {
    /// Makes room for another probe.
    fn release(&mut self, [phase, source_alone]: [bool; 2], source: &Source) {
        if phase && let Phase::HalfOpen { probe } = &mut self.phase {
            *probe = None;
        }
        if source_alone && let Some(refused) = self.refused.iter_mut().find(|refused| refused.suspect.is(source)) {
            refused.probing = false;
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.recorded && self.is_probe() {
            self.breaker.state().release(self.probes, &self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::auth::Caller;

    const PATIENCE: Duration = Duration::from_millis(100);
    const BAD: CallOutcome = CallOutcome::Failure(FailureKind::Answer);

    fn breaker() -> Breaker {
        Breaker::new(&config::Breaker { consecutive: 3, ratio: 0.5, min_calls: 10, open: Duration::from_secs(2) })
    }

    fn source(caller: u128, ids: &[u64]) -> Source {
        Source { caller: Caller::of_test(caller), accepted: true, ids: ids.into() }
    }

    fn admit(breaker: &Breaker, caller: u128) -> Result<Permit<'_>, Duration> {
        breaker.admit(&source(caller, &[u64::try_from(caller).unwrap()]), PATIENCE)
    }

    fn record(breaker: &Breaker, caller: u128, outcome: CallOutcome) {
        admit(breaker, caller).expect("refused").record(outcome);
    }

    /// Opens it by three callers.
    fn open(breaker: &Breaker) {
        for caller in 1..=3 {
            record(breaker, caller, BAD);
        }
        assert_eq!(breaker.status().position, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_several_sources_open_it_and_one_good_probe_closes_it() {
        let breaker = breaker();
        record(&breaker, 1, BAD);
        record(&breaker, 2, BAD);
        record(&breaker, 3, CallOutcome::Success);
        assert_eq!(breaker.status().position, BreakerState::Closed);
        open(&breaker);
        let counts = breaker.status().counts;
        assert_eq!((counts.callers, counts.id_sets, counts.answer), (3, 3, 3));
        assert!(admit(&breaker, 9).is_err_and(|wait| (2.0..=2.4).contains(&wait.as_secs_f64())));
        advance(Duration::from_millis(2400)).await;
        let probe = admit(&breaker, 9).expect("a probe");
        assert!(probe.is_probe());
        assert!(admit(&breaker, 8).is_err(), "one probe at a time");
        probe.record(BAD);
        assert_eq!(breaker.status().position, BreakerState::Open);
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 1, CallOutcome::Success);
        assert_eq!(
            breaker.status(),
            BreakerStatus { position: BreakerState::Closed, counts: Counts::default(), refused: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_alone_is_refused_alone() {
        let breaker = breaker();
        record(&breaker, 9, CallOutcome::Success);
        for _ in 0..3 {
            record(&breaker, 1, BAD);
        }
        assert_eq!(breaker.status().position, BreakerState::Closed);
        assert_eq!(breaker.status().refused, 1);
        assert!(admit(&breaker, 1).is_err());
        assert!(!admit(&breaker, 2).expect("others pass").is_probe());
        assert!(breaker.admit(&source(1, &[77]), PATIENCE).is_ok(), "and so do its other ids");
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 1, CallOutcome::Success);
        assert_eq!(breaker.status().refused, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_while_nobody_succeeds_shows_as_open_and_another_is_let_through() {
        let breaker = breaker();
        for _ in 0..3 {
            record(&breaker, 1, BAD);
        }
        assert_eq!(breaker.status().position, BreakerState::Open);
        assert!(admit(&breaker, 1).is_err());
        record(&breaker, 2, CallOutcome::Success);
        assert_eq!(breaker.status().position, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_fails_with_several_ids_is_refused_whatever_it_asks_for() {
        let breaker = breaker();
        for id in 0..3 {
            breaker.admit(&source(1, &[id]), PATIENCE).unwrap().record(BAD);
        }
        assert!(breaker.admit(&source(1, &[99]), PATIENCE).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_of_a_source_that_is_known_to_fail_lets_the_next_source_probe() {
        let breaker = breaker();
        open(&breaker);
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 1, BAD);
        assert!(admit(&breaker, 1).is_err());
        record(&breaker, 9, CallOutcome::Success);
        assert_eq!(breaker.status().position, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_does_not_keep_another_source_from_probing() {
        let breaker = breaker();
        open(&breaker);
        advance(Duration::from_millis(2400)).await;
        let _hanging = admit(&breaker, 1).expect("a probe");
        advance(PATIENCE).await;
        assert!(admit(&breaker, 1).is_err(), "nor takes its source another turn");
        let other = admit(&breaker, 9).expect("another source's probe");
        advance(PATIENCE).await;
        assert!(admit(&breaker, 1).is_err(), "before the others");
        other.record(CallOutcome::Success);
        assert_eq!(breaker.status().position, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_say_nothing_neither_open_nor_close_it() {
        let breaker = breaker();
        record(&breaker, 1, BAD);
        record(&breaker, 2, BAD);
        for caller in 10..30 {
            record(&breaker, caller, CallOutcome::Neutral);
        }
        record(&breaker, 3, BAD);
        assert_eq!(breaker.status().position, BreakerState::Open, "nor do they break a row");
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 9, CallOutcome::Neutral);
        assert_eq!(breaker.status().position, BreakerState::HalfOpen, "a refused token is no sign of health");
        assert!(admit(&breaker, 9).expect("the next call").is_probe());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = breaker();
        open(&breaker);
        advance(Duration::from_secs(3)).await;
        drop(admit(&breaker, 9));
        record(&breaker, 9, CallOutcome::Success);
        assert_eq!(breaker.status().position, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_long_ago_do_not_count() {
        let breaker = breaker();
        record(&breaker, 1, BAD);
        record(&breaker, 2, BAD);
        advance(Duration::from_secs(10)).await;
        record(&breaker, 3, BAD);
        assert_eq!(breaker.status().position, BreakerState::Closed);
    }
}
