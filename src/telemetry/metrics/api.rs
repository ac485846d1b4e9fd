//! The families that count batches and ids, for each batch API: its name is their label `api`.

use std::sync::{Arc, PoisonError, RwLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, IntCounter, Registry, Result};

use super::family::{Counters, PerLabel, Registrar, families};
use super::sharded;
use super::{Bypass, CallResult, IdResult, Label, Outcome, Reason, Refetch, Tally};

/// Up to `limits.batch_ids`; 100 is what the endpoint takes in one call.
const BATCH_IDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Up to `upstream.ids_per_call`: calls of one id do not profit from gathering, those of the last bucket are full.
const CALL_IDS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
/// Links live for minutes. Finest above `freshness.min_remaining`, below which none may be.
const LIFE_SECONDS: [f64; 10] = [30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];

/// The most APIs whose series are kept, unless more are in use: a configuration has fewer, and reloads may bring others without end.
const MOST: usize = 64;

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
        /// Seconds until the expiry of links that are served from memory.
        pub link_life_left: sharded::Histogram = "link_life_left_seconds", sharded_histogram(&LIFE_SECONDS);
        /// Ids looked up in the shared tier and found usable there.
        pub shared_hits: IntCounter = "shared_hits_total", counter();
        /// Ids looked up in the shared tier that were not there or not usable.
        pub shared_misses: IntCounter = "shared_misses_total", counter();
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
/// series, since it may come back, and nothing that was counted is forgotten; beyond `MOST` the oldest that is not in use goes.
pub struct ApiFamilies(Apis);

type Apis = Arc<RwLock<Vec<Api>>>;

#[derive(Clone)]
struct Api {
    name: Arc<str>,
    metrics: Arc<ApiMetrics>,
    /// Its series alone, so that they can go together.
    registry: Registry,
}

impl ApiFamilies {
    pub(super) fn new(registrar: Registrar<'_>) -> Result<Self> {
        let apis = Apis::default();
        registrar.registry.register(Box::new(ApiSeries(Arc::clone(&apis))))?;
        Ok(Self(apis))
    }

    /// The families of an API, which are registered when they are asked for first.
    ///
    /// # Errors
    /// They cannot be registered: a bug.
    pub fn of(&self, api: &str) -> Result<Arc<ApiMetrics>> {
        // A panic leaves the list whole.
        let mut apis = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = apis.iter().find(|known| *known.name == *api) {
            return Ok(Arc::clone(&known.metrics));
        }
        let registry = Registry::new();
        let metrics = Arc::new(ApiMetrics::new(Registrar { registry: &registry, api: Some(api) })?);
        if apis.len() >= MOST
            && let Some(unused) = apis.iter().position(|known| Arc::strong_count(&known.metrics) == 1)
        {
            apis.remove(unused);
        }
        apis.push(Api { name: api.into(), metrics: Arc::clone(&metrics), registry });
        Ok(metrics)
    }

    /// For each value of a label, the sum over all APIs.
    pub fn sums<L: Label>(&self, count: impl Fn(&ApiMetrics, L) -> u64) -> Vec<u64> {
        let apis = self.all();
        L::VALUES.iter().map(|(value, _)| apis.iter().map(|(_, api)| count(api, *value)).sum()).collect()
    }

    /// Every API with its families.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<ApiMetrics>)> {
        read(&self.0).into_iter().map(|api| (api.name, api.metrics)).collect()
    }
}

fn read(apis: &Apis) -> Vec<Api> {
    apis.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The series of all APIs, which the registry merges into one family for each name.
struct ApiSeries(Apis);

impl Collector for ApiSeries {
    /// None: the registries of the APIs check them.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        read(&self.0).iter().flat_map(|api| api.registry.gather()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn series_of_any_number_of_apis_are_bounded_and_those_in_use_stay() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let in_use = metrics.apis.of("in-use").unwrap();
        in_use.batches.of(Outcome::Hit).inc();
        for name in 0..10 * MOST {
            metrics.apis.of(&format!("api-{name}")).unwrap().batches.of(Outcome::Hit).inc();
        }
        let names: Vec<Arc<str>> = metrics.apis.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!((names.len(), &*names[0], &*names[MOST - 1]), (MOST, "in-use", &*format!("api-{}", 10 * MOST - 1)));
        let families = registry.gather();
        let batches = families.iter().find(|family| family.name() == "sidelink_batches_total").unwrap();
        assert_eq!(batches.get_metric().len(), MOST * Outcome::ALL.len());
        in_use.batches.of(Outcome::Hit).inc();
        assert_eq!(metrics.apis.of("in-use").unwrap().batches.of(Outcome::Hit).get(), 2, "it counts on");
        assert_eq!(
            metrics.apis.sums(|api, outcome| api.batches.of(outcome).get()),
            [2 + MOST as u64 - 1, 0, 0, 0, 0, 0]
        );
    }
}
