//! A quorum is lost for ever, and what is left is recovered while some of the lost come back.
//!
//! A life of its own, because what is true of all others is not here: acknowledged writes may be lost, by those
//! who had them and in groups that were recovered. What must be all the same:
//!
//! - What was acknowledged to a write that began **after the recovery** is there in the end.
//! - What was acknowledged **before** is there in the end if its group kept its quorum. Otherwise what is there is
//!   what the log had up to some point: of two writes of one client, one after the other and both before anybody was
//!   lost, never the second alone. (A later one may be of the new history, which begins before an operator hears of it.)
//!   And what the best of those that are left had on its disk when the others were gone is there: that
//!   is what the recovery is to go on with.
//! - What was numbered in a session and is repeated after the recovery, as by a client that has not heard the answer, is
//!   carried out once.
//! - All survivors agree in the end, and no survivor's log goes back from the new history to the old one.
//! - No member that was given up ever learns a term of the new history. Those that come back are told that they
//!   are out, serve nobody from then on, and know it when they are started again and hear of nobody.
//!
//! Meanwhile two operators ask for the recovery at once, by way of any survivor, again and again; survivors lose
//! power amid it; and some of the lost come back for moments, before, amid and after it. They are never so many
//! that they would be a quorum of any group among themselves: those nobody could tell of anything before they have
//! elected a leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dogsled_replication::{
    ClientReply, ClientRequest, ClusterError, Consistency, EntryIdentity, GroupStatus, NodeId, Record, Role,
};
use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::group::{SessionId, SessionTag};
use dogsled_storage::{Command, GroupCommand, GroupRead, GroupReadReply, IVec, Operation, TreeId, Write};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::{Cluster, Death, Setup};
use crate::network::{Quality, SimulatedNetwork};
use crate::planted::Planted;
use crate::random::Random;
use crate::run::{Options, PATIENCE, Report};
use crate::trace::{Trace, event};

const STEP: Duration = Duration::from_millis(50);
/// Terms of a new history are beyond this; see `dogsled_replication::recovery`.
const NEW_HISTORY: u64 = 1 << 32;
/// When the lost are gone, what they have sent arrives within this time, and is synced.
const SETTLE: Duration = Duration::from_millis(200);
/// For so long survivors may die, and the lost may come back.
const TROUBLE: Duration = Duration::from_secs(12);
const TREE: &str = "written";

/// A write that was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Written {
    client: u64,
    group: u32,
    number: u64,
    /// Of its entry in the group's log.
    position: u64,
    /// It began after the recovery.
    after: bool,
    /// It was acknowledged before anybody was lost.
    before: bool,
}

impl Written {
    fn key(&self) -> IVec {
        IVec::from(format!("{}-{}-{}", self.client, self.group, self.number))
    }
}

#[derive(Default)]
struct Known {
    written: Mutex<Vec<Written>>,
    /// Not heard of.
    unknown: Mutex<usize>,
    losing: AtomicBool,
    recovered: AtomicBool,
    stop: AtomicBool,
}

fn submit(group: u32, command: &GroupCommand) -> Option<ClientRequest> {
    let command = encode_group_command(command).ok()?.into();
    Some(ClientRequest::Submit { group, deadline: Duration::from_secs(2), command })
}

fn put(key: IVec, group: u32) -> Option<ClientRequest> {
    let write = Write { tree: TreeId(0), key: key.clone(), value: Some(key) };
    let operation = Operation::Command(Command::Batch { writes: vec![write] });
    submit(group, &GroupCommand { session: None, time_ms: 0, trees: vec![TREE.into()], operation })
}

/// The session of the one who repeats, and his only command: in each group the same.
const SESSION: SessionId = SessionId(77);
const COUNTED: &str = "counted once";

fn open_session(group: u32) -> Option<ClientRequest> {
    let operation = Operation::OpenSession { session: SESSION, lease_ms: 600_000 };
    submit(group, &GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation })
}

