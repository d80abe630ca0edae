//! Verifying: everything that is kept is read and compared, and all damage is told, not only the
//! first.
//!
//! Reads compare checksums anyway, so verifying is for what nobody reads: [`Engine::verify`] walks
//! every tree of an open database, without stopping writers, and [`verify_directory`] does the same
//! to a directory that need not be fit to be opened. Both
//!
//! * read every block that a tree reaches and compare it with its checksum and with the one that
//!   the page above keeps of it (see [`tree_file`](crate::tree_file)). Blocks that no tree reaches
//!   hold nothing and may, after a crash, be anything;
//! * check that keys are in order, that each value has its version, and that there are as many
//!   entries as redb counts;
//! * check every frame and record of the WAL, that commits follow one another, and that no commit
//!   is missing between tree and WAL.
//!
//! What opening refuses, verifying a directory calls damage; the rules are the same functions
//! (of the engine's recovery and of the WAL's).
//!
//! The open database is also asked, tree by tree, whether it has as many keys as it says.
//!
//! # Not here
//!
//! Saving what is sound: [`repair`](mod@crate::repair).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::codec::decode_effects;
use crate::directory::{is_own_directory, read_manifest, refuse_node_at, tree_path, wal_path};
use crate::disk::{Disk, OpenMode};
use crate::engine::EMBEDDED_STREAM;
use crate::evaluate::Effect;
use crate::meta::{CHECKPOINT_ROW, Checkpoint, FOLDING_ROW, table_name};
use crate::recovery::{check_reach, require_wal};
use crate::repair::lock_source;
use crate::tree_file::TreeFile;
use crate::tree_file::pages::{LostPage, PageReader, Root, TableEntry, Visitor};
use crate::wal::{Event, RecordKind, inspect, no_log};
use crate::{Corruption, Engine, Error, IVec, Result, TreeId};

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Trees walked.
    pub trees: u64,
    /// Sound entries in the B-tree.
    pub keys: u64,
    /// 4 KiB blocks of the B-tree read.
    pub tree_blocks: u64,
    /// Segments of the WAL that hold commits.
    pub wal_segments: u64,
    /// Sound commits in them.
    pub wal_commits: u64,
    /// Puts and removals of keys in those of them that are not in the B-tree yet.
    pub wal_changes: u64,
    /// All damage that was found.
    pub damage: Vec<Damage>,
    /// What is unusual and no damage: a write cut short by a crash.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// One damaged place, and what it cost as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes, as near as is known.
    pub offset: Option<u64>,
    /// What was expected and what was found.
    pub what: String,
    /// The keys that cannot be read because of it.
    pub keys: Option<KeyRange>,
}

/// A range of keys of one tree, or of all trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The tree's name; `None`: any tree, known or not.
    pub tree: Option<IVec>,
    /// The keys are above this one; `None`: from the first.
    pub above: Option<IVec>,
    /// The keys are up to and including this one; `None`: to the last.
    pub up_to: Option<IVec>,
}

impl KeyRange {
    /// Whether the range covers a key of a tree.
    pub fn contains(&self, tree: &[u8], key: &[u8]) -> bool {
        self.tree.as_ref().is_none_or(|name| name[..] == *tree)
            && self.above.as_ref().is_none_or(|above| above[..] < *key)
            && self.up_to.as_ref().is_none_or(|up_to| *key <= up_to[..])
    }
}

/// Bytes as text, what is not printable escaped.
fn escaped(bytes: &IVec) -> String {
    bytes.escape_ascii().to_string()
}

impl Serialize for KeyRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Text {
            tree: Option<String>,
            above: Option<String>,
            up_to: Option<String>,
        }
        Text {
            tree: self.tree.as_ref().map(escaped),
            above: self.above.as_ref().map(escaped),
            up_to: self.up_to.as_ref().map(escaped),
        }
        .serialize(serializer)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tree {
            Some(tree) => write!(f, "tree \"{}\", ", escaped(tree))?,
            None => write!(f, "any tree, ")?,
        }
        match (&self.above, &self.up_to) {
            (None, None) => write!(f, "all keys"),
            (None, Some(up_to)) => write!(f, "keys up to \"{}\"", escaped(up_to)),
            (Some(above), None) => write!(f, "keys above \"{}\"", escaped(above)),
            (Some(above), Some(up_to)) => {
                write!(f, "keys above \"{}\" up to \"{}\"", escaped(above), escaped(up_to))
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.what)?;
        match &self.keys {
            Some(keys) => write!(f, " ({keys})"),
            None => Ok(()),
        }
    }
}

