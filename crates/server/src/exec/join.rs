//! The answers of a split command's parts, made into one.
//!
//! Pure. The parts come in the order in which [`super::split`] made them.

use flux_types::limits::SHARDS_MAX;
use flux_types::{Answer, Error, ErrorCode, Outcome, Reply, RequestOutcome, Revision};

use super::split::Join;

/// Joins the answers of the parts. The first error wins; its outcome is *unknown* where another
/// part was or may have been done, because the command as a whole is then neither.
///
/// Revisions of different shards cannot be compared, so the joined answer has none, unless there
/// was one part only.
pub(crate) fn join(how: Join, answers: Vec<Answer>) -> Answer {
    let revision = match answers.as_slice() {
        [only] => only.revision,
        _ => Revision::new(0),
    };
    if let Some(error) = first_error(&how, &answers) {
        return Answer {
            reply: Reply::Error(error),
            revision,
        };
    }
    let replies = answers.into_iter().map(|answer| answer.reply);
    let reply = match how {
        Join::Interleave(positions) => interleave(&positions, replies),
        Join::Sum => sum(replies),
        Join::AllOk => Reply::Ok,
        Join::Concat => concat(replies),
        Join::FirstFound => first_found(replies),
        Join::Outcome => outcome(replies),
        Join::Cursor { shard, count } => cursor(shard, count, replies),
    };
    Answer { reply, revision }
}

fn first_error(how: &Join, answers: &[Answer]) -> Option<Error> {
    let mut errors = answers.iter().filter_map(|answer| {
        let Reply::Error(error) = &answer.reply else {
            return None;
        };
        Some(error)
    });
    let first = errors.next()?;
    if *how == Join::Outcome && answers.iter().any(|answer| is_done(&answer.reply)) {
        // Whatever the other shards do not know: it was done here.
        return None;
    }
    let failed = 1 + errors.clone().count();
    let all_undone =
        first.outcome == Outcome::NotDone && errors.all(|error| error.outcome == Outcome::NotDone);
    let is_read = matches!(
        how,
        Join::Interleave(_) | Join::Concat | Join::FirstFound | Join::Outcome | Join::Cursor { .. }
    );
    if is_read || (failed == answers.len() && all_undone) {
        return Some(first.clone());
    }
    Some(Error {
        outcome: Outcome::Unknown,
        ..first.clone()
    })
}

/// What a shard can only answer if it is broken.
fn strange(expected: &'static str) -> Reply {
    Reply::Error(Error::unknown(ErrorCode::Internal, expected))
}

fn interleave(positions: &[u8], replies: impl Iterator<Item = Reply>) -> Reply {
    let mut parts = Vec::new();
    for reply in replies {
        let Reply::Array(items) = reply else {
            return strange("a shard did not answer with an array");
        };
        parts.push(items.into_iter());
    }
    let mut joined = Vec::with_capacity(positions.len());
    for position in positions {
        let part = parts.get_mut(usize::from(*position));
        let Some(item) = part.and_then(Iterator::next) else {
            return strange("a shard answered for fewer keys than it was asked");
        };
        joined.push(item);
    }
    Reply::Array(joined)
}

fn sum(replies: impl Iterator<Item = Reply>) -> Reply {
    let mut total = 0_i64;
    for reply in replies {
        let Reply::Integer(number) = reply else {
            return strange("a shard did not answer with a number");
        };
        total = total.saturating_add(number);
    }
    Reply::Integer(total)
}

fn concat(replies: impl Iterator<Item = Reply>) -> Reply {
    let mut joined = Vec::new();
    for reply in replies {
        let Reply::Array(mut items) = reply else {
            return strange("a shard did not answer with an array");
        };
        joined.append(&mut items);
    }
    Reply::Array(joined)
}

fn first_found(mut replies: impl Iterator<Item = Reply>) -> Reply {
    replies
        .find(|reply| !matches!(reply, Reply::Nil))
        .unwrap_or(Reply::Nil)
}

fn is_done(reply: &Reply) -> bool {
    matches!(reply, Reply::Outcome(outcome) if outcome.outcome == Outcome::Done)
}

