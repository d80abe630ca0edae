//! `dogsled load`: every format, and what happens when the input is wrong.

use crate::cli_support::Sandbox;

#[test]
fn loads_tsv_by_its_name() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("fruit.tsv", "apple\tred\nbanana\tyel\\tlow\n\nplum\t\n");
    assert_eq!(sandbox.run(&["load", &file]).ok(), "3 records (25 B) loaded\n");
    assert_eq!(sandbox.run(&["scan"]).ok(), "apple\tred\nbanana\tyel\\tlow\nplum\t\n");
    // Again: the same keys are overwritten.
    let summary = sandbox.run(&["load", &file, "--json"]).ok();
    assert_eq!(summary, "{\"bytes\":25,\"dry_run\":false,\"records\":3,\"skipped\":0}\n");
    assert_eq!(sandbox.run(&["count"]).ok(), "3\n");
}

#[test]
fn loads_csv_with_a_chosen_key() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("people.csv", "name,city,age\n\"Ann, A.\",Oslo,30\nBo,\"Rio\nNorte\",40\n");
    sandbox.run(&["load", &file, "--tree", "people"]).ok();
    assert_eq!(
        sandbox.run(&["scan", "-t", "people"]).ok(),
        "Ann, A.\t{\"city\":\"Oslo\",\"age\":\"30\"}\nBo\t{\"city\":\"Rio\\\\nNorte\",\"age\":\"40\"}\n"
    );
    sandbox.run(&["load", &file, "-t", "ages", "--key", "city", "--value", "age"]).ok();
    assert_eq!(sandbox.run(&["scan", "-t", "ages"]).ok(), "Oslo\t30\nRio\\nNorte\t40\n");
    let passwd = sandbox.file("passwd", "root:x:0:0:root:/root:/bin/bash\nbin:x:2:2::/bin:/bin/sh\n");
    sandbox
        .run(&[
            "load",
            &passwd,
            "--format",
            "csv",
            "--delimiter",
            ":",
            "--no-header",
            "--value",
            "7",
            "-t",
            "shells",
        ])
        .ok();
    assert_eq!(sandbox.run(&["get", "root", "-t", "shells"]).ok(), "/bin/bash\n");
}

#[test]
fn loads_json_lines() {
    let sandbox = Sandbox::new();
    let input = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":{\"base64\":\"AP8=\"},\"value\":{\"x\": 1.0}}\n\
                 {\"tree\":\"other\",\"key\":\"b\",\"value\":{\"hex\":\"ff\"}}\n";
    sandbox.run(&["load", &sandbox.file("in.jsonl", input)]).ok();
    assert_eq!(sandbox.run(&["scan"]).ok(), "\\x00\\xff\t{\"x\": 1.0}\na\t1\n");
    assert_eq!(sandbox.run(&["scan", "-t", "other"]).ok(), "b\t\\xff\n");
    let events = "{\"id\":7,\"what\":\"start\"}\n{\"id\":8,\"what\":\"stop\"}\n";
    sandbox.run_with_input(&["load", "-", "--format", "jsonl", "--key", "id", "-t", "events"], events).ok();
    assert_eq!(sandbox.run(&["get", "7", "-t", "events"]).ok(), "{\"id\":7,\"what\":\"start\"}\n");
}

#[test]
fn loads_what_redis_cli_takes() {
    let sandbox = Sandbox::new();
    let lines = "SET user:1 \"Ann A.\"\nSET user:2 Bo\nMSET a 1 b 2\nDEL user:2\n";
    sandbox.run_with_input(&["load", "-", "--format", "redis"], lines).ok();
    assert_eq!(sandbox.run(&["scan"]).ok(), "a\t1\nb\t2\nuser:1\tAnn A.\n");
    let protocol = b"*3\r\n$3\r\nSET\r\n$3\r\nbin\r\n$4\r\n\r\n\x00\xff\r\n*2\r\n$3\r\nDEL\r\n$1\r\na\r\n";
    let file = sandbox.file("dump.resp", protocol);
    sandbox.run(&["load", &file]).ok();
    assert_eq!(sandbox.run(&["scan", "--prefix", "b"]).ok(), "b\t2\nbin\t\\r\\n\\x00\\xff\n");
    assert_eq!(sandbox.run(&["count"]).ok(), "3\n");
}

