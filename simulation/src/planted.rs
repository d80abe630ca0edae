//! Bugs that are built in on purpose, to see them caught: [`Planted`].
//!
//! A simulation that never fails proves little. None of these changes the code that is shipped: they are planted at
//! the seams that it has, which is where such a bug would show.
//!
//! | seam | bug |
//! |---|---|
//! | the disk below a node | says that the WAL is synced, and has not; is an earlier one when a lost quorum is recovered |
//! | the requests that reach a node | something is dropped from a command before it is proposed: a fence, its number, a delay, a time to live, an owner, bounds; a lock has one permit more; a read asks for less |
//! | the stream of changes that a node tells | some are left out |
//! | a node's configuration | it hardly ever looks after itself |
//! | what a node proposes by itself | leases end by the leader's wall clock; aborts that nobody records; everybody's leases are renewed; who is first in line is thrown out |
//!
//! `tests/lives/planted.rs` has each of them caught. Which bugs have no such seam, and how they are built in by hand, is said
//! in the [crate's](crate) own text.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::watch::WatchEvent;
use dogsled_replication::{ClientRequest, Consistency, NodeId};
use dogsled_storage::codec::{decode_group_command, encode_group_command};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::{
    Disk, DiskDirectory, DiskFile, DiskLock, DiskMap, OpenMode, SimulatedDisk, Space,
};
use dogsled_storage::lock::LockCommand;
use dogsled_storage::{
    Clock as _, Command, ExpiryCommand, GroupCommand, GroupRead, GroupReadReply, LockedBy, Operation,
    OwnedCommand, Replica, TreeId, Write,
};

use crate::cluster::Cluster;

/// See the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Syncs of the WAL do nothing: what is acknowledged is lost with the power.
    AcknowledgeBeforeSync,
    /// A command that is to be carried out only under a token is carried out without a look at it.
    DropFences,
    /// Commands have no numbers: what is sent again is done again.
    DropNumbers,
    /// An unclean end of a lock is followed by no delay.
    DropDelays,
    /// A key that is to have a time to live has none.
    DropTimes,
    /// A key that is to die with a session is a key like any other.
    DropOwners,
    /// Counters are not kept within bounds.
    DropBounds,
    /// Of several counters that are added to together, the last is not.
    AddToOne,
    /// A lock has one permit more than it should have.
    OnePermitMore,
    /// Linearizable reads are answered as stale ones.
    StaleReads,
    /// A leader ends leases, and keys with a time to live, when its wall clock says so.
    ExpireByWallClock,
    /// Home forgets an abort as soon as it has answered with it. (No command makes it do so; so participants are told,
    /// early, what it would have answered, and home is not asked.)
    ForgetAborts,
    /// Sessions and locks are renewed though nobody asks for it.
    RenewForever,
    /// Whoever is first in line for a lock is thrown out.
    ThrowOutTheFirst,
    /// What is left of a lost quorum is recovered from what it had at its beginning.
    RecoverFromEarlier,
    /// Some changes are not told to those who watch.
    DropChanges,
    /// Nodes hardly ever look after themselves: leaders end no lease in time.
    LookAfterNothing,
}

/// All there are.
const ALL: [Planted; 17] = [
    Planted::AcknowledgeBeforeSync,
    Planted::DropFences,
    Planted::DropNumbers,
    Planted::DropDelays,
    Planted::DropTimes,
    Planted::DropOwners,
    Planted::DropBounds,
    Planted::AddToOne,
    Planted::OnePermitMore,
    Planted::StaleReads,
    Planted::ExpireByWallClock,
    Planted::ForgetAborts,
    Planted::RenewForever,
    Planted::ThrowOutTheFirst,
    Planted::RecoverFromEarlier,
    Planted::DropChanges,
    Planted::LookAfterNothing,
];

impl std::str::FromStr for Planted {
    type Err = String;

    fn from_str(name: &str) -> Result<Planted, String> {
        let found = ALL.iter().find(|planted| format!("{planted:?}").eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| format!("there is no such bug; there are {ALL:?}"))
    }
}

impl Planted {
    /// What a node is started on.
    pub(crate) fn disk(self, disk: SimulatedDisk) -> Arc<dyn Disk> {
        match self {
            Planted::AcknowledgeBeforeSync => Arc::new(LyingDisk(disk)),
            _ => Arc::new(disk),
        }
    }

