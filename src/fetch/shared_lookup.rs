//! New flights look into the shared tier before the endpoint is asked.
//!
//! All new flights of a batch look up their ids in one round trip. Ids that the tier lacks are leased, so that of all
//! sidecars that miss an id at the same time one fetches it. The others look again and again until the entry is there; where a
//! lease is gone without one, because its owner failed or died, one of them takes it over. They wait while a
//! call of their own would still have a fair time, and for `shared.lease_wait` at most if such a call then has twice as long. However the look-up ends, the ids without an entry go on to
//! the endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::calls::{CallReport, PendingId};
use super::{CacheRequirements, EntrySource, FetchContext, FetchResult, Fetcher, KeyedId};
use crate::cache::Entry;
use crate::shared::{LeaseState, Leases, Tier, TierResult, TierScope, TierUpdate};

/// The first pause between two looks for an entry that another sidecar fetches.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
/// Each pause is this many times the one before, so that it is about a fifth of the time waited. With the jitter, the waiters of
/// a fleet look at different times.
const PAUSE_GROWTH: f64 = 1.25;
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// The time that is left for the last look, and as much for the call to leave.
const LAST_LOOK: Duration = Duration::from_millis(100);

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
        context.tier_scope.is_some() && self.why_no_shared_tier(&context.requirements, context.hops).is_none()
    }

    /// Why a batch that has passed `hops` sidelinks does not look into the shared tier, for an operator.
    pub(crate) fn why_no_shared_tier(&self, requirements: &CacheRequirements, hops: usize) -> Option<&'static str> {
        if requirements.forbids_cache {
            return Some("the request's Cache-Control forbids it");
        }
        // It would wait for its own lease.
        if hops > 0 {
            return Some("another sidelink has sent the request on");
        }
        let is_usable = self.tier.as_ref().is_some_and(|tier| tier.is_usable());
        (!is_usable).then_some("the shared tier is down")
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

    /// Shares the entries of a call, and then releases the leases of its ids.
    pub(super) fn share(&self, context: &FetchContext, pending: &mut [PendingId], report: &CallReport) {
        let leases = pending.iter_mut().filter_map(|pending| pending.lease.take()).collect();
        let (Some(tier), Some(scope)) = (&self.tier, &context.tier_scope) else { return };
        let (stamp, accepted) = report.proof.unzip();
        let entries = report.entries.as_deref().unwrap_or_default().iter().zip(pending);
        let stored = entries.filter(|(entry, _)| entry.deadlines().is_stored());
        let entries = stored.map(|(entry, pending)| (pending.id.in_tier(), entry.clone())).collect();
        tier.put(scope, stamp, TierUpdate { accepted, entries, leases });
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
        if self.look(tier, scope, Leases::Ignore).await.is_none() {
            return;
        }
        let ids: Vec<KeyedId> = self.pending.iter().map(|pending| pending.id.clone()).collect();
        let Some(fair) = fetcher.upstream.fair_time_left(context.deadline) else { return };
        // A caller that may make no call now takes no lease.
        if ids.is_empty() || fetcher.why_no_call(&context.identity, &ids).is_some() || !tier.may_lease() {
            return;
        }
        let now = Instant::now();
        let left = context.deadline.saturating_duration_since(now);
        // Where calls take half of the deadline, another call would not be answered in time: the one under way is the better chance.
        let most = if fetcher.upstream.takes_half_the_deadline() { left } else { fair };
        let wait = Some(tier.lease_wait()).filter(|wait| *wait * 3 <= left).unwrap_or(most);
        let until = now + most.saturating_sub(LAST_LOOK * 2).min(wait);
        let last_look = now + most.saturating_sub(LAST_LOOK);
        let mut leases = Leases::Acquire;
        let mut pause = FIRST_PAUSE;
        loop {
            let before = self.pending.len();
            let Ok(Some(is_free)) = timeout_at(last_look, self.look(tier, scope, leases)).await else { return };
            if self.pending.len() < before {
                tier.leases_work();
            }
            if !self.has_waiters() {
                return;
            }
            if is_free && leases == Leases::Check {
                leases = Leases::Acquire;
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if pause > FIRST_PAUSE {
                    tier.lease_denied();
                }
                return;
            }
            sleep(pause.mul_f64(0.75 + rand::random::<f64>() / 2.0).min(left)).await;
            pause = pause.mul_f64(PAUSE_GROWTH).min(LONGEST_PAUSE);
            leases = Leases::Check;
        }
    }

    fn has_waiters(&self) -> bool {
        self.pending.iter().any(|pending| pending.flight.waiters.load(Ordering::Relaxed) > 0)
    }

    /// Looks the ids up, and [takes](Self::take) what is found. `None` if the tier is of no use now.
    async fn look(&mut self, tier: &Tier, scope: &TierScope, leases: Leases) -> Option<bool> {
        let ids: Vec<_> = self.pending.iter().map(|pending| pending.id.in_tier()).collect();
        let found = tier.look_up(scope, &ids, leases).await?;
        if leases == Leases::Ignore {
            let now = self.fetcher.clock.now();
            let is_fresh = |entry: &&Entry| entry.deadlines().fresh_left(now).is_some();
            let hits = found.entries.iter().flatten().filter(is_fresh).count();
            self.fetcher.api_metrics.shared_hits.inc_by(hits as u64);
            self.fetcher.api_metrics.shared_misses.inc_by((ids.len() - hits) as u64);
        }
        Some(self.take(found, leases))
    }

    /// Completes the flights whose entry was found, or has arrived in memory. After a try for leases, the others go on to the
    /// endpoint unless another sidecar has the lease. Returns whether one of those that remain has a free lease.
    pub(super) fn take(&mut self, found: TierResult, leases: Leases) -> bool {
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
        let mut has_free = false;
        let (mut entries, mut lease_states) = (found.entries.into_iter(), found.leases.into_iter());
        for mut pending in all {
            let lease = lease_states.next();
            let is_taken = matches!(lease, Some(LeaseState::Taken));
            if let Some(LeaseState::Granted(lease)) = lease {
                pending.lease = Some(lease);
            }
            let KeyedId { id, key, .. } = &pending.id;
            let mut in_memory = fetcher.cache.look_up(*key, id, &marks);
            let is_refused = |entry: &Entry| fetcher.cache.refusals.is_refused_since(*key, entry.deadlines().sent());
            let shared = entries.next().flatten();
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
                None if leases == Leases::Acquire && !is_taken => sent.push(pending),
                None => {
                    has_free |= !is_taken;
                    self.pending.push(pending);
                }
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
        for (pending, entry) in completed {
            pending.flight.complete(FetchResult::without_call(entry, EntrySource::SharedTier));
        }
        fetcher.enqueue(context, sent);
        has_free
    }
}