#[test]
fn stops_at_the_first_wrong_line_and_says_what_is_loaded() {
    let sandbox = Sandbox::new();
    // More than one batch before the wrong line.
    let mut input: String = (0..10_000).map(|number| format!("k{number:05}\tv\n")).collect();
    input.push_str("no tab here\nz\tnever\n");
    let file = sandbox.file("long.tsv", input);
    sandbox.run(&["load", &file]).fails_saying(
        6,
        &[
            "long.tsv: line 10001: 1 field where the first row has 2",
            "the 10,000 records before it were loaded",
            "nothing after",
        ],
    );
    assert_eq!(sandbox.run(&["count"]).ok(), "10000\n");
    sandbox.run(&["get", "z"]).fails(1);

    let failed = sandbox.run(&["load", &file, "--json", "-t", "json"]);
    assert_eq!(failed.code, 6);
    let report = failed.stderr;
    assert!(report.contains("\"loaded\":10000") && report.contains("\"place\":\"line 10001\""), "{report}");

    let skipping = sandbox.run(&["load", &file, "--skip-bad", "-t", "skipping"]);
    assert_eq!(skipping.code, 0);
    assert!(skipping.stdout.ends_with("loaded, 1 bad record skipped\n"), "{skipping:?}");
    assert!(skipping.stderr.contains("line 10001: 1 field"), "{skipping:?}");
    assert_eq!(sandbox.run(&["get", "z", "-t", "skipping"]).ok(), "never\n");
}

#[test]
fn each_format_names_the_wrong_line() {
    let long_key = format!("a\t1\n{}\t2\n", "k".repeat(70_000));
    for (format, input, parts) in [
        (
            "tsv",
            "a\t1\nb\t\\y\n",
            &["line 2: value: unknown escape \\y", "the 1 record before it was loaded"][..],
        ),
        ("tsv", long_key.as_str(), &["line 2: a key of 70000 bytes is over the limit of 65536"]),
        ("csv", "id,v\n1,a\n2,\"open\n3,b\n", &["line 3: the quote that opens field 2 is never closed"]),
        ("csv", "id,v\n1,a,b\n", &["line 2: 3 fields where the first row has 2", "nothing was loaded"]),
        (
            "jsonl",
            "{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\",\"vaule\":1}\n",
            &["line 2: unknown field `vaule`"],
        ),
        ("jsonl", "{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\"", &["line 2: EOF while parsing"]),
        ("redis", "SET a 1\nEXPIRE a 10\n", &["line 2: unknown command \"EXPIRE\""]),
        ("redis", "SET a 1\nSET a 1 EX 10\n", &["line 2: SET with the option \"EX\""]),
        ("redis", "*2\r\n$3\r\nDEL\r\n$1\r\na\r\n*9\r\n", &["offset 24: the file ends within a command"]),
    ] {
        let sandbox = Sandbox::new();
        sandbox.run_with_input(&["load", "-", "--format", format], input).fails_saying(6, parts);
    }
}

#[test]
fn a_wrong_file_makes_no_database() {
    let sandbox = Sandbox::new();
    let picture = sandbox.file("picture.tsv", [&b"\x89PNG\r\n\x1a\n"[..], &[0; 300]].concat());
    sandbox.run(&["load", &picture]).fails_saying(6, &["picture.tsv: line 1:", "nothing was loaded"]);
    let unknown = sandbox.file("data.bin", "a\t1\n");
    sandbox.run(&["load", &unknown]).fails_saying(2, &["data.bin", "--format"]);
    sandbox
        .run(&["load", &sandbox.argument("missing.tsv")])
        .fails_saying(5, &["missing.tsv", "No such file"]);
    sandbox.run(&["load", &sandbox.argument(""), "--format", "tsv"]).fails_saying(2, &["is a directory"]);
    sandbox.run(&["load", &unknown, "--format", "redis", "--key", "1"]).fails(2);
    sandbox
        .run(&["load", &unknown, "--format", "csv", "--key", "nope"])
        .fails_saying(6, &["no column \"nope\""]);
    assert!(!sandbox.database().exists());
}

#[test]
fn a_dry_run_reads_everything_and_writes_nothing() {
    let sandbox = Sandbox::new();
    let good = sandbox.file("good.tsv", "a\t1\nb\t2\n");
    assert_eq!(sandbox.run(&["load", &good, "--dry-run"]).ok(), "2 records (4 B) read, nothing written\n");
    let bad = sandbox.file("bad.tsv", "a\t1\nb\n");
    sandbox.run(&["load", &bad, "--dry-run"]).fails_saying(6, &["line 2", "nothing was loaded"]);
    assert!(!sandbox.database().exists());
}

#[test]
fn an_empty_file_is_no_error() {
    let sandbox = Sandbox::new();
    let empty = sandbox.file("empty.csv", "");
    assert_eq!(sandbox.run(&["load", &empty]).ok(), "0 records (0 B) loaded\n");
}
