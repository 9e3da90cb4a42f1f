//! The machine's own clock, disk and entropy, on Linux.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the room that may reach the machine"
)]

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::{Clock, Disk, File, Instant, LockGuard, OpenMode};

/// Largest slew: one millisecond of correction for this many milliseconds of elapsed time.
const SLEW_INTERVAL_MILLIS: u64 = 100;

/// The machine's clock.
#[derive(Debug)]
pub struct RealClock {
    /// Unix milliseconds at boot, as this clock sees it.
    offset_millis: AtomicI64,
    /// Milliseconds since boot when the offset was last slewed.
    slewed_at_millis: AtomicU64,
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

pub(crate) fn boot_nanos() -> u64 {
    nanos(clock_gettime(ClockId::Boottime))
}

fn signed(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

impl RealClock {
    /// Anchors a clock to wall time as it is now.
    #[must_use]
    pub fn new() -> Self {
        let boot_millis = boot_nanos() / 1_000_000;
        Self {
            offset_millis: AtomicI64::new(wall_offset_millis(boot_millis)),
            slewed_at_millis: AtomicU64::new(boot_millis),
        }
    }
}

/// Wall time minus time since boot.
fn wall_offset_millis(boot_millis: u64) -> i64 {
    let wall_millis = nanos(clock_gettime(ClockId::Realtime)) / 1_000_000;
    signed(wall_millis).saturating_sub(signed(boot_millis))
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(boot_nanos())
    }

    fn unix_millis(&self) -> u64 {
        let boot_millis = boot_nanos() / 1_000_000;
        let slewed_at = self.slewed_at_millis.load(Ordering::Relaxed);
        // One thread at a time wins the right to slew by a millisecond; since at least a hundred
        // have passed, readings never go backward.
        if boot_millis >= slewed_at.saturating_add(SLEW_INTERVAL_MILLIS)
            && self
                .slewed_at_millis
                .compare_exchange(slewed_at, boot_millis, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            let drift =
                wall_offset_millis(boot_millis) - self.offset_millis.load(Ordering::Relaxed);
            self.offset_millis
                .fetch_add(drift.signum(), Ordering::AcqRel);
        }
        let unix = signed(boot_millis).saturating_add(self.offset_millis.load(Ordering::Acquire));
        u64::try_from(unix).unwrap_or(0)
    }

    fn step_millis(&self) -> i64 {
        let offset = wall_offset_millis(boot_nanos() / 1_000_000);
        offset.saturating_sub(self.offset_millis.load(Ordering::Acquire))
    }
}

/// Nanoseconds since the Unix epoch as the wall clock has them, steps and all: for what is laid beside
/// the doings of other machines, such as spans. Nothing is decided by it.
#[must_use]
pub fn wall_nanos() -> u64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// 64 bits from the kernel's entropy pool.
///
/// # Errors
/// If `/dev/urandom` cannot be read.
pub fn entropy_u64() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    let source = fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut { source }, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Identifies this boot of the machine: unsynced writes survive exactly as long as it stays the same.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> io::Result<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Makes the calling thread, and those that it starts from now on, give way to others: 0 is as every
/// thread, 19 the most.
///
/// # Errors
/// When the system refuses, as it does a thread that wants to be less nice than it is.
pub fn lower_priority(niceness: i32) -> io::Result<()> {
    // Linux takes "this process" for the calling thread.
    Ok(rustix::process::setpriority_process(None, niceness)?)
}

/// Processor time that the calling thread has used.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(nanos(clock_gettime(ClockId::ThreadCPUTime)))
}

/// How long a thread ran, and how long it waited for a processor while it could have run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// Time on a processor.
    pub ran: Duration,
    /// Time in line for one.
    pub waited: Duration,
}

/// Tells the times of one thread to any other.
#[derive(Debug)]
pub struct ThreadMeter {
    file: fs::File,
}

impl ThreadMeter {
    /// A meter of the calling thread.
    ///
    /// # Errors
    /// If the kernel keeps no such account.
    pub fn of_this_thread() -> io::Result<Self> {
        let file = fs::File::open("/proc/thread-self/schedstat")?;
        let meter = Self { file };
        meter.read()?;
        Ok(meter)
    }

    /// The times since the thread began.
    ///
    /// # Errors
    /// If the thread has ended, or the account has another form.
    pub fn read(&self) -> io::Result<ThreadTimes> {
        let mut text = [0_u8; 64];
        let length = self.file.read_at(&mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        let mut numbers = text.split(u8::is_ascii_whitespace);
        let mut next = || {
            let number = std::str::from_utf8(numbers.next()?).ok()?;
            number.parse().ok().map(Duration::from_nanos)
        };
        match (next(), next()) {
            (Some(ran), Some(waited)) => Ok(ThreadTimes { ran, waited }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(fs::File);

#[derive(Debug)]
struct RealLock {
    /// Closing the file releases its `flock`.
    _file: fs::File,
}

impl LockGuard for RealLock {}

impl Disk for RealDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(0o640);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn LockGuard>>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(RealLock { _file: file }))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.0.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system that does not tell.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.0.set_len(size_bytes)
    }

    fn allocate(&self, size_bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, size_bytes) {
            Ok(()) => Ok(()),
            // A file system without fallocate: the size alone must do, and a full disk shows later.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                self.0.set_len(self.0.metadata()?.len().max(size_bytes))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_time_starts_at_wall_time_and_never_goes_back() {
        let clock = RealClock::new();
        let mut last = clock.unix_millis();
        let wall = nanos(clock_gettime(ClockId::Realtime)) / 1_000_000;
        assert!(wall.abs_diff(last) < 1000);
        for _ in 0..10_000 {
            let next = clock.unix_millis();
            assert!(next >= last);
            last = next;
        }
        assert!(clock.step_millis().abs() < 1000);
    }

    #[test]
    fn second_lock_of_a_file_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let first = RealDisk.lock(&path).unwrap();
        assert!(first.is_some());
        assert!(RealDisk.lock(&path).unwrap().is_none());
        drop(first);
        assert!(RealDisk.lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_meter_tells_the_time_of_its_thread_to_others_and_nothing_once_it_has_ended() {
        let spin = || {
            let begin = thread_cpu_time();
            while thread_cpu_time() < begin + Duration::from_millis(20) {}
        };
        let (told, meters) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            spin();
            told.send(ThreadMeter::of_this_thread().unwrap()).unwrap();
            let _ = ended.recv();
        });
        let meter = meters.recv().unwrap();
        let ran = meter.read().unwrap().ran;
        assert!((15..10_000).contains(&ran.as_millis()), "{ran:?}");
        drop(end);
        thread.join().unwrap();
        assert!(meter.read().is_err());
    }

    #[test]
    fn only_the_thread_that_asks_becomes_nicer() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let inside = std::thread::spawn(move || {
            lower_priority(19).unwrap();
            niceness()
        });
        assert_eq!(inside.join().unwrap(), 19);
        assert_eq!(niceness(), before);
    }

    #[test]
    fn entropy_differs_and_boot_id_does_not() {
        assert_ne!(entropy_u64().unwrap(), entropy_u64().unwrap());
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
