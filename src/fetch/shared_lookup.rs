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
use crate::clock::Moment;
use crate::shared::{Leases, Stamp, Tier, TierResult, TierScope, TierUpdate};

/// The first pause between two looks for an entry that another sidecar fetches; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// Proof of a call that its entries may be shared.
pub(super) struct SharingProof {
    pub(super) stamp: Stamp,
    /// When the call was sent.
    pub(super) sent: Moment,
}

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
        self.flights.runtime.spawn(async move { lookup.run().await });
    }

    /// Shares the entries of a call for `ids`, and gives back the leases of those that are `leased`.
    pub(super) fn share(&self, context: &FetchContext, ids: &[KeyedId], leased: &[bool], result: &CallReport) {
        let (Some(tier), Some(scope)) = (&self.tier, &context.tier_scope) else { return };
        let mut update = TierUpdate::default();
        let stamp = result.proof.as_ref().map(|proof| {
            update.accepted = Some(proof.sent);
            proof.stamp
        });
        let entries = result.entries.as_deref().unwrap_or_default();
        for (at, id) in ids.iter().enumerate() {
            let stored = entries.get(at).filter(|entry| entry.deadlines().is_stored());
            update.links.extend(stored.map(|entry| (id.id.clone(), entry.clone())));
            if leased.get(at).copied().unwrap_or(false) {
                update.released.push(id.id.clone());
            }
        }
        tier.put(scope, stamp, update);
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
        let Some(found) = self.look_up(tier, scope, Leases::Ignore).await else { return };
        self.take(&found);
        let ids: Vec<KeyedId> = self.pending.iter().map(|pending| pending.id.clone()).collect();
        // A caller that may make no call now takes no lease.
        if ids.is_empty() || tier.lease_wait().is_zero() || fetcher.refusal(&context, &ids).is_some() {
            return;
        }
        let until = context.deadline.min(Instant::now() + tier.lease_wait());
        let Some(found) = self.look_up(tier, scope, Leases::Acquire).await else { return };
        let completed = self.take(&found);
        // The lease of an id whose entry arrived meanwhile is given back: other sidecars must not wait for it.
        let is_leased_here = |at: &usize| found.leased.get(*at).is_some_and(|leased| !leased);
        let arrived = completed.iter().enumerate().filter(|(at, completed)| **completed && is_leased_here(at));
        let released = arrived.filter_map(|(at, _)| ids.get(at).map(|id| id.id.clone())).collect();
        tier.put(scope, None, TierUpdate { released, ..TierUpdate::default() });
        self.send_on(&not_leased_elsewhere(&found, &completed), true);
        let mut pause = FIRST_PAUSE;
        while self.has_waiters() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let Some(found) = self.look_up(tier, scope, Leases::Check).await else { return };
            let completed = self.take(&found);
            // A lease that is gone without an entry: its owner has failed, or stores nothing.
            self.send_on(&not_leased_elsewhere(&found, &completed), false);
        }
    }

    fn has_waiters(&self) -> bool {
        self.pending.iter().any(|pending| pending.flight.waiters.load(Ordering::Relaxed) > 0)
    }

    async fn look_up(&self, tier: &Tier, scope: &TierScope, leases: Leases) -> Option<TierResult> {
        let ids: Vec<&str> = self.pending.iter().map(|pending| &*pending.id.id).collect();
        tier.look_up(scope, &ids, leases).await
    }

    /// Completes the flights whose entry was found, or has arrived in memory. Returns for each id whether its flight was.
    pub(super) fn take(&mut self, found: &TierResult) -> Vec<bool> {
        let (fetcher, context) = (&self.fetcher, &self.context);
        if let Some(accepted) = found.accepted {
            fetcher.callers.accept_elsewhere(&context.identity, accepted);
        }
        let now = fetcher.clock.now();
        let marks = fetcher.cache.purges().of_group(context.group.name());
        let all = std::mem::take(&mut self.pending);
        let mut is_completed = Vec::with_capacity(all.len());
        let mut completed = Vec::new();
        let mut stored = Vec::new();
        let is_invalidated = || context.identity.caller_state.invalidations() != self.invalidations;
        let may_store = fetcher.may_store() && !is_invalidated();
        for (at, pending) in all.into_iter().enumerate() {
            let KeyedId { id, key } = &pending.id;
            let mut in_memory = fetcher.cache.look_up(*key, id, &marks);
            let is_refused = |entry: &Entry| fetcher.cache.refusals.is_refused_since(*key, entry.deadlines().sent());
            let shared = found.links.get(at).cloned().flatten();
            if let Some(shared) = shared.filter(|entry| may_store && !is_refused(entry)) {
                // Stored also where it is no longer fresh: it may be served stale.
                let is_older = |entry: &Entry| entry.deadlines().age(now) > shared.deadlines().age(now);
                if in_memory.as_ref().is_none_or(is_older) {
                    fetcher.cache.insert(*key, shared.clone(), &context.identity);
                    stored.push(*key);
                    in_memory = Some(shared);
                }
            }
            let may_serve = |entry: &Entry| {
                let is_new = || !self.refresh || !entry.deadlines().is_ageing(now, key.spread());
                fetcher.may_serve(context, entry) && is_new()
            };
            let entry = in_memory.filter(may_serve);
            is_completed.push(entry.is_some());
            match entry {
                Some(entry) => completed.push((pending, entry)),
                None => self.pending.push(pending),
            }
        }
        if is_invalidated() {
            // The caller was invalidated meanwhile, perhaps over these very ids.
            let caller = &context.identity;
            stored.into_iter().for_each(|key| fetcher.cache.remove(key, caller));
        }
        let mut state = fetcher.state();
        for (pending, _) in &completed {
            state.remove(pending.id.key, &pending.flight);
        }
        drop(state);
        for (pending, entry) in completed {
            pending.flight.complete(FetchResult::without_call(entry, EntrySource::SharedTier));
        }
        is_completed
    }

    /// Queues the ids for a call for which `send` says so; `leased`: this sidecar holds leases for them.
    fn send_on(&mut self, send: &[bool], leased: bool) {
        let mut send = send.iter().copied();
        let (mut sent, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|_| send.next().unwrap_or(true));
        for pending in &mut sent {
            pending.leased = leased;
        }
        self.pending = waiting;
        self.fetcher.enqueue(&self.context, sent);
    }
}

/// For each id whose flight was not `completed`: whether no other sidecar has leased it.
fn not_leased_elsewhere(found: &TierResult, completed: &[bool]) -> Vec<bool> {
    let waiting = found.leased.iter().zip(completed).filter(|(_, completed)| !**completed);
    waiting.map(|(leased, _)| !leased).collect()
}
