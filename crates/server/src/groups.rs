//! What one turn of a FLUX session, or one gRPC batch, asks, put into groups that are executed
//! apart.
//!
//! A reply leaves when its group is done, so nothing may share a group that should not wait for the
//! other: commands of different shards, reads before the first write of their shard and writes.
//! What shares a group is submitted at once and costs one wake, and is answered in one write: this
//! is what makes a pipeline cheap. A read behind a write of its shard stays behind it.
//!
//! Pure: no clock, no socket.

use flux_env::Instant;
use flux_types::{Command, ShardId};

/// Groups looked at for one with the same shard and deadline. Clients use few deadlines; one that
/// uses many gets groups of its own rather than a long search.
const SEARCH_MAX: usize = 16;

/// Most reads in a group without a write: their replies are made all together, and values can be
/// large.
const READS_MAX: usize = 32;

/// A command with what its reply needs.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    /// Goes into the reply.
    pub(crate) ticket: T,
    /// What to execute.
    pub(crate) command: Command,
    /// When the client stops waiting.
    pub(crate) deadline: Instant,
}

/// Commands that are executed together, in order.
#[derive(Debug)]
pub(crate) struct Group<T> {
    shard: Option<ShardId>,
    has_write: bool,
    pub(crate) deadline: Instant,
    pub(crate) tickets: Vec<T>,
    pub(crate) commands: Vec<Command>,
}

/// Groups what was read in one turn. `shard` tells the one shard that a command concerns; a command
/// of several is executed alone.
pub(crate) fn groups<T>(
    asked: Vec<Asked<T>>,
    shard: impl Fn(&Command) -> Option<ShardId>,
) -> Vec<Group<T>> {
    let mut groups: Vec<Group<T>> = Vec::new();
    for one in asked {
        let owner = shard(&one.command);
        let is_write = one.command.is_write();
        let is_fitting = |group: &&mut Group<T>| {
            owner.is_some() && group.shard == owner && group.deadline == one.deadline
        };
        let mut recent = groups.iter_mut().rev().take(SEARCH_MAX).filter(is_fitting);
        // The latest group of the shard: with a write in it everything follows, without one only
        // reads do.
        match recent.next() {
            Some(group) if group.has_write || (!is_write && group.commands.len() < READS_MAX) => {
                group.tickets.push(one.ticket);
                group.commands.push(one.command);
            }
            Some(_) | None => groups.push(Group {
                shard: owner,
                has_write: is_write,
                deadline: one.deadline,
                tickets: vec![one.ticket],
                commands: vec![one.command],
            }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_env::Instant;
    use flux_types::{Command, ReadCommand, Set, ShardId, WriteCommand};

    use super::{Asked, groups};

    fn read(key: &'static str) -> Command {
        Command::Read(ReadCommand::Get { key: key.into() })
    }

    fn write(key: &'static str) -> Command {
        Command::Write(WriteCommand::Set(Set::plain(key.into(), Bytes::new())))
    }

    /// The shard is the key's first byte; several keys have none.
    fn shard(command: &Command) -> Option<ShardId> {
        let mut first = Vec::new();
        command.for_each_key(&mut |key| first.push(u32::from(key[0])));
        match first.as_slice() {
            [one] => Some(ShardId::new(*one)),
            _ => None,
        }
    }

    fn grouped(commands: Vec<(Command, u64)>) -> Vec<Vec<usize>> {
        let asked = commands.into_iter().enumerate();
        let asked = asked.map(|(ticket, (command, deadline))| Asked {
            ticket,
            command,
            deadline: Instant::from_nanos(deadline),
        });
        let groups = groups(asked.collect(), shard);
        assert!(
            groups
                .iter()
                .all(|group| group.tickets.len() == group.commands.len())
        );
        groups.into_iter().map(|group| group.tickets).collect()
    }

    #[test]
    fn a_pipeline_to_one_shard_is_one_group() {
        let commands = vec![(write("a1"), 5), (write("a2"), 5), (read("a1"), 5)];
        assert_eq!(grouped(commands), [vec![0, 1, 2]]);
    }

    #[test]
    fn reads_before_the_first_write_do_not_wait_for_it() {
        let commands = vec![
            (read("a1"), 5),
            (read("a2"), 5),
            (write("a1"), 5),
            (read("a1"), 5),
        ];
        assert_eq!(grouped(commands), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn shards_and_deadlines_are_apart_and_commands_of_several_shards_alone() {
        let both = || {
            Command::Read(ReadCommand::GetMany {
                keys: vec!["a1".into(), "b1".into()],
            })
        };
        let commands = vec![
            (write("a1"), 5),
            (write("b1"), 5),
            (write("a2"), 5),
            (write("a3"), 6),
            (both(), 5),
            (both(), 5),
        ];
        assert_eq!(
            grouped(commands),
            [vec![0, 2], vec![1], vec![3], vec![4], vec![5]]
        );
    }

    #[test]
    fn reads_come_in_groups_of_a_few() {
        let commands = (0..150).map(|_| (read("a"), 5)).collect();
        let sizes: Vec<usize> = grouped(commands).iter().map(Vec::len).collect();
        assert_eq!(sizes, [32, 32, 32, 32, 22]);
    }

    #[test]
    fn many_deadlines_make_many_groups() {
        let commands = (0..200).map(|deadline| (read("a"), deadline)).collect();
        assert_eq!(grouped(commands).len(), 200);
    }
}
