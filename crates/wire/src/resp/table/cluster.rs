//! Rows of the commands by which cluster clients find their way.

use super::super::spec::{
    Action::{Container, Session},
    Group, SessionCommand as Command, Spec,
};
use super::row;

const GROUP: Group = Group::Cluster;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("cluster" "subcommand", -2, [NONE], (0 0 0), "3.0.0", "Depends on the subcommand.",
        "Tells about the cluster.", Container, subcommands::ROWS),
    row!("readonly" "", 1, [LOADING STALE FAST], (0 0 0), "3.0.0", "O(1)",
        "Lets this connection read from replicas, which may be behind.", Session(Command::ReadOnly)),
    row!("readwrite" "", 1, [LOADING STALE FAST], (0 0 0), "3.0.0", "O(1)",
        "Ends READONLY.", Session(Command::ReadWrite)),
    row!("asking" "", 1, [FAST], (0 0 0), "3.0.0", "O(1)",
        "Does nothing: no slot is ever between two nodes.", Session(Command::Asking)),
    row!("flux.topology" "", 1, [LOADING STALE], (0 0 0), "–", "O(N) in shards and nodes",
        "Returns shards with their slots and leaders, and nodes with their ports.", Session(Command::FluxTopology)),
];

mod subcommands {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Cluster;
    const CONTAINER: Option<&str> = Some("cluster");

    pub(super) const ROWS: &[Spec] = &[
        row!("slots" "", 2, [LOADING STALE], (0 0 0), "3.0.0", "O(N) in shards",
            "Returns ranges of slots with the nodes that serve them.", Session(Command::ClusterSlots)),
        row!("shards" "", 2, [LOADING STALE], (0 0 0), "7.0.0", "O(N) in nodes",
            "Returns nodes with the ranges of slots that they serve.", Session(Command::ClusterShards)),
        row!("nodes" "", 2, [LOADING STALE], (0 0 0), "3.0.0", "O(N) in nodes",
            "Describes every node in a line.", Session(Command::ClusterNodes)),
        row!("info" "", 2, [LOADING STALE], (0 0 0), "3.0.0", "O(1)",
            "Describes the cluster.", Session(Command::ClusterInfo)),
        row!("myid" "", 2, [LOADING STALE], (0 0 0), "3.0.0", "O(1)",
            "Returns this node's id.", Session(Command::ClusterMyId)),
        row!("myshardid" "", 2, [LOADING STALE], (0 0 0), "7.2.0", "O(1)",
            "Returns the id under which this node stands in SHARDS: its own.", Session(Command::ClusterMyShardId)),
        row!("links" "", 2, [LOADING STALE], (0 0 0), "7.0.0", "O(N) in nodes",
            "Returns the connections of the bus of Redis, of which there are none.", Session(Command::ClusterLinks)),
        row!("keyslot" "key", 3, [LOADING STALE], (0 0 0), "3.0.0", "O(N) in the key's length",
            "Returns the slot of a key.", Session(Command::ClusterKeySlot)),
        row!("countkeysinslot" "slot", 3, [LOADING STALE], (0 0 0), "3.0.0", "O(N) in the keys of the shard",
            "Counts the keys of a slot.", Session(Command::ClusterCountKeysInSlot)),
        row!("getkeysinslot" "slot count", 4, [LOADING STALE], (0 0 0), "3.0.0", "O(N) in the keys of the shard",
            "Returns keys of a slot.", Session(Command::ClusterGetKeysInSlot)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::ClusterHelp)),
    ];
}
