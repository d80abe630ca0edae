//! Many threads at once: transactions are strictly serializable, snapshots are consistent across
//! trees, readers see no key flicker while checkpoints run, counters add up, locks exclude, and
//! watchers see the history.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::watch::Event;
use dogsled_storage::{Command, Durability, Engine, IVec, Options, Reply, Snapshot, TreeId, Write};

use crate::support::serializability::{Anomaly, Key, Number, Transaction, check};
use crate::support::{Random, TestClock, Watchdog, for_each_seed, small_options};

/// A database whose checkpoints run all the time, many transactions each.
fn open(seed: u64, change: impl FnOnce(&mut Options)) -> Arc<Engine> {
    open_on(&SimulatedDisk::new(seed), change)
}

fn open_on(disk: &SimulatedDisk, change: impl FnOnce(&mut Options)) -> Arc<Engine> {
    let mut options = small_options(disk, &TestClock::new(1_000));
    options.background_threads = true;
    options.checkpoint_slice_keys = 3;
    change(&mut options);
    Engine::open(options).expect("a sound disk")
}

/// Sets a flag when dropped, so that a panic stops the other threads too.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Folds again and again until told to stop.
fn keep_checkpointing(engine: &Engine, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        engine.checkpoint().expect("a checkpoint on a sound disk");
        std::thread::yield_now();
    }
}

fn insert(tree: TreeId, key: impl Into<IVec>, value: impl Into<IVec>) -> Command {
    Command::Insert { tree, key: key.into(), value: value.into() }
}

