//! [`Database`]: what the data commands work on, be it a directory or a cluster.
//!
//! Both have the same trees, counters and locks, so a command is written once. What differs is said
//! here and nowhere else: a directory is made by the first write and has to be synced; a cluster syncs
//! by itself, and a batch is atomic in each partition only.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dogsled::{
    Batch, Db, FencingToken, IVec, Leader, LockHolders, OutOfBounds, SessionStatus, Tree, Ttl, cluster,
};
use dogsled_storage::strings::{
    StringAction, StringsFailure, StringsOperation, StringsReplies, StringsReply,
};
use dogsled_storage::{Command, DEFAULT_TREE_NAME, ExpiryCommand, Reply, SetIf, When};

use super::args::{Global, ReadArgs, ReadFromArg};
use super::bytes;
use super::exit::{Code, Failure, Result};
use super::remote::Remote;
use super::store::KeyRange;

/// So many requests are under way to a cluster at a time.
pub(crate) const TOGETHER: usize = 256;

/// A directory that was opened, or a cluster that was reached.
#[derive(Clone)]
pub(crate) enum Database {
    Directory(Db),
    Cluster(Rc<Remote>),
}

/// A tree of a [`Database`].
#[derive(Clone)]
pub(crate) enum Keyspace {
    Directory(Tree),
    Cluster(Rc<Remote>, cluster::Tree),
}

/// Entries of a [`Keyspace`].
pub(crate) enum Entries {
    Directory(Box<dyn Iterator<Item = dogsled::Result<(IVec, IVec)>>>),
    Cluster(Rc<Remote>, Box<cluster::Entries>),
    Nothing,
}

impl Global {
    /// What a command that reads works on: it never makes a database.
    pub(crate) fn existing_database(&self) -> Result<Database> {
        match self.wants_cluster()? {
            true => Ok(Database::Cluster(Rc::new(Remote::connect(self)?))),
            false => Ok(Database::Directory(self.open_existing(None)?)),
        }
    }

    /// What a command that writes works on, made if it is a directory that is not there.
    pub(crate) fn database(&self) -> Result<Database> {
        match self.wants_cluster()? {
            true => Ok(Database::Cluster(Rc::new(Remote::connect(self)?))),
            false => Ok(Database::Directory(self.open_or_create()?)),
        }
    }

    /// The tree chosen with `--tree`; exit code 1 if there is none of that name.
    pub(crate) fn existing_tree(&self, database: &Database) -> Result<Keyspace> {
        match self.tree_name()? {
            Some(name) => database.existing_tree(&name),
            None => database.tree(DEFAULT_TREE_NAME),
        }
    }

    /// The tree chosen with `--tree`, of a database that must exist, read from whom `from` says.
    pub(crate) fn tree_to_read(&self, from: &ReadArgs) -> Result<Keyspace> {
        let read_from = match (from.read_from, from.max_age) {
            (_, Some(seconds)) => match Duration::try_from_secs_f64(seconds) {
                Ok(age) => Some(cluster::ReadFrom::AtMostOld(age)),
                Err(error) => return Err(Failure::usage(format!("--max-age {seconds}: {error}"))),
            },
            (Some(ReadFromArg::Leader), None) => Some(cluster::ReadFrom::Leader),
            (Some(ReadFromArg::Any), None) => Some(cluster::ReadFrom::Any),
            (Some(ReadFromArg::Nearest), None) => Some(cluster::ReadFrom::Nearest),
            (Some(ReadFromArg::Stale), None) => Some(cluster::ReadFrom::Stale),
            (None, None) => None,
        };
        if read_from.is_some() && !self.wants_cluster()? {
            return Err(Failure::usage(
                "--read-from and --max-age choose among the replicas of a cluster: they need --connect",
            ));
        }
        let database = match self.wants_cluster()? {
            true => {
                let zone = from.zone.clone().unwrap_or_default();
                Database::Cluster(Rc::new(Remote::connect_in(self, zone)?))
            }
            false => self.existing_database()?,
        };
        // The names are of all partitions, by their leaders: who reads from others does not ask for them.
        let named = self.tree_name()?;
        let tree = match (&database, read_from, named) {
            (Database::Cluster(_), Some(_), Some(name)) => database.tree(&name)?,
            _ => self.existing_tree(&database)?,
        };
        Ok(match (tree, read_from) {
            (Keyspace::Cluster(remote, tree), Some(from)) => Keyspace::Cluster(remote, tree.read_from(from)),
            (tree, _) => tree,
        })
    }

