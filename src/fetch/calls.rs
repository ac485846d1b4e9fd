//! Calls to the endpoint: ids of one caller, scope and form share calls.
//!
//! Each caller, scope and form has a queue and a number of calls under way ([`take_ready_calls`](Fetcher::take_ready_calls)); ids
//! that arrive meanwhile wait in the queue, and leave when a call returns. No timer delays a lone batch. Retries are
//! [`Upstream::call`](crate::upstream::Upstream::call)'s.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::timeout_at;
use tower::retry::budget::Budget;

use super::flights::{Flight, Flights, InFlightPermit};
use super::{Cause, EntrySource, Failure, FetchContext, FetchResult, Fetcher, KeyedId};
use crate::api::answer::{self, AnswerItem, ParsedAnswer};
use crate::api::envelope::Envelope;
use crate::api::expiry::StatedExpiry;
use crate::api::id;
use crate::api::request::Form;
use crate::auth::{Caller, Identity, Scope};
use crate::cache::freshness::{self, AnswerFreshness, Deadlines, Reason};
use crate::cache::{Entry, ItemDetails};
use crate::clock::Moment;
use crate::error::{Error, Limit, NoAnswer};
use crate::limits::pause;
use crate::message::headers::REQUEST_ID;
use crate::shared::{Lease, Stamp};
use crate::telemetry::log::events;
use crate::telemetry::metrics::CallResult;
use crate::telemetry::trace::{CallContext, CallSpan};
use crate::upstream::{Answer, Call};

/// Ids that may share a call: same scope and form, and one caller, with whose token it is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    pub(super) scope: Scope,
    pub(super) form: Form,
    pub(super) caller: Caller,
}

/// The ids of one key that wait for a call.
#[derive(Default)]
pub(super) struct CallQueue {
    pub(super) pending: VecDeque<PendingId>,
    /// Calls under way.
    calls: usize,
}

/// An id that waits for its call, or is in it.
pub(super) struct PendingId {
    pub(super) id: KeyedId,
    pub(super) flight: Arc<Flight>,
    pub(super) context: Arc<FetchContext>,
    /// This sidecar's lease on the id, so that no other sidecar fetches it.
    pub(super) lease: Option<Lease>,
    /// Whether no batch waits for it: it is a refresh ahead.
    pub(super) background: bool,
    /// The fetcher of the configuration under which its batch was read.
    pub(super) fetcher: Arc<Fetcher>,
}

impl PendingId {
    /// A flight for `id`, which `fetcher` is to fetch.
    pub(super) fn new(
        fetcher: &Arc<Fetcher>,
        context: &Arc<FetchContext>,
        id: &KeyedId,
        permit: InFlightPermit,
    ) -> Self {
        let flight = Arc::new(Flight::new(context.hops, fetcher.sharing(context), permit));
        let (context, fetcher) = (Arc::clone(context), Arc::clone(fetcher));
        Self { id: id.clone(), flight, context, lease: None, background: false, fetcher }
    }
}

/// The ids of one call. However its task ends, its flights are completed and its queue moves on.
pub(super) struct ReadyCall {
    fetcher: Arc<Fetcher>,
    /// The queue that the ids come from; `None`: the call is for one batch alone.
    queue: Option<QueueKey>,
    pending: Vec<PendingId>,
    /// Whether the entries may be stored.
    store: bool,
}

/// The outcome of a call, for its ids in their order.
pub(super) struct CallReport {
    pub(super) entries: Result<Vec<Entry>, Cause>,
    request_id: Option<HeaderValue>,
    /// Proof that the entries may be shared with the fleet: the state of its journal before the call, and when that was sent.
    pub(super) proof: Option<(Stamp, Moment)>,
    /// Its span, if it has one.
    span: Option<CallContext>,
}

impl CallReport {
    fn failed(cause: Cause) -> Self {
        Self { entries: Err(cause), request_id: None, proof: None, span: None }
    }
}

