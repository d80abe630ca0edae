//! No more than so many requests per client and window, by bounded counters.
//!
//!     cargo run --example rate_limiter

use dogsled::{Config, Db, Result};

struct RateLimiter {
    db: Db,
    limit: i64,
    window_seconds: u64,
}

impl RateLimiter {
    /// Whether the client may make one more request at this time.
    fn allow(&self, client: &str, now_seconds: u64) -> Result<bool> {
        let window = now_seconds / self.window_seconds;
        // One command: two requests at once cannot both get the last place.
        let counter = self.db.counter(format!("requests/{window:020}/{client}"));
        Ok(counter.add_within(1, 0..=self.limit)?.is_ok())
    }
}

fn main() -> Result<()> {
    let db = Config::new().temporary(true).open()?;
    let limiter = RateLimiter { db, limit: 100, window_seconds: 60 };

    let allowed: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| -> Result<usize> {
                    let mut allowed = 0;
                    for _ in 0..50 {
                        allowed += usize::from(limiter.allow("ann", 30)?);
                    }
                    Ok(allowed)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no client panics")).sum::<Result<usize>>()
    })?;

    assert_eq!(allowed, 100);
    assert!(!limiter.allow("ann", 59)?, "the window is full");
    assert!(limiter.allow("ann", 60)?, "the next window is not");
    assert!(limiter.allow("bo", 59)?, "nor is that of another client");
    println!("{allowed} of 400 concurrent requests were allowed");
    Ok(())
}
