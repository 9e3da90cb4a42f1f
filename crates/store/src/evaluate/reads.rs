//! Reading commands inside a batch, answered through the overlay.

use bytes::Bytes;
use flux_types::{Entry as EntryReply, ReadCommand, Reply, ScanPage};

use super::{Evaluation, Hashed};
use crate::glob;
use crate::read::{self, bulk, cursor_position, in_page, integer, range};
use crate::store::is_past;

/// Most keys whose expiry one reading command over many keys commits. One is enough to make the
/// batch, and so its time, part of the log; from then on no clock can bring back what was left
/// out of the answer. The rest is the sweeper's.
const EXPIRED_FACTS_MAX: usize = 64;

impl Evaluation<'_> {
    pub(super) fn read(&mut self, command: &ReadCommand) -> Reply {
        match command {
            ReadCommand::Get { key } => self.read_value(key, Reply::Nil, bulk),
            ReadCommand::GetEntry { key } => Reply::Entry(self.read_entry(key).map(Box::new)),
            ReadCommand::GetMany { keys } => Reply::Array(
                keys.iter()
                    .map(|key| self.read_value(key, Reply::Nil, bulk))
                    .collect(),
            ),
            ReadCommand::Length { key } => {
                let at = self.hashed(key);
                integer(self.find(at).map_or(0, |live| live.len))
            }
            ReadCommand::GetRange { key, start, end } => {
                self.read_value(key, bulk(&[]), |value| bulk(range(value, *start, *end)))
            }
            ReadCommand::Exists { keys } | ReadCommand::Touch { keys } => {
                let mut count = 0;
                for key in keys {
                    let at = self.hashed(key);
                    count += usize::from(self.find(at).is_some());
                }
                integer(count)
            }
            ReadCommand::Type { key } => {
                let at = self.hashed(key);
                Reply::Simple(match self.find(at) {
                    Some(_) => "string",
                    None => "none",
                })
            }
            ReadCommand::Ttl { key, form } => {
                let at = self.hashed(key);
                let now = self.at;
                Reply::Integer(
                    self.find(at)
                        .map_or(-2, |live| read::ttl(live.deadline, *form, now)),
                )
            }
            ReadCommand::RandomKey => self.random_key(),
            ReadCommand::Scan(page) => self.scan(page),
            ReadCommand::Keys { pattern } => self.keys(pattern),
            ReadCommand::Count => self.count(),
        }
    }

    fn read_value(
        &mut self,
        key: &[u8],
        absent: Reply,
        found: impl FnOnce(&[u8]) -> Reply,
    ) -> Reply {
        let at = self.hashed(key);
        match self.find(at) {
            Some(live) => self.with_value(at, &live, found),
            None => absent,
        }
    }

    fn read_entry(&mut self, key: &[u8]) -> Option<EntryReply> {
        let at = self.hashed(key);
        let live = self.find(at)?;
        Some(EntryReply {
            value: self.value(at, &live),
            revision: live.revision,
            deadline: live.deadline,
        })
    }

    fn count(&self) -> Reply {
        let stored = if self.overlay.cleared {
            0
        } else {
            i64::try_from(self.store.len()).unwrap_or(i64::MAX)
        };
        Reply::Integer(stored + self.overlay.count())
    }

    /// Visits keys of the store that the batch has not touched: live ones through `visit`; expired
    /// ones are collected, as far as they will be committed.
    fn sort_out(
        &self,
        key: &[u8],
        is_expired: bool,
        expired: &mut Vec<Bytes>,
        visit: impl FnOnce(&[u8]),
    ) {
        let touched = self
            .overlay
            .touches(self.store.hash(key), key, &self.writer);
        if touched {
            return;
        }
        if !is_expired {
            visit(key);
        } else if expired.len() < EXPIRED_FACTS_MAX {
            expired.push(Bytes::copy_from_slice(key));
        }
    }

    fn commit_expired(&mut self, expired: &[Bytes]) {
        for key in expired {
            let at = Hashed {
                hash: self.store.hash(key),
                key,
            };
            let live = self.find(at);
            debug_assert!(live.is_none());
        }
    }

    fn scan(&mut self, page: &ScanPage) -> Reply {
        let start = cursor_position(page.cursor);
        let (mut keys, mut expired) = (Vec::new(), Vec::new());
        let now = self.at;
        let next = if self.overlay.cleared {
            None
        } else {
            self.store.page(start, page.count, &mut |_, key, deadline| {
                self.sort_out(key, is_past(deadline, now), &mut expired, |key| {
                    if in_page(page, key) {
                        keys.push(Bytes::copy_from_slice(key));
                    }
                });
            })
        };
        // What the batch itself has written between the cursor and the next one.
        for (position, key) in self.overlay.live_keys(&self.writer) {
            let in_range = start <= position && next.is_none_or(|next| position < next);
            if in_range && in_page(page, key) {
                keys.push(Bytes::copy_from_slice(key));
            }
        }
        self.commit_expired(&expired);
        Reply::Page {
            cursor: next.map_or(0, |position| position >> read::CURSOR_SHIFT),
            keys,
        }
    }

    fn keys(&mut self, pattern: &[u8]) -> Reply {
        let (mut keys, mut expired) = (Vec::new(), Vec::new());
        let now = self.at;
        if !self.overlay.cleared {
            self.store.for_each_key(&mut |key, deadline| {
                self.sort_out(key, is_past(deadline, now), &mut expired, |key| {
                    if glob::matches(pattern, key) {
                        keys.push(bulk(key));
                    }
                });
            });
        }
        for (_, key) in self.overlay.live_keys(&self.writer) {
            if glob::matches(pattern, key) {
                keys.push(bulk(key));
            }
        }
        self.commit_expired(&expired);
        Reply::Array(keys)
    }

    fn random_key(&mut self) -> Reply {
        let mut expired = Vec::new();
        let now = self.at;
        let found = if self.overlay.cleared {
            None
        } else {
            self.store.pick_random(&mut |key, deadline| {
                let mut accepted = false;
                self.sort_out(key, is_past(deadline, now), &mut expired, |_| {
                    accepted = true;
                });
                accepted
            })
        };
        let found = found.or_else(|| {
            let mut written = self.overlay.live_keys(&self.writer);
            written.next().map(|(_, key)| Bytes::copy_from_slice(key))
        });
        self.commit_expired(&expired);
        found.map_or(Reply::Nil, Reply::Bulk)
    }
}
