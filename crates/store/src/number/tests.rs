//! Tests of numbers.

use super::{Extended, parse_integer};

/// Value, step, and what Redis 7.0.15 on x86-64 made of `SET k value` and `INCRBYFLOAT k step`.
const RECORDED: &str = include_str!("../../testdata/incrbyfloat.tsv");

#[test]
fn integers_are_read_in_their_canonical_form_only() {
    for (text, expected) in [
        ("0", Some(0)),
        ("-1", Some(-1)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("-9223372036854775809", None),
        ("99999999999999999999", None),
        ("", None),
        ("-", None),
        ("-0", None),
        ("01", None),
        ("-01", None),
        ("+1", None),
        (" 1", None),
        ("1 ", None),
        ("1.0", None),
        ("1e3", None),
        ("0x1", None),
    ] {
        assert_eq!(parse_integer(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn sums_print_the_digits_that_redis_prints() {
    let mut checked = 0;
    for line in RECORDED.lines() {
        let mut fields = line.split('\t');
        let (value, step, expected) = (
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
        );
        // Infinities and hexadecimal are for the command to refuse, or not ours.
        if expected.starts_with('!') || value.starts_with("0x") {
            continue;
        }
        let value_read = Extended::parse(value.as_bytes()).unwrap();
        let step_read = Extended::parse(step.as_bytes()).unwrap();
        let sum = value_read.add(step_read).unwrap().to_text();
        assert_eq!(
            String::from_utf8(sum).unwrap(),
            expected,
            "{value} + {step}"
        );
        checked += 1;
    }
    assert!(checked > 1000);
}

#[test]
fn what_redis_refuses_is_refused() {
    let mut checked = 0;
    for line in RECORDED.lines() {
        let mut fields = line.split('\t');
        let value = fields.next().unwrap();
        if fields.nth(1) == Some("!value is not a valid float") {
            assert_eq!(Extended::parse(value.as_bytes()), None, "{value:?}");
            checked += 1;
        }
    }
    assert!(checked > 100);
}
