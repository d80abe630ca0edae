//! The commit over several groups, searched exhaustively: every order in which two transactions over two
//! groups can go, with crashes of coordinators, answers that are never heard, messages that come twice or
//! late, time that runs out, and others who settle what they meet at any moment.
//!
//! Nothing is a model here but the network and the callers: each group is a
//! [`ModelState`](dogsled_storage::model::ModelState), which evaluates entries with the functions that replicas
//! evaluate them with, and each coordinator is the [`Coordinator`] that the client drives.
//!
//! Each transaction reads a list in both groups and appends itself to both. A plain command appends to one
//! of them, too. A reader keeps them off while it looks at both lists. Of every state that can be reached it is asked:
//!
//! - Has the reader seen both lists as they were at one moment, and no older than when it began?
//! - Whoever reads a list now waits for a lock, or sees all of which anybody was told that it was committed.
//! - If all coordinators died now, would those who meet the locks bring it to an end: no lock is left; each
//!   transaction is in both lists once, or in neither; in the same order; as its caller was told?
//!
//! The search is to catch what it is for: see the last tests, which put faults in.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

use dogsled_storage::codec::{decode_group_reply, encode_group_reply};
use dogsled_storage::command::KeyRead;
use dogsled_storage::model::ModelState;
use dogsled_storage::transaction::coordinator::{Coordinator, Phase, Share};
use dogsled_storage::transaction::{Prepare, Reason};
use dogsled_storage::{
    Answer, Command, Decision, GroupCommand, GroupReply, IVec, Operation, Part, Refusal, Reply, SessionId,
    SessionTag, TransactionId, TreeId, View, Vote, Write,
};

/// Group 1 and group 2.
const GROUPS: [u32; 2] = [1, 2];
const EARLY: u64 = 1_000;
const DECIDE_BY: u64 = 5_000;
const LATE: u64 = 9_000;
const PLAIN: u8 = 9;
/// The number of the reader among the transactions, and its home.
const READER: usize = 7;
const READERS_HOME: u32 = 1;

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Home answers that it aborts, and does not record it.
    HomeForgetsAbort,
    /// The coordinator takes every vote for a yes.
    CoordinatorForgetsAbort,
    /// A copy of Prepare or Commit is not recognised as one.
    CopiesAreCarriedOut,
    /// Home forgets a commit before all have resolved.
    ForgottenTooEarly,
    /// An abort is forgotten before its Commit would be too late.
    AbortForgottenTooEarly,
    /// Readers do not heed locks.
    ReadsThroughLocks,
    /// The same of the reader who keeps others off only.
    LooksThroughLocks,
    /// That reader does not look whether it still has its locks, and all is as it was.
    TrustsItsLocks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Prepare(usize),
    Commit(usize),
    /// By the coordinator, who has not heard what became of Commit.
    Ask(usize),
    /// By somebody who met a lock in that group.
    Settle(usize, u32),
    Resolve {
        transaction: usize,
        group: u32,
        commit: bool,
    },
    Forget(usize),
    /// Of the plain command.
    Swap,
    /// By the reader, to a group.
    Lock(u32),
}

/// One transaction and its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Driver {
    home: u32,
    /// What was read, by group.
    read: BTreeMap<u32, (u64, IVec)>,
    coordinator: Option<Coordinator>,
    /// What was sent last, until its answer is heard or given up.
    waits_for: Option<Message>,
    /// Encoded: replies have no hash.
    answer: Option<Vec<u8>>,
    told: Option<bool>,
}

/// Who looks at both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Reader {
    /// What others had been told when it began.
    told_before: Option<BTreeSet<u8>>,
    locked: BTreeSet<u32>,
    read: BTreeMap<u32, (u64, IVec)>,
    looked: BTreeSet<u32>,
    is_disturbed: bool,
}

