//! Replays the fuzz corpora on the stable compiler, through the functions the targets run.

#[path = "../../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn every_corpus() {
    for (target, run) in [
        ("gateway_json", flux_gateway::fuzzing::json as fn(&[u8])),
        ("gateway_parameters", flux_gateway::fuzzing::parameters),
        ("gateway_route", flux_gateway::fuzzing::route),
        ("gateway_message", flux_gateway::fuzzing::message),
    ] {
        replay(target, 10, run);
    }
}
