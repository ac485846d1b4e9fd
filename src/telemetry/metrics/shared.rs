//! What happens between this process and the shared tier. Without a shared tier all of it stays at 0.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGaugeVec};

use super::family::families;
use super::{Kind, Operation};

/// A round trip within one network takes a fraction of a millisecond; the buckets around the default of `shared.timeout`
/// (5 ms) tell a slow tier from one that is given up on.
const SECONDS: [f64; 13] = [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.5];

families! {
    /// Families of the shared tier.
    pub struct Shared {
        /// 1 at what the breaker before the shared tier lets through: every round trip (closed), one probe (half_open), none (open).
        pub breaker_state: IntGaugeVec = "shared_breaker_state", position();
        /// Round trips to the shared tier, failed ones included, by what they are for.
        pub operations: IntCounterVec = "shared_operations_total", vector("operation", &Operation::ALL.map(Operation::name));
        /// Round trips to the shared tier that failed, and values in it that are of no use, by kind.
        pub failures: IntCounterVec = "shared_failures_total", vector("kind", &Kind::ALL.map(Kind::name));
        /// Ids looked up in the shared tier and found usable there.
        pub hits: IntCounter = "shared_hits_total", counter();
        /// Ids looked up in the shared tier that were not there, or of no use.
        pub misses: IntCounter = "shared_misses_total", counter();
        /// Seconds of a round trip to the shared tier, failed ones included.
        pub duration: Histogram = "shared_duration_seconds", histogram(&SECONDS);
    }
}

impl Shared {
    /// Counts a round trip that took `seconds`.
    pub fn count(&self, operation: Operation, seconds: f64) {
        self.operations.with_label_values(&[operation.name()]).inc();
        self.duration.observe(seconds);
    }

    /// Counts a failure.
    pub fn count_failure(&self, kind: Kind) {
        self.failures.with_label_values(&[kind.name()]).inc();
    }
}
