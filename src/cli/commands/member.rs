//! `member`: who belongs to a cluster.

use dogsled::cluster::{Change, NodeId, Record};
use serde_json::json;

use crate::cli::args::{Global, MemberCommand};
use crate::cli::commands::rebalance::go_on;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::output::Output;
use crate::cli::remote::Remote;

/// A new member gets everything that the cluster holds before it votes.
const TIMEOUT: u64 = 600;

pub(crate) fn member(global: &Global, out: &mut Output, command: &MemberCommand) -> Result<()> {
    let remote = Remote::connect(global)?;
    let map = remote.wait(remote.client().map())?;
    if map.cluster == 0 {
        return Err(Failure::new(Code::Unavailable, "the node that answers belongs to no cluster yet"));
    }
    let client = remote.patient_client(global, TIMEOUT);
    let record = remote.wait(client.record())?;
    match command {
        MemberCommand::List => list(out, &record),
        MemberCommand::Add { id, addresses } => {
            let added = remote.wait(client.add_member(node_id(*id)?, addresses.clone()));
            added.map_err(go_on)?;
            out.summary(
                format!("node {id} is a member at {}", addresses.join(", ")),
                json!({ "node": id, "addresses": addresses }),
            )
        }
        MemberCommand::Remove { id } => {
            let node = node_id(*id)?;
            if !record.members.contains_key(&node) {
                let members: Vec<String> = record.members.keys().map(NodeId::to_string).collect();
                return Err(Failure::not_found(format!(
                    "node {id} is no member of the cluster; its members are {}",
                    members.join(", ")
                )));
            }
            if record.members.len() == 1 {
                return Err(Failure::refused(format!("node {id} is the only member of the cluster")));
            }
            let removed = remote.wait(client.change(record.epoch, true, Change::Remove { node }));
            removed.map_err(go_on)?;
            out.summary(
                format!("node {id} is no member any more; its id must never be used again"),
                json!({ "removed": id }),
            )
        }
        MemberCommand::Weight { id, weight, no_wait } => {
            let change = Change::Weight { node: node_id(*id)?, weight: *weight };
            let changed = remote.wait(client.change(record.epoch, !no_wait, change));
            changed.map_err(go_on)?;
            out.summary(format!("node {id} has the weight {weight}"), json!({ "node": id, "weight": weight }))
        }
    }
}

pub(super) fn node_id(id: u64) -> Result<NodeId> {
    match id {
        0 => Err(Failure::usage("0 is no node id; ids begin with 1")),
        _ => Ok(NodeId(id)),
    }
}

fn list(out: &mut Output, record: &Record) -> Result<()> {
    for (node, member) in &record.members {
        let addresses = &member.addresses;
        let zone = if member.zone.is_empty() { "-" } else { &member.zone };
        let line = format!("{node}\t{}\t{}\t{}\t{zone}", addresses.join(","), member.state, member.weight);
        let fields = json!({
            "node": node.0,
            "addresses": addresses,
            "state": member.state.to_string(),
            "weight": member.weight,
            "zone": member.zone,
        });
        out.summary(line, fields)?;
    }
    Ok(())
}
