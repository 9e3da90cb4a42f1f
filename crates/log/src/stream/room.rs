//! Room for records: the next segment and the reserve are files that exist before they are needed,
//! so that a full disk is known before an append can fail.

use std::io;
use std::sync::Arc;

use flux_env::OpenMode;
use flux_types::UnixMillis;

use super::work::recycle;
use super::{Active, Prepared, Readable, SLACK_BYTES, Space, Stream, is_full};
use crate::error::LogError;
use crate::fields::widen;
use crate::record::record_size;
use crate::segment::{NEXT_NAME, RESERVE_NAME, SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};

impl Stream {
    /// Prepares the next segment and the reserve if they are missing. A full disk is no error. If
    /// there is no space, the history is given up for it, the oldest first.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        if self.next.is_none() {
            self.next = self.prepare_or_give_up(NEXT_NAME)?;
            self.write_next_header()?;
        }
        if self.next.is_some() && self.reserve.is_none() {
            self.reserve = self.prepare_or_give_up(RESERVE_NAME)?;
        }
        self.is_full = self.wants_files();
        Ok(())
    }

    fn prepare_or_give_up(&mut self, name: &str) -> io::Result<Option<Prepared>> {
        loop {
            let prepared = self.prepare_file(name, self.config.segment_bytes)?;
            if prepared.is_some() || !self.give_up_oldest() {
                return Ok(prepared);
            }
        }
    }

    /// Deletes the oldest segment of the history; answers whether there was one.
    fn give_up_oldest(&mut self) -> bool {
        let Some(path) = self.take_oldest() else {
            return false;
        };
        let removed = self.disk.remove(&path);
        let log_dir = self.config.log_dir();
        let synced = removed.and_then(|()| self.disk.sync_dir(&log_dir));
        match synced {
            Ok(()) => tracing::warn!(path = %path.display(), "gave up history for want of space"),
            // Its space stays lost until the next open; there may be more.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot delete a segment");
            }
        }
        true
    }

    fn prepare_file(&self, name: &str, capacity: u64) -> io::Result<Option<Prepared>> {
        let path = self.config.log_dir().join(name);
        let make = || -> io::Result<Prepared> {
            if self.disk.exists(&path) {
                self.disk.remove(&path)?;
            }
            let file = self.disk.open(&path, OpenMode::CreateNew)?;
            file.allocate(capacity)?;
            file.sync_all()?;
            Ok(Prepared {
                header: None,
                file,
                capacity,
            })
        };
        match make() {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) if is_full(&error) => {
                let _ = self.disk.remove(&path).is_ok();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the next segment its header, durably, so that a roll is only a rename.
    fn write_next_header(&mut self) -> io::Result<()> {
        let header = SegmentHeader {
            number: self.active.number + 1,
            salt: (self.draw)(),
            node: self.identity.node,
            cluster: self.identity.cluster,
            created: UnixMillis::new(self.clock.unix_millis()),
        };
        let Some(next) = self.next.as_mut() else {
            return Ok(());
        };
        next.file.write_all_at(&header.encode(), 0)?;
        next.file.sync_data()?;
        next.header = Some(header);
        Ok(())
    }

    /// Makes sure that a record with `payload_bytes` can be appended without running out of space.
    /// Essential records may use up the reserve.
    pub(crate) fn make_room(
        &mut self,
        payload_bytes: usize,
        essential: bool,
    ) -> Result<(), LogError> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        if !essential && self.space() == Space::Full {
            return Err(LogError::NoSpace);
        }
        let needed = widen(record_size(payload_bytes)) + SLACK_BYTES;
        if self.active.end + needed <= self.active.capacity {
            return Ok(());
        }
        if self.next.is_none() && essential {
            self.promote_reserve().map_err(|_| LogError::NoSpace)?;
        }
        let Some(next) = self.next.as_mut() else {
            return Err(LogError::NoSpace);
        };
        let capacity = needed + widen(SEGMENT_HEADER_BYTES) + SLACK_BYTES;
        if next.capacity < capacity {
            next.file
                .allocate(capacity)
                .map_err(|_| LogError::NoSpace)?;
            next.file.sync_all().map_err(|_| LogError::NoSpace)?;
            next.capacity = capacity;
        }
        Ok(())
    }

    /// Lets the reserve become the next segment.
    fn promote_reserve(&mut self) -> io::Result<()> {
        let log_dir = self.config.log_dir();
        if let Some(reserve) = self.reserve.take() {
            self.disk
                .rename(&log_dir.join(RESERVE_NAME), &log_dir.join(NEXT_NAME))?;
            self.next = Some(reserve);
            self.write_next_header()?;
        }
        Ok(())
    }

    /// Ends the active segment and begins the prepared one.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        if self.next.is_none() {
            self.prepare()?;
        }
        if self.next.is_none() {
            self.promote_reserve()?;
        }
        let next = self.next.take().ok_or(io::ErrorKind::StorageFull)?;
        let header = next.header.ok_or(io::ErrorKind::StorageFull)?;
        assert_eq!(
            header.number,
            self.active.number + 1,
            "segments are numbered without gaps"
        );
        self.close_chunk();
        if let Some(full) = self.readable.get_mut(&self.active.number) {
            // It may have grown for a large record.
            full.bytes = self.active.capacity;
        }
        if !self.always() && !self.earlier_durable {
            // Two unsynced segments would be one more than recovery can tell from damage.
            self.sync_inline()?;
        }
        let log_dir = self.config.log_dir();
        self.disk.rename(
            &log_dir.join(NEXT_NAME),
            &log_dir.join(segment_name(header.number)),
        )?;
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
        for chunk in self.queue.chunks.drain(..) {
            chunk.file.write_all_at(&chunk.bytes, chunk.offset)?;
            self.stats.writes += 1;
            recycle(&mut self.spare, chunk.bytes);
        }
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
