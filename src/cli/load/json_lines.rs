//! JSON Lines: one object per line.
//!
//! Either `{"key":…, "value":…}`, with an optional `"tree"`, and an optional `"expires_ms"` (when the key
//! expires, in milliseconds since 1970), or (with `--key FIELD`) any object: the
//! field is the key, and the value is the object itself as it stands, or one field of it. Strings
//! stand for their UTF-8 bytes, `{"base64":"…"}` and `{"hex":"…"}` for any bytes, and every other
//! value for its JSON text, copied unchanged so that no digit of a number is lost.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::lines::{Lines, trim_end};
use super::{Parsed, Problem, Record};
use crate::cli::bytes;

/// Which fields are meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The field that is the key; `None`: objects have `key`, `value` and perhaps `tree`.
    pub(crate) key: Option<String>,
    /// The field that is the value; `None`: the whole object.
    pub(crate) value: Option<String>,
}

/// The records of a JSON Lines input.
pub(crate) struct JsonLines<R> {
    lines: Lines<R>,
    options: Options,
    stopped: bool,
}

impl<R: BufRead> JsonLines<R> {
    pub(crate) fn new(input: R, options: Options) -> JsonLines<R> {
        JsonLines { lines: Lines::new(input), options, stopped: false }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Parsed;

    fn next(&mut self) -> Option<Parsed> {
        if self.stopped {
            return None;
        }
        let parsed = match self.lines.next_filled()? {
            Ok(line) => {
                let record = record(trim_end(line), &self.options);
                let place = self.lines.place();
                record.map_err(|what| Problem::record(place, what)).and_then(|record| record.checked(place))
            }
            Err(problem) => Err(problem),
        };
        self.stopped = parsed.as_ref().is_err_and(|problem| !problem.skippable);
        Some(parsed)
    }
}

/// The fixed form. Unknown and repeated fields are refused: they are typing errors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed<'a> {
    #[serde(borrow)]
    tree: Option<&'a RawValue>,
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    value: &'a RawValue,
    expires_ms: Option<u64>,
}

fn record(line: &[u8], options: &Options) -> Result<Record, String> {
    let line = std::str::from_utf8(line)
        .map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to() + 1))?;
    let Some(key) = &options.key else {
        let fixed: Fixed<'_> = serde_json::from_str(line).map_err(|error| {
            let hint = if line.trim_start().starts_with('{') && error.is_data() {
                "; to store other objects choose the key with --key FIELD"
            } else {
                ""
            };
            format!("{}{hint}", explain(&error))
        })?;
        return Ok(Record {
            tree: fixed.tree.map(|tree| exact("tree", tree)).transpose()?,
            key: exact("key", fixed.key)?,
            value: Some(value_bytes(fixed.value)?),
            expires_ms: fixed.expires_ms,
        });
    };
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(line).map_err(|error| explain(&error))?;
    let field = |name: &String| fields.get(name).copied().ok_or_else(|| format!("no field {name:?}"));
    Ok(Record {
        tree: None,
        key: exact(key, field(key)?)?,
        value: Some(match &options.value {
            Some(name) => value_bytes(field(name)?)?,
            None => line.trim().as_bytes().to_vec(),
        }),
        expires_ms: None,
    })
}

/// The bytes of a key or name; of a number, its digits as they stand, however many.
fn exact(field: &str, raw: &RawValue) -> Result<Vec<u8>, String> {
    if raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return Ok(raw.get().as_bytes().to_vec());
    }
    let value: Value = serde_json::from_str(raw.get()).map_err(|error| explain(&error))?;
    match bytes::from_json(&value) {
        Ok(bytes) => Ok(bytes.into_owned()),
        Err(found) => Err(format!("field {field:?} is {found}, not a string")),
    }
}

/// The bytes of a value: anything goes, null too (its text).
fn value_bytes(raw: &RawValue) -> Result<Vec<u8>, String> {
    match raw.get().as_bytes().first() {
        Some(b'"') => {
            serde_json::from_str::<String>(raw.get()).map(String::into_bytes).map_err(|error| explain(&error))
        }
        Some(b'{') => {
            let object: Value = serde_json::from_str(raw.get()).map_err(|error| explain(&error))?;
            match object.as_object().and_then(bytes::encoded_field) {
                Some(decoded) => decoded.map_err(|why| format!("field \"value\": {why}")),
                None => Ok(raw.get().as_bytes().to_vec()),
            }
        }
        _ => Ok(raw.get().as_bytes().to_vec()),
    }
}

/// serde_json's message, with the column of our line instead of a line number of its own.
fn explain(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.split_once(" at line ") {
        Some((what, _)) if error.column() > 0 => format!("{what} (column {})", error.column()),
        _ => message,
    }
}

