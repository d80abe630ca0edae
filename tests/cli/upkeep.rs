//! `backup`, `verify`, `repair`, `stats`, `wal` and `bench`, and directories that are not fit to be
//! opened.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cli_support::{Sandbox, dogsled, files, run};

fn filled() -> Sandbox {
    let sandbox = Sandbox::new();
    let lines: String =
        (0..20_000).map(|number| format!("key{number:06}\tthe value of {number}\n")).collect();
    sandbox.fill(&lines);
    sandbox
}

/// Every command that opens or looks into a database.
const COMMANDS: [&[&str]; 15] = [
    &["get", "k"],
    &["put", "k", "v"],
    &["del", "k"],
    &["scan"],
    &["count"],
    &["trees"],
    &["export", "-"],
    &["backup", "/no/such/place"],
    &["repair", "/no/such/place"],
    &["verify"],
    &["stats"],
    &["wal", "dump"],
    &["wal", "verify"],
    &["counter", "add", "c"],
    &["lock", "holder", "l"],
];

/// What is in every file of a directory.
fn contents(directory: &Path) -> Vec<Vec<u8>> {
    let readable = |path: &std::path::PathBuf| std::fs::read(path).expect("a readable file");
    files(directory).iter().filter(|path| !path.ends_with("LOCK")).map(readable).collect()
}

#[test]
fn a_backup_is_a_database() {
    let sandbox = filled();
    let copy = sandbox.argument("copy");
    let summary = sandbox.run(&["backup", &copy]).ok();
    assert!(summary.starts_with("20,000 keys"), "{summary}");
    let scan = |directory: &str| {
        let mut command = dogsled();
        command.args(["scan", "-d", directory]);
        run(command).ok()
    };
    assert_eq!(scan(&copy), sandbox.run(&["scan"]).ok());
    sandbox.run(&["backup", &copy]).fails_saying(8, &["database already"]);
    // Source and target, without --dir.
    let (source, other) = (sandbox.argument("db"), sandbox.argument("other"));
    let mut both = dogsled();
    both.args(["backup", &source, &other, "--json"]);
    assert!(run(both).ok().contains("\"keys\":20000"));
    assert_eq!(scan(&other), scan(&copy));
    let mut one = dogsled();
    one.args(["backup", &other]);
    run(one).fails_saying(2, &["--dir"]);
}

#[test]
fn a_sound_database_verifies() {
    let sandbox = filled();
    let report = sandbox.run(&["verify"]).ok();
    assert!(report.ends_with("all sound\n"), "{report}");
    let before = contents(&sandbox.database());
    assert!(sandbox.run(&["verify", "--json"]).ok().contains("\"sound\":true"));
    sandbox.run(&["wal", "verify"]).ok();
    assert_eq!(contents(&sandbox.database()), before, "looking changes nothing");
}

