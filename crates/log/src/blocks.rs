//! Reads a file front to back through one buffer that stays in the processor's cache: an open goes
//! over every byte of the log, and copying those to fresh memory first costs more than checking them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_env::File;

use crate::error::OpenError;
use crate::fields::{narrow, widen};

/// Bytes read at once. Fits the second-level cache of today's processors.
const BLOCK_BYTES: usize = 256 * 1024;

/// A file on its way through the buffer.
#[derive(Debug)]
pub(crate) struct Blocks {
    path: PathBuf,
    file: Arc<dyn File>,
    size: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    begin: u64,
    /// How much of the buffer holds bytes of the file.
    filled: usize,
}

impl Blocks {
    /// Begins at the front. The buffer is one that [`Blocks::into_buffer`] gave back, or empty.
    ///
    /// # Errors
    /// If the file does not tell its size.
    pub(crate) fn new(
        path: &Path,
        file: Arc<dyn File>,
        buffer: Vec<u8>,
    ) -> Result<Self, OpenError> {
        let size = file.size_bytes();
        let size = size.map_err(|source| OpenError::io("read", path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            size,
            buffer,
            begin: 0,
            filled: 0,
        })
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    fn failed(&self, source: io::Error) -> OpenError {
        OpenError::io("read", self.path.clone(), source)
    }

    /// The bytes from `offset` on: at least `count` of them unless the file ends before. Offsets
    /// must not fall by more than what the last call returned.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn at(&mut self, offset: u64, count: usize) -> Result<&[u8], OpenError> {
        let count = count.min(narrow(self.size.saturating_sub(offset)));
        let inside = offset.checked_sub(self.begin).map(narrow);
        let from = match inside.filter(|from| from + count <= self.filled) {
            Some(from) => from,
            None => {
                self.refill(offset, count)?;
                0
            }
        };
        Ok(self.buffer.get(from..self.filled).unwrap_or_default())
    }

    /// Moves the buffer so that it begins at `offset`, keeping what it already holds from there on.
    fn refill(&mut self, offset: u64, count: usize) -> Result<(), OpenError> {
        let inside = offset.checked_sub(self.begin).map(narrow);
        let kept = match inside.filter(|from| *from < self.filled) {
            Some(from) => {
                self.buffer.copy_within(from..self.filled, 0);
                self.filled - from
            }
            None => 0,
        };
        self.begin = offset;
        self.filled = kept;
        let wanted = count.max(BLOCK_BYTES);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        let rest = narrow(self.size.saturating_sub(offset)).min(wanted);
        let target = self.buffer.get_mut(kept..rest).unwrap_or_default();
        let read = self.file.read_at(target, offset + widen(kept));
        self.filled += read.map_err(|source| self.failed(source))?;
        if self.filled < rest {
            // The file ends before it said.
            self.size = offset + widen(self.filled);
        }
        Ok(())
    }

    /// Everything from `offset` on, in memory of its own.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn rest(&self, offset: u64) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; narrow(self.size.saturating_sub(offset))];
        let count = self.file.read_at(&mut bytes, offset);
        bytes.truncate(count.map_err(|source| self.failed(source))?);
        Ok(bytes)
    }

    /// Whether there is nothing but zeros from `offset` on.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn is_zero_from(&mut self, mut offset: u64) -> Result<bool, OpenError> {
        loop {
            let held = self.at(offset, 1)?;
            if !is_zero(held) {
                return Ok(false);
            }
            offset += widen(held.len());
            if self.size <= offset {
                return Ok(true);
            }
            // Preallocated space was never written; the file system knows, and need not be asked
            // for the zeros themselves.
            let data = self.file.next_data(offset);
            match data.map_err(|source| self.failed(source))? {
                Some(data) => offset = offset.max(data),
                None => return Ok(true),
            }
        }
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Whole lanes first, without an early exit inside one: this the compiler makes wide.
    let mut lanes = bytes.chunks_exact(64);
    lanes
        .by_ref()
        .all(|lane| lane.iter().fold(0, |all, byte| all | byte) == 0)
        && lanes.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use flux_env::{Disk, OpenMode, SimDisk};

    use super::*;

    fn blocks_of(bytes: &[u8]) -> Blocks {
        let disk = SimDisk::new();
        let path = Path::new("/file");
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Blocks::new(path, file, Vec::new()).unwrap()
    }

    #[test]
    fn every_byte_comes_by_once_whatever_the_steps() {
        let bytes: Vec<u8> = (0..251).cycle().take(BLOCK_BYTES * 3 + 77).collect();
        for step in [1000, 65_536, BLOCK_BYTES, BLOCK_BYTES + 9, BLOCK_BYTES * 2] {
            let mut blocks = blocks_of(&bytes);
            let mut at = 0;
            while at < bytes.len() {
                let got = blocks.at(at as u64, step).unwrap();
                assert!(step.min(bytes.len() - at) <= got.len());
                assert_eq!(got, &bytes[at..at + got.len()], "step {step} at {at}");
                at += step.min(got.len());
            }
            assert!(blocks.at(at as u64, step).unwrap().is_empty());
        }
        assert_eq!(blocks_of(&bytes).rest(70).unwrap(), &bytes[70..]);
    }

    #[test]
    fn one_byte_among_zeros_is_seen_wherever_it_stands() {
        let size = BLOCK_BYTES * 2 + 13;
        for at in [0, 1, 63, 64, BLOCK_BYTES - 1, BLOCK_BYTES, size - 1] {
            let mut bytes = vec![0; size];
            bytes[at] = 0x10;
            let mut blocks = blocks_of(&bytes);
            assert!(!blocks.is_zero_from(0).unwrap(), "{at}");
            assert!(!blocks.is_zero_from(at as u64).unwrap(), "{at}");
            assert!(blocks.is_zero_from(at as u64 + 1).unwrap(), "{at}");
        }
    }
}
