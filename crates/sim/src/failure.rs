//! Why a run is no good.

use flux_history::Vacuous;
use flux_types::{NodeId, ShardId};

use crate::executor::Stuck;
use crate::run::HEAL_MAX;

/// Why a run is no good.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// What clients saw has no explanation.
    #[error("{0}")]
    History(#[from] flux_history::Fault),
    /// Too little happened for a verdict.
    #[error("vacuous: {0}")]
    Vacuous(#[from] Vacuous),
    /// Too little went wrong for a verdict.
    #[error("vacuous: leadership never moved")]
    Calm,
    /// The run came to an end before its time.
    #[error("{0}")]
    Stuck(#[from] Stuck),
    /// A node would not start, or ended by itself.
    #[error("node {node} failed: {reason}")]
    Node {
        /// Which.
        node: usize,
        /// Why.
        reason: String,
    },
    /// Healed, the cluster did not come to work again.
    #[error("not whole within {} s of being healed: {missing}", HEAL_MAX.as_secs())]
    NotWhole {
        /// What is missing.
        missing: String,
    },
    /// Replicas that have applied the same are not the same.
    #[error("shard {shard}: two replicas differ at index {index}")]
    Diverged {
        /// Of which shard.
        shard: ShardId,
        /// What both have applied.
        index: u64,
    },
    /// Two leaders of one term.
    #[error("shard {shard}: {one} and {other} both lead term {term}")]
    TwoLeaders {
        /// Of which shard.
        shard: ShardId,
        /// The term.
        term: u64,
        /// One of them.
        one: NodeId,
        /// The other.
        other: NodeId,
    },
    /// A replica has forgotten a vote that it gave.
    #[error("shard {shard}: {node} gave its vote in term {given} and came back in term {found}")]
    VoteForgotten {
        /// Of which shard.
        shard: ShardId,
        /// Who.
        node: NodeId,
        /// The term of the vote it gave.
        given: u64,
        /// The term that it came back with.
        found: u64,
    },
    /// What readers of changes were told is not what happened.
    #[error("changes of shard {shard}: {what}")]
    Changes {
        /// Of which shard.
        shard: ShardId,
        /// What is wrong.
        what: String,
    },
    /// A write that was asked for again was answered otherwise.
    #[error("{action} of {subject} was answered {first}, and when it came again {again}")]
    AnsweredOtherwise {
        /// Of what.
        subject: String,
        /// The write.
        action: String,
        /// The first answer.
        first: String,
        /// The second.
        again: String,
    },
    /// A replica went back behind what it had applied and synced.
    #[error("shard {shard}: an entry that was committed at {index} has changed")]
    Rewritten {
        /// Of which shard.
        shard: ShardId,
        /// Where.
        index: u64,
    },
}

impl Failure {
    /// Whether a rule was broken, by what clients saw or by what replicas did. All else says that a
    /// run is not known to be good: too little happened, or it did not come to its end.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        match self {
            Self::History(fault) => matches!(fault, flux_history::Fault::Violation(_)),
            Self::Stuck(stuck) => matches!(stuck, Stuck::Panicked { .. }),
            Self::Node { .. }
            | Self::Diverged { .. }
            | Self::TwoLeaders { .. }
            | Self::VoteForgotten { .. }
            | Self::AnsweredOtherwise { .. }
            | Self::Changes { .. }
            | Self::Rewritten { .. } => true,
            Self::Vacuous(_) | Self::Calm | Self::NotWhole { .. } => false,
        }
    }
}
