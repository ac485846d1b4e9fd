//! State of callers besides their entries: when the endpoint accepted them, their permits, flights and pauses.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;

use super::user::{Owner, Users};
use super::user_cache::{CachedUser, UserConfig};
use super::{Caller, KeyHasher, Scope};
use crate::clock::Moment;
use crate::limits::pause::Pause;

/// Callers that each of the two caches has room for: one is for accepted callers, the other for all others. A full cache evicts
/// the caller that was seen least recently; no look-up finds that caller's entries any more.
pub(super) const CALLERS: usize = 50_000;
/// Names in the fleet's journals up to which dead ones are not removed.
const FEW_NAMES: usize = 1024;
/// A caller that is not seen for this long is evicted. Its links are no longer fresh then, since `freshness.max` is at most a day.
const TIME_TO_IDLE: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct CallerState {
    /// Part of the hash of the caller's scopes: a new number makes all of its entries unreachable.
    pub(super) entries_version: AtomicU64,
    invalidations: AtomicU64,
    /// Serializes changes of `cached_user` and `is_refused`, so that an answer of the identity provider cannot undo a refusal.
    pub(super) user_updates: Mutex<()>,
    /// The owner of its entries while it is a caller by itself.
    pub(super) owner: Arc<Owner>,
    /// Its user, if that was looked up.
    pub(super) cached_user: ArcSwapOption<CachedUser>,
    /// The endpoint has refused it, and not accepted it since: until then the identity provider's answers do not count.
    pub(super) is_refused: AtomicBool,
    /// Names of this caller in the fleet's journals, once it was looked up in the shared tier. [`FleetNames`] has the state by each.
    fleet_names: ArcSwapOption<Vec<u128>>,
    pub(crate) pause: Pause,
}

impl CallerState {
    pub(super) fn new(entries_version: u64) -> Self {
        Self {
            entries_version: AtomicU64::new(entries_version),
            invalidations: AtomicU64::new(0),
            user_updates: Mutex::new(()),
            owner: Arc::new(Owner::new(0)),
            cached_user: ArcSwapOption::empty(),
            is_refused: AtomicBool::new(false),
            fleet_names: ArcSwapOption::empty(),
            pause: Pause::default(),
        }
    }

    /// Whether the endpoint has accepted the caller itself, and no invalidation came since.
    pub(super) fn is_accepted(&self) -> bool {
        self.owner.acceptance.is_known()
    }

    /// Caches the caller's user, if `condition` holds and the endpoint does not refuse the caller; returns whether it does. Entries are not
    /// dropped in between.
    pub(super) fn cache_user(&self, cached: CachedUser, condition: impl FnOnce() -> bool) -> bool {
        let _updates = self.user_updates.lock();
        let may_cache = condition() && !self.is_refused.load(Ordering::Acquire);
        if may_cache {
            self.cached_user.store(Some(Arc::new(cached)));
        }
        may_cache
    }

    /// Makes the next batch ask the endpoint, whatever is in memory.
    pub(super) fn invalidate(&self, now: Moment) {
        self.owner.acceptance.invalidate(now, || {
            self.invalidations.fetch_add(1, Ordering::AcqRel);
            self.owner.end_answers();
        });
    }

    /// Makes it a caller of its own that the endpoint has to accept again.
    pub(super) fn refuse(&self, now: Moment) {
        let updates = self.user_updates.lock();
        self.is_refused.store(true, Ordering::Release);
        self.cached_user.store(None);
        drop(updates);
        self.invalidate(now);
    }

    /// Its names in the fleet's journals, if they are known.
    pub(super) fn fleet_names(&self) -> Option<Arc<Vec<u128>>> {
        self.fleet_names.load_full()
    }

    /// Whether its names in the fleet's journals are known.
    pub(crate) fn has_fleet_names(&self) -> bool {
        self.fleet_names.load().is_some()
    }

    /// Number of invalidations. The result of a call counts only if this has not changed since the call was sent.
    pub(crate) fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Acquire)
    }
}

