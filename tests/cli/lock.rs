//! `dogsled lock NAME -- command`: exclusion of processes, what becomes of them, and what they write under it.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli_support::alone::Alone;
use crate::cli_support::{Run, Sandbox, run, run_with_input, skipped};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

#[test]
fn the_exit_code_of_the_command_passes_through_and_the_lock_is_given_back() {
    let alone = Alone::new();
    let shell = |script: &'static str| ["lock", "deploy", "--", "sh", "-c", script];
    assert_eq!(alone.run(&shell("echo $DOGSLED_LOCK; test $DOGSLED_LOCK_TOKEN -gt 0")).ok(), "deploy\n");
    assert_eq!(alone.run(&shell("exit 42")).code, 42);
    assert_eq!(alone.run(&shell("kill -9 $$")).code, 128 + 9);
    alone.run(&["lock", "holder", "deploy"]).fails(1);
    alone.run(&["lock", "deploy", "--", "no-such-program"]).fails(5);
    alone.run(&["lock", "holder", "deploy"]).fails(1);
    alone.run(&["lock", "deploy"]).fails(2);
    alone.run(&["lock"]).fails(2);
    // Of a directory there is one process at a time.
    alone.sandbox.run(&["lock", "deploy", "--", "true"]).fails_saying(2, &["--connect"]);
    // The other commands are what they were.
    let token = alone.run(&["lock", "acquire", "deploy", "--owner", "ann"]).ok();
    alone.run(&["lock", "deploy", "--wait", "0", "--", "true"]).fails_saying(8, &["held by another"]);
    alone.run(&["lock", "release", "deploy", "--owner", "ann", "--token", token.trim()]).ok();
}

#[test]
fn one_command_at_a_time_runs_and_the_next_waits_for_it() {
    let alone = Alone::new();
    let file = alone.sandbox.path("inside");
    let script = format!("mkdir {0} && sleep 0.2 && rmdir {0}", file.display());
    let mut running: Vec<_> =
        (0..4).map(|_| alone.command(&["lock", "job", "--", "sh", "-c", &script]).spawn().unwrap()).collect();
    for child in &mut running {
        assert!(child.wait().unwrap().success(), "two were in it at a time");
    }
}

#[test]
fn the_command_is_stopped_when_the_lock_is_lost_or_the_runner_is_told_to_end() {
    let alone = Alone::new();
    let shown = alone.sandbox.path("stopped");
    let ready = alone.sandbox.path("ready");
    let (told, listens) = (shown.display(), ready.display());
    let script = format!("trap 'echo told > {told}; exit 3' TERM; touch {listens}; sleep 60 & wait");
    let run = |lease: &str| {
        alone.command(&["lock", "job", "--lease", lease, "--", "sh", "-c", &script]).spawn().unwrap()
    };
    let held =
        || alone.command(&["lock", "holder", "job"]).output().is_ok_and(|output| output.status.success());

    // The runner is told to end: the command is, too, and its code passes through.
    let mut child = run("10");
    alone.eventually("the command listens", || ready.exists());
    assert!(held());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), "told\n");
    assert!(!held());

    // The node is gone, so the lease cannot be renewed.
    std::fs::remove_file(&shown).unwrap();
    std::fs::remove_file(&ready).unwrap();
    let mut child = run("7");
    alone.eventually("the command listens", || ready.exists());
    alone.served.signal(Signal::STOP);
    let began = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(8));
    alone.served.signal(Signal::CONT);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), "told\n");
}

#[test]
fn at_a_terminal_what_the_command_has_started_is_stopped_with_it() {
    let alone = Alone::new();
    let Ok(script) = std::process::Command::new("script").arg("--version").output() else {
        skipped("there is no `script` to make a terminal with");
        return;
    };
    assert!(script.status.success());
    let file = alone.sandbox.path("grandchild");
    let shell = format!("sleep 1000 & echo $! > {}; wait", file.display());
    let lock = alone.command(&["lock", "job", "--lease", "7", "--", "sh", "-c", &shell]);
    let mut words = vec![lock.get_program().to_string_lossy().into_owned()];
    words.extend(lock.get_args().map(|word| format!("'{}'", word.to_string_lossy())));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    terminal.envs(lock.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = lock.get_current_dir() {
        terminal.current_dir(directory);
    }
    terminal.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut terminal = terminal.spawn().unwrap();
    alone.eventually("the command has started something", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    });
    let grandchild = started(&file);
    assert!(rustix::process::test_kill_process(grandchild).is_ok(), "it runs");
    alone.take_away("job");
    assert_eq!(terminal.wait().unwrap().code(), Some(8));
    alone.eventually("it is gone", || has_ended(grandchild));
}

