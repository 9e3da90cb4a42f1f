//! Errors in RESP: the words that clients look for, and the sentences Redis made them expect.

use flux_types::{Error, ErrorCode, Outcome};

/// The first word of an error reply. Clients branch on it, so each is the word Redis uses for
/// the situation, where Redis knows the situation.
#[must_use]
pub const fn code_word(error: &Error) -> &'static str {
    if matches!(error.outcome, Outcome::Unknown) {
        return "UNCERTAIN";
    }
    word_of_code(error.code)
}

/// All that [`code_word`] answers, the plainest first.
pub const WORDS: [&str; 16] = [
    "ERR",
    "CROSSSLOT",
    "EXECABORT",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "BUSY",
    "TIMEOUT",
    "OOM",
    "NOSPACE",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "LOADING",
    "UNCERTAIN",
    "NOTKEPT",
    "NOPROTO",
];

/// The word of a code whose outcome is known.
#[must_use]
pub const fn word_of_code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Invalid
        | ErrorCode::UnknownCommand
        | ErrorCode::WrongArity
        | ErrorCode::NotAnInteger
        | ErrorCode::NotAFloat
        | ErrorCode::Overflow
        | ErrorCode::TooLarge
        | ErrorCode::NoSuchKey
        | ErrorCode::Conflict
        | ErrorCode::Internal => "ERR",
        ErrorCode::CrossShard => "CROSSSLOT",
        ErrorCode::TransactionAborted => "EXECABORT",
        ErrorCode::Unauthenticated => "NOAUTH",
        ErrorCode::WrongPassword => "WRONGPASS",
        ErrorCode::Forbidden => "NOPERM",
        ErrorCode::Busy => "BUSY",
        ErrorCode::Timeout => "TIMEOUT",
        ErrorCode::OutOfMemory => "OOM",
        ErrorCode::NoSpace => "NOSPACE",
        // Cluster clients repeat the command after a pause on TRYAGAIN, and refresh their map and
        // repeat it on CLUSTERDOWN; plain clients reconnect on LOADING. Each is what helps.
        ErrorCode::NotLeader | ErrorCode::Resharded => "TRYAGAIN",
        ErrorCode::Unavailable => "CLUSTERDOWN",
        ErrorCode::ShuttingDown => "LOADING",
        ErrorCode::ReplyNotKept => "NOTKEPT",
        // Never without an unknown outcome.
        ErrorCode::RequestUnknown => "UNCERTAIN",
    }
}

/// Reads the text of an error reply (without `-` and line end) back into an error. What only the
/// sentence tells apart (all that is `ERR`) is told apart by the sentence. A word that is not
/// ours stays in the message, with [`ErrorCode::Invalid`].
#[must_use]
pub fn parse_error(text: &str) -> Error {
    let (word, message) = text.split_once(' ').unwrap_or((text, ""));
    let code = match word {
        "UNCERTAIN" => return Error::unknown(ErrorCode::Timeout, message.to_owned()),
        "ERR" => code_of_sentence(message),
        "CROSSSLOT" => ErrorCode::CrossShard,
        "EXECABORT" => ErrorCode::TransactionAborted,
        "NOAUTH" => ErrorCode::Unauthenticated,
        "WRONGPASS" => ErrorCode::WrongPassword,
        "NOPERM" => ErrorCode::Forbidden,
        "BUSY" => ErrorCode::Busy,
        "TIMEOUT" => ErrorCode::Timeout,
        "OOM" => ErrorCode::OutOfMemory,
        "NOSPACE" => ErrorCode::NoSpace,
        "TRYAGAIN" => ErrorCode::NotLeader,
        "CLUSTERDOWN" => ErrorCode::Unavailable,
        "LOADING" => ErrorCode::ShuttingDown,
        "NOTKEPT" => {
            return Error {
                code: ErrorCode::ReplyNotKept,
                message: message.to_owned().into(),
                outcome: Outcome::Done,
            };
        }
        _ => return Error::not_done(ErrorCode::Invalid, text.to_owned()),
    };
    Error::not_done(code, message.to_owned())
}

fn code_of_sentence(message: &str) -> ErrorCode {
    if message.starts_with("unknown command") || message.starts_with("unknown subcommand") {
        ErrorCode::UnknownCommand
    } else if message.starts_with("wrong number of arguments") {
        ErrorCode::WrongArity
    } else if message == NOT_AN_INTEGER {
        ErrorCode::NotAnInteger
    } else if message == NOT_A_FLOAT {
        ErrorCode::NotAFloat
    } else if message == "no such key" {
        ErrorCode::NoSuchKey
    } else {
        ErrorCode::Invalid
    }
}

const NOT_AN_INTEGER: &str = "value is not an integer or out of range";
const NOT_A_FLOAT: &str = "value is not a valid float";

/// Longest quotation of a peer's words in an error, in bytes.
const QUOTED_BYTES_MAX: usize = 128;

/// `syntax error`: options that do not fit together, or are none.
#[must_use]
pub fn syntax() -> Error {
    Error::not_done(ErrorCode::Invalid, "syntax error")
}

/// An argument that had to be a 64-bit integer.
#[must_use]
pub fn not_an_integer() -> Error {
    Error::not_done(ErrorCode::NotAnInteger, NOT_AN_INTEGER)
}

/// An argument that had to be a float.
#[must_use]
pub fn not_a_float() -> Error {
    Error::not_done(ErrorCode::NotAFloat, NOT_A_FLOAT)
}

/// Too few or too many arguments for `name` (`client|id` for a subcommand).
#[must_use]
pub fn wrong_arity(name: &str) -> Error {
    Error::not_done(
        ErrorCode::WrongArity,
        format!("wrong number of arguments for '{name}' command"),
    )
}

/// A relative or absolute expiry that cannot be.
#[must_use]
pub fn invalid_expire(name: &str) -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        format!("invalid expire time in '{name}' command"),
    )
}

/// A command that is not in the table. Quotes it, and the beginning of its arguments.
#[must_use]
pub fn unknown_command(argv: &[bytes::Bytes]) -> Error {
    let name = argv.first().map_or_else(String::new, |name| quotable(name));
    let mut message = format!("unknown command '{name}', with args beginning with: ");
    for argument in argv.iter().skip(1) {
        if message.len() >= 2 * QUOTED_BYTES_MAX {
            break;
        }
        message.push('\'');
        message.push_str(&quotable(argument));
        message.push_str("' ");
    }
    Error::not_done(ErrorCode::UnknownCommand, message)
}

/// A subcommand that is not in the table.
#[must_use]
pub fn unknown_subcommand(container: &str, subcommand: &[u8]) -> Error {
    Error::not_done(
        ErrorCode::UnknownCommand,
        format!(
            "unknown subcommand '{}'. Try {} HELP.",
            quotable(subcommand),
            container.to_ascii_uppercase()
        ),
    )
}

/// A peer's bytes, cut and made printable.
pub(crate) fn quotable(bytes: &[u8]) -> String {
    let cut = bytes.get(..QUOTED_BYTES_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(cut)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
