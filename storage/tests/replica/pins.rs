//! Pinned states: that they are given only to whoever has locked everything, when nobody is about to write any more; and
//! what is read of them, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;

use dogsled_storage::codec::{Listed, encode_group_command};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::lock::{LockCommand, LockRequest};
use dogsled_storage::pin::{HashPart, Pinned, PinnedEntry, PinnedPart, Pinning, hash_owner};
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::transaction::Prepare;
use dogsled_storage::{
    Answer, Command, Error, ExpiryCommand, GroupCommand, HASHES_TREE_NAME, IVec, Operation, OwnedCommand,
    Part, Refusal, Replica, Reply, SessionId, SessionTag, SetIf, TransactionId, TreeId, Vote, When, Write,
};

use crate::replicas::{open_wal, options};

/// The place of the tree `t` in what every command here names.
const TREE: TreeId = TreeId(0);
const OTHER: TreeId = TreeId(1);
const US: TransactionId = TransactionId(77);

struct Group {
    disk: SimulatedDisk,
    replica: Arc<Replica>,
    time_ms: u64,
    sequence: u64,
}

impl Group {
    fn new() -> Group {
        let disk = SimulatedDisk::new(1);
        let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
        let mut group = Group { disk, replica, time_ms: 1_000, sequence: 0 };
        group.apply(None, Operation::OpenSession { session: SessionId(1), lease_ms: 1 << 40 }).unwrap();
        group
    }

    fn reopened(self) -> Group {
        let Group { disk, replica, time_ms, sequence } = self;
        replica.checkpoint().unwrap();
        drop(replica);
        let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
        Group { disk, replica, time_ms, sequence }
    }

    fn apply(&mut self, session: Option<SessionTag>, operation: Operation) -> Result<Answer, Refusal> {
        let trees = vec!["t".into(), "other".into()];
        let command = GroupCommand { session, time_ms: self.time_ms, trees, operation };
        let position = self.replica.applied().position + 1;
        self.replica.apply(position, None, &encode_group_command(&command).unwrap()).unwrap().result
    }

    fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.apply(None, Operation::Command(command))
    }

    fn done(&mut self, command: Command) -> Reply {
        match self.command(command.clone()) {
            Ok(Answer::Reply(reply)) => reply,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    fn put(&mut self, tree: TreeId, key: &str, value: &str) {
        self.done(put(tree, key, value));
    }

    fn on_hash(&mut self, tree: TreeId, key: &str, action: HashAction) {
        self.done(strings(tree, key, StringAction::Hash(action)));
    }

    fn prepare(&mut self, transaction: TransactionId, only_lock: bool, part: Part) -> Answer {
        self.sequence += 1;
        let tag = SessionTag { session: SessionId(1), slot: 0, sequence: self.sequence };
        let prepare = Prepare { transaction, home: 2, decide_by_ms: 9_000, lease_ms: 100, only_lock, part };
        self.apply(Some(tag), Operation::Prepare(prepare)).unwrap()
    }

    fn lock_everything(&mut self) {
        assert_eq!(self.prepare(US, true, Part::default()), Answer::Vote(Vote::Yes));
    }

    fn resolve(&mut self, transaction: TransactionId, commit: bool) {
        assert_eq!(self.apply(None, Operation::Resolve { transaction, commit }), Ok(Answer::Done));
    }

    fn pinned(&self) -> Pinned {
        match self.replica.pin(US).unwrap() {
            Pinning::Pinned(pinned) => pinned,
            other => panic!("{other:?}"),
        }
    }

    /// What is there now.
    fn look(&mut self) -> Pinned {
        self.lock_everything();
        let pinned = self.pinned();
        self.resolve(US, false);
        pinned
    }
}

fn put(tree: TreeId, key: &str, value: &str) -> Command {
    Command::Put { tree, key: key.into(), value: value.into() }
}

fn strings(tree: TreeId, key: &str, action: StringAction) -> Command {
    let operations = vec![StringsOperation { tree, key: key.into(), action }];
    Command::Strings { watched: Vec::new(), operations }
}

fn set(pairs: impl IntoIterator<Item = (String, String)>) -> HashAction {
    let pairs = pairs.into_iter().map(|(field, value)| (IVec::from(field), IVec::from(value)));
    HashAction::Set { pairs: Listed(pairs.collect()) }
}

fn one(field: &str, value: &str) -> HashAction {
    set([(field.to_owned(), value.to_owned())])
}

/// All of a part, in pages of about so many bytes.
fn all(pinned: &Pinned, tree: &[u8], part: PinnedPart, since: u64, limit_bytes: u64) -> Vec<PinnedEntry> {
    all_and_pages(pinned, tree, part, since, limit_bytes).0
}

/// And how many pages that were.
fn all_and_pages(
    pinned: &Pinned,
    tree: &[u8],
    part: PinnedPart,
    since: u64,
    limit_bytes: u64,
) -> (Vec<PinnedEntry>, usize) {
    let mut found: Vec<PinnedEntry> = Vec::new();
    let (mut after, mut pages) = (None, 0);
    loop {
        let (entries, next) = pinned.page(tree, part, after.as_ref(), since, limit_bytes).unwrap();
        let last = entries.last().map(|entry| &entry.key);
        assert!(next.is_none() || (next > after && next.as_ref() >= last), "{after:?}, {last:?}, {next:?}");
        found.extend(entries);
        pages += 1;
        if next.is_none() {
            assert!(found.is_sorted_by(|one, next| one.key < next.key), "{found:?}");
            return (found, pages);
        }
        after = next;
    }
}

fn texts(entries: &[PinnedEntry]) -> Vec<(String, String)> {
    let text = |bytes: &IVec| String::from_utf8_lossy(bytes).into_owned();
    entries.iter().map(|entry| (text(&entry.key), entry.value.as_ref().map_or("-".into(), text))).collect()
}

/// Hashes: by tree and key when they expire, and their fields.
type Hashes = BTreeMap<(String, String), (Option<u64>, BTreeMap<String, String>)>;

fn hashes(pinned: &Pinned, limit_bytes: u64) -> Hashes {
    let text = |bytes: &IVec| String::from_utf8(bytes.to_vec()).unwrap();
    let mut hashes = Hashes::new();
    let mut last = None;
    for entry in all(pinned, HASHES_TREE_NAME, PinnedPart::Keys, 0, limit_bytes) {
        let value = entry.value.unwrap();
        match HashPart::of(&entry.key).unwrap() {
            HashPart::Head => {
                let (tree, key) = hash_owner(&value).unwrap();
                last = Some((text(&tree), text(&key)));
                let before = hashes.insert(last.clone().unwrap(), (entry.expires_ms, BTreeMap::new()));
                assert_eq!(before, None, "{last:?}");
            }
            HashPart::Field(field) => {
                let fields = &mut hashes.get_mut(last.as_ref().unwrap()).unwrap().1;
                fields.insert(text(&field), text(&value));
            }
        }
    }
    hashes
}

#[test]
fn a_state_is_pinned_only_while_everything_is_locked_and_no_writer_is_left() {
    let mut group = Group::new();
    group.put(TREE, "a", "0");
    let not_locked = |group: &Group| matches!(group.replica.pin(US).unwrap(), Pinning::NotLocked);
    assert!(not_locked(&group));
    // To have locked something is not enough.
    let some = Part { reads: vec![], ranges: vec![], writes: vec![], expiries: vec![] };
    let key = dogsled_storage::command::KeyRead { tree: TREE, key: "a".into(), version: 1 };
    group.prepare(US, true, Part { reads: vec![key], ..some });
    assert!(not_locked(&group));
    group.resolve(US, false);

    let writer = TransactionId(5);
    let writes = vec![Write { tree: TREE, key: "a".into(), value: Some("1".into()) }];
    let part = Part { writes, ..Part::default() };
    assert_eq!(group.prepare(writer, false, part.clone()), Answer::Vote(Vote::Yes));
    group.lock_everything();
    assert!(
        matches!(group.replica.pin(US).unwrap(), Pinning::Locked(lock) if lock.transaction == writer),
        "what is prepared may be decided on, elsewhere"
    );
    group.resolve(writer, true);
    let pinned = group.pinned();
    assert_eq!(texts(&all(&pinned, b"t", PinnedPart::Keys, 0, 1 << 20)), [("a".into(), "1".into())]);
    // Nobody comes after it.
    assert!(
        matches!(group.prepare(writer, false, part), Answer::Vote(Vote::Locked(lock)) if lock.transaction == US)
    );
    // It is locked after it was opened again, too. What is pinned keeps the directory.
    drop(pinned);
    let mut group = group.reopened();
    assert!(matches!(group.command(put(TREE, "a", "2")), Err(Refusal::Locked(_))));
    assert!(
        group.pinned().position() < group.replica.applied().position,
        "the last entry has changed nothing"
    );
    group.resolve(US, false);
    assert!(not_locked(&group));
    group.put(TREE, "a", "2");
}

#[test]
fn everything_that_would_change_the_state_waits_and_what_sessions_and_locks_need_does_not() {
    let mut group = Group::new();
    group.put(TREE, "a", "0");
    group.on_hash(TREE, "h", one("f", "v"));
    let ends = Command::Expiry(ExpiryCommand::Insert {
        tree: TREE,
        key: "ends".into(),
        value: "v".into(),
        when: When::At(1_500),
    });
    group.done(ends);
    group.apply(None, Operation::OpenSession { session: SessionId(2), lease_ms: 400 }).unwrap();
    group.lock_everything();
    let (tree, session) = (TREE, Some(SessionId(1)));
    for command in [
        put(TREE, "a", "1"),
        put(OTHER, "a", "1"),
        Command::Remove { tree, key: "a".into() },
        Command::ClearTree { tree },
        Command::DropTree { name: "t".into() },
        strings(TREE, "h", StringAction::Hash(one("f", "other"))),
        strings(TREE, "new", StringAction::Hash(one("f", "other"))),
        Command::Counter(CounterCommand::Add { name: "visits".into(), delta: 1 }),
        Command::Expiry(ExpiryCommand::Set {
            tree,
            key: "a".into(),
            when: When::After(5),
            only: SetIf::Always,
        }),
        Command::Owned(OwnedCommand::InsertNext { tree, prefix: "n".into(), value: "v".into(), session }),
        Command::Owned(OwnedCommand::SetNext { tree, prefix: "n".into(), next: vec![0; 8].into() }),
    ] {
        let refused = group.command(command.clone());
        assert!(
            matches!(refused, Err(Refusal::Locked(lock)) if lock.transaction == US),
            "{command:?}: {refused:?}"
        );
    }
    let before = group.pinned();
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 300, delay_ms: 0 };
    let acquire = |owner: &str, wait_ms| {
        let (name, owner) = ("lock".into(), owner.into());
        Command::Lock(LockCommand::Acquire { name, owner, request, wait_ms })
    };
    group.done(acquire("one", 0));
    group.done(acquire("two", 10_000));
    // The key and the session and the lock are over; the lock is given to who waits, the key stays.
    group.time_ms = 2_000;
    let settled = group.done(Command::SettleDue { limit: 100 });
    assert!(matches!(settled, Reply::Settled { keys: 0, locks: 1, .. }), "{settled:?}");
    group.apply(None, Operation::RenewSession { session: SessionId(1) }).unwrap();
    let after = group.pinned();
    let of = |pinned: &Pinned, tree: &[u8]| all(pinned, tree, PinnedPart::Keys, 0, 1 << 20);
    assert_eq!(of(&before, HASHES_TREE_NAME), of(&after, HASHES_TREE_NAME));
    assert_eq!(of(&before, b"t").len(), 2);
    // It is there still, and its time is over.
    assert_eq!(texts(&of(&after, b"t")), [("a".into(), "0".into())]);
    group.resolve(US, false);
    let settled = group.done(Command::SettleDue { limit: 100 });
    assert!(matches!(settled, Reply::Settled { keys: 1, .. }), "{settled:?}");
}

