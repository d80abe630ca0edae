//! Strings as commands: what lists of operations come to in the state, compared with slots in a plain map.

use std::collections::BTreeMap;

use crate::commands_support::Random;
use dogsled_storage::codec::Listed;
use dogsled_storage::command::KeyRead;
use dogsled_storage::evaluate::evaluate;
use dogsled_storage::model::ModelState;
use dogsled_storage::strings::notices::{EVENTS_TREE, Notice};
use dogsled_storage::strings::{
    Carried, MAX_STRING_LENGTH, SetOnly, Slot, StringAction, StringsFailure, StringsOperation,
    StringsReplies, StringsReply, apply, difference,
};
use dogsled_storage::{
    Command, Context, Effect, Error, ExpiryCommand, IVec, Reply, SetIf, TreeId, View, When,
};

const TREE: TreeId = TreeId::DEFAULT;

fn on(key: &str, action: StringAction) -> StringsOperation {
    StringsOperation { tree: TREE, key: key.into(), action }
}

fn set(value: &str, only: SetOnly, when: Option<When>) -> StringAction {
    StringAction::Set { value: value.into(), only, when, get: false }
}

fn strings(operations: Vec<StringsOperation>) -> Command {
    Command::Strings { watched: Vec::new(), operations }
}

#[track_caller]
fn run(state: &mut ModelState, time_ms: u64, operations: Vec<StringsOperation>) -> Vec<StringsReply> {
    match state.execute(time_ms, &strings(operations)).unwrap() {
        Reply::Strings(StringsReplies(replies)) => replies,
        other => panic!("{other:?}"),
    }
}

fn value(text: &str) -> StringsReply {
    StringsReply::Value(Some(text.into()))
}

#[test]
fn a_list_is_carried_out_in_order_and_each_sees_those_before_it() {
    let mut state = ModelState::new();
    let add = StringAction::Add { delta: 1 };
    let replies = run(
        &mut state,
        1,
        vec![
            on("n", add.clone()),
            on("n", add.clone()),
            on("n", StringAction::Get),
            on("n", StringAction::Append { value: "x".into() }),
            on("n", add),
            on("n", StringAction::Take),
            on("n", StringAction::Delete),
        ],
    );
    let expected = [
        StringsReply::Integer(1),
        StringsReply::Integer(2),
        value("2"),
        StringsReply::Integer(2),
        StringsReply::Failed(StringsFailure::NotAnInteger),
        value("2x"),
        StringsReply::Integer(0),
    ];
    assert_eq!(replies, expected);
    // What came and went within one command leaves nothing, and takes no place in the log.
    assert_eq!((state.len(TREE), state.sequence()), (0, 0));
}

#[test]
fn what_is_told_is_told_each_in_order_and_changes_nothing() {
    let mut state = ModelState::new();
    run(&mut state, 1, vec![on("k", set("v", SetOnly::Always, None))]);
    let tell = |key: &str, text: &str| on(key, StringAction::Tell { value: text.into() });
    let operations = vec![tell("k", "a"), tell("absent", "b"), on("k", StringAction::Get), tell("k", "a")];
    let context = Context { sequence: state.sequence() + 1, time_ms: 2 };
    let outcome = evaluate(&state, &context, &strings(operations)).unwrap();
    let replies = vec![StringsReply::Done, StringsReply::Done, value("v"), StringsReply::Done];
    assert_eq!(outcome.reply, Reply::Strings(StringsReplies(replies)));
    let told = |key: &str, text: &str| Effect::Tell { tree: TREE, key: key.into(), value: text.into() };
    // In the order of keys, and of each what it was told.
    assert_eq!(outcome.effects.to_vec(), [told("absent", "b"), told("k", "a"), told("k", "a")]);
    // What was told takes a place in the log, and none in the state.
    let before = (state.len(TREE), state.get(TREE, b"k").unwrap());
    run(&mut state, 3, vec![tell("k", "c"), tell("absent", "c")]);
    assert_eq!((state.len(TREE), state.get(TREE, b"k").unwrap()), before);
    assert_eq!(state.sequence(), 2);
    // Another place where it is told is told as much.
    let mut slot = Slot::found(Some("v".into()), None);
    let before = slot.clone();
    for text in ["a", "b", "a"] {
        let action = StringAction::Tell { value: text.into() };
        apply(&action, 1, &mut Carried::default(), &mut slot, None);
    }
    let actions = difference(&before, &slot);
    assert_eq!(actions, ["a", "b", "a"].map(|text| StringAction::Tell { value: text.into() }));
}

