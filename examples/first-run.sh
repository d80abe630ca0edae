#!/usr/bin/env bash
# The main job on real data: builds dogsled, loads this machine's list of installed packages, and
# asks it questions. Prints every command it runs. Leaves the database in the directory named at
# the end (or given as the first argument); run again, it starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

directory=${1:-target/first-run}
status=/var/lib/dpkg/status
if [ ! -r "$status" ]; then
    echo "$status is not here: this walk needs Debian or a relative of it" >&2
    exit 1
fi

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show cargo build --release --locked --bin dogsled
dogsled=${CARGO_TARGET_DIR:-target}/release/dogsled
mkdir -p "$directory"
export DOGSLED_DIR="$directory/packages.db"
tsv="$directory/packages.tsv"
# Only what this made itself: the directory may be one that holds more.
rm -rf "$DOGSLED_DIR" "$tsv"

# Paragraphs of "Field: value" lines, to one line per package: name, tab, version and summary.
# A backslash is an escape in a TSV of dogsled.
printf '\n$ awk … %s > %s\n' "$status" "$tsv"
awk '
    function emit() { if (name != "") { gsub(/\\/, "\\\\", text); print name "\t" version " | " section " | " text }
                      name = version = section = text = "" }
    /^Package: /     { name = substr($0, 10) }
    /^Version: /     { version = substr($0, 10) }
    /^Section: /     { section = substr($0, 10) }
    /^Description: / { text = substr($0, 14) }
    /^$/             { emit() }
    END              { emit() }
' "$status" | tr -d '\r' > "$tsv"

show "$dogsled" load "$tsv"
show "$dogsled" count
show "$dogsled" get dpkg
show "$dogsled" scan --prefix lib --limit 5
show "$dogsled" scan --from perl --to python --keys-only
show "$dogsled" get bash --json
show "$dogsled" stats
show "$dogsled" verify

printf '\nThe database is in %s; for more: %s --help\n' "$DOGSLED_DIR" "$dogsled"
