//! The threads around the stream. One takes everything that waits, one write, one sync, then all
//! callbacks. The other keeps files prepared and deletes what nobody needs, so that no append and
//! no sync ever waits for that.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use flux_env::{Clock, Disk, LockGuard};
use flux_types::limits::SHARDS_MAX;
use flux_types::{ClusterId, NodeId, ShardId};
use parking_lot::{Condvar, Mutex};

use crate::config::{FsyncPolicy, LogConfig};
use crate::error::{LogError, OpenError};
use crate::fields::narrow;
use crate::identity::{IDENTITY_NAME, Identity, LOCK_NAME, LOST_AND_FOUND_NAME, MEMBER_NAME};
use crate::record::RecordKind;
use crate::recovery::{Cut, Image, Recovery, scan};
use crate::segment::{PREPARED_SUFFIX, segment_name, segment_number};
use crate::shard_log::{BlockReader, Flushed, ShardLog};
use crate::snapshot;
use crate::stream::{LogStats, Parts, Space, Stream, give_up};

/// How long an unsynced write may wait with `everysec`.
const TICK: Duration = Duration::from_secs(1);

/// Pause before a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// Told once why the log failed.
type Notify = Box<dyn FnOnce(&str) + Send>;

/// What the log's handles share.
pub(crate) struct Shared {
    pub(crate) config: LogConfig,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: Identity,
    pub(crate) stream: Mutex<Stream>,
    wake: Condvar,
    closing: AtomicBool,
    poisoned: AtomicBool,
    on_poison: Mutex<Vec<Notify>>,
    on_full: Mutex<Vec<Box<dyn Fn() + Send>>>,
    /// Told that [`Log::pump`] has something to do, in a log without threads.
    on_work: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Held while a work item is performed, so that two never overtake each other.
    performing: Mutex<()>,
    /// Held while the folder gets room for more shards.
    growing: Mutex<()>,
    /// Whether something is to be done with files, and who waits for that.
    files_wanted: Mutex<bool>,
    files_wake: Condvar,
    close_wake: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("dir", &self.config.dir)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.shared.config.dir)
            .finish_non_exhaustive()
    }
}

/// A node's log. Clones share it; [`Log::close`] ends it.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

/// What only a first open needs: ids for a new directory, and where salts come from.
pub struct Seeds {
    /// The cluster of a new directory.
    pub cluster: ClusterId,
    /// The node of a new directory.
    pub node: NodeId,
    /// This boot of the machine.
    pub boot_id: u128,
    /// Draws the salts of segments.
    pub draw: Box<dyn FnMut() -> u64 + Send>,
}

