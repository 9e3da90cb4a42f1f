//! Scan: pages of keys, their entries, and a cursor to go on from in every message.
//!
//! The stream is pulled: nothing is read before the client's window has room for it, and nothing
//! runs when the client has gone. Values are read one after the other and sent when a message is
//! full, so that large values do not pile up.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use flux_env::Instant;
use flux_proto::convert::{InvalidField, entry_without_value, is_stale, scan_entry, scan_pattern};
use flux_proto::kv::{Entry, ScanRequest, ScanResponse};
use flux_proto::status;
use flux_types::{Answer, Command, Error, ErrorCode, ReadCommand, Reply, ScanPage};
use futures_util::stream::{self, Stream};
use prost::Message as _;
use tonic::{Request, Status};

use super::{KvApi, deadline, to_status};
use crate::execute::Execute;

/// Keys looked at for one page.
const PAGE_KEYS: usize = 512;
/// A message is sent when it has this many bytes. It can be longer by one entry.
const MESSAGE_BYTES: usize = 256 * 1024;
/// Most pages that one message waits for, so that a long search with few matches shows life and can
/// be resumed.
const PAGES_MAX: usize = 64;

/// What tonic sends.
pub(super) type ScanStream =
    Pin<Box<dyn Stream<Item = Result<ScanResponse, Status>> + Send + 'static>>;

/// Begins a scan.
///
/// # Errors
/// If the request cannot be used.
pub(super) fn start<E: Execute>(
    api: &KvApi<E>,
    request: Request<ScanRequest>,
) -> Result<ScanStream, Status> {
    // A deadline that the caller brings is for the whole stream; ours is for each page.
    let deadline = deadline::timeout(request.metadata())?.map(|timeout| api.clock.now() + timeout);
    let request = request.into_inner();
    let refuse = |invalid| status::to_tonic(&status::from_invalid_field(&invalid));
    let cursor = parse_cursor(&request.cursor).map_err(refuse)?;
    let scan = Scan {
        api: api.clone(),
        deadline,
        pattern: scan_pattern(&request.prefix).map_err(refuse)?,
        page: cursor,
        next: Some(cursor),
        keys: VecDeque::new(),
        keys_only: request.keys_only,
        is_stale: is_stale(request.consistency).map_err(refuse)?,
        remaining: (request.limit > 0).then_some(request.limit),
    };
    let messages = stream::unfold(Some(scan), |scan| async move {
        let mut scan = scan?;
        match scan.message().await {
            Ok((message, is_last)) => Some((Ok(message), (!is_last).then_some(scan))),
            Err(error) => Some((Err(to_status(&error)), None)),
        }
    });
    Ok(Box::pin(messages))
}

fn parse_cursor(text: &str) -> Result<u64, InvalidField> {
    if text.is_empty() {
        return Ok(0);
    }
    let invalid = |_| InvalidField::new("cursor", "must be empty or one from a response");
    text.parse().map_err(invalid)
}

struct Scan<E> {
    api: KvApi<E>,
    deadline: Option<Instant>,
    pattern: Option<Bytes>,
    /// Where the page of `keys` began: who resumes there misses none of them.
    page: u64,
    /// Where the page after it begins; `None` after the last.
    next: Option<u64>,
    /// Keys of the page that were not sent yet.
    keys: VecDeque<Bytes>,
    keys_only: bool,
    /// Whether this node's own replicas answer.
    is_stale: bool,
    /// Entries still wanted, if there is a limit.
    remaining: Option<u64>,
}

impl<E: Execute> Scan<E> {
    /// The next message, and whether it is the last.
    async fn message(&mut self) -> Result<(ScanResponse, bool), Error> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for _ in 0..PAGES_MAX {
            while let Some(key) = self.keys.pop_front() {
                let Some(entry) = self.entry(key).await? else {
                    continue;
                };
                bytes += entry.encoded_len();
                entries.push(entry);
                self.remaining = self.remaining.map(|count| count.saturating_sub(1));
                if bytes >= MESSAGE_BYTES && !self.keys.is_empty() {
                    return Ok((response(entries, Some(self.page)), false));
                }
            }
            // Between pages a scan can stop and go on later without sending anything twice, so a
            // limit takes effect here.
            let Some(cursor) = self.next else {
                return Ok((response(entries, None), true));
            };
            if self.remaining == Some(0) {
                return Ok((response(entries, Some(cursor)), true));
            }
            if bytes >= MESSAGE_BYTES || entries.len() >= PAGE_KEYS {
                return Ok((response(entries, Some(cursor)), false));
            }
            self.read_page(cursor).await?;
        }
        Ok((response(entries, Some(self.page)), false))
    }

    async fn read_page(&mut self, cursor: u64) -> Result<(), Error> {
        let wanted = self.remaining.and_then(|count| usize::try_from(count).ok());
        let command = Command::Read(ReadCommand::Scan(ScanPage {
            cursor,
            pattern: self.pattern.clone(),
            count: wanted.unwrap_or(PAGE_KEYS).min(PAGE_KEYS),
            type_matches: true,
        }));
        if self.is_stale {
            // Nothing else here waits, and others want the thread too.
            tokio::task::yield_now().await;
        }
        let answer = self.ask(command).await;
        match answer.reply {
            Reply::Page { cursor: next, keys } => {
                self.page = cursor;
                self.next = (next != 0).then_some(next);
                self.keys = keys.into();
                Ok(())
            }
            Reply::Error(error) => Err(error),
            Reply::Ok
            | Reply::Simple(_)
            | Reply::Nil
            | Reply::Integer(_)
            | Reply::Bulk(_)
            | Reply::Array(_)
            | Reply::Aborted
            | Reply::Entry(_)
            | Reply::Written(_)
            | Reply::Outcome(_) => Err(Error::not_done(
                ErrorCode::Internal,
                "a scan was not answered with a page",
            )),
        }
    }

    async fn entry(&self, key: Bytes) -> Result<Option<Entry>, Error> {
        if self.keys_only {
            return Ok(Some(entry_without_value(key)));
        }
        let command = Command::Read(ReadCommand::GetEntry { key: key.clone() });
        let answer = self.ask(command).await;
        scan_entry(key, answer)
    }

    async fn ask(&self, command: Command) -> Answer {
        if self.is_stale {
            return self.api.read_stale(command);
        }
        self.api.execute(command, self.deadline()).await
    }

    fn deadline(&self) -> Instant {
        let ours = || self.api.clock.now() + self.api.request_timeout;
        self.deadline.unwrap_or_else(ours)
    }
}

/// `resume` is told as text; after the end there is none. The beginning is told as `0`, because an
/// empty cursor says that there is nothing more.
fn response(entries: Vec<Entry>, resume: Option<u64>) -> ScanResponse {
    ScanResponse {
        entries,
        cursor: resume.map(|cursor| cursor.to_string()).unwrap_or_default(),
    }
}
