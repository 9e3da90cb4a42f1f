//! Compiles the `.proto` files in pure Rust, so that no `protoc` is needed.
//!
//! The descriptor set is written apart from the code: protox keeps custom options in it (HTTP
//! mappings, the `text` option), which prost's own types would lose.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 5] = [
    "flux/kv/v1/kv.proto",
    "flux/error/v1/error.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
    "service/kv.proto",
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
    tonic_prost_build::configure()
        .bytes(".flux.kv.v1")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
