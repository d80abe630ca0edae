//! [`IVec`]: the bytes of a key or a value, cheap to clone.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes held inline need no allocation.
const INLINE_CAPACITY: usize = 30;

/// Immutable bytes: up to 30 inline, longer ones shared by reference count.
///
/// The same type as sled's `IVec`, and used in the same way: it derefs to `[u8]`, converts from
/// and into the usual byte containers, and copies on write when mutably dereferenced.
///
/// ```
/// use dogsled_storage::IVec;
/// let long = IVec::from(vec![7; 100]);
/// let part = long.subslice(10, 5); // shares the allocation
/// assert_eq!(part, &[7, 7, 7, 7, 7]);
/// ```
#[derive(Clone)]
pub struct IVec(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, data: [u8; INLINE_CAPACITY] },
    Shared { offset: u32, len: u32, base: Arc<[u8]> },
}

impl IVec {
    /// The empty value.
    pub const fn new() -> IVec {
        IVec(Repr::Inline { len: 0, data: [0; INLINE_CAPACITY] })
    }

    /// The `len` bytes from `offset` of a shared allocation, which stays alive as long as this
    /// value does. Short ones are copied inline.
    ///
    /// # Panics
    /// If the range is not within `base`, or `base` is longer than `u32::MAX`.
    pub fn from_shared(base: &Arc<[u8]>, offset: usize, len: usize) -> IVec {
        let bytes = &base[offset..offset + len];
        if len <= INLINE_CAPACITY {
            // A copy of fixed length, where there is room for it, is a few moves instead of a call.
            return match base[offset..].first_chunk() {
                Some(data) => IVec(Repr::Inline { len: len as u8, data: *data }),
                None => IVec::inline(bytes),
            };
        }
        let offset = u32::try_from(offset).expect("a shared allocation is below 4 GiB");
        let len = u32::try_from(len).expect("a shared allocation is below 4 GiB");
        IVec(Repr::Shared { offset, len, base: Arc::clone(base) })
    }

    /// A part of this value, sharing its allocation.
    ///
    /// # Panics
    /// If the part is not within this value.
    #[must_use]
    pub fn subslice(&self, slice_offset: usize, len: usize) -> IVec {
        assert!(
            slice_offset.checked_add(len).is_some_and(|end| end <= self.len()),
            "subslice {slice_offset}..+{len} is beyond the end of {} bytes",
            self.len()
        );
        match &self.0 {
            Repr::Inline { data, .. } => IVec::inline(&data[slice_offset..slice_offset + len]),
            Repr::Shared { offset, base, .. } => {
                IVec::from_shared(base, *offset as usize + slice_offset, len)
            }
        }
    }

    /// A value that keeps no more memory alive than its own bytes.
    #[must_use]
    pub fn compact(&self) -> IVec {
        match &self.0 {
            Repr::Shared { base, len, .. } if base.len() > *len as usize => IVec::from(&self[..]),
            _ => self.clone(),
        }
    }

    /// Bytes allocated outside of the value itself, counting shared ones in full length of this part.
    pub fn heap_size(&self) -> usize {
        match &self.0 {
            Repr::Inline { .. } => 0,
            // The bytes, the two reference counts and what the allocator keeps.
            Repr::Shared { len, .. } => *len as usize + 32,
        }
    }

    #[inline]
    fn inline(bytes: &[u8]) -> IVec {
        let mut data = [0; INLINE_CAPACITY];
        data[..bytes.len()].copy_from_slice(bytes);
        IVec(Repr::Inline { len: bytes.len() as u8, data })
    }

    fn shared(base: Arc<[u8]>) -> IVec {
        let len = u32::try_from(base.len()).expect("an IVec holds less than 4 GiB");
        IVec(Repr::Shared { offset: 0, len, base })
    }
}

impl Default for IVec {
    fn default() -> Self {
        IVec::new()
    }
}

impl Deref for IVec {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, data } => &data[..*len as usize],
            Repr::Shared { offset, len, base } => &base[*offset as usize..(*offset + *len) as usize],
        }
    }
}

impl DerefMut for IVec {
    fn deref_mut(&mut self) -> &mut [u8] {
        if let Repr::Shared { offset, len, base } = &mut self.0
            && Arc::get_mut(base).is_none()
        {
            let (start, length) = (*offset as usize, *len as usize);
            *base = Arc::from(&base[start..start + length]);
            *offset = 0;
        }
        match &mut self.0 {
            Repr::Inline { len, data } => &mut data[..*len as usize],
            Repr::Shared { offset, len, base } => {
                let base = Arc::get_mut(base).expect("made unique above");
                &mut base[*offset as usize..(*offset + *len) as usize]
            }
        }
    }
}

