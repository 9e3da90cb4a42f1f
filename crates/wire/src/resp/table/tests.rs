//! That the table is well formed and found in.

use std::collections::BTreeSet;

use expect_test::expect_file;

use super::super::spec::{Action, Flags};
use super::*;

#[test]
fn every_command_is_found_in_any_case() {
    for spec in commands() {
        let upper = spec.name.to_ascii_uppercase();
        for name in [spec.name, upper.as_str()] {
            let found = find(name.as_bytes()).expect("it is in the table");
            assert!(std::ptr::eq(found, spec), "{name}");
        }
    }
}

#[test]
fn what_is_no_command_is_not_found() {
    for name in ["", "ge", "gett", "get\0", "\0get", "getgetgetgetgetgetget"] {
        assert!(find(name.as_bytes()).is_none(), "{name:?}");
    }
}

#[test]
fn names_are_unique_and_rows_make_sense() {
    let mut names = BTreeSet::new();
    for spec in commands().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands)) {
        let name = spec.full_name().to_string();
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert_eq!(name, name.to_ascii_lowercase());
        assert_ne!(spec.arity, 0, "{name}");
        assert!(spec.summary.ends_with('.'), "{name}");
        let is_data = matches!(spec.action, Action::Data(_));
        let touches = spec.flags.contains(Flags::WRITE) || spec.flags.contains(Flags::READONLY);
        assert!(touches || !is_data, "{name} neither reads nor writes");
        let has_keys = spec.keys.first > 0;
        assert_eq!(has_keys, spec.keys.step > 0, "{name}");
        assert!(
            spec.keys.first <= spec.arity.abs(),
            "{name} has a key beyond its arity"
        );
    }
}

#[test]
fn keys_are_where_the_row_says() {
    let positions = |name: &str, arguments| {
        let spec = find(name.as_bytes()).expect("it is in the table");
        spec.keys.positions(arguments).collect::<Vec<_>>()
    };
    assert_eq!(positions("get", 2), [1]);
    assert_eq!(positions("set", 5), [1]);
    assert_eq!(positions("mget", 4), [1, 2, 3]);
    assert_eq!(positions("mset", 5), [1, 3]);
    assert_eq!(positions("rename", 3), [1, 2]);
    assert_eq!(positions("ping", 2), [0_usize; 0]);
    assert_eq!(positions("del", 1), [0_usize; 0]);
}

#[test]
fn the_command_reference_is_that_of_the_table() {
    expect_file!["../../../../../docs/commands.md"].assert_eq(&markdown());
}
