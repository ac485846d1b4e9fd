//! The embedded tier: links by [`Key`], bounded by bytes.
//!
//! A link is kept as the JSON text that the endpoint sent, so that answering is copying. Nothing here decides whether a
//! link may be served: that is asked of its [`Deadlines`] at every look-up. Eviction (CLOCK-PRO by weight) and the sweep of
//! what is dead only ever make room.

pub mod freshness;
pub mod purges;
pub mod refusals;

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use quick_cache::{Lifecycle, Weighter, unsync};
use triomphe::ThinArc;

use crate::auth::Key;
use crate::clock::Moment;
use crate::config;
use crate::telemetry::metrics::{Counters, Eviction, Metrics};
use freshness::Deadlines;
use purges::{Marks, Purges};
use refusals::Refusals;

/// Bytes that an entry takes besides its text: key and bookkeeping in the table, the deadlines and counts beside the text,
/// and the allocator's rounding. Measured: docs/BENCHMARKS.md, "Memory".
const ENTRY_BYTES: u64 = 160;
/// A guess at a text's bytes, by which the table's parts and their memory of evicted keys are sized.
const USUAL_TEXT: u64 = 480;
/// Most parts of the table, each with a lock and a share of the capacity of its own.
const PARTS: usize = 16;
/// And the least that a part has room for.
const LEAST_ENTRIES: u64 = 32;
/// Entries that a sweep looks at before it lets others at their part of the table: well below a millisecond.
const SLICE: usize = 512;

/// What is kept of an id: its text, and until when it counts. Both lie side by side, in one place to be waited for.
#[derive(Clone)]
pub struct Entry(ThinArc<Deadlines, u8>);

impl Entry {
    /// Of an item's JSON text; `None`: the endpoint left the id out.
    pub fn new(text: Option<&str>, deadlines: Deadlines) -> Self {
        // No item is empty: JSON never is.
        Self(ThinArc::from_header_and_slice(deadlines, text.unwrap_or_default().as_bytes()))
    }

    /// The item's JSON text; `None`: the endpoint left the id out.
    pub fn text(&self) -> Option<&[u8]> {
        Some(&self.0.slice).filter(|text| !text.is_empty())
    }

    /// The same item, to be answered once and not stored.
    pub(crate) fn not_stored(&self) -> Self {
        Self(ThinArc::from_header_and_slice(Deadlines::not_stored(self.deadlines().sent()), &self.0.slice))
    }

    /// Until when it counts.
    pub fn deadlines(&self) -> &Deadlines {
        &self.0.header.header
    }
}

type Part = unsync::Cache<Key, Entry, Weight, BuildHasherDefault<KeyHasher>, CountRemoved>;

/// The links that this process has.
pub struct Cache {
    /// A power of two of them.
    parts: Box<[RwLock<Part>]>,
    purges: Arc<Purges>,
    refusals: Refusals,
    evictions: Counters<Eviction>,
}

