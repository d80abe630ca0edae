//! Snapshots on their way to a follower that needs entries which are no longer in the log.
//!
//! # What is sent
//!
//! A handle on the leader's replica as it is ([`ReplicaSnapshot`]): it costs nothing to take, and
//! nothing is copied but the pieces that are on their way. Position and note name it.
//!
//! # Protocol
//!
//! ```text
//! leader                                  follower
//! begin(name)                    ─►       keeps what it has of that name, or begins anew
//!                                ◄─       the place from where on it wants it
//! piece, piece, piece …          ─►       checks and writes each, in order
//!                                ◄─       for each: the place it wants next
//! finish(name)                   ─►       openraft's leave, then one rename
//!                                ◄─       its vote
//! ```
//!
//! A few pieces are on their way at a time ([`WINDOW`]), so that reading, the link and writing overlap;
//! if one is lost, those behind it are refused with the place that is wanted, and the leader goes on
//! from there. A transfer that broke off altogether is begun again by openraft, with the same handle,
//! which is kept for [`KEEP`]; then it goes on where it was.
//!
//! Pieces are the last in line for the link ([`Lane::Bulk`]), and all transfers of a node together
//! keep to one [`Pace`](crate::pace::Pace): no more than [`NodeConfig::snapshot_bytes_per_second`](crate::NodeConfig),
//! and less if those who write meanwhile would notice.
//!
//! # Meanwhile
//!
//! The log behind the snapshot's position is needed when it has arrived: it is not purged as long as
//! the handle is kept (see the node's maintenance).

// The error is openraft's.
#![allow(clippy::result_large_err)]

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::Error;
use dogsled_storage::replica::{Applied, Replica};
use dogsled_storage::{ChunkPosition, ReplicaInstaller, ReplicaSnapshot};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::OptionalSend;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::blocking::Blocking;
use crate::codec::{Put, Take};
use crate::durability::to_io;
use crate::group::{Group, Raft};
use crate::log_store::SharedLog;
use crate::message::{
    Header, Kind, PeerError, SnapshotName, check_sender, encode_error, encode_installed, ok, take_reply,
};
use crate::network::Network;
use crate::state_machine::{Machine, ReplicaSlot, snapshot_meta};
use crate::transport::{Lane, NodeId, TransportError};
use crate::types::{SnapshotOf, TypeConfig, Vote, take_vote};

/// About the bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces on their way.
const WINDOW: usize = 16;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a handle is kept after it was last used.
pub(crate) const KEEP: Duration = Duration::from_secs(30);
/// Refusals after which a transfer is given up.
const MAX_REFUSALS: u32 = 8;

/// A snapshot as openraft passes it around.
pub(crate) enum SnapshotData {
    /// Of this node's replica, to be sent.
    Held(ReplicaSnapshot),
    /// Of another's, received whole, to be installed.
    Received(Box<ReplicaInstaller>),
}

impl SnapshotData {
    /// Puts what was received in the place of the slot's replica.
    pub(crate) async fn install(self, slot: &Arc<ReplicaSlot>) -> io::Result<()> {
        let SnapshotData::Received(mut installer) = self else {
            return Err(io::Error::other("a snapshot of this node's own is not to be installed"));
        };
        // From here on reads are refused; those under way end soon.
        if let Some(replica) = slot.take() {
            // It waits for a checkpoint that is under way.
            slot.blocking.run(move || replica.close()).await?.map_err(to_io)?;
        }
        let (began, place) = (Instant::now(), Arc::clone(slot));
        let opened = loop {
            let slot = Arc::clone(slot);
            let attempt = slot.blocking.run({
                let slot = Arc::clone(&slot);
                move || {
                    // Before what is in its place: a log that ends, after a power cut, with what was to be cut off would
                    // be behind the state, and of another history.
                    if let Err(error) = slot.wal.sync() {
                        return (installer, Err(error));
                    }
                    let finished = installer.finish();
                    let opened =
                        finished.and_then(|_| Replica::open(slot.options.clone(), Arc::clone(&slot.wal)));
                    (installer, opened)
                }
            });
            let (back, opened) = attempt.await?;
            installer = back;
            match opened {
                // A node that stops does not wait for reads that are under way: the leader sends it again.
                Err(Error::InUse(_)) if began.elapsed() < DEADLINE && !place.is_to_end() => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                other => break other,
            }
        };
        slot.replace(opened.map_err(to_io)?);
        Ok(())
    }
}

