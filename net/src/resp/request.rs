//! [`RequestReader`]: the commands in a stream of bytes.
//!
//! ```text
//! *2\r\n $3\r\n GET\r\n $1\r\n a\r\n     an array of bulk strings
//! GET "a b"\r\n                          or a line, with quotes as in a shell: an inline command
//! ```
//!
//! ```text
//!            '*' n                 '$' n, bytes, n times
//! Between ──────────► Arguments ───────────────────────► a request, Between
//!    └─ any other line ─► its words: a request
//! ```
//!
//! An array of no or a negative number of arguments, and an empty line, are nothing.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// A command: its name and arguments. Never empty.
pub type Request = Vec<Bytes>;

/// What one client may ask for; checked before room is made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The most arguments of a command, its name among them.
    pub arguments: usize,
    /// The longest argument in bytes.
    pub argument_bytes: usize,
    /// The longest line: an inline command, or a number.
    pub line_bytes: usize,
    /// The most bytes of the arguments of one command.
    pub request_bytes: usize,
    /// Whether these are of a client that has not yet said who it is, which is told so.
    pub is_stranger: bool,
}

/// What may be asked for by a client of which nothing else is said.
const MOST_OF_ANYBODY: RequestLimits = RequestLimits {
    arguments: 1 << 20,
    argument_bytes: 17 << 20,
    line_bytes: 64 << 10,
    request_bytes: 256 << 20,
    is_stranger: false,
};

impl Default for RequestLimits {
    /// Redis's own, but for the bytes of an argument, which are a little more than those of any value that can be stored,
    /// so that one that is just too long is still told so; and for the bytes and arguments of a whole command, which Redis
    /// does not limit.
    fn default() -> RequestLimits {
        MOST_OF_ANYBODY
    }
}

impl RequestLimits {
    /// Of a client that has not yet said who it is.
    pub fn unauthenticated() -> RequestLimits {
        RequestLimits {
            arguments: 10,
            argument_bytes: 16 << 10,
            line_bytes: 16 << 10,
            request_bytes: 64 << 10,
            is_stranger: true,
        }
    }
}

