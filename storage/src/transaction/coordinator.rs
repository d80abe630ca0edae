//! [`Coordinator`]: what whoever drives a transaction over several groups does next. No I/O: it is told
//! what was heard, and says what to send.
//!
//! ```text
//!             all said yes            committed
//! preparing ───────────────► deciding ─────────► committed ─► resolve, then forget
//!     │ anything else           │ aborted
//!     └──────────► aborted ◄────┘                             resolve
//! ```
//!
//! Rules that the promise of the [module above](super) hangs on, kept here in one place:
//!
//! - Commit is sent only when **every** participant has said yes, and never after anything else was
//!   heard or given up: an abort is final, because participants may have been told.
//! - While it is not known what home has decided, nothing is resolved: whoever is in doubt asks home.
//! - Home forgets a commit only when every participant has resolved it.
//!
//! # No two refuse each other for ever
//!
//! The parts may be prepared all at once, which is quick, and when two transactions want the same
//! keys, each may get one and be refused the other. Whoever begins anew waits for a random while
//! first, longer each time; and with [`home_in_order`], prepares one group after the other, in the order
//! of their numbers, home last. Of those that do so, the one that holds the highest group meets
//! nobody but who is further on: some one of them gets through.

use std::collections::BTreeMap;

use super::{Commit, Decision, Part, Prepare, TransactionId, Vote};
use crate::IVec;
use crate::group::Operation;

/// What a transaction has to do in one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Share {
    /// The trees that the part refers to by index.
    pub trees: Vec<IVec>,
    /// What was read, and is to be written.
    pub part: Part,
}

/// An operation, and the trees that it refers to by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`GroupCommand::trees`](crate::GroupCommand::trees).
    pub trees: Vec<IVec>,
    /// What to do.
    pub operation: Operation,
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not all participants have said yes.
    Preparing,
    /// Commit was, or may be, sent; what came of it is not known.
    Deciding,
    /// It has happened.
    Committed,
    /// It has not, and will not.
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Participant {
    /// Prepare may have been carried out.
    Asked,
    Yes,
    /// Nothing is prepared there (any more).
    Done,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    transaction: TransactionId,
    home: u32,
    decide_by_ms: u64,
    shares: BTreeMap<u32, Share>,
    participants: BTreeMap<u32, Participant>,
    phase: Phase,
}

/// The home of a transaction that prepares its groups one after the other: the last of them.
///
/// # Panics
/// If there are no groups.
pub fn home_in_order(shares: &BTreeMap<u32, Share>) -> u32 {
    *shares.keys().next_back().expect("a transaction has groups")
}

/// A home by chance, among the groups that are written to if there are any.
///
/// # Panics
/// If there are no groups.
pub fn home_by_chance(shares: &BTreeMap<u32, Share>, random: u64) -> u32 {
    let written = || shares.iter().filter(|(_, share)| !share.part.only_reads());
    let among = if written().next().is_some() {
        written().map(|(group, _)| *group).collect::<Vec<_>>()
    } else {
        shares.keys().copied().collect()
    };
    among[(random % among.len() as u64) as usize]
}

impl Coordinator {
    /// Begins a transaction with a share in each of several groups, under a number that was never used.
    ///
    /// # Panics
    /// If home has no share.
    pub fn new(
        transaction: TransactionId,
        home: u32,
        decide_by_ms: u64,
        shares: BTreeMap<u32, Share>,
    ) -> Coordinator {
        assert!(shares.contains_key(&home), "group {home} is no part of transaction {transaction}");
        let participants = shares.keys().filter(|group| **group != home);
        let participants = participants.map(|group| (*group, Participant::Done)).collect();
        Coordinator { transaction, home, decide_by_ms, shares, participants, phase: Phase::Preparing }
    }

    /// The transaction's number.
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// The group that decides.
    pub fn home(&self) -> u32 {
        self.home
    }