/// One that is being received.
struct Transfer {
    name: SnapshotName,
    /// `None` once it was handed over. Whoever writes the next piece holds it; it is fair, so pieces
    /// are written in the order of arrival.
    installer: tokio::sync::Mutex<Option<ReplicaInstaller>>,
    /// When a piece of it came last.
    used: Mutex<Instant>,
}

/// A node's snapshots, in both directions; see the [module](self).
pub(crate) struct Snapshots {
    /// Whose pace pieces are sent at.
    shared_log: Arc<SharedLog>,
    blocking: Blocking,
    receiving: Mutex<HashMap<u32, Arc<Transfer>>>,
}

type Sent = Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

impl Snapshots {
    pub(crate) fn new(shared_log: Arc<SharedLog>, blocking: Blocking) -> Snapshots {
        Snapshots { shared_log, blocking, receiving: Mutex::default() }
    }

    /// What is there of a snapshot that is being received for a group is not needed any more.
    pub(crate) fn forget(&self, group: u32) {
        drop(self.receiving.lock().remove(&group));
    }

    /// As [`Snapshots::forget`], of all groups that are not among these.
    pub(crate) fn forget_all_but(&self, is_among: impl Fn(u32) -> bool) {
        self.receiving.lock().retain(|group, _| is_among(*group));
    }

    /// Gives up transfers of which nothing has come for a while, though the group has come as far by other means: what is
    /// there of a snapshot takes as much of the disk as a replica. One that only comes slowly goes on.
    pub(crate) async fn give_up_stale(&self, applied: impl Fn(u32) -> u64) {
        let mut stale = Vec::new();
        self.receiving.lock().retain(|group, transfer| {
            let is_stale =
                transfer.used.lock().elapsed() > KEEP + DEADLINE && applied(*group) >= transfer.name.position;
            if is_stale {
                stale.push(Arc::clone(transfer));
            }
            !is_stale
        });
        for transfer in stale {
            // Unless a piece is being written, after all; then the next one begins anew, and makes room for that.
            let Some(installer) = transfer.installer.try_lock().ok().and_then(|mut guard| guard.take())
            else {
                continue;
            };
            tracing::info!(position = transfer.name.position, "a snapshot that stopped coming was given up");
            // What cannot be removed is when the next one begins, or the replica is opened.
            let _ = self.blocking.run(move || installer.abandon()).await;
        }
    }

