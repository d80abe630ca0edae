//! [`Database`]: has [`Data`] carried out by the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::command::{KeyRead, MAX_COMMAND_LENGTH};
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::{
    KIND_HASH, KIND_STRING, StringAction, StringsFailure, StringsOperation, StringsReplies, StringsReply,
};
use dogsled_storage::{Command, Fence, GroupRead, GroupReadReply, Reply, TreeId, When};
use futures_util::future::join_all;

use super::config::Parameters;
use super::entry::{entry, group_of_all, group_of_key, name_trees, operations_of};
use super::gather::Gatherer;
use super::held::Held;
use super::pubsub::Hub;
use super::scripts::Scripts;
use super::tree_name;
use super::whole::Cursors;
use super::{glob, now_ms, transaction};
use crate::IVec;
use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, ReadFrom};

mod reads;

/// How many bytes of replies commands that are carried out together may tell, about; what is more waits until that is sent.
const MOST_AT_ONCE: usize = 32 << 20;
/// How many bytes one reply may tell, about.
pub(super) const MOST_IN_REPLY: usize = 512 << 20;
pub(super) const TOO_MUCH: &str =
    "ERR the reply would be larger than 512 MiB, or than there is room for now; ask for less";

/// A command on keys: what is done, and how the replies to that become one. Trees are
/// numbers of databases.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) operations: Vec<StringsOperation>,
    shape: Shape,
    /// The lock under which alone it is carried out.
    pub(super) fence: Option<Fence>,
    /// Who is asked, if it only reads.
    from: ReadFrom,
}

/// How replies to operations become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The only one, as it is.
    Plain,
    /// Whether it was done.
    Flag,
    /// The sum of all.
    Sum,
    /// All values.
    Values,
    /// Nothing but that all is done.
    AllDone,
    /// So many ask whether something may be done; it was, if the last of them says so.
    Required(usize),
    /// What kind of value there is.
    Type,
    /// It is done, whatever number it says.
    Renamed,
    /// A time to live.
    Time { is_absolute: bool, in_seconds: bool },
    /// All of a hash.
    Pairs(Pairs),
    /// How many get what was published on this channel.
    Published(Bytes),
    /// A part of a hash; of that, the fields that match a pattern.
    Page(Option<Bytes>),
    /// Nothing is to be done but to say why not, which Redis says after it has looked at the key.
    Refused(Refused),
}

/// Why a command is not carried out, by what kind of value its key has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What the command is for: [`KIND_STRING`] or [`KIND_HASH`].
    pub(super) kind: i64,
    /// What is answered if there is no such key.
    pub(super) absent: Value,
    /// Otherwise.
    pub(super) why: Value,
}

/// What of all fields and values is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    Both,
    Fields,
    Values,
}

impl Data {
    pub(super) fn new(operations: Vec<StringsOperation>, shape: Shape) -> Data {
        Data { operations, shape, fence: None, from: ReadFrom::Leader }
    }

    /// Has it answered by this node's replica as it is, if it only reads; whether it is.
    pub(super) fn read_here(&mut self) -> bool {
        // Whether a lock is held is never to be told by what may be old.
        let may = self.fence.is_none() && self.is_read();
        if may {
            self.from = ReadFrom::Stale;
        }
        may
    }

