//! openraft's own suite on a real WAL, and what it does not ask.

use std::collections::BTreeMap;

use bytes::Bytes;
use dogsled_storage::disk::RealDisk;
use dogsled_storage::wal::WalOptions;
use futures_util::{StreamExt, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use tempfile::TempDir;

use super::*;
use crate::types::{LeaderId, Payload, Proposal, SnapshotMeta, SnapshotOf, StoredMembership};

fn shared(directory: &TempDir, threaded: bool) -> Arc<SharedLog> {
    let wal = Wal::open(Arc::new(RealDisk), WalOptions::new(directory.path().join("wal"), 7)).unwrap();
    let wal = Arc::new(wal);
    let durability = match threaded {
        true => Durability::threaded(Arc::clone(&wal)).unwrap(),
        false => Durability::inline(Arc::clone(&wal), Default::default()),
    };
    Arc::new(SharedLog::new(wal, durability, Blocking::Inline, None))
}

/// The least that the suite asks of a state machine: the positions that it applies have gaps, which
/// ours does not allow.
#[derive(Default, Clone)]
struct Memory {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

struct Builder(Arc<Mutex<Memory>>);
struct Machine(Arc<Mutex<Memory>>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Memory;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Machine>> {
        let mut memory = self.0.lock();
        let meta = SnapshotMeta { last_log_id: memory.applied, last_membership: memory.membership.clone() };
        memory.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: memory.clone() })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Memory;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let memory = self.0.lock();
        Ok((memory.applied, memory.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let entries: Vec<_> = entries.try_collect().await?;
        let mut memory = self.0.lock();
        for (entry, _) in entries {
            memory.applied = Some(entry.log_id);
            if let Payload::Membership(membership) = entry.payload {
                memory.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(Arc::clone(&self.0))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _: Memory) -> io::Result<()> {
        *self.0.lock() = Memory {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            snapshot: Some(meta.clone()),
        };
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Machine>>> {
        let memory = self.0.lock();
        Ok(memory.snapshot.clone().map(|meta| Snapshot { meta, snapshot: memory.clone() }))
    }
}

/// Every store of the suite is another stream of one WAL, as on a node.
struct Stores {
    shared: Arc<SharedLog>,
    next: AtomicU64,
    options: LogOptions,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, ()> for Stores {
    async fn build(&self) -> Result<((), LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let stream = StreamId(self.next.fetch_add(1, Ordering::Relaxed) as u32);
        let log = LogStore::open(Arc::clone(&self.shared), stream, self.options).unwrap();
        Ok(((), log, Machine(Arc::default())))
    }
}

fn run_suite(options: LogOptions, threaded: bool) {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory, threaded);
    let stores = Stores { shared, next: AtomicU64::new(0), options };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(stores)).unwrap();
}

#[test]
fn openrafts_suite_passes_with_entries_in_memory() {
    run_suite(LogOptions::default(), true);
}

#[test]
fn openrafts_suite_passes_with_every_entry_read_from_the_wal() {
    run_suite(LogOptions { cache_bytes: 0, read_bytes: 1, message_bytes: 1 }, true);
}

#[test]
fn openrafts_suite_passes_without_threads() {
    run_suite(LogOptions::default(), false);
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64, length: usize) -> Entry {
    let payload = Payload::Normal(Proposal(Bytes::from(vec![index as u8; length])));
    Entry { log_id: id(term, index), payload }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (sender, receiver) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await.unwrap();
    receiver.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reopened_log_has_what_was_durable() {
    let directory = tempfile::tempdir().unwrap();
    let stream = StreamId(3);
    {
        let shared = shared(&directory, true);
        let mut log = LogStore::open(shared, stream, LogOptions::default()).unwrap();
        log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
        append(&mut log, (0..100).map(|index| entry(2, index, 100)).collect()).await;
        log.save_committed(Some(id(2, 90))).await.unwrap();
        log.purge(id(2, 9)).await.unwrap();
        log.truncate_after(Some(id(2, 95))).await.unwrap();
        append(&mut log, vec![entry(3, 96, 1)]).await;
    }
    let shared = shared(&directory, true);
    let mut log = LogStore::open(Arc::clone(&shared), stream, LogOptions::default()).unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(2, 9)), Some(id(3, 96))));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(2, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(2, 90)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.len(), 87);
    assert_eq!(entries[0], entry(2, 10, 100));
    assert_eq!(entries[86], entry(3, 96, 1));

    // A purge beyond the end, as after a snapshot, and on from there.
    log.purge(id(3, 200)).await.unwrap();
    append(&mut log, vec![entry(4, 201, 5)]).await;
    drop(log);
    let mut log = LogStore::open(shared, stream, LogOptions::default()).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(4, 201, 5)]);
}

