//! Calls: owned ids of one scope and form ride together.
//!
//! A lane has so many calls under way at a time; ids that come meanwhile queue, and leave when a call is back. No timer
//! delays a lone batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::Budget;

use super::load::Load;
use super::sharing::Proof;
use super::{Cause, Failure, FetchContext, Flight, FlightResult, Inner, ItemResult, State, Wanted};
use crate::api;
use crate::api::answer::{self, Item, Read};
use crate::api::request::{self, Form};
use crate::auth::{Identity, Scope};
use crate::cache::Entry;
use crate::cache::freshness::{self, Deadlines, Reason, Verdict};
use crate::error::{Error, Limit, NoAnswer};
use crate::limits::pause;
use crate::telemetry::log::events;
use crate::telemetry::metrics::CallResult;
use crate::telemetry::trace::{CallContext, CallSpan};
use crate::upstream::{Answer, Call, Rejection};

/// Ids that may ride together: same caller, group, scope headers and form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LaneKey {
    pub(super) scope: Scope,
    pub(super) form: Form,
}

#[derive(Default)]
pub(super) struct Lane {
    pub(super) queue: VecDeque<PendingId>,
    /// Calls under way.
    calls: usize,
}

/// An owned id on its way.
pub(super) struct PendingId {
    pub(super) wanted: Wanted,
    pub(super) flight: Arc<Flight>,
    pub(super) terms: Arc<FetchContext>,
    /// Whether its id is leased, so that no other sidecar fetches it.
    pub(super) leased: bool,
    /// Whether no batch waits for it: it is a refresh ahead.
    pub(super) background: bool,
    /// Of the configuration that its batch was read under.
    pub(super) inner: Arc<Inner>,
}

/// The batches that a call serves, one for each of its ids.
struct Served<'t> {
    batches: Vec<&'t FetchContext>,
    /// Whether all are one batch, and no other has joined.
    is_one_batch: bool,
}

/// One call's load. However its task ends, its flights land and its lane moves on.
pub(super) struct UpstreamBatch {
    inner: Arc<Inner>,
    lane: LaneKey,
    passengers: Vec<PendingId>,
}

/// What came of a call, for the ids it carried, in their order.
pub(super) struct Report {
    pub(super) result: Result<Vec<ItemResult>, Cause>,
    request_id: Option<HeaderValue>,
    /// What may be shared of it.
    pub(super) proof: Option<Proof>,
    /// Its span, if it has one.
    call: Option<CallContext>,
}

impl Report {
    fn failed(cause: Cause) -> Self {
        Self { result: Err(cause), request_id: None, proof: None, call: None }
    }

    /// One result for each of `ids`.
    fn each(self, ids: usize, shared: bool) -> Vec<FlightResult> {
        let (request_id, call) = (self.request_id, self.call);
        let arrivals =
            self.result.unwrap_or_else(|cause| vec![ItemResult::Failed(Arc::new(Failure { cause, shared, ids })); ids]);
        let landed =
            |result| FlightResult { result, request_id: request_id.clone(), shared: false, call: call.clone() };
        arrivals.into_iter().map(landed).collect()
    }
}

impl UpstreamBatch {
    /// Ends the flights; what may be kept is in the cache already.
    fn land(&mut self, report: Report) {
        let passengers = std::mem::take(&mut self.passengers);
        let mut state = self.inner.state();
        for passenger in &passengers {
            state.forget(passenger.wanted.key, &passenger.flight);
        }
        drop(state);
        // From here on nobody joins any more, so who shares a failure is settled.
        let mut terms = passengers.iter().map(|passenger| Arc::as_ptr(&passenger.terms));
        let first = terms.next();
        let shared = terms.any(|other| Some(other) != first)
            || passengers.iter().any(|passenger| passenger.flight.joined.load(Ordering::Relaxed));
        for (passenger, landed) in passengers.iter().zip(report.each(passengers.len(), shared)) {
            passenger.flight.arrive(landed);
        }
    }
}

impl Drop for UpstreamBatch {
    fn drop(&mut self) {
        if !self.passengers.is_empty() {
            events::CallLost { ids: self.passengers.len() }.log();
            self.land(Report::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost))));
        }
        let mut state = self.inner.state();
        if let Some(lane) = state.lanes.get_mut(&self.lane) {
            lane.calls = lane.calls.saturating_sub(1);
        }
        let departing = self.inner.departures(&mut state, self.lane);
        drop(state);
        self.inner.depart(departing);
    }
}

