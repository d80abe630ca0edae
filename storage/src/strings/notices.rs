//! Keyspace notifications: what Redis tells of keys beside their values, as `set`, `expire` or `expired`.
//!
//! A watch of a tree tells what a key has become, once for each entry of the log; neither by which command nor whether it
//! was removed or has expired. So events are told beside the changes: the evaluation of [`Command::Strings`](crate::Command::Strings) sees every operation and what came
//! of it, and tells ([`Effect::Tell`]) of each what Redis would, on the same key of the tree [`EVENTS_TREE`], in the same
//! entry. Whoever watches that tree hears all of it, in the order in which it happened in the partition, at any replica.
//!
//! # Switched on by the tree itself
//!
//! Which events are wanted is what the first key of that tree in the partition has as its value, in Redis's letters
//! ([`Wanted::parse`]); where there is none, nothing is told, and it costs a command one look for the tree. So it is on
//! from one entry on, for all replicas, whichever node the writes come by.
//!
//! # What is told
//!
//! Of those commands, all of what Redis 7.0 tells of these commands, and `expired` of every key that
//! [`Command::SettleDue`](crate::Command::SettleDue) removes, or that is written after its time and before that. Of the other commands, which Redis's
//! clients do not have, nothing. A transaction over several partitions comes to each as what it makes of every key
//! ([`difference`](super::difference)), and that is told: `set` where it was `incrby`, say.
//!
//! ```text
//! told       kinds u8 (1: of the key space, 2: of events), number of the database u8, name of the event to the end
//! ```
//! The first byte of [`Wanted`] as text is a letter, and never one of these kinds.

use super::{SetOnly, Slot, StringAction, StringsReply};
use crate::command::TreeId;
use crate::evaluate::{Effect, Effects, View};
use crate::expiry::When;
use crate::hashes::HashAction;
use crate::{IVec, Result};

/// The tree that events are told on.
pub const EVENTS_TREE: &[u8] = b"redis:events";
/// How many trees are databases of Redis.
pub const DATABASES: u8 = 16;

/// The name of the tree that is the database of this number.
pub fn database_name(number: u8) -> IVec {
    match number {
        0 => IVec::from("redis"),
        other => IVec::from(format!("redis:{other}")),
    }
}

/// Letters and bits of kinds of events, in the order in which Redis says them.
const LETTERS: [(u8, u16); 14] = [
    (b'g', GENERIC),
    (b'$', STRING),
    (b'l', 1 << 4),
    (b's', 1 << 5),
    (b'h', HASH),
    (b'z', 1 << 7),
    (b'x', EXPIRED),
    (b'e', 1 << 9),
    (b't', 1 << 10),
    (b'd', 1 << 11),
    (b'n', NEW),
    (b'K', KEYSPACE),
    (b'E', KEYEVENT),
    (b'm', 1 << 13),
];
const KEYSPACE: u16 = 1;
const KEYEVENT: u16 = 2;
const GENERIC: u16 = 1 << 2;
const STRING: u16 = 1 << 3;
const HASH: u16 = 1 << 6;
const EXPIRED: u16 = 1 << 8;
const NEW: u16 = 1 << 12;
/// What `A` stands for: neither new keys nor those that were missed.
const ALL: u16 = 0b1111_1111_1100;

/// Which events are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted(u16);

impl Wanted {
    /// By Redis's letters; `None`: one of them is no such letter.
    pub fn parse(letters: &[u8]) -> Option<Wanted> {
        letters.iter().try_fold(Wanted::default(), |wanted, letter| {
            let bits = match letter {
                b'A' => ALL,
                letter => LETTERS.iter().find(|(known, _)| known == letter)?.1,
            };
            Some(Wanted(wanted.0 | bits))
        })
    }

    /// In letters; empty: nothing is wanted.
    pub fn text(self) -> String {
        self.letters(ALL)
    }

    /// As Redis says them, which does not tell of new keys beside all others.
    pub fn text_of_redis(self) -> String {
        self.letters(ALL | NEW)
    }

