//! Loss of quorum: what can be saved of groups of which too few replicas are left, decided purely; and
//! why what is done then is as safe as it can be.
//!
//! # When
//!
//! A group commits, and elects, with a majority of its voters. If a majority is lost *for ever*, nothing
//! that Raft provides brings the group back: whoever is left cannot know what the others have acknowledged.
//! An administrator who accepts that it may be lost names the members that will never come back, and the
//! best of those that are left goes on alone. That gives up the promise that an acknowledged write stays,
//! for what only the lost members had, and for nothing else.
//!
//! # Who goes on
//!
//! All members must be accounted for: each of them either answers, or is named as lost; otherwise one
//! that is only switched off might have had more. Of those that have a replica of a group, it is the one
//! with the greatest last entry, by term and then by position. As a vote would be granted by that order,
//! this one has every entry that any other survivor knows to be committed (Raft's leader completeness and
//! log matching say so; they need no quorum among the survivors). Entries that it has beyond what is known
//! to be committed are kept: some may have been acknowledged.
//!
//! # What is done
//!
//! On the running survivor, so that its other groups go on serving (carried out in `node::recover`):
//!
//! ```text
//! the group's Raft is ended on the survivor
//! vote := term T, for itself, not granted      T = the greatest term that any survivor knows + 2³²
//! entry := membership {survivor}, of term T    appended; no quorum was asked
//! Raft is started: the only voter elects itself in term T + 1, and commits all that it has
//! ```
//!
//! A crash between any two of them leaves a survivor that has no quorum still, for which the same is done
//! again. Before partitions are recovered, the lost members are moved to the record's list of removed ids
//! (for which the meta group itself is recovered first, if it must be), and every survivor has written down that
//! it does not hear them any more. From there on the ordinary reconciliation gives the group as many replicas
//! as are wanted.
//!
//! All survivors take part in one recovery at a time. So two operators at once cannot choose two survivors for
//! one group: the second is told of the first.
//!
//! # Why an old member cannot bring its history back
//!
//! - Its votes are of terms below T: 2³² elections lie between, more than a century of them at one a second.
//!   So its log is never as new as the survivor's, and nobody who follows the survivor votes for it.
//! - From before the first entry of the new history on no survivor answers it, not even by a refusal that would
//!   tell it of T: otherwise it would have others elect it in a later term, and the survivor would follow *it*.
//! - Its id is among those removed: its Raft requests are refused, none are sent to it, and neither its
//!   acknowledgements nor its votes count with *another* survivor, whose log still names it as a voter. See
//!   the module `fence`.
//! - It is told so, and serves nobody from then on, also after a restart, though several lost members that came
//!   back together would have a majority among themselves.
//! - Another survivor's replica of the group is wiped when it is taken into it again, by a membership that
//!   is newer than anything in its log; see `node::hosting`. (Of group 0, which stays open always, it is
//!   overwritten from where it differs, as any follower's is.)
//!
//! # What may be lost, beside writes
//!
//! Positions are counted on from the survivor's last entry, so versions of keys and fencing tokens that
//! were given out by lost entries may be given out again. Watchers are told that something is missing, and near caches
//! forget what they have: see [`crate::watch`]. Parts of transactions over several partitions may
//! be lost while others are not. Sessions that only lost entries knew are unknown.
//!
//! # Not here
//!
//! Members that are named as lost, and live behind a cut with a majority among themselves, serve their clients
//! until they hear of the others: nobody can tell them. What they acknowledge is lost. So is what one of two
//! recoveries acknowledged if both sides of a cut were made to go on, each told that the other is lost: when they
//! hear of each other, one goes on and the other stops.
//!
//! A group of which no survivor has a replica is gone; nothing is made up in its place.
//!
//! The field's accounts of the same: CockroachDB's "loss of quorum recovery", TiKV's "unsafe recovery".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::codec::{Malformed, Put, Take};
use crate::meta::Record;
use crate::ring::META_GROUP;
use crate::status::{
    GroupStatus, MembershipId, NodeStatus, OUT_OF_TOUCH, Role, put_duration, put_ids, take_duration, take_ids,
};
use crate::transport::NodeId;
use crate::types::LeaderId;

/// How far beyond all known terms the survivor goes on; see the [module](self).
pub(crate) const TERM_LEAP: u64 = 1 << 32;

/// How many recoveries lie before what a leader appends.
pub(crate) fn history_of(leader: Option<&LeaderId>) -> u64 {
    leader.map_or(0, |leader| leader.term / TERM_LEAP)
}

/// What is, or would be, done; see the [module](self).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Members that are given up for ever.
    pub lost: Vec<NodeId>,
    /// Whether it was done.
    pub done: bool,
    /// Groups that have lost their quorum.
    pub groups: Vec<GroupRecovery>,
}

