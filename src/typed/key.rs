//! Keys as bytes whose order is the order of the values.
//!
//! | type | bytes |
//! |---|---|
//! | unsigned integers | big-endian |
//! | signed integers | big-endian with the sign bit flipped |
//! | `bool` | 0 or 1 |
//! | `char` | its code point as `u32` |
//! | `String`, `str`, `Vec<u8>`, `[u8]`, `IVec` at the end of the key | the bytes as they are |
//! | the same before the end | the bytes, each 0 followed by 255; then 0, 0 |
//! | `Option` | 0, or 1 and the value |
//! | arrays and tuples | their elements one after the other |
//!
//! So a `String` alone is its own text, which other programs can read, and a pair of strings is
//! the first with its end marked, and the second. Every encoding but the last of a key
//! tells where it ends, which is what makes tuples keep the order of their elements: no encoding
//! is the beginning of another.

use std::fmt;

use crate::IVec;

/// Types that can be the key of a [`TypedTree`](super::TypedTree), or be borrowed from one: their
/// encoding keeps their order. The table is in the [module](self).
pub trait KeyEncode {
    /// Appends bytes that tell where they end.
    fn encode(&self, out: &mut Vec<u8>);

    /// Appends bytes that end where the key ends. Of two values of one type, the greater has the
    /// greater bytes.
    fn encode_last(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }

    /// The whole key.
    ///
    /// ```
    /// use dogsled::typed::KeyEncode;
    /// assert_eq!(("ann", 7u16).to_key(), b"ann\0\0\0\x07");
    /// assert!((-2i32).to_key() < 1i32.to_key());
    /// ```
    fn to_key(&self) -> IVec {
        let mut bytes = Vec::new();
        self.encode_last(&mut bytes);
        IVec::from(bytes)
    }
}

/// Types that can be the key of a [`TypedTree`](super::TypedTree).
pub trait KeyDecode: KeyEncode + Sized {
    /// Takes a value off the front of `input`, as [`KeyEncode::encode`] wrote it.
    ///
    /// # Errors
    /// [`MalformedKey`] with what was found.
    fn decode(input: &mut &[u8]) -> Result<Self, MalformedKey>;

    /// The value that is all of `input`, as [`KeyEncode::encode_last`] wrote it.
    ///
    /// # Errors
    /// [`MalformedKey`] with what was found.
    fn decode_last(mut input: &[u8]) -> Result<Self, MalformedKey> {
        let value = Self::decode(&mut input)?;
        if input.is_empty() {
            return Ok(value);
        }
        Err(MalformedKey(format!("{} bytes are left over", input.len())))
    }

    /// The value that a whole key stands for.
    ///
    /// ```
    /// use dogsled::typed::{KeyDecode, KeyEncode};
    /// let key = (-7i64, String::from("ann")).to_key();
    /// assert_eq!(<(i64, String)>::from_key(&key)?, (-7, String::from("ann")));
    /// assert!(u8::from_key(&key).is_err());
    /// # Ok::<(), dogsled::typed::MalformedKey>(())
    /// ```
    ///
    /// # Errors
    /// [`MalformedKey`] with what was found.
    fn from_key(key: &[u8]) -> Result<Self, MalformedKey> {
        Self::decode_last(key)
    }
}

/// The bytes are not the key of such a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MalformedKey(pub String);

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MalformedKey {}

impl From<MalformedKey> for crate::Error {
    fn from(error: MalformedKey) -> crate::Error {
        crate::Error::Decode(format!("a key: {error}"))
    }
}

fn take<const N: usize>(input: &mut &[u8], what: &str) -> Result<[u8; N], MalformedKey> {
    let Some((taken, rest)) = input.split_first_chunk::<N>() else {
        return Err(MalformedKey(format!("{} bytes where {what} takes {N}", input.len())));
    };
    *input = rest;
    Ok(*taken)
}

/// A reference is encoded as what it refers to.
impl<T: KeyEncode + ?Sized> KeyEncode for &T {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }

    fn encode_last(&self, out: &mut Vec<u8>) {
        (**self).encode_last(out);
    }
}

macro_rules! unsigned_keys {
    ($($type:ident)*) => {$(
        impl KeyEncode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }

        impl KeyDecode for $type {
            fn decode(input: &mut &[u8]) -> Result<$type, MalformedKey> {
                take(input, stringify!($type)).map($type::from_be_bytes)
            }
        }
    )*};
}

unsigned_keys!(u8 u16 u32 u64 u128);

macro_rules! signed_keys {
    ($($type:ident as $unsigned:ident)*) => {$(
        impl KeyEncode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&(self ^ $type::MIN).to_be_bytes());
            }
        }

        impl KeyDecode for $type {
            fn decode(input: &mut &[u8]) -> Result<$type, MalformedKey> {
                take(input, stringify!($type)).map(|bytes| $type::from_be_bytes(bytes) ^ $type::MIN)
            }
        }
    )*};
}

signed_keys!(i8 as u8 i16 as u16 i32 as u32 i64 as u64 i128 as u128);

