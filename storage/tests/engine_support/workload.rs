//! Random commands over few keys and trees, so that they meet.

use std::sync::Arc;

use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::counter::{CounterAddition, CounterCommand};
use dogsled_storage::lock::{FencingToken, LockCommand, LockRequest};
use dogsled_storage::model::ModelState;
use dogsled_storage::strings::{SetOnly, StringAction, StringsOperation};
use dogsled_storage::{
    Command, ExpiryCommand, Fence, IVec, OwnedCommand, QuotaLimit, SessionId, SetIf, TreeId, Versioned, View,
    When, Write,
};

use super::Random;

/// What a workload is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How many keys there are.
    pub keys: u64,
    /// Most bytes of a value; most are far smaller.
    pub largest_value: u64,
    /// Most writes of a batch.
    pub largest_batch: u64,
}

impl Shape {
    /// Few keys and short values: every command meets something.
    pub const SMALL: Shape = Shape { keys: 40, largest_value: 3000, largest_batch: 12 };
}

/// Makes commands; see the [module](self).
#[derive(Clone, Debug)]
pub struct Workload {
    pub random: Random,
    shape: Shape,
    /// Makes every value different from all before it.
    written: u64,
    /// States from which stale transactions take their reads.
    past: Vec<Arc<ModelState>>,
    /// Grants that were handed out, and may be over.
    grants: Vec<(IVec, IVec, FencingToken)>,
    /// Tickets that were handed out, and may be over.
    waiting: Vec<(IVec, u64)>,
}

const TREE_NAMES: [&str; 4] = ["amber", "birch", "cedar", ""];
const COUNTERS: [&str; 3] = ["visits", "seats", "x"];
const LOCKS: [&str; 2] = ["printer", "door"];
const OWNERS: [&str; 3] = ["ann", "ben", ""];

impl Workload {
    pub fn new(seed: u64, shape: Shape) -> Workload {
        let (past, grants) = (Vec::new(), Vec::new());
        let waiting = Vec::new();
        Workload { random: Random::new(seed), shape, written: 0, past, grants, waiting }
    }

    /// One of the keys; among them the empty one, one with zeros, prefixes of others, a long one.
    pub fn key(&mut self) -> IVec {
        let number = self.random.below(self.shape.keys);
        match number {
            0 => IVec::from(""),
            1 => IVec::from(&b"k\0"[..]),
            2 => IVec::from("k"),
            3 => IVec::from(vec![b'l'; 700]),
            4 => IVec::from(&b"\xff\xff"[..]),
            _ if number.is_multiple_of(7) => {
                IVec::from(format!("k{number:05}-and-a-tail-beyond-the-inline-thirty"))
            }
            _ => IVec::from(format!("k{number:05}")),
        }
    }

    /// A value that was never written before, unless it is too short to differ.
    pub fn value(&mut self) -> IVec {
        self.written += 1;
        let length = match self.random.below(10) {
            0 => 0,
            1..=5 => self.random.below(24),
            6 => 28 + self.random.below(5),
            7 | 8 => self.random.below(200),
            _ => self.random.below(self.shape.largest_value + 1),
        };
        let mut bytes = format!("{:x}.", self.written).into_bytes();
        let start = bytes.len();
        bytes.resize(length.max(start as u64) as usize, 0);
        if length == 0 {
            return IVec::from("");
        }
        for (index, byte) in bytes[start..].iter_mut().enumerate() {
            *byte = (self.written as usize * 31 + index) as u8;
        }
        IVec::from(bytes)
    }

    /// A tree, mostly one that exists.
    pub fn tree(&mut self, model: &ModelState) -> TreeId {
        if self.random.one_in(40) {
            return TreeId(16 + self.random.below(30) as u32);
        }
        if self.random.one_in(2) {
            return TreeId::DEFAULT;
        }
        let users: Vec<TreeId> = model.names().map(|(_, id)| id).filter(|id| !id.is_system()).collect();
        *self.random.pick(&users)
    }

    fn write(&mut self, model: &ModelState) -> Write {
        let tree = self.tree(model);
        let key = self.key();
        let value = if self.random.one_in(3) { None } else { Some(self.value()) };
        Write { tree, key, value }
    }

    fn writes(&mut self, model: &ModelState) -> Vec<Write> {
        let count = 1 + self.random.below(self.shape.largest_batch);
        // Drawing trees that do not exist for one write of many would fail most batches.
        let mut writes: Vec<Write> = (0..count).map(|_| self.write(model)).collect();
        if !self.random.one_in(10) {
            writes.retain(|write| model.has_tree(write.tree));
        }
        writes
    }