    /// The tree chosen with `--tree`, made if there is none of that name.
    pub(crate) fn tree_for_writing(&self, database: &Database) -> Result<Keyspace> {
        match self.tree_name()? {
            Some(name) => database.tree_for_writing(&name),
            None => database.tree(DEFAULT_TREE_NAME),
        }
    }
}

/// Whether a tree is the database's own, or would be: what is kept under such a name means something to it.
pub(crate) fn is_own(name: &[u8]) -> bool {
    name.starts_with(b"__dogsled__")
}

impl Database {
    /// The names of the trees.
    pub(crate) fn tree_names(&self) -> Result<Vec<IVec>> {
        match self {
            Database::Directory(db) => Ok(db.tree_names()),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().tree_names())?),
        }
    }

    /// The tree of that name, made if there is none.
    pub(crate) fn tree(&self, name: &[u8]) -> Result<Keyspace> {
        match self {
            Database::Directory(db) => Ok(Keyspace::Directory(db.open_tree(name)?)),
            Database::Cluster(remote) => Ok(Keyspace::Cluster(Rc::clone(remote), remote.client().tree(name))),
        }
    }

    /// The tree of that name; exit code 1 if there is none.
    pub(crate) fn existing_tree(&self, name: &[u8]) -> Result<Keyspace> {
        if !self.tree_names()?.iter().any(|known| known == name) {
            return Err(Failure::not_found(format!("no tree {:?}", bytes::display_short(name))));
        }
        self.tree(name)
    }

    /// The tree of that name, made if there is none; not one of the database's own.
    pub(crate) fn tree_for_writing(&self, name: &[u8]) -> Result<Keyspace> {
        if is_own(name) {
            return Err(Failure::usage(format!(
                "tree {:?} is the database's own; use `dogsled counter` or `dogsled lock`",
                bytes::display_short(name)
            )));
        }
        self.tree(name)
    }

    /// Makes what was written durable, if it is not yet.
    pub(crate) fn flush(&self) -> Result<()> {
        if let Database::Directory(db) = self {
            db.flush()?;
        }
        Ok(())
    }

    /// A counter's value.
    pub(crate) fn counter(&self, name: &[u8]) -> Result<i64> {
        match self {
            Database::Directory(db) => Ok(db.counter(name).get()?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().counter(name).get())?),
        }
    }

    /// Adds to a counter within bounds.
    pub(crate) fn counter_add(
        &self,
        name: &[u8],
        amount: i64,
        bounds: RangeInclusive<i64>,
    ) -> Result<Result<i64, OutOfBounds>> {
        match self {
            Database::Directory(db) => Ok(db.counter(name).add_within(amount, bounds)?),
            Database::Cluster(remote) => {
                Ok(remote.wait(remote.client().counter(name).add_within(amount, bounds))?)
            }
        }
    }

    /// Sets a counter; what it was.
    pub(crate) fn counter_set(&self, name: &[u8], value: i64) -> Result<i64> {
        match self {
            Database::Directory(db) => Ok(db.counter(name).set(value)?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().counter(name).set(value))?),
        }
    }

    /// Sets a counter that stands there; or where it stands.
    pub(crate) fn counter_set_if(&self, name: &[u8], expected: i64, value: i64) -> Result<Result<(), i64>> {
        match self {
            Database::Directory(db) => Ok(db.counter(name).set_if(expected, value)?),
            Database::Cluster(remote) => {
                Ok(remote.wait(remote.client().counter(name).set_if(expected, value))?)
            }
        }
    }

    /// Sets a counter back; what it was.
    pub(crate) fn counter_reset(&self, name: &[u8]) -> Result<i64> {
        match self {
            Database::Directory(db) => Ok(db.counter(name).reset()?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().counter(name).reset())?),
        }
    }

    /// Who holds a lock.
    pub(crate) fn lock_holders(&self, name: &[u8]) -> Result<LockHolders> {
        match self {
            Database::Directory(db) => Ok(db.lock(name).holders()?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().lock(name).holders())?),
        }
    }

    /// The sessions that are open.
    pub(crate) fn sessions(&self) -> Result<Vec<SessionStatus>> {
        match self {
            Database::Directory(db) => Ok(db.sessions()?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().sessions())?),
        }
    }

    /// Takes a lock, within `wait`, and keeps it; its token, and when the lease ends. `None` if it is held.
    pub(crate) fn lock_acquire(
        &self,
        name: &[u8],
        owner: &[u8],
        lease: Duration,
        wait: Duration,
    ) -> Result<Option<(FencingToken, u64)>> {
        match self {
            Database::Directory(db) => {
                let lock = db.lock(name).owner(owner);
                let granted = match wait.is_zero() {
                    true => lock.try_acquire(lease)?,
                    false => lock.acquire_timeout(lease, wait)?,
                };
                Ok(granted.map(|guard| {
                    let granted = (guard.token(), guard.expires_ms());
                    guard.keep();
                    granted
                }))
            }
            Database::Cluster(remote) => {
                let lock = remote.client().lock(name).owner(owner);
                let granted = match wait.is_zero() {
                    true => remote.wait(lock.try_acquire(lease))?,
                    false => remote.wait(lock.acquire_timeout(lease, wait))?,
                };
                Ok(granted.map(|guard| {
                    let granted = (guard.token(), guard.expires_ms());
                    guard.keep();
                    granted
                }))
            }
        }
    }

    /// Starts the lease anew of a lock that is held with this token; when it ends. `None`: it is not.
    pub(crate) fn lock_renew(
        &self,
        name: &[u8],
        owner: &[u8],
        token: u64,
        lease: Duration,
    ) -> Result<Option<u64>> {
        let token = FencingToken(token);
        match self {
            Database::Directory(db) => {
                let held = db.lock(name).owner(owner).resume()?;
                let Some(guard) = held else { return Ok(None) };
                let renewed = (guard.token() == token).then(|| guard.renew(lease));
                let expires_ms = guard.expires_ms();
                // Also when it could not be renewed: it is not this process's to give back.
                guard.keep();
                Ok(renewed.transpose()?.is_some_and(|renewed| renewed.is_ok()).then_some(expires_ms))
            }
            Database::Cluster(remote) => {
                let held = remote.wait(remote.client().lock(name).owner(owner).resume())?;
                let Some(guard) = held else { return Ok(None) };
                let renewed = (guard.token() == token).then(|| remote.wait(guard.renew(lease)));
                let expires_ms = guard.expires_ms();
                guard.keep();
                Ok(renewed.transpose()?.is_some_and(|renewed| renewed.is_ok()).then_some(expires_ms))
            }
        }
    }

    /// Who leads an election.
    pub(crate) fn leader(&self, election: &[u8]) -> Result<Option<Leader>> {
        match self {
            Database::Directory(db) => Ok(db.election(election).leader()?),
            Database::Cluster(remote) => Ok(remote.wait(remote.client().election(election).leader())?),
        }
    }

    /// Says something as the leader of an election.
    pub(crate) fn proclaim(&self, election: &[u8], token: FencingToken, value: &[u8]) -> Result<()> {
        match self {
            Database::Directory(db) => Ok(db.election(election).proclaim(token, value)?),
            Database::Cluster(remote) => {
                Ok(remote.wait(remote.client().election(election).proclaim(token, value))?)
            }
        }
    }

    /// Ends a leadership; whether there still was one.
    pub(crate) fn resign(&self, election: &[u8], token: FencingToken) -> Result<bool> {
        match self {
            Database::Directory(db) => Ok(db.election(election).resign(token)?.is_ok()),
            Database::Cluster(remote) => {
                Ok(remote.wait(remote.client().election(election).resign(token))?.is_ok())
            }
        }
    }

    /// Gives back a lock, or permits of one, that are held with this token; whether they were.
    pub(crate) fn lock_release(&self, name: &[u8], owner: &[u8], token: u64) -> Result<bool> {
        let token = FencingToken(token);
        match self {
            Database::Directory(db) => Ok(db.lock(name).owner(owner).release_grant(token)?.is_ok()),
            Database::Cluster(remote) => {
                let lock = remote.client().lock(name).owner(owner);
                Ok(remote.wait(lock.release_grant(token))?.is_ok())
            }
        }
    }

    /// Carries out operations of Redis clients on keys of a tree that is there; all of them, or it fails. Atomic in a
    /// directory, and in each partition of a cluster.
    pub(crate) fn operate(&self, tree: &[u8], actions: &[(IVec, StringAction)]) -> Result<()> {
        let replies = match self {
            Database::Directory(db) => {
                let engine = db.engine();
                let Some(tree) = engine.tree_id(tree) else {
                    return Err(dogsled::Error::CollectionNotFound(IVec::from(tree)).into());
                };
                let operations = actions.iter().map(|(key, action)| StringsOperation {
                    tree,
                    key: key.clone(),
                    action: action.clone(),
                });
                let command = Command::Strings { watched: Vec::new(), operations: operations.collect() };
                match engine.execute(command, engine.durability()).map_err(dogsled::Error::from)? {
                    Reply::Strings(StringsReplies(replies)) => replies,
                    other => unreachable!("operations were answered with {other:?}"),
                }
            }
            Database::Cluster(remote) => remote.wait(remote.client().tree(tree).operate(actions))?,
        };
        let failed = actions.iter().zip(replies).find_map(|((key, _), reply)| match reply {
            StringsReply::Failed(failure) => Some((key, failure)),
            _ => None,
        });
        match failed {
            None => Ok(()),
            Some((key, StringsFailure::OverQuota)) => Err(Failure::new(
                Code::QuotaExceeded,
                format!("key {}: the tree would be larger than its quota allows", bytes::display_short(key)),
            )),
            Some((key, failure)) => Err(Failure::refused(format!(
                "key {} cannot be written ({failure:?}): somebody else writes there",
                bytes::display_short(key)
            ))),
        }
    }

    /// The time that leases are counted in, in milliseconds since 1970; of a cluster as near as this
    /// machine's clock is.
    pub(crate) fn now_ms(&self) -> u64 {
        match self {
            Database::Directory(db) => db.engine().now_ms(),
            Database::Cluster(_) => wall_clock_ms(),
        }
    }
}

