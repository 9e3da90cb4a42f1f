//! Where events go: standard output or a file.
//!
//! An output *accepts* events and *settles* them; only what is settled is acknowledged to the
//! broker. A file settles by writing and syncing, so that what was acknowledged survives a power cut.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use flux_env::{Disk, File, OpenMode};
use serde_json::Value;

use super::checkpoint::folder;
use super::{Arrival, EventId, Progress, pretty};

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line for people; with colors or without.
    Pretty {
        /// Whether to color it.
        color: bool,
    },
    /// One line of JSON, the event itself.
    Json,
}

impl Format {
    fn line(self, arrival: &Arrival) -> String {
        match self {
            Self::Pretty { color } => pretty::line(&arrival.event, color),
            Self::Json => arrival.line.clone(),
        }
    }
}

/// Takes events.
pub trait Output: fmt::Debug + Send {
    /// Takes an event; it may be kept in memory until it is settled.
    ///
    /// # Errors
    /// As the device says; nothing may be settled after that.
    fn accept(&mut self, arrival: &Arrival) -> io::Result<()>;

    /// Makes visible what was accepted: nothing more is at hand for now.
    ///
    /// # Errors
    /// As the device says.
    fn nudge(&mut self) -> io::Result<()>;

    /// Finishes what was accepted. The size of the file, where there is one.
    ///
    /// # Errors
    /// As the device says; what was accepted must then not be acknowledged.
    fn settle(&mut self) -> io::Result<Option<u64>>;
}

/// Writes to a stream such as standard output.
pub struct StreamOutput<W> {
    stream: W,
    format: Format,
    buffer: Vec<u8>,
}

impl<W> fmt::Debug for StreamOutput<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOutput").finish_non_exhaustive()
    }
}

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 64 << 10;

impl<W: Write + Send> StreamOutput<W> {
    /// Writes to `stream`.
    pub const fn new(stream: W, format: Format) -> Self {
        Self {
            stream,
            format,
            buffer: Vec::new(),
        }
    }
}

