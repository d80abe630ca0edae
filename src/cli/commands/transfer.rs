//! `export` and `import`: whole trees out of a database and into another.
//!
//! Times to live go along: in an archive, the keys of a tree that expire follow it as a collection of a kind of
//! its own, with the time at which they do (milliseconds since 1970, 8 bytes, little-endian) before the value; it is there
//! only if there are such keys. In JSON Lines they are a field. A key is set together with its time, so that one is never
//! found that stays, nor one whose time was over, wherever an import is interrupted. (Exports of earlier builds have only
//! the times there, and the keys among the others.) The times are those of the cluster or database that is imported into,
//! whatever this machine's clock shows.
//!
//! Hashes of Redis clients go along, with all their fields: behind the trees, in records of bounded size
//! ([`archive::hashes`], [`json_lines`]). They are made anew where they are imported, by the operations of Redis
//! clients: what a key holds of one means nothing elsewhere.
//!
//! Counters go along; locks stay, because a lease and a fencing token mean something only in the
//! database that granted them, and so do keys that die with a session. What is exported is of one moment, of a
//! cluster too ([`Moment`](crate::cli::moment::Moment)), whoever writes meanwhile.
//!
//! An embedded database's directory can be imported as it is, which saves the file: so it moves into a
//! cluster of many partitions while that serves others. It is held open meanwhile, and stays as it was.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;

use dogsled_storage::strings::notices::EVENTS_TREE;
use dogsled_storage::{COUNTERS_TREE_NAME, DEFAULT_TREE_NAME, LOCKS_TREE_NAME};
use serde_json::json;

use crate::cli::archive::hashes::{HASHES_KIND, HashReader, HashWriter};
use crate::cli::archive::{self, Damage, Event, Reader, Writer};
use crate::cli::args::{ExportFormat, Global};
use crate::cli::bytes;
use crate::cli::database::{Database, is_own};
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::load::json_lines::{self, JsonLines};
use crate::cli::load::{Change, Problem, Record};
use crate::cli::moment::Moment;
use crate::cli::output::{self, Output};
use crate::cli::output_file::OutputFile;
use crate::cli::progress::Progress;
use crate::cli::sink::Sink;

/// What `Db::export` calls every collection.
const TREE_KIND: &[u8] = b"tree";
/// The keys of the tree of the same name that expire, and when.
const TIMES_KIND: &[u8] = b"times to live";
/// Those keys of a tree that have one, behind the others: a value is the time, in 8 bytes, and the key's value.
const EXPIRING_KIND: &[u8] = b"expiring";

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
    let chosen = match global.tree_name()? {
        Some(name) => Some(database.existing_tree(&name)?.name().to_vec()),
        None => None,
    };
    let moment = database.moment()?;
    // Which events Redis clients are told of is a setting of this cluster, one key in each of its partitions.
    let all = || moment.trees().filter(|name| *name != EVENTS_TREE).map(|name| name.to_vec()).collect();
    let names = chosen.map_or_else(all, |name| vec![name]);
    let Some(file) = file else {
        write_export(global, &moment, &names, format, OutputWriter(out), &|error| Failure::output(&error))?;
        moment.let_go();
        return Ok(());
    };
    let failed = |error: io::Error| Failure::io(file.display(), &error);
    let written = OutputFile::create(file, global.dir.as_deref())?;
    let (written, records) = write_export(global, &moment, &names, format, written, &failed)?;
    moment.let_go();
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

