//! The WAL on a disk that crashes, fails, fills up and rots.
//!
//! Every workload comes from a seed. A failure prints the seed; `DOGSLED_SEED=<seed>` runs that one
//! alone. `DOGSLED_SEEDS=<n>` runs more of them than usual.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dogsled_storage::disk::{Fault, Operation, SimulatedDisk};
use dogsled_storage::wal::{Event, RecordKind, StreamId, Ticket, Wal, WalOptions, inspect};
use dogsled_storage::{Error, Result};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Runs `test` with each seed; says which one failed and how to run it again.
fn for_seeds(name: &str, usual: u64, test: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("DOGSLED_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DOGSLED_SEEDS").unwrap_or(usual),
    };
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| test(seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay: DOGSLED_SEED={seed} cargo test -p dogsled-storage --test wal -- {name}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn options(seed: u64) -> WalOptions {
    WalOptions {
        segment_size: 32 << 10,
        seed: Some(seed),
        threads: false,
        max_pending_bytes: 20_000,
        ..WalOptions::new("db/wal", 7)
    }
}

fn open(disk: &SimulatedDisk, seed: u64) -> Result<Wal> {
    Wal::open(Arc::new(disk.clone()), options(seed))
}

// ---- the model -------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Change {
    Append(u32, u64, Vec<u8>),
    Truncate(u32, u64),
    Purge(u32, u64),
    Register(u32, Vec<u8>),
    TruncateWithRegister(u32, u64, Vec<u8>),
    PurgeWithRegister(u32, u64, Vec<u8>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    entries: BTreeMap<u32, BTreeMap<u64, Vec<u8>>>,
    registers: BTreeMap<u32, Vec<u8>>,
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Append(stream, index, bytes) => {
                self.entries.entry(*stream).or_default().insert(*index, bytes.clone());
            }
            Change::Truncate(stream, index) => {
                self.entries.entry(*stream).or_default().retain(|entry, _| entry <= index);
            }
            Change::Purge(stream, index) => {
                self.entries.entry(*stream).or_default().retain(|entry, _| entry > index);
            }
            Change::Register(stream, bytes) => {
                self.registers.insert(*stream, bytes.clone());
            }
            Change::TruncateWithRegister(stream, index, bytes) => {
                self.apply(&Change::Truncate(*stream, *index));
                self.registers.insert(*stream, bytes.clone());
            }
            Change::PurgeWithRegister(stream, index, bytes) => {
                self.apply(&Change::Purge(*stream, *index));
                self.registers.insert(*stream, bytes.clone());
            }
        }
        self.entries.retain(|_, entries| !entries.is_empty());
        self.registers.retain(|_, bytes| !bytes.is_empty());
    }

    fn of(wal: &Wal) -> Result<Content> {
        let mut content = Content::default();
        for stream in wal.streams() {
            let mut entries = BTreeMap::new();
            wal.replay(stream, 0, &mut |index, bytes| {
                assert!(entries.insert(index, bytes.to_vec()).is_none(), "entry {index} twice");
                Ok(())
            })?;
            assert_eq!(wal.first_index(stream), entries.keys().next().copied());
            assert_eq!(wal.last_index(stream), entries.keys().last().copied());
            if !entries.is_empty() {
                content.entries.insert(stream.0, entries);
            }
            if let Some(state) = wal.state(stream) {
                content.registers.insert(stream.0, state);
            }
        }
        Ok(content)
    }
}

/// All that was ever asked for, and how much of it must survive.
#[derive(Clone, Default)]
struct History {
    changes: Vec<Change>,
    /// As many of them were acknowledged as durable, or shown by a recovery.
    durable: usize,
    /// As many were handed to the operating system.
    written: usize,
}

impl History {
    fn content(&self, changes: usize) -> Content {
        let mut content = Content::default();
        self.changes[..changes].iter().for_each(|change| content.apply(change));
        content
    }

    /// Checks that `wal` holds a prefix of the history with at least `least` changes, and forgets
    /// the changes that did not make it.
    fn check_prefix(&mut self, wal: &Wal, least: usize, context: &str) {
        let found = Content::of(wal).unwrap_or_else(|error| panic!("{context}: {error}"));
        self.check_found(found, least, context);
    }

