//! Protobuf wire bytes to JSON in one pass, following the rules of protobuf's JSON mapping.
//!
//! Hot path. Writers put fields on the wire in ascending order of number, each singular field once.
//! As long as that holds, JSON is streamed out as the bytes are read. Protobuf also allows any
//! other order (and repeated singular fields, which merge); on meeting that, this file gives up
//! with [`OutError::Unordered`] and the caller brings the message into order with prost-reflect
//! first, which costs more and happens rarely. See `super::to_json`.

use std::collections::HashSet;

use super::json_in::Positions;
use super::plan::{FieldPlan, Kind, Label, MessageId, MessagePlan, Plans, Shape};
use super::scalar::{
    Moment, base64_encode, format_duration, format_field_mask_path, format_timestamp,
};
use super::wire::{Cursor, Malformed, WireType, low32, unzigzag};

/// Nesting of messages that is followed; protobuf's own readers stop at 100.
const DEPTH_MAX: usize = 100;

/// Longest JSON of a default that is no enum value: `false`.
const DEFAULT_JSON_MAX: usize = 5;

/// Why a message could not be written as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutError {
    /// Valid, but its fields are not in ascending order: reorder and try again.
    Unordered,
    /// Not a message of the expected type.
    Malformed(&'static str),
}

impl From<Malformed> for OutError {
    fn from(_: Malformed) -> Self {
        Self::Malformed("the bytes are not a protobuf message of the announced type")
    }
}

/// Which names fields have in responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// lowerCamelCase, or `json_name` if set.
    Json,
    /// As written in the `.proto` file.
    Proto,
}

/// Writes messages of one set of plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonOut<'p> {
    pub(crate) plans: &'p Plans,
    pub(crate) names: Names,
    /// Whether fields that hold their default are written, as far as they have no presence.
    pub(crate) emit_defaults: bool,
}

impl<'p> JsonOut<'p> {
    /// Appends the JSON of a message.
    pub(crate) fn message(
        &self,
        id: MessageId,
        bytes: &[u8],
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        if depth > DEPTH_MAX {
            return Err(OutError::Malformed("the message is nested too deeply"));
        }
        let plan = self.plans.message(id);
        match plan.shape {
            Shape::Object => {
                out.push(b'{');
                self.fields(plan, bytes, out, true, depth)?;
                out.push(b'}');
                Ok(())
            }
            Shape::Timestamp => quoted(format_timestamp(moment(bytes)?), out),
            Shape::Duration => quoted(format_duration(moment(bytes)?), out),
            Shape::FieldMask => field_mask(bytes, out),
            Shape::Wrapper => self.wrapper(plan, bytes, out, depth),
            Shape::Struct => json_struct(bytes, out, depth),
            Shape::Value => json_value(bytes, out, depth),
            Shape::ListValue => json_list(bytes, out, depth),
            Shape::Any => self.any(bytes, out, depth),
        }
    }

