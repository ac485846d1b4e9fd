//! One flight per id: whoever wants an id that is being fetched joins its flight.
//!
//! A batch's missing ids are those it joins and those it owns; what it owns leaves in calls (`calls`). Flights run
//! detached: a client that goes away costs its joiners nothing. What a call brings fills the cache *before* its
//! flights end, and ownership is decided under one lock after a last look into the cache, so that between "not in
//! memory" and "not in flight" there is no gap through which an id could be asked twice.

mod calls;
mod demand;
mod flights;
mod load;
mod outcome;
mod refused;
mod sharing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use http::{HeaderName, HeaderValue};
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::Budget;

use crate::api::id::Group;
use crate::api::request::Form;
use crate::auth::{CallerState, Callers, Identity, Key, Scope};
use crate::cache::purges::Marks;
use crate::cache::{Cache, Entry};
use crate::clock::{Clock, millis};
use crate::config::Config;
use crate::error::{Error, Limit, NoAnswer};
use crate::shared::{Share, Tier};
use crate::telemetry::log::LogThrottle;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{RequestSpan, TraceContext};
use crate::upstream::{Rejection, Upstream};
use calls::{LaneKey, PendingId};
pub use demand::CacheRequirements;
pub use flights::Flights;
use flights::{Flight, Permit, Place, State, Waiting};
pub use outcome::{Cause, Failure, FetchResult, FlightResult, ItemResult};

/// On whose behalf, and how, a batch's ids are fetched.
pub struct FetchContext {
    /// Who asks.
    pub requester: Identity,
    /// What its calls carry of the client's headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Caller, group and scope headers.
    pub scope: Scope,
    /// The group.
    pub group: Group<'static>,
    /// The form that the client used.
    pub form: Form,
    /// When the batch must be answered.
    pub deadline: Instant,
    /// The client's own request id, if it is well-formed: for a call that serves this batch alone.
    pub request_id: Option<HeaderValue>,
    /// Whether the batch came with cookies, which calls do not carry: a refused call is not the last word on it.
    pub has_cookies: bool,
    /// Whether the endpoint was known to accept the caller when the batch came.
    pub was_accepted: bool,
    /// Sidelinks that the batch had passed.
    pub hops: usize,
    /// The batch's span, if it has one.
    pub trace: RequestSpan,
    /// The context that its calls go on with, where they have no spans.
    pub context: TraceContext,
    /// What the client allows to be answered without a call.
    pub demand: CacheRequirements,
    /// Its scope in the shared tier, if there is one.
    pub share: Option<Arc<Share>>,
}

impl FetchContext {
    /// Where its owned ids queue.
    fn lane(&self) -> LaneKey {
        LaneKey { scope: self.scope, form: self.form }
    }
}

/// An id to fetch.
#[derive(Clone)]
pub struct Wanted {
    /// The id.
    pub id: Box<str>,
    /// Its key in the batch's scope.
    pub key: Key,
}

/// Fetches ids.
#[derive(Clone)]
pub struct Fetch(Arc<Inner>);

struct Inner {
    upstream: Arc<Upstream>,
    callers: Arc<Callers>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    config: Arc<Config>,
    clock: Clock,
    flights: Arc<Flights>,
    tier: Option<Arc<Tier>>,
    warned_no_store: AtomicBool,
    throttled: LogThrottle,
}

enum Source {
    Memory(Entry),
    Flight(Place),
    /// No call may be made now; queueing behind calls that hang would only hide it.
    Refused(Arc<Failure>),
}

