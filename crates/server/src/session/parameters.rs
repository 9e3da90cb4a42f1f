//! CONFIG GET and SET.
//!
//! Tools ask for Redis's parameters by name, so those that mean something here have Redis's names
//! and units. What can be changed while the node runs is changed; what cannot says where it is
//! set; what Redis has and this node has no use for answers the value that is true here.

use std::time::Duration;

use bytes::Bytes;
use flux_telemetry::logs;
use flux_types::{Error, ErrorCode};
use flux_wire::number::parse_u64;
use flux_wire::resp::{Writer, error};

use crate::config::memory_of_shard;
use crate::context::Context;
use crate::statistics::SLOW_LOG_LEN_MAX;

/// Changes the node, or says why the text is refused.
type Change = fn(&Context, &str) -> Result<(), &'static str>;

/// What CONFIG SET does with a parameter.
enum Setter {
    /// It changes the node.
    Changes(Change),
    /// It can only be what it is; setting it to that is fine.
    Fixed,
}

/// One parameter.
struct Parameter {
    name: &'static str,
    get: fn(&Context) -> String,
    set: Setter,
}

const fn fixed(name: &'static str, get: fn(&Context) -> String) -> Parameter {
    Parameter {
        name,
        get,
        set: Setter::Fixed,
    }
}

fn no(_: &Context) -> String {
    "no".to_owned()
}

fn zero(_: &Context) -> String {
    "0".to_owned()
}

fn empty(_: &Context) -> String {
    String::new()
}

