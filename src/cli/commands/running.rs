//! A command that runs while something is held: a lock, a leadership, a session.
//!
//! ```text
//! start the command ─► it ends ─► its code
//!                   └─ what is held is lost, or this is told to stop
//!                        ─► SIGTERM ─► (--kill-after) SIGKILL
//! ```
//!
//! SIGKILL comes no later than the moment from which what is held may be another's. Both signals go to the command
//! and to all that it has started.
//!
//! **In the foreground of a terminal** the command stays in the group of this process, because a group in the background may
//! not read from the terminal. Its keys go to both: Ctrl-Z stops both, and what Ctrl-C and Ctrl-\\ mean is for the command
//! to say, which this process follows. What the command has started is found by its ancestry (Linux).
//! **Elsewhere** it is a process group of its own, and what has left that (as `timeout` and `setsid` do) is found by its
//! ancestry as well. A terminal that is closed ends the command as SIGTERM does.
//!
//! Nothing stops the command if this process itself is killed: then only a lock's delay and its token keep it from what is
//! another's.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use dogsled::cluster::{LockGuard, Session};
use rustix::process::{Pid, Signal, getpgid, getpgrp, getpid, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::args::{Global, RunArgs};
use crate::cli::database::Database;
use crate::cli::exit::{Failure, Result};
use crate::cli::remote::Remote;

/// How often it is looked whether something has been started meanwhile by what was killed, and how long after each time.
const KILLS: u32 = 50;
const KILL_AGAIN: Duration = Duration::from_millis(10);
/// How often it is looked how long what the command runs under is still held.
const LOOK: Duration = Duration::from_secs(1);

/// What a command runs under.
pub(super) trait Held {
    /// Returns when the command must stop.
    async fn lost(&self);

    /// How long, from now, until what is held may be another's.
    fn remaining(&self) -> Duration;
}

impl Held for LockGuard {
    async fn lost(&self) {
        LockGuard::lost(self).await;
    }

    fn remaining(&self) -> Duration {
        LockGuard::remaining(self)
    }
}

impl Held for Session {
    async fn lost(&self) {
        Session::lost(self).await;
    }

    /// A session is never another's.
    fn remaining(&self) -> Duration {
        Duration::MAX
    }
}

/// Of a command that runs under nothing that could be lost.
pub(super) struct Always;

impl Held for Always {
    async fn lost(&self) {
        std::future::pending().await
    }

    fn remaining(&self) -> Duration {
        Duration::MAX
    }
}

/// How a command came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, or because this process was told to stop; the code to exit with.
    With(i32),
    /// It was stopped because what it ran under was lost.
    Lost,
}

/// The cluster that `usage`, such as `dogsled lock NAME -- command`, works on.
pub(super) fn cluster(global: &Global, what: &str) -> Result<Rc<Remote>> {
    if !global.wants_cluster()? {
        return Err(Failure::usage(format!(
            "{what} of a cluster (--connect): a directory is open to one process at a time"
        )));
    }
    match global.database()? {
        Database::Cluster(remote) => Ok(remote),
        Database::Directory(_) => unreachable!("a cluster is wanted"),
    }
}

/// Refuses a command line without a command; before anything is taken.
pub(super) fn check(run: &RunArgs, usage: &str) -> Result<()> {
    match run.command.is_empty() {
        true => Err(Failure::usage(format!("say what to run, as in `{usage}`"))),
        false => Ok(()),
    }
}

/// Ends this process as the command has ended; `lost` says what was.
pub(super) fn exit(remote: Rc<Remote>, ended: Ended, lost: impl FnOnce() -> String) -> Result<()> {
    // Everything is given back first.
    drop(remote);
    match ended {
        Ended::With(0) => Ok(()),
        Ended::With(code) => std::process::exit(code),
        Ended::Lost => Err(Failure::refused(format!("{} was lost, so the command was stopped", lost()))),
    }
}

