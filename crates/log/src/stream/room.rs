//! Room for records and snapshots: the next segment, the reserve and the file of the next snapshot
//! exist before they are needed, so that a full disk is known before an append can fail.
//!
//! Making such a file takes milliseconds. So the stream only says which one is missing
//! ([`Stream::preparation`]), whoever runs it makes the file without the stream's lock
//! ([`Preparation::perform`]), and the stream takes it ([`Stream::prepared`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_env::{Disk, File, OpenMode};
use flux_types::UnixMillis;

use super::{Active, Prepared, Readable, SLACK_BYTES, Space, Stream, is_full};
use crate::error::LogError;
use crate::fields::widen;
use crate::segment::{PREPARED_SUFFIX, SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};

/// The room of a snapshot grows in steps of this many bytes.
const SNAPSHOT_ROOM_STEP: u64 = 1024 * 1024;

/// What a file is prepared for.
#[derive(Debug)]
enum Purpose {
    /// To become a segment. The next one gets its header now, so that a roll is only a rename.
    Segment(Option<SegmentHeader>),
    /// To take the next snapshot.
    Snapshot,
}

/// A file that is missing, or too small.
#[derive(Debug)]
pub(crate) struct Preparation {
    purpose: Purpose,
    path: PathBuf,
    /// The file, if it is there and only too small.
    grows: Option<Arc<dyn File>>,
    /// What it should hold in bytes; and what it must, if there is no space for more.
    wanted: u64,
    needed: u64,
}

