//! Replays the corpus of a fuzz target on the stable compiler, through the function that the target
//! runs. Included by the tests of each room that has such functions.

use std::path::Path;

/// Runs `check` on every input of a target, of which there must be at least so many.
#[expect(
    clippy::disallowed_methods,
    reason = "a test reads the files of the repository"
)]
pub(crate) fn replay(target: &str, least: usize, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = file.expect("the folder can be listed").path();
        check(&std::fs::read(&path).expect("the file can be read"));
        count += 1;
    }
    assert!(least <= count, "the corpus of {target} is there: {count}");
}
