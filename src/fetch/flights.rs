//! What is in flight: one flight per id, who waits for it, and what that may cost.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tower::retry::budget::TpsBudget;

use super::calls::{Lane, LaneKey, PendingId};
use super::{FetchContext, FlightResult, Inner, Wanted};
use crate::auth::{CallerState, Key};
use crate::cache::purges::Marks;
use crate::clock::{Moment, millis};
use crate::limits::permits::Permits;

/// Refreshes ahead, as a share of recent calls; one a second is allowed besides, or a cache that answers everything
/// from memory, and so makes no other calls, could not keep its links from going cold.
const REFRESH_SHARE: f32 = 0.1;
/// Calls that find out whose fault a failed one was: at worst, and beyond these few, as many again as all others, so that
/// an endpoint that answers everyone with a 500 gets no storm.
const EXTRA_CALLS_A_SECOND: u32 = 10;
/// Callers that the endpoint has not accepted may together have one part in so many of the calls at a time.
const UNACCEPTED_PART: usize = 4;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// What is in flight, and what it may cost. It outlasts a configuration: an id is fetched once, also over a reload.
pub struct Flights {
    /// Allows calls that find out whose fault a failed one was, as a share of calls.
    pub(super) extra_calls: TpsBudget,
    /// Allows refreshes ahead as a share of calls.
    pub(super) refreshes: TpsBudget,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) state: Mutex<State>,
    /// Permits of calls under way.
    pub(super) calls: Permits,
    /// Of those, for callers that the endpoint has not accepted: tokens can be made up, and their calls may hang.
    pub(super) unaccepted_calls: Permits,
    /// Calls that one caller may have under way.
    pub(super) calls_per_caller: AtomicUsize,
    /// Ids in flight.
    pub(super) in_flight: AtomicUsize,
    /// Of those, for callers that the endpoint has not accepted.
    pub(super) unaccepted_in_flight: AtomicUsize,
    /// Batches waiting.
    pub(super) waiters: AtomicUsize,
    /// `freshness.min_remaining` of the configuration in force, in milliseconds.
    pub(super) floor: AtomicU64,
}

impl Flights {
    /// None yet, and `calls` calls at a time. Must be called within a tokio runtime, on which they then run.
    pub fn new(calls: usize) -> Self {
        Self {
            extra_calls: TpsBudget::new(BUDGET_WINDOW, EXTRA_CALLS_A_SECOND, 1.0),
            refreshes: TpsBudget::new(BUDGET_WINDOW, 1, REFRESH_SHARE),
            runtime: tokio::runtime::Handle::current(),
            state: Mutex::default(),
            calls: Permits::new(calls),
            unaccepted_calls: Permits::new(calls.div_ceil(UNACCEPTED_PART)),
            calls_per_caller: AtomicUsize::new(calls.div_ceil(2)),
            in_flight: AtomicUsize::new(0),
            unaccepted_in_flight: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
            floor: AtomicU64::new(0),
        }
    }

    /// What is brought from now on is kept only under a configuration with this floor, or a higher one.
    pub fn set_floor(&self, min_remaining: Duration) {
        self.floor.store(millis(min_remaining), Ordering::Release);
    }

    /// Ids in flight, and batches waiting.
    pub fn in_use(&self) -> (usize, usize) {
        (self.in_flight.load(Ordering::Relaxed), self.waiters.load(Ordering::Relaxed))
    }

    /// From now on, `calls` calls at a time, of which one caller may have half.
    pub fn resize(&self, calls: usize) {
        self.calls.resize(calls);
        self.unaccepted_calls.resize(calls.div_ceil(UNACCEPTED_PART));
        self.calls_per_caller.store(calls.div_ceil(2), Ordering::Relaxed);
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) flights: HashMap<Key, Arc<Flight>>,
    pub(super) lanes: HashMap<LaneKey, Lane>,
}

impl State {
    /// Forgets `flight`, unless another one has taken its place.
    pub(super) fn forget(&mut self, key: Key, flight: &Arc<Flight>) {
        if let hash_map::Entry::Occupied(entry) = self.flights.entry(key)
            && Arc::ptr_eq(entry.get(), flight)
        {
            entry.remove();
        }
    }

    /// A new flight, for a call of `inner`'s.
    pub(super) fn begin(
        &mut self,
        inner: &Arc<Inner>,
        terms: &Arc<FetchContext>,
        wanted: &Wanted,
        permit: Permit,
    ) -> PendingId {
        let flight = Arc::new(Flight {
            landed: OnceLock::new(),
            bell: Notify::new(),
            awaited: AtomicUsize::new(0),
            joined: AtomicBool::new(false),
            left: OnceLock::new(),
            hops: terms.hops,
            _permit: permit,
        });
        self.flights.insert(wanted.key, Arc::clone(&flight));
        PendingId {
            wanted: wanted.clone(),
            flight,
            terms: Arc::clone(terms),
            inner: Arc::clone(inner),
            leased: false,
            background: false,
        }
    }

    /// Queues flights of one lane for a call.
    pub(super) fn queue(&mut self, lane: LaneKey, passengers: Vec<PendingId>) {
        if !passengers.is_empty() {
            self.lanes.entry(lane).or_default().queue.extend(passengers);
        }
    }
}

/// One id being fetched.
pub(super) struct Flight {
    pub(super) landed: OnceLock<FlightResult>,
    pub(super) bell: Notify,
    /// Batches that wait for it.
    pub(super) awaited: AtomicUsize,
    pub(super) joined: AtomicBool,
    /// When its call left the queue.
    pub(super) left: OnceLock<Moment>,
    /// Sidelinks that its batch had passed.
    pub(super) hops: usize,
    /// Freed when the flight is forgotten by all: a client that leaves gains nothing.
    pub(super) _permit: Permit,
}

impl Flight {
    /// Whether what it brings of `id` is purged: its call left before. What still waits for its call does not.
    pub(super) fn is_purged(&self, id: &str, marks: &Marks<'_>) -> bool {
        self.left.get().is_some_and(|left| marks.cover(id, *left))
    }

    /// Ends it, once.
    pub(super) fn arrive(&self, landed: FlightResult) {
        let _ = self.landed.set(landed);
        self.bell.notify_waiters();
    }

    pub(super) async fn land(&self) -> FlightResult {
        loop {
            let bell = self.bell.notified();
            tokio::pin!(bell);
            bell.as_mut().enable();
            if let Some(landed) = self.landed.get() {
                return landed.clone();
            }
            bell.await;
        }
    }
}

/// A batch's place on a flight.
pub(super) struct Place {
    pub(super) flight: Arc<Flight>,
    pub(super) joined: bool,
}

impl Place {
    pub(super) fn on(flight: &Arc<Flight>, joined: bool) -> Self {
        flight.awaited.fetch_add(1, Ordering::Relaxed);
        if joined {
            flight.joined.store(true, Ordering::Relaxed);
        }
        Self { flight: Arc::clone(flight), joined }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flight.awaited.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to have one id in flight.
pub(super) struct Permit {
    pub(super) flights: Arc<Flights>,
    pub(super) caller_state: Arc<CallerState>,
    /// Whether the endpoint had accepted the caller when it was given.
    pub(super) accepted: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.caller_state.flights.fetch_sub(1, Ordering::Relaxed);
        if !self.accepted {
            self.flights.unaccepted_in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        self.flights.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch's right to wait.
pub(super) struct Waiting<'f>(pub(super) &'f AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
