//! [`Replica::read`]: what is asked of the newest state of one replica.
//!
//! Whether that state is new enough is for the caller to say, who knows what the group has
//! committed: wait until [`Replica::applied`] is there, then read.

use std::ops::Bound;
use std::sync::Arc;

use crate::command::MAX_NAME_LENGTH;
use crate::engine::Committer;
use crate::evaluate::{Context, Entry};
use crate::expiry::LiveView;
use crate::group::{GroupRead, GroupReadReply, MAX_PAGE_BYTES, MAX_READ_KEYS};
use crate::hashes::{Content, head};
use crate::owned::{self, check_prefix};
use crate::replica::Replica;
use crate::seal::seal_of;
use crate::snapshot::Snapshot;
use crate::state::{Ends, LatestView, State};
use crate::strings::{self, StringAction, StringsOperation, StringsReplies, StringsReply};
use crate::{Error, IVec, Result, TreeId, Versioned, counter, lock, open_sessions, quota, session};

impl Replica {
    /// Answers a read on the newest state.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for what is over a limit, and damage or I/O errors met while
    /// reading; [`Refusal::of`](crate::group::Refusal::of) tells them apart.
    pub fn read(&self, read: &GroupRead) -> Result<GroupReadReply> {
        let shared = &*self.engine().shared;
        Ok(match read {
            GroupRead::Get { tree, key } => {
                let state = shared.state.load();
                GroupReadReply::Value(match find(&state, tree)? {
                    Some(id) => or_dropped(shared.get(id, key))?,
                    None => None,
                })
            }
            GroupRead::Counter { name } => {
                let found = shared.state.load().get_latest(TreeId::COUNTERS, name)?;
                let value = found.map(|found| counter::decode_value(name, &found.value)).transpose()?;
                GroupReadReply::Counter(value)
            }
            GroupRead::LockHolder { name } => {
                // The state is no older than the time.
                let time_ms = self.time_ms();
                let found = shared.state.load().get_latest(TreeId::LOCKS, name)?;
                let state = found.map(|found| lock::decode_state(name, &found)).transpose()?;
                let holder = state.and_then(|state| state.live(time_ms).next().map(lock::Permit::holder));
                GroupReadReply::LockHolder(holder)
            }
            GroupRead::LockHolders { name } => {
                let time_ms = self.time_ms();
                let found = shared.state.load().get_latest(TreeId::LOCKS, name)?;
                let state = found.map(|found| lock::decode_state(name, &found)).transpose()?;
                let capacity = state.as_ref().map_or(0, |state| state.capacity);
                let holders = state.map_or(Vec::new(), |state| state.live(time_ms).cloned().collect());
                GroupReadReply::LockHolders { capacity, holders }
            }
            GroupRead::Ticket { name, ticket } => {
                if name.len() > MAX_NAME_LENGTH {
                    let what = format!(
                        "the name of a lock of {} bytes is over the limit of {MAX_NAME_LENGTH}",
                        name.len()
                    );
                    return Err(Error::InvalidRequest(what));
                }
                let now_ms = self.time_ms();
                let snapshot = self.engine().snapshot();
                let reply = lock::ticket(&view(&snapshot, &Ends::default()), now_ms, name, *ticket)?;
                GroupReadReply::Ticket { reply, now_ms }
            }
            GroupRead::Expires { tree, key } => {
                // The state is no older than the time.
                let now_ms = self.time_ms();
                let at_ms = match find(&shared.state.load(), tree)? {
                    Some(id) => or_dropped(shared.expires(id, key))?,
                    None => None,
                };
                GroupReadReply::Expires { at_ms, now_ms }
            }
            GroupRead::Len { tree } => {
                let id = find(&shared.state.load(), tree)?;
                GroupReadReply::Length(id.map_or(Ok(0), |id| self.engine().len(id))?)
            }
            GroupRead::Validate { trees, reads, ranges, since, under } => {
                GroupReadReply::Valid(self.validate((trees, reads, ranges), (*since, *under))?)
            }
            GroupRead::Transactions => {
                let (prepared, decided) = self.transaction_counts();
                GroupReadReply::Transactions { prepared: prepared as u64, decided: decided as u64 }
            }
            GroupRead::Strings { trees, operations } => match self.text(trees, operations)? {
                Some(reply) => GroupReadReply::Strings(StringsReplies(vec![reply])),
                None => self.read_from(&self.moment(), read)?,
            },
            GroupRead::GetMany { .. }
            | GroupRead::GetKinds { .. }
            | GroupRead::Range { .. }
            | GroupRead::Trees
            | GroupRead::Sessions { .. }
            | GroupRead::Quotas
            | GroupRead::NextNumber { .. }
            | GroupRead::EarliestSessionExpiry => self.read_from(&self.moment(), read)?,
        })
    }

