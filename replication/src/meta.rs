//! [`Record`]: who belongs to the cluster, and whose each partition is to be. The state of the meta
//! group, group 0, which every member follows.
//!
//! # Where it lies
//!
//! One value in a reserved tree of group 0's replica, replaced as a whole by compare-and-swap, so two
//! who change it at once are told apart by the group's log: the second has to look again. Each change
//! has the next *epoch*. Every node learns of it by applying the entry, and tells its clients.
//!
//! # What it says, and what it does not
//!
//! It says what is *wanted*: the members and how each of them is, and the ordered replicas of every
//! partition (the first leads if it can). What *is* stands in the membership of each partition's own
//! group. The difference between the two is the plan of what is still to be moved; nobody has to write
//! it down, so nobody's crash loses it: see the module `reconcile`.
//!
//! # Members
//!
//! ```text
//!             follows group 0
//!   joining ───────────────────► active ◄──────► draining     an operator
//!                                  ▲  └────────► leaving ───► removed, for ever
//!              heard again         │
//!                away ◄────────────┘ silent for `replace_after`
//! ```
//!
//! Only active members are given replicas. Whoever drains stays a member without any. The id of a
//! member that was removed is never taken in again: others may have counted on what it had. Members that
//! are lost with the quorum of something are removed at once, from whatever state: see
//! [`crate::recovery`].
//!
//! # Trees
//!
//! It says, too, of which trees a prefix of the keys is hashed. The first to choose for a tree has chosen for
//! ever: what was chosen is written down before anything is done about it, and is *in force*, so that clients are
//! told, when every partition goes by it. See [`crate::ring::tree_hash`].
//!
//! # Bytes
//!
//! ```text
//! version u8 (1), epoch u64, replicas u32, forming u8,
//! paused u8, moves u32, bytes per second u64, replace after in ms u64,
//! members u32, each: node u64, state u8, weight u32, zone: length u32, UTF-8; addresses
//! removed u32, each: node u64
//! voters of group 0: u32, each: node u64
//! placement, as in crate::ring
//! trees u32, each: name: length u32, bytes; what is hashed: 3 bytes, as in crate::ring::tree_hash; in force u8
//! ```

mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::IVec;

pub use self::change::Change;
use crate::codec::{Malformed, Put, Take, malformed};
use crate::ring::tree_hash::check_name;
use crate::ring::{META_GROUP, Member, Placement, TreeHash};
use crate::status::{put_ids, take_ids};
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};

/// The reserved tree of group 0.
pub(crate) const TREE: &str = "__dogsled__cluster";
/// The record's key in it.
pub(crate) const KEY: &str = "record";

const VERSION: u8 = 1;

/// Replicas that a partition gets if nobody says.
pub const DEFAULT_REPLICAS: u32 = 3;
/// The most that it can have.
pub const MAX_REPLICAS: u32 = 9;
/// The share of a member that says nothing.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The most that a member can have.
pub const MAX_WEIGHT: u32 = 10_000;
/// Voters of group 0; all other members follow it without a vote.
const META_VOTERS: usize = 5;
/// Trees of which a prefix is hashed: every client is told all of them.
pub const MAX_HASHED_TREES: usize = 1_000;
/// Bytes of a zone's name.
const MAX_ZONE_LENGTH: usize = 64;

/// How a member is; see the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemberState {
    /// It was taken in, and does not follow yet.
    Joining,
    /// It holds its share.
    Active,
    /// It is to hold nothing, and stays.
    Draining,
    /// It was silent for so long that others took over what it held.
    Away,
    /// It is to hold nothing, and goes then.
    Leaving,
}

impl MemberState {
    fn of(byte: u8) -> Result<MemberState, Malformed> {
        use MemberState::*;
        match [Joining, Active, Draining, Away, Leaving].into_iter().find(|state| *state as u8 == byte) {
            Some(state) => Ok(state),
            None => malformed(format!("{byte} is no state of a member")),
        }
    }
}

