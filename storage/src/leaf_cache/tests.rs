//! Random operations against a `BTreeMap`, edges of intervals, and concurrent readers.
//!
//! Faults put in on purpose, each caught: the end of an interval taken as inclusive, a miss beyond
//! the last entry answered without looking at the interval's end, equal slots not compared further,
//! a removed entry kept when merging, the last merged block not closed, bytes not given back.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::AtomicBool;

use super::*;

type Model = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;
type Change = (Vec<u8>, Option<(u64, IVec)>);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The shapes of keys that go different ways through the searches.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// 0 to 5 bytes of 00, 01, fe, ff: empty keys, prefixes of others, ends of the key space.
    Edges,
    /// 16 random bytes, of which few differ.
    Spread,
    /// 40 bytes in common, then decimal digits.
    LongPrefix,
    /// Groups with 8 bytes in common, told apart only after 12 more.
    EqualPrefixes,
    /// 8-byte counters.
    Counters,
}

const ALL_KEYS: [Keys; 5] =
    [Keys::Edges, Keys::Spread, Keys::LongPrefix, Keys::EqualPrefixes, Keys::Counters];

impl Keys {
    fn draw(self, random: &mut Random) -> Vec<u8> {
        match self {
            Keys::Edges => {
                let length = random.below(6);
                (0..length).map(|_| [0, 1, 0xfe, 0xff][random.below(4)]).collect()
            }
            Keys::Spread => {
                let mut seed = Random(random.next() % 20_000);
                [seed.next().to_be_bytes(), seed.next().to_be_bytes()].concat()
            }
            Keys::LongPrefix => {
                format!("{:0>40}{:05}", "a/rather/long/path/", random.below(20_000)).into_bytes()
            }
            Keys::EqualPrefixes => {
                let number = random.below(5_000);
                format!("group{:03}............{:04}", number % 4, number / 4).into_bytes()
            }
            Keys::Counters => (random.below(20_000) as u64).to_be_bytes().to_vec(),
        }
    }

    fn value(self, random: &mut Random) -> IVec {
        let length = match random.below(40) {
            0 => 3_000,
            1 => 1_500,
            _ => random.below(120),
        };
        let byte = random.next() as u8;
        IVec::from(vec![byte; length])
    }
}

/// A block of all that is in `model` in the interval.
fn block_of(model: &Model, low: &[u8], high: Option<&[u8]>) -> Block {
    let mut builder = BlockBuilder::new(low);
    let upper = high.map_or(Bound::Unbounded, Bound::Excluded);
    for (key, (version, value)) in model.range::<[u8], _>((Bound::Included(low), upper)) {
        builder.push(key, &[&version.to_le_bytes()[..], value].concat());
    }
    builder.finish(high.map(IVec::from))
}

/// Fills the gap around `key`, if there is one, with about `entries` entries or up to its ends.
fn fill(cache: &LeafCache, model: &Model, key: &[u8], random: &mut Random) {
    let Some(gap) = cache.gap(key) else { return };
    assert!(&gap.low[..] <= key && gap.high.as_ref().is_none_or(|high| key < &high[..]), "{gap:?}");
    let before = random.below(30);
    let after = 1 + random.below(60);
    let lower = model.range::<[u8], _>((Bound::Included(&gap.low[..]), Bound::Excluded(key)));
    let low = lower.rev().nth(before).map_or(gap.low.to_vec(), |(key, _)| key.clone());
    let upper = gap.high.as_ref().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
    let mut higher = model.range::<[u8], _>((Bound::Excluded(key), upper));
    let high = higher.nth(after).map(|(key, _)| IVec::from(&key[..])).or(gap.high);
    assert!(cache.insert(block_of(model, &low, high.as_deref())), "the gap was free");
    assert_eq!(cache.gap(key).is_some(), cache.block_at(key).is_none());
}

