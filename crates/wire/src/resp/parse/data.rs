//! One function for each spelling of a data command. Each reads its arguments in Redis's order,
//! so that a request with two mistakes gets the error Redis would give.

use bytes::Bytes;
use flux_types::{
    Command, Condition, Error, ErrorCode, ExpireCondition, Expiry, ReadCommand, ScanPage, Set,
    SetReply, TtlForm, WriteCommand,
};

use super::super::error;
use super::Arguments;
use crate::number::parse_i64;

type Parsed = Result<Command, Error>;

/// Time from now that is refused because no clock will show its end: what is left of 64 bits
/// after the year 2248.
const RELATIVE_MILLIS_MAX: i64 = i64::MAX - (1 << 43);

pub(in super::super) fn get(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Get {
        key: arguments.key()?,
    }))
}

pub(in super::super) fn set(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    let value = arguments.value()?;
    let mut set = Set::plain(key, value);
    let mut expiry = None;
    while let Some(option) = arguments.option() {
        if is(&option, "GET") {
            set.reply = SetReply::Previous;
            continue;
        }
        if let Some(condition) = condition(&option, arguments)? {
            if set.condition != Condition::Always && set.condition != condition {
                return Err(error::syntax());
            }
            set.condition = condition;
            continue;
        }
        let choice = if is(&option, "KEEPTTL") {
            ExpiryChoice::Keep
        } else {
            ExpiryChoice::read(&option, arguments)?
        };
        choice.replace_in(&mut expiry)?;
    }
    if let Some(choice) = expiry {
        set.expiry = choice.resolve(arguments.name())?;
    }
    Ok(Command::Write(WriteCommand::Set(set)))
}

/// NX, XX or IFEQ; `None` if the option is something else.
fn condition(option: &[u8], arguments: &mut Arguments) -> Result<Option<Condition>, Error> {
    Ok(Some(if is(option, "NX") {
        Condition::Absent
    } else if is(option, "XX") {
        Condition::Exists
    } else if is(option, "IFEQ") {
        Condition::ValueIs(arguments.value()?)
    } else {
        return Ok(None);
    }))
}

/// An expiry as it was written: its number is read after all options have been understood, as
/// Redis does.
enum ExpiryChoice {
    Keep,
    Clear,
    Written {
        number: Bytes,
        unit_millis: i64,
        is_absolute: bool,
    },
}

impl ExpiryChoice {
    /// EX, PX, EXAT or PXAT with its number.
    fn read(option: &[u8], arguments: &mut Arguments) -> Result<Self, Error> {
        let (unit_millis, is_absolute) = if is(option, "EX") {
            (1000, false)
        } else if is(option, "PX") {
            (1, false)
        } else if is(option, "EXAT") {
            (1000, true)
        } else if is(option, "PXAT") {
            (1, true)
        } else {
            return Err(error::syntax());
        };
        Ok(Self::Written {
            number: arguments.required()?,
            unit_millis,
            is_absolute,
        })
    }

    /// Takes the place of the one before. The same option may come again, and the last counts;
    /// another does not go with it.
    fn replace_in(self, before: &mut Option<Self>) -> Result<(), Error> {
        let is_same = match (&*before, &self) {
            (None, _) | (Some(Self::Keep), Self::Keep) | (Some(Self::Clear), Self::Clear) => true,
            (
                Some(Self::Written {
                    unit_millis,
                    is_absolute,
                    ..
                }),
                Self::Written {
                    unit_millis: unit,
                    is_absolute: absolute,
                    ..
                },
            ) => unit_millis == unit && is_absolute == absolute,
            (Some(_), _) => false,
        };
        if !is_same {
            return Err(error::syntax());
        }
        *before = Some(self);
        Ok(())
    }

    /// The expiry of a command that refuses times which are not positive.
    fn resolve(self, name: &str) -> Result<Expiry, Error> {
        match self {
            Self::Keep => Ok(Expiry::Keep),
            Self::Clear => Ok(Expiry::Clear),
            Self::Written {
                number,
                unit_millis,
                is_absolute,
            } => {
                let number = parse_i64(&number).ok_or_else(error::not_an_integer)?;
                if number <= 0 {
                    return Err(error::invalid_expire(name));
                }
                expiry_of(number, unit_millis, is_absolute, name)
            }
        }
    }
}

