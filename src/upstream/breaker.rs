//! The breaker: refuses calls while the endpoint is down, so that they do not wait there.
//!
//! Closed → open when independent sources fail ([`Evidence`]); open → half-open after a jittered time; half-open → closed or
//! open by a probe. A source that fails while others succeed is refused alone, with a probe of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::evidence::{CallOutcome, Counts, Evidence, FailureKind, Finding, Source, Suspect};
use crate::config;
use crate::telemetry::metrics::BreakerState;

/// An open breaker stays open for up to this share longer, so that a fleet does not probe at the same time.
const JITTER: f64 = 0.2;
/// Most sources that are refused alone.
const MAX_REFUSED: usize = 1024;
/// How long a source is remembered that does not come back for a probe.
const FORGET: Duration = Duration::from_secs(60);
/// How long a call is told to wait while a probe is under way, whose end is not known.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The breaker of the one endpoint.
pub(super) struct Breaker {
    config: config::Breaker,
    circuit: Mutex<Circuit>,
}

#[derive(Default)]
struct Circuit {
    phase: Phase,
    evidence: Evidence,
    /// Sources whose calls are refused in any phase.
    refused: Vec<RefusedSource>,
    /// The evidence of the last refusal.
    counts: Counts,
    /// Whether no source has succeeded since one was refused.
    nobody_succeeds: bool,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        probe: Option<Probe>,
    },
}

/// A probe under way.
struct Probe {
    sent: Instant,
    source: Source,
}

struct RefusedSource {
    suspect: Suspect,
    until: Instant,
    /// Whether a probe for it is under way.
    is_probing: bool,
}

/// The state of a breaker, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerStatus {
    /// What it lets through.
    pub state: BreakerState,
    /// The evidence by which it opened, or refuses sources alone; zero while it does neither.
    pub counts: Counts,
    /// Sources that are refused alone.
    pub refused: usize,
}

/// The right to make one call. Dropped without a recorded outcome, it lets another call probe.
pub(super) struct Permit<'b> {
    breaker: &'b Breaker,
    source: Source,
    /// The call probes the endpoint for everyone.
    probes_endpoint: bool,
    /// The call probes for its source, which is refused alone.
    probes_source: bool,
    is_recorded: bool,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(config: &config::Breaker) -> Self {
        Self { config: config.clone(), circuit: Mutex::default() }
    }

    /// Lets a call of `source` through. A probe that takes longer than `patience` does not keep another source from probing.
    ///
    /// # Errors
    /// The time until the next probe may be made, where calls are refused.
    pub(super) fn admit(&self, source: &Source, patience: Duration) -> Result<Permit<'_>, Duration> {
        let now = Instant::now();
        let mut circuit = self.circuit();
        circuit.forget(now);
        let circuit = &mut *circuit;
        let refused = circuit.refused.iter_mut().find(|refused| refused.suspect.matches(source));
        if let Some(wait) = refused.as_ref().and_then(|refused| refused.wait(now)) {
            return Err(wait);
        }
        let mut overdue = None;
        let probes_endpoint = match &circuit.phase {
            Phase::Closed => false,
            Phase::Open { until } if now < *until => return Err(*until - now),
            Phase::HalfOpen { probe: Some(probe) } => {
                let is_overdue = now.duration_since(probe.sent) >= patience;
                // The probe of a caller that is not accepted does not keep an accepted caller waiting.
                let goes_first = probe.source.accepted || !source.accepted;
                if Suspect::new(&probe.source).matches(source) || (!is_overdue && goes_first) {
                    return Err(PROBE_WAIT);
                }
                overdue = Some(probe.source.clone()).filter(|_| is_overdue);
                true
            }
            Phase::Open { .. } | Phase::HalfOpen { probe: None } => true,
        };
        if probes_endpoint {
            circuit.phase = Phase::HalfOpen { probe: Some(Probe { sent: now, source: source.clone() }) };
        }
        let probes_source = refused.map(|refused| refused.is_probing = true).is_some();
        // The overdue probe shows nothing in time; its source probes again only after the others.
        if let Some(overdue) = overdue {
            circuit.refuse(Suspect::new(&overdue), self.reopening(now));
        }
        Ok(Permit { breaker: self, source: source.clone(), probes_endpoint, probes_source, is_recorded: false })
    }

    /// How long calls of `source`, or of anyone, are still refused. Takes no probe.
    pub(super) fn refusal(&self, source: Option<&Source>) -> Option<Duration> {
        let now = Instant::now();
        let circuit = self.circuit();
        let open = match circuit.phase {
            Phase::Open { until } => until.checked_duration_since(now).filter(|left| !left.is_zero()),
            Phase::Closed | Phase::HalfOpen { .. } => None,
        };
        let alone = || {
            let source = source?;
            circuit.refused.iter().find(|refused| refused.suspect.matches(source))?.wait(now)
        };
        open.or_else(alone)
    }

    /// Whether no call at all is refused.
    pub(super) fn is_idle(&self) -> bool {
        let circuit = self.circuit();
        matches!(circuit.phase, Phase::Closed) && circuit.refused.is_empty()
    }

    /// Its state. Where one source fails and nobody succeeds, the breaker counts as open, although it lets another source through.
    pub(super) fn status(&self) -> BreakerStatus {
        let now = Instant::now();
        let mut circuit = self.circuit();
        circuit.forget(now);
        let state = match circuit.phase {
            Phase::Open { until } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
            Phase::Closed if !circuit.nobody_succeeds => BreakerState::Closed,
            Phase::Closed if circuit.refused.iter().any(|refused| refused.wait(now).is_some()) => BreakerState::Open,
            Phase::Closed => BreakerState::HalfOpen,
        };
        let is_idle = state == BreakerState::Closed && circuit.refused.is_empty();
        let counts = if is_idle { Counts::default() } else { circuit.counts };
        BreakerStatus { state, counts, refused: circuit.refused.len() }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopening(&self, now: Instant) -> Instant {
        now + self.config.open.mul_f64(1.0 + JITTER * rand::random::<f64>())
    }
}

