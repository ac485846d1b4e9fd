//! Fetches ids that are not in memory: one flight per id, which every batch that wants the id joins.
//!
//! Start at [`Fetcher::fetch`], then `join_or_start`: there a batch joins the flights of ids that are being fetched,
//! and starts flights for the others. New flights look into the shared tier (`shared_lookup`), then leave in calls
//! (`calls`). Flights run detached from the client that started them. A call stores its entries *before* its flights end,
//! and flights start under one lock after a last look into the cache: between "not in memory" and "not in flight" there is
//! no gap in which an id could be asked twice.
//!
//! | an id is asked again | where |
//! |---|---|
//! | on a new connection, since it was not processed | `upstream::client` |
//! | after a failure, within the retry budget | `upstream::retry` |
//! | since its flight ended by another batch's deadline, or with an entry that is too old for this client | [`Fetcher::fetch`] |
//! | with another token of the same user, since the call's own was refused or paused | `batch::missing` |
//! | by a call for one batch alone, since a call for several batches failed | `batch::missing`, [`Fetcher::fetch_separately`] |
//!
//! May use `cache`, `shared`, `upstream`, `auth`, `api` and the leaves.

mod calls;
mod context;
mod flights;
mod refused_calls;
mod requirements;
mod result;
mod shared_lookup;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use tower::retry::budget::{Budget as _, TpsBudget};

use crate::auth::{Caller, Callers, Identity, Key};
use crate::cache::freshness::Deadlines;
use crate::cache::purges::Marks;
use crate::cache::{Cache, Entry};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, Limit};
use crate::limits::budget::Budget;
use crate::limits::pause::Rejection;
use crate::shared::Tier;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{ApiMetrics, Metrics};
use crate::upstream::Upstream;
use calls::PendingId;
pub use context::{FetchContext, KeyedId};
pub use flights::FetchState;
use flights::{BUDGET_WINDOW, EXTRA_CALLS_A_SECOND, Flight, FlightWaiter, Flights};
pub use requirements::CacheRequirements;
pub use result::{Cause, EntrySource, Failure, FetchResult};

/// Fetches ids.
pub struct Fetcher {
    upstream: Arc<Upstream>,
    callers: Arc<Callers>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    /// What is counted for the API that it fetches from.
    api_metrics: Arc<ApiMetrics>,
    config: Arc<Config>,
    clock: Clock,
    state: Arc<FetchState>,
    /// Batches that wait for flights.
    waiters: Budget,
    tier: Option<Arc<Tier>>,
    warned_no_store: AtomicBool,
    warned_no_expiry: AtomicBool,
    throttled: LogThrottle,
    no_list: LogThrottle,
}

/// How one id of a batch is fetched.
enum FetchPlan {
    /// It is not fetched: it is in memory, or no call may be made now and the batch fails at once instead of queueing.
    Done(FetchResult),
    Flight(FlightWaiter),
}

impl Fetcher {
    /// A fetcher that stores into `cache`. Fetchers of other configurations share `state`.
    #[expect(clippy::too_many_arguments, reason = "the composition root hands over what it has built")]
    pub fn new(
        upstream: Arc<Upstream>,
        callers: Arc<Callers>,
        cache: Arc<Cache>,
        state: Arc<FetchState>,
        tier: Option<Arc<Tier>>,
        metrics: Arc<Metrics>,
        api_metrics: Arc<ApiMetrics>,
        config: Arc<Config>,
        clock: Clock,
    ) -> Self {
        Self {
            waiters: Budget::new(&state.waiters, config.limits.waiters, Limit::Waiters, &metrics),
            upstream,
            callers,
            cache,
            metrics,
            api_metrics,
            config,
            clock,
            state,
            tier,
            warned_no_store: AtomicBool::new(false),
            warned_no_expiry: AtomicBool::new(false),
            throttled: LogThrottle::default(),
            no_list: LogThrottle::default(),
        }
    }

