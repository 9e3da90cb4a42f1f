//! What cluster clients ask: CLUSTER and FLUX.TOPOLOGY.
//!
//! Redis Cluster knows nodes that serve slots and replicas that follow one of them. Ours knows shards,
//! and a node may lead one and follow another. To a cluster client, a node that leads anything is
//! a master with the slots of the shards it leads; one that leads nothing is a replica of a
//! node that leads a shard it has. So no node has two roles, which clients could not bear.
//!
//! Everything is derived from the node's picture of the cluster, which may be a moment old; so may
//! what a client makes of it, and that is what MOVED and forwarding are for.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use flux_cluster::{SlotMap, slot_of_key};
use flux_types::ids::SLOT_COUNT;
use flux_types::limits::SHARDS_MAX;
use flux_types::{
    ClusterId, Command, Error, ErrorCode, NodeId, ReadCommand, Reply, ScanPage, ShardId, Slot,
};
use flux_wire::number::parse_u64;
use flux_wire::resp::{SessionCommand, Writer, introspect};

use super::{Session, server};
use crate::config::RespCluster;
use crate::context::Context;
use crate::topology::{NodePlace, ShardPlace, Topology};

/// Keys looked at in one step of a search for those of a slot.
const SEARCH_STEP: usize = 1000;

/// Answers what needs no shard; `false` if the command is not about the cluster. `local` is the
/// address under which the client has reached this node.
pub(crate) fn answer(
    node: &Context,
    local: Option<IpAddr>,
    command: SessionCommand,
    arguments: &[Bytes],
    writer: &mut Writer<'_>,
) -> bool {
    let view = View::new(node, local);
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "asks which of a few, whatever else there is"
    )]
    match command {
        SessionCommand::ClusterSlots => view.slots(writer),
        SessionCommand::ClusterShards => view.shards(writer),
        SessionCommand::ClusterNodes => writer.verbatim(&view.nodes()),
        SessionCommand::ClusterInfo => writer.verbatim(&view.info()),
        SessionCommand::ClusterMyId | SessionCommand::ClusterMyShardId => {
            writer.bulk(view.id(view.topology.own).as_bytes());
        }
        SessionCommand::ClusterLinks => writer.array(0),
        SessionCommand::ClusterKeySlot => {
            let key = arguments.first().map_or(&[][..], |key| key);
            writer.integer(i64::from(slot_of_key(key).get()));
        }
        SessionCommand::ClusterHelp => introspect::help("cluster", writer),
        SessionCommand::FluxTopology => view.topology(writer),
        _ => return false,
    }
    true
}

impl Context {
    /// Whether clients are told that this is a cluster, where they ask in passing (INFO, HELLO).
    pub(crate) fn looks_like_cluster(&self) -> bool {
        match self.config.resp_cluster {
            RespCluster::Moved => true,
            RespCluster::Auto => self.topology.current().nodes.len() > 1,
            RespCluster::Proxy => false,
        }
    }
}

/// The cluster as clients are told of it.
struct View<'a> {
    map: &'a SlotMap,
    topology: Arc<Topology>,
    cluster: ClusterId,
    local: Option<IpAddr>,
}

/// A node with the slots that it serves: none if it leads nothing.
struct Serving<'v> {
    place: &'v NodePlace,
    ranges: Vec<(Slot, Slot)>,
}

impl<'a> View<'a> {
    fn new(node: &'a Context, local: Option<IpAddr>) -> Self {
        let topology = node.topology.current();
        Self {
            map: node.home.map(),
            topology: match node.config.resp_cluster {
                RespCluster::Auto | RespCluster::Moved => topology,
                RespCluster::Proxy => Arc::new(alone(&topology)),
            },
            cluster: node.identity.cluster,
            local,
        }
    }

    /// An id of 40 hexadecimal digits, as Redis has it.
    fn id(&self, node: NodeId) -> String {
        format!("{:016x}{:024x}", self.cluster.get(), node.get())
    }

