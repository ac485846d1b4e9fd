//! Flights: the ids that are being fetched now, and the batches that wait for them; the state of fetching that reloads keep.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::TpsBudget;

use super::calls::{CallQueue, PendingId, QueueKey};
use super::{Cause, FetchContext, FetchResult, Fetcher};
use crate::auth::{Caller, Identity, Key};
use crate::cache::purges::Marks;
use crate::clock::{Moment, millis};
use crate::error::{Error, Limit};
use crate::limits::budget::Reservation;
use crate::limits::permits::Permits;

/// The share of recent calls that refreshes ahead may add. One refresh a second is allowed in addition: a cache that answers
/// everything from memory makes no other calls, and could not keep its links fresh.
const REFRESH_SHARE: f32 = 0.1;
/// Calls a second that may repeat a failed call for one batch alone. Each other call allows one more, so an endpoint that answers
/// everyone with a 500 gets at most twice the load, and this many calls a second.
const EXTRA_CALLS_A_SECOND: u32 = 10;
/// Callers that the endpoint has not accepted share the permits of calls, divided by this.
const UNACCEPTED_DIVISOR: usize = 4;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// The flights, and the limits and budgets of calls. Reloads keep it, so that an id is fetched once across a reload.
pub struct FetchState {
    /// Allows calls that repeat a failed call for one batch alone, as a share of calls.
    pub(super) extra_calls: TpsBudget,
    /// Allows refreshes ahead, as a share of calls.
    pub(super) refreshes: TpsBudget,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) flights: Mutex<Flights>,
    /// Permits of calls under way.
    pub(super) calls: Permits,
    /// Permits of calls for callers that the endpoint has not accepted, in addition to one of `calls`: tokens can be made up, and
    /// their calls may hang.
    pub(super) unaccepted_calls: Permits,
    /// Calls that one caller may have under way.
    pub(super) calls_per_caller: AtomicUsize,
    /// Ids in flight.
    pub(super) in_flight: Arc<AtomicUsize>,
    /// Ids in flight for callers that the endpoint has not accepted; `in_flight` counts them too.
    pub(super) unaccepted_in_flight: Arc<AtomicUsize>,
    /// Batches that wait for flights.
    pub(super) waiters: Arc<AtomicUsize>,
    /// `freshness.min_remaining` of the configuration in force, in milliseconds.
    min_remaining: AtomicU64,
}

impl FetchState {
    /// No flights, and `calls` calls at a time. Must be called within a tokio runtime, on which the calls run.
    pub fn new(calls: usize) -> Self {
        Self {
            extra_calls: TpsBudget::new(BUDGET_WINDOW, EXTRA_CALLS_A_SECOND, 1.0),
            refreshes: TpsBudget::new(BUDGET_WINDOW, 1, REFRESH_SHARE),
            runtime: tokio::runtime::Handle::current(),
            flights: Mutex::default(),
            calls: Permits::new(calls),
            unaccepted_calls: Permits::new(calls.div_ceil(UNACCEPTED_DIVISOR)),
            calls_per_caller: AtomicUsize::new(calls.div_ceil(2)),
            in_flight: Arc::default(),
            unaccepted_in_flight: Arc::default(),
            waiters: Arc::default(),
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
        self.unaccepted_calls.resize(calls.div_ceil(UNACCEPTED_DIVISOR));
        self.calls_per_caller.store(calls.div_ceil(2), Ordering::Relaxed);
    }
}

/// Two maps under one lock: the ids in flight, and the queues of ids that wait for a call.
#[derive(Default)]
pub(super) struct Flights {
    pub(super) by_key: HashMap<Key, Arc<Flight>>,
    pub(super) queues: HashMap<QueueKey, CallQueue>,
}

impl Flights {
    /// Lets batches join the flight of `pending`.
    pub(super) fn add(&mut self, pending: &PendingId) {
        self.by_key.insert(pending.id.key, Arc::clone(&pending.flight));
    }