fn count(group: u32) -> Option<ClientRequest> {
    let add = CounterCommand::Add { name: COUNTED.into(), delta: 1 };
    let session = Some(SessionTag { session: SESSION, slot: 0, sequence: 1 });
    let operation = Operation::Command(Command::Counter(add));
    submit(group, &GroupCommand { session, time_ms: 0, trees: Vec::new(), operation })
}

async fn ask(
    network: &SimulatedNetwork,
    client: u64,
    node: NodeId,
    request: &ClientRequest,
) -> Option<ClientReply> {
    let answer = network.ask(client, node, request.encode(), Duration::from_millis(2_500)).await;
    answer.ok().and_then(|bytes| ClientReply::decode(bytes).ok())
}

/// The position at which it was done, if it was.
fn done(reply: Option<ClientReply>) -> Option<u64> {
    let Some(ClientReply::Applied(bytes)) = reply else { return None };
    let reply = decode_group_reply(&bytes).ok()?;
    reply.result.is_ok().then_some(reply.position)
}

/// Writes one key after the other, by way of any machine.
async fn write(
    client: u64,
    seed: u64,
    network: SimulatedNetwork,
    nodes: Vec<NodeId>,
    partitions: u32,
    known: Arc<Known>,
) {
    let mut random = Random::new(seed, 100 + client);
    let mut number = 0;
    while !known.stop.load(Ordering::Relaxed) {
        number += 1;
        let group = random.between(1, u64::from(partitions)) as u32;
        let after = known.recovered.load(Ordering::Relaxed);
        let mut written = Written { client, group, number, position: 0, after, before: false };
        let node = *random.pick(&nodes);
        if let Some(request) = put(written.key(), group) {
            match done(ask(&network, client, node, &request).await) {
                Some(position) => {
                    written.position = position;
                    written.before = !known.losing.load(Ordering::Relaxed);
                    known.written.lock().push(written);
                }
                None => *known.unknown.lock() += 1,
            }
        }
        tokio::time::sleep(Duration::from_millis(random.between(1, 60))).await;
    }
}

/// Asks for the recovery until it is done, or there is nothing to recover any more.
async fn operate(
    number: u64,
    seed: u64,
    network: SimulatedNetwork,
    survivors: Vec<NodeId>,
    lost: Vec<NodeId>,
    known: Arc<Known>,
    trace: Trace,
) {
    let mut random = Random::new(seed, 200 + number);
    while !known.recovered.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.between(1, 700))).await;
        let node = *random.pick(&survivors);
        let request = ClientRequest::Recover { lost: lost.clone(), accept_data_loss: true };
        let answer = network.ask(900 + number, node, request.encode(), Duration::from_secs(40)).await;
        let reply = answer.ok().and_then(|bytes| ClientReply::decode(bytes).ok());
        event!(trace, "operator {number} by way of node {node}: {reply:?}");
        let done = match &reply {
            Some(ClientReply::Recovery(recovery)) => recovery.done,
            // The other operator was quicker.
            Some(ClientReply::Error(ClusterError::Invalid(why))) => {
                why.contains("every group has its quorum")
            }
            _ => false,
        };
        if done {
            known.recovered.store(true, Ordering::Relaxed);
        }
    }
}

