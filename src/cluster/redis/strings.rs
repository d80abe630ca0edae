//! Commands on strings, as operations.

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::When;
use dogsled_storage::strings::{KIND_STRING, SetOnly, StringAction, is_number};

use super::database::{Data, Shape};
use super::table::{Asked, Planned, Step, integer, is_word, syntax_error, wrong_arity};
use crate::IVec;

fn bytes(argument: &Bytes) -> IVec {
    IVec::from(&argument[..])
}

/// One operation on the first argument.
fn one(asked: &Asked<'_>, action: StringAction, shape: Shape) -> Planned {
    Ok(Step::Data(Data::new(vec![asked.operation(&asked.arguments[1], action)], shape)))
}

pub(super) fn get(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Get, Shape::Plain)
}

pub(super) fn length(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Length, Shape::Plain)
}

pub(super) fn get_and_delete(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Take, Shape::Plain)
}

pub(super) fn range(asked: &Asked<'_>) -> Planned {
    let (start, end) = (integer(&asked.arguments[2])?, integer(&asked.arguments[3])?);
    one(asked, StringAction::Range { start, end }, Shape::Plain)
}

fn set_to(value: &Bytes, only: SetOnly, when: Option<When>, get: bool) -> StringAction {
    StringAction::Set { value: bytes(value), only, when, get }
}

pub(super) fn get_and_set(asked: &Asked<'_>) -> Planned {
    one(asked, set_to(&asked.arguments[2], SetOnly::Always, None, true), Shape::Plain)
}

pub(super) fn set_if_absent(asked: &Asked<'_>) -> Planned {
    one(asked, set_to(&asked.arguments[2], SetOnly::Absent, None, false), Shape::Flag)
}

pub(super) fn set_with_seconds(asked: &Asked<'_>) -> Planned {
    let when = Unit::Seconds.after(asked, &asked.arguments[2])?;
    one(asked, set_to(&asked.arguments[3], SetOnly::Always, Some(when), false), Shape::Plain)
}

pub(super) fn set_with_milliseconds(asked: &Asked<'_>) -> Planned {
    let when = Unit::Milliseconds.after(asked, &asked.arguments[2])?;
    one(asked, set_to(&asked.arguments[3], SetOnly::Always, Some(when), false), Shape::Plain)
}

/// What a time is given in.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    /// A number of these in milliseconds.
    pub(super) fn milliseconds(self, number: i64) -> Option<i64> {
        match self {
            Unit::Seconds => number.checked_mul(1000),
            Unit::Milliseconds => Some(number),
        }
    }

    fn positive(self, asked: &Asked<'_>, argument: &Bytes) -> Result<u64, Value> {
        let number = integer(argument)?;
        let milliseconds = self.milliseconds(number).filter(|number| *number > 0);
        let milliseconds = milliseconds.and_then(|number| u64::try_from(number).ok());
        milliseconds.ok_or_else(|| invalid_time(asked))
    }

    fn after(self, asked: &Asked<'_>, argument: &Bytes) -> Result<When, Value> {
        let after = self.positive(asked, argument)?;
        // Redis adds them to the time it is, in 64 bits.
        if after > i64::MAX as u64 - asked.now_ms {
            return Err(invalid_time(asked));
        }
        Ok(When::After(after))
    }

    fn at(self, asked: &Asked<'_>, argument: &Bytes) -> Result<When, Value> {
        self.positive(asked, argument).map(When::At)
    }
}

pub(super) fn invalid_time(asked: &Asked<'_>) -> Value {
    Value::error(format!("ERR invalid expire time in '{}' command", asked.name))
}

/// `EX n` and its kin, read after all options are known to fit together.
#[derive(Clone, Copy)]
struct Time<'a> {
    unit: Unit,
    is_absolute: bool,
    argument: &'a Bytes,
}

