//! Every program in `examples/` runs to its end (each checks itself with assertions), and the
//! commands in docs/binary.md do what they should.
//!
//! `cargo test` builds them beside the test binaries. Run alone with `--test documents` this
//! suite finds what was built last.

use std::path::PathBuf;
use std::process::Command;

fn examples_directory() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_dogsled"));
    binary.parent().expect("a binary is in a directory").join("examples")
}

#[test]
fn every_example_runs() {
    let sources =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).expect("there are examples");
    let mut ran = 0;
    for source in sources {
        let source = source.expect("a readable directory").path();
        if source.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let name = source.file_stem().expect("it has an extension");
        let program = examples_directory().join(name);
        assert!(program.exists(), "{} is not built; run `cargo build --examples`", program.display());
        let output = Command::new(&program).output().expect("an example starts");
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{name:?}: {}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ran += 1;
    }
    assert!(ran >= 6, "only {ran} examples ran");
}

#[test]
fn the_tour_of_the_binary_works() {
    let page = include_str!("../../docs/binary.md");
    let start = page.find("export DOGSLED_DIR=").expect("the tour begins with it");
    let tour = &page[start..];
    let tour = &tour[..tour.find("```").expect("the block ends")];
    let place = tempfile::tempdir().expect("a temporary directory");
    let script = tour.replace("/tmp/", &format!("{}/", place.path().display()));
    assert!(script.lines().count() >= 12, "{script}");

    let binary = PathBuf::from(env!("CARGO_BIN_EXE_dogsled"));
    let path = std::env::var("PATH").expect("there is a path");
    let output = Command::new("bash")
        .args(["-e", "-u", "-o", "pipefail", "-c", &script])
        .env("PATH", format!("{}:{path}", binary.parent().expect("in a directory").display()))
        .env_remove("DOGSLED_DIR")
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in ["hello, world\n", "{\"key\":\"plum\",\"value\":\"blue\"}\n", "all sound"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}
