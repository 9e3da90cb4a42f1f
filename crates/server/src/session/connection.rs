//! Commands about the connection: HELLO, AUTH, CLIENT and their like.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_types::{Error, ErrorCode};
use flux_wire::number::{parse_i64, parse_u64};
use flux_wire::resp::{SessionCommand, Version, error, introspect};

use super::Session;
use super::state::Replies;
use crate::clients::{Client, Ending};

/// Longest name a client may give itself or its library, in bytes.
const LABEL_BYTES_MAX: usize = 256;
/// The kinds of clients that Redis knows; all of ours are the first.
const CLIENT_TYPES: [&str; 5] = ["normal", "master", "replica", "slave", "pubsub"];
/// Longest CLIENT PAUSE.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

fn invalid(message: &'static str) -> Error {
    Error::not_done(ErrorCode::Invalid, message)
}

fn is(word: &[u8], expected: &str) -> bool {
    word.eq_ignore_ascii_case(expected.as_bytes())
}

fn at(arguments: &[Bytes], index: usize) -> &[u8] {
    arguments.get(index).map_or(&[], Bytes::as_ref)
}

/// `ON` or `OFF`.
fn switch(word: &[u8]) -> Result<bool, Error> {
    if is(word, "on") {
        Ok(true)
    } else if is(word, "off") {
        Ok(false)
    } else {
        Err(error::syntax())
    }
}

/// A peer's words, short and printable.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..LABEL_BYTES_MAX).unwrap_or(bytes));
    text.escape_debug().to_string()
}

fn unknown(what: &str, given: &[u8]) -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        format!("Unknown {what} '{}'", shown(given)),
    )
}

fn bad_hello(option: &[u8]) -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        format!("Syntax error in HELLO option '{}'", shown(option)),
    )
}

/// A timeout in milliseconds, with Redis's words for those that are none.
pub(super) fn timeout_millis(text: &[u8]) -> Result<u64, Error> {
    let millis =
        parse_i64(text).ok_or_else(|| invalid("timeout is not an integer or out of range"))?;
    u64::try_from(millis).map_err(|_| invalid("timeout is negative"))
}

/// What a client may call itself: printable ASCII without spaces, so that a list of clients can be
/// read.
fn label(bytes: &[u8], message: &'static str) -> Result<String, Error> {
    let is_fine = bytes.len() <= LABEL_BYTES_MAX && bytes.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(bytes) {
        Ok(text) if is_fine => Ok(text.to_owned()),
        _ => Err(invalid(message)),
    }
}

const BAD_NAME: &str = "Client names cannot contain spaces, newlines or special characters.";

