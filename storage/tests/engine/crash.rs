//! The whole engine (WAL, checkpoints, redb) on a disk that crashes, loses, tears, refuses and is
//! full. After each: it opens, all that was acknowledged as synced is there, the state is exactly
//! a prefix of the history, and it lives and dies once more.
//!
//! The WAL has threads of its own, so which change of the disk is the `n`th differs a little from
//! run to run: a replayed seed meets the same commands, and nearly the same crash.
//!
//! CI tries a sample of the places of each search; `DOGSLED_EXHAUSTIVE=1` tries every one of them.

use std::time::{Duration, Instant};

use dogsled_storage::disk::{Fault, Operation, SimulatedDisk};
use dogsled_storage::{Command, Durability, Engine, Error, TreeId};

use crate::support::compare::assert_engine_is;
use crate::support::lives::{End, Past};
use crate::support::{Random, Watchdog, for_each_seed, from_environment};

/// Steps of the life that is interrupted, and of the one after it.
const STEPS: u64 = 120;
const STEPS_AFTER: u64 = 30;

fn is_exhaustive() -> bool {
    from_environment("DOGSLED_EXHAUSTIVE").is_some_and(|on| on != 0)
}

/// How many of the places of a search are tried in one run of a seed, spread evenly and beginning
/// somewhere else for every seed.
const PLACES: u64 = 150;

fn places(total: u64, seed: u64) -> impl Iterator<Item = u64> {
    let stride = if is_exhaustive() { 1 } else { total.div_ceil(PLACES).max(1) };
    (1 + seed % stride..=total).step_by(stride as usize)
}

/// What an undisturbed life needs, in calls and changes.
fn measure(seed: u64) -> (u64, u64) {
    let disk = SimulatedDisk::new(seed);
    let mut past = Past::new(seed);
    let engine = past.open(&disk, "undisturbed");
    let end = past.live(engine, STEPS);
    assert!(matches!(end, End::Alive), "undisturbed: {end:?}");
    (disk.calls(), disk.changes())
}

/// How the machine comes back.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// The power went: what was not synced is there or not.
    PowerCut,
    /// The process died: what was written is there, synced or not.
    Kill,
}

impl Restart {
    fn of(self, disk: &SimulatedDisk, seed: u64) -> SimulatedDisk {
        match self {
            Restart::PowerCut => disk.power_cut(seed),
            Restart::Kill => disk.process_kill(),
        }
    }
}

/// Lives on a disk that crashes at its `place`th change, then once more with a crash, then in
/// peace.
fn die_twice(seed: u64, place: u64, restart: Restart) {
    let context = format!("seed {seed}, {restart:?} at change {place}");
    let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
    let mut random = Random::new(seed ^ place << 20);
    let disk = SimulatedDisk::new(seed);
    disk.crash_at_change(place);
    let mut past = Past::new(seed);
    if let Ok(engine) = past.open_first(&disk) {
        past.live(engine, STEPS);
    }
    let disk = restart.of(&disk, random.next());
    let engine = past.open(&disk, &context);
    disk.crash_at_change(disk.changes() + 1 + random.below(60));
    past.live(engine, STEPS_AFTER);
    let disk = disk.power_cut(random.next());
    let engine = past.open(&disk, &format!("{context}, and a second power cut"));
    let end = past.live(engine, STEPS_AFTER);
    assert!(matches!(end, End::Alive), "{context}, and in peace: {end:?}");
    past.open(&disk, &format!("{context}, closed in peace"));
}

#[test]
fn a_power_cut_at_any_write_or_sync_loses_nothing_acknowledged() {
    for_each_seed("engine", "crash::a_power_cut_at_any_write_or_sync", 3, |seed| {
        let (_, changes) = measure(seed);
        for place in places(changes, seed) {
            die_twice(seed, place, Restart::PowerCut);
        }
    });
}

#[test]
fn a_kill_at_any_write_or_sync_loses_nothing_acknowledged() {
    for_each_seed("engine", "crash::a_kill_at_any_write_or_sync", 1, |seed| {
        let (_, changes) = measure(seed);
        for place in places(changes, seed) {
            die_twice(seed, place, Restart::Kill);
        }
    });
}

