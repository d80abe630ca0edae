//! `export` and `import`: whole trees out of a database and into another.
//!
//! Times to live go along: in an archive, the keys of a tree that expire follow it as a collection of a kind of
//! its own, with the time at which they do (milliseconds since 1970, 8 bytes, little-endian) as value; it is there
//! only if there are such keys. In JSON Lines they are a field. The import of a key whose time is over by then
//! removes it again.
//!
//! Counters go along; locks stay, because a lease and a fencing token mean something only in the
//! database that granted them, and so do, of a directory, keys that die with a session (of a cluster nobody is told whose a
//! key is: there they go along, and stay where they are imported). Hashes of Redis clients are refused: what their keys
//! hold means nothing elsewhere; a backup has them. What is exported of a directory is of one moment; of a cluster, only
//! what nobody writes to meanwhile is.
//!
//! An embedded database's directory can be imported as it is, which saves the file: so it moves into a
//! cluster of many partitions while that serves others. It is held open meanwhile, and stays as it was.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;

use dogsled::IVec;
use dogsled_storage::{COUNTERS_TREE_NAME, DEFAULT_TREE_NAME, LOCKS_TREE_NAME};
use serde_json::json;

use crate::cli::archive::{self, Damage, Event, Reader, Writer};
use crate::cli::args::{ExportFormat, Global};
use crate::cli::bytes;
use crate::cli::database::{Database, Keyspace, TOGETHER};
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::load::json_lines::{self, JsonLines};
use crate::cli::load::{Problem, Record};
use crate::cli::output::{self, Output};
use crate::cli::output_file::OutputFile;
use crate::cli::progress::Progress;
use crate::cli::sink::Sink;
use crate::cli::store::KeyRange;

/// What `Db::export` calls every collection.
const TREE_KIND: &[u8] = b"tree";
/// The keys of the tree of the same name that expire, and when.
const TIMES_KIND: &[u8] = b"times to live";

pub(crate) fn export(
    global: &Global,
    out: &mut Output,
    file: Option<&Path>,
    format: Option<ExportFormat>,
) -> Result<()> {
    let file = file.filter(|file| *file != Path::new("-"));
    let named = file.and_then(Path::extension).and_then(|extension| extension.to_str());
    let format = format.unwrap_or(match named {
        Some("jsonl" | "ndjson") => ExportFormat::JsonLines,
        _ => ExportFormat::Archive,
    });
    if file.is_none() && format == ExportFormat::Archive && io::stdout().is_terminal() {
        return Err(Failure::usage("the archive is binary: give a file, a pipe, or --format jsonl"));
    }
    let database = global.existing_database()?;
    let names: Vec<Vec<u8>> = match global.tree_name()? {
        Some(name) => vec![database.existing_tree(&name)?.name().to_vec()],
        None => database.exported_tree_names()?.into_iter().map(|name| name.to_vec()).collect(),
    };
    let Some(file) = file else {
        write_export(global, &database, &names, format, OutputWriter(out), &|error| Failure::output(&error))?;
        return Ok(());
    };
    let failed = |error: io::Error| Failure::io(file.display(), &error);
    let written = OutputFile::create(file, global.dir.as_deref())?;
    let (written, records) = write_export(global, &database, &names, format, written, &failed)?;
    let size = written.finish()?;
    out.summary(
        format!(
            "{} of {} exported to {} ({})",
            output::count(records, "record"),
            output::count(names.len() as u64, "tree"),
            file.display(),
            output::size(size)
        ),
        json!({ "records": records, "trees": names.len(), "file": file.display().to_string(), "bytes": size }),
    )
}

/// Writes a key and its value, and when it expires.
type WriteEntry<'a> = dyn FnMut(&[u8], &[u8], Option<u64>) -> io::Result<()> + 'a;

