//! Commands on keys of any kind, as operations.

use dogsled_net::resp::Value;
use dogsled_storage::strings::StringAction;
use dogsled_storage::{SetIf, TreeId, When};

use super::database::{Data, Shape};
use super::strings::{Unit, invalid_time};
use super::table::{Asked, Planned, Step, database_number, integer, is_word, syntax_error};
use crate::IVec;

fn one(asked: &Asked<'_>, action: StringAction, shape: Shape) -> Planned {
    Ok(Step::Data(Data::new(vec![asked.operation(&asked.arguments[1], action)], shape)))
}

/// The same with each argument.
fn each(asked: &Asked<'_>, action: &StringAction) -> Planned {
    let operations = asked.arguments[1..].iter().map(|key| asked.operation(key, action.clone()));
    Ok(Step::Data(Data::new(operations.collect(), Shape::Sum)))
}

pub(super) fn delete(asked: &Asked<'_>) -> Planned {
    each(asked, &StringAction::Delete)
}

pub(super) fn exists(asked: &Asked<'_>) -> Planned {
    each(asked, &StringAction::Exists)
}

pub(super) fn kind(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Kind, Shape::Type)
}

pub(super) fn persist(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Persist, Shape::Plain)
}

pub(super) fn seconds_left(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Expires, Shape::Time { is_absolute: false, in_seconds: true })
}

pub(super) fn milliseconds_left(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Expires, Shape::Time { is_absolute: false, in_seconds: false })
}

pub(super) fn expires_second(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Expires, Shape::Time { is_absolute: true, in_seconds: true })
}

pub(super) fn expires_millisecond(asked: &Asked<'_>) -> Planned {
    one(asked, StringAction::Expires, Shape::Time { is_absolute: true, in_seconds: false })
}

pub(super) fn expire(asked: &Asked<'_>) -> Planned {
    expiring(asked, Unit::Seconds, false)
}

pub(super) fn expire_milliseconds(asked: &Asked<'_>) -> Planned {
    expiring(asked, Unit::Milliseconds, false)
}

pub(super) fn expire_at(asked: &Asked<'_>) -> Planned {
    expiring(asked, Unit::Seconds, true)
}

pub(super) fn expire_at_milliseconds(asked: &Asked<'_>) -> Planned {
    expiring(asked, Unit::Milliseconds, true)
}

fn expiring(asked: &Asked<'_>, unit: Unit, is_absolute: bool) -> Planned {
    let (mut none, mut some, mut later, mut earlier) = (false, false, false, false);
    for option in &asked.arguments[3..] {
        match () {
            () if is_word(option, "NX") => none = true,
            () if is_word(option, "XX") => some = true,
            () if is_word(option, "GT") => later = true,
            () if is_word(option, "LT") => earlier = true,
            () => {
                let option = String::from_utf8_lossy(option);
                return Err(Value::error(format!("ERR Unsupported option {option}")));
            }
        }
    }
    if none && (some || later || earlier) {
        let what = "ERR NX and XX, GT or LT options at the same time are not compatible";
        return Err(Value::error(what));
    }
    if later && earlier {
        return Err(Value::error("ERR GT and LT options at the same time are not compatible"));
    }
    let number = integer(&asked.arguments[2])?;
    let milliseconds = unit.milliseconds(number).ok_or_else(|| invalid_time(asked))?;
    let when = match (is_absolute, u64::try_from(milliseconds)) {
        // Long over: the key goes.
        (_, Err(_)) => When::At(0),
        (true, Ok(at)) => When::At(at),
        (false, Ok(after)) if after > i64::MAX as u64 - asked.now_ms => return Err(invalid_time(asked)),
        (false, Ok(after)) => When::After(after),
    };
    let only = match () {
        () if none => SetIf::None,
        () if later => SetIf::Later,
        () if earlier => SetIf::Earlier,
        () => SetIf::Always,
    };
    one(asked, StringAction::Expire { when, only, only_some: some }, Shape::Plain)
}

fn transfer(asked: &Asked<'_>, database: TreeId, copy: bool, replace: bool, shape: Shape) -> Planned {
    let key = IVec::from(&asked.arguments[2][..]);
    one(asked, StringAction::Transfer { tree: database, key, copy, replace }, shape)
}

pub(super) fn rename(asked: &Asked<'_>) -> Planned {
    transfer(asked, asked.database, false, true, Shape::Renamed)
}

pub(super) fn rename_if_absent(asked: &Asked<'_>) -> Planned {
    transfer(asked, asked.database, false, false, Shape::Plain)
}

pub(super) fn copy(asked: &Asked<'_>) -> Planned {
    let (mut database, mut replace) = (asked.database, false);
    let mut options = asked.arguments[3..].iter();
    while let Some(option) = options.next() {
        if is_word(option, "REPLACE") {
            replace = true;
        } else if is_word(option, "DB")
            && let Some(number) = options.next()
        {
            let number = database_number(number)?;
            database = number.ok_or_else(|| Value::error("ERR DB index is out of range"))?;
        } else {
            return Err(syntax_error());
        }
    }
    if database == asked.database && asked.arguments[1] == asked.arguments[2] {
        return Err(Value::error("ERR source and destination objects are the same"));
    }
    transfer(asked, database, true, replace, Shape::Plain)
}
