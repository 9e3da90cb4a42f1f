//! JSON to protobuf wire bytes in one pass, following the rules of protobuf's JSON mapping strictly.
//!
//! Hot path. What is refused and why is in `docs/gateway.md`: unknown fields (unless told
//! otherwise), keys given twice, two members of a oneof, `null` inside lists and maps, numbers
//! that do not fit. The recursion is bounded by the reader's depth limit.

use std::collections::HashSet;

use super::plan::{FieldPlan, Kind, Label, MessageId, MessagePlan, Plans, Shape};
use super::reader::{FieldError, JsonReader, Token};
use super::scalar::{base64_decode, duration, field_mask_path, integer, put_number, timestamp};
use super::wire::{WireType, close_length, open_length, put_bytes, put_tag, put_varint};

/// What to do with a JSON field that the message does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnknownFields {
    Reject,
    Ignore,
}

/// A set of positions, without allocation for the first 64.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions {
    low: u64,
    high: Vec<u64>,
}

impl Positions {
    /// Adds a position; whether it was absent.
    pub(crate) fn insert(&mut self, position: usize) -> bool {
        let bit = 1_u64 << (position % 64);
        let word = if position < 64 {
            &mut self.low
        } else {
            let index = position / 64 - 1;
            if self.high.len() <= index {
                self.high.resize(index + 1, 0);
            }
            match self.high.get_mut(index) {
                Some(word) => word,
                None => return false,
            }
        };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(crate) fn contains(&self, position: usize) -> bool {
        let word = if position < 64 {
            self.low
        } else {
            self.high
                .get(position / 64 - 1)
                .copied()
                .unwrap_or_default()
        };
        word & 1 << (position % 64) != 0
    }
}

/// Reads JSON for the messages of one set of plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonIn<'p> {
    pub(crate) plans: &'p Plans,
    pub(crate) unknown: UnknownFields,
}

