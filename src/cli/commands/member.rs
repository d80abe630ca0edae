//! `member`: who belongs to a cluster.

use dogsled::cluster::{ClusterMap, NodeId};
use serde_json::json;

use crate::cli::args::{Global, MemberCommand};
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
    match command {
        MemberCommand::List => list(out, &map),
        MemberCommand::Add { id, addresses } => {
            let added = remote.wait(client.add_member(node_id(*id)?, addresses.clone()));
            added.map_err(|error| Failure::from(error).adding("the same command goes on with it"))?;
            out.summary(
                format!("node {id} is a member at {}", addresses.join(", ")),
                json!({ "node": id, "addresses": addresses }),
            )
        }
        MemberCommand::Remove { id } => {
            let node = node_id(*id)?;
            if !map.members.iter().any(|(member, _)| *member == node) {
                let members: Vec<String> = map.members.iter().map(|(member, _)| member.to_string()).collect();
                return Err(Failure::not_found(format!(
                    "node {id} is no member of the cluster; its members are {}",
                    members.join(", ")
                )));
            }
            if map.members.len() == 1 {
                return Err(Failure::refused(format!("node {id} is the only member of the cluster")));
            }
            let removed = remote.wait(client.remove_member(node));
            removed.map_err(|error| Failure::from(error).adding("the same command goes on with it"))?;
            out.summary(
                format!("node {id} is no member any more; its id must never be used again"),
                json!({ "removed": id }),
            )
        }
    }
}

fn node_id(id: u64) -> Result<NodeId> {
    match id {
        0 => Err(Failure::usage("0 is no node id; ids begin with 1")),
        _ => Ok(NodeId(id)),
    }
}

fn list(out: &mut Output, map: &ClusterMap) -> Result<()> {
    for (node, addresses) in &map.members {
        let line = format!("{node}\t{}", addresses.join(","));
        out.summary(line, json!({ "node": node.0, "addresses": addresses }))?;
    }
    Ok(())
}