    /// Where clients reach a node. One that binds every address is reached where the client
    /// has reached it.
    fn host(&self, place: &NodePlace) -> String {
        let is_any = place
            .host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_unspecified());
        match self.local {
            Some(local) if is_any && place.node == self.topology.own => local.to_string(),
            Some(_) | None => place.host.clone(),
        }
    }

    fn leader(&self, shard: ShardId) -> Option<&NodePlace> {
        self.topology.leader_of(shard)
    }

    /// Every node, with what it serves.
    fn serving(&self) -> Vec<Serving<'_>> {
        let ranges = self.map.ranges();
        let nodes = self.topology.nodes.iter();
        nodes
            .map(|place| {
                let mut own: Vec<(Slot, Slot)> = Vec::new();
                for (first, last, shard) in &ranges {
                    if self.leader(*shard).map(|leader| leader.node) != Some(place.node) {
                        continue;
                    }
                    match own.last_mut() {
                        Some((_, end)) if end.get() + 1 == first.get() => *end = *last,
                        _ => own.push((*first, *last)),
                    }
                }
                Serving { place, ranges: own }
            })
            .collect()
    }

    fn leads_anything(&self, node: NodeId) -> bool {
        let mut shards = self.topology.shards.iter();
        shards.any(|shard| shard.leader == Some(node))
    }

    /// The nodes that follow a shard and lead nothing.
    fn replicas<'v>(&'v self, shard: &'v ShardPlace) -> impl Iterator<Item = &'v NodePlace> {
        let members = shard.voters.iter().chain(&shard.learners);
        members
            .filter(|node| !self.leads_anything(**node))
            .filter_map(|node| self.topology.node(*node))
            .filter(|place| place.is_reachable)
    }

    /// The node that one which leads nothing follows.
    fn followed(&self, node: NodeId) -> Option<NodeId> {
        let mut shards = self.topology.shards.iter();
        let shard = shards.find(|shard| {
            shard.leader.is_some()
                && (shard.voters.contains(&node) || shard.learners.contains(&node))
        })?;
        shard.leader
    }

    fn epoch(&self) -> u64 {
        let terms = self.topology.shards.iter().map(|shard| shard.term.get());
        terms.max().unwrap_or(0)
    }

    fn slots(&self, writer: &mut Writer<'_>) {
        let ranges: Vec<_> = self
            .map
            .ranges()
            .into_iter()
            .filter_map(|(first, last, shard)| {
                let place = self.topology.shard(shard)?;
                Some((first, last, place, self.leader(shard)?))
            })
            .collect();
        writer.array(ranges.len());
        for (first, last, shard, leader) in ranges {
            let replicas: Vec<&NodePlace> = self.replicas(shard).collect();
            writer.array(3 + replicas.len());
            writer.integer(i64::from(first.get()));
            writer.integer(i64::from(last.get()));
            for place in std::iter::once(leader).chain(replicas) {
                writer.array(4);
                writer.bulk(self.host(place).as_bytes());
                writer.integer(i64::from(place.resp));
                writer.bulk(self.id(place.node).as_bytes());
                writer.map(0);
            }
        }
    }

    fn shards(&self, writer: &mut Writer<'_>) {
        let serving = self.serving();
        let leading: Vec<&Serving<'_>> = serving
            .iter()
            .filter(|serving| !serving.ranges.is_empty())
            .collect();
        writer.array(leading.len());
        for Serving { place, ranges } in leading {
            writer.map(2);
            writer.bulk(b"slots");
            writer.array(2 * ranges.len());
            for (first, last) in ranges {
                writer.integer(i64::from(first.get()));
                writer.integer(i64::from(last.get()));
            }
            writer.bulk(b"nodes");
            let followers: Vec<&NodePlace> = self
                .topology
                .nodes
                .iter()
                .filter(|node| !self.leads_anything(node.node))
                .filter(|node| self.followed(node.node) == Some(place.node))
                .collect();
            writer.array(1 + followers.len());
            self.shard_node(place, "master", writer);
            for follower in followers {
                self.shard_node(follower, "replica", writer);
            }
        }
    }

    fn shard_node(&self, place: &NodePlace, role: &str, writer: &mut Writer<'_>) {
        let host = self.host(place);
        writer.map(7);
        writer.bulk(b"id");
        writer.bulk(self.id(place.node).as_bytes());
        writer.bulk(b"port");
        writer.integer(i64::from(place.resp));
        for name in ["ip", "endpoint"] {
            writer.bulk(name.as_bytes());
            writer.bulk(host.as_bytes());
        }
        writer.bulk(b"role");
        writer.bulk(role.as_bytes());
        writer.bulk(b"replication-offset");
        writer.integer(0);
        writer.bulk(b"health");
        writer.bulk(if place.is_reachable {
            b"online"
        } else {
            b"fail"
        });
    }

    fn nodes(&self) -> String {
        let mut text = String::new();
        for Serving { place, ranges } in self.serving() {
            let followed = if self.leads_anything(place.node) {
                None
            } else {
                self.followed(place.node)
            };
            let myself = if place.node == self.topology.own {
                "myself,"
            } else {
                ""
            };
            let role = if followed.is_some() {
                "slave"
            } else {
                "master"
            };
            let trouble = if place.is_reachable { "" } else { ",fail" };
            let link = if place.is_reachable {
                "connected"
            } else {
                "disconnected"
            };
            let master = followed.map_or_else(|| "-".to_owned(), |node| self.id(node));
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "{} {}:{}@{} {myself}{role}{trouble} {master} 0 0 {} {link}",
                self.id(place.node),
                self.host(place),
                place.resp,
                place.peer,
                self.epoch(),
            );
            for (first, last) in ranges {
                let _ = if first == last {
                    write!(text, " {first}")
                } else {
                    write!(text, " {first}-{last}")
                };
            }
            text.push('\n');
        }
        text
    }

    fn info(&self) -> String {
        let served: u32 = self
            .map
            .ranges()
            .into_iter()
            // A replica believes in a leader that is gone for as long as no other is elected.
            .filter(|(_, _, shard)| {
                self.leader(*shard)
                    .is_some_and(|leader| leader.is_reachable)
            })
            .map(|(first, last, _)| u32::from(last.get() - first.get()) + 1)
            .sum();
        let all = u32::from(SLOT_COUNT);
        let nodes = &self.topology.nodes;
        let size = nodes.iter().filter(|node| self.leads_anything(node.node));
        let state = if served == all { "ok" } else { "fail" };
        let epoch = self.epoch();
        let lines = [
            ("cluster_enabled", "1".to_owned()),
            ("cluster_state", state.to_owned()),
            ("cluster_slots_assigned", all.to_string()),
            ("cluster_slots_ok", served.to_string()),
            ("cluster_slots_pfail", "0".to_owned()),
            ("cluster_slots_fail", (all - served).to_string()),
            ("cluster_known_nodes", nodes.len().to_string()),
            ("cluster_size", size.count().to_string()),
            ("cluster_current_epoch", epoch.to_string()),
            ("cluster_my_epoch", epoch.to_string()),
            ("cluster_stats_messages_sent", "0".to_owned()),
            ("cluster_stats_messages_received", "0".to_owned()),
        ];
        let lines = lines.map(|(name, value)| format!("{name}:{value}\r\n"));
        lines.concat()
    }

    /// What our own clients ask: shards with their slots and leaders, then nodes with their ports.
    fn topology(&self, writer: &mut Writer<'_>) {
        let ranges = self.map.ranges();
        writer.map(3);
        writer.bulk(b"own");
        writer.bulk(self.id(self.topology.own).as_bytes());
        writer.bulk(b"shards");
        writer.array(self.topology.shards.len());
        for place in &self.topology.shards {
            writer.map(4);
            writer.bulk(b"shard");
            writer.integer(i64::from(place.shard.get()));
            writer.bulk(b"term");
            writer.integer(i64::try_from(place.term.get()).unwrap_or(i64::MAX));
            writer.bulk(b"leader");
            match place.leader {
                Some(leader) => writer.bulk(self.id(leader).as_bytes()),
                None => writer.nil(),
            }
            let own = ranges.iter().filter(|(_, _, shard)| *shard == place.shard);
            writer.bulk(b"slots");
            writer.array(2 * own.clone().count());
            for (first, last, _) in own {
                writer.integer(i64::from(first.get()));
                writer.integer(i64::from(last.get()));
            }
        }
        writer.bulk(b"nodes");
        writer.array(self.topology.nodes.len());
        for place in &self.topology.nodes {
            writer.map(5);
            writer.bulk(b"id");
            writer.bulk(self.id(place.node).as_bytes());
            writer.bulk(b"host");
            writer.bulk(self.host(place).as_bytes());
            writer.bulk(b"port");
            writer.integer(i64::from(place.resp));
            writer.bulk(b"grpc-port");
            writer.integer(i64::from(place.grpc));
            writer.bulk(b"reachable");
            writer.boolean(place.is_reachable);
        }
    }
}

