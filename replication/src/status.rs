//! How a node is, for people and programs that look after it.

use std::time::Duration;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};

/// What a node is to a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows and has no vote.
    Learner,
    /// It is being opened, or has failed.
    Down,
}

/// How far a follower is, as its leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// Which.
    pub node: NodeId,
    /// Position of the last entry that it is known to have.
    pub matched: u64,
    /// How long ago it last answered, if it ever did.
    pub heard: Option<Duration>,
}

/// What identifies an entry of a group's log: two that have position, term and leader in common are
/// the same, and so is all before them (Raft's *log matching*).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EntryIdentity {
    /// Its place.
    pub position: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// Who led then.
    pub leader: NodeId,
    /// CRC-32 of its bytes.
    pub checksum: u32,
}

/// What identifies an entry of a group, as the one that made a membership.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MembershipId {
    /// The term in which it was proposed.
    pub term: u64,
    /// Who led then.
    pub leader: u64,
    /// Its place; 0: there is none yet.
    pub position: u64,
}

impl MembershipId {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.term);
        bytes.put_u64(self.leader);
        bytes.put_u64(self.position);
    }

    pub(crate) fn take(take: &mut Take) -> Result<MembershipId, Malformed> {
        Ok(MembershipId { term: take.u64()?, leader: take.u64()?, position: take.u64()? })
    }
}

/// How a group is on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// Which.
    pub group: u32,
    /// What this node is to it.
    pub role: Role,
    /// Who leads it, as far as is known here.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// The members that vote.
    pub voters: Vec<NodeId>,
    /// The members that do not.
    pub learners: Vec<NodeId>,
    /// The newest membership.
    pub membership: MembershipId,
    /// Whether that is known to be committed.
    pub settled: bool,
    /// Whether it is a joint one: of the members before and after a change that is under way.
    pub joint: bool,
    /// The voters of each of its parts: a majority of each has to agree.
    pub configs: Vec<Vec<NodeId>>,
    /// Position of the first entry that is still in the log.
    pub first: u64,
    /// Position of the last entry.
    pub last: u64,
    /// That entry.
    pub newest: MembershipId,
    /// Position of the last entry that is known to be committed.
    pub committed: u64,
    /// Position of the last entry that is applied.
    pub applied: u64,
    /// Position up to which the log is not needed to restart.
    pub durable: u64,
    /// How long ago this node was known to have all that its leader had; `None`: not since it was started.
    pub level: Option<Duration>,
    /// Entries of its log in a thousand seconds, lately: more of what is newer.
    pub load: u64,
    /// Of a leader: its followers and learners.
    pub followers: Vec<FollowerStatus>,
    /// Why it is down, if so.
    pub failure: Option<String>,
}

/// How a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    /// Which.
    pub node: NodeId,
    /// The cluster's id; 0 if it belongs to none.
    pub cluster: u128,
    /// The members of the meta group and where to reach them.
    pub members: Vec<(NodeId, Vec<String>)>,
    /// Every group.
    pub groups: Vec<GroupStatus>,
    /// Bytes of the WAL that are needed.
    pub wal_live_bytes: u64,
    /// Bytes of all its files.
    pub wal_file_bytes: u64,
    /// Syncs since the node was started.
    pub wal_syncs: u64,
    /// Bytes of the B-trees of all groups.
    pub tree_bytes: u64,
    /// Bytes of the file system that the node's directory is on; 0 if that is not known.
    pub disk_total_bytes: u64,
    /// How many of them the node can still use.
    pub disk_free_bytes: u64,
    /// Below so many free bytes it refuses what stores something; 0: never, or it has not looked yet.
    pub disk_low_mark_bytes: u64,
    /// Whether it does.
    pub disk_is_low: bool,
    /// Where Redis clients reach the node, `host:port`; empty if it serves none, or they are not to be sent to it.
    pub redis: String,
    /// Why the node acknowledges nothing any more, if so.
    pub failure: Option<String>,
}

pub(crate) fn put_duration(bytes: &mut Vec<u8>, duration: Option<Duration>) {
    bytes.put_u64(duration.map_or(u64::MAX, |duration| duration.as_millis() as u64));
}

pub(crate) fn take_duration(take: &mut Take) -> Result<Option<Duration>, Malformed> {
    Ok(Some(take.u64()?).filter(|ms| *ms != u64::MAX).map(Duration::from_millis))
}

fn put_text(bytes: &mut Vec<u8>, text: Option<&str>) {
    bytes.put_u8(u8::from(text.is_some()));
    if let Some(text) = text {
        bytes.put_bytes(text.as_bytes());
    }
}

fn take_text(take: &mut Take) -> Result<Option<String>, Malformed> {
    Ok(if take.flag()? { Some(take.text()?) } else { None })
}

pub(crate) fn put_ids<'a>(
    bytes: &mut Vec<u8>,
    ids: impl IntoIterator<Item = &'a NodeId, IntoIter: ExactSizeIterator>,
) {
    let ids = ids.into_iter();
    bytes.put_u32(ids.len() as u32);
    for id in ids {
        bytes.put_u64(id.0);
    }
}

pub(crate) fn take_ids<C: FromIterator<NodeId>>(take: &mut Take) -> Result<C, Malformed> {
    (0..take.count(8)?).map(|_| Ok(NodeId(take.u64()?))).collect()
}