impl std::fmt::Debug for Seeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeds")
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log of a data directory, or begins one in an empty or absent directory.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is created in a directory that is refused, except the lock file.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
        seeds: Seeds,
    ) -> Result<(Self, Recovery), OpenError> {
        let (identity, lock) = claim(&*disk, &config, &seeds)?;
        let mut image = scan(&*disk, &config.dir, identity.shard_count, seeds.boot_id)?;
        let found = &image.recovery;
        if config.refuse_power_loss && found.rebooted && !found.clean {
            return Err(OpenError::PowerLoss {
                dir: config.dir.clone(),
            });
        }
        if let Some(cut) = image.cut {
            perform_cut(&*disk, &config, &mut image, cut)?;
        }
        remove_leftovers(&*disk, &config, &image)?;
        check_owner(&config, &identity, &image)?;
        sync_last(&*disk, &config, &image)?;
        let recovery = image.recovery.clone();
        let parts = Parts {
            config: config.clone(),
            disk: Arc::clone(&disk),
            clock: Arc::clone(&clock),
            identity,
            boot_id: seeds.boot_id,
            draw: seeds.draw,
        };
        let stream = Stream::open(parts, image)?;
        let own_thread = config.own_thread;
        let shared = Arc::new(Shared {
            config,
            disk,
            clock,
            identity,
            stream: Mutex::new(stream),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            on_poison: Mutex::new(Vec::new()),
            on_full: Mutex::new(Vec::new()),
            on_work: OnceLock::new(),
            performing: Mutex::new(()),
            growing: Mutex::new(()),
            files_wanted: Mutex::new(false),
            files_wake: Condvar::new(),
            close_wake: Condvar::new(),
            threads: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(lock)),
        });
        // The start of a segment and the note of this open become durable before anything else.
        shared.flush(true);
        if let Some(reason) = shared.poison_reason() {
            let source = io::Error::other(reason);
            return Err(OpenError::io("write", shared.config.log_dir(), source));
        }
        if own_thread {
            Shared::spawn(&shared, "flux-log", Shared::run)?;
            Shared::spawn(&shared, "flux-log-files", Shared::run_files)?;
        }
        Ok((Self { shared }, recovery))
    }

    /// Whose directory it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let shard_count = self.shared.stream.lock().shards.len();
        Identity {
            shard_count: u32::try_from(shard_count).unwrap_or(u32::MAX),
            ..self.shared.identity
        }
    }

    /// Makes room for shards until there are so many; those that come are empty. There are never
    /// fewer than before. Durable when it returns. Blocks on the disk.
    ///
    /// # Errors
    /// If the folder's identity cannot be written; nothing is changed then. A log that has failed.
    ///
    /// # Panics
    /// If that is more than [`SHARDS_MAX`].
    pub fn grow(&self, shard_count: u32) -> Result<(), LogError> {
        assert!(shard_count <= SHARDS_MAX, "shard count out of range");
        let shared = &self.shared;
        // Whoever grows it is alone with the file.
        let _growing = shared.growing.lock();
        let identity = self.identity();
        if shard_count <= identity.shard_count {
            return Ok(());
        }
        if let Some(error) = shared.stream.lock().error() {
            return Err(error);
        }
        let grown = Identity {
            shard_count,
            ..identity
        };
        let written = grown.create(&*shared.disk, &shared.config.dir);
        written.map_err(|error| LogError::Identity {
            reason: error.to_string(),
        })?;
        shared.stream.lock().grow(narrow(u64::from(shard_count)));
        Ok(())
    }

    /// The part of one shard.
    ///
    /// # Panics
    /// If there is no such shard.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> ShardLog {
        assert!(id.get() < self.identity().shard_count, "no shard {id}");
        let shard = narrow(u64::from(id.get()));
        ShardLog {
            shared: Arc::clone(&self.shared),
            shard,
            id,
        }
    }

    /// Whether client writes can go on.
    #[must_use]
    pub fn space(&self) -> Space {
        self.shared.stream.lock().space()
    }

    /// Why the log failed, if it did.
    #[must_use]
    pub fn poison_reason(&self) -> Option<String> {
        self.shared.poison_reason()
    }

    /// Calls `notify` once if the log fails (at once if it has): the process must then stop.
    pub fn on_poison(&self, notify: Box<dyn FnOnce(&str) + Send>) {
        if let Some(reason) = self.poison_reason() {
            notify(&reason);
        } else {
            self.shared.on_poison.lock().push(notify);
        }
    }

    /// Calls `notify` whenever the disk is found to be full, again and again while it is.
    pub fn on_full(&self, notify: Box<dyn Fn() + Send>) {
        self.shared.on_full.lock().push(notify);
    }

    /// Calls `notify` whenever [`Log::pump`] has something to do: for logs opened without threads,
    /// by whoever drives them. It must not call the log. The first one stays.
    pub fn on_work(&self, notify: Box<dyn Fn() + Send + Sync>) {
        drop(self.shared.on_work.set(notify));
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.shared.stream.lock().stats()
    }

    /// Number of the active segment and bytes used in it.
    #[must_use]
    pub fn end(&self) -> (u64, u64) {
        self.shared.stream.lock().end()
    }

    /// Does what the log's own thread would do, once: for logs opened without it.
    pub fn pump(&self) {
        self.shared.turn(true);
        self.shared.keep_files();
    }

    /// Syncs everything, notes the orderly end, and releases the directory. Later calls on any
    /// handle fail as on a poisoned log. A second call does nothing.
    ///
    /// # Panics
    /// If a flush leaves a callback behind, which would be a bug here.
    pub fn close(&self) {
        if !self.shared.stop_threads() {
            return;
        }
        self.shared.flush(true);
        {
            let mut stream = self.shared.stream.lock();
            if stream.poison().is_none() {
                let _ = stream.push_node(RecordKind::Closed, &[]).is_ok();
            }
        }
        self.shared.flush(true);
        let callbacks = self.shared.stream.lock().poison_with("the log is closed");
        assert!(callbacks.is_empty(), "a flush leaves no callback behind");
        *self.shared.lock.lock() = None;
    }

    /// Ends the log as the death of its process would: nothing more is written or synced, no orderly
    /// end is noted, and the directory is released. Whoever waits for a flush hears nothing more.
    /// After [`Log::close`] it does nothing.
    pub fn abandon(&self) {
        if !self.shared.stop_threads() {
            return;
        }
        let unheard = self
            .shared
            .stream
            .lock()
            .poison_with("the log was abandoned");
        drop(unheard);
        *self.shared.lock.lock() = None;
    }
}

