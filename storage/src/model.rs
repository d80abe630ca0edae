//! [`ModelState`]: the whole state as plain maps in memory, for tests, fuzzing and examples.
//!
//! The database must behave as this model does: the same commands at the same positions give the
//! same replies and the same contents. It is written for being obviously right, not for speed,
//! and is strict where the engine trusts: [`ModelState::apply`] panics at an effect that is not
//! exact (a "fresh" put of a key that is there, a remove of one that is not), because such an
//! effect makes the engine's count of keys drift.
//!
//! ```
//! use dogsled_storage::model::ModelState;
//! use dogsled_storage::{Command, IVec, Reply, TreeId};
//!
//! let mut state = ModelState::new();
//! let put = Command::Insert { tree: TreeId::DEFAULT, key: "a".into(), value: "1".into() };
//! assert_eq!(state.execute(1_000, &put)?, Reply::Previous(None));
//! assert_eq!(state.execute(1_001, &put)?, Reply::Previous(Some(IVec::from("1"))));
//! assert_eq!(state.len(TreeId::DEFAULT), 1);
//! assert_eq!(state.sequence(), 2);
//! # Ok::<(), dogsled_storage::Error>(())
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::command::{Command, Reply, TREE_WEIGHT, TreeId};
use crate::evaluate::{Context, Effect, Entry, Versioned, View, evaluate};
use crate::group::{GroupCommand, GroupReply};
use crate::group_evaluate::evaluate_group;
use crate::transaction::Transactions;
use crate::{IVec, Result, expiry};

/// The contents of one tree, with the sequence that wrote each key.
pub type ModelTree = BTreeMap<IVec, Versioned>;

/// The whole state in memory; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelState {
    trees: BTreeMap<TreeId, ModelTree>,
    names: BTreeMap<IVec, TreeId>,
    next_tree_id: TreeId,
    next_id: u64,
    sequence: u64,
    time_ms: u64,
    /// Of a replica.
    transactions: Option<Transactions>,
}

impl Default for ModelState {
    fn default() -> Self {
        ModelState::new()
    }
}

impl ModelState {
    /// An empty database: the default tree and the database's own, no keys, sequence 0.
    pub fn new() -> ModelState {
        let own = [
            TreeId::DEFAULT,
            TreeId::COUNTERS,
            TreeId::LOCKS,
            TreeId::EXPIRY,
            TreeId::LOCK_QUEUES,
            TreeId::SEQUENCES,
            TreeId::HASHES,
            TreeId::QUOTAS,
            TreeId::SESSIONS,
        ];
        ModelState {
            trees: own.into_iter().map(|id| (id, ModelTree::new())).collect(),
            names: BTreeMap::from([(IVec::from("__sled__default"), TreeId::DEFAULT)]),
            next_tree_id: TreeId::FIRST_USER,
            next_id: 0,
            sequence: 0,
            time_ms: 0,
            transactions: None,
        }
    }

    /// A new replica: an empty database, with a tree for transactions.
    pub fn for_replica() -> ModelState {
        let mut state = ModelState::new();
        state.trees.insert(TreeId::TRANSACTIONS, ModelTree::new());
        state.transactions = Some(Transactions::default());
        state
    }

    /// Applies an entry of a replica's log, as [`Replica::apply`](crate::Replica::apply) does.
    ///
    /// # Errors
    /// None that a log's entry causes; those are in the reply.
    pub fn apply_entry(&mut self, position: u64, command: GroupCommand) -> Result<GroupReply> {
        let context = Context { sequence: position, time_ms: self.time_ms.max(command.time_ms) };
        let outcome = evaluate_group(self, &context, command)?;
        self.time_ms = context.time_ms;
        self.apply(position, &outcome.effects);
        Ok(outcome.reply)
    }

    /// The sequence of the last commit; 0: none yet.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Sets the log's time, which never happens to a log: for tests of what would follow.
    pub fn set_time_ms(&mut self, time_ms: u64) {
        self.time_ms = time_ms;
    }

    /// The log's time: the latest that any commit was given.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Evaluates a command at the next sequence and at `time_ms` (or the log's time, if that is
    /// later: it never runs backwards), applies what it comes to, and returns the reply.
    ///
    /// As in the engine, only a command with effects takes a sequence.
    ///
    /// # Errors
    /// Those of [`Command::check_limits`] and [`evaluate`]; nothing is changed then.
    pub fn execute(&mut self, time_ms: u64, command: &Command) -> Result<Reply> {
        command.check_limits()?;
        self.time_ms = self.time_ms.max(time_ms);
        let context = Context { sequence: self.sequence + 1, time_ms: self.time_ms };
        let outcome = evaluate(self, &context, command)?;
        if !outcome.effects.is_empty() {
            self.apply(context.sequence, &outcome.effects);
        }
        Ok(outcome.reply)
    }