/// After how long a node that has heard of no leader, or as leader from no majority, counts for nothing, and is not ready.
pub(crate) const OUT_OF_TOUCH: Duration = Duration::from_secs(5);

impl GroupStatus {
    /// Whether the node that says this has heard in the last 5 s from those who decide in the group: as follower or learner
    /// from its leader, and is level with it; as leader from a majority. Otherwise it may be cut off, and what it says of who
    /// leads is from before.
    pub fn is_in_touch(&self, node: NodeId) -> bool {
        if self.role != Role::Leader {
            return self.level.is_some_and(|age| age <= OUT_OF_TOUCH);
        }
        let has_heard = |voter: &&NodeId| {
            let follower = self.followers.iter().find(|follower| follower.node == **voter);
            // A majority has elected it: of whom it has not heard yet it may in a moment.
            **voter == node
                || follower.is_some_and(|follower| follower.heard.is_none_or(|heard| heard <= OUT_OF_TOUCH))
        };
        self.configs.iter().all(|voters| 2 * voters.iter().filter(has_heard).count() > voters.len())
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u32(self.group);
        bytes.put_u8(match self.role {
            Role::Leader => 0,
            Role::Follower => 1,
            Role::Candidate => 2,
            Role::Learner => 3,
            Role::Down => 4,
        });
        bytes.put_u64(self.leader.map_or(0, |leader| leader.0));
        bytes.put_u64(self.term);
        put_ids(bytes, &self.voters);
        put_ids(bytes, &self.learners);
        self.membership.put(bytes);
        bytes.put_u8(u8::from(self.settled));
        bytes.put_u8(u8::from(self.joint));
        bytes.put_u32(self.configs.len() as u32);
        for voters in &self.configs {
            put_ids(bytes, voters);
        }
        self.newest.put(bytes);
        for number in [self.first, self.last, self.committed, self.applied, self.durable] {
            bytes.put_u64(number);
        }
        put_duration(bytes, self.level);
        bytes.put_u64(self.load);
        bytes.put_u32(self.followers.len() as u32);
        for follower in &self.followers {
            bytes.put_u64(follower.node.0);
            bytes.put_u64(follower.matched);
            put_duration(bytes, follower.heard);
        }
        put_text(bytes, self.failure.as_deref());
    }

    fn take(take: &mut Take) -> Result<GroupStatus, Malformed> {
        Ok(GroupStatus {
            group: take.u32()?,
            role: match take.u8()? {
                0 => Role::Leader,
                1 => Role::Follower,
                2 => Role::Candidate,
                3 => Role::Learner,
                4 => Role::Down,
                other => return malformed(format!("a role of the unknown kind {other}")),
            },
            leader: Some(NodeId(take.u64()?)).filter(|leader| leader.0 != 0),
            term: take.u64()?,
            voters: take_ids(take)?,
            learners: take_ids(take)?,
            membership: MembershipId::take(take)?,
            settled: take.flag()?,
            joint: take.flag()?,
            configs: (0..take.count(4)?).map(|_| take_ids(take)).collect::<Result<_, Malformed>>()?,
            newest: MembershipId::take(take)?,
            first: take.u64()?,
            last: take.u64()?,
            committed: take.u64()?,
            applied: take.u64()?,
            durable: take.u64()?,
            level: take_duration(take)?,
            load: take.u64()?,
            followers: (0..take.count(24)?)
                .map(|_| {
                    let (node, matched) = (NodeId(take.u64()?), take.u64()?);
                    Ok(FollowerStatus { node, matched, heard: take_duration(take)? })
                })
                .collect::<Result<_, Malformed>>()?,
            failure: take_text(take)?,
        })
    }
}

impl NodeStatus {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.node.0);
        bytes.put_u128(self.cluster);
        bytes.put_u32(self.members.len() as u32);
        for (node, addresses) in &self.members {
            bytes.put_u64(node.0);
            put_addresses(bytes, addresses);
        }
        bytes.put_u32(self.groups.len() as u32);
        for group in &self.groups {
            group.put(bytes);
        }
        let wal = [self.wal_live_bytes, self.wal_file_bytes, self.wal_syncs];
        let disk = [self.tree_bytes, self.disk_total_bytes, self.disk_free_bytes, self.disk_low_mark_bytes];
        for number in wal.into_iter().chain(disk) {
            bytes.put_u64(number);
        }
        bytes.put_u8(u8::from(self.disk_is_low));
        bytes.put_bytes(self.redis.as_bytes());
        put_text(bytes, self.failure.as_deref());
    }

    pub(crate) fn take(take: &mut Take) -> Result<NodeStatus, Malformed> {
        Ok(NodeStatus {
            node: NodeId(take.u64()?),
            cluster: take.u128()?,
            members: (0..take.count(12)?)
                .map(|_| Ok((NodeId(take.u64()?), take_addresses(take)?)))
                .collect::<Result<_, Malformed>>()?,
            groups: (0..take.count(64)?)
                .map(|_| GroupStatus::take(take))
                .collect::<Result<_, Malformed>>()?,
            wal_live_bytes: take.u64()?,
            wal_file_bytes: take.u64()?,
            wal_syncs: take.u64()?,
            tree_bytes: take.u64()?,
            disk_total_bytes: take.u64()?,
            disk_free_bytes: take.u64()?,
            disk_low_mark_bytes: take.u64()?,
            disk_is_low: take.flag()?,
            redis: take.text()?,
            failure: take_text(take)?,
        })
    }
}
