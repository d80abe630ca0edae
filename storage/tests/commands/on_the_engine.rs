//! Counters and locks on the engine, compared with the model, through checkpoints, reopens and
//! power cuts.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::commands_support::Random;
use dogsled_storage::clock::Clock;
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Durability, Engine, Options, OwnedCommand, Reply, TreeId};

#[derive(Debug, Default)]
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn open(disk: &SimulatedDisk, clock: &Arc<SetClock>) -> Arc<Engine> {
    Engine::open(Options {
        disk: Arc::new(disk.clone()),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        segment_size: 256 << 10,
        cache_capacity: 8 << 20,
        background_threads: false,
        database_id: Some(7),
        ..Options::new("/db")
    })
    .unwrap()
}

fn command(random: &mut Random, tokens: &[FencingToken; 2]) -> Command {
    let index = random.below(2) as usize;
    let name = ["door", "gate"][index].into();
    let owner = ["ann", "ben"][random.below(2) as usize].into();
    let (token, lease_ms) = (tokens[index], 1 + random.below(60));
    let delta = random.below(9) as i64 - 4;
    match random.below(9) {
        0 => Command::Counter(CounterCommand::Add { name, delta }),
        1 => Command::Counter(CounterCommand::AddWithin { name, delta, min: -5, max: 5 }),
        2 => Command::Counter(CounterCommand::Get { name }),
        3 if random.coin() => Command::Counter(CounterCommand::Remove { name }),
        4 | 5 => Command::Lock(LockCommand::TryAcquire { name, owner, lease_ms }),
        6 => Command::Lock(LockCommand::Renew { name, owner, token, lease_ms }),
        7 => Command::Lock(LockCommand::Release { name, owner, token }),
        8 => Command::Lock(LockCommand::Expire { name }),
        _ => Command::Counter(CounterCommand::Set { name, value: delta }),
    }
}

#[test]
fn the_engine_counts_and_locks_as_the_model_does() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut disk = SimulatedDisk::new(seed);
        let clock = Arc::new(SetClock::default());
        let mut engine = open(&disk, &clock);
        let mut model = ModelState::new();
        let mut tokens = [FencingToken(0); 2];
        for step in 0..300 {
            let now = clock.0.fetch_add(random.below(20), Ordering::SeqCst);
            let now = now.max(clock.now_ms());
            let command = command(&mut random, &tokens);
            let whence = format!("seed {seed}, step {step}, {command:?}");
            // Every write is synced, so that a power cut loses none of them.
            let reply = engine.execute(command.clone(), Durability::Synced).unwrap();
            assert_eq!(reply, model.execute(now, &command).unwrap(), "{whence}");
            assert_eq!(engine.sequence(), model.sequence(), "{whence}");
            if let (Command::Lock(lock), Reply::Lock(LockReply::Acquired { token, .. })) = (&command, reply) {
                let before = &mut tokens[usize::from(*lock.name() == "gate")];
                assert!(token > *before, "{token} after {before}: {whence}");
                *before = token;
            }
            match random.below(40) {
                0 => engine.checkpoint().unwrap(),
                1 => {
                    drop(engine);
                    engine = open(&disk, &clock);
                }
                2 => {
                    let survivor = disk.power_cut(random.next());
                    drop(engine);
                    disk = survivor;
                    engine = open(&disk, &clock);
                }
                _ => {}
            }
        }
        let snapshot = engine.snapshot();
        for tree in [TreeId::COUNTERS, TreeId::LOCKS] {
            let found: Vec<_> =
                snapshot.range(tree, Bound::Unbounded, Bound::Unbounded).map(Result::unwrap).collect();
            let expected = model.tree(tree).unwrap();
            assert!(found.iter().map(|(key, entry)| (key, entry)).eq(expected), "seed {seed}: {found:?}");
            assert_eq!(snapshot.len(tree).unwrap(), model.len(tree), "seed {seed}");
        }
    }
}

#[test]
fn what_is_written_down_of_numbered_keys_goes_with_their_tree() {
    let (disk, clock) = (SimulatedDisk::new(1), Arc::new(SetClock::default()));
    let engine = open(&disk, &clock);
    let execute = |command| engine.execute(command, Durability::Buffered).unwrap();
    let make = |name: &str| match execute(Command::CreateTree { name: name.into() }) {
        Reply::Tree { id, .. } => id,
        other => panic!("{other:?}"),
    };
    let trees = ["before", "dropped", "behind"].map(make);
    for tree in trees {
        for number in 0..50 {
            let (prefix, value) = (format!("{number:02}-").as_str().into(), "v".into());
            execute(Command::Owned(OwnedCommand::InsertNext { tree, prefix, value, session: None }));
        }
        engine.checkpoint().unwrap();
    }
    assert_eq!(engine.len(TreeId::SEQUENCES).unwrap(), 150);
    execute(Command::DropTree { name: "dropped".into() });
    assert_eq!(engine.len(TreeId::SEQUENCES).unwrap(), 100);
    for tree in [trees[0], trees[2]] {
        let (prefix, value) = ("07-".into(), "v".into());
        let next = execute(Command::Owned(OwnedCommand::InsertNext { tree, prefix, value, session: None }));
        assert_eq!(next, Reply::Named { key: "07-00000000000000000001".into() });
    }
}
