//! Descriptors that are there at start: a descriptor set, `.proto` files, or bytes handed over.

use prost_reflect::DescriptorPool;

use crate::config::{DescriptorSource, ProtoSource};

/// The message types of `google.rpc` error details, for upstreams that send but do not describe
/// them.
const ERROR_DETAILS: &str = include_str!("error_details.proto");

/// Loads descriptors; `Ok(None)` if the upstream will be asked for them.
///
/// # Errors
/// What is wrong with the source, as a sentence fragment.
pub(crate) fn load(source: &DescriptorSource) -> Result<Option<DescriptorPool>, String> {
    match source {
        DescriptorSource::Reflection => Ok(None),
        DescriptorSource::Set(path) => {
            let bytes = read(path)?;
            decode(&bytes)
                .map(Some)
                .map_err(|error| format!("{path}: {error}"))
        }
        DescriptorSource::Proto(source) => compile(source).map(Some),
        DescriptorSource::Embedded(bytes) => decode(bytes).map(Some),
    }
}

/// A pool from an encoded `FileDescriptorSet`, options included.
pub(crate) fn decode(set: &[u8]) -> Result<DescriptorPool, String> {
    DescriptorPool::decode(set).map_err(|error| error.to_string())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a descriptor set is configuration read once at start, not data of the node's disk"
)]
fn read(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{path}: {error}"))
}

fn compile(source: &ProtoSource) -> Result<DescriptorPool, String> {
    let mut compiler = protox::Compiler::new(&source.includes).map_err(|e| e.to_string())?;
    compiler.include_imports(true);
    compiler
        .open_files(&source.files)
        .map_err(|error| error.to_string())?;
    decode(&compiler.encode_file_descriptor_set())
}

/// The pool of the well-known error details.
///
/// # Errors
/// Never in a build whose tests pass: the text is part of the program.
pub(crate) fn error_details() -> Result<DescriptorPool, String> {
    let mut files = protox::file::ChainFileResolver::new();
    files.add(protox::file::GoogleFileResolver::new());
    files.add(Embedded);
    let mut compiler = protox::Compiler::with_file_resolver(files);
    compiler.include_imports(true);
    compiler
        .open_file("google/rpc/error_details.proto")
        .map_err(|error| error.to_string())?;
    decode(&compiler.encode_file_descriptor_set())
}

struct Embedded;

impl protox::file::FileResolver for Embedded {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        if name == "google/rpc/error_details.proto" {
            protox::file::File::from_source(name, ERROR_DETAILS)
        } else {
            Err(protox::Error::file_not_found(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_details_compile() {
        let pool = error_details().unwrap();
        assert!(pool.get_message_by_name("google.rpc.BadRequest").is_some());
    }

    #[test]
    fn a_missing_file_is_named() {
        let source = DescriptorSource::Set("/nosuch/file.pb".to_owned());
        assert!(load(&source).unwrap_err().starts_with("/nosuch/file.pb: "));
        assert!(decode(b"\xff\xff").is_err());
    }
}
