//! FLUX: the framed protocol of `docs/wire.md`, both its sides.
//!
//! A connection opens with a [`Preface`] each way; then everything is a [`Frame`] with a fixed
//! header of 24 bytes, a checksum over header and payload, and a correlation id, so that replies
//! may come in any order. A server decodes an [`Operation`] and writes answers; a client encodes
//! operations and reads a [`Response`]. What cannot be trusted any more (magic, length, checksum)
//! ends the connection with a [`Goaway`]; what is only unknown is answered and the connection
//! lives.

pub mod code;
pub mod control;
pub(crate) mod field;
pub mod frame;
pub mod operation;
pub mod preface;
pub mod response;

pub use code::{code_of_number, number_of_code};
pub use control::{Credentials, Goaway, GoawayCode};
pub use field::{Malformed, take_request_id};
pub use frame::{Frame, FrameDecoder, FrameError, HEADER_BYTES, Header, Kind, TooLong};
pub use operation::{Asking, Op, Operation, Request};
pub use preface::{MAGIC, PREFACE_BYTES, Preface, PrefaceError, REQUEST_IDS, STALE_READS};
pub use response::{Body, EntryRef, Response};

/// The version of the protocol that this crate speaks, and the only one.
pub const VERSION: u8 = 1;

#[cfg(test)]
mod tests;