impl RefusedSource {
    /// How long its calls have to wait.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        if left.is_zero() { self.is_probing.then_some(PROBE_WAIT) } else { Some(left) }
    }
}

impl Circuit {
    /// Acts on a finding. Whether that opens the breaker.
    fn act(&mut self, finding: Finding, until: Instant) -> bool {
        self.counts = finding.counts;
        self.nobody_succeeds |= finding.nobody_succeeds;
        if finding.is_endpoint {
            self.phase = Phase::Open { until };
        }
        for suspect in finding.suspects {
            self.refuse(suspect, until);
        }
        self.evidence.forget_failures();
        finding.is_endpoint
    }

    fn refuse(&mut self, suspect: Suspect, until: Instant) {
        if let Some(refused) = self.refused.iter_mut().find(|refused| refused.suspect.caller == suspect.caller) {
            refused.suspect.merge(suspect);
            (refused.until, refused.is_probing) = (until, false);
            return;
        }
        if self.refused.len() >= MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(RefusedSource { suspect, until, is_probing: false });
    }

    /// Forgets sources that have not come back.
    fn forget(&mut self, now: Instant) {
        self.refused.retain(|refused| now < refused.until + FORGET);
        self.nobody_succeeds &= !self.refused.is_empty();
    }

    /// Whether a failed probe of `source` shows nothing, so that others' calls may still succeed: its caller was never accepted, or
    /// its ids have failed before.
    fn is_known_to_fail(&self, source: &Source) -> bool {
        !source.accepted || self.refused.iter().any(|refused| refused.suspect.has_any(&source.ids))
    }

    /// Lets another call probe.
    fn release(&mut self, permit: &Permit<'_>) {
        if permit.probes_endpoint
            && let Phase::HalfOpen { probe } = &mut self.phase
        {
            *probe = None;
        }
        let mut refused = self.refused.iter_mut().filter(|_| permit.probes_source);
        if let Some(refused) = refused.find(|refused| refused.suspect.matches(&permit.source)) {
            refused.is_probing = false;
        }
    }
}

