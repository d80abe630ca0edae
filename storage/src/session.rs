//! Sessions: a command that is retried happens once.
//!
//! # Promise
//!
//! A client that does not hear the answer to a command cannot know whether it has happened. Within
//! a session it sends the same command again under the same number ([`SessionTag`]), as
//! often as it likes, to whichever replica leads: the command happens once, and every answer is the
//! answer to that one time. This is RIFL's idea (Lee et al., *Implementing linearizability at large
//! scale and low latency*, 2015): the answer is remembered in the same commit as the effects, in the
//! same trees, and travels with them in every snapshot.
//!
//! # Slots
//!
//! RIFL's client tells below which number it has heard everything, and the server forgets those
//! answers one by one. Here a session has *slots*, as in NFS 4.1 (RFC 8881, section 2.10.6): a client
//! has at most one command under way in each, and numbers those of one slot upwards. So a slot
//! remembers one answer, and the next command's takes its place: one put, and nothing to remove. (The
//! watermark cost two puts, a removal and four times the time of the command itself.) One command
//! that is slow holds up no other, either.
//!
//! | the slot holds | then |
//! |---|---|
//! | nothing, or a smaller number | the command is carried out, and its answer remembered, a refusal too |
//! | this number | the answer that is remembered, and nothing is done |
//! | a larger number: the client has heard of this one, or given it up | [`Refusal::Forgotten`], and nothing is done |
//! | no matter what, but the session is not there | [`Refusal::SessionUnknown`], and nothing is done |
//!
//! **What a session cannot do.** When it has ended, its answers go. A retry that comes later is
//! refused, and its client does not know whether the first try happened: leases should be longer
//! than any client retries. A client never opens a session under a number that it has used before: a
//! message of the first that was delayed could then be taken for one of the second.
//!
//! **When a session ends.** By [`Operation::ExpireSessions`] and nothing else, so at one position of the log.
//! That entry ends those whose lease is over by the log's time *and* whose whole lease the leader that
//! proposes it has seen pass on its own monotonic clock: after a change of leaders every session has its full
//! lease again, because its client may have had nobody to renew it with. No command renews a session but
//! [`Operation::RenewSession`] and [`Operation::OpenSession`].
//!
//! **Bounded work.** A session remembers at most [`MAX_SLOTS`] answers; closing and expiring removes
//! at most [`REMOVE_AT_ONCE`] keys, and looks at a few times as many that are not to go yet, so no entry of the log
//! takes long. What a transaction that is prepared has locked is left for another time, and with it what one entry
//! does not get to behind it.
//!
//! **In an embedded database** there are sessions as well, of applications: they own keys and locks, and number no
//! commands. [`crate::Engine::open_session`] and its like evaluate the same functions.
//!
//! # Layout
//!
//! In [`TreeId::SESSIONS`]; numbers in keys are big-endian:
//!
//! | key | value |
//! |---|---|
//! | 1, session (16) | version 2, then as varints: lease, `expires_ms`; a lease of 0: it has ended, and was too much to remove at once |
//! | 2, session (16), slot (2) | the number (8, big-endian), an encoded [`GroupReply`] |
//! | 3, `expires_ms` (8), session (16) | nothing: it is the order in which sessions end |
//! | 4, … | its keys and its locks; see [`crate::owned`] |
//!
//! [`Operation::RenewSession`]: crate::group::Operation::RenewSession
//! [`Operation::OpenSession`]: crate::group::Operation::OpenSession
//! [`Operation::ExpireSessions`]: crate::group::Operation::ExpireSessions

use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::codec::{self, decode_group_reply, encode_group_reply};
use crate::command::TreeId;
use crate::evaluate::{Context, Effect, Effects, View};
use crate::group::{Answer, GroupReply, Refusal, SessionId, SessionTag};
use crate::owned::{owned_key, remove_owned};
use crate::{Error, IVec, Result, lock};

/// The most keys that closing a session or expiring sessions removes at a time.
pub const REMOVE_AT_ONCE: usize = 1024;

