//! Samples of the last ten minutes, for the charts of the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{Code, IdResult, Metrics, Reading, Route};

/// The time between two samples.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// The samples of ten minutes.
const MOST: usize = 300;

struct Sample {
    at: Moment,
    /// Milliseconds since the sample before.
    span: u64,
    /// The counts since the sample before.
    counted: Reading,
    links: u64,
    bytes: u64,
    /// The breaker was not closed.
    breaker_tripped: bool,
    /// The shared tier was down.
    tier_down: bool,
}

/// The samples of the last ten minutes.
pub struct History {
    clock: Clock,
    metrics: Arc<Metrics>,
    /// When the process started.
    pub(super) started: Moment,
    samples: Mutex<Samples>,
}

struct Samples {
    /// The number of the last sample; that of the start is 0.
    last: u64,
    /// The time and the counters of the last sample.
    at: Moment,
    reading: Reading,
    samples: VecDeque<Sample>,
}

impl History {
    /// A history that begins now.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let started = clock.now();
        let samples = Samples { last: 0, at: started, reading: metrics.reading(), samples: VecDeque::new() };
        Self { clock, metrics, started, samples: Mutex::new(samples) }
    }

    /// Takes a sample; `links` and `bytes` are in memory now.
    pub fn sample(&self, links: u64, bytes: u64) {
        let (at, reading) = (self.clock.now(), self.metrics.reading());
        let mut state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (span, counted) = (at.since(state.at), reading.since(&state.reading));
        let (breaker_tripped, tier_down) = (self.metrics.breaker_tripped(), self.metrics.shared.is_down());
        if state.samples.len() == MOST {
            state.samples.pop_front();
        }
        state.samples.push_back(Sample { at, span, counted, links, bytes, breaker_tripped, tier_down });
        (state.last, state.at, state.reading) = (state.last + 1, at, reading);
    }

    /// The counts of the last `millis`, up to now.
    pub(super) fn counted_within(&self, millis: u64) -> Reading {
        let (now, reading) = (self.clock.now(), self.metrics.reading());
        let state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let within = state.samples.iter().rev().take_while(|sample| now.since(sample.at) < millis);
        within.fold(reading.since(&state.reading), |sum, sample| sum.plus(&sample.counted))
    }

    /// The counts of the last `millis` for which the shared tier was up from sample to sample.
    pub(super) fn counted_with_tier(&self, millis: u64) -> Reading {
        let (now, reading) = (self.clock.now(), self.metrics.reading());
        let state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let counted_since = reading.since(&state.reading);
        let is_down = self.metrics.shared.is_down();
        let mut until = (&counted_since, is_down);
        let mut sum = reading.since(&reading);
        for sample in state.samples.iter().rev() {
            if until.1 || sample.tier_down {
                return sum;
            }
            sum = sum.plus(until.0);
            if now.since(sample.at) >= millis {
                return sum;
            }
            until = (&sample.counted, sample.tier_down);
        }
        if until.1 { sum } else { sum.plus(until.0) }
    }

    /// When batches began to fail, without `millis` of none that failed since; `None` if none has failed within `millis`.
    pub(super) fn failing_since(&self, millis: u64) -> Option<Moment> {
        self.lasting(millis, |sample| sample.counted.failed_batches() > 0)
    }

    /// When the breaker left the closed state for the last time; `None` before the first sample since.
    pub(super) fn breaker_tripped_since(&self) -> Option<Moment> {
        self.lasting(0, |sample| sample.breaker_tripped)
    }

    /// When the shared tier went down; `None` before the first sample since.
    pub(super) fn tier_down_since(&self) -> Option<Moment> {
        self.lasting(0, |sample| sample.tier_down)
    }

    /// The begin of the oldest sample for which something is so, with gaps of `millis` at most from there to now.
    fn lasting(&self, millis: u64, is_so: impl Fn(&Sample) -> bool) -> Option<Moment> {
        let now = self.clock.now();
        let state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first: Option<Moment> = None;
        for sample in state.samples.iter().rev() {
            let begin = sample.at.before(sample.span);
            if is_so(sample) {
                first = Some(begin);
            } else if first.unwrap_or(now).since(begin) >= millis {
                break;
            }
        }
        first
    }

    /// The samples after the one of number `since`, column by column.
    pub(super) fn after(&self, since: u64) -> Value {
        let state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(state.last.saturating_sub(since)).unwrap_or(MOST);
        let old = state.samples.len().saturating_sub(new);
        let column = |of: &dyn Fn(&Sample) -> Value| state.samples.iter().skip(old).map(of).collect::<Value>();
        let ids = |result: IdResult| column(&|sample| sample.counted.ids.get(result as usize).copied().into());
        let ids: serde_json::Map<_, _> =
            IdResult::ALL.map(|result| (result.name().to_owned(), ids(result))).into_iter().collect();
        let quantiles = |of: fn(&Reading, f64) -> Option<f64>| {
            let quantile = |quantile: f64| column(&|sample| of(&sample.counted, quantile).into());
            json!({ "p50": quantile(0.5), "p99": quantile(0.99) })
        };
        let responses = |route: Route| {
            let class = |is_so: fn(Code) -> bool| {
                column(&|sample| sample.counted.responses(route, |_, code| is_so(code)).into())
            };
            json!({
                "answered": class(|code| !code.is_error()),
                "4xx": class(|code| code.is_error() && !code.is_server_error() && code != Code::ClientLeft),
                "5xx": class(Code::is_server_error),
                "client_left": class(|code| code == Code::ClientLeft),
            })
        };
        json!({
            "last": state.last,
            "most": MOST,
            "at": column(&|sample| sample.at.unix_millis().into()),
            "span": column(&|sample| sample.span.into()),
            "ids": ids,
            "batches": column(&|sample| sample.counted.batches.iter().sum::<u64>().into()),
            "batches_failed": column(&|sample| sample.counted.failed_batches().into()),
            "responses": { "batch": responses(Route::Batch), "passthrough": responses(Route::Passthrough) },
            "calls": column(&|sample| sample.counted.calls.iter().sum::<u64>().into()),
            "calls_failed": column(&|sample| sample.counted.calls.iter().skip(1).sum::<u64>().into()),
            "call_ids": column(&|sample| sample.counted.call_ids.into()),
            "answer_seconds": quantiles(Reading::answer_seconds),
            "call_seconds": quantiles(Reading::call_seconds),
            "links": column(&|sample| sample.links.into()),
            "bytes": column(&|sample| sample.bytes.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::telemetry::metrics::{CallResult, Outcome, Route, Tally};

    #[tokio::test(start_paused = true)]
    async fn a_sample_counts_since_the_sample_before_and_old_samples_are_dropped() {
        let (metrics, clock) = (Arc::new(Metrics::new(&Registry::new()).unwrap()), Clock::simulated(0));
        let api = metrics.apis.of("a").unwrap();
        metrics.observe_request(Route::Batch, Outcome::Miss, 5.0);
        api.batches.of(Outcome::Miss).inc();
        let history = History::new(Arc::clone(&metrics), clock);
        let mut tally = Tally::default();
        tally.add(IdResult::Hit);
        for round in 0..MOST + 2 {
            tokio::time::advance(EVERY).await;
            for _ in 0..round {
                api.count_ids(&tally);
                metrics.observe_request(Route::Batch, Outcome::Hit, 0.01);
                api.batches.of(Outcome::Hit).inc();
                api.upstream_calls.of(CallResult::Ok).inc();
                api.upstream_call_ids.observe(20.0);
            }
            history.sample(round as u64, 0);
        }
        let all = history.after(0);
        let (ids, links) = (all["ids"]["hit"].as_array().unwrap(), all["links"].as_array().unwrap());
        assert_eq!((ids.len(), &ids[0], &ids[MOST - 1], &links[0]), (MOST, &json!(2), &json!(MOST + 1), &json!(2)));
        assert_eq!((&all["last"], &all["span"][0]), (&json!(MOST + 2), &json!(2000)));
        let counts = ["batches", "calls", "calls_failed", "call_ids"].map(|name| all[name][0].as_u64().unwrap());
        assert_eq!(counts, [2, 2, 0, 40]);
        assert_eq!((&all["ids"]["stale"][0], &all["call_seconds"]["p50"][0]), (&json!(0), &Value::Null));
        let p99 = all["answer_seconds"]["p99"][5].as_f64().unwrap();
        assert!((0.005..=0.01).contains(&p99), "{p99}");
        let new = history.after(MOST as u64 + 1);
        assert_eq!((new["at"].as_array().unwrap().len(), &new["batches"]), (1, &json!([MOST + 1])));
        assert_eq!(history.after(u64::MAX)["at"], json!([]));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_last_from_the_first_one_without_a_long_gap_until_now() {
        let (metrics, clock) = (Arc::new(Metrics::new(&Registry::new()).unwrap()), Clock::simulated(0));
        let history = History::new(Arc::clone(&metrics), clock.clone());
        let begin = clock.now();
        let api = metrics.apis.of("a").unwrap();
        let sampled = async |outcome: Option<Outcome>| {
            tokio::time::advance(EVERY).await;
            outcome.inspect(|outcome| api.batches.of(*outcome).inc());
            history.sample(0, 0);
        };
        let since = |gap| history.failing_since(gap).map(|since| since.since(begin));
        sampled(Some(Outcome::Hit)).await;
        assert_eq!(since(10_000), None);
        for outcome in [Some(Outcome::Error), None, Some(Outcome::Hit), Some(Outcome::Error), None] {
            sampled(outcome).await;
        }
        assert_eq!(since(10_000), Some(2000), "the sample before ended then");
        assert_eq!(since(3000), Some(8000));
        api.batches.of(Outcome::Error).inc();
        let failed = [1, 4001, 10_001].map(|span| history.counted_within(span).failed_batches());
        assert_eq!(failed, [1, 2, 3], "what no sample has yet counts too");
        for _ in 0..6 {
            sampled(None).await;
        }
        assert_eq!(since(10_000), None, "it is over");
    }
}
