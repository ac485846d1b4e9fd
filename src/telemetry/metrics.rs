//! Every metric family, registered on a registry that is passed in; every series exists from the start.
//!
//! **To add a metric, add a line to `families!`**: its HELP text as the doc, its name and its kind (`family.rs`); then
//! `make docs`. Values of labels are declared in `labels.rs`; those of `api` are the names of the
//! batch APIs (`api.rs`). Label sets are closed: no id, path or caller is ever a label.

mod api;
mod family;
mod labels;
mod reading;
mod sharded;
mod tally;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, IntGaugeVec};

pub use api::{ApiFamilies, ApiMetrics};
pub use family::{Counters, FleetInfo, Gauges, PerLabel};
use family::{RequestDurations, Responses, families};
pub use labels::{
    AttemptResult, Bounded, BreakerState, Bypass, CallResult, CertificateUse, Code, Eviction, EvidenceKind, IdResult,
    IdentityResult, Label, Limit, Operation, Outcome, PurgeTarget, Reason, Refetch, Route, SharedFailure, Source,
    SpanResult,
};
pub use reading::Reading;
pub use tally::Tally;

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
/// A round trip within one network takes a fraction of a millisecond; the buckets around the default of `shared.timeout` (25 ms)
/// tell a slow tier from one that times out.
const ROUND_TRIP_SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1, 0.5];

