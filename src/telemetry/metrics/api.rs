//! The families that count batches and ids, for each batch API: its name is their label `api`.

use std::sync::{Arc, PoisonError, RwLock};

use prometheus::{Histogram, Registry, Result};

use super::family::{Counters, PerLabel, Registrar, families};
use super::sharded;
use super::{Bypass, CallResult, IdResult, Label, Outcome, Reason, Refetch, Tally};

/// Up to `limits.batch_ids`; 100 is what the endpoint takes in one call.
const BATCH_IDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Up to `upstream.ids_per_call`: calls of one id do not profit from gathering, those of the last bucket are full.
const CALL_IDS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

families! {
    /// The families of one batch API.
    pub struct ApiMetrics {
        /// Distinct ids of batches that were read and admitted, by result. Each is counted once, when its batch ends.
        pub ids: PerLabel<IdResult, sharded::Counter> = "ids_total", sharded_counters("result");
        /// Requests of the batch route, by how they were answered.
        pub batches: PerLabel<Outcome, sharded::Counter> = "batches_total", sharded_counters("outcome");
        /// Distinct ids of each batch that was read and admitted; the sum is all ids asked for.
        pub batch_ids: sharded::Histogram = "batch_ids", sharded_histogram(&BATCH_IDS);
        /// Calls to the endpoint, by result. A call counts once, however often it is tried.
        pub upstream_calls: Counters<CallResult> = "upstream_calls_total", counters("result");
        /// Ids in each attempt of a call; the sum is all ids sent to the endpoint.
        pub upstream_call_ids: Histogram = "upstream_call_ids", histogram(&CALL_IDS);
        /// Batches that were answered by a whole answer from memory: they came again as they were written, and nothing had changed.
        pub answers_used: sharded::Counter = "answers_used_total", sharded_counter();
        /// Ids that were fetched although they were fresh in memory, by cause.
        pub refetched: Counters<Refetch> = "refetched_total", counters("cause");
        /// Links that were answered but not stored, by reason.
        pub uncacheable: Counters<Reason> = "uncacheable_total", counters("reason");
        /// Requests of the batch route that were forwarded untouched, by reason.
        pub bypass: Counters<Bypass> = "bypass_total", counters("reason");
    }
}

impl ApiMetrics {
    /// Counts a batch's ids: the one place where ids are counted.
    pub fn count_ids(&self, tally: &Tally) {
        for (result, counter) in self.ids.iter() {
            let count = tally.count(result);
            if count > 0 {
                counter.inc_by(u64::from(count));
            }
        }
    }
}

/// The families of each API that a configuration has had, in the order in which they came. An API that a reload has removed keeps its
/// series until the process ends, since calls for it may still be under way, and it may come back.
pub struct ApiFamilies {
    registry: Registry,
    by_name: RwLock<Vec<(Arc<str>, Arc<ApiMetrics>)>>,
}

impl ApiFamilies {
    pub(super) fn new(registrar: Registrar<'_>) -> Result<Self> {
        Ok(Self { registry: registrar.registry.clone(), by_name: RwLock::default() })
    }

    /// The families of an API, which are registered when they are asked for first.
    ///
    /// # Errors
    /// They cannot be registered: a bug.
    pub fn of(&self, api: &str) -> Result<Arc<ApiMetrics>> {
        // A panic leaves the list whole.
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, metrics)) = by_name.iter().find(|(name, _)| **name == *api) {
            return Ok(Arc::clone(metrics));
        }
        let metrics = Arc::new(ApiMetrics::new(Registrar { registry: &self.registry, api: Some(api) })?);
        by_name.push((api.into(), Arc::clone(&metrics)));
        Ok(metrics)
    }

    /// For each value of a label, the sum over all APIs.
    pub fn sums<L: Label>(&self, count: impl Fn(&ApiMetrics, L) -> u64) -> Vec<u64> {
        let apis = self.all();
        L::VALUES.iter().map(|(value, _)| apis.iter().map(|(_, api)| count(api, *value)).sum()).collect()
    }

    /// Every API with its families.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<ApiMetrics>)> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