/// `number` units, from now or from the epoch.
fn expiry_of(
    number: i64,
    unit_millis: i64,
    is_absolute: bool,
    name: &str,
) -> Result<Expiry, Error> {
    let millis = number
        .checked_mul(unit_millis)
        .ok_or_else(|| error::invalid_expire(name))?;
    if is_absolute {
        return Ok(Expiry::At(millis));
    }
    if millis > RELATIVE_MILLIS_MAX {
        return Err(error::invalid_expire(name));
    }
    Ok(Expiry::In(millis))
}

pub(in super::super) fn set_if_absent(arguments: &mut Arguments) -> Parsed {
    let mut set = Set::plain(arguments.key()?, arguments.value()?);
    set.condition = Condition::Absent;
    set.reply = SetReply::Flag;
    Ok(Command::Write(WriteCommand::Set(set)))
}

pub(in super::super) fn set_expire(arguments: &mut Arguments) -> Parsed {
    set_in(arguments, 1000)
}

pub(in super::super) fn pset_expire(arguments: &mut Arguments) -> Parsed {
    set_in(arguments, 1)
}

fn set_in(arguments: &mut Arguments, unit_millis: i64) -> Parsed {
    let key = arguments.key()?;
    let choice = ExpiryChoice::Written {
        number: arguments.required()?,
        unit_millis,
        is_absolute: false,
    };
    let mut set = Set::plain(key, arguments.value()?);
    set.expiry = choice.resolve(arguments.name())?;
    Ok(Command::Write(WriteCommand::Set(set)))
}

pub(in super::super) fn get_set(arguments: &mut Arguments) -> Parsed {
    let mut set = Set::plain(arguments.key()?, arguments.value()?);
    set.reply = SetReply::Previous;
    Ok(Command::Write(WriteCommand::Set(set)))
}

pub(in super::super) fn get_delete(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::GetDelete {
        key: arguments.key()?,
    }))
}

pub(in super::super) fn get_expire(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    let mut expiry = None;
    while let Some(option) = arguments.option() {
        let choice = if is(&option, "PERSIST") {
            ExpiryChoice::Clear
        } else {
            ExpiryChoice::read(&option, arguments)?
        };
        choice.replace_in(&mut expiry)?;
    }
    let Some(choice) = expiry else {
        return Ok(Command::Read(ReadCommand::Get { key }));
    };
    let expiry = choice.resolve(arguments.name())?;
    Ok(Command::Write(WriteCommand::GetExpire { key, expiry }))
}

pub(in super::super) fn get_many(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::GetMany {
        keys: arguments.keys()?,
    }))
}

pub(in super::super) fn set_many(arguments: &mut Arguments) -> Parsed {
    pairs(arguments, false)
}

pub(in super::super) fn set_many_if_absent(arguments: &mut Arguments) -> Parsed {
    pairs(arguments, true)
}

fn pairs(arguments: &mut Arguments, if_none_exists: bool) -> Parsed {
    if !arguments.rest.len().is_multiple_of(2) {
        return Err(error::wrong_arity(arguments.name()));
    }
    let mut pairs = Vec::with_capacity(arguments.rest.len() / 2);
    while !arguments.rest.as_slice().is_empty() {
        pairs.push((arguments.key()?, arguments.value()?));
    }
    Ok(Command::Write(WriteCommand::SetMany {
        pairs,
        if_none_exists,
    }))
}

pub(in super::super) fn append(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Append {
        key: arguments.key()?,
        value: arguments.value()?,
    }))
}

pub(in super::super) fn length(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Length {
        key: arguments.key()?,
    }))
}

pub(in super::super) fn get_range(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::GetRange {
        key: arguments.key()?,
        start: arguments.integer()?,
        end: arguments.integer()?,
    }))
}