impl Reader {
    fn has_seen_both(&self) -> bool {
        self.looked.len() == GROUPS.len() && !self.is_disturbed
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    groups: BTreeMap<u32, ModelState>,
    time: BTreeMap<u32, u64>,
    drivers: Vec<Driver>,
    /// What has been sent, and whether it was delivered yet: it may be again.
    sent: BTreeMap<Message, bool>,
    requests: BTreeMap<Message, GroupCommandKey>,
    copies_left: u8,
    actors: Actors,
    plain_read: Option<IVec>,
    plain_told: Option<bool>,
    reader: Option<Reader>,
}

/// The command behind a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupCommandKey(GroupCommand);

impl Hash for GroupCommandKey {
    /// It follows from what is hashed beside it: who sent it, and what that one had read.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What there is beside the transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Actors {
    /// Nothing.
    None,
    /// A plain command appends to the list in group 1; and time passes.
    Plain,
    /// The same, and transactions write without having read. The plain command appends behind them.
    PlainAndBlind,
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read(usize, u32),
    Begin(usize),
    Deliver(Message),
    Hear(usize),
    GiveUp(usize),
    MeetLock(usize, u32),
    TimePasses(u32),
    Purge(u32),
    ReadPlain,
    BeginToLook,
    Look(u32),
    LookAgain(u32),
}

fn tag(driver: usize) -> SessionTag {
    SessionTag { session: SessionId(10 + driver as u128), slot: 0, sequence: 0 }
}

fn id(driver: usize) -> TransactionId {
    TransactionId(100 + driver as u128)
}

fn transactions_in(list: &IVec) -> Vec<u8> {
    list.iter().copied().filter(|number| *number != PLAIN).collect()
}

fn list(state: &ModelState) -> (u64, IVec) {
    let tree = state.tree_id(b"lists").expect("it is made at the beginning");
    let found = state.get(tree, b"list").expect("a model has no disk");
    found.map_or((0, IVec::new()), |found| (found.version, found.value))
}

fn appended(list: &[u8], number: u8) -> IVec {
    [list, &[number]].concat().into()
}

/// The lock that a linearizable read of the list would wait for.
fn is_locked(state: &ModelState) -> bool {
    // A command that changes nothing meets the same locks as a read.
    let swap = Command::CompareAndSwap {
        tree: TreeId(0),
        key: "list".into(),
        old: Some("what it never is".into()),
        new: None,
    };
    let position = state.sequence() + 1;
    let reply = state.clone().apply_entry(position, plain(0, Operation::Command(swap)));
    matches!(reply.expect("a model has no disk").result, Err(Refusal::Locked(_)))
}

fn plain(time_ms: u64, operation: Operation) -> GroupCommand {
    GroupCommand { session: None, time_ms, trees: vec!["lists".into()], operation }
}

impl World {
    /// `homes` of the transactions.
    fn new(homes: &[u32], copies: u8, actors: Actors) -> World {
        let mut groups = BTreeMap::new();
        for group in GROUPS {
            let mut state = ModelState::for_replica();
            let mut apply = |operation| {
                let reply = state.apply_entry(state.sequence() + 1, plain(EARLY, operation));
                assert!(reply.expect("a model has no disk").result.is_ok());
            };
            apply(Operation::Command(Command::Put { tree: TreeId(0), key: "list".into(), value: "".into() }));
            for driver in (0..homes.len()).chain([READER]) {
                apply(Operation::OpenSession { session: tag(driver).session, lease_ms: 1 << 40 });
            }
            groups.insert(group, state);
        }
        let driver = |home: &u32| Driver {
            home: *home,
            read: BTreeMap::new(),
            coordinator: None,
            waits_for: None,
            answer: None,
            told: None,
        };
        World {
            groups,
            time: GROUPS.map(|group| (group, EARLY)).into(),
            drivers: homes.iter().map(driver).collect(),
            sent: BTreeMap::new(),
            requests: BTreeMap::new(),
            copies_left: copies,
            actors,
            plain_read: None,
            plain_told: None,
            reader: None,
        }
    }