    /// What a node takes a client's request for.
    pub(crate) fn request(self, body: Bytes) -> Bytes {
        match ClientRequest::decode(body.clone()) {
            Ok(ClientRequest::Read { group, deadline, read, .. }) if self == Planted::StaleReads => {
                ClientRequest::Read { group, deadline, consistency: Consistency::Stale, read }.encode()
            }
            Ok(ClientRequest::Submit { group, deadline, command }) => {
                let Ok(mut changed) = decode_group_command(&command) else { return body };
                self.change(&mut changed);
                match encode_group_command(&changed) {
                    Ok(command) => {
                        ClientRequest::Submit { group, deadline, command: command.into() }.encode()
                    }
                    Err(_) => body,
                }
            }
            _ => body,
        }
    }

    /// Whether a message of that number is left out of the stream that tells somebody of changes.
    pub(crate) fn drops(self, message: &Bytes, number: u64) -> bool {
        let tells = |events: Vec<WatchEvent>| {
            events.iter().any(|told| matches!(told, WatchEvent::Put { .. } | WatchEvent::Removed { .. }))
        };
        self == Planted::DropChanges
            && number.is_multiple_of(5)
            && WatchEvent::decode(message.clone()).is_ok_and(tells)
    }

    fn change(self, command: &mut GroupCommand) {
        if self == Planted::DropNumbers && matches!(command.operation, Operation::Command(_)) {
            command.session = None;
        }
        match (self, &mut command.operation) {
            (Planted::DropFences, Operation::Fenced { command: fenced, .. }) => {
                command.operation = Operation::Command(fenced.clone());
            }
            (
                Planted::DropDelays,
                Operation::Command(Command::Lock(
                    LockCommand::Acquire { request, .. } | LockCommand::AcquireOwned { request, .. },
                )),
            ) => request.delay_ms = 0,
            (
                Planted::OnePermitMore,
                Operation::Command(Command::Lock(
                    LockCommand::Acquire { request, .. } | LockCommand::AcquireOwned { request, .. },
                )),
            ) => request.capacity = request.capacity.saturating_add(1),
            (
                Planted::DropTimes,
                Operation::Command(Command::Expiry(ExpiryCommand::Insert { tree, key, value, .. })),
            ) => {
                let (tree, key, value) = (*tree, key.clone(), value.clone());
                command.operation = Operation::Command(Command::Insert { tree, key, value });
            }
            (
                Planted::DropOwners,
                Operation::Command(Command::Owned(OwnedCommand::Insert { tree, key, value, .. })),
            ) => {
                let (tree, key, value) = (*tree, key.clone(), value.clone());
                command.operation = Operation::Command(Command::Insert { tree, key, value });
            }
            (
                Planted::DropBounds,
                Operation::Command(Command::Counter(CounterCommand::AddWithin { min, max, .. })),
            ) => (*min, *max) = (i64::MIN, i64::MAX),
            (Planted::AddToOne, Operation::Command(Command::CountMany { additions })) => {
                if let Some(last) = additions.last_mut() {
                    last.delta = 0;
                }
            }
            _ => {}
        }
    }

    /// What nodes would do by themselves by now.
    pub(crate) fn act(self, cluster: &Cluster) {
        for (id, node) in cluster.nodes() {
            for group in 1..=cluster.setup.partitions {
                let Some(replica) = node.replica(group).filter(|_| node.leader(group) == Some(id)) else {
                    continue;
                };
                let wall_ms = cluster.machines[&id].clock.now_ms();
                let operations = match self {
                    Planted::ExpireByWallClock => over(&replica, wall_ms),
                    Planted::ForgetAborts => forgotten_aborts(&replica, cluster),
                    Planted::RenewForever => renewals(&replica),
                    Planted::ThrowOutTheFirst => {
                        let queues = replica.locks(100, 100).map_or(Vec::new(), |(queues, _)| queues);
                        let first = queues.into_iter().filter_map(|queue| {
                            let ticket = queue.waiters.first()?.ticket;
                            let cancel = LockCommand::CancelWait { name: queue.name, ticket };
                            Some(plain(Operation::Command(Command::Lock(cancel))))
                        });
                        first.collect()
                    }
                    _ => Vec::new(),
                };
                operations.into_iter().for_each(|command| propose(cluster, id, group, &command));
            }
        }
    }
}