/// A fault of the disk while it lives, then a restart with a disk that works.
fn fail_once(seed: u64, fault: Fault, restart: Restart) {
    let context = format!("seed {seed}, {fault:?}, {restart:?}");
    let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
    let mut random = Random::new(seed ^ fault.after << 20);
    let disk = SimulatedDisk::new(seed);
    disk.inject(fault);
    let mut past = Past::new(seed);
    // An open that was refused can be tried again at once.
    let first = past.open_first(&disk).or_else(|error| {
        assert!(matches!(error, Error::Io { .. } | Error::Poisoned(_)), "{context}: {error:?}");
        past.open_first(&disk)
    });
    if let Ok(engine) = first {
        past.live(engine, STEPS);
    }
    disk.clear_faults();
    let disk = restart.of(&disk, random.next());
    let engine = past.open(&disk, &context);
    past.live(engine, STEPS_AFTER);
    // What the failed call left half done must not be relied on now either.
    let disk = disk.power_cut(random.next());
    let engine = past.open(&disk, &format!("{context}, and a power cut"));
    let end = past.live(engine, STEPS_AFTER);
    assert!(matches!(end, End::Alive), "{context}, and in peace: {end:?}");
}

#[test]
fn an_error_of_any_single_call_loses_nothing_acknowledged() {
    for_each_seed("engine", "crash::an_error_of_any_single_call", 2, |seed| {
        let (calls, _) = measure(seed);
        for place in places(calls, seed) {
            let restart = if place % 2 == 0 { Restart::PowerCut } else { Restart::Kill };
            fail_once(seed, Fault { operation: None, after: place, from_then_on: false }, restart);
        }
    });
}

#[test]
fn a_disk_that_fails_for_ever_loses_nothing_acknowledged() {
    for_each_seed("engine", "crash::a_disk_that_fails_for_ever", 1, |seed| {
        let (calls, _) = measure(seed);
        for place in places(calls, seed) {
            fail_once(seed, Fault { operation: None, after: place, from_then_on: true }, Restart::PowerCut);
        }
    });
}

/// The hardest case: after a failed sync the kernel takes the pages for clean, so the restarted
/// process reads what the disk never got, and no later sync writes it.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_taken_for_durable() {
    for_each_seed("engine", "crash::what_a_failed_sync_left_in_the_page_cache", 3, |seed| {
        for operation in [Operation::Sync, Operation::WriteSynced, Operation::SyncDirectory] {
            let disk = SimulatedDisk::new(seed);
            let mut past = Past::new(seed);
            let engine = past.open(&disk, "undisturbed");
            past.live(engine, STEPS);
            let step = if is_exhaustive() { 1 } else { 4 };
            for after in places(disk.count(operation), seed).step_by(step) {
                fail_once(
                    seed,
                    Fault { operation: Some(operation), after, from_then_on: false },
                    Restart::Kill,
                );
            }
        }
    });
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_what_it_has() {
    for_each_seed("engine", "crash::a_full_disk", 30, |seed| {
        let context = format!("seed {seed}, full disk");
        let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
        let disk = SimulatedDisk::new(seed);
        let mut past = Past::new(seed);
        let engine = past.open(&disk, &context);
        past.live(engine, 40);
        let mut random = Random::new(seed);
        disk.set_capacity(Some(disk.used() + random.below(200 << 10)));
        let mut refused = false;
        for _ in 0..200 {
            if refused && random.one_in(4) {
                break;
            }
            // Opened again and again: a full disk must not make it worse. It may refuse to open.
            let engine = match past.open_first(&disk) {
                Ok(engine) => engine,
                Err(error) => {
                    assert!(matches!(error, Error::Io { .. } | Error::Poisoned(_)), "{context}: {error:?}");
                    refused = true;
                    break;
                }
            };
            past.check(&engine, &context);
            if let End::Failed(error) = past.live(engine, 200) {
                assert!(matches!(error, Error::Io { .. } | Error::Poisoned(_)), "{context}: {error:?}");
                refused = true;
            }
        }
        assert!(refused, "{context}: the disk was never full");
        disk.set_capacity(None);
        let disk = if seed % 2 == 0 { disk.power_cut(seed) } else { disk.process_kill() };
        let engine = past.open(&disk, &format!("{context}, then room"));
        let end = past.live(engine, STEPS_AFTER);
        assert!(matches!(end, End::Alive), "{context}, then room: {end:?}");
    });
}

