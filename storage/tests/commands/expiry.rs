//! Times to live: what a key's end means to every command, in a model and in an engine that crashes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commands_support::Random;
use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::disk::{RealDisk, SimulatedDisk};
use dogsled_storage::model::ModelState;
use dogsled_storage::watch::Event;
use dogsled_storage::{
    Command, Durability, Engine, Error, ExpiryCommand, ExpiryReply, IVec, Options, Reply, SetIf, TreeId,
    When, Write,
};

use crate::support::{TestClock, open_small};

const TREE: TreeId = TreeId::DEFAULT;

fn insert_for(key: &str, value: &str, when: When) -> Command {
    Command::Expiry(ExpiryCommand::Insert { tree: TREE, key: key.into(), value: value.into(), when })
}

fn set(key: &str, when: When, only: SetIf) -> Command {
    Command::Expiry(ExpiryCommand::Set { tree: TREE, key: key.into(), when, only })
}

fn get(key: &str) -> Command {
    Command::Expiry(ExpiryCommand::Get { tree: TREE, key: key.into() })
}

fn expires(at: Option<u64>) -> Reply {
    Reply::Expiry(ExpiryReply::Expires(at))
}

#[test]
fn a_key_is_gone_for_every_command_from_its_end_on() {
    let mut state = ModelState::new();
    state.execute(1_000, &insert_for("k", "v", When::After(500))).unwrap();
    assert_eq!(state.execute(1_499, &get("k")).unwrap(), expires(Some(1_500)));
    let read = KeyRead { tree: TREE, key: "k".into(), version: 1 };
    let transact = |read: KeyRead| Command::Transact {
        reads: vec![read],
        ranges: Vec::new(),
        writes: Vec::new(),
        expiries: Vec::new(),
    };
    assert_eq!(state.execute(1_499, &transact(read.clone())).unwrap(), Reply::Done);
    // From here on it is absent, though nothing has removed it.
    let at = 1_500;
    assert_eq!(state.len(TREE), 1);
    assert_eq!(state.execute(at, &get("k")).unwrap(), Reply::Expiry(ExpiryReply::Absent));
    assert_eq!(state.execute(at, &transact(read.clone())).unwrap(), Reply::Conflict);
    assert_eq!(state.execute(at, &transact(KeyRead { version: 0, ..read })).unwrap(), Reply::Done);
    let remove = Command::Remove { tree: TREE, key: "k".into() };
    assert_eq!(state.execute(at, &remove).unwrap(), Reply::Previous(None));
    let pop = |last| Command::Pop { tree: TREE, last };
    assert_eq!(state.execute(at, &pop(false)).unwrap(), Reply::Popped(None));
    assert_eq!(state.execute(at, &pop(true)).unwrap(), Reply::Popped(None));
    let swap = |old: Option<&str>| Command::CompareAndSwap {
        tree: TREE,
        key: "k".into(),
        old: old.map(IVec::from),
        new: Some("new".into()),
    };
    assert_eq!(state.execute(at, &swap(Some("v"))).unwrap(), Reply::Swapped(Err(None)));
    assert_eq!(
        state.execute(at, &set("k", When::After(9), SetIf::Always)).unwrap(),
        Reply::Expiry(ExpiryReply::Unchanged)
    );
    let range = RangeRead {
        tree: TREE,
        low: IVec::new(),
        high: None,
        count: 0,
        fingerprint: RangeFingerprint::default().finish(),
    };
    let (ranges, writes, expiries) = (vec![range], Vec::new(), Vec::new());
    let empty = Command::Transact { reads: Vec::new(), ranges, writes, expiries };
    assert_eq!(state.execute(at, &empty).unwrap(), Reply::Done);
    // Written anew it is there, for good, and the old end has no power over it.
    assert_eq!(state.execute(at, &swap(None)).unwrap(), Reply::Swapped(Ok(())));
    assert_eq!(state.execute(at, &get("k")).unwrap(), expires(None));
    let settled = state.execute(at, &Command::SettleDue { limit: 10 }).unwrap();
    assert_eq!(settled, Reply::Settled { keys: 1, locks: 0, more: false });
    assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (1, 0));
}

