//! Events: committed facts with what is known of them, before they get an outer form.

use bytes::Bytes;
use flux_types::bug::{self, Bug};
use flux_types::{DeleteCause, LogIndex, Revision, ShardId, Term, TraceParent, UnixMillis};

use crate::envelope::write::id;

/// Where an event stands in the history of its shard. Ordered within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The shard.
    pub shard: ShardId,
    /// The term in which it was decided.
    pub term: Term,
    /// The entry that holds it; not for the outside.
    pub index: LogIndex,
    /// The fact's revision.
    pub revision: Revision,
}

/// Which facts took effect together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The revision of the first of them.
    pub first: Revision,
    /// Which of them this is, from 0.
    pub order: u32,
    /// How many there are.
    pub count: u32,
}

/// Something to tell a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it stands. Of an item of a snapshot: where its shard stood when the walk began, but
    /// with the revision of the key.
    pub position: Position,
    /// When it was decided; of control events: when they were made.
    pub at: UnixMillis,
    /// What it says.
    pub change: Change,
    /// Its group; `None` of snapshot items and control events.
    pub group: Option<Group>,
    /// The request that caused it.
    pub trace: Option<TraceParent>,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value, and this deadline or none.
    Set {
        /// The key.
        key: Bytes,
        /// The whole value.
        value: Bytes,
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// The key's value has these bytes from `offset` on, and is at least that long.
    Patch {
        /// The key.
        key: Bytes,
        /// Where the bytes go.
        offset: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: Bytes,
        /// Why it went.
        cause: DeleteCause,
    },
    /// The key has this deadline or none.
    Expire {
        /// The key.
        key: Bytes,
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// All keys are gone.
    Flush,
    /// The key is in a snapshot.
    Item {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// Something about the stream itself.
    Control(Control),
}

/// What an event can say of the stream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// All items of the snapshot of this shard have come, and all changes made meanwhile: a consumer
    /// that took them in order has the state at this position.
    SnapshotComplete {
        /// How many items there were.
        items: u64,
    },
    /// Nothing happened that the consumer asked for; its cursor moves on all the same.
    Progress,
    /// Changes are missing: they were not read for longer than they are kept.
    Gap {
        /// The revision after which they are missing.
        after: Revision,
        /// The first revision that comes again.
        next: Revision,
    },
}

impl Change {
    /// The key, unless the change is about all keys or none.
    #[must_use]
    pub const fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Set { key, .. }
            | Self::Patch { key, .. }
            | Self::Delete { key, .. }
            | Self::Expire { key, .. }
            | Self::Item { key, .. } => Some(key),
            Self::Flush | Self::Control(_) => None,
        }
    }

    /// The event in one word, as it stands in types and routing keys.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Set { .. } => "set",
            Self::Patch { .. } => "patch",
            Self::Delete { cause, .. } => match cause {
                DeleteCause::Deleted => "delete",
                DeleteCause::Expired => "expired",
                DeleteCause::Evicted => "evicted",
            },
            Self::Expire { .. } => "expire",
            Self::Flush => "flush",
            Self::Item { .. } => "snapshot",
            Self::Control(Control::SnapshotComplete { .. }) => "snapshot-complete",
            Self::Control(Control::Progress) => "progress",
            Self::Control(Control::Gap { .. }) => "gap",
        }
    }

    /// Whether it is about the stream itself.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        matches!(self, Self::Control(_))
    }

    /// Whether a consumer that asked for keys with this prefix wants it.
    #[must_use]
    pub fn concerns(&self, prefix: &[u8]) -> bool {
        self.key().is_none_or(|key| key.starts_with(prefix))
    }
}

impl Event {
    /// The id: never given to two changes, and the same however often this one comes again.
    #[must_use]
    pub fn id(&self) -> String {
        let mut out = Vec::with_capacity(32);
        self.write_id(&mut out);
        // Digits, letters and signs.
        String::from_utf8(out).unwrap_or_default()
    }

    /// Appends the id.
    pub(crate) fn write_id(&self, out: &mut Vec<u8>) {
        let Position {
            shard,
            term,
            revision,
            ..
        } = self.position;
        let term = if bug::is_on(Bug::EventWithoutTerm) {
            Term::new(0)
        } else {
            term
        };
        match self.change {
            Change::Set { .. }
            | Change::Patch { .. }
            | Change::Delete { .. }
            | Change::Expire { .. }
            | Change::Flush => id(out, shard.get(), term.get(), revision.get()),
            // A key does not know the term of its last change.
            Change::Item { .. } => {
                out.extend_from_slice(format!("{shard}:snapshot:{revision}").as_bytes());
            }
            Change::Control(Control::Progress) => {
                let at = self.at.get();
                let id = format!("{shard}:{term}:{revision}:progress:{at}");
                out.extend_from_slice(id.as_bytes());
            }
            Change::Control(_) => {
                let word = self.change.word();
                out.extend_from_slice(format!("{shard}:{term}:{revision}:{word}").as_bytes());
            }
        }
    }

    /// About how much memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let payload = match &self.change {
            Change::Set { key, value, .. } | Change::Item { key, value, .. } => {
                key.len() + value.len()
            }
            Change::Patch { key, bytes, .. } => key.len() + bytes.len(),
            Change::Delete { key, .. } | Change::Expire { key, .. } => key.len(),
            Change::Flush | Change::Control(_) => 0,
        };
        size_of::<Self>() + payload
    }
}
