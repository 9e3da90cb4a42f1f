//! The fields that the frames between nodes are made of, beside those of replication itself
//! (`docs/replication.md`).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A payload that no node of ours sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed field `{0}`")]
pub(crate) struct Malformed(pub(super) &'static str);

pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) const fn new(rest: Bytes) -> Self {
        Self { rest }
    }

    fn need(&self, count: usize, field: &'static str) -> Result<(), Malformed> {
        if self.rest.len() < count {
            return Err(Malformed(field));
        }
        Ok(())
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.need(1, field)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.need(2, field)?;
        Ok(self.rest.get_u16_le())
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        self.need(4, field)?;
        Ok(self.rest.get_u32_le())
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, Malformed> {
        self.need(8, field)?;
        Ok(self.rest.get_u64_le())
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], Malformed> {
        self.need(N, field)?;
        let mut array = [0; N];
        self.rest.copy_to_slice(&mut array);
        Ok(array)
    }

    /// A string of bytes behind its length: a part of what was read, not a copy.
    pub(super) fn bytes(&mut self, field: &'static str) -> Result<Bytes, Malformed> {
        let length = self.u32(field)? as usize;
        self.need(length, field)?;
        Ok(self.rest.split_to(length))
    }

    pub(super) const fn rest_bytes(&self) -> usize {
        self.rest.len()
    }

    /// A count of items of at least so many bytes each, which the rest must have room for.
    pub(super) fn count(
        &mut self,
        count_max: usize,
        item_bytes: usize,
        field: &'static str,
    ) -> Result<usize, Malformed> {
        let count = usize::from(self.u16(field)?);
        if count_max < count || self.rest.len() / item_bytes < count {
            return Err(Malformed(field));
        }
        Ok(count)
    }

    pub(super) fn text(
        &mut self,
        bytes_max: usize,
        field: &'static str,
    ) -> Result<String, Malformed> {
        let bytes = self.short(bytes_max, field)?;
        String::from_utf8(bytes.into()).map_err(|_| Malformed(field))
    }

    pub(super) fn short(
        &mut self,
        bytes_max: usize,
        field: &'static str,
    ) -> Result<Bytes, Malformed> {
        let length = usize::from(self.u16(field)?);
        if bytes_max < length {
            return Err(Malformed(field));
        }
        self.need(length, field)?;
        Ok(self.rest.split_to(length))
    }

    pub(super) const fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("end"))
        }
    }
}

pub(super) fn put_count(out: &mut BytesMut, count: usize) {
    // Whoever reads refuses what is beyond its limits; nothing of ours comes near.
    out.put_u16_le(u16::try_from(count).unwrap_or(u16::MAX));
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}
