//! A log of random entries for replicas, with the state and the reply that the model has at each
//! position.
//!
//! Use beside `engine_support` as `crate::support`.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod group;

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use dogsled_storage::codec::{GROUP_COMMAND_VERSION, encode_group_command};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::model::ModelState;
use dogsled_storage::transaction::{Commit, Prepare};
use dogsled_storage::wal::{Wal, WalOptions};
use dogsled_storage::{
    Answer, ChunkPosition, Command, GroupCommand, GroupReply, IVec, Operation, OwnedCommand, Part, Refusal,
    Replica, ReplicaInstaller, ReplicaOptions, ReplicaSnapshot, Reply, SessionId, SessionTag, Snapshot,
    TransactionId, TreeId, View, Write,
};

use crate::support::workload::{Shape, Workload};

/// The database's own trees.
const OWN: [TreeId; 8] = [
    TreeId::TRANSACTIONS,
    TreeId::COUNTERS,
    TreeId::LOCKS,
    TreeId::SESSIONS,
    TreeId::EXPIRY,
    TreeId::LOCK_QUEUES,
    TreeId::SEQUENCES,
    TreeId::QUOTAS,
];

pub const DATABASE_ID: u128 = 0x0d06_51ed;

/// One position of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `None`: an entry without command.
    pub bytes: Option<Vec<u8>>,
    pub note: Option<Vec<u8>>,
    /// What the model answers.
    pub reply: Option<GroupReply>,
}

/// A log, and what it must come to.
#[derive(Clone)]
pub struct Log {
    /// Position 1 first.
    pub entries: Vec<Entry>,
    /// The state before and after each entry.
    pub states: Vec<ModelState>,
    /// The note before and after each entry.
    pub notes: Vec<Vec<u8>>,
}

/// A client within a session.
#[derive(Clone, Debug)]
struct Client {
    session: SessionId,
    next: u64,
    /// Commands that may be tried again.
    sent: Vec<GroupCommand>,
}

/// Makes logs.
pub struct LogMaker {
    workload: Workload,
    state: ModelState,
    time_ms: u64,
    clients: Vec<Client>,
    sessions: u128,
    transactions: u64,
}

impl LogMaker {
    pub fn new(seed: u64) -> LogMaker {
        LogMaker {
            workload: Workload::new(seed, Shape::SMALL),
            state: ModelState::for_replica(),
            time_ms: 1_000,
            clients: Vec::new(),
            sessions: 0,
            transactions: 0,
        }
    }

    /// A log of so many entries.
    pub fn log(seed: u64, length: u64) -> Log {
        let mut maker = LogMaker::new(seed);
        let mut log = Log { entries: Vec::new(), states: vec![maker.state.clone()], notes: vec![Vec::new()] };
        for _ in 0..length {
            maker.extend(&mut log);
        }
        log
    }

    /// Adds an entry to a log that this maker made.
    pub fn extend(&mut self, log: &mut Log) {
        let position = log.entries.len() as u64 + 1;
        let note = (!self.workload.random.one_in(5)).then(|| format!("note {position}").into_bytes());
        let (bytes, reply) = match self.workload.random.below(50) {
            0 => {
                self.state.apply(position, &[]);
                (None, None)
            }
            1 => {
                self.state.apply(position, &[]);
                let time_ms = self.state.time_ms();
                let result = Err(Refusal::Malformed(String::new()));
                (
                    Some(vec![GROUP_COMMAND_VERSION, 0, 0, 0, 77]),
                    Some(GroupReply { position, time_ms, result }),
                )
            }
            _ => {
                let command = self.command();
                let bytes = encode_group_command(&command).expect("a small command");
                let reply = self.state.apply_entry(position, command.clone()).expect("the model has no disk");
                self.learn(&command, &reply);
                (Some(bytes), Some(reply))
            }
        };
        log.notes.push(note.clone().unwrap_or_else(|| log.notes.last().expect("never empty").clone()));
        log.states.push(self.state.clone());
        log.entries.push(Entry { bytes, note, reply });
    }

