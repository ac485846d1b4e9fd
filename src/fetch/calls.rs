//! Calls to the endpoint: ids of one scope and form share calls.
//!
//! Each scope and form has a queue and a number of calls under way ([`take_ready_batches`](Fetcher::take_ready_batches)); ids
//! that arrive meanwhile wait in the queue, and leave when a call returns. No timer delays a lone batch. Retries are
//! [`Upstream::call`](crate::upstream::Upstream::call)'s.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::Budget;

use super::batch_builder::BatchBuilder;
use super::flights::{Flight, FlightMap};
use super::shared_lookup::SharingProof;
use super::{Cause, EntrySource, Failure, FetchContext, FetchResult, Fetcher, KeyedId};
use crate::api;
use crate::api::answer::{self, AnswerItem, ParsedAnswer};
use crate::api::request::{self, Form};
use crate::auth::{Identity, Scope};
use crate::cache::Entry;
use crate::cache::freshness::{self, AnswerFreshness, Deadlines, Reason};
use crate::error::{Error, Limit, NoAnswer};
use crate::limits::pause;
use crate::telemetry::log::events;
use crate::telemetry::metrics::CallResult;
use crate::telemetry::trace::{CallContext, CallSpan};
use crate::upstream::{Answer, Call};

/// Ids that may share a call: same caller, group, scope headers and form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    pub(super) scope: Scope,
    pub(super) form: Form,
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
    /// Whether this sidecar holds a lease for the id, so that no other sidecar fetches it.
    pub(super) leased: bool,
    /// Whether no batch waits for it: it is a refresh ahead.
    pub(super) background: bool,
    /// The fetcher of the configuration under which its batch was read.
    pub(super) fetcher: Arc<Fetcher>,
}

/// The batches that a call serves, one for each of its ids.
struct Served<'t> {
    batches: Vec<&'t FetchContext>,
    /// Whether all are one batch, and no other has joined.
    is_one_batch: bool,
}

/// The ids of one call. However its task ends, its flights are completed and its queue moves on.
pub(super) struct UpstreamBatch {
    fetcher: Arc<Fetcher>,
    queue: QueueKey,
    pending: Vec<PendingId>,
}

/// What came of a call, for the ids that it carried, in their order.
pub(super) struct CallReport {
    pub(super) entries: Result<Vec<Entry>, Cause>,
    request_id: Option<HeaderValue>,
    /// Proof that the entries may be shared with the fleet.
    pub(super) proof: Option<SharingProof>,
    /// Its span, if it has one.
    span: Option<CallContext>,
}

impl CallReport {
    fn failed(cause: Cause) -> Self {
        Self { entries: Err(cause), request_id: None, proof: None, span: None }
    }

    /// One result for each of the call's `ids`; `of_several_batches`: whose fault a failure is, is not known.
    fn each(self, ids: usize, of_several_batches: bool) -> Vec<FetchResult> {
        let (request_id, call) = (self.request_id, self.span);
        let result = |entry| FetchResult {
            entry,
            source: EntrySource::Call,
            request_id: request_id.clone(),
            call: call.clone(),
        };
        match self.entries {
            Ok(entries) => entries.into_iter().map(|entry| result(Ok(entry))).collect(),
            Err(cause) => vec![result(Err(Arc::new(Failure { cause, of_several_batches, ids }))); ids],
        }
    }
}

impl UpstreamBatch {
    /// Ends the flights. The entries that may be stored are in the cache already.
    fn complete(&mut self, result: CallReport) {
        let pending = std::mem::take(&mut self.pending);
        let mut state = self.fetcher.state();
        for pending in &pending {
            state.remove(pending.id.key, &pending.flight);
        }
        drop(state);
        // No batch joins any more, so whether batches share a failure is settled.
        let mut contexts = pending.iter().map(|pending| Arc::as_ptr(&pending.context));
        let first = contexts.next();
        let of_several_batches = contexts.any(|other| Some(other) != first)
            || pending.iter().any(|pending| pending.flight.joined.load(Ordering::Relaxed));
        for (pending, result) in pending.iter().zip(result.each(pending.len(), of_several_batches)) {
            pending.flight.complete(result);
        }
    }
}

impl Drop for UpstreamBatch {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            events::CallLost { ids: self.pending.len() }.log();
            self.complete(CallReport::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost))));
        }
        let mut state = self.fetcher.state();
        if let Some(queue) = state.queues.get_mut(&self.queue) {
            queue.calls = queue.calls.saturating_sub(1);
        }
        let ready = self.fetcher.take_ready_batches(&mut state, self.queue);
        drop(state);
        self.fetcher.send(ready);
    }
}

