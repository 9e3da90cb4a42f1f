//! Clients that write and read while nodes fail, and the judge of what they saw.
//!
//! Each client talks to one node, and to another when that one goes away. A write is never
//! repeated: what was refused has not happened, what was not answered may have. The judge is the
//! linearizability checker; a run in which too little happened proves nothing and fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flux_history::{Action, Demands, Fault, Options, Outcome, Recorder, check};
use parking_lot::Mutex;

use crate::harness::Random;
use crate::harness::resp::encode;

const KEYS: u64 = 12;
/// Pause between a client's requests: the checker's work grows with what overlaps.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a client waits for an answer; beyond the node's own deadline.
const LIMIT: Duration = Duration::from_secs(4);

/// Clients at work.
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Begins every key: what another load has left is none of this one's history.
    prefix: String,
    addresses: Vec<SocketAddr>,
    recorder: Mutex<Recorder>,
    began: Instant,
    is_over: AtomicBool,
    /// Requests that were answered with what they asked for.
    done: AtomicU64,
    /// Requests that failed, whichever way.
    failed: AtomicU64,
    /// The last few failures, for whoever looks for their cause.
    problems: Mutex<Vec<String>>,
}

impl Shared {
    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Load {
    /// Lets so many clients work on the nodes at these addresses.
    pub(super) fn start(addresses: Vec<SocketAddr>, clients: u64) -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::new(Shared {
            prefix: format!("load{}:", LOADS.fetch_add(1, Ordering::Relaxed)),
            addresses,
            recorder: Mutex::new(Recorder::new()),
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            problems: Mutex::new(Vec::new()),
        });
        let threads = (0..clients)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || Client::new(number, &shared).run(&shared))
            })
            .collect();
        Self { shared, threads }
    }

    /// Requests that were answered with what they asked for, so far.
    pub(super) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Requests that failed so far.
    pub(super) fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// The last few failures.
    pub(super) fn problems(&self) -> Vec<String> {
        self.shared.problems.lock().clone()
    }

    /// Waits until so many more requests were done; answers how long that took.
    pub(super) fn wait_done(&self, more: u64, limit: Duration) -> Duration {
        let (from, began) = (self.done(), Instant::now());
        while self.done() < from + more {
            assert!(
                began.elapsed() < limit,
                "{} of {more} requests done within {limit:?}; {:?}",
                self.done() - from,
                self.problems()
            );
            std::thread::park_timeout(Duration::from_millis(2));
        }
        began.elapsed()
    }

    /// Lets the clients work for so long.
    pub(super) fn run_for(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Ends the clients and judges what they saw.
    pub(super) fn judge(self, demands: &Demands) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        let recorder = std::mem::take(&mut *self.shared.recorder.lock());
        let history = recorder.history();
        let summary = match history.meets(demands) {
            Ok(summary) => summary,
            Err(vacuous) => panic!("the run proves nothing: {vacuous}"),
        };
        match check(&history, &Options::default()) {
            Ok(checked) => eprintln!("linearizable: {checked:?} {summary:?}"),
            Err(fault) => {
                if let Fault::Violation(violation) = &fault {
                    let all = history.operations().iter();
                    for operation in all.filter(|other| other.key == violation.last.key) {
                        eprintln!("{operation}");
                    }
                }
                panic!("{fault}");
            }
        }
    }
}

struct Client {
    number: u64,
    random: Random,
    node: usize,
    stream: Option<TcpStream>,
    sequence: u64,
}

impl Client {
    fn new(number: u64, shared: &Shared) -> Self {
        Self {
            number,
            random: Random::new(number),
            node: usize::try_from(number).unwrap_or(0) % shared.addresses.len(),
            stream: None,
            sequence: 0,
        }
    }

    fn run(mut self, shared: &Shared) {
        while !shared.is_over.load(Ordering::SeqCst) {
            if self.stream.is_none() && !self.connect(shared) {
                std::thread::park_timeout(PAUSE * 5);
                continue;
            }
            self.one(shared);
            std::thread::park_timeout(PAUSE);
        }
    }

    fn connect(&mut self, shared: &Shared) -> bool {
        let address = shared.addresses[self.node];
        let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else {
            self.node = (self.node + 1) % shared.addresses.len();
            return false;
        };
        let is_set = stream.set_read_timeout(Some(LIMIT)).is_ok()
            && stream.set_write_timeout(Some(LIMIT)).is_ok()
            && stream.set_nodelay(true).is_ok();
        self.stream = is_set.then_some(stream);
        is_set
    }

