//! INFO: the node described in Redis's sections and names, as tools expect them.
//!
//! The version is that of the Redis whose behavior clients may expect; ours is `flux_version`.

use std::fmt::Write as _;

use bytes::Bytes;
use flux_telemetry::process;
use flux_wire::resp::error;

use crate::context::Context;
use crate::metrics::COMMANDS;
use crate::readiness::Readiness;
use crate::statistics::Counted;

/// A section: its name in requests and as it is shown, whether it is among the defaults, and what
/// writes it.
struct Section {
    name: &'static str,
    title: &'static str,
    is_default: bool,
    write: fn(&Context, &Stats, &mut String),
}

static SECTIONS: &[Section] = &[
    section("server", "Server", server),
    section("clients", "Clients", clients),
    section("memory", "Memory", memory),
    section("persistence", "Persistence", persistence),
    section("stats", "Stats", statistics),
    section("replication", "Replication", replication),
    section("cpu", "CPU", cpu),
    section("modules", "Modules", |_, _, _| {}),
    Section {
        name: "commandstats",
        title: "Commandstats",
        is_default: false,
        write: command_stats,
    },
    section("errorstats", "Errorstats", error_stats),
    section("cluster", "Cluster", cluster),
    section("keyspace", "Keyspace", keyspace),
    section("flux", "Flux", flux),
];

const fn section(
    name: &'static str,
    title: &'static str,
    write: fn(&Context, &Stats, &mut String),
) -> Section {
    Section {
        name,
        title,
        is_default: true,
        write,
    }
}

/// Numbers that several sections show.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// Keys of all shards.
    pub(super) keys: u64,
    /// Keys with a deadline.
    pub(super) expires: u64,
    /// Bytes that entries take.
    pub(super) data_bytes: u64,
    /// Bytes of the process.
    pub(super) resident_bytes: u64,
    pub(super) is_ready: bool,
    /// What was counted since CONFIG RESETSTAT.
    pub(super) counted: Counted,
}

/// What is counted, since the start.
pub(super) fn counted(node: &Context) -> Counted {
    let (hits, misses) = node.lookups.read();
    let shards = node.home.shards();
    let shards = shards.iter();
    Counted {
        hits,
        misses,
        expired: shards.map(|shard| shard.store().stats().expired).sum(),
        ..Counted::of(&node.metrics)
    }
}

impl Stats {
    pub(super) fn collect(node: &Context) -> Self {
        let mut stats = Self {
            is_ready: node.is_ready(),
            ..Self::default()
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size in bytes is a whole number below 2^53"
        )]
        if let Some(bytes) = process::resident_memory_bytes() {
            stats.resident_bytes = bytes as u64;
        }
        for shard in node.home.shards().iter() {
            let store = shard.store();
            stats.keys += store.len() as u64;
            stats.data_bytes += store.memory_bytes();
            let counts = store.stats();
            stats.expires += counts.keys_with_deadline;
        }
        stats.counted = node.statistics.since_reset(&counted(node));
        stats
    }
}

/// The text of the sections asked for.
pub(super) fn render(node: &Context, wanted: &[Bytes]) -> String {
    let stats = Stats::collect(node);
    let is_wanted = |section: &Section| {
        if wanted.is_empty() {
            return section.is_default;
        }
        wanted.iter().any(|word| {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            is(section.name)
                || is("all")
                || is("everything")
                || (is("default") && section.is_default)
        })
    };
    let mut out = String::new();
    for section in SECTIONS.iter().filter(|section| is_wanted(section)) {
        if !out.is_empty() {
            out.push_str("\r\n");
        }
        put(&mut out, format_args!("# {}", section.title));
        (section.write)(node, &stats, &mut out);
    }
    out
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(line).is_ok();
    out.push_str("\r\n");
}

macro_rules! lines {
    ($out:ident, $($key:literal : $value:expr),* $(,)?) => {
        $(put($out, format_args!("{}:{}", $key, $value));)*
    };
}

fn server(node: &Context, _: &Stats, out: &mut String) {
    let uptime = node.uptime().as_secs();
    lines!(out,
        "redis_version": super::REDIS_VERSION,
        "redis_mode": if node.looks_like_cluster() { "cluster" } else { "standalone" },
        "flux_version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch_bits": usize::BITS,
        "multiplexing_api": "epoll",
        "process_id": std::process::id(),
        "run_id": format_args!("{:016x}{:016x}{:08x}", node.identity.cluster.get(), node.identity.node.get(), std::process::id()),
        "tcp_port": node.addresses.resp.port(),
        "server_time_usec": node.now_millis().saturating_mul(1000),
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime / 86_400,
        "hz": 10,
        "io_threads_active": 1,
    );
}

fn cluster(node: &Context, _: &Stats, out: &mut String) {
    lines!(out, "cluster_enabled": u8::from(node.looks_like_cluster()));
}

fn clients(node: &Context, _: &Stats, out: &mut String) {
    lines!(out,
        "connected_clients": node.metrics.connections(),
        "cluster_connections": 0,
        "maxclients": node.switches.connections_max(),
        "blocked_clients": 0,
        "tracking_clients": 0,
    );
}

