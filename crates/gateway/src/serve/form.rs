//! How a stream of messages is written: server-sent events, lines, one array, or raw bytes.
//!
//! Pure functions over bytes. A failure after the first byte cannot change the status anymore, so
//! each form has a place for it: an event named `error`, a last line or element `{"error":…}`.

use http::HeaderMap;
use http::header::{ACCEPT, HeaderValue};

use super::render::Render;
use crate::config::StreamForm;

/// One form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Sse,
    Ndjson,
    Array,
    /// The content of `google.api.HttpBody` messages, one after the other.
    Raw,
}

impl Form {
    /// What the caller accepts, else what the route says, else an array.
    pub(crate) fn negotiate(headers: &HeaderMap, render: &Render) -> Self {
        if render.is_raw() {
            return Self::Raw;
        }
        let default = match render.route.stream.form {
            Some(StreamForm::Sse) => Self::Sse,
            Some(StreamForm::Ndjson) => Self::Ndjson,
            Some(StreamForm::Array) | None => Self::Array,
        };
        accepted(headers, default)
    }

    pub(crate) const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
            Self::Array => "application/json",
            Self::Raw => "application/octet-stream",
        })
    }
}

/// The form that the caller wants most; of equals the first.
fn accepted(headers: &HeaderMap, default: Form) -> Form {
    let mut best = (default, 0);
    let values = headers.get_all(ACCEPT).iter();
    let ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let form = match parts.next().map(str::to_ascii_lowercase).as_deref() {
            Some("text/event-stream") => Form::Sse,
            Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
                Form::Ndjson
            }
            Some("application/json") => Form::Array,
            Some("*/*") => default,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        let quality = quality.map_or(Some(1_000), thousandths).unwrap_or_default();
        if quality > best.1 {
            best = (form, quality);
        }
    }
    best.0
}

/// A quality value such as `0.75`.
fn thousandths(text: &str) -> Option<u32> {
    let quality: f32 = text.parse().ok()?;
    // RFC 9110 allows three digits; hence the thousand steps.
    (0..=1_000).rfind(|step: &u32| f64::from(*step) / 1_000.0 <= f64::from(quality) + 1e-6)
}

/// One message as the parts of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Labels<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) event: Option<&'a str>,
}

/// Writes one stream.
#[derive(Debug)]
pub(crate) struct Writer {
    form: Form,
    /// Whether an array has begun.
    is_begun: bool,
}

impl Writer {
    pub(crate) const fn new(form: Form) -> Self {
        Self {
            form,
            is_begun: false,
        }
    }

    /// Appends a message: JSON, or the bytes of a raw one.
    pub(crate) fn message(&mut self, message: &[u8], labels: Labels<'_>, out: &mut Vec<u8>) {
        match self.form {
            Form::Sse => {
                put_line(out, b"id: ", labels.id);
                put_line(out, b"event: ", labels.event);
                put_event_data(out, message);
            }
            Form::Ndjson => {
                out.extend_from_slice(message);
                out.push(b'\n');
            }
            Form::Array => self.element(message, out),
            Form::Raw => out.extend_from_slice(message),
        }
    }

    /// Appends the failure that ends the stream, a `google.rpc.Status` as JSON, and the end.
    pub(crate) fn failure(&mut self, status: &[u8], out: &mut Vec<u8>) {
        let wrapped = || [b"{\"error\":", status, b"}"].concat();
        match self.form {
            Form::Sse => {
                out.extend_from_slice(b"event: error\n");
                put_event_data(out, status);
            }
            Form::Ndjson => {
                out.extend_from_slice(&wrapped());
                out.push(b'\n');
            }
            Form::Array => {
                self.element(&wrapped(), out);
                out.extend_from_slice(b"\n]\n");
            }
            // Raw bytes have no place for it: the connection is cut instead.
            Form::Raw => {}
        }
    }

