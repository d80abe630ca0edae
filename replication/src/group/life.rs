//! How a group is opened, kept running, and closed.
//!
//! A group is opened once and then supervised. openraft stops for good at the first error of its
//! storage, which is right: what a full disk or a failed checkpoint leaves is known only after
//! opening anew. So when it stops, the supervisor waits, opens the replica again in its last durable
//! state, and starts openraft over it and the log, which goes on from there. Meanwhile the group has
//! no leader here: the others elect one, and requests are told to go there. So it is, too, with a
//! replica whose files cannot be read when the node starts. Only a WAL that has
//! failed is beyond that; then the whole node is down until it is restarted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogsled_storage::Error;
use openraft::async_runtime::WatchReceiver;

use super::{Group, Raft};
use crate::runtime::watch;
use crate::state_machine::Machine;
use crate::transport::NodeId;
use crate::types::Vote;

/// The waits before a group that failed is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

impl Group {
    /// Lets a replica that has got what it has to have be elected; see [`crate::node::hosting`].
    pub(crate) fn let_elect(&self) {
        if let Some(raft) = self.raft()
            && self.log.may_vote()
        {
            raft.runtime_config().elect(true);
            // It may have been told meanwhile that it lacks something.
            self.let_elect_no_more(&raft);
        }
    }

    /// Whoever does not have what it has to have stands for no election.
    fn let_elect_no_more(&self, raft: &Raft) {
        if !self.log.may_vote() {
            raft.runtime_config().elect(false);
        }
    }

    /// A leader says that this node lacks what it had acknowledged to it, up to `position`.
    pub(crate) async fn forgotten(&self, leader: NodeId, position: u64) -> io::Result<()> {
        let is_news = self.log.has_to_reach(position).await?;
        // One that is only being started looks when it has been.
        if let Some(raft) = self.raft() {
            self.let_elect_no_more(&raft);
        }
        if !is_news {
            return Ok(());
        }
        let why = format!(
            "the log ends before entry {position}, which this node had acknowledged to node {leader}: its directory is an older copy \
             of itself, or its disk lost what was synced; it does not vote before it has everything again"
        );
        tracing::error!(group = self.id, why, "what was acknowledged is lost");
        self.shared_log.metrics.lost_what_was_acknowledged();
        *self.lacking.lock() = Some((position, why));
        Ok(())
    }

    /// What was acknowledged and is lost, while that is so.
    pub(super) fn lacking(&self) -> Option<String> {
        let mut lacking = self.lacking.lock();
        lacking.take_if(|(position, _)| self.log.bounds().1 >= *position);
        lacking.as_ref().map(|(_, why)| why.clone())
    }

    async fn start(&self) -> Result<(), String> {
        self.alone.forget();
        // What openraft finds here it takes for durable, and says so to the leader that sends it again. In a process that
        // has closed the group, or lost its replica, the last entries may be on their way to the disk still, or nobody may
        // have waited for them.
        let wal = Arc::clone(&self.slot.wal);
        let synced = self.slot.blocking.run(move || wal.sync()).await.map_err(|error| error.to_string())?;
        synced.map_err(|error| error.to_string())?;
        self.bridge_a_gap().await?;
        let machine = Machine::new(Arc::clone(&self.slot)).map_err(|error| error.to_string())?;
        // Before it has what it has to have it does not ask for votes either. Openraft elects whoever is the only voter of
        // the newest membership that it has, at once: one that gets its log again may come past such a membership.
        let config = match self.log.may_vote() {
            true => Arc::clone(&self.config),
            false => Arc::new(openraft::Config { enable_elect: false, ..(*self.config).clone() }),
        };
        let raft = Raft::new(self.network.node.0, config, self.network.clone(), self.log.clone(), machine);
        let raft = raft.await.map_err(|error| error.to_string())?;
        let raft = Arc::new(raft);
        self.raft.store(Some(Arc::clone(&raft)));
        // What it has to have may have become more while it was started, which takes as long as to apply what is committed.
        self.let_elect_no_more(&raft);
        *self.failure.lock() = None;
        Ok(())
    }