/// Writes the trees; gives back the writer and the number of records.
fn write_export<W: Write>(
    global: &Global,
    database: &Database,
    names: &[Vec<u8>],
    format: ExportFormat,
    mut writer: W,
    failed: &dyn Fn(io::Error) -> Failure,
) -> Result<(W, u64)> {
    let trees = names.iter().map(|name| database.tree(name)).collect::<Result<Vec<_>>>()?;
    let total = trees.iter().map(Keyspace::len).sum::<Result<u64>>()?;
    let progress = Progress::items(Some(total), "exporting", global.quiet);
    let mut records = 0;
    let of_sessions = database.keys_of_sessions()?;
    let mut each = |tree: &Keyspace, write: &mut WriteEntry<'_>| {
        for_each_entry(database, tree, &of_sessions, &mut |key, value, expires_ms| {
            if dogsled_storage::hashes::head(&value).is_some() {
                return Err(Failure::refused(format!(
                    "key {} of tree {:?} is a hash of Redis, which an export cannot hold: `dogsled backup` can; or \
                     export other trees with --tree",
                    bytes::display_short(&key),
                    bytes::display_short(&tree.name()),
                )));
            }
            write(&key, &value, expires_ms).map_err(failed)?;
            records += 1;
            progress.set(records);
            Ok(())
        })
    };
    match format {
        ExportFormat::JsonLines => {
            for (name, tree) in names.iter().zip(&trees) {
                each(tree, &mut |key, value, expires_ms| {
                    writeln!(writer, "{}", json_lines::write(Some(name), key, value, expires_ms))
                })?;
            }
            writer.flush().map_err(failed)?;
        }
        ExportFormat::Archive => {
            let mut archive = Writer::new(writer).map_err(failed)?;
            for (name, tree) in names.iter().zip(&trees) {
                archive.tree(TREE_KIND, name).map_err(failed)?;
                let mut expiring = Vec::new();
                each(tree, &mut |key, value, expires_ms| {
                    expiring.extend(expires_ms.map(|expires_ms| (key.to_vec(), expires_ms)));
                    archive.record(key, value)
                })?;
                archive.end_tree().map_err(failed)?;
                if !expiring.is_empty() {
                    archive.tree(TIMES_KIND, name).map_err(failed)?;
                    for (key, expires_ms) in expiring {
                        archive.record(&key, &expires_ms.to_le_bytes()).map_err(failed)?;
                    }
                    archive.end_tree().map_err(failed)?;
                }
            }
            writer = archive.finish().map_err(failed)?;
        }
    }
    Ok((writer, records))
}

/// Standard output as a plain writer.
struct OutputWriter<'a>(&'a mut Output);

impl Write for OutputWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write_bytes(buffer)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

pub(crate) fn import(
    global: &Global,
    out: &mut Output,
    file: &Path,
    format: Option<ExportFormat>,
    merge: bool,
) -> Result<()> {
    let mut source = Source::open(global, file, format)?;
    let name = source.name.clone();
    // First reading: nothing is applied of a file that is not sound to its end.
    let only = global.tree_name()?;
    let trees = source.trees(global, only.as_ref())?;
    if let Some(only) = only.as_ref().filter(|_| trees.is_empty()) {
        return Err(Failure::not_found(format!("{name} has no tree {:?}", bytes::display_short(only))));
    }

    let database = global.database()?;
    if trees.iter().any(|(name, _)| name == LOCKS_TREE_NAME) {
        return Err(Failure::bad_input(format!(
            "{name} holds locks, which cannot be imported; nothing was imported"
        )));
    }
    if !merge {
        refuse_filled(&database, &trees)?;
    }
    let mut sink = Sink::into_any_tree(database.clone())?;
    let applied = source.read(global, only.as_ref(), "importing", &mut |item| match item {
        // Empty trees are trees too.
        Item::Tree(name) => database.tree(&name).map(drop),
        Item::Record(record) => sink.add(record),
    });
    applied
        .and_then(|()| sink.finish())
        .map_err(|failure| sink.stopped_by(failure).adding("import again with --merge to complete it"))?;
    out.summary(
        format!(
            "{} of {} imported ({})",
            output::count(sink.done, "record"),
            output::count(trees.len() as u64, "tree"),
            output::size(sink.done_bytes)
        ),
        json!({ "records": sink.done, "trees": trees.len(), "bytes": sink.done_bytes }),
    )
}

/// Refuses to import over keys that are there, unless that is what was asked for.
fn refuse_filled(database: &Database, trees: &[(Vec<u8>, u64)]) -> Result<()> {
    let existing = database.tree_names()?;
    for (name, _) in trees {
        if !existing.iter().any(|known| known == name) {
            continue;
        }
        let count = database.tree(name)?.len()?;
        if count > 0 {
            return Err(Failure::refused(format!(
                "tree {:?} has {} already, and nothing was imported; --merge adds to it and overwrites what is in both",
                bytes::display_short(name),
                output::count(count, "key")
            )));
        }
    }
    Ok(())
}