    /// Appends the end of a stream that came to its end.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        match self.form {
            // Without it an `EventSource` would ask again for what was whole.
            Form::Sse => out.extend_from_slice(b"event: end\ndata: {}\n\n"),
            Form::Array if self.is_begun => out.extend_from_slice(b"\n]\n"),
            Form::Array => out.extend_from_slice(b"[]\n"),
            Form::Ndjson | Form::Raw => {}
        }
    }

    /// Appends a sign of life, where the form has one that no reader stumbles over.
    pub(crate) fn ping(&self, out: &mut Vec<u8>) {
        match self.form {
            Form::Sse => out.extend_from_slice(b": ping\n\n"),
            Form::Array if self.is_begun => out.push(b'\n'),
            Form::Array | Form::Ndjson | Form::Raw => {}
        }
    }

    fn element(&mut self, json: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(if self.is_begun { b",\n" } else { b"[\n" });
        self.is_begun = true;
        out.extend_from_slice(json);
    }
}

/// A line of an event. What would end the line, or is ignored by readers, is left out whole.
fn put_line(out: &mut Vec<u8>, name: &[u8], value: Option<&str>) {
    let Some(value) = value.filter(|value| !value.contains(['\n', '\r', '\0'])) else {
        return;
    };
    out.extend_from_slice(name);
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// Our JSON has no line ends.
fn put_event_data(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(accept: &str) -> Form {
        let headers: HeaderMap = [(ACCEPT, accept.parse().unwrap())].into_iter().collect();
        accepted(&headers, Form::Array)
    }

    #[test]
    fn the_form_follows_what_the_caller_wants_most() {
        for (accept, expected) in [
            ("text/event-stream", Form::Sse),
            ("Text/Event-Stream; charset=utf-8", Form::Sse),
            ("application/x-ndjson", Form::Ndjson),
            ("application/jsonl", Form::Ndjson),
            ("application/json", Form::Array),
            ("*/*", Form::Array),
            ("text/html, */*;q=0.8", Form::Array),
            ("*/*;q=0.1, text/event-stream;q=0.2", Form::Sse),
            (
                "application/x-ndjson;q=0.5, text/event-stream;q=0.501",
                Form::Sse,
            ),
            ("application/x-ndjson, text/event-stream", Form::Ndjson),
            ("text/event-stream;q=0", Form::Array),
            ("text/event-stream;q=nonsense", Form::Array),
            ("image/png", Form::Array),
            ("", Form::Array),
        ] {
            assert_eq!(choose(accept), expected, "{accept:?}");
        }
        assert_eq!(accepted(&HeaderMap::new(), Form::Sse), Form::Sse);
    }

    fn written(form: Form, messages: &[&str], failure: Option<&str>) -> String {
        let mut writer = Writer::new(form);
        let mut out = Vec::new();
        for message in messages {
            writer.ping(&mut out);
            let labels = Labels {
                id: Some("7"),
                event: None,
            };
            writer.message(message.as_bytes(), labels, &mut out);
        }
        match failure {
            Some(status) => writer.failure(status.as_bytes(), &mut out),
            None => writer.end(&mut out),
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_form_is_well_formed_whole_and_broken() {
        for (form, messages, failure, expected) in [
            (Form::Array, &[][..], None, "[]\n"),
            (Form::Array, &["1", "2"], None, "[\n1\n,\n2\n]\n"),
            (
                Form::Array,
                &["1"],
                Some("{}"),
                "[\n1,\n{\"error\":{}}\n]\n",
            ),
            (Form::Array, &[], Some("{}"), "[\n{\"error\":{}}\n]\n"),
            (Form::Ndjson, &["1", "2"], None, "1\n2\n"),
            (Form::Ndjson, &["1"], Some("{}"), "1\n{\"error\":{}}\n"),
            (
                Form::Sse,
                &["1"],
                None,
                ": ping\n\nid: 7\ndata: 1\n\nevent: end\ndata: {}\n\n",
            ),
            (Form::Sse, &[], Some("{}"), "event: error\ndata: {}\n\n"),
        ] {
            let text = written(form, messages, failure);
            assert_eq!(text, expected, "{form:?}");
            if form == Form::Array {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
        }
    }

    #[test]
    fn a_label_cannot_forge_an_event() {
        let labels = Labels {
            id: Some("1\n\ndata: forged"),
            event: Some("a\rb"),
        };
        let mut out = Vec::new();
        Writer::new(Form::Sse).message(b"{}", labels, &mut out);
        assert_eq!(out, b"data: {}\n\n");
    }
}
