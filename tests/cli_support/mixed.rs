//! Traffic of many kinds, each with something that must hold whatever happens to the nodes meanwhile: money that is
//! moved between accounts in transactions over partitions, a register that is only written under a lock, keys that
//! come and go, and watchers of keys ([`super::followed`]).
//!
//! Calls may fail, as all of them have a deadline. What must not happen is that one which failed definitely was
//! carried out, that one which succeeded was not, or that anybody sees a transaction half done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dogsled::cluster::transaction::{TransactionError, TransactionResult};
use dogsled::cluster::{Client, Error};
use tokio::task::JoinHandle;

use super::followed::Followed;

/// Accounts, and what is on each at first.
const ACCOUNTS: u64 = 24;
const AMOUNT: u64 = 100;
const LEASE: Duration = Duration::from_secs(5);
const REGISTER: &str = "{register}";
/// Keys that a worker has at a time.
const KEYS: u64 = 50;

/// What came of a worker's calls.
#[derive(Default, Debug)]
struct Done {
    carried_out: u64,
    perhaps: u64,
    refused: u64,
}

impl Done {
    /// Whether it was certainly carried out.
    fn heard(&mut self, outcome: Result<(), Error>) -> bool {
        let was_carried_out = outcome.is_ok();
        match outcome {
            Ok(()) => self.carried_out += 1,
            Err(error) if error.is_definite() => self.refused += 1,
            Err(_) => self.perhaps += 1,
        }
        was_carried_out
    }
}

/// See the [module](self).
pub(crate) struct Mixed {
    client: Client,
    stop: Arc<AtomicBool>,
    /// Calls that were carried out.
    progress: Arc<AtomicU64>,
    transfers: Vec<JoinHandle<Done>>,
    locked: Vec<JoinHandle<Done>>,
    churn: Vec<JoinHandle<Done>>,
    audit: JoinHandle<Done>,
    followed: Followed,
}

fn number(value: Option<&dogsled::IVec>) -> u64 {
    value.map_or(0, |bytes| std::str::from_utf8(bytes).expect("text").parse().expect("a number"))
}

fn account(number: u64) -> String {
    format!("account {}", number % ACCOUNTS)
}

fn accounts() -> Vec<String> {
    (0..ACCOUNTS).map(account).collect()
}

/// Of a transaction that nobody aborts.
fn outcome(outcome: TransactionResult<()>) -> Result<(), Error> {
    outcome.map_err(|error| match error {
        TransactionError::Cluster(error) => error,
        TransactionError::OutcomeUnknown { why, .. } => Error::OutcomeUnknown(why),
        TransactionError::Conflict { .. } => Error::Conflict("others were always quicker".to_owned()),
        other => panic!("{other:?}"),
    })
}

impl Mixed {
    /// Each of the workers pauses so long between its calls. The watchers are clients of their own.
    pub(crate) async fn start(client: &Client, watchers: [Client; 2], pause: Duration) -> Mixed {
        let tree = client.tree("accounts");
        for account in accounts() {
            tree.insert(account, AMOUNT.to_string()).await.expect("all nodes are well at first");
        }
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let followed = Followed::start(client, watchers, &stop, &progress, pause).await;
        let shared = || Shared {
            client: client.clone(),
            stop: Arc::clone(&stop),
            progress: Arc::clone(&progress),
            pause,
        };
        let transfers = (0..3).map(|worker| tokio::spawn(transfer(shared(), worker))).collect();
        let locked = (0..2).map(|_| tokio::spawn(write_under_lock(shared()))).collect();
        let churn = (0..2).map(|worker| tokio::spawn(come_and_go(shared(), worker))).collect();
        let audit = tokio::spawn(audit(shared()));
        Mixed { client: client.clone(), stop, progress, transfers, locked, churn, audit, followed }
    }

