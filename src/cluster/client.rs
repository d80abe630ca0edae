//! [`Client`]: the way into a cluster.

use std::sync::Arc;
use std::time::Duration;

use dogsled_net::ClientEndpoint;
use dogsled_replication as replication;
use dogsled_replication::ring::TreeHash;
use dogsled_replication::{
    Change, ClientReply, ClientRequest, ClusterMap, NodeId, NodeStatus, Record, Recovery,
};
use dogsled_storage::seal::sealed_by;
use dogsled_storage::{Command, GroupRead, GroupReadReply, Reply};
use futures_util::future::{join_all, try_join_all};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::core::{Core, Elsewhere, Reach, unexpected};
use super::error::of_parts;
use super::options::Behaviour;
use super::pool::Pool;
use super::{
    ClientOptions, Counter, Election, Error, Lock, ReadFrom, Result, Session, ShardedCounter, Tree, routes,
};
use crate::IVec;

/// A client of a cluster; see [`cluster`](super). Clones are the same client, and cheap.
///
/// Its sessions are closed when the last clone is dropped, in the background, or by
/// [`Client::close`].
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
    deadline: Duration,
}

struct Handle {
    core: Arc<Core>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.core.is_closed() {
            let core = Arc::clone(&self.core);
            self.runtime.spawn(async move { core.close().await });
        }
    }
}

/// What a member of a cluster says of itself; see [`Client::status`].
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Which member.
    pub node: NodeId,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// What it says, or why nothing was heard of it.
    pub status: Result<NodeStatus>,
}

impl Client {
    /// Connects to a cluster by some of its nodes' addresses (`host:port`, tried in order). From the
    /// first that answers the client learns of all others. To be called in the tokio runtime that
    /// the client is to run in, which needs its I/O and time drivers.
    ///
    /// ```no_run
    /// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
    /// use dogsled::cluster::{CertificateFiles, Client, ClientOptions};
    /// let files = CertificateFiles::of_client("certs".as_ref(), "web");
    /// let options = ClientOptions::from_files(&files)?;
    /// let client = Client::connect(["10.0.0.1:7400", "10.0.0.2:7400"], options).await?;
    /// client.tree("users").insert("ann", "admin").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no node answers, or none accepts the certificates.
    pub async fn connect<A>(addresses: A, options: ClientOptions) -> Result<Client>
    where
        A: IntoIterator,
        A::Item: Into<String>,
    {
        let seeds = addresses.into_iter().map(Into::into).collect();
        let behaviour = options.behaviour();
        let unavailable = |error: replication::TransportError| Error::Unavailable(error.to_string());
        let endpoint = ClientEndpoint::open(&options.certificates, options.net).map_err(unavailable)?;
        let core = Core::new(Reach::Network(Pool::new(endpoint, seeds)), &behaviour);
        if let Reach::Network(pool) = &core.reach {
            let first = tokio::time::timeout(behaviour.deadline, routes::first(&core, pool)).await;
            match first {
                Ok(reached) => reached.map_err(unavailable)?,
                Err(_) => {
                    let asked = pool.seeds().join(", ");
                    let why = format!("no node answered before the deadline, of those asked: {asked}");
                    return Err(Error::Unavailable(why));
                }
            }
        }
        tokio::spawn(routes::run(Arc::downgrade(&core)));
        Ok(Client::new(core, behaviour.deadline))
    }

    /// A client of the node in this process.
    pub(super) fn here(
        node: replication::Node,
        stopped: watch::Receiver<bool>,
        elsewhere: Box<Elsewhere>,
    ) -> Client {
        let behaviour = Behaviour::default();
        Client::new(Core::new(Reach::Here { node, stopped, elsewhere }, &behaviour), behaviour.deadline)
    }

    fn new(core: Arc<Core>, deadline: Duration) -> Client {
        let runtime = tokio::runtime::Handle::current();
        Client { handle: Arc::new(Handle { core, runtime }), deadline }
    }