    /// The reply, of the replies to its operations.
    pub(super) fn reply(&self, database: &Database, replies: &[StringsReply]) -> Value {
        let number = |reply: &StringsReply| match reply {
            StringsReply::Integer(number) => *number,
            _ => 0,
        };
        let over_quota = StringsReply::Failed(StringsFailure::OverQuota);
        // Of several that the command consists of, too: it has not done what it was to do.
        if self.shape != Shape::Values && replies.contains(&over_quota) {
            return Value::error(OVER_QUOTA);
        }
        match &self.shape {
            Shape::Plain => replies.first().map_or(Value::Null, plain),
            Shape::Flag => Value::Integer(i64::from(replies.first() == Some(&StringsReply::Done))),
            Shape::Sum => Value::Integer(replies.iter().map(number).sum()),
            Shape::Values => {
                // What is no string counts as nothing.
                let value = |reply: &StringsReply| match reply {
                    StringsReply::Failed(StringsFailure::WrongKind) => Value::Null,
                    other => plain(other),
                };
                Value::Array(replies.iter().map(value).collect())
            }
            Shape::AllDone => Value::OK,
            Shape::Published(channel) => Value::Integer(database.hub.receivers(channel) as i64),
            Shape::Required(count) => replies.get(count - 1).map_or(Value::Null, plain),
            Shape::Type => {
                let kind = match replies.first().map_or(0, number) {
                    KIND_STRING => "string",
                    KIND_HASH => "hash",
                    _ => "none",
                };
                Value::Simple(kind.into())
            }
            Shape::Renamed => match replies.first() {
                Some(StringsReply::Integer(_)) => Value::OK,
                other => other.map_or(Value::Null, plain),
            },
            Shape::Time { is_absolute, in_seconds } => match replies.first() {
                Some(StringsReply::Expires { at_ms, now_ms }) => {
                    Value::Integer(time(*at_ms, *now_ms, *is_absolute, *in_seconds))
                }
                other => other.map_or(Value::Null, plain),
            },
            Shape::Pairs(pairs) => match (replies.first(), pairs) {
                (Some(StringsReply::Pairs { pairs: found, .. }), Pairs::Both) => {
                    let pair = |(field, value): &(IVec, IVec)| (bulk(field.clone()), bulk(value.clone()));
                    Value::Map(found.0.iter().map(pair).collect())
                }
                (Some(StringsReply::Pairs { pairs: found, .. }), which) => {
                    let one = |(field, value): &(IVec, IVec)| {
                        bulk(if *which == Pairs::Fields { field.clone() } else { value.clone() })
                    };
                    Value::Array(found.0.iter().map(one).collect())
                }
                (other, _) => other.map_or(Value::Null, plain),
            },
            Shape::Refused(refused) => match replies.first() {
                Some(StringsReply::Integer(0)) => refused.absent.clone(),
                Some(StringsReply::Integer(kind)) if *kind == refused.kind => refused.why.clone(),
                Some(StringsReply::Integer(_)) => plain(&StringsReply::Failed(StringsFailure::WrongKind)),
                other => other.map_or(Value::Null, plain),
            },
            Shape::Page(pattern) => match replies.first() {
                Some(StringsReply::Pairs { pairs, more }) => {
                    let cursor = more.clone().map_or(0, |more| database.cursors.keep(more));
                    let is_wanted =
                        |field: &IVec| pattern.as_ref().is_none_or(|pattern| glob::selects(pattern, field));
                    let wanted = pairs.0.iter().filter(|(field, _)| is_wanted(field));
                    let told = wanted.flat_map(|(field, value)| [bulk(field.clone()), bulk(value.clone())]);
                    Value::Array(vec![Value::text(cursor.to_string()), Value::Array(told.collect())])
                }
                other => other.map_or(Value::Null, plain),
            },
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.operations.iter().all(StringsOperation::is_read)
    }

    pub(super) fn bytes(&self) -> usize {
        self.operations.iter().map(StringsOperation::bytes).sum()
    }
}

/// As a Redis that has reached its `maxmemory`: clients know the first word.
const OVER_QUOTA: &str =
    "OOM command not allowed: the quota of its tree is used up. Delete something, or raise it";

/// A reply as it is.
pub(super) fn plain(reply: &StringsReply) -> Value {
    match reply {
        StringsReply::Done => Value::OK,
        StringsReply::Unchanged | StringsReply::Value(None) => Value::Null,
        StringsReply::Value(Some(value)) => bulk(value.clone()),
        StringsReply::Integer(number) => Value::Integer(*number),
        StringsReply::Expires { at_ms, now_ms } => Value::Integer(time(*at_ms, *now_ms, false, false)),
        StringsReply::Failed(failure) => Value::error(match failure {
            StringsFailure::NotAnInteger => "ERR value is not an integer or out of range",
            StringsFailure::Overflow => "ERR increment or decrement would overflow",
            StringsFailure::NotAFloat => "ERR value is not a valid float",
            StringsFailure::NotFinite => "ERR increment would produce NaN or Infinity",
            StringsFailure::TooLong => "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
            StringsFailure::NoSuchKey => "ERR no such key",
            StringsFailure::WrongKind => "WRONGTYPE Operation against a key holding the wrong kind of value",
            StringsFailure::FieldNotAnInteger => "ERR hash value is not an integer",
            StringsFailure::FieldNotAFloat => "ERR hash value is not a float",
            StringsFailure::TooMuch => "ERR the hash is too large for one reply; use HSCAN",
            StringsFailure::OverQuota => OVER_QUOTA,
            StringsFailure::TooMuchWork => {
                "ERR this copies, or writes anew, too much at once; do it in smaller steps"
            }
        }),
        StringsReply::Values(values) => {
            Value::Array(values.0.iter().map(|value| value.clone().map_or(Value::Null, bulk)).collect())
        }
        // Only where another shape is asked for.
        StringsReply::Pairs { .. } => Value::Null,
    }
}

/// Bytes of the database, not copied unless they are so few that this takes less than sharing them.
pub(super) fn bulk(value: IVec) -> Value {
    Value::Bulk(match value.len() {
        0..=64 => Bytes::copy_from_slice(&value),
        _ => Bytes::from_owner(value),
    })
}

/// -2: there is no such key; -1: it stays.
fn time(at_ms: Option<Option<u64>>, now_ms: u64, is_absolute: bool, in_seconds: bool) -> i64 {
    let at_ms = match at_ms {
        None => return -2,
        Some(None) => return -1,
        Some(Some(at_ms)) => at_ms,
    };
    let milliseconds = if is_absolute { at_ms } else { at_ms.saturating_sub(now_ms) };
    let number = if in_seconds { milliseconds.saturating_add(500) / 1000 } else { milliseconds };
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The first word of an error that says so.
pub(super) const UNKNOWN: &str = "UNKNOWN";

/// That a reply would be larger than [`MOST_IN_REPLY`], or than what all clients hold leaves room for.
pub(super) fn too_much() -> Error {
    Error::Invalid(TOO_MUCH[4..].to_owned())
}

/// An error of the cluster. Its first word says what a client can do.
pub(super) fn failed(error: &Error) -> Value {
    Value::error(match error {
        Error::OutcomeUnknown(why) => format!("{UNKNOWN} whether it has happened is not known: {why}"),
        Error::Unavailable(why) => format!("CLUSTERDOWN nothing was done, try again: {why}"),
        // It is the node's own.
        Error::Closed => "CLUSTERDOWN nothing was done, try again elsewhere: the node is stopping".to_owned(),
        Error::LockNotHeld { .. } => format!("LOCKNOTHELD {error}"),
        Error::Invalid(what) => format!("ERR {what}"),
        Error::QuotaExceeded(_) => OVER_QUOTA.to_owned(),
        other => format!("ERR {other}"),
    })
}

/// A key that a client watches, and what it was then; 0: absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) database: TreeId,
    pub(super) key: IVec,
    pub(super) version: u64,
}

/// What the connections of a server share.
pub(super) struct Database {
    pub(super) client: Client,
    pub(super) cursors: Cursors,
    pub(super) parameters: Parameters,
    pub(super) scripts: Scripts,
    gatherer: Gatherer,
    pub(super) held: Arc<Held>,
    pub(super) hub: Arc<Hub>,
}

/// Where a command belongs.
struct Placed {
    data: Data,
    /// `None`: to several groups, or it is not carried out together with others.
    group: Option<u32>,
}

impl Database {
    pub(super) fn new(client: Client, parameters: Parameters, held: Arc<Held>) -> Database {
        let (cursors, gatherer, scripts) = (Cursors::default(), Gatherer::default(), Scripts::default());
        Database { client, cursors, parameters, scripts, gatherer, held, hub: Arc::default() }
    }