impl Fetch {
    /// A fetcher that fills `cache`. Its flights are among `flights`, which fetchers of other configurations share.
    #[expect(clippy::too_many_arguments, reason = "the composition root hands over what it has built")]
    pub fn new(
        upstream: Arc<Upstream>,
        callers: Arc<Callers>,
        cache: Arc<Cache>,
        flights: Arc<Flights>,
        tier: Option<Arc<Tier>>,
        metrics: Arc<Metrics>,
        config: Arc<Config>,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            upstream,
            callers,
            cache,
            metrics,
            config,
            clock,
            flights,
            tier,
            warned_no_store: AtomicBool::new(false),
            throttled: LogThrottle::default(),
        }))
    }

    /// Has every id of `wanted`, in that order, by the deadline of `terms`: from memory, where it has come there meanwhile
    /// and serves, from a flight, from the shared tier, or by a call.
    ///
    /// # Errors
    /// If a limit is reached; nothing has been asked then.
    pub async fn fetch(&self, terms: &Arc<FetchContext>, wanted: &[Wanted]) -> Result<Vec<FetchResult>, Error> {
        if self.0.would_wait_for_itself(terms, wanted) {
            let landed = self.fetch_apart(terms, wanted, true).await?;
            return Ok(landed.into_iter().map(|landed| FetchResult::FlightResult { joined: false, landed }).collect());
        }
        let _waiting = self.0.wait()?;
        let mut had = self.0.have(terms, wanted).await?;
        // A flight ends by the deadline of the batch that began it. A batch that joined it has its own deadline.
        while self.0.upstream.leaves_fair_time(terms.deadline) {
            let (places, late) = select(wanted, &had, ended_by_another_deadline);
            if late.is_empty() {
                break;
            }
            // At a limit, the failure that is known says more than the limit.
            let Ok(anew) = self.0.have(terms, &late).await else { break };
            replace(&mut had, places, anew);
        }
        // Last attempt: call upstream directly, not joinable, bypassing the shared tier.
        for apart in [false, true] {
            let (places, declined) = self.0.declined(terms, wanted, &had);
            if declined.is_empty() {
                break;
            }
            let anew = if apart {
                let landed = self.apart(terms, &declined, true).await?;
                landed.into_iter().map(|landed| FetchResult::FlightResult { joined: false, landed }).collect()
            } else {
                self.0.have(terms, &declined).await?
            };
            replace(&mut had, places, anew);
        }
        Ok(had)
    }

    /// The shared tier, if there is one.
    pub fn tier(&self) -> Option<&Arc<Tier>> {
        self.0.tier.as_ref()
    }

    /// Fetches `wanted` again in the background, while what is in memory is still fresh. Ids that are in flight, and any
    /// beyond what refreshes may cost, are left as they are; how many were not.
    pub fn refresh(&self, terms: &Arc<FetchContext>, wanted: &[Wanted]) -> usize {
        self.0.refresh(terms, wanted)
    }

    /// Whether a batch of these marks would join a flight for `id`.
    pub fn is_in_flight(&self, key: Key, id: &str, marks: &Marks<'_>) -> bool {
        self.0.state().flights.get(&key).is_some_and(|flight| !flight.is_purged(id, marks))
    }

    /// Why no call may be made now, for this caller if it is known, else for anyone.
    pub fn refusal_for(&self, requester: Option<&Identity>, ids: &[&str]) -> Option<Error> {
        let upstream = &self.0.upstream;
        let refusal = match requester {
            Some(requester) => {
                let paused = requester.caller_state.pause.lasting(self.0.clock.now()).map(Rejection::Pause);
                paused.or_else(|| upstream.refusal(requester.caller, ids.iter().copied()))
            }
            None => upstream.refusal_of_all(),
        };
        refusal.map(|refusal| refusal.error())
    }

    /// Drops all that is kept for the caller of `terms`, whom the endpoint has refused with a 401; `known`: it was accepted
    /// before.
    pub fn drop_caller(&self, terms: &FetchContext, known: bool) {
        self.0.drop_caller(terms, known);
    }

    /// Whether the endpoint may be asked once more to find out whose fault a failed call was.
    pub fn affords_extra(&self) -> bool {
        self.0.flights.extra_calls.withdraw()
    }

    /// Has every id of `wanted` by calls of its own, which nobody joins: where a shared call has failed and the one at
    /// fault is to be found, or where the client wants nothing stored (`keep` false).
    ///
    /// # Errors
    /// If a limit is reached; nothing has been asked then.
    pub async fn fetch_apart(
        &self,
        terms: &Arc<FetchContext>,
        wanted: &[Wanted],
        keep: bool,
    ) -> Result<Vec<FlightResult>, Error> {
        let _waiting = self.0.wait()?;
        self.apart(terms, wanted, keep).await
    }

    async fn apart(
        &self,
        terms: &Arc<FetchContext>,
        wanted: &[Wanted],
        keep: bool,
    ) -> Result<Vec<FlightResult>, Error> {
        let permits = self.0.permits(wanted.len(), &terms.requester.caller_state)?;
        let mut permits = permits.into_iter();
        let calls: Vec<_> = load::split(&self.0.config.upstream, terms.form, wanted)
            .into_iter()
            .map(|wanted| {
                let (inner, terms) = (Arc::clone(&self.0), Arc::clone(terms));
                let permits: Vec<Permit> = permits.by_ref().take(wanted.len()).collect();
                let count = wanted.len();
                // Detached like any flight, so that leaving frees no permit early.
                let task = self.0.flights.runtime.spawn(async move {
                    let landed = inner.call_apart(&terms, &wanted, keep).await;
                    drop(permits);
                    landed
                });
                (count, task)
            })
            .collect();
        let mut landed = Vec::with_capacity(wanted.len());
        for (count, task) in calls {
            match timeout_at(terms.deadline, task).await {
                Ok(Ok(batch)) => landed.extend(batch),
                Ok(Err(_)) => landed.extend(vec![failed(Error::NoAnswer(NoAnswer::Lost)); count]),
                Err(_) => landed.extend(vec![failed(Error::Deadline); count]),
            }
        }
        Ok(landed)
    }
}

