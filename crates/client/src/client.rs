//! The handle that callers use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_types::{
    Compare, Condition, Entry, ErrorCode, ExpireCondition, Expiry, Outcome, SessionId, Written,
};
use flux_wire::flux::{Body, Operation, Response};
use flux_wire::resp::Value;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::Error;
use crate::node::{Attempt, Node};
use crate::request::{may_write, takes_request_id};
use crate::retry::{Known, Next, after};
use crate::route::Route;
use crate::session::{Session, Ticket};

/// Pause before the second attempt; doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between attempts: about a third of an election.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How old what is known of the cluster may be before somebody asks again.
const ROUTE_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a node may take to describe the cluster.
const ROUTE_PATIENCE: Duration = Duration::from_secs(1);
/// How much of an answer that makes no sense is told.
const ANSWER_BYTES_SHOWN: usize = 80;

/// A handle on a cluster. Cheap to clone; the connections close with the last clone.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    /// Whether reads are answered by whatever replica is asked.
    is_stale: bool,
}

/// Lock order: none of these is held while another is taken, or across an await.
#[derive(Debug)]
struct Inner {
    config: Config,
    seeds: Vec<String>,
    /// The nodes that there is a connection to, by address.
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
    known: Mutex<Picture>,
    numbering: Mutex<Numbering>,
    /// Counts attempts without a known leader, which go round.
    turn: AtomicUsize,
}

/// What is known of the cluster.
#[derive(Debug)]
struct Picture {
    route: Arc<Route>,
    drawn_at: Instant,
    /// Whether somebody is asking for a new one.
    is_asked_for: bool,
}

/// Where numbers for writes come from.
#[derive(Debug)]
enum Numbering {
    /// Nobody has needed one.
    Untried,
    /// From this session.
    From(Arc<Session>),
    /// From nowhere: the nodes know no sessions.
    None,
}

/// How a value is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetOptions {
    /// When it is.
    pub condition: Condition,
    /// What becomes of the deadline.
    pub expiry: Expiry,
    /// Whether the answer tells what was there before.
    pub return_previous: bool,
}

impl Default for SetOptions {
    /// In any case, without a deadline, without telling what was there.
    fn default() -> Self {
        Self {
            condition: Condition::Always,
            expiry: Expiry::Clear,
            return_previous: false,
        }
    }
}

