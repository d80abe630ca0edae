//! `dogsled lock NAME -- command`: a command that runs while a lock is held.
//!
//! ```text
//! wait for the lock ─► start the command ─► it ends ─► release ─► exit with its code
//!                                        └─ the lock is lost, or this is told to stop
//!                                             ─► SIGTERM ─► (--kill-after) SIGKILL ─► exit with 8, or its code
//! ```
//!
//! SIGKILL comes no later than the moment from which the lock may be another's. Both signals go to the command and
//! to all that it has started, as a process group of its own; at a terminal there is none (a group in the
//! background may not read from it), and they go to the command alone. Nothing stops the command if this
//! process itself is killed: then only `--delay` and the token keep it from what is another's.
//!
//! The command is told the lock and the token of its grant in the environment, `DOGSLED_LOCK` and
//! `DOGSLED_LOCK_TOKEN`, to hand on with what it does: see fencing in the documentation of the library.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use dogsled::cluster::LockGuard;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::args::{Global, LockRun};
use crate::cli::bytes;
use crate::cli::database::Database;
use crate::cli::exit::{Failure, Result};
use crate::cli::store::name_argument;

/// Why the command was stopped.
enum Stopped {
    /// The lock is lost.
    Lost,
    /// This process was told to.
    Told,
}

pub(crate) fn run(global: &Global, arguments: &LockRun) -> Result<()> {
    let Some(name) = &arguments.name else {
        return Err(Failure::usage("say which lock, as in `dogsled lock NAME -- command`"));
    };
    let Some((program, words)) = arguments.command.split_first() else {
        return Err(Failure::usage("say what to run under the lock, as in `dogsled lock NAME -- command`"));
    };
    let name = name_argument("lock name", name)?;
    let Database::Cluster(remote) = global.database()? else {
        return Err(Failure::usage(
            "a command runs under a lock of a cluster (--connect): a directory is open to one process at a time",
        ));
    };
    let ended = remote.wait(async {
        let lock = remote.client().lock(&name).delay(Duration::from_secs(arguments.delay));
        let lease = Duration::from_secs(arguments.lease);
        let guard = match arguments.wait {
            None => lock.acquire(lease).await?,
            Some(0) => lock.try_acquire(lease).await?.ok_or_else(|| held(&name))?,
            Some(wait) => {
                let granted = lock.acquire_timeout(lease, Duration::from_secs(wait)).await?;
                granted.ok_or_else(|| held(&name))?
            }
        };
        let kill_after = Duration::from_secs(arguments.kill_after);
        let ended = under(&guard, &name, program, words, kill_after).await;
        // Whether it was still held changes nothing any more; if it is not heard, the lease ends it.
        if guard.is_valid() {
            let _ = guard.release().await;
        } else {
            guard.keep();
        }
        ended
    });
    let code = ended?;
    drop(remote);
    if code == 0 { Ok(()) } else { std::process::exit(code) }
}

fn held(name: &[u8]) -> Failure {
    Failure::refused(format!("lock {:?} is held by another", bytes::display_short(name)))
}

/// Runs the command; the code to exit with.
async fn under(
    guard: &LockGuard,
    name: &[u8],
    program: &OsString,
    words: &[OsString],
    kill_after: Duration,
) -> Result<i32> {
    use std::os::unix::ffi::OsStrExt;
    let signals =
        || Ok::<_, std::io::Error>((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
    let (mut terminate, mut interrupt) =
        signals().map_err(|error| Failure::io("listening for signals", &error))?;
    let in_group = !std::io::stdin().is_terminal();
    let mut command = Command::new(program);
    if in_group {
        command.process_group(0);
    }
    let mut child = command
        .args(words)
        .env("DOGSLED_LOCK", std::ffi::OsStr::from_bytes(name))
        .env("DOGSLED_LOCK_TOKEN", guard.token().to_string())
        .spawn()
        .map_err(|error| Failure::io(format!("starting {}", program.display()), &error))?;
    let waiting = |error: std::io::Error| Failure::io(format!("waiting for {}", program.display()), &error);
    let stopped = tokio::select! {
        ended = child.wait() => return Ok(code_of(ended.map_err(waiting)?)),
        () = guard.lost() => Stopped::Lost,
        _ = terminate.recv() => Stopped::Told,
        _ = interrupt.recv() => Stopped::Told,
    };
    let ended = stop(&mut child, in_group, kill_after, guard).await.map_err(waiting)?;
    match stopped {
        Stopped::Told => Ok(code_of(ended)),
        Stopped::Lost => Err(Failure::refused(format!(
            "lock {:?} was lost, so the command was stopped",
            bytes::display_short(name)
        ))),
    }
}

/// Ends a command: first it is asked to, and not longer than the lock is certainly held.
async fn stop(
    child: &mut Child,
    in_group: bool,
    kill_after: Duration,
    guard: &LockGuard,
) -> std::io::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let send = |signal: Signal| {
        let Some(pid) = pid else { return };
        // It may have ended just now; that is seen below.
        let _ = if in_group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
    };
    send(Signal::TERM);
    let too_late = async {
        guard.lost().await;
        tokio::time::sleep(guard.remaining()).await;
    };
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        () = tokio::time::sleep(kill_after) => None,
        () = too_late => None,
    };
    // What the command has left behind of its group is ended, too.
    send(Signal::KILL);
    match ended {
        Some(ended) => ended,
        None => child.wait().await,
    }
}

/// As a shell gives it: a command that was ended by a signal has 128 and the signal's number.
fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
