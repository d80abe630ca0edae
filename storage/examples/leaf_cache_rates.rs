//! How fast the leaf cache answers, with everything cached.
//!
//! ```text
//! cargo run --release -p dogsled-storage --example leaf_cache_rates -- [entries] [part of a name]
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogsled_storage::IVec;
use dogsled_storage::leaf_cache::{BlockBuilder, CacheBudget, LeafCache, Lookup};

/// Rounds of point gets.
const ROUNDS: u64 = 60;
const VALUE: [u8; 100] = [7; 100];
/// As the B-tree stores it: with a version before it.
const STORED: [u8; 108] = [7; 108];

/// SplitMix64.
fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&scramble(number + 1).to_be_bytes());
    key[8..].copy_from_slice(&scramble(!number).to_be_bytes());
    key
}

/// Runs `work` some times and prints the median time of one of its `count` operations. Rounds should
/// be short, so that some are not interrupted: the least says most on a busy machine.
fn measure(name: &str, rounds: u64, count: u64, mut work: impl FnMut(u64)) {
    if std::env::args().nth(2).is_some_and(|part| !name.contains(&part)) {
        return;
    }
    let mut times: Vec<Duration> = (0..rounds)
        .map(|round| {
            let start = Instant::now();
            work(round);
            start.elapsed()
        })
        .collect();
    times.sort();
    let nanoseconds = |time: Duration| time.as_nanos() as f64 / count as f64;
    let (least, median) = (nanoseconds(times[0]), nanoseconds(times[times.len() / 2]));
    println!(
        "{name:32} min {least:8.1} ns   median {median:8.1}   max {:8.1}",
        nanoseconds(times[times.len() - 1])
    );
}

/// Blocks as a reader of the B-tree would build them, in an order without pattern.
fn fill(keys: &[[u8; 16]], budget: &Arc<CacheBudget>) -> LeafCache {
    let cache = LeafCache::new(Arc::clone(budget));
    let starts: Vec<usize> = (0..keys.len()).step_by(40).collect();
    let mut order: Vec<usize> = (0..starts.len()).collect();
    order.sort_by_key(|at| scramble(*at as u64));
    for at in order {
        let start = starts[at];
        let low = if start == 0 { IVec::new() } else { IVec::from(&keys[start]) };
        let mut builder = BlockBuilder::new(low);
        for key in &keys[start..keys.len().min(start + 40)] {
            builder.push(key, &STORED);
        }
        assert!(cache.insert(builder.finish(keys.get(start + 40).map(IVec::from))));
    }
    cache
}

fn main() {
    let entries: u64 = std::env::args().nth(1).map_or(1_000_000, |n| n.parse().expect("a number of entries"));
    let gets = 20_000;
    let budget = CacheBudget::new(usize::MAX);
    let mut keys: Vec<[u8; 16]> = (0..entries).map(key).collect();
    keys.sort_unstable();

    let mut filled = None;
    measure("fill, per block of 40", 3, entries / 40, |_| filled = Some(fill(&keys, &budget)));
    drop(filled);
    let mut cache = LeafCache::new_empty_tree(Arc::clone(&budget));
    // In slices, as checkpoints come, in an order without pattern: blocks are as they settle.
    let slice = entries / 10;
    for number in 0..10 {
        let mut slice: Vec<_> = (number * slice..(number + 1) * slice).map(key).collect();
        slice.sort_unstable();
        cache = cache.apply(slice.iter().map(|key| (&key[..], Some((1, &VALUE[..])))));
    }
    println!("{cache:?}, {:.1} bytes each", cache.bytes() as f64 / entries as f64);

    measure("(draw a key)", ROUNDS, gets, |round| {
        for number in 0..gets {
            black_box(key(scramble(number ^ round << 40) % entries));
        }
    });
    measure("get, found", ROUNDS, gets, |round| {
        for number in 0..gets {
            let key = key(scramble(number ^ round << 40) % entries);
            assert!(matches!(black_box(cache.get(&key)), Lookup::Found { .. }));
        }
    });
    measure("read in place, found", ROUNDS, gets, |round| {
        for number in 0..gets {
            let key = key(scramble(number ^ round << 40) % entries);
            assert!(matches!(cache.read(&key, |value| black_box(value[50])), Lookup::Found { .. }));
        }
    });
    measure("get, absent", ROUNDS, gets, |round| {
        for number in 0..gets {
            let key = key(entries + scramble(number ^ round << 40));
            assert_eq!(cache.get(&key), Lookup::Absent);
        }
    });
    measure("get, found, 2 threads", ROUNDS, gets, |round| {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let cache = &cache;
                scope.spawn(move || {
                    for number in 0..gets {
                        let key = key(scramble(number ^ round << 40 ^ thread << 50) % entries);
                        assert!(matches!(black_box(cache.get(&key)), Lookup::Found { .. }));
                    }
                });
            }
        });
    });

    let scans = 2_000;
    measure("scan of 100", ROUNDS, scans, |round| {
        for number in 0..scans {
            let start = key(scramble(number ^ round << 40) % entries);
            let mut block = cache.block_at(&start).expect("all is cached");
            let mut position = block.seek(&start);
            let mut seen = 0;
            'scan: loop {
                while position < block.len() {
                    black_box(block.entry(position));
                    position += 1;
                    seen += 1;
                    if seen == 100 {
                        break 'scan;
                    }
                }
                let Some(next) = block.high().and_then(|high| cache.block_at(high)) else { break };
                (block, position) = (next, 0);
            }
        }
    });
    measure("scan of everything", 5, entries, |_| {
        let mut next = cache.block_at(b"");
        while let Some(block) = next {
            for position in 0..block.len() {
                black_box(block.entry(position));
            }
            next = block.high().and_then(|high| cache.block_at(high));
        }
    });

    for count in [1_000, 10_000, 100_000] {
        let mut changes: Vec<_> = (0..count).map(|number| key(scramble(number) % entries)).collect();
        changes.sort_unstable();
        changes.dedup();
        let mut next = None;
        measure(&format!("apply {count} changes, per change"), 10, count, |_| {
            next = Some(cache.apply(changes.iter().map(|key| (&key[..], Some((2, &VALUE[..]))))));
        });
    }
    for count in [10_000, 100_000] {
        let changes: Vec<_> = keys[..count as usize].iter().collect();
        let mut next = None;
        measure(&format!("apply {count} in a row"), 10, count, |_| {
            next = Some(cache.apply(changes.iter().map(|key| (&key[..], Some((2, &VALUE[..]))))));
        });
    }
}
