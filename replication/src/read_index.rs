//! Linearizable reads without an entry in the log: Raft's *ReadIndex*.
//!
//! A leader that wants to answer a read first asks a quorum whether it still leads, and then
//! answers with everything committed before it asked. One such round serves all reads that were
//! waiting when it began; those that come while it is under way wait for the next: their answer
//! must include what was committed after the round began. So however many read, there is one
//! round at a time for each group.
//!
//! A follower asks its leader for the index, waits until it has applied that, and reads its own
//! replica. A read that may be so and so old makes do with a round that began within that time. Leases
//! are never relied on: they trust clocks, and openraft's were seen to serve a
//! stale read after a restart.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::ClusterError;

/// What a round gives: the position that must be applied before reading.
pub(crate) type Round = Result<u64, ClusterError>;

#[derive(Default)]
struct Waiting {
    senders: Vec<oneshot::Sender<Round>>,
    under_way: bool,
}

/// Makes many reads share rounds; see the [module](self).
#[derive(Clone, Default)]
pub(crate) struct ReadRounds {
    waiting: Arc<Mutex<Waiting>>,
}

impl ReadRounds {
    /// Joins the next round. `round` asks; it is called anew for each round.
    pub(crate) async fn join<F, R>(&self, round: F) -> Round
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Round> + Send,
    {
        let (sender, receiver) = oneshot::channel();
        let begin = {
            let mut waiting = self.waiting.lock();
            waiting.senders.push(sender);
            !std::mem::replace(&mut waiting.under_way, true)
        };
        if begin {
            let rounds = self.clone();
            crate::runtime::spawn(async move { rounds.run(round).await });
        }
        receiver.await.unwrap_or_else(|_| Err(ClusterError::Unavailable("the node is stopping".to_owned())))
    }

    async fn run<F, R>(&self, round: F)
    where
        F: Fn() -> R,
        R: Future<Output = Round>,
    {
        let mut end = End { rounds: self, done: false };
        loop {
            // All that are ready to ask get to do so before the round begins.
            tokio::task::yield_now().await;
            let senders = {
                let mut waiting = self.waiting.lock();
                if waiting.senders.is_empty() {
                    waiting.under_way = false;
                    end.done = true;
                    return;
                }
                std::mem::take(&mut waiting.senders)
            };
            let outcome = round().await;
            for sender in senders {
                let _ = sender.send(outcome.clone());
            }
        }
    }
}

/// If the task is dropped or panics, the next read begins another.
struct End<'a> {
    rounds: &'a ReadRounds,
    done: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut waiting = self.rounds.waiting.lock();
            waiting.senders.clear();
            waiting.under_way = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_share_rounds_but_never_one_that_began_before_them() {
        let rounds = ReadRounds::default();
        let begun = Arc::new(AtomicU64::new(0));
        let read = || {
            let (rounds, begun) = (rounds.clone(), Arc::clone(&begun));
            tokio::spawn(async move {
                rounds
                    .join(move || {
                        let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                        async move {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            Ok(number)
                        }
                    })
                    .await
            })
        };
        let first: Vec<_> = (0..100).map(|_| read()).collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let second: Vec<_> = (0..100).map(|_| read()).collect();
        for one in first {
            assert_eq!(one.await.unwrap(), Ok(1));
        }
        for one in second {
            assert_eq!(one.await.unwrap(), Ok(2));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(read().await.unwrap(), Ok(3));
    }
}
