//! RESP2 and RESP3: what every Redis client speaks.
//!
//! A [`Decoder`] turns the bytes of a connection into [`Decoded`] requests: data commands as
//! [`flux_types::Command`], commands about the connection or the node as [`SessionCommand`]. The
//! meaning of every name is one row of the [`table`]. A [`Writer`] turns replies into bytes.
//! [`value`] is the client's half: it reads replies.

pub mod decode;
pub mod encode;
pub mod error;
mod inline;
pub mod introspect;
pub mod parse;
pub mod spec;
pub mod table;
pub mod value;

pub use decode::{Decoder, ProtocolError};
pub use encode::{Version, Writer, encode_command};
pub use parse::{Decoded, Request, parse, request_id};
pub use spec::{Flags, Group, KeyRange, SessionCommand, Spec};
pub use value::{Value, ValueDecoder, ValueError};
