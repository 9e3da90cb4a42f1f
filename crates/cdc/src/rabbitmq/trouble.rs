//! What can be wrong between us and a broker, in words that tell an operator what to do.

use std::fmt;

use lapin::ErrorKind;

/// Why events do not flow. The words of [`TroubleKind::as_str`] are a closed set: metrics use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// No connection, or it broke.
    Unreachable,
    /// The user or the password is wrong.
    Login,
    /// There is no such virtual host, or the user may not enter it.
    Vhost,
    /// The user may not do what is needed.
    Permission,
    /// An exchange or queue is missing, or is not as it should be.
    Topology,
    /// No queue takes what is published.
    Unroutable,
    /// The broker refused a message, as a full queue does.
    Rejected,
    /// The changes cannot be read here.
    Source,
}

impl TroubleKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Login,
        Self::Vhost,
        Self::Permission,
        Self::Topology,
        Self::Unroutable,
        Self::Rejected,
        Self::Source,
    ];

    /// One word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Login => "login",
            Self::Vhost => "vhost",
            Self::Permission => "permission",
            Self::Topology => "topology",
            Self::Unroutable => "unroutable",
            Self::Rejected => "rejected",
            Self::Source => "source",
        }
    }
}

/// Something that keeps events from flowing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Trouble {
    /// What it is.
    pub kind: TroubleKind,
    /// What the broker or the system said. Holds no password, key or value.
    pub detail: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            TroubleKind::Unreachable => "broker unreachable",
            TroubleKind::Login => "wrong user or password",
            TroubleKind::Vhost => "virtual host missing or closed to this user",
            TroubleKind::Permission => "not permitted",
            TroubleKind::Topology => "exchange or queue missing or different",
            TroubleKind::Unroutable => "no queue is bound",
            TroubleKind::Rejected => "message refused",
            TroubleKind::Source => "the log cannot be read",
        };
        write!(f, "{what}: {}", self.detail)
    }
}

impl Trouble {
    /// Of this kind.
    #[must_use]
    pub fn new(kind: TroubleKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    /// What is behind a reply code and text of the broker.
    #[must_use]
    pub fn of_reply(code: u16, text: String) -> Self {
        Self::new(of_reply(code, &text), text)
    }

    /// The broker did not answer in time.
    #[must_use]
    pub fn silent(what: &str) -> Self {
        Self::new(TroubleKind::Unreachable, format!("no answer to {what}"))
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        let kind = error.kind();
        if let ErrorKind::ProtocolError(protocol) = kind {
            let text = protocol.get_message().to_string();
            return Self::of_reply(protocol.get_id(), text);
        }
        let detail = if let ErrorKind::IOError(io) = kind {
            without_code(&io.to_string())
        } else if matches!(kind, ErrorKind::MissingHeartbeatError) {
            "no heartbeat".to_owned()
        } else if matches!(
            kind,
            ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..)
        ) {
            "the connection is closed".to_owned()
        } else {
            error.to_string()
        };
        Self::new(TroubleKind::Unreachable, detail)
    }
}

/// The kind behind an AMQP reply code, where necessary by the words that RabbitMQ puts there.
fn of_reply(code: u16, text: &str) -> TroubleKind {
    match code {
        403 if text.contains("Login was refused") || text.contains("can only connect via") => {
            TroubleKind::Login
        }
        403 => TroubleKind::Permission,
        404..=406 => TroubleKind::Topology,
        312 | 313 => TroubleKind::Unroutable,
        311 => TroubleKind::Rejected,
        530 if text.contains("vhost") => TroubleKind::Vhost,
        530 => TroubleKind::Permission,
        _ => TroubleKind::Unreachable,
    }
}

fn without_code(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text);
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rabbitmq_says_is_told_apart() {
        for (code, text, kind) in [
            (
                403,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.",
                TroubleKind::Login,
            ),
            (
                403,
                "ACCESS_REFUSED - access to exchange 'flux.cdc' in vhost '/' refused for user 'x'",
                TroubleKind::Permission,
            ),
            (
                530,
                "NOT_ALLOWED - vhost nope not found",
                TroubleKind::Vhost,
            ),
            (
                530,
                "NOT_ALLOWED - access to vhost 'v' refused for user 'u'",
                TroubleKind::Vhost,
            ),
            (
                404,
                "NOT_FOUND - no exchange 'x' in vhost '/'",
                TroubleKind::Topology,
            ),
            (404, "NOT_FOUND - no queue 'q'", TroubleKind::Topology),
            (
                406,
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type'",
                TroubleKind::Topology,
            ),
            (
                320,
                "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
                TroubleKind::Unreachable,
            ),
        ] {
            assert_eq!(of_reply(code, text), kind, "{text}");
        }
    }

    #[test]
    fn an_io_error_is_told_in_plain_words() {
        let error: lapin::Error = std::io::Error::from_raw_os_error(111).into();
        let trouble = Trouble::from(error);
        assert_eq!(
            trouble.to_string(),
            "broker unreachable: connection refused"
        );
    }

    #[test]
    fn every_kind_has_its_own_word() {
        let mut words: Vec<_> = TroubleKind::ALL.iter().map(|kind| kind.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), TroubleKind::ALL.len());
    }
}