    /// Fetches `ids` by the deadline of `context`: from memory, where an entry has arrived since the batch's first look-up,
    /// from a flight, from the shared tier, or by a call. One result for each id, in their order.
    ///
    /// # Errors
    /// If a limit is reached; nothing has been asked then.
    pub async fn fetch(
        self: &Arc<Self>,
        context: &Arc<FetchContext>,
        ids: &[KeyedId],
    ) -> Result<Vec<FetchResult>, Error> {
        if self.would_wait_for_itself(context, ids) {
            return self.fetch_separately(context, ids, true).await;
        }
        let _waiting = self.waiters.one()?;
        let mut results = self.fetch_each(context, ids).await?;
        // A flight ends by the deadline of the batch that started it. A batch that joined it has its own deadline.
        while self.upstream.leaves_fair_time(context.deadline) {
            let (places, late) = select(ids, &results, ended_by_another_deadline);
            if late.is_empty() {
                break;
            }
            // At a limit, the client gets the first failure, which tells it more than the limit would.
            let Ok(again) = self.fetch_each(context, &late).await else { break };
            replace(&mut results, places, again);
        }
        // An entry of the shared tier may be older than this client allows; and what another token of its user brought is not for a
        // caller that was refused meanwhile. The batch then joins or starts flights once more; if that brings such an entry again, it
        // makes calls of its own, which bypass the tier.
        for separately in [false, true] {
            // An entry of a call is always recent enough.
            let now = self.clock.now();
            let is_refused = context.identity.membership.is_some() && !self.callers.is_current(&context.identity);
            let is_declined = |result: &FetchResult| match (&result.entry, result.source) {
                (Ok(_), source) if is_refused => source != EntrySource::Call,
                (Ok(entry), EntrySource::Joined { from_tier: true }) => {
                    !context.requirements.allow(entry.deadlines(), now)
                }
                _ => false,
            };
            let (places, declined) = select(ids, &results, is_declined);
            if declined.is_empty() {
                break;
            }
            let again = if separately {
                self.call_separately(context, &declined, true).await?
            } else {
                self.fetch_each(context, &declined).await?
            };
            replace(&mut results, places, again);
        }
        Ok(results)
    }

    /// Fetches `ids` by calls of the batch's own, which no other batch joins: where a shared call failed and the batch at
    /// fault is to be found, or where the client wants nothing stored (`store` is false).
    ///
    /// # Errors
    /// If a limit is reached; nothing has been asked then.
    pub async fn fetch_separately(
        self: &Arc<Self>,
        context: &Arc<FetchContext>,
        ids: &[KeyedId],
        store: bool,
    ) -> Result<Vec<FetchResult>, Error> {
        let _waiting = self.waiters.one()?;
        self.call_separately(context, ids, store).await
    }

    /// The shared tier, if there is one.
    pub fn tier(&self) -> Option<&Arc<Tier>> {
        self.tier.as_ref()
    }

    /// Whether a batch would join a flight for `id`; `marks` are the purges of its group.
    pub fn is_in_flight(&self, key: Key, id: &str, marks: &Marks<'_>) -> bool {
        self.flights().by_key.get(&key).is_some_and(|flight| !flight.is_purged(id, marks))
    }

    /// Why no call for these ids may be made for this caller now: its pause, or the breaker.
    pub fn why_no_call(&self, identity: &Identity, ids: &[impl AsRef<str>]) -> Option<Rejection> {
        let paused = identity.caller_state.pause.lasting(self.clock.now());
        paused.or_else(|| self.upstream.rejection(identity.caller, ids.iter().map(AsRef::as_ref)))
    }

    /// Whether the budget of extra calls allows the owner one more, to find out which batch is at fault.
    pub fn affords_extra(&self, identity: &Identity) -> bool {
        let budget = || Box::new(TpsBudget::new(BUDGET_WINDOW, EXTRA_CALLS_A_SECOND, 1.0));
        identity.owner().extra_calls.get_or_init(budget).withdraw()
    }
}

impl Fetcher {
    /// Tells once of a link that says nowhere when it ends, although its API names fields that may.
    fn warn_without_expiry(&self, deadlines: &Deadlines) {
        let api = self.callers.api();
        let is_expected = deadlines.expires().is_some() || api.expiry_fields().next().is_none();
        if !is_expected && !self.warned_no_expiry.swap(true, Ordering::Relaxed) {
            events::NoExpiry { api: &api.name }.log();
        }
    }

