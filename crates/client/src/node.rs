//! One node as a client sees it: its connections, and one attempt at a request.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flux_types::{Outcome, RequestId};
use flux_wire::flux::Operation;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::connection::Link;
use crate::error::Error;
use crate::request::{Answer, Failure, Progress, Request};

/// How long a request waits for a connection that does not take it, before it goes elsewhere.
const UNSENT_PATIENCE: Duration = Duration::from_millis(300);

/// The connections to a node. They close when it is dropped.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) address: String,
    links: Vec<Link>,
    turn: AtomicUsize,
}

/// One attempt at an operation.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) operation: Operation,
    pub(crate) request_id: Option<RequestId>,
    /// Whether a read may be answered by whatever replica the node has.
    pub(crate) is_stale: bool,
    pub(crate) deadline: Instant,
    /// What a failure after sending means.
    pub(crate) uncertain: Outcome,
}

impl Node {
    /// Connects and authenticates.
    pub(crate) async fn open(config: &Config, address: &str) -> Result<Self, Error> {
        let config = Arc::new(Config {
            address: address.to_owned(),
            ..config.clone()
        });
        let mut links = Vec::new();
        for _ in 0..config.connections.max(1) {
            links.push(Link::open(Arc::clone(&config)).await?);
        }
        Ok(Self {
            address: address.to_owned(),
            links,
            turn: AtomicUsize::new(0),
        })
    }

    /// Whether it understands request ids, as far as its last connection has told.
    pub(crate) fn takes_request_ids(&self) -> bool {
        self.links.iter().all(Link::takes_request_ids)
    }

    /// Sends a request once and waits for its answer.
    pub(crate) async fn attempt(&self, attempt: Attempt) -> Result<Answer, Error> {
        let Attempt {
            operation,
            request_id,
            is_stale,
            deadline,
            uncertain,
        } = attempt;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let link = self
            .links
            .get(turn % self.links.len())
            .ok_or(Error::Closed)?;
        let lost = |problem: String| Error::Lost {
            address: self.address.clone(),
            problem,
            outcome: uncertain,
        };
        let progress = Arc::new(Progress::default());
        let (reply, answer) = oneshot::channel();
        let request = Request {
            operation,
            request_id,
            is_stale,
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
        let mut exchange = pin!(exchange);
        let patience = deadline.min(Instant::now() + UNSENT_PATIENCE);
        let answered = match timeout_at(patience, &mut exchange).await {
            Err(_) if patience < deadline => {
                if progress.give_up() {
                    // Nothing takes requests here; another node, or the same one later, may.
                    return Err(self.untaken(link));
                }
                timeout_at(deadline, exchange).await
            }
            answered => answered,
        };
        match answered {
            Ok(answer) => answer?.map_err(|failure| match failure {
                Failure::Lost(problem) => lost(problem),
                Failure::NotSent(problem) => Error::Lost {
                    address: self.address.clone(),
                    problem,
                    outcome: Outcome::NotDone,
                },
                Failure::TooLong(too_long) => Error::TooLong(too_long),
            }),
            Err(_) if progress.give_up() => Err(self.unsent(link)),
            Err(_) => Err(Error::Timeout { outcome: uncertain }),
        }
    }

    /// Whether no connection can be had at the moment.
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.links.iter().any(|link| link.trouble.lock().is_some())
    }

    /// Why a request was taken back that had waited for its connection.
    fn untaken(&self, link: &Link) -> Error {
        let error = self.unsent(link);
        if matches!(error, Error::Connect { .. }) {
            return error;
        }
        Error::Lost {
            address: self.address.clone(),
            problem: "it takes no more requests".to_owned(),
            outcome: Outcome::NotDone,
        }
    }

    /// Why a request was not sent before its deadline.
    fn unsent(&self, link: &Link) -> Error {
        match link.trouble.lock().clone() {
            Some(source) => Error::Connect {
                address: self.address.clone(),
                source,
            },
            None => Error::Timeout {
                outcome: Outcome::NotDone,
            },
        }
    }
}
