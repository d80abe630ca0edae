//! `dogsled lock NAME -- command`, and the same of read/write locks and semaphores: a command that runs while
//! a lock is held.
//!
//! ```text
//! wait for the lock ─► run the command (see `running`) ─► release ─► exit with its code, or 8 if the lock was lost
//! ```
//!
//! The command is told the lock and the token of its grant in the environment, `DOGSLED_LOCK` and
//! `DOGSLED_LOCK_TOKEN`, to hand on with what it does: `put --under NAME` and its kin write only while that is held.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use dogsled::cluster::{Client, Lock, LockGuard};

use super::running::{Ended, check, cluster, exit, run_under};
use crate::cli::args::{Global, LockRun, NamedLockRun, SemaphoreArgs, UnderLock};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::operations::{LOCK_VARIABLE, TOKEN_VARIABLE};
use crate::cli::store::name_argument;

/// `dogsled lock NAME -- command`.
pub(crate) fn lock(global: &Global, arguments: &LockRun) -> Result<()> {
    let Some(name) = &arguments.name else {
        return Err(Failure::usage("say which lock, as in `dogsled lock NAME -- command`"));
    };
    under(global, "lock", name, &arguments.under, |client, name| client.lock(name))
}

/// `dogsled read-lock NAME -- command`.
pub(crate) fn read_lock(global: &Global, arguments: &NamedLockRun) -> Result<()> {
    under(global, "read-lock", &arguments.name, &arguments.under, |client, name| client.read_lock(name))
}

/// `dogsled write-lock NAME -- command`.
pub(crate) fn write_lock(global: &Global, arguments: &NamedLockRun) -> Result<()> {
    under(global, "write-lock", &arguments.name, &arguments.under, |client, name| client.write_lock(name))
}

/// `dogsled semaphore NAME --capacity N -- command`.
pub(crate) fn semaphore(global: &Global, arguments: &SemaphoreArgs) -> Result<()> {
    let SemaphoreArgs { name, capacity, permits, under: rest } = arguments;
    if permits > capacity {
        return Err(Failure::usage(format!("{permits} permits of a semaphore that has {capacity}")));
    }
    under(global, "semaphore", name, rest, |client, name| client.semaphore(name, *capacity).permits(*permits))
}

fn under(
    global: &Global,
    kind: &str,
    name: &OsStr,
    arguments: &UnderLock,
    lock: impl FnOnce(&Client, &[u8]) -> Lock,
) -> Result<()> {
    check(&arguments.run, &format!("dogsled {kind} NAME -- command"))?;
    let name = name_argument("lock name", name)?;
    let remote = cluster(global, "a command runs under a lock")?;
    let ended = remote.wait(async {
        let lock = lock(remote.client(), &name).delay(Duration::from_secs(arguments.delay));
        let lease = Duration::from_secs(arguments.run.lease);
        let guard = match arguments.wait {
            None => lock.acquire(lease).await?,
            Some(0) => lock.try_acquire(lease).await?.ok_or_else(|| held(&name))?,
            Some(wait) => {
                let granted = lock.acquire_timeout(lease, Duration::from_secs(wait)).await?;
                granted.ok_or_else(|| held(&name))?
            }
        };
        let ended = run_under(&guard, &arguments.run, environment(&name, &guard)).await;
        // Whether it was still held changes nothing any more; if it is not heard, the lease ends it.
        if guard.is_valid() {
            let _ = guard.release().await;
        } else {
            guard.keep();
        }
        ended
    });
    let ended: Ended = ended?;
    exit(remote, ended, || format!("lock {:?}", bytes::display_short(&name)))
}

/// What a command that runs under a lock finds in its environment.
pub(super) fn environment(name: &[u8], guard: &LockGuard) -> [(&'static str, OsString); 2] {
    [(LOCK_VARIABLE, OsStr::from_bytes(name).to_owned()), (TOKEN_VARIABLE, guard.token().to_string().into())]
}

fn held(name: &[u8]) -> Failure {
    Failure::refused(format!("lock {:?} is held by another", bytes::display_short(name)))
}