    /// Fetches each of `ids` as planned.
    async fn fetch_each(
        self: &Arc<Self>,
        context: &Arc<FetchContext>,
        ids: &[KeyedId],
    ) -> Result<Vec<FetchResult>, Error> {
        let plans = self.join_or_start(context, ids)?;
        let mut results = Vec::with_capacity(plans.len());
        for plan in plans {
            results.push(match plan {
                FetchPlan::Done(result) => result,
                FetchPlan::Flight(waiter) => waiter.wait(context.deadline).await,
            });
        }
        Ok(results)
    }

    /// Plans how each id is fetched: a flight to join, memory, or a new flight, which is queued for a call.
    fn join_or_start(self: &Arc<Self>, context: &Arc<FetchContext>, ids: &[KeyedId]) -> Result<Vec<FetchPlan>, Error> {
        let uses_tier = self.uses_shared_tier(context);
        let why_no_call = || self.why_no_call(&context.identity, ids).map(Cause::Rejected);
        // The shared tier may have the ids even where no call may be made.
        let rejection = if uses_tier { None } else { why_no_call().map(FetchResult::failed) };
        let may_serve = |entry: &Entry| self.may_serve(context, entry);
        let (caller, shares) = self.sharing(context);
        let marks = self.cache.purges().of(&self.callers.api().name, context.group.name());
        let mut flights = self.flights();
        let found: Vec<Option<FetchPlan>> = ids
            .iter()
            .map(|id| {
                // A flight that was sent before a purge of its id is not joined: a new one replaces it.
                let flight = flights.by_key.get(&id.key);
                let may_join =
                    |flight: &&Arc<Flight>| flight.is_for(caller, shares) && !flight.is_purged(&id.id, &marks);
                if let Some(flight) = flight.filter(may_join) {
                    return Some(FetchPlan::Flight(FlightWaiter::new(flight, true, context)));
                }
                let entry = self.cache.look_up(id.key, &id.id, &marks).filter(may_serve);
                let found = entry.map(|entry| FetchResult::without_call(entry, EntrySource::Memory));
                found.or_else(|| rejection.clone()).map(FetchPlan::Done)
            })
            .collect();
        let missing = found.iter().filter(|plan| plan.is_none()).count();
        let permits = self.permits(missing, &context.identity);
        let mut permits = permits.map_err(|limit| self.shed(limit))?.into_iter();

        let mut plans = Vec::with_capacity(ids.len());
        let mut started = Vec::with_capacity(missing);
        for (id, plan) in ids.iter().zip(found) {
            if let Some(plan) = plan {
                plans.push(plan);
                continue;
            }
            let Some(permit) = permits.next() else { break };
            let pending = PendingId::new(self, context, id, permit);
            flights.add(&pending);
            plans.push(FetchPlan::Flight(FlightWaiter::new(&pending.flight, false, context)));
            started.push(pending);
        }
        drop(flights);
        if uses_tier {
            self.look_into_shared_tier(context, started, false);
        } else {
            self.enqueue(context, started);
        }
        Ok(plans)
    }

    /// A batch's caller, and whether it shares flights with its user's other callers: not before it is accepted.
    fn sharing(&self, context: &FetchContext) -> (Caller, bool) {
        (context.identity.caller, self.callers.may_share(&context.identity))
    }

    /// Queues flights for a call. Must not be called with the flights locked.
    fn enqueue(self: &Arc<Self>, context: &FetchContext, pending: Vec<PendingId>) {
        if pending.is_empty() {
            return;
        }
        let mut flights = self.flights();
        flights.queues.entry(context.queue_key()).or_default().pending.extend(pending);
        let ready = self.take_ready_calls(&mut flights, context.queue_key());
        drop(flights);
        self.send(ready);
    }

