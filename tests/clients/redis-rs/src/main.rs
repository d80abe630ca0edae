//! What users of redis-rs write, unchanged. Arguments: the ports of one node or of several of a cluster, separated by
//! commas, and the password or nothing.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::{AsyncCommands, AsyncIter, Client, Commands, ErrorKind, RedisResult, ServerErrorKind};

/// Half a second, which is what it takes by itself, is not much on a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(20);

fn address(port: &str, password: &str, more: &str) -> String {
    let user = if password.is_empty() { String::new() } else { format!(":{password}@") };
    format!("redis://{user}127.0.0.1:{port}/{more}")
}

async fn strings_and_expiry(con: &mut ConnectionManager) -> RedisResult<()> {
    let () = redis::cmd("FLUSHDB").query_async(con).await?;
    let () = con.set("my_key", 42).await?;
    let number: i64 = con.get("my_key").await?;
    let nothing: Option<String> = con.get("nothing").await?;
    assert_eq!((number, nothing), (42, None));
    let bytes: Vec<u8> = vec![0, 255, b'\r', b'\n'];
    let () = con.set("bytes", &bytes).await?;
    assert_eq!(con.get::<_, Vec<u8>>("bytes").await?, bytes);
    let () = con.set_ex("session", "ann", 100).await?;
    assert!((90..=100).contains(&con.ttl::<_, i64>("session").await?));
    assert!(con.expire::<_, bool>("my_key", 50).await? && con.persist::<_, bool>("my_key").await?);
    assert_eq!(con.pttl::<_, i64>("my_key").await?, -1);
    let options = redis::SetOptions::default()
        .conditional_set(redis::ExistenceCheck::NX)
        .with_expiration(redis::SetExpiry::PX(20_000));
    let taken: Option<String> = con.set_options("lock", "me", options.clone()).await?;
    let refused: Option<String> = con.set_options("lock", "you", options).await?;
    assert_eq!((taken.as_deref(), refused), (Some("OK"), None));
    assert_eq!(con.del::<_, i64>(&["lock", "none"]).await?, 1);
    let () = con.mset(&[("a", 1), ("b", 2)]).await?;
    assert_eq!(con.mget::<_, Vec<Option<i64>>>(&["a", "none", "b"]).await?, [Some(1), None, Some(2)]);
    let failed = con.incr::<_, _, i64>("session", 1).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Server(ServerErrorKind::ResponseError));
    assert!(failed.to_string().contains("not an integer"), "{failed}");
    Ok(())
}

async fn hashes_and_scans(con: &mut ConnectionManager) -> RedisResult<()> {
    let () = con.hset_multiple("user:1", &[("name", "Ann"), ("mail", "ann@example.org")]).await?;
    let () = con.hset("user:1", "age", 41).await?;
    assert_eq!(con.hincr::<_, _, _, i64>("user:1", "age", 1).await?, 42);
    let all: HashMap<String, String> = con.hgetall("user:1").await?;
    assert_eq!((all.len(), all["name"].as_str(), all["age"].as_str()), (3, "Ann", "42"));
    let some: (String, Option<String>) = con.hmget("user:1", &["mail", "none"]).await?;
    assert_eq!(some, ("ann@example.org".to_owned(), None));
    assert!(con.hexists::<_, _, bool>("user:1", "name").await?);
    assert_eq!(con.hdel::<_, _, i64>("user:1", "mail").await?, 1);
    let mut fields: AsyncIter<(String, String)> = con.hscan("user:1").await?;
    let mut found = BTreeMap::new();
    while let Some(pair) = fields.next_item().await {
        let (field, value) = pair?;
        found.insert(field, value);
    }
    drop(fields);
    assert_eq!(found, BTreeMap::from([("age", "42"), ("name", "Ann")].map(|(k, v)| (k.into(), v.into()))));
    for number in 0..250 {
        let () = con.set(format!("scan:{number}"), number).await?;
    }
    let mut keys: AsyncIter<String> = con.scan_match("scan:*").await?;
    let mut found = Vec::new();
    while let Some(key) = keys.next_item().await {
        found.push(key?);
    }
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 250);
    Ok(())
}

