//! Transactions that write four keys, in one partition and in four, beside single puts.

use std::sync::Arc;

use anyhow::Result;
use dogsled::cluster::transaction::TransactionError;
use dogsled::cluster::{Client, Tree, default_partitions, ring};
use etcd_client::{KvClient, Txn, TxnOp};
use parking_lot::Mutex;

use super::{Contestant, OperationsPlan, Systems, take_turns};
use crate::cluster::load::{Call, call};
use crate::data::Rng;
use crate::rows::Row;

const KEYS: u64 = 10_000;
const AT_ONCE: u64 = 4;
const VALUE: [u8; 256] = [b'v'; 256];

fn any(rng: &mut Rng) -> String {
    format!("key-{:08}", rng.below(KEYS))
}

/// Keys that their tag puts into one partition.
fn of_one_partition(rng: &mut Rng) -> Vec<String> {
    let tag = rng.below(KEYS / AT_ONCE);
    (0..AT_ONCE).map(|n| format!("{{{tag:04}}}-{n}")).collect()
}

/// Keys of as many partitions.
fn of_many_partitions(rng: &mut Rng) -> Vec<String> {
    let (mut keys, mut groups, partitions) = (Vec::new(), Vec::new(), default_partitions());
    while keys.len() < AT_ONCE as usize {
        let key = any(rng);
        let group = ring::group_of(key.as_bytes(), partitions);
        if !groups.contains(&group) {
            groups.push(group);
            keys.push(key);
        }
    }
    keys
}

async fn write(client: Client, tree: Tree, keys: Vec<String>) -> Result<u64> {
    let (tree, keys) = (&tree, &keys);
    let done: Result<(), TransactionError> = client
        .transaction(|tx| async move {
            for key in keys {
                tx.put(tree, key.as_bytes(), &VALUE[..])?;
            }
            Ok(())
        })
        .await;
    done?;
    Ok(1)
}

/// Clients that each choose their own keys, always the same.
fn clients<F>(each: impl Fn(&mut Rng) -> F + Clone + Send + 'static) -> impl Fn(usize) -> Call
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    move |client| {
        let (each, rng) = (each.clone(), Arc::new(Mutex::new(Rng::new(client as u64 + 1))));
        call(move || each(&mut rng.lock()))
    }
}

const PUT: &str = "a put";
const ONE: &str = "dogsled, one partition";
const MANY: &str = "dogsled, four partitions";

fn contestants(systems: &Systems, client: &Client, etcd: &[KvClient]) -> Vec<Contestant> {
    let processes = systems.dogsled.processes();
    let tree = client.tree("bench");
    let with = || (client.clone(), tree.clone());
    let mut all = Vec::new();
    let (_, own) = with();
    let put = clients(move |rng| {
        let (tree, key) = (own.clone(), any(rng));
        async move {
            tree.put(key.as_bytes(), &VALUE[..]).await?;
            Ok(1)
        }
    });
    all.push(Contestant::new(PUT, processes.clone(), put));
    let own = with();
    let one = clients(move |rng| write(own.0.clone(), own.1.clone(), of_one_partition(rng)));
    all.push(Contestant::new(ONE, processes.clone(), one));
    let own = with();
    let many = clients(move |rng| write(own.0.clone(), own.1.clone(), of_many_partitions(rng)));
    all.push(Contestant::new(MANY, processes, many));
    if let Some(cluster) = &systems.etcd {
        let theirs = etcd.to_vec();
        all.push(Contestant::new("etcd", cluster.processes(), move |client| {
            let kv = theirs[client % theirs.len()].clone();
            let rng = Arc::new(Mutex::new(Rng::new(client as u64 + 1)));
            call(move || {
                let (mut kv, keys) = (kv.clone(), of_one_partition(&mut rng.lock()));
                async move {
                    let puts: Vec<TxnOp> =
                        keys.into_iter().map(|key| TxnOp::put(key, &VALUE[..], None)).collect();
                    kv.txn(Txn::new().and_then(puts)).await?;
                    Ok(1)
                }
            })
        }));
    }
    all
}

pub(super) async fn measure(plan: &OperationsPlan, systems: &Systems) -> Result<Vec<Row>> {
    let client = systems.dogsled.client().await?;
    let etcd: Vec<KvClient> = match &systems.etcd {
        Some(etcd) => etcd.client().await?.iter().map(|client| client.kv_client()).collect(),
        None => Vec::new(),
    };
    let contestants = contestants(systems, &client, &etcd);
    let mut rows = Vec::new();
    let (one, many) = ("transaction, 4 keys in one partition", "transaction, 4 keys in 4 partitions");
    let results = take_turns(plan, &systems.cores, &contestants, 1).await?;
    for (id, own, title, times) in [("one", ONE, one, 1.2f64), ("many", MANY, many, 3.0)] {
        let title = format!("{title}, 1 client, p50");
        let row =
            results.row_of(&[own, PUT, "etcd"], (&format!("transaction-{id}-p50"), &title, "us"), |all| {
                all.p50_us
            });
        rows.push(row.at_most(times, PUT));
    }
    let results = take_turns(plan, &systems.cores, &contestants, 16).await?;
    for (id, own, title, times) in [("one", ONE, one, 1.2f64), ("many", MANY, many, 3.0)] {
        let title = format!("{title}, 16 clients");
        let named = format!("transaction-{id}-16");
        let row = results.row_of(&[own, PUT, "etcd"], (&named, &title, "per second"), |all| all.rate);
        rows.push(row.at_least((100.0 / times).round() / 100.0, PUT));
        let named = format!("transaction-{id}-16-p50");
        let title = format!("{title}, p50");
        rows.push(results.row_of(&[own, PUT, "etcd"], (&named, &title, "us"), |all| all.p50_us));
    }
    let title = "transactions, 16 clients, processor time of the nodes";
    rows.push(
        results.row_of(&[ONE, MANY, PUT, "etcd"], ("transaction-cpu", title, "us"), |all| all.nodes_us),
    );
    Ok(rows)
}
