//! The batch route: look up the ids in memory, fetch those that are missing, merge, answer.
//!
//! Start at [`BatchRoute::look_up`], which asks memory, synchronously: `auth` tells caller and scope; a batch that comes again as it
//! was written is answered by its whole answer; any other is read by `api::request`, and its ids are looked up. A batch that is all
//! in memory is answered there. Only for the others a future is made ([`BatchRoute::finish`]), in which `missing` has `fetch` fetch the
//! ids. `identify` learns first whose an unknown token is, where that may be asked. `respond` merges the entries and writes the headers; `forward` forwards what sidelink may not answer; `explain` says for an
//! operator what would happen, and `check` how a recorded exchange is read.
//!
//! May use `fetch`, `cache`, `identity`, `auth`, `api` and the leaves, and pass-through of `proxy`, to forward.

pub mod check;
mod chunked_body;
mod context;
mod explain;
mod forward;
mod identify;
mod masking;
mod missing;
mod respond;
mod slots;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use tokio::time::Instant;

use crate::api::BatchApi;
use crate::api::request::{Batch, Id};
use crate::auth::{AuthError, Bypass, Callers, Credential, Identity, Key, LastToken};
use crate::cache::answers::{Found, Revision, WholeAnswer, WholeAnswers, Written};
use crate::cache::{Cache, Entry};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::error::{Error, TooMany};
use crate::fetch::{CacheRequirements, FetchContext, Fetcher, KeyedId};
use crate::identity::IdentityProvider;
use crate::limits::budget::{Budget, Reservation};
use crate::message::body::{BodyError, stream};
use crate::message::cache_control::Directives;
use crate::message::header_filter::{HeaderFilter, Headers};
use crate::message::headers;
use crate::message::reply::Reply;
use crate::proxy::passthrough::Passthrough;
use crate::telemetry::metrics::{ApiMetrics, IdResult, Refetch};
use crate::telemetry::trace::RequestSpan;
use missing::Fetched;
use respond::Summary;
use slots::{Slot, Slots, distinct, result_of_hit};

/// Answers the batches of one API.
pub struct BatchRoute {
    api: Arc<BatchApi>,
    callers: Arc<Callers>,
    /// The identity provider, if one is configured.
    identity_provider: Option<Arc<IdentityProvider>>,
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

/// A request's credential and identity.
type Authenticated<'r> = (Credential<'r>, Identity);

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