/// The cluster as it looks when one node serves everything.
fn alone(topology: &Topology) -> Topology {
    let shards = topology.shards.iter().map(|shard| ShardPlace {
        leader: Some(topology.own),
        voters: vec![topology.own],
        learners: Vec::new(),
        ..shard.clone()
    });
    Topology {
        own: topology.own,
        shards: shards.collect(),
        nodes: topology.node(topology.own).cloned().into_iter().collect(),
    }
}

/// Where a command belongs, if that is another node.
#[derive(Debug)]
pub(super) struct Elsewhere {
    pub(super) slot: Slot,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Session {
    /// Whether this connection is one of a client that knows of slots and nodes.
    pub(super) fn speaks_cluster(&self) -> bool {
        match self.context.node.config.resp_cluster {
            RespCluster::Moved => true,
            RespCluster::Auto => self.state.knows_cluster,
            RespCluster::Proxy => false,
        }
    }

    /// The node that a command must be sent to instead, if this connection is told such things:
    /// that which leads the shard of its first key. Keys in further shards are no matter; the
    /// command is scattered from there.
    pub(super) fn elsewhere(&self, command: &Command) -> Option<Elsewhere> {
        if !self.speaks_cluster() {
            return None;
        }
        let mut first = None;
        command.for_each_key(&mut |key| {
            first.get_or_insert_with(|| key.clone());
        });
        let slot = slot_of_key(&first?);
        let node = &self.context.node;
        let shard = node.home.map().shard_of(slot);
        if self.state.is_readonly && !command.is_write() && node.home.shard(shard).is_some() {
            return None;
        }
        let topology = node.topology.current();
        let leader = topology.leader_of(shard)?;
        if leader.node == topology.own || leader.resp == 0 {
            return None;
        }
        Some(Elsewhere {
            slot,
            host: leader.host.clone(),
            port: leader.resp,
        })
    }

    /// Answers what asks about the cluster or the node. Who asks for slots knows what to do with
    /// them.
    pub(super) fn answer_about_node(
        &mut self,
        command: SessionCommand,
        arguments: &[Bytes],
    ) -> Result<(), Error> {
        use SessionCommand as C;
        let asks_for_slots = matches!(
            command,
            C::ClusterSlots | C::ClusterShards | C::ClusterNodes
        );
        self.state.knows_cluster |= asks_for_slots;
        let local = self.client.local.map(|address| address.ip());
        let mut writer = Writer::new(self.steps.ready(), self.state.version);
        if answer(&self.context.node, local, command, arguments, &mut writer) {
            return Ok(());
        }
        server::answer(&self.context.node, command, arguments, &mut writer)
    }

    /// CLUSTER COUNTKEYSINSLOT and GETKEYSINSLOT: goes through the keys of the slot's shard.
    pub(super) async fn keys_in_slot(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let invalid = |message: &'static str| Error::not_done(ErrorCode::Invalid, message);
        let slot = arguments.first().and_then(|slot| parse_u64(slot));
        let slot = slot.and_then(|slot| u16::try_from(slot).ok());
        let slot = slot
            .filter(|slot| *slot < SLOT_COUNT)
            .ok_or_else(|| invalid("Invalid slot"))?;
        let count = match arguments.get(1) {
            None => None,
            Some(count) => {
                let count = parse_u64(count).and_then(|count| usize::try_from(count).ok());
                Some(count.ok_or_else(|| invalid("Invalid number of keys"))?)
            }
        };
        let keys = self
            .search_slot(Slot::from_crc16(slot), count.unwrap_or(usize::MAX))
            .await?;
        let mut writer = self.writer();
        if count.is_none() {
            writer.integer(i64::try_from(keys.len()).unwrap_or(i64::MAX));
            return Ok(());
        }
        writer.array(keys.len());
        keys.iter().for_each(|key| writer.bulk(key));
        Ok(())
    }

    /// Keys of a slot, each once, at most so many.
    async fn search_slot(&self, slot: Slot, count_max: usize) -> Result<Vec<Bytes>, Error> {
        let home = self.context.executor.home();
        let shard = u64::from(home.map().shard_of(slot).get());
        let shards = u64::from(SHARDS_MAX);
        let mut found = std::collections::BTreeSet::new();
        // Cursors are dealt out to the shards in turn; 0 stands for the beginning of the first.
        let mut cursor = shard;
        loop {
            let page = ScanPage {
                cursor,
                pattern: None,
                count: SEARCH_STEP,
                type_matches: true,
            };
            let answer = self.execute(Command::Read(ReadCommand::Scan(page))).await;
            if let Reply::Error(error) = answer.reply {
                return Err(error);
            }
            let Reply::Page { cursor: next, keys } = answer.reply else {
                let message = "a scan was not answered with a page";
                return Err(Error::not_done(ErrorCode::Internal, message));
            };
            found.extend(keys.into_iter().filter(|key| slot_of_key(key) == slot));
            let is_over = next == 0 || next % shards != shard || next < shards;
            if is_over || count_max <= found.len() {
                return Ok(found.into_iter().take(count_max).collect());
            }
            cursor = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use flux_types::Term;
    use flux_wire::resp::Version;

    use super::*;

    fn place(node: u64, is_reachable: bool) -> NodePlace {
        NodePlace {
            node: NodeId::new(node),
            host: format!("10.0.0.{node}"),
            resp: 7000 + u16::try_from(node).expect("small"),
            peer: 7390,
            is_reachable,
            ..NodePlace::default()
        }
    }

    fn shard(number: u32, leader: Option<u64>) -> ShardPlace {
        ShardPlace {
            shard: ShardId::new(number),
            term: Term::new(u64::from(number) + 3),
            leader: leader.map(NodeId::new),
            voters: [1, 2, 3].map(NodeId::new).to_vec(),
            learners: Vec::new(),
        }
    }

    /// Three nodes: the first leads shards 0 and 1, the second 3, the third nothing; of shard 2 no
    /// leader is known.
    fn view(map: &SlotMap) -> View<'_> {
        View {
            map,
            topology: Arc::new(Topology {
                own: NodeId::new(2),
                shards: vec![
                    shard(0, Some(1)),
                    shard(1, Some(1)),
                    shard(2, None),
                    shard(3, Some(2)),
                ],
                nodes: vec![place(1, false), place(2, true), place(3, true)],
            }),
            cluster: ClusterId::new(0xabc),
            local: None,
        }
    }

    fn written(write: impl FnOnce(&mut Writer<'_>)) -> String {
        let mut out = BytesMut::new();
        write(&mut Writer::new(&mut out, Version::Resp2));
        let text = String::from_utf8(out.to_vec()).expect("text");
        text.replace("\r\n", " ")
    }

    fn id(node: u64) -> String {
        format!("0000000000000abc{node:024x}")
    }

    #[test]
    fn every_slot_with_a_leader_is_told_and_who_leads_nothing_is_its_replica() {
        let map = SlotMap::even(4).expect("four shards");
        let text = written(|writer| view(&map).slots(writer));
        let node = |node: u64| format!("*4 $8 10.0.0.{node} :{} $40 {} *0 ", 7000 + node, id(node));
        let range =
            |first, last, leader| format!("*4 :{first} :{last} {}{}", node(leader), node(3));
        let expected = [
            range(0, 4095, 1),
            range(4096, 8191, 1),
            range(12288, 16383, 2),
        ];
        assert_eq!(text, format!("*3 {}", expected.concat()));
    }

    #[test]
    fn a_line_for_each_node_says_what_it_serves_and_whom_it_follows() {
        let map = SlotMap::even(4).expect("four shards");
        let expected = format!(
            "{} 10.0.0.1:7001@7390 master,fail - 0 0 6 disconnected 0-8191\n\
             {} 10.0.0.2:7002@7390 myself,master - 0 0 6 connected 12288-16383\n\
             {} 10.0.0.3:7003@7390 slave {} 0 0 6 connected\n",
            id(1),
            id(2),
            id(3),
            id(1)
        );
        assert_eq!(view(&map).nodes(), expected);
    }

    #[test]
    fn a_shard_without_a_leader_that_is_there_fails_the_cluster() {
        let map = SlotMap::even(4).expect("four shards");
        let info = view(&map).info();
        for line in [
            "cluster_state:fail",
            "cluster_slots_ok:4096",
            "cluster_slots_fail:12288",
            "cluster_known_nodes:3",
            "cluster_size:2",
        ] {
            assert!(info.contains(&format!("{line}\r\n")), "{info}");
        }
    }

    #[test]
    fn shards_have_masters_with_their_slots_and_replicas_without() {
        let map = SlotMap::even(4).expect("four shards");
        let text = written(|writer| view(&map).shards(writer));
        assert!(
            text.starts_with("*2 *4 $5 slots *2 :0 :8191 $5 nodes *2 "),
            "{text}"
        );
        assert_eq!(text.matches("master").count(), 2);
        assert_eq!(text.matches("replica ").count(), 1, "{text}");
        assert!(text.contains("$4 fail"), "{text}");
    }

    #[test]
    fn a_proxy_looks_like_the_only_node() {
        let map = SlotMap::even(4).expect("four shards");
        let mut view = view(&map);
        view.topology = Arc::new(alone(&view.topology));
        let nodes = view.nodes();
        assert_eq!(nodes.lines().count(), 1);
        assert!(nodes.ends_with("connected 0-16383\n"), "{nodes}");
    }

    #[test]
    fn a_node_that_binds_every_address_is_where_it_was_reached() {
        let map = SlotMap::even(1).expect("one shard");
        let mut any = place(2, true);
        any.host = "0.0.0.0".to_owned();
        let mut view = view(&map);
        view.local = Some([192, 0, 2, 7].into());
        assert_eq!(view.host(&any), "192.0.2.7");
        any.node = NodeId::new(1);
        assert_eq!(view.host(&any), "0.0.0.0", "nothing is known of others");
    }
}
