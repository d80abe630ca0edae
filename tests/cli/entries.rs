//! The binary on single entries: `get`, `put`, `del`, `scan`, `count` and `trees`, and what every
//! command says of a directory or argument that is wrong.

use std::io::Read;
use std::process::Stdio;

use crate::cli_support::{Sandbox, dogsled, run, run_with_input};

#[test]
fn puts_gets_and_deletes() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["put", "greeting", "hello"]).ok(), "");
    assert_eq!(sandbox.run(&["get", "greeting"]).ok(), "hello\n");
    assert_eq!(
        sandbox.run(&["put", "greeting", "hi", "--json"]).ok(),
        "{\"key\":\"greeting\",\"replaced\":true}\n"
    );
    assert_eq!(sandbox.run(&["get", "greeting", "--json"]).ok(), "{\"key\":\"greeting\",\"value\":\"hi\"}\n");
    assert_eq!(sandbox.run(&["del", "greeting"]).ok(), "");
    sandbox.run(&["get", "greeting"]).fails_saying(1, &["no key \"greeting\""]);
}

#[test]
fn deleting_a_missing_key_removes_the_others_and_says_so() {
    let sandbox = Sandbox::new();
    sandbox.fill("a\t1\nb\t2\nc\t3\n");
    sandbox.run(&["del", "a", "x", "b"]).fails_saying(1, &["no key x", "2 keys removed"]);
    assert_eq!(sandbox.run(&["scan"]).ok(), "c\t3\n");
}

#[test]
fn the_directory_may_come_from_the_environment() {
    let sandbox = Sandbox::new();
    let mut put = dogsled();
    put.env("DOGSLED_DIR", sandbox.database()).args(["put", "k", "v"]);
    run(put).ok();
    assert_eq!(sandbox.run(&["get", "k"]).ok(), "v\n");
    let mut none = dogsled();
    none.args(["get", "k"]);
    run(none).fails_saying(2, &["--dir", "DOGSLED_DIR"]);
}

#[test]
fn binary_keys_and_values_in_every_form() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..=255).collect();
    let file = sandbox.file("value.bin", &bytes);
    sandbox.run(&["put", "-k", "hex", "-f", "file", "00ff0a", &file]).ok();
    let hex = sandbox.run(&["get", "\\x00\\xff\\n", "-f", "hex"]).ok();
    assert_eq!(hex.trim_end(), bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let base64 = sandbox.run(&["get", "-k", "base64", "AP8K", "-f", "base64"]).ok();
    sandbox.run(&["put", "again", "-f", "base64", base64.trim_end()]).ok();
    let written = sandbox.argument("copy.bin");
    sandbox.run(&["get", "again", "-o", &written]).ok();
    assert_eq!(std::fs::read(&written).expect("written"), bytes);
    let raw = sandbox.command(&["get", "again", "-f", "raw"]).output().expect("runs");
    assert_eq!(raw.stdout, bytes);
    let stdin = sandbox.run_with_input(&["put", "piped", "-f", "file", "-"], &bytes);
    stdin.ok();
    // What scan prints, load takes.
    let listing = sandbox.run(&["scan"]).ok();
    assert_eq!(listing.lines().count(), 3);
    let copy = Sandbox::new();
    copy.fill(&listing);
    assert_eq!(copy.run(&["scan"]).ok(), listing);
    let json = sandbox.run(&["scan", "--json"]).ok();
    let copy = Sandbox::new();
    copy.run_with_input(&["load", "-", "--format", "jsonl"], &json).ok();
    assert_eq!(copy.run(&["scan"]).ok(), listing);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let sandbox = Sandbox::new();
    sandbox.run(&["put", "C:\\dir", "v"]).fails_saying(2, &["unknown escape \\d", "raw"]);
    sandbox.run(&["put", "-k", "hex", "abc", "v"]).fails_saying(2, &["odd number"]);
    sandbox.run(&["put", "k", "-f", "base64", "*"]).fails_saying(2, &["not base64"]);
    sandbox.run(&["put", "k", "-f", "file", "/no/such/file"]).fails_saying(2, &["cannot read /no/such/file"]);
    sandbox.run(&["get", "-f", "file", "k"]).fails_saying(2, &["--output"]);
    sandbox.run(&["no-such-command"]).fails(2);
    assert!(!sandbox.database().exists(), "a wrong command line makes no database");
    let long = "k".repeat(65_537);
    sandbox.run(&["put", &long, "v"]).fails_saying(2, &["65537", "65536"]);
}

