//! New flights look into the shared tier before the endpoint is asked.
//!
//! All new flights of a batch look up their ids in one round trip. Ids that the tier lacks are leased, so that of all
//! sidecars that miss an id at the same time one fetches it. The others look again and again until the entry is there, for
//! `shared.lease_wait` at most. However the look-up ends, the ids without an entry go on to the endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::calls::{CallReport, PendingId};
use super::{EntrySource, FetchContext, FetchResult, Fetcher, KeyedId};
use crate::cache::Entry;
use crate::shared::{Leases, Tier, TierResult, TierScope, TierUpdate};

/// The first pause between two looks for an entry that another sidecar fetches; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// The new flights of one batch that look into the shared tier. Dropping it queues the ids without an entry for a call.
pub(super) struct SharedLookup {
    fetcher: Arc<Fetcher>,
    context: Arc<FetchContext>,
    pending: Vec<PendingId>,
    /// Whether the ids are refreshed ahead: entries in memory are fresh, so only newer ones are taken.
    refresh: bool,
    /// The caller's invalidations before the look-up: entries that were found before an invalidation are not stored after it.
    invalidations: u64,
}

impl Drop for SharedLookup {
    fn drop(&mut self) {
        self.fetcher.enqueue(&self.context, std::mem::take(&mut self.pending));
    }
}

impl Fetcher {
    /// Whether a batch looks into the shared tier before it asks the endpoint.
    pub(super) fn uses_shared_tier(&self, context: &FetchContext) -> bool {
        // A batch that has passed a sidelink of this fleet would wait for its own lease.
        let may_use = !context.requirements.forbids_cache && context.hops == 0 && context.tier_scope.is_some();
        may_use && self.tier.as_ref().is_some_and(|tier| tier.is_usable())
    }

    /// Starts a look-up of new flights, in a task of its own. Must not be called with the state locked.
    pub(super) fn look_into_shared_tier(
        self: &Arc<Self>,
        context: &Arc<FetchContext>,
        pending: Vec<PendingId>,
        refresh: bool,
    ) {
        if pending.is_empty() {
            return;
        }
        let now = self.clock.now();
        for pending in &pending {
            // A purge from here on may concern the entry that the flight finds: no batch joins the flight after it.
            let _ = pending.flight.sent.set(now);
        }
        let mut lookup = SharedLookup::new(self, context, pending, refresh);
        self.state.runtime.spawn(async move { lookup.run().await });
    }

    /// Shares the entries of a call, and gives back the leases of its ids.
    pub(super) fn share(&self, context: &FetchContext, pending: &[PendingId], report: &CallReport) {
        let (Some(tier), Some(scope)) = (&self.tier, &context.tier_scope) else { return };
        let (stamp, accepted) = report.proof.unzip();
        let entries = report.entries.as_deref().unwrap_or_default().iter().zip(pending);
        let stored = entries.filter(|(entry, _)| entry.deadlines().is_stored());
        let entries = stored.map(|(entry, pending)| (pending.id.in_tier(), entry.clone())).collect();
        let leased = pending.iter().filter(|pending| pending.leased);
        let released = leased.map(|pending| pending.id.in_tier()).collect();
        tier.put(scope, stamp, TierUpdate { accepted, entries, released });
    }
}

impl SharedLookup {
    pub(super) fn new(
        fetcher: &Arc<Fetcher>,
        context: &Arc<FetchContext>,
        pending: Vec<PendingId>,
        refresh: bool,
    ) -> Self {
        let invalidations = context.identity.caller_state.invalidations();
        Self { fetcher: Arc::clone(fetcher), context: Arc::clone(context), pending, refresh, invalidations }
    }

