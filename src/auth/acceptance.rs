//! When the endpoint has accepted a caller.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Moment;

/// The last acceptance by the endpoint, which an invalidation ends. Updates are serialized, so that a concurrent acceptance cannot undo an
/// invalidation.
pub(super) struct Acceptance {
    updates: Mutex<()>,
    /// Send time of the last call that the endpoint accepted, on both clocks; `u64::MAX`: never.
    accepted: [AtomicU64; 2],
    /// Unix milliseconds of the last invalidation: an acceptance elsewhere must be later.
    invalidated: AtomicU64,
}

impl Default for Acceptance {
    fn default() -> Self {
        let never = || AtomicU64::new(u64::MAX);
        Self { updates: Mutex::new(()), accepted: [never(), never()], invalidated: AtomicU64::new(0) }
    }
}

impl Acceptance {
    /// Records the acceptance of a call sent at `sent` if `condition` holds; returns whether it does. No invalidation comes
    /// in between.
    pub(super) fn accept_if(&self, sent: Moment, condition: impl FnOnce() -> bool) -> bool {
        let _updates = self.updates.lock();
        let accepts = condition();
        if accepts {
            let [monotonic, wall] = &self.accepted;
            monotonic.store(sent.monotonic, Ordering::Relaxed);
            wall.store(sent.wall, Ordering::Relaxed);
        }
        accepts
    }

    /// Applies an acceptance by another sidecar, or of another caller, in a call sent at `sent`; false if it is older than what is known
    /// here.
    pub(super) fn accept_elsewhere(&self, sent: Moment) -> bool {
        let [_, wall] = &self.accepted;
        self.accept_if(sent, || {
            let known = wall.load(Ordering::Relaxed);
            let newer = known == u64::MAX || known < sent.wall;
            newer && sent.wall > self.invalidated.load(Ordering::Acquire)
        })
    }

    /// Ends it. `then` happens before any further acceptance.
    pub(super) fn invalidate(&self, now: Moment, then: impl FnOnce()) {
        let _updates = self.updates.lock();
        self.invalidated.fetch_max(now.wall, Ordering::AcqRel);
        then();
        for clock in &self.accepted {
            clock.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Whether there is one.
    pub(super) fn is_known(&self) -> bool {
        let [monotonic, _] = &self.accepted;
        monotonic.load(Ordering::Relaxed) != u64::MAX
    }

    /// Milliseconds until it is older than `span`; `None` once it is.
    pub(super) fn left(&self, span: u64, now: Moment) -> Option<u64> {
        let [monotonic, wall] = &self.accepted;
        let at = Moment { monotonic: monotonic.load(Ordering::Relaxed), wall: wall.load(Ordering::Relaxed) };
        let is_known = at.monotonic != u64::MAX && at.wall != u64::MAX;
        is_known.then(|| span.checked_sub(now.since(at)).filter(|left| *left > 0))?
    }
}
