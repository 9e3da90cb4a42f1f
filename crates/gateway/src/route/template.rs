//! Path templates of `google.api.http`: grammar, parsing, and the values of their variables.
//!
//! ```text
//! Template = "/" Segments [ ":" LITERAL ]
//! Segments = Segment { "/" Segment }
//! Segment  = "*" | "**" | LITERAL | "{" FieldPath [ "=" Segments ] "}"
//! ```
//! `**` may only be the last segment. A variable of one segment is percent-decoded whole, `%2F`
//! too; one of several keeps `%2F` as it came, since decoding it would invent a separator.

use percent_encoding::percent_decode;
use thiserror::Error;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Segment>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) verb: Option<String>,
}

/// What one segment of a path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Exactly this, after percent-decoding.
    Literal(String),
    /// Any one segment.
    One,
    /// Zero or more segments, to the end.
    Rest,
}

/// A variable and the segments that make up its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    /// `a.b.c`
    pub(crate) field: String,
    /// First segment.
    pub(crate) start: usize,
    /// Past the last segment; with `**` the value goes to the end of the path instead.
    pub(crate) end: usize,
    /// Whether it ends in `**`.
    pub(crate) is_open: bool,
}

/// Why a text is not a template.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("path template {template:?}: {problem}")]
pub(crate) struct TemplateError {
    template: String,
    problem: &'static str,
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |problem| TemplateError {
            template: text.to_owned(),
            problem,
        };
        let body = text
            .strip_prefix('/')
            .ok_or_else(|| wrong("must begin with /"))?;
        let (body, verb) = split_verb(body);
        if verb.is_some_and(|verb| verb.is_empty() || !is_literal(verb)) {
            return Err(wrong("nothing sensible follows the colon"));
        }
        let mut template = Self {
            segments: Vec::new(),
            variables: Vec::new(),
            verb: verb.map(str::to_owned),
        };
        for part in split_segments(body) {
            match part.strip_prefix('{') {
                Some(inner) => {
                    let inner = inner
                        .strip_suffix('}')
                        .ok_or_else(|| wrong("{ without }"))?;
                    template.variable(inner).map_err(wrong)?;
                }
                None => template.segment(part).map_err(wrong)?,
            }
        }
        let rest = template
            .segments
            .iter()
            .position(|segment| *segment == Segment::Rest);
        if rest.is_some_and(|at| at + 1 != template.segments.len()) {
            return Err(wrong("** must be the last segment"));
        }
        Ok(template)
    }

    fn variable(&mut self, inner: &str) -> Result<(), &'static str> {
        let (field, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
        if !field.split('.').all(is_identifier) {
            return Err("a variable's name is not a field path");
        }
        if self
            .variables
            .iter()
            .any(|variable| variable.field == field)
        {
            return Err("a variable occurs twice");
        }
        let start = self.segments.len();
        for part in pattern.split('/') {
            self.segment(part)?;
        }
        self.variables.push(Variable {
            field: field.to_owned(),
            start,
            end: self.segments.len(),
            is_open: self.segments.last() == Some(&Segment::Rest),
        });
        Ok(())
    }

    fn segment(&mut self, part: &str) -> Result<(), &'static str> {
        self.segments.push(match part {
            "*" => Segment::One,
            "**" => Segment::Rest,
            "" => return Err("a segment is empty"),
            _ if !is_literal(part) => return Err("a segment holds a character that it may not"),
            _ => Segment::Literal(part.to_owned()),
        });
        Ok(())
    }
}

impl Variable {
    /// The value that it has in a path, given the path's raw segments.
    pub(crate) fn value(&self, segments: &[&str]) -> Vec<u8> {
        let end = if self.is_open {
            segments.len()
        } else {
            self.end
        };
        let own = segments.get(self.start..end).unwrap_or_default();
        if self.end == self.start + 1 && !self.is_open {
            return own
                .first()
                .map(|one| percent_decode(one.as_bytes()).collect())
                .unwrap_or_default();
        }
        own.iter()
            .map(|segment| decode_but_slash(segment))
            .collect::<Vec<_>>()
            .join(&b'/')
    }
}