impl From<Corruption> for Damage {
    fn from(corruption: Corruption) -> Damage {
        Damage { file: corruption.file, offset: corruption.offset, what: corruption.what, keys: None }
    }
}

impl Damage {
    /// What a page lost from a tree means.
    pub(crate) fn of_page(tree: Option<IVec>, page: LostPage) -> Damage {
        let keys = KeyRange { tree, above: page.above, up_to: page.up_to };
        Damage { keys: Some(keys), ..Damage::from(page.corruption) }
    }
}

impl Engine {
    /// Reads and checks everything that the database keeps, while reads and writes go on; see the
    /// [module](crate::verify).
    ///
    /// # Errors
    /// Damage is no error but in the report. [`Error::Io`] if the directory cannot be read.
    pub fn verify(&self) -> Result<VerifyReport> {
        let shared = &*self.shared;
        let disk = &*shared.directory.disk;
        let mut report = VerifyReport::default();
        let path = shared.directory.tree_path();

        // No checkpoint runs while this is held: the file is as its last commit left it. The state
        // keeps redb from reusing what that commit reaches.
        let freezing = shared.freezing.lock();
        let state = shared.state.load_full();
        let opened = disk.open(&path, OpenMode::Read);
        let file = opened.map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
        match TreeFile::open_read_only(file, &path, shared.directory.database_id) {
            Ok(file) => {
                let mut check = TreeCheck { file: &file, report: &mut report, tables_lost: false };
                if let Some((mut reader, tables)) = check.begin() {
                    check.system(&mut reader)?;
                    drop(freezing);
                    check.user(&mut reader, &tables)?;
                }
            }
            Err(Error::Corrupt(corruption)) => {
                drop(freezing);
                report.damage.push(corruption.into());
            }
            Err(error) => return Err(error),
        }
        drop(state);

        self.count_keys(&mut report);
        if shared.replica.is_none() {
            verify_live_wal(disk, &shared.directory.wal_path(), shared.checkpointed(), &mut report)?;
        }
        Ok(report)
    }

    /// Whether there are as many keys as [`Engine::len`] says.
    fn count_keys(&self, report: &mut VerifyReport) {
        let snapshot = self.snapshot().with_expired();
        let path = self.shared.directory.tree_path();
        for (name, id) in snapshot.trees() {
            let damaged = |damage: &Damage| {
                damage
                    .keys
                    .as_ref()
                    .is_some_and(|keys| keys.tree.is_none() || keys.tree.as_ref() == Some(&name))
            };
            if report.damage.iter().any(damaged) {
                continue;
            }
            let mut counted = 0;
            let mut last: Option<IVec> = None;
            let mut problem = None;
            for entry in snapshot.range(id, Bound::Unbounded, Bound::Unbounded) {
                match entry {
                    Ok((key, _)) => {
                        if last.as_ref().is_some_and(|last| *last >= key) {
                            problem = Some(format!("the key \"{}\" is out of order", escaped(&key)));
                        }
                        last = Some(key);
                        counted += 1;
                    }
                    Err(Error::Corrupt(corruption)) => {
                        report.damage.push(corruption.into());
                        break;
                    }
                    Err(error) => {
                        problem = Some(format!("cannot be read to its end: {error}"));
                        break;
                    }
                }
            }
            let expected = snapshot.len(id).unwrap_or(counted);
            if problem.is_none() && counted != expected {
                problem = Some(format!("has {counted} keys and says that it has {expected}"));
            }
            if let Some(problem) = problem {
                let what = format!("tree \"{}\": {problem}", escaped(&name));
                report.damage.push(Damage { file: path.clone(), offset: None, what, keys: None });
            }
        }
    }
}

