//! How a transaction ends other than well; the types are sled's.

use std::fmt;

use crate::Error;

/// The result of an operation within a transaction.
pub type UnabortableTransactionResult<T> = std::result::Result<T, UnabortableTransactionError>;

/// The result of the closure of a transaction.
pub type ConflictableTransactionResult<T, E = ()> = std::result::Result<T, ConflictableTransactionError<E>>;

/// The result of a transaction.
pub type TransactionResult<T, E = ()> = std::result::Result<T, TransactionError<E>>;

/// Ends a transaction without effect: `Err(ConflictableTransactionError::Abort(t))`.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use dogsled::transaction::{abort, TransactionError};
/// let result = db.transaction(|db| {
///     db.insert("key", "value")?;
///     if db.get("permission")?.is_none() {
///         return abort("not allowed");
///     }
///     Ok(())
/// });
/// assert_eq!(result, Err(TransactionError::Abort("not allowed")));
/// assert_eq!(db.get("key")?, None);
/// # Ok(()) }
/// ```
///
/// # Errors
/// Always.
pub fn abort<A, T>(t: T) -> ConflictableTransactionResult<A, T> {
    Err(ConflictableTransactionError::Abort(t))
}

/// Why an operation within a transaction failed. Pass it on with `?`.
#[derive(Clone, Debug, PartialEq)]
pub enum UnabortableTransactionError {
    /// The transaction has to run again. Only the library knows when.
    #[doc(hidden)]
    Conflict,
    /// Reading failed, or the request cannot be carried out.
    Storage(Error),
}

/// What the closure of a transaction ends with.
#[derive(Clone, Debug, PartialEq)]
pub enum ConflictableTransactionError<T = Error> {
    /// The caller's reason to give up: nothing is changed, and the transaction returns
    /// [`TransactionError::Abort`] with it.
    Abort(T),
    /// The transaction has to run again. Only the library knows when.
    #[doc(hidden)]
    Conflict,
    /// Reading or writing failed: nothing is changed.
    Storage(Error),
}

/// What a transaction ends with.
#[derive(Clone, Debug, PartialEq)]
pub enum TransactionError<T = Error> {
    /// What the closure gave to [`abort`].
    Abort(T),
    /// Reading or writing failed.
    Storage(Error),
}

impl fmt::Display for UnabortableTransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnabortableTransactionError::Conflict => f.write_str("the transaction conflicts with another"),
            UnabortableTransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Display> fmt::Display for ConflictableTransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConflictableTransactionError::Abort(error) => error.fmt(f),
            ConflictableTransactionError::Conflict => f.write_str("the transaction conflicts with another"),
            ConflictableTransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Abort(error) => error.fmt(f),
            TransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for UnabortableTransactionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UnabortableTransactionError::Storage(error) => Some(error),
            UnabortableTransactionError::Conflict => None,
        }
    }
}

impl<E: std::error::Error> std::error::Error for ConflictableTransactionError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConflictableTransactionError::Storage(error) => Some(error),
            _ => None,
        }
    }
}

impl<E: std::error::Error> std::error::Error for TransactionError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TransactionError::Storage(error) => Some(error),
            TransactionError::Abort(_) => None,
        }
    }
}

impl From<Error> for UnabortableTransactionError {
    fn from(error: Error) -> Self {
        UnabortableTransactionError::Storage(error)
    }
}

impl<T> From<Error> for ConflictableTransactionError<T> {
    fn from(error: Error) -> Self {
        ConflictableTransactionError::Storage(error)
    }
}

impl<T> From<Error> for TransactionError<T> {
    fn from(error: Error) -> Self {
        TransactionError::Storage(error)
    }
}

impl<E> From<UnabortableTransactionError> for ConflictableTransactionError<E> {
    fn from(error: UnabortableTransactionError) -> Self {
        match error {
            UnabortableTransactionError::Conflict => ConflictableTransactionError::Conflict,
            UnabortableTransactionError::Storage(error) => ConflictableTransactionError::Storage(error),
        }
    }
}
