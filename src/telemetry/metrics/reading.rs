//! The counters at one time, over all batch APIs, from which the status page takes differences.

use std::sync::Arc;

use prometheus::Histogram;
use prometheus::core::Metric;

use super::{
    ApiMetrics, AttemptResult, CALL_SECONDS, Code, Counters, Label, Metrics, Outcome, REQUEST_SECONDS, Route, Source,
};

/// The counters at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Ids, in the order of [`super::IdResult::ALL`].
    pub ids: Vec<u64>,
    /// Batches, in the order of [`super::Outcome::ALL`].
    pub batches: Vec<u64>,
    /// Calls, in the order of [`super::CallResult::ALL`].
    pub calls: Vec<u64>,
    /// Ids sent upstream.
    pub call_ids: u64,
    /// Batches that were forwarded untouched, in the order of [`super::Bypass::ALL`].
    pub bypass: Vec<u64>,
    /// Requests that were refused at a limit, in the order of [`super::Limit::ALL`].
    pub shed: Vec<u64>,
    /// Answers, by route, source and status, each in the order of its values.
    responses: Vec<u64>,
    /// Round trips to the shared tier.
    pub shared_operations: u64,
    /// Failures of the shared tier, in the order of [`super::SharedFailure::ALL`].
    pub shared_failures: Vec<u64>,
    /// Merged purges of the shared tier.
    pub shared_merged: u64,
    /// Log lines that were dropped.
    pub log_dropped: u64,
    /// Batches by duration: for each bucket, how many took at most its upper bound; the last bound is infinite.
    answers: Vec<u64>,
    /// Calls that were answered, by duration.
    call_durations: Vec<u64>,
}

impl Metrics {
    /// The counters now, over all batch APIs.
    pub fn reading(&self) -> Reading {
        let mut answers = Vec::new();
        for (_, durations) in self.request_durations.of(Route::Batch).iter() {
            let counts = durations.cumulative();
            answers.resize(counts.len(), 0);
            answers.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A sum of whole numbers.
        let call_ids = |(_, api): (_, Arc<ApiMetrics>)| api.upstream_call_ids.get_sample_sum() as u64;
        let by_source = self.responses.iter().flat_map(|(_, by_source)| by_source.iter());
        let by_code = by_source.flat_map(|(_, by_code)| by_code.iter());
        Reading {
            ids: self.apis.sums(|api, result| api.ids.of(result).get()),
            batches: self.apis.sums(|api, outcome| api.batches.of(outcome).get()),
            calls: self.apis.sums(|api, result| api.upstream_calls.of(result).get()),
            call_ids: self.apis.all().into_iter().map(call_ids).sum(),
            bypass: self.apis.sums(|api, reason| api.bypass.of(reason).get()),
            shed: values(&self.shed),
            responses: by_code.map(|(_, counter)| counter.get()).collect(),
            shared_operations: values(&self.shared.operations).iter().sum(),
            shared_failures: values(&self.shared.failures),
            shared_merged: self.shared.merged.get(),
            log_dropped: self.log_dropped.get(),
            answers,
            call_durations: buckets(self.upstream_call_duration.of(AttemptResult::Ok)),
        }
    }
}

fn values<L: Label>(counters: &Counters<L>) -> Vec<u64> {
    counters.iter().map(|(_, counter)| counter.get()).collect()
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
        self.combined(earlier, u64::saturating_sub)
    }

    /// The counts of both.
    pub fn plus(&self, other: &Reading) -> Reading {
        self.combined(other, u64::saturating_add)
    }

    /// Combines each count with the same count of `other`.
    fn combined(&self, other: &Reading, combine: fn(u64, u64) -> u64) -> Reading {
        let all = |of: fn(&Reading) -> &Vec<u64>| {
            of(self).iter().zip(of(other)).map(|(one, other)| combine(*one, *other)).collect()
        };
        let one = |of: fn(&Reading) -> u64| combine(of(self), of(other));
        Reading {
            ids: all(|reading| &reading.ids),
            batches: all(|reading| &reading.batches),
            calls: all(|reading| &reading.calls),
            call_ids: one(|reading| reading.call_ids),
            bypass: all(|reading| &reading.bypass),
            shed: all(|reading| &reading.shed),
            responses: all(|reading| &reading.responses),
            shared_operations: one(|reading| reading.shared_operations),
            shared_failures: all(|reading| &reading.shared_failures),
            shared_merged: one(|reading| reading.shared_merged),
            log_dropped: one(|reading| reading.log_dropped),
            answers: all(|reading| &reading.answers),
            call_durations: all(|reading| &reading.call_durations),
        }
    }

    /// Answers on `route` whose source and status are so.
    pub fn responses(&self, route: Route, is_so: impl Fn(Source, Code) -> bool) -> u64 {
        let labels = Route::ALL.into_iter().flat_map(|route| {
            let by_source = Source::ALL.into_iter();
            by_source.flat_map(move |source| Code::ALL.into_iter().map(move |code| (route, source, code)))
        });
        let counts = labels.zip(&self.responses);
        counts.filter(|((of, source, code), _)| *of == route && is_so(*source, *code)).map(|(_, count)| count).sum()
    }

    /// Batches that failed: they got an error, or their clients left. An error in a 200 is known by the outcome alone, the status of
    /// a batch that was forwarded by the answers alone; so where there are both, this is the least that it can be.
    pub fn failed_batches(&self) -> u64 {
        let errors = self.batches.get(Outcome::Error as usize).copied().unwrap_or(0);
        errors.max(self.responses(Route::Batch, |_, code| code.is_error()))
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
