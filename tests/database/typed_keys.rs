//! The encoding of typed keys keeps their order and gives them back.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;

use dogsled::typed::{KeyDecode, KeyEncode, value};
use dogsled::{Config, Error, IVec};
use proptest::prelude::*;

/// Order and round trip, of whole keys and of keys that something follows.
fn check<K: KeyDecode + Ord + Debug>(a: &K, b: &K) -> Result<(), TestCaseError> {
    prop_assert_eq!(a.to_key().cmp(&b.to_key()), a.cmp(b), "order of {:?} and {:?}", a, b);
    prop_assert_eq!(&K::from_key(&a.to_key()).unwrap(), a);

    let followed = |key: &K, byte: u8| {
        let mut bytes = Vec::new();
        key.encode(&mut bytes);
        bytes.push(byte);
        bytes
    };
    if a != b {
        // Whatever follows: no encoding is the beginning of another.
        for (after_a, after_b) in [(0, 255), (255, 0), (0, 0)] {
            prop_assert_eq!(followed(a, after_a).cmp(&followed(b, after_b)), a.cmp(b));
        }
    }
    let bytes = followed(a, 77);
    let mut rest = &bytes[..];
    prop_assert_eq!(&K::decode(&mut rest).unwrap(), a);
    prop_assert_eq!(rest, &[77]);
    Ok(())
}

/// Bytes in which the ones that matter to the encoding are frequent.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(254), Just(255), any::<u8>()];
    proptest::collection::vec(byte, 0..6)
}

fn text() -> impl Strategy<Value = String> {
    let character = prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), any::<char>()];
    proptest::collection::vec(character, 0..6).prop_map(|characters| characters.into_iter().collect())
}

macro_rules! keys_of {
    ($($name:ident: $type:ty = $strategy:expr;)*) => {
        proptest! {
            $(
                #[test]
                fn $name((a, b) in ($strategy, $strategy)) {
                    check::<$type>(&a, &b)?;
                    check::<$type>(&a, &a)?;
                }
            )*
        }
    };
}

keys_of! {
    unsigned: (u8, u16, u32, u64, u128) = any::<(u8, u16, u32, u64, u128)>();
    signed: (i8, i16, i32, i64, i128) = any::<(i8, i16, i32, i64, i128)>();
    one_signed: i64 = any::<i64>();
    near_zero: (i32, i8) = (-2i32..=2, -2i8..=2);
    flags_and_characters: (bool, char) = any::<(bool, char)>();
    strings: String = text();
    pairs_of_strings: (String, String) = (text(), text());
    byte_strings: Vec<u8> = bytes();
    byte_strings_first: (Vec<u8>, u8) = (bytes(), any::<u8>());
    shared_bytes: (IVec, IVec) = (bytes().prop_map(IVec::from), bytes().prop_map(IVec::from));
    options: Option<String> = proptest::option::of(text());
    options_first: (Option<Vec<u8>>, Option<i16>) = (proptest::option::of(bytes()), any::<Option<i16>>());
    nested_options: Option<Option<bool>> = any::<Option<Option<bool>>>();
    arrays: [i16; 3] = any::<[i16; 3]>();
    arrays_of_strings: ([String; 2], u8) = ([text(), text()], any::<u8>());
    nested: ((String, i8), Option<(Vec<u8>, u8)>, [u8; 2]) =
        ((text(), any::<i8>()), proptest::option::of((bytes(), any::<u8>())), any::<[u8; 2]>());
    six: (u8, String, i8, Vec<u8>, bool, String) = (0u8..2, text(), -1i8..1, bytes(), any::<bool>(), text());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in bytes()) {
        // What is accepted is the encoding of what it was taken for.
        fn check<K: KeyDecode>(bytes: &[u8]) -> Result<(), TestCaseError> {
            if let Ok(key) = K::from_key(bytes) {
                prop_assert_eq!(&key.to_key()[..], bytes);
            }
            Ok(())
        }
        check::<u32>(&bytes)?;
        check::<bool>(&bytes)?;
        check::<char>(&bytes)?;
        check::<String>(&bytes)?;
        check::<(String, String)>(&bytes)?;
        check::<(Vec<u8>, u8)>(&bytes)?;
        check::<Option<(IVec, Option<bool>)>>(&bytes)?;
        check::<[i8; 3]>(&bytes)?;
        check::<()>(&bytes)?;
    }

    #[test]
    fn a_typed_tree_is_a_btree_map(
        entries in proptest::collection::btree_map((text(), -3i8..3), any::<Option<u16>>(), 0..20),
        low in (text(), -3i8..3),
        high in (text(), -3i8..3),
    ) {
        let db = Config::new().temporary(true).open().unwrap();
        let tree = db.open_typed_tree::<(String, i8), Option<u16>>("typed").unwrap();
        for (key, value) in &entries {
            prop_assert_eq!(tree.insert(key, value).unwrap(), None);
        }
        prop_assert_eq!(tree.len(), entries.len());
        let all: BTreeMap<_, _> = tree.iter().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&all, &entries);
        if low < high {
            let bounds = (Bound::Excluded(low.clone()), Bound::Included(high));
            let keys: Vec<_> = tree.range(bounds.clone()).rev().map(|entry| entry.unwrap().0).collect();
            let expected: Vec<_> = entries.range(bounds).rev().map(|(key, _)| key.clone()).collect();
            prop_assert_eq!(keys, expected);
        }
        let with_first = entries.iter().filter(|((first, _), _)| *first == low.0).count();
        prop_assert_eq!(tree.scan_prefix(&low.0).count(), with_first);
        prop_assert_eq!(tree.first().unwrap(), entries.first_key_value().map(|(k, v)| (k.clone(), *v)));
        prop_assert_eq!(tree.pop_max().unwrap(), entries.last_key_value().map(|(k, v)| (k.clone(), *v)));
    }
}

#[test]
fn the_key_encoding_does_not_change() {
    assert_eq!(("a\0b", -1i16, Some(true), [1u8, 2]).to_key(), b"a\0\xffb\0\0\x7f\xff\x01\x01\x01\x02");
    assert_eq!("plain text".to_key(), b"plain text");
    assert_eq!((None::<u8>, "x").to_key(), b"\0x");
    assert_eq!(('é', 1u128).to_key().len(), 20);
}

#[test]
fn what_is_not_of_the_type_is_named() {
    let db = Config::new().temporary(true).open().unwrap();
    let tree = db.open_tree("t").unwrap();
    tree.insert("short", value::encode(&1u8).unwrap()).unwrap();
    let wrong_key = db.open_typed_tree::<u64, u8>("t").unwrap();
    let Err(Error::Decode(what)) = wrong_key.first() else { panic!() };
    assert!(what.contains("\"short\"") && what.contains("u64 takes 8"), "{what}");

    let wrong_value = db.open_typed_tree::<String, String>("t").unwrap();
    let Err(Error::Decode(what)) = wrong_value.get("short") else { panic!() };
    assert!(what.contains("\"short\"") && what.contains("String"), "{what}");
    tree.insert("raw", "not typed").unwrap();
    let Err(Error::Decode(what)) = wrong_value.get("raw") else { panic!() };
    assert!(what.contains("version"), "{what}");
    assert_eq!(tree.len(), 2, "reading changes nothing");
}