    /// Remembers a state, for transactions whose reads are out of date.
    fn remember(&mut self, model: &ModelState) {
        if self.random.one_in(20) {
            if self.past.len() == 8 {
                self.past.remove(0);
            }
            self.past.push(Arc::new(model.clone()));
        }
    }

    /// Tells the workload of somebody who waits, so that it asks again and leaves.
    pub fn waits(&mut self, name: &IVec, ticket: u64) {
        self.waiting.push((name.clone(), ticket));
        if self.waiting.len() > 4 {
            self.waiting.remove(0);
        }
    }

    /// A fence, mostly of a grant that was given.
    pub fn fence(&mut self) -> Fence {
        if self.grants.is_empty() || self.random.one_in(5) {
            let token = FencingToken(self.random.below(100));
            return Fence { lock: IVec::from(*self.random.pick(&LOCKS)), token };
        }
        let (lock, _, token) = self.random.pick(&self.grants).clone();
        Fence { lock, token }
    }

    /// A command of those that [`Plain`](super) models do not know: times to live, queues of locks,
    /// several counters.
    pub fn coordination(&mut self, model: &ModelState) -> Command {
        let now_ms = model.time_ms();
        match self.random.below(20) {
            0..=2 => Command::SettleDue { limit: 1 + self.random.below(6) as u32 },
            3 => Command::CountMany {
                additions: (0..self.random.below(5))
                    .map(|_| CounterAddition {
                        name: IVec::from(*self.random.pick(&COUNTERS)),
                        delta: self.random.below(9) as i64 - 4,
                    })
                    .collect(),
            },
            4 => Command::Counter(CounterCommand::SetIf {
                name: IVec::from(*self.random.pick(&COUNTERS)),
                expected: self.random.below(3) as i64,
                value: self.random.below(5) as i64,
            }),
            12 | 13 => self.strings(model),
            5..=11 => {
                let name = IVec::from(*self.random.pick(&LOCKS));
                let owner = IVec::from(*self.random.pick(&OWNERS));
                Command::Lock(match self.random.below(6) {
                    0 if !self.waiting.is_empty() => {
                        let (name, ticket) = self.random.pick(&self.waiting).clone();
                        LockCommand::CancelWait { name, ticket }
                    }
                    1 if !self.waiting.is_empty() => {
                        let (name, ticket) = self.random.pick(&self.waiting).clone();
                        LockCommand::RenewWait { name, ticket, wait_ms: 1 + self.random.below(300) }
                    }
                    _ => {
                        // The lock of one name is mostly a plain one, that of the other a semaphore.
                        let capacity = if name == "door" || self.random.one_in(9) { 3 } else { 1 };
                        let request = LockRequest {
                            permits: 1 + self.random.below(capacity) as u32,
                            capacity: capacity as u32,
                            lease_ms: 1 + self.random.below(300),
                            delay_ms: if self.random.one_in(4) { self.random.below(100) } else { 0 },
                        };
                        let wait_ms = if self.random.one_in(3) { 0 } else { 1 + self.random.below(500) };
                        LockCommand::Acquire { name, owner, request, wait_ms }
                    }
                })
            }
            _ => {
                let (tree, key) = (self.tree(model), self.key());
                let when = match self.random.below(8) {
                    0 => When::Keep,
                    1 => When::At(now_ms.saturating_sub(self.random.below(20))),
                    2 => When::At(now_ms + self.random.below(200)),
                    _ => When::After(self.random.below(200)),
                };
                let current =
                    || model.tree(tree).and_then(|tree| tree.get(&key)).map(|found| found.value.clone());
                Command::Expiry(match self.random.below(8) {
                    0 => ExpiryCommand::Clear { tree, key },
                    1 => ExpiryCommand::Get { tree, key },
                    2 => ExpiryCommand::Swap { tree, old: current(), key, new: self.value(), when },
                    3 | 4 => {
                        let only = [SetIf::Always, SetIf::None, SetIf::Some, SetIf::Later, SetIf::Earlier];
                        ExpiryCommand::Set { tree, key, when, only: *self.random.pick(&only) }
                    }
                    _ => ExpiryCommand::Insert { tree, key, value: self.value(), when },
                })
            }
        }
    }

