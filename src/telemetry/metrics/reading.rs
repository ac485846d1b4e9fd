//! The counters at one time, from which the status page takes differences.

use prometheus::Histogram;
use prometheus::core::Metric;

use super::{Counters, Label, Metrics};

/// The counters at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Ids, in the order of [`super::IdResult::ALL`].
    pub ids: Vec<u64>,
    /// Batches, in the order of [`super::Outcome::ALL`].
    pub batches: Vec<u64>,
    /// Calls, in the order of [`super::CallResult::ALL`].
    pub calls: Vec<u64>,
    /// Ids sent upstream.
    pub call_ids: u64,
    /// Durations of batches.
    pub answers: Buckets,
    /// Durations of calls.
    pub call_durations: Buckets,
}

impl Metrics {
    /// The counters now.
    pub fn reading(&self) -> Reading {
        let mut answers = Buckets::default();
        for (_, durations) in self.request_durations.batch.iter() {
            answers.add(durations);
        }
        let mut call_durations = Buckets::default();
        call_durations.add(&self.upstream_call_duration);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A sum of whole numbers.
        let call_ids = self.upstream_call_ids.get_sample_sum() as u64;
        Reading {
            ids: counts(&self.ids),
            batches: counts(&self.batches),
            calls: counts(&self.upstream_calls),
            call_ids,
            answers,
            call_durations,
        }
    }
}

fn counts<L: Label>(counters: &Counters<L>) -> Vec<u64> {
    counters.iter().map(|(_, counter)| counter.get()).collect()
}

impl Reading {
    /// What was counted from `earlier` to here.
    pub fn since(&self, earlier: &Reading) -> Reading {
        Reading {
            ids: differences(&self.ids, &earlier.ids),
            batches: differences(&self.batches, &earlier.batches),
            calls: differences(&self.calls, &earlier.calls),
            call_ids: self.call_ids.saturating_sub(earlier.call_ids),
            answers: self.answers.since(&earlier.answers),
            call_durations: self.call_durations.since(&earlier.call_durations),
        }
    }
}

fn differences(now: &[u64], earlier: &[u64]) -> Vec<u64> {
    now.iter().zip(earlier).map(|(now, earlier)| now.saturating_sub(*earlier)).collect()
}

/// A histogram's counts: of each upper bound, how many lay at or below it. The last bound is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    /// Adds the counts of a histogram with the same bounds.
    fn add(&mut self, histogram: &Histogram) {
        let counted = histogram.metric();
        let counted = counted.get_histogram();
        let finite = counted.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let all = finite.chain([(f64::INFINITY, counted.get_sample_count())]);
        if self.0.is_empty() {
            self.0 = all.collect();
            return;
        }
        for ((_, sum), (_, count)) in self.0.iter_mut().zip(all) {
            *sum += count;
        }
    }

    fn since(&self, earlier: &Buckets) -> Buckets {
        let mut earlier = earlier.0.iter();
        let count =
            |(bound, count): &(f64, u64)| (*bound, count.saturating_sub(earlier.next().map_or(0, |(_, count)| *count)));
        Buckets(self.0.iter().map(count).collect())
    }

    /// The value below which a share of `quantile` lies, from 0 to 1: as if values were spread evenly within their
    /// bucket, as Prometheus has it. The last finite bound where it lies beyond; `None` with no values.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let (_, all) = *self.0.last()?;
        if all == 0 {
            return None;
        }
        let rank = quantile * all as f64;
        let (mut low, mut below) = (0.0, 0);
        for (bound, count) in &self.0 {
            if *count as f64 >= rank {
                if bound.is_infinite() {
                    return Some(low);
                }
                let within = (*count - below) as f64;
                return Some(if within > 0.0 { low + (bound - low) * (rank - below as f64) / within } else { *bound });
            }
            (low, below) = (*bound, *count);
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, Registry};

    use super::super::{CallResult, IdResult, Outcome, Route, Tally};
    use super::*;

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let histogram = Histogram::with_opts(HistogramOpts::new("h", "h").buckets(vec![1.0, 2.0, 4.0])).unwrap();
        let quantile = |quantile| {
            let mut buckets = Buckets::default();
            buckets.add(&histogram);
            buckets.quantile(quantile)
        };
        assert_eq!(quantile(0.5), None);
        for value in [0.5, 1.5, 1.5, 3.0] {
            histogram.observe(value);
        }
        assert_eq!((quantile(0.25), quantile(0.5), quantile(0.75)), (Some(1.0), Some(1.5), Some(2.0)));
        assert_eq!(quantile(1.0), Some(4.0));
        histogram.observe(100.0);
        assert_eq!(quantile(1.0), Some(4.0), "beyond the last bound");
    }

    #[test]
    fn a_reading_is_what_was_counted_since_the_one_before() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let mut tally = Tally::default();
        tally.add(IdResult::Hit);
        metrics.count_ids(&tally);
        metrics.count_request(Route::Batch, Outcome::Hit, 5.0);
        let before = metrics.reading();
        assert_eq!((&before.ids[..], &before.batches[..]), (&[1, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 0, 0, 0][..]));
        metrics.count_ids(&tally);
        for _ in 0..3 {
            metrics.count_request(Route::Batch, Outcome::Miss, 0.001);
        }
        metrics.upstream_calls.of(CallResult::Ok).inc();
        metrics.upstream_call_ids.observe(20.0);
        let since = metrics.reading().since(&before);
        assert_eq!((since.ids[0], since.batches[2], since.calls[0], since.call_ids), (1, 3, 1, 20));
        assert!(since.answers.quantile(0.99).unwrap() <= 0.001, "what was before is not in it");
        assert_eq!(since.call_durations.quantile(0.5), None);
    }
}