#[test]
fn ten_crashes_in_a_row_lose_nothing_acknowledged() {
    for_each_seed("engine", "crash::ten_crashes_in_a_row", 25, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(60));
        let mut random = Random::new(seed);
        let mut past = Past::new(seed);
        let mut disk = SimulatedDisk::new(seed);
        past.open(&disk, "new");
        for life in 0..10 {
            let context = format!("seed {seed}, life {life}");
            // Early ones hit the recovery itself.
            let reach = *random.pick(&[5, 30, 200]);
            disk.crash_at_change(disk.changes() + 1 + random.below(reach));
            if let Ok(engine) = past.open_first(&disk) {
                past.check(&engine, &context);
                past.live(engine, STEPS);
            }
            disk = if random.one_in(3) { disk.process_kill() } else { disk.power_cut(random.next()) };
        }
        past.open(&disk, &format!("seed {seed}, after ten crashes"));
    });
}

#[test]
fn crashes_with_checkpoints_and_syncs_in_the_background_lose_nothing_acknowledged() {
    for_each_seed("engine", "crash::crashes_with_checkpoints_and_syncs_in_the_background", 20, |seed| {
        let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(60));
        let mut random = Random::new(seed);
        let mut past = Past::new(seed);
        past.options = |options| {
            options.checkpoint_slice_keys = 5;
            options.background_threads = true;
            options.flush_every_ms = Some(1);
        };
        let mut disk = SimulatedDisk::new(seed);
        past.open(&disk, "new");
        for life in 0..5 {
            let context = format!("seed {seed}, life {life}");
            let crash_soon = |random: &mut Random| {
                disk.crash_at_change(disk.changes() + 1 + random.below(150));
            };
            if random.one_in(3) {
                // While it recovers, or does nothing but what its threads do.
                crash_soon(&mut random);
                drop(past.open_first(&disk));
            } else if let Ok(engine) = past.open_first(&disk) {
                past.check(&engine, &context);
                crash_soon(&mut random);
                past.live(engine, STEPS);
            }
            disk = disk.power_cut(random.next());
        }
        past.open(&disk, &format!("seed {seed}, after five crashes"));
    });
}

/// Many writers share a group, and a group is acknowledged as a whole: each writer's own
/// acknowledged writes must be there, and the commits of all a prefix, as watchers saw them.
#[test]
fn a_crash_under_many_writers_keeps_each_acknowledged_write_and_a_prefix_of_all() {
    for_each_seed("engine", "crash::a_crash_under_many_writers", 40, |seed| {
        many_writers(seed);
    });
}

fn many_writers(seed: u64) {
    use dogsled_storage::watch::Event;
    use std::collections::BTreeMap;

    let context = format!("seed {seed}");
    let _watchdog = Watchdog::new(context.clone(), Duration::from_secs(60));
    let past = Past::new(seed);
    let disk = SimulatedDisk::new(seed);
    let engine = past.open_first(&disk).expect("a new disk");
    let events = engine.watch(TreeId::DEFAULT, b"", 1 << 20);
    let mut random = Random::new(seed);
    disk.crash_at_change(disk.changes() + 1 + random.below(120));
    let acknowledged: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6u64)
            .map(|writer| {
                let engine = &engine;
                scope.spawn(move || {
                    // The last number that was acknowledged.
                    for number in 1..=200u64 {
                        let command = Command::Insert {
                            tree: TreeId::DEFAULT,
                            key: format!("writer {writer}").into(),
                            value: number.to_be_bytes().to_vec().into(),
                        };
                        let durability =
                            if number % 5 == 4 { Durability::Buffered } else { Durability::Synced };
                        match engine.execute(command, durability) {
                            Ok(_) => {}
                            // The last synced one before this.
                            Err(_) => {
                                let last = number - 1;
                                return if last % 5 == 4 { last - 1 } else { last };
                            }
                        }
                        if writer == 0 && number % 20 == 0 && engine.checkpoint().is_err() {
                            return number;
                        }
                    }
                    200
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect()
    });
    drop(engine);
    let disk = disk.power_cut(random.next());
    let engine = past.open_first(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut expected = BTreeMap::new();
    let mut last = 0;
    for event in std::iter::from_fn(|| events.next()) {
        let Event::Put { sequence, key, value } = event else { panic!("{context}: {event:?}") };
        assert!(sequence > last, "{context}: events out of order");
        last = sequence;
        if sequence <= engine.sequence() {
            expected.insert(key, value);
        }
    }
    let snapshot = engine.snapshot();
    let found: BTreeMap<_, _> = crate::support::compare::all(&snapshot, TreeId::DEFAULT)
        .map(|(key, found)| (key, found.value))
        .collect();
    assert_eq!(found, expected, "{context}: not the history up to {}", engine.sequence());
    for (writer, number) in acknowledged.iter().enumerate() {
        let value = found.get(format!("writer {writer}").as_bytes());
        let kept = value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().expect("eight bytes")));
        assert!(kept >= *number, "{context}: writer {writer} was told of {number}, and {kept} is there");
    }
}