/// What is imported.
struct Source {
    /// What errors call it.
    name: String,
    kind: SourceKind,
}

enum SourceKind {
    File { file: File, length: u64, format: ExportFormat },
    Directory(Database),
}

impl Source {
    fn open(global: &Global, path: &Path, format: Option<ExportFormat>) -> Result<Source> {
        let from_stdin = path == Path::new("-");
        let name = if from_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let unreadable = |error: io::Error| Failure::io(&name, &error);
        let mut file = if from_stdin {
            spool(io::stdin().lock()).map_err(unreadable)?
        } else {
            let file = File::open(path).map_err(unreadable)?;
            let kind = file.metadata().map_err(unreadable)?;
            if kind.is_dir() {
                if format.is_some() {
                    return Err(Failure::usage(format!("{name} is a directory, and --format is of files")));
                }
                let database = Database::Directory(global.open_existing(Some(&path.to_path_buf()))?);
                return Ok(Source { name, kind: SourceKind::Directory(database) });
            }
            // A pipe can be read once only, and this takes two readings.
            if kind.is_file() { file } else { spool(file).map_err(unreadable)? }
        };
        let length = file.metadata().map_err(unreadable)?.len();
        let mut start = Vec::new();
        (&mut file).take(8).read_to_end(&mut start).map_err(unreadable)?;
        let format = format.unwrap_or(if archive::is_archive(&start) || !start.starts_with(b"{") {
            ExportFormat::Archive
        } else {
            ExportFormat::JsonLines
        });
        Ok(Source { name, kind: SourceKind::File { file, length, format } })
    }

    /// The trees that it has, or that one, and how many records of each. A file is read to its end.
    fn trees(&mut self, global: &Global, only: Option<&Vec<u8>>) -> Result<Vec<(Vec<u8>, u64)>> {
        let mut trees: Vec<(Vec<u8>, u64)> = Vec::new();
        if let SourceKind::Directory(database) = &self.kind {
            // It is held, so it stays as it is, and what is damaged shows as it is read.
            for name in database.exported_tree_names()? {
                if only.is_none_or(|only| name == only) {
                    trees.push((name.to_vec(), database.tree(&name)?.len()?));
                }
            }
            return Ok(trees);
        }
        self.read(global, only, "checking", &mut |item| {
            let tree = item.tree().map_or(DEFAULT_TREE_NAME, Vec::as_slice);
            let added = u64::from(matches!(&item, Item::Record(record) if record.value.is_some()));
            match trees.iter_mut().rev().find(|(known, _)| known == tree) {
                Some((_, count)) => *count += added,
                None => trees.push((tree.to_vec(), added)),
            }
            Ok(())
        })?;
        Ok(trees)
    }

    /// Passes on all that it has, or has of one tree.
    fn read(
        &mut self,
        global: &Global,
        only: Option<&Vec<u8>>,
        doing: &'static str,
        each: &mut dyn FnMut(Item) -> Result<()>,
    ) -> Result<()> {
        let name = &self.name;
        let mut chosen = |item: Item| {
            let wanted = only.is_none_or(|only| item.tree() == Some(only));
            if wanted { each(item) } else { Ok(()) }
        };
        match &mut self.kind {
            SourceKind::File { file, length, format } => {
                file.seek(SeekFrom::Start(0)).map_err(|error| Failure::io(name, &error))?;
                let progress = Progress::bytes(Some(*length), doing, global.quiet);
                let input = BufReader::with_capacity(256 << 10, &*file);
                match format {
                    ExportFormat::Archive => read_archive(name, input, &progress, &mut chosen),
                    ExportFormat::JsonLines => read_json_lines(name, input, &progress, &mut chosen),
                }
            }
            SourceKind::Directory(database) => {
                let names = database.exported_tree_names()?;
                let names = names.iter().filter(|name| only.is_none_or(|only| **name == *only));
                read_directory(database, names, &Progress::items(None, doing, global.quiet), &mut chosen)
            }
        }
    }
}

fn read_directory<'a>(
    database: &Database,
    names: impl Iterator<Item = &'a IVec>,
    progress: &Progress,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let mut read = 0;
    let of_sessions = database.keys_of_sessions()?;
    for name in names {
        each(Item::Tree(name.to_vec()))?;
        for_each_entry(database, &database.tree(name)?, &of_sessions, &mut |key, value, expires_ms| {
            let (tree, value) = (Some(name.to_vec()), Some(value.to_vec()));
            each(Item::Record(Record { tree, key: key.to_vec(), value, expires_ms }))?;
            read += 1;
            progress.set(read);
            Ok(())
        })?;
    }
    Ok(())
}

