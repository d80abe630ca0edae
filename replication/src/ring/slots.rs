//! Redis's slots, and the partitions that they lie in.
//!
//! Clients of a Redis cluster compute a **slot** of each key, CRC16 (XMODEM) of it or of its tag modulo 16,384, and know
//! of slots only which node has them. So that such a client can go straight to a leader, a slot has to lie in one
//! partition as a whole: trees that hold Redis's keys are hashed by [`TreeHash::Slot`](super::TreeHash::Slot).
//!
//! # Slots to partitions
//!
//! The slots are the hash space, cut as the [ring](super) cuts it: slot *s* is the hash *s* · 2⁵⁰, so that of *n* partitions
//! the first has the first 16,384/*n* slots, and so on. Every partition has **one range**, and none has over one slot more than
//! another. (Were the slot hashed once more, every range would be about one slot long, and the map that each client is
//! sent, again and again, ten thousand rows.) Of more than 16,384 partitions some have no slot.
//!
//! # Which trees
//!
//! The trees of Redis's databases, `redis` and `redis:1` and so on, always, by their names alone: nobody can choose another
//! hash for them. So there is no moment at which two nodes think differently of them, nothing to seal, nothing that
//! could fail when the first client comes.
//!
//! What has the same tag as a key of these trees, in another tree or as a lock or a counter, is of **another**
//! partition in general: what writes both is a transaction over two.

use std::ops::Range;

/// How many there are.
pub const SLOTS: u16 = 1 << 14;
/// Bits of a hash below those of the slot.
const BELOW: u32 = 64 - SLOTS.trailing_zeros();
/// The tree of database 0; another's has its number behind a colon.
const DATABASE: &[u8] = b"redis";

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

/// The slot of a key.
pub fn slot_of(key: &[u8]) -> u16 {
    slot_of_part(super::hashed_part(key))
}

/// The slot of what is hashed of a key.
pub(super) fn slot_of_part(part: &[u8]) -> u16 {
    crc16(part) % SLOTS
}

/// A slot's place in the hash space.
pub(super) fn hash(slot: u16) -> u64 {
    u64::from(slot) << BELOW
}

/// The group of a slot.
///
/// # Panics
/// If there is no partition.
pub fn group_of_slot(slot: u16, partitions: u32) -> u32 {
    super::slice(hash(slot), partitions)
}

/// The slots of a group; empty if it has none.
pub fn slots_of(group: u32, partitions: u32) -> Range<u16> {
    // The first slot whose place is not before the partition's.
    let first = |before: u32| {
        let place = (u64::from(before) * u64::from(SLOTS)).div_ceil(u64::from(partitions.max(1)));
        place.min(u64::from(SLOTS)) as u16
    };
    match group {
        super::META_GROUP => 0..0,
        _ => first(group - 1)..first(group),
    }
}

/// Whether a tree is hashed by slots: the keyspace of one of Redis's databases, or what is told to subscribers on a channel or of
/// a key. All that is done on a key or a channel, by whichever way, has to come to the same partition.
pub fn is_by_slot(tree: &[u8]) -> bool {
    match tree.strip_prefix(DATABASE) {
        Some([] | b":channels" | b":events") => true,
        Some([b':', number @ ..]) => !number.is_empty() && number.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Redis's specification of its cluster, and what `CLUSTER KEYSLOT` of Redis 7.0 says.
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        let cases: [(&str, u16); 12] = [
            ("", 0),
            ("foo", 12182),
            ("bar", 5061),
            ("hello", 866),
            ("123456789", 12739),
            ("{user1000}.following", 3443),
            ("{user1000}.followers", 3443),
            ("user1000", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
            ("{foo", 13308),
        ];
        for (key, slot) in cases {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn every_slot_lies_in_the_one_range_of_its_partition() {
        for partitions in [1, 2, 3, 7, 16, 64, 255, 1_000, 16_384, 20_000] {
            let mut next = 0;
            let (mut least, mut most) = (u16::MAX, 0);
            for group in 1..=partitions {
                let slots = slots_of(group, partitions);
                assert_eq!(slots.start, next, "group {group} of {partitions}");
                next = slots.end;
                (least, most) = (least.min(slots.len() as u16), most.max(slots.len() as u16));
                for slot in slots {
                    assert_eq!(group_of_slot(slot, partitions), group, "slot {slot} of {partitions}");
                }
            }
            assert_eq!(next, SLOTS);
            assert!(most - least <= 1, "{least} to {most} slots in {partitions} partitions");
        }
        assert!(slots_of(super::super::META_GROUP, 16).is_empty());
    }

    #[test]
    fn what_is_hashed_by_slots_is_told_by_its_name() {
        for tree in ["redis", "redis:1", "redis:15", "redis:channels", "redis:events"] {
            assert!(is_by_slot(tree.as_bytes()), "{tree}");
        }
        for tree in ["", "redi", "rediss", "redis:", "redis:x", "redis:1x", "redis/1"] {
            assert!(!is_by_slot(tree.as_bytes()), "{tree}");
        }
    }
}
