//! [`Owner`]: an application with a session, keys that die with it, and keys that have a time to live; and
//! [`Owned`]: what all owners were told, and whether that can be.
//!
//! Owners are as bad as owners are: they forget to renew, come back after the end, walk away. What must hold:
//!
//! - **A session lives for its lease.** It has not ended, and its keys are there, until the lease has passed since a
//!   renewal that was heard of; by time and not by anybody's clock, and whoever led meanwhile.
//! - **What has ended is gone.** No read whose position is behind the end of a session shows a key of that session.
//! - **A key is there until its time is over, and never after.** Both by the log's own time: a read at a position at
//!   which the log had not reached the end shows the key, and one at a position at which it had does not.
//! - **It is there for as long as it was given**, also by time, while no node has been started meanwhile: a leader that
//!   has never followed another in its life has nothing but its wall clock to bridge the time for which it was
//!   down.
//!
//! - **A number is given once.** Of keys that are numbered, those that come later in the log have larger numbers; each of
//!   them is made once, however often it was asked for, and in the end there is every one that was told and none
//!   twice.
//!
//! That all of it is gone in bounded time is looked after by [`leases`](crate::leases).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::ring::group_of;
use dogsled_storage::{
    Answer, Command, ExpiryCommand, GroupRead, GroupReadReply, GroupReply, IVec, Operation, OwnedCommand,
    Refusal, Reply, SessionId, SessionTag, SetIf, TreeId, When,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::{Caller, LogTimes};
use crate::random::Random;
use crate::trace::event;
use crate::workload::Shared;

/// The tree of keys that die with sessions. The value of each is its session.
pub const EPHEMERAL: &str = "ephemeral";
/// The tree of keys that are numbered.
const NUMBERED: &str = "numbered";
/// The tree of keys that have a time to live.
const MORTAL: &str = "mortal";
/// Sessions and their keys are of these, so that several owners meet in one partition.
const TAGS: [&str; 2] = ["o0", "o1"];
/// The log's time passes no faster than time by more than a part of this.
const PACE: u32 = 32;
/// The longest lease of a session here, and the longest time to live.
pub const LONGEST: Duration = Duration::from_secs(4);

/// What a read has shown of a key with a time to live.
#[derive(Clone, Debug)]
struct Look {
    key: String,
    group: u32,
    position: u64,
    /// The log's time at which the key ends.
    ends_ms: u64,
    is_there: bool,
}

/// A key that was numbered.
#[derive(Clone, Debug)]
struct Numbered {
    /// At which position, and with which number, if that is known.
    made: Option<(u64, u64)>,
    /// What it holds, as no other does.
    value: u64,
    /// Whether it dies with a session.
    is_mortal: bool,
}

#[derive(Default)]
struct Inner {
    /// By their tags.
    numbered: BTreeMap<&'static str, Vec<Numbered>>,
    /// What there is of them in the end: number and value.
    finals: BTreeMap<&'static str, Vec<(u64, u64)>>,
    /// Where sessions are known to have ended: the group and a position.
    ended: BTreeMap<SessionId, (u32, u64)>,
    /// Whose keys were shown by a read, in a group and at a position.
    sightings: Vec<(SessionId, u32, u64)>,
    looks: Vec<Look>,
    counts: BTreeMap<&'static str, u64>,
    /// What was seen to be wrong at once.
    wrong: Vec<String>,
}

/// See the [module](self); clones are the same.
#[derive(Clone, Default)]
pub struct Owned(Arc<Mutex<Inner>>);

impl Owned {
    fn count(&self, what: &'static str) {
        *self.0.lock().counts.entry(what).or_default() += 1;
    }

    /// How much there was of what.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().counts.clone()
    }

    /// What must not be, in words.
    pub fn judge(&self, log: &LogTimes) -> Vec<String> {
        let inner = self.0.lock();
        let mut violations = inner.wrong.clone();
        for (session, group, position) in &inner.sightings {
            if let Some((_, ended)) =
                inner.ended.get(session).filter(|(of, at)| of == group && at <= position)
            {
                violations.push(format!(
                    "group {group}: a read at {position} shows a key of session {session}, which had ended at {ended}"
                ));
            }
        }
        for Look { key, group, position, ends_ms, is_there } in &inner.looks {
            let over = log.reached(*group, *ends_ms).filter(|reached| reached <= position);
            match (is_there, over) {
                (true, Some(reached)) => violations.push(format!(
                    "group {group}: a read at {position} shows {key}, whose time {ends_ms} was over at {reached}"
                )),
                (false, None) if log.is_before(*group, *position, *ends_ms) => violations.push(format!(
                    "group {group}: a read at {position} does not show {key}, whose time {ends_ms} was not over"
                )),
                _ => {}
            }
        }
        for (tag, numbered) in &inner.numbered {
            violations
                .extend(judge_numbers(numbered, inner.finals.get(tag)).map(|what| format!("{tag}: {what}")));
        }
        violations
    }
}