    fn with_reader(self) -> World {
        World { reader: Some(Reader::default()), ..self }
    }

    fn home(&self, number: usize) -> u32 {
        if number == READER { READERS_HOME } else { self.drivers[number].home }
    }

    /// The numbers of all that may be prepared.
    fn numbers(&self) -> Vec<usize> {
        (0..self.drivers.len()).chain(self.reader.is_some().then_some(READER)).collect()
    }

    /// Who was told that it has happened.
    fn told(&self) -> BTreeSet<u8> {
        let drivers = self.drivers.iter().enumerate().filter(|(_, driver)| driver.told == Some(true));
        let plain = (self.plain_told == Some(true)).then_some(PLAIN);
        drivers.map(|(number, _)| number as u8).chain(plain).collect()
    }

    /// What may happen next; what goes as it should comes last, and is tried first.
    ///
    /// That a coordinator dies is no step: it is one that takes no more of them.
    fn steps(&self, fault: Fault) -> Vec<Step> {
        let (mut rare, mut usual) = (Vec::new(), Vec::new());
        for (number, driver) in self.drivers.iter().enumerate() {
            // In order: the second is read after the first.
            match GROUPS.into_iter().find(|group| !driver.read.contains_key(group)) {
                Some(group) => {
                    let may = fault == Fault::ReadsThroughLocks || !is_locked(&self.groups[&group]);
                    usual.extend(may.then_some(Step::Read(number, group)));
                }
                None if driver.coordinator.is_none() => usual.push(Step::Begin(number)),
                None => {}
            }
            if driver.answer.is_some() {
                usual.push(Step::Hear(number));
            }
            if matches!(driver.waits_for, Some(Message::Prepare(_) | Message::Commit(_))) {
                rare.push(Step::GiveUp(number));
            }
        }
        for number in self.numbers() {
            for group in GROUPS {
                let asked = self.sent.contains_key(&Message::Settle(number, group));
                if !asked && self.is_prepared(number, group) {
                    rare.push(Step::MeetLock(number, group));
                }
            }
        }
        if let Some(reader) = &self.reader {
            let next = |done: &dyn Fn(u32) -> bool| GROUPS.into_iter().find(|group| !done(*group));
            let waits = |group| fault != Fault::LooksThroughLocks && is_locked(&self.groups[&group]);
            if reader.told_before.is_none() {
                usual.push(Step::BeginToLook);
            } else if reader.locked.len() < GROUPS.len() {
                // The answers are awaited.
            } else if let Some(group) = next(&|group| reader.read.contains_key(&group)) {
                usual.extend((!waits(group)).then_some(Step::Look(group)));
            } else if let Some(group) = next(&|group| reader.looked.contains(&group)) {
                usual.extend((!waits(group)).then_some(Step::LookAgain(group)));
            }
        }
        for (message, delivered) in &self.sent {
            if !delivered {
                usual.push(Step::Deliver(*message));
            } else if self.copies_left > 0 {
                rare.push(Step::Deliver(*message));
            }
        }
        for group in GROUPS.into_iter().filter(|_| self.actors != Actors::None) {
            // Only home's time means anything.
            if self.time[&group] == EARLY && self.drivers.iter().any(|driver| driver.home == group) {
                rare.push(Step::TimePasses(group));
            }
            let transactions = self.groups[&group].transactions().expect("a replica");
            let due = transactions.decided_before(LATE, None).any(|(_, decided)| !decided.committed);
            if due && (self.time[&group] == LATE || fault == Fault::AbortForgottenTooEarly) {
                rare.push(Step::Purge(group));
            }
        }
        let plain = match self.actors {
            Actors::None => false,
            Actors::Plain => true,
            Actors::PlainAndBlind => !list(&self.groups[&1]).1.is_empty(),
        };
        if plain && self.plain_read.is_none() && !is_locked(&self.groups[&1]) {
            usual.push(Step::ReadPlain);
        }
        rare.extend(usual);
        rare
    }