/// What is told of keys, with which letters switched on.
fn notices(state: &ModelState, time_ms: u64, command: &Command) -> Vec<String> {
    let events = state.tree_id(EVENTS_TREE).unwrap();
    let context = Context { sequence: state.sequence() + 1, time_ms };
    let effects = evaluate(state, &context, command).unwrap().effects;
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Tell { tree, key, value } if *tree == events => {
            let Notice { by_key, by_event, database, event } = Notice::decode(value).unwrap();
            let (key, event) = (String::from_utf8_lossy(key), String::from_utf8_lossy(event));
            Some(format!("{by_key} {by_event} {database} {key} {event}"))
        }
        _ => None,
    });
    told.collect()
}

/// The whole list of events is compared with Redis's own in the facade's tests.
#[test]
fn of_keys_of_databases_is_told_what_is_switched_on_and_of_others_nothing() {
    let mut state = ModelState::new();
    for name in [EVENTS_TREE, b"redis", b"redis:3", b"other"] {
        state.execute(1, &Command::CreateTree { name: name.into() }).unwrap();
    }
    let tree = |name: &[u8]| state.tree_id(name).unwrap();
    let (events, zero, three, other) = (tree(EVENTS_TREE), tree(b"redis"), tree(b"redis:3"), tree(b"other"));
    let soon = set("v", SetOnly::Always, Some(When::After(10)));
    let in_all = || {
        let put = |tree| StringsOperation { tree, key: "k".into(), action: soon.clone() };
        strings(vec![put(zero), put(three), put(other)])
    };
    assert_eq!(notices(&state, 1, &in_all()), [""; 0]);
    let switch = |state: &mut ModelState, letters: &str| {
        let action = set(letters, SetOnly::Always, None);
        run(state, 1, vec![StringsOperation { tree: events, key: "{0}".into(), action }]);
    };
    switch(&mut state, "$K");
    assert_eq!(notices(&state, 1, &in_all()), ["true false 0 k set", "true false 3 k set"]);
    switch(&mut state, "xE");
    assert_eq!(notices(&state, 1, &in_all()), [""; 0]);
    state.execute(1, &in_all()).unwrap();
    let settle = Command::SettleDue { limit: 100 };
    assert_eq!(notices(&state, 10, &settle), [""; 0]);
    assert_eq!(notices(&state, 11, &settle), ["false true 0 k expired", "false true 3 k expired"]);
    // Whoever writes it anew after its time is told that it was over, once.
    let again = strings(vec![
        StringsOperation { tree: zero, key: "k".into(), action: StringAction::Get },
        StringsOperation { tree: zero, key: "k".into(), action: soon.clone() },
        StringsOperation { tree: zero, key: "k".into(), action: soon.clone() },
    ]);
    assert_eq!(notices(&state, 11, &again), ["false true 0 k expired"]);
    assert_eq!(notices(&state, 5, &again), [""; 0]);
    // Nor is one that was removed with all others.
    let mut cleared = state.clone();
    for tree in [zero, three] {
        let clear = StringsOperation { tree, key: "".into(), action: StringAction::Clear };
        cleared.execute(5, &strings(vec![clear])).unwrap();
    }
    assert_eq!(notices(&cleared, 11, &again), [""; 0]);
    state.execute(11, &again).unwrap();
    assert_eq!(notices(&state, 12, &settle), ["false true 3 k expired"]);
}