#[test]
fn scans_ranges_in_both_directions() {
    let sandbox = Sandbox::new();
    sandbox.fill("a\t1\nb1\t2\nb2\t3\nb3\t4\nc\t5\n");
    let keys = |arguments: &[&str]| {
        let all = [&["scan", "--keys-only"], arguments].concat();
        sandbox.run(&all).ok().lines().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(&[]), "a b1 b2 b3 c");
    assert_eq!(keys(&["--reverse"]), "c b3 b2 b1 a");
    assert_eq!(keys(&["--prefix", "b"]), "b1 b2 b3");
    assert_eq!(keys(&["--prefix", "b", "--reverse", "--limit", "2"]), "b3 b2");
    assert_eq!(keys(&["--from", "b2"]), "b2 b3 c");
    assert_eq!(keys(&["--to", "b2"]), "a b1");
    assert_eq!(keys(&["--from", "b2", "--to", "c"]), "b2 b3");
    assert_eq!(keys(&["--from", "c", "--to", "a"]), "");
    assert_eq!(keys(&["--prefix", "b", "--from", "b2", "-n", "1"]), "b2");
    assert_eq!(keys(&["--prefix", "\\xff"]), "");
    assert_eq!(keys(&["-n", "0"]), "");
    assert_eq!(sandbox.run(&["count"]).ok(), "5\n");
    assert_eq!(sandbox.run(&["count", "--prefix", "b"]).ok(), "3\n");
    assert_eq!(sandbox.run(&["count", "--from", "z", "--json"]).ok(), "{\"count\":0}\n");
}

#[test]
fn trees_are_apart() {
    let sandbox = Sandbox::new();
    sandbox.run(&["put", "k", "default"]).ok();
    sandbox.run(&["-t", "users", "put", "k", "user"]).ok();
    assert_eq!(sandbox.run(&["get", "k"]).ok(), "default\n");
    assert_eq!(sandbox.run(&["get", "k", "--tree", "users"]).ok(), "user\n");
    assert_eq!(sandbox.run(&["trees"]).ok(), "__sled__default\t1\nusers\t1\n");
    sandbox.run(&["get", "k", "-t", "usres"]).fails_saying(1, &["no tree \"usres\""]);
    assert_eq!(sandbox.run(&["trees"]).ok().lines().count(), 2, "a read made a tree");
    sandbox.run(&["counter", "add", "c"]).ok();
    sandbox.run(&["put", "c", "text", "-t", "__dogsled__counters"]).fails_saying(2, &["dogsled counter"]);
    sandbox.run(&["del", "c", "-t", "__dogsled__counters"]).fails_saying(2, &["dogsled counter"]);
    // It would keep everybody off the tree `users` of a cluster.
    let seal = "__dogsled__sealed:users";
    sandbox.run(&["put", "c", "text", "-t", seal]).fails_saying(2, &["the database's own"]);
}

#[test]
fn commands_that_read_never_make_a_database() {
    let sandbox = Sandbox::new();
    let empty = sandbox.path("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let reads: [&[&str]; 12] = [
        &["get", "k"],
        &["del", "k"],
        &["scan"],
        &["count"],
        &["trees"],
        &["export", "-"],
        &["verify"],
        &["stats"],
        &["wal", "dump"],
        &["wal", "verify"],
        &["counter", "get", "c"],
        &["lock", "holder", "l"],
    ];
    for arguments in reads {
        sandbox.run(arguments).fails_saying(7, &["does not exist"]);
        assert!(!sandbox.database().exists(), "{arguments:?}");
        let mut command = dogsled();
        command.arg("--dir").arg(&empty).args(arguments);
        run(command).fails_saying(7, &["empty"]);
        assert_eq!(std::fs::read_dir(&empty).expect("still there").count(), 0, "{arguments:?}");
    }
}

#[test]
fn a_reader_that_hangs_up_ends_a_scan_quietly() {
    let sandbox = Sandbox::new();
    let lines: String = (0..50_000).map(|number| format!("key{number:06}\tvalue {number}\n")).collect();
    sandbox.fill(&lines);
    for arguments in [&["scan"][..], &["scan", "--json"], &["export", "--format", "jsonl"], &["export"]] {
        let mut child =
            sandbox.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut start = [0; 100];
        child.stdout.take().expect("piped").read_exact(&mut start).expect("some output");
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
    // A full disk is another matter.
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    let output = sandbox.command(&["scan"]).stdout(full).output().expect("runs");
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"));
}

#[test]
fn errors_are_json_too() {
    let sandbox = Sandbox::new();
    sandbox.run(&["put", "k", "v"]).ok();
    let failed = sandbox.run(&["--json", "get", "x"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (1, ""));
    assert_eq!(failed.stderr, "{\"code\":1,\"error\":\"no key \\\"x\\\"\"}\n");
}

#[test]
fn help_documents_the_exit_codes() {
    let mut help = dogsled();
    help.arg("--help");
    let text = run(help).ok();
    for part in ["Exit codes:", "  3  the database is in use", "load", "wal", "--json", "DOGSLED_DIR"] {
        assert!(text.contains(part), "{part}");
    }
    let mut version = dogsled();
    version.arg("--version");
    assert_eq!(run_with_input(version, b"").ok(), format!("dogsled {}\n", env!("CARGO_PKG_VERSION")));
}
