//! Histograms with buckets at powers of two.
//!
//! Hot path: the bucket of a value is found by counting its bits, and recording is two additions to
//! this thread's lane. Powers of two tell a latency within a factor of two over the whole range
//! from a microsecond to a quarter of a minute, in 25 buckets and without configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::cells::Cells;
use crate::context::TraceContext;

/// What a histogram measures, which fixes its buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Durations, recorded in nanoseconds and shown in seconds: from 1 µs to 17 s.
    Seconds,
    /// Sizes in bytes: from 16 B to 64 MiB.
    Bytes,
    /// Numbers of things: from 1 to about a million.
    Count,
}

impl Scale {
    /// The smallest and the largest finite bucket bound, as powers of two.
    const fn powers(self) -> (u32, u32) {
        match self {
            Self::Seconds => (10, 34),
            Self::Bytes => (4, 26),
            Self::Count => (0, 20),
        }
    }

    /// What a recorded unit is worth in the exported one.
    const fn unit(self) -> f64 {
        match self {
            Self::Seconds => 1e-9,
            Self::Bytes | Self::Count => 1.0,
        }
    }

    /// Buckets, with the last, unbounded one.
    const fn buckets(self) -> usize {
        let (first, last) = self.powers();
        (last - first) as usize + 2
    }

    /// The bucket of a value: the first whose bound is not below it.
    fn bucket(self, value: u64) -> usize {
        let (first, last) = self.powers();
        let power = u64::BITS - value.saturating_sub(1).leading_zeros();
        (power.clamp(first, last + 1) - first) as usize
    }

    /// The bound of a bucket in the exported unit.
    fn bound(self, bucket: usize) -> f64 {
        if bucket + 1 == self.buckets() {
            return f64::INFINITY;
        }
        let (first, _) = self.powers();
        let power = first + u32::try_from(bucket).unwrap_or(u32::MAX - first);
        2_f64.powi(i32::try_from(power).unwrap_or(i32::MAX)) * self.unit()
    }
}

/// A family of histograms, addressed by row.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// For each row its buckets, then the sum.
    cells: Arc<Cells>,
    scale: Scale,
    /// The last recorded request of each bucket, by number over all rows; few, because few requests
    /// are recorded.
    exemplars: Arc<Mutex<BTreeMap<usize, Exemplar>>>,
}

/// A recorded request that was counted in a bucket.
#[derive(Clone, Copy, Debug)]
struct Exemplar {
    trace_id: u128,
    value: u64,
}

/// One row's state.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) sum: f64,
}

impl Histograms {
    pub(super) fn new(scale: Scale, rows: usize) -> Self {
        Self {
            cells: Arc::new(Cells::new(rows * (scale.buckets() + 1))),
            scale,
            exemplars: Arc::default(),
        }
    }

    /// Records a value in the scale's own unit: nanoseconds, bytes or a number.
    pub fn record(&self, row: usize, value: u64) {
        let first = row * (self.scale.buckets() + 1);
        self.cells.add(first + self.scale.bucket(value), 1);
        self.cells.add(first + self.scale.buckets(), value);
    }

    /// Records a duration. Only for [`Scale::Seconds`].
    pub fn record_duration(&self, row: usize, duration: Duration) {
        debug_assert!(self.scale == Scale::Seconds, "{:?}", self.scale);
        self.record(row, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records the duration of a request that belongs to a recorded trace, which the bucket then
    /// names as its example.
    pub fn record_traced(&self, row: usize, duration: Duration, trace: Option<TraceContext>) {
        self.record_duration(row, duration);
        if let Some(trace) = trace.filter(|trace| trace.is_sampled()) {
            let value = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            let bucket = row * self.scale.buckets() + self.scale.bucket(value);
            let trace_id = trace.trace_id();
            let exemplar = Exemplar { trace_id, value };
            self.exemplars.lock().insert(bucket, exemplar);
        }
    }

    /// What stands behind the line of a bucket, counted over all rows, in the OpenMetrics form.
    pub(super) fn exemplar(&self, bucket: usize) -> Option<String> {
        let exemplar = *self.exemplars.lock().get(&bucket)?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a duration of 104 days is precise enough"
        )]
        let value = exemplar.value as f64 * self.scale.unit();
        Some(format!(
            " # {{trace_id=\"{:032x}\"}} {value}",
            exemplar.trace_id
        ))
    }

    /// Number of values recorded in a row.
    #[must_use]
    pub fn count(&self, row: usize) -> u64 {
        let first = row * (self.scale.buckets() + 1);
        (first..first + self.scale.buckets())
            .map(|cell| self.cells.get(cell))
            .sum()
    }

    /// One row by itself.
    #[must_use]
    pub fn at(&self, row: usize) -> Histogram {
        Histogram {
            histograms: self.clone(),
            row,
        }
    }

    pub(super) fn read(&self, row: usize) -> Read {
        let first = row * (self.scale.buckets() + 1);
        let bucket = |index| (self.scale.bound(index), self.cells.get(first + index));
        #[expect(
            clippy::cast_precision_loss,
            reason = "a sum beyond 2^53 loses digits that nobody reads"
        )]
        let sum = self.cells.get(first + self.scale.buckets()) as f64 * self.scale.unit();
        Read {
            buckets: (0..self.scale.buckets()).map(bucket).collect(),
            sum,
        }
    }
}

/// One histogram.
#[derive(Clone, Debug)]
pub struct Histogram {
    histograms: Histograms,
    row: usize,
}

impl Histogram {
    /// Records a value in the scale's own unit: nanoseconds, bytes or a number.
    pub fn record(&self, value: u64) {
        self.histograms.record(self.row, value);
    }

    /// Records a duration. Only for [`Scale::Seconds`].
    pub fn record_duration(&self, duration: Duration) {
        self.histograms.record_duration(self.row, duration);
    }

    /// As [`Histograms::record_traced`].
    pub fn record_traced(&self, duration: Duration, trace: Option<TraceContext>) {
        self.histograms.record_traced(self.row, duration, trace);
    }

    /// Number of values recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histograms.count(self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::Scale;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_is_not_below_it() {
        for scale in [Scale::Seconds, Scale::Bytes, Scale::Count] {
            for bucket in 0..scale.buckets() - 1 {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "bounds are whole and small"
                )]
                let bound = (scale.bound(bucket) / scale.unit()).round() as u64;
                assert_eq!(scale.bucket(bound), bucket, "{scale:?} {bound}");
                assert_eq!(scale.bucket(bound + 1), bucket + 1, "{scale:?} {bound}");
            }
            assert_eq!(scale.bucket(0), 0);
            assert_eq!(scale.bucket(u64::MAX), scale.buckets() - 1);
            assert_eq!(scale.bound(scale.buckets() - 1), f64::INFINITY);
        }
    }
}
