//! An embedded database on a disk that is nearly full refuses what stores something before anything fails, does
//! everything else, and goes on by itself.

use std::io;

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::{Command, Durability, Engine, Error, IVec, Reply, TreeId};

use crate::support::{TestClock, small_options};

const MARK: u64 = 1 << 20;

fn put(engine: &Engine, number: u32) -> dogsled_storage::Result<Reply> {
    let (key, value) = (IVec::from(&number.to_be_bytes()[..]), IVec::from(vec![7; 4 << 10]));
    engine.execute(Command::Put { tree: TreeId::DEFAULT, key, value }, Durability::Synced)
}

fn remove(engine: &Engine, number: u32) -> dogsled_storage::Result<Reply> {
    let key = IVec::from(&number.to_be_bytes()[..]);
    engine.execute(Command::Remove { tree: TreeId::DEFAULT, key }, Durability::Synced)
}

fn is_refusal(outcome: &dogsled_storage::Result<Reply>) -> bool {
    matches!(outcome, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
}

#[test]
fn a_disk_that_is_nearly_full_stops_what_stores_something_and_nothing_else() {
    let (disk, clock) = (SimulatedDisk::new(5), TestClock::new(1_000));
    let options = || {
        let mut options = small_options(&disk, &clock);
        options.low_disk_bytes = MARK;
        options
    };
    let engine = Engine::open(options()).expect("a new disk");
    for number in 0..100 {
        put(&engine, number).expect("there is no end of space");
    }
    // A little more than the mark: it is noticed well before the disk is full.
    disk.set_capacity(Some(disk.used() + MARK + (64 << 10)));
    let mut number = 100;
    let refused = loop {
        match put(&engine, number) {
            Ok(_) => number += 1,
            refused => break refused,
        }
        assert!(number < 2_000, "it never refuses");
    };
    assert!(is_refusal(&refused), "{refused:?}");
    for _ in 0..50 {
        assert!(is_refusal(&put(&engine, number)));
    }
    assert_eq!(engine.len(TreeId::DEFAULT).expect("it is read"), u64::from(number));
    for gone in 0..50 {
        assert!(matches!(remove(&engine, gone), Ok(Reply::Previous(Some(_)))), "{gone}");
    }
    engine.checkpoint().expect("there is room for it");
    disk.set_capacity(Some(disk.used() + MARK / 2));
    assert!(is_refusal(&put(&engine, number)));
    // As much as the mark is not enough yet, a quarter more is.
    disk.set_capacity(Some(disk.used() + MARK + MARK / 8));
    assert!(is_refusal(&put(&engine, number)));
    disk.set_capacity(Some(disk.used() + MARK * 2));
    put(&engine, number).expect("there is space again");
    drop(engine);
    let engine = Engine::open(options()).expect("nothing has failed");
    assert_eq!(engine.len(TreeId::DEFAULT).expect("it is read"), u64::from(number) + 1 - 50);
}

#[test]
fn without_a_mark_nothing_is_refused_before_its_time() {
    let (disk, clock) = (SimulatedDisk::new(6), TestClock::new(1_000));
    let engine = Engine::open(small_options(&disk, &clock)).expect("a new disk");
    put(&engine, 0).expect("there is no end of space");
    disk.set_capacity(Some(disk.used() + (8 << 10)));
    let failed = (1..1_000).find_map(|number| put(&engine, number).err()).expect("it is full");
    assert!(!failed.to_string().contains("nearly full"), "{failed}");
}
