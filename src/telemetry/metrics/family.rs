//! `families!`, and the kinds of families.

use std::collections::HashMap;
use std::marker::PhantomData;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily};
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

use super::labels::Label;
use super::{BreakerState, Code, Outcome, Route, Source, sharded, show_state};

/// The series of a family with one label, all there from the start.
#[derive(Clone)]
pub struct PerLabel<L, M>(Vec<M>, PhantomData<L>);

/// Counters by one label.
pub type Counters<L> = PerLabel<L, IntCounter>;
/// Gauges by one label.
pub type Gauges<L> = PerLabel<L, IntGauge>;

impl<L: Label, M> PerLabel<L, M> {
    fn new(series: impl Fn(&'static str) -> M) -> Self {
        Self(L::VALUES.iter().map(|(_, value)| series(value)).collect(), PhantomData)
    }

    /// The series of one value.
    #[allow(clippy::indexing_slicing)] // There is one for each value.
    pub fn of(&self, value: L) -> &M {
        &self.0[value.index()]
    }

    /// Every series, in the order of the values.
    pub fn iter(&self) -> impl Iterator<Item = (L, &M)> {
        L::VALUES.iter().map(|(value, _)| *value).zip(&self.0)
    }
}

/// Histograms by route and outcome.
pub(super) type RequestDurations = PerLabel<Route, PerLabel<Outcome, sharded::Histogram>>;

/// Counters by route, source and status.
pub(super) type Responses = PerLabel<Route, PerLabel<Source, PerLabel<Code, sharded::Counter>>>;

impl<L: Label> Gauges<L> {
    /// Sets the gauge of one value.
    pub fn set(&self, value: L, number: usize) {
        self.of(value).set(i64::try_from(number).unwrap_or(i64::MAX));
    }
}

/// A gauge at 1 whose label is the fingerprint of the fleet, or `none` at 0. The fingerprint changes with a reload.
pub struct FleetInfo(IntGaugeVec);

impl FleetInfo {
    const NONE: &str = "none";

    /// Shows the fleet's fingerprint; `None` without a shared tier.
    pub fn show(&self, fingerprint: Option<&str>) {
        let label = fingerprint.unwrap_or(Self::NONE);
        self.0.with_label_values(&[label]).set(i64::from(fingerprint.is_some()));
        let families = self.0.collect();
        let shown = families.iter().flat_map(MetricFamily::get_metric).flat_map(Metric::get_label);
        for other in shown.map(LabelPair::value).filter(|other| *other != label) {
            let _ = self.0.remove_label_values(&[other]);
        }
    }
}

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
            pub fn new<'r>(registry: impl Into<$crate::telemetry::metrics::family::Registrar<'r>>) -> prometheus::Result<Self> {
                let registrar = registry.into();
                Ok(Self {
                    $($field: families!(@new registrar, $type, concat!($($help),+) $(, $metric, $kind($($argument),*))?),)+
                })
            }
        }
    };
    (@new $registrar:ident, $type:ty, $help:expr) => {
        <$type>::new($registrar)?
    };
    (@new $registrar:ident, $type:ty, $help:expr, $metric:literal, $kind:ident($($argument:expr),*)) => {
        $crate::telemetry::metrics::family::Family::new($registrar, $metric, $help).$kind($($argument),*)?
    };
}

pub(super) use families;

/// Where families are registered.
#[derive(Clone, Copy)]
pub struct Registrar<'a> {
    pub(super) registry: &'a Registry,
    /// The label `api` of all their series; `None`: they have no such label.
    pub(super) api: Option<&'a str>,
}

impl<'a> From<&'a Registry> for Registrar<'a> {
    fn from(registry: &'a Registry) -> Self {
        Self { registry, api: None }
    }
}

/// A family that is about to be registered.
pub(super) struct Family<'a> {
    registrar: Registrar<'a>,
    name: String,
    help: &'a str,
}

impl<'a> Family<'a> {
    pub(super) fn new(registrar: Registrar<'a>, name: &str, help: &'a str) -> Self {
        Self { registrar, name: format!("sidelink_{name}"), help: help.trim_start() }
    }

    pub(super) fn counter(self) -> Result<IntCounter> {
        self.register(IntCounter::with_opts(self.opts())?)
    }

    pub(super) fn gauge(self) -> Result<IntGauge> {
        self.register(IntGauge::with_opts(self.opts())?)
    }

    /// A gauge of fractions.
    pub(super) fn fraction(self) -> Result<Gauge> {
        self.register(Gauge::with_opts(self.opts())?)
    }

