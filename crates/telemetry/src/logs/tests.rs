//! Log lines as they are written.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::repeats::{BURST, WINDOW_NANOS};
use super::{Format, check_level, filter, joined, subscriber};
use crate::context::TraceContext;
use crate::trace;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines that `work` logs.
fn lines(level: &str, format: Format, now: trace::Now, work: impl FnOnce()) -> Vec<String> {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let filter = filter(level).unwrap();
    let (subscriber, _) = subscriber(filter, format, false, now, move || writer.clone());
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(str::to_owned).collect()
}

fn logged(level: &str, format: Format) -> String {
    let lines = lines(
        level,
        format,
        || 0,
        || {
            tracing::info!(shard = 3, "became leader");
            tracing::debug!("not at info");
            tracing::debug!(target: "flux_raft", "of one target");
        },
    );
    lines.join("\n")
}

#[test]
fn text_lines_carry_message_and_fields_and_respect_the_level() {
    let text = logged("info", Format::Pretty);
    assert!(text.contains("INFO") && text.contains("became leader shard=3"));
    assert!(!text.contains("not at info"));
    assert!(
        !text.contains('\u{1b}'),
        "no colors away from a terminal: {text:?}"
    );
}

#[test]
fn one_target_can_be_louder_than_the_rest() {
    let text = logged("info,flux_raft=debug", Format::Pretty);
    assert!(text.contains("of one target") && !text.contains("not at info"));
}

#[test]
fn a_base_holds_until_the_level_speaks_of_the_same() {
    let text = logged(&joined("flux_raft=debug", "info"), Format::Pretty);
    assert!(text.contains("of one target"), "{text}");
    let text = logged(
        &joined("flux_raft=debug", "info,flux_raft=warn"),
        Format::Pretty,
    );
    assert!(!text.contains("of one target"), "{text}");
}

#[test]
fn away_from_a_terminal_lines_are_flat_json() {
    let work = || {
        tracing::warn!(
            target: "flux_x",
            shard = 3_u64,
            delta = -4_i64,
            ratio = 0.5,
            ok = true,
            not_a_number = f64::NAN,
            name = %"a\"b\\c\n\u{1b}é",
            level = "mine",
            debug = ?Some("x"),
            "said {}", 7
        );
    };
    let lines = lines("info", Format::Auto, || 0, work);
    let [line] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    let rest = line.strip_prefix("{\"ts\":\"20").unwrap();
    let (time, rest) = rest.split_once("\",").unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    assert_eq!(
        rest,
        concat!(
            r#""level":"warn","target":"flux_x","msg":"said 7","shard":3,"delta":-4,"#,
            r#""ratio":0.5,"ok":true,"not_a_number":"NaN","name":"a\"b\\c\n\u001bé","#,
            r#""level_":"mine","debug":"Some(\"x\")"}"#
        )
    );
}

#[test]
fn a_line_of_a_recorded_request_names_its_trace() {
    let context = TraceContext::new(0xabc, 0xdef, true);
    let work = || {
        trace::during(context, || tracing::info!("within"));
        tracing::info!("without");
    };
    let json = lines("info", Format::Json, || 0, work);
    let ids = r#""msg":"within","trace_id":"00000000000000000000000000000abc","span_id":"0000000000000def"}"#;
    assert!(json[0].ends_with(ids), "{json:?}");
    assert!(json[1].ends_with(r#""msg":"without"}"#), "{json:?}");
    let pretty = lines("info", Format::Pretty, || 0, work);
    assert!(
        pretty[0].ends_with("within trace_id=00000000000000000000000000000abc"),
        "{pretty:?}"
    );
}

static NOW: AtomicU64 = AtomicU64::new(0);

#[test]
fn a_warning_that_repeats_itself_is_cut_short_and_others_are_not() {
    let repeat = || tracing::warn!("again");
    let work = || {
        for _ in 0..1000 {
            repeat();
            tracing::info!("progress");
        }
        tracing::error!("another place");
        NOW.store(WINDOW_NANOS, Ordering::Relaxed);
        repeat();
    };
    let lines = lines("info", Format::Json, || NOW.load(Ordering::Relaxed), work);
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!(count("again"), BURST as usize + 1);
    assert_eq!(count("progress"), 1000);
    assert_eq!(count("another place"), 1);
    let left_out = format!(r#""msg":"again","left_out":{}}}"#, 1000 - BURST);
    assert!(lines.last().unwrap().ends_with(&left_out), "{lines:?}");
}

#[test]
fn what_is_no_level_is_refused_by_name() {
    for level in ["", "loud", "info,", "flux_raft=loud", "infos"] {
        let error = check_level(level).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{level:?}")),
            "{level}: {error}"
        );
    }
    for level in ["off", "ERROR", "warn,flux_log=trace", "debug"] {
        check_level(level).unwrap();
    }
}