/// Writes the trees; gives back the writer and the number of records.
fn write_export<W: Write>(
    global: &Global,
    moment: &Moment,
    names: &[Vec<u8>],
    format: ExportFormat,
    mut writer: W,
    failed: &dyn Fn(io::Error) -> Failure,
) -> Result<(W, u64)> {
    let total = names.iter().map(|name| moment.keys(name)).sum();
    let progress = Progress::items(Some(total), "exporting", global.quiet);
    let mut records = 0;
    let mut count = |record: &Record| {
        records += u64::from(record.makes_key());
        progress.set(records);
    };
    match format {
        ExportFormat::JsonLines => {
            let mut write = |record: Record| {
                count(&record);
                writeln!(writer, "{}", json_lines::write(&record)).map_err(failed)
            };
            names.iter().try_for_each(|name| moment.for_each_key(name, &mut write))?;
            moment.for_each_hash(names, &mut write)?;
            writer.flush().map_err(failed)?;
        }
        ExportFormat::Archive => {
            let mut archive = Writer::new(writer).map_err(failed)?;
            for name in names {
                archive.tree(TREE_KIND, name).map_err(failed)?;
                let mut expire = false;
                moment.for_each_key(name, &mut |record| {
                    let Record { key, change: Change::Put(value), expires_ms: None, .. } = &record else {
                        expire = true;
                        return Ok(());
                    };
                    count(&record);
                    archive.record(key, value).map_err(failed)
                })?;
                archive.end_tree().map_err(failed)?;
                if !expire {
                    continue;
                }
                // The moment stays as it is: nothing need be kept in memory.
                archive.tree(EXPIRING_KIND, name).map_err(failed)?;
                moment.for_each_key(name, &mut |record| {
                    let Record { key, change: Change::Put(value), expires_ms: Some(at_ms), .. } = &record
                    else {
                        return Ok(());
                    };
                    count(&record);
                    archive.record(key, &[&at_ms.to_le_bytes()[..], value].concat()).map_err(failed)
                })?;
                archive.end_tree().map_err(failed)?;
            }
            let (mut hashes, mut has_begun) = (HashWriter::default(), false);
            moment.for_each_hash(names, &mut |record| {
                count(&record);
                if !has_begun {
                    // Only if there is one: earlier versions know no such collection.
                    archive.tree(HASHES_KIND, &[]).map_err(failed)?;
                    has_begun = true;
                }
                let mut records = hashes.records(record).into_iter();
                records.try_for_each(|(key, value)| archive.record(&key, &value)).map_err(failed)
            })?;
            if has_begun {
                archive.end_tree().map_err(failed)?;
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

    if trees.iter().any(|(name, _)| name == LOCKS_TREE_NAME) {
        return Err(Failure::bad_input(format!(
            "{name} holds locks, which cannot be imported; nothing was imported"
        )));
    }
    // Counters are all that an export has of the database's own.
    let own = trees.iter().find(|(name, _)| is_own(name) && name != COUNTERS_TREE_NAME);
    if let Some((own, _)) = own {
        let own = bytes::display_short(own);
        return Err(Failure::bad_input(format!(
            "{name} has a tree {own:?}, which would be the database's own; nothing was imported"
        )));
    }
    let database = global.database()?;
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
    Directory(Moment),
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
                return Ok(Source { name, kind: SourceKind::Directory(database.moment()?) });
            }
            // A pipe can be read once only, and this takes two readings.
            if kind.is_file() { file } else { spool(file).map_err(unreadable)? }
        };
        let length = file.metadata().map_err(unreadable)?.len();
        let mut start = Vec::new();
        (&mut file).take(8).read_to_end(&mut start).map_err(unreadable)?;
        // As `export` names it; of an empty tree there is nothing else to go by. A mark of the encoding, and blank lines, may
        // come first.
        let is_named_so =
            path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).trim_ascii_start();
        let is_text = text.starts_with(b"{") || is_named_so;
        let format = format.unwrap_or(match is_text && !archive::is_archive(&start) {
            true => ExportFormat::JsonLines,
            false => ExportFormat::Archive,
        });
        Ok(Source { name, kind: SourceKind::File { file, length, format } })
    }

    /// The trees that it has, or that one, and how many records of each. A file is read to its end.
    fn trees(&mut self, global: &Global, only: Option<&Vec<u8>>) -> Result<Vec<(Vec<u8>, u64)>> {
        let mut trees: Vec<(Vec<u8>, u64)> = Vec::new();
        if let SourceKind::Directory(moment) = &self.kind {
            // It is held, so it stays as it is, and what is damaged shows as it is read.
            let wanted = moment.trees().filter(|name| only.is_none_or(|only| *name == only));
            return Ok(wanted.map(|name| (name.to_vec(), moment.keys(name))).collect());
        }
        self.read(global, only, "checking", &mut |item| {
            let tree = item.tree();
            let added = u64::from(matches!(&item, Item::Record(record) if record.makes_key()));
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
            // An export of an earlier build may have what is a cluster's own: see `export`.
            let wanted = only.map_or(item.tree() != EVENTS_TREE, |only| item.tree() == &only[..]);
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
            SourceKind::Directory(moment) => {
                let names = moment.trees().filter(|name| only.is_none_or(|only| *name == only));
                let names: Vec<_> = names.map(|name| name.to_vec()).collect();
                read_directory(moment, &names, &Progress::items(None, doing, global.quiet), each)
            }
        }
    }
}