impl std::fmt::Display for MemberState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MemberState::Joining => "joining",
            MemberState::Active => "active",
            MemberState::Draining => "draining",
            MemberState::Away => "away",
            MemberState::Leaving => "leaving",
        })
    }
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberRecord {
    /// How it is.
    pub state: MemberState,
    /// Its share, in proportion to the others'.
    pub weight: u32,
    /// What fails together: replicas of a partition lie in distinct zones where that is possible. Those
    /// that have none are in one zone together.
    pub zone: String,
    /// Where to reach it.
    pub addresses: Vec<String>,
}

/// How movement is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveSettings {
    /// Whether partitions stay where they are, whatever is wanted.
    pub paused: bool,
    /// Partitions that are copied at a time.
    pub moves: u32,
    /// Bytes of a second that a node sends of copies; 0: as many as the node's own configuration says.
    pub bytes_per_second: u64,
    /// A member that is silent for so long is replaced.
    pub replace_after: Duration,
}

impl Default for MoveSettings {
    fn default() -> MoveSettings {
        MoveSettings { paused: false, moves: 4, bytes_per_second: 0, replace_after: Duration::from_secs(600) }
    }
}

/// What was chosen to be hashed of the keys of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashedTree {
    /// What.
    pub hash: TreeHash,
    /// Every partition goes by it.
    pub in_force: bool,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// How often it was changed.
    pub epoch: u64,
    /// Replicas that each partition is to have, as soon as there are so many members.
    pub replicas: u32,
    /// Not all groups are known to have had their first members yet; until then nothing else changes.
    pub forming: bool,
    /// How movement is done.
    pub settings: MoveSettings,
    /// Who belongs to the cluster.
    pub members: BTreeMap<NodeId, MemberRecord>,
    /// Who did, and never will again.
    pub removed: BTreeSet<NodeId>,
    /// Who is to vote in group 0.
    pub meta_voters: Vec<NodeId>,
    /// Who is to have each partition.
    pub placement: Placement,
    /// Trees of which a prefix of the keys is hashed; of all others the whole key is.
    pub trees: BTreeMap<IVec, HashedTree>,
}