#[test]
fn fields_that_are_to_be_swept_wait_as_well_and_keep_no_lock_from_being_handed_on() {
    let mut group = Group::new();
    let many = (0..1_000).map(|number| (format!("f{number}"), "v".to_owned()));
    group.on_hash(TREE, "large", set(many));
    group.done(strings(TREE, "large", StringAction::Delete));
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 300, delay_ms: 0 };
    for owner in ["one", "two"] {
        let (name, owner) = ("lock".into(), owner.into());
        group.done(Command::Lock(LockCommand::Acquire { name, owner, request, wait_ms: 10_000 }));
    }
    group.lock_everything();
    group.time_ms = 2_000;
    let settled = group.done(Command::SettleDue { limit: 100 });
    assert!(matches!(settled, Reply::Settled { keys: 0, locks: 1, .. }), "{settled:?}");
    assert_eq!(hashes(&group.pinned(), 1 << 20), Hashes::new(), "nobody holds them");
    group.resolve(US, false);
    let settled = group.done(Command::SettleDue { limit: 100 });
    assert!(matches!(settled, Reply::Settled { more: true, .. }), "{settled:?}");
}

#[test]
fn pages_of_any_size_tell_the_same_and_what_is_pinned_does_not_change() {
    let mut group = Group::new();
    for number in 0..200 {
        group.put(TREE, &format!("key {number:03}"), &format!("value {number}"));
        if number % 3 == 0 {
            group.done(Command::Expiry(ExpiryCommand::Set {
                tree: TREE,
                key: format!("key {number:03}").into(),
                when: When::At(5_000 + number),
                only: SetIf::Always,
            }));
        }
    }
    let owned = OwnedCommand::Insert {
        tree: TREE,
        key: "key 100".into(),
        value: "mine".into(),
        session: SessionId(1),
    };
    group.done(Command::Owned(owned));
    for prefix in ["a", "b", "a"] {
        let next =
            OwnedCommand::InsertNext { tree: OTHER, prefix: prefix.into(), value: "v".into(), session: None };
        group.done(Command::Owned(next));
    }
    group.done(Command::Counter(CounterCommand::Add { name: "visits".into(), delta: 42 }));
    group.on_hash(TREE, "h1", one("a", "1"));
    group.on_hash(TREE, "h1", one("", "empty"));
    group.on_hash(OTHER, "h2", set((0..300).map(|number| (format!("f{number:03}"), format!("v{number}")))));
    group.done(strings(
        OTHER,
        "h2",
        StringAction::Expire { when: When::At(7_000), only: SetIf::Always, only_some: false },
    ));
    group.on_hash(TREE, "gone", one("a", "1"));
    group.put(TREE, "gone", "by other means");
    // The bytes of a head, where it does not belong, are bytes.
    let dogsled_storage::GroupReadReply::Value(Some(head)) =
        group.replica.read(&dogsled_storage::GroupRead::Get { tree: "t".into(), key: "h1".into() }).unwrap()
    else {
        panic!("it is there")
    };
    group.done(Command::Put { tree: TREE, key: "copied".into(), value: head.value.clone() });

    let pinned = group.look();
    let names: Vec<String> = pinned.trees().iter().map(|(name, _)| name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["__dogsled__counters", "__dogsled__hashes", "__sled__default", "other", "t"]);
    let whole = all(&pinned, b"t", PinnedPart::Keys, 0, 1 << 20);
    // All but the session's; the key that was a hash; the head that was copied.
    assert_eq!(whole.len(), 199 + 2);
    for entry in &whole {
        let text = String::from_utf8(entry.key.to_vec()).unwrap();
        let expected = match text.strip_prefix("key ").map(|number| number.parse::<u64>().unwrap()) {
            Some(number) => {
                let expires = (number % 3 == 0).then_some(5_000 + number);
                (format!("value {number}").into(), expires)
            }
            None if text == "copied" => (head.value.clone(), None),
            None => ("by other means".into(), None),
        };
        assert_eq!((entry.value.clone().unwrap(), entry.expires_ms), expected, "{text}");
    }
    let expected = |fields: &[(&str, &str)]| {
        fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
    };
    let own = hashes(&pinned, 1 << 20);
    assert_eq!(own.len(), 2, "{own:?}");
    assert_eq!(own[&("t".into(), "h1".into())], (None, expected(&[("a", "1"), ("", "empty")])));
    let (expires_ms, fields) = &own[&("other".into(), "h2".into())];
    assert_eq!((*expires_ms, fields.len()), (Some(7_000), 300));
    assert_eq!(fields["f123"], "v123");
    let numbers = all(&pinned, b"other", PinnedPart::Numbers, 0, 1 << 20);
    let numbers: Vec<(&[u8], u64)> = numbers
        .iter()
        .map(|entry| {
            (&entry.key[..], u64::from_be_bytes(entry.value.as_ref().unwrap()[..].try_into().unwrap()))
        })
        .collect();
    assert_eq!(numbers, [(&b"a"[..], 2), (&b"b"[..], 1)]);
    for limit in [1, 40, 300, 5_000] {
        assert_eq!(all(&pinned, b"t", PinnedPart::Keys, 0, limit), whole, "{limit}");
        assert_eq!(hashes(&pinned, limit), own, "{limit}");
        assert_eq!(all(&pinned, b"other", PinnedPart::Numbers, 0, limit).len(), 2, "{limit}");
    }

    // Values only of what came since, and none of it in what was pinned before.
    let since = pinned.position();
    group.put(TREE, "key 001", "new");
    group.done(Command::Remove { tree: TREE, key: "key 002".into() });
    group.on_hash(TREE, "h1", one("a", "2"));
    group.done(Command::DropTree { name: "other".into() });
    group.apply(None, Operation::CloseSession { session: SessionId(1) }).unwrap();
    assert_eq!(all(&pinned, b"t", PinnedPart::Keys, 0, 1 << 20), whole);
    assert_eq!(hashes(&pinned, 1 << 20), own);
    group.apply(None, Operation::OpenSession { session: SessionId(1), lease_ms: 1 << 40 }).unwrap();
    let later = group.look();
    let new = all(&later, b"t", PinnedPart::Keys, since, 1 << 20);
    assert_eq!(new.len(), 200, "keys are told, all of them");
    let values: Vec<_> = texts(&new).into_iter().filter(|(_, value)| value != "-").collect();
    assert_eq!(values, [("key 001".into(), "new".into())]);
    let fields = all(&later, HASHES_TREE_NAME, PinnedPart::Keys, since, 1 << 20);
    assert_eq!(fields.iter().filter(|entry| entry.value.is_some()).count(), 1);
    assert_eq!(fields.len(), 3, "the other tree is gone, and what was in it");

    for tree in [&b"nothing"[..], b"__dogsled__locks", b"__dogsled__sessions", b"__dogsled__expiry"] {
        let refused = later.page(tree, PinnedPart::Keys, None, 0, 99);
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");
    }
    for after in ["", "x", "123456789012", "123456789012\u{5}", "123456789012\0field"] {
        let refused = later.page(HASHES_TREE_NAME, PinnedPart::Keys, Some(&after.into()), 0, 99);
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{after:?}: {refused:?}");
    }
}