impl Cache {
    /// An empty cache of `config.capacity` bytes. It allocates as it fills.
    pub fn new(config: &config::Cache, purges: Arc<Purges>, metrics: &Metrics) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let entries = config.capacity / (ENTRY_BYTES + USUAL_TEXT);
        let mut count = PARTS;
        while count > 1 && entries / (count as u64) < LEAST_ENTRIES {
            count /= 2;
        }
        let entries = usize::try_from(entries).unwrap_or(usize::MAX).div_ceil(count);
        let part =
            || Part::with(entries, share(config.capacity, count), Weight, BuildHasherDefault::default(), CountRemoved);
        let parts = (0..count).map(|_| RwLock::new(part())).collect();
        Self { parts, purges, refusals: Refusals::default(), evictions }
    }

    /// Opens the table for looking up some of `keys`, each of its parts at most once, however many keys lie there. Whoever
    /// opens it twice at a time, or writes meanwhile, waits for itself.
    pub fn open(&self, keys: impl Iterator<Item = Key>) -> View<'_> {
        let mut wanted = [false; PARTS];
        for key in keys {
            if let Some(wanted) = wanted.get_mut(self.part_of(key)) {
                *wanted = true;
            }
        }
        // All go through the parts in the same order, and who writes holds one alone: so nobody waits in a circle.
        let mut parts = [const { None }; PARTS];
        for ((open, wanted), part) in parts.iter_mut().zip(wanted).zip(&self.parts) {
            if wanted {
                *open = Some(read(part));
            }
        }
        View { cache: self, parts }
    }

    /// What is kept under `key`, that of `id`, and not purged; whether or not it may still be served.
    pub fn look_up(&self, key: Key, id: &str, marks: &Marks<'_>) -> Option<Entry> {
        self.open([key].into_iter()).look_up(&[(id, key)], marks).pop().flatten().cloned()
    }

    /// What is kept under `key`, purged or not, which does not make it any more wanted than it was.
    pub fn peek(&self, key: Key) -> Option<Entry> {
        read(self.parts.get(self.part_of(key))?).peek(&key).cloned()
    }

    /// What was purged.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// What the endpoint has refused lately.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Keeps `kept` under `key`, in place of what was there.
    pub fn keep(&self, key: Key, kept: Entry) {
        if let Some(part) = self.parts.get(self.part_of(key)) {
            let mut part = write(part);
            // What is replaced has not made room for anything.
            let replaced = u64::from(part.peek(&key).is_some());
            let evicted = part.insert_with_lifecycle(key, kept);
            self.evictions.of(Eviction::Size).inc_by(evicted.saturating_sub(replaced));
        }
    }

    /// Forgets what is kept under `key`.
    pub fn forget(&self, key: Key) {
        let forgotten = self.parts.get(self.part_of(key)).and_then(|part| write(part).remove(&key));
        if forgotten.is_some() {
            self.evictions.of(Eviction::Explicit).inc();
        }
    }

    /// Forgets what can be served no more, fresh or stale, and what a purge of everything covers; says how many the latter
    /// were. Takes a while, and locks a part of the table for `SLICE` entries at a time.
    pub fn sweep(&self, now: Moment) -> u64 {
        self.sweep_between(now, std::thread::yield_now)
    }

    /// As [`Cache::sweep`], with something to be done between slices, while nothing is locked.
    fn sweep_between(&self, now: Moment, mut between: impl FnMut()) -> u64 {
        let (mut expired, mut purged) = (0, 0);
        let all = self.purges.of_all();
        for part in &self.parts {
            // Of all entries the keys alone, which lie side by side in the table: the entries themselves are waited for.
            let keys: Vec<Key> = read(part).iter().map(|(key, _)| *key).collect();
            for slice in keys.chunks(SLICE) {
                between();
                let mut part = write(part);
                for key in slice {
                    let Some(deadlines) = part.peek(key).map(Entry::deadlines) else { continue };
                    let count = if all.cover_all(deadlines.sent()) {
                        &mut purged
                    } else if !deadlines.usable(now) {
                        &mut expired
                    } else {
                        continue;
                    };
                    part.remove(key);
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

    /// Changes how much is kept. What is too much goes at once, and each part of the table is locked for its part of it.
    pub fn resize(&self, capacity: u64) {
        for part in &self.parts {
            write(part).set_capacity(share(capacity, self.parts.len()));
        }
    }

    /// Bytes that it may come to.
    pub fn capacity(&self) -> u64 {
        self.parts.iter().map(|part| read(part).capacity()).sum()
    }

    /// Entries, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        self.parts.iter().fold((0, 0), |(entries, bytes), part| {
            let part = read(part);
            (entries + part.len() as u64, bytes + part.weight())
        })
    }

    /// By other bits of the key than its table goes by: those of [`KeyHasher`].
    fn part_of(&self, key: Key) -> usize {
        let [low, ..] = key.low().to_le_bytes();
        usize::from(low) & (self.parts.len() - 1)
    }
}

fn share(capacity: u64, parts: usize) -> u64 {
    capacity / parts as u64
}

// What panicked within a part was the table itself, and it leaves no entry half-done: going on is better than never
// answering again.
fn read(part: &RwLock<Part>) -> RwLockReadGuard<'_, Part> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(part: &RwLock<Part>) -> RwLockWriteGuard<'_, Part> {
    part.write().unwrap_or_else(PoisonError::into_inner)
}

