//! [`Entries`]: a range over all partitions, in order, by merging their pages.
//!
//! ```text
//! partition 1 ─ page ─ page ─►  a d …  ┐
//! partition 2 ─ page ─►         b c …  ├─ heap of the first keys ─► a b c d …
//! partition 3 ─ page ─ page ─►  e f …  ┘
//! ```
//!
//! An entry can be given out when every partition that is not at its end has its next one here. The
//! next page is asked for when half of the one before is left, so a reader who is no faster than the
//! network seldom waits. Pages begin small and grow, so whoever takes only a few entries does not
//! pay for many. Memory: at most one and a half pages for each partition.
//!
//! If all keys of the range must be of one partition, only that one is asked.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dogsled_replication::ReadAnswer;
use dogsled_storage::{GroupRead, GroupReadReply};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};

use super::core::unexpected;
use super::{Client, Error, ReadFrom, Result};
use crate::IVec;

/// The most entries of a page, however small they are.
const PAGE_ENTRIES: u32 = 4096;
/// What a first page has; each further one has four times as much, up to the client's own limit.
const FIRST_PAGE: u64 = 4 << 10;

/// Keys and values of a [`Tree`](super::Tree) in the order of the keys, from all partitions.
///
/// A stream, with a [`next`](Entries::next) of its own for those who have no use for streams. Nothing
/// is asked for before the first is wanted. It takes about twice
/// [`ClientOptions::page_bytes`](super::ClientOptions::page_bytes) of memory for each partition.
///
/// **What it shows**: every page is read [linearizably](super#reads) when it is reached (if the tree is not to
/// be [read](super::Tree::read_from) otherwise), so a key that was
/// there before the first one was asked for, and is not touched, is seen exactly once. What is written
/// meanwhile may be seen or not: this is no snapshot.
///
/// After an error it ends.
pub struct Entries {
    client: Client,
    name: IVec,
    request: Request,
    only_first: bool,
    state: State,
    /// Whether an entry was given out.
    has_begun: bool,
    age: Option<Duration>,
}

#[derive(Clone)]
struct Request {
    /// The tree by the name under which partitions keep it.
    tree: IVec,
    low: Bound<IVec>,
    high: Bound<IVec>,
    reverse: bool,
    values: bool,
    from: ReadFrom,
}

enum State {
    New,
    Starting(BoxFuture<'static, Result<u32>>),
    Running(Merge),
    /// Refused for the tree's name before an entry was given out: the error, unless it has another name by now.
    Refused(Error, BoxFuture<'static, bool>),
    Ended,
}

type Fetched = (usize, Result<Page>);

struct Page {
    entries: Vec<(IVec, IVec)>,
    more: bool,
    age: Option<Duration>,
}

struct Merge {
    cursors: Vec<Cursor>,
    /// The first keys of the cursors that have one.
    heads: BinaryHeap<Head>,
    /// Cursors that have none, and are not at their end.
    hungry: usize,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

struct Cursor {
    group: u32,
    /// The rest that was not asked for yet.
    request: Request,
    entries: VecDeque<(IVec, IVec)>,
    page_bytes: u64,
    /// The next page is asked for when so few are left.
    low_water: usize,
    fetching: bool,
    ended: bool,
}

/// The heap gives the greatest; this is the greatest when it comes first.
struct Head {
    key: IVec,
    cursor: usize,
    reverse: bool,
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> Ordering {
        match self.reverse {
            true => self.key.cmp(&other.key),
            false => Reverse(&self.key).cmp(&Reverse(&other.key)),
        }
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.key == other.key
    }
}

impl Eq for Head {}

impl Entries {
    pub(super) fn new(
        client: Client,
        tree: IVec,
        (low, high): (Bound<IVec>, Bound<IVec>),
        from: ReadFrom,
    ) -> Entries {
        let (state, age) = (State::New, None);
        let request = Request { tree: tree.clone(), low, high, reverse: false, values: true, from };
        Entries { client, name: tree, request, only_first: false, state, has_begun: false, age }
    }

    /// From the last to the first. To be called before the first is asked for.
    ///
    /// # Panics
    /// If one was asked for.
    #[must_use]
    pub fn rev(mut self) -> Entries {
        self.check_new();
        self.request.reverse = !self.request.reverse;
        self
    }

    /// Without the values, which are then empty and do not travel. To be called before the first is
    /// asked for.
    ///
    /// # Panics
    /// If one was asked for.
    #[must_use]
    pub fn keys_only(mut self) -> Entries {
        self.check_new();
        self.request.values = false;
        self
    }

    fn check_new(&self) {
        assert!(matches!(self.state, State::New), "the range is being read already");
    }

    /// Pages of one entry: only the first is wanted.
    pub(super) fn only_first(mut self) -> Entries {
        self.only_first = true;
        self
    }

    /// The next key with its value; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<(IVec, IVec)>> {
        poll_fn(|context| self.poll_entry(context)).await
    }

    /// All that is left, in memory.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn into_vec(mut self) -> Result<Vec<(IVec, IVec)>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next().await {
            entries.push(entry?);
        }
        Ok(entries)
    }