families! {
    /// Every family of sidelink.
    pub struct Metrics {
        /// Seconds from a request's head to its answer's head, by route and outcome. A client that disconnects before counts as an error.
        request_durations: RequestDurations = "request_duration_seconds", request_durations(&REQUEST_SECONDS);
        /// Answers to clients, by route, by who has decided on the status, and by status.
        responses: Responses = "responses_total", responses();
        /// Answers of the endpoint to attempts of calls and to requests of other routes, by status.
        pub upstream_responses: Counters<Code> = "upstream_responses_total", counters("code");
        /// Seconds for which calls of all callers are still held back, since the endpoint has asked for a pause; 0 without one.
        pub upstream_pause: Gauge = "upstream_pause_seconds", fraction();
        /// Seconds from sending an attempt to its complete answer, or to its failure, by how it ended.
        pub upstream_call_duration: PerLabel<AttemptResult, Histogram> = "upstream_call_duration_seconds", histograms("result", &CALL_SECONDS);
        /// Calls to the endpoint that are under way now.
        pub upstream_in_flight: IntGauge = "upstream_in_flight", gauge();
        /// Further attempts of calls, after a lost or failed connection, a 502, 503 or 504.
        pub upstream_retries: IntCounter = "upstream_retries_total", counter();
        /// Calls and requests of other routes that were sent again on a new connection, because HTTP/2 proved that they were not processed, or a reused connection ended before any byte of an answer.
        pub upstream_resends: IntCounter = "upstream_resends_total", counter();
        /// The evidence by which the breaker has opened, or refuses single sources, by kind; 0 while it does neither.
        pub breaker_evidence: Gauges<EvidenceKind> = "breaker_evidence", gauges("kind");
        /// 1 for the state that the breaker is in, 0 for the others. A closed breaker lets every call through, a half-open one a single probe, an open one none.
        pub breaker_state: Gauges<BreakerState> = "breaker_state", breaker();
        /// Links and remembered absences in memory now.
        pub cache_links: IntGauge = "cache_links", gauge();
        /// Bytes of the entries in memory now, with their bookkeeping.
        pub cache_bytes: IntGauge = "cache_bytes", gauge();
        /// The limit of cache_bytes: cache.capacity without the eighth of whole answers; at the limit, the entries that are asked for least are evicted.
        pub cache_capacity: IntGauge = "cache_capacity_bytes", gauge();
        /// Links and remembered absences that left memory, by cause.
        pub cache_evictions: Counters<Eviction> = "cache_evictions_total", counters("cause");
        /// Whole answers in memory now.
        pub answers: IntGauge = "answers", gauge();
        /// Bytes of the whole answers in memory now; at most an eighth of cache.capacity.
        pub answers_bytes: IntGauge = "answers_bytes", gauge();
        /// Seconds by which the local clock is ahead of the endpoint's, at the last call; 0 before the first.
        pub clock_skew: Gauge = "clock_skew_seconds", fraction();
        /// Client connections that are open now.
        pub connections: IntGauge = "connections", gauge();
        /// Requests refused because a limit was reached, by limit.
        pub shed: Counters<Limit> = "shed_total", counters("limit");
        /// Tasks alive in the runtime now: listeners, connections, calls and housekeeping.
        pub tasks: IntGauge = "tasks", gauge();
        /// Purges by target: ids, a group or all by an operator, or an id whose DELETE passed through.
        pub purges: Counters<PurgeTarget> = "purges_total", counters("target");
        /// Purges that are remembered; beyond 65536 the oldest are merged into one that covers everything older.
        pub purge_marks: IntGauge = "purge_marks", gauge();
        /// Always 1; the labels are the running version, and the revision that it was built from.
        pub build: IntGaugeVec = "build_info", build();
        /// The configured limit.
        limit: Gauges<Bounded> = "limit", gauges("limit");
        /// The part of sidelink_limit that is in use now.
        limit_used: Gauges<Bounded> = "limit_used", gauges("limit");
        /// 1 if the last reload of the configuration succeeded or there was none yet; 0 if it was refused: the previous configuration stays in effect.
        pub reload_successful: IntGauge = "config_last_reload_successful", gauge();
        /// When the certificate in use ends, in seconds since the Unix epoch, by use; 0 where there is none.
        pub certificate_expiry: Gauges<CertificateUse> = "tls_certificate_expiry_timestamp_seconds", gauges("use");
        /// Log lines that were dropped: the reader of standard output does not keep up, or standard output does not take them.
        pub log_dropped: IntCounter = "log_dropped_total", counter();
        /// When the configuration in effect was loaded, in seconds since the Unix epoch.
        reload_success_timestamp: IntGauge = "config_last_reload_success_timestamp_seconds", gauge();
        /// The shared tier.
        pub shared: SharedMetrics;
        /// The identity provider.
        pub identity: IdentityMetrics;
        /// What is counted for each batch API.
        pub apis: ApiFamilies;
        /// Spans of sampled requests and of their calls, by result of their export.
        pub spans: Counters<SpanResult> = "spans_total", counters("result");
    }
}

families! {
    /// Families of the shared tier. Without one, all of them stay at 0.
    pub struct SharedMetrics {
        /// 1 at the state of the shared tier: in use (closed), or down and without round trips of batches (open).
        pub breaker_state: Gauges<BreakerState> = "shared_breaker_state", breaker();
        /// Round trips to the shared tier, failed ones included, by purpose.
        pub operations: Counters<Operation> = "shared_operations_total", counters("operation");
        /// Round trips to the shared tier that failed, values in it that cannot be used, and waits for another sidecar that were in vain, by kind.
        pub failures: Counters<SharedFailure> = "shared_failures_total", counters("kind");
        /// 1 at the fingerprint of this sidecar's fleet: a keyed hash of the fleet's secret in use, `shared.prefix`, `upstream.endpoint` and the names of scope headers. Without a shared tier `none` at 0.
        pub fleet_info: FleetInfo = "shared_fleet_info", fleet_info();
        /// Other fleets that use the same server, database and prefix now: neither sees the other's links and purges.
        pub other_fleets: IntGauge = "shared_other_fleets", gauge();
        /// Purges and revocations at this sidecar that the fleet is not told yet; they hold here.
        pub untold: IntGauge = "shared_untold_records", gauge();
        /// Full journals of purges and revocations that this sidecar has continued in another one.
        pub journals_full: IntCounter = "shared_journals_full_total", counter();
        /// Times that purges and revocations were merged into one purge of everything: over 4096 waited to be told to the fleet, or this sidecar missed more of them than the shared tier keeps.
        pub merged: IntCounter = "shared_purges_merged_total", counter();
        /// Seconds of a round trip to the shared tier, failed ones included.
        pub duration: Histogram = "shared_duration_seconds", histogram(&ROUND_TRIP_SECONDS);
    }
}

