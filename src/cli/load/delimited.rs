//! TSV and CSV: rows of fields, of which one is the key and one (or the rest) the value.
//!
//! CSV is RFC 4180 read strictly: a quote stands at the start of a field or doubled within quotes,
//! and a quoted field must end. A lenient reader turns one missing quote into one huge value and
//! loses every row after it. In TSV there are no quotes; a tab or line end within a field is
//! escaped (see [`ByteFormat::Text`]).

use std::io::BufRead;

use super::lines::{Lines, MAX_LINE_LENGTH, trim_end};
use super::{Parsed, Place, Problem, Record};
use crate::cli::bytes::{self, ByteFormat};

/// How rows are to be read.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Between fields.
    pub(crate) delimiter: u8,
    /// Whether fields may be quoted.
    pub(crate) quotes: bool,
    /// Whether the first row names the columns.
    pub(crate) header: bool,
    /// The key's column, a name or a number from 1; the first if `None`.
    pub(crate) key: Option<String>,
    /// The value's column. If `None`: the other one of two, else all others as a JSON object.
    pub(crate) value: Option<String>,
    /// How keys are written.
    pub(crate) key_format: ByteFormat,
    /// How values are written.
    pub(crate) value_format: ByteFormat,
}

/// The records of a TSV or CSV input.
pub(crate) struct Delimited<R> {
    lines: Lines<R>,
    options: Options,
    /// Known once the first row was seen.
    columns: Option<Columns>,
    stopped: bool,
}

struct Columns {
    names: Option<Vec<Vec<u8>>>,
    count: usize,
    key: usize,
    value: ValueColumn,
}

enum ValueColumn {
    One(usize),
    /// All but the key, as a JSON object under their names.
    Others,
}

struct Row {
    place: Place,
    fields: Vec<Vec<u8>>,
}

impl<R: BufRead> Delimited<R> {
    pub(crate) fn new(input: R, options: Options) -> Delimited<R> {
        Delimited { lines: Lines::new(input), options, columns: None, stopped: false }
    }

    fn row(&mut self) -> Option<Result<Row, Problem>> {
        let first = match self.lines.next_filled()? {
            Ok(line) => line.to_vec(),
            Err(problem) => return Some(Err(problem)),
        };
        let place = self.lines.place();
        if !self.options.quotes {
            let fields = trim_end(&first).split(|byte| *byte == self.options.delimiter);
            return Some(Ok(Row { place, fields: fields.map(<[u8]>::to_vec).collect() }));
        }
        Some(self.quoted_row(first, place))
    }

    /// The row that begins with the line `first` and takes as many more as its quotes span.
    fn quoted_row(&mut self, first: Vec<u8>, place: Place) -> Result<Row, Problem> {
        let mut fields = Vec::new();
        let mut field = Vec::new();
        let mut state = State::Start;
        let mut line = first;
        loop {
            let end = trim_end(&line).len();
            for (position, &byte) in line.iter().enumerate() {
                match state {
                    State::Quoted if byte == b'"' => state = State::AfterQuote,
                    State::Quoted => field.push(byte),
                    State::AfterQuote if byte == b'"' => {
                        field.push(b'"');
                        state = State::Quoted;
                    }
                    // Only within quotes does a line end belong to a field.
                    _ if position >= end => break,
                    State::Start if byte == b'"' => state = State::Quoted,
                    _ if byte == self.options.delimiter => {
                        fields.push(std::mem::take(&mut field));
                        state = State::Start;
                    }
                    State::AfterQuote => {
                        return Err(Problem::record(
                            place,
                            format!("text after the closing quote of field {}", fields.len() + 1),
                        ));
                    }
                    State::Plain if byte == b'"' => {
                        return Err(Problem::record(
                            place,
                            format!(
                                "a quote inside field {}, which does not begin with one",
                                fields.len() + 1
                            ),
                        ));
                    }
                    State::Start | State::Plain => {
                        field.push(byte);
                        state = State::Plain;
                    }
                }
            }
            if state != State::Quoted {
                fields.push(field);
                return Ok(Row { place, fields });
            }
            if field.len() as u64 > MAX_LINE_LENGTH {
                return Err(Problem::fatal(
                    place,
                    format!("the quote that opens field {} is not closed for too long", fields.len() + 1),
                ));
            }
            line = match self.lines.next_raw() {
                Some(Ok(line)) => line.to_vec(),
                Some(Err(problem)) => return Err(problem),
                // Where the next row would begin cannot be told.
                None => {
                    return Err(Problem::fatal(
                        place,
                        format!("the quote that opens field {} is never closed", fields.len() + 1),
                    ));
                }
            };
        }
    }

