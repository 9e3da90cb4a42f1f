//! The command table: one row for each command, from which names are found, arguments counted,
//! COMMAND answered and the command reference written.

mod cluster;
mod connection;
mod generic;
mod markdown;
mod server;
mod string;
mod transactions;

use super::spec::{Group, Spec};

pub use markdown::markdown;

/// One row: `name "usage" arity flags keys, since, complexity, summary, action`. Rows are written
/// this way to be read as a table.
macro_rules! row {
    (
        $name:literal $usage:literal, $arity:literal, [$($flag:ident)*],
        ($first:literal $last:literal $step:literal), $since:literal, $complexity:literal,
        $summary:literal, $action:expr $(, $subcommands:expr)?
    ) => {
        $crate::resp::spec::Spec {
            name: $name,
            container: CONTAINER,
            arity: $arity,
            flags: $crate::resp::spec::Flags::NONE
                $(.with($crate::resp::spec::Flags::$flag))*,
            keys: $crate::resp::spec::KeyRange { first: $first, last: $last, step: $step },
            group: GROUP,
            since: $since,
            complexity: $complexity,
            summary: $summary,
            usage: $usage,
            subcommands: row!(@subcommands $($subcommands)?),
            action: $action,
        }
    };
    (@subcommands) => { &[] };
    (@subcommands $subcommands:expr) => { $subcommands };
}
use row;

/// The rows of each chapter, in reading order.
static CHAPTERS: [&[Spec]; 6] = [
    string::ROWS,
    generic::ROWS,
    transactions::ROWS,
    connection::ROWS,
    server::ROWS,
    cluster::ROWS,
];

/// All commands, chapter by chapter; subcommands are inside their containers.
pub fn commands() -> impl Iterator<Item = &'static Spec> {
    CHAPTERS.into_iter().flatten()
}

/// All commands of one chapter, in reading order.
pub fn chapter(group: Group) -> impl Iterator<Item = &'static Spec> {
    commands().filter(move |spec| spec.group == group)
}

/// Finds a command by its name, in any case.
#[must_use]
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    let packed = pack(name)?;
    let mut slot = home(packed);
    loop {
        let (key, spec) = INDEX.slots.get(slot)?;
        match spec {
            Some(spec) if *key == packed => return Some(spec),
            Some(_) => slot = (slot + 1) % SLOTS,
            None => return None,
        }
    }
}

/// Finds one of `subcommands` by its name, in any case.
#[must_use]
pub fn find_in(subcommands: &'static [Spec], name: &[u8]) -> Option<&'static Spec> {
    subcommands
        .iter()
        .find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

/// Finds a command while compiling.
///
/// # Panics
/// Stops the compiler if there is none.
pub(super) const fn must_find(name: &str) -> &'static Spec {
    let packed = pack(name.as_bytes()).expect("the name is short");
    let mut slot = home(packed);
    loop {
        #[expect(
            clippy::indexing_slicing,
            clippy::panic,
            reason = "evaluated by the compiler, which it stops"
        )]
        match INDEX.slots[slot] {
            (key, Some(spec)) if key == packed => return spec,
            (_, Some(_)) => slot = (slot + 1) % SLOTS,
            (_, None) => panic!("the command is not in the table"),
        }
    }
}

/// Longest name of a command, in bytes.
const NAME_BYTES_MAX: usize = 16;

/// A name in lower case as one number, so that names are compared in one step. `None` for what is
/// too long to be a name, or has a byte 0, which would pack like its absence.
const fn pack(name: &[u8]) -> Option<u128> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut packed = 0_u128;
    let mut rest = name;
    while let Some((byte, tail)) = rest.split_first() {
        if *byte == 0 {
            return None;
        }
        packed = packed << 8 | byte.to_ascii_lowercase() as u128;
        rest = tail;
    }
    Some(packed)
}

/// Slots of the index: enough that about two thirds stay empty.
const SLOTS: usize = 256;

/// Where the search for a packed name begins.
#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
const fn home(packed: u128) -> usize {
    let folded = (packed >> 64) as u64 ^ (packed & u64::MAX as u128) as u64;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

/// Open addressing, filled by the compiler: finding a name costs one multiplication and about one
/// comparison.
struct Index {
    slots: [(u128, Option<&'static Spec>); SLOTS],
}

static INDEX: Index = Index::build();

impl Index {
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
    const fn build() -> Self {
        let mut slots: [(u128, Option<&'static Spec>); SLOTS] = [(0, None); SLOTS];
        let mut chapter = 0;
        while chapter < CHAPTERS.len() {
            let mut row = 0;
            while row < CHAPTERS[chapter].len() {
                let spec = &CHAPTERS[chapter][row];
                let packed = pack(spec.name.as_bytes()).expect("the name is short");
                let mut slot = home(packed);
                while slots[slot].1.is_some() {
                    slot = (slot + 1) % SLOTS;
                }
                slots[slot] = (packed, Some(spec));
                row += 1;
            }
            chapter += 1;
        }
        Self { slots }
    }
}

#[cfg(test)]
mod tests;
