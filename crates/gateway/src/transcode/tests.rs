//! The direct transcoder against prost-reflect: on every message both must agree.

use std::sync::LazyLock;

use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, Kind as ProtoKind, MapKey,
    MessageDescriptor, ReflectMessage as _, SerializeOptions, Value,
};

use super::json_in::{JsonIn, UnknownFields};
use super::json_out::{JsonOut, Names};
use super::plan::{MessageId, Plans, TextBytes};
use super::to_json;
use super::wire::Cursor;

const DEPTH_MAX: usize = 64;

struct Lab {
    plans: Plans,
    id: MessageId,
    descriptor: MessageDescriptor,
}

fn lab() -> &'static Lab {
    static LAB: LazyLock<Lab> = LazyLock::new(compile);
    &LAB
}

fn compile() -> Lab {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/protos");
    let mut compiler = protox::Compiler::new([protos]).unwrap();
    compiler.include_imports(true);
    compiler.open_file("lab.proto").unwrap();
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap();
    let descriptor = pool.get_message_by_name("lab.v1.Everything").unwrap();
    let plans = Plans::new(pool, &TextBytes::default());
    let id = plans.find("lab.v1.Everything").unwrap();
    Lab {
        plans,
        id,
        descriptor,
    }
}

impl Lab {
    fn direct_out(&self, bytes: &[u8], emit_defaults: bool) -> Result<String, super::OutError> {
        let json = JsonOut {
            plans: &self.plans,
            names: Names::Json,
            emit_defaults,
        };
        let mut out = Vec::new();
        to_json(&json, self.id, bytes, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn direct_in(&self, text: &str) -> Option<DynamicMessage> {
        let json = JsonIn {
            plans: &self.plans,
            unknown: UnknownFields::Reject,
        };
        let mut out = Vec::new();
        json.document(text, DEPTH_MAX, self.id, &mut out).ok()?;
        Some(
            self.decode(&out)
                .expect("what the direct path writes is well-formed"),
        )
    }

    fn decode(&self, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.descriptor.clone(), bytes).ok()
    }

    fn oracle_out(message: &DynamicMessage, emit_defaults: bool) -> Option<String> {
        let options = SerializeOptions::new().skip_default_fields(!emit_defaults);
        let mut text = Vec::new();
        let mut serializer = serde_json::Serializer::new(&mut text);
        message
            .serialize_with_options(&mut serializer, &options)
            .ok()?;
        Some(String::from_utf8(text).unwrap())
    }

    fn oracle_in(&self, text: &str) -> Option<DynamicMessage> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let options = DeserializeOptions::new();
        let descriptor = self.descriptor.clone();
        let read = DynamicMessage::deserialize_with_options(descriptor, &mut reader, &options);
        let message = read.ok()?;
        reader.end().ok()?;
        Some(message)
    }
}

