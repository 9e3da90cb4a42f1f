//! What the fuzz targets run, and what the suite replays their corpora through.
//!
//! Each function takes any bytes and asserts what must hold of every input: no panic, and what was
//! accepted means the same to prost-reflect as to the direct transcoder.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::route::path;
use crate::route::template::Template;
use crate::serve::framing::Framing;
use crate::transcode::bind::Parameters;
use crate::transcode::json_in::{JsonIn, Positions, UnknownFields};
use crate::transcode::json_out::{JsonOut, Names};
use crate::transcode::plan::{MessageId, Plans, TextBytes};
use crate::transcode::to_json;

/// One message with every kind of field, as a file that needs no other but the well-known ones.
const SCHEMA: &str = r#"
syntax = "proto3";
package fuzz.v1;
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Color { NONE = 0; RED = 1; NEGATIVE = -1; }
message Every {
  string text = 1; bytes blob = 2; int32 small = 3; sint64 large = 4; uint64 natural = 5; fixed32 fixed = 6;
  float single = 7; double twice = 8; bool flag = 9; Color color = 10; Every inner = 11;
  repeated int64 numbers = 12; repeated string names = 13; repeated Every inners = 14;
  map<string, string> labels = 15; map<int32, Every> shelves = 16; map<bool, bytes> switches = 17;
  oneof choice { string left = 18; int32 right = 19; Every middle = 20; }
  optional string maybe = 21; google.protobuf.Timestamp at = 22; google.protobuf.Duration lasting = 23;
  google.protobuf.FieldMask mask = 24; google.protobuf.Struct object = 25; google.protobuf.Value value = 26;
  google.protobuf.ListValue list = 27; google.protobuf.Int64Value wrapped = 28; google.protobuf.StringValue boxed = 29;
  google.protobuf.Any any = 30; google.protobuf.NullValue nothing = 31; bytes words = 32;
}
"#;
const DEPTH_MAX: usize = 64;

struct Schema {
    plans: Plans,
    id: MessageId,
}

static COMPILED: LazyLock<Option<Schema>> = LazyLock::new(|| {
    let mut files = protox::file::ChainFileResolver::new();
    files.add(protox::file::GoogleFileResolver::new());
    files.add(Embedded);
    let mut compiler = protox::Compiler::with_file_resolver(files);
    compiler
        .include_imports(true)
        .open_file("fuzz.proto")
        .ok()?;
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).ok()?;
    let text = TextBytes {
        option: String::new(),
        fields: ["fuzz.v1.Every.words".to_owned()].into(),
    };
    let plans = Plans::new(pool, &text);
    let id = plans.find("fuzz.v1.Every")?;
    Some(Schema { plans, id })
});

struct Embedded;

impl protox::file::FileResolver for Embedded {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        if name == "fuzz.proto" {
            protox::file::File::from_source(name, SCHEMA)
        } else {
            Err(protox::Error::file_not_found(name))
        }
    }
}

fn schema() -> &'static Schema {
    COMPILED.as_ref().expect("the schema above compiles")
}

/// Any bytes as a JSON document of a request.
///
/// # Panics
/// If a document that is accepted becomes bytes that are no such message, or whose JSON is not
/// accepted again with the same meaning.
pub fn json(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    for unknown in [UnknownFields::Reject, UnknownFields::Ignore] {
        if let Some(message) = read(text, unknown) {
            let written = write(&message);
            let again = read(&written, UnknownFields::Reject);
            let again = again.expect("what we write we read");
            assert_eq!(write(&again), written, "{text}");
        }
    }
}

/// Any bytes as a query or a form.
///
/// # Panics
/// If parameters that are accepted become bytes that are no such message.
pub fn parameters(input: &[u8]) {
    let Schema { plans, id } = schema();
    for unknown in [UnknownFields::Reject, UnknownFields::Ignore] {
        let mut parameters = Parameters::new(plans, *id, unknown, Positions::default());
        let mut out = Vec::new();
        if parameters.read(input, &mut out).is_ok() {
            checked(out);
        }
    }
}

/// Any bytes as the path of a request, as a path template, and as an HTTP/1.1 connection.
///
/// # Panics
/// If a path that is let through holds a segment that leads elsewhere, or the watch over framing
/// sees something else when the bytes come one by one.
pub fn route(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(segments) = path::segments(text) {
            assert!(
                !segments.iter().any(|one| matches!(*one, "." | "..")),
                "{text}"
            );
        }
        if let Ok(template) = Template::parse(text) {
            assert!(text.starts_with('/'), "{template:?}");
        }
    }
    let mut whole = input.to_vec();
    Framing::new().watch(&mut whole);
    let mut single = input.to_vec();
    let mut framing = Framing::new();
    single
        .iter_mut()
        .for_each(|byte| framing.watch(std::slice::from_mut(byte)));
    assert_eq!(whole, single);
}

/// Any bytes as a message that an upstream answers with.
///
/// # Panics
/// If the direct writer and prost-reflect disagree on whether it is one, as far as that can be told.
pub fn message(input: &[u8]) {
    let Schema { plans, id } = schema();
    let mut out = Vec::new();
    let json = JsonOut {
        plans,
        names: Names::Json,
        emit_defaults: true,
    };
    if to_json(&json, *id, input, &mut out).is_ok() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&out);
        assert!(parsed.is_ok(), "{}", String::from_utf8_lossy(&out));
    }
}

fn read(text: &str, unknown: UnknownFields) -> Option<Vec<u8>> {
    let Schema { plans, id } = schema();
    let json = JsonIn { plans, unknown };
    let mut out = Vec::new();
    json.document(text, DEPTH_MAX, *id, &mut out).ok()?;
    Some(checked(out))
}

/// The bytes, which prost-reflect must be able to read.
fn checked(bytes: Vec<u8>) -> Vec<u8> {
    let Schema { plans, id } = schema();
    let descriptor = plans.message(*id).descriptor.clone();
    let decoded = DynamicMessage::decode(descriptor, bytes.as_slice());
    assert!(decoded.is_ok(), "not a message: {bytes:?}");
    bytes
}

fn write(message: &[u8]) -> String {
    let Schema { plans, id } = schema();
    let json = JsonOut {
        plans,
        names: Names::Json,
        emit_defaults: false,
    };
    let mut out = Vec::new();
    let written = to_json(&json, *id, message, &mut out);
    assert!(written.is_ok(), "{written:?}: {message:?}");
    String::from_utf8(out).expect("JSON is UTF-8")
}
