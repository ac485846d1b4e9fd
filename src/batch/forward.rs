//! Batches that are forwarded: untouched, because sidelink may not answer them; or after their calls failed.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::{Request, StatusCode, Uri};
use tokio::time::timeout_at;

use super::respond::{self, Summary};
use super::slots::{Slots, distinct};
use super::{BatchRoute, Fetched};
use crate::api::answer;
use crate::api::envelope::Envelope;
use crate::api::request::Batch;
use crate::auth::Bypass;
use crate::error::{Error, NoAnswer};
use crate::fetch::{Cause, Failure, FetchContext, FetchResult, KeyedId};
use crate::message::body::{BodyError, whole};
use crate::message::cache_control::Directives;
use crate::message::reply::{Detail, Reply};
use crate::telemetry::log::events;
use crate::telemetry::metrics::Refetch;
use crate::telemetry::trace::RequestSpan;

impl BatchRoute {
    /// Forwards a request of the batch route untouched.
    pub(super) async fn bypass<B>(&self, request: Request<B>, reason: Bypass, trace: &RequestSpan) -> Reply
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        self.count_bypass(reason);
        respond::bypassed(self.passthrough.forward(request, trace).await, reason)
    }

    /// As [`Self::bypass`], for a request whose body has been read.
    pub(super) async fn bypass_read(&self, parts: Parts, body: Bytes, reason: Bypass, trace: &RequestSpan) -> Reply {
        let mut request = Request::from_parts(parts, whole(body));
        // The client has been told to continue already.
        request.headers_mut().remove(EXPECT);
        self.bypass(request, reason, trace).await
    }

    fn count_bypass(&self, reason: Bypass) {
        events::Bypassed { api: &self.api.name, reason: reason.name() }.log();
        self.api_metrics.bypass.of(reason).inc();
    }

    /// The reply to a batch whose calls failed, where it is not the failure itself:
    /// - an answer that cannot be matched or read: it is passed on as it came, or the batch is fetched whole where the call carried
    ///   other ids, or a part of its ids;
    /// - a refusal, to a batch that came with cookies, which calls do not carry: the batch is forwarded with them;
    /// - an error that is about the ids of a call which carried only a part of the batch: the endpoint may answer the whole
    ///   batch otherwise, so it is forwarded; also one that is larger than a call of sidelink's own, if the endpoint takes it.
    pub(super) async fn forward_failed(
        &self,
        failure: &Failure,
        parts: &Parts,
        body: &Bytes,
        context: &Arc<FetchContext>,
        slots: &mut Slots,
    ) -> Option<Reply> {
        let batch = Batch::read(&self.api, parts.uri.query(), &parts.headers, body).ok()?;
        let fits = self.fits_one_call(&batch, &parts.uri);
        let count = slots.slots.len();
        let is_of_batch = !failure.of_several_batches && failure.ids == count;
        match &failure.cause {
            Cause::Unmatched(_) | Cause::Unreadable(_) if is_of_batch => {
                // The answer to exactly this batch is passed on.
                slots.count_fetched();
                let reason = respond::reason_of(&failure.cause);
                self.count_bypass(reason);
                let mut reply = respond::failure(failure);
                reply.info.detail = Some(Detail::Named(reason.name()));
                Some(reply)
            }
            Cause::Unmatched(_) if !fits => Some(self.fetch_whole(&batch, parts, body, context, slots).await),
            Cause::Unmatched(_) | Cause::Unreadable(_) => {
                let reason = respond::reason_of(&failure.cause);
                Some(self.forward_as_written(parts, body, reason, context, slots).await)
            }
            Cause::Answer(answer) if fits && context.has_cookies && is_refusal(answer.status) => {
                Some(self.forward_with_cookies(parts, body, context, slots).await)
            }
            // The answer to one id alone is the answer to a batch of it, also where others have joined.
            Cause::Answer(answer) if is_about_ids(answer.status) && !is_of_batch && failure.ids.max(count) > 1 => {
                let reason = self.reason_of_part(answer.status, &answer.body);
                self.forward_for_part(reason, parts, body, fits, context, slots).await
            }
            _ => None,
        }
    }

    /// Why a batch is forwarded after an error of this status and body for a part of it.
    fn reason_of_part(&self, status: StatusCode, body: &[u8]) -> Bypass {
        let is_error = status != StatusCode::OK || answer::is_error(&self.api, body);
        if is_error { Bypass::Part } else { Bypass::NoList }
    }

    /// Forwards a batch, for this `reason`, after an error for a part of it. `None`: the endpoint refuses a batch that is larger than a
    /// call of sidelink's own (not `fits`), so that the error of the part says more. No budget limits this: where it was used up, the
    /// error of a part would be passed on as that of the batch.
    async fn forward_for_part(
        &self,
        reason: Bypass,
        parts: &Parts,
        body: &Bytes,
        fits: bool,
        context: &FetchContext,
        slots: &mut Slots,
    ) -> Option<Reply> {
        self.api_metrics.refetched.of(Refetch::Part).inc_by(slots.slots.len() as u64);
        let reply = self.forward_as_written(parts, body, reason, context, slots).await;
        Some(reply).filter(|reply| fits || reply.response.status().is_success())
    }

    /// Fetches all ids of a batch by calls of its own, since the items that it has came in envelopes that differ. Where the new ones
    /// still do, as those of several calls may, all items are passed on in the envelope of the first. So are those that it has where
    /// the endpoint fails, or a limit is reached.
    pub(super) async fn fetch_anew(
        &self,
        parts: &Parts,
        body: &Bytes,
        context: &Arc<FetchContext>,
        directives: &Directives,
        slots: &mut Slots,
    ) -> Reply {
        let Ok(batch) = Batch::read(&self.api, parts.uri.query(), &parts.headers, body) else {
            return respond::error(Error::NoAnswer(NoAnswer::Lost));
        };
        let Some(ids) = self.keyed(&batch, context) else { return respond::error(self.too_many_ids(&batch)) };
        self.api_metrics.refetched.of(Refetch::Envelope).inc_by(slots.entries().count() as u64);
        let aside = slots.set_aside();
        let put_back =
            |slots: &mut Slots| self.callers.is_current(&context.identity) && slots.put_back(&aside, self.clock.now());
        let fetched = match self.fetch.fetch_separately(context, &ids, !directives.no_store).await {
            Ok(results) => slots.take(results, &context.trace),
            Err(_) if put_back(slots) => Fetched::default(),
            Err(error) => return respond::error(error),
        };
        if let Some(failure) = &fetched.failure
            && !(failure.allows_stale() && put_back(slots))
        {
            let forwarded = self.forward_failed(failure, parts, body, context, slots).await;
            return forwarded.unwrap_or_else(|| respond::failure(failure));
        }
        let now = self.clock.now();
        let (entries, summary) = (slots.entries(), Summary::of(slots.entries(), now));
        self.merged(entries, &summary, &fetched, batch.form, now)
    }

    /// The distinct ids of a batch, with their keys; `None` if there are too many.
    fn keyed(&self, batch: &Batch<'_>, context: &FetchContext) -> Option<Vec<KeyedId>> {
        let ids = distinct(batch, context.scope, self.config.limits.batch_ids)?;
        Some(ids.into_iter().map(|(id, key)| KeyedId::new(id, key)).collect())
    }

    /// Forwards a batch with its cookies, since a call without them was refused. The answer decides whether the endpoint
    /// still accepts the caller.
    pub(super) async fn forward_with_cookies(
        &self,
        parts: &Parts,
        body: &Bytes,
        context: &FetchContext,
        slots: &mut Slots,
    ) -> Reply {
        let reply = self.forward_as_written(parts, body, Bypass::Cookie, context, slots).await;
        if reply.response.status() == StatusCode::UNAUTHORIZED {
            self.fetch.drop_caller_entries(context, context.was_accepted);
        }
        reply
    }

    /// Forwards a batch as its client wrote it, within its deadline.
    async fn forward_as_written(
        &self,
        parts: &Parts,
        body: &Bytes,
        reason: Bypass,
        context: &FetchContext,
        slots: &mut Slots,
    ) -> Reply {
        let forwarded = self.bypass_read(parts.clone(), body.clone(), reason, &context.trace);
        let reply = timeout_at(context.deadline, forwarded).await;
        let reply = reply.unwrap_or_else(|_| respond::error(Error::Deadline));
        if reply.response.status().is_success() {
            slots.count_fetched();
        }
        reply
    }

    /// Whether a batch, as its client wrote it, is no larger than a call of sidelink's own would be.
    fn fits_one_call(&self, batch: &Batch<'_>, uri: &Uri) -> bool {
        let limits = &self.config.upstream;
        let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
        let ids = batch.ids.len();
        ids == 1 || (ids <= limits.ids_per_call.min(self.api.ids_per_call) && target <= limits.uri_bytes)
    }

    /// Fetches a batch that is too large to be forwarded as it was written, and one of whose answers has an item that matches
    /// no id. All items are passed on in one list, call by call, or the answer of the first call that fails; nothing is
    /// stored.
    async fn fetch_whole(
        &self,
        batch: &Batch<'_>,
        parts: &Parts,
        body: &Bytes,
        context: &Arc<FetchContext>,
        slots: &mut Slots,
    ) -> Reply {
        self.count_bypass(Bypass::Unmatched);
        let Some(ids) = self.keyed(batch, context) else { return respond::error(self.too_many_ids(batch)) };
        let results = match self.fetch.fetch_separately(context, &ids, false).await {
            Ok(results) => results,
            Err(error) => return respond::error(error),
        };
        match self.items(&results) {
            Ok((items, envelope)) => {
                let own = self.template.envelope.as_deref();
                let Some(envelope) = own.or(envelope.as_ref()) else {
                    return respond::error(Error::NoAnswer(NoAnswer::Unreadable));
                };
                slots.count_fetched();
                let request_id = results.first().and_then(|result| result.request_id.clone());
                respond::unmatched(items.iter().map(|item| &**item), envelope, request_id, &self.template)
            }
            Err(failure) => {
                let forwarded = match &failure.cause {
                    // The answer to a part of the batch: passed on, it would look like that to the whole.
                    Cause::Unreadable(_) => {
                        Some(self.forward_as_written(parts, body, Bypass::Part, context, slots).await)
                    }
                    Cause::Answer(answer) if is_about_ids(answer.status) => {
                        let reason = self.reason_of_part(answer.status, &answer.body);
                        self.forward_for_part(reason, parts, body, false, context, slots).await
                    }
                    _ => None,
                };
                forwarded.unwrap_or_else(|| respond::failure(failure))
            }
        }
    }

    /// The items that calls have brought, in the order of the calls, and the envelope of the first.
    fn items<'r>(&self, results: &'r [FetchResult]) -> Result<(Items<'r>, Option<Envelope>), &'r Failure> {
        let (mut items, mut envelope) = (Vec::with_capacity(results.len()), None);
        let mut last: Option<&Arc<Failure>> = None;
        for result in results {
            match &result.entry {
                Ok(entry) => {
                    items.extend(entry.text().map(Cow::Borrowed));
                    envelope = envelope.or_else(|| entry.envelope().map(|envelope| (**envelope).clone()));
                }
                Err(failure) => match &failure.cause {
                    // Of the same call as the id before.
                    Cause::Unmatched(_) if last.is_some_and(|last| Arc::ptr_eq(last, failure)) => {}
                    Cause::Unmatched(answer) => {
                        let read = answer::items(&self.api, &answer.body, answer.headers.get(CONTENT_TYPE));
                        if let Some((texts, around)) = read {
                            items.extend(texts.into_iter().map(|text| Cow::Owned(text.into_string().into_bytes())));
                            envelope = envelope.or(Some(around));
                        }
                        last = Some(failure);
                    }
                    _ => return Err(failure),
                },
            }
        }
        Ok((items, envelope))
    }
}

/// The texts of items.
type Items<'r> = Vec<Cow<'r, [u8]>>;

/// Whether an answer of this status, which is no list of items, concerns the ids of its call: neither the caller as a whole, nor the
/// endpoint's health, nor its pace. A redirection is one, since it may name the call's ids.
fn is_about_ids(status: StatusCode) -> bool {
    !status.is_server_error() && !matches!(status.as_u16(), 401 | 408 | 429)
}

fn is_refusal(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}