fn judge_numbers(numbered: &[Numbered], finals: Option<&Vec<(u64, u64)>>) -> Option<String> {
    let mut made: Vec<(u64, u64)> = numbered.iter().filter_map(|numbered| numbered.made).collect();
    made.sort_unstable();
    if let Some(pair) = made.windows(2).find(|pair| pair[0].1 >= pair[1].1) {
        let ((first, before), (second, after)) = (pair[0], pair[1]);
        return Some(format!("number {before} was given at {first}, and {after} at {second}"));
    }
    let finals = finals?;
    let mut values: Vec<u64> = finals.iter().map(|(_, value)| *value).collect();
    values.sort_unstable();
    if let Some(pair) = values.windows(2).find(|pair| pair[0] == pair[1]) {
        return Some(format!("the key that holds {} was made twice: {finals:?}", pair[0]));
    }
    numbered.iter().find_map(|Numbered { made, value, is_mortal }| {
        let (_, number) = made.filter(|_| !is_mortal)?;
        (!finals.contains(&(number, *value)))
            .then(|| format!("number {number}, which holds {value}, is lost: {finals:?}"))
    })
}

/// See the [module](self).
pub struct Owner {
    caller: Caller,
    made: u64,
    /// Numbers of commands in the session that is open.
    sequence: u64,
}

/// A session that its owner takes for open.
struct Open {
    id: SessionId,
    tag: &'static str,
    group: u32,
    lease: Duration,
    /// Until then it has not ended.
    until: Instant,
    /// Keys that were made for certain.
    keys: Vec<String>,
}

fn ends(asked: Instant, lease: Duration) -> Instant {
    asked + lease - lease / PACE
}

fn value(session: SessionId) -> IVec {
    IVec::from(session.0.to_be_bytes())
}

/// Whose key it is, by its value.
pub fn session_in(value: &[u8]) -> Option<SessionId> {
    value.try_into().ok().map(|bytes| SessionId(u128::from_be_bytes(bytes)))
}

impl Owner {
    /// An owner.
    pub fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Owner {
        let random = Random::new(seed, 40_000 + number);
        // Numbers beyond those of all others who ask.
        Owner { caller: Caller::new(600 + number, random, shared), made: 0, sequence: 0 }
    }

