//! Transcoding: HTTP bodies and parameters to protobuf bytes, and protobuf bytes to JSON.
//!
//! Pure functions over bytes and plans; no I/O, no clock. The direct path (`json_in`, `json_out`)
//! handles every message; prost-reflect is called only to bring a response into ascending field
//! order when its writer did not ([`reorder`]), and in tests as the oracle of both directions.

pub(crate) mod wire;

pub(crate) mod plan;

pub(crate) mod reader;

pub(crate) mod scalar;

pub(crate) mod json_in;

pub(crate) mod json_out;

pub(crate) mod bind;

pub(crate) mod shape;

#[cfg(test)]
mod tests;

use prost::Message as _;
use prost_reflect::DynamicMessage;

use json_out::{JsonOut, OutError};
use plan::{MessageId, Plans};

/// Appends the JSON of a message, whatever the order of its fields.
///
/// # Errors
/// [`OutError::Malformed`] if the bytes are not such a message.
pub(crate) fn to_json(
    json: &JsonOut<'_>,
    id: MessageId,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), OutError> {
    let start = out.len();
    match json.message(id, bytes, out, 0) {
        Err(OutError::Unordered) => {
            out.truncate(start);
            let ordered = reorder(json.plans, id, bytes)?;
            json.message(id, &ordered, out, 0)
        }
        written => written,
    }
}

/// The same message with its fields in ascending order and repeated singular fields merged.
pub(crate) fn reorder(plans: &Plans, id: MessageId, bytes: &[u8]) -> Result<Vec<u8>, OutError> {
    let descriptor = plans.message(id).descriptor.clone();
    match DynamicMessage::decode(descriptor, bytes) {
        Ok(message) => Ok(message.encode_to_vec()),
        Err(_) => Err(wire::Malformed.into()),
    }
}
