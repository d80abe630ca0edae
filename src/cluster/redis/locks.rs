//! `DOGSLED.LOCK`, `DOGSLED.UNLOCK` and `DOGSLED.FENCED`: the [locks](crate::cluster::Lock) of the cluster, for Redis
//! clients.
//!
//! | command | reply |
//! |---|---|
//! | `DOGSLED.LOCK name milliseconds [OWNER owner] [WAIT milliseconds]` | the token of the grant, a number; null: somebody holds it |
//! | `DOGSLED.LOCK name milliseconds RENEW token` | the token, and the lease is of so long from now; null: it is not held under it |
//! | `DOGSLED.UNLOCK name token` | 1: it is free; 0: it was not held under this token, or no more |
//! | `DOGSLED.FENCED name token command [argument …]` | that of the command, carried out only while the lock is held; else the error `LOCKNOTHELD` |
//!
//! A lock is held until its lease ends, not until a connection does. Tokens only grow, so whatever else is written to can
//! refuse one that is smaller than the largest it saw; here that is what `FENCED` does, in the entry of the log that
//! writes, if that happens to be the partition of both. In general it is not, whatever their tags: keys lie where Redis's slots
//! put them (see `slots.rs`), locks where they always did. Then it is a transaction over several; there
//! a lease that has ended counts until somebody else has the lock. Within `MULTI`, a lock that is not held refuses all of
//! `EXEC`.
//!
//! Locks are not keys: `DOGSLED.LOCK a` has nothing to do with `GET a`, nor with the selected database; it is the lock `a` of
//! `dogsled lock` and of [`Client::lock`](crate::cluster::Client::lock). Who waits stands in the same queue, and leaves it when
//! the client hangs up; meanwhile nothing else of the connection is carried out.
//!
//! What is usual with Redis, `SET name owner NX PX milliseconds` and comparing before deleting, excludes others here as
//! well, on a quorum. But it has no token: a holder that was paused for too long writes all the same.

use std::time::Duration;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::Fence;

use super::database::{Data, Database, failed};
use super::table::{Asked, Planned, Step, find, integer, is_word, syntax_error, unknown};
use crate::cluster::Error;
use crate::cluster::session::random_u64;
use crate::{FencingToken, IVec};

/// What is asked of a lock.
#[derive(Clone, Debug)]
pub(super) enum Locking {
    Acquire { name: IVec, owner: Option<IVec>, lease: Duration, wait: Duration },
    Renew { name: IVec, token: FencingToken, lease: Duration },
    Release { name: IVec, token: FencingToken },
}

impl Locking {
    /// Whether it may take as long as others like.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Locking::Acquire { wait, .. } if !wait.is_zero())
    }
}

fn name_of(argument: &Bytes) -> IVec {
    IVec::from(&argument[..])
}

fn token_of(argument: &[u8]) -> Result<FencingToken, Value> {
    let number = u64::try_from(integer(argument)?);
    number.map(FencingToken).map_err(|_| Value::error("ERR a fencing token is never negative"))
}

pub(super) fn lock(asked: &Asked<'_>) -> Planned {
    let name = name_of(&asked.arguments[1]);
    let lease = match u64::try_from(integer(&asked.arguments[2])?) {
        Ok(lease) if lease > 0 => Duration::from_millis(lease),
        _ => return Err(Value::error("ERR invalid expire time in 'dogsled.lock' command")),
    };
    let (mut owner, mut wait, mut token) = (None, None, None);
    let mut options = asked.arguments[3..].iter();
    while let Some(option) = options.next() {
        let argument = options.next().ok_or_else(syntax_error)?;
        if is_word(option, "OWNER") {
            owner = Some(name_of(argument));
        } else if is_word(option, "WAIT") {
            let timeout = u64::try_from(integer(argument)?);
            wait = Some(Duration::from_millis(timeout.map_err(|_| Value::error("ERR timeout is negative"))?));
        } else if is_word(option, "RENEW") {
            token = Some(token_of(argument)?);
        } else {
            return Err(syntax_error());
        }
    }
    Ok(Step::Lock(match token {
        None => Locking::Acquire { name, owner, lease, wait: wait.unwrap_or_default() },
        Some(token) if owner.is_none() && wait.is_none() => Locking::Renew { name, token, lease },
        // Whoever has a token does not wait, and who it is is known.
        Some(_) => return Err(syntax_error()),
    }))
}

