//! Frames about the connection: PING, PONG, AUTH, CANCEL, GOAWAY.

use bytes::{BufMut, Bytes, BytesMut};

use super::field::{Malformed, Reader, put_bytes};
use super::frame::{FrameError, Header, Kind, TooLong, write_frame};

/// Longest payload of a PING frame, in bytes.
pub const PING_BYTES_MAX: usize = 64;

/// Longest message of a GOAWAY, in bytes.
const GOAWAY_MESSAGE_BYTES_MAX: usize = 1024;

/// Why a side closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GoawayCode {
    /// It is shutting down: send nothing new, what was received will be answered.
    Shutdown,
    /// Version, kind, flags or payload of a frame make no sense.
    Protocol,
    /// A frame is longer than was agreed.
    FrameTooLong,
    /// A checksum does not fit.
    BadChecksum,
    /// Nothing came for too long, or no authentication in time.
    Idle,
    /// Too much was asked at once.
    Overload,
    /// A code that a later version assigned.
    Other(u16),
}

impl GoawayCode {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Shutdown => 0,
            Self::Protocol => 1,
            Self::FrameTooLong => 2,
            Self::BadChecksum => 3,
            Self::Idle => 4,
            Self::Overload => 5,
            Self::Other(number) => number,
        }
    }

    /// The code of a number.
    #[must_use]
    pub const fn of_number(number: u16) -> Self {
        match number {
            0 => Self::Shutdown,
            1 => Self::Protocol,
            2 => Self::FrameTooLong,
            3 => Self::BadChecksum,
            4 => Self::Idle,
            5 => Self::Overload,
            other => Self::Other(other),
        }
    }
}

impl From<FrameError> for GoawayCode {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::UnknownVersion(_)
            | FrameError::UnknownKind(_)
            | FrameError::UnknownFlags(_) => Self::Protocol,
            FrameError::TooLong { .. } => Self::FrameTooLong,
            FrameError::BadChecksum => Self::BadChecksum,
        }
    }
}

/// The last frame of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goaway {
    /// Why.
    pub code: GoawayCode,
    /// How long requests already sent may still be answered, in milliseconds; 0: not at all.
    pub drain_ms: u32,
    /// A sentence for people.
    pub message: String,
}

impl Goaway {
    /// What is said about bytes that are no frame.
    #[must_use]
    pub fn of_error(error: FrameError) -> Self {
        Self {
            code: error.into(),
            drain_ms: 0,
            message: error.to_string(),
        }
    }

    /// Appends the frame. A message of more than 1,024 bytes is cut.
    pub fn write(&self, out: &mut BytesMut) {
        let message = self.message.as_bytes();
        let message = message.get(..GOAWAY_MESSAGE_BYTES_MAX).unwrap_or(message);
        write_control(out, Kind::Goaway, 0, |out| {
            out.put_u16_le(self.code.number());
            out.put_u32_le(self.drain_ms);
            put_bytes(out, message);
        });
    }

    /// Reads the payload of a GOAWAY frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let goaway = Self {
            code: GoawayCode::of_number(reader.u16("code")?),
            drain_ms: reader.u32("drain_ms")?,
            message: String::from_utf8_lossy(&reader.bytes("message")?).into_owned(),
        };
        reader.end()?;
        Ok(goaway)
    }
}

/// What an AUTH frame carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user; empty for the default user.
    pub user: Bytes,
    /// The password.
    pub password: Bytes,
}

impl std::fmt::Debug for Credentials {
    /// Keeps the password out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Appends the frame. It is answered by a response, like a request.
    ///
    /// # Errors
    /// They are longer than the server accepts before authentication.
    pub fn write(&self, out: &mut BytesMut, correlation: u64) -> Result<(), TooLong> {
        let header = Header {
            kind: Kind::Auth,
            op: 0,
            correlation,
            carries_request_id: false,
            is_stale: false,
            word: 0,
        };
        let bytes_max = flux_types::limits::UNAUTHENTICATED_BULK_BYTES_MAX;
        write_frame(out, header, bytes_max, |out| {
            put_bytes(out, &self.user);
            put_bytes(out, &self.password);
        })
    }

    /// Reads the payload of an AUTH frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let credentials = Self {
            user: reader.bytes("user")?,
            password: reader.bytes("password")?,
        };
        reader.end()?;
        Ok(credentials)
    }
}

/// Appends a PING. What exceeds [`PING_BYTES_MAX`] is cut.
pub fn write_ping(out: &mut BytesMut, correlation: u64, payload: &[u8]) {
    let payload = payload.get(..PING_BYTES_MAX).unwrap_or(payload);
    write_control(out, Kind::Ping, correlation, |out| out.put_slice(payload));
}

/// Appends the answer to a PING. What exceeds [`PING_BYTES_MAX`] is cut.
pub fn write_pong(out: &mut BytesMut, correlation: u64, payload: &[u8]) {
    let payload = payload.get(..PING_BYTES_MAX).unwrap_or(payload);
    write_control(out, Kind::Pong, correlation, |out| out.put_slice(payload));
}

/// Appends a CANCEL: the answer to `correlation` is no longer waited for.
pub fn write_cancel(out: &mut BytesMut, correlation: u64) {
    write_control(out, Kind::Cancel, correlation, |_| {});
}

fn write_control(
    out: &mut BytesMut,
    kind: Kind,
    correlation: u64,
    fill: impl FnOnce(&mut BytesMut),
) {
    let header = Header {
        kind,
        op: 0,
        correlation,
        carries_request_id: false,
        is_stale: false,
        word: 0,
    };
    let written = write_frame(out, header, flux_types::limits::FRAME_BYTES_MAX, fill);
    debug_assert!(written.is_ok(), "control frames are cut to fit every frame");
}
