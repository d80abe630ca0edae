//! Keys with versions: read a value with its version, write it if nobody has written since, and follow what
//! comes after.
//!
//! The version of a key is the position, in the log of its partition, of the write that set its value. It grows
//! with every write, and no two writes of one key have the same. So a version says both *which* value, for
//! [`Tree::put_if_version`], and *when*, for [`Tree::watch_key_after`]. What configuration needs is these three:
//!
//! ```no_run
//! # async fn run(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
//! # fn reload(_: Option<&dogsled::IVec>) {}
//! let settings = client.tree("settings");
//! let found = settings.get_versioned("mail").await?;
//! let version = found.as_ref().map_or(0, |found| found.version);
//! reload(found.map(|found| found.value).as_ref());
//! // Nothing that comes after what was read is missed.
//! let mut changes = settings.watch_key_after("mail", version).await?;
//! while let Some(change) = changes.next().await {
//!     reload(change?.value.as_ref());
//! }
//! # Ok(()) }
//! ```

use dogsled_replication::ReadAnswer;
use dogsled_storage::compare::{Comparison, Condition};
use dogsled_storage::{Answer, Command, GroupRead, GroupReadReply, Reply, TreeId, Write};

use super::core::unexpected;
use super::subscriber::{Event, Subscriber, WatchPosition};
use super::{ReadFrom, Result, Tree};
use crate::{IVec, VersionConflict, Versioned};