fn memory(node: &Context, stats: &Stats, out: &mut String) {
    lines!(out,
        "used_memory": stats.data_bytes,
        "used_memory_human": human(stats.data_bytes),
        "used_memory_rss": stats.resident_bytes,
        "used_memory_rss_human": human(stats.resident_bytes),
        "used_memory_dataset": stats.data_bytes,
        "maxmemory": node.switches.max_memory(),
        "maxmemory_human": human(node.switches.max_memory()),
        "maxmemory_policy": "noeviction",
        "mem_allocator": "mimalloc",
        "active_defrag_running": 0,
    );
}

/// A size as Redis shows it to people: `1.50M`.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["K", "M", "G", "T", "P"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    // Hundredths of a unit, without a float.
    let mut hundredths = u128::from(bytes) * 100 / 1024;
    let mut unit = 0;
    while hundredths >= 102_400 && unit + 1 < UNITS.len() {
        hundredths /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    format!("{}.{:02}{name}", hundredths / 100, hundredths % 100)
}

fn persistence(node: &Context, stats: &Stats, out: &mut String) {
    lines!(out,
        "loading": u8::from(!stats.is_ready),
        "async_loading": 0,
        "rdb_changes_since_last_save": 0,
        "rdb_bgsave_in_progress": 0,
        "rdb_last_bgsave_status": "ok",
        "aof_enabled": 1,
        "aof_rewrite_in_progress": 0,
        "aof_last_write_status": if node.log.poison_reason().is_none() { "ok" } else { "err" },
        "aof_fsync": node.config.fsync.as_redis_str(),
    );
}

fn statistics(_: &Context, stats: &Stats, out: &mut String) {
    let counted = &stats.counted;
    lines!(out,
        "total_connections_received": counted.connections,
        "total_commands_processed": counted.calls(),
        "total_error_replies": counted.error_count(),
        "expired_keys": counted.expired,
        "expired_stale_perc": "0.00",
        "evicted_keys": 0,
        "keyspace_hits": counted.hits,
        "keyspace_misses": counted.misses,
        "pubsub_channels": 0,
        "pubsub_patterns": 0,
    );
}

fn replication(_: &Context, _: &Stats, out: &mut String) {
    lines!(out,
        "role": "master",
        "connected_slaves": 0,
        "master_repl_offset": 0,
        "repl_backlog_active": 0,
    );
}

fn cpu(_: &Context, _: &Stats, out: &mut String) {
    // The kernel accounts for the process as a whole; see /metrics for how it grows.
    lines!(out, "used_cpu_sys_children": "0.000000", "used_cpu_user_children": "0.000000");
}

/// The time is what clients see, from arrival to answer, and the sync of a write is in it.
fn command_stats(_: &Context, stats: &Stats, out: &mut String) {
    for ((_, name), totals) in COMMANDS.iter().zip(&stats.counted.commands) {
        let calls = totals.calls();
        if calls == 0 && totals.rejected == 0 {
            continue;
        }
        // Two digits after the point, without a float.
        let hundredths = totals.micros.saturating_mul(100) / calls.max(1);
        put(
            out,
            format_args!(
                "cmdstat_{name}:calls={calls},usec={},usec_per_call={}.{:02},rejected_calls={},failed_calls={}",
                totals.micros,
                hundredths / 100,
                hundredths % 100,
                totals.rejected,
                totals.failed,
            ),
        );
    }
}

fn error_stats(_: &Context, stats: &Stats, out: &mut String) {
    for (word, count) in error::WORDS.iter().zip(stats.counted.errors) {
        if count > 0 {
            put(out, format_args!("errorstat_{word}:count={count}"));
        }
    }
}

fn keyspace(_: &Context, stats: &Stats, out: &mut String) {
    if stats.keys > 0 {
        put(
            out,
            format_args!(
                "db0:keys={},expires={},avg_ttl=0",
                stats.keys, stats.expires
            ),
        );
    }
}

fn flux(node: &Context, _: &Stats, out: &mut String) {
    lines!(out,
        "node_id": format_args!("{:016x}", node.identity.node.get()),
        "cluster_id": format_args!("{:016x}", node.identity.cluster.get()),
        "shards": node.home.shards().len(),
        "cores": node.config.thread_count(),
        "fsync": node.config.fsync.as_str(),
        "data_dir": node.config.data_dir.display(),
    );
    for shard in node.shards() {
        put(
            out,
            format_args!(
                "shard{}:role={},term={},committed={},applied={},writable={}",
                shard.shard,
                shard.role,
                shard.term,
                shard.committed,
                shard.applied,
                u8::from(shard.is_writable)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_are_shown_to_people_as_redis_shows_them() {
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00K"),
            (1536, "1.50K"),
            (104_857_600, "100.00M"),
            (1 << 60, "1024.00P"),
        ] {
            assert_eq!(human(bytes), shown);
        }
    }
}
