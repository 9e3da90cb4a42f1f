//! Statistics as Redis's tools ask for them: counted since CONFIG RESETSTAT, and the slow log.
//!
//! The counters behind them never go back, because `/metrics` shows them too: a reset remembers
//! where they stood. The slow log names commands and never shows keys or values.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use flux_wire::resp::error;
use parking_lot::Mutex;

use crate::metrics::{COMMANDS, Metrics};

/// Most entries that the slow log can be told to keep.
pub(crate) const SLOW_LOG_LEN_MAX: u64 = 4096;
/// What it keeps unless told otherwise, as in Redis.
const SLOW_LOG_LEN: usize = 128;
/// From how many microseconds on a command is slow, unless told otherwise, as in Redis.
const SLOW_MICROS: i64 = 10_000;

/// Counts at one moment; all of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) connections: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) expired: u64,
    pub(crate) commands: [CommandTotals; COMMANDS.len()],
    /// Errors by the index of their word.
    pub(crate) errors: [u64; error::WORDS.len()],
}

/// What is counted of one kind of command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandTotals {
    /// Answered well.
    pub(crate) ok: u64,
    /// Answered with an error.
    pub(crate) failed: u64,
    /// Refused before it was looked at.
    pub(crate) rejected: u64,
    /// Time from arrival to answer, in microseconds.
    pub(crate) micros: u64,
}

impl CommandTotals {
    /// Those that were executed.
    pub(crate) const fn calls(&self) -> u64 {
        self.ok.saturating_add(self.failed)
    }
}

impl Counted {
    /// What `metrics` count.
    pub(crate) fn of(metrics: &Metrics) -> Self {
        let mut counted = Self {
            connections: metrics.connections_opened(),
            errors: metrics.error_totals(),
            ..Self::default()
        };
        for (row, totals) in counted.commands.iter_mut().enumerate() {
            *totals = metrics.command_totals(row);
        }
        counted
    }

    /// What was counted after `base`.
    pub(crate) fn since(&self, base: &Self) -> Self {
        let mut counted = Self {
            connections: self.connections.saturating_sub(base.connections),
            hits: self.hits.saturating_sub(base.hits),
            misses: self.misses.saturating_sub(base.misses),
            expired: self.expired.saturating_sub(base.expired),
            commands: self.commands,
            errors: self.errors,
        };
        for (now, then) in counted.errors.iter_mut().zip(&base.errors) {
            *now = now.saturating_sub(*then);
        }
        for (now, then) in counted.commands.iter_mut().zip(&base.commands) {
            now.ok = now.ok.saturating_sub(then.ok);
            now.failed = now.failed.saturating_sub(then.failed);
            now.rejected = now.rejected.saturating_sub(then.rejected);
            now.micros = now.micros.saturating_sub(then.micros);
        }
        counted
    }

    /// Commands that were executed, of all kinds.
    pub(crate) fn calls(&self) -> u64 {
        self.commands.iter().map(CommandTotals::calls).sum()
    }

    /// Errors answered, of all kinds.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.iter().sum()
    }
}

/// A turn of a connection that took long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlowTurn {
    pub(crate) id: u64,
    /// When it ended, in Unix seconds.
    pub(crate) at_seconds: u64,
    pub(crate) micros: u64,
    /// The name of its last command.
    pub(crate) command: String,
    /// Commands in it.
    pub(crate) commands: usize,
    pub(crate) client: String,
    pub(crate) client_name: String,
}

/// Shared by all sessions of a node.
#[derive(Debug)]
pub(crate) struct Statistics {
    base: Mutex<Counted>,
    slow: Mutex<VecDeque<SlowTurn>>,
    slow_count: AtomicU64,
    /// Negative: nothing is slow.
    slow_micros: AtomicI64,
    slow_len: AtomicUsize,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            base: Mutex::default(),
            slow: Mutex::default(),
            slow_count: AtomicU64::new(0),
            slow_micros: AtomicI64::new(SLOW_MICROS),
            slow_len: AtomicUsize::new(SLOW_LOG_LEN),
        }
    }
}

