//! Transcripts: `testdata/*.txt`, each run against a node with one shard and one with four.
//!
//! A file is a list of blocks. A block is commands, a line `----`, and the replies expected, one on
//! a line; blocks are separated by an empty line. A line `@name` in front of a command says which
//! connection sends it (without, the first). All commands of a block that a connection sends go
//! out in one packet. `~` in front of a command says that it is not answered. `#` begins a comment.
//! Expectations are written anew with `UPDATE_EXPECT=1`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::harness::{Client, TestNode, show};

/// One block: its comment lines, its commands, and what is expected.
struct Block {
    commands: Vec<String>,
    expected: Vec<String>,
}

fn parse(text: &str) -> Vec<Block> {
    text.split("\n\n")
        .filter(|block| !block.trim().is_empty())
        .map(|block| {
            let (commands, expected) = block.split_once("----").unwrap_or((block, ""));
            let lines = |text: &str| {
                text.lines()
                    .map(str::to_owned)
                    .filter(|line| !line.is_empty())
                    .collect()
            };
            Block {
                commands: lines(commands),
                expected: lines(expected),
            }
        })
        .collect()
}

fn render(blocks: &[Block]) -> String {
    let blocks: Vec<String> = blocks
        .iter()
        .map(|block| {
            let mut lines = block.commands.clone();
            lines.push("----".to_owned());
            lines.extend(block.expected.iter().cloned());
            lines.join("\n") + "\n"
        })
        .collect();
    blocks.join("\n")
}

/// Runs a block and answers the replies, in the order of the commands.
async fn run(
    block: &Block,
    node: &TestNode,
    clients: &mut BTreeMap<String, Client>,
) -> Vec<String> {
    let mut packets: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut asked = Vec::new();
    for line in block.commands.iter().filter(|line| !line.starts_with('#')) {
        let (name, command) = match line.strip_prefix('@') {
            Some(rest) => rest.split_once(' ').expect("@name command"),
            None => ("", line.as_str()),
        };
        let (command, is_answered) = match command.strip_prefix('~') {
            Some(command) => (command, false),
            None => (command, true),
        };
        let packet = packets.entry(name.to_owned()).or_default();
        packet.extend_from_slice(command.as_bytes());
        packet.extend_from_slice(b"\r\n");
        if is_answered {
            asked.push(name.to_owned());
        }
        // What one connection does before another's turn must be done before it.
        let others: Vec<String> = packets
            .keys()
            .filter(|other| *other != name)
            .cloned()
            .collect();
        assert!(others.is_empty(), "one connection to a block: {line}");
    }
    let mut replies = Vec::new();
    for (name, packet) in packets {
        if !clients.contains_key(&name) {
            clients.insert(name.clone(), node.client().await);
        }
        let client = clients.get_mut(&name).expect("just inserted");
        client.send(&packet).await;
        for _ in asked.iter().filter(|asked| **asked == name) {
            replies.push(match client.reply().await {
                Some(value) => show(&value),
                None => "(closed)".to_owned(),
            });
        }
    }
    replies
}

async fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("the transcript exists");
    let mut blocks = parse(&text);
    assert!(!blocks.is_empty());
    for shards in [1, 4] {
        let node = TestNode::with_shards(shards).await;
        let mut clients = BTreeMap::new();
        for block in &mut blocks {
            let replies = run(block, &node, &mut clients).await;
            if std::env::var_os("UPDATE_EXPECT").is_some() && shards == 1 {
                block.expected = replies;
                continue;
            }
            assert_eq!(
                replies, block.expected,
                "{name} with {shards} shards, after {:?}",
                block.commands
            );
        }
        node.end().await;
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, render(&blocks)).expect("the transcript can be written");
    }
}

#[tokio::test]
async fn strings_and_keys() {
    check("strings_and_keys").await;
}

#[tokio::test]
async fn transactions() {
    check("transactions").await;
}

#[tokio::test]
async fn connection_commands() {
    check("connection").await;
}

#[tokio::test]
async fn node_commands() {
    check("node").await;
}
