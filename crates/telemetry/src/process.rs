//! Metrics of the process itself: memory, processor time, descriptors, start.
//!
//! This module reads `/proc`, although files are otherwise reached through `flux_env::Disk`: what
//! it reads is the kernel's view of this very process, which a simulated disk cannot have, and no
//! decision depends on it. Where `/proc` is missing the metrics are simply absent.
//!
//! The names are those of the Prometheus client libraries (`process_…`), so that existing
//! dashboards find them.

use std::fs;

use crate::metrics::{Kind, Registry, Samples};

/// Units of processor time that `/proc` counts in, per second: `USER_HZ`, which Linux has fixed at
/// 100 for user space on every architecture that Rust's standard library supports in tier 1 and 2.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads one number, where the kernel tells it.
type Read = fn() -> Option<f64>;

/// Adds the process's own metrics to `registry`. Call it once per registry.
pub fn register(registry: &Registry) {
    let families: [(&str, &str, Kind, Read); 6] = [
        (
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM",
            Kind::Gauge,
            resident_memory_bytes,
        ),
        (
            "process_virtual_memory_bytes",
            "Address space of the process",
            Kind::Gauge,
            virtual_memory_bytes,
        ),
        (
            "process_cpu_seconds",
            "Processor time used, user and system",
            Kind::Counter,
            cpu_seconds,
        ),
        (
            "process_open_fds",
            "Open file descriptors",
            Kind::Gauge,
            open_fds,
        ),
        (
            "process_max_fds",
            "Most file descriptors that may be open",
            Kind::Gauge,
            max_fds,
        ),
        (
            "process_start_time_seconds",
            "When the process started, in seconds since the Unix epoch",
            Kind::Gauge,
            start_time_seconds,
        ),
    ];
    for (name, help, kind, read) in families {
        registry.collect(
            name,
            help,
            kind,
            &[],
            move |samples: &mut Samples<'_, '_>| {
                if let Some(value) = read() {
                    samples.push(&[], value);
                }
            },
        );
    }
}

/// Resident memory in bytes, or `None` where the kernel does not tell.
#[must_use]
pub fn resident_memory_bytes() -> Option<f64> {
    status_kib("VmRSS:").map(|kib| kib * 1024.0)
}

fn virtual_memory_bytes() -> Option<f64> {
    status_kib("VmSize:").map(|kib| kib * 1024.0)
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let user: f64 = stat_field(&stat, 14)?;
    let system: f64 = stat_field(&stat, 15)?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn start_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let after_boot: f64 = stat_field(&stat, 22)?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = value_of(&kernel, "btime")?.parse().ok()?;
    Some(booted + after_boot / TICKS_PER_SECOND)
}

fn open_fds() -> Option<f64> {
    // The descriptor that reads the folder is counted too, and is taken off again.
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(f64::from(u32::try_from(count.saturating_sub(1)).ok()?))
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn status_kib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    value_of(&status, name)?.parse().ok()
}

/// The first word after `name` on the line that begins with it.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()
}

/// Field `number` (from 1, as in proc(5)) of `/proc/self/stat`. The second is the program's name
/// in parentheses and may hold anything, so fields are counted from the last parenthesis.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::{register, stat_field};
    use crate::metrics::Registry;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13";
        assert_eq!(stat_field(stat, 4), Some(1.0));
        assert_eq!(stat_field(stat, 14), Some(11.0));
        assert_eq!(stat_field(stat, 99), None);
        assert_eq!(stat_field("no parenthesis", 4), None);
    }

    #[test]
    fn this_process_has_memory_descriptors_and_a_start() {
        let registry = Registry::new();
        register(&registry);
        let text = registry.encode();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap_or_else(|| panic!("{name} is missing in {text}"));
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let year_2020 = 1_577_836_800.0;
        assert!(value("process_start_time_seconds") > year_2020);
    }
}