impl Fetcher {
    /// Takes the batches that may leave a queue now, to be handed to [`Fetcher::send`] once the state is unlocked.
    pub(super) fn take_ready_batches(self: &Arc<Self>, state: &mut FlightMap, key: QueueKey) -> Vec<UpstreamBatch> {
        let mut ready = Vec::new();
        let mut abandoned = Vec::new();
        let Some(queue) = state.queues.get_mut(&key) else { return ready };
        // After a reload, the fetcher of the batch that came last, with its configuration.
        let fetcher = Arc::clone(queue.pending.back().map_or(self, |last| &last.fetcher));
        while queue.calls < fetcher.config.upstream.calls_per_scope {
            let mut builder = BatchBuilder::new(&fetcher.config.upstream, key.form);
            let mut pending = Vec::new();
            while let Some(next) = queue.pending.front() {
                let is_abandoned = next.flight.waiters.load(Ordering::Relaxed) == 0;
                if !is_abandoned && !builder.add(&next.id.id) {
                    break;
                }
                let Some(next) = queue.pending.pop_front() else { break };
                if is_abandoned {
                    abandoned.push(next);
                } else {
                    pending.push(next);
                }
            }
            if pending.is_empty() {
                break;
            }
            let now = self.clock.now();
            for pending in &pending {
                // An id that was looked up in the shared tier keeps the time of that look-up.
                let _ = pending.flight.sent.set(now);
            }
            queue.calls += 1;
            ready.push(UpstreamBatch { fetcher: Arc::clone(&fetcher), queue: key, pending });
        }
        if queue.calls == 0 {
            state.queues.remove(&key);
        }
        for abandoned in abandoned {
            state.remove(abandoned.id.key, &abandoned.flight);
        }
        ready
    }

    /// Starts calls. Must not be called with the state locked: a runtime that shuts down drops the calls on the spot.
    pub(super) fn send(&self, ready: Vec<UpstreamBatch>) {
        for mut batch in ready {
            self.flights.runtime.spawn(async move {
                let result = batch.run().await;
                batch.complete(result);
            });
        }
    }

    /// One call for one batch alone.
    pub(super) async fn call_for_one_batch(
        &self,
        context: &FetchContext,
        ids: &[KeyedId],
        store: bool,
    ) -> Vec<FetchResult> {
        let served = Served { batches: vec![context], is_one_batch: true };
        let result = self.call(context, &served, ids, context.deadline, store).await;
        self.share(context, ids, &[], &result);
        result.each(ids.len(), false)
    }

    /// Makes one call on behalf of `context`, the first of the batches that it serves.
    async fn call(
        &self,
        context: &FetchContext,
        served: &Served<'_>,
        ids: &[KeyedId],
        deadline: Instant,
        store: bool,
    ) -> CallReport {
        if let Some(refusal) = self.refusal(context, ids) {
            return self.counted(CallReport::failed(refusal));
        }
        // Takes the per-caller permit first, so a throttled caller holds no global one.
        let caller_state = &context.identity.caller_state;
        caller_state.calls.resize(self.flights.calls_per_caller.load(Ordering::Relaxed));
        let accepted = caller_state.is_accepted();
        let permits = async {
            let for_caller = caller_state.calls.acquire().await;
            let unaccepted = if accepted { None } else { self.flights.unaccepted_calls.acquire().await.ok() };
            self.flights.calls.acquire().await.map(|permit| (for_caller, unaccepted, permit))
        };
        let permits = timeout_at(deadline, permits).await;
        // A call that has queued for too long is not sent: it would time out, and the endpoint would not be to blame.
        let (Ok(Ok(_permits)), true) = (permits, self.upstream.leaves_fair_time(deadline)) else {
            self.shed(Limit::Calls);
            return self.counted(CallReport::failed(Cause::NoAnswer(Error::Deadline)));
        };
        let names = || ids.iter().map(|id| &*id.id);
        let requests = served.batches.iter().map(|context| &context.trace);
        let span = CallSpan::start(self.upstream.endpoint(), ids.len(), requests);
        let mut headers = context.headers.clone();
        headers.extend(span.context().as_ref().unwrap_or(&context.trace_context).headers());
        let request_id = context.request_id.as_ref().filter(|_| served.is_one_batch);
        headers.extend(request_id.map(|id| (api::REQUEST_ID, id.clone())));
        let call = Call {
            target: request::target(context.form, &context.group, names()),
            body: request::body(context.form, &context.group, names()),
            headers,
            signer: context.identity.signer.clone(),
            hops: context.hops,
            caller: context.identity.caller,
            accepted,
            ids: ids.iter().map(|id| id.id.clone()).collect(),
        };
        let read = |body: &[u8]| {
            let read = answer::read(body, &names().collect::<Vec<_>>());
            let has_links = matches!(read, ParsedAnswer::Links(_) | ParsedAnswer::Unmatched);
            (read, has_links)
        };
        let invalidations = caller_state.invalidations();
        // Taken before the call is sent: purges and revocations from here on concern what it brings.
        let stamp = self.tier.as_ref().and_then(|tier| tier.stamp());
        self.flights.refreshes.deposit();
        self.flights.extra_calls.deposit();
        let mut retries = 0;
        let outcome = self.upstream.call(&call, deadline, &mut retries, read).await;
        let status = outcome.as_ref().ok().map(|(answer, _)| answer.status);
        let mut result = match outcome {
            Ok((answer, read)) => {
                let sent = answer.sent;
                if answer.status == StatusCode::UNAUTHORIZED {
                    self.unauthorized(&served.batches);
                }
                self.note_pause(&call, &answer, &context.identity);
                let (mut result, accepted) = self.take_answer(answer, read, invalidations, context, ids, store);
                // What proves nothing of the caller here proves nothing to the fleet.
                result.proof = stamp.filter(|_| accepted && store).map(|stamp| SharingProof { stamp, sent });
                result
            }
            Err(error) => CallReport::failed(Cause::NoAnswer(error)),
        };
        result.span = span.call_context();
        span.end(status, call_result(&result).name(), retries);
        self.counted(result)
    }