/// Done if one shard says so, not done if all do, else unknown.
fn outcome(replies: impl Iterator<Item = Reply>) -> Reply {
    let mut joined = Reply::Outcome(Box::new(RequestOutcome {
        outcome: Outcome::NotDone,
        reply: None,
    }));
    for reply in replies {
        if is_done(&reply) {
            return reply;
        }
        if matches!(&reply, Reply::Outcome(outcome) if outcome.outcome == Outcome::Unknown) {
            joined = reply;
        }
    }
    joined
}

fn cursor(shard: u32, count: u32, mut replies: impl Iterator<Item = Reply>) -> Reply {
    let Some(Reply::Page { cursor, keys }) = replies.next() else {
        return strange("a shard did not answer with a page");
    };
    outer_cursor(cursor, shard, count).map_or_else(
        || strange("a shard's cursor is too large"),
        |cursor| Reply::Page { cursor, keys },
    )
}

/// The cursor of all shards after a shard's page: the next page of the same shard, or the first of
/// the next, or 0 after the last.
fn outer_cursor(inner: u64, shard: u32, count: u32) -> Option<u64> {
    if inner == 0 {
        let next = shard + 1;
        return Some(if next == count { 0 } else { u64::from(next) });
    }
    inner
        .checked_mul(u64::from(SHARDS_MAX))?
        .checked_add(u64::from(shard))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_cluster::SlotMap;
    use flux_types::{Command, ReadCommand, ScanPage, ShardId, WriteCommand};

    use super::super::split::{Split, split};
    use super::*;

    /// An array of keys, as KEYS answers.
    fn bulks(items: &[&'static str]) -> Reply {
        let bulk = |item: &&'static str| Reply::Bulk(Bytes::from_static(item.as_bytes()));
        Reply::Array(items.iter().map(bulk).collect())
    }

    fn answer(reply: Reply) -> Answer {
        Answer {
            reply,
            revision: Revision::new(7),
        }
    }

    fn joined(how: Join, replies: Vec<Reply>) -> Reply {
        join(how, replies.into_iter().map(answer).collect()).reply
    }

    fn keys(names: &[&'static str]) -> Vec<Bytes> {
        names
            .iter()
            .map(|name| Bytes::from_static(name.as_bytes()))
            .collect()
    }

    #[test]
    fn values_come_back_in_the_order_of_the_keys() {
        let map = SlotMap::even(4).unwrap();
        // Slots 12182, 5061, 866, 12182 again: shards 2, 1, 0, 2.
        let command = Command::Read(ReadCommand::GetMany {
            keys: keys(&["foo", "bar", "hello", "{foo}2"]),
        });
        let Split::Many(parts, how) = split(command, &map, 0) else {
            panic!("three shards are concerned");
        };
        let expected = [
            (ShardId::new(2), keys(&["foo", "{foo}2"])),
            (ShardId::new(1), keys(&["bar"])),
            (ShardId::new(0), keys(&["hello"])),
        ];
        for ((shard, command), (owner, keys)) in parts.iter().zip(expected) {
            assert_eq!(*shard, owner);
            assert_eq!(*command, Command::Read(ReadCommand::GetMany { keys }));
        }
        assert_eq!(parts.len(), 3);
        let reply = joined(how, vec![bulks(&["f", "f2"]), bulks(&["b"]), bulks(&["h"])]);
        assert_eq!(reply, bulks(&["f", "b", "h", "f2"]));
    }

    #[test]
    fn keys_of_one_shard_stay_one_command() {
        let map = SlotMap::even(4).unwrap();
        let command = Command::Write(WriteCommand::Delete {
            keys: keys(&["{foo}1", "{foo}2"]),
        });
        assert_eq!(
            split(command.clone(), &map, 0),
            Split::One(ShardId::new(2), command)
        );
    }

    #[test]
    fn numbers_are_added_and_the_first_key_found_is_answered() {
        let numbers = vec![Reply::Integer(2), Reply::Integer(0), Reply::Integer(5)];
        assert_eq!(joined(Join::Sum, numbers), Reply::Integer(7));
        let found = vec![
            Reply::Nil,
            Reply::Bulk(Bytes::from_static(b"k")),
            Reply::Nil,
        ];
        assert_eq!(
            joined(Join::FirstFound, found),
            Reply::Bulk(Bytes::from_static(b"k"))
        );
        assert_eq!(joined(Join::FirstFound, vec![Reply::Nil]), Reply::Nil);
        let parts = vec![bulks(&["a"]), bulks(&[]), bulks(&["b", "c"])];
        assert_eq!(joined(Join::Concat, parts), bulks(&["a", "b", "c"]));
    }

    #[test]
    fn a_half_done_write_has_an_unknown_outcome() {
        let busy = || Reply::Error(Error::not_done(ErrorCode::Busy, "full"));
        let outcome = |reply| {
            let Reply::Error(error) = reply else {
                panic!("{reply:?}");
            };
            error.outcome
        };
        let half = joined(Join::AllOk, vec![Reply::Ok, busy()]);
        assert_eq!(outcome(half), Outcome::Unknown);
        let none = joined(Join::AllOk, vec![busy(), busy()]);
        assert_eq!(outcome(none), Outcome::NotDone);
        let read = joined(Join::Interleave(vec![0, 1]), vec![bulks(&["a"]), busy()]);
        assert_eq!(outcome(read), Outcome::NotDone);
    }

    #[test]
    fn commands_of_one_moment_are_refused_across_shards() {
        let map = SlotMap::even(4).unwrap();
        let rename = |source, target| {
            Command::Write(WriteCommand::Rename {
                source: Bytes::from_static(source),
                target: Bytes::from_static(target),
                if_absent: false,
            })
        };
        let refused = split(rename(b"foo", b"bar"), &map, 0);
        assert!(matches!(refused, Split::Refused(error) if error.code == ErrorCode::CrossShard));
        let fine = split(rename(b"{foo}1", b"{foo}2"), &map, 0);
        assert!(matches!(fine, Split::One(shard, _) if shard == ShardId::new(2)));
        let one = SlotMap::even(1).unwrap();
        assert!(matches!(
            split(rename(b"foo", b"bar"), &one, 0),
            Split::One(..)
        ));
        let transaction = Command::Write(WriteCommand::Transaction(flux_types::Transaction {
            watches: Vec::new(),
            commands: vec![Command::Read(ReadCommand::Count)],
        }));
        assert!(matches!(
            split(transaction.clone(), &map, 0),
            Split::Refused(_)
        ));
        assert!(matches!(split(transaction, &one, 0), Split::One(..)));
    }

    #[test]
    fn a_scan_visits_every_shard_once_and_ends_at_zero() {
        let map = SlotMap::even(3).unwrap();
        // Each shard has two pages; its inner cursors are 0 then 5 then 0.
        let mut cursor = 0;
        let mut visited = Vec::new();
        loop {
            let page = ScanPage {
                cursor,
                pattern: None,
                count: 10,
                type_matches: true,
            };
            let Split::Many(parts, how) = split(Command::Read(ReadCommand::Scan(page)), &map, 0)
            else {
                panic!("a scan is always rewritten");
            };
            let [(shard, Command::Read(ReadCommand::Scan(inner)))] = parts.as_slice() else {
                panic!("one shard at a time");
            };
            visited.push((shard.get(), inner.cursor));
            let next = if inner.cursor == 0 { 5 } else { 0 };
            let page = Reply::Page {
                cursor: next,
                keys: Vec::new(),
            };
            let Reply::Page { cursor: outer, .. } = joined(how, vec![page]) else {
                panic!("a page");
            };
            cursor = outer;
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(visited, [(0, 0), (0, 5), (1, 0), (1, 5), (2, 0), (2, 5)]);
    }

    #[test]
    fn an_impossible_cursor_is_an_error() {
        let how = Join::Cursor { shard: 1, count: 4 };
        let page = Reply::Page {
            cursor: u64::MAX,
            keys: Vec::new(),
        };
        assert!(matches!(joined(how, vec![page]), Reply::Error(_)));
    }
}
