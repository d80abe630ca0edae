//! [`Lines`]: the lines of an input, counted, of bounded length.

use std::io::{BufRead, Read};

use dogsled_storage::command::{MAX_KEY_LENGTH, MAX_VALUE_LENGTH};

use super::{Place, Problem};

/// A line that is longer than the longest key and value in their longest encoding is no line: six characters for a byte, as
/// JSON has it for control characters.
pub(crate) const MAX_LINE_LENGTH: u64 = 6 * (MAX_VALUE_LENGTH as u64 + MAX_KEY_LENGTH as u64) + (1 << 20);

/// Reads lines and remembers where it is.
pub(crate) struct Lines<R> {
    input: R,
    limit: u64,
    /// Lines given so far: the number of the last one.
    line: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R) -> Lines<R> {
        Lines::with_limit(input, MAX_LINE_LENGTH)
    }

    fn with_limit(input: R, limit: u64) -> Lines<R> {
        Lines { input, limit, line: 0, buffer: Vec::new() }
    }

    /// The place of the line that was read last.
    pub(crate) fn place(&self) -> Place {
        Place::Line(self.line)
    }

    /// The next line with its end (only the last may lack one). A byte order mark at the start of
    /// the input belongs to no line.
    pub(crate) fn next_raw(&mut self) -> Option<Result<&[u8], Problem>> {
        match self.advance()? {
            Ok(()) => Some(Ok(self.current())),
            Err(problem) => Some(Err(problem)),
        }
    }

    /// The next line that is not blank, with its end.
    pub(crate) fn next_filled(&mut self) -> Option<Result<&[u8], Problem>> {
        loop {
            match self.advance()? {
                Ok(()) if trim_end(self.current()).is_empty() => {}
                Ok(()) => return Some(Ok(self.current())),
                Err(problem) => return Some(Err(problem)),
            }
        }
    }

    fn current(&self) -> &[u8] {
        let line = &self.buffer[..];
        if self.line == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line }
    }

    fn advance(&mut self) -> Option<Result<(), Problem>> {
        self.buffer.clear();
        let place = Place::Line(self.line + 1);
        // One more than the limit shows that there was more.
        match (&mut self.input).take(self.limit + 1).read_until(b'\n', &mut self.buffer) {
            Ok(0) => None,
            Ok(length) if length as u64 > self.limit => Some(Err(Problem::fatal(
                place,
                format!("longer than {} MiB; this is no file of lines", self.limit >> 20),
            ))),
            Ok(_) => {
                self.line += 1;
                Some(Ok(()))
            }
            Err(error) => Some(Err(Problem::io(place, &error))),
        }
    }
}

/// `line` without its end.
pub(crate) fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_and_skips_blank_ones() {
        let mut lines = Lines::new(&b"\xef\xbb\xbfone\r\n\n\r\nfour\nfive"[..]);
        let mut seen = Vec::new();
        while let Some(line) = lines.next_filled() {
            let text = String::from_utf8(trim_end(line.expect("readable")).to_vec()).expect("text");
            seen.push((text, lines.place()));
        }
        let expected = [("one", 1), ("four", 4), ("five", 5)];
        assert_eq!(seen, expected.map(|(text, line)| (text.to_owned(), Place::Line(line))));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::with_limit(&b"short\nfar too long\n"[..], 8);
        assert!(lines.next_filled().expect("a line").is_ok());
        let problem = lines.next_filled().expect("a line").expect_err("too long");
        assert_eq!(problem.place, Place::Line(2));
        assert!(!problem.skippable);
    }
}
