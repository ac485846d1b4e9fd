//! Fetches the ids of a batch that memory lacks, and answers it.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::request::Parts;
use tokio::time::Instant;

use super::respond::{self, Summary};
use super::slots::Slots;
use super::{BatchRoute, PendingBatch};
use crate::error::Error;
use crate::fetch::{Failure, FetchContext, KeyedId};
use crate::message::cache_control::Directives;
use crate::message::reply::Reply;
use crate::telemetry::metrics::{IdResult, Refetch};

/// What fetching a batch has shown, besides the entries.
#[derive(Default)]
pub(super) struct Fetched {
    /// The first failure, in the order asked.
    pub(super) failure: Option<Arc<Failure>>,
    /// The endpoint's name for the first call, or the first that failed.
    pub(super) request_id: Option<HeaderValue>,
}

impl BatchRoute {
    /// Fetches the missing ids of a batch, and answers it.
    pub(super) async fn fetch_and_reply(&self, mut pending: Box<PendingBatch>, parts: &Parts, body: &Bytes) -> Reply {
        let asked = Instant::now();
        let reply = self.fetch_or_forward(&mut pending, parts, body).await;
        let mut reply = reply.after(asked.elapsed());
        reply.info.tally = pending.slots.tally();
        (reply.info.caller, reply.info.user) = pending.context.identity.shown();
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

    /// Fetches entries again, in the background, that were just answered with and are about to be no longer fresh.
    pub(super) fn refresh_ahead(&self, ageing: &[KeyedId], context: &Arc<FetchContext>) {
        if !ageing.is_empty() {
            let refreshed = self.fetch.refresh(context, ageing);
            self.api_metrics.refetched.of(Refetch::Refresh).inc_by(refreshed as u64);
        }
    }

    /// Fetches the missing ids. Where a call failed whose token, another one of the user, was refused or paused, once more, so that one of those that
    /// waited makes the next call; and where a shared call failed, by calls of the batch's own, so that only a batch at fault sees the
    /// error.
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
        let mut fetched = slots.take(results, &context.trace);
        let is_anothers_token = |fetched: &Fetched| {
            fetched.failure.as_ref().is_some_and(|failure| failure.may_be_anothers_token(context.identity.caller))
        };
        if is_anothers_token(&fetched) {
            // At a limit, the failure that is known says more than the limit.
            let Ok(results) = self.fetch.fetch(context, &slots.missing()).await else { return Ok(fetched) };
            fetched = slots.take(results, &context.trace);
        }
        let Some(failure) = &fetched.failure else { return Ok(fetched) };
        // The call of a batch's only id can have failed for no other's.
        let is_its_own = failure.ids == 1 && slots.slots.len() == 1;
        let separately = is_anothers_token(&fetched)
            || (!is_its_own && failure.may_be_anothers_fault() && self.fetch.affords_extra(&context.identity));
        if !separately {
            return Ok(fetched);
        }
        match self.fetch.fetch_separately(context, &slots.missing(), true).await {
            Ok(results) => Ok(slots.take(results, &context.trace)),
            Err(_) => Ok(fetched),
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
        if !failure.allows_stale() || forbidden || !self.callers.may_share(&context.identity) {
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
