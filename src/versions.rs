//! Keys with versions: read a value with its version, write it if nobody has written since, and follow what
//! comes after.

use dogsled_storage::command::KeyRead;
use dogsled_storage::{Command, Reply, Write};

use crate::{IVec, Result, Tree};

/// A value, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: IVec,
    /// The commit that set it: in an embedded database its [sequence](crate::Db::sequence), on a cluster its
    /// position in the partition's log. It grows with every write of the key.
    pub version: u64,
}

/// Somebody has written the key since; see [`Tree::put_if_version`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionConflict {
    /// What is there now; `None`: nothing.
    pub current: Option<Versioned>,
}

impl std::fmt::Display for VersionConflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            Some(current) => write!(f, "the key has version {} by now", current.version),
            None => f.write_str("the key has no value by now"),
        }
    }
}

impl std::error::Error for VersionConflict {}

/// Keys with versions, as configuration needs them: read, write if nobody has written since, follow from there.
impl Tree {
    /// The value of a key, and its version.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::Event;
    /// assert!(db.put_if_version("mail", "off", 0)?.is_ok());
    /// let seen = db.get_versioned("mail")?.unwrap();
    ///
    /// // Somebody else changes it, so this does not overwrite it unseen.
    /// db.insert("mail", "on")?;
    /// let conflict = db.put_if_version("mail", "later", seen.version)?.unwrap_err();
    /// assert_eq!(conflict.current.unwrap().value, "on");
    ///
    /// // Nothing that comes after what was read is missed.
    /// let mut changes = db.watch_prefix_after("mail", seen.version)?;
    /// assert_eq!(changes.next().unwrap(), Event::Insert { key: "mail".into(), value: "on".into() });
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_versioned<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<Versioned>> {
        let found = self.database.engine.snapshot().get(self.id, key.as_ref());
        let found = found.map_err(|error| self.explain(error))?;
        Ok(found.map(|found| Versioned { value: found.value, version: found.version }))
    }

    /// Sets a key if its value has this version still; 0: if it has none.
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`VersionConflict`], with what is there.
    pub fn put_if_version<K, V>(
        &self,
        key: K,
        value: V,
        version: u64,
    ) -> Result<std::result::Result<(), VersionConflict>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.write_if_version(IVec::from(key.as_ref()), Some(value.into()), version)
    }

    /// Removes a key if its value has this version still.
    ///
    /// # Errors
    /// As [`Tree::put_if_version`].
    pub fn remove_if_version<K: AsRef<[u8]>>(
        &self,
        key: K,
        version: u64,
    ) -> Result<std::result::Result<(), VersionConflict>> {
        self.write_if_version(IVec::from(key.as_ref()), None, version)
    }

    fn write_if_version(
        &self,
        key: IVec,
        value: Option<IVec>,
        version: u64,
    ) -> Result<std::result::Result<(), VersionConflict>> {
        let tree = self.id;
        let command = Command::Transact {
            reads: vec![KeyRead { tree, key: key.clone(), version }],
            ranges: Vec::new(),
            writes: vec![Write { tree, key: key.clone(), value }],
            expiries: Vec::new(),
        };
        match self.execute(command, self.database.durability())? {
            Reply::Done => Ok(Ok(())),
            Reply::Conflict => Ok(Err(VersionConflict { current: self.get_versioned(key)? })),
            other => unreachable!("a write was answered with {other:?}"),
        }
    }
}