async fn pipelines(con: &mut ConnectionManager) -> RedisResult<()> {
    let (one, two): (i64, i64) =
        redis::pipe().set("p", 42).ignore().get("p").incr("p", 1).query_async(con).await?;
    assert_eq!((one, two), (42, 43));
    // Of several partitions, at one moment.
    let (left, right): (i64, i64) = redis::pipe()
        .atomic()
        .set("left", 10)
        .ignore()
        .decr("left", 3)
        .incr("right", 3)
        .query_async(con)
        .await?;
    assert_eq!((left, right), (7, 3));
    let mut many = redis::pipe();
    for number in 0..500 {
        many.incr("many", 1).ignore();
        many.get(format!("scan:{}", number % 250));
    }
    let values: Vec<i64> = many.query_async(con).await?;
    assert_eq!(values, (0..500).map(|number| number % 250).collect::<Vec<_>>());
    Ok(())
}

/// WATCH and an atomic pipeline, from several threads at once: nothing is lost between reading and writing.
fn watching(url: &str) -> RedisResult<()> {
    let client = Client::open(url)?;
    let () = client.get_connection()?.set("stock", 0)?;
    let sell = || -> RedisResult<()> {
        let mut con = client.get_connection()?;
        for _ in 0..10 {
            let (now,): (i64,) = redis::transaction(&mut con, &["stock"], |con, pipe| {
                let before: i64 = con.get("stock")?;
                pipe.set("stock", before + 1).ignore().get("stock").query(con)
            })?;
            assert!(now > 0);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(sell)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    let mut con = client.get_connection()?;
    assert_eq!(con.get::<_, i64>("stock")?, 40);
    let keys: Vec<String> = con.scan_match::<_, String>("scan:1?")?.collect::<RedisResult<_>>()?;
    assert_eq!(keys.len(), 10);
    Ok(())
}

async fn clusters(ports: &[&str], password: &str, more: &str) -> RedisResult<()> {
    let nodes: Vec<String> = ports.iter().map(|port| address(port, password, more)).collect();
    let client = ClusterClient::builder(nodes).response_timeout(PATIENCE).build()?;
    let mut con = client.get_async_connection().await?;
    for number in 0..100 {
        let key = format!("cluster:{{{number}}}");
        let () = con.set(&key, number).await?;
        assert_eq!(con.get::<_, i64>(&key).await?, number);
    }
    let () = con.mset(&[("{t}a", 1), ("{t}b", 2)]).await?;
    let (sum,): (i64,) = redis::pipe().atomic().incr("{t}a", 5).query_async(&mut con).await?;
    assert_eq!(sum, 6);
    let mut con = tokio::task::block_in_place(|| client.get_connection())?;
    tokio::task::block_in_place(|| -> RedisResult<()> {
        assert_eq!(con.get::<_, i64>("{t}a")?, 6);
        assert_eq!(con.incr::<_, _, i64>("cluster:{1}", 1)?, 2);
        Ok(())
    })
}

#[tokio::main]
async fn main() -> RedisResult<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let password = arguments.get(1).map_or("", String::as_str);
    let ports: Vec<&str> = arguments[0].split(',').collect();
    for more in ["", "?protocol=resp3"] {
        let url = address(ports[0], password, more);
        let patient = ConnectionManagerConfig::new().set_response_timeout(Some(PATIENCE));
        let mut con = Client::open(url.as_str())?.get_connection_manager_with_config(patient).await?;
        strings_and_expiry(&mut con).await?;
        hashes_and_scans(&mut con).await?;
        pipelines(&mut con).await?;
        tokio::task::block_in_place(|| watching(&url))?;
        clusters(&ports, password, more).await?;
    }
    println!("done");
    Ok(())
}