    pub(super) fn histogram(self, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::from(self.opts()).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts)?)
    }

    pub(super) fn histograms<L: Label>(self, label: &str, buckets: &[f64]) -> Result<PerLabel<L, Histogram>> {
        let opts = HistogramOpts::from(self.opts()).buckets(buckets.to_vec());
        let vector = self.register(HistogramVec::new(opts, &[label])?)?;
        Ok(PerLabel::new(|value| vector.with_label_values(&[value])))
    }

    pub(super) fn counters<L: Label>(self, label: &str) -> Result<Counters<L>> {
        let vector = self.register(IntCounterVec::new(self.opts(), &[label])?)?;
        Ok(PerLabel::new(|value| vector.with_label_values(&[value])))
    }

    pub(super) fn gauges<L: Label>(self, label: &str) -> Result<Gauges<L>> {
        let vector = self.register(IntGaugeVec::new(self.opts(), &[label])?)?;
        Ok(PerLabel::new(|value| vector.with_label_values(&[value])))
    }

    /// A series for each state of a breaker, 1 at the current one.
    pub(super) fn breaker(self) -> Result<Gauges<BreakerState>> {
        let gauges = self.gauges("state")?;
        show_state(&gauges, BreakerState::Closed);
        Ok(gauges)
    }

    pub(super) fn sharded_counter(self) -> Result<sharded::Counter> {
        let counter = sharded::Counter::default();
        self.register_series(&[], vec![(vec![], counter.clone())])?;
        Ok(counter)
    }

    pub(super) fn sharded_counters<L: Label>(self, label: &str) -> Result<PerLabel<L, sharded::Counter>> {
        let counters = PerLabel::new(|_| sharded::Counter::default());
        let series = L::VALUES.iter().map(|(value, name)| (vec![*name], counters.of(*value).clone()));
        self.register_series(&[label], series.collect())?;
        Ok(counters)
    }

    pub(super) fn sharded_histogram(self, bounds: &'static [f64]) -> Result<sharded::Histogram> {
        let histogram = sharded::Histogram::new(bounds);
        self.register_series(&[], vec![(vec![], histogram.clone())])?;
        Ok(histogram)
    }

    pub(super) fn responses(self) -> Result<Responses> {
        let counters: Responses = PerLabel::new(|_| PerLabel::new(|_| PerLabel::new(|_| sharded::Counter::default())));
        let by_source = counters.iter().flat_map(|(route, sources)| {
            sources.iter().flat_map(move |(source, codes)| {
                codes.iter().map(move |(code, counter)| (route, source, code, counter))
            })
        });
        let named = |(route, source, code, counter): (Route, Source, Code, &sharded::Counter)| {
            (vec![code.name(), route.name(), source.name()], counter.clone())
        };
        let series = by_source.map(named).collect();
        self.register_series(&["code", "route", "source"], series)?;
        Ok(counters)
    }

    /// A request that is passed through is a bypass or an error.
    pub(super) fn request_durations(self, bounds: &'static [f64]) -> Result<RequestDurations> {
        let batch = PerLabel::new(|_| sharded::Histogram::new(bounds));
        let [bypass, error] = [(); 2].map(|()| sharded::Histogram::new(bounds));
        let passed = |outcome| if outcome == Outcome::Error.name() { error.clone() } else { bypass.clone() };
        let series = batch.iter().map(|(outcome, histogram)| (Route::Batch, outcome, histogram.clone()));
        let passthrough = [
            (Route::Passthrough, Outcome::Bypass, bypass.clone()),
            (Route::Passthrough, Outcome::Error, error.clone()),
        ];
        let named = |(route, outcome, histogram): (Route, Outcome, _)| (vec![outcome.name(), route.name()], histogram);
        self.register_series(&["outcome", "route"], series.chain(passthrough).map(named).collect())?;
        Ok(PerLabel(vec![batch, PerLabel::new(passed)], PhantomData))
    }

    /// Registers series of these values of labels.
    fn register_series<M: sharded::Expose + 'static>(
        self,
        labels: &[&str],
        series: Vec<(Vec<&'static str>, M)>,
    ) -> Result<()> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(self.name.clone(), self.help.to_owned(), labels, self.const_labels())?;
        self.registrar.registry.register(Box::new(sharded::Series { desc, series }))
    }

    pub(super) fn build(self) -> Result<IntGaugeVec> {
        let vector = self.register(IntGaugeVec::new(self.opts(), &["version", "revision"])?)?;
        vector.with_label_values(&[env!("CARGO_PKG_VERSION"), crate::REVISION]).set(1);
        Ok(vector)
    }

    pub(super) fn fleet_info(self) -> Result<FleetInfo> {
        let info = FleetInfo(self.register(IntGaugeVec::new(self.opts(), &["fingerprint"])?)?);
        info.show(None);
        Ok(info)
    }

    fn opts(&self) -> Opts {
        Opts::new(&*self.name, self.help).const_labels(self.const_labels())
    }

    fn const_labels(&self) -> HashMap<String, String> {
        self.registrar.api.map(|api| ("api".to_owned(), api.to_owned())).into_iter().collect()
    }

    fn register<C: Collector + Clone + 'static>(&self, family: C) -> Result<C> {
        self.registrar.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}