pub(super) fn unlock(asked: &Asked<'_>) -> Planned {
    let (name, token) = (name_of(&asked.arguments[1]), token_of(&asked.arguments[2])?);
    Ok(Step::Lock(Locking::Release { name, token }))
}

pub(super) fn fenced(asked: &Asked<'_>) -> Planned {
    let (lock, token) = (name_of(&asked.arguments[1]), token_of(&asked.arguments[2])?);
    let inner = &asked.arguments[3..];
    let command = find(&inner[0]).ok_or_else(|| unknown(inner))?;
    command.check(inner)?;
    let other = || {
        let name = command.name.to_ascii_uppercase();
        Value::error(format!("ERR DOGSLED.FENCED is for commands on keys, which {name} is not"))
    };
    // Before it is planned: however often a client nests them, the stack is not deeper.
    if command.name == asked.name {
        return Err(other());
    }
    match command.plan(inner, asked.database, asked.now_ms, asked.cursors)? {
        Step::Data(data) => Ok(Step::Data(data.under(Fence { lock, token }))),
        _ => Err(other()),
    }
}

impl Data {
    /// The same, only while a lock is held.
    fn under(mut self, fence: Fence) -> Data {
        self.fence = Some(fence);
        self
    }
}

impl Database {
    /// Does what is asked of a lock, for whoever connects from this address.
    pub(super) async fn lock(&self, asked: Locking, peer: &str) -> Value {
        self.try_lock(asked, peer).await.unwrap_or_else(|error| failed(&error))
    }

    async fn try_lock(&self, asked: Locking, peer: &str) -> Result<Value, Error> {
        match asked {
            Locking::Acquire { name, owner, lease, wait } => {
                let lock = self.client.lock(&name).without_renewal();
                // Nobody else has it: a connection may hold several grants of one semaphore, or lose the answer to one.
                let owner =
                    owner.unwrap_or_else(|| IVec::from(format!("redis {peer} {:016x}", random_u64())));
                let lock = lock.owner(owner);
                let granted = match wait.is_zero() {
                    true => lock.try_acquire(lease).await?,
                    false => lock.acquire_timeout(lease, wait).await?,
                };
                Ok(granted.map_or(Value::Null, |guard| {
                    let token = guard.token();
                    guard.keep();
                    number(token)
                }))
            }
            Locking::Renew { name, token, lease } => {
                let Some(owner) = self.holder(&name, token).await? else { return Ok(Value::Null) };
                let renewed = self.client.lock(&name).owner(owner).renew(token, lease).await?;
                Ok(renewed.map_or(Value::Null, |_| number(token)))
            }
            Locking::Release { name, token } => {
                let Some(owner) = self.holder(&name, token).await? else { return Ok(Value::Integer(0)) };
                let released = self.client.lock(&name).owner(owner).release(token).await?;
                Ok(Value::Integer(i64::from(released.is_ok())))
            }
        }
    }

    /// Who holds a lock under this token. Whether it still does is for the log to say.
    async fn holder(&self, name: &IVec, token: FencingToken) -> Result<Option<IVec>, Error> {
        let holder = self.client.lock(name).holder().await?;
        Ok(holder.filter(|holder| holder.token == token).map(|holder| holder.owner))
    }
}

fn number(token: FencingToken) -> Value {
    // A position in a log: there is none beyond.
    Value::Integer(i64::try_from(token.0).unwrap_or(i64::MAX))
}