#[test]
fn the_lock_of_the_tutorials_is_granted_to_one_until_its_time_is_over() {
    let mut state = ModelState::new();
    let take = |token: &str| vec![on("lock", set(token, SetOnly::Absent, Some(When::After(100))))];
    assert_eq!(run(&mut state, 1_000, take("a")), [StringsReply::Done]);
    assert_eq!(run(&mut state, 1_099, take("b")), [StringsReply::Unchanged]);
    assert_eq!(run(&mut state, 1_100, take("b")), [StringsReply::Done]);
    assert_eq!(run(&mut state, 1_150, vec![on("lock", StringAction::Get)]), [value("b")]);
}

#[test]
fn a_plain_set_takes_the_time_to_live_and_arithmetic_keeps_it() {
    let mut state = ModelState::new();
    run(&mut state, 1_000, vec![on("k", set("1", SetOnly::Always, Some(When::After(100))))]);
    let ends = |state: &mut ModelState, time_ms| run(state, time_ms, vec![on("k", StringAction::Expires)]);
    let at = |at_ms, now_ms| vec![StringsReply::Expires { at_ms, now_ms }];
    run(&mut state, 1_001, vec![on("k", StringAction::Add { delta: 1 })]);
    assert_eq!(ends(&mut state, 1_002), at(Some(Some(1_100)), 1_002));
    run(&mut state, 1_003, vec![on("k", set("2", SetOnly::Always, Some(When::Keep)))]);
    assert_eq!(ends(&mut state, 1_004), at(Some(Some(1_100)), 1_004));
    run(&mut state, 1_005, vec![on("k", set("2", SetOnly::Always, None))]);
    assert_eq!(ends(&mut state, 1_006), at(Some(None), 1_006));
    assert_eq!(ends(&mut state, 2_000), at(Some(None), 2_000));
    run(&mut state, 2_001, vec![on("k", set("2", SetOnly::Always, Some(When::At(7))))]);
    assert_eq!(ends(&mut state, 2_002), at(None, 2_002));
    state.execute(9_000, &Command::SettleDue { limit: 9 }).unwrap();
    assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (0, 0));
}

#[test]
fn nothing_is_done_if_what_was_watched_has_changed() {
    let mut state = ModelState::new();
    run(&mut state, 1, vec![on("a", set("1", SetOnly::Always, None))]);
    let version = state.get(TREE, b"a").unwrap().unwrap().version;
    let watching = |version| Command::Strings {
        watched: vec![KeyRead { tree: TREE, key: "a".into(), version }],
        operations: vec![on("b", StringAction::Add { delta: 1 })],
    };
    assert_eq!(state.execute(1, &watching(version + 1)).unwrap(), Reply::Conflict);
    assert_eq!(state.execute(1, &watching(0)).unwrap(), Reply::Conflict);
    assert!(state.get(TREE, b"b").unwrap().is_none());
    let done = Reply::Strings(StringsReplies(vec![StringsReply::Integer(1)]));
    assert_eq!(state.execute(1, &watching(version)).unwrap(), done);
}

#[test]
fn what_no_state_allows_is_refused() {
    let mut state = ModelState::new();
    let own =
        StringsOperation { tree: TreeId::COUNTERS, ..on("k", StringAction::Append { value: "x".into() }) };
    let to_own = StringAction::Transfer { tree: TreeId::LOCKS, key: "k".into(), copy: true, replace: true };
    let long = "k".repeat((64 << 10) + 1);
    let to_long = StringAction::Transfer { tree: TREE, key: long.clone().into(), copy: true, replace: true };
    for operation in [own, on("k", to_own), on(&long, StringAction::Get), on("k", to_long)] {
        let refused = state.execute(1, &strings(vec![operation]));
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");
    }
    let nowhere = StringsOperation { tree: TreeId(99), ..on("k", StringAction::Get) };
    assert!(matches!(state.execute(1, &strings(vec![nowhere])), Err(Error::TreeNotFound(_))));
    let behind = StringAction::Overwrite { offset: MAX_STRING_LENGTH as u64, value: "x".into() };
    assert_eq!(run(&mut state, 1, vec![on("k", behind)]), [StringsReply::Failed(StringsFailure::TooLong)]);
    assert_eq!(state.sequence(), 0);
}

