//! Keys and values as people write them.
//!
//! A key or value is any bytes. On the command line, in a listing and in a TSV file it is written
//! in one of the forms of [`ByteFormat`]; in JSON it is a string, or an object that names its
//! encoding when the bytes are not text ([`to_json`], [`from_json`]). Every form except
//! [`ByteFormat::Raw`] reads back exactly what it wrote.

use std::borrow::Cow;
use std::io::Read;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use clap::ValueEnum;
use serde_json::Value;

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ByteFormat {
    /// Text, with \xNN for other bytes and \\, \n, \r, \t as usual
    #[value(alias = "escaped")]
    Text,
    /// The bytes themselves, nothing added or taken away
    Raw,
    /// Two hexadecimal digits per byte
    Hex,
    /// Base64 (standard alphabet)
    Base64,
    /// Input only: the name of a file that holds the bytes; - is standard input
    File,
}

/// Accepts padded and unpadded input; people paste both.
const BASE64_INPUT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl ByteFormat {
    /// The bytes that `written` stands for. The error says what is wrong with it.
    pub(crate) fn decode(self, written: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            ByteFormat::Text => unescape(written),
            ByteFormat::Raw => Ok(written.to_vec()),
            ByteFormat::Hex => decode_hex(written),
            ByteFormat::Base64 => decode_base64(written),
            ByteFormat::File => read_named(written),
        }
    }

    /// Appends `bytes`, written in this form, to `out`.
    pub(crate) fn encode(self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            ByteFormat::Text => escape(bytes, out),
            // Files are refused for output when the arguments are read.
            ByteFormat::Raw | ByteFormat::File => out.extend_from_slice(bytes),
            ByteFormat::Hex => {
                for byte in bytes {
                    out.extend_from_slice(&hex_digits(*byte));
                }
            }
            ByteFormat::Base64 => out.extend_from_slice(STANDARD.encode(bytes).as_bytes()),
        }
    }
}

/// `bytes` as escaped text, for messages and listings.
pub(crate) fn display(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    escape(bytes, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// As [`display`], shortened for messages.
pub(crate) fn display_short(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    if bytes.len() <= SHOWN {
        return display(bytes);
    }
    format!("{}… ({} bytes)", display(&bytes[..SHOWN]), bytes.len())
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                // Control characters would move a terminal's cursor, U+2028 and the like its lines.
                other if other.is_control() || matches!(other, '\u{2028}' | '\u{2029}' | '\u{202e}') => {
                    for byte in other.encode_utf8(&mut [0; 4]).bytes() {
                        escape_byte(byte, out);
                    }
                }
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            escape_byte(*byte, out);
        }
    }
}

fn escape_byte(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\x");
    out.extend_from_slice(&hex_digits(byte));
}

fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// The bytes that escaped text stands for.
pub(crate) fn unescape(written: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&kind, tail)) = rest.split_first() else {
            return Err("a backslash at the end; write \\\\ for one, or choose the raw format".into());
        };
        rest = tail;
        out.push(match kind {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'x' => {
                let digits = rest.get(..2).and_then(|pair| Some((hex_value(pair[0])?, hex_value(pair[1])?)));
                let Some((high, low)) = digits else {
                    return Err("\\x without two hexadecimal digits after it".into());
                };
                rest = &rest[2..];
                high << 4 | low
            }
            other => {
                return Err(format!(
                    "unknown escape \\{}; write \\\\ for a backslash, or choose the raw format",
                    display(&[other])
                ));
            }
        });
    }
    Ok(out)
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn decode_hex(written: &[u8]) -> Result<Vec<u8>, String> {
    if !written.len().is_multiple_of(2) {
        return Err(format!("an odd number of hexadecimal digits ({})", written.len()));
    }
    written
        .chunks_exact(2)
        .map(|pair| match (hex_value(pair[0]), hex_value(pair[1])) {
            (Some(high), Some(low)) => Ok(high << 4 | low),
            _ => Err(format!("{:?} is not hexadecimal", display(pair))),
        })
        .collect()
}

fn decode_base64(written: &[u8]) -> Result<Vec<u8>, String> {
    BASE64_INPUT.decode(written).map_err(|error| format!("not base64: {error}"))
}

