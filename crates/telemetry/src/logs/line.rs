//! One event as one line: a flat JSON object, or text.
//!
//! JSON keys are `ts`, `level`, `target`, `msg`, then `trace_id` and `span_id` of a recorded
//! request, then the event's fields as they are named; a field that bears one of these names gets
//! an underscore behind it.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::repeats::Repeats;
use crate::trace;

/// Names that an event's own fields cannot have.
const RESERVED: [&str; 7] = [
    "ts", "level", "target", "msg", "trace_id", "span_id", "left_out",
];

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    is_json: bool,
    repeats: Repeats,
}

impl Line {
    pub(super) const fn new(is_json: bool, repeats: Repeats) -> Self {
        Self { is_json, repeats }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(left_out) = self.repeats.admit(event.metadata()) else {
            return Ok(());
        };
        if self.is_json {
            return json(&mut writer, event, left_out);
        }
        head(&mut writer, event)?;
        context.format_fields(writer.by_ref(), event)?;
        if let Some(trace) = trace::current() {
            write!(writer, " trace_id={:032x}", trace.trace_id())?;
        }
        if left_out > 0 {
            write!(writer, " left_out={left_out}")?;
        }
        writer.write_char('\n')
    }
}

/// Time, level and target for people.
fn head(writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let metadata = event.metadata();
    let level = *metadata.level();
    let (dim, color, end) = if writer.has_ansi_escapes() {
        let color = match level {
            Level::ERROR => "\u{1b}[31m",
            Level::WARN => "\u{1b}[33m",
            Level::INFO => "\u{1b}[32m",
            _ => "\u{1b}[34m",
        };
        ("\u{1b}[2m", color, "\u{1b}[0m")
    } else {
        ("", "", "")
    };
    writer.write_str(dim)?;
    SystemTime.format_time(writer)?;
    let target = metadata.target();
    write!(writer, "{end} {color}{level:>5}{end} {dim}{target}:{end} ")
}

fn json(writer: &mut Writer<'_>, event: &Event<'_>, left_out: u64) -> fmt::Result {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    writer.write_str("{\"ts\":\"")?;
    SystemTime.format_time(writer)?;
    write!(
        writer,
        "\",\"level\":\"{}\",\"target\":",
        metadata.level().as_str().to_ascii_lowercase()
    )?;
    string(writer, metadata.target())?;
    writer.write_str(",\"msg\":")?;
    string(writer, &fields.message)?;
    if let Some(trace) = trace::current() {
        write!(
            writer,
            ",\"trace_id\":\"{:032x}\",\"span_id\":\"{:016x}\"",
            trace.trace_id(),
            trace.span_id()
        )?;
    }
    if left_out > 0 {
        write!(writer, ",\"left_out\":{left_out}")?;
    }
    writer.write_str(&fields.others)?;
    writer.write_str("}\n")
}

/// An event's message, and its other fields as the inside of a JSON object.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl FnOnce(&mut String) -> fmt::Result) {
        let name = field.name();
        let mark = if RESERVED.contains(&name) { "_" } else { "" };
        self.others.push(',');
        // Writing to a String cannot fail.
        let _ = string(&mut self.others, &format!("{name}{mark}"));
        self.others.push(':');
        let _ = value(&mut self.others);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities.
        if value.is_finite() {
            self.put(field, |out| write!(out, "{value}"));
        } else {
            self.put(field, |out| write!(out, "\"{value}\""));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, |out| string(out, value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// A JSON string.
fn string(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            control if u32::from(control) < 0x20 => write!(out, "\\u{:04x}", u32::from(control))?,
            // A terminal that shows the log must not obey what a peer has sent.
            '\u{7f}'..='\u{9f}' => write!(out, "\\u{:04x}", u32::from(character))?,
            other => out.write_char(other)?,
        }
    }
    out.write_char('"')
}
