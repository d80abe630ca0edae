//! `status`: how a cluster is, by what each of its members says.

use dogsled::cluster::{GroupStatus, MemberRecord, MemberStatus, NodeId, NodeStatus, Record, Role};
use serde_json::{Value, json};

use super::rebalance;
use crate::cli::args::Global;
use crate::cli::exit::Result;
use crate::cli::output::{self, Output};
use crate::cli::remote::Remote;

/// How long the members may take: one that is down should not hold up the others' report.
const TIMEOUT: u64 = 3;

pub(crate) fn status(global: &Global, out: &mut Output) -> Result<()> {
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let (map, mut members) = remote
        .wait(async { Ok::<_, dogsled::cluster::Error>((client.map().await?, client.status().await?)) })?;
    members.sort_by_key(|member| member.node);
    let groups = groups(&members);
    // A node that belongs to no cluster yet has no record.
    let record = match map.epoch {
        0 => None,
        _ => remote
            .wait(async {
                let record = client.record().await?;
                let moves = rebalance::moves(&client, &record).await?;
                Ok::<_, dogsled::cluster::Error>((record, moves))
            })
            // The members have told how they are, which is what matters when something is wrong.
            .ok(),
    };
    if out.json {
        return out.document(&json!({
            "cluster": (map.cluster != 0).then(|| format!("{:032x}", map.cluster)),
            "partitions": map.partitions,
            "members": members.iter().map(|member| member_fields(member, &groups)).collect::<Vec<_>>(),
            "groups": groups.iter().map(group_fields).collect::<Vec<_>>(),
            "ring": record.as_ref().map(|(record, _)| ring_fields(record)),
            "movement": record.as_ref().map(|(record, moves)| rebalance::fields(record, moves)),
        }));
    }
    if map.cluster == 0 {
        out.line(format_args!("node {} belongs to no cluster yet", members[0].node))?;
    } else {
        out.line(format_args!(
            "cluster {:032x}: {}, {}",
            map.cluster,
            output::count(members.len() as u64, "member"),
            output::count(u64::from(map.partitions), "partition")
        ))?;
    }
    out.line("")?;
    let header =
        ["node", "address", "leads", "behind", "log", "syncs", "trees", "free", "state"].map(str::to_owned);
    table(out, std::iter::once(header).chain(members.iter().map(|member| member_row(member, &groups))))?;
    if groups.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let header = ["group", "leader", "term", "entries", "followers behind"].map(str::to_owned);
    table(out, std::iter::once(header).chain(groups.iter().map(group_row)))?;
    let Some((record, moves)) = record else { return Ok(()) };
    out.line("")?;
    let header = ["node", "is", "weight", "zone", "holds", "is to lead"].map(str::to_owned);
    table(out, std::iter::once(header).chain(record.members.iter().map(|one| ring_row(&record, one))))?;
    out.line("")?;
    for line in rebalance::lines(&record, &moves) {
        out.line(line)?;
    }
    Ok(())
}

/// What a member is to hold.
fn ring_row(record: &Record, (node, member): (&NodeId, &MemberRecord)) -> [String; 6] {
    let (holds, leads) = record.placement.loads().get(node).copied().unwrap_or_default();
    [
        node.to_string(),
        member.state.to_string(),
        member.weight.to_string(),
        if member.zone.is_empty() { "-".to_owned() } else { member.zone.clone() },
        output::count(holds, "replica"),
        leads.to_string(),
    ]
}

fn ring_fields(record: &Record) -> Value {
    let loads = record.placement.loads();
    let members = record.members.iter().map(|(node, member)| {
        let (holds, leads) = loads.get(node).copied().unwrap_or_default();
        json!({
            "node": node.0,
            "state": member.state.to_string(),
            "weight": member.weight,
            "zone": member.zone,
            "replicas": holds,
            "preferred_leader_of": leads,
        })
    });
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
    let partitions: Vec<_> = (1..=record.partitions()).map(|group| ids(record.replicas_of(group))).collect();
    json!({
        "members": members.collect::<Vec<_>>(),
        "removed": record.removed.iter().map(|node| node.0).collect::<Vec<_>>(),
        "meta_voters": ids(&record.meta_voters),
        "replicas_of_partitions": partitions,
    })
}

/// A group as whoever leads it sees it; or as somebody does.
struct Group<'a> {
    leader: Option<NodeId>,
    seen: &'a GroupStatus,
}

/// Every group of which a member has told.
fn groups(members: &[MemberStatus]) -> Vec<Group<'_>> {
    let told = || members.iter().filter_map(|member| member.status.as_ref().ok());
    let mut numbers: Vec<u32> =
        told().flat_map(|status| status.groups.iter().map(|group| group.group)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let group = |number: u32| {
        let views = told().filter_map(|status| {
            let seen = status.groups.iter().find(|group| group.group == number)?;
            Some((status.node, seen))
        });
        // Of two that believe to lead, the one of the later term does.
        let (node, seen) = views.max_by_key(|(_, seen)| (seen.role == Role::Leader, seen.term, seen.last))?;
        Some(Group { leader: (seen.role == Role::Leader).then_some(node), seen })
    };
    numbers.into_iter().filter_map(group).collect()
}

