//! [`Value`]: a reply, and its bytes.
//!
//! | value | RESP2 | RESP3 |
//! |---|---|---|
//! | [`Value::Simple`], [`Value::Error`], [`Value::Integer`], [`Value::Bulk`], [`Value::Array`] | `+` `-` `:` `$` `*` | the same |
//! | [`Value::Null`] | `$-1` | `_` |
//! | [`Value::NullArray`] | `*-1` | `_` |
//! | [`Value::Map`] | an array of keys and values in turn | `%` |
//! | [`Value::Set`] | an array | `~` |
//! | [`Value::Push`] | an array | `>` |
//! | [`Value::Verbatim`] | `$` | `=`, as text |
//! | [`Value::Encoded`] | as it is | as it is |

use std::borrow::Cow;

use bytes::Bytes;

/// How replies are written; a connection begins with RESP2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What every client understands.
    #[default]
    Resp2,
    /// With maps, sets, and one null.
    Resp3,
}

/// A reply; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A short text of one line.
    Simple(Cow<'static, str>),
    /// An error: a word in capitals, and a text of one line.
    Error(Cow<'static, str>),
    /// A whole number.
    Integer(i64),
    /// Any bytes.
    Bulk(Bytes),
    /// Nothing, where bytes could be.
    Null,
    /// Nothing, where an array could be.
    NullArray,
    /// Several.
    Array(Vec<Value>),
    /// Several with names.
    Map(Vec<(Value, Value)>),
    /// Several in no order.
    Set(Vec<Value>),
    /// Several that nobody has asked for just now.
    Push(Vec<Value>),
    /// A text for people.
    Verbatim(String),
    /// A reply that was written already, in whatever protocol there was then.
    Encoded(Bytes),
}

impl Value {
    /// `+OK`.
    pub const OK: Value = Value::Simple(Cow::Borrowed("OK"));

    /// An error.
    pub fn error(text: impl Into<Cow<'static, str>>) -> Value {
        Value::Error(text.into())
    }

    /// Text as bytes.
    pub fn text(text: impl AsRef<str>) -> Value {
        Value::Bulk(Bytes::copy_from_slice(text.as_ref().as_bytes()))
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        match self {
            Value::Bulk(bytes) => bytes.len(),
            Value::Verbatim(text) => text.len(),
            Value::Encoded(bytes) => bytes.len(),
            Value::Array(values) | Value::Set(values) | Value::Push(values) => {
                values.iter().map(Value::weight).sum()
            }
            Value::Map(pairs) => pairs.iter().map(|(key, value)| key.weight() + value.weight()).sum(),
            _ => 16,
        }
    }

    /// Appends the beginning of its bytes: what comes behind it are those of the values that are returned. So what is large
    /// need not be there twice.
    pub fn begin(self, protocol: Protocol, out: &mut Vec<u8>) -> Vec<Value> {
        let is_new = protocol == Protocol::Resp3;
        let (kind, count, values) = match self {
            Value::Array(values) => (b'*', values.len(), values),
            Value::Set(values) => (if is_new { b'~' } else { b'*' }, values.len(), values),
            Value::Push(values) => (if is_new { b'>' } else { b'*' }, values.len(), values),
            Value::Map(pairs) => {
                let (kind, count) = if is_new { (b'%', pairs.len()) } else { (b'*', pairs.len() * 2) };
                (kind, count, pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
            }
            other => {
                other.encode(protocol, out);
                return Vec::new();
            }
        };
        head(out, kind, count as i64);
        values
    }

    /// Appends its bytes.
    pub fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        let is_new = protocol == Protocol::Resp3;
        match self {
            Value::Simple(text) => line(out, b'+', text),
            Value::Error(text) => line(out, b'-', text),
            Value::Integer(number) => head(out, b':', *number),
            Value::Bulk(bytes) => bulk(out, b'$', &[bytes]),
            Value::Null | Value::NullArray if is_new => out.extend_from_slice(b"_\r\n"),
            Value::Null => out.extend_from_slice(b"$-1\r\n"),
            Value::NullArray => out.extend_from_slice(b"*-1\r\n"),
            Value::Array(values) => list(out, b'*', values, protocol),
            Value::Set(values) => list(out, if is_new { b'~' } else { b'*' }, values, protocol),
            Value::Push(values) => list(out, if is_new { b'>' } else { b'*' }, values, protocol),
            Value::Map(pairs) => {
                let count = if is_new { pairs.len() } else { pairs.len() * 2 };
                head(out, if is_new { b'%' } else { b'*' }, count as i64);
                for (key, value) in pairs {
                    key.encode(protocol, out);
                    value.encode(protocol, out);
                }
            }
            Value::Encoded(bytes) => out.extend_from_slice(bytes),
            Value::Verbatim(text) if is_new => bulk(out, b'=', &[b"txt:", text.as_bytes()]),
            Value::Verbatim(text) => bulk(out, b'$', &[text.as_bytes()]),
        }
    }
}

fn head(out: &mut Vec<u8>, kind: u8, number: i64) {
    out.push(kind);
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

fn list(out: &mut Vec<u8>, kind: u8, values: &[Value], protocol: Protocol) {
    head(out, kind, values.len() as i64);
    values.iter().for_each(|value| value.encode(protocol, out));
}

fn bulk(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    head(out, kind, length as i64);
    out.reserve(length + 2);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.extend_from_slice(b"\r\n");
}

/// A line never has an end within: what it says may come from the client.
fn line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend(text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_these_bytes() {
        let (one, two) = (|| Value::Integer(1), || Value::text("b\r\n"));
        for (value, old, new) in [
            (Value::OK, "+OK\r\n", "+OK\r\n"),
            (Value::error("ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n"),
            (Value::Integer(0), ":0\r\n", ":0\r\n"),
            (Value::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Value::Integer(i64::MAX), ":9223372036854775807\r\n", ":9223372036854775807\r\n"),
            (two(), "$3\r\nb\r\n\r\n", "$3\r\nb\r\n\r\n"),
            (Value::text(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Value::Null, "$-1\r\n", "_\r\n"),
            (Value::NullArray, "*-1\r\n", "_\r\n"),
            (Value::Array(vec![]), "*0\r\n", "*0\r\n"),
            (Value::Array(vec![one(), Value::Null]), "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n"),
            (Value::Set(vec![one()]), "*1\r\n:1\r\n", "~1\r\n:1\r\n"),
            (Value::Push(vec![one()]), "*1\r\n:1\r\n", ">1\r\n:1\r\n"),
            (Value::Map(vec![(one(), one())]), "*2\r\n:1\r\n:1\r\n", "%1\r\n:1\r\n:1\r\n"),
            (Value::Encoded(Bytes::from_static(b"*-1\r\n")), "*-1\r\n", "*-1\r\n"),
            (Value::Verbatim("x".to_owned()), "$1\r\nx\r\n", "=5\r\ntxt:x\r\n"),
        ] {
            for (protocol, expected) in [(Protocol::Resp2, old), (Protocol::Resp3, new)] {
                let mut bytes = b"before".to_vec();
                value.encode(protocol, &mut bytes);
                let bytes = String::from_utf8(bytes).unwrap();
                assert_eq!(bytes, format!("before{expected}"), "{value:?} as {protocol:?}");
                let mut bytes = Vec::new();
                let within = value.clone().begin(protocol, &mut bytes);
                within.iter().for_each(|value| value.encode(protocol, &mut bytes));
                assert_eq!(bytes, expected.as_bytes(), "{value:?} as {protocol:?}, begun");
            }
        }
    }
}
