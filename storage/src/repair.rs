//! Repairing: everything sound of a damaged directory goes into a new one, and what was lost is
//! told precisely.
//!
//! **Promise.** The source is only read. The new database opens, verifies, and outside of the
//! losses in the [`RepairReport`] it is what the old one was. No damaged byte is carried over, and
//! nothing is made up.
//!
//! # What is saved
//!
//! From the B-tree, every page that matches the checksum its parent keeps of it, read page by page
//! without redb (`tree_file/pages.rs`), so that one damaged leaf costs its own keys and nothing
//! behind it. A page lost is a range of keys of one tree: the separators beside it in its parent
//! say which. Branch pages are few and cost many leaves; for a lost range redb's previous commit
//! is asked, whose branch pages are other ones. What it knows of the range is saved, too, and the
//! range stays among the losses as [`LossKind::Outdated`]: a key in it may be one checkpoint old.
//!
//! From the WAL, all sound commits in order, on top. Every key that they touch is then right even
//! within a lost range, because whatever changed it later is in the WAL as well.
//!
//! # A gap in the WAL
//!
//! A commit builds on those before it, so where one is missing the sound ones behind it are not
//! applied: what is saved is a state that the database once had. The report names them, and
//! [`RepairOptions::apply_behind_gaps`] applies them all the same, for those to whom the newest
//! value of each key matters more than that they belong together. Segments that are missing at the
//! beginning of the log leave such a gap, too: the openings of those behind them say where it began.
//! There is an exception: a checkpoint that was under way may have brought commits from behind the gap
//! into the B-tree already; the report counts such keys.
//!
//! # Numbers never given twice
//!
//! The new database continues behind the greatest sequence found anywhere, applied or not, so that
//! no commit to come has a number that somebody has seen before with other contents. Its database
//! id is a new one, derived from the old: it is another database, and must not be taken for the
//! continuation of what replicas or backups hold. If the record of the ids that were given out is
//! lost, ids start again at a number out of reach.
//!
//! # Not here
//!
//! Files beside the directory's own are not looked at, and what was deleted is not brought back.

mod hostile;
mod log;
mod save;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use twox_hash::XxHash3_128;

pub use self::hostile::check_arbitrary_files;

use self::log::Replay;
use self::save::Saver;
use self::tree::Tree;
use crate::bulk::BulkBuilder;
use crate::directory::{is_own_directory, read_manifest, refuse_node_at, tree_path};
use crate::disk::{Disk, DiskLock, OpenMode};
use crate::meta::{Catalog, Checkpoint, SESSIONS_TREE_NAME, table_name};
use crate::tree_file::TreeFile;
use crate::verify::{Damage, KeyRange};
use crate::{Corruption, Error, IVec, Result, TreeId};

/// Where ids start again when nobody knows which were given out.
const IDS_UNKNOWN: u64 = 1 << 62;
/// How many numbers of trees are left out when nobody knows which were given out.
const TREES_UNKNOWN: u32 = 1 << 16;

/// How to [`repair_with`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RepairOptions {
    /// Applies sound commits that lie behind missing ones. The result may be a state that the
    /// database never had.
    pub apply_behind_gaps: bool,
}

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairProgress {
    /// Commits of the WAL read.
    pub commits: u64,
    /// Keys saved.
    pub keys: u64,
}

/// What was saved and what was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// Trees in the new database, its own ones that are empty not counted.
    pub trees: u64,
    /// Keys in all of them.
    pub keys: u64,
    /// Bytes of these keys and their values.
    pub bytes: u64,
    /// The last commit whose effects are in it.
    pub last_commit: u64,
    /// Commits of the WAL that were applied to what the B-tree held.
    pub commits_applied: u64,
    /// What was lost.
    pub losses: Vec<Loss>,
    /// Damage that cost nothing, and other things worth knowing.
    pub notes: Vec<String>,
}

impl RepairReport {
    /// Whether everything was saved.
    pub fn is_complete(&self) -> bool {
        self.losses.is_empty()
    }
}

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// What kind of thing.
    pub kind: LossKind,
    /// Where the damage is and which keys it concerns.
    pub damage: Damage,
    /// The commits concerned: the first and the last.
    pub commits: Option<(u64, u64)>,
}

/// Kinds of [`Loss`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum LossKind {
    /// Keys in the range are missing, save those that the WAL still had.
    Keys,
    /// Keys in the range are as the checkpoint before the last found them: some may be of older
    /// values, gone, or back from being removed.
    Outdated,
    /// Trees lost their names and were given new ones.
    Names,
    /// Commits cannot be read.
    Commits,
    /// Commits can be read and were not applied, because some before them are missing.
    CommitsBehindGap,
    /// The log ends with a write that was cut short when the machine stopped, or damaged since:
    /// the two look the same. Commits that were acknowledged as synced are in it only if it was
    /// damaged.
    Tail,
    /// Ids of `generate_id` start again at a number out of reach.
    Ids,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            LossKind::Keys => "keys lost",
            LossKind::Outdated => "keys that may be outdated",
            LossKind::Names => "names of trees lost",
            LossKind::Commits => "commits lost",
            LossKind::CommitsBehindGap => "commits not applied, behind missing ones",
            LossKind::Tail => "the end of the log",
            LossKind::Ids => "the next id lost",
        };
        write!(f, "{kind}: ")?;
        if let Some((first, last)) = self.commits {
            write!(f, "commits {first} to {last}; ")?;
        }
        write!(f, "{}", self.damage)
    }
}

