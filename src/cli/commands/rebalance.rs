//! `rebalance`, `drain`, `replicas`: what is to move between the members, how, and how far it is.

use dogsled::cluster::report::{self, Movement};
use dogsled::cluster::{Change, Client, Error, NodeId, Record};
use serde_json::json;

use super::member::node_id;
use crate::cli::args::{Global, RebalanceArgs};
use crate::cli::exit::{Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::remote::Remote;

/// How long what is moved may take.
const TIMEOUT: u64 = 600;
/// Signs of a bar.
const BAR: usize = 20;

/// Of what may have begun.
pub(super) fn go_on(error: Error) -> Failure {
    match error {
        Error::Unavailable(_) | Error::OutcomeUnknown(_) => {
            Failure::from(error).adding("the same command goes on with it")
        }
        other => other.into(),
    }
}

pub(crate) fn drain(global: &Global, out: &mut Output, id: u64, cancel: bool, no_wait: bool) -> Result<()> {
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let epoch = remote.wait(client.record())?.epoch;
    let change = Change::Drain { node: node_id(id)?, on: !cancel };
    remote.wait(client.change(epoch, !no_wait, change)).map_err(go_on)?;
    let done = match (cancel, no_wait) {
        (false, false) => format!("node {id} holds nothing any more"),
        (false, true) => format!("node {id} is being emptied"),
        (true, false) => format!("node {id} has its share again"),
        (true, true) => format!("node {id} is given its share again"),
    };
    out.summary(done, json!({ "node": id, "draining": !cancel, "done": !no_wait }))
}

pub(crate) fn replicas(global: &Global, out: &mut Output, count: u32, no_wait: bool) -> Result<()> {
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let epoch = remote.wait(client.record())?.epoch;
    remote.wait(client.change(epoch, !no_wait, Change::Replicas(count))).map_err(go_on)?;
    let replicas = output::count(u64::from(count), "replica");
    let done = if no_wait { "is to have" } else { "has" };
    out.summary(format!("each partition {done} {replicas}"), json!({ "replicas": count, "done": !no_wait }))
}

pub(crate) fn rebalance(global: &Global, out: &mut Output, args: &RebalanceArgs) -> Result<()> {
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, 10);
    let record = remote.wait(client.record())?;
    let paused = match (args.pause, args.resume) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let change = Change::Moves {
        paused,
        moves: args.moves,
        bytes_per_second: args.bytes_per_second,
        replace_after_ms: args.replace_after.map(|seconds| seconds.saturating_mul(1_000)),
    };
    let nothing = Change::Moves { paused: None, moves: None, bytes_per_second: None, replace_after_ms: None };
    let record = match change == nothing {
        true => record,
        false => {
            remote.wait(client.change(record.epoch, false, change.clone()))?;
            // The node that answers next may not have heard of it: say what was decided.
            record.changed(&change).ok().flatten().unwrap_or(record)
        }
    };
    let moves = remote.wait(moves(&client, &record))?;
    if out.json {
        return out.document(&report::movement_document(&record, &moves));
    }
    for line in lines(&record, &moves) {
        out.line(line)?;
    }
    Ok(())
}

/// What is still to be moved, as the leaders of the groups see it.
async fn moves(client: &Client, record: &Record) -> Result<Vec<Movement>, dogsled::cluster::Error> {
    Ok(report::movements(record, &client.status().await?))
}

fn bar(share: u64) -> String {
    let full = (share as usize * BAR / 1_000).min(BAR);
    format!("[{}{}] {:>3} %", "#".repeat(full), ".".repeat(BAR - full), share / 10)
}

pub(super) fn lines(record: &Record, moves: &[Movement]) -> Vec<String> {
    let settings = &record.settings;
    let mut lines = vec![format!(
        "epoch {}, {} each, {} at a time, {}, silent members replaced after {} s{}",
        record.epoch,
        output::count(u64::from(record.replicas), "replica"),
        output::count(u64::from(settings.moves), "move"),
        match settings.bytes_per_second {
            0 => "no limit".to_owned(),
            bytes => format!("{} a second", output::size(bytes)),
        },
        settings.replace_after.as_secs(),
        if settings.paused { "; PAUSED" } else { "" }
    )];
    if moves.is_empty() {
        lines.push("every partition is where it is to be".to_owned());
    }
    let list = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
    for found in moves {
        for (node, share) in &found.to {
            let share = share.map_or_else(|| "waiting".to_owned(), bar);
            lines.push(format!("partition {:>4} to node {:>3}  {share}", found.group, node.0));
        }
        if found.to.is_empty() {
            lines.push(format!("partition {:>4} leaves {}", found.group, list(&found.from)));
        }
    }
    lines
}
