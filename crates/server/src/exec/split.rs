//! Which shards a command concerns, and how their answers become one.
//!
//! Pure. A command whose keys live in one shard goes there whole and stays atomic. MGET, MSET,
//! DEL, EXISTS, TOUCH and the commands on the whole keyspace are split; their parts run
//! concurrently and are not atomic together. A command that means one moment (RENAME, COPY,
//! MSETNX, a transaction) is refused across shards, and so is a write with a request id.

use bytes::Bytes;
use flux_cluster::SlotMap;
use flux_types::limits::SHARDS_MAX;
use flux_types::{
    Command, Error, ErrorCode, Once, ReadCommand, ScanPage, ShardId, Transaction, WriteCommand,
};

/// A command on its way to shards.
#[derive(Debug, PartialEq)]
pub(crate) enum Split {
    /// It concerns one shard.
    One(ShardId, Command),
    /// It concerns several, or its answer must be changed. At most one part for each shard.
    Many(Vec<(ShardId, Command)>, Join),
    /// It cannot be run.
    Refused(Error),
}

/// How the answers of the parts become one (see [`super::join`]).
#[derive(Debug, PartialEq)]
pub(crate) enum Join {
    /// MGET: element `i` is the next one of the part with this position.
    Interleave(Vec<u8>),
    /// Numbers are added.
    Sum,
    /// OK, if every part says so.
    AllOk,
    /// Arrays are put one after the other.
    Concat,
    /// The first that is not nil.
    FirstFound,
    /// FLUX.OUTCOME: one shard at most has done a write; it is not done if all say so.
    Outcome,
    /// SCAN: the cursor of one shard becomes that of all.
    Cursor {
        /// The shard that was asked.
        shard: u32,
        /// Number of shards.
        count: u32,
    },
}

/// Splits a command by the owners of its keys.
///
/// `lot` is a random number: it decides which shard RANDOMKEY asks first.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not split is refused across shards"
)]
pub(crate) fn split(command: Command, map: &SlotMap, lot: u64) -> Split {
    // A scan may go on when there are more shards.
    if map.shard_count() == 1 && !matches!(command, Command::Read(ReadCommand::Scan(_))) {
        return Split::One(ShardId::new(0), command);
    }
    if let Some(key) = single_key(&command) {
        return Split::One(map.shard_of_key(key), command);
    }
    match command {
        Command::Read(ReadCommand::GetMany { keys }) => split_many(keys, map),
        Command::Write(WriteCommand::Delete { keys }) => sum(keys, map, |keys| {
            Command::Write(WriteCommand::Delete { keys })
        }),
        Command::Read(ReadCommand::Exists { keys }) => sum(keys, map, |keys| {
            Command::Read(ReadCommand::Exists { keys })
        }),
        Command::Read(ReadCommand::Touch { keys }) => {
            sum(keys, map, |keys| Command::Read(ReadCommand::Touch { keys }))
        }
        Command::Write(WriteCommand::SweepExpired { keys }) => sum(keys, map, |keys| {
            Command::Write(WriteCommand::SweepExpired { keys })
        }),
        Command::Write(WriteCommand::SetMany {
            pairs,
            if_none_exists: false,
        }) => split_pairs(pairs, map),
        Command::Read(ReadCommand::Count) => {
            everywhere(map, 0, Join::Sum, || Command::Read(ReadCommand::Count))
        }
        Command::Write(WriteCommand::Clear) => {
            everywhere(map, 0, Join::AllOk, || Command::Write(WriteCommand::Clear))
        }
        Command::Read(ReadCommand::Keys { pattern }) => everywhere(map, 0, Join::Concat, || {
            Command::Read(ReadCommand::Keys {
                pattern: pattern.clone(),
            })
        }),
        Command::Read(ReadCommand::RandomKey) => everywhere(map, lot, Join::FirstFound, || {
            Command::Read(ReadCommand::RandomKey)
        }),
        Command::Read(ReadCommand::Scan(page)) => scan(page, map),
        Command::Write(WriteCommand::QueryOutcome { request, key: None }) => {
            everywhere(map, 0, Join::Outcome, || {
                Command::Write(WriteCommand::QueryOutcome { request, key: None })
            })
        }
        Command::Write(WriteCommand::Once(once)) => split_once(once, map),
        whole => whole_in_one_shard(whole, map),
    }
}

/// The shard of a command, if all its keys are in one; `None` too for what has no key.
pub(crate) fn owner(command: &Command, map: &SlotMap) -> Option<ShardId> {
    if map.shard_count() == 1 {
        return Some(ShardId::new(0));
    }
    let mut owner = None;
    let mut differ = false;
    command.for_each_key(&mut |key| {
        let shard = map.shard_of_key(key);
        differ |= owner.is_some_and(|owner| owner != shard);
        owner = Some(shard);
    });
    owner.filter(|_| !differ)
}

/// The key of a command that names exactly one.
fn single_key(command: &Command) -> Option<&Bytes> {
    let mut first = None;
    let mut count = 0_usize;
    command.for_each_key(&mut |key| {
        if first.is_none() {
            first = Some(key);
        }
        count += 1;
    });
    first.filter(|_| count == 1 && transaction_of(command).is_none())
}

