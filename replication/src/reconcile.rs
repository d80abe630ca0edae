//! What is to be done next so that what is becomes what the [`Record`] wants: pure, and decided anew
//! each time.
//!
//! # Idea
//!
//! There is no plan to be stored, resumed or abandoned. Whoever leads the meta group looks at all
//! groups ([`View`]), asks [`next_steps`], does what it is told, and looks again. A step that was not
//! done, or half, or whose outcome nobody heard of, shows in the next look; so a leader that dies
//! leaves nothing behind that another would have to know. A change of a group's members names the
//! membership that it was decided upon, and the group refuses it if that is not its newest: a step that
//! comes late, or twice, does nothing.
//!
//! # The way of a partition
//!
//! ```text
//! voters A B C, wanted A B D
//!   learners + D             D gets a snapshot and the log; A B C decide as before
//!   (D and the others have what the leader has)
//!   lead A                   if C leads: leadership goes before the replica does
//!   voters = A B D           one joint change: a majority of the old and of the new
//!   (C drops its data when the committed membership is without it: see crate::node::hosting)
//! ```
//!
//! If none of those that are to have it votes yet (one replica that moves), the new ones are made
//! voters beside the old first, then leadership moves, then the old ones go.
//!
//! # Invariants
//!
//! - Nobody is given a vote before he has what the leader has. Nobody stops voting unless as many of those
//!   who vote afterwards have everything, and answer, as do before; somebody who is down keeps his vote,
//!   but nobody's goes on account of it. So there are never fewer replicas that are good than there were,
//!   or than are wanted.
//! - At most `moves` partitions are being copied at a time; while movement is paused, none begins or
//!   goes on, but a joint membership is always resolved.
//! - Group 0 is never paused: who has left must not vote in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::client::GroupChange;
use crate::meta::{Change, MemberState, Record};
use crate::ring::META_GROUP;
use crate::status::{MembershipId, NodeStatus, Role};
use crate::transport::NodeId;

/// A follower with so few entries less than its leader has nearly everything: the step that makes it
/// count waits for the rest.
const NEAR: u64 = 1_000;

/// A group as its leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Observed {
    pub(crate) leader: NodeId,
    pub(crate) membership: MembershipId,
    /// The newest membership is committed.
    pub(crate) settled: bool,
    /// It is a joint one: half a change.
    pub(crate) joint: bool,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
    /// Those of them that have nearly everything and answer, the leader among them.
    pub(crate) level: BTreeSet<NodeId>,
}

impl Observed {
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// The cluster as it was found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct View {
    /// Groups whose leader answers.
    pub(crate) groups: BTreeMap<u32, Observed>,
    /// Members that answer, and the groups of which they have a replica.
    pub(crate) hosts: BTreeMap<NodeId, BTreeSet<u32>>,
    /// How long members have not been heard of.
    pub(crate) silent: BTreeMap<NodeId, Duration>,
    /// How busy groups are whose leader answers.
    pub(crate) loads: BTreeMap<u32, u64>,
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Give a group its first members.
    Begin { group: u32, members: Vec<NodeId> },
    /// Change a group's members.
    Change { group: u32, based_on: MembershipId, change: GroupChange },
    /// Move leadership.
    Lead { group: u32, to: NodeId },
    /// Change the record.
    Record(Change),
}

impl View {
    /// From what members say of themselves. Of two that believe to lead, the one of the later term does.
    pub(crate) fn of(statuses: &[NodeStatus], recently: Duration) -> View {
        let mut view = View::default();
        // Of one term there may be two, of which the second was elected later.
        let mut terms: BTreeMap<u32, (u64, NodeId)> = BTreeMap::new();
        for status in statuses {
            let hosted = status.groups.iter().map(|group| group.group).collect();
            view.hosts.insert(status.node, hosted);
            for group in &status.groups {
                let term = (group.term, status.node);
                if group.role != Role::Leader || terms.get(&group.group).is_some_and(|at| *at > term) {
                    continue;
                }
                terms.insert(group.group, term);
                view.loads.insert(group.group, group.load);
                let mut level = BTreeSet::from([status.node]);
                for follower in &group.followers {
                    let heard = follower.heard.is_some_and(|heard| heard <= recently);
                    if heard && follower.matched + NEAR >= group.last && follower.matched > 0 {
                        level.insert(follower.node);
                    }
                }
                let observed = Observed {
                    leader: status.node,
                    membership: group.membership,
                    settled: group.settled,
                    joint: group.joint,
                    voters: group.voters.iter().copied().collect(),
                    learners: group.learners.iter().copied().collect(),
                    level,
                };
                view.groups.insert(group.group, observed);
            }
        }
        view
    }
}

