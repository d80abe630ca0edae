//! `export`, `import` and `checksum` agree with sled's in both directions.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

type Contents = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn contents() -> impl Strategy<Value = Contents> {
    let bytes = || vec(any::<u8>(), 0..40);
    let name = prop_oneof![vec(any::<u8>(), 1..8), Just(b"__sled__default".to_vec())];
    btree_map(name, btree_map(bytes(), bytes(), 0..20), 0..4)
}

fn sled() -> sled::Db {
    sled::Config::new().temporary(true).open().unwrap()
}

fn dogsled() -> dogsled::Db {
    dogsled::Config::new().temporary(true).open().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn there_and_back(contents in contents()) {
        let first = sled();
        for (name, entries) in &contents {
            let tree = first.open_tree(name).unwrap();
            for (key, value) in entries {
                tree.insert(key, &value[..]).unwrap();
            }
        }
        let (second, third) = (dogsled(), sled());
        second.import(first.export());
        third.import(second.export());
        let fourth = dogsled();
        fourth.import(second.export());

        prop_assert_eq!(first.checksum().unwrap(), second.checksum().unwrap());
        prop_assert_eq!(first.checksum().unwrap(), third.checksum().unwrap());
        prop_assert_eq!(first.checksum().unwrap(), fourth.checksum().unwrap());
        let mut names = first.tree_names();
        names.sort();
        prop_assert_eq!(names.len(), second.tree_names().len());
        for name in names {
            let (before, after) = (first.open_tree(&name).unwrap(), second.open_tree(&name).unwrap());
            prop_assert_eq!(before.checksum().unwrap(), after.checksum().unwrap());
            prop_assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(after.iter()) {
                let (before, after) = (before.unwrap(), after.unwrap());
                prop_assert_eq!((&before.0[..], &before.1[..]), (&after.0[..], &after.1[..]));
            }
        }
    }
}

#[test]
fn many_keys_move_in_several_batches() {
    let old = sled();
    let tree = old.open_tree("many").unwrap();
    for number in 0..25_000u32 {
        tree.insert(number.to_be_bytes(), &[7; 20]).unwrap();
    }
    let new = dogsled();
    new.import(old.export());
    assert_eq!(new.open_tree("many").unwrap().len(), 25_000);
    assert_eq!(old.checksum().unwrap(), new.checksum().unwrap());
}

#[test]
fn counters_move_as_a_tree_and_are_counters_again() {
    let (first, second) = (dogsled(), dogsled());
    first.counter("visits").add(7).unwrap();
    let middle = sled();
    middle.import(first.export());
    second.import(middle.export());
    assert_eq!(second.counter("visits").get().unwrap(), 7);
    assert_eq!(first.checksum().unwrap(), second.checksum().unwrap());
}

#[test]
#[should_panic(expected = "would overwrite key \"k\"")]
fn importing_over_data_panics_as_sled_does() {
    let db = dogsled();
    db.insert("k", "v").unwrap();
    db.import(db.export());
}