    /// Removes the flight of `pending`, unless another one has replaced it. Must be called after its entry is stored, if it is.
    pub(super) fn remove(&mut self, pending: &PendingId) {
        if let hash_map::Entry::Occupied(entry) = self.by_key.entry(pending.id.key)
            && Arc::ptr_eq(entry.get(), &pending.flight)
        {
            entry.remove();
        }
        if pending.flight.refetches.load(Ordering::Relaxed) {
            pending.context.identity.owner().end_answers();
        }
    }
}

/// One id that is being fetched.
pub(super) struct Flight {
    result: SetOnce<FetchResult>,
    /// Number of batches that wait for it.
    pub(super) waiters: AtomicUsize,
    pub(super) joined: AtomicBool,
    /// Whether a batch that started or joined it fetches an id that may be fresh in memory ([`FetchContext::refetches`]).
    refetches: AtomicBool,
    /// When its call left the queue, or the shared tier was asked.
    pub(super) sent: OnceLock<Moment>,
    /// Number of sidelinks that its batch had passed.
    pub(super) hops: usize,
    /// Whose call it is in.
    pub(super) caller: Caller,
    /// Whether other callers that are its user may join: its call does not wait among those of made-up tokens.
    pub(super) is_shared: bool,
    /// Released with the last reference to the flight: a client that disconnects releases nothing early.
    _permit: InFlightPermit,
}

impl Flight {
    /// A flight for a batch of this caller that has passed this many sidelinks.
    pub(super) fn new(hops: usize, caller: Caller, is_shared: bool, permit: InFlightPermit) -> Self {
        Self {
            result: SetOnce::new(),
            waiters: AtomicUsize::new(0),
            joined: AtomicBool::new(false),
            refetches: AtomicBool::new(false),
            sent: OnceLock::new(),
            hops,
            caller,
            is_shared,
            _permit: permit,
        }
    }

    /// Whether a purge covers what the flight brings of `id`, since it was sent before the purge. A flight that still waits
    /// for its call is not covered.
    pub(super) fn is_purged(&self, id: &str, marks: &Marks<'_>) -> bool {
        self.sent.get().is_some_and(|sent| marks.cover(id, *sent))
    }

    /// Ends the flight, once.
    pub(super) fn complete(&self, result: FetchResult) {
        let _ = self.result.set(result);
    }

    /// Waits for the flight's end.
    pub(super) async fn wait(&self) -> FetchResult {
        self.result.wait().await.clone()
    }
}

/// A batch that waits for a flight.
pub(super) struct FlightWaiter {
    flight: Arc<Flight>,
    /// Whether another batch had started the flight.
    joined: bool,
}

impl FlightWaiter {
    pub(super) fn new(flight: &Arc<Flight>, joined: bool, context: &FetchContext) -> Self {
        flight.waiters.fetch_add(1, Ordering::Relaxed);
        if context.refetches {
            flight.refetches.store(true, Ordering::Relaxed);
        }
        if joined {
            flight.joined.store(true, Ordering::Relaxed);
        }
        Self { flight: Arc::clone(flight), joined }
    }

    /// Waits for the flight's end, until `deadline` at most.
    pub(super) async fn wait(self, deadline: Instant) -> FetchResult {
        let result = timeout_at(deadline, self.flight.wait()).await;
        let result = result.unwrap_or_else(|_| FetchResult::failed(Cause::NoAnswer(Error::Deadline)));
        if self.joined { result.joined() } else { result }
    }
}

impl Drop for FlightWaiter {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to have one id in flight (`limits.in_flight`): shares of the limit for all, of that for its caller, and of that for
/// callers that the endpoint has not accepted.
pub(super) type InFlightPermit = (Reservation, Reservation, Option<Reservation>);

impl Fetcher {
    /// Gives `count` permits, or none.
    pub(super) fn permits(&self, count: usize, identity: &Identity) -> Result<Vec<InFlightPermit>, Limit> {
        let most = self.config.limits.in_flight;
        let reserve = |used, size, limit| -> Result<Vec<Reservation>, Limit> {
            std::iter::repeat_with(|| Reservation::one_of(used, size).ok_or(limit)).take(count).collect()
        };
        let of_one_caller = |used| reserve(used, most.div_ceil(2), Limit::CallerInFlight);
        let all = reserve(&self.state.in_flight, most, Limit::InFlight)?;
        let of_caller = of_one_caller(&identity.owner().flights)?;
        // All callers that are not accepted count as one: a single client can make up many tokens.
        let is_accepted = identity.is_accepted();
        let of_unaccepted = if is_accepted { Vec::new() } else { of_one_caller(&self.state.unaccepted_in_flight)? };
        let mut of_unaccepted = of_unaccepted.into_iter();
        Ok(all.into_iter().zip(of_caller).map(|(all, of_caller)| (all, of_caller, of_unaccepted.next())).collect())
    }

    /// Counts a request that is refused for a limit.
    pub(super) fn shed(&self, limit: Limit) -> Error {
        self.metrics.shed.of(limit).inc();
        Error::Shed(limit)
    }
}
