//! Latency of calls, and the fair time that follows from it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::millis;

/// Calls that are remembered.
const RECENT: usize = 128;
/// No call is expected to be answered sooner.
const LEAST: Duration = Duration::from_millis(100);

/// Durations of the last calls that succeeded.
#[derive(Default)]
pub(super) struct Latency {
    /// In milliseconds, newest last.
    recent: Mutex<VecDeque<u64>>,
    p99: AtomicU64,
}

impl Latency {
    /// A call succeeded after `duration`.
    pub(super) fn observe(&self, duration: Duration) {
        let mut recent = self.recent.lock();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(millis(duration));
        let mut sorted: Vec<u64> = recent.iter().copied().collect();
        let rank = (sorted.len() * 99).div_ceil(100) - 1;
        let (_, p99, _) = sorted.select_nth_unstable(rank);
        self.p99.store(*p99, Ordering::Relaxed);
    }

    /// The time that a call needs to have a fair chance: the 99th percentile of recent calls, at least 100 ms, at most half of
    /// `deadline`.
    pub(super) fn fair(&self, deadline: Duration) -> Duration {
        Duration::from_millis(self.p99.load(Ordering::Relaxed)).max(LEAST).min(deadline / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fair_time_is_the_99th_percentile_within_its_bounds() {
        let latency = Latency::default();
        let deadline = Duration::from_secs(10);
        assert_eq!(latency.fair(deadline), LEAST);
        assert_eq!(latency.fair(Duration::from_millis(80)), Duration::from_millis(40));
        for call in 0..RECENT as u64 {
            latency.observe(Duration::from_millis(1000 + call));
        }
        assert_eq!(latency.fair(deadline), Duration::from_millis(1126));
        latency.observe(Duration::from_secs(60));
        latency.observe(Duration::from_secs(60));
        assert_eq!(latency.fair(deadline), deadline / 2);
        for _ in 0..RECENT {
            latency.observe(Duration::from_millis(5));
        }
        assert_eq!(latency.fair(deadline), LEAST);
    }
}
