//! Replicas that apply the same entries are equal, whatever else happens to each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_storage::codec::{GROUP_COMMAND_VERSION, encode_group_command};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::strings::{SetOnly, StringAction, StringsOperation, StringsReplies, StringsReply};
use dogsled_storage::wal::Wal;
use dogsled_storage::{
    Command, Error, ExpiryCommand, GroupCommand, GroupRead, GroupReadReply, Operation, Replica,
    ReplicaInstaller, ReplicaOptions, Settled, TreeId, When,
};

use crate::replicas::{LogMaker, apply, assert_replica_is, open_wal, options, send};
use crate::support::{Random, Watchdog, for_each_seed};

/// A replica on a disk of its own, with a life of its own.
struct Node {
    disk: SimulatedDisk,
    wal: Arc<Wal>,
    group: u32,
    background: bool,
    /// `None` only while it is exchanged: its directory is locked until the last handle is gone.
    open: Option<Arc<Replica>>,
}

impl Node {
    fn new(seed: u64, group: u32, background: bool) -> Node {
        let disk = SimulatedDisk::new(seed);
        let wal = open_wal(&disk).expect("a new disk");
        let mut options = options(&disk, group);
        options.background_threads = background;
        let replica = Replica::open(options, Arc::clone(&wal)).expect("a new replica");
        Node { disk, wal, group, background, open: Some(replica) }
    }

    fn replica(&self) -> &Replica {
        self.open.as_ref().expect("it is open")
    }

    fn options(&self) -> ReplicaOptions {
        ReplicaOptions { background_threads: self.background, ..options(&self.disk, self.group) }
    }

    fn reopen(&mut self) {
        let durable = self.replica().durable_applied();
        self.replica().close().expect("nothing fails");
        self.open = None;
        self.open = Some(Replica::open(self.options(), Arc::clone(&self.wal)).expect("a closed replica"));
        let applied = self.replica().applied();
        assert_eq!(applied, self.replica().durable_applied());
        if self.background {
            assert!(applied.position >= durable.position);
        } else {
            assert_eq!(applied, durable);
        }
    }

    fn install_from(&mut self, source: &Node, chunk_bytes: usize) {
        let snapshot = source.replica().snapshot();
        let options = self.options();
        let mut installer = ReplicaInstaller::begin(&options).expect("nothing is being received");
        assert!(matches!(ReplicaInstaller::begin(&options), Err(Error::InUse(_))));
        send(&snapshot, &mut installer, chunk_bytes).expect("a sound snapshot");
        assert!(installer.is_complete());
        assert!(matches!(installer.finish(), Err(Error::InUse(_))), "the replica is open");
        self.open = None;
        let applied = installer.finish().expect("the replica is closed");
        assert_eq!(&applied, snapshot.applied());
        self.open = Some(Replica::open(options, Arc::clone(&self.wal)).expect("an installed snapshot"));
        assert_eq!(self.replica().applied(), applied);
        assert_eq!(self.replica().durable_applied(), applied);
    }
}

fn lives_differ(seed: u64, background: bool) {
    let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(120));
    let length = 400;
    let log = LogMaker::log(seed, length);
    let mut random = Random::new(seed);
    let mut nodes: Vec<Node> =
        (0..3).map(|number| Node::new(seed + number, 1 + number as u32, background)).collect();
    let mut held = Vec::new();
    loop {
        let number = random.below(3) as usize;
        for _ in 0..random.below(30) {
            let next = nodes[number].replica().applied().position + 1;
            if next <= length {
                apply(nodes[number].replica(), &log, next).expect("nothing fails");
            }
        }
        let context = format!("seed {seed}, node {number}");
        match random.below(12) {
            // The first one is never disturbed, so that there is an end.
            0 | 1 if number > 0 => {
                held.clear();
                nodes[number].reopen();
                assert_replica_is(nodes[number].replica(), &log, &context);
            }
            2..=4 => {
                nodes[number].replica().checkpoint().expect("nothing fails");
                if !background {
                    assert_eq!(nodes[number].replica().durable_applied(), nodes[number].replica().applied());
                }
                assert_replica_is(nodes[number].replica(), &log, &context);
            }
            5 => held.push(nodes[number].replica().snapshot()),
            6 if number > 0 => {
                held.clear();
                let source = nodes[0].replica().applied().position;
                if source > nodes[number].replica().applied().position {
                    let chunk_bytes = *random.pick(&[1, 300, 5000, 1 << 20]);
                    let [first, others @ ..] = &mut nodes[..] else { unreachable!() };
                    others[number - 1].install_from(first, chunk_bytes);
                    assert_replica_is(nodes[number].replica(), &log, &context);
                }
            }
            7 => {
                // A snapshot that was held for long is still of its position.
                if let Some(snapshot) = held.pop() {
                    let expected = &log.notes[snapshot.applied().position as usize];
                    assert_eq!(&snapshot.applied().note, expected, "{context}");
                    snapshot.fingerprint().expect("it can be read");
                }
            }
            _ => {}
        }
        if nodes.iter().all(|node| node.replica().applied().position == length) {
            break;
        }
    }
    drop(held);
    let fingerprints: Vec<u64> = nodes
        .iter()
        .map(|node| {
            assert_replica_is(node.replica(), &log, &format!("seed {seed}, at the end"));
            node.replica().snapshot().fingerprint().expect("it can be read")
        })
        .collect();
    assert!(fingerprints.iter().all(|found| *found == fingerprints[0]), "seed {seed}: {fingerprints:x?}");
    for node in &mut nodes {
        node.replica().checkpoint().expect("nothing fails");
        node.reopen();
        assert_eq!(node.replica().applied().position, length);
        let found = node.replica().snapshot().fingerprint().expect("it can be read");
        assert_eq!(found, fingerprints[0], "seed {seed}: a checkpoint changed something");
    }
}