/// Takes the directory: checks what is in it, locks it, and gives it an identity if it is new.
fn claim(
    disk: &dyn Disk,
    config: &LogConfig,
    seeds: &Seeds,
) -> Result<(Identity, Box<dyn LockGuard>), OpenError> {
    let dir = &config.dir;
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| OpenError::io(action, path, source)
    };
    if disk.exists(dir) {
        refuse_foreign(disk, dir)?;
    }
    let known = Identity::read(disk, dir)?;
    let is_other = |known: &Identity| {
        let has_grown = config.may_have_grown && config.shard_count < known.shard_count;
        known.shard_count != config.shard_count && !has_grown
    };
    if let Some(identity) = known.filter(is_other) {
        let (found, asked) = (identity.shard_count, config.shard_count);
        return Err(OpenError::ShardCount {
            dir: dir.clone(),
            found,
            asked,
        });
    }
    disk.create_dir_all(dir).map_err(io("create", dir))?;
    let lock = disk.lock(&dir.join(LOCK_NAME)).map_err(io("lock", dir))?;
    let Some(lock) = lock else {
        return Err(OpenError::InUse { dir: dir.clone() });
    };
    for sub in [config.log_dir(), config.snapshot_dir()] {
        disk.create_dir_all(&sub).map_err(io("create", &sub))?;
    }
    disk.sync_dir(dir).map_err(io("sync", dir))?;
    let identity = match known {
        Some(identity) => identity,
        None => {
            let shard_count = config.shard_count;
            let identity = Identity {
                cluster: seeds.cluster,
                node: seeds.node,
                shard_count,
            };
            identity.create(disk, dir)?;
            identity
        }
    };
    Ok((identity, lock))
}

/// A directory with files but without our identity belongs to somebody else.
fn refuse_foreign(disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
    let names = disk
        .read_dir(dir)
        .map_err(|e| OpenError::io("list", dir, e))?;
    // A node of a cluster notes its id before it has a log.
    if names
        .iter()
        .any(|name| name == IDENTITY_NAME || name == MEMBER_NAME)
    {
        return Ok(());
    }
    let ours = [
        "IDENTITY.tmp",
        "MEMBER.tmp",
        LOCK_NAME,
        LOST_AND_FOUND_NAME,
        "log",
        "snap",
    ];
    let log_dir = dir.join("log");
    let segments = if disk.exists(&log_dir) {
        disk.read_dir(&log_dir)
    } else {
        Ok(Vec::new())
    };
    let segments = segments.map_err(|e| OpenError::io("list", log_dir, e))?;
    let orphan = segments
        .into_iter()
        .find(|name| segment_number(name).is_some());
    let foreign = names
        .into_iter()
        .find(|name| !ours.contains(&name.as_str()));
    match foreign.or_else(|| orphan.map(|name| format!("log/{name}"))) {
        Some(found) => Err(OpenError::ForeignFiles {
            dir: dir.to_path_buf(),
            found,
        }),
        None => Ok(()),
    }
}

