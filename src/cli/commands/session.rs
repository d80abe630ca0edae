//! `session`, and `put --session`: what dies with whoever made it.
//!
//! A session of the library is opened in each partition in which it comes to own something. One that several
//! processes use by its number cannot know where that will be, so it is opened in all of them, and renewed in all.

use std::ffi::OsStr;
use std::time::Duration;

use dogsled::cluster::Session;
use dogsled::{Owned, SessionStatus};
use dogsled_storage::{DEFAULT_TREE_NAME, SessionId};
use serde_json::{Value, json};

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
        SessionCommand::List => {
            for session in global.existing_database()?.sessions()? {
                list(out, &session)?;
            }
            Ok(())
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

/// A line with what a session is, and one for each thing that it owns.
fn list(out: &mut Output, session: &SessionStatus) -> Result<()> {
    if out.json {
        let owned: Vec<Value> = session.owned.iter().map(owned_fields).collect();
        return out.document(&json!({
            "session": session.id.to_string(),
            "lease_ms": session.lease.as_millis() as u64,
            "left_ms": session.left.as_millis() as u64,
            "partitions": session.partitions,
            "answers": session.answers,
            "owned": owned,
            "owns_more": session.owns_more,
        }));
    }
    let seconds = |duration: Duration| duration.as_millis().div_ceil(1000);
    let what = match session.answers {
        0 => format!("owns {}", session.owned.len()),
        answers => format!("of a client, remembers {answers}"),
    };
    out.line(format_args!(
        "{}\tlease {} s\t{} s left\t{what}",
        session.id,
        seconds(session.lease),
        seconds(session.left)
    ))?;
    for owned in &session.owned {
        match owned {
            Owned::Key { tree, key } => {
                out.line(format_args!("\tkey\t{}\t{}", bytes::display(tree), bytes::display(key)))?
            }
            Owned::Lock { name, token } => {
                out.line(format_args!("\tlock\t{}\ttoken {token}", bytes::display(name)))?
            }
            Owned::Place { name, .. } => out.line(format_args!("\twaits for\t{}", bytes::display(name)))?,
        }
    }
    if session.owns_more {
        out.line("\tand more")?;
    }
    Ok(())
}

fn owned_fields(owned: &Owned) -> Value {
    match owned {
        Owned::Key { tree, key } => json!({ "tree": bytes::to_json(tree), "key": bytes::to_json(key) }),
        Owned::Lock { name, token } => json!({ "lock": bytes::to_json(name), "token": token.0 }),
        Owned::Place { name, ticket } => json!({ "waits_for": bytes::to_json(name), "ticket": ticket }),
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

/// `put --session`, and with `--next`.
pub(crate) fn put(
    global: &Global,
    out: &mut Output,
    (key, value): (&OsStr, &OsStr),
    session: &str,
    next: bool,
) -> Result<()> {
    let id = number(session)?;
    let key = global.key_argument(key)?;
    let value = global.value_argument(value)?;
    let remote = cluster(global, "sessions are")?;
    let tree = remote.client().tree(global.tree_name()?.as_deref().unwrap_or(DEFAULT_TREE_NAME));
    let session = resume(&remote, id)?;
    if next {
        let key = remote.wait(session.insert_next(&tree, &key, value))?;
        session.keep();
        return out.entry(&key, None);
    }
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
