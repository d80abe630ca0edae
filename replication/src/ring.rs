//! Which partition a key belongs to.
//!
//! The 64-bit hash space is cut into equal partitions, as many as the cluster was made with. The hash
//! is **XXH3 (64 bit) with seed 0** of the key, or of its tag; this, what a tag is, and the cut are
//! fixed for ever, because data lies where they put it. The tree's name is not hashed: a key has the
//! same partition in every tree, so what belongs together can be written together.
//!
//! A **tag** is what stands between the first `{` and the first `}` behind it, if that is not empty:
//! `{user:7}:name` and `{user:7}:mail` share a partition.

use twox_hash::XxHash3_64;

/// Group 0 is not a partition.
pub const META_GROUP: u32 = 0;

/// The part of a key that is hashed.
pub fn hashed_part(key: &[u8]) -> &[u8] {
    if let Some(open) = key.iter().position(|byte| *byte == b'{')
        && let Some(length) = key[open + 1..].iter().position(|byte| *byte == b'}')
        && length > 0
    {
        return &key[open + 1..open + 1 + length];
    }
    key
}

/// A key's place in the hash space.
pub fn hash(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(hashed_part(key))
}

/// The group of a key among so many partitions.
///
/// # Panics
/// If there is no partition.
pub fn group_of(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a cluster has at least one partition");
    // The upper bits of hash × partitions: equal slices in the order of the hashes.
    let slice = (u128::from(hash(key)) * u128::from(partitions)) >> 64;
    1 + slice as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_keys_are_fixed_for_ever() {
        for (key, hash_of_key, group) in GOLDEN {
            assert_eq!((hash(key.as_bytes()), group_of(key.as_bytes(), 16)), (hash_of_key, group), "{key}");
        }
    }

    const GOLDEN: [(&str, u64, u32); 4] = [
        ("", 0x2d06_8005_38d3_94c2, 3),
        ("a", 0xe6c6_32b6_1e96_4e1f, 15),
        ("abc", 0x78af_5f94_892f_3950, 8),
        ("{abc}:anything", 0x78af_5f94_892f_3950, 8),
    ];

    #[test]
    fn tags() {
        let cases: [(&str, &str); 7] = [
            ("{user:7}:name", "user:7"),
            ("a{b}c", "b"),
            ("{}a", "{}a"),
            ("a{b", "a{b"),
            ("a}b{c", "a}b{c"),
            ("{{a}}", "{a"),
            ("{}{a}", "{}{a}"),
        ];
        for (key, part) in cases {
            assert_eq!(hashed_part(key.as_bytes()), part.as_bytes(), "{key}");
        }
    }

    #[test]
    fn every_partition_has_its_share() {
        for partitions in [1, 3, 16, 1000] {
            let mut keys = vec![0; partitions as usize + 1];
            for key in 0u64..50_000 {
                keys[group_of(&key.to_be_bytes(), partitions) as usize] += 1;
            }
            assert_eq!(keys[0], 0);
            let mean = 50_000 / partitions;
            assert!(keys[1..].iter().all(|keys| *keys > mean / 2 && *keys < 2 * mean), "{keys:?}");
        }
    }
}
