//! `dogsled export` and `dogsled import`.

use crate::cli_support::Sandbox;

/// A database with two trees, one of them with binary keys, and a counter.
fn sample() -> Sandbox {
    let sandbox = Sandbox::new();
    let lines: String = (0..5_000).map(|number| format!("key{number:05}\tvalue {number}\n")).collect();
    sandbox.fill(&lines);
    sandbox.run(&["-t", "binary\\xff", "put", "\\x00\\xff", "-f", "hex", "00ff0a"]).ok();
    sandbox.run(&["counter", "add", "visits", "42"]).ok();
    sandbox
}

fn listing(sandbox: &Sandbox) -> String {
    let mut all = sandbox.run(&["trees"]).ok();
    for tree in ["__sled__default", "binary\\xff"] {
        all.push_str(&sandbox.run(&["scan", "-t", tree]).ok());
    }
    all.push_str(&sandbox.run(&["counter", "get", "visits"]).ok());
    all
}

#[test]
fn an_archive_carries_everything_over() {
    let sandbox = sample();
    let file = sandbox.argument("all.dogsled");
    let summary = sandbox.run(&["export", &file]).ok();
    assert!(summary.starts_with("5,002 records of 3 trees exported to"), "{summary}");
    let copy = Sandbox::new();
    copy.run(&["import", &file]).ok();
    assert_eq!(listing(&copy), listing(&sandbox));
    // Through pipes, too.
    let archive = sandbox.command(&["export"]).output().expect("runs").stdout;
    assert_eq!(archive, std::fs::read(&file).expect("exported"));
    let piped = Sandbox::new();
    assert_eq!(
        piped.run_with_input(&["import", "-"], &archive).ok(),
        "5,002 records of 3 trees imported (86.8 KiB)\n"
    );
    assert_eq!(listing(&piped), listing(&sandbox));
}

#[test]
fn json_lines_carry_everything_over() {
    let sandbox = sample();
    let file = sandbox.argument("all.jsonl");
    sandbox.run(&["export", &file]).ok();
    let text = std::fs::read_to_string(&file).expect("exported");
    assert!(
        text.starts_with("{\"key\":\"key00000\",\"tree\":\"__sled__default\",\"value\":\"value 0\"}\n")
            || text.contains("visits"),
        "{}",
        &text[..100]
    );
    assert!(text.contains("{\"key\":{\"base64\":\"AP8=\"},\"tree\":{\"base64\":\"YmluYXJ5/w==\"},\"value\":{\"base64\":\"AP8K\"}}"));
    let copy = Sandbox::new();
    copy.run(&["import", &file]).ok();
    assert_eq!(listing(&copy), listing(&sandbox));
}

#[test]
fn one_tree_can_be_chosen_on_either_side() {
    let sandbox = sample();
    let (one, all) = (sandbox.argument("one.dogsled"), sandbox.argument("all.dogsled"));
    sandbox.run(&["export", &one, "-t", "binary\\xff"]).ok();
    sandbox.run(&["export", &all]).ok();
    sandbox.run(&["export", &one, "-t", "nope"]).fails_saying(1, &["no tree \"nope\""]);
    for file in [&one, &all] {
        let copy = Sandbox::new();
        copy.run(&["import", file, "-t", "binary\\xff"]).ok();
        assert_eq!(copy.run(&["trees"]).ok(), "__sled__default\t0\nbinary\\xff\t1\n");
    }
    Sandbox::new().run(&["import", &all, "-t", "nope"]).fails_saying(1, &["no tree \"nope\""]);
}

#[test]
fn a_damaged_export_is_refused_as_a_whole() {
    let sandbox = sample();
    let file = sandbox.argument("all.dogsled");
    sandbox.run(&["export", &file]).ok();
    let sound = std::fs::read(&file).expect("exported");
    let step = sound.len() / 23;
    for damage in 0..23 {
        let mut bytes = sound.clone();
        bytes[damage * step] ^= 0x10;
        let damaged = sandbox.file("damaged.dogsled", &bytes);
        let copy = Sandbox::new();
        copy.run(&["import", &damaged, "--format", "archive"])
            .fails_saying(6, &["damaged.dogsled: offset ", "nothing was imported"]);
        assert!(!copy.database().exists());
    }
    let cut = sandbox.file("cut.dogsled", &sound[..sound.len() - 9]);
    let copy = Sandbox::new();
    copy.run(&["import", &cut]).fails_saying(6, &["cut short", "nothing was imported"]);
    copy.run_with_input(&["import", "-"], &sound[..sound.len() / 2]).fails_saying(6, &["cut short"]);
    let text = sandbox.file("text", "a\t1\n");
    copy.run(&["import", &text]).fails_saying(6, &["not an export of dogsled"]);
    let jsonl = sandbox.file("bad.jsonl", "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\"}\n");
    copy.run(&["import", &jsonl]).fails_saying(6, &["line 2: missing field `value`", "nothing was imported"]);
    assert!(!copy.database().exists());
}

