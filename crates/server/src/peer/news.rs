//! What nodes tell each other of themselves and of the cluster, again and again.
//!
//! A node's *card* says where it is; the newest wins. Everything else is a hint, except the
//! decision by which a cluster was formed: that is made once and never changed.

use bytes::{BufMut, Bytes, BytesMut};
use flux_cluster::ring::Weight;
use flux_log::LogId;
use flux_types::{ClusterId, LogIndex, NodeId, ShardId, Term, limits};

use super::field::{Malformed, Reader, put_bytes, put_count, put_text};

/// Most replicas that a decision gives a shard.
const VOTERS_MAX: usize = flux_raft::membership::VOTERS_MAX;
/// Most voters that a hint names: while a change is under way, those before and after it.
const HINT_VOTERS_MAX: usize = 2 * VOTERS_MAX;
/// Most cards in one message: lives that are over are forgotten, but not at once.
const CARDS_MAX: usize = 4 * limits::CLUSTER_NODES_MAX;
/// Bytes of a card at least.
const CARD_BYTES: usize = 30;

/// Bytes of a hint at least.
const HINT_BYTES: usize = 21;

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) node: NodeId,
    /// When it was written, in milliseconds of the wall clock of its node: the newest wins.
    pub(crate) stamp: u64,
    /// The host under which others reach it.
    pub(crate) host: String,
    pub(crate) peer: u16,
    pub(crate) resp: u16,
    pub(crate) grpc: u16,
    pub(crate) admin: u16,
    /// How much it can carry beside others.
    pub(crate) weight: Weight,
    /// What it shares its fate with; empty: nothing that is known.
    pub(crate) zone: String,
}

impl Default for Card {
    fn default() -> Self {
        Self {
            node: NodeId::default(),
            stamp: 0,
            host: String::new(),
            peer: 0,
            resp: 0,
            grpc: 0,
            admin: 0,
            weight: Weight::STANDARD,
            zone: String::new(),
        }
    }
}

impl Card {
    /// Where other nodes reach it.
    pub(crate) fn peer_address(&self) -> String {
        flux_cluster::registry::address_of(&self.host, self.peer)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u64_le(self.node.get());
        out.put_u64_le(self.stamp);
        for port in [self.peer, self.resp, self.grpc, self.admin] {
            out.put_u16_le(port);
        }
        put_text(out, &self.host);
        out.put_u16_le(self.weight.get());
        put_text(out, &self.zone);
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self {
            node: NodeId::new(reader.u64("node")?),
            stamp: reader.u64("stamp")?,
            peer: reader.u16("peer port")?,
            resp: reader.u16("port")?,
            grpc: reader.u16("gRPC port")?,
            admin: reader.u16("admin port")?,
            host: reader.text(limits::ADDRESS_BYTES_MAX, "host")?,
            weight: Weight::new(u32::from(reader.u16("weight")?))
                .map_err(|_| Malformed("weight"))?,
            zone: reader.text(limits::ZONE_BYTES_MAX, "zone")?,
        })
    }
}

/// How a cluster began: made by one node, durable there before anybody hears of it, and the same
/// everywhere ever after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) cluster: ClusterId,
    /// The first voters of every shard.
    pub(crate) voters: Vec<Vec<NodeId>>,
}

impl Decision {
    /// How many shards there are.
    pub(crate) fn shard_count(&self) -> u32 {
        u32::try_from(self.voters.len()).unwrap_or(u32::MAX)
    }
}

/// What state a node is in, for those who form a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its folder was empty: it belongs to no cluster.
    #[default]
    Fresh,
    /// It belongs to one, and has not opened its log yet: whether that is whole is not known.
    Starting,
    /// It belongs to one and has its data.
    Member,
    /// It belongs to one, and its power may have failed before all of its data was on disk
    /// (rule 12).
    Suspect,
}

/// Everything a node tells at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) card: Card,
    pub(crate) standing: Standing,
    /// The nodes with which it was told to form a cluster, as it was told.
    pub(crate) list: Vec<String>,
    /// How many replicas it was told that a shard has.
    pub(crate) replicas: u16,
    /// How many shards it would give a new cluster.
    pub(crate) shards: u16,
    pub(crate) decision: Option<Decision>,
    /// Who leads each shard in which term, as far as it knows.
    pub(crate) leaders: Vec<Hint>,
    /// Where others are.
    pub(crate) cards: Vec<Card>,
    /// What time it is there, in milliseconds since the Unix epoch; filled in when it is told.
    pub(crate) time_ms: u64,
    /// Whether it finds its own clock too far from the others' to lead.
    pub(crate) is_clock_far: bool,
    /// Whether it is about to go, and wants to lead nothing any more.
    pub(crate) is_leaving: bool,
    /// The version of the newest cluster map that it knows; 0: none.
    pub(crate) map_version: u64,
    /// That map, in answers to those who know only an older one.
    pub(crate) map: Option<Bytes>,
}

