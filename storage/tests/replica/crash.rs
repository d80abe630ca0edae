//! Replicas on a disk that crashes at every write: what a replica comes back with is exactly the
//! state at a position of its log, at or behind the last checkpoint that was acknowledged, and the
//! log still has everything after it. Of a snapshot that is being installed there is all or
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::disk::{Fault, SimulatedDisk};
use dogsled_storage::wal::{StreamId, Wal};
use dogsled_storage::{ChunkPosition, Error, Replica, ReplicaInstaller, Result};

use crate::replicas::{Log, LogMaker, apply, assert_replica_is, open_wal, options, send};
use crate::support::{Random, Watchdog, for_each_seed};

const STREAM: StreamId = StreamId(1);
const LENGTH: u64 = 100;
const PLACES: u64 = 150;

fn places(total: u64, seed: u64) -> impl Iterator<Item = u64> {
    let stride = total.div_ceil(PLACES).max(1);
    (1 + seed % stride..=total).step_by(stride as usize)
}

/// What must survive.
#[derive(Default)]
struct Promised {
    /// By a checkpoint that returned.
    applied: u64,
    /// By a sync of the WAL that returned.
    logged: u64,
}

/// Opens WAL and replica, and goes on with the log: entries that the WAL has are applied again,
/// the others come from the leader. As in a node, an entry may be applied before it is durable
/// here: it is so elsewhere.
fn live(
    disk: &SimulatedDisk,
    log: &Log,
    random: &mut Random,
    promised: &mut Promised,
) -> Result<Arc<Replica>> {
    let wal = open_wal(disk)?;
    let replica = Replica::open(options(disk, 1), Arc::clone(&wal))?;
    go_on(&wal, &replica, log, random, promised)?;
    Ok(replica)
}

fn go_on(
    wal: &Wal,
    replica: &Replica,
    log: &Log,
    random: &mut Random,
    promised: &mut Promised,
) -> Result<()> {
    loop {
        let next = replica.applied().position + 1;
        if next > LENGTH {
            return Ok(());
        }
        if wal.last_index(STREAM).unwrap_or(0) < next {
            wal.append(STREAM, next, &[log.entries[next as usize - 1].bytes.as_deref().unwrap_or(b"blank")])?;
        }
        apply(replica, log, next)?;
        match random.below(12) {
            0 => {
                replica.checkpoint()?;
                promised.applied = next;
                // What is folded may leave the log.
                if random.one_in(2) {
                    wal.purge_to(STREAM, next - random.below(next).min(3))?;
                }
            }
            1..=3 => {
                wal.sync()?;
                promised.logged = next;
            }
            _ => {}
        }
    }
}