    /// Sends a snapshot to a follower, and returns when it has installed it.
    pub(crate) async fn send(
        &self,
        network: &Network,
        to: NodeId,
        vote: Vote,
        snapshot: SnapshotOf<Machine>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
    ) -> Sent {
        let SnapshotData::Held(snapshot) = snapshot.snapshot else {
            return Err(unreachable(&io::Error::other("a snapshot that was received is not to be sent")));
        };
        let applied = snapshot.applied();
        let name = SnapshotName { vote, position: applied.position, note: applied.note.clone().into() };
        tracing::info!(group = network.group, to = to.0, position = name.position, "sending a snapshot");
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_all(network, to, &name, snapshot) => sent,
        }
    }

    async fn send_all(
        &self,
        network: &Network,
        to: NodeId,
        name: &SnapshotName,
        snapshot: ReplicaSnapshot,
    ) -> Sent {
        let ask = |kind: Kind| {
            let body = name.encode(kind, network.cluster, network.group, 0);
            network.transport.request(to, Lane::Bulk, body.into(), DEADLINE)
        };
        let answer = |reply| take_answer(network, to, reply);
        let mut wanted = take_place(answer(ask(Kind::SnapshotBegin).await)?)?;
        // From here on: one who does not answer keeps nothing here.
        let _sending = network.slot.send_held(&snapshot);
        let mut refusals = 0;
        // What the follower should want after each piece on its way, and its answer to come.
        let mut under_way: VecDeque<(ChunkPosition, BoxFuture<'static, _>)> = VecDeque::new();
        loop {
            while under_way.len() < WINDOW && !wanted.is_end() {
                let (handle, from) = (snapshot.clone(), wanted);
                let chunk = self.blocking.run(move || handle.chunk(&from, PIECE_BYTES)).await;
                let chunk = match chunk {
                    Ok(Ok(chunk)) => chunk,
                    // The follower wants what this snapshot does not have: it must begin anew.
                    Ok(Err(error)) => return Err(unreachable(&error)),
                    Err(error) => return Err(unreachable(&error)),
                };
                self.shared_log.may_copy(chunk.bytes.len()).await;
                let mut body =
                    name.encode(Kind::SnapshotPiece, network.cluster, network.group, 4 + chunk.bytes.len());
                body.put_bytes(&chunk.bytes);
                let request = network.transport.request(to, Lane::Bulk, body.into(), DEADLINE);
                under_way.push_back((chunk.next.clone(), request));
                wanted = chunk.next;
            }
            let Some((expected, request)) = under_way.pop_front() else { break };
            let place = take_place(answer(request.await)?)?;
            if place != expected {
                refusals += 1;
                if refusals > MAX_REFUSALS {
                    return Err(unreachable(&io::Error::other("the follower refuses the pieces")));
                }
                // Those behind it are refused alike: wait them out, then go on from there.
                for (_, request) in under_way.drain(..) {
                    let _ = request.await;
                }
                wanted = place;
            }
        }
        let mut take = answer(ask(Kind::SnapshotFinish).await)?;
        let vote = take_vote(&mut take).map_err(|error| unreachable(&error))?;
        Ok(SnapshotResponse::new(vote))
    }

    /// Answers a request about a snapshot that this node is to receive.
    pub(crate) fn receive(
        self: &Arc<Self>,
        group: &Arc<Group>,
        raft: Arc<Raft>,
        from: NodeId,
        header: Header,
        mut take: Take,
    ) -> Result<BoxFuture<'static, Bytes>, PeerError> {
        let malformed = |error: crate::codec::Malformed| PeerError::Malformed(error.to_string());
        let name = SnapshotName::take(&mut take).map_err(malformed)?;
        check_sender(from, &name.vote)?;
        let (snapshots, group) = (Arc::clone(self), Arc::clone(group));
        Ok(match header.kind {
            Kind::SnapshotBegin => {
                take.end().map_err(malformed)?;
                async move { answered(snapshots.begin(&group, name).await) }.boxed()
            }
            Kind::SnapshotPiece => {
                let bytes = take.bytes().map_err(malformed)?;
                take.end().map_err(malformed)?;
                let transfer = self.transfer(group.id, &name)?;
                async move { answered(snapshots.piece(transfer, bytes).await) }.boxed()
            }
            _ => {
                take.end().map_err(malformed)?;
                let transfer = self.transfer(group.id, &name)?;
                async move { answered(snapshots.finish(&group, &raft, transfer).await) }.boxed()
            }
        })
    }

    fn transfer(&self, group: u32, name: &SnapshotName) -> Result<Arc<Transfer>, PeerError> {
        let receiving = self.receiving.lock();
        match receiving.get(&group).filter(|transfer| transfer.name == *name) {
            Some(transfer) => Ok(Arc::clone(transfer)),
            None => Err(PeerError::NoGroup("this snapshot was not begun".to_owned())),
        }
    }

    async fn begin(&self, group: &Arc<Group>, name: SnapshotName) -> Result<Bytes, PeerError> {
        if let Ok(transfer) = self.transfer(group.id, &name)
            && let Some(installer) = &*transfer.installer.lock().await
        {
            return Ok(place_answer(installer.position()));
        }
        // Dropping what there is of another makes room for this one.
        drop(self.receiving.lock().remove(&group.id));
        let options = group.slot.options.clone();
        let installer = self.blocking.run(move || ReplicaInstaller::begin(&options)).await;
        let installer = installer.map_err(failed)?.map_err(failed)?;
        let place = place_answer(installer.position());
        let installer = tokio::sync::Mutex::new(Some(installer));
        let transfer = Transfer { name, installer, used: Mutex::new(Instant::now()) };
        self.receiving.lock().insert(group.id, Arc::new(transfer));
        Ok(place)
    }

    async fn piece(&self, transfer: Arc<Transfer>, bytes: Bytes) -> Result<Bytes, PeerError> {
        *transfer.used.lock() = Instant::now();
        let mut guard = transfer.installer.lock().await;
        let Some(mut installer) = guard.take() else {
            return Err(PeerError::NoGroup("this snapshot has failed, or is complete".to_owned()));
        };
        let written = self.blocking.run(move || {
            let written = installer.chunk(&bytes);
            (installer, written)
        });
        let (installer, written) = written.await.map_err(failed)?;
        match written {
            Ok(()) => {}
            // Not the piece that is wanted: say which.
            Err(Error::InvalidRequest(why)) if !installer.has_failed() => {
                tracing::debug!(why, "a piece of a snapshot was refused");
            }
            // It is not to be gone on with: whoever begins again, begins at the beginning.
            Err(error) => {
                // What is there of it may be what fills the disk. What cannot be removed is when the next one begins.
                let _ = self.blocking.run(move || installer.abandon()).await;
                return Err(failed(error));
            }
        }
        let place = place_answer(installer.position());
        *guard = Some(installer);
        Ok(place)
    }

    async fn finish(
        &self,
        group: &Arc<Group>,
        raft: &Raft,
        transfer: Arc<Transfer>,
    ) -> Result<Bytes, PeerError> {
        let name = transfer.name.clone();
        let applied = Applied { position: name.position, note: name.note.to_vec() };
        let meta = snapshot_meta(&applied).map_err(failed)?;
        check_installable(raft, &name, &meta.last_log_id)?;
        let installer = {
            let mut guard = transfer.installer.lock().await;
            let complete = |installer: &mut ReplicaInstaller| {
                installer.is_complete() && installer.applied().as_ref() == Some(&applied)
            };
            guard.take_if(complete).ok_or_else(|| failed("the snapshot is not complete"))?
        };
        self.receiving.lock().remove(&group.id);
        let data = SnapshotData::Received(Box::new(installer));
        let response = raft.install_full_snapshot(name.vote, Snapshot { meta, snapshot: data }).await;
        let response = response.map_err(failed)?;
        tracing::info!(group = group.id, position = name.position, "a snapshot was received");
        Ok(encode_installed(&response.vote))
    }
}