impl<'a> Time<'a> {
    fn parse(option: &Bytes, argument: Option<&'a Bytes>) -> Option<Result<Time<'a>, Value>> {
        let (unit, is_absolute) = match () {
            () if is_word(option, "EX") => (Unit::Seconds, false),
            () if is_word(option, "PX") => (Unit::Milliseconds, false),
            () if is_word(option, "EXAT") => (Unit::Seconds, true),
            () if is_word(option, "PXAT") => (Unit::Milliseconds, true),
            () => return None,
        };
        Some(argument.map(|argument| Time { unit, is_absolute, argument }).ok_or_else(syntax_error))
    }

    /// The last of several counts, if all are of one kind.
    fn instead_of(self, before: Option<Time<'_>>) -> Result<Time<'a>, Value> {
        let kind = |time: Time<'_>| (matches!(time.unit, Unit::Seconds), time.is_absolute);
        match before {
            Some(before) if kind(before) != kind(self) => Err(syntax_error()),
            _ => Ok(self),
        }
    }

    fn when(self, asked: &Asked<'_>) -> Result<When, Value> {
        match self.is_absolute {
            true => self.unit.at(asked, self.argument),
            false => self.unit.after(asked, self.argument),
        }
    }
}

pub(super) fn set(asked: &Asked<'_>) -> Planned {
    let (mut only, mut get, mut keep, mut time) = (SetOnly::Always, false, false, None);
    let mut options = asked.arguments[3..].iter();
    while let Some(option) = options.next() {
        if is_word(option, "NX") && only != SetOnly::Present {
            only = SetOnly::Absent;
        } else if is_word(option, "XX") && only != SetOnly::Absent {
            only = SetOnly::Present;
        } else if is_word(option, "GET") {
            get = true;
        } else if is_word(option, "KEEPTTL") && time.is_none() {
            keep = true;
        } else if !keep && let Some(found) = Time::parse(option, options.next()) {
            time = Some(found?.instead_of(time)?);
        } else {
            return Err(syntax_error());
        }
    }
    let when = match time {
        Some(time) => Some(time.when(asked)?),
        None => keep.then_some(When::Keep),
    };
    one(asked, set_to(&asked.arguments[2], only, when, get), Shape::Plain)
}

pub(super) fn get_and_expire(asked: &Asked<'_>) -> Planned {
    let (mut persist, mut time) = (false, None);
    let mut options = asked.arguments[2..].iter();
    while let Some(option) = options.next() {
        if is_word(option, "PERSIST") && time.is_none() {
            persist = true;
        } else if !persist && let Some(found) = Time::parse(option, options.next()) {
            time = Some(found?.instead_of(time)?);
        } else {
            return Err(syntax_error());
        }
    }
    let action = match time.map(|time| time.when(asked)) {
        Some(Ok(when)) => StringAction::GetAndExpire { when: Some(when) },
        // Redis looks at the key before it looks at the number.
        Some(Err(refused)) => return Ok(asked.refused(KIND_STRING, Value::Null, refused)),
        None if persist => StringAction::GetAndExpire { when: None },
        None => StringAction::Get,
    };
    one(asked, action, Shape::Plain)
}

pub(super) fn append(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Append { value: bytes(&asked.arguments[2]) }, Shape::Plain)
}

pub(super) fn overwrite(asked: &Asked<'_>) -> Planned {
    let offset = integer(&asked.arguments[2])?;
    let offset = u64::try_from(offset).map_err(|_| Value::error("ERR offset is out of range"))?;
    one(asked, StringAction::Overwrite { offset, value: bytes(&asked.arguments[3]) }, Shape::Plain)
}

fn add(asked: &Asked<'_>, delta: i64) -> Planned {
    one(asked, StringAction::Add { delta }, Shape::Plain)
}

pub(super) fn increment(asked: &Asked<'_>) -> Planned {
    add(asked, 1)
}

pub(super) fn decrement(asked: &Asked<'_>) -> Planned {
    add(asked, -1)
}

pub(super) fn increment_by(asked: &Asked<'_>) -> Planned {
    add(asked, integer(&asked.arguments[2])?)
}

pub(super) fn decrement_by(asked: &Asked<'_>) -> Planned {
    let delta = integer(&asked.arguments[2])?.checked_neg();
    add(asked, delta.ok_or_else(|| Value::error("ERR decrement would overflow"))?)
}

pub(super) fn increment_by_float(asked: &Asked<'_>) -> Planned {
    let delta = &asked.arguments[2];
    if !is_number(delta) {
        // Redis looks at the key before it looks at the number.
        let refused = || Value::error("ERR value is not a valid float");
        return Ok(asked.refused(KIND_STRING, refused(), refused()));
    }
    one(asked, StringAction::AddFloat { delta: bytes(delta) }, Shape::Plain)
}

pub(super) fn get_many(asked: &Asked<'_>) -> Planned {
    let operations = asked.arguments[1..].iter().map(|key| asked.operation(key, StringAction::Get));
    Ok(Step::Data(Data::new(operations.collect(), Shape::Values)))
}

fn pairs<'a>(asked: &'a Asked<'_>) -> Result<impl Iterator<Item = (&'a Bytes, &'a Bytes)>, Value> {
    let pairs = &asked.arguments[1..];
    if !pairs.len().is_multiple_of(2) {
        return Err(wrong_arity(&asked.name));
    }
    Ok(pairs.chunks_exact(2).map(|pair| (&pair[0], &pair[1])))
}

pub(super) fn set_many(asked: &Asked<'_>) -> Planned {
    let set = |value| set_to(value, SetOnly::Always, None, false);
    let operations = pairs(asked)?.map(|(key, value)| asked.operation(key, set(value)));
    Ok(Step::Data(Data::new(operations.collect(), Shape::AllDone)))
}

pub(super) fn set_many_if_absent(asked: &Asked<'_>) -> Planned {
    let absent = pairs(asked)?
        .enumerate()
        .map(|(index, (key, _))| asked.operation(key, StringAction::RequireAbsent { first: index == 0 }));
    let set = |value| set_to(value, SetOnly::AsRequired, None, false);
    let sets = pairs(asked)?.map(|(key, value)| asked.operation(key, set(value)));
    let required = asked.arguments.len() / 2;
    Ok(Step::Data(Data::new(absent.chain(sets).collect(), Shape::Required(required))))
}
