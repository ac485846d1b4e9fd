//! Every metric family, as a value: registered on a registry that is passed in, every series there from the start.
//!
//! Label sets are closed: no id, path or caller is ever a label.

mod limits;
mod reading;
mod reload;
mod shared;
mod spans;
mod words;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::cache::freshness::Reason;
use crate::caller::Bypass;
use crate::error::Limit;
pub use limits::{Bounded, Limits};
pub use reading::{Buckets, Reading};
pub use reload::Reload;
pub use shared::{Kind, Operation, Shared};
pub use spans::Spans;
pub use words::{IdResult, Outcome, Position, Route, Tally};

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

/// Every family that the product counts in.
pub struct Metrics {
    ids: [IntCounter; 7],
    batches: [IntCounter; 6],
    batch_durations: [Histogram; 6],
    /// Of other routes: forwarded, and failed.
    passthrough_durations: [Histogram; 2],
    /// Distinct ids of each batch.
    pub batch_ids: Histogram,
    /// Calls by what became of them.
    pub upstream_calls: IntCounterVec,
    /// Seconds from a call's departure to its whole answer.
    pub upstream_call_duration: Histogram,
    /// Ids of each call.
    pub upstream_call_ids: Histogram,
    /// Calls under way.
    pub upstream_in_flight: IntGauge,
    /// Further attempts of calls.
    pub upstream_retries: IntCounter,
    /// Requests that were sent again, their connection having been lost.
    pub upstream_resends: IntCounter,
    /// 1 at the breaker's position.
    pub breaker_state: IntGaugeVec,
    /// On what evidence the breaker has opened.
    pub breaker_evidence: IntGaugeVec,
    /// Links and absences in memory.
    pub cache_links: IntGauge,
    /// Bytes of them, bookkeeping included.
    pub cache_bytes: IntGauge,
    /// Bytes that `cache_bytes` may come to.
    pub cache_capacity: IntGauge,
    /// Evictions by cause.
    pub cache_evictions: Evictions,
    /// Seconds until their own expiry of links handed out from memory.
    pub link_life_left: Histogram,
    /// Fresh ids asked again, by cause.
    pub refetched: IntCounterVec,
    /// Local minus endpoint's clock, in seconds.
    pub clock_skew: Gauge,
    /// Links not stored, by reason.
    pub uncacheable: IntCounterVec,
    /// Batches forwarded untouched, by reason.
    pub bypass: IntCounterVec,
    /// Client connections open.
    pub connections: IntGauge,
    /// Batches refused, by limit.
    pub shed: IntCounterVec,
    /// What is bounded, and how much of it is in use.
    pub limits: Limits,
    /// The last reload of the configuration.
    pub reload: Reload,
    /// The shared tier.
    pub shared: Shared,
    /// Tasks alive in the runtime; set at each scrape.
    pub tasks: IntGauge,
    /// Purges, by what they were of.
    pub purges: IntCounterVec,
    /// Marks that purges have left.
    pub purge_marks: IntGauge,
    /// Spans, by what became of them.
    pub spans: Spans,
}

/// The results of a call, in `upstream_calls_total`; refused: by the breaker or a hold, before anything was sent.
pub const CALL_RESULTS: [&str; 7] =
    ["ok", "client_error", "server_error", "error_in_200", "no_answer", "deadline", "refused"];

/// What the breaker counts, in `breaker_evidence`.
pub const EVIDENCE_KINDS: [&str; 7] =
    ["callers", "id_sets", "failed_to_connect", "connections_lost", "failed_answers", "no_answers", "sources_refused"];

/// Why fresh ids are asked again, in `refetched_total`.
pub const REFETCH_CAUSES: [&str; 3] = ["refresh", "revalidate", "client"];

/// What a purge may be of, in `purges_total`: an operator's, or an id that was deleted through sidelink.
pub const PURGES: [&str; 4] = ["ids", "group", "all", "delete"];

