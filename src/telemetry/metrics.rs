//! Every metric family, as a value: registered on a registry that is passed in, every series there from the start.
//!
//! **To add a metric, add a line to `families!`**: its HELP text as the doc, its name, and what it is (`family.rs`). Values of
//! labels are declared in `labels.rs`. Label sets are closed: no id, path or caller is ever a label.

mod family;
mod labels;
mod limits;
mod reading;
mod reload;
mod shared;
mod spans;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use family::families;
pub use labels::{
    Bounded, BreakerState, Bypass, IdResult, Kind, Limit, Operation, Outcome, Reason, Route, SpanResult, Tally,
};
pub use limits::Limits;
pub use reading::{Buckets, Reading};
pub use reload::Reload;
pub use shared::Shared;
pub use spans::Spans;

/// Buckets of requests' durations. A hit takes tens of microseconds, a miss as long as the endpoint, a batch at most
/// `upstream.deadline`; two to three buckets a decade tell a quantile to within a factor of 2.5.
const REQUEST_SECONDS: [f64; 18] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];
/// Buckets of calls' durations: no endpoint answers within less than a millisecond, none may take longer than
/// `upstream.deadline`; finest where they usually are.
const CALL_SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Up to `limits.batch_ids`; 100 is what the endpoint takes in one call.
const BATCH_IDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Up to `upstream.ids_per_call`: calls of one id do not profit from gathering, those of the last bucket are full.
const CALL_IDS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
/// Links live for minutes. Finest above `freshness.min_remaining`, below which none may be.
const LIFE_SECONDS: [f64; 10] = [30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];

families! {
    /// Every family that the product counts in.
    pub struct Metrics {
        /// Distinct ids of batches that were read and admitted, by what became of them. Each is counted once, when its batch ends.
        ids: [IntCounter; 7] = "ids_total", counters("result", &IdResult::ALL.map(IdResult::name));
        /// Requests of the batch route, by how they were answered.
        batches: [IntCounter; 6] = "batches_total", counters("outcome", &Outcome::ALL.map(Outcome::name));
        /// Seconds from a request's head to its answer's head, by route and outcome. A client that leaves before counts as an error.
        request_durations: RequestDurations = "request_duration_seconds", request_durations(&REQUEST_SECONDS);
        /// Distinct ids of each batch that was read and admitted; the sum is all ids asked for.
        pub batch_ids: Histogram = "batch_ids", histogram(&BATCH_IDS);
        /// Calls to the endpoint, by what became of them. A call counts once, however often it is tried.
        pub upstream_calls: IntCounterVec = "upstream_calls_total", vector("result", &CALL_RESULTS);
        /// Seconds from an attempt's departure to its whole answer, or to its failure.
        pub upstream_call_duration: Histogram = "upstream_call_duration_seconds", histogram(&CALL_SECONDS);
        /// Ids in each attempt of a call; the sum is all ids sent to the endpoint.
        pub upstream_call_ids: Histogram = "upstream_call_ids", histogram(&CALL_IDS);
        /// Calls to the endpoint that are under way now.
        pub upstream_in_flight: IntGauge = "upstream_in_flight", gauge();
        /// Attempts of calls beyond the first, after no answer, a 502, 503 or 504.
        pub upstream_retries: IntCounter = "upstream_retries_total", counter();
        /// Requests, of batches and of other routes, that were sent again on a new connection: theirs had been open before, and ended before any byte of an answer, or HTTP/2 said that they were not processed.
        pub upstream_resends: IntCounter = "upstream_resends_total", counter();
        /// On whose failures the breaker before the endpoint has opened, or refuses sources alone, by kind; 0 while it does neither.
        pub breaker_evidence: IntGaugeVec = "breaker_evidence", gauges("kind", &EVIDENCE_KINDS);
        /// 1 at what the breaker before the endpoint lets through: every call (closed), one probe (half_open), none (open).
        pub breaker_state: IntGaugeVec = "breaker_state", position();
        /// Links and remembered absences in memory now.
        pub cache_links: IntGauge = "cache_links", gauge();
        /// Bytes of what is in memory now, its bookkeeping included.
        pub cache_bytes: IntGauge = "cache_bytes", gauge();
        /// Bytes that cache_bytes may come to (cache.capacity); beyond that, what is asked for least makes room.
        pub cache_capacity: IntGauge = "cache_capacity_bytes", gauge();
        /// Links and remembered absences that left memory, by cause.
        pub cache_evictions: Evictions = "cache_evictions_total", evictions();
        /// Seconds that links handed out from memory have left until their own expiry.
        pub link_life_left: Histogram = "link_life_left_seconds", histogram(&LIFE_SECONDS);
        /// Ids that were fresh in memory and fetched all the same, by cause.
        pub refetched: IntCounterVec = "refetched_total", vector("cause", &REFETCH_CAUSES);
        /// Seconds that the local clock is ahead of the endpoint's, as of the last call; 0 before the first.
        pub clock_skew: Gauge = "clock_skew_seconds", fraction();
        /// Links passed on and not kept, by reason.
        pub uncacheable: IntCounterVec = "uncacheable_total", vector("reason", &Reason::ALL.map(Reason::name));
        /// Requests of the batch route that were forwarded untouched, by reason.
        pub bypass: IntCounterVec = "bypass_total", vector("reason", &Bypass::ALL.map(Bypass::name));
        /// Client connections that are open now.
        pub connections: IntGauge = "connections", gauge();
        /// Requests refused because a limit was reached, by limit.
        pub shed: IntCounterVec = "shed_total", vector("limit", &Limit::ALL.map(Limit::name));
        /// Tasks alive in the runtime now: listeners, connections, calls and housekeeping.
        pub tasks: IntGauge = "tasks", gauge();
        /// Purges by what they were of: ids, a group or all at an operator's demand, or an id whose DELETE has passed through.
        pub purges: IntCounterVec = "purges_total", vector("target", &PURGES);
        /// Marks that purges have left; beyond 65536 the oldest make way for one over everything.
        pub purge_marks: IntGauge = "purge_marks", gauge();
        /// Always 1; the label is the version that runs.
        pub build: IntGaugeVec = "build_info", build();
        /// What is bounded, and how much of it is in use.
        pub limits: Limits;
        /// The last reload of the configuration.
        pub reload: Reload;
        /// The shared tier.
        pub shared: Shared;
        /// Spans.
        pub spans: Spans;
    }
}

