//! Which groups this node has a replica of; how it gets one, and how what it had goes.
//!
//! # What is on disk
//!
//! The register of the group's stream in the WAL says whether the node hosts the group
//! ([`Hosting`]), and that alone counts: the replica's directory and the stream's entries may be half
//! there. Group 0 is on every node.
//!
//! # Getting a replica
//!
//! A node is *given* a group by the group's leader ([`Kind::Host`](crate::message::Kind)), before the
//! leader adds it as a learner. The register is written first, then the directory. Neither a request for
//! a vote nor entries open a group.
//!
//! # Losing it, and why votes wait afterwards
//!
//! A node that is not wanted any more asks the group's leader, who makes sure that it still leads. If the
//! newest *committed* membership is without the node, and newer than what the node knows, everything
//! goes:
//!
//! ```text
//! the group's Raft is ended; what it knows is compared once more
//! register: dropping    durable; from here on whatever opens the node goes on with this
//! the directory's files are removed, and the directory
//! the stream's entries are removed; register: not hosted, with the vote that it had
//! ```
//!
//! Raft does not provide for members that forget. One that is taken in again later, with an empty log,
//! would vote for anybody, also for a node that has slept since before all this and still counts it as a
//! voter: two such could elect a leader that lacks what was committed. So the register keeps the vote,
//! and the position of the membership that was without the node ([`Register::hosted`]): before its new
//! log reaches that, it grants no vote, and asks for none: getting its log again it comes past memberships of long ago, and
//! of one that is of it alone openraft would make it the leader at once. From there on it knows more than any such sleeper, and votes as
//! one that has forgotten nothing.
//!
//! What it had acknowledged and forgets is not missed either: the membership without it was committed by
//! others, who have everything before it; and it counts again only when it has everything again.
//!
//! A leader must never find less in a follower's log than was acknowledged to it. So what a node has is
//! wiped in two cases only: as above, compared with a membership that its own log does not know; or when
//! it is given the group anew with a membership that is newer than all it knows and is without it. A
//! replica without a single entry has acknowledged nothing and may go at any time. All this happens
//! under one mutex per node, so giving and taking never overlap.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogsled_storage::disk::{Disk, DiskLock};
use dogsled_storage::replica::ReplicaOptions;
use dogsled_storage::wal::{StreamId, Wal};
use dogsled_storage::{Error, Result};
use tokio::time::Instant;

use super::{Cluster, Inner, maintenance};
use crate::config::raft_config;
use crate::durability::to_io;
use crate::group::{Group, GroupOptions, Raft, newest_membership};
use crate::log_store::{LogOptions, SharedLog};
use crate::network::Network;
use crate::node_file::NodeFile;
use crate::ring::META_GROUP;
use crate::runtime;
use crate::transport::NodeId;
use crate::types::{Hosting, Register};

/// How long those that still read from a replica are waited for before its files are removed.
const READERS: Duration = Duration::from_secs(30);

fn register(wal: &Wal, group: u32) -> io::Result<Register> {
    Ok(wal.state(StreamId(group)).map_or_else(|| Ok(Register::default()), Register::decode)?)
}

/// Writes a group's register; durable on return.
fn write_register(wal: &Wal, group: u32, register: &Register) -> io::Result<()> {
    let ticket = wal.set_state(StreamId(group), &register.encode()).map_err(to_io)?;
    wal.wait_durable(ticket).map_err(to_io)
}

/// Removes a directory that nobody uses, with its files; `false` if somebody does.
fn remove_directory(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
    if !disk.exists(directory)? {
        return Ok(true);
    }
    let lock: Option<Box<dyn DiskLock>> = disk.lock(&directory.join("LOCK"))?;
    let Some(lock) = lock else { return Ok(false) };
    // The file that says that it is a replica goes last: without it, what is left is nothing.
    let mut names = disk.list(directory)?;
    names.retain(|name| name != "LOCK");
    names.sort_by_key(|name| name == "MANIFEST");
    for name in names {
        disk.remove(&directory.join(name))?;
    }
    // Whoever waited for this very lock file would have one that nobody sees. Nobody does: the node's own
    // lock keeps out other processes, the mutex of hosting the rest of this one.
    disk.remove(&directory.join("LOCK"))?;
    disk.sync_directory(directory)?;
    drop(lock);
    disk.remove_directory(directory)?;
    Ok(true)
}

