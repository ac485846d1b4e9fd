//! What a batch's client lets be answered from the cache.

use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::clock::Moment;

/// What a client allows to be answered without a call.
#[derive(Clone, Copy, Default)]
pub struct CacheRequirements {
    /// Nothing.
    pub nothing: bool,
    /// Milliseconds that a link's call may lie back.
    pub max_age: Option<u64>,
    /// Milliseconds of freshness that must be left.
    pub min_fresh: Option<u64>,
}

impl CacheRequirements {
    /// Whether `kept` may be served now.
    pub fn serves(&self, kept: &Entry, now: Moment) -> bool {
        self.allows(kept.deadlines(), now)
    }

    /// Whether a remembered refusal of these deadlines may be given again now; not to `max-age=0`, however young it is.
    pub(crate) fn allows_refusal(&self, deadlines: &Deadlines, now: Moment) -> bool {
        self.max_age != Some(0) && self.allows(deadlines, now)
    }

    /// Whether a link of these deadlines may be served now.
    pub(super) fn allows(&self, deadlines: &Deadlines, now: Moment) -> bool {
        !self.nothing
            && deadlines.fresh_left(now).is_some_and(|left| left >= self.min_fresh.unwrap_or(0))
            && self.max_age.is_none_or(|most| deadlines.age(now) <= most)
    }
}