/// The most sessions that are found to be over for that, and the most of their keys that turn out to be locked.
const LOOK_AT_ONCE: usize = 4 * REMOVE_AT_ONCE;
/// The most sessions that are passed over for it, because not all of their lease was seen. Those that end behind so many
/// wait until that is so.
const PASS_AT_ONCE: usize = 64 * REMOVE_AT_ONCE;
/// How many slots a session has: so many commands may be under way at a time.
pub const MAX_SLOTS: usize = 1 << 16;

/// The version byte of the records that this build writes.
const RECORD_VERSION: u8 = 2;

const RECORD: u8 = 1;
const SLOT: u8 = 2;
const EXPIRY: u8 = 3;

/// What is kept of a session beside its answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Record {
    lease_ms: u64,
    expires_ms: u64,
}

impl Record {
    /// What is left of a session that has ended and was too much to remove at once.
    const ENDING: Record = Record { lease_ms: 0, expires_ms: 0 };
    /// The same of one that its owner has closed.
    const CLOSED: Record = Record { lease_ms: 0, expires_ms: 1 };

    fn is_ending(&self) -> bool {
        self.lease_ms == 0
    }
}

/// Effects, and what the caller is told.
pub(crate) type Done = (Effects, Result<Answer, Refusal>);

/// Carries out `run` unless it was before; see the table in the [module](self).
pub(crate) fn exactly_once(
    view: &impl View,
    context: &Context,
    tag: &SessionTag,
    run: impl FnOnce() -> Result<Done>,
) -> Result<(Effects, GroupReply)> {
    let answer = |result| GroupReply { position: context.sequence, time_ms: context.time_ms, result };
    let refuse = |refusal| Ok((Effects::new(), answer(Err(refusal))));
    if live(view, tag.session)?.is_none() {
        return refuse(Refusal::SessionUnknown(tag.session));
    }
    let key = slot_key(tag.session, tag.slot);
    let stored = view.get(TreeId::SESSIONS, &key)?;
    if let Some(stored) = &stored {
        let (latest, reply) = split_slot(&stored.value)?;
        if latest > tag.sequence {
            return refuse(Refusal::Forgotten { latest });
        }
        if latest == tag.sequence {
            return Ok((Effects::new(), decode_stored(tag, reply)?));
        }
    }

    let (mut effects, result) = run()?;
    // The one answer that is not remembered: nothing was done, the number is not used up, and the same
    // command is carried out when it comes again and the lock is gone.
    if matches!(result, Err(Refusal::Locked(_))) {
        return Ok((Effects::new(), answer(result)));
    }
    let mut reply = answer(result);
    let encoded = match encode_group_reply(&reply) {
        Ok(encoded) => encoded,
        // An answer that cannot be told is none, and must not stop the group: nothing is done.
        Err(error) => {
            effects = Effects::new();
            reply = answer(Err(Refusal::TooLarge(error.to_string())));
            encode_group_reply(&reply)?
        }
    };
    let mut value = Vec::with_capacity(8 + encoded.len());
    value.extend_from_slice(&tag.sequence.to_be_bytes());
    value.extend_from_slice(&encoded);
    let fresh = Some(stored.is_none());
    effects.push(Effect::Put { tree: TreeId::SESSIONS, key, value: IVec::from(value), fresh });
    Ok((effects, reply))
}

/// [`Operation::OpenSession`](crate::group::Operation::OpenSession).
pub(crate) fn open(view: &impl View, context: &Context, session: SessionId, lease_ms: u64) -> Result<Done> {
    if lease_ms == 0 {
        let what = "a lease of 0 ms would end before it begins".to_owned();
        return Ok((Effects::new(), Err(Refusal::Invalid(what))));
    }
    let mut effects = Effects::new();
    let expires_ms = context.time_ms.saturating_add(lease_ms);
    match read_record(view, session)? {
        Some(found) if found.is_ending() => return Ok((effects, Err(Refusal::SessionUnknown(session)))),
        // A retry: the answer to the first try was lost.
        Some(found) => move_expiry(session, &found, Record { lease_ms, expires_ms }, &mut effects),
        None => {
            let record = Record { lease_ms, expires_ms };
            put_record(session, &record, true, &mut effects);
            effects.push(put_expiry(session, expires_ms));
        }
    }
    Ok((effects, Ok(Answer::Session { expires_ms })))
}