/// What is to be done now. Nothing: all is as it is wanted, or something has to happen first.
pub(crate) fn next_steps(record: &Record, view: &View) -> Vec<Step> {
    if record.forming {
        return form(record, view);
    }
    let mut steps = Vec::new();
    meta_steps(record, view, &mut steps);
    member_steps(record, view, &mut steps);
    // One that waits for a member that does not answer copies nothing, and keeps no other from it.
    let copies = |group: &u32| {
        let is_there = |node: &NodeId| view.hosts.contains_key(node);
        learners_to_be_voters(record, view, *group).any(is_there)
    };
    let mut copying = (1..=record.partitions()).filter(copies).count();
    for group in 1..=record.partitions() {
        let Some(observed) = view.groups.get(&group) else { continue };
        if !observed.settled {
            continue;
        }
        if observed.joint {
            let change = GroupChange::Settle;
            steps.push(Step::Change { group, based_on: observed.membership, change });
            continue;
        }
        if record.settings.paused {
            continue;
        }
        // One that has begun goes on: if each of so many waited for another replica, none would end.
        let has_begun = is_copying(record, view, group);
        let may_copy = has_begun || copying < record.settings.moves as usize;
        if let Some(step) = partition_step(record, view, group, observed, may_copy) {
            let begins = matches!(step, Step::Change { change: GroupChange::Learners { .. }, .. });
            copying += usize::from(begins && !has_begun);
            steps.push(step);
        }
    }
    steps
}

/// Whether all is as it is wanted: the groups are seen, have their replicas and no others.
pub(crate) fn is_reached(record: &Record, view: &View) -> bool {
    let group_is = |group: u32| {
        let Some(observed) = view.groups.get(&group) else { return false };
        let wanted: BTreeSet<NodeId> = record.replicas_of(group).iter().copied().collect();
        let followers = match group {
            META_GROUP => record.members.keys().copied().filter(|node| !wanted.contains(node)).collect(),
            _ => BTreeSet::new(),
        };
        observed.settled && !observed.joint && observed.voters == wanted && observed.learners == followers
    };
    let pending = |state| matches!(state, MemberState::Joining | MemberState::Leaving);
    !record.forming
        && !record.members.values().any(|member| pending(member.state))
        && (0..=record.partitions()).all(group_is)
}

/// Whether some replica that is wanted does not vote yet.
fn is_copying(record: &Record, view: &View, group: u32) -> bool {
    learners_to_be_voters(record, view, group).next().is_some()
}

/// The replicas that are wanted and do not vote yet.
fn learners_to_be_voters<'a>(
    record: &'a Record,
    view: &'a View,
    group: u32,
) -> impl Iterator<Item = &'a NodeId> {
    let learners = view.groups.get(&group).map(|observed| &observed.learners);
    let is_learner = move |node: &&NodeId| learners.is_some_and(|learners| learners.contains(*node));
    record.replicas_of(group).iter().filter(is_learner)
}

/// Groups begin with the replicas that they were first to have, whoever gives them: two beginnings
/// with different members would be two groups. So nothing else changes before all have begun.
fn form(record: &Record, view: &View) -> Vec<Step> {
    let born = |group: u32| view.groups.contains_key(&group);
    let host = |group: u32| {
        record.replicas_of(group).iter().all(|node| {
            // One that does not answer gets its replica later.
            view.hosts.get(node).is_none_or(|hosted| hosted.contains(&group))
        })
    };
    let missing = (1..=record.partitions()).filter(|group| !born(*group) || !host(*group));
    let steps: Vec<Step> =
        missing.map(|group| Step::Begin { group, members: record.replicas_of(group).to_vec() }).collect();
    let all_answer = record.members.keys().all(|node| view.hosts.contains_key(node));
    if steps.is_empty() && all_answer && view.groups.contains_key(&META_GROUP) {
        return vec![Step::Record(Change::Formed)];
    }
    steps
}

fn meta_steps(record: &Record, view: &View, steps: &mut Vec<Step>) {
    let Some(observed) = view.groups.get(&META_GROUP).filter(|observed| observed.settled) else { return };
    let (group, based_on) = (META_GROUP, observed.membership);
    let mut change = |change| steps.push(Step::Change { group, based_on, change });
    if observed.joint {
        return change(GroupChange::Settle);
    }
    let missing: Vec<_> = record
        .members
        .iter()
        .filter(|(node, _)| !observed.has(**node) && view.hosts.contains_key(node))
        .map(|(node, member)| (*node, member.addresses.clone()))
        .collect();
    if !missing.is_empty() {
        return change(GroupChange::Learners { nodes: missing });
    }
    let wanted: BTreeSet<NodeId> = record.meta_voters.iter().copied().collect();
    if observed.voters != wanted {
        if !may_vote(observed, &wanted) {
            return;
        }
        if !wanted.contains(&observed.leader) {
            match heir(observed, &record.meta_voters) {
                Some(heir) => steps.push(Step::Lead { group, to: heir }),
                None => change(GroupChange::Voters {
                    voters: observed.voters.union(&wanted).copied().collect(),
                    keep: true,
                }),
            }
            return;
        }
        return change(GroupChange::Voters { voters: wanted.into_iter().collect(), keep: true });
    }
    let strangers: Vec<NodeId> =
        observed.learners.iter().copied().filter(|node| !record.members.contains_key(node)).collect();
    if !strangers.is_empty() {
        change(GroupChange::Remove { nodes: strangers });
    }
}