impl ReadyCall {
    /// Ends the flights. The entries that may be stored are in the cache already.
    fn complete(&mut self, report: CallReport) {
        let pending = std::mem::take(&mut self.pending);
        let mut flights = self.fetcher.flights();
        pending.iter().for_each(|pending| flights.remove(pending));
        drop(flights);
        // No batch joins any more, so whether batches share a failure is settled.
        let mut contexts = pending.iter().map(|pending| Arc::as_ptr(&pending.context));
        let first = contexts.next();
        let of_several_batches = contexts.any(|other| Some(other) != first)
            || pending.iter().any(|pending| pending.flight.joined.load(Ordering::Relaxed));
        let (request_id, call, ids) = (report.request_id, report.span, pending.len());
        let caller = pending.first().map(|first| first.context.identity.caller);
        let entries = match report.entries {
            Ok(entries) => entries.into_iter().map(Ok).collect(),
            Err(cause) => vec![Err(Arc::new(Failure { cause, of_several_batches, ids, caller })); ids],
        };
        for (PendingId { flight, .. }, entry) in pending.iter().zip(entries) {
            let (request_id, call) = (request_id.clone(), call.clone());
            flight.complete(FetchResult { entry, source: EntrySource::Call, request_id, call });
        }
    }
}

impl Drop for ReadyCall {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            events::CallLost { ids: self.pending.len() }.log();
            self.complete(CallReport::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost))));
        }
        let Some(key) = self.queue else { return };
        let mut flights = self.fetcher.flights();
        if let Some(queue) = flights.queues.get_mut(&key) {
            queue.calls = queue.calls.saturating_sub(1);
        }
        let ready = self.fetcher.take_ready_calls(&mut flights, key);
        drop(flights);
        self.fetcher.send(ready);
    }
}

impl Fetcher {
    /// Takes the batches that may leave a queue now, to be handed to [`Fetcher::send`] once the flights are unlocked.
    pub(super) fn take_ready_calls(self: &Arc<Self>, flights: &mut Flights, key: QueueKey) -> Vec<ReadyCall> {
        let mut ready = Vec::new();
        let mut abandoned = Vec::new();
        let Some(queue) = flights.queues.get_mut(&key) else { return ready };
        // After a reload, the fetcher of the batch that came last, with its configuration.
        let fetcher = Arc::clone(queue.pending.back().map_or(self, |last| &last.fetcher));
        while queue.calls < fetcher.config.upstream.calls_per_scope {
            let pending = fetcher.take_call(&mut queue.pending, &mut abandoned);
            if pending.is_empty() {
                break;
            }
            let now = self.clock.now();
            for pending in &pending {
                // An id that was looked up in the shared tier keeps the time of that look-up.
                let _ = pending.flight.sent.set(now);
            }
            queue.calls += 1;
            ready.push(ReadyCall { fetcher: Arc::clone(&fetcher), queue: Some(key), pending, store: true });
        }
        if queue.calls == 0 {
            flights.queues.remove(&key);
        }
        abandoned.iter().for_each(|abandoned| flights.remove(abandoned));
        ready
    }

    /// The calls for ids of one batch alone.
    pub(super) fn separate_calls(self: &Arc<Self>, mut pending: VecDeque<PendingId>, store: bool) -> Vec<ReadyCall> {
        let mut batches = Vec::new();
        while !pending.is_empty() {
            let pending = self.take_call(&mut pending, &mut Vec::new());
            batches.push(ReadyCall { fetcher: Arc::clone(self), queue: None, pending, store });
        }
        batches
    }

    /// Starts calls. Must not be called with the flights locked: a runtime that shuts down drops the calls on the spot.
    pub(super) fn send(&self, ready: Vec<ReadyCall>) {
        for mut batch in ready {
            self.state.runtime.spawn(async move {
                let report = batch.run().await;
                batch.complete(report);
            });
        }
    }

