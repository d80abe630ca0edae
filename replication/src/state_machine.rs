//! The state machine of a group: openraft's committed entries, applied to a storage
//! [`Replica`].
//!
//! # The note
//!
//! A replica knows positions; openraft wants to know, too, who led when the last entry was made, and
//! the membership. Both go into the replica's *note*, which is carried through its checkpoints and
//! snapshots, so they are exactly as durable as the state they belong to. Leaders and members change
//! seldom, so most entries come without one.
//!
//! ```text
//! version      u8     1
//! leader id    u64 term, u64 node: of the last entry
//! log id       of the membership's entry, as in crate::types
//! membership   as in crate::types
//! ```
//!
//! # Snapshots
//!
//! To openraft, a snapshot is what lets the log go. Here that is the replica's last *checkpoint*:
//! what openraft "builds" when asked to is only a look at how far that is. A snapshot to be sent to a
//! follower is another thing: a handle on the state as it is now, which costs nothing; see
//! [`crate::snapshot`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use dogsled_storage::group::GroupReply;
use dogsled_storage::replica::{Applied, Replica, ReplicaOptions};
use dogsled_storage::wal::Wal;
use dogsled_storage::{Clock, ReplicaSnapshot};
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::blocking::Blocking;
use crate::codec::{Malformed, Put, Take};
use crate::durability::to_io;
use crate::group_clock::GroupClock;
use crate::metrics::GroupMetrics;
use crate::pin::Pins;
use crate::recovery::history_of;
use crate::runtime::watch;
use crate::snapshot::{KEEP, SnapshotData};
use crate::types::{
    LeaderId, LogId, Payload, SnapshotMeta, SnapshotOf, StoredMembership, TypeConfig, position,
    put_leader_id, put_log_id, put_membership, take_leader_id, take_log_id, take_membership,
};

/// What came of an entry: nothing, if it was no command.
pub(crate) type AppliedReply = Option<GroupReply>;

const NOTE_VERSION: u8 = 1;

pub(crate) fn encode_note(leader: &LeaderId, membership: &StoredMembership) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.put_u8(NOTE_VERSION);
    put_leader_id(&mut bytes, leader);
    put_log_id(&mut bytes, membership.log_id().as_ref());
    put_membership(&mut bytes, membership.membership());
    bytes
}

/// What openraft wants to know of a state.
pub(crate) fn decode_applied(applied: &Applied) -> Result<(Option<LogId>, StoredMembership), Malformed> {
    if applied.position == 0 {
        return Ok((None, StoredMembership::default()));
    }
    let mut take = Take::new(Bytes::copy_from_slice(&applied.note));
    take.version(NOTE_VERSION)?;
    let leader = take_leader_id(&mut take)?;
    let membership_id = take_log_id(&mut take)?;
    let membership = take_membership(&mut take)?;
    take.end()?;
    let last = LogId::new(leader, applied.position - 1);
    Ok((Some(last), StoredMembership::new(membership_id, membership)))
}

