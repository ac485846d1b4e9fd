//! Purges: links that were fetched before a purge are not served any more.
//!
//! Links lie under keys that name their scope, so the links of one id, or of one group, cannot be found without going through
//! all. A purge leaves a mark instead: a keyed hash of the id or group, and the moment. The mark covers what calls
//! that were sent no later have brought or will bring: it is not served, not stored, and not joined. So a purge costs the same for one link as for a million,
//! and holds against calls that are under way.
//!
//! Marks are bounded in number. Beyond the bound, the oldest are merged into one that covers everything of their time or older: some links are
//! then fetched again without need, but no purged link is served. A mark expires once no link can be that old.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::{RwLock, RwLockReadGuard};
use siphasher::sip128::{Hasher128, SipHasher24};

use super::KeyHasher;
use crate::api::id;
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config};

/// Most marks; each takes 32 bytes and its share of a table's room.
pub const MOST: usize = 1 << 16;
/// Marks count for longer than a link or a call may last: moments are whole milliseconds.
const SLACK: Duration = Duration::from_secs(1);

/// The target of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'t> {
    /// An id, in every scope of every API.
    Id(&'t str),
    /// An id of the API of this name, in every scope.
    OfApi {
        /// The API's name.
        api: &'t str,
        /// The id.
        id: &'t str,
    },
    /// All ids of a group, for every caller.
    Group(&'t str),
    /// Everything.
    All,
}

impl Target<'_> {
    /// The mark of a purge, where names are hashed with `key`.
    pub(crate) fn mark(self, key: [u8; 16]) -> Mark {
        match self {
            Target::Id(id) => Mark::Named(hash(key, b'i', id)),
            Target::OfApi { api, id } => Mark::Named(ApiName::new(key, api).of(hash(key, b'i', id))),
            Target::Group(group) => Mark::Named(hash(key, b'g', group)),
            Target::All => Mark::All,
        }
    }
}

/// A [`Target`] as a keyed hash, which tells nothing without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mark {
    /// One id, or one group.
    Named(u128),
    /// Everything.
    All,
}

/// The hash of an API's name. An id is hashed once; this makes of that the hash of the API's id.
#[derive(Clone, Copy)]
pub(crate) struct ApiName(u128);

impl ApiName {
    pub(crate) fn new(key: [u8; 16], api: &str) -> Self {
        Self(hash(key, b'a', api))
    }

    fn of(self, id: u128) -> u128 {
        self.0 ^ id
    }

    /// The marks that cover the API's id of this name: of any text that the name may stand for, of every API or of this one.
    pub(crate) fn marks_of(self, key: [u8; 16], id: &str) -> impl Iterator<Item = Mark> {
        let hashes = id::readings(id).map(move |text| hash(key, b'i', &text));
        hashes.flat_map(move |id| [id, self.of(id)]).map(Mark::Named)
    }
}

