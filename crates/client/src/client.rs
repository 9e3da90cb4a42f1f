//! The handle that callers use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_types::{Compare, Condition, Entry, ExpireCondition, Expiry, Outcome, Written};
use flux_wire::flux::{Body, Operation, Response};
use flux_wire::resp::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::connection::Link;
use crate::error::Error;
use crate::request::{Answer, Failure, Progress, Request, may_write};

/// How often a read is asked in all when its connection is lost.
const READ_ATTEMPTS_MAX: usize = 3;
/// How much of an answer that makes no sense is told.
const ANSWER_BYTES_SHOWN: usize = 80;

/// A handle on a node. Cheap to clone; the connections close with the last clone.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    links: Vec<Link>,
    turn: AtomicUsize,
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
        let config = Arc::new(config);
        let mut links = Vec::new();
        for _ in 0..config.connections.max(1) {
            links.push(Link::open(Arc::clone(&config)).await?);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                links,
                turn: AtomicUsize::new(0),
            }),
        })
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
        let uncertain = if may_write(&operation) {
            Outcome::Unknown
        } else {
            Outcome::NotDone
        };
        let mut attempts = 1;
        loop {
            match self.attempt(operation.clone(), deadline, uncertain).await {
                // What changes nothing may be asked again.
                Err(Error::Lost {
                    outcome: Outcome::NotDone,
                    ..
                }) if attempts < READ_ATTEMPTS_MAX => {
                    attempts += 1;
                }
                other => return other?.map_err(Error::Node),
            }
        }
    }

    /// One attempt; `uncertain` is what a failure after sending means.
    async fn attempt(
        &self,
        operation: Operation,
        deadline: Instant,
        uncertain: Outcome,
    ) -> Result<Answer, Error> {
        let inner = &self.inner;
        let turn = inner.turn.fetch_add(1, Ordering::Relaxed);
        let link = inner
            .links
            .get(turn % inner.links.len())
            .ok_or(Error::Closed)?;
        let lost = |problem: String| {
            let address = inner.config.address.clone();
            Error::Lost {
                address,
                problem,
                outcome: uncertain,
            }
        };
        let progress = Arc::new(Progress::default());
        let (reply, answer) = oneshot::channel();
        let request = Request {
            operation,
            deadline,
            progress: Arc::clone(&progress),
            reply,
        };
        let exchange = async {
            link.queue.send(request).await.map_err(|_| Error::Closed)?;
            answer
                .await
                .map_err(|_| lost("the client was closed".to_owned()))
        };
        match timeout_at(deadline, exchange).await {
            Ok(answer) => answer?.map_err(|failure| match failure {
                Failure::Lost(problem) => lost(problem),
                Failure::TooLong(too_long) => Error::TooLong(too_long),
            }),
            Err(_) if progress.give_up() => Err(self.unsent(link)),
            Err(_) => Err(Error::Timeout { outcome: uncertain }),
        }
    }

    /// Why a request was not sent before its deadline.
    fn unsent(&self, link: &Link) -> Error {
        match link.trouble.lock().clone() {
            Some(source) => Error::Connect {
                address: self.inner.config.address.clone(),
                source,
            },
            None => Error::Timeout {
                outcome: Outcome::NotDone,
            },
        }
    }
}

fn unexpected(body: &Body) -> Error {
    let mut answer = format!("{body:?}");
    answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_SHOWN));
    Error::Unexpected { answer }
}
