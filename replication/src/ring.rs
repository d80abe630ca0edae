//! Which partition a key belongs to, and which members hold a partition. Pure: no clock, no I/O.
//!
//! # Keys to partitions
//!
//! The 64-bit hash space is cut into equal partitions, as many as the cluster was made with. The hash
//! is **XXH3 (64 bit) with seed 0** of the key, or of its tag; this, what a tag is, and the cut are
//! fixed for ever, because data lies where they put it. The tree's name is not hashed: a key has the
//! same partition in every tree, so what belongs together can be written together.
//!
//! A **tag** is what stands between the first `{` and the first `}` behind it, if that is not empty:
//! `{user:7}:name` and `{user:7}:mail` share a partition.
//!
//! For each tree it can be chosen once that a prefix of the key is hashed instead, so that a scan of a prefix
//! is of one partition: [`TreeHash`]. The trees of Redis's databases are hashed by Redis's [`slots`]. (A key has the same partition in all trees that are hashed alike.)
//!
//! # Partitions to members
//!
//! Consistent hashing (Karger et al., 1997) gives every member a number of **virtual points** on the
//! circle of hashes, and a partition to the members met first, clockwise from where it begins. Who
//! joins takes a place between others and disturbs nobody else. What it does not give is balance: with
//! v points each, loads still differ by about 1/√v, and with replicas on distinct members and in
//! distinct zones by more. Bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018) repair that: a
//! member that has its share is passed over. But then a placement that is computed from the members
//! alone cascades: who joins relieves some, whose room attracts partitions of others, and so on. So
//! here the ring, the bound and the past share the work:
//!
//! - **The previous placement decides who stays.** [`Placement::rebalance`] is a function of it, the
//!   members and the number of replicas. The meta group keeps the placement, so that everybody
//!   computes the same next one.
//! - **The ring decides preferences**: where a replica goes that needs a place, and which partitions a
//!   member takes when it joins.
//! - **The share decides how many.** Each member's share is proportional to its weight, by exact
//!   arithmetic; [`Member`] says what limits it.
//! - **What the ring cannot place is repaired by flows.** Replicas are units of flow from partitions to
//!   members. A replica that finds no member with room takes the cheapest path of exchanges that ends
//!   at one, where an exchange of what is placed anew anyway costs nothing. Since the shares are a
//!   fractional solution, whole numbers next to them are one too, and such a path always exists:
//!   the bounds below are kept always, not usually.
//!
//! # Promises
//!
//! For every placement that comes out, and checked by [`Placement::check_invariants`]:
//!
//! - Each partition has exactly as many replicas as asked for, on distinct members of weight above 0.
//! - They are spread over as many zones as there are: if *d* is the smallest number with which they can
//!   be placed with at most *d* of a partition in a zone, then no zone has more. With as many zones as
//!   replicas that is one in each. This comes before balance: see [`Member::zone`].
//! - A member holds at least its share less a sixteenth, rounded down, and at most its share and a
//!   sixteenth more, rounded up. Placements aim at the share itself, and those made from nothing have
//!   it, rounded down or up; the margin is what moving nothing needlessly may cost.
//! - The preferred leaders are as even: a member has its replicas divided by the number of replicas,
//!   rounded down or up ([`Placement::preferred_leader`]). Which these are follows what there is to do:
//!   [`load`].
//!
//! And for every step from one to the next:
//!
//! - A join moves what the new member receives, a leave what the old one had, a change of weight what
//!   the share changed by, if that is more than the margin. No replica moves between other members,
//!   unless otherwise one would be beyond its bounds. The tests search all ways for one without: when
//!   members join or leave a single zone there is none that would have moved less; of all steps, zones
//!   and weights changing wildly, there is one for 1 of 100 at most. A change in the number of zones or
//!   of replicas moves what spreading over them needs.
//!
//! A different history can give a different placement of the same members. That is the price of moving
//! nothing that need not move, and why the placement is stored and not recomputed.

#[cfg(test)]
mod histories;
mod leaders;
pub mod load;
mod placement;
mod points;
mod rebalance;
mod share;
pub mod slots;
pub mod tree_hash;

pub use placement::{Change, Member, Placement, RingError};

pub use tree_hash::{TreeHash, group_in};
use twox_hash::XxHash3_64;

/// Group 0 is not a partition.
pub const META_GROUP: u32 = 0;

/// The part of a key that is hashed.
pub fn hashed_part(key: &[u8]) -> &[u8] {
    tag(key).unwrap_or(key)
}

/// What is between the first brace and the next that closes it, if that is something.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[open + 1..open + 1 + length])
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
    slice(hash(key), partitions)
}

/// The group of a hash.
fn slice(hash: u64, partitions: u32) -> u32 {
    assert!(partitions > 0, "a cluster has at least one partition");
    // The upper bits of hash × partitions: equal slices in the order of the hashes.
    let slice = (u128::from(hash) * u128::from(partitions)) >> 64;
    1 + slice as u32
}

/// The group of all keys that begin with `prefix`, if it must be one: if there is a whole tag in it.
///
/// # Panics
/// If there is no partition.
pub fn group_of_prefix(prefix: &[u8], partitions: u32) -> Option<u32> {
    tag(prefix).map(|_| group_of(prefix, partitions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_under_a_prefix_with_a_whole_tag_are_of_one_group() {
        for prefix in ["{a}", "{user:7}:", "x{a}y{", "{a}{b}"] {
            let group = group_of_prefix(prefix.as_bytes(), 1000).unwrap();
            for rest in ["", "1", "}", "{z}", "}{z}"] {
                assert_eq!(group_of(format!("{prefix}{rest}").as_bytes(), 1000), group, "{prefix}{rest}");
            }
        }
        for prefix in ["", "a", "{", "{a", "{}", "a}", "{}{a}"] {
            assert_eq!(group_of_prefix(prefix.as_bytes(), 1000), None, "{prefix}");
        }
    }

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
