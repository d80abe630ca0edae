//! From redb's header to its tables: which of its commits can be read best.

use super::{LossKind, Repair};
use crate::meta::Checkpoint;
use crate::tree_file::TreeFile;
use crate::tree_file::layout::HeaderBytes;
use crate::tree_file::pages::{CommitSlot, PageReader, TableEntry};
use crate::verify::{Damage, KeyRange, Records, Rows, tree_of_table};
use crate::{Result, TreeId};

/// What redb's header leads to.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) header: Option<HeaderBytes>,
    pub(super) tables: Vec<(TreeId, TableEntry)>,
    /// redb's previous commit, for the ranges that are lost in the newest.
    pub(super) tables_before: Vec<(TreeId, TableEntry)>,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Up to this commit a checkpoint has begun to fold, so that some of their effects may be there.
    pub(super) folding: u64,
    /// Tables may be missing from `tables`.
    pub(super) tables_lost: bool,
}

impl Repair<'_> {
    /// Finds the tables and the checkpoint record.
    pub(super) fn tree(&mut self, file: &TreeFile) -> Result<Tree> {
        let mut candidates = vec![file.header_bytes()];
        candidates.extend(file.header_slots());
        // The newest commit of the newest header comes first; a worse one is taken only if it
        // leads further.
        let mut best: Option<((usize, u64), Tree)> = None;
        let mut newest_transaction = 0;
        let mut problem = None;
        for header in candidates {
            let reader = match PageReader::with_header(file, &header) {
                Ok(reader) => reader,
                Err(corruption) => {
                    problem = problem.or(Some(corruption));
                    continue;
                }
            };
            let newest = match reader.commit() {
                Ok(newest) => Some(newest),
                Err(corruption) => {
                    problem = problem.or(Some(corruption));
                    None
                }
            };
            // A slot with a later number is of a commit that was never finished.
            let earlier =
                |slot: &CommitSlot| newest.is_none_or(|newest| slot.transaction < newest.transaction);
            let before = reader.commit_before().filter(earlier);
            for (commit, before) in [(newest, before), (before, None)] {
                let Some(commit) = commit else { continue };
                let (merit, tree) = tables_of(file, &header, commit, before)?;
                let rank = (merit, commit.transaction);
                if best.as_ref().is_none_or(|(other, _)| *other < rank) {
                    best = Some((rank, tree));
                }
                newest_transaction = newest_transaction.max(commit.transaction);
            }
        }
        let Some(((_, transaction), tree)) = best else {
            let corruption = problem.expect("a header that leads nowhere has something wrong with it");
            let everything = KeyRange { tree: None, above: None, up_to: None };
            self.lose(LossKind::Keys, Damage { keys: Some(everything), ..corruption.into() }, None);
            return Ok(Tree { tables_lost: true, ..Tree::default() });
        };
        if transaction < newest_transaction {
            self.report.notes.push(
                "the B-tree's newest commit leads to damaged pages; the one before it was taken".to_owned(),
            );
        }
        if tree.tables_lost {
            let what = "a page of redb's list of tables cannot be read".to_owned();
            let everything = KeyRange { tree: None, above: None, up_to: None };
            let damage = Damage { file: file.path().to_owned(), offset: None, what, keys: Some(everything) };
            self.lose(LossKind::Keys, damage, None);
        }
        Ok(tree)
    }
}

/// The tables of one commit, and how much of what they need is there.
fn tables_of(
    file: &TreeFile,
    header: &HeaderBytes,
    commit: CommitSlot,
    before: Option<CommitSlot>,
) -> Result<(usize, Tree)> {
    let Ok(mut reader) = PageReader::with_header(file, header) else {
        return Ok((0, Tree::default()));
    };
    let tables = |reader: &mut PageReader<'_>, commit: CommitSlot| {
        reader.forget_seen();
        reader.tables(commit.user)
    };
    let found = tables(&mut reader, commit)?;
    let mut rows = Rows::default();
    let meta = found.found.iter().find(|table| table.name == "meta");
    if let Some((meta, root)) = meta.and_then(|meta| Some((meta, meta.root?))) {
        reader.forget_seen();
        reader.walk(root, meta.widths, &mut rows)?;
    }
    // Without the table nothing is known, unless no table can have been lost.
    let known = meta.is_some() || found.lost.is_empty();
    let records = rows.records(file.path()).ok().flatten().filter(|_| known);
    let (checkpoint, folding) = match records {
        Some(Records { checkpoint, folding }) => (Some(checkpoint), folding),
        None => (None, None),
    };
    let numbered = |tables: Vec<TableEntry>| -> Vec<(TreeId, TableEntry)> {
        let mut numbered: Vec<_> =
            tables.into_iter().filter_map(|table| Some((tree_of_table(&table.name)?, table))).collect();
        numbered.sort_by_key(|(id, _)| *id);
        numbered
    };
    let merit = 1 + usize::from(found.lost.is_empty()) + 2 * usize::from(checkpoint.is_some());
    let tables_before = match before {
        Some(before) => tables(&mut reader, before)?.found,
        None => Vec::new(),
    };
    let tree = Tree {
        header: Some(*header),
        tables_lost: !found.lost.is_empty(),
        tables: numbered(found.found),
        tables_before: numbered(tables_before),
        checkpoint,
        folding: folding.map_or(0, |folding| folding.applied),
    };
    Ok((merit, tree))
}
