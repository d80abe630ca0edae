//! Gathers what is proposed to a group into batches.
//!
//! Every entry that goes its way alone wakes the core of Raft, a sync, a message to each follower,
//! their cores, their syncs, and all the way back; those that go together share that. So while a batch is on its way, what comes in waits for the next one, which begins when that
//! batch is through, or after [`LINGER`]: the busier the node, the larger the batches. When nothing is
//! on its way a proposal goes at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::group::Raft;
use crate::metrics::{GroupMetrics, Handed};
use crate::runtime;
use crate::types::{Proposal, Responder, TypeConfig};

/// The longest that a proposal waits for those before it: on a slow link there are several batches on
/// their way.
const LINGER: Duration = Duration::from_millis(10);

type Outcome = ClientWriteResult<TypeConfig>;

/// A proposal, whom to tell, and since when it waits.
type Waiting = (Proposal, oneshot::Sender<Outcome>, Instant);

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    running: bool,
}

/// See the [module](self); clones are the same.
#[derive(Clone)]
pub(crate) struct Proposals {
    queue: Arc<Mutex<Queue>>,
    metrics: Arc<GroupMetrics>,
}

impl Proposals {
    pub(crate) fn new(metrics: Arc<GroupMetrics>) -> Proposals {
        Proposals { queue: Arc::default(), metrics }
    }

    /// Has a command proposed, in the order of these calls. The outcome is dropped untold if openraft
    /// stops before it knows.
    pub(crate) fn push(&self, raft: &Arc<Raft>, proposal: Proposal) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let begin = {
            let mut queue = self.queue.lock();
            queue.waiting.push((proposal, sender, Instant::now()));
            !std::mem::replace(&mut queue.running, true)
        };
        if begin {
            let (proposals, raft) = (self.clone(), Arc::clone(raft));
            runtime::spawn(async move { proposals.run(raft).await });
        }
        receiver
    }

    async fn run(&self, raft: Arc<Raft>) {
        let mut end = End { proposals: self, done: false };
        let mut under_way = FuturesUnordered::new();
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                std::mem::swap(&mut batch, &mut queue.waiting);
                if batch.is_empty() && under_way.is_empty() {
                    queue.running = false;
                    end.done = true;
                    return;
                }
            }
            if let Some(through) = send(&raft, &mut batch, &self.metrics).await {
                under_way.push(through);
            }
            tokio::select! {
                biased;
                // It is over when the batch's last responder is gone, used or not.
                _ = under_way.next() => {}
                () = tokio::time::sleep(LINGER) => {}
            }
        }
    }
}

/// Hands a batch to openraft; what is returned ends when its last entry is through.
async fn send(
    raft: &Raft,
    batch: &mut Vec<Waiting>,
    metrics: &Arc<GroupMetrics>,
) -> Option<oneshot::Receiver<()>> {
    let (sender, through) = oneshot::channel();
    let (count, at) = (batch.len(), Instant::now());
    let mut last = Some(Handed { through: sender, metrics: Arc::clone(metrics), at, entries: count as u64 });
    for (number, (proposal, sender, since)) in batch.drain(..).enumerate() {
        metrics.queued(since, at);
        let last = if number + 1 == count { last.take() } else { None };
        // openraft merges those that follow each other. If it has stopped, the responder is dropped.
        let _ = raft.client_write_ff(proposal, Some(Responder { sender, last })).await;
    }
    (count > 0).then_some(through)
}

/// Sends what waits away if the task ends before its time.
struct End<'a> {
    proposals: &'a Proposals,
    done: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut queue = self.proposals.queue.lock();
        queue.running = false;
        for (_, sender, _) in queue.waiting.drain(..) {
            let _ = sender.send(Err(ClientWriteError::ForwardToLeader(ForwardToLeader::empty())));
        }
    }
}