    fn check_found(&mut self, found: Content, least: usize, context: &str) {
        let mut content = self.content(least);
        let mut length = least;
        // The longest that fits: changes that make no difference do not matter.
        let mut fitting = (content == found).then_some(length);
        for change in &self.changes[least..] {
            content.apply(change);
            length += 1;
            if content == found {
                fitting = Some(length);
            }
        }
        let Some(length) = fitting else {
            panic!(
                "{context}: what was recovered is no prefix of {} changes with at least {least}\nfound {:?}\nleast {:?}",
                self.changes.len(),
                summary(&found),
                summary(&self.content(least)),
            );
        };
        self.changes.truncate(length);
        self.durable = length;
        self.written = length;
    }
}

fn summary(content: &Content) -> String {
    let bounds = |entries: &BTreeMap<u64, Vec<u8>>| {
        (entries.keys().next().copied(), entries.keys().last().copied(), entries.len())
    };
    let streams: Vec<_> =
        content.entries.iter().map(|(stream, entries)| (*stream, bounds(entries))).collect();
    format!("{streams:?}, registers {:?}", content.registers)
}

// ---- the workload ----------------------------------------------------------------------------

/// Does `steps` random things to `wal`, noting them in `history`; stops at the first error.
fn work(wal: &Wal, history: &mut History, random: &mut Random, steps: u64) -> Result<()> {
    let mut content = history.content(history.changes.len());
    for _ in 0..steps {
        let stream = random.below(3) as u32;
        let bounds = content
            .entries
            .get(&stream)
            .map(|entries| (*entries.keys().next().unwrap(), *entries.keys().last().unwrap()));
        let (first, last) = bounds.unwrap_or((1, 0));
        let change = match random.below(20) {
            0..=9 => {
                let size = match random.below(12) {
                    0 => 0,
                    1 => 4000 + random.below(200),
                    2 => random.below(12_000),
                    _ => random.below(300),
                };
                let index = if last == 0 { 1 + random.below(100) } else { last + 1 };
                Some(Change::Append(stream, index, vec![random.next() as u8; size as usize]))
            }
            kind @ 10..=13 => {
                let size = random.below(40) as usize;
                let register = vec![random.next() as u8; size];
                let truncate_to = first + random.below(last + 2 - first.min(last));
                let purge_to = last.saturating_sub(random.below(4));
                let with_register = random.below(2) == 0;
                Some(match (kind, with_register) {
                    (10, false) => Change::Truncate(stream, truncate_to),
                    (10, true) => Change::TruncateWithRegister(stream, truncate_to, register),
                    (11..=12, false) => Change::Purge(stream, purge_to),
                    (11..=12, true) => Change::PurgeWithRegister(stream, purge_to, register),
                    _ => Change::Register(stream, register),
                })
            }
            14..=15 => {
                wal.write_out()?;
                history.written = history.changes.len();
                None
            }
            _ => {
                wal.sync()?;
                history.durable = history.changes.len();
                history.written = history.durable;
                None
            }
        };
        if let Some(change) = change {
            // Noted first: when the call fails, the change may have happened or not.
            history.changes.push(change.clone());
            let ticket = make(wal, &change)?;
            content.apply(&change);
            if random.below(3) == 0 {
                wal.wait_durable(ticket)?;
                history.durable = history.changes.len();
                history.written = history.durable;
            }
        }
    }
    assert_eq!(Content::of(wal)?, content, "what is there is not what was done");
    Ok(())
}

fn make(wal: &Wal, change: &Change) -> Result<Ticket> {
    match change {
        Change::Append(stream, index, bytes) => {
            let (front, back) = bytes.split_at(bytes.len() / 2);
            wal.append(StreamId(*stream), *index, &[front, back])
        }
        Change::Truncate(stream, index) => wal.truncate_after(StreamId(*stream), *index),
        Change::Purge(stream, index) => wal.purge_to(StreamId(*stream), *index),
        Change::Register(stream, bytes) => wal.set_state(StreamId(*stream), bytes),
        Change::PurgeWithRegister(stream, index, bytes) => {
            wal.purge_to_with_state(StreamId(*stream), *index, bytes)
        }
        Change::TruncateWithRegister(stream, index, bytes) => {
            wal.truncate_after_with_state(StreamId(*stream), *index, bytes)
        }
    }
}

