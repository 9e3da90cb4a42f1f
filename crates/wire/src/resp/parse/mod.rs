//! Arguments to commands, with the errors Redis gives.

mod data;
mod once;

use bytes::Bytes;
use flux_types::{Command, Error, ErrorCode, limits};

use super::error;
use super::spec::{Action, SessionCommand, Spec};
use super::table;
use crate::Limits;
use crate::number::{parse_f64, parse_i64, parse_u64};

pub(crate) use data::check_expire_condition;
pub(super) use data::{
    append, clear, copy, count, decrement, decrement_by, delete, exists, expire, expire_at,
    expire_time, get, get_delete, get_expire, get_many, get_range, get_set, increment,
    increment_by, increment_float, keys, length, persist, pexpire, pexpire_at, pexpire_time,
    pset_expire, pttl, random_key, rename, rename_if_absent, scan, set, set_expire, set_if_absent,
    set_many, set_many_if_absent, set_range, touch, ttl, type_of,
};
pub(super) use once::outcome;
pub use once::request_id;

/// A request and the row of the table it was found in, for statistics and authorization.
#[derive(Debug)]
pub struct Decoded {
    /// The row; `None` for a command that is not in the table.
    pub spec: Option<&'static Spec>,
    /// What is asked.
    pub request: Request,
}

/// What a connection asks.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// An operation on data.
    Data(Command),
    /// Something about the connection or the node, and its arguments without the name (and
    /// without the subcommand's).
    Session(SessionCommand, Vec<Bytes>),
    /// A command that is unknown or wrongly used: answer the error (inside MULTI, also doom the
    /// transaction), and go on.
    Invalid(Error),
}

/// Finds the command that `argv` names and checks its arguments. An empty `argv` is an unknown
/// command.
#[must_use]
pub fn parse(argv: Vec<Bytes>, limits: Limits) -> Decoded {
    let Some(spec) = argv.first().and_then(|name| table::find(name)) else {
        return Decoded {
            spec: None,
            request: Request::Invalid(error::unknown_command(&argv)),
        };
    };
    match run(spec, argv, limits) {
        Ok((spec, request)) => Decoded {
            spec: Some(spec),
            request,
        },
        Err(error) => Decoded {
            spec: Some(spec),
            request: Request::Invalid(error),
        },
    }
}

fn run(
    spec: &'static Spec,
    argv: Vec<Bytes>,
    limits: Limits,
) -> Result<(&'static Spec, Request), Error> {
    let spec = match argv.get(1) {
        Some(name) if !spec.subcommands.is_empty() => table::find_in(spec.subcommands, name)
            .ok_or_else(|| error::unknown_subcommand(spec.name, name))?,
        _ => spec,
    };
    if !spec.accepts(argv.len()) {
        return Err(error::wrong_arity(&spec.full_name().to_string()));
    }
    let mut rest = argv.into_iter();
    rest.next();
    let request = match spec.action {
        Action::Data(command) => Request::Data(command(&mut Arguments { spec, rest, limits })?),
        Action::Session(command) => {
            if spec.container.is_some() {
                rest.next();
            }
            Request::Session(command, rest.collect())
        }
        Action::Once => once::once(rest.collect(), limits)?,
        Action::Container => return Err(error::wrong_arity(spec.name)),
    };
    Ok((spec, request))
}

/// The arguments after a command's name. Their number has been checked against the arity, so
/// what is missing is an option's argument: a syntax error.
pub(super) struct Arguments {
    spec: &'static Spec,
    rest: std::vec::IntoIter<Bytes>,
    limits: Limits,
}

impl Arguments {
    /// The command's name in lower case.
    const fn name(&self) -> &'static str {
        self.spec.name
    }

    /// The next argument, if there is one.
    fn option(&mut self) -> Option<Bytes> {
        self.rest.next()
    }

    /// The next argument.
    fn required(&mut self) -> Result<Bytes, Error> {
        self.rest.next().ok_or_else(error::syntax)
    }

    /// The next argument, as a key.
    fn key(&mut self) -> Result<Bytes, Error> {
        let key = self.required()?;
        check_key(&key)?;
        Ok(key)
    }

    /// The next argument, as a value.
    fn value(&mut self) -> Result<Bytes, Error> {
        let value = self.required()?;
        check_value(&value, self.limits)?;
        Ok(value)
    }

    /// The next argument, as a signed integer.
    fn integer(&mut self) -> Result<i64, Error> {
        parse_i64(&self.required()?).ok_or_else(error::not_an_integer)
    }

    /// The next argument, as a float.
    fn float(&mut self) -> Result<f64, Error> {
        parse_f64(&self.required()?).ok_or_else(error::not_a_float)
    }

    /// The next argument, as a SCAN cursor.
    fn cursor(&mut self) -> Result<u64, Error> {
        parse_u64(&self.required()?)
            .ok_or_else(|| Error::not_done(ErrorCode::Invalid, "invalid cursor"))
    }

    /// All that is left, as keys.
    fn keys(&mut self) -> Result<Vec<Bytes>, Error> {
        let keys: Vec<Bytes> = std::mem::take(&mut self.rest).collect();
        keys.iter().try_for_each(|key| check_key(key))?;
        Ok(keys)
    }

    /// That nothing is left.
    fn end(&mut self) -> Result<(), Error> {
        match self.rest.next() {
            None => Ok(()),
            Some(_) => Err(error::syntax()),
        }
    }
}

/// That a key is not too long.
///
/// # Errors
/// It is.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.len() <= limits::KEY_BYTES_MAX {
        return Ok(());
    }
    Err(Error::not_done(
        ErrorCode::TooLarge,
        format!(
            "key is {} bytes long, the limit is {}",
            key.len(),
            limits::KEY_BYTES_MAX
        ),
    ))
}

/// That a value is not too long.
///
/// # Errors
/// It is.
pub(crate) fn check_value(value: &[u8], limits: Limits) -> Result<(), Error> {
    if value.len() <= limits.value_bytes_max {
        return Ok(());
    }
    Err(Error::not_done(
        ErrorCode::TooLarge,
        format!(
            "value is {} bytes long, the limit is {}",
            value.len(),
            limits.value_bytes_max
        ),
    ))
}

#[cfg(test)]
mod tests;