/// Called for every purge made in this process, before the purge takes effect.
type Listener = Box<dyn Fn(Target<'_>) + Send + Sync>;

/// The marks of purges. Moments are compared by the monotonic clock, which no step of the wall clock affects.
pub struct Purges {
    listener: ArcSwapOption<Listener>,
    /// Milliseconds until a mark expires.
    span: AtomicU64,
    /// Everything that was sent before this monotonic millisecond is purged. Never decreases.
    floor: AtomicU64,
    /// Number of marks in `table`: with none, look-ups take no lock.
    count: AtomicUsize,
    /// Counts the marks that were ever made.
    revision: AtomicU64,
    table: RwLock<MarkTable>,
}

struct MarkTable {
    /// The key with which names are hashed.
    key: [u8; 16],
    /// The hash of an id, of an API's id, or of a group → the monotonic millisecond of its last purge.
    last: HashMap<u128, u64, BuildHasherDefault<KeyHasher>>,
}

impl MarkTable {
    /// The last purge of any text that a group's name may stand for.
    fn last_of_group(&self, name: &str) -> Option<u64> {
        id::readings(name).filter_map(|text| self.last.get(&hash(self.key, b'g', &text)).copied()).max()
    }

    /// The last purge that covers an id of an API.
    fn last_of_id(&self, api: ApiName, id: &str) -> Option<u64> {
        let last = |mark| match mark {
            Mark::Named(name) => self.last.get(&name).copied(),
            Mark::All => None,
        };
        api.marks_of(self.key, id).filter_map(last).max()
    }
}

impl Purges {
    /// No marks yet. `key` must be random and secret; sidecars that share it hash the same targets alike. Marks expire
    /// after `span`, which is at least that of `span_of`.
    pub fn new(key: [u8; 16], span: Duration) -> Self {
        Self {
            listener: ArcSwapOption::empty(),
            span: AtomicU64::new(millis(span)),
            floor: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            revision: AtomicU64::new(0),
            table: RwLock::new(MarkTable { key, last: HashMap::default() }),
        }
    }

    /// Lets marks expire after `span`, if that is longer than before: links of an earlier configuration may still exist.
    pub(crate) fn lengthen(&self, span: Duration) {
        self.span.fetch_max(millis(span), Ordering::Relaxed);
    }

    /// Changes the key with which names are hashed. Marks under the old key are never found again, so everything up to `now` is covered.
    pub(crate) fn set_name_key(&self, key: [u8; 16], now: impl Fn() -> Moment) {
        let mut table = self.table.write();
        if table.key != key {
            self.raise_floor(now().monotonic);
            table.key = key;
        }
    }

    pub(crate) fn set_listener(&self, listener: Option<Listener>) {
        self.listener.store(listener.map(Arc::new));
    }

    /// Covers with `mark` what was sent at `at` or before. A mark never moves back.
    pub(crate) fn mark(&self, mark: Mark, at: Moment) {
        self.insert(&mut self.table.write(), mark, at);
    }

    /// Purges `targets`; returns once the millisecond of the purge is over, so that it covers nothing sent afterwards.
    pub(crate) async fn purge<'t>(&self, targets: impl IntoIterator<Item = Target<'t>>, clock: &Clock) -> Moment {
        let at = clock.now();
        let listener = self.listener.load_full();
        for target in targets {
            if let Some(listener) = &listener {
                listener(target);
            }
            self.leave(target, at);
        }
        while clock.now().monotonic <= at.monotonic {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        at
    }

    fn leave(&self, target: Target<'_>, at: Moment) {
        let mut table = self.table.write();
        let mark = target.mark(table.key);
        self.insert(&mut table, mark, at);
    }

    fn insert(&self, table: &mut MarkTable, mark: Mark, at: Moment) {
        let Mark::Named(name) = mark else { return self.raise_floor(at.monotonic) };
        if table.last.len() >= MOST && !table.last.contains_key(&name) {
            self.make_room(table, at);
        }
        let last = table.last.entry(name).or_default();
        *last = at.monotonic.max(*last);
        self.count.store(table.last.len(), Ordering::Release);
        self.count_revision();
    }

    /// The number of purges so far. Two equal numbers show that nothing was purged in between.
    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Must be called after the mark is inserted, so that a batch that reads the new revision sees the mark.
    fn count_revision(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// The marks for the links that the API of this name has in one group, or in none.
    pub fn of<'p>(&'p self, api: &'p str, group: Option<&str>) -> Marks<'p> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Marks { floor: self.floor(), api, purges: None };
        }
        let table = self.table.read();
        let marked = group.and_then(|group| table.last_of_group(group));
        let floor = self.floor();
        Marks { floor: marked.map_or(floor, |last| floor.max(last.saturating_add(1))), api, purges: Some(self) }
    }

    /// Everything sent before this monotonic millisecond is covered.
    pub(super) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }

    pub(super) fn sweep(&self, now: Moment) {
        self.remove_expired(&mut self.table.write(), now);
    }

    /// Number of marks in the table, [`MOST`] at most. A purge of everything raises the floor instead.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Removes expired marks, and the oldest quarter if few are expired, so that the cost is shared by many insertions.
    fn make_room(&self, table: &mut MarkTable, now: Moment) {
        self.remove_expired(table, now);
        if table.last.len() < MOST / 4 * 3 {
            return;
        }
        let mut moments: Vec<u64> = table.last.values().copied().collect();
        let oldest = moments.len() / 4;
        let (_, cut, _) = moments.select_nth_unstable(oldest);
        self.raise_floor(*cut);
        self.remove_expired(table, now);
    }

    fn raise_floor(&self, to: u64) {
        self.floor.fetch_max(to.saturating_add(1), Ordering::AcqRel);
        self.count_revision();
    }

    /// Removes marks that no link is old enough for, and those that the floor covers.
    fn remove_expired(&self, table: &mut MarkTable, now: Moment) {
        let span = self.span.load(Ordering::Relaxed);
        let floor = self.floor();
        table.last.retain(|_, last| *last >= floor && now.monotonic.saturating_sub(*last) <= span);
        // Stored after the floor was raised, so that a look-up that sees no marks sees the floor.
        self.count.store(table.last.len(), Ordering::Release);
    }
}

