//! From redb's header to its tables: which of its commits can be read best.

use super::{LossKind, Repair};
use crate::meta::Checkpoint;
use crate::tree_file::TreeFile;
use crate::tree_file::layout::HeaderBytes;
use crate::tree_file::pages::{CommitSlot, PageReader, TableEntry};
use crate::verify::{Damage, KeyRange, Row, tree_of_table};
use crate::{Result, TreeId};

/// What redb's header leads to.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) header: Option<HeaderBytes>,
    pub(super) tables: Vec<(TreeId, TableEntry)>,
    /// redb's previous commit, for the ranges that are lost in the newest.
    pub(super) tables_before: Vec<(TreeId, TableEntry)>,
    pub(super) checkpoint: Option<Checkpoint>,
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
    let mut checkpoint = None;
    let mut row = Row::default();
    let meta = found.found.iter().find(|table| table.name == "meta");
    if let Some((meta, root)) = meta.and_then(|meta| Some((meta, meta.root?))) {
        reader.forget_seen();
        reader.walk(root, meta.widths, &mut row)?;
        if let Some(value) = &row.value {
            checkpoint = Checkpoint::decode(value, file.path()).ok();
        }
    }
    let numbered = |tables: Vec<TableEntry>| -> Vec<(TreeId, TableEntry)> {
        let mut numbered: Vec<_> =
            tables.into_iter().filter_map(|table| Some((tree_of_table(&table.name)?, table))).collect();
        numbered.sort_by_key(|(id, _)| *id);
        numbered
    };
    let never_checkpointed = found.lost.is_empty() && !found.found.iter().any(|table| table.name == "meta");
    if never_checkpointed {
        checkpoint = Some(Checkpoint::default());
    }
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
    };
    Ok((merit, tree))
}
