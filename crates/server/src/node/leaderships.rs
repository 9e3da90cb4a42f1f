//! Which shards a node leads, and how it gives them away.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::context::Context;

/// How long a voter gets to take over a shard.
const HAND_OVER: Duration = Duration::from_millis(1500);
/// How long all shards together may take: a stop must not wait for nodes that are gone.
const HAND_OVER_ALL: Duration = Duration::from_secs(4);

/// See the module. Cheap to clone; outlives its node without harm.
#[derive(Clone)]
pub struct Leaderships {
    context: Arc<Context>,
}

impl fmt::Debug for Leaderships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaderships").finish_non_exhaustive()
    }
}

impl Leaderships {
    pub(super) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// How many shards the node leads now.
    #[must_use]
    pub fn count(&self) -> usize {
        let shards = self.context.home.shards();
        shards.iter().filter(|shard| shard.is_writable()).count()
    }

    /// Gives the shards that this node leads to other voters, one after the other, so that nobody
    /// has to wait for an election (rule 14). Commands that come here meanwhile follow.
    ///
    /// # Cancellation
    /// Safe to drop; the hand-over of one shard may go on.
    pub async fn give_away(&self) {
        let Some(peers) = &self.context.peers else {
            return;
        };
        // Nobody is to hand anything to this node now.
        peers.book.tell(|own| own.is_leaving = true);
        let clock = &self.context.clock;
        let end = clock.now() + HAND_OVER_ALL;
        // Who did not take one over in time is not waited for again: it may be stopping as well.
        let mut unable = BTreeSet::new();
        for shard in self.context.home.shards().iter() {
            for target in peers.heirs(shard) {
                let now = clock.now();
                if end <= now || unable.contains(&target) {
                    continue;
                }
                let deadline = end.min(now + HAND_OVER);
                let (id, to) = (shard.id(), target.physical());
                match shard.transfer_leadership(target, deadline).await {
                    Ok(()) => {
                        info!(shard = %id, to, "leadership handed over");
                        break;
                    }
                    Err(error) => {
                        warn!(shard = %id, to, %error, "leadership kept");
                        unable.insert(target);
                    }
                }
            }
        }
    }
}
