//! Values as people write them: durations, sizes, yes and no. Each parser says what it expects,
//! because its message is the only help that a start-up mistake gets.

use std::time::Duration;

/// Parses `150ms`, `10s`, `5m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration such as 150ms, 10s, 5m or 1h");
    let (number, unit) = split_unit(text).ok_or_else(expected)?;
    let millis = match unit {
        "ms" => number,
        "s" => number.checked_mul(1_000).ok_or_else(expected)?,
        "m" => number.checked_mul(60_000).ok_or_else(expected)?,
        "h" => number.checked_mul(3_600_000).ok_or_else(expected)?,
        _ => return Err(expected()),
    };
    Ok(Duration::from_millis(millis))
}

/// Writes a duration in the largest unit that divides it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis > 0 && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{millis}ms")
    }
}

/// Parses `64MiB`, `2GiB`, `512KiB` or a plain number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is not a size such as 512KiB, 64MiB or 2GiB");
    let (number, unit) = split_unit(text).ok_or_else(expected)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(expected()),
    };
    number.checked_mul(1 << shift).ok_or_else(expected)
}

/// Writes a size in the largest unit that divides it.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Parses `true` and `false`, and the forms that environments like.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" | "" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// Parses the name of one of several choices.
pub(crate) fn one_of<Choice: Copy>(
    text: &str,
    choices: &[Choice],
    name: fn(Choice) -> &'static str,
) -> Result<Choice, String> {
    let found = choices.iter().find(|choice| name(**choice) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|choice| name(*choice)).collect();
        let names = match names.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            Some(_) | None => names.concat(),
        };
        format!("{text:?} is not {names}")
    })
}

/// The parts between commas, without those that are empty.
pub(crate) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// Parses a plain count.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text:?} is not a count"))
}

/// Parses a port; 0 lets the system choose.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a port from 0 to 65535 (0: any free one)"))
}

/// Parses `error`, `warn`, `info`, `debug`, `trace` or `off`, alone or as `target=level` parts.
pub(crate) fn log_level(text: &str) -> Result<String, String> {
    let is_level =
        |word: &str| matches!(word, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let is_known = text
        .split(',')
        .all(|part| match part.trim().split_once('=') {
            None => is_level(part.trim()),
            Some((_, level)) => is_level(level),
        });
    // Levels are ours to judge, because the library takes an unknown one for a target.
    if is_known && flux_telemetry::logs::check_level(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a log level: off, error, warn, info, debug or trace, \
         or parts such as info,flux_raft=debug"
    ))
}

/// Parses `HOST:PORT`.
pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let expected = || format!("{text:?} is not HOST:PORT, such as 127.0.0.1:50052");
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_host = !bare.is_empty()
        && bare
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'));
    if !is_host || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(expected());
    }
    Ok(text.to_owned())
}

/// `"64MiB"` → `(64, "MiB")`. No fraction, no sign: units are fine enough.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_in_humane_units() {
        for text in ["150ms", "10s", "5m", "1h", "90s", "0s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(duration("120s").unwrap()), "2m");
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "1d",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(
                duration(text).unwrap_err().contains("is not a duration"),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_are_read_and_written_in_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("512KiB", 512 << 10),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(size("3 MiB"), Ok(3 << 20));
        for text in ["", "64MB", "MiB", "-1", "99999999999TiB"] {
            assert!(size(text).unwrap_err().contains("is not a size"), "{text}");
        }
    }

    #[test]
    fn a_choice_is_one_of_those_that_the_mistake_names() {
        let one_of = |text: &str, count: usize| {
            one_of(text, &["lease", "file", "etcd"][..count], |name| name)
        };
        assert_eq!(one_of("file", 3), Ok("file"));
        for (count, expected) in [
            (1, r#""File" is not lease"#),
            (2, r#""File" is not lease or file"#),
            (3, r#""File" is not lease, file or etcd"#),
        ] {
            assert_eq!(one_of("File", count), Err(expected.to_owned()));
        }
        assert_eq!(parts(" a, ,b,").collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn ports_flags_levels_and_addresses_are_checked() {
        assert_eq!(port("0"), Ok(0));
        assert!(port("65536").is_err() && port("-1").is_err() && port("http").is_err());
        assert_eq!((boolean("1"), boolean("no")), (Ok(true), Ok(false)));
        assert!(boolean("maybe").is_err());
        assert!(log_level("info").is_ok() && log_level("info,flux_raft=debug").is_ok());
        assert!(log_level("loud").is_err() && log_level("flux_raft=loud").is_err());
        assert!(host_and_port("localhost:50052").is_ok() && host_and_port("[::1]:1").is_ok());
        for text in ["", "localhost", ":1", "h:0", "http://h:1", "h:x"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
