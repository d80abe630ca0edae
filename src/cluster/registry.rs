//! [`Registry`]: which instances of a service there are, and which of them to ask.
//!
//! An instance is a key that dies with its session: it is there as long as the instance renews its lease, and who
//! follows the keys hears when it comes and when it is gone. All instances of a service are of one partition, so
//! they are followed by one stream, in order.
//!
//! ```text
//! register ─► ephemeral key {service}/id ─► event ─► Resolver's list ─► pick
//! the session ends ─► the key is removed ──► event ─┘
//! ```
//!
//! A resolver answers from its own list and asks nobody. The list is what the partition's log says, a little
//! later: milliseconds, or as long as it takes to find another node if the one that was followed is gone. An
//! instance that dies stays in the list until its session's lease has ended. So whoever picks one must be prepared
//! that it does not answer, and pick another.
//!
//! How an instance is kept is said in `registry/instance.rs`, because an embedded database does it as well.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Client, Error, Event, Result, Session, Subscriber, Tree};
use crate::registry::{Known, Picker, TREE, prefix};
use crate::{IVec, Instance, Pick, Picked};

/// The instances of one service; made by [`Client::registry`].
///
/// ```no_run
/// # async fn serve(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// use dogsled::cluster::{Instance, Pick};
/// use std::time::Duration;
///
/// // The instance: there as long as its session.
/// let session = client.session(Duration::from_secs(10));
/// let billing = client.registry("billing")?;
/// billing.register(&session, &Instance::new("7", "10.0.0.7:80").tag("zone=east")).await?;
///
/// // Who wants it.
/// let resolver = client.registry("billing")?.follow().await?;
/// match resolver.pick(Pick::LeastOutstanding) {
///     Some(instance) => println!("ask {}", instance.address), // counted until it is dropped
///     None => println!("there is none"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Registry {
    client: Client,
    prefix: String,
}

impl Client {
    /// The instances of a service.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is empty or has a brace in it.
    pub fn registry(&self, service: &str) -> Result<Registry> {
        let Some(prefix) = prefix(service) else {
            return Err(Error::Invalid(format!("a service cannot be called \"{service}\"")));
        };
        Ok(Registry { client: self.clone(), prefix })
    }
}

impl Registry {
    fn tree(&self) -> Tree {
        self.client.tree(TREE)
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Makes an instance known for as long as a session lives, or what it says anew, if the id is known.
    ///
    /// # Errors
    /// As [`Session::insert`].
    pub async fn register(&self, session: &Session, instance: &Instance) -> Result<()> {
        session.insert(&self.tree(), self.key(&instance.id), instance.encode()).await.map(drop)
    }

    /// Takes an instance out, before its session ends; whether it was there.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn deregister(&self, id: &str) -> Result<bool> {
        Ok(self.tree().remove(self.key(id)).await?.is_some())
    }

    /// Those that are known now, in the order of their ids.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn instances(&self) -> Result<Vec<Instance>> {
        let all = self.tree().scan_prefix(&self.prefix).into_vec().await?;
        Ok(all.iter().filter_map(|(key, value)| self.read(key, value)).collect())
    }

    /// What this version does not understand is not there.
    fn read(&self, key: &[u8], value: &[u8]) -> Option<Instance> {
        Instance::decode(key.strip_prefix(self.prefix.as_bytes())?, value)
    }

    /// Begins to follow which there are, and returns when it is known.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn follow(&self) -> Result<Resolver> {
        let mut list = List { registry: self.clone(), instances: BTreeMap::new() };
        let changes = self.tree().watch_prefix(&self.prefix).await?;
        list.read().await?;
        let shared = Arc::new(Shared {
            instances: watch::Sender::new(list.all()),
            picker: Picker::new(self.client.core().next_turn(), self.client.core().next_random()),
        });
        let task = self.client.runtime().spawn(list.follow(changes, Arc::clone(&shared))).abort_handle();
        Ok(Resolver { shared, task })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

type Instances = Arc<Vec<Known>>;

struct Shared {
    instances: watch::Sender<Instances>,
    picker: Picker,
}

