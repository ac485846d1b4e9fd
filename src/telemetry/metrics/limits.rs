//! What is bounded, and how near its bound it is.

use prometheus::IntGaugeVec;

use super::Bounded;
use super::family::families;
use crate::config::Config;

families! {
    /// Families of limits.
    pub struct Limits {
        /// The most that there may be at a time, as configured.
        pub limit: IntGaugeVec = "limit", gauges("limit", &Bounded::ALL.map(Bounded::name));
        /// How much of sidelink_limit is in use now.
        pub used: IntGaugeVec = "limit_used", gauges("limit", &Bounded::ALL.map(Bounded::name));
    }
}

impl Bounded {
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

impl Limits {
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