impl Metrics {
    /// Registers every family on `registry`.
    ///
    /// # Errors
    /// If a family of the same name is there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let ids = counters(
            registry,
            "ids_total",
            "Distinct ids of batches that were read and admitted, by what became of them. Each is counted once, when its batch ends.",
            "result",
            &IdResult::ALL.map(IdResult::name),
        )?;
        let batches = counters(
            registry,
            "batches_total",
            "Requests of the batch route, by how they were answered.",
            "outcome",
            &Outcome::ALL.map(Outcome::name),
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "sidelink_request_duration_seconds",
                "Seconds from a request's head to its answer's head, by route and outcome. A client that leaves before counts as an error.",
            )
            .buckets(REQUEST_SECONDS.to_vec()),
            &["route", "outcome"],
        )?;
        let duration = |route: Route, outcome: Outcome| durations.with_label_values(&[route.name(), outcome.name()]);
        let batch_durations = Outcome::ALL.map(|outcome| duration(Route::Batch, outcome));
        let passthrough_durations =
            [Outcome::Bypass, Outcome::Error].map(|outcome| duration(Route::Passthrough, outcome));
        registry.register(Box::new(durations.clone()))?;

        let evictions = counters(
            registry,
            "cache_evictions_total",
            "Links and remembered absences that left memory, by cause.",
            "cause",
            &["size", "expired", "explicit"],
        )?;
        let [size, expired, explicit] = evictions;

        let build = IntGaugeVec::new(
            Opts::new("sidelink_build_info", "Always 1; the label is the version that runs."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;

        Ok(Self {
            ids,
            batches,
            batch_durations,
            passthrough_durations,
            batch_ids: histogram(
                registry,
                "batch_ids",
                "Distinct ids of each batch that was read and admitted; the sum is all ids asked for.",
                &BATCH_IDS,
            )?,
            upstream_calls: vector(
                registry,
                "upstream_calls_total",
                "Calls to the endpoint, by what became of them. A call counts once, however often it is tried.",
                "result",
                &CALL_RESULTS,
            )?,
            upstream_call_duration: histogram(
                registry,
                "upstream_call_duration_seconds",
                "Seconds from an attempt's departure to its whole answer, or to its failure.",
                &CALL_SECONDS,
            )?,
            upstream_call_ids: histogram(
                registry,
                "upstream_call_ids",
                "Ids in each attempt of a call; the sum is all ids sent to the endpoint.",
                &CALL_IDS,
            )?,
            upstream_in_flight: gauge(registry, "upstream_in_flight", "Calls to the endpoint that are under way now.")?,
            upstream_retries: counter(
                registry,
                "upstream_retries_total",
                "Attempts of calls beyond the first, after no answer, a 502, 503 or 504.",
            )?,
            upstream_resends: counter(
                registry,
                "upstream_resends_total",
                "Requests, of batches and of other routes, that were sent again on a new connection: theirs had been open before, and ended before any byte of an answer, or HTTP/2 said that they were not processed.",
            )?,
            breaker_evidence: {
                let name = "sidelink_breaker_evidence";
                let help = "On whose failures the breaker before the endpoint has opened, or refuses sources alone, by kind; 0 while it does neither.";
                let evidence = IntGaugeVec::new(Opts::new(name, help), &["kind"])?;
                for kind in EVIDENCE_KINDS {
                    evidence.with_label_values(&[kind]);
                }
                registry.register(Box::new(evidence.clone()))?;
                evidence
            },
            breaker_state: breaker(
                registry,
                "breaker_state",
                "1 at what the breaker before the endpoint lets through: every call (closed), one probe (half_open), none (open).",
            )?,
            cache_links: gauge(registry, "cache_links", "Links and remembered absences in memory now.")?,
            cache_bytes: gauge(registry, "cache_bytes", "Bytes of what is in memory now, its bookkeeping included.")?,
            cache_capacity: gauge(
                registry,
                "cache_capacity_bytes",
                "Bytes that cache_bytes may come to (cache.capacity); beyond that, what is asked for least makes room.",
            )?,
            cache_evictions: Evictions { size, expired, explicit },
            link_life_left: histogram(
                registry,
                "link_life_left_seconds",
                "Seconds that links handed out from memory have left until their own expiry.",
                &LIFE_SECONDS,
            )?,
            refetched: vector(
                registry,
                "refetched_total",
                "Ids that were fresh in memory and fetched all the same, by cause.",
                "cause",
                &REFETCH_CAUSES,
            )?,
            clock_skew: {
                let skew = Gauge::new(
                    "sidelink_clock_skew_seconds",
                    "Seconds that the local clock is ahead of the endpoint's, as of the last call; 0 before the first.",
                )?;
                registry.register(Box::new(skew.clone()))?;
                skew
            },
            uncacheable: vector(
                registry,
                "uncacheable_total",
                "Links passed on and not kept, by reason.",
                "reason",
                &Reason::ALL.map(Reason::name),
            )?,
            bypass: vector(
                registry,
                "bypass_total",
                "Requests of the batch route that were forwarded untouched, by reason.",
                "reason",
                &Bypass::ALL.map(Bypass::name),
            )?,
            connections: gauge(registry, "connections", "Client connections that are open now.")?,
            shed: vector(
                registry,
                "shed_total",
                "Requests refused because a limit was reached, by limit.",
                "limit",
                &Limit::ALL.map(Limit::name),
            )?,
            limits: Limits::new(registry)?,
            reload: Reload::new(registry)?,
            shared: Shared::new(registry)?,
            tasks: gauge(
                registry,
                "tasks",
                "Tasks alive in the runtime now: listeners, connections, calls and housekeeping.",
            )?,
            purges: vector(
                registry,
                "purges_total",
                "Purges by what they were of: ids, a group or all at an operator's demand, or an id whose DELETE has passed through.",
                "target",
                &PURGES,
            )?,
            purge_marks: gauge(
                registry,
                "purge_marks",
                "Marks that purges have left; beyond 65536 the oldest make way for one over everything.",
            )?,
            spans: Spans::new(registry)?,
        })
    }

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
        let [forwarded, failed] = &self.passthrough_durations;
        let duration = match (route, outcome) {
            (Route::Passthrough, Outcome::Error) => Some(failed),
            (Route::Passthrough, _) => Some(forwarded),
            (Route::Batch, outcome) => self.batch_durations.get(outcome as usize),
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

fn vector(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let vector = IntCounterVec::new(Opts::new(format!("sidelink_{name}"), help), &[label])?;
    for value in values {
        vector.with_label_values(&[value]);
    }
    registry.register(Box::new(vector.clone()))?;
    Ok(vector)
}

fn counters<const N: usize>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str; N],
) -> prometheus::Result<[IntCounter; N]> {
    let vector = vector(registry, name, help, label, values)?;
    Ok(values.map(|value| vector.with_label_values(&[value])))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::new(format!("sidelink_{name}"), help).buckets(buckets.to_vec());
    let histogram = Histogram::with_opts(opts)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let gauge = IntGauge::new(format!("sidelink_{name}"), help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(format!("sidelink_{name}"), help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

/// A series for each position, 1 at where a breaker stands.
fn breaker(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    let state = IntGaugeVec::new(Opts::new(format!("sidelink_{name}"), help), &["state"])?;
    show_position(&state, Position::Closed);
    registry.register(Box::new(state.clone()))?;
    Ok(state)
}

/// Shows in `state` where a breaker stands.
pub fn show_position(state: &IntGaugeVec, now: Position) {
    for position in Position::ALL {
        state.with_label_values(&[position.name()]).set(i64::from(position == now));
    }
}
