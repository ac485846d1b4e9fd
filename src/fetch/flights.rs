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
/// Calls a second that may repeat a failed call for one batch alone, for each caller or user. Each other call allows one more, so an
/// endpoint that answers it with a 500 gets at most twice its load, and this many calls a second.
pub(super) const EXTRA_CALLS_A_SECOND: u32 = 10;
/// Callers that the endpoint has not accepted share the permits of calls, divided by this.
const UNACCEPTED_DIVISOR: usize = 4;
pub(super) const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// The flights, and the limits and budgets of calls. Reloads keep it, so that an id is fetched once across a reload.
pub struct FetchState {
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
    /// Lets batches join the flight of `pending`. One that is for its caller alone replaces none that is shared.
    pub(super) fn add(&mut self, pending: &PendingId) {
        let flight = &pending.flight;
        if flight.is_shared || self.by_key.get(&pending.id.key).is_none_or(|known| !known.is_shared) {
            self.by_key.insert(pending.id.key, Arc::clone(flight));
        }
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
    /// The caller whose token its call carries.
    caller: Caller,
    /// Whether other callers of its user may join it: not before the endpoint has accepted its caller.
    is_shared: bool,
    /// Released with the last reference to the flight: a client that disconnects releases nothing early.
    _permit: InFlightPermit,
}

impl Flight {
    /// A flight for a batch that has passed this many sidelinks, of a caller that shares its flights with its user's others or not.
    pub(super) fn new(hops: usize, (caller, is_shared): (Caller, bool), permit: InFlightPermit) -> Self {
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

    /// Whether a caller may join it, who shares flights with its user's others or not.
    pub(super) fn is_for(&self, caller: Caller, shares: bool) -> bool {
        self.caller == caller || (self.is_shared && shares)
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
        let of_one_owner = |used| reserve(used, most.div_ceil(2), Limit::CallerInFlight);
        let all = reserve(&self.state.in_flight, most, Limit::InFlight)?;
        let of_owner = of_one_owner(&identity.owner().flights)?;
        // All callers that are not accepted count as one: a single client can make up many tokens.
        let is_accepted = identity.is_accepted();
        let of_unaccepted = if is_accepted { Vec::new() } else { of_one_owner(&self.state.unaccepted_in_flight)? };
        let mut of_unaccepted = of_unaccepted.into_iter();
        Ok(all.into_iter().zip(of_owner).map(|(all, of_owner)| (all, of_owner, of_unaccepted.next())).collect())
    }

    /// Counts a request that is refused for a limit.
    pub(super) fn shed(&self, limit: Limit) -> Error {
        self.metrics.shed.of(limit).inc();
        Error::Shed(limit)
    }
}