fn wall_clock_ms() -> u64 {
    milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A key, its value unless that stays as it is, and when it expires.
pub(crate) type Expiring = (IVec, Option<IVec>, u64);

impl Keyspace {
    /// The tree's name.
    pub(crate) fn name(&self) -> IVec {
        match self {
            Keyspace::Directory(tree) => tree.name(),
            Keyspace::Cluster(_, tree) => tree.name().clone(),
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<IVec>> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.get(key)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.get(key))?),
        }
    }

    /// Sets a key; the value before.
    pub(crate) fn insert(&self, key: &[u8], value: Vec<u8>) -> Result<Option<IVec>> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.insert(key, value)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.insert(key, value))?),
        }
    }

    /// Sets a key that is the prefix and the next number; the key.
    pub(crate) fn insert_next(&self, prefix: &[u8], value: Vec<u8>) -> Result<IVec> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.insert_next(prefix, value)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.insert_next(prefix, value))?),
        }
    }

    /// Sets or removes a key that has this value; or the value that it has.
    pub(crate) fn compare_and_swap(
        &self,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Result<(), Option<IVec>>> {
        let swapped = match self {
            Keyspace::Directory(tree) => tree.compare_and_swap(key, old, new)?,
            Keyspace::Cluster(remote, tree) => remote.wait(tree.compare_and_swap(key, old, new))?,
        };
        Ok(swapped.map_err(|error| error.current))
    }

    /// Sets a key that expires; the value before.
    pub(crate) fn insert_with_ttl(&self, key: &[u8], value: Vec<u8>, ttl: Duration) -> Result<Option<IVec>> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.insert_with_ttl(key, value, ttl)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.insert_with_ttl(key, value, ttl))?),
        }
    }

    /// Has a key expire; whether it was there.
    pub(crate) fn expire(&self, key: &[u8], ttl: Duration) -> Result<bool> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.expire(key, ttl)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.expire(key, ttl))?),
        }
    }

    /// Sets keys, or what is there already where no value is given, to expire at times in milliseconds since 1970: those
    /// that are over are not there. In one step each, so that none stays if that is interrupted.
    pub(crate) fn put_until(&self, database: &Database, keys: Vec<Expiring>) -> Result<()> {
        match (self, database) {
            (Keyspace::Directory(tree), Database::Directory(db)) => {
                let engine = db.engine();
                let name = tree.name();
                let Some(tree) = engine.tree_id(&name) else {
                    return Err(dogsled::Error::CollectionNotFound(name).into());
                };
                for (key, value, at_ms) in keys {
                    let (when, only) = (When::At(engine.log_time_at(at_ms)), SetIf::Always);
                    let command = match value {
                        Some(value) => ExpiryCommand::Insert { tree, key, value, when },
                        None => ExpiryCommand::Set { tree, key, when, only },
                    };
                    let done = engine.execute(Command::Expiry(command), engine.durability());
                    done.map_err(dogsled::Error::from)?;
                }
            }
            (Keyspace::Cluster(remote, tree), _) => {
                for keys in keys.chunks(TOGETHER) {
                    let each =
                        keys.iter().cloned().map(|(key, value, at_ms)| tree.put_until(key, value, at_ms));
                    remote.wait(futures_util::future::try_join_all(each))?;
                }
            }
            (Keyspace::Directory(_), Database::Cluster(_)) => unreachable!("a tree of another database"),
        }
        Ok(())
    }

    /// Has a key stay; whether it had a time to live.
    pub(crate) fn persist(&self, key: &[u8]) -> Result<bool> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.persist(key)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.persist(key))?),
        }
    }

    /// How long a key has to live.
    pub(crate) fn ttl(&self, key: &[u8]) -> Result<Ttl> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.ttl(key)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.ttl(key))?),
        }
    }

    /// Removes a key; the value before.
    pub(crate) fn remove(&self, key: &[u8]) -> Result<Option<IVec>> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.remove(key)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.remove(key))?),
        }
    }

    /// Applies writes in order of keys' appearance; atomically in a directory, and in each partition
    /// of a cluster.
    pub(crate) fn apply_batch(&self, batch: Batch) -> Result<()> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.apply_batch(batch)?),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.apply_batch_by_partition(batch))?),
        }
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> Result<u64> {
        match self {
            Keyspace::Directory(tree) => Ok(tree.len() as u64),
            Keyspace::Cluster(remote, tree) => Ok(remote.wait(tree.len())?),
        }
    }

    /// Entries in the order of keys, or backwards; of a cluster without the values if they are not
    /// wanted.
    pub(crate) fn entries(&self, range: &KeyRange, reverse: bool, values: bool) -> Entries {
        let Some(bounds) = range.bounds() else { return Entries::Nothing };
        match self {
            Keyspace::Directory(tree) => {
                let entries = tree.range::<&[u8], _>(bounds);
                Entries::Directory(if reverse { Box::new(entries.rev()) } else { Box::new(entries) })
            }
            Keyspace::Cluster(remote, tree) => {
                let mut entries = tree.range::<&[u8], _>(bounds);
                if reverse {
                    entries = entries.rev();
                }
                if !values {
                    entries = entries.keys_only();
                }
                Entries::Cluster(Rc::clone(remote), Box::new(entries))
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Result<(IVec, IVec)>> {
        match self {
            Entries::Directory(entries) => Some(entries.next()?.map_err(Failure::from)),
            Entries::Cluster(remote, entries) => Some(remote.wait(entries.next())?.map_err(Failure::from)),
            Entries::Nothing => None,
        }
    }
}
