//! Entries in memory, by [`Key`], bounded by bytes. Start at [`Cache`].
//!
//! An entry contains the JSON text that the endpoint sent, so that answering is copying. A look-up leaves out
//! purged entries, and nothing else: whether an entry is fresh enough is asked of its [`freshness::Deadlines`] by
//! `fetch::CacheRequirements::allow`. Eviction (CLOCK-PRO by weight) and the sweep of dead entries only free memory.
//!
//! # Locks
//! Each `Part` has a lock. Readers are `View`, `Cache::peek`, the key scan of `Cache::sweep`, `size` and `capacity`. A batch keeps
//! its `View` from the look-up until the body is merged from the borrowed entries and a whole answer made of them, but not
//! stored; never across an await. Writers are `Cache::insert`, `Cache::remove`, `Cache::resize` and one slice of `Cache::sweep`. A writer locks one part
//! at a time, and a view locks its parts in order, so no deadlock is possible between them.
//!
//! Locks are taken in this order: flights (`fetch`), parts, `purges`. The locks of `refusals` and those inside moka (whole answers,
//! callers' states) come last: nothing else is locked under them.

pub(crate) mod answers;
mod countdown;
mod entry;
pub mod freshness;
pub mod purges;
pub(crate) mod refusals;

use std::hash::BuildHasherDefault;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};
use quick_cache::{Weighter, unsync};

pub(crate) use crate::auth::KeyHasher;
use crate::auth::{Identity, Key};
use crate::clock::Moment;
use crate::config::CacheConfig;
use crate::telemetry::metrics::{Counters, Eviction, Metrics};
pub use countdown::Countdown;
pub(crate) use entry::Item;
pub use entry::{Entry, ItemDetails};
use purges::{Marks, Purges};
use refusals::Refusals;

/// Bytes of an entry besides its text: key and bookkeeping in the table, deadlines and counts beside the text, and the
/// allocator's rounding. Measured: docs/BENCHMARKS.md, "Memory".
const ENTRY_BYTES: u64 = 160;
/// An estimate of a text's bytes. It determines the size of tables and of their memory of evicted keys.
const USUAL_TEXT: u64 = 480;
/// Most parts of the cache, each with a lock.
const PARTS: usize = 16;
/// Fewest entries that a part has room for.
const LEAST_ENTRIES: usize = 32;
/// Most entries of a table: a sweep reads the keys of one table at a time, in a fraction of a millisecond.
const TABLE_ENTRIES: usize = 1 << 15;
/// Entries that a sweep examines per lock of a part: well below a millisecond.
const SLICE: usize = 512;

type EntryTable = unsync::Cache<Key, Entry, Weight, BuildHasherDefault<KeyHasher>>;

/// A part of the cache: one lock over several tables. Their number is a power of two.
type Part = RwLock<Box<[EntryTable]>>;

/// The entries of this process.
pub struct Cache {
    /// Their number is a power of two.
    parts: Box<[Part]>,
    tables: usize,
    purges: Arc<Purges>,
    pub(crate) refusals: Refusals,
    evictions: Counters<Eviction>,
}