    /// One that knows of no node.
    #[cfg(test)]
    pub(super) fn unconnected() -> Client {
        let authority = dogsled_net::certs::Authority::generate("nobody").expect("an authority");
        let issued = authority.client("nobody", Duration::from_secs(600)).expect("a certificate");
        let options = ClientOptions::new(issued.certificates().expect("certificates"));
        let endpoint = ClientEndpoint::open(&options.certificates, options.net.clone()).expect("an endpoint");
        let behaviour = options.behaviour();
        let pool = Pool::new(endpoint, Vec::new());
        Client::new(Core::new(Reach::Network(pool), &behaviour), behaviour.deadline)
    }

    pub(super) fn core(&self) -> &Core {
        &self.handle.core
    }

    pub(super) fn shared_core(&self) -> Arc<Core> {
        Arc::clone(&self.handle.core)
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.handle.runtime
    }

    /// When a call that begins now has to end.
    pub(super) fn until(&self) -> Instant {
        let now = Instant::now();
        // A deadline beyond what the clock can express is far away all the same.
        now.checked_add(self.deadline).unwrap_or_else(|| now + Duration::from_secs(365 * 86_400))
    }

    /// The same client, whose calls may take so long.
    ///
    /// ```no_run
    /// # async fn hurry(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let quick = client.with_deadline(Duration::from_millis(200));
    /// let ann = quick.tree("users").get("ann").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { handle: Arc::clone(&self.handle), deadline }
    }

    /// How long a call may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A tree, which the first write to it makes.
    ///
    /// ```no_run
    /// # async fn insert(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// let users = client.tree("users");
    /// users.insert("ann", "admin").await?;
    /// assert_eq!(users.get("ann").await?.unwrap(), "admin");
    /// # Ok(()) }
    /// ```
    pub fn tree(&self, name: impl AsRef<[u8]>) -> Tree {
        Tree::new(self.clone(), IVec::from(name.as_ref()))
    }

    /// A counter.
    ///
    /// ```no_run
    /// # async fn count(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// let visits = client.counter("visits").add(1).await?;
    /// # Ok(()) }
    /// ```
    pub fn counter(&self, name: impl AsRef<[u8]>) -> Counter {
        Counter::new(self.clone(), IVec::from(name.as_ref()))
    }

    /// A lock, under an owner's name that nobody else has.
    ///
    /// ```no_run
    /// # async fn exclude(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let guard = client.lock("nightly job").acquire(Duration::from_secs(10)).await?;
    /// println!("under token {}", guard.token());
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::new(self.clone(), IVec::from(name.as_ref()), 1, 1)
    }

    /// A read/write lock, for reading: any number of readers hold it at a time, and no writer. Readers that
    /// come while a writer waits wait behind it.
    ///
    /// ```no_run
    /// # async fn share(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let reading = client.read_lock("catalogue").acquire(Duration::from_secs(10)).await?;
    /// # Ok(()) }
    /// ```
    pub fn read_lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::reader(self.clone(), IVec::from(name.as_ref()))
    }

    /// The same read/write lock, for writing: one writer holds it, and nobody else.
    pub fn write_lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::writer(self.clone(), IVec::from(name.as_ref()))
    }

    /// A semaphore: so many hold it at a time. All who use it must say the same number.
    ///
    /// ```no_run
    /// # async fn limit(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let licence = client.semaphore("licences", 5).acquire(Duration::from_secs(10)).await?;
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<[u8]>, capacity: u32) -> Lock {
        Lock::new(self.clone(), IVec::from(name.as_ref()), 1, capacity)
    }

    /// A session of the application's: what it owns dies with it. It lives while it is renewed, which
    /// happens in the background. A lease of more than a year is one of a year.
    ///
    /// ```no_run
    /// # async fn live(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let session = client.session(Duration::from_secs(10));
    /// session.insert(&client.tree("workers"), "10.0.0.7", "idle").await?;
    /// # Ok(()) }
    /// ```
    pub fn session(&self, lease: Duration) -> Session {
        Session::new(self.clone(), lease)
    }

    /// An election: one leader among many, and everybody knows who.
    ///
    /// ```no_run
    /// # async fn look(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// if let Some(leader) = client.election("scheduler").leader().await? {
    ///     println!("{:?} leads", leader.value);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn election(&self, name: impl AsRef<[u8]>) -> Election {
        Election::new(self.clone(), IVec::from(name.as_ref()))
    }

    /// A counter for one name that is so hot that one partition is not enough: its additions are spread over
    /// `shards` counters in several partitions, and reading sums them.
    ///
    /// ```no_run
    /// # async fn count(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// let visits = client.sharded_counter("visits", 16);
    /// visits.add(1).await?;
    /// println!("{} visits", visits.get().await?);
    /// # Ok(()) }
    /// ```
    pub fn sharded_counter(&self, name: impl AsRef<[u8]>, shards: u16) -> ShardedCounter {
        ShardedCounter::new(self.clone(), name.as_ref(), shards)
    }

    /// Adds to several counters at once, or to none if one sum does not fit; what they stand at then, in
    /// the order of their names. They must be of one partition: give their names a common
    /// [tag](super#routing).
    ///
    /// ```no_run
    /// # async fn count(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// client.add_to_counters([("{shop}:sold", 1), ("{shop}:stock", -1)]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if a sum does not fit, or they are of several partitions; those of
    /// [writing](super#writes).
    pub async fn add_to_counters<N: AsRef<[u8]>>(
        &self,
        additions: impl IntoIterator<Item = (N, i64)>,
    ) -> Result<Vec<(IVec, i64)>> {
        super::counter::add_to_many(self, additions).await
    }

    /// Has what is hashed of a tree's keys be something else than the whole key, **for ever**, so that keys which have
    /// that in common lie in one partition: see [routing](super#routing) for why, with an example, and
    /// [`TreeHash`] for what can be chosen. Returns when every partition, and this client, goes by it.
    ///
    /// It can be chosen while there is no such tree; chosen again alike nothing happens, so an application does it
    /// whenever it starts. Other clients learn of it with their next answer. What one that has not asks of the tree
    /// is refused by the partitions, and the client repeats it as they want it: nothing is ever read or written in the
    /// wrong place, and nobody notices. Only who [follows](super::Tree::watch_prefix) the tree already is told
    /// ([`Error::Conflict`], the last event), and begins anew.
    ///
    /// Everything that has one prefix loads one partition: choose it so that there are many.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the tree is there already, or something else was chosen; [`Error::Invalid`] if the
    /// choice is none; [`Error::Unavailable`] or [`Error::OutcomeUnknown`] if not every partition was reached: then
    /// the tree may be closed to everybody until this is called again, and goes on.
    pub async fn set_tree_hash(&self, name: impl AsRef<[u8]>, hash: TreeHash) -> Result<()> {
        let (until, tree) = (self.until(), IVec::from(name.as_ref()));
        let change = Change::HashTree { tree: tree.clone(), hash };
        self.change(0, true, change).await?;
        while self.core().tree_hash(&tree) != hash {
            if Instant::now() >= until {
                let why = "it is chosen; no node that has heard of it was reached before the deadline";
                return Err(Error::Unavailable(why.to_owned()));
            }
            self.map().await?;
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What is hashed of a tree's keys, as far as this client knows.
    pub fn tree_hash(&self, name: impl AsRef<[u8]>) -> TreeHash {
        self.core().tree_hash(name.as_ref())
    }

    /// The names of all trees in any partition, sorted; those of the database itself if they hold
    /// something.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn tree_names(&self) -> Result<Vec<IVec>> {
        let until = self.until();
        let groups = 1..=self.core().partitions(until).await?;
        let reads = groups.map(|group| async move {
            let answer = self.core().read(group, &GroupRead::Trees, ReadFrom::Leader, until).await?;
            match answer.reply {
                GroupReadReply::Trees(names) => Ok(names),
                other => Err(unexpected(&other)),
            }
        });
        let stored = try_join_all(reads).await?.into_iter().flatten();
        let stored = stored.filter(|stored| sealed_by(stored).is_none());
        let mut names: Vec<IVec> = stored.map(|stored| IVec::from(TreeHash::of_stored(&stored).1)).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Drops a tree with all its keys, partition after partition; whether there was one. If it fails,
    /// some partitions may have it still: call it again. What was chosen to be hashed of its keys stays.
    ///
    /// # Errors
    /// Those of writing.
    pub async fn drop_tree(&self, name: impl AsRef<[u8]>) -> Result<bool> {
        let until = self.until();
        let groups = &(1..=self.core().partitions(until).await?);
        let tree = self.tree(name);
        let dropped = tree.by_stored_name(until, |name| async move {
            let drops = groups.clone().map(|group| {
                let command = Command::DropTree { name: name.clone() };
                async move {
                    match self.core().execute(group, Vec::new(), command, until).await?.0 {
                        Reply::Dropped(dropped) => Ok(dropped),
                        other => Err(unexpected(&other)),
                    }
                }
            });
            // All of them, whatever happens to one.
            of_parts(join_all(drops).await)
        });
        Ok(dropped.await?.contains(&true))
    }

    /// Where everything is, as far as the node that is asked knows: one after the other, until one answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn map(&self) -> Result<ClusterMap> {
        match self.core().ask_any(&ClientRequest::Map, self.until()).await? {
            ClientReply::Map(map) => {
                if let Reach::Network(pool) = &self.core().reach {
                    routes::adopt(self.core(), pool, map.clone());
                }
                Ok(map)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// How every member is. Of the node that was reached alone, if it belongs to no cluster yet; and
    /// of a node's [own client](super::Node::client), of that node.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no node at all was reached.
    pub async fn status(&self) -> Result<Vec<MemberStatus>> {
        let map = self.map().await?;
        if map.members.is_empty() || matches!(self.core().reach, Reach::Here { .. }) {
            let status = self.node_status(None).await?;
            let (node, addresses) = (status.node, Vec::new());
            return Ok(vec![MemberStatus { node, addresses, status: Ok(status) }]);
        }
        let asked = map.members.into_iter().map(|(node, addresses)| async move {
            let status = self.node_status(Some(node)).await;
            MemberStatus { node, addresses, status }
        });
        Ok(join_all(asked).await)
    }

    /// How one node is: the one named, or whichever is at hand.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it was not reached.
    pub async fn node_status(&self, node: Option<NodeId>) -> Result<NodeStatus> {
        match self.ask(node, &ClientRequest::Status).await.map_err(nothing_asked)? {
            ClientReply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a cluster of new nodes that run, with so many partitions for ever. The node that the
    /// client is connected to must be one of them. Can be called again if it was interrupted.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of them belongs to another cluster; [`Error::Unavailable`] if one
    /// cannot be reached by the others.
    pub async fn create_cluster(&self, partitions: u32, members: Vec<(NodeId, Vec<String>)>) -> Result<()> {
        let replicas = replication::meta::DEFAULT_REPLICAS;
        self.done(&ClientRequest::Initialize { partitions, replicas, members }).await
    }

    /// Takes in a running node that has adopted the cluster, and gives it its share of the partitions; or
    /// tells the others its new addresses. Takes as long as the node needs to catch up: give it a
    /// [deadline](Client::with_deadline) that allows for that, or call it again.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] at the deadline; it may go on.
    pub async fn add_member(&self, node: NodeId, addresses: Vec<String>) -> Result<()> {
        self.done(&ClientRequest::AddMember { node, addresses }).await
    }

    /// Takes out a node: what it has moves to others first. Its id can never be used again. Can be called
    /// again to go on.
    ///
    /// # Errors
    /// As [`Client::add_member`].
    pub async fn remove_member(&self, node: NodeId) -> Result<()> {
        self.done(&ClientRequest::RemoveMember { node }).await
    }

    /// What is wanted of the cluster: its members, who is to have which partition, how movement is done.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn record(&self) -> Result<Record> {
        match self.core().ask_any(&ClientRequest::Record, self.until()).await? {
            ClientReply::Record(record) => Ok(*record),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes what is wanted of the cluster, if its [record](Client::record) still has this epoch; 0:
    /// whatever it has. With `wait`, returns when it is carried through, otherwise when it is decided.
    ///
    /// # Errors
    /// [`Error::Conflict`] if somebody else was quicker; [`Error::Invalid`] if it cannot be;
    /// [`Error::OutcomeUnknown`] at the deadline.
    pub async fn change(&self, epoch: u64, wait: bool, change: Change) -> Result<()> {
        let (until, request) = (self.until(), ClientRequest::Change { epoch, wait, change });
        let mut attempt = 0;
        loop {
            match self.done(&request).await {
                // Whoever decides is being elected, or leadership moves: nothing was done, as with a write.
                Err(error) if error.is_temporary() && Instant::now() < until => {
                    self.core().before_next_attempt(attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// Brings back what has lost its quorum because these members will never come back: the best of the
    /// survivors of each such group goes on alone, and the lost members' ids are never taken in again.
    /// **What only they had is lost**, though it was acknowledged. So without `accept_data_loss` nothing
    /// is done, and the answer says what would be, and what is known of what could be lost; if nobody is
    /// named then, it is about the members that do not answer. See
    /// [`recovery`](dogsled_replication::recovery).
    ///
    /// Give it a [deadline](Client::with_deadline) of a minute or more. Called again, with the same members,
    /// it goes on.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no group has lost its quorum, or a member is named that answers, or one that
    /// does not answer is not named: it may have what the others lack.
    pub async fn recover(&self, lost: &[NodeId], accept_data_loss: bool) -> Result<Recovery> {
        let request = ClientRequest::Recover { lost: lost.to_vec(), accept_data_loss };
        // By one that answers: that others do not is why this is asked.
        let quick = self.with_deadline(self.deadline.min(Duration::from_secs(3)));
        let alive = quick.status().await?.into_iter().find(|member| member.status.is_ok());
        let reply = self.ask(alive.map(|member| member.node), &request).await;
        self.core().ask.notify_one();
        match reply? {
            ClientReply::Recovery(recovery) => Ok(*recovery),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for a group's leadership to go to a member; returns before it has.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not vote there.
    pub async fn transfer_leader(&self, group: u32, to: NodeId) -> Result<()> {
        self.done(&ClientRequest::TransferLeader { group, to }).await
    }

    async fn ask(&self, node: Option<NodeId>, request: &ClientRequest) -> Result<ClientReply> {
        self.core().ask_once(node, request, self.until()).await
    }

    async fn done(&self, request: &ClientRequest) -> Result<()> {
        let reply = self.ask(None, request).await;
        // Who belongs to the cluster, or leads, is probably about to change, whatever was heard.
        self.core().ask.notify_one();
        match reply? {
            ClientReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Closes the sessions and the connections, of all clones. Calls that are under way end with an
    /// error, later ones with [`Error::Closed`].
    pub async fn close(&self) {
        self.core().close().await;
    }
}

/// To ask does nothing, so there is no outcome to be unsure of.
fn nothing_asked(error: Error) -> Error {
    match error {
        Error::OutcomeUnknown(why) => Error::Unavailable(why),
        other => other,
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let map = self.core().map.borrow();
        f.debug_struct("Client")
            .field("cluster", &format_args!("{:032x}", map.cluster))
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
