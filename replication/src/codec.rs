//! The bytes of everything that this crate writes: what peers and clients exchange, and what lies
//! in the WAL beside the commands.
//!
//! Laid out by hand, little-endian, without padding: the types are few and flat, and a decoder that
//! only ever moves forward over bytes that are there cannot be made to allocate by a claim. Rules,
//! for every decoder in the crate:
//!
//! - the input's length was capped before it came here (by the transport, or by the WAL);
//! - a count is checked against the bytes that are left before anything is set aside for it;
//! - all of the input must be used;
//! - what begins a message or a record is a version byte, and an unknown one is an error.
//!
//! Commands, replies and reads of the state machine are storage's own encodings and pass through
//! here as opaque bytes; see [`dogsled_storage::codec`].

use std::fmt;

use bytes::Bytes;

/// Why bytes could not be decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for std::io::Error {
    fn from(error: Malformed) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Shorthand for a refusal.
pub(crate) fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

/// Appends to a buffer.
pub(crate) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_u128(&mut self, value: u128);
    /// A length in four bytes, then the bytes.
    fn put_bytes(&mut self, bytes: &[u8]);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u128(&mut self, value: u128) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("nothing on the wire has 4 GiB");
        self.put_u32(length);
        self.extend_from_slice(bytes);
    }
}

/// What is left to decode. Byte strings taken from it share the input's memory.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    rest: Bytes,
}

impl Take {
    pub(crate) fn new(bytes: Bytes) -> Take {
        Take { rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some(array) = self.rest.first_chunk::<N>() else {
            return malformed(format!("an end {} bytes too early", N - self.rest.len()));
        };
        let array = *array;
        bytes::Buf::advance(&mut self.rest, N);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => malformed(format!("{other} is neither yes nor no")),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        if length > self.rest.len() {
            return malformed(format!("{length} bytes claimed, {} there", self.rest.len()));
        }
        Ok(self.rest.split_to(length))
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        match std::str::from_utf8(&self.bytes()?) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => malformed(format!("not UTF-8: {error}")),
        }
    }

    /// A count of elements of at least `least` bytes each.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count.saturating_mul(least) > self.rest.len() {
            return malformed(format!("{count} elements claimed in {} bytes", self.rest.len()));
        }
        Ok(count)
    }

    pub(crate) fn version(&mut self, known: u8) -> Result<(), Malformed> {
        match self.u8()? {
            found if found == known => Ok(()),
            found => malformed(format!("format version {found} is not known, only {known}")),
        }
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => malformed(format!("{left} bytes left over at the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_taken_and_nothing_else() {
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u32(2);
        bytes.put_u64(3);
        bytes.put_u128(4);
        bytes.put_bytes(b"five");
        let mut take = Take::new(Bytes::from(bytes));
        assert_eq!(take.u8(), Ok(1));
        assert_eq!(take.u32(), Ok(2));
        assert_eq!(take.u64(), Ok(3));
        assert_eq!(take.u128(), Ok(4));
        assert_eq!(take.text().as_deref(), Ok("five"));
        assert_eq!(take.end(), Ok(()));
        assert!(take.u8().is_err());
    }

    #[test]
    fn claims_beyond_the_input_are_refused() {
        let mut take = Take::new(Bytes::from_static(&[255, 255, 255, 255, 1]));
        assert!(take.clone().bytes().is_err());
        assert!(take.count(1).is_err());
    }
}
