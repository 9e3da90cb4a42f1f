//! FLUX frames.
/// The first bytes of a FLUX connection.
pub const MAGIC: [u8; 4] = *b"FLX1";