/// Checks a directory that nobody has open, whether or not it can be opened. Changes nothing.
///
/// # Errors
/// [`Error::InUse`] if somebody has it open, [`Error::NotADatabase`] for another program's or a newer version's
/// directory, [`Error::Io`]. Damage is in the report.
pub fn verify_directory(disk: &dyn Disk, directory: &Path) -> Result<VerifyReport> {
    if !is_own_directory(disk, directory)? {
        let what = "nothing in it was made by dogsled".to_owned();
        return Err(Error::NotADatabase { path: directory.to_owned(), what });
    }
    refuse_node_at(disk, directory)?;
    // What another writes meanwhile would look like damage.
    let _lock = lock_source(disk, directory)?;
    let mut report = VerifyReport::default();
    let missing =
        |file: PathBuf| Damage { file, offset: None, what: "the file is missing".to_owned(), keys: None };
    let database_id = match read_manifest(disk, directory) {
        Ok(id) => Some(id),
        Err(Error::Corrupt(corruption)) => {
            report.damage.push(corruption.into());
            None
        }
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            report.damage.push(missing(directory.join("MANIFEST")));
            None
        }
        Err(error) => return Err(error),
    };
    let path = tree_path(directory);
    let mut records = None;
    match disk.open(&path, OpenMode::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => report.damage.push(missing(path)),
        Err(error) => return Err(Error::io(format!("opening {}", path.display()), error)),
        Ok(file) => {
            let mut damage = Vec::new();
            let file = TreeFile::open_damaged(file, &path, &mut damage)?;
            report.damage.extend(damage.into_iter().map(Damage::from));
            if let Some(file) = file {
                of_this_database(&mut report, &path, database_id, Some(file.database_id()));
                let mut check = TreeCheck { file: &file, report: &mut report, tables_lost: false };
                if let Some((mut reader, tables)) = check.begin() {
                    check.system(&mut reader)?;
                    records = check.user(&mut reader, &tables)?;
                }
            }
        }
    }
    if records.as_ref().is_some_and(|records| records.checkpoint.note.is_some()) {
        report.notes.push("a replica of a node: its log is in the node's WAL, not here".to_owned());
        return Ok(report);
    }
    let wal = wal_path(directory);
    match require_wal(disk, &wal) {
        Ok(()) => verify_wal(disk, &wal, database_id, records.as_ref(), &mut report)?,
        Err(Error::Corrupt(corruption)) => report.damage.push(corruption.into()),
        Err(error) => return Err(error),
    }
    Ok(report)
}

/// Files of another database are refused by opening.
fn of_this_database(report: &mut VerifyReport, path: &Path, id: Option<u128>, found: Option<u128>) {
    if let (Some(id), Some(found)) = (id, found.filter(|found| *found != 0))
        && id != found
    {
        let what = format!("it belongs to another database (id {found:032x}, expected {id:032x})");
        report.damage.push(Damage { file: path.to_owned(), offset: None, what, keys: None });
    }
}

/// Checks the WAL of a database that nobody has open, by itself and against the B-tree.
fn verify_wal(
    disk: &dyn Disk,
    wal: &Path,
    database_id: Option<u128>,
    records: Option<&Records>,
    report: &mut VerifyReport,
) -> Result<()> {
    let applied = records.map(|records| records.checkpoint.applied);
    let mut check = WalCheck { applied: applied.unwrap_or(0), ..WalCheck::default() };
    let summary = inspect(disk, wal, &mut |event| {
        if let Event::Segment { file, database_id: found, .. } = event {
            of_this_database(report, file, database_id, found);
        }
        check.event(event)
    })?;
    if summary.segments == 0 {
        report.damage.extend(match no_log(wal) {
            Error::Corrupt(corruption) => Some(Damage::from(corruption)),
            _ => None,
        });
    }
    if let Some(Records { checkpoint, folding }) = records {
        let found = check.first.zip(check.next.map(|next| next - 1));
        let bounds = summary.bounds(EMBEDDED_STREAM).or(found);
        let folding = folding.as_ref().map(|folding| folding.applied);
        match check_reach(wal, checkpoint.applied, folding, bounds) {
            Err(Error::Corrupt(corruption)) => check.damage.push(corruption.into()),
            other => other?,
        }
    }
    if !check.closed {
        check.notes.push(
            "the log does not end with an orderly shutdown: if there was another commit at its end, it left no trace"
                .to_owned(),
        );
    }
    check.add_to(report);
    Ok(())
}