    /// Carries out commands that follow each other; each sees those before it. Not all of them, if what the first of them
    /// tell is much already: the others come back.
    pub(super) async fn run(&self, commands: Vec<Data>) -> (Vec<Value>, Vec<Data>) {
        let partitions = match self.partitions().await {
            Ok(partitions) => partitions,
            Err(error) => return (commands.iter().map(|_| failed(&error)).collect(), Vec::new()),
        };
        let place = |data: Data| {
            let group = match data.fence {
                // What may be old is of no one moment anyway: each part is read where it is.
                None if data.from == ReadFrom::Stale => Some(0),
                None => group_of_all(partitions, &data.operations, &[], &[]),
                // What it fails by is not to be the failure of others.
                Some(_) => None,
            };
            Placed { data, group }
        };
        let placed: Vec<Placed> = commands.into_iter().map(place).collect();
        let mut values = Vec::with_capacity(placed.len());
        let mut rest = placed.into_iter().peekable();
        let (mut told, mut weighed) = (0, 0);
        while let Some(first) = rest.next() {
            told += values[weighed..].iter().map(Value::weight).sum::<usize>();
            weighed = values.len();
            if told > MOST_AT_ONCE {
                return (values, std::iter::once(first).chain(rest).map(|placed| placed.data).collect());
            }
            if first.group.is_none() {
                let Placed { data, .. } = first;
                let fences: Vec<Fence> = data.fence.iter().cloned().collect();
                values.push(match self.carry_out(&[], &fences, data.operations.clone()).await {
                    Ok(Some(replies)) => data.reply(self, &replies),
                    // Nothing was watched.
                    Ok(None) => Value::Null,
                    Err(error) => error,
                });
                continue;
            }
            let (is_read, from) = (first.data.is_read(), first.data.from);
            let mut run = vec![first];
            let alike = |next: &Placed| {
                next.group.is_some() && next.data.is_read() == is_read && next.data.from == from
            };
            while let Some(next) = rest.next_if(alike) {
                run.push(next);
            }
            if is_read {
                let left = self.read(partitions, from, run, &mut values).await;
                if !left.is_empty() {
                    return (values, left.into_iter().chain(rest).map(|placed| placed.data).collect());
                }
            } else {
                self.write(run, &mut values).await;
            }
        }
        (values, Vec::new())
    }