/// How many entries the node has not applied, of all groups together.
fn behind(status: &NodeStatus, groups: &[Group<'_>]) -> u64 {
    let own = |number: u32| status.groups.iter().find(|group| group.group == number);
    let lag = |group: &Group<'_>| match own(group.seen.group) {
        Some(own) => group.seen.committed.saturating_sub(own.applied),
        // It has no replica of that.
        None => 0,
    };
    groups.iter().map(lag).sum()
}

fn leads(node: NodeId, groups: &[Group<'_>]) -> usize {
    groups.iter().filter(|group| group.leader == Some(node)).count()
}

/// What is wrong with a node; nothing if it is well.
fn complaints(status: &NodeStatus) -> Vec<String> {
    let mut complaints: Vec<String> = status.failure.iter().cloned().collect();
    for group in &status.groups {
        match (&group.failure, group.role) {
            (Some(failure), _) => complaints.push(format!("group {}: {failure}", group.group)),
            (None, Role::Down) => complaints.push(format!("group {} is being opened", group.group)),
            (None, _) => {}
        }
    }
    complaints
}

fn member_row(member: &MemberStatus, groups: &[Group<'_>]) -> [String; 9] {
    let (node, addresses) = (member.node.to_string(), member.addresses.join(","));
    match &member.status {
        Err(error) => {
            let dash = || "-".to_owned();
            let why = error.to_string().replace('\n', " ");
            [node, addresses, dash(), dash(), dash(), dash(), dash(), dash(), format!("no answer: {why}")]
        }
        Ok(status) => {
            let complaints = complaints(status);
            [
                node,
                addresses,
                leads(member.node, groups).to_string(),
                output::number(behind(status, groups)),
                format!("{} of {}", output::size(status.wal_live_bytes), output::size(status.wal_file_bytes)),
                output::number(status.wal_syncs),
                output::size(status.tree_bytes),
                match status.disk_total_bytes {
                    0 => "?".to_owned(),
                    total => format!("{} of {}", output::size(status.disk_free_bytes), output::size(total)),
                },
                if complaints.is_empty() { "ok".to_owned() } else { complaints.join("; ") },
            ]
        }
    }
}

fn member_fields(member: &MemberStatus, groups: &[Group<'_>]) -> Value {
    let mut fields = json!({ "node": member.node.0, "addresses": member.addresses });
    let more = match &member.status {
        Err(error) => json!({ "answers": false, "error": error.to_string() }),
        Ok(status) => json!({
            "answers": true,
            "leads": leads(member.node, groups),
            "behind": behind(status, groups),
            "wal_live_bytes": status.wal_live_bytes,
            "wal_file_bytes": status.wal_file_bytes,
            "wal_syncs": status.wal_syncs,
            "tree_bytes": status.tree_bytes,
            "disk_total_bytes": (status.disk_total_bytes > 0).then_some(status.disk_total_bytes),
            "disk_free_bytes": (status.disk_total_bytes > 0).then_some(status.disk_free_bytes),
            "complaints": complaints(status),
        }),
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn group_row(group: &Group<'_>) -> [String; 5] {
    let seen = group.seen;
    let followers: Vec<String> = seen
        .followers
        .iter()
        .map(|follower| {
            let kind = if seen.learners.contains(&follower.node) { " (no vote)" } else { "" };
            format!("{}: {}{kind}", follower.node, output::number(seen.last.saturating_sub(follower.matched)))
        })
        .collect();
    [
        if seen.group == 0 { "meta".to_owned() } else { seen.group.to_string() },
        group.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
        seen.term.to_string(),
        output::number(seen.committed),
        if followers.is_empty() { "-".to_owned() } else { followers.join(", ") },
    ]
}

fn group_fields(group: &Group<'_>) -> Value {
    let seen = group.seen;
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
    let followers = seen.followers.iter().map(|follower| {
        json!({
            "node": follower.node.0,
            "matched": follower.matched,
            "behind": seen.last.saturating_sub(follower.matched),
            "heard_ms": follower.heard.map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)),
        })
    });
    json!({
        "group": seen.group,
        "leader": group.leader.map(|leader| leader.0),
        "term": seen.term,
        "voters": ids(&seen.voters),
        "learners": ids(&seen.learners),
        "first": seen.first,
        "last": seen.last,
        "committed": seen.committed,
        "applied": seen.applied,
        "entries_per_second": seen.load as f64 / 1_000.0,
        "durable": seen.durable,
        "followers": followers.collect::<Vec<_>>(),
    })
}

/// Columns as wide as what stands in them.
fn table<const N: usize>(out: &mut Output, rows: impl Iterator<Item = [String; N]>) -> Result<()> {
    let rows: Vec<[String; N]> = rows.collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.line(cells.join("  ").trim_end())?;
    }
    Ok(())
}
