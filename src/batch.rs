//! The batch route: split what is asked into ids that are here and ids that are not, fetch those, merge.
//!
//! Start at [`BatchRoute::answer`]. Each step has its own place: `api::request` reads the batch, `auth` finds its caller and
//! scope, `cache` has links, `fetch` fetches what lacks, `api::answer` merges, `respond` adds the headers. A plain batch that is
//! all in memory takes a shorter way: `at_hand`.

mod at_hand;
mod chunked_body;
mod explain;
mod forwarded;
mod refused;
mod respond;
mod slots;
mod unmatched;

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{COOKIE, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request};
use tokio::time::Instant;

use crate::api::request::{Batch, Form};
use crate::auth::{AuthError, Bypass, Callers, Credential, Identity, Key, Scope};
use crate::cache::{Cache, Entry, KeyHasher};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::error::Error;
use crate::fetch::{CacheRequirements, Failure, Fetch, FetchContext, FetchResult, Wanted};
use crate::limits::budget::Budget;
use crate::message::answered::Answered;
use crate::message::body::{BodyError, whole};
use crate::message::cache_control::Directives;
use crate::message::headers;
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::metrics::{IdResult, Metrics, Refetch};
use crate::telemetry::trace::RequestSpan;
use slots::{Link, Slot, Slots, settle};

pub use explain::Explanation;

/// Answers batches.
pub struct BatchRoute {
    callers: Arc<Callers>,
    cache: Arc<Cache>,
    fetch: Fetch,
    passthrough: Arc<Passthrough>,
    /// Bodies of batches that are not answered yet.
    bodies: Budget,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    clock: Clock,
    dress: respond::HeaderTemplate,
}

/// What memory has for a batch.
enum LookedUp<'m> {
    /// All of it: the answer, whose ids are counted.
    Answer(Answered),
    /// Not all, or something that is about to go cold.
    Slots(Slots<'m>),
}

/// What fetching a batch has shown, besides the links.
#[derive(Default)]
struct Fetched {
    /// The first failure, in the order asked.
    failure: Option<Arc<Failure>>,
    /// The endpoint's name for the first call, or the first that failed.
    request_id: Option<HeaderValue>,
}

impl BatchRoute {
    /// A handler over what the composition root has built.
    #[expect(clippy::too_many_arguments, reason = "the composition root hands over what it has built")]
    pub fn new(
        callers: Arc<Callers>,
        cache: Arc<Cache>,
        fetch: Fetch,
        passthrough: Arc<Passthrough>,
        bodies: Budget,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let dress = respond::HeaderTemplate::new(&callers);
        Self { callers, cache, fetch, passthrough, bodies, config, metrics, clock, dress }
    }

