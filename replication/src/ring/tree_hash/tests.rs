//! What is hashed, against all keys of a small alphabet.

use std::collections::BTreeSet;

use super::*;

const CHOICES: [TreeHash; 9] = [
    TreeHash::Whole,
    TreeHash::Slot,
    TreeHash::First(1),
    TreeHash::First(2),
    TreeHash::First(3),
    TreeHash::Before { delimiter: b'/', occurrence: 1 },
    TreeHash::Before { delimiter: b'/', occurrence: 2 },
    TreeHash::Before { delimiter: b'}', occurrence: 1 },
    TreeHash::Before { delimiter: b'{', occurrence: 1 },
];

/// All keys of up to so many of these bytes.
fn keys(alphabet: &[u8], longest: usize) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..longest {
        last = last
            .iter()
            .flat_map(|key| alphabet.iter().map(move |byte| [&key[..], &[*byte]].concat()))
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}

#[test]
fn what_is_hashed_of_a_key_is_fixed_for_ever() {
    let first = TreeHash::First(6);
    let second = TreeHash::Before { delimiter: b'/', occurrence: 2 };
    let cases: [(TreeHash, &str, &str); 15] = [
        (TreeHash::Whole, "chat/7/0001", "chat/7/0001"),
        (TreeHash::Whole, "chat/{7}/0001", "7"),
        (first, "chat/7/0001", "chat/7"),
        (first, "chat/7", "chat/7"),
        (first, "chat", "chat"),
        (first, "{chat/7}/0001", "chat/7"),
        (first, "chat/7/{x}", "chat/7"),
        (first, "chat/{7}", "7"),
        (first, "{}at/7{x}", "{}at/7"),
        (second, "chat/7/0001", "chat/7"),
        (second, "chat/7", "chat/7"),
        (second, "chat//x", "chat/"),
        (second, "{a/b/c}/d", "a/b/c"),
        (second, "chat/7/{x}", "chat/7"),
        (second, "cha{t/7/x", "cha{t/7"),
    ];
    for (hash, key, part) in cases {
        assert_eq!(hash.part(key.as_bytes()), part.as_bytes(), "{hash} of {key}");
    }
    // The same hash, and the same slices, as of whole keys.
    assert_eq!(first.group_of(b"{abc}:anything", 16), 8);
    assert_eq!(TreeHash::First(3).group_of(b"abcdef", 16), 8);
    assert_eq!(TreeHash::Before { delimiter: b'c', occurrence: 1 }.group_of(b"ac", 16), 15);
    for key in keys(b"a{}", 6) {
        assert_eq!(TreeHash::Whole.part(&key), crate::ring::hashed_part(&key));
    }
}

#[test]
fn a_prefix_decides_exactly_if_all_keys_that_begin_so_hash_alike() {
    let endings = keys(b"/{}x", 4);
    for hash in CHOICES {
        for prefix in keys(b"/{}x", 4) {
            let parts: BTreeSet<Vec<u8>> =
                endings.iter().map(|ending| hash.part(&[&prefix[..], ending].concat()).to_vec()).collect();
            match hash.part_of_prefix(&prefix) {
                Some(part) => assert_eq!(parts, BTreeSet::from([part.to_vec()]), "{hash:?} {prefix:?}"),
                None => assert!(parts.len() > 1, "{hash:?} {prefix:?} is always {parts:?}"),
            }
        }
    }
}

#[test]
fn all_keys_of_a_range_begin_with_what_is_said_to_be_common() {
    let all = keys(&[0, 1, 254, 255], 4);
    let bounds = keys(&[0, 1, 255], 3);
    let with = |key: &Vec<u8>| [Bound::Included(key.clone()), Bound::Excluded(key.clone())];
    let bounds: Vec<Bound<Vec<u8>>> = bounds.iter().flat_map(with).chain([Bound::Unbounded]).collect();
    for low in &bounds {
        for high in &bounds {
            let (low, high) = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
            let within = |key: &&Vec<u8>| {
                let key = key.as_slice();
                let from = match low {
                    Bound::Included(low) => key >= low,
                    Bound::Excluded(low) => key > low,
                    Bound::Unbounded => true,
                };
                let to = match high {
                    Bound::Included(high) => key <= high,
                    Bound::Excluded(high) => key < high,
                    Bound::Unbounded => true,
                };
                from && to
            };
            let common = common_prefix(low, high);
            for key in all.iter().filter(within) {
                assert!(key.starts_with(common), "{key:?} is in {low:?} to {high:?}, not below {common:?}");
            }
        }
    }
}

#[test]
fn the_range_of_a_prefix_has_that_prefix_in_common() {
    for prefix in keys(&[0, 7, 254, 255], 4) {
        let high = match prefix.iter().rposition(|byte| *byte != 255) {
            Some(last) => Bound::Excluded([&prefix[..last], &[prefix[last] + 1]].concat()),
            None => Bound::Unbounded,
        };
        let high = high.as_ref().map(Vec::as_slice);
        assert_eq!(common_prefix(Bound::Included(&prefix), high), prefix);
    }
    let (low, high): (&[u8], &[u8]) = (b"a/1", b"a/9");
    assert_eq!(common_prefix(Bound::Excluded(low), Bound::Included(high)), b"a/");
}

#[test]
fn a_stored_name_says_how_its_tree_is_hashed_and_keeps_its_bytes() {
    for hash in CHOICES {
        for name in ["", "chat", "__dogsled__hashed:"] {
            if hash == TreeHash::Slot || hash == TreeHash::Whole && name.starts_with("__") {
                continue;
            }
            let stored = hash.stored_name(name.as_bytes());
            assert_eq!(TreeHash::of_stored(&stored), (hash, name.as_bytes()));
        }
    }
    assert_eq!(TreeHash::Whole.stored_name(b"chat"), "chat");
    assert_eq!(TreeHash::First(258).stored_name(b"chat"), &b"__dogsled__hashed:\x01\x02\x01chat"[..]);
    let before = TreeHash::Before { delimiter: b'/', occurrence: 2 };
    assert_eq!(before.stored_name(b"chat"), &b"__dogsled__hashed:\x02/\x02chat"[..]);
    // Of Redis's databases the plain name says it.
    for name in [&b"redis"[..], b"redis:7"] {
        assert_eq!(TreeHash::Slot.stored_name(name), name);
        assert_eq!(TreeHash::of_stored(name), (TreeHash::Slot, name));
    }
    assert_eq!(crate::ring::group_in(b"redis", b"a{foo}b", 16), 1 + 12182 / 1024);
    // What is no choice is a name like others.
    assert_eq!(TreeHash::of_stored(b"__dogsled__hashed:\x03\0\0chat").0, TreeHash::Whole);
    let odd: &[u8] = b"__dogsled__hashed:\x02/\0chat";
    assert_eq!(TreeHash::of_stored(odd), (TreeHash::Whole, odd));
}
