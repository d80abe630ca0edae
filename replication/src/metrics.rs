//! What a node counts and measures while it works, and what it tells of it.
//!
//! # Idea
//!
//! **Counted once.** What something else knows already (the WAL its syncs, Raft its positions, an engine its
//! memory) is read when somebody asks, by [`Node::families`](crate::Node::families). Only what nobody knows
//! is counted here: times and kinds.
//!
//! **Next to nothing on the way of a write.** A counter is a relaxed atomic; a [`Histogram`] is an array of
//! them with fixed limits, each twice the one before, so that finding the place of a measurement is one
//! instruction. Nothing is allocated, no mutex taken. Where entries travel in batches they are measured in
//! batches: a put reads the clock four times on its leader. Those that are written by each group for itself lie
//! with the group, so that cores that work for different groups do not contend for them.
//!
//! # The stages of a write
//!
//! ```text
//! submit ─► queue ─► Raft ─► replicate: on a quorum, committed ─► apply ─► reply
//!                      └──► sync: durable here
//! ```
//!
//! | stage | from | until | counted on |
//! |---|---|---|---|
//! | [`Stage::Queue`] | it is proposed | its batch is handed to Raft | the leader |
//! | [`Stage::Sync`] | its batch is appended to the WAL | it is durable there | each replica |
//! | [`Stage::Replicate`] | its batch is handed to Raft | it is committed, and its application begins | the leader |
//! | [`Stage::Apply`] | the entry before it is applied | it is, too | each replica |
//!
//! The leader syncs while its followers do: *sync* is a part of *replicate*, not something that comes before
//! it.
//!
//! # Names
//!
//! An operation has the name that it has in the API ([`OperationKind`], [`ReadKind`]). [`Family`] is a metric in the
//! sense of Prometheus, whose conventions the names follow: a unit at the end, `_total` for what only grows.
//! Writing them as text is for whoever serves them.
//!
//! Not here: what happens on the network, which its own crate counts. Who serves clients in other ways beside the node
//! ([`Figures`]) has the node tell what it counts.

mod families;
mod family;
mod histogram;
mod slow;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogsled_storage::codec::decode_group_command;
use dogsled_storage::group::{GroupRead, GroupReply, Refusal};
use dogsled_storage::kind::{OperationKind, ReadKind};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::family::{Family, FamilyKind, Sample, SampleValue};
pub use self::histogram::{Distribution, Histogram};
pub use self::slow::SlowCommand;
use self::slow::SlowCommands;
use crate::error::ClusterError;

/// A part of a write's way; see the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Waiting for the batches before it.
    Queue,
    /// Becoming durable on this node.
    Sync,
    /// Becoming committed.
    Replicate,
    /// Being carried out.
    Apply,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 4] = [Stage::Queue, Stage::Sync, Stage::Replicate, Stage::Apply];

    /// As the metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::Sync => "sync",
            Stage::Replicate => "replicate",
            Stage::Apply => "apply",
        }
    }
}

/// Something beside a node that counts what it does: a server of another protocol.
pub trait Figures: Send + Sync {
    /// Everything that it counts, as of now. A family that others have as well is told once, with the values of all.
    fn families(&self) -> Vec<Family>;
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn counters<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// What is measured of one group. It outlives the group's replica: one that comes back goes on counting.
pub(crate) struct GroupMetrics {
    stages: [Histogram; Stage::ALL.len()],
    /// When the last call to apply entries began, in nanoseconds since `born`.
    apply_began: AtomicU64,
    born: Instant,
    /// Commands that this node carried out as the group's leader.
    commands: [AtomicU64; OperationKind::ALL.len()],
}

impl GroupMetrics {
    fn new() -> GroupMetrics {
        GroupMetrics {
            stages: std::array::from_fn(|_| Histogram::default()),
            apply_began: AtomicU64::new(0),
            born: Instant::now(),
            commands: counters(),
        }
    }

    fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }

    fn since_born(&self, at: Instant) -> u64 {
        nanoseconds(at.saturating_duration_since(self.born))
    }

    /// A proposal has waited since then, and waits no more.
    pub(crate) fn queued(&self, since: Instant, until: Instant) {
        self.stage(Stage::Queue).observe(until.saturating_duration_since(since));
    }

