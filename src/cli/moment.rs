//! [`Moment`]: all that a database holds at one moment, for `export` and `import`, be it a directory or a cluster.
//!
//! Both are read page by page, in the form of [`dogsled_storage::pin`], which tells what is in it: no locks, no sessions,
//! and no keys that die with one. A directory is one partition; the entries of a cluster's are merged in the order of keys.
//! Memory is bounded: a few pages for each partition.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::rc::Rc;

use dogsled::cluster::ring::TreeHash;
use dogsled::{IVec, cluster};
use dogsled_replication::pin::{PinnedPage, PinnedRead};
use dogsled_storage::HASHES_TREE_NAME;
use dogsled_storage::pin::{HashPart, Pinned, PinnedEntry, PinnedPart, hash_owner};

use super::database::Database;
use super::exit::{Code, Failure, Result};
use super::load::pieces::Pieces;
use super::load::{Change, Record};
use super::remote::Remote;

/// About how many bytes the pages of all partitions have together, and within what bounds one of them.
const PAGES_BYTES: u32 = 16 << 20;
const PAGE_BYTES: (u32, u32) = (64 << 10, 1 << 20);
/// Pages that are asked for at a time.
const TOGETHER: usize = 16;

/// See the [module](self).
pub(crate) struct Moment {
    held: Held,
    /// What there is of each tree.
    trees: BTreeMap<IVec, Vec<Part>>,
    /// What there is of hashes, of all trees.
    hashes: Vec<Part>,
}

enum Held {
    Directory(Box<Pinned>),
    Cluster(Rc<Remote>, cluster::backup::Moment),
}

/// A tree in a partition.
struct Part {
    partition: u32,
    /// The name under which it is kept there.
    stored: IVec,
    /// About how many keys it has.
    keys: u64,
    /// The time of the log there.
    time_ms: u64,
}

impl Database {
    /// The state as it is now.
    pub(crate) fn moment(&self) -> Result<Moment> {
        let (held, parts): (_, Vec<Part>) = match self {
            Database::Directory(db) => {
                let pinned = Pinned::of(db.engine());
                let (trees, time_ms) = (pinned.trees(), pinned.time_ms());
                let part = |(stored, keys)| Part { partition: 0, stored, keys, time_ms };
                (Held::Directory(Box::new(pinned)), trees.into_iter().map(part).collect())
            }
            Database::Cluster(remote) => {
                let moment = remote.wait(remote.client().moment())?;
                let parts = moment.partitions().iter().flat_map(|(partition, state)| {
                    let part = |(stored, keys): &(IVec, u64)| Part {
                        partition: *partition,
                        stored: stored.clone(),
                        keys: *keys,
                        time_ms: state.time_ms,
                    };
                    state.trees.iter().map(part)
                });
                let parts = parts.collect();
                (Held::Cluster(Rc::clone(remote), moment), parts)
            }
        };
        let mut moment = Moment { held, trees: BTreeMap::new(), hashes: Vec::new() };
        for part in parts {
            if part.stored == HASHES_TREE_NAME {
                moment.hashes.push(part);
            } else {
                moment.trees.entry(moment.name(&part.stored)).or_default().push(part);
            }
        }
        Ok(moment)
    }
}

