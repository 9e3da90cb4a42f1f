//! Reading batches without allocation.

use bytes::Bytes;
use flux_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use flux_types::{
    DeleteCause, Fact, RequestId, Revision, SessionId, Term, TraceParent, UnixMillis,
};

use super::{
    BATCH_BYTES_MAX, CAUSE_DELETED, CAUSE_EVICTED, CAUSE_EXPIRED, HAS_DEADLINE, HEADER_BYTES,
    KIND_CLEAR, KIND_DELETE, KIND_FORGET_SESSIONS, KIND_MASK, KIND_PATCH, KIND_PUT, KIND_REQUEST,
    KIND_SET_DEADLINE, KIND_SYSTEM_DELETE, KIND_SYSTEM_PUT, MORE, REQUEST_BYTES, REVISION_END,
    TRACE_MARK, TRACE_SAMPLED, VERSION, VERSION_1, VERSION_2,
};
use crate::kept::{Kept, OUTCOME_BYTES_MAX};

/// Why bytes are not a batch. Offsets count from the start of the batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Shorter than a header, or a fact reaches past the end.
    #[error("batch ends early: {need} bytes wanted at offset {offset}")]
    Short {
        /// Where the missing bytes were expected.
        offset: usize,
        /// How many were wanted there.
        need: usize,
    },
    /// Longer than any batch may be.
    #[error("batch of {bytes} bytes is longer than {BATCH_BYTES_MAX}")]
    Long {
        /// Its length.
        bytes: usize,
    },
    /// Written by a later version of the program, or not a batch.
    #[error("batch has version {version}, this program reads 1 to {VERSION}")]
    Version {
        /// What the first byte says.
        version: u8,
    },
    /// A reserved byte or bit is set, or a field that its kind does not use is not zero.
    #[error("batch has a reserved field set at offset {offset}")]
    Reserved {
        /// Where.
        offset: usize,
    },
    /// No such kind of fact or cause of deletion.
    #[error("batch has an unknown kind {kind} at offset {offset}")]
    Kind {
        /// Where.
        offset: usize,
        /// What is there.
        kind: u32,
    },
    /// A fact that the batch's version does not have.
    #[error("batch has a fact of version {since} at offset {offset}")]
    Newer {
        /// Where it or the trace before it begins.
        offset: usize,
        /// The first version that has it.
        since: u8,
    },
    /// A key or value longer than any limit.
    #[error("batch has a key or value beyond its limit at offset {offset}")]
    Limit {
        /// Where its fact begins.
        offset: usize,
    },
    /// No facts, or revisions that do not fit.
    #[error("batch of {count} facts from revision {first}")]
    Count {
        /// Facts that the header announces.
        count: u32,
        /// Their first revision.
        first: u64,
    },
    /// Bytes after the last fact.
    #[error("batch has bytes after its last fact, from offset {offset}")]
    Trailing {
        /// Where they begin.
        offset: usize,
    },
    /// The last fact says that its group goes on.
    #[error("the last group of the batch is not complete")]
    OpenGroup,
    /// A trace that names none, or stands within a group.
    #[error("batch has a malformed trace at offset {offset}")]
    Trace {
        /// Where.
        offset: usize,
    },
}

