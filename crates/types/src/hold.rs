//! Lets moves of shards rest at one of their numbered steps (`docs/placement.md`), to prove that all
//! may die there.
//!
//! A process that is told to takes no step beyond the one that it was told, so that whoever leads
//! meanwhile, the shard stays exactly there until the process ends. A build without debug assertions
//! has nothing of it: [`is_held`] is then a constant. Set once for the whole process, by its command
//! line.

/// The steps of a move, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveStep {
    /// The node that comes is a follower without a vote, and has nothing yet.
    Follows = 1,
    /// It has what the others have.
    CaughtUp = 2,
    /// One that stays leads, if the one that goes did.
    HandedOver = 3,
    /// Majorities of those who voted and of those who will are both needed.
    Joint = 4,
    /// The one that comes votes; the one that goes only follows.
    Exchanged = 5,
    /// The one that goes is no member any more.
    LetGo = 6,
    /// Its log says that what it held is forgotten; snapshots are still there.
    Noted = 7,
    /// Nothing of the shard is left there.
    Forgotten = 8,
}

impl MoveStep {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Follows,
        Self::CaughtUp,
        Self::HandedOver,
        Self::Joint,
        Self::Exchanged,
        Self::LetGo,
        Self::Noted,
        Self::Forgotten,
    ];

    /// The step of a number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

#[cfg(debug_assertions)]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::MoveStep;

    /// Number of the last step that is taken; 0: all are.
    static LAST: AtomicU8 = AtomicU8::new(0);

    /// Whether this build can let moves rest.
    pub const IS_THERE: bool = true;

    /// Whether a step is not to be taken by this process.
    #[must_use]
    pub fn is_held(step: MoveStep) -> bool {
        let last = LAST.load(Ordering::Relaxed);
        last != 0 && last < step as u8
    }

    /// From now on this process takes no step beyond this one.
    pub fn after(step: MoveStep) {
        LAST.store(step as u8, Ordering::Relaxed);
    }
}

#[cfg(not(debug_assertions))]
mod switch {
    use super::MoveStep;

    /// Whether this build can let moves rest: it cannot.
    pub const IS_THERE: bool = false;

    /// Whether a step is not to be taken by this process: never in this build.
    #[must_use]
    pub const fn is_held(_step: MoveStep) -> bool {
        false
    }

    /// From now on this process takes no step beyond this one: not in this build.
    pub const fn after(_step: MoveStep) {}
}

pub use switch::{IS_THERE, after, is_held};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_from_one_and_nothing_rests_unless_it_is_told() {
        let numbers: Vec<u8> = MoveStep::ALL.iter().map(|step| *step as u8).collect();
        assert_eq!(numbers, (1..=8).collect::<Vec<u8>>());
        assert_eq!(MoveStep::of_number(4), Some(MoveStep::Joint));
        assert_eq!(
            (MoveStep::of_number(0), MoveStep::of_number(9)),
            (None, None)
        );
        assert!(!MoveStep::ALL.into_iter().any(is_held));
    }
}