impl Tree {
    /// The value of a key, and its version.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn get_versioned<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<Versioned>> {
        Ok(self.read_versioned(IVec::from(key.as_ref())).await?.0)
    }

    /// The same, and the position in the partition's log of the last write that this takes into account.
    pub(super) async fn read_versioned(&self, key: IVec) -> Result<(Option<Versioned>, u64)> {
        let get = |tree| GroupRead::Get { tree, key: key.clone() };
        let answer = self.read_at(&key, ReadFrom::Leader, self.client().until(), get).await?;
        let ReadAnswer { reply, position, .. } = answer;
        match reply {
            GroupReadReply::Value(found) => {
                let found = found.map(|found| Versioned { value: found.value, version: found.version });
                Ok((found, position))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Sets a key if its value has this version still; 0: if it has none. The new version.
    ///
    /// ```no_run
    /// # async fn change(settings: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// let mut version = 0;
    /// while let Err(conflict) = settings.put_if_version("mail", "on", version).await? {
    ///     // Look at what is there now, and decide anew.
    ///     version = conflict.current.map_or(0, |current| current.version);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes). Inner: [`VersionConflict`], with what is there.
    pub async fn put_if_version<K, V>(
        &self,
        key: K,
        value: V,
        version: u64,
    ) -> Result<std::result::Result<u64, VersionConflict>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.write_if_version(IVec::from(key.as_ref()), Some(value.into()), version).await
    }

    /// Removes a key if its value has this version still; the position of the removal.
    ///
    /// # Errors
    /// As [`Tree::put_if_version`].
    pub async fn remove_if_version<K: AsRef<[u8]>>(
        &self,
        key: K,
        version: u64,
    ) -> Result<std::result::Result<u64, VersionConflict>> {
        self.write_if_version(IVec::from(key.as_ref()), None, version).await
    }

    async fn write_if_version(
        &self,
        key: IVec,
        value: Option<IVec>,
        version: u64,
    ) -> Result<std::result::Result<u64, VersionConflict>> {
        let tree = TreeId(0);
        let command = Command::Compare {
            comparisons: vec![Comparison { tree, key: key.clone(), condition: Condition::Version(version) }],
            then: vec![Write { tree, key: key.clone(), value }],
            otherwise: Vec::new(),
        };
        let reply = self.submit(&key, command).await?;
        match reply.result {
            Ok(Answer::Reply(Reply::Compared(Ok(())))) => Ok(Ok(reply.position)),
            Ok(Answer::Reply(Reply::Compared(Err(_)))) => {
                Ok(Err(VersionConflict { current: self.get_versioned(key).await? }))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Follows one key, beginning with the first write after this version: that of a value that was read, or what
    /// a write has returned; 0: with the value that it has now. A
    /// [recovery with a loss of data](super::Client::recover) gives versions anew: who follows a key then is told once
    /// more what is there, and in a cluster that has seen one this reads what is there before it follows it, so keep a
    /// watcher rather than make one for each change.
    ///
    /// # Errors
    /// [`Error::Unavailable`](super::Error::Unavailable) if the partition was not reached before the deadline.
    pub async fn watch_key_after<K: AsRef<[u8]>>(&self, key: K, version: u64) -> Result<KeyWatcher> {
        let (client, key) = (self.client(), IVec::from(key.as_ref()));
        let (until, watched) = (client.until(), &key);
        let changes = self.by_stored_name(until, |stored| async move {
            let group = client.core().group_in(&stored, watched, until).await?;
            let from = match version {
                // What is there now is looked at once the stream has begun.
                0 => WatchPosition::default(),
                version => WatchPosition::of_part(group, version),
            };
            Subscriber::begin(client.clone(), stored, watched.clone(), &from, Some(group), until).await
        });
        let changes = changes.await?;
        // Of a version nobody knows how many lie behind it.
        let history = (version == 0).then(|| changes.history());
        let (tree, must_look) = (self.clone(), version == 0);
        Ok(KeyWatcher { tree, key, version, history, is_cut: false, changes, must_look })
    }
}

/// A key has another value, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyChange {
    /// The new value; `None`: it was removed.
    pub value: Option<IVec>,
    /// The version of the value, or the position of the removal; what [`Tree::put_if_version`] and
    /// [`Tree::watch_key_after`] take, except that a removed key's is 0 for the former.
    pub version: u64,
    /// Whether there were perhaps other values in between, which the cluster keeps no more.
    pub is_after_gap: bool,
}

/// Follows one key; made by [`Tree::watch_key_after`].
#[derive(Debug)]
pub struct KeyWatcher {
    tree: Tree,
    key: IVec,
    /// The last that was told.
    version: u64,
    /// How many recoveries lie behind that, if that is known.
    history: Option<u64>,
    /// Another one does: what was told may be lost, and its version may be another value's now.
    is_cut: bool,
    changes: Subscriber,
    /// What was before is not told by anybody.
    must_look: bool,
}

impl KeyWatcher {
    /// The next change, each one once, in order; `None` after the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn next(&mut self) -> Option<Result<KeyChange>> {
        loop {
            if self.must_look {
                match self.look().await {
                    Ok(Some(change)) => return Some(Ok(change)),
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                }
            }
            let (version, value) = match self.changes.next_at().await? {
                Err(error) => return Some(Err(error)),
                Ok((at, Event::Insert { key, value })) if key == self.key => (at, Some(value)),
                Ok((at, Event::Remove { key })) if key == self.key => (at, None),
                Ok((at, Event::Clear { .. })) => (at, None),
                Ok((_, Event::Lost { .. })) => {
                    self.must_look = true;
                    let history = self.changes.history();
                    self.is_cut |= self.history.replace(history).is_some_and(|before| before != history);
                    continue;
                }
                Ok(_) => continue,
            };
            // What was read is told once more by those that were behind.
            if version > self.version {
                self.version = version;
                return Some(Ok(KeyChange { value, version, is_after_gap: false }));
            }
        }
    }

    /// What is there now, if that is news.
    async fn look(&mut self) -> Result<Option<KeyChange>> {
        let (found, position) = self.tree.read_versioned(self.key.clone()).await?;
        self.must_look = false;
        let is_after_gap = self.version > 0;
        if std::mem::take(&mut self.is_cut) {
            self.version = 0;
        }
        let change = match found {
            // A smaller one is of another history.
            Some(found) if found.version != self.version => {
                KeyChange { value: Some(found.value), version: found.version, is_after_gap }
            }
            // Nobody says when it was removed, if it was there.
            None if is_after_gap && position > self.version => {
                KeyChange { value: None, version: position, is_after_gap }
            }
            _ => return Ok(None),
        };
        self.version = change.version;
        Ok(Some(change))
    }
}