    fn command(&mut self) -> GroupCommand {
        // Stamps may run backwards, as they do when another leader takes over.
        self.time_ms += self.workload.random.below(30);
        let time_ms = self.time_ms - self.workload.random.below(60);
        let plain = |operation| GroupCommand { session: None, time_ms, trees: Vec::new(), operation };
        let client = self.workload.random.below(self.clients.len() as u64 + 1) as usize;
        match self.workload.random.below(100) {
            0..=2 => {
                self.sessions += 1;
                let session = SessionId(self.sessions);
                self.clients.push(Client { session, next: 0, sent: Vec::new() });
                if self.clients.len() > 4 {
                    self.clients.remove(0);
                }
                plain(Operation::OpenSession { session, lease_ms: 100 + self.workload.random.below(2000) })
            }
            3 => plain(Operation::ExpireSessions { led_ms: self.workload.random.below(3000) }),
            4 => plain(Operation::Nothing),
            5 | 6 if client < self.clients.len() => {
                plain(Operation::RenewSession { session: self.clients[client].session })
            }
            7 if client < self.clients.len() && self.workload.random.one_in(3) => {
                plain(Operation::CloseSession { session: self.clients[client].session })
            }
            8..=15 if client < self.clients.len() && !self.clients[client].sent.is_empty() => {
                let sent = &self.clients[client].sent;
                let mut again = sent[self.workload.random.below(sent.len() as u64) as usize].clone();
                again.time_ms = time_ms;
                again
            }
            16..=60 if client < self.clients.len() => {
                let mut command = self.data(time_ms);
                self.perhaps_prepare(&mut command);
                let random = &mut self.workload.random;
                let client = &mut self.clients[client];
                command.session = Some(SessionTag {
                    session: client.session,
                    slot: random.below(4) as u16,
                    sequence: client.next,
                });
                // Numbers may be left out.
                client.next += 1 + if random.one_in(10) { random.below(40) } else { 0 };
                client.sent.push(command.clone());
                if client.sent.len() > 6 {
                    client.sent.remove(0);
                }
                command
            }
            61..=72 if self.transactions > 0 => {
                let random = &mut self.workload.random;
                let transaction = TransactionId(1 + u128::from(random.below(self.transactions)));
                let commit = random.one_in(2);
                plain(match random.below(8) {
                    0 => Operation::Settle { transaction, decide_by_ms: self.time_ms + random.below(60) },
                    1 => Operation::Forget { transactions: vec![transaction, TransactionId(1)] },
                    _ => Operation::Resolve { transaction, commit },
                })
            }
            _ => self.data(time_ms),
        }
    }

    /// Makes a part of a transaction over several groups of what is one within this group.
    fn perhaps_prepare(&mut self, command: &mut GroupCommand) {
        if !matches!(
            command.operation,
            Operation::Command(Command::Transact { .. } | Command::Batch { .. } | Command::Remove { .. })
        ) {
            return;
        }
        let random = &mut self.workload.random;
        self.transactions += u64::from(!random.one_in(10));
        let transaction = TransactionId(u128::from(self.transactions));
        let decide_by_ms = self.time_ms + random.below(500);
        let Operation::Command(inner) = std::mem::replace(&mut command.operation, Operation::Nothing) else {
            unreachable!("just seen");
        };
        let part = match inner {
            Command::Transact { reads, ranges, writes, expiries } => Part { reads, ranges, writes, expiries },
            Command::Batch { writes } => Part { writes, ..Part::default() },
            Command::Remove { tree, key } => {
                Part { writes: vec![Write { tree, key, value: None }], ..Part::default() }
            }
            other => unreachable!("{other:?}"),
        };
        command.operation = if random.one_in(3) {
            Operation::Commit(Commit { transaction, decide_by_ms, participants: vec![2], part })
        } else {
            let lease_ms = random.below(300);
            let only_lock = random.one_in(4);
            let part = match part {
                // Now and then it is refused.
                Part { reads, ranges, .. } if only_lock && !random.one_in(5) => {
                    Part { reads, ranges, ..Part::default() }
                }
                part => part,
            };
            Operation::Prepare(Prepare { transaction, home: 2, decide_by_ms, lease_ms, only_lock, part })
        };
    }

