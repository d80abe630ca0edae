//! Anomalies that are planted into the recorded history of a life are found: the judge is not blinded by all the
//! rest of it.

use std::sync::LazyLock;

use dogsled_simulation::registers::Registers;
use dogsled_simulation::serializability::{Anomaly, Key, Number, Transaction};
use dogsled_simulation::workload::Recorded;
use dogsled_simulation::{Options, run};

/// Numbers that no client of a life gives.
const FIRST: Number = 4_000_000_000;
/// A list that no client of a life uses, as long as nobody adds to it.
const UNUSED: Key = 900;

/// A sound history with much in it, and a moment after all of it.
static RECORDED: LazyLock<(Recorded, u64)> = LazyLock::new(recorded);

fn recorded() -> (Recorded, u64) {
    let has_much = |recorded: &Recorded| {
        let writes = recorded.committed.iter().filter(|(_, registers)| !registers.writes.is_empty());
        recorded.committed.len() > 15 && writes.count() > 2
    };
    let lives = (1..30).map(|seed| run(&Options::with_transactions(seed)));
    let found = lives.inspect(|report| assert_eq!(report.violations, Vec::<String>::new()));
    let recorded = found.map(|report| report.recorded).find(has_much).expect("a life in which much was done");
    assert_eq!(recorded.judge(), Ok(()));
    let known = recorded.committed.iter().map(|(transaction, _)| transaction.answered);
    let after = known.filter(|answered| *answered != u64::MAX).max().unwrap();
    (recorded, after + 1)
}

/// Two transactions at the same time, behind everything else, that have read the same lists as they are in the end.
fn add_two(recorded: &mut Recorded, after: u64, reads: &[Key], appends: [Key; 2]) {
    let seen = |key: &Key| (*key, recorded.finals.lists.get(key).cloned().unwrap_or_default());
    let reads: std::collections::BTreeMap<Key, Vec<Number>> = reads.iter().map(seen).collect();
    for (append, number) in appends.into_iter().zip(FIRST..) {
        let transaction = Transaction {
            number,
            reads: reads.clone(),
            appends: [append].into(),
            begun: after,
            answered: after + 10,
        };
        recorded.committed.push((transaction, Registers::default()));
        recorded.finals.lists.entry(append).or_default().push(number);
    }
}

#[test]
fn anomalies_in_a_recorded_history_are_found() {
    let (sound, after) = RECORDED.clone();

    // One after the other, each with its own list, is well.
    let mut well = sound.clone();
    add_two(&mut well, after, &[], [0, 1]);
    assert_eq!(well.judge(), Ok(()));

    let mut skew = sound.clone();
    add_two(&mut skew, after, &[0, 1], [0, 1]);
    assert_eq!(skew.judge(), Err(Anomaly::G2(vec![FIRST, FIRST + 1])), "write skew");

    let mut lost = sound.clone();
    add_two(&mut lost, after, &[0], [0, 0]);
    assert_eq!(lost.judge(), Err(Anomaly::GSingle(vec![FIRST, FIRST + 1])), "a lost update");

    // Both have looked at a range in which neither of two lists was there, and each has made one.
    let mut phantom = sound.clone();
    add_two(&mut phantom, after, &[UNUSED, UNUSED + 1], [UNUSED, UNUSED + 1]);
    assert_eq!(phantom.judge(), Err(Anomaly::G2(vec![FIRST, FIRST + 1])), "a phantom");

    // It begins after all others have ended, and does not see the last of them.
    let mut stale = sound.clone();
    let is_known = |last: Option<&Number>| {
        let mut all = stale.committed.iter().map(|(transaction, _)| transaction);
        all.any(|transaction| Some(&transaction.number) == last && transaction.answered != u64::MAX)
    };
    let (key, list) = stale.finals.lists.iter().find(|(_, list)| is_known(list.last())).unwrap();
    let read = list[..list.len() - 1].to_vec();
    let reads = [(*key, read)].into();
    let reader =
        Transaction { number: FIRST, reads, begun: after, answered: after + 1, ..Transaction::default() };
    stale.committed.push((reader, Registers::default()));
    assert!(matches!(stale.judge(), Err(Anomaly::Stale(_))), "{:?}", stale.judge());
}

#[test]
fn a_lost_update_of_a_register_in_a_recorded_history_is_found() {
    let (sound, after) = RECORDED.clone();
    let (&key, &last) = sound.finals.registers.iter().find(|(_, last)| **last != 0).unwrap();
    let mut lost = sound;
    // Both replace the last value; the second one is there in the end.
    for number in [FIRST, FIRST + 1] {
        let transaction =
            Transaction { number, begun: after, answered: after + 10, ..Transaction::default() };
        let registers = Registers { reads: [(key, last)].into(), writes: [key].into() };
        lost.committed.push((transaction, registers));
    }
    lost.finals.registers.insert(key, FIRST + 1);
    assert!(matches!(lost.judge(), Err(Anomaly::LostOrDoubled { number: FIRST, .. })), "{:?}", lost.judge());
}