/// One group that has lost its quorum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRecovery {
    /// Which; 0 is the meta group.
    pub group: u32,
    /// Who goes on with it; `None`: nobody has anything of it, and it is gone.
    pub survivor: Option<NodeId>,
    /// Its members that are lost.
    pub lost: Vec<NodeId>,
    /// Other survivors, which have nothing that this one lacks and is known to be committed.
    pub others: Vec<NodeId>,
    /// The survivor's last entry: what was acknowledged after it is lost.
    pub last: MembershipId,
    /// Position up to which the survivor knows that entries are committed; those after it are kept, too.
    pub committed: u64,
    /// Position up to which it has applied them.
    pub applied: u64,
    /// The greatest term that any survivor knows.
    pub term: u64,
    /// Whether the survivor still led: then nothing was acknowledged after its last entry, unless the
    /// others had elected another leader before they were lost.
    pub led: bool,
    /// How long ago the survivor was known to have all that its leader had; `None`: not since it was
    /// started.
    pub level: Option<Duration>,
}

impl Recovery {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        put_ids(bytes, &self.lost);
        bytes.put_u8(u8::from(self.done));
        bytes.put_u32(self.groups.len() as u32);
        for group in &self.groups {
            bytes.put_u32(group.group);
            bytes.put_u64(group.survivor.map_or(0, |survivor| survivor.0));
            put_ids(bytes, &group.lost);
            put_ids(bytes, &group.others);
            group.last.put(bytes);
            for number in [group.committed, group.applied, group.term] {
                bytes.put_u64(number);
            }
            bytes.put_u8(u8::from(group.led));
            put_duration(bytes, group.level);
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<Recovery, Malformed> {
        let (lost, done) = (take_ids(take)?, take.flag()?);
        let group = |take: &mut Take| {
            Ok(GroupRecovery {
                group: take.u32()?,
                survivor: Some(NodeId(take.u64()?)).filter(|survivor| survivor.0 != 0),
                lost: take_ids(take)?,
                others: take_ids(take)?,
                last: MembershipId::take(take)?,
                committed: take.u64()?,
                applied: take.u64()?,
                term: take.u64()?,
                led: take.flag()?,
                level: take_duration(take)?,
            })
        };
        let groups = (0..take.count(77)?).map(|_| group(take)).collect::<Result<_, Malformed>>()?;
        Ok(Recovery { lost, done, groups })
    }
}

impl fmt::Display for GroupRecovery {
    /// In words: what is known, and what could be lost.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            META_GROUP => f.write_str("the meta group: ")?,
            partition => write!(f, "partition {partition}: ")?,
        }
        let list = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
        let Some(survivor) = self.survivor else {
            return write!(
                f,
                "no survivor has anything of it, everything in it is lost (it was on {})",
                list(&self.lost)
            );
        };
        write!(
            f,
            "node {survivor} goes on with {} entries (term {}), of which {} are known to be committed; lost is what \
             {} acknowledged after these",
            self.last.position,
            self.last.term,
            self.committed.min(self.last.position),
            list(&self.lost),
        )?;
        match (self.led, self.level) {
            (true, _) => write!(f, " (node {survivor} led: nothing, unless they had elected another leader)"),
            (false, Some(level)) => write!(f, " (node {survivor} was level with its leader {level:.1?} ago)"),
            (false, None) => write!(f, " (how much is not known: node {survivor} has heard of no leader)"),
        }
    }
}

/// By which the logs of a group are compared.
fn newest(status: &GroupStatus) -> (u64, u64, u64) {
    (status.newest.term, status.newest.leader, status.newest.position)
}

/// Whether each of the majorities that the group asks for can be had of these.
fn has_quorum(configs: &[Vec<NodeId>], alive: &BTreeSet<NodeId>) -> bool {
    configs.iter().all(|voters| {
        let votes = voters.iter().filter(|voter| alive.contains(voter)).count();
        votes * 2 > voters.len()
    })
}