impl Inner {
    /// Has every id of `wanted`, each from its source.
    async fn have(self: &Arc<Self>, terms: &Arc<FetchContext>, wanted: &[Wanted]) -> Result<Vec<FetchResult>, Error> {
        let sources = self.board(terms, wanted)?;
        let mut had = Vec::with_capacity(sources.len());
        for source in sources {
            had.push(match source {
                Source::Memory(kept) => FetchResult::InMemory(kept),
                Source::Refused(failure) => FetchResult::FlightResult { joined: false, landed: failed_by(failure) },
                Source::Flight(place) => {
                    let landed = timeout_at(terms.deadline, place.flight.land()).await;
                    FetchResult::FlightResult {
                        joined: place.joined,
                        landed: landed.unwrap_or_else(|_| failed(Error::Deadline)),
                    }
                }
            });
        }
        Ok(had)
    }

    /// What this batch's client does not allow of what it had, and the places: another batch's flight has landed with what
    /// the shared tier had, which may be older than this batch wants it. With a call's answer it would have made do.
    fn declined(&self, terms: &FetchContext, wanted: &[Wanted], had: &[FetchResult]) -> (Vec<usize>, Vec<Wanted>) {
        let now = self.clock.now();
        let declines = |had: &FetchResult| match had {
            FetchResult::FlightResult { joined: true, landed: FlightResult { shared: true, result, .. } } => {
                match result {
                    ItemResult::Link(_, deadlines) | ItemResult::LeftOut(deadlines) => {
                        !deadlines.is_some_and(|deadlines| terms.demand.allows(&deadlines, now))
                    }
                    ItemResult::Failed(_) => false,
                }
            }
            _ => false,
        };
        select(wanted, had, declines)
    }