impl JsonIn<'_> {
    /// Reads a whole document as message `id`, appends its encoding, and returns which fields of
    /// that message were given with a value other than `null`.
    pub(crate) fn document(
        &self,
        text: &str,
        depth_max: usize,
        id: MessageId,
        out: &mut Vec<u8>,
    ) -> Result<Positions, FieldError> {
        let mut reader = JsonReader::new(text, depth_max);
        let given = self.message(&mut reader, id, out)?;
        reader.finish()?;
        Ok(given)
    }

    /// Reads a whole document as the value of one field, appending tag and value.
    /// Returns whether there was a value other than `null`.
    pub(crate) fn field_document(
        &self,
        text: &str,
        depth_max: usize,
        field: &FieldPlan,
        out: &mut Vec<u8>,
    ) -> Result<bool, FieldError> {
        let mut reader = JsonReader::new(text, depth_max);
        let given = self.field(&mut reader, field, out)?;
        reader.finish()?;
        Ok(given)
    }

    fn message(
        &self,
        reader: &mut JsonReader<'_>,
        id: MessageId,
        out: &mut Vec<u8>,
    ) -> Result<Positions, FieldError> {
        let plan = self.plans.message(id);
        match plan.shape {
            Shape::Object => return self.object(reader, plan, None, out),
            Shape::Timestamp => put_moment(out, timestamp(&want_string(reader)?)?),
            Shape::Duration => put_moment(out, duration(&want_string(reader)?)?),
            Shape::FieldMask => put_field_mask(out, &want_string(reader)?)?,
            Shape::Wrapper => {
                if let Some(field) = plan.fields.first() {
                    self.tagged(reader, field.kind, field.number, out)?;
                }
            }
            Shape::Struct => json_struct(reader, out)?,
            Shape::Value => json_value(reader, out)?,
            Shape::ListValue => json_list(reader, out)?,
            Shape::Any => self.any(reader, out)?,
        }
        Ok(Positions::default())
    }

    /// Reads an object; `skipped` is a key that was read already and is not a field.
    fn object(
        &self,
        reader: &mut JsonReader<'_>,
        plan: &MessagePlan,
        skipped: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Result<Positions, FieldError> {
        want(reader, Token::Object)?;
        reader.enter_object()?;
        let mut met = Positions::default();
        let mut given = Positions::default();
        let mut oneofs = Positions::default();
        let mut first = true;
        while let Some(key) = reader.next_key(&mut first)? {
            let Some((position, field)) = plan.field(&key) else {
                if skipped != Some(&key) && self.unknown == UnknownFields::Reject {
                    let message = format!("{} has no such field", plan.full_name());
                    return Err(FieldError::at(key, message));
                }
                reader.skip_value().map_err(|error| error.within(&key))?;
                continue;
            };
            if !met.insert(position) {
                return Err(FieldError::at(key, "given more than once"));
            }
            if !self
                .field(reader, field, out)
                .map_err(|error| error.within(&key))?
            {
                continue;
            }
            given.insert(position);
            if field.oneof.is_some_and(|oneof| !oneofs.insert(oneof)) {
                return Err(FieldError::at(
                    key,
                    "another member of its oneof is given too",
                ));
            }
        }
        Ok(given)
    }

    /// Reads the value of a field and appends tag and value; false if it was `null`.
    pub(crate) fn field(
        &self,
        reader: &mut JsonReader<'_>,
        field: &FieldPlan,
        out: &mut Vec<u8>,
    ) -> Result<bool, FieldError> {
        if reader.peek()? == Token::Null && !self.takes_null(field) {
            reader.literal(Token::Null)?;
            return Ok(false);
        }
        match field.label {
            Label::Implicit | Label::Explicit => {
                self.tagged(reader, field.kind, field.number, out)?;
            }
            Label::List { packed } => self.list(reader, field, packed, out)?,
            Label::Map { key } => self.map(reader, field, key, out)?,
        }
        Ok(true)
    }

    fn takes_null(&self, field: &FieldPlan) -> bool {
        let is_single = matches!(field.label, Label::Implicit | Label::Explicit);
        is_single && self.kind_takes_null(field.kind)
    }

    fn kind_takes_null(&self, kind: Kind) -> bool {
        if let Kind::Message(id) = kind {
            self.plans.message(id).shape == Shape::Value
        } else if let Kind::Enum(id) = kind {
            self.plans.enumeration(id).is_null
        } else {
            false
        }
    }

    fn list(
        &self,
        reader: &mut JsonReader<'_>,
        field: &FieldPlan,
        packed: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        want(reader, Token::Array)?;
        reader.enter_array()?;
        let mut first = true;
        let mut index = 0;
        let packed_start = (packed && field.kind.is_packable()).then(|| {
            put_tag(out, field.number, WireType::Bytes);
            open_length(out)
        });
        while reader.next_item(&mut first)? {
            let read = if packed_start.is_some() {
                self.untagged(reader, field.kind, field.number, out)
            } else {
                self.tagged(reader, field.kind, field.number, out)
            };
            read.map_err(|error| error.within_item(index))?;
            index += 1;
        }
        if let Some(start) = packed_start {
            close_length(out, start);
        }
        Ok(())
    }

    fn map(
        &self,
        reader: &mut JsonReader<'_>,
        field: &FieldPlan,
        key_kind: Kind,
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        want(reader, Token::Object)?;
        reader.enter_object()?;
        let mut first = true;
        let mut keys = HashSet::new();
        while let Some(key) = reader.next_key(&mut first)? {
            put_tag(out, field.number, WireType::Bytes);
            let start = open_length(out);
            let entry = put_map_key(out, key_kind, &key)
                .and_then(|()| self.tagged(reader, field.kind, 2, out));
            entry.map_err(|error| error.within(&key))?;
            close_length(out, start);
            if let Some(key) = keys.replace(key) {
                return Err(FieldError::at(key, "given more than once"));
            }
        }
        Ok(())
    }

    fn tagged(
        &self,
        reader: &mut JsonReader<'_>,
        kind: Kind,
        number: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        put_tag(out, number, kind.wire_type());
        self.untagged(reader, kind, number, out)
    }

    /// Appends a value without its tag.
    fn untagged(
        &self,
        reader: &mut JsonReader<'_>,
        kind: Kind,
        number: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        let token = reader.peek()?;
        match (kind, token) {
            (Kind::Message(id), token) => {
                if token == Token::Null && !self.kind_takes_null(kind) {
                    return Err(FieldError::new("null is not a value here"));
                }
                let start = open_length(out);
                self.message(reader, id, out)?;
                close_length(out, start);
            }
            (Kind::Group(id), _) => {
                self.message(reader, id, out)?;
                put_tag(out, number, WireType::EndGroup);
            }
            (Kind::Bool, Token::Bool(value)) => {
                reader.literal(token)?;
                out.push(u8::from(value));
            }
            (Kind::String, Token::String) => put_bytes(out, reader.string()?.as_bytes()),
            (Kind::TextBytes, Token::String) => put_bytes(out, reader.string()?.as_bytes()),
            (Kind::TextBytes, Token::Object) => put_base64_object(reader, out)?,
            (Kind::Bytes, Token::String) => put_base64(out, reader.string()?.as_bytes())?,
            (Kind::Enum(id), Token::String) => {
                let name = reader.string()?;
                let number = self.plans.enumeration(id).number_of(&name);
                let number = number.ok_or_else(|| no_such_enum_value(&name))?;
                put_varint(out, i64::from(number).cast_unsigned());
            }
            (Kind::Enum(id), Token::Null) if self.plans.enumeration(id).is_null => {
                reader.literal(token)?;
                put_varint(out, 0);
            }
            (Kind::Bool | Kind::String | Kind::Bytes | Kind::TextBytes, _) => {
                return Err(mismatch(kind, token));
            }
            (_, Token::Number) => put_number(out, kind, reader.number()?)?,
            (Kind::Enum(_), _) => return Err(mismatch(kind, token)),
            (_, Token::String) => put_number(out, kind, &reader.string()?)?,
            (_, _) => return Err(mismatch(kind, token)),
        }
        Ok(())
    }

    /// `{"@type": "host/package.Message", …fields}`, or `"value"` for well-known forms.
    fn any(&self, reader: &mut JsonReader<'_>, out: &mut Vec<u8>) -> Result<(), FieldError> {
        want(reader, Token::Object)?;
        let start = reader.position();
        let type_url = find_type(reader)?;
        let Some(type_url) = type_url else {
            return if reader
                .since(start)
                .bytes()
                .all(|b| b"{} \t\r\n".contains(&b))
            {
                Ok(())
            } else {
                Err(FieldError::at("@type", "is required"))
            };
        };
        let end = reader.position();
        reader.rewind(start);
        let name = type_url.rsplit_once('/').map(|(_, name)| name);
        let id = name.and_then(|name| self.plans.find(name));
        let Some(id) = id else {
            return Err(FieldError::at(
                "@type",
                format!("unknown type {type_url:?}"),
            ));
        };
        put_tag(out, 1, WireType::Bytes);
        put_bytes(out, type_url.as_bytes());
        put_tag(out, 2, WireType::Bytes);
        let content = open_length(out);
        let plan = self.plans.message(id);
        if plan.shape == Shape::Object {
            self.object(reader, plan, Some("@type"), out)?;
        } else {
            self.any_value(reader, id, out)?;
        }
        close_length(out, content);
        debug_assert_eq!(reader.position(), end, "both passes read the same object");
        Ok(())
    }

    fn any_value(
        &self,
        reader: &mut JsonReader<'_>,
        id: MessageId,
        out: &mut Vec<u8>,
    ) -> Result<(), FieldError> {
        reader.enter_object()?;
        let mut first = true;
        let mut has_value = false;
        while let Some(key) = reader.next_key(&mut first)? {
            match key.as_ref() {
                "value" if has_value => return Err(FieldError::at(key, "given more than once")),
                "value" => {
                    self.message(reader, id, out)
                        .map_err(|error| error.within("value"))?;
                    has_value = true;
                }
                "@type" => reader.skip_value()?,
                _ if self.unknown == UnknownFields::Ignore => reader.skip_value()?,
                _ => return Err(FieldError::at(key, "not a field of google.protobuf.Any")),
            }
        }
        Ok(())
    }
}

