//! [`carry_out`]: operations that are done together or not at all, in a directory or on a cluster, and under a lock if
//! that is asked for.
//!
//! A single write under a lock goes this way too: on a cluster, lock and key may be of different partitions, and only a
//! transaction spans them.

use std::ops::RangeInclusive;
use std::time::Duration;

use dogsled::cluster::transaction as far;
use dogsled::{Db, Fence, FencingToken, IVec, OutOfBounds, cluster, transaction as near};
use dogsled_storage::DEFAULT_TREE_NAME;

use super::args::FenceArgs;
use super::database::{Database, Keyspace};
use super::exit::{Code, Failure, Result};
use super::remote::Remote;
use super::store::name_argument;

/// What is exported to a command that runs under a lock.
pub(crate) const LOCK_VARIABLE: &str = "DOGSLED_LOCK";
pub(crate) const TOKEN_VARIABLE: &str = "DOGSLED_LOCK_TOKEN";

impl FenceArgs {
    /// The lock that must be held, if one was named.
    pub(crate) fn fence(&self) -> Result<Option<Fence>> {
        let Some(name) = &self.under else { return Ok(None) };
        let lock = IVec::from(name_argument("lock name", name)?);
        let token = given_token(self.token, &lock)?;
        Ok(Some(Fence { lock, token }))
    }
}

/// The token that was given, or the one that `dogsled lock` has given to the command that this is part of.
pub(crate) fn given_token(given: Option<u64>, lock: &[u8]) -> Result<FencingToken> {
    use std::os::unix::ffi::OsStrExt as _;
    if let Some(token) = given {
        return Ok(FencingToken(token));
    }
    let Some(token) = std::env::var_os(TOKEN_VARIABLE) else {
        return Err(Failure::usage(format!(
            "under which token? Give it with --token, or run this under `dogsled lock NAME -- command`, which sets \
             {TOKEN_VARIABLE}"
        )));
    };
    // Within a lock that was taken within another, the token is that of the inner one.
    if let Some(name) = std::env::var_os(LOCK_VARIABLE)
        && name.as_bytes() != lock
    {
        return Err(Failure::usage(format!(
            "{TOKEN_VARIABLE} is of lock {name:?}; give the token of the one that is meant with --token"
        )));
    }
    let parsed = token.to_str().and_then(|token| token.parse().ok());
    let parsed = parsed.map(FencingToken);
    parsed.ok_or_else(|| Failure::usage(format!("{TOKEN_VARIABLE} is {token:?}, which is no token")))
}

/// One of several that are done together.
pub(crate) enum Operation {
    Get { tree: Keyspace, key: IVec },
    Put { tree: Keyspace, key: IVec, value: IVec, ttl: Option<Duration> },
    Expire { tree: Keyspace, key: IVec, ttl: Duration },
    Persist { tree: Keyspace, key: IVec },
    Remove { tree: Keyspace, key: IVec },
    Check { tree: Keyspace, key: IVec, is: Option<IVec> },
    Add { counter: IVec, by: i64 },
    AddWithin { counter: IVec, by: i64, bounds: RangeInclusive<i64> },
    Set { counter: IVec, to: i64 },
    SetIf { counter: IVec, is: i64, to: i64 },
}

/// What an operation has to say; those that write keys say nothing.
#[derive(Clone)]
pub(crate) enum Said {
    Value(Option<IVec>),
    /// What a counter stands at, or stood at before it was set.
    Count(i64),
    IsThere(bool),
}

/// A condition that was not met, by the number of the operation from 0.
#[derive(Debug)]
pub(crate) struct Unmet {
    pub(crate) operation: usize,
    pub(crate) found: Found,
}

/// What there is instead.
#[derive(Debug)]
pub(crate) enum Found {
    Value(Option<IVec>),
    Count(i64),
}

fn unmet(operation: usize, found: Found) -> Unmet {
    Unmet { operation, found }
}

/// Carries out all operations, or none. The inner `None` says that they were, but what they had to say was not heard.
pub(crate) fn carry_out(
    database: &Database,
    fence: Option<&Fence>,
    operations: &[Operation],
) -> Result<Result<Option<Vec<Said>>, Unmet>> {
    match database {
        Database::Directory(db) => carry_out_near(db, fence, operations),
        Database::Cluster(remote) => carry_out_far(remote, fence, operations),
    }
}

fn carry_out_near(
    db: &Db,
    fence: Option<&Fence>,
    operations: &[Operation],
) -> Result<Result<Option<Vec<Said>>, Unmet>> {
    let under = match fence {
        Some(fence) => {
            // Looked at first, so that it is what is told, whatever else is not met. The commit looks again.
            let holders = db.lock(&fence.lock).holders()?.holders;
            if !holders.iter().any(|permit| permit.token == fence.token) {
                let current = holders.iter().map(|permit| permit.token).max();
                let (lock, token) = (fence.lock.clone(), fence.token);
                return Err(dogsled::Error::LockNotHeld { lock, token, current }.into());
            }
            Some(db.open_tree(DEFAULT_TREE_NAME)?.under(fence.clone()))
        }
        None => None,
    };
    let ran = db.transaction(|root| {
        if let Some(under) = &under {
            root.tree(under)?;
        }
        run_near(root, operations)
    });
    match ran {
        Ok(said) => Ok(Ok(Some(said))),
        Err(near::TransactionError::Abort(unmet)) => Ok(Err(unmet)),
        Err(near::TransactionError::Storage(error)) => Err(error.into()),
    }
}

