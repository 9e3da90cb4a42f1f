//! Replays the fuzz corpora on the stable compiler, through the functions the targets run.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

#[expect(
    clippy::disallowed_methods,
    reason = "a test reads the files of the repository"
)]
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the folder can be read").path();
        let mut input = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut input))
            .expect("the file can be read");
        run(&input);
        count += 1;
    }
    assert!(count > 10, "the corpus of {target} is there");
}

#[test]
fn every_corpus() {
    for (target, run) in [
        ("gateway_json", flux_gateway::fuzzing::json as fn(&[u8])),
        ("gateway_parameters", flux_gateway::fuzzing::parameters),
        ("gateway_route", flux_gateway::fuzzing::route),
        ("gateway_message", flux_gateway::fuzzing::message),
    ] {
        replay(target, run);
    }
}
