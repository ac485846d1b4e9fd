//! The batch route: look up the ids in memory, fetch those that are missing, merge, answer.
//!
//! Start at [`BatchRoute::look_up`], which asks memory, synchronously: `auth` tells caller and scope; a batch that comes again as it
//! was written is answered by its whole answer; any other is read by `api::request`, and its ids are looked up. A batch that is all
//! in memory is answered there. Only for the others a future is made ([`BatchRoute::finish`]), in which `fetch` fetches the missing
//! ids. `respond` merges the entries and writes the headers; `forward` forwards what sidelink may not answer; `explain` says for an
//! operator what would happen, and `check` how a recorded exchange is read.
//!
//! May use `fetch`, `cache`, `auth`, `api` and the leaves, and pass-through of `proxy`, to forward.

pub mod check;
mod chunked_body;
mod context;
mod explain;
mod forward;
mod masking;
mod respond;
mod slots;

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use http::{HeaderValue, Request};
use tokio::time::Instant;

use crate::api::BatchApi;
use crate::api::request::{Batch, Id};
use crate::auth::{AuthError, Bypass, Callers, Key, LastToken};
use crate::cache::answers::{Found, Revision, WholeAnswer, WholeAnswers, Written};
use crate::cache::{Cache, Entry};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::error::{Error, TooMany};
use crate::fetch::{CacheRequirements, Failure, FetchContext, Fetcher, KeyedId};
use crate::limits::budget::{Budget, Reservation};
use crate::message::body::{BodyError, stream};
use crate::message::cache_control::Directives;
use crate::message::header_filter::{HeaderFilter, Headers};
use crate::message::headers;
use crate::message::reply::Reply;
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::metrics::{ApiMetrics, IdResult, Refetch};
use crate::telemetry::trace::RequestSpan;
use respond::Summary;
use slots::{Slot, Slots, distinct, result_of_hit};

/// Answers the batches of one API.
pub struct BatchRoute {
    api: Arc<BatchApi>,
    callers: Arc<Callers>,
    cache: Arc<Cache>,
    fetch: Arc<Fetcher>,
    passthrough: Arc<Passthrough>,
    /// Bodies of batches that are not answered yet.
    bodies: Budget,
    config: Arc<Config>,
    /// What is counted for its API.
    api_metrics: Arc<ApiMetrics>,
    clock: Clock,
    template: respond::HeaderTemplate,
    answers: Arc<WholeAnswers>,
}

/// The context of a request: what the batch route needs beside head and body.
#[derive(Clone, Copy)]
pub struct RequestContext<'a> {
    /// The filter of its headers.
    pub filter: HeaderFilter,
    /// The last token of its connection.
    pub last_token: &'a LastToken,
    /// Its span.
    pub trace: &'a RequestSpan,
}

/// What the look-up of a batch leads to.
#[expect(clippy::large_enum_variant, reason = "boxing the reply would cost every hit an allocation")]
pub enum Step {
    /// The reply.
    Reply(Reply),
    /// The request is to be forwarded untouched.
    Bypass(Bypass),
    /// Ids are to be fetched.
    Fetch(Box<PendingBatch>),
}

/// A batch that memory does not have all of.
pub struct PendingBatch {
    slots: Slots,
    context: Arc<FetchContext>,
    directives: Directives,
    /// Whether the endpoint refused the batch's one id lately, to a call without the batch's cookies.
    is_refused: bool,
    /// Whether memory has all of its items, but their envelopes differ, so that they cannot be merged.
    envelopes_differ: bool,
}

