//! `status`: how a cluster is, by what each of its members says.

use dogsled::cluster::report::{
    GroupView, complaints, entries_behind, group_views, groups_led, movements, status_document,
};
use dogsled::cluster::{MemberRecord, MemberStatus, NodeId, Record};

use super::{rebalance, tree};
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
    let groups = group_views(&members);
    // A node that belongs to no cluster yet has no record.
    let record = match map.epoch {
        0 => None,
        // The members have told how they are, which is what matters when something is wrong.
        _ => remote.wait(client.record()).ok(),
    };
    // Not by what the members say. A partition that does not answer must not hold up the rest.
    let are_led = map.epoch > 0 && groups.iter().all(|group| group.leader.is_some());
    let quotas = if are_led { remote.wait(client.tree_quotas()).unwrap_or_default() } else { Vec::new() };
    if out.json {
        let mut document = status_document(&map, &members, record.as_ref());
        let fields = quotas.iter().map(|quota| tree::quota_fields(&quota.whole, quota.fullest()));
        document["quotas"] = fields.collect();
        return out.document(&document);
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
    if !quotas.is_empty() {
        out.line("")?;
        for quota in &quotas {
            out.line(format_args!("quota of {}", tree::quota_line(&quota.whole, quota.fullest())))?;
        }
    }
    let Some(record) = record else { return Ok(()) };
    out.line("")?;
    let header = ["node", "is", "weight", "zone", "holds", "is to lead"].map(str::to_owned);
    table(out, std::iter::once(header).chain(record.members.iter().map(|one| ring_row(&record, one))))?;
    out.line("")?;
    for line in rebalance::lines(&record, &movements(&record, &members)) {
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

fn member_row(member: &MemberStatus, groups: &[GroupView<'_>]) -> [String; 9] {
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
                groups_led(member.node, groups).to_string(),
                output::number(entries_behind(status, groups)),
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

fn group_row(group: &GroupView<'_>) -> [String; 5] {
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
