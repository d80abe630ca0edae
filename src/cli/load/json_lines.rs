//! JSON Lines: one object per line.
//!
//! Either `{"key":…, "value":…}`, with an optional `"tree"`, and an optional `"expires_ms"` (when the key
//! expires, in milliseconds since 1970), or (with `--key FIELD`) any object: the
//! field is the key, and the value is the object itself as it stands, or one field of it. Strings
//! stand for their UTF-8 bytes, `{"base64":"…"}` and `{"hex":"…"}` for any bytes, and every other
//! value for its JSON text, copied unchanged so that no digit of a number is lost.
//!
//! A key that is a hash of Redis has `"hash":[[field, value], …]` in the place of `"value"`. One with many fields
//! takes several lines, one after the other, of which each but the first says `"continued":true`; any other line says
//! all of its key.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::lines::{Lines, trim_end};
use super::{Change, Parsed, Problem, Record};
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
    /// The hash that the line before was of.
    hash: Option<(Option<Vec<u8>>, Vec<u8>)>,
    stopped: bool,
}

impl<R: BufRead> JsonLines<R> {
    pub(crate) fn new(input: R, options: Options) -> JsonLines<R> {
        JsonLines { lines: Lines::new(input), options, hash: None, stopped: false }
    }

    /// The record, if it goes on with nothing, or with what the line before was of.
    fn in_order(&mut self, record: Record) -> Result<Record, String> {
        let before = self.hash.take();
        let Change::Hash { continued, .. } = record.change else { return Ok(record) };
        let hash = (record.tree.clone(), record.key.clone());
        if continued && before.as_ref() != Some(&hash) {
            return Err(format!(
                "it goes on with the hash {:?}, which the line before is not of",
                bytes::display_short(&record.key)
            ));
        }
        self.hash = Some(hash);
        Ok(record)
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
                let record = record.and_then(|record| self.in_order(record));
                record.map_err(|what| Problem::record(place, what)).and_then(|record| record.checked(place))
            }
            Err(problem) => Err(problem),
        };
        if parsed.is_err() {
            self.hash = None;
        }
        self.stopped = parsed.as_ref().is_err_and(|problem| !problem.skippable);
        Some(parsed)
    }
}

const OTHER_OBJECTS: &str = "; to store other objects choose the key with --key FIELD";

/// The fixed form. Unknown and repeated fields are refused: they are typing errors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed<'a> {
    #[serde(borrow)]
    tree: Option<&'a RawValue>,
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "there")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    hash: Option<Vec<(&'a RawValue, &'a RawValue)>>,
    #[serde(default)]
    continued: bool,
    expires_ms: Option<u64>,
}

impl Fixed<'_> {
    fn change(&self) -> Result<Change, String> {
        match (self.value, &self.hash) {
            (Some(_), None) if self.continued => Err("only a hash is continued".to_owned()),
            (Some(value), None) => Ok(Change::Put(value_bytes("value", value)?)),
            (None, Some(pairs)) => {
                let pair = |(field, value): &(&RawValue, &RawValue)| {
                    Ok((exact("hash", field)?, value_bytes("hash", value)?))
                };
                let fields = pairs.iter().map(pair).collect::<Result<_, String>>()?;
                Ok(Change::Hash { fields, continued: self.continued })
            }
            (Some(_), Some(_)) => Err("a key is a value or a hash, not both".to_owned()),
            (None, None) => Err(format!("missing field `value`{OTHER_OBJECTS}")),
        }
    }
}