/// Who is said to lead a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) leader: NodeId,
    /// Who belongs to it, as its leader says; none if that is not known.
    pub(crate) carriers: Option<Carriers>,
}

/// Who carries a shard, as its leader says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carriers {
    /// The committed entry that says so; none if it is not known to be committed.
    pub(crate) committed_at: Option<LogId>,
    pub(crate) voters: Vec<NodeId>,
    /// Who follows without a vote, and how much of what there is each has, in thousandths.
    pub(crate) learners: Vec<(NodeId, u16)>,
}

impl Carriers {
    /// Whether a node is one of them.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.iter().any(|(learner, _)| *learner == node)
    }

    fn write(&self, out: &mut BytesMut) {
        let at = self
            .committed_at
            .map_or((0, 0), |id| (id.term.get(), id.index.get()));
        out.put_u64_le(at.0);
        out.put_u64_le(at.1);
        put_count(out, self.voters.len());
        self.voters
            .iter()
            .for_each(|voter| out.put_u64_le(voter.get()));
        put_count(out, self.learners.len());
        for (learner, permille) in &self.learners {
            out.put_u64_le(learner.get());
            out.put_u16_le(*permille);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let (term, index) = (reader.u64("term")?, reader.u64("index")?);
        // No entry has index 0.
        let committed_at = (index != 0).then_some(LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        });
        let count = reader.count(HINT_VOTERS_MAX, 8, "voters")?;
        let voters = (0..count).map(|_| reader.u64("voter").map(NodeId::new));
        let voters = voters.collect::<Result<_, _>>()?;
        let count = reader.count(limits::CLUSTER_NODES_MAX, 10, "learners")?;
        let learners = (0..count).map(|_| {
            let learner = NodeId::new(reader.u64("learner")?);
            Ok((learner, reader.u16("progress")?))
        });
        Ok(Self {
            committed_at,
            voters,
            learners: learners.collect::<Result<_, _>>()?,
        })
    }
}

impl Hint {
    fn write(&self, out: &mut BytesMut) {
        out.put_u32_le(self.shard.get());
        out.put_u64_le(self.term.get());
        out.put_u64_le(self.leader.get());
        out.put_u8(u8::from(self.carriers.is_some()));
        if let Some(carriers) = &self.carriers {
            carriers.write(out);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self {
            shard: ShardId::new(reader.u32("shard")?),
            term: Term::new(reader.u64("term")?),
            leader: NodeId::new(reader.u64("leader")?),
            carriers: read_flag(reader, "carriers")?
                .then(|| Carriers::read(reader))
                .transpose()?,
        })
    }
}

fn read_flag(reader: &mut Reader, field: &'static str) -> Result<bool, Malformed> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(field)),
    }
}

