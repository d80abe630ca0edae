//! How a cluster is, put together from what its members say, as one document: `dogsled status --json`, and
//! `/status` of a [node's HTTP server](super::http).
//!
//! Members disagree, because some are behind and some cut off. What is told of a group is what its leader says;
//! of two that believe to lead, the one of the later term does.

use serde_json::{Value, json};

use super::{ClusterMap, GroupStatus, MemberState, MemberStatus, NodeId, NodeStatus, Record, Role};

/// A group as whoever leads it sees it; or, if nobody does, as somebody does.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// What was seen of it.
    pub seen: &'a GroupStatus,
}

/// A partition that is not where it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Its group.
    pub group: u32,
    /// Who is to have it, and how much of it he has, in a thousand; `None`: it has not begun.
    pub to: Vec<(NodeId, Option<u64>)>,
    /// Who has it and is not to.
    pub from: Vec<NodeId>,
}

fn told(members: &[MemberStatus]) -> impl Iterator<Item = &NodeStatus> + Clone {
    members.iter().filter_map(|member| member.status.as_ref().ok())
}

/// Every group of which a member has told.
pub fn group_views(members: &[MemberStatus]) -> Vec<GroupView<'_>> {
    let told = told(members);
    let mut numbers: Vec<u32> =
        told.clone().flat_map(|status| status.groups.iter().map(|group| group.group)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let group = |number: u32| {
        let views = told.clone().filter_map(|status| {
            let seen = status.groups.iter().find(|group| group.group == number)?;
            Some((status.node, seen))
        });
        // One that has heard from no majority lately leads nobody.
        let leads = |node: NodeId, seen: &GroupStatus| seen.role == Role::Leader && seen.is_in_touch(node);
        let (node, seen) = views.max_by_key(|(node, seen)| {
            (leads(*node, seen), seen.role == Role::Leader, seen.term, seen.last)
        })?;
        Some(GroupView { leader: leads(node, seen).then_some(node), seen })
    };
    numbers.into_iter().filter_map(group).collect()
}

/// How many entries a node has not applied, of all groups that it has a replica of.
pub fn entries_behind(status: &NodeStatus, groups: &[GroupView<'_>]) -> u64 {
    let own = |number: u32| status.groups.iter().find(|group| group.group == number);
    let lag = |group: &GroupView<'_>| match own(group.seen.group) {
        Some(own) => group.seen.committed.saturating_sub(own.applied),
        None => 0,
    };
    groups.iter().map(lag).sum()
}

