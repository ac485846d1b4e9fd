//! The batch route: split what is asked into ids that are here and ids that are not, fetch those, merge.
//!
//! [`AccessUrls::answer`] tells it as a story; each step has its own place: [`request`] reads, `caller` scopes, `cache` keeps,
//! `fetch` fetches, [`answer`] merges, `respond` dresses the answer.

pub mod answer;
pub mod request;
mod respond;

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::answered::Answered;
use crate::api;
use crate::body::{BodyError, whole};
use crate::cache::freshness::Deadlines;
use crate::cache::{Cache, Kept};
use crate::cache_control::Directives;
use crate::caller::{Bypass, Callers, Stranger};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::error::Error;
use crate::fetch::{Arrival, Cause, Failure, Fetch, Had, Landed, Terms, Wanted};
use crate::headers;
use crate::metrics::{IdResult, Metrics, Tally};
use crate::passthrough::Passthrough;
use request::{Batch, NotABatch};

/// Answers batches.
pub struct AccessUrls {
    callers: Arc<Callers>,
    cache: Arc<Cache>,
    fetch: Fetch,
    passthrough: Arc<Passthrough>,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What a client allows to be answered from memory.
#[derive(Clone, Copy)]
struct Demand {
    /// Nothing: the client said no-cache or no-store, or the caller must be accepted anew.
    nothing: bool,
    /// Milliseconds that a link's call may lie back.
    max_age: Option<u64>,
    /// Milliseconds of freshness that must be left.
    min_fresh: Option<u64>,
}

impl Demand {
    fn serves(&self, kept: &Kept, now: Moment) -> bool {
        !self.nothing
            && kept.deadlines.fresh_left(now).is_some_and(|left| left >= self.min_fresh.unwrap_or(0))
            && self.max_age.is_none_or(|most| kept.deadlines.age(now) <= most)
    }
}

/// One id of a batch on its way to an answer.
struct Slot {
    wanted: Wanted,
    had: Option<Link>,
    result: IdResult,
}

/// What an id is answered with.
#[derive(Clone)]
struct Link {
    /// The item; `None`: left out.
    text: Option<Arc<str>>,
    /// `None`: not stored.
    deadlines: Option<Deadlines>,
}

/// The ids of a batch that was read and admitted. Counts each once, also when the client leaves before its answer.
struct Slots<'m> {
    slots: Vec<Slot>,
    metrics: &'m Metrics,
}

impl Slots<'_> {
    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for slot in &self.slots {
            tally.add(slot.result);
        }
        tally
    }

    fn lacking(&self) -> Vec<Wanted> {
        self.slots.iter().filter(|slot| slot.had.is_none()).map(|slot| slot.wanted.clone()).collect()
    }

    fn lacking_slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.had.is_none())
    }
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        self.metrics.count_ids(&self.tally());
    }
}

/// What fetching a batch has shown, besides the links.
#[derive(Default)]
struct Fetched {
    /// The first failure, in the order asked.
    failure: Option<Arc<Failure>>,
    /// The endpoint's name for the first call, or the first that failed.
    request_id: Option<HeaderValue>,
}

impl AccessUrls {
    /// A handler over what the composition root has built.
    pub fn new(
        callers: Arc<Callers>,
        cache: Arc<Cache>,
        fetch: Fetch,
        passthrough: Arc<Passthrough>,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self { callers, cache, fetch, passthrough, config, metrics, clock }
    }