fn create_tree(engine: &Engine, name: &str) -> TreeId {
    match engine.execute(Command::CreateTree { name: name.into() }, Durability::Buffered).expect("a tree") {
        Reply::Tree { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

/// Reads through a snapshot and remembers what was read, as the facade's transactions do.
struct Reading {
    snapshot: Snapshot,
    reads: Vec<KeyRead>,
    ranges: Vec<RangeRead>,
    writes: Vec<Write>,
}

impl Reading {
    fn begin(engine: &Engine) -> Reading {
        Reading { snapshot: engine.snapshot(), reads: Vec::new(), ranges: Vec::new(), writes: Vec::new() }
    }

    fn get(&mut self, tree: TreeId, key: &IVec) -> Option<IVec> {
        let found = self.snapshot.get(tree, key).expect("a key can be read");
        let version = found.as_ref().map_or(0, |found| found.version);
        self.reads.push(KeyRead { tree, key: key.clone(), version });
        found.map(|found| found.value)
    }

    fn range(&mut self, tree: TreeId, low: &IVec, high: Option<&IVec>) -> Vec<(IVec, IVec)> {
        let end = high.map_or(Bound::Unbounded, |high| Bound::Excluded(high.clone()));
        let mut fingerprint = RangeFingerprint::default();
        let mut entries = Vec::new();
        for entry in self.snapshot.range(tree, Bound::Included(low.clone()), end) {
            let (key, found) = entry.expect("a scan can be read");
            fingerprint.add(found.version);
            entries.push((key, found.value));
        }
        self.ranges.push(RangeRead {
            tree,
            low: low.clone(),
            high: high.cloned(),
            count: entries.len() as u64,
            fingerprint: fingerprint.finish(),
        });
        entries
    }

    fn put(&mut self, tree: TreeId, key: &IVec, value: impl Into<IVec>) {
        self.writes.push(Write { tree, key: key.clone(), value: Some(value.into()) });
    }

    /// Whether it was committed; if not, something that was read has changed.
    fn commit(self, engine: &Engine, durability: Durability) -> bool {
        let (reads, ranges, writes) = (self.reads, self.ranges, self.writes);
        let command = Command::Transact { reads, ranges, writes, expiries: Vec::new() };
        match engine.execute(command, durability).expect("a sound disk") {
            Reply::Done => true,
            Reply::Conflict => false,
            other => panic!("{other:?}"),
        }
    }
}

const KEYS: Key = 12;

/// Half of the keys are in one tree, half in the other.
fn place(trees: [TreeId; 2], key: Key) -> (TreeId, IVec) {
    (trees[(key % 2) as usize], IVec::from(format!("list {:04}", key / 2)))
}

fn encode(list: &[Number]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn decode(bytes: Option<&IVec>) -> Vec<Number> {
    let bytes = bytes.map_or(&[][..], |bytes| &bytes[..]);
    bytes.chunks_exact(4).map(|four| Number::from_be_bytes(four.try_into().expect("four"))).collect()
}

/// Runs transactions that read keys and ranges and append to lists, and gives back what was
/// committed and the lists at the end.
fn record_history(seed: u64, threads: u64, each: u64) -> (Vec<Transaction>, BTreeMap<Key, Vec<Number>>) {
    let disk = SimulatedDisk::new(seed);
    let engine = open_on(&disk, |options| options.segment_size = 256 << 10);
    let trees = [TreeId::DEFAULT, create_tree(&engine, "other")];
    let (clock, stop, conflicts) = (AtomicU64::new(1), AtomicBool::new(false), AtomicU64::new(0));
    let mut history: Vec<Transaction> = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        let clients: Vec<_> = (0..threads)
            .map(|thread| {
                let (engine, clock, conflicts) = (&*engine, &clock, &conflicts);
                scope.spawn(move || client(engine, trees, seed, thread, each, clock, conflicts))
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let conflicts = conflicts.load(Ordering::Relaxed);
    assert!(conflicts > each / 20, "only {conflicts} conflicts: these transactions hardly met");
    // What is there after reopening counts, not what memory says.
    engine.sync().expect("a sound disk");
    drop(engine);
    let engine = open_on(&disk, |options| options.segment_size = 256 << 10);
    let mut last = Transaction {
        number: Number::MAX,
        begun: clock.fetch_add(1, Ordering::SeqCst),
        ..Transaction::default()
    };
    let snapshot = engine.snapshot();
    for key in 0..KEYS {
        let (tree, name) = place(trees, key);
        let found = snapshot.get(tree, &name).expect("a key can be read");
        last.reads.insert(key, decode(found.map(|found| found.value).as_ref()));
    }
    last.answered = clock.fetch_add(1, Ordering::SeqCst);
    let finals = last.reads.clone();
    history.push(last);
    (history, finals)
}

/// One client's committed transactions.
fn client(
    engine: &Engine,
    trees: [TreeId; 2],
    seed: u64,
    thread: u64,
    each: u64,
    clock: &AtomicU64,
    conflicts: &AtomicU64,
) -> Vec<Transaction> {
    let mut random = Random::new(seed << 8 ^ thread);
    let mut committed = Vec::new();
    for step in 0..each {
        let number = (thread * each + step + 1) as Number;
        let mut transaction =
            Transaction { number, begun: clock.fetch_add(1, Ordering::SeqCst), ..Transaction::default() };
        let mut reading = Reading::begin(engine);
        let mut lists: BTreeMap<Key, Vec<Number>> = BTreeMap::new();
        if random.one_in(3) {
            // A range of one tree; keys that do not exist in it are read as empty.
            let tree = random.below(2) as Key;
            let (from, to) = (random.below(6) as Key, random.below(7) as Key);
            let (low, high) = (place(trees, from * 2).1, place(trees, to * 2).1);
            let found: BTreeMap<IVec, IVec> =
                reading.range(trees[tree as usize], &low, Some(&high)).into_iter().collect();
            for key in (from..to).map(|index| index * 2 + tree) {
                lists.insert(key, decode(found.get(&place(trees, key).1)));
            }
        }
        for _ in 0..random.below(4) {
            let key = random.below(KEYS.into()) as Key;
            let (tree, name) = place(trees, key);
            let list = decode(reading.get(tree, &name).as_ref());
            lists.insert(key, list);
        }
        // Time for others to commit in between; on a busy machine only a sleep gives it.
        match random.below(8) {
            0 | 1 => std::thread::yield_now(),
            2 => std::thread::sleep(std::time::Duration::from_micros(300)),
            _ => {}
        }
        let append_to: Vec<Key> = lists.keys().copied().filter(|_| random.one_in(2)).collect();
        for key in append_to {
            let mut list = lists[&key].clone();
            list.push(number);
            let (tree, name) = place(trees, key);
            reading.put(tree, &name, encode(&list));
            transaction.appends.insert(key);
        }
        if transaction.appends.is_empty() && !lists.is_empty() && random.one_in(2) {
            // Reads only: nothing to validate, it is as of its snapshot.
            transaction.reads = lists;
            transaction.answered = clock.fetch_add(1, Ordering::SeqCst);
            committed.push(transaction);
            continue;
        }
        let durability = if random.one_in(8) { Durability::Synced } else { Durability::Buffered };
        if reading.commit(engine, durability) {
            transaction.reads = lists;
            transaction.answered = clock.fetch_add(1, Ordering::SeqCst);
            committed.push(transaction);
        } else {
            conflicts.fetch_add(1, Ordering::Relaxed);
        }
    }
    committed
}

#[test]
fn transactions_on_keys_and_ranges_are_strictly_serializable() {
    for_each_seed("engine", "concurrency::transactions_on_keys_and_ranges", 20, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(120));
        let (history, finals) = record_history(seed, 4, 400);
        if let Err(anomaly) = check(&history, &finals) {
            panic!("seed {seed}: {anomaly:?} in {} transactions", history.len());
        }
    });
}

/// The checker on histories whose faults are known, so that its silence means something.
#[test]
fn the_checker_finds_each_kind_of_anomaly() {
    let transaction = |number, reads: &[(Key, &[Number])], appends: &[Key]| Transaction {
        number,
        reads: reads.iter().map(|(key, list)| (*key, list.to_vec())).collect(),
        appends: appends.iter().copied().collect(),
        begun: 0,
        answered: 100,
    };
    let lists = |of: &[(Key, &[Number])]| -> BTreeMap<Key, Vec<Number>> {
        of.iter().map(|(key, list)| (*key, list.to_vec())).collect()
    };
    // Sound: 2 reads what 1 wrote, and appends.
    let sound = [transaction(1, &[(0, &[])], &[0]), transaction(2, &[(0, &[1])], &[0])];
    assert_eq!(check(&sound, &lists(&[(0, &[1, 2])])), Ok(()));
    // G0: two writers in two orders.
    let cycle = [transaction(1, &[], &[0, 1]), transaction(2, &[], &[0, 1])];
    let found = check(&cycle, &lists(&[(0, &[1, 2]), (1, &[2, 1])]));
    assert!(matches!(found, Err(Anomaly::G0(_))), "{found:?}");
    // G1a: a read of what was never committed.
    let aborted = [transaction(1, &[(0, &[9])], &[])];
    let found = check(&aborted, &lists(&[(0, &[])]));
    assert_eq!(found, Err(Anomaly::AbortedRead { key: 0, number: 9 }));
    // G1c: each read what the other wrote.
    let circular = [transaction(1, &[(1, &[2])], &[0]), transaction(2, &[(0, &[1])], &[1])];
    let found = check(&circular, &lists(&[(0, &[1]), (1, &[2])]));
    assert!(matches!(found, Err(Anomaly::G1c(_))), "{found:?}");
    // Lost update: both read the empty list, both appended.
    let lost = [transaction(1, &[(0, &[])], &[0]), transaction(2, &[(0, &[])], &[0])];
    assert_eq!(check(&lost, &lists(&[(0, &[2])])), Err(Anomaly::LostOrDoubled { key: 0, number: 1 }));
    // Read skew: one key from before the other's commit, one from after.
    let skewed = [transaction(1, &[], &[0, 1]), transaction(2, &[(0, &[]), (1, &[1])], &[])];
    let found = check(&skewed, &lists(&[(0, &[1]), (1, &[1])]));
    assert!(matches!(found, Err(Anomaly::GSingle(_))), "{found:?}");
    // Write skew, which is what a phantom is, too: each missed what the other wrote.
    let skew = [transaction(1, &[(0, &[])], &[1]), transaction(2, &[(1, &[])], &[0])];
    let found = check(&skew, &lists(&[(0, &[2]), (1, &[1])]));
    assert!(matches!(found, Err(Anomaly::G2(_))), "{found:?}");
    // Stale: it was begun after the other was answered, and did not see it.
    let mut stale = [transaction(1, &[], &[0]), transaction(2, &[(0, &[])], &[])];
    (stale[0].answered, stale[1].begun, stale[1].answered) = (5, 6, 7);
    let found = check(&stale, &lists(&[(0, &[1])]));
    assert!(matches!(found, Err(Anomaly::Stale(_))), "{found:?}");
    stale[1].begun = 4;
    assert_eq!(check(&stale, &lists(&[(0, &[1])])), Ok(()));
    // A list in another order than the final one.
    let forked = [transaction(1, &[], &[0]), transaction(2, &[], &[0]), transaction(3, &[(0, &[2])], &[])];
    let found = check(&forked, &lists(&[(0, &[1, 2])]));
    assert_eq!(found, Err(Anomaly::NotAPrefix { key: 0, reader: 3 }));
}

/// Write skew in its textbook form: a doctor may leave if another one stays on call.
#[test]
fn two_doctors_never_both_leave() {
    let engine = open(1, |_| {});
    let doctors = [IVec::from("alice"), IVec::from("bob")];
    let (stop, left) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        for round in 0..300 {
            for doctor in &doctors {
                engine
                    .execute(insert(TreeId::DEFAULT, doctor.clone(), "on call"), Durability::Buffered)
                    .expect("a write");
            }
            let barrier = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for me in 0..2 {
                    let (engine, doctors, barrier, left) = (&engine, &doctors, &barrier, &left);
                    scope.spawn(move || {
                        let mut reading = Reading::begin(engine);
                        let other = reading.get(TreeId::DEFAULT, &doctors[1 - me]);
                        barrier.wait();
                        if other.as_deref() == Some(b"on call") {
                            reading.put(TreeId::DEFAULT, &doctors[me], "gone");
                            if reading.commit(engine, Durability::Buffered) {
                                left.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            let on_call = doctors.iter().filter(|doctor| {
                engine.get(TreeId::DEFAULT, doctor).expect("a read").as_deref() == Some(b"on call")
            });
            assert_eq!(on_call.count(), 1, "round {round}");
        }
        drop(stop_on_drop);
    });
    assert_eq!(left.load(Ordering::Relaxed), 300, "one of them leaves in every round");
}

/// A phantom in its textbook form: a room is booked only if the range of its day is empty. Each
/// guest's booking is a key of its own, so that only the range tells of the others.
#[test]
fn a_room_is_never_booked_twice() {
    let engine = open(2, |_| {});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        for day in 0..200 {
            let barrier = std::sync::Barrier::new(3);
            let book = &|guest: u64| {
                let (low, high) = (IVec::from(format!("{day:03}/")), IVec::from(format!("{day:03}0")));
                let mut reading = Reading::begin(&engine);
                let is_free = reading.range(TreeId::DEFAULT, &low, Some(&high)).is_empty();
                barrier.wait();
                reading.put(TreeId::DEFAULT, &format!("{day:03}/{guest}").into(), "booked");
                is_free && reading.commit(&engine, Durability::Buffered)
            };
            let booked = std::thread::scope(|scope| {
                let guests: Vec<_> = (0..3).map(|guest| scope.spawn(move || book(guest))).collect();
                guests.into_iter().map(|guest| guest.join().expect("a guest")).collect::<Vec<_>>()
            });
            assert_eq!(booked.iter().filter(|booked| **booked).count(), 1, "day {day}: {booked:?}");
        }
        drop(stop_on_drop);
    });
    assert_eq!(engine.len(TreeId::DEFAULT).expect("a length"), 200);
}

#[test]
fn a_snapshot_shows_all_of_a_batch_or_nothing_in_every_tree() {
    for_each_seed("engine", "concurrency::a_snapshot_shows_all_of_a_batch", 3, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(60));
        let engine = open(seed, |_| {});
        let trees = ["a", "b", "c"].map(|name| create_tree(&engine, name));
        let (looks, stop) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
        std::thread::scope(|scope| {
            let stop_on_drop = StopOnDrop(&stop);
            scope.spawn(|| keep_checkpointing(&engine, &stop));
            let reader = |looks: &AtomicU64| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let snapshot = engine.snapshot();
                    assert!(snapshot.sequence() >= last, "snapshots go back in time");
                    last = snapshot.sequence();
                    let shown: BTreeSet<Option<IVec>> = trees
                        .iter()
                        .flat_map(|tree| {
                            let one = snapshot.get(*tree, b"round").expect("a read").map(|found| found.value);
                            let all = crate::support::compare::all(&snapshot, *tree)
                                .map(|(_, found)| Some(found.value));
                            all.chain([one]).collect::<Vec<_>>()
                        })
                        .collect();
                    assert_eq!(shown.len(), 1, "as of {last}: {shown:?}");
                    let counts = trees.map(|tree| snapshot.len(tree).expect("a length"));
                    let keys = trees.map(|tree| crate::support::compare::all(&snapshot, tree).count() as u64);
                    assert_eq!(counts, keys, "lengths as of {last}");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            };
            let readers = looks.each_ref().map(|looks| scope.spawn(move || reader(looks)));
            // Readers that come to look late are waited for.
            let have_looked = || {
                looks.iter().all(|looks| looks.load(Ordering::Relaxed) > 20)
                    || readers.iter().any(|reader| reader.is_finished())
            };
            let mut random = Random::new(seed);
            let start = Instant::now();
            let mut round = 0u64;
            while start.elapsed() < Duration::from_millis(700) || !have_looked() {
                round += 1;
                let value = IVec::from(round.to_string());
                let mut writes: Vec<Write> = Vec::new();
                for tree in trees {
                    writes.push(Write { tree, key: "round".into(), value: Some(value.clone()) });
                    for key in 0..20u64 {
                        // Some keys come and go, so that lengths change.
                        let value = (key < 10 || !random.one_in(3)).then(|| value.clone());
                        writes.push(Write { tree, key: format!("key {key:02}").into(), value });
                    }
                }
                engine.execute(Command::Batch { writes }, Durability::Buffered).expect("a batch");
            }
            drop(stop_on_drop);
            for reader in readers {
                reader.join().expect("a reader");
            }
        });
    });
}

/// A tree and what is in it are visible together: a snapshot knows every tree that its sequence
/// includes the making of.
#[test]
fn a_snapshot_knows_the_trees_of_its_sequence() {
    let engine = open(3, |_| {});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        let reader = || {
            while !stop.load(Ordering::Relaxed) {
                let snapshot = engine.snapshot();
                // Odd commits make the tree, even ones drop it: see below.
                let expected = snapshot.sequence() % 2 == 1;
                let found = snapshot.tree_id(b"fleeting").is_some();
                assert_eq!(found, expected, "as of {}", snapshot.sequence());
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1_500)
            && !readers.iter().any(|reader| reader.is_finished())
        {
            let name = IVec::from("fleeting");
            engine.execute(Command::CreateTree { name: name.clone() }, Durability::Buffered).expect("made");
            engine.execute(Command::DropTree { name }, Durability::Buffered).expect("dropped");
        }
        drop(stop_on_drop);
        for reader in readers {
            reader.join().expect("a reader");
        }
    });
}

#[test]
fn a_key_that_is_always_there_is_never_missed_while_checkpoints_run() {
    for_each_seed("engine", "concurrency::a_key_that_is_always_there", 2, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(60));
        let engine = open(seed, |options| options.checkpoint_slice_keys = 50);
        const KEYS: u64 = 500;
        let name = |key: u64| IVec::from(format!("key {key:04}"));
        let absent = |key: u64| IVec::from(format!("key {key:04} is not this"));
        for key in 0..KEYS {
            engine
                .execute(
                    insert(TreeId::DEFAULT, name(key), 0u64.to_be_bytes().to_vec()),
                    Durability::Buffered,
                )
                .expect("a write");
        }
        let (reads, scans, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let stop_on_drop = StopOnDrop(&stop);
            scope.spawn(|| keep_checkpointing(&engine, &stop));
            let getter = |seed: u64| {
                let (engine, stop, reads) = (&engine, &stop, &reads);
                move || {
                    let mut random = Random::new(seed);
                    let mut newest = vec![0u64; KEYS as usize];
                    while !stop.load(Ordering::Relaxed) {
                        let key = random.below(KEYS);
                        let value = engine.get(TreeId::DEFAULT, &name(key)).expect("a read");
                        let value = value.unwrap_or_else(|| panic!("{key} is missing"));
                        let value = u64::from_be_bytes(value[..].try_into().expect("eight bytes"));
                        assert!(value >= newest[key as usize], "{key} went back to {value}");
                        newest[key as usize] = value;
                        assert_eq!(engine.get(TreeId::DEFAULT, &absent(key)).expect("a read"), None);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            let scanner = || {
                while !stop.load(Ordering::Relaxed) {
                    let snapshot = engine.snapshot();
                    assert_eq!(crate::support::compare::all(&snapshot, TreeId::DEFAULT).count() as u64, KEYS);
                    assert_eq!(
                        crate::support::compare::all(&snapshot, TreeId::DEFAULT).rev().count() as u64,
                        KEYS
                    );
                    assert_eq!(engine.len(TreeId::DEFAULT).expect("a length"), KEYS);
                    scans.fetch_add(1, Ordering::Relaxed);
                }
            };
            let (getter, scanner) = (scope.spawn(getter(seed)), scope.spawn(scanner));
            let mut random = Random::new(seed ^ 77);
            let start = Instant::now();
            let mut round = 0u64;
            let checkpoints = || engine.stats().expect("figures").checkpoints;
            // Readers that come to look late are waited for.
            let have_looked = || {
                let (reads, scans) = (reads.load(Ordering::Relaxed), scans.load(Ordering::Relaxed));
                reads > 100 && scans > 5 || getter.is_finished() || scanner.is_finished()
            };
            while start.elapsed() < Duration::from_millis(1_000) || checkpoints() < 3 || !have_looked() {
                round += 1;
                let key = name(random.below(KEYS));
                let value = round.to_be_bytes().to_vec();
                engine.execute(insert(TreeId::DEFAULT, key, value), Durability::Buffered).expect("a write");
            }
            drop(stop_on_drop);
            getter.join().expect("a reader");
            scanner.join().expect("a scanner");
        });
    });
}

#[test]
fn counters_add_up_exactly_and_tell_each_sum_once() {
    let engine = open(4, |_| {});
    let stop = AtomicBool::new(false);
    const EACH: i64 = 1_000;
    let sums: Vec<i64> = std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        let adders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let add = Command::Counter(CounterCommand::Add { name: "n".into(), delta: 1 });
                    let mut sums = Vec::new();
                    for _ in 0..EACH {
                        match engine.execute(add.clone(), Durability::Buffered).expect("an addition") {
                            Reply::Counter(CounterReply::Added { value }) => sums.push(value),
                            other => panic!("{other:?}"),
                        }
                    }
                    assert!(sums.is_sorted(), "one client's sums go down");
                    sums
                })
            })
            .collect();
        let sums = adders.into_iter().flat_map(|adder| adder.join().expect("an adder")).collect();
        drop(stop_on_drop);
        sums
    });
    let told: BTreeSet<i64> = sums.into_iter().collect();
    assert_eq!(told, (1..=4 * EACH).collect());
}