/// What openraft is told of a state.
pub(crate) fn snapshot_meta(applied: &Applied) -> io::Result<SnapshotMeta> {
    let (last_log_id, last_membership) = decode_applied(applied)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// A group's replica, for all who use it. It is replaced when a snapshot is installed.
pub(crate) struct ReplicaSlot {
    pub(crate) options: ReplicaOptions,
    pub(crate) wal: Arc<Wal>,
    pub(crate) blocking: Blocking,
    pub(crate) clock: GroupClock,
    metrics: Arc<GroupMetrics>,
    /// `None` while a snapshot takes its place.
    current: ArcSwapOption<Replica>,
    /// What was last sent, or is being sent, and when it was last wanted.
    held: Mutex<Option<(ReplicaSnapshot, Instant)>>,
    /// Position of the last entry applied.
    applied: watch::Sender<u64>,
    freshness: Mutex<Freshness>,
    generation: AtomicU64,
    /// How many recoveries the entries that were applied have behind them; see [`crate::watch`].
    history: AtomicU64,
    /// Transfers of the held state that are under way.
    sending: AtomicU64,
    /// States that are held for clients.
    pub(crate) pins: Pins,
    /// Held by the state machine of the Raft that runs, which may be at work for a while after that has ended.
    machine: Arc<tokio::sync::Mutex<()>>,
    /// Somebody waits for that to end.
    is_awaited: AtomicBool,
}

/// Tells how old a stale read is.
#[derive(Default)]
struct Freshness {
    /// When this replica was last level with its leader.
    level: Option<Instant>,
    /// A position that the leader had committed, and when it said so.
    pending: Option<(u64, Instant)>,
}

impl Freshness {
    /// Whether what the leader said is applied by now, or it has said nothing.
    fn settle(&mut self, applied: u64) -> bool {
        match self.pending {
            Some((committed, _)) if committed > applied => false,
            Some((_, at)) => {
                self.level = self.level.max(Some(at));
                self.pending = None;
                true
            }
            None => true,
        }
    }
}

impl ReplicaSlot {
    /// A place for a replica that is not open yet.
    pub(crate) fn empty(
        options: ReplicaOptions,
        wal: Arc<Wal>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        metrics: Arc<GroupMetrics>,
    ) -> ReplicaSlot {
        ReplicaSlot {
            options,
            wal,
            blocking,
            clock: GroupClock::new(clock),
            metrics,
            current: ArcSwapOption::empty(),
            held: Mutex::new(None),
            applied: watch::Sender::new(0),
            freshness: Mutex::default(),
            generation: AtomicU64::new(0),
            history: AtomicU64::new(0),
            sending: AtomicU64::new(0),
            pins: Pins::default(),
            machine: Arc::default(),
            is_awaited: AtomicBool::default(),
        }
    }

    /// Opens the replica, in its last durable state.
    pub(crate) fn open(&self) -> dogsled_storage::Result<()> {
        let replica = Replica::open(self.options.clone(), Arc::clone(&self.wal))?;
        // What it cannot be read from is refused when the group is started.
        if let Ok((Some(last), _)) = decode_applied(&replica.applied()) {
            self.set_history(Some(&last.leader_id));
        }
        self.replace(replica);
        Ok(())
    }

    pub(crate) fn replica(&self) -> Option<Arc<Replica>> {
        self.current.load_full()
    }

    fn open_replica(&self) -> io::Result<Arc<Replica>> {
        self.replica().ok_or_else(|| io::Error::other("the replica is closed"))
    }

    /// Takes the replica out of use.
    pub(crate) fn take(&self) -> Option<Arc<Replica>> {
        *self.held.lock() = None;
        let replica = self.current.swap(None);
        // After it: what is pinned now is of the one that comes, or is let go by whoever pins it.
        self.pins.clear();
        replica
    }

    /// The state to be sent to followers: the one that was sent last if it is still wanted, so that a
    /// transfer can go on; otherwise that of now.
    fn hold(&self) -> io::Result<ReplicaSnapshot> {
        let replica = self.open_replica()?;
        let mut held = self.held.lock();
        // That it is asked for does not make it wanted for longer: it is, again and again, for a follower that does not
        // answer, and would keep the log from here on for as long as that.
        let (snapshot, used) = match held.take() {
            Some((snapshot, used)) if self.is_wanted(used) => (snapshot, used),
            _ => (replica.snapshot(), Instant::now()),
        };
        *held = Some((snapshot.clone(), used));
        Ok(snapshot)
    }

    /// A state that was held is being sent, and held, however long that takes, until what is returned is dropped.
    pub(crate) fn send_held(self: &Arc<Self>, snapshot: &ReplicaSnapshot) -> Sending {
        let mut held = self.held.lock();
        self.sending.fetch_add(1, Ordering::SeqCst);
        // It may have been let go just now, while the follower was asked.
        let position = |snapshot: &ReplicaSnapshot| snapshot.applied().position;
        if held.as_ref().is_none_or(|(held, _)| position(held) > position(snapshot)) {
            *held = Some((snapshot.clone(), Instant::now()));
        }
        drop(held);
        Sending(Arc::clone(self))
    }

    /// Position of the held state; forgets it if nobody has wanted it for long.
    pub(crate) fn held_position(&self) -> Option<u64> {
        let mut held = self.held.lock();
        held.take_if(|(_, used)| !self.is_wanted(*used));
        held.as_ref().map(|(snapshot, _)| snapshot.applied().position)
    }

    fn is_wanted(&self, used: Instant) -> bool {
        self.sending.load(Ordering::SeqCst) > 0 || used.elapsed() < KEEP
    }

    pub(crate) fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Tells of everything that is applied from here on.
    pub(crate) fn subscribe_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Returns when the entry at `position` is applied.
    pub(crate) async fn wait_applied(&self, position: u64) {
        if self.applied() >= position {
            return;
        }
        // It cannot be closed: `self` has the sender.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= position).await;
    }

    /// Tells of every position that is applied.
    pub(crate) fn applied_positions(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Returns when something was applied, or after a while.
    pub(crate) async fn wait_for_change(&self, at_most: Duration) {
        // Whether it came in time is the same to the caller.
        let _ = tokio::time::timeout(at_most, self.applied.subscribe().changed()).await;
    }

    /// Changes when the replica is replaced. What was known of one, how far it had come above all, says nothing of
    /// the next: it may go on from an earlier checkpoint.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// How many recoveries the entries that were applied have behind them. It grows before the first entry of a new
    /// history is applied.
    pub(crate) fn history(&self) -> u64 {
        self.history.load(Ordering::SeqCst)
    }

    fn set_history(&self, leader: Option<&LeaderId>) {
        self.history.store(history_of(leader), Ordering::SeqCst);
    }

    /// Puts another replica into the place of the one that was taken out: of a later state, or the same one opened
    /// again at its last checkpoint.
    pub(crate) fn replace(&self, replica: Arc<Replica>) {
        let applied = replica.applied().position;
        self.clock.observe(replica.time_ms());
        // In this order: nobody finds the replica that takes the other for as far as that was, and whoever has
        // found it can tell that it is another.
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.applied.send_replace(applied);
        self.current.store(Some(replica));
    }

    /// The leader has said, in what arrived at that time, that everything up to `committed` is committed.
    pub(crate) fn heard(&self, committed: u64, arrived: Instant) {
        let mut freshness = self.freshness.lock();
        if freshness.settle(self.applied()) {
            freshness.pending = Some((committed, arrived));
        }
        if freshness.level.is_some() {
            self.clock.bridge();
        }
    }

    /// How long ago this replica was last known to be level with its leader; `None` if never.
    pub(crate) fn age(&self) -> Option<Duration> {
        let mut freshness = self.freshness.lock();
        freshness.settle(self.applied());
        freshness.level.map(|at| at.elapsed())
    }

    /// Returns when the state machine of a Raft that was shut down has ended, too, which openraft does not wait for: what it
    /// was doing, such as to put a snapshot into its place, is then done. Not before a Raft is shut down.
    pub(crate) async fn until_machine_ended(&self) {
        self.is_awaited.store(true, Ordering::SeqCst);
        if tokio::time::timeout(MACHINE_ENDS, self.machine.lock()).await.is_err() {
            tracing::error!("a state machine has not ended within {MACHINE_ENDS:?} after its Raft");
        }
        self.is_awaited.store(false, Ordering::SeqCst);
    }

    /// Whether somebody [waits](ReplicaSlot::until_machine_ended) for the state machine to end: it is to give up what
    /// may take a while and can be begun again.
    pub(crate) fn is_to_end(&self) -> bool {
        self.is_awaited.load(Ordering::SeqCst)
    }

    pub(crate) fn close(&self) {
        if let Some(replica) = self.take() {
            // Closing cannot fail; what was not folded is in the WAL.
            let _ = replica.close();
        }
    }
}

/// See [`ReplicaSlot::send_held`].
pub(crate) struct Sending(Arc<ReplicaSlot>);

impl Drop for Sending {
    fn drop(&mut self) {
        // Whoever begins the transfer anew has a while to do so.
        if let Some((_, used)) = &mut *self.0.held.lock() {
            *used = Instant::now();
        }
        self.0.sending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// See the [module](self).
pub(crate) struct Machine {
    _at_work: tokio::sync::OwnedMutexGuard<()>,
    slot: Arc<ReplicaSlot>,
    leader: Option<LeaderId>,
    membership: StoredMembership,
}

impl Machine {
    /// # Errors
    /// What is noted in the replica cannot be read; or another has not [ended](ReplicaSlot::until_machine_ended).
    pub(crate) fn new(slot: Arc<ReplicaSlot>) -> io::Result<Machine> {
        let at_work = Arc::clone(&slot.machine).try_lock_owned();
        let at_work = at_work.map_err(|_| io::Error::other("the state machine before it has not ended"))?;
        let (last, membership) = decode_applied(&slot.open_replica()?.applied())?;
        let leader = last.map(|last| last.leader_id);
        slot.set_history(leader.as_ref());
        Ok(Machine { _at_work: at_work, slot, leader, membership })
    }
}

/// How long a state machine may go on when its Raft has ended: longer than a snapshot's [place](crate::snapshot) is waited
/// for.
const MACHINE_ENDS: Duration = Duration::from_secs(60);
/// Entries applied before other tasks get a turn.
const APPLY_TURN: u32 = 128;

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointLooker;

    /// Of a replica that was just opened this is durable. One that stays open while its Raft is
    /// started again has more, and its log, too.
    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(decode_applied(&self.slot.open_replica()?.applied())?)
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let replica = self.slot.open_replica()?;
        let mut last = 0;
        let mut time_ms = 0;
        let mut turn = 0;
        let mut since = self.slot.metrics.apply_begins();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let at = position(entry.log_id.index);
            let leader_id = entry.log_id.leader_id;
            let mut note = None;
            if let Payload::Membership(membership) = &entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                note = Some(encode_note(&leader_id, &self.membership));
            } else if self.leader != Some(leader_id) {
                note = Some(encode_note(&leader_id, &self.membership));
            }
            if self.leader != Some(leader_id) {
                self.slot.set_history(Some(&leader_id));
            }
            self.leader = Some(leader_id);
            let reply = match &entry.payload {
                Payload::Normal(proposal) => {
                    if replica.is_full() {
                        // Until a checkpoint is through: on a worker thread that would keep other groups, and their
                        // heartbeats, from going on.
                        self.slot.applied.send_replace(last.max(self.slot.applied()));
                        let full = Arc::clone(&replica);
                        let room = self.slot.blocking.run(move || full.wait_for_room()).await?;
                        room.map_err(to_io)?;
                    }
                    let reply = replica.apply(at, note.as_deref(), &proposal.0).map_err(to_io)?;
                    time_ms = time_ms.max(reply.time_ms);
                    Some(reply)
                }
                Payload::Blank | Payload::Membership(_) => {
                    replica.skip(at, note.as_deref()).map_err(to_io)?;
                    None
                }
            };
            since = self.slot.metrics.applied(since);
            last = at;
            if let Some(responder) = responder {
                responder.send(reply);
            }
            turn += 1;
            if turn == APPLY_TURN {
                turn = 0;
                self.slot.applied.send_replace(last);
                tokio::task::yield_now().await;
            }
        }
        if last > 0 {
            self.slot.applied.send_replace(last);
            self.slot.clock.observe(time_ms);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointLooker {
        CheckpointLooker { slot: Arc::clone(&self.slot) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        snapshot.install(&self.slot).await?;
        self.leader = meta.last_log_id.map(|last| last.leader_id);
        self.slot.set_history(self.leader.as_ref());
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Machine>>> {
        let snapshot = self.slot.hold()?;
        if snapshot.applied().position == 0 {
            return Ok(None);
        }
        let meta = snapshot_meta(snapshot.applied())?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Held(snapshot) }))
    }
}

/// What openraft calls building a snapshot: see the [module](self).
pub(crate) struct CheckpointLooker {
    slot: Arc<ReplicaSlot>,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointLooker {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Machine>> {
        let replica = self.slot.open_replica()?;
        // Only the first is looked at.
        let meta = snapshot_meta(&replica.durable_applied())?;
        Ok(Snapshot { meta, snapshot: SnapshotData::Held(replica.snapshot()) })
    }
}

#[cfg(test)]
mod tests {
    use dogsled_storage::disk::{Disk, SimulatedDisk};
    use dogsled_storage::wal::WalOptions;

    use super::*;
    use crate::group_clock::tests::Hand;
    use crate::metrics::NodeMetrics;

    /// Openraft asks for a snapshot again and again for a follower that it does not reach.
    #[tokio::test(start_paused = true)]
    async fn a_state_that_nobody_is_sent_is_not_held_for_long_however_often_it_is_asked_for() {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new(1));
        let wal = WalOptions { threads: false, ..WalOptions::new("wal", 42) };
        let wal = Arc::new(Wal::open(Arc::clone(&disk), wal).unwrap());
        let options =
            ReplicaOptions { background_threads: false, disk, ..ReplicaOptions::new("groups/1", 42) };
        let clock: Arc<dyn Clock> = Arc::new(Hand::default());
        let slot = ReplicaSlot::empty(options, wal, Blocking::Inline, clock, NodeMetrics::default().group(1));
        slot.open().unwrap();
        let slot = Arc::new(slot);
        let position = |slot: &ReplicaSlot| slot.hold().unwrap().applied().position;
        assert_eq!(position(&slot), 0);
        slot.open_replica().unwrap().skip(1, Some(b"note")).unwrap();
        for _ in 0..29 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(position(&slot), 0);
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(slot.held_position(), None);
        assert_eq!(position(&slot), 1);
        // While it is sent it stays, and for a while after that.
        let sending = slot.send_held(&slot.hold().unwrap());
        tokio::time::advance(KEEP * 3).await;
        assert_eq!(slot.held_position(), Some(1));
        drop(sending);
        tokio::time::advance(KEEP / 2).await;
        assert_eq!(slot.held_position(), Some(1));
        tokio::time::advance(KEEP).await;
        assert_eq!(slot.held_position(), None);
    }
}