/// A life, from its seed to the verdict.
pub(crate) async fn live(options: &Options) -> Report {
    let seed = options.seed;
    let trace = Trace::new(options.trace);
    let mut random = Random::new(seed, 11);
    let millis = Duration::from_millis;
    let setup = Setup {
        nodes: *random.pick(&[3, 5, 5]),
        partitions: random.between(1, 3) as u32,
        keep_entries: *random.pick(&[20, 1_000, 200_000]),
        log_cache_bytes: *random.pick(&[64 << 10, 8 << 20]),
        sync_time: *random.pick(&[(millis(0), millis(5)), (millis(1), millis(40))]),
        balance_leaders: random.chance(600),
        maintenance_every: millis(*random.pick(&[100, 300])),
    };
    let skews: Vec<i64> = (0..setup.nodes).map(|_| random.between(0, 100) as i64 - 50).collect();
    let network = SimulatedNetwork::new(Random::new(seed, 3), trace.clone());
    event!(trace, "seed {seed}: {setup:?}");
    let mut cluster = Cluster::new(seed, setup, &skews, network, trace.clone());
    cluster.planted = options.planted;
    let known = Arc::new(Known::default());
    let mut faults = String::new();
    let violations = match go(seed, &mut cluster, &mut random, &known, &mut faults).await {
        Ok(violations) => violations,
        Err(error) => vec![error],
    };
    known.stop.store(true, Ordering::Relaxed);
    known.recovered.store(true, Ordering::Relaxed);
    for violation in &violations {
        event!(trace, "VIOLATION: {violation}");
    }
    let digest = trace.digest();
    for id in cluster.ids() {
        cluster.network.detach(id);
    }
    let operations = (known.written.lock().len(), 0, *known.unknown.lock());
    Report {
        seed,
        violations,
        undecided: 0,
        trace: digest,
        operations,
        faults,
        counts: trace.counts(),
        recorded: Default::default(),
    }
}

/// Who is lost: some group loses its quorum by it, and every group has a replica that is left. And who of them may
/// come back.
fn draw_lost(random: &mut Random, record: &Record) -> Option<(Vec<NodeId>, Vec<NodeId>)> {
    let groups = || (0..=record.partitions()).map(|group| record.replicas_of(group));
    for _ in 0..50 {
        let mut ids: Vec<NodeId> = record.members.keys().copied().collect();
        random.shuffle(&mut ids);
        let many = if ids.len() == 3 { 2 } else { random.between(2, 3) as usize };
        let mut lost = ids.split_off(ids.len() - many);
        let alive = |voters: &[NodeId]| voters.iter().filter(|node| !lost.contains(node)).count();
        if groups().any(|voters| alive(voters) == 0)
            || !groups().any(|voters| alive(voters) * 2 <= voters.len())
        {
            continue;
        }
        let mut back: Vec<NodeId> = Vec::new();
        for node in &lost {
            let few = |voters: &[NodeId]| {
                let count = voters.iter().filter(|voter| back.contains(voter) || *voter == node).count();
                count * 2 <= voters.len()
            };
            if groups().all(few) {
                back.push(*node);
            }
        }
        lost.sort_unstable();
        return Some((lost, back));
    }
    None
}

/// What must be so at every moment.
#[derive(Default)]
struct Looked {
    /// The term of the newest entry, of each survivor and group.
    terms: BTreeMap<(NodeId, u32), u64>,
}

impl Looked {
    fn look(&mut self, cluster: &Cluster, lost: &[NodeId]) -> Result<(), String> {
        for (id, node) in cluster.nodes() {
            for seen in node.status().groups {
                if lost.contains(&id) {
                    if seen.term >= NEW_HISTORY {
                        return Err(format!(
                            "node {id} was given up, and is in term {} of group {}",
                            seen.term, seen.group
                        ));
                    }
                    continue;
                }
                if seen.term >= NEW_HISTORY && seen.leader.is_some_and(|leader| lost.contains(&leader)) {
                    return Err(format!(
                        "group {}: node {id} follows {:?}, which was given up",
                        seen.group, seen.leader
                    ));
                }
                let newest = self.terms.entry((id, seen.group)).or_default();
                // A partition may be wiped, and given again; the meta group never is.
                if seen.group == 0 && *newest >= NEW_HISTORY && seen.newest.term < NEW_HISTORY {
                    return Err(format!(
                        "group {}: node {id} had an entry of term {newest}, and now ends with {:?}",
                        seen.group, seen.newest
                    ));
                }
                *newest = seen.newest.term;
            }
        }
        Ok(())
    }
}

/// What was there of all groups' logs when some members were lost.
#[derive(Default)]
struct Left {
    /// By group and position: what some node had applied, lost or not.
    applied: BTreeMap<(u32, u64), EntryIdentity>,
    /// By group: up to where some survivor had applied its log.
    applied_to: BTreeMap<u32, u64>,
    /// By group and position: what was applied, and is in the log of the survivor with the newest entry.
    in_the_best_log: BTreeSet<(u32, u64)>,
}

