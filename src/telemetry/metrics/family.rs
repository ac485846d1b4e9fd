//! `families!` and what a family may be.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

use super::{BreakerState, Evictions, Outcome, RequestDurations, Route, show_position};

/// Declares a struct of families, each `field: Type = "name", method;` of [`Family`], with the HELP text as its doc; or
/// `field: Type;`, a group of families. `new` registers them all.
macro_rules! families {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[doc = $help:literal])+ $vis:vis $field:ident: $type:ty $(= $metric:literal, $kind:ident($($argument:expr),*))?;)+
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[doc = $help])+ $vis $field: $type,)+
        }

        impl $name {
            /// Registers every family on `registry`.
            ///
            /// # Errors
            /// If a family of the same name is there already.
            pub fn new(registry: &prometheus::Registry) -> prometheus::Result<Self> {
                Ok(Self {
                    $($field: families!(@new registry, $type, concat!($($help),+) $(, $metric, $kind($($argument),*))?),)+
                })
            }
        }
    };
    (@new $registry:ident, $type:ty, $help:expr) => {
        <$type>::new($registry)?
    };
    (@new $registry:ident, $type:ty, $help:expr, $metric:literal, $kind:ident($($argument:expr),*)) => {
        $crate::telemetry::metrics::family::Family::new($registry, $metric, $help).$kind($($argument),*)?
    };
}

pub(super) use families;

/// A family that is about to be registered.
pub(super) struct Family<'a> {
    registry: &'a Registry,
    name: String,
    help: &'a str,
}

impl<'a> Family<'a> {
    pub(super) fn new(registry: &'a Registry, name: &str, help: &'a str) -> Self {
        Self { registry, name: format!("sidelink_{name}"), help: help.trim_start() }
    }

    pub(super) fn counter(self) -> Result<IntCounter> {
        self.register(IntCounter::new(&*self.name, self.help)?)
    }

    pub(super) fn gauge(&self) -> Result<IntGauge> {
        self.register(IntGauge::new(&*self.name, self.help)?)
    }

    /// A gauge that begins at 1.
    pub(super) fn flag(self) -> Result<IntGauge> {
        let gauge = self.gauge()?;
        gauge.set(1);
        Ok(gauge)
    }

    /// A gauge of fractions.
    pub(super) fn fraction(self) -> Result<Gauge> {
        self.register(Gauge::new(&*self.name, self.help)?)
    }

    pub(super) fn histogram(self, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::new(&*self.name, self.help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts)?)
    }

    pub(super) fn vector(self, label: &str, values: &[&str]) -> Result<IntCounterVec> {
        let vector = self.register(IntCounterVec::new(self.opts(), &[label])?)?;
        for value in values {
            vector.with_label_values(&[value]);
        }
        Ok(vector)
    }

    pub(super) fn counters<const N: usize>(self, label: &str, values: &[&str; N]) -> Result<[IntCounter; N]> {
        let vector = self.vector(label, values)?;
        Ok(values.map(|value| vector.with_label_values(&[value])))
    }

    pub(super) fn gauges(self, label: &str, values: &[&str]) -> Result<IntGaugeVec> {
        let vector = self.register(IntGaugeVec::new(self.opts(), &[label])?)?;
        for value in values {
            vector.with_label_values(&[value]);
        }
        Ok(vector)
    }

    /// A series for each position of a breaker, 1 at where it stands.
    pub(super) fn position(self) -> Result<IntGaugeVec> {
        let vector = self.gauges("state", &BreakerState::ALL.map(BreakerState::name))?;
        show_position(&vector, BreakerState::Closed);
        Ok(vector)
    }

    pub(super) fn evictions(self) -> Result<Evictions> {
        let [size, expired, explicit] = self.counters("cause", &["size", "expired", "explicit"])?;
        Ok(Evictions { size, expired, explicit })
    }

    pub(super) fn request_durations(self, buckets: &[f64]) -> Result<RequestDurations> {
        let opts = HistogramOpts::new(&*self.name, self.help).buckets(buckets.to_vec());
        let vector = self.register(HistogramVec::new(opts, &["route", "outcome"])?)?;
        let of = |route: Route, outcome: Outcome| vector.with_label_values(&[route.name(), outcome.name()]);
        Ok(RequestDurations {
            batch: Outcome::ALL.map(|outcome| of(Route::Batch, outcome)),
            passthrough: [Outcome::Bypass, Outcome::Error].map(|outcome| of(Route::Passthrough, outcome)),
        })
    }

    pub(super) fn build(self) -> Result<IntGaugeVec> {
        let vector = self.gauges("version", &[env!("CARGO_PKG_VERSION")])?;
        vector.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(vector)
    }

    fn opts(&self) -> Opts {
        Opts::new(&*self.name, self.help)
    }

    fn register<C: Collector + Clone + 'static>(&self, family: C) -> Result<C> {
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}
