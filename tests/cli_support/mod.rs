//! Runs the real binary and looks at what it says.
#![allow(dead_code, reason = "each suite uses its part")]

pub(crate) mod alone;
pub(crate) mod bank;
mod followed;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod mixed;
pub(crate) mod nodes;
pub(crate) mod redis_traffic;
#[path = "../common/skipped.rs"]
mod skipped;
pub(crate) mod small_disk;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

#[allow(unused_imports, reason = "each suite uses its part")]
pub(crate) use self::skipped::skipped;

/// What a run of the binary came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The output of a run that must have worked.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// The complaint of a run that must have failed with `code`, and printed nothing.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        assert!(self.stderr.starts_with("dogsled: ") || code == 2, "{self:?}");
        assert_eq!(self.stderr.matches("panicked").count(), 0, "{self:?}");
        self.stderr
    }

    /// As [`Run::fails`], and says so with these words.
    #[track_caller]
    pub(crate) fn fails_saying(self, code: i32, parts: &[&str]) {
        let message = self.fails(code);
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

/// A command of the binary that knows no database yet.
pub(crate) fn dogsled() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dogsled"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DOGSLED_") || name == "NOTIFY_SOCKET") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command, feeding it `input`.
pub(crate) fn run_with_input(mut command: Command, input: &[u8]) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // The binary may stop reading at the first wrong line.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the binary ends");
    writer.join().expect("the writer does not panic");
    from_output(&output)
}

/// Runs a command without input.
pub(crate) fn run(mut command: Command) -> Run {
    from_output(&command.output().expect("the binary starts"))
}

fn from_output(output: &std::process::Output) -> Run {
    Run {
        code: output.status.code().expect("not killed"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A place for a database and for files, removed in the end.
pub(crate) struct Sandbox(TempDir);

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        Sandbox(tempfile::tempdir().expect("a temporary directory"))
    }

    /// The database's directory; nothing is there at first.
    pub(crate) fn database(&self) -> PathBuf {
        self.path("db")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path of `name` as an argument.
    pub(crate) fn argument(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path that is text").to_owned()
    }

    /// Writes a file, and gives its path as an argument.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).expect("a file can be written");
        self.argument(name)
    }

    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = dogsled();
        command.arg("--dir").arg(self.database()).args(arguments);
        command
    }

    /// Runs the binary on the database.
    pub(crate) fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        run(self.command(arguments))
    }

    pub(crate) fn run_with_input(&self, arguments: &[impl AsRef<OsStr>], input: impl AsRef<[u8]>) -> Run {
        run_with_input(self.command(arguments), input.as_ref())
    }

    /// Fills the default tree from lines of TSV.
    pub(crate) fn fill(&self, tsv: &str) {
        self.run_with_input(&["load", "-", "--format", "tsv"], tsv).ok();
    }
}

/// Every file below `directory`, sorted.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
