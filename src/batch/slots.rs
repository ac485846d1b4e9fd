//! The ids of a batch on their way to a reply.

use std::sync::Arc;

use super::missing::Fetched;
use crate::api::request::{Batch, Id};
use crate::auth::{Key, Scope};
use crate::cache::Entry;
use crate::clock::Moment;
use crate::fetch::{FetchResult, KeyedId};
use crate::telemetry::metrics::{ApiMetrics, IdResult, Tally};
use crate::telemetry::trace::RequestSpan;

/// One id's place in the reply.
pub(super) struct Slot {
    /// The id, where the look-up in memory found no entry.
    pub(super) id_to_fetch: Option<KeyedId>,
    pub(super) entry: Option<Entry>,
    pub(super) result: IdResult,
}

/// The distinct ids of a batch that was read and admitted. Dropping them counts each once, also when the client leaves
/// before its reply.
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    pub(super) metrics: Arc<ApiMetrics>,
}

/// What a slot had: its entry, and how its id counts with it.
pub(super) type SetAside = (Option<Entry>, IdResult);

impl Slots {
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for slot in &self.slots {
            tally.add(slot.result);
        }
        tally
    }

    /// The entries, in the order asked.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Entry, IdResult)> + Clone {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref().map(|entry| (entry, slot.result)))
    }

    /// The ids without an entry.
    pub(super) fn missing(&self) -> Vec<KeyedId> {
        self.slots.iter().filter(|slot| slot.entry.is_none()).filter_map(|slot| slot.id_to_fetch.clone()).collect()
    }

    pub(super) fn missing_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.entry.is_none())
    }

    /// Counts the missing ids as fetched: they came in an answer that is passed on whole.
    pub(super) fn count_fetched(&mut self) {
        self.missing_mut().for_each(|slot| slot.result = IdResult::Fetched);
    }

    /// Sets all entries aside, so that all ids are missing.
    pub(super) fn set_aside(&mut self) -> Vec<SetAside> {
        let set_aside = |slot: &mut Slot| (slot.entry.take(), std::mem::replace(&mut slot.result, IdResult::Failed));
        self.slots.iter_mut().map(set_aside).collect()
    }

    /// Puts entries back where ids are missing still, those of the cache as stale ones, if none stays missing and none has come to the
    /// end of its use meanwhile. Returns whether it did.
    pub(super) fn put_back(&mut self, aside: &[SetAside], now: Moment) -> bool {
        let may_serve = |entry: &Entry| !entry.deadlines().is_stored() || entry.deadlines().usable(now);
        let mut all = self.slots.iter().zip(aside);
        if !all.all(|(slot, (entry, _))| slot.entry.is_some() || entry.as_ref().is_some_and(may_serve)) {
            return false;
        }
        for (slot, (entry, result)) in self.slots.iter_mut().zip(aside).filter(|(slot, _)| slot.entry.is_none()) {
            let is_cached = matches!(result, IdResult::Hit | IdResult::Shared);
            (slot.entry, slot.result) = (entry.clone(), if is_cached { IdResult::Stale } else { *result });
        }
        true
    }

    /// Takes the results of the missing ids, in their order.
    pub(super) fn take(&mut self, results: Vec<FetchResult>, trace: &RequestSpan) -> Fetched {
        let mut fetched = Fetched::default();
        for (slot, result) in self.missing_mut().zip(results) {
            let id_result = result.id_result();
            trace.link_call(result.call);
            match result.entry {
                Ok(entry) => {
                    (slot.entry, slot.result) = (Some(entry), id_result);
                    if fetched.failure.is_none() && fetched.request_id.is_none() {
                        fetched.request_id = result.request_id;
                    }
                }
                Err(failure) if fetched.failure.is_none() => {
                    (fetched.failure, fetched.request_id) = (Some(failure), result.request_id);
                }
                Err(_) => {}
            }
        }
        fetched
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.metrics.count_ids(&self.tally());
    }
}

/// So many keys are compared with each other in less time than a table takes.
const FEW: usize = 8;

/// The ids of a batch, each once, in the order asked, with their keys. `None`: there are more than `most`.
pub(super) fn distinct<'b, 'r>(batch: &'b Batch<'r>, scope: Scope, most: usize) -> Option<Vec<(&'b Id<'r>, Key)>> {
    let room = batch.ids.len().min(most);
    let mut ids: Vec<(&Id<'_>, Key)> = Vec::with_capacity(room);
    let keys = scope.keys();
    if batch.ids.len() <= FEW {
        for id in &batch.ids {
            let key = keys.of(id);
            if ids.iter().all(|(_, known)| *known != key) {
                ids.push((id, key));
            }
        }
        return (ids.len() <= most).then_some(ids);
    }
    // A hash table of places in `ids`, each one more than it is; 0 is free. The standard library's set takes four times as long.
    let mut places = vec![0_u32; (2 * room).next_power_of_two()];
    let mask = places.len() - 1;
    for id in &batch.ids {
        let key = keys.of(id);
        let mut slot = key.part() as usize & mask;
        let is_new = loop {
            let Some(place) = places.get_mut(slot) else { break false };
            match ids.get((*place as usize).wrapping_sub(1)) {
                Some((_, known)) if *known == key => break false,
                Some(_) => slot = (slot + 1) & mask,
                None => {
                    *place = u32::try_from(ids.len() + 1).unwrap_or(u32::MAX);
                    break true;
                }
            }
        };
        if is_new && ids.len() == most {
            return None;
        }
        if is_new {
            ids.push((id, key));
        }
    }
    Some(ids)
}

/// The result of an id that memory answers.
pub(super) fn result_of_hit(entry: &Entry) -> IdResult {
    if entry.is_absent() { IdResult::Absent } else { IdResult::Hit }
}