    fn is_prepared(&self, driver: usize, group: u32) -> bool {
        self.groups[&group].transactions().expect("a replica").is_prepared(id(driver))
    }

    fn apply(&mut self, group: u32, mut command: GroupCommand) -> GroupReply {
        command.time_ms = self.time[&group];
        let state = &self.groups[&group];
        let mut next = state.clone();
        let reply = next.apply_entry(state.sequence() + 1, command).expect("a model has no disk");
        // An entry that changes nothing is as if it had not been, which makes for fewer states.
        let trees = [TreeId::FIRST_USER, TreeId::SESSIONS, TreeId::TRANSACTIONS];
        if next.time_ms() != state.time_ms() || trees.iter().any(|tree| next.tree(*tree) != state.tree(*tree))
        {
            self.groups.insert(group, next);
        }
        reply
    }

    fn send(&mut self, message: Message, command: GroupCommand) {
        self.sent.entry(message).or_insert(false);
        self.requests.entry(message).or_insert(GroupCommandKey(command));
    }

    fn step(&mut self, step: Step, fault: Fault) {
        match step {
            Step::Read(driver, group) => {
                let found = list(&self.groups[&group]);
                self.drivers[driver].read.insert(group, found);
            }
            Step::Begin(number) => {
                let driver = &self.drivers[number];
                let shares = GROUPS.map(|group| {
                    let (version, value) = &driver.read[&group];
                    let (tree, key) = (TreeId(0), IVec::from("list"));
                    let blind = self.actors == Actors::PlainAndBlind;
                    let read = KeyRead { tree, key: key.clone(), version: *version };
                    let value = appended(if blind { &[] } else { value }, number as u8);
                    let part = Part {
                        reads: if blind { Vec::new() } else { vec![read] },
                        writes: vec![Write { tree, key, value: Some(value) }],
                        ..Part::default()
                    };
                    (group, Share { trees: vec!["lists".into()], part })
                });
                let mut coordinator =
                    Coordinator::new(id(number), driver.home, DECIDE_BY, BTreeMap::from(shares));
                let participant = coordinator.participants()[0];
                let request = coordinator.prepare(participant, 1_000);
                let mut command = plain(0, request.operation);
                command.session = Some(tag(number));
                self.drivers[number].coordinator = Some(coordinator);
                self.drivers[number].waits_for = Some(Message::Prepare(number));
                self.send(Message::Prepare(number), command);
            }
            Step::Deliver(message) => self.deliver(message, fault),
            Step::Hear(number) => self.hear(number, fault),
            Step::GiveUp(number) => {
                let driver = &mut self.drivers[number];
                let coordinator = driver.coordinator.as_mut().expect("it waits");
                driver.answer = None;
                match driver.waits_for.take() {
                    Some(Message::Prepare(_)) => {
                        let participant = coordinator.participants()[0];
                        coordinator.voted(participant, None);
                        self.go_on(number, fault);
                    }
                    Some(Message::Commit(_)) => {
                        let settle = Operation::Settle { transaction: id(number), decide_by_ms: DECIDE_BY };
                        self.drivers[number].waits_for = Some(Message::Ask(number));
                        self.send(Message::Ask(number), plain(0, settle));
                    }
                    other => panic!("{other:?} is not given up"),
                }
            }
            Step::MeetLock(driver, group) => {
                let settle = Operation::Settle { transaction: id(driver), decide_by_ms: DECIDE_BY };
                self.send(Message::Settle(driver, group), plain(0, settle));
            }
            Step::TimePasses(group) => {
                self.time.insert(group, LATE);
            }
            Step::Purge(group) => self.purge(group, fault),
            Step::BeginToLook => {
                let told = self.told();
                self.reader.as_mut().expect("there is one").told_before = Some(told);
                for group in GROUPS {
                    let key = IVec::from("list");
                    let prepare = Prepare {
                        transaction: id(READER),
                        home: READERS_HOME,
                        decide_by_ms: DECIDE_BY,
                        lease_ms: 1_000,
                        only_lock: true,
                        part: Part {
                            reads: vec![KeyRead { tree: TreeId(0), key, version: 0 }],
                            ..Part::default()
                        },
                    };
                    let mut command = plain(0, Operation::Prepare(prepare));
                    command.session = Some(tag(READER));
                    self.send(Message::Lock(group), command);
                }
            }
            Step::Look(group) => {
                let found = list(&self.groups[&group]);
                self.reader.as_mut().expect("there is one").read.insert(group, found);
            }
            Step::LookAgain(group) => {
                let is_still_so = self.is_prepared(READER, group);
                let found = list(&self.groups[&group]);
                let reader = self.reader.as_mut().expect("there is one");
                if fault != Fault::TrustsItsLocks {
                    reader.is_disturbed |= !is_still_so || reader.read[&group].0 != found.0;
                }
                reader.looked.insert(group);
                if reader.looked.len() == GROUPS.len() {
                    for group in GROUPS {
                        let resolve = Operation::Resolve { transaction: id(READER), commit: false };
                        let message = Message::Resolve { transaction: READER, group, commit: false };
                        self.send(message, plain(0, resolve));
                    }
                }
            }
            Step::ReadPlain => {
                let (_, old) = list(&self.groups[&1]);
                self.plain_read = Some(old.clone());
                let new = Some(appended(&old, PLAIN));
                let key = "list".into();
                let swap = Command::CompareAndSwap { tree: TreeId(0), key, old: Some(old), new };
                self.send(Message::Swap, plain(0, Operation::Command(swap)));
            }
        }
    }

