//! The checkpoint: what a consumer has processed, as one small file.
//!
//! Two lines: `flux-cdc-checkpoint 1 <crc32c of the second line, in hex>`, and a JSON object. It is
//! written beside its place, synced and renamed, so that there is always a whole one; the format is
//! described in `docs/cdc.md`. A file that is damaged or of another version is refused: to start
//! without it would process everything a second time in silence.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_env::{Disk, LockGuard, OpenMode};
use serde::{Deserialize, Serialize};

use super::Marks;

const MAGIC: &str = "flux-cdc-checkpoint";
const VERSION: u32 = 1;
/// Far beyond what the limits of [`Marks`] allow for a few sources, and still no danger to memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is remembered between two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Progress {
    /// The processed events.
    pub marks: Marks,
    /// Events handed to the sink, over all runs.
    pub events: u64,
    /// Bytes of the sink's file that this accounts for; what follows was written after it.
    pub sink_bytes: Option<u64>,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be reached.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is not a whole checkpoint of this version.
    #[error("{path} is not a checkpoint of this version: {problem}; remove it to start over")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        problem: &'static str,
    },
    /// Another process uses it.
    #[error("{path} is in use by another consumer")]
    InUse {
        /// Which file.
        path: PathBuf,
    },
}

/// The file; no other process can use it meanwhile.
#[derive(Debug)]
pub struct Checkpoint {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Box<dyn LockGuard>,
}

impl Checkpoint {
    /// Takes the file, whether or not it exists, and reads it.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is in use.
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<(Self, Progress), CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: path.to_path_buf(),
            source,
        };
        let lock = disk.lock(&beside(path, ".lock")).map_err(io)?;
        let Some(lock) = lock else {
            return Err(CheckpointError::InUse {
                path: path.to_path_buf(),
            });
        };
        let progress = match disk.open(path, OpenMode::Read) {
            Ok(file) => {
                let text = read(&*file).map_err(io)?;
                decode(&text).map_err(|problem| CheckpointError::Damaged {
                    path: path.to_path_buf(),
                    problem,
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Progress::default(),
            Err(error) => return Err(io(error)),
        };
        let checkpoint = Self {
            disk,
            path: path.to_path_buf(),
            _lock: lock,
        };
        Ok((checkpoint, progress))
    }

    /// Replaces what the file holds; durable when this returns.
    ///
    /// # Errors
    /// When any step fails; the file then holds what it held before.
    pub fn write(&self, progress: &Progress) -> io::Result<()> {
        let text = encode(progress)?;
        let temporary = beside(&self.path, ".new");
        if self.disk.exists(&temporary) {
            self.disk.remove(&temporary)?;
        }
        let file = self.disk.open(&temporary, OpenMode::CreateNew)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_all()?;
        self.disk.rename(&temporary, &self.path)?;
        self.disk.sync_dir(folder(&self.path))
    }
}

/// The folder of a file, in a form that can be opened.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read(file: &dyn flux_env::File) -> io::Result<Vec<u8>> {
    let size = file.size_bytes()?;
    if size > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is too large",
        ));
    }
    let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
    let count = file.read_at(&mut text, 0)?;
    text.truncate(count);
    Ok(text)
}

fn encode(progress: &Progress) -> io::Result<String> {
    let body = serde_json::to_string(progress)?;
    let crc = crc32c::crc32c(body.as_bytes());
    Ok(format!("{MAGIC} {VERSION} {crc:08x}\n{body}\n"))
}

fn decode(text: &[u8]) -> Result<Progress, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let (head, body) = text.split_once('\n').ok_or("its first line is missing")?;
    let body = body.strip_suffix('\n').ok_or("its end is missing")?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("its first line is another one");
    }
    if words.next() != Some(&VERSION.to_string()) {
        return Err("its version is another one");
    }
    let crc = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
    if words.next() != Some(&crc) || words.next().is_some() {
        return Err("its checksum does not fit");
    }
    serde_json::from_str(body).map_err(|_| "its content cannot be read")
}

#[cfg(test)]
mod tests {
    use flux_env::{CrashLoss, RealDisk, SeededRng, SimDisk};

    use super::super::EventId;
    use super::*;

    fn progress(events: u64) -> Progress {
        let mut marks = Marks::default();
        for revision in 1..=events {
            let source = "/flux/a/shards/0#0".to_owned();
            marks.insert(&EventId {
                source,
                term: 1,
                revision,
            });
        }
        Progress {
            marks,
            events,
            sink_bytes: Some(events * 10),
        }
    }

    #[test]
    fn what_was_written_is_read_back_by_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (checkpoint, empty) = Checkpoint::open(Arc::clone(&disk), &path).unwrap();
        assert_eq!(empty, Progress::default());
        checkpoint.write(&progress(3)).unwrap();
        checkpoint.write(&progress(7)).unwrap();
        let second = Checkpoint::open(Arc::clone(&disk), &path).unwrap_err();
        assert!(
            second
                .to_string()
                .ends_with("is in use by another consumer"),
            "{second}"
        );
        drop(checkpoint);
        let (_, read) = Checkpoint::open(disk, &path).unwrap();
        assert_eq!(read, progress(7));
    }

    #[test]
    fn the_format_is_a_promise() {
        expect_test::expect![[r#"
            flux-cdc-checkpoint 1 38ce3eef
            {"marks":{"sources":{"/flux/a/shards/0#0":{"used":3,"terms":{"1":{"below":0,"ranges":{"1":3}}}}},"uses":3},"events":3,"sink-bytes":30}
        "#]]
        .assert_eq(&encode(&progress(3)).unwrap());
        let read = decode(encode(&progress(3)).unwrap().as_bytes()).unwrap();
        assert_eq!(read, progress(3));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let text = encode(&progress(3)).unwrap().into_bytes();
        for length in 0..text.len() {
            assert!(decode(&text[..length]).is_err(), "cut at {length}");
        }
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_power_cut_leaves_the_old_or_the_new_one() {
        for seed in 0..200 {
            let mut rng = SeededRng::new(seed);
            let disk = SimDisk::new();
            let path = Path::new("/data/checkpoint");
            disk.create_dir_all(Path::new("/data")).unwrap();
            disk.sync_dir(Path::new("/data")).unwrap();
            let (checkpoint, _) = Checkpoint::open(Arc::new(disk.clone()), path).unwrap();
            checkpoint.write(&progress(1)).unwrap();
            disk.fail_write_after(u64::from(seed % 2 == 0));
            let is_written = checkpoint.write(&progress(2)).is_ok();
            drop(checkpoint);
            disk.crash(CrashLoss::Random, &mut rng);
            let (_, read) = Checkpoint::open(Arc::new(disk), path).unwrap();
            if is_written {
                assert_eq!(read, progress(2), "seed {seed}");
            } else {
                assert!(read == progress(1) || read == progress(2), "seed {seed}");
            }
        }
    }
}