/// All parameters, in the order of their names.
static PARAMETERS: &[Parameter] = &[
    fixed("active-expire-effort", |_| "1".to_owned()),
    fixed("activedefrag", no),
    fixed("appendfsync", |node| {
        node.config.fsync.as_redis_str().to_owned()
    }),
    // The log is the append-only file.
    fixed("appendonly", |_| "yes".to_owned()),
    fixed("bind", |node| node.config.bind.to_string()),
    fixed("busy-reply-threshold", |_| "5000".to_owned()),
    fixed("cluster-enabled", no),
    fixed("cluster-require-full-coverage", no),
    fixed("databases", |_| "1".to_owned()),
    fixed("dir", |node| node.config.data_dir.display().to_string()),
    // Limits on the encodings of types that do not exist here; tools ask for them all the same.
    fixed("hash-max-listpack-entries", |_| "512".to_owned()),
    fixed("hash-max-listpack-value", |_| "64".to_owned()),
    fixed("hz", |_| "10".to_owned()),
    fixed("io-threads", |node| node.config.thread_count().to_string()),
    fixed("latency-monitor-threshold", zero),
    fixed("lfu-decay-time", |_| "1".to_owned()),
    fixed("lfu-log-factor", |_| "10".to_owned()),
    fixed("list-compress-depth", zero),
    fixed("list-max-listpack-size", |_| "-2".to_owned()),
    Parameter {
        name: "loglevel",
        get: |_| shown_log_level(&logs::level().unwrap_or_else(|| "info".to_owned())).to_owned(),
        set: Setter::Changes(|_, text| {
            logs::set_level(asked_log_level(text)).map_err(|error| match error {
                logs::Error::Level { .. } => {
                    "argument must be debug, verbose, notice, warning, nothing, a level of this \
                     node, or parts such as info,flux_raft=debug"
                }
                logs::Error::Installed(_) | logs::Error::Missing => "this process writes no logs",
            })
        }),
    },
    fixed("lua-time-limit", |_| "5000".to_owned()),
    Parameter {
        name: "maxclients",
        get: |node| node.switches.connections_max().to_string(),
        set: Setter::Changes(|node, text| {
            let count = parse_u64(text.as_bytes())
                .and_then(|count| usize::try_from(count).ok())
                .filter(|count| *count > 0)
                .ok_or("argument must be between 1 and 4294967295 inclusive")?;
            node.switches.set_connections_max(count);
            Ok(())
        }),
    },
    Parameter {
        name: "maxmemory",
        get: |node| node.switches.max_memory().to_string(),
        set: Setter::Changes(|node, text| {
            let bytes = memory(text).ok_or("argument must be a memory value")?;
            node.switches.set_max_memory(bytes);
            let shards = node.home.shards();
            let count = u32::try_from(shards.len()).unwrap_or(u32::MAX);
            for shard in shards.iter() {
                let store = shard.store();
                store.set_memory_bytes_max(memory_of_shard(bytes, count));
            }
            Ok(())
        }),
    },
    fixed("maxmemory-policy", |_| "noeviction".to_owned()),
    fixed("notify-keyspace-events", empty),
    fixed("port", |node| node.addresses.resp.port().to_string()),
    fixed("proto-max-bulk-len", |node| {
        node.config.value_size_max.to_string()
    }),
    Parameter {
        name: "requirepass",
        get: |node| node.switches.password().to_string(),
        set: Setter::Changes(|node, text| {
            let is_open = !node.config.bind.is_loopback() && !node.config.insecure;
            if text.is_empty() && is_open {
                return Err("a node that binds beyond loopback keeps its password");
            }
            node.switches.set_password(text);
            Ok(())
        }),
    },
    // Snapshots are taken by log size.
    fixed("save", empty),
    fixed("set-max-intset-entries", |_| "512".to_owned()),
    fixed("set-max-listpack-entries", |_| "128".to_owned()),
    Parameter {
        name: "slowlog-log-slower-than",
        get: |node| node.statistics.slow_micros().to_string(),
        set: Setter::Changes(|node, text| {
            let micros = text
                .parse::<i64>()
                .ok()
                .filter(|micros| -1 <= *micros)
                .ok_or("argument must be between -1 and 9223372036854775807 inclusive")?;
            node.statistics.set_slow_micros(micros);
            Ok(())
        }),
    },
    Parameter {
        name: "slowlog-max-len",
        get: |node| node.statistics.slow_len().to_string(),
        set: Setter::Changes(|node, text| {
            let len = parse_u64(text.as_bytes())
                .filter(|len| *len <= SLOW_LOG_LEN_MAX)
                .and_then(|len| usize::try_from(len).ok())
                .ok_or("argument must be between 0 and 4096 inclusive")?;
            node.statistics.set_slow_len(len);
            Ok(())
        }),
    },
    fixed("tcp-keepalive", |_| "300".to_owned()),
    Parameter {
        name: "timeout",
        get: |node| {
            let timeout = node.switches.idle_timeout().unwrap_or_default();
            timeout.as_secs().to_string()
        },
        set: Setter::Changes(|node, text| {
            let seconds = parse_u64(text.as_bytes())
                .filter(|seconds| *seconds <= 31_536_000)
                .ok_or("argument must be between 0 and 31536000 inclusive")?;
            node.switches.set_idle_timeout(Duration::from_secs(seconds));
            Ok(())
        }),
    },
    fixed("zset-max-listpack-entries", |_| "128".to_owned()),
    fixed("zset-max-listpack-value", |_| "64".to_owned()),
];

/// A size as Redis writes it: `100mb` is 1024² bytes a hundred times, `100m` is 1000².
fn memory(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = lower.split_at_checked(digits)?;
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    parse_u64(number.as_bytes())?.checked_mul(factor)
}

/// Redis's name of a level, where there is one.
fn shown_log_level(level: &str) -> &str {
    match level {
        "info" => "notice",
        "warn" => "warning",
        "off" => "nothing",
        other => other,
    }
}

/// The level that Redis's name means. Its `verbose` is what is rarely useful but not a mess.
fn asked_log_level(name: &str) -> &str {
    match name {
        "verbose" | "notice" => "info",
        "warning" => "warn",
        "nothing" => "off",
        other => other,
    }
}

fn find(name: &[u8]) -> Option<&'static Parameter> {
    PARAMETERS
        .iter()
        .find(|parameter| parameter.name.as_bytes().eq_ignore_ascii_case(name))
}

fn invalid(message: String) -> Error {
    Error::not_done(ErrorCode::Invalid, message)
}

/// What was given, made printable and short.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .take(128)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