    /// One request, recorded.
    fn one(&mut self, shared: &Shared) {
        let prefix = &shared.prefix;
        let lot = self.random.below(100);
        let number = self.random.below(KEYS);
        self.sequence += 1;
        let value = format!("{}.{}", self.number, self.sequence);
        let (key, words, action) = match lot {
            0..45 => {
                let key = format!("{prefix}k{number}");
                (key.clone(), vec!["GET".to_owned(), key], Action::Get)
            }
            45..80 => {
                let key = format!("{prefix}k{number}");
                let words = vec!["SET".to_owned(), key.clone(), value.clone()];
                let value = value.into_bytes().into();
                (
                    key,
                    words,
                    Action::Set {
                        value,
                        ttl_millis: None,
                    },
                )
            }
            80..85 => {
                let key = format!("{prefix}k{number}");
                (key.clone(), vec!["DEL".to_owned(), key], Action::Delete)
            }
            _ => {
                let key = format!("{prefix}n{}", number % 3);
                (
                    key.clone(),
                    vec!["INCR".to_owned(), key],
                    Action::Increment { by: 1 },
                )
            }
        };
        let called = shared.nanos();
        let id = {
            let mut recorder = shared.recorder.lock();
            recorder.call(self.number, key.as_bytes(), action.clone(), called)
        };
        let answer = self.ask(&words);
        let outcome = match &answer {
            Ok(reply) => judge_reply(&action, reply),
            Err(_) => Outcome::Unknown,
        };
        let is_done = !matches!(outcome, Outcome::Failed | Outcome::Unknown);
        shared.recorder.lock().finish(id, outcome, shared.nanos());
        if is_done {
            shared.done.fetch_add(1, Ordering::Relaxed);
        } else {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            let mut problems = shared.problems.lock();
            if 20 <= problems.len() {
                problems.remove(0);
            }
            problems.push(format!("node {}: {words:?}: {answer:?}", self.node + 1));
            drop(problems);
            if answer.is_err() {
                self.stream = None;
                self.node = (self.node + 1) % shared.addresses.len();
            }
        }
    }

    fn ask(&mut self, words: &[String]) -> std::io::Result<String> {
        let stream = self
            .stream
            .as_mut()
            .ok_or(std::io::ErrorKind::NotConnected)?;
        stream.write_all(&encode(words))?;
        let mut reply = Vec::new();
        let mut byte = [0];
        while !is_whole(&reply) {
            stream.read_exact(&mut byte)?;
            reply.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }
}

/// Whether a reply that is no array has arrived.
fn is_whole(reply: &[u8]) -> bool {
    let Some(end) = reply.windows(2).position(|pair| pair == b"\r\n") else {
        return false;
    };
    if reply.first() != Some(&b'$') {
        return true;
    }
    let digits = String::from_utf8_lossy(&reply[1..end]);
    match digits.parse::<i64>() {
        Ok(length) if 0 <= length => {
            end + 2 + usize::try_from(length).unwrap_or(0) + 2 <= reply.len()
        }
        _ => true,
    }
}

/// What a reply says of a request.
fn judge_reply(action: &Action, reply: &str) -> Outcome {
    let line = reply.lines().next().unwrap_or_default();
    if let Some(error) = line.strip_prefix('-') {
        return if error.starts_with("UNCERTAIN") {
            Outcome::Unknown
        } else {
            Outcome::Failed
        };
    }
    let number = || {
        line.strip_prefix(':')
            .and_then(|digits| digits.parse::<i64>().ok())
    };
    match action {
        Action::Get if line == "$-1" => Outcome::Value(None),
        Action::Get => {
            let value = reply.lines().nth(1).unwrap_or_default();
            Outcome::Value(Some(value.as_bytes().into()))
        }
        Action::Set { .. } if line == "+OK" => Outcome::Done,
        Action::Delete => Outcome::Applied(number() == Some(1)),
        Action::Increment { .. } => number().map_or(Outcome::Unknown, Outcome::Number),
        Action::Set { .. } | Action::CompareAndSet { .. } => {
            panic!("{action:?} was answered {reply:?}")
        }
    }
}