fn plain(operation: Operation) -> GroupCommand {
    GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation }
}

fn propose(cluster: &Cluster, node: NodeId, group: u32, command: &GroupCommand) {
    let Ok(command) = encode_group_command(command) else { return };
    let deadline = Duration::from_secs(1);
    let request = ClientRequest::Submit { group, deadline, command: command.into() }.encode();
    let network = cluster.network.clone();
    tokio::spawn(async move { network.ask(0, node, request, deadline).await });
}

/// Ends what is over by that time: gives locks back for their holders, and removes keys.
fn over(replica: &Replica, wall_ms: u64) -> Vec<GroupCommand> {
    let mut operations = Vec::new();
    for queue in replica.locks(100, 100).map_or(Vec::new(), |(queues, _)| queues) {
        for permit in queue.holders.into_iter().filter(|permit| permit.has_ended(wall_ms)) {
            let (name, owner, token) = (queue.name.clone(), permit.owner, permit.token);
            let release = LockCommand::Release { name, owner, token };
            operations.push(plain(Operation::Command(Command::Lock(release))));
        }
    }
    let snapshot = replica.engine().snapshot();
    let names = snapshot.trees();
    for (tree, key, _) in snapshot.times_to_live().flatten().filter(|(.., at_ms)| *at_ms <= wall_ms) {
        let Some((name, _)) = names.iter().find(|(_, id)| *id == tree) else { continue };
        let writes = vec![Write { tree: TreeId(0), key, value: None }];
        let operation = Operation::Command(Command::Batch { writes });
        operations.push(GroupCommand { trees: vec![name.clone()], ..plain(operation) });
    }
    operations
}

/// Resolves what is prepared as aborted, unless home has decided already.
fn forgotten_aborts(replica: &Replica, cluster: &Cluster) -> Vec<GroupCommand> {
    let is_undecided = |lock: &LockedBy| {
        let mut homes = cluster
            .nodes()
            .filter_map(|(id, node)| node.replica(lock.home).filter(|_| node.leader(lock.home) == Some(id)));
        homes.next().is_some_and(|home| {
            let decisions = home.decisions_before(u64::MAX, None, usize::MAX);
            decisions.iter().all(|(transaction, _)| *transaction != lock.transaction)
        })
    };
    let prepared = replica.expired_transactions(u64::MAX, None, 100).into_iter().filter(is_undecided);
    prepared.map(|lock| plain(Operation::Resolve { transaction: lock.transaction, commit: false })).collect()
}

/// Renews all that there is.
fn renewals(replica: &Replica) -> Vec<GroupCommand> {
    let read = GroupRead::Sessions { after: None, limit: u32::MAX };
    let Ok(GroupReadReply::Sessions { sessions, .. }) = replica.read(&read) else { return Vec::new() };
    let sessions = sessions.into_iter().map(|session| Operation::RenewSession { session: session.session });
    let queues = replica.locks(100, 100).map_or(Vec::new(), |(queues, _)| queues);
    let locks = queues.into_iter().flat_map(|queue| {
        queue.holders.into_iter().map(move |permit| {
            let (name, owner, token) = (queue.name.clone(), permit.owner, permit.token);
            let renew = LockCommand::Renew { name, owner, token, lease_ms: 3_000 };
            Operation::Command(Command::Lock(renew))
        })
    });
    sessions.chain(locks).map(plain).collect()
}

/// A disk that keeps in its cache what it says to have synced, of the WAL.
#[derive(Debug)]
struct LyingDisk(SimulatedDisk);

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.open(path, mode)?;
        let is_wal = mode == OpenMode::Aligned;
        Ok(if is_wal { Arc::new(LyingFile(file)) } else { file })
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        self.0.create_directories(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.0.remove_directory(path)
    }

    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        self.0.open_directory(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.0.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }

    fn no_more_writes(&self) {
        self.0.no_more_writes();
    }

    fn map(&self) -> io::Result<DiskMap> {
        self.0.map()
    }
}
