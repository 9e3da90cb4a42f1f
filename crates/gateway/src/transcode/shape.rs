//! The shape that a configured route gives to its response: constants, chosen fields, and fields
//! shown only when the request asked for them.

use super::json_out::{JsonOut, OutError, put_json_string};
use super::plan::{FieldPlan, Label, MessageId};
use super::reorder;
use super::wire::{Cursor, last_varint};

/// A response object, resolved against the response message.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResponseShape {
    /// Key and JSON text, written first, whatever the upstream answered.
    pub(crate) constants: Vec<(String, String)>,
    /// Key and position of a field, always written, with its default if absent.
    pub(crate) fields: Vec<(String, usize)>,
    /// Fields written only when the request set the flag.
    pub(crate) on_request: Vec<RequestedField>,
}

/// A field of the response that a boolean field of the request asks for.
#[derive(Clone, Debug)]
pub(crate) struct RequestedField {
    pub(crate) key: String,
    /// Position in the response message.
    pub(crate) field: usize,
    /// Number of the boolean field in the request message.
    pub(crate) flag_number: u32,
}

impl ResponseShape {
    /// Which of the requested fields this encoded request asks for, one bit each.
    pub(crate) fn asked(&self, request: &[u8]) -> Vec<bool> {
        let is_set = |wanted: &RequestedField| {
            last_varint(request, wanted.flag_number).is_ok_and(|value| value != 0)
        };
        self.on_request.iter().map(is_set).collect()
    }

    /// Appends the object.
    pub(crate) fn write(
        &self,
        json: &JsonOut<'_>,
        id: MessageId,
        bytes: &[u8],
        asked: &[bool],
        out: &mut Vec<u8>,
    ) -> Result<(), OutError> {
        let start = out.len();
        match self.write_ordered(json, id, bytes, asked, out) {
            Err(OutError::Unordered) => {
                out.truncate(start);
                let ordered = reorder(json.plans, id, bytes)?;
                self.write_ordered(json, id, &ordered, asked, out)
            }
            written => written,
        }
    }

    fn write_ordered(
        &self,
        json: &JsonOut<'_>,
        id: MessageId,
        bytes: &[u8],
        asked: &[bool],
        out: &mut Vec<u8>,
    ) -> Result<(), OutError> {
        let plan = json.plans.message(id);
        let values = field_values(json, &plan.fields, bytes)?;
        let mut first = true;
        out.push(b'{');
        for (key, text) in &self.constants {
            put_key(key, out, &mut first);
            out.extend_from_slice(text.as_bytes());
        }
        let requested = self
            .on_request
            .iter()
            .zip(asked)
            .filter(|(_, asked)| **asked)
            .map(|(wanted, _)| (&wanted.key, wanted.field, true));
        let always = self.fields.iter().map(|(key, field)| (key, *field, false));
        for (key, position, is_optional) in always.chain(requested) {
            put_key(key, out, &mut first);
            match (values.get(position), plan.fields.get(position)) {
                (Some(Some(value)), _) => out.extend_from_slice(value),
                (_, Some(field)) if !is_optional || field.label != Label::Explicit => {
                    json.default_value(field, out);
                }
                _ => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
        Ok(())
    }
}

/// The JSON of each field that is present, by position.
fn field_values(
    json: &JsonOut<'_>,
    fields: &[FieldPlan],
    bytes: &[u8],
) -> Result<Vec<Option<Vec<u8>>>, OutError> {
    let mut values: Vec<Option<Vec<u8>>> = vec![None; fields.len()];
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag()?;
        let position = fields.binary_search_by_key(&number, |field| field.number);
        let slot = position
            .ok()
            .and_then(|at| values.get_mut(at).zip(fields.get(at)));
        match slot {
            Some((Some(_), _)) => return Err(OutError::Unordered),
            Some((slot @ None, field)) => {
                let mut text = Vec::new();
                json.value(field, wire_type, &mut cursor, &mut text, 1)?;
                *slot = Some(text);
            }
            None => cursor.skip(number, wire_type)?,
        }
    }
    Ok(values)
}

fn put_key(key: &str, out: &mut Vec<u8>, first: &mut bool) {
    if !*first {
        out.push(b',');
    }
    *first = false;
    put_json_string(out, key);
    out.push(b':');
}
