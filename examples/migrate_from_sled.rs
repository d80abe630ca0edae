//! Moves the data of a sled database to dogsled.
//!
//!     cargo run --example migrate_from_sled -- path/to/sled path/to/new
//!
//! Without arguments it makes a small sled database and moves that. A program of your own needs
//! both crates for the one run:
//!
//! ```toml
//! [dependencies]
//! sled = "0.34"
//! dogsled = { version = "0.1", default-features = false }
//! ```
//!
//! After that, `use dogsled as sled;` and the rest of the program stays as it is.

use std::error::Error;
use std::path::Path;

fn migrate(old: &sled::Db, new: &dogsled::Db) -> Result<(), Box<dyn Error>> {
    // Both sides speak in types of the standard library. Unlike `import`, which panics as sled's
    // does, this returns an error; keys that are there already are never overwritten.
    new.try_import(old.export())?;
    // An import is buffered like any write.
    new.flush()?;
    // Computed in the same way by both.
    if new.checksum()? != old.checksum()? {
        return Err("the checksums differ: was one of the databases written to meanwhile?".into());
    }
    Ok(())
}

fn make_a_small_one(path: &Path) -> sled::Result<()> {
    let db = sled::open(path)?;
    db.insert("greeting", "hello")?;
    let users = db.open_tree("users")?;
    for (name, role) in [("ann", "admin"), ("bo", "guest")] {
        users.insert(name, role)?;
    }
    db.flush()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let place = std::env::temp_dir().join(format!("migrate_from_sled.{}", std::process::id()));
    let mut arguments = std::env::args_os().skip(1);
    let (from, to) = match (arguments.next(), arguments.next()) {
        (Some(from), Some(to)) => (from.into(), to.into()),
        _ => {
            make_a_small_one(&place.join("old"))?;
            (place.join("old"), place.join("new"))
        }
    };

    let old = sled::open(&from)?;
    let new = dogsled::open(&to)?;
    migrate(&old, &new)?;
    for name in new.tree_names() {
        println!("{}: {} keys", String::from_utf8_lossy(&name), new.open_tree(&name)?.len());
    }
    println!("moved, checksum {:08x}", new.checksum()?);

    drop((old, new));
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    Ok(())
}
