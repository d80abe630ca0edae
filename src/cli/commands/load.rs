//! `load`: parsers of [`crate::cli::load`] on one side, batches into a tree on the other.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::json;

use crate::cli::args::{Global, LoadArgs};
use crate::cli::bytes::ByteFormat;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::load::delimited::{self, Delimited};
use crate::cli::load::json_lines::{self, JsonLines};
use crate::cli::load::redis::Redis;
use crate::cli::load::{LoadFormat, Parsed, Problem};
use crate::cli::output::{self, Output};
use crate::cli::progress::Progress;
use crate::cli::sink::{Sink, were};

/// Wrong records that `--skip-bad` prints before it only counts.
const BAD_SHOWN: u64 = 10;

pub(crate) fn load(global: &Global, out: &mut Output, args: &LoadArgs) -> Result<()> {
    let from_stdin = args.file == Path::new("-");
    let name = if from_stdin { "standard input".to_owned() } else { args.file.display().to_string() };
    let format = match args.format {
        Some(format) => format,
        None => LoadFormat::of_file(&args.file).ok_or_else(|| {
            Failure::usage(format!(
                "cannot tell what {name} holds; say so with --format tsv, csv, jsonl or redis"
            ))
        })?,
    };
    check_options(global, args, format)?;

    let (input, length): (Box<dyn Read>, Option<u64>) = if from_stdin {
        (Box::new(io::stdin().lock()), None)
    } else {
        let file = File::open(&args.file).map_err(|error| Failure::io(&name, &error))?;
        let metadata = file.metadata().map_err(|error| Failure::io(&name, &error))?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!("{name} is a directory, not a file")));
        }
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let read = Rc::new(Cell::new(0));
    let input = BufReader::with_capacity(256 << 10, Counted { input, read: Rc::clone(&read) });
    let mut records = parser(global, args, format, input).peekable();
    // A wrong file is mostly wrong from its first line on; no database is made for it.
    if let Some(Err(_)) = records.peek()
        && !args.skip_bad
        && let Some(Err(problem)) = records.next()
    {
        return Err(refusal(&name, &problem, &Sink::nothing(), 0));
    }

    let progress = Progress::bytes(length, "loading", global.quiet);
    let mut sink = if args.dry_run {
        Sink::nothing()
    } else {
        let fence = args.fence.fence()?;
        let database = global.database()?;
        let tree = global.tree_for_writing(&database)?;
        Sink::into_tree(database, tree).under(fence)
    };
    let mut skipped = 0;
    for parsed in records {
        match parsed {
            Ok(record) => sink.add(record).map_err(|failure| sink.stopped_by(failure))?,
            Err(problem) if args.skip_bad && problem.skippable => {
                skipped += 1;
                if skipped <= BAD_SHOWN {
                    out.remark(format_args!("{name}: {}: {} (skipped)", problem.place, problem.what));
                }
            }
            Err(problem) => {
                sink.finish().map_err(|failure| sink.stopped_by(failure))?;
                return Err(refusal(&name, &problem, &sink, skipped));
            }
        }
        progress.set(read.get());
    }
    sink.finish().map_err(|failure| sink.stopped_by(failure))?;
    drop(progress);
    report(out, args.dry_run, &sink, skipped)
}

fn report(out: &mut Output, dry_run: bool, sink: &Sink, skipped: u64) -> Result<()> {
    let verb = if dry_run { "read, nothing written" } else { "loaded" };
    let left_out = if skipped > 0 {
        format!(", {} skipped", output::count(skipped, "bad record"))
    } else {
        String::new()
    };
    let records = output::count(sink.done, "record");
    out.summary(
        format!("{records} ({}) {verb}{left_out}", output::size(sink.done_bytes)),
        json!({ "records": sink.done, "bytes": sink.done_bytes, "skipped": skipped, "dry_run": dry_run }),
    )
}

fn refusal(name: &str, problem: &Problem, sink: &Sink, skipped: u64) -> Failure {
    let code = if problem.unreadable { Code::Io } else { Code::BadInput };
    let loaded = if sink.writes() { sink.done } else { 0 };
    let what = match loaded {
        0 => "nothing was loaded".to_owned(),
        _ => format!(
            "the {} before it {} loaded and synced, nothing after",
            output::count(loaded, "record"),
            were(loaded)
        ),
    };
    let failure = Failure::new(code, format!("{name}: {}: {}", problem.place, problem.what))
        .adding(what)
        .detail("loaded", loaded)
        .detail("place", problem.place.to_string());
    if skipped > 0 { failure.detail("skipped", skipped) } else { failure }
}

/// Options that the format has no use for are mistakes.
fn check_options(global: &Global, args: &LoadArgs, format: LoadFormat) -> Result<()> {
    let delimited = matches!(format, LoadFormat::Tsv | LoadFormat::Csv);
    let refuse = |option: &str| Err(Failure::usage(format!("{option} does not go with this format")));
    if !delimited {
        if args.header || args.no_header {
            return refuse("--header");
        }
        if args.delimiter.is_some() {
            return refuse("--delimiter");
        }
        if global.key_format.is_some() || global.value_format.is_some() {
            return refuse("--key-format or --value-format");
        }
    }
    if format == LoadFormat::Redis && (args.key.is_some() || args.value.is_some()) {
        return refuse("--key or --value");
    }
    if format == LoadFormat::JsonLines && args.value.is_some() && args.key.is_none() {
        return Err(Failure::usage("--value FIELD needs --key FIELD"));
    }
    if [global.key_format, global.value_format].contains(&Some(ByteFormat::File)) {
        return refuse("the form `file`");
    }
    if args.delimiter.is_some_and(|delimiter| !delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r'))
    {
        return Err(Failure::usage("--delimiter takes one ASCII character other than a quote or line end"));
    }
    Ok(())
}

fn parser<R: BufRead + 'static>(
    global: &Global,
    args: &LoadArgs,
    format: LoadFormat,
    input: R,
) -> Box<dyn Iterator<Item = Parsed>> {
    // Quotes carry any byte, so CSV needs no escapes; TSV does.
    let (delimiter, quotes, header, form) = match format {
        LoadFormat::Tsv => (b'\t', false, args.header, ByteFormat::Text),
        LoadFormat::Csv => (b',', true, !args.no_header, ByteFormat::Raw),
        LoadFormat::JsonLines => {
            let options = json_lines::Options { key: args.key.clone(), value: args.value.clone() };
            return Box::new(JsonLines::new(input, options));
        }
        LoadFormat::Redis => return Box::new(Redis::new(input)),
    };
    let options = delimited::Options {
        delimiter: args.delimiter.map_or(delimiter, |delimiter| delimiter as u8),
        quotes,
        header,
        key: args.key.clone(),
        value: args.value.clone(),
        key_format: global.key_format.unwrap_or(form),
        value_format: global.value_format.unwrap_or(form),
    };
    Box::new(Delimited::new(input, options))
}

/// Counts what was read of the input.
struct Counted<R> {
    input: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}