impl<W: Write + Send> Output for StreamOutput<W> {
    fn accept(&mut self, arrival: &Arrival) -> io::Result<()> {
        self.buffer
            .extend_from_slice(self.format.line(arrival).as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER_BYTES {
            self.nudge()?;
        }
        Ok(())
    }

    fn nudge(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        self.stream.flush()
    }

    fn settle(&mut self) -> io::Result<Option<u64>> {
        self.nudge()?;
        Ok(None)
    }
}

/// Appends to a file.
#[derive(Debug)]
pub struct FileOutput {
    file: Arc<dyn File>,
    format: Format,
    buffer: Vec<u8>,
    size: u64,
}

impl FileOutput {
    /// Opens or creates the file. Events that an earlier run wrote and did not get to note in its
    /// checkpoint are noted in `progress`, and an unfinished last line of that run is cut.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        format: Format,
        progress: &mut Progress,
    ) -> io::Result<Self> {
        let file = match disk.open(path, OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = disk.open(path, OpenMode::CreateNew)?;
                disk.sync_dir(folder(path))?;
                file
            }
            Err(error) => return Err(error),
        };
        let mut output = Self {
            size: file.size_bytes()?,
            file,
            format,
            buffer: Vec::new(),
        };
        match progress.sink_bytes {
            Some(noted) if noted < output.size => output.recover(noted, progress)?,
            _ => output.begin_a_line()?,
        }
        progress.sink_bytes = Some(output.size);
        Ok(output)
    }

    /// Reads what was written after the last checkpoint.
    fn recover(&mut self, noted: u64, progress: &mut Progress) -> io::Result<()> {
        let mut at = noted;
        let mut rest = Vec::new();
        let mut piece = vec![0; BUFFER_BYTES];
        loop {
            let read_at = at + rest.len() as u64;
            let count = self.file.read_at(&mut piece, read_at)?;
            rest.extend_from_slice(piece.get(..count).unwrap_or_default());
            while let Some(end) = memchr(&rest) {
                let line: Vec<u8> = rest.drain(..=end).collect();
                at += line.len() as u64;
                if let Some(id) = id_of(&line) {
                    progress.marks.insert(&id);
                    progress.events += 1;
                }
            }
            if count == 0 {
                break;
            }
        }
        if !rest.is_empty() {
            self.file.set_size(at)?;
        }
        self.size = at;
        self.file.sync_all()
    }

    /// A file that somebody else left without an end of line gets one.
    fn begin_a_line(&mut self) -> io::Result<()> {
        let Some(last) = self.size.checked_sub(1) else {
            return Ok(());
        };
        let mut byte = [0];
        self.file.read_at(&mut byte, last)?;
        if byte != *b"\n" {
            self.file.write_all_at(b"\n", self.size)?;
            self.size += 1;
        }
        Ok(())
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

fn id_of(line: &[u8]) -> Option<EventId> {
    let event: Value = serde_json::from_slice(line).ok()?;
    EventId::parse(event.get("source")?.as_str()?, event.get("id")?.as_str()?)
}

impl Output for FileOutput {
    fn accept(&mut self, arrival: &Arrival) -> io::Result<()> {
        self.buffer
            .extend_from_slice(self.format.line(arrival).as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER_BYTES {
            self.nudge()?;
        }
        Ok(())
    }

    fn nudge(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.size)?;
        self.size += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn settle(&mut self) -> io::Result<Option<u64>> {
        self.nudge()?;
        self.file.sync_data()?;
        Ok(Some(self.size))
    }
}

#[cfg(test)]
mod tests {
    use flux_env::{CrashLoss, SeededRng, SimDisk};

    use super::*;

    fn arrival(revision: u64) -> Arrival {
        let text = format!(
            r#"{{"specversion":"1.0","id":"0:1:{revision}","source":"/flux/a/shards/0","type":"t"}}"#
        );
        Arrival::structured(text.as_bytes()).unwrap()
    }

    fn open(disk: &SimDisk, progress: &mut Progress) -> FileOutput {
        FileOutput::open(disk, Path::new("/d/events"), Format::Json, progress).unwrap()
    }

    fn content(disk: &SimDisk) -> String {
        let file = disk.open(Path::new("/d/events"), OpenMode::Read).unwrap();
        let mut bytes = vec![0; usize::try_from(file.size_bytes().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn events_that_no_checkpoint_tells_of_are_found_in_the_file_and_a_torn_line_is_cut() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let mut progress = Progress::default();
        let mut output = open(&disk, &mut progress);
        output.accept(&arrival(1)).unwrap();
        progress.sink_bytes = output.settle().unwrap();
        progress.marks.insert(&arrival(1).id.unwrap());
        progress.events = 1;
        // The process dies after the write of 2 and in the middle of that of 3.
        output.accept(&arrival(2)).unwrap();
        output.nudge().unwrap();
        output
            .file
            .write_all_at(br#"{"specversion":"1.0","id":"0:1:3""#, output.size)
            .unwrap();
        drop(output);
        let mut output = open(&disk, &mut progress);
        assert!(progress.marks.contains(&arrival(2).id.unwrap()));
        assert!(!progress.marks.contains(&arrival(3).id.unwrap()));
        assert_eq!(progress.events, 2);
        output.accept(&arrival(3)).unwrap();
        assert_eq!(output.settle().unwrap(), Some(content(&disk).len() as u64));
        let lines: Vec<_> = (1..4)
            .map(|revision| arrival(revision).line + "\n")
            .collect();
        assert_eq!(content(&disk), lines.concat());
    }

    #[test]
    fn what_is_settled_survives_a_power_cut() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        let mut output = open(&disk, &mut Progress::default());
        output.accept(&arrival(1)).unwrap();
        output.settle().unwrap();
        disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
        assert_eq!(content(&disk), arrival(1).line + "\n");
    }

    #[test]
    fn a_full_disk_settles_nothing() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let mut output = open(&disk, &mut Progress::default());
        disk.set_capacity_bytes(Some(10));
        output.accept(&arrival(1)).unwrap();
        assert!(output.settle().is_err());
    }

    #[test]
    fn a_foreign_file_is_continued_on_a_new_line() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk
            .open(Path::new("/d/events"), OpenMode::CreateNew)
            .unwrap();
        file.write_all_at(b"notes", 0).unwrap();
        let mut output = open(&disk, &mut Progress::default());
        output.accept(&arrival(1)).unwrap();
        output.settle().unwrap();
        assert_eq!(content(&disk), format!("notes\n{}\n", arrival(1).line));
    }

    #[test]
    fn a_stream_gets_lines_when_it_is_nudged() {
        let mut bytes = Vec::new();
        let mut output = StreamOutput::new(&mut bytes, Format::Json);
        output.accept(&arrival(1)).unwrap();
        output.nudge().unwrap();
        output.accept(&arrival(2)).unwrap();
        assert_eq!(output.settle().unwrap(), None);
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, format!("{}\n{}\n", arrival(1).line, arrival(2).line));
    }
}