/// One record as a line of JSON, without the line end; what [`JsonLines`] reads back.
pub(crate) fn write(tree: Option<&[u8]>, key: &[u8], value: &[u8], expires_ms: Option<u64>) -> String {
    let mut fields = serde_json::Map::new();
    // serde_json sorts fields by name; "key" < "tree" < "value" reads well enough.
    if let Some(tree) = tree {
        fields.insert("tree".into(), bytes::to_json(tree));
    }
    fields.insert("key".into(), bytes::to_json(key));
    fields.insert("value".into(), bytes::to_json(value));
    if let Some(expires_ms) = expires_ms {
        fields.insert("expires_ms".into(), expires_ms.into());
    }
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str, options: Options) -> Vec<String> {
        JsonLines::new(input.as_bytes(), options)
            .map(|parsed| match parsed {
                Ok(record) => {
                    let tree =
                        record.tree.map(|tree| format!("{}/", bytes::display(&tree))).unwrap_or_default();
                    let value = record.value.expect("JSON removes nothing");
                    format!("{tree}{}={}", bytes::display(&record.key), bytes::display(&value))
                }
                Err(problem) => format!("{}: {}", problem.place, problem.what),
            })
            .collect()
    }

    #[test]
    fn key_and_value_objects() {
        let input = r#"{"key":"a","value":"1"}
{"value":{"base64":"/w=="},"key":{"hex":"00ff"}}

{"key":7,"value":1.50}
{"key":"o","value":{"b":1, "a":[2]},"tree":"t"}
{"key":"n","value":null}"#;
        assert_eq!(
            read(input, Options::default()),
            ["a=1", "\\x00\\xff=\\xff", "7=1.50", r#"t/o={"b":1, "a":[2]}"#, "n=null"]
        );
    }

    #[test]
    fn numbers_that_differ_are_keys_that_differ() {
        let input = r#"{"id":12345678901234567890123}
{"id":12345678901234567890124}
{"id":0.1}
{"id":0.10000000000000000001}
{"id":-7}"#;
        let options = Options { key: Some("id".into()), value: Some("id".into()) };
        let numbers =
            ["12345678901234567890123", "12345678901234567890124", "0.1", "0.10000000000000000001", "-7"];
        assert_eq!(read(input, options), numbers.map(|number| format!("{number}={number}")));
    }

    #[test]
    fn whole_objects_under_one_of_their_fields() {
        let input =
            "{\"id\": \"x\", \"n\": 10000000000000000000000.10}\r\n{\"name\":\"no id\"}\n{\"id\":[1]}\n";
        let options = Options { key: Some("id".into()), value: None };
        assert_eq!(
            read(input, options.clone()),
            [
                r#"x={"id": "x", "n": 10000000000000000000000.10}"#,
                "line 2: no field \"id\"",
                "line 3: field \"id\" is an array, not a string"
            ]
        );
        let one = Options { value: Some("n".into()), ..options };
        assert_eq!(read(input, one)[0], "x=10000000000000000000000.10");
    }

    #[test]
    fn wrong_lines_are_named_with_their_column() {
        let input = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"a\"\nplain\n{\"key\":\"a\",\"value\":1,\"valeu\":2}\n\
                     {\"key\":\"a\",\"key\":\"b\",\"value\":1}\n{\"key\":null,\"value\":1}\n\
                     {\"key\":\"a\",\"value\":{\"base64\":\"*\"}}\n";
        let seen = read(input, Options::default());
        assert_eq!(seen[0], "a=1");
        for (index, (line, part)) in [
            (2, "EOF while parsing"),
            (3, "expected value (column 1)"),
            (4, "unknown field `valeu`"),
            (5, "duplicate field `key`"),
            (6, "field \"key\" is null, not a string"),
            (7, "not base64"),
        ]
        .into_iter()
        .enumerate()
        {
            let message = &seen[index + 1];
            assert!(message.starts_with(&format!("line {line}: ")) && message.contains(part), "{message}");
        }
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let binary: Vec<u8> = (0..=255).collect();
        for (tree, key, value) in
            [(None, &b"k"[..], &b"{\"base64\":\"AA==\"}"[..]), (Some(&b"t\xff"[..]), &binary[..], &b""[..])]
        {
            let expires_ms = tree.map(|_| 1_800_000_000_000);
            let line = write(tree, key, value, expires_ms);
            let record = record(line.as_bytes(), &Options::default()).expect("what was written is readable");
            assert_eq!(
                record,
                Record {
                    tree: tree.map(<[u8]>::to_vec),
                    key: key.to_vec(),
                    value: Some(value.to_vec()),
                    expires_ms
                }
            );
        }
    }
}
