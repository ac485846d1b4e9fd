//! What is remembered of callers besides their links: when the endpoint accepted them, and what they hold.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use super::Caller;
use crate::clock::Moment;
use crate::limits::pause::Pause;
use crate::limits::permits::Permits;
use crate::shared::CallerKeys;

/// Most callers remembered at a time: so many that the endpoint has accepted, and so many that it has not, apart, so that
/// nobody crowds out callers by making up tokens. The least seen is forgotten, and its links with it.
pub(super) const CALLERS: usize = 50_000;

/// What is remembered of a caller besides its links.
pub struct CallerState {
    pub(super) generation: AtomicU64,
    /// Send time of the last call that the endpoint accepted, on both clocks; `u64::MAX`: never.
    accepted: [AtomicU64; 2],
    /// How often its acceptance has been invalidated.
    invalidations: AtomicU64,
    /// Serializes updates, so that a concurrent acceptance cannot undo an invalidation.
    noting: Mutex<()>,
    /// Permits of calls under way for this caller: no one may take all there are. How many, who asks for one says.
    pub(crate) calls: Permits,
    /// Ids being fetched for this caller right now.
    pub(crate) flights: AtomicUsize,
    /// Its keys in the shared tier, once it has been looked for there.
    pub(crate) fleet: ArcSwapOption<CallerKeys>,
    /// Unix milliseconds of the last invalidation: an acceptance elsewhere must be later.
    invalidated: AtomicU64,
    /// The endpoint has asked this caller for a pause.
    pub(crate) pause: Pause,
}

impl CallerState {
    fn new(generation: u64) -> Self {
        Self {
            invalidations: AtomicU64::new(0),
            noting: Mutex::new(()),
            calls: Permits::new(0),
            generation: AtomicU64::new(generation),
            accepted: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
            flights: AtomicUsize::new(0),
            fleet: ArcSwapOption::empty(),
            invalidated: AtomicU64::new(0),
            pause: Pause::default(),
        }
    }

    /// Takes over an acceptance from elsewhere, in a call sent at `sent`. Whether it says more than what is known.
    pub(super) fn accept_elsewhere(&self, sent: Moment) -> bool {
        let [_, wall] = &self.accepted;
        self.accept_if(sent, || {
            let known = wall.load(Ordering::Relaxed);
            let newer = known == u64::MAX || known < sent.wall;
            newer && sent.wall > self.invalidated.load(Ordering::Acquire)
        })
    }

    /// Whether the endpoint was known to accept it, and has not been invalidated since.
    pub(crate) fn is_accepted(&self) -> bool {
        let [monotonic, _] = &self.accepted;
        monotonic.load(Ordering::Relaxed) != u64::MAX
    }

    /// Notes an acceptance by a call sent at `sent`, if that `proves` it; whether it does. No invalidation comes in between.
    pub(super) fn accept_if(&self, sent: Moment, proves: impl FnOnce() -> bool) -> bool {
        let _noting = self.note();
        let proves = proves();
        if proves {
            let [monotonic, wall] = &self.accepted;
            monotonic.store(sent.monotonic, Ordering::Relaxed);
            wall.store(sent.wall, Ordering::Relaxed);
        }
        proves
    }

    /// Makes the next batch ask the endpoint, whatever is in memory.
    pub fn invalidate(&self, now: Moment) {
        let _noting = self.note();
        self.invalidated.fetch_max(now.wall, Ordering::AcqRel);
        self.invalidations.fetch_add(1, Ordering::AcqRel);
        for clock in &self.accepted {
            clock.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn note(&self) -> MutexGuard<'_, ()> {
        self.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with each invalidation. What a call brings counts only if this is as it was when the call left.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Acquire)
    }

    pub(super) fn accepted_within(&self, span: u64, now: Moment) -> bool {
        self.accepted_left(span, now).is_some()
    }

    pub(super) fn accepted_left(&self, span: u64, now: Moment) -> Option<u64> {
        let [monotonic, wall] = &self.accepted;
        let at = Moment { monotonic: monotonic.load(Ordering::Relaxed), wall: wall.load(Ordering::Relaxed) };
        let is_accepted = at.monotonic != u64::MAX && at.wall != u64::MAX;
        is_accepted.then(|| now.since(at)).filter(|since| *since < span).map(|since| span - since)
    }
}

type Table = quick_cache::sync::Cache<Caller, Arc<CallerState>>;

/// The states of all callers, and the key by which they are told apart. They outlast a configuration.
pub struct CallerStates {
    pub(super) key: [u8; 16],
    /// Of callers that the endpoint has accepted once.
    pub(super) accepted: Table,
    /// Of those that it has not.
    pub(super) strangers: Table,
    /// Generations are never used twice, so a caller forgotten and met again finds none of its old links.
    next_generation: AtomicU64,
}

impl CallerStates {
    /// Of nobody yet. `key` must be random and secret.
    pub fn new(key: [u8; 16]) -> Self {
        Self { key, accepted: Table::new(CALLERS), strangers: Table::new(CALLERS), next_generation: AtomicU64::new(1) }
    }

    pub(super) fn of(&self, caller: Caller) -> Arc<CallerState> {
        if let Some(caller_state) = self.accepted.get(&caller) {
            return caller_state;
        }
        let stranger = || Ok::<_, Infallible>(Arc::new(CallerState::new(self.generation())));
        let Ok(caller_state) = self.strangers.get_or_insert_with(&caller, stranger);
        caller_state
    }

    /// What is remembered of `caller`, if anything, which does not become more by it.
    pub(super) fn peek(&self, caller: Caller) -> Option<Arc<CallerState>> {
        self.accepted.peek(&caller).or_else(|| self.strangers.peek(&caller))
    }

    /// The caller is no stranger any more.
    pub(super) fn promote(&self, caller: Caller, caller_state: &Arc<CallerState>) {
        let Ok(_) = self.accepted.get_or_insert_with(&caller, || Ok::<_, Infallible>(Arc::clone(caller_state)));
    }

    /// Drops everything kept for the caller that the fleet's journal calls so, if it is known here.
    pub(crate) fn drop_named(&self, name: u128, now: Moment) {
        for (_, caller_state) in self.accepted.iter().chain(self.strangers.iter()) {
            if caller_state.fleet.load().as_ref().is_some_and(|keys| keys.is_called(name)) {
                caller_state.generation.store(self.generation(), Ordering::Release);
                caller_state.invalidate(now);
            }
        }
    }

    /// One that was never used.
    pub(super) fn generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }
}
