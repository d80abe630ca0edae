//! Transactions whose coordinator is gone: nodes end what it has left.

use std::time::{Duration, Instant};

use crate::common::{Cluster, get, insert, open_session};
use dogsled_replication::{
    ClientIdentity, ClientReply, ClientRequest, ClusterError, Consistency, Node, Service,
};
use dogsled_storage::codec::encode_group_command;
use dogsled_storage::command::KeyRead;
use dogsled_storage::group::{Answer, GroupCommand, Operation, Refusal, SessionId, SessionTag};
use dogsled_storage::transaction::{Commit, Decision, Prepare, Reason};
use dogsled_storage::{Command, Part, TransactionId, TreeId, Vote, Write};

const HOME: u32 = 1;
const OTHER: u32 = 2;
const LEASE_MS: u64 = 700;
/// Of a lock that is to be met.
const LONG_LEASE_MS: u64 = 3_000;
/// Until when a coordinator may decide, which is not what ends a lock.
const DECIDE_MS: u64 = 50_000;

fn part(key: &str, value: &str) -> Part {
    let write = Write { tree: TreeId(0), key: key.into(), value: Some(value.into()) };
    Part { writes: vec![write], ..Part::default() }
}

fn numbered(sequence: u64, operation: Operation) -> GroupCommand {
    let session = Some(SessionTag { session: SessionId(7), slot: 0, sequence });
    GroupCommand { session, time_ms: 0, trees: vec!["tree".into()], operation }
}

async fn opened() -> (Cluster, u64) {
    let cluster = Cluster::made(3, 2, |config| config.maintenance_every = Duration::from_millis(100)).await;
    let mut time_ms = 0;
    for group in [HOME, OTHER] {
        time_ms = cluster.submit(group, &open_session(7, 600_000)).await.time_ms;
    }
    (cluster, time_ms)
}

/// The command that prepares a write of another partition.
fn preparing(transaction: u128, home: u32, decide_by_ms: u64, lease_ms: u64) -> GroupCommand {
    let prepare = Operation::Prepare(Prepare {
        transaction: TransactionId(transaction),
        home,
        decide_by_ms,
        lease_ms,
        only_lock: false,
        part: part("theirs", "new"),
    });
    numbered(transaction as u64, prepare)
}

async fn prepare(cluster: &Cluster, transaction: u128, decide_by_ms: u64, lease_ms: u64) {
    let reply = cluster.submit(OTHER, &preparing(transaction, HOME, decide_by_ms, lease_ms)).await;
    assert_eq!(reply.result, Ok(Answer::Vote(Vote::Yes)));
}

/// Whether something is prepared in a group, as who leads it knows.
async fn is_locked(cluster: &Cluster, group: u32) -> bool {
    let leader = cluster.leader(group).await;
    cluster.nodes[&leader].replica(group).unwrap().transaction_counts().0 > 0
}