    fn purge(&mut self, group: u32, fault: Fault) {
        let transactions = self.groups[&group].transactions().expect("a replica");
        let aborted = transactions.decided_before(LATE, None).filter(|(_, decided)| !decided.committed);
        let aborted = aborted.map(|(transaction, _)| transaction).collect();
        let forget = plain(0, Operation::Forget { transactions: aborted });
        if fault == Fault::AbortForgottenTooEarly {
            // The state machine itself takes care, so its time is put forward for this.
            let early = self.time.insert(group, LATE).expect("every group has a time");
            let state = &self.groups[&group];
            let mut other = state.clone();
            other
                .apply_entry(state.sequence() + 1, GroupCommand { time_ms: LATE, ..forget })
                .expect("no disk");
            self.time.insert(group, early);
            self.groups.insert(group, with_time(&other, state));
            return;
        }
        self.apply(group, forget);
    }

    fn deliver(&mut self, message: Message, fault: Fault) {
        let again = self.sent.insert(message, true).expect("it was sent");
        self.copies_left -= u8::from(again);
        let mut command = self.requests[&message].0.clone();
        if again
            && fault == Fault::CopiesAreCarriedOut
            && let Some(tag) = &mut command.session
        {
            tag.sequence += 1;
        }
        let group = match message {
            Message::Prepare(driver) => 3 - self.drivers[driver].home,
            Message::Commit(driver)
            | Message::Ask(driver)
            | Message::Settle(driver, _)
            | Message::Forget(driver) => self.home(driver),
            Message::Resolve { group, .. } | Message::Lock(group) => group,
            Message::Swap => 1,
        };
        let before = (fault == Fault::HomeForgetsAbort).then(|| self.groups[&group].clone());
        let reply = self.apply(group, command);
        if let (Some(before), Ok(Answer::Decided(Decision::Aborted(Reason::Settled)))) =
            (before, &reply.result)
            && matches!(message, Message::Ask(_) | Message::Settle(..))
        {
            self.groups.insert(group, before);
        }
        match message {
            Message::Prepare(driver) | Message::Commit(driver) | Message::Ask(driver) => {
                let driver = &mut self.drivers[driver];
                if driver.waits_for == Some(message) {
                    driver.answer = Some(encode_group_reply(&reply).expect("it is small"));
                }
            }
            Message::Settle(transaction, asker) => {
                let commit = reply.result == Ok(Answer::Decided(Decision::Committed));
                let resolve = Operation::Resolve { transaction: id(transaction), commit };
                self.send(Message::Resolve { transaction, group: asker, commit }, plain(0, resolve));
            }
            Message::Lock(group) => {
                assert_eq!(reply.result, Ok(Answer::Vote(Vote::Yes)), "who only locks is refused");
                self.reader.as_mut().expect("it has asked").locked.insert(group);
            }
            Message::Resolve { transaction: READER, .. } => {}
            Message::Resolve { transaction: number, group, commit } => {
                let driver = &mut self.drivers[number];
                if let Some(coordinator) = &mut driver.coordinator
                    && coordinator.phase() == Phase::Committed
                    && commit
                {
                    coordinator.resolved(group);
                    if coordinator.may_be_forgotten() {
                        let forget = Operation::Forget { transactions: vec![id(number)] };
                        self.send(Message::Forget(number), plain(0, forget));
                    }
                }
            }
            Message::Forget(_) => {}
            Message::Swap => match reply.result {
                Ok(Answer::Reply(Reply::Swapped(swapped))) if !again => {
                    self.plain_told = Some(swapped.is_ok())
                }
                // It comes again when the lock is gone.
                Err(Refusal::Locked(_)) => {
                    self.sent.insert(message, again);
                }
                _ => {}
            },
        }
    }

