//! Which values count: a value opens under its own name alone, has not expired, and no event since its writer asked the
//! endpoint voids it.
//!
//! A value's age is the difference between its writer's wall clock and this one. The clocks of a fleet are assumed to agree
//! within [`SKEW`]: each value counts as that much older than it seems, and one from further in the future is refused.

use std::sync::Arc;

use super::record::{AcceptanceRecord, Event, LinkRecord, Stamp};
use super::{Brought, FleetShare, Share, TierState};
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::clock::Moment;
use crate::telemetry::metrics::Kind;

/// Most milliseconds between the clocks of a fleet.
const SKEW: u64 = 2000;

/// A value to be written.
pub(super) struct Sealed {
    pub(super) name: Box<str>,
    pub(super) value: String,
    /// Milliseconds until it expires.
    pub(super) left: u64,
}

impl TierState {
    /// When the call was sent that showed a caller's acceptance, if `value` counts.
    pub(super) fn open_acceptance(&self, fleet: &FleetShare, name: &str, value: &[u8], now: Moment) -> Option<Moment> {
        let opened = fleet.caller.seal.open(name, value).and_then(|bytes| AcceptanceRecord::read(&bytes));
        let acceptance = self.counted(opened, Kind::Unsealed)?;
        self.counted(self.is_valid(fleet, acceptance.stamp, &[fleet.revocation()]), Kind::Revoked)?;
        let age = age(acceptance.sent, now).filter(|age| *age < self.revalidate);
        Some(now.before(self.counted(age, Kind::Outlived)?))
    }

    /// The entry of `id`, if `value` counts.
    pub(super) fn open_link(
        &self,
        fleet: &FleetShare,
        id: &str,
        name: &str,
        value: &[u8],
        now: Moment,
    ) -> Option<Entry> {
        let opened = fleet.caller.seal.open(name, value).and_then(|bytes| LinkRecord::read(&bytes));
        let link = self.counted(opened, Kind::Unsealed)?;
        self.counted(self.is_valid(fleet, link.stamp, &fleet.events(id)), Kind::Revoked)?;
        let deadlines = age(link.sent, now).and_then(|age| {
            let sent = now.before(age);
            match link.text {
                Some(_) => Deadlines::link_elsewhere(sent, link.spans, &self.freshness),
                None => Deadlines::absent_elsewhere(sent, link.spans, &self.freshness),
            }
        });
        let deadlines = self.counted(deadlines.filter(|deadlines| deadlines.usable(now)), Kind::Outlived)?;
        Some(Entry::new(link.text.as_deref(), deadlines))
    }

    fn is_valid(&self, fleet: &FleetShare, stamp: Stamp, events: &[Event]) -> Option<()> {
        self.journals().get(fleet.at)?.is_valid(stamp, events).then_some(())
    }

    fn counted<T>(&self, value: Option<T>, failure: Kind) -> Option<T> {
        if value.is_none() {
            self.metrics.shared.count_failure(failure);
        }
        value
    }

    /// Seals what a call brought, with the stamp of when it was sent; without what was purged or revoked since.
    pub(super) fn seal(&self, share: &Share, stamp: Stamp, brought: &Brought) -> Vec<Sealed> {
        let now = self.clock.now();
        let mut all = Vec::with_capacity(brought.links.len() + 1);
        let Some(fleet) = share.0.first() else { return all };
        let mut add = |name: Box<str>, plain: &[u8], left: u64, events: &[Event]| {
            if left > 0
                && self.is_valid(fleet, stamp, events).is_some()
                && let Some(value) = fleet.caller.seal.seal(&name, plain)
            {
                all.push(Sealed { name, value, left });
            }
        };
        if let Some(sent) = brought.sent.filter(|_| brought.accepted) {
            let acceptance = AcceptanceRecord { stamp, sent: sent.unix_millis() };
            let left = self.revalidate.saturating_sub(now.since(sent));
            add(fleet.caller.acceptance.clone(), &acceptance.write(), left, &[fleet.revocation()]);
        }
        for (id, entry) in &brought.links {
            let (sent, spans) = entry.deadlines().parts();
            let text = entry.text().and_then(|text| std::str::from_utf8(text).ok()).map(Arc::from);
            let link = LinkRecord { stamp, sent: sent.unix_millis(), spans, text };
            let left = entry.deadlines().usable_left(now).unwrap_or(0);
            add(fleet.names.link(id), &link.write(), left, &fleet.events(id));
        }
        all
    }
}

/// The greatest possible age of what was sent at `sent`, by another clock; `None` if it is from the future.
fn age(sent: u64, now: Moment) -> Option<u64> {
    now.unix_millis().saturating_add(SKEW).checked_sub(sent)
}
