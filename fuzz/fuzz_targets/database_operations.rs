//! Operations, checkpoints, reopens, kills and power cuts as the fuzzer says, against the model.
#![no_main]

use std::ops::Bound;
use std::sync::Arc;

use dogsled_fuzz::{Choices, options};
use dogsled_storage::command::KeyRead;
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::model::ModelState;
use dogsled_storage::quota::check_invariants;
use dogsled_storage::{Command, Durability, Engine, QuotaLimit, Snapshot, TreeId, Write};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 3] = ["amber", "birch", ""];

fn tree(choices: &mut Choices<'_>, model: &ModelState) -> TreeId {
    let trees: Vec<TreeId> = model.names().map(|(_, id)| id).collect();
    match choices.byte() {
        255 => TreeId(99),
        byte => trees[byte as usize % trees.len()],
    }
}

fn command(choices: &mut Choices<'_>, model: &ModelState) -> Command {
    let kind = choices.byte() % 16;
    let tree = tree(choices, model);
    match kind {
        3 => Command::Put { tree, key: choices.key(), value: choices.value() },
        0..=2 => Command::Insert { tree, key: choices.key(), value: choices.value() },
        4 | 5 => Command::Remove { tree, key: choices.key() },
        6 => {
            let key = choices.key();
            let old = model.tree(tree).and_then(|tree| tree.get(&key)).map(|found| found.value.clone());
            let new = (choices.byte() % 3 != 0).then(|| choices.value());
            Command::CompareAndSwap { tree, key, old, new }
        }
        7 | 8 => Command::Batch { writes: writes(choices, model) },
        9 => Command::Pop { tree, last: choices.byte() % 2 == 0 },
        10 => Command::ClearTree { tree },
        11 => Command::CreateTree { name: NAMES[choices.byte() as usize % 3].into() },
        12 => Command::DropTree { name: NAMES[choices.byte() as usize % 3].into() },
        13 => Command::Counter(CounterCommand::Add { name: "n".into(), delta: choices.byte().into() }),
        14 => match choices.byte() {
            byte if byte % 3 == 0 => {
                let name = [NAMES[0], NAMES[1], "__sled__default"][choices.byte() as usize % 3].into();
                let amount = |byte: u8| (byte < 200).then_some(u64::from(byte) * 8);
                let (bytes, entries) = (amount(choices.byte()), amount(choices.byte()));
                let limit = (choices.byte() % 4 != 0).then_some(QuotaLimit { bytes, entries });
                Command::SetQuota { name, limit }
            }
            byte => Command::ReserveIds { count: byte.into() },
        },
        _ => {
            let key = choices.key();
            let version = model.tree(tree).and_then(|tree| tree.get(&key)).map_or(0, |found| found.version);
            let reads = vec![KeyRead { tree, key, version: version + u64::from(choices.byte() % 4 == 0) }];
            Command::Transact {
                reads,
                ranges: Vec::new(),
                writes: writes(choices, model),
                expiries: Vec::new(),
            }
        }
    }
}

fn writes(choices: &mut Choices<'_>, model: &ModelState) -> Vec<Write> {
    let count = choices.byte() % 8;
    (0..count)
        .map(|_| Write {
            tree: tree(choices, model),
            key: choices.key(),
            value: (choices.byte() % 3 != 0).then(|| choices.value()),
        })
        .collect()
}

fn check(engine: &Engine, snapshot: &Snapshot, model: &ModelState, newest: bool) {
    assert_eq!(snapshot.sequence(), model.sequence());
    check_invariants(model).expect("records of quotas say what is there");
    let quotas = snapshot.range(TreeId::QUOTAS, Bound::Unbounded, Bound::Unbounded);
    let quotas = quotas.map(|entry| entry.expect("a read"));
    assert!(quotas.eq(model.tree(TreeId::QUOTAS).expect("its own").clone()));
    for (name, id) in model.names() {
        assert_eq!(snapshot.tree_id(name), Some(id));
        let tree = model.tree(id).expect("a named tree exists");
        assert_eq!(snapshot.len(id).expect("a length"), tree.len() as u64);
        for (key, expected) in tree.iter().rev() {
            assert_eq!(snapshot.get(id, key).expect("a read").as_ref(), Some(expected));
            if newest {
                assert_eq!(engine.get(id, key).expect("a read").as_ref(), Some(&expected.value));
            }
        }
        let all =
            || snapshot.range(id, Bound::Unbounded, Bound::Unbounded).map(|entry| entry.expect("a read"));
        assert!(all().eq(tree.iter().map(|(key, found)| (key.clone(), found.clone()))));
        assert!(all().rev().eq(tree.iter().rev().map(|(key, found)| (key.clone(), found.clone()))));
    }
}

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > 300 {
        return;
    }
    let mut choices = Choices(bytes);
    let mut disk = SimulatedDisk::new(1);
    let mut engine = Engine::open(options(&disk)).expect("a new disk");
    // The state after each commit, and the last commit that was acknowledged as synced.
    let mut history = vec![ModelState::new()];
    let mut acknowledged = 0;
    let mut held: Option<(Snapshot, ModelState)> = None;
    while !choices.is_empty() {
        let newest = history.last().expect("it begins with the empty state").clone();
        match choices.byte() % 32 {
            0 | 1 => {
                engine.checkpoint().expect("a sound disk");
                acknowledged = history.len() - 1;
            }
            2 => {
                drop(held.take());
                drop(engine);
                engine = Engine::open(options(&disk)).expect("closed in order");
                check(&engine, &engine.snapshot(), &newest, true);
                acknowledged = history.len() - 1;
            }
            kind @ (3 | 4) => {
                drop(held.take());
                let next =
                    if kind == 3 { disk.process_kill() } else { disk.power_cut(choices.byte().into()) };
                drop(engine);
                disk = next;
                engine = Engine::open(options(&disk)).expect("a crash is recovered from");
                let found = engine.sequence() as usize;
                assert!((acknowledged..history.len()).contains(&found), "{found} of {acknowledged}");
                history.truncate(found + 1);
                check(&engine, &engine.snapshot(), &history[found], true);
            }
            5 => {
                if let Some((snapshot, model)) = held.take() {
                    check(&engine, &snapshot, &model, false);
                }
                held = Some((engine.snapshot(), newest));
            }
            6 => {
                engine.sync().expect("a sound disk");
                acknowledged = history.len() - 1;
            }
            byte => {
                let command = command(&mut choices, &newest);
                let durability = if byte % 4 == 0 { Durability::Synced } else { Durability::Buffered };
                let mut model = newest;
                let expected = model.execute(1_000, &command);
                let found = engine.execute(command.clone(), durability);
                match (expected, found) {
                    (Ok(expected), Ok(found)) => assert_eq!(expected, found, "{command:?}"),
                    (Err(_), Err(_)) => {}
                    (expected, found) => panic!("{command:?}: {expected:?} expected, found {found:?}"),
                }
                if model.sequence() as usize == history.len() {
                    history.push(model);
                    if durability == Durability::Synced {
                        acknowledged = history.len() - 1;
                    }
                }
            }
        }
    }
    if let Some((snapshot, model)) = held.take() {
        check(&engine, &snapshot, &model, false);
    }
    let newest = history.last().expect("it begins with the empty state");
    check(&engine, &engine.snapshot(), newest, true);
    let engine: Arc<Engine> = engine;
    drop(engine);
});