/// A fact inside a batch. Cheap to copy; borrows the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactRef<'a> {
    /// See [`Fact::Put`].
    Put {
        /// The key.
        key: &'a [u8],
        /// The whole value.
        value: &'a [u8],
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// See [`Fact::Delete`].
    Delete {
        /// The key.
        key: &'a [u8],
        /// Why it went.
        cause: DeleteCause,
    },
    /// See [`Fact::SetDeadline`].
    SetDeadline {
        /// The key.
        key: &'a [u8],
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// See [`Fact::Patch`].
    Patch {
        /// The key.
        key: &'a [u8],
        /// Where the bytes go.
        offset: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// See [`Fact::Clear`].
    Clear,
    /// See [`Fact::SystemPut`].
    SystemPut {
        /// The name.
        name: &'a [u8],
        /// The data.
        value: &'a [u8],
    },
    /// See [`Fact::SystemDelete`].
    SystemDelete {
        /// The name.
        name: &'a [u8],
    },
    /// See [`Fact::Request`].
    Request {
        /// The write.
        request: RequestId,
        /// When its session is forgotten.
        expires_at: UnixMillis,
        /// What became of it.
        outcome: &'a [u8],
    },
    /// See [`Fact::ForgetSessions`].
    ForgetSessions {
        /// The time.
        until: UnixMillis,
    },
}

impl<'a> FactRef<'a> {
    /// The key, unless the fact is about all keys or none.
    #[must_use]
    pub const fn key(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Put { key, .. }
            | Self::Delete { key, .. }
            | Self::SetDeadline { key, .. }
            | Self::Patch { key, .. } => Some(key),
            Self::Clear
            | Self::SystemPut { .. }
            | Self::SystemDelete { .. }
            | Self::Request { .. }
            | Self::ForgetSessions { .. } => None,
        }
    }

    /// Whether it is about what the node keeps for itself: system data and requests.
    #[must_use]
    pub const fn is_system(&self) -> bool {
        matches!(
            self,
            Self::SystemPut { .. }
                | Self::SystemDelete { .. }
                | Self::Request { .. }
                | Self::ForgetSessions { .. }
        )
    }

    /// The first version of the format that has it.
    const fn since(&self) -> u8 {
        match self {
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::SetDeadline { .. }
            | Self::Patch { .. }
            | Self::Clear => VERSION_1,
            Self::SystemPut { .. } | Self::SystemDelete { .. } => VERSION_2,
            Self::Request { .. } | Self::ForgetSessions { .. } => VERSION,
        }
    }

    /// The fact with buffers of its own.
    #[must_use]
    pub fn to_fact(&self) -> Fact {
        self.to_fact_with(Bytes::copy_from_slice)
    }

    /// The fact with its buffers made by `own`; for a batch inside a `Bytes` that may be
    /// `|slice| batch.slice_ref(slice)`, which copies nothing.
    pub fn to_fact_with(&self, own: impl Fn(&'a [u8]) -> Bytes) -> Fact {
        match *self {
            Self::Put {
                key,
                value,
                deadline,
            } => Fact::Put {
                key: own(key),
                value: own(value),
                deadline,
            },
            Self::Delete { key, cause } => Fact::Delete {
                key: own(key),
                cause,
            },
            Self::SetDeadline { key, deadline } => Fact::SetDeadline {
                key: own(key),
                deadline,
            },
            Self::Patch { key, offset, bytes } => Fact::Patch {
                key: own(key),
                offset,
                bytes: own(bytes),
            },
            Self::Clear => Fact::Clear,
            Self::SystemPut { name, value } => Fact::SystemPut {
                name: own(name),
                value: own(value),
            },
            Self::SystemDelete { name } => Fact::SystemDelete { name: own(name) },
            Self::Request {
                request,
                expires_at,
                outcome,
            } => Fact::Request {
                request,
                expires_at,
                outcome: own(outcome),
            },
            Self::ForgetSessions { until } => Fact::ForgetSessions { until },
        }
    }
}

impl<'a> From<&'a Fact> for FactRef<'a> {
    fn from(fact: &'a Fact) -> Self {
        match fact {
            Fact::Put {
                key,
                value,
                deadline,
            } => Self::Put {
                key,
                value,
                deadline: *deadline,
            },
            Fact::Delete { key, cause } => Self::Delete { key, cause: *cause },
            Fact::SetDeadline { key, deadline } => Self::SetDeadline {
                key,
                deadline: *deadline,
            },
            Fact::Patch { key, offset, bytes } => Self::Patch {
                key,
                offset: *offset,
                bytes,
            },
            Fact::Clear => Self::Clear,
            Fact::SystemPut { name, value } => Self::SystemPut { name, value },
            Fact::SystemDelete { name } => Self::SystemDelete { name },
            Fact::Request {
                request,
                expires_at,
                outcome,
            } => Self::Request {
                request: *request,
                expires_at: *expires_at,
                outcome,
            },
            Fact::ForgetSessions { until } => Self::ForgetSessions { until: *until },
        }
    }
}

/// A batch that has been checked from end to end.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    version: u8,
    term: Term,
    at: UnixMillis,
    first_revision: Revision,
    fact_count: u32,
    facts: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Checks and opens a batch.
    ///
    /// # Errors
    /// Whenever the bytes are not exactly what [`super::BatchWriter`] writes. Never panics.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(BatchError::Long { bytes: bytes.len() });
        }
        let mut cursor = Cursor {
            rest: bytes,
            offset: 0,
        };
        let [version, flags] = cursor.array()?;
        if !(VERSION_1..=VERSION).contains(&version) {
            return Err(BatchError::Version { version });
        }
        let reserved: [u8; 2] = cursor.array()?;
        if flags != 0 || reserved != [0; 2] {
            return Err(BatchError::Reserved { offset: 1 });
        }
        let fact_count = cursor.u32()?;
        let term = Term::new(cursor.u64()?);
        let at = UnixMillis::new(cursor.u64()?);
        let first = cursor.u64()?;
        debug_assert_eq!(cursor.offset, HEADER_BYTES);
        let in_range = 0 < first && 0 < fact_count;
        let end = first.checked_add(u64::from(fact_count));
        if !in_range || end.is_none_or(|end| end > REVISION_END) {
            return Err(BatchError::Count {
                count: fact_count,
                first,
            });
        }
        let facts = cursor.rest;
        let mut more = false;
        for _ in 0..fact_count {
            let offset = cursor.offset;
            if cursor.trace()?.is_some() && (more || version == VERSION_1) {
                return Err(BatchError::Trace { offset });
            }
            let (fact, goes_on) = cursor.fact()?;
            if version < fact.since() {
                let since = fact.since();
                return Err(BatchError::Newer { offset, since });
            }
            if let FactRef::Request { outcome, .. } = fact
                && Kept::parse(outcome).is_none()
            {
                return Err(BatchError::Reserved { offset });
            }
            more = goes_on;
        }
        if !cursor.rest.is_empty() {
            return Err(BatchError::Trailing {
                offset: cursor.offset,
            });
        }
        if more {
            return Err(BatchError::OpenGroup);
        }
        Ok(Self {
            version,
            term,
            at,
            first_revision: Revision::new(first),
            fact_count,
            facts,
        })
    }

    /// The version of the format it is written in.
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version
    }

    /// The term whose leader evaluated it. A batch is void if its log id has another.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The time at which it was evaluated.
    #[must_use]
    pub const fn at(&self) -> UnixMillis {
        self.at
    }

    /// The revision of the first fact; the others follow densely.
    #[must_use]
    pub const fn first_revision(&self) -> Revision {
        self.first_revision
    }

    /// The revision of the last fact.
    #[must_use]
    pub const fn last_revision(&self) -> Revision {
        Revision::new(self.first_revision.get() + (self.fact_count as u64 - 1))
    }

    /// Number of facts, at least one.
    #[must_use]
    pub const fn fact_count(&self) -> u32 {
        self.fact_count
    }

    /// The facts with their revisions, in order.
    #[must_use]
    pub const fn facts(&self) -> Facts<'a> {
        Facts {
            cursor: Cursor {
                rest: self.facts,
                offset: HEADER_BYTES,
            },
            revision: self.first_revision,
            trace: None,
            in_group: false,
        }
    }

    /// The groups, each an iterator over its facts. What changes state must treat each as one.
    #[must_use]
    pub const fn groups(&self) -> Groups<'a> {
        Groups {
            facts: self.facts(),
        }
    }
}