/// Cuts a torn tail: drops later segments, shortens this one, and gives it its room back.
fn perform_cut(
    disk: &dyn Disk,
    config: &LogConfig,
    image: &mut Image,
    cut: Cut,
) -> Result<(), OpenError> {
    let log_dir = config.log_dir();
    let later = image.segments.split_off(&(cut.segment + 1));
    for number in later.into_keys().rev() {
        let path = log_dir.join(segment_name(number));
        disk.remove(&path)
            .map_err(|e| OpenError::io("remove", path.clone(), e))?;
        disk.sync_dir(&log_dir)
            .map_err(|e| OpenError::io("sync", log_dir.clone(), e))?;
    }
    if let Some(segment) = image.segments.get_mut(&cut.segment) {
        let path = log_dir.join(segment_name(cut.segment));
        let file = &segment.file;
        let redo = || -> io::Result<()> {
            file.set_size(cut.offset)?;
            file.allocate(segment.capacity.max(cut.offset))?;
            file.sync_all()
        };
        redo().map_err(|source| OpenError::io("cut", path, source))?;
    }
    Ok(())
}

/// Removes what an earlier process was preparing, but for the room of a snapshot: on a full disk
/// it is what this process needs.
fn remove_leftovers(disk: &dyn Disk, config: &LogConfig, image: &Image) -> Result<(), OpenError> {
    for (dir, suffix) in [
        (config.log_dir(), PREPARED_SUFFIX),
        (config.snapshot_dir(), ".tmp"),
    ] {
        let names = disk
            .read_dir(&dir)
            .map_err(|e| OpenError::io("list", dir.clone(), e))?;
        for name in names.iter().filter(|name| name.ends_with(suffix)) {
            let path = dir.join(name);
            disk.remove(&path)
                .map_err(|e| OpenError::io("remove", path, e))?;
        }
    }
    snapshot::remove_superseded(disk, config, &image.shards)
}

/// Refuses segments that another node wrote, or that this one wrote in another life.
fn check_owner(config: &LogConfig, identity: &Identity, image: &Image) -> Result<(), OpenError> {
    let foreign = image
        .segments
        .values()
        .map(|segment| &segment.header)
        .find(|header| header.node != identity.node || header.cluster != identity.cluster);
    match foreign {
        Some(header) => Err(OpenError::ForeignFiles {
            dir: config.dir.clone(),
            found: format!("log/{}", segment_name(header.number)),
        }),
        None => Ok(()),
    }
}

/// Syncs what an earlier process may have written and not synced before it died. At most the last
/// two segments can hold such bytes.
fn sync_last(disk: &dyn Disk, config: &LogConfig, image: &Image) -> Result<(), OpenError> {
    let log_dir = config.log_dir();
    for segment in image.segments.values().rev().take(2) {
        segment
            .file
            .sync_all()
            .map_err(|e| OpenError::io("sync", log_dir.clone(), e))?;
    }
    disk.sync_dir(&log_dir)
        .map_err(|e| OpenError::io("sync", log_dir, e))
}

impl Shared {
    fn poison_reason(&self) -> Option<String> {
        if !self.poisoned.load(Ordering::Acquire) {
            return None;
        }
        self.stream.lock().poison().cloned()
    }

    /// A salt for a snapshot, and the time.
    pub(crate) fn draw_salt(&self) -> (u64, flux_types::UnixMillis) {
        let mut stream = self.stream.lock();
        (stream.draw_salt(), stream.now())
    }

    pub(crate) fn block_reader(&self, segment: u64) -> Result<BlockReader, LogError> {
        let readable = self.stream.lock().readable(segment);
        let readable = readable.ok_or(LogError::Damaged { segment, offset: 0 })?;
        Ok(BlockReader::new(segment, readable))
    }

