//! Compiles the `.proto` files in pure Rust, so that no `protoc` is needed.
//!
//! The descriptor set is written apart from the code: protox keeps custom options in it (HTTP
//! mappings, the `text` option), which prost's own types would lose.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 6] = [
    "flux/kv/v1/kv.proto",
    "flux/cdc/v1/cdc.proto",
    "flux/error/v1/error.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
    "service/kv.proto",
];

/// What governs a cluster. Not among the descriptors: a gateway exposes whatever those have, and
/// nobody should govern a cluster through a gateway by accident.
const ADMIN_FILE: &str = "flux/admin/v1/cluster.proto";

/// Messages that are written as JSON without descriptors, since the program itself writes many.
const EVENT_MESSAGES: [&str; 6] = [
    "CloudEvent",
    "EventData",
    "KeyState",
    "EventSource",
    "EventTransaction",
    "EventGap",
];

/// Their 64-bit numbers, which the JSON of protobuf writes as strings.
const NUMBERS_AS_TEXT: [&str; 9] = [
    "EventData.ts_ms",
    "EventData.items",
    "KeyState.revision",
    "KeyState.expires_at_ms",
    "EventSource.term",
    "EventSource.revision",
    "EventSource.ts_ms",
    "EventGap.after_revision",
    "EventGap.next_revision",
];

#[expect(
    clippy::disallowed_methods,
    reason = "a build script writes what cargo asks it for"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;
    fs::write(
        out.join("descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    let mut builder = tonic_prost_build::configure().bytes(".flux.kv.v1");
    for message in EVENT_MESSAGES {
        let path = format!(".flux.cdc.v1.{message}");
        let derived = "#[derive(::serde::Serialize, ::serde::Deserialize)]";
        let absent = "#[serde(default, skip_serializing_if = \"Option::is_none\")]";
        builder = builder
            .message_attribute(&path, derived)
            .field_attribute(&path, absent);
    }
    for field in NUMBERS_AS_TEXT {
        let path = format!(".flux.cdc.v1.{field}");
        builder = builder.field_attribute(path, "#[serde(with = \"crate::text_number\")]");
    }
    builder.compile_fds(compiler.file_descriptor_set())?;
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_file(ADMIN_FILE)?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
