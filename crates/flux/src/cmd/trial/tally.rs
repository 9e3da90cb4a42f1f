//! What the rounds of chaos have shown, and what may be said of it in the end. Only values: whoever
//! kills and asks is [`super::chaos`].

use flux_history::{Demands, Fault, History, Options, check};

/// What a whole round must contain to prove anything, on a slow and busy machine too.
const DEMANDS: Demands = Demands {
    completed_min: 100,
    values_read_min: 20,
    overlapping_min: 10,
    unknown_percent_max: 20,
};

/// What became of the rounds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Rounds that went on to their end and were judged.
    pub(super) rounds: u64,
    /// Writes that were acknowledged.
    pub(super) acknowledged: u64,
    /// Of them, those whose key was not there at the round's end.
    pub(super) lost: u64,
    /// Rounds whose answers no order explains.
    pub(super) stale: u64,
    pub(super) killed: u64,
    /// Rounds whose judge gave up.
    pub(super) undecided: u64,
    /// Rounds in which too little happened.
    pub(super) idle: u64,
    /// Keys that nobody could read at the round's end.
    pub(super) unreadable: u64,
    /// Panics of the process.
    pub(super) panics: u64,
}

impl Tally {
    /// One line for people; what should not happen at all is named only where it did.
    pub(super) fn line(&self) -> String {
        let mut line = format!(
            "{} acknowledged · {} lost · {} stale",
            self.acknowledged, self.lost, self.stale
        );
        for (count, what) in [
            (self.undecided, "rounds undecided"),
            (self.idle, "rounds that prove nothing"),
            (self.unreadable, "unreadable"),
            (self.panics, "panics"),
        ] {
            if 0 < count {
                line.push_str(&format!(" · {count} {what}"));
            }
        }
        line.push_str(&format!(" · {} leaders killed", self.killed));
        line
    }

    /// What all of it comes to.
    ///
    /// # Errors
    /// What was found bad, or why nothing was proven.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let line = self.line();
        if 0 < self.lost + self.stale + self.unreadable + self.panics {
            Err(format!("the cluster did not stand the chaos: {line}"))
        } else if 0 < self.undecided + self.idle {
            Err(format!("not every round could be judged: {line}"))
        } else if self.rounds == 0 {
            Err(format!("ended before the first round was judged: {line}"))
        } else {
            Ok(())
        }
    }
}

/// What a round's history says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Good,
    /// No order explains the answers.
    Stale(String),
    /// The judge gave up.
    Undecided(String),
    /// Too little happened for a verdict.
    Idle(String),
}

/// Judges a round; of one that was cut short nothing is demanded.
pub(super) fn judge(history: &History, is_whole: bool) -> Finding {
    match check(history, &Options::default()) {
        Err(fault @ Fault::Violation(_)) => return Finding::Stale(fault.to_string()),
        Err(fault @ Fault::Undecided { .. }) => return Finding::Undecided(fault.to_string()),
        Ok(_) => {}
    }
    match history.meets(&DEMANDS) {
        Err(vacuous) if is_whole => Finding::Idle(vacuous.to_string()),
        Err(_) | Ok(_) => Finding::Good,
    }
}

#[cfg(test)]
mod tests {
    use flux_history::{Action, Outcome, Recorder};

    use super::*;

    const GOOD: Tally = Tally {
        rounds: 2,
        acknowledged: 300,
        lost: 0,
        stale: 0,
        killed: 2,
        undecided: 0,
        idle: 0,
        unreadable: 0,
        panics: 0,
    };

    #[test]
    fn a_tally_without_fault_is_good_and_says_so_briefly() {
        assert_eq!(GOOD.verdict(), Ok(()));
        let line = "300 acknowledged · 0 lost · 0 stale · 2 leaders killed";
        assert_eq!(GOOD.line(), line);
    }

    #[test]
    fn whatever_is_wrong_or_unknown_is_no_good_end_and_is_named() {
        for (tally, begin, part) in [
            (Tally { lost: 1, ..GOOD }, "the cluster did not", "1 lost"),
            (Tally { stale: 1, ..GOOD }, "the cluster did not", "1 stale"),
            (
                Tally {
                    unreadable: 3,
                    ..GOOD
                },
                "the cluster did not",
                "3 unreadable",
            ),
            (
                Tally { panics: 1, ..GOOD },
                "the cluster did not",
                "1 panics",
            ),
            (
                Tally {
                    undecided: 1,
                    ..GOOD
                },
                "not every round",
                "1 rounds undecided",
            ),
            (
                Tally { idle: 1, ..GOOD },
                "not every round",
                "1 rounds that prove nothing",
            ),
            (Tally { rounds: 0, ..GOOD }, "ended before", "2 leaders"),
        ] {
            let problem = tally.verdict().unwrap_err();
            assert!(
                problem.starts_with(begin) && problem.contains(part),
                "{problem}"
            );
        }
    }

    /// Two clients that write and read keys by turns, all at once.
    fn history(turns: u64, key_of: impl Fn(u64, bool) -> u64, stale: bool) -> History {
        let mut recorder = Recorder::new();
        for turn in 0..turns {
            let [write, read] = [false, true].map(|is_read| {
                let key = key_of(turn, is_read).to_string();
                let action = if is_read {
                    Action::Get
                } else {
                    Action::Set {
                        value: turn.to_string().into_bytes().into(),
                        ttl_millis: None,
                    }
                };
                recorder.call(u64::from(is_read), key.as_bytes(), action, turn)
            });
            recorder.finish(write, Outcome::Done, turn);
            let has_met = key_of(turn, true) == key_of(turn, false);
            let found = if stale { 0 } else { turn };
            let value = has_met.then(|| found.to_string().into_bytes().into());
            recorder.finish(read, Outcome::Value(value), turn);
        }
        recorder.history()
    }

    #[test]
    fn a_round_in_which_reads_and_writes_meet_is_judged() {
        let meet = |turn: u64, _| turn % 3;
        assert_eq!(judge(&history(100, meet, false), true), Finding::Good);
        let found = judge(&history(100, meet, true), true);
        assert!(matches!(found, Finding::Stale(_)), "{found:?}");
    }

    #[test]
    fn a_round_in_which_no_read_meets_a_write_proves_nothing() {
        // Reads have keys of one parity, writes those of the other.
        let apart = |turn: u64, is_read| turn % 3 * 2 + u64::from(is_read);
        let found = judge(&history(100, apart, false), true);
        assert!(matches!(found, Finding::Idle(_)), "{found:?}");
        let found = judge(&history(5, |_, _| 0, false), true);
        assert!(matches!(found, Finding::Idle(_)), "{found:?}");
        // Nobody asks that of a round that was cut short.
        assert_eq!(judge(&history(5, |_, _| 0, false), false), Finding::Good);
    }
}
