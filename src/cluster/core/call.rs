//! The loop that carries a call through: which node is asked, and what is learnt from its answer.
//!
//! What an attempt came to is one of three: an answer; certainly nothing; not known. After the last,
//! a write goes on only because it is numbered: the cluster carries out one number once. Whatever ends
//! the call after that, short of an answer, is [`Error::OutcomeUnknown`].
//!
//! # How soon a dead leader is left
//!
//! A call that has waited for [`PATIENCE`] wakes the [router](crate::cluster::routes), which asks the others
//! who leads now. As soon as it is not whom the call waits for, the call goes there. So a slow node
//! is not asked twice for nothing, and a dead one costs little more than the election.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::ClientConnection;
use dogsled_replication as replication;
use dogsled_replication::{
    ClientIdentity, ClientReply, ClientRequest, ClusterError, NodeId, Service, TransportError,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Core, Error, Reach, Result, leader_of};
use crate::cluster::pool::Pool;
use crate::cluster::read_from::{Prefer, candidates};
use crate::cluster::routes;

/// How long a call waits before it asks whether it waits for the right node.
const PATIENCE: Duration = Duration::from_millis(150);
/// How long the first attempt may take; each further one twice as long.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);
/// A node is suspected if it has not answered for so long; not because a caller was in a hurry.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// The waits between attempts.
pub(super) const BACK_OFF: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(250));

/// One way to a node.
pub(super) enum Link {
    Network(ClientConnection),
    Here(replication::Node),
}

impl Link {
    /// Whether the node has ended the connection, as one does that shuts down or was started again.
    fn is_closed(&self) -> bool {
        matches!(self, Link::Network(connection) if !connection.is_open())
    }

    pub(super) fn request(
        &self,
        body: Bytes,
        limit: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        match self {
            Link::Network(connection) => connection.request(body, limit),
            Link::Here(node) => {
                let reply = node.client_request(&this_process(), body);
                tokio::time::timeout(limit, reply)
                    .map(|reply| reply.map_err(|_| TransportError::TimedOut))
                    .boxed()
            }
        }
    }
}

/// Whoever has a node in hand may do anything with it.
pub(super) fn this_process() -> ClientIdentity {
    ClientIdentity { name: "this process".to_owned(), administrator: true }
}

/// What a repeated attempt can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Nothing: the call only reads.
    Harmless,
    /// It is numbered; but if no answer is heard at all, the outcome is unknown.
    Numbered,
}

/// An answer, and whether an attempt before it may have been carried out as well.
pub(super) struct Answered {
    pub(super) reply: ClientReply,
    pub(super) perhaps_before: bool,
}

impl Core {
    /// The node to ask, and the way to it. `avoid` is asked only if there is no other.
    pub(super) async fn link(
        &self,
        group: Option<u32>,
        avoid: Option<NodeId>,
        prefer: Prefer,
    ) -> Result<(NodeId, Link), TransportError> {
        let pool = match &self.reach {
            Reach::Here { node, .. } => return Ok((node.id(), Link::Here(node.clone()))),
            Reach::Network(pool) => pool,
        };
        let node = match self.target(pool, group, avoid, prefer) {
            Some(node) => node,
            None => pool.any().await?,
        };
        let connected = match pool.has_other(node) {
            true => pool.connection_soon(node).await,
            false => pool.connection(node).await,
        };
        match connected {
            Ok(connection) => Ok((node, Link::Network(connection))),
            // The addresses that the cluster knows may mean nothing here.
            Err(_) if pool.connected().is_empty() => {
                let node = pool.any().await?;
                Ok((node, Link::Network(pool.connection(node).await?)))
            }
            Err(error) => Err(error),
        }
    }

    /// From a node's own client to another node that has a group, as the node knows.
    pub(super) async fn link_elsewhere(
        &self,
        from: &replication::Node,
        pool: &Pool,
        group: u32,
        avoid: Option<NodeId>,
    ) -> Result<(NodeId, Link), TransportError> {
        let map = from.map();
        let mut holders = map.replicas_of(group).to_vec();
        holders.retain(|node| *node != from.id());
        let leader = leader_of(&map, group);
        // The first that fits least of all reasons against it.
        holders.sort_by_key(|node| (Some(*node) == avoid, pool.is_suspected(*node), Some(*node) != leader));
        let Some(&node) = holders.first() else {
            return Err(TransportError::Unreachable(format!("no node is known to have group {group}")));
        };
        if let Some((_, addresses)) = map.members.iter().find(|(member, _)| *member == node) {
            pool.set_addresses(node, addresses);
        }
        Ok((node, Link::Network(pool.connection(node).await?)))
    }

