//! The bytes of a batch: what a proposer proposes, the log keeps, and every replica applies.
//!
//! A batch is a header and facts in groups; the facts of one group take effect together. The
//! layout is documented byte by byte in `docs/batch-format.md`, and pinned by a golden file.
//! Checksums are the log's business: what arrives here has been read whole. Even so, parsing
//! trusts no length, accepts one encoding of each batch only, and cannot panic.

mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use view::{BatchError, BatchView, FactRef, Facts, Groups};
pub use writer::BatchWriter;
pub(crate) use writer::Span;

use flux_types::Term;
use flux_types::bug::{self, Bug};
use flux_types::limits::{COMMAND_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The version this room writes. It also reads version 1, which knew neither system data nor traces
/// nor requests, and version 2, which did not know requests.
pub const VERSION: u8 = 3;
const VERSION_1: u8 = 1;
const VERSION_2: u8 = 2;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Most bytes of one batch. A proposer closes its batch long before. Any one command that a
/// connection can bring fits, even if each of its keys must first be said to have expired.
pub const BATCH_BYTES_MAX: usize = 2 * COMMAND_BYTES_MAX + 128 * 1024 * 1024;

/// Revisions are below this: the store keeps 48 bits of them.
const REVISION_END: u64 = 1 << crate::raw::REVISION_BITS;

/// Where the number of facts ends in a header.
const HEADER_COUNT_END: usize = 8;

const FACT_HEAD_BYTES: usize = 8;
const KIND_MASK: u8 = 0x0f;
const HAS_DEADLINE: u8 = 0x40;
const MORE: u8 = 0x80;

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_SET_DEADLINE: u8 = 3;
const KIND_PATCH: u8 = 4;
const KIND_CLEAR: u8 = 5;
const KIND_SYSTEM_PUT: u8 = 6;
const KIND_SYSTEM_DELETE: u8 = 7;
const KIND_REQUEST: u8 = 9;
const KIND_FORGET_SESSIONS: u8 = 10;

/// Bytes of a request id, which stands in the key's place: session, sequence, lowest unanswered.
const REQUEST_BYTES: usize = 32;

/// The mark of a trace, which stands before the first fact of its group and is no fact.
const TRACE_MARK: u8 = MORE | 8;
/// Bytes of a trace: its mark, trace id, span id, flags.
pub(crate) const TRACE_BYTES: usize = 26;
const TRACE_SAMPLED: u8 = 1;

/// First byte of the payload of an entry that holds a membership (`docs/file-format.md`). It is no
/// version of a batch and never will be.
pub const MEMBERSHIP_MARK: u8 = 0x4d;

const CAUSE_DELETED: u32 = 0;
const CAUSE_EXPIRED: u32 = 1;
const CAUSE_EVICTED: u32 = 2;

const _: () = assert!(BATCH_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(KEY_BYTES_MAX < 1 << 24);
const _: () = assert!(VALUE_BYTES_MAX <= u32::MAX as usize);

/// Whether the payload of an entry is a batch: it is empty for a leader's no-op, and marked for a
/// membership.
#[must_use]
pub fn is_batch(payload: &[u8]) -> bool {
    payload
        .first()
        .is_some_and(|first| *first != MEMBERSHIP_MARK)
}

/// Whether the header of a batch announces exactly one fact.
#[must_use]
pub fn is_single(batch: &[u8]) -> bool {
    batch.get(4..HEADER_COUNT_END) == Some(&1_u32.to_le_bytes())
}

/// Opens the batch of an entry with this term in its log id, if the batch counts. `None`: it is
/// void, because its header names another term than its log id, so that it was evaluated on a state
/// that may not be the one before it. Whoever reads entries (apply, recovery, the change stream,
/// backup, dump) asks here and nowhere else.
///
/// # Errors
/// See [`BatchView::parse`].
pub fn effective(log_term: Term, bytes: &[u8]) -> Result<Option<BatchView<'_>>, BatchError> {
    let batch = BatchView::parse(bytes)?;
    let is_effective = batch.term() == log_term || bug::is_on(Bug::TermFenceOff);
    Ok(is_effective.then_some(batch))
}
