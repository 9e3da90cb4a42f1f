//! Replays the fuzz corpora on the stable compiler, through the functions the targets run.

#[path = "../../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn resp_corpus() {
    replay("resp", 10, flux_wire::fuzzing::resp);
}

#[test]
fn forward_corpus() {
    replay("forward", 10, flux_wire::fuzzing::forward);
}

#[test]
fn flux_frame_corpus() {
    replay("flux_frame", 10, flux_wire::fuzzing::flux_frame);
}
