//! A lock with a lease and a fencing token, and what the token is for.
//!
//!     cargo run --example locks

use std::time::Duration;

use dogsled::{Config, Error, Result};

/// Something outside of the database that the lock protects: it refuses whoever comes with an
/// older token than it has seen, so a holder that slept through the end of its lease does no harm.
#[derive(Default)]
struct Printer {
    newest_token: u64,
    pages: Vec<String>,
}

impl Printer {
    fn print(&mut self, token: u64, page: &str) -> bool {
        if token < self.newest_token {
            return false;
        }
        self.newest_token = token;
        self.pages.push(page.to_owned());
        true
    }
}

fn main() -> Result<()> {
    let db = Config::new().temporary(true).open()?;
    let mut printer = Printer::default();

    // A guard renews its lease in the background; this one is as if its process had stopped.
    let slow = db.lock("printer").owner("slow").without_renewal();
    let slow = slow.try_acquire(Duration::from_millis(20))?.expect("it is free");
    assert!(db.lock("printer").owner("fast").try_acquire(Duration::from_secs(10))?.is_none(), "it is held");

    let slow_fence = slow.fence();

    // Waits without polling, until it is released or the lease ends; here it is the lease.
    let fast = db.lock("printer").owner("fast").acquire(Duration::from_secs(10))?;
    assert!(fast.token() > slow.token());
    assert!(printer.print(fast.token().0, "fast, page 1"));
    assert!(!printer.print(slow.token().0, "slow, page 1"), "an old token is refused");
    assert!(slow.wait_until_lost_for(Duration::ZERO));
    assert!(slow.release()?.is_err(), "it is not held any more, and the caller is told");

    // The database itself refuses just so what is written under a lock that is lost.
    db.under(&fast).insert("last page", "fast, page 1")?;
    match db.under(slow_fence).insert("last page", "slow, page 1") {
        Err(refused @ Error::LockNotHeld { .. }) => println!("{refused}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(db.get("last page")?.unwrap(), "fast, page 1");

    let holder = db.lock("printer").holder()?.expect("fast holds it");
    println!("{} holds the printer with token {}", String::from_utf8_lossy(&holder.owner), holder.token);
    assert!(fast.release()?.is_ok());
    assert!(db.lock("printer").holder()?.is_none());
    Ok(())
}