/// Parts of the table, open for looking up. Nothing is written to them meanwhile.
///
/// A batch opens each part once, and what it finds is lent, not counted: the processor fetches several links from main
/// memory at a time, where each locked instruction would have it wait (docs/BENCHMARKS.md).
pub struct View<'c> {
    cache: &'c Cache,
    parts: [Option<RwLockReadGuard<'c, Part>>; PARTS],
}

impl View<'_> {
    /// What is kept of each of these ids under its key, and not purged; whether or not it may still be served. Nothing of
    /// those that the view was not opened for.
    pub fn look_up(&self, ids: &[(&str, Key)], marks: &Marks<'_>) -> Vec<Option<&Entry>> {
        let mut found: Vec<_> = ids.iter().map(|(_, key)| self.find(*key)).collect();
        // Only now, so that what is found is fetched from memory while the next is looked for.
        for (kept, (id, _)) in found.iter_mut().zip(ids) {
            *kept = kept.filter(|kept| !marks.cover(id, kept.deadlines().sent()));
        }
        found
    }

    fn find(&self, key: Key) -> Option<&Entry> {
        self.parts.get(self.cache.part_of(key))?.as_ref()?.get(&key)
    }
}

struct Weight;

impl Weighter<Key, Entry> for Weight {
    fn weight(&self, _: &Key, kept: &Entry) -> u64 {
        kept.0.slice.len() as u64 + ENTRY_BYTES
    }
}

/// Counts what an insertion has removed: what had to make room, and what was there under the same key.
struct CountRemoved;

impl Lifecycle<Key, Entry> for CountRemoved {
    type RequestState = u64;

    fn begin_request(&self) -> u64 {
        0
    }

    fn on_evict(&self, removed: &mut u64, _: Key, _: Entry) {
        *removed += 1;
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
    use crate::auth::Scope;
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
            cache.keep(scope.key(&seconds.to_string()), Entry::new(None, deadlines));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        cache.sweep(clock.now());
        let marks = cache.purges().of_group(None);
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
            cache.keep(scope.key(&id.to_string()), Entry::new(None, deadlines));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        let mut slices = 0;
        cache.sweep_between(clock.now(), || {
            slices += 1;
            // Whoever writes now, to any part, would wait for ever if one were locked.
            for id in 0..64 {
                let deadlines = Deadlines::absent(clock.now(), Duration::from_secs(20));
                cache.keep(scope.key(&format!("new{id}")), Entry::new(None, deadlines));
            }
        });
        assert!(slices >= count / SLICE, "{slices}");
        assert_eq!(metrics.cache_evictions.of(Eviction::Expired).get(), count as u64 / 2);
        assert_eq!(cache.size().0, count as u64 / 2 + 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_capacity_counts_at_once() {
        let (cache, _) = cache(4 << 20);
        let scope = Scope::of_test(1);
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        let fill = || {
            for id in 0..10_000 {
                cache.keep(scope.key(&id.to_string()), Entry::new(Some(&"x".repeat(440)), deadlines));
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
            cache.keep(scope.key(&id.to_string()), Entry::new(Some(&"x".repeat(440)), deadlines));
        }
        let (links, bytes) = cache.size();
        assert!(bytes <= 1 << 20 && links > 1500, "{links} links of {bytes} bytes");
        assert_eq!(metrics.cache_evictions.of(Eviction::Size).get(), 10_000 - links);
    }

    /// Regression: each link that was fetched anew counted as one that had to make room.
    #[tokio::test(start_paused = true)]
    async fn what_is_replaced_is_not_counted_as_evicted() {
        let (cache, metrics) = cache(1 << 20);
        let deadlines = Deadlines::absent(Clock::simulated(0).now(), Duration::from_secs(60));
        for _ in 0..3 {
            cache.keep(Scope::of_test(1).key("1"), Entry::new(Some("{}"), deadlines));
        }
        assert_eq!((metrics.cache_evictions.of(Eviction::Size).get(), cache.size().0), (0, 1));
    }
}
