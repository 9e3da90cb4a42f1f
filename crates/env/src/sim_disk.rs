//! A disk in memory that forgets what was not synced, can be full, and can fail.
//!
//! Each file has a durable image and the writes since its last sync. A [`SimDisk::crash`] keeps the
//! durable image and, as chance and [`CrashLoss`] say, some of the later writes in pieces of 512
//! bytes. Names behave likewise: what a directory sync has not covered may be undone. Handles
//! opened before a crash fail afterward, as those of a dead process would.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::{Disk, File, LockGuard, OpenMode, Rng};

/// What becomes of unsynced writes at a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashLoss {
    /// Nothing is lost: the process died, the machine lives.
    Nothing,
    /// Everything unsynced is lost.
    Everything,
    /// Each 512-byte piece and each name survives or not by chance, in any order.
    Random,
}

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default)]
struct FileState {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Open handles of processes that live.
    handles: usize,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, FileState>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    next_file: u64,
    epoch: u64,
    capacity_bytes: Option<u64>,
    syncs_until_failure: Option<u64>,
    writes_until_failure: Option<u64>,
    sync_count: u64,
    write_count: u64,
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .filter_map(|id| self.files.get(id))
            .map(|file| file.current.len() as u64)
            .sum()
    }

    /// Whether the disk can hold `growth` more bytes.
    fn check_room(&self, growth: usize) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if self.used_bytes() + growth as u64 > capacity => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the files that have no name, nor could get one back, and that nobody has open.
    fn collect(&mut self) {
        let names = self.names.values().chain(self.durable_names.values());
        let named: BTreeSet<u64> = names.copied().collect();
        self.files
            .retain(|id, file| file.handles > 0 || named.contains(id));
    }

    fn count_down(counter: &mut Option<u64>) -> io::Result<()> {
        match counter {
            Some(0) => {
                *counter = None;
                Err(io::Error::other("injected failure"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A simulated disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// The life of the machine that this handle is good for; `None`: all of them.
    epoch: Option<u64>,
}

impl SimDisk {
    /// An empty disk without limit or fault.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as a process sees it that starts now: after a crash every use of it fails, so
    /// threads that a test leaves behind change nothing any more.
    #[must_use]
    pub fn as_process(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            epoch: Some(self.state.lock().epoch),
        }
    }

    /// The disk, for a process that lives.
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if self.epoch.is_some_and(|epoch| epoch != state.epoch) {
            return Err(crashed());
        }
        Ok(state)
    }

    /// Stops the machine and starts it again: open handles die, locks are free, unsynced writes go
    /// as `loss` says.
    pub fn crash(&self, loss: CrashLoss, rng: &mut dyn Rng) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.locks.clear();
        for file in state.files.values_mut() {
            file.handles = 0;
        }
        if loss == CrashLoss::Nothing {
            return;
        }
        for file in state.files.values_mut() {
            let pending = std::mem::take(&mut file.pending);
            if loss == CrashLoss::Random {
                for (offset, bytes) in pending {
                    apply_some_sectors(&mut file.durable, offset, &bytes, rng);
                }
            }
            file.current.clone_from(&file.durable);
        }
        let mut names = state.durable_names.clone();
        if loss == CrashLoss::Random {
            for (path, id) in &state.names {
                if rng.one_in(2) {
                    names.insert(path.clone(), *id);
                }
            }
            for path in state.durable_names.keys() {
                if !state.names.contains_key(path) && rng.one_in(2) {
                    names.remove(path);
                }
            }
        }
        state.names.clone_from(&names);
        state.durable_names = names;
        state.collect();
    }

    /// Limits the bytes of all files together; `None` lifts the limit.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.state.lock().capacity_bytes = capacity_bytes;
    }

    /// Lets `count` syncs succeed and the next one fail, once (as a real kernel does).
    pub fn fail_sync_after(&self, count: u64) {
        self.state.lock().syncs_until_failure = Some(count);
    }

    /// Lets `count` writes succeed and the next one fail, once.
    pub fn fail_write_after(&self, count: u64) {
        self.state.lock().writes_until_failure = Some(count);
    }

    /// How many file syncs there have been.
    #[must_use]
    pub fn sync_count(&self) -> u64 {
        self.state.lock().sync_count
    }

    /// How many writes there have been.
    #[must_use]
    pub fn write_count(&self) -> u64 {
        self.state.lock().write_count
    }

    /// Bytes in all files together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    /// Lets `damage` change a file's bytes behind everyone's back, durably.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn damage(&self, path: &Path, damage: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let file = state.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        damage(&mut file.current);
        file.durable.clone_from(&file.current);
        file.pending.clear();
        Ok(())
    }

    /// A disk that holds the same files, independent of this one from now on.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let state = self.state.lock();
        let files = state.files.iter().map(|(id, file)| {
            let bytes = file.current.clone();
            (
                *id,
                FileState {
                    durable: bytes.clone(),
                    current: bytes,
                    ..FileState::default()
                },
            )
        });
        let copy = State {
            files: files.collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            directories: state.directories.clone(),
            next_file: state.next_file,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(copy)),
            epoch: None,
        }
    }
}