impl Record {
    /// Of a cluster that is being made of these, all of them active.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn new(
        partitions: u32,
        replicas: u32,
        members: BTreeMap<NodeId, MemberRecord>,
    ) -> Result<Record, String> {
        check_replicas(replicas)?;
        for member in members.values() {
            check_member(member.weight, &member.zone)?;
        }
        let placement = place(&members, partitions, replicas, None)?;
        let mut record = Record {
            epoch: 1,
            replicas,
            forming: true,
            settings: MoveSettings::default(),
            members,
            removed: BTreeSet::new(),
            meta_voters: Vec::new(),
            placement,
            trees: BTreeMap::new(),
        };
        record.place_meta();
        Ok(record)
    }

    /// Groups 1 to so many are partitions.
    pub fn partitions(&self) -> u32 {
        self.placement.partitions()
    }

    /// Who is to have a group; nobody, if there is no such group.
    pub fn replicas_of(&self, group: u32) -> &[NodeId] {
        match group {
            META_GROUP => &self.meta_voters,
            _ if group <= self.partitions() => self.placement.replicas(group),
            _ => &[],
        }
    }

    /// What is hashed of the keys of a tree, if every partition goes by it and it is not the whole key.
    pub fn tree_hash(&self, tree: &[u8]) -> Option<TreeHash> {
        self.trees.get(tree).filter(|chosen| chosen.in_force).map(|chosen| chosen.hash)
    }

    /// Who is to lead a group. The meta group belongs to the voter that has the fewest partitions to
    /// lead.
    pub fn preferred_leader(&self, group: u32) -> Option<NodeId> {
        if group != META_GROUP {
            return self.replicas_of(group).first().copied();
        }
        let loads = self.placement.loads();
        let leads = |node: &NodeId| loads.get(node).map_or(0, |(_, leads)| *leads);
        self.meta_voters.iter().copied().min_by_key(|node| (leads(node), *node))
    }

    /// Members that are given replicas.
    fn eligible(&self) -> impl Iterator<Item = (&NodeId, &MemberRecord)> {
        self.members.iter().filter(|(_, member)| member.state == MemberState::Active)
    }

    /// Decides anew whose everything is to be, with as few moves as can be.
    fn place(&mut self) -> Result<(), String> {
        self.placement = place(&self.members, self.partitions(), self.replicas, Some(&self.placement))?;
        self.place_meta();
        Ok(())
    }

    /// Voters of group 0 stay as long as they can, but no zone keeps more of them than its share while another has a member to
    /// take their place: with a majority in one zone, the cluster could not be changed without that zone. An odd number
    /// of them, beyond two: one more would not survive one failure more.
    fn place_meta(&mut self) {
        let eligible: Vec<NodeId> = self.eligible().map(|(node, _)| *node).collect();
        let wanted = match eligible.len().min(META_VOTERS) {
            4 => 3,
            others => others,
        };
        let zone = |node: &NodeId| self.members[node].zone.as_str();
        let mut voters: Vec<NodeId> =
            self.meta_voters.iter().filter(|voter| eligible.contains(voter)).copied().collect();
        voters.truncate(wanted);
        let among = |voters: &[NodeId], of: &str| voters.iter().filter(|voter| zone(voter) == of).count();
        // The one whose zone has the fewest; of those the first.
        let next = |voters: &[NodeId]| {
            let free = eligible.iter().filter(|node| !voters.contains(node));
            free.min_by_key(|node| (among(voters, zone(node)), **node)).copied()
        };
        while voters.len() < wanted {
            // There are at least as many as are wanted.
            voters.extend(next(&voters));
        }
        let most = |voters: &[NodeId]| {
            let largest = voters.iter().max_by_key(|voter| (among(voters, zone(voter)), **voter));
            largest.map(|voter| (*voter, among(voters, zone(voter))))
        };
        // Each exchange makes the largest zone's part smaller, and no other one as large as that was.
        while let (Some((last, many)), Some(other)) = (most(&voters), next(&voters))
            && among(&voters, zone(&other)) + 1 < many
        {
            voters.retain(|voter| *voter != last);
            voters.push(other);
        }
        self.meta_voters = voters;
    }

    fn member(&self, node: NodeId) -> Result<&MemberRecord, String> {
        match self.members.get(&node) {
            Some(member) => Ok(member),
            None if self.removed.contains(&node) => Err(format!("node {node} was taken out already")),
            None => Err(format!("node {node} is no member of the cluster")),
        }
    }

    fn set_state(&mut self, node: NodeId, state: MemberState) {
        if let Some(member) = self.members.get_mut(&node) {
            member.state = state;
        }
    }

    /// How many would hold replicas if this one did not.
    fn others(&self, node: NodeId) -> usize {
        self.eligible().filter(|(other, _)| **other != node).count()
    }

    /// The record after a change; `None` if there is nothing to change.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn changed(&self, change: &Change) -> Result<Option<Record>, String> {
        if self.forming && *change != Change::Formed {
            return Err("the cluster is still being made".to_owned());
        }
        let mut next = self.clone();
        let mut replace = false;
        match change {
            Change::Add { node, addresses, weight, zone } => {
                if self.removed.contains(node) {
                    return Err(format!(
                        "node {node} was taken out of the cluster, and an id is never taken in again: give the \
                         node a new id and an empty directory"
                    ));
                }
                if node.0 == 0 || addresses.is_empty() {
                    return Err("a member has an id, which is not 0, and an address".to_owned());
                }
                check_member(*weight, zone)?;
                check_addresses(addresses)?;
                match next.members.get_mut(node) {
                    Some(member) if member.state == MemberState::Leaving => {
                        return Err(format!("node {node} is being taken out"));
                    }
                    Some(member) => member.addresses.clone_from(addresses),
                    None => {
                        let member = MemberRecord {
                            state: MemberState::Joining,
                            weight: *weight,
                            zone: zone.clone(),
                            addresses: addresses.clone(),
                        };
                        next.members.insert(*node, member);
                    }
                }
                check_members(&next)?;
            }
            // Whoever has not heard of it asks again.
            Change::Remove { node } if self.removed.contains(node) => {}
            Change::Remove { node } => {
                let state = self.member(*node)?.state;
                if self.members.len() == 1 {
                    return Err(format!("node {node} is the last member, which cannot be taken out"));
                }
                if state != MemberState::Leaving && self.others(*node) == 0 {
                    return Err(format!(
                        "node {node} is the last member that holds anything: no other is active"
                    ));
                }
                next.set_state(*node, MemberState::Leaving);
                replace = state == MemberState::Active;
            }
            Change::Drain { node, on } => match (self.member(*node)?.state, on) {
                (MemberState::Active | MemberState::Away, true) => {
                    if self.others(*node) < self.replicas as usize {
                        return Err(format!(
                            "without node {node} there are {} members for {} replicas: add a member first, or \
                             ask for fewer replicas",
                            self.others(*node),
                            self.replicas
                        ));
                    }
                    next.set_state(*node, MemberState::Draining);
                    replace = true;
                }
                (MemberState::Draining, false) => {
                    next.set_state(*node, MemberState::Active);
                    replace = true;
                }
                (MemberState::Draining, true) | (MemberState::Active | MemberState::Away, false) => {}
                (state, _) => return Err(format!("node {node} is {state}")),
            },
            Change::Weight { node, weight } => {
                let zone = self.member(*node)?.zone.clone();
                check_member(*weight, &zone)?;
                if let Some(member) = next.members.get_mut(node) {
                    member.weight = *weight;
                }
                replace = true;
            }
            Change::Replicas(replicas) => {
                check_replicas(*replicas)?;
                let active = self.eligible().count();
                if *replicas as usize > active {
                    return Err(format!(
                        "{replicas} replicas of each partition need as many active members, and there are {active}"
                    ));
                }
                next.replicas = *replicas;
                replace = true;
            }
            Change::Moves { paused, moves, bytes_per_second, replace_after_ms } => {
                let settings = &mut next.settings;
                settings.paused = paused.unwrap_or(settings.paused);
                settings.moves = moves.unwrap_or(settings.moves);
                settings.bytes_per_second = bytes_per_second.unwrap_or(settings.bytes_per_second);
                settings.replace_after =
                    replace_after_ms.map_or(settings.replace_after, Duration::from_millis);
                if settings.moves == 0 {
                    return Err("0 moves at a time: to stop them, pause".to_owned());
                }
                if settings.replace_after < Duration::from_secs(1) {
                    return Err("a member is not replaced within less than a second".to_owned());
                }
            }
            Change::Formed => next.forming = false,
            Change::Follows { node } => {
                if self.members.get(node).is_some_and(|member| member.state == MemberState::Joining) {
                    next.set_state(*node, MemberState::Active);
                    replace = true;
                }
            }
            Change::Silent { node } => {
                let active = self.members.get(node).is_some_and(|member| member.state == MemberState::Active);
                if active && self.others(*node) >= self.replicas as usize {
                    next.set_state(*node, MemberState::Away);
                    replace = true;
                }
            }
            Change::Heard { node } => {
                if self.members.get(node).is_some_and(|member| member.state == MemberState::Away) {
                    next.set_state(*node, MemberState::Active);
                    replace = true;
                }
            }
            Change::Gone { node } => {
                if self.members.get(node).is_some_and(|member| member.state == MemberState::Leaving) {
                    next.members.remove(node);
                    next.removed.insert(*node);
                }
            }
            Change::Lost { nodes } => {
                for node in nodes {
                    // What was interrupted is gone on with.
                    if self.removed.contains(node) {
                        continue;
                    }
                    self.member(*node)?;
                    next.members.remove(node);
                    next.removed.insert(*node);
                    replace = true;
                }
                if next.members.is_empty() {
                    return Err("no member would be left".to_owned());
                }
                if next.eligible().next().is_none() {
                    // Whoever is left has to hold it all.
                    for member in next.members.values_mut() {
                        member.state = MemberState::Active;
                    }
                }
            }
            Change::HashTree { tree, hash } => {
                check_name(tree)?;
                hash.check()?;
                match self.trees.get(tree) {
                    Some(chosen) if chosen.hash == *hash => {}
                    Some(chosen) => return Err(chosen_already(tree, chosen.hash)),
                    None if *hash == TreeHash::Whole => {}
                    None if self.trees.len() >= MAX_HASHED_TREES => {
                        return Err(format!(
                            "a prefix is hashed of {MAX_HASHED_TREES} trees, which is the most"
                        ));
                    }
                    None => {
                        next.trees.insert(tree.clone(), HashedTree { hash: *hash, in_force: false });
                    }
                }
            }
            // What it was decided upon may be another placement by now: then it is decided upon anew.
            Change::Leaders { leaders } => next.placement = self.placement.with_leaders(leaders)?,
            Change::TreeHashed { tree } => match next.trees.get_mut(tree) {
                Some(chosen) => chosen.in_force = true,
                None => return Err(format!("nothing was chosen for the tree \"{}\"", tree.escape_ascii())),
            },
        }
        if replace {
            next.place()?;
        }
        if next == *self {
            return Ok(None);
        }
        next.epoch += 1;
        Ok(Some(next))
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(1024);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.epoch);
        bytes.put_u32(self.replicas);
        bytes.put_u8(u8::from(self.forming));
        bytes.put_u8(u8::from(self.settings.paused));
        bytes.put_u32(self.settings.moves);
        bytes.put_u64(self.settings.bytes_per_second);
        bytes.put_u64(self.settings.replace_after.as_millis() as u64);
        bytes.put_u32(self.members.len() as u32);
        for (node, member) in &self.members {
            bytes.put_u64(node.0);
            bytes.put_u8(member.state as u8);
            bytes.put_u32(member.weight);
            bytes.put_bytes(member.zone.as_bytes());
            put_addresses(&mut bytes, &member.addresses);
        }
        put_ids(&mut bytes, &self.removed);
        put_ids(&mut bytes, &self.meta_voters);
        self.placement.put(&mut bytes);
        bytes.put_u32(self.trees.len() as u32);
        for (name, tree) in &self.trees {
            bytes.put_bytes(name);
            tree.hash.put(&mut bytes);
            bytes.put_u8(u8::from(tree.in_force));
        }
        bytes.into()
    }

    /// From bytes that may be anything.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: Bytes) -> Result<Record, Malformed> {
        let mut take = Take::new(bytes);
        take.version(VERSION)?;
        let epoch = take.u64()?;
        let replicas = take.u32()?;
        let forming = take.flag()?;
        let settings = MoveSettings {
            paused: take.flag()?,
            moves: take.u32()?,
            bytes_per_second: take.u64()?,
            replace_after: Duration::from_millis(take.u64()?),
        };
        let mut members = BTreeMap::new();
        for _ in 0..take.count(21)? {
            let node = NodeId(take.u64()?);
            let member = MemberRecord {
                state: MemberState::of(take.u8()?)?,
                weight: take.u32()?,
                zone: take.text()?,
                addresses: take_addresses(&mut take)?,
            };
            members.insert(node, member);
        }
        let removed: BTreeSet<NodeId> = take_ids(&mut take)?;
        let meta_voters = take_ids(&mut take)?;
        let placement = Placement::take(&mut take)?;
        let mut trees = BTreeMap::new();
        for _ in 0..take.count(8)? {
            let name = IVec::from(&take.bytes()?[..]);
            let tree = HashedTree { hash: TreeHash::take(&mut take)?, in_force: take.flag()? };
            if tree.hash == TreeHash::Whole || trees.insert(name, tree).is_some() {
                return malformed("what is hashed of a tree is said needlessly");
            }
        }
        take.end()?;
        Ok(Record { epoch, replicas, forming, settings, members, removed, meta_voters, placement, trees })
    }
}

