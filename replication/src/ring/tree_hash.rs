//! [`TreeHash`]: what of a tree's keys is hashed, chosen for each tree once.
//!
//! # Why
//!
//! If the whole key decides, keys that begin alike lie in all partitions: a scan of a prefix asks them all,
//! and a batch below a prefix is torn. A [tag](super) helps only who may choose how his keys look. So a tree
//! can be made to hash a prefix of each key: its first bytes, or what stands before a delimiter. Then
//! everything below one such prefix lies in one partition: it is scanned there, and written atomically. The
//! price is that a prefix cannot be spread any more: all of it loads one partition.
//!
//! # The part that is hashed
//!
//! | choice | key | hashed |
//! |---|---|---|
//! | [`TreeHash::Whole`] | `chat/7/0001` | `chat/7/0001` |
//! | [`TreeHash::First`] 6 | `chat/7/0001` | `chat/7` |
//! | [`TreeHash::Before`] the second `/` | `chat/7/0001`, `chat/7` | `chat/7` |
//! | any of these | `{chat/7}/0001` | `chat/7` |
//! | [`TreeHash::Slot`] | as [`TreeHash::Whole`] | as there, but to one of [Redis's slots](super::slots) |
//!
//! A key that is shorter, or has fewer delimiters, is hashed as a whole. The delimiter itself is not
//! hashed, so that the key `chat/7`, a lock or counter `chat/7`, and all below `chat/7/` share a partition.
//! **A tag wins if its `{` stands within the prefix.** If it won wherever it stood, then any key below a
//! prefix could be of any partition, and no scan of a prefix would ever be of one.
//!
//! # Why a choice is for ever, and how a name carries it
//!
//! Data lies where the hash put it. Two that hash one tree differently would each find it empty where the
//! other writes; so nobody may use another choice than is in force, whenever he last asked. Were the choice
//! merely a setting that nodes know, a node that hears of it late would let in what it should not. Instead:
//!
//! - A tree that is hashed by a prefix is kept in each partition under a [*stored name*](TreeHash::stored_name)
//!   that says how. Where a key belongs is a function of the stored name and the key, and of nothing else.
//! - The plain name is [sealed](dogsled_storage::seal) in every partition, **by an entry of the partition's own
//!   log**. Whoever believes that the tree is hashed as a whole names it plainly, and is refused at every
//!   position behind that entry, by any replica, as leader or follower: reads, writes, transactions, watches.
//! - The [record](crate::meta) of the meta group says which choice is whose. It is written before the first
//!   seal and never changes, so that there are never two stored names for one tree; and it is told to clients only
//!   when every partition has sealed the name *and then had no tree of it*.
//!
//! So a choice can be made only for a tree that is nowhere; the same choice can be made again, another one is
//! a conflict. Interrupted anywhere it is gone on with by asking again: until then the tree can be written to
//! by nobody in the partitions that are sealed, and nothing is lost, because it has nothing. `node::hash_tree`
//! carries it out.

use std::fmt;
use std::ops::Bound;

use dogsled_storage::IVec;
use twox_hash::XxHash3_64;

use super::slots;
use crate::codec::{Malformed, Put, Take, malformed};

/// What a stored name begins with that is not the plain name; three bytes of the choice follow, then the
/// plain name.
const STORED: &[u8] = b"__dogsled__hashed:";
/// Bytes of a choice.
const CHOICE: usize = 3;
/// Names that are the database's own begin with this.
pub(crate) const RESERVED: &[u8] = b"__dogsled__";
/// The longest name of a tree for which a choice can be made.
pub const MAX_HASHED_NAME_LENGTH: usize = 1 << 10;

/// What of a tree's keys is hashed; see the [module](self).
///
/// ```
/// use dogsled_replication::ring::TreeHash;
///
/// let chats = TreeHash::Before { delimiter: b'/', occurrence: 2 };
/// assert_eq!(chats.part(b"chat/7/0001"), b"chat/7");
/// assert_eq!(chats.part(b"{ann}/7/0001"), b"ann");
/// assert_eq!(chats.group_of(b"chat/7/0001", 16), chats.group_of(b"chat/7/0002", 16));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum TreeHash {
    /// The whole key, or its tag.
    #[default]
    Whole,
    /// So many bytes at its beginning.
    First(u16),
    /// What stands before a delimiter.
    Before {
        /// The delimiter.
        delimiter: u8,
        /// Which occurrence of it, from 1.
        occurrence: u8,
    },
    /// The whole key, or its tag, to one of [Redis's slots](super::slots): of the trees of Redis's databases, whose
    /// names say so, and of no others.
    Slot,
}

