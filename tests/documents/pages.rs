//! What README.md and the pages in `docs/` say is so: every command line in them is executed, and every program.
//!
//! - A block of `sh` is executed, in order, with the others of its page: by bash, in an empty directory, with this
//!   build's `dogsled`. Addresses of loopback are replaced by free ones, `/tmp` by a directory of the page's own.
//!   `dogsled serve` in the foreground is another terminal: the script goes on when the node serves.
//! - A block of `rust` is compiled and executed by rustdoc, if `src/lib.rs` includes the page; that is looked at here.
//! - A block of `python` is executed with python3, if that has redis-py; otherwise that is said.
//! - What cannot be executed in a test says why not, in a comment before the block: `<!-- not run: it takes hours -->`.
//!   Suites of tests that are named there have to be there.
//! - Of a command line within a sentence, command and options have to be there; so do files that are named, and
//!   pages that are linked to.
//!
//! `cargo test` builds the examples that pages run. Run alone with `--test documents` this suite finds what was
//! built last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli_support::{dogsled, run, skipped};

/// A reason shorter than this explains nothing.
const LEAST_REASON: usize = 12;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, by their path below the root.
fn pages() -> BTreeMap<String, String> {
    let mut names = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).expect("there are pages") {
        let name = entry.expect("a readable directory").file_name().into_string().expect("text");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    let read = |name: String| {
        let text = std::fs::read_to_string(root().join(&name)).expect("a page can be read");
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// A fenced block.
#[derive(Debug)]
struct Block {
    /// Where it begins.
    line: usize,
    language: String,
    text: String,
    not_run: Option<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let (mut inside, mut not_run) = (false, None);
    for (number, line) in page.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if !inside {
                let language = language.trim().to_owned();
                let (line, text) = (number + 1, String::new());
                found.push(Block { line, language, text, not_run: not_run.take() });
            }
            inside = !inside;
        } else if inside {
            let block = found.last_mut().expect("one has begun");
            block.text.push_str(line);
            block.text.push('\n');
        } else if let Some(reason) = line.trim().strip_prefix("<!-- not run:") {
            not_run = Some(reason.trim_end_matches("-->").trim().to_owned());
        } else if !line.trim().is_empty() {
            not_run = None;
        }
    }
    assert!(!inside, "a block does not end");
    found
}

/// The text between backticks outside of blocks, with spaces for ends of lines.
fn code_spans(page: &str) -> Vec<String> {
    let mut prose = String::new();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            let _ = writeln!(prose, "{line}");
        }
    }
    let spans = prose.split('`').skip(1).step_by(2);
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn blocks_and_spans_are_found() {
    let page =
        "a `b c\nd`\n\n<!-- not run: it needs a reason -->\n```sh\ndogsled x\n```\n```text\n`y`\n```\n`z`\n";
    let found = blocks(page);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].line, &found[0].language[..], &found[0].text[..]), (5, "sh", "dogsled x\n"));
    assert_eq!(found[0].not_run.as_deref(), Some("it needs a reason"));
    assert_eq!((found[1].line, found[1].not_run.as_ref()), (8, None));
    assert_eq!(code_spans(page), ["b c d", "z"]);
}

#[test]
fn every_block_is_executed_or_says_why_not() {
    let library = std::fs::read_to_string(root().join("src/lib.rs")).expect("the library");
    for (name, page) in pages() {
        for block in blocks(&page) {
            let at = format!("{name}:{}", block.line);
            if let Some(reason) = &block.not_run {
                assert!(reason.len() >= LEAST_REASON, "{at}: why is it not run? {reason:?}");
                suites_are_there(&at, &block.text);
                continue;
            }
            match &block.language[..] {
                "sh" | "python" => {}
                "rust" => {
                    let included = format!("include_str!(\"../{name}\")");
                    assert!(library.contains(&included), "{at}: src/lib.rs does not include the page");
                }
                // Shown, not said to be a command or a program.
                "text" | "toml" => {}
                other => panic!("{at}: a block of {other:?}; name a language that this test knows"),
            }
        }
    }
}

/// Suites that are too long to be run here are there at least.
fn suites_are_there(at: &str, commands: &str) {
    for line in commands.lines().filter(|line| line.contains("cargo test")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |option: &str| {
            words.iter().position(|word| *word == option).and_then(|place| words.get(place + 1))
        };
        let directory = match after("-p").map(|package| package.strip_prefix("dogsled-").unwrap_or("")) {
            None | Some("") => root(),
            Some(part) => root().join(part),
        };
        if let Some(suite) = after("--test") {
            let there = ["tests/SUITE.rs", "tests/SUITE/main.rs"]
                .iter()
                .any(|path| directory.join(path.replace("SUITE", suite)).exists());
            assert!(there, "{at}: {line:?}: there is no such suite in {}", directory.display());
        }
    }
}

