//! Families that belong together: limits, the last reload, the shared tier.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::family::{Counters, Gauges, families};
use super::{Bounded, BreakerState, Kind, Operation};
use crate::config::Config;

/// A round trip within one network takes a fraction of a millisecond; the buckets around the default of `shared.timeout` (5 ms)
/// tell a slow tier from one that times out.
const ROUND_TRIP_SECONDS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.5];

families! {
    /// Families of limits.
    pub struct LimitsMetrics {
        /// The configured limit.
        pub limit: Gauges<Bounded> = "limit", gauges("limit");
        /// The part of sidelink_limit that is in use now.
        pub used: Gauges<Bounded> = "limit_used", gauges("limit");
    }
}

impl LimitsMetrics {
    /// Shows what `config` allows.
    pub fn show(&self, config: &Config) {
        for (bounded, most) in [
            (Bounded::Connections, config.limits.connections),
            (Bounded::InFlight, config.limits.in_flight),
            (Bounded::Waiters, config.limits.waiters),
            (Bounded::Exchanges, config.limits.exchanges),
            (Bounded::BatchBodies, config.limits.batch_bodies),
            (Bounded::SignedBodies, config.limits.signed_bodies),
            (Bounded::Calls, config.upstream.calls),
        ] {
            self.limit.set(bounded, most);
        }
    }
}

families! {
    /// The last reload.
    pub struct ReloadMetrics {
        /// 1 if the last reload of the configuration succeeded or there was none yet; 0 if it was refused: the previous configuration stays in effect.
        pub successful: IntGauge = "config_last_reload_successful", flag();
        /// When the configuration in effect was loaded, in seconds since the Unix epoch.
        pub success_timestamp: IntGauge = "config_last_reload_success_timestamp_seconds", gauge();
    }
}

impl ReloadMetrics {
    /// A configuration is in effect since `unix_seconds`.
    pub fn succeeded(&self, unix_seconds: u64) {
        self.successful.set(1);
        self.success_timestamp.set(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
    }

    /// A configuration was refused.
    pub fn failed(&self) {
        self.successful.set(0);
    }
}

families! {
    /// Families of the shared tier. Without one, all of them stay at 0.
    pub struct SharedMetrics {
        /// 1 at the state of the breaker before the shared tier: it lets through every round trip (closed), one probe (half_open), none (open).
        pub breaker_state: Gauges<BreakerState> = "shared_breaker_state", breaker();
        /// Round trips to the shared tier, failed ones included, by purpose.
        pub operations: Counters<Operation> = "shared_operations_total", counters("operation");
        /// Round trips to the shared tier that failed, and values in it that cannot be used, by kind.
        pub failures: Counters<Kind> = "shared_failures_total", counters("kind");
        /// Ids looked up in the shared tier and found usable there.
        pub hits: IntCounter = "shared_hits_total", counter();
        /// Ids looked up in the shared tier that were not there or not usable.
        pub misses: IntCounter = "shared_misses_total", counter();
        /// Seconds of a round trip to the shared tier, failed ones included.
        pub duration: Histogram = "shared_duration_seconds", histogram(&ROUND_TRIP_SECONDS);
    }
}

impl SharedMetrics {
    /// Counts a round trip that took `seconds`.
    pub fn count(&self, operation: Operation, seconds: f64) {
        self.operations.of(operation).inc();
        self.duration.observe(seconds);
    }

    /// Counts a failure.
    pub fn count_failure(&self, kind: Kind) {
        self.failures.of(kind).inc();
    }
}