/// Percent-decodes all but `%2F`, which stays as it came.
fn decode_but_slash(segment: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.find("%2F").or_else(|| rest.find("%2f")) {
        // Both spellings are looked for; take whichever comes first.
        let at = rest.find("%2f").map_or(at, |other| at.min(other));
        let (head, tail) = rest.split_at(at);
        out.extend(percent_decode(head.as_bytes()));
        let (slash, tail) = tail.split_at_checked(3).unwrap_or((tail, ""));
        out.extend_from_slice(slash.as_bytes());
        rest = tail;
    }
    out.extend(percent_decode(rest.as_bytes()));
    out
}

/// Cuts `a/{b=c/*}/d` at the slashes that are outside braces.
fn split_segments(body: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    body.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == '/' && depth == 0
    })
    .collect()
}

/// Cuts off `:verb`, the last colon outside braces.
fn split_verb(body: &str) -> (&str, Option<&str>) {
    let tail_start = body.rfind(['}', '/']).map_or(0, |at| at + 1);
    match body.get(tail_start..).and_then(|tail| tail.rfind(':')) {
        Some(at) => {
            let colon = tail_start + at;
            (body.get(..colon).unwrap_or_default(), body.get(colon + 1..))
        }
        None => (body, None),
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_literal(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.~!$&'()+,;=@%".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let Ok(template) = Template::parse(text) else {
            return "refused".to_owned();
        };
        let segments: Vec<&str> = template
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => text.as_str(),
                Segment::One => "*",
                Segment::Rest => "**",
            })
            .collect();
        let variables: Vec<String> = template
            .variables
            .iter()
            .map(|v| format!("{}@{}..{}", v.field, v.start, v.end))
            .collect();
        format!(
            "{} {:?} {}",
            segments.join("/"),
            template.verb.unwrap_or_default(),
            variables.join(",")
        )
        .trim_end()
        .to_owned()
    }

    #[test]
    fn the_grammar_of_http_proto() {
        for (text, shown) in [
            ("/v1/kv", r#"v1/kv """#),
            ("/v1/kv/{key}", r#"v1/kv/* "" key@2..3"#),
            (
                "/v1/{name=shelves/*/books/*}",
                r#"v1/shelves/*/books/* "" name@1..5"#,
            ),
            ("/v1/{name=files/**}", r#"v1/files/** "" name@1..3"#),
            (
                "/v1/{a.b}/x/{c=**}:undo",
                r#"v1/*/x/** "undo" a.b@1..2,c@3..4"#,
            ),
            ("/v1/things:search", r#"v1/things "search""#),
            ("/v1/*/x", r#"v1/*/x """#),
            ("/**", r#"** """#),
            ("v1", "refused"),
            ("/", "refused"),
            ("/v1//x", "refused"),
            ("/v1/{x", "refused"),
            ("/v1/x}", "refused"),
            ("/v1/{}", "refused"),
            ("/v1/{a={b}}", "refused"),
            ("/v1/{a=**}/x", "refused"),
            ("/v1/**/x", "refused"),
            ("/v1/{a}/{a}", "refused"),
            ("/v1/x:", "refused"),
            ("/v1/{1a}", "refused"),
            ("/v1/a b", "refused"),
        ] {
            assert_eq!(show(text), shown, "{text}");
        }
    }

    #[test]
    fn variables_decode_by_how_many_segments_they_span() {
        let value = |template: &str, path: &str| {
            let template = Template::parse(template).unwrap();
            let segments: Vec<&str> = path.split('/').collect();
            String::from_utf8(template.variables[0].value(&segments)).unwrap()
        };
        assert_eq!(value("/kv/{key}", "kv/a%2Fb%20c"), "a/b c");
        assert_eq!(
            value("/kv/{key=**}", "kv/a%2Fb/c%20d%2f%2F"),
            "a%2Fb/c d%2f%2F"
        );
        assert_eq!(value("/kv/{key=**}", "kv"), "");
        assert_eq!(value("/{name=a/*}/x", "a/b%2Fc/x"), "a/b%2Fc");
    }
}
