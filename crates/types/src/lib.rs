//! The vocabulary that every other room speaks: ids, commands, replies, facts, limits, errors.
//!
//! Nothing here does I/O, reads a clock, or knows a wire or disk format; each boundary has its own
//! versioned encoding and converts to and from these types. Read in this order: [`ids`] and
//! [`time`] name things, [`limits`] bounds them, [`command`] asks, [`reply`] answers, [`request`] tells a
//! retry from another write, [`fact`] is
//! what a command becomes once the leader has decided, [`trace`] names the request behind it,
//! [`slot`] and [`slots`] tell whose a key is, and [`error`] says what went wrong, whose fault it was, and whether the write happened.

pub mod bug;
pub mod command;
pub mod error;
pub mod fact;
pub mod hold;
pub mod ids;
pub mod limits;
pub mod reply;
pub mod request;
pub mod slot;
pub mod slots;
pub mod time;
pub mod trace;

pub use command::{
    Command, Compare, Condition, ExpireCondition, Expiry, Once, ReadCommand, ScanPage, Set,
    SetReply, Transaction, TtlForm, Watch, WriteCommand,
};
pub use error::{Blame, Error, ErrorCode, Outcome, Retry};
pub use fact::{DeleteCause, Fact};
pub use ids::{ClusterId, LogIndex, NodeId, NodeNumber, Revision, ShardId, Slot, Term};
pub use reply::{Answer, Entry, Reply, RequestOutcome, Written};
pub use request::{RequestId, SessionId};
pub use slot::{crc16, hash_tag, slot_of_key};
pub use slots::{ShardCountError, SlotMap, SlotMapError, SlotTextError};
pub use time::UnixMillis;
pub use trace::TraceParent;