/// Iterator over `(revision, fact)`.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    cursor: Cursor<'a>,
    revision: Revision,
    trace: Option<TraceParent>,
    in_group: bool,
}

impl<'a> Facts<'a> {
    /// The next fact with its revision, and whether its group goes on after it.
    #[inline]
    pub fn step(&mut self) -> Option<(Revision, FactRef<'a>, bool)> {
        if self.cursor.rest.is_empty() {
            return None;
        }
        // Parsing has checked every fact, so these are never errors.
        if !self.in_group {
            self.trace = self.cursor.trace().ok()?;
        }
        let (fact, more) = self.cursor.fact().ok()?;
        self.in_group = more;
        let revision = self.revision;
        self.revision = revision.next();
        Some((revision, fact, more))
    }
}

impl Facts<'_> {
    /// The request that caused the group of the fact that came last.
    #[must_use]
    pub const fn trace(&self) -> Option<TraceParent> {
        self.trace
    }
}

impl<'a> Iterator for Facts<'a> {
    type Item = (Revision, FactRef<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.step().map(|(revision, fact, _)| (revision, fact))
    }
}

/// Iterator over the groups of a batch.
#[derive(Clone, Debug)]
pub struct Groups<'a> {
    facts: Facts<'a>,
}

impl<'a> Iterator for Groups<'a> {
    type Item = Vec<(Revision, FactRef<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut group = Vec::new();
        while let Some((revision, fact, more)) = self.facts.step() {
            group.push((revision, fact));
            if !more {
                break;
            }
        }
        (!group.is_empty()).then_some(group)
    }
}