    async fn run(&mut self) {
        let (fetcher, context) = (Arc::clone(&self.fetcher), Arc::clone(&self.context));
        let (Some(tier), Some(scope)) = (&fetcher.tier, &context.tier_scope) else { return };
        if !self.look(tier, scope, Leases::Ignore).await {
            return;
        }
        let ids: Vec<KeyedId> = self.pending.iter().map(|pending| pending.id.clone()).collect();
        // A caller that may make no call now takes no lease.
        if ids.is_empty() || tier.lease_wait().is_zero() || fetcher.why_no_call(&context.identity, &ids).is_some() {
            return;
        }
        let until = context.deadline.min(Instant::now() + tier.lease_wait());
        let mut leases = Leases::Acquire;
        let mut pause = FIRST_PAUSE;
        while self.look(tier, scope, leases).await && self.has_waiters() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            leases = Leases::Check;
        }
    }

    fn has_waiters(&self) -> bool {
        self.pending.iter().any(|pending| pending.flight.waiters.load(Ordering::Relaxed) > 0)
    }

    /// Looks the ids up, and [takes](Self::take) what is found. False if the tier is of no use now.
    async fn look(&mut self, tier: &Tier, scope: &TierScope, leases: Leases) -> bool {
        let ids: Vec<_> = self.pending.iter().map(|pending| pending.id.in_tier()).collect();
        let Some(found) = tier.look_up(scope, &ids, leases).await else { return false };
        if leases == Leases::Ignore {
            let now = self.fetcher.clock.now();
            let is_fresh = |entry: &&Entry| entry.deadlines().fresh_left(now).is_some();
            let hits = found.entries.iter().flatten().filter(is_fresh).count();
            self.fetcher.api_metrics.shared_hits.inc_by(hits as u64);
            self.fetcher.api_metrics.shared_misses.inc_by((ids.len() - hits) as u64);
        }
        self.take(&found, leases);
        true
    }

    /// Completes the flights whose entry was found, or has arrived in memory. Of the others, those that no other sidecar has
    /// leased go on to the endpoint.
    pub(super) fn take(&mut self, found: &TierResult, leases: Leases) {
        let (fetcher, context) = (&self.fetcher, &self.context);
        if let Some(accepted) = found.accepted {
            fetcher.callers.accept_elsewhere(&context.identity, accepted);
        }
        let now = fetcher.clock.now();
        let marks = fetcher.cache.purges().of(&fetcher.callers.api().name, context.group.name());
        let (mut completed, mut sent, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        let is_invalidated = || context.identity.caller_state.invalidations() != self.invalidations;
        let may_store = fetcher.may_store() && !is_invalidated();
        let all = std::mem::take(&mut self.pending);
        for (at, mut pending) in all.into_iter().enumerate() {
            // In a later look, a lease that is gone without an entry: its owner has failed, or stores nothing.
            let is_free = found.leased.get(at).is_some_and(|leased| !leased);
            pending.leased = is_free && leases == Leases::Acquire;
            let KeyedId { id, key, .. } = &pending.id;
            let mut in_memory = fetcher.cache.look_up(*key, id, &marks);
            let is_refused = |entry: &Entry| fetcher.cache.refusals.is_refused_since(*key, entry.deadlines().sent());
            let shared = found.entries.get(at).cloned().flatten();
            if let Some(shared) = shared.filter(|entry| may_store && !is_refused(entry)) {
                // Stored also where it is no longer fresh: it may be served stale.
                let is_older = |entry: &Entry| entry.deadlines().age(now) > shared.deadlines().age(now);
                if in_memory.as_ref().is_none_or(is_older) {
                    fetcher.cache.insert(*key, shared.clone());
                    stored.push(*key);
                    in_memory = Some(shared);
                }
            }
            let may_serve = |entry: &Entry| {
                let is_new = || !self.refresh || !entry.deadlines().is_ageing(now, key.spread());
                fetcher.may_serve(context, entry) && is_new()
            };
            let entry = in_memory.filter(may_serve);
            match entry {
                Some(entry) => completed.push((pending, entry)),
                None if is_free => sent.push(pending),
                None => self.pending.push(pending),
            }
        }
        if is_invalidated() {
            // The caller was invalidated meanwhile, perhaps over these very ids.
            let caller = &context.identity;
            stored.into_iter().for_each(|key| fetcher.cache.remove(key, caller));
        }
        let mut flights = fetcher.flights();
        completed.iter().for_each(|(pending, _)| flights.remove(pending));
        drop(flights);
        if let (Some(tier), Some(scope)) = (&fetcher.tier, &context.tier_scope) {
            // Other sidecars must not wait for an entry that is here already.
            let leased = completed.iter().filter(|(pending, _)| pending.leased);
            let released = leased.map(|(pending, _)| pending.id.in_tier()).collect();
            tier.put(scope, None, TierUpdate { released, ..TierUpdate::default() });
        }
        for (pending, entry) in completed {
            pending.flight.complete(FetchResult::without_call(entry, EntrySource::SharedTier));
        }
        fetcher.enqueue(context, sent);
    }
}
