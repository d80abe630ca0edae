//! A small file system to be filled: a tmpfs in a mount namespace that a process of the test holds open. A node
//! is started in there, and the host sees nothing of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Sandbox;
use super::nodes::{Served, free_address};

/// Of three nodes the one with little space.
pub(crate) const POOR: u64 = 3;

/// A small file system, seen only from within, until it is dropped.
pub(crate) struct SmallDisk {
    holder: Child,
    path: PathBuf,
}

impl SmallDisk {
    /// Of so many MiB. Why not, if that is not permitted.
    pub(crate) fn new(path: &Path, mib: u32) -> Result<SmallDisk, String> {
        let text = path.to_str().expect("a path that is text");
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o size={mib}m tmpfs '{text}' && echo mounted && exec cat"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        // It ends with its input.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder =
            command.spawn().map_err(|error| format!("`unshare` (package util-linux): {error}"))?;
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line);
        if said.is_ok() && line == "mounted\n" {
            return Ok(SmallDisk { holder, path: path.to_owned() });
        }
        drop(holder.stdin.take());
        let output = holder.wait_with_output().map_err(|error| error.to_string())?;
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// A command that runs with it in view.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string(), program]);
        command
    }

    /// Where this process finds a file of it.
    pub(crate) fn seen_from_outside(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.path.strip_prefix("/").expect("an absolute path")).join(name)
    }

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) -> io::Result<u64> {
        let mut options = File::options();
        let mut file = options.create(true).append(true).open(self.seen_from_outside("filler"))?;
        let mut filled = 0;
        for size in [1 << 20, 4 << 10] {
            let zeros = vec![0; size];
            loop {
                match file.write(&zeros) {
                    Ok(written) => filled += written as u64,
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(filled)
    }

    /// Takes so many bytes, of which there are as many.
    pub(crate) fn take(&self, mut bytes: u64) -> io::Result<()> {
        let mut options = File::options();
        let mut file = options.create(true).append(true).open(self.seen_from_outside("filler"))?;
        let zeros = vec![0; 1 << 20];
        while bytes > 0 {
            let size = bytes.min(zeros.len() as u64);
            file.write_all(&zeros[..size as usize])?;
            bytes -= size;
        }
        Ok(())
    }

    /// Gives back what was taken.
    pub(crate) fn empty(&self) -> io::Result<()> {
        std::fs::remove_file(self.seen_from_outside("filler"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Starts a cluster of three, of which [`POOR`] has its data on `disk`, each with what `set` adds to its command; the
/// nodes, the last first, and their addresses, the first first.
pub(crate) fn three_nodes(
    sandbox: &Sandbox,
    disk: &SmallDisk,
    set: impl Fn(u64, &mut Command),
) -> (Vec<Served>, Vec<String>) {
    sandbox.certificates(&[1, 2, 3]);
    let addresses: Vec<String> = (0..3).map(|_| free_address()).collect();
    let members: Vec<String> = (1..).zip(&addresses).map(|(id, address)| format!("{id}={address}")).collect();
    let start = |node: u64| {
        let binary = env!("CARGO_BIN_EXE_dogsled");
        let mut command = if node == POOR { disk.command(binary) } else { Command::new(binary) };
        let data = if node == POOR { "small/data".to_owned() } else { format!("data-{node}") };
        command.args(["serve", "--json", "--node", &node.to_string(), "--members", &members.join(",")]);
        command.args(["--certs", &sandbox.argument("certs"), "--data", &sandbox.argument(&data)]);
        command.args(["--listen", &addresses[node as usize - 1]]).args((node == 1).then_some("--init"));
        set(node, &mut command);
        let mut served = Served::start(command, &sandbox.path(&format!("log-{node}")));
        served.says("\"listening\"");
        served
    };
    let mut nodes: Vec<Served> = [3, 2, 1].map(start).into();
    for served in &mut nodes {
        served.says("\"serving\"");
    }
    (nodes, addresses)
}