    /// Appends the fields of an object without its braces.
    fn fields(
        &self,
        plan: &MessagePlan,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut first: bool,
        depth: usize,
    ) -> Result<(), OutError> {
        let mut cursor = Cursor::new(bytes);
        let mut next = 0;
        let mut oneofs = Positions::default();
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            // Most often it is the next field of the plan; only else it is searched.
            let at = match plan.fields.get(next) {
                Some(field) if field.number == number => next,
                _ => match plan
                    .fields
                    .binary_search_by_key(&number, |field| field.number)
                {
                    Ok(at) if at < next => return Err(OutError::Unordered),
                    Ok(at) => at,
                    Err(_) => {
                        cursor.skip(number, wire_type)?;
                        continue;
                    }
                },
            };
            self.defaults(plan.fields.get(next..at), out, &mut first);
            let Some(field) = plan.fields.get(at) else {
                break;
            };
            if field.oneof.is_some_and(|oneof| !oneofs.insert(oneof)) {
                return Err(OutError::Unordered);
            }
            let (before, was_first) = (out.len(), first);
            self.name(field, out, &mut first);
            let value_start = out.len();
            self.value(field, wire_type, &mut cursor, out, depth)?;
            if !self.emit_defaults && self.is_default(field, out.get(value_start..)) {
                out.truncate(before);
                first = was_first;
            }
            next = at + 1;
        }
        self.defaults(plan.fields.get(next..), out, &mut first);
        Ok(())
    }

    fn defaults(&self, fields: Option<&[FieldPlan]>, out: &mut Vec<u8>, first: &mut bool) {
        if !self.emit_defaults {
            return;
        }
        for field in fields.unwrap_or_default() {
            match field.label {
                Label::Explicit => {}
                Label::Implicit | Label::List { .. } | Label::Map { .. } => {
                    self.name(field, out, first);
                    self.default_value(field, out);
                }
            }
        }
    }

    fn name(&self, field: &FieldPlan, out: &mut Vec<u8>, first: &mut bool) {
        if !*first {
            out.push(b',');
        }
        *first = false;
        let name = match self.names {
            Names::Json => &field.json_name,
            Names::Proto => &field.proto_name,
        };
        put_json_string(out, name);
        out.push(b':');
    }

    /// Whether the JSON is that of a default which a writer spelled out without having to.
    fn is_default(&self, field: &FieldPlan, json: Option<&[u8]>) -> bool {
        let has_presence = field.label == Label::Explicit;
        let is_short = json.is_some_and(|json| json.len() <= DEFAULT_JSON_MAX);
        if has_presence || (!is_short && !matches!(field.kind, Kind::Enum(_))) {
            return false;
        }
        let mut default = Vec::with_capacity(DEFAULT_JSON_MAX);
        self.default_value(field, &mut default);
        json == Some(default.as_slice())
    }

    /// Appends what a field holds when it is absent; a message is `null` then.
    pub(crate) fn default_value(&self, field: &FieldPlan, out: &mut Vec<u8>) {
        match field.label {
            Label::List { .. } => out.extend_from_slice(b"[]"),
            Label::Map { .. } => out.extend_from_slice(b"{}"),
            Label::Implicit | Label::Explicit => {
                if let Kind::Message(_) | Kind::Group(_) = field.kind {
                    out.extend_from_slice(b"null");
                } else {
                    self.default_scalar(field.kind, out);
                }
            }
        }
    }

    fn default_scalar(&self, kind: Kind, out: &mut Vec<u8>) {
        let text: &[u8] = match kind {
            Kind::Double | Kind::Float => b"0.0",
            Kind::Int32 | Kind::Uint32 | Kind::Sint32 | Kind::Fixed32 | Kind::Sfixed32 => b"0",
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => b"\"0\"",
            Kind::Bool => b"false",
            Kind::String | Kind::Bytes | Kind::TextBytes => b"\"\"",
            Kind::Enum(id) => {
                self.enumeration(id, self.plans.enumeration(id).default, out);
                return;
            }
            Kind::Message(_) | Kind::Group(_) => b"{}",
        };
        out.extend_from_slice(text);
    }

    /// Appends the value of a field whose first tag was read; lists and maps take all that follow.
    pub(crate) fn value(
        &self,
        field: &FieldPlan,
        wire_type: WireType,
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        match field.label {
            Label::Implicit | Label::Explicit => {
                self.single(field.kind, (field.number, wire_type), cursor, out, depth)
            }
            Label::List { .. } => self.list(field, wire_type, cursor, out, depth),
            Label::Map { key } => self.map((key, field), wire_type, cursor, out, depth),
        }
    }

    fn list(
        &self,
        field: &FieldPlan,
        mut wire_type: WireType,
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        out.push(b'[');
        let mut first = true;
        loop {
            if wire_type == WireType::Bytes && field.kind.is_packable() {
                let mut packed = Cursor::new(cursor.bytes()?);
                while !packed.is_empty() {
                    separate(out, &mut first);
                    let each = field.kind.wire_type();
                    self.single(field.kind, (field.number, each), &mut packed, out, depth)?;
                }
            } else {
                separate(out, &mut first);
                self.single(field.kind, (field.number, wire_type), cursor, out, depth)?;
            }
            match same_field(cursor, field.number) {
                Some(next) => wire_type = next,
                None => break,
            }
        }
        out.push(b']');
        Ok(())
    }

    fn map(
        &self,
        (key_kind, field): (Kind, &FieldPlan),
        mut wire_type: WireType,
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        out.push(b'{');
        let mut first = true;
        let mut keys = HashSet::new();
        loop {
            if wire_type != WireType::Bytes {
                return Err(Malformed.into());
            }
            let (key, value) = map_entry(cursor.bytes()?)?;
            separate(out, &mut first);
            let key_start = out.len();
            self.map_key(key_kind, key, out, depth)?;
            let key_text = out.get(key_start..).unwrap_or_default().to_vec();
            out.push(b':');
            match value {
                Some((wire_type, mut value)) => {
                    self.single(field.kind, (2, wire_type), &mut value, out, depth)?;
                }
                // The writer left the value out because it is the default: prost does.
                None => {
                    if let Kind::Message(id) = field.kind {
                        self.message(id, &[], out, depth + 1)?;
                    } else {
                        self.default_scalar(field.kind, out);
                    }
                }
            }
            if !keys.insert(key_text) {
                return Err(OutError::Unordered);
            }
            match same_field(cursor, field.number) {
                Some(next) => wire_type = next,
                None => break,
            }
        }
        out.push(b'}');
        Ok(())
    }

    fn map_key(
        &self,
        kind: Kind,
        key: Option<(WireType, Cursor<'_>)>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        let is_quoted = matches!(
            kind,
            Kind::String
                | Kind::Int64
                | Kind::Uint64
                | Kind::Sint64
                | Kind::Fixed64
                | Kind::Sfixed64
        );
        if !is_quoted {
            out.push(b'"');
        }
        match key {
            Some((wire_type, mut key)) => {
                self.single(kind, (1, wire_type), &mut key, out, depth)?
            }
            None => self.default_scalar(kind, out),
        }
        if !is_quoted {
            out.push(b'"');
        }
        Ok(())
    }

    /// Appends one value.
    fn single(
        &self,
        kind: Kind,
        (number, wire_type): (u32, WireType),
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        if wire_type != kind.wire_type() {
            return Err(Malformed.into());
        }
        match kind {
            Kind::Double => put_double(out, f64::from_bits(cursor.fixed64()?)),
            Kind::Float => put_float(out, f32::from_bits(cursor.fixed32()?)),
            Kind::Int32 => put_integer(out, low32(cursor.varint()?).cast_signed()),
            Kind::Uint32 => put_integer(out, low32(cursor.varint()?)),
            Kind::Sint32 => {
                let value = unzigzag(u64::from(low32(cursor.varint()?)));
                put_integer(out, value);
            }
            Kind::Fixed32 => put_integer(out, cursor.fixed32()?),
            Kind::Sfixed32 => put_integer(out, cursor.fixed32()?.cast_signed()),
            Kind::Int64 => put_quoted_integer(out, cursor.varint()?.cast_signed()),
            Kind::Uint64 => put_quoted_integer(out, cursor.varint()?),
            Kind::Sint64 => put_quoted_integer(out, unzigzag(cursor.varint()?)),
            Kind::Fixed64 => put_quoted_integer(out, cursor.fixed64()?),
            Kind::Sfixed64 => put_quoted_integer(out, cursor.fixed64()?.cast_signed()),
            Kind::Bool => {
                let text: &[u8] = if cursor.varint()? == 0 {
                    b"false"
                } else {
                    b"true"
                };
                out.extend_from_slice(text);
            }
            Kind::String => match std::str::from_utf8(cursor.bytes()?) {
                Ok(text) => put_json_string(out, text),
                Err(_) => return Err(OutError::Malformed("a string field is not UTF-8")),
            },
            Kind::Bytes => put_base64_string(out, cursor.bytes()?),
            Kind::TextBytes => put_text_bytes(out, cursor.bytes()?),
            Kind::Enum(id) => self.enumeration(id, low32(cursor.varint()?).cast_signed(), out),
            Kind::Message(id) => self.message(id, cursor.bytes()?, out, depth + 1)?,
            Kind::Group(id) => self.message(id, cursor.group(number)?, out, depth + 1)?,
        }
        Ok(())
    }

    fn enumeration(&self, id: super::plan::EnumId, number: i32, out: &mut Vec<u8>) {
        let plan = self.plans.enumeration(id);
        if plan.is_null {
            out.extend_from_slice(b"null");
            return;
        }
        match plan.name_of(number) {
            Some(name) => put_json_string(out, name),
            None => put_integer(out, number),
        }
    }

    fn wrapper(
        &self,
        plan: &MessagePlan,
        bytes: &[u8],
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        let Some(field) = plan.fields.first() else {
            return Err(Malformed.into());
        };
        let mut last = None;
        each_field(bytes, |number, wire_type, value| {
            if number == field.number {
                last = Some((wire_type, value));
            }
        })?;
        match last {
            Some((wire_type, mut value)) => self.single(
                field.kind,
                (field.number, wire_type),
                &mut value,
                out,
                depth,
            ),
            None => {
                self.default_scalar(field.kind, out);
                Ok(())
            }
        }
    }

    /// Appends a `google.protobuf.Any`.
    pub(crate) fn any(
        &self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OutError> {
        let (mut type_url, mut value): (&[u8], &[u8]) = (&[], &[]);
        each_bytes_field(bytes, |number, content| match number {
            1 => type_url = content,
            2 => value = content,
            _ => {}
        })?;
        let type_url = std::str::from_utf8(type_url).map_err(|_| Malformed)?;
        out.push(b'{');
        if !type_url.is_empty() {
            out.extend_from_slice(b"\"@type\":");
            put_json_string(out, type_url);
            let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
            match self.plans.find(name).map(|id| (id, self.plans.message(id))) {
                Some((id, plan)) if plan.shape == Shape::Object => {
                    let start = out.len();
                    match self.fields(plan, value, out, false, depth + 1) {
                        // Ordering the outer message leaves these bytes as they are.
                        Err(OutError::Unordered) => {
                            out.truncate(start);
                            let ordered = super::reorder(self.plans, id, value)?;
                            self.fields(plan, &ordered, out, false, depth + 1)?;
                        }
                        written => written?,
                    }
                }
                Some((id, _)) => {
                    out.extend_from_slice(b",\"value\":");
                    self.message(id, value, out, depth + 1)?;
                }
                // A type nobody told us about still reaches the caller, as bytes.
                None => {
                    out.extend_from_slice(b",\"value\":");
                    put_base64_string(out, value);
                }
            }
        }
        out.push(b'}');
        Ok(())
    }
}