impl Left {
    /// Notes what was applied by now, while it is there to be asked.
    fn note_applied(&mut self, cluster: &Cluster) -> Result<(), String> {
        for (id, node) in cluster.nodes() {
            for seen in node.status().groups {
                let entries = node.entries(seen.group, seen.first, seen.applied);
                let entries = entries.map_err(|error| format!("the log of node {id}: {error}"))?;
                self.applied.extend(entries.into_iter().map(|entry| ((seen.group, entry.position), entry)));
            }
        }
        Ok(())
    }

    /// Notes what the survivors have. Their disks are quiet by now: all that is in their logs is durable.
    fn note_survivors(&mut self, cluster: &Cluster, survivors: &[NodeId]) -> Result<(), String> {
        for group in 0..=cluster.setup.partitions {
            let survivors = cluster.nodes().filter(|(id, _)| survivors.contains(id));
            let seen: Vec<_> = survivors
                .filter_map(|(id, node)| {
                    let mut groups = node.status().groups.into_iter();
                    Some((id, node, groups.find(|seen| seen.group == group)?))
                })
                .collect();
            let applied_to = seen.iter().map(|(.., seen)| seen.applied).max();
            self.applied_to.insert(group, applied_to.unwrap_or(0));
            let newest = |(_, _, seen): &&(_, _, GroupStatus)| (seen.newest.term, seen.newest.position);
            let Some((id, node, best)) = seen.iter().max_by_key(newest) else { continue };
            let entries = node.entries(group, best.first, best.last);
            let entries = entries.map_err(|error| format!("the log of node {id}: {error}"))?;
            let was_applied = |entry: &EntryIdentity| {
                self.applied.get(&(group, entry.position)).is_some_and(|applied| applied == entry)
            };
            let kept = entries.into_iter().filter(was_applied).map(|entry| (group, entry.position));
            self.in_the_best_log.extend(kept);
        }
        Ok(())
    }

    /// Whether an acknowledged write has to be there after the recovery.
    fn has(&self, write: &Written) -> bool {
        let applied_to = self.applied_to.get(&write.group).copied().unwrap_or(0);
        write.position <= applied_to || self.in_the_best_log.contains(&(write.group, write.position))
    }
}

/// What every disk holds now, for a planted bug. A disk can only be copied when its node has ended.
async fn copy_disks(cluster: &mut Cluster) -> Result<BTreeMap<NodeId, SimulatedDisk>, String> {
    let mut copies = BTreeMap::new();
    for id in cluster.ids() {
        cluster.end(id, Death::Kill).await;
        if let Some(machine) = cluster.machines.get_mut(&id) {
            let copy = machine.disk.process_kill();
            machine.disk = copy.process_kill();
            copies.insert(id, copy);
        }
    }
    for id in cluster.ids() {
        cluster.start(id).await?;
    }
    Ok(copies)
}