families! {
    /// Families of the identity provider, `[callers.identity]`, and of users.
    pub struct IdentityMetrics {
        /// Questions who stands behind a token, by result. Those that come while the same one is asked are one.
        pub requests: Counters<IdentityResult> = "identity_requests_total", counters("result");
        /// Seconds of a request to the identity provider, for a token or for its set of keys, failed ones included.
        pub duration: Histogram = "identity_duration_seconds", histogram(&CALL_SECONDS);
        /// Requests to the identity provider that are under way now; at most callers.identity.requests.
        pub in_flight: IntGauge = "identity_in_flight", gauge();
        /// Requests to the identity provider that were sent again on a new connection, because a reused one ended before any byte of an answer.
        pub resends: IntCounter = "identity_resends_total", counter();
        /// 1 at the state of requests to the identity provider: all are sent (closed), one after a failure to see (half_open), or none (open).
        pub breaker_state: Gauges<BreakerState> = "identity_breaker_state", breaker();
        /// Users that callers are known to be, by callers.identity or by the users of callers.keys.
        pub users: IntGauge = "identity_users", gauge();
        /// Callers, tokens mostly, that are known to be one of identity_users.
        pub callers: IntGauge = "identity_callers", gauge();
    }
}

impl Metrics {
    /// Sets the gauges of limits: of each, its size and the part in use.
    pub fn show_limits(&self, limits: impl IntoIterator<Item = (Bounded, usize, usize)>) {
        for (bounded, limit, used) in limits {
            self.limit.set(bounded, limit);
            self.limit_used.set(bounded, used);
        }
    }

    /// A configuration is in effect since `unix_seconds`.
    pub fn reloaded(&self, unix_seconds: u64) {
        self.reload_successful.set(1);
        self.reload_success_timestamp.set(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
    }

    /// Shows the breaker's evidence, in the order of [`EvidenceKind::ALL`].
    pub fn show_breaker_evidence(&self, counts: [usize; EvidenceKind::ALL.len()]) {
        for (kind, count) in EvidenceKind::ALL.into_iter().zip(counts) {
            self.breaker_evidence.set(kind, count);
        }
    }

    /// Whether the breaker is not closed.
    pub fn breaker_tripped(&self) -> bool {
        self.breaker_state.of(BreakerState::Closed).get() == 0
    }

    /// Counts an answer.
    pub fn count_response(&self, route: Route, source: Source, code: Code) {
        self.responses.of(route).of(source).of(code).inc();
    }

    /// Observes a request's duration.
    pub fn observe_request(&self, route: Route, outcome: Outcome, seconds: f64) {
        self.request_durations.of(route).of(outcome).observe(seconds);
    }
}

impl SharedMetrics {
    /// Whether the tier is down. False where there is none.
    pub fn is_down(&self) -> bool {
        self.breaker_state.of(BreakerState::Open).get() == 1
    }

    /// Counts a round trip that took `seconds`.
    pub fn count(&self, operation: Operation, seconds: f64) {
        self.operations.of(operation).inc();
        self.duration.observe(seconds);
    }
}

/// Shows the state of a breaker in `gauges`.
pub fn show_state(gauges: &Gauges<BreakerState>, now: BreakerState) {
    for (state, gauge) in gauges.iter() {
        gauge.set(i64::from(state == now));
    }
}

/// Counts something in a gauge until it is dropped, also where its task panics or is cancelled.
pub(crate) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