/// The places where a directory is made: a crash there leaves nothing, or an empty database.
#[test]
fn a_crash_while_the_directory_is_made_leaves_an_empty_database_or_none() {
    for_each_seed("engine", "crash::a_crash_while_the_directory_is_made", 3, |seed| {
        let disk = SimulatedDisk::new(seed);
        let mut past = Past::new(seed);
        drop(past.open(&disk, "undisturbed"));
        for place in 1..=disk.changes() {
            for restart in [Restart::PowerCut, Restart::Kill] {
                let context = format!("seed {seed}, {restart:?} at change {place} of making it");
                let disk = SimulatedDisk::new(seed);
                disk.crash_at_change(place);
                drop(past.open_first(&disk));
                let disk = restart.of(&disk, place);
                let engine = past.open(&disk, &context);
                assert_eq!(engine.sequence(), 0);
                past.execute(&engine, Command::ReserveIds { count: 1 }, Durability::Synced)
                    .expect("a sound disk");
                drop(engine);
                past.open(&disk.power_cut(place), &context);
                past = Past::new(seed);
            }
        }
    });
}

/// Values large enough that one checkpoint takes several transactions of the full size.
#[test]
fn a_power_cut_between_the_transactions_of_one_checkpoint_loses_nothing() {
    let start = Instant::now();
    for_each_seed("engine", "crash::a_power_cut_between_the_transactions_of_one_checkpoint", 1, |seed| {
        let fill = |past: &mut Past, engine: &Engine| -> Result<(), Error> {
            for number in 0..30u8 {
                let key = vec![number % 20; 4];
                let value = vec![number; 2 << 20];
                let insert = Command::Insert { tree: TreeId::DEFAULT, key: key.into(), value: value.into() };
                past.execute(engine, insert, Durability::Buffered)?;
            }
            let clear = Command::CreateTree { name: "another".into() };
            past.execute(engine, clear, Durability::Synced)
        };
        let before = SimulatedDisk::new(seed);
        let mut past = Past::new(seed);
        past.options = |options| options.segment_size = 8 << 20;
        let engine = past.open(&before, "new");
        fill(&mut past, &engine).expect("a sound disk");
        drop(engine);
        let model = past.at(past.commits());
        let undisturbed = before.duplicate();
        let engine = past.open(&undisturbed, "undisturbed");
        let (changes_before, syncs_before) = (undisturbed.changes(), undisturbed.count(Operation::Sync));
        engine.checkpoint().expect("a sound disk");
        let changes = undisturbed.changes() - changes_before;
        assert_eq!(engine.stats().expect("figures").checkpoints, 1);
        // Each transaction of redb syncs at least once, and nothing else does so as often.
        let syncs = undisturbed.count(Operation::Sync) - syncs_before;
        assert!(syncs >= 8, "{syncs} syncs are of few transactions");
        drop(engine);
        let step = if is_exhaustive() { 1 } else { (changes / 12).max(1) };
        for (tested, place) in (1..=changes).step_by(step as usize).enumerate() {
            if start.elapsed() > Duration::from_secs(20)
                && tested >= 6
                && from_environment("DOGSLED_SEEDS").is_none()
                && !is_exhaustive()
            {
                break;
            }
            let context = format!("seed {seed}, change {place} of {changes}");
            let disk = before.duplicate();
            let engine = past.open(&disk, &context);
            disk.crash_at_change(disk.changes() + place);
            let _ = engine.checkpoint();
            drop(engine);
            let disk = disk.power_cut(place);
            let engine = past.open(&disk, &context);
            assert_engine_is(&engine, &model, &context);
            engine.checkpoint().expect("a sound disk");
            assert_engine_is(&engine, &model, &context);
        }
    });
}