/// Reads an object to its end and returns its `@type`.
fn find_type(reader: &mut JsonReader<'_>) -> Result<Option<String>, FieldError> {
    let mut found: Option<String> = None;
    let mut first = true;
    reader.enter_object()?;
    while let Some(key) = reader.next_key(&mut first)? {
        if key == "@type" {
            if found.is_some() {
                return Err(FieldError::at(key, "given more than once"));
            }
            found = Some(want_string(reader).map_err(|error| error.within("@type"))?);
        } else {
            reader.skip_value()?;
        }
    }
    Ok(found)
}

/// Appends field 1 of a map entry.
pub(crate) fn put_map_key(out: &mut Vec<u8>, kind: Kind, key: &str) -> Result<(), FieldError> {
    put_tag(out, 1, kind.wire_type());
    match (kind, key) {
        (Kind::String, _) => put_bytes(out, key.as_bytes()),
        (Kind::Bool, "true") => out.push(1),
        (Kind::Bool, "false") => out.push(0),
        (Kind::Bool, _) => return Err(FieldError::new("the key is neither true nor false")),
        _ => put_number(out, kind, key)?,
    }
    Ok(())
}

pub(crate) fn put_moment(out: &mut Vec<u8>, moment: super::scalar::Moment) {
    put_tag(out, 1, WireType::Varint);
    put_varint(out, moment.seconds.cast_unsigned());
    put_tag(out, 2, WireType::Varint);
    put_varint(out, i64::from(moment.nanos).cast_unsigned());
}

pub(crate) fn put_field_mask(out: &mut Vec<u8>, text: &str) -> Result<(), FieldError> {
    for path in text.split(',').filter(|_| !text.is_empty()) {
        put_tag(out, 1, WireType::Bytes);
        put_bytes(out, field_mask_path(path)?.as_bytes());
    }
    Ok(())
}

