//! `recover`: goes on with what is left of groups that have lost their quorum for ever.

use dogsled::cluster::{GroupRecovery, NodeId, Recovery};
use serde_json::{Value, json};

use super::member::node_id;
use crate::cli::args::Global;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;
use crate::cli::remote::Remote;

/// Survivors elect themselves, one group after the other.
const TIMEOUT: u64 = 120;

pub(crate) fn recover(global: &Global, out: &mut Output, lost: &[u64], accept_data_loss: bool) -> Result<()> {
    if accept_data_loss && lost.is_empty() {
        return Err(Failure::usage(
            "say which members will never come back: `dogsled recover` without anything shows which do not answer",
        ));
    }
    let lost = lost.iter().map(|node| node_id(*node)).collect::<Result<Vec<NodeId>>>()?;
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let recovery = remote.wait(client.recover(&lost, accept_data_loss))?;
    let named = list(&recovery.lost);
    if out.json {
        out.document(&fields(&recovery))?;
    } else {
        for group in &recovery.groups {
            out.line(group)?;
        }
        if recovery.done {
            out.line(format_args!(
                "done: node {named} is given up for ever, and its id is never taken in again"
            ))?;
        }
    }
    if recovery.done {
        return Ok(());
    }
    let command = recovery.lost.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ");
    Err(Failure::refused(format!(
        "nothing was done: if node {named} will never come back, and you accept that what is said above may be lost, \
         `dogsled recover {command} --accept-data-loss` does it"
    )))
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

fn fields(recovery: &Recovery) -> Value {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
    let group = |group: &GroupRecovery| {
        json!({
            "group": group.group,
            "survivor": group.survivor.map(|survivor| survivor.0),
            "lost": ids(&group.lost),
            "other_survivors": ids(&group.others),
            "last": group.last.position,
            "last_term": group.last.term,
            "committed": group.committed,
            "applied": group.applied,
            "led": group.led,
            "level_ms": group.level.map(|level| u64::try_from(level.as_millis()).unwrap_or(u64::MAX)),
        })
    };
    json!({
        "lost": ids(&recovery.lost),
        "done": recovery.done,
        "groups": recovery.groups.iter().map(group).collect::<Vec<_>>(),
    })
}
