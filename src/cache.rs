//! The embedded tier: links by [`Key`], bounded by bytes.
//!
//! A link is kept as the JSON text that the endpoint sent, so that answering is copying. Nothing here decides whether a
//! link may be served: that is asked of its [`Deadlines`] at every look-up. Eviction (TinyLFU by weight, and by age
//! once nothing can be served any more) only ever makes room.

pub mod freshness;

use std::sync::Arc;

use moka::notification::RemovalCause;

use crate::caller::Key;
use crate::config;
use crate::metrics::Metrics;
use freshness::Deadlines;

/// Bytes that an entry takes besides its text: key and value in moka's table, its bookkeeping (frequency sketch, two
/// queues' nodes, reference counts) and the allocator's rounding. An estimate on the high side.
const ENTRY_BYTES: u32 = 400;

/// What is kept of an id.
#[derive(Clone)]
pub struct Kept {
    /// The item's JSON text; `None`: the endpoint left the id out.
    pub text: Option<Arc<str>>,
    /// Until when it counts.
    pub deadlines: Deadlines,
}

/// The links that this process has.
pub struct Cache {
    entries: moka::sync::Cache<Key, Kept>,
}

impl Cache {
    /// An empty cache of `config.capacity` bytes.
    pub fn new(config: &config::Cache, freshness: &config::Freshness, metrics: &Metrics) -> Self {
        let evictions = metrics.cache_evictions.clone();
        // Past this age nothing can be served, fresh or stale.
        let oldest = freshness.max.max(freshness.absent) + freshness.stale_if_error;
        let entries = moka::sync::Cache::builder()
            .max_capacity(config.capacity)
            .weigher(|_: &Key, kept: &Kept| {
                let text = kept.text.as_ref().map_or(0, |text| text.len());
                u32::try_from(text).unwrap_or(u32::MAX).saturating_add(ENTRY_BYTES)
            })
            .time_to_live(oldest.max(std::time::Duration::from_secs(1)))
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => evictions.size.inc(),
                RemovalCause::Expired => evictions.expired.inc(),
                RemovalCause::Explicit => evictions.explicit.inc(),
                RemovalCause::Replaced => {}
            })
            .build();
        Self { entries }
    }

    /// What is kept under `key`, whether or not it may still be served.
    pub fn look_up(&self, key: Key) -> Option<Kept> {
        self.entries.get(&key)
    }

    /// Keeps `kept` under `key`, in place of what was there.
    pub fn keep(&self, key: Key, kept: Kept) {
        self.entries.insert(key, kept);
    }

    /// Forgets what is kept under `key`.
    pub fn forget(&self, key: Key) {
        self.entries.invalidate(&key);
    }

    /// Entries, and their bytes; lags behind by a few writes.
    pub fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}
