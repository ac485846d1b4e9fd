//! PausedCallers of single callers that add up to a pause of everyone.

use std::time::Duration;

use parking_lot::Mutex;

use super::evidence::CallSource;
use crate::clock::{Moment, millis};

/// Callers that are remembered.
const MOST: usize = 64;

/// Callers that a 503 with `Retry-After` has asked for a pause. One caller, or one set of ids, may be the reason for it; two
/// callers with disjoint ids show that everyone is meant.
#[derive(Default)]
pub(super) struct PausedCallers(
    /// Each with the end of its pause on the monotonic clock.
    Mutex<Vec<(CallSource, u64)>>,
);

impl PausedCallers {
    /// `source` was asked at `now` to pause for `span`. Returns how long everyone has to pause, if everyone has.
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
        assert_eq!(asked(&paused_callers, source(3, true, 3), 60_000), None, "the others' paused_callers are over");
    }
}