/// What a message says. Messages themselves compare a default that was set as different from one
/// that was not, and their Debug form has no end.
fn meaning(message: &DynamicMessage) -> serde_json::Value {
    json(&Lab::oracle_out(message, false).unwrap())
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Makes choices from given bytes, and only dull ones when they are used up.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => u64::from(self.byte()),
            1 => u64::MAX - u64::from(self.byte()),
            2 => 1 << (self.byte() % 64),
            _ => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    fn text(&mut self) -> String {
        let pieces = [
            "a", "", "é", "\"", "\\", "\n", "\u{1}", "😀", "key", "\u{7f}", "/", "日本",
        ];
        let count = self.below(5);
        (0..count)
            .map(|_| pieces[usize::from(self.below(12))])
            .collect()
    }

    /// Few digits: `serde_json`, which the oracle reads with, rounds long ones wrongly.
    fn double(&mut self) -> f64 {
        f64::from(super::wire::low32(self.number()).cast_signed()) / 8.0
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: u8) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if self.below(4) != 0 {
                continue;
            }
            let count = self.below(4);
            let value = if field.is_map() {
                let ProtoKind::Message(entry) = field.kind() else {
                    unreachable!()
                };
                let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
                let pairs =
                    (0..count).map(|_| (self.key(&key.kind()), self.value(&value.kind(), depth)));
                Value::Map(pairs.collect())
            } else if field.is_list() {
                Value::List(
                    (0..count)
                        .map(|_| self.value(&field.kind(), depth))
                        .collect(),
                )
            } else {
                self.value(&field.kind(), depth)
            };
            message.set_field(&field, value);
        }
        message
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "keys are of few kinds")]
    fn key(&mut self, kind: &ProtoKind) -> MapKey {
        let number = self.number();
        match kind {
            ProtoKind::String => MapKey::String(self.text()),
            ProtoKind::Bool => MapKey::Bool(number & 1 == 1),
            ProtoKind::Int32 => MapKey::I32(super::wire::low32(number).cast_signed()),
            ProtoKind::Uint64 => MapKey::U64(number),
            other => panic!("no map of the sample has such keys: {other:?}"),
        }
    }

    fn value(&mut self, kind: &ProtoKind, depth: u8) -> Value {
        let number = self.number();
        let low = super::wire::low32(number);
        match kind {
            ProtoKind::Double if low == 7 => Value::F64(f64::NEG_INFINITY),
            ProtoKind::Double => Value::F64(self.double()),
            ProtoKind::Float if low == 7 => Value::F32(f32::INFINITY),
            ProtoKind::Float => Value::F32(f32::from(i16::from(self.byte().cast_signed())) / 4.0),
            ProtoKind::Int32 | ProtoKind::Sint32 | ProtoKind::Sfixed32 => {
                Value::I32(low.cast_signed())
            }
            ProtoKind::Int64 | ProtoKind::Sint64 | ProtoKind::Sfixed64 => {
                Value::I64(number.cast_signed())
            }
            ProtoKind::Uint32 | ProtoKind::Fixed32 => Value::U32(low),
            ProtoKind::Uint64 | ProtoKind::Fixed64 => Value::U64(number),
            ProtoKind::Bool => Value::Bool(number & 1 == 1),
            ProtoKind::String => Value::String(self.text()),
            ProtoKind::Bytes => {
                let length = self.below(6);
                Value::Bytes((0..length).map(|_| self.byte()).collect::<Vec<_>>().into())
            }
            ProtoKind::Enum(of) if of.full_name() == "google.protobuf.NullValue" => {
                Value::EnumNumber(0)
            }
            ProtoKind::Enum(_) => Value::EnumNumber(i32::from(self.below(7)) - 1),
            ProtoKind::Message(of) => Value::Message(self.known_message(of, depth)),
        }
    }

    /// A message, well-known types within their rules.
    fn known_message(&mut self, descriptor: &MessageDescriptor, depth: u8) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let name = descriptor
            .full_name()
            .strip_prefix("google.protobuf.")
            .unwrap_or_default();
        match name {
            "Timestamp" => {
                let seconds = i64::try_from(self.number() % 253_402_300_799).unwrap();
                message.set_field_by_number(1, Value::I64(seconds - 62_135_596_800 / 2));
                message.set_field_by_number(2, Value::I32(i32::from(self.byte()) * 100_037));
            }
            "Duration" => {
                let seconds = i64::try_from(self.number() % 315_576_000_000).unwrap();
                message.set_field_by_number(1, Value::I64(-seconds));
                message.set_field_by_number(2, Value::I32(-i32::from(self.byte()) * 1_000));
            }
            "FieldMask" => {
                let paths = ["a", "foo_bar", "foo_bar.baz"].map(|p| Value::String(p.to_owned()));
                message.set_field_by_number(1, Value::List(paths.to_vec()));
            }
            "Value" => self.json_value(&mut message, depth),
            "Any" => {
                let inner = descriptor
                    .parent_pool()
                    .get_message_by_name("lab.v1.Inner")
                    .unwrap();
                let inner = self.message(&inner, depth + 3);
                let url = "type.googleapis.com/lab.v1.Inner".to_owned();
                message.set_field_by_number(1, Value::String(url));
                message.set_field_by_number(2, Value::Bytes(inner.encode_to_vec().into()));
            }
            _ if depth > 3 => {}
            _ => message = self.message(descriptor, depth + 1),
        }
        message
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only doubles have a rule of their own"
    )]
    fn json_value(&mut self, message: &mut DynamicMessage, depth: u8) {
        let number = if depth > 3 {
            self.below(4)
        } else {
            self.below(6)
        } + 1;
        let field = message.descriptor().get_field(u32::from(number)).unwrap();
        let value = match field.kind() {
            ProtoKind::Double => Value::F64(self.double()),
            kind => self.value(&kind, depth + 1),
        };
        message.set_field(&field, value);
    }
}