    /// Finds a source for every wanted id: a flight to join, memory, or a new flight, which is queued for a call.
    fn board(self: &Arc<Self>, terms: &Arc<FetchContext>, wanted: &[Wanted]) -> Result<Vec<Source>, Error> {
        let seeks = self.seeks(terms);
        // The shared tier may have it, whatever the endpoint does.
        let refusal = if seeks { None } else { self.refusal(terms, wanted) };
        let refusal = refusal.map(|cause| Arc::new(Failure { cause, shared: false, ids: 0 }));
        let serves = |kept: &Entry| self.serves(terms, kept);
        let marks = self.cache.purges().of_group(terms.group.name());
        let mut state = self.state();
        let found: Vec<Option<Source>> = wanted
            .iter()
            .map(|wanted| {
                // Nobody joins a flight from before a purge: another one takes its place.
                let flight = state.flights.get(&wanted.key);
                if let Some(flight) = flight.filter(|flight| !flight.is_purged(&wanted.id, &marks)) {
                    return Some(Source::Flight(Place::on(flight, true)));
                }
                let kept = self.cache.look_up(wanted.key, &wanted.id, &marks).filter(serves).map(Source::Memory);
                kept.or_else(|| refusal.clone().map(Source::Refused))
            })
            .collect();
        let owned = found.iter().filter(|source| source.is_none()).count();
        let mut permits = self.permits(owned, &terms.requester.caller_state)?.into_iter();

        let mut sources = Vec::with_capacity(wanted.len());
        let mut aboard = Vec::with_capacity(owned);
        for (wanted, source) in wanted.iter().zip(found) {
            if let Some(source) = source {
                sources.push(source);
                continue;
            }
            let Some(permit) = permits.next() else { break };
            let passenger = state.begin(self, terms, wanted, permit);
            sources.push(Source::Flight(Place::on(&passenger.flight, false)));
            aboard.push(passenger);
        }
        if seeks {
            drop(state);
            self.seek(terms, aboard, false);
            return Ok(sources);
        }
        state.queue(terms.lane(), aboard);
        let departing = self.departures(&mut state, terms.lane());
        drop(state);
        self.depart(departing);
        Ok(sources)
    }

    /// Queues flights on these terms for a call. Not with the state locked.
    fn board_calls(self: &Arc<Self>, terms: &FetchContext, passengers: Vec<PendingId>) {
        if passengers.is_empty() {
            return;
        }
        let mut state = self.state();
        state.queue(terms.lane(), passengers);
        let departing = self.departures(&mut state, terms.lane());
        drop(state);
        self.depart(departing);
    }

    /// Whether what is kept will do for a batch on these terms. Asked anew each time: the call that has brought a link has
    /// shown, too, that the caller is accepted.
    fn serves(&self, terms: &FetchContext, kept: &Entry) -> bool {
        let now = self.clock.now();
        terms.demand.serves(kept, now) && !self.callers.must_revalidate(&terms.requester, now)
    }

    /// Whether what is brought under this configuration may be kept: not where a reload has raised the floor since, by which
    /// nobody would judge it.
    fn may_keep(&self) -> bool {
        millis(self.config.freshness.min_remaining) >= self.flights.floor.load(Ordering::Acquire)
    }

    /// Whether a flight of a batch that has passed fewer sidelinks carries one of these ids: this batch may be that
    /// flight's own call, come round. It goes on instead of waiting, so that `Via` grows and tells the loop.
    fn would_wait_for_itself(&self, terms: &FetchContext, wanted: &[Wanted]) -> bool {
        terms.hops > 0 && {
            let state = self.state();
            let mut flights = wanted.iter().filter_map(|wanted| state.flights.get(&wanted.key));
            flights.any(|flight| flight.hops < terms.hops)
        }
    }

