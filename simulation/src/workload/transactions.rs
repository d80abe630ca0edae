//! Transactions over partitions, under everything that happens to a cluster.
//!
//! Those who run them read and append to lists, move money between accounts, and look at everything at once.
//! They drive the commit with the [`Coordinator`] that the real client drives it with, and they are worse than
//! that one: they die in every place where it matters, and leave their locks to whoever meets them. What they
//! saw is judged in the end, see [`Ledger::judge`]:
//!
//! - the lists, and the [registers](crate::registers), tell in which order all of them happened, and who saw what; a
//!   cycle is what no serial order explains (lost updates, write skew, phantoms), and so is one that only real time
//!   closes (a stale read);
//! - whoever looked at all accounts saw the same total;
//! - no lock outlives its owner: see [`leases`](crate::leases).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use dogsled_replication::ring::group_of;
use dogsled_replication::{ClientReply, ClientRequest, Consistency, NodeId};
use dogsled_storage::codec::{decode_group_read_reply, decode_group_reply, encode_group_read};
use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead, Write};
use dogsled_storage::group::{
    Answer, GroupCommand, GroupRead, GroupReadReply, GroupReply, Operation, Refusal,
};
use dogsled_storage::transaction::Prepare;
use dogsled_storage::transaction::coordinator::{
    Coordinator, Phase, Request, Share, home_by_chance, home_in_order,
};
use dogsled_storage::{Command, IVec, Part, Reply, TransactionId, TreeId, Versioned, Vote};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Asked, Client, TRIES, submit};
use crate::registers::{self, Registers};
use crate::serializability::{Anomaly, Key, Number, Transaction, check};
use crate::trace::event;

const LISTS: &str = "lists";
const REGISTERS: &str = "registers";
const REGISTER_KEYS: Key = 3;
const BANK: &str = "bank";
const LIST_KEYS: Key = 5;
const ACCOUNTS: u32 = 4;
/// What an account that is not there holds.
const OPENING: u64 = 100;

fn list_key(key: Key) -> IVec {
    format!("list {key}").as_str().into()
}

fn register_key(key: Key) -> IVec {
    format!("register {key}").as_str().into()
}

fn account(number: u32) -> IVec {
    format!("account {number}").as_str().into()
}

fn numbers(bytes: Option<&IVec>) -> Vec<Number> {
    let chunks = bytes.map(|bytes| bytes.chunks_exact(4)).into_iter().flatten();
    chunks.map(|chunk| chunk.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))).collect()
}

fn appended(bytes: Option<&IVec>, number: Number) -> IVec {
    let mut all = bytes.map_or(Vec::new(), |bytes| bytes.to_vec());
    all.extend(number.to_be_bytes());
    all.into()
}

fn register(bytes: Option<&IVec>) -> Number {
    numbers(bytes).first().copied().unwrap_or(0)
}

fn balance(bytes: Option<&IVec>) -> u64 {
    bytes.map_or(OPENING, |bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// What became of a transaction, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Committed,
    Aborted,
    Unknown,
}

/// What there is in the end.
#[derive(Clone, Debug, Default)]
pub struct Finals {
    /// The lists.
    pub lists: BTreeMap<Key, Vec<Number>>,
    /// The last value of each register; 0: it has none.
    pub registers: BTreeMap<Key, Number>,
    /// What all accounts hold together.
    pub total: u64,
}

/// All transactions that happened, and what there was in the end.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// In whatever order, with what they did to registers.
    pub committed: Vec<(Transaction, Registers)>,
    /// In the end.
    pub finals: Finals,
}

impl Recorded {
    /// Judges it.
    ///
    /// # Errors
    /// What no serial order explains.
    pub fn judge(&self) -> Result<(), Anomaly> {
        let (mut committed, mut finals) = (self.committed.clone(), self.finals.lists.clone());
        registers::add_to(&mut committed, &mut finals, &self.finals.registers)?;
        let committed: Vec<Transaction> = committed.into_iter().map(|(transaction, _)| transaction).collect();
        check(&committed, &finals)
    }
}

