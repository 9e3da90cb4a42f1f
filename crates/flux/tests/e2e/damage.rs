//! Damage on disk: a torn tail is cut, anything else stops the start and is named.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::resp::{Value, encode};
use crate::harness::{Start, flux, stdout};

const KEYS: usize = 400;

/// A data folder with `KEYS` keys, one batch for each, as a killed process left it.
fn killed(shards: &str) -> TempDir {
    let process = Start::node().args(&["--shards", shards]).ready();
    let mut connection = process.connect();
    for number in 0..KEYS {
        let reply = connection.command(&["SET", &format!("key:{number}"), &value(number)]);
        assert_eq!(reply, Value::ok());
    }
    process.kill()
}

/// Long enough to be found in a file, and different everywhere.
fn value(number: usize) -> String {
    format!("the value of key number {number:06}, which nothing else has")
}

/// The segments of the log with their bytes, oldest first.
fn segments(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let log = folder.join("flux-data/log");
    let mut paths: Vec<_> = std::fs::read_dir(&log)
        .expect("the log has a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).expect("a segment is readable");
            (path, bytes)
        })
        .collect()
}

/// Where a value stands in the log.
fn find(folder: &Path, text: &str) -> (PathBuf, u64) {
    for (path, bytes) in segments(folder) {
        let found = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        if let Some(position) = found {
            return (path, position as u64);
        }
    }
    panic!("{text:?} is not in the log");
}

#[test]
fn a_torn_tail_is_cut_and_everything_before_it_is_served() {
    for shards in ["1", "4"] {
        let folder = killed(shards);
        let (path, position) = find(folder.path(), &value(KEYS - 1));
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("its own file");
        // The last record loses its end, as if the power had gone.
        file.set_len(position + 10).expect("its own file");
        let process = Start::node().over(folder).ready();
        let mut connection = process.connect();
        for number in 0..KEYS - 1 {
            let reply = connection.command(&["GET", &format!("key:{number}")]);
            assert_eq!(reply, Value::bulk(&value(number)), "{number}");
        }
        assert_eq!(
            connection.line(&format!("GET key:{}", KEYS - 1)),
            Value::Nil
        );
        assert_eq!(connection.line("SET after cut"), Value::ok());
        let process = Start::node().over(process.stop()).ready();
        assert_eq!(process.connect().line("GET after"), Value::bulk("cut"));
    }
}

#[test]
fn damage_in_the_middle_stops_the_start_and_names_the_place() {
    for shards in ["1", "4"] {
        let folder = killed(shards);
        let (path, position) = find(folder.path(), &value(KEYS / 2));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("its own file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, position)
            .expect("it was just read");
        file.write_all_at(&[byte[0] ^ 0x10], position)
            .expect("its own file");

        let begun = Instant::now();
        let mut process = Start::node().over(folder).spawn();
        let status = process.wait();
        let stderr = process.stderr();
        assert_eq!(status.code(), Some(3), "{stderr}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        assert!(!process.ready_file().exists());
        let line = stderr
            .lines()
            .rfind(|line| line.starts_with("flux: "))
            .unwrap_or_else(|| panic!("no line says what is wrong: {stderr}"));
        let segment = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        assert!(line.contains(&segment), "the segment: {line}");
        assert!(line.contains("offset"), "the offset: {line}");
        if shards == "1" {
            assert!(line.contains("shard 0"), "the shard: {line}");
        }
        assert!(line.contains("flux log inspect"), "the command: {line}");

        // The command that it names works, and says the same.
        let command = line
            .split("flux log inspect ")
            .nth(1)
            .expect("it has an argument");
        let argument = command
            .split(['`', '\'', '"', ';', ','])
            .next()
            .unwrap_or_default()
            .trim();
        let folder = process.into_folder();
        let inspected = flux(folder.path(), &["log", "inspect", argument]);
        let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
        assert!(
            text.contains(&segment),
            "{text}\n{}",
            String::from_utf8_lossy(&inspected.stderr)
        );
        let verified = flux(folder.path(), &["log", "verify", argument]);
        assert_eq!(verified.status.code(), Some(3), "{verified:?}");

        // It was only looked at: with the bit turned back everything is there.
        file.write_all_at(&byte, position).expect("its own file");
        let verified = flux(folder.path(), &["log", "verify", argument]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        let process = Start::node().over(folder).ready();
        let mut connection = process.connect();
        for number in 0..KEYS {
            let reply = connection.command(&["GET", &format!("key:{number}")]);
            assert_eq!(reply, Value::bulk(&value(number)), "{number}");
        }
    }
}

#[test]
fn a_sound_log_is_verified_inspected_and_dumped() {
    let process = Start::node().ready();
    let mut connection = process.connect();
    connection
        .send(&encode(&["INCR", "needle"]).repeat(3))
        .expect("the node reads");
    for number in 1..=3 {
        assert_eq!(connection.reply().expect("a reply"), Value::Integer(number));
    }
    let folder = process.stop();
    let verified = stdout(&flux(folder.path(), &["log", "verify", "flux-data"]));
    assert!(!verified.is_empty());
    let inspected = stdout(&flux(folder.path(), &["log", "inspect", "flux-data"]));
    assert!(inspected.contains("shard"), "{inspected}");
    let dumped = stdout(&flux(folder.path(), &["log", "dump", "flux-data"]));
    assert!(dumped.contains("needle"), "{dumped}");
    let absent = flux(folder.path(), &["log", "verify", "absent"]);
    assert_eq!(absent.status.code(), Some(2), "{absent:?}");
    assert_eq!(String::from_utf8_lossy(&absent.stderr).lines().count(), 1);
    // Looking changes nothing.
    let process = Start::node().over(folder).ready();
    assert_eq!(process.connect().line("GET needle"), Value::bulk("3"));
}

#[test]
fn the_log_of_a_running_node_is_not_looked_at_twice() {
    let process = Start::node().ready();
    let mut connection = process.connect();
    assert_eq!(connection.line("SET a 1"), Value::ok());
    // Reading beside a writer could only mistake a half-written record for damage.
    let output = flux(process.folder(), &["log", "verify", "flux-data"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("in use"),
        "{output:?}"
    );
    assert_eq!(connection.line("GET a"), Value::bulk("1"));
}
