//! The pause of all callers, which follows from the pauses of single ones.

use std::time::Duration;

use parking_lot::Mutex;

use super::evidence::CallSource;
use crate::clock::{Moment, millis};

/// Most callers that are remembered.
const MOST: usize = 64;

/// The callers that a 503 with `Retry-After` has asked to pause. One caller, or one set of ids, may be the reason for a 503; two
/// accepted callers with disjoint ids show that the endpoint means all callers. A 429 never counts: it concerns a caller's own quota.
#[derive(Default)]
pub(super) struct PausedCallers(
    /// Each with the end of its pause on the monotonic clock.
    Mutex<Vec<(CallSource, u64)>>,
);

impl PausedCallers {
    /// `source` was asked at `now` to pause for `span`. Returns how long all callers have to pause, if they have to.
    pub(super) fn asked(&self, source: &CallSource, now: Moment, span: Duration) -> Option<Duration> {
        if !source.accepted {
            return None;
        }
        let until = now.monotonic.saturating_add(millis(span));
        let mut paused = self.0.lock();
        paused.retain(|(other, until)| *until > now.monotonic && other.caller != source.caller);
        let others = paused.iter().filter(|(other, _)| !other.ids.iter().any(|id| source.ids.contains(id)));
        let other = others.map(|(_, until)| *until).max();
        if paused.len() >= MOST {
            paused.remove(0);
        }
        paused.push((source.clone(), until));
        other.map(|other| Duration::from_millis(other.min(until).saturating_sub(now.monotonic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;

    #[test]
    fn two_accepted_callers_with_different_ids_make_a_pause_for_everyone() {
        let source =
            |caller, accepted, id: u64| CallSource { caller: Caller::of_test(caller), accepted, ids: [id].into() };
        let at = |monotonic| Moment { monotonic, wall: 0 };
        let asked = |paused_callers: &PausedCallers, source, now| {
            paused_callers.asked(&source, at(now), Duration::from_secs(3))
        };
        for second in [source(1, true, 2), source(2, true, 1), source(2, false, 2)] {
            let paused_callers = PausedCallers::default();
            assert_eq!(asked(&paused_callers, source(1, true, 1), 0), None);
            assert_eq!(asked(&paused_callers, second, 0), None);
        }
        let paused_callers = PausedCallers::default();
        assert_eq!(asked(&paused_callers, source(1, true, 1), 0), None);
        assert_eq!(asked(&paused_callers, source(2, true, 2), 1000), Some(Duration::from_secs(2)));
        assert_eq!(asked(&paused_callers, source(3, true, 3), 60_000), None, "the others' pauses are over");
    }
}
