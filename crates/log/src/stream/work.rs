//! What has to be written and synced before some callbacks may be called.

use std::io;
use std::path::Path;
use std::sync::Arc;

use flux_env::{Disk, File};
use flux_types::bug::{self, Bug};

use crate::shard_log::Flushed;

/// Bytes that belong to one place in one segment.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) file: Arc<dyn File>,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// What has to be done before some callbacks may be called.
#[derive(Default)]
pub(crate) struct Work {
    pub(super) chunks: Vec<Chunk>,
    pub(super) sync: Vec<Arc<dyn File>>,
    pub(super) sync_dir: bool,
    pub(super) callbacks: Vec<(Flushed, bool)>,
    pub(super) flushed: Vec<(usize, u64)>,
    pub(super) synced: Vec<(usize, u64)>,
    pub(super) active: u64,
    pub(super) end: u64,
    pub(super) needed: u64,
}

impl Work {
    pub(crate) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
            && self.sync.is_empty()
            && self.callbacks.is_empty()
            && !self.sync_dir
    }

    pub(crate) const fn syncs(&self) -> bool {
        !self.sync.is_empty()
    }

    /// Gives up the work, and returns what must be told so.
    pub(crate) fn into_callbacks(self) -> Vec<Flushed> {
        self.callbacks
            .into_iter()
            .map(|(callback, _)| callback)
            .collect()
    }

    /// Writes and syncs. The only place where the log waits for a disk, besides inline writes.
    pub(crate) fn perform(&self, disk: &dyn Disk, log_dir: &Path) -> io::Result<()> {
        for chunk in &self.chunks {
            chunk.file.write_all_at(&chunk.bytes, chunk.offset)?;
        }
        for file in &self.sync {
            file.sync_data()?;
        }
        if self.sync_dir && !bug::is_on(Bug::NoDirectorySync) {
            disk.sync_dir(log_dir)?;
        }
        Ok(())
    }
}

pub(super) fn recycle(spare: &mut Vec<Vec<u8>>, mut bytes: Vec<u8>) {
    const SPARE_MAX: usize = 4;
    const SPARE_BYTES_MAX: usize = 4 * 1024 * 1024;
    if spare.len() < SPARE_MAX && bytes.capacity() <= SPARE_BYTES_MAX {
        bytes.clear();
        spare.push(bytes);
    }
}
