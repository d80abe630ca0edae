//! A group of one replica, to which entries are applied one after the other.

use std::sync::Arc;

use dogsled_storage::codec::encode_group_command;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::transaction::Prepare;
use dogsled_storage::{
    Answer, Command, GroupCommand, GroupRead, GroupReadReply, IVec, Operation, Part, Refusal, Replica, Reply,
    SessionId, SessionTag, TransactionId, Versioned, Vote,
};

use super::{open_wal, options};

/// The group that decides on what is prepared here.
pub const HOME: u32 = 2;

pub struct Group {
    pub replica: Arc<Replica>,
    pub time_ms: u64,
    /// Of what is prepared.
    pub lease_ms: u64,
    pub sequence: u64,
    /// What every command names.
    pub trees: Vec<IVec>,
}

impl Group {
    /// In which session 1 is open.
    pub fn new(trees: &[&str]) -> Group {
        let disk = SimulatedDisk::new(1);
        let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
        let mut group = Group::of(replica, trees);
        group.plain(Operation::OpenSession { session: SessionId(1), lease_ms: 1 << 40 }).unwrap();
        group
    }

    /// Of a replica that is there.
    pub fn of(replica: Arc<Replica>, trees: &[&str]) -> Group {
        let trees = trees.iter().map(|tree| IVec::from(*tree)).collect();
        Group { replica, time_ms: 1_000, lease_ms: 10_000, sequence: 0, trees }
    }

    pub fn position(&self) -> u64 {
        self.replica.applied().position
    }

    pub fn apply(&mut self, session: Option<SessionTag>, operation: Operation) -> Result<Answer, Refusal> {
        let trees = self.trees.clone();
        let command = GroupCommand { session, time_ms: self.time_ms, trees, operation };
        let position = self.position() + 1;
        self.replica.apply(position, None, &encode_group_command(&command).unwrap()).unwrap().result
    }

    pub fn plain(&mut self, operation: Operation) -> Result<Answer, Refusal> {
        self.apply(None, operation)
    }

    pub fn numbered(&mut self, operation: Operation) -> Result<Answer, Refusal> {
        self.sequence += 1;
        let session = SessionTag { session: SessionId(1), slot: 0, sequence: self.sequence };
        self.apply(Some(session), operation)
    }

    pub fn command(&mut self, command: Command) -> Result<Reply, Refusal> {
        match self.plain(Operation::Command(command))? {
            Answer::Reply(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub fn prepare_or_lock(
        &mut self,
        transaction: u128,
        part: Part,
        only_lock: bool,
    ) -> Result<Answer, Refusal> {
        self.numbered(Operation::Prepare(Prepare {
            transaction: TransactionId(transaction),
            home: HOME,
            decide_by_ms: 9_000,
            lease_ms: self.lease_ms,
            only_lock,
            part,
        }))
    }

    pub fn prepare(&mut self, transaction: u128, part: Part) -> Result<Vote, Refusal> {
        match self.prepare_or_lock(transaction, part, false)? {
            Answer::Vote(vote) => Ok(vote),
            other => panic!("{other:?}"),
        }
    }

    pub fn resolve(&mut self, transaction: u128, commit: bool) {
        let resolve = Operation::Resolve { transaction: TransactionId(transaction), commit };
        assert_eq!(self.plain(resolve), Ok(Answer::Done));
    }

    /// What is stored of a key of the tree `t`.
    pub fn found(&self, key: &str) -> Option<Versioned> {
        match self.replica.read(&GroupRead::Get { tree: "t".into(), key: key.into() }).unwrap() {
            GroupReadReply::Value(found) => found,
            other => panic!("{other:?}"),
        }
    }

    pub fn version(&self, key: &str) -> u64 {
        self.found(key).map_or(0, |found| found.version)
    }
}