/// What openraft asserts of a snapshot, so that no peer can stop this node.
fn check_installable(
    raft: &Raft,
    name: &SnapshotName,
    last: &Option<crate::types::LogId>,
) -> Result<(), PeerError> {
    let Some(last) = last else { return Err(PeerError::Malformed("a snapshot of nothing".to_owned())) };
    if !name.vote.committed || last.leader_id > name.vote.leader_id {
        return Err(PeerError::Malformed(
            "a snapshot of a later leader than the one who sends it".to_owned(),
        ));
    }
    let metrics = raft.data_metrics();
    let committed = metrics.borrow_watched().local_committed;
    if committed.is_some_and(|committed| *last > committed && last.index <= committed.index) {
        return Err(PeerError::Malformed("a snapshot that contradicts what is committed".to_owned()));
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> PeerError {
    PeerError::Failed(error.to_string())
}

fn answered(answer: Result<Bytes, PeerError>) -> Bytes {
    answer.unwrap_or_else(|error| encode_error(&error))
}

fn place_answer(place: &ChunkPosition) -> Bytes {
    let place = place.encode();
    let mut bytes = ok(4 + place.len());
    bytes.put_bytes(&place);
    bytes.into()
}

fn take_place(mut take: Take) -> Result<ChunkPosition, StreamingError<TypeConfig>> {
    let bytes = take.bytes().map_err(|error| unreachable(&error))?;
    take.end().map_err(|error| unreachable(&error))?;
    ChunkPosition::decode(&bytes).map_err(|error| unreachable(&error))
}

/// openraft waits before it tries again.
fn unreachable<E: std::error::Error + 'static>(error: &E) -> StreamingError<TypeConfig> {
    StreamingError::Unreachable(Unreachable::new(error))
}

fn take_answer(
    network: &Network,
    to: NodeId,
    reply: Result<Bytes, TransportError>,
) -> Result<Take, StreamingError<TypeConfig>> {
    match reply {
        Ok(reply) => take_reply(reply).map_err(|error| unreachable(&error)),
        Err(TransportError::TimedOut) => Err(StreamingError::Timeout(Timeout {
            action: RPCTypes::InstallSnapshot,
            id: network.node.0,
            target: to.0,
            timeout: DEADLINE,
        })),
        Err(error @ TransportError::Lost(_)) => Err(StreamingError::Network(NetworkError::new(&error))),
        Err(error) => Err(unreachable(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_that_is_wanted_keeps_its_bytes() {
        let bytes = place_answer(&ChunkPosition::default());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // What a place is in bytes is storage's.
        let place: String =
            ChunkPosition::default().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((hex, &place[..]), (format!("010004000000{place}"), "01000000"));
        assert_eq!(take_place(take_reply(bytes).unwrap()).unwrap(), ChunkPosition::default());
    }
}