    /// Who asks, and how that is told.
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Answers a GET on the batch route, whose place in its trace is `trace`.
    pub async fn answer<B>(&self, request: Request<B>, trace: &RequestSpan) -> Answered
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let drains = !headers::expects_continue(&request);
        let (parts, body) = request.into_parts();
        let credential = match self.callers.credential(&parts.headers) {
            Ok(credential) => credential,
            Err(reason) => return self.bypass(Request::from_parts(parts, body), reason, trace).await,
        };
        // A body is kept to the end: it has its place until its batch is answered.
        let (body, _place) = if body.is_end_stream() {
            (Bytes::new(), None)
        } else {
            // What few batches need is boxed, here and below: a future is moved as a whole, and room for all that it may
            // ever need is several KiB (docs/BENCHMARKS.md).
            match Box::pin(self.read_body(body, drains)).await {
                Ok((body, place)) => (body, Some(place)),
                Err(error) => return respond::own(error),
            }
        };
        let untouched = |mut parts: Parts, body| {
            // The client has been told to continue: its body is here.
            parts.headers.remove(EXPECT);
            Request::from_parts(parts, whole(body))
        };
        let requester = match self.callers.identify(&credential, &parts, &body) {
            Ok(requester) => requester,
            Err(AuthError::Bypass(reason)) => return self.bypass(untouched(parts, body), reason, trace).await,
            Err(AuthError::Unverified(_)) => {
                return self.bypass(untouched(parts, body), Bypass::Signature, trace).await;
            }
            Err(AuthError::NamedByConnection) => return respond::own(Error::NamedByConnection),
        };
        let Ok(batch) = Batch::read(parts.uri.query(), &parts.headers, &body) else {
            return self.bypass(untouched(parts, body), Bypass::Unreadable, trace).await;
        };
        let (now, form) = (self.clock.now(), batch.form);
        let scope = self.callers.scope(&requester, &parts.headers, &batch.group);
        let directives = self.directives(&parts);
        let demand = self.demand(&directives, &requester, now);
        let caller = Some(requester.caller.short());
        let mut slots = match self.look_up(&batch, scope, &demand, &directives, now) {
            Some(LookedUp::Answer(answered)) => return Answered { caller, ..answered },
            Some(LookedUp::Slots(slots)) => slots,
            None => return respond::own(Error::TooManyIds),
        };
        let from_memory = slots.had();
        if let Some(answered) = self.remembered_refusal(&batch, scope, &slots, &demand_of_client(&directives), now) {
            if !parts.headers.contains_key(COOKIE) {
                return Answered { tally: slots.tally(), caller, ..answered };
            }
            if !directives.only_if_cached {
                // The refused call had no cookies; another one would be refused again.
                let terms = self.terms(&batch, scope, requester, &credential, &directives, &parts.headers, trace);
                let answered = Box::pin(self.forward_with_cookies(&parts, &body, &terms, &mut slots)).await;
                return Answered { tally: slots.tally(), caller, ..answered };
            }
        }
        let mut fetched = Fetched::default();
        let mut waited = None;
        if slots.need_calls() {
            let terms = Arc::new(self.terms(&batch, scope, requester, &credential, &directives, &parts.headers, trace));
            self.refresh_ahead(&slots.ageing, &terms);
            if from_memory < slots.slots.len() {
                if directives.only_if_cached {
                    return Answered { tally: slots.tally(), caller, ..respond::own(Error::NotCached) };
                }
                let asked = Instant::now();
                let result = Box::pin(self.fetch_lacking(&mut slots, &terms, &directives)).await;
                waited = Some(asked.elapsed());
                fetched = match result {
                    Ok(fetched) => fetched,
                    Err(error) => return Answered { tally: slots.tally(), caller, waited, ..respond::own(error) },
                };
            }
            if let Some(failure) = &fetched.failure
                && !self.serve_stale(&mut slots, &terms, failure, &directives)
            {
                let asked = Instant::now();
                let instead = self.forward_failed(failure, &batch, &parts, &body, &terms, &mut slots);
                let answered = match Box::pin(instead).await {
                    Some(answered) => {
                        waited = waited.map(|waited| waited + asked.elapsed());
                        answered
                    }
                    None => respond::failure(failure),
                };
                return Answered { tally: slots.tally(), caller, waited, ..answered };
            }
        }
        // What was not fetched has not aged meanwhile.
        let now = if slots.slots.len() == from_memory { now } else { self.clock.now() };
        let answered = respond::links(slots.items(), &fetched, from_memory, form, &self.dress, &self.metrics, now);
        Answered { caller, waited, ..answered }
    }

    fn directives(&self, parts: &Parts) -> Directives {
        if self.config.callers.cache_control { Directives::read(&parts.headers) } else { Directives::default() }
    }

    /// What may be answered from memory.
    fn demand(&self, directives: &Directives, requester: &Identity, now: Moment) -> CacheRequirements {
        self.demand_of(directives, self.callers.must_revalidate(requester, now))
    }

    fn demand_of(&self, directives: &Directives, must_revalidate: bool) -> CacheRequirements {
        let demand = demand_of_client(directives);
        CacheRequirements { nothing: demand.nothing || must_revalidate, ..demand }
    }

    /// On whose behalf, and how, calls are made for a batch. A batch that is all in memory does without.
    #[expect(clippy::too_many_arguments, reason = "each is another side of the batch")]
    fn terms(
        &self,
        batch: &Batch<'_>,
        scope: Scope,
        requester: Identity,
        credential: &Credential<'_>,
        directives: &Directives,
        headers: &HeaderMap,
        trace: &RequestSpan,
    ) -> FetchContext {
        let share = self.fetch.tier().map(|tier| {
            let (kind, fields) = self.callers.made_up_of(credential, &requester, headers);
            let scope: Vec<_> = self.callers.scope_fields(&requester, headers, &batch.group).collect();
            Arc::new(tier.share(&requester, (kind, &fields), &scope, batch.group.name()))
        });
        FetchContext {
            demand: demand_of_client(directives),
            share,
            headers: self.callers.carried(&requester, headers),
            scope,
            group: batch.group.to_static(),
            form: batch.form,
            deadline: Instant::now() + self.config.upstream.deadline,
            request_id: headers::client_request_id(headers).cloned(),
            has_cookies: headers.contains_key(COOKIE),
            was_accepted: requester.caller_state.is_accepted(),
            hops: headers::sidelinks(headers),
            context: trace.context(headers),
            trace: trace.clone(),
            requester,
        }
    }

    /// Answers what memory can, each distinct id once, and counts what it could but may not. `None`: there are more ids
    /// than `limits.batch_ids`.
    fn look_up(
        &self,
        batch: &Batch<'_>,
        scope: Scope,
        demand: &CacheRequirements,
        directives: &Directives,
        now: Moment,
    ) -> Option<LookedUp<'_>> {
        let ids = distinct(batch, scope, self.config.limits.batch_ids)?;
        let marks = self.cache.purges().of_group(batch.group.name());
        let view = self.cache.open(ids.iter().map(|(_, key)| *key));
        let found = view.look_up(&ids, &marks);
        self.metrics.batch_ids.observe(ids.len() as f64);

        if let Some(answered) = self.all_of(&ids, &found, demand, batch.form, now) {
            return Some(LookedUp::Answer(answered));
        }

        let mut refetched = 0;
        let mut slots = Slots { slots: Vec::with_capacity(ids.len()), ageing: Vec::new(), metrics: &self.metrics };
        for ((id, key), kept) in ids.iter().zip(&found) {
            let wanted = || Wanted { id: Box::from(*id), key: *key };
            slots.slots.push(match kept {
                Some(kept) if demand.serves(kept, now) => {
                    if self.is_ageing(kept, *key, now) {
                        slots.ageing.push(wanted());
                    }
                    Slot { wanted: None, result: from_memory(kept), had: Some(Link::Entry((*kept).clone())) }
                }
                kept => {
                    refetched += u64::from(kept.is_some_and(|kept| kept.deadlines().fresh_left(now).is_some()));
                    Slot { wanted: Some(wanted()), had: None, result: IdResult::Failed }
                }
            });
        }
        if refetched > 0 && !directives.only_if_cached {
            let by_client = directives.no_cache
                || directives.no_store
                || directives.max_age.is_some()
                || directives.min_fresh.is_some();
            let cause = if by_client { Refetch::Client } else { Refetch::Revalidate };
            self.metrics.refetched.of(cause).inc_by(refetched);
        }
        Some(LookedUp::Slots(slots))
    }

    /// The answer, whose ids are counted, if all of it was found, may be served, and stays so for a while.
    fn all_of(
        &self,
        ids: &[(&str, Key)],
        found: &[Option<&Entry>],
        demand: &CacheRequirements,
        form: Form,
        now: Moment,
    ) -> Option<Answered> {
        for ((_, key), kept) in ids.iter().zip(found) {
            kept.filter(|kept| demand.serves(kept, now) && !self.is_ageing(kept, *key, now))?;
        }
        // What is lent by the cache becomes the answer's body as it is.
        let items = found.iter().flatten().map(|kept| respond::Item::kept(kept));
        let answered = respond::links(items, &Fetched::default(), ids.len(), form, &self.dress, &self.metrics, now);
        self.metrics.count_ids(&answered.tally);
        Some(answered)
    }

    /// Whether it is to be fetched again while it is still fresh.
    fn is_ageing(&self, kept: &Entry, key: Key, now: Moment) -> bool {
        self.config.freshness.refresh_ahead && kept.text().is_some() && kept.deadlines().is_ageing(now, key.spread())
    }

    /// Fetches again, in the background, what was just handed out and is about to go cold.
    fn refresh_ahead(&self, ageing: &[Wanted], terms: &Arc<FetchContext>) {
        if !ageing.is_empty() {
            let refreshed = self.fetch.refresh(terms, ageing);
            self.metrics.refetched.of(Refetch::Refresh).inc_by(refreshed as u64);
        }
    }

    /// Fetches what lacks; where a shared call failed, once more apart, so that only a batch at fault sees its error.
    async fn fetch_lacking(
        &self,
        slots: &mut Slots<'_>,
        terms: &Arc<FetchContext>,
        directives: &Directives,
    ) -> Result<Fetched, Error> {
        let lacking = slots.lacking();
        if directives.no_store {
            let landed = self.fetch.fetch_apart(terms, &lacking, false).await?;
            let landed = landed.into_iter().map(|landed| FetchResult::FlightResult { joined: false, landed });
            return Ok(settle(slots, &terms.trace, landed));
        }
        let fetched = settle(slots, &terms.trace, self.fetch.fetch(terms, &lacking).await?.into_iter());
        match &fetched.failure {
            // A call for a batch's only id can have failed for no other's.
            Some(failure) if failure.ids == 1 && slots.slots.len() == 1 => Ok(fetched),
            Some(failure) if failure.may_be_anothers_fault() && self.fetch.affords_extra() => {
                let lacking = slots.lacking();
                // At a limit, the failure that is known says more than the limit.
                let Ok(landed) = self.fetch.fetch_apart(terms, &lacking, true).await else { return Ok(fetched) };
                let landed = landed.into_iter().map(|landed| FetchResult::FlightResult { joined: false, landed });
                Ok(settle(slots, &terms.trace, landed))
            }
            _ => Ok(fetched),
        }
    }

    /// Answers for a failing endpoint with what is usable still. Whether nothing lacks any more.
    fn serve_stale(
        &self,
        slots: &mut Slots<'_>,
        terms: &FetchContext,
        failure: &Failure,
        directives: &Directives,
    ) -> bool {
        let asked_anew = directives.no_cache || directives.no_store;
        if !failure.allows_stale() || asked_anew || !self.callers.is_current(&terms.requester) {
            return false;
        }
        let now = self.clock.now();
        let marks = self.cache.purges().of_group(terms.group.name());
        for slot in slots.lacking_slots() {
            let kept = slot.wanted.as_ref().and_then(|wanted| self.cache.look_up(wanted.key, &wanted.id, &marks));
            if let Some(kept) = kept.filter(|kept| kept.text().is_some() && kept.deadlines().usable(now)) {
                slot.had = Some(Link::Entry(kept));
                slot.result = IdResult::Stale;
            }
        }
        slots.lacking_slots().next().is_none()
    }
}

