//! [`Registry`]: which instances of a service there are, and which of them to ask.
//!
//! An instance is a key that dies with its session ([`Session`]): it is there as long as that lives, and who
//! follows the keys hears when it comes and when it is gone. In an embedded database the instances are parts of one
//! process: pools of workers, connections, caches. What is kept of them is what a cluster's registry keeps.

mod instance;
mod picking;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

pub use self::instance::Instance;
pub(crate) use self::instance::{TREE, prefix};
pub(crate) use self::picking::{Known, Picker};
pub use self::picking::{Pick, Picked};
use crate::{Db, Error, Event, IVec, Result, Session, Subscriber, Tree};

/// The instances of one service; made by [`Db::registry`](crate::Db::registry).
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use dogsled::{Instance, Pick};
/// use std::time::Duration;
///
/// // The instance: there as long as its session.
/// let session = db.session(Duration::from_secs(10))?;
/// let resizing = db.registry("resizing")?;
/// resizing.register(&session, &Instance::new("7", "queue 7").tag("gpu"))?;
///
/// // Who wants it.
/// let resolver = db.registry("resizing")?.follow()?;
/// let picked = resolver.pick(Pick::LeastOutstanding).expect("there is one"); // counted until it is dropped
/// assert_eq!(picked.address, "queue 7");
/// assert!(resolver.pick_tagged(Pick::Random, "cpu").is_none());
/// session.close()?;
/// assert!(resolver.pick(Pick::RoundRobin).is_none());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Registry {
    tree: Tree,
    prefix: String,
}

impl Db {
    /// The instances of a service; see [`Registry`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that is empty or has a brace in it, and those of writing.
    pub fn registry(&self, service: &str) -> Result<Registry> {
        let Some(prefix) = prefix(service) else {
            return Err(Error::Unsupported(format!("a service cannot be called \"{service}\"")));
        };
        Ok(Registry { tree: self.open_tree(TREE)?, prefix })
    }
}

impl Registry {
    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Makes an instance known for as long as a session lives, or what it says anew, if the id is known.
    ///
    /// # Errors
    /// As [`Session::insert`].
    pub fn register(&self, session: &Session, instance: &Instance) -> Result<()> {
        session.insert(&self.tree, self.key(&instance.id), instance.encode()).map(drop)
    }

    /// Takes an instance out, before its session ends; whether it was there.
    ///
    /// # Errors
    /// Those of writing.
    pub fn deregister(&self, id: &str) -> Result<bool> {
        Ok(self.tree.remove(self.key(id))?.is_some())
    }

    /// Those that are known now, in the order of their ids.
    ///
    /// # Errors
    /// Those of reading.
    pub fn instances(&self) -> Result<Vec<Instance>> {
        let entries = self.tree.scan_prefix(&self.prefix).collect::<Result<Vec<_>>>()?;
        Ok(entries.iter().filter_map(|(key, value)| self.read(key, value)).collect())
    }

    /// What this version does not understand is not there.
    fn read(&self, key: &[u8], value: &[u8]) -> Option<Instance> {
        Instance::decode(key.strip_prefix(self.prefix.as_bytes())?, value)
    }

    /// Begins to follow which there are.
    ///
    /// # Errors
    /// Those of reading.
    pub fn follow(&self) -> Result<Resolver> {
        let draw = RandomState::new().hash_one(0);
        let mut list = List {
            changes: self.tree.watch_prefix(&self.prefix),
            instances: BTreeMap::new(),
            must_read: false,
        };
        list.read(self)?;
        Ok(Resolver {
            registry: self.clone(),
            list: Mutex::new(list),
            picker: Picker::new(draw as usize, draw),
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// What a resolver picks from: as it was when it was last asked.
struct List {
    changes: Subscriber,
    /// By their keys.
    instances: BTreeMap<IVec, Known>,
    /// Something is not known, because it was told too fast.
    must_read: bool,
}

impl List {
    /// Whoever is known already stays in use by as many.
    fn put(&mut self, registry: &Registry, key: IVec, value: &[u8]) {
        match registry.read(&key, value) {
            Some(instance) => {
                let outstanding = self.instances.get(&key).map(|known| Arc::clone(&known.outstanding));
                let outstanding = outstanding.unwrap_or_default();
                self.instances.insert(key, Known { instance: Arc::new(instance), outstanding });
            }
            None => drop(self.instances.remove(&key)),
        }
    }

    fn read(&mut self, registry: &Registry) -> Result<()> {
        let all = registry.tree.scan_prefix(&registry.prefix).collect::<Result<Vec<_>>>()?;
        self.instances.retain(|known, _| all.iter().any(|(key, _)| key == known));
        for (key, value) in all {
            self.put(registry, key, &value);
        }
        Ok(())
    }

    fn catch_up(&mut self, registry: &Registry) {
        while let Some(event) = self.changes.try_next() {
            match event {
                Event::Insert { key, value } => self.put(registry, key, &value),
                Event::Remove { key } => drop(self.instances.remove(&key)),
                Event::Clear => self.instances.clear(),
                Event::Overflowed { .. } | Event::Compacted { .. } => self.must_read = true,
            }
        }
        if self.must_read {
            // If it cannot be read, what was known is told, and the next time it is tried again.
            self.must_read = self.read(registry).is_err();
        }
    }
}

/// Knows the instances of a service, and picks among them; made by [`Registry::follow`].
///
/// It answers from its own list, which it brings up to date by what has changed since it was asked last.
pub struct Resolver {
    registry: Registry,
    list: Mutex<List>,
    picker: Picker,
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
        // A stranger's code must not meet the mutex.
        let known: Vec<Known> = {
            let mut list = self.list.lock();
            list.catch_up(&self.registry);
            list.instances.values().cloned().collect()
        };
        self.picker.pick(known.iter(), how, is_fit)
    }

    /// Those that are known, in the order of their ids.
    pub fn instances(&self) -> Vec<Instance> {
        let mut list = self.list.lock();
        list.catch_up(&self.registry);
        list.instances.values().map(|known| Instance::clone(&known.instance)).collect()
    }

    /// Tells whenever there are others than now.
    pub fn changes(&self) -> InstanceChanges {
        // Followed first, so that nothing is missed between the two.
        let changes = self.registry.tree.watch_prefix(&self.registry.prefix);
        InstanceChanges { registry: self.registry.clone(), changes, told: self.instances() }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Tells when the instances of a service change; made by [`Resolver::changes`].
///
/// As an iterator it waits until the instances are others than it has told last.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use dogsled::Instance;
/// use std::time::Duration;
/// let resizing = db.registry("resizing")?;
/// let mut changes = resizing.follow()?.changes();
/// let session = db.session(Duration::from_secs(10))?;
/// resizing.register(&session, &Instance::new("7", "queue 7"))?;
/// assert_eq!(changes.next().unwrap()?, [Instance::new("7", "queue 7")]);
/// drop(session);
/// assert_eq!(changes.next().unwrap()?, []);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct InstanceChanges {
    registry: Registry,
    changes: Subscriber,
    told: Vec<Instance>,
}

impl Iterator for InstanceChanges {
    type Item = Result<Vec<Instance>>;

    fn next(&mut self) -> Option<Result<Vec<Instance>>> {
        loop {
            self.changes.next()?;
            // What is read has these as well.
            while self.changes.try_next().is_some() {}
            match self.registry.instances() {
                Ok(instances) if instances == self.told => {}
                Ok(instances) => {
                    self.told.clone_from(&instances);
                    return Some(Ok(instances));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
