//! The values of typed trees as bytes: the one place that knows of their codec.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | version of the encoding, 1 |
//! | rest | the value by serde, in bincode 2's standard configuration: little-endian, lengths and integers above 8 bits as varints |
//!
//! The bytes are not self-describing: a field that is added to a struct makes older values
//! unreadable, with an [`Error::Decode`]. Add a variant to an enum instead, at the end.
//!
//! Bytes from disk are not trusted to be what they should: what they claim to contain is
//! limited, and all of them must be used.

use bincode::config::Limit;
use dogsled_storage::command::MAX_VALUE_LENGTH;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

const VERSION: u8 = 1;

type Configuration = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    Limit<MAX_VALUE_LENGTH>,
>;

/// What is read of a value is counted as it is in memory, up to sixteen bytes for one that is stored. So a long one has
/// another bound, which a short one that is damaged must not have: a length that it claims may be made room for.
type LongConfiguration = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    Limit<{ 16 * MAX_VALUE_LENGTH }>,
>;
const LONG: usize = MAX_VALUE_LENGTH / 16;

fn long_configuration() -> LongConfiguration {
    bincode::config::standard().with_limit::<{ 16 * MAX_VALUE_LENGTH }>()
}

fn configuration() -> Configuration {
    bincode::config::standard().with_limit::<MAX_VALUE_LENGTH>()
}

/// A value as bytes.
///
/// ```
/// use dogsled::typed::value;
/// assert_eq!(value::encode(&(1u8, "two"))?, [1, 1, 3, b't', b'w', b'o']);
/// # Ok::<(), dogsled::Error>(())
/// ```
///
/// # Errors
/// [`Error::Decode`] if serde cannot serialize it, [`Error::Unsupported`] if it is over the limit
/// of values.
pub fn encode<V: Serialize + ?Sized>(value: &V) -> Result<Vec<u8>> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, configuration())
        .map_err(|error| Error::Decode(format!("the value cannot be encoded: {error}")))?;
    if bytes.len() > MAX_VALUE_LENGTH {
        return Err(Error::Unsupported(format!(
            "a value of {} bytes is over the limit of {MAX_VALUE_LENGTH}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// The value in bytes that [`encode`] made.
///
/// ```
/// use dogsled::typed::value;
/// let bytes = value::encode(&Some(7u64))?;
/// assert_eq!(value::decode::<Option<u64>>(&bytes)?, Some(7));
/// assert!(value::decode::<u8>(&bytes).is_err());
/// # Ok::<(), dogsled::Error>(())
/// ```
///
/// # Errors
/// [`Error::Decode`] with what was found.
pub fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V> {
    let name = std::any::type_name::<V>();
    let payload = match bytes {
        [VERSION, payload @ ..] => payload,
        [] => return Err(Error::Decode("it is empty, so no typed tree wrote it".to_owned())),
        [version, ..] => {
            return Err(Error::Decode(format!(
                "it begins with {version}; typed trees write encoding version {VERSION}"
            )));
        }
    };
    let decoded = match payload.len() > LONG {
        true => bincode::serde::decode_from_slice(payload, long_configuration()),
        false => bincode::serde::decode_from_slice(payload, configuration()),
    };
    let (value, used) = decoded
        .map_err(|error| Error::Decode(format!("its {} bytes are no {name}: {error}", payload.len())))?;
    if used != payload.len() {
        return Err(Error::Decode(format!(
            "{} bytes are left over after a {name} of {used}",
            payload.len() - used
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_does_not_change() {
        let value = (300u16, -1i64, "né", Some(true), [7u8, 8], vec![1u32, 70_000]);
        let golden = [1, 251, 44, 1, 1, 3, b'n', 0xc3, 0xa9, 1, 1, 7, 8, 2, 1, 252, 112, 17, 1, 0];
        assert_eq!(encode(&value).unwrap(), golden);
        type Value = (u16, i64, String, Option<bool>, [u8; 2], Vec<u32>);
        let decoded: Value = decode(&golden).unwrap();
        assert_eq!(decoded, (300, -1, "né".to_owned(), Some(true), [7, 8], vec![1, 70_000]));
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused_with_a_reason() {
        let reason = |bytes: &[u8]| decode::<(u8, String)>(bytes).unwrap_err().to_string();
        assert!(reason(&[]).contains("empty"));
        assert!(reason(&[9, 1, 0]).contains("begins with 9"));
        assert!(reason(&[1, 5]).contains("no (u8, alloc::string::String)"));
        assert!(reason(&[1, 5, 1, b'a', 0]).contains("1 bytes are left over"));
        assert!(reason(&[1, 5, 1, 0xff]).contains("no (u8"));
    }

    #[test]
    fn a_claimed_length_costs_no_memory() {
        // A string and a list that claim 2^60 bytes and elements.
        let mut hostile = vec![1, 253];
        hostile.extend_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(decode::<String>(&hostile).is_err());
        assert!(decode::<Vec<u64>>(&hostile).is_err());
    }
}
