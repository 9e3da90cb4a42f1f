//! Query parameters, form fields and path variables to protobuf wire bytes.
//!
//! Each value becomes a fragment of the request message; protobuf merges fragments in the order
//! they are appended, the last scalar winning and lists growing, which is what lets body, query and
//! path be encoded one after the other without a message in memory.

use std::borrow::Cow;
use std::collections::HashSet;

use percent_encoding::percent_decode;

use super::json_in::{
    Positions, UnknownFields, boolean, no_such_enum_value, put_base64, put_field_mask, put_map_key,
    put_moment,
};
use super::plan::{FieldPlan, Kind, Label, MessageId, Plans, Shape};
use super::reader::FieldError;
use super::scalar::{duration, put_number, timestamp};
use super::wire::{WireType, close_length, open_length, put_bytes, put_tag, put_varint};

/// Parameters of one request; more are refused.
const PARAMETERS_MAX: usize = 1_000;

/// A field reached through messages, by position in each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FieldPath(Vec<(MessageId, usize)>);

impl FieldPath {
    /// Resolves `a.b.c`, each part a JSON or proto name.
    pub(crate) fn resolve(
        plans: &Plans,
        root: MessageId,
        dotted: &str,
    ) -> Result<Self, FieldError> {
        let mut steps = Vec::new();
        let mut message = root;
        let mut parts = dotted.split('.').peekable();
        while let Some(part) = parts.next() {
            let plan = plans.message(message);
            let Some((position, field)) = plan.field(part) else {
                let message = format!("{} has no field {part:?}", plan.full_name());
                return Err(FieldError::at(dotted, message));
            };
            steps.push((message, position));
            if parts.peek().is_none() {
                break;
            }
            message = match (field.label, field.kind) {
                (Label::Implicit | Label::Explicit, Kind::Message(inner))
                    if plans.message(inner).shape == Shape::Object =>
                {
                    inner
                }
                _ => return Err(FieldError::at(dotted, format!("{part:?} has no fields"))),
            };
        }
        Ok(Self(steps))
    }

    /// The position of the first part in the root message.
    pub(crate) fn top(&self) -> usize {
        self.0.first().map_or(0, |(_, position)| *position)
    }

    pub(crate) fn leaf<'p>(&self, plans: &'p Plans) -> Option<&'p FieldPlan> {
        let (message, position) = self.0.last()?;
        plans.message(*message).fields.get(*position)
    }

    /// Whether a path variable may bind it: a field that occurs once and has a text form.
    pub(crate) fn is_single(&self, plans: &Plans) -> bool {
        self.leaf(plans).is_some_and(|field| {
            matches!(field.label, Label::Implicit | Label::Explicit) && has_text_form(plans, field)
        })
    }

    /// Appends the value at this path; `map_key` for one entry of a map.
    pub(crate) fn put(
        &self,
        plans: &Plans,
        map_key: Option<&str>,
        value: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        let Some(((message, position), parents)) = self.0.split_last() else {
            return Ok(());
        };
        let mut open = Vec::with_capacity(parents.len());
        for (message, position) in parents {
            if let Some(field) = plans.message(*message).fields.get(*position) {
                put_tag(out, field.number, WireType::Bytes);
                open.push(open_length(out));
            }
        }
        if let Some(field) = plans.message(*message).fields.get(*position) {
            put_leaf(plans, field, map_key, value, out)?;
        }
        for start in open.into_iter().rev() {
            close_length(out, start);
        }
        Ok(())
    }
}

fn has_text_form(plans: &Plans, field: &FieldPlan) -> bool {
    let Kind::Message(id) = field.kind else {
        return !matches!(field.kind, Kind::Group(_));
    };
    match plans.message(id).shape {
        Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::Wrapper => true,
        Shape::Object | Shape::Struct | Shape::Value | Shape::ListValue | Shape::Any => false,
    }
}

fn put_leaf(
    plans: &Plans,
    field: &FieldPlan,
    map_key: Option<&str>,
    value: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    match (field.label, map_key) {
        (Label::Map { key: kind }, Some(key)) => {
            put_tag(out, field.number, WireType::Bytes);
            let start = open_length(out);
            put_map_key(out, kind, key)?;
            put_text(plans, field.kind, 2, value, out)?;
            close_length(out, start);
            Ok(())
        }
        (Label::Map { .. }, None) => Err(FieldError::new(format!(
            "is a map: write {}[key]=value",
            field.proto_name
        ))),
        (_, Some(_)) => Err(FieldError::new("is not a map")),
        (_, None) => put_text(plans, field.kind, field.number, value, out),
    }
}