/// Passes on the entries of a tree that an export has, each with when it expires.
fn for_each_entry(
    database: &Database,
    tree: &Keyspace,
    of_sessions: &HashSet<(IVec, IVec)>,
    each: &mut dyn FnMut(IVec, IVec, Option<u64>) -> Result<()>,
) -> Result<()> {
    let name = tree.name();
    let has_times = database.may_have_times_to_live() && name != COUNTERS_TREE_NAME;
    let mut entries = tree.entries(&KeyRange::default(), false, true);
    loop {
        let some = entries.by_ref().take(TOGETHER).collect::<Result<Vec<_>>>()?;
        if some.is_empty() {
            return Ok(());
        }
        let expires = match has_times {
            true => {
                let keys: Vec<_> = some.iter().map(|(key, _)| key.clone()).collect();
                tree.expires(&keys, database.now_ms())?
            }
            false => vec![Some(None); some.len()],
        };
        for ((key, value), expires_ms) in some.into_iter().zip(expires) {
            // Its time may have come since it was read: it is not to stay for ever where it is imported.
            let Some(expires_ms) = expires_ms else { continue };
            if of_sessions.is_empty() || !of_sessions.contains(&(name.clone(), key.clone())) {
                each(key, value, expires_ms)?;
            }
        }
    }
}

/// A copy that can be read twice, in a file without a name.
fn spool(mut input: impl Read) -> io::Result<File> {
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut input, &mut copy)?;
    copy.seek(SeekFrom::Start(0))?;
    Ok(copy)
}

/// What a file says, whatever its format.
enum Item {
    /// There is a tree of this name.
    Tree(Vec<u8>),
    Record(Record),
}

impl Item {
    fn tree(&self) -> Option<&Vec<u8>> {
        match self {
            Item::Tree(name) => Some(name),
            Item::Record(record) => record.tree.as_ref(),
        }
    }
}

fn read_archive(
    name: &str,
    input: impl Read,
    progress: &Progress,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let refused = |damage: Damage| {
        let code = if damage.unreadable { Code::Io } else { Code::BadInput };
        Failure::new(code, format!("{name}: {damage}")).adding("nothing was imported")
    };
    let mut reader = Reader::new(input).map_err(refused)?;
    let mut tree = Vec::new();
    let mut are_times = false;
    while let Some(event) = reader.next_event().map_err(refused)? {
        match event {
            Event::Tree { kind, name: tree_name } => {
                are_times = kind == TIMES_KIND;
                if kind != TREE_KIND && !are_times {
                    return Err(Failure::bad_input(format!(
                        "{name}: {:?} is no kind of collection that this version knows; nothing was imported",
                        bytes::display_short(&kind)
                    )));
                }
                tree.clone_from(&tree_name);
                if !are_times {
                    each(Item::Tree(tree_name))?;
                }
            }
            Event::Record { key, value } if are_times => {
                let Ok(expires_ms) = value.try_into().map(u64::from_le_bytes) else {
                    return Err(Failure::bad_input(format!(
                        "{name}: the time to live of key {} is none; nothing was imported",
                        bytes::display_short(&key)
                    )));
                };
                let expires_ms = Some(expires_ms);
                each(Item::Record(Record { tree: Some(tree.clone()), key, value: None, expires_ms }))?;
            }
            Event::Record { key, value } => {
                let (value, expires_ms) = (Some(value), None);
                each(Item::Record(Record { tree: Some(tree.clone()), key, value, expires_ms }))?;
            }
            Event::TreeEnd | Event::End { .. } => {}
        }
        progress.set(reader.offset());
    }
    Ok(())
}

fn read_json_lines(
    name: &str,
    input: impl BufRead,
    progress: &Progress,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let mut read = 0;
    for parsed in JsonLines::new(input, json_lines::Options::default()) {
        let record = parsed.map_err(|problem: Problem| {
            let code = if problem.unreadable { Code::Io } else { Code::BadInput };
            Failure::new(code, format!("{name}: {}: {}", problem.place, problem.what))
                .adding("nothing was imported")
        })?;
        read += record.size() as u64;
        progress.set(read);
        each(Item::Record(record))?;
    }
    Ok(())
}