/// Counters of evictions.
#[derive(Clone)]
pub struct Evictions {
    /// Made room.
    pub size: IntCounter,
    /// Too old to be served, fresh or stale.
    pub expired: IntCounter,
    /// Forgotten on purpose.
    pub explicit: IntCounter,
}

/// Durations by route and outcome.
pub struct RequestDurations {
    batch: [Histogram; 6],
    /// Forwarded, and failed.
    passthrough: [Histogram; 2],
}

/// The results of a call, in `upstream_calls_total`; refused: by the breaker or a hold, before anything was sent.
pub const CALL_RESULTS: [&str; 8] =
    ["ok", "client_error", "server_error", "error_in_200", "unexpected", "no_answer", "deadline", "refused"];

/// What the breaker counts, in `breaker_evidence`.
pub const EVIDENCE_KINDS: [&str; 7] =
    ["callers", "id_sets", "failed_to_connect", "connections_lost", "failed_answers", "no_answers", "sources_refused"];

/// Why fresh ids are asked again, in `refetched_total`.
pub const REFETCH_CAUSES: [&str; 3] = ["refresh", "revalidate", "client"];

/// What a purge may be of, in `purges_total`: an operator's, or an id that was deleted through sidelink.
pub const PURGES: [&str; 4] = ["ids", "group", "all", "delete"];

impl Metrics {
    /// Counts a batch's ids: the one place where ids are counted.
    pub fn count_ids(&self, tally: &Tally) {
        for (counter, count) in self.ids.iter().zip(tally.0) {
            if count > 0 {
                counter.inc_by(u64::from(count));
            }
        }
    }

    /// Shows on what evidence the breaker has opened, in the order of [`EVIDENCE_KINDS`].
    pub fn show_breaker_evidence(&self, counts: [usize; EVIDENCE_KINDS.len()]) {
        for (kind, count) in EVIDENCE_KINDS.iter().zip(counts) {
            self.breaker_evidence.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a request and its duration.
    pub fn count_request(&self, route: Route, outcome: Outcome, seconds: f64) {
        let [forwarded, failed] = &self.request_durations.passthrough;
        let duration = match (route, outcome) {
            (Route::Passthrough, Outcome::Error) => Some(failed),
            (Route::Passthrough, _) => Some(forwarded),
            (Route::Batch, outcome) => self.request_durations.batch.get(outcome as usize),
        };
        if route == Route::Batch
            && let Some(counter) = self.batches.get(outcome as usize)
        {
            counter.inc();
        }
        if let Some(duration) = duration {
            duration.observe(seconds);
        }
    }
}

/// Shows in `state` where a breaker stands.
pub fn show_position(state: &IntGaugeVec, now: BreakerState) {
    for position in BreakerState::ALL {
        state.with_label_values(&[position.name()]).set(i64::from(position == now));
    }
}
