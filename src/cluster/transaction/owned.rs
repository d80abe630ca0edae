//! Keys that die with a session, and keys with numbers, in transactions.
//!
//! The session is opened where the key lies before the transaction is committed. The number is read, as any key is, and the
//! key that it makes is the caller's at once; where the transaction is committed the number must still be to be had, or the
//! run counts for nothing and is repeated. See [`dogsled_storage::owned`].

use dogsled_storage::owned::numbered_key;
use dogsled_storage::{GroupRead, GroupReadReply};

use super::attempt::{Transaction, access};
use super::sets::Owned;
use crate::IVec;
use crate::cluster::core::unexpected;
use crate::cluster::{ReadFrom, Result, Session, Tree};

/// Keys of [sessions](crate::cluster::Session), and numbered keys.
///
/// ```no_run
/// # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use dogsled::cluster::transaction::TransactionResult;
/// use std::time::Duration;
/// let (jobs, workers) = (&client.tree("jobs"), &client.tree("workers"));
/// let session = &client.session(Duration::from_secs(30));
/// // The worker is seen as soon as its first job is, and not without it.
/// let job: TransactionResult<dogsled::IVec> = client
///     .transaction(|tx| async move {
///         tx.insert_with_session(workers, session, "worker 7", "here").await?;
///         Ok(tx.insert_next(jobs, "{jobs}:", "resize 7").await?)
///     })
///     .await;
/// assert!(job?.starts_with(b"{jobs}:"));
/// # Ok(()) }
/// ```
impl Transaction {
    /// Sets a key that dies with a session; the value before, which is read for that. A plain write of the key makes it one
    /// like any other.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::cluster::Error::Invalid) if the session has ended, also when the transaction is committed;
    /// as [`Transaction::get`].
    pub async fn insert_with_session<K, V>(
        &self,
        tree: &Tree,
        session: &Session,
        key: K,
        value: V,
    ) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value) = (IVec::from(key.as_ref()), value.into());
        let before = self.get(tree, &key).await?;
        session.open_for(&tree.stored_name(), &key).await?;
        let owned = Owned { session: Some(session.id()), is_numbered: false };
        self.with(|sets| access(sets, tree).write_owned(key, value, owned))?;
        Ok(before)
    }

    /// Sets a new key: the prefix and its next number, as [`Tree::insert_next`] does; the key.
    ///
    /// The number is read for that: of two transactions that give a number of one prefix, one has to run again. Where many
    /// do, [`Tree::insert_next`] does so without.
    ///
    /// # Errors
    /// As [`Tree::insert_next`] and [`Transaction::get`].
    pub async fn insert_next<P, V>(&self, tree: &Tree, prefix: P, value: V) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.next_key(tree, prefix.as_ref(), value.into(), None).await
    }

    /// As [`Transaction::insert_next`], of a key that dies with a session.
    ///
    /// # Errors
    /// As [`Transaction::insert_next`] and [`Transaction::insert_with_session`].
    pub async fn insert_next_with_session<P, V>(
        &self,
        tree: &Tree,
        session: &Session,
        prefix: P,
        value: V,
    ) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.next_key(tree, prefix.as_ref(), value.into(), Some(session)).await
    }

    async fn next_key(
        &self,
        tree: &Tree,
        prefix: &[u8],
        value: IVec,
        session: Option<&Session>,
    ) -> Result<IVec> {
        tree.check_numbers(prefix).await?;
        let (stored, prefix) = (tree.stored_name(), IVec::from(prefix));
        if let Some(session) = session {
            session.open_for(&stored, &prefix).await?;
        }
        if self.with(|sets| sets.access(&stored).next_number(&prefix).is_none())? {
            let core = self.client.core();
            let group = core.group_in(&stored, &prefix, self.until).await?;
            let read = GroupRead::NextNumber { tree: stored.clone(), prefix: prefix.clone() };
            let answer = core.read(group, &read, ReadFrom::Leader, self.until).await?;
            let GroupReadReply::NextNumber(number) = answer.reply else { return Err(unexpected(&answer)) };
            self.with(|sets| {
                sets.note_position(group, answer.position);
                sets.access(&stored).note_next_number(&prefix, number);
            })?;
        }
        let owned = Owned { session: session.map(Session::id), is_numbered: true };
        self.with(|sets| {
            let access = access(sets, tree);
            let next = access.next_number(&prefix).expect("it was noted just now");
            let key = numbered_key(&prefix, *next);
            // Of the last number there is, which is never given, the commit says so.
            *next = next.saturating_add(1);
            access.write_owned(key.clone(), value, owned);
            key
        })
    }
}
