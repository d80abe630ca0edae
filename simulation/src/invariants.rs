//! [`Watchdog`]: what must be so at every moment, whatever has failed.
//!
//! - **Log matching.** Entries with the same position, term and leader are the same entry, with the
//!   same entry before them, on whatever node.
//! - **Committed is for ever.** What one node has applied at a position, every node applies there, in
//!   this life and all later ones.
//! - **Leader completeness.** What some node had applied while it knew of a term, every leader of a
//!   later term has in its log, or has let go because its checkpoint has it.
//! - **State machines agree.** Replicas that have applied the same number of entries hold the same,
//!   sessions and the log's time included.
//! - **One leader.** No two nodes lead one group in one term under one leader id. (openraft lets the
//!   node with the greater number win a term that another has won already; the two are told apart by
//!   the node in the leader id, and the older one commits nothing any more.)
//! - **Nothing goes back.** As long as a node lives, what it has applied only grows; after a restart it
//!   is not behind what its checkpoint had made durable. Unless the group has moved away meanwhile.
//! - **No empty voters.** Whoever is newly given a vote has what was committed when he was given it: with
//!   him counts a replica, not the promise of one.
//! - **Nothing outlives its owner**: see [`leases`](crate::leases).

use std::collections::{BTreeMap, BTreeSet};

use dogsled_replication::{EntryIdentity, GroupStatus, Node, NodeId, Role};

use crate::cluster::Cluster;
use crate::leases::Leases;

/// Term and leader of an entry.
type Under = (u64, u64);

#[derive(Default)]
struct GroupRecord {
    /// By position, term, leader: the checksum, and what the entry before was made under.
    entries: BTreeMap<(u64, Under), (u32, Option<Under>)>,
    /// By position: what was applied, who was seen to have first, and the term that it knew of then.
    applied: BTreeMap<u64, (EntryIdentity, NodeId, u64)>,
    /// Terms and leaders whose logs were looked at.
    complete: BTreeSet<(u64, NodeId)>,
    /// By the position applied: the state's fingerprint, and whose it was.
    states: BTreeMap<u64, (u64, NodeId)>,
    /// Position of the newest membership whose voters were looked at, and those voters.
    voters: (u64, Vec<NodeId>),
}

#[derive(Default)]
struct NodeRecord {
    starts: u64,
    applied: u64,
    /// What was durable when it was last looked at.
    durable: u64,
    /// Position up to which applied entries were compared.
    compared: u64,
    fingerprinted: u64,
}

/// See the [module](self).
#[derive(Default)]
pub struct Watchdog {
    groups: BTreeMap<u32, GroupRecord>,
    nodes: BTreeMap<(NodeId, u32), NodeRecord>,
    leases: Leases,
}

impl Watchdog {
    /// Looks at every node that runs.
    ///
    /// # Errors
    /// What must not be, in words.
    pub fn look(&mut self, cluster: &Cluster) -> Result<(), String> {
        for machine in cluster.machines.values() {
            // What it holds after its disk has failed is nothing to go by.
            if machine.disk.crashed() {
                continue;
            }
            if let Some(running) = &machine.running {
                self.look_at(cluster, machine.id, machine.starts, &running.node)?;
            }
        }
        self.one_leader(cluster)?;
        self.leases.look(cluster)
    }

    fn look_at(&mut self, cluster: &Cluster, id: NodeId, starts: u64, node: &Node) -> Result<(), String> {
        let groups = node.status().groups;
        // What a node has let go it need not know any more.
        let has = |group: u32| groups.iter().any(|status| status.group == group);
        self.nodes.retain(|(node, group), _| *node != id || has(*group));
        for status in groups {
            let group = status.group;
            let record = self.nodes.entry((id, group)).or_default();
            if status.durable < record.durable && (record.starts == starts || status.last == 0) {
                // It has let go the group, and was given it again, between two looks.
                *record = NodeRecord { starts, ..NodeRecord::default() };
            }
            if record.starts != starts {
                let least = record.durable;
                *record = NodeRecord { starts, durable: least, ..NodeRecord::default() };
                if status.applied < least {
                    return Err(format!(
                        "group {group}: node {id} starts with {} applied, and had {least} durable",
                        status.applied
                    ));
                }
            }
            if status.role != Role::Down && status.applied < record.applied {
                // It was opened again in its last durable state.
                record.compared = record.compared.min(status.applied);
            }
            record.applied = status.applied;
            record.durable = record.durable.max(status.durable);
            let known = self.groups.entry(group).or_default();
            if status.role == Role::Leader
                && status.leader == Some(id)
                && known.complete.insert((status.term, id))
            {
                known.leader_completeness(&status, id, node)?;
            }
            known.compare(&status, id, node, record)?;
            if status.role == Role::Leader && status.leader == Some(id) && status.settled && !status.joint {
                known.no_empty_voters(&status, cluster)?;
            }
            if status.applied > 0 && status.applied != record.fingerprinted {
                record.fingerprinted = status.applied;
                known.fingerprint(&status, id, node)?;
            }
        }
        Ok(())
    }