    fn refresh(self: &Arc<Self>, terms: &Arc<FetchContext>, wanted: &[Wanted]) -> usize {
        if self.refusal(terms, wanted).is_some() {
            return 0;
        }
        let mut state = self.state();
        let grounded: Vec<&Wanted> = wanted.iter().filter(|wanted| !state.flights.contains_key(&wanted.key)).collect();
        if grounded.is_empty() || !self.flights.refreshes.withdraw() {
            return 0;
        }
        // At a limit nothing is shed: what is in memory is fresh still.
        let Ok(permits) = self.try_permits(grounded.len(), &terms.requester.caller_state) else { return 0 };
        let count = permits.len();
        let mut aboard = Vec::with_capacity(count);
        for (wanted, permit) in grounded.into_iter().zip(permits) {
            let mut passenger = state.begin(self, terms, wanted, permit);
            passenger.background = true;
            // Nobody waits for it, and yet it is wanted.
            passenger.flight.awaited.fetch_add(1, Ordering::Relaxed);
            aboard.push(passenger);
        }
        drop(state);
        if self.seeks(terms) {
            self.seek(terms, aboard, true);
        } else {
            self.board_calls(terms, aboard);
        }
        count
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half-done by a panic: each step leaves the maps whole.
        self.flights.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> Result<Waiting<'_>, Error> {
        let waiting = Waiting(&self.flights.waiters);
        if self.flights.waiters.fetch_add(1, Ordering::Relaxed) >= self.config.limits.waiters {
            return Err(self.shed(Limit::Waiters));
        }
        Ok(waiting)
    }

    /// `count` permits, or none; a batch that gets none is shed.
    fn permits(self: &Arc<Self>, count: usize, caller_state: &Arc<CallerState>) -> Result<Vec<Permit>, Error> {
        self.try_permits(count, caller_state).map_err(|limit| self.shed(limit))
    }

    fn try_permits(self: &Arc<Self>, count: usize, caller_state: &Arc<CallerState>) -> Result<Vec<Permit>, Limit> {
        let most = self.config.limits.in_flight;
        let before = self.flights.in_flight.fetch_add(count, Ordering::Relaxed);
        let before_caller = caller_state.flights.fetch_add(count, Ordering::Relaxed);
        let accepted = caller_state.is_accepted();
        let unaccepted = if accepted { 0 } else { count };
        let before_unaccepted = self.flights.unaccepted_in_flight.fetch_add(unaccepted, Ordering::Relaxed);
        // Made first, so that giving up gives back.
        let permit = || Permit { flights: Arc::clone(&self.flights), caller_state: Arc::clone(caller_state), accepted };
        let permits: Vec<Permit> = std::iter::repeat_with(permit).take(count).collect();
        if count > 0 && before + count > most {
            return Err(Limit::InFlight);
        }
        // Callers that are not accepted may be one that makes up tokens.
        let most_for_one = most.div_ceil(2);
        if count > 0 && (before_caller + count > most_for_one || !accepted && before_unaccepted + count > most_for_one)
        {
            return Err(Limit::CallerInFlight);
        }
        Ok(permits)
    }

    fn shed(&self, limit: Limit) -> Error {
        self.metrics.shed.of(limit).inc();
        Error::Shed(limit)
    }
}

/// The wanted ids whose results `is_selected`, and their places.
fn select(
    wanted: &[Wanted],
    had: &[FetchResult],
    is_selected: impl Fn(&FetchResult) -> bool,
) -> (Vec<usize>, Vec<Wanted>) {
    let selected = wanted.iter().enumerate().zip(had).filter(|(_, had)| is_selected(had));
    selected.map(|((place, wanted), _)| (place, wanted.clone())).unzip()
}

fn replace(had: &mut [FetchResult], places: Vec<usize>, anew: Vec<FetchResult>) {
    for (place, anew) in places.into_iter().zip(anew) {
        if let Some(had) = had.get_mut(place) {
            *had = anew;
        }
    }
}

/// Whether a flight that was joined has failed by the deadline of the batch that began it.
fn ended_by_another_deadline(had: &FetchResult) -> bool {
    let FetchResult::FlightResult { joined: true, landed: FlightResult { result: ItemResult::Failed(failure), .. } } =
        had
    else {
        return false;
    };
    matches!(failure.cause, Cause::NoAnswer(Error::Deadline))
}

fn failed(error: Error) -> FlightResult {
    failed_by(Arc::new(Failure { cause: Cause::NoAnswer(error), shared: false, ids: 0 }))
}

fn failed_by(failure: Arc<Failure>) -> FlightResult {
    FlightResult { result: ItemResult::Failed(failure), request_id: None, shared: false, call: None }
}

#[cfg(test)]
mod tests;