/// [`Operation::RenewSession`](crate::group::Operation::RenewSession).
pub(crate) fn renew(view: &impl View, context: &Context, session: SessionId) -> Result<Done> {
    let mut effects = Effects::new();
    let Some(found) = live(view, session)? else {
        return Ok((effects, Err(Refusal::SessionUnknown(session))));
    };
    let expires_ms = context.time_ms.saturating_add(found.lease_ms);
    move_expiry(session, &found, Record { expires_ms, ..found }, &mut effects);
    Ok((effects, Ok(Answer::Session { expires_ms })))
}

/// [`Operation::CloseSession`](crate::group::Operation::CloseSession). What is too much to remove at
/// once is left to be expired.
pub(crate) fn close(view: &impl View, context: &Context, session: SessionId) -> Result<Done> {
    let mut effects = Effects::new();
    let (touched, locked) = (Vec::new(), 0);
    let mut ending = Ending { context, is_clean: true, touched, locked, effects: &mut effects };
    if let Some(found) = read_record(view, session)?
        && ending.remove(view, session, &found, REMOVE_AT_ONCE - 3)? != Left::Nothing
    {
        let left = if found.is_ending() { found.clone() } else { Record::CLOSED };
        move_expiry(session, &found, left, &mut effects);
    }
    Ok((effects, Ok(Answer::Done)))
}

/// [`Operation::ExpireSessions`](crate::group::Operation::ExpireSessions).
pub(crate) fn expire(view: &impl View, context: &Context, led_ms: u64) -> Result<Done> {
    let (ended, mut complete) = over(view, context.time_ms, led_ms)?;
    let mut effects = Effects::new();
    let mut sessions = 0;
    let (mut touched, mut locked) = (Vec::new(), 0);
    for (session, found) in ended {
        let budget = REMOVE_AT_ONCE.saturating_sub(effects.len());
        // Two for the session itself, three to mark it.
        if budget < 5 || locked >= LOOK_AT_ONCE {
            complete = false;
            break;
        }
        let is_clean = found == Record::CLOSED;
        let mut ending = Ending { context, is_clean, touched, locked, effects: &mut effects };
        let left = ending.remove(view, session, &found, budget - 3)?;
        (touched, locked) = (ending.touched, ending.locked);
        if left != Left::Nothing {
            let left = if found.is_ending() { found.clone() } else { Record::ENDING };
            move_expiry(session, &found, left, &mut effects);
        }
        match left {
            Left::Nothing => sessions += 1,
            // The other sessions need not wait for that transaction, too.
            Left::Locked => {}
            Left::More => {
                complete = false;
                break;
            }
        }
    }
    // Whoever would come back at once for what is locked would do so until it is not.
    let more = !complete && !effects.is_empty();
    Ok((effects, Ok(Answer::SessionsExpired { sessions, more })))
}

/// The sessions that are over by the log's time, and of which `led_ms` of the lease have been seen, in the order in which
/// they ended; and whether these are all.
fn over(view: &impl View, time_ms: u64, led_ms: u64) -> Result<(Vec<(SessionId, Record)>, bool)> {
    let (mut found, mut passed, mut complete, mut failure) = (Vec::new(), 0, true, None);
    // The end of time is never over.
    let last = expiry_key(time_ms.min(u64::MAX - 1), SessionId(u128::MAX));
    view.scan(TreeId::SESSIONS, Bound::Included(&[EXPIRY]), Bound::Included(&last), &mut |key, _| {
        if found.len() == LOOK_AT_ONCE || passed == PASS_AT_ONCE {
            complete = false;
            return false;
        }
        let record = session_in_expiry(key).and_then(|session| {
            let record = read_record(view, session)?;
            Ok((session, record.ok_or_else(|| damaged("an expiry without its session"))?))
        });
        match record {
            Ok((_, record)) if record.lease_ms > led_ms => passed += 1,
            Ok(record) => found.push(record),
            Err(error) => failure = Some(error),
        }
        failure.is_none()
    })?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok((found, complete)),
    }
}

