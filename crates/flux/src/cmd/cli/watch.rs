//! `flux cli watch`: follows changes, one line each.
//!
//! On a terminal a line is for people, elsewhere it is the event as JSON. When the node goes away it
//! is asked again until it is back, from where the stream broke off.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::time::Duration;

use flux_cdc::envelope::{decode_value, to_json, word_of_type};
use flux_proto::cdc::watch_client::WatchClient;
use flux_proto::cdc::{CloudEvent, EventData, KeyState, WatchRequest, WatchResponse};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use super::quoted;
use crate::cmd::innermost;
use crate::{Failure, out};

const USAGE: &str =
    "watch [PREFIX] [--from now|earliest|snapshot|CURSOR] [--count N] [--grpc-port PORT]";
const GRPC_PORT_DEFAULT: u16 = 50052;
/// Pause before a node that went away is asked again.
const RETRY: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watch {
    prefix: String,
    from: String,
    /// Ends after so many changes.
    count: Option<u64>,
    grpc_port: u16,
}

impl Watch {
    /// Reads what follows the word `watch`.
    pub(super) fn parse(words: &[OsString]) -> Result<Self, Failure> {
        let mistake = |problem: String| Failure::Mistake(format!("{problem}; flux cli {USAGE}"));
        let mut watch = Self {
            prefix: String::new(),
            from: String::new(),
            count: None,
            grpc_port: GRPC_PORT_DEFAULT,
        };
        let mut has_prefix = false;
        let mut words = words.iter().map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) if word.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (word.as_ref(), None),
            };
            let mut value = || {
                let value = inline
                    .clone()
                    .or_else(|| words.next().map(|word| word.into_owned()));
                value.ok_or_else(|| mistake(format!("{flag} wants a value")))
            };
            match flag {
                "--from" => watch.from = value()?,
                "--count" => watch.count = Some(number(flag, &value()?).map_err(mistake)?),
                "--grpc-port" => watch.grpc_port = number(flag, &value()?).map_err(mistake)?,
                flag if flag.starts_with("--") => {
                    return Err(mistake(format!("{flag} is not known")));
                }
                _ if has_prefix => return Err(mistake(format!("{word:?} is one prefix too many"))),
                _ => {
                    word.as_ref().clone_into(&mut watch.prefix);
                    has_prefix = true;
                }
            }
        }
        Ok(watch)
    }
}

fn number<N: std::str::FromStr>(flag: &str, text: &str) -> Result<N, String> {
    let number = text.parse();
    number.map_err(|_| format!("{flag}: {text:?} is not a number that fits"))
}

/// Follows until told to stop, or until enough was seen.
pub(super) async fn run(host: &str, password: Option<String>, watch: Watch) -> Result<(), Failure> {
    let stop = async {
        // Without a handler the signal ends the process, which is as good.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = stop => Ok(()),
        result = follow(host, password, watch) => result,
    }
}

async fn follow(host: &str, password: Option<String>, watch: Watch) -> Result<(), Failure> {
    let address = format!("{host}:{}", watch.grpc_port);
    let failed = |problem: String| Failure::Failed(format!("{address}: {problem}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| failed(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT);
    let password: Option<MetadataValue<Ascii>> = match password {
        Some(password) => {
            let value = format!("Bearer {password}").parse();
            Some(value.map_err(|_| failed("the password cannot be sent".to_owned()))?)
        }
        None => None,
    };
    let is_pretty = std::io::stdout().is_terminal();
    let mut left = watch.count.unwrap_or(u64::MAX);
    let mut request = WatchRequest {
        prefix: watch.prefix,
        from: watch.from,
        cursor: String::new(),
    };
    let mut is_first = true;
    while 0 < left {
        let asked = with_password(request.clone(), password.as_ref());
        match stream(&endpoint, asked, &mut request, |response| {
            left -= u64::from(show(response, is_pretty));
            0 < left
        })
        .await
        {
            Ok(()) => {}
            Err(status) if is_first && request.cursor.is_empty() => {
                let hint = if status.code() == Code::Unavailable {
                    "; changes come from the node's gRPC port: --grpc-port"
                } else {
                    ""
                };
                return Err(failed(format!("{}{hint}", status.message())));
            }
            Err(status) if status.code() == Code::Unavailable || status.code() == Code::Unknown => {
                out::problem(&format!("{address}: {}; asking again", status.message()));
                tokio::time::sleep(RETRY).await;
            }
            Err(status) => return Err(failed(status.message().to_owned())),
        }
        is_first = false;
    }
    Ok(())
}

fn with_password(
    request: WatchRequest,
    password: Option<&MetadataValue<Ascii>>,
) -> Request<WatchRequest> {
    let mut request = Request::new(request);
    if let Some(password) = password {
        request
            .metadata_mut()
            .insert("authorization", password.clone());
    }
    request
}

/// One call. Notes in `resume` where to go on; ends when `more` says so.
async fn stream(
    endpoint: &Endpoint,
    asked: Request<WatchRequest>,
    resume: &mut WatchRequest,
    mut more: impl FnMut(&WatchResponse) -> bool,
) -> Result<(), Status> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(innermost(&error)))?;
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut messages = client.watch(asked).await?.into_inner();
    while let Some(response) = messages.message().await? {
        resume.cursor.clone_from(&response.cursor);
        if !more(&response) {
            return Ok(());
        }
    }
    Err(Status::unavailable("the node ended the stream"))
}