    /// Makes one call for `pending`, on behalf of `context`, the first of the batches that it serves.
    async fn call(&self, context: &FetchContext, pending: &[PendingId], store: bool) -> CallReport {
        let ids: &[KeyedId] = &pending.iter().map(|pending| pending.id.clone()).collect::<Vec<_>>();
        let latest = pending.iter().map(|pending| pending.context.deadline).max();
        let deadline = latest.unwrap_or(context.deadline);
        if let Some(rejection) = self.why_no_call(&context.identity, ids) {
            return CallReport::failed(Cause::Rejected(rejection));
        }
        // The owner's permit first: who waits for it takes none from others.
        let caller_state = &context.identity.caller_state;
        let owner = context.identity.owner();
        owner.calls.resize(self.state.calls_per_caller.load(Ordering::Relaxed));
        let accepted = context.identity.is_accepted();
        let permits = async {
            let for_owner = owner.calls.acquire().await;
            let unaccepted = if accepted { None } else { self.state.unaccepted_calls.acquire().await.ok() };
            self.state.calls.acquire().await.map(|permit| (for_owner, unaccepted, permit))
        };
        let permits = timeout_at(deadline, permits).await;
        // A call that has queued for too long is not sent: it would time out, and the endpoint would not be to blame.
        let (Ok(Ok(_permits)), true) = (permits, self.upstream.leaves_fair_time(deadline)) else {
            self.shed(Limit::Calls);
            return CallReport::failed(Cause::NoAnswer(Error::Deadline));
        };
        let names = || ids.iter().map(|id| &*id.id);
        let requests = pending.iter().map(|pending| &pending.context.trace);
        let span = CallSpan::start(self.upstream.endpoint(), self.callers.api(), ids.len(), requests);
        let mut headers = context.headers.clone();
        headers.extend(span.context().as_ref().unwrap_or(&context.trace_context).headers());
        let is_one_batch = pending.iter().all(|pending| {
            let is_joined = pending.flight.joined.load(Ordering::Relaxed);
            std::ptr::eq(&*pending.context, context) && !is_joined && !pending.background
        });
        let request_id = context.request_id.as_ref().filter(|_| is_one_batch);
        headers.extend(request_id.map(|id| (REQUEST_ID, id.clone())));
        let api = self.callers.api();
        let written = || ids.iter().map(|id| &*id.written);
        let call = Call {
            method: api.method.clone(),
            target: context.template.target(written()),
            body: context.template.body(written()),
            headers,
            signer: context.identity.signer.clone(),
            hops: context.hops,
            caller: context.identity.caller,
            accepted,
            ids: ids.iter().map(|id| id.id.clone()).collect(),
            metrics: Arc::clone(&self.api_metrics),
        };
        let read = |headers: &HeaderMap, body: &[u8]| {
            let read = answer::read(api, body, headers.get(CONTENT_TYPE), &names().collect::<Vec<_>>());
            let has_links = matches!(read, ParsedAnswer::Items { .. } | ParsedAnswer::Unmatched);
            (read, has_links)
        };
        let invalidations = caller_state.invalidations();
        // Taken before the call is sent: purges and revocations from here on concern what it brings.
        let stamp = self.tier.as_ref().and_then(|tier| tier.stamp());
        self.state.refreshes.deposit();
        owner.extra_calls.get().into_iter().for_each(|budget| budget.deposit());
        let mut retries = 0;
        let outcome = self.upstream.call(&call, deadline, &mut retries, read).await;
        let status = outcome.as_ref().ok().map(|(answer, _)| answer.status);
        let mut result = match outcome {
            Ok((answer, read)) => {
                if answer.status == StatusCode::UNAUTHORIZED {
                    self.unauthorized(context, pending.iter().all(|pending| pending.context.has_cookies));
                }
                self.note_pause(&call, &answer, &context.identity);
                self.take_answer((answer, read), invalidations, stamp, context, ids, store)
            }
            Err(error) => CallReport::failed(Cause::NoAnswer(error)),
        };
        result.span = span.call_context();
        span.end(status, call_result(&result).name(), retries);
        result
    }

    /// Pauses the caller after a 429, or a 503 with `Retry-After`; not all callers: one id or one token may be the reason.
    fn note_pause(&self, call: &Call, answer: &Answer, identity: &Identity) {
        let now = self.clock.now();
        let asked = self.upstream.pause_of(answer);
        let throttled = (answer.status == StatusCode::TOO_MANY_REQUESTS)
            .then(|| pause::retry_after(&answer.headers, now).unwrap_or(pause::DEFAULT));
        let Some(span) = asked.or(throttled) else { return };
        identity.caller_state.pause.set(now, span, Some(answer.response()));
        if asked.is_some() {
            self.upstream.asked_to_pause(call, span);
        }
        self.throttled.when_due(|suppressed| {
            events::CallerPaused {
                api: &self.callers.api().name,
                caller: format_args!("{:08x}", identity.caller.short()),
                status: answer.status.as_u16(),
                seconds: span.as_secs_f64(),
                suppressed,
            }
            .log();
        });
    }