pub(in super::super) fn set_range(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    let offset = u64::try_from(arguments.integer()?)
        .map_err(|_| Error::not_done(ErrorCode::Invalid, "offset is out of range"))?;
    let value = arguments.value()?;
    Ok(Command::Write(WriteCommand::SetRange {
        key,
        offset,
        value,
    }))
}

pub(in super::super) fn increment(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    Ok(Command::Write(WriteCommand::Increment { key, by: 1 }))
}

pub(in super::super) fn decrement(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    Ok(Command::Write(WriteCommand::Increment { key, by: -1 }))
}

pub(in super::super) fn increment_by(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Increment {
        key: arguments.key()?,
        by: arguments.integer()?,
    }))
}

pub(in super::super) fn decrement_by(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    let by = arguments
        .integer()?
        .checked_neg()
        .ok_or_else(|| Error::not_done(ErrorCode::Overflow, "decrement would overflow"))?;
    Ok(Command::Write(WriteCommand::Increment { key, by }))
}

pub(in super::super) fn increment_float(arguments: &mut Arguments) -> Parsed {
    let key = arguments.key()?;
    let by = arguments.float()?;
    if by.is_infinite() {
        return Err(Error::not_done(
            ErrorCode::Overflow,
            "increment would produce NaN or Infinity",
        ));
    }
    Ok(Command::Write(WriteCommand::IncrementFloat { key, by }))
}

pub(in super::super) fn delete(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Delete {
        keys: arguments.keys()?,
    }))
}

pub(in super::super) fn exists(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Exists {
        keys: arguments.keys()?,
    }))
}

pub(in super::super) fn touch(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Touch {
        keys: arguments.keys()?,
    }))
}

pub(in super::super) fn type_of(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Type {
        key: arguments.key()?,
    }))
}

pub(in super::super) fn expire(arguments: &mut Arguments) -> Parsed {
    expire_in(arguments, 1000, false)
}

pub(in super::super) fn pexpire(arguments: &mut Arguments) -> Parsed {
    expire_in(arguments, 1, false)
}

pub(in super::super) fn expire_at(arguments: &mut Arguments) -> Parsed {
    expire_in(arguments, 1000, true)
}

pub(in super::super) fn pexpire_at(arguments: &mut Arguments) -> Parsed {
    expire_in(arguments, 1, true)
}

/// Unlike SET's, these times may be negative: the key is then deleted.
fn expire_in(arguments: &mut Arguments, unit_millis: i64, is_absolute: bool) -> Parsed {
    let key = arguments.key()?;
    let number = arguments.required()?;
    let condition = expire_condition(arguments)?;
    let number = parse_i64(&number).ok_or_else(error::not_an_integer)?;
    let expiry = expiry_of(number, unit_millis, is_absolute, arguments.name())?;
    Ok(Command::Write(WriteCommand::Expire {
        key,
        expiry,
        condition,
    }))
}

fn expire_condition(arguments: &mut Arguments) -> Result<ExpireCondition, Error> {
    let mut condition = ExpireCondition::default();
    while let Some(option) = arguments.option() {
        if is(&option, "NX") {
            condition.if_none = true;
        } else if is(&option, "XX") {
            condition.if_some = true;
        } else if is(&option, "GT") {
            condition.if_later = true;
        } else if is(&option, "LT") {
            condition.if_earlier = true;
        } else {
            return Err(Error::not_done(
                ErrorCode::Invalid,
                format!("Unsupported option {}", error::quotable(&option)),
            ));
        }
    }
    check_expire_condition(condition)?;
    Ok(condition)
}