    /// Of a [stale](super::Tree::stale) tree: how old what was returned so far may be, as in
    /// [`Stale::age`](super::Stale::age).
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    fn fetch(
        client: &Client,
        index: usize,
        cursor: &Cursor,
        only_first: bool,
    ) -> BoxFuture<'static, Fetched> {
        let (core, client) = (client.shared_core(), client.clone());
        let group = cursor.group;
        let Request { tree, low, high, reverse, values, from } = cursor.request.clone();
        let limit = if only_first { 1 } else { PAGE_ENTRIES };
        let read =
            GroupRead::Range { tree, low, high, reverse, limit, limit_bytes: cursor.page_bytes, values };
        async move {
            // From when it is asked for: whoever looks at the entries before may have taken his time.
            let page = match core.read(group, &read, from, client.until()).await {
                Ok(ReadAnswer { reply: GroupReadReply::Page { entries, more }, age, .. }) => {
                    let entries = entries.into_iter().map(|(key, found)| (key, found.value)).collect();
                    Ok(Page { entries, more, age })
                }
                Ok(other) => Err(unexpected(&other)),
                Err(error) => Err(error),
            };
            (index, page)
        }
        .boxed()
    }

    fn start(&mut self, partitions: u32) {
        // What is hashed of the keys may say that one partition has them all.
        let request = &mut self.request;
        let hash = self.client.core().tree_hash(&self.name);
        request.tree = hash.stored_name(&self.name);
        let (low, high) =
            (request.low.as_ref().map(|key| &key[..]), request.high.as_ref().map(|key| &key[..]));
        let groups = match hash.group_of_range(low, high, partitions) {
            Some(group) => group..=group,
            None => 1..=partitions,
        };
        let cursors: Vec<Cursor> = groups
            .map(|group| Cursor {
                group,
                request: self.request.clone(),
                entries: VecDeque::new(),
                page_bytes: FIRST_PAGE.min(self.client.core().page_bytes),
                low_water: 0,
                fetching: true,
                ended: false,
            })
            .collect();
        let fetches = cursors
            .iter()
            .enumerate()
            .map(|(index, cursor)| Entries::fetch(&self.client, index, cursor, self.only_first))
            .collect();
        let hungry = cursors.len();
        self.state = State::Running(Merge { cursors, heads: BinaryHeap::new(), hungry, fetches });
    }

    fn refused(&self, error: Error) -> State {
        let (core, stored, until) =
            (self.client.shared_core(), self.request.tree.clone(), self.client.until());
        State::Refused(error, async move { core.is_renamed([&stored], until).await }.boxed())
    }

    fn poll_entry(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(IVec, IVec)>>> {
        loop {
            match &mut self.state {
                State::New => {
                    let (core, until): (Arc<_>, _) = (self.client.shared_core(), self.client.until());
                    self.state = State::Starting(async move { core.partitions(until).await }.boxed());
                }
                State::Starting(starting) => match ready!(starting.as_mut().poll(context)) {
                    Ok(partitions) => self.start(partitions),
                    Err(error) => {
                        self.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                State::Running(merge) => {
                    let page_bytes = self.client.core().page_bytes;
                    if let Err(error) = merge.take_pages(context, page_bytes, &mut self.age) {
                        if matches!(error, Error::Conflict(_)) && !self.has_begun {
                            self.state = self.refused(error);
                            continue;
                        }
                        self.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    if merge.hungry > 0 {
                        return Poll::Pending;
                    }
                    let Some((entry, wants)) = merge.take() else {
                        self.state = State::Ended;
                        return Poll::Ready(None);
                    };
                    if self.only_first {
                        self.state = State::Ended;
                    } else if let Some(index) = wants {
                        let fetch = Entries::fetch(&self.client, index, &merge.cursors[index], false);
                        merge.fetches.push(fetch);
                    }
                    self.has_begun = true;
                    return Poll::Ready(Some(Ok(entry)));
                }
                State::Refused(error, is_renamed) => match ready!(is_renamed.as_mut().poll(context)) {
                    true => (self.state, self.age) = (State::New, None),
                    false => {
                        let error = error.clone();
                        self.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl Merge {
    /// Takes in all pages that have come. Also when nothing is missing: what is asked for ahead moves
    /// only if it is polled.
    fn take_pages(
        &mut self,
        context: &mut Context<'_>,
        page_bytes: u64,
        oldest: &mut Option<Duration>,
    ) -> Result<()> {
        while let Poll::Ready(Some((index, page))) = self.fetches.poll_next_unpin(context) {
            let page = page?;
            *oldest = (*oldest).max(page.age);
            self.add(index, page, page_bytes);
        }
        assert!(
            self.hungry == 0 || !self.fetches.is_empty(),
            "{} partitions wait for pages that nobody asked for",
            self.hungry
        );
        Ok(())
    }

    fn add(&mut self, index: usize, page: Page, page_bytes: u64) {
        let cursor = &mut self.cursors[index];
        let was_hungry = cursor.entries.is_empty();
        let reverse = cursor.request.reverse;
        cursor.fetching = false;
        cursor.low_water = page.entries.len() / 2;
        cursor.page_bytes = (cursor.page_bytes * 4).min(page_bytes.max(1));
        // A page without entries goes nowhere, whatever it says.
        cursor.ended = !page.more || page.entries.is_empty();
        if let Some((last, _)) = page.entries.last() {
            let bound = Bound::Excluded(last.clone());
            match reverse {
                true => cursor.request.high = bound,
                false => cursor.request.low = bound,
            }
        }
        cursor.entries.extend(page.entries);
        if was_hungry {
            self.hungry -= 1;
            if let Some((key, _)) = cursor.entries.front() {
                self.heads.push(Head { key: key.clone(), cursor: index, reverse });
            }
        }
    }

    /// The next entry, and the cursor whose next page is to be asked for.
    fn take(&mut self) -> Option<((IVec, IVec), Option<usize>)> {
        let Head { cursor: index, reverse, .. } = self.heads.pop()?;
        let cursor = &mut self.cursors[index];
        let entry = cursor.entries.pop_front()?;
        match cursor.entries.front() {
            Some((key, _)) => self.heads.push(Head { key: key.clone(), cursor: index, reverse }),
            None if !cursor.ended => self.hungry += 1,
            None => {}
        }
        let wants = !cursor.ended && !cursor.fetching && cursor.entries.len() <= cursor.low_water;
        cursor.fetching |= wants;
        Some((entry, wants.then_some(index)))
    }
}

impl Stream for Entries {
    type Item = Result<(IVec, IVec)>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_entry(context)
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("tree", &self.request.tree).finish_non_exhaustive()
    }
}