/// Whether [`expire`] would find a session to end; one that is locked counts.
pub(crate) fn is_any_over(view: &impl View, time_ms: u64, led_ms: u64) -> Result<bool> {
    Ok(!over(view, time_ms, led_ms)?.0.is_empty())
}

/// When the first session ends; `None`: never.
pub(crate) fn earliest_expiry(view: &impl View) -> Result<Option<u64>> {
    let mut first = None;
    view.scan(TreeId::SESSIONS, Bound::Included(&[EXPIRY]), Bound::Unbounded, &mut |key, _| {
        first = Some(IVec::from(key));
        false
    })?;
    let expires_ms = match first {
        Some(key) => {
            u64::from_be_bytes(key[1..].first_chunk().copied().ok_or_else(|| damaged("a short key"))?)
        }
        None => return Ok(None),
    };
    Ok((expires_ms != u64::MAX).then_some(expires_ms))
}

/// The lease of a session that lives, in milliseconds.
pub(crate) fn lease(view: &impl View, session: SessionId) -> Result<Option<u64>> {
    Ok(live(view, session)?.map(|record| record.lease_ms))
}

/// When sessions are to be expired next, by the log's time, if it is `time_ms` now and `led_ms` of the leases have
/// been seen; `u64::MAX`: never.
pub(crate) fn next_end(view: &impl View, time_ms: u64, led_ms: u64) -> Result<u64> {
    let (mut next, mut failure, mut looked_at) = (u64::MAX, None, 0);
    view.scan(
        TreeId::SESSIONS,
        Bound::Included(&[EXPIRY]),
        Bound::Excluded(&[EXPIRY + 1]),
        &mut |key, _| {
            let Some(expires_ms) = end_in_key(key) else {
                failure = Some(damaged("a short key"));
                return false;
            };
            if expires_ms > time_ms {
                next = next.min(expires_ms);
                return false;
            }
            let record = session_in_expiry(key).and_then(|session| read_record(view, session));
            match record {
                // It is over by the log's time: what is missing is that it was seen to pass.
                Ok(Some(record)) => {
                    let left = record.lease_ms.saturating_sub(led_ms).max(1);
                    next = next.min(time_ms.saturating_add(left));
                }
                Ok(None) => failure = Some(damaged("an expiry without its session")),
                Err(error) => failure = Some(error),
            }
            looked_at += 1;
            failure.is_none() && looked_at < REMOVE_AT_ONCE
        },
    )?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(next),
    }
}

/// When a session ends, if this is the key in [`TreeId::SESSIONS`] that says so.
pub(crate) fn end_in_key(key: &[u8]) -> Option<u64> {
    match key.split_first()? {
        (&EXPIRY, rest) => Some(u64::from_be_bytes(*rest.first_chunk()?)),
        _ => None,
    }
}

/// Whose record this key in [`TreeId::SESSIONS`] has: when it goes, the session has ended.
pub(crate) fn in_record_key(key: &[u8]) -> Option<SessionId> {
    match key.split_first()? {
        (&RECORD, rest) => Some(SessionId(u128::from_be_bytes(rest.try_into().ok()?))),
        _ => None,
    }
}

/// Where [`TreeId::SESSIONS`] has one key for each session that has not ended, for those who count them.
pub(crate) fn alive() -> (Bound<IVec>, Bound<IVec>) {
    (Bound::Included(IVec::from(&[EXPIRY][..])), Bound::Excluded(IVec::from(&[EXPIRY + 1][..])))
}

