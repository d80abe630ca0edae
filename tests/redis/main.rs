//! The protocol of Redis, on real nodes and beside the real Redis.

#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "of another suite, which uses all of it")]
mod cluster;

mod beside;
mod commands;
mod documents;
mod hostile;
mod large;
mod locks;
mod notices;
mod pubsub;
mod quotas;
mod random;
#[path = "../common/skipped.rs"]
mod skipped;
mod slots;
mod support;
mod together;

/// `DOGSLED_BLESS=1` writes the page anew.
#[test]
fn the_page_of_commands_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/redis-commands.md");
    let page = dogsled::cluster::redis::support();
    if std::env::var_os("DOGSLED_BLESS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
        std::fs::write(path, &page).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == page, "{path} is not what the code says; DOGSLED_BLESS=1 writes it anew");
}
