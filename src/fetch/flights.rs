//! Flights: the ids that are being fetched now, the batches that wait for them, and the limits on both.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tower::retry::budget::TpsBudget;

use super::calls::{CallQueue, PendingId, QueueKey};
use super::{FetchContext, FetchResult, Fetcher, KeyedId};
use crate::auth::{CallerState, Key};
use crate::cache::purges::Marks;
use crate::clock::{Moment, millis};
use crate::limits::permits::Permits;

/// Refreshes ahead, as a share of recent calls. One a second is allowed besides: a cache that answers everything from memory
/// makes no other calls, and could not keep its links fresh.
const REFRESH_SHARE: f32 = 0.1;
/// Calls a second that repeat a failed call for one batch alone; beyond these, as many as other calls, so that an endpoint
/// that answers everyone with a 500 gets at most twice the load.
const EXTRA_CALLS_A_SECOND: u32 = 10;
/// Callers that the endpoint has not accepted share one part in this many of the calls at a time.
const UNACCEPTED_PART: usize = 4;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// The flights, and their limits. Reloads keep them, so that an id is fetched once across a reload.
pub struct Flights {
    /// Allows calls that repeat a failed call for one batch alone, as a share of calls.
    pub(super) extra_calls: TpsBudget,
    /// Allows refreshes ahead, as a share of calls.
    pub(super) refreshes: TpsBudget,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) state: Mutex<FlightMap>,
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
    /// Batches that wait for flights.
    pub(super) waiters: AtomicUsize,
    /// `freshness.min_remaining` of the configuration in force, in milliseconds.
    min_remaining: AtomicU64,
}

impl Flights {
    /// No flights, and `calls` calls at a time. Must be called within a tokio runtime, on which the calls run.
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
            min_remaining: AtomicU64::new(0),
        }
    }

    /// Sets `freshness.min_remaining`: entries are stored only under a configuration with this value or a higher one.
    pub fn set_min_remaining(&self, min_remaining: Duration) {
        self.min_remaining.store(millis(min_remaining), Ordering::Release);
    }

    /// Whether entries that were judged by `min_remaining` may be stored.
    pub(super) fn may_store(&self, min_remaining: Duration) -> bool {
        millis(min_remaining) >= self.min_remaining.load(Ordering::Acquire)
    }

    /// Ids in flight, and batches that wait.
    pub fn in_use(&self) -> (usize, usize) {
        (self.in_flight.load(Ordering::Relaxed), self.waiters.load(Ordering::Relaxed))
    }

    /// Allows `calls` calls at a time, half of them to one caller.
    pub fn resize(&self, calls: usize) {
        self.calls.resize(calls);
        self.unaccepted_calls.resize(calls.div_ceil(UNACCEPTED_PART));
        self.calls_per_caller.store(calls.div_ceil(2), Ordering::Relaxed);
    }
}

/// What one lock guards: which ids are in flight, and which of them wait for a call.
#[derive(Default)]
pub(super) struct FlightMap {
    pub(super) flights: HashMap<Key, Arc<Flight>>,
    pub(super) queues: HashMap<QueueKey, CallQueue>,
}

impl FlightMap {
    /// Removes `flight`, unless another one has replaced it.
    pub(super) fn remove(&mut self, key: Key, flight: &Arc<Flight>) {
        if let hash_map::Entry::Occupied(entry) = self.flights.entry(key)
            && Arc::ptr_eq(entry.get(), flight)
        {
            entry.remove();
        }
    }

    /// Starts a flight for `id`, which `fetcher` is to fetch.
    pub(super) fn start(
        &mut self,
        fetcher: &Arc<Fetcher>,
        context: &Arc<FetchContext>,
        id: &KeyedId,
        permit: InFlightPermit,
    ) -> PendingId {
        let flight = Arc::new(Flight {
            result: OnceLock::new(),
            completed: Notify::new(),
            waiters: AtomicUsize::new(0),
            joined: AtomicBool::new(false),
            sent: OnceLock::new(),
            hops: context.hops,
            _permit: permit,
        });
        self.flights.insert(id.key, Arc::clone(&flight));
        PendingId {
            id: id.clone(),
            flight,
            context: Arc::clone(context),
            fetcher: Arc::clone(fetcher),
            leased: false,
            background: false,
        }
    }

    /// Queues flights for a call.
    pub(super) fn enqueue(&mut self, key: QueueKey, pending: Vec<PendingId>) {
        if !pending.is_empty() {
            self.queues.entry(key).or_default().pending.extend(pending);
        }
    }
}

/// One id that is being fetched.
pub(super) struct Flight {
    result: OnceLock<FetchResult>,
    completed: Notify,
    /// Batches that wait for it.
    pub(super) waiters: AtomicUsize,
    pub(super) joined: AtomicBool,
    /// When its call left the queue, or the shared tier was asked.
    pub(super) sent: OnceLock<Moment>,
    /// How many sidelinks its batch had passed.
    pub(super) hops: usize,
    /// Given back with the last reference to the flight: a client that leaves frees nothing early.
    _permit: InFlightPermit,
}

impl Flight {
    /// Whether a purge covers what the flight brings of `id`, since it was sent before the purge. A flight that still waits
    /// for its call is not covered.
    pub(super) fn is_purged(&self, id: &str, marks: &Marks<'_>) -> bool {
        self.sent.get().is_some_and(|sent| marks.cover(id, *sent))
    }

    /// Ends the flight, once.
    pub(super) fn complete(&self, result: FetchResult) {
        let _ = self.result.set(result);
        self.completed.notify_waiters();
    }

    /// Waits for the flight's end.
    pub(super) async fn wait(&self) -> FetchResult {
        loop {
            let completed = self.completed.notified();
            tokio::pin!(completed);
            completed.as_mut().enable();
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            completed.await;
        }
    }
}

/// A batch that waits for a flight.
pub(super) struct FlightWaiter {
    pub(super) flight: Arc<Flight>,
    /// Whether another batch had started the flight.
    pub(super) joined: bool,
}

impl FlightWaiter {
    pub(super) fn new(flight: &Arc<Flight>, joined: bool) -> Self {
        flight.waiters.fetch_add(1, Ordering::Relaxed);
        if joined {
            flight.joined.store(true, Ordering::Relaxed);
        }
        Self { flight: Arc::clone(flight), joined }
    }
}

impl Drop for FlightWaiter {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to have one id in flight (`limits.in_flight`).
pub(super) struct InFlightPermit {
    pub(super) flights: Arc<Flights>,
    pub(super) caller_state: Arc<CallerState>,
    /// Whether the endpoint had accepted the caller when the permit was given.
    pub(super) accepted: bool,
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.caller_state.flights.fetch_sub(1, Ordering::Relaxed);
        if !self.accepted {
            self.flights.unaccepted_in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        self.flights.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch's right to wait (`limits.waiters`).
pub(super) struct WaiterPermit<'f>(pub(super) &'f AtomicUsize);

impl Drop for WaiterPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
