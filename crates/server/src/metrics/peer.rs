//! What goes between this node and the others, read at every scrape.

use flux_telemetry::{Kind, Registry};

use crate::peer::traffic::{NodeStats, PeerStats, Way};

/// A family of one number for each other node and way.
struct PerWay {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&NodeStats) -> [u64; 2],
}

const FAMILIES: [PerWay; 5] = [
    PerWay {
        name: "flux_peer_connections",
        help: "Connections to another node (out) and from it (in)",
        kind: Kind::Gauge,
        value: |node| node.connections,
    },
    PerWay {
        name: "flux_peer_bytes",
        help: "Bytes sent to another node and received from it, after the handshake",
        kind: Kind::Counter,
        value: |node| node.bytes,
    },
    PerWay {
        name: "flux_peer_frames",
        help: "Frames sent to another node and received from it, after the handshake",
        kind: Kind::Counter,
        value: |node| node.frames,
    },
    PerWay {
        name: "flux_peer_snapshots",
        help: "Snapshots that another node has taken from this one (out), and this one from it (in)",
        kind: Kind::Counter,
        value: |node| node.snapshots,
    },
    PerWay {
        name: "flux_peer_snapshot_bytes",
        help: "Bytes of snapshots sent to another node and received from it, of unfinished ones too",
        kind: Kind::Counter,
        value: |node| node.snapshot_bytes,
    },
];

/// Adds what the links count. `read` must not block for long.
pub(crate) fn register_peers(
    registry: &Registry,
    read: impl Fn() -> PeerStats + Clone + Send + Sync + 'static,
) {
    for family in FAMILIES {
        let PerWay {
            name,
            help,
            kind,
            value,
        } = family;
        let read = read.clone();
        registry.collect(name, help, kind, &["node", "direction"], move |samples| {
            for (number, node) in read().nodes {
                for (way, count) in Way::ALL.iter().zip(value(&node)) {
                    samples.push(&[&number.to_string(), way.as_str()], count);
                }
            }
        });
    }
    let refused = read.clone();
    registry.collect(
        "flux_peer_refused",
        "Handshakes between nodes that were refused by another (out) or by this one (in)",
        Kind::Counter,
        &["direction"],
        move |samples| {
            for (way, count) in Way::ALL.iter().zip(refused().refused) {
                samples.push(&[way.as_str()], count);
            }
        },
    );
    let round_trips = read.clone();
    registry.collect(
        "flux_peer_round_trip_seconds",
        "How long the last answer of another node took that needed no disk",
        Kind::Gauge,
        &["node"],
        move |samples| {
            for (number, node) in round_trips().nodes {
                if let Some(took) = node.round_trip {
                    samples.push(&[&number.to_string()], took.as_secs_f64());
                }
            }
        },
    );
    registry.collect(
        "flux_peer_heard_age_seconds",
        "How long ago another node was last heard of by itself; after 1.5 it is not counted on",
        Kind::Gauge,
        &["node"],
        move |samples| {
            for (number, node) in read().nodes {
                if let Some(age) = node.heard_age {
                    samples.push(&[&number.to_string()], age.as_secs_f64());
                }
            }
        },
    );
}
