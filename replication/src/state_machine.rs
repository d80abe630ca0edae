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

/// The time that leaders stamp on entries, and how long this node has led.
///
/// Leases and times to live are measured by it, so it must pass as time does, whatever somebody sets the
/// machine's clock to. It goes on from the latest stamp by the *monotonic* clock. The wall clock has two
/// parts in it: it bridges the time in which nobody watched (the whole cluster was off), and, where it is
/// ahead, it draws the log's time nearer by a 64th of the time that passes. A clock that is behind the log is
/// waited for.
///
/// A new leader goes on from what has been applied. What this node has stamped on entries of its own before, as a
/// leader that had lost its majority, may never have come to be; meanwhile another may have led, who had
/// been away and whose time was behind. Going on from there would end leases that were given under him.
pub(crate) struct GroupClock {
    clock: Arc<dyn Clock>,
    latest: Mutex<Latest>,
}

struct Latest {
    time_ms: u64,
    /// When it was that, by the monotonic clock.
    at: Instant,
    /// Whether `at` means that: the stamp was not just read from disk.
    is_bridged: bool,
    /// Milliseconds that have passed and not yet drawn the time nearer.
    credit: u64,
    /// The term in which this node leads, and since when.
    leads: Option<(u64, Instant)>,
    /// Its first stamp there.
    led_from_ms: u64,
    /// The latest stamp of an entry that was applied here, and when it was.
    applied: Option<(u64, Instant)>,
    /// Whether that `when` means when the stamp was made, or a little later.
    is_applied_bridged: bool,
}

/// The log's time comes nearer to a clock that is ahead by one part of so many.
const SLEW: u64 = 64;