    /// Entries are appended; what is returned is told when they are durable.
    pub(crate) fn appended(self: &Arc<Self>, entries: u64) -> Appended {
        Appended { metrics: Arc::clone(self), at: Instant::now(), entries }
    }

    /// Committed entries are about to be applied.
    pub(crate) fn apply_begins(&self) -> Instant {
        let now = Instant::now();
        self.apply_began.store(self.since_born(now), Ordering::Relaxed);
        now
    }

    /// An entry was applied, and the one before it then; the time.
    pub(crate) fn applied(&self, since: Instant) -> Instant {
        let now = Instant::now();
        self.stage(Stage::Apply).observe(now.saturating_duration_since(since));
        now
    }
}

/// Entries that are on their way to the disk.
pub(crate) struct Appended {
    metrics: Arc<GroupMetrics>,
    at: Instant,
    entries: u64,
}

impl Appended {
    pub(crate) fn durable(self) {
        self.metrics.stage(Stage::Sync).observe_many(self.at.elapsed(), self.entries);
    }
}

/// A batch of proposals that Raft has. It is with the batch's last one.
pub(crate) struct Handed {
    /// Tells by its end that the batch is through.
    pub(crate) through: oneshot::Sender<()>,
    pub(crate) metrics: Arc<GroupMetrics>,
    pub(crate) at: Instant,
    pub(crate) entries: u64,
}

impl Handed {
    /// To be called from within the application of the batch's last entry, or when it is known that it will
    /// not come to that.
    pub(crate) fn answered(self) {
        let (handed, began) =
            (self.metrics.since_born(self.at), self.metrics.apply_began.load(Ordering::Relaxed));
        // Otherwise nothing has been applied since: the batch was refused.
        if began >= handed {
            let replicated = Duration::from_nanos(began - handed);
            self.metrics.stage(Stage::Replicate).observe_many(replicated, self.entries);
        }
        drop(self.through);
    }
}

/// Why requests fail, as a label; in the order of [`failure_number`].
const FAILURES: [&str; 9] = [
    "not_leader",
    "unavailable",
    "outcome_unknown",
    "invalid",
    "storage",
    "denied",
    "conflict",
    "no_space",
    "other",
];

#[allow(unreachable_patterns, reason = "the error is non-exhaustive to others, and may grow")]
fn failure_number(error: &ClusterError) -> usize {
    match error {
        ClusterError::NotLeader { .. } => 0,
        ClusterError::Unavailable(_) => 1,
        ClusterError::OutcomeUnknown(_) => 2,
        ClusterError::Invalid(_) => 3,
        ClusterError::Storage(_) => 4,
        ClusterError::Denied(_) => 5,
        ClusterError::Conflict(_) => 6,
        ClusterError::NoSpace(_) => 7,
        _ => 8,
    }
}

/// What commands are refused for, as a label; in the order of [`refusal_number`].
const REFUSALS: [&str; 10] = [
    "invalid",
    "too_large",
    "tree_not_found",
    "session_unknown",
    "forgotten",
    "malformed",
    "lock_not_held",
    "locked",
    "tree_sealed",
    "quota_exceeded",
];

fn refusal_number(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::Invalid(_) => 0,
        Refusal::TooLarge(_) => 1,
        Refusal::TreeNotFound(_) => 2,
        Refusal::SessionUnknown(_) => 3,
        Refusal::Forgotten { .. } => 4,
        Refusal::Malformed(_) => 5,
        Refusal::LockNotHeld { .. } => 6,
        Refusal::Locked(_) => 7,
        Refusal::TreeSealed(_) => 8,
        Refusal::QuotaExceeded(_) => 9,
    }
}

/// A command longer than this is not decoded to see which tree it names.
const DECODED: usize = 1 << 20;

/// What a node measures that is not of one group alone.
pub(crate) struct NodeMetrics {
    groups: Mutex<BTreeMap<u32, Arc<GroupMetrics>>>,
    /// From the arrival of a command until its answer, at the group's leader.
    commands: [Histogram; OperationKind::ALL.len()],
    refusals: [AtomicU64; REFUSALS.len()],
    reads: [Histogram; ReadKind::ALL.len()],
    failures: [AtomicU64; FAILURES.len()],
    losses: AtomicU64,
    slow: SlowCommands,
    /// Those who count beside the node, while they are there.
    beside: Mutex<Vec<Weak<dyn Figures>>>,
}

