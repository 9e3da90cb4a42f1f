//! A Prometheus registry whose metrics are cheap to record and complete to read.
//!
//! A *family* is a name, a help text, a kind, and the names of its labels. The rows of a family,
//! that is, all combinations of label values, are given when it is registered: labels are closed
//! sets, never a key or a path, so the size of a scrape is known. What is already counted
//! elsewhere is read at scrape time by [`Registry::collect`].
//!
//! Hot path: recording is one relaxed addition to a cell that other threads rarely touch
//! ([`cells`]). No lock is taken but at registration and scrape.
//!
//! Names are `flux_<room>_<thing>_<unit>`, in base units (seconds, bytes). A counter is given
//! without `_total`, which the exposition adds.

mod cells;
mod exposition;
mod histogram;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;

pub use cells::{Counter, Counters, Entered, Gauge, Gauges};
pub use exposition::Exposition;
pub use histogram::{Histogram, Histograms, Scale};

/// The label names of a family and all their combinations of values, in the order in which the
/// recorder numbers them.
#[derive(Clone, Debug)]
pub struct Labels {
    names: Vec<&'static str>,
    rows: Vec<Vec<Cow<'static, str>>>,
}

impl Labels {
    /// A family without labels, that is, with one row.
    #[must_use]
    pub fn none() -> Self {
        Self {
            names: Vec::new(),
            rows: vec![Vec::new()],
        }
    }

    /// One label; row `i` has the `i`-th value.
    pub fn one<V: Into<Cow<'static, str>>>(
        name: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        Self {
            names: vec![name],
            rows: values.into_iter().map(|value| vec![value.into()]).collect(),
        }
    }

    /// The same with one more label: row `i * n + j` has the old row `i` and the `j`-th of `n`
    /// values.
    #[must_use]
    pub fn and<V: Into<Cow<'static, str>>>(
        mut self,
        name: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let values: Vec<Cow<'static, str>> = values.into_iter().map(Into::into).collect();
        let extended = |row: &Vec<Cow<'static, str>>, value: &Cow<'static, str>| {
            let mut row = row.clone();
            row.push(value.clone());
            row
        };
        self.rows = self
            .rows
            .iter()
            .flat_map(|row| values.iter().map(move |value| extended(row, value)))
            .collect();
        self.names.push(name);
        self
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a family's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
    /// Constant facts, as labels.
    Info,
}

impl Kind {
    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

/// One family as it is exported, for documentation and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, without the suffix that the exposition adds.
    pub name: String,
    /// What it tells.
    pub help: String,
    /// What its numbers mean.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
}

/// A number of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A signed whole number.
    Signed(i64),
    /// Anything else.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(u64::from(value))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Signed(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(u64::from(value))
    }
}

/// Where metrics are registered and read. Cheap to clone; all clones are one registry.
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    registry: prometheus_client::registry::Registry,
    families: Vec<Family>,
    /// Those that may name examples.
    histograms: BTreeMap<String, Histograms>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// A family and the function that gives its samples.
struct Source<F> {
    family: Family,
    read: F,
}

impl<F> fmt::Debug for Source<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.family.name).finish()
    }
}

impl<F> Collector for Source<F>
where
    F: Fn(&mut Samples<'_, '_>) + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric = encoder.encode_descriptor(
            &self.family.name,
            &self.family.help,
            None,
            self.family.kind.metric_type(),
        )?;
        let mut samples = Samples {
            metric,
            family: &self.family,
            result: Ok(()),
        };
        (self.read)(&mut samples);
        samples.result
    }
}

/// Where a function given to [`Registry::collect`] puts what it has read.
#[derive(Debug)]
pub struct Samples<'a, 'b> {
    metric: MetricEncoder<'a>,
    family: &'b Family,
    result: fmt::Result,
}

impl Samples<'_, '_> {
    /// Adds one sample. `labels` are the values of the family's labels, in order.
    ///
    /// # Panics
    /// If the number of labels is not the family's, or the family is a histogram.
    pub fn push(&mut self, labels: &[&str], value: impl Into<Value>) {
        let labels = self.pairs(labels);
        let value = value.into();
        let kind = self.family.kind;
        assert!(
            kind != Kind::Histogram,
            "{} takes no single numbers",
            self.family.name
        );
        if kind == Kind::Info {
            return self.put(&[], |metric| metric.encode_info(&labels));
        }
        let is_counter = kind == Kind::Counter;
        self.put(&labels, |metric| match value {
            Value::Whole(number) if is_counter => {
                metric.encode_counter::<NoLabelSet, _, f64>(&number, None)
            }
            Value::Float(number) if is_counter => {
                metric.encode_counter::<NoLabelSet, _, f64>(&number, None)
            }
            Value::Signed(number) if is_counter => {
                metric.encode_counter::<NoLabelSet, _, f64>(&number.unsigned_abs(), None)
            }
            Value::Whole(number) => metric.encode_gauge(&number),
            Value::Signed(number) => metric.encode_gauge(&number),
            Value::Float(number) => metric.encode_gauge(&number),
        });
    }

    /// Adds one histogram: pairs of upper bound and the count of observations in that bucket alone
    /// (not cumulative), the last bound being infinity; and the sum of all observations.
    ///
    /// # Panics
    /// If the number of labels is not the family's.
    pub fn push_histogram(&mut self, labels: &[&str], buckets: &[(f64, u64)], sum: f64) {
        let labels = self.pairs(labels);
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.put(&labels, |metric| {
            metric.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
        });
    }

