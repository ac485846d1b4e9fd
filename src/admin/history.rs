//! Samples of the last ten minutes, for the charts of the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{IdResult, Metrics, Reading};

/// The time between two samples.
pub const EVERY: Duration = Duration::from_secs(2);
/// The samples of ten minutes.
const MOST: usize = 300;

/// What was counted since the sample before, and the gauges at its end.
struct Sample {
    number: u64,
    at: Moment,
    /// Milliseconds since the sample before.
    span: u64,
    counted: Reading,
    links: u64,
    bytes: u64,
}

/// The samples of the last ten minutes.
pub struct History {
    clock: Clock,
    metrics: Arc<Metrics>,
    started: Moment,
    state: Mutex<Samples>,
}

struct Samples {
    samples: VecDeque<Sample>,
    /// The next sample's number, from 1.
    next: u64,
    last: Reading,
    last_at: Moment,
}

impl History {
    /// A history without samples.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let now = clock.now();
        let state = Samples { samples: VecDeque::new(), next: 1, last: metrics.reading(), last_at: now };
        Self { clock, metrics, started: now, state: Mutex::new(state) }
    }

    /// Takes a sample; `links` and `bytes` are in memory now.
    pub fn sample(&self, links: u64, bytes: u64) {
        let (now, reading) = (self.clock.now(), self.metrics.reading());
        let mut state = self.state();
        let counted = reading.since(&state.last);
        let span = now.since(state.last_at);
        let number = state.next;
        if state.samples.len() == MOST {
            state.samples.pop_front();
        }
        state.samples.push_back(Sample { number, at: now, span, counted, links, bytes });
        state.next += 1;
        (state.last, state.last_at) = (reading, now);
    }

    /// When the process started.
    pub(super) fn started(&self) -> Moment {
        self.started
    }

    /// The samples after the one of number `since`, column by column.
    pub(super) fn after(&self, since: u64) -> Value {
        let state = self.state();
        let samples: Vec<&Sample> = state.samples.iter().filter(|sample| sample.number > since).collect();
        let column = |of: &dyn Fn(&Sample) -> Value| Value::Array(samples.iter().map(|sample| of(sample)).collect());
        let mut ids = serde_json::Map::new();
        for result in IdResult::ALL {
            let of = |sample: &Sample| sample.counted.ids.get(result as usize).copied().into();
            ids.insert(result.name().to_owned(), column(&of));
        }
        let quantiles = |of: fn(&Reading, f64) -> Option<f64>| {
            let quantile = |quantile: f64| column(&|sample| of(&sample.counted, quantile).into());
            json!({ "p50": quantile(0.5), "p99": quantile(0.99) })
        };
        json!({
            "last": state.next - 1,
            "most": MOST,
            "at": column(&|sample| sample.at.unix_millis().into()),
            "span": column(&|sample| sample.span.into()),
            "ids": ids,
            "batches": column(&|sample| sample.counted.batches.iter().sum::<u64>().into()),
            "calls": column(&|sample| sample.counted.calls.iter().sum::<u64>().into()),
            "calls_failed": column(&|sample| sample.counted.calls.iter().skip(1).sum::<u64>().into()),
            "call_ids": column(&|sample| sample.counted.call_ids.into()),
            "answer_seconds": quantiles(Reading::answer_seconds),
            "call_seconds": quantiles(Reading::call_seconds),
            "links": column(&|sample| sample.links.into()),
            "bytes": column(&|sample| sample.bytes.into()),
        })
    }

    fn state(&self) -> MutexGuard<'_, Samples> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::telemetry::metrics::{Outcome, Route, Tally};

    #[tokio::test(start_paused = true)]
    async fn a_sample_counts_since_the_sample_before_and_old_samples_are_dropped() {
        let (metrics, clock) = (Arc::new(Metrics::new(&Registry::new()).unwrap()), Clock::simulated(0));
        let history = History::new(Arc::clone(&metrics), clock);
        let mut tally = Tally::default();
        tally.add(IdResult::Hit);
        for round in 0..MOST + 2 {
            tokio::time::advance(EVERY).await;
            for _ in 0..round {
                metrics.count_ids(&tally);
                metrics.count_request(Route::Batch, Outcome::Hit, 0.01);
            }
            history.sample(round as u64, 0);
        }
        let all = history.after(0);
        let (ids, links) = (all["ids"]["hit"].as_array().unwrap(), all["links"].as_array().unwrap());
        assert_eq!((ids.len(), &ids[0], &ids[MOST - 1], &links[0]), (MOST, &json!(2), &json!(MOST + 1), &json!(2)));
        assert_eq!((&all["last"], &all["span"][0]), (&json!(MOST + 2), &json!(2000)));
        let p99 = all["answer_seconds"]["p99"][5].as_f64().unwrap();
        assert!((0.005..=0.01).contains(&p99), "{p99}");
        let new = history.after(MOST as u64 + 1);
        assert_eq!((new["at"].as_array().unwrap().len(), &new["batches"]), (1, &json!([MOST + 1])));
        assert_eq!(history.after(u64::MAX)["at"], json!([]));
    }
}
