//! Which node of which cluster a data folder is: the file `MEMBER` (`docs/file-format.md`).
//!
//! ```text
//! flux-kv member
//! format 1
//! node 0000000200abcdef
//! stage joined
//! fsync always
//! cluster 0123456789abcdef
//! voters 0000000100abcdef 0000000200abcdef 0000000300abcdef
//! check 1a2b3c4d
//! ```
//!
//! One `voters` line for each shard. A node tells nobody its id before that is on its disk, and
//! acts on no decision before that is: otherwise a wiped folder could speak for one that promised
//! something.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flux_cluster::ring::Weight;
use flux_env::{Disk, OpenMode};
use flux_log::{Identity, MEMBER_NAME};
use flux_types::{ClusterId, NodeId, limits};

use super::news::{Card, Decision};

/// The file that says where the others were last.
pub(crate) const PEERS_NAME: &str = "PEERS";
/// The file with the newest cluster map that the node knows.
pub(crate) const MAP_NAME: &str = "MAP";
const TITLE: &str = "flux-kv member";
const PEERS_TITLE: &str = "flux-kv peers";
const RELAXED: &str = "relaxed";
const ALWAYS: &str = "always";
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its id is drawn.
    Drawn,
    /// The folder holds, or is about to hold, the log of this life.
    Joined,
    /// Its power may have failed before all of its data was on disk; it is asking the others.
    Suspect,
}

impl Stage {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Drawn => "drawn",
            Self::Joined => "joined",
            Self::Suspect => "suspect",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Drawn, Self::Joined, Self::Suspect]
            .into_iter()
            .find(|stage| stage.as_str() == text)
    }
}

/// Draws which life of a node begins.
///
/// # Errors
/// The system's, if it has no random bits.
pub(crate) fn draw_incarnation() -> io::Result<u32> {
    loop {
        let drawn = u32::try_from(flux_env::entropy_u64()? >> 32).unwrap_or(0);
        if drawn != 0 {
            return Ok(drawn);
        }
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) stage: Stage,
    /// Whether what it acknowledged last may not be on its disk.
    pub(crate) is_relaxed: bool,
    pub(crate) decision: Option<Decision>,
}

impl Member {
    /// A node that begins a life.
    pub(crate) fn draw(physical: u32, decision: Option<Decision>) -> io::Result<Self> {
        Ok(Self {
            node: NodeId::of_incarnation(physical, draw_incarnation()?),
            stage: Stage::Drawn,
            is_relaxed: false,
            decision,
        })
    }

    /// A node that was alone, and goes on as the first of a cluster with everything that it has.
    pub(crate) fn adopted(identity: Identity) -> Self {
        Self {
            node: identity.node,
            stage: Stage::Joined,
            is_relaxed: false,
            decision: Some(Decision {
                cluster: identity.cluster,
                voters: vec![vec![identity.node]; identity.shard_count as usize],
            }),
        }
    }

    fn render(&self) -> String {
        let mut body = format!(
            "{TITLE}\nformat 1\nnode {:016x}\nstage {}\nfsync {}\n",
            self.node.get(),
            self.stage.as_str(),
            if self.is_relaxed { RELAXED } else { ALWAYS }
        );
        if let Some(decision) = &self.decision {
            body.push_str(&format!("cluster {:016x}\n", decision.cluster.get()));
            for voters in &decision.voters {
                let words: Vec<_> = voters
                    .iter()
                    .map(|voter| format!("{:016x}", voter.get()))
                    .collect();
                body.push_str(&format!("voters {}\n", words.join(" ")));
            }
        }
        seal(&body)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = unseal(text, TITLE)?;
        let node = NodeId::new(hex(lines.next()?.strip_prefix("node ")?)?);
        let stage = Stage::parse(lines.next()?.strip_prefix("stage ")?)?;
        let is_relaxed = match lines.next()?.strip_prefix("fsync ")? {
            RELAXED => true,
            ALWAYS => false,
            _ => return None,
        };
        let decision = match lines.next() {
            None => None,
            Some(line) => {
                let cluster = ClusterId::new(hex(line.strip_prefix("cluster ")?)?);
                let mut shards = Vec::new();
                for line in lines {
                    let words = line.strip_prefix("voters ")?.split_whitespace();
                    let voters: Option<Vec<_>> =
                        words.map(|word| hex(word).map(NodeId::new)).collect();
                    shards.push(voters?);
                }
                let count = 1..=limits::SHARDS_MAX as usize;
                if !count.contains(&shards.len()) {
                    return None;
                }
                Some(Decision {
                    cluster,
                    voters: shards,
                })
            }
        };
        Some(Self {
            node,
            stage,
            is_relaxed,
            decision,
        })
    }

    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not what this node writes.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Self>> {
        let Some(text) = read_text(disk, &dir.join(MEMBER_NAME))? else {
            return Ok(None);
        };
        let member = Self::parse(&text);
        member.map(Some).ok_or_else(|| damaged(MEMBER_NAME))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        write_text(disk, dir, MEMBER_NAME, &self.render())
    }
}

/// Where others were last; what cannot be read is worth nothing and is forgotten.
pub(crate) fn read_cards(disk: &dyn Disk, dir: &Path) -> Vec<Card> {
    let text = read_text(disk, &dir.join(PEERS_NAME)).ok().flatten();
    text.as_deref().and_then(parse_cards).unwrap_or_default()
}

/// The cluster map that was known last; what cannot be read is forgotten.
pub(crate) fn read_map(disk: &dyn Disk, dir: &Path) -> Option<Bytes> {
    let text = read_text(disk, &dir.join(MAP_NAME)).ok().flatten();
    text.map(Bytes::from)
}

