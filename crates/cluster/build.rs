//! Compiles `proto/etcd.proto` in pure Rust, so that no `protoc` is needed.

use std::error::Error;

#[cfg(feature = "etcd")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}

#[cfg(not(feature = "etcd"))]
fn main() -> Result<(), Box<dyn Error>> {
    Ok(())
}
