//! Bugs that can be switched on, to prove that the simulation finds them.
//!
//! Each stands at the place where a rule is kept and does what somebody might have done instead. A
//! build without debug assertions has none of them: [`is_on`] is then a constant. Switched per
//! thread, because a simulation is one thread and tests run beside one another.

use std::fmt;

macro_rules! bugs {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// A bug that can be switched on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $($(#[$meta])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

bugs! {
    /// The log says that an append is flushed before it has been written.
    AckBeforeSync = "ack-before-sync",
    /// The directory is not synced after a segment or a snapshot got its name.
    NoDirectorySync = "no-directory-sync",
    /// A vote is given before it is on disk.
    VoteNotSynced = "vote-not-synced",
    /// Whoever believes to lead answers reads.
    LocalReads = "local-reads",
    /// Reads trust the lease to its end, and beyond, as if clocks ran alike and nothing paused.
    LeaseWithoutMargin = "lease-without-margin",
    /// Keys whose deadline has passed are answered as absent, and nobody writes that down.
    ExpiredHidden = "expired-hidden",
    /// The same, of a command that passes the proposer.
    ExpiredWithoutFact = "expired-without-fact",
    /// A received snapshot counts before the log has noted it.
    InstallNotNoted = "install-not-noted",
    /// A snapshot holds nothing of the requests that were done.
    RequestsNotInSnapshot = "requests-not-in-snapshot",
    /// A sink's cursor goes on before the broker has confirmed.
    CursorBeforeConfirm = "cursor-before-confirm",
    /// The id of an event does not tell the term.
    EventWithoutTerm = "event-without-term",
    /// Records are taken without looking at their checksum.
    ChecksumIgnored = "checksum-ignored",
    /// What was cut off the log is cut in memory only.
    TruncateNotWritten = "truncate-not-written",
    /// Replicas apply the facts of a batch in different orders.
    ApplyOutOfOrder = "apply-out-of-order",
    /// A leader that comes back leads on without an election.
    LeaderRestored = "leader-restored",
    /// A voter that has just started votes at once.
    VoteAfterRestart = "vote-after-restart",
    /// A replica that was let go votes by what its log holds, as if it had never had more.
    RetiredVotes = "retired-votes",
    /// What was read by a map older than a split counts.
    OldMapRead = "old-map-read",
    /// What was sent by a map older than a split is done.
    OldMapDone = "old-map-done",
    /// Commands of a batch do not see what those before them did.
    OverlayOff = "overlay-off",
    /// A batch is appended and counts under whatever term leads by then.
    TermFenceOff = "term-fence-off",
    /// A store loaded from a snapshot is served before the snapshot's end is applied.
    SnapshotBeforeEnd = "snapshot-before-end",
    /// The lease gate is looked at before the read.
    GateBeforeRead = "gate-before-read",
    /// The lease gate opens again after leadership was handed over.
    GateReopened = "gate-reopened",
    /// The facts of one group are applied one by one, others reading in between.
    GroupNotAtomic = "group-not-atomic",
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(debug_assertions)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static ON: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with a bug.
    #[must_use]
    pub fn is_on(bug: Bug) -> bool {
        ON.get() == Some(bug)
    }

    /// Switches one bug on for this thread, and any other off; answers whether this build has bugs.
    pub fn switch(bug: Option<Bug>) -> bool {
        ON.set(bug);
        true
    }
}

#[cfg(not(debug_assertions))]
mod switch {
    use super::Bug;

    /// Whether this thread runs with a bug: never in this build.
    #[must_use]
    pub const fn is_on(_bug: Bug) -> bool {
        false
    }

    /// Switches one bug on for this thread; answers whether this build has bugs: it has none.
    pub const fn switch(bug: Option<Bug>) -> bool {
        bug.is_none()
    }
}

pub use switch::{is_on, switch};
