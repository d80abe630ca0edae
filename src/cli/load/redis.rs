//! What people pipe into `redis-cli`: command lines, or the Redis protocol of `redis-cli --pipe`.
//!
//! Each command is either a line (`SET key "a value"`, quoted as redis-cli takes it) or an array of
//! bulk strings (`*3\r\n$3\r\nSET\r\n…`); both may stand in one file. Understood are `SET`, `MSET`,
//! `DEL`, `UNLINK`, and (so that dumps can be fed as they are) `SELECT 0`, `PING` and `ECHO`, which
//! do nothing. Everything else is refused by name: a load that skipped an `EXPIRE` or an `INCR`
//! would yield data that is not what the file says.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use super::{Change, Parsed, Place, Problem, Record};
use crate::cli::bytes;
use crate::cli::output::count;

/// The longest line, and the longest bulk string.
const MAX_LENGTH: u64 = 768 << 20;
/// The most words that a command may have.
const MAX_WORDS: u64 = 1 << 20;

/// A command, split.
type Words = Vec<Vec<u8>>;

/// The records of a file of Redis commands.
pub(crate) struct Redis<R> {
    input: R,
    offset: u64,
    /// Lines begun so far; only of use while no protocol array was met.
    line: u64,
    arrays: bool,
    /// Of the command read last: one can write several keys.
    pending: VecDeque<Record>,
    pending_place: Place,
    stopped: bool,
}

impl<R: BufRead> Redis<R> {
    pub(crate) fn new(input: R) -> Redis<R> {
        Redis {
            input,
            offset: 0,
            line: 0,
            arrays: false,
            pending: VecDeque::new(),
            pending_place: Place::Line(0),
            stopped: false,
        }
    }

    /// The next command's words, and where it begins.
    fn command(&mut self) -> Option<Result<(Place, Words), Problem>> {
        loop {
            let start = self.offset;
            let mut line = Vec::new();
            match self.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(problem) => return Some(Err(problem)),
            }
            let place = if self.arrays { Place::Offset(start) } else { Place::Line(self.line) };
            let trimmed = super::lines::trim_end(&line);
            if trimmed.is_empty() {
                continue;
            }
            if trimmed[0] == b'*' {
                self.arrays = true;
                let place = Place::Offset(start);
                return Some(self.array(place, trimmed).map(|words| (place, words)));
            }
            return Some(match split_words(trimmed) {
                Ok(words) if words.is_empty() => continue,
                Ok(words) => Ok((place, words)),
                Err(what) => Err(Problem::record(place, what)),
            });
        }
    }

    fn read_line(&mut self, line: &mut Vec<u8>) -> Result<usize, Problem> {
        let place = Place::Offset(self.offset);
        let read = (&mut self.input)
            .take(MAX_LENGTH + 1)
            .read_until(b'\n', line)
            .map_err(|error| Problem::io(place, &error))?;
        if read as u64 > MAX_LENGTH {
            return Err(Problem::fatal(place, "a line without an end; this is no file of commands"));
        }
        self.offset += read as u64;
        self.line += u64::from(read > 0);
        Ok(read)
    }

    /// The rest of an array whose first line is `head`. Any damage leaves the reader not knowing
    /// where the next command begins.
    fn array(&mut self, place: Place, head: &[u8]) -> Result<Words, Problem> {
        let word_count = length(head, b'*', MAX_WORDS).map_err(|what| Problem::fatal(place, what))?;
        // Not reserved: a count is only a claim.
        let mut words = Vec::new();
        for _ in 0..word_count {
            let at = Place::Offset(self.offset);
            let mut line = Vec::new();
            if self.read_line(&mut line)? == 0 {
                return Err(Problem::fatal(at, "the file ends within a command"));
            }
            let size = length(super::lines::trim_end(&line), b'$', MAX_LENGTH)
                .map_err(|what| Problem::fatal(at, what))?;
            words.push(self.bulk(at, size)?);
        }
        Ok(words)
    }

    fn bulk(&mut self, at: Place, size: u64) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(size + 2).read_to_end(&mut bytes);
        let read = read.map_err(|error: io::Error| Problem::io(at, &error))? as u64;
        self.offset += read;
        if read < size + 2 {
            return Err(Problem::fatal(at, "the file ends within a command"));
        }
        if !bytes.ends_with(b"\r\n") {
            return Err(Problem::fatal(
                at,
                format!("no line end after a string of {size} bytes: its length is wrong"),
            ));
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }
}

