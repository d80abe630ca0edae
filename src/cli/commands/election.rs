//! `election`: one leader among many processes, and everybody knows who.

use std::ffi::OsStr;
use std::time::Duration;

use dogsled::cluster::{Election, Leader, LockGuard, Observer};
use serde_json::{Value, json};

use super::lock_run::environment;
use super::running::{Ended, check, cluster, exit, run_under};
use crate::cli::args::{ElectionCommand, Global, RunArgs};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::operations::given_token;
use crate::cli::output::Output;
use crate::cli::store::name_argument;

/// A leader that is gone without a word is looked for so often.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn election(global: &Global, out: &mut Output, command: &ElectionCommand) -> Result<()> {
    match command {
        ElectionCommand::Campaign { name, value, wait, run } => campaign(global, name, value, *wait, run),
        ElectionCommand::Leader { name } => {
            let name = name_argument("election name", name)?;
            let leader = global.existing_database()?.leader(&name)?;
            let leader = leader.ok_or_else(|| {
                Failure::not_found(format!("nobody leads election {:?}", bytes::display_short(&name)))
            })?;
            out.summary(
                format_args!("{}\ttoken {}", bytes::display(&leader.value), leader.token),
                fields(&name, Some(&leader)),
            )
        }
        ElectionCommand::Proclaim { name, value, token } => {
            let (name, value) = (name_argument("election name", name)?, name_argument("value", value)?);
            let token = given_token(*token, &name)?;
            let database = global.existing_database()?;
            database.proclaim(&name, token, &value)?;
            database.flush()?;
            if out.json {
                let leader = Leader { token, value: value.into() };
                out.document(&fields(&name, Some(&leader)))
            } else {
                Ok(())
            }
        }
        ElectionCommand::Resign { name, token } => {
            let name = name_argument("election name", name)?;
            let token = given_token(*token, &name)?;
            let database = global.existing_database()?;
            if !database.resign(&name, token)? {
                return Err(Failure::refused(format!(
                    "election {:?} is not led under token {token} any more",
                    bytes::display_short(&name)
                )));
            }
            database.flush()?;
            if out.json { out.document(&fields(&name, None)) } else { Ok(()) }
        }
        ElectionCommand::Observe { name, limit } => observe(global, out, name, *limit),
    }
}

fn campaign(global: &Global, name: &OsStr, value: &OsStr, wait: Option<u64>, run: &RunArgs) -> Result<()> {
    check(run, "dogsled election campaign NAME VALUE -- command")?;
    let (name, value) = (name_argument("election name", name)?, name_argument("value", value)?);
    let remote = cluster(global, "a command runs as the leader")?;
    let ended = remote.wait(async {
        let election = remote.client().election(&name);
        let lease = Duration::from_secs(run.lease);
        let leadership = match wait {
            None => election.campaign(&value, lease).await?,
            Some(wait) => {
                let elected = election.campaign_timeout(&value, lease, Duration::from_secs(wait)).await?;
                elected.ok_or_else(|| {
                    Failure::refused(format!("another leads election {:?}", bytes::display_short(&name)))
                })?
            }
        };
        let guard: &LockGuard = leadership.guard();
        let ended = run_under(guard, run, environment(&name, guard)).await;
        // Whether it still led changes nothing any more; if it is not heard, the lease ends it.
        if leadership.guard().is_valid() {
            let _ = leadership.resign().await;
        }
        ended
    });
    let ended: Ended = ended?;
    exit(remote, ended, || format!("leadership of election {:?}", bytes::display_short(&name)))
}

fn observe(global: &Global, out: &mut Output, name: &OsStr, limit: Option<u64>) -> Result<()> {
    let name = name_argument("election name", name)?;
    let remote = cluster(global, "leaders are")?;
    let election = remote.client().election(&name);
    let mut observer = remote.wait(election.observe())?;
    // After it is followed: no change is missed between the two.
    let mut news = remote.wait(election.leader())?;
    let mut lines = 0;
    if limit == Some(0) {
        return Ok(());
    }
    loop {
        tell(out, &name, news.as_ref())?;
        out.finish()?;
        lines += 1;
        if limit.is_some_and(|limit| lines >= limit) {
            return Ok(());
        }
        let told = news;
        news = loop {
            let next = remote.wait(next(&election, &mut observer, told.is_some()));
            let heard = match next {
                // What is heard may be older than what was read.
                Some(Ok(None)) => remote.wait(election.leader())?,
                Some(heard) => heard?,
                None => return Ok(()),
            };
            let token = |leader: &Option<Leader>| leader.as_ref().map(|leader| leader.token);
            let is_old = heard.is_some() && token(&heard) < token(&told);
            if !is_old && heard != told {
                break heard;
            }
        };
    }
}

/// What is heard next; or that nobody leads any more, of which nothing is heard when a lease ends.
async fn next(
    election: &Election,
    observer: &mut Observer,
    somebody_leads: bool,
) -> Option<dogsled::cluster::Result<Option<Leader>>> {
    let heard = observer.next();
    tokio::pin!(heard);
    loop {
        tokio::select! {
            heard = &mut heard => return heard,
            () = tokio::time::sleep(LOOK) => {}
        }
        if somebody_leads && matches!(election.leader().await, Ok(None)) {
            return Some(Ok(None));
        }
    }
}

fn tell(out: &mut Output, name: &[u8], leader: Option<&Leader>) -> Result<()> {
    let fields = fields(name, leader);
    match leader {
        Some(leader) => out.summary(
            format_args!("leads\t{}\ttoken {}", bytes::display(&leader.value), leader.token),
            fields,
        ),
        None => out.summary("nobody", fields),
    }
}

fn fields(name: &[u8], leader: Option<&Leader>) -> Value {
    json!({
        "election": bytes::to_json(name),
        "leader": leader.map(|leader| bytes::to_json(&leader.value)),
        "token": leader.map(|leader| leader.token.0),
    })
}