#[test]
fn every_plain_write_takes_the_time_to_live_and_an_operation_of_it_does_not() {
    let writes: Vec<(Command, Option<u64>)> = vec![
        (Command::Insert { tree: TREE, key: "k".into(), value: "w".into() }, None),
        (Command::Put { tree: TREE, key: "k".into(), value: "w".into() }, None),
        (
            Command::Batch { writes: vec![Write { tree: TREE, key: "k".into(), value: Some("w".into()) }] },
            None,
        ),
        (
            Command::CompareAndSwap {
                tree: TREE,
                key: "k".into(),
                old: Some("v".into()),
                new: Some("w".into()),
            },
            None,
        ),
        (Command::Expiry(ExpiryCommand::Clear { tree: TREE, key: "k".into() }), None),
        (insert_for("k", "w", When::Keep), Some(1_500)),
        (insert_for("k", "w", When::After(700)), Some(1_700)),
        (insert_for("k", "w", When::At(1_800)), Some(1_800)),
        (set("k", When::At(1_900), SetIf::Always), Some(1_900)),
    ];
    for (command, after) in writes {
        let mut state = ModelState::new();
        state.execute(1_000, &insert_for("k", "v", When::After(500))).unwrap();
        state.execute(1_000, &command).unwrap();
        assert_eq!(state.execute(1_000, &get("k")).unwrap(), expires(after), "{command:?}");
        // And so it is at the end.
        for (at, there) in [(1_499, true), (1_500, after != Some(1_500)), (1_900, after.is_none())] {
            let found = state.clone().execute(at, &get("k")).unwrap();
            assert_eq!(found != Reply::Expiry(ExpiryReply::Absent), there, "{command:?} at {at}");
            let mut settled = state.clone();
            settled.execute(at, &Command::SettleDue { limit: 10 }).unwrap();
            assert_eq!(settled.len(TREE) == 1, there, "{command:?} settled at {at}");
        }
        let mut settled = state.clone();
        settled.execute(9_000, &Command::SettleDue { limit: 10 }).unwrap();
        assert_eq!(settled.len(TreeId::EXPIRY), 0, "{command:?} leaves something behind");
    }
}

#[test]
fn conditions_on_the_time_to_live() {
    // Before, asked for, and which conditions let it be changed: none, some, later, earlier.
    let cases = [
        (None, 1_500, [true, false, false, true]),
        (Some(1_400), 1_500, [false, true, true, false]),
        (Some(1_600), 1_500, [false, true, false, true]),
        (Some(1_500), 1_500, [false, true, false, false]),
    ];
    for (before, at, expected) in cases {
        let conditions = [SetIf::None, SetIf::Some, SetIf::Later, SetIf::Earlier];
        for (only, changes) in conditions.into_iter().zip(expected) {
            let mut state = ModelState::new();
            let when = before.map_or(When::Keep, When::At);
            state.execute(1_000, &insert_for("k", "v", when)).unwrap();
            let reply = state.execute(1_000, &set("k", When::At(at), only)).unwrap();
            let context = format!("{before:?} {only:?}");
            let expected = if changes { ExpiryReply::Changed } else { ExpiryReply::Unchanged };
            assert_eq!(reply, Reply::Expiry(expected), "{context}");
            let after = if changes { Some(at) } else { before };
            assert_eq!(state.execute(1_000, &get("k")).unwrap(), expires(after), "{context}");
        }
    }
}

#[test]
fn an_end_that_is_over_removes_the_key_at_once_and_hides_none() {
    let mut state = ModelState::new();
    state.execute(1_000, &insert_for("k", "v", When::After(500))).unwrap();
    state.execute(1_000, &set("k", When::At(1_000), SetIf::Always)).unwrap();
    assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (0, 0));
    // A key that is hidden already must not come back by it.
    state.execute(1_000, &insert_for("k", "v", When::After(500))).unwrap();
    state.execute(1_500, &insert_for("k", "w", When::At(7))).unwrap();
    assert_eq!(state.execute(1_500, &get("k")).unwrap(), Reply::Expiry(ExpiryReply::Absent));
    state.execute(1_500, &Command::SettleDue { limit: 10 }).unwrap();
    assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (0, 0));
}