/// The wire type of the next field if it has this number; its tag is consumed then.
fn same_field(cursor: &mut Cursor<'_>, number: u32) -> Option<WireType> {
    let mut ahead = *cursor;
    match ahead.tag() {
        Ok((next, wire_type)) if next == number => {
            *cursor = ahead;
            Some(wire_type)
        }
        _ => None,
    }
}

type Encoded<'a> = Option<(WireType, Cursor<'a>)>;

/// Key and value of a map entry, in whichever order they come; the last of each counts.
fn map_entry(bytes: &[u8]) -> Result<(Encoded<'_>, Encoded<'_>), OutError> {
    let (mut key, mut value) = (None, None);
    each_field(bytes, |number, wire_type, encoded| match number {
        1 => key = Some((wire_type, encoded)),
        2 => value = Some((wire_type, encoded)),
        _ => {}
    })?;
    Ok((key, value))
}

fn each_field<'a>(
    bytes: &'a [u8],
    mut visit: impl FnMut(u32, WireType, Cursor<'a>),
) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag()?;
        visit(number, wire_type, cursor);
        cursor.skip(number, wire_type)?;
    }
    Ok(())
}

fn each_bytes_field<'a>(
    bytes: &'a [u8],
    mut visit: impl FnMut(u32, &'a [u8]),
) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag()?;
        if wire_type == WireType::Bytes {
            visit(number, cursor.bytes()?);
        } else {
            cursor.skip(number, wire_type)?;
        }
    }
    Ok(())
}