    fn pairs(&self, values: &[&str]) -> Vec<(&'static str, String)> {
        assert_eq!(
            values.len(),
            self.family.labels.len(),
            "labels of {}",
            self.family.name
        );
        let names = self.family.labels.iter().copied();
        names
            .zip(values.iter().map(|value| (*value).to_owned()))
            .collect()
    }

    fn put(
        &mut self,
        labels: &[(&'static str, String)],
        encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) {
        if self.result.is_err() {
            return;
        }
        // A family without labels would be written with empty braces.
        self.result = if labels.is_empty() {
            encode(&mut self.metric)
        } else {
            let encoded = self.metric.encode_family(&labels);
            encoded.and_then(|mut metric| encode(&mut metric))
        };
    }
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a counter without labels.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.counters(name, help, Labels::none()).at(0)
    }

    /// Registers counters, one for each row of `labels`.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn counters(&self, name: &str, help: &str, labels: Labels) -> Counters {
        let counters = Counters::new(labels.len());
        let source = counters.clone();
        self.collect_rows(name, help, Kind::Counter, labels, move |row| {
            Value::Whole(source.get(row))
        });
        counters
    }

    /// Registers a gauge without labels.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.gauges(name, help, Labels::none()).at(0)
    }

    /// Registers gauges, one for each row of `labels`.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, labels: Labels) -> Gauges {
        let gauges = Gauges::new(labels.len());
        let source = gauges.clone();
        self.collect_rows(name, help, Kind::Gauge, labels, move |row| {
            Value::Signed(source.get(row))
        });
        gauges
    }

    /// Registers a histogram without labels.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, scale: Scale) -> Histogram {
        self.histograms(name, help, scale, Labels::none()).at(0)
    }

    /// Registers histograms, one for each row of `labels`.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    #[must_use]
    pub fn histograms(&self, name: &str, help: &str, scale: Scale, labels: Labels) -> Histograms {
        let histograms = Histograms::new(scale, labels.len());
        let source = histograms.clone();
        let Labels { names, rows } = labels;
        self.collect(name, help, Kind::Histogram, &names, move |samples| {
            for (index, row) in rows.iter().enumerate() {
                let read = source.read(index);
                let row: Vec<&str> = row.iter().map(AsRef::as_ref).collect();
                samples.push_histogram(&row, &read.buckets, read.sum);
            }
        });
        let listed = histograms.clone();
        self.shared
            .lock()
            .histograms
            .insert(name.to_owned(), listed);
        histograms
    }

    /// Registers constant facts, such as the version, as labels of one sample.
    ///
    /// # Panics
    /// As [`Registry::collect`].
    pub fn info(&self, name: &str, help: &str, facts: &[(&'static str, &str)]) {
        let names: Vec<&'static str> = facts.iter().map(|(name, _)| *name).collect();
        let values: Vec<String> = facts.iter().map(|(_, value)| (*value).to_owned()).collect();
        self.collect(name, help, Kind::Info, &names, move |samples| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            samples.push(&values, 1_u64);
        });
    }

    /// Registers a family whose numbers `read` tells at every scrape. It must not block.
    ///
    /// # Panics
    /// If the name is taken, or is not one of `flux_<room>_<thing>…` or `process_…` in lower case:
    /// names are written in the source, so this is a mistake there.
    pub fn collect(
        &self,
        name: &str,
        help: &str,
        kind: Kind,
        labels: &[&'static str],
        read: impl Fn(&mut Samples<'_, '_>) + Send + Sync + 'static,
    ) {
        assert!(
            is_metric_name(name),
            "{name:?} is not flux_<room>_<thing>_<unit>"
        );
        let family = Family {
            name: name.to_owned(),
            help: help.to_owned(),
            kind,
            labels: labels.to_vec(),
        };
        let mut shared = self.shared.lock();
        assert!(
            shared.families.iter().all(|other| other.name != name),
            "{name} is registered twice"
        );
        shared.families.push(family.clone());
        let source = Box::new(Source { family, read });
        shared.registry.register_collector(source);
    }

    fn collect_rows(
        &self,
        name: &str,
        help: &str,
        kind: Kind,
        labels: Labels,
        read: impl Fn(usize) -> Value + Send + Sync + 'static,
    ) {
        let Labels { names, rows } = labels;
        self.collect(name, help, kind, &names, move |samples| {
            for (index, row) in rows.iter().enumerate() {
                let row: Vec<&str> = row.iter().map(AsRef::as_ref).collect();
                samples.push(&row, read(index));
            }
        });
    }

    /// Everything registered so far, in order of registration.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        self.shared.lock().families.clone()
    }

    /// All samples in the text form of OpenMetrics, with examples.
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_as(Exposition::OpenMetrics)
    }

    /// All samples in this form.
    #[must_use]
    pub fn encode_as(&self, form: Exposition) -> String {
        let mut out = String::new();
        let shared = self.shared.lock();
        // Writing to a String cannot fail, and no collector of ours makes an error up.
        let result = text::encode(&mut out, &shared.registry);
        debug_assert!(result.is_ok(), "encoding to memory");
        match form {
            Exposition::OpenMetrics => exposition::with_exemplars(out, &shared.histograms),
            Exposition::Classic => exposition::classic(&out),
        }
    }
}

fn is_metric_name(name: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let mut words = name.split('_');
    let count = match words.next() {
        // `flux_build`, whose sample is `flux_build_info`, is of no room.
        Some("flux") if name == "flux_build" => 2,
        Some("flux") => 3,
        Some("process") => 2,
        _ => return false,
    };
    words.clone().count() + 1 >= count && words.all(is_word) && !name.ends_with("_total")
}

#[cfg(test)]
mod tests;