/// What fetching a batch has shown, besides the entries.
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
    pub(crate) fn new(
        callers: Arc<Callers>,
        cache: Arc<Cache>,
        fetch: Arc<Fetcher>,
        passthrough: Arc<Passthrough>,
        bodies: Budget,
        answers: Arc<WholeAnswers>,
        config: Arc<Config>,
        api_metrics: Arc<ApiMetrics>,
        clock: Clock,
    ) -> Self {
        let (api, template) = (Arc::clone(callers.api()), respond::HeaderTemplate::new(&callers));
        Self { api, callers, cache, fetch, passthrough, bodies, config, api_metrics, clock, template, answers }
    }

    /// Its API.
    pub fn api(&self) -> &BatchApi {
        &self.api
    }

    /// What is counted for its API.
    pub fn api_metrics(&self) -> &ApiMetrics {
        &self.api_metrics
    }

    /// Whether a request of this head is on its route.
    pub fn is_for(&self, head: &Parts) -> bool {
        head.method == self.api.method && self.api.path.matches(head.uri.path())
    }

    /// The callers that it tells apart.
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Looks up a request on its route that came at `began`, in memory alone. `None`: its body is to be read first
    /// ([`Self::answer_body`]).
    pub fn look_up(&self, head: &Parts, has_body: bool, began: Instant, context: RequestContext<'_>) -> Option<Step> {
        if !has_body {
            return Some(self.look_up_read(head, &[], &mut None, self.clock.at(began), context));
        }
        // A request without a credential is no batch: its body streams through.
        self.callers.credential(context.filter.on(&head.headers)).err().map(Step::Bypass)
    }

    /// Does what is left to do for a request after [`Self::look_up`].
    pub async fn finish<B>(&self, step: Step, request: Request<B>, context: RequestContext<'_>) -> Reply
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        match step {
            Step::Reply(reply) => reply,
            Step::Bypass(reason) => self.bypass(request, reason, context.trace).await,
            Step::Fetch(pending) => self.fetch_and_reply(pending, &request.into_parts().0, &Bytes::new()).await,
        }
    }

    /// Reads a request's body, looks it up, and answers it.
    pub async fn answer_body<B>(&self, head: &Parts, body: B, context: RequestContext<'_>) -> Reply
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        // Reading the body would tell a client that waits for a 100 to send it.
        let drains = !headers::expects_continue(head.version, &head.headers, &body);
        let (most, time) = (self.config.limits.batch_body, self.config.limits.idle_timeout);
        let read = self.bodies.read(stream(body), most, Error::BodyTooLarge(most), time, drains).await;
        // The reservation lasts until the batch is answered, as the body does, or until its calls have ended.
        let (body, mut reservation) = match read {
            Ok((body, reservation)) => (body, Some(reservation)),
            Err(error) => return respond::error(error),
        };
        // Boxed each: a body whose batch is in memory needs neither, and both are large.
        match self.look_up_read(head, &body, &mut reservation, self.clock.now(), context) {
            Step::Reply(reply) => reply,
            Step::Bypass(reason) => Box::pin(self.bypass_read(head.clone(), body, reason, context.trace)).await,
            Step::Fetch(pending) => Box::pin(self.fetch_and_reply(pending, head, &body)).await,
        }
    }

    /// Reads a batch and looks it up in memory. Waits for nothing.
    fn look_up_read(
        &self,
        head: &Parts,
        body: &[u8],
        reservation: &mut Option<Reservation>,
        now: Moment,
        context: RequestContext<'_>,
    ) -> Step {
        let RequestContext { filter, last_token, trace } = context;
        let headers = filter.on(&head.headers);
        let credential = match self.callers.credential(headers) {
            Ok(credential) => credential,
            Err(reason) => return Step::Bypass(reason),
        };
        let identity = match self.callers.identify(&credential, last_token, head, body) {
            Ok(identity) => identity,
            Err(AuthError::Bypass(reason)) => return Step::Bypass(reason),
            Err(AuthError::Unverified(_)) => return Step::Bypass(Bypass::Signature),
            Err(AuthError::NamedByConnection) => return Step::Reply(respond::error(Error::NamedByConnection)),
        };
        let directives = self.directives(headers);
        let client = CacheRequirements::from(&directives);
        let must_revalidate = self.callers.must_revalidate(&identity, now);
        let requirements = CacheRequirements { forbids_cache: client.forbids_cache || must_revalidate, ..client };
        let caller = Some(identity.caller.short());
        let scope = self.callers.scope(&identity, headers, &head.uri);
        let written = Written::new(scope, head.uri.query(), body);
        // Before anything is looked up.
        let revision = Revision::of(&self.cache, &identity);
        let written = written.filter(|_| !requirements.may_exclude_fresh() && !headers.contains(&CONTENT_ENCODING));
        let found = written
            .as_ref()
            .map_or(Found::LookUpEntries, |written| self.answers.look_up(written, revision, now, &self.cache));
        if let Found::Answer(answer) = found {
            let mut reply = self.repeated(&answer, now);
            self.api_metrics.answers_used.inc();
            self.api_metrics.batch_ids.observe(reply.info.tally.total().into());
            self.api_metrics.count_ids(&reply.info.tally);
            reply.info.caller = caller;
            return Step::Reply(reply);
        }
        let is_repeated = matches!(found, Found::SeenBefore);

        let batch = match Batch::read(&self.api, head.uri.query(), headers, body) {
            Ok(batch) => batch,
            Err(not_a_batch) => return Step::Bypass(not_a_batch.reason()),
        };
        let scope = scope.of_batch(&batch);
        let Some(ids) = distinct(&batch, scope, self.config.limits.batch_ids) else {
            return Step::Reply(respond::error(self.too_many_ids(&batch)));
        };
        self.api_metrics.batch_ids.observe(ids.len() as f64);

        let marks = self.cache.purges().of(&self.api.name, batch.group.name());
        let view = self.cache.open(ids.iter().map(|(_, key)| *key));
        let found = view.look_up(&ids, &marks);
        let mut summary = Summary::new();
        // An entry that is to be refreshed takes the way below.
        let is_hit = |((_, key), entry): (&(&Id<'_>, Key), &Option<&Entry>)| {
            let Some(entry) = entry.filter(|entry| requirements.allow(entry.deadlines(), now)) else { return false };
            summary.add(entry, now);
            !self.is_ageing(entry, *key, now)
        };
        let are_hits = ids.iter().zip(&found).all(is_hit);
        let envelopes_differ = are_hits && !self.can_merge(found.iter().flatten().copied());
        if are_hits && !envelopes_differ {
            // Merged from entries that the cache lends: no reference count is touched for a hit.
            let entries = found.iter().flatten().map(|entry| (*entry, result_of_hit(entry)));
            let mut reply = self.merged(entries, &summary, &Fetched::default(), batch.form, now);
            self.api_metrics.count_ids(&reply.info.tally);
            reply.info.caller = caller;
            if let Some(written) = written.filter(|_| is_repeated) {
                let entries = found.iter().flatten().zip(&ids).map(|(entry, (_, key))| (*entry, *key));
                let answer = WholeAnswer::new(&written, revision, entries, self.template.envelope.as_deref(), now);
                drop(view);
                if let Some(answer) = answer {
                    self.answers.insert(&written, answer, now);
                }
            }
            return Step::Reply(reply);
        }

        let (slots, ageing, refetched) = self.slots(&ids, &found, &requirements, now);
        drop(view);
        let is_missing = slots.slots.iter().any(|slot| slot.entry.is_none());
        let with_tally = |mut reply: Reply| {
            (reply.info.tally, reply.info.caller) = (slots.tally(), caller);
            Step::Reply(reply)
        };
        let refusal = match (slots.slots.as_slice(), ids.as_slice()) {
            ([Slot { entry: None, .. }], [(id, key)]) => self.cache.refusals.look_up(*key, &id.name, &marks, now),
            _ => None,
        };
        // Also for a caller that must revalidate: a refusal gives nothing away.
        let refusal = refusal.filter(|refusal| client.allow_refusal(&refusal.deadlines, now));
        if let Some(refusal) = &refusal
            && !self.has_cookies(headers)
        {
            return with_tally(respond::refused(refusal));
        }
        let envelopes_differ = !is_missing && !self.can_merge(slots.entries().map(|(entry, _)| entry));
        if (is_missing || envelopes_differ) && directives.only_if_cached {
            return with_tally(respond::error(Error::NotCached));
        }
        if refetched > 0 {
            let cause = if client.may_exclude_fresh() { Refetch::Client } else { Refetch::Revalidate };
            self.api_metrics.refetched.of(cause).inc_by(refetched);
        }
        let mut context = self.context(&batch, scope, identity, &credential, client, head, headers, trace);
        (context.refetches, context.body) = (requirements.may_exclude_fresh(), reservation.take());
        let context = Arc::new(context);
        self.refresh_ahead(&ageing, &context);
        if !is_missing && !envelopes_differ {
            let (entries, summary) = (slots.entries(), Summary::of(slots.entries(), now));
            let mut reply = self.merged(entries, &summary, &Fetched::default(), batch.form, now);
            reply.info.caller = caller;
            return Step::Reply(reply);
        }
        let is_refused = refusal.is_some();
        Step::Fetch(Box::new(PendingBatch { slots, context, directives, is_refused, envelopes_differ }))
    }

    /// The slots of a batch that memory does not have all of, the ids that are to be refreshed ahead, and how many entries are
    /// fresh and yet may not be served.
    fn slots(
        &self,
        ids: &[(&Id<'_>, Key)],
        found: &[Option<&Entry>],
        requirements: &CacheRequirements,
        now: Moment,
    ) -> (Slots, Vec<KeyedId>, u64) {
        let mut refetched = 0;
        let mut ageing = Vec::new();
        let mut slots = Slots { slots: Vec::with_capacity(ids.len()), metrics: Arc::clone(&self.api_metrics) };
        for ((id, key), entry) in ids.iter().zip(found) {
            let keyed = || KeyedId::new(id, *key);
            slots.slots.push(match entry {
                Some(entry) if requirements.allow(entry.deadlines(), now) => {
                    if self.is_ageing(entry, *key, now) {
                        ageing.push(keyed());
                    }
                    Slot { id_to_fetch: None, result: result_of_hit(entry), entry: Some((*entry).clone()) }
                }
                entry => {
                    refetched += u64::from(entry.is_some_and(|entry| entry.deadlines().fresh_left(now).is_some()));
                    Slot { id_to_fetch: Some(keyed()), entry: None, result: IdResult::Failed }
                }
            });
        }
        (slots, ageing, refetched)
    }

    /// Fetches the missing ids of a batch, and answers it.
    async fn fetch_and_reply(&self, mut pending: Box<PendingBatch>, parts: &Parts, body: &Bytes) -> Reply {
        let asked = Instant::now();
        let reply = self.fetch_or_forward(&mut pending, parts, body).await;
        let mut reply = reply.after(asked.elapsed());
        reply.info.tally = pending.slots.tally();
        reply.info.caller = Some(pending.context.identity.caller.short());
        reply
    }

    async fn fetch_or_forward(&self, pending: &mut PendingBatch, parts: &Parts, body: &Bytes) -> Reply {
        let PendingBatch { slots, context, directives, is_refused, envelopes_differ } = pending;
        if *is_refused {
            // A call, which carries no cookies, would be refused again.
            return self.forward_with_cookies(parts, body, context, slots).await;
        }
        if *envelopes_differ {
            return self.fetch_anew(parts, body, context, directives, slots).await;
        }
        let fetched = match self.fetch_missing(slots, context, directives).await {
            Ok(fetched) => fetched,
            Err(error) => return respond::error(error),
        };
        if let Some(failure) = &fetched.failure
            && !self.serve_stale(slots, context, failure, directives)
        {
            return match self.forward_failed(failure, parts, body, context, slots).await {
                Some(reply) => reply,
                None => respond::failure(failure),
            };
        }
        // Where stale entries are served, the endpoint has failed.
        if fetched.failure.is_none() && !self.can_merge(slots.entries().map(|(entry, _)| entry)) {
            return self.fetch_anew(parts, body, context, directives, slots).await;
        }
        let now = self.clock.now();
        let (entries, summary) = (slots.entries(), Summary::of(slots.entries(), now));
        self.merged(entries, &summary, &fetched, context.template.form(), now)
    }

    /// Whether one answer can be made of these entries: their envelopes are the same.
    fn can_merge<'e>(&self, entries: impl Iterator<Item = &'e Entry>) -> bool {
        self.template.envelope.is_some() || respond::have_one_envelope(entries)
    }

    fn too_many_ids(&self, batch: &Batch<'_>) -> Error {
        Error::TooManyIds(TooMany { came: batch.ids.len(), allowed: self.config.limits.batch_ids })
    }

    fn directives(&self, headers: Headers<'_>) -> Directives {
        if self.config.callers.cache_control { Directives::read(headers) } else { Directives::default() }
    }

    /// Whether an entry is to be refreshed ahead.
    fn is_ageing(&self, entry: &Entry, key: Key, now: Moment) -> bool {
        self.config.freshness.refresh_ahead && !entry.is_absent() && entry.deadlines().is_ageing(now, key.spread())
    }

    /// Fetches entries again, in the background, that were just answered with and are about to be no longer fresh.
    fn refresh_ahead(&self, ageing: &[KeyedId], context: &Arc<FetchContext>) {
        if !ageing.is_empty() {
            let refreshed = self.fetch.refresh(context, ageing);
            self.api_metrics.refetched.of(Refetch::Refresh).inc_by(refreshed as u64);
        }
    }

    /// Fetches the missing ids; where a shared call failed, once more by calls of the batch's own, so that only a batch at
    /// fault sees the error.
    async fn fetch_missing(
        &self,
        slots: &mut Slots,
        context: &Arc<FetchContext>,
        directives: &Directives,
    ) -> Result<Fetched, Error> {
        if directives.no_store {
            let results = self.fetch.fetch_separately(context, &slots.missing(), false).await?;
            return Ok(slots.take(results, &context.trace));
        }
        let results = self.fetch.fetch(context, &slots.missing()).await?;
        let fetched = slots.take(results, &context.trace);
        match &fetched.failure {
            // The call of a batch's only id can have failed for no other's.
            Some(failure) if failure.ids == 1 && slots.slots.len() == 1 => Ok(fetched),
            Some(failure) if failure.may_be_anothers_fault() && self.fetch.affords_extra() => {
                // At a limit, the failure that is known says more than the limit.
                match self.fetch.fetch_separately(context, &slots.missing(), true).await {
                    Ok(results) => Ok(slots.take(results, &context.trace)),
                    Err(_) => Ok(fetched),
                }
            }
            _ => Ok(fetched),
        }
    }

    /// Takes stale entries for the missing ids, if the failure allows it. Returns whether none is missing any more.
    fn serve_stale(
        &self,
        slots: &mut Slots,
        context: &FetchContext,
        failure: &Failure,
        directives: &Directives,
    ) -> bool {
        let forbidden = directives.no_cache || directives.no_store;
        if !failure.allows_stale() || forbidden || !self.callers.is_current(&context.identity) {
            return false;
        }
        let now = self.clock.now();
        let marks = self.cache.purges().of(&self.api.name, context.group.name());
        for slot in slots.missing_mut() {
            let entry = slot.id_to_fetch.as_ref().and_then(|id| self.cache.look_up(id.key, &id.id, &marks));
            if let Some(entry) = entry.filter(|entry| !entry.is_absent() && entry.deadlines().usable(now)) {
                (slot.entry, slot.result) = (Some(entry), IdResult::Stale);
            }
        }
        slots.missing_mut().next().is_none()
    }
}
