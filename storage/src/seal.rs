//! Sealed names: trees that a group refuses to make, because they live there under another name.
//!
//! What a cluster needs that spreads the keys of one tree in another way than those of the others (see
//! `dogsled_replication::ring`): it keeps them in a tree whose *stored name* says how, and **seals** the
//! plain name in every group. A seal is an empty tree with a name of its own, so it is as durable as any
//! tree, comes with every checkpoint and snapshot, and every replica finds it at the same position of the
//! log. It costs nothing where it does not matter: it is looked for only when a name is not found.
//!
//! Promise: once a group has applied the making of a seal and has no tree of the plain name, then no
//! command makes that tree there any more, and nothing reads it as empty: whoever names it is refused by
//! [`Error::TreeSealed`](crate::Error::TreeSealed), and learns that what he knows of the tree is old.
//!
//! Not here: who seals what, and when. A tree that is there already is not hidden by a seal: whoever seals
//! looks afterwards.

use crate::IVec;

/// What the name of a seal begins with.
const SEAL: &[u8] = b"__dogsled__sealed:";

/// The name of the tree that seals the name of another.
pub fn seal_of(name: &[u8]) -> IVec {
    IVec::from([SEAL, name].concat())
}

/// The name that a seal seals, if it is one.
pub fn sealed_by(seal: &[u8]) -> Option<&[u8]> {
    seal.strip_prefix(SEAL)
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::sync::Arc;

    use super::*;
    use crate::codec::encode_group_command;
    use crate::disk::RealDisk;
    use crate::group::{Answer, GroupCommand, GroupRead, GroupReadReply, Operation, Refusal};
    use crate::wal::{Wal, WalOptions};
    use crate::{Command, Error, Replica, ReplicaOptions, TreeId, Write};

    fn put(key: &str) -> Command {
        let writes = vec![Write { tree: TreeId(0), key: key.into(), value: Some("v".into()) }];
        Command::Batch { writes }
    }

    #[test]
    fn a_sealed_name_is_refused_unless_its_tree_was_there_before() {
        let directory = tempfile::tempdir().unwrap();
        let wal = WalOptions::new(directory.path().join("wal"), 42);
        let wal = Arc::new(Wal::open(Arc::new(RealDisk), wal).unwrap());
        let options = ReplicaOptions::new(directory.path().join("groups/1"), 42);
        let replica = Replica::open(options, wal).unwrap();
        let mut position = 0;
        let mut apply = |trees: &[&str], command: Command| -> Result<Answer, Refusal> {
            position += 1;
            let trees = trees.iter().map(|tree| IVec::from(*tree)).collect();
            let operation = Operation::Command(command);
            let entry = GroupCommand { session: None, time_ms: 0, trees, operation };
            let entry = encode_group_command(&entry).unwrap();
            replica.apply(position, Some(b"note"), &entry).unwrap().result
        };
        let sealed = |name: &str| Err(Refusal::TreeSealed(name.into()));
        apply(&["old"], put("a")).unwrap();
        for name in ["old", "new"] {
            apply(&[], Command::CreateTree { name: seal_of(name.as_bytes()) }).unwrap();
        }
        apply(&["old"], put("b")).unwrap();
        assert_eq!(apply(&["new"], put("a")), sealed("new"));
        let both = Command::Batch {
            writes: [0, 1]
                .map(|tree| Write { tree: TreeId(tree), key: "c".into(), value: Some("v".into()) })
                .into(),
        };
        assert_eq!(apply(&["old", "new"], both), sealed("new"));
        assert_eq!(apply(&["new"], Command::ClearTree { tree: TreeId(0) }), sealed("new"));
        assert_eq!(apply(&[], Command::CreateTree { name: "new".into() }), sealed("new"));
        assert_eq!(apply(&[], Command::DropTree { name: "new".into() }), sealed("new"));
        let unsealed = apply(&[], Command::DropTree { name: seal_of(b"new") });
        assert!(matches!(unsealed, Err(Refusal::Invalid(_))), "{unsealed:?}");
        let reads = |name: &str| {
            let (tree, key) = (IVec::from(name), IVec::from("a"));
            [
                GroupRead::Get { tree: tree.clone(), key: key.clone() },
                GroupRead::GetMany { tree: tree.clone(), keys: vec![key.clone()] },
                GroupRead::GetKinds { tree: tree.clone(), keys: vec![key.clone()] },
                GroupRead::Expires { tree: tree.clone(), key },
                GroupRead::Len { tree: tree.clone() },
                GroupRead::Validate {
                    trees: vec![tree.clone()],
                    reads: Vec::new(),
                    ranges: Vec::new(),
                    since: None,
                    under: None,
                },
                GroupRead::Range {
                    tree,
                    low: Bound::Unbounded,
                    high: Bound::Unbounded,
                    reverse: false,
                    limit: 9,
                    limit_bytes: 99,
                    values: true,
                },
            ]
        };
        for read in reads("new") {
            let found = replica.read(&read);
            assert!(matches!(&found, Err(Error::TreeSealed(name)) if *name == "new"), "{read:?}: {found:?}");
        }
        for read in reads("old").into_iter().chain(reads("other")) {
            replica.read(&read).unwrap();
        }
        let length = replica.read(&GroupRead::Len { tree: "old".into() }).unwrap();
        assert_eq!(length, GroupReadReply::Length(2), "nothing of what was refused");
        // Once it is gone it is not made again.
        apply(&[], Command::DropTree { name: "old".into() }).unwrap();
        assert_eq!(apply(&["old"], put("a")), sealed("old"));
        apply(&["other"], put("a")).unwrap();
    }

    #[test]
    fn a_seal_has_this_name_for_ever() {
        assert_eq!(seal_of(b"chat"), "__dogsled__sealed:chat");
        assert_eq!(sealed_by(&seal_of(b"")), Some(&b""[..]));
        assert_eq!(sealed_by(b"chat"), None);
    }
}
