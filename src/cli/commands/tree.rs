//! `tree`: what of the keys of a cluster's trees is hashed.

use std::collections::BTreeMap;

use dogsled::cluster::Error;
use dogsled::cluster::ring::TreeHash;
use serde_json::{Value, json};

use crate::cli::args::{Global, TreeCommand};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;
use crate::cli::remote::Remote;
use crate::cli::store::name_argument;

/// Every partition has to be reached.
const TIMEOUT: u64 = 60;

pub(crate) fn tree(global: &Global, out: &mut Output, command: &TreeCommand) -> Result<()> {
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let (name, first, before, nth) = match command {
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
        error @ (Error::Unavailable(_) | Error::OutcomeUnknown(_)) => {
            Failure::from(error).adding("the same command goes on with it")
        }
        other => other.into(),
    })?;
    out.summary(
        format!("of the keys of {} {hash} is hashed", bytes::display(&name)),
        json!({ "tree": bytes::to_json(&name), "hashed": fields(hash) }),
    )
}

fn fields(hash: TreeHash) -> Value {
    match hash {
        TreeHash::Whole => json!("whole"),
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
    let mut trees: BTreeMap<_, _> =
        remote.wait(client.tree_names())?.into_iter().map(|name| (name, (TreeHash::Whole, true))).collect();
    trees.extend(record.trees.into_iter().map(|(name, tree)| (name, (tree.hash, tree.in_force))));
    for (name, (hash, in_force)) in trees {
        let pending = if in_force { "" } else { " (not in force yet: choose it again)" };
        let line = format!("{}\t{hash}{pending}", bytes::display(&name));
        let document = json!({ "tree": bytes::to_json(&name), "hashed": fields(hash), "in_force": in_force });
        out.summary(line, document)?;
    }
    Ok(())
}
