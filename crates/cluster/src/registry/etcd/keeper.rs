//! Carries out what the lease keeper decides.

use std::sync::Arc;
use std::time::Duration;

use flux_env::Clock;
use tokio::sync::watch;
use tracing::{info, warn};

use super::client::{Client, Problem};
use crate::registry::backoff::Complaint;
use crate::registry::layout::Entry;
use crate::registry::lease::{Done, LeaseKeeper, Note, Step};
use crate::registry::status::Status;

/// Keeps one registration.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) client: Arc<Client>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<Status>,
    pub(crate) machine: LeaseKeeper,
    pub(crate) ttl: Duration,
    pub(crate) entries: Vec<Entry>,
    /// How this registration is called in logs and checks.
    pub(crate) role: String,
}

impl Keeper {
    /// Runs until it is told to withdraw, then ends the lease, once.
    ///
    /// # Cancellation
    /// Safe to drop; what is registered then lives until its lease ends.
    pub(crate) async fn run(mut self, mut withdraw: watch::Receiver<bool>) {
        let mut complaint = Complaint::default();
        loop {
            let step = self.machine.step(self.clock.now());
            tokio::select! {
                biased;
                _ = withdraw.wait_for(|is_wanted| *is_wanted) => break,
                () = self.take(step, &mut complaint) => {}
            }
        }
        if let Some(lease) = self.machine.lease() {
            match self.client.revoke(lease).await {
                Ok(()) | Err(Problem::LeaseLost) => info!(role = self.role, "withdrawn"),
                Err(problem) => {
                    warn!(role = self.role, %problem, "not withdrawn; it ends with its lease");
                }
            }
        }
        self.status.forget(&self.role);
    }

    async fn take(&mut self, step: Step, complaint: &mut Complaint) {
        let done = match step {
            Step::Wait(until) => {
                let pause = until.saturating_since(self.clock.now());
                tokio::time::sleep(pause).await;
                return;
            }
            Step::Grant => self
                .client
                .grant(self.ttl)
                .await
                .map(|(lease, ttl)| Done::Granted(lease, ttl)),
            Step::Register(lease) => {
                let put = self.client.put(lease, &self.entries).await;
                put.map(|()| Done::Registered)
            }
            Step::Renew(lease) => self.client.renew(lease).await.map(|()| Done::Renewed),
            Step::Verify(lease) => {
                let is_intact = self.client.is_intact(lease, &self.entries).await;
                is_intact.map(|is_intact| match is_intact {
                    true => Done::Intact,
                    false => Done::Missing,
                })
            }
        };
        let now = self.clock.now();
        let (done, problem) = match done {
            Ok(done) => (done, None),
            Err(Problem::LeaseLost) => (Done::Lost, None),
            Err(problem @ Problem::Away(_)) => (Done::Away, Some(problem)),
            Err(problem @ Problem::Refused(_)) => (Done::Refused, Some(problem)),
        };
        if done == Done::Renewed {
            Status::count(&self.status.lease_renewals);
        }
        match self.machine.done(now, done) {
            Note::Nothing => {}
            Note::Registered => {
                complaint.is_over();
                self.status.well(&self.role);
                info!(role = self.role, "registered");
            }
            Note::Lost => {
                Status::count(&self.status.lease_losses);
                self.status.failing(&self.role, "the lease was lost");
                warn!(role = self.role, "the lease was lost; registering again");
            }
            Note::Missing => {
                self.status.failing(&self.role, "its keys are gone");
                warn!(role = self.role, "keys are gone; writing them again");
            }
            Note::Failing => {
                let problem = problem.map_or_else(String::new, |problem| problem.to_string());
                self.status.failing(&self.role, &problem);
                if complaint.is_due(now) {
                    warn!(role = self.role, problem, "the registry does not do it");
                }
                return;
            }
        }
        // Any answer that is not a failure ends a time of failures.
        if matches!(done, Done::Renewed | Done::Intact) {
            self.status.well(&self.role);
            if complaint.is_over() {
                info!(role = self.role, "the registry answers again");
            }
        }
    }
}
