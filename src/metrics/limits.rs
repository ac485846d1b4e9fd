//! What is bounded, and how near its bound it is.

use prometheus::{IntGaugeVec, Opts, Registry};

use crate::config::Config;

/// What is bounded in all, however many callers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounded {
    /// Client connections, by `limits.connections`.
    Connections,
    /// Ids being fetched, by `limits.in_flight`.
    InFlight,
    /// Batches waiting for a call, by `limits.waiters`.
    Waiters,
    /// Requests on other routes, by `limits.exchanges`.
    Exchanges,
    /// Bytes of batches' bodies, by `limits.batch_bodies`.
    BatchBodies,
    /// Bytes of bodies held to be signed again, by `limits.signed_bodies`.
    SignedBodies,
    /// Calls under way, by `upstream.calls`.
    Calls,
}

impl Bounded {
    /// All of them, for metrics.
    pub const ALL: [Bounded; 7] = [
        Bounded::Connections,
        Bounded::InFlight,
        Bounded::Waiters,
        Bounded::Exchanges,
        Bounded::BatchBodies,
        Bounded::SignedBodies,
        Bounded::Calls,
    ];

    /// Its name in metrics; that of what is refused at it, where something is.
    pub fn name(self) -> &'static str {
        match self {
            Bounded::Connections => "connections",
            Bounded::InFlight => "in_flight",
            Bounded::Waiters => "waiters",
            Bounded::Exchanges => "exchanges",
            Bounded::BatchBodies => "batch_bodies",
            Bounded::SignedBodies => "signed_bodies",
            Bounded::Calls => "calls",
        }
    }

    /// What `config` allows.
    fn most(self, config: &Config) -> usize {
        match self {
            Bounded::Connections => config.limits.connections,
            Bounded::InFlight => config.limits.in_flight,
            Bounded::Waiters => config.limits.waiters,
            Bounded::Exchanges => config.limits.exchanges,
            Bounded::BatchBodies => config.limits.batch_bodies,
            Bounded::SignedBodies => config.limits.signed_bodies,
            Bounded::Calls => config.upstream.calls,
        }
    }
}

/// Families of limits.
pub struct Limits {
    limit: IntGaugeVec,
    used: IntGaugeVec,
}

impl Limits {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = |name: &str, help: &str| -> prometheus::Result<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &["limit"])?;
            for bounded in Bounded::ALL {
                family.with_label_values(&[bounded.name()]);
            }
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        Ok(Self {
            limit: family("sidelink_limit", "The most that there may be at a time, as configured.")?,
            used: family("sidelink_limit_used", "How much of sidelink_limit is in use now.")?,
        })
    }

    /// Shows what `config` allows.
    pub fn show(&self, config: &Config) {
        for bounded in Bounded::ALL {
            set(&self.limit, bounded, bounded.most(config));
        }
    }

    /// Shows how much is in use.
    pub fn show_use(&self, bounded: Bounded, used: usize) {
        set(&self.used, bounded, used);
    }
}

fn set(family: &IntGaugeVec, bounded: Bounded, value: usize) {
    family.with_label_values(&[bounded.name()]).set(i64::try_from(value).unwrap_or(i64::MAX));
}