impl Inner {
    /// The calls that may leave a lane now. To be handed to [`Inner::depart`] once the state is unlocked.
    pub(super) fn departures(self: &Arc<Self>, state: &mut State, key: LaneKey) -> Vec<UpstreamBatch> {
        let mut departing = Vec::new();
        let mut abandoned_flights = Vec::new();
        let Some(lane) = state.lanes.get_mut(&key) else { return departing };
        // Of two configurations, that of who came last.
        let inner = Arc::clone(lane.queue.back().map_or(self, |last| &last.inner));
        while lane.calls < inner.config.upstream.calls_per_scope {
            let mut load = Load::new(&inner.config.upstream, key.form);
            let mut passengers = Vec::new();
            while let Some(next) = lane.queue.front() {
                let abandoned = next.flight.awaited.load(Ordering::Relaxed) == 0;
                if !abandoned && !load.takes(&next.wanted.id) {
                    break;
                }
                let Some(next) = lane.queue.pop_front() else { break };
                if abandoned {
                    abandoned_flights.push(next);
                } else {
                    passengers.push(next);
                }
            }
            if passengers.is_empty() {
                break;
            }
            let now = self.clock.now();
            for passenger in &passengers {
                // Once: whoever leaves the queue does not come back.
                let _ = passenger.flight.left.set(now);
            }
            lane.calls += 1;
            departing.push(UpstreamBatch { inner: Arc::clone(&inner), lane: key, passengers });
        }
        if lane.calls == 0 {
            state.lanes.remove(&key);
        }
        for abandoned in abandoned_flights {
            state.forget(abandoned.wanted.key, &abandoned.flight);
        }
        departing
    }

    /// Sets calls going. Must not be called with the state locked: a runtime that shuts down drops them on the spot.
    pub(super) fn depart(&self, departing: Vec<UpstreamBatch>) {
        for mut manifest in departing {
            self.flights.runtime.spawn(async move {
                let report = manifest.run().await;
                manifest.land(report);
            });
        }
    }

    /// One call for one batch alone.
    pub(super) async fn call_apart(&self, terms: &FetchContext, wanted: &[Wanted], keep: bool) -> Vec<FlightResult> {
        let served = Served { batches: vec![terms], is_one_batch: true };
        let report = self.call(terms, &served, wanted, terms.deadline, keep).await;
        self.share(terms, wanted, &[], &report);
        report.each(wanted.len(), false)
    }

    /// A call on `terms`, those of the first of the batches that it serves.
    async fn call(
        &self,
        terms: &FetchContext,
        served: &Served<'_>,
        wanted: &[Wanted],
        deadline: Instant,
        keep: bool,
    ) -> Report {
        if let Some(refusal) = self.refusal(terms, wanted) {
            return self.reported(Report::failed(refusal));
        }
        // Takes the per-caller permit first, so a throttled caller holds no global one.
        let caller_state = &terms.requester.caller_state;
        caller_state.calls.resize(self.flights.calls_per_caller.load(Ordering::Relaxed));
        let accepted = caller_state.is_accepted();
        let permits = async {
            let own = caller_state.calls.acquire().await;
            let unaccepted = if accepted { None } else { self.flights.unaccepted_calls.acquire().await.ok() };
            self.flights.calls.acquire().await.map(|permit| (own, unaccepted, permit))
        };
        let permits = timeout_at(deadline, permits).await;
        // A call that has queued for too long is not sent: it would time out, and the endpoint would not be to blame.
        let (Ok(Ok(_permits)), true) = (permits, self.upstream.leaves_fair_time(deadline)) else {
            self.shed(Limit::Calls);
            return self.reported(Report::failed(Cause::NoAnswer(Error::Deadline)));
        };
        let ids = || wanted.iter().map(|wanted| &*wanted.id);
        let requests = served.batches.iter().map(|terms| &terms.trace);
        let mut span = CallSpan::start(self.upstream.endpoint(), wanted.len(), requests);
        let mut headers = terms.headers.clone();
        headers.extend(span.context().as_ref().unwrap_or(&terms.context).headers());
        let request_id = terms.request_id.as_ref().filter(|_| served.is_one_batch);
        headers.extend(request_id.map(|id| (api::REQUEST_ID, id.clone())));
        let call = Call {
            target: request::target(terms.form, &terms.group, ids()),
            body: request::body(terms.form, &terms.group, ids()),
            headers,
            signer: terms.requester.signer.clone(),
            hops: terms.hops,
            caller: terms.requester.caller,
            accepted,
            ids: wanted.iter().map(|wanted| wanted.id.clone()).collect(),
        };
        let read = |body: &[u8]| {
            let read = answer::read(body, &ids().collect::<Vec<_>>());
            let has_links = matches!(read, Read::Links(_) | Read::Unmatched);
            (read, has_links)
        };
        let invalidations = caller_state.invalidations();
        // Before it is sent, so that whatever is purged or revoked from here on concerns what it brings.
        let stamp = self.tier.as_ref().and_then(|tier| tier.stamp());
        self.flights.refreshes.deposit();
        self.flights.extra_calls.deposit();
        let mut retries = 0;
        let outcome = self.upstream.call(&call, deadline, &mut retries, read).await;
        span.resent(retries);
        let status = outcome.as_ref().ok().map(|(answer, _)| answer.status);
        let mut report = match outcome {
            Ok((answer, read)) => {
                let sent = answer.sent;
                if answer.status == StatusCode::UNAUTHORIZED {
                    self.unauthorized(&served.batches);
                }
                self.note_pause(&call, &answer, &terms.requester);
                let (mut report, accepted) = self.digest(answer, read, invalidations, terms, wanted, keep);
                // A call that proves nothing of its caller here does not elsewhere.
                let shown = accepted && keep;
                report.proof = stamp.filter(|_| shown).map(|stamp| Proof { stamp, sent });
                report
            }
            Err(error) => Report::failed(Cause::NoAnswer(error)),
        };
        match status {
            Some(status) => span.answered(status, call_result(&report).name()),
            None => span.unanswered(call_result(&report).name()),
        }
        report.call = span.call_context();
        self.reported(report)
    }