fn hash(key: [u8; 16], kind: u8, text: &str) -> u128 {
    let mut hash = SipHasher24::new_with_key(&key);
    hash.write_u8(kind);
    hash.write(text.as_bytes());
    hash.finish128().as_u128()
}

/// The longest that any link may be served.
pub(crate) fn span_of_links(freshness: &config::Freshness) -> Duration {
    freshness.max.saturating_add(freshness.stale_if_error).max(freshness.absent)
}

/// How long marks count under `config`: as long as any link may be served, or any call may last.
pub(crate) fn span_of(config: &Config) -> Duration {
    let link = span_of_links(&config.freshness);
    link.max(config.upstream.deadline).saturating_add(SLACK)
}

/// The marks for the links of one API and one group.
#[derive(Clone, Copy)]
pub struct Marks<'p> {
    /// What was sent before this monotonic millisecond is covered.
    floor: u64,
    /// The API's name.
    api: &'p str,
    /// `None`: there are no marks of ids.
    purges: Option<&'p Purges>,
}

impl<'p> Marks<'p> {
    /// Whether a mark covers what a call sent at `sent` brings of `id`.
    pub(crate) fn cover(&self, id: &str, sent: Moment) -> bool {
        self.lock().cover(id, sent)
    }

    /// The marks locked for reading, for many ids at once.
    pub(super) fn lock(&self) -> LockedMarks<'p> {
        let table = self.purges.map(|purges| purges.table.read());
        let table = table.map(|table| (ApiName::new(table.key, self.api), table));
        // Read under the lock: marks may have been merged into the floor and removed meanwhile.
        let floor = self.purges.map_or(0, Purges::floor);
        LockedMarks { floor: floor.max(self.floor), table }
    }
}

/// [`Marks`] whose table is locked for reading.
pub(super) struct LockedMarks<'p> {
    floor: u64,
    table: Option<(ApiName, RwLockReadGuard<'p, MarkTable>)>,
}