#[test]
fn a_lock_is_held_by_one_at_a_time_and_its_tokens_grow() {
    let engine = open(5, |_| {});
    let (inside, newest, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let grants: u64 = std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| keep_checkpointing(&engine, &stop));
        let owners: Vec<_> = (0..4)
            .map(|owner: u64| {
                let (engine, inside, newest) = (&engine, &inside, &newest);
                scope.spawn(move || {
                    let (name, owner) = (IVec::from("door"), IVec::from(owner.to_string()));
                    let mut grants = 0;
                    while grants < 250 {
                        let acquire = LockCommand::TryAcquire {
                            name: name.clone(),
                            owner: owner.clone(),
                            lease_ms: 1_000_000,
                        };
                        let reply =
                            engine.execute(Command::Lock(acquire), Durability::Buffered).expect("an answer");
                        let Reply::Lock(LockReply::Acquired { token, .. }) = reply else {
                            std::thread::yield_now();
                            continue;
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                        let before = newest.swap(token.0, Ordering::SeqCst);
                        assert!(token.0 > before, "token {} after {before}", token.0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        let release =
                            LockCommand::Release { name: name.clone(), owner: owner.clone(), token };
                        let reply =
                            engine.execute(Command::Lock(release), Durability::Buffered).expect("an answer");
                        assert_eq!(reply, Reply::Lock(LockReply::Released));
                        grants += 1;
                    }
                    grants
                })
            })
            .collect();
        let grants = owners.into_iter().map(|owner| owner.join().expect("an owner")).sum();
        drop(stop_on_drop);
        grants
    });
    assert_eq!(grants, 1_000);
}