/// The keys that [`exactly_once`] looks at first.
pub(crate) fn keys_of(tag: &SessionTag) -> [IVec; 2] {
    [record_key(tag.session), slot_key(tag.session, tag.slot)]
}

fn live(view: &impl View, session: SessionId) -> Result<Option<Record>> {
    Ok(read_record(view, session)?.filter(|record| !record.is_ending()))
}

fn read_record(view: &impl View, session: SessionId) -> Result<Option<Record>> {
    let Some(stored) = view.get(TreeId::SESSIONS, &record_key(session))? else { return Ok(None) };
    let record = codec::decode_record(RECORD_VERSION, &stored.value)
        .map_err(|what| damaged(&format!("session {session}: {what}")))?;
    Ok(Some(record))
}

/// The number and the encoded answer that a slot remembers.
fn split_slot(value: &[u8]) -> Result<(u64, &[u8])> {
    let (number, reply) = value.split_first_chunk().ok_or_else(|| damaged("a short slot"))?;
    Ok((u64::from_be_bytes(*number), reply))
}

fn decode_stored(tag: &SessionTag, reply: &[u8]) -> Result<GroupReply> {
    decode_group_reply(reply).map_err(|error| {
        let SessionTag { session, slot, sequence } = tag;
        damaged(&format!("the answer to number {sequence} in slot {slot} of session {session}: {error}"))
    })
}

/// What there still is of a session that is being ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// Only what a transaction keeps as it is.
    Locked,
    /// More than one entry removes.
    More,
}

/// The end of sessions in one entry.
struct Ending<'a> {
    context: &'a Context,
    /// Whether the session's owner has closed it.
    is_clean: bool,
    /// Locks that were changed so far.
    touched: Vec<IVec>,
    /// Keys and locks that a transaction keeps as they are, so far.
    locked: usize,
    effects: &'a mut Effects,
}

impl Ending<'_> {
    /// Removes a session with about `budget` effects at most (what a lock's end frees is granted in the same
    /// entry); what is left of it.
    fn remove(
        &mut self,
        view: &impl View,
        session: SessionId,
        record: &Record,
        budget: usize,
    ) -> Result<Left> {
        // What others see goes first. Each key and its entry are two effects.
        let limit = (budget - 2) / 2;
        let mut owned = listed(view, owned_range(session), limit + 1)?;
        let all_owned = owned.len() <= limit;
        owned.truncate(limit);
        let (looked_at, before) = (owned.len(), self.effects.len());
        let (locks, keys): (Vec<_>, Vec<_>) = owned.into_iter().partition(|key| lock::is_listed(key));
        let mut locked_keys = 0;
        for key in keys {
            locked_keys += usize::from(!remove_owned(view, key, self.effects)?);
        }
        let (context, is_clean) = (self.context, self.is_clean);
        let (left, locked) =
            lock::session_ended(view, context, session, locks, is_clean, &mut self.touched, self.effects)?;
        let (others, locked) = (left - locked, locked_keys + locked);
        self.locked += locked;
        // If all that an entry gets to is locked, it does not get to what is behind that, however often it comes back.
        if locked > 0 && locked == looked_at {
            return Ok(Left::Locked);
        }
        if !all_owned || others > 0 {
            return Ok(Left::More);
        }
        if locked > 0 {
            return Ok(Left::Locked);
        }
        let limit = budget.saturating_sub(2 + self.effects.len() - before);
        let mut found = listed(view, slots_of(session), limit + 1)?;
        let whole = found.len() <= limit;
        found.truncate(limit);
        let mut gone = |key| self.effects.push(Effect::Remove { tree: TreeId::SESSIONS, key });
        found.into_iter().for_each(&mut gone);
        if whole {
            gone(record_key(session));
            gone(expiry_key(record.expires_ms, session));
        }
        Ok(if whole { Left::Nothing } else { Left::More })
    }
}

/// Whether a session is open.
pub(crate) fn is_live(view: &impl View, session: SessionId) -> Result<bool> {
    Ok(live(view, session)?.is_some())
}

