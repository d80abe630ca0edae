//! Nodes as processes of the real binary, on loopback.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Run, Sandbox, dogsled, run};

/// How long a node may take for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address below those that the system gives away by itself: while a node is down, nobody else takes its port. It is
/// free for UDP and TCP, and so is the one 80 above for TCP, where the node's HTTP goes.
pub(crate) fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 16_000 + (std::process::id() % 8_000) as u16;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 8_000;
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() && is_free(port) && is_free(port + 80) {
            return format!("127.0.0.1:{port}");
        }
    }
}

/// A process of `dogsled serve`, which is killed in the end if it still runs.
pub(crate) struct Served {
    child: Child,
    lines: Receiver<String>,
    log: std::path::PathBuf,
}

impl Served {
    /// Starts it; the log goes to a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Served {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Served { child, lines, log: log.to_owned() }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The next line of its standard output that has this in it.
    #[track_caller]
    pub(crate) fn says(&mut self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(error) => panic!("it does not say {part:?} ({error}); its log:\n{}", self.log()),
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Bytes of memory that are its own, not pages of files.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kibibytes.expect("the system says so") << 10
    }

    /// SIGTERM; the exit code.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.exit_code()
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().expect("it is this process's child") {
                Some(status) => {
                    return status.code().unwrap_or_else(|| panic!("killed: {status}\n{}", self.log()));
                }
                None if Instant::now() > until => panic!("it does not end; its log:\n{}", self.log()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill_nine(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Only if the test has not ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sandbox {
    /// A command in the sandbox's directory, with no database named.
    pub(crate) fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = dogsled();
        command.current_dir(self.path("")).args(arguments);
        command
    }

    pub(crate) fn run_bare(&self, arguments: &[&str]) -> Run {
        run(self.bare(arguments))
    }

    /// Starts a node in the sandbox's directory and waits until it listens.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Served {
        let mut command = self.bare(&["serve", "--json"]);
        command.args(arguments);
        let mut served = Served::start(command, &self.path("log"));
        served.says("\"listening\"");
        served
    }

    /// As [`Sandbox::serve`], and until it serves.
    pub(crate) fn serving(&self, arguments: &[&str]) -> Served {
        let mut served = self.serve(arguments);
        served.says("\"serving\"");
        served
    }

    /// Makes an authority, and certificates of nodes and of a client, in `certs`.
    pub(crate) fn certificates(&self, nodes: &[u64]) {
        self.run_bare(&["certs", "ca"]).ok();
        for node in nodes {
            self.run_bare(&["certs", "node", &node.to_string()]).ok();
        }
        self.run_bare(&["certs", "client"]).ok();
    }
}