#[test]
fn a_newer_export_is_refused_by_its_version() {
    let sandbox = sample();
    let file = sandbox.argument("all.dogsled");
    sandbox.run(&["export", &file]).ok();
    let mut bytes = std::fs::read(&file).expect("exported");
    bytes[8] = 2;
    let check = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&check.to_le_bytes());
    let newer = sandbox.file("newer.dogsled", bytes);
    Sandbox::new().run(&["import", &newer]).fails_saying(6, &["version 2", "reads version 1"]);
}

#[test]
fn keys_that_are_there_are_not_overwritten_unasked() {
    let sandbox = sample();
    let file = sandbox.argument("all.dogsled");
    sandbox.run(&["export", &file]).ok();
    sandbox.run(&["put", "key00000", "changed"]).ok();
    sandbox.run(&["import", &file]).fails_saying(8, &["nothing was imported", "--merge"]);
    assert_eq!(sandbox.run(&["get", "key00000"]).ok(), "changed\n");
    sandbox.run(&["put", "new", "kept"]).ok();
    sandbox.run(&["import", &file, "--merge"]).ok();
    assert_eq!(sandbox.run(&["get", "key00000"]).ok(), "value 0\n");
    assert_eq!(sandbox.run(&["get", "new"]).ok(), "kept\n");
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let sandbox = sample();
    let nowhere = sandbox.argument("no/such/directory/all.dogsled");
    sandbox.run(&["export", &nowhere]).fails_saying(5, &["No such file"]);
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    let output = sandbox.command(&["export"]).stdout(full).output().expect("runs");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn an_output_file_never_takes_the_place_of_what_is_no_file_or_belongs_to_the_database() {
    use std::os::unix::fs::FileTypeExt as _;
    let sandbox = sample();
    // Its own files: refused, and nothing is lost.
    for own in ["MANIFEST", "tree.redb", "wal/0000000000000001.wal", "new.dogsled"] {
        let own = sandbox.database().join(own).display().to_string();
        sandbox.run(&["export", &own]).fails_saying(8, &["lies within the database"]);
        sandbox.run(&["get", "key00000", "-o", &own]).fails_saying(8, &["lies within the database"]);
    }
    std::os::unix::fs::symlink(sandbox.database().join("MANIFEST"), sandbox.path("link")).expect("a link");
    sandbox.run(&["export", &sandbox.argument("link")]).fails_saying(8, &["lies within the database"]);
    let before = listing(&sandbox);
    // A pipe is written through.
    let pipe = sandbox.argument("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("a pipe")
    });
    sandbox.run(&["export", &pipe]).ok();
    let file = sandbox.argument("all.dogsled");
    sandbox.run(&["export", &file]).ok();
    assert_eq!(reader.join().expect("read"), std::fs::read(&file).expect("exported"));
    assert!(std::fs::metadata(&pipe).expect("it is there").file_type().is_fifo());
    // Of a link, what it points to.
    std::fs::write(sandbox.path("old"), "old").expect("writable");
    std::os::unix::fs::symlink("old", sandbox.path("to-old")).expect("a link");
    sandbox.run(&["get", "key00007", "-o", &sandbox.argument("to-old")]).ok();
    assert_eq!(std::fs::read_to_string(sandbox.path("old")).expect("written"), "value 7");
    assert!(std::fs::symlink_metadata(sandbox.path("to-old")).expect("there").is_symlink());
    // A target that cannot be: nothing is left beside it.
    std::fs::create_dir(sandbox.path("directory")).expect("a directory");
    sandbox.run(&["export", &sandbox.argument("directory")]).fails_saying(5, &["directory"]);
    assert_eq!(listing(&sandbox), before);
    let left = std::fs::read_dir(sandbox.path("")).expect("listed");
    let left: Vec<_> = left.map(|entry| entry.expect("listed").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

#[test]
fn wrong_usage_is_told_in_json_where_json_is_asked_for() {
    let sandbox = sample();
    for wrong in [&["--json", "put", "a"][..], &["scan", "--json", "--limit", "foo"], &["--json", "nonsense"]]
    {
        let told = sandbox.run(wrong).fails(2);
        assert!(told.starts_with("{\"code\":2,\"error\":\""), "{told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{told}");
    }
    assert!(sandbox.run(&["put", "a"]).fails(2).contains("Usage:"));
    // An option for all commands before a subcommand of a subcommand.
    let holder = sandbox.run(&["--json", "lock", "holder", "l"]);
    assert_eq!(holder.code, 1, "{holder:?}");
}

#[test]
fn what_is_empty_moves_too_and_text_may_begin_with_a_mark_or_a_blank_line() {
    let sandbox = Sandbox::new();
    sandbox.run(&["put", "k", "v"]).ok();
    sandbox.run(&["del", "k"]).ok();
    for name in ["none.jsonl", "none.dogsled"] {
        let file = sandbox.argument(name);
        sandbox.run(&["export", &file]).ok();
        let copy = Sandbox::new();
        copy.run(&["import", &file]).ok();
    }
    for start in ["\u{feff}", "\n", "\u{feff}\n  "] {
        let file = sandbox.file("some.txt", format!("{start}{{\"key\":\"a\",\"value\":\"1\"}}\n"));
        let copy = Sandbox::new();
        copy.run(&["import", &file]).ok();
        assert_eq!(copy.run(&["get", "a"]).ok(), "1\n", "{start:?}");
    }
}

#[test]
fn times_to_live_are_carried_over_in_both_formats() {
    let sandbox = sample();
    let expire = |key: &str, seconds: &str| drop(sandbox.run(&["expire", key, seconds]).ok());
    expire("key00003", "5000");
    expire("key04999", "9000");
    sandbox.run(&["expire", "\\x00\\xff", "7000", "-t", "binary\\xff"]).ok();
    for (file, format) in [("all.dogsled", "archive"), ("all.jsonl", "jsonl")] {
        let file = sandbox.argument(file);
        let summary = sandbox.run(&["export", &file]).ok();
        assert!(summary.starts_with("5,002 records of 3 trees exported to"), "{summary}");
        let copy = Sandbox::new();
        let summary = copy.run(&["import", &file, "--format", format]).ok();
        assert!(summary.starts_with("5,002 records of 3 trees imported"), "{summary}");
        assert_eq!(listing(&copy), listing(&sandbox));
        let ttl = |arguments: &[&str]| -> i64 { copy.run(arguments).ok().trim().parse().expect("seconds") };
        assert!((4_900..=5_000).contains(&ttl(&["ttl", "key00003"])));
        assert!((8_900..=9_000).contains(&ttl(&["ttl", "key04999"])));
        assert!((6_900..=7_000).contains(&ttl(&["ttl", "\\x00\\xff", "-t", "binary\\xff"])));
        assert_eq!(
            copy.run(&["ttl", "key00000"]).ok(),
            "forever
"
        );
        let text = |of: &Sandbox| of.run(&["export", "--format", "jsonl"]).ok();
        assert_eq!(text(&copy), text(&sandbox), "to the millisecond");
    }
    // What is over when it is imported does not come back.
    let line = r#"{"key":"gone","value":"v","expires_ms":1}"#;
    // A line says all of its key: one that came with an end before stays.
    let stays = r#"{"key":"stays","value":"before","expires_ms":1}
{"key":"stays","value":"v"}"#;
    let file = sandbox.file(
        "some.jsonl",
        format!(
            "{line}
{stays}
"
        ),
    );
    let copy = Sandbox::new();
    copy.run(&["import", &file]).ok();
    assert_eq!(
        copy.run(&["scan"]).ok(),
        "stays	v
"
    );
}

/// A stream, block by block.
fn archive(blocks: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = [&b"DGSLDEXP"[..], &1u32.to_le_bytes()].concat();
    let mut check = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&check.to_le_bytes());
    for (kind, payload) in blocks {
        let block = [&[*kind][..], &(payload.len() as u32).to_le_bytes(), payload].concat();
        check = crc32fast::hash(&[&check.to_le_bytes()[..], &block].concat());
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&check.to_le_bytes());
    }
    bytes
}