/// Goes on with what [`Hosting::Dropping`] says; `false` if somebody still has the files.
fn finish_dropping(wal: &Wal, disk: &dyn Disk, groups: &Path, group: u32) -> io::Result<bool> {
    let found = register(wal, group)?;
    assert!(found.hosting == Hosting::Dropping, "group {group} is not being dropped: {found:?}");
    for name in [group.to_string(), format!("{group}.incoming")] {
        if !remove_directory(disk, &groups.join(name))? {
            return Ok(false);
        }
    }
    let nothing = Register { vote: found.vote, hosted: found.hosted, ..Register::default() };
    let ticket = wal.truncate_after_with_state(StreamId(group), 0, &nothing.encode()).map_err(to_io)?;
    wal.wait_durable(ticket).map_err(to_io)?;
    // Segments that only this group needed.
    wal.trim().map_err(to_io)?;
    Ok(true)
}

/// What a group is opened with, for each.
struct Opener {
    node: Arc<Inner>,
    file: NodeFile,
    /// By the group's number, modulo their count.
    raft: Vec<Arc<openraft::Config>>,
}

impl Opener {
    fn new(node: &Arc<Inner>) -> Result<Opener> {
        // One for each share of the time that an election takes.
        let shares = [0, 1, 2].map(|group| raft_config(&node.config.timing, group, node.config.node));
        let raft = shares.into_iter().map(|config| config.map(Arc::new)).collect::<Result<_, _>>();
        let raft = raft.map_err(|error| Error::InvalidRequest(format!("the timing cannot be: {error}")))?;
        Ok(Opener { node: Arc::clone(node), file: *node.file.lock(), raft })
    }

    fn options(&self, group: u32) -> GroupOptions {
        let (node, file) = (&self.node, &self.file);
        // As if the node had all of them: it may come to that.
        let count = file.partitions + 1;
        GroupOptions {
            replica: ReplicaOptions {
                cache_capacity: node.config.cache_bytes / u64::from(count),
                retain_changes_bytes: node.config.watch_bytes / u64::from(count),
                disk: Arc::clone(&node.config.disk),
                background_threads: node.config.threads,
                ..ReplicaOptions::new(
                    node.config.directory.join("groups").join(group.to_string()),
                    file.database_id,
                )
            },
            log: LogOptions {
                cache_bytes: node.config.log_cache_bytes / count as usize,
                ..LogOptions::default()
            },
            raft: Arc::clone(&self.raft[group as usize % self.raft.len()]),
            network: {
                let (transport, snapshots) = (Arc::clone(&node.transport), Arc::clone(&node.snapshots));
                let (fence, room) = (Arc::clone(&node.fence), Arc::clone(&node.room));
                let (id, timing, cluster) = (node.config.node, node.config.timing, file.cluster as u64);
                Box::new(move |slot| Network {
                    node: id,
                    group,
                    cluster,
                    transport,
                    snapshots,
                    fence,
                    room,
                    slot,
                    confirmations: Arc::default(),
                    acknowledged: Arc::default(),
                    append_deadline: timing.election.1 * 4,
                    backoff: (timing.heartbeat / 4, timing.election.1),
                })
            },
            clock: Arc::clone(&node.config.clock),
            blocking: node.blocking,
            max_command_bytes: node.config.max_command_bytes,
        }
    }

    /// Opens groups; nothing of them runs yet. `or_down`: one whose own files cannot be read is down, and no reason not to
    /// open the others. Not the meta group: who is a member, and who is not any more, has to be known first.
    async fn open(&self, groups: Vec<u32>, or_down: bool) -> io::Result<BTreeMap<u32, Arc<Group>>> {
        let all: Vec<(u32, GroupOptions)> =
            groups.into_iter().map(|group| (group, self.options(group))).collect();
        let shared_log = Arc::clone(&self.node.shared_log);
        let opened = self.node.blocking.run(move || {
            let open = |(id, options)| {
                let or_down = or_down && id != META_GROUP;
                Ok((id, Arc::new(Group::open(id, Arc::clone(&shared_log), options, or_down)?)))
            };
            all.into_iter().map(open).collect()
        });
        opened.await?
    }
}

