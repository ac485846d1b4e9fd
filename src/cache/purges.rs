//! Purges: what was fetched up to some moment counts no more.
//!
//! Links lie under keys that name their scope, so the links of one id, or of one group, are to be found only by going through
//! all. A purge leaves a mark instead: a keyed hash of what was purged, and the moment. Whatever was brought by a call that
//! was sent no later than that is covered by the mark: not served, not kept, not joined. So a purge costs the same for one
//! link as for a million, and holds against calls that are under way.
//!
//! Marks are bounded in number. Beyond that, the oldest make way for one mark over everything of their time: links are then
//! fetched again without need, but none is served that was purged. A mark dies once no link can be that old.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use siphasher::sip128::{Hasher128, SipHasher24};

use super::KeyHasher;
use crate::api::id;
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config};

/// Most marks at a time; each takes 32 bytes and its share of a table's room.
pub const MOST: usize = 1 << 16;
/// Parts of the table, each with a lock of its own.
const PARTS: usize = 16;
/// Beyond what a link or a call may last: moments are whole milliseconds.
const SLACK: Duration = Duration::from_secs(1);

/// What is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'t> {
    /// An id, in every scope.
    Id(&'t str),
    /// All ids of a group, for every caller.
    Group(&'t str),
    /// Everything.
    All,
}

/// A [`Target`] as a keyed hash: whoever lacks the key learns nothing from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub u128);

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0.to_be_bytes();
        state.write_u64(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A mark to be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Over one id, or one group.
    Over(Name),
    /// Over everything.
    All,
}

/// Hears of every purge made here before it counts here.
pub type Listener = Box<dyn Fn(Target<'_>) + Send + Sync>;

type Part = HashMap<Name, u64, BuildHasherDefault<KeyHasher>>;

/// The marks that purges have left. Moments are compared by the monotonic clock, which no step of the wall clock disturbs.
pub struct Purges {
    key: ArcSwap<[u8; 16]>,
    /// Held while the key changes, and from a mark's naming until it is there.
    naming: Mutex<()>,
    listener: ArcSwapOption<Listener>,
    /// Milliseconds that a mark counts.
    span: AtomicU64,
    /// Everything sent before this monotonic millisecond is covered.
    floor: AtomicU64,
    /// Marks in `parts`: with none, look-ups take no lock.
    count: AtomicUsize,
    /// What was purged → the monotonic millisecond of its last purge.
    parts: [RwLock<Part>; PARTS],
}

impl Purges {
    /// No marks yet. `key` must be random and secret; who shares it can name the same targets. Marks count for `span`, at
    /// least as long as any link or call may last: [`span_of`].
    pub fn new(key: [u8; 16], span: Duration) -> Self {
        Self {
            key: ArcSwap::from_pointee(key),
            naming: Mutex::new(()),
            listener: ArcSwapOption::empty(),
            span: AtomicU64::new(millis(span)),
            floor: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            parts: Default::default(),
        }
    }

    /// Lets marks count for `span`, if that is longer than before: links of a configuration before this one may still be
    /// there.
    pub fn lengthen(&self, span: Duration) {
        self.span.fetch_max(millis(span), Ordering::Relaxed);
    }

    /// Names targets by `key` from here on. Marks by another one are found no more, so all that is there `now` is covered:
    /// first, since whoever looks by the new key finds none of them.
    pub fn rename(&self, key: [u8; 16], now: impl Fn() -> Moment) {
        let _naming = self.name_alone();
        if **self.key.load() != key {
            self.raise_floor(now().monotonic);
            self.key.store(Arc::new(key));
        }
    }

    /// Lets `listener` hear of purges, in place of the one before.
    pub fn tell(&self, listener: Option<Listener>) {
        self.listener.store(listener.map(Arc::new));
    }

    /// The mark for `target`.
    pub fn of(&self, target: Target<'_>) -> Mark {
        Self::name_under(**self.key.load(), target)
    }

    /// The mark for `target` where targets are named by `key`.
    pub fn name_under(key: [u8; 16], target: Target<'_>) -> Mark {
        match target {
            Target::Id(id) => Mark::Over(name(&key, b'i', id)),
            Target::Group(group) => Mark::Over(name(&key, b'g', group)),
            Target::All => Mark::All,
        }
    }

    fn name(&self, kind: u8, text: &str) -> Name {
        name(&self.key.load(), kind, text)
    }

    /// Leaves `mark`: what was sent at `at` or before is covered from here on. A mark is never moved back.
    pub fn mark(&self, mark: Mark, at: Moment) {
        let Mark::Over(name) = mark else {
            self.raise_floor(at.monotonic);
            return;
        };
        let mut part = self.write(name);
        if part.len() >= MOST / PARTS && !part.contains_key(&name) {
            self.make_room(&mut part, at);
        }
        let mut added = 0;
        let last = part.entry(name).or_insert_with(|| {
            added = 1;
            0
        });
        *last = at.monotonic.max(*last);
        // Under the lock, as every change of it, so that it never says less than there is.
        self.count.fetch_add(added, Ordering::Release);
    }

    /// Purges `targets`, and returns once the millisecond of the purge is over, so that nothing that is sent afterwards is
    /// covered.
    pub async fn purge<'t>(&self, targets: impl IntoIterator<Item = Target<'t>>, clock: &Clock) -> Moment {
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

    /// Leaves the mark for `target`, under a name that does not change meanwhile.
    fn leave(&self, target: Target<'_>, at: Moment) {
        let _naming = self.name_alone();
        self.mark(self.of(target), at);
    }

    fn name_alone(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The marks as they stand, for the links of one group, or of none.
    pub fn of_group(&self, group: Option<&str>) -> Marks<'_> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Marks { floor: self.floor.load(Ordering::Acquire), table: None };
        }
        let marked = group.and_then(|group| self.last_of(b'g', group));
        // After the group's mark was looked for: one that had to make way has raised the floor before.
        let floor = self.floor.load(Ordering::Acquire);
        Marks { floor: marked.map_or(floor, |last| floor.max(last.saturating_add(1))), table: Some(self) }
    }

    /// The mark over everything alone.
    pub fn of_all(&self) -> Marks<'_> {
        Marks { floor: self.floor.load(Ordering::Acquire), table: None }
    }

    /// Forgets marks that no link can be old enough for.
    pub fn sweep(&self, now: Moment) {
        for part in &self.parts {
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            self.forget_dead(&mut part, now);
        }
    }

    /// Marks at this time, of [`MOST`]; without one over everything.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Half of the room is more than enough: the marks that go are a quarter at the least, so that going through a part is
    /// paid for by as many marks as it holds.
    fn make_room(&self, part: &mut Part, now: Moment) {
        self.forget_dead(part, now);
        if part.len() < MOST / PARTS / 4 * 3 {
            return;
        }
        let mut moments: Vec<u64> = part.values().copied().collect();
        let oldest = moments.len() / 4;
        let (_, cut, _) = moments.select_nth_unstable(oldest);
        let cut = *cut;
        // First the floor, then the marks: whoever finds no mark under the lock finds the floor raised.
        self.raise_floor(cut);
        self.forget(part, |last| last > cut);
    }

    fn raise_floor(&self, to: u64) {
        self.floor.fetch_max(to.saturating_add(1), Ordering::AcqRel);
    }

    fn forget_dead(&self, part: &mut Part, now: Moment) {
        let span = self.span.load(Ordering::Relaxed);
        let floor = self.floor.load(Ordering::Acquire);
        self.forget(part, |last| last >= floor && now.monotonic.saturating_sub(last) <= span);
    }

    fn forget(&self, part: &mut Part, stays: impl Fn(u64) -> bool) {
        let before = part.len();
        part.retain(|_, last| stays(*last));
        self.count.fetch_sub(before - part.len(), Ordering::Release);
    }

    /// The last mark over any text that `name` may stand for.
    fn last_of(&self, kind: u8, name: &str) -> Option<u64> {
        id::readings(name).filter_map(|text| self.last(self.name(kind, &text))).max()
    }

    fn last(&self, name: Name) -> Option<u64> {
        self.read(name).get(&name).copied()
    }

    fn part(&self, name: Name) -> &RwLock<Part> {
        let [.., low] = name.0.to_be_bytes();
        let [first, ..] = &self.parts;
        self.parts.get(usize::from(low) % PARTS).unwrap_or(first)
    }

    // No step leaves a part half-done, so one whose holder panicked is whole.
    fn read(&self, name: Name) -> RwLockReadGuard<'_, Part> {
        self.part(name).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, name: Name) -> RwLockWriteGuard<'_, Part> {
        self.part(name).write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(key: &[u8; 16], kind: u8, text: &str) -> Name {
    let mut hash = SipHasher24::new_with_key(key);
    hash.write_u8(kind);
    hash.write(text.as_bytes());
    Name(hash.finish128().as_u128())
}

