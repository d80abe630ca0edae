//! States of groups that are held for somebody who copies them: what a client says of them, and what a node keeps.
//!
//! Why they are of one moment is told in [`dogsled_storage::pin`]; what to do with them, in `dogsled::cluster::backup`.
//!
//! ```text
//! client ── Pin ───────► a node that has the group     "node 3 holds it, so many keys in these trees"
//!        ── ReadPinned ► that node, page after page     each says that it is still wanted
//!        ── KeepPins ──► that node, now and then        for those that wait for their turn, or are not wanted any more
//! ```
//!
//! What is held has a *lease*: if nobody asks for it for so long, it is let go, because it keeps memory and disk space
//! from being used again. It is gone, too, when its node stops, or gives up its replica of the group: then
//! whoever reads it is told so ([`ClusterError::Conflict`](crate::ClusterError::Conflict)), and has to begin anew, because that
//! moment does not come again.
//!
//! Bytes, within requests and replies of [`crate::client`]:
//!
//! ```text
//! part      u8: 0 keys, 1 numbers
//! after     0, or 1 and a key: length u32, bytes
//! pinned    node u64, position u64, time in ms u64, trees u32, each: name: length u32, bytes; keys u64
//! page      more u8: 0 no, 1 behind the last of the entries, 2 behind a key: length u32, bytes;
//!           entries u32, each: key: length u32, bytes; version u64; expires: 0, or 1 and ms u64;
//!           value: 0, or 1 and length u32, bytes
//! ```
//!
//! A 2 is said only where so much was left out that a page ended amid it. Earlier builds never say it, and do not understand
//! it: their nodes look on instead, be it for longer than anybody waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::pin::{Pinned, PinnedEntry, PinnedPart};
use dogsled_storage::{IVec, TransactionId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::transport::NodeId;

/// The name of the tree that says how far the restore of a backup has come. While it is there, none is made: so only who
/// may restore may write to it, an administrator.
pub const RESTORE_TREE_NAME: &[u8] = b"__dogsled__restore";

/// The longest lease of what is pinned.
pub const MAX_LEASE: Duration = Duration::from_secs(600);
/// The most bytes of a page, unless a single entry is larger.
pub const MAX_PAGE_BYTES: u32 = 8 << 20;
/// States of one group that a node holds at a time.
const MAX_PINS: usize = 8;

/// That a group's state is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedState {
    /// By whom: what is read of it is to be asked of that node.
    pub node: NodeId,
    /// Position of the last entry that has changed something in it.
    pub position: u64,
    /// The log's time there, in milliseconds since 1970.
    pub time_ms: u64,
    /// The trees by their stored names, sorted, and about how many keys each has.
    pub trees: Vec<(IVec, u64)>,
}

/// Which entries of a pinned state are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedRead {
    /// The tree, by its stored name.
    pub tree: Bytes,
    /// What of it.
    pub part: PinnedPart,
    /// Those that come after this key; `None`: from the beginning.
    pub after: Option<Bytes>,
    /// Values only of what was written after this position.
    pub since: u64,
    /// About how many bytes; at most [`MAX_PAGE_BYTES`].
    pub limit_bytes: u32,
}

/// Entries of a pinned state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedPage {
    /// In the order of the keys.
    pub entries: Vec<PinnedEntry>,
    /// Behind which key there may be others; `None`: there are none. Not always the last of these: what is left out is
    /// looked at, too, and a page can be empty.
    pub next: Option<IVec>,
}

impl PinnedState {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.node.0);
        bytes.put_u64(self.position);
        bytes.put_u64(self.time_ms);
        bytes.put_u32(self.trees.len() as u32);
        for (name, keys) in &self.trees {
            bytes.put_bytes(name);
            bytes.put_u64(*keys);
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<PinnedState, Malformed> {
        Ok(PinnedState {
            node: NodeId(take.u64()?),
            position: take.u64()?,
            time_ms: take.u64()?,
            trees: (0..take.count(12)?)
                .map(|_| Ok((IVec::from(&take.bytes()?[..]), take.u64()?)))
                .collect::<Result<_, Malformed>>()?,
        })
    }
}

