//! The rows of what makes a node one of several.

use flux_server::{Reads, RespCluster};

use super::keys::NODE;
use super::{Form, Key, value};

pub(super) const RESP_CLUSTER: Key = Key {
    name: "node.resp-cluster",
    flag: "resp-cluster",
    variable: "FLUX_RESP_CLUSTER",
    placeholder: "HOW",
    form: Form::Text,
    parts: NODE,
    help: "auto, moved or proxy: whether RESP clients are told which node leads",
    set: |settings, text| {
        let ways = [RespCluster::Auto, RespCluster::Moved, RespCluster::Proxy];
        settings.node.resp_cluster = value::one_of(text, &ways, RespCluster::as_str)?;
        Ok(())
    },
    show: |settings| settings.node.resp_cluster.as_str().to_owned(),
};

pub(super) const NODE_ID: Key = Key {
    name: "node.node-id",
    flag: "node-id",
    variable: "FLUX_NODE_ID",
    placeholder: "NUMBER",
    form: Form::Number,
    parts: NODE,
    help: "Number of this node in its cluster, 1 to 65535; 0: it is alone",
    set: |settings, text| {
        settings.node.node_id = match text.parse::<u32>() {
            Ok(number) if number <= 65_535 => number,
            Ok(_) | Err(_) => return Err(format!("{text:?} is not a number from 0 to 65535")),
        };
        Ok(())
    },
    show: |settings| settings.node.node_id.to_string(),
};

pub(super) const PEER_PORT: Key = Key {
    name: "node.peer-port",
    flag: "peer-port",
    variable: "FLUX_PEER_PORT",
    placeholder: "PORT",
    form: Form::Number,
    parts: NODE,
    help: "Port for the other nodes of the cluster",
    set: |settings, text| {
        settings.node.peer_port = value::port(text)?;
        Ok(())
    },
    show: |settings| settings.node.peer_port.to_string(),
};

pub(super) const ADVERTISE_PEER_PORT: Key = Key {
    name: "node.advertise-peer-port",
    flag: "advertise-peer-port",
    variable: "FLUX_ADVERTISE_PEER_PORT",
    placeholder: "PORT",
    form: Form::Number,
    parts: NODE,
    help: "Port under which others reach the peer port, where ports are mapped; 0: the same",
    set: |settings, text| {
        settings.node.advertise_peer_port = value::port(text)?;
        Ok(())
    },
    show: |settings| settings.node.advertise_peer_port.to_string(),
};

pub(super) const JOIN: Key = Key {
    name: "node.join",
    flag: "join",
    variable: "FLUX_JOIN",
    placeholder: "HOST:PORT,…",
    form: Form::Text,
    parts: NODE,
    help: "Peer addresses of all nodes of a new cluster, this one included; later: where to look",
    set: |settings, text| {
        let addresses = value::parts(text).map(value::host_and_port);
        settings.node.join = addresses.collect::<Result<_, _>>()?;
        Ok(())
    },
    show: |settings| settings.node.join.join(","),
};

pub(super) const REPLICAS: Key = Key {
    name: "node.replicas",
    flag: "replicas",
    variable: "FLUX_REPLICAS",
    placeholder: "COUNT",
    form: Form::Number,
    parts: NODE,
    help: "On how many nodes each shard of a new cluster is: 1, 3, 5 or 7",
    set: |settings, text| {
        settings.node.replicas = text
            .parse::<u32>()
            .map_err(|_| format!("{text:?} is not a count"))?;
        Ok(())
    },
    show: |settings| settings.node.replicas.to_string(),
};

pub(super) const WEIGHT: Key = Key {
    name: "node.weight",
    flag: "weight",
    variable: "FLUX_WEIGHT",
    placeholder: "NUMBER",
    form: Form::Number,
    parts: NODE,
    help: "How much this node can carry beside others, 1 to 1000",
    set: |settings, text| {
        settings.node.weight = text
            .parse::<u32>()
            .map_err(|_| format!("{text:?} is not a number"))?;
        Ok(())
    },
    show: |settings| settings.node.weight.to_string(),
};

pub(super) const ZONE: Key = Key {
    name: "node.zone",
    flag: "zone",
    variable: "FLUX_ZONE",
    placeholder: "NAME",
    form: Form::Text,
    parts: NODE,
    help: "What this node shares its fate with, such as a rack: replicas go to different ones",
    set: |settings, text| {
        text.clone_into(&mut settings.node.zone);
        Ok(())
    },
    show: |settings| settings.node.zone.clone(),
};

pub(super) const REPLACE_AFTER: Key = Key {
    name: "node.replace-after",
    flag: "replace-after",
    variable: "FLUX_REPLACE_AFTER",
    placeholder: "DURATION",
    form: Form::Text,
    parts: NODE,
    help: "How long a node may be silent before others carry what it did",
    set: |settings, text| {
        settings.node.replace_after = value::duration(text)?;
        Ok(())
    },
    show: |settings| value::show_duration(settings.node.replace_after),
};

pub(super) const MOVE_RATE: Key = Key {
    name: "node.move-rate",
    flag: "move-rate",
    variable: "FLUX_MOVE_RATE",
    placeholder: "SIZE",
    form: Form::Text,
    parts: NODE,
    help: "Most bytes a second that this node sends of snapshots; 0: as fast as can be",
    set: |settings, text| {
        settings.node.move_rate = value::size(text)?;
        Ok(())
    },
    show: |settings| value::show_size(settings.node.move_rate),
};

pub(super) const READS: Key = Key {
    name: "node.reads",
    flag: "reads",
    variable: "FLUX_READS",
    placeholder: "MODE",
    form: Form::Text,
    parts: NODE,
    help: "lease (from memory while no other node can lead) or read-index (ask a majority)",
    set: |settings, text| {
        let modes = [Reads::Lease, Reads::ReadIndex];
        settings.node.reads = value::one_of(text, &modes, Reads::as_str)?;
        Ok(())
    },
    show: |settings| settings.node.reads.as_str().to_owned(),
};

pub(super) const ACCEPT_LOSS: Key = Key {
    name: "node.accept-loss",
    flag: "accept-loss",
    variable: "FLUX_ACCEPT_LOSS",
    placeholder: "",
    form: Form::Switch,
    parts: NODE,
    help: "Go on with what is on the disk after a power cut that a majority had without fsync",
    set: |settings, text| {
        settings.node.accept_loss = value::boolean(text)?;
        Ok(())
    },
    show: |settings| settings.node.accept_loss.to_string(),
};