/// The groups that a node's WAL says it hosts; what was being dropped is dropped.
fn hosted(shared_log: &SharedLog, disk: &dyn Disk, directory: &Path) -> io::Result<Vec<u32>> {
    let wal = &shared_log.wal;
    let mut hosted = vec![META_GROUP];
    for StreamId(group) in wal.streams() {
        match register(wal, group)?.hosting {
            _ if group == META_GROUP => {}
            Hosting::Yes => hosted.push(group),
            Hosting::No => {}
            Hosting::Dropping => {
                // Nobody can have the files: the node's own lock is held, and nothing is open yet.
                if !finish_dropping(wal, disk, &directory.join("groups"), group)? {
                    return Err(io::Error::other(format!("the replica of group {group} is in use")));
                }
            }
        }
    }
    Ok(hosted)
}

impl Inner {
    /// Opens the groups that the node hosts of the cluster that its file names, and starts them.
    pub(super) async fn open_cluster(self: &Arc<Self>) -> Result<()> {
        let file = *self.file.lock();
        let doing = |error| Error::io("opening the groups", error);
        let (shared_log, disk) = (Arc::clone(&self.shared_log), Arc::clone(&self.config.disk));
        let directory = self.config.directory.clone();
        let hosted = self.blocking.run(move || hosted(&shared_log, &*disk, &directory));
        let hosted = hosted.await.map_err(doing)?.map_err(doing)?;
        let groups = Opener::new(self)?.open(hosted, true).await.map_err(doing)?;
        let cluster = self.cluster.get_or_init(|| Cluster::new(file.cluster, file.partitions, groups));
        // Whoever was taken out is known before any of them takes part in anything.
        self.look_at_record();
        self.load_given_up(cluster).await?;
        for group in cluster.groups().values() {
            self.start(group);
        }
        let mut tasks = self.tasks.lock();
        tasks.push(runtime::spawn(maintenance::run(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(super::room::run(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(maintenance::run_due(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(super::record::follow(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(super::drive::run(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(super::recover::write_down(Arc::downgrade(self), self.stop.subscribe())));
        tasks.push(runtime::spawn(tend(Arc::downgrade(self), self.stop.subscribe())));
        tracing::info!(
            node = self.config.node.0,
            cluster = format_args!("{:032x}", file.cluster),
            partitions = file.partitions,
            groups = cluster.groups().len(),
            "the node's groups are open"
        );
        Ok(())
    }

    pub(super) fn start(self: &Arc<Self>, group: &Arc<Group>) {
        let node = Arc::downgrade(self);
        let changed = move |group: &Group| {
            if let Some(node) = node.upgrade() {
                node.group_changed(group);
            }
        };
        *group.task.lock() = Some(runtime::spawn(Arc::clone(group).supervise(changed)));
    }

    /// Opens one more group, whose register says that it is hosted.
    async fn open_one(self: &Arc<Self>, cluster: &Cluster, id: u32) -> Result<(), String> {
        let opener = Opener::new(self).map_err(|error| error.to_string())?;
        let began = Instant::now();
        let opened = loop {
            // Whoever still reads from the replica that was there before has its files. What cannot be opened otherwise is down,
            // and looked after as one that was found so when the node was started.
            match opener.open(vec![id], true).await {
                Ok(opened) => break opened,
                Err(error) if began.elapsed() > READERS || *self.stop.borrow() => {
                    return Err(error.to_string());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        for group in opened.values() {
            cluster.insert(Arc::clone(group));
            self.start(group);
        }
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Removes what is left of groups that were being dropped when something came between, and opens those that were
    /// to be and turned out to be wanted. Whether that is all.
    async fn finish_what_was_begun(self: &Arc<Self>, cluster: &Cluster) -> bool {
        let _one_at_a_time = self.hosting.lock().await;
        let (wal, disk) = (Arc::clone(&self.shared_log.wal), Arc::clone(&self.config.disk));
        let directory = self.config.directory.join("groups");
        let here = cluster.groups();
        self.snapshots.forget_all_but(|group| here.contains_key(&group));
        let finished = self.blocking.run(move || {
            let (mut closed, mut all) = (Vec::new(), true);
            for StreamId(group) in wal.streams().into_iter().filter(|stream| !here.contains_key(&stream.0)) {
                match register(&wal, group)?.hosting {
                    Hosting::Dropping => all &= finish_dropping(&wal, &*disk, &directory, group)?,
                    Hosting::Yes => closed.push(group),
                    Hosting::No => {}
                }
            }
            Ok::<_, io::Error>((closed, all))
        });
        let (closed, mut all) = match finished.await {
            Ok(Ok(finished)) => finished,
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "replicas that are not needed are still there");
                return false;
            }
        };
        for group in closed {
            if *self.stop.borrow() {
                return false;
            }
            if let Err(error) = self.open_one(cluster, group).await {
                tracing::warn!(group, %error, "a replica that was to be removed, and is wanted, cannot be opened");
                all = false;
            }
        }
        all
    }

    /// This node is given a group, as of the membership at `position`. `anew`: that membership is
    /// committed, and this node does not belong to it.
    pub(super) async fn host(self: &Arc<Self>, id: u32, position: u64, anew: bool) -> Result<(), String> {
        let hosted = self.host_or_fail(id, position, anew).await;
        if hosted.is_err() {
            // It may have stopped half-way.
            self.unfinished.store(true, Ordering::SeqCst);
        }
        hosted
    }

    async fn host_or_fail(self: &Arc<Self>, id: u32, position: u64, anew: bool) -> Result<(), String> {
        let cluster = self.cluster().map_err(|error| error.to_string())?;
        if id == META_GROUP || id > cluster.partitions {
            return match id {
                META_GROUP => Ok(()),
                _ => Err(format!("there is no group {id}")),
            };
        }
        let _one_at_a_time = self.hosting.lock().await;
        if *self.stop.borrow() {
            return Err("the node is stopping".to_owned());
        }
        if let Some(group) = cluster.group(id) {
            let raft = group.raft();
            if raft.is_none() && group.has_not_failed() {
                return Err(format!("group {id} is being opened"));
            }
            let is_news = |group: &Group, raft: Option<&Raft>| anew && is_out(group, raft, position);
            if !is_news(&group, raft.as_deref()) {
                return match raft {
                    Some(_) => Ok(()),
                    None => Err(format!("group {id} cannot be opened")),
                };
            }
            tracing::info!(group = id, position, "the group is given anew to this node");
            if !self.drop_replica(cluster, &group, raft, position, is_news).await? {
                return Ok(());
            }
        }
        let (wal, blocking) = (Arc::clone(&self.shared_log.wal), self.blocking);
        let (disk, groups) = (Arc::clone(&self.config.disk), self.config.directory.join("groups"));
        self.snapshots.forget(id);
        let registered = blocking.run(move || {
            let mut found = register(&wal, id)?;
            if found.hosting == Hosting::Dropping {
                if !finish_dropping(&wal, &*disk, &groups, id)? {
                    return Err(io::Error::other("what it had of the group is still being read"));
                }
                found = register(&wal, id)?;
            }
            found.hosting = Hosting::Yes;
            found.hosted = found.hosted.max(position);
            write_register(&wal, id, &found)
        });
        match registered.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return Err(error.to_string()),
        }
        tracing::info!(group = id, position, "this node is given a replica");
        self.open_one(cluster, id).await
    }

    /// Removes what this node has of a group, if `holds` still says so once its Raft has ended, so that
    /// nothing changes in it any more. With the mutex of hosting held.
    async fn drop_replica(
        self: &Arc<Self>,
        cluster: &Cluster,
        group: &Arc<Group>,
        raft: Option<Arc<Raft>>,
        position: u64,
        holds: impl Fn(&Group, Option<&Raft>) -> bool,
    ) -> Result<bool, String> {
        let id = group.id;
        cluster.remove(id);
        group.close().await;
        // What a Raft knew last can still be asked of it.
        if !holds(group, raft.as_deref()) {
            group.slot.close();
            self.open_one(cluster, id).await?;
            return Ok(false);
        }
        self.snapshots.forget(id);
        self.changes.send_modify(|changes| *changes += 1);
        let slot = Arc::clone(&group.slot);
        let (wal, blocking) = (Arc::clone(&self.shared_log.wal), self.blocking);
        let closed = blocking.run(move || {
            slot.close();
            let mut found = register(&wal, id)?;
            found.hosting = Hosting::Dropping;
            found.hosted = found.hosted.max(position);
            write_register(&wal, id, &found)
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return Err(error.to_string()),
        }
        let began = Instant::now();
        loop {
            // One may just have begun when it was let go before.
            self.snapshots.forget(id);
            let (wal, disk) = (Arc::clone(&self.shared_log.wal), Arc::clone(&self.config.disk));
            let groups = self.config.directory.join("groups");
            match blocking.run(move || finish_dropping(&wal, &*disk, &groups, id)).await {
                Ok(Ok(true)) => break,
                Ok(Ok(false)) if began.elapsed() < READERS && !*self.stop.borrow() => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(Ok(false)) => return Err(format!("what this node had of group {id} is still being read")),
                Ok(Err(error)) | Err(error) => return Err(error.to_string()),
            }
        }
        tracing::info!(group = id, "the replica was removed: the group has moved away");
        Ok(true)
    }

    /// Groups whose replica on this node is not wanted by the record.
    fn unwanted(&self, cluster: &Cluster) -> Vec<Arc<Group>> {
        let Some(record) = cluster.record() else { return Vec::new() };
        if record.forming {
            return Vec::new();
        }
        let me = self.config.node;
        let unwanted = |group: &&Arc<Group>| {
            group.id != META_GROUP && !record.replicas_of(group.id).contains(&me) && !group.leads()
        };
        cluster.groups().values().filter(unwanted).cloned().collect()
    }

    /// Removes a replica if this node is out of the group's newest committed membership, as its leader has told.
    async fn drop_if_out(
        self: &Arc<Self>,
        cluster: &Cluster,
        group: &Arc<Group>,
        position: u64,
        members: &[NodeId],
    ) -> Result<(), String> {
        if members.contains(&self.config.node) {
            return Ok(());
        }
        let _one_at_a_time = self.hosting.lock().await;
        if *self.stop.borrow() {
            return Ok(());
        }
        let raft = group.raft();
        if raft.is_none() && group.has_not_failed() {
            return Ok(());
        }
        let may_go = |group: &Group, raft: Option<&Raft>| {
            let nothing_acknowledged = group.log.bounds().1 == 0 && position >= group.log.hosted();
            nothing_acknowledged || is_out(group, raft, position)
        };
        if may_go(group, raft.as_deref()) {
            self.drop_replica(cluster, group, raft, position, may_go).await?;
        }
        Ok(())
    }
}

/// Whether a committed membership at `position`, which is without this node, is not older than anything
/// that this node knows of its belonging to the group. Of one that cannot be opened only the log is known, which has no
/// membership behind its end.
fn is_out(group: &Group, raft: Option<&Raft>, position: u64) -> bool {
    let (newest, is_member) = match raft {
        Some(raft) => newest_membership(raft),
        None => (group.log.bounds().1, true),
    };
    position > group.log.hosted() && (position > newest || (position == newest && !is_member))
}

/// Looks after what the node hosts: what it is to let go, goes.
async fn tend(node: std::sync::Weak<Inner>, mut stop: runtime::watch::Receiver<bool>) {
    loop {
        let every = match node.upgrade() {
            Some(node) => node.config.maintenance_every,
            None => return,
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let Some(cluster) = node.cluster.get() else { continue };
        // Never left half-way: what runs on a thread of its own would go on in a WAL that is closed.
        if node.unfinished.swap(false, Ordering::SeqCst) && !node.finish_what_was_begun(cluster).await {
            node.unfinished.store(true, Ordering::SeqCst);
        }
        for group in node.unwanted(cluster) {
            let asked = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                asked = node.ask_membership(group.id) => asked,
            };
            let Some((position, members)) = asked else { continue };
            if let Err(error) = node.drop_if_out(cluster, &group, position, &members).await {
                node.unfinished.store(true, Ordering::SeqCst);
                tracing::warn!(group = group.id, %error, "a replica that is not needed is still there");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dogsled_storage::disk::{OpenMode, SimulatedDisk};
    use dogsled_storage::wal::WalOptions;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::blocking::Blocking;
    use crate::durability::Durability;
    use crate::log_store::LogStore;
    use crate::types::{Entry, LeaderId, LogId, Payload, Vote, entry_body, entry_header, position};

    const GROUP: u32 = 3;

    fn open(disk: &SimulatedDisk) -> SharedLog {
        let options = WalOptions { threads: false, segment_size: 128 << 10, ..WalOptions::new("n/wal", 7) };
        let wal = Arc::new(Wal::open(Arc::new(disk.clone()), options).unwrap());
        let durability = Durability::inline(Arc::clone(&wal), Default::default());
        SharedLog::new(wal, durability, Blocking::Inline, None)
    }

    fn replica() -> PathBuf {
        PathBuf::from("n/groups").join(GROUP.to_string())
    }

    fn vote() -> Vote {
        Vote::new_committed(4, 2)
    }

    /// A node with a replica, the register of which says that it is to go.
    fn being_dropped() -> SimulatedDisk {
        let disk = SimulatedDisk::new(1);
        disk.create_directories(&replica()).unwrap();
        for name in ["MANIFEST", "tree.redb"] {
            let file = disk.open(&replica().join(name), OpenMode::Create).unwrap();
            file.write_at(0, &[7; 5000]).unwrap();
            file.sync().unwrap();
        }
        disk.sync_directory(&replica()).unwrap();
        let log = open(&disk);
        for index in 0..20 {
            let log_id = LogId::new(LeaderId::new(4, 2), index);
            let entry = Entry { log_id, payload: Payload::Blank };
            let parts: [&[u8]; 2] = [&entry_header(&entry), &entry_body(&entry)];
            log.wal.append(StreamId(GROUP), position(index), &parts).unwrap();
        }
        let register =
            Register { vote: Some(vote()), hosting: Hosting::Dropping, hosted: 25, ..Register::default() };
        write_register(&log.wal, GROUP, &register).unwrap();
        disk
    }

    fn check_gone(disk: &SimulatedDisk, context: &str) {
        let log = open(disk);
        assert_eq!(hosted(&log, disk, Path::new("n")).unwrap(), [META_GROUP], "{context}");
        assert!(!disk.exists(&replica()).unwrap(), "{context}: {:?}", disk.list(&replica()));
        assert_eq!(log.wal.last_index(StreamId(GROUP)), None, "{context}");
        let kept = register(&log.wal, GROUP).unwrap();
        let expected = Register { vote: Some(vote()), hosted: 25, ..Register::default() };
        assert_eq!(kept, expected, "{context}: the vote is never forgotten");
    }

    #[test]
    fn a_crash_at_any_write_of_a_drop_leaves_what_the_next_start_completes() {
        let undisturbed = being_dropped();
        let before = undisturbed.changes();
        check_gone(&undisturbed, "undisturbed");
        let changes = undisturbed.changes() - before;
        assert!(changes > 5, "{changes}");
        for at in 1..=changes {
            let disk = being_dropped();
            disk.crash_at_change(disk.changes() + at);
            // Whatever it comes to, the machine is off then.
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let wal =
                    WalOptions { threads: false, segment_size: 128 << 10, ..WalOptions::new("n/wal", 7) };
                let Ok(wal) = Wal::open(Arc::new(disk.clone()), wal) else { return };
                let wal = Arc::new(wal);
                let durability = Durability::inline(Arc::clone(&wal), Default::default());
                let _ =
                    hosted(&SharedLog::new(wal, durability, Blocking::Inline, None), &disk, Path::new("n"));
            }));
            assert!(attempt.is_ok(), "change {at}: a panic");
            check_gone(&disk.power_cut(at), &format!("power cut at change {at} of {changes}"));
        }
    }

    #[tokio::test]
    async fn who_is_given_a_group_again_does_not_vote_before_it_knows_as_much_again() {
        use openraft::storage::{IOFlushed, RaftLogStorage};
        use openraft::type_config::TypeConfigExt;

        let disk = being_dropped();
        let log = Arc::new(open(&disk));
        hosted(&log, &disk, Path::new("n")).unwrap();
        let given = Register { hosting: Hosting::Yes, ..register(&log.wal, GROUP).unwrap() };
        write_register(&log.wal, GROUP, &given).unwrap();
        let mut store = LogStore::open(Arc::clone(&log), StreamId(GROUP), LogOptions::default()).unwrap();
        for index in 0..25 {
            assert!(!store.may_vote(), "with {index} entries of 25");
            let log_id = LogId::new(LeaderId::new(5, 1), index);
            let (sender, receiver) = crate::types::TypeConfig::oneshot();
            let entries = vec![Entry { log_id, payload: Payload::Blank }];
            store.append(entries, IOFlushed::signal(sender)).await.unwrap();
            receiver.await.unwrap().unwrap();
        }
        assert!(store.may_vote());
        drop(store);
        let store = LogStore::open(log, StreamId(GROUP), LogOptions::default()).unwrap();
        assert!(store.may_vote(), "opened again");
    }
}
