//! Tests of globs.

use super::matches;

/// First line: texts. Then each pattern with one digit for each text, as Redis 7.0.15 answered
/// KEYS over exactly these keys.
const RECORDED: &str = include_str!("../../testdata/glob.tsv");

#[test]
fn every_recorded_pattern_matches_what_redis_matched() {
    let mut lines = RECORDED.lines();
    let texts: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let mut checked = 0;
    for line in lines {
        let (pattern, expected) = line.rsplit_once('\t').unwrap();
        let found: String = texts
            .iter()
            .map(|text| char::from(b'0' + u8::from(matches(pattern.as_bytes(), text.as_bytes()))))
            .collect();
        assert_eq!(found, expected, "pattern {pattern:?} over {texts:?}");
        checked += texts.len();
    }
    assert!(checked > 30_000);
}

#[test]
fn a_pattern_of_many_stars_takes_no_exponential_time() {
    let pattern = "a*".repeat(60) + "b";
    let text = "a".repeat(4000);
    assert!(!matches(pattern.as_bytes(), text.as_bytes()));
}