fn crashed() -> io::Error {
    io::Error::other("the process that uses this disk has crashed")
}

/// Overwrites the sectors of one write that chance lets survive.
fn apply_some_sectors(image: &mut Vec<u8>, offset: usize, bytes: &[u8], rng: &mut dyn Rng) {
    let mut at = 0;
    while at < bytes.len() {
        let boundary = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
        let end = (at + boundary).min(bytes.len());
        if rng.one_in(2)
            && let Some(piece) = bytes.get(at..end)
        {
            overwrite(image, offset + at, piece);
        }
        at = end;
    }
}

/// Writes `bytes` at `offset`, growing the image with zeros if need be.
fn overwrite(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    if let Some(target) = image.get_mut(offset..end) {
        target.copy_from_slice(bytes);
    }
}

#[derive(Debug)]
struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    epoch: u64,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    id: u64,
    epoch: u64,
    writable: bool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.epoch == self.epoch
            && let Some(file) = state.files.get_mut(&self.id)
        {
            file.handles -= 1;
        }
    }
}

impl SimFile {
    fn with<R>(
        &self,
        act: impl FnOnce(&mut State, &mut FileState) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut state = self.state.lock();
        if state.epoch != self.epoch {
            return Err(crashed());
        }
        let mut file = state
            .files
            .remove(&self.id)
            .ok_or(io::ErrorKind::NotFound)?;
        let result = act(&mut state, &mut file);
        state.files.insert(self.id, file);
        result
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = index(offset)?;
        self.with(|_, file| {
            let rest = file.current.get(offset..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if let (Some(target), Some(source)) = (buffer.get_mut(..count), rest.get(..count)) {
                target.copy_from_slice(source);
            }
            Ok(count)
        })
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let offset = index(offset)?;
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        self.with(|state, file| {
            State::count_down(&mut state.writes_until_failure)?;
            let growth = (offset + buffer.len()).saturating_sub(file.current.len());
            // The file itself is taken out of the table while it is written.
            state.check_room(growth + file.current.len())?;
            state.write_count += 1;
            overwrite(&mut file.current, offset, buffer);
            file.pending.push((offset, buffer.to_vec()));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, file| {
            State::count_down(&mut state.syncs_until_failure)?;
            state.sync_count += 1;
            for (offset, bytes) in file.pending.drain(..) {
                overwrite(&mut file.durable, offset, &bytes);
            }
            Ok(())
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.with(|_, file| Ok(file.current.len() as u64))
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        let size = index(size_bytes)?;
        self.with(|state, file| {
            state.check_room(size)?;
            file.current.resize(size, 0);
            // Sizes are metadata: taken as durable at once, which is the harsher case for a cut.
            file.durable.resize(size, 0);
            for (offset, bytes) in &mut file.pending {
                bytes.truncate(size.saturating_sub(*offset));
            }
            file.pending.retain(|(_, bytes)| !bytes.is_empty());
            Ok(())
        })
    }

    fn allocate(&self, size_bytes: u64) -> io::Result<()> {
        let size = index(size_bytes)?;
        self.with(|state, file| {
            let size = size.max(file.current.len());
            state.check_room(size)?;
            file.current.resize(size, 0);
            file.durable.resize(size, 0);
            Ok(())
        })
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        for directory in path.ancestors() {
            state.directories.insert(directory.to_path_buf());
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut state = self.alive()?;
        let id = match (mode, state.names.get(path).copied()) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                state.check_room(0)?;
                state.next_file += 1;
                let id = state.next_file;
                state.files.insert(id, FileState::default());
                state.names.insert(path.to_path_buf(), id);
                id
            }
            (OpenMode::Read | OpenMode::ReadWrite, Some(id)) => id,
            (OpenMode::Read | OpenMode::ReadWrite, None) => {
                return Err(io::ErrorKind::NotFound.into());
            }
        };
        let epoch = state.epoch;
        if let Some(file) = state.files.get_mut(&id) {
            file.handles += 1;
        }
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimFile {
            state: Arc::clone(&self.state),
            id,
            epoch,
            writable,
        }))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.alive()?;
        if !state.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = state.names.keys().map(PathBuf::as_path);
        let entries = files.chain(state.directories.iter().map(PathBuf::as_path));
        let names: BTreeSet<String> = entries
            .filter(|entry| entry.parent() == Some(path))
            .filter_map(|entry| Some(entry.file_name()?.to_string_lossy().into_owned()))
            .collect();
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> bool {
        let Ok(state) = self.alive() else {
            return false;
        };
        state.names.contains_key(path) || state.directories.contains(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        State::count_down(&mut state.syncs_until_failure)?;
        let inside = |name: &PathBuf| name.parent() == Some(path);
        state.durable_names.retain(|name, _| !inside(name));
        let synced: Vec<(PathBuf, u64)> = state
            .names
            .iter()
            .filter(|(name, _)| inside(name))
            .map(|(name, id)| (name.clone(), *id))
            .collect();
        state.durable_names.extend(synced);
        state.collect();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn LockGuard>>> {
        if !self.exists(path) {
            self.open(path, OpenMode::CreateNew)?;
        }
        let mut state = self.alive()?;
        if !state.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        let epoch = state.epoch;
        let guard = SimLock {
            state: Arc::clone(&self.state),
            path: path.to_path_buf(),
            epoch,
        };
        Ok(Some(Box::new(guard)))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.alive()?;
        Ok(state.capacity_bytes.map_or(u64::MAX, |capacity| {
            capacity.saturating_sub(state.used_bytes())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealDisk, SeededRng};

    /// What every disk must do, real or not.
    fn conformance(disk: &dyn Disk, root: &Path) {
        let dir = root.join("a/b");
        disk.create_dir_all(&dir).unwrap();
        disk.create_dir_all(&dir).unwrap();
        assert!(disk.read_dir(&dir).unwrap().is_empty());
        let path = dir.join("one");
        assert_eq!(
            disk.open(&path, OpenMode::Read).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let file = disk.open(&path, OpenMode::CreateNew).unwrap();
        let again = disk.open(&path, OpenMode::CreateNew).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        file.write_all_at(b"world", 6).unwrap();
        file.write_all_at(b"hello ", 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.size_bytes().unwrap(), 11);
        let mut buffer = [0_u8; 20];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 11);
        assert_eq!(&buffer[..11], b"hello world");
        assert_eq!(file.read_at(&mut buffer, 100).unwrap(), 0);
        file.allocate(4096).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 4096);
        file.allocate(10).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 4096);
        file.set_size(5).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 5);
        disk.rename(&path, &dir.join("two")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.read_dir(&dir).unwrap(), ["two"]);
        assert_eq!(disk.read_dir(root).unwrap(), ["a"]);
        let read_only = disk.open(&dir.join("two"), OpenMode::Read).unwrap();
        assert!(read_only.write_all_at(b"x", 0).is_err());
        let held = disk.lock(&dir.join("lock")).unwrap();
        assert!(held.is_some());
        assert!(disk.lock(&dir.join("lock")).unwrap().is_none());
        drop(held);
        assert!(disk.lock(&dir.join("lock")).unwrap().is_some());
        disk.remove(&dir.join("two")).unwrap();
        assert!(!disk.exists(&dir.join("two")));
        assert!(disk.free_bytes(root).unwrap() > 0);
    }

    #[test]
    fn real_disk_conforms() {
        let dir = tempfile::tempdir().unwrap();
        conformance(&RealDisk, dir.path());
    }

    #[test]
    fn simulated_disk_conforms() {
        conformance(&SimDisk::new(), Path::new("/root"));
    }

    #[test]
    fn crash_forgets_what_was_not_synced() {
        let disk = SimDisk::new();
        let dir = Path::new("/d");
        disk.create_dir_all(dir).unwrap();
        let file = disk.open(&dir.join("f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"synced", 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        file.write_all_at(b"lost", 6).unwrap();
        let process = disk.as_process();
        process
            .open(&dir.join("unsynced name"), OpenMode::CreateNew)
            .unwrap();
        disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
        assert!(file.read_at(&mut [0], 0).is_err());
        assert!(process.open(&dir.join("f"), OpenMode::Read).is_err());
        assert!(process.remove(&dir.join("f")).is_err());
        assert_eq!(disk.read_dir(dir).unwrap(), ["f"]);
        let file = disk.open(&dir.join("f"), OpenMode::Read).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 6);
    }

    #[test]
    fn random_crash_tears_writes_at_sectors() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::new();
            disk.create_dir_all(Path::new("/d")).unwrap();
            let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_all_at(&[1; 2048], 0).unwrap();
            disk.crash(CrashLoss::Random, &mut SeededRng::new(seed));
            let file = disk.open(Path::new("/d/f"), OpenMode::Read).unwrap();
            let mut bytes = vec![0; 2048];
            let count = file.read_at(&mut bytes, 0).unwrap();
            for sector in bytes[..count].chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
            torn += usize::from(bytes[..count].contains(&1) && bytes.contains(&0));
        }
        assert!(torn > 10);
    }

    #[test]
    fn full_disk_refuses_growth_and_recovers() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.set_capacity_bytes(Some(1000));
        file.allocate(1000).unwrap();
        assert_eq!(
            file.allocate(1001).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        file.write_all_at(&[1; 1000], 0).unwrap();
        disk.set_capacity_bytes(Some(2000));
        file.allocate(1001).unwrap();
    }

    #[test]
    fn a_removed_file_lasts_as_long_as_somebody_has_it_open_or_its_name_could_come_back() {
        let dir = Path::new("/d");
        let disk = SimDisk::new();
        disk.create_dir_all(dir).unwrap();
        let file = disk.open(&dir.join("f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        disk.remove(&dir.join("f")).unwrap();
        drop(file);
        let before = disk.duplicate();
        disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
        assert_eq!(disk.read_dir(dir).unwrap(), ["f"]);
        let file = disk.open(&dir.join("f"), OpenMode::Read).unwrap();
        disk.remove(&dir.join("f")).unwrap();
        disk.sync_dir(dir).unwrap();
        assert_eq!(file.read_at(&mut [0; 2], 0).unwrap(), 1);
        assert_eq!(disk.state.lock().files.len(), 1);
        drop(file);
        disk.sync_dir(dir).unwrap();
        assert_eq!(disk.state.lock().files.len(), 0);
        assert!(before.read_dir(dir).unwrap().is_empty());
    }

    #[test]
    fn a_write_that_was_cut_off_does_not_come_back_with_a_sync() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_all_at(b"far", 100).unwrap();
        file.set_size(10).unwrap();
        file.sync_data().unwrap();
        disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
        let file = disk.open(Path::new("/d/f"), OpenMode::Read).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 10);
    }

    #[test]
    fn injected_failure_happens_once() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.fail_sync_after(1);
        assert!(file.sync_data().is_ok());
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
    }
}
