//! What nodes tell each other of themselves and of the cluster, again and again.
//!
//! A node's *card* says where it is; the newest wins. Everything else is a hint, except the
//! decision by which a cluster was formed: that is made once and never changed.

use bytes::{BufMut, Bytes, BytesMut};
use flux_types::{ClusterId, NodeId, ShardId, Term, limits};

use super::field::{Malformed, Reader, put_count, put_text};

/// Most replicas that a decision gives a shard.
const VOTERS_MAX: usize = flux_raft::membership::VOTERS_MAX;
/// Most cards in one message: lives that are over are forgotten, but not at once.
const CARDS_MAX: usize = 4 * limits::CLUSTER_NODES_MAX;
/// Bytes of a card at least.
const CARD_BYTES: usize = 26;

/// Where a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
}

/// Who is said to lead a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) leader: NodeId,
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
        for hint in &self.leaders {
            out.put_u32_le(hint.shard.get());
            out.put_u64_le(hint.term.get());
            out.put_u64_le(hint.leader.get());
        }
        put_count(out, self.cards.len().min(CARDS_MAX));
        self.cards
            .iter()
            .take(CARDS_MAX)
            .for_each(|card| card.write(out));
        out.put_u64_le(self.time_ms);
        out.put_u8(u8::from(self.is_clock_far));
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
        let count = reader.count(limits::SHARDS_MAX as usize, 20, "leaders")?;
        let mut leaders = Vec::with_capacity(count);
        for _ in 0..count {
            leaders.push(Hint {
                shard: ShardId::new(reader.u32("shard")?),
                term: Term::new(reader.u64("term")?),
                leader: NodeId::new(reader.u64("leader")?),
            });
        }
        let count = reader.count(CARDS_MAX, CARD_BYTES, "cards")?;
        let cards = (0..count)
            .map(|_| Card::read(&mut reader))
            .collect::<Result<_, _>>()?;
        let time_ms = reader.u64("time")?;
        let is_clock_far = match reader.u8("clock")? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("clock")),
        };
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
            leaders: vec![Hint {
                shard: ShardId::new(1),
                term: Term::new(2),
                leader: NodeId::new(3),
            }],
            cards: vec![card(2), card(3)],
            time_ms: 1_700_000_000_000,
            is_clock_far: true,
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
