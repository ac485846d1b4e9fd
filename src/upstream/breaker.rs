//! The breaker: refuses calls while the endpoint is down, so that they do not wait there.
//!
//! Closed → open when independent sources fail ([`Evidence`]); open → half-open after a jittered time; half-open → closed or
//! open by a probe. A source that fails while others succeed is refused alone, with a probe of its own.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::evidence::{CallOutcome, CallSource, Counts, Evidence, FailureKind, Finding, Suspect};
use crate::config::BreakerConfig;
use crate::telemetry::metrics::BreakerState;

/// An open breaker stays open for up to this share longer, so that a fleet does not probe at the same time.
const JITTER: f64 = 0.2;
/// Most sources that are refused alone.
const MAX_REFUSED: usize = 1024;
/// A refused source that makes no call for this long after its time is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// The wait that is announced while a probe is under way, since nobody knows when that ends.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The breaker of the one endpoint.
pub(super) struct Breaker {
    config: BreakerConfig,
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
        /// The call under way that probes, and when it was sent.
        probe: Option<(Instant, CallSource)>,
    },
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
    /// Closed, open or half-open.
    pub state: BreakerState,
    /// The evidence by which it opened, or refuses sources alone; zero while it does neither.
    pub counts: Counts,
    /// Sources that are refused alone.
    pub refused: usize,
}

/// The right to make one call. Dropped without a recorded outcome, it lets another call probe.
pub(super) struct Admission<'b> {
    breaker: &'b Breaker,
    source: CallSource,
    /// The call probes the endpoint for everyone.
    probes_endpoint: bool,
    /// The call probes for its source, which is refused alone.
    probes_source: bool,
    is_recorded: bool,
}

impl Breaker {
    /// A closed breaker.
    pub(super) fn new(config: &BreakerConfig) -> Self {
        Self { config: config.clone(), circuit: Mutex::default() }
    }

    /// Lets a call of `source` through. A probe that takes longer than `patience` does not keep another source from probing.
    ///
    /// # Errors
    /// Calls are refused: the time until the next probe may be made.
    pub(super) fn admit(&self, source: &CallSource, patience: Duration) -> Result<Admission<'_>, Duration> {
        let now = Instant::now();
        let mut circuit = self.circuit.lock();
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
            Phase::HalfOpen { probe: Some((sent, probing)) } => {
                let is_overdue = now.duration_since(*sent) >= patience;
                // The probe of a caller that is not accepted does not keep an accepted caller waiting.
                let goes_first = probing.accepted || !source.accepted;
                if Suspect::new(probing).matches(source) || (!is_overdue && goes_first) {
                    return Err(PROBE_WAIT);
                }
                overdue = is_overdue.then(|| probing.clone());
                true
            }
            Phase::Open { .. } | Phase::HalfOpen { probe: None } => true,
        };
        if probes_endpoint {
            circuit.phase = Phase::HalfOpen { probe: Some((now, source.clone())) };
        }
        let probes_source = refused.map(|refused| refused.is_probing = true).is_some();
        // The overdue probe has shown nothing in time. Its source probes again only after the others.
        if let Some(overdue) = overdue {
            circuit.refuse(Suspect::new(&overdue), self.reopening(now));
        }
        Ok(Admission { breaker: self, source: source.clone(), probes_endpoint, probes_source, is_recorded: false })
    }

    /// The time for which calls of `source` are still refused, or without a source those of all callers. Takes no probe. Calls
    /// `source` only if some source is refused alone.
    pub(super) fn wait(&self, source: impl FnOnce() -> Option<CallSource>) -> Option<Duration> {
        let now = Instant::now();
        let circuit = self.circuit.lock();
        match circuit.phase {
            Phase::Open { until } if now < until => return Some(until - now),
            _ if circuit.refused.is_empty() => return None,
            _ => {}
        }
        let source = source()?;
        circuit.refused.iter().find(|refused| refused.suspect.matches(&source))?.wait(now)
    }

    /// Its state. Where one source fails and nobody succeeds, the breaker counts as open, although it lets another source through.
    pub(super) fn status(&self) -> BreakerStatus {
        let now = Instant::now();
        let mut circuit = self.circuit.lock();
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

    fn reopening(&self, now: Instant) -> Instant {
        now + self.config.open.mul_f64(1.0 + JITTER * rand::random::<f64>())
    }
}

impl RefusedSource {
    /// The time for which its calls are still refused.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        if left.is_zero() { self.is_probing.then_some(PROBE_WAIT) } else { Some(left) }
    }
}

impl Circuit {
    /// Acts on a finding. Returns whether this opens the breaker.
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
    fn is_known_to_fail(&self, source: &CallSource) -> bool {
        !source.accepted || self.refused.iter().any(|refused| refused.suspect.has_any(&source.ids))
    }

    /// Lets another call probe.
    fn release(&mut self, admission: &Admission<'_>) {
        if admission.probes_endpoint
            && let Phase::HalfOpen { probe } = &mut self.phase
        {
            *probe = None;
        }
        let mut refused = self.refused.iter_mut().filter(|_| admission.probes_source);
        if let Some(refused) = refused.find(|refused| refused.suspect.matches(&admission.source)) {
            refused.is_probing = false;
        }
    }
}

