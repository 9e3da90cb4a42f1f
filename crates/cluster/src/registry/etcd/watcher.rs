//! Carries out what the watch loop decides, for one service.

use std::collections::BTreeSet;
use std::sync::Arc;

use flux_env::{Clock, Instant};
use tokio::time::sleep;
use tonic::Streaming;
use tracing::{info, warn};

use super::client::{Client, Problem, problem, text};
use super::proto::WatchResponse;
use super::proto::event::EventType;
use crate::registry::backoff::Complaint;
use crate::registry::endpoint::Endpoint;
use crate::registry::held::Held;
use crate::registry::layout::parse_endpoint;
use crate::registry::status::{Publish, Status};
use crate::registry::watch::{Change, Effect, Need, Seen, WatchLoop};

/// Watches one service's endpoints.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) client: Arc<Client>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<Status>,
    pub(crate) machine: WatchLoop,
    pub(crate) held: Held,
    pub(crate) publish: Publish,
    /// Where its keys are; ends with a slash.
    pub(crate) prefix: String,
    /// How this watch is called in logs and checks.
    pub(crate) role: String,
    pub(crate) complaint: Complaint,
    /// Keys whose values were complained about, so that each is once.
    pub(crate) unreadable: BTreeSet<String>,
}

impl Watcher {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let now = self.clock.now();
            self.expire(now);
            match self.machine.need(now) {
                Need::Wait(until) => sleep(until.saturating_since(now)).await,
                Need::Snapshot => match self.client.snapshot(&self.prefix).await {
                    Ok(snapshot) => {
                        if snapshot.is_cut {
                            warn!(role = self.role, "too many endpoints; some are not used");
                        }
                        self.well();
                        let (revision, entries) = (snapshot.revision, snapshot.entries);
                        self.seen(Seen::Snapshot { revision, entries });
                    }
                    Err(problem) => self.failed(&problem),
                },
                Need::Watch(from) => match self.client.watch(&self.prefix, from).await {
                    Ok((first, stream)) => self.follow(first, stream).await,
                    Err(problem) => self.failed(&problem),
                },
            }
        }
    }

    /// Reads a stream until it is of no use anymore.
    async fn follow(&mut self, first: WatchResponse, mut stream: Streaming<WatchResponse>) {
        self.well();
        let mut message = Some(first);
        loop {
            if let Some(message) = message.take()
                && self.take(message) == Effect::Restart
            {
                return;
            }
            let now = self.clock.now();
            self.expire(now);
            let resync_at = self.machine.resync_at();
            if now >= resync_at {
                return;
            }
            let wake_at = self.held.deadline().unwrap_or(resync_at).min(resync_at);
            let next = tokio::select! {
                next = stream.message() => next,
                () = sleep(wake_at.saturating_since(now)) => continue,
            };
            match next {
                Ok(Some(next)) => message = Some(next),
                Ok(None) => {
                    return self.failed(&Problem::Away("the watch ended".to_owned()));
                }
                Err(status) => return self.failed(&problem("watch", &status)),
            }
        }
    }

    fn take(&mut self, message: WatchResponse) -> Effect {
        let revision = message.header.as_ref().map_or(0, |header| header.revision);
        // The first message may say `created` and only the second one that it is not to be.
        if message.compact_revision > 0 {
            return self.seen(Seen::Compacted);
        }
        if message.canceled {
            let reason = message.cancel_reason;
            let reason = reason.rsplit("etcdserver: ").next().unwrap_or_default();
            self.tell(&Problem::Refused(reason.to_owned()));
            return self.seen(Seen::Cancelled);
        }
        if message.created {
            return self.seen(Seen::Begun(revision));
        }
        if message.events.is_empty() {
            return self.seen(Seen::Progress(revision));
        }
        let changes = message
            .events
            .into_iter()
            .filter_map(|event| {
                let is_delete = event.r#type() == EventType::Delete;
                let found = event.kv?;
                Some(Change {
                    revision: found.mod_revision,
                    key: text(found.key),
                    value: (!is_delete).then_some(found.value),
                })
            })
            .collect();
        self.seen(Seen::Changes(changes))
    }

    fn seen(&mut self, seen: Seen) -> Effect {
        let now = self.clock.now();
        let (before, is_snapshot) = (
            self.machine.resnapshots(),
            matches!(seen, Seen::Snapshot { .. }),
        );
        let effect = self.machine.seen(now, seen);
        if self.machine.resnapshots() > before {
            Status::count(&self.status.resnapshots);
            info!(
                role = self.role,
                "the history has a gap; reading everything anew"
            );
        }
        // A snapshot that changes nothing still says that an empty set is empty.
        if effect == Effect::Changed || is_snapshot {
            self.offer(now);
        }
        effect
    }

    fn offer(&mut self, now: Instant) {
        let mut found = Vec::new();
        let mut unreadable = BTreeSet::new();
        for (key, value) in self.machine.table() {
            match parse_endpoint(value) {
                Ok(endpoint) => found.push(endpoint),
                Err(problem) => {
                    if !self.unreadable.contains(key) {
                        warn!(role = self.role, key, problem, "not an endpoint; left out");
                    }
                    unreadable.insert(key.clone());
                }
            }
        }
        self.unreadable = unreadable;
        let shown = self.held.offer(found, now);
        self.show(shown);
    }

    fn expire(&mut self, now: Instant) {
        let shown = self.held.expire(now);
        self.show(shown);
    }

    fn show(&self, shown: Option<Arc<[Endpoint]>>) {
        if let Some(shown) = shown {
            info!(
                role = self.role,
                endpoints = shown.len(),
                "endpoints have changed"
            );
            self.publish.send_replace(shown);
        }
    }

    fn well(&mut self) {
        self.status.well(&self.role);
        if self.complaint.is_over() {
            info!(role = self.role, "the registry answers again");
        }
    }

    fn failed(&mut self, problem: &Problem) {
        self.seen(Seen::Ended);
        self.tell(problem);
    }

    fn tell(&mut self, problem: &Problem) {
        let problem = problem.to_string();
        self.status.failing(&self.role, &problem);
        if self.complaint.is_due(self.clock.now()) {
            warn!(
                role = self.role,
                problem, "the registry does not answer; the last endpoints stay in use"
            );
        }
    }
}