    fn one_leader(&self, cluster: &Cluster) -> Result<(), String> {
        let mut leaders: BTreeMap<(u32, u64, NodeId), NodeId> = BTreeMap::new();
        for (id, node) in cluster.nodes() {
            for status in node.status().groups {
                if status.role == Role::Leader
                    && let Some(leader) = status.leader
                    && let Some(other) = leaders.insert((status.group, status.term, leader), id)
                {
                    return Err(format!(
                        "group {}: nodes {other} and {id} both lead in term {} as {leader}",
                        status.group, status.term
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What a replica has said, unless it said that it has failed: what it says then is its own affair. Nothing else
/// excuses one that cannot be read.
fn sound<T, E: std::fmt::Display>(
    said: Result<T, E>,
    status: &GroupStatus,
    node: &Node,
) -> Result<Option<T>, String> {
    match said {
        Ok(said) => Ok(Some(said)),
        Err(_) if status.failure.is_some() || node.status().failure.is_some() => Ok(None),
        Err(error) => Err(format!(
            "group {}: node {} has not failed, and cannot be read: {error}",
            status.group,
            node.id()
        )),
    }
}

fn under(entry: &EntryIdentity) -> Under {
    (entry.term, entry.leader.0)
}

impl GroupRecord {
    /// Looks at the log of a leader that is seen for the first time in its term.
    fn leader_completeness(&self, status: &GroupStatus, id: NodeId, node: &Node) -> Result<(), String> {
        let (group, term) = (status.group, status.term);
        let entries = sound(node.entries(group, status.first, status.last), status, node)?;
        let Some(entries) = entries else { return Ok(()) };
        let entries: BTreeMap<u64, EntryIdentity> =
            entries.into_iter().map(|entry| (entry.position, entry)).collect();
        for (position, (applied, by, known_term)) in self.applied.range(status.first..) {
            if *known_term < term && entries.get(position) != Some(applied) {
                return Err(format!(
                    "group {group}: node {id} leads in term {term} with {:?} where node {by} had applied {applied:?} in term {known_term}",
                    entries.get(position)
                ));
            }
        }
        Ok(())
    }

    /// Looks at the voters of a membership that is seen for the first time: what their own logs have.
    fn no_empty_voters(&mut self, status: &GroupStatus, cluster: &Cluster) -> Result<(), String> {
        let position = status.membership.position;
        if position <= self.voters.0 {
            return Ok(());
        }
        let (_, before) = std::mem::replace(&mut self.voters, (position, status.voters.clone()));
        for voter in status.voters.iter().filter(|voter| !before.contains(voter)) {
            let Some(machine) = cluster.machines.get(voter).filter(|machine| !machine.disk.crashed()) else {
                continue;
            };
            // One that does not run is not looked at.
            let Some(running) = &machine.running else { continue };
            let groups = running.node.status().groups;
            let own = groups.iter().find(|own| own.group == status.group);
            let has = own.map_or(0, |own| own.last);
            // What came between the look at what he had and the change itself may be on its way yet.
            if has + 64 < position {
                return Err(format!(
                    "group {}: node {voter} was given a vote at {position}, and has {has} only",
                    status.group
                ));
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        status: &GroupStatus,
        id: NodeId,
        node: &Node,
        record: &mut NodeRecord,
    ) -> Result<(), String> {
        let GroupStatus { group, first, last, term, .. } = *status;
        // From one before, so that every entry is seen with its predecessor.
        let from = record.compared.max(first);
        let Some(entries) = sound(node.entries(group, from, last), status, node)? else { return Ok(()) };
        let mut before: Option<&EntryIdentity> = None;
        for entry in &entries {
            if let Some(before) = before {
                if entry.position != before.position + 1 {
                    return Err(format!(
                        "group {group}: on node {id} entry {} follows {}",
                        entry.position, before.position
                    ));
                }
                let found = (entry.checksum, Some(under(before)));
                let key = (entry.position, under(entry));
                let known = self.entries.entry(key).or_insert(found);
                if *known != found {
                    return Err(format!(
                        "group {group}: log matching: entry {key:?} is {known:?} elsewhere and {found:?} on node {id}"
                    ));
                }
            }
            before = Some(entry);
            if entry.position <= record.applied {
                let (known, first_seen, _) = self.applied.entry(entry.position).or_insert((*entry, id, term));
                if known != entry {
                    return Err(format!(
                        "group {group}: node {first_seen} has applied {known:?}, node {id} {entry:?}"
                    ));
                }
            }
        }
        record.compared = record.applied;
        Ok(())
    }

    fn fingerprint(&mut self, status: &GroupStatus, id: NodeId, node: &Node) -> Result<(), String> {
        let group = status.group;
        // It is being opened, or a snapshot takes its place. That it is there in the end is seen to then.
        let Some(replica) = node.replica(group) else { return Ok(()) };
        let snapshot = replica.snapshot();
        let position = snapshot.applied().position;
        let Some(fingerprint) = sound(snapshot.fingerprint(), status, node)? else { return Ok(()) };
        let (known, first_seen) = self.states.entry(position).or_insert((fingerprint, id));
        if *known != fingerprint {
            return Err(format!(
                "group {group}: with {position} applied, node {id} holds {fingerprint:016x} and node {first_seen} held {known:016x}"
            ));
        }
        Ok(())
    }
}