/// The longest that any link may be served.
pub fn span_of_links(freshness: &config::Freshness) -> Duration {
    freshness.max.saturating_add(freshness.stale_if_error).max(freshness.absent)
}

/// How long marks have to count under `config`: as long as any link may be served, or any call may last.
pub fn span_of(config: &Config) -> Duration {
    let link = span_of_links(&config.freshness);
    link.max(config.upstream.deadline).saturating_add(SLACK)
}

/// The marks that concern the links of one group, taken once for a batch.
#[derive(Clone, Copy)]
pub struct Marks<'p> {
    /// What was sent before this monotonic millisecond is covered.
    floor: u64,
    /// Where the marks of ids are; `None`: there is none.
    table: Option<&'p Purges>,
}

impl Marks<'_> {
    /// Whether what a call sent at `sent` brings is purged, whatever its id.
    pub fn cover_all(&self, sent: Moment) -> bool {
        sent.monotonic < self.floor
    }

    /// Whether what a call sent at `sent` brings of `id` is purged.
    pub fn cover(&self, id: &str, sent: Moment) -> bool {
        sent.monotonic < self.floor
            || self.table.is_some_and(|purges| {
                let marked = purges.last_of(b'i', id).is_some_and(|last| sent.monotonic <= last);
                // Its mark may have made way meanwhile.
                marked || sent.monotonic < purges.floor.load(Ordering::Acquire)
            })
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
                    purges.rename([key; 16], moment);
                }
            });
            for _ in 0..100_000 {
                now.fetch_add(1, Ordering::SeqCst);
                let at = moment();
                purges.leave(Target::Id("x"), at);
                let covered = purges.of_group(None).cover("x", at);
                if !covered {
                    over.store(true, Ordering::SeqCst);
                }
                assert!(covered, "what was sent before the purge is served after it");
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
        purges.of_group(group).cover(id, at(sent))
    }

    #[test]
    fn a_mark_covers_its_target_up_to_its_moment_and_nothing_else() {
        let purges = purges();
        assert!(!covers(&purges, None, "1", 0));
        purges.mark(purges.of(Target::Id("1")), at(10));
        assert!(covers(&purges, None, "1", 10) && covers(&purges, Some("g"), "1", 9), "in every group");
        assert!(!covers(&purges, None, "1", 11) && !covers(&purges, None, "2", 10));
        purges.mark(purges.of(Target::Group("g")), at(20));
        assert!(covers(&purges, Some("g"), "2", 20));
        assert!(!covers(&purges, Some("g"), "2", 21) && !covers(&purges, None, "2", 20));
        assert!(!covers(&purges, Some("h"), "2", 20) && !covers(&purges, None, "g", 20), "a group is no id");
        purges.mark(purges.of(Target::Id("1")), at(5));
        assert!(covers(&purges, None, "1", 10), "never moved back");
        purges.mark(Mark::All, at(30));
        assert!(covers(&purges, None, "3", 30) && !covers(&purges, None, "3", 31));
    }

    #[test]
    fn marks_die_once_no_link_can_be_that_old() {
        let purges = purges();
        for (id, moment) in [("1", 10), ("2", 500)] {
            purges.mark(purges.of(Target::Id(id)), at(moment));
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
    fn too_many_marks_make_way_for_one_over_everything_of_their_time() {
        let purges = Purges::new([7; 16], Duration::from_secs(1000));
        let ids = 3 * MOST;
        for id in 0..ids {
            purges.mark(purges.of(Target::Id(&id.to_string())), at(id as u64));
            assert!(purges.count() <= MOST);
        }
        for id in 0..ids {
            assert!(covers(&purges, None, &id.to_string(), id as u64), "{id}");
        }
        assert!(purges.count() >= MOST / 2, "only the oldest have gone");
        assert!(covers(&purges, None, "another", 0));
        assert!(!covers(&purges, None, "another", ids as u64 - MOST as u64 / 2), "what is newer is untouched");
        assert!(!covers(&purges, None, "0", ids as u64));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_after_a_purge_has_returned_is_not_covered() {
        let (purges, clock) = (purges(), Clock::simulated(0));
        let before = clock.now();
        purges.purge([Target::All], &clock).await;
        let marks = purges.of_group(None);
        assert!(marks.cover("1", before) && !marks.cover("1", clock.now()));
    }

    proptest! {
        /// Against the list of all purges, gone through each time.
        #[test]
        fn marks_say_what_the_list_of_purges_says(
            list in proptest::collection::vec((0..4_u8, "[ab]", 0..50_u64), 0..20),
            asked in proptest::collection::vec(("[ab]", proptest::option::of("[ab]"), 0..50_u64), 20),
        ) {
            let purges = purges();
            let target = |kind: u8, text| match kind {
                0 | 1 => Target::Id(text),
                2 => Target::Group(text),
                _ => Target::All,
            };
            for (kind, text, moment) in &list {
                purges.mark(purges.of(target(*kind, text)), at(*moment));
            }
            for (id, group, sent) in &asked {
                let expected = list.iter().any(|(kind, text, moment)| sent <= moment && match target(*kind, text) {
                    Target::Id(purged) => purged == id,
                    Target::Group(purged) => Some(purged) == group.as_deref(),
                    Target::All => true,
                });
                prop_assert_eq!(covers(&purges, group.as_deref(), id, *sent), expected);
            }
        }
    }
}
