//! States that are held for somebody who copies them: who has them, who can ask for them, and that they are let go.

use std::time::{Duration, Instant};

use crate::common::{Cluster, open_session};
use dogsled_replication::pin::{PinnedPage, PinnedRead, PinnedState};
use dogsled_replication::{ClientReply, ClientRequest, ClusterError, NodeId};
use dogsled_storage::group::{Answer, GroupCommand, Operation, SessionId, SessionTag};
use dogsled_storage::pin::PinnedPart;
use dogsled_storage::transaction::Prepare;
use dogsled_storage::{Part, TransactionId, TreeId, Vote, Write};

const GROUP: u32 = 1;
/// What is said if no more can be held.
const TOO_MANY: &str = "too many";
/// For locks and pins that are not to end in a test by themselves.
const LONG: Duration = Duration::from_secs(60);

async fn opened() -> (Cluster, u64) {
    let cluster = Cluster::made(3, 2, |config| config.maintenance_every = Duration::from_millis(50)).await;
    let time_ms = cluster.submit(GROUP, &open_session(7, 600_000)).await.time_ms;
    (cluster, time_ms)
}

async fn prepare(cluster: &Cluster, transaction: u64, time_ms: u64, lock: Duration, part: Part) {
    let session = Some(SessionTag { session: SessionId(7), slot: 0, sequence: transaction });
    let operation = Operation::Prepare(Prepare {
        transaction: TransactionId(transaction.into()),
        home: GROUP,
        decide_by_ms: time_ms + LONG.as_millis() as u64,
        lease_ms: lock.as_millis() as u64,
        only_lock: part.is_empty(),
        part,
    });
    let command = GroupCommand { session, time_ms: 0, trees: vec!["tree".into()], operation };
    assert_eq!(cluster.submit(GROUP, &command).await.result, Ok(Answer::Vote(Vote::Yes)));
}

async fn ask(cluster: &Cluster, node: u64, request: ClientRequest) -> Result<ClientReply, ClusterError> {
    match cluster.nodes[&node].request(request).await {
        Ok(ClientReply::Error(error)) => Err(error),
        other => other,
    }
}