/// The number after `kind` in a protocol header.
fn length(header: &[u8], kind: u8, limit: u64) -> Result<u64, String> {
    let digits = header.strip_prefix(&[kind]).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number = digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse::<u64>().ok());
    match number {
        Some(number) if number <= limit => Ok(number),
        Some(number) => Err(format!("{}{number} is over the limit of {limit}", char::from(kind))),
        None => Err(format!(
            "expected {} and a number, found {:?}",
            char::from(kind),
            bytes::display_short(header)
        )),
    }
}

/// The words of a command line, quoted as in redis-cli: `"…"` with escapes, `'…'` without.
fn split_words(line: &[u8]) -> Result<Words, String> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(&first) = rest.first() else { return Ok(words) };
        let (word, tail) = match first {
            b'"' | b'\'' => quoted(first, &rest[1..])?,
            _ => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                (rest[..end].to_vec(), &rest[end..])
            }
        };
        words.push(word);
        rest = tail;
    }
}

fn quoted(quote: u8, mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut word = Vec::new();
    loop {
        match (quote, rest) {
            (_, []) => return Err("a quote that is never closed".into()),
            (b'\'', [b'\\', b'\'', tail @ ..]) => {
                word.push(b'\'');
                rest = tail;
            }
            (b'"', [b'\\', b'x', high, low, tail @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.extend(bytes::unescape(&[b'\\', b'x', *high, *low])?);
                rest = tail;
            }
            (b'"', [b'\\', escaped, tail @ ..]) => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            (_, [byte, tail @ ..]) if *byte == quote => {
                if tail.first().is_some_and(|next| !next.is_ascii_whitespace()) {
                    return Err("text right after a closing quote".into());
                }
                return Ok((word, tail));
            }
            (_, [byte, tail @ ..]) => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

/// What a command writes, or why it is refused.
fn records(words: Words) -> Result<VecDeque<Record>, String> {
    let mut words = words.into_iter();
    let Some(name) = words.next() else { return Err("an empty command".into()) };
    let mut arguments: VecDeque<Vec<u8>> = words.collect();
    let given = arguments.len();
    let wrong_number = |form: &str| Err(format!("{}; expected {form}", count(given as u64, "argument")));
    match name.to_ascii_uppercase().as_slice() {
        b"SET" => match (arguments.pop_front(), arguments.pop_front(), arguments.pop_front()) {
            (Some(key), Some(value), None) => Ok(VecDeque::from([Record::put(key, value)])),
            (Some(_), Some(_), Some(option)) => Err(format!(
                "SET with the option {:?}: expiry and conditions are not supported by load",
                bytes::display_short(&option)
            )),
            _ => wrong_number("SET key value"),
        },
        b"MSET" if given > 0 && given.is_multiple_of(2) => {
            let mut records = VecDeque::with_capacity(given / 2);
            while let (Some(key), Some(value)) = (arguments.pop_front(), arguments.pop_front()) {
                records.push_back(Record::put(key, value));
            }
            Ok(records)
        }
        b"MSET" => wrong_number("MSET key value [key value …]"),
        b"DEL" | b"UNLINK" if given > 0 => Ok(arguments
            .into_iter()
            .map(|key| Record { tree: None, key, change: Change::Remove, expires_ms: None })
            .collect()),
        b"DEL" | b"UNLINK" => wrong_number("DEL key [key …]"),
        b"PING" | b"ECHO" => Ok(VecDeque::new()),
        b"SELECT" if arguments.len() == 1 && arguments[0] == b"0" => Ok(VecDeque::new()),
        b"SELECT" => Err("SELECT of a database other than 0; load each into a --tree of its own".into()),
        _ => Err(format!(
            "unknown command {:?}; load takes SET, MSET, DEL and UNLINK",
            bytes::display_short(&name)
        )),
    }
}

impl<R: BufRead> Iterator for Redis<R> {
    type Item = Parsed;

    fn next(&mut self) -> Option<Parsed> {
        loop {
            if let Some(record) = self.pending.pop_front() {
                return Some(record.checked(self.pending_place));
            }
            if self.stopped {
                return None;
            }
            let problem = match self.command()? {
                Ok((place, words)) => match records(words) {
                    Ok(records) => {
                        self.pending = records;
                        self.pending_place = place;
                        continue;
                    }
                    Err(what) => Problem::record(place, what),
                },
                Err(problem) => problem,
            };
            self.stopped = !problem.skippable;
            return Some(Err(problem));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<String> {
        Redis::new(input)
            .map(|parsed| match parsed {
                Ok(Record { key, change: Change::Put(value), .. }) => {
                    format!("{}={}", bytes::display(&key), bytes::display(&value))
                }
                Ok(record) => format!("-{}", bytes::display(&record.key)),
                Err(problem) => format!("{}: {}", problem.place, problem.what),
            })
            .collect()
    }

    #[test]
    fn command_lines_are_quoted_as_in_redis_cli() {
        let input = b"SET a 1\n\n  set  b \"two words\\n\\x00\\\"\" \r\nSET 'it''s' x\nSET 'it\\'s' ''\n\
                      MSET c 3 d 4\nDEL a b\nSELECT 0\nPING\nunlink c";
        assert_eq!(
            read(input),
            [
                "a=1",
                "b=two words\\n\\x00\"",
                "line 4: text right after a closing quote",
                "it's=",
                "c=3",
                "d=4",
                "-a",
                "-b",
                "-c"
            ]
        );
    }

    #[test]
    fn protocol_arrays_carry_any_bytes() {
        let input =
            b"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$3\r\n\xff\x00*\r\n*2\r\n$3\r\nDEL\r\n$1\r\na\r\nSET x y\r\n";
        assert_eq!(read(input), ["\\r\\n=\\xff\\x00*", "-a", "x=y"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        assert_eq!(
            read(b"SET a 1\nINCR a\nSET a 1 EX 10\nSET a\nSET \"a 1\nSELECT 3\nDEL a\n"),
            [
                "a=1",
                "line 2: unknown command \"INCR\"; load takes SET, MSET, DEL and UNLINK",
                "line 3: SET with the option \"EX\": expiry and conditions are not supported by load",
                "line 4: 1 argument; expected SET key value",
                "line 5: a quote that is never closed",
                "line 6: SELECT of a database other than 0; load each into a --tree of its own",
                "-a"
            ]
        );
    }

    #[test]
    fn a_damaged_array_ends_the_reading() {
        let good = b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n";
        for (bad, expected) in [
            (&b"*2\r\n$3\r\nDEL\r\n$9\r\na\r\n"[..], "offset 33: the file ends within a command"),
            (
                b"*2\r\n$3\r\nDEL\r\n$0\r\nabc\r\n",
                "offset 33: no line end after a string of 0 bytes: its length is wrong",
            ),
            (b"*2\r\n:3\r\n", "offset 24: expected $ and a number, found \":3\""),
            (b"*99999999999\r\n", "offset 20: *99999999999 is over the limit of 1048576"),
            (b"*-1\r\n", "offset 20: expected * and a number, found \"*-1\""),
            (b"*1\r\n", "offset 24: the file ends within a command"),
        ] {
            assert_eq!(read(&[&good[..], bad].concat()), ["-a", expected]);
        }
    }
}
