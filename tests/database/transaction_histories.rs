//! Transactions are strictly serializable: checked on the histories of concurrent runs.
//!
//! Every value is the list of the transactions that wrote it, and each transaction appends itself
//! to the lists of some keys and notes the lists of all keys it read. The final lists then say in
//! which order each key was written, and the notes who saw what; so all dependencies are known:
//!
//! - *write-write*: who comes later in a list comes later;
//! - *write-read*: who saw a list comes after the last one in it;
//! - *read-write*: who saw a list comes before the next one in the final list;
//! - *time*: who began after another had returned comes after it.
//!
//! A cycle among them would be an outcome that no serial order explains.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dogsled::transaction::{
    TransactionResult, Transactional, TransactionalTree, UnabortableTransactionError,
};
use dogsled::{Config, Db, IVec};

const THREADS: u64 = 4;
const TRANSACTIONS_PER_THREAD: u64 = 120;
const KEYS: u64 = 24;

type List = Vec<u64>;

struct Event {
    began: Instant,
    returned: Instant,
    /// The lists of the keys that were read; an absent key is an empty list.
    seen: BTreeMap<Vec<u8>, List>,
}

fn key(number: u64) -> Vec<u8> {
    format!("key {number:02}").into_bytes()
}

/// A key in the notes of a history: which tree's, too.
fn name(tree: u64, number: u64) -> Vec<u8> {
    [&[b'0' + tree as u8][..], &key(number)].concat()
}

fn decode(bytes: &[u8]) -> List {
    bytes.chunks_exact(8).map(|chunk| u64::from_be_bytes(chunk.try_into().unwrap())).collect()
}

fn append(list: &[u64], id: u64) -> Vec<u8> {
    list.iter().chain([&id]).flat_map(|id| id.to_be_bytes()).collect()
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Reads some keys of one of the trees in one of several manners, and appends `id` to some of what was
/// read. Keys that are absent within what a range covered were seen to be absent, however it was read.
fn work(
    trees: &[TransactionalTree; 2],
    id: u64,
    seed: u64,
) -> Result<BTreeMap<Vec<u8>, List>, UnabortableTransactionError> {
    let mut state = seed;
    let mut seen = BTreeMap::new();
    let tree = random(&mut state) % 2;
    let (prefix, tree) = (tree, &trees[tree as usize]);
    let (low, high) = (random(&mut state) % KEYS, random(&mut state) % KEYS);
    let (low, high) = (low.min(high), low.max(high));
    let mut note = |entry: (IVec, IVec)| {
        let number: u64 = std::str::from_utf8(&entry.0[4..]).unwrap().parse().unwrap();
        seen.insert(number, decode(&entry.1));
        number
    };
    // What the reading covered.
    let mut covered: Vec<RangeInclusive<u64>> = Vec::new();
    match random(&mut state) % 5 {
        0 => {
            for entry in tree.range(key(low)..=key(high)) {
                note(entry?);
            }
            covered.push(low..=high);
        }
        1 => {
            // A range from both ends, and not to the middle.
            let mut iter = tree.range(key(low)..=key(high));
            match iter.next().transpose()?.map(&mut note) {
                None => covered.push(low..=high),
                Some(first) => {
                    covered.push(low..=first);
                    let last = iter.next_back().transpose()?.map(&mut note);
                    covered.push(last.unwrap_or(first + 1)..=high);
                }
            }
        }
        2 => {
            let last = tree.last()?.map(&mut note);
            covered.push(last.unwrap_or(0)..=KEYS - 1);
        }
        3 => {
            let next = tree.get_gt(key(low))?.map(&mut note);
            covered.push(low + 1..=next.unwrap_or(KEYS - 1));
        }
        _ => {
            for number in [low, high] {
                let value = tree.get(key(number))?;
                seen.insert(number, decode(&value.unwrap_or_default()));
            }
        }
    }
    for number in covered.into_iter().flatten() {
        seen.entry(number).or_default();
    }
    // Writers yield now and then, so that on few cores, too, others come between.
    std::thread::yield_now();
    let last = seen.len() as u64;
    for (number, list) in &seen {
        // Few of many: keys are to be absent for long.
        if random(&mut state) % last.max(2) < 2 {
            tree.insert(key(*number), append(list, id))?;
        }
    }
    Ok(seen.into_iter().map(|(number, list)| (name(prefix, number), list)).collect())
}

fn run(db: &Db) -> Vec<Event> {
    let next_id = AtomicU64::new(0);
    let trees = [db.open_tree("0").unwrap(), db.open_tree("1").unwrap()];
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut events = Vec::new();
                    for _ in 0..TRANSACTIONS_PER_THREAD {
                        let id = next_id.fetch_add(1, Ordering::Relaxed);
                        let seed = (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        let began = Instant::now();
                        let result: TransactionResult<_> =
                            (&trees[0], &trees[1]).transaction(|(first, second)| {
                                Ok(work(&[first.clone(), second.clone()], id, seed)?)
                            });
                        events.push((id, Event { began, returned: Instant::now(), seen: result.unwrap() }));
                    }
                    events
                })
            })
            .collect();
        for thread in threads {
            events.extend(thread.join().unwrap());
        }
    });
    events.into_values().collect()
}