    /// Works until it is told to stop; what it has then it leaves as it is.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            if self.caller.random.chance(300) {
                self.key_with_a_time(&stop).await;
            } else {
                self.session(&stop).await;
            }
            self.caller.dawdle(0, 300).await;
        }
    }

    fn owned(&self) -> Owned {
        self.caller.shared.owned.clone()
    }

    fn wrong(&self, what: String) {
        event!(self.caller.shared.trace, "owner {}: VIOLATION: {what}", self.caller.number);
        self.owned().0.lock().wrong.push(format!("owner {}: {what}", self.caller.number));
    }

    fn new_key(&mut self, tag: &str) -> String {
        self.made += 1;
        format!("{{{tag}}}{}-{}", self.caller.number, self.made)
    }

    /// Opens a session, has keys under it, and ends it in one way or another.
    async fn session(&mut self, stop: &watch::Receiver<bool>) {
        let tag = *self.caller.random.pick(&TAGS);
        let group = group_of(format!("{{{tag}}}").as_bytes(), self.caller.shared.partitions);
        let lease_ms = *self.caller.random.pick(&[500, 1_500, LONGEST.as_millis() as u64]);
        let lease = Duration::from_millis(lease_ms);
        let id = SessionId((u128::from(self.caller.number) << 64) | u128::from(self.caller.random.number()));
        let asked = Instant::now();
        let open = Operation::OpenSession { session: id, lease_ms };
        let opened = self.caller.once(group, &[], open).await;
        if !matches!(opened, Some(GroupReply { result: Ok(Answer::Session { .. }), .. })) {
            return;
        }
        event!(self.caller.shared.trace, "owner {} opens {id} for {lease:?}", self.caller.number);
        self.owned().count("sessions");
        let mut open = Open { id, tag, group, lease, until: ends(asked, lease), keys: Vec::new() };
        for _ in 0..self.caller.random.between(2, 12) {
            self.caller.dawdle(0, lease_ms / 3).await;
            if *stop.borrow() {
                return;
            }
            let is_open = match self.caller.random.below(100) {
                // It falls asleep, and goes on as if nothing had happened.
                0..8 => {
                    self.caller.dawdle(lease_ms, lease_ms * 2).await;
                    true
                }
                8..40 => self.renew(&mut open).await,
                40..65 => self.insert(&mut open).await,
                65..80 => self.insert_next(&mut open).await,
                _ => self.look(&open).await,
            };
            if !is_open {
                self.look(&open).await;
                return;
            }
        }
        if self.caller.random.chance(500) {
            // It walks away.
            return;
        }
        let close = Operation::CloseSession { session: id };
        if let Some(reply) = self.caller.often(12, group, &[], &close).await {
            self.ended(&mut open, reply.position, false);
            self.look(&open).await;
        }
    }

    /// The session is known to have ended, by itself or because its owner wanted it to.
    fn ended(&self, open: &mut Open, position: u64, by_itself: bool) {
        open.keys.clear();
        let Open { id, group, until, .. } = open;
        event!(
            self.caller.shared.trace,
            "owner {}: {id} has ended, by itself: {by_itself}",
            self.caller.number
        );
        self.owned().count(if by_itself { "sessions that ended" } else { "sessions that were closed" });
        self.owned().0.lock().ended.entry(*id).or_insert((*group, position));
        let now = Instant::now();
        if by_itself && now < *until {
            self.wrong(format!("session {id} has ended, and had {:?} left of its lease", *until - now));
        }
    }

    /// Whether the session is open as far as is known.
    async fn renew(&mut self, open: &mut Open) -> bool {
        let asked = Instant::now();
        let renew = Operation::RenewSession { session: open.id };
        let Some(reply) = self.caller.often(3, open.group, &[], &renew).await else { return true };
        match reply.result {
            Ok(Answer::Session { .. }) => open.until = ends(asked, open.lease),
            Err(Refusal::SessionUnknown(_)) => {
                self.ended(open, reply.position, true);
                return false;
            }
            other => self.wrong(format!("a renewal was answered by {other:?}")),
        }
        true
    }

    async fn insert(&mut self, open: &mut Open) -> bool {
        let key = self.new_key(open.tag);
        let insert = OwnedCommand::Insert {
            tree: TreeId(0),
            key: key.as_str().into(),
            value: value(open.id),
            session: open.id,
        };
        let insert = Operation::Command(Command::Owned(insert));
        let Some(reply) = self.caller.once(open.group, &[EPHEMERAL], insert).await else { return true };
        match reply.result {
            Ok(_) => {
                self.owned().count("keys of sessions");
                open.keys.push(key);
            }
            // It is not open here.
            Err(Refusal::Invalid(_)) => {
                self.ended(open, reply.position, true);
                return false;
            }
            other => self.wrong(format!("a key of a session was answered by {other:?}")),
        }
        true
    }

    /// Makes a key with the next number: as a command of the session, so that it happens once however often it is sent.
    async fn insert_next(&mut self, open: &mut Open) -> bool {
        self.made += 1;
        self.sequence += 1;
        let value = self.caller.number << 32 | self.made;
        let is_mortal = self.caller.random.chance(300);
        let insert = OwnedCommand::InsertNext {
            tree: TreeId(0),
            prefix: numbered_prefix(open.tag),
            value: IVec::from(value.to_be_bytes()),
            session: is_mortal.then_some(open.id),
        };
        let tag = SessionTag { session: open.id, slot: 0, sequence: self.sequence };
        let operation = Operation::Command(Command::Owned(insert));
        let reply = self.caller.numbered(12, open.group, &[NUMBERED], tag, &operation).await;
        let made = match reply.map(|reply| (reply.position, reply.result)) {
            None => None,
            Some((position, Ok(Answer::Reply(Reply::Named { key })))) => {
                let number = number_in(open.tag, &key);
                if number.is_none() {
                    self.wrong(format!("{} is no key with a number", String::from_utf8_lossy(&key)));
                }
                self.owned().count("numbered keys");
                number.map(|number| (position, number))
            }
            Some((position, Err(Refusal::SessionUnknown(_)))) => {
                self.ended(open, position, true);
                return false;
            }
            Some((_, other)) => {
                self.wrong(format!("a numbered key was answered by {other:?}"));
                None
            }
        };
        let numbered = Numbered { made, value, is_mortal };
        self.owned().0.lock().numbered.entry(open.tag).or_default().push(numbered);
        true
    }

    /// Looks at the keys of all sessions.
    async fn look(&mut self, open: &Open) -> bool {
        let range = GroupRead::Range {
            tree: EPHEMERAL.into(),
            low: Bound::Unbounded,
            high: Bound::Unbounded,
            reverse: false,
            limit: u32::MAX,
            limit_bytes: u64::MAX,
            values: true,
        };
        let read = self.caller.read(open.group, &range).await;
        let Some((GroupReadReply::Page { entries, .. }, position)) = read else { return true };
        let now = Instant::now();
        let missing =
            open.keys.iter().find(|key| !entries.iter().any(|(found, _)| found[..] == *key.as_bytes()));
        if let Some(missing) = missing.filter(|_| now < open.until) {
            let left = open.until - now;
            self.wrong(format!("{missing} is gone, whose session {} has {left:?} of its lease", open.id));
        }
        let seen = entries.iter().filter_map(|(_, found)| session_in(&found.value));
        let seen: Vec<_> = seen.map(|session| (session, open.group, position)).collect();
        self.owned().0.lock().sightings.extend(seen);
        true
    }

    /// Sets a key that expires, and looks whether it is there, until it is gone for some time.
    async fn key_with_a_time(&mut self, stop: &watch::Receiver<bool>) {
        let key = self.new_key("mortal");
        let group = group_of(key.as_bytes(), self.caller.shared.partitions);
        let name = IVec::from(key.as_str());
        let after = *self.caller.random.pick(&[200, 1_000, LONGEST.as_millis() as u64]);
        let (mut asked, starts) = (Instant::now(), self.caller.shared.starts());
        let insert = ExpiryCommand::Insert {
            tree: TreeId(0),
            key: name.clone(),
            value: IVec::from("v"),
            when: When::After(after),
        };
        let insert = Operation::Command(Command::Expiry(insert));
        let Some(GroupReply { result: Ok(_), time_ms, .. }) =
            self.caller.once(group, &[MORTAL], insert).await
        else {
            return;
        };
        self.owned().count("keys with a time to live");
        let length = Duration::from_millis(after);
        let mut ends_ms = time_ms + after;
        while Instant::now() < asked + length * 2 && !*stop.borrow() {
            self.caller.dawdle(0, after / 2).await;
            if self.caller.random.chance(100) {
                // It is given the same time once more, from now on.
                let again = Instant::now();
                let set = ExpiryCommand::Set {
                    tree: TreeId(0),
                    key: name.clone(),
                    when: When::After(after),
                    only: SetIf::Always,
                };
                let set = Operation::Command(Command::Expiry(set));
                let Some(GroupReply { result: Ok(answer), time_ms, .. }) =
                    self.caller.once(group, &[MORTAL], set).await
                else {
                    // When it ends is not known any more.
                    return;
                };
                if is_changed(&answer) {
                    (asked, ends_ms) = (again, time_ms + after);
                }
            }
            let get = GroupRead::Get { tree: MORTAL.into(), key: name.clone() };
            let Some((GroupReadReply::Value(found), position)) = self.caller.read(group, &get).await else {
                continue;
            };
            let (now, is_there) = (Instant::now(), found.is_some());
            self.owned().count(if is_there { "looks at what lives" } else { "looks at what has died" });
            self.owned().0.lock().looks.push(Look { key: key.clone(), group, position, ends_ms, is_there });
            let until = ends(asked, length);
            if !is_there && now < until && starts == self.caller.shared.starts() {
                self.wrong(format!("{key}, with {length:?} to live, was gone {:?} too early", until - now));
            }
        }
    }
}

