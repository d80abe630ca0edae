//! Hashes as commands: what random lists of operations come to in the state, compared with plain maps in memory.

use std::collections::BTreeMap;

use crate::commands_support::Random;
use dogsled_storage::codec::Listed;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::model::ModelState;
use dogsled_storage::strings::{
    SetOnly, StringAction, StringsFailure, StringsOperation, StringsReplies, StringsReply,
};
use dogsled_storage::{Command, ExpiryCommand, IVec, Reply, TreeId, View, When};

const TREE: TreeId = TreeId::DEFAULT;

fn on(key: &str, action: StringAction) -> StringsOperation {
    StringsOperation { tree: TREE, key: key.into(), action }
}

fn hash(key: &str, action: HashAction) -> StringsOperation {
    on(key, StringAction::Hash(action))
}

fn set(pairs: &[(&str, &str)]) -> HashAction {
    let pairs = pairs.iter().map(|(field, value)| (IVec::from(*field), IVec::from(*value)));
    HashAction::Set { pairs: Listed(pairs.collect()) }
}

#[track_caller]
fn run(state: &mut ModelState, time_ms: u64, operations: Vec<StringsOperation>) -> Vec<StringsReply> {
    match state.execute(time_ms, &Command::Strings { watched: Vec::new(), operations }).unwrap() {
        Reply::Strings(StringsReplies(replies)) => replies,
        other => panic!("{other:?}"),
    }
}