/// How many groups a node leads.
pub fn groups_led(node: NodeId, groups: &[GroupView<'_>]) -> usize {
    groups.iter().filter(|group| group.leader == Some(node)).count()
}

/// What is wrong with a node; nothing if it is well.
pub fn complaints(status: &NodeStatus) -> Vec<String> {
    let mut complaints: Vec<String> = status.failure.iter().cloned().collect();
    if status.disk_is_low {
        let mib = |bytes: u64| bytes >> 20;
        complaints.push(format!(
            "low on disk space: {} MiB are free, less than {}; it refuses what stores something",
            mib(status.disk_free_bytes),
            mib(status.disk_low_mark_bytes)
        ));
    }
    for group in &status.groups {
        match (&group.failure, group.role) {
            (Some(failure), _) => complaints.push(format!("group {}: {failure}", group.group)),
            (None, Role::Down) => complaints.push(format!("group {} is being opened", group.group)),
            // What is being filled is no loss to anybody yet.
            (None, _) if !group.voters.contains(&status.node) => {}
            (None, _) if group.leader.is_none() => {
                complaints.push(format!("group {}: no leader is known", group.group));
            }
            (None, _) if !group.is_in_touch(status.node) => {
                complaints.push(format!("group {} is behind its leader, or cut off", group.group));
            }
            (None, _) => {}
        }
    }
    complaints
}

/// What is still to be moved, as the leaders of the groups see it.
pub fn movements(record: &Record, members: &[MemberStatus]) -> Vec<Movement> {
    let mut movements = Vec::new();
    for group in 1..=record.partitions() {
        let wanted = record.replicas_of(group);
        let seen = told(members).flat_map(|status| &status.groups).filter(|seen| seen.group == group);
        let Some(seen) = seen.max_by_key(|seen| (seen.role == Role::Leader, seen.term)) else { continue };
        let to = wanted.iter().filter(|node| !seen.voters.contains(node)).map(|node| {
            let follower = seen.followers.iter().find(|follower| follower.node == *node);
            let matched = follower.map(|follower| follower.matched.min(seen.last));
            (*node, matched.map(|matched| (matched * 1_000).checked_div(seen.last).unwrap_or(1_000)))
        });
        let has = seen.voters.iter().chain(&seen.learners);
        let from = has.filter(|node| !wanted.contains(node)).copied();
        let found = Movement { group, to: to.collect(), from: from.collect() };
        if !found.to.is_empty() || !found.from.is_empty() {
            movements.push(found);
        }
    }
    movements
}

/// How movement is done and how far it is.
pub fn movement_document(record: &Record, movements: &[Movement]) -> Value {
    let moves = movements.iter().map(|found| {
        let to = found
            .to
            .iter()
            .map(|(node, share)| json!({ "node": node.0, "has": share.map(|share| share as f64 / 1_000.0) }));
        json!({ "partition": found.group, "to": to.collect::<Vec<_>>(), "from": ids(&found.from) })
    });
    let pending = |state| matches!(state, MemberState::Joining | MemberState::Leaving);
    let moves: Vec<Value> = moves.collect();
    let settled = moves.is_empty() && !record.members.values().any(|member| pending(member.state));
    json!({
        "epoch": record.epoch,
        "replicas": record.replicas,
        "paused": record.settings.paused,
        "moves_at_once": record.settings.moves,
        "bytes_per_second": record.settings.bytes_per_second,
        "replace_after_seconds": record.settings.replace_after.as_secs(),
        "settled": settled,
        "moves": moves,
    })
}

/// How the cluster is; `record` if it is known, with which come the parts `ring` and `movement`.
pub fn status_document(map: &ClusterMap, members: &[MemberStatus], record: Option<&Record>) -> Value {
    let groups = group_views(members);
    json!({
        "cluster": (map.cluster != 0).then(|| format!("{:032x}", map.cluster)),
        "partitions": map.partitions,
        "members": members.iter().map(|member| member_document(member, &groups)).collect::<Vec<_>>(),
        "groups": groups.iter().map(group_document).collect::<Vec<_>>(),
        "ring": record.map(ring_document),
        "movement": record.map(|record| movement_document(record, &movements(record, members))),
    })
}

fn ids(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn ring_document(record: &Record) -> Value {
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
    let partitions: Vec<_> = (1..=record.partitions()).map(|group| ids(record.replicas_of(group))).collect();
    json!({
        "members": members.collect::<Vec<_>>(),
        "removed": record.removed.iter().map(|node| node.0).collect::<Vec<_>>(),
        "meta_voters": ids(&record.meta_voters),
        "replicas_of_partitions": partitions,
    })
}

fn member_document(member: &MemberStatus, groups: &[GroupView<'_>]) -> Value {
    let mut fields = json!({ "node": member.node.0, "addresses": member.addresses });
    let more = match &member.status {
        Err(error) => json!({ "answers": false, "error": error.to_string() }),
        Ok(status) => json!({
            "answers": true,
            "leads": groups_led(member.node, groups),
            "behind": entries_behind(status, groups),
            "wal_live_bytes": status.wal_live_bytes,
            "wal_file_bytes": status.wal_file_bytes,
            "wal_syncs": status.wal_syncs,
            "tree_bytes": status.tree_bytes,
            "disk_total_bytes": (status.disk_total_bytes > 0).then_some(status.disk_total_bytes),
            "disk_free_bytes": (status.disk_total_bytes > 0).then_some(status.disk_free_bytes),
            "disk_low_mark_bytes": status.disk_low_mark_bytes,
            "disk_is_low": status.disk_is_low,
            "redis": (!status.redis.is_empty()).then_some(&status.redis),
            "complaints": complaints(status),
        }),
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn group_document(group: &GroupView<'_>) -> Value {
    let seen = group.seen;
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