    fn data(&mut self, time_ms: u64) -> GroupCommand {
        let mut command = match self.workload.random.below(4) {
            0 if self.workload.random.one_in(4) => {
                let client = self.workload.random.below(self.clients.len() as u64 + 1) as usize;
                let session = self.clients.get(client).map(|client| client.session);
                self.workload.owned(&self.state, session)
            }
            0 => self.workload.coordination(&self.state),
            _ => self.workload.command(&self.state),
        };
        if let Command::Transact { expiries, .. } = &mut command
            && self.workload.random.one_in(2)
        {
            *expiries = self.workload.expiries(&self.state);
        }
        let trees = name_trees(&mut command, &self.state);
        let operation = match self.workload.random.below(8) {
            0 => Operation::Fenced { fences: vec![self.workload.fence()], command },
            _ => Operation::Command(command),
        };
        GroupCommand { session: None, time_ms, trees, operation }
    }

    fn learn(&mut self, command: &GroupCommand, reply: &GroupReply) {
        if let Operation::Command(Command::Lock(LockCommand::Acquire { name, .. })) = &command.operation
            && let Ok(Answer::Reply(Reply::Lock(LockReply::Waiting { ticket, .. }))) = &reply.result
        {
            self.workload.waits(name, *ticket);
        }
        if let Operation::Command(Command::Lock(
            LockCommand::TryAcquire { name, owner, .. } | LockCommand::Acquire { name, owner, .. },
        )) = &command.operation
            && let Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) = &reply.result
        {
            self.workload.granted(name, owner, *token);
        }
    }
}