/// CONFIG GET: names and values of all parameters that match any of the patterns.
pub(super) fn get(node: &Context, patterns: &[Bytes], writer: &mut Writer<'_>) {
    let patterns: Vec<Vec<u8>> = patterns
        .iter()
        .map(|pattern| pattern.to_ascii_lowercase())
        .collect();
    let is_meant = |parameter: &&Parameter| {
        patterns
            .iter()
            .any(|pattern| matches(pattern, parameter.name.as_bytes()))
    };
    let found: Vec<(&str, String)> = PARAMETERS
        .iter()
        .filter(is_meant)
        .map(|parameter| (parameter.name, (parameter.get)(node)))
        .collect();
    writer.map(found.len());
    for (name, value) in found {
        writer.bulk(name.as_bytes());
        writer.bulk(value.as_bytes());
    }
}

/// CONFIG SET: all of them, or none. All parameters are found before the first is changed, and a
/// value that is refused puts those before it back.
pub(super) fn set(
    node: &Context,
    arguments: &[Bytes],
    writer: &mut Writer<'_>,
) -> Result<(), Error> {
    let mut changes = Vec::new();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else {
            return Err(error::wrong_arity("config|set"));
        };
        let Some(parameter) = find(name) else {
            return Err(invalid(format!(
                "Unknown option or number of arguments for CONFIG SET - '{}'",
                shown(name)
            )));
        };
        let value =
            std::str::from_utf8(value).map_err(|_| failed(parameter, "argument is not text"))?;
        match parameter.set {
            Setter::Changes(change) => changes.push((parameter, change, value)),
            Setter::Fixed if (parameter.get)(node).eq_ignore_ascii_case(value) => {}
            Setter::Fixed => {
                let why = "can't set immutable config: it is set at the start";
                return Err(failed(parameter, why));
            }
        }
    }
    let mut undo: Vec<(Change, String)> = Vec::new();
    for (parameter, change, value) in changes {
        let before = (parameter.get)(node);
        if let Err(why) = change(node, value) {
            for (change, value) in undo.into_iter().rev() {
                // It held a moment ago, so it is not refused.
                let _ = change(node, &value).is_ok();
            }
            return Err(failed(parameter, why));
        }
        undo.push((change, before));
    }
    writer.ok();
    Ok(())
}

fn failed(parameter: &Parameter, why: &str) -> Error {
    invalid(format!(
        "CONFIG SET failed (possibly related to argument '{}') - {why}",
        parameter.name
    ))
}

/// Whether a name matches a pattern of `*` and `?`. Names are short, so the plain algorithm will
/// do: on a mismatch the last star takes one more byte.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || name.get(seen) == Some(byte) => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    at = after;
                    seen = taken + 1;
                    star = Some((after, seen));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_in_the_order_of_their_names() {
        let names: Vec<_> = PARAMETERS.iter().map(|parameter| parameter.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert!(find(b"MaxClients").is_some());
    }

    #[test]
    fn log_levels_have_the_names_of_redis_where_it_has_them() {
        for (redis, ours) in [("notice", "info"), ("warning", "warn"), ("nothing", "off")] {
            assert_eq!(asked_log_level(redis), ours);
            assert_eq!(shown_log_level(ours), redis);
        }
        assert_eq!(asked_log_level("verbose"), "info");
        let parts = "info,flux_raft=debug";
        assert_eq!(
            (asked_log_level(parts), shown_log_level(parts)),
            (parts, parts)
        );
    }

    #[test]
    fn sizes_are_read_as_redis_writes_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("100mb", Some(104_857_600)),
            ("1K", Some(1000)),
            ("2GB", Some(2 << 30)),
            ("5b", Some(5)),
            ("", None),
            ("mb", None),
            ("1tb", None),
            ("-1", None),
            ("1 mb", None),
            ("99999999999gb", None),
        ] {
            assert_eq!(memory(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, name, is_match) in [
            ("*", "save", true),
            ("save", "save", true),
            ("s?ve", "save", true),
            ("max*", "maxmemory", true),
            ("*memory*", "maxmemory-policy", true),
            ("*-*y", "maxmemory-policy", true),
            ("", "save", false),
            ("sav", "save", false),
            ("saves", "save", false),
            ("*x", "save", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                is_match,
                "{pattern}"
            );
        }
    }
}