/// Shows an event; whether it is a change.
fn show(response: &WatchResponse, is_pretty: bool) -> bool {
    let Some(event) = &response.event else {
        return false;
    };
    let name = event.r#type.as_deref().unwrap_or_default();
    let word = word_of_type(name).unwrap_or(name);
    if word == "progress" {
        return false;
    }
    if is_pretty {
        out::line(&pretty(event, word));
    } else {
        let mut json = to_json(event);
        json.push(b'\n');
        out::bytes(&json);
    }
    !matches!(word, "gap" | "snapshot-complete")
}

/// Such as `01:33:23.241  SET      hello = "world"  ttl=60s  rev=482991  s17  2/3`.
fn pretty(event: &CloudEvent, word: &str) -> String {
    let time = event.time.as_deref().and_then(|time| time.get(11..23));
    let mut line = format!("{}  {:<8}", time.unwrap_or("-"), word.to_uppercase());
    let Some(data) = &event.data else {
        return line;
    };
    if let Some(key) = data.after.as_ref().or(data.before.as_ref()) {
        line.push_str(&format!(" {}", key_text(key)));
        if let Some(value) = value_text(key) {
            let offset = key
                .offset
                .map_or_else(String::new, |at| format!("[{at}..]"));
            line.push_str(&format!("{offset} = {value}"));
        }
        line.push_str(&ttl_text(key, data));
    }
    if let Some(items) = data.items {
        line.push_str(&format!(" {items} keys"));
    }
    if let Some(gap) = &data.gap {
        let numbers = (
            gap.after_revision.unwrap_or(0),
            gap.next_revision.unwrap_or(0),
        );
        line.push_str(&format!(" after rev={} until rev={}", numbers.0, numbers.1));
    }
    if let Some(source) = &data.source {
        line.push_str(&format!(
            "  rev={}  s{}",
            source.revision.unwrap_or(0),
            source.shard.unwrap_or(0)
        ));
    }
    if let Some(group) = data
        .transaction
        .as_ref()
        .filter(|group| group.count > Some(1))
    {
        let order = group.total_order.unwrap_or(0) + 1;
        line.push_str(&format!("  {order}/{}", group.count.unwrap_or(0)));
    }
    line
}

fn key_text(state: &KeyState) -> String {
    let key = state.key.clone().unwrap_or_default();
    match state.key_encoding.as_deref() {
        Some(encoding) => format!("{encoding}:{key}"),
        None if key.chars().any(|c| c.is_whitespace() || c.is_control()) => quoted(key.as_bytes()),
        None => key,
    }
}

fn value_text(state: &KeyState) -> Option<String> {
    if state.truncated == Some(true) {
        return Some(format!("({} bytes)", state.size.unwrap_or(0)));
    }
    decode_value(state).map(|value| quoted(&value))
}

fn ttl_text(state: &KeyState, data: &EventData) -> String {
    let (Some(deadline), Some(at)) = (state.expires_at_ms, data.ts_ms) else {
        return String::new();
    };
    let left = deadline.saturating_sub(at);
    if left.is_multiple_of(1000) {
        format!("  ttl={}s", left / 1000)
    } else {
        format!("  ttl={left}ms")
    }
}

#[cfg(test)]
mod tests {
    use flux_proto::cdc::{EventSource, EventTransaction};

    use super::*;

    fn parse(words: &str) -> Result<Watch, String> {
        let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        Watch::parse(&words).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn flags_stand_before_and_after_the_prefix() {
        let expected = Watch {
            prefix: "user:".to_owned(),
            from: "earliest".to_owned(),
            count: Some(3),
            grpc_port: 7,
        };
        for words in [
            "user: --from earliest --count 3 --grpc-port 7",
            "--from=earliest --count=3 user: --grpc-port=7",
        ] {
            assert_eq!(parse(words).as_ref(), Ok(&expected), "{words}");
        }
        assert_eq!(parse("").unwrap().grpc_port, GRPC_PORT_DEFAULT);
    }

    #[test]
    fn a_mistake_is_told_with_what_would_be_right() {
        for (words, problem) in [
            ("a b", "one prefix too many"),
            ("--count", "wants a value"),
            ("--count x", "is not a number"),
            ("--since now", "--since is not known"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(
                error.contains(problem) && error.contains("--from"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_line_for_people_says_what_happened_to_which_key() {
        let event = CloudEvent {
            time: Some("2026-11-23T01:33:23.241Z".to_owned()),
            data: Some(EventData {
                after: Some(KeyState {
                    key: Some("hello".to_owned()),
                    value: Some("world".to_owned()),
                    encoding: Some("utf8".to_owned()),
                    expires_at_ms: Some(61_000),
                    ..KeyState::default()
                }),
                ts_ms: Some(1000),
                source: Some(EventSource {
                    shard: Some(17),
                    revision: Some(482_991),
                    ..EventSource::default()
                }),
                transaction: Some(EventTransaction {
                    total_order: Some(1),
                    count: Some(3),
                    ..EventTransaction::default()
                }),
                ..EventData::default()
            }),
            ..CloudEvent::default()
        };
        assert_eq!(
            pretty(&event, "set"),
            "01:33:23.241  SET      hello = \"world\"  ttl=60s  rev=482991  s17  2/3"
        );
    }
}