/// What is kept of hashes when all marks that are due are gone.
fn settle(state: &mut ModelState, time_ms: u64) -> u64 {
    for _ in 0..1_000 {
        match state.execute(time_ms, &Command::SettleDue { limit: 7 }).unwrap() {
            Reply::Settled { keys: 0, more: false, .. } => return state.len(TreeId::HASHES),
            Reply::Settled { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("it never ends");
}

/// A plain value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    Text(IVec),
    Hash(BTreeMap<IVec, IVec>),
}

#[derive(Default)]
struct Plain {
    keys: BTreeMap<IVec, (Kept, Option<u64>)>,
}

impl Plain {
    fn expire(&mut self, now_ms: u64) {
        self.keys.retain(|_, (_, at_ms)| at_ms.is_none_or(|at_ms| at_ms > now_ms));
    }

    /// Written from Redis's documentation, with no regard to how it is done.
    fn run(&mut self, now_ms: u64, operation: &StringsOperation) -> StringsReply {
        use StringsReply::{Failed, Integer, Pairs, Value, Values};
        let key = operation.key.clone();
        let wrong = Failed(StringsFailure::WrongKind);
        match &operation.action {
            StringAction::Hash(action) => {
                let mut fields = match self.keys.get(&key) {
                    Some((Kept::Text(_), _)) => return wrong,
                    Some((Kept::Hash(fields), _)) => fields.clone(),
                    None => BTreeMap::new(),
                };
                let at_ms = self.keys.get(&key).and_then(|(_, at_ms)| *at_ms);
                let all = |fields: &BTreeMap<IVec, IVec>| {
                    fields.iter().map(|(field, value)| (field.clone(), value.clone())).collect::<Vec<_>>()
                };
                let reply = match action {
                    HashAction::Set { pairs } => {
                        let new = pairs
                            .0
                            .iter()
                            .filter(|(field, value)| fields.insert(field.clone(), value.clone()).is_none());
                        Integer(new.count() as i64)
                    }
                    HashAction::SetAbsent { field, value } => {
                        let is_new = !fields.contains_key(field);
                        fields.entry(field.clone()).or_insert_with(|| value.clone());
                        Integer(i64::from(is_new))
                    }
                    HashAction::Get { field } => Value(fields.get(field).cloned()),
                    HashAction::GetMany { fields: names } => {
                        Values(Listed(names.0.iter().map(|name| fields.get(name).cloned()).collect()))
                    }
                    HashAction::Delete { fields: names } => {
                        let gone = names.0.iter().filter(|name| fields.remove(*name).is_some()).count();
                        Integer(gone as i64)
                    }
                    HashAction::Exists { field } => Integer(i64::from(fields.contains_key(field))),
                    HashAction::Length => Integer(fields.len() as i64),
                    HashAction::ValueLength { field } => {
                        Integer(fields.get(field).map_or(0, |value| value.len()) as i64)
                    }
                    HashAction::All => Pairs { pairs: Listed(all(&fields)), more: None },
                    HashAction::Page { after, limit } => {
                        let mut rest = all(&fields);
                        if fields.len() > 128 {
                            rest.retain(|(field, _)| after.as_ref().is_none_or(|after| field > after));
                            let more = rest.get(*limit as usize).is_some();
                            rest.truncate(*limit as usize);
                            let more = rest.last().filter(|_| more).map(|(field, _)| field.clone());
                            Pairs { pairs: Listed(rest), more }
                        } else {
                            rest.retain(|(field, _)| after.as_ref().is_none_or(|after| field > after));
                            Pairs { pairs: Listed(rest), more: None }
                        }
                    }
                    HashAction::Add { field, delta } => {
                        let current = match fields.get(field) {
                            Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
                            None => Some(0i64),
                        };
                        match current {
                            Some(current) => {
                                let sum = current + delta;
                                fields.insert(field.clone(), IVec::from(sum.to_string()));
                                Integer(sum)
                            }
                            None => Failed(StringsFailure::FieldNotAnInteger),
                        }
                    }
                    HashAction::AddFloat { .. } => unreachable!("not here"),
                };
                if fields.is_empty() {
                    self.keys.remove(&key);
                } else {
                    self.keys.insert(key, (Kept::Hash(fields), at_ms));
                }
                reply
            }
            StringAction::Delete => Integer(i64::from(self.keys.remove(&key).is_some())),
            StringAction::Set { value, .. } => {
                self.keys.insert(key, (Kept::Text(value.clone()), None));
                StringsReply::Done
            }
            StringAction::Get => match self.keys.get(&key) {
                Some((Kept::Text(text), _)) => Value(Some(text.clone())),
                Some(_) => wrong,
                None => Value(None),
            },
            StringAction::Expire { when: When::After(after), .. } => match self.keys.get_mut(&key) {
                Some((_, at_ms)) => {
                    *at_ms = Some(now_ms + after);
                    Integer(1)
                }
                None => Integer(0),
            },
            StringAction::Transfer { key: to, copy, .. } => {
                let Some(found) = self.keys.get(&key).cloned() else {
                    return if *copy { Integer(0) } else { Failed(StringsFailure::NoSuchKey) };
                };
                if *to != key {
                    if !copy {
                        self.keys.remove(&key);
                    }
                    self.keys.insert(to.clone(), found);
                }
                Integer(1)
            }
            StringAction::Kind => Integer(match self.keys.get(&key) {
                Some((Kept::Text(_), _)) => 1,
                Some(_) => 2,
                None => 0,
            }),
            other => unreachable!("{other:?}"),
        }
    }
}

fn operation(random: &mut Random) -> StringsOperation {
    let key = format!("k{}", random.below(4));
    let field = |random: &mut Random| IVec::from(format!("f{}", random.below(8)));
    let value = |random: &mut Random| IVec::from(["7", "-3", "x", "", "1.5"][random.below(5) as usize]);
    let fields = |random: &mut Random| Listed((0..1 + random.below(4)).map(|_| field(random)).collect());
    let action = match random.below(22) {
        0..=3 => {
            // Now and then so many that they are not removed at once.
            let count = if random.below(6) == 0 { 100 + random.below(100) } else { 1 + random.below(5) };
            let pair = |_| (IVec::from(format!("f{}", random.below(200))), value(random));
            HashAction::Set { pairs: Listed((0..count).map(pair).collect()) }
        }
        4 => HashAction::SetAbsent { field: field(random), value: value(random) },
        5 => HashAction::Get { field: field(random) },
        6 => HashAction::GetMany { fields: fields(random) },
        7 | 8 => HashAction::Delete { fields: fields(random) },
        9 => HashAction::Exists { field: field(random) },
        10 => HashAction::Length,
        11 => HashAction::ValueLength { field: field(random) },
        12 => HashAction::All,
        13 => {
            let after = if random.coin() { Some(field(random)) } else { None };
            HashAction::Page { after, limit: 1 + random.below(50) as u32 }
        }
        14 => HashAction::Add { field: field(random), delta: random.below(9) as i64 - 4 },
        15 => return on(&key, StringAction::Delete),
        16 => {
            let (value, only) = (value(random), SetOnly::Always);
            return on(&key, StringAction::Set { value, only, when: None, get: false });
        }
        17 => return on(&key, StringAction::Get),
        18 => {
            let (when, only) = (When::After(1 + random.below(40)), dogsled_storage::SetIf::Always);
            return on(&key, StringAction::Expire { when, only, only_some: false });
        }
        19 | 20 => {
            let to = IVec::from(format!("k{}", random.below(4)));
            let copy = random.coin();
            return on(&key, StringAction::Transfer { tree: TREE, key: to, copy, replace: true });
        }
        _ => return on(&key, StringAction::Kind),
    };
    hash(&key, action)
}

/// The model panics at an effect that is not exact: a field that is said to be new and is not.
#[test]
fn random_lists_come_to_what_plain_maps_say_and_nothing_stays_of_what_is_gone() {
    let seeds = std::env::var("DOGSLED_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(200);
    for seed in 0..seeds {
        let mut random = Random(seed);
        let (mut state, mut plain, mut now_ms) = (ModelState::new(), Plain::default(), 1_000);
        for step in 0..100 {
            now_ms += random.below(10);
            let mut operations: Vec<_> = (0..1 + random.below(5)).map(|_| operation(&mut random)).collect();
            // How long a page is counts fields as they were before the list.
            let is_page =
                |one: &StringsOperation| matches!(&one.action, StringAction::Hash(HashAction::Page { .. }));
            if let Some(page) = operations.iter().position(is_page) {
                operations.swap(0, page);
                operations.retain({
                    let mut is_first = true;
                    move |one| std::mem::take(&mut is_first) || !is_page(one)
                });
            }
            let whence = format!("seed {seed}, step {step}, time {now_ms}: {operations:?}");
            plain.expire(now_ms);
            let expected: Vec<_> = operations.iter().map(|one| plain.run(now_ms, one)).collect();
            assert_eq!(run(&mut state, now_ms, operations), expected, "{whence}");
            if random.below(5) == 0 {
                state.execute(now_ms, &Command::SettleDue { limit: 3 }).unwrap();
            }
        }
        now_ms += 1_000_000;
        plain.expire(now_ms);
        let fields = plain.keys.values().map(|(kept, _)| match kept {
            Kept::Hash(fields) => fields.len() as u64 + 1,
            Kept::Text(_) => 0,
        });
        let fields: u64 = fields.sum();
        assert_eq!(settle(&mut state, now_ms), fields, "seed {seed}");
        assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (plain.keys.len() as u64, 0), "seed {seed}");
    }
}

#[test]
fn every_change_of_a_field_is_a_change_of_the_key() {
    let mut state = ModelState::new();
    let version = |state: &ModelState| state.get(TREE, b"h").unwrap().unwrap().version;
    let mut last = 0;
    let one = |field: &str| Listed(vec![IVec::from(field)]);
    for action in [
        set(&[("a", "1"), ("b", "1")]),
        set(&[("a", "1")]),
        HashAction::Add { field: "a".into(), delta: 1 },
        HashAction::Delete { fields: one("b") },
    ] {
        run(&mut state, 1, vec![hash("h", action.clone())]);
        assert!(version(&state) > last, "{action:?}");
        last = version(&state);
    }
    for action in
        [HashAction::All, HashAction::Get { field: "a".into() }, HashAction::Delete { fields: one("b") }]
    {
        run(&mut state, 1, vec![hash("h", action)]);
        assert_eq!(version(&state), last);
    }
}

#[test]
fn a_head_that_was_copied_by_other_means_is_nothing_and_harms_nobody() {
    let mut state = ModelState::new();
    run(&mut state, 1, vec![hash("h", set(&[("a", "1")]))]);
    let value = state.get(TREE, b"h").unwrap().unwrap().value;
    state.execute(1, &Command::Put { tree: TREE, key: "copy".into(), value }).unwrap();
    let get = |key: &str| hash(key, HashAction::Get { field: "a".into() });
    assert_eq!(run(&mut state, 1, vec![get("copy")]), [StringsReply::Value(None)]);
    let value = state.get(TREE, b"h").unwrap().unwrap().value;
    state.execute(1, &Command::Put { tree: TREE, key: "copy".into(), value }).unwrap();
    let replies = run(&mut state, 1, vec![hash("copy", set(&[("a", "2")])), get("copy"), get("h")]);
    let value = |text: &str| StringsReply::Value(Some(text.into()));
    assert_eq!(replies, [StringsReply::Integer(1), value("2"), value("1")]);
    run(&mut state, 1, vec![on("copy", StringAction::Delete)]);
    assert_eq!(run(&mut state, 1, vec![get("h")]), [value("1")]);
    assert_eq!(settle(&mut state, 1), 2);
}

#[test]
fn a_cleared_tree_leaves_no_fields_and_those_of_other_trees_stay() {
    let mut state = ModelState::new();
    let Reply::Tree { id: other, .. } =
        state.execute(1, &Command::CreateTree { name: "other".into() }).unwrap()
    else {
        panic!("no tree");
    };
    for number in 0..700 {
        let tree = if number % 3 == 0 { other } else { TREE };
        let action = StringAction::Hash(set(&[("a", "1"), ("b", "2")]));
        run(&mut state, 1, vec![StringsOperation { tree, key: IVec::from(format!("h{number}")), action }]);
    }
    run(&mut state, 2, vec![on("", StringAction::Clear)]);
    run(&mut state, 2, vec![hash("new", set(&[("a", "1")]))]);
    assert_eq!(settle(&mut state, 2), 234 * 3 + 2);
    assert_eq!((state.len(TREE), state.len(other)), (1, 234));
}

/// A transaction over several groups says before what it may leave without a key.
#[test]
fn a_suspected_hash_is_swept_only_if_no_key_holds_it() {
    let mut state = ModelState::new();
    run(&mut state, 1, vec![hash("kept", set(&[("a", "1")])), hash("gone", set(&[("a", "1")]))]);
    for key in ["kept", "gone"] {
        let value = state.get(TREE, key.as_bytes()).unwrap().unwrap().value;
        let (id, _) = dogsled_storage::hashes::head(&value).unwrap();
        run(&mut state, 1, vec![on(key, StringAction::Suspect { id })]);
    }
    run(
        &mut state,
        1,
        vec![on(
            "kept",
            StringAction::Transfer { tree: TREE, key: "moved".into(), copy: false, replace: true },
        )],
    );
    state.execute(1, &Command::Remove { tree: TREE, key: "gone".into() }).unwrap();
    assert_eq!(settle(&mut state, 2), 4, "nothing is due yet");
    assert_eq!(settle(&mut state, 100_000), 2);
    let get = hash("moved", HashAction::Get { field: "a".into() });
    assert_eq!(run(&mut state, 100_000, vec![get]), [StringsReply::Value(Some("1".into()))]);
}

/// Whoever copies the bytes of a key has copied no hash, and when the copies end the hash is there with all of its fields.
#[test]
fn copies_of_what_a_key_holds_take_no_fields_with_them_when_they_end() {
    let mut state = ModelState::new();
    run(&mut state, 1, vec![hash("h", set(&[("f", "1"), ("g", "2")]))]);
    let fields = state.len(TreeId::HASHES);
    let value = state.get(TREE, b"h").unwrap().unwrap().value;
    for key in ["a", "b"] {
        let (key, value, when) = (key.into(), value.clone(), When::At(10));
        state.execute(2, &Command::Expiry(ExpiryCommand::Insert { tree: TREE, key, value, when })).unwrap();
    }
    // One is overwritten when its time is over, the other removed.
    run(&mut state, 20, vec![on("b", StringAction::Append { value: "x".into() })]);
    assert_eq!(settle(&mut state, 20), fields);
    let all = HashAction::GetMany { fields: Listed(vec!["f".into(), "g".into()]) };
    let expected = StringsReply::Values(Listed(vec![Some("1".into()), Some("2".into())]));
    assert_eq!(run(&mut state, 21, vec![hash("h", all)]), [expected]);
    // And when the hash itself ends, they go.
    run(&mut state, 22, vec![on("h", StringAction::Delete)]);
    assert_eq!(settle(&mut state, 30), 0);
}

/// However few the fields are: whoever asks by way of a node without a replica gets each page in one message.
#[test]
fn pages_of_long_fields_are_short_and_together_tell_all() {
    let mut state = ModelState::new();
    let names: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
    for name in &names {
        let pairs = Listed(vec![(name.as_str().into(), vec![7; 300 << 10].into())]);
        run(&mut state, 1, vec![hash("h", HashAction::Set { pairs })]);
    }
    let (mut told, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = run(&mut state, 2, vec![hash("h", HashAction::Page { after, limit: 10 })]);
        let [StringsReply::Pairs { pairs, more }] = &page[..] else { panic!("{page:?}") };
        let bytes: usize = pairs.0.iter().map(|(field, value)| field.len() + value.len()).sum();
        assert!(bytes < 2 << 20, "{bytes}");
        told.extend(pairs.0.iter().map(|(field, _)| String::from_utf8(field.to_vec()).unwrap()));
        (after, pages) = (more.clone(), pages + 1);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(told, names);
    assert_eq!(pages, 5);
}