impl Step {
    /// What a request without a caller leads to.
    fn of(error: AuthError) -> Self {
        match error {
            AuthError::Bypass(reason) => Self::Bypass(reason),
            AuthError::Unverified(_) => Self::Bypass(Bypass::Signature),
            AuthError::NamedByConnection => Self::Reply(respond::error(Error::NamedByConnection)),
        }
    }
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

impl BatchRoute {
    /// A handler over what the composition root has built.
    #[expect(clippy::too_many_arguments, reason = "the composition root hands over what it has built")]
    pub(crate) fn new(
        callers: Arc<Callers>,
        identity_provider: Option<Arc<IdentityProvider>>,
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
        Self {
            api,
            callers,
            identity_provider,
            cache,
            fetch,
            passthrough,
            bodies,
            config,
            api_metrics,
            clock,
            template,
            answers,
        }
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

    /// Looks up a request on its route that came at `began`, in memory alone. `None`: the body must be read,
    /// or the token's user looked up, first ([`Self::read_and_answer`]).
    pub fn look_up(&self, head: &Parts, has_body: bool, began: Instant, context: RequestContext<'_>) -> Option<Step> {
        if !has_body {
            let now = self.clock.at(began);
            return match self.identify(head, &[], context, now) {
                Ok(authenticated) if self.needs_user(&authenticated, now) => None,
                Ok(authenticated) => Some(self.look_up_as(&authenticated, head, &[], &mut None, now, context)),
                Err(error) => Some(Step::of(error)),
            };
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

    /// Reads a request's body, looks up its token's user where that is not known, and the batch, and answers it.
    pub async fn read_and_answer<B>(&self, head: &Parts, body: B, context: RequestContext<'_>) -> Reply
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
        let mut now = self.clock.now();
        let mut identified = self.identify(head, &body, context, now);
        if let Ok(authenticated) = &identified
            && self.needs_user(authenticated, now)
        {
            Box::pin(self.look_up_user(authenticated)).await;
            now = self.clock.now();
            identified = self.identify(head, &body, context, now);
        }
        let step = match identified {
            Ok(authenticated) => self.look_up_as(&authenticated, head, &body, &mut reservation, now, context),
            Err(error) => Step::of(error),
        };
        // Boxed each: a body whose batch is in memory needs neither, and both are large.
        match step {
            Step::Reply(reply) => reply,
            Step::Bypass(reason) => Box::pin(self.bypass_read(head.clone(), body, reason, context.trace)).await,
            Step::Fetch(pending) => Box::pin(self.fetch_and_reply(pending, head, &body)).await,
        }
    }

    /// Identifies the caller of a request.
    fn identify<'r>(
        &'r self,
        head: &'r Parts,
        body: &[u8],
        context: RequestContext<'_>,
        now: Moment,
    ) -> Result<Authenticated<'r>, AuthError> {
        let credential = self.callers.credential(context.filter.on(&head.headers)).map_err(AuthError::Bypass)?;
        let identity = self.callers.identify(&credential, context.last_token, head, body, now)?;
        Ok((credential, identity))
    }

    /// Reads a batch and looks it up in memory. Waits for nothing.
    fn look_up_as(
        &self,
        authenticated: &Authenticated<'_>,
        head: &Parts,
        body: &[u8],
        reservation: &mut Option<Reservation>,
        now: Moment,
        context: RequestContext<'_>,
    ) -> Step {
        self.renew_user(authenticated, now);
        let (credential, identity) = authenticated;
        let headers = context.filter.on(&head.headers);
        let directives = self.directives(headers);
        let client = CacheRequirements::from(&directives);
        let must_revalidate = self.callers.must_revalidate(identity, now);
        let requirements = CacheRequirements { forbids_cache: client.forbids_cache || must_revalidate, ..client };
        let shown = identity.shown();
        let scope = self.callers.scope(identity, headers, &head.uri);
        let written = Written::new(scope, head.uri.query(), body);
        // Before anything is looked up.
        let revision = Revision::of(&self.cache, identity);
        let written = written.filter(|_| !requirements.may_exclude_fresh() && !headers.contains(&CONTENT_ENCODING));
        let found = written
            .as_ref()
            .map_or(Found::LookUpEntries, |written| self.answers.look_up(written, revision, now, &self.cache));
        if let Found::Answer(answer) = found {
            let mut reply = self.repeated(&answer, now);
            self.api_metrics.answers_used.inc();
            self.api_metrics.batch_ids.observe(reply.info.tally.total().into());
            self.api_metrics.count_ids(&reply.info.tally);
            (reply.info.caller, reply.info.user) = shown;
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
            (reply.info.caller, reply.info.user) = shown;
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
            reply.info.tally = slots.tally();
            (reply.info.caller, reply.info.user) = shown;
            Step::Reply(reply)
        };
        let refusal = match (slots.slots.as_slice(), ids.as_slice()) {
            ([Slot { entry: None, .. }], [(id, key)]) => {
                self.cache.refusals.look_up(identity.caller, *key, &id.name, &marks, now)
            }
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
        let mut context =
            self.context(&batch, scope, identity.clone(), credential, client, head, headers, context.trace);
        (context.refetches, context.body) = (requirements.may_exclude_fresh(), reservation.take());
        let context = Arc::new(context);
        self.refresh_ahead(&ageing, &context);
        if !is_missing && !envelopes_differ {
            let (entries, summary) = (slots.entries(), Summary::of(slots.entries(), now));
            let mut reply = self.merged(entries, &summary, &Fetched::default(), batch.form, now);
            (reply.info.caller, reply.info.user) = shown;
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
}