#[test]
fn what_has_no_time_to_live_is_refused() {
    let mut state = ModelState::new();
    let own = ExpiryCommand::Insert {
        tree: TreeId::COUNTERS,
        key: "c".into(),
        value: vec![0; 8].into(),
        when: When::After(5),
    };
    for command in [insert_for("k", "v", When::After(0)), Command::Expiry(own)] {
        let refused = state.execute(1_000, &command);
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");
    }
    let nowhere = ExpiryCommand::Get { tree: TreeId(99), key: "k".into() };
    assert!(matches!(state.execute(1_000, &Command::Expiry(nowhere)), Err(Error::TreeNotFound(_))));
}

#[test]
fn a_dropped_tree_leaves_nothing_behind_and_expired_keys_go_in_bounded_steps() {
    let mut state = ModelState::new();
    let Reply::Tree { id, .. } = state.execute(1, &Command::CreateTree { name: "t".into() }).unwrap() else {
        panic!()
    };
    for number in 0..10 {
        let key = IVec::from(format!("k{number}"));
        let insert = ExpiryCommand::Insert { tree: id, key, value: "v".into(), when: When::At(100 + number) };
        state.execute(1, &Command::Expiry(insert)).unwrap();
    }
    state.execute(1, &insert_for("other", "v", When::At(50))).unwrap();
    state.execute(1, &Command::DropTree { name: "t".into() }).unwrap();
    let mut steps = Vec::new();
    for at in [49, 50, 106, 106, 106, 500, 500] {
        match state.execute(at, &Command::SettleDue { limit: 3 }).unwrap() {
            Reply::Settled { keys, more, .. } => steps.push((keys, more)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(steps, [(0, false), (1, false), (3, true), (3, true), (1, false), (3, false), (0, false)]);
    assert_eq!(state.len(TreeId::EXPIRY), 0);
}

/// Keys with their values and ends, and the time: nothing is removed, all is looked at.
#[derive(Clone, Default)]
struct Plain(BTreeMap<IVec, (IVec, Option<u64>)>);

impl Plain {
    fn get(&self, key: &IVec, now: u64) -> Option<&(IVec, Option<u64>)> {
        self.0.get(key).filter(|(_, ends)| ends.is_none_or(|ends| ends > now))
    }

    fn live(&self, now: u64) -> Vec<(IVec, IVec)> {
        let live = self.0.keys().filter_map(|key| Some((key.clone(), self.get(key, now)?.0.clone())));
        live.collect()
    }

    fn put(&mut self, key: &IVec, value: IVec, ends: Option<u64>, now: u64) {
        if ends.is_some_and(|ends| ends <= now) {
            self.0.remove(key);
        } else {
            self.0.insert(key.clone(), (value, ends));
        }
    }
}

/// Random operations on an engine whose clock, disk and memory are shaken, against the plain map: at no
/// time does a key show that has expired, and none vanishes before.
#[test]
fn an_engine_shows_what_the_plain_map_does_at_every_time() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut disk = SimulatedDisk::new(seed);
        let clock = TestClock::new(1_000);
        let mut engine = open_small(&disk, &clock).unwrap();
        let mut plain = Plain::default();
        let (mut now, mut hidden) = (1_000, 0);
        for step in 0..500 {
            let elapsed = random.below(12);
            clock.advance(elapsed);
            now += elapsed;
            let key = IVec::from(format!("k{}", random.below(12)));
            let value = IVec::from(format!("v{step}"));
            let whence = format!("seed {seed}, step {step}, time {now}, {key:?}");
            let current = plain.get(&key, now).cloned();
            let execute = |command: Command| engine.execute(command, Durability::Buffered).unwrap();
            match random.below(16) {
                0..=4 => {
                    let (when, ends) = match random.below(6) {
                        0 => (When::Keep, current.as_ref().and_then(|current| current.1)),
                        1 => (When::At(now - 1), Some(now - 1)),
                        _ => {
                            let after = 1 + random.below(120);
                            (When::After(after), Some(now + after))
                        }
                    };
                    let insert =
                        ExpiryCommand::Insert { tree: TREE, key: key.clone(), value: value.clone(), when };
                    let reply = execute(Command::Expiry(insert));
                    assert_eq!(reply, Reply::Previous(current.map(|current| current.0)), "{whence}");
                    plain.put(&key, value, ends, now);
                }
                5 => {
                    let at = now + random.below(100);
                    let when = ExpiryCommand::Set {
                        tree: TREE,
                        key: key.clone(),
                        when: When::At(at),
                        only: SetIf::Always,
                    };
                    let reply = execute(Command::Expiry(when));
                    assert_eq!(reply == Reply::Expiry(ExpiryReply::Changed), current.is_some(), "{whence}");
                    if let Some((value, _)) = current {
                        plain.put(&key, value, Some(at), now);
                    }
                }
                6 => {
                    let had = current.as_ref().is_some_and(|current| current.1.is_some());
                    let clear = ExpiryCommand::Clear { tree: TREE, key: key.clone() };
                    let reply = execute(Command::Expiry(clear));
                    assert_eq!(reply == Reply::Expiry(ExpiryReply::Changed), had, "{whence}");
                    if let Some((value, _)) = current {
                        plain.put(&key, value, None, now);
                    }
                }
                7 => {
                    let insert = Command::Insert { tree: TREE, key: key.clone(), value: value.clone() };
                    let reply = execute(insert);
                    assert_eq!(reply, Reply::Previous(current.map(|current| current.0)), "{whence}");
                    plain.put(&key, value, None, now);
                }
                8 => {
                    execute(Command::Put { tree: TREE, key: key.clone(), value: value.clone() });
                    plain.put(&key, value, None, now);
                }
                9 => {
                    let reply = execute(Command::Remove { tree: TREE, key: key.clone() });
                    assert_eq!(reply, Reply::Previous(current.map(|current| current.0)), "{whence}");
                    plain.0.remove(&key);
                }
                10 => {
                    let last = random.coin();
                    let live = plain.live(now);
                    let end = if last { live.last() } else { live.first() };
                    let reply = execute(Command::Pop { tree: TREE, last });
                    assert_eq!(reply, Reply::Popped(end.cloned()), "{whence}");
                    if let Some((key, _)) = end {
                        plain.0.remove(key);
                    }
                }
                11 | 12 => {
                    execute(Command::SettleDue { limit: 1 + random.below(4) as u32 });
                }
                13 => engine.checkpoint().unwrap(),
                14 => {
                    engine.sync().unwrap();
                    if random.coin() {
                        disk = disk.power_cut(seed);
                    }
                    drop(engine);
                    engine = open_small(&disk, &clock).unwrap();
                }
                _ => {
                    // A look later on, after which time may not seem to go back.
                    let before = engine.snapshot();
                    let seen = plain.live(now);
                    clock.advance(50);
                    now += 50;
                    let later: Vec<_> = entries(&before);
                    assert_eq!(later, seen, "a snapshot is of its time: {whence}");
                }
            }
            let live = plain.live(now);
            hidden += plain.0.len() - live.len();
            assert_eq!(entries(&engine.snapshot()), live, "{whence}");
            let snapshot = engine.snapshot();
            let mut backward: Vec<_> = snapshot
                .range(TREE, Bound::Unbounded, Bound::Unbounded)
                .rev()
                .map(|entry| entry.unwrap().0)
                .collect();
            backward.reverse();
            assert!(backward.iter().eq(live.iter().map(|(key, _)| key)), "backward: {whence}");
            for number in 0..12 {
                let key = IVec::from(format!("k{number}"));
                let expected = plain.get(&key, now);
                assert_eq!(
                    engine.get(TREE, &key).unwrap(),
                    expected.map(|found| found.0.clone()),
                    "{whence}"
                );
                assert_eq!(engine.expires(TREE, &key).unwrap(), expected.map(|found| found.1), "{whence}");
                assert_eq!(snapshot.expires(TREE, &key).unwrap(), expected.map(|found| found.1), "{whence}");
            }
        }
        assert!(hidden > 20, "seed {seed}: {hidden} keys were hidden only");
        engine.check_invariants();
        // All that can go goes, and the count is right.
        clock.advance(10_000);
        while let Reply::Settled { more: true, .. } =
            engine.execute(Command::SettleDue { limit: 7 }, Durability::Buffered).unwrap()
        {}
        let stay = plain.0.values().filter(|(_, ends)| ends.is_none()).count() as u64;
        assert_eq!(engine.len(TREE).unwrap(), stay, "seed {seed}");
        assert_eq!(engine.len(TreeId::EXPIRY).unwrap(), 0, "seed {seed}");
        assert_eq!(engine.due(), (u64::MAX, u64::MAX), "seed {seed}");
    }
}

fn entries(snapshot: &dogsled_storage::Snapshot) -> Vec<(IVec, IVec)> {
    let all = snapshot.range(TREE, Bound::Unbounded, Bound::Unbounded);
    all.map(|entry| entry.map(|(key, found)| (key, found.value)).unwrap()).collect()
}

#[test]
fn what_was_hidden_once_stays_so_though_the_clock_is_set_back() {
    let disk = SimulatedDisk::new(1);
    let clock = TestClock::new(1_000);
    let engine = open_small(&disk, &clock).unwrap();
    engine.execute(insert_for("k", "v", When::After(500)), Durability::Buffered).unwrap();
    clock.advance(500);
    assert_eq!(engine.get(TREE, b"k").unwrap(), None);
    clock.set(1_100);
    assert_eq!(engine.get(TREE, b"k").unwrap(), None);
    assert!(entries(&engine.snapshot()).is_empty());
    let reply = engine.execute(get("k"), Durability::Buffered).unwrap();
    assert_eq!(reply, Reply::Expiry(ExpiryReply::Absent));
}

#[test]
fn a_backup_carries_times_to_live() {
    let disk = SimulatedDisk::new(1);
    let clock = TestClock::new(1_000);
    let engine = open_small(&disk, &clock).unwrap();
    engine.execute(insert_for("k", "v", When::After(500)), Durability::Buffered).unwrap();
    engine.execute(insert_for("gone", "v", When::After(5)), Durability::Buffered).unwrap();
    clock.advance(100);
    engine.backup("copy".as_ref()).unwrap();
    drop(engine);
    let mut options = crate::support::small_options(&disk, &clock);
    options.directory = "copy".into();
    let copy = Engine::open(options).unwrap();
    assert_eq!(copy.expires(TREE, b"k").unwrap(), Some(Some(1_500)));
    assert_eq!(copy.get(TREE, b"gone").unwrap(), None);
    clock.advance(400);
    assert_eq!(copy.get(TREE, b"k").unwrap(), None);
    copy.execute(Command::SettleDue { limit: 9 }, Durability::Buffered).unwrap();
    assert_eq!((copy.len(TREE).unwrap(), copy.len(TreeId::EXPIRY).unwrap()), (0, 0));
}

/// With its thread and the operating system's clock: expired keys go by themselves, and watchers hear of it.
#[test]
fn expired_keys_are_removed_in_the_background_and_watchers_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { disk: Arc::new(RealDisk), ..Options::new(directory.path().join("db")) };
    let engine = Engine::open(options).unwrap();
    let events = engine.watch(TREE, b"k", 10_000);
    for number in 0..3_000 {
        let command = insert_for(&format!("k{number}"), "v", When::After(1 + number % 50));
        engine.execute(command, Durability::Buffered).unwrap();
    }
    engine.execute(insert_for("stays", "v", When::After(1_000_000)), Durability::Buffered).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.len(TREE).unwrap() > 1 {
        assert!(Instant::now() < deadline, "{} keys are left", engine.len(TREE).unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    let removed = std::iter::from_fn(|| events.try_next())
        .filter(|event| matches!(event, Event::Remove { .. }))
        .count();
    assert_eq!(removed, 3_000);
    assert!(engine.get(TREE, b"stays").unwrap().is_some());
    engine.close().unwrap();
}
