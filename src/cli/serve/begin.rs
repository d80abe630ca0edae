//! How a node that was started comes to serve: it makes a cluster, is taken into one, or goes on in
//! the one that it belongs to.
//!
//! Others that do not answer are waited for: nodes are started in any order, and by supervisors that
//! start them again. What waiting cannot mend ends the process with a message: an id that another node
//! has, a directory that belongs to another cluster.

use std::time::{Duration, Instant};

use dogsled::cluster::{Client, ClientOptions, ClusterMap, Error, MemberState, Node, NodeId, Role};

use super::settings::{Beginning, Member, Settings};
use crate::cli::exit::{Code, Failure, Result};

/// Between two looks at what others have to do.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions to other nodes.
const ASK: Duration = Duration::from_secs(1);
/// A first member that finds itself in the cluster's list, but was not taken in for so long, is not
/// the one that is meant.
const ADOPTION: Duration = Duration::from_secs(3);

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// A cluster was made.
    Made,
    /// The node was taken into one.
    Joined,
    /// It belonged to one.
    Continued,
}

/// Returns when the node belongs to a cluster and knows a leader of every group that it has.
pub(super) async fn begin(node: &Node, settings: &Settings, certificates: &ClientOptions) -> Result<Begun> {
    let others = Others { options: certificates.clone(), me: node.id() };
    wait_until_open(node).await;
    let begun = match &settings.beginning {
        Beginning::Alone => go_on_or_make(node, settings).await?,
        Beginning::Make(members) => {
            others.check(node, &addresses(members, node.id())).await?;
            if has_begun(node) { Begun::Continued } else { make(node, settings, members).await? }
        }
        Beginning::Wait(members) => {
            let addresses = addresses(members, node.id());
            others.check(node, &addresses).await?;
            match node.cluster() {
                Some(_) => Begun::Continued,
                None => others.wait_to_be_taken_in(node, &addresses).await?,
            }
        }
        Beginning::Join(seeds) => others.join(node, seeds, settings.timeout).await?,
    };
    while !has_begun(node) || node.status().groups.iter().any(|group| group.leader.is_none()) {
        tokio::time::sleep(LOOK / 5).await;
    }
    Ok(begun)
}

fn addresses(members: &[Member], me: NodeId) -> Vec<String> {
    let others = members.iter().filter(|(member, _)| *member != me);
    others.flat_map(|(_, addresses)| addresses.iter().cloned()).collect()
}

/// Groups are opened in the background; before they are, they know no members. A member soon knows what it
/// knew of the cluster.
async fn wait_until_open(node: &Node) {
    let until = Instant::now() + ASK;
    while node.cluster().is_some() && node.record().is_none() && Instant::now() < until {
        tokio::time::sleep(LOOK / 5).await;
    }
    while node.status().groups.iter().any(|group| group.role == Role::Down && group.failure.is_none()) {
        tokio::time::sleep(LOOK / 5).await;
    }
}

/// A node that was told nothing about others: it goes on with those that it knows, if it does.
async fn go_on_or_make(node: &Node, settings: &Settings) -> Result<Begun> {
    if has_begun(node) {
        return Ok(Begun::Continued);
    }
    let voters: Vec<NodeId> = node.status().groups.into_iter().flat_map(|group| group.voters).collect();
    let alone = !voters.is_empty() && voters.iter().all(|voter| *voter == node.id());
    if node.cluster().is_none() || alone {
        return make(node, settings, &[]).await;
    }
    // To make a cluster of it could tear it out of the one that was about to take it in.
    Err(Failure::refused(
        "the node was stopped while it was made part of a cluster: start it with the options that it had then, \
         or with --init if it was to be alone",
    ))
}

/// Whether every group has had its first members: making the cluster was not interrupted.
fn has_begun(node: &Node) -> bool {
    node.map().epoch > 0
}

async fn make(node: &Node, settings: &Settings, members: &[Member]) -> Result<Begun> {
    let until = Instant::now() + settings.timeout;
    loop {
        match node.create_cluster_with(settings.partitions, settings.replicas, members.to_vec()).await {
            Ok(()) => return Ok(Begun::Made),
            Err(error) if error.is_temporary() && Instant::now() < until => {
                tracing::warn!(%error, "the cluster is not made yet; trying again");
                tokio::time::sleep(ASK).await;
            }
            Err(error @ Error::Invalid(_)) => {
                return Err(Failure::refused(format!("the cluster cannot be made: {}", why(&error))));
            }
            Err(error) => return Err(Failure::from(error).before("the cluster was not made")),
        }
    }
}

/// What is wrong, without the words that say whose fault it is.
fn why(error: &Error) -> String {
    match error {
        Error::Invalid(what) | Error::Unavailable(what) | Error::OutcomeUnknown(what) => what.clone(),
        other => other.to_string(),
    }
}

/// The other nodes, as far as addresses of them are known.
struct Others {
    options: ClientOptions,
    me: NodeId,
}

