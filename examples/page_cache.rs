//! A cache whose entries expire: times to live, and what takes them away.
//!
//!     cargo run --example page_cache

use std::time::Duration;

use dogsled::{Config, Result, Tree, Ttl};

/// The page, rendered anew only if it is not in the cache.
fn page(cache: &Tree, path: &str, rendered: &mut u32) -> Result<String> {
    if let Some(found) = cache.get(path)? {
        return Ok(String::from_utf8_lossy(&found).into_owned());
    }
    *rendered += 1;
    let page = format!("<h1>{path}, rendered for the {rendered}. time</h1>");
    cache.insert_with_ttl(path, page.as_str(), Duration::from_millis(50))?;
    Ok(page)
}

fn main() -> Result<()> {
    let db = Config::new().temporary(true).open()?;
    let cache = db.open_tree("pages")?;
    let mut rendered = 0;
    let first = page(&cache, "/index", &mut rendered)?;
    assert_eq!(page(&cache, "/index", &mut rendered)?, first, "from the cache");
    std::thread::sleep(Duration::from_millis(80));
    let second = page(&cache, "/index", &mut rendered)?;
    assert_ne!(second, first, "it had expired");

    // A page that is wanted for longer, and one for good.
    assert!(cache.expire("/index", Duration::from_secs(60))?);
    assert!(matches!(cache.ttl("/index")?, Ttl::In(left) if left > Duration::from_secs(50)));
    assert!(cache.persist("/index")?);
    assert_eq!(cache.ttl("/index")?, Ttl::Forever);
    println!("{second}");
    Ok(())
}