    /// Of some kinds not, if all are there.
    fn letters(self, but: u16) -> String {
        let has_all = self.0 & ALL == ALL;
        let letters = LETTERS.iter().filter(|(_, bit)| self.0 & bit != 0 && !(has_all && bit & but != 0));
        let all = has_all.then_some('A');
        all.into_iter().chain(letters.map(|(letter, _)| char::from(*letter))).collect()
    }

    /// Whether anything comes of it.
    fn is_on(self) -> bool {
        self.0 & (KEYSPACE | KEYEVENT) != 0
    }
}

/// An event as it is told of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice<'a> {
    /// Whether it is told by the key.
    pub by_key: bool,
    /// Whether it is told by the event.
    pub by_event: bool,
    /// The number of the database.
    pub database: u8,
    /// The name of the event.
    pub event: &'a [u8],
}

impl Notice<'_> {
    /// What was told on [`EVENTS_TREE`]; `None`: it was something else.
    pub fn decode(told: &[u8]) -> Option<Notice<'_>> {
        let [kinds, database, event @ ..] = told else { return None };
        let kinds = Some(u16::from(*kinds)).filter(|kinds| (1..=3).contains(kinds))?;
        let (by_key, by_event) = (kinds & KEYSPACE != 0, kinds & KEYEVENT != 0);
        Some(Notice { by_key, by_event, database: *database, event })
    }
}

/// What a key was before an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    was_there: bool,
    had_time: bool,
}

impl Before {
    pub(super) fn of(slot: &Slot) -> Before {
        Before { was_there: slot.is_there(), had_time: slot.expires_ms.is_some() }
    }
}

/// The events of one entry.
pub(crate) struct Notices<'a, V> {
    view: &'a V,
    tree: TreeId,
    wanted: Wanted,
    /// The numbers of trees that were looked up; `None`: it is no database.
    databases: Vec<(TreeId, Option<u8>)>,
    told: Effects,
}