    /// Why no call for these ids may be made for this caller now.
    pub(super) fn refusal(&self, context: &FetchContext, ids: &[KeyedId]) -> Option<Cause> {
        self.rejection(&context.identity, ids.iter().map(|id| &*id.id)).map(Cause::Rejected)
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
                caller: format_args!("{:08x}", identity.caller.short()),
                status: answer.status.as_u16(),
                seconds: span.as_secs_f64(),
                suppressed,
            }
            .log();
        });
    }

    fn counted(&self, result: CallReport) -> CallReport {
        self.metrics.upstream_calls.of(call_result(&result)).inc();
        result
    }

    /// Stores what an answer brings, and notes what it shows of the caller. Returns also whether the call proves that the
    /// endpoint accepts the caller.
    fn take_answer(
        &self,
        answer: Answer,
        read: Option<ParsedAnswer>,
        invalidations: u64,
        context: &FetchContext,
        ids: &[KeyedId],
        store: bool,
    ) -> (CallReport, bool) {
        let mut accepted = false;
        let request_id = answer.headers.get(api::REQUEST_ID).cloned();
        let identity = &context.identity;
        let entries = match answer.status {
            StatusCode::OK => {
                // An answer in a coding that cannot be undone is not read: nothing in it can be matched.
                if read.is_none() {
                    self.upstream.cannot_be_read();
                }
                match read.unwrap_or(ParsedAnswer::Unmatched) {
                    ParsedAnswer::Links(items) => {
                        // A call that was sent before an invalidation proves nothing, and stores nothing.
                        accepted = self.callers.accept(identity, answer.sent, invalidations);
                        let store = store && accepted;
                        let mut entries = self.store(&answer, context, ids, items, store);
                        self.settle_refusals(answer.sent, identity, ids, &mut entries);
                        if store && identity.caller_state.invalidations() != invalidations {
                            // The caller was invalidated meanwhile, perhaps over these very ids.
                            accepted = false;
                            ids.iter().for_each(|id| self.cache.remove(id.key, identity));
                        }
                        Ok(entries)
                    }
                    ParsedAnswer::NoList => {
                        // Older error codes come with a 200. Only the code of failed validation is documented; any other
                        // counts as "no permission". An error without a code is not remembered.
                        let code = answer::error_code(&answer.body);
                        if code.as_deref() != Some(api::VALIDATION_FAILED) {
                            self.withdraw(&answer, context, ids, store && code.is_some());
                        }
                        Err(Cause::Answer(answer))
                    }
                    ParsedAnswer::Unmatched => {
                        self.metrics.uncacheable.of(Reason::Unmatched).inc_by(ids.len() as u64);
                        Err(Cause::Unmatched(answer))
                    }
                    ParsedAnswer::Broken => {
                        self.upstream.cannot_be_read();
                        Err(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Unreadable)))
                    }
                }
            }
            StatusCode::FORBIDDEN => {
                self.withdraw(&answer, context, ids, store);
                Err(Cause::Answer(answer))
            }
            _ => Err(Cause::Answer(answer)),
        };
        (CallReport { entries, request_id, proof: None, span: None }, accepted)
    }

    /// The entries of an answer's items, one for each of `ids`. Stores those that may be stored: nothing that was purged after
    /// the call was sent.
    fn store(
        &self,
        answer: &Answer,
        context: &FetchContext,
        ids: &[KeyedId],
        items: Vec<Option<AnswerItem>>,
        store: bool,
    ) -> Vec<Entry> {
        let source = AnswerFreshness::read(&answer.headers, answer.sent);
        self.metrics.clock_skew.set(source.skew() as f64 / 1000.0);
        let foreign_vary = self.callers.varies_outside(&answer.headers);
        let policy = &self.config.freshness;
        let marks = self.cache.purges().of_group(context.group.name());
        let store = store && self.may_store();
        let entry = |id: &KeyedId, item: Option<AnswerItem>| {
            let may_store = store && !marks.cover(&id.id, answer.sent);
            let deadlines = match &item {
                Some(item) => match freshness::judge(item.url.as_deref(), &source, policy) {
                    Ok(_) if foreign_vary => Err(Reason::Vary),
                    verdict => verdict,
                },
                // An id that was left out, and that may not be remembered as absent.
                None if source.forbids_storing(policy) || foreign_vary => {
                    if may_store {
                        self.cache.remove(id.key, &context.identity);
                    }
                    Ok(Deadlines::not_stored(answer.sent))
                }
                None => Ok(Deadlines::absent(answer.sent, source.absence(policy))),
            };
            let deadlines = deadlines.unwrap_or_else(|reason| {
                self.metrics.uncacheable.of(reason).inc();
                if reason == Reason::NoStore {
                    self.warn_once_of_no_store();
                }
                // An entry that is stored already is another link, good until its own deadlines.
                Deadlines::not_stored(answer.sent)
            });
            let is_stored = may_store && deadlines.is_stored();
            let deadlines = if is_stored { deadlines } else { Deadlines::not_stored(answer.sent) };
            let entry = Entry::new(item.as_ref().map(|item| &*item.text), deadlines);
            if is_stored {
                self.cache.insert(id.key, entry.clone(), &context.identity);
            }
            entry
        };
        ids.iter().zip(items).map(|(id, item)| entry(id, item)).collect()
    }

    fn warn_once_of_no_store(&self) {
        if !self.warned_no_store.swap(true, Ordering::Relaxed) {
            events::NotStored {}.log();
        }
    }
}

