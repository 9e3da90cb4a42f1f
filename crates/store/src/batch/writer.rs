//! Writing batches.

use bytes::Bytes;
use flux_types::{DeleteCause, RequestId, Revision, Term, TraceParent, UnixMillis};

use super::{
    CAUSE_DELETED, CAUSE_EVICTED, CAUSE_EXPIRED, FACT_HEAD_BYTES, FactRef, HAS_DEADLINE,
    HEADER_BYTES, KIND_CLEAR, KIND_DELETE, KIND_FORGET_SESSIONS, KIND_PATCH, KIND_PUT,
    KIND_REQUEST, KIND_SET_DEADLINE, KIND_SYSTEM_DELETE, KIND_SYSTEM_PUT, MORE, REQUEST_BYTES,
    TRACE_BYTES, TRACE_MARK, VERSION,
};

/// Builds a batch fact by fact.
#[derive(Debug)]
pub struct BatchWriter {
    buffer: Vec<u8>,
    fact_count: u32,
    first_revision: Revision,
    /// Offset of the last fact's head, if a group is open and has one.
    open: Option<usize>,
    grouping: bool,
    /// The trace of the open group, until its first fact comes.
    trace: Option<TraceParent>,
}

/// Where a fact's key and value lie in the batch's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl BatchWriter {
    /// A batch of the leader of `term`, evaluated `at` a time, whose first fact takes `first_revision`.
    #[must_use]
    pub fn new(term: Term, at: UnixMillis, first_revision: Revision) -> Self {
        let mut buffer = Vec::with_capacity(4096);
        buffer.extend_from_slice(&[VERSION, 0, 0, 0]);
        buffer.extend_from_slice(&0_u32.to_le_bytes());
        buffer.extend_from_slice(&term.get().to_le_bytes());
        buffer.extend_from_slice(&at.get().to_le_bytes());
        buffer.extend_from_slice(&first_revision.get().to_le_bytes());
        debug_assert_eq!(buffer.len(), HEADER_BYTES);
        Self {
            buffer,
            fact_count: 0,
            first_revision,
            open: None,
            grouping: false,
            trace: None,
        }
    }

    /// From here on facts belong to one group, until [`Self::end_group`].
    pub const fn begin_group(&mut self) {
        self.begin_traced_group(None);
    }

    /// As [`Self::begin_group`], and notes which request causes the group.
    pub const fn begin_traced_group(&mut self, trace: Option<TraceParent>) {
        self.grouping = true;
        self.open = None;
        self.trace = trace;
    }

    /// Ends the group. A group without facts leaves no trace.
    pub const fn end_group(&mut self) {
        self.grouping = false;
        self.open = None;
        self.trace = None;
    }

    /// Adds a fact: to the open group, or as a group of its own. Gives back its revision.
    ///
    /// # Panics
    /// If key or value are longer than the format can say; evaluation checks limits far below.
    pub fn push(&mut self, fact: FactRef<'_>) -> Revision {
        self.push_spanned(fact).0
    }

    /// As [`Self::push`], and says where key and value (or patch) came to lie.
    #[inline]
    pub(crate) fn push_spanned(&mut self, fact: FactRef<'_>) -> (Revision, Span, Span) {
        if let Some(previous) = self.open.take()
            && let Some(mark) = self.buffer.get_mut(previous)
        {
            *mark |= MORE;
        }
        if let Some(trace) = self.trace.take() {
            self.write_trace(trace);
        }
        if self.grouping {
            self.open = Some(self.buffer.len());
        }
        let revision = Revision::new(self.first_revision.get() + u64::from(self.fact_count));
        self.fact_count += 1;
        let (key, value) = match fact {
            FactRef::Put {
                key,
                value,
                deadline,
            } => {
                self.head(KIND_PUT, key, length(value), deadline);
                self.body(key, value)
            }
            FactRef::Delete { key, cause } => {
                let cause = match cause {
                    DeleteCause::Deleted => CAUSE_DELETED,
                    DeleteCause::Expired => CAUSE_EXPIRED,
                    DeleteCause::Evicted => CAUSE_EVICTED,
                };
                self.head(KIND_DELETE, key, cause, None);
                self.body(key, &[])
            }
            FactRef::SetDeadline { key, deadline } => {
                self.head(KIND_SET_DEADLINE, key, 0, deadline);
                self.body(key, &[])
            }
            FactRef::Patch { key, offset, bytes } => {
                self.head(KIND_PATCH, key, length(bytes), None);
                self.buffer.extend_from_slice(&offset.to_le_bytes());
                self.body(key, bytes)
            }
            FactRef::Clear => {
                self.head(KIND_CLEAR, &[], 0, None);
                self.body(&[], &[])
            }
            FactRef::SystemPut { name, value } => {
                self.head(KIND_SYSTEM_PUT, name, length(value), None);
                self.body(name, value)
            }
            FactRef::SystemDelete { name } => {
                self.head(KIND_SYSTEM_DELETE, name, 0, None);
                self.body(name, &[])
            }
            FactRef::Request {
                request,
                expires_at,
                outcome,
            } => {
                let key = request_bytes(&request);
                self.head(KIND_REQUEST, &key, length(outcome), Some(expires_at));
                self.body(&key, outcome)
            }
            FactRef::ForgetSessions { until } => {
                self.head(KIND_FORGET_SESSIONS, &[], 0, Some(until));
                self.body(&[], &[])
            }
        };
        (revision, key, value)
    }

    fn write_trace(&mut self, trace: TraceParent) {
        self.buffer.reserve(TRACE_BYTES);
        self.buffer.push(TRACE_MARK);
        self.buffer
            .extend_from_slice(&trace.trace_id().to_le_bytes());
        self.buffer
            .extend_from_slice(&trace.span_id().to_le_bytes());
        self.buffer.push(u8::from(trace.is_sampled()));
    }

    #[inline]
    fn head(&mut self, kind: u8, key: &[u8], argument: u32, deadline: Option<UnixMillis>) {
        self.buffer
            .reserve(FACT_HEAD_BYTES + 12 + key.len() + argument as usize);
        let mark = kind | if deadline.is_some() { HAS_DEADLINE } else { 0 };
        let [k0, k1, k2, k3] = length(key).to_le_bytes();
        assert_eq!(k3, 0, "a key's length has 24 bits");
        let [a0, a1, a2, a3] = argument.to_le_bytes();
        self.buffer
            .extend_from_slice(&[mark, k0, k1, k2, a0, a1, a2, a3]);
        if let Some(deadline) = deadline {
            self.buffer.extend_from_slice(&deadline.get().to_le_bytes());
        }
    }

    #[inline]
    fn body(&mut self, key: &[u8], value: &[u8]) -> (Span, Span) {
        let key_span = self.span(key.len());
        self.buffer.extend_from_slice(key);
        let value_span = self.span(value.len());
        self.buffer.extend_from_slice(value);
        (key_span, value_span)
    }

    fn span(&self, len: usize) -> Span {
        Span {
            offset: u32::try_from(self.buffer.len()).unwrap_or(u32::MAX),
            len: u32::try_from(len).unwrap_or(u32::MAX),
        }
    }

    /// The bytes of a span.
    #[inline]
    pub(crate) fn slice(&self, span: Span) -> &[u8] {
        let start = span.offset as usize;
        self.buffer
            .get(start..start + span.len as usize)
            .unwrap_or(&[])
    }

    /// Bytes so far, the header included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Facts so far.
    #[must_use]
    pub const fn fact_count(&self) -> u32 {
        self.fact_count
    }

    /// The revision of the last fact, or of the state before the batch if there is none yet.
    #[must_use]
    pub const fn last_revision(&self) -> Revision {
        Revision::new(self.first_revision.get() + self.fact_count as u64 - 1)
    }

    /// The finished batch, or `None` if it has no facts.
    #[must_use]
    pub fn finish(mut self) -> Option<Bytes> {
        if self.fact_count == 0 {
            return None;
        }
        let count = self.fact_count.to_le_bytes();
        self.buffer.get_mut(4..8)?.copy_from_slice(&count);
        Some(Bytes::from(self.buffer))
    }
}

fn length(bytes: &[u8]) -> u32 {
    // Saturation is caught by the assertion on keys and cannot happen to values of at most 64 MiB.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn request_bytes(request: &RequestId) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    let (session, numbers) = bytes.split_at_mut(16);
    let (sequence, lowest) = numbers.split_at_mut(8);
    session.copy_from_slice(&request.session.get().to_le_bytes());
    sequence.copy_from_slice(&request.sequence.to_le_bytes());
    lowest.copy_from_slice(&request.lowest_unanswered.to_le_bytes());
    bytes
}
