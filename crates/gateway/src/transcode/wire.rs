//! Protobuf wire format by hand: varints, tags and length-delimited fields, without an allocation.
//!
//! Hot path: every request and response passes here byte by byte. Nothing in this file knows a
//! descriptor; it only reads and writes what <https://protobuf.dev/programming-guides/encoding/>
//! describes. Reading never trusts a length: each is checked against what is left.

/// Nesting of groups (the deprecated delimited encoding) that is followed when skipping.
const GROUP_DEPTH_MAX: usize = 100;

/// The bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The encodings a field's value can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Bytes,
    StartGroup,
    EndGroup,
    Fixed32,
}

impl WireType {
    fn from_low_bits(bits: u64) -> Result<Self, Malformed> {
        match bits {
            0 => Ok(Self::Varint),
            1 => Ok(Self::Fixed64),
            2 => Ok(Self::Bytes),
            3 => Ok(Self::StartGroup),
            4 => Ok(Self::EndGroup),
            5 => Ok(Self::Fixed32),
            _ => Err(Malformed),
        }
    }

    const fn bits(self) -> u64 {
        match self {
            Self::Varint => 0,
            Self::Fixed64 => 1,
            Self::Bytes => 2,
            Self::StartGroup => 3,
            Self::EndGroup => 4,
            Self::Fixed32 => 5,
        }
    }
}

/// What is left to read of one message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes that are left.
    #[cfg(test)]
    pub(crate) const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads a varint of at most ten bytes.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for (position, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            if position == 9 && *byte > 1 {
                return Err(Malformed);
            }
            value |= bits << (7 * position);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(position + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// Reads a field number and how its value is encoded.
    pub(crate) fn tag(&mut self) -> Result<(u32, WireType), Malformed> {
        let raw = self.varint()?;
        let wire_type = WireType::from_low_bits(raw & 7)?;
        let number = u32::try_from(raw >> 3).map_err(|_| Malformed)?;
        if number == 0 || number > 536_870_911 {
            return Err(Malformed);
        }
        Ok((number, wire_type))
    }

    /// Reads a length and that many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    pub(crate) fn fixed32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    pub(crate) fn fixed64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    /// The content of the group whose start tag was just read; the end tag is consumed.
    pub(crate) fn group(&mut self, number: u32) -> Result<&'a [u8], Malformed> {
        let start = self.rest;
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            let before_tag = self.rest.len();
            let (number, wire_type) = self.tag()?;
            match wire_type {
                WireType::StartGroup if open.len() < GROUP_DEPTH_MAX => open.push(number),
                WireType::StartGroup => return Err(Malformed),
                WireType::EndGroup if number == innermost => {
                    open.pop();
                    if open.is_empty() {
                        return start.get(..start.len() - before_tag).ok_or(Malformed);
                    }
                }
                WireType::EndGroup => return Err(Malformed),
                WireType::Varint | WireType::Fixed64 | WireType::Bytes | WireType::Fixed32 => {
                    self.skip(number, wire_type)?;
                }
            }
        }
        Err(Malformed)
    }

    /// Skips the value of a field whose tag was just read.
    pub(crate) fn skip(&mut self, number: u32, wire_type: WireType) -> Result<(), Malformed> {
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.take(8).map(drop),
            WireType::Bytes => self.bytes().map(drop),
            WireType::Fixed32 => self.take(4).map(drop),
            WireType::StartGroup => self.group(number).map(drop),
            WireType::EndGroup => Err(Malformed),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// The last varint that the message holds for a top-level field, 0 if none.
///
/// This reads a flag back from a request that is already encoded, whichever way it came in.
pub(crate) fn last_varint(message: &[u8], wanted: u32) -> Result<u64, Malformed> {
    let mut cursor = Cursor::new(message);
    let mut last = 0;
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag()?;
        if number == wanted && wire_type == WireType::Varint {
            last = cursor.varint()?;
        } else {
            cursor.skip(number, wire_type)?;
        }
    }
    Ok(last)
}

pub(crate) fn put_varint(out: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, out);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: WireType) {
    put_varint(out, u64::from(number) << 3 | wire_type.bits());
}

/// Writes a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reserves one byte for a length that is not known yet. Most nested messages are shorter than
/// 128 bytes, so guessing one byte and shifting the rare longer one beats measuring first.
pub(crate) fn open_length(out: &mut Vec<u8>) -> usize {
    out.push(0);
    out.len()
}

/// Fills in the length reserved by [`open_length`], which returned `content_start`.
pub(crate) fn close_length(out: &mut Vec<u8>, content_start: usize) {
    let length = out.len() - content_start;
    let at = content_start - 1;
    if let (Ok(byte @ 0..=0x7f), Some(reserved)) = (u8::try_from(length), out.get_mut(at)) {
        *reserved = byte;
        return;
    }
    let mut varint = Vec::with_capacity(10);
    put_varint(&mut varint, length as u64);
    drop(out.splice(at..content_start, varint));
}

/// The low 32 bits, which is how 32-bit fields read a longer varint.
pub(crate) fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(crate) const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_size_are_filled_in() {
        for length in [0_usize, 1, 127, 128, 300, 16_383, 16_384] {
            let mut out = b"head".to_vec();
            let start = open_length(&mut out);
            out.resize(out.len() + length, 7);
            close_length(&mut out, start);
            let mut cursor = Cursor::new(out.strip_prefix(b"head").unwrap());
            assert_eq!(cursor.bytes().unwrap().len(), length);
            assert!(cursor.is_empty());
        }
    }

    #[test]
    fn groups_end_at_their_own_tag() {
        let mut out = Vec::new();
        put_tag(&mut out, 2, WireType::Varint);
        put_varint(&mut out, 5);
        let inner = out.len();
        put_tag(&mut out, 1, WireType::EndGroup);
        let mut cursor = Cursor::new(&out);
        assert_eq!(cursor.group(1).unwrap().len(), inner);
        assert!(cursor.is_empty());
        assert!(Cursor::new(&out).group(3).is_err());
    }

    #[test]
    fn truncated_input_is_refused_everywhere() {
        let mut out = Vec::new();
        put_tag(&mut out, 1, WireType::Bytes);
        put_bytes(&mut out, b"hello");
        for cut in 1..out.len() {
            let mut cursor = Cursor::new(&out[..cut]);
            let read = cursor.tag().and_then(|(n, t)| cursor.skip(n, t));
            assert!(read.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn zigzag_is_its_own_inverse() {
        for value in [0, 1, -1, i64::MAX, i64::MIN, 12_345] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn overlong_varints_are_refused() {
        assert!(Cursor::new(&[0xff; 11]).varint().is_err());
        let mut max = vec![0xff; 9];
        max.push(1);
        assert_eq!(Cursor::new(&max).varint(), Ok(u64::MAX));
    }
}