    /// As in [`Commit`].
    pub fn decide_by_ms(&self) -> u64 {
        self.decide_by_ms
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The groups other than home, in order.
    pub fn participants(&self) -> Vec<u32> {
        self.participants.keys().copied().collect()
    }

    /// What to send to a participant: once for each, as a numbered command of a session.
    ///
    /// # Panics
    /// If it was taken before, or the group is no participant.
    pub fn prepare(&mut self, group: u32, lease_ms: u64) -> Request {
        let participant = self.participants.get_mut(&group).expect("it is a participant");
        *participant = Participant::Asked;
        let Share { trees, part } = self.shares.remove(&group).expect("it is asked once");
        let Coordinator { transaction, home, decide_by_ms, .. } = *self;
        let prepare = Prepare { transaction, home, decide_by_ms, lease_ms, only_lock: false, part };
        Request { trees, operation: Operation::Prepare(prepare) }
    }

    /// What a participant has said; `None`: nothing was heard, and no more will be listened for.
    pub fn voted(&mut self, group: u32, vote: Option<Vote>) {
        let participant = self.participants.get_mut(&group).expect("it is a participant");
        *participant = match vote {
            Some(Vote::Yes) => Participant::Yes,
            Some(Vote::Conflict | Vote::Locked(_)) => Participant::Done,
            None => Participant::Asked,
        };
        if *participant != Participant::Yes {
            self.abort();
        }
    }

    /// Gives it up, unless it is too late for that.
    pub fn abort(&mut self) {
        if self.phase == Phase::Preparing {
            self.phase = Phase::Aborted;
        }
    }

    /// What to send to home, once all participants have said yes: once, as a numbered command of a
    /// session. `None` if it is not to be sent (any more).
    pub fn commit(&mut self) -> Option<Request> {
        let all = self.participants.values().all(|participant| *participant == Participant::Yes);
        if self.phase != Phase::Preparing || !all {
            return None;
        }
        self.phase = Phase::Deciding;
        let Share { trees, part } = self.shares.remove(&self.home).expect("it is asked once");
        let participants = self.participants();
        let Coordinator { transaction, decide_by_ms, .. } = *self;
        let commit = Commit { transaction, decide_by_ms, participants, part };
        Some(Request { trees, operation: Operation::Commit(commit) })
    }

    /// Commit certainly was not, and will not be, carried out.
    pub fn not_sent(&mut self) {
        if self.phase == Phase::Deciding {
            self.phase = Phase::Aborted;
        }
    }

    /// What home has decided, whoever was told.
    ///
    /// # Panics
    /// If home has decided otherwise before.
    pub fn decided(&mut self, decision: &Decision) {
        let phase = match decision {
            Decision::Committed => Phase::Committed,
            Decision::Aborted(_) => Phase::Aborted,
        };
        assert!(
            matches!(self.phase, Phase::Deciding) || self.phase == phase,
            "transaction {} is {:?}, and home says {decision:?}",
            self.transaction,
            self.phase
        );
        self.phase = phase;
    }

    /// Whom to tell the decision, and what to send; it may be sent again.
    pub fn resolves(&self) -> Vec<(u32, Operation)> {
        let commit = match self.phase {
            Phase::Preparing | Phase::Deciding => return Vec::new(),
            Phase::Committed => true,
            Phase::Aborted => false,
        };
        let transaction = self.transaction;
        let prepared = self.participants.iter().filter(|(_, state)| **state != Participant::Done);
        prepared.map(|(group, _)| (*group, Operation::Resolve { transaction, commit })).collect()
    }

    /// A participant has resolved.
    pub fn resolved(&mut self, group: u32) {
        if let Some(participant) = self.participants.get_mut(&group) {
            *participant = Participant::Done;
        }
    }

    /// Whether home need not remember a commit any more.
    pub fn may_be_forgotten(&self) -> bool {
        self.phase == Phase::Committed
            && self.participants.values().all(|participant| *participant == Participant::Done)
    }
}