/// What was run, and what came of it.
#[derive(Default)]
pub struct Ledger {
    run: Mutex<Vec<(Transaction, Registers, Ended)>>,
    violations: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Ledger {
    fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    /// How much there was of what.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    /// All that happened, given what there is in the end.
    pub fn recorded(&self, finals: Finals) -> Recorded {
        // Whoever writes a register appends to a list as well.
        let happened: BTreeSet<Number> = finals.lists.values().flatten().copied().collect();
        let run = self.run.lock();
        // What is not known has happened if it is to be seen. Its answer never came.
        let committed = run.iter().filter_map(|(transaction, registers, ended)| match ended {
            Ended::Committed => Some((transaction.clone(), registers.clone())),
            Ended::Unknown if happened.contains(&transaction.number) => {
                Some((Transaction { answered: u64::MAX, ..transaction.clone() }, registers.clone()))
            }
            _ => None,
        });
        Recorded { committed: committed.collect(), finals }
    }

    /// What must not be.
    pub fn judge(&self, recorded: &Recorded) -> Vec<String> {
        let mut violations: Vec<String> = self.violations.lock().drain(..).collect();
        let finals = &recorded.finals;
        if let Err(anomaly) = recorded.judge() {
            violations
                .push(format!("transactions are not strictly serializable: {anomaly:?}, of {finals:?}"));
        }
        if finals.total != u64::from(ACCOUNTS) * OPENING {
            violations.push(format!("the accounts hold {} at the end", finals.total));
        }
        violations
    }
}

/// What a transaction has read and wants to write.
#[derive(Default)]
struct Draft {
    reads: Vec<(&'static str, IVec, Option<Versioned>)>,
    ranges: Vec<(u32, &'static str, RangeRead)>,
    writes: Vec<(&'static str, IVec, IVec)>,
    positions: BTreeMap<u32, u64>,
}

impl Draft {
    fn shares(&self, partitions: u32) -> BTreeMap<u32, Share> {
        fn within<'a>(
            shares: &'a mut BTreeMap<u32, Share>,
            group: u32,
            tree: &str,
        ) -> (&'a mut Share, TreeId) {
            let share = shares.entry(group).or_default();
            let index = share.trees.iter().position(|known| *known == tree).unwrap_or_else(|| {
                share.trees.push(tree.into());
                share.trees.len() - 1
            });
            (share, TreeId(index as u32))
        }
        let mut shares = BTreeMap::new();
        for (tree, key, found) in &self.reads {
            let (share, tree) = within(&mut shares, group_of(key, partitions), tree);
            let version = found.as_ref().map_or(0, |found| found.version);
            share.part.reads.push(KeyRead { tree, key: key.clone(), version });
        }
        for (group, tree, range) in &self.ranges {
            let (share, tree) = within(&mut shares, *group, tree);
            share.part.ranges.push(RangeRead { tree, ..range.clone() });
        }
        for (tree, key, value) in &self.writes {
            let (share, tree) = within(&mut shares, group_of(key, partitions), tree);
            share.part.writes.push(Write { tree, key: key.clone(), value: Some(value.clone()) });
        }
        shares
    }
}

/// What came of sending something.
enum Sent {
    Reply(GroupReply),
    /// It was not carried out, and will not be.
    Nothing,
    Unknown,
}

fn plain(operation: Operation) -> GroupCommand {
    GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation }
}

impl Client {
    /// Runs transactions until it is told to stop.
    pub async fn run_transactions(mut self, stop: watch::Receiver<bool>) {
        assert!(self.sessions.is_some(), "parts of transactions are commands of sessions");
        while !*stop.borrow() {
            let ended = match self.random.below(100) {
                0..50 => self.append().await,
                50..65 => self.transfer().await,
                65..80 => self.append_plainly().await,
                80..90 => self.audit().await,
                _ => self.audit_locked().await,
            };
            if ended.is_none() {
                self.shared.ledger.count("given up before they began");
            }
            let wait = self.random.between(self.think_ms.0, self.think_ms.1);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn now(&self) -> u64 {
        self.shared.began.elapsed().as_micros() as u64
    }

    async fn get(&mut self, read: &GroupRead, group: u32, from: NodeId) -> Option<(GroupReadReply, u64)> {
        let request = ClientRequest::Read {
            group,
            deadline: Duration::ZERO,
            consistency: Consistency::Linearizable,
            read: encode_group_read(read).ok()?.into(),
        };
        let mut from = from;
        for _ in 0..3 {
            match self.ask(from, &request).await {
                Asked::Reply(ClientReply::Read { reply, position, .. }) => {
                    return Some((decode_group_read_reply(&reply).ok()?, position));
                }
                Asked::Refused(Some(leader)) => from = leader,
                _ => from = *self.random.pick(&self.shared.nodes.lock()),
            }
            let wait = self.random.between(5, 50);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        None
    }

    async fn read_into(&mut self, draft: &mut Draft, tree: &'static str, key: IVec) -> Option<Option<IVec>> {
        let group = group_of(&key, self.shared.partitions);
        let from = *self.random.pick(&self.shared.nodes.lock());
        let read = GroupRead::Get { tree: tree.into(), key: key.clone() };
        let (reply, position) = self.get(&read, group, from).await?;
        let GroupReadReply::Value(found) = reply else { return None };
        let value = found.as_ref().map(|found| found.value.clone());
        draft.positions.entry(group).or_insert(position);
        draft.reads.push((tree, key, found));
        Some(value)
    }

    /// Reads all of a tree, as a range in every group.
    async fn scan_into(&mut self, draft: &mut Draft, tree: &'static str) -> Option<BTreeMap<IVec, IVec>> {
        let mut all = BTreeMap::new();
        for group in 1..=self.shared.partitions {
            let from = *self.random.pick(&self.shared.nodes.lock());
            let read = GroupRead::Range {
                tree: tree.into(),
                low: Bound::Unbounded,
                high: Bound::Unbounded,
                reverse: false,
                limit: 1_000,
                limit_bytes: 1 << 20,
                values: true,
            };
            let (reply, position) = self.get(&read, group, from).await?;
            let GroupReadReply::Page { entries, more: false } = reply else { return None };
            let mut fingerprint = RangeFingerprint::default();
            entries.iter().for_each(|(_, found)| fingerprint.add(found.version));
            let range = RangeRead {
                tree: TreeId(0),
                low: IVec::new(),
                high: None,
                count: entries.len() as u64,
                fingerprint: fingerprint.finish(),
            };
            draft.positions.entry(group).or_insert(position);
            draft.ranges.push((group, tree, range));
            all.extend(entries.into_iter().map(|(key, found)| (key, found.value)));
        }
        Some(all)
    }

    /// Reads some lists and registers, appends to some of the lists and sets some of the registers.
    async fn append(&mut self) -> Option<Ended> {
        let number = self.new_value() as Number;
        let mut transaction = Transaction { number, begun: self.now(), ..Transaction::default() };
        let mut draft = Draft::default();
        let mut values: BTreeMap<Key, Option<IVec>> = BTreeMap::new();
        if self.random.chance(200) {
            // All of them: what is not there is a part of what was seen.
            let all = self.scan_into(&mut draft, LISTS).await?;
            values.extend((0..LIST_KEYS).map(|key| (key, all.get(&list_key(key)).cloned())));
        } else {
            for _ in 0..self.random.between(1, 3) {
                let key = self.random.below(u64::from(LIST_KEYS)) as Key;
                if let Entry::Vacant(place) = values.entry(key) {
                    place.insert(self.read_into(&mut draft, LISTS, list_key(key)).await?);
                }
            }
        }
        let mut registers = Registers::default();
        if self.random.chance(400) {
            for _ in 0..self.random.between(1, 2) {
                let key = self.random.below(u64::from(REGISTER_KEYS)) as Key;
                if let Entry::Vacant(place) = registers.reads.entry(key) {
                    let found = self.read_into(&mut draft, REGISTERS, register_key(key)).await?;
                    place.insert(register(found.as_ref()));
                    if self.random.chance(600) {
                        draft.writes.push((REGISTERS, register_key(key), number.to_be_bytes().into()));
                        registers.writes.insert(key);
                    }
                }
            }
            self.shared.ledger.count("with registers");
        }
        for (key, value) in &values {
            transaction.reads.insert(*key, numbers(value.as_ref()));
            if transaction.appends.is_empty() || self.random.chance(500) {
                draft.writes.push((LISTS, list_key(*key), appended(value.as_ref(), number)));
                transaction.appends.insert(*key);
            }
        }
        let ended = self.commit(&draft, number).await;
        transaction.answered = self.now();
        event!(
            self.shared.trace,
            "client {} appends {number} to {:?} and sets {:?}: {ended:?}",
            self.number,
            transaction.appends,
            registers.writes
        );
        self.shared.ledger.run.lock().push((transaction, registers, ended));
        Some(ended)
    }

    /// Appends to a list by commands that know nothing of transactions.
    async fn append_plainly(&mut self) -> Option<Ended> {
        let number = self.new_value() as Number;
        let mut transaction = Transaction { number, begun: self.now(), ..Transaction::default() };
        let key = self.random.below(u64::from(LIST_KEYS)) as Key;
        let value = self.read_into(&mut Draft::default(), LISTS, list_key(key)).await?;
        transaction.reads.insert(key, numbers(value.as_ref()));
        transaction.appends.insert(key);
        let swap = Command::CompareAndSwap {
            tree: TreeId(0),
            key: list_key(key),
            new: Some(appended(value.as_ref(), number)),
            old: value,
        };
        let group = group_of(&list_key(key), self.shared.partitions);
        let ended = match self.send_numbered(group, vec![LISTS.into()], Operation::Command(swap)).await {
            Sent::Reply(reply) => match reply.result {
                Ok(Answer::Reply(Reply::Swapped(swapped))) => {
                    if swapped.is_ok() {
                        Ended::Committed
                    } else {
                        Ended::Aborted
                    }
                }
                other => {
                    self.violation(format!("a swap was answered by {other:?}"));
                    Ended::Unknown
                }
            },
            Sent::Nothing => Ended::Aborted,
            Sent::Unknown => Ended::Unknown,
        };
        transaction.answered = self.now();
        event!(self.shared.trace, "client {} swaps {number} into {key}: {ended:?}", self.number);
        self.shared.ledger.run.lock().push((transaction, Registers::default(), ended));
        Some(ended)
    }

    async fn transfer(&mut self) -> Option<Ended> {
        let number = self.new_value() as Number;
        let from = self.random.below(u64::from(ACCOUNTS)) as u32;
        let to = (from + self.random.between(1, u64::from(ACCOUNTS) - 1) as u32) % ACCOUNTS;
        let mut draft = Draft::default();
        let left = balance(self.read_into(&mut draft, BANK, account(from)).await?.as_ref());
        let right = balance(self.read_into(&mut draft, BANK, account(to)).await?.as_ref());
        let amount = self.random.between(1, 60).min(left);
        draft.writes.push((BANK, account(from), (left - amount).to_be_bytes().into()));
        draft.writes.push((BANK, account(to), (right + amount).to_be_bytes().into()));
        let ended = self.commit(&draft, number).await;
        event!(self.shared.trace, "client {} moves {amount} from {from} to {to}: {ended:?}", self.number);
        Some(ended)
    }

    /// Looks at everything, and once more whether it was so at one moment.
    async fn audit(&mut self) -> Option<Ended> {
        let number = self.new_value() as Number;
        let mut transaction = Transaction { number, begun: self.now(), ..Transaction::default() };
        let mut draft = Draft::default();
        let mut total = 0;
        for number in 0..ACCOUNTS {
            total += balance(self.read_into(&mut draft, BANK, account(number)).await?.as_ref());
        }
        for key in 0..LIST_KEYS {
            let value = self.read_into(&mut draft, LISTS, list_key(key)).await?;
            transaction.reads.insert(key, numbers(value.as_ref()));
        }
        for (group, share) in draft.shares(self.shared.partitions) {
            let Share { trees, part } = share;
            let since = draft.positions.get(&group).copied();
            let read =
                GroupRead::Validate { trees, reads: part.reads, ranges: part.ranges, since, under: None };
            let from = *self.random.pick(&self.shared.nodes.lock());
            let (reply, _) = self.get(&read, group, from).await?;
            if reply != GroupReadReply::Valid(true) {
                self.shared.ledger.count("audits disturbed");
                return Some(Ended::Aborted);
            }
        }
        self.shared.ledger.count("audits");
        transaction.answered = self.now();
        self.audited(total, transaction);
        Some(Ended::Committed)
    }

    /// Looks at everything while it is locked against being written; sometimes for longer than the lease, and
    /// sometimes without giving the locks back.
    async fn audit_locked(&mut self) -> Option<Ended> {
        let number = self.new_value() as Number;
        let mut transaction = Transaction { number, begun: self.now(), ..Transaction::default() };
        let id = TransactionId((u128::from(self.number) << 64) | u128::from(number));
        let mut wanted = Draft::default();
        let accounts = (0..ACCOUNTS).map(|number| (BANK, account(number), None));
        wanted.reads.extend(accounts.chain((0..LIST_KEYS).map(|key| (LISTS, list_key(key), None))));
        let shares = wanted.shares(self.shared.partitions);
        let groups: Vec<u32> = shares.keys().copied().collect();
        let home = *self.random.pick(&groups);
        let lease_ms = *self.random.pick(&[100, 1_500, 4_000]);
        let decide_by_ms = match self.send(home, &plain(Operation::Nothing), true).await {
            Sent::Reply(reply) => reply.time_ms + lease_ms,
            _ => return None,
        };
        let mut all_locked = true;
        for (group, Share { trees, part }) in shares {
            let prepare = Prepare { transaction: id, home, decide_by_ms, lease_ms, only_lock: true, part };
            match self.send_numbered(group, trees, Operation::Prepare(prepare)).await {
                Sent::Reply(GroupReply { result: Ok(Answer::Vote(Vote::Yes)), .. }) => {}
                Sent::Reply(other) => {
                    self.violation(format!("who only locks was answered by {other:?}"));
                    all_locked = false;
                }
                Sent::Nothing | Sent::Unknown => all_locked = false,
            }
        }
        let mut draft = Draft::default();
        let seen = if all_locked { self.look_at_all(&mut draft, &mut transaction, id).await } else { None };
        if self.random.chance(100) {
            self.shared.ledger.count("locked audits that left their locks");
        } else {
            for group in groups {
                let resolve = Operation::Resolve { transaction: id, commit: false };
                let _ = self.send(group, &plain(resolve), true).await;
            }
        }
        match seen {
            Some(total) => {
                self.shared.ledger.count("locked audits");
                self.audited(total, transaction);
                Some(Ended::Committed)
            }
            None => {
                self.shared.ledger.count("locked audits disturbed");
                Some(Ended::Aborted)
            }
        }
    }

    /// Reads accounts and lists, and looks whether all is still so and still locked; the total.
    async fn look_at_all(
        &mut self,
        draft: &mut Draft,
        transaction: &mut Transaction,
        id: TransactionId,
    ) -> Option<u64> {
        let mut total = 0;
        for number in 0..ACCOUNTS {
            total += balance(self.read_into(draft, BANK, account(number)).await?.as_ref());
        }
        for key in 0..LIST_KEYS {
            let value = self.read_into(draft, LISTS, list_key(key)).await?;
            transaction.reads.insert(key, numbers(value.as_ref()));
        }
        for (group, Share { trees, part }) in draft.shares(self.shared.partitions) {
            let (reads, ranges) = (part.reads, part.ranges);
            let read = GroupRead::Validate { trees, reads, ranges, since: None, under: Some(id) };
            let from = *self.random.pick(&self.shared.nodes.lock());
            let (reply, _) = self.get(&read, group, from).await?;
            if reply != GroupReadReply::Valid(true) {
                return None;
            }
        }
        transaction.answered = self.now();
        Some(total)
    }

    fn audited(&self, total: u64, transaction: Transaction) {
        if total != u64::from(ACCOUNTS) * OPENING {
            let what = format!("client {} has seen accounts that hold {total}", self.number);
            self.shared.ledger.violations.lock().push(what);
        }
        self.shared.ledger.run.lock().push((transaction, Registers::default(), Ended::Committed));
    }

    async fn commit(&mut self, draft: &Draft, number: Number) -> Ended {
        let mut shares = draft.shares(self.shared.partitions);
        let ended = if shares.len() == 1 {
            let (group, share) = shares.pop_first().expect("there is one");
            self.commit_in_one(group, share).await
        } else {
            self.commit_in_several(shares, number).await
        };
        self.shared.ledger.count(match ended {
            Ended::Committed => "committed",
            Ended::Aborted => "aborted",
            Ended::Unknown => "unknown",
        });
        ended
    }

    async fn commit_in_one(&mut self, group: u32, Share { trees, part }: Share) -> Ended {
        let Part { reads, ranges, writes, expiries } = part;
        let command = Command::Transact { reads, ranges, writes, expiries };
        match self.send_numbered(group, trees, Operation::Command(command)).await {
            Sent::Reply(reply) => match reply.result {
                Ok(Answer::Reply(Reply::Done)) => Ended::Committed,
                Ok(Answer::Reply(Reply::Conflict)) => Ended::Aborted,
                other => {
                    self.violation(format!("a transaction was answered by {other:?}"));
                    Ended::Unknown
                }
            },
            Sent::Nothing => Ended::Aborted,
            Sent::Unknown => Ended::Unknown,
        }
    }

    async fn commit_in_several(&mut self, shares: BTreeMap<u32, Share>, number: Number) -> Ended {
        let home = if self.random.chance(300) {
            home_in_order(&shares)
        } else {
            home_by_chance(&shares, self.random.number())
        };
        let lease_ms = *self.random.pick(&[300, 1_500, 4_000]);
        let decide_by_ms = match self.send(home, &plain(Operation::Nothing), true).await {
            Sent::Reply(reply) => reply.time_ms + lease_ms,
            _ => return Ended::Aborted,
        };
        let id = TransactionId((u128::from(self.number) << 64) | u128::from(number));
        let mut coordinator = Coordinator::new(id, home, decide_by_ms, shares);
        for group in coordinator.participants() {
            if self.random.chance(20) {
                self.shared.ledger.count("died before the decision");
                return Ended::Aborted;
            }
            let Request { trees, operation } = coordinator.prepare(group, lease_ms);
            match self.send_numbered(group, trees, operation).await {
                Sent::Reply(GroupReply { result: Ok(Answer::Vote(vote)), .. }) => {
                    coordinator.voted(group, Some(vote));
                }
                Sent::Reply(other) => self.violation(format!("a prepare was answered by {other:?}")),
                Sent::Nothing | Sent::Unknown => coordinator.voted(group, None),
            }
            if coordinator.phase() == Phase::Aborted {
                break;
            }
        }
        if self.random.chance(40) {
            self.shared.ledger.count("died before the decision");
            return Ended::Aborted;
        }
        if let Some(Request { trees, operation }) = coordinator.commit() {
            match self.send_numbered(home, trees, operation).await {
                Sent::Reply(GroupReply { result: Ok(Answer::Decided(decision)), .. }) => {
                    coordinator.decided(&decision);
                }
                Sent::Reply(other) => self.violation(format!("a commit was answered by {other:?}")),
                Sent::Nothing => coordinator.not_sent(),
                Sent::Unknown => {
                    let settle = plain(Operation::Settle { transaction: id, decide_by_ms });
                    if let Sent::Reply(GroupReply { result: Ok(Answer::Decided(decision)), .. }) =
                        self.send(home, &settle, true).await
                    {
                        coordinator.decided(&decision);
                    }
                }
            }
        }
        let ended = match coordinator.phase() {
            Phase::Committed => Ended::Committed,
            Phase::Aborted => Ended::Aborted,
            Phase::Preparing | Phase::Deciding => return Ended::Unknown,
        };
        if self.random.chance(80) {
            self.shared.ledger.count("died after the decision");
            return ended;
        }
        for (group, operation) in coordinator.resolves() {
            let told = self.send(group, &plain(operation), true).await;
            if matches!(told, Sent::Reply(GroupReply { result: Ok(Answer::Done), .. })) {
                coordinator.resolved(group);
            }
        }
        if coordinator.may_be_forgotten() && self.random.chance(900) {
            let forget = plain(Operation::Forget { transactions: vec![id] });
            let _ = self.send(home, &forget, true).await;
        }
        ended
    }

    /// Sends an operation under the next number of the session in a group, until the outcome is known.
    async fn send_numbered(&mut self, group: u32, trees: Vec<IVec>, operation: Operation) -> Sent {
        let Some(tag) = self.tag(group).await else { return Sent::Nothing };
        let command = GroupCommand { session: Some(tag), time_ms: 0, trees, operation };
        let sent = self.send(group, &command, true).await;
        if let Sent::Reply(GroupReply { result: Err(Refusal::SessionUnknown(_)), .. }) = &sent
            && let Some(sessions) = &mut self.sessions
        {
            sessions.remove(&group);
            // Whether this came from a try that was heard of at once is not looked at.
            return Sent::Unknown;
        }
        sent
    }

    /// Sends a command that may be repeated, until it is answered or patience is at an end.
    async fn send(&mut self, group: u32, command: &GroupCommand, repeat: bool) -> Sent {
        let Some(request) = submit(group, command) else { return Sent::Nothing };
        let mut maybe = false;
        for _ in 0..TRIES {
            match self.ask(self.favourite, &request).await {
                Asked::Reply(ClientReply::Applied(reply)) => match decode_group_reply(&reply) {
                    Ok(reply) => {
                        self.shared.log.note(group, &reply);
                        return Sent::Reply(reply);
                    }
                    Err(error) => {
                        self.violation(format!("a reply cannot be read: {error}"));
                        return Sent::Unknown;
                    }
                },
                Asked::Reply(other) => {
                    self.violation(format!("a command was answered by {other:?}"));
                    return Sent::Unknown;
                }
                Asked::Refused(hint) => self.go_on(hint).await,
                Asked::Unknown => {
                    maybe = true;
                    self.go_on(None).await;
                    if !repeat {
                        break;
                    }
                }
            }
        }
        if maybe { Sent::Unknown } else { Sent::Nothing }
    }

    /// What there is as of now, from one node; `None` if it does not answer.
    pub async fn read_finals(&mut self, node: NodeId) -> Option<Finals> {
        let mut finals = Finals::default();
        for key in 0..LIST_KEYS {
            let found = self.value_at(LISTS, list_key(key), node).await?;
            finals.lists.insert(key, numbers(found.as_ref()));
        }
        for key in 0..REGISTER_KEYS {
            let found = self.value_at(REGISTERS, register_key(key), node).await?;
            finals.registers.insert(key, register(found.as_ref()));
        }
        for number in 0..ACCOUNTS {
            finals.total += balance(self.value_at(BANK, account(number), node).await?.as_ref());
        }
        Some(finals)
    }

    async fn value_at(&mut self, tree: &str, key: IVec, node: NodeId) -> Option<Option<IVec>> {
        let group = group_of(&key, self.shared.partitions);
        let (reply, _) = self.get(&GroupRead::Get { tree: tree.into(), key }, group, node).await?;
        match reply {
            GroupReadReply::Value(found) => Some(found.map(|found| found.value)),
            _ => None,
        }
    }
}
