//! The command reference, written from the table.

use flux_types::ErrorCode;

use super::super::error::word_of_code;
use super::super::spec::{Group, Spec};

/// The whole of `docs/commands.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    for group in Group::ALL {
        chapter(&mut text, group);
    }
    errors(&mut text);
    text.push_str(DIFFERENCES);
    text
}

const HEAD: &str = "# Commands\n\n\
Written from the command table in `crates/wire` by its tests; do not edit. \
`UPDATE_EXPECT=1 cargo test --profile ci -p flux-wire` writes it anew.\n\n\
Every command is understood over RESP2 and RESP3, and, unless it changes what a connection is, \
over FLUX in a `COMMAND` operation ([wire.md](wire.md)). \
Names are read in any case. *Since* is the version of Redis that introduced the command; \
its replies and errors are those of Redis 7.2.\n";

fn chapter(text: &mut String, group: Group) {
    let title = match group {
        Group::String => "Values",
        Group::Generic => "Keys",
        Group::Transactions => "Transactions",
        Group::Connection => "Connection",
        Group::Server => "Node",
        Group::Cluster => "Cluster",
    };
    text.push_str(&format!("\n## {title}\n\n"));
    text.push_str("| command | what it does | cost | flags | since |\n|---|---|---|---|---|\n");
    for spec in super::chapter(group) {
        // A command that only leads to its subcommands needs no row of its own.
        let is_container = spec.arity == -2 && !spec.subcommands.is_empty();
        if !is_container {
            row(text, spec);
        }
        for subcommand in spec.subcommands {
            row(text, subcommand);
        }
    }
}

fn row(text: &mut String, spec: &Spec) {
    let name = spec.full_name().to_string().replace('|', " ");
    let usage = format!("{} {}", name.to_ascii_uppercase(), spec.usage);
    let flags: Vec<&str> = spec.flags.names().collect();
    text.push_str(&format!(
        "| `{}` | {} | {} | {} | {} |\n",
        usage.trim_end().replace('|', "\\|"),
        spec.summary,
        spec.complexity,
        flags.join(", "),
        spec.since
    ));
}

/// The error words, most telling first.
const WORDS: [(ErrorCode, &str); 14] = [
    (
        ErrorCode::Invalid,
        "the request cannot be carried out as written; the sentence says why",
    ),
    (
        ErrorCode::Unauthenticated,
        "the connection has not authenticated",
    ),
    (ErrorCode::WrongPassword, "user name or password are wrong"),
    (ErrorCode::Forbidden, "the user may not do this"),
    (
        ErrorCode::CrossShard,
        "the keys of a command that must be atomic are in different shards",
    ),
    (
        ErrorCode::TransactionAborted,
        "EXEC after a command that could not be queued",
    ),
    (ErrorCode::Busy, "a queue is full; repeat after a pause"),
    (
        ErrorCode::Timeout,
        "the deadline passed; nothing was written",
    ),
    (ErrorCode::OutOfMemory, "the memory limit is reached"),
    (
        ErrorCode::NoSpace,
        "the disk is full; reads and deletes go on",
    ),
    (
        ErrorCode::NotLeader,
        "another node leads the shard; repeat after a pause",
    ),
    (
        ErrorCode::Unavailable,
        "the shard has no majority or is not yet recovered",
    ),
    (
        ErrorCode::ShuttingDown,
        "the node is shutting down; connect again or elsewhere",
    ),
    (
        ErrorCode::ReplyNotKept,
        "a retry of a write that was done, whose reply was too long to be kept",
    ),
];

/// What a test that asks a real redis-server the same finds different, each on purpose.
const DIFFERENCES: &str = "\n## Where replies differ from Redis's\n\n\
A test asks this node and a real redis-server 7.0 the same several hundred commands, over RESP2 and RESP3, \
and compares the bytes. What differs, differs on purpose:\n\n\
* With several shards, commands that must be atomic over several keys answer `CROSSSLOT` unless all are in one shard, \
and `SCAN` comes by more and emptier pages.\n\
* Floats have 64 bits, where Redis has 80: `INCRBYFLOAT` keeps 17 digits, and refuses what is beyond 1.8e308.\n\
* A mistake in an argument is said whether or not the key exists (`GETEX missing EX 0`), and a negative cursor is one.\n\
* `EXEC` with arguments is refused, and the transaction goes on.\n\
* There is one database, the log is always on, and client-side caching is not offered (`CLIENT TRACKING ON`).\n\
* `CONFIG SET` changes `loglevel`, `maxclients`, `maxmemory`, `requirepass`, `slowlog-*` and `timeout`; \
the rest is set at the start, and setting it to what it is succeeds.\n\
* `DEBUG SLEEP` and `DEBUG OBJECT` are allowed; `DEBUG SLEEP` holds up its own connection only.\n";

fn errors(text: &mut String) {
    text.push_str("\n## Errors\n\nAn error reply begins with one of these words.\n\n");
    text.push_str("| word | meaning |\n|---|---|\n");
    for (code, meaning) in WORDS {
        text.push_str(&format!("| `{}` | {meaning} |\n", word_of_code(code)));
    }
    text.push_str(
        "| `UNCERTAIN` | whether the write happened is not known: it may have, or may yet |\n",
    );
}
