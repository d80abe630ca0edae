//! Keys and values: made from their number, never stored.
//!
//! Entry `i` always has the same 16-byte key, which looks random (so that neighbours in `i` are strangers in
//! the tree). Its 100-byte value depends on `i` and on a *round*, which an overwrite raises, and does not
//! compress. Because both are functions, any process can check what any other process has stored, and no
//! contestant's memory figure contains our own table of keys.
//!
//! The first eight bytes of a value double as the balance of an account (see [`balance`]).

/// Bytes in a key.
pub const KEY_BYTES: usize = 16;
/// Bytes in a value.
pub const VALUE_BYTES: usize = 100;
/// Bytes of key and value together.
pub const ENTRY_BYTES: u64 = (KEY_BYTES + VALUE_BYTES) as u64;

/// A key.
pub type Key = [u8; KEY_BYTES];
/// A value.
pub type Value = [u8; VALUE_BYTES];
/// A key with its value.
pub type Entry = (Key, Value);

/// SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits, a nanosecond each.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of entry `i`. Distinct for distinct `i`, because `mix` is a bijection.
pub fn key(i: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&mix(i).to_be_bytes());
    key[8..].copy_from_slice(&mix(i ^ 0x5555_5555_5555_5555).to_be_bytes());
    key
}

/// The value of entry `i` after `round` overwrites.
pub fn value(i: u64, round: u64) -> Value {
    let mut value = [0; VALUE_BYTES];
    let mut rng = Rng::new(mix(i) ^ round.rotate_left(32));
    let (words, rest) = value.as_chunks_mut::<8>();
    for word in words {
        *word = rng.next_u64().to_le_bytes();
    }
    rest.copy_from_slice(&rng.next_u64().to_le_bytes()[..rest.len()]);
    value
}

/// Entry `i` after `round` overwrites.
pub fn entry(i: u64, round: u64) -> Entry {
    (key(i), value(i, round))
}

/// The balance that a value holds: its first eight bytes.
pub fn balance(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().expect("eight bytes"))
}

/// `value` with another balance.
pub fn with_balance(value: &[u8], balance: u64) -> Value {
    let mut value: Value = value.try_into().expect("a value of the fixed size");
    value[..8].copy_from_slice(&balance.to_le_bytes());
    value
}

/// A small deterministic generator: the same seed gives every contestant the same operations.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(mix(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, close enough to uniform for `n` far below 2⁶⁴.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

/// What reading touched. Every contestant does this same work for each entry it reads, so that none can win
/// by not looking at the bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// Entries seen.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Sum of the first bytes of keys and values: a cheap checksum that forces a load from each.
    pub first_bytes: u64,
}

impl Touched {
    /// Counts one entry.
    #[inline]
    pub fn entry(&mut self, key: &[u8], value: &[u8]) {
        self.entries += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.first_bytes += u64::from(key[0]) + u64::from(value[0]);
    }

    /// Counts one value.
    #[inline]
    pub fn value(&mut self, value: &[u8]) {
        self.entries += 1;
        self.bytes += value.len() as u64;
        self.first_bytes += u64::from(value[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_depends_on_its_number_and_round() {
        assert_eq!(value(7, 1), value(7, 1));
        assert_ne!(value(7, 1), value(7, 2));
        assert_ne!(value(7, 1), value(8, 1));
    }

    #[test]
    fn a_balance_can_be_replaced_alone() {
        let before = value(3, 0);
        let after = with_balance(&before, 42);
        assert_eq!(balance(&after), 42);
        assert_eq!(before[8..], after[8..]);
    }

    #[test]
    fn random_numbers_stay_below_their_bound() {
        let mut rng = Rng::new(1);
        assert!((0..10_000).all(|_| rng.below(10) < 10));
    }
}