/// Checks redb's trees.
struct TreeCheck<'a> {
    file: &'a TreeFile,
    report: &'a mut VerifyReport,
    /// A page of the list of tables cannot be read: some may be missing.
    tables_lost: bool,
}

impl<'a> TreeCheck<'a> {
    /// The reader, and the tables of the newest commit.
    fn begin(&mut self) -> Option<(PageReader<'a>, Vec<TableEntry>)> {
        let found = PageReader::new(self.file).and_then(|mut reader| {
            let user = reader.commit()?.user;
            Ok(reader.tables(user).map(|tables| (reader, tables)))
        });
        match found {
            Ok(Ok((reader, tables))) => {
                self.report.damage.extend(reader.check_length().err().map(Damage::from));
                self.tables_lost = !tables.lost.is_empty();
                self.report.damage.extend(tables.lost.into_iter().map(|page| {
                    // Names of redb's tables are not names of trees.
                    Damage::of_page(None, LostPage { above: None, up_to: None, ..page })
                }));
                self.report.damage.extend(tables.checksums.into_iter().map(of_checksum));
                Some((reader, tables.found))
            }
            Ok(Err(error)) => {
                let what = error.to_string();
                self.report.damage.push(Damage {
                    file: self.file.path().to_owned(),
                    offset: None,
                    what,
                    keys: None,
                });
                None
            }
            Err(corruption) => {
                let all = KeyRange { tree: None, above: None, up_to: None };
                self.report.damage.push(Damage { keys: Some(all), ..corruption.into() });
                None
            }
        }
    }

    /// Walks what redb keeps for itself.
    fn system(&mut self, reader: &mut PageReader<'_>) -> Result<()> {
        let root = reader.commit().ok().and_then(|commit| commit.system);
        let tables = reader.tables(root)?;
        self.report.damage.extend(tables.lost.into_iter().map(|page| Damage::from(page.corruption)));
        self.report.damage.extend(tables.checksums.into_iter().map(of_checksum));
        for table in tables.found {
            self.walk(reader, &table, None, table.root)?;
        }
        Ok(())
    }

    /// Walks the trees and returns the checkpoint records, if they are sound.
    fn user(&mut self, reader: &mut PageReader<'_>, tables: &[TableEntry]) -> Result<Option<Records>> {
        let mut rows = Rows::default();
        let meta = tables.iter().find(|table| table.name == "meta");
        if let Some((meta, root)) = meta.and_then(|meta| Some((meta, meta.root?))) {
            reader.walk(root, meta.widths, &mut rows)?;
        }
        let known = meta.is_some() || !self.tables_lost;
        let records = match rows.records(self.file.path()) {
            Ok(records) => records.filter(|_| known),
            Err(Error::Corrupt(corruption)) => {
                self.report.damage.push(corruption.into());
                None
            }
            Err(error) => return Err(error),
        };
        self.report.damage.extend(rows.lost.into_iter().map(|page| Damage::from(page.corruption)));
        self.report.damage.extend(rows.checksums.into_iter().map(of_checksum));
        let checkpoint = records.as_ref().map(|records| &records.checkpoint);
        for table in tables.iter().filter(|table| table.name != "meta") {
            let id = tree_of_table(&table.name);
            let name = checkpoint.and_then(|checkpoint| checkpoint.catalog.ids.get(&id?)).cloned();
            let name = name.unwrap_or_else(|| IVec::from(table.name.as_str()));
            self.report.trees += 1;
            self.walk(reader, table, Some(name), table.root)?;
        }
        self.report.tree_blocks = reader.blocks_read;
        Ok(records)
    }