    /// The value of a key, and the position of the last entry that this takes into account: no earlier one is
    /// left out, and no later one is in it. [`Replica::read`] of a key tells the newest value there is, and of what
    /// is absent nothing tells as of when.
    ///
    /// # Errors
    /// As [`Replica::read`].
    pub fn get_as_of(&self, tree: &IVec, key: &IVec) -> Result<(Option<Versioned>, u64)> {
        let Moment { snapshot, .. } = self.moment();
        let found = match find(snapshot.state(), tree)? {
            Some(id) => snapshot.get(id, key)?,
            None => None,
        };
        Ok((found, snapshot.sequence()))
    }

    /// The newest state, and the time of the log there.
    pub(crate) fn moment(&self) -> Moment {
        self.moment_of(&self.engine().shared.commit.lock())
    }

    /// As [`Replica::moment`], with the commit mutex held.
    pub(crate) fn moment_of(&self, committer: &Committer) -> Moment {
        let engine = self.engine();
        Moment {
            snapshot: engine.snapshot(),
            time_ms: committer.time_ms,
            earliest_due: engine.shared.due.keys(),
        }
    }

    /// Answers what can be answered from the state of a moment.
    pub(crate) fn read_from(&self, moment: &Moment, read: &GroupRead) -> Result<GroupReadReply> {
        let snapshot = &moment.snapshot;
        Ok(match read {
            GroupRead::GetMany { tree, keys } => {
                GroupReadReply::Values(get_many(snapshot, find(snapshot.state(), tree)?, keys, |value| {
                    value
                })?)
            }
            GroupRead::GetKinds { tree, keys } => {
                let kind = |value: IVec| if head(&value).is_some() { value } else { IVec::new() };
                GroupReadReply::Values(get_many(snapshot, find(snapshot.state(), tree)?, keys, kind)?)
            }
            GroupRead::Range { tree, low, high, reverse, limit, limit_bytes, values } => {
                match find(snapshot.state(), tree)? {
                    Some(id) => {
                        let entries = snapshot.range(id, low.clone(), high.clone());
                        let limits = Limits {
                            keys: (*limit).max(1) as usize,
                            bytes: (*limit_bytes).min(MAX_PAGE_BYTES),
                            values: *values,
                        };
                        if *reverse { page(entries.rev(), &limits)? } else { page(entries, &limits)? }
                    }
                    None => GroupReadReply::Page { entries: Vec::new(), more: false },
                }
            }
            GroupRead::Len { tree } => {
                let id = find(snapshot.state(), tree)?;
                GroupReadReply::Length(id.map_or(Ok(0), |id| snapshot.len(id))?)
            }
            GroupRead::Trees => {
                let trees = snapshot.trees().into_iter();
                let hidden = [
                    TreeId::SESSIONS,
                    TreeId::EXPIRY,
                    TreeId::LOCK_QUEUES,
                    TreeId::SEQUENCES,
                    TreeId::HASHES,
                    TreeId::QUOTAS,
                    TreeId::TRANSACTIONS,
                ];
                let names = trees.filter(|(_, id)| !hidden.contains(id)).map(|(name, _)| name);
                GroupReadReply::Trees(names.collect())
            }
            GroupRead::Strings { trees, operations } => {
                GroupReadReply::Strings(StringsReplies(self.strings(moment, trees, operations)?))
            }
            GroupRead::Quotas => {
                let stored = snapshot.range(TreeId::QUOTAS, Bound::Unbounded, Bound::Unbounded);
                let status = |entry: Result<Entry>| {
                    entry.and_then(|(key, found)| quota::status_of(&key, &found.value))
                };
                GroupReadReply::Quotas(stored.map(status).collect::<Result<_>>()?)
            }
            GroupRead::NextNumber { tree, prefix } => {
                check_prefix(prefix)?;
                let next = match find(snapshot.state(), tree)? {
                    Some(id) => owned::next_number(&view(snapshot, &Ends::default()), id, prefix)?.0,
                    None => 0,
                };
                GroupReadReply::NextNumber(next)
            }
            GroupRead::Sessions { after, limit } => {
                let now_ms = moment.time_ms;
                let (sessions, more) = open_sessions::page(snapshot, *after, *limit as usize)?;
                GroupReadReply::Sessions { sessions, more, now_ms, led_ms: u64::MAX }
            }
            GroupRead::EarliestSessionExpiry => {
                GroupReadReply::Time(session::earliest_expiry(&view(snapshot, &Ends::default()))?)
            }
            GroupRead::Get { .. }
            | GroupRead::Counter { .. }
            | GroupRead::LockHolder { .. }
            | GroupRead::LockHolders { .. }
            | GroupRead::Ticket { .. }
            | GroupRead::Expires { .. }
            | GroupRead::Validate { .. }
            | GroupRead::Transactions => self.read(read)?,
        })
    }
}

