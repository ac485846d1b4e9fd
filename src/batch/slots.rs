//! The ids of a batch on their way to an answer.

use std::sync::Arc;

use super::respond::{self, EntryRef};
use super::{Fetched, from_memory};
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::fetch::{FetchResult, FlightResult, ItemResult, Wanted};
use crate::telemetry::metrics::{IdResult, Metrics, Tally};
use crate::telemetry::trace::RequestSpan;

/// One id of a batch on its way to an answer.
pub(super) struct Slot {
    /// The id, while it lacks.
    pub(super) wanted: Option<Wanted>,
    pub(super) had: Option<Link>,
    pub(super) result: IdResult,
}

/// What an id is answered with.
#[derive(Clone)]
pub(super) enum Link {
    /// What is kept of it.
    Entry(Entry),
    /// What has just been brought: the item, `None` if it was left out; without deadlines, it is not stored.
    Brought(Option<Arc<str>>, Option<Deadlines>),
}

impl Link {
    pub(super) fn lend(&self) -> EntryRef<'_> {
        match self {
            Link::Entry(kept) => EntryRef::Entry(kept),
            Link::Brought(text, deadlines) => EntryRef::Brought(text.as_ref(), deadlines.as_ref()),
        }
    }
}

/// The ids of a batch that was read and admitted. Counts each once, also when the client leaves before its answer.
pub(super) struct Slots<'m> {
    pub(super) slots: Vec<Slot>,
    /// Ids that were had and are about to go cold.
    pub(super) ageing: Vec<Wanted>,
    pub(super) metrics: &'m Metrics,
}

impl Slots<'_> {
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for slot in &self.slots {
            tally.add(slot.result);
        }
        tally
    }

    /// The answer's items, in the order asked.
    pub(super) fn items(&self) -> impl Iterator<Item = respond::Item<'_>> + Clone {
        self.slots.iter().map(|slot| respond::Item { link: slot.had.as_ref().map(Link::lend), result: slot.result })
    }

    /// How many are had.
    pub(super) fn had(&self) -> usize {
        self.slots.iter().filter(|slot| slot.had.is_some()).count()
    }

    pub(super) fn need_calls(&self) -> bool {
        !self.ageing.is_empty() || self.had() < self.slots.len()
    }

    pub(super) fn lacking(&self) -> Vec<Wanted> {
        self.slots.iter().filter(|slot| slot.had.is_none()).filter_map(|slot| slot.wanted.clone()).collect()
    }

    /// Counts what lacks as fetched: it came in an answer that is passed on whole.
    pub(super) fn count_fetched(&mut self) {
        self.lacking_slots().for_each(|slot| slot.result = IdResult::Fetched);
    }

    pub(super) fn lacking_slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.had.is_none())
    }
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        self.metrics.count_ids(&self.tally());
    }
}

/// Puts what was fetched into the lacking slots, in order.
pub(super) fn settle(slots: &mut Slots<'_>, trace: &RequestSpan, had: impl Iterator<Item = FetchResult>) -> Fetched {
    let mut fetched = Fetched::default();
    for (slot, had) in slots.lacking_slots().zip(had.collect::<Vec<_>>()) {
        let (joined, FlightResult { result, request_id, shared, call }) = match had {
            FetchResult::InMemory(kept) => {
                slot.result = from_memory(&kept);
                slot.had = Some(Link::Entry(kept));
                continue;
            }
            FetchResult::FlightResult { joined, landed } => (joined, landed),
        };
        trace.link_call(call);
        let (text, deadlines) = match result {
            ItemResult::Link(text, deadlines) => (Some(text), deadlines),
            ItemResult::LeftOut(deadlines) => (None, deadlines),
            ItemResult::Failed(failure) => {
                if fetched.failure.is_none() {
                    fetched.failure = Some(failure);
                    fetched.request_id = request_id;
                }
                continue;
            }
        };
        slot.result = match (joined, shared) {
            (true, _) => IdResult::Joined,
            (false, true) if text.is_none() => IdResult::Absent,
            (false, true) => IdResult::Shared,
            (false, false) => IdResult::Fetched,
        };
        slot.had = Some(Link::Brought(text, deadlines));
        if fetched.failure.is_none() && fetched.request_id.is_none() {
            fetched.request_id = request_id;
        }
    }
    fetched
}
