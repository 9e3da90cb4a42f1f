//! Whether this node's clock is near enough to the others' for it to lead.
//!
//! The clock of a shard's leader decides what has expired. A node whose clock is far from those of a
//! majority, or was stepped (rule 6), gives its shards to voters whose clocks are near, and again
//! whenever it comes to lead one. Who is right is decided by number: a majority of the cluster's
//! nodes must agree among themselves, so that no two nodes hand a shard to and fro. Where nobody
//! else could lead, it goes on: a shard without a leader would be worse than one with a wrong time.
//!
//! Every exchange of news measures: the other's time against the middle of the round trip, less what
//! the round trip leaves open.

use std::sync::Arc;
use std::time::Duration;

use super::Peers;

/// How far a clock may be from the others', or may have been stepped.
pub(crate) const LIMIT_MS: u64 = 500;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a voter gets to take over a shard.
const HAND_OVER: Duration = Duration::from_millis(1500);

/// What is found of this node's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Clockwork {
    /// It may lead.
    #[default]
    Near,
    /// The clocks of a majority, which agree, are so many milliseconds ahead of it, or behind.
    Far(i64),
    /// Its wall clock was stepped by so many milliseconds, and the time it goes by has not followed.
    Stepped(i64),
}

impl Clockwork {
    /// Whether it may lead.
    pub(crate) fn is_near(self) -> bool {
        self == Self::Near
    }

    /// In a line.
    pub(crate) fn describe(self) -> String {
        let seconds = |millis: i64| format!("{}.{:03} s", millis / 1000, millis.abs() % 1000);
        match self {
            Self::Near => format!("within {LIMIT_MS} ms of the others"),
            Self::Far(millis) => {
                let direction = if millis < 0 { "ahead of" } else { "behind" };
                let distance = seconds(millis.saturating_abs());
                format!(
                    "{distance} {direction} a majority of the nodes: this one leads no shard that another can"
                )
            }
            Self::Stepped(millis) => {
                let distance = seconds(millis.saturating_abs());
                format!(
                    "the wall clock was stepped by {distance}: this node leads no shard that another can"
                )
            }
        }
    }
}

/// Judges a clock. `offsets` tell how far the others' are ahead of it, in milliseconds; the cluster
/// has so many nodes, of which some may not be heard of.
fn judge(mut offsets: Vec<i64>, node_count: usize, step_ms: i64) -> Clockwork {
    if LIMIT_MS < step_ms.unsigned_abs() {
        return Clockwork::Stepped(step_ms);
    }
    offsets.sort_unstable();
    let majority = node_count / 2 + 1;
    let agrees = |near: &&[i64]| match (near.first(), near.last()) {
        (Some(first), Some(last)) => first.abs_diff(*last) <= LIMIT_MS,
        (None, _) | (_, None) => false,
    };
    let is_far = |near: &&[i64]| near.iter().all(|offset| LIMIT_MS < offset.unsigned_abs());
    let mut majorities = offsets.windows(majority).filter(agrees);
    let far = majorities.find(is_far);
    far.and_then(|far| far.get(far.len() / 2))
        .map_or(Clockwork::Near, |middle| Clockwork::Far(*middle))
}

impl Peers {
    /// What is found of this node's clock now.
    pub(crate) fn clockwork(&self) -> Clockwork {
        let (offsets, node_count) = self.book.clock_offsets();
        judge(offsets, node_count, self.clock.step_millis())
    }

    /// How far this node's clock is ahead of the middle of the others', in seconds.
    pub(crate) fn clock_ahead_seconds(&self) -> Option<f64> {
        let (mut offsets, _) = self.book.clock_offsets();
        offsets.sort_unstable();
        let middle = offsets.get(offsets.len() / 2)?;
        let millis =
            i32::try_from(*middle).unwrap_or(if *middle < 0 { i32::MIN } else { i32::MAX });
        Some(-f64::from(millis) / 1000.0)
    }
}

/// Looks after the clock until the node ends.
///
/// # Cancellation
/// Safe to drop; a hand-over under way goes on.
pub(super) async fn watch(peers: &Arc<Peers>) {
    let mut was_near = true;
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let found = peers.clockwork();
        peers.book.tell(|own| own.is_clock_far = !found.is_near());
        if found.is_near() != was_near {
            was_near = found.is_near();
            if was_near {
                tracing::info!("this node's clock is near the others' again");
            } else {
                let problem = found.describe();
                tracing::warn!(problem, "the clock of this node is wrong");
            }
        }
        if !found.is_near() {
            give_away(peers).await;
        }
    }
}

/// Gives every shard that is led here to a voter whose clock is near, if there is one.
async fn give_away(peers: &Peers) {
    for shard in peers.shards().iter().filter(|shard| shard.is_writable()) {
        let heirs = peers.heirs(shard);
        let heir = heirs.iter().find(|heir| peers.book.is_clock_near(**heir));
        let Some(heir) = heir else {
            continue;
        };
        let deadline = peers.clock.now() + HAND_OVER;
        let (id, to) = (shard.id(), heir.physical());
        match shard.transfer_leadership(*heir, deadline).await {
            Ok(()) => tracing::info!(shard = %id, to, "leadership handed over for the clock"),
            Err(error) => tracing::debug!(shard = %id, to, %error, "leadership kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_far_only_if_a_majority_that_agrees_says_so() {
        let judged = |offsets: &[i64], nodes| judge(offsets.to_vec(), nodes, 0);
        assert_eq!(judged(&[3, -4], 3), Clockwork::Near);
        assert_eq!(judged(&[500, -500], 3), Clockwork::Near);
        assert_eq!(judged(&[9_000, 9_100], 3), Clockwork::Far(9_100));
        assert_eq!(judged(&[-9_000, -8_900], 3), Clockwork::Far(-8_900));
        // One of them is wrong, and it is not this one.
        assert_eq!(judged(&[9_000, 5], 3), Clockwork::Near);
        // Of two that are left nobody knows which is wrong.
        assert_eq!(judged(&[9_000], 3), Clockwork::Near);
        // All differ: if each went, the shards would go to and fro.
        assert_eq!(judged(&[9_000, 20_000], 3), Clockwork::Near);
        assert_eq!(judged(&[9_000, -9_000], 3), Clockwork::Near);
        assert_eq!(judged(&[700, 800, 900, 0], 5), Clockwork::Far(800));
        assert_eq!(judged(&[700, 800, 0, 0], 5), Clockwork::Near);
        assert_eq!(judged(&[], 1), Clockwork::Near);
        assert_eq!(judged(&[i64::MIN, i64::MAX], 3), Clockwork::Near);
    }

    #[test]
    fn a_step_beyond_the_limit_counts_alone() {
        assert_eq!(judge(vec![0, 0], 3, 500), Clockwork::Near);
        assert_eq!(judge(vec![0, 0], 3, -501), Clockwork::Stepped(-501));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        assert!(
            Clockwork::Far(9_100)
                .describe()
                .starts_with("9.100 s behind a majority")
        );
        assert!(
            Clockwork::Far(-61)
                .describe()
                .starts_with("0.061 s ahead of")
        );
        assert!(
            Clockwork::Stepped(-1_500)
                .describe()
                .contains("stepped by 1.500 s")
        );
    }
}