/// Asks again while nobody leads the group.
async fn pin(
    cluster: &Cluster,
    node: u64,
    under: u128,
    lease: Duration,
) -> Result<PinnedState, ClusterError> {
    let (under, deadline) = (TransactionId(under), Duration::from_secs(5));
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match ask(cluster, node, ClientRequest::Pin { group: GROUP, deadline, under, lease }).await {
            Ok(ClientReply::Pinned(pinned)) => return Ok(pinned),
            Ok(other) => panic!("{other:?}"),
            Err(ClusterError::NotLeader { .. }) if Instant::now() < until => {}
            Err(ClusterError::Unavailable(why)) if !why.contains(TOO_MANY) && Instant::now() < until => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks `through` for what `node` holds.
async fn page(
    cluster: &Cluster,
    through: u64,
    node: NodeId,
    under: u128,
) -> Result<PinnedPage, ClusterError> {
    let read = PinnedRead {
        tree: "tree".into(),
        part: PinnedPart::Keys,
        after: None,
        since: 0,
        limit_bytes: 1 << 20,
    };
    let under = TransactionId(under);
    match ask(cluster, through, ClientRequest::ReadPinned { node, group: GROUP, under, read }).await? {
        ClientReply::PinnedPage(page) => Ok(page),
        other => panic!("{other:?}"),
    }
}

async fn keep(
    cluster: &Cluster,
    through: u64,
    node: NodeId,
    under: u128,
    keep: bool,
) -> Result<ClientReply, ClusterError> {
    let under = TransactionId(under);
    ask(cluster, through, ClientRequest::KeepPins { node, under, keep, groups: vec![GROUP] }).await
}

fn is_gone<T: std::fmt::Debug>(answer: &Result<T, ClusterError>) -> bool {
    matches!(answer, Err(ClusterError::Conflict(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_died_keeps_off_writers_no_longer_than_the_lock_and_pages_no_longer_than_the_pin() {
    const LEASE: Duration = Duration::from_secs(5);
    let (cluster, time_ms) = opened().await;
    cluster.put(GROUP, "key", "before").await;
    assert!(is_gone(&pin(&cluster, 1, 9, LEASE).await), "nothing is locked");
    let held = |cluster: &Cluster| {
        let replicas = cluster.nodes.values().filter_map(|node| node.replica(GROUP));
        replicas.map(|replica| replica.engine().figures().open_snapshots).sum::<u64>()
    };
    // Nodes hold some themselves, to be sent to others.
    let before = held(&cluster);
    let began = Instant::now();
    prepare(&cluster, 1, time_ms, LEASE, Part::default()).await;
    let pinned = pin(&cluster, 1, 1, LEASE).await.unwrap();
    assert_eq!(pin(&cluster, 1, 1, LEASE).await.unwrap(), pinned, "asked again, it is the same");
    let other = pin(&cluster, 2, 1, LEASE).await.unwrap();
    assert_eq!((other.node, other.position), (NodeId(2), pinned.position), "every replica is as good");
    assert!(held(&cluster) >= before + 2);
    // The client dies here. Whoever writes waits for the lease of the locks, and not for ever.
    cluster.put(GROUP, "key", "after").await;
    let waited = began.elapsed();
    assert!(waited >= LEASE - Duration::from_millis(500), "{waited:?}");
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    let until = Instant::now() + Duration::from_secs(30);
    while held(&cluster) > before {
        assert!(Instant::now() < until, "it is held for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_gone(&page(&cluster, 1, pinned.node, 1).await));
    assert!(is_gone(&keep(&cluster, 1, pinned.node, 1, true).await));
    let again = pin(&cluster, 1, 1, LEASE).await;
    assert!(is_gone(&again), "the locks are gone, and that moment does not come again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_is_read_through_any_node_as_long_as_it_is_wanted_and_a_writer_is_waited_for() {
    // Several times as long as what is asked for in between, also where that takes its time.
    const LEASE: Duration = Duration::from_secs(4);
    let (cluster, time_ms) = opened().await;
    let write = Write { tree: TreeId(0), key: "key".into(), value: Some("prepared".into()) };
    prepare(&cluster, 1, time_ms, LONG, Part { writes: vec![write], ..Part::default() }).await;
    prepare(&cluster, 2, time_ms, LONG, Part::default()).await;
    let resolve = |transaction: u128, commit| GroupCommand {
        session: None,
        time_ms: 0,
        trees: Vec::new(),
        operation: Operation::Resolve { transaction: TransactionId(transaction), commit },
    };
    let (pinned, resolved) = tokio::join!(pin(&cluster, 3, 2, LEASE), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.submit(GROUP, &resolve(1, true)).await
    });
    let pinned = pinned.unwrap();
    assert!(pinned.position >= resolved.position, "what was prepared before is in it");
    cluster.submit(GROUP, &resolve(2, false)).await;
    cluster.put(GROUP, "key", "later").await;
    // Longer than its lease.
    for round in 0..5 {
        for through in 1..=3 {
            let page = page(&cluster, through, pinned.node, 2).await.unwrap();
            assert_eq!(page.entries[0].value.as_deref(), Some(&b"prepared"[..]), "{round} {through}");
        }
        tokio::time::sleep(LEASE / 4).await;
    }
    for _ in 0..5 {
        keep(&cluster, 2, pinned.node, 2, true).await.unwrap();
        tokio::time::sleep(LEASE / 4).await;
    }
    // Another group that is gone takes none with it.
    for _ in 0..5 {
        let groups = vec![9, GROUP];
        let keep = ClientRequest::KeepPins { node: pinned.node, under: TransactionId(2), keep: true, groups };
        assert!(is_gone(&ask(&cluster, 2, keep).await));
        tokio::time::sleep(LEASE / 4).await;
    }
    page(&cluster, 1, pinned.node, 2).await.unwrap();
    let other = NodeId(1 + pinned.node.0 % 3);
    assert!(is_gone(&page(&cluster, 1, other, 2).await), "it is held by one");
    keep(&cluster, 3, pinned.node, 2, false).await.unwrap();
    assert!(is_gone(&page(&cluster, 1, pinned.node, 2).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_states_are_held_and_no_more_and_none_when_its_node_has_stopped() {
    let (mut cluster, time_ms) = opened().await;
    for under in 1..=8 {
        prepare(&cluster, under, time_ms, LONG, Part::default()).await;
        pin(&cluster, 1, under.into(), LONG).await.unwrap();
    }
    prepare(&cluster, 9, time_ms, LONG, Part::default()).await;
    let refused = pin(&cluster, 1, 9, LONG).await;
    assert!(matches!(&refused, Err(ClusterError::Unavailable(why)) if why.contains(TOO_MANY)), "{refused:?}");
    let holder = pin(&cluster, 1, 8, LONG).await.unwrap().node;
    cluster.kill(holder.0).await;
    let asked = 1 + holder.0 % 3;
    let unreached = page(&cluster, asked, holder, 8).await;
    assert!(matches!(unreached, Err(ClusterError::Unavailable(_))), "{unreached:?}");
    cluster.start(holder.0).await;
    let until = Instant::now() + Duration::from_secs(30);
    while !is_gone(&page(&cluster, asked, holder, 8).await) {
        assert!(Instant::now() < until, "it is not told that it is gone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