fn moment(bytes: &[u8]) -> Result<Moment, OutError> {
    let mut moment = Moment {
        seconds: 0,
        nanos: 0,
    };
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        match cursor.tag()? {
            (1, WireType::Varint) => moment.seconds = cursor.varint()?.cast_signed(),
            (2, WireType::Varint) => moment.nanos = low32(cursor.varint()?).cast_signed(),
            (number, wire_type) => cursor.skip(number, wire_type)?,
        }
    }
    Ok(moment)
}

fn quoted(text: Option<String>, out: &mut Vec<u8>) -> Result<(), OutError> {
    let text = text.ok_or(OutError::Malformed(
        "a timestamp or duration is out of range",
    ))?;
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

fn field_mask(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), OutError> {
    let mut paths = Vec::new();
    each_bytes_field(bytes, |number, path| {
        if number == 1 {
            paths.push(path);
        }
    })?;
    let mut text = String::new();
    for (index, path) in paths.into_iter().enumerate() {
        let path = std::str::from_utf8(path)
            .ok()
            .and_then(format_field_mask_path);
        let path = path.ok_or(OutError::Malformed("a field mask has no JSON form"))?;
        if index > 0 {
            text.push(',');
        }
        text.push_str(&path);
    }
    put_json_string(out, &text);
    Ok(())
}

fn json_struct(bytes: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), OutError> {
    let mut entries = Vec::new();
    each_bytes_field(bytes, |number, entry| {
        if number == 1 {
            entries.push(entry);
        }
    })?;
    let mut keys = HashSet::new();
    out.push(b'{');
    for (index, entry) in entries.into_iter().enumerate() {
        let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
        each_bytes_field(entry, |number, content| match number {
            1 => key = content,
            2 => value = content,
            _ => {}
        })?;
        if !keys.insert(key) {
            return Err(OutError::Unordered);
        }
        if index > 0 {
            out.push(b',');
        }
        put_json_string(out, std::str::from_utf8(key).map_err(|_| Malformed)?);
        out.push(b':');
        json_value(value, out, depth + 1)?;
    }
    out.push(b'}');
    Ok(())
}

fn json_list(bytes: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), OutError> {
    let mut items = Vec::new();
    each_bytes_field(bytes, |number, item| {
        if number == 1 {
            items.push(item);
        }
    })?;
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json_value(item, out, depth + 1)?;
    }
    out.push(b']');
    Ok(())
}