impl Session {
    /// Answers a command that needs nothing but the session and the node, into the turn's bytes.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is not about the connection is about the node"
    )]
    pub(super) fn session_command(
        &mut self,
        command: SessionCommand,
        arguments: &[Bytes],
    ) -> Result<(), Error> {
        use SessionCommand as C;
        match command {
            C::Multi => return self.multi(),
            C::Discard => return self.discard(),
            C::Unwatch => {
                self.forget_watches();
                self.writer().ok();
            }
            C::Hello => return self.hello(arguments),
            C::Auth => return self.auth(arguments),
            C::Ping => self.ping(arguments)?,
            C::Echo => self.writer().bulk(at(arguments, 0)),
            C::Select => self.select(arguments)?,
            C::Quit => {
                self.state.is_closing = true;
                self.writer().ok();
            }
            C::Reset => self.reset(),
            C::ClientId => {
                let id = i64::try_from(self.client.id).unwrap_or(i64::MAX);
                self.writer().integer(id);
            }
            C::ClientInfo => {
                let line = self.client.describe(self.context.node.now_millis()) + "\n";
                self.writer().verbatim(&line);
            }
            C::ClientList => return self.client_list(arguments),
            C::ClientGetName => self.client_name(),
            C::ClientSetName => return self.client_set_name(at(arguments, 0)),
            C::ClientSetInfo => return self.client_set_info(arguments),
            C::ClientReply => return self.client_reply(at(arguments, 0)),
            C::ClientKill => return self.client_kill(arguments),
            C::ClientPause => return self.client_pause(arguments),
            C::ClientUnpause => {
                self.context.node.pause.end();
                self.writer().ok();
            }
            C::ClientNoEvict => {
                let on = switch(at(arguments, 0))?;
                self.client.change_labels(|labels| labels.no_evict = on);
                self.writer().ok();
            }
            C::ClientNoTouch => {
                let on = switch(at(arguments, 0))?;
                self.client.change_labels(|labels| labels.no_touch = on);
                self.writer().ok();
            }
            C::ClientGetRedir => self.writer().integer(-1),
            C::ClientTracking => self.client_tracking(arguments)?,
            C::ClientCaching => {
                return Err(invalid(
                    "CLIENT CACHING can be called only when the client is in tracking mode with \
                     OPTIN or OPTOUT mode enabled",
                ));
            }
            C::ClientUnblock => self.client_unblock(arguments)?,
            C::ClientTrackingInfo => self.client_tracking_info(),
            C::ClientHelp => introspect::help("client", &mut self.writer()),
            C::ReadOnly => {
                self.state.is_readonly = true;
                self.writer().ok();
            }
            C::ReadWrite => {
                self.state.is_readonly = false;
                self.writer().ok();
            }
            C::Asking => self.writer().ok(),
            other => return self.answer_about_node(other, arguments),
        }
        Ok(())
    }

    fn ping(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        match arguments {
            [] => self.writer().simple("PONG"),
            [message] => self.writer().bulk(message),
            _ => return Err(error::wrong_arity("ping")),
        }
        Ok(())
    }

    fn select(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        match parse_i64(at(arguments, 0)) {
            Some(0) => {
                self.writer().ok();
                Ok(())
            }
            Some(_) => Err(invalid("DB index is out of range")),
            None => Err(error::not_an_integer()),
        }
    }

    fn reset(&mut self) {
        let is_authenticated = !self.context.node.switches.wants_password();
        self.decoder.set_authenticated(is_authenticated);
        self.state.reset(is_authenticated);
        self.client.set_queued(None);
        self.client.set_watched(0);
        self.client.set_protocol(2);
        self.client.change_labels(|labels| {
            labels.name.clear();
            labels.no_evict = false;
            labels.no_touch = false;
        });
        self.writer().simple("RESET");
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`.
    fn hello(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let version = match arguments.first().map(|text| parse_i64(text)) {
            None => self.state.version,
            Some(Some(2)) => Version::Resp2,
            Some(Some(3)) => Version::Resp3,
            Some(Some(_)) => {
                // A word that no error of ours has; clients look for it to fall back.
                self.context.node.metrics.error_word("NOPROTO");
                let answer = b"-NOPROTO unsupported protocol version\r\n";
                self.steps.ready().extend_from_slice(answer);
                return Ok(());
            }
            Some(None) => {
                return Err(invalid(
                    "Protocol version is not an integer or out of range",
                ));
            }
        };
        let mut name = None;
        let mut rest = arguments.iter().skip(1);
        while let Some(option) = rest.next() {
            if is(option, "auth") {
                let (Some(user), Some(password)) = (rest.next(), rest.next()) else {
                    return Err(bad_hello(option));
                };
                self.authenticate(Some(user), password)?;
            } else if is(option, "setname") {
                let given = rest.next().ok_or_else(|| bad_hello(option))?;
                name = Some(label(given, BAD_NAME)?);
            } else {
                return Err(bad_hello(option));
            }
        }
        if !self.state.is_authenticated {
            return Err(Error::not_done(
                ErrorCode::Unauthenticated,
                "HELLO must be called with the client already authenticated, otherwise the HELLO \
                 <proto> AUTH <user> <pass> option can be used to authenticate the client and \
                 select the RESP protocol version at the same time",
            ));
        }
        if let Some(name) = name {
            self.client.change_labels(|labels| labels.name = name);
        }
        self.state.version = version;
        self.client
            .set_protocol(if version == Version::Resp3 { 3 } else { 2 });
        let id = i64::try_from(self.client.id).unwrap_or(i64::MAX);
        let mode = if self.context.node.looks_like_cluster() {
            "cluster"
        } else {
            "standalone"
        };
        let mut writer = self.writer();
        writer.map(7);
        for (key, value) in [("server", "redis"), ("version", super::REDIS_VERSION)] {
            writer.bulk(key.as_bytes());
            writer.bulk(value.as_bytes());
        }
        writer.bulk(b"proto");
        writer.integer(version.number());
        writer.bulk(b"id");
        writer.integer(id);
        for (key, value) in [("mode", mode), ("role", "master")] {
            writer.bulk(key.as_bytes());
            writer.bulk(value.as_bytes());
        }
        writer.bulk(b"modules");
        writer.array(0);
        Ok(())
    }

    fn auth(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        match arguments {
            [password] => {
                if !self.context.node.switches.wants_password() {
                    return Err(invalid(
                        "AUTH <password> called without any password configured for the default \
                         user. Are you sure your configuration is correct?",
                    ));
                }
                self.authenticate(None, password)?;
            }
            [user, password] => self.authenticate(Some(user), password)?,
            _ => return Err(error::syntax()),
        }
        self.writer().ok();
        Ok(())
    }

    /// Checks a password; there is one user, `default`.
    fn authenticate(&mut self, user: Option<&Bytes>, password: &[u8]) -> Result<(), Error> {
        let switches = &self.context.node.switches;
        let is_known = user.is_none_or(|user| user.as_ref() == b"default");
        // Without a password everyone is the default user, whatever they give.
        let is_right = !switches.wants_password() || switches.is_password(password);
        if !(is_known && is_right) {
            return Err(Error::not_done(
                ErrorCode::WrongPassword,
                "invalid username-password pair or user is disabled.",
            ));
        }
        self.state.is_authenticated = true;
        self.decoder.set_authenticated(true);
        Ok(())
    }

    fn client_name(&mut self) {
        let name = self.client.labels().name;
        if name.is_empty() {
            self.writer().nil();
        } else {
            self.writer().bulk(name.as_bytes());
        }
    }

    fn client_set_name(&mut self, name: &[u8]) -> Result<(), Error> {
        let name = label(name, BAD_NAME)?;
        self.client.change_labels(|labels| labels.name = name);
        self.writer().ok();
        Ok(())
    }

    fn client_set_info(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let (option, value) = (at(arguments, 0), at(arguments, 1));
        if is(option, "lib-name") {
            let value = label(
                value,
                "lib-name cannot contain spaces, newlines or special characters.",
            )?;
            self.client.change_labels(|labels| labels.library = value);
        } else if is(option, "lib-ver") {
            let value = label(
                value,
                "lib-ver cannot contain spaces, newlines or special characters.",
            )?;
            self.client
                .change_labels(|labels| labels.library_version = value);
        } else {
            return Err(Error::not_done(
                ErrorCode::Invalid,
                format!(
                    "Unrecognized option '{}'",
                    String::from_utf8_lossy(option).escape_debug()
                ),
            ));
        }
        self.writer().ok();
        Ok(())
    }

    /// Only ON is answered.
    fn client_reply(&mut self, mode: &[u8]) -> Result<(), Error> {
        if is(mode, "on") {
            self.state.replies = Replies::On;
            self.writer().ok();
        } else if is(mode, "off") {
            self.state.replies = Replies::Off;
        } else if is(mode, "skip") {
            if self.state.replies == Replies::On {
                self.state.replies = Replies::SkipNext;
            }
        } else {
            return Err(error::syntax());
        }
        Ok(())
    }

    fn client_list(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let clients = &self.context.node.clients;
        let listed: Vec<Arc<Client>> = match arguments {
            [] => clients.all(),
            [option, kind] if is(option, "type") => {
                if is(kind, "normal") {
                    clients.all()
                } else if CLIENT_TYPES.iter().any(|known| is(kind, known)) {
                    Vec::new()
                } else {
                    return Err(unknown("client type", kind));
                }
            }
            [option, ids @ ..] if is(option, "id") && !ids.is_empty() => ids
                .iter()
                .map(|id| parse_u64(id).ok_or_else(|| invalid("Invalid client ID")))
                .collect::<Result<Vec<u64>, Error>>()?
                .into_iter()
                .filter_map(|id| clients.get(id))
                .collect(),
            _ => return Err(error::syntax()),
        };
        let now = self.context.node.now_millis();
        let mut text = String::new();
        for client in listed {
            text.push_str(&client.describe(now));
            text.push('\n');
        }
        self.writer().verbatim(&text);
        Ok(())
    }

    /// `CLIENT KILL address`, or filters that must all hold.
    fn client_kill(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        if let [address] = arguments {
            let filter = Filter {
                address: Some(parse_address(address)?),
                ..Filter::default()
            };
            if self.kill(&filter) == 0 {
                return Err(invalid("No such client"));
            }
            self.writer().ok();
            return Ok(());
        }
        let mut filter = Filter {
            skips: Some(self.client.id),
            ..Filter::default()
        };
        for pair in arguments.chunks(2) {
            let [option, value] = pair else {
                return Err(error::syntax());
            };
            filter.add(option, value)?;
        }
        if !filter.skips_me {
            filter.skips = None;
        }
        let killed = i64::try_from(self.kill(&filter)).unwrap_or(i64::MAX);
        self.writer().integer(killed);
        Ok(())
    }

    /// Ends all clients that pass a filter; this one after it has been answered.
    fn kill(&mut self, filter: &Filter) -> usize {
        let now = self.context.node.now_millis();
        let all = self.context.node.clients.all();
        let mut count = 0;
        for client in all.iter().filter(|client| filter.passes(client, now)) {
            count += 1;
            if client.id == self.client.id {
                self.state.is_closing = true;
            } else {
                client.end(Ending::Kill);
            }
        }
        count
    }

    fn client_pause(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        let millis = timeout_millis(at(arguments, 0))?;
        let holds_reads = match arguments.get(1) {
            None => true,
            Some(mode) if is(mode, "all") => true,
            Some(mode) if is(mode, "write") => false,
            Some(_) => return Err(invalid("CLIENT PAUSE mode must be WRITE or ALL")),
        };
        let node = &self.context.node;
        let pause = Duration::from_millis(millis).min(PAUSE_MAX);
        node.pause.begin(node.clock.now() + pause, holds_reads);
        self.writer().ok();
        Ok(())
    }

    /// Keys are not tracked, so OFF is what is. A client that asks for ON must not believe that it
    /// will be told of changes.
    fn client_tracking(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        match arguments {
            [switch] if is(switch, "off") => self.writer().ok(),
            [switch, ..] if is(switch, "on") => {
                return Err(invalid(
                    "client-side caching is not supported: this node tells nobody of changed keys",
                ));
            }
            _ => return Err(error::syntax()),
        }
        Ok(())
    }

    /// No command blocks here, so nobody is ever unblocked.
    fn client_unblock(&mut self, arguments: &[Bytes]) -> Result<(), Error> {
        parse_i64(at(arguments, 0)).ok_or_else(error::not_an_integer)?;
        match arguments.get(1) {
            None => {}
            Some(reason) if is(reason, "timeout") || is(reason, "error") => {}
            Some(_) => return Err(invalid("CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
        }
        self.writer().integer(0);
        Ok(())
    }

    fn client_tracking_info(&mut self) {
        let mut writer = self.writer();
        writer.map(3);
        writer.bulk(b"flags");
        writer.set(1);
        writer.bulk(b"off");
        writer.bulk(b"redirect");
        writer.integer(-1);
        writer.bulk(b"prefixes");
        writer.array(0);
    }
}

fn parse_address(bytes: &[u8]) -> Result<SocketAddr, Error> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("No such client"))
}

/// Which clients CLIENT KILL means.
#[derive(Debug)]
struct Filter {
    id: Option<u64>,
    address: Option<SocketAddr>,
    local: Option<SocketAddr>,
    age_seconds_min: Option<u64>,
    /// Something was asked for that no client is.
    is_nobody: bool,
    skips_me: bool,
    skips: Option<u64>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            id: None,
            address: None,
            local: None,
            age_seconds_min: None,
            is_nobody: false,
            skips_me: true,
            skips: None,
        }
    }
}

impl Filter {
    fn add(&mut self, option: &[u8], value: &[u8]) -> Result<(), Error> {
        if is(option, "id") {
            let id = parse_u64(value).filter(|id| *id > 0);
            self.id = Some(id.ok_or_else(|| invalid("client-id should be greater than 0"))?);
        } else if is(option, "addr") {
            self.address = Some(parse_address(value)?);
        } else if is(option, "laddr") {
            self.local = Some(parse_address(value)?);
        } else if is(option, "type") {
            if !CLIENT_TYPES.iter().any(|known| is(value, known)) {
                return Err(unknown("client type", value));
            }
            self.is_nobody |= !is(value, "normal");
        } else if is(option, "user") {
            if value != b"default" {
                return Err(Error::not_done(
                    ErrorCode::Invalid,
                    format!("No such user '{}'", shown(value)),
                ));
            }
        } else if is(option, "maxage") {
            let age = parse_u64(value).filter(|age| *age > 0);
            self.age_seconds_min =
                Some(age.ok_or_else(|| invalid("maxage should be greater than 0"))?);
        } else if is(option, "skipme") {
            self.skips_me = match value {
                word if is(word, "yes") => true,
                word if is(word, "no") => false,
                _ => return Err(error::syntax()),
            };
        } else {
            return Err(error::syntax());
        }
        Ok(())
    }

    fn passes(&self, client: &Client, now_millis: u64) -> bool {
        let age = now_millis.saturating_sub(client.since_millis) / 1000;
        !self.is_nobody
            && self.skips != Some(client.id)
            && self.id.is_none_or(|id| id == client.id)
            && self
                .address
                .is_none_or(|address| client.peer == Some(address))
            && self
                .local
                .is_none_or(|address| client.local == Some(address))
            && self.age_seconds_min.is_none_or(|least| age >= least)
    }
}