fn action(random: &mut Random, key: &IVec, now_ms: u64) -> StringAction {
    let when = |random: &mut Random| match random.below(6) {
        0 => When::Keep,
        1 => When::At(now_ms.saturating_sub(random.below(30))),
        2 => When::At(now_ms + random.below(80)),
        _ => When::After(random.below(60)),
    };
    let text = IVec::from(["7", "-3", "x", "", "1.5"][random.below(5) as usize]);
    match random.below(18) {
        0 => StringAction::Get,
        1 => StringAction::Length,
        2 => StringAction::Exists,
        3 | 4 => StringAction::Expires,
        5..=8 => {
            let only =
                [SetOnly::Always, SetOnly::Always, SetOnly::Absent, SetOnly::Present, SetOnly::AsRequired];
            let only = only[random.below(5) as usize];
            let when = if random.coin() { Some(when(random)) } else { None };
            StringAction::Set { value: text, only, when, get: random.below(4) == 0 }
        }
        9 => StringAction::RequireAbsent { first: random.coin() },
        10 => StringAction::Delete,
        11 => StringAction::Take,
        12 => StringAction::GetAndExpire { when: if random.coin() { Some(when(random)) } else { None } },
        13 => StringAction::Append { value: text },
        14 => StringAction::Add { delta: random.below(9) as i64 - 4 },
        15 => {
            let only = [SetIf::Always, SetIf::None, SetIf::Some, SetIf::Later, SetIf::Earlier];
            let only = only[random.below(5) as usize];
            StringAction::Expire { when: when(random), only, only_some: random.below(4) == 0 }
        }
        16 => StringAction::Persist,
        _ => {
            let other =
                if random.below(5) == 0 { key.clone() } else { IVec::from(format!("k{}", random.below(6))) };
            StringAction::Transfer { tree: TREE, key: other, copy: random.coin(), replace: random.coin() }
        }
    }
}

/// Keys with a value and an end, of which those that are over are not there.
#[derive(Default)]
struct Plain(BTreeMap<IVec, Slot>);

impl Plain {
    fn run(&mut self, now_ms: u64, operations: &[StringsOperation]) -> Vec<StringsReply> {
        self.0.retain(|_, slot| slot.expires_ms.is_none_or(|at_ms| at_ms > now_ms));
        let mut required = Carried::default();
        let mut replies = Vec::new();
        for operation in operations {
            let mut slot = self.0.remove(&operation.key).unwrap_or_default();
            let mut other = match &operation.action {
                StringAction::Transfer { key, .. } if *key != operation.key => {
                    Some((key.clone(), self.0.remove(key).unwrap_or_default()))
                }
                _ => None,
            };
            let second = other.as_mut().map(|(_, slot)| slot);
            replies.push(apply(&operation.action, now_ms, &mut required, &mut slot, second));
            let changed = other.into_iter().chain([(operation.key.clone(), slot)]);
            self.0.extend(changed.filter(|(_, slot)| slot.value.is_some()));
        }
        replies
    }

    fn contents(&self, now_ms: u64) -> Vec<(IVec, IVec, Option<u64>)> {
        let live = self.0.iter().filter(|(_, slot)| slot.expires_ms.is_none_or(|at_ms| at_ms > now_ms));
        live.map(|(key, slot)| (key.clone(), slot.value.clone().unwrap(), slot.expires_ms)).collect()
    }
}

