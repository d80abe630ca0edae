//! Writing the new database: B-tree and WAL merged, in order.

use std::collections::BTreeMap;

use super::log::Replay;
use super::tree::Tree;
use super::{LossKind, RepairProgress};
use crate::bulk::BulkBuilder;
use crate::evaluate::Versioned;
use crate::meta::Catalog;
use crate::tree_file::TreeFile;
use crate::tree_file::layout::HeaderBytes;
use crate::tree_file::pages::{LostPage, PageReader, Root, TableEntry, Visitor, Widths};
use crate::verify::{Damage, KeyRange};
use crate::{Corruption, IVec, Result, TreeId};

/// Writes trees, merged from B-tree and WAL, to the new database.
pub(super) struct Saver<'a> {
    pub(super) builder: BulkBuilder,
    pub(super) replay: &'a Replay,
    /// Keys of the tree being read that the WAL touched, not yet written; the last comes first.
    pub(super) pending: Vec<(IVec, Option<Versioned>)>,
    pub(super) lengths: BTreeMap<TreeId, u64>,
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) greatest_version: u64,
    pub(super) ahead: u64,
    pub(super) losses: Vec<(LossKind, Damage)>,
    pub(super) notes: Vec<String>,
    pub(super) progress: &'a mut dyn FnMut(RepairProgress),
}

impl<'a> Saver<'a> {
    pub(super) fn new(
        builder: BulkBuilder,
        replay: &'a Replay,
        progress: &'a mut dyn FnMut(RepairProgress),
    ) -> Saver<'a> {
        Saver {
            builder,
            replay,
            pending: Vec::new(),
            lengths: BTreeMap::new(),
            keys: 0,
            bytes: 0,
            greatest_version: 0,
            ahead: 0,
            losses: Vec::new(),
            notes: Vec::new(),
            progress,
        }
    }

    /// Writes one tree.
    pub(super) fn tree(
        &mut self,
        file: Option<&TreeFile>,
        tree: &Tree,
        id: TreeId,
        catalog: &Catalog,
    ) -> Result<()> {
        let touched = (TreeId(id.0), IVec::new())..;
        self.pending = self
            .replay
            .keys
            .range(touched)
            .take_while(|((of, _), _)| *of == id)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        self.pending.reverse();
        self.lengths.insert(id, 0);
        let name = &catalog.ids[&id];
        let in_tree = |tables: &[(TreeId, TableEntry)]| {
            let found = tables.iter().find(|(of, _)| *of == id);
            found.and_then(|(_, table)| Some((table.root?, table.widths)))
        };
        if let (Some(file), Some(header), false) = (file, &tree.header, self.replay.cleared.contains(&id))
            && let Ok(mut reader) = PageReader::with_header(file, header)
            && let Some((root, widths)) = in_tree(&tree.tables)
        {
            let mut base = BaseVisitor { saver: self, id, name, last: None, lost: Vec::new(), before: None };
            if let Some((root, widths)) = in_tree(&tree.tables_before) {
                base.before = Some((file, *header, root, widths));
            }
            reader.walk(root, widths, &mut base)?;
            let lost = base.lost;
            self.losses.extend(lost);
        }
        while let Some((key, value)) = self.pending.pop() {
            self.put(id, key, value)?;
        }
        Ok(())
    }

    /// An entry of the B-tree, in order.
    fn base_entry(&mut self, id: TreeId, key: &[u8], found: Versioned) -> Result<()> {
        while let Some((next, _)) = self.pending.last()
            && next[..] <= *key
        {
            let (next, value) = self.pending.pop().expect("there is a last one");
            let same = next[..] == *key;
            self.put(id, next, value)?;
            if same {
                return Ok(());
            }
        }
        self.ahead += u64::from(found.version > self.replay.last);
        self.put(id, IVec::from(key), Some(found))
    }

    fn put(&mut self, id: TreeId, key: IVec, value: Option<Versioned>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        *self.lengths.entry(id).or_default() += 1;
        self.keys += 1;
        self.bytes += (key.len() + value.value.len()) as u64;
        self.greatest_version = self.greatest_version.max(value.version);
        if self.keys.is_multiple_of(4096) {
            (self.progress)(RepairProgress { commits: self.replay.applied, keys: self.keys });
        }
        self.builder.add(id, key, value)
    }
}

type Before<'a> = (&'a TreeFile, HeaderBytes, Root, Widths);

/// Takes the B-tree's entries of one tree.
pub(super) struct BaseVisitor<'a, 'b> {
    saver: &'a mut Saver<'b>,
    id: TreeId,
    name: &'a IVec,
    last: Option<IVec>,
    lost: Vec<(LossKind, Damage)>,
    /// The same tree in redb's previous commit.
    before: Option<Before<'a>>,
}

impl Visitor for BaseVisitor<'_, '_> {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let in_order = self.last.as_ref().is_none_or(|last| last[..] < *key);
        match value.split_first_chunk::<8>() {
            Some((version, value)) if in_order => {
                let version = u64::from_le_bytes(*version);
                self.last = Some(IVec::from(key));
                self.saver.base_entry(self.id, key, Versioned { version, value: IVec::from(value) })
            }
            _ => {
                // Sound by its checksums and yet nonsense: written so by a bug.
                self.saver.notes.push(format!(
                    "tree \"{}\": the entry \"{}\" is out of order or has no version, and was left out",
                    self.name.escape_ascii(),
                    key.escape_ascii()
                ));
                Ok(())
            }
        }
    }

    fn lost(&mut self, page: LostPage) -> Result<()> {
        let mut kind = LossKind::Keys;
        if let Some((file, header, root, widths)) = self.before
            && let Ok(mut reader) = PageReader::with_header(file, &header)
        {
            let range = KeyRange { tree: None, above: page.above.clone(), up_to: page.up_to.clone() };
            let mut older = Older { range, found: Vec::new() };
            let range = (page.above.as_deref(), page.up_to.as_deref());
            reader.walk_range(root, widths, range, &mut older)?;
            if !older.found.is_empty() {
                kind = LossKind::Outdated;
            }
            for (key, value) in older.found {
                self.entry(&key, &value)?;
            }
        }
        self.lost.push((kind, Damage::of_page(Some(self.name.clone()), page)));
        Ok(())
    }

    fn checksum_damaged(&mut self, corruption: Corruption) {
        self.saver.notes.push(format!("{corruption}; the page is sound all the same"));
    }
}

/// Takes what an older commit knows of a range.
pub(super) struct Older {
    range: KeyRange,
    found: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Visitor for Older {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.range.contains(b"", key) {
            self.found.push((key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    fn lost(&mut self, _: LostPage) -> Result<()> {
        Ok(())
    }

    fn checksum_damaged(&mut self, _: Corruption) {}
}