impl UpstreamBatch {
    async fn run(&mut self) -> CallReport {
        let Some(first) = self.pending.first() else {
            return CallReport::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost)));
        };
        let latest = self.pending.iter().map(|pending| pending.context.deadline).max();
        let deadline = latest.unwrap_or(first.context.deadline);
        let ids: Vec<KeyedId> = self.pending.iter().map(|pending| pending.id.clone()).collect();
        let context = Arc::clone(&first.context);
        let is_one_batch = self.pending.iter().all(|pending| {
            let is_joined = pending.flight.joined.load(Ordering::Relaxed);
            Arc::ptr_eq(&pending.context, &context) && !is_joined && !pending.background
        });
        let batches = self.pending.iter().map(|pending| &*pending.context).collect();
        let served = Served { batches, is_one_batch };
        let result = self.fetcher.call(&context, &served, &ids, deadline, true).await;
        let leased: Vec<bool> = self.pending.iter().map(|pending| pending.leased).collect();
        self.fetcher.share(&context, &ids, &leased, &result);
        result
    }
}

/// The label of a call in `upstream_calls_total`.
fn call_result(report: &CallReport) -> CallResult {
    match &report.entries {
        Ok(_) => CallResult::Ok,
        Err(Cause::Answer(answer) | Cause::Unmatched(answer)) => match answer.status.as_u16() {
            200 => CallResult::ErrorIn200,
            500.. => CallResult::ServerError,
            400.. => CallResult::ClientError,
            _ => CallResult::Unexpected,
        },
        Err(Cause::NoAnswer(Error::Deadline)) => CallResult::Deadline,
        Err(Cause::Rejected(_) | Cause::NoAnswer(Error::BreakerOpen(_) | Error::HeldBack(_))) => CallResult::Refused,
        Err(Cause::NoAnswer(_)) => CallResult::NoAnswer,
    }
}