/// Makes the numbers of trees in a command indices of the names that it returns. A number that no
/// tree has becomes a name that none has.
pub fn name_trees(command: &mut Command, state: &ModelState) -> Vec<IVec> {
    let mut names: Vec<IVec> = Vec::new();
    let mut each = |tree: &mut TreeId| {
        let found = state.names().find(|(_, id)| id == tree).map(|(name, _)| name.clone());
        let name = found.unwrap_or_else(|| IVec::from(format!("new {}", tree.0 % 4)));
        let index = names.iter().position(|other| *other == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        *tree = TreeId(index as u32);
    };
    match command {
        Command::Insert { tree, .. }
        | Command::Remove { tree, .. }
        | Command::CompareAndSwap { tree, .. }
        | Command::Pop { tree, .. }
        | Command::ClearTree { tree } => each(tree),
        Command::Expiry(expiry) => each(expiry.tree_mut()),
        Command::Owned(
            OwnedCommand::Insert { tree, .. }
            | OwnedCommand::InsertNext { tree, .. }
            | OwnedCommand::SetNext { tree, .. },
        ) => each(tree),
        Command::Batch { writes } => writes.iter_mut().for_each(|write| each(&mut write.tree)),
        Command::Strings { watched, operations } => {
            watched.iter_mut().for_each(|read| each(&mut read.tree));
            operations.iter_mut().flat_map(|operation| operation.trees_mut()).for_each(each);
        }
        Command::Transact { reads, ranges, writes, expiries } => {
            reads.iter_mut().for_each(|read| each(&mut read.tree));
            ranges.iter_mut().for_each(|range| each(&mut range.tree));
            writes.iter_mut().for_each(|write| each(&mut write.tree));
            expiries.iter_mut().for_each(|expiry| each(expiry.tree_mut()));
        }
        _ => {}
    }
    names
}

pub fn open_wal(disk: &SimulatedDisk) -> dogsled_storage::Result<Arc<Wal>> {
    let options = WalOptions {
        segment_size: 64 << 10,
        threads: false,
        seed: Some(7),
        ..WalOptions::new("node/wal", DATABASE_ID)
    };
    Ok(Arc::new(Wal::open(Arc::new(disk.clone()), options)?))
}

pub fn options(disk: &SimulatedDisk, group: u32) -> ReplicaOptions {
    ReplicaOptions {
        cache_capacity: 8 << 20,
        disk: Arc::new(disk.clone()),
        background_threads: false,
        ..ReplicaOptions::new(PathBuf::from(format!("node/groups/{group}")), DATABASE_ID)
    }
}

/// Applies one entry, and compares the reply.
pub fn apply(replica: &Replica, log: &Log, position: u64) -> dogsled_storage::Result<()> {
    let entry = &log.entries[position as usize - 1];
    let note = entry.note.as_deref();
    let Some(bytes) = &entry.bytes else { return replica.skip(position, note) };
    let mut found = replica.apply(position, note, bytes)?;
    if let Err(Refusal::Malformed(what)) = &mut found.result {
        assert!(!what.is_empty());
        what.clear();
    }
    assert_eq!(Some(&found), entry.reply.as_ref(), "reply to entry {position}");
    Ok(())
}

/// Panics unless the replica is as the model is at its position.
pub fn assert_replica_is(replica: &Replica, log: &Log, context: &str) {
    let applied = replica.applied();
    let state = &log.states[applied.position as usize];
    let context = format!("{context}, at {}", applied.position);
    assert_eq!(applied.note, log.notes[applied.position as usize], "{context}: note");
    assert_eq!(replica.time_ms(), state.time_ms(), "{context}: time");
    dogsled_storage::quota::check_invariants(state).unwrap_or_else(|error| panic!("{context}: {error}"));
    let engine = replica.engine();
    let snapshot = engine.snapshot();
    let all = snapshot.with_expired();
    let own = [TreeId::COUNTERS, TreeId::LOCKS, TreeId::TRANSACTIONS];
    let not_empty = own.into_iter().filter(|id| !state.is_empty(*id)).count();
    assert_eq!(engine.trees().len(), state.names().count() + not_empty, "{context}: trees");
    for (name, id) in state.names() {
        assert_eq!(engine.tree_id(name), Some(id), "{context}: the number of {name:?}");
    }
    let transactions = state.transactions().expect("the model of a replica");
    assert_eq!(replica.transaction_counts(), transactions.counts(), "{context}: transactions");
    assert_eq!(
        replica.expired_transactions(u64::MAX, None, usize::MAX),
        transactions.expired(u64::MAX, None).collect::<Vec<_>>(),
        "{context}: what is prepared"
    );
    for id in state.names().map(|(_, id)| id).chain(OWN) {
        let expected: Vec<_> = state.tree(id).expect("it has one").clone().into_iter().collect();
        let read = |snapshot: &Snapshot| -> Vec<_> {
            let found = snapshot.range(id, Bound::Unbounded, Bound::Unbounded);
            found.map(|entry| entry.expect("it can be read")).collect()
        };
        assert_eq!(read(&all), expected, "{context}: {id:?}");
        // What has expired by the log's time is not shown, whether it is removed yet or not.
        let live: Vec<_> = expected.iter().filter(|(key, _)| state.is_live(id, key)).cloned().collect();
        assert_eq!(read(&snapshot), live, "{context}: what is shown of {id:?}");
        if !id.is_system() {
            for (key, found) in &expected {
                let shown = state.is_live(id, key).then(|| found.value.clone());
                assert_eq!(engine.get(id, key).expect("it can be read"), shown, "{context}: {key:?}");
            }
        }
        assert_eq!(engine.len(id).expect("a tree has a length"), expected.len() as u64, "{context}: {id:?}");
    }
    engine.check_invariants();
}

/// Sends a snapshot, in chunks of about so many bytes, up to the last one.
pub fn send(
    snapshot: &ReplicaSnapshot,
    installer: &mut ReplicaInstaller,
    max_bytes: usize,
) -> dogsled_storage::Result<()> {
    while !installer.position().is_end() {
        let from = ChunkPosition::decode(&installer.position().encode()).expect("just encoded");
        let chunk = snapshot.chunk(&from, max_bytes).expect("a position of this snapshot");
        installer.chunk(&chunk.bytes)?;
        assert_eq!(installer.position(), &chunk.next);
    }
    Ok(())
}
