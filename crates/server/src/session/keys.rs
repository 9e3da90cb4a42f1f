//! Commands that look at how a key is kept: OBJECT, MEMORY USAGE, DEBUG.

use std::time::Duration;

use bytes::Bytes;
use flux_types::{Answer, Command, Entry, Error, ErrorCode, ReadCommand, Reply};
use flux_wire::number::{parse_f64, parse_i64};
use flux_wire::resp::{SessionCommand, error};

use super::Session;

/// Longest DEBUG SLEEP.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// What an entry takes beside its key and value: header and its place in the table, rounded.
const ENTRY_OVERHEAD_BYTES: usize = 48;
/// Redis keeps strings up to this long in one allocation, and calls that another encoding.
const EMBEDDED_BYTES_MAX: usize = 44;

impl Session {
    /// Answers about one key.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "DEBUG OBJECT is what is left of the commands that come here"
    )]
    pub(super) async fn about_key(
        &mut self,
        command: SessionCommand,
        arguments: &[Bytes],
    ) -> Result<(), Error> {
        use SessionCommand as C;
        let key = arguments.first().cloned().unwrap_or_default();
        if command == C::MemoryUsage {
            check_samples(arguments)?;
        }
        if command == C::ObjectFreq {
            return Err(Error::not_done(
                ErrorCode::Invalid,
                "An LFU maxmemory policy is not selected, access frequency not tracked. Please \
                 note that when switching between policies at runtime LRU and LFU data will take \
                 some time to adjust.",
            ));
        }
        let answer = self
            .execute(Command::Read(ReadCommand::GetEntry { key: key.clone() }))
            .await;
        let Some(entry) = entry_of(answer)? else {
            if command == C::DebugObject {
                return Err(Error::not_done(ErrorCode::NoSuchKey, "no such key"));
            }
            self.writer().nil();
            return Ok(());
        };
        let encoding = encoding(&entry);
        let mut writer = self.writer();
        match command {
            C::MemoryUsage => {
                let bytes = key.len() + entry.value.len() + ENTRY_OVERHEAD_BYTES;
                writer.integer(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
            C::ObjectEncoding => writer.bulk(encoding.as_bytes()),
            // When a key was last used is not kept.
            C::ObjectIdleTime => writer.integer(0),
            C::ObjectRefCount => writer.integer(1),
            _ => writer.simple(&format!(
                "Value at:0x0 refcount:1 encoding:{encoding} serializedlength:{} lru:0 \
                 lru_seconds_idle:0 revision:{}",
                entry.value.len(),
                entry.revision
            )),
        }
        Ok(())
    }

    /// Holds up this connection only.
    pub(super) async fn debug_sleep(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let seconds = arguments
            .first()
            .and_then(|text| parse_f64(text))
            .ok_or_else(error::not_a_float)?;
        let sleep = Duration::try_from_secs_f64(seconds).map_err(|_| error::not_a_float())?;
        let sleep = tokio::time::sleep(sleep.min(SLEEP_MAX));
        // Who is asked to end does not sleep on; what is answered then matters to nobody.
        self.client.unless_ended(sleep).await;
        self.writer().ok();
        Ok(())
    }
}

/// What a look at an entry has found.
///
/// # Errors
/// What it answered instead.
pub(super) fn entry_of(answer: Answer) -> Result<Option<Box<Entry>>, Error> {
    if let Reply::Error(error) = answer.reply {
        return Err(error);
    }
    let Reply::Entry(entry) = answer.reply else {
        return Err(Error::not_done(
            ErrorCode::Internal,
            "a shard did not answer with an entry",
        ));
    };
    Ok(entry)
}

/// `[SAMPLES count]`, which has no meaning for strings.
fn check_samples(arguments: &[Bytes]) -> Result<(), Error> {
    match arguments {
        [_] => Ok(()),
        [_, option, count] if option.eq_ignore_ascii_case(b"samples") => {
            let count = parse_i64(count).ok_or_else(error::not_an_integer)?;
            if count < 0 {
                return Err(error::syntax());
            }
            Ok(())
        }
        _ => Err(error::syntax()),
    }
}

/// What Redis would call the encoding of such a value.
fn encoding(entry: &Entry) -> &'static str {
    // Redis keeps a number as such only if it is written as it would write it.
    let is_number = parse_i64(&entry.value)
        .is_some_and(|number| number.to_string().as_bytes() == entry.value.as_ref());
    if is_number {
        "int"
    } else if entry.value.len() <= EMBEDDED_BYTES_MAX {
        "embstr"
    } else {
        "raw"
    }
}