impl Default for NodeMetrics {
    fn default() -> NodeMetrics {
        NodeMetrics {
            groups: Mutex::default(),
            commands: std::array::from_fn(|_| Histogram::default()),
            refusals: counters(),
            reads: std::array::from_fn(|_| Histogram::default()),
            failures: counters(),
            losses: AtomicU64::new(0),
            slow: SlowCommands::default(),
            beside: Mutex::default(),
        }
    }
}

impl NodeMetrics {
    /// Those of a group; always the same.
    pub(crate) fn group(&self, group: u32) -> Arc<GroupMetrics> {
        Arc::clone(self.groups.lock().entry(group).or_insert_with(|| Arc::new(GroupMetrics::new())))
    }

    /// This node, as leader, has carried out an encoded command. `now_ms` is asked if it was slow.
    pub(crate) fn carried_out(
        &self,
        group: (u32, &GroupMetrics),
        command: &[u8],
        reply: &GroupReply,
        took: Duration,
        now_ms: impl FnOnce() -> u64,
    ) {
        if let Err(refusal) = &reply.result {
            self.refusals[refusal_number(refusal)].fetch_add(1, Ordering::Relaxed);
        }
        // What is malformed has no kind, and is counted as refused.
        let Some(kind) = OperationKind::peek(command) else { return };
        self.commands[kind as usize].observe(took);
        group.1.commands[kind as usize].fetch_add(1, Ordering::Relaxed);
        if self.slow.is_slow(took) {
            let tree = (command.len() <= DECODED).then(|| decode_group_command(command).ok()).flatten();
            let tree = tree.and_then(|command| command.trees.into_iter().next());
            self.slow.add(SlowCommand::new(kind.name(), group.0, tree.as_deref(), took, now_ms()));
        }
    }

    /// How long the commands took that this node carried out as leader.
    pub(crate) fn commands(&self) -> Distribution {
        let mut all = Distribution::default();
        self.commands.iter().for_each(|kind| all.add(&kind.read()));
        all
    }

    /// This node has answered a read, or so many of its kind together.
    pub(crate) fn answered(&self, asked: &Asked, count: u64, took: Duration, now_ms: impl FnOnce() -> u64) {
        self.reads[asked.kind as usize].observe_many(took, count);
        if self.slow.is_slow(took) {
            let tree = asked.tree.as_deref();
            self.slow.add(SlowCommand::new(asked.kind.name(), asked.group, tree, took, now_ms()));
        }
    }

    /// A client is told this.
    pub(crate) fn failed(&self, error: &ClusterError) {
        self.failures[failure_number(error)].fetch_add(1, Ordering::Relaxed);
    }

    /// A group's log lacks what this node had acknowledged.
    pub(crate) fn lost_what_was_acknowledged(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// Has others told of, too, for as long as they are there.
    pub(crate) fn add_figures(&self, figures: Weak<dyn Figures>) {
        let mut beside = self.beside.lock();
        beside.retain(|known| known.strong_count() > 0);
        beside.push(figures);
    }

    pub(crate) fn slow_commands(&self, now_ms: u64) -> Vec<SlowCommand> {
        self.slow.list(now_ms)
    }
}

/// What was asked for, without keys.
pub(crate) struct Asked {
    pub(crate) group: u32,
    pub(crate) kind: ReadKind,
    pub(crate) tree: Option<dogsled_storage::IVec>,
}

impl Asked {
    pub(crate) fn of(group: u32, read: &GroupRead) -> Asked {
        let tree = match read {
            GroupRead::Get { tree, .. }
            | GroupRead::GetMany { tree, .. }
            | GroupRead::GetKinds { tree, .. }
            | GroupRead::Range { tree, .. }
            | GroupRead::Len { tree }
            | GroupRead::Expires { tree, .. } => Some(tree.clone()),
            GroupRead::Strings { trees, .. } => trees.first().cloned(),
            _ => None,
        };
        Asked { group, kind: ReadKind::of(read), tree }
    }
}

#[cfg(test)]
mod tests;