/// Where a brace opens, and what is between it and the next that closes.
fn tag(key: &[u8], within: usize) -> Option<Option<&[u8]>> {
    let open = key[..within].iter().position(|byte| *byte == b'{')?;
    let behind = &key[open + 1..];
    Some(behind.iter().position(|byte| *byte == b'}').map(|length| &behind[..length]))
}

impl TreeHash {
    /// How long the prefix is of a key, or of all keys that begin so; `None`: that is not decided by these
    /// bytes.
    fn prefix_length(self, key: &[u8]) -> Option<usize> {
        match self {
            TreeHash::Whole | TreeHash::Slot => None,
            TreeHash::First(length) => Some(usize::from(length)).filter(|length| *length <= key.len()),
            TreeHash::Before { delimiter, occurrence } => {
                let mut places = key.iter().enumerate().filter(|(_, byte)| **byte == delimiter);
                let nth = places.nth(usize::from(occurrence).checked_sub(1)?);
                nth.map(|(at, _)| at)
            }
        }
    }

    /// The part of a key that is hashed.
    pub fn part(self, key: &[u8]) -> &[u8] {
        let length = self.prefix_length(key).unwrap_or(key.len());
        match tag(key, length) {
            Some(Some(tag)) if !tag.is_empty() => tag,
            _ => &key[..length],
        }
    }

    /// What is hashed of every key that begins with these bytes, if they decide it.
    pub fn part_of_prefix(self, prefix: &[u8]) -> Option<&[u8]> {
        let length = self.prefix_length(prefix);
        let before = length.map(|length| &prefix[..length]);
        match tag(prefix, length.unwrap_or(prefix.len())) {
            // No key of these has one, or it begins behind what is hashed.
            None | Some(Some([])) => before,
            Some(Some(tag)) => Some(tag),
            // Whether there is one shows further on.
            Some(None) => None,
        }
    }

    /// A place in the hash space.
    fn hash_of_part(self, part: &[u8]) -> u64 {
        match self {
            TreeHash::Slot => slots::hash(slots::slot_of_part(part)),
            _ => XxHash3_64::oneshot(part),
        }
    }

    /// The group of a key among so many partitions.
    ///
    /// # Panics
    /// If there is no partition.
    pub fn group_of(self, key: &[u8], partitions: u32) -> u32 {
        super::slice(self.hash_of_part(self.part(key)), partitions)
    }

    /// The group of all keys that begin with these bytes, if it must be one.
    ///
    /// # Panics
    /// If there is no partition.
    pub fn group_of_prefix(self, prefix: &[u8], partitions: u32) -> Option<u32> {
        self.part_of_prefix(prefix).map(|part| super::slice(self.hash_of_part(part), partitions))
    }

    /// The group of all keys of a range, if it must be one.
    ///
    /// # Panics
    /// If there is no partition.
    pub fn group_of_range(self, low: Bound<&[u8]>, high: Bound<&[u8]>, partitions: u32) -> Option<u32> {
        self.group_of_prefix(common_prefix(low, high), partitions)
    }