#[test]
fn how_many_keys_there_are_is_told_without_a_look_at_them() {
    let mut group = Group::new();
    let keys = |group: &mut Group| {
        let trees = group.look().trees();
        trees.into_iter().find(|(name, _)| *name == *b"t").map_or(0, |(_, keys)| keys)
    };
    for number in 0..100 {
        group.put(TREE, &format!("key {number:03}"), "v");
    }
    assert_eq!(keys(&mut group), 100);
    group = group.reopened();
    assert_eq!(keys(&mut group), 100);
    // Nobody has looked yet whether these were there before.
    for number in 0..50 {
        group.put(TREE, &format!("key {number:03}"), "w");
    }
    assert_eq!(keys(&mut group), 150);
    group.done(Command::Remove { tree: TREE, key: "key 099".into() });
    assert!((99..=149).contains(&keys(&mut group)));
    // Now somebody has.
    let counted = group.replica.read(&dogsled_storage::GroupRead::Len { tree: "t".into() }).unwrap();
    assert_eq!(counted, dogsled_storage::GroupReadReply::Length(99));
    assert_eq!(keys(&mut group), 99);
    group.done(Command::ClearTree { tree: TREE });
    group.put(TREE, "only", "v");
    assert_eq!(keys(&mut group), 1);
}

