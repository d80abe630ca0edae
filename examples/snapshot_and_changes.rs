//! A copy in another place that follows along: a snapshot first, then every commit after it.
//!
//!     cargo run --example snapshot_and_changes

use std::collections::BTreeMap;

use dogsled::{Change, Config, Db, IVec, Result};

/// All trees of a database, in memory; a search index or another machine would do as well.
#[derive(Debug, Default, PartialEq)]
struct Copy {
    sequence: u64,
    trees: BTreeMap<IVec, BTreeMap<IVec, IVec>>,
}

impl Copy {
    fn of(db: &Db) -> Result<Copy> {
        // One moment for all trees, however long the copying takes.
        let snapshot = db.snapshot();
        let mut copy = Copy { sequence: snapshot.sequence(), ..Copy::default() };
        for name in snapshot.tree_names() {
            let entries = snapshot.iter(&db.open_tree(&name)?).collect::<Result<_>>()?;
            copy.trees.insert(name, entries);
        }
        Ok(copy)
    }

    /// Applies what was committed since.
    fn catch_up(&mut self, db: &Db) -> Result<usize> {
        let mut commits = 0;
        for commit in db.changes_since(self.sequence)? {
            let commit = commit?;
            for change in commit.changes {
                match change {
                    Change::Insert { tree, key, value } => {
                        self.trees.entry(tree).or_default().insert(key, value);
                    }
                    Change::Remove { tree, key } => {
                        self.trees.entry(tree).or_default().remove(&key);
                    }
                    Change::Clear { tree } => self.trees.entry(tree).or_default().clear(),
                    Change::CreateTree { tree } => {
                        self.trees.entry(tree).or_default();
                    }
                    Change::DropTree { tree } => {
                        self.trees.remove(&tree);
                    }
                    // More kinds may come; a copy that ignored one would be wrong.
                    other => panic!("this program does not know {other:?}"),
                }
            }
            self.sequence = commit.sequence;
            commits += 1;
        }
        Ok(commits)
    }
}

fn main() -> Result<()> {
    // How far back changes can be read is a choice; without it, as far as the last checkpoint.
    let db = Config::new().temporary(true).retain_changes_bytes(16 << 20).open()?;
    db.insert("colour", "red")?;
    let mut copy = Copy::of(&db)?;

    db.insert("colour", "blue")?;
    let shapes = db.open_tree("shapes")?;
    shapes.insert("square", "4")?;
    shapes.insert("circle", "0")?;
    shapes.remove("circle")?;

    let commits = copy.catch_up(&db)?;
    assert_eq!(copy, Copy::of(&db)?);
    println!("followed {commits} commits to sequence {}", copy.sequence);
    assert_eq!(copy.catch_up(&db)?, 0);
    Ok(())
}