fn check_get(cache: &LeafCache, model: &Model, key: &[u8]) -> bool {
    let covered = cache.gap(key).is_none();
    let expected = match model.get(key) {
        _ if !covered => Lookup::Unknown,
        Some((version, value)) => Lookup::Found { version: *version, value: IVec::from(&value[..]) },
        None => Lookup::Absent,
    };
    assert_eq!(cache.get(key), expected, "{key:?}");
    let version = match &expected {
        Lookup::Found { version, .. } => Lookup::Found { version: *version, value: () },
        Lookup::Absent => Lookup::Absent,
        Lookup::Unknown => Lookup::Unknown,
    };
    assert_eq!(cache.get_version(key), version);
    assert_eq!(cache.read(key, |value| IVec::from(value)), expected);
    assert_eq!(cache.contains(key), covered.then(|| model.contains_key(key)));
    covered
}

fn check_block(block: &Block, model: &Model) {
    let upper = block.high().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
    let expected: Vec<_> = model.range::<[u8], _>((Bound::Included(&block.low()[..]), upper)).collect();
    assert_eq!(block.len(), expected.len(), "{block:?}");
    for (position, (key, (version, value))) in expected.into_iter().enumerate() {
        assert_eq!(block.key(position), key);
        assert_eq!(block.value(position), value);
        assert_eq!(block.value_len(position), value.len());
        assert_eq!(block.version(position), *version);
        assert_eq!(block.entry(position), (IVec::from(&key[..]), *version, IVec::from(&value[..])));
    }
}

/// Walks all blocks, up and down, through the public doors only.
fn check_walks(cache: &LeafCache, model: &Model) {
    let mut up = Vec::new();
    let mut key = IVec::new();
    loop {
        let end = if let Some(block) = cache.block_at(&key) {
            assert!(cache.gap(&key).is_none());
            check_block(&block, model);
            up.push((block.low().clone(), block.high().cloned()));
            block.high().cloned()
        } else {
            let gap = cache.gap(&key).expect("no block");
            assert_eq!(gap.low, key, "a gap begins where the block before ends");
            gap.high
        };
        match end {
            Some(end) => key = end,
            None => break,
        }
    }
    let mut down = Vec::new();
    let mut key = None;
    loop {
        if let Some(block) = cache.block_before(key.as_deref()) {
            down.push((block.low().clone(), block.high().cloned()));
            key = Some(block.low().clone());
        } else if key.as_ref().is_some_and(|key| key.is_empty()) {
            break;
        } else {
            // Over the gap: to the end of the block before, found from the blocks seen.
            let below = up
                .iter()
                .rev()
                .find_map(|(_, high)| high.clone().filter(|high| key.as_ref().is_none_or(|key| high < key)));
            let Some(below) = below else { break };
            assert!(cache.gap(&below).is_some(), "a gap, as no block was found");
            key = Some(below);
        }
    }
    down.reverse();
    assert_eq!(up, down);
}

fn random_changes(keys: Keys, model: &Model, version: u64, random: &mut Random) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    let count = [1, 5, 50, 800][random.below(4)];
    for _ in 0..count {
        let put = random.below(3) > 0;
        changes.insert(keys.draw(random), put.then(|| (version, keys.value(random))));
    }
    if random.below(4) == 0 {
        // A whole range goes.
        let from = keys.draw(random);
        for (key, _) in model.range(from..).take(random.below(400)) {
            changes.insert(key.clone(), None);
        }
    }
    changes.into_iter().collect()
}

fn apply(cache: &LeafCache, changes: &[Change], share: bool) -> LeafCache {
    let put =
        |change: &'_ Option<(u64, IVec)>| change.as_ref().map(|(version, value)| (*version, value.clone()));
    let owned: Vec<_> = changes.iter().map(|(key, change)| (key, put(change))).collect();
    if share {
        cache.apply(
            owned.iter().map(|(key, change)| (&key[..], change.as_ref().map(|(v, value)| (*v, value)))),
        )
    } else {
        cache.apply(
            owned.iter().map(|(key, change)| (&key[..], change.as_ref().map(|(v, value)| (*v, &value[..])))),
        )
    }
}

fn apply_to_model(model: &mut Model, changes: &[Change]) {
    for (key, change) in changes {
        match change {
            Some((version, value)) => model.insert(key.clone(), (*version, value.to_vec())),
            None => model.remove(key),
        };
    }
}