/// A port that is free for UDP and TCP, and 80 above for TCP, where the node's HTTP goes.
fn free_port() -> u16 {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("it is bound").port();
        let above = port.checked_add(80).is_some_and(|above| TcpListener::bind(("127.0.0.1", above)).is_ok());
        if above && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Gives each port of loopback in a script another one, and keeps those that are 80 apart so.
fn with_free_ports(script: &str, ports: &mut BTreeMap<u16, u16>) -> String {
    const HOST: &str = "127.0.0.1:";
    let numbers: BTreeSet<u16> = script
        .match_indices(HOST)
        .filter_map(|(at, _)| {
            let digits: String = script[at + HOST.len()..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok().filter(|port| *port > 0)
        })
        .collect();
    // In order: the lower of two that belong together comes first.
    for number in numbers {
        if !ports.contains_key(&number) {
            let below = number.checked_sub(80).and_then(|below| ports.get(&below));
            let free = below.map_or_else(free_port, |below| below + 80);
            ports.insert(number, free);
        }
    }
    let mut replaced = script.to_owned();
    for (number, free) in ports {
        replaced = replaced.replace(&format!("{HOST}{number}"), &format!("127.0.0.1\u{0}{free}"));
        // As redis-cli and Python name it.
        replaced = replaced.replace(&format!("-p {number}"), &format!("-p {free}"));
        replaced = replaced.replace(&format!("port={number}"), &format!("port={free}"));
    }
    replaced.replace('\u{0}', ":")
}

/// What a page's script begins with.
const PREAMBLE: &str = r#"
dogsled() {
    if [ "${1-}" != serve ]; then
        command dogsled "$@"
        return
    fi
    local said
    said=$(mktemp "$SANDBOX/served.XXXXXX")
    command dogsled "$@" --json > "$said" 2>> "$SANDBOX/log" &
    echo $! >> "$SANDBOX/pids"
    for _ in $(seq 600); do
        if grep -q '"serving"' "$said"; then return 0; fi
        if ! kill -0 $! 2> /dev/null; then cat "$said" "$SANDBOX/log"; return 1; fi
        sleep 0.1
    done
    echo "it does not serve"
    return 1
}
cargo() {
    case "$1 $2 ${3-}" in
    "run --release "*) while [ "$1" != -- ]; do shift; done; shift; dogsled "$@" ;;
    "run --example "*) "$EXAMPLES/$3" ;;
    *) echo "the test does not know how to do: cargo $*"; return 97 ;;
    esac
}
"#;

/// Ends what a page's script has started and left running, which is known by its id.
struct Ends(PathBuf);