    fn walk(
        &mut self,
        reader: &mut PageReader<'_>,
        table: &TableEntry,
        tree: Option<IVec>,
        root: Option<Root>,
    ) -> Result<()> {
        let mut check = TableCheck { tree, ..TableCheck::default() };
        if let Some(root) = root {
            reader.walk(root, table.widths, &mut check)?;
        }
        if check.tree.is_some() {
            self.report.keys += check.entries;
        }
        let mut wrong = Vec::new();
        if check.out_of_order > 0 {
            wrong.push(format!("{} keys are out of order", check.out_of_order));
        }
        if check.without_version > 0 {
            wrong.push(format!("{} values are shorter than their version", check.without_version));
        }
        if check.lost.is_empty() && check.entries != table.length {
            wrong.push(format!("there are {} entries, redb counts {}", check.entries, table.length));
        }
        let file = self.file.path();
        self.report.damage.extend(wrong.into_iter().map(|what| Damage {
            file: file.to_owned(),
            offset: None,
            what: format!("in redb's table {:?} {what}", table.name),
            keys: None,
        }));
        let tree = &check.tree;
        self.report.damage.extend(check.lost.into_iter().map(|page| match tree {
            Some(tree) => Damage::of_page(Some(tree.clone()), page),
            None => Damage::from(page.corruption),
        }));
        self.report.damage.extend(check.checksums.into_values().map(|(corruption, count)| {
            let mut damage = of_checksum(corruption);
            if count > 1 {
                damage.what += &format!("; so it is with {count} pages hereabouts");
            }
            damage
        }));
        Ok(())
    }
}

/// The checksum is damaged, or a part of the page that holds nothing.
fn of_checksum(corruption: Corruption) -> Damage {
    let what = format!("{}; by redb's checksum what the page holds is sound", corruption.what);
    Damage { what, ..corruption.into() }
}

/// The tree whose table has this name.
pub(crate) fn tree_of_table(name: &str) -> Option<TreeId> {
    let id = TreeId(u32::from_str_radix(name.strip_prefix('t')?, 16).ok()?);
    (table_name(id) == name).then_some(id)
}

/// What redb's table `meta` says, as opening takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Records {
    /// The default if there never was a checkpoint.
    pub(crate) checkpoint: Checkpoint,
    /// Of a checkpoint after it that has begun and not ended.
    pub(crate) folding: Option<Checkpoint>,
}

/// Takes the rows of checkpoints out of redb's table `meta`.
#[derive(Default)]
pub(crate) struct Rows {
    checkpoint: Option<Vec<u8>>,
    folding: Option<Vec<u8>>,
    pub(crate) lost: Vec<LostPage>,
    pub(crate) checksums: Vec<Corruption>,
}

impl Rows {
    /// What the rows say. `None`: the record may be on a page that is lost. Without one, and with
    /// nothing lost, no checkpoint has ended yet: the first begins with the other row.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a record is no record.
    pub(crate) fn records(&self, file: &Path) -> Result<Option<Records>> {
        let decode =
            |row: &Option<Vec<u8>>| row.as_ref().map(|row| Checkpoint::decode(row, file)).transpose();
        let checkpoint = match decode(&self.checkpoint)? {
            Some(found) => found,
            None if self.lost.is_empty() => Checkpoint::default(),
            None => return Ok(None),
        };
        let folding = decode(&self.folding)?.filter(|folding| folding.applied > checkpoint.applied);
        Ok(Some(Records { checkpoint, folding }))
    }
}

impl Visitor for Rows {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if key == CHECKPOINT_ROW.as_bytes() {
            self.checkpoint = Some(value.to_vec());
        } else if key == FOLDING_ROW.as_bytes() {
            self.folding = Some(value.to_vec());
        }
        Ok(())
    }

    fn lost(&mut self, page: LostPage) -> Result<()> {
        self.lost.push(page);
        Ok(())
    }

    fn checksum_damaged(&mut self, corruption: Corruption) {
        self.checksums.push(corruption);
    }
}

