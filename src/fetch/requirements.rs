//! Whether an entry may be served to a request: the requirements of its client.
//!
//! These places decide whether an entry in memory is served:
//!
//! | place | asks |
//! |---|---|
//! | [`CacheRequirements::allow`] | is the entry fresh now, and does the client accept one that is this old? |
//! | [`Callers::must_revalidate`](crate::auth::Callers::must_revalidate) | has the endpoint not accepted the caller, or not lately enough? |
//! | [`View::look_up`](crate::cache::View::look_up) | does a mark of a purge cover the entry? |
//! | `WholeAnswer::is_usable` (`cache::answers`) | may all entries of a whole answer be served as they are? |
//! | `BatchRoute::serve_stale` (`batch`) | the endpoint fails: is the entry still usable, and does the client accept a stale one? |

use crate::cache::freshness::Deadlines;
use crate::clock::Moment;
use crate::message::cache_control::Directives;

/// The conditions under which entries may be served: from the client's directives, and from the state of its caller.
#[derive(Clone, Copy, Default)]
pub struct CacheRequirements {
    /// No entry may be served: the client forbids it (no-cache, no-store), or its caller must revalidate.
    pub forbids_cache: bool,
    /// The longest time since an entry's call was sent, in milliseconds.
    pub max_age: Option<u64>,
    /// The least freshness left, in milliseconds.
    pub min_fresh: Option<u64>,
}

impl From<&Directives> for CacheRequirements {
    /// The requirements of a request's `Cache-Control` (RFC 9111 §5.2.1).
    fn from(directives: &Directives) -> Self {
        Self {
            forbids_cache: directives.no_cache || directives.no_store,
            max_age: directives.max_age.map(|seconds| seconds.saturating_mul(1000)),
            min_fresh: directives.min_fresh.map(|seconds| seconds.saturating_mul(1000)),
        }
    }
}

impl CacheRequirements {
    /// Whether they may exclude a fresh entry.
    pub fn may_exclude_fresh(&self) -> bool {
        self.forbids_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }

    /// Whether a remembered refusal of these deadlines may be answered again now; never to `max-age=0`.
    pub(crate) fn allow_refusal(&self, deadlines: &Deadlines, now: Moment) -> bool {
        self.max_age != Some(0) && self.allow(deadlines, now)
    }

    /// Whether an entry of these deadlines may be served now: it is fresh, and as recent as the client wants it.
    pub fn allow(&self, deadlines: &Deadlines, now: Moment) -> bool {
        !self.forbids_cache
            && deadlines.fresh_left(now).is_some_and(|left| left >= self.min_fresh.unwrap_or(0))
            && self.max_age.is_none_or(|most| deadlines.age(now) <= most)
    }
}
