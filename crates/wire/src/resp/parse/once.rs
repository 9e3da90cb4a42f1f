//! FLUX.REQUEST and FLUX.OUTCOME: commands with request ids.

use bytes::Bytes;
use flux_types::{Command, Error, ErrorCode, RequestId, SessionId, WriteCommand};

use super::super::spec::SessionCommand;
use super::{Arguments, Request, check_key, parse};
use crate::Limits;
use crate::number::parse_u64;

/// Arguments that make a request id.
const ARGUMENTS: usize = 3;

/// A request id of its three arguments.
///
/// # Errors
/// They are none.
pub fn request_id(arguments: &[Bytes]) -> Result<RequestId, Error> {
    let [session, sequence, lowest_unanswered] = arguments else {
        return Err(super::error::syntax());
    };
    let session =
        SessionId::parse(session).ok_or_else(|| invalid("session is not a UUID of version 7"))?;
    let number = |argument: &Bytes| {
        parse_u64(argument).ok_or_else(|| invalid("sequences are whole numbers from 1"))
    };
    Ok(RequestId {
        session,
        sequence: number(sequence)?,
        lowest_unanswered: number(lowest_unanswered)?,
    })
}

fn invalid(message: &'static str) -> Error {
    Error::not_done(ErrorCode::Invalid, message)
}

/// The command behind a request id, done once. A read is done as it is. Of what sessions answer,
/// only EXEC takes a request id, as its arguments.
pub(super) fn once(mut argv: Vec<Bytes>, limits: Limits) -> Result<Request, Error> {
    let inner = argv.split_off(argv.len().min(ARGUMENTS));
    let request = request_id(&argv)?;
    match parse(inner, limits).request {
        Request::Data(Command::Write(
            WriteCommand::Once(_) | WriteCommand::QueryOutcome { .. },
        )) => Err(invalid("this command takes no request id")),
        Request::Data(command) => Ok(Request::Data(command.once(request))),
        Request::Session(SessionCommand::Exec, _) => {
            Ok(Request::Session(SessionCommand::Exec, argv))
        }
        Request::Session(..) => Err(invalid("this command takes no request id")),
        Request::Invalid(error) => Err(error),
    }
}

/// FLUX.OUTCOME session sequence lowest-unanswered [key].
pub(in super::super) fn outcome(arguments: &mut Arguments) -> Result<Command, Error> {
    let id = [
        arguments.required()?,
        arguments.required()?,
        arguments.required()?,
    ];
    let request = request_id(&id)?;
    let key = arguments.option();
    if let Some(key) = &key {
        check_key(key)?;
    }
    arguments.end()?;
    Ok(Command::Write(WriteCommand::QueryOutcome { request, key }))
}

#[cfg(test)]
mod tests {
    use flux_types::{Set, limits};

    use super::*;

    const SESSION: &str = "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071";

    fn request(words: &[&str]) -> Request {
        let argv = words
            .iter()
            .map(|word| Bytes::copy_from_slice(word.as_bytes()));
        let limits = Limits {
            value_bytes_max: limits::VALUE_BYTES_DEFAULT,
        };
        parse(argv.collect(), limits).request
    }

    fn id() -> RequestId {
        RequestId {
            session: SessionId::parse(SESSION.as_bytes()).unwrap(),
            sequence: 7,
            lowest_unanswered: 5,
        }
    }

    #[test]
    fn a_write_behind_a_request_id_is_done_once_and_a_read_as_it_is() {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let set = Command::Write(WriteCommand::Set(Set::plain(bytes("k"), bytes("v"))));
        let words = ["flux.request", SESSION, "7", "5", "set", "k", "v"];
        assert_eq!(request(&words), Request::Data(set.once(id())));
        let words = ["flux.request", SESSION, "7", "5", "get", "k"];
        assert_eq!(request(&words), request(&["get", "k"]));
        let words = ["flux.request", SESSION, "7", "5", "exec"];
        let Request::Session(SessionCommand::Exec, arguments) = request(&words) else {
            panic!("EXEC takes one");
        };
        assert_eq!(request_id(&arguments), Ok(id()));
    }

    #[test]
    fn an_outcome_is_asked_of_every_shard_or_of_that_of_a_key() {
        for (words, key) in [
            (vec!["FLUX.OUTCOME", SESSION, "7", "5"], None),
            (
                vec!["FLUX.OUTCOME", SESSION, "7", "5", "k"],
                Some(Bytes::from_static(b"k")),
            ),
        ] {
            let request_id = id();
            let expected = WriteCommand::QueryOutcome {
                request: request_id,
                key,
            };
            assert_eq!(request(&words), Request::Data(Command::Write(expected)));
        }
    }

    #[test]
    fn what_takes_no_request_id_or_has_none_is_refused() {
        for words in [
            vec!["flux.request", SESSION, "7", "5", "ping"],
            vec!["flux.request", SESSION, "7", "5", "multi"],
            vec!["flux.request", SESSION, "7", "5", "nonsense"],
            vec!["flux.request", SESSION, "7", "5", "set", "k"],
            vec![
                "flux.request",
                SESSION,
                "7",
                "5",
                "flux.outcome",
                SESSION,
                "7",
                "5",
            ],
            vec![
                "flux.request",
                SESSION,
                "7",
                "5",
                "flux.request",
                SESSION,
                "7",
                "5",
                "del",
                "k",
            ],
            vec!["flux.request", SESSION, "-7", "5", "del", "k"],
            vec!["flux.request", "1", "7", "5", "del", "k"],
            vec!["flux.request", SESSION, "7", "5"],
            vec!["flux.outcome", SESSION, "7", "5", "k", "k"],
            vec!["flux.outcome", SESSION, "7"],
        ] {
            assert!(matches!(request(&words), Request::Invalid(_)), "{words:?}");
        }
    }
}