    /// Says what is wrong with a choice, if it is none.
    pub(crate) fn check(self) -> Result<(), String> {
        match self {
            TreeHash::Slot => {
                Err("by Redis's slots only the trees of Redis's databases are hashed".to_owned())
            }
            TreeHash::First(0) => Err("of no bytes there is no hash".to_owned()),
            TreeHash::Before { occurrence: 0, .. } => {
                Err("occurrences of a delimiter are counted from 1".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn bytes(self) -> [u8; CHOICE] {
        match self {
            TreeHash::Whole => [0, 0, 0],
            TreeHash::First(length) => {
                let [low, high] = length.to_le_bytes();
                [1, low, high]
            }
            TreeHash::Before { delimiter, occurrence } => [2, delimiter, occurrence],
            TreeHash::Slot => [3, 0, 0],
        }
    }

    fn of(bytes: [u8; CHOICE]) -> Result<TreeHash, Malformed> {
        let choice = match bytes {
            [0, 0, 0] => TreeHash::Whole,
            [1, low, high] => TreeHash::First(u16::from_le_bytes([low, high])),
            [2, delimiter, occurrence] => TreeHash::Before { delimiter, occurrence },
            other => return malformed(format!("{other:?} says nothing of what is hashed")),
        };
        choice.check().map_err(Malformed)?;
        Ok(choice)
    }

    pub(crate) fn put(self, bytes: &mut Vec<u8>) {
        self.bytes().into_iter().for_each(|byte| bytes.put_u8(byte));
    }

    pub(crate) fn take(take: &mut Take) -> Result<TreeHash, Malformed> {
        TreeHash::of([take.u8()?, take.u8()?, take.u8()?])
    }

    /// What is hashed of a tree's keys if nothing was chosen, which is told by its name.
    pub fn by_name(name: &[u8]) -> TreeHash {
        if slots::is_by_slot(name) { TreeHash::Slot } else { TreeHash::Whole }
    }

    /// The name under which partitions keep a tree that is hashed so. That of a tree for which nothing was chosen
    /// is its own.
    pub fn stored_name(self, name: &[u8]) -> IVec {
        match self {
            TreeHash::Whole | TreeHash::Slot => IVec::from(name),
            other => IVec::from([STORED, &other.bytes(), name].concat()),
        }
    }

    /// Whether a name is a [stored name](TreeHash::stored_name) that is not the plain name, or looks like one.
    pub(crate) fn is_stored(name: &[u8]) -> bool {
        name.starts_with(STORED)
    }

    /// How a tree is hashed that is kept under this name, and its plain name.
    pub fn of_stored(stored: &[u8]) -> (TreeHash, &[u8]) {
        let split = stored.strip_prefix(STORED).and_then(|rest| rest.split_first_chunk::<CHOICE>());
        match split {
            Some((choice, name)) => {
                TreeHash::of(*choice).map_or((TreeHash::Whole, stored), |hash| (hash, name))
            }
            None => (TreeHash::by_name(stored), stored),
        }
    }
}

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeHash::Whole => f.write_str("the whole key"),
            TreeHash::Slot => f.write_str("the whole key, by its slot of Redis"),
            TreeHash::First(1) => f.write_str("the first byte"),
            TreeHash::First(length) => write!(f, "the first {length} bytes"),
            TreeHash::Before { delimiter, occurrence } => {
                write!(f, "what is before \"{}\"", delimiter.escape_ascii())?;
                if *occurrence > 1 { write!(f, " number {occurrence}") } else { Ok(()) }
            }
        }
    }
}

/// Says what is wrong with the name of a tree for which a choice is to be made.
pub(crate) fn check_name(name: &[u8]) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_HASHED_NAME_LENGTH {
        return Err(format!(
            "the name of a tree that is hashed by a prefix has 1 to {MAX_HASHED_NAME_LENGTH} bytes, not {}",
            name.len()
        ));
    }
    if name.starts_with(RESERVED) || name == dogsled_storage::DEFAULT_TREE_NAME {
        return Err(format!(
            "the tree \"{}\" is the database's own, and is hashed by the whole key",
            name.escape_ascii()
        ));
    }
    if slots::is_by_slot(name) {
        return Err(format!(
            "the tree \"{}\" is of Redis clients, and is hashed by their slots",
            name.escape_ascii()
        ));
    }
    Ok(())
}

/// The group of a key in the tree that is kept under a [stored name](TreeHash::stored_name).
///
/// # Panics
/// If there is no partition.
pub fn group_in(stored: &[u8], key: &[u8], partitions: u32) -> u32 {
    TreeHash::of_stored(stored).0.group_of(key, partitions)
}

/// The longest prefix that all keys of a range have in common, if it has any keys.
fn common_prefix<'a>(low: Bound<&'a [u8]>, high: Bound<&[u8]>) -> &'a [u8] {
    let (Bound::Included(low) | Bound::Excluded(low)) = low else { return &[] };
    let alike = |high: &[u8]| low.iter().zip(high).take_while(|(one, other)| one == other).count();
    let mut length = match high {
        Bound::Unbounded => 0,
        // Nothing after it that begins with it is meant.
        Bound::Included(high) => return &low[..alike(high)],
        Bound::Excluded(high) => {
            let alike = alike(high);
            // Before `b`, from `a…` on, there is only what begins with `a`.
            match (low.get(alike), &high[alike..]) {
                (Some(one), [next]) if one.checked_add(1) == Some(*next) => alike + 1,
                _ => return &low[..alike],
            }
        }
    };
    // And from `a\xff…` on only what begins with `a\xff`: nothing is greater.
    length += low[length..].iter().take_while(|byte| **byte == u8::MAX).count();
    &low[..length]
}

#[cfg(test)]
mod tests;
