//! [`Output`]: what commands say on standard output, for people or (`--json`) for programs.
//!
//! Everything is written through one buffer and its errors are returned, so that a reader that
//! hangs up ends the command quietly instead of with a panic; see [`Failure::output`].

use std::io::{self, BufWriter, StdoutLock, Write};

use serde_json::{Map, Value};

use super::bytes::{self, ByteFormat};
use super::exit::{Failure, Result};

/// Standard output, and how to write on it.
pub(crate) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    /// Whether `--json` was given.
    pub(crate) json: bool,
    key_format: ByteFormat,
    value_format: ByteFormat,
    line: Vec<u8>,
}

impl Output {
    pub(crate) fn new(json: bool, key_format: ByteFormat, value_format: ByteFormat) -> Output {
        Output {
            out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
            json,
            key_format,
            value_format,
            line: Vec::new(),
        }
    }

    /// One line of text.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> Result<()> {
        writeln!(self.out, "{line}").map_err(|error| Failure::output(&error))
    }

    /// One JSON document on a line.
    pub(crate) fn document(&mut self, document: &Value) -> Result<()> {
        self.line(document)
    }

    /// Says something on standard error that is not the end of the command. Nobody has to hear it.
    pub(crate) fn remark(&self, what: impl std::fmt::Display) {
        let line = match self.json {
            true => serde_json::json!({ "remark": what.to_string() }).to_string(),
            false => format!("dogsled: {what}"),
        };
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// A summary: `sentence` for people, `fields` for programs.
    pub(crate) fn summary(&mut self, sentence: impl std::fmt::Display, fields: Value) -> Result<()> {
        if self.json { self.document(&fields) } else { self.line(sentence) }
    }

    /// A key and, unless only keys are wanted, its value: a TSV line, or a JSON object.
    pub(crate) fn entry(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if self.json {
            let mut fields = Map::new();
            fields.insert("key".into(), bytes::to_json(key));
            if let Some(value) = value {
                fields.insert("value".into(), bytes::to_json(value));
            }
            return self.document(&Value::Object(fields));
        }
        self.line.clear();
        self.key_format.encode(key, &mut self.line);
        if let Some(value) = value {
            self.line.push(b'\t');
            self.value_format.encode(value, &mut self.line);
        }
        self.line.push(b'\n');
        self.out.write_all(&self.line).map_err(|error| Failure::output(&error))
    }

    /// A value alone. The raw format adds no line end, so that the bytes can be piped on.
    pub(crate) fn value(&mut self, value: &[u8]) -> Result<()> {
        self.line.clear();
        self.value_format.encode(value, &mut self.line);
        if self.value_format != ByteFormat::Raw {
            self.line.push(b'\n');
        }
        self.out.write_all(&self.line).map_err(|error| Failure::output(&error))
    }

    /// Bytes as they are, for those who write a format of their own.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Hands everything to the operating system, for the same.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Hands everything to the operating system.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.flush().map_err(|error| Failure::output(&error))
    }
}

/// `bytes` in the unit that people read it in.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// `number` with a thin break every three digits.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 record`, `2 records`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    match (count, noun.strip_suffix("ry"), noun.ends_with('s')) {
        (1, _, _) => format!("1 {noun}"),
        (_, Some(stem), _) => format!("{} {stem}ries", number(count)),
        (_, _, true) => format!("{} {noun}es", number(count)),
        _ => format!("{} {noun}s", number(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(number(0), "0");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(count(1, "record"), "1 record");
        assert_eq!(count(2, "entry"), "2 entries");
        assert_eq!(count(2, "key"), "2 keys");
        assert_eq!(count(2, "loss"), "2 losses");
    }
}
