//! Many clients that count on one name.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Compare, CompareOp, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse};
use tokio::sync::Mutex;

use super::{Contestant, OperationsPlan, Systems, take_turns};
use crate::cluster::load::{Call, call};
use crate::cluster::redis::Answer;
use crate::rows::Row;

const CLIENTS: usize = 64;
const NAME: &str = "hot";

/// What etcd has of the counter: its value, and the revision of its last change.
type Seen = (i64, i64);

fn seen(pair: Option<&etcd_client::KeyValue>) -> Result<Seen> {
    let Some(pair) = pair else { return Ok((0, 0)) };
    Ok((pair.value_str()?.parse()?, pair.mod_revision()))
}

/// Adds one as etcd's own `STM` does: set to what was read and one, if nobody has changed it since. The
/// failed transaction brings what it is now, so a further attempt needs no read of its own.
async fn add_by_compare_and_retry(mut kv: KvClient) -> Result<u64> {
    let read = kv.get(NAME, None::<GetOptions>).await?;
    let mut known = seen(read.kvs().first())?;
    loop {
        let (value, revision) = known;
        let txn = Txn::new()
            .when([Compare::mod_revision(NAME, CompareOp::Equal, revision)])
            .and_then([TxnOp::put(NAME, (value + 1).to_string(), None)])
            .or_else([TxnOp::get(NAME, None)]);
        let answer = kv.txn(txn).await?;
        if answer.succeeded() {
            return Ok(1);
        }
        let responses = answer.op_responses();
        let Some(TxnOpResponse::Get(now)) = responses.first() else {
            anyhow::bail!("etcd has answered something else than a get");
        };
        known = seen(now.kvs().first())?;
    }
}

/// Counts what succeeded, to be compared with what the counter stands at.
fn counted(sum: &Arc<AtomicI64>, mut call: Call) -> Call {
    let sum = Arc::clone(sum);
    Box::new(move || {
        let (called, sum) = (call(), Arc::clone(&sum));
        Box::pin(async move {
            let done = called.await?;
            sum.fetch_add(1, Relaxed);
            Ok(done)
        })
    })
}

pub(super) async fn measure(plan: &OperationsPlan, systems: &Systems) -> Result<Vec<Row>> {
    let counter = systems.dogsled.client().await?.counter(NAME);
    let sums: [Arc<AtomicI64>; 3] = Default::default();
    let mut contestants = Vec::new();
    let (own, sum) = (counter.clone(), Arc::clone(&sums[0]));
    contestants.push(Contestant::new("dogsled", systems.dogsled.processes(), move |_| {
        let counter = own.clone();
        counted(
            &sum,
            call(move || {
                let counter = counter.clone();
                async move {
                    counter.add(1).await?;
                    Ok(1)
                }
            }),
        )
    }));
    let mut etcd_kv = None;
    if let Some(etcd) = &systems.etcd {
        let clients: Vec<KvClient> = etcd.client().await?.iter().map(|client| client.kv_client()).collect();
        etcd_kv = clients.first().cloned();
        let sum = Arc::clone(&sums[1]);
        contestants.push(Contestant::new("etcd", etcd.processes(), move |client| {
            let kv = clients[client % clients.len()].clone();
            counted(&sum, call(move || add_by_compare_and_retry(kv.clone())))
        }));
    }
    if let Some(redis) = &systems.redis {
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(Arc::new(Mutex::new(redis.connection().await?)));
        }
        let sum = Arc::clone(&sums[2]);
        contestants.push(Contestant::new("redis", redis.processes(), move |client| {
            let connection = Arc::clone(&connections[client]);
            counted(
                &sum,
                call(move || {
                    let connection = Arc::clone(&connection);
                    async move {
                        connection.lock().await.call(&[b"INCR", NAME.as_bytes()]).await?;
                        Ok(1)
                    }
                }),
            )
        }));
    }
    let results = take_turns(plan, &systems.cores, &contestants, CLIENTS).await?;
    let stands = counter.get().await?;
    ensure!(stands == sums[0].load(Relaxed), "dogsled has counted wrongly: {stands}");
    if let Some(mut kv) = etcd_kv {
        let (stands, _) = seen(kv.get(NAME, None).await?.kvs().first())?;
        ensure!(stands == sums[1].load(Relaxed), "etcd has counted wrongly: {stands}");
    }
    if let Some(redis) = &systems.redis {
        let mut connection = redis.connection().await?;
        let Answer::Text(text) = connection.call(&[b"GET", NAME.as_bytes()]).await? else {
            anyhow::bail!("Redis has lost the counter");
        };
        let stands: i64 = std::str::from_utf8(&text)?.parse().context("Redis' counter")?;
        ensure!(stands == sums[2].load(Relaxed), "Redis has counted wrongly: {stands}");
    }
    let title = "counter add, one hot key, 64 clients";
    Ok(vec![
        results.row("counter", title, "per second", |one| one.rate).at_least(5.0, "etcd"),
        results.row("counter-p50", &format!("{title}, p50"), "us", |one| one.p50_us),
        results
            .row("counter-cpu", &format!("{title}, processor time of the nodes"), "us", |one| one.nodes_us),
    ])
}