    /// Operations on strings, mostly several.
    fn strings(&mut self, model: &ModelState) -> Command {
        let (tree, now_ms) = (self.tree(model), model.time_ms());
        let operations = (0..1 + self.random.below(4)).map(|_| {
            let key = self.key();
            let when =
                [None, Some(When::Keep), Some(When::After(self.random.below(200))), Some(When::At(now_ms))];
            let when = *self.random.pick(&when);
            let only = [SetOnly::Always, SetOnly::Always, SetOnly::Absent, SetOnly::Present];
            let action = match self.random.below(9) {
                0..=2 => {
                    let (only, get) = (*self.random.pick(&only), self.random.one_in(3));
                    StringAction::Set { value: self.value(), only, when, get }
                }
                3 => StringAction::Append { value: self.value() },
                4 => StringAction::Delete,
                5 => StringAction::GetAndExpire { when },
                6 => StringAction::Add { delta: self.random.below(9) as i64 - 4 },
                7 => StringAction::Persist,
                _ => {
                    let (copy, replace) = (self.random.one_in(2), self.random.one_in(2));
                    StringAction::Transfer { tree, key: self.key(), copy, replace }
                }
            };
            StringsOperation { tree, key, action }
        });
        Command::Strings { operations: operations.collect(), watched: Vec::new() }
    }

    /// A key of a session, or with a number.
    pub fn owned(&mut self, model: &ModelState, session: Option<SessionId>) -> Command {
        let (tree, value) = (self.tree(model), self.value());
        Command::Owned(match session {
            Some(session) if self.random.one_in(2) => {
                OwnedCommand::Insert { tree, key: self.key(), value, session }
            }
            session => {
                let prefix = IVec::from(["job-", ""][self.random.below(2) as usize]);
                OwnedCommand::InsertNext { tree, prefix, value, session }
            }
        })
    }

    /// Tells the workload of a grant, so that it renews and releases it.
    pub fn granted(&mut self, name: &IVec, owner: &IVec, token: FencingToken) {
        self.grants.push((name.clone(), owner.clone(), token));
        if self.grants.len() > 4 {
            self.grants.remove(0);
        }
    }

    /// The next command.
    pub fn command(&mut self, model: &ModelState) -> Command {
        self.remember(model);
        match self.random.below(100) {
            0..=17 => Command::Insert { tree: self.tree(model), key: self.key(), value: self.value() },
            18..=29 => Command::Put { tree: self.tree(model), key: self.key(), value: self.value() },
            30..=41 => Command::Remove { tree: self.tree(model), key: self.key() },
            42..=49 => self.compare_and_swap(model),
            50..=61 => Command::Batch { writes: self.writes(model) },
            62..=65 => Command::Pop { tree: self.tree(model), last: self.random.one_in(2) },
            66..=79 => self.transact(model),
            80 => Command::ClearTree { tree: self.tree(model) },
            81..=84 => Command::CreateTree { name: IVec::from(*self.random.pick(&TREE_NAMES)) },
            85 | 86 => Command::DropTree { name: IVec::from(*self.random.pick(&TREE_NAMES)) },
            87 => Command::ReserveIds { count: self.random.below(5) },
            88 => self.quota(model),
            89..=93 => Command::Counter(self.counter()),
            _ => Command::Lock(self.lock()),
        }
    }

    /// A quota that is often near to what there is.
    fn quota(&mut self, model: &ModelState) -> Command {
        let names: Vec<IVec> = model.names().map(|(name, _)| name.clone()).collect();
        let name = match self.random.one_in(8) {
            true => IVec::from(*self.random.pick(&TREE_NAMES)),
            false => self.random.pick(&names).clone(),
        };
        let tree = model.tree_id(&name).and_then(|id| model.tree(id));
        let bytes = |(key, found): (&IVec, &Versioned)| (key.len() + found.value.len()) as u64;
        let (entries, bytes): (u64, u64) =
            tree.map_or((0, 0), |tree| (tree.len() as u64, tree.iter().map(bytes).sum()));
        let bytes = (!self.random.one_in(4)).then(|| bytes.saturating_sub(100) + self.random.below(8_000));
        let entries = (!self.random.one_in(3)).then(|| entries.saturating_sub(1) + self.random.below(20));
        let limit = (!self.random.one_in(5)).then_some(QuotaLimit { bytes, entries });
        Command::SetQuota { name, limit }
    }

    fn compare_and_swap(&mut self, model: &ModelState) -> Command {
        let (tree, key) = (self.tree(model), self.key());
        let current = model.tree(tree).and_then(|tree| tree.get(&key)).map(|found| found.value.clone());
        let old = if self.random.one_in(4) { Some(self.value()) } else { current };
        let new = if self.random.one_in(4) { None } else { Some(self.value()) };
        Command::CompareAndSwap { tree, key, old, new }
    }