#[test]
fn what_has_left_the_group_of_the_command_is_stopped_with_it() {
    let alone = Alone::new();
    let file = alone.sandbox.path("grandchild");
    // It does not listen to SIGTERM either, and what it starts is found when it has ended.
    let left = "trap '' TERM; sleep 1000 & echo $! > \"$1\"; wait";
    let shell = format!("setsid sh -c '{}' - {} & wait", left.replace('\'', "'\\''"), file.display());
    let mut lock =
        alone.command(&["lock", "job", "--lease", "7", "--kill-after", "1", "--", "sh", "-c", &shell]);
    let mut lock = lock.spawn().unwrap();
    alone.eventually("the command has started something", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    });
    let grandchild = started(&file);
    assert!(rustix::process::test_kill_process(grandchild).is_ok(), "it runs");
    alone.take_away("job");
    assert_eq!(lock.wait().unwrap().code(), Some(8));
    alone.eventually("it is gone", || has_ended(grandchild));
}

/// The process whose number is in a file.
fn started(file: &std::path::Path) -> Pid {
    let number: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    Pid::from_raw(number).unwrap()
}

fn has_ended(process: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    state.map_or(true, |state| state.rsplit_once(')').is_some_and(|(_, behind)| behind.starts_with(" Z")))
}

impl Alone {
    /// An operator takes a lock away from whoever holds it.
    fn take_away(&self, lock: &str) {
        let holder = self.run(&["lock", "holder", lock, "--json"]).ok();
        let holder: serde_json::Value = serde_json::from_str(&holder).unwrap();
        let (owner, token) = (holder["owner"].as_str().unwrap(), holder["token"].to_string());
        self.run(&["lock", "release", lock, "--owner", owner, "--token", &token]).ok();
    }
}

/// Writes of all kinds under a lock, each of which says what is to come of it.
struct Writes<'a> {
    command: &'a dyn Fn(&[&str]) -> Command,
    under: [String; 4],
}

impl Writes<'_> {
    fn run(&self, arguments: &[&str], input: &str) -> Run {
        let mut command = (self.command)(arguments);
        command.args(&self.under);
        run_with_input(command, input.as_bytes())
    }

    /// What each of them comes to, for keys that lie in many partitions.
    fn all(&self, value: &str) -> Vec<Run> {
        let keys = ["1", "2", "3", "4", "5", "6", "7", "8"];
        let mut runs: Vec<Run> = keys.iter().map(|key| self.run(&["put", key, value], "")).collect();
        runs.push(self.run(&["put", "short", value, "--ttl", "1000"], ""));
        runs.push(self.run(&["del", "1", "2", "short"], ""));
        runs.push(self.run(&["counter", "add", "seats", "3", "--max", "100"], ""));
        let lines = format!("9\t{value}\n10\t{value}\n");
        runs.push(self.run(&["load", "-", "--format", "tsv"], &lines));
        let lines = format!(
            "{}\n{}\n",
            format_args!("{{\"op\":\"put\",\"key\":\"11\",\"value\":\"{value}\"}}"),
            r#"{"op":"add","counter":"txns","by":1}"#
        );
        runs.push(self.run(&["txn"], &lines));
        runs.push(self.run(&["txn"], "{\"op\":\"add\",\"counter\":\"txns\",\"by\":1}"));
        runs
    }
}