    /// Appends under the stream's lock and sees to it that `flushed` is called, whatever this
    /// answers.
    ///
    /// # Errors
    /// If the log has failed: what was to be appended is dropped, or nobody knows whether it is
    /// written.
    pub(crate) fn append(
        &self,
        flushed: Flushed,
        durably: bool,
        push: impl FnOnce(&mut Stream) -> io::Result<()>,
    ) -> Result<(), LogError> {
        let mut stream = self.stream.lock();
        if let Some(error) = stream.error() {
            drop(stream);
            flushed(Err(error.clone()));
            return Err(error);
        }
        let inline = self.config.fsync != FsyncPolicy::Always;
        // First of all, so that a failure in between is told too.
        stream.call_when_flushed(flushed, durably);
        let result = push(&mut stream).and_then(|()| {
            if inline {
                stream.write_inline()
            } else {
                Ok(Vec::new())
            }
        });
        match result {
            Ok(ready) => {
                let (sync, files) = (stream.wants_sync(), stream.wants_files());
                drop(stream);
                ready.into_iter().for_each(|callback| callback(Ok(())));
                if sync {
                    self.want_turn();
                }
                if files {
                    self.want_files();
                }
                Ok(())
            }
            Err(error) => {
                drop(stream);
                Err(self.fail(&format!("write failed: {error}"), Vec::new()))
            }
        }
    }

    /// Appends something that nobody waits for: it is written with whatever comes next.
    pub(crate) fn note(&self, push: impl FnOnce(&mut Stream) -> io::Result<()>) {
        let mut stream = self.stream.lock();
        if stream.poison().is_some() {
            return;
        }
        let result = push(&mut stream);
        drop(stream);
        if let Err(error) = result {
            self.fail(&format!("write failed: {error}"), Vec::new());
        }
    }

    pub(crate) fn make_room(&self, record_bytes: u64, essential: bool) -> Result<(), LogError> {
        let mut stream = self.stream.lock();
        let result = stream.make_room(record_bytes, essential);
        let files = stream.wants_files();
        drop(stream);
        if files {
            self.want_files();
        }
        result
    }

    pub(crate) fn keep_snapshot_room(&self, shard: usize, bytes: u64) {
        let mut stream = self.stream.lock();
        stream.keep_snapshot_room(shard, bytes);
        let files = stream.wants_files();
        drop(stream);
        if files {
            self.want_files();
        }
    }

    /// A snapshot that had the room for one is there or given up.
    pub(crate) fn return_snapshot_room(&self) {
        self.stream.lock().return_snapshot_room();
        self.want_files();
    }

    fn want_files(&self) {
        *self.files_wanted.lock() = true;
        self.files_wake.notify_one();
        self.tell_driver();
    }

    fn want_turn(&self) {
        self.wake.notify_one();
        self.tell_driver();
    }

    fn tell_driver(&self) {
        if let Some(notify) = self.on_work.get() {
            notify();
        }
    }

    /// Tells everyone that the log has failed. There is no way back: after a failed write or sync
    /// nothing is known about what the disk holds. Answers what is told.
    fn fail(&self, reason: &str, mut callbacks: Vec<Flushed>) -> LogError {
        let mut stream = self.stream.lock();
        callbacks.extend(stream.poison_with(reason));
        let reason = stream.poison().cloned().unwrap_or_default();
        drop(stream);
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(%reason, "log failed; nothing is acknowledged from here on");
        // Those who must stop learn of it first: to the others it looks like a failure of their own.
        for notify in std::mem::take(&mut *self.on_poison.lock()) {
            notify(&reason);
        }
        let error = LogError::Poisoned { reason };
        for callback in callbacks {
            callback(Err(error.clone()));
        }
        error
    }

    /// Writes and syncs what waits, if anything must be (or `all`, whatever is unsynced).
    fn flush(&self, all: bool) {
        let _one_at_a_time = self.performing.lock();
        let work = {
            let mut stream = self.stream.lock();
            if stream.poison().is_some() || !(all || stream.wants_sync()) {
                return;
            }
            stream.take_work()
        };
        if work.is_empty() {
            return;
        }
        let begun = self.clock.now();
        match work.perform(&*self.disk, &self.config.log_dir()) {
            Ok(()) => {
                let took = self.clock.now().saturating_since(begun);
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                let mut stream = self.stream.lock();
                let needed = stream.durably_needed();
                let callbacks = stream.complete(work, nanos);
                let unneeded = stream.durably_needed() != needed;
                drop(stream);
                callbacks.into_iter().for_each(|callback| callback(Ok(())));
                if unneeded {
                    self.want_files();
                }
            }
            Err(error) => {
                self.fail(&format!("sync failed: {error}"), work.into_callbacks());
            }
        }
    }