/// Opens, works, closes, several times; returns the first error.
fn sessions(disk: &SimulatedDisk, history: &mut History, seed: u64, count: u64) -> Result<()> {
    let mut random = Random(seed);
    for session in 0..count {
        let wal = open(disk, seed * 100 + session)?;
        history.check_found(Content::of(&wal)?, history.durable, "between sessions");
        work(&wal, history, &mut random, 60)?;
        wal.close()?;
        history.durable = history.changes.len();
        history.written = history.durable;
    }
    Ok(())
}

// ---- crashes ---------------------------------------------------------------------------------

#[test]
fn every_crash_leaves_a_prefix_with_all_that_was_acknowledged() {
    let recovered = AtomicU64::new(0);
    for_seeds("every_crash_leaves_a_prefix_with_all_that_was_acknowledged", 12, |seed| {
        let disk = SimulatedDisk::new(seed);
        sessions(&disk, &mut History::default(), seed, 3).unwrap();
        let changes = disk.changes();
        for crash in 1..=changes {
            let disk = SimulatedDisk::new(seed);
            disk.crash_at_change(crash);
            let mut history = History::default();
            let ended = sessions(&disk, &mut history, seed, 3);
            assert!(ended.is_err() && disk.crashed(), "crash {crash} of {changes} did not happen");
            for cut in 0..3 {
                let context = format!("seed {seed}, crash {crash}, cut {cut}");
                let disk = disk.power_cut(crash * 10 + cut);
                survive(disk, history.clone(), seed, crash * 10 + cut, &context);
                recovered.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    println!("{} crashed disks recovered", recovered.into_inner());
}

/// Recovers a disk after a power cut, crashing in the middle of recovery by turns, then goes on
/// working on it until it crashes once more, and recovers again.
fn survive(disk: SimulatedDisk, mut history: History, seed: u64, cut: u64, context: &str) {
    let mut random = Random(seed ^ cut << 20);
    let disk = if cut.is_multiple_of(2) {
        disk.crash_at_change(1 + random.below(12));
        match open(&disk, cut) {
            Ok(wal) => history.check_prefix(&wal, history.durable, context),
            Err(error) => {
                assert!(disk.crashed(), "{context}: recovery failed without a crash: {error}");
            }
        }
        disk.power_cut(random.next())
    } else {
        disk
    };
    let wal = open(&disk, cut + 1).unwrap_or_else(|error| panic!("{context}: {error}"));
    history.check_prefix(&wal, history.durable, context);
    disk.crash_at_change(disk.changes() + 1 + random.below(40));
    let _ = work(&wal, &mut history, &mut random, 80);
    drop(wal);
    let disk = disk.power_cut(random.next());
    let wal = open(&disk, cut + 2).unwrap_or_else(|error| panic!("{context}, second time: {error}"));
    history.check_prefix(&wal, history.durable, &format!("{context}, second time"));
    work(&wal, &mut history, &mut random, 10).unwrap();
    wal.close().unwrap();
    let wal = open(&disk, cut + 3).unwrap();
    history.check_prefix(&wal, history.changes.len(), &format!("{context}, closed in order"));
}

#[test]
fn a_killed_process_loses_nothing_that_was_written_out_not_even_when_power_fails_after_recovery() {
    for_seeds(
        "a_killed_process_loses_nothing_that_was_written_out_not_even_when_power_fails_after_recovery",
        300,
        |seed| {
            let disk = SimulatedDisk::new(seed);
            let mut history = History::default();
            let mut random = Random(seed);
            let wal = open(&disk, seed).unwrap();
            let steps = 5 + random.below(100);
            work(&wal, &mut history, &mut random, steps).unwrap();
            let disk = disk.process_kill();
            drop(wal);
            let wal = open(&disk, seed + 1).unwrap();
            history.check_prefix(&wal, history.written, "killed");
            let disk = disk.power_cut(seed);
            drop(wal);
            let wal = open(&disk, seed + 2).unwrap();
            history.check_prefix(&wal, history.durable, "killed, recovered and cut off");
        },
    );
}

#[test]
fn threads_find_all_they_were_promised_after_a_crash() {
    for_seeds("threads_find_all_they_were_promised_after_a_crash", 60, |seed| {
        let disk = SimulatedDisk::new(seed);
        disk.crash_at_change(20 + seed * 7);
        let threaded = WalOptions { threads: true, ..options(seed) };
        let Ok(wal) = Wal::open(Arc::new(disk.clone()), threaded) else { return };
        let acknowledged: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6u32)
                .map(|thread| {
                    let wal = &wal;
                    scope.spawn(move || {
                        let mut acknowledged = 0;
                        for index in 1..=400u64 {
                            let bytes = vec![index as u8; (index % 90 * 10) as usize];
                            let Ok(ticket) = wal.append(StreamId(thread), index, &[&bytes]) else { break };
                            // Half of the threads do not wait.
                            if thread % 2 == 0 {
                                if wal.wait_durable(ticket).is_err() {
                                    break;
                                }
                                acknowledged = index;
                            }
                        }
                        acknowledged
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        drop(wal);
        let wal = open(&disk.power_cut(seed), seed).unwrap();
        for (thread, acknowledged) in acknowledged.iter().enumerate() {
            let stream = StreamId(thread as u32);
            let last = wal.last_index(stream).unwrap_or(0);
            assert!(last >= *acknowledged, "stream {thread}: {last} of {acknowledged} acknowledged");
            let mut next = 1;
            wal.replay(stream, 0, &mut |index, bytes| {
                assert_eq!((index, bytes.len()), (next, (index % 90 * 10) as usize));
                assert!(bytes.iter().all(|byte| *byte == index as u8));
                next += 1;
                Ok(())
            })
            .unwrap();
        }
    });
}

#[test]
fn the_threads_behind_a_wal_change_nothing_that_is_seen() {
    for_seeds("the_threads_behind_a_wal_change_nothing_that_is_seen", 40, |seed| {
        let disk = SimulatedDisk::new(seed);
        let threaded = WalOptions {
            threads: true,
            write_out_after: std::time::Duration::from_micros(200),
            write_out_bytes: 3000,
            flush_every: Some(std::time::Duration::from_millis(1)),
            ..options(seed)
        };
        let mut history = History::default();
        let mut random = Random(seed);
        for _ in 0..3 {
            let wal = Wal::open(Arc::new(disk.clone()), threaded.clone()).unwrap();
            history.check_prefix(&wal, history.changes.len(), "reopened");
            work(&wal, &mut history, &mut random, 200).unwrap();
            wal.close().unwrap();
        }
    });
}

// ---- errors ----------------------------------------------------------------------------------

#[test]
fn an_error_of_any_call_loses_nothing_acknowledged() {
    for_seeds("an_error_of_any_call_loses_nothing_acknowledged", 3, |seed| {
        let disk = SimulatedDisk::new(seed);
        sessions(&disk, &mut History::default(), seed, 3).unwrap();
        for after in 0..disk.calls() {
            for from_then_on in [false, true] {
                let context = format!("seed {seed}, error after {after} calls, lasting: {from_then_on}");
                let disk = SimulatedDisk::new(seed);
                disk.inject(Fault { operation: None, after, from_then_on });
                let mut history = History::default();
                // Housekeeping may fail without anybody noticing.
                let _ = sessions(&disk, &mut history, seed, 3);
                disk.clear_faults();
                let disk = if after % 2 == 0 { disk.power_cut(after) } else { disk.process_kill() };
                let wal = open(&disk, 1).unwrap_or_else(|error| panic!("{context}: {error}"));
                history.check_prefix(&wal, history.durable, &context);
                work(&wal, &mut history, &mut Random(after), 10).unwrap();
            }
        }
    });
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_acknowledged() {
    for operation in [Operation::Write, Operation::WriteSynced, Operation::Sync] {
        let disk = SimulatedDisk::new(1);
        let wal = open(&disk, 1).unwrap();
        let durable = wal.append(StreamId(0), 1, &[b"durable"]).unwrap();
        wal.sync().unwrap();
        disk.inject(Fault { operation: Some(operation), after: 0, from_then_on: false });
        let ticket = wal.append(StreamId(0), 2, &[b"in doubt"]).unwrap();
        let written = if operation == Operation::WriteSynced { Ok(()) } else { wal.write_out() };
        let failed = written.and_then(|()| wal.wait_durable(ticket)).unwrap_err();
        let Error::Poisoned(why) = &failed else { panic!("{operation:?}: {failed}") };
        assert!(why.contains("0000000000000001.wal"), "the cause names the file: {why}");
        let poisoned =
            |result: Result<Ticket>| matches!(result, Err(Error::Poisoned(other)) if other == *why);
        assert!(poisoned(wal.append(StreamId(0), 3, &[b"later"])));
        assert!(poisoned(wal.purge_to(StreamId(0), 1)));
        assert!(poisoned(wal.set_state(StreamId(0), b"vote")));
        assert!(poisoned(wal.sync().map(|()| ticket)));
        assert!(poisoned(wal.write_out().map(|()| ticket)));
        assert!(poisoned(wal.wait_durable(ticket).map(|()| ticket)));
        assert!(poisoned(wal.wait_durable(durable).map(|()| ticket)));
        assert!(poisoned(wal.read(StreamId(0), 1, 2, 100).map(|_| ticket)));
        assert!(wal.poisoned().is_some());
        assert!(wal.close().is_err());
        let wal = open(&disk, 2).unwrap();
        assert!(wal.last_index(StreamId(0)) >= Some(1));
    }
}

#[test]
fn poisoning_wakes_every_waiter() {
    let disk = SimulatedDisk::new(1);
    let wal = Wal::open(Arc::new(disk.clone()), WalOptions { threads: true, ..options(1) }).unwrap();
    disk.inject(Fault { operation: Some(Operation::WriteSynced), after: 50, from_then_on: true });
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (wal, acknowledged) = (&wal, &acknowledged);
            scope.spawn(move || {
                let error = (1..).find_map(|index| {
                    let appended = wal.append(StreamId(thread), index, &[b"x"]);
                    let waited = appended.and_then(|ticket| wal.wait_durable(ticket));
                    acknowledged.fetch_add(u64::from(waited.is_ok()), Ordering::Relaxed);
                    waited.err()
                });
                // Whoever had to have another segment was refused cleanly if that could not be prepared: nobody waited.
                let is_refused = |doing: &str| doing.starts_with("preparing");
                assert!(
                    matches!(&error, Some(Error::Poisoned(_)))
                        || matches!(&error, Some(Error::Io { doing, .. }) if is_refused(doing)),
                    "{error:?}"
                );
            });
        }
    });
    drop(wal);
    disk.clear_faults();
    let wal = open(&disk.power_cut(9), 2).unwrap();
    let found: u64 = (0..8).filter_map(|thread| wal.last_index(StreamId(thread))).sum();
    assert!(found >= acknowledged.into_inner());
}

#[test]
fn a_full_disk_refuses_appends_cleanly_until_there_is_room() {
    for threads in [false, true] {
        let disk = SimulatedDisk::new(1);
        disk.set_capacity(Some(200_000));
        let open = || Wal::open(Arc::new(disk.clone()), WalOptions { threads, ..options(1) });
        let wal = open().unwrap();
        let stream = StreamId(0);
        let mut last = 0;
        let refused = loop {
            match wal.append(stream, last + 1, &[&[last as u8; 1000]]) {
                Ok(ticket) => {
                    wal.wait_durable(ticket).unwrap();
                    last += 1;
                }
                Err(error) => break error,
            }
            assert!(last < 1000, "the disk never filled up");
        };
        let Error::Io { source, .. } = &refused else { panic!("{refused}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(wal.last_index(stream), Some(last), "nothing was appended");
        assert!(wal.append(stream, last + 1, &[&[1; 1000]]).is_err());
        assert!(wal.poisoned().is_none());
        // Registers by themselves fill up what is left, but for what purging needs, with a register or without.
        let votes = (0..1000u32).take_while(|vote| {
            let written =
                wal.set_state(stream, &vote.to_le_bytes()).and_then(|ticket| wal.wait_durable(ticket));
            written.is_ok()
        });
        assert!(votes.count() < 1000, "registers never filled the disk");
        // Purging needs no new segment, and makes one.
        let ticket = wal.purge_to_with_state(stream, last - 5, b"purged").unwrap();
        assert_eq!(wal.state(stream).as_deref(), Some(&b"purged"[..]));
        wal.wait_durable(ticket).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(error) = wal.append(stream, last + 1, &[&[1; 1000]]) {
            assert!(std::time::Instant::now() < deadline, "still refused: {error}");
        }
        wal.sync().unwrap();
        drop(wal);
        let wal = open().unwrap();
        assert_eq!((wal.first_index(stream), wal.last_index(stream)), (Some(last - 4), Some(last + 1)));
    }
}

// ---- damage ----------------------------------------------------------------------------------

/// A WAL of a few segments, closed in order, and what it holds.
fn small_wal() -> (SimulatedDisk, Content) {
    let disk = SimulatedDisk::new(3);
    let wal = open(&disk, 3).unwrap();
    let mut history = History::default();
    let mut random = Random(3);
    for index in 1..=16 {
        let bytes = vec![random.next() as u8; random.below(60) as usize];
        for change in [
            Change::Append(0, index, bytes.clone()),
            Change::Append(1, index, bytes),
            Change::Register(2, index.to_le_bytes().to_vec()),
        ] {
            make(&wal, &change).unwrap();
            history.changes.push(change);
        }
        wal.sync().unwrap();
    }
    history.changes.push(Change::Purge(0, 3));
    wal.purge_to(StreamId(0), 3).unwrap();
    wal.close().unwrap();
    (disk, history.content(history.changes.len()))
}

/// Bits worth flipping: all of what was written, and some of the zeros.
fn bits(bytes: &[u8]) -> impl Iterator<Item = (u64, u8)> + '_ {
    let near =
        |at: usize| bytes[at.saturating_sub(8)..(at + 8).min(bytes.len())].iter().any(|byte| *byte != 0);
    (0..bytes.len())
        .filter(move |at| near(*at) || at % 509 == 0)
        .flat_map(|at| (0..8).map(move |bit| (at as u64, bit)))
}

#[test]
fn every_flipped_bit_is_harmless_or_reported_with_its_place() {
    let (disk, expected) = small_wal();
    let (mut harmless, mut reported) = (0, 0);
    for path in disk.files() {
        for (offset, bit) in bits(&disk.content(&path).unwrap()) {
            let disk = disk.duplicate();
            disk.flip_bit(&path, offset, bit);
            match open(&disk, 4) {
                Ok(wal) => {
                    let found = Content::of(&wal).unwrap();
                    assert_eq!(found, expected, "{} byte {offset} bit {bit}", path.display());
                    harmless += 1;
                }
                Err(Error::Corrupt(corruption)) => {
                    assert!(corruption.offset.is_some(), "{corruption}");
                    assert_eq!(corruption.file, path, "byte {offset} bit {bit}: {corruption}");
                    reported += 1;
                }
                Err(other) => panic!("{} byte {offset} bit {bit}: {other}", path.display()),
            }
        }
    }
    println!("{harmless} harmless, {reported} reported");
    assert!(harmless > 1000 && reported > 10_000, "{harmless} harmless, {reported} reported");
}

#[test]
fn a_bit_that_flips_while_the_wal_is_open_is_reported_when_it_is_read() {
    let disk = SimulatedDisk::new(3);
    let wal = open(&disk, 3).unwrap();
    for index in 1..=40 {
        wal.append(StreamId(0), index, &[&[7; 900]]).unwrap();
        wal.sync().unwrap();
    }
    let number = wal.stats().active_segment;
    for number in [1, number] {
        let path = PathBuf::from(format!("db/wal/{number:016x}.wal"));
        let content = disk.content(&path).unwrap();
        let at = content.windows(900).position(|window| window == [7; 900]).unwrap();
        disk.flip_bit(&path, at as u64 + 450, 3);
        let mut sound = 0;
        let replayed = wal.replay(StreamId(0), if number == 1 { 1 } else { 33 }, &mut |_, bytes| {
            assert_eq!(bytes, [7; 900]);
            sound += 1;
            Ok(())
        });
        match replayed {
            Err(Error::Corrupt(corruption)) => assert_eq!(corruption.file, path),
            other => panic!("{other:?} after {sound} entries"),
        }
    }
}

#[test]
fn arbitrary_files_never_panic() {
    for_seeds("arbitrary_files_never_panic", 300, |seed| {
        let (disk, _) = small_wal();
        let mut random = Random(seed);
        let files = disk.files();
        for _ in 0..1 + random.below(4) {
            let path = &files[random.below(files.len() as u64) as usize];
            let mut content = disk.content(path).unwrap();
            match random.below(5) {
                0 => content.truncate(random.below(content.len() as u64 + 1) as usize),
                1 => disk.remove_content(path),
                2 => {
                    let other = disk.content(&files[random.below(files.len() as u64) as usize]);
                    content = other.unwrap_or_default();
                }
                _ => {
                    let at = random.below(8) as usize * 4096;
                    let end = content.len().min(at + 1 + random.below(5000) as usize);
                    if at < end {
                        content[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8);
                    }
                }
            }
            if disk.content(path).is_some() {
                disk.set_content(path, content);
            }
            if disk.files().len() < files.len() {
                break;
            }
        }
        let summary = inspect(&disk, Path::new("db/wal"), &mut |_| Ok(()));
        let opened = open(&disk, seed);
        if let (Err(Error::Corrupt(corruption)), Ok(summary)) = (&opened, &summary) {
            assert!(!summary.damage.is_empty(), "inspection does not see {corruption}");
        }
        if let Ok(wal) = opened {
            Content::of(&wal).unwrap();
        }
    });
}

#[test]
fn inspection_saves_what_is_sound_and_names_what_is_lost() {
    let (disk, _) = small_wal();
    let directory = Path::new("db/wal");
    let entries = |disk: &SimulatedDisk| {
        let mut entries = BTreeSet::new();
        let summary = inspect(disk, directory, &mut |event| {
            if let Event::Record { kind: RecordKind::Append, stream, index, discarded: false, .. } = event {
                entries.insert((stream, index));
            }
            Ok(())
        });
        (summary.unwrap(), entries)
    };
    let (summary, all) = entries(&disk);
    assert!(summary.damage.is_empty(), "{summary:?}");
    assert_eq!(all.len(), 32);
    // The second group of the first segment: entry 2 of both streams.
    let path = PathBuf::from("db/wal/0000000000000001.wal");
    let disk = disk.duplicate();
    disk.flip_bit(&path, 3 * 4096 + 80, 1);
    let (summary, found) = entries(&disk);
    assert_eq!(summary.damage.len(), 1);
    assert_eq!((&summary.damage[0].file, summary.damage[0].offset), (&path, Some(3 * 4096)));
    assert_eq!(summary.lost_groups, [(2, 2)]);
    let lost: Vec<_> = all.difference(&found).copied().collect();
    assert_eq!(lost, [(StreamId(0), 2), (StreamId(1), 2)]);
}

#[test]
fn frames_of_an_earlier_life_never_come_back() {
    // Few segments taking turns: each life of a file lays groups at the same offsets.
    let mut disk = SimulatedDisk::new(1);
    let mut next = 1u64;
    let stream = StreamId(0);
    for life in 0..80u64 {
        let wal = open(&disk, life).unwrap();
        assert_eq!(wal.last_index(stream), (next > 1).then(|| next - 1));
        for _ in 0..3 {
            wal.append(stream, next, &[&next.to_le_bytes()]).unwrap();
            wal.sync().unwrap();
            next += 1;
        }
        wal.purge_to(stream, next - 2).unwrap();
        wal.sync().unwrap();
        assert!(life < 40 || wal.stats().first_segment > 5, "{:?}", wal.stats());
        let active = wal.stats().active_segment;
        // No orderly end: what follows the last group is what an earlier life left.
        disk = disk.power_cut(life);
        drop(wal);
        let wal = open(&disk, life + 1000).unwrap();
        assert_eq!(wal.stats().active_segment, active, "an earlier life's frames taken for a torn tail");
        assert_eq!((wal.first_index(stream), wal.last_index(stream)), (Some(next - 1), Some(next - 1)));
        let entry = wal.read(stream, next - 1, next, 100).unwrap();
        assert_eq!(entry[0].1, (next - 1).to_le_bytes());
    }
}