/// What is wrong with the bytes. Where the next command begins is not known then: answer, and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number of arguments is no number, or over the limit.
    InvalidCount,
    /// So many arguments are over the limit of a client that has not said who it is.
    StrangersCount,
    /// So long an argument is.
    StrangersLength,
    /// An argument does not begin with `$`.
    ExpectedBulk(u8),
    /// The length of an argument is no number, or over the limit.
    InvalidLength,
    /// A line that does not end, where a number of arguments was to be.
    CountTooLong,
    /// A line that does not end, where a length was to be.
    LengthTooLong,
    /// An inline command that is over the limit.
    InlineTooLong,
    /// An inline command in which a quote is open.
    UnbalancedQuotes,
    /// All arguments together are over the limit.
    RequestTooLong,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ERR Protocol error: ")?;
        match self {
            ProtocolError::InvalidCount => f.write_str("invalid multibulk length"),
            ProtocolError::StrangersCount => f.write_str("unauthenticated multibulk length"),
            ProtocolError::StrangersLength => f.write_str("unauthenticated bulk length"),
            ProtocolError::ExpectedBulk(found) => {
                // It goes into a line.
                let found = if (b' '..=b'~').contains(found) { char::from(*found) } else { ' ' };
                write!(f, "expected '$', got '{found}'")
            }
            ProtocolError::InvalidLength => f.write_str("invalid bulk length"),
            ProtocolError::CountTooLong => f.write_str("too big mbulk count string"),
            ProtocolError::LengthTooLong => f.write_str("too big bulk count string"),
            ProtocolError::InlineTooLong => f.write_str("too big inline request"),
            ProtocolError::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::RequestTooLong => f.write_str("too big request"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// About what an argument takes besides its bytes.
const PER_ARGUMENT: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct RequestReader {
    limits: RequestLimits,
    buffer: BytesMut,
    /// The most bytes that were in the buffer since room was made for it.
    most: usize,
    /// Of the buffer, bytes in which no end of a line was found.
    searched: usize,
    state: State,
    /// Of the command that is being read.
    arguments: Vec<Bytes>,
    argument_bytes: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    /// So many arguments are to come.
    Arguments(usize),
    /// So many, the next of which has this length.
    Argument(usize, usize),
    Failed(ProtocolError),
}

impl RequestReader {
    /// A reader at the beginning of a stream.
    pub fn new(limits: RequestLimits) -> RequestReader {
        RequestReader { limits, ..RequestReader::default() }
    }

    /// Holds what comes to other limits.
    pub fn set_limits(&mut self, limits: RequestLimits) {
        self.limits = limits;
    }

    /// Where what arrives is to be put, behind what is there.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// About how many bytes it holds.
    pub fn held(&self) -> usize {
        self.buffer.len() + self.argument_bytes + self.arguments.len() * PER_ARGUMENT
    }

    /// Gives back the room of a buffer in which more than so many bytes were, and twice as many as there are now. Otherwise
    /// a client would keep that for as long as it says no more.
    pub fn give_back(&mut self, kept: usize) {
        if self.most > kept && self.buffer.len() <= self.most / 2 {
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.most = self.buffer.len();
        }
    }

    /// Whether a part of a command has come.
    pub fn is_amid_request(&self) -> bool {
        !self.buffer.is_empty() || !matches!(self.state, State::Between)
    }

    /// The next command; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`ProtocolError`], from then on.
    pub fn next_request(&mut self) -> Result<Option<Request>, ProtocolError> {
        self.most = self.most.max(self.buffer.len());
        let next = self.advance();
        if let Err(error) = next {
            self.state = State::Failed(error);
        }
        next
    }

    fn advance(&mut self) -> Result<Option<Request>, ProtocolError> {
        loop {
            match self.state {
                State::Failed(error) => return Err(error),
                State::Between => match self.buffer.first() {
                    None => return Ok(None),
                    Some(b'*') => {
                        let Some(count) = self.number(ProtocolError::CountTooLong)? else { return Ok(None) };
                        let count = count.ok_or(ProtocolError::InvalidCount)?;
                        let Ok(count) = usize::try_from(count) else { continue };
                        if count > self.limits.arguments {
                            let is_strange = self.limits.is_stranger && count <= MOST_OF_ANYBODY.arguments;
                            return Err(match is_strange {
                                true => ProtocolError::StrangersCount,
                                false => ProtocolError::InvalidCount,
                            });
                        }
                        if count > 0 {
                            // No more than a small request needs: the rest when it has come.
                            self.arguments = Vec::with_capacity(count.min(8));
                            self.argument_bytes = 0;
                            self.state = State::Arguments(count);
                        }
                    }
                    Some(_) => {
                        let Some(end) = self.line(ProtocolError::InlineTooLong)? else { return Ok(None) };
                        let words = words(trim(&self.buffer[..end]));
                        self.buffer.advance(end + 1);
                        let words = words.ok_or(ProtocolError::UnbalancedQuotes)?;
                        // Of a stranger as many as a line may have.
                        let most = match self.limits.is_stranger {
                            true => MOST_OF_ANYBODY.arguments,
                            false => self.limits.arguments,
                        };
                        if words.len() > most {
                            return Err(ProtocolError::InlineTooLong);
                        }
                        if !words.is_empty() {
                            return Ok(Some(words));
                        }
                    }
                },
                State::Arguments(0) => {
                    self.state = State::Between;
                    self.argument_bytes = 0;
                    return Ok(Some(std::mem::take(&mut self.arguments)));
                }
                State::Arguments(left) => {
                    match self.buffer.first() {
                        None => return Ok(None),
                        Some(b'$') => {}
                        Some(other) => return Err(ProtocolError::ExpectedBulk(*other)),
                    }
                    let Some(length) = self.number(ProtocolError::LengthTooLong)? else { return Ok(None) };
                    let length = length.and_then(|length| usize::try_from(length).ok());
                    let length = length.ok_or(ProtocolError::InvalidLength)?;
                    if length > self.limits.argument_bytes {
                        let is_strange = self.limits.is_stranger && length <= MOST_OF_ANYBODY.argument_bytes;
                        return Err(match is_strange {
                            true => ProtocolError::StrangersLength,
                            false => ProtocolError::InvalidLength,
                        });
                    }
                    if self.argument_bytes + length > self.limits.request_bytes {
                        return Err(ProtocolError::RequestTooLong);
                    }
                    self.state = State::Argument(left, length);
                }
                State::Argument(left, length) => {
                    if self.buffer.len() < length + 2 {
                        return Ok(None);
                    }
                    let argument = self.buffer.split_to(length).freeze();
                    // As Redis does, without looking what they are.
                    self.buffer.advance(2);
                    self.argument_bytes += length;
                    self.arguments.push(argument);
                    self.state = State::Arguments(left - 1);
                }
            }
        }
    }

    /// Where the end of the next line is; `None`: it has not all come.
    fn line(&mut self, too_long: ProtocolError) -> Result<Option<usize>, ProtocolError> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = found.map(|at| self.searched + at) else {
            self.searched = self.buffer.len();
            return if self.searched > self.limits.line_bytes { Err(too_long) } else { Ok(None) };
        };
        self.searched = 0;
        if end > self.limits.line_bytes {
            return Err(too_long);
        }
        Ok(Some(end))
    }

    /// Takes the next line, a sign and a number: `Some(None)` is none. It is read where it lies: of
    /// a line that is split off somebody has to count who still has it.
    fn number(&mut self, too_long: ProtocolError) -> Result<Option<Option<i64>>, ProtocolError> {
        let Some(end) = self.line(too_long)? else { return Ok(None) };
        let number = number(&trim(&self.buffer[..end])[1..]);
        self.buffer.advance(end + 1);
        Ok(Some(number))
    }
}

/// A line without the rest of its end.
fn trim(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A whole number, without a `+`, a space, or a zero in front.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_sound = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_sound {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The words of an inline command; `None`: a quote is open, or ends within a word.
fn words(line: &[u8]) -> Option<Request> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b || *byte == 0;
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let begin = rest.iter().position(|byte| !is_space(byte));
        let Some(begin) = begin else { return Some(words) };
        rest = &rest[begin..];
        let mut word = Vec::new();
        loop {
            match rest {
                [] => break,
                [space, ..] if is_space(space) => break,
                [b'"', inner @ ..] => {
                    rest = double_quoted(inner, &mut word)?;
                    if rest.first().is_some_and(|next| !is_space(next)) {
                        return None;
                    }
                    break;
                }
                [b'\'', inner @ ..] => {
                    rest = single_quoted(inner, &mut word)?;
                    if rest.first().is_some_and(|next| !is_space(next)) {
                        return None;
                    }
                    break;
                }
                [byte, behind @ ..] => {
                    word.push(*byte);
                    rest = behind;
                }
            }
        }
        words.push(Bytes::from(word));
    }
}

/// What is behind the closing quote.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let hex = |digit: &u8| char::from(*digit).to_digit(16).map(|digit| digit as u8);
    loop {
        rest = match rest {
            [] => return None,
            [b'"', behind @ ..] => return Some(behind),
            [b'\\', b'x', high, low, behind @ ..] if hex(high).is_some() && hex(low).is_some() => {
                word.push(hex(high)? << 4 | hex(low)?);
                behind
            }
            [b'\\', escaped, behind @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                behind
            }
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
        };
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [] => return None,
            [b'\'', behind @ ..] => return Some(behind),
            [b'\\', b'\'', behind @ ..] => {
                word.push(b'\'');
                behind
            }
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

    /// What a stream comes to that arrives in pieces of `size`.
    fn read_in_pieces(bytes: &[u8], size: usize, limits: RequestLimits) -> Read {
        let mut reader = RequestReader::new(limits);
        let mut requests = Vec::new();
        for piece in bytes.chunks(size) {
            reader.buffer().extend_from_slice(piece);
            loop {
                match reader.next_request() {
                    Ok(Some(request)) => requests.push(request.iter().map(|word| word.to_vec()).collect()),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(reader.next_request(), Err(error), "it goes on behind an error");
                        return (requests, Some(error));
                    }
                }
            }
        }
        (requests, None)
    }

    #[track_caller]
    fn read(bytes: &[u8]) -> (Vec<String>, Option<ProtocolError>) {
        let limits = RequestLimits {
            line_bytes: 64,
            argument_bytes: 100,
            request_bytes: 150,
            arguments: 10,
            is_stranger: false,
        };
        let whole = read_in_pieces(bytes, usize::MAX, limits);
        for size in [1, 2, 3, 7] {
            assert_eq!(read_in_pieces(bytes, size, limits), whole, "in pieces of {size}");
        }
        let shown = |request: &Vec<Vec<u8>>| {
            let words: Vec<String> = request.iter().map(|word| word.escape_ascii().to_string()).collect();
            words.join("|")
        };
        (whole.0.iter().map(shown).collect(), whole.1)
    }

    #[test]
    fn requests_are_arrays_or_lines() {
        for (bytes, requests) in [
            (&b"*1\r\n$4\r\nPING\r\n"[..], &["PING"][..]),
            (b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n\r\n\0\xff\r\n", &["SET|a|\\r\\n\\x00\\xff"]),
            (b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", &["GET|"]),
            (b"*0\r\n*-1\r\n\r\n\n  \r\nPING\r\n", &["PING"]),
            (b"PING\n*1\r\n$4\r\nPING\r\nping\r\n", &["PING", "PING", "ping"]),
            (b"set \"a b\" 'c d'\r\n", &["set|a b|c d"]),
            (b"set \"\\x41\\n\\\"\\q\" 'it\\'s\\n'\r\n", &["set|A\\n\\\"q|it\\'s\\\\n"]),
            (b"set \"\" ''\r\n", &["set||"]),
            (b"*2\r\n$3\r\nGET\r\n$1\r", &[]),
        ] {
            let requests: Vec<String> = requests.iter().map(|request| (*request).to_owned()).collect();
            assert_eq!(read(bytes), (requests, None), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_request_is_refused_in_redis_words() {
        let long = [b'1'; 80];
        let with = |before: &[u8]| [before, &long].concat();
        for (bytes, words) in [
            (b"*a\r\n".to_vec(), "invalid multibulk length"),
            (b"*11\r\n".to_vec(), "invalid multibulk length"),
            (b"*99999999999999999999\r\n".to_vec(), "invalid multibulk length"),
            (b"*01\r\n".to_vec(), "invalid multibulk length"),
            (b"*1\r\n:1\r\n".to_vec(), "expected '$', got ':'"),
            (b"*1\r\n\r\n".to_vec(), "expected '$', got ' '"),
            (b"*1\r\n$a\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$-1\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$101\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$536870913\r\n".to_vec(), "invalid bulk length"),
            (with(b"*"), "too big mbulk count string"),
            (with(b"*1\r\n$"), "too big bulk count string"),
            (with(b"GET "), "too big inline request"),
            (b"get \"a\r\n".to_vec(), "unbalanced quotes in request"),
            (b"get 'a'b\r\n".to_vec(), "unbalanced quotes in request"),
        ] {
            let (requests, error) = read(&bytes);
            assert_eq!(requests, Vec::<String>::new());
            let error = error.unwrap_or_else(|| panic!("{} is taken", bytes.escape_ascii())).to_string();
            assert_eq!(error, format!("ERR Protocol error: {words}"), "{}", bytes.escape_ascii());
        }
        for (bytes, error) in [
            (&b"*11\r\n"[..], ProtocolError::StrangersCount),
            (b"*1048577\r\n", ProtocolError::InvalidCount),
            (b"*2\r\n$3\r\nGET\r\n$16385\r\n", ProtocolError::StrangersLength),
            (b"*2\r\n$3\r\nGET\r\n$536870913\r\n", ProtocolError::InvalidLength),
        ] {
            let found = read_in_pieces(bytes, usize::MAX, RequestLimits::unauthenticated());
            assert_eq!(found, (Vec::new(), Some(error)), "{}", bytes.escape_ascii());
        }
        let argument = [&b"$80\r\n"[..], &[b'a'; 80], b"\r\n"].concat();
        let request = [b"*2\r\n", &argument[..], &argument].concat();
        assert_eq!(read(&request).1, Some(ProtocolError::RequestTooLong));
    }

    #[test]
    fn an_announcement_makes_no_room() {
        let mut reader = RequestReader::new(RequestLimits::default());
        reader.buffer().extend_from_slice(b"*1048576\r\n$17825792\r\nabc");
        assert_eq!(reader.next_request(), Ok(None));
        assert!(reader.arguments.capacity() <= 8);
        assert!(reader.buffer.capacity() < 1024, "{}", reader.buffer.capacity());
        assert_eq!(reader.held(), 3);
    }

    #[test]
    fn the_room_of_what_was_large_is_given_back() {
        let mut reader = RequestReader::new(RequestLimits::default());
        let argument = vec![b'x'; 1 << 20];
        for rest in [&b""[..], b"*1\r\n$4\r\nPI"] {
            let request = [b"*1\r\n$1048576\r\n", &argument[..], b"\r\n", rest].concat();
            reader.buffer().extend_from_slice(&request);
            assert_eq!(reader.next_request(), Ok(Some(vec![Bytes::copy_from_slice(&argument)])));
            reader.give_back(1 << 10);
            assert!(reader.buffer.capacity() < 1 << 10, "{}", reader.buffer.capacity());
        }
        reader.buffer().extend_from_slice(b"NG\r\n");
        assert_eq!(reader.next_request(), Ok(Some(vec![Bytes::from_static(b"PING")])));
    }

    /// Bytes by chance, mostly such as requests are made of: the same in pieces as in one.
    #[test]
    fn garbage_is_read_the_same_in_pieces() {
        let mut state = 1u64;
        let mut below = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let parts: [&[u8]; 12] =
            [b"*", b"$", b"\r\n", b"\n", b"1", b"2", b"3", b"a", b"\"", b"'", b" ", b"*1\r\n$1\r\na\r\n"];
        for _ in 0..3_000 {
            let bytes: Vec<u8> =
                (0..below(30)).flat_map(|_| parts[below(parts.len() as u64) as usize].to_vec()).collect();
            read(&bytes);
        }
    }
}