/// Saves what is sound of the database in `source` into a new one in `target`.
///
/// # Errors
/// [`Error::InUse`], [`Error::NotADatabase`] if nothing in `source` is ours or `target` holds
/// something, [`Error::Io`]. Damage is no error but in the report. A repair that failed leaves no
/// database in `target`.
pub fn repair(
    disk: &Arc<dyn Disk>,
    source: &Path,
    target: &Path,
    progress: &mut dyn FnMut(RepairProgress),
) -> Result<RepairReport> {
    repair_with(disk, source, target, RepairOptions::default(), progress)
}

/// [`repair`] with options.
///
/// # Errors
/// As [`repair`].
pub fn repair_with(
    disk: &Arc<dyn Disk>,
    source: &Path,
    target: &Path,
    options: RepairOptions,
    progress: &mut dyn FnMut(RepairProgress),
) -> Result<RepairReport> {
    if source == target {
        return Err(Error::InvalidRequest(
            "the source of a repair is not changed: name another target".to_owned(),
        ));
    }
    if !is_own_directory(&**disk, source)? {
        return Err(nothing_of_ours(source));
    }
    refuse_node_at(&**disk, source)?;
    let _lock = lock_source(&**disk, source)?;
    let mut repair = Repair {
        report: RepairReport::default(),
        database_id: None,
        greatest_sequence: 0,
        tree_path: tree_path(source),
        progress,
    };
    repair.manifest(&**disk, source)?;
    let mut damage = Vec::new();
    let file = open_tree(&**disk, source, &mut damage)?;
    let tree = match &file {
        Some(file) => {
            for corruption in damage {
                repair.report.notes.push(corruption.to_string());
            }
            repair.database_id = repair.database_id.or(Some(file.database_id()).filter(|id| *id != 0));
            repair.tree(file)?
        }
        None => {
            let damage = damage.pop().map_or_else(
                || Damage {
                    file: tree_path(source),
                    offset: None,
                    what: "the file is missing".to_owned(),
                    keys: None,
                },
                Damage::from,
            );
            let everything = KeyRange { tree: None, above: None, up_to: None };
            repair.lose(LossKind::Keys, Damage { keys: Some(everything), ..damage }, None);
            Tree::default()
        }
    };
    let wal = repair.wal(&**disk, source, &tree, options)?;
    if file.is_none() && wal.is_none() {
        return Err(nothing_of_ours(source));
    }
    repair.write(disk, target, file.as_ref(), tree, wal.unwrap_or_default())
}

fn nothing_of_ours(source: &Path) -> Error {
    let what = "there is neither a B-tree nor a WAL of dogsled in it".to_owned();
    Error::NotADatabase { path: source.to_owned(), what }
}

/// Keeps others from the source while it is read, here and by verifying. Makes no lock file where there
/// is none: the source is not changed.
pub(crate) fn lock_source(disk: &dyn Disk, source: &Path) -> Result<Option<Box<dyn DiskLock>>> {
    let path = source.join("LOCK");
    let exists =
        disk.exists(&path).map_err(|error| Error::io(format!("looking for {}", path.display()), error))?;
    if !exists {
        return Ok(None);
    }
    match disk.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::InUse(source.to_owned())),
        // Nobody can have it open for writing.
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) => Err(Error::io(format!("locking {}", path.display()), error)),
    }
}

fn open_tree(disk: &dyn Disk, source: &Path, damage: &mut Vec<Corruption>) -> Result<Option<TreeFile>> {
    let path = tree_path(source);
    match disk.open(&path, OpenMode::Read) {
        Ok(file) => TreeFile::open_damaged(file, &path, damage),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("opening {}", path.display()), error)),
    }
}

/// A repair under way.
struct Repair<'a> {
    report: RepairReport,
    database_id: Option<u128>,
    greatest_sequence: u64,
    /// Of the source, be it there or not.
    tree_path: PathBuf,
    progress: &'a mut dyn FnMut(RepairProgress),
}

