//! `CONFIG`: what clients and tools ask for to know what they deal with, and the one thing that can be set.
//!
//! `notify-keyspace-events` is of the whole cluster, not of a node: it is kept in every partition, where
//! [`notices`] reads it. So it is the same at all nodes, is still there after a restart, and holds for a write from the entry on
//! that has changed it in the write's partition. It is a key of the tree `redis:events` there, and which key that is depends
//! on the number of partitions. So a backup has it, and is restored by [setting it anew](notify): of the keys of another
//! number of partitions some would come before those that are asked for, and others would be missing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_replication::ring::slots;
use dogsled_storage::strings::notices::{EVENTS_TREE, Wanted};
use dogsled_storage::strings::{MAX_STRING_LENGTH, SetOnly, StringAction, StringsOperation, StringsReply};
use dogsled_storage::{GroupRead, GroupReadReply, TreeId};
use futures_util::future::join_all;

use super::database::{Database, plain, submit};
use super::describe::{CONFIG_HELP, help};
use super::entry::group_of_key;
use super::link::Link;
use super::table::{Asked, Planned, Step, is_word, syntax_error};
use super::whole::Whole;
use super::{EVENTS, glob};
use crate::IVec;
use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, ReadFrom};

/// Which events are told of keys.
const NOTIFY: &str = "notify-keyspace-events";

/// So many keys at most are removed that stand beside those that say which.
const MOST_OTHERS: u32 = 4096;