    /// Stores what an answer brings (if `store`), and notes what it shows of the caller. `invalidations` and `stamp` are from
    /// before the call was sent.
    fn take_answer(
        &self,
        (answer, read): (Answer, Option<ParsedAnswer>),
        invalidations: u64,
        stamp: Option<Stamp>,
        context: &FetchContext,
        ids: &[KeyedId],
        store: bool,
    ) -> CallReport {
        let mut proof = None;
        let request_id = answer.headers.get(REQUEST_ID).cloned();
        let api = self.callers.api();
        let identity = &context.identity;
        let entries = match answer.status {
            StatusCode::OK => {
                match read {
                    Some(ParsedAnswer::Items { items, envelope }) => {
                        // A call that was sent before an invalidation proves nothing, and stores nothing.
                        let store = self.callers.accept(identity, answer.sent, invalidations) && store;
                        let mut entries = self.judge_items(&answer, context, ids, (items, envelope.as_ref()), store);
                        self.settle_refusals(answer.sent, identity, ids, &mut entries);
                        if store && identity.caller_state.invalidations() != invalidations {
                            // The caller was invalidated meanwhile, perhaps over these very ids.
                            ids.iter().for_each(|id| self.cache.remove(id.key, identity));
                        } else if store {
                            proof = stamp.map(|stamp| (stamp, answer.sent));
                        }
                        Ok(entries)
                    }
                    Some(ParsedAnswer::NoList) => {
                        // Error codes may come with a 200. One that is not known to be about the request counts as "no
                        // permission". An error without a code is not remembered.
                        let code = answer::error_code(api, &answer.body);
                        let is_known = |code: &str| api.errors.of_request.iter().any(|known| **known == *code);
                        if !answer::is_error(api, &answer.body) {
                            self.no_list.when_due(|suppressed| {
                                let place = format_args!("\"{}\"", api.items.at);
                                events::NoList { api: &api.name, place, suppressed }.log();
                            });
                        }
                        if !code.as_deref().is_some_and(is_known) {
                            self.forget_refused(&answer, context, ids, store && code.is_some());
                        }
                        Err(Cause::Answer(answer))
                    }
                    Some(ParsedAnswer::Unmatched) => {
                        self.api_metrics.uncacheable.of(Reason::Unmatched).inc_by(ids.len() as u64);
                        Err(Cause::Unmatched(answer))
                    }
                    Some(ParsedAnswer::NotJson) if answer.may_be_cut_off() => {
                        self.upstream.cannot_be_read();
                        Err(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Unreadable)))
                    }
                    // An answer in a coding that cannot be undone is not read.
                    Some(ParsedAnswer::NotJson) | None => {
                        self.upstream.cannot_be_read();
                        self.api_metrics.uncacheable.of(Reason::Unmatched).inc_by(ids.len() as u64);
                        Err(Cause::Unreadable(answer))
                    }
                }
            }
            StatusCode::FORBIDDEN => {
                self.forget_refused(&answer, context, ids, store);
                Err(Cause::Answer(answer))
            }
            _ => Err(Cause::Answer(answer)),
        };
        if let Err(Cause::Answer(error)) = &entries {
            self.upstream.answered_error(&api.name, error.status, answer::error_code(api, &error.body));
        }
        CallReport { entries, request_id, proof, span: None }
    }

    /// The entries of an answer's items, one for each of `ids`. Stores those that may be stored: nothing that was purged after
    /// the call was sent.
    fn judge_items(
        &self,
        answer: &Answer,
        context: &FetchContext,
        ids: &[KeyedId],
        (items, envelope): (Vec<Option<AnswerItem>>, Option<&Arc<Envelope>>),
        store: bool,
    ) -> Vec<Entry> {
        let source = AnswerFreshness::read(&answer.headers, answer.sent);
        self.metrics.clock_skew.set(source.skew() as f64 / 1000.0);
        let foreign_vary = self.callers.varies_outside(&answer.headers);
        let policy = &self.config.freshness;
        let marks = self.cache.purges().of(&self.callers.api().name, context.group.name());
        let store = store && self.may_store();
        // Shared by all items that have no more to say.
        let plain = ItemDetails::of(None, source.age(), envelope, ids.len()).map(Arc::new);
        let entry = |id: &KeyedId, item: Option<AnswerItem>| {
            let may_store = store && !marks.cover(&id.id, answer.sent);
            let deadlines = match &item {
                Some(item) if !item.is_absent => match freshness::judge(item, &source, policy) {
                    Ok(_) if foreign_vary => Err(Reason::Vary),
                    verdict => verdict.inspect(|deadlines| self.warn_without_expiry(deadlines)),
                },
                // An id without a link, that may not be remembered as absent.
                _ if source.forbids_storing(policy) || foreign_vary => {
                    if may_store {
                        self.cache.remove(id.key, &context.identity);
                    }
                    Ok(Deadlines::not_stored(answer.sent))
                }
                _ => Ok(Deadlines::absent(answer.sent, source.absence(policy))),
            };
            let deadlines = deadlines.unwrap_or_else(|reason| {
                self.api_metrics.uncacheable.of(reason).inc();
                if reason == Reason::NoStore && !self.warned_no_store.swap(true, Ordering::Relaxed) {
                    events::NotStored { api: &self.callers.api().name }.log();
                }
                // An entry that is stored already is another link, good until its own deadlines.
                Deadlines::not_stored(answer.sent)
            });
            let is_stored = may_store && deadlines.is_stored();
            let deadlines = if is_stored { deadlines } else { Deadlines::not_stored(answer.sent) };
            let details = match &item {
                Some(item) if item.is_absent || item.expiries.iter().any(StatedExpiry::is_relative) => {
                    ItemDetails::of(Some(item), source.age(), envelope, ids.len()).map(Arc::new)
                }
                _ => plain.clone(),
            };
            let entry = Entry::with_details(item.as_ref().map(|item| &*item.text), deadlines, details);
            if is_stored {
                self.cache.insert(id.key, entry.clone());
            }
            entry
        };
        ids.iter().zip(items).map(|(id, item)| entry(id, item)).collect()
    }
}