async fn go(
    seed: u64,
    cluster: &mut Cluster,
    random: &mut Random,
    known: &Arc<Known>,
    faults: &mut String,
) -> Result<Vec<String>, String> {
    cluster.make().await?;
    let quality = match random.below(3) {
        0 => Quality { delay_us: (0, 20_000), ..Quality::GOOD },
        1 => Quality { requests_lost: 10, replies_lost: 10, doubled: 20, ..Quality::GOOD },
        _ => Quality::GOOD,
    };
    cluster.network.set_quality(quality);
    let partitions = cluster.setup.partitions;
    let ids = cluster.ids();
    for request in (1..=partitions).flat_map(|group| [open_session(group), count(group)]).flatten() {
        // Heard or not: it is asked for again.
        ask(&cluster.network, 98, ids[0], &request).await;
    }
    let early = match cluster.planted {
        Some(Planted::RecoverFromEarlier) => copy_disks(cluster).await?,
        _ => BTreeMap::new(),
    };
    for client in 1..=4 {
        let network = cluster.network.clone();
        tokio::spawn(write(client, seed, network, ids.clone(), partitions, Arc::clone(known)));
    }
    tokio::time::sleep(Duration::from_millis(random.between(500, 3_000))).await;
    let record = cluster.nodes().find_map(|(_, node)| node.record()).ok_or("nobody knows a record")?;
    let (lost, back) = draw_lost(random, &record).ok_or("nobody can be lost")?;
    let survivors: Vec<NodeId> = ids.iter().copied().filter(|id| !lost.contains(id)).collect();
    *faults = format!("lost {lost:?}, of which {back:?} come back");
    event!(cluster.trace, "{faults}");
    known.losing.store(true, Ordering::Relaxed);
    let mut left = Left::default();
    for id in &lost {
        left.note_applied(cluster)?;
        cluster.end(*id, Death::PowerCut).await;
        if random.chance(500) {
            tokio::time::sleep(Duration::from_millis(random.between(1, 400))).await;
        }
    }
    tokio::time::sleep(SETTLE).await;
    left.note_survivors(cluster, &survivors)?;
    for (id, disk) in early.iter().filter(|(id, _)| survivors.contains(id)) {
        cluster.end(*id, Death::Kill).await;
        if let Some(machine) = cluster.machines.get_mut(id) {
            machine.disk = disk.process_kill();
        }
        cluster.start(*id).await?;
    }
    for number in 1..=2 {
        let (network, trace) = (cluster.network.clone(), cluster.trace.clone());
        tokio::spawn(operate(
            number,
            seed,
            network,
            survivors.clone(),
            lost.clone(),
            Arc::clone(known),
            trace,
        ));
    }
    let mut looked = Looked::default();
    recovering(cluster, random, known, &lost, &back, &survivors, &mut looked).await?;
    event!(cluster.trace, "it is recovered");
    // Those that come back stay; everybody works on.
    for id in &back {
        if cluster.machines[id].running.is_none() {
            cluster.start(*id).await.map_err(|error| format!("node {id} does not start again: {error}"))?;
        }
    }
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        looked.look(cluster, &lost)?;
        tokio::time::sleep(STEP).await;
    }
    known.stop.store(true, Ordering::Relaxed);
    cluster.network.set_quality(Quality::GOOD);
    serves(cluster, &survivors, &mut looked, &lost).await?;
    let mut violations = counted_once(cluster, &survivors).await?;
    agree(cluster, &survivors).await?;
    violations.extend(judge(cluster, &survivors, known, &left));
    out_for_ever(cluster, &back).await?;
    Ok(violations)
}

/// Until it is done, with whatever comes between.
async fn recovering(
    cluster: &mut Cluster,
    random: &mut Random,
    known: &Known,
    lost: &[NodeId],
    back: &[NodeId],
    survivors: &[NodeId],
    looked: &mut Looked,
) -> Result<(), String> {
    let began = Instant::now();
    // When each machine is to be started, or to lose power.
    let mut due: BTreeMap<NodeId, Instant> = BTreeMap::new();
    for id in back {
        due.insert(*id, began + Duration::from_millis(random.between(0, 6_000)));
    }
    while !known.recovered.load(Ordering::Relaxed) {
        looked.look(cluster, lost)?;
        let now = Instant::now();
        let trouble = now < began + TROUBLE;
        for id in back.iter().chain(survivors) {
            let is_lost = back.contains(id);
            let runs = cluster.machines[id].running.is_some();
            let is_due = due.get(id).is_some_and(|at| *at <= now);
            if runs && (is_due || (is_lost && !trouble)) {
                due.insert(*id, now + Duration::from_millis(random.between(100, 2_500)));
                cluster.end(*id, Death::PowerCut).await;
            } else if !runs && is_due && (trouble || !is_lost) {
                due.remove(id);
                cluster
                    .start(*id)
                    .await
                    .map_err(|error| format!("node {id} does not start again: {error}"))?;
                if is_lost {
                    due.insert(*id, now + Duration::from_millis(random.between(50, 1_200)));
                }
            } else if runs && !is_lost && trouble && random.chance(6) {
                due.insert(*id, now);
            }
        }
        if now > began + TROUBLE + PATIENCE * 2 {
            let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
            return Err(format!("it cannot be recovered although nothing else happens: {status:#?}"));
        }
        tokio::time::sleep(STEP).await;
    }
    for id in survivors {
        if cluster.machines[id].running.is_none() {
            cluster.start(*id).await.map_err(|error| format!("node {id} does not start again: {error}"))?;
        }
    }
    Ok(())
}