impl Cache {
    /// An empty cache, of `config.capacity` bytes without the part of whole answers. It allocates as it fills.
    pub fn new(config: &CacheConfig, purges: Arc<Purges>, metrics: &Metrics) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let capacity = config.capacity - answers::capacity(config.capacity);
        let entries = usize::try_from(capacity / (ENTRY_BYTES + USUAL_TEXT)).unwrap_or(usize::MAX);
        let mut count = PARTS;
        while count > 1 && entries / count < LEAST_ENTRIES {
            count /= 2;
        }
        let tables = (entries / count).div_ceil(TABLE_ENTRIES).max(1).next_power_of_two();
        let (entries, capacity) = (entries.div_ceil(count * tables), share(capacity, count * tables));
        let table = || EntryTable::with(entries, capacity, Weight, BuildHasherDefault::default(), Default::default());
        let parts = (0..count).map(|_| RwLock::new((0..tables).map(|_| table()).collect())).collect();
        Self { parts, tables, purges, refusals: Refusals::default(), evictions }
    }

    /// Locks the parts of `keys` for reading, each part once, however many keys it has. Not reentrant: opening or writing
    /// while a view is alive deadlocks.
    pub fn open(&self, keys: impl Iterator<Item = Key>) -> View<'_> {
        let mut wanted = [false; PARTS];
        for key in keys {
            if let Some(wanted) = wanted.get_mut(self.part_of(key)) {
                *wanted = true;
            }
        }
        let mut parts = [const { None }; PARTS];
        for ((open, wanted), part) in parts.iter_mut().zip(wanted).zip(&self.parts) {
            if wanted {
                *open = Some(part.read());
            }
        }
        View { cache: self, parts }
    }

    /// The entry of `key`, the key of `id`, unless it was purged; whether or not it may be served.
    pub fn look_up(&self, key: Key, id: &str, marks: &Marks<'_>) -> Option<Entry> {
        self.open([key].into_iter()).look_up(&[(id, key)], marks).pop().flatten().cloned()
    }

    /// Counts a use of the entries of `keys`.
    fn touch(&self, keys: &[Key]) {
        let view = self.open(keys.iter().copied());
        for key in keys {
            let _ = view.find(*key);
        }
    }

    /// The entry of `key`, purged or not; does not count as use.
    pub(crate) fn peek(&self, key: Key) -> Option<Entry> {
        self.parts.get(self.part_of(key))?.read().get(self.table_of(key))?.peek(&key).cloned()
    }

    /// The marks of purges.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// Inserts or replaces the entry of `key`.
    pub fn insert(&self, key: Key, entry: Entry) {
        let mut part = self.parts.get(self.part_of(key)).map(Part::write);
        let Some(table) = part.as_mut().and_then(|part| part.get_mut(self.table_of(key))) else { return };
        let expected = table.len() + usize::from(table.peek(&key).is_none());
        table.insert(key, entry);
        self.evictions.of(Eviction::Size).inc_by(expected.saturating_sub(table.len()) as u64);
    }

    /// Removes the entry of `key`, a key of this caller, and ends the whole answers of their owner.
    pub(crate) fn remove(&self, key: Key, caller: &Identity) {
        let part = self.parts.get(self.part_of(key));
        if part.and_then(|part| part.write().get_mut(self.table_of(key))?.remove(&key)).is_some() {
            self.evictions.of(Eviction::Explicit).inc();
        }
        caller.owner().end_answers();
    }

    /// Removes entries that can be served no more, fresh or stale, and those that a purge of everything covers; returns the
    /// number of the latter. Takes a while, and locks a part for `SLICE` entries at a time.
    pub(crate) fn sweep(&self, now: Moment) -> u64 {
        self.sweep_between(now, std::thread::yield_now)
    }

    /// As [`Cache::sweep`]; calls `between` before each slice, while nothing is locked.
    fn sweep_between(&self, now: Moment, mut between: impl FnMut()) -> u64 {
        let (mut expired, mut purged) = (0, 0);
        let floor = self.purges.floor();
        for (part, at) in self.parts.iter().flat_map(|part| (0..self.tables).map(move |at| (part, at))) {
            // Only keys are read, which lie side by side in the table: reading an entry costs a cache miss.
            let keys = |table: &EntryTable| table.iter().map(|(key, _)| *key).collect();
            let keys: Vec<Key> = part.read().get(at).map(keys).unwrap_or_default();
            for slice in keys.chunks(SLICE) {
                between();
                let mut part = part.write();
                let Some(table) = part.get_mut(at) else { continue };
                for key in slice {
                    let Some(deadlines) = table.peek(key).map(Entry::deadlines) else { continue };
                    let count = if deadlines.sent().monotonic < floor {
                        &mut purged
                    } else if !deadlines.usable(now) {
                        &mut expired
                    } else {
                        continue;
                    };
                    table.remove(key);
                    *count += 1;
                }
            }
        }
        self.evictions.of(Eviction::Expired).inc_by(expired);
        self.evictions.of(Eviction::Explicit).inc_by(purged);
        self.purges.sweep(now);
        self.refusals.sweep(now);
        purged
    }

    /// Changes `cache.capacity`. Entries beyond their part of it are evicted at once, one part of the cache after the other.
    pub(crate) fn resize(&self, capacity: u64) {
        let capacity = share(capacity - answers::capacity(capacity), self.parts.len() * self.tables);
        for part in &self.parts {
            part.write().iter_mut().for_each(|table| table.set_capacity(capacity));
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.sum(EntryTable::capacity)
    }

    /// Number of entries, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.sum(|table| table.len() as u64), self.sum(EntryTable::weight))
    }

    fn sum(&self, count: impl Fn(&EntryTable) -> u64) -> u64 {
        self.parts.iter().map(|part| part.read().iter().map(&count).sum::<u64>()).sum()
    }

    /// Parts and tables are chosen by other bits of the key than those that [`KeyHasher`] takes.
    fn part_of(&self, key: Key) -> usize {
        let [low, ..] = key.low().to_le_bytes();
        usize::from(low) & (self.parts.len() - 1)
    }

    fn table_of(&self, key: Key) -> usize {
        let [_, low, high, ..] = key.low().to_le_bytes();
        usize::from(u16::from_le_bytes([low, high])) & (self.tables - 1)
    }
}

fn share(capacity: u64, tables: usize) -> u64 {
    capacity / tables as u64
}

/// Parts of the cache, locked for reading.
///
/// A batch locks each part once, and borrows entries without counting: the processor fetches several entries from main memory
/// at a time, where each locked instruction would make it wait (docs/BENCHMARKS.md).
pub struct View<'c> {
    cache: &'c Cache,
    parts: [Option<RwLockReadGuard<'c, Box<[EntryTable]>>>; PARTS],
}