fn random_operations(keys: Keys, seed: u64, steps: usize) {
    println!("replay: random_operations({keys:?}, {seed}, {steps})");
    let mut random = Random(seed);
    let budget = CacheBudget::new(usize::MAX);
    let mut model = Model::new();
    let mut cache = LeafCache::new(Arc::clone(&budget));
    if random.below(2) == 0 {
        cache = LeafCache::new_empty_tree(Arc::clone(&budget));
    } else {
        for _ in 0..random.below(6_000) {
            model.insert(keys.draw(&mut random), (0, keys.value(&mut random).to_vec()));
        }
    }
    let mut old: Vec<(LeafCache, Model)> = Vec::new();
    let mut covered = 0;
    for step in 1..=steps {
        match random.below(20) {
            0..4 => {
                let changes = random_changes(keys, &model, step as u64, &mut random);
                let next = apply(&cache, &changes, random.below(2) == 0);
                let before = std::mem::replace(&mut cache, next);
                let version = (before, model.clone());
                apply_to_model(&mut model, &changes);
                if old.len() < 3 {
                    old.push(version);
                } else if random.below(3) == 0 {
                    let at = random.below(3);
                    old[at] = version;
                }
            }
            4 => {
                let limit = budget.used() - random.below(cache.bytes() / 2 + 1);
                budget.set_limit(limit);
                let before = cache.bytes();
                let excess = budget.excess();
                cache.evict_to_budget();
                budget.set_limit(usize::MAX);
                assert!(cache.bytes() + excess <= before, "{excess} of {before} bytes not evicted");
            }
            5..14 => fill(&cache, &model, &keys.draw(&mut random), &mut random),
            _ => {
                for _ in 0..20 {
                    covered += usize::from(check_get(&cache, &model, &keys.draw(&mut random)));
                }
            }
        }
        // Old versions are filled too, and stay what they were.
        if let Some((cache, model)) = old.first() {
            fill(cache, model, &keys.draw(&mut random), &mut random);
        }
        if step % 20 == 0 {
            let now = [(&cache, &model)];
            for (cache, model) in old.iter().map(|(cache, model)| (cache, model)).chain(now) {
                cache.check_invariants();
                check_walks(cache, model);
                for _ in 0..50 {
                    check_get(cache, model, &keys.draw(&mut random));
                }
            }
        }
    }
    assert!(covered > steps / 10, "only {covered} gets met a block");
    drop((cache, old));
    assert_eq!(budget.used(), 0, "all is given back");
}

#[test]
fn random_operations_agree_with_a_map() {
    for (number, keys) in ALL_KEYS.into_iter().enumerate() {
        for round in 0..6 {
            random_operations(keys, round * 100 + number as u64, 300);
        }
    }
}

#[test]
fn an_empty_tree_knows_that_every_key_is_absent() {
    let budget = CacheBudget::new(1 << 20);
    let cache = LeafCache::new_empty_tree(Arc::clone(&budget));
    for key in [&b""[..], b"\0", b"a", &[0xff; 40]] {
        assert_eq!(cache.get(key), Lookup::Absent);
        assert_eq!(cache.gap(key), None);
    }
    assert!(cache.block_at(b"").expect("all is covered").is_empty());
    assert!(cache.block_before(None).expect("all is covered").high().is_none());
    assert!(!cache.insert(BlockBuilder::new(b"a").finish(None)), "it is covered already");
    assert_eq!(budget.used(), cache.bytes());
}