/// Waits until every survivor serves a write of every group.
async fn serves(
    cluster: &Cluster,
    survivors: &[NodeId],
    looked: &mut Looked,
    lost: &[NodeId],
) -> Result<(), String> {
    let end = Instant::now() + PATIENCE * 2;
    for id in survivors {
        for group in 1..=cluster.setup.partitions {
            let Some(request) = put(IVec::from(format!("served {group} by {id}")), group) else { continue };
            while done(ask(&cluster.network, 99, *id, &request).await).is_none() {
                looked.look(cluster, lost)?;
                if Instant::now() > end {
                    let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
                    return Err(format!(
                        "node {id} does not serve group {group} after the recovery: {status:#?}"
                    ));
                }
                tokio::time::sleep(STEP).await;
            }
        }
    }
    Ok(())
}

/// Repeats what was counted at the beginning: it must not be carried out twice, whether it was then or not.
async fn counted_once(cluster: &Cluster, survivors: &[NodeId]) -> Result<Vec<String>, String> {
    let mut violations = Vec::new();
    let end = Instant::now() + PATIENCE;
    for group in 1..=cluster.setup.partitions {
        let (Some(add), get) = (count(group), GroupRead::Counter { name: COUNTED.into() }) else { continue };
        let read = encode_group_read(&get).map_err(|error| error.to_string())?;
        let (deadline, consistency) = (Duration::from_secs(2), Consistency::Linearizable);
        let get = ClientRequest::Read { group, deadline, consistency, read: read.into() };
        let (mut is_counted, mut value) = (None, None);
        while value.is_none() {
            if Instant::now() > end {
                return Err(format!("what is counted in group {group} is not heard of: {is_counted:?}"));
            }
            match ask(&cluster.network, 99, survivors[0], &add).await {
                Some(ClientReply::Applied(bytes)) => {
                    let reply = decode_group_reply(&bytes).map_err(|error| error.to_string())?;
                    // Only lost entries knew the session: then they alone knew what was counted in it.
                    is_counted = Some(reply.result.is_ok());
                }
                _ => continue,
            }
            if let Some(ClientReply::Read { reply, .. }) = ask(&cluster.network, 99, survivors[0], &get).await
                && let Ok(GroupReadReply::Counter(found)) = decode_group_read_reply(&reply)
            {
                value = Some(found.unwrap_or(0));
            }
        }
        if value != is_counted.map(i64::from) {
            violations.push(format!(
                "in group {group} one was counted once, and perhaps repeated ({is_counted:?}): it stands at {value:?}"
            ));
        }
    }
    Ok(violations)
}

/// Waits until all survivors that have a group have the same of it.
async fn agree(cluster: &Cluster, survivors: &[NodeId]) -> Result<(), String> {
    let end = Instant::now() + PATIENCE * 2;
    loop {
        let mut states: BTreeMap<u32, BTreeSet<(u64, u64)>> = BTreeMap::new();
        for (id, node) in cluster.nodes().filter(|(id, _)| survivors.contains(id)) {
            for group in 0..=cluster.setup.partitions {
                let Some(replica) = node.replica(group) else { continue };
                let snapshot = replica.snapshot();
                let fingerprint = snapshot.fingerprint().map_err(|error| format!("node {id}: {error}"))?;
                states.entry(group).or_default().insert((snapshot.applied().position, fingerprint));
            }
        }
        if states.values().all(|states| states.len() == 1) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("the survivors differ (group, position, fingerprint): {states:?}"));
        }
        tokio::time::sleep(STEP).await;
    }
}

