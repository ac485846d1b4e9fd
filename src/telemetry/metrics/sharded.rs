//! Counters and histograms of the hit path. Each thread counts in memory of its own, which is summed up when metrics are read:
//! threads that write the same memory wait for each other, and a hit counts in six places. prometheus' own are shared by all
//! threads, and take several times the instructions for an observation (docs/BENCHMARKS.md).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto;

/// Shards of each metric. With more threads than this, several threads share a shard.
const SHARDS: usize = 8;
/// Most buckets of a histogram, the infinite one included.
const BUCKETS: usize = 20;

/// One thread's memory: two cache lines, since processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Shard<T>(T);

type Shards<T> = Arc<[Shard<T>; SHARDS]>;

/// The shard of this thread.
#[allow(clippy::indexing_slicing)] // Less than their number.
fn shard<T>(shards: &Shards<T>) -> &T {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static INDEX: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
    &shards[INDEX.with(|index| *index)].0
}

/// A counter.
#[derive(Clone, Default)]
pub struct Counter(Shards<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Adds `count`.
    pub fn inc_by(&self, count: u64) {
        shard(&self.0).fetch_add(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Default)]
struct Observed {
    buckets: [AtomicU64; BUCKETS],
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Observed {
    fn add(&self, value: f64) {
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // Never fails, and rarely tries again: each thread has a sum of its own.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// A histogram of values that are not negative.
#[derive(Clone)]
pub struct Histogram {
    /// The upper bounds of its buckets but the infinite one, in order.
    bounds: &'static [f64],
    shards: Shards<Observed>,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() < BUCKETS, "a histogram has less than {BUCKETS} bounds");
        Self { bounds, shards: Shards::default() }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().take_while(|bound| value > **bound).count();
        let shard = shard(&self.shards);
        if let Some(bucket) = shard.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        shard.add(value);
    }

    /// Counts many values at once: fastest where they are in order.
    #[allow(clippy::indexing_slicing)] // A bound or the one after.
    pub fn observe_each(&self, values: impl Iterator<Item = f64>) {
        let shard = shard(&self.shards);
        let (mut bucket, mut count, mut sum) = (0, 0, 0.0);
        for value in values {
            let before = bucket;
            while bucket > 0 && value <= self.bounds[bucket - 1] {
                bucket -= 1;
            }
            while bucket < self.bounds.len() && value > self.bounds[bucket] {
                bucket += 1;
            }
            if bucket != before && count > 0 {
                shard.buckets[before].fetch_add(count, Ordering::Relaxed);
                count = 0;
            }
            count += 1;
            sum += value;
        }
        if count > 0 {
            shard.buckets[bucket].fetch_add(count, Ordering::Relaxed);
            shard.add(sum);
        }
    }

    /// How many values were at most as large as each bound, and how many there were.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut count = 0;
        let buckets = 0..=self.bounds.len();
        buckets
            .map(|bucket| {
                let counts = self.shards.iter().filter_map(|shard| shard.0.buckets.get(bucket));
                count += counts.map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
                count
            })
            .collect()
    }

    fn sum(&self) -> f64 {
        self.shards.iter().map(|shard| f64::from_bits(shard.0.sum.load(Ordering::Relaxed))).sum()
    }
}

/// A metric that is exposed as one of prometheus' types.
pub(super) trait Expose: Clone + Send + Sync {
    const TYPE: proto::MetricType;

    fn expose(&self, metric: &mut proto::Metric);
}

impl Expose for Counter {
    const TYPE: proto::MetricType = proto::MetricType::COUNTER;

    fn expose(&self, metric: &mut proto::Metric) {
        let mut counter = proto::Counter::default();
        counter.set_value(self.get() as f64);
        metric.set_counter(counter);
    }
}

impl Expose for Histogram {
    const TYPE: proto::MetricType = proto::MetricType::HISTOGRAM;

    fn expose(&self, metric: &mut proto::Metric) {
        let cumulative = self.cumulative();
        let bucket = |(bound, count): (&f64, &u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(self.bounds.iter().zip(&cumulative).map(bucket).collect());
        histogram.set_sample_count(cumulative.last().copied().unwrap_or(0));
        histogram.set_sample_sum(self.sum());
        metric.set_histogram(histogram);
    }
}

/// The series of a family, each with the values of its labels.
pub(super) struct Series<M> {
    pub(super) desc: Desc,
    pub(super) series: Vec<(Vec<&'static str>, M)>,
}

impl<M: Expose> Collector for Series<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let metric = |(values, series): &(Vec<&'static str>, M)| {
            let label = |(name, value): (&String, &&str)| {
                let mut label = proto::LabelPair::default();
                label.set_name(name.clone());
                label.set_value((*value).to_owned());
                label
            };
            let variable = self.desc.variable_labels.iter().zip(values).map(label);
            let mut labels: Vec<_> = self.desc.const_label_pairs.iter().cloned().chain(variable).collect();
            labels.sort();
            let mut metric = proto::Metric::from_label(labels);
            series.expose(&mut metric);
            metric
        };
        let mut family = proto::MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(M::TYPE);
        family.set_metric(self.series.iter().map(metric).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_summed_up() {
        let (counter, histogram) = (Counter::default(), Histogram::new(&[1.0, 2.0, 4.0]));
        let values = [[0.0, 1.0, 1.5], [2.0, 2.5, 100.0], [3.0, 0.5, 4.0]];
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    counter.inc_by(2);
                    values.iter().for_each(|values| histogram.observe_each(values.iter().copied()));
                    histogram.observe(0.25);
                });
            }
        });
        let threads = 2 * SHARDS as u64;
        assert_eq!(counter.get(), 2 * threads);
        assert_eq!(histogram.cumulative(), [4, 6, 9, 10].map(|count| count * threads));
        assert!((histogram.sum() - 114.75 * threads as f64).abs() < 1e-9);
        // Regression: sums were whole numbers of billionths, and started again at 0 after some hours.
        histogram.observe_each([1e12; 100].into_iter());
        assert!(histogram.sum() > 9.9e13);
    }
}
