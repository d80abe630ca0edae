//! Tuples as keys, and what they start with.

use super::key::{KeyDecode, KeyEncode, MalformedKey};

/// Tuples whose first elements are `P`, or the elements of the tuple `P`: what
/// [`TypedTree::scan_prefix`](super::TypedTree::scan_prefix) takes.
pub trait StartsWith<P> {}

impl KeyEncode for () {
    fn encode(&self, _out: &mut Vec<u8>) {}
}

impl KeyDecode for () {
    fn decode(_input: &mut &[u8]) -> Result<(), MalformedKey> {
        Ok(())
    }
}

macro_rules! tuple_keys {
    ($($name:ident $index:tt)* ; $last:ident $last_index:tt) => {
        impl<$($name: KeyEncode,)* $last: KeyEncode> KeyEncode for ($($name,)* $last,) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)*
                self.$last_index.encode(out);
            }

            fn encode_last(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)*
                self.$last_index.encode_last(out);
            }
        }

        impl<$($name: KeyDecode,)* $last: KeyDecode> KeyDecode for ($($name,)* $last,) {
            fn decode(input: &mut &[u8]) -> Result<Self, MalformedKey> {
                Ok(($($name::decode(input)?,)* $last::decode(input)?,))
            }

            #[allow(unused_mut, reason = "a tuple of one decodes nothing before its last")]
            fn decode_last(mut input: &[u8]) -> Result<Self, MalformedKey> {
                Ok(($($name::decode(&mut input)?,)* $last::decode_last(input)?,))
            }
        }
    };
}

tuple_keys!(; A 0);
tuple_keys!(A 0; B 1);
tuple_keys!(A 0 B 1; C 2);
tuple_keys!(A 0 B 1 C 2; D 3);
tuple_keys!(A 0 B 1 C 2 D 3; E 4);
tuple_keys!(A 0 B 1 C 2 D 3 E 4; F 5);

impl<A, B> StartsWith<A> for (A, B) {}
impl<A, B, C> StartsWith<A> for (A, B, C) {}
impl<A, B, C> StartsWith<(A, B)> for (A, B, C) {}
impl<A, B, C, D> StartsWith<A> for (A, B, C, D) {}
impl<A, B, C, D> StartsWith<(A, B)> for (A, B, C, D) {}
impl<A, B, C, D> StartsWith<(A, B, C)> for (A, B, C, D) {}
