//! [`Slot`]: a key as operations see it, one after the other, and what they have made of it as operations
//! ([`difference`]).
//!
//! Nothing here reads or writes: whoever evaluates has looked at the key, and says what becomes of it.

use super::{SetOnly, StringAction};
use crate::IVec;
use crate::codec::Listed;
use crate::expiry::{SetIf, When};
use crate::hashes::{self, Content, HashAction, HashSlot};

/// What an operation changes: the value of a key, and when it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The value; `None`: there is none, or it is a hash.
    pub value: Option<IVec>,
    /// The hash, if it is one. What an operation [needs](hashes::HashAction::needs) of it is known before that is applied.
    pub hash: Option<HashSlot>,
    /// When it ends, in milliseconds of the log's time; `None`: never.
    pub expires_ms: Option<u64>,
    /// Whether the value was written, be it to what it was.
    pub is_written: bool,
    /// Nobody looked what was there: it was overwritten unseen.
    pub is_blind: bool,
    /// What is told to whoever watches the key.
    pub told: Vec<IVec>,
}

impl Slot {
    /// A key as it was found.
    pub fn found(value: Option<IVec>, expires_ms: Option<u64>) -> Slot {
        Slot { value, expires_ms, ..Slot::default() }
    }

    /// A key with what is stored as its value.
    pub fn stored(value: Option<IVec>, expires_ms: Option<u64>) -> Slot {
        match value.map(Content::of) {
            Some(Content::Text(text)) => Slot::found(Some(text), expires_ms),
            Some(Content::Hash(id, count)) => {
                Slot { hash: Some(HashSlot::found(id, count)), expires_ms, ..Slot::default() }
            }
            None => Slot::found(None, None),
        }
    }

    /// What is to be stored as its value; `None`: nothing is there.
    pub fn encode(&self) -> Option<IVec> {
        match (&self.value, &self.hash) {
            (Some(text), _) => Some(Content::encode_text(text)),
            (None, Some(hash)) => Some(Content::encode_hash(hash.id, hash.count)),
            (None, None) => None,
        }
    }

    /// Whether something is there.
    pub fn is_there(&self) -> bool {
        self.value.is_some() || self.hash.is_some()
    }

    /// A key that nobody looks at before it is [overwritten](super::StringsOperation::is_blind).
    pub fn unseen() -> Slot {
        Slot { is_blind: true, ..Slot::default() }
    }

    pub(super) fn write(&mut self, value: IVec) {
        self.value = Some(value);
        self.hash = None;
        self.is_written = true;
    }

    pub(super) fn remove(&mut self) -> Option<IVec> {
        self.expires_ms = None;
        self.is_written = true;
        self.hash = None;
        self.value.take()
    }

    /// Sets when it ends; a time that is over removes it.
    pub(super) fn expire(&mut self, when: Option<When>, time_ms: u64) {
        let at = match when {
            None => None,
            Some(When::Keep) => return,
            Some(When::After(after)) => Some(time_ms.saturating_add(after)),
            Some(When::At(at)) => Some(at),
        };
        let at = at.map(|at| at.min(crate::expiry::LATEST_MS));
        self.expires_ms = at;
        if at.is_some_and(|at| at <= time_ms) {
            self.remove();
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }
}

/// The operations on one key that make of `before` what `after` is, and tell what `after` tells, of which nobody wants the
/// replies; none, if nothing was written.
///
/// What `after` has of a hash must be all that was changed, and all of it if it is another hash: one of another
/// [id](HashSlot::id), so those of hashes of several groups have to be told apart before.
pub fn difference(before: &Slot, after: &Slot) -> Vec<StringAction> {
    let mut actions = Vec::new();
    let time = |slot: &Slot| slot.expires_ms.map(When::At);
    let same = |hash: &HashSlot| before.hash.as_ref().is_some_and(|before| before.id == hash.id);
    let mut has_time = before.expires_ms;
    match (&after.value, &after.hash) {
        (Some(value), _) if after.is_written => {
            let (value, only) = (value.clone(), SetOnly::Always);
            actions.push(StringAction::Set { value, only, when: time(after), get: false });
            has_time = after.expires_ms;
        }
        (None, Some(hash)) if after.is_written => {
            if before.is_there() && !same(hash) {
                actions.push(StringAction::Delete);
            }
            if !same(hash) {
                has_time = None;
            }
            let (mut set, mut removed) = (Vec::new(), Vec::new());
            for (name, field) in &hash.fields {
                match &field.now {
                    Some(value) if field.before.as_ref() != Some(value) || !same(hash) => {
                        set.push((name.clone(), value.clone()));
                    }
                    None if field.before.is_some() && same(hash) => removed.push(name.clone()),
                    _ => {}
                }
            }
            if set.is_empty() && removed.is_empty() {
                // Written to what it was: whoever watches the key is to see that.
                let known = |(name, field): (&IVec, &hashes::Field)| Some((name.clone(), field.now.clone()?));
                set.extend(hash.fields.iter().find_map(known));
            }
            // In this order: the last field that goes takes the hash with it.
            if !set.is_empty() {
                actions.push(StringAction::Hash(HashAction::Set { pairs: Listed(set) }));
            }
            if !removed.is_empty() {
                actions.push(StringAction::Hash(HashAction::Delete { fields: Listed(removed) }));
            }
        }
        (None, None) if before.is_there() => {
            actions.push(StringAction::Delete);
            has_time = None;
        }
        _ => {}
    }
    if after.is_there() && after.expires_ms != has_time {
        actions.push(match after.expires_ms {
            Some(at) => StringAction::Expire { when: When::At(at), only: SetIf::Always, only_some: false },
            None => StringAction::Persist,
        });
    }
    actions.extend(after.told.iter().map(|value| StringAction::Tell { value: value.clone() }));
    actions
}