/// Those that are the same at every node, by name.
const PARAMETERS: &[(&str, &str)] = &[
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("databases", "16"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
    ("timeout", "0"),
];

/// What [`Parameters`] tells.
const OF_THE_NODE: [&str; 5] =
    ["bind", "client-output-buffer-limit", "maxclients", "port", "proto-max-bulk-len"];

/// What is told of one node: its own address and limits.
pub(super) struct Parameters([(&'static str, String); OF_THE_NODE.len()]);

impl Parameters {
    /// Of one that listens here, for so many connections, which hold so many bytes together.
    pub(super) fn new(address: SocketAddr, max_connections: usize, max_held_bytes: usize) -> Parameters {
        // Replies may be as much as all connections hold together; messages are as `pubsub` has it.
        let replies = format!("normal {max_held_bytes} 0 0 slave 0 0 0 pubsub 33554432 8388608 60");
        let values = [
            address.ip().to_string(),
            replies,
            max_connections.to_string(),
            address.port().to_string(),
            MAX_STRING_LENGTH.to_string(),
        ];
        let mut values = values.into_iter();
        Parameters(OF_THE_NODE.map(|name| (name, values.next().expect("one of each"))))
    }

    /// All but [`NOTIFY`] that are asked for.
    fn found(&self, patterns: &[Bytes]) -> Vec<(Value, Value)> {
        let own = self.0.iter().map(|(name, value)| (*name, value.as_str()));
        let all = PARAMETERS.iter().copied().chain(own).filter(|(name, _)| is_wanted(patterns, name));
        all.map(|(name, value)| (named(patterns, name), Value::text(value))).collect()
    }
}

/// A name as it was asked for, if it was asked for by name.
fn named(patterns: &[Bytes], name: &str) -> Value {
    let asked = patterns.iter().find(|asked| asked.eq_ignore_ascii_case(name.as_bytes()));
    asked.map_or_else(|| Value::text(name), |asked| Value::Bulk(asked.clone()))
}

pub(super) fn config(asked: &Asked<'_>) -> Planned {
    let arguments = &asked.arguments[1..];
    match &arguments[1..] {
        patterns @ [_, ..] if is_word(&arguments[0], "GET") => Ok(match is_wanted(patterns, NOTIFY) {
            true => Step::Whole(Whole::Parameters(patterns.to_vec())),
            false => {
                let get = |link: &mut Link, arguments: &[Bytes]| {
                    Value::Map(link.server.database.parameters.found(&arguments[2..]))
                };
                Step::Link(get, asked.arguments.to_vec())
            }
        }),
        pairs @ [_, ..] if is_word(&arguments[0], "SET") && pairs.len() % 2 == 0 => set(pairs),
        [] if is_word(&arguments[0], "HELP") => {
            Ok(Step::Link(|_, _| help("CONFIG", CONFIG_HELP), asked.arguments.to_vec()))
        }
        // Of SET, a name without a value.
        _ => Err(syntax_error()),
    }
}

fn is_wanted(patterns: &[Bytes], name: &str) -> bool {
    patterns.iter().any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
}

fn set(pairs: &[Bytes]) -> Planned {
    let failed = |name: &str, why: &str| {
        let what = format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}");
        Err(Value::error(what))
    };
    // All names before any value.
    let mut wanted: Option<&Bytes> = None;
    for pair in pairs.chunks(2) {
        let name = String::from_utf8_lossy(&pair[0]).to_ascii_lowercase();
        if name != NOTIFY {
            let known = PARAMETERS.iter().map(|(known, _)| known);
            if known.chain(&OF_THE_NODE).any(|known| *known == name) {
                return failed(&name, "can't set immutable config");
            }
            let name = String::from_utf8_lossy(&pair[0]);
            return Err(Value::error(format!(
                "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
            )));
        }
        if wanted.replace(&pair[1]).is_some() {
            return failed(&name, "duplicate parameter");
        }
    }
    match wanted.map_or(Some(Wanted::default()), |letters| Wanted::parse(letters)) {
        Some(letters) => Ok(Step::Whole(Whole::Notify(letters))),
        None => failed(NOTIFY, "Invalid event class character. Use 'Ag$lshzxeKEtmdn'."),
    }
}

/// Of each group the first key of the form `{n}` that belongs to it, under which it keeps what events are wanted.
fn switches(partitions: u32) -> BTreeMap<u32, IVec> {
    let mut found = BTreeMap::new();
    // Those beyond the number of slots have no keys of Redis clients.
    let wanted = (1..=partitions).filter(|group| !slots::slots_of(*group, partitions).is_empty()).count();
    for number in 0u64.. {
        let key = IVec::from(format!("{{{number}}}"));
        found.entry(group_of_key(&key, partitions)).or_insert(key);
        if found.len() == wanted {
            break;
        }
    }
    found
}

fn on(key: IVec, action: StringAction) -> StringsOperation {
    StringsOperation { tree: TreeId(EVENTS), key, action }
}

/// Has these told from now on, in every partition; why not, if a partition refuses.
pub(in crate::cluster) async fn notify(
    client: &Client,
    wanted: Wanted,
) -> Result<Option<StringsReply>, Error> {
    let letters = wanted.text();
    let switches = switches(client.core().partitions(client.until()).await?);
    let letters = &letters;
    let set = switches.into_iter().map(|(group, key)| async move {
        let operations = match letters.is_empty() {
            true => vec![on(IVec::new(), StringAction::Clear)],
            false => {
                // Whatever else is there may come first, and would count in place of this. It goes in the same entry, so
                // that events are told all the while.
                let others = keys_of_events(client, group).await?.into_iter().filter(|other| *other != key);
                let mut operations: Vec<_> = others.map(|other| on(other, StringAction::Delete)).collect();
                let (value, only) = (IVec::from(letters.as_str()), SetOnly::Always);
                operations.push(on(key.clone(), StringAction::Set { value, only, when: None, get: false }));
                operations
            }
        };
        submit(client, group, Vec::new(), &[], operations).await
    });
    // All of them, whatever happens to one.
    for set in join_all(set).await {
        let mut replies = set?.unwrap_or_default().into_iter();
        if let Some(refused) = replies.find(|reply| matches!(reply, StringsReply::Failed(_))) {
            return Ok(Some(refused));
        }
    }
    Ok(None)
}

/// The first keys of the tree in a partition, of which there is one if nobody else wrote there.
async fn keys_of_events(client: &Client, group: u32) -> Result<Vec<IVec>, Error> {
    let read = GroupRead::Range {
        tree: IVec::from(EVENTS_TREE),
        low: Bound::Unbounded,
        high: Bound::Unbounded,
        reverse: false,
        limit: MOST_OTHERS,
        limit_bytes: u64::MAX,
        values: false,
    };
    match client.core().read(group, &read, ReadFrom::Leader, client.until()).await?.reply {
        GroupReadReply::Page { entries, .. } => Ok(entries.into_iter().map(|(key, _)| key).collect()),
        other => Err(unexpected(&other)),
    }
}

impl Database {
    /// See [`notify`].
    pub(super) async fn notify(&self, wanted: Wanted) -> Result<Value, Error> {
        let refused = notify(&self.client, wanted).await?;
        Ok(refused.map_or(Value::OK, |refused| plain(&refused)))
    }

    /// Those that are asked for, [`NOTIFY`] among them.
    pub(super) async fn parameters_of_all(&self, patterns: &[Bytes]) -> Result<Value, Error> {
        let partitions = self.partitions().await?;
        let (_, key) = switches(partitions).pop_first().expect("a cluster has a partition");
        let replies = self.look_at_all(partitions, &[&on(key, StringAction::Get)]).await?;
        let letters = match replies.into_iter().next() {
            Some(StringsReply::Value(Some(letters))) => Wanted::parse(&letters).unwrap_or_default(),
            _ => Wanted::default(),
        };
        let mut found = self.parameters.found(patterns);
        found.push((named(patterns, NOTIFY), Value::text(letters.text_of_redis())));
        Ok(Value::Map(found))
    }
}

#[cfg(test)]
mod tests {
    use dogsled_storage::strings::notices::{DATABASES, database_name};

    use super::super::tree_name;
    use super::*;

    #[test]
    fn every_partition_has_a_switch_of_its_own_keys() {
        for partitions in [1, 2, 16, 300] {
            let found = switches(partitions);
            assert_eq!(found.len(), partitions as usize);
            assert!(found.iter().all(|(group, key)| group_of_key(key, partitions) == *group));
        }
    }

    #[test]
    fn the_state_machine_calls_trees_by_the_same_names() {
        for number in 0..DATABASES {
            assert_eq!(tree_name(number.into()), database_name(number));
        }
        assert_eq!(u32::from(DATABASES), super::super::DATABASES);
        assert_eq!(&tree_name(EVENTS)[..], EVENTS_TREE);
    }
}