fn read_named(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = if name == b"-" {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot read {}: {error}", display(name))),
    }
}

/// Bytes in JSON: a string where they are UTF-8, else `{"base64":"…"}`.
pub(crate) fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => serde_json::json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// The bytes of a JSON string, of `{"base64":"…"}` or of `{"hex":"…"}`; of a whole number, its digits.
/// Other numbers have lost digits by the time they are a [`Value`].
pub(crate) fn from_json(value: &Value) -> Result<Cow<'_, [u8]>, String> {
    match value {
        Value::String(text) => Ok(Cow::Borrowed(text.as_bytes())),
        Value::Number(number) if number.is_f64() => {
            Err("a number that is not whole or is too large: write it as a string".into())
        }
        Value::Number(number) => Ok(Cow::Owned(number.to_string().into_bytes())),
        Value::Object(fields) => match encoded_field(fields) {
            Some(decoded) => decoded.map(Cow::Owned),
            None => Err("an object that is neither {\"base64\":\"…\"} nor {\"hex\":\"…\"}".into()),
        },
        Value::Null => Err("null".into()),
        Value::Bool(_) => Err("true or false".into()),
        Value::Array(_) => Err("an array".into()),
    }
}

/// What `{"base64":"…"}` or `{"hex":"…"}` stands for; `None` if the object is something else.
pub(crate) fn encoded_field(fields: &serde_json::Map<String, Value>) -> Option<Result<Vec<u8>, String>> {
    if fields.len() != 1 {
        return None;
    }
    match fields.iter().next()? {
        (name, Value::String(text)) if name == "base64" => Some(decode_base64(text.as_bytes())),
        (name, Value::String(text)) if name == "hex" => Some(decode_hex(text.as_bytes())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        let mut samples: Vec<Vec<u8>> =
            [&b""[..], b"plain", b"a\\b", b"tab\there", b"\0\x01\xff\xfe", "läuft \u{202e}".as_bytes()]
                .iter()
                .map(|sample| sample.to_vec())
                .collect();
        samples.push((0..=255).collect());
        // Valid and invalid sequences next to one another.
        samples.push(b"\xc3\xa9\xc3\xe2\x82\xac\xe2\x82".to_vec());
        samples
    }

    #[test]
    fn every_form_reads_back_what_it_wrote() {
        for sample in samples() {
            for format in [ByteFormat::Text, ByteFormat::Raw, ByteFormat::Hex, ByteFormat::Base64] {
                let mut written = Vec::new();
                format.encode(&sample, &mut written);
                assert_eq!(format.decode(&written).as_ref(), Ok(&sample), "{format:?}");
            }
            assert_eq!(from_json(&to_json(&sample)).as_deref(), Ok(&sample[..]));
        }
    }

    #[test]
    fn escaped_text_has_no_bytes_that_would_break_a_line_or_column() {
        for sample in samples() {
            let mut written = Vec::new();
            ByteFormat::Text.encode(&sample, &mut written);
            assert!(std::str::from_utf8(&written).is_ok());
            assert!(!written.iter().any(|byte| byte.is_ascii_control()), "{:?}", display(&written));
        }
    }

    #[test]
    fn wrong_input_is_refused_with_a_reason() {
        for (format, written, reason) in [
            (ByteFormat::Text, "end\\", "backslash at the end"),
            (ByteFormat::Text, "\\x4", "two hexadecimal digits"),
            (ByteFormat::Text, "\\xzz", "two hexadecimal digits"),
            (ByteFormat::Text, "C:\\dir", "unknown escape \\d"),
            (ByteFormat::Hex, "abc", "odd number"),
            (ByteFormat::Hex, "zz", "not hexadecimal"),
            (ByteFormat::Base64, "a*b", "not base64"),
        ] {
            let error = format.decode(written.as_bytes()).expect_err(written);
            assert!(error.contains(reason), "{written}: {error}");
        }
    }

    #[test]
    fn base64_may_lack_its_padding() {
        assert_eq!(ByteFormat::Base64.decode(b"YWI="), Ok(b"ab".to_vec()));
        assert_eq!(ByteFormat::Base64.decode(b"YWI"), Ok(b"ab".to_vec()));
    }
}