impl LockedMarks<'_> {
    #[inline]
    pub(super) fn cover(&self, id: &str, sent: Moment) -> bool {
        let last = || self.table.as_ref().and_then(|(api, table)| table.last_of_id(*api, id));
        sent.monotonic < self.floor || last().is_some_and(|last| sent.monotonic <= last)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_purge_holds_while_its_name_changes() {
        let purges = Purges::new([0; 16], Duration::from_secs(1000));
        let (now, over) = (AtomicU64::new(1), AtomicBool::new(false));
        let moment = || Moment { monotonic: now.load(Ordering::SeqCst), wall: 0 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for key in (0..=255).cycle().take_while(|_| !over.load(Ordering::SeqCst)) {
                    purges.set_name_key([key; 16], moment);
                }
            });
            for _ in 0..100_000 {
                now.fetch_add(1, Ordering::SeqCst);
                let at = moment();
                purges.leave(Target::Id("x"), at);
                let covered = purges.of("a", None).cover("x", at);
                if !covered {
                    over.store(true, Ordering::SeqCst);
                }
                assert!(covered, "a link from before the purge would be served");
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    fn at(monotonic: u64) -> Moment {
        Moment { monotonic, wall: 1_000_000 + monotonic }
    }

    fn purges() -> Purges {
        Purges::new([7; 16], Duration::from_millis(1000))
    }

    fn covers(purges: &Purges, group: Option<&str>, id: &str, sent: u64) -> bool {
        purges.of("a", group).cover(id, at(sent))
    }

    #[test]
    fn a_mark_covers_its_target_up_to_its_moment_and_nothing_else() {
        let purges = purges();
        assert!(!covers(&purges, None, "1", 0));
        purges.leave(Target::Id("1"), at(10));
        assert!(covers(&purges, None, "1", 10) && covers(&purges, Some("g"), "1", 9), "in every group");
        assert!(!covers(&purges, None, "1", 11) && !covers(&purges, None, "2", 10));
        purges.leave(Target::Group("g"), at(20));
        assert!(covers(&purges, Some("g"), "2", 20));
        assert!(!covers(&purges, Some("g"), "2", 21) && !covers(&purges, None, "2", 20));
        assert!(!covers(&purges, Some("h"), "2", 20) && !covers(&purges, None, "g", 20), "a group is no id");
        purges.leave(Target::Id("1"), at(5));
        assert!(covers(&purges, None, "1", 10), "never moved back");
        purges.leave(Target::OfApi { api: "a", id: "3" }, at(25));
        assert!(covers(&purges, None, "3", 25) && !covers(&purges, None, "3", 26));
        assert!(!purges.of("b", None).cover("3", at(25)), "an id of another API");
        assert!(purges.of("b", None).cover("1", at(10)), "of every API");
        purges.mark(Mark::All, at(30));
        assert!(covers(&purges, None, "3", 30) && !covers(&purges, None, "3", 31));
    }

    #[test]
    fn marks_expire_once_no_link_can_be_that_old() {
        let purges = purges();
        for (id, moment) in [("1", 10), ("2", 500)] {
            purges.leave(Target::Id(id), at(moment));
        }
        purges.sweep(at(1010));
        assert_eq!(purges.count(), 2);
        purges.sweep(at(1011));
        assert_eq!(purges.count(), 1);
        purges.lengthen(Duration::from_millis(5000));
        purges.sweep(at(5500));
        assert_eq!(purges.count(), 1);
        purges.sweep(at(5501));
        assert_eq!(purges.count(), 0);
    }

    #[test]
    fn too_many_marks_are_merged_into_one_that_covers_everything_older() {
        let purges = Purges::new([7; 16], Duration::from_secs(1000));
        let ids = 3 * MOST;
        for id in 0..ids {
            purges.leave(Target::Id(&id.to_string()), at(id as u64));
            assert!(purges.count() <= MOST);
        }
        for id in 0..ids {
            assert!(covers(&purges, None, &id.to_string(), id as u64), "{id}");
        }
        assert!(purges.count() >= MOST / 2, "only the oldest are merged");
        assert!(covers(&purges, None, "another", 0));
        assert!(!covers(&purges, None, "another", ids as u64 - MOST as u64 / 2), "what is newer is untouched");
        assert!(!covers(&purges, None, "0", ids as u64));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_after_a_purge_has_returned_is_not_covered() {
        let (purges, clock) = (purges(), Clock::simulated(0));
        let before = clock.now();
        purges.purge([Target::All], &clock).await;
        let marks = purges.of("a", None);
        assert!(marks.cover("1", before) && !marks.cover("1", clock.now()));
    }

    proptest! {
        /// Compares with a scan of all purges.
        #[test]
        fn marks_cover_what_the_list_of_purges_covers(
            list in proptest::collection::vec((0..6_u8, "[ab]", 0..50_u64), 0..20),
            asked in proptest::collection::vec(("[ab]", proptest::option::of("[ab]"), 0..50_u64), 20),
        ) {
            let purges = purges();
            let target = |kind: u8, text| match kind {
                0 | 1 => Target::Id(text),
                2 => Target::Group(text),
                3 => Target::OfApi { api: "a", id: text },
                4 => Target::OfApi { api: "b", id: text },
                _ => Target::All,
            };
            for (kind, text, moment) in &list {
                purges.leave(target(*kind, text), at(*moment));
            }
            for (id, group, sent) in &asked {
                let expected = list.iter().any(|(kind, text, moment)| sent <= moment && match target(*kind, text) {
                    Target::Id(purged) => purged == id,
                    Target::OfApi { api, id: purged } => api == "a" && purged == id,
                    Target::Group(purged) => Some(purged) == group.as_deref(),
                    Target::All => true,
                });
                prop_assert_eq!(covers(&purges, group.as_deref(), id, *sent), expected);
            }
        }
    }
}
