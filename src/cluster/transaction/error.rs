//! How a transaction ends other than well. The names are those of the embedded database's
//! [`transaction`](crate::transaction). Without a reason of its own to abort, a closure has no type for that.

use std::convert::Infallible;
use std::fmt;

use super::Unsettled;
use crate::cluster::Error;

/// The result of the closure of a transaction.
pub type ConflictableTransactionResult<T, E = Infallible> = Result<T, ConflictableTransactionError<E>>;

/// The result of a transaction.
pub type TransactionResult<T, E = Infallible> = Result<T, TransactionError<E>>;

/// Ends a transaction without effect: `Err(ConflictableTransactionError::Abort(reason))`.
///
/// # Errors
/// Always.
pub fn abort<T, E>(reason: E) -> ConflictableTransactionResult<T, E> {
    Err(ConflictableTransactionError::Abort(reason))
}

/// What the closure of a transaction ends with.
#[derive(Clone, Debug, PartialEq)]
pub enum ConflictableTransactionError<E = Infallible> {
    /// The caller's reason to give up: nothing is changed, and the transaction returns
    /// [`TransactionError::Abort`] with it.
    Abort(E),
    /// Reading failed, or the request cannot be carried out: nothing is changed.
    Cluster(Error),
}

/// What a transaction ends with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TransactionError<E = Infallible> {
    /// What the closure gave to [`abort`]. All that it had read was so at one moment.
    Abort(E),
    /// Others were always quicker: nothing was done.
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// It is not known whether it has happened; whoever needs to know can [ask](Unsettled::outcome).
    OutcomeUnknown {
        /// Why.
        why: String,
        /// To ask by.
        transaction: Unsettled,
    },
    /// Nothing was done.
    Cluster(Error),
}

impl<E> TransactionError<E> {
    /// Whether it is certain that nothing was done and nothing will be.
    pub fn is_definite(&self) -> bool {
        match self {
            TransactionError::OutcomeUnknown { .. } => false,
            TransactionError::Cluster(error) => error.is_definite(),
            TransactionError::Abort(_) | TransactionError::Conflict { .. } => true,
        }
    }
}

impl<E> From<Error> for ConflictableTransactionError<E> {
    fn from(error: Error) -> Self {
        ConflictableTransactionError::Cluster(error)
    }
}

impl<E> From<Error> for TransactionError<E> {
    fn from(error: Error) -> Self {
        TransactionError::Cluster(error)
    }
}

impl<E: fmt::Display> fmt::Display for ConflictableTransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConflictableTransactionError::Abort(reason) => reason.fmt(f),
            ConflictableTransactionError::Cluster(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Abort(reason) => reason.fmt(f),
            TransactionError::Conflict { attempts } => {
                write!(f, "the transaction was tried {attempts} times, and each time others were quicker")
            }
            TransactionError::OutcomeUnknown { why, .. } => {
                write!(f, "whether the transaction has happened is not known: {why}")
            }
            TransactionError::Cluster(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for ConflictableTransactionError<E> {}

impl<E: fmt::Debug + fmt::Display> std::error::Error for TransactionError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TransactionError::Cluster(error) => Some(error),
            _ => None,
        }
    }
}