fn demand_of_client(directives: &Directives) -> CacheRequirements {
    CacheRequirements {
        nothing: directives.no_cache || directives.no_store,
        max_age: directives.max_age.map(|seconds| seconds.saturating_mul(1000)),
        min_fresh: directives.min_fresh.map(|seconds| seconds.saturating_mul(1000)),
    }
}

/// The ids of a batch, each once, in the order asked, with their keys. `None`: there are more than `most`.
fn distinct<'b>(batch: &'b Batch<'_>, scope: Scope, most: usize) -> Option<Vec<(&'b str, Key)>> {
    let count = batch.ids.len();
    let room = count.min(most);
    // A batch of one, as there are many, needs no set (nor the allocation of one).
    let room_to_see = if count > 1 { room } else { 0 };
    let mut seen = HashSet::with_capacity_and_hasher(room_to_see, BuildHasherDefault::<KeyHasher>::default());
    let mut ids = Vec::with_capacity(room);
    for id in &batch.ids {
        let key = scope.key(id);
        if count > 1 && !seen.insert(key) {
            continue;
        }
        if ids.len() == most {
            return None;
        }
        ids.push((id.as_ref(), key));
    }
    Some(ids)
}

/// What has become of an id that memory answers.
fn from_memory(kept: &Entry) -> IdResult {
    if kept.text().is_some() { IdResult::Hit } else { IdResult::Absent }
}