    pub(super) async fn partitions(&self) -> Result<u32, Error> {
        match self.known_partitions() {
            Some(known) => Ok(known),
            None => self.client.core().partitions(self.client.until()).await,
        }
    }

    /// As [`Database::partitions`], if it is known already.
    pub(super) fn known_partitions(&self) -> Option<u32> {
        let known = self.client.core().map.borrow().partitions;
        if known > 0 { Some(known) } else { None }
    }

    /// Commands that write, each within one group, are begun together, but that what removes a key or a field, or tells of
    /// something, waits for those before it: a lock that is given back, or a message that something is there, is not to be seen before
    /// what was written first.
    async fn write(&self, run: Vec<Placed>, values: &mut Vec<Value>) {
        let now_ms = now_ms();
        let waits = |placed: &Placed| {
            placed.data.operations.iter().any(|operation| removes_or_tells(&operation.action, now_ms))
        };
        let mut now: Vec<Placed> = Vec::with_capacity(run.len());
        for next in run {
            if waits(&next) && now.iter().any(|earlier| earlier.group != next.group) {
                self.write_together(std::mem::take(&mut now), values).await;
            }
            now.push(next);
        }
        self.write_together(now, values).await;
    }

    /// Those of a group become entries, in order.
    async fn write_together(&self, run: Vec<Placed>, values: &mut Vec<Value>) {
        let base = values.len();
        values.resize(base + run.len(), Value::Null);
        let mut by_group: BTreeMap<u32, Vec<(usize, Data)>> = BTreeMap::new();
        for (index, Placed { data, group }) in run.into_iter().enumerate() {
            by_group.entry(group.expect("of one group")).or_default().push((base + index, data));
        }
        let (mut pending, mut others) = (Vec::new(), Vec::new());
        for (group, commands) in by_group {
            match entry(&commands) {
                (count, Some(operations)) if count == commands.len() => {
                    pending.push((group, self.gatherer.push(&self.client, group, operations), commands));
                }
                _ => others.push(self.write_in(group, commands)),
            }
        }
        for (index, value) in join_all(others).await.into_iter().flatten() {
            values[index] = value;
        }
        for (group, outcome, commands) in pending {
            let outcome = outcome.outcome().await;
            if commands.len() > 1 && is_for_one(&outcome) {
                for (index, value) in self.write_each(group, &commands).await {
                    values[index] = value;
                }
                continue;
            }
            self.tell(&commands, outcome, |index, value| values[index] = value);
        }
    }

    /// Commands that were refused together, which has done nothing: what one of them is refused for is nothing to the
    /// others.
    async fn write_each(&self, group: u32, commands: &[(usize, Data)]) -> Vec<(usize, Value)> {
        let mut replies = Vec::with_capacity(commands.len());
        for command in commands {
            let alone = self.submit(group, Vec::new(), &[], command.1.operations.clone()).await;
            let alone = alone.map(Option::unwrap_or_default);
            self.tell(std::slice::from_ref(command), alone, |index, value| replies.push((index, value)));
        }
        replies
    }

    /// As [`Database::write`], for one group, an entry after the other.
    async fn write_in(&self, group: u32, commands: Vec<(usize, Data)>) -> Vec<(usize, Value)> {
        let mut replies = Vec::with_capacity(commands.len());
        let mut rest = commands.as_slice();
        while !rest.is_empty() {
            let (count, shared) = entry(rest);
            let (now, later) = rest.split_at(count);
            rest = later;
            let outcome = match shared {
                Some(operations) => self.gatherer.push(&self.client, group, operations).outcome().await,
                None => {
                    let alone = self.submit(group, Vec::new(), &[], operations_of(now)).await;
                    alone.map(Option::unwrap_or_default)
                }
            };
            // Together they may tell too much; what was refused was not done.
            if now.len() > 1 && is_for_one(&outcome) {
                replies.extend(self.write_each(group, now).await);
                continue;
            }
            self.tell(now, outcome, |index, value| replies.push((index, value)));
        }
        replies
    }