impl Drop for Ends {
    fn drop(&mut self) {
        let pids = std::fs::read_to_string(&self.0).unwrap_or_default();
        for pid in pids
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .filter_map(rustix::process::Pid::from_raw)
        {
            // One that has ended already is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn python() -> Option<String> {
    let python = std::env::var("DOGSLED_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import redis"]).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success()).then_some(python)
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// What is executed of a page.
fn script(name: &str, page: &str) -> Option<String> {
    let (mut script, mut count) = (PREAMBLE.to_owned(), 0);
    for block in blocks(page).into_iter().filter(|block| block.not_run.is_none()) {
        let at = format!("{name}:{}", block.line);
        let text = match &block.language[..] {
            "sh" if block.text.contains("redis-cli") && !is_installed("redis-cli") => {
                skipped(&format!("{at}: redis-cli is not installed (apt-get install redis-tools)"));
                continue;
            }
            "sh" => block.text,
            "python" => match python() {
                Some(_) => format!("\"$PYTHON\" - <<'PROGRAM'\n{}PROGRAM\n", block.text),
                None => {
                    skipped(&format!(
                        "{at}: no redis-py; pip install redis, or name a python with DOGSLED_PYTHON"
                    ));
                    continue;
                }
            },
            _ => continue,
        };
        let _ = write!(script, "echo '## {at}'\n{text}");
        count += 1;
    }
    (count > 0).then_some(script)
}

#[test]
fn every_command_line_of_the_pages_is_executed() {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_dogsled"));
    let binaries = binary.parent().expect("a binary is in a directory");
    let mut executed = 0;
    for (name, page) in pages() {
        let Some(script) = script(&name, &page) else { continue };
        executed += 1;
        let place = tempfile::tempdir().expect("a temporary directory");
        let (work, own) = (place.path().join("work"), place.path().join("tmp"));
        for directory in [&work, &own] {
            std::fs::create_dir(directory).expect("a directory");
        }
        std::os::unix::fs::symlink(root().join("examples"), work.join("examples")).expect("a link");
        let mut ports = BTreeMap::from([(7400, free_port())]);
        let script = with_free_ports(&script, &mut ports).replace("/tmp/", &format!("{}/", own.display()));
        let _ends = Ends(place.path().join("pids"));
        let output = bash(&script, &work)
            .env(
                "PATH",
                format!("{}:{}", binaries.display(), std::env::var("PATH").expect("there is a path")),
            )
            .env("EXAMPLES", binaries.join("examples"))
            .env("PYTHON", python().unwrap_or_default())
            .env("SANDBOX", place.path())
            // What commands take if they are told nothing.
            .env("DOGSLED_LISTEN", format!("127.0.0.1:{}", ports[&7400]))
            .env("DOGSLED_TIMEOUT", "60")
            .output()
            .expect("bash starts");
        assert!(
            output.status.success(),
            "{name}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(executed >= 4, "only {executed} pages have commands");
}

fn bash(script: &str, directory: &Path) -> Command {
    let mut command = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DOGSLED_")) {
            command.env_remove(name);
        }
    }
    command.args(["-e", "-u", "-o", "pipefail", "-c", script]).current_dir(directory).stdin(Stdio::null());
    command
}

/// What `dogsled WORDS --help` says.
fn help(words: &[&str]) -> Option<String> {
    let mut command = dogsled();
    command.args(words).arg("--help");
    let said = run(command);
    (said.code == 0).then_some(said.stdout)
}

/// The commands that a help lists.
fn commands(help: &str) -> BTreeSet<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| line.starts_with("  "));
    // Deeper lines go on with what a command does.
    listed
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// What is wrong with a command line in a sentence.
fn wrong_with(line: &str) -> Option<String> {
    let top = help(&[]).expect("there is help");
    let (mut words, mut said) = (Vec::new(), top);
    let mut listed = commands(&said);
    let mut options = Vec::new();
    for word in line.split_whitespace().skip(1).take_while(|word| *word != "--") {
        if listed.contains(word) {
            words.push(word);
            said = help(&words)?;
            listed = commands(&said);
        } else if let Some(option) = word.strip_prefix("--") {
            options.push(option.split(['=', ']', ',']).next().unwrap_or(option));
        } else if words.is_empty()
            && word.chars().all(|letter| letter.is_ascii_lowercase())
            && !line.contains("-d ")
        {
            return Some(format!("there is no command {word:?}"));
        }
    }
    let known = |option: &&str| {
        // As in `--init[=<BOOL>]`.
        said.split_whitespace()
            .any(|word| word.split(['=', '[', ']', ',']).next() == Some(&format!("--{option}")))
    };
    let unknown = options.iter().find(|option| !known(option))?;
    Some(format!("`dogsled {}` has no option --{unknown}", words.join(" ")))
}

#[test]
fn files_that_are_named_and_pages_that_are_linked_to_are_there() {
    let entries = std::fs::read_dir(root()).expect("the root can be read");
    let top: BTreeSet<String> = entries
        .map(|entry| entry.expect("a readable directory").file_name().into_string().expect("text"))
        .collect();
    let mut looked_at = 0;
    for (name, page) in pages() {
        for span in code_spans(&page) {
            // What begins with a directory of the repository's root is a file or a directory of it.
            let is_path = span.split_once('/').is_some_and(|(first, _)| top.contains(first));
            if is_path && !span.contains(' ') {
                assert!(root().join(&span).exists(), "{name}: there is no {span}");
                looked_at += 1;
            }
        }
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let link = link.split('#').next().unwrap_or_default();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let page = root().join(&name);
            let target = page.parent().expect("it is in a directory").join(link);
            assert!(target.exists(), "{name} links to {link}, which is not there");
            looked_at += 1;
        }
    }
    assert!(looked_at >= 30, "only {looked_at} files were found");
}

#[test]
fn command_lines_in_sentences_name_commands_and_options_that_there_are() {
    assert!(wrong_with("dogsled frobnicate").is_some());
    assert!(wrong_with("dogsled status --frobnicate").is_some());
    assert_eq!(wrong_with("dogsled tree hash NAME --before /"), None);
    let mut looked_at = 0;
    for (name, page) in pages() {
        for span in code_spans(&page) {
            for line in span
                .split('|')
                .map(str::trim)
                .filter(|line| line.starts_with("dogsled ") && !line.contains(" = "))
            {
                assert_eq!(wrong_with(line), None, "{name}: `{span}`");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at >= 10, "only {looked_at} command lines were found");
}
