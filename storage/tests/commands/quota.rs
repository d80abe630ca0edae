//! Quotas: what is refused and what is not, compared with sums that a reader can check at a glance.

use std::collections::BTreeMap;

use crate::commands_support::Random;
use dogsled_storage::codec::Listed;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::model::ModelState;
use dogsled_storage::quota::check_invariants;
use dogsled_storage::strings::{
    SetOnly, StringAction, StringsFailure, StringsOperation, StringsReplies, StringsReply,
};
use dogsled_storage::{
    Command, Error, ExpiryCommand, IVec, Measure, QuotaExceeded, QuotaLimit, Reply, SetIf, TreeId, TreeQuota,
    View, When, Write,
};

const TREE: TreeId = TreeId::DEFAULT;
const NAME: &str = "__sled__default";

fn limit(bytes: impl Into<Option<u64>>, entries: impl Into<Option<u64>>) -> Option<QuotaLimit> {
    Some(QuotaLimit { bytes: bytes.into(), entries: entries.into() })
}

/// A database, and after every command a look at whether its records are right.
#[derive(Default)]
struct Database {
    state: ModelState,
    now_ms: u64,
}

impl Database {
    fn execute(&mut self, command: Command) -> Result<Reply, Error> {
        let before = self.state.clone();
        let done = self.state.execute(self.now_ms, &command);
        check_invariants(&self.state).unwrap_or_else(|error| panic!("after {command:?}: {error}"));
        if done.is_err() {
            // But for the time.
            self.state = before;
        }
        done
    }