/// Notes a cluster map.
///
/// # Errors
/// The disk's.
pub(crate) fn write_map(disk: &dyn Disk, dir: &Path, map: &str) -> io::Result<()> {
    write_text(disk, dir, MAP_NAME, map)
}

/// Notes where others are.
///
/// # Errors
/// The disk's.
pub(crate) fn write_cards(disk: &dyn Disk, dir: &Path, cards: &[Card]) -> io::Result<()> {
    let mut body = format!("{PEERS_TITLE}\nformat 1\n");
    for card in cards {
        body.push_str(&format!(
            "{:016x} {} {} {} {} {} {} {} {}\n",
            card.node.get(),
            card.stamp,
            card.peer,
            card.resp,
            card.grpc,
            card.admin,
            card.weight.get(),
            if card.zone.is_empty() {
                "-"
            } else {
                &card.zone
            },
            card.host
        ));
    }
    write_text(disk, dir, PEERS_NAME, &seal(&body))
}

fn parse_cards(text: &str) -> Option<Vec<Card>> {
    let lines = unseal(text, PEERS_TITLE)?;
    lines
        .map(|line| {
            let mut words = line.split(' ');
            Some(Card {
                node: NodeId::new(hex(words.next()?)?),
                stamp: words.next()?.parse().ok()?,
                peer: words.next()?.parse().ok()?,
                resp: words.next()?.parse().ok()?,
                grpc: words.next()?.parse().ok()?,
                admin: words.next()?.parse().ok()?,
                weight: Weight::new(words.next()?.parse().ok()?).ok()?,
                zone: match words.next()? {
                    "-" => String::new(),
                    zone => zone.to_owned(),
                },
                host: words.next()?.to_owned(),
            })
        })
        .collect()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn seal(body: &str) -> String {
    format!("{body}check {:08x}\n", crc32c::crc32c(body.as_bytes()))
}

/// The lines after title and format, if the check holds.
fn unseal<'a>(text: &'a str, title: &str) -> Option<std::str::Lines<'a>> {
    let (body, check) = text.rsplit_once("check ")?;
    let check = u32::from_str_radix(check.trim_end(), 16).ok()?;
    if crc32c::crc32c(body.as_bytes()) != check {
        return None;
    }
    let mut lines = body.lines();
    (lines.next() == Some(title) && lines.next() == Some("format 1")).then_some(lines)
}

fn damaged(name: &str) -> io::Error {
    let problem = format!("the file {name} is damaged or of another version");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

fn read_text(disk: &dyn Disk, path: &Path) -> io::Result<Option<String>> {
    if !disk.exists(path) {
        return Ok(None);
    }
    let file = disk.open(path, OpenMode::Read)?;
    let size = file.size_bytes()?.min(FILE_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        damaged(&name)
    })
}

fn write_text(disk: &dyn Disk, dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary: PathBuf = dir.join(format!("{name}.tmp"));
    if disk.exists(&temporary) {
        disk.remove(&temporary)?;
    }
    let file = disk.open(&temporary, OpenMode::CreateNew)?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_all()?;
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use flux_env::SimDisk;

    use super::*;

    fn member() -> Member {
        Member {
            node: NodeId::of_incarnation(2, 0xabc),
            stage: Stage::Joined,
            is_relaxed: true,
            decision: Some(Decision {
                cluster: ClusterId::new(7),
                voters: vec![
                    vec![
                        NodeId::of_incarnation(1, 1),
                        NodeId::of_incarnation(2, 0xabc),
                    ],
                    vec![NodeId::of_incarnation(3, 9)],
                ],
            }),
        }
    }

    #[test]
    fn a_member_survives_its_file_and_a_changed_byte_is_noticed() {
        for member in [
            member(),
            Member {
                decision: None,
                stage: Stage::Drawn,
                ..member()
            },
        ] {
            let text = member.render();
            assert_eq!(Member::parse(&text), Some(member));
            for at in 0..text.rfind("check").expect("sealed") {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                let changed = String::from_utf8(bytes).expect("ASCII");
                assert_eq!(Member::parse(&changed), None, "byte {at}");
            }
        }
    }

    #[test]
    fn what_was_written_is_read_after_a_power_cut() {
        let disk = SimDisk::new();
        let process = disk.as_process();
        let dir = Path::new("/data");
        process.create_dir_all(dir).expect("a folder");
        process.sync_dir(Path::new("/")).expect("synced");
        assert_eq!(Member::read(&process, dir).expect("readable"), None);
        member().write(&process, dir).expect("written");
        let cards = vec![Card {
            node: NodeId::new(5),
            stamp: 1,
            host: "kv1".to_owned(),
            peer: 2,
            zone: "a".to_owned(),
            ..Card::default()
        }];
        write_cards(&process, dir, &cards).expect("written");
        let mut rng = flux_env::SeededRng::new(1);
        disk.crash(flux_env::CrashLoss::Everything, &mut rng);
        let process = disk.as_process();
        assert_eq!(
            Member::read(&process, dir).expect("readable"),
            Some(member())
        );
        assert_eq!(read_cards(&process, dir), cards);
        assert_eq!(read_map(&process, dir), None);
        write_map(&process, dir, "{}").expect("written");
        disk.crash(flux_env::CrashLoss::Everything, &mut rng);
        let map = read_map(&disk.as_process(), dir);
        assert_eq!(map, Some(Bytes::from_static(b"{}")));
    }

    #[test]
    fn no_two_lives_have_one_id() {
        let first = Member::draw(3, None).expect("random bits");
        let second = Member::draw(3, None).expect("random bits");
        assert_eq!(first.node.physical(), 3);
        assert_ne!(first.node.incarnation(), 0);
        assert_ne!(first.node, second.node);
    }
}