/// Among them plain writes by others, and removals of what has expired; the model panics at an effect that is
/// not exact.
#[test]
fn random_lists_come_to_what_the_plain_map_says() {
    let (mut lists, mut conflicts) = (0, 0);
    for seed in 0..300 {
        let mut random = Random(seed);
        let (mut state, mut plain, mut now_ms) = (ModelState::new(), Plain::default(), 1_000);
        for step in 0..120 {
            now_ms += random.below(12);
            let whence = format!("seed {seed}, step {step}, time {now_ms}");
            let key = IVec::from(format!("k{}", random.below(6)));
            match random.below(12) {
                0 => drop(state.execute(now_ms, &Command::SettleDue { limit: 3 }).unwrap()),
                1 => {
                    let value = IVec::from(format!("{step}"));
                    let put = Command::Put { tree: TREE, key: key.clone(), value: value.clone() };
                    state.execute(now_ms, &put).unwrap();
                    plain.0.insert(key, Slot::found(Some(value), None));
                }
                2 => {
                    state.execute(now_ms, &Command::Remove { tree: TREE, key: key.clone() }).unwrap();
                    plain.0.remove(&key);
                }
                _ => {
                    let count = 1 + random.below(5);
                    let operations: Vec<StringsOperation> = (0..count)
                        .map(|_| {
                            let key = IVec::from(format!("k{}", random.below(6)));
                            let action = action(&mut random, &key, now_ms);
                            StringsOperation { tree: TREE, key, action }
                        })
                        .collect();
                    let what = format!("{whence}: {operations:?}");
                    if random.below(10) == 0 {
                        // No key has this version.
                        let watched = vec![KeyRead { tree: TREE, key, version: u64::MAX }];
                        let command = Command::Strings { watched, operations };
                        assert_eq!(state.execute(now_ms, &command).unwrap(), Reply::Conflict, "{what}");
                        conflicts += 1;
                    } else {
                        let expected = plain.run(now_ms, &operations);
                        assert_eq!(run(&mut state, now_ms, operations), expected, "{what}");
                        lists += 1;
                    }
                }
            }
            let mut found = Vec::new();
            for number in 0..6 {
                let key = IVec::from(format!("k{number}"));
                let get = vec![StringsOperation { tree: TREE, key: key.clone(), action: StringAction::Get }];
                let value = run(&mut state, now_ms, get);
                let ends = ExpiryCommand::Get { tree: TREE, key: key.clone() };
                let ends = state.execute(now_ms, &Command::Expiry(ends)).unwrap();
                if let [StringsReply::Value(Some(value))] = &value[..]
                    && let Reply::Expiry(dogsled_storage::ExpiryReply::Expires(at_ms)) = ends
                {
                    found.push((key, value.clone(), at_ms));
                }
            }
            assert_eq!(found, plain.contents(now_ms), "{whence}");
        }
        // Every record is about something: when all time is over nothing is left.
        state.execute(u64::MAX, &Command::SettleDue { limit: 1_000 }).unwrap();
        let forever = plain.0.values().filter(|slot| slot.expires_ms.is_none()).count();
        assert_eq!((state.len(TREE), state.len(TreeId::EXPIRY)), (forever as u64, 0), "seed {seed}");
    }
    assert!(lists > 10_000 && conflicts > 1_000, "{lists} lists, {conflicts} conflicts");
}

/// Every replica would have to write the answer down, and another node could not be told it: what was taken would be gone.
#[test]
fn what_would_be_answered_with_more_than_can_be_told_is_refused_and_does_nothing() {
    let mut state = ModelState::new();
    let large = IVec::from(vec![b'x'; 4 << 20]);
    let put = StringAction::Set { value: large, only: SetOnly::Always, when: None, get: false };
    run(&mut state, 1, vec![on("k", put)]);
    let many = |count| {
        let mut operations = vec![on("n", StringAction::Add { delta: 1 })];
        operations.extend((0..count).map(|_| on("k", StringAction::Get)));
        operations
    };
    assert_eq!(run(&mut state, 2, many(3)).len(), 4);
    let refused = state.execute(3, &strings(many(5))).unwrap_err();
    assert!(matches!(&refused, Error::InvalidRequest(what) if what.contains("ask for less")), "{refused}");
    assert_eq!(run(&mut state, 4, vec![on("n", StringAction::Get)]), [value("1")]);
    // Nothing is told of a part of a transaction; and once it is prepared it is carried out, whatever is there by then.
    let actions = Listed((0..9).map(|_| StringAction::Get).chain([StringAction::Delete]).collect());
    let part = ExpiryCommand::Strings { tree: TREE, key: "k".into(), actions };
    let (reads, ranges, writes) = (Vec::new(), Vec::new(), Vec::new());
    let transact = Command::Transact { reads, ranges, writes, expiries: vec![part] };
    assert_eq!(state.execute(5, &transact).unwrap(), Reply::Done);
    assert_eq!(run(&mut state, 6, vec![on("k", StringAction::Exists)]), [StringsReply::Integer(0)]);
}