#[test]
fn the_first_event_after_a_snapshot_is_of_the_next_commit() {
    let engine = open(6, |_| {});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        for writer in 0..2 {
            let (engine, stop) = (&engine, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("writer {writer}");
                    engine.execute(insert(TreeId::DEFAULT, key, "x"), Durability::Buffered).expect("a write");
                }
            });
        }
        for _ in 0..5_000 {
            let (snapshot, events) = engine.snapshot_and_watch(TreeId::DEFAULT, b"", 4);
            let event = events.next().expect("the writers go on");
            assert_eq!(event.sequence(), snapshot.sequence() + 1);
        }
        drop(stop_on_drop);
    });
}

#[test]
fn a_snapshot_and_the_events_after_it_are_the_state_at_the_end() {
    for_each_seed("engine", "concurrency::a_snapshot_and_the_events_after_it", 4, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(60));
        let engine = open(seed, |_| {});
        let stop = AtomicBool::new(false);
        let subscriptions = std::thread::scope(|scope| {
            let stop_on_drop = StopOnDrop(&stop);
            scope.spawn(|| keep_checkpointing(&engine, &stop));
            let writers: Vec<_> = (0..3u64)
                .map(|writer| {
                    let engine = &engine;
                    scope.spawn(move || {
                        let mut random = Random::new(seed << 4 ^ writer);
                        for step in 0..600u64 {
                            let key = IVec::from(format!("key {}", random.below(30)));
                            let command = match random.below(20) {
                                0 => Command::ClearTree { tree: TreeId::DEFAULT },
                                1..=5 => Command::Remove { tree: TreeId::DEFAULT, key },
                                6 | 7 => Command::Pop { tree: TreeId::DEFAULT, last: random.one_in(2) },
                                _ => insert(TreeId::DEFAULT, key, format!("{writer} {step}")),
                            };
                            engine.execute(command, Durability::Buffered).expect("a sound disk");
                        }
                    })
                })
                .collect();
            // Subscriptions made at any time, some to a prefix.
            let mut subscriptions = Vec::new();
            for number in 0..8 {
                let prefix = if number % 2 == 0 { "" } else { "key 1" };
                subscriptions
                    .push((prefix, engine.snapshot_and_watch(TreeId::DEFAULT, prefix.as_bytes(), 1 << 16)));
                std::thread::sleep(Duration::from_millis(1));
            }
            for writer in writers {
                writer.join().expect("a writer");
            }
            drop(stop_on_drop);
            subscriptions
        });
        let snapshot = engine.snapshot();
        for (prefix, (start, events)) in subscriptions {
            let mut state: BTreeMap<IVec, IVec> = crate::support::compare::all(&start, TreeId::DEFAULT)
                .map(|(key, found)| (key, found.value))
                .collect();
            state.retain(|key, _| key.starts_with(prefix.as_bytes()));
            let mut last = start.sequence();
            while let Ok(event) = events.next_timeout(Duration::ZERO) {
                assert!(event.sequence() > last || (event.sequence() == last && last > start.sequence()));
                last = event.sequence();
                match event {
                    Event::Put { key, value, .. } => {
                        state.insert(key, value);
                    }
                    Event::Remove { key, .. } => {
                        assert!(state.remove(&key).is_some(), "{key:?} was not there at {last}");
                    }
                    Event::Cleared { .. } => state.clear(),
                    Event::Overflowed { .. } => panic!("{event:?}"),
                }
            }
            let mut expected: BTreeMap<IVec, IVec> = crate::support::compare::all(&snapshot, TreeId::DEFAULT)
                .map(|(key, found)| (key, found.value))
                .collect();
            expected.retain(|key, _| key.starts_with(prefix.as_bytes()));
            assert_eq!(state, expected, "prefix {prefix:?}");
        }
    });
}
