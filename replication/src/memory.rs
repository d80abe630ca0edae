//! A network within a process, for tests, demonstrations and measurements without sockets.
//!
//! Requests arrive at once and in order. Ways between nodes can be cut, each direction by itself: a
//! request over a cut is refused, an answer over a cut is lost.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::transport::{Lane, NodeId, Service, Transport, TransportError};

#[derive(Default)]
struct State {
    services: HashMap<NodeId, Arc<dyn Service>>,
    cuts: HashSet<(NodeId, NodeId)>,
}

/// See the [module](self); clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

impl MemoryNetwork {
    /// What a node is to be started with.
    pub fn transport(&self, from: NodeId) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport { from, network: self.clone() })
    }

    /// From now on the node's requests are answered by this.
    pub fn attach(&self, node: NodeId, service: Arc<dyn Service>) {
        self.state.lock().services.insert(node, service);
    }

    /// From now on the node cannot be reached.
    pub fn detach(&self, node: NodeId) {
        self.state.lock().services.remove(&node);
    }

    /// Nothing gets from one node to the other.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state.lock().cuts.insert((from, to));
    }

    /// Nothing gets to or from a node.
    pub fn isolate(&self, node: NodeId) {
        let mut state = self.state.lock();
        let others: Vec<NodeId> = state.services.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            state.cuts.insert((node, other));
            state.cuts.insert((other, node));
        }
    }

    /// All cuts are mended.
    pub fn heal(&self) {
        self.state.lock().cuts.clear();
    }

    fn service(&self, from: NodeId, to: NodeId) -> Option<Arc<dyn Service>> {
        let state = self.state.lock();
        state.services.get(&to).filter(|_| !state.cuts.contains(&(from, to))).cloned()
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        let state = self.state.lock();
        state.cuts.contains(&(from, to)) || !state.services.contains_key(&from)
    }
}

struct MemoryTransport {
    from: NodeId,
    network: MemoryNetwork,
}

impl Transport for MemoryTransport {
    fn request(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (from, network) = (self.from, self.network.clone());
        let Some(service) = network.service(from, to) else {
            let error = TransportError::Unreachable(format!("there is no way to node {to}"));
            return std::future::ready(Err(error)).boxed();
        };
        let (sender, receiver) = oneshot::channel();
        let answer = service.peer_request(from, lane, body);
        // The request goes on even if nobody waits for the answer any more.
        tokio::spawn(async move {
            let reply = answer.await;
            if !network.is_cut(to, from) {
                let _ = sender.send(reply);
            }
        });
        async move {
            match tokio::time::timeout(deadline, receiver).await {
                Err(_) => Err(TransportError::TimedOut),
                Ok(Err(_)) => Err(TransportError::Lost("the way back was cut".to_owned())),
                Ok(Ok(reply)) => Ok(reply),
            }
        }
        .boxed()
    }

    fn set_addresses(&self, _: NodeId, _: Vec<String>) {}
}