    fn hear(&mut self, number: usize, fault: Fault) {
        let driver = &mut self.drivers[number];
        let answer = driver.answer.take().expect("there is an answer");
        let reply = decode_group_reply(&answer).expect("just encoded");
        driver.waits_for = None;
        let coordinator = driver.coordinator.as_mut().expect("it has asked");
        match reply.result {
            Ok(Answer::Vote(vote)) => {
                let vote = if fault == Fault::CoordinatorForgetsAbort { Vote::Yes } else { vote };
                let participant = coordinator.participants()[0];
                coordinator.voted(participant, Some(vote));
            }
            Ok(Answer::Decided(decision)) => coordinator.decided(&decision),
            other => panic!("transaction {number} heard {other:?}"),
        }
        self.go_on(number, fault);
    }

    /// The coordinator's next step, after something was heard or given up.
    fn go_on(&mut self, number: usize, fault: Fault) {
        let driver = &mut self.drivers[number];
        let coordinator = driver.coordinator.as_mut().expect("it has begun");
        match coordinator.phase() {
            Phase::Preparing => {
                let request = coordinator.commit().expect("its only participant has said yes");
                driver.waits_for = Some(Message::Commit(number));
                let mut command = plain(0, request.operation);
                command.session = Some(tag(number));
                self.send(Message::Commit(number), command);
            }
            Phase::Deciding => {}
            phase => {
                driver.told = Some(phase == Phase::Committed);
                let resolves = coordinator.resolves();
                for (group, operation) in resolves {
                    let commit = phase == Phase::Committed;
                    self.send(Message::Resolve { transaction: number, group, commit }, plain(0, operation));
                }
                if fault == Fault::ForgottenTooEarly && phase == Phase::Committed {
                    let forget = Operation::Forget { transactions: vec![id(number)] };
                    self.send(Message::Forget(number), plain(0, forget));
                }
            }
        }
    }

