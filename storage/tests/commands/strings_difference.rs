//! The difference between two states of a key, carried out on the one, makes the other of it.

use crate::commands_support::Random;
use dogsled_storage::IVec;
use dogsled_storage::codec::Listed;
use dogsled_storage::expiry::{SetIf, When};
use dogsled_storage::hashes::{HashAction, HashId, HashSlot};
use dogsled_storage::strings::{Carried, SetOnly, Slot, StringAction, apply, difference};

const NOW_MS: u64 = 1_000;

/// A key with all that is in it known.
fn slot(random: &mut Random) -> Slot {
    let ends = random.coin().then(|| NOW_MS + 1 + random.below(3));
    match random.below(3) {
        0 => Slot::default(),
        1 => Slot::found(Some(text(random)), ends),
        _ => {
            let pairs: Vec<_> = (0..1 + random.below(3)).map(|n| (field(n), text(random))).collect();
            let mut hash = HashSlot::found(HashId { base: 7, ordinal: 1 }, pairs.len() as u64);
            hash.learn_whole(pairs);
            Slot { hash: Some(hash), expires_ms: ends, ..Slot::default() }
        }
    }
}

fn text(random: &mut Random) -> IVec {
    IVec::from(random.below(4).to_string())
}

fn field(number: u64) -> IVec {
    IVec::from([b'a' + number as u8])
}

fn action(random: &mut Random) -> StringAction {
    let when = [When::Keep, When::At(NOW_MS + random.below(4)), When::After(1)][random.below(3) as usize];
    let one = field(random.below(4));
    match random.below(10) {
        0 => {
            let when = random.coin().then_some(when);
            StringAction::Set { value: text(random), only: SetOnly::Always, when, get: false }
        }
        1 => StringAction::Delete,
        2 => StringAction::Expire { when, only: SetIf::Always, only_some: false },
        3 => StringAction::Persist,
        4 => StringAction::Append { value: text(random) },
        5 => StringAction::Add { delta: 1 },
        6 | 7 => {
            let pairs = Listed(vec![(one, text(random))]);
            StringAction::Hash(HashAction::Set { pairs })
        }
        8 => StringAction::Hash(HashAction::Delete { fields: Listed(vec![one, field(random.below(4))]) }),
        _ => StringAction::Hash(HashAction::Add { field: one, delta: 1 }),
    }
}

type Pairs = Vec<(IVec, IVec)>;

/// What of a key others can see.
fn seen(slot: &Slot) -> (Option<IVec>, Option<Pairs>, Option<u64>) {
    let hash = slot.hash.as_ref().map(|hash| {
        let there = hash.fields.iter().filter_map(|(name, field)| Some((name.clone(), field.now.clone()?)));
        let there: Vec<_> = there.collect();
        assert_eq!(there.len() as u64, hash.count);
        there
    });
    (slot.value.clone(), hash, slot.expires_ms)
}

#[test]
fn the_difference_makes_the_one_of_the_other() {
    let mut most = 0;
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let before = slot(&mut random);
        let mut after = before.clone();
        let mut carried = Carried::default();
        for _ in 0..random.below(6) {
            match random.below(8) {
                // It comes from another key, as with RENAME.
                0 => {
                    let mut source = slot(&mut random);
                    if let Some(hash) = &mut source.hash {
                        hash.id.ordinal = 2;
                    }
                    let (tree, key) = (dogsled_storage::TreeId(16), IVec::from("after"));
                    let transfer = StringAction::Transfer { tree, key, copy: random.coin(), replace: true };
                    apply(&transfer, NOW_MS, &mut carried, &mut source, Some(&mut after));
                }
                _ => drop(apply(&action(&mut random), NOW_MS, &mut carried, &mut after, None)),
            }
        }
        let actions = difference(&before, &after);
        most = most.max(actions.len());
        let mut made = before.clone();
        // Those that it makes have other numbers where it is carried out.
        let mut carried = Carried::new(99);
        for action in &actions {
            apply(action, NOW_MS, &mut carried, &mut made, None);
        }
        assert_eq!(seen(&made), seen(&after), "seed {seed}: {before:?} to {after:?} by {actions:?}");
        if !after.is_written && after.expires_ms == before.expires_ms {
            assert!(actions.is_empty(), "seed {seed}: {actions:?} for nothing");
        }
        if after.is_written && after.is_there() {
            assert!(
                made.is_written,
                "seed {seed}: {actions:?} of what was written to what it was, {after:?}"
            );
        }
    }
    assert!(most >= 3, "at most {most} operations");
}
