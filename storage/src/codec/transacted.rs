//! What the tree of transactions stores, in bincode; see [`crate::codec`] for the rules and
//! [`crate::transaction`] for the meaning.

use super::bincoded::{Body, encode, versioned_body};
use crate::command::{KeyRead, RangeRead, Write};
use crate::expiry::ExpiryCommand;
use crate::transaction::{Decided, Part, Prepared};

/// The first byte of an encoded [`Prepared`].
const PREPARED_VERSION: u8 = 1;
/// The first byte of an encoded [`Decided`].
const DECIDED_VERSION: u8 = 1;

impl Body<'_> {
    pub(super) fn part(&mut self) -> Result<Part, String> {
        Ok(Part {
            reads: self.list::<KeyRead>()?,
            ranges: self.list::<RangeRead>()?,
            writes: self.list::<Write>()?,
            expiries: self.list::<ExpiryCommand>()?,
        })
    }
}

pub(crate) fn encode_prepared(prepared: &Prepared) -> Vec<u8> {
    encode(PREPARED_VERSION, prepared)
}

pub(crate) fn decode_prepared(bytes: &[u8]) -> Result<Prepared, String> {
    let mut body = Body(versioned_body(PREPARED_VERSION, bytes)?);
    let prepared = Prepared {
        home: body.next()?,
        decide_by_ms: body.next()?,
        expires_ms: body.next()?,
        prepared_ms: body.next()?,
        part: body.part()?,
    };
    body.end()?;
    Ok(prepared)
}

pub(crate) fn encode_decided(decided: &Decided) -> Vec<u8> {
    encode(DECIDED_VERSION, decided)
}

pub(crate) fn decode_decided(bytes: &[u8]) -> Result<Decided, String> {
    let mut body = Body(versioned_body(DECIDED_VERSION, bytes)?);
    let decided = Decided { committed: body.next()?, decide_by_ms: body.next()?, participants: body.list()? };
    body.end()?;
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TreeId;

    #[test]
    fn rows_have_the_bytes_they_always_had() {
        let prepared = Prepared {
            home: 3,
            decide_by_ms: 300,
            expires_ms: 7,
            prepared_ms: 6,
            part: Part {
                reads: vec![KeyRead { tree: TreeId(16), key: "r".into(), version: 9 }],
                ranges: vec![RangeRead {
                    tree: TreeId(17),
                    low: "a".into(),
                    high: None,
                    count: 1,
                    fingerprint: 2,
                }],
                writes: vec![Write { tree: TreeId(16), key: "w".into(), value: Some("v".into()) }],
                expiries: vec![ExpiryCommand::Clear { tree: TreeId(16), key: "k".into() }],
            },
        };
        let bytes =
            b"\x01\x03\xfb\x2c\x01\x07\x06\x01\x10\x01r\x09\x01\x11\x01a\x00\x01\x02\x01\x10\x01w\x01\x01v\x01\x03\x10\x01k";
        assert_eq!(encode_prepared(&prepared), bytes);
        assert_eq!(decode_prepared(bytes), Ok(prepared));
        let decided = Decided { committed: true, decide_by_ms: 300, participants: vec![2, 5] };
        assert_eq!(encode_decided(&decided), b"\x01\x01\xfb\x2c\x01\x02\x02\x05");
        assert_eq!(decode_decided(b"\x01\x01\xfb\x2c\x01\x02\x02\x05"), Ok(decided));
        for length in 0..bytes.len() {
            assert!(decode_prepared(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(decode_prepared(&[&bytes[..], &[0]].concat()).is_err());
    }
}