    fn set(&mut self, name: &str, limit: Option<QuotaLimit>) -> Option<TreeQuota> {
        match self.execute(Command::SetQuota { name: name.into(), limit }).unwrap() {
            Reply::Quota(quota) => quota,
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, key: &str, value: &str) -> Result<Reply, Error> {
        self.execute(Command::Put { tree: TREE, key: key.into(), value: value.into() })
    }

    #[track_caller]
    fn exceeds(&mut self, command: Command) -> QuotaExceeded {
        match self.execute(command) {
            Err(Error::QuotaExceeded(exceeded)) => exceeded,
            other => panic!("{other:?}"),
        }
    }

    fn strings(&mut self, operations: Vec<(&str, StringAction)>) -> Vec<StringsReply> {
        let operation = |(key, action): (&str, _)| StringsOperation { tree: TREE, key: key.into(), action };
        let operations = operations.into_iter().map(operation).collect();
        match self.execute(Command::Strings { watched: Vec::new(), operations }).unwrap() {
            Reply::Strings(StringsReplies(replies)) => replies,
            other => panic!("{other:?}"),
        }
    }
}

fn set_string(value: &str) -> StringAction {
    StringAction::Set { value: value.into(), only: SetOnly::Always, when: None, get: false }
}

fn batch(writes: &[(&str, Option<&str>)]) -> Command {
    let write = |(key, value): &(&str, Option<&str>)| Write {
        tree: TREE,
        key: (*key).into(),
        value: value.map(IVec::from),
    };
    Command::Batch { writes: writes.iter().map(write).collect() }
}

#[test]
fn what_would_be_too_much_is_refused_whole_and_says_how_much() {
    let mut database = Database::default();
    database.put("a", "12345").unwrap();
    // What is there is counted when the quota is set.
    let quota = database.set(NAME, limit(10, None)).unwrap();
    assert_eq!((quota.bytes, quota.entries, &quota.tree[..]), (6, 1, NAME.as_bytes()));
    database.put("b", "123").unwrap();
    let exceeded = database.exceeds(Command::Put { tree: TREE, key: "c".into(), value: "".into() });
    let expected =
        QuotaExceeded { tree: NAME.into(), measure: Measure::Bytes, limit: 10, used: 10, wanted: 11 };
    assert_eq!(exceeded, expected);
    let text = Error::QuotaExceeded(exceeded).to_string();
    assert!(text.contains("10 bytes") && text.contains("remove something") && text.contains(NAME), "{text}");
    // All of a batch or nothing; and what it removes makes room for what it puts.
    database.exceeds(batch(&[("a", Some("")), ("d", Some("123456"))]));
    database.execute(batch(&[("a", None), ("d", Some("12345"))])).unwrap();
    assert_eq!(database.state.len(TREE), 2);
    let counted = database.set(NAME, limit(None, 2)).unwrap();
    let exceeded = database.exceeds(Command::Insert { tree: TREE, key: "e".into(), value: "".into() });
    assert_eq!((exceeded.measure, exceeded.used, exceeded.wanted), (Measure::Entries, 2, 3));
    // Bytes are not limited any more.
    database.put("d", &"x".repeat(1000)).unwrap();
    assert_eq!((counted.bytes, counted.limit.bytes), (10, None));
    assert_eq!(database.set(NAME, None), None);
    database.put("e", "x").unwrap();
    assert!(database.state.is_empty(TreeId::QUOTAS));
}

#[test]
fn a_tree_that_is_over_its_limit_can_be_made_smaller_step_by_step() {
    let mut database = Database::default();
    for key in ["a", "b", "c", "d"] {
        database.put(key, "123456789").unwrap();
    }
    database.set(NAME, limit(5, 1));
    // Shorter, or as long.
    database.put("a", "987654321").unwrap();
    database.put("a", "1").unwrap();
    database.exceeds(Command::Put { tree: TREE, key: "a".into(), value: "12".into() });
    database.exceeds(Command::Put { tree: TREE, key: "e".into(), value: "".into() });
    // In sum it adds nothing.
    database.execute(batch(&[("b", None), ("e", Some("12345"))])).unwrap();
    database.execute(Command::Remove { tree: TREE, key: "c".into() }).unwrap();
    database.execute(Command::Pop { tree: TREE, last: true }).unwrap();
    let swap = |new: Option<&str>| Command::CompareAndSwap {
        tree: TREE,
        key: "d".into(),
        old: Some("123456789".into()),
        new: new.map(IVec::from),
    };
    database.exceeds(swap(Some("1234567890")));
    database.execute(swap(None)).unwrap();
    database.execute(Command::ClearTree { tree: TREE }).unwrap();
    database.put("x", "1234").unwrap();
    database.exceeds(Command::Put { tree: TREE, key: "y".into(), value: "".into() });
    // 0 lets nothing in.
    database.execute(Command::ClearTree { tree: TREE }).unwrap();
    database.set(NAME, limit(0, None));
    database.exceeds(Command::Put { tree: TREE, key: "x".into(), value: "".into() });
    database.put("", "").unwrap();
}

#[test]
fn a_quota_makes_its_tree_and_goes_with_it_and_other_trees_have_none() {
    let mut database = Database::default();
    assert_eq!(database.set("users", limit(None, 1)).unwrap().entries, 0);
    let tree = TreeId::FIRST_USER;
    let put = |key: &str| Command::Put { tree, key: key.into(), value: "v".into() };
    database.execute(put("a")).unwrap();
    database.exceeds(put("b"));
    database.put("a", "1").unwrap();
    database.put("b", "2").unwrap();
    assert_eq!(database.execute(Command::DropTree { name: "users".into() }).unwrap(), Reply::Dropped(true));
    assert!(database.state.is_empty(TreeId::QUOTAS));
    database.execute(Command::CreateTree { name: "users".into() }).unwrap();
    let again = TreeId(tree.0 + 1);
    database.execute(Command::Put { tree: again, key: "a".into(), value: "".into() }).unwrap();
    database.execute(Command::Put { tree: again, key: "b".into(), value: "".into() }).unwrap();
    assert_eq!(database.set("not there", None), None);
    assert_eq!(database.state.tree_id(b"not there"), None);
}

#[test]
fn what_has_expired_counts_until_it_is_removed() {
    let mut database = Database { now_ms: 1_000, ..Database::default() };
    database.set(NAME, limit(None, 1));
    let insert = |key: &str, when| {
        let (key, value) = (key.into(), "v".into());
        Command::Expiry(ExpiryCommand::Insert { tree: TREE, key, value, when })
    };
    database.execute(insert("a", When::After(10))).unwrap();
    database.now_ms = 2_000;
    database.exceeds(insert("b", When::After(10)));
    // In its own place it adds nothing, though nobody sees it any more.
    database.execute(insert("a", When::After(10))).unwrap();
    database.now_ms = 3_000;
    database.execute(Command::SettleDue { limit: 10 }).unwrap();
    database.execute(insert("b", When::After(10))).unwrap();
    let set = ExpiryCommand::Set { tree: TREE, key: "b".into(), when: When::At(1), only: SetIf::Always };
    database.execute(Command::Expiry(set)).unwrap();
    database.put("c", "").unwrap();
}

#[test]
fn of_a_list_of_operations_each_is_refused_by_itself() {
    let mut database = Database::default();
    database.set(NAME, limit(20, 3));
    let over = || StringsReply::Failed(StringsFailure::OverQuota);
    let append = |value: &str| StringAction::Append { value: value.into() };
    let replies = database.strings(vec![
        ("a", set_string("123456789")),
        ("b", set_string("12345678901")),
        ("b", set_string("123456789")),
        ("b", append("0")),
        ("a", StringAction::Delete),
        ("b", append("0")),
        ("c", set_string("")),
        ("d", set_string("")),
        ("e", set_string("")),
        ("c", StringAction::Get),
    ]);
    let done = || StringsReply::Done;
    let expected = [
        done(),
        over(),
        done(),
        over(),
        StringsReply::Integer(1),
        StringsReply::Integer(10),
        done(),
        done(),
        over(),
        StringsReply::Value(Some("".into())),
    ];
    assert_eq!(replies, expected);
}

#[test]
fn the_fields_of_hashes_count_until_they_are_swept() {
    let mut database = Database { now_ms: 1_000, ..Database::default() };
    let fields = |count: usize, value: &str| {
        let fields = (0..count).map(|number| (IVec::from(format!("f{number:05}")), IVec::from(value)));
        StringAction::Hash(HashAction::Set { pairs: Listed(fields.collect()) })
    };
    database.strings(vec![("small", fields(2, "1")), ("large", fields(3_000, "12345"))]);
    let quota = database.set(NAME, limit(100_000, None)).unwrap();
    assert_eq!(quota.entries, 2);
    assert!(quota.bytes > 3_000 * 11, "{quota:?}");
    let over = [StringsReply::Failed(StringsFailure::OverQuota)];
    assert_eq!(database.strings(vec![("more", fields(20_000, "1"))]), over);
    assert_eq!(database.strings(vec![("large", fields(3_000, &"x".repeat(50)))]), over);
    database.strings(vec![("large", fields(3_000, "1"))]);
    database.strings(vec![(
        "large",
        StringAction::Hash(HashAction::Delete { fields: Listed(vec!["f00000".into()]) }),
    )]);
    let transfer =
        |to: &str, copy| StringAction::Transfer { tree: TREE, key: to.into(), copy, replace: true };
    database.strings(vec![("small", transfer("copied", true)), ("small", transfer("moved", false))]);
    let before = database.set(NAME, limit(100_000, None)).unwrap();
    database.strings(vec![("large", StringAction::Delete)]);
    // Too large to be swept at once.
    assert!(database.set(NAME, limit(100_000, None)).unwrap().bytes > before.bytes / 2);
    for _ in 0..100 {
        database.now_ms += 1_000;
        database.execute(Command::SettleDue { limit: 64 }).unwrap();
    }
    let after = database.set(NAME, limit(100_000, None)).unwrap();
    assert!(after.bytes < 200 && after.entries == 2, "{after:?}");
    // To another tree, with its fields.
    database.set("users", limit(40, None));
    let to_users =
        |copy| StringAction::Transfer { tree: TreeId::FIRST_USER, key: "m".into(), copy, replace: true };
    // What a large hash has is known only when it is counted: the list is refused whole.
    let (watched, key) = (Vec::new(), "moved".into());
    let operations = vec![StringsOperation { tree: TREE, key, action: to_users(false) }];
    let exceeded = database.exceeds(Command::Strings { watched, operations });
    assert_eq!((&exceeded.tree[..], exceeded.used), (&b"users"[..], 0));
    assert_eq!(database.set(NAME, limit(100_000, None)).unwrap().entries, 2);
    database.set("users", limit(1_000, None));
    database.strings(vec![("moved", to_users(false)), ("copied", to_users(true))]);
    database.execute(Command::ClearTree { tree: TREE }).unwrap();
    database.execute(Command::DropTree { name: "users".into() }).unwrap();
}

#[test]
fn random_writes_are_refused_exactly_when_they_make_a_full_tree_larger() {
    let mut counts = [0; 2];
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut database = Database::default();
        let mut plain = BTreeMap::<IVec, IVec>::new();
        let mut limits = QuotaLimit::default();
        for step in 0..150 {
            if random.below(12) == 0 {
                let some = |random: &mut Random, most| random.coin().then(|| random.below(most));
                limits = QuotaLimit { bytes: some(&mut random, 90), entries: some(&mut random, 9) };
                database.set(NAME, Some(limits));
            }
            let writes: Vec<Write> = (0..1 + random.below(4))
                .map(|_| Write {
                    tree: TREE,
                    key: IVec::from([b'a' + random.below(12) as u8].repeat(1 + random.below(2) as usize)),
                    value: (random.below(3) > 0).then(|| IVec::from(vec![b'v'; random.below(20) as usize])),
                })
                .collect();
            let mut after = plain.clone();
            for write in &writes {
                match &write.value {
                    Some(value) => after.insert(write.key.clone(), value.clone()),
                    None => after.remove(&write.key),
                };
            }
            let size = |tree: &BTreeMap<IVec, IVec>| {
                (
                    tree.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() as u64,
                    tree.len() as u64,
                )
            };
            let (now, then) = (size(&plain), size(&after));
            let over = |limit: Option<u64>, now, then| limit.is_some_and(|limit| then > limit && then > now);
            let is_refused = over(limits.bytes, now.0, then.0) || over(limits.entries, now.1, then.1);
            let command = match &writes[..] {
                [Write { key, value: Some(value), .. }] if random.coin() => {
                    Command::Put { tree: TREE, key: key.clone(), value: value.clone() }
                }
                [Write { key, value: Some(value), .. }] => {
                    Command::Insert { tree: TREE, key: key.clone(), value: value.clone() }
                }
                [Write { key, value: None, .. }] => Command::Remove { tree: TREE, key: key.clone() },
                _ => Command::Batch { writes },
            };
            let done = database.execute(command.clone());
            let whence = format!("seed {seed}, step {step}, {command:?} at {now:?} of {limits:?}");
            assert_eq!(matches!(done, Err(Error::QuotaExceeded(_))), is_refused, "{whence}: {done:?}");
            counts[usize::from(is_refused)] += 1;
            if !is_refused {
                plain = after;
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 2_000), "the search finds too little: {counts:?}");
}