pub(crate) fn put_base64(out: &mut Vec<u8>, text: &[u8]) -> Result<(), FieldError> {
    let start = open_length(out);
    base64_decode(text, out)?;
    close_length(out, start);
    Ok(())
}

pub(crate) fn no_such_enum_value(name: &str) -> FieldError {
    let mut shown: String = name.chars().take(64).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    FieldError::new(format!("{shown:?} is not a value of the enum"))
}

/// `{"base64": "…"}`, the form in which a text field carries what is not UTF-8.
fn put_base64_object(reader: &mut JsonReader<'_>, out: &mut Vec<u8>) -> Result<(), FieldError> {
    reader.enter_object()?;
    let mut first = true;
    let mut found = false;
    while let Some(key) = reader.next_key(&mut first)? {
        if key != "base64" || found {
            return Err(FieldError::at(key, "expected exactly one key, \"base64\""));
        }
        found = true;
        let text = want_string(reader).map_err(|error| error.within("base64"))?;
        put_base64(out, text.as_bytes()).map_err(|error| error.within("base64"))?;
    }
    if found {
        Ok(())
    } else {
        Err(FieldError::at("base64", "is required"))
    }
}

fn json_struct(reader: &mut JsonReader<'_>, out: &mut Vec<u8>) -> Result<(), FieldError> {
    want(reader, Token::Object)?;
    reader.enter_object()?;
    let mut first = true;
    let mut keys = HashSet::new();
    while let Some(key) = reader.next_key(&mut first)? {
        put_tag(out, 1, WireType::Bytes);
        let entry = open_length(out);
        put_tag(out, 1, WireType::Bytes);
        put_bytes(out, key.as_bytes());
        put_tag(out, 2, WireType::Bytes);
        let value = open_length(out);
        json_value(reader, out).map_err(|error| error.within(&key))?;
        close_length(out, value);
        close_length(out, entry);
        if let Some(key) = keys.replace(key) {
            return Err(FieldError::at(key, "given more than once"));
        }
    }
    Ok(())
}

fn json_value(reader: &mut JsonReader<'_>, out: &mut Vec<u8>) -> Result<(), FieldError> {
    match reader.peek()? {
        Token::Null => {
            reader.literal(Token::Null)?;
            put_tag(out, 1, WireType::Varint);
            out.push(0);
        }
        Token::Number => {
            put_tag(out, 2, WireType::Fixed64);
            put_number(out, Kind::Double, reader.number()?)?;
        }
        Token::String => {
            put_tag(out, 3, WireType::Bytes);
            put_bytes(out, reader.string()?.as_bytes());
        }
        token @ Token::Bool(value) => {
            reader.literal(token)?;
            put_tag(out, 4, WireType::Varint);
            out.push(u8::from(value));
        }
        Token::Object => {
            put_tag(out, 5, WireType::Bytes);
            let start = open_length(out);
            json_struct(reader, out)?;
            close_length(out, start);
        }
        Token::Array => {
            put_tag(out, 6, WireType::Bytes);
            let start = open_length(out);
            json_list(reader, out)?;
            close_length(out, start);
        }
    }
    Ok(())
}

fn json_list(reader: &mut JsonReader<'_>, out: &mut Vec<u8>) -> Result<(), FieldError> {
    want(reader, Token::Array)?;
    reader.enter_array()?;
    let mut first = true;
    let mut index = 0;
    while reader.next_item(&mut first)? {
        put_tag(out, 1, WireType::Bytes);
        let start = open_length(out);
        json_value(reader, out).map_err(|error| error.within_item(index))?;
        close_length(out, start);
        index += 1;
    }
    Ok(())
}

fn want(reader: &mut JsonReader<'_>, wanted: Token) -> Result<(), FieldError> {
    let found = reader.peek()?;
    if found == wanted {
        Ok(())
    } else {
        Err(FieldError::new(format!(
            "expected {}, found {}",
            wanted.name(),
            found.name()
        )))
    }
}

fn want_string(reader: &mut JsonReader<'_>) -> Result<String, FieldError> {
    want(reader, Token::String)?;
    Ok(reader.string()?.into_owned())
}

fn mismatch(kind: Kind, found: Token) -> FieldError {
    let wanted = match kind {
        Kind::Bool => "true or false",
        Kind::String => "a string",
        Kind::TextBytes => "a string or {\"base64\": \"…\"}",
        Kind::Bytes => "a base64 string",
        Kind::Enum(_) => "the name or number of an enum value",
        Kind::Message(_) | Kind::Group(_) => "an object",
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
        | Kind::Sfixed64 => "a number",
    };
    FieldError::new(format!("expected {wanted}, found {}", found.name()))
}

/// The encoding of a number as a flag: whether the text of a query parameter means true.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => match integer(text) {
            Some(1) => Some(true),
            Some(0) => Some(false),
            _ => None,
        },
    }
}