    /// Starts openraft and keeps it running until the group is [closed](Group::close). `changed` is
    /// called when who leads, or who belongs to the group, has changed.
    pub(crate) async fn supervise(self: Arc<Self>, changed: impl Fn(&Group) + Send + Sync + 'static) {
        let mut stop = self.closing.subscribe();
        let mut wait = REOPEN.0;
        // One that could not be opened before is tried again now.
        let mut first = self.slot.replica().is_some();
        loop {
            let started = if std::mem::take(&mut first) { Ok(()) } else { self.reopen().await };
            let started = match started {
                Ok(()) => self.start().await,
                Err(error) => Err(error),
            };
            if let Err(error) = started {
                tracing::error!(group = self.id, %error, "a group could not be opened");
                *self.failure.lock() = Some(error);
            } else if self.watch_over(&mut stop, &changed, &mut wait).await {
                return;
            }
            changed(&self);
            if let Some(error) = self.shared_log.wal.poisoned() {
                *self.failure.lock() = Some(error.to_string());
                tracing::error!(group = self.id, %error, "the WAL failed: restart the node");
                return;
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.again.notified() => {}
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(REOPEN.1),
            }
        }
    }

    /// Ends openraft, and returns when it has ended.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task {
            // One that panicked has ended, too.
            let _ = task.await;
        }
    }

    /// Returns when openraft has ended: whether because it was told to.
    async fn watch_over(
        &self,
        stop: &mut watch::Receiver<bool>,
        changed: &(impl Fn(&Group) + Send + Sync),
        wait: &mut Duration,
    ) -> bool {
        let Some(raft) = self.raft() else { return false };
        let began = tokio::time::Instant::now();
        let mut metrics = raft.server_metrics();
        loop {
            changed(self);
            let alive = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => None,
                alive = metrics.changed() => Some(alive.is_ok()),
            };
            match alive {
                Some(true) => continue,
                Some(false) => break,
                None => {
                    self.raft.store(None);
                    // It only fails if openraft panicked, and then it has ended as well.
                    let _ = raft.shutdown().await;
                    self.slot.until_machine_ended().await;
                    return true;
                }
            }
        }
        self.raft.store(None);
        let state = raft.metrics().borrow_watched().running_state.clone();
        let why = state.err().map_or_else(|| "it stopped".to_owned(), |fatal| fatal.to_string());
        tracing::error!(group = self.id, why, "a group stopped; it will be opened again");
        *self.failure.lock() = Some(why);
        let _ = raft.shutdown().await;
        self.slot.until_machine_ended().await;
        if began.elapsed() > REOPEN.1 * 4 {
            *wait = REOPEN.0;
        }
        false
    }

    /// The log may begin behind what is applied, if the files of a replica are gone: then what is between can only come
    /// from others, and the entries here are of no use. They go when a leader has been heard of, who has everything
    /// that was committed: without one they may be all that is left.
    async fn bridge_a_gap(&self) -> Result<(), String> {
        let applied = self.slot.replica().map_or(0, |replica| replica.applied().position);
        let purged = self.log.purged();
        if applied >= purged {
            return Ok(());
        }
        if !self.may_begin_anew.swap(false, Ordering::SeqCst) {
            return Err(format!(
                "what was applied is gone (entries up to {purged}, which the log does not have any more; here are {applied}): it comes from \
                 the other members as soon as one of them leads"
            ));
        }
        tracing::warn!(
            group = self.id,
            purged,
            applied,
            "what was applied is gone; everything comes from the leader"
        );
        self.log.begin_anew().await.map_err(|error| error.to_string())
    }

    /// A leader speaks, and nothing runs here.
    pub(crate) fn heard_while_down(&self, vote: &Vote) {
        let is_current = vote.committed && self.log.vote().is_none_or(|own| *vote >= own);
        if is_current
            && self.slot.replica().is_some_and(|replica| replica.applied().position < self.log.purged())
        {
            self.may_begin_anew.store(true, Ordering::SeqCst);
            self.again.notify_one();
        }
    }

    /// Opens the replica again, in its last durable state.
    async fn reopen(&self) -> Result<(), String> {
        self.alone.forget();
        let slot = Arc::clone(&self.slot);
        let reopened = self.slot.blocking.run(move || {
            if let Some(old) = slot.take() {
                old.close()?;
            }
            slot.open()
        });
        match reopened.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err::<(), Error>(error)) => Err(unopened(self.id, &error)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Why a replica cannot be opened, and what can be done: unlike a database, a replica can be had again from others.
pub(super) fn unopened(group: u32, error: &Error) -> String {
    match error {
        Error::Corrupt(damage) => format!(
            "damaged data in {damage}; put it back if you can, or move the directory groups/{group} away: it is made anew from the log and by the \
             other nodes"
        ),
        _ => error.to_string(),
    }
}