/// Transactions in an order that explains all that they saw; or those that no order explains.
fn explain(events: &[Event], last: &BTreeMap<Vec<u8>, List>) -> Result<Vec<usize>, Vec<usize>> {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    for list in last.values() {
        for pair in list.windows(2) {
            before[pair[1] as usize].push(pair[0] as usize);
        }
    }
    for (reader, event) in events.iter().enumerate() {
        for (key, seen) in &event.seen {
            let list = last.get(key).map_or(&[][..], Vec::as_slice);
            assert!(list.starts_with(seen), "{reader} saw {seen:?}, which is no beginning of {list:?}");
            if let Some(&writer) = seen.last() {
                before[reader].push(writer as usize);
            }
            // It may itself be the next one.
            if let Some(&next) = list.get(seen.len()).filter(|&&next| next as usize != reader) {
                before[next as usize].push(reader);
            }
        }
        let earlier = events.iter().enumerate().filter(|(_, other)| other.returned < event.began);
        before[reader].extend(earlier.map(|(other, _)| other));
    }
    let mut done = vec![false; events.len()];
    let mut order = Vec::new();
    loop {
        let ready: Vec<usize> = (0..events.len())
            .filter(|&id| !done[id] && before[id].iter().all(|&other| done[other]))
            .collect();
        if ready.is_empty() {
            break;
        }
        for id in ready {
            done[id] = true;
            order.push(id);
        }
    }
    if order.len() == events.len() {
        return Ok(order);
    }
    Err((0..events.len()).filter(|&id| !done[id]).collect())
}

#[test]
fn every_history_has_a_serial_order() {
    for checkpoint in [false, true] {
        let db = Config::new().temporary(true).open().unwrap();
        let events = std::thread::scope(|scope| {
            let history = scope.spawn(|| run(&db));
            while checkpoint && !history.is_finished() {
                db.checkpoint().unwrap();
            }
            history.join().unwrap()
        });
        let mut last = BTreeMap::new();
        for number in 0..2 {
            for entry in db.open_tree(number.to_string()).unwrap().iter() {
                let (key, value) = entry.unwrap();
                last.insert([number.to_string().as_bytes(), &key].concat(), decode(&value));
            }
        }
        let writes: usize = last.values().map(Vec::len).sum();
        assert!(writes > 100, "the history says little: {writes} writes");
        if let Err(unexplained) = explain(&events, &last) {
            panic!("no serial order explains transactions {unexplained:?}");
        }
    }
}

#[test]
fn the_checker_finds_write_skew() {
    let now = Instant::now();
    let event = |seen: &[(&str, List)]| Event {
        began: now,
        returned: now,
        seen: seen.iter().map(|(key, list)| (key.as_bytes().to_vec(), list.clone())).collect(),
    };
    // Each reads both keys before the other has written its own.
    let events = [event(&[("a", vec![]), ("b", vec![])]), event(&[("a", vec![]), ("b", vec![])])];
    let last = BTreeMap::from([(b"a".to_vec(), vec![0]), (b"b".to_vec(), vec![1])]);
    assert_eq!(explain(&events, &last), Err(vec![0, 1]));
    let serial = [event(&[("a", vec![]), ("b", vec![])]), event(&[("a", vec![0]), ("b", vec![])])];
    assert_eq!(explain(&serial, &last), Ok(vec![0, 1]));
}