/// A write with a request id is done in one shard, because only there can it be told whether it was.
fn split_once(once: Box<Once>, map: &SlotMap) -> Split {
    if is_on_every_key(once.command()) {
        return Split::Refused(cross_shard(
            "a command on the whole keyspace, which has several shards, takes no request id",
        ));
    }
    whole_in_one_shard(Command::Write(WriteCommand::Once(once)), map)
}

fn whole_in_one_shard(command: Command, map: &SlotMap) -> Split {
    let mut owner = None;
    let mut differ = false;
    command.for_each_key(&mut |key| {
        let shard = map.shard_of_key(key);
        differ |= owner.is_some_and(|owner| owner != shard);
        owner = Some(shard);
    });
    if let Some(transaction) = transaction_of(&command)
        && transaction.commands.iter().any(is_on_every_key)
    {
        return Split::Refused(cross_shard(
            "a transaction cannot hold a command on the whole keyspace, which has several shards",
        ));
    }
    if differ {
        return Split::Refused(cross_shard(
            "keys belong to different shards; give them one hash tag, such as {tag}key",
        ));
    }
    Split::One(owner.unwrap_or_default(), command)
}

/// The transaction that a command is, with a request id or without.
fn transaction_of(command: &Command) -> Option<&Transaction> {
    let command = match command {
        Command::Write(WriteCommand::Once(once)) => once.command(),
        Command::Read(_) | Command::Write(_) => command,
    };
    match command {
        Command::Write(WriteCommand::Transaction(transaction)) => Some(transaction),
        Command::Read(_) | Command::Write(_) => None,
    }
}

/// Whether a command concerns the whole keyspace.
pub(crate) const fn is_on_every_key(command: &Command) -> bool {
    matches!(
        command,
        Command::Read(
            ReadCommand::RandomKey
                | ReadCommand::Scan(_)
                | ReadCommand::Keys { .. }
                | ReadCommand::Count
        ) | Command::Write(WriteCommand::Clear)
    )
}

fn cross_shard(message: &'static str) -> Error {
    Error::not_done(ErrorCode::CrossShard, message)
}

/// Groups items by shard, in order of first appearance, and tells each item's group.
fn group<T>(
    items: Vec<T>,
    map: &SlotMap,
    key: impl Fn(&T) -> &Bytes,
) -> (Vec<(ShardId, Vec<T>)>, Vec<u8>) {
    let mut groups: Vec<(ShardId, Vec<T>)> = Vec::new();
    let mut positions = Vec::with_capacity(items.len());
    for item in items {
        let shard = map.shard_of_key(key(&item));
        let found = groups.iter_mut().position(|(owner, _)| *owner == shard);
        let position = found.unwrap_or(groups.len());
        match groups.get_mut(position) {
            Some((_, group)) => group.push(item),
            None => groups.push((shard, vec![item])),
        }
        positions.push(u8::try_from(position).expect("a map has at most 64 shards"));
    }
    (groups, positions)
}

fn parts<T>(
    groups: Vec<(ShardId, Vec<T>)>,
    make: impl Fn(Vec<T>) -> Command,
) -> Vec<(ShardId, Command)> {
    groups
        .into_iter()
        .map(|(shard, group)| (shard, make(group)))
        .collect()
}

fn one_or_many(mut parts: Vec<(ShardId, Command)>, join: Join) -> Split {
    if parts.len() == 1
        && let Some((shard, command)) = parts.pop()
    {
        return Split::One(shard, command);
    }
    Split::Many(parts, join)
}

fn split_many(keys: Vec<Bytes>, map: &SlotMap) -> Split {
    let (groups, positions) = group(keys, map, |key| key);
    let parts = parts(groups, |keys| Command::Read(ReadCommand::GetMany { keys }));
    one_or_many(parts, Join::Interleave(positions))
}

fn split_pairs(pairs: Vec<(Bytes, Bytes)>, map: &SlotMap) -> Split {
    let (groups, _) = group(pairs, map, |(key, _)| key);
    let parts = parts(groups, |pairs| {
        Command::Write(WriteCommand::SetMany {
            pairs,
            if_none_exists: false,
        })
    });
    one_or_many(parts, Join::AllOk)
}

fn sum(keys: Vec<Bytes>, map: &SlotMap, make: impl Fn(Vec<Bytes>) -> Command) -> Split {
    let (groups, _) = group(keys, map, |key| key);
    one_or_many(parts(groups, make), Join::Sum)
}

fn everywhere(map: &SlotMap, lot: u64, join: Join, make: impl Fn() -> Command) -> Split {
    let count = map.shard_count();
    let first = u32::try_from(lot % u64::from(count)).unwrap_or(0);
    let parts = (0..count)
        .map(|offset| (ShardId::new((first + offset) % count), make()))
        .collect();
    Split::Many(parts, join)
}

/// A cursor of all shards is `cursor of the shard * SHARDS_MAX + shard`: 0 both begins and ends. It
/// means the same when a shard was split meanwhile: what went to the new one is met there.
fn scan(page: ScanPage, map: &SlotMap) -> Split {
    let stride = u64::from(SHARDS_MAX);
    // A cursor that was never given begins somewhere.
    let shard = u32::try_from(page.cursor % stride).unwrap_or(0) % map.shard_count();
    let page = ScanPage {
        cursor: page.cursor / stride,
        ..page
    };
    let join = Join::Cursor {
        shard,
        count: map.shard_count(),
    };
    Split::Many(
        vec![(ShardId::new(shard), Command::Read(ReadCommand::Scan(page)))],
        join,
    )
}