#[test]
fn replicas_of_one_log_are_equal_whatever_their_lives() {
    for_each_seed("replica", "model::replicas_of_one_log_are_equal", 25, |seed| lives_differ(seed, false));
}

#[test]
fn replicas_of_one_log_are_equal_with_checkpoints_in_the_background() {
    for_each_seed(
        "replica",
        "model::replicas_of_one_log_are_equal_with_checkpoints_in_the_background",
        10,
        |seed| {
            lives_differ(seed, true);
        },
    );
}

#[test]
fn different_states_have_different_fingerprints() {
    let log = LogMaker::log(1, 60);
    let node = Node::new(1, 1, false);
    let mut seen = std::collections::BTreeSet::new();
    for position in 1..=60 {
        apply(node.replica(), &log, position).unwrap();
        assert!(
            seen.insert(node.replica().snapshot().fingerprint().unwrap()),
            "entry {position} changed nothing"
        );
    }
}

#[test]
fn an_entry_out_of_order_is_refused() {
    let log = LogMaker::log(1, 3);
    let node = Node::new(1, 1, false);
    for wrong in [0, 2, 3] {
        assert!(matches!(node.replica().skip(wrong, None), Err(Error::InvalidRequest(_))));
    }
    apply(node.replica(), &log, 1).unwrap();
    assert!(matches!(node.replica().apply(1, None, b""), Err(Error::InvalidRequest(_))));
    assert_eq!(node.replica().applied().position, 1);
}

#[test]
fn an_entry_of_a_newer_version_stops_the_replica_before_it() {
    let node = Node::new(1, 1, false);
    assert!(matches!(
        node.replica().apply(1, None, &[GROUP_COMMAND_VERSION + 1, 0, 0]),
        Err(Error::Corrupt(_))
    ));
    assert_eq!(node.replica().applied().position, 0);
}

#[test]
fn entries_without_effects_are_recorded_by_the_next_checkpoint() {
    let mut node = Node::new(1, 1, false);
    for position in 1..=5 {
        node.replica().skip(position, Some(&[position as u8])).unwrap();
    }
    assert_eq!(node.replica().durable_applied().position, 0);
    node.replica().checkpoint().unwrap();
    let expected = dogsled_storage::Applied { position: 5, note: vec![5] };
    assert_eq!(node.replica().durable_applied(), expected);
    node.reopen();
    assert_eq!(node.replica().applied(), expected);
}