fn numbered_prefix(tag: &str) -> IVec {
    IVec::from(format!("{{{tag}}}job "))
}

fn number_in(tag: &str, key: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(&numbered_prefix(tag)[..]).filter(|digits| digits.len() == 20)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Writes down the numbered keys that there are in the end; whether it was answered.
pub async fn read_numbered(caller: &mut Caller) -> bool {
    for tag in TAGS {
        let group = group_of(format!("{{{tag}}}").as_bytes(), caller.shared.partitions);
        let range = GroupRead::Range {
            tree: NUMBERED.into(),
            low: Bound::Included(numbered_prefix(tag)),
            high: Bound::Unbounded,
            reverse: false,
            limit: u32::MAX,
            limit_bytes: u64::MAX,
            values: true,
        };
        let Some((GroupReadReply::Page { entries, .. }, _)) = caller.read(group, &range).await else {
            return false;
        };
        let entries = entries.iter().filter_map(|(key, found)| {
            let value = u64::from_be_bytes(found.value[..].try_into().ok()?);
            Some((number_in(tag, key)?, value))
        });
        let finals = entries.collect();
        caller.shared.owned.0.lock().finals.insert(tag, finals);
    }
    true
}

fn is_changed(answer: &Answer) -> bool {
    use dogsled_storage::ExpiryReply;
    matches!(answer, Answer::Reply(Reply::Expiry(ExpiryReply::Changed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(all: &[(u64, u64)]) -> LogTimes {
        let log = LogTimes::default();
        for (position, time_ms) in all {
            let result = Ok(Answer::Done);
            log.note(1, &GroupReply { position: *position, time_ms: *time_ms, result });
        }
        log
    }

    #[test]
    fn a_key_is_to_be_there_until_its_time_and_not_after() {
        let log = times(&[(10, 1_000), (20, 1_999), (30, 2_000), (40, 2_500)]);
        let judge = |position, is_there| {
            let owned = Owned::default();
            let look = Look { key: "key".to_owned(), group: 1, position, ends_ms: 2_000, is_there };
            owned.0.lock().looks.push(look);
            owned.judge(&log).len()
        };
        assert_eq!((judge(10, true), judge(20, true), judge(25, true)), (0, 0, 0));
        assert_eq!((judge(10, false), judge(20, false)), (1, 1));
        // Between the two nothing is known.
        assert_eq!((judge(25, false), judge(29, true)), (0, 0));
        assert_eq!((judge(30, true), judge(50, true)), (1, 1));
        assert_eq!((judge(30, false), judge(50, false)), (0, 0));
    }

    #[test]
    fn numbers_grow_and_are_given_once() {
        let made =
            |position, number| Numbered { made: Some((position, number)), value: number, is_mortal: false };
        let judge = |numbered: &[Numbered], finals: &[(u64, u64)]| {
            judge_numbers(numbered, Some(&finals.to_vec())).is_none()
        };
        let all = [made(10, 0), made(30, 2), made(20, 1)];
        assert!(judge(&all, &[(0, 0), (1, 1), (2, 2)]));
        assert!(judge(&all, &[(0, 0), (1, 1), (2, 2), (3, 9)]));
        assert!(!judge(&[made(10, 1), made(20, 1)], &[(1, 1)]), "given twice");
        assert!(!judge(&[made(10, 1), made(20, 0)], &[(0, 0), (1, 1)]), "given later, and smaller");
        assert!(!judge(&all, &[(0, 0), (2, 2)]), "lost");
        assert!(!judge(&all, &[(0, 0), (1, 1), (2, 2), (3, 1)]), "made twice");
        let mortal = Numbered { is_mortal: true, ..made(40, 3) };
        assert!(judge(&[mortal], &[]));
    }

    #[test]
    fn keys_of_a_session_that_has_ended_are_not_to_be_seen() {
        let judge = |seen| {
            let owned = Owned::default();
            owned.0.lock().ended.insert(SessionId(7), (1, 20));
            owned.0.lock().sightings.push((SessionId(7), 1, seen));
            owned.judge(&LogTimes::default()).len()
        };
        assert_eq!((judge(19), judge(20), judge(21)), (0, 1, 1));
    }
}
