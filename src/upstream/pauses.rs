//! When the endpoint wants a pause from everyone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::evidence::Source;
use crate::clock::{Moment, millis};

/// Callers that are remembered.
const MOST: usize = 64;

/// Who was told lately to come back later by a 503 with `Retry-After`. One caller, or one set of ids, may be the reason for it;
/// two that have nothing in common are a sign that everyone is meant.
#[derive(Default)]
pub(super) struct Pauses(Mutex<Vec<Told>>);

struct Told {
    source: Source,
    /// On the monotonic clock.
    until: u64,
}

impl Pauses {
    /// `source` was told at `now` to pause for `span`. How long everyone has to, if everyone has.
    pub(super) fn told(&self, source: &Source, now: Moment, span: Duration) -> Option<Duration> {
        if !source.accepted {
            return None;
        }
        let until = now.monotonic.saturating_add(millis(span));
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|told| told.until > now.monotonic && told.source.caller != source.caller);
        let other = told.iter().filter(|told| !told.source.ids.iter().any(|id| source.ids.contains(id)));
        let other = other.map(|told| told.until).max();
        if told.len() >= MOST {
            told.remove(0);
        }
        told.push(Told { source: source.clone(), until });
        other.map(|other| Duration::from_millis(other.min(until).saturating_sub(now.monotonic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;

    #[test]
    fn two_accepted_callers_with_different_ids_make_a_pause_for_everyone() {
        let source = |caller, accepted, id: u64| Source { caller: Caller::of_test(caller), accepted, ids: [id].into() };
        let at = |monotonic| Moment { monotonic, wall: 0 };
        let told = |pauses: &Pauses, source, now| pauses.told(&source, at(now), Duration::from_secs(3));
        for second in [source(1, true, 2), source(2, true, 1), source(2, false, 2)] {
            let pauses = Pauses::default();
            assert_eq!(told(&pauses, source(1, true, 1), 0), None);
            assert_eq!(told(&pauses, second, 0), None);
        }
        let pauses = Pauses::default();
        assert_eq!(told(&pauses, source(1, true, 1), 0), None);
        assert_eq!(told(&pauses, source(2, true, 2), 1000), Some(Duration::from_secs(2)));
        assert_eq!(told(&pauses, source(3, true, 3), 60_000), None, "the others' pauses are over");
    }
}
