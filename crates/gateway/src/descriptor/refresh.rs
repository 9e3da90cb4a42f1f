//! Keeping descriptors up to date: one task per upstream that tells of itself by reflection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::catalog::Catalog;
use super::{reflection, source};
use crate::upstream::Upstream;
use crate::upstream::client::Client;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What the task needs to know.
#[derive(Debug)]
pub(crate) struct Refresh {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) upstream: Arc<Upstream>,
    /// Position of the upstream in the configuration.
    pub(crate) position: usize,
    pub(crate) services: Vec<String>,
    pub(crate) interval: Duration,
}

impl Refresh {
    /// Runs until dropped: asks at once, again after the interval and when a connection was lost,
    /// and with growing pauses while the upstream does not answer. What was learnt stays in use
    /// meanwhile.
    pub(crate) async fn run(self) {
        let client = Client::new(Arc::clone(&self.upstream));
        let mut known = None;
        let mut pause = RETRY_MIN;
        loop {
            match self.ask(&client, &mut known).await {
                Ok(()) => {
                    pause = RETRY_MIN;
                    tokio::select! {
                        () = sleep_until(Instant::now() + self.interval) => {}
                        () = self.upstream.connection_lost.notified() => {}
                    }
                }
                Err(problem) => {
                    if pause == RETRY_MIN {
                        warn!(upstream = %self.upstream.name, %problem, "descriptors are not available");
                    }
                    sleep_until(Instant::now() + pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn ask(&self, client: &Client, known: &mut Option<Vec<u8>>) -> Result<(), String> {
        let set = reflection::fetch(client, &self.services).await?;
        if known.as_ref() == Some(&set) {
            return Ok(());
        }
        let pool = source::decode(&set)?;
        info!(upstream = %self.upstream.name, services = pool.services().len(), "descriptors learnt");
        self.catalog.learn(self.position, pool);
        *known = Some(set);
        Ok(())
    }
}
