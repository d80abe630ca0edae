//! [`Counter`]: a number that many may count on at once.

use std::fmt;
use std::ops::RangeInclusive;

use dogsled_storage::counter::{CounterAddition, CounterCommand, CounterReply, Sums};
use dogsled_storage::{Command, Fence, GroupRead, GroupReadReply, Reply};

use super::core::unexpected;
use super::{Client, Error, ReadFrom, Result};
use crate::{IVec, OutOfBounds};

/// A named number of 64 bits that is added to atomically; made by [`Client::counter`].
///
/// The methods are those of the embedded [`Counter`](crate::Counter). An addition happens once, however
/// often the client had to repeat it on the way; see [writes](super#writes).
///
/// A counter lives in the partition of its name, so one counter is as fast as one partition.
///
/// ```no_run
/// # async fn count(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// let stock = client.counter("stock of sleds");
/// stock.set(2).await?;
/// assert_eq!(stock.add_within(-1, 0..=100).await?, Ok(1));
/// assert_eq!(stock.add_within(-1, 0..=100).await?, Ok(0));
/// assert!(stock.add_within(-1, 0..=100).await?.is_err());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Counter {
    client: Client,
    name: IVec,
    fences: Vec<Fence>,
}

/// See [`Client::add_to_counters`].
pub(super) async fn add_to_many<N: AsRef<[u8]>>(
    client: &Client,
    additions: impl IntoIterator<Item = (N, i64)>,
) -> Result<Vec<(IVec, i64)>> {
    let until = client.until();
    let core = client.core();
    let mut group = None;
    let mut all = Vec::new();
    for (name, delta) in additions {
        let name = IVec::from(name.as_ref());
        let its = core.group_of(&name, until).await?;
        if *group.get_or_insert(its) != its {
            let what = "the counters are of several partitions: give their names a common {tag}".to_owned();
            return Err(Error::Invalid(what));
        }
        all.push(CounterAddition { name, delta });
    }
    let Some(group) = group else { return Ok(Vec::new()) };
    match core.execute(group, Vec::new(), Command::CountMany { additions: all }, until).await?.0 {
        Reply::Counted(Sums(sums)) => Ok(sums.into_iter().map(|sum| (sum.name, sum.delta)).collect()),
        Reply::Counter(CounterReply::Overflow { current }) => Err(Error::Invalid(format!(
            "a sum does not fit the 64 bits of a counter that stands at {current}"
        ))),
        other => Err(unexpected(&other)),
    }
}

impl Counter {
    pub(super) fn new(client: Client, name: IVec) -> Counter {
        Counter { client, name, fences: Vec::new() }
    }

    /// The same counter, changed only while a lock is held; as [`Tree::under`](super::Tree::under).
    #[must_use]
    pub fn under(&self, fence: impl Into<Fence>) -> Counter {
        let mut fenced = self.clone();
        fenced.fences.push(fence.into());
        fenced
    }

    /// The counter's name.
    pub fn name(&self) -> &IVec {
        &self.name
    }

    async fn execute(&self, command: CounterCommand) -> Result<CounterReply> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        let command = Command::Counter(command);
        match core.execute_fenced(group, Vec::new(), &self.fences, command, until).await? {
            Reply::Counter(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds, negative numbers too; the sum.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sum does not fit 64 bits, and those of [writing](super#writes).
    pub async fn add(&self, delta: i64) -> Result<i64> {
        match self.execute(CounterCommand::Add { name: self.name.clone(), delta }).await? {
            CounterReply::Added { value } => Ok(value),
            CounterReply::Overflow { current } => Err(Error::Invalid(format!(
                "{delta} more than {current} does not fit the 64 bits of a counter"
            ))),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds if the sum is within `bounds`; the sum.
    ///
    /// # Errors
    /// Outer: [`Error::Invalid`] if there is nothing within the bounds, and those of
    /// [writing](super#writes). Inner: [`OutOfBounds`].
    pub async fn add_within(
        &self,
        delta: i64,
        bounds: RangeInclusive<i64>,
    ) -> Result<std::result::Result<i64, OutOfBounds>> {
        let (min, max) = bounds.into_inner();
        match self.execute(CounterCommand::AddWithin { name: self.name.clone(), delta, min, max }).await? {
            CounterReply::Added { value } => Ok(Ok(value)),
            CounterReply::OutOfBounds { current } => Ok(Err(OutOfBounds { current })),
            other => Err(unexpected(&other)),
        }
    }

    /// The value; 0 if it was never set.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn get(&self) -> Result<i64> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        let read = GroupRead::Counter { name: self.name.clone() };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::Counter(value) => Ok(value.unwrap_or(0)),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets the value if it is `expected`. Inner error: what it is; nothing was changed.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn set_if(&self, expected: i64, value: i64) -> Result<std::result::Result<(), i64>> {
        let command = CounterCommand::SetIf { name: self.name.clone(), expected, value };
        match self.execute(command).await? {
            CounterReply::Swapped(swapped) => Ok(swapped),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets the value; the one before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn set(&self, value: i64) -> Result<i64> {
        self.previous(CounterCommand::Set { name: self.name.clone(), value }).await
    }

    /// Sets the value to 0 and forgets the counter, so that its name takes no space; the value before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn reset(&self) -> Result<i64> {
        self.previous(CounterCommand::Remove { name: self.name.clone() }).await
    }

    async fn previous(&self, command: CounterCommand) -> Result<i64> {
        match self.execute(command).await? {
            CounterReply::Previous(previous) => Ok(previous.unwrap_or(0)),
            other => Err(unexpected(&other)),
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("name", &self.name).finish_non_exhaustive()
    }
}