/// Where the records of sessions are that have a larger number.
pub(crate) fn records_after(after: Option<SessionId>) -> (Bound<IVec>, Bound<IVec>) {
    let low = match after {
        None => Bound::Included(IVec::from([RECORD])),
        Some(session) => Bound::Excluded(record_key(session)),
    };
    (low, Bound::Excluded(IVec::from([RECORD + 1])))
}

/// The number, the lease and its end in a record of [`records_after`]; `None`: the session is being ended.
pub(crate) fn open_record(key: &[u8], value: &[u8]) -> Result<Option<(SessionId, u64, u64)>> {
    let session = in_record_key(key).ok_or_else(|| damaged("a short key"))?;
    let record: Record = codec::decode_record(RECORD_VERSION, value)
        .map_err(|what| damaged(&format!("session {session}: {what}")))?;
    Ok((!record.is_ending()).then_some((session, record.lease_ms, record.expires_ms)))
}

/// Where the answers are that a session remembers, both ends included.
pub(crate) fn slots_of(session: SessionId) -> (IVec, IVec) {
    (slot_key(session, 0), slot_key(session, u16::MAX))
}

/// The range in which a session's keys are listed, both ends included: no tree has the last number.
pub(crate) fn owned_range(session: SessionId) -> (IVec, IVec) {
    let first = owned_key(session, TreeId(0), b"");
    (first, owned_key(session, TreeId(u32::MAX), b""))
}

/// Keys within a range, both ends included, at most `limit`.
fn listed(view: &impl View, (low, high): (IVec, IVec), limit: usize) -> Result<Vec<IVec>> {
    let mut found = Vec::new();
    view.scan(TreeId::SESSIONS, Bound::Included(&low), Bound::Included(&high), &mut |key, _| {
        if found.len() < limit {
            found.push(IVec::from(key));
        }
        found.len() < limit
    })?;
    Ok(found)
}

fn put_record(session: SessionId, record: &Record, fresh: bool, effects: &mut Effects) {
    let value = IVec::from(codec::encode_record(RECORD_VERSION, record));
    effects.push(Effect::Put { tree: TreeId::SESSIONS, key: record_key(session), value, fresh: Some(fresh) });
}

fn put_expiry(session: SessionId, expires_ms: u64) -> Effect {
    let key = expiry_key(expires_ms, session);
    Effect::Put { tree: TreeId::SESSIONS, key, value: IVec::new(), fresh: Some(true) }
}

fn move_expiry(session: SessionId, before: &Record, after: Record, effects: &mut Effects) {
    if after == *before {
        return;
    }
    if after.expires_ms != before.expires_ms {
        let key = expiry_key(before.expires_ms, session);
        effects.push(Effect::Remove { tree: TreeId::SESSIONS, key });
        effects.push(put_expiry(session, after.expires_ms));
    }
    put_record(session, &after, false, effects);
}

fn record_key(session: SessionId) -> IVec {
    let mut key = [RECORD; 17];
    key[1..].copy_from_slice(&session.0.to_be_bytes());
    IVec::from(key)
}

fn slot_key(session: SessionId, slot: u16) -> IVec {
    let mut key = [SLOT; 19];
    key[1..17].copy_from_slice(&session.0.to_be_bytes());
    key[17..].copy_from_slice(&slot.to_be_bytes());
    IVec::from(key)
}

fn expiry_key(expires_ms: u64, session: SessionId) -> IVec {
    let mut key = [EXPIRY; 25];
    key[1..9].copy_from_slice(&expires_ms.to_be_bytes());
    key[9..].copy_from_slice(&session.0.to_be_bytes());
    IVec::from(key)
}

fn session_in_expiry(key: &[u8]) -> Result<SessionId> {
    let bytes = key.last_chunk().ok_or_else(|| damaged("a short key"))?;
    Ok(SessionId(u128::from_be_bytes(*bytes)))
}

fn damaged(what: &str) -> Error {
    Error::corrupt("the tree of sessions", None, what)
}