#[test]
fn damage_is_found_and_the_rest_is_saved() {
    let sandbox = filled();
    // A backup has everything in its B-tree.
    let copy = sandbox.path("copy");
    sandbox.run(&["backup", sandbox.argument("copy").as_str()]).ok();
    let file = copy.join("tree.redb");
    let mut bytes = std::fs::read(&file).expect("a B-tree");
    let position = bytes.windows(9).position(|window| window == b"key010000").expect("the key is in a leaf");
    bytes[position + 20] ^= 1;
    std::fs::write(&file, bytes).expect("writable");

    let argument = sandbox.argument("copy");
    let on_copy = |arguments: &[&str]| {
        let mut command = dogsled();
        command.args(["-d", &argument]).args(arguments);
        run(command)
    };
    let found = on_copy(&["verify"]);
    assert_eq!(found.code, 4, "{found:?}");
    assert!(found.stdout.contains("tree.redb at offset"), "{found:?}");
    assert!(found.stderr.contains("dogsled repair"), "{found:?}");
    // Also where nobody reads what is said.
    for arguments in [&["verify"][..], &["verify", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = dogsled();
        command.args(["-d", &argument]).args(arguments).stdout(writer);
        assert_eq!(command.stderr(std::process::Stdio::null()).status().expect("it runs").code(), Some(4));
    }
    on_copy(&["get", "key010000"]).fails_saying(4, &["tree.redb", "offset"]);
    let damaged = contents(&copy);

    let saved = sandbox.argument("saved");
    let report = on_copy(&["repair", &saved]);
    assert_eq!(report.code, 4, "{report:?}");
    assert!(report.stdout.contains("lost: ") && report.stdout.contains("saved to"), "{report:?}");
    assert_eq!(contents(&copy), damaged, "repair does not touch its source");

    let mut scan = dogsled();
    scan.args(["-d", &saved, "scan"]);
    let saved_lines = run(scan).ok();
    let original = sandbox.run(&["scan"]).ok();
    let original: std::collections::HashSet<_> = original.lines().collect();
    assert!(saved_lines.lines().all(|line| original.contains(line)), "nothing is made up");
    let count = saved_lines.lines().count();
    assert!((15_000..20_000).contains(&count), "{count} of 20000 saved");
}

#[test]
fn damage_in_the_log_is_reported_with_its_place() {
    let sandbox = filled();
    sandbox.run(&["put", "last", "one"]).ok();
    sandbox.run(&["put", "really", "the last"]).ok();
    let dump = sandbox.run(&["wal", "dump"]);
    assert!(dump.stdout.contains("\tput\t__sled__default\tlast\tone"), "{dump:?}");
    let segment = files(&sandbox.database().join("wal"))
        .into_iter()
        .find(|path| std::fs::read(path).is_ok_and(|bytes| find(&bytes, b"lastone").is_some()))
        .expect("a segment holds it");
    let mut bytes = std::fs::read(&segment).expect("readable");
    let position = find(&bytes, b"lastone").expect("it is there");
    bytes[position] ^= 1;
    std::fs::write(&segment, bytes).expect("writable");
    let name = segment.file_name().expect("a file").to_str().expect("text");
    let found = sandbox.run(&["wal", "verify"]);
    assert_eq!(found.code, 4, "{found:?}");
    assert!(found.stdout.contains(name) && found.stdout.contains("offset"), "{found:?}");
    sandbox.run(&["get", "last"]).fails_saying(4, &[name, "offset", "dogsled repair"]);
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[test]
fn the_log_can_be_listed() {
    let sandbox = Sandbox::new();
    sandbox.run(&["put", "a\\tb", "1"]).ok();
    sandbox.run(&["-t", "users", "put", "ann", "admin"]).ok();
    let dump = sandbox.run(&["wal", "dump"]).ok();
    assert!(dump.starts_with("commit\ttime\toperation\ttree\tkey\tvalue\n"), "{dump}");
    let json = sandbox.run(&["wal", "dump", "--json"]).ok();
    let verified = sandbox.run(&["wal", "verify"]).ok();
    assert!(verified.ends_with("sound\n"), "{verified}");
    assert!(dump.contains("\tput\t__sled__default\ta\\tb\t1\n"), "{dump}");
    assert!(dump.contains("\tcreate\tusers\n") && dump.contains("\tput\tusers\tann\tadmin\n"), "{dump}");
    let put = "{\"key\":\"ann\",\"operation\":\"put\",\"tree\":\"users\",\"value\":\"admin\"}";
    assert!(json.contains(put), "{json}");
    assert_eq!(sandbox.run(&["wal", "dump", "-n", "1"]).ok().lines().count(), 2);
}

#[test]
fn stats_are_for_people_and_programs() {
    let sandbox = filled();
    let text = sandbox.run(&["stats"]).ok();
    assert!(text.contains("keys                       20,000\n"), "{text}");
    let json = sandbox.run(&["stats", "--json"]).ok();
    assert!(json.contains("\"keys\":20000") && json.contains("\"wal_file_bytes\":"), "{json}");
}

#[test]
fn bench_measures_and_cleans_up() {
    let sandbox = Sandbox::new();
    let place = sandbox.argument("");
    let mut command = dogsled();
    command.args(["bench", &place, "--records", "1000", "--syncs", "10", "--rounds", "1", "--json"]);
    let report = run(command).ok();
    assert_eq!(report.lines().count(), 6, "{report}");
    assert!(
        report.contains("\"work\":\"durable put, 1 thread\"") && report.contains("\"of_raw\":"),
        "{report}"
    );
    assert_eq!(std::fs::read_dir(&place).expect("there").count(), 0, "nothing is left behind");
}

#[test]
fn a_database_in_use_is_left_alone() {
    let sandbox = filled();
    let db = dogsled::open(sandbox.database()).expect("nobody else has it");
    for arguments in COMMANDS {
        sandbox.run(arguments).fails_saying(3, &["in use"]);
    }
    drop(db);
    sandbox.run(&["count"]).ok();
}

#[test]
fn what_is_no_database_is_named() {
    let sandbox = Sandbox::new();
    let old = sled::open(sandbox.database()).expect("a sled database");
    old.insert("k", "v").expect("a write");
    drop(old);
    let before = contents(&sandbox.database());
    for arguments in COMMANDS {
        sandbox.run(arguments).fails_saying(7, &["sled"]);
    }
    assert_eq!(contents(&sandbox.database()), before, "nothing was touched");

    let other = Sandbox::new();
    std::fs::create_dir(other.database()).expect("a directory");
    other.file("db/data.redb", [&b"redb"[..], &[0; 5000]].concat());
    other.run(&["put", "k", "v"]).fails_saying(7, &["redb"]);
    other.run(&["get", "k"]).fails_saying(7, &["redb"]);

    let file = Sandbox::new();
    file.file("db", [&b"redb"[..], &[0; 5000]].concat());
    file.run(&["get", "k"]).fails_saying(7, &["redb file"]);
    let text = Sandbox::new();
    text.file("db", "hello");
    text.run(&["put", "k", "v"]).fails_saying(7, &["not a directory"]);

    let photos = Sandbox::new();
    std::fs::create_dir(photos.database()).expect("a directory");
    photos.file("db/photo.jpg", "x");
    photos.run(&["put", "k", "v"]).fails_saying(7, &["other files"]);
    photos.run(&["scan"]).fails(7);
    assert_eq!(files(&photos.database()).len(), 1, "nothing was put beside them");
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    let sandbox = filled();
    let path = sandbox.database().join("MANIFEST");
    let mut manifest = std::fs::read(&path).expect("there");
    manifest[8] = 9;
    let crc = crc32fast::hash(&manifest[..60]);
    manifest[60..].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &manifest).expect("writable");
    for arguments in [&["get", "k"][..], &["put", "k", "v"], &["verify"], &["repair", "/no/such/place"]] {
        sandbox.run(arguments).fails_saying(7, &["format 9", "newer dogsled"]);
    }
    // A damaged manifest is another matter.
    manifest[20] ^= 1;
    std::fs::write(&path, &manifest).expect("writable");
    sandbox.run(&["get", "k"]).fails_saying(4, &["MANIFEST"]);
}

#[test]
fn a_missing_file_is_corruption() {
    let sandbox = filled();
    std::fs::remove_file(sandbox.database().join("tree.redb")).expect("there");
    sandbox.run(&["get", "k"]).fails_saying(4, &["tree.redb", "missing"]);
    let sandbox = filled();
    std::fs::remove_dir_all(sandbox.database().join("wal")).expect("there");
    sandbox.run(&["get", "k"]).fails_saying(4, &["wal"]);
    let sandbox = filled();
    std::fs::remove_file(sandbox.database().join("MANIFEST")).expect("there");
    sandbox.run(&["get", "k"]).fails_saying(4, &["MANIFEST"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_said_to_be() {
    let sandbox = filled();
    // Permissions do not stop root, so the binary runs as nobody: from where nobody can reach it.
    let binary = sandbox.path("dogsled");
    std::fs::copy(env!("CARGO_BIN_EXE_dogsled"), &binary).expect("copied");
    for path in files(&sandbox.database()) {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).expect("ours");
    }
    for directory in [sandbox.path(""), sandbox.database(), sandbox.database().join("wal")] {
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o555)).expect("ours");
    }
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.env_remove("DOGSLED_DIR").arg("-d").arg(sandbox.database()).args(arguments);
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        run(command)
    };
    for arguments in [&["put", "k", "v"][..], &["get", "k"]] {
        as_nobody(arguments).fails_saying(5, &["ermission denied"]);
    }
    // Looking needs no writing.
    as_nobody(&["verify"]).ok();
    let fresh = sandbox.path("fresh");
    let mut command = Command::new(&binary);
    command.env_remove("DOGSLED_DIR").arg("-d").arg(&fresh).args(["put", "k", "v"]);
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    run(command).fails_saying(5, &["ermission denied"]);
    std::fs::set_permissions(sandbox.path(""), PermissionsExt::from_mode(0o755)).expect("ours");
}