fn carry_out_far(
    remote: &Remote,
    fence: Option<&Fence>,
    operations: &[Operation],
) -> Result<Result<Option<Vec<Said>>, Unmet>> {
    let ran = remote.client().transaction(|tx| async move {
        if let Some(Fence { lock, token }) = fence
            && !tx.holds_lock(lock, *token).await?
        {
            let (lock, token, current) = (lock.clone(), *token, None);
            return Err(cluster::Error::LockNotHeld { lock, token, current }.into());
        }
        run_far(&tx, operations).await
    });
    match remote.wait(ran) {
        Ok(said) => Ok(Ok(Some(said))),
        Err(far::TransactionError::Abort(unmet)) => Ok(Err(unmet)),
        Err(far::TransactionError::Cluster(error)) => Err(error.into()),
        Err(far::TransactionError::OutcomeUnknown { why, transaction }) => {
            // Asking settles it.
            match remote.wait(transaction.outcome()) {
                Ok(far::Outcome::Aborted) => {
                    Err(Failure::new(Code::Unavailable, format!("nothing was done: {why}")))
                }
                Ok(far::Outcome::Committed) => Ok(Ok(None)),
                Ok(far::Outcome::Forgotten) | Err(_) => {
                    let what = format!("the outcome is not known: {why}");
                    Err(Failure::new(Code::OutcomeUnknown, what))
                }
            }
        }
        Err(error) => Err(Failure::new(Code::Unavailable, describe(&error))),
    }
}

fn describe(error: &far::TransactionError<Unmet>) -> String {
    match error {
        far::TransactionError::Conflict { attempts } => {
            format!("nothing was done: others were quicker, {attempts} times")
        }
        other => format!("{other:?}"),
    }
}

fn run_near(
    root: &near::TransactionalTree,
    operations: &[Operation],
) -> near::ConflictableTransactionResult<Vec<Said>, Unmet> {
    let within = |tree: &Keyspace| match tree {
        Keyspace::Directory(tree) => root.tree(tree),
        Keyspace::Cluster(..) => unreachable!("the trees of a directory are there"),
    };
    let mut said = Vec::new();
    for (number, operation) in operations.iter().enumerate() {
        match operation {
            Operation::Get { tree, key } => said.push(Said::Value(within(tree)?.get(key)?)),
            Operation::Put { tree, key, value, ttl } => {
                let tree = within(tree)?;
                drop(match ttl {
                    Some(ttl) => tree.insert_with_ttl(key, value, *ttl)?,
                    None => tree.insert(key, value)?,
                });
            }
            Operation::Expire { tree, key, ttl } => {
                said.push(Said::IsThere(within(tree)?.expire(key, *ttl)?));
            }
            Operation::Persist { tree, key } => drop(within(tree)?.persist(key)?),
            Operation::Remove { tree, key } => drop(within(tree)?.remove(key)?),
            Operation::Check { tree, key, is } => {
                let found = within(tree)?.get(key)?;
                if found != *is {
                    return near::abort(unmet(number, Found::Value(found)));
                }
            }
            Operation::Add { counter, by } => said.push(Said::Count(root.counter(counter).add(*by)?)),
            Operation::AddWithin { counter, by, bounds } => {
                match root.counter(counter).add_within(*by, bounds.clone())? {
                    Ok(sum) => said.push(Said::Count(sum)),
                    Err(OutOfBounds { current }) => {
                        return near::abort(unmet(number, Found::Count(current)));
                    }
                }
            }
            Operation::Set { counter, to } => said.push(Said::Count(root.counter(counter).set(*to)?)),
            Operation::SetIf { counter, is, to } => {
                let before = root.counter(counter).set(*to)?;
                if before != *is {
                    return near::abort(unmet(number, Found::Count(before)));
                }
                said.push(Said::Count(before));
            }
        }
    }
    Ok(said)
}

async fn run_far(
    tx: &far::Transaction,
    operations: &[Operation],
) -> far::ConflictableTransactionResult<Vec<Said>, Unmet> {
    let within = |tree: &Keyspace| match tree {
        Keyspace::Cluster(_, tree) => tree.clone(),
        Keyspace::Directory(_) => unreachable!("the trees of a cluster are there"),
    };
    let mut said = Vec::new();
    for (number, operation) in operations.iter().enumerate() {
        match operation {
            Operation::Get { tree, key } => said.push(Said::Value(tx.get(&within(tree), key).await?)),
            Operation::Put { tree, key, value, ttl: None } => tx.put(&within(tree), key, value)?,
            Operation::Put { tree, key, value, ttl: Some(ttl) } => {
                tx.put_with_ttl(&within(tree), key, value, *ttl)?;
            }
            Operation::Expire { tree, key, ttl } => {
                said.push(Said::IsThere(tx.expire(&within(tree), key, *ttl).await?));
            }
            Operation::Persist { tree, key } => tx.persist(&within(tree), key)?,
            Operation::Remove { tree, key } => tx.delete(&within(tree), key)?,
            Operation::Check { tree, key, is } => {
                let found = tx.get(&within(tree), key).await?;
                if found != *is {
                    return far::abort(unmet(number, Found::Value(found)));
                }
            }
            Operation::Add { counter, by } => said.push(Said::Count(tx.counter_add(counter, *by).await?)),
            Operation::AddWithin { counter, by, bounds } => {
                match tx.counter_add_within(counter, *by, bounds.clone()).await? {
                    Ok(sum) => said.push(Said::Count(sum)),
                    Err(OutOfBounds { current }) => {
                        return far::abort(unmet(number, Found::Count(current)));
                    }
                }
            }
            Operation::Set { counter, to } => said.push(Said::Count(tx.counter_set(counter, *to).await?)),
            Operation::SetIf { counter, is, to } => {
                let before = tx.counter_set(counter, *to).await?;
                if before != *is {
                    return far::abort(unmet(number, Found::Count(before)));
                }
                said.push(Said::Count(before));
            }
        }
    }
    Ok(said)
}
