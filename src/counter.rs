//! [`Counter`]: a number that many may count on at once.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dogsled_storage::counter::{self, CounterCommand, CounterReply};
use dogsled_storage::{Command, Fence, Reply, TreeId};

use crate::db::Database;
use crate::{Error, IVec, Result};

/// A named number of 64 bits that is added to atomically; made by [`Db::counter`](crate::Db::counter).
///
/// Counters have a keyspace of their own, and begin at 0. An addition is one command, so no two
/// of them ever meet; within a transaction use
/// [`TransactionalTree::counter`](crate::transaction::TransactionalTree::counter).
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// let stock = db.counter("stock of sleds");
/// stock.set(2)?;
/// assert_eq!(stock.add_within(-1, 0..=100)?, Ok(1));
/// assert_eq!(stock.add_within(-1, 0..=100)?, Ok(0));
/// let refused = stock.add_within(-1, 0..=100)?.unwrap_err();
/// assert_eq!(refused.current, 0);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Counter {
    name: IVec,
    database: Arc<Database>,
    fences: Vec<Fence>,
}

/// The sum would have been out of bounds; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds {
    /// What the counter stands at.
    pub current: i64,
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the counter stands at {}, and the sum would be out of bounds", self.current)
    }
}

impl std::error::Error for OutOfBounds {}

pub(crate) fn overflow(current: i64, delta: i64) -> Error {
    Error::Unsupported(format!("{delta} more than {current} does not fit the 64 bits of a counter"))
}

impl Counter {
    pub(crate) fn new(name: IVec, database: Arc<Database>) -> Counter {
        Counter { name, database, fences: Vec::new() }
    }

    /// The same counter, changed only while a lock is held; as [`Tree::under`](crate::Tree::under).
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

    fn execute(&self, command: CounterCommand) -> Result<CounterReply> {
        let (command, durability) = (Command::Counter(command), self.database.durability());
        match self.database.execute_fenced(&self.fences, command, durability)? {
            Reply::Counter(reply) => Ok(reply),
            other => unreachable!("a counter's command was answered with {other:?}"),
        }
    }

    /// Adds, negative numbers too; the sum.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let visits = db.counter("visits");
    /// assert_eq!(visits.add(5)?, 5);
    /// assert_eq!(visits.add(-2)?, 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the sum does not fit 64 bits, and those of writing.
    pub fn add(&self, delta: i64) -> Result<i64> {
        match self.execute(CounterCommand::Add { name: self.name.clone(), delta })? {
            CounterReply::Added { value } => Ok(value),
            CounterReply::Overflow { current } => Err(overflow(current, delta)),
            other => unreachable!("adding was answered with {other:?}"),
        }
    }

    /// Adds if the sum is within `bounds`; the sum.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let seats = db.counter("seats taken");
    /// assert_eq!(seats.add_within(1, 0..=1)?, Ok(1));
    /// assert!(seats.add_within(1, 0..=1)?.is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: [`Error::Unsupported`] if there is nothing within the bounds, and those of writing.
    /// Inner: [`OutOfBounds`].
    pub fn add_within(&self, delta: i64, bounds: RangeInclusive<i64>) -> Result<Result<i64, OutOfBounds>> {
        let (min, max) = bounds.into_inner();
        match self.execute(CounterCommand::AddWithin { name: self.name.clone(), delta, min, max })? {
            CounterReply::Added { value } => Ok(Ok(value)),
            CounterReply::OutOfBounds { current } => Ok(Err(OutOfBounds { current })),
            other => unreachable!("adding was answered with {other:?}"),
        }
    }

    /// The value; 0 if it was never set.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.counter("visits").get()?, 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get(&self) -> Result<i64> {
        match self.database.engine.get(TreeId::COUNTERS, &self.name)? {
            Some(stored) => Ok(counter::decode_value(&self.name, &stored)?),
            None => Ok(0),
        }
    }

    /// Sets the value if it is `expected`. Inner error: what it is; nothing was changed.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let version = db.counter("version");
    /// assert_eq!(version.set_if(0, 1)?, Ok(()));
    /// assert_eq!(version.set_if(0, 1)?, Err(1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn set_if(&self, expected: i64, value: i64) -> Result<Result<(), i64>> {
        match self.execute(CounterCommand::SetIf { name: self.name.clone(), expected, value })? {
            CounterReply::Swapped(swapped) => Ok(swapped),
            other => unreachable!("setting was answered with {other:?}"),
        }
    }

    /// Sets the value; the one before.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let visits = db.counter("visits");
    /// visits.add(5)?;
    /// assert_eq!(visits.set(100)?, 5);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn set(&self, value: i64) -> Result<i64> {
        match self.execute(CounterCommand::Set { name: self.name.clone(), value })? {
            CounterReply::Previous(previous) => Ok(previous.unwrap_or(0)),
            other => unreachable!("setting was answered with {other:?}"),
        }
    }

    /// Sets the value to 0 and forgets the counter, so that its name takes no space; the value
    /// before.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let visits = db.counter("visits");
    /// visits.add(5)?;
    /// assert_eq!(visits.reset()?, 5);
    /// assert_eq!(visits.get()?, 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn reset(&self) -> Result<i64> {
        match self.execute(CounterCommand::Remove { name: self.name.clone() })? {
            CounterReply::Previous(previous) => Ok(previous.unwrap_or(0)),
            other => unreachable!("resetting was answered with {other:?}"),
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("name", &self.name).finish_non_exhaustive()
    }
}