/// What every fact begins with.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: u8,
    key_len: usize,
    argument: u32,
    deadline: Option<UnixMillis>,
}

#[derive(Clone, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn take(&mut self, need: usize) -> Result<&'a [u8], BatchError> {
        let Some((head, rest)) = self.rest.split_at_checked(need) else {
            return Err(BatchError::Short {
                offset: self.offset,
                need,
            });
        };
        self.rest = rest;
        self.offset += need;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(BatchError::Short {
                offset: self.offset,
                need: N,
            });
        };
        self.rest = rest;
        self.offset += N;
        Ok(*head)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, BatchError> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, BatchError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The trace here, if one stands here.
    #[inline]
    fn trace(&mut self) -> Result<Option<TraceParent>, BatchError> {
        if self.rest.first() != Some(&TRACE_MARK) {
            return Ok(None);
        }
        let offset = self.offset;
        let [_mark] = self.array()?;
        let trace_id = u128::from_le_bytes(self.array()?);
        let span_id = self.u64()?;
        let [flags] = self.array()?;
        let trace = TraceParent::new(trace_id, span_id, flags == TRACE_SAMPLED);
        if trace.is_none() || flags & !TRACE_SAMPLED != 0 {
            return Err(BatchError::Trace { offset });
        }
        Ok(trace)
    }

    /// A fact about what the node keeps for itself.
    fn fact_of_the_node(&mut self, head: &Head, start: usize) -> Result<FactRef<'a>, BatchError> {
        let Head {
            kind,
            key_len,
            argument,
            deadline,
        } = *head;
        Ok(match (kind, deadline) {
            (KIND_SYSTEM_PUT, None) => {
                let value_len = checked_len(argument, start)?;
                FactRef::SystemPut {
                    name: self.take(key_len)?,
                    value: self.take(value_len)?,
                }
            }
            (KIND_SYSTEM_DELETE, None) if argument == 0 => FactRef::SystemDelete {
                name: self.take(key_len)?,
            },
            (KIND_REQUEST, Some(expires_at)) if key_len == REQUEST_BYTES => {
                let outcome_len = argument as usize;
                if outcome_len > OUTCOME_BYTES_MAX {
                    return Err(BatchError::Limit { offset: start });
                }
                FactRef::Request {
                    request: self.request(start)?,
                    expires_at,
                    outcome: self.take(outcome_len)?,
                }
            }
            (KIND_FORGET_SESSIONS, Some(until)) if key_len == 0 && argument == 0 => {
                FactRef::ForgetSessions { until }
            }
            (KIND_SYSTEM_PUT | KIND_SYSTEM_DELETE | KIND_REQUEST | KIND_FORGET_SESSIONS, _) => {
                return Err(BatchError::Reserved { offset: start });
            }
            _ => {
                return Err(BatchError::Kind {
                    offset: start,
                    kind: u32::from(kind),
                });
            }
        })
    }

    /// The request id here, in the place of a key.
    fn request(&mut self, start: usize) -> Result<RequestId, BatchError> {
        let session = SessionId::new(u128::from_le_bytes(self.array()?));
        let sequence = self.u64()?;
        let lowest_unanswered = self.u64()?;
        let in_order = 0 < lowest_unanswered && lowest_unanswered <= sequence;
        match session {
            Some(session) if in_order => Ok(RequestId {
                session,
                sequence,
                lowest_unanswered,
            }),
            Some(_) | None => Err(BatchError::Reserved { offset: start }),
        }
    }

    /// The fact here, and whether its group goes on.
    #[inline]
    fn fact(&mut self) -> Result<(FactRef<'a>, bool), BatchError> {
        let start = self.offset;
        let [mark, k0, k1, k2] = self.array()?;
        let key_len = u32::from_le_bytes([k0, k1, k2, 0]) as usize;
        let argument = self.u32()?;
        if mark & !(KIND_MASK | HAS_DEADLINE | MORE) != 0 {
            return Err(BatchError::Reserved { offset: start });
        }
        if key_len > KEY_BYTES_MAX {
            return Err(BatchError::Limit { offset: start });
        }
        let deadline = if mark & HAS_DEADLINE != 0 {
            Some(UnixMillis::new(self.u64()?))
        } else {
            None
        };
        let kind = mark & KIND_MASK;
        let fact = match kind {
            KIND_PUT => {
                let value_len = checked_len(argument, start)?;
                FactRef::Put {
                    key: self.take(key_len)?,
                    value: self.take(value_len)?,
                    deadline,
                }
            }
            KIND_SET_DEADLINE if argument == 0 => FactRef::SetDeadline {
                key: self.take(key_len)?,
                deadline,
            },
            KIND_DELETE if deadline.is_none() => FactRef::Delete {
                cause: cause(argument, start)?,
                key: self.take(key_len)?,
            },
            KIND_PATCH if deadline.is_none() => {
                let offset = self.u32()?;
                let bytes_len = checked_len(argument, start)?;
                if offset as usize > VALUE_BYTES_MAX - bytes_len {
                    return Err(BatchError::Limit { offset: start });
                }
                FactRef::Patch {
                    key: self.take(key_len)?,
                    offset,
                    bytes: self.take(bytes_len)?,
                }
            }
            KIND_CLEAR if deadline.is_none() && key_len == 0 && argument == 0 => FactRef::Clear,
            KIND_DELETE | KIND_SET_DEADLINE | KIND_PATCH | KIND_CLEAR => {
                return Err(BatchError::Reserved { offset: start });
            }
            _ => {
                let head = Head {
                    kind,
                    key_len,
                    argument,
                    deadline,
                };
                self.fact_of_the_node(&head, start)?
            }
        };
        Ok((fact, mark & MORE != 0))
    }
}

const fn checked_len(argument: u32, start: usize) -> Result<usize, BatchError> {
    let len = argument as usize;
    if len > VALUE_BYTES_MAX {
        return Err(BatchError::Limit { offset: start });
    }
    Ok(len)
}

const fn cause(argument: u32, start: usize) -> Result<DeleteCause, BatchError> {
    match argument {
        CAUSE_DELETED => Ok(DeleteCause::Deleted),
        CAUSE_EXPIRED => Ok(DeleteCause::Expired),
        CAUSE_EVICTED => Ok(DeleteCause::Evicted),
        kind => Err(BatchError::Kind {
            offset: start + 4,
            kind,
        }),
    }
}