fn record(line: &[u8], options: &Options) -> Result<Record, String> {
    let line = std::str::from_utf8(line)
        .map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to() + 1))?;
    let Some(key) = &options.key else {
        let fixed: Fixed<'_> = serde_json::from_str(line).map_err(|error| {
            let hint = if line.trim_start().starts_with('{') && error.is_data() { OTHER_OBJECTS } else { "" };
            format!("{}{hint}", explain(&error))
        })?;
        return Ok(Record {
            tree: fixed.tree.map(|tree| exact("tree", tree)).transpose()?,
            key: exact("key", fixed.key)?,
            change: fixed.change()?,
            expires_ms: fixed.expires_ms,
        });
    };
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(line).map_err(|error| explain(&error))?;
    let field = |name: &String| fields.get(name).copied().ok_or_else(|| format!("no field {name:?}"));
    Ok(Record {
        tree: None,
        key: exact(key, field(key)?)?,
        change: Change::Put(match &options.value {
            Some(name) => value_bytes("value", field(name)?)?,
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

/// A field that is there, be it null.
fn there<'de, D: serde::Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

/// The bytes of a value: anything goes, null too (its text).
fn value_bytes(field: &str, raw: &RawValue) -> Result<Vec<u8>, String> {
    match raw.get().as_bytes().first() {
        Some(b'"') => {
            serde_json::from_str::<String>(raw.get()).map(String::into_bytes).map_err(|error| explain(&error))
        }
        Some(b'{') => {
            let object: Value = serde_json::from_str(raw.get()).map_err(|error| explain(&error))?;
            match object.as_object().and_then(bytes::encoded_field) {
                Some(decoded) => decoded.map_err(|why| format!("field {field:?}: {why}")),
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

/// One record of a key that is there as a line of JSON, without the line end; what [`JsonLines`] reads back.
pub(crate) fn write(record: &Record) -> String {
    let mut object = serde_json::Map::new();
    // serde_json sorts fields by name; "key" < "tree" < "value" reads well enough.
    if let Some(tree) = &record.tree {
        object.insert("tree".into(), bytes::to_json(tree));
    }
    object.insert("key".into(), bytes::to_json(&record.key));
    match &record.change {
        Change::Put(value) => drop(object.insert("value".into(), bytes::to_json(value))),
        Change::Hash { fields, continued } => {
            let pair = |(field, value): &(Vec<u8>, Vec<u8>)| {
                Value::from(vec![bytes::to_json(field), bytes::to_json(value)])
            };
            object.insert("hash".into(), fields.iter().map(pair).collect());
            if *continued {
                object.insert("continued".into(), true.into());
            }
        }
        Change::Remove | Change::Expire => unreachable!("a line of JSON says what a key is: {record:?}"),
    }
    if let Some(expires_ms) = record.expires_ms {
        object.insert("expires_ms".into(), expires_ms.into());
    }
    Value::Object(object).to_string()
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
                    let key = bytes::display(&record.key);
                    match record.change {
                        Change::Put(value) => format!("{tree}{key}={}", bytes::display(&value)),
                        other => format!("{tree}{key} {other:?}"),
                    }
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
        let hash = |continued| Change::Hash {
            fields: vec![(b"f".to_vec(), binary.clone()), (binary.clone(), b"null".to_vec())],
            continued,
        };
        let put = |value: &[u8]| Change::Put(value.to_vec());
        let records = [
            (None, b"k".to_vec(), put(b"{\"base64\":\"AA==\"}"), None),
            (Some(b"t\xff".to_vec()), binary.clone(), put(b""), Some(1_800_000_000_000)),
            (Some(b"t".to_vec()), binary.clone(), hash(false), None),
            (Some(b"t".to_vec()), binary.clone(), hash(true), Some(1)),
        ];
        let records = records.map(|(tree, key, change, expires_ms)| Record { tree, key, change, expires_ms });
        let lines: Vec<String> = records.iter().map(write).collect();
        let text = lines.join("\n");
        let read = JsonLines::new(text.as_bytes(), Options::default());
        assert_eq!(read.map(|parsed| parsed.expect("readable")).collect::<Vec<_>>(), records);
    }

    #[test]
    fn a_line_of_a_hash_is_these_bytes() {
        let fields = vec![(b"a".to_vec(), b"1".to_vec()), (b"\xff".to_vec(), b"".to_vec())];
        let (tree, key) = (Some(b"redis".to_vec()), b"h".to_vec());
        let mut record =
            Record { tree, key, change: Change::Hash { fields, continued: false }, expires_ms: Some(7) };
        assert_eq!(
            write(&record),
            r#"{"expires_ms":7,"hash":[["a","1"],[{"base64":"/w=="},""]],"key":"h","tree":"redis"}"#
        );
        record.change = Change::Hash { fields: Vec::new(), continued: true };
        record.expires_ms = None;
        assert_eq!(write(&record), r#"{"continued":true,"hash":[],"key":"h","tree":"redis"}"#);
    }

    #[test]
    fn lines_of_a_hash_that_are_not_one_after_the_other_are_told() {
        let input = r#"{"key":"h","hash":[["a",1],["b",{"hex":"ff"}]]}
{"key":"h","hash":[["c","3"]],"continued":true}
{"key":"h","hash":[["d","4"]],"continued":true,"tree":"t"}
{"key":"h","hash":[["d","4"]],"continued":true}
{"key":"k","value":"v","continued":true}
{"key":"k","value":"v","hash":[]}
{"key":"k"}
{"key":"h","hash":[["a"]]}
{"key":"h","hash":{"a":"b"}}
{"key":"h","hash":[[null,"b"]]}"#;
        let seen = read(input, Options::default());
        assert!(seen[0].contains("continued: false") && seen[1].contains("continued: true"), "{seen:?}");
        let parts = [
            "goes on with the hash \"h\"",
            "goes on with the hash \"h\"",
            "only a hash",
            "not both",
            "missing field `value`",
            "invalid length 1",
            "invalid type",
            "field \"hash\" is null, not a string",
        ];
        for (index, part) in parts.into_iter().enumerate() {
            let message = &seen[index + 2];
            assert!(
                message.starts_with(&format!("line {}: ", index + 3)) && message.contains(part),
                "{message}"
            );
        }
    }
}
