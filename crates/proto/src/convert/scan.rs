//! Scans: prefixes to patterns, found keys to entries.

use bytes::{BufMut as _, Bytes, BytesMut};
use flux_types::limits::KEY_BYTES_MAX;
use flux_types::{Answer, Error, Reply};

use super::{InvalidField, entry, unexpected};
use crate::kv;

/// The glob pattern of all keys with a prefix; `None` for all keys.
///
/// # Errors
/// If the prefix is longer than a key can be.
pub fn scan_pattern(prefix: &[u8]) -> Result<Option<Bytes>, InvalidField> {
    if prefix.len() > KEY_BYTES_MAX {
        let description = format!("must be at most {KEY_BYTES_MAX} bytes");
        return Err(InvalidField::new("prefix", description));
    }
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut pattern = BytesMut::with_capacity(prefix.len() + 8);
    for &byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'^' | b'-' | b'\\') {
            pattern.put_u8(b'\\');
        }
        pattern.put_u8(byte);
    }
    pattern.put_u8(b'*');
    Ok(Some(pattern.freeze()))
}

/// A key found by a scan, with the entry read for it; `None` if it has gone since.
///
/// # Errors
/// If the entry could not be read.
pub fn scan_entry(key: Bytes, answer: Answer) -> Result<Option<kv::Entry>, Error> {
    match answer.reply {
        Reply::Entry(Some(found)) => Ok(Some(entry(key, *found))),
        Reply::Entry(None) => Ok(None),
        other => Err(unexpected(other)),
    }
}

/// A key found by a scan that asks for keys only.
#[must_use]
pub fn entry_without_value(key: Bytes) -> kv::Entry {
    kv::Entry {
        key,
        ..kv::Entry::default()
    }
}