impl PinnedRead {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_bytes(&self.tree);
        bytes.put_u8(match self.part {
            PinnedPart::Keys => 0,
            PinnedPart::Numbers => 1,
        });
        bytes.put_u8(u8::from(self.after.is_some()));
        if let Some(after) = &self.after {
            bytes.put_bytes(after);
        }
        bytes.put_u64(self.since);
        bytes.put_u32(self.limit_bytes);
    }

    pub(crate) fn take(take: &mut Take) -> Result<PinnedRead, Malformed> {
        Ok(PinnedRead {
            tree: take.bytes()?,
            part: match take.u8()? {
                0 => PinnedPart::Keys,
                1 => PinnedPart::Numbers,
                other => return malformed(format!("a part of a tree of the unknown kind {other}")),
            },
            after: if take.flag()? { Some(take.bytes()?) } else { None },
            since: take.u64()?,
            limit_bytes: take.u32()?,
        })
    }
}

impl PinnedPage {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        match &self.next {
            None => bytes.put_u8(0),
            Some(next) if self.entries.last().is_some_and(|last| last.key == *next) => bytes.put_u8(1),
            Some(next) => {
                bytes.put_u8(2);
                bytes.put_bytes(next);
            }
        }
        bytes.put_u32(self.entries.len() as u32);
        for PinnedEntry { key, version, expires_ms, value } in &self.entries {
            bytes.put_bytes(key);
            bytes.put_u64(*version);
            bytes.put_u8(u8::from(expires_ms.is_some()));
            if let Some(expires_ms) = expires_ms {
                bytes.put_u64(*expires_ms);
            }
            bytes.put_u8(u8::from(value.is_some()));
            if let Some(value) = value {
                bytes.put_bytes(value);
            }
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<PinnedPage, Malformed> {
        let (more, told) = match take.u8()? {
            more @ (0 | 1) => (more == 1, None),
            2 => (false, Some(IVec::from(&take.bytes()?[..]))),
            other => return malformed(format!("a page that goes on in the unknown way {other}")),
        };
        let entries = (0..take.count(14)?).map(|_| {
            Ok(PinnedEntry {
                key: IVec::from(&take.bytes()?[..]),
                version: take.u64()?,
                expires_ms: if take.flag()? { Some(take.u64()?) } else { None },
                value: if take.flag()? { Some(IVec::from(&take.bytes()?[..])) } else { None },
            })
        });
        let entries: Vec<PinnedEntry> = entries.collect::<Result<_, Malformed>>()?;
        let behind_last = || entries.last().map(|last| last.key.clone());
        let next = if more { behind_last() } else { told };
        Ok(PinnedPage { entries, next })
    }
}

/// What a node holds of one group.
#[derive(Default)]
pub(crate) struct Pins {
    held: Mutex<HashMap<TransactionId, Held>>,
}

struct Held {
    pinned: Arc<Pinned>,
    lease: Duration,
    until: Instant,
}

impl Pins {
    /// Holds a state; whether there is room for it.
    pub(crate) fn insert(&self, under: TransactionId, pinned: Arc<Pinned>, lease: Duration) -> bool {
        let (lease, mut held) = (lease.min(MAX_LEASE), self.held.lock());
        if held.len() >= MAX_PINS && !held.contains_key(&under) {
            return false;
        }
        held.insert(under, Held { pinned, lease, until: Instant::now() + lease });
        true
    }

    /// What is held, for its lease anew.
    pub(crate) fn get(&self, under: TransactionId) -> Option<Arc<Pinned>> {
        let mut held = self.held.lock();
        let held = held.get_mut(&under)?;
        held.until = Instant::now() + held.lease;
        Some(Arc::clone(&held.pinned))
    }

    /// Lets go what is not wanted any more.
    pub(crate) fn remove(&self, under: TransactionId) {
        self.held.lock().remove(&under);
    }

    /// Lets go what nobody has asked for.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        self.held.lock().retain(|_, held| held.until > now);
    }

    /// Lets go everything.
    pub(crate) fn clear(&self) {
        self.held.lock().clear();
    }
}
