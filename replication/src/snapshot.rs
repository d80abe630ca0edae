//! Snapshots on their way to a follower.

use std::future::Future;
use std::io;
use std::sync::Arc;

use dogsled_storage::replica::{Applied, Replica};
use openraft::OptionalSend;
use openraft::errors::{ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;

use crate::network::Network;
use crate::state_machine::{Machine, ReplicaSlot};
use crate::transport::NodeId;
use crate::types::{SnapshotOf, TypeConfig, Vote};

pub(crate) struct SnapshotData {
    applied: Applied,
}

impl SnapshotData {
    pub(crate) fn of(replica: &Replica) -> SnapshotData {
        SnapshotData { applied: replica.applied() }
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(crate) async fn install(self, _slot: &Arc<ReplicaSlot>) -> io::Result<()> {
        Err(io::Error::other("not yet"))
    }
}

pub(crate) struct SnapshotSender;

impl SnapshotSender {
    pub(crate) fn new(_: Option<u64>) -> SnapshotSender {
        SnapshotSender
    }

    pub(crate) fn oldest_under_way(&self, _: u32) -> Option<u64> {
        None
    }

    pub(crate) fn receive(
        &self,
        _: &Arc<crate::group::Group>,
        _: Arc<crate::group::Raft>,
        _: crate::message::Header,
        _: crate::codec::Take,
    ) -> Result<futures_util::future::BoxFuture<'static, bytes::Bytes>, crate::message::PeerError> {
        Err(crate::message::PeerError::Failed("not yet".to_owned()))
    }

    pub(crate) async fn send(
        &self,
        _network: &Network,
        _to: NodeId,
        _vote: Vote,
        _snapshot: SnapshotOf<Machine>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(Unreachable::from_string("not yet")))
    }
}