/// The states of callers by their names in the fleet's journals.
#[derive(Default)]
struct FleetNames {
    /// Several of one name: batch APIs each have states of their own, and a state that was evicted may still be in use.
    states: HashMap<u128, Vec<Weak<CallerState>>, BuildHasherDefault<KeyHasher>>,
    /// Dead states are removed when there are this many names.
    most: usize,
}

impl FleetNames {
    fn insert(&mut self, name: u128, state: &Arc<CallerState>) {
        let is_other = |known: &Weak<CallerState>| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(state);
        if self.states.len() >= self.most {
            self.states.retain(|_, states| {
                states.retain(|known| known.strong_count() > 0);
                !states.is_empty()
            });
            // So that the cost is shared by as many insertions.
            self.most = (2 * self.states.len()).max(FEW_NAMES);
        }
        let states = self.states.entry(name).or_default();
        states.retain(is_other);
        states.push(Arc::downgrade(state));
    }
}

type States = Cache<Caller, Arc<CallerState>, BuildHasherDefault<KeyHasher>>;

fn states() -> States {
    // LRU: the default policy would refuse new callers that are seen less often than those that are known.
    let states = Cache::builder().max_capacity(CALLERS as u64).eviction_policy(EvictionPolicy::lru());
    states.time_to_idle(TIME_TO_IDLE).build_with_hasher(BuildHasherDefault::default())
}

/// The states of all callers, and the key of the hashes that tell callers apart. Outlives a configuration.
pub struct CallerStates {
    pub(super) key: [u8; 16],
    pub(super) accepted: States,
    /// Callers that the endpoint had not accepted when they were first seen: made-up tokens evict nobody from `accepted`.
    pub(super) unaccepted: States,
    fleet_names: Mutex<FleetNames>,
    users: Mutex<Users>,
    pub(super) user_config: Mutex<UserConfig>,
    /// The masks of all existing [`super::Callers`]. XOR with two masks turns a caller of one API into the caller that the same credential
    /// has at the other.
    masks: Mutex<Vec<Weak<u128>>>,
    next_entries_version: AtomicU64,
    changes: AtomicU64,
}

impl CallerStates {
    /// No callers yet. `key` must be random and secret.
    pub fn new(key: [u8; 16]) -> Self {
        Self {
            key,
            accepted: states(),
            unaccepted: states(),
            fleet_names: Mutex::default(),
            users: Mutex::default(),
            user_config: Mutex::default(),
            masks: Mutex::default(),
            next_entries_version: AtomicU64::new(1),
            changes: AtomicU64::new(0),
        }
    }

    pub(super) fn get_or_insert(&self, caller: Caller) -> Arc<CallerState> {
        let new = || {
            // Before the new state can be found: a state of this caller that was evicted must not be used beside it.
            self.changed();
            Arc::new(CallerState::new(self.new_entries_version()))
        };
        self.accepted.get(&caller).unwrap_or_else(|| self.unaccepted.get_with(caller, new))
    }

    /// Number of callers that the endpoint has accepted.
    pub(crate) fn accepted(&self) -> u64 {
        // The count lags behind.
        self.accepted.run_pending_tasks();
        self.accepted.entry_count()
    }

    /// For each user that callers are known to be at `now`, their number. Looks at all callers.
    pub(crate) fn users(&self, now: Moment) -> HashMap<Scope, usize> {
        let mut users = HashMap::new();
        // A caller may be in both.
        let others = self.unaccepted.iter().filter(|(caller, _)| !self.accepted.contains_key(&**caller));
        for (_, state) in self.accepted.iter().chain(others) {
            if let Some(membership) = state.cached_user.load().as_ref().and_then(|known| known.membership.as_ref())
                && now.is_before(membership.until)
            {
                *users.entry(membership.scope).or_default() += 1;
            }
        }
        users
    }