#[tokio::test]
async fn reads_are_bounded_in_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { cache_bytes: 20_000, read_bytes: 5_000, message_bytes: 5_000 };
    let mut log = LogStore::open(shared(&directory, true), StreamId(1), options).unwrap();
    append(&mut log, (0..100).map(|index| entry(1, index, 1_000)).collect()).await;
    for start in [0, 95] {
        let read = log.limited_get_log_entries(start, 100).await.unwrap();
        assert!((1..=5).contains(&read.len()), "{}", read.len());
        assert_eq!(read[0].log_id.index, start);
    }
    let streamed: Vec<_> = log.entries_stream(10..100).await.collect().await;
    let indexes: Vec<u64> = streamed.into_iter().map(|entry| entry.unwrap().log_id.index).collect();
    assert_eq!(indexes, (10..100).collect::<Vec<_>>());
    log.shrink();
    assert_eq!(log.try_get_log_entries(10..100).await.unwrap().len(), 90);
}

#[tokio::test]
async fn old_entries_of_an_idle_group_may_be_purged_as_others_write() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory, true);
    let mut idle = LogStore::open(Arc::clone(&shared), StreamId(1), LogOptions::default()).unwrap();
    let mut busy = LogStore::open(Arc::clone(&shared), StreamId(2), LogOptions::default()).unwrap();
    append(&mut idle, (0..10).map(|index| entry(1, index, 10)).collect()).await;
    assert_eq!(idle.purgeable(1000, 4 << 20), None);
    assert_eq!(idle.purgeable(3, 4 << 20), Some(6));
    for index in 0..9 {
        append(&mut busy, vec![entry(1, index, 1 << 20)]).await;
    }
    assert_eq!(idle.purgeable(1000, 4 << 20), Some(9));
    let old = busy.purgeable(1000, 4 << 20).unwrap();
    assert!((3..=5).contains(&old), "{old}");
    assert_eq!(busy.purgeable(1000, 1 << 30), None);
}

#[tokio::test]
async fn small_entries_count_with_what_the_log_is_padded_with() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(shared(&directory, true), StreamId(1), LogOptions::default()).unwrap();
    for index in 0..600 {
        append(&mut log, vec![entry(1, index, 10)]).await;
    }
    // Each was synced by itself, and takes a block.
    assert_eq!(log.purgeable(10_000, 4 << 20), None);
    let old = log.purgeable(10_000, 1 << 20).unwrap();
    assert!((200..400).contains(&old), "{old}");
}

#[test]
fn many_appends_are_completed_by_few_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory, true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut logs: BTreeMap<u32, LogStore> = (0..16)
            .map(|n| (n, LogStore::open(Arc::clone(&shared), StreamId(n), LogOptions::default()).unwrap()))
            .collect();
        let before = shared.wal.stats().syncs;
        let mut waiting = Vec::new();
        for index in 0..100 {
            for log in logs.values_mut() {
                let (sender, receiver) = TypeConfig::oneshot();
                log.append(vec![entry(1, index, 50)], IOFlushed::signal(sender)).await.unwrap();
                waiting.push(receiver);
            }
        }
        for receiver in waiting {
            receiver.await.unwrap().unwrap();
        }
        let syncs = shared.wal.stats().syncs - before;
        assert!(syncs < 400, "{syncs} syncs for 1600 appends");
    });
}
