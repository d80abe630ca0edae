//! Commands on hashes, as operations.

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::codec::Listed;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::{KIND_HASH, StringAction, is_number};

use super::database::{Data, Pairs, Shape};
use super::table::{Asked, Planned, Step, integer, is_word, syntax_error, wrong_arity};
use super::whole;
use crate::IVec;

/// The most fields that one `HSCAN` looks at.
const MOST_SCANNED: i64 = 10_000;

fn bytes(argument: &Bytes) -> IVec {
    IVec::from(&argument[..])
}

/// One operation on the first argument.
fn one(asked: &Asked<'_>, action: HashAction, shape: Shape) -> Planned {
    let operation = asked.operation(&asked.arguments[1], StringAction::Hash(action));
    Ok(Step::Data(Data::new(vec![operation], shape)))
}

fn fields(asked: &Asked<'_>) -> Listed<IVec> {
    Listed(asked.arguments[2..].iter().map(bytes).collect())
}

fn field(asked: &Asked<'_>) -> IVec {
    bytes(&asked.arguments[2])
}

fn set_to(asked: &Asked<'_>, shape: Shape) -> Planned {
    let pairs = &asked.arguments[2..];
    if !pairs.len().is_multiple_of(2) {
        return Err(wrong_arity(&asked.name));
    }
    let pairs = pairs.chunks_exact(2).map(|pair| (bytes(&pair[0]), bytes(&pair[1])));
    one(asked, HashAction::Set { pairs: Listed(pairs.collect()) }, shape)
}

pub(super) fn set(asked: &Asked<'_>) -> Planned {
    set_to(asked, Shape::Plain)
}

pub(super) fn set_many(asked: &Asked<'_>) -> Planned {
    set_to(asked, Shape::Renamed)
}

pub(super) fn set_if_absent(asked: &Asked<'_>) -> Planned {
    let value = bytes(&asked.arguments[3]);
    one(asked, HashAction::SetAbsent { field: field(asked), value }, Shape::Plain)
}

pub(super) fn get(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::Get { field: field(asked) }, Shape::Plain)
}

pub(super) fn get_many(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::GetMany { fields: fields(asked) }, Shape::Plain)
}

pub(super) fn delete(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::Delete { fields: fields(asked) }, Shape::Plain)
}

pub(super) fn exists(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::Exists { field: field(asked) }, Shape::Plain)
}

pub(super) fn length(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::Length, Shape::Plain)
}

pub(super) fn value_length(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::ValueLength { field: field(asked) }, Shape::Plain)
}

pub(super) fn all(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::All, Shape::Pairs(Pairs::Both))
}

pub(super) fn keys(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::All, Shape::Pairs(Pairs::Fields))
}

pub(super) fn values(asked: &Asked<'_>) -> Planned {
    one(asked, HashAction::All, Shape::Pairs(Pairs::Values))
}

pub(super) fn increment_by(asked: &Asked<'_>) -> Planned {
    let delta = integer(&asked.arguments[3])?;
    one(asked, HashAction::Add { field: field(asked), delta }, Shape::Plain)
}

pub(super) fn increment_by_float(asked: &Asked<'_>) -> Planned {
    let delta = &asked.arguments[3];
    if !is_number(delta) {
        return Err(Value::error("ERR value is not a valid float"));
    }
    let is_infinite = std::str::from_utf8(delta)
        .is_ok_and(|text| text.parse().is_ok_and(|number: f64| number.is_infinite()));
    if is_infinite {
        return Err(Value::error("ERR value is NaN or Infinity"));
    }
    one(asked, HashAction::AddFloat { field: field(asked), delta: bytes(delta) }, Shape::Plain)
}

/// A cursor that was given before is looked up where the connection is; see [`super::whole`].
pub(super) fn scan(asked: &Asked<'_>) -> Planned {
    let cursor = super::whole::cursor_of(&asked.arguments[2])?;
    scan_from(asked, cursor).or_else(|refused| {
        // Redis looks at the key before it looks at the options.
        let nothing = Value::Array(vec![Value::text("0"), Value::Array(Vec::new())]);
        Ok(asked.refused(KIND_HASH, nothing, refused))
    })
}

fn scan_from(asked: &Asked<'_>, cursor: u64) -> Planned {
    let (mut pattern, mut count) = (None, 10);
    let mut options = asked.arguments[3..].iter();
    while let Some(option) = options.next() {
        let argument = options.next().ok_or_else(syntax_error)?;
        if is_word(option, "COUNT") {
            count = integer(argument)?;
            if count < 1 {
                return Err(syntax_error());
            }
        } else if is_word(option, "MATCH") {
            pattern = Some(whole::checked_pattern(argument)?);
        } else {
            return Err(syntax_error());
        }
    }
    let after = match cursor {
        0 => None,
        known => match asked.cursors.find(known) {
            Some(field) => Some(field),
            None => return Err(Value::error("ERR invalid cursor")),
        },
    };
    let limit = count.min(MOST_SCANNED) as u32;
    let operation =
        asked.operation(&asked.arguments[1], StringAction::Hash(HashAction::Page { after, limit }));
    Ok(Step::Data(Data::new(vec![operation], Shape::Page(pattern))))
}