impl Others {
    /// What the first that answers and belongs to a cluster knows of it.
    async fn map(&self, addresses: &[String]) -> Result<Option<ClusterMap>, Error> {
        let mut failure = None;
        for address in addresses {
            match self.map_of(address).await {
                Ok(map) if map.cluster != 0 => return Ok(Some(map)),
                Ok(_) => failure = None,
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    async fn map_of(&self, address: &str) -> Result<ClusterMap, Error> {
        let client = Client::connect([address], self.options.clone()).await?;
        let map = client.map().await;
        client.close().await;
        map
    }

    /// Refuses a directory that belongs to another cluster than the nodes that answer.
    async fn check(&self, node: &Node, addresses: &[String]) -> Result<()> {
        let Some(own) = node.cluster() else { return Ok(()) };
        match self.map(addresses).await {
            Ok(Some(map)) => same_cluster(own, &map),
            // They may come later, and are told apart by then in every message.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    async fn wait_to_be_taken_in(&self, node: &Node, addresses: &[String]) -> Result<Begun> {
        let mut asked = Instant::now();
        let mut passed_over: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            if node.cluster().is_some() {
                return Ok(Begun::Joined);
            }
            if asked.elapsed() < ASK {
                continue;
            }
            asked = Instant::now();
            match self.map(addresses).await {
                Ok(Some(map)) if is_member(&map, self.me) => {
                    let since = *passed_over.get_or_insert(asked);
                    if since.elapsed() > ADOPTION && node.cluster().is_none() {
                        return Err(self.id_is_taken(&map));
                    }
                }
                // One that has been taken in just now: who the members are it learns in a moment.
                Ok(Some(map)) if map.members.is_empty() => passed_over = None,
                Ok(Some(map)) => {
                    return Err(Failure::refused(format!(
                        "the cluster {:032x} was made without node {}: start it with --join instead of --members",
                        map.cluster, self.me
                    )));
                }
                Ok(None) | Err(_) => passed_over = None,
            }
        }
    }

    async fn join(&self, node: &Node, seeds: &[String], timeout: Duration) -> Result<Begun> {
        let until = Instant::now() + timeout;
        loop {
            let failure = match self.map(seeds).await {
                Ok(Some(map)) => match self.join_known(node, seeds, &map).await {
                    Ok(begun) => return Ok(begun),
                    Err(failure) if failure.code == Code::Unavailable => failure,
                    Err(failure) => return Err(failure),
                },
                Ok(None) => Failure::new(Code::Unavailable, "the nodes that answer belong to no cluster yet"),
                // A member that restarts while the others are away is a member all the same.
                Err(_) if has_joined(node) => return Ok(Begun::Continued),
                Err(error) => error.into(),
            };
            if Instant::now() >= until {
                return Err(failure.before("the node has not become a member"));
            }
            tracing::warn!(why = failure.message, "not a member yet; trying again");
            tokio::time::sleep(ASK).await;
        }
    }

    async fn join_known(&self, node: &Node, seeds: &[String], map: &ClusterMap) -> Result<Begun> {
        match node.cluster() {
            Some(own) => same_cluster(own, map)?,
            // Whoever has this id remembers votes and entries that this directory does not.
            None if is_member(map, self.me) => return Err(self.id_is_taken(map)),
            None => {}
        }
        if has_joined(node) && is_member(map, self.me) {
            return Ok(Begun::Continued);
        }
        match node.join(seeds.iter().cloned()).await {
            Ok(()) => Ok(Begun::Joined),
            Err(error @ Error::Invalid(_)) => {
                Err(Failure::refused(format!("the cluster does not take the node in: {}", why(&error))))
            }
            Err(error) => Err(Failure::new(Code::Unavailable, why(&error))),
        }
    }

    fn id_is_taken(&self, map: &ClusterMap) -> Failure {
        let addresses = map.members.iter().find(|(member, _)| *member == self.me);
        let addresses = addresses.map_or(String::new(), |(_, addresses)| addresses.join(", "));
        Failure::refused(format!(
            "node id {} is taken: it is a member of the cluster already, at {addresses}, and this directory is \
             new. An id is never given twice; a node that has lost its data comes back under a new id, and the \
             old one is taken out with `dogsled member remove {}`",
            self.me, self.me
        ))
    }
}

fn is_member(map: &ClusterMap, node: NodeId) -> bool {
    map.members.iter().any(|(member, _)| *member == node)
}

/// Whether the node is a member that has got what it was to get when it joined, as far as it knows.
fn has_joined(node: &Node) -> bool {
    let state = node.record().and_then(|record| Some(record.members.get(&node.id())?.state));
    state.is_some_and(|state| state != MemberState::Joining)
}

fn same_cluster(own: u128, map: &ClusterMap) -> Result<()> {
    if own == map.cluster {
        return Ok(());
    }
    Err(Failure::new(
        Code::NotADatabase,
        format!(
            "the data directory belongs to the cluster {own:032x}, and the nodes that were named to {:032x}",
            map.cluster
        ),
    ))
}