impl Preparation {
    /// Makes the file, or answers `None` if the disk is full.
    ///
    /// # Errors
    /// If the disk refuses for another reason.
    pub(crate) fn perform(&self, disk: &dyn Disk) -> io::Result<Option<Prepared>> {
        let make = || -> io::Result<Prepared> {
            let file = match &self.grows {
                Some(file) => Arc::clone(file),
                None => disk.open(&self.path, OpenMode::CreateNew)?,
            };
            let capacity = self.allocate(&*file)?;
            let header = match &self.purpose {
                Purpose::Segment(header) => *header,
                Purpose::Snapshot => None,
            };
            if let Some(header) = header {
                file.write_all_at(&header.encode(), 0)?;
            }
            file.sync_all()?;
            Ok(Prepared {
                header,
                file,
                path: self.path.clone(),
                capacity,
            })
        };
        match make() {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) if is_full(&error) => {
                if self.grows.is_none() {
                    let _ = disk.remove(&self.path).is_ok();
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn allocate(&self, file: &dyn File) -> io::Result<u64> {
        match file.allocate(self.wanted) {
            Err(error) if is_full(&error) && self.needed < self.wanted => {
                file.allocate(self.needed).map(|()| self.needed)
            }
            result => result.map(|()| self.wanted),
        }
    }
}

/// Deletes a segment of the history for want of space.
pub(crate) fn give_up(disk: &dyn Disk, log_dir: &Path, path: &Path) {
    let removed = disk.remove(path);
    match removed.and_then(|()| disk.sync_dir(log_dir)) {
        Ok(()) => tracing::warn!(path = %path.display(), "gave up history for want of space"),
        // Its space stays lost until the next open; there may be more.
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot delete a segment"),
    }
}

impl Stream {
    /// The file that is missing first, if one is.
    pub(crate) fn preparation(&mut self) -> Option<Preparation> {
        if self.next.is_none() || self.reserve.is_none() {
            let header = self.next.is_none().then(|| self.next_header());
            let capacity = self.config.segment_bytes;
            return Some(Preparation {
                purpose: Purpose::Segment(header),
                path: self.prepared_path(self.config.log_dir()),
                grows: None,
                wanted: capacity,
                needed: capacity,
            });
        }
        if !self.wants_snapshot_room() {
            return None;
        }
        let needed = self.snapshot_bytes();
        let wanted = needed + needed / 4;
        let kept = self.snapshot_room.as_ref();
        let path = kept.map(|room| room.path.clone());
        let grows = kept.map(|room| Arc::clone(&room.file));
        self.is_room_growing = grows.is_some();
        Some(Preparation {
            purpose: Purpose::Snapshot,
            path: path.unwrap_or_else(|| self.prepared_path(self.config.snapshot_dir())),
            grows,
            wanted: wanted.next_multiple_of(SNAPSHOT_ROOM_STEP),
            needed,
        })
    }

    /// Takes a file that was prepared, or takes note that there is no space for it. Answers the
    /// path of a file that nobody needs any more.
    pub(crate) fn prepared(
        &mut self,
        preparation: &Preparation,
        made: Option<Prepared>,
    ) -> Option<PathBuf> {
        if preparation.grows.is_some() {
            self.is_room_growing = false;
        }
        let Some(made) = made else {
            self.is_full = true;
            return None;
        };
        let place = match preparation.purpose {
            Purpose::Segment(_) if self.next.is_none() => &mut self.next,
            Purpose::Segment(_) => &mut self.reserve,
            Purpose::Snapshot => &mut self.snapshot_room,
        };
        let replaced = place.replace(made);
        if !self.wants_files() {
            self.is_full = false;
        }
        // What has only grown is not replaced.
        replaced.and_then(|old| (old.path != preparation.path).then_some(old.path))
    }

    /// Prepares whatever is missing, in the caller's turn: at the open, and when nobody was quick
    /// enough. A full disk is no error; the history is given up for it, the oldest first.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        while let Some(preparation) = self.preparation() {
            let made = preparation.perform(&*self.disk)?;
            let is_full = made.is_none();
            if is_full && let Some(path) = self.take_oldest() {
                give_up(&*self.disk, &self.config.log_dir(), &path);
                continue;
            }
            self.prepared(&preparation, made);
            if is_full {
                break;
            }
        }
        Ok(())
    }

    /// Takes over the room for a snapshot that an earlier process kept.
    pub(super) fn adopt_snapshot_room(&mut self) -> io::Result<()> {
        let dir = self.config.snapshot_dir();
        for name in self.disk.read_dir(&dir)? {
            if !name.ends_with(PREPARED_SUFFIX) {
                continue;
            }
            // Names are counted from 1.
            let (found, path) = (
                dir.join(name),
                dir.join(format!("{:08x}{PREPARED_SUFFIX}", 0)),
            );
            if self.snapshot_room.is_some() {
                self.disk.remove(&found)?;
                continue;
            }
            self.disk.rename(&found, &path)?;
            let file = self.disk.open(&path, OpenMode::ReadWrite)?;
            let capacity = file.size_bytes()?;
            self.snapshot_room = Some(Prepared {
                header: None,
                file,
                path,
                capacity,
            });
        }
        Ok(())
    }

    fn prepared_path(&mut self, dir: PathBuf) -> PathBuf {
        self.prepared_count += 1;
        dir.join(format!("{:08x}{PREPARED_SUFFIX}", self.prepared_count))
    }

    fn next_header(&mut self) -> SegmentHeader {
        SegmentHeader {
            number: self.active.number + 1,
            salt: (self.draw)(),
            node: self.identity.node,
            cluster: self.identity.cluster,
            created: UnixMillis::new(self.clock.unix_millis()),
        }
    }

    /// Whether a file is missing that should have been prepared.
    pub(crate) fn wants_files(&self) -> bool {
        self.next.is_none() || self.reserve.is_none() || self.wants_snapshot_room()
    }

    /// While a snapshot is being written it has the room, and the next one needs none yet.
    fn wants_snapshot_room(&self) -> bool {
        let kept = self.snapshot_room.as_ref().map_or(0, |room| room.capacity);
        !self.is_room_taken && kept < self.snapshot_bytes()
    }

    /// What a snapshot of the largest shard would take.
    fn snapshot_bytes(&self) -> u64 {
        let needs = self.shards.iter().map(|shard| shard.snapshot_bytes);
        needs.max().unwrap_or(0)
    }

    /// Takes note of how large a snapshot of a shard would be, at most.
    pub(crate) fn keep_snapshot_room(&mut self, shard: usize, bytes: u64) {
        if let Some(state) = self.shards.get_mut(shard) {
            state.snapshot_bytes = bytes;
        }
    }

    /// Gives the room of the next snapshot to one that begins, if no other has it and it does not
    /// grow right now: the snapshot would grow with it, beyond its end. Until
    /// [`Stream::return_snapshot_room`] no other is prepared.
    pub(crate) fn take_snapshot_room(&mut self) -> Option<Prepared> {
        if self.is_room_growing {
            return None;
        }
        let room = self.snapshot_room.take();
        self.is_room_taken |= room.is_some();
        room
    }

    /// The snapshot that took the room is there, or will never be.
    pub(crate) const fn return_snapshot_room(&mut self) {
        self.is_room_taken = false;
    }

    /// Makes sure that records of so many bytes together can be appended without running out of
    /// space. Essential records may use up the reserve.
    pub(crate) fn make_room(&mut self, record_bytes: u64, essential: bool) -> Result<(), LogError> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        if !essential && self.space() == Space::Full {
            return Err(LogError::NoSpace);
        }
        let needed = record_bytes.saturating_add(SLACK_BYTES);
        if self.active.end.saturating_add(needed) <= self.active.capacity {
            return Ok(());
        }
        if self.next.is_none() && essential {
            self.next = self.reserve.take();
        }
        let Some(next) = self.next.as_mut() else {
            return Err(LogError::NoSpace);
        };
        let capacity = needed.saturating_add(widen(SEGMENT_HEADER_BYTES) + SLACK_BYTES);
        if next.capacity < capacity {
            next.file
                .allocate(capacity)
                .map_err(|_| LogError::NoSpace)?;
            next.file.sync_all().map_err(|_| LogError::NoSpace)?;
            next.capacity = capacity;
        }
        Ok(())
    }