/// What can be saved if these members are lost for ever. If none are named, those that do not answer: so
/// that somebody can look before he decides.
///
/// # Errors
/// Why nothing may be done, in words.
pub(crate) fn plan(
    record: &Record,
    answers: &BTreeMap<NodeId, NodeStatus>,
    named: &BTreeSet<NodeId>,
) -> Result<Recovery, String> {
    if record.forming {
        return Err("the cluster is still being made".to_owned());
    }
    let list = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
    if let Some(stranger) =
        named.iter().find(|node| !record.members.contains_key(node) && !record.removed.contains(node))
    {
        return Err(format!("node {stranger} is no member of the cluster"));
    }
    // One that was given up already, and has come back, does not keep what was begun from being gone on with.
    let is_alive = |node: &&NodeId| answers.contains_key(node) && !record.removed.contains(node);
    let alive: Vec<NodeId> = named.iter().filter(is_alive).copied().collect();
    if !alive.is_empty() {
        return Err(format!(
            "node {} answers: it is not lost. What it has is better than what others make of it; if it must go, stop \
             it for ever first",
            list(&alive)
        ));
    }
    let silent: BTreeSet<NodeId> =
        record.members.keys().filter(|node| !answers.contains_key(node)).copied().collect();
    let lost: BTreeSet<NodeId> = if named.is_empty() { silent.clone() } else { named.clone() };
    let mut groups = Vec::new();
    // Groups of which nobody who answers has anything yet, though somebody is to have it.
    let mut unseen = Vec::new();
    for group in META_GROUP..=record.partitions() {
        let holders: Vec<(NodeId, &GroupStatus)> = answers
            .iter()
            .filter(|(node, _)| !record.removed.contains(node))
            .filter_map(|(node, status)| {
                let seen = status.groups.iter().find(|seen| seen.group == group)?;
                // A replica that has nothing yet has nothing to say.
                (seen.newest.position > 0).then_some((*node, seen))
            })
            .collect();
        // Who is down has nothing that is missed as long as the others have their quorum: a membership that they do not
        // know would have needed one of them.
        let votes = |(_, seen): &&(NodeId, &GroupStatus)| seen.role != Role::Down && seen.failure.is_none();
        let mut voting: BTreeSet<NodeId> = holders.iter().filter(votes).map(|(node, _)| *node).collect();
        if let Some((_, best)) = holders.iter().filter(votes).max_by_key(|(_, seen)| newest(seen)) {
            // Who would not vote, for it lacks something, acknowledges to the leader that there is.
            let is_heard = |node: &NodeId| {
                let heard = best.followers.iter().find(|follower| follower.node == *node);
                let heard = heard.and_then(|follower| follower.heard);
                best.role == Role::Leader && heard.is_some_and(|heard| heard < OUT_OF_TOUCH)
            };
            let running = holders.iter().filter(|(_, seen)| seen.role != Role::Down);
            voting.extend(running.map(|(node, _)| *node).filter(is_heard));
            if has_quorum(&best.configs, &voting) {
                continue;
            }
        }
        if let Some((node, down)) = holders.iter().find(|(_, seen)| seen.role == Role::Down) {
            let why = down.failure.as_deref().unwrap_or("it is being opened");
            return Err(format!(
                "group {group} does not run on node {node}, which may have the most of it: {why}"
            ));
        }
        // Of those that have the same the leader, if it is one of them: it alone knows that nobody else acknowledges
        // anything any more. Who follows it hears from it as ever.
        let by = |(node, seen): &&(NodeId, &GroupStatus)| {
            (newest(seen), seen.role == Role::Leader, seen.committed, std::cmp::Reverse(*node))
        };
        let Some(&(survivor, best)) = holders.iter().max_by_key(by) else {
            // Who was to have it: nobody else is known to.
            let lost = record.replicas_of(group).to_vec();
            if lost.iter().any(|node| answers.contains_key(node)) {
                // It is on its way there, from somebody who does not answer just now, or not any more.
                unseen.push(group);
                continue;
            }
            groups.push(GroupRecovery {
                group,
                survivor: None,
                lost,
                others: Vec::new(),
                last: MembershipId::default(),
                committed: 0,
                applied: 0,
                term: 0,
                led: false,
                level: None,
            });
            continue;
        };
        let has: BTreeSet<NodeId> = holders.iter().map(|(node, _)| *node).collect();
        groups.push(GroupRecovery {
            group,
            survivor: Some(survivor),
            lost: best.voters.iter().filter(|voter| !has.contains(voter)).copied().collect(),
            others: has.iter().filter(|node| **node != survivor).copied().collect(),
            last: best.newest,
            committed: holders.iter().map(|(_, seen)| seen.committed).max().unwrap_or(0),
            applied: best.applied,
            term: holders.iter().map(|(_, seen)| seen.term).max().unwrap_or(0),
            led: best.role == Role::Leader,
            level: best.level,
        });
    }
    let unnamed: Vec<NodeId> = silent.difference(&lost).copied().collect();
    if groups.is_empty() && unseen.is_empty() {
        return Err(
            "every group has its quorum: nothing has to be given up. A member that is gone is taken out by `dogsled \
             member remove`, and nothing is lost"
                .to_owned(),
        );
    }
    if !unnamed.is_empty() {
        return Err(format!(
            "node {} does not answer and is not named as lost: it may have what the others lack. Start it, or name it, \
             too",
            list(&unnamed)
        ));
    }
    if let (true, Some(group)) = (groups.is_empty(), unseen.first()) {
        return Err(format!(
            "nobody who answers has anything of group {group} yet, though somebody is being given it: ask again in a \
             moment"
        ));
    }
    let unaccounted = groups.iter().flat_map(|group| &group.lost).find(|node| {
        !lost.contains(node) && !record.removed.contains(node) && record.members.contains_key(node)
    });
    if let Some(node) = unaccounted {
        return Err(format!(
            "node {node} answers, but has no replica that it should have: look at its log, or name it as lost after it \
             was stopped"
        ));
    }
    Ok(Recovery { lost: lost.into_iter().collect(), done: false, groups })
}

#[cfg(test)]
mod tests;