/// A state, and what belongs to it: of one moment between two entries. Taken one after the other, an entry could come
/// between them, and keys be judged that it has removed, or given more time, by the time that it brought.
pub(crate) struct Moment {
    pub(crate) snapshot: Snapshot,
    /// The log's time.
    pub(crate) time_ms: u64,
    /// When the first key is over that is not removed yet.
    pub(crate) earliest_due: u64,
}

impl Replica {
    /// Whether a session is over at this time of the log, of whose lease `led_ms` have been seen: whether an entry that
    /// [expires sessions](crate::group::Operation::ExpireSessions) would have something to look at.
    ///
    /// # Errors
    /// Those of reading.
    pub fn is_any_session_over(&self, time_ms: u64, led_ms: u64) -> Result<bool> {
        session::is_any_over(&view(&self.moment().snapshot, &Ends::default()), time_ms, led_ms)
    }

    /// What a list is answered that only gets one key, if that holds no hash: one key is of one moment anyway, and none has
    /// to be kept for it.
    fn text(&self, trees: &[IVec], operations: &[StringsOperation]) -> Result<Option<StringsReply>> {
        let ([tree], [StringsOperation { tree: TreeId(0), key, action: StringAction::Get }]) =
            (trees, operations)
        else {
            return Ok(None);
        };
        Ok(self.text_of(tree, key)?.map(StringsReply::Value))
    }

    /// The value of a key of Redis's, or that there is none; `None` if it is no string.
    pub(crate) fn text_of(&self, tree: &IVec, key: &IVec) -> Result<Option<Option<IVec>>> {
        let shared = &*self.engine().shared;
        let found = match find(&shared.state.load(), tree)? {
            Some(id) => or_dropped(shared.get(id, key))?,
            None => None,
        };
        Ok(match found.map(|found| Content::of(found.value)) {
            None => Some(None),
            Some(Content::Text(text)) if text.len() <= strings::MAX_TOLD => Some(Some(text)),
            Some(_) => None,
        })
    }

    /// Operations that only read, in turn.
    fn strings(
        &self,
        moment: &Moment,
        trees: &[IVec],
        operations: &[StringsOperation],
    ) -> Result<Vec<StringsReply>> {
        let refuse = |what: String| Err(Error::InvalidRequest(format!("{what}; ask for fewer keys")));
        if operations.len() > MAX_READ_KEYS {
            return refuse(format!("{} operations are over the limit of {MAX_READ_KEYS}", operations.len()));
        }
        let Moment { snapshot, time_ms, earliest_due } = moment;
        let (time_ms, earliest_due) = (*time_ms, *earliest_due);
        let mut numbers = Vec::with_capacity(trees.len());
        for name in trees {
            numbers.push(find(snapshot.state(), name)?);
        }
        let ends = Ends::default();
        let latest = LatestView { earliest_due, ..view(snapshot, &ends) };
        let live = LiveView::new(&latest, time_ms);
        let context = Context { sequence: 0, time_ms };
        let mut bytes = 0;
        let mut replies = Vec::with_capacity(operations.len());
        for operation in operations {
            let mut operation = operation.clone();
            let mut is_missing = false;
            for tree in operation.trees_mut() {
                match numbers.get(tree.0 as usize) {
                    Some(Some(number)) => *tree = *number,
                    // Nobody has written to it yet.
                    Some(None) => is_missing = true,
                    None => {
                        let what = format!("tree {} of a read that names {}", tree.0, numbers.len());
                        return Err(Error::InvalidRequest(what));
                    }
                }
            }
            let before = bytes;
            let reply = match (is_missing, earliest_due <= time_ms) {
                (true, _) => strings::of_nothing(&operation, time_ms)?,
                (false, true) => strings::read(&live, &context, &operation)?,
                (false, false) => strings::read(&latest, &context, &operation)?,
            };
            bytes += reply.bytes() as u64;
            // One reply alone is told however long it is.
            if before > 0 && bytes > MAX_PAGE_BYTES {
                return refuse(format!("the values take more than {MAX_PAGE_BYTES} bytes"));
            }
            // One that names a field again and again.
            if bytes > strings::MAX_TOLD as u64 {
                return refuse(format!("the values take more than {} bytes", strings::MAX_TOLD));
            }
            replies.push(reply);
        }
        Ok(replies)
    }
}