impl KeyEncode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl KeyDecode for bool {
    fn decode(input: &mut &[u8]) -> Result<bool, MalformedKey> {
        match take(input, "bool")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(MalformedKey(format!("{other} where a bool is 0 or 1"))),
        }
    }
}

impl KeyEncode for char {
    fn encode(&self, out: &mut Vec<u8>) {
        u32::from(*self).encode(out);
    }
}

impl KeyDecode for char {
    fn decode(input: &mut &[u8]) -> Result<char, MalformedKey> {
        let code = u32::decode(input)?;
        char::from_u32(code).ok_or_else(|| MalformedKey(format!("{code:#x} is no character")))
    }
}

/// Bytes before the end of a key: every 0 is followed by 255, and the end is 0, 0.
fn encode_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(255);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn decode_escaped(input: &mut &[u8]) -> Result<Vec<u8>, MalformedKey> {
    let mut bytes = Vec::new();
    loop {
        let Some(zero) = input.iter().position(|&byte| byte == 0) else {
            return Err(MalformedKey("the end of a string is missing".to_owned()));
        };
        bytes.extend_from_slice(&input[..zero]);
        let mark = input.get(zero + 1).copied();
        *input = input.get(zero + 2..).unwrap_or_default();
        match mark {
            Some(0) => return Ok(bytes),
            Some(255) => bytes.push(0),
            _ => return Err(MalformedKey(format!("{mark:?} follows a 0 within a string"))),
        }
    }
}

fn decode_text(bytes: Vec<u8>) -> Result<String, MalformedKey> {
    String::from_utf8(bytes).map_err(|error| MalformedKey(format!("a string that is {error}")))
}

macro_rules! byte_keys {
    ($($type:ty, $bytes:ident;)*) => {$(
        impl KeyEncode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                encode_escaped(self.$bytes(), out);
            }

            fn encode_last(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.$bytes());
            }
        }
    )*};
}

byte_keys! {
    str, as_bytes;
    String, as_bytes;
    [u8], as_ref;
    Vec<u8>, as_slice;
    IVec, as_ref;
}

impl KeyDecode for String {
    fn decode(input: &mut &[u8]) -> Result<String, MalformedKey> {
        decode_text(decode_escaped(input)?)
    }

    fn decode_last(input: &[u8]) -> Result<String, MalformedKey> {
        decode_text(input.to_vec())
    }
}

impl KeyDecode for Vec<u8> {
    fn decode(input: &mut &[u8]) -> Result<Vec<u8>, MalformedKey> {
        decode_escaped(input)
    }

    fn decode_last(input: &[u8]) -> Result<Vec<u8>, MalformedKey> {
        Ok(input.to_vec())
    }
}

impl KeyDecode for IVec {
    fn decode(input: &mut &[u8]) -> Result<IVec, MalformedKey> {
        decode_escaped(input).map(IVec::from)
    }

    fn decode_last(input: &[u8]) -> Result<IVec, MalformedKey> {
        Ok(IVec::from(input))
    }
}

impl<T: KeyEncode> KeyEncode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn encode_last(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.encode_last(out);
        }
    }
}

impl<T: KeyDecode> KeyDecode for Option<T> {
    fn decode(input: &mut &[u8]) -> Result<Option<T>, MalformedKey> {
        match take(input, "the mark of an Option")? {
            [0] => Ok(None),
            [1] => T::decode(input).map(Some),
            [other] => Err(MalformedKey(format!("{other} where the mark of an Option is 0 or 1"))),
        }
    }

    fn decode_last(mut input: &[u8]) -> Result<Option<T>, MalformedKey> {
        match take(&mut input, "the mark of an Option")? {
            [0] if input.is_empty() => Ok(None),
            [0] => Err(MalformedKey(format!("{} bytes are left over after None", input.len()))),
            [1] => T::decode_last(input).map(Some),
            [other] => Err(MalformedKey(format!("{other} where the mark of an Option is 0 or 1"))),
        }
    }
}

impl<T: KeyEncode, const N: usize> KeyEncode for [T; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|element| element.encode(out));
    }

    fn encode_last(&self, out: &mut Vec<u8>) {
        if let Some((last, elements)) = self.split_last() {
            elements.iter().for_each(|element| element.encode(out));
            last.encode_last(out);
        }
    }
}

impl<T: KeyDecode, const N: usize> KeyDecode for [T; N] {
    fn decode(input: &mut &[u8]) -> Result<[T; N], MalformedKey> {
        let elements: Vec<T> = (0..N).map(|_| T::decode(input)).collect::<Result<_, _>>()?;
        Ok(array(elements))
    }

    fn decode_last(mut input: &[u8]) -> Result<[T; N], MalformedKey> {
        let mut elements: Vec<T> = (1..N).map(|_| T::decode(&mut input)).collect::<Result<_, _>>()?;
        if N > 0 {
            elements.push(T::decode_last(input)?);
        } else if !input.is_empty() {
            return Err(MalformedKey(format!("{} bytes where an empty array has none", input.len())));
        }
        Ok(array(elements))
    }
}

fn array<T, const N: usize>(elements: Vec<T>) -> [T; N] {
    elements.try_into().unwrap_or_else(|_| unreachable!("as many elements as the array has"))
}
