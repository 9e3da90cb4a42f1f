//! History: segments that replication needs no more and that are kept for the change stream, by size,
//! by age, and for those who asked by name. They go the oldest first, so what is left has no gaps.

use std::path::PathBuf;

use flux_types::LogIndex;

use super::Stream;
use crate::segment::segment_name;

impl Stream {
    /// Bytes of segments that replication does not need.
    pub(crate) fn history_bytes(&self) -> u64 {
        let history = self.readable.range(..self.durably_needed);
        history.map(|(_, segment)| segment.bytes).sum()
    }

    pub(crate) fn pin(&mut self, shard: usize, name: &str, after: LogIndex) {
        self.pins.insert((shard, name.to_owned()), after.get());
    }

    pub(crate) fn unpin(&mut self, shard: usize, name: &str) {
        self.pins.remove(&(shard, name.to_owned()));
    }

    /// The oldest segment that holds an entry somebody asked for by name.
    fn oldest_pinned(&self) -> Option<u64> {
        let wanted = self.pins.iter().filter_map(|((shard, _), after)| {
            let image = &self.shards.get(*shard)?.image;
            let next = LogIndex::new(*after).next();
            Some(image.history_position(next)?.segment)
        });
        wanted.min()
    }

    /// Forgets the segments that nobody needs and retention does not keep, and returns their
    /// paths, the oldest first.
    pub(crate) fn take_unneeded(&mut self) -> Vec<PathBuf> {
        let retention = self.config.retention;
        let now = self.now();
        let settles = now.saturating_since(self.opened_at) < retention.settle_ms;
        let pinned = self.oldest_pinned();
        let mut bytes = self.history_bytes();
        let mut keep_from = self.durably_needed;
        let history = self.readable.range(..self.durably_needed);
        // A segment is prepared when the one before it begins, which is when the one before that
        // ends.
        let prepared = self.next.as_ref().and_then(|next| next.header.as_ref());
        let ends = self.readable.values().skip(2).map(|later| later.created);
        let ends = ends
            .chain(prepared.map(|header| header.created))
            .chain([now]);
        for ((number, segment), end) in history.zip(ends) {
            let is_pinned = settles || pinned.is_some_and(|pinned| pinned <= *number);
            let is_kept =
                bytes <= retention.bytes_max && now.saturating_since(end) <= retention.age_max_ms;
            if is_kept || (is_pinned && bytes <= retention.pinned_bytes_max) {
                keep_from = *number;
                break;
            }
            bytes -= segment.bytes;
        }
        self.forget_before(keep_from)
    }

    /// Gives up the oldest segment of the history, whoever asked for it.
    pub(crate) fn take_oldest(&mut self) -> Option<PathBuf> {
        let (oldest, _) = self.readable.range(..self.durably_needed).next()?;
        self.forget_before(oldest + 1).pop()
    }

    fn forget_before(&mut self, keep_from: u64) -> Vec<PathBuf> {
        if self
            .readable
            .first_key_value()
            .is_none_or(|(oldest, _)| keep_from <= *oldest)
        {
            return Vec::new();
        }
        let pinned = self.oldest_pinned();
        let log_dir = self.config.log_dir();
        let mut paths = Vec::new();
        while let Some(oldest) = self.readable.first_entry() {
            let number = *oldest.key();
            if keep_from <= number {
                break;
            }
            oldest.remove();
            self.stats.segments_deleted += 1;
            let is_pinned = pinned.is_some_and(|pinned| pinned <= number);
            self.stats.pinned_segments_deleted += u64::from(is_pinned);
            paths.push(log_dir.join(segment_name(number)));
        }
        for state in &mut self.shards {
            state.image.forget_before(keep_from);
        }
        paths
    }
}
