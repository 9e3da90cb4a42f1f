//! Stale reads: from what this node's own replicas have applied, without asking anybody.
//!
//! What they tell was true once, and is never half of a batch. It may lack what was acknowledged
//! before, and needs neither a leader nor a majority.

use flux_store::{Read, Store};
use flux_types::{Answer, Command, Error, ErrorCode, ShardId, Term, UnixMillis};

use super::{Home, Split, join, split};

/// Answers a read.
pub(super) fn read(home: &Home, command: Command) -> Answer {
    if command.is_write() {
        let message = "a write cannot be stale: only reads can";
        return Answer::error(Error::not_done(ErrorCode::Invalid, message));
    }
    let map = home.map();
    let routing = map.shard_count();
    match split(command, map, home.lot()) {
        Split::One(shard, command) => read_part(home, shard, routing, &command),
        Split::Many(parts, how) => {
            let parts = parts.iter();
            let answers = parts.map(|(shard, command)| read_part(home, *shard, routing, command));
            join(how, answers.collect())
        }
        Split::Refused(error) => Answer::error(error),
    }
}

/// Answers what concerns one shard.
fn read_part(home: &Home, shard: ShardId, routing: u32, command: &Command) -> Answer {
    let unready = || {
        let message = "this node's replica of the shard is not recovered, or has failed";
        Answer::error(Error::not_done(ErrorCode::Unavailable, message))
    };
    let Some(handle) = home.shard(shard) else {
        return unready();
    };
    let Some(now) = handle.stale_now() else {
        return unready();
    };
    let answer = read_store(handle.store(), command, now);
    // It may have been let go, and have forgotten everything, or have been split, in the middle of
    // the read.
    match handle.stale_now() {
        Some(_) if handle.is_current(routing) => answer,
        Some(_) | None => unready(),
    }
}

fn read_store(store: &Store, command: &Command, now: UnixMillis) -> Answer {
    if let Command::Read(read) = command {
        let revision = store.revision();
        if let Read::Reply(reply) = store.read(read, now) {
            return Answer { reply, revision };
        }
    }
    // A passed deadline was met. What is evaluated sees such a key as absent; that it has expired is
    // for the leader to commit, so nothing comes of it here.
    store.evaluation(now, Term::new(0)).command(command)
}