    /// Fetches `ids` by flights that no batch joins, in calls of the batch's own.
    async fn call_separately(
        self: &Arc<Self>,
        context: &Arc<FetchContext>,
        ids: &[KeyedId],
        store: bool,
    ) -> Result<Vec<FetchResult>, Error> {
        let permits = self.permits(ids.len(), &context.identity);
        let permits = permits.map_err(|limit| self.shed(limit))?;
        let pending = ids.iter().zip(permits).map(|(id, permit)| PendingId::new(self, context, id, permit));
        let pending: VecDeque<PendingId> = pending.collect();
        let waiters: Vec<_> =
            pending.iter().map(|pending| FlightWaiter::new(&pending.flight, false, context)).collect();
        self.send(self.separate_calls(pending, store));
        let mut results = Vec::with_capacity(ids.len());
        for waiter in waiters {
            results.push(waiter.wait(context.deadline).await);
        }
        Ok(results)
    }

    /// Whether an entry may be served to the batch. Also asks whether the caller must revalidate: the call that brought the
    /// entry may have shown meanwhile that the caller is accepted.
    fn may_serve(&self, context: &FetchContext, entry: &Entry) -> bool {
        let now = self.clock.now();
        context.requirements.allow(entry.deadlines(), now)
            && self.callers.may_share(&context.identity)
            && !self.callers.must_revalidate(&context.identity, now)
    }

    /// Whether entries may be stored under this configuration: not where a reload has raised `freshness.min_remaining`, by
    /// which these entries were not judged.
    fn may_store(&self) -> bool {
        self.state.may_store(self.config.freshness.min_remaining)
    }

    /// Whether one of these ids is in flight for a batch that has passed fewer sidelinks: this batch may be that flight's own
    /// call, come back in a loop. It goes on instead of waiting, so that `Via` grows until the loop is refused.
    fn would_wait_for_itself(&self, context: &FetchContext, ids: &[KeyedId]) -> bool {
        context.hops > 0 && {
            let flights = self.flights();
            let mut flights = ids.iter().filter_map(|id| flights.by_key.get(&id.key));
            flights.any(|flight| flight.hops < context.hops)
        }
    }

    /// Refreshes ids ahead, in the background, while their entries are fresh: those that are not in flight, as far as limits
    /// and the budget of refreshes allow. Returns their number.
    pub fn refresh(self: &Arc<Self>, context: &Arc<FetchContext>, ids: &[KeyedId]) -> usize {
        if self.why_no_call(&context.identity, ids).is_some() {
            return 0;
        }
        let mut flights = self.flights();
        let idle: Vec<&KeyedId> = ids.iter().filter(|id| !flights.by_key.contains_key(&id.key)).collect();
        if idle.is_empty() || !self.state.refreshes.withdraw() {
            return 0;
        }
        // At a limit nothing is shed: the entries are still fresh.
        let Ok(permits) = self.permits(idle.len(), &context.identity) else { return 0 };
        let count = permits.len();
        let mut started = Vec::with_capacity(count);
        for (id, permit) in idle.into_iter().zip(permits) {
            let pending = PendingId { background: true, ..PendingId::new(self, context, id, permit) };
            flights.add(&pending);
            // No batch waits for the flight, and yet it must not count as abandoned.
            pending.flight.waiters.fetch_add(1, Ordering::Relaxed);
            started.push(pending);
        }
        drop(flights);
        if self.uses_shared_tier(context) {
            self.look_into_shared_tier(context, started, true);
        } else {
            self.enqueue(context, started);
        }
        count
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        // A panic leaves the maps whole: each step is complete by itself.
        self.state.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ids whose results `is_selected`, and their places.
fn select(
    ids: &[KeyedId],
    results: &[FetchResult],
    is_selected: impl Fn(&FetchResult) -> bool,
) -> (Vec<usize>, Vec<KeyedId>) {
    let selected = ids.iter().enumerate().zip(results).filter(|(_, result)| is_selected(result));
    selected.map(|((place, id), _)| (place, id.clone())).unzip()
}

fn replace(results: &mut [FetchResult], places: Vec<usize>, again: Vec<FetchResult>) {
    for (place, again) in places.into_iter().zip(again) {
        if let Some(result) = results.get_mut(place) {
            *result = again;
        }
    }
}

/// Whether a joined flight has failed by the deadline of the batch that started it.
fn ended_by_another_deadline(result: &FetchResult) -> bool {
    matches!(result.source, EntrySource::Joined { .. })
        && matches!(&result.entry, Err(failure) if matches!(failure.cause, Cause::NoAnswer(Error::Deadline)))
}

#[cfg(test)]
mod tests;
