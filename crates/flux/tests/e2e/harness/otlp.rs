//! A collector of traces that others wrote: the public protobuf packages, in Python.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{command, python, repository, wait_until};

/// A span as the collector decoded it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Span {
    pub(crate) resource: BTreeMap<String, serde_json::Value>,
    pub(crate) scope: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) trace: String,
    pub(crate) span: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) status: String,
    pub(crate) attributes: BTreeMap<String, serde_json::Value>,
    pub(crate) links: Vec<Link>,
}

/// A span that another has to do with.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Link {
    pub(crate) trace: String,
    pub(crate) span: String,
}

impl Span {
    pub(crate) fn service(&self) -> &str {
        self.resource["service.name"].as_str().unwrap_or_default()
    }
}

/// A running collector; killed when dropped.
pub(crate) struct Collector {
    port: u16,
    child: Child,
    /// Open for as long as it is to run.
    _stdin: ChildStdin,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Starts one on a free port; without the packages, `test` is reported as skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let python = python(test)?;
        let script = repository().join("crates/flux/tests/e2e/python/otlp_receiver.py");
        let mut child = command(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let stdin = child.stdin.take().expect("standard input is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        let mut lines = BufReader::new(stdout).lines();
        let port = lines.next().expect("it says its port").expect("in text");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&spans);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let span = serde_json::from_str(&line).expect("a span is JSON");
                received.lock().push(span);
            }
        });
        Some(Self {
            port: port.parse().expect("a port"),
            child,
            _stdin: stdin,
            spans,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All spans received so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().clone()
    }

    /// Waits for a trace to have at least this many spans, and answers them by their begin.
    pub(crate) fn trace(&self, trace: &str, count: usize) -> Vec<Span> {
        let of_trace = || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace == trace);
            spans.sort_by_key(|span| span.begun);
            spans
        };
        wait_until(&format!("{count} spans of trace {trace}"), || {
            of_trace().len() >= count
        });
        of_trace()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
