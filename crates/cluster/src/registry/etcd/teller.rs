//! Carries out what the map keeper decides.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_env::Clock;
use tracing::{info, warn};

use super::client::{Client, Problem};
use crate::registry::Maps;
use crate::registry::backoff::Complaint;
use crate::registry::map_hint::{MapHint, rank_of};
use crate::registry::map_keeper::{Done, MapKeeper, Note, Step};
use crate::registry::status::Status;

/// Shows one cluster's map, while this process is the one that should.
#[derive(Debug)]
pub(crate) struct Teller {
    pub(crate) client: Arc<Client>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<Status>,
    pub(crate) machine: MapKeeper,
    pub(crate) prefix: String,
    /// How this is called in logs and checks.
    pub(crate) role: String,
}

impl Teller {
    /// Runs until nobody says any more which map it is.
    ///
    /// # Cancellation
    /// Safe to drop; what is shown stays.
    pub(crate) async fn run(mut self, mut maps: Maps) {
        let mut complaint = Complaint::default();
        loop {
            let wanted = maps.borrow_and_update().clone();
            let changed = match &wanted {
                None => {
                    self.is_nobodys();
                    maps.changed().await
                }
                Some(hint) => {
                    self.machine.show(hint.rank);
                    tokio::select! {
                        biased;
                        changed = maps.changed() => changed,
                        () = self.step(hint, &mut complaint) => Ok(()),
                    }
                }
            };
            if changed.is_err() {
                break;
            }
        }
        self.is_nobodys();
    }

    /// Another process is the one that should, or none.
    fn is_nobodys(&self) {
        self.status.forget(&self.role);
        self.status.map_version.store(0, Ordering::Relaxed);
    }

    async fn step(&mut self, hint: &MapHint, complaint: &mut Complaint) {
        let key = hint.key(&self.prefix);
        let done = match self.machine.step(self.clock.now()) {
            Step::Wait(until) => {
                let pause = until.saturating_since(self.clock.now());
                tokio::time::sleep(pause).await;
                return;
            }
            Step::Look => {
                let found = self.client.read(&key).await;
                found.map(|(writing, text)| Done::Found(writing, rank_of(&text)))
            }
            Step::Write(writing) => match hint.text() {
                Ok(text) => {
                    let written = self.client.replace(&key, writing, text).await;
                    written.map(|is_written| match is_written {
                        true => Done::Written,
                        false => Done::Changed,
                    })
                }
                Err(error) => Err(Problem::Refused(error.to_string())),
            },
        };
        let now = self.clock.now();
        let (done, problem) = match done {
            Ok(done) => (done, None),
            Err(problem @ (Problem::Away(_) | Problem::LeaseLost)) => (Done::Away, Some(problem)),
            Err(problem @ Problem::Refused(_)) => (Done::Refused, Some(problem)),
        };
        let version = hint.rank.version;
        match self.machine.done(now, done) {
            Note::Nothing => {}
            Note::Written => {
                Status::count(&self.status.map_writes);
                self.is_shown(version, complaint);
                info!(role = self.role, version, "the cluster map is shown");
            }
            Note::Shown => self.is_shown(version, complaint),
            Note::Newer => {
                self.status.well(&self.role);
                if complaint.is_due(now) {
                    info!(role = self.role, version, "a newer cluster map is shown");
                }
            }
            Note::Failing => {
                let problem = problem.map_or_else(String::new, |problem| problem.to_string());
                self.status.failing(&self.role, &problem);
                if complaint.is_due(now) {
                    warn!(role = self.role, problem, "the registry does not do it");
                }
            }
        }
    }

    fn is_shown(&self, version: u64, complaint: &mut Complaint) {
        if complaint.is_over() {
            info!(role = self.role, "the registry answers again");
        }
        self.status.well(&self.role);
        self.status.map_version.store(version, Ordering::Relaxed);
    }
}
