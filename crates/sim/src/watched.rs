//! What must hold at every moment of a run.

use std::collections::BTreeMap;

use flux_raft::{Shard, ShardStatus};
use flux_types::{NodeId, ShardId};

use crate::failure::Failure;
use crate::network::SimNetwork;

/// What must hold at every moment, looked at again and again.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) leaders: BTreeMap<(ShardId, u64), NodeId>,
    pub(crate) digests: BTreeMap<(ShardId, u64), (u64, u128)>,
    pub(crate) failure: Option<Failure>,
}

impl Watched {
    /// A vote that was given is never forgotten, whatever happened to the machine since.
    pub(crate) fn look_at_vote(&mut self, shard: &Shard, node: NodeId, network: &SimNetwork) {
        let given = network.vote_given(shard.id(), node);
        let found = shard.log().state().vote.map_or(0, |vote| vote.term.get());
        if found < given {
            self.failure.get_or_insert_with(|| Failure::VoteForgotten {
                shard: shard.id(),
                node,
                given,
                found,
            });
        }
    }

    /// What this replica shows must fit what was seen before.
    pub(crate) fn look_at(&mut self, shard: &Shard, status: &ShardStatus) {
        let id = shard.id();
        if status.role == flux_raft::Role::Leader {
            let term = status.term.get();
            let known = *self.leaders.entry((id, term)).or_insert(status.node);
            if known != status.node {
                self.failure.get_or_insert(Failure::TwoLeaders {
                    shard: id,
                    term,
                    one: known,
                    other: status.node,
                });
            }
        }
        // A shard that is being split is between two states.
        let is_between = shard.applying() != shard.applied();
        let Some(applied) = shard.applied().filter(|_| shard.is_whole() && !is_between) else {
            return;
        };
        let index = applied.index.get();
        let seen = (applied.term.get(), shard.store().digest());
        let known = *self.digests.entry((id, index)).or_insert(seen);
        if known.0 != seen.0 {
            let failure = Failure::Rewritten { shard: id, index };
            self.failure.get_or_insert(failure);
        } else if known.1 != seen.1 {
            let failure = Failure::Diverged { shard: id, index };
            self.failure.get_or_insert(failure);
        }
    }
}