    /// Makes the replies to operations those to commands.
    fn tell(
        &self,
        commands: &[(usize, Data)],
        outcome: Result<Vec<StringsReply>, Error>,
        mut told: impl FnMut(usize, Value),
    ) {
        match outcome {
            Ok(found) => {
                let mut rest = &found[..];
                for (index, data) in commands {
                    let (own, later) = rest.split_at(data.operations.len().min(rest.len()));
                    rest = later;
                    told(*index, data.reply(self, own));
                }
            }
            Err(error) => commands.iter().for_each(|(index, _)| told(*index, failed(&error))),
        }
    }

    /// What a key is now.
    pub(super) async fn watch(&self, database: TreeId, key: IVec) -> Result<Watched, Error> {
        let (core, until) = (self.client.core(), self.client.until());
        let group = group_of_key(&key, self.partitions().await?);
        let read = GroupRead::Get { tree: tree_name(database.0), key: key.clone() };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::Value(found) => {
                Ok(Watched { database, key, version: found.map_or(0, |found| found.version) })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out operations together, under locks, if what is watched is still as it was; `None`: it is not.
    pub(super) async fn carry_out(
        &self,
        watched: &[Watched],
        fences: &[Fence],
        operations: Vec<StringsOperation>,
    ) -> Result<Option<Vec<StringsReply>>, Value> {
        let partitions = self.partitions().await.map_err(|error| failed(&error))?;
        if operations.iter().map(StringsOperation::bytes).sum::<usize>() > MAX_COMMAND_LENGTH {
            return Err(Value::error("ERR a transaction brings or makes at most 1 GiB; split it"));
        }
        // What only reads has no place in the log, where what it was told would be remembered on every replica.
        let only_reads = operations.iter().all(StringsOperation::is_read);
        match group_of_all(partitions, &operations, watched, fences) {
            Some(group) if only_reads && watched.is_empty() && fences.is_empty() => {
                self.read_together(group, operations).await.map(Some).map_err(|error| failed(&error))
            }
            Some(group) if !only_reads => {
                let submitted = self.submit(group, watched.to_vec(), fences, operations);
                submitted.await.map_err(|error| failed(&error))
            }
            _ => transaction::carry_out(self, watched, fences, &operations).await,
        }
    }

    /// See [`submit`].
    pub(super) async fn submit(
        &self,
        group: u32,
        watched: Vec<Watched>,
        fences: &[Fence],
        operations: Vec<StringsOperation>,
    ) -> Result<Option<Vec<StringsReply>>, Error> {
        submit(&self.client, group, watched, fences, operations).await
    }
}

/// One entry of one group, carried out only under locks of that group, and if what is watched is still as it was;
/// `None`: it is not.
pub(super) async fn submit(
    client: &Client,
    group: u32,
    watched: Vec<Watched>,
    fences: &[Fence],
    mut operations: Vec<StringsOperation>,
) -> Result<Option<Vec<StringsReply>>, Error> {
    let mut watched: Vec<KeyRead> = watched
        .into_iter()
        .map(|Watched { database, key, version }| KeyRead { tree: database, key, version })
        .collect();
    let trees = name_trees(&mut operations, &mut watched);
    let command = Command::Strings { watched, operations };
    match client.core().execute_fenced(group, trees, fences, command, client.until()).await? {
        Reply::Strings(StringsReplies(replies)) => Ok(Some(replies)),
        Reply::Conflict => Ok(None),
        other => Err(unexpected(&other)),
    }
}

/// Whether commands were refused together for what one of them wants: a reply that is too long, or space, which is not to
/// keep those from being carried out that give some back.
fn is_for_one(outcome: &Result<Vec<StringsReply>, Error>) -> bool {
    matches!(outcome, Err(Error::Invalid(_) | Error::NoSpace(_)))
}

/// Whether it may remove a key or a field, or tells of something.
fn removes_or_tells(action: &StringAction, now_ms: u64) -> bool {
    let is_over = |when: &When| match when {
        When::After(after) => *after == 0,
        When::At(at) => *at <= now_ms,
        When::Keep => false,
    };
    match action {
        StringAction::Delete
        | StringAction::Take
        | StringAction::Tell { .. }
        | StringAction::Transfer { copy: false, .. }
        | StringAction::Hash(HashAction::Delete { .. }) => true,
        StringAction::Set { when: Some(when), .. }
        | StringAction::GetAndExpire { when: Some(when) }
        | StringAction::Expire { when, .. } => is_over(when),
        _ => false,
    }
}
