//! Times as RFC 3339 writes them, always in UTC and with milliseconds.

use flux_types::UnixMillis;

use super::write::decimal;

const DAY_SECONDS: u64 = 86_400;
/// The last moment of the year 9999, beyond which RFC 3339 has no form.
const MILLIS_MAX: u64 = 253_402_300_799_999;

/// The time as text. What is beyond the year 9999 is shown as its end.
#[must_use]
pub fn format_time(at: UnixMillis) -> String {
    let mut out = Vec::with_capacity(24);
    write_time(at, &mut out);
    // Digits and signs.
    String::from_utf8(out).unwrap_or_default()
}

/// Appends the time as text.
pub(super) fn write_time(at: UnixMillis, out: &mut Vec<u8>) {
    let millis = at.get().min(MILLIS_MAX);
    let seconds = millis / 1000;
    let (year, month, day) = date(seconds / DAY_SECONDS);
    let of_day = seconds % DAY_SECONDS;
    for (number, width, end) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (of_day / 3600, 2, b':'),
        (of_day / 60 % 60, 2, b':'),
        (of_day % 60, 2, b'.'),
        (millis % 1000, 3, b'Z'),
    ] {
        decimal(out, number, width);
        out.push(end);
    }
}

/// Reads what [`format_time`] writes; `None` for anything else.
#[must_use]
pub fn parse_time(text: &str) -> Option<UnixMillis> {
    let digits = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse().ok()).flatten()
    };
    let [year, month, day] = [digits(0..4)?, digits(5..7)?, digits(8..10)?];
    let days = days(year, month, day)?;
    let of_day = digits(11..13)? * 3600 + digits(14..16)? * 60 + digits(17..19)?;
    let at = UnixMillis::new((days * DAY_SECONDS + of_day) * 1000 + digits(20..23)?);
    (format_time(at) == text).then_some(at)
}

/// Year, month and day of a day counted from 1970-01-01, by 400-year eras that begin in March.
const fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    (year, month, day)
}

/// The inverse of [`date`]; `None` before 1970 or for a month that is none.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || year < 1970 {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let (era, year_of_era) = (year / 400, year % 400);
    let of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    (era * 146_097 + of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times_are_written() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_763_861_603_241, "2025-11-23T01:33:23.241Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(format_time(UnixMillis::new(millis)), text);
        }
    }

    #[test]
    fn what_is_no_time_is_not_read() {
        for text in [
            "",
            "2025-02-29T00:00:00.000Z",
            "2025-13-01T00:00:00.000Z",
            "2025-11-23T24:00:00.000Z",
            "2025-11-23 01:33:23.241Z",
            "2025-11-23T01:33:23.241+01:00",
            "2025-11-2éT01:33:23.241Z",
            "1969-12-31T23:59:59.999Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_written_is_read(millis in 0..=MILLIS_MAX) {
            let at = UnixMillis::new(millis);
            prop_assert_eq!(parse_time(&format_time(at)), Some(at));
        }
    }
}
