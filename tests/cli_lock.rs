//! `dogsled lock NAME -- command`: exclusion of processes, and what becomes of them.
#![cfg(feature = "cli")]

mod cli_support;

use std::time::{Duration, Instant};

use cli_support::alone::Alone;
use rustix::process::{Pid, Signal, kill_process};

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
    let script = format!("trap 'echo told > {0}; exit 3' TERM; sleep 60 & wait", shown.display());
    let run = |lease: &str| {
        alone.command(&["lock", "job", "--lease", lease, "--", "sh", "-c", &script]).spawn().unwrap()
    };
    let held =
        || alone.command(&["lock", "holder", "job"]).output().is_ok_and(|output| output.status.success());

    // The runner is told to end: the command is, too, and its code passes through.
    let mut child = run("10");
    alone.eventually("the lock is held", held);
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), "told\n");
    assert!(!held());

    // The node is gone, so the lease cannot be renewed.
    std::fs::remove_file(&shown).unwrap();
    let mut child = run("2");
    alone.eventually("the lock is held", held);
    std::thread::sleep(Duration::from_millis(300));
    alone.served.signal(Signal::STOP);
    let began = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(8));
    alone.served.signal(Signal::CONT);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), "told\n");
}

#[test]
fn at_a_terminal_what_the_command_has_started_is_stopped_with_it() {
    let alone = Alone::new();
    let Ok(script) = std::process::Command::new("script").arg("--version").output() else {
        eprintln!("SKIPPED: there is no `script` to make a terminal with");
        return;
    };
    assert!(script.status.success());
    let file = alone.sandbox.path("grandchild");
    let shell = format!("sleep 1000 & echo $! > {}; wait", file.display());
    let lock = alone.command(&["lock", "job", "--lease", "2", "--owner", "ann", "--", "sh", "-c", &shell]);
    let mut words = vec![lock.get_program().to_string_lossy().into_owned()];
    words.extend(lock.get_args().map(|word| format!("'{}'", word.to_string_lossy())));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    terminal.envs(lock.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut terminal = terminal.spawn().unwrap();
    alone.eventually("the command has started something", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    });
    let grandchild: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let grandchild = Pid::from_raw(grandchild).unwrap();
    assert!(rustix::process::test_kill_process(grandchild).is_ok(), "it runs");
    // An operator takes the lock away.
    let holder = alone.run(&["lock", "holder", "job", "--json"]).ok();
    let token = holder.split("\"token\":").nth(1).and_then(|rest| rest.split([',', '}']).next()).unwrap();
    alone.run(&["lock", "release", "job", "--owner", "ann", "--token", token.trim()]).ok();
    assert_eq!(terminal.wait().unwrap().code(), Some(8));
    alone.eventually("it is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", grandchild.as_raw_nonzero()));
        state.map_or(true, |state| state.rsplit_once(')').is_some_and(|(_, behind)| behind.starts_with(" Z")))
    });
}