impl Repair<'_> {
    fn lose(&mut self, kind: LossKind, damage: Damage, commits: Option<(u64, u64)>) {
        self.report.losses.push(Loss { kind, damage, commits });
    }

    fn manifest(&mut self, disk: &dyn Disk, source: &Path) -> Result<()> {
        match read_manifest(disk, source) {
            Ok(id) => self.database_id = Some(id),
            Err(error @ Error::NotADatabase { .. }) => return Err(error),
            Err(error) => self.report.notes.push(format!("the manifest cannot be used: {error}")),
        }
        Ok(())
    }

    /// Writes the new database.
    fn write(
        mut self,
        disk: &Arc<dyn Disk>,
        target: &Path,
        file: Option<&TreeFile>,
        tree: Tree,
        replay: Replay,
    ) -> Result<RepairReport> {
        let catalog = self.catalog(&tree, &replay);
        let id = self.database_id.unwrap_or(0);
        let mut seed = id.to_le_bytes().to_vec();
        seed.extend_from_slice(&self.greatest_sequence.to_le_bytes());
        let new_id = XxHash3_128::oneshot(&seed);
        let builder = BulkBuilder::new(disk, target, new_id, 64 << 20)?;
        let mut saver = Saver::new(builder, &replay, &mut *self.progress);
        // What a tree holds may not be what its quota says any more: it is to be set, and counted, anew.
        let had =
            |checkpoint: &Checkpoint| checkpoint.lengths.get(&TreeId::QUOTAS).is_some_and(|count| *count > 0);
        let were_written = replay.keys.iter().any(|((id, _), kept)| *id == TreeId::QUOTAS && kept.is_some());
        if were_written || tree.checkpoint.as_ref().is_some_and(had) {
            self.report.notes.push("quotas are not saved: if trees had any, set them anew".to_owned());
        }
        for id in catalog.ids.keys().filter(|id| **id != TreeId::QUOTAS) {
            saver.tree(file, &tree, *id, &catalog)?;
        }
        let Saver { builder, lengths, keys, bytes, greatest_version, ahead, losses, notes, .. } = saver;
        for (kind, damage) in losses {
            self.lose(kind, damage, None);
        }
        self.report.notes.extend(notes);
        if ahead > 0 {
            self.report.notes.push(format!(
                "{ahead} keys are of commits after {}: a checkpoint under way had them in the B-tree already",
                replay.last
            ));
        }
        let applied = self.greatest_sequence.max(greatest_version).max(replay.last);
        let next_id = self.next_id(tree.checkpoint.as_ref(), &replay);
        let counts = |id: &&TreeId| !id.is_system() || lengths.get(id).is_some_and(|length| *length > 0);
        self.report.trees = catalog.ids.keys().filter(counts).count() as u64;
        self.report.keys = keys;
        self.report.bytes = bytes;
        self.report.last_commit = replay.last;
        let time_ms = replay.time_ms;
        builder.finish(&Checkpoint { applied, time_ms, next_id, catalog, lengths, note: None })?;
        Ok(self.report)
    }

    /// The names of all trees that there are.
    fn catalog(&mut self, tree: &Tree, replay: &Replay) -> Catalog {
        let known = tree.checkpoint.as_ref().map(|checkpoint| checkpoint.catalog.clone());
        let names_known = known.is_some();
        let mut catalog = known.unwrap_or_default();
        // As opening it would.
        catalog.insert(TreeId::SESSIONS, IVec::from(SESSIONS_TREE_NAME));
        for (id, name) in &replay.created {
            catalog.insert(*id, name.clone());
        }
        for id in &replay.dropped {
            catalog.remove(*id);
        }
        let mut renamed = Vec::new();
        let tables = tree.tables.iter().map(|(id, _)| *id);
        for id in tables.chain(replay.keys.keys().map(|(id, _)| *id)) {
            if !catalog.ids.contains_key(&id) && !replay.dropped.contains(&id) {
                let name = format!("recovered-{}", table_name(id));
                catalog.insert(id, IVec::from(name.as_str()));
                renamed.push(name);
            }
        }
        if !names_known {
            catalog.next = TreeId(catalog.next.0.saturating_add(TREES_UNKNOWN));
        }
        if !names_known || !renamed.is_empty() {
            let what = match renamed.len() {
                0 => "the record of the trees cannot be read".to_owned(),
                _ => format!("the names of some trees cannot be read; new ones: {}", renamed.join(", ")),
            };
            let file = self.tree_path.clone();
            self.lose(LossKind::Names, Damage { file, offset: None, what, keys: None }, None);
        }
        catalog
    }

    fn next_id(&mut self, checkpoint: Option<&Checkpoint>, replay: &Replay) -> u64 {
        let known = checkpoint.map(|checkpoint| checkpoint.next_id);
        match (replay.next_id, known) {
            (Some(replayed), known) => replayed.max(known.unwrap_or(0)),
            (None, Some(known)) => known,
            (None, None) => {
                let what = format!("which ids were given out is not known; they go on at {IDS_UNKNOWN}");
                let file = self.tree_path.clone();
                self.lose(LossKind::Ids, Damage { file, offset: None, what, keys: None }, None);
                IDS_UNKNOWN
            }
        }
    }
}
