//! What is encoded with bincode; see [`crate::codec`] for the format and the rules.

use bincode::config::{self, Configuration};
use bincode::{Decode, Encode};

use crate::command::{Command, MAX_COMMAND_LENGTH};
use crate::{Error, Result};

/// The first byte of an encoded command.
const COMMAND_VERSION: u8 = 1;

/// The longest encoding of a command: the most bytes of keys and values, and room for what stands
/// around them.
pub const MAX_ENCODED_COMMAND_LENGTH: usize = MAX_COMMAND_LENGTH + (256 << 20);

/// The longest record of a lock. Far above what is ever written (an owner's name and two numbers).
const MAX_RECORD_LENGTH: usize = 1 << 20;

/// Position of [`Command::Batch`] among the variants.
const BATCH: u32 = 6;
/// Position of [`Command::Transact`] among the variants.
const TRANSACT: u32 = 8;
/// Position of [`Command::CountMany`] among the variants.
const COUNT_MANY: u32 = 13;

/// Position of [`Command::Compare`] among the variants.
const COMPARE: u32 = 17;

/// Position of [`Command::Strings`] among the variants.
const STRINGS: u32 = 18;

const STANDARD: Configuration = config::standard();

/// Encodes a command; the same command always gives the same bytes.
///
/// ```
/// use dogsled_storage::codec::{decode_command, encode_command};
/// use dogsled_storage::{Command, TreeId};
///
/// let command = Command::Remove { tree: TreeId::DEFAULT, key: "a".into() };
/// let bytes = encode_command(&command)?;
/// assert_eq!(bytes, [1, 4, 0, 1, b'a']);
/// assert_eq!(decode_command(&bytes)?, command);
/// # Ok::<(), dogsled_storage::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidRequest`] if the encoding is longer than [`MAX_ENCODED_COMMAND_LENGTH`], which
/// [`decode_command`] would refuse.
pub fn encode_command(command: &Command) -> Result<Vec<u8>> {
    let bytes = encode(COMMAND_VERSION, command);
    if bytes.len() > MAX_ENCODED_COMMAND_LENGTH {
        return Err(too_long(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a command from bytes that may be anything. It may still be one that
/// [`Command::check_limits`] refuses.
///
/// # Errors
/// [`Error::InvalidRequest`] saying what is wrong: too long, an unknown format version or
/// command, an end too early, or bytes left over.
pub fn decode_command(bytes: &[u8]) -> Result<Command> {
    if bytes.len() > MAX_ENCODED_COMMAND_LENGTH {
        return Err(too_long(bytes.len()));
    }
    let malformed = |what: String| Error::InvalidRequest(format!("not a command: {what}"));
    let body = versioned_body(COMMAND_VERSION, bytes).map_err(malformed)?;
    decode_command_body(body).map_err(malformed)
}

fn too_long(length: usize) -> Error {
    Error::InvalidRequest(format!(
        "a command of {length} bytes is over the limit of {MAX_ENCODED_COMMAND_LENGTH}; split it"
    ))
}

/// Encodes what a tree stores, behind the version byte of its layout.
pub(crate) fn encode_record<T: Encode>(version: u8, record: &T) -> Vec<u8> {
    encode(version, record)
}

/// Decodes what [`encode_record`] gave; an error says what is wrong with the bytes.
///
/// `T` must hold no list but of bytes; see the rules in [`crate::codec`].
pub(crate) fn decode_record<T: Decode<()>>(version: u8, bytes: &[u8]) -> Result<T, String> {
    if bytes.len() > MAX_RECORD_LENGTH {
        return Err(format!("{} bytes are over the limit of {MAX_RECORD_LENGTH}", bytes.len()));
    }
    let mut body = Body(versioned_body(version, bytes)?);
    let record = body.next()?;
    body.end()?;
    Ok(record)
}

/// As [`encode_record`], of a record that ends with a list.
pub(crate) fn encode_list_record<H: Encode, T: Encode>(version: u8, head: &H, list: &[T]) -> Vec<u8> {
    encode(version, &(head, list))
}

/// Decodes what [`encode_list_record`] gave; neither part may hold a list but of bytes.
pub(crate) fn decode_list_record<H: Decode<()>, T: Decode<()>>(
    version: u8,
    bytes: &[u8],
) -> Result<(H, Vec<T>), String> {
    let mut body = Body(versioned_body(version, bytes)?);
    let record = (body.next()?, body.list()?);
    body.end()?;
    Ok(record)
}

pub(super) fn encode<T: Encode>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    // The only errors are those of the writer, and of types (cells, paths) that we do not have.
    bincode::encode_into_std_write(value, &mut bytes, STANDARD).expect("a Vec takes every byte");
    bytes
}

pub(super) fn versioned_body(version: u8, bytes: &[u8]) -> Result<&[u8], String> {
    match bytes.split_first() {
        Some((&found, body)) if found == version => Ok(body),
        Some((&found, _)) => Err(format!("format version {found} is not known, only {version}")),
        None => Err("no bytes".to_owned()),
    }
}

/// Like the derived `Decode`, except for the lists: bincode would make room for as many elements
/// as the input claims, up to its limit, which for a `Write` of 72 bytes in memory and 3 encoded
/// must be above 24 GiB. Here a list has no more room than it needs.
pub(super) fn decode_command_body(bytes: &[u8]) -> Result<Command, String> {
    let mut body = Body(bytes);
    let command = match body.next::<u32>()? {
        BATCH => Command::Batch { writes: body.list()? },
        TRANSACT => Command::Transact {
            reads: body.list()?,
            ranges: body.list()?,
            writes: body.list()?,
            expiries: body.list()?,
        },
        COUNT_MANY => Command::CountMany { additions: body.list()? },
        COMPARE => {
            Command::Compare { comparisons: body.list()?, then: body.list()?, otherwise: body.list()? }
        }
        STRINGS => Command::Strings { watched: body.list()?, operations: body.list()? },
        _ => {
            body = Body(bytes);
            body.next()?
        }
    };
    body.end()?;
    Ok(command)
}

/// What is left to decode.
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl Body<'_> {
    pub(super) fn next<T: Decode<()>>(&mut self) -> Result<T, String> {
        let limited = STANDARD.with_limit::<MAX_ENCODED_COMMAND_LENGTH>();
        let (value, used) = bincode::decode_from_slice(self.0, limited).map_err(|error| error.to_string())?;
        self.0 = &self.0[used..];
        Ok(value)
    }

    pub(super) fn list<T: Decode<()>>(&mut self) -> Result<Vec<T>, String> {
        let count: u64 = self.next()?;
        // An element has a byte at the least; a claim beyond that can be refused unread.
        if count > self.0.len() as u64 {
            return Err(format!("a list of {count} elements in {} bytes", self.0.len()));
        }
        let mut elements = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(64));
        for _ in 0..count {
            elements.push(self.next()?);
        }
        Ok(elements)
    }

    pub(super) fn end(&self) -> Result<(), String> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(format!("{left} bytes left over at the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`decode_command_body`] takes these apart by hand, so their positions must hold.
    #[test]
    fn lists_are_decoded_at_the_positions_that_bincode_gives_them() {
        let batch = Command::Batch { writes: Vec::new() };
        assert_eq!(encode(1, &batch)[1], BATCH as u8);
        let (reads, ranges) = (Vec::new(), Vec::new());
        let transact = Command::Transact { reads, ranges, writes: Vec::new(), expiries: Vec::new() };
        assert_eq!(encode(1, &transact)[1], TRANSACT as u8);
        let count = Command::CountMany { additions: Vec::new() };
        assert_eq!(encode(1, &count)[1], COUNT_MANY as u8);
        let (then, otherwise) = (Vec::new(), Vec::new());
        let compare = Command::Compare { comparisons: Vec::new(), then, otherwise };
        assert_eq!(encode(1, &compare)[1], COMPARE as u8);
        let strings = Command::Strings { watched: Vec::new(), operations: Vec::new() };
        assert_eq!(encode(1, &strings)[1], STRINGS as u8);
    }

    #[test]
    fn a_record_says_what_is_wrong_with_it() {
        let bytes = encode_record(1, &(7u64, 300u64));
        assert_eq!(decode_record::<(u64, u64)>(1, &bytes), Ok((7, 300)));
        let error = |version, bytes: &[u8]| decode_record::<(u64, u64)>(version, bytes).unwrap_err();
        assert_eq!(error(2, &bytes), "format version 1 is not known, only 2");
        assert_eq!(error(1, &[]), "no bytes");
        assert_eq!(error(1, &[&bytes[..], &[0]].concat()), "1 bytes left over at the end");
        assert!(error(1, &bytes[..3]).contains("UnexpectedEnd"), "{}", error(1, &bytes[..3]));
    }
}