#[derive(Default)]
struct TableCheck {
    /// `None`: one of redb's own, with values of another form.
    tree: Option<IVec>,
    entries: u64,
    last: Vec<u8>,
    out_of_order: u64,
    without_version: u64,
    lost: Vec<LostPage>,
    /// By group of checksums: the first damaged one and how many.
    checksums: BTreeMap<u64, (Corruption, u64)>,
}

impl Visitor for TableCheck {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.tree.is_some() {
            if self.entries > 0 && *self.last >= *key {
                self.out_of_order += 1;
            }
            self.last.clear();
            self.last.extend_from_slice(key);
            if value.first_chunk::<8>().is_none_or(|version| *version == [0; 8]) {
                self.without_version += 1;
            }
        }
        self.entries += 1;
        Ok(())
    }

    fn lost(&mut self, page: LostPage) -> Result<()> {
        self.lost.push(page);
        Ok(())
    }

    fn checksum_damaged(&mut self, corruption: Corruption) {
        let group = corruption.offset.unwrap_or(0) / (4 << 20);
        self.checksums.entry(group).or_insert((corruption, 0)).1 += 1;
    }
}

/// Checks what the WAL holds of the embedded database's stream.
#[derive(Default)]
struct WalCheck {
    /// The last commit that the B-tree holds.
    applied: u64,
    segments: u64,
    commits: u64,
    changes: u64,
    first: Option<u64>,
    next: Option<u64>,
    segment: PathBuf,
    frame: u64,
    /// The last frame was written by an orderly shutdown.
    closed: bool,
    damage: Vec<Damage>,
    notes: Vec<String>,
}

impl WalCheck {
    fn event(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Segment { file, .. } => {
                self.segments += 1;
                self.segment = file.to_owned();
                self.closed = false;
            }
            Event::Frame { offset, closed, .. } => {
                self.frame = offset;
                self.closed = closed;
            }
            Event::Record { kind: RecordKind::Append, stream, index, bytes, discarded }
                if stream == EMBEDDED_STREAM && !discarded =>
            {
                self.commits += 1;
                if let Some(next) = self.next
                    && next != index
                {
                    // Older segments may be left from recycling: what counts begins here.
                    self.first = Some(index);
                }
                self.first = self.first.or(Some(index));
                self.next = Some(index + 1);
                let decoded = decode_effects(bytes)
                    .and_then(|(_, effects)| effects.to_owned())
                    .map_err(|error| error.in_file(&self.segment, self.frame));
                match decoded {
                    Ok(effects) if index > self.applied => {
                        let is_change =
                            |effect: &&Effect| matches!(effect, Effect::Put { .. } | Effect::Remove { .. });
                        self.changes += effects.iter().filter(is_change).count() as u64;
                    }
                    Err(Error::Corrupt(corruption)) => self.damage.push(corruption.into()),
                    _ => {}
                }
            }
            Event::Damage(corruption) => self.damage.push(corruption.clone().into()),
            Event::TornTail { file, offset } => self.notes.push(format!(
                "{} at offset {offset}: a write that a crash cut short, with nothing acknowledged in it unless it was \
                 damaged later: the two look the same",
                file.display()
            )),
            _ => {}
        }
        Ok(())
    }

    fn add_to(self, report: &mut VerifyReport) {
        report.wal_segments += self.segments;
        report.wal_commits += self.commits;
        report.wal_changes += self.changes;
        report.damage.extend(self.damage);
        report.notes.extend(self.notes);
    }
}

/// Checks a WAL that is being appended to: what looks damaged may be a frame on its way, or a file
/// that was just recycled, and is not when one looks again.
fn verify_live_wal(disk: &dyn Disk, directory: &Path, applied: u64, report: &mut VerifyReport) -> Result<()> {
    const LOOKS: usize = 4;
    for look in 1.. {
        let mut check = WalCheck { applied, ..WalCheck::default() };
        let result = inspect(disk, directory, &mut |event| check.event(event));
        let settled = result.is_ok() && check.damage.is_empty();
        if settled || look == LOOKS {
            result?;
            check.add_to(report);
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    unreachable!("the last look returns")
}
