//! The forms in which samples are written, and which of them a scraper gets.
//!
//! OpenMetrics 1.0 has what we want, examples (exemplars) with the trace of a request among it;
//! whoever does not ask for it gets the classic text format of Prometheus, which every tool reads.
//! The classic form is made of the other: only the lines that name a family's type differ.

use std::collections::BTreeMap;

use super::Histograms;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Classic,
}

impl Exposition {
    /// What a scraper gets that sends this `Accept` header.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let wants = |media: &str| {
            let mut parameters = media.split(';').map(str::trim);
            let is_named = parameters
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            let weight = parameters.find_map(|parameter| parameter.strip_prefix("q="));
            let weight = weight.and_then(|weight| weight.parse::<f64>().ok());
            is_named && weight.is_none_or(|weight| weight > 0.0)
        };
        if accept.is_some_and(|accept| accept.split(',').any(wants)) {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// Its media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Puts examples behind the buckets that have one. A family's buckets are written row by row, so
/// counting them tells whose each is.
pub(super) fn with_exemplars(text: String, histograms: &BTreeMap<String, Histograms>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut name = "";
    let mut histogram = None;
    let mut bucket = 0;
    for line in text.lines() {
        out.push_str(line);
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            name = rest.split(' ').next().unwrap_or_default();
            histogram = histograms.get(name);
            bucket = 0;
        } else if let Some(histogram) = histogram
            && line
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with("_bucket{"))
        {
            out.push_str(&histogram.exemplar(bucket).unwrap_or_default());
            bucket += 1;
        }
        out.push('\n');
    }
    out
}

/// The classic form: there a family is named as its samples are, an info is a gauge, and nothing
/// marks the end.
pub(super) fn classic(text: &str) -> String {
    // HELP comes before TYPE, which says what becomes of the name.
    let suffix: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => (name, "_total"),
            "info" => (name, "_info"),
            _ => (name, ""),
        })
        .collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF") {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|mark| {
            let (name, rest) = line.strip_prefix(mark)?.split_once(' ')?;
            Some((mark, name, rest))
        });
        match described {
            Some((mark, name, rest)) => {
                let rest = if mark == "# TYPE " && rest == "info" {
                    "gauge"
                } else {
                    rest
                };
                let suffix = suffix.get(name).copied().unwrap_or_default();
                out.extend([mark, name, suffix, " ", rest]);
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}
