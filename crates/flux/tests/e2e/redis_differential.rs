//! The same commands to this node and to a real redis-server: the replies are the same bytes,
//! except where `redis_differential.txt` says that they differ on purpose.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::resp::encode;
use crate::harness::{
    PATIENCE, Process, Start, command, free_port, have, skip, stdout, wait_until,
};

const COMMANDS: &str = include_str!("redis_differential.txt");

/// A redis-server of its own, without persistence.
struct Redis {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Redis {
    /// Starts one, if there is one whose replies are those of the file.
    fn start(test: &str) -> Option<Self> {
        if !have("redis-server", test) {
            return None;
        }
        let version = stdout(&crate::harness::run(
            command("redis-server").arg("--version"),
            b"",
        ));
        if !version.contains("v=7.0.") {
            skip(
                test,
                &format!("redis-server is not 7.0: {}", version.trim()),
            );
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until("redis-server accepts", || {
            TcpStream::connect(address).is_ok()
        });
        Some(Self {
            child,
            address,
            _folder: folder,
        })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _was_there = self.child.kill().is_ok();
        let _has_ended = self.child.wait().is_ok();
    }
}

/// A connection that answers with the bytes of a reply, whatever they mean.
struct Client(BufReader<TcpStream>);

impl Client {
    fn open(address: SocketAddr, version: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the listener accepts");
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).expect("an option of every socket");
        }
        let mut client = Self(BufReader::new(stream));
        client.ask(&[b"HELLO", version.as_bytes()]);
        client.ask(&[b"FLUSHALL"]);
        client
    }

    fn ask(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let stream = self.0.get_mut();
        stream.write_all(&encode(words)).expect("it is taken");
        let mut reply = Vec::new();
        self.read(&mut reply);
        reply
    }

    fn read(&mut self, reply: &mut Vec<u8>) {
        let start = reply.len();
        let count = self.0.read_until(b'\n', reply).expect("a reply arrives");
        assert!(count > 2, "the connection was closed");
        let kind = reply.get(start).copied().expect("a reply has a type");
        let number = || {
            let line = reply.get(start + 1..reply.len() - 2);
            let text = std::str::from_utf8(line.expect("a line has an end"));
            text.ok().and_then(|text| text.parse::<i64>().ok())
        };
        match kind {
            b'$' | b'=' => {
                if let Ok(len) = usize::try_from(number().expect("a length")) {
                    let at = reply.len();
                    reply.resize(at + len + 2, 0);
                    let rest = reply.get_mut(at..).expect("just made");
                    self.0.read_exact(rest).expect("a whole reply arrives");
                }
            }
            b'*' | b'~' | b'>' => {
                for _ in 0..number().expect("a count").max(0) {
                    self.read(reply);
                }
            }
            b'%' => {
                for _ in 0..2 * number().expect("a count") {
                    self.read(reply);
                }
            }
            _ => {}
        }
    }
}

/// Words as people write them: quotes hold spaces, and `\x00`, `\r`, `\n`, `\"`, `\\` inside them.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, after) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted_word(quoted)
        } else {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            (word.as_bytes().to_vec(), after)
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn quoted_word(quoted: &str) -> (Vec<u8>, &str) {
    let mut word = Vec::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next().expect("quotes are closed") {
            '"' => return (word, chars.as_str()),
            '\\' => match chars.next().expect("an escape") {
                'r' => word.push(b'\r'),
                'n' => word.push(b'\n'),
                'x' => {
                    let (digits, after) = chars.as_str().split_at(2);
                    word.push(u8::from_str_radix(digits, 16).expect("two hex digits"));
                    chars = after.chars();
                }
                other => word.push(u8::try_from(other).expect("ASCII")),
            },
            other => word.extend(other.to_string().bytes()),
        }
    }
}

/// Lines in an order of their own.
fn sorted(reply: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = reply.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

/// Asks both the whole file and says where the replies are not as it says.
fn compare(redis: &Redis, node: &Process, version: &str, one_shard: bool) -> Vec<String> {
    let open = || {
        (
            Client::open(redis.address, version),
            Client::open(node.resp(), version),
        )
    };
    let (mut theirs, mut ours) = open();
    let mut is_skipped = false;
    let mut wrong = Vec::new();
    for (at, line) in COMMANDS.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("== ") {
            is_skipped = !one_shard && line.ends_with(", one shard");
            (theirs, ours) = open();
            continue;
        }
        if is_skipped {
            continue;
        }
        let (mark, text) = match line.split_once(' ') {
            Some((mark @ ("?" | "!"), text)) => (mark, text),
            _ => ("", line),
        };
        let words = words(text);
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let (expected, got) = (theirs.ask(&words), ours.ask(&words));
        let is_same = expected == got || mark == "?" && sorted(&expected) == sorted(&got);
        if is_same == (mark == "!") {
            wrong.push(format!(
                "line {}, RESP{version}: {line}\n  redis {}\n  flux  {}",
                at + 1,
                expected.escape_ascii(),
                got.escape_ascii()
            ));
        }
    }
    wrong
}

fn check(test: &str, shards: &str) {
    let Some(redis) = Redis::start(test) else {
        return;
    };
    let node = Start::all().args(&["--shards", shards]).ready();
    let mut wrong = Vec::new();
    for version in ["2", "3"] {
        wrong.extend(compare(&redis, &node, version, shards == "1"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.stop();
}

#[test]
fn replies_are_those_of_redis() {
    check("replies_are_those_of_redis", "1");
}

#[test]
fn replies_are_those_of_redis_with_several_shards_too() {
    check("replies_are_those_of_redis_with_several_shards_too", "4");
}