fn judge(cluster: &Cluster, survivors: &[NodeId], known: &Known, left: &Left) -> Vec<String> {
    let mut violations = Vec::new();
    let mut written = known.written.lock().clone();
    written.sort_unstable();
    // Of a client and a group, the first that was lost.
    let mut gone: BTreeMap<(u64, u32), Written> = BTreeMap::new();
    let mut lost = 0;
    for write in written {
        if write.after {
            cluster.trace.count("written after the recovery", 1);
        } else if left.has(&write) {
            cluster.trace.count("left of what was written before", 1);
        }
        let replicas = || {
            let nodes = cluster.nodes().filter(|(id, _)| survivors.contains(id));
            nodes.filter_map(|(_, node)| {
                let leads = |seen: &GroupStatus| seen.group == write.group && seen.role == Role::Leader;
                let status = node.status();
                let term = status.groups.iter().find(|seen| leads(seen)).map(|seen| seen.term)?;
                Some((term, node.replica(write.group)?))
            })
        };
        let Some((term, replica)) = replicas().next() else {
            violations.push(format!("nobody leads group {}", write.group));
            break;
        };
        let read = GroupRead::Get { tree: TREE.into(), key: write.key() };
        let found = match replica.read(&read) {
            Ok(GroupReadReply::Value(found)) => found.map(|found| found.value),
            other => {
                violations.push(format!("reading {write:?}: {other:?}"));
                break;
            }
        };
        match found {
            Some(value) if value == write.key() => {
                if let Some(earlier) = gone.get(&(write.client, write.group)).filter(|_| write.before) {
                    violations.push(format!("{earlier:?} is lost, and {write:?}, which came later, is not"));
                }
            }
            Some(value) => violations.push(format!("{write:?} has the value {value:?}")),
            None => {
                lost += 1;
                gone.entry((write.client, write.group)).or_insert(write);
                if write.after {
                    violations.push(format!("{write:?} was acknowledged after the recovery, and is lost"));
                } else if term < NEW_HISTORY {
                    violations.push(format!("{write:?} is lost, though its group was not recovered"));
                } else if left.has(&write) {
                    violations.push(format!("{write:?} is lost, and the best of those that are left had it"));
                }
            }
        }
    }
    event!(cluster.trace, "{lost} acknowledged writes are lost");
    cluster.trace.count("lost of what was written before", lost);
    if !cluster.trace.counts().contains_key("written after the recovery") {
        violations.push("no write was acknowledged after the recovery".to_owned());
    }
    violations
}

/// Those that came back are told, and know it when they are started again and hear of nobody.
async fn out_for_ever(cluster: &mut Cluster, back: &[NodeId]) -> Result<(), String> {
    let read = encode_group_read(&GroupRead::Trees).map_err(|error| error.to_string())?;
    let refuses = async |network: &SimulatedNetwork, id: NodeId| {
        let request = ClientRequest::Read {
            group: 0,
            deadline: Duration::ZERO,
            consistency: Consistency::Stale,
            read: read.clone().into(),
        };
        let reply = ask(network, 99, id, &request).await;
        match &reply {
            Some(ClientReply::Error(ClusterError::Unavailable(why))) if why.contains("taken out") => None,
            other => Some(format!("{other:?}")),
        }
    };
    for &id in back {
        let end = Instant::now() + PATIENCE;
        while let Some(said) = refuses(&cluster.network, id).await {
            if Instant::now() > end {
                return Err(format!("node {id} was given up, and serves: {said}"));
            }
            tokio::time::sleep(STEP).await;
        }
        tokio::time::sleep(STEP * 4).await;
        cluster.end(id, Death::PowerCut).await;
        for other in cluster.ids() {
            cluster.network.cut(id, other);
            cluster.network.cut(other, id);
        }
        cluster.start(id).await.map_err(|error| format!("node {id} does not start again: {error}"))?;
        for _ in 0..20 {
            if let Some(said) = refuses(&cluster.network, id).await {
                return Err(format!(
                    "node {id} was told that it is out, was started again, and serves: {said}"
                ));
            }
            tokio::time::sleep(STEP).await;
        }
        event!(cluster.trace, "node {id} is out for ever");
    }
    Ok(())
}
