//! Samples of the last ten minutes, for the charts of the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{IdResult, Metrics, Reading};

/// The time between two samples.
pub const EVERY: Duration = Duration::from_secs(2);
/// The samples of ten minutes.
const MOST: usize = 300;

/// The counters and gauges at one time.
struct Sample {
    at: Moment,
    reading: Reading,
    links: u64,
    bytes: u64,
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
    /// The first one is where the second begins.
    samples: VecDeque<Sample>,
}

impl History {
    /// A history that begins now.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let started = clock.now();
        let first = Sample { at: started, reading: metrics.reading(), links: 0, bytes: 0 };
        let samples = Mutex::new(Samples { last: 0, samples: VecDeque::from([first]) });
        Self { clock, metrics, started, samples }
    }

    /// Takes a sample; `links` and `bytes` are in memory now.
    pub fn sample(&self, links: u64, bytes: u64) {
        let sample = Sample { at: self.clock.now(), reading: self.metrics.reading(), links, bytes };
        let mut state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if state.samples.len() > MOST {
            state.samples.pop_front();
        }
        state.samples.push_back(sample);
        state.last += 1;
    }

    /// The samples after the one of number `since`, column by column: what was counted since the sample before, and the
    /// gauges at its end.
    pub(super) fn after(&self, since: u64) -> Value {
        let state = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(state.last.saturating_sub(since)).unwrap_or(MOST);
        let pairs = state.samples.iter().zip(state.samples.iter().skip(1));
        let old = state.samples.len().saturating_sub(1).saturating_sub(new);
        let samples: Vec<(&Sample, u64, Reading)> = pairs
            .skip(old)
            .map(|(before, sample)| (sample, sample.at.since(before.at), sample.reading.since(&before.reading)))
            .collect();
        let column = |of: &dyn Fn(&(&Sample, u64, Reading)) -> Value| samples.iter().map(of).collect::<Value>();
        let mut ids = serde_json::Map::new();
        for result in IdResult::ALL {
            let of = |counted: &Reading| counted.ids.get(result as usize).copied().into();
            ids.insert(result.name().to_owned(), column(&|(_, _, counted)| of(counted)));
        }
        let quantiles = |of: fn(&Reading, f64) -> Option<f64>| {
            let quantile = |quantile: f64| column(&|(_, _, counted)| of(counted, quantile).into());
            json!({ "p50": quantile(0.5), "p99": quantile(0.99) })
        };
        json!({
            "last": state.last,
            "most": MOST,
            "at": column(&|(sample, ..)| sample.at.unix_millis().into()),
            "span": column(&|(_, span, _)| (*span).into()),
            "ids": ids,
            "batches": column(&|(_, _, counted)| counted.batches.iter().sum::<u64>().into()),
            "calls": column(&|(_, _, counted)| counted.calls.iter().sum::<u64>().into()),
            "calls_failed": column(&|(_, _, counted)| counted.calls.iter().skip(1).sum::<u64>().into()),
            "call_ids": column(&|(_, _, counted)| counted.call_ids.into()),
            "answer_seconds": quantiles(Reading::answer_seconds),
            "call_seconds": quantiles(Reading::call_seconds),
            "links": column(&|(sample, ..)| sample.links.into()),
            "bytes": column(&|(sample, ..)| sample.bytes.into()),
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
        metrics.count_request(Route::Batch, Outcome::Miss, 5.0);
        let history = History::new(Arc::clone(&metrics), clock);
        let mut tally = Tally::default();
        tally.add(IdResult::Hit);
        for round in 0..MOST + 2 {
            tokio::time::advance(EVERY).await;
            for _ in 0..round {
                metrics.count_ids(&tally);
                metrics.count_request(Route::Batch, Outcome::Hit, 0.01);
                metrics.upstream_calls.of(CallResult::Ok).inc();
                metrics.upstream_call_ids.observe(20.0);
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
}
