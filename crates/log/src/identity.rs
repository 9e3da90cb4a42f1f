//! Whose directory it is: a small text file, written at the first open and again whenever there are
//! more shards.
//!
//! ```text
//! flux-kv data directory
//! format 1
//! cluster 0123456789abcdef
//! node 0123456789abcdef
//! shards 1
//! check 1a2b3c4d
//! ```

use std::io;
use std::path::Path;

use flux_env::{Disk, OpenMode};
use flux_types::{ClusterId, NodeId};

use crate::error::OpenError;
use crate::fields::{narrow, widen};

/// Name of the identity file in a data directory.
pub const IDENTITY_NAME: &str = "IDENTITY";
/// Name of the file whose lock says that a process has the directory.
pub const LOCK_NAME: &str = "LOCK";
/// Name of the file in which a node of a cluster notes its id, before anything else is there.
pub const MEMBER_NAME: &str = "MEMBER";
/// A folder that some file systems have in their root: in a data directory that is a disk of its
/// own it is nobody's.
pub const LOST_AND_FOUND_NAME: &str = "lost+found";
/// Version of the file that this program reads and writes.
const IDENTITY_VERSION: u32 = 1;
const TITLE: &str = "flux-kv data directory";
const IDENTITY_BYTES_MAX: u64 = 4096;

/// What a data directory says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that its node belongs to.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Number of shards.
    pub shard_count: u32,
}

impl Identity {
    fn render(&self) -> String {
        let body = format!(
            "{TITLE}\nformat {IDENTITY_VERSION}\ncluster {:016x}\nnode {:016x}\nshards {}\n",
            self.cluster.get(),
            self.node.get(),
            self.shard_count
        );
        let check = crc32c::crc32c(body.as_bytes());
        format!("{body}check {check:08x}\n")
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        let (body, check) = text.rsplit_once("check ").ok_or(ParseError::Damaged)?;
        let check = u32::from_str_radix(check.trim_end(), 16).map_err(|_| ParseError::Damaged)?;
        if crc32c::crc32c(body.as_bytes()) != check || !body.starts_with(TITLE) {
            return Err(ParseError::Damaged);
        }
        let field = |name: &str| {
            let line = body.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).ok_or(ParseError::Damaged)
        };
        let hex = |name| u64::from_str_radix(field(name)?, 16).map_err(|_| ParseError::Damaged);
        let number = |name| field(name)?.parse::<u32>().map_err(|_| ParseError::Damaged);
        let version = number("format ")?;
        if version != IDENTITY_VERSION {
            return Err(ParseError::Version(version));
        }
        Ok(Self {
            cluster: ClusterId::new(hex("cluster ")?),
            node: NodeId::new(hex("node ")?),
            shard_count: number("shards ")?,
        })
    }

    /// Writes the identity of a new directory, durably, under its final name in one step.
    pub(crate) fn create(&self, disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
        let temporary = dir.join("IDENTITY.tmp");
        let path = dir.join(IDENTITY_NAME);
        let write = || -> io::Result<()> {
            if disk.exists(&temporary) {
                disk.remove(&temporary)?;
            }
            let file = disk.open(&temporary, OpenMode::CreateNew)?;
            file.write_all_at(self.render().as_bytes(), 0)?;
            file.sync_all()?;
            disk.rename(&temporary, &path)?;
            disk.sync_dir(dir)
        };
        write().map_err(|source| OpenError::io("write", path.clone(), source))
    }

    /// Reads the identity of a directory; `None` if it has none.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or is of an unknown version.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = dir.join(IDENTITY_NAME);
        if !disk.exists(&path) {
            return Ok(None);
        }
        let read = || -> io::Result<Vec<u8>> {
            let file = disk.open(&path, OpenMode::Read)?;
            let size = file.size_bytes()?.min(IDENTITY_BYTES_MAX);
            let mut bytes = vec![0; narrow(size)];
            let count = file.read_at(&mut bytes, 0)?;
            bytes.truncate(count);
            Ok(bytes)
        };
        let bytes = read().map_err(|source| OpenError::io("read", path.clone(), source))?;
        let parsed = std::str::from_utf8(&bytes)
            .map_err(|_| ParseError::Damaged)
            .and_then(Self::parse);
        match parsed {
            Ok(identity) => Ok(Some(identity)),
            Err(ParseError::Version(found)) => Err(OpenError::Version {
                path,
                found,
                known: IDENTITY_VERSION,
            }),
            Err(ParseError::Damaged) => Err(OpenError::Damaged {
                dir: dir.to_path_buf(),
                segment: IDENTITY_NAME.to_owned(),
                offset: widen(0),
                shards: Vec::new(),
                what: "the identity file does not match its check".to_owned(),
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParseError {
    Damaged,
    Version(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        cluster: ClusterId::new(0xabc),
        node: NodeId::new(7),
        shard_count: 4,
    };

    #[test]
    fn text_survives_a_round_trip_and_no_changed_byte() {
        let text = IDENTITY.render();
        assert_eq!(Identity::parse(&text), Ok(IDENTITY));
        let body_bytes = text.rfind("check ").unwrap();
        for at in 0..body_bytes {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8(bytes).unwrap();
            assert!(Identity::parse(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn newer_format_is_named() {
        let body = IDENTITY.render().replace("format 1", "format 9");
        let body = body.rsplit_once("check ").unwrap().0.to_owned();
        let check = crc32c::crc32c(body.as_bytes());
        assert_eq!(
            Identity::parse(&format!("{body}check {check:08x}\n")),
            Err(ParseError::Version(9))
        );
    }
}
