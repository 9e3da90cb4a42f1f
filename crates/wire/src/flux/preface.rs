//! The 16 bytes with which each side opens a connection (`docs/wire.md`, "Preface").

use flux_types::limits;

use super::VERSION;

/// What every preface begins with. Neither a RESP request nor HTTP does.
pub const MAGIC: [u8; 4] = *b"FLX1";

/// Length of a preface.
pub const PREFACE_BYTES: usize = 16;

/// The smallest longest frame a side may announce, in bytes of payload: what errors and small
/// replies need.
pub const PAYLOAD_BYTES_MIN: u32 = 4096;

/// The capability of a server that understands request ids in front of a payload. A client may
/// send one only to a server with it.
pub const REQUEST_IDS: u32 = 1;

/// The capability of a server that understands requests for stale reads. A client may send one only
/// to a server with it.
pub const STALE_READS: u32 = 2;

/// Which versions a side speaks and how much it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Lowest version spoken.
    pub version_min: u8,
    /// Highest version spoken. A server that agrees sets both to the version chosen.
    pub version_max: u8,
    /// Longest payload that this side accepts in one frame, in bytes.
    pub payload_bytes_max: u32,
    /// What else this side can do; bits that are not known are ignored. See [`REQUEST_IDS`] and
    /// [`STALE_READS`].
    pub capabilities: u32,
}

/// A preface that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    /// It does not begin with [`MAGIC`].
    #[error("the connection does not open with FLX1")]
    BadMagic,
    /// Its versions are no range.
    #[error("versions {min}..={max} are no range")]
    BadVersions {
        /// The lowest.
        min: u8,
        /// The highest.
        max: u8,
    },
    /// It has a flag that is not assigned.
    #[error("preface flags {0:#06x} are not assigned")]
    UnknownFlags(u16),
    /// The other side accepts too little to be spoken to.
    #[error("a longest payload of {0} bytes is less than {PAYLOAD_BYTES_MIN}")]
    PayloadTooShort(u32),
    /// Both sides speak different versions.
    #[error("the other side speaks versions {min}..={max}, this one {VERSION}")]
    NoCommonVersion {
        /// The lowest of the other side.
        min: u8,
        /// The highest of the other side.
        max: u8,
    },
}

impl Preface {
    /// What this side announces: as a client's first bytes, or as a server's answer to a client
    /// whose versions it does not speak (it then closes).
    #[must_use]
    pub fn announce(payload_bytes_max: usize) -> Self {
        let payload_bytes_max = payload_bytes_max.min(limits::FRAME_BYTES_MAX);
        Self {
            version_min: VERSION,
            version_max: VERSION,
            payload_bytes_max: u32::try_from(payload_bytes_max).unwrap_or(u32::MAX),
            capabilities: REQUEST_IDS | STALE_READS,
        }
    }

    /// A server's answer to a client: the version both speak.
    ///
    /// # Errors
    /// There is none: send [`Preface::announce`] and close.
    pub fn answer(client: &Self, payload_bytes_max: usize) -> Result<Self, PrefaceError> {
        client.agrees()?;
        Ok(Self::announce(payload_bytes_max))
    }

    /// That the other side speaks our version; a client asks this of the server's answer.
    ///
    /// # Errors
    /// It does not.
    pub const fn agrees(&self) -> Result<(), PrefaceError> {
        if self.version_min <= VERSION && VERSION <= self.version_max {
            Ok(())
        } else {
            Err(PrefaceError::NoCommonVersion {
                min: self.version_min,
                max: self.version_max,
            })
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        let mut bytes = [0; PREFACE_BYTES];
        let [f, l, x, one] = MAGIC;
        let [p0, p1, p2, p3] = self.payload_bytes_max.to_le_bytes();
        let [c0, c1, c2, c3] = self.capabilities.to_le_bytes();
        let (min, max) = (self.version_min, self.version_max);
        bytes.copy_from_slice(&[f, l, x, one, min, max, 0, 0, p0, p1, p2, p3, c0, c1, c2, c3]);
        bytes
    }

    /// Reads what the other side sent.
    ///
    /// # Errors
    /// It is no preface, or one of a version whose preface differs.
    pub const fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, PrefaceError> {
        let [
            f,
            l,
            x,
            one,
            version_min,
            version_max,
            f0,
            f1,
            p0,
            p1,
            p2,
            p3,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        if !matches!([f, l, x, one], [b'F', b'L', b'X', b'1']) {
            return Err(PrefaceError::BadMagic);
        }
        if version_min == 0 || version_min > version_max {
            return Err(PrefaceError::BadVersions {
                min: version_min,
                max: version_max,
            });
        }
        let flags = u16::from_le_bytes([f0, f1]);
        if flags != 0 {
            return Err(PrefaceError::UnknownFlags(flags));
        }
        let payload_bytes_max = u32::from_le_bytes([p0, p1, p2, p3]);
        if payload_bytes_max < PAYLOAD_BYTES_MIN {
            return Err(PrefaceError::PayloadTooShort(payload_bytes_max));
        }
        Ok(Self {
            version_min,
            version_max,
            payload_bytes_max,
            capabilities: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }
}
