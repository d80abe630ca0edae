//! [`Failure`]: why a command stopped, as a message for people and an exit code for scripts.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes; their numbers are part of the interface and never change meaning.
///
/// Code 0 is success, and a reader that hung up (`dogsled scan | head`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The key or tree asked for is not there.
    NotFound = 1,
    /// The command line or the configuration is wrong, or asks for what is not allowed.
    Usage = 2,
    /// Another process has the database open, or listens on the address.
    InUse = 3,
    /// Damage was found on disk.
    Corrupt = 4,
    /// The operating system refused: disk full, read-only, no permission, I/O error.
    Io = 5,
    /// The input of `load` or `import` is wrong or damaged.
    BadInput = 6,
    /// The directory holds no dogsled database that this version can open.
    NotADatabase = 7,
    /// A condition was not met: a lock is held by another, or not held under the token that was given, a
    /// counter is at its bound, a target holds data already, a node id is taken.
    Refused = 8,
    /// No node of the cluster that could do it was reached in time. Nothing was done.
    Unavailable = 9,
    /// The answer to a write was not heard. It may have happened, and may still happen.
    OutcomeUnknown = 10,
    /// Certificates are missing, not valid, of another authority, of somebody else, or do not permit it.
    Certificates = 11,
    /// A tree's quota is used up. Nothing was done.
    QuotaExceeded = 12,
}

/// The table at the end of `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the key or tree asked for is not there
  2  wrong command line or configuration, or a key, value or name over its limit
  3  the database is in use by another process, or the address to listen on is
  4  damage was found (see `dogsled repair`)
  5  the operating system refused: disk full, read-only, no permission, I/O error
  6  the input of load or import is wrong or damaged
  7  no dogsled database there, or one of a newer format
  8  a condition was not met: lock held, counter at its bound, target not empty, node id taken
  9  the cluster is not available: nothing was done, try again
  10 the outcome is not known: the write may have happened; read before writing again
  11 certificates are missing, not valid, somebody else's, or do not permit it
  12 a tree's quota is used up: nothing was done, remove something or raise it";

/// Why a command stopped.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the process exits with.
    pub(crate) code: Code,
    /// What is said on standard error.
    pub(crate) message: String,
    /// Whether standard output was closed by its reader: nothing is wrong then, and nothing said.
    hung_up: bool,
    /// Further fields for `--json`.
    pub(crate) details: serde_json::Map<String, serde_json::Value>,
}

/// The result of a command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hung_up: false, details: serde_json::Map::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Code::Usage, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Code::NotFound, message)
    }

    pub(crate) fn bad_input(message: impl Into<String>) -> Failure {
        Failure::new(Code::BadInput, message)
    }

    pub(crate) fn refused(message: impl Into<String>) -> Failure {
        Failure::new(Code::Refused, message)
    }

    /// An operating system's error, with what was being done.
    pub(crate) fn io(doing: impl fmt::Display, error: &io::Error) -> Failure {
        Failure::new(Code::Io, format!("{doing}: {error}"))
    }

    /// An error of writing to standard output.
    pub(crate) fn output(error: &io::Error) -> Failure {
        let mut failure = Failure::io("standard output", error);
        failure.hung_up = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }

    /// What came of telling something that the exit code tells as well: that nobody reads it is no failure then.
    pub(crate) fn unless_hung_up(told: Result<()>) -> Result<()> {
        told.or_else(|failure| if failure.hung_up { Ok(()) } else { Err(failure) })
    }

    /// Puts more before the message.
    pub(crate) fn before(mut self, more: impl fmt::Display) -> Failure {
        self.message = format!("{more}: {}", self.message);
        self
    }

    /// Puts more after the message.
    pub(crate) fn adding(mut self, more: impl fmt::Display) -> Failure {
        self.message = format!("{}; {more}", self.message);
        self
    }

    /// Adds a field to the report that `--json` makes.
    pub(crate) fn detail(mut self, name: &str, value: impl Into<serde_json::Value>) -> Failure {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says what happened on standard error and gives the exit code.
    pub(crate) fn report(mut self, json: bool) -> ExitCode {
        if self.hung_up {
            return ExitCode::SUCCESS;
        }
        // Standard error may be gone too; the code must still be right.
        if json {
            self.details.insert("error".into(), self.message.into());
            self.details.insert("code".into(), (self.code as u8).into());
            let _ = writeln_error(&serde_json::Value::Object(self.details).to_string());
        } else {
            let _ = writeln_error(&format!("dogsled: {}", self.message));
        }
        ExitCode::from(self.code as u8)
    }
}

fn writeln_error(line: &str) -> io::Result<()> {
    use io::Write as _;
    writeln!(io::stderr().lock(), "{line}")
}