#[test]
fn an_export_of_an_earlier_build_whose_times_come_behind_the_keys_is_imported_too() {
    let tree = |kind: &str, name: &str| {
        (b'T', [&(kind.len() as u32).to_le_bytes()[..], kind.as_bytes(), name.as_bytes()].concat())
    };
    let records = |pairs: &[(&str, &[u8])]| {
        let record = |(key, value): &(&str, &[u8])| {
            let lengths = [key.len() as u32, value.len() as u32].map(u32::to_le_bytes);
            [lengths.as_flattened(), key.as_bytes(), value].concat()
        };
        (b'R', pairs.iter().flat_map(record).collect::<Vec<u8>>())
    };
    let end = |count: u64| (b'E', count.to_le_bytes().to_vec());
    let whole = archive(&[
        tree("tree", "t"),
        records(&[("a", b"1"), ("b", b"2"), ("c", b"3")]),
        end(3),
        tree("times to live", "t"),
        records(&[("a", &4_102_444_800_123u64.to_le_bytes()), ("b", &1u64.to_le_bytes())]),
        end(2),
        (b'Z', [2u64.to_le_bytes(), 5u64.to_le_bytes()].concat()),
    ]);
    let sandbox = Sandbox::new();
    let file = sandbox.file("earlier.dogsled", whole);
    let summary = sandbox.run(&["import", &file]).ok();
    assert!(summary.starts_with("3 records of 1 tree imported"), "{summary}");
    let text = sandbox.run(&["export", "--format", "jsonl", "-t", "t"]).ok();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 2, "what was over is gone: {text}");
    assert!(lines[0].contains(r#""a""#) && lines[0].contains("4102444800123"), "{text}");
    assert!(lines[1].contains(r#""c""#) && !lines[1].contains("expires"), "{text}");
}

#[test]
fn options_that_a_command_would_not_look_at_are_refused() {
    let sandbox = sample();
    let copy = sandbox.argument("copy");
    for arguments in [
        &["backup", &copy][..],
        &["verify"],
        &["stats"],
        &["trees"],
        &["counter", "get", "c"],
        &["wal", "verify"],
        &["serve"],
    ] {
        let arguments = [&["-t", "nosuch"], arguments].concat();
        sandbox.run(&arguments).fails_saying(2, &["--tree", "nothing was done"]);
    }
    sandbox.run(&["serve"]).fails_saying(2, &["--data"]);
    assert!(!sandbox.path("copy").exists());
}

#[test]
fn a_directory_is_imported_as_it_is() {
    let sandbox = sample();
    sandbox.run(&["expire", "key00003", "5000"]).ok();
    let before = listing(&sandbox);
    let token = sandbox.run(&["lock", "acquire", "sled", "--owner", "ann"]).ok();
    let with_lock = listing(&sandbox);
    let source = sandbox.database().display().to_string();
    let copy = Sandbox::new();
    assert_eq!(copy.run(&["import", &source]).ok(), "5,002 records of 3 trees imported (86.8 KiB)\n");
    assert_eq!(listing(&copy), before);
    let left: i64 = copy.run(&["ttl", "key00003"]).ok().trim().parse().expect("seconds");
    assert!((4_900..=5_000).contains(&left), "{left}");
    copy.run(&["lock", "holder", "sled"]).fails(1);
    copy.run(&["import", &source]).fails_saying(8, &["nothing was imported", "--merge"]);
    copy.run(&["import", &source, "--merge"]).ok();
    assert_eq!(listing(&copy), before);
    // It stays as it was, with the lock.
    assert_eq!(listing(&sandbox), with_lock);
    assert!(sandbox.run(&["lock", "holder", "sled"]).ok().contains(&format!("token {}", token.trim_end())));

    let one = Sandbox::new();
    one.run(&["import", &source, "-t", "binary\\xff"]).ok();
    assert_eq!(one.run(&["trees"]).ok(), "__sled__default\t0\nbinary\\xff\t1\n");
    let none = Sandbox::new();
    none.run(&["import", &source, "-t", "nope"]).fails_saying(1, &["no tree \"nope\""]);
    none.run(&["import", &source, "--format", "archive"]).fails_saying(2, &["is a directory"]);
    std::fs::create_dir(none.path("empty")).expect("a directory");
    none.run(&["import", &none.argument("empty")]).fails_saying(7, &["empty"]);
    assert!(!none.database().exists());
    // Not into itself.
    assert_eq!(sandbox.run(&["import", &source, "--merge"]).code, 3);
    assert_eq!(listing(&sandbox), with_lock);
}

#[test]
fn hashes_go_through_directories_in_both_formats() {
    let fields: Vec<String> = (0..2_500).map(|number| format!(r#"["f{number:05}","v{number}"]"#)).collect();
    let line = |fields: &[String], more: &str| {
        format!("{{\"tree\":\"t\",\"key\":\"large\",\"hash\":[{}]{more}}}\n", fields.join(","))
    };
    let lines = [
        "{\"tree\":\"t\",\"key\":\"plain\",\"value\":\"1\"}\n".to_owned(),
        "{\"tree\":\"t\",\"key\":{\"hex\":\"00ff\"},\"hash\":[[{\"base64\":\"/w==\"},null]],\"expires_ms\":4102444800000}\n"
            .to_owned(),
        line(&fields[..2_000], ""),
        line(&fields[2_000..], ",\"continued\":true"),
        "{\"key\":\"over\",\"hash\":[[\"f\",\"v\"]],\"expires_ms\":1}\n".to_owned(),
        "{\"key\":\"twice\",\"hash\":[[\"before\",\"v\"]]}\n".to_owned(),
        "{\"key\":\"twice\",\"hash\":[[\"after\",\"v\"]]}\n".to_owned(),
    ];
    let sandbox = Sandbox::new();
    let file = sandbox.file("some.jsonl", lines.concat());
    let summary = sandbox.run(&["import", &file]).ok();
    assert!(summary.starts_with("6 records of 2 trees imported"), "{summary}");
    let exported = sandbox.run(&["export", "--format", "jsonl"]).ok();
    assert_eq!(exported.matches("\"continued\":true").count(), 2, "in bounded lines");
    assert!(fields.iter().all(|field| exported.contains(field.as_str())), "{exported}");
    for part in [
        r#"{"expires_ms":4102444800000,"hash":[[{"base64":"/w=="},"null"]],"key":{"base64":"AP8="},"tree":"t"}"#,
        r#"{"key":"plain","tree":"t","value":"1"}"#,
        r#"{"hash":[["after","v"]],"key":"twice","tree":"__sled__default"}"#,
    ] {
        assert!(exported.contains(part), "{part}");
    }
    assert!(!exported.contains("over") && !exported.contains("before"));
    assert_eq!(sandbox.run(&["trees"]).ok(), "__sled__default\t1\nt\t3\n");

    let archive = sandbox.argument("all.dogsled");
    let summary = sandbox.run(&["export", &archive]).ok();
    assert!(summary.starts_with("4 records of 2 trees exported"), "{summary}");
    let copy = Sandbox::new();
    let summary = copy.run(&["import", &archive]).ok();
    assert!(summary.starts_with("4 records of 2 trees imported"), "{summary}");
    assert_eq!(copy.run(&["export", "--format", "jsonl"]).ok(), exported);
    copy.run(&["import", &archive]).fails_saying(8, &["nothing was imported", "--merge"]);
    copy.run(&["import", &archive, "--merge"]).ok();
    assert_eq!(copy.run(&["export", "--format", "jsonl"]).ok(), exported);
    let other = Sandbox::new();
    other.run(&["import", &sandbox.database().display().to_string()]).ok();
    assert_eq!(other.run(&["export", "--format", "jsonl"]).ok(), exported);
    assert_eq!(copy.run(&["verify"]).code, 0);

    // A line that is missing is noticed, and nothing is applied.
    let none = Sandbox::new();
    let file = none.file("some.jsonl", [&lines[0][..], &lines[3]].concat());
    none.run(&["import", &file])
        .fails_saying(6, &["line 2", "goes on with the hash", "nothing was imported"]);
    assert!(!none.database().exists());
    // And what `load` takes, it takes of hashes too.
    let file = none.file("hash.jsonl", "{\"key\":\"h\",\"hash\":[[\"f\",\"v\"]]}\n");
    none.run(&["load", &file]).ok();
    assert!(none.run(&["export", "--format", "jsonl"]).ok().contains(r#""hash":[["f","v"]]"#));
}

#[test]
fn an_import_makes_no_tree_of_the_database_s_own() {
    let sandbox = Sandbox::new();
    for tree in ["__dogsled__sealed:users", "__dogsled__restore", "__dogsled__quotas"] {
        let line = format!("{{\"tree\":\"{tree}\",\"key\":\"k\",\"value\":\"v\"}}\n");
        let file = sandbox.file("own.jsonl", line);
        sandbox.run(&["import", &file]).fails_saying(6, &[tree, "nothing was imported"]);
    }
    assert!(!sandbox.database().exists());
}

#[test]
fn lines_that_name_no_tree_are_of_the_default_tree_when_that_is_chosen() {
    let sandbox = Sandbox::new();
    let lines = [
        r#"{"key":"a","value":"1"}"#,
        r#"{"tree":"other","key":"b","value":"2"}"#,
        r#"{"tree":"__sled__default","key":"c","value":"3"}"#,
        "",
    ];
    let file = sandbox.file("some.jsonl", lines.join("\n"));
    let summary = sandbox.run(&["import", &file, "-t", "__sled__default"]).ok();
    assert!(summary.starts_with("2 records of 1 tree imported"), "{summary}");
    assert_eq!(sandbox.run(&["get", "a"]).ok(), "1\n");
    assert_eq!(sandbox.run(&["trees"]).ok(), "__sled__default\t2\n");
}
