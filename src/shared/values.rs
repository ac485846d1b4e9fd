//! Which values count, and what is written: a value opens under its own name alone, is not past its end, and nothing was
//! said about it since its writer had asked the endpoint.
//!
//! Clocks: how old a value is, is told by its writer's wall clock and this one. The clocks of a fleet are taken to agree
//! within [`SKEW`], and each value to be that much older than it seems; one that comes from further in the future is refused.

use std::sync::Arc;

use super::record::{Acceptance, Event, Link, Stamp};
use super::sealing::CallerKey;
use super::{Brought, Inner, Share};
use crate::api::id;
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::cache::purges::Target;
use crate::clock::Moment;
use crate::telemetry::metrics::Kind;

/// How far apart the clocks of a fleet may be, in milliseconds.
const SKEW: u64 = 2000;

/// A value as it is to be written.
pub(super) struct Sealed {
    pub(super) name: Box<str>,
    pub(super) value: String,
    /// Milliseconds that it counts.
    pub(super) left: u64,
}

impl Inner {
    /// A caller's acceptance, if it counts.
    pub(super) fn acceptance(
        &self,
        at: usize,
        key: &CallerKey,
        name: &str,
        value: &[u8],
        now: Moment,
    ) -> Option<Moment> {
        let opened = key.seal.open(name, value).and_then(|bytes| Acceptance::read(&bytes));
        let acceptance = self.counted(opened, Kind::Unsealed)?;
        self.counted(self.upholds(at, acceptance.stamp, &[Event::Caller(key.hash)]), Kind::Revoked)?;
        let age = self.counted(age(acceptance.sent, now), Kind::Outlived)?;
        self.counted((age < self.revalidate).then(|| now.before(age)), Kind::Outlived)
    }

    /// What is kept of an id, if it counts.
    #[expect(clippy::too_many_arguments, reason = "one value with all that it has to agree with")]
    pub(super) fn link(
        &self,
        at: usize,
        key: &CallerKey,
        share: &Share,
        id: &str,
        name: &str,
        value: &[u8],
        now: Moment,
    ) -> Option<Entry> {
        let link = self.counted(key.seal.open(name, value).and_then(|bytes| Link::read(&bytes)), Kind::Unsealed)?;
        let mut whom = vec![Event::Caller(key.hash)];
        let fleet = self.keys.get(at)?;
        whom.extend(id::readings(id).map(|id| fleet.says(Target::Id(&id))));
        whom.extend(share.groups.get(at).into_iter().flatten());
        self.counted(self.upholds(at, link.stamp, &whom), Kind::Revoked)?;
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

    fn upholds(&self, at: usize, stamp: Stamp, whom: &[Event]) -> Option<()> {
        self.journals().get(at)?.upholds(stamp, whom).then_some(())
    }

    fn counted<T>(&self, value: Option<T>, failure: Kind) -> Option<T> {
        if value.is_none() {
            self.metrics.shared.count_failure(failure);
        }
        value
    }

    /// What a call brought that was sent when the journal said `stamp`, but for what was purged or revoked since.
    pub(super) fn sealed(&self, share: &Share, stamp: Stamp, brought: &Brought) -> Vec<Sealed> {
        let now = self.clock.now();
        let mut all = Vec::with_capacity(brought.links.len() + 1);
        let (Some(key), Some(scope), Some(fleet)) = (share.keys.keys.first(), share.names.first(), self.keys.first())
        else {
            return all;
        };
        let mut add = |name: Box<str>, plain: &[u8], left: u64| {
            if let Some(value) = key.seal.seal(&name, plain).filter(|_| left > 0) {
                all.push(Sealed { name, value, left });
            }
        };
        if let Some(sent) = brought.sent.filter(|_| brought.accepted)
            && self.upholds(0, stamp, &[Event::Caller(key.hash)]).is_some()
        {
            let acceptance = Acceptance { stamp, sent: sent.unix_millis() };
            add(key.acceptance.clone(), &acceptance.write(), self.revalidate.saturating_sub(now.since(sent)));
        }
        for (id, kept) in &brought.links {
            let deadlines = kept.deadlines();
            let text = kept.text().and_then(|text| std::str::from_utf8(text).ok()).map(Arc::from);
            let mut whom = vec![Event::Caller(key.hash)];
            whom.extend(id::readings(id).map(|id| fleet.says(Target::Id(&id))));
            whom.extend(share.groups.first().into_iter().flatten());
            let (sent, spans) = deadlines.parts();
            let left = deadlines.usable_left(now).unwrap_or(0);
            let link = Link { stamp, sent: sent.unix_millis(), spans, text };
            if self.upholds(0, stamp, &whom).is_some() {
                add(scope.link(id), &link.write(), left);
            }
        }
        all
    }
}

/// How old what was sent at `sent`, on another clock, is at most; `None`: it is from the future.
fn age(sent: u64, now: Moment) -> Option<u64> {
    now.unix_millis().saturating_add(SKEW).checked_sub(sent)
}