impl<'a, V: View> Notices<'a, V> {
    /// If any are wanted.
    pub(crate) fn of(view: &'a V) -> Result<Option<Notices<'a, V>>> {
        let Some(tree) = view.tree_id(EVENTS_TREE) else { return Ok(None) };
        let switch = view.end(tree, false)?;
        let wanted = switch.and_then(|(_, switch)| Wanted::parse(&switch.value)).unwrap_or_default();
        let notices = Notices { view, tree, wanted, databases: Vec::new(), told: Effects::new() };
        Ok(wanted.is_on().then_some(notices))
    }

    /// What is to be told, in order.
    pub(crate) fn into_effects(self) -> Effects {
        self.told
    }

    /// That the time of a key was over.
    pub(crate) fn expired(&mut self, tree: TreeId, key: &[u8]) {
        self.tell(EXPIRED, tree, key, "expired");
    }

    fn tell(&mut self, kind: u16, tree: TreeId, key: &[u8], event: &str) {
        if self.wanted.0 & kind == 0 {
            return;
        }
        let Some(database) = self.database(tree) else { return };
        let kinds = (self.wanted.0 & (KEYSPACE | KEYEVENT)) as u8;
        let value = IVec::from([&[kinds, database], event.as_bytes()].concat());
        self.told.push(Effect::Tell { tree: self.tree, key: IVec::from(key), value });
    }

    fn database(&mut self, tree: TreeId) -> Option<u8> {
        if let Some((_, number)) = self.databases.iter().find(|(known, _)| *known == tree) {
            return *number;
        }
        let number =
            (0..DATABASES).find(|number| self.view.tree_id_to_be(&database_name(*number)) == Some(tree));
        self.databases.push((tree, number));
        number
    }

    /// What an operation on a key came to; `before` and `slot`: what the key was and is.
    pub(super) fn operation(
        &mut self,
        (tree, key): (TreeId, &[u8]),
        action: &StringAction,
        reply: &StringsReply,
        before: Before,
        slot: &Slot,
    ) {
        use StringsReply::{Done, Failed, Integer, Value};
        if let Failed(_) = reply {
            return;
        }
        let is_there = slot.is_there();
        let mut tell = |kind, event| self.tell(kind, tree, key, event);
        let mut one = |kind, event| {
            if !before.was_there && is_there {
                tell(NEW, "new");
            }
            tell(kind, event);
        };
        match (action, reply) {
            (StringAction::Set { only, when, get, .. }, reply) => {
                let is_set = match (get, only) {
                    (false, _) => *reply == Done,
                    (true, SetOnly::Always) => true,
                    (true, SetOnly::Absent) => !before.was_there,
                    (true, SetOnly::Present) => before.was_there,
                    // Nobody asks for both.
                    (true, SetOnly::AsRequired) => false,
                };
                if is_set {
                    // Also if it is gone at once.
                    if !before.was_there {
                        self.tell(NEW, tree, key, "new");
                    }
                    self.tell(STRING, tree, key, "set");
                    if matches!(when, Some(When::After(_) | When::At(_))) {
                        self.tell(GENERIC, tree, key, "expire");
                    }
                    // Its time was over before it was set.
                    if !is_there {
                        self.expired(tree, key);
                    }
                }
            }
            (StringAction::Delete, Integer(1)) | (StringAction::Take, Value(Some(_))) => one(GENERIC, "del"),
            (StringAction::GetAndExpire { when: None }, Value(Some(_))) if before.had_time => {
                one(GENERIC, "persist");
            }
            (StringAction::GetAndExpire { when: Some(_) }, Value(Some(_)))
            | (StringAction::Expire { .. }, Integer(1)) => {
                one(GENERIC, if is_there { "expire" } else { "del" });
            }
            (StringAction::Persist, Integer(1)) => one(GENERIC, "persist"),
            (StringAction::Append { .. }, _) => one(STRING, "append"),
            (StringAction::Overwrite { value, .. }, _) if !value.is_empty() => one(STRING, "setrange"),
            (StringAction::Add { .. }, _) => one(STRING, "incrby"),
            (StringAction::AddFloat { .. }, _) => one(STRING, "incrbyfloat"),
            // Neither to itself.
            (StringAction::Transfer { tree: to, key: to_key, copy, .. }, Integer(1))
                if (*to, &to_key[..]) != (tree, key) =>
            {
                self.tell(NEW, *to, to_key, "new");
                if *copy {
                    self.tell(GENERIC, *to, to_key, "copy_to");
                } else {
                    self.tell(GENERIC, tree, key, "rename_from");
                    self.tell(GENERIC, *to, to_key, "rename_to");
                }
            }
            (StringAction::Hash(action), reply) => match (action, reply) {
                (HashAction::Set { .. }, _) | (HashAction::SetAbsent { .. }, Integer(1)) => one(HASH, "hset"),
                (HashAction::Add { .. }, _) => one(HASH, "hincrby"),
                (HashAction::AddFloat { .. }, _) => one(HASH, "hincrbyfloat"),
                (HashAction::Delete { .. }, Integer(1..)) => {
                    one(HASH, "hdel");
                    if !is_there {
                        self.tell(GENERIC, tree, key, "del");
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_said_as_redis_says_them() {
        for (letters, text) in [
            ("", ""),
            ("KEA", "AKE"),
            ("AKE", "AKE"),
            ("Kx", "xK"),
            ("Ex$g", "g$xE"),
            ("g$lshzxetdKE", "AKE"),
            ("AKEnm", "AnKEm"),
            ("KK", "K"),
        ] {
            let wanted = Wanted::parse(letters.as_bytes()).unwrap();
            assert_eq!(wanted.text(), text, "{letters}");
            assert_eq!(Wanted::parse(text.as_bytes()), Some(wanted));
        }
        assert_eq!(Wanted::parse(b"KEAq"), None);
        assert_eq!(Wanted::parse(b"KnA").unwrap().text_of_redis(), "AK");
        assert_eq!(Wanted::parse(b"Kng").unwrap().text_of_redis(), "gnK");
        assert!(!Wanted::parse(b"A").unwrap().is_on());
    }

    #[test]
    fn a_notice_is_told_from_the_switch() {
        for letters in ["A", "K", "$E", "nmKE"] {
            assert_eq!(Notice::decode(letters.as_bytes()), None);
        }
        let notice = Notice { by_key: true, by_event: false, database: 3, event: b"del" };
        assert_eq!(Notice::decode(b"\x01\x03del"), Some(notice));
        assert_eq!(Notice::decode(b"\x04\x03del"), None);
        assert_eq!(Notice::decode(b"\x03"), None);
    }
}