#[test]
fn pages_end_amid_what_is_left_out() {
    let mut group = Group::new();
    // Many at a time: what is counted is what a page looks at.
    for some in 0..20 {
        let operation = |number: u32| StringsOperation {
            tree: TREE,
            key: format!("hash {some:02} {number:03}").into(),
            action: StringAction::Hash(one("f", "v")),
        };
        let operations = (0..500).map(operation).collect();
        group.done(Command::Strings { watched: Vec::new(), operations });
    }
    group.put(TREE, "last", "v");
    let pinned = group.look();
    let (keys, pages) = all_and_pages(&pinned, b"t", PinnedPart::Keys, 0, 1 << 20);
    assert_eq!(texts(&keys), [("last".into(), "v".into())]);
    assert!(pages > 1, "{pages}");
    let (first, next) = pinned.page(b"t", PinnedPart::Keys, None, 0, 1 << 20).unwrap();
    assert!(first.is_empty() && next.is_some(), "{first:?}, {next:?}");

    // Those that no key holds any more cannot be told from those that do without a look at the key.
    for some in 0..20 {
        let writes = (0..500)
            .map(|number| put(TREE, &format!("hash {some:02} {number:03}"), "by other means"))
            .collect::<Vec<_>>();
        writes.into_iter().for_each(|write| drop(group.done(write)));
    }
    group.on_hash(OTHER, "still", one("f", "v"));
    let pinned = group.look();
    let (parts, pages) = all_and_pages(&pinned, HASHES_TREE_NAME, PinnedPart::Keys, 0, 1 << 20);
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert!(pages > 1, "{pages}");
    assert_eq!(hashes(&pinned, 40).len(), 1);
}

#[test]
fn numbers_go_on_where_they_are_set_and_never_back() {
    let mut group = Group::new();
    let set_next = |next: u64| {
        let next = IVec::from(next.to_be_bytes());
        Command::Owned(OwnedCommand::SetNext { tree: OTHER, prefix: "job ".into(), next })
    };
    // It makes the tree if it has to.
    assert_eq!(group.done(set_next(7)), Reply::Done);
    assert_eq!(group.done(set_next(3)), Reply::Done);
    let insert =
        OwnedCommand::InsertNext { tree: OTHER, prefix: "job ".into(), value: "v".into(), session: None };
    group.done(Command::Owned(insert));
    let keys = texts(&all(&group.look(), b"other", PinnedPart::Keys, 0, 1 << 20));
    assert_eq!(keys.len(), 1);
    assert!(keys[0].0.ends_with('7'), "{keys:?}");
    let short = OwnedCommand::SetNext { tree: OTHER, prefix: "job ".into(), next: "7".into() };
    assert!(matches!(group.command(Command::Owned(short)), Err(Refusal::Invalid(_))));
}