    fn choose_columns(&self, first: &Row) -> Result<Columns, Problem> {
        let names = self.options.header.then(|| first.fields.clone());
        let count = first.fields.len();
        if let Some(twice) = names.as_deref().and_then(twice) {
            return Err(Problem::fatal(
                first.place,
                format!("two columns are called {:?}", bytes::display_short(twice)),
            ));
        }
        let find = |wanted: &str| {
            let by_name =
                names.as_ref().and_then(|names| names.iter().position(|name| name == wanted.as_bytes()));
            by_name
                .or_else(|| {
                    wanted.parse::<usize>().ok().filter(|number| (1..=count).contains(number)).map(|n| n - 1)
                })
                .ok_or_else(|| {
                    let known = match &names {
                        Some(names) => {
                            let names: Vec<String> =
                                names.iter().map(|name| bytes::display_short(name)).collect();
                            format!("the header has {}", names.join(", "))
                        }
                        None => format!("the first row has {count}"),
                    };
                    Problem::fatal(first.place, format!("no column {wanted:?}; {known}"))
                })
        };
        let key = self.options.key.as_deref().map_or(Ok(0), find)?;
        let value = match self.options.value.as_deref() {
            Some(wanted) => ValueColumn::One(find(wanted)?),
            None if count == 2 => ValueColumn::One(1 - key),
            None if count > 2 && names.is_some() => ValueColumn::Others,
            None if count == 1 => {
                return Err(Problem::fatal(
                    first.place,
                    format!(
                        "no {} between a key and a value: {:?}",
                        delimiter_name(self.options.delimiter),
                        bytes::display_short(&first.fields[0])
                    ),
                ));
            }
            None => {
                return Err(Problem::fatal(
                    first.place,
                    format!(
                        "{count} fields where a key and a value were expected; choose with --key and --value, \
                         or name them with --header"
                    ),
                ));
            }
        };
        Ok(Columns { names, count, key, value })
    }

    fn record(&self, columns: &Columns, mut row: Row) -> Parsed {
        if row.fields.len() != columns.count {
            return Err(Problem::record(
                row.place,
                format!(
                    "{} where the first row has {}",
                    crate::cli::output::count(row.fields.len() as u64, "field"),
                    columns.count
                ),
            ));
        }
        let decode = |what: &str, format: ByteFormat, field: &[u8]| {
            format.decode(field).map_err(|why| Problem::record(row.place, format!("{what}: {why}")))
        };
        let key = decode("key", self.options.key_format, &row.fields[columns.key])?;
        let value = match columns.value {
            ValueColumn::One(value) => {
                let field = std::mem::take(&mut row.fields[value]);
                decode("value", self.options.value_format, &field)?
            }
            ValueColumn::Others => {
                let names = columns.names.as_deref().expect("chosen only where there is a header");
                object_of(names, &row.fields, columns.key)
            }
        };
        Record::put(key, value).checked(row.place)
    }
}

/// A name that two columns have. Those without a name go by their number.
fn twice(names: &[Vec<u8>]) -> Option<&Vec<u8>> {
    let mut seen = std::collections::HashSet::new();
    names.iter().find(|name| !name.is_empty() && !seen.insert(*name))
}

/// The fields as a JSON object, in the order of the columns.
fn object_of(names: &[Vec<u8>], fields: &[Vec<u8>], without: usize) -> Vec<u8> {
    let mut object = String::from("{");
    for (place, (name, field)) in names.iter().zip(fields).enumerate().filter(|(place, _)| *place != without)
    {
        if object.len() > 1 {
            object.push(',');
        }
        let name = if name.is_empty() { (place + 1).to_string() } else { bytes::display(name) };
        object.push_str(&serde_json::Value::String(name).to_string());
        object.push(':');
        object.push_str(&bytes::to_json(field).to_string());
    }
    object.push('}');
    object.into_bytes()
}