    /// All states of a caller: it may be in both caches, or evicted and seen again, so that there are two.
    pub(super) fn all(&self, caller: Caller) -> impl Iterator<Item = Arc<CallerState>> {
        [&self.accepted, &self.unaccepted].into_iter().filter_map(move |states| states.get(&caller))
    }

    /// Registers a mask until the returned reference is dropped.
    pub(super) fn add_mask(&self, mask: u128) -> Arc<u128> {
        let mask = Arc::new(mask);
        let mut masks = self.masks.lock();
        masks.retain(|known| known.strong_count() > 0);
        masks.push(Arc::downgrade(&mask));
        mask
    }

    /// The states of the callers that the credential of `caller` has at other APIs; `mask` is that of its own API.
    pub(super) fn at_other_apis(&self, caller: Caller, mask: u128) -> Vec<Arc<CallerState>> {
        let masks: Vec<_> =
            self.masks.lock().iter().filter_map(Weak::upgrade).filter(|other| **other != mask).collect();
        masks.into_iter().flat_map(|other| self.all(Caller(caller.0 ^ mask ^ *other))).collect()
    }

    pub(super) fn insert_accepted(&self, caller: Caller, state: &Arc<CallerState>) {
        self.accepted.get_with(caller, || {
            // A state of before an eviction may come back, beside a new one.
            self.changed();
            Arc::clone(state)
        });
    }

    /// Drops all entries of `state`'s caller at once; those of its user stay, for the user's other callers. `no_user` if the identity
    /// provider says that the token is not active; without it, the endpoint refuses the caller.
    pub(super) fn drop_entries(&self, state: &CallerState, now: Moment, no_user: Option<&Arc<CachedUser>>) {
        let updates = state.user_updates.lock();
        // The endpoint's refusal counts until the endpoint accepts the caller.
        let is_refused = no_user.is_none() || state.is_refused.load(Ordering::Acquire);
        state.is_refused.store(is_refused, Ordering::Release);
        state.cached_user.store(no_user.filter(|_| !is_refused).cloned());
        state.entries_version.store(self.new_entries_version(), Ordering::Release);
        drop(updates);
        state.invalidate(now);
    }

    /// Drops all entries of `state`'s caller, which the endpoint has refused to another sidecar of the fleet.
    pub(crate) fn refused_elsewhere(&self, state: &CallerState, now: Moment) {
        self.drop_entries(state, now, None);
        self.changed();
    }

    /// The owner of the entries of the user of `scope`.
    pub(super) fn owner_of(&self, scope: Scope) -> Arc<Owner> {
        // No revision that a former owner of these entries has had.
        self.users.lock().owner(scope, || self.new_entries_version() << 32)
    }

    /// Records the names of a caller in the fleet's journals.
    pub(crate) fn set_fleet_names(&self, state: &Arc<CallerState>, names: Vec<u128>) {
        if state.fleet_names.load().as_deref() == Some(&names) {
            return;
        }
        let mut index = self.fleet_names.lock();
        names.iter().for_each(|name| index.insert(*name, state));
        drop(index);
        state.fleet_names.store(Some(Arc::new(names)));
    }

    /// Drops all entries of the caller that the fleet's journal names `name`, if it is known here; returns how many states were looked
    /// at.
    pub(crate) fn drop_named(&self, name: u128, now: Moment) -> usize {
        let states = self.fleet_names.lock().states.get(&name).cloned().unwrap_or_default();
        for state in states.iter().filter_map(Weak::upgrade) {
            self.drop_entries(&state, now, None);
        }
        self.changed();
        states.len()
    }

    /// Users that are remembered.
    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.users.lock().len()
    }

    /// Names in the fleet's journals that are remembered.
    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.fleet_names.lock().states.len()
    }

    /// Counts what makes a caller's state that was looked up before outdated, whichever caller's: a new state, and the end of what a
    /// state allows. A state that a connection remembers may have been evicted, and is not updated then.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that no caller has had.
    fn new_entries_version(&self) -> u64 {
        self.next_entries_version.fetch_add(1, Ordering::Relaxed)
    }
}
