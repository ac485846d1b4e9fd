//! The breaker: while the endpoint is down, calls are refused here instead of waiting there.
//!
//! Closed → open on so many failures in a row, or on a share of failed calls within a window; open → half-open after a
//! jittered while; half-open → closed or open by one probe. What counts as a failure is said by whoever records it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::metrics::Position;

/// Half of the window that the ratio looks at.
const SLOT: Duration = Duration::from_secs(5);
/// An open breaker stays open for up to this share longer, so that a fleet does not probe in step.
const JITTER: f64 = 0.2;

/// What a call says of the endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It answers.
    Well,
    /// It is down.
    Ill,
    /// It answers, but that says nothing of how it is: a throttled caller, one bad id.
    Unknown,
}

/// The breaker of the one endpoint.
pub(super) struct Breaker {
    config: config::Breaker,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    Closed(Recent),
    Open {
        until: Instant,
    },
    /// Whether the probe is under way.
    HalfOpen {
        probing: bool,
    },
}

/// Recent calls while closed.
#[derive(Clone, Copy)]
struct Recent {
    in_a_row: u32,
    began: Instant,
    current: Slot,
    previous: Slot,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    calls: u32,
    failed: u32,
}

impl Recent {
    fn new(now: Instant) -> Self {
        Self { in_a_row: 0, began: now, current: Slot::default(), previous: Slot::default() }
    }

    fn record(&mut self, failed: bool, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        if elapsed >= SLOT {
            self.previous = if elapsed < 2 * SLOT { self.current } else { Slot::default() };
            self.current = Slot::default();
            self.began = now;
        }
        self.in_a_row = if failed { self.in_a_row.saturating_add(1) } else { 0 };
        self.current.calls = self.current.calls.saturating_add(1);
        self.current.failed = self.current.failed.saturating_add(u32::from(failed));
    }

    fn is_over(&self, config: &config::Breaker) -> bool {
        let calls = self.current.calls.saturating_add(self.previous.calls);
        let failed = self.current.failed.saturating_add(self.previous.failed);
        let share = f64::from(failed) / f64::from(calls.max(1));
        self.in_a_row >= config.consecutive || (calls >= config.min_calls && share >= config.ratio)
    }
}

/// The right to make one call. Dropped with nothing recorded, it gives back a probe.
pub(super) struct Pass<'b> {
    breaker: &'b Breaker,
    probe: bool,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(config: &config::Breaker) -> Self {
        Self { config: config.clone(), state: Mutex::new(State::Closed(Recent::new(Instant::now()))) }
    }

    /// Lets a call through, or says how long to wait.
    ///
    /// # Errors
    /// The time until the next probe may be made, where calls are refused.
    pub(super) fn pass(&self) -> Result<Pass<'_>, Duration> {
        let now = Instant::now();
        let mut state = self.state();
        match *state {
            State::Closed(_) => Ok(Pass { breaker: self, probe: false }),
            State::Open { until } if now < until => Err(until - now),
            State::Open { .. } | State::HalfOpen { probing: false } => {
                *state = State::HalfOpen { probing: true };
                Ok(Pass { breaker: self, probe: true })
            }
            // The probe may take as long as a call may; nobody knows when it is over.
            State::HalfOpen { probing: true } => Err(Duration::from_secs(1)),
        }
    }

    /// How long calls are still refused, without taking the place of a probe.
    pub(super) fn refusal(&self) -> Option<Duration> {
        match *self.state() {
            State::Open { until } => until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()),
            State::Closed(_) | State::HalfOpen { .. } => None,
        }
    }

    /// What it lets through now.
    pub(super) fn position(&self) -> Position {
        match *self.state() {
            State::Closed(_) => Position::Closed,
            State::Open { until } if Instant::now() < until => Position::Open,
            State::Open { .. } | State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, now: Instant) -> State {
        State::Open { until: now + self.config.open.mul_f64(1.0 + JITTER * rand::random::<f64>()) }
    }
}

impl Pass<'_> {
    /// Tells what the call has shown.
    pub(super) fn record(mut self, health: Health) {
        let now = Instant::now();
        let mut state = self.breaker.state();
        if std::mem::take(&mut self.probe) {
            *state = match health {
                Health::Ill => self.breaker.open(now),
                Health::Well | Health::Unknown => State::Closed(Recent::new(now)),
            };
            return;
        }
        // A call that left while it was closed says nothing about what came after.
        if let State::Closed(recent) = &mut *state
            && health != Health::Unknown
        {
            recent.record(health == Health::Ill, now);
            if recent.is_over(&self.breaker.config) {
                *state = self.breaker.open(now);
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            *self.breaker.state() = State::HalfOpen { probing: false };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(&config::Breaker { consecutive: 3, ratio: 0.5, min_calls: 10, open: Duration::from_secs(2) })
    }

    fn record(breaker: &Breaker, health: Health) {
        breaker.pass().expect("refused").record(health);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_one_good_probe_closes_it() {
        let breaker = breaker();
        record(&breaker, Health::Ill);
        record(&breaker, Health::Ill);
        record(&breaker, Health::Well);
        for _ in 0..3 {
            assert_eq!(breaker.position(), Position::Closed);
            record(&breaker, Health::Ill);
        }
        assert_eq!(breaker.position(), Position::Open);
        assert!(breaker.pass().is_err_and(|wait| (2.0..=2.4).contains(&wait.as_secs_f64())));
        advance(Duration::from_millis(2400)).await;
        let probe = breaker.pass().expect("a probe");
        assert!(breaker.pass().is_err(), "one probe at a time");
        probe.record(Health::Ill);
        assert_eq!(breaker.position(), Position::Open);
        advance(Duration::from_millis(2400)).await;
        record(&breaker, Health::Well);
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_failures_opens_it_once_there_were_enough_calls() {
        let breaker = breaker();
        for _ in 0..4 {
            record(&breaker, Health::Ill);
            record(&breaker, Health::Well);
        }
        record(&breaker, Health::Well);
        assert_eq!(breaker.position(), Position::Closed);
        record(&breaker, Health::Ill);
        assert_eq!(breaker.position(), Position::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_long_ago_do_not_count() {
        let breaker = breaker();
        for _ in 0..4 {
            record(&breaker, Health::Ill);
            record(&breaker, Health::Well);
        }
        advance(2 * SLOT).await;
        record(&breaker, Health::Well);
        record(&breaker, Health::Ill);
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_moves_nothing() {
        let breaker = breaker();
        record(&breaker, Health::Ill);
        record(&breaker, Health::Ill);
        for _ in 0..20 {
            record(&breaker, Health::Unknown);
        }
        record(&breaker, Health::Ill);
        assert_eq!(breaker.position(), Position::Open, "nor does it break a row");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = breaker();
        for _ in 0..3 {
            record(&breaker, Health::Ill);
        }
        advance(Duration::from_secs(3)).await;
        drop(breaker.pass());
        record(&breaker, Health::Well);
        assert_eq!(breaker.position(), Position::Closed);
    }
}
