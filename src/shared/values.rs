//! Seals values, and opens those that count. A value counts if it opens under its own name, has not expired, and no event since
//! its writer asked the endpoint voids it.
//!
//! A value's age is the difference between its writer's wall clock and this one. The clocks of a fleet are assumed to agree
//! within [`MAX_CLOCK_SKEW_MILLIS`]: each value counts as that much older than it seems, and one from further in the future is refused.

use std::sync::Arc;
use std::time::Duration;

use super::record::{JournalEvent, LinkRecord, Stamp, read_acceptance, write_acceptance};
use super::sealing::{ScopeKeys, Seal};
use super::store::RedisCommand;
use super::{FleetSecret, TierScope, TierState, TierUpdate};
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::cache::purges;
use crate::clock::{Moment, millis};
use crate::telemetry::metrics::SharedFailure;

const MAX_CLOCK_SKEW_MILLIS: u64 = 2000;

pub(super) struct Sealed {
    pub(super) name: Box<str>,
    pub(super) value: Vec<u8>,
    pub(super) left: u64,
}

impl TierState {
    /// When the call was sent that showed a caller's acceptance, if `value` counts and is not too old.
    pub(super) fn open_acceptance(
        &self,
        fleet: &FleetSecret,
        keys: &ScopeKeys,
        value: &[u8],
        now: Moment,
    ) -> Option<Moment> {
        let sent = self.acceptance_sent(fleet, keys, value)?;
        let age = self.counted(age(sent, now), SharedFailure::Outlived)?;
        (age < self.revalidate).then(|| now.before(age))
    }

    /// When the call was sent that showed a caller's acceptance, by its writer's clock, if `value` counts.
    pub(super) fn acceptance_sent(&self, fleet: &FleetSecret, keys: &ScopeKeys, value: &[u8]) -> Option<u64> {
        let opened = keys.acceptance_seal.open_bytes(&keys.acceptance, value).and_then(|bytes| read_acceptance(&bytes));
        let (stamp, sent) = self.counted(opened, SharedFailure::Unsealed)?;
        self.counted(fleet.is_valid(stamp, &[keys.end_of_acceptance()]), SharedFailure::Revoked)?;
        Some(sent)
    }

    /// Replaces a caller's acceptance, if there is one, with one that is too old to count, by which a later 401 finds that the caller may
    /// have values still.
    pub(super) fn end_acceptance(&self, fleet: &FleetSecret, keys: &ScopeKeys) -> RedisCommand {
        let stamp = fleet.journal.lock().stamp();
        match stamp.and_then(|stamp| keys.acceptance_seal.seal_bytes(&keys.acceptance, &write_acceptance(stamp, 0))) {
            Some(ended) => {
                let life = millis(self.longest_life());
                RedisCommand::new("SET", &keys.acceptance).arg(ended).arg("XX").arg("PX").arg(life)
            }
            None => RedisCommand::new("DEL", &keys.acceptance),
        }
    }

    /// The entry of `id`, if `value` counts.
    pub(super) fn open_link(
        &self,
        fleet: &FleetSecret,
        keys: &ScopeKeys,
        (id, name): (&str, &str),
        value: &[u8],
        now: Moment,
    ) -> Option<Entry> {
        let opened = keys.seal.open_bytes(name, value).and_then(|bytes| LinkRecord::read(&bytes));
        let link = self.counted(opened, SharedFailure::Unsealed)?;
        self.counted(fleet.is_valid(link.stamp, &keys.events(id, name)), SharedFailure::Revoked)?;
        let deadlines = age(link.sent, now)
            .and_then(|age| Deadlines::elsewhere(now.before(age), link.spans, link.is_absent(), &self.freshness));
        let deadlines = self.counted(deadlines.filter(|deadlines| deadlines.usable(now)), SharedFailure::Outlived)?;
        Some(Entry::with_details(link.text.as_deref(), deadlines, link.details))
    }

    /// The longest that a value, or an acceptance, may count.
    pub(super) fn longest_life(&self) -> Duration {
        Duration::from_millis(self.revalidate).max(purges::span_of_links(&self.freshness))
    }

    fn counted<T>(&self, value: Option<T>, failure: SharedFailure) -> Option<T> {
        if value.is_none() {
            self.metrics.shared.failures.of(failure).inc();
        }
        value
    }

    /// Seals what a call brought, with the stamp of when it was sent; without what was purged or revoked since.
    pub(super) fn seal(&self, scope: &TierScope, stamp: Stamp, update: &TierUpdate) -> Vec<Sealed> {
        let now = self.clock.now();
        let mut all = Vec::with_capacity(update.entries.len() + 1);
        let Some((fleet, keys)) = self.of_scope(scope).next() else { return all };
        let mut add = |seal: &Seal, name: Box<str>, plain: &[u8], left: u64, events: &[JournalEvent]| {
            if left > 0
                && fleet.is_valid(stamp, events).is_some()
                && let Some(value) = seal.seal_bytes(&name, plain)
            {
                all.push(Sealed { name, value, left });
            }
        };
        if let Some(sent) = update.accepted {
            let acceptance = write_acceptance(stamp, sent.unix_millis());
            // As long as any value of the caller, so that a later 401 finds that there may be some.
            let left = millis(self.longest_life()).saturating_sub(now.since(sent));
            add(&keys.acceptance_seal, keys.acceptance.clone(), &acceptance, left, &[keys.end_of_acceptance()]);
        }
        for (id, entry) in &update.entries {
            let (sent, spans) = entry.deadlines().parts();
            let text = entry.text().and_then(|text| std::str::from_utf8(text).ok()).map(Arc::from);
            let link = LinkRecord { stamp, sent: sent.unix_millis(), spans, text, details: entry.details().cloned() };
            let left = entry.deadlines().usable_left(now).unwrap_or(0);
            let name = keys.link(id);
            let events = keys.events(&id.id, &name);
            add(&keys.seal, name, &link.write(), left, &events);
        }
        all
    }
}

/// The greatest possible age of what was sent at `sent`, by another clock; `None` if it is from the future.
fn age(sent: u64, now: Moment) -> Option<u64> {
    now.unix_millis().saturating_add(MAX_CLOCK_SKEW_MILLIS).checked_sub(sent)
}