/// Runs the command until it ends, or must.
pub(super) async fn run_under(
    held: &impl Held,
    run: &RunArgs,
    environment: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<Ended> {
    let on = |kind| signal(kind).map_err(|error| Failure::io("listening for signals", &error));
    let (mut terminate, mut hang_up) = (on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    // In the foreground of a terminal the command gets these itself; that they are listened for keeps this process alive.
    let (mut interrupt, mut quit) = (on(SignalKind::interrupt())?, on(SignalKind::quit())?);
    let Some((program, words)) = run.command.split_first() else {
        return Err(Failure::usage("say what to run, behind `--`"));
    };
    let in_group = !is_in_foreground();
    adopt_orphans();
    // Whoever ran here before this program did, by exec, may have left some: they are no concern of the lock's.
    let before = descendants(&[]);
    let mut command = Command::new(program);
    if in_group {
        command.process_group(0);
    }
    let mut child = command
        .args(words)
        .envs(environment)
        .spawn()
        .map_err(|error| Failure::io(format!("starting {}", program.display()), &error))?;
    let waiting = |error: std::io::Error| Failure::io(format!("waiting for {}", program.display()), &error);
    let is_lost = tokio::select! {
        ended = child.wait() => return Ok(Ended::With(code_of(ended.map_err(waiting)?))),
        () = held.lost() => true,
        _ = terminate.recv() => false,
        _ = hang_up.recv() => false,
        _ = interrupt.recv(), if in_group => false,
        _ = quit.recv(), if in_group => false,
    };
    let kill_after = Duration::from_secs(run.kill_after);
    let ended = stop(&mut child, in_group, &before, kill_after, held).await.map_err(waiting)?;
    Ok(if is_lost { Ended::Lost } else { Ended::With(code_of(ended)) })
}

/// Ends a command: first it is asked to, and not longer than what it runs under is certainly held.
async fn stop(
    child: &mut Child,
    in_group: bool,
    before: &[Pid],
    kill_after: Duration,
    held: &impl Held,
) -> std::io::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let group = pid.filter(|_| in_group);
    // Whoever it is sent to may have ended just now; that is seen below.
    let send = |signal: Signal, is_first: bool| {
        if let Some(group) = group {
            let _ = kill_process_group(group, signal);
        }
        // Who has left the group for one of his own has not been told yet.
        let is_told = |pid: &Pid| group.is_some() && getpgid(Some(*pid)).ok() == group;
        let others = descendants(before).into_iter().filter(|pid| !is_told(pid));
        others.chain(pid.filter(|_| is_first && !in_group)).for_each(|pid| {
            let _ = kill_process(pid, signal);
        });
    };
    // Where nobody tells who has started whom, the command itself is told at least; not once it may have ended.
    send(Signal::TERM, true);
    let too_late = async {
        held.lost().await;
        // Looked at again and again: what is left grows less while the machine sleeps, and a timer does not notice that.
        while !held.remaining().is_zero() {
            tokio::time::sleep(held.remaining().min(LOOK)).await;
        }
    };
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        () = tokio::time::sleep(kill_after) => None,
        () = too_late => None,
    };
    // What the command has left behind is ended, too; and what that was starting just then.
    send(Signal::KILL, ended.is_none());
    for _ in 0..KILLS {
        let left = descendants(before);
        if left.is_empty() {
            break;
        }
        left.into_iter().for_each(|pid| {
            let _ = kill_process(pid, Signal::KILL);
        });
        tokio::time::sleep(KILL_AGAIN).await;
    }
    match ended {
        Some(ended) => ended,
        None => child.wait().await,
    }
}

/// Whether this process has a terminal, and is of the group that may read from it.
fn is_in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}

/// What a descendant of this process has started, and has ended before it, becomes a child of this one.
fn adopt_orphans() {
    // If that is refused, such a process is not found.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(getpid()));
}

/// All that this process has started, and all that those have, as far as the system tells, but for some and theirs.
fn descendants(but: &[Pid]) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // Its name, in brackets, may have any characters. Behind it are its state and its parent.
        let behind = status.rsplit_once(')').map_or("", |(_, behind)| behind);
        let mut fields = behind.split_whitespace();
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else { continue };
        if let Ok(parent) = parent.parse::<i32>() {
            parents.push((pid, parent, state != "Z"));
        }
    }
    let mut found = vec![getpid().as_raw_nonzero().get()];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        let is_left_out = |pid: i32| but.iter().any(|but| but.as_raw_nonzero().get() == pid);
        let started = parents.iter().filter(|(pid, of, _)| *of == parent && !is_left_out(*pid));
        found.extend(started.map(|(pid, ..)| *pid));
        at += 1;
    }
    let is_alive = |wanted: &i32| parents.iter().any(|(pid, _, is_alive)| pid == wanted && *is_alive);
    found.into_iter().skip(1).filter(is_alive).filter_map(Pid::from_raw).collect()
}

/// As a shell gives it: a command that was ended by a signal has 128 and the signal's number.
fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