    fn target(
        &self,
        pool: &Pool,
        group: Option<u32>,
        avoid: Option<NodeId>,
        prefer: Prefer,
    ) -> Option<NodeId> {
        let map = self.map.borrow();
        let fit = |node: &NodeId| Some(*node) != avoid && !pool.is_suspected(*node);
        if prefer == Prefer::Leader
            && let Some(leader) = group.and_then(|group| leader_of(&map, group)).filter(&fit)
        {
            // Nearly always, and then nobody else need be thought of.
            return Some(leader);
        }
        let candidates = candidates(&map, group, prefer, &self.zone, self.home, self.next_turn());
        let in_turn = || candidates.iter().copied();
        in_turn()
            .find(|node| fit(node) && !pool.failed_lately(*node))
            .or_else(|| in_turn().find(&fit))
            .or_else(|| in_turn().find(|node| Some(*node) != avoid))
            .or_else(|| in_turn().next())
    }

    /// Asks until there is an answer; see the [module](self).
    pub(super) async fn call(
        &self,
        group: Option<u32>,
        prefer: Prefer,
        repeat: Repeat,
        until: Instant,
        make: impl Fn(Duration) -> ClientRequest,
    ) -> Result<Answered> {
        self.used.store(true, Ordering::Relaxed);
        let mut perhaps = false;
        let mut avoid = None;
        let mut led_by_before = None;
        let mut redirected = 0;
        let mut why = "no node was reached before the deadline".to_owned();
        // What a node has answered says more than that another one is not there.
        let mut said: Option<String> = None;
        for attempt in 0.. {
            let give_up = |perhaps: bool, definite: Error, why: &str| match perhaps {
                true => Error::OutcomeUnknown(why.to_owned()),
                false => definite,
            };
            if self.is_closed() {
                return Err(give_up(perhaps, Error::Closed, "the client was closed"));
            }
            let now = Instant::now();
            if now >= until {
                if let Some(said) = said.filter(|said| *said != why) {
                    why = format!("{said}; then: {why}");
                }
                return Err(give_up(perhaps, Error::Unavailable(why.clone()), &why));
            }
            // From before the node is chosen: if another leads by the time that it is reached, it is the wrong one.
            let led_by = group.and_then(|group| leader_of(&self.map.borrow(), group));
            if led_by != led_by_before {
                // What a node has refused before it led is no reason against it.
                avoid = avoid.filter(|avoid| Some(*avoid) != led_by);
            }
            led_by_before = led_by;
            let (node, link) = match timeout_at(until, self.link(group, avoid, prefer)).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    why = error.to_string();
                    self.ask.notify_one();
                    self.back_off(attempt, until).await;
                    continue;
                }
                Err(_) => continue,
            };
            let began = Instant::now();
            let left = until.saturating_duration_since(began);
            // The last of them takes what is left.
            let limit = left.min(FIRST_ATTEMPT * 2u32.pow(attempt.min(8)));
            let body = {
                let map = self.map.borrow();
                // A node within reach knows by itself.
                let tells = matches!(self.reach, Reach::Network(_)) && map.epoch > 0;
                let request = make(limit);
                if tells { request.encode_knowing(map.epoch) } else { request.encode() }
            };
            let reply = tokio::select! {
                biased;
                reply = link.request(body, limit) => reply,
                () = self.moved(group, led_by, node, prefer) => {
                    Err(TransportError::Lost(format!("node {node} does not lead any more")))
                }
            };
            let reply = match reply {
                Ok(reply) => {
                    self.trust(node);
                    let (newer, reply) = ClientReply::decode_with_map(reply)
                        .map_err(|error| Error::Incompatible(error.to_string()))?;
                    if let (Some(map), Reach::Network(pool)) = (newer, &self.reach) {
                        routes::adopt(self, pool, map);
                    }
                    reply
                }
                Err(error) => {
                    why = format!("node {node}: {error}");
                    match error {
                        TransportError::TooLarge { .. } => {
                            return Err(give_up(perhaps, Error::Invalid(error.to_string()), &why));
                        }
                        // It would be as long the next time.
                        TransportError::ReplyTooLarge(why) => {
                            let error = Error::Invalid(format!("{why}; ask for less at a time"));
                            return Err(give_up(perhaps || repeat == Repeat::Numbered, error, &why));
                        }
                        TransportError::Unreachable(_) => self.suspect(node),
                        TransportError::Lost(_) | TransportError::TimedOut => {
                            perhaps |= repeat == Repeat::Numbered;
                            let moved =
                                group.and_then(|group| leader_of(&self.map.borrow(), group)) != led_by;
                            if link.is_closed() || (began.elapsed() >= SUSPICIOUS && !moved) {
                                self.suspect(node);
                            }
                        }
                    }
                    avoid = Some(node);
                    self.ask.notify_one();
                    self.back_off(attempt, until).await;
                    continue;
                }
            };
            let ClientReply::Error(error) = reply else {
                return Ok(Answered { reply, perhaps_before: perhaps });
            };
            why = format!("node {node}: {error}");
            said = Some(why.clone());
            avoid = Some(node);
            match error {
                ClusterError::Invalid(what) => return Err(give_up(perhaps, Error::Invalid(what), &why)),
                ClusterError::Denied(what) => return Err(give_up(perhaps, Error::Denied(what), &why)),
                ClusterError::NoSpace(what) => return Err(give_up(perhaps, Error::NoSpace(what), &why)),
                ClusterError::Conflict(what) => {
                    // Perhaps the map is old by which this was asked.
                    self.ask.notify_one();
                    return Err(give_up(perhaps, Error::Conflict(what), &why));
                }
                ClusterError::NotLeader { group, leader: Some(leader), addresses } if leader != node => {
                    self.learn(group, leader, &addresses);
                    redirected += 1;
                    // Two that take each other for the leader would be asked for ever.
                    if redirected % 4 != 0 && matches!(self.reach, Reach::Network(_)) {
                        avoid = None;
                        continue;
                    }
                }
                ClusterError::OutcomeUnknown(_) => perhaps |= repeat == Repeat::Numbered,
                ClusterError::Storage(_) => self.suspect(node),
                _ => {}
            }
            self.ask.notify_one();
            self.back_off(attempt, until).await;
        }
        unreachable!("attempts are counted for ever")
    }

    /// Returns when the group is known to be led by another node than the one that was asked: than it was led by,
    /// or one that there is no reason not to ask.
    async fn moved(&self, group: Option<u32>, led_by: Option<NodeId>, asked: NodeId, prefer: Prefer) {
        let (Some(group), Prefer::Leader, Reach::Network(pool)) = (group, prefer, &self.reach) else {
            return std::future::pending().await;
        };
        sleep(PATIENCE).await;
        let mut maps = self.map.subscribe();
        loop {
            let leader = leader_of(&maps.borrow_and_update(), group);
            if let Some(leader) = leader.filter(|leader| *leader != asked)
                && (Some(leader) != led_by || !pool.is_suspected(leader))
            {
                return;
            }
            self.ask.notify_one();
            tokio::select! {
                // The sender is in this.
                _ = maps.changed() => {}
                () = sleep(PATIENCE) => {}
            }
        }
    }

    pub(in crate::cluster) async fn back_off(&self, attempt: u32, until: Instant) {
        let longest = BACK_OFF.1.min(BACK_OFF.0 * 2u32.pow(attempt.min(10)));
        let wait = longest.mul_f64(self.jitter());
        let left = until.saturating_duration_since(Instant::now());
        tokio::select! {
            () = sleep(wait.min(left)) => {}
            () = self.closing.notified() => {}
        }
    }

    /// A number by chance.
    pub(in crate::cluster) fn next_random(&self) -> u64 {
        // Weyl's sequence, mixed: it need not be good, only different.
        let x = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11
    }

    /// Between a half and one, so that callers who failed together do not come back together.
    pub(in crate::cluster) fn jitter(&self) -> f64 {
        0.5 + self.next_random() as f64 / (1u64 << 54) as f64
    }

    pub(in crate::cluster) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn suspect(&self, node: NodeId) {
        if let Reach::Network(pool) = &self.reach {
            pool.suspect(node);
        }
    }

    fn trust(&self, node: NodeId) {
        if let Reach::Network(pool) = &self.reach
            && pool.is_suspected(node)
        {
            pool.trust(node);
        }
    }

    /// A node has said who leads.
    fn learn(&self, group: u32, leader: NodeId, addresses: &[String]) {
        let Reach::Network(pool) = &self.reach else { return };
        pool.set_addresses(leader, addresses);
        self.map.send_if_modified(|map| {
            let known = leader_of(map, group);
            let moved = known != Some(leader) && map.leaders.len() > group as usize;
            if moved {
                Arc::make_mut(map).leaders[group as usize] = Some(leader);
            }
            moved
        });
    }
}
