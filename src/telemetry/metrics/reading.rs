//! The counters at one time, from which the status page takes differences.

use prometheus::Histogram;
use prometheus::core::Metric;

use super::{AttemptResult, CALL_SECONDS, Metrics, REQUEST_SECONDS, Route};

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
    /// Batches by duration: for each bucket, how many took at most its upper bound; the last bound is infinite.
    answers: Vec<u64>,
    /// Calls that were answered, by duration.
    call_durations: Vec<u64>,
}

impl Metrics {
    /// The counters now.
    pub fn reading(&self) -> Reading {
        let mut answers = Vec::new();
        for (_, durations) in self.request_durations.of(Route::Batch).iter() {
            let counts = durations.cumulative();
            answers.resize(counts.len(), 0);
            answers.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A sum of whole numbers.
        let call_ids = self.upstream_call_ids.get_sample_sum() as u64;
        Reading {
            ids: self.ids.iter().map(|(_, counter)| counter.get()).collect(),
            batches: self.batches.iter().map(|(_, counter)| counter.get()).collect(),
            calls: self.upstream_calls.iter().map(|(_, counter)| counter.get()).collect(),
            call_ids,
            answers,
            call_durations: buckets(self.upstream_call_duration.of(AttemptResult::Ok)),
        }
    }
}

fn buckets(histogram: &Histogram) -> Vec<u64> {
    let metric = histogram.metric();
    let counted = metric.get_histogram();
    let finite = counted.get_bucket().iter().map(|bucket| bucket.cumulative_count());
    finite.chain([counted.get_sample_count()]).collect()
}

impl Reading {
    /// The counts since `earlier`.
    pub fn since(&self, earlier: &Reading) -> Reading {
        let differences = |of: fn(&Reading) -> &Vec<u64>| {
            of(self).iter().zip(of(earlier)).map(|(now, earlier)| now.saturating_sub(*earlier)).collect()
        };
        Reading {
            ids: differences(|reading| &reading.ids),
            batches: differences(|reading| &reading.batches),
            calls: differences(|reading| &reading.calls),
            call_ids: self.call_ids.saturating_sub(earlier.call_ids),
            answers: differences(|reading| &reading.answers),
            call_durations: differences(|reading| &reading.call_durations),
        }
    }

    /// A quantile of the batches' durations, in seconds.
    pub fn answer_seconds(&self, quantile: f64) -> Option<f64> {
        quantile_of(&REQUEST_SECONDS, &self.answers, quantile)
    }

    /// A quantile of the calls' durations, in seconds.
    pub fn call_seconds(&self, quantile: f64) -> Option<f64> {
        quantile_of(&CALL_SECONDS, &self.call_durations, quantile)
    }
}

/// The `quantile` (0 to 1) of a histogram, interpolated within its bucket as Prometheus does; the last bound for values beyond
/// it, `None` without values.
fn quantile_of(bounds: &[f64], counts: &[u64], quantile: f64) -> Option<f64> {
    let all = *counts.last().filter(|all| **all > 0)?;
    let rank = quantile * all as f64;
    let (mut low, mut below) = (0.0, 0);
    for (bound, count) in bounds.iter().zip(counts) {
        if *count as f64 >= rank {
            let within = (*count - below) as f64;
            return Some(if within > 0.0 { low + (bound - low) * (rank - below as f64) / within } else { *bound });
        }
        (low, below) = (*bound, *count);
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let histogram = Histogram::with_opts(HistogramOpts::new("h", "h").buckets(vec![1.0, 2.0, 4.0])).unwrap();
        let quantile = |quantile| quantile_of(&[1.0, 2.0, 4.0], &buckets(&histogram), quantile);
        assert_eq!(quantile(0.5), None);
        for value in [0.5, 1.5, 1.5, 3.0] {
            histogram.observe(value);
        }
        assert_eq!((quantile(0.25), quantile(0.5), quantile(0.75)), (Some(1.0), Some(1.5), Some(2.0)));
        assert_eq!(quantile(1.0), Some(4.0));
        histogram.observe(100.0);
        assert_eq!(quantile(1.0), Some(4.0), "beyond the last bound");
    }
}