    /// Why no call for these ids may be made for this caller now.
    pub(super) fn refusal(&self, terms: &FetchContext, wanted: &[Wanted]) -> Option<Cause> {
        if let Some(paused) = terms.requester.caller_state.pause.lasting(self.clock.now()) {
            return Some(Cause::Rejected(Rejection::Pause(paused)));
        }
        let ids = wanted.iter().map(|wanted| &*wanted.id);
        self.upstream.refusal(terms.requester.caller, ids).map(Cause::Rejected)
    }

    /// A 429, and a 503 with `Retry-After`, hold back their caller: one id, or one bad token, may be the reason for them.
    fn note_pause(&self, call: &Call, answer: &Answer, requester: &Identity) {
        let now = self.clock.now();
        let asked = self.upstream.pause_of(answer);
        let throttled =
            (answer.status == StatusCode::TOO_MANY_REQUESTS).then(|| pause::throttled(&answer.headers, now));
        let Some(span) = asked.or(throttled) else { return };
        requester.caller_state.pause.set(now, span, Some(answer.response()));
        if asked.is_some() {
            self.upstream.asked_to_pause(call, span);
        }
        self.throttled.when_due(|suppressed| {
            events::CallerPaused {
                caller: format_args!("{:08x}", requester.caller.short()),
                status: answer.status.as_u16(),
                seconds: span.as_secs_f64(),
                suppressed,
            }
            .log();
        });
    }

    fn reported(&self, report: Report) -> Report {
        self.metrics.upstream_calls.of(call_result(&report)).inc();
        report
    }

