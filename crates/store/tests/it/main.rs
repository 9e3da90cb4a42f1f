//! The corpus of the fuzz targets, replayed by the stable compiler.

#[path = "../../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn the_corpus_of_batches_holds() {
    replay("batch", 8, flux_store::fuzzing::batch);
}

#[test]
fn the_corpus_of_blocks_holds() {
    replay("block", 8, flux_store::fuzzing::block);
}