impl Admission<'_> {
    /// Whether the call is a probe, which needs a new connection: an old one shows nothing.
    pub(super) fn is_probe(&self) -> bool {
        self.probes_endpoint || self.probes_source
    }

    /// Records what the call has shown. Returns whether this opens the breaker.
    pub(super) fn record(mut self, outcome: CallOutcome) -> bool {
        self.is_recorded = true;
        let now = Instant::now();
        let until = self.breaker.reopening(now);
        let mut circuit = self.breaker.circuit.lock();
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

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.is_recorded && self.is_probe() {
            self.breaker.circuit.lock().release(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::auth::Caller;

    const PATIENCE: Duration = Duration::from_millis(100);
    /// Longer than the breaker stays open.
    const WAIT: Duration = Duration::from_millis(2400);

    fn breaker() -> Breaker {
        Breaker::new(&BreakerConfig { consecutive: 3, ratio: 0.5, min_calls: 10, open: Duration::from_secs(2) })
    }

    fn admit(breaker: &Breaker, caller: u64, id: u64) -> Result<Admission<'_>, Duration> {
        let source = CallSource { caller: Caller::of_test(caller.into()), accepted: true, ids: [id].into() };
        breaker.admit(&source, PATIENCE)
    }

    /// Steps separated by space. `+1`, `-1`, `?1`, `=1`: a call of caller 1 for id 1 succeeds, fails, says nothing, or is given up;
    /// `!1`: it is refused. `*`: the call is a probe; `1/7`: it is for id 7. `wait`: the breaker's time is over. Else: the state.
    async fn play(breaker: &Breaker, steps: &str) {
        for step in steps.split(' ') {
            if step == "wait" {
                advance(WAIT).await;
                continue;
            }
            let (kind, call) = step.split_at(1);
            let probes = call.ends_with('*');
            let (caller, id) = call.trim_end_matches('*').split_once('/').unwrap_or((call.trim_end_matches('*'), ""));
            let Ok(caller) = caller.parse() else {
                assert_eq!(breaker.status().state.name(), step, "in {steps}");
                continue;
            };
            let admission = admit(breaker, caller, id.parse().unwrap_or(caller));
            assert_eq!(admission.is_err(), kind == "!", "{step} in {steps}");
            let Ok(admission) = admission else { continue };
            assert_eq!(admission.is_probe(), probes, "{step} in {steps}");
            match kind {
                "+" => drop(admission.record(CallOutcome::Success)),
                "-" => drop(admission.record(CallOutcome::Failure(FailureKind::Answer))),
                "?" => drop(admission.record(CallOutcome::Neutral)),
                _ => drop(admission),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_and_closes_by_what_sources_show() {
        let neutral = "-1 -2 ?10 ?11 ?12 ?13 ?14 ?15 ?16 ?17 ?18 ?19 -3 open wait ?9* half_open ?9*";
        for (case, steps, refused) in [
            (
                "several sources fail, and one good probe closes it",
                "-1 -2 +3 closed -1 -2 -3 open !9 wait -9* open wait +1* closed",
                0,
            ),
            ("a source that fails alone is refused alone", "+9 -1 -1 -1 closed !1 +2 +1/77", 1),
            ("until its probe succeeds", "+9 -1 -1 -1 closed !1 wait +1*", 0),
            ("where nobody succeeds it shows as open, and another is let through", "-1 -1 -1 open !1 +2 closed", 1),
            ("a caller that fails with several ids is refused whatever it asks for", "-1/0 -1/1 -1/2 !1/99", 1),
            (
                "a probe of a known source shows nothing, and the next may probe",
                "-1 -2 -3 open wait -1* !1 +9* closed",
                0,
            ),
            ("neutral answers neither open nor close it, nor break a row", neutral, 3),
            ("a probe that is given up makes room for another", "-1 -2 -3 wait =9* +9* closed", 0),
            ("failures of long ago do not count", "-1 -2 wait wait wait wait wait -3 closed", 0),
        ] {
            let breaker = breaker();
            play(&breaker, steps).await;
            assert_eq!(breaker.status().refused, refused, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_shows_its_evidence_while_it_is_open_and_lets_one_probe_through_at_a_time() {
        let breaker = breaker();
        play(&breaker, "-1 -2 -3 open").await;
        let counts = breaker.status().counts;
        assert_eq!((counts.callers, counts.id_sets, counts.answer), (3, 3, 3));
        assert!(admit(&breaker, 9, 9).is_err_and(|wait| (2.0..=2.4).contains(&wait.as_secs_f64())));
        advance(WAIT).await;
        let probe = admit(&breaker, 9, 9).expect("a probe");
        play(&breaker, "!8").await;
        probe.record(CallOutcome::Success);
        let closed = BreakerStatus { state: BreakerState::Closed, counts: Counts::default(), refused: 0 };
        assert_eq!(breaker.status(), closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_does_not_keep_another_source_from_probing() {
        let breaker = breaker();
        play(&breaker, "-1 -2 -3 open wait").await;
        let _hanging = admit(&breaker, 1, 1).expect("a probe");
        advance(PATIENCE).await;
        assert!(admit(&breaker, 1, 1).is_err(), "nor takes its source another turn");
        let other = admit(&breaker, 9, 9).expect("another source's probe");
        advance(PATIENCE).await;
        play(&breaker, "!1").await;
        other.record(CallOutcome::Success);
        play(&breaker, "closed").await;
    }
}
