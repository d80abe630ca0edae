//! A node of its own, and commands that are sent to it.

use std::process::Command;
use std::time::{Duration, Instant};

use super::nodes::{Served, free_address};
use super::{Run, Sandbox, run};

/// One `dogsled serve` that is a whole cluster, for tests of commands with `--connect`.
pub(crate) struct Alone {
    pub(crate) sandbox: Sandbox,
    pub(crate) address: String,
    pub(crate) served: Served,
}

impl Alone {
    pub(crate) fn new() -> Alone {
        let (sandbox, address) = (Sandbox::new(), free_address());
        let mut command = sandbox.bare(&["serve"]);
        command.env("DOGSLED_LISTEN", &address);
        let mut served = Served::start(command, &sandbox.path("log"));
        served.says("serving");
        Alone { sandbox, address, served }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.bare(&["--connect", &self.address]);
        command.args(arguments);
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < until, "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