    /// One turn of the writer.
    fn turn(&self, tick: bool) {
        self.flush(tick && self.config.fsync == FsyncPolicy::EverySecond);
    }

    /// Deletes what is not needed, then prepares what is missing, until the disk is full.
    fn keep_files(&self) -> Space {
        if self.poisoned.load(Ordering::Acquire) {
            return Space::Enough;
        }
        self.delete_unneeded();
        loop {
            // The lock is not held while a file is made.
            let preparation = self.stream.lock().preparation();
            let Some(preparation) = preparation else {
                return Space::Enough;
            };
            match preparation.perform(&*self.disk) {
                Ok(made) => {
                    let is_full = made.is_none();
                    let oldest = is_full.then(|| self.stream.lock().take_oldest()).flatten();
                    if let Some(path) = oldest {
                        give_up(&*self.disk, &self.config.log_dir(), &path);
                        continue;
                    }
                    let replaced = self.stream.lock().prepared(&preparation, made);
                    if let Some(path) = replaced {
                        // What nobody needs costs space and nothing else.
                        let _ = self.disk.remove(&path).is_ok();
                    }
                    if is_full {
                        for notify in &*self.on_full.lock() {
                            notify();
                        }
                        return Space::Full;
                    }
                }
                Err(error) => {
                    self.fail(&format!("cannot prepare a file: {error}"), Vec::new());
                    return Space::Enough;
                }
            }
        }
    }

    /// Deletes segments, the oldest first, each removal durable before the next: what remains is
    /// always without gaps. A failed deletion costs space and nothing else.
    fn delete_unneeded(&self) {
        let paths = self.stream.lock().take_unneeded();
        for path in paths {
            let removed = self.disk.remove(&path);
            let synced = removed.and_then(|()| self.disk.sync_dir(&self.config.log_dir()));
            if let Err(error) = synced {
                tracing::warn!(path = %path.display(), %error, "cannot delete a segment");
                return;
            }
        }
    }

    fn spawn(shared: &Arc<Self>, name: &str, run: fn(&Self)) -> Result<(), OpenError> {
        let worker = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let spawned = thread.spawn(move || run(&worker));
        let handle = spawned.map_err(|e| OpenError::io("start a thread for", "log", e))?;
        shared.threads.lock().push(handle);
        Ok(())
    }

    /// Ends the threads; `false` if somebody did so before.
    fn stop_threads(&self) -> bool {
        if self.closing.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.wake.notify_all();
        self.want_files();
        self.close_wake.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join().is_ok();
        }
        true
    }

    /// The thread of files: works when it is told to, and on a full disk tries again and again.
    fn run_files(&self) {
        while !self.closing.load(Ordering::Acquire) {
            let space = self.keep_files();
            let mut wanted = self.files_wanted.lock();
            if space == Space::Full {
                // Every append to a full disk asks for files; not each needs to hear no again.
                let _ = self.close_wake.wait_for(&mut wanted, FULL_PAUSE);
            } else if !*wanted {
                let _ = self.files_wake.wait_for(&mut wanted, TICK);
            }
            *wanted = false;
        }
    }

    /// The writer's thread.
    fn run(&self) {
        let mut tick_due = self.clock.now() + TICK;
        while !self.closing.load(Ordering::Acquire) {
            {
                let mut stream = self.stream.lock();
                let idle = stream.poison().is_some() || !stream.wants_sync();
                if idle && !self.closing.load(Ordering::Acquire) {
                    let wait = tick_due.saturating_since(self.clock.now());
                    let _ = self
                        .wake
                        .wait_for(&mut stream, wait.max(Duration::from_millis(1)));
                }
            }
            let now = self.clock.now();
            let tick = tick_due <= now;
            if tick {
                tick_due = now + TICK;
            }
            self.turn(tick);
        }
    }
}
