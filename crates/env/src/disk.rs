//! The disk as the log needs it: positioned reads and writes, and every sync spelled out.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It exists and is only read.
    Read,
    /// It exists and is read and written.
    ReadWrite,
    /// It must not exist yet; it is created, empty, and read and written.
    CreateNew,
}

/// Holds an advisory lock until dropped; the lock dies with the process.
pub trait LockGuard: fmt::Debug + Send + Sync {}

/// A file system.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Creates a directory and its parents; an existing one is fine.
    ///
    /// # Errors
    /// As the file system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Opens a file.
    ///
    /// # Errors
    /// As the file system says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// As the file system says.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Whether a path exists.
    fn exists(&self, path: &Path) -> bool;

    /// Renames a file over another. Durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// As the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// As the file system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the advisory lock of a file, creating it; `None` if another holder has it.
    ///
    /// # Errors
    /// As the file system says.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn LockGuard>>>;

    /// Bytes free for this process on the file system of `path`.
    ///
    /// # Errors
    /// As the file system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. Reads and writes name their offset; there is no cursor to share.
pub trait File: fmt::Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// As the disk says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buffer` at `offset`. Durable only after a sync.
    ///
    /// # Errors
    /// As the disk says; some of the bytes may then have been written.
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;

    /// Makes written bytes durable (`fdatasync`). After an error nothing is known about any byte
    /// written since the last success, and a repeated call proves nothing.
    ///
    /// # Errors
    /// As the disk says.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes written bytes and the file's size durable (`fsync`).
    ///
    /// # Errors
    /// As the disk says.
    fn sync_all(&self) -> io::Result<()>;

    /// Size in bytes.
    ///
    /// # Errors
    /// As the disk says.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Where, from `offset` on, the first byte may be that is not zero; `None` if the file system
    /// knows that there are only zeros up to the end. Saves reading what was never written.
    ///
    /// # Errors
    /// As the disk says.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// Cuts or extends the file with zeros.
    ///
    /// # Errors
    /// As the disk says.
    fn set_size(&self, size_bytes: u64) -> io::Result<()>;

    /// Makes the file at least `size_bytes` long, with space on the disk behind every byte, so
    /// that writing there cannot run out of it.
    ///
    /// # Errors
    /// `StorageFull` if there is no room; then nothing else has changed.
    fn allocate(&self, size_bytes: u64) -> io::Result<()>;
}
