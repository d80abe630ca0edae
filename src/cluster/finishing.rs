//! [`Finishing`]: what a client still has to do for transactions whose callers have been answered, and what
//! it waits for when it is closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dogsled_storage::transaction::MAX_FORGET;
use dogsled_storage::{Operation, TransactionId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::core::Core;

/// Decisions to be forgotten are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);
/// How long home is asked to forget them. If it does not hear, it finds out by itself.
const FORGET: Duration = Duration::from_secs(5);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Finishing {
    state: Arc<State>,
    /// By group: decisions that home need not remember any more.
    forget: Mutex<BTreeMap<u32, Vec<TransactionId>>>,
}

#[derive(Default)]
struct State {
    under_way: AtomicUsize,
    idle: Notify,
}

/// Something that is under way until this is dropped.
pub(super) struct UnderWay(Arc<State>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Finishing {
    pub(super) fn begin(&self) -> UnderWay {
        self.state.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(&self.state))
    }

    /// Returns when nothing is under way.
    pub(super) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.state.idle.notified());
            idle.as_mut().enable();
            if self.state.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Core {
    /// Has home forget a decision, a little later, with others.
    pub(super) fn forget(self: &Arc<Self>, home: u32, transaction: TransactionId) {
        let first = {
            let mut forget = self.finishing.forget.lock();
            let waiting = forget.entry(home).or_default();
            waiting.push(transaction);
            waiting.len() == 1
        };
        if !first {
            return;
        }
        let (core, finishing) = (Arc::clone(self), self.finishing.begin());
        tokio::spawn(async move {
            let _finishing = finishing;
            sleep(GATHER).await;
            let waiting = core.finishing.forget.lock().remove(&home).unwrap_or_default();
            for some in waiting.chunks(MAX_FORGET) {
                let forget = Operation::Forget { transactions: some.to_vec() };
                // If it fails, home's leader looks after it.
                let _ = core.operate(home, forget, Instant::now() + FORGET).await;
            }
        });
    }
}
