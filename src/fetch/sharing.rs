//! Before the endpoint is asked: the shared tier, and whoever in the fleet is asking already.
//!
//! New flights look there first, all of a batch's in one round trip. Those that lack there too are leased, so that of all
//! sidecars that miss an id at the same time one fetches it; the others look again and again until it is there, for
//! `shared.lease_wait` at most. Whatever comes in between, a flight goes on to the endpoint at last.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::calls::{PendingId, Report};
use super::{FetchContext, FlightResult, Inner, ItemResult, Wanted};
use crate::cache::Entry;
use crate::clock::Moment;
use crate::shared::{Brought, Found, Leases, Share, Stamp, Tier};

/// Between one look for what another sidecar fetches and the next: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// What a call has shown that may be shared.
pub(super) struct Proof {
    pub(super) stamp: Stamp,
    /// When it was sent.
    pub(super) sent: Moment,
}

/// New flights of one batch that look into the shared tier. However that ends, those without a link go on to the endpoint.
pub(super) struct Seekers {
    inner: Arc<Inner>,
    terms: Arc<FetchContext>,
    passengers: Vec<PendingId>,
    /// What is in memory is fresh still: only what is newer will do.
    refresh: bool,
    /// The caller's, before anything was looked up: what was found before an invalidation is not kept after it.
    invalidations: u64,
}

impl Drop for Seekers {
    fn drop(&mut self) {
        self.inner.board_calls(&self.terms, std::mem::take(&mut self.passengers));
    }
}

impl Inner {
    /// Whether a batch on these terms looks into the shared tier before it asks the endpoint.
    pub(super) fn seeks(&self, terms: &FetchContext) -> bool {
        // One that has passed a sidelink of this very fleet would wait for itself.
        let may = !terms.demand.nothing && terms.hops == 0 && terms.share.is_some();
        may && self.tier.as_ref().is_some_and(|tier| tier.is_usable())
    }

    /// Lets new flights look into the shared tier, in a task of their own like any flight. Not with the state locked.
    pub(super) fn seek(self: &Arc<Self>, terms: &Arc<FetchContext>, passengers: Vec<PendingId>, refresh: bool) {
        if passengers.is_empty() {
            return;
        }
        let now = self.clock.now();
        for passenger in &passengers {
            // What is purged from here on may be what they find: nobody joins them then.
            let _ = passenger.flight.left.set(now);
        }
        let mut seekers = Seekers::new(self, terms, passengers, refresh);
        self.flights.runtime.spawn(async move { seekers.run().await });
    }

    /// Shares what a call for `wanted` has brought, and gives back their leases.
    pub(super) fn share(&self, terms: &FetchContext, wanted: &[Wanted], leased: &[bool], report: &Report) {
        let (Some(tier), Some(share)) = (&self.tier, &terms.share) else { return };
        let mut brought = Brought::default();
        let stamp = report.proof.as_ref().map(|proof| {
            (brought.sent, brought.accepted) = (Some(proof.sent), true);
            proof.stamp
        });
        let arrivals = report.result.as_deref().unwrap_or_default();
        for (at, wanted) in wanted.iter().enumerate() {
            let kept = match arrivals.get(at) {
                Some(ItemResult::Link(text, Some(deadlines))) => Some(Entry::new(Some(text), *deadlines)),
                Some(ItemResult::LeftOut(Some(deadlines))) => Some(Entry::new(None, *deadlines)),
                _ => None,
            };
            brought.links.extend(kept.map(|kept| (wanted.id.clone(), kept)));
            if leased.get(at).copied().unwrap_or(false) {
                brought.released.push(wanted.id.clone());
            }
        }
        tier.put(share, stamp, brought);
    }
}

impl Seekers {
    /// Of one batch, on `terms`.
    pub(super) fn new(
        inner: &Arc<Inner>,
        terms: &Arc<FetchContext>,
        passengers: Vec<PendingId>,
        refresh: bool,
    ) -> Self {
        let invalidations = terms.requester.caller_state.invalidations();
        Self { inner: Arc::clone(inner), terms: Arc::clone(terms), passengers, refresh, invalidations }
    }