fn member_steps(record: &Record, view: &View, steps: &mut Vec<Step>) {
    let meta = view.groups.get(&META_GROUP);
    for (&node, member) in &record.members {
        let follows = meta.is_some_and(|meta| meta.level.contains(&node));
        let change = match member.state {
            MemberState::Joining if follows => Change::Follows { node },
            MemberState::Away if follows => Change::Heard { node },
            MemberState::Active
                if view.silent.get(&node).is_some_and(|silent| *silent >= record.settings.replace_after) =>
            {
                Change::Silent { node }
            }
            MemberState::Leaving if holds_nothing(record, view, node) => Change::Gone { node },
            _ => continue,
        };
        // There may be nothing to change: too few would be left.
        if matches!(record.changed(&change), Ok(Some(_))) {
            steps.push(Step::Record(change));
            return;
        }
    }
}

/// Whether every group is seen, and has neither voter nor learner there; group 0 no voter.
fn holds_nothing(record: &Record, view: &View, node: NodeId) -> bool {
    (0..=record.partitions()).all(|group| {
        let settled = view.groups.get(&group).filter(|observed| observed.settled && !observed.joint);
        settled.is_some_and(|observed| match group {
            META_GROUP => !observed.voters.contains(&node),
            _ => !observed.has(node),
        })
    })
}

/// Whether the votes may go from those who have them to these; see the [module](self).
fn may_vote(observed: &Observed, these: &BTreeSet<NodeId>) -> bool {
    let good = |voters: &BTreeSet<NodeId>| voters.intersection(&observed.level).count();
    let all_new_are_good = these.difference(&observed.voters).all(|node| observed.level.contains(node));
    let enough = good(these) >= good(&observed.voters).min(these.len());
    all_new_are_good && enough && good(these) * 2 > these.len()
}

/// Who can take over leadership of those that are to have the group.
fn heir(observed: &Observed, wanted: &[NodeId]) -> Option<NodeId> {
    let fit = |node: &&NodeId| observed.voters.contains(node) && observed.level.contains(node);
    wanted.iter().find(fit).copied()
}

fn partition_step(
    record: &Record,
    view: &View,
    group: u32,
    observed: &Observed,
    may_copy: bool,
) -> Option<Step> {
    let based_on = observed.membership;
    let change = |change| Some(Step::Change { group, based_on, change });
    let wanted = record.replicas_of(group);
    let target: BTreeSet<NodeId> = wanted.iter().copied().collect();
    let answers = |node: &NodeId| view.hosts.contains_key(node);
    // A learner without a replica: what was begun was dropped as not needed any more.
    let hosted = |node: &NodeId| view.hosts.get(node).is_some_and(|hosted| hosted.contains(&group));
    let unfounded = |node: &&NodeId| observed.learners.contains(node) && answers(node) && !hosted(node);
    let missing: Vec<NodeId> = wanted
        .iter()
        .filter(|node| (!observed.has(**node) && answers(node)) || unfounded(node))
        .copied()
        .collect();
    if !missing.is_empty() {
        let address = |node: &NodeId| record.members.get(node).map(|member| member.addresses.clone());
        let nodes: Vec<_> = missing.iter().filter_map(|node| Some((*node, address(node)?))).collect();
        return if may_copy { change(GroupChange::Learners { nodes }) } else { None };
    }
    if observed.voters == target {
        let strangers: Vec<NodeId> = observed.learners.difference(&target).copied().collect();
        return if strangers.is_empty() { None } else { change(GroupChange::Remove { nodes: strangers }) };
    }
    if !may_vote(observed, &target) {
        return None;
    }
    if target.contains(&observed.leader) {
        return change(GroupChange::Voters { voters: wanted.to_vec(), keep: false });
    }
    match heir(observed, wanted) {
        Some(heir) => Some(Step::Lead { group, to: heir }),
        None => change(GroupChange::Voters {
            voters: observed.voters.union(&target).copied().collect(),
            keep: false,
        }),
    }
}

#[cfg(test)]
mod tests;