impl Permit<'_> {
    /// Whether the call shows that the endpoint is up again. It needs a new connection, or it shows nothing.
    pub(super) fn is_probe(&self) -> bool {
        self.probes_endpoint || self.probes_source
    }

    /// Records what the call has shown. Whether the breaker opens by it.
    pub(super) fn record(mut self, outcome: CallOutcome) -> bool {
        self.is_recorded = true;
        let now = Instant::now();
        let until = self.breaker.reopening(now);
        let mut circuit = self.breaker.circuit();
        let source = &self.source;
        match outcome {
            CallOutcome::Success => {
                circuit.evidence.add(source, None, now);
                circuit.nobody_succeeds = false;
                circuit.refused.retain(|refused| !self.probes_endpoint && !refused.suspect.matches(source));
                if self.probes_endpoint {
                    circuit.phase = Phase::Closed;
                }
            }
            CallOutcome::Neutral => circuit.release(&self),
            CallOutcome::Failure(kind) => {
                circuit.evidence.add(source, Some(kind), now);
                let shows_nothing =
                    kind != FailureKind::Connect && (self.probes_source || circuit.is_known_to_fail(source));
                if self.probes_source {
                    circuit.refuse(Suspect::new(source), until);
                }
                match circuit.phase {
                    Phase::HalfOpen { .. } if self.probes_endpoint => {
                        // Where this probe shows nothing, the next source may probe at once.
                        circuit.phase =
                            if shows_nothing { Phase::HalfOpen { probe: None } } else { Phase::Open { until } };
                        circuit.refuse(Suspect::new(source), until);
                    }
                    Phase::Closed => {
                        let finding = circuit.evidence.judge(source, &self.breaker.config);
                        return finding.is_some_and(|finding| circuit.act(finding, until));
                    }
                    // A call that was sent while the breaker was closed says nothing about the time since.
                    Phase::Open { .. } | Phase::HalfOpen { .. } => {}
                }
            }
        }
        false
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.is_recorded && self.is_probe() {
            self.breaker.circuit().release(self);
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
        assert_eq!(breaker.status().state, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_several_sources_open_it_and_one_good_probe_closes_it() {
        let breaker = breaker();
        record(&breaker, 1, BAD);
        record(&breaker, 2, BAD);
        record(&breaker, 3, CallOutcome::Success);
        assert_eq!(breaker.status().state, BreakerState::Closed);
        open(&breaker);
        let counts = breaker.status().counts;
        assert_eq!((counts.callers, counts.id_sets, counts.answer), (3, 3, 3));
        assert!(admit(&breaker, 9).is_err_and(|wait| (2.0..=2.4).contains(&wait.as_secs_f64())));
        advance(Duration::from_millis(2400)).await;
        let probe = admit(&breaker, 9).expect("a probe");
        assert!(probe.is_probe());
        assert!(admit(&breaker, 8).is_err(), "one probe at a time");
        probe.record(BAD);
        assert_eq!(breaker.status().state, BreakerState::Open);
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 1, CallOutcome::Success);
        assert_eq!(
            breaker.status(),
            BreakerStatus { state: BreakerState::Closed, counts: Counts::default(), refused: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_alone_is_refused_alone() {
        let breaker = breaker();
        record(&breaker, 9, CallOutcome::Success);
        for _ in 0..3 {
            record(&breaker, 1, BAD);
        }
        assert_eq!(breaker.status().state, BreakerState::Closed);
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
        assert_eq!(breaker.status().state, BreakerState::Open);
        assert!(admit(&breaker, 1).is_err());
        record(&breaker, 2, CallOutcome::Success);
        assert_eq!(breaker.status().state, BreakerState::Closed);
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
        assert_eq!(breaker.status().state, BreakerState::Closed);
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
        assert_eq!(breaker.status().state, BreakerState::Closed);
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
        assert_eq!(breaker.status().state, BreakerState::Open, "nor do they break a row");
        advance(Duration::from_millis(2400)).await;
        record(&breaker, 9, CallOutcome::Neutral);
        assert_eq!(breaker.status().state, BreakerState::HalfOpen, "a refused token is no sign of health");
        assert!(admit(&breaker, 9).expect("the next call").is_probe());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = breaker();
        open(&breaker);
        advance(Duration::from_secs(3)).await;
        drop(admit(&breaker, 9));
        record(&breaker, 9, CallOutcome::Success);
        assert_eq!(breaker.status().state, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_long_ago_do_not_count() {
        let breaker = breaker();
        record(&breaker, 1, BAD);
        record(&breaker, 2, BAD);
        advance(Duration::from_secs(10)).await;
        record(&breaker, 3, BAD);
        assert_eq!(breaker.status().state, BreakerState::Closed);
    }
}
