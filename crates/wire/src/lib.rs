//! Bytes to commands and replies to bytes: FLUX frames and RESP2/RESP3, without I/O.
