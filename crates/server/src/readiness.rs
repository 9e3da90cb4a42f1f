//! Whether this node can serve: asked by `/readyz`, the gRPC health service and the start-up.
//!
//! The shards answer here; what else the process has or would like to have adds itself to
//! [`flux_telemetry::Checks`].

use std::fmt;
use std::sync::atomic::Ordering;

use flux_telemetry::checks::{Finding, Need, Report};
use flux_types::{LogIndex, ShardId, Term};
use serde::Serialize;

use crate::context::Context;
use crate::peer::Clockwork;

/// Tells the state of every shard of this node.
pub(crate) trait Readiness: fmt::Debug + Send + Sync + 'static {
    /// All shards, in order of their ids.
    fn shards(&self) -> Vec<ShardReadiness>;

    /// Whether the node is shutting down and wants no new work.
    fn is_draining(&self) -> bool;

    /// What else it finds of itself.
    fn reports(&self) -> Vec<Report> {
        Vec::new()
    }

    /// Whether every shard takes writes, here or by way of here, and the node is not shutting down.
    fn is_ready(&self) -> bool {
        !self.is_draining() && self.shards().iter().all(ShardReadiness::is_served)
    }
}

impl Readiness for Context {
    fn shards(&self) -> Vec<ShardReadiness> {
        self.home
            .shards()
            .iter()
            .map(|shard| {
                let status = shard.status();
                let is_led_elsewhere = self
                    .peers
                    .as_ref()
                    .is_some_and(|peers| !status.is_writable && peers.is_served(shard));
                ShardReadiness {
                    shard: status.id,
                    is_writable: status.is_writable,
                    is_led_elsewhere,
                    members: (status.voters.len(), status.learners.len()),
                    role: status.role.to_string(),
                    term: status.term,
                    committed: status.committed,
                    applied: status.applied,
                    failure: status.failure.map(|failure| failure.to_string()),
                }
            })
            .collect()
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    fn reports(&self) -> Vec<Report> {
        let report = |found: Clockwork| {
            let text = found.describe();
            Report {
                name: "clock".to_owned(),
                // Others lead what it does not: it serves all the same.
                need: Need::Optional,
                finding: if found.is_near() {
                    Finding::Ok(text)
                } else {
                    Finding::Failed(text)
                },
            }
        };
        let found = self.peers.as_ref().map(|peers| peers.clockwork());
        found.map(report).into_iter().collect()
    }
}

/// One shard, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardReadiness {
    /// Which.
    pub(crate) shard: ShardId,
    /// Whether it takes writes here.
    pub(crate) is_writable: bool,
    /// Whether another node is known to lead it, and commands go there.
    pub(crate) is_led_elsewhere: bool,
    /// How many vote and how many follow without a vote, as far as this replica knows.
    pub(crate) members: (usize, usize),
    /// What the replica does: `leader`, `follower` and so on.
    pub(crate) role: String,
    /// Its term.
    pub(crate) term: Term,
    /// Known committed.
    pub(crate) committed: LogIndex,
    /// Applied to the store.
    pub(crate) applied: LogIndex,
    /// Why it cannot go on, if it cannot.
    pub(crate) failure: Option<String>,
}

/// The same in the words and units of JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    shard: u32,
    writable: bool,
    served: bool,
    voters: usize,
    learners: usize,
    role: &'a str,
    term: u64,
    committed_index: u64,
    applied_index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
}

impl ShardReadiness {
    /// Whether its commands are executed, wherever.
    pub(crate) const fn is_served(&self) -> bool {
        self.is_writable || self.is_led_elsewhere
    }

    /// As a JSON object.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(Shown {
            shard: self.shard.get(),
            writable: self.is_writable,
            served: self.is_served(),
            voters: self.members.0,
            learners: self.members.1,
            role: &self.role,
            term: self.term.get(),
            committed_index: self.committed.get(),
            applied_index: self.applied.get(),
            failure: self.failure.as_deref(),
        })
        .unwrap_or_default()
    }

    /// As a named check, without which the node is not ready.
    pub(crate) fn report(&self) -> Report {
        let Self {
            role,
            term,
            applied,
            committed,
            ..
        } = self;
        let state = format!("{role} of term {term}, applied {applied} of {committed}");
        let finding = match &self.failure {
            Some(failure) => Finding::Failed(format!("{state}, failed: {failure}")),
            None if self.is_served() => Finding::Ok(state),
            None => Finding::Failed(format!("not writable, {state}")),
        };
        Report {
            name: format!("shard-{}", self.shard),
            need: Need::Required,
            finding,
        }
    }
}