/// That the conditions can hold together.
///
/// # Errors
/// They cannot.
pub(crate) fn check_expire_condition(condition: ExpireCondition) -> Result<(), Error> {
    let with_none = condition.if_some || condition.if_later || condition.if_earlier;
    if condition.if_none && with_none {
        return Err(Error::not_done(
            ErrorCode::Invalid,
            "NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if condition.if_later && condition.if_earlier {
        return Err(Error::not_done(
            ErrorCode::Invalid,
            "GT and LT options at the same time are not compatible",
        ));
    }
    Ok(())
}

pub(in super::super) fn ttl(arguments: &mut Arguments) -> Parsed {
    ttl_in(arguments, TtlForm::Seconds)
}

pub(in super::super) fn pttl(arguments: &mut Arguments) -> Parsed {
    ttl_in(arguments, TtlForm::Millis)
}

pub(in super::super) fn expire_time(arguments: &mut Arguments) -> Parsed {
    ttl_in(arguments, TtlForm::AbsoluteSeconds)
}

pub(in super::super) fn pexpire_time(arguments: &mut Arguments) -> Parsed {
    ttl_in(arguments, TtlForm::AbsoluteMillis)
}

fn ttl_in(arguments: &mut Arguments, form: TtlForm) -> Parsed {
    Ok(Command::Read(ReadCommand::Ttl {
        key: arguments.key()?,
        form,
    }))
}

pub(in super::super) fn persist(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Persist {
        key: arguments.key()?,
    }))
}

pub(in super::super) fn rename(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Rename {
        source: arguments.key()?,
        target: arguments.key()?,
        if_absent: false,
    }))
}

pub(in super::super) fn rename_if_absent(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Write(WriteCommand::Rename {
        source: arguments.key()?,
        target: arguments.key()?,
        if_absent: true,
    }))
}

pub(in super::super) fn copy(arguments: &mut Arguments) -> Parsed {
    let source = arguments.key()?;
    let target = arguments.key()?;
    let mut replace = false;
    while let Some(option) = arguments.option() {
        if is(&option, "REPLACE") {
            replace = true;
        } else if is(&option, "DB") {
            if arguments.integer()? != 0 {
                return Err(Error::not_done(
                    ErrorCode::Invalid,
                    "DB index is out of range",
                ));
            }
        } else {
            return Err(error::syntax());
        }
    }
    if source == target {
        return Err(Error::not_done(
            ErrorCode::Invalid,
            "source and destination objects are the same",
        ));
    }
    Ok(Command::Write(WriteCommand::Copy {
        source,
        target,
        replace,
    }))
}

pub(in super::super) fn random_key(_arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::RandomKey))
}

pub(in super::super) fn scan(arguments: &mut Arguments) -> Parsed {
    let mut page = ScanPage {
        cursor: arguments.cursor()?,
        pattern: None,
        count: SCAN_COUNT_DEFAULT,
        type_matches: true,
    };
    while let Some(option) = arguments.option() {
        if is(&option, "MATCH") {
            let pattern = arguments.required()?;
            page.pattern = (pattern.as_ref() != b"*").then_some(pattern);
        } else if is(&option, "COUNT") {
            page.count = usize::try_from(arguments.integer()?)
                .ok()
                .filter(|&count| count > 0)
                .ok_or_else(error::syntax)?;
        } else if is(&option, "TYPE") {
            page.type_matches = is(&arguments.required()?, "string");
        } else {
            return Err(error::syntax());
        }
    }
    Ok(Command::Read(ReadCommand::Scan(page)))
}

/// Keys looked at by a SCAN that does not say how many.
const SCAN_COUNT_DEFAULT: usize = 10;

pub(in super::super) fn keys(arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Keys {
        pattern: arguments.required()?,
    }))
}

pub(in super::super) fn count(_arguments: &mut Arguments) -> Parsed {
    Ok(Command::Read(ReadCommand::Count))
}

/// FLUSHALL and FLUSHDB. Both modes are the same here: the table is swapped.
pub(in super::super) fn clear(arguments: &mut Arguments) -> Parsed {
    if let Some(mode) = arguments.option()
        && !is(&mode, "ASYNC")
        && !is(&mode, "SYNC")
    {
        return Err(error::syntax());
    }
    arguments.end()?;
    Ok(Command::Write(WriteCommand::Clear))
}

fn is(option: &[u8], name: &str) -> bool {
    option.eq_ignore_ascii_case(name.as_bytes())
}