/// The same on a directory and on a cluster.
fn writes_are_refused_without_the_lock(command: &dyn Fn(&[&str]) -> Command) {
    let ok = |arguments: &[&str]| run(command(arguments)).ok();
    let acquire = |owner: &str| ok(&["lock", "acquire", "job", "--owner", owner]).trim().to_owned();
    let state = || {
        let counters = ["seats", "txns"].map(|name| ok(&["counter", "get", name]));
        (ok(&["scan"]), counters)
    };
    let under =
        |token: &str| Writes { command, under: ["--under", "job", "--token", token].map(str::to_owned) };
    let first = acquire("ann");
    for run in under(&first).all("ann") {
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    }
    let (scanned, counters) = state();
    assert_eq!(scanned.lines().count(), 9, "{scanned}");
    assert!(scanned.lines().all(|line| line.ends_with("\tann")), "{scanned}");
    assert_eq!(counters, ["3\n", "2\n"]);
    // What is not there is told, and what is there removed, as without a lock.
    let writes = under(&first);
    writes.run(&["del", "3", "nothing"], "").fails_saying(1, &["no key nothing", "1 key removed"]);
    writes.run(&["counter", "add", "seats", "3", "--max", "5"], "").fails_saying(8, &["stands at 3"]);
    let unmet = r#"{"op":"check","key":"4","is":"bo"}"#;
    writes.run(&["txn"], unmet).fails_saying(8, &["line 1", "\"ann\""]);
    assert_eq!(writes.run(&["put", "4", "ann", "--json"], "").ok(), "{\"key\":\"4\",\"replaced\":true}\n");

    // Nobody has the lock, and then another.
    ok(&["lock", "release", "job", "--owner", "ann", "--token", &first]);
    let before = state();
    let refused = |why: &str| {
        for run in under(&first).all("ann, late") {
            run.fails_saying(8, &["lock \"job\" is not held under token", &first, why]);
        }
        assert_eq!(state(), before, "something was written all the same");
    };
    refused("nothing was written");
    let second = acquire("bo");
    refused("nothing was written");
    // The lock is what is told, before what else is not met.
    under(&first).run(&["txn"], unmet).fails_saying(8, &["is not held"]);
    assert_eq!(under(&second).run(&["counter", "reset", "seats"], "").ok(), "3\n");
    under(&second).run(&["put", "4", "bo"], "").ok();
    assert_eq!(ok(&["get", "4"]), "bo\n");

    run(command(&["put", "4", "x", "--token", &second])).fails(2);
    run(command(&["put", "4", "x", "--under", "job"])).fails_saying(2, &["which token", "--token"]);
    run(command(&["put", "4", "x", "--under", "job", "--token", "many"])).fails(2);
    let exported = |name: &str, token: &str| {
        let mut command = command(&["put", "4", "x", "--under", "job"]);
        command.env("DOGSLED_LOCK", name).env("DOGSLED_LOCK_TOKEN", token);
        run(command)
    };
    exported("another", &second).fails_saying(2, &["another"]);
    exported("job", "none").fails_saying(2, &["no token"]);
    exported("job", &second).ok();
    assert_eq!(ok(&["get", "4"]), "x\n");
}

#[test]
fn what_is_written_to_a_directory_under_a_lock_is_refused_when_it_is_lost() {
    let sandbox = Sandbox::new();
    writes_are_refused_without_the_lock(&|arguments| sandbox.command(arguments));
    // A lease that has ended is enough.
    let token = sandbox.run(&["lock", "acquire", "short", "--owner", "ann", "--lease", "1"]).ok();
    std::thread::sleep(Duration::from_millis(1_100));
    let late = ["put", "4", "late", "--under", "short", "--token", token.trim()];
    sandbox.run(&late).fails_saying(8, &["nobody holds it"]);
}

#[test]
fn what_is_written_to_a_cluster_under_a_lock_is_refused_when_it_is_lost() {
    let alone = Alone::new();
    writes_are_refused_without_the_lock(&|arguments| alone.command(arguments));
}

/// A script that calls the binary as `dogsled`, on this node.
fn script(alone: &Alone, name: &str, lines: &str) -> String {
    let binary = env!("CARGO_BIN_EXE_dogsled");
    alone.sandbox.file(name, format!("dogsled() {{ {binary} --connect {} \"$@\"; }}\n{lines}", alone.address))
}