#[test]
fn what_a_list_copies_or_writes_anew_is_bounded_by_what_that_makes() {
    let mut state = ModelState::new();
    let mebibyte = vec![b'v'; 1 << 20];
    let long = StringAction::Set { value: mebibyte.into(), only: SetOnly::Always, when: None, get: false };
    run(&mut state, 1, vec![on("long", long)]);
    let copy = |number: u32| {
        let key = format!("copy {number}").as_str().into();
        on("long", StringAction::Transfer { tree: TREE, key, copy: true, replace: true })
    };
    let others = [on("other", set("v", SetOnly::Always, None)), on("other", StringAction::Get)];
    let mut replies = run(&mut state, 2, (0..80).map(copy).chain(others).collect());
    assert_eq!(replies.split_off(80)[1], value("v"), "what copies nothing is no business of that");
    assert_eq!(replies.iter().filter(|reply| **reply == StringsReply::Integer(1)).count(), 64);
    assert_eq!(replies[64], StringsReply::Failed(StringsFailure::TooMuchWork));
    assert!(state.get(TREE, b"copy 63").unwrap().is_some());
    assert!(state.get(TREE, b"copy 64").unwrap().is_none());

    let append = || on("long", StringAction::Append { value: "x".into() });
    let replies = run(&mut state, 3, (0..1_100).map(|_| append()).collect());
    let done = replies.iter().filter(|reply| matches!(reply, StringsReply::Integer(_))).count();
    assert!((1_000..1_100).contains(&done), "{done}");
    assert_eq!(replies.last(), Some(&StringsReply::Failed(StringsFailure::TooMuchWork)));
    // The next list has as much again.
    assert!(matches!(run(&mut state, 4, vec![append()])[..], [StringsReply::Integer(_)]));

    // Another time to live is written together with the value.
    let expire = |_| {
        let action =
            StringAction::Expire { when: When::After(1_000_000), only: SetIf::Always, only_some: false };
        on("long", action)
    };
    let replies = run(&mut state, 5, (0..1_100).map(expire).collect());
    let done = replies.iter().filter(|reply| **reply == StringsReply::Integer(1)).count();
    assert!((1_000..1_100).contains(&done), "{done}");
    assert_eq!(replies.last(), Some(&StringsReply::Failed(StringsFailure::TooMuchWork)));
}

/// Where only their kind matters values are not kept, and what comes of a list is the same.
#[test]
fn what_does_not_look_at_values_leaves_them_as_they_are() {
    let long = |byte: u8| IVec::from(vec![byte; 100]);
    let put = |key: &str, byte: u8| {
        let value = long(byte);
        on(key, StringAction::Set { value, only: SetOnly::Always, when: None, get: false })
    };
    let absent = |key: &str| {
        let value = long(b'z');
        on(key, StringAction::Set { value, only: SetOnly::Absent, when: None, get: false })
    };
    let mut state = ModelState::new();
    run(&mut state, 1, vec![put("a", b'a'), put("b", b'b'), put("c", b'c')]);
    let list = vec![
        on("a", StringAction::Exists),
        on("a", StringAction::Kind),
        on("b", StringAction::Delete),
        absent("a"),
        absent("b"),
        on("c", StringAction::Exists),
        on("c", StringAction::Append { value: "!".into() }),
    ];
    let replies = run(&mut state, 2, list);
    let number = StringsReply::Integer;
    let expected = [
        number(1),
        number(1),
        number(1),
        StringsReply::Unchanged,
        StringsReply::Done,
        number(1),
        number(101),
    ];
    assert_eq!(replies, expected);
    let text = |bytes: &[u8]| StringsReply::Value(Some(bytes.into()));
    let gets = ["a", "b", "c"].map(|key| on(key, StringAction::Get));
    let expected = [text(&[b'a'; 100]), text(&[b'z'; 100]), text(&[&[b'c'; 100][..], b"!"].concat())];
    assert_eq!(run(&mut state, 3, gets.into()), expected);
}
