//! Request ids: what tells a retry of a write from another write.
//!
//! A client draws a *session* once and numbers its writes in it. Each shard keeps, in its
//! replicated state, what became of the writes of each session, so that a second attempt is
//! answered as the first was and changes nothing. How long that is kept and what happens after is
//! in `docs/retries.md`.
//!
//! A session says when it began: it is a UUID of version 7 (RFC 9562). That is what lets a shard
//! tell a session that it has never seen from one that it has forgotten.

use std::fmt;

use crate::UnixMillis;

/// A client's session: a UUID of version 7, drawn by the client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u128);

/// Bits of a UUID that say its version and variant.
const FIXED_MASK: u128 = 0xf000_c000_0000_0000_0000;
/// What they are in version 7.
const FIXED: u128 = 0x7000_8000_0000_0000_0000;
/// The first 48 bits are the time.
const TIME_SHIFT: u32 = 80;
/// Hexadecimal digits after which a hyphen stands in the text form.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl SessionId {
    /// A session that begins at a time, with 74 of these random bits. The time has 48 bits, which
    /// last until the year 10889; a later one is cut.
    #[must_use]
    pub const fn draw(began_at: UnixMillis, random: u128) -> Self {
        let time = (began_at.get() as u128) << TIME_SHIFT;
        let random = random & ((1 << TIME_SHIFT) - 1);
        Self(((time | random) & !FIXED_MASK) | FIXED)
    }

    /// The session of a raw number, big-endian as a UUID is; `None` if it is no UUID of version 7.
    #[must_use]
    pub const fn new(raw: u128) -> Option<Self> {
        if raw & FIXED_MASK == FIXED {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The raw number.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }

    /// When it began, by the clock of whoever drew it.
    #[must_use]
    pub const fn began_at(self) -> UnixMillis {
        UnixMillis::new((self.0 >> TIME_SHIFT) as u64)
    }

    /// Reads the text form: `0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071`, in either case.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut raw: u128 = 0;
        let mut rest = text;
        for (number, digits) in GROUPS.into_iter().enumerate() {
            if number != 0 {
                rest = rest.strip_prefix(b"-")?;
            }
            let (group, after) = rest.split_at_checked(digits)?;
            for digit in group {
                raw = (raw << 4) | u128::from(char::from(*digit).to_digit(16)?);
            }
            rest = after;
        }
        if rest.is_empty() {
            Self::new(raw)
        } else {
            None
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shift = u128::BITS;
        for (number, digits) in GROUPS.into_iter().enumerate() {
            if number != 0 {
                formatter.write_str("-")?;
            }
            for _ in 0..digits {
                shift -= 4;
                write!(formatter, "{:x}", (self.0 >> shift) & 0xf)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Identifies one write over its retries: applied at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The client's session.
    pub session: SessionId,
    /// Counts the session's writes, from 1.
    pub sequence: u64,
    /// The lowest sequence of the session whose reply the client still waits for: what is below
    /// it is forgotten, and never carried out again. Between 1 and `sequence`.
    pub lowest_unanswered: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071";

    #[test]
    fn the_text_form_reads_back_and_says_when_the_session_began() {
        let session = SessionId::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(session.to_string(), TEXT);
        assert_eq!(session.began_at().get(), 0x0190_a6d4_7c2e);
        assert_eq!(SessionId::new(session.get()), Some(session));
        assert_eq!(
            SessionId::parse(TEXT.to_uppercase().as_bytes()),
            Some(session)
        );
    }

    #[test]
    fn what_is_no_uuid_of_version_7_is_refused() {
        for text in [
            "",
            "0190a6d4-7c2e-4d3f-8a1b-2c3d4e5f6071",
            "0190a6d4-7c2e-7d3f-0a1b-2c3d4e5f6071",
            "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f607",
            "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f60711",
            "0190a6d47c2e7d3f8a1b2c3d4e5f6071",
            "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f60é",
        ] {
            assert_eq!(SessionId::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_drawn_session_keeps_its_time_and_all_free_bits() {
        let began = UnixMillis::new(1_767_225_600_000);
        let low = SessionId::draw(began, 0);
        let high = SessionId::draw(began, u128::MAX);
        assert_eq!((low.began_at(), high.began_at()), (began, began));
        assert_eq!((low.get() ^ high.get()).count_ones(), 74);
        assert_eq!(SessionId::new(high.get()), Some(high));
    }
}
