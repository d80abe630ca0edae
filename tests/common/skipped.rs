//! What is not tested here, because something is missing that a machine may lack, is said.

use std::io::Write as _;

/// Says that a test, or a part of one, is left out, and why. With `DOGSLED_REQUIRE_ALL=1` that is a failure.
pub(crate) fn skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not by a macro: what those print of a test that passes is not shown. `.ci/run` counts these lines.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    let all = std::env::var("DOGSLED_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!all, "DOGSLED_REQUIRE_ALL is set, and this is left out: {why}");
}