    /// Applies effects as the commit `sequence`.
    ///
    /// # Panics
    /// If `sequence` is not above the last one, or an effect is not exact: it touches a tree that
    /// is not there, says `fresh` wrongly, removes a key that is absent, or gives a number away
    /// twice. Each of these is a bug of whatever made the effects.
    pub fn apply(&mut self, sequence: u64, effects: &[Effect]) {
        assert!(sequence > self.sequence, "sequence {sequence} is applied after {}", self.sequence);
        self.sequence = sequence;
        for effect in effects {
            self.apply_one(sequence, effect);
            if let Some(transactions) = &mut self.transactions {
                transactions.follow(effect).expect("a row that was just made can be read");
            }
        }
    }

    fn apply_one(&mut self, sequence: u64, effect: &Effect) {
        match effect {
            Effect::Put { tree, key, value, fresh } => {
                let entry = Versioned { version: sequence, value: value.clone() };
                let previous = self.tree_mut(*tree).insert(key.clone(), entry);
                if let Some(fresh) = fresh {
                    assert_eq!(
                        previous.is_none(),
                        *fresh,
                        "fresh is wrong at sequence {sequence}: {effect:?}"
                    );
                }
            }
            Effect::Remove { tree, key } => {
                let previous = self.tree_mut(*tree).remove(key);
                assert!(previous.is_some(), "nothing to remove at sequence {sequence}: {effect:?}");
            }
            Effect::Tell { tree, .. } => {
                assert!(self.trees.contains_key(tree), "{tree:?} is not there at sequence {sequence}");
            }
            Effect::Clear { tree } => self.tree_mut(*tree).clear(),
            Effect::CreateTree { id, name } => {
                assert!(*id >= self.next_tree_id, "{id:?} is used again at sequence {sequence}");
                self.next_tree_id = TreeId(id.0 + 1);
                self.trees.insert(*id, ModelTree::new());
                let previous = self.names.insert(name.clone(), *id);
                assert!(previous.is_none(), "{name:?} is created again at sequence {sequence}");
            }
            Effect::DropTree { id } => {
                assert!(self.trees.remove(id).is_some(), "{id:?} is not there at sequence {sequence}");
                self.names.retain(|_, named| named != id);
            }
            Effect::SetNextId { next } => {
                assert!(*next >= self.next_id, "next id falls from {} to {next}", self.next_id);
                self.next_id = *next;
            }
        }
    }

    fn tree_mut(&mut self, tree: TreeId) -> &mut ModelTree {
        self.trees.get_mut(&tree).unwrap_or_else(|| panic!("an effect touches {tree:?}, which is not there"))
    }

    /// The contents of a tree; `None`: no such tree.
    pub fn tree(&self, tree: TreeId) -> Option<&ModelTree> {
        self.trees.get(&tree)
    }

    /// How many keys a tree holds; 0 if there is no such tree.
    pub fn len(&self, tree: TreeId) -> u64 {
        self.trees.get(&tree).map_or(0, |tree| tree.len() as u64)
    }

    /// Whether a tree holds no key, or is not there.
    pub fn is_empty(&self, tree: TreeId) -> bool {
        self.len(tree) == 0
    }

    /// Whether a key is there and has not expired by the log's time.
    pub fn is_live(&self, tree: TreeId, key: &[u8]) -> bool {
        let Some(found) = self.trees.get(&tree).and_then(|tree| tree.get(key)) else { return false };
        let record = self.trees[&TreeId::EXPIRY].get(&expiry::record_key(tree, key));
        !expiry::is_over(record, found.version, self.time_ms).expect("what the model wrote is sound")
    }

    /// The names of all trees that have one, in order.
    pub fn names(&self) -> impl Iterator<Item = (&IVec, TreeId)> {
        self.names.iter().map(|(name, id)| (name, *id))
    }
}

impl View for ModelState {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        Ok(self.trees.get(&tree).and_then(|tree| tree.get(key)).cloned())
    }

    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>> {
        let Some(tree) = self.trees.get(&tree) else { return Ok(None) };
        let found = if last { tree.last_key_value() } else { tree.first_key_value() };
        Ok(found.map(|(key, entry)| (key.clone(), entry.clone())))
    }

    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<()> {
        let Some(tree) = self.trees.get(&tree) else { return Ok(()) };
        // `BTreeMap::range` panics at bounds that hold nothing.
        for (key, entry) in tree {
            let above_low = match low {
                Bound::Included(low) => &key[..] >= low,
                Bound::Excluded(low) => &key[..] > low,
                Bound::Unbounded => true,
            };
            let below_high = match high {
                Bound::Included(high) => &key[..] <= high,
                Bound::Excluded(high) => &key[..] < high,
                Bound::Unbounded => true,
            };
            if above_low && below_high && !each(key, entry.version) {
                break;
            }
        }
        Ok(())
    }

    fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.names.get(name).copied()
    }

    fn has_tree(&self, tree: TreeId) -> bool {
        self.trees.contains_key(&tree)
    }

    fn next_tree_id(&self) -> TreeId {
        self.next_tree_id
    }

    fn tree_names_weight(&self) -> usize {
        self.names.keys().map(|name| name.len() + TREE_WEIGHT).sum()
    }

    fn next_id(&self) -> u64 {
        self.next_id
    }

    fn transactions(&self) -> Option<&Transactions> {
        self.transactions.as_ref()
    }
}
