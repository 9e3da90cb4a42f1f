//! The fields that payloads are made of (`docs/wire.md`, "Fields").

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flux_types::{Compare, Condition, Entry, Expiry, RequestId, Revision, SessionId, UnixMillis};

/// A payload that is not what its operation carries. From a client it is answered, and the
/// connection lives; from a server a client cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends inside a field.
    #[error("payload ends inside its field `{0}`")]
    Short(&'static str),
    /// A field has a value that is not assigned.
    #[error("payload has an unknown value in its field `{0}`")]
    UnknownValue(&'static str),
    /// Bytes follow its last field.
    #[error("payload has {0} bytes after its last field")]
    Long(usize),
    /// The RESP3 value in it is not one.
    #[error("payload holds no RESP3 value")]
    NoValue,
}

/// Bytes of a request id.
const REQUEST_ID_BYTES: usize = 32;

/// Takes the request id from the front of a payload whose frame says that it carries one.
///
/// # Errors
/// There is none.
pub fn take_request_id(payload: &mut Bytes) -> Result<RequestId, Malformed> {
    if payload.len() < REQUEST_ID_BYTES {
        return Err(Malformed::Short("request id"));
    }
    let session = SessionId::new(payload.get_u128()).ok_or(Malformed::UnknownValue("session"))?;
    Ok(RequestId {
        session,
        sequence: payload.get_u64_le(),
        lowest_unanswered: payload.get_u64_le(),
    })
}

pub(super) fn put_request_id(out: &mut BytesMut, request: &RequestId) {
    // A UUID has its own order of bytes.
    out.put_u128(request.session.get());
    out.put_u64_le(request.sequence);
    out.put_u64_le(request.lowest_unanswered);
}

/// Reads fields from the front of a payload. Strings of bytes are slices of it.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) const fn new(payload: Bytes) -> Self {
        Self { rest: payload }
    }

    fn need(&self, length: usize, field: &'static str) -> Result<(), Malformed> {
        if self.rest.len() < length {
            return Err(Malformed::Short(field));
        }
        Ok(())
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.need(1, field)?;
        Ok(self.rest.get_u8())
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.need(2, field)?;
        Ok(self.rest.get_u16_le())
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        self.need(4, field)?;
        Ok(self.rest.get_u32_le())
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Malformed> {
        self.need(8, field)?;
        Ok(self.rest.get_u64_le())
    }

    pub(crate) fn u128(&mut self, field: &'static str) -> Result<u128, Malformed> {
        self.need(16, field)?;
        Ok(self.rest.get_u128_le())
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, Malformed> {
        self.need(8, field)?;
        Ok(self.rest.get_i64_le())
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, Malformed> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::UnknownValue(field)),
        }
    }

    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<Bytes, Malformed> {
        let length = self.u32(field)? as usize;
        self.need(length, field)?;
        Ok(self.rest.split_to(length))
    }

    /// How many bytes are left.
    pub(crate) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    pub(crate) const fn end(&self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed::Long(left)),
        }
    }

    pub(crate) fn expiry(&mut self) -> Result<Expiry, Malformed> {
        let tag = self.u8("expiry")?;
        let millis = self.i64("expiry")?;
        match (tag, millis) {
            (0, 0) => Ok(Expiry::Keep),
            (1, 0) => Ok(Expiry::Clear),
            (2, _) => Ok(Expiry::In(millis)),
            (3, _) => Ok(Expiry::At(millis)),
            _ => Err(Malformed::UnknownValue("expiry")),
        }
    }

    pub(crate) fn compare(&mut self) -> Result<Compare, Malformed> {
        Ok(match self.u8("expected")? {
            0 => Compare::Anything,
            1 => Compare::Absent,
            2 => Compare::Exists,
            3 => Compare::ValueIs(self.bytes("expected")?),
            4 => Compare::RevisionIs(Revision::new(self.u64("expected")?)),
            _ => return Err(Malformed::UnknownValue("expected")),
        })
    }

    pub(crate) fn condition(&mut self) -> Result<Condition, Malformed> {
        Ok(match self.u8("condition")? {
            0 => Condition::Always,
            1 => Condition::Absent,
            2 => Condition::Exists,
            3 => Condition::ValueIs(self.bytes("condition")?),
            _ => return Err(Malformed::UnknownValue("condition")),
        })
    }

    pub(crate) fn entry(&mut self) -> Result<Option<Entry>, Malformed> {
        if !self.flag("present")? {
            return Ok(None);
        }
        let revision = Revision::new(self.u64("revision")?);
        let deadline = match self.u64("deadline")? {
            0 => None,
            millis => Some(UnixMillis::new(millis)),
        };
        Ok(Some(Entry {
            value: self.bytes("value")?,
            revision,
            deadline,
        }))
    }
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(4 + bytes.len());
    // A length beyond 32 bits makes a frame that is refused as too long, whatever this says.
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

pub(crate) fn put_expiry(out: &mut BytesMut, expiry: Expiry) {
    let (tag, millis) = match expiry {
        Expiry::Keep => (0, 0),
        Expiry::Clear => (1, 0),
        Expiry::In(millis) => (2, millis),
        Expiry::At(millis) => (3, millis),
    };
    out.put_u8(tag);
    out.put_i64_le(millis);
}

pub(crate) fn put_compare(out: &mut BytesMut, compare: &Compare) {
    match compare {
        Compare::Anything => out.put_u8(0),
        Compare::Absent => out.put_u8(1),
        Compare::Exists => out.put_u8(2),
        Compare::ValueIs(value) => {
            out.put_u8(3);
            put_bytes(out, value);
        }
        Compare::RevisionIs(revision) => {
            out.put_u8(4);
            out.put_u64_le(revision.get());
        }
    }
}

pub(crate) fn put_condition(out: &mut BytesMut, condition: &Condition) {
    match condition {
        Condition::Always => out.put_u8(0),
        Condition::Absent => out.put_u8(1),
        Condition::Exists => out.put_u8(2),
        Condition::ValueIs(value) => {
            out.put_u8(3);
            put_bytes(out, value);
        }
    }
}