/// Knows the instances of a service, and picks among them; made by [`Registry::follow`].
///
/// It answers from its own list and asks nobody. The list is what the cluster says, a little later: milliseconds, or as
/// long as it takes to find another node if the one that was followed is gone. An instance that dies stays in the
/// list until its session's lease has ended, so be prepared that one does not answer, and pick another. When the
/// client is closed, it keeps what it knew.
pub struct Resolver {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Resolver {
    /// One of the instances; `None`: there are none.
    pub fn pick(&self, how: Pick<'_>) -> Option<Picked> {
        self.pick_where(how, |_| true)
    }

    /// One of the instances that have this tag.
    pub fn pick_tagged(&self, how: Pick<'_>, tag: &str) -> Option<Picked> {
        self.pick_where(how, |instance| instance.has_tag(tag))
    }

    /// One of the instances that are such.
    pub fn pick_where(&self, how: Pick<'_>, is_fit: impl Fn(&Instance) -> bool) -> Option<Picked> {
        let instances = self.shared.instances.borrow().clone();
        self.shared.picker.pick(instances.iter(), how, is_fit)
    }

    /// Those that are known, in the order of their ids.
    pub fn instances(&self) -> Vec<Instance> {
        self.shared.instances.borrow().iter().map(|known| Instance::clone(&known.instance)).collect()
    }

    /// Tells whenever there are others than now.
    pub fn changes(&self) -> InstanceChanges {
        InstanceChanges { instances: self.shared.instances.subscribe() }
    }
}

/// Tells when the instances of a service change; made by [`Resolver::changes`].
#[derive(Debug)]
pub struct InstanceChanges {
    instances: watch::Receiver<Instances>,
}

impl InstanceChanges {
    /// The instances, once they are others than this has told last; `None`: nobody follows them any more.
    pub async fn next(&mut self) -> Option<Vec<Instance>> {
        self.instances.changed().await.ok()?;
        let known = self.instances.borrow_and_update();
        Some(known.iter().map(|known| Instance::clone(&known.instance)).collect())
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("instances", &*self.shared.instances.borrow())
            .finish_non_exhaustive()
    }
}

/// The list that a resolver picks from, and how it is kept.
struct List {
    registry: Registry,
    /// By their keys.
    instances: BTreeMap<IVec, Known>,
}

impl List {
    fn all(&self) -> Instances {
        Arc::new(self.instances.values().cloned().collect())
    }

    /// Whoever is known already stays in use by as many.
    fn put(&mut self, key: IVec, value: &[u8]) {
        match self.registry.read(&key, value) {
            Some(instance) => {
                let outstanding = self.instances.get(&key).map(|known| Arc::clone(&known.outstanding));
                let known =
                    Known { instance: Arc::new(instance), outstanding: outstanding.unwrap_or_default() };
                self.instances.insert(key, known);
            }
            None => drop(self.instances.remove(&key)),
        }
    }

    async fn read(&mut self) -> Result<()> {
        let all = self.registry.tree().scan_prefix(&self.registry.prefix).into_vec().await?;
        self.instances.retain(|known, _| all.iter().any(|(key, _)| key == known));
        for (key, value) in all {
            self.put(key, &value);
        }
        Ok(())
    }

    async fn follow(mut self, mut changes: Subscriber, shared: Arc<Shared>) {
        while let Some(event) = changes.next().await {
            match event {
                Ok(Event::Insert { key, value }) => self.put(key, &value),
                Ok(Event::Remove { key }) => drop(self.instances.remove(&key)),
                Ok(Event::Clear { .. }) => self.instances.clear(),
                // What is true now can be read; if it cannot, later.
                Ok(Event::Lost { .. }) => {
                    let mut attempt = 0;
                    while let Err(error) = self.read().await {
                        if error == Error::Closed {
                            return;
                        }
                        self.registry.client.core().before_next_attempt(attempt).await;
                        attempt += 1;
                    }
                }
                Err(_) => return,
            }
            shared.instances.send_if_modified(|instances| {
                let all = self.all();
                let same = instances.len() == all.len()
                    && instances.iter().zip(&*all).all(|(a, b)| a.instance == b.instance);
                *instances = all;
                !same
            });
        }
    }
}