fn random_message(lab: &Lab, choices: &[u8]) -> DynamicMessage {
    Choices(choices.iter()).message(&lab.descriptor, 0)
}

/// The top-level fields of a message as byte strings, in the order in which they stand.
fn split_fields(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut cursor = Cursor::new(bytes);
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag().unwrap();
        cursor.skip(number, wire_type).unwrap();
        let taken = rest.len() - cursor.left();
        let (field, tail) = rest.split_at(taken);
        fields.push((number, field.to_vec()));
        rest = tail;
    }
    fields
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn responses_are_what_prost_reflect_writes(
        choices in proptest::collection::vec(any::<u8>(), 0..600),
        emit_defaults: bool,
    ) {
        let lab = lab();
        let message = random_message(lab, &choices);
        let direct = lab.direct_out(&message.encode_to_vec(), emit_defaults).unwrap();
        let oracle = Lab::oracle_out(&message, emit_defaults).unwrap();
        prop_assert_eq!(json(&direct), json(&oracle));
    }

    #[test]
    fn requests_are_what_prost_reflect_reads(
        choices in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let lab = lab();
        let message = random_message(lab, &choices);
        let text = Lab::oracle_out(&message, false).unwrap();
        let (direct, oracle) = (lab.direct_in(&text), lab.oracle_in(&text));
        let (direct, oracle) = (direct.unwrap(), oracle.unwrap());
        prop_assert_eq!(meaning(&direct), meaning(&oracle), "{}", text);
        prop_assert_eq!(meaning(&direct), meaning(&message), "{}", text);
    }

    #[test]
    fn fields_in_any_order_and_in_pieces_give_the_same_response(
        choices in proptest::collection::vec(any::<u8>(), 0..400),
        more in proptest::collection::vec(any::<u8>(), 0..100),
        seed: u64,
    ) {
        let lab = lab();
        let mut bytes = random_message(lab, &choices).encode_to_vec();
        bytes.extend(random_message(lab, &more).encode_to_vec());
        let mut fields = split_fields(&bytes);
        // Any order that keeps fields of the same number in theirs.
        fields.sort_by_key(|(number, _)| (u64::from(*number) * 2 + 1).wrapping_mul(seed | 1));
        let shuffled: Vec<u8> = fields.into_iter().flat_map(|(_, field)| field).collect();
        let merged = lab.decode(&shuffled).unwrap();
        let direct = lab.direct_out(&shuffled, true).unwrap();
        prop_assert_eq!(json(&direct), json(&Lab::oracle_out(&merged, true).unwrap()));
    }

    #[test]
    fn mutated_requests_never_panic_and_are_never_read_differently(
        choices in proptest::collection::vec(any::<u8>(), 0..300),
        edits in proptest::collection::vec((any::<u16>(), "[ -~]?"), 1..4),
    ) {
        let lab = lab();
        let mut text = Lab::oracle_out(&random_message(lab, &choices), false).unwrap();
        for (at, replacement) in edits {
            let at = usize::from(at) % text.len().max(1);
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                text.replace_range(at..=at, &replacement);
            }
        }
        if let (Some(direct), Some(oracle)) = (lab.direct_in(&text), lab.oracle_in(&text)) {
            prop_assert_eq!(meaning(&direct), meaning(&oracle), "{}", text);
        }
    }

    #[test]
    fn mutated_responses_never_panic_and_are_never_written_differently(
        choices in proptest::collection::vec(any::<u8>(), 0..300),
        edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ) {
        let lab = lab();
        let mut bytes = random_message(lab, &choices).encode_to_vec();
        for (at, replacement) in edits {
            let at = usize::from(at) % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = replacement;
            }
        }
        let oracle = lab.decode(&bytes).and_then(|message| Lab::oracle_out(&message, false));
        if let (Ok(direct), Some(oracle)) = (lab.direct_out(&bytes, false), oracle) {
            let [direct, oracle] = [direct, oracle].map(|text| {
                let mut value = json(&text);
                // A NullValue that holds another number than 0 is null to us and a field to them.
                value.as_object_mut().unwrap().remove("nothing");
                value
            });
            prop_assert_eq!(direct, oracle);
        }
    }
}
