//! Keys that end while transactions are prepared: who sees that, who waits, and for how long.

use std::ops::Bound;

use dogsled_storage::command::KeyRead;
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::{
    Answer, Command, ExpiryCommand, GroupRead, GroupReadReply, IVec, Part, Reply, Vote, When,
};

use crate::replicas::group::Group;
use crate::transactions::{TREE, insert, is_locked, new, write};

/// Who read the key when it was there comes before whoever sees its end, and may write something that is not to be seen yet.
#[test]
fn the_end_of_a_key_is_not_seen_before_who_read_it_earlier_has_decided() {
    let mut group = new();
    for key in ["k", "m"] {
        group.command(Command::Expiry(insert(key, "1", When::At(1_500)))).unwrap();
    }
    group.put("other", "1").unwrap();
    let of_key = KeyRead { tree: TREE, key: "k".into(), version: group.version("k") };
    let keys = |group: &Group, names: &[&str]| {
        let keys = names.iter().map(|key| IVec::from(*key)).collect();
        group.read(&GroupRead::GetMany { tree: "t".into(), keys })
    };
    let page = |group: &Group, low: &str, high: &str| {
        let (low, high) = (Bound::Included(low.into()), Bound::Excluded(high.into()));
        let (reverse, limit, limit_bytes, values) = (false, 10, 1 << 20, true);
        let read = GroupRead::Range { tree: "t".into(), low, high, reverse, limit, limit_bytes, values };
        group.read(&read)
    };
    let valid = |group: &Group, reads: Vec<KeyRead>| {
        group.read(&GroupRead::Validate {
            trees: vec!["t".into()],
            reads,
            ranges: Vec::new(),
            since: None,
            under: None,
        })
    };
    let absent = |key: &str| KeyRead { tree: TREE, key: key.into(), version: 0 };
    let exists = |key: &str| {
        let action = StringAction::Exists;
        let operations = vec![StringsOperation { tree: TREE, key: key.into(), action }];
        GroupRead::Strings { trees: vec!["t".into()], operations }
    };
    // What one is not to see of a key that others have read: by each kind of read, and by a command.
    let hidden = |group: &mut Group, key: &str| {
        let after = format!("{key}a");
        let seen = [
            group.get(key).is_some(),
            group.read(&GroupRead::Expires { tree: "t".into(), key: key.into() }).is_some(),
            keys(group, &["other", key]).is_some(),
            page(group, key, &after).is_some(),
            valid(group, vec![absent(key)]).is_some(),
            group.read(&exists(key)).is_some(),
        ];
        let copy = StringAction::Transfer { tree: TREE, key: "copy".into(), copy: true, replace: true };
        let copy = StringsOperation { tree: TREE, key: key.into(), action: copy };
        let strings = Command::Strings { watched: Vec::new(), operations: vec![copy] };
        let is_refused = is_locked(&group.command(strings));
        assert!(seen.iter().all(|seen| *seen != is_refused), "{key}: {seen:?}, {is_refused}");
        is_refused
    };
    let part = Part { reads: vec![of_key.clone()], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    let part = Part { ranges: vec![group.range("l", "n")], ..Part::default() };
    assert_eq!(group.vote(2, part), Vote::Yes);
    assert!(!hidden(&mut group, "other"));
    assert_eq!(group.get("k"), Some(Some("1".into())), "its time is not over");

    group.time_ms = 1_600;
    group.put("tick", "1").unwrap();
    assert!(hidden(&mut group, "k") && hidden(&mut group, "m"));
    assert!(!hidden(&mut group, "other") && !hidden(&mut group, "none"));
    assert!(page(&group, "l", "lz").is_some() && page(&group, "a", "z").is_none());
    // Another transaction that has seen its end, too.
    let part = Part { reads: vec![absent("k")], ..Part::default() };
    assert!(matches!(group.vote(3, part.clone()), Vote::Locked(lock) if lock.transaction.0 == 1));
    group.resolve(1, true);
    assert!(!hidden(&mut group, "k") && hidden(&mut group, "m"));
    assert_eq!(group.get("k"), Some(None));
    // Who comes now has seen its end, and keeps nobody off.
    assert_eq!(group.vote(4, part), Vote::Yes);
    assert!(!hidden(&mut group, "k"));
    group.resolve(2, false);
    assert!(!hidden(&mut group, "m"));
}

#[test]
fn one_locked_key_does_not_stop_the_expiry_of_the_others() {
    let mut group = new();
    for key in ["a", "b"] {
        let when = When::After(500);
        let insert = ExpiryCommand::Insert { tree: TREE, key: key.into(), value: "1".into(), when };
        group.command(Command::Expiry(insert)).unwrap();
    }
    let part = Part { writes: vec![write("a", Some("2"))], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    group.time_ms = 2_000;
    let settled = |keys| Ok(Reply::Settled { keys, locks: 0, more: false });
    assert_eq!(group.command(Command::SettleDue { limit: 100 }), settled(1));
    assert_eq!(group.command(Command::SettleDue { limit: 100 }), settled(0));
    assert_eq!(
        group.command(Command::SettleDue { limit: 1 }),
        settled(0),
        "nothing to come back for at once"
    );
    group.resolve(1, false);
    assert_eq!(group.command(Command::SettleDue { limit: 100 }), settled(1));
    assert_eq!((group.get("a"), group.get("b")), (Some(None), Some(None)));
}

impl Group {
    /// A key that ends after so long.
    fn put_for(&mut self, key: &str, ms: u64) {
        let insert =
            ExpiryCommand::Insert { tree: TREE, key: key.into(), value: "1".into(), when: When::After(ms) };
        self.command(Command::Expiry(insert)).unwrap();
    }
}

/// It reads afterwards, and would wait for its own locks.
#[test]
fn who_only_locks_keeps_nobody_from_seeing_an_end() {
    let mut group = new();
    group.put_for("k", 500);
    let read = KeyRead { tree: TREE, key: "k".into(), version: group.version("k") };
    let part = || Part { reads: vec![read.clone()], ranges: vec![group.range("j", "m")], ..Part::default() };
    let (first, second) = (part(), part());
    for (transaction, part) in [(1, first), (2, second)] {
        assert_eq!(group.prepare_or_lock(transaction, part, true), Ok(Answer::Vote(Vote::Yes)));
    }
    group.time_ms = 1_600;
    group.put("tick", "1").unwrap();
    assert_eq!(group.get("k"), Some(None));
    let page = GroupRead::Range {
        tree: "t".into(),
        low: Bound::Unbounded,
        high: Bound::Unbounded,
        reverse: false,
        limit: 10,
        limit_bytes: 1 << 20,
        values: true,
    };
    let Some(GroupReadReply::Page { entries, .. }) = group.read(&page) else { panic!("it waits") };
    assert_eq!(entries.len(), 1);
    let writes = group.command(Command::Put { tree: TREE, key: "k".into(), value: "2".into() });
    assert!(is_locked(&writes), "{writes:?}");
}

#[test]
fn many_keys_that_end_at_once_do_not_make_each_read_look_at_all_of_them() {
    let mut group = new();
    for number in 0..5_000 {
        group.put_for(&format!("old {number}"), 100);
    }
    group.time_ms = 1_200;
    group.put("a", "1").unwrap();
    let read = KeyRead { tree: TREE, key: "a".into(), version: group.version("a") };
    let part = Part { reads: vec![read], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    assert_eq!(group.get("a"), Some(Some("1".into())), "they had ended before");
    assert_eq!(group.get("old 7"), Some(None));
    for number in 0..5_000 {
        group.put_for(&format!("new {number}"), 10);
    }
    group.time_ms = 1_250;
    group.put("tick", "1").unwrap();
    // Too many to look whether one of them was read: that is not said before it is known.
    assert_eq!(group.get("new 7"), None);
    group.resolve(1, true);
    assert_eq!((group.get("a"), group.get("new 7")), (Some(Some("1".into())), Some(None)));
}