#[test]
fn a_replica_at_rest_folds_what_is_left_and_sleeps() {
    let _watchdog = Watchdog::new("waiting for a checkpoint", Duration::from_secs(60));
    let node = Node::new(1, 1, true);
    // Its thread sleeps when all is folded…
    node.replica().skip(1, None).unwrap();
    node.replica().checkpoint().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // …and must hear of the next entry.
    node.replica().skip(2, None).unwrap();
    while node.replica().durable_applied().position < 2 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_embedded_and_what_is_a_replica_are_told_apart() {
    let mut node = Node::new(1, 1, false);
    node.replica().skip(1, None).unwrap();
    node.replica().checkpoint().unwrap();
    node.reopen();
    node.open = None;
    let clock = crate::support::TestClock::new(0);
    let mut embedded = crate::support::small_options(&node.disk, &clock);
    embedded.directory = "node/groups/1".into();
    let error = dogsled_storage::Engine::open(embedded).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");

    let embedded = crate::support::open_small(&node.disk, &clock).unwrap();
    drop(embedded);
    let mut as_replica = options(&node.disk, 1);
    as_replica.directory = crate::support::DIRECTORY.into();
    let error = Replica::open(as_replica, Arc::clone(&node.wal)).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");

    let mut of_another = options(&node.disk, 1);
    of_another.database_id ^= 1;
    let error = Replica::open(of_another.clone(), Arc::clone(&node.wal)).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
    let error = ReplicaInstaller::begin(&of_another).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
}

#[test]
fn a_replica_is_not_written_to_directly() {
    use dogsled_storage::{Command, Durability};
    let node = Node::new(1, 1, false);
    let refused = node.replica().engine().execute(Command::ReserveIds { count: 1 }, Durability::Buffered);
    assert!(matches!(refused, Err(Error::InvalidRequest(_))));
    assert!(node.replica().engine().changes_since(0).is_err());
    assert_eq!(node.replica().engine().stats().unwrap().wal_file_bytes, 0);
    assert!(node.replica().engine().verify().unwrap().is_sound());
}

/// Each key ends while others write, and is removed right after; another is given more time again and again, and is there
/// all the time. A read that takes the time of one moment and the state of another shows keys that have ended, or
/// misses the one that is there.
#[test]
fn what_is_read_beside_keys_that_end_is_of_one_moment() {
    const ROUNDS: u64 = 4_000;
    let node = Node::new(1, 1, false);
    let replica = node.replica();
    let place = TreeId(0);
    let entry = |time_ms: u64, command: Command| {
        let command = GroupCommand {
            session: None,
            time_ms,
            trees: vec!["t".into()],
            operation: Operation::Command(command),
        };
        let bytes = encode_group_command(&command).unwrap();
        let position = replica.applied().position + 1;
        assert!(replica.apply(position, None, &bytes).unwrap().result.is_ok());
    };
    let insert = |key: String, at_ms: u64| {
        let (key, value) = (key.as_str().into(), "v".into());
        Command::Expiry(ExpiryCommand::Insert { tree: place, key, value, when: When::At(at_ms) })
    };
    // The newest round whose key has ended.
    let ended = AtomicU64::new(0);
    let on = |key: &str, action: StringAction| StringsOperation { tree: place, key: key.into(), action };
    let look_at = |operations: Vec<StringsOperation>| -> Vec<StringsReply> {
        let read = GroupRead::Strings { trees: vec!["t".into()], operations };
        match replica.read_settled(&read).unwrap() {
            Settled::Answer(GroupReadReply::Strings(StringsReplies(replies))) => replies,
            other => panic!("{other:?}"),
        }
    };
    let look = |key: &str, action: StringAction| look_at(vec![on(key, action)]).remove(0);
    // Two keys are always written together.
    let both = |round: u64| {
        let value = round.to_string();
        let set = |key| {
            on(
                key,
                StringAction::Set {
                    value: value.as_str().into(),
                    only: SetOnly::Always,
                    when: None,
                    get: false,
                },
            )
        };
        Command::Strings { watched: Vec::new(), operations: vec![set("a"), set("b")] }
    };
    entry(1, insert("stays".to_owned(), 1_000));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let round = ended.load(Ordering::SeqCst);
                    if round >= ROUNDS {
                        break;
                    }
                    assert_eq!(
                        look(&format!("k{round}"), StringAction::Get),
                        StringsReply::Value(None),
                        "{round}"
                    );
                    let pair = look_at(vec![on("a", StringAction::Get), on("b", StringAction::Get)]);
                    assert_eq!(pair[0], pair[1], "written together");
                    match look("stays", StringAction::Expires) {
                        StringsReply::Expires { at_ms: Some(Some(at_ms)), now_ms } => assert!(at_ms > now_ms),
                        other => panic!("round {round}: {other:?}"),
                    }
                }
            });
        }
        for round in 1..=ROUNDS {
            let begins = round * 1_000;
            entry(begins - 1, insert("stays".to_owned(), begins + 1_000));
            entry(begins, insert(format!("k{round}"), begins + 500));
            entry(begins + 500, insert("other".to_owned(), begins + 100_000_000));
            ended.store(round, Ordering::SeqCst);
            entry(begins + 501, Command::SettleDue { limit: 16 });
            entry(begins + 502, both(round));
        }
    });
}