    /// What must hold of every state.
    fn check(&self, fault: Fault) -> Result<(), String> {
        for (group, state) in &self.groups {
            if fault != Fault::ReadsThroughLocks && is_locked(state) {
                continue;
            }
            let (_, list) = list(state);
            for (number, driver) in self.drivers.iter().enumerate() {
                if driver.told == Some(true) && !list.contains(&(number as u8)) {
                    return Err(format!("group {group} shows {list:?}, and {number} was committed"));
                }
            }
        }
        if let Some(reader) = self.reader.as_ref().filter(|reader| reader.has_seen_both()) {
            let seen: Vec<&IVec> = reader.read.values().map(|(_, list)| list).collect();
            if transactions_in(seen[0]) != transactions_in(seen[1]) {
                return Err(format!("the reader has seen what never was together: {seen:?}"));
            }
            let before = reader.told_before.as_ref().expect("it has begun");
            if let Some(missed) = before.iter().find(|number| !seen[0].contains(number)) {
                return Err(format!("{missed} was committed before the reader began, who saw {seen:?}"));
            }
        }
        self.check_end(fault)
    }

    /// What must hold when all coordinators are gone and others have ended what they left.
    fn check_end(&self, fault: Fault) -> Result<(), String> {
        let mut end = self.clone();
        for number in end.numbers() {
            for group in GROUPS {
                if !end.is_prepared(number, group) {
                    continue;
                }
                let home = end.home(number);
                let settle = Operation::Settle { transaction: id(number), decide_by_ms: DECIDE_BY };
                let reply = end.apply(home, plain(0, settle));
                let commit = reply.result == Ok(Answer::Decided(Decision::Committed));
                end.apply(group, plain(0, Operation::Resolve { transaction: id(number), commit }));
            }
        }
        let _ = fault;
        let lists: Vec<IVec> = end.groups.values().map(|state| list(state).1).collect();
        for (group, state) in &end.groups {
            if is_locked(state) || !state.transactions().expect("a replica").is_idle() {
                return Err(format!("a lock is left in group {group}"));
            }
        }
        if let Some(reader) = self.reader.as_ref().filter(|reader| reader.has_seen_both()) {
            for (list, (_, seen)) in lists.iter().zip(reader.read.values()) {
                if !list.starts_with(seen) {
                    return Err(format!("the reader has seen {seen:?}, which came to {list:?}"));
                }
            }
        }
        for list in &lists {
            if list.iter().collect::<BTreeSet<_>>().len() != list.len() {
                return Err(format!("something happened twice: {lists:?}"));
            }
        }
        if transactions_in(&lists[0]) != transactions_in(&lists[1]) {
            return Err(format!("the groups differ: {lists:?}"));
        }
        for (number, driver) in self.drivers.iter().enumerate() {
            let happened = lists[0].contains(&(number as u8));
            if driver.told.is_some_and(|told| told != happened) {
                return Err(format!("the caller of {number} was told {:?}: {lists:?}", driver.told));
            }
        }
        if self.plain_told.is_some_and(|told| told != lists[0].contains(&PLAIN)) {
            return Err(format!("the plain command was answered {:?}: {lists:?}", self.plain_told));
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A state with the time of another; its rows are as they are.
fn with_time(state: &ModelState, other: &ModelState) -> ModelState {
    let mut with = state.clone();
    with.set_time_ms(other.time_ms());
    with
}

/// What a search has found.
struct Found {
    states: usize,
    outcomes: BTreeSet<Vec<Option<bool>>>,
    /// What a reader has seen in group 1.
    seen: BTreeSet<IVec>,
    violation: Option<(String, Vec<Step>)>,
}

/// Goes through all states that can be reached.
fn search(first: World, fault: Fault, limit: usize) -> Found {
    let mut seen = HashSet::from([first.fingerprint()]);
    let (mut outcomes, mut views) = (BTreeSet::new(), BTreeSet::new());
    let mut path: Vec<(World, Vec<Step>, Option<Step>)> = vec![(first.clone(), first.steps(fault), None)];
    while let Some((world, steps, _)) = path.last_mut() {
        let Some(step) = steps.pop() else {
            path.pop();
            continue;
        };
        let mut next = world.clone();
        next.step(step, fault);
        if !seen.insert(next.fingerprint()) {
            continue;
        }
        let told = next.drivers.iter().map(|driver| driver.told).chain([next.plain_told]);
        outcomes.insert(told.collect());
        if let Some(reader) = next.reader.as_ref().filter(|reader| reader.has_seen_both()) {
            views.insert(reader.read[&1].1.clone());
        }
        if let Err(what) = next.check(fault) {
            let mut steps: Vec<Step> = path.iter().filter_map(|(_, _, step)| *step).collect();
            steps.push(step);
            return Found { states: seen.len(), outcomes, seen: views, violation: Some((what, steps)) };
        }
        assert!(seen.len() < limit, "more than {limit} states");
        let steps = next.steps(fault);
        path.push((next, steps, Some(step)));
    }
    Found { states: seen.len(), outcomes, seen: views, violation: None }
}

fn holds(homes: &[u32], copies: u8, actors: Actors) {
    holds_of(World::new(homes, copies, actors));
}

/// What a reader may see there.
fn holds_of(world: World) -> BTreeSet<IVec> {
    let World { drivers, copies_left, actors, reader, .. } = &world;
    let homes: Vec<u32> = drivers.iter().map(|driver| driver.home).collect();
    let what = format!("homes {homes:?}, {copies_left} copies, {actors:?}, reader {}", reader.is_some());
    let found = search(world, Fault::None, 3_000_000);
    println!("{what}: {} states", found.states);
    if let Some((violation, steps)) = found.violation {
        panic!("{what}: {violation}\n{steps:#?}");
    }
    // Each can be committed, and each can be aborted.
    for at in 0..homes.len() {
        for told in [true, false] {
            assert!(found.outcomes.iter().any(|outcome| outcome[at] == Some(told)), "{at} is never {told}");
        }
    }
    found.seen
}

#[test]
fn one_transaction_and_a_plain_command_with_copies_of_messages() {
    for home in GROUPS {
        holds(&[home], 2, Actors::Plain);
        holds(&[home], 2, Actors::PlainAndBlind);
    }
}

#[test]
fn two_transactions_with_different_homes() {
    holds(&[1, 2], 1, Actors::None);
}

#[test]
fn two_transactions_with_the_same_home() {
    holds(&[1, 1], 1, Actors::None);
}

#[test]
fn a_reader_who_keeps_off_a_transaction_with_copies_of_messages() {
    for home in GROUPS {
        let seen = holds_of(World::new(&[home], 1, Actors::None).with_reader());
        assert_eq!(seen.len(), 2, "before it, and after it: {seen:?}");
    }
}

#[test]
fn every_fault_that_is_put_in_is_found() {
    for (fault, homes, actors) in [
        (Fault::HomeForgetsAbort, &[1][..], Actors::None),
        (Fault::CoordinatorForgetsAbort, &[2], Actors::Plain),
        (Fault::CopiesAreCarriedOut, &[2], Actors::PlainAndBlind),
        (Fault::ForgottenTooEarly, &[1], Actors::None),
        (Fault::AbortForgottenTooEarly, &[1], Actors::Plain),
        (Fault::ReadsThroughLocks, &[1], Actors::None),
    ] {
        let found = search(World::new(homes, 2, actors), fault, 3_000_000);
        let (what, steps) = found.violation.unwrap_or_else(|| panic!("{fault:?} is not found"));
        println!("{fault:?}: {what}, after {} steps and {} states", steps.len(), found.states);
    }
    for (fault, home) in [
        (Fault::TrustsItsLocks, 1),
        (Fault::TrustsItsLocks, 2),
        (Fault::LooksThroughLocks, 1),
        (Fault::LooksThroughLocks, 2),
    ] {
        let found = search(World::new(&[home], 0, Actors::None).with_reader(), fault, 3_000_000);
        let (what, steps) = found.violation.unwrap_or_else(|| panic!("{fault:?} is not found"));
        println!("reader, {fault:?}: {what}, after {} steps and {} states", steps.len(), found.states);
    }
}