/// The refusal of another choice.
pub(crate) fn chosen_already(tree: &[u8], hash: TreeHash) -> String {
    format!(
        "of the keys of \"{}\" {hash} is hashed, which was chosen for ever: a tree with another name can be \
         hashed otherwise",
        tree.escape_ascii()
    )
}

/// Places partitions on the members that are given any.
fn place(
    members: &BTreeMap<NodeId, MemberRecord>,
    partitions: u32,
    replicas: u32,
    before: Option<&Placement>,
) -> Result<Placement, String> {
    let active = members.iter().filter(|(_, member)| member.state == MemberState::Active);
    let places: Vec<Member> = active
        .map(|(node, member)| Member { node: *node, weight: member.weight, zone: member.zone.clone() })
        .collect();
    if places.is_empty() {
        return Err("no member would be left that could hold anything".to_owned());
    }
    // As many as there can be; the others come with the members.
    let replicas = replicas.min(places.len() as u32);
    let placed = match before {
        None => Placement::new(&places, partitions, replicas),
        Some(before) => before.rebalance(&places, replicas),
    };
    placed.map_err(|error| error.to_string())
}

fn check_replicas(replicas: u32) -> Result<(), String> {
    match (1..=MAX_REPLICAS).contains(&replicas) {
        true => Ok(()),
        false => Err(format!("a partition has 1 to {MAX_REPLICAS} replicas, not {replicas}")),
    }
}