    /// Answers a GET on the batch route.
    pub async fn answer(&self, request: Request<Incoming>) -> Answered {
        let (parts, body) = request.into_parts();
        let credential = match self.callers.credential(&parts.headers) {
            Ok(credential) => credential,
            Err(reason) => return self.bypass(Request::from_parts(parts, body), reason).await,
        };
        let body = match self.read_body(&parts, body).await {
            Ok(body) => body,
            Err(error) => return respond::own(error),
        };
        let untouched = |parts, body| Request::from_parts(parts, whole(body));
        let requester = match self.callers.identify(&credential, &parts, &body) {
            Ok(requester) => requester,
            Err(Stranger::Bypass(reason)) => return self.bypass(untouched(parts, body), reason).await,
            Err(Stranger::Forged(fault)) => return respond::own(Error::Signature(fault)),
        };
        let batch = match Batch::read(parts.uri.query(), &parts.headers, &body, self.config.limits.batch_ids) {
            Ok(batch) => batch,
            Err(NotABatch::Unreadable) => return self.bypass(untouched(parts, body), Bypass::Unreadable).await,
            Err(NotABatch::TooManyIds) => return respond::own(Error::TooManyIds),
        };
        self.metrics.batch_ids.observe(batch.ids.len() as f64);
        let directives = self.directives(&parts);
        let scope = self.callers.scope(&requester, batch.group.as_deref());
        let terms = Arc::new(Terms {
            scope,
            group: batch.group,
            form: batch.form,
            deadline: Instant::now() + self.config.upstream.deadline,
            hops: headers::sidelinks(&parts.headers),
            traceparent: parts.headers.get(api::TRACEPARENT).cloned(),
            requester,
        });
        let caller = Some(terms.requester.caller.short());

        let demand = self.demand(&directives, &terms);
        let mut slots = self.look_up(batch.ids, &terms, &demand, &directives);
        self.refresh_ahead(&slots, &terms);
        let from_memory = slots.slots.iter().filter(|slot| slot.had.is_some()).count();
        let mut fetched = Fetched::default();
        if from_memory < slots.slots.len() {
            if directives.only_if_cached {
                return Answered { tally: slots.tally(), caller, ..respond::own(Error::NotCached) };
            }
            fetched = match self.fetch_lacking(&mut slots, &terms, &directives).await {
                Ok(fetched) => fetched,
                Err(error) => return Answered { tally: slots.tally(), caller, ..respond::own(error) },
            };
        }
        if let Some(failure) = &fetched.failure
            && !self.serve_stale(&mut slots, &terms, failure, &directives)
        {
            if let Cause::Unmatched(_) = failure.cause
                && (failure.shared || failure.ids != slots.slots.len())
            {
                // Not to be guessed at, and not this batch's own answer: fetched whole, passed on as it comes.
                slots.lacking_slots().for_each(|slot| slot.result = IdResult::Fetched);
                let tally = slots.tally();
                let whole = self.bypass(untouched(parts, body), Bypass::Unmatched);
                let answered = timeout_at(terms.deadline, whole).await;
                return Answered { tally, caller, ..answered.unwrap_or_else(|_| respond::own(Error::Deadline)) };
            }
            return Answered { tally: slots.tally(), caller, ..respond::failure(failure) };
        }
        let answered =
            respond::links(&slots, &fetched, from_memory, &terms, &self.callers, &self.metrics, self.clock.now());
        Answered { caller, ..answered }
    }