#[test]
fn a_file_that_may_not_grow_is_an_io_error() {
    let sandbox = Sandbox::new();
    // What a full disk does, without filling one: no file may exceed 1 MiB.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_dogsled"), "-d"]).arg(sandbox.database());
    command.args(["put", "k", "v"]).env_remove("DOGSLED_DIR");
    run(command).fails_saying(5, &["File too large"]);
    // Nothing was acknowledged, and with room again everything works.
    sandbox.run(&["put", "k", "v"]).ok();
    assert_eq!(sandbox.run(&["get", "k"]).ok(), "v\n");
}

#[test]
fn another_programs_directory_with_a_folder_wal_gets_no_lock_file() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("etcd/wal")).expect("made");
    std::fs::write(sandbox.path("etcd/wal/0000000000000000-0000000000000000.wal"), [7; 9000])
        .expect("written");
    let directory = sandbox.argument("etcd");
    for command in [&["verify"][..], &["wal", "dump"], &["wal", "verify"]] {
        let arguments: Vec<&str> = command.iter().copied().chain([directory.as_str()]).collect();
        sandbox.run(&arguments).fails_saying(7, &["nothing in it was made by dogsled"]);
        assert!(!sandbox.path("etcd/LOCK").exists(), "{command:?}");
    }
}
