//! The calls of `service.KVService`.
//!
//! Its values have no presence: a missing value and an empty one look the same, and both are
//! stored, as the first Flux-KV did. Its strings cannot hold what is not UTF-8, so reading such a
//! value fails here, with the name of the interface that can.

use bytes::Bytes;
use flux_types::{Answer, Command, Error, ErrorCode, ReadCommand, Reply, Set, WriteCommand};

use super::{Asked, Call, InvalidField, Limits, checked_key, checked_value, unexpected};
use crate::original;

impl Call for original::SetRequest {
    type Response = original::SetResponse;

    fn command(self, limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let key = checked_key(Bytes::from(self.key))?;
        let value = checked_value(Some(Bytes::from(self.value)), limits)?;
        Ok((
            Command::Write(WriteCommand::Set(Set::plain(key, value))),
            Asked::default(),
        ))
    }

    fn response(_asked: Asked, answer: Answer) -> Result<original::SetResponse, Error> {
        match answer.reply {
            Reply::Ok => Ok(original::SetResponse { success: true }),
            other => Err(unexpected(other)),
        }
    }
}

impl Call for original::GetRequest {
    type Response = original::GetResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let key = checked_key(Bytes::from(self.key))?;
        Ok((Command::Read(ReadCommand::Get { key }), Asked::default()))
    }

    fn response(_asked: Asked, answer: Answer) -> Result<original::GetResponse, Error> {
        match answer.reply {
            Reply::Bulk(value) => match String::from_utf8(value.into()) {
                Ok(value) => Ok(original::GetResponse { value, found: true }),
                Err(_) => Err(Error::not_done(
                    ErrorCode::Invalid,
                    "the value is not UTF-8, which this interface cannot carry: \
                     use flux.kv.v1.Kv",
                )),
            },
            Reply::Nil => Ok(original::GetResponse::default()),
            other => Err(unexpected(other)),
        }
    }
}

impl Call for original::DelRequest {
    type Response = original::DelResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let keys = vec![checked_key(Bytes::from(self.key))?];
        Ok((
            Command::Write(WriteCommand::Delete { keys }),
            Asked::default(),
        ))
    }

    fn response(_asked: Asked, answer: Answer) -> Result<original::DelResponse, Error> {
        match answer.reply {
            Reply::Integer(_) => Ok(original::DelResponse { success: true }),
            other => Err(unexpected(other)),
        }
    }
}
