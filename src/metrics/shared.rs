//! What happens between this process and the shared tier. Without a shared tier all of it stays at 0.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::{breaker, counter, histogram, vector};

/// What a round trip to the shared tier is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Links that memory lacks are looked up.
    Get,
    /// Links that were fetched are written back.
    Put,
    /// A lease on ids about to be fetched is asked for, waited for or given back.
    Lease,
    /// A purge or a revocation is made known to the fleet.
    Revoke,
    /// Purges and revocations of others, and a Cluster's layout, are read while nobody asks.
    Sync,
}

impl Operation {
    /// Every operation, for metrics.
    pub const ALL: [Operation; 5] =
        [Operation::Get, Operation::Put, Operation::Lease, Operation::Revoke, Operation::Sync];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Lease => "lease",
            Operation::Revoke => "revoke",
            Operation::Sync => "sync",
        }
    }
}

/// How the shared tier fails. Each costs hits, never an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection: refused, unreachable, name, certificate or credentials.
    Connect,
    /// No reply within `shared.timeout`.
    Timeout,
    /// The connection broke before the reply was whole.
    Broken,
    /// An error for a reply: out of memory, read-only, no permission, or what is no reply at all.
    Reply,
    /// A value that does not open: altered, moved, or sealed with another secret. It counts as a miss.
    Unsealed,
    /// A value from before a purge, a revocation, or a loss of what the fleet knew of them. It counts as a miss.
    Revoked,
    /// A value past its end, or from the future: its writer's clock, or this one, is off. It counts as a miss.
    Outlived,
    /// Too much is being written already: what was fetched is not shared.
    Busy,
    /// What the fleet knew of purges was lost, went back, or was altered: what is there counts no more.
    Journal,
}

impl Kind {
    /// Every kind, for metrics.
    pub const ALL: [Kind; 9] = [
        Kind::Connect,
        Kind::Timeout,
        Kind::Broken,
        Kind::Reply,
        Kind::Unsealed,
        Kind::Revoked,
        Kind::Outlived,
        Kind::Journal,
        Kind::Busy,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Timeout => "timeout",
            Kind::Broken => "broken",
            Kind::Reply => "reply",
            Kind::Unsealed => "unsealed",
            Kind::Revoked => "revoked",
            Kind::Outlived => "outlived",
            Kind::Journal => "journal",
            Kind::Busy => "busy",
        }
    }
}

/// Families of the shared tier.
pub struct Shared {
    /// 1 at what its breaker lets through.
    pub breaker_state: IntGaugeVec,
    /// Round trips, by [`Operation`].
    pub operations: IntCounterVec,
    /// Failures, by [`Kind`].
    pub failures: IntCounterVec,
    /// Ids looked up and found usable.
    pub hits: IntCounter,
    /// Ids looked up and not found, or of no use.
    pub misses: IntCounter,
    /// Seconds of each round trip, failed ones included.
    pub duration: Histogram,
}

impl Shared {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            breaker_state: breaker(
                registry,
                "shared_breaker_state",
                "1 at what the breaker before the shared tier lets through: every round trip (closed), one probe (half_open), none (open).",
            )?,
            operations: vector(
                registry,
                "shared_operations_total",
                "Round trips to the shared tier, failed ones included, by what they are for.",
                "operation",
                &Operation::ALL.map(Operation::name),
            )?,
            failures: vector(
                registry,
                "shared_failures_total",
                "Round trips to the shared tier that failed, and values in it that are of no use, by kind.",
                "kind",
                &Kind::ALL.map(Kind::name),
            )?,
            hits: counter(registry, "shared_hits_total", "Ids looked up in the shared tier and found usable there.")?,
            misses: counter(
                registry,
                "shared_misses_total",
                "Ids looked up in the shared tier that were not there, or of no use.",
            )?,
            // A round trip within one network takes a fraction of a millisecond; the buckets around `shared.timeout`, 5 ms
            // by default, tell a slow tier from one that is given up on.
            duration: histogram(
                registry,
                "shared_duration_seconds",
                "Seconds of a round trip to the shared tier, failed ones included.",
                &[0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.5],
            )?,
        })
    }

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
