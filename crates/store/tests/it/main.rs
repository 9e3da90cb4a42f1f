//! The corpus of the fuzz targets, replayed by the stable compiler.

use std::path::Path;

/// Runs `check` on every file of a target's corpus.
#[expect(clippy::disallowed_methods, reason = "a test reads its own data")]
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = file.expect("the folder can be listed").path();
        let input = std::fs::read(&path).expect("the file can be read");
        check(&input);
        count += 1;
    }
    assert!(count >= 8, "the corpus of {target} is there");
}

#[test]
fn the_corpus_of_batches_holds() {
    replay("batch", flux_store::fuzzing::batch);
}

#[test]
fn the_corpus_of_blocks_holds() {
    replay("block", flux_store::fuzzing::block);
}
