//! Tells the program which compiler made it, for `flux_build_info`.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script is asked and answers this way"
)]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let said = Command::new(compiler).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    // `rustc 1.95.0 (hash date)`
    let version = said.unwrap_or_default();
    let version = version.split(' ').nth(1).unwrap_or("unknown");
    println!("cargo::rustc-env=FLUX_RUSTC={version}");
}