/// Whether somebody has waited for a lock that was made after `began`.
fn has_waited(began: Instant) -> bool {
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    waited >= Duration::from_millis(LONG_LEASE_MS - 300)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_meets_the_lock_of_a_dead_coordinator_gets_through_when_its_lease_is_over() {
    let (cluster, time_ms) = opened().await;
    cluster.put(OTHER, "theirs", "old").await;
    let decide_by_ms = time_ms + DECIDE_MS;
    let began = Instant::now();
    prepare(&cluster, 1, decide_by_ms, LONG_LEASE_MS).await;
    // A reader by a node that does not lead, and a writer; another key is free.
    let reader = 1 + cluster.leader(OTHER).await % 3;
    assert_eq!(cluster.get(reader, OTHER, "free").await, None);
    assert!(is_locked(&cluster, OTHER).await, "the reader of another key has waited");
    assert_eq!(cluster.get(reader, OTHER, "theirs").await.as_deref(), Some("old"));
    assert!(has_waited(began), "the reader has not waited: {:?}", began.elapsed());
    cluster.put(OTHER, "theirs", "later").await;

    // The coordinator was not dead, only slow: it is too late.
    let commit = Operation::Commit(Commit {
        transaction: TransactionId(1),
        decide_by_ms,
        participants: vec![OTHER],
        part: part("mine", "new"),
    });
    let reply = cluster.submit(HOME, &numbered(1, commit)).await;
    assert_eq!(reply.result, Ok(Answer::Decided(Decision::Aborted(Reason::Settled))));
    assert_eq!(cluster.get(1, HOME, "mine").await, None);
    assert_eq!(cluster.get(1, OTHER, "theirs").await.as_deref(), Some("later"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_died_keeps_writers_off_no_longer_than_its_lease_also_where_its_home_is() {
    let (cluster, time_ms) = opened().await;
    for group in [HOME, OTHER] {
        cluster.put(group, "read", "old").await;
    }
    let began = Instant::now();
    for group in [HOME, OTHER] {
        let read = KeyRead { tree: TreeId(0), key: "read".into(), version: 0 };
        let prepare = Operation::Prepare(Prepare {
            transaction: TransactionId(1),
            home: HOME,
            decide_by_ms: time_ms + DECIDE_MS,
            lease_ms: LONG_LEASE_MS,
            only_lock: true,
            part: Part { reads: vec![read], ..Part::default() },
        });
        let reply = cluster.submit(group, &numbered(1, prepare)).await;
        assert_eq!(reply.result, Ok(Answer::Vote(Vote::Yes)));
    }
    for group in [OTHER, HOME] {
        assert_eq!(cluster.get(1, group, "read").await.as_deref(), Some("old"));
        assert!(is_locked(&cluster, group).await, "readers do not wait");
    }
    cluster.put(OTHER, "read", "new").await;
    assert!(has_waited(began), "the writer has not waited: {:?}", began.elapsed());
    cluster.put(HOME, "read", "new").await;
    assert!(has_waited(began));
    for group in [OTHER, HOME] {
        assert_eq!(cluster.get(1, group, "read").await.as_deref(), Some("new"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_whose_home_cannot_be_lasts_no_longer_than_its_lease() {
    let (cluster, time_ms) = opened().await;
    cluster.put(OTHER, "theirs", "old").await;
    for (transaction, home) in [(1, 9_999), (2, 0)] {
        let reply = cluster.submit(OTHER, &preparing(transaction, home, time_ms + DECIDE_MS, LEASE_MS)).await;
        assert_eq!(reply.result, Ok(Answer::Vote(Vote::Yes)));
        cluster.put(OTHER, "theirs", "later").await;
        assert_eq!(cluster.get(1, OTHER, "theirs").await.as_deref(), Some("later"));
    }
    // The time until which it may be decided is one that comes.
    let settle = Operation::Settle { transaction: TransactionId(4), decide_by_ms: u64::MAX };
    let settle = GroupCommand { session: None, ..numbered(4, settle) };
    for command in [preparing(3, HOME, u64::MAX, LEASE_MS), settle] {
        let reply = cluster.submit(OTHER, &command).await;
        assert!(
            matches!(&reply.result, Err(Refusal::Invalid(why)) if why.contains("too far off")),
            "{reply:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_locks_what_the_cluster_says_of_itself() {
    let (cluster, time_ms) = opened().await;
    let prepare = Operation::Prepare(Prepare {
        transaction: TransactionId(1),
        home: HOME,
        decide_by_ms: time_ms + 5_000,
        lease_ms: LEASE_MS,
        only_lock: true,
        part: Part::default(),
    });
    let settle = Operation::Settle { transaction: TransactionId(1), decide_by_ms: time_ms + 5_000 };
    let client = ClientIdentity { name: "somebody".to_owned(), administrator: false };
    for operation in [prepare, settle] {
        let command = GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation };
        let command = encode_group_command(&command).unwrap().into();
        let request = ClientRequest::Submit { group: 0, deadline: Duration::from_secs(5), command };
        let reply = cluster.any().client_request(&client, request.encode()).await;
        match ClientReply::decode(reply).unwrap() {
            ClientReply::Error(ClusterError::Invalid(why)) => assert!(why.contains("itself"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_makes_a_tree_that_only_the_cluster_makes() {
    let (cluster, _) = opened().await;
    let submit = async |administrator: bool, tree: &[u8], operation: Operation| {
        let client = ClientIdentity { name: "somebody".to_owned(), administrator };
        let command = GroupCommand { session: None, time_ms: 0, trees: vec![tree.into()], operation };
        let command = encode_group_command(&command).unwrap().into();
        let request = ClientRequest::Submit { group: HOME, deadline: Duration::from_secs(5), command };
        match ClientReply::decode(cluster.any().client_request(&client, request.encode()).await).unwrap() {
            ClientReply::Error(error) => Err(error),
            ClientReply::Applied(_) => Ok(()),
            other => panic!("{other:?}"),
        }
    };
    let put = || Operation::Command(Command::Put { tree: TreeId(0), key: "k".into(), value: "v".into() });
    let seal = dogsled_storage::seal::seal_of(b"users");
    let made = Operation::Command(Command::CreateTree { name: seal.clone() });
    for administrator in [false, true] {
        let invalid = |done: Result<(), ClusterError>| {
            assert!(matches!(&done, Err(ClusterError::Invalid(_))), "{done:?}");
        };
        invalid(submit(administrator, &seal, put()).await);
        invalid(submit(administrator, b"other", made.clone()).await);
        // This says nothing of what is hashed.
        invalid(submit(administrator, b"__dogsled__hashed:\x09\0\0users", put()).await);
        // By its first byte, which nobody has chosen, as far as this node knows.
        let unknown = submit(administrator, b"__dogsled__hashed:\x01\x01\0users", put()).await;
        assert!(matches!(&unknown, Err(ClusterError::Unavailable(_))), "{unknown:?}");
    }
    let denied = submit(false, b"__dogsled__restore", put()).await;
    assert!(matches!(&denied, Err(ClusterError::Denied(_))), "{denied:?}");
    submit(true, b"__dogsled__restore", put()).await.unwrap();
    submit(false, b"users", put()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_resolved_for_a_dead_coordinator_and_no_lock_stays_that_nobody_meets() {
    let (mut cluster, time_ms) = opened().await;
    let decide_by_ms = time_ms + DECIDE_MS;
    for transaction in 1..=5 {
        prepare(&cluster, transaction, decide_by_ms, 5_000).await;
        let commit = Operation::Commit(Commit {
            transaction: TransactionId(transaction),
            decide_by_ms,
            participants: vec![OTHER],
            part: part("mine", "new"),
        });
        let reply = cluster.submit(HOME, &numbered(transaction as u64, commit)).await;
        // A coordinator that is late is taken for dead.
        if transaction == 5 || reply.result != Ok(Answer::Decided(Decision::Aborted(Reason::Settled))) {
            assert_eq!(reply.result, Ok(Answer::Decided(Decision::Committed)));
            break;
        }
    }
    // Also if who leads the participant dies.
    let leader = cluster.leader(OTHER).await;
    cluster.kill(leader).await;
    let began = Instant::now();
    let prepared = |cluster: &Cluster| {
        let counts = cluster.nodes.values().map(|node| node.replica(OTHER).map(|r| r.transaction_counts().0));
        counts.flatten().sum::<usize>()
    };
    while prepared(&cluster) > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "the lock stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reader = *cluster.nodes.keys().next().unwrap();
    assert_eq!(cluster.get(reader, OTHER, "theirs").await.as_deref(), Some("new"));
    assert_eq!(cluster.get(reader, HOME, "mine").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_beyond_his_deadline_hears_that_nothing_was_done() {
    let (cluster, time_ms) = opened().await;
    let prepare = Operation::Prepare(Prepare {
        transaction: TransactionId(1),
        home: HOME,
        decide_by_ms: time_ms + 50_000,
        lease_ms: 50_000,
        only_lock: false,
        part: part("theirs", "new"),
    });
    cluster.submit(OTHER, &numbered(1, prepare)).await;
    let command = encode_group_command(&insert("theirs", "other")).unwrap();
    let deadline = Duration::from_secs(3);
    let submit = ClientRequest::Submit { group: OTHER, deadline, command: command.into() };
    let term = |node: &Node| {
        let status = node.status();
        status.groups.into_iter().find(|group| group.group == OTHER).unwrap().term
    };
    for _ in 0..10 {
        let leader = &cluster.nodes[&cluster.leader(OTHER).await];
        let before = term(leader);
        let refused = leader.request(submit.clone()).await;
        if term(leader) != before {
            // Who was asked led no more, and says so.
            continue;
        }
        let is_locked = |why: &str| why.contains("locked");
        assert!(matches!(&refused, Err(ClusterError::Unavailable(why)) if is_locked(why)), "{refused:?}");
        // Who does not ask for the newest need not wait.
        let stale = leader.read(OTHER, &get("theirs"), Consistency::Stale).await;
        assert!(stale.is_ok(), "{stale:?}");
        return;
    }
    panic!("another leader each time");
}