/// Appends tag and value of what is written as plain text.
fn put_text(
    plans: &Plans,
    kind: Kind,
    number: u32,
    value: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    put_tag(out, number, kind.wire_type());
    if kind == Kind::TextBytes {
        put_bytes(out, value);
        return Ok(());
    }
    let text = std::str::from_utf8(value).map_err(|_| FieldError::new("not UTF-8"))?;
    match kind {
        Kind::TextBytes | Kind::String => put_bytes(out, value),
        Kind::Bytes => put_base64(out, value)?,
        Kind::Bool => {
            let flag = boolean(text).ok_or_else(|| FieldError::new("expected true or false"))?;
            out.push(u8::from(flag));
        }
        Kind::Enum(id) => match plans.enumeration(id).number_of(text) {
            Some(number) => put_varint(out, i64::from(number).cast_unsigned()),
            None => put_number(out, kind, text).map_err(|_| no_such_enum_value(text))?,
        },
        Kind::Message(id) => {
            let plan = plans.message(id);
            let start = open_length(out);
            match (plan.shape, plan.fields.first()) {
                (Shape::Timestamp, _) => put_moment(out, timestamp(text)?),
                (Shape::Duration, _) => put_moment(out, duration(text)?),
                (Shape::FieldMask, _) => put_field_mask(out, text)?,
                // A wrapper's only field is a scalar, so this goes one level deep at most.
                (Shape::Wrapper, Some(field)) => put_text(plans, field.kind, 1, value, out)?,
                _ => {
                    return Err(FieldError::new(
                        "a message cannot be written as a parameter",
                    ));
                }
            }
            close_length(out, start);
        }
        Kind::Group(_) => {
            return Err(FieldError::new(
                "a message cannot be written as a parameter",
            ));
        }
        Kind::Double
        | Kind::Float
        | Kind::Int32
        | Kind::Int64
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Sfixed32
        | Kind::Sfixed64 => put_number(out, kind, text)?,
    }
    Ok(())
}

/// Reads `a=1&b.c=2`, as in a query string or a form, into message `root`.
#[derive(Debug)]
pub(crate) struct Parameters<'p> {
    pub(crate) plans: &'p Plans,
    pub(crate) root: MessageId,
    pub(crate) unknown: UnknownFields,
    /// Fields of the root that were given, in whichever part of the request so far.
    pub(crate) given: Positions,
    /// Paths that were given by a parameter, to refuse a second value for a single field.
    met: HashSet<FieldPath>,
    count: usize,
}

impl<'p> Parameters<'p> {
    pub(crate) fn new(
        plans: &'p Plans,
        root: MessageId,
        unknown: UnknownFields,
        given: Positions,
    ) -> Self {
        Self {
            plans,
            root,
            unknown,
            given,
            met: HashSet::new(),
            count: 0,
        }
    }

    /// Reads all parameters of `encoded`, appending their fragments.
    pub(crate) fn read(&mut self, encoded: &[u8], out: &mut Vec<u8>) -> Result<(), FieldError> {
        for pair in encoded
            .split(|byte| *byte == b'&')
            .filter(|pair| !pair.is_empty())
        {
            self.count += 1;
            if self.count > PARAMETERS_MAX {
                return Err(FieldError::new(format!(
                    "more than {PARAMETERS_MAX} parameters"
                )));
            }
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let name = decode(halves.next().unwrap_or_default())?;
            let value = decode(halves.next().unwrap_or_default())?;
            let Ok(name) = std::str::from_utf8(&name) else {
                return Err(FieldError::new("the name of a parameter is not UTF-8"));
            };
            self.parameter(name, &value, out)?;
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), FieldError> {
        let (dotted, map_key) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
            Some((dotted, key)) => (dotted, Some(key)),
            None => (name, None),
        };
        let path = match FieldPath::resolve(self.plans, self.root, dotted) {
            Ok(path) => path,
            Err(_) if self.unknown == UnknownFields::Ignore => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_single = path
            .leaf(self.plans)
            .is_some_and(|field| matches!(field.label, Label::Implicit | Label::Explicit));
        if is_single && !self.met.insert(path.clone()) {
            return Err(FieldError::at(name, "given more than once"));
        }
        self.given.insert(path.top());
        path.put(self.plans, map_key, value, out)
            .map_err(|error| error.within(name))
    }
}

/// Decodes `+` and `%xx` of a form or a query.
fn decode(text: &[u8]) -> Result<Cow<'_, [u8]>, FieldError> {
    if !text.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return Ok(Cow::Borrowed(text));
    }
    check_escapes(text)?;
    let spaced: Vec<u8> = text
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    Ok(Cow::Owned(percent_decode(&spaced).collect()))
}

/// Refuses a `%` that is not followed by two hexadecimal digits.
pub(crate) fn check_escapes(text: &[u8]) -> Result<(), FieldError> {
    for (at, byte) in text.iter().enumerate() {
        let digits = text.get(at + 1..at + 3);
        if *byte == b'%' && !digits.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)) {
            return Err(FieldError::new(
                "a % is not followed by two hexadecimal digits",
            ));
        }
    }
    Ok(())
}