impl Statistics {
    /// Counts from here on.
    pub(crate) fn reset(&self, now: &Counted) {
        *self.base.lock() = *now;
    }

    /// What was counted since the last reset.
    pub(crate) fn since_reset(&self, now: &Counted) -> Counted {
        now.since(&self.base.lock())
    }

    /// Whether a turn that took so long belongs into the slow log. One load: every turn asks.
    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        let threshold = self.slow_micros.load(Ordering::Relaxed);
        u128::try_from(threshold).is_ok_and(|threshold| threshold <= took.as_micros())
    }

    /// Keeps a slow turn, whose id is given here.
    pub(crate) fn note_slow(&self, turn: SlowTurn) {
        let id = self.slow_count.fetch_add(1, Ordering::Relaxed);
        let mut slow = self.slow.lock();
        slow.push_front(SlowTurn { id, ..turn });
        slow.truncate(self.slow_len.load(Ordering::Relaxed));
    }

    /// The latest slow turns, the last one first.
    pub(crate) fn slow_turns(&self, count: usize) -> Vec<SlowTurn> {
        self.slow.lock().iter().take(count).cloned().collect()
    }

    pub(crate) fn slow_turn_count(&self) -> usize {
        self.slow.lock().len()
    }

    pub(crate) fn forget_slow_turns(&self) {
        self.slow.lock().clear();
    }

    pub(crate) fn slow_micros(&self) -> i64 {
        self.slow_micros.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slow_micros(&self, micros: i64) {
        self.slow_micros.store(micros, Ordering::Relaxed);
    }

    pub(crate) fn slow_len(&self) -> usize {
        self.slow_len.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slow_len(&self, len: usize) {
        self.slow_len.store(len, Ordering::Relaxed);
        self.slow.lock().truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_before_a_reset_is_not_shown_again() {
        let statistics = Statistics::default();
        let mut counted = Counted {
            hits: 5,
            ..Counted::default()
        };
        counted.errors[1] = 4;
        counted.commands[2] = CommandTotals {
            ok: 3,
            failed: 1,
            rejected: 1,
            micros: 70,
        };
        assert_eq!(statistics.since_reset(&counted), counted);
        statistics.reset(&counted);
        assert_eq!(statistics.since_reset(&counted), Counted::default());
        counted.commands[2].ok += 2;
        counted.hits += 1;
        let since = statistics.since_reset(&counted);
        assert_eq!((since.hits, since.calls(), since.error_count()), (1, 2, 0));
        counted.errors[1] += 1;
        assert_eq!(statistics.since_reset(&counted).error_count(), 1);
    }

    #[test]
    fn the_slow_log_keeps_the_latest_and_no_more_than_told() {
        let statistics = Statistics::default();
        assert!(!statistics.is_slow(Duration::from_micros(9_999)));
        assert!(statistics.is_slow(Duration::from_micros(10_000)));
        statistics.set_slow_micros(-1);
        assert!(!statistics.is_slow(Duration::from_secs(100)));
        statistics.set_slow_micros(0);
        assert!(statistics.is_slow(Duration::ZERO));
        statistics.set_slow_len(2);
        for micros in [10, 20, 30] {
            statistics.note_slow(SlowTurn {
                id: 0,
                at_seconds: 1,
                micros,
                command: "get".to_owned(),
                commands: 1,
                client: "127.0.0.1:1".to_owned(),
                client_name: String::new(),
            });
        }
        let kept: Vec<_> = statistics.slow_turns(10);
        let kept: Vec<_> = kept.iter().map(|turn| (turn.id, turn.micros)).collect();
        assert_eq!(kept, [(2, 30), (1, 20)]);
        statistics.forget_slow_turns();
        assert_eq!(statistics.slow_turn_count(), 0);
    }
}