#[test]
fn a_new_cache_knows_nothing() {
    let cache = LeafCache::new(CacheBudget::new(1 << 20));
    assert_eq!(cache.get(b""), Lookup::Unknown);
    assert_eq!(cache.contains(b"k"), None);
    assert!(cache.block_at(b"k").is_none());
    assert!(cache.block_before(None).is_none());
    assert!(cache.block_before(Some(b"k")).is_none());
    assert_eq!(cache.gap(b"k"), Some(Gap { low: IVec::new(), high: None }));
    let next = cache.apply([(&b"k"[..], Some((1, &b"v"[..])))].into_iter());
    assert_eq!(next.get(b"k"), Lookup::Unknown, "a change in a gap is dropped");
    cache.evict_to_budget();
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn an_interval_includes_its_low_end_and_excludes_its_high_end() {
    let cache = LeafCache::new(CacheBudget::new(1 << 20));
    let mut builder = BlockBuilder::new(b"b");
    builder.push(b"b", b"\x07\0\0\0\0\0\0\0value");
    builder.push(b"bb", b"\x08\0\0\0\0\0\0\0");
    assert!(cache.insert(builder.finish(Some(IVec::from(b"d")))));
    assert_eq!(cache.get(b"a\xff"), Lookup::Unknown);
    assert_eq!(cache.get(b"b"), Lookup::Found { version: 7, value: IVec::from(b"value") });
    assert_eq!(cache.get(b"b\0"), Lookup::Absent);
    assert_eq!(cache.get(b"bb"), Lookup::Found { version: 8, value: IVec::new() });
    assert_eq!(cache.get(b"c\xff\xff"), Lookup::Absent);
    assert_eq!(cache.get(b"d"), Lookup::Unknown);
    assert_eq!(cache.get(b"d\0"), Lookup::Unknown);
    assert!(cache.block_before(Some(b"b")).is_none(), "the keys below b are not in [b, d)");
    assert!(cache.block_before(Some(b"b\0")).is_some());
    assert!(cache.block_before(Some(b"d")).is_some());
    assert!(cache.block_before(Some(b"d\0")).is_none());
    assert!(cache.block_before(None).is_none());
    assert_eq!(cache.gap(b"a"), Some(Gap { low: IVec::new(), high: Some(IVec::from(b"b")) }));
    assert_eq!(cache.gap(b"d"), Some(Gap { low: IVec::from(b"d"), high: None }));

    // Overlaps are refused, neighbours are not.
    for (low, high) in [(&b""[..], Some(&b"b\0"[..])), (b"b", Some(b"d")), (b"c", None), (b"", None)] {
        assert!(!cache.insert(BlockBuilder::new(low).finish(high.map(IVec::from))), "{low:?} {high:?}");
    }
    assert!(cache.insert(BlockBuilder::new(b"").finish(Some(IVec::from(b"b")))));
    assert!(cache.insert(BlockBuilder::new(b"d").finish(None)));
    assert_eq!(cache.get(b""), Lookup::Absent);
    assert_eq!(cache.get(&[0xff; 300]), Lookup::Absent);
    cache.check_invariants();
}

#[test]
fn seeks_among_equal_prefixes_and_around_common_ones() {
    let mut builder = BlockBuilder::new(b"");
    let mut keys: Vec<Vec<u8>> =
        (0..300u16).map(|n| [&b"common-12345678"[..], &n.to_be_bytes()].concat()).collect();
    keys.push(b"common-12345679".to_vec());
    keys.push(b"common-12345679\0".to_vec());
    keys.push(b"common-12345679\0\0".to_vec());
    for key in &keys {
        builder.push_value(key, 1, &b"v"[..]);
    }
    let block = builder.finish(None);
    block.check_invariants();
    let mut wanted = keys.clone();
    for key in &keys {
        wanted.push([key, &b"\0"[..]].concat());
        wanted.push(key[..key.len() - 1].to_vec());
    }
    wanted.extend([b"".to_vec(), b"common".to_vec(), b"a".to_vec(), b"d".to_vec(), vec![0xff; 20]]);
    for key in wanted {
        assert_eq!(block.seek(&key), keys.partition_point(|other| *other < key), "{key:?}");
    }
}

#[test]
fn long_values_are_shared_and_short_ones_copied() {
    let cache = LeafCache::new_empty_tree(CacheBudget::new(1 << 20));
    let (short, medium, long) =
        (IVec::from(vec![1; 100]), IVec::from(vec![2; 1500]), IVec::from(vec![3; 5000]));
    let changes = [("a", &short), ("b", &medium), ("c", &long)];
    let cache = cache.apply(changes.into_iter().map(|(key, value)| (key.as_bytes(), Some((1, value)))));
    let address = |key: &str| match cache.get(key.as_bytes()) {
        Lookup::Found { value, .. } => value.as_ptr(),
        other => panic!("{other:?}"),
    };
    assert_eq!(address("c"), long.as_ptr(), "shared with the writer");
    let block = cache.block_at(b"a").expect("covered");
    assert_eq!(address("b"), block.value(1).as_ptr(), "shared with the block");
    assert_ne!(address("a"), block.value(0).as_ptr());
    assert_eq!(block.entry(0).2.as_ptr(), block.value(0).as_ptr());
    let next = cache.apply([(&b"a"[..], None::<(u64, &[u8])>)].into_iter());
    let moved = next.block_at(b"a").expect("covered");
    assert_eq!(moved.value(1).as_ptr(), long.as_ptr(), "and with the next version");
}

#[test]
fn a_version_keeps_what_it_shares_and_gives_the_rest_back() {
    let budget = CacheBudget::new(usize::MAX);
    let model: Model = (0..20_000u32).map(|n| (n.to_be_bytes().to_vec(), (1, vec![7; 50]))).collect();
    let first = LeafCache::new_empty_tree(Arc::clone(&budget))
        .apply(model.iter().map(|(key, (version, value))| (&key[..], Some((*version, &value[..])))));
    first.check_invariants();
    assert_eq!(budget.used(), first.bytes());
    let touched = 777u32.to_be_bytes();
    let second = first.apply([(&touched[..], Some((2, &b"new"[..])))].into_iter());
    let added = budget.used() - first.bytes();
    assert!(added < 16 << 10, "one block was rebuilt, not {added} bytes");
    assert_eq!(first.get_version(&touched), Lookup::Found { version: 1, value: () });
    assert_eq!(second.get_version(&touched), Lookup::Found { version: 2, value: () });
    let reader = first.block_at(&touched).expect("covered");
    drop(first);
    assert_eq!(budget.used(), second.bytes() + reader.memory());
    drop(reader);
    assert_eq!(budget.used(), second.bytes());
    drop(second);
    assert_eq!(budget.used(), 0);
}

#[test]
fn removing_everything_leaves_few_empty_blocks() {
    let budget = CacheBudget::new(usize::MAX);
    let keys: Vec<[u8; 4]> = (0..50_000u32).map(u32::to_be_bytes).collect();
    let cache = LeafCache::new_empty_tree(Arc::clone(&budget));
    let full = cache.apply(keys.iter().map(|key| (&key[..], Some((1, &b"value"[..])))));
    let empty = full.apply(keys.iter().map(|key| (&key[..], None::<(u64, &[u8])>)));
    empty.check_invariants();
    assert!(empty.bytes() < 1000, "{empty:?}");
    assert_eq!(empty.get(&keys[77]), Lookup::Absent);
    // The same in many slices.
    let mut cache = full;
    for slice in keys.chunks(1000) {
        cache = cache.apply(slice.iter().map(|key| (&key[..], None::<(u64, &[u8])>)));
    }
    cache.check_invariants();
    assert!(cache.bytes() < 20_000, "{cache:?}");
}

#[test]
fn evicts_what_was_not_of_use() {
    let budget = CacheBudget::new(usize::MAX);
    let model: Model = (0..20_000u32).map(|n| (n.to_be_bytes().to_vec(), (1, vec![7; 50]))).collect();
    let cache = LeafCache::new_empty_tree(Arc::clone(&budget))
        .apply(model.iter().map(|(key, (version, value))| (&key[..], Some((*version, &value[..])))));
    budget.set_limit(budget.used() / 2);
    let used: Vec<[u8; 4]> = (3_000..7_000u32).map(u32::to_be_bytes).collect();
    for key in &used {
        assert!(matches!(cache.read(key, |_| ()), Lookup::Found { .. }));
    }
    cache.evict_to_budget();
    cache.check_invariants();
    assert!(budget.used() <= budget.limit());
    assert!(budget.used() > budget.limit() - (32 << 10), "no more than needed: {budget:?}");
    for key in &used {
        assert!(matches!(cache.get(key), Lookup::Found { .. }), "{key:?} was of use, and evicted");
    }
    // A fill at the limit pushes something else out.
    let missing = model.keys().find(|key| cache.gap(key).is_some()).expect("half was evicted");
    let mut random = Random(1);
    fill(&cache, &model, missing, &mut random);
    assert!(budget.used() <= budget.limit());
}

#[test]
fn a_full_cache_admits_one_fill_in_eight() {
    let budget = CacheBudget::new(1000);
    assert!((0..100).all(|_| budget.should_admit()));
    budget.take(1000);
    assert_eq!((0..800).filter(|_| budget.should_admit()).count(), 100);
    budget.set_limit(0);
    assert!((0..100).all(|_| !budget.should_admit()), "no cache at all");
    budget.release(1000);
}

#[test]
#[should_panic(expected = "does not follow")]
fn changes_out_of_order_are_a_bug() {
    let cache = LeafCache::new_empty_tree(CacheBudget::new(1 << 20));
    cache.apply([(&b"b"[..], Some((1, &b""[..]))), (&b"a"[..], None)].into_iter());
}

#[test]
#[should_panic(expected = "is not below the end")]
fn a_block_cannot_hold_keys_beyond_its_end() {
    let mut builder = BlockBuilder::new(b"a");
    builder.push_value(b"c", 1, &b""[..]);
    builder.finish(Some(IVec::from(b"b")));
}

/// Readers hold a version while others fill it, evict from it and derive the next one from it.
#[test]
fn readers_see_one_version_amid_fills_and_evictions() {
    let budget = CacheBudget::new(600 << 10);
    let mut model: Model = Model::new();
    let mut random = Random(42);
    for _ in 0..10_000 {
        model.insert(Keys::Spread.draw(&mut random), (0, vec![0; 100]));
    }
    let state = ArcSwap::from_pointee((LeafCache::new(Arc::clone(&budget)), model));
    let done = AtomicBool::new(false);
    let found = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (state, done, found, budget) = (&state, &done, &found, &budget);
            scope.spawn(move || {
                let mut random = Random(thread);
                while !done.load(Relaxed) {
                    let state = state.load();
                    let (cache, model) = &**state;
                    let key = Keys::Spread.draw(&mut random);
                    let expected = match model.get(&key) {
                        Some((version, value)) => {
                            Lookup::Found { version: *version, value: IVec::from(&value[..]) }
                        }
                        None => Lookup::Absent,
                    };
                    match cache.get(&key) {
                        Lookup::Unknown if budget.should_admit() => {
                            let Some(gap) = cache.gap(&key) else { continue };
                            let upper =
                                gap.high.as_ref().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
                            let mut above = model.range::<[u8], _>((Bound::Included(&key[..]), upper));
                            let high = above.nth(30).map(|(key, _)| IVec::from(&key[..])).or(gap.high);
                            cache.insert(block_of(model, &key, high.as_deref()));
                        }
                        Lookup::Unknown => {}
                        known => {
                            assert_eq!(known, expected);
                            found.fetch_add(1, Relaxed);
                        }
                    }
                    if random.below(50) == 0
                        && let Some(block) = cache.block_before(Some(&key))
                    {
                        check_block(&block, model);
                    }
                }
            });
        }
        let mut random = Random(7);
        for version in 1..150 {
            let before = state.load_full();
            let (cache, model) = &*before;
            let changes = random_changes(Keys::Spread, model, version, &mut random);
            let next = apply(cache, &changes, false);
            next.check_invariants();
            let mut model = model.clone();
            apply_to_model(&mut model, &changes);
            state.store(Arc::new((next, model)));
        }
        done.store(true, Relaxed);
    });
    assert!(found.into_inner() > 1000);
    let (cache, model) = Arc::into_inner(state.into_inner()).expect("all readers are gone");
    cache.check_invariants();
    check_walks(&cache, &model);
    drop(cache);
    assert_eq!(budget.used(), 0);
}
