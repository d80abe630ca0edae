//! `session`, and `put --session`: what dies with whoever made it.
//!
//! A session of the library is opened in each partition in which it comes to own something. One that several
//! processes use by its number cannot know where that will be, so it is opened in all of them, and renewed in all.

use std::ffi::OsStr;
use std::time::Duration;

use dogsled::cluster::Session;
use dogsled_storage::{DEFAULT_TREE_NAME, SessionId};
use serde_json::json;

use super::running::{check, cluster, exit, run_under};
use crate::cli::args::{Global, RunArgs, SessionCommand};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;
use crate::cli::remote::Remote;

pub(crate) fn session(global: &Global, out: &mut Output, command: &SessionCommand) -> Result<()> {
    match command {
        SessionCommand::Open { lease } => {
            let remote = cluster(global, "sessions are")?;
            let session = remote.client().session(Duration::from_secs(*lease));
            remote.wait(session.open_everywhere())?;
            let id = session.id();
            session.keep();
            out.summary(id, json!({ "session": id.to_string(), "lease_ms": lease * 1000 }))
        }
        SessionCommand::Renew { id } => {
            let id = number(id)?;
            let remote = cluster(global, "sessions are")?;
            resume(&remote, id)?.keep();
            if out.json {
                out.document(&json!({ "session": id.to_string(), "renewed": true }))
            } else {
                Ok(())
            }
        }
        SessionCommand::Close { id } => {
            let id = number(id)?;
            let remote = cluster(global, "sessions are")?;
            let session = resume(&remote, id)?;
            remote.wait(session.close())?;
            if out.json {
                out.document(&json!({ "session": id.to_string(), "closed": true }))
            } else {
                Ok(())
            }
        }
        SessionCommand::Run { run } => run_in_session(global, run),
    }
}

fn run_in_session(global: &Global, run: &RunArgs) -> Result<()> {
    check(run, "dogsled session run -- command")?;
    let remote = cluster(global, "sessions are")?;
    let session = remote.client().session(Duration::from_secs(run.lease));
    let ended = remote.wait(async {
        session.open_everywhere().await?;
        let environment = [("DOGSLED_SESSION", session.id().to_string().into())];
        let ended = run_under(&session, run, environment).await;
        // If it is not heard, the lease ends it.
        let _ = session.close().await;
        ended
    })?;
    let id = session.id();
    drop(session);
    exit(remote, ended, || format!("session {id}"))
}

/// `put --session`.
pub(crate) fn put(
    global: &Global,
    out: &mut Output,
    key: &OsStr,
    value: &OsStr,
    session: &str,
) -> Result<()> {
    let id = number(session)?;
    let key = global.key_argument(key)?;
    let value = global.value_argument(value)?;
    let remote = cluster(global, "sessions are")?;
    let tree = remote.client().tree(global.tree_name()?.as_deref().unwrap_or(DEFAULT_TREE_NAME));
    let session = resume(&remote, id)?;
    let replaced = remote.wait(session.insert(&tree, &key, value))?.is_some();
    session.keep();
    if out.json {
        let key = bytes::to_json(&key);
        out.document(&json!({ "key": key, "replaced": replaced, "session": id.to_string() }))
    } else {
        Ok(())
    }
}

/// The session of that number, which this renews.
fn resume(remote: &Remote, id: SessionId) -> Result<Session> {
    let session = remote.wait(remote.client().resume_session(id))?;
    session.ok_or_else(|| Failure::not_found(format!("session {id} has ended, or was never opened")))
}

fn number(text: &str) -> Result<SessionId> {
    let is_one = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = is_one.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    number.map(SessionId).ok_or_else(|| {
        Failure::usage(format!("{text:?} is not the number of a session: 32 hexadecimal digits"))
    })
}