impl Moment {
    /// The names of the trees, sorted.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &IVec> {
        self.trees.keys()
    }

    /// About how many keys a tree has.
    pub(crate) fn keys(&self, tree: &[u8]) -> u64 {
        self.trees.get(tree).into_iter().flatten().map(|part| part.keys).sum()
    }

    /// Passes on the keys of a tree that are no hashes, in their order.
    pub(crate) fn for_each_key(&self, tree: &[u8], each: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        let parts = self.trees.get(tree).map_or(&[][..], Vec::as_slice);
        let limit_bytes = (PAGES_BYTES / parts.len().max(1) as u32).clamp(PAGE_BYTES.0, PAGE_BYTES.1);
        let mut cursors: Vec<_> = parts.iter().map(|part| Cursor::new(part, limit_bytes)).collect();
        let mut heads = BinaryHeap::new();
        self.refill(&mut cursors, &mut heads)?;
        while let Some(Reverse((_, place))) = heads.pop() {
            let cursor = &mut cursors[place];
            let entry = cursor.entries.pop_front().expect("its key was seen");
            let is_over = entry.expires_ms.is_some_and(|at_ms| at_ms <= cursor.part.time_ms);
            match cursor.entries.front() {
                Some(next) => heads.push(Reverse((next.key.clone(), place))),
                None if cursor.more => self.refill(&mut cursors, &mut heads)?,
                None => {}
            }
            if !is_over {
                let value = entry.value.ok_or_else(no_value)?.to_vec();
                let (tree, key) = (Some(tree.to_vec()), entry.key.to_vec());
                each(Record { tree, key, change: Change::Put(value), expires_ms: entry.expires_ms })?;
            }
        }
        Ok(())
    }

    /// Passes on the hashes of these trees, one after the other, in records of bounded size.
    pub(crate) fn for_each_hash(
        &self,
        trees: &[Vec<u8>],
        each: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let trees: HashSet<&[u8]> = trees.iter().map(Vec::as_slice).collect();
        for part in &self.hashes {
            let mut cursor = Cursor::new(part, PAGE_BYTES.1);
            let (mut pieces, mut is_wanted) = (Pieces::default(), false);
            while cursor.more {
                let page = self.pages(&[cursor.request()])?.remove(0);
                cursor.add(page)?;
                while let Some(PinnedEntry { key, expires_ms, value, .. }) = cursor.entries.pop_front() {
                    let value = value.ok_or_else(no_value)?;
                    let full = match HashPart::of(&key) {
                        Some(HashPart::Head) => {
                            let (stored, key) = hash_owner(&value).ok_or_else(no_value)?;
                            let tree = self.name(&stored);
                            is_wanted = trees.contains(&tree[..])
                                && expires_ms.is_none_or(|at_ms| at_ms > part.time_ms);
                            match is_wanted {
                                true => pieces.begin(tree.to_vec(), key.to_vec(), expires_ms),
                                false => pieces.end(),
                            }
                        }
                        Some(HashPart::Field(field)) if is_wanted => {
                            pieces.field(field.to_vec(), value.to_vec())
                        }
                        Some(HashPart::Field(_)) => None,
                        None => return Err(no_value()),
                    };
                    full.map_or(Ok(()), &mut *each)?;
                }
            }
            pieces.end().map_or(Ok(()), &mut *each)?;
        }
        Ok(())
    }

    /// Has the nodes of a cluster let go of it.
    pub(crate) fn let_go(self) {
        if let Held::Cluster(remote, mut moment) = self.held {
            remote.wait(moment.let_go());
        }
    }

    fn name(&self, stored: &IVec) -> IVec {
        match &self.held {
            Held::Directory(_) => stored.clone(),
            Held::Cluster(..) => IVec::from(TreeHash::of_stored(stored).1),
        }
    }

    /// Reads the next page of those cursors that have none or little left, and more until each has something or is at
    /// its end; and puts the first keys of those that had none to the others.
    fn refill(
        &self,
        cursors: &mut [Cursor<'_>],
        heads: &mut BinaryHeap<Reverse<(IVec, usize)>>,
    ) -> Result<()> {
        let wanting = |cursor: &Cursor<'_>| cursor.more && cursor.entries.len() <= cursor.page / 8;
        let mut places: Vec<usize> = (0..cursors.len()).filter(|place| wanting(&cursors[*place])).collect();
        while !places.is_empty() {
            for places in places.chunks(TOGETHER) {
                let requests: Vec<_> = places.iter().map(|place| cursors[*place].request()).collect();
                for (place, page) in places.iter().zip(self.pages(&requests)?) {
                    let cursor = &mut cursors[*place];
                    let had_none = cursor.entries.is_empty();
                    cursor.add(page)?;
                    let first = cursor.entries.front().filter(|_| had_none);
                    heads.extend(first.map(|first| Reverse((first.key.clone(), *place))));
                }
            }
            // A page can be empty amid a tree, and the keys of the others are in order only beside its next key.
            places.retain(|place| cursors[*place].more && cursors[*place].entries.is_empty());
        }
        Ok(())
    }

    fn pages(&self, requests: &[(u32, PinnedRead)]) -> Result<Vec<PinnedPage>> {
        match &self.held {
            Held::Directory(pinned) => {
                let page = |(_, read): &(u32, PinnedRead)| {
                    let after = read.after.as_ref().map(|after| IVec::from(&after[..]));
                    let (tree, limit_bytes) = (&read.tree[..], u64::from(read.limit_bytes));
                    let (entries, next) = pinned
                        .page(tree, read.part, after.as_ref(), read.since, limit_bytes)
                        .map_err(dogsled::Error::from)?;
                    Ok(PinnedPage { entries, next })
                };
                requests.iter().map(page).collect()
            }
            Held::Cluster(remote, moment) => {
                let pages = requests.iter().map(|(partition, read)| moment.page(*partition, read.clone()));
                let pages = remote.wait(futures_util::future::try_join_all(pages));
                pages.map_err(|error| match error {
                    cluster::Error::Conflict(what) => Failure::new(
                        Code::Unavailable,
                        format!("a part of the state at that moment is lost, export again: {what}"),
                    ),
                    other => other.into(),
                })
            }
        }
    }
}

/// How far a part has been read.
struct Cursor<'a> {
    part: &'a Part,
    limit_bytes: u32,
    entries: VecDeque<PinnedEntry>,
    after: Option<IVec>,
    /// How many entries the page had that was read last.
    page: usize,
    /// Whether there is another.
    more: bool,
}

impl Cursor<'_> {
    fn new(part: &Part, limit_bytes: u32) -> Cursor<'_> {
        Cursor { part, limit_bytes, entries: VecDeque::new(), after: None, page: 0, more: true }
    }

    fn request(&self) -> (u32, PinnedRead) {
        let read = PinnedRead {
            tree: bytes::Bytes::copy_from_slice(&self.part.stored),
            part: PinnedPart::Keys,
            after: self.after.as_ref().map(|after| bytes::Bytes::copy_from_slice(after)),
            since: 0,
            limit_bytes: self.limit_bytes,
        };
        (self.part.partition, read)
    }

    /// # Errors
    /// If it would not come to an end: whoever answers goes back.
    fn add(&mut self, PinnedPage { entries, next }: PinnedPage) -> Result<()> {
        if next.is_some() && next <= self.after {
            return Err(Failure::new(Code::NotADatabase, "the same keys were told again"));
        }
        self.page = entries.len();
        (self.more, self.after) = (next.is_some(), next);
        self.entries.extend(entries);
        Ok(())
    }
}

/// Whoever answered speaks otherwise than this version does.
fn no_value() -> Failure {
    Failure::new(Code::NotADatabase, "an entry was told without its value, or a hash that is none")
}