impl AsRef<[u8]> for IVec {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for IVec {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Borrow<[u8]> for IVec {
    #[inline]
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for &IVec {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for IVec {
    #[inline]
    fn from(bytes: &[u8]) -> IVec {
        if bytes.len() <= INLINE_CAPACITY { IVec::inline(bytes) } else { IVec::shared(Arc::from(bytes)) }
    }
}

impl From<Arc<[u8]>> for IVec {
    fn from(bytes: Arc<[u8]>) -> IVec {
        if bytes.len() <= INLINE_CAPACITY { IVec::inline(&bytes) } else { IVec::shared(bytes) }
    }
}

impl From<IVec> for Arc<[u8]> {
    fn from(bytes: IVec) -> Arc<[u8]> {
        Arc::from(&*bytes)
    }
}

impl From<Box<[u8]>> for IVec {
    fn from(bytes: Box<[u8]>) -> IVec {
        IVec::from(&bytes[..])
    }
}

impl From<Vec<u8>> for IVec {
    fn from(bytes: Vec<u8>) -> IVec {
        IVec::from(&bytes[..])
    }
}

impl From<&Vec<u8>> for IVec {
    fn from(bytes: &Vec<u8>) -> IVec {
        IVec::from(&bytes[..])
    }
}

impl From<String> for IVec {
    fn from(text: String) -> IVec {
        IVec::from(text.as_bytes())
    }
}

impl From<&String> for IVec {
    fn from(text: &String) -> IVec {
        IVec::from(text.as_bytes())
    }
}

impl From<&str> for IVec {
    fn from(text: &str) -> IVec {
        IVec::from(text.as_bytes())
    }
}

impl From<&IVec> for IVec {
    fn from(other: &IVec) -> IVec {
        other.clone()
    }
}

impl<const N: usize> From<&[u8; N]> for IVec {
    fn from(bytes: &[u8; N]) -> IVec {
        IVec::from(&bytes[..])
    }
}

impl<const N: usize> From<[u8; N]> for IVec {
    fn from(bytes: [u8; N]) -> IVec {
        IVec::from(&bytes[..])
    }
}

impl FromIterator<u8> for IVec {
    fn from_iter<T: IntoIterator<Item = u8>>(bytes: T) -> IVec {
        bytes.into_iter().collect::<Vec<u8>>().into()
    }
}

impl<'a> IntoIterator for &'a IVec {
    type Item = &'a u8;
    type IntoIter = std::slice::Iter<'a, u8>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Ord for IVec {
    #[inline]
    fn cmp(&self, other: &IVec) -> Ordering {
        self[..].cmp(&other[..])
    }
}

impl PartialOrd for IVec {
    #[inline]
    fn partial_cmp(&self, other: &IVec) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: AsRef<[u8]>> PartialEq<T> for IVec {
    #[inline]
    fn eq(&self, other: &T) -> bool {
        self[..] == *other.as_ref()
    }
}

impl PartialEq<[u8]> for IVec {
    fn eq(&self, other: &[u8]) -> bool {
        self[..] == *other
    }
}

impl Eq for IVec {}

impl Hash for IVec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self[..].hash(state);
    }
}

impl fmt::Debug for IVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

/// Encoded as `&[u8]` is: a length and the bytes.
impl bincode::Encode for IVec {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self[..].encode(encoder)
    }
}

/// Allocates nothing before the bytes are known to be there, whatever length is claimed.
impl<Context> bincode::Decode<Context> for IVec {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<IVec, bincode::error::DecodeError> {
        use bincode::de::read::Reader;

        let claimed = u64::decode(decoder)?;
        let length =
            usize::try_from(claimed).map_err(|_| bincode::error::DecodeError::OutsideUsizeRange(claimed))?;
        decoder.claim_container_read::<u8>(length)?;
        if let Some(bytes) = decoder.reader().peek_read(length) {
            let value = IVec::from(bytes);
            decoder.reader().consume(length);
            return Ok(value);
        }
        // The input ends too early, or comes from a stream that cannot look ahead: read in steps.
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let start = bytes.len();
            bytes.resize(length.min(start + (4 << 10)), 0);
            decoder.reader().read(&mut bytes[start..])?;
        }
        Ok(IVec::from(bytes))
    }
}

bincode::impl_borrow_decode!(IVec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_no_larger_than_four_words() {
        assert_eq!(std::mem::size_of::<IVec>(), 32);
        assert_eq!(std::mem::size_of::<Option<IVec>>(), 32);
    }

    #[test]
    fn round_trips_every_length_around_the_inline_limit() {
        for length in 0..70 {
            let bytes: Vec<u8> = (0..length).collect();
            let value = IVec::from(bytes.clone());
            assert_eq!(value, bytes);
            assert_eq!(value.clone(), value);
            for offset in 0..bytes.len() {
                let part = value.subslice(offset, bytes.len() - offset);
                assert_eq!(part, &bytes[offset..]);
                assert_eq!(part.compact(), part);
            }
        }
    }

    #[test]
    fn writing_through_one_clone_leaves_the_others_alone() {
        for length in [3, 30, 31, 200] {
            let original = IVec::from(vec![1; length]);
            let mut copy = original.clone();
            copy[0] = 9;
            assert_eq!(original[0], 1);
            assert_eq!(copy[0], 9);
            let mut part = original.subslice(1, length - 1);
            part[0] = 8;
            assert_eq!(original[1], 1);
            assert_eq!(part[0], 8);
        }
    }

    #[test]
    #[should_panic(expected = "beyond the end")]
    fn refuses_a_part_beyond_its_end() {
        let _ = IVec::from(&[1, 2, 3]).subslice(2, 2);
    }
}