    /// Reads an answer, fills the cache, and learns about the caller; whether that it is accepted.
    fn digest(
        &self,
        answer: Answer,
        read: Option<Read>,
        invalidations: u64,
        terms: &FetchContext,
        wanted: &[Wanted],
        keep: bool,
    ) -> (Report, bool) {
        let mut accepted = false;
        let request_id = answer.headers.get(api::REQUEST_ID).cloned();
        let requester = &terms.requester;
        let result = match answer.status {
            StatusCode::OK => {
                // What was not read is in a coding that cannot be undone: nothing in it can be matched.
                if read.is_none() {
                    self.upstream.cannot_be_read();
                }
                match read.unwrap_or(Read::Unmatched) {
                    Read::Links(items) => {
                        // What left before an invalidation fills nothing.
                        accepted = self.callers.accept(requester, answer.sent, invalidations);
                        let keep = keep && accepted;
                        let mut arrivals = self.file(&answer, terms, wanted, items, keep);
                        self.forget_refused_since(answer.sent, wanted, &mut arrivals);
                        if keep && requester.caller_state.invalidations() != invalidations {
                            // The caller was invalidated meanwhile, perhaps over these very ids.
                            accepted = false;
                            wanted.iter().for_each(|wanted| self.cache.forget(wanted.key));
                        }
                        Ok(arrivals)
                    }
                    Read::NoList => {
                        // Older codes come with a 200, "no permission" among them; which is which is documented for
                        // one alone, so any other counts as that. What has no code at all is not remembered.
                        let code = answer::error_code(&answer.body);
                        if code.as_deref() != Some(api::VALIDATION_FAILED) {
                            self.withdraw(&answer, terms, wanted, keep && code.is_some());
                        }
                        Err(Cause::Answer(answer))
                    }
                    Read::Unmatched => {
                        self.metrics.uncacheable.of(Reason::Unmatched).inc_by(wanted.len() as u64);
                        Err(Cause::Unmatched(answer))
                    }
                    Read::Broken => {
                        self.upstream.cannot_be_read();
                        Err(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Unreadable)))
                    }
                }
            }
            StatusCode::FORBIDDEN => {
                self.withdraw(&answer, terms, wanted, keep);
                Err(Cause::Answer(answer))
            }
            _ => Err(Cause::Answer(answer)),
        };
        (Report { result, request_id, proof: None, call: None }, accepted)
    }

    /// Keeps what may be kept of an answer: nothing that was purged after its call had left.
    fn file(
        &self,
        answer: &Answer,
        terms: &FetchContext,
        wanted: &[Wanted],
        items: Vec<Option<Item>>,
        keep: bool,
    ) -> Vec<ItemResult> {
        let source = freshness::Source::read(&answer.headers, answer.sent);
        self.metrics.clock_skew.set(source.skew() as f64 / 1000.0);
        let foreign_vary = self.callers.varies_outside(&answer.headers);
        let policy = &self.config.freshness;
        let marks = self.cache.purges().of_group(terms.group.name());
        let keep = keep && self.may_keep();
        let may_keep = |wanted: &Wanted| keep && !marks.cover(&wanted.id, answer.sent);
        let store = |wanted: &Wanted, text: Option<Arc<str>>, deadlines: Deadlines| {
            let keep = may_keep(wanted);
            if keep {
                self.cache.keep(wanted.key, Entry::new(text.as_deref(), deadlines));
            }
            keep.then_some(deadlines)
        };
        wanted
            .iter()
            .zip(items)
            .map(|(wanted, item)| match item {
                Some(item) => {
                    let verdict = match freshness::judge(item.url.as_deref(), &source, policy) {
                        Verdict::Keep(_) if foreign_vary => Verdict::Pass(Reason::Vary),
                        verdict => verdict,
                    };
                    match verdict {
                        Verdict::Keep(deadlines) => {
                            let kept = store(wanted, Some(Arc::clone(&item.text)), deadlines);
                            ItemResult::Link(item.text, kept)
                        }
                        Verdict::Pass(reason) => {
                            self.metrics.uncacheable.of(reason).inc();
                            if reason == Reason::NoStore {
                                self.say_once_that_nothing_is_stored();
                            }
                            // What is kept from before is another link, and good until its own end.
                            ItemResult::Link(item.text, None)
                        }
                    }
                }
                None if source.forbids_storing(policy) || foreign_vary => {
                    if may_keep(wanted) {
                        self.cache.forget(wanted.key);
                    }
                    ItemResult::LeftOut(None)
                }
                None => {
                    let deadlines = Deadlines::absent(answer.sent, source.absence(policy));
                    ItemResult::LeftOut(store(wanted, None, deadlines))
                }
            })
            .collect()
    }

    fn say_once_that_nothing_is_stored(&self) {
        if !self.warned_no_store.swap(true, Ordering::Relaxed) {
            events::NotStored {}.log();
        }
    }
}

impl UpstreamBatch {
    async fn run(&mut self) -> Report {
        let Some(first) = self.passengers.first() else {
            return Report::failed(Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost)));
        };
        let latest = self.passengers.iter().map(|passenger| passenger.terms.deadline).max();
        let deadline = latest.unwrap_or(first.terms.deadline);
        let wanted: Vec<Wanted> = self.passengers.iter().map(|passenger| passenger.wanted.clone()).collect();
        let terms = Arc::clone(&first.terms);
        let is_one_batch = self.passengers.iter().all(|passenger| {
            let is_joined = passenger.flight.joined.load(Ordering::Relaxed);
            Arc::ptr_eq(&passenger.terms, &terms) && !is_joined && !passenger.background
        });
        let batches = self.passengers.iter().map(|passenger| &*passenger.terms).collect();
        let served = Served { batches, is_one_batch };
        let report = self.inner.call(&terms, &served, &wanted, deadline, true).await;
        let leased: Vec<bool> = self.passengers.iter().map(|passenger| passenger.leased).collect();
        self.inner.share(&terms, &wanted, &leased, &report);
        report
    }
}

fn call_result(report: &Report) -> CallResult {
    match &report.result {
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