    pub(crate) fn carried_out(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Ends it, and looks whether everything is as it must be. How many calls were carried out, and refused, and of
    /// how many events watchers were told.
    pub(crate) async fn stop(self) -> (u64, u64, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Done::default();
        // Of each kind something must have been done, or it shows nothing.
        for (kind, workers) in
            [("transfers", self.transfers), ("churn", self.churn), ("audits", vec![self.audit])]
        {
            let before = all.carried_out;
            for worker in workers {
                let done = worker.await.expect("nothing was seen that must not be");
                all.carried_out += done.carried_out;
                all.refused += done.refused;
            }
            assert!(all.carried_out > before, "no {kind}: {all:?}");
        }
        let mut locked = Done::default();
        for worker in self.locked {
            let done = worker.await.expect("nothing was seen that must not be");
            locked.carried_out += done.carried_out;
            locked.perhaps += done.perhaps;
        }
        assert!(locked.carried_out > 0, "nothing was written under a lock: {locked:?}");
        let stands = self.client.tree("register").get(REGISTER).await.expect("all nodes are well again");
        let stands = number(stands.as_ref());
        assert!(
            (locked.carried_out..=locked.carried_out + locked.perhaps).contains(&stands),
            "the register stands at {stands}, and was written {locked:?}"
        );
        let values =
            self.client.tree("accounts").get_many(accounts()).await.expect("all nodes are well again");
        assert_eq!(values.iter().map(|value| number(value.as_ref())).sum::<u64>(), ACCOUNTS * AMOUNT);
        let events = self.followed.stop().await;
        (all.carried_out + locked.carried_out, all.refused, events)
    }
}

/// What every worker has.
struct Shared {
    client: Client,
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    pause: Duration,
}

impl Shared {
    /// Whether the worker is to make another call, when it has paused.
    async fn goes_on(&self) -> bool {
        tokio::time::sleep(self.pause).await;
        !self.stop.load(Ordering::Relaxed)
    }

    fn progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// Moves money, over partitions.
async fn transfer(shared: Shared, worker: u64) -> Done {
    let (tree, mut done) = (shared.client.tree("accounts"), Done::default());
    for round in 0_u64.. {
        if !shared.goes_on().await {
            break;
        }
        let (from, to) = (account(round * 5 + worker), account(round * 11 + worker * 3 + 1));
        if from == to {
            continue;
        }
        let (tree, from, to) = (&tree, &from, &to);
        let moved = shared.client.transaction(|tx| async move {
            let (has, gets) = (tx.get(tree, from).await?, tx.get(tree, to).await?);
            let (has, gets) = (number(has.as_ref()), number(gets.as_ref()));
            let amount = has.min(1 + round % 7);
            tx.put(tree, from, (has - amount).to_string())?;
            tx.put(tree, to, (gets + amount).to_string())?;
            Ok(())
        });
        if done.heard(outcome(moved.await)) {
            shared.progress();
        }
    }
    done
}

/// Adds up all accounts, in one transaction: it must never see money that is under way.
async fn audit(shared: Shared) -> Done {
    let (tree, mut done) = (shared.client.tree("accounts"), Done::default());
    while shared.goes_on().await {
        let tree = &tree;
        let sum: TransactionResult<u64> = shared
            .client
            .transaction(|tx| async move {
                let values = tx.get_many(tree, accounts()).await?;
                Ok(values.iter().map(|value| number(value.as_ref())).sum())
            })
            .await;
        if let Ok(sum) = &sum {
            assert_eq!(*sum, ACCOUNTS * AMOUNT, "a transaction was seen half done");
        }
        if done.heard(outcome(sum.map(drop))) {
            shared.progress();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done
}

/// Reads and writes a register, not atomically, but under a lock.
async fn write_under_lock(shared: Shared) -> Done {
    let (tree, mut done) = (shared.client.tree("register"), Done::default());
    while shared.goes_on().await {
        let guard = match shared.client.lock(REGISTER).acquire(LEASE).await {
            Ok(guard) => guard,
            Err(_) => continue,
        };
        if let Ok(stands) = tree.get(REGISTER).await {
            let next = number(stands.as_ref()) + 1;
            let written = tree.under(&guard).put(REGISTER, next.to_string()).await;
            if done.heard(written) {
                shared.progress();
            }
        }
        // If that is not heard, the lease ends.
        let _ = guard.release().await;
    }
    done
}

/// Puts keys, reads them, and removes them again.
async fn come_and_go(shared: Shared, worker: u64) -> Done {
    let (tree, mut done) = (shared.client.tree("churn"), Done::default());
    // Something may still happen to these that nobody has heard the outcome of.
    let mut uncertain = BTreeSet::new();
    for round in 0_u64.. {
        if !shared.goes_on().await {
            break;
        }
        let (key, value) = (format!("{worker}/{}", round % KEYS), format!("{round}"));
        let removes = round % 3 == 0;
        let written = match removes {
            true => tree.remove(&key).await.map(drop),
            false => tree.put(&key, &value[..]).await,
        };
        if written.as_ref().is_err_and(|error| !error.is_definite()) {
            uncertain.insert(key.clone());
        }
        if !done.heard(written) {
            continue;
        }
        shared.progress();
        let expected = (!removes).then_some(value.as_bytes());
        if let (false, Ok(found)) = (uncertain.contains(&key), tree.get(&key).await) {
            assert_eq!(found.as_deref(), expected, "{key}, which nobody else writes");
        }
    }
    done
}