impl GroupClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> GroupClock {
        let latest = Latest {
            time_ms: 0,
            at: Instant::now(),
            is_bridged: false,
            credit: 0,
            leads: None,
            led_from_ms: u64::MAX,
            applied: None,
            is_applied_bridged: false,
        };
        GroupClock { clock, latest: Mutex::new(latest) }
    }

    /// A stamp for a new entry of the leader of this term, in milliseconds since 1970.
    pub(crate) fn stamp(&self, term: u64) -> u64 {
        let clock = self.clock.now_ms();
        let now = Instant::now();
        let mut latest = self.latest.lock();
        if latest.leads.is_none_or(|(led, _)| led != term) {
            latest.leads = Some((term, now));
            if let Some(applied) = latest.applied {
                (latest.time_ms, latest.at) = applied;
                latest.is_bridged = latest.is_applied_bridged;
            }
            if !latest.is_bridged && clock > latest.time_ms {
                (latest.time_ms, latest.at) = (clock, now);
            }
            latest.is_bridged = true;
            latest.led_from_ms = latest.time_ms;
        }
        let passed = now.saturating_duration_since(latest.at).as_millis() as u64;
        if passed > 0 {
            let behind = clock.saturating_sub(latest.time_ms.saturating_add(passed));
            latest.credit += passed;
            let nearer = behind.min(latest.credit / SLEW);
            latest.credit %= SLEW;
            latest.time_ms = latest.time_ms.saturating_add(passed).saturating_add(nearer);
            // The part of a millisecond that is cut off stays to be counted.
            latest.at += Duration::from_millis(passed);
        }
        latest.time_ms
    }

    /// The log's time as far as this node can tell: what has passed since the latest stamp that it has seen being made. If
    /// it has seen none since it was started, what a leader's first stamp would be: times that are reckoned from here,
    /// such as when a key ends that is to live for so long, must not have passed long ago.
    pub(crate) fn now(&self) -> u64 {
        let latest = self.latest.lock();
        match latest.is_bridged {
            true => latest.time_ms.saturating_add(latest.at.elapsed().as_millis() as u64),
            false => latest.time_ms.max(self.clock.now_ms()),
        }
    }

    /// For how long this node has led in this term; nothing before the first stamp.
    pub(crate) fn led(&self, term: u64) -> Duration {
        match self.latest.lock().leads {
            Some((led, since)) if led == term => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Whether the log should be given a stamp for its own sake: nothing of this leader's has been applied in this
    /// term, or nothing newer for so long. Followers measure time from the latest stamp that they have seen, so none
    /// may be old: one that was restarted, or has caught up, takes it for as old as the moment in which it came.
    pub(crate) fn wants_stamp(&self, term: u64, at_most: Duration) -> bool {
        let latest = self.latest.lock();
        latest.leads.is_none_or(|(led, _)| led != term)
            || latest
                .applied
                .is_none_or(|(applied, at)| applied <= latest.led_from_ms || at.elapsed() >= at_most)
    }

    /// This leader has no majority: it is from now on that it sees leases pass which somebody could have renewed.
    pub(crate) fn has_no_majority(&self, term: u64) {
        if let Some((led, since)) = &mut self.latest.lock().leads
            && *led == term
        {
            *since = Instant::now();
        }
    }

    /// The log has this stamp.
    fn observe(&self, time_ms: u64) {
        let mut latest = self.latest.lock();
        let now = Instant::now();
        if time_ms > latest.time_ms {
            (latest.time_ms, latest.at) = (time_ms, now);
        }
        // Nought is no stamp: nothing was applied yet that has one.
        if time_ms > 0 && latest.applied.is_none_or(|(applied, _)| time_ms > applied) {
            latest.applied = Some((time_ms, now));
            // What this node has stamped itself it has seen being made.
            latest.is_applied_bridged |= latest.leads.is_some() && time_ms > latest.led_from_ms;
        }
    }

    /// This node follows a leader and has all that it has: what it sees from now on is at worst heard of
    /// late, and so it needs no wall clock any more to know how much time has passed since. What it saw last is at
    /// most as old as leaders [let it become](GroupClock::wants_stamp), so that much it may be behind; never ahead.
    ///
    /// Where no stamp was seen yet there is nothing to go on from: whoever leads first begins with the wall clock's time, or
    /// the log's would begin in 1970, and all that is given for a time would end when it is set right.
    fn bridge(&self) {
        let mut latest = self.latest.lock();
        if latest.applied.is_none() {
            return;
        }
        (latest.is_bridged, latest.is_applied_bridged) = (true, true);
    }
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
    pub(crate) fn open(
        options: ReplicaOptions,
        wal: Arc<Wal>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        metrics: Arc<GroupMetrics>,
    ) -> dogsled_storage::Result<ReplicaSlot> {
        let replica = Replica::open(options.clone(), Arc::clone(&wal))?;
        let clock = GroupClock::new(clock);
        clock.observe(replica.time_ms());
        let last = replica.applied();
        let applied = watch::Sender::new(last.position);
        // What it cannot be read from is refused when the group is started.
        let leader = decode_applied(&last).ok().and_then(|(last, _)| last).map(|last| last.leader_id);
        Ok(ReplicaSlot {
            options,
            wal,
            blocking,
            clock,
            metrics,
            current: ArcSwapOption::new(Some(replica)),
            held: Mutex::new(None),
            applied,
            freshness: Mutex::default(),
            generation: AtomicU64::new(0),
            history: AtomicU64::new(history_of(leader.as_ref())),
            sending: AtomicU64::new(0),
            pins: Pins::default(),
            machine: Arc::default(),
            is_awaited: AtomicBool::default(),
        })
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
    use std::sync::atomic::{AtomicU64, Ordering};

    use dogsled_storage::disk::{Disk, SimulatedDisk};
    use dogsled_storage::wal::WalOptions;

    use super::*;
    use crate::metrics::NodeMetrics;

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stamps_go_on_when_the_clock_is_behind_the_log() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        // An entry of a leader whose clock is hours ahead.
        clock.observe(10_000_000);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.stamp(3), 10_001_500);
        hand.0.store(5, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(3), 10_001_510);
    }

    /// As a follower of a new group that has only heard of its leader, before anybody has stamped anything.
    #[tokio::test(start_paused = true)]
    async fn whoever_leads_first_begins_with_the_wall_clock_however_level_it_was_before() {
        let hand = Arc::new(Hand::default());
        hand.0.store(1_700_000_000_000, Ordering::Relaxed);
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        clock.observe(0);
        clock.bridge();
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), 1_700_000_000_000);
        assert_eq!(clock.stamp(2), 1_700_000_000_000);
        // From then on no wall clock is needed.
        clock.observe(1_700_000_000_000);
        clock.bridge();
        hand.0.store(5, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(3), 1_700_000_000_010);
    }

    /// Openraft asks for a snapshot again and again for a follower that it does not reach.
    #[tokio::test(start_paused = true)]
    async fn a_state_that_nobody_is_sent_is_not_held_for_long_however_often_it_is_asked_for() {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new(1));
        let wal = WalOptions { threads: false, ..WalOptions::new("wal", 42) };
        let wal = Arc::new(Wal::open(Arc::clone(&disk), wal).unwrap());
        let options =
            ReplicaOptions { background_threads: false, disk, ..ReplicaOptions::new("groups/1", 42) };
        let clock: Arc<dyn Clock> = Arc::new(Hand::default());
        let slot = ReplicaSlot::open(options, wal, Blocking::Inline, clock, NodeMetrics::default().group(1));
        let slot = Arc::new(slot.unwrap());
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

    #[tokio::test(start_paused = true)]
    async fn before_any_stamp_the_time_is_what_the_first_one_would_be() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(50_000, Ordering::Relaxed);
        assert_eq!(clock.now(), 50_000);
        assert_eq!(clock.stamp(1), 50_000);
        // From then on it passes by itself.
        hand.0.store(900_000, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.now(), 50_010);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_ahead_draws_the_logs_time_nearer_and_no_more() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        hand.0.store(20_000_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        // Whether it is asked often or seldom.
        for _ in 0..640 {
            tokio::time::advance(Duration::from_millis(1)).await;
            clock.stamp(1);
        }
        assert_eq!(clock.stamp(1), 1_650);
        tokio::time::advance(Duration::from_millis(6_400)).await;
        assert_eq!(clock.stamp(1), 8_150);
        // Another leader that has followed goes on likewise: by its own clock of the same kind.
        assert_eq!(clock.stamp(2), 8_150);
        // Once it is there it stays there.
        hand.0.store(8_151, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(64)).await;
        hand.0.store(8_215, Ordering::Relaxed);
        assert_eq!(clock.stamp(2), 8_215);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_goes_on_from_what_was_applied_and_not_from_what_it_stamped_in_vain() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        clock.observe(1_000);
        // It has lost its majority, and does not know it.
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(clock.stamp(1), 13_000);
        // Another leads, who was away and believes that it is earlier. A lease of three seconds is given.
        clock.observe(3_000);
        tokio::time::advance(Duration::from_secs(2)).await;
        // This one leads again: the lease is not over.
        assert_eq!(clock.stamp(3), 5_000);
        // What it had stamped has come to be after all.
        clock.observe(13_000);
        assert_eq!(clock.stamp(3), 13_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_to_stamp_when_it_begins_and_when_nobody_has_written_for_long() {
        let minute = Duration::from_secs(60);
        let clock = GroupClock::new(Arc::new(Hand::default()) as Arc<dyn Clock>);
        clock.observe(5_000);
        assert!(clock.wants_stamp(1, minute));
        let first = clock.stamp(1);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(clock.wants_stamp(1, minute), "it has not been applied");
        clock.observe(first + 1);
        assert!(!clock.wants_stamp(1, minute));
        tokio::time::advance(minute).await;
        assert!(clock.wants_stamp(1, minute));
        clock.observe(clock.stamp(1));
        assert!(!clock.wants_stamp(1, minute));
        assert!(clock.wants_stamp(2, minute), "it was a former leader's");
        // Leases that nobody could renew are seen to pass from the end of that on.
        assert_eq!(clock.led(1), minute + Duration::from_millis(10));
        clock.has_no_majority(7);
        assert_eq!(clock.led(1), minute + Duration::from_millis(10));
        clock.has_no_majority(1);
        assert_eq!(clock.led(1), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_bridges_only_what_nobody_has_seen() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(90_000_000, Ordering::Relaxed);
        // Read from disk after a night.
        clock.observe(3_600_000);
        clock.observe(3_700_000);
        assert_eq!(clock.stamp(4), 90_000_000);
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        clock.observe(3_600_000);
        // Follows a leader, whose clock is right.
        clock.observe(80_000_000);
        clock.bridge();
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(5), 80_000_010);
        assert_eq!(clock.led(5), Duration::ZERO);
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!((clock.led(5), clock.led(6)), (Duration::from_millis(30), Duration::ZERO));
    }
}
