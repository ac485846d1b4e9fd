//! The ids of a batch on their way to a reply.

use std::sync::Arc;

use super::Fetched;
use crate::cache::Entry;
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

    /// Takes back all entries, so that all ids are missing.
    pub(super) fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| (slot.entry, slot.result) = (None, IdResult::Failed));
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
