//! Named checks: what a process needs, or would like to have, and whether it is there.
//!
//! Every part adds its own; `/readyz` shows them all in the order in which they were added. What is
//! [`Need::Required`] decides whether the process is ready. What is [`Need::Optional`], such as a
//! registry or a broker, is shown alone: while it is away the process serves without it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Whether the process can serve without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The process is not ready while the check fails.
    Required,
    /// The process is ready all the same.
    Optional,
}

/// What a check found; the text is one line, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well; a few words more, or nothing.
    Ok(String),
    /// Why it is not.
    Failed(String),
}

/// A finding with the check's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which check, as in `shard-0` or `etcd`.
    pub name: String,
    /// Whether the process can serve without it.
    pub need: Need,
    /// What was found.
    pub finding: Finding,
}

impl Report {
    /// Whether all is well.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self.finding, Finding::Ok(_))
    }

    /// Whether this alone makes the process not ready.
    #[must_use]
    pub fn blocks(&self) -> bool {
        !self.is_ok() && self.need == Need::Required
    }
}

/// As one line: `[+]shard-0 ok: …`, `[-]etcd failed: …`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (&self.finding, self.need) {
            (Finding::Ok(text), _) if text.is_empty() => write!(f, "[+]{name} ok"),
            (Finding::Ok(text), _) => write!(f, "[+]{name} ok: {text}"),
            (Finding::Failed(text), Need::Required) => write!(f, "[-]{name} failed: {text}"),
            (Finding::Failed(text), Need::Optional) => {
                write!(f, "[-]{name} failed (serving goes on): {text}")
            }
        }
    }
}

type Read = Arc<dyn Fn() -> Finding + Send + Sync>;

/// The checks of a process. Cheap to clone; all clones are one list.
#[derive(Clone, Default)]
pub struct Checks {
    all: Arc<Mutex<Vec<(String, Need, Read)>>>,
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checks").finish_non_exhaustive()
    }
}

impl Checks {
    /// Without any check, a process is ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check. `read` is called whenever somebody asks; it must not block and must not add
    /// checks.
    pub fn add(
        &self,
        name: impl Into<String>,
        need: Need,
        read: impl Fn() -> Finding + Send + Sync + 'static,
    ) {
        self.all.lock().push((name.into(), need, Arc::new(read)));
    }

    /// Asks every check.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        // Asked outside of the lock, so that a slow check holds up nobody who adds one.
        let all = self.all.lock().clone();
        all.into_iter()
            .map(|(name, need, read)| Report {
                name,
                need,
                finding: read(),
            })
            .collect()
    }
}

/// The body of `/readyz`: a word, then one line for each check if `is_verbose`, else only for those
/// because of which the process is not ready.
#[must_use]
pub fn text(word: &str, reports: &[Report], is_verbose: bool) -> String {
    let mut text = format!("{word}\n");
    for report in reports
        .iter()
        .filter(|report| is_verbose || report.blocks())
    {
        text.push_str(&format!("{report}\n"));
    }
    text
}

/// Whether a query string asks for every check: `verbose` or `verbose=…`.
#[must_use]
pub fn is_verbose(query: &str) -> bool {
    query
        .split('&')
        .any(|name| name == "verbose" || name.starts_with("verbose="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_a_line_and_only_what_is_required_blocks() {
        let checks = Checks::new();
        assert!(checks.reports().is_empty());
        checks.add("shard-0", Need::Required, || Finding::Ok(String::new()));
        checks.add("etcd", Need::Optional, || {
            Finding::Failed("no answer".into())
        });
        let reports = checks.reports();
        assert_eq!(
            text("ready", &reports, true),
            "ready\n[+]shard-0 ok\n[-]etcd failed (serving goes on): no answer\n"
        );
        assert_eq!(text("ready", &reports, false), "ready\n");
        assert!(!reports.iter().any(Report::blocks));
        checks.add("disk", Need::Required, || Finding::Failed("full".into()));
        checks.add("sink", Need::Optional, || Finding::Ok("lag 0".into()));
        let reports = checks.reports();
        assert_eq!(
            text("not ready", &reports, false),
            "not ready\n[-]disk failed: full\n"
        );
        assert_eq!(reports[3].to_string(), "[+]sink ok: lag 0");
    }

    #[test]
    fn the_query_asks_for_everything() {
        assert!(is_verbose("verbose") && is_verbose("a=b&verbose=1"));
        assert!(!is_verbose("") && !is_verbose("verboser"));
    }
}
