//! `tree`: what of the keys of a cluster's trees is hashed; quotas of trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use dogsled::cluster::Error;
use dogsled::cluster::ring::TreeHash;
use dogsled::{QuotaLimit, TreeQuota};
use serde_json::{Value, json};

use crate::cli::args::{Global, TreeCommand};
use crate::cli::bytes;
use crate::cli::commands::rebalance::go_on;
use crate::cli::database::Database;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::remote::Remote;
use crate::cli::store::name_argument;

/// Every partition has to be reached.
const TIMEOUT: u64 = 60;

pub(crate) fn tree(global: &Global, out: &mut Output, command: &TreeCommand) -> Result<()> {
    if let TreeCommand::Quota { name, bytes, entries, none } = command {
        let limit = QuotaLimit { bytes: *bytes, entries: *entries };
        let is_given = *none || limit != QuotaLimit::default();
        return quota(global, out, name.as_deref(), is_given.then_some((!none).then_some(limit)));
    }
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let (name, first, before, nth) = match command {
        TreeCommand::Quota { .. } => unreachable!("handled above"),
        TreeCommand::List => return list(&remote, out),
        TreeCommand::Hash { name, first, before, nth } => (name, first, before, *nth),
    };
    let name = name_argument("tree name", name)?;
    let hash = match (first, before) {
        (Some(first), _) => TreeHash::First(*first),
        (None, Some(before)) => match name_argument("delimiter", before)?[..] {
            [delimiter] => TreeHash::Before { delimiter, occurrence: nth },
            ref other => {
                return Err(Failure::usage(format!("a delimiter is one byte, not {}", other.len())));
            }
        },
        (None, None) => return Err(Failure::usage("say what is to be hashed: --first or --before")),
    };
    remote.wait(client.set_tree_hash(&name, hash)).map_err(|error| match error {
        Error::Conflict(what) => Failure::refused(what),
        other => go_on(other),
    })?;
    out.summary(
        format!("of the keys of {} {hash} is hashed", bytes::display(&name)),
        json!({ "tree": bytes::to_json(&name), "hashed": fields(hash) }),
    )
}

/// Sets the quota of a tree, or shows that of one or all.
fn quota(
    global: &Global,
    out: &mut Output,
    name: Option<&OsStr>,
    limit: Option<Option<QuotaLimit>>,
) -> Result<()> {
    let name = name.map(|name| name_argument("tree name", name)).transpose()?;
    let database = match limit {
        Some(_) => global.database()?,
        None => global.existing_database()?,
    };
    if let (Some(name), Some(limit)) = (&name, limit) {
        match &database {
            Database::Directory(db) => {
                db.open_tree(name)?.set_quota(limit)?;
                db.flush()?;
            }
            Database::Cluster(remote) => {
                let client = remote.patient_client(global, TIMEOUT);
                remote.wait(client.set_tree_quota(name, limit)).map_err(go_on)?;
            }
        }
        if limit.is_none() {
            return out.summary(
                format!("{} has no quota any more", bytes::display(name)),
                json!({ "tree": bytes::to_json(name), "limit_bytes": null, "limit_entries": null }),
            );
        }
    }
    let quotas: Vec<(TreeQuota, Option<(u32, u64)>)> = match &database {
        Database::Directory(db) => db.tree_quotas()?.into_iter().map(|quota| (quota, None)).collect(),
        Database::Cluster(remote) => {
            let shared = remote.wait(remote.client().tree_quotas())?.into_iter();
            shared.map(|shared| (shared.whole.clone(), shared.fullest())).collect()
        }
    };
    let mut is_found = name.is_none();
    for (quota, fullest) in quotas {
        if name.as_ref().is_none_or(|name| quota.tree == *name) {
            is_found = true;
            out.summary(quota_line(&quota, fullest), quota_fields(&quota, fullest))?;
        }
    }
    match (is_found, name) {
        (false, Some(name)) => {
            Err(Failure::not_found(format!("tree {:?} has no quota", bytes::display_short(&name))))
        }
        _ => Ok(()),
    }
}

pub(super) fn quota_line(quota: &TreeQuota, fullest: Option<(u32, u64)>) -> String {
    let mut line = bytes::display(&quota.tree).to_string();
    let of = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("\t{used} of {limit}"),
        None => format!("\t{used}"),
    };
    line += &of(output::size(quota.bytes), quota.limit.bytes.map(output::size));
    let keys = |entries: u64| output::count(entries, "key");
    line += &of(
        output::number(quota.entries),
        Some(quota.limit.entries.map_or_else(|| "any number of keys".to_owned(), keys)),
    );
    if let Some((group, percent)) = fullest {
        line += &format!("\tpartition {group} has used {percent} % of its share");
    }
    line
}

pub(super) fn quota_fields(quota: &TreeQuota, fullest: Option<(u32, u64)>) -> Value {
    let mut fields = json!({
        "tree": bytes::to_json(&quota.tree),
        "bytes": quota.bytes,
        "limit_bytes": quota.limit.bytes,
        "entries": quota.entries,
        "limit_entries": quota.limit.entries,
    });
    if let Some((group, percent)) = fullest {
        fields["fullest"] = json!({ "partition": group, "percent": percent });
    }
    fields
}

fn fields(hash: TreeHash) -> Value {
    match hash {
        TreeHash::Whole => json!("whole"),
        TreeHash::Slot => json!("slot"),
        TreeHash::First(length) => json!({ "first": length }),
        TreeHash::Before { delimiter, occurrence } => {
            json!({ "before": bytes::to_json(&[delimiter]), "nth": occurrence })
        }
    }
}

fn list(remote: &Remote, out: &mut Output) -> Result<()> {
    let client = remote.client();
    let record = remote.wait(client.record())?;
    // One that was chosen for and has no keys yet is told, too.
    let mut trees: BTreeMap<_, _> = remote
        .wait(client.tree_names())?
        .into_iter()
        .map(|name| (TreeHash::by_name(&name), name))
        .map(|(hash, name)| (name, (hash, true)))
        .collect();
    trees.extend(record.trees.into_iter().map(|(name, tree)| (name, (tree.hash, tree.in_force))));
    for (name, (hash, in_force)) in trees {
        let pending = if in_force { "" } else { " (not in force yet: choose it again)" };
        let line = format!("{}\t{hash}{pending}", bytes::display(&name));
        let document = json!({ "tree": bytes::to_json(&name), "hashed": fields(hash), "in_force": in_force });
        out.summary(line, document)?;
    }
    Ok(())
}