fn json_value(bytes: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), OutError> {
    if depth > DEPTH_MAX {
        return Err(OutError::Malformed("the message is nested too deeply"));
    }
    let mut last: Encoded<'_> = None;
    let mut last_number = 1;
    each_field(bytes, |number, wire_type, value| {
        if (1..=6).contains(&number) {
            last = Some((wire_type, value));
            last_number = number;
        }
    })?;
    let Some((wire_type, mut value)) = last else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    match (last_number, wire_type) {
        (1, WireType::Varint) => out.extend_from_slice(b"null"),
        (2, WireType::Fixed64) => {
            let number = f64::from_bits(value.fixed64()?);
            if !number.is_finite() {
                return Err(OutError::Malformed("a google.protobuf.Value is not finite"));
            }
            put_double(out, number);
        }
        (3, WireType::Bytes) => {
            put_json_string(
                out,
                std::str::from_utf8(value.bytes()?).map_err(|_| Malformed)?,
            );
        }
        (4, WireType::Varint) => {
            let text: &[u8] = if value.varint()? == 0 {
                b"false"
            } else {
                b"true"
            };
            out.extend_from_slice(text);
        }
        (5, WireType::Bytes) => json_struct(value.bytes()?, out, depth + 1)?,
        (6, WireType::Bytes) => json_list(value.bytes()?, out, depth + 1)?,
        _ => return Err(Malformed.into()),
    }
    Ok(())
}

fn separate(out: &mut Vec<u8>, first: &mut bool) {
    if !*first {
        out.push(b',');
    }
    *first = false;
}

fn put_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn put_quoted_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.push(b'"');
    put_integer(out, value);
    out.push(b'"');
}

fn put_double(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        put_not_finite(out, value.is_nan(), value.is_sign_negative());
    }
}

fn put_float(out: &mut Vec<u8>, value: f32) {
    if value.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        put_not_finite(out, value.is_nan(), value.is_sign_negative());
    }
}

fn put_not_finite(out: &mut Vec<u8>, is_nan: bool, is_negative: bool) {
    let text: &[u8] = match (is_nan, is_negative) {
        (true, _) => b"\"NaN\"",
        (false, true) => b"\"-Infinity\"",
        (false, false) => b"\"Infinity\"",
    };
    out.extend_from_slice(text);
}

fn put_base64_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    base64_encode(bytes, out);
    out.push(b'"');
}

fn put_text_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => put_json_string(out, text),
        Err(_) => {
            out.extend_from_slice(b"{\"base64\":");
            put_base64_string(out, bytes);
            out.push(b'}');
        }
    }
}

/// Appends a JSON string, copying the stretches between escapes whole.
pub(crate) fn put_json_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f => b'u',
            _ => continue,
        };
        out.extend_from_slice(bytes.get(start..at).unwrap_or_default());
        start = at + 1;
        out.extend_from_slice(&[b'\\', short]);
        if short == b'u' {
            out.extend_from_slice(format!("{byte:04x}").as_bytes());
        }
    }
    out.extend_from_slice(bytes.get(start..).unwrap_or_default());
    out.push(b'"');
}