#[test]
fn a_script_under_a_lock_writes_with_the_token_that_it_was_given() {
    let alone = Alone::new();
    let inner = script(
        &alone,
        "inner",
        "dogsled put inner mine --under \"$DOGSLED_LOCK\"\n\
         dogsled put outer mine --under job --token $OUTER\n\
         dogsled put outer lost --under job\n\
         test $? = 2 && echo wrong",
    );
    let outer = script(
        &alone,
        "outer",
        &format!(
            "dogsled put k mine --under job && export OUTER=$DOGSLED_LOCK_TOKEN && echo $OUTER\n\
             dogsled lock other -- sh {inner}"
        ),
    );
    let run = alone.run(&["lock", "job", "--", "sh", &outer]);
    // Within another lock the token is that one's.
    assert!(run.code == 0 && run.stderr.contains("is of lock \"other\""), "{run:?}");
    let token = run.stdout.strip_suffix("\nwrong\n").expect("the token, and that a command line was wrong");
    assert_eq!(alone.run(&["scan"]).ok(), "inner\tmine\nk\tmine\nouter\tmine\n");
    alone.run(&["put", "k", "late", "--under", "job", "--token", token]).fails_saying(8, &["is not held"]);
}

/// Processes that are ended with the test, whatever becomes of it.
struct Group(Pid);

impl Group {
    fn signal(&self, signal: Signal) {
        kill_process_group(self.0, signal).expect("it runs");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

#[test]
fn a_holder_that_stood_still_beyond_its_lease_writes_nothing_and_is_stopped_when_it_goes_on() {
    let alone = Alone::new();
    let there = |name: &str| alone.sandbox.path(name).exists();
    let read = |name: &str| std::fs::read_to_string(alone.sandbox.path(name)).expect("readable");
    let directory = alone.sandbox.argument("");
    let ann = script(
        &alone,
        "ann",
        &format!(
            "cd {directory}; echo $$ > pid\n\
             dogsled put state ann --under job && touch written\n\
             while ! test -e another-has-it; do sleep 0.05; done\n\
             dogsled put state 'ann again' --under job 2> refused\n\
             echo $? > code; mv code ended\n\
             sleep 600"
        ),
    );
    let bo = script(
        &alone,
        "bo",
        &format!(
            "cd {directory}; dogsled put state bo --under job && touch another-has-it\n\
             while ! test -e enough; do sleep 0.05; done\n\
             dogsled put state 'bo again' --under job"
        ),
    );
    let run = |script: &str| {
        let command = ["lock", "job", "--lease", "7", "--", "sh", script];
        alone.command(&command).spawn().expect("the binary starts")
    };
    let mut holder = run(&ann);
    alone.eventually("the holder has written", || there("written"));
    let pid = read("pid").trim().parse().expect("a number");
    let command = Group(Pid::from_raw(pid).expect("not zero"));
    let runner = Pid::from_child(&holder);
    kill_process(runner, Signal::STOP).expect("it runs");
    command.signal(Signal::STOP);

    let mut next = run(&bo);
    alone.eventually("the lease has ended and the next has it", || there("another-has-it"));
    // What runs under the lock goes on first: its runner cannot stop it yet, so it does its harm if it can.
    command.signal(Signal::CONT);
    alone.eventually("the holder has tried to write", || there("ended"));
    assert_eq!(read("ended"), "8\n", "{}", read("refused"));
    assert!(read("refused").contains("is not held under token"), "{}", read("refused"));
    assert_eq!(alone.run(&["get", "state"]).ok(), "bo\n");
    test_kill_process(command.0).expect("it still runs");
    kill_process(runner, Signal::CONT).expect("it runs");
    assert_eq!(holder.wait().expect("it is this process's child").code(), Some(8), "the lock was lost");
    assert!(test_kill_process(command.0).is_err(), "the command was not stopped");
    std::fs::write(alone.sandbox.path("enough"), "").expect("writable");
    assert!(next.wait().expect("it is this process's child").success());
    assert_eq!(alone.run(&["get", "state"]).ok(), "bo again\n");
    alone.run(&["lock", "holder", "job"]).fails(1);
}