    async fn run(&mut self) {
        let (inner, terms) = (Arc::clone(&self.inner), Arc::clone(&self.terms));
        let (Some(tier), Some(share)) = (&inner.tier, &terms.share) else { return };
        let Some(found) = self.look_up(tier, share, Leases::Leave).await else { return };
        self.take(&found);
        // Who may make no call now leases nothing.
        if self.passengers.is_empty() || tier.lease_wait().is_zero() || inner.refusal(&terms, &self.wanted()).is_some()
        {
            return;
        }
        let until = terms.deadline.min(Instant::now() + tier.lease_wait());
        let Some(found) = self.look_up(tier, share, Leases::Take).await else { return };
        let ids: Vec<Box<str>> = self.passengers.iter().map(|passenger| passenger.wanted.id.clone()).collect();
        let landed = self.take(&found);
        let mine = |at: &usize| found.leased.get(*at).is_some_and(|leased| !leased);
        // What has come meanwhile is no reason to keep others waiting.
        let came = landed.iter().enumerate().filter(|(at, landed)| **landed && mine(at));
        let released = came.filter_map(|(at, _)| ids.get(at).cloned()).collect();
        tier.put(share, None, Brought { released, ..Brought::default() });
        self.go_on(&free(&found, &landed), true);
        let mut pause = FIRST_PAUSE;
        while !self.passengers.is_empty() && self.is_awaited() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let Some(found) = self.look_up(tier, share, Leases::See).await else { return };
            let landed = self.take(&found);
            // A lease that is gone, and nothing there: its holder has failed, or keeps nothing.
            self.go_on(&free(&found, &landed), false);
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.passengers.iter().map(|passenger| passenger.wanted.clone()).collect()
    }

    fn ids(&self) -> Vec<&str> {
        self.passengers.iter().map(|passenger| &*passenger.wanted.id).collect()
    }

    fn is_awaited(&self) -> bool {
        self.passengers.iter().any(|passenger| passenger.flight.awaited.load(Ordering::Relaxed) > 0)
    }

    async fn look_up(&self, tier: &Tier, share: &Share, leases: Leases) -> Option<Found> {
        tier.look_up(share, &self.ids(), leases).await
    }

    /// Lands those whose link was found, or has come into memory; says of each whether it was.
    pub(super) fn take(&mut self, found: &Found) -> Vec<bool> {
        let (inner, terms) = (&self.inner, &self.terms);
        if let Some(accepted) = found.accepted {
            inner.callers.accept_elsewhere(&terms.requester, accepted);
        }
        let now = inner.clock.now();
        let marks = inner.cache.purges().of_group(terms.group.name());
        let passengers = std::mem::take(&mut self.passengers);
        let mut landed = Vec::with_capacity(passengers.len());
        let mut arrived = Vec::new();
        let mut kept = Vec::new();
        let is_invalidated = || terms.requester.caller_state.invalidations() != self.invalidations;
        let may_keep = inner.may_keep() && !is_invalidated();
        for (at, passenger) in passengers.into_iter().enumerate() {
            let Wanted { id, key } = &passenger.wanted;
            let mut here = inner.cache.look_up(*key, id, &marks);
            let is_refused = |link: &Entry| inner.cache.refusals().is_refused_since(*key, link.deadlines().sent());
            let link = found.links.get(at).cloned().flatten();
            if let Some(link) = link.filter(|link| may_keep && !is_refused(link)) {
                // Also one past its freshness: it may answer for an endpoint that fails.
                let newer = |here: &Entry| here.deadlines().age(now) > link.deadlines().age(now);
                if here.as_ref().is_none_or(newer) {
                    inner.cache.keep(*key, link.clone());
                    kept.push(*key);
                    here = Some(link);
                }
            }
            let serves = |kept: &Entry| {
                let is_new = || !self.refresh || !kept.deadlines().is_ageing(now, key.spread());
                inner.serves(terms, kept) && is_new()
            };
            let link = here.filter(serves);
            landed.push(link.is_some());
            match link {
                Some(link) => arrived.push((passenger, link)),
                None => self.passengers.push(passenger),
            }
        }
        if is_invalidated() {
            // The caller was invalidated meanwhile, perhaps over these very ids.
            kept.into_iter().for_each(|key| inner.cache.forget(key));
        }
        let mut state = inner.state();
        for (passenger, _) in &arrived {
            state.forget(passenger.wanted.key, &passenger.flight);
        }
        drop(state);
        for (passenger, kept) in arrived {
            let deadlines = Some(*kept.deadlines());
            // It was JSON when it was kept.
            let result = match kept.text().and_then(|text| std::str::from_utf8(text).ok()) {
                Some(text) => ItemResult::Link(Arc::from(text), deadlines),
                None => ItemResult::LeftOut(deadlines),
            };
            passenger.flight.arrive(FlightResult { result, request_id: None, shared: true, call: None });
        }
        landed
    }

    /// Lets those go on to the endpoint of which `go` says so; `leased`: they have a lease.
    fn go_on(&mut self, go: &[bool], leased: bool) {
        let mut go = go.iter().copied();
        let (mut going, staying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.passengers).into_iter().partition(|_| go.next().unwrap_or(true));
        for passenger in &mut going {
            passenger.leased = leased;
        }
        self.passengers = staying;
        self.inner.board_calls(&self.terms, going);
    }
}

/// Of those that have not landed, whether nobody else has them leased.
fn free(found: &Found, landed: &[bool]) -> Vec<bool> {
    let waiting = found.leased.iter().zip(landed).filter(|(_, landed)| !**landed);
    waiting.map(|(leased, _)| !leased).collect()
}