    /// What a transaction does about times to live; now and then it is refused for it.
    pub fn expiries(&mut self, model: &ModelState) -> Vec<ExpiryCommand> {
        let count = self.random.below(3);
        let one = |_| {
            let (tree, key) = (self.existing_tree(model), self.key());
            let when = match self.random.below(5) {
                0 => When::Keep,
                1 => When::At(1_000 + self.random.below(3_000)),
                _ => When::After(self.random.below(20) * 20),
            };
            match self.random.below(8) {
                5 => ExpiryCommand::Lives { tree, key, at_ms: None },
                6 | 7 => {
                    let (is_numbered, value) = (self.random.one_in(2), self.value());
                    let mut number = || format!("{:020}", self.random.below(30));
                    let key =
                        if is_numbered { [&b"n"[..], number().as_bytes()].concat().into() } else { key };
                    ExpiryCommand::Owned { tree, key, value, session: None, is_numbered }
                }
                0 => ExpiryCommand::Clear { tree, key },
                1 | 2 => ExpiryCommand::Set { tree, key, when, only: SetIf::Always },
                _ => ExpiryCommand::Insert { tree, key, value: self.value(), when },
            }
        };
        (0..count).map(one).collect()
    }

    /// A transaction whose reads are of now or, once in three times, of some time ago.
    fn transact(&mut self, model: &ModelState) -> Command {
        let past = (!self.past.is_empty() && self.random.one_in(3))
            .then(|| Arc::clone(self.random.pick(&self.past)));
        let seen: &ModelState = past.as_deref().unwrap_or(model);
        let reads = (0..self.random.below(4)).map(|_| {
            let (tree, key) = (self.existing_tree(model), self.key());
            let found = seen.tree(tree).and_then(|tree| tree.get(&key));
            KeyRead { tree, version: found.map_or(0, |found| found.version), key }
        });
        let reads = reads.collect();
        let ranges = (0..self.random.below(3)).map(|_| {
            let tree = self.existing_tree(model);
            let (low, high) = (self.key(), self.key());
            let high = (!self.random.one_in(5)).then_some(high);
            range_read(seen, tree, low, high)
        });
        let ranges = ranges.collect();
        Command::Transact { reads, ranges, writes: self.writes(model), expiries: Vec::new() }
    }

    fn existing_tree(&mut self, model: &ModelState) -> TreeId {
        let tree = self.tree(model);
        if model.has_tree(tree) { tree } else { TreeId::DEFAULT }
    }

    fn counter(&mut self) -> CounterCommand {
        let name = IVec::from(*self.random.pick(&COUNTERS));
        let delta = self.random.below(9) as i64 - 4;
        match self.random.below(8) {
            0 => CounterCommand::Set { name, value: self.random.next() as i64 },
            1 => CounterCommand::Remove { name },
            2 => CounterCommand::Get { name },
            3 | 4 => CounterCommand::AddWithin { name, delta, min: -3, max: 10 },
            _ => CounterCommand::Add { name, delta },
        }
    }

    fn lock(&mut self) -> LockCommand {
        let name = IVec::from(*self.random.pick(&LOCKS));
        let owner = IVec::from(*self.random.pick(&OWNERS));
        let lease_ms = 1 + self.random.below(300);
        match self.random.below(6) {
            0 => LockCommand::Expire { name },
            1 | 2 if !self.grants.is_empty() => {
                let (name, owner, token) = self.random.pick(&self.grants).clone();
                LockCommand::Renew { name, owner, token, lease_ms }
            }
            3 if !self.grants.is_empty() => {
                let (name, owner, token) = self.random.pick(&self.grants).clone();
                LockCommand::Release { name, owner, token }
            }
            _ => LockCommand::TryAcquire { name, owner, lease_ms },
        }
    }
}

/// What a transaction that read `low..high` of this state says that it saw.
pub fn range_read(seen: &ModelState, tree: TreeId, low: IVec, high: Option<IVec>) -> RangeRead {
    let mut count = 0;
    let mut fingerprint = RangeFingerprint::default();
    for (key, found) in seen.tree(tree).into_iter().flatten() {
        if *key >= low && high.as_ref().is_none_or(|high| key < high) {
            count += 1;
            fingerprint.add(found.version);
        }
    }
    RangeRead { tree, low, high, count, fingerprint: fingerprint.finish() }
}