fn check(disk: &SimulatedDisk, log: &Log, promised: &mut Promised, context: &str) {
    let wal = open_wal(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let replica = Replica::open(options(disk, 1), Arc::clone(&wal))
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let applied = replica.applied();
    assert_eq!(applied, replica.durable_applied(), "{context}");
    assert!(applied.position >= promised.applied, "{context}: {applied:?}, promised {}", promised.applied);
    assert_replica_is(&replica, log, context);
    let last = wal.last_index(STREAM).unwrap_or(0);
    let end = last.max(wal.first_index(STREAM).map_or(applied.position, |_| 0));
    assert!(end >= promised.logged.max(applied.position), "{context}: {applied:?}, the WAL ends with {last}");
    if let Some(first) = wal.first_index(STREAM) {
        assert!(first <= applied.position + 1, "{context}: {applied:?}, the WAL begins with {first}");
    }
    promised.applied = applied.position;
    promised.logged = last;
}

#[test]
fn a_crash_at_any_write_leaves_the_state_of_a_checkpoint() {
    for_each_seed("replica", "crash::a_crash_at_any_write_leaves_the_state", 3, |seed| {
        let log = LogMaker::log(seed, LENGTH);
        let undisturbed = SimulatedDisk::new(seed);
        live(&undisturbed, &log, &mut Random::new(seed), &mut Promised::default()).expect("nothing fails");
        for place in places(undisturbed.changes(), seed) {
            let context = format!("seed {seed}, crash at change {place}");
            let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
            let mut random = Random::new(seed ^ place << 20);
            let mut promised = Promised::default();
            let mut disk = SimulatedDisk::new(seed);
            disk.crash_at_change(place);
            let mut choices = Random::new(seed);
            for life in 0..3 {
                let result = live(&disk, &log, &mut choices, &mut promised).map(drop);
                assert!(life < 2 || result.is_ok(), "{context}: {result:?}");
                let kill = random.one_in(4);
                disk = if kill { disk.process_kill() } else { disk.power_cut(random.next()) };
                check(&disk, &log, &mut promised, &format!("{context}, life {life}"));
                if life == 0 {
                    disk.crash_at_change(disk.changes() + 1 + random.below(60));
                }
            }
        }
    });
}

#[test]
fn an_error_of_any_call_stops_the_replica_and_harms_nothing() {
    for_each_seed("replica", "crash::an_error_of_any_call_stops_the_replica", 1, |seed| {
        let log = LogMaker::log(seed, LENGTH);
        let undisturbed = SimulatedDisk::new(seed);
        live(&undisturbed, &log, &mut Random::new(seed), &mut Promised::default()).expect("nothing fails");
        for place in places(undisturbed.calls(), seed) {
            let context = format!("seed {seed}, error of call {place}");
            let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
            let disk = SimulatedDisk::new(seed);
            disk.inject(Fault { operation: None, after: place, from_then_on: place % 2 == 0 });
            let mut promised = Promised::default();
            if let Err(error) = live(&disk, &log, &mut Random::new(seed), &mut promised) {
                assert!(matches!(error, Error::Io { .. } | Error::Poisoned(_)), "{context}: {error:?}");
            }
            disk.clear_faults();
            let disk = disk.power_cut(seed ^ place);
            check(&disk, &log, &mut promised, &context);
            live(&disk, &log, &mut Random::new(seed), &mut promised).expect(&context);
        }
    });
}

/// The state after a checkpoint at `position`, on a disk of its own.
fn replica_at(log: &Log, seed: u64, position: u64) -> (SimulatedDisk, Arc<Replica>) {
    let disk = SimulatedDisk::new(seed);
    let replica = Replica::open(options(&disk, 1), open_wal(&disk).expect("a new disk")).expect("a new disk");
    for position in 1..=position {
        apply(&replica, log, position).expect("nothing fails");
    }
    replica.checkpoint().expect("nothing fails");
    (disk, replica)
}

/// Receives and installs; `Ok` once it has returned that it is done.
fn install(disk: &SimulatedDisk, source: &Replica, chunk_bytes: usize) -> Result<()> {
    let mut installer = ReplicaInstaller::begin(&options(disk, 1))?;
    send(&source.snapshot(), &mut installer, chunk_bytes)?;
    installer.finish()?;
    Ok(())
}

fn install_and_crash(seed: u64, old: Option<u64>) {
    let log = LogMaker::log(seed, LENGTH);
    let (_, source) = replica_at(&log, seed, LENGTH - 10);
    let before = match old {
        Some(position) => replica_at(&log, seed + 1, position).0,
        None => SimulatedDisk::new(seed),
    };
    let chunk_bytes = 2000;
    let undisturbed = before.duplicate();
    install(&undisturbed, &source, chunk_bytes).expect("nothing fails");
    let changes = undisturbed.changes() - before.duplicate().changes();
    assert!(changes > 10);
    let mut outcomes = [0; 2];
    for place in 1..=changes {
        for (round, restart) in ["power cut", "power cut", "kill"].into_iter().enumerate() {
            let context = format!("seed {seed}, over {old:?}, {restart} at change {place}");
            let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
            let disk = before.duplicate();
            disk.crash_at_change(disk.changes() + place);
            let done = install(&disk, &source, chunk_bytes).is_ok();
            let disk = match restart {
                "kill" => disk.process_kill(),
                _ => disk.power_cut(seed ^ place << 8 ^ round as u64),
            };
            let wal = open_wal(&disk).expect(&context);
            let replica = Replica::open(options(&disk, 1), Arc::clone(&wal)).expect(&context);
            let position = replica.applied().position;
            let is_new = position == LENGTH - 10;
            assert!(is_new || (!done && position == old.unwrap_or(0)), "{context}: {position}, done: {done}");
            outcomes[usize::from(is_new)] += 1;
            assert_replica_is(&replica, &log, &context);
            // It lives on, and what was half there is in nobody's way.
            apply(&replica, &log, position + 1).expect(&context);
            replica.checkpoint().expect(&context);
            if !is_new {
                drop(replica);
                install(&disk, &source, 100_000).expect(&context);
                let replica = Replica::open(options(&disk, 1), wal).expect(&context);
                assert_eq!(replica.applied(), source.applied(), "{context}");
                assert_replica_is(&replica, &log, &context);
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "both must come up: {outcomes:?}");
}

#[test]
fn a_crash_while_a_snapshot_is_installed_leaves_the_old_state_or_the_new() {
    for_each_seed("replica", "crash::a_crash_while_a_snapshot_is_installed", 2, |seed| {
        install_and_crash(seed, Some(30));
    });
}

#[test]
fn a_crash_while_a_first_snapshot_is_installed_leaves_nothing_or_all() {
    for_each_seed("replica", "crash::a_crash_while_a_first_snapshot", 2, |seed| {
        install_and_crash(seed, None)
    });
}

#[test]
fn a_transfer_goes_on_where_it_broke_off_whoever_sends() {
    let log = LogMaker::log(5, LENGTH);
    let (_, first) = replica_at(&log, 1, 80);
    let (_, second) = replica_at(&log, 2, 80);
    let (_, ahead) = replica_at(&log, 3, 81);
    let disk = SimulatedDisk::new(4);
    let mut installer = ReplicaInstaller::begin(&options(&disk, 1)).unwrap();
    let mut random = Random::new(6);
    let mut last: Option<Vec<u8>> = None;
    while !installer.is_complete() {
        let from = installer.position().clone();
        let sender = if random.one_in(2) { &first } else { &second };
        let max_bytes = 1 + random.below(4000) as usize;
        let bytes = sender.snapshot().chunk(&from, max_bytes).unwrap().bytes;
        // Damaged on the way, twice the same, of another snapshot: nothing happens.
        for _ in 0..20 {
            let mut damaged = bytes.clone();
            let bit = random.below(damaged.len() as u64 * 8) as usize;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(installer.chunk(&damaged), Err(Error::InvalidRequest(_))), "bit {bit}");
        }
        assert!(installer.chunk(&bytes[..bytes.len() / 2]).is_err());
        if let Some(last) = &last {
            assert!(matches!(installer.chunk(last), Err(Error::InvalidRequest(_))));
        }
        if installer.applied().is_some()
            && let Ok(other) = ahead.snapshot().chunk(&from, 500)
        {
            assert!(matches!(installer.chunk(&other.bytes), Err(Error::InvalidRequest(_))));
        }
        assert!(matches!(installer.finish(), Err(Error::InvalidRequest(_))));
        assert_eq!(installer.position(), &from);
        installer.chunk(&bytes).unwrap();
        last = Some(bytes);
    }
    assert!(installer.chunk(&last.unwrap()).is_err());
    assert_eq!(installer.applied(), Some(first.applied()));
    installer.finish().unwrap();
    let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
    assert_replica_is(&replica, &log, "installed from two senders");
    let fingerprint = |replica: &Replica| replica.snapshot().fingerprint().unwrap();
    assert_eq!(fingerprint(&replica), fingerprint(&first));
    assert_ne!(fingerprint(&replica), fingerprint(&ahead));
}

/// Chunks with sound checksums whose contents are not: what a broken or hostile sender makes.
#[test]
fn a_chunk_that_is_sound_and_wrong_is_refused() {
    let log = LogMaker::log(5, LENGTH);
    let (_, source) = replica_at(&log, 1, 80);
    let snapshot = source.snapshot();
    let record = snapshot.chunk(&ChunkPosition::default(), 1000).unwrap();
    let entries = snapshot.chunk(&record.next, 1000).unwrap();
    let mut refused = 0;
    for seed in 0..3_000 {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::new(seed);
        let mut installer = ReplicaInstaller::begin(&options(&disk, 1)).unwrap();
        let mut bytes = if random.one_in(3) {
            record.bytes.clone()
        } else {
            installer.chunk(&record.bytes).unwrap();
            entries.bytes.clone()
        };
        let end = bytes.len() - 4;
        for _ in 0..1 + random.below(2) {
            let place = 8 + random.below(end as u64 - 8) as usize;
            bytes[place] = *random.pick(&[0, 1, 0xff, 0x80, 251, bytes[place].wrapping_add(1)]);
        }
        let crc = crc32(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        match installer.chunk(&bytes) {
            // It may lie of what comes next, and leave entries out: then their number is wrong.
            Ok(()) => {
                let mut rest = || -> Result<()> {
                    while !installer.is_complete() {
                        let chunk = snapshot.chunk(installer.position(), 100_000)?;
                        installer.chunk(&chunk.bytes)?;
                    }
                    installer.finish().map(drop)
                };
                if let Err(error) = rest() {
                    assert!(matches!(error, Error::InvalidRequest(_)), "seed {seed}: {error:?}");
                    continue;
                }
                let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
                assert_replica_is(&replica, &log, &format!("seed {seed}"));
            }
            Err(error) => {
                assert!(matches!(error, Error::InvalidRequest(_)), "seed {seed}: {error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 2_000, "{refused}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