fn read_directory(
    moment: &Moment,
    names: &[Vec<u8>],
    progress: &Progress,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let mut read = 0;
    let mut pass_on = |item: Item| {
        read += u64::from(matches!(&item, Item::Record(record) if record.makes_key()));
        progress.set(read);
        each(item)
    };
    for name in names {
        pass_on(Item::Tree(name.clone()))?;
        moment.for_each_key(name, &mut |record| pass_on(Item::Record(record)))?;
    }
    moment.for_each_hash(names, &mut |record| pass_on(Item::Record(record)))
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
    /// Which tree it is of: where none is named, the default one.
    fn tree(&self) -> &[u8] {
        match self {
            Item::Tree(name) => name,
            Item::Record(record) => record.tree.as_deref().unwrap_or(DEFAULT_TREE_NAME),
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
    let wrong = |what: String| Failure::bad_input(format!("{name}: {what}")).adding("nothing was imported");
    let mut reader = Reader::new(input).map_err(refused)?;
    let mut tree = Vec::new();
    let mut collection = Collection::Tree;
    while let Some(event) = reader.next_event().map_err(refused)? {
        match event {
            Event::Tree { kind, name: tree_name } => {
                collection = match &kind[..] {
                    TREE_KIND => Collection::Tree,
                    TIMES_KIND => Collection::Times,
                    EXPIRING_KIND => Collection::Expiring,
                    HASHES_KIND => Collection::Hashes(HashReader::default()),
                    other => {
                        let shown = bytes::display_short(other);
                        return Err(wrong(format!(
                            "{shown:?} is no kind of collection that this version knows"
                        )));
                    }
                };
                tree.clone_from(&tree_name);
                if matches!(collection, Collection::Tree) {
                    each(Item::Tree(tree_name))?;
                }
            }
            Event::Record { key, value } => {
                let tree = Some(tree.clone());
                let record = match &mut collection {
                    Collection::Tree => {
                        Some(Record { tree, key, change: Change::Put(value), expires_ms: None })
                    }
                    Collection::Expiring => {
                        let Some((at_ms, value)) = value.split_first_chunk() else {
                            let shown = bytes::display_short(&key);
                            return Err(wrong(format!("the time to live of key {shown} is none")));
                        };
                        let (change, expires_ms) =
                            (Change::Put(value.to_vec()), Some(u64::from_le_bytes(*at_ms)));
                        Some(Record { tree, key, change, expires_ms })
                    }
                    // Of an export by an earlier build.
                    Collection::Times => {
                        let Ok(expires_ms) = value.try_into().map(u64::from_le_bytes) else {
                            let shown = bytes::display_short(&key);
                            return Err(wrong(format!("the time to live of key {shown} is none")));
                        };
                        Some(Record { tree, key, change: Change::Expire, expires_ms: Some(expires_ms) })
                    }
                    Collection::Hashes(hashes) => {
                        hashes.read(&key, value).map_err(|what| wrong(what.to_owned()))?
                    }
                };
                record.map_or(Ok(()), |record| each(Item::Record(record)))?;
            }
            Event::TreeEnd => {
                if let Collection::Hashes(hashes) = &mut collection {
                    hashes.end().map_or(Ok(()), |record| each(Item::Record(record)))?;
                }
            }
            Event::End { .. } => {}
        }
        progress.set(reader.offset());
    }
    Ok(())
}

/// What the collection holds that is being read.
enum Collection {
    Tree,
    Times,
    Expiring,
    Hashes(HashReader),
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
