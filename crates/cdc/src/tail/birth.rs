//! Where shards begin that are split off others.
//!
//! The shard that is split off begins with what its parent held of it, without an entry that says so:
//! its log begins with the second entry, and its revisions with the one behind those of the parent. Who
//! knows that revision can tell whether the first changes are missing; who does not takes what follows
//! the birth without a hole in the log for the first.

use flux_store::batch::BatchView;
use flux_types::slots::SLOTS_NAME;
use flux_types::{LogIndex, Revision, ShardId};

use super::{BIRTH, FIRST, Progress, SECOND, Tail, before_first, decode};
use crate::cursor::Place;

/// A shard that was split off, and where it is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Born {
    pub(crate) shard: ShardId,
    pub(crate) place: Place,
}

impl Tail {
    /// Whether a place is before everything in a shard that was split off.
    pub(super) fn is_birth(&self, place: Progress) -> bool {
        place.id.index <= FIRST && self.origin.was_split_off()
    }

    /// Whether it stands there.
    pub(crate) fn is_at_birth(&self) -> bool {
        !self.is_walking() && self.is_birth(self.place)
    }

    /// Learns where the shard begins, unless it is beyond that.
    pub(crate) fn learn_birth(&mut self, place: Place) {
        if let Place::After { revision, .. } = place
            && self.is_unborn
        {
            self.place.revision = revision;
            self.is_unborn = revision == Revision::new(0);
        }
    }

    /// Whether it has ever told a snapshot.
    pub(crate) const fn has_walked(&self) -> bool {
        self.has_walked
    }

    /// The last entry that is applied here.
    pub(crate) fn head(&self) -> LogIndex {
        let applied = self.origin.applied();
        applied.map_or(LogIndex::new(0), |id| id.index)
    }

    /// Whether everything up to an entry was handed out.
    pub(crate) fn has_reached(&self, index: LogIndex) -> bool {
        !self.is_walking() && index <= self.place.id.index
    }

    /// Up to which revision it has read. Of a shard of which nothing was read yet it may not be
    /// known: then nothing is taken to be left.
    pub(crate) fn revision(&self) -> Revision {
        if self.is_unborn {
            return self.store().revision();
        }
        self.place.revision
    }

    /// The place before everything if what is kept of the shard begins with its first entry.
    pub(super) fn at_birth_if_whole(&self, place: Progress, first: LogIndex) -> Progress {
        if first <= SECOND && self.origin.was_split_off() {
            return Progress { id: BIRTH, ..place };
        }
        place
    }

    /// What a batch splits off this shard. While a snapshot is not complete its walk may have met
    /// the keys that went, or not: then they are to be walked again.
    pub(super) fn born_of(&self, view: &BatchView<'_>) -> Option<Born> {
        let place = if self.completing.is_some() {
            Place::Snapshot
        } else {
            Progress {
                id: BIRTH,
                revision: before_first(view),
            }
            .place()
        };
        let shard = decode::split_off(view)?;
        Some(Born { shard, place })
    }

    /// Notes what was split off before the place, where that was not read up to.
    pub(super) fn note_children(&mut self, place: Place) {
        let slots = self.origin.store().system(SLOTS_NAME);
        let shard = slots.and_then(|text| decode::last_of_map(&text));
        self.born = shard.map(|shard| Born { shard, place });
    }

    /// Takes what was so noted.
    pub(crate) const fn take_born(&mut self) -> Option<Born> {
        self.born.take()
    }
}