    /// The file of the next segment, with its header, durably.
    fn take_next(&mut self) -> io::Result<(Prepared, SegmentHeader)> {
        if self.next.is_none() {
            // Its successor may be in the making right now, but a record cannot wait for it.
            self.next = self.reserve.take();
        }
        if self.next.is_none() {
            self.prepare()?;
        }
        let next = self.next.take().ok_or(io::ErrorKind::StorageFull)?;
        let number = self.active.number + 1;
        if let Some(header) = next.header.filter(|header| header.number == number) {
            return Ok((next, header));
        }
        let header = self.next_header();
        next.file.write_all_at(&header.encode(), 0)?;
        next.file.sync_data()?;
        Ok((next, header))
    }

    /// Ends the active segment and begins the prepared one.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        let (next, header) = self.take_next()?;
        self.close_chunk();
        if let Some(full) = self.readable.get_mut(&self.active.number) {
            // It may have grown for a large record.
            full.bytes = self.active.capacity;
        }
        if !self.always() && !self.earlier_durable {
            // Two unsynced segments would be one more than recovery can tell from damage.
            self.sync_inline()?;
        }
        let segment = self.config.log_dir().join(segment_name(header.number));
        self.disk.rename(&next.path, &segment)?;
        self.queue.dirty_dir = true;
        self.earlier_durable = self.active.number == 0;
        let end = widen(SEGMENT_HEADER_BYTES);
        self.active = Active {
            number: header.number,
            salt: header.salt,
            file: Arc::clone(&next.file),
            capacity: next.capacity,
            end,
            durable: end,
        };
        let readable = Readable {
            file: next.file,
            salt: header.salt,
            created: header.created,
            bytes: next.capacity,
        };
        self.readable.insert(header.number, readable);
        self.push_start();
        Ok(())
    }

    fn sync_inline(&mut self) -> io::Result<()> {
        // What this very append has placed before the roll is not written yet.
        self.write_chunks()?;
        for file in self.queue.dirty.drain(..) {
            file.sync_data()?;
        }
        if std::mem::take(&mut self.queue.dirty_dir) {
            self.disk.sync_dir(&self.config.log_dir())?;
        }
        for (shard, index) in std::mem::take(&mut self.queue.unsynced) {
            self.mark_durable(shard, index);
        }
        Ok(())
    }
}