impl News {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        self.card.write(out);
        out.put_u8(match self.standing {
            Standing::Fresh => 0,
            Standing::Member => 1,
            Standing::Suspect => 2,
            Standing::Starting => 3,
        });
        put_count(out, self.list.len());
        self.list.iter().for_each(|address| put_text(out, address));
        out.put_u16_le(self.replicas);
        out.put_u16_le(self.shards);
        out.put_u64_le(self.decision.as_ref().map_or(0, |made| made.cluster.get()));
        if let Some(decision) = &self.decision {
            put_count(out, decision.voters.len());
            for voters in &decision.voters {
                put_count(out, voters.len());
                voters.iter().for_each(|voter| out.put_u64_le(voter.get()));
            }
        }
        put_count(out, self.leaders.len());
        self.leaders.iter().for_each(|hint| hint.write(out));
        put_count(out, self.cards.len().min(CARDS_MAX));
        self.cards
            .iter()
            .take(CARDS_MAX)
            .for_each(|card| card.write(out));
        out.put_u64_le(self.time_ms);
        out.put_u8(u8::from(self.is_clock_far));
        out.put_u8(u8::from(self.is_leaving));
        out.put_u64_le(self.map_version);
        out.put_u8(u8::from(self.map.is_some()));
        if let Some(map) = &self.map {
            put_bytes(out, map);
        }
    }

    pub(crate) fn read(payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let card = Card::read(&mut reader)?;
        let standing = match reader.u8("standing")? {
            0 => Standing::Fresh,
            1 => Standing::Member,
            2 => Standing::Suspect,
            3 => Standing::Starting,
            _ => return Err(Malformed("standing")),
        };
        let count = reader.count(limits::CLUSTER_NODES_MAX, 2, "list")?;
        let list = (0..count)
            .map(|_| reader.text(limits::ADDRESS_BYTES_MAX + 8, "address"))
            .collect::<Result<_, _>>()?;
        let (replicas, shards) = (reader.u16("replicas")?, reader.u16("shards")?);
        let decision = match reader.u64("cluster")? {
            0 => None,
            cluster => Some(read_decision(ClusterId::new(cluster), &mut reader)?),
        };
        let count = reader.count(limits::SHARDS_MAX as usize, HINT_BYTES, "leaders")?;
        let leaders = (0..count)
            .map(|_| Hint::read(&mut reader))
            .collect::<Result<_, _>>()?;
        let count = reader.count(CARDS_MAX, CARD_BYTES, "cards")?;
        let cards = (0..count)
            .map(|_| Card::read(&mut reader))
            .collect::<Result<_, _>>()?;
        let time_ms = reader.u64("time")?;
        let is_clock_far = read_flag(&mut reader, "clock")?;
        let is_leaving = read_flag(&mut reader, "leaving")?;
        let map_version = reader.u64("map version")?;
        let map = read_flag(&mut reader, "map")?
            .then(|| reader.short(limits::SYSTEM_VALUE_BYTES_MAX, "map"))
            .transpose()?;
        reader.end()?;
        Ok(Self {
            card,
            standing,
            list,
            replicas,
            shards,
            decision,
            leaders,
            cards,
            time_ms,
            is_clock_far,
            is_leaving,
            map_version,
            map,
        })
    }
}

fn read_decision(cluster: ClusterId, reader: &mut Reader) -> Result<Decision, Malformed> {
    let count = reader.count(limits::SHARDS_MAX as usize, 2, "shards")?;
    if count == 0 {
        return Err(Malformed("shards"));
    }
    let mut shards = Vec::with_capacity(count);
    for _ in 0..count {
        let count = reader.count(VOTERS_MAX, 8, "voters")?;
        let mut voters = Vec::with_capacity(count);
        for _ in 0..count {
            voters.push(NodeId::new(reader.u64("voter")?));
        }
        shards.push(voters);
    }
    Ok(Decision {
        cluster,
        voters: shards,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(number: u64) -> Card {
        Card {
            node: NodeId::new(number),
            stamp: 7,
            host: "kv1".to_owned(),
            peer: 1,
            resp: 2,
            grpc: 3,
            admin: 4,
            weight: Weight::STANDARD,
            zone: "a".to_owned(),
        }
    }

    pub(super) fn news() -> News {
        News {
            card: card(1),
            standing: Standing::Member,
            list: vec!["a:1".to_owned(), "b:2".to_owned()],
            replicas: 3,
            shards: 4,
            decision: Some(Decision {
                cluster: ClusterId::new(9),
                voters: vec![vec![NodeId::new(1), NodeId::new(2)], vec![]],
            }),
            leaders: vec![
                Hint {
                    shard: ShardId::new(1),
                    term: Term::new(2),
                    leader: NodeId::new(3),
                    carriers: None,
                },
                Hint {
                    shard: ShardId::new(2),
                    term: Term::new(2),
                    leader: NodeId::new(3),
                    carriers: Some(Carriers {
                        committed_at: Some(LogId {
                            term: Term::new(2),
                            index: LogIndex::new(9),
                        }),
                        voters: vec![NodeId::new(3), NodeId::new(4)],
                        learners: vec![(NodeId::new(5), 250)],
                    }),
                },
            ],
            cards: vec![card(2), card(3)],
            time_ms: 1_700_000_000_000,
            is_clock_far: true,
            is_leaving: true,
            map_version: 7,
            map: Some(Bytes::from_static(b"{}")),
        }
    }

    #[test]
    fn news_survive_the_wire_and_no_part_of_them_passes() {
        for news in [news(), News::default()] {
            let mut out = BytesMut::new();
            news.write(&mut out);
            let whole = out.freeze();
            assert_eq!(News::read(whole.clone()), Ok(news));
            for cut in 0..whole.len() {
                assert!(News::read(whole.slice(..cut)).is_err(), "cut at {cut}");
            }
            assert!(News::read([&whole[..], &[0]].concat().into()).is_err());
        }
    }

    #[test]
    fn no_changed_byte_makes_it_panic() {
        let mut out = BytesMut::new();
        news().write(&mut out);
        for at in 0..out.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = out.clone();
                changed[at] = value;
                drop(News::read(changed.freeze()));
            }
        }
    }
}
