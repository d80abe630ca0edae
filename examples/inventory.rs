//! Stock in several warehouses, on a cluster: goods move between them, and orders are taken, by transactions
//! over partitions. Nothing is sold twice, and nothing gets lost on the way.
//!
//! `cargo run --example inventory --features cluster` starts a node within this program and tries it. On a
//! cluster of several nodes nothing here would be different.

use std::error::Error;
use std::time::Duration;

use dogsled::IVec;
use dogsled::cluster::transaction::{TransactionError, TransactionResult, abort};
use dogsled::cluster::{Client, Node, NodeCertificates, NodeConfig};

const WAREHOUSES: [&str; 3] = ["Anchorage", "Nenana", "Nome"];

/// How many of an article a warehouse has.
fn place(warehouse: &str, article: &str) -> String {
    format!("{warehouse}/{article}")
}

fn count(value: Option<IVec>) -> u64 {
    value.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().expect("counts are eight bytes")))
}

/// Moves goods from one warehouse to another.
async fn transfer(
    client: &Client,
    article: &str,
    from: &str,
    to: &str,
    amount: u64,
) -> TransactionResult<(), String> {
    let stock = &client.tree("stock");
    client
        .transaction(|tx| async move {
            let (here, there) = (place(from, article), place(to, article));
            let left = count(tx.get(stock, &here).await?);
            let Some(left) = left.checked_sub(amount) else {
                return abort(format!("{from} has only {left} of {article}"));
            };
            let arrived = count(tx.get(stock, &there).await?) + amount;
            tx.put(stock, here, left.to_be_bytes())?;
            tx.put(stock, there, arrived.to_be_bytes())?;
            Ok(())
        })
        .await
}

/// Takes an order from wherever there is enough; its number.
async fn order(client: &Client, article: &str, amount: u64) -> TransactionResult<i64, String> {
    let (stock, orders) = (&client.tree("stock"), &client.tree("orders"));
    client
        .transaction(|tx| async move {
            for warehouse in WAREHOUSES {
                let here = place(warehouse, article);
                let left = count(tx.get(stock, &here).await?);
                if left < amount {
                    continue;
                }
                tx.put(stock, here, (left - amount).to_be_bytes())?;
                let number = tx.counter_add("orders", 1).await?;
                tx.put(
                    orders,
                    number.to_be_bytes(),
                    format!("{amount} {article} from {warehouse}").as_str(),
                )?;
                return Ok(number);
            }
            abort(format!("no warehouse has {amount} of {article}"))
        })
        .await
}

/// All that there is of an article, at one moment.
async fn total(client: &Client, article: &str) -> TransactionResult<u64> {
    let stock = &client.tree("stock");
    client
        .transaction(|tx| async move {
            let places = WAREHOUSES.map(|warehouse| place(warehouse, article));
            Ok(tx.get_many(stock, places).await?.into_iter().map(count).sum())
        })
        .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut config = NodeConfig::new(directory.path().join("node"), 1, "127.0.0.1:0".parse()?);
    config.certificates = NodeCertificates::Development(directory.path().to_owned());
    let node = Node::start(config).await?;
    node.create_cluster(16, vec![(node.id(), node.addresses().to_vec())]).await?;
    let client = node.client().with_deadline(Duration::from_secs(30));

    // The first delivery, unless there was one.
    let stock = client.tree("stock");
    let delivery = client.compare().is_absent(&stock, place("Anchorage", "sleds")).then_put(
        &stock,
        place("Anchorage", "sleds"),
        100u64.to_be_bytes(),
    );
    assert!(delivery.run().await?.held());

    // Movers, buyers and an auditor, all at the same time.
    let movers = (0..4).map(|mover| {
        let client = client.clone();
        tokio::spawn(async move {
            for round in 0..10 {
                let (from, to) = (WAREHOUSES[(mover + round) % 3], WAREHOUSES[(mover + round + 1) % 3]);
                match transfer(&client, "sleds", from, to, 3).await {
                    Ok(()) | Err(TransactionError::Abort(_)) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(0)
        })
    });
    let buyers = (0..4).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut bought = 0;
            for _ in 0..5 {
                match order(&client, "sleds", 2).await {
                    Ok(_) => bought += 2,
                    Err(TransactionError::Abort(_)) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(bought)
        })
    });
    let mut sold = 0;
    for task in movers.chain(buyers).collect::<Vec<_>>() {
        sold += task.await??;
    }
    let left = total(&client, "sleds").await?;
    println!("{sold} sleds were sold, and {left} are left");
    assert_eq!(sold + left, 100);
    assert_eq!(client.counter("orders").get().await? as u64 * 2, sold);

    match transfer(&client, "sleds", "Nome", "Nenana", 1_000).await {
        Err(TransactionError::Abort(why)) => println!("{why}"),
        other => println!("{other:?}"),
    }
    client.close().await;
    node.shutdown().await?;
    Ok(())
}