impl View<'_> {
    /// The entry of each id under its key, unless it was purged; whether or not it may be served. `None` for keys that the
    /// view was not opened for.
    pub fn look_up(&self, ids: &[(impl AsRef<str>, Key)], marks: &Marks<'_>) -> Vec<Option<&Entry>> {
        let mut found: Vec<_> = ids.iter().map(|(_, key)| self.find(*key)).collect();
        // Marks are compared in a second pass, so that the processor fetches an entry from memory while it looks for the next.
        let marks = marks.lock();
        for (entry, (id, _)) in found.iter_mut().zip(ids) {
            *entry = entry.filter(|entry| !marks.cover(id.as_ref(), entry.deadlines().sent()));
        }
        found
    }

    fn find(&self, key: Key) -> Option<&Entry> {
        self.parts.get(self.cache.part_of(key))?.as_ref()?.get(self.cache.table_of(key))?.get(&key)
    }
}

struct Weight;

impl Weighter<Key, Entry> for Weight {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.bytes() as u64 + ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;

    use super::freshness::Deadlines;
    use super::*;
    use crate::auth::Scope;
    use crate::clock::Clock;

    fn cache(capacity: u64) -> (Cache, Metrics) {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let purges = Arc::new(Purges::new([7; 16], Duration::from_secs(60)));
        (Cache::new(&CacheConfig { capacity }, purges, &metrics), metrics)
    }

    /// Inserts 10,000 entries of 600 bytes; returns the number of entries then, and their bytes.
    fn fill(cache: &Cache) -> (u64, u64) {
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        for id in 0..10_000 {
            cache.insert(Scope::of_test(1).key(&id.to_string()), Entry::new(Some(&"x".repeat(440)), deadlines));
        }
        cache.size()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_removes_dead_entries_and_nothing_else() {
        let (cache, metrics) = cache(1 << 20);
        let clock = Clock::simulated(0);
        let scope = Scope::of_test(1);
        for seconds in [10, 20] {
            let deadlines = Deadlines::absent(clock.now(), Duration::from_secs(seconds));
            cache.insert(scope.key(&seconds.to_string()), Entry::new(None, deadlines));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        cache.sweep(clock.now());
        let marks = cache.purges().of("a", None);
        let look_up = |id: &str| cache.look_up(scope.key(id), id, &marks);
        assert!(look_up("10").is_none() && look_up("20").is_some());
        assert_eq!((metrics.cache_evictions.of(Eviction::Expired).get(), cache.size()), (1, (1, ENTRY_BYTES)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_lets_others_in_between_its_slices() {
        let (cache, metrics) = cache(64 << 20);
        let clock = Clock::simulated(0);
        let scope = Scope::of_test(1);
        let count = 4 * PARTS * SLICE;
        for id in 0..count {
            let deadlines = Deadlines::absent(clock.now(), Duration::from_secs(if id % 2 == 0 { 1 } else { 20 }));
            cache.insert(scope.key(&id.to_string()), Entry::new(None, deadlines));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        let mut slices = 0;
        cache.sweep_between(clock.now(), || {
            slices += 1;
            // If any part were locked, these writes would deadlock.
            for id in 0..64 {
                let deadlines = Deadlines::absent(clock.now(), Duration::from_secs(20));
                cache.insert(scope.key(&format!("new{id}")), Entry::new(None, deadlines));
            }
        });
        assert!(slices >= count / SLICE, "{slices}");
        assert_eq!(metrics.cache_evictions.of(Eviction::Expired).get(), count as u64 / 2);
        assert_eq!(cache.size().0, count as u64 / 2 + 64);
    }

    #[test]
    fn a_table_is_small_enough_to_sweep_at_any_capacity() {
        for capacity in [1 << 10, 1 << 28, 1 << 34, 1 << 40] {
            let (cache, _) = cache(capacity);
            let capacity = capacity - answers::capacity(capacity);
            let tables = (cache.parts.len() * cache.tables) as u64;
            assert!(capacity / (ENTRY_BYTES + USUAL_TEXT) <= tables * TABLE_ENTRIES as u64, "{capacity}");
            assert!((capacity - tables..=capacity).contains(&cache.capacity()), "{capacity}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_capacity_counts_at_once() {
        let (cache, _) = cache(4 << 20);
        assert!(fill(&cache).1 > 3 << 20);
        cache.resize(1 << 20);
        assert!((1..=1 << 20).contains(&cache.size().1));
        assert!(fill(&cache).1 <= 1 << 20);
        cache.resize(4 << 20);
        assert!(fill(&cache).1 > 3 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn entries_stay_within_capacity() {
        let (cache, metrics) = cache(1 << 20);
        let (links, bytes) = fill(&cache);
        assert!(bytes <= 1 << 20 && links > 1500, "{links} links of {bytes} bytes");
        assert_eq!(metrics.cache_evictions.of(Eviction::Size).get(), 10_000 - links);
    }

    /// Regression: each link that was fetched again counted as an eviction by size.
    #[tokio::test(start_paused = true)]
    async fn a_replaced_entry_is_not_counted_as_evicted() {
        let (cache, metrics) = cache(1 << 20);
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        for _ in 0..3 {
            cache.insert(Scope::of_test(1).key("1"), Entry::new(Some("{}"), deadlines));
        }
        assert_eq!((metrics.cache_evictions.of(Eviction::Size).get(), cache.size().0), (0, 1));
    }
}
