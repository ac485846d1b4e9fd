//! The embedded tier: links by [`Key`], bounded by bytes.
//!
//! A link is kept as the JSON text that the endpoint sent, so that answering is copying. Nothing here decides whether a
//! link may be served: that is asked of its [`Deadlines`] at every look-up. Eviction (S3-FIFO by weight) and the sweep of
//! what is dead only ever make room.

pub mod freshness;
pub mod purges;

use std::cell::Cell;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use prometheus::IntCounter;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use crate::caller::Key;
use crate::clock::Moment;
use crate::config;
use crate::metrics::{Evictions, Metrics};
use freshness::Deadlines;
use purges::{Marks, Purges};

/// Bytes that an entry takes besides its text: key, value and bookkeeping in the table, the text's reference counts, and
/// the allocator's rounding. Measured: docs/BENCHMARKS.md, "Memory".
const ENTRY_BYTES: u64 = 160;
/// A guess at a text's bytes, by which the table's shards and its memory of evicted keys are sized.
const USUAL_TEXT: u64 = 480;

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
    entries: quick_cache::sync::Cache<Key, Kept, Weight, BuildHasherDefault<KeyHasher>, Evicted>,
    purges: Arc<Purges>,
    evictions: Evictions,
}

impl Cache {
    /// An empty cache of `config.capacity` bytes. It allocates as it fills.
    pub fn new(config: &config::Cache, purges: Arc<Purges>, metrics: &Metrics) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let items = usize::try_from(config.capacity / (ENTRY_BYTES + USUAL_TEXT)).unwrap_or(usize::MAX);
        let mut options = OptionsBuilder::new();
        options.weight_capacity(config.capacity).estimated_items_capacity(items);
        let evicted = Evicted(evictions.size.clone());
        let entries = match options.build() {
            Ok(options) => {
                quick_cache::sync::Cache::with_options(options, Weight, BuildHasherDefault::default(), evicted)
            }
            // Never: both of the mandatory options are there.
            Err(_) => {
                quick_cache::sync::Cache::with(items, config.capacity, Weight, BuildHasherDefault::default(), evicted)
            }
        };
        Self { entries, purges, evictions }
    }

    /// What is kept under `key`, that of `id`, and not purged; whether or not it may still be served.
    pub fn look_up(&self, key: Key, id: &str, marks: &Marks<'_>) -> Option<Kept> {
        self.entries.get(&key).filter(|kept| !marks.cover(id, kept.deadlines.sent()))
    }

    /// What is kept under `key`, purged or not, which does not make it any more wanted than it was.
    pub fn peek(&self, key: Key) -> Option<Kept> {
        self.entries.peek(&key)
    }

    /// What was purged.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// Keeps `kept` under `key`, in place of what was there.
    pub fn keep(&self, key: Key, kept: Kept) {
        self.entries.insert(key, kept);
    }

    /// Forgets what is kept under `key`.
    pub fn forget(&self, key: Key) {
        if self.entries.remove(&key).is_some() {
            self.evictions.explicit.inc();
        }
    }

    /// Forgets what can be served no more, fresh or stale, and what a purge of everything covers; says how many the latter
    /// were. Takes a while, and each part of the table for a part of it.
    pub fn sweep(&self, now: Moment) -> u64 {
        let (expired, purged) = (Cell::new(0), Cell::new(0));
        let all = self.purges.of_all();
        self.entries.retain(|_, kept| {
            let reason = if all.cover_all(kept.deadlines.sent()) {
                &purged
            } else if !kept.deadlines.usable(now) {
                &expired
            } else {
                return true;
            };
            reason.set(reason.get() + 1);
            false
        });
        self.evictions.expired.inc_by(expired.get());
        self.evictions.explicit.inc_by(purged.get());
        self.purges.sweep(now);
        purged.get()
    }

    /// Changes how much is kept. What is too much goes at once, and each part of the table is locked for its part of it.
    pub fn resize(&self, capacity: u64) {
        self.entries.set_capacity(capacity);
    }

    /// Bytes that it may come to.
    pub fn capacity(&self) -> u64 {
        self.entries.capacity()
    }

    /// Entries, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.entries.weight())
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Kept> for Weight {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        kept.text.as_ref().map_or(0, |text| text.len() as u64) + ENTRY_BYTES
    }
}

/// Counts what had to make room.
#[derive(Clone)]
struct Evicted(IntCounter);

impl Lifecycle<Key, Kept> for Evicted {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, (): &mut (), _: Key, _: Kept) {
        self.0.inc();
    }
}

/// Takes a [`Key`] for its own hash: it is a keyed one already.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;

    use super::*;
    use crate::caller::Scope;
    use crate::clock::Clock;

    fn cache(capacity: u64) -> (Cache, Metrics) {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let purges = Arc::new(Purges::new([7; 16], Duration::from_secs(60)));
        (Cache::new(&config::Cache { capacity }, purges, &metrics), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_forgets_what_is_dead_and_nothing_else() {
        let (cache, metrics) = cache(1 << 20);
        let clock = Clock::simulated(0);
        let scope = Scope::of_test(1);
        for seconds in [10, 20] {
            let deadlines = Deadlines::absent(clock.now(), Duration::from_secs(seconds));
            cache.keep(scope.key(&seconds.to_string()), Kept { text: None, deadlines });
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        cache.sweep(clock.now());
        let marks = cache.purges().of_group(None);
        let look_up = |id: &str| cache.look_up(scope.key(id), id, &marks);
        assert!(look_up("10").is_none() && look_up("20").is_some());
        assert_eq!((metrics.cache_evictions.expired.get(), cache.size()), (1, (1, ENTRY_BYTES)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_capacity_counts_at_once() {
        let (cache, _) = cache(4 << 20);
        let scope = Scope::of_test(1);
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        let fill = || {
            for id in 0..10_000 {
                cache.keep(scope.key(&id.to_string()), Kept { text: Some(Arc::from("x".repeat(440))), deadlines });
            }
            cache.size().1
        };
        assert!(fill() > 3 << 20);
        cache.resize(1 << 20);
        assert!((1..=1 << 20).contains(&cache.size().1));
        assert!(fill() <= 1 << 20);
        cache.resize(4 << 20);
        assert!(fill() > 3 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_stays_within_capacity() {
        let (cache, metrics) = cache(1 << 20);
        let scope = Scope::of_test(1);
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        for id in 0..10_000 {
            cache.keep(scope.key(&id.to_string()), Kept { text: Some(Arc::from("x".repeat(440))), deadlines });
        }
        let (links, bytes) = cache.size();
        assert!(bytes <= 1 << 20 && links > 1500, "{links} links of {bytes} bytes");
        assert_eq!(metrics.cache_evictions.size.get(), 10_000 - links);
    }
}