fn delimiter_name(delimiter: u8) -> String {
    match delimiter {
        b'\t' => "tab".to_owned(),
        other => format!("{:?}", char::from(other)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a field.
    Start,
    Plain,
    Quoted,
    /// After a quote within quotes: the end, or the first of a doubled one.
    AfterQuote,
}

impl<R: BufRead> Iterator for Delimited<R> {
    type Item = Parsed;

    fn next(&mut self) -> Option<Parsed> {
        loop {
            if self.stopped {
                return None;
            }
            let parsed = match self.row()? {
                Ok(row) => match &self.columns {
                    Some(columns) => self.record(columns, row),
                    None => match self.choose_columns(&row) {
                        Ok(columns) => {
                            let columns = self.columns.insert(columns);
                            if columns.names.is_some() {
                                continue;
                            }
                            let columns = self.columns.as_ref().expect("set above");
                            self.record(columns, row)
                        }
                        Err(problem) => Err(problem),
                    },
                },
                Err(problem) => Err(problem),
            };
            self.stopped = parsed.as_ref().is_err_and(|problem| !problem.skippable);
            return Some(parsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::load::Change;

    fn tsv() -> Options {
        Options {
            delimiter: b'\t',
            quotes: false,
            header: false,
            key: None,
            value: None,
            key_format: ByteFormat::Text,
            value_format: ByteFormat::Text,
        }
    }

    fn csv() -> Options {
        Options {
            delimiter: b',',
            quotes: true,
            header: true,
            key_format: ByteFormat::Raw,
            value_format: ByteFormat::Raw,
            ..tsv()
        }
    }

    /// `key=value` for each record, `line N: …` for each problem.
    fn read(input: &str, options: Options) -> Vec<String> {
        Delimited::new(input.as_bytes(), options)
            .map(|parsed| match parsed {
                Ok(Record { key, change: Change::Put(value), .. }) => {
                    format!("{}={}", bytes::display(&key), bytes::display(&value))
                }
                Ok(record) => panic!("a file of columns has only values: {record:?}"),
                Err(problem) => format!("{}: {}", problem.place, problem.what),
            })
            .collect()
    }

    #[test]
    fn tsv_takes_key_tab_value() {
        assert_eq!(read("a\t1\n\nb\\tc\t2\\n\r\n\\xff\t\n", tsv()), ["a=1", "b\\tc=2\\n", "\\xff="]);
    }

    #[test]
    fn tsv_says_where_it_is_wrong() {
        assert_eq!(
            read("a\t1\nb 2\nc\t3\t4\nd\t\\q\ne\t5\n", tsv()),
            [
                "a=1",
                "line 2: 1 field where the first row has 2",
                "line 3: 3 fields where the first row has 2",
                "line 4: value: unknown escape \\q; write \\\\ for a backslash, or choose the raw format",
                "e=5"
            ]
        );
        assert_eq!(read("no tabs\n", tsv()), ["line 1: no tab between a key and a value: \"no tabs\""]);
    }

    #[test]
    fn csv_reads_quotes_and_lines_within_them() {
        let input =
            "id,text\n1,plain\n2,\"a, \"\"b\"\"\"\n3,\"two\nlines\"\n4,\"\"\n5,\"x\r\n\r\ny\"\r\n6,end";
        assert_eq!(
            read(input, csv()),
            ["1=plain", "2=a, \"b\"", "3=two\\nlines", "4=", "5=x\\r\\n\\r\\ny", "6=end"]
        );
    }

    #[test]
    fn csv_counts_lines_through_quoted_line_ends() {
        assert_eq!(
            read("id,text\n1,\"two\nlines\"\n2\n3,\"a\"b\n4,a\"b\n5,ok\n", csv()),
            [
                "1=two\\nlines",
                "line 4: 1 field where the first row has 2",
                "line 5: text after the closing quote of field 2",
                "line 6: a quote inside field 2, which does not begin with one",
                "5=ok"
            ]
        );
        assert_eq!(
            read("id,text\n1,\"open\n2,b\n", csv()),
            ["line 2: the quote that opens field 2 is never closed"]
        );
    }

    #[test]
    fn two_columns_of_one_name_are_refused() {
        assert_eq!(read("id,a,a\n1,2,3\n", csv()), ["line 1: two columns are called \"a\""]);
        // Those without a name go by their number.
        assert_eq!(read("id,,\n1,2,3\n", csv()), [r#"1={"2":"2","3":"3"}"#]);
    }

    #[test]
    fn columns_are_chosen_by_name_or_number() {
        let input = "name,age,city\nann,30,oslo\nbo,40,\n";
        assert_eq!(
            read(input, csv()),
            [r#"ann={"age":"30","city":"oslo"}"#, r#"bo={"age":"40","city":""}"#].map(str::to_owned)
        );
        let chosen = Options { key: Some("city".into()), value: Some("1".into()), ..csv() };
        assert_eq!(read(input, chosen), ["oslo=ann", "=bo"]);
        let unknown = Options { key: Some("town".into()), ..csv() };
        assert_eq!(read(input, unknown), ["line 1: no column \"town\"; the header has name, age, city"]);
        let passwd = Options { delimiter: b':', value: Some("3".into()), ..tsv() };
        assert_eq!(read("root:x:0\nbin:x:1\n", passwd), ["root=0", "bin=1"]);
        assert_eq!(
            read("a\tb\tc\n", tsv()),
            [
                "line 1: 3 fields where a key and a value were expected; choose with --key and --value, or name \
              them with --header"
            ]
        );
    }
}