    /// The whole body, bounded; what a client sends on beyond is drained for a while so that it gets to read the refusal.
    async fn read_body(&self, parts: &Parts, body: Incoming) -> Result<Bytes, Error> {
        use http_body::Body;
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let limit = self.config.limits.batch_body;
        let declared = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > limit) {
            crate::server::drain(body);
            return Err(Error::BodyTooLarge);
        }
        let mut body = body;
        let read = Limited::new(&mut body, limit).collect();
        let Ok(read) = timeout(self.config.limits.idle_timeout, read).await else {
            return Err(Error::Malformed("the request's body did not come in time"));
        };
        match read {
            Ok(read) => Ok(read.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                crate::server::drain(body);
                Err(Error::BodyTooLarge)
            }
            Err(_) => Err(Error::Malformed("the request's body broke off")),
        }
    }

    async fn bypass<B>(&self, request: Request<B>, reason: Bypass) -> Answered
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        debug!(reason = reason.name(), "forwarded untouched");
        self.metrics.bypass.with_label_values(&[reason.name()]).inc();
        respond::bypassed(self.passthrough.forward(request).await, reason)
    }

    fn directives(&self, parts: &Parts) -> Directives {
        if self.config.callers.cache_control { Directives::read(&parts.headers) } else { Directives::default() }
    }

    fn demand(&self, directives: &Directives, terms: &Terms) -> Demand {
        Demand {
            nothing: directives.no_cache || directives.no_store || self.callers.must_revalidate(&terms.requester),
            max_age: directives.max_age.map(|seconds| seconds.saturating_mul(1000)),
            min_fresh: directives.min_fresh.map(|seconds| seconds.saturating_mul(1000)),
        }
    }

    /// Answers what memory can, and counts what it could but may not.
    fn look_up(&self, ids: Vec<Box<str>>, terms: &Terms, demand: &Demand, directives: &Directives) -> Slots<'_> {
        let now = self.clock.now();
        let (mut refetched, mut slots) = (0, Vec::with_capacity(ids.len()));
        for id in ids {
            let key = self.callers.key(terms.scope, &id);
            let kept = self.cache.look_up(key).filter(|kept| kept.deadlines.fresh_left(now).is_some());
            let (had, result) = match kept {
                Some(kept) if demand.serves(&kept, now) => {
                    let result = if kept.text.is_some() { IdResult::Hit } else { IdResult::Absent };
                    (Some(Link::kept(kept)), result)
                }
                Some(_) => {
                    refetched += 1;
                    (None, IdResult::Failed)
                }
                None => (None, IdResult::Failed),
            };
            slots.push(Slot { wanted: Wanted { id, key }, had, result });
        }
        if refetched > 0 && !directives.only_if_cached {
            let by_client = directives.no_cache
                || directives.no_store
                || directives.max_age.is_some()
                || directives.min_fresh.is_some();
            let cause = if by_client { "client" } else { "revalidate" };
            self.metrics.refetched.with_label_values(&[cause]).inc_by(refetched);
        }
        Slots { slots, metrics: &self.metrics }
    }

    /// Fetches again, in the background, what was just handed out and is about to go cold.
    fn refresh_ahead(&self, slots: &Slots<'_>, terms: &Arc<Terms>) {
        if !self.config.freshness.refresh_ahead {
            return;
        }
        let now = self.clock.now();
        let ageing = |slot: &&Slot| {
            let link = slot.had.as_ref().filter(|link| link.text.is_some());
            let deadlines = link.and_then(|link| link.deadlines);
            deadlines.is_some_and(|deadlines| deadlines.is_ageing(now, slot.wanted.key.spread()))
        };
        let ageing: Vec<Wanted> = slots.slots.iter().filter(ageing).map(|slot| slot.wanted.clone()).collect();
        if !ageing.is_empty() {
            let refreshed = self.fetch.refresh(terms, &ageing);
            self.metrics.refetched.with_label_values(&["refresh"]).inc_by(refreshed as u64);
        }
    }

    /// Fetches what lacks; where a shared call failed, once more apart, so that only a batch at fault sees its error.
    async fn fetch_lacking(
        &self,
        slots: &mut Slots<'_>,
        terms: &Arc<Terms>,
        directives: &Directives,
    ) -> Result<Fetched, Error> {
        let lacking = slots.lacking();
        if directives.no_store {
            let landed = self.fetch.fetch_apart(terms, &lacking, false).await?;
            return Ok(settle(slots, landed.into_iter().map(|landed| Had::Landed { joined: false, landed })));
        }
        // Asked anew: the call that has brought a link meanwhile has shown, too, that the caller is accepted.
        let serves = |kept: &Kept| self.demand(directives, terms).serves(kept, self.clock.now());
        let fetched = settle(slots, self.fetch.fetch(terms, &lacking, serves).await?.into_iter());
        match &fetched.failure {
            Some(failure) if failure.may_be_anothers_fault() && self.fetch.affords_extra() => {
                let lacking = slots.lacking();
                // At a limit, the failure that is known says more than the limit.
                let Ok(landed) = self.fetch.fetch_apart(terms, &lacking, true).await else { return Ok(fetched) };
                Ok(settle(slots, landed.into_iter().map(|landed| Had::Landed { joined: false, landed })))
            }
            _ => Ok(fetched),
        }
    }

    /// Answers for a failing endpoint with what is usable still. Whether nothing lacks any more.
    fn serve_stale(&self, slots: &mut Slots<'_>, terms: &Terms, failure: &Failure, directives: &Directives) -> bool {
        let asked_anew = directives.no_cache || directives.no_store;
        if !failure.allows_stale() || asked_anew || !self.callers.is_current(&terms.requester) {
            return false;
        }
        let now = self.clock.now();
        for slot in slots.lacking_slots() {
            let kept = self.cache.look_up(slot.wanted.key);
            if let Some(kept) = kept.filter(|kept| kept.text.is_some() && kept.deadlines.usable(now)) {
                slot.had = Some(Link::kept(kept));
                slot.result = IdResult::Stale;
            }
        }
        slots.lacking_slots().next().is_none()
    }
}

impl Link {
    fn kept(kept: Kept) -> Self {
        Self { text: kept.text, deadlines: Some(kept.deadlines) }
    }
}

/// Puts what was fetched into the lacking slots, in order.
fn settle(slots: &mut Slots<'_>, had: impl Iterator<Item = Had>) -> Fetched {
    let mut fetched = Fetched::default();
    for (slot, had) in slots.lacking_slots().zip(had.collect::<Vec<_>>()) {
        let (joined, Landed { result, request_id }) = match had {
            Had::InMemory(kept) => {
                slot.result = if kept.text.is_some() { IdResult::Hit } else { IdResult::Absent };
                slot.had = Some(Link::kept(kept));
                continue;
            }
            Had::Landed { joined, landed } => (joined, landed),
        };
        let (text, deadlines) = match result {
            Arrival::Link(text, deadlines) => (Some(text), deadlines),
            Arrival::LeftOut(deadlines) => (None, deadlines),
            Arrival::Failed(failure) => {
                if fetched.failure.is_none() {
                    fetched.failure = Some(failure);
                    fetched.request_id = request_id;
                }
                continue;
            }
        };
        slot.result = if joined { IdResult::Joined } else { IdResult::Fetched };
        slot.had = Some(Link { text, deadlines });
        if fetched.failure.is_none() && fetched.request_id.is_none() {
            fetched.request_id = request_id;
        }
    }
    fetched
}
