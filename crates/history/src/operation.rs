//! One operation of a client: what it asked, when, and what it was answered.

use std::fmt;
use std::sync::Arc;

/// A value of a key.
pub type Value = Arc<[u8]>;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The value, or that there is none.
    Get,
    /// A new value, whatever was there.
    Set {
        /// The value.
        value: Value,
        /// After how many milliseconds it shall be gone.
        ttl_millis: Option<u64>,
    },
    /// A new value, where the old one is as expected. It has no deadline.
    CompareAndSet {
        /// What must be there; `None`: nothing.
        expected: Option<Value>,
        /// The new value.
        value: Value,
    },
    /// Adds to a number; an absent key is 0. A deadline stays.
    Increment {
        /// The signed step.
        by: i64,
    },
    /// Removes the key.
    Delete,
}

impl Action {
    /// Whether it can change anything.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        !matches!(self, Self::Get)
    }
}

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The value that a `Get` found.
    Value(Option<Value>),
    /// A `Set` was made.
    Done,
    /// Whether a `CompareAndSet` was made, or whether a `Delete` found the key.
    Applied(bool),
    /// The new number of an `Increment`.
    Number(i64),
    /// It did not happen and never will: refused before anything was appended.
    Failed,
    /// It may have happened, may happen yet, or never: a timeout, a lost connection.
    Unknown,
    /// Parts of a group that is written as one were seen unlike one another. Nothing explains that.
    Torn(Vec<Option<Value>>),
}

/// One operation. `called` and `returned` are places in the order in which a recorder was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u64,
    /// Of which key, or of which group of keys that change together.
    pub key: Value,
    /// What.
    pub action: Action,
    /// The answer.
    pub outcome: Outcome,
    /// Place of the call among all calls and returns.
    pub called: u64,
    /// Place of the return; `u64::MAX` while there is none.
    pub returned: u64,
    /// When it was called, in nanoseconds.
    pub called_nanos: u64,
    /// When it returned, in nanoseconds; `u64::MAX` while it has not.
    pub returned_nanos: u64,
}

impl Operation {
    /// Whether it can have happened at any time after its call.
    pub(crate) fn is_open(&self) -> bool {
        self.outcome == Outcome::Unknown
    }
}

/// Bytes as text where they are, else in hexadecimal.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if !text.chars().any(char::is_control) => write!(f, "\"{text}\""),
            _ => {
                f.write_str("0x")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

struct Maybe<'a>(&'a Option<Value>);

impl fmt::Display for Maybe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => Shown(value).fmt(f),
            None => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => f.write_str("get"),
            Self::Set { value, ttl_millis } => {
                write!(f, "set {}", Shown(value))?;
                ttl_millis.map_or(Ok(()), |millis| write!(f, " for {millis} ms"))
            }
            Self::CompareAndSet { expected, value } => {
                write!(f, "compare {} and set {}", Maybe(expected), Shown(value))
            }
            Self::Increment { by } => write!(f, "increment by {by}"),
            Self::Delete => f.write_str("delete"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => Maybe(value).fmt(f),
            Self::Done => f.write_str("done"),
            Self::Applied(true) => f.write_str("yes"),
            Self::Applied(false) => f.write_str("no"),
            Self::Number(number) => number.fmt(f),
            Self::Failed => f.write_str("not done"),
            Self::Unknown => f.write_str("unknown"),
            Self::Torn(values) => {
                f.write_str("torn:")?;
                let mut values = values.iter();
                values.try_for_each(|value| write!(f, " {}", Maybe(value)))
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |nanos: u64| (nanos / 1_000_000, nanos % 1_000_000 / 1_000);
        let (called, called_micros) = millis(self.called_nanos);
        write!(
            f,
            "client {:<3} [{called}.{called_micros:03}, ",
            self.client
        )?;
        if self.returned == u64::MAX {
            f.write_str("never")?;
        } else {
            let (returned, returned_micros) = millis(self.returned_nanos);
            write!(f, "{returned}.{returned_micros:03}")?;
        }
        write!(
            f,
            " ms] #{} {} {} -> {}",
            self.called,
            Shown(&self.key),
            self.action,
            self.outcome
        )
    }
}
