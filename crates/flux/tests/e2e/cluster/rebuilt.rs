//! A log that is damaged in the middle: rebuilt from the others, or not guessed away.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::nodes::{Nodes, insist};
use crate::harness::resp::Value;
use crate::harness::wait_until;

const KEYS: usize = 200;

/// Different everywhere, so that it can be found in a file.
fn value(number: usize) -> String {
    format!("the value of key number {number:06}, which nothing else has")
}

/// Changes a byte in the middle of what a node has acknowledged.
fn damage(folder: &Path) {
    overwrite(folder, &value(KEYS / 2), b"#");
}

/// Undoes that.
fn mend(folder: &Path) {
    let text = value(KEYS / 2);
    let damaged = format!("#{}", text.get(1..).expect("ASCII"));
    let first = text.get(..1).expect("ASCII");
    overwrite(folder, &damaged, first.as_bytes());
}

/// Writes over the beginning of a text in the log.
fn overwrite(folder: &Path, text: &str, with: &[u8]) {
    let log = folder.join("flux-data/log");
    for entry in std::fs::read_dir(log).expect("the log has a folder") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a segment is readable");
        let mut windows = bytes.windows(text.len());
        if let Some(position) = windows.position(|window| window == text.as_bytes()) {
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            let file = file.expect("a segment is writable");
            file.write_all_at(with, position as u64)
                .expect("a byte is written");
            return;
        }
    }
    panic!("{text:?} is not in the log");
}

fn filled() -> Nodes {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    let mut connection = nodes.connect(0);
    for number in 0..KEYS {
        let key = format!("key:{number}");
        assert_eq!(
            insist(&mut connection, &["SET", &key, &value(number)]),
            Value::ok()
        );
    }
    nodes.assert_equal();
    nodes
}

/// All start again, two of three over a damaged log.
fn with_damaged_majority() -> Nodes {
    let mut nodes = filled();
    for index in 0..3 {
        nodes.kill(index);
    }
    for index in [1, 2] {
        damage(nodes.folder(index));
    }
    for index in 0..3 {
        nodes.spawn(index);
    }
    nodes
}

fn wait_new_life(nodes: &Nodes, shards: usize) {
    wait_until("the new life has the vote of the old", || {
        (0..3).all(|index| nodes.members(index) == vec![(3, 0); shards])
    });
}

#[test]
fn rule_13_a_node_whose_log_is_damaged_is_rebuilt_from_the_others() {
    let mut nodes = filled();
    nodes.kill(2);
    damage(nodes.folder(2));
    nodes.spawn(2);
    nodes.wait_node(2);
    assert!(
        nodes
            .process(2)
            .stderr()
            .contains("joins again as a new one")
    );
    wait_new_life(&nodes, 1);
    nodes.assert_equal();
    nodes.kill(0);
    let mut connection = nodes.connect(2);
    for number in [0, KEYS / 2, KEYS - 1] {
        let key = format!("key:{number}");
        let expected = Value::bulk(&value(number));
        assert_eq!(insist(&mut connection, &["GET", &key]), expected);
    }
}

/// Changes a byte in the middle of a snapshot.
fn damage_snapshot(path: &Path) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    let file = file.expect("a snapshot is writable");
    let middle = file.metadata().expect("it is there").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("a byte");
    file.write_all_at(&[!byte[0]], middle).expect("a byte");
}

#[test]
fn rule_13_a_node_whose_snapshot_is_damaged_is_rebuilt_from_the_others() {
    let args = ["--shards", "2", "--snapshot-log-size", "1MiB"];
    let mut nodes = Nodes::started(3, &args);
    let mut connection = nodes.connect(0);
    let large = "x".repeat(64 * 1024);
    for number in 0..KEYS {
        let key = format!("key:{number}");
        assert_eq!(insist(&mut connection, &["SET", &key, &large]), Value::ok());
        assert_eq!(
            insist(&mut connection, &["SET", &key, &value(number)]),
            Value::ok()
        );
    }
    wait_until("a snapshot, without which the log is not whole", || {
        !nodes.snapshots(2).is_empty()
    });
    nodes.kill(2);
    damage_snapshot(nodes.snapshots(2).first().expect("it has one"));
    nodes.spawn(2);
    nodes.wait_node(2);
    let said = nodes.process(2).stderr();
    assert!(said.contains("joins again as a new one"), "{said}");
    wait_new_life(&nodes, 2);
    nodes.assert_equal();
    nodes.kill(0);
    let mut connection = nodes.connect(2);
    for number in 0..KEYS {
        let expected = Value::bulk(&value(number));
        assert_eq!(
            insist(&mut connection, &["GET", &format!("key:{number}")]),
            expected
        );
    }
}

#[test]
fn rule_12_with_a_majority_that_cannot_be_trusted_nobody_goes_on() {
    let mut nodes = with_damaged_majority();
    for index in [1, 2] {
        let (code, said) = nodes.ended(index);
        assert_eq!(code, Some(3), "{said}");
        assert!(
            said.contains("of a majority of the nodes the same is true"),
            "{said}"
        );
    }
    // Neither was changed: the log is there, with its damage.
    for index in [1, 2] {
        assert!(nodes.folder(index).join("flux-data/IDENTITY").exists());
    }
}

/// The others may have gone on without what it has: its disk is no history of theirs any more.
#[test]
fn rule_12_a_node_told_to_accept_loss_is_rebuilt_where_the_others_have_all() {
    let mut nodes = filled();
    for index in 0..3 {
        nodes.kill(index);
    }
    damage(nodes.folder(2));
    nodes.spawn(2);
    wait_until("it cannot trust itself, and asks", || {
        let said = nodes.process(2).stderr();
        said.contains("waiting for a majority of the nodes")
    });
    nodes.kill(2);
    // What is on its disk can be read again, as after a power cut that took nothing.
    mend(nodes.folder(2));
    for index in [0, 1] {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    nodes.spawn_with(2, &["--accept-loss"]);
    nodes.wait_node(2);
    let said = nodes.process(2).stderr();
    assert!(said.contains("joins again as a new one"), "{said}");
    wait_new_life(&nodes, 1);
    nodes.assert_equal();
}

#[test]
fn told_to_accept_loss_nodes_that_cannot_trust_themselves_go_on_with_what_is_on_their_disks() {
    let mut nodes = with_damaged_majority();
    for index in [1, 2] {
        assert_eq!(nodes.ended(index).0, Some(3));
        mend(nodes.folder(index));
    }
    nodes.kill(0);
    for index in 0..3 {
        nodes.spawn_with(index, &["--accept-loss"]);
    }
    nodes.wait_ready();
    // Who is much later than the others finds them well, and is rebuilt.
    let said = [1, 2].map(|index| nodes.process(index).stderr());
    let goes_on = |said: &String| said.contains("going on with what is on the disk");
    assert!(said.iter().any(goes_on), "{said:?}");
    nodes.assert_equal();
    let mut connection = nodes.connect(1);
    let key = format!("key:{}", KEYS / 2);
    let expected = Value::bulk(&value(KEYS / 2));
    assert_eq!(insist(&mut connection, &["GET", &key]), expected);
}