impl ReadyCall {
    async fn run(&mut self) -> CallReport {
        let Some(context) = self.pending.first().map(|first| Arc::clone(&first.context)) else {
            return CallReport::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost)));
        };
        let report = self.fetcher.call(&context, &self.pending, self.store).await;
        self.fetcher.api_metrics.upstream_calls.of(call_result(&report)).inc();
        self.fetcher.share(&context, &mut self.pending, &report);
        report
    }
}

impl Fetcher {
    /// Takes as many ids out of a queue as one call may carry, by their number and by the bytes of its target; one at least. Ids
    /// that no batch waits for any more go to `abandoned`. An id waits for the next call if an item that names it may belong to an id of
    /// another batch in this one: the same with another element, a number and the string of its digits, spellings of one text.
    fn take_call(&self, queue: &mut VecDeque<PendingId>, abandoned: &mut Vec<PendingId>) -> Vec<PendingId> {
        let limits = &self.config.upstream;
        let most = limits.ids_per_call.min(self.callers.api().ids_per_call);
        let mut template: Option<(Arc<FetchContext>, usize)> = None;
        let mut call = Vec::new();
        let mut batches_by_text: HashMap<String, *const FetchContext> = HashMap::new();
        while let Some(next) = queue.pop_front() {
            if next.flight.waiters.load(Ordering::Relaxed) == 0 {
                abandoned.push(next);
                continue;
            }
            let (first, bytes) =
                template.get_or_insert_with(|| (Arc::clone(&next.context), next.context.template.bytes()));
            *bytes += first.template.bytes_of(&next.id.written);
            let is_full = call.len() >= most || *bytes > limits.uri_bytes;
            let batch = Arc::as_ptr(&next.context);
            let texts: Vec<String> = id::readings(&next.id.id).map(Cow::into_owned).collect();
            let is_anothers = |text: &String| batches_by_text.get(text).is_some_and(|other| *other != batch);
            if (is_full && !call.is_empty()) || texts.iter().any(is_anothers) {
                queue.push_front(next);
                break;
            }
            batches_by_text.extend(texts.into_iter().map(|text| (text, batch)));
            call.push(next);
        }
        call
    }
}

/// The label of a call in `upstream_calls_total`.
fn call_result(report: &CallReport) -> CallResult {
    match &report.entries {
        Ok(_) => CallResult::Ok,
        Err(Cause::Answer(answer) | Cause::Unmatched(answer) | Cause::Unreadable(answer)) => {
            match answer.status.as_u16() {
                200 => CallResult::ErrorIn200,
                500.. => CallResult::ServerError,
                400.. => CallResult::ClientError,
                _ => CallResult::Unexpected,
            }
        }
        Err(Cause::NoAnswer(Error::Deadline)) => CallResult::Deadline,
        Err(Cause::Rejected(_) | Cause::NoAnswer(Error::BreakerOpen(_) | Error::HeldBack(_))) => CallResult::Refused,
        Err(Cause::NoAnswer(_)) => CallResult::NoAnswer,
    }
}