pub(crate) fn view<'a>(snapshot: &'a Snapshot, ends: &'a Ends) -> LatestView<'a> {
    LatestView {
        state: snapshot.state(),
        sequence: snapshot.sequence(),
        is_snapshot: true,
        next_id: 0,
        ends,
        transactions: None,
        found_end: None.into(),
        prefetched: None,
        may_read_disk: true,
        needs_disk: false.into(),
        earliest_due: u64::MAX,
        // Nothing is written here.
        has_quotas: false,
    }
}

/// What is found in a tree; nothing, if it has been dropped since it was looked for.
fn or_dropped<T>(found: Result<Option<T>>) -> Result<Option<T>> {
    match found {
        Err(Error::TreeNotFound(_)) => Ok(None),
        found => found,
    }
}

/// The number of a tree; `None`: there is none of that name, and it reads as empty.
pub(crate) fn find(state: &Arc<State>, name: &IVec) -> Result<Option<TreeId>> {
    match state.catalog.names.get(name).copied() {
        Some(TreeId::SESSIONS) => {
            Err(Error::InvalidRequest("the tree of sessions is closed to reads".to_owned()))
        }
        Some(TreeId::TRANSACTIONS) => {
            Err(Error::InvalidRequest("the tree of transactions is closed to reads".to_owned()))
        }
        None if state.catalog.names.contains_key(&seal_of(name)) => Err(Error::TreeSealed(name.clone())),
        found => Ok(found),
    }
}

/// What is told of the values of keys, and their versions.
fn get_many(
    snapshot: &Snapshot,
    tree: Option<TreeId>,
    keys: &[IVec],
    told: impl Fn(IVec) -> IVec,
) -> Result<Vec<Option<Versioned>>> {
    let refuse = |what: String| Err(Error::InvalidRequest(format!("{what}; ask for fewer keys")));
    if keys.len() > MAX_READ_KEYS {
        return refuse(format!("{} keys are over the limit of {MAX_READ_KEYS}", keys.len()));
    }
    let Some(tree) = tree else { return Ok(vec![None; keys.len()]) };
    let mut bytes = 0;
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let found = snapshot.get(tree, key)?;
        let found = found.map(|found| Versioned { value: told(found.value), ..found });
        let before = bytes;
        bytes += found.as_ref().map_or(0, |found| found.value.len() as u64);
        // One value alone is told however long it is.
        if before > 0 && bytes > MAX_PAGE_BYTES {
            return refuse(format!("the values take more than {MAX_PAGE_BYTES} bytes"));
        }
        values.push(found);
    }
    Ok(values)
}

struct Limits {
    keys: usize,
    bytes: u64,
    values: bool,
}

fn page(range: impl Iterator<Item = Result<Entry>>, limits: &Limits) -> Result<GroupReadReply> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    for entry in range {
        // An entry too many was looked for only to know that there is one.
        if entries.len() >= limits.keys || (bytes >= limits.bytes && !entries.is_empty()) {
            return Ok(GroupReadReply::Page { entries, more: true });
        }
        let (key, mut found) = entry?;
        if !limits.values {
            found.value = IVec::new();
        }
        bytes += (key.len() + found.value.len()) as u64;
        entries.push((key, found));
    }
    Ok(GroupReadReply::Page { entries, more: false })
}

// The names that commands resolve by themselves are in every replica's catalog.
#[cfg(test)]
mod tests {
    use crate::group_evaluate::tree_number;
    use crate::model::ModelState;

    #[test]
    fn reads_and_commands_find_the_same_trees() {
        let model = ModelState::new();
        for (name, id) in crate::meta::Catalog::default().names {
            assert_eq!(tree_number(&model, &name), Some(id));
        }
    }
}
