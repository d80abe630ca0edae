//! [`Pick`]: which of the instances to ask.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Instance;

/// Which of the instances to ask.
#[derive(Clone, Copy, Debug)]
pub enum Pick<'a> {
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one of which the fewest are in use through this resolver: [`Picked`] counts.
    LeastOutstanding,
    /// The same for the same key, as long as it is there: when an instance comes or goes, only its own share of
    /// the keys moves. All resolvers agree.
    Key(&'a [u8]),
}

/// An instance, and how many use it.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) instance: Arc<Instance>,
    pub(crate) outstanding: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.instance.fmt(f)
    }
}

/// An instance that is in use until this is dropped; from [`Resolver::pick`](crate::Resolver::pick).
#[derive(Debug)]
pub struct Picked {
    instance: Arc<Instance>,
    outstanding: Arc<AtomicUsize>,
}

impl Deref for Picked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose turn it is, and chance.
pub(crate) struct Picker {
    turn: AtomicUsize,
    random: Mutex<u64>,
}

impl Picker {
    /// Which begins somewhere, so that not all begin with the same.
    pub(crate) fn new(turn: usize, random: u64) -> Picker {
        Picker { turn: AtomicUsize::new(turn), random: Mutex::new(random) }
    }

    /// One of those that are such.
    pub(crate) fn pick<'k>(
        &self,
        instances: impl Iterator<Item = &'k Known>,
        how: Pick<'_>,
        is_fit: impl Fn(&Instance) -> bool,
    ) -> Option<Picked> {
        let fit: Vec<&Known> = instances.filter(|known| is_fit(&known.instance)).collect();
        if fit.is_empty() {
            return None;
        }
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        let picked = match how {
            Pick::RoundRobin => fit[turn() % fit.len()],
            Pick::Random => fit[(self.random() % fit.len() as u64) as usize],
            Pick::LeastOutstanding => {
                // Those with equally few take turns.
                let first = turn();
                let in_turn = (0..fit.len()).map(|i| fit[first.wrapping_add(i) % fit.len()]);
                in_turn.min_by_key(|known| known.outstanding.load(Ordering::Relaxed))?
            }
            Pick::Key(key) => fit.into_iter().max_by_key(|known| score(&known.instance.id, key))?,
        };
        picked.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(Picked { instance: Arc::clone(&picked.instance), outstanding: Arc::clone(&picked.outstanding) })
    }

    fn random(&self) -> u64 {
        let mut state = self.random.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(*state)
    }
}

/// The key goes to the instance with the highest score of all: rendezvous hashing (Thaler and Ravishankar,
/// 1998). It needs no ring and no table, and every instance gets its share of a lost one's keys.
fn score(id: &str, key: &[u8]) -> u64 {
    // FNV-1a, with the length between the two, so that no two pairs are one text; then mixed, because the highest
    // bits decide.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in (id.len() as u64).to_le_bytes().iter().chain(id.as_bytes()).chain(key) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// splitmix64's.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Among(Vec<Known>, Picker);

    impl Among {
        fn pick(&self, how: Pick<'_>) -> Option<Picked> {
            self.pick_where(how, |_| true)
        }

        fn pick_where(&self, how: Pick<'_>, is_fit: impl Fn(&Instance) -> bool) -> Option<Picked> {
            self.1.pick(self.0.iter(), how, is_fit)
        }
    }

    fn among(ids: impl IntoIterator<Item = u32>) -> Among {
        let known = ids.into_iter().map(|id| Known {
            instance: Arc::new(Instance::new(id.to_string(), "").tag(if id % 2 == 0 {
                "even"
            } else {
                "odd"
            })),
            outstanding: Arc::default(),
        });
        Among(known.collect(), Picker::new(0, 1))
    }

    fn counts(
        resolver: &Among,
        how: impl Fn(u32) -> Vec<u8>,
        pick: fn(&[u8]) -> Pick<'_>,
    ) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for i in 0..10_000 {
            let picked = resolver.pick(pick(&how(i))).unwrap();
            *counts.entry(picked.id.clone()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn each_way_of_picking_spreads_over_all() {
        let resolver = among(0..10);
        let key = |i: u32| i.to_le_bytes().to_vec();
        assert!(counts(&resolver, key, |_| Pick::RoundRobin).values().all(|count| *count == 1_000));
        for pick in [(|_| Pick::Random) as fn(&[u8]) -> Pick<'_>, |key| Pick::Key(key)] {
            let counts = counts(&resolver, key, pick);
            assert_eq!(counts.len(), 10);
            assert!(counts.values().all(|count| (800..1_200).contains(count)), "{counts:?}");
        }
        assert_eq!(
            resolver.pick_where(Pick::Random, |it| it.has_tag("even")).map(|it| it.has_tag("odd")),
            Some(false)
        );
        assert!(resolver.pick_where(Pick::RoundRobin, |it| it.has_tag("neither")).is_none());
        assert!(among(0..0).pick(Pick::Key(b"k")).is_none());
    }

    #[test]
    fn the_one_with_the_fewest_in_use_is_picked() {
        let resolver = among(0..3);
        let pick = || resolver.pick(Pick::LeastOutstanding).unwrap();
        let held: Vec<Picked> = (0..9).map(|_| pick()).collect();
        let of = |id: &str| held.iter().filter(|picked| picked.id == id).count();
        assert_eq!((of("0"), of("1"), of("2")), (3, 3, 3));
        let (first, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(|picked| picked.id == "1");
        drop(first);
        let again: Vec<Picked> = (0..3).map(|_| pick()).collect();
        assert!(again.iter().all(|picked| picked.id == "1"), "{again:?}");
        drop(rest);
    }

    #[test]
    fn when_an_instance_goes_only_its_own_keys_move() {
        let (before, after) = (among(0..10), among((0..10).filter(|id| *id != 4)));
        let mut moved = 0;
        for i in 0..10_000u32 {
            let key = i.to_le_bytes();
            let (was, is) = (before.pick(Pick::Key(&key)).unwrap(), after.pick(Pick::Key(&key)).unwrap());
            if was.id == "4" {
                moved += 1;
            } else {
                assert_eq!(was.id, is.id, "key {i}");
            }
        }
        assert!((800..1_200).contains(&moved), "{moved}");
        assert_eq!(score("billing", b"k"), 7_300_537_773_650_108_810, "all versions agree");
    }
}
