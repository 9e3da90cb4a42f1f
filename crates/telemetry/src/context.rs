//! W3C Trace Context: the `traceparent` header, read and written without I/O.
//!
//! Format: <https://www.w3.org/TR/trace-context/>. Identifiers are drawn by the caller, because
//! randomness comes in as an argument everywhere.

use std::fmt;

/// Name of the header, and of the gRPC metadata entry, that carries a [`TraceContext`].
pub const TRACEPARENT: &str = "traceparent";

/// Which trace a request belongs to, and which span caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// A context, unless one of the identifiers is zero, which the format reserves for *none*.
    #[must_use]
    pub const fn new(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        if trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            flags: sampled as u8,
        })
    }

    /// Reads a header value. What does not follow the format is `None`: the receiver then starts a
    /// new trace, as the specification asks. Fields that a later version appends are ignored.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut fields = header.trim_matches([' ', '\t']).split('-');
        let version = hex(fields.next()?, 2)?;
        let trace_id = hex(fields.next()?, 32)?;
        let span_id = u64::try_from(hex(fields.next()?, 16)?).ok()?;
        let flags = u8::try_from(hex(fields.next()?, 2)?).ok()?;
        let is_followed = fields.next().is_some();
        if version == 0xff || (version == 0 && is_followed) || trace_id == 0 || span_id == 0 {
            return None;
        }
        // Of the flags only *sampled* is defined in every version; the others are not passed on.
        Some(Self {
            trace_id,
            span_id,
            flags: flags & 1,
        })
    }

    /// The trace's identifier; never 0.
    #[must_use]
    pub const fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// The identifier of the span that caused the request; never 0.
    #[must_use]
    pub const fn span_id(self) -> u64 {
        self.span_id
    }

    /// Whether the caller records this trace.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// The context to send on, with a span of our own as the cause; `None` if `span_id` is 0.
    #[must_use]
    pub const fn child(self, span_id: u64) -> Option<Self> {
        Self::new(self.trace_id, span_id, self.is_sampled())
    }
}

/// Writes the header value, version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

/// Exactly `digits` lower-case hexadecimal digits as a number.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != digits || !text.bytes().all(is_hex) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::TraceContext;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_is_read_and_written_back() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert_eq!(
            context.trace_id(),
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736
        );
        assert_eq!(context.span_id(), 0x00f0_67aa_0ba9_02b7);
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
    }

    #[test]
    fn a_later_version_may_have_more_fields_and_version_zero_may_not() {
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-the-future-brings";
        assert_eq!(
            TraceContext::parse(&later),
            TraceContext::parse(EXAMPLE),
            "known fields of a later version are used"
        );
        assert_eq!(TraceContext::parse(&format!("{EXAMPLE}-more")), None);
    }

    #[test]
    fn what_breaks_the_format_is_no_context() {
        for header in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-0f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(header), None, "{header:?}");
        }
    }

    #[test]
    fn unknown_flags_are_not_passed_on() {
        let context = TraceContext::parse(&EXAMPLE.replace("-01", "-fe")).unwrap();
        assert!(!context.is_sampled());
        assert!(context.to_string().ends_with("-00"));
    }

    #[test]
    fn a_child_keeps_the_trace_and_names_its_own_span() {
        let parent = TraceContext::parse(EXAMPLE).unwrap();
        let child = parent.child(7).unwrap();
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_eq!(child.span_id(), 7);
        assert!(child.is_sampled());
        assert_eq!(parent.child(0), None);
    }
}