impl Client {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`Error::Connect`] when the node cannot be reached, [`Error::Refused`] when it does not want
    /// this client.
    ///
    /// # Cancellation
    /// Safe: dropping the future closes what was opened.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let seeds = config.address.split(',').map(str::trim);
        let seeds: Vec<String> = seeds
            .filter(|seed| !seed.is_empty())
            .map(str::to_owned)
            .collect();
        let client = Self {
            inner: Arc::new(Inner {
                config,
                seeds,
                nodes: Mutex::default(),
                known: Mutex::new(Picture {
                    route: Arc::default(),
                    drawn_at: Instant::now(),
                    is_asked_for: false,
                }),
                numbering: Mutex::new(Numbering::Untried),
                turn: AtomicUsize::new(0),
            }),
            is_stale: false,
        };
        let mut failure = Error::Closed;
        for seed in client.inner.seeds.clone() {
            match client.node(&seed).await {
                Ok(node) => {
                    client.look(&node).await;
                    return Ok(client);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// A handle on the same cluster whose reads are *stale*: the node that is asked, the first of the
    /// address that can be had, answers from its own replica. What it tells was true once and may
    /// lack what was acknowledged before; it needs no leader and no majority. Writes, and words that
    /// may write, are as ever. A node that knows no stale reads answers as if they had not been
    /// asked for.
    #[must_use]
    pub fn stale_reads(&self) -> Self {
        Self {
            is_stale: true,
            ..self.clone()
        }
    }

    /// The settings it was connected with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// A round trip.
    ///
    /// # Errors
    /// Any [`Error`].
    ///
    /// # Cancellation
    /// Safe. So it is for every method below; a write whose future is dropped may or may not
    /// happen.
    pub async fn ping(&self) -> Result<(), Error> {
        self.call(Operation::Ping {
            payload: Bytes::new(),
        })
        .await
        .map(drop)
    }

    /// The value of a key, or `None` if it is absent.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        Ok(self.get_entry(key).await?.map(|entry| entry.value))
    }

    /// Value, revision and deadline of a key, or `None` if it is absent.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn get_entry(&self, key: impl Into<Bytes>) -> Result<Option<Entry>, Error> {
        let body = self.call(Operation::Get { key: key.into() }).await?.body;
        if let Body::Entry(entry) = body {
            Ok(entry)
        } else {
            Err(unexpected(&body))
        }
    }

    /// Stores a value; the key has no deadline afterwards.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        self.set_with(key, value, SetOptions::default())
            .await
            .map(drop)
    }

    /// Stores a value as the options say; tells whether it was stored.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn set_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: SetOptions,
    ) -> Result<Written, Error> {
        let SetOptions {
            condition,
            expiry,
            return_previous,
        } = options;
        let (key, value) = (key.into(), value.into());
        self.write(Operation::Set {
            key,
            value,
            condition,
            expiry,
            return_previous,
        })
        .await
    }

    /// Deletes a key; tells whether it was there.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        let (key, expected) = (key.into(), Compare::Exists);
        let operation = Operation::Delete {
            key,
            expected,
            return_previous: false,
        };
        Ok(self.write(operation).await?.applied)
    }

    /// Stores a value if the key is as expected; tells whether it was, and what was there.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Compare,
        value: impl Into<Bytes>,
    ) -> Result<Written, Error> {
        let (key, value, expiry) = (key.into(), value.into(), Expiry::Clear);
        self.write(Operation::CompareAndSet {
            key,
            expected,
            value,
            expiry,
        })
        .await
    }

    /// Adds to the number under a key and answers the sum; an absent key counts as 0.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn increment(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let body = self
            .call(Operation::Increment {
                key: key.into(),
                by,
            })
            .await?
            .body;
        if let Body::Integer(sum) = body {
            Ok(sum)
        } else {
            Err(unexpected(&body))
        }
    }

    /// Gives a key this long to live, to the millisecond; tells whether it was there.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn expire(&self, key: impl Into<Bytes>, ttl: Duration) -> Result<bool, Error> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let (key, expiry) = (key.into(), Expiry::In(ttl_ms));
        let condition = ExpireCondition::default();
        let body = self
            .call(Operation::Expire {
                key,
                expiry,
                condition,
            })
            .await?
            .body;
        if let Body::Flag(changed) = body {
            Ok(changed)
        } else {
            Err(unexpected(&body))
        }
    }

    /// Any Redis command as its words, such as `SET`, `key`, `value`. An error that the node
    /// answers is [`Error::Node`].
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn command(&self, words: Vec<Bytes>) -> Result<Value, Error> {
        let body = self.call(Operation::Command { argv: words }).await?.body;
        if let Body::Value(value) = body {
            Ok(value)
        } else {
            Err(unexpected(&body))
        }
    }

    async fn write(&self, operation: Operation) -> Result<Written, Error> {
        let body = self.call(operation).await?.body;
        if let Body::Written(written) = body {
            Ok(written)
        } else {
            Err(unexpected(&body))
        }
    }

    async fn call(&self, operation: Operation) -> Result<Response, Error> {
        let deadline = Instant::now() + self.inner.config.request_timeout;
        let is_write = may_write(&operation);
        let mut ticket = if takes_request_id(&operation) {
            self.ticket(deadline).await
        } else {
            None
        };
        let mut pause = PAUSE_MIN;
        let mut attempts: u32 = 0;
        // The first failure that left open whether the write was done: no later one unsays it.
        let mut doubt: Option<Error> = None;
        loop {
            attempts += 1;
            let attempt = Attempt {
                operation: operation.clone(),
                request_id: ticket.as_ref().map(Ticket::request_id),
                is_stale: self.is_stale && !is_write,
                deadline,
                uncertain: if is_write {
                    Outcome::Unknown
                } else {
                    Outcome::NotDone
                },
            };
            let (result, carried_id) = self.attempt(attempt, attempts).await;
            let error = match result {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let known = Known {
                is_repeatable: !is_write || carried_id,
                is_first: attempts == 1,
            };
            match after(&error, known) {
                Next::Again => {}
                Next::AgainInNewSession => {
                    self.forget_session(ticket.as_ref());
                    ticket = self.ticket(deadline).await;
                    continue;
                }
                Next::Tell => return Err(doubt.unwrap_or(error)),
            }
            if is_write && error.outcome() != Outcome::NotDone {
                doubt.get_or_insert_with(|| error.clone());
            }
            let now = Instant::now();
            if deadline <= now + pause {
                return Err(doubt.unwrap_or(error));
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
            self.look_again().await;
        }
    }

    /// One attempt, at the node that leads, or, where that is not known or has failed, at any.
    /// Tells too whether it carried its request id: the first attempt goes without one to a node
    /// that understands none, further ones do not, for they may be repetitions.
    async fn attempt(&self, mut attempt: Attempt, number: u32) -> (Result<Response, Error>, bool) {
        let address = if attempt.is_stale {
            self.near(number)
        } else {
            self.place(&attempt.operation, number)
        };
        let node = match self.node(&address).await {
            Ok(node) => node,
            Err(error) => return (Err(error), true),
        };
        if number == 1 && !node.takes_request_ids() {
            attempt.request_id = None;
        }
        let carries_id = attempt.request_id.is_some();
        let result = match node.attempt(attempt).await {
            Ok(answer) => {
                self.look_if_old(&node);
                answer.map_err(Error::Node)
            }
            Err(error) => Err(error),
        };
        (result, carries_id)
    }

    /// Where an operation is sent: to the leader, and every second further attempt to another.
    fn place(&self, operation: &Operation, attempt: u32) -> String {
        let route = Arc::clone(&self.inner.known.lock().route);
        let leader = route.leader_of(operation);
        let is_in_trouble = |address: &str| {
            let nodes = self.inner.nodes.lock();
            nodes.get(address).is_some_and(|node| node.is_in_trouble())
        };
        if let Some(leader) = leader
            && attempt % 2 == 1
            && !is_in_trouble(leader)
        {
            return leader.to_owned();
        }
        let mut others: Vec<&String> = route.nodes().iter().chain(&self.inner.seeds).collect();
        if others.iter().any(|address| !is_in_trouble(address)) {
            others.retain(|address| !is_in_trouble(address));
        }
        let turn = if leader.is_none() && attempt == 1 {
            0
        } else {
            self.inner.turn.fetch_add(1, Ordering::Relaxed)
        };
        let other = others.get(turn % others.len().max(1));
        other.map_or_else(String::new, |address| (*address).clone())
    }

    /// Where a stale read is sent: to the first address that was given, and if that fails, to the
    /// next that is not in trouble.
    fn near(&self, attempt: u32) -> String {
        let seeds = &self.inner.seeds;
        let nodes = self.inner.nodes.lock();
        let is_sound = |address: &&String| {
            let node = nodes.get(*address);
            node.is_none_or(|node| !node.is_in_trouble())
        };
        let skipped = usize::try_from(attempt.saturating_sub(1)).unwrap_or(0);
        let next = seeds.iter().cycle().skip(skipped).take(seeds.len());
        let sound = next.clone().find(is_sound);
        sound
            .or_else(|| next.clone().next())
            .cloned()
            .unwrap_or_default()
    }

    /// The connections to a node, opened if there are none.
    async fn node(&self, address: &str) -> Result<Arc<Node>, Error> {
        let found = self.inner.nodes.lock().get(address).cloned();
        if let Some(node) = found {
            return Ok(node);
        }
        let node = Arc::new(Node::open(&self.inner.config, address).await?);
        let mut nodes = self.inner.nodes.lock();
        let node = nodes.entry(address.to_owned()).or_insert(node);
        Ok(Arc::clone(node))
    }

    /// Asks a node to describe the cluster; what it cannot tell stays as it is.
    async fn look(&self, node: &Node) {
        let words = vec![Bytes::from_static(b"FLUX.TOPOLOGY")];
        let attempt = Attempt {
            operation: Operation::Command { argv: words },
            request_id: None,
            is_stale: false,
            deadline: Instant::now() + ROUTE_PATIENCE,
            uncertain: Outcome::NotDone,
        };
        let answer = node.attempt(attempt).await;
        let mut known = self.inner.known.lock();
        known.is_asked_for = false;
        known.drawn_at = Instant::now();
        if let Ok(Ok(Response {
            body: Body::Value(value),
            ..
        })) = answer
            && let Some(route) = Route::parse(&value)
        {
            known.route = Arc::new(route);
        }
        let route = Arc::clone(&known.route);
        drop(known);
        // Whoever still waits there holds the connections until there is an answer.
        let is_wanted = |address: &String| {
            route.nodes().contains(address) || self.inner.seeds.contains(address)
        };
        let mut nodes = self.inner.nodes.lock();
        nodes.retain(|address, _| route.nodes().is_empty() || is_wanted(address));
    }

    /// After a failure: asks whoever can be reached, unless somebody is asking already.
    async fn look_again(&self) {
        let found = {
            let nodes = self.inner.nodes.lock();
            let mut nodes = nodes.values();
            nodes.find(|node| !node.is_in_trouble()).cloned()
        };
        let Some(node) = found else {
            return;
        };
        let is_asked_for = std::mem::replace(&mut self.inner.known.lock().is_asked_for, true);
        if is_asked_for {
            return;
        }
        let client = self.clone();
        // A task, so that the question ends even if the caller is gone.
        let asking = tokio::spawn(async move { client.look(&node).await });
        drop(asking.await);
    }

    /// In passing: asks again, beside the caller, if what is known is old.
    fn look_if_old(&self, node: &Arc<Node>) {
        let mut known = self.inner.known.lock();
        if known.is_asked_for || known.drawn_at.elapsed() < ROUTE_AGE_MAX {
            return;
        }
        known.is_asked_for = true;
        drop(known);
        let (client, node) = (self.clone(), Arc::clone(node));
        tokio::spawn(async move { client.look(&node).await });
    }

    /// A number for a write; none if the nodes know no sessions, or none can be drawn now.
    async fn ticket(&self, deadline: Instant) -> Option<Ticket> {
        let now = Instant::now();
        match &*self.inner.numbering.lock() {
            Numbering::From(session) => {
                if let Some(ticket) = session.ticket(now) {
                    return Some(ticket);
                }
            }
            Numbering::None => return None,
            Numbering::Untried => {}
        }
        let session = self.draw_session(deadline).await?;
        session.ticket(now)
    }

    /// Draws a session from any node.
    async fn draw_session(&self, deadline: Instant) -> Option<Arc<Session>> {
        let attempt = Attempt {
            operation: Operation::Command {
                argv: vec![Bytes::from_static(b"FLUX.SESSION")],
            },
            request_id: None,
            is_stale: false,
            deadline,
            uncertain: Outcome::NotDone,
        };
        let mut answer = Err(Error::Closed);
        for number in 1..=2 {
            answer = self.attempt(attempt.clone(), number).await.0;
            if !matches!(&answer, Err(error) if error.outcome() == Outcome::NotDone) {
                break;
            }
        }
        let drawn = match answer {
            Ok(Response {
                body: Body::Value(Value::Bulk(text)),
                ..
            }) => SessionId::parse(&text),
            Err(Error::Node(error)) if error.code == ErrorCode::UnknownCommand => {
                *self.inner.numbering.lock() = Numbering::None;
                None
            }
            // Without an id the write is sent once.
            Ok(_) | Err(_) => None,
        };
        let session = Session::new(drawn?, Instant::now());
        *self.inner.numbering.lock() = Numbering::From(Arc::clone(&session));
        Some(session)
    }

    /// Lets the next write draw another session, unless one has been drawn meanwhile.
    fn forget_session(&self, of: Option<&Ticket>) {
        let mut numbering = self.inner.numbering.lock();
        if let (Numbering::From(session), Some(ticket)) = (&*numbering, of)
            && ticket.is_of(session)
        {
            *numbering = Numbering::Untried;
        }
    }
}

fn unexpected(body: &Body) -> Error {
    let mut answer = format!("{body:?}");
    answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_SHOWN));
    Error::Unexpected { answer }
}