/// The most addresses of a member, and the most bytes of one.
const MAX_ADDRESSES: usize = 16;
const MAX_ADDRESS_LENGTH: usize = 256;
/// The membership of the meta group names all members with their addresses, in an entry that whoever applies it notes
/// with its state: [`MAX_NOTE_LENGTH`](dogsled_storage::MAX_NOTE_LENGTH) and no more, less what else is noted.
const MAX_MEMBERS_BYTES: usize = 48 << 10;

/// Refuses what cannot be where a member is reached.
pub(crate) fn check_addresses(addresses: &[String]) -> Result<(), String> {
    if addresses.len() > MAX_ADDRESSES {
        return Err(format!("{} addresses of one member are more than {MAX_ADDRESSES}", addresses.len()));
    }
    match addresses.iter().find(|address| address.len() > MAX_ADDRESS_LENGTH) {
        Some(long) => Err(format!("an address of {} bytes is longer than {MAX_ADDRESS_LENGTH}", long.len())),
        None => Ok(()),
    }
}

/// Refuses more members, with their addresses, than a membership can name.
fn check_members(record: &Record) -> Result<(), String> {
    let of_one = |member: &MemberRecord| 32 + member.addresses.iter().map(|one| 8 + one.len()).sum::<usize>();
    let bytes: usize = record.members.values().map(of_one).sum();
    match bytes > MAX_MEMBERS_BYTES {
        true => {
            Err("the addresses of all members together would be too long: a cluster has no room for more"
                .to_owned())
        }
        false => Ok(()),
    }
}

fn check_member(weight: u32, zone: &str) -> Result<(), String> {
    if !(1..=MAX_WEIGHT).contains(&weight) {
        return Err(format!(
            "a member's weight is 1 to {MAX_WEIGHT}, not {weight}; to empty a member, drain it"
        ));
    }
    if zone.len() > MAX_ZONE_LENGTH {
        return Err(format!("the zone's name is over the limit of {MAX_ZONE_LENGTH} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
