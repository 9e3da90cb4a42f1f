//! Cuts short what repeats itself: a broken disk or a peer that is away would otherwise fill the
//! log with one line, thousands of times a second.
//!
//! Of warnings and errors, each place in the source may write [`BURST`] lines in every
//! [`WINDOW_NANOS`]; the first line after a pause says how many were left out. Levels below are
//! never cut: whoever asks for them wants them all.

use std::collections::HashMap;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

use crate::trace::Now;

/// Lines of one place within a window.
pub(super) const BURST: u32 = 10;
/// Length of a window.
pub(super) const WINDOW_NANOS: u64 = 10_000_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Repeats {
    now: Now,
    /// One for each place that has warned: as many as there are in the source.
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    begun_at: u64,
    lines: u32,
    left_out: u64,
}

impl Repeats {
    pub(super) fn new(now: Now) -> Self {
        Self {
            now,
            places: Mutex::default(),
        }
    }

    /// Whether a line is written: `Some` with the number that were left out before it.
    pub(super) fn admit(&self, metadata: &Metadata<'_>) -> Option<u64> {
        if *metadata.level() > Level::WARN {
            return Some(0);
        }
        let now = (self.now)();
        let mut places = self.places.lock();
        let place = places.entry(metadata.callsite()).or_insert(Place {
            begun_at: now,
            lines: 0,
            left_out: 0,
        });
        // A clock that went back begins a new window too.
        if now
            .checked_sub(place.begun_at)
            .is_none_or(|age| age >= WINDOW_NANOS)
        {
            place.begun_at = now;
            place.lines = 0;
        }
        if place.lines == BURST {
            place.left_out += 1;
            return None;
        }
        place.lines += 1;
        Some(std::mem::take(&mut place.left_out))
    }
}
