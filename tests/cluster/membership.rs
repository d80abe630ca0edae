//! Clusters begin, grow and shrink; and who is not let in.

use std::time::Duration;

use dogsled::cluster::certs::Authority;
use dogsled::cluster::{Client, ClientOptions, Error, Node, StartError};

use crate::support::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_grows_to_three_and_the_first_can_leave() {
    let mut cluster = Cluster::new();
    cluster.start(1).await;
    cluster.nodes[&1].create_cluster(2, Vec::new()).await.unwrap();
    let client = cluster.client(1).await;
    for i in 0..100 {
        client.tree("t").put(format!("key {i}"), "1").await.unwrap();
    }
    let first = cluster.address(1);
    for node in 2..=3 {
        cluster.start(node).await;
        cluster.nodes[&node].join([first.clone()]).await.unwrap();
    }
    assert_eq!(client.map().await.unwrap().members.len(), 3);
    assert_eq!(cluster.nodes[&3].client().tree("t").len().await.unwrap(), 100);

    let patient = client.with_deadline(Duration::from_secs(60));
    patient.remove_member(cluster.nodes[&1].id()).await.unwrap();
    cluster.shutdown(1).await;
    eventually("the two go on", || async { client.tree("t").put("more", "1").await.is_ok() }).await;
    assert_eq!(client.tree("t").len().await.unwrap(), 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_can_be_connected_to_and_made_a_cluster_of() {
    let mut cluster = Cluster::new();
    cluster.start(1).await;
    let client = cluster.client(1).await.with_deadline(Duration::from_secs(20));
    let early = client.with_deadline(Duration::from_millis(300)).tree("t").get("a").await;
    assert!(matches!(early, Err(Error::Unavailable(_))), "{early:?}");
    let status = client.status().await.unwrap();
    assert_eq!(status[0].status.as_ref().unwrap().cluster, 0);
    let member = (cluster.nodes[&1].id(), cluster.nodes[&1].addresses().to_vec());
    client.create_cluster(1, vec![member]).await.unwrap();
    client.tree("t").insert("a", "1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_administrator_changes_the_cluster() {
    let mut cluster = Cluster::made(2, 1).await;
    let authority = Authority::load(&cluster.directory.path().join("dev-certs")).unwrap();
    let connect = |issued: dogsled::cluster::certs::IssuedCertificate| {
        Client::connect([cluster.address(1)], ClientOptions::new(issued.certificates().unwrap()))
    };
    let hour = Duration::from_secs(3600);
    let application = connect(authority.client("application", hour).unwrap()).await.unwrap();
    application.tree("t").put("a", "1").await.unwrap();
    assert_eq!(application.map().await.unwrap().members.len(), 2);
    assert_eq!(application.status().await.unwrap().len(), 2);
    let (first, second) = (cluster.nodes[&1].id(), cluster.nodes[&2].id());
    for refused in [
        application.remove_member(second).await,
        application.add_member(first, vec![cluster.address(2)]).await,
        application.transfer_leader(1, second).await,
        application.create_cluster(1, Vec::new()).await,
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, Error::Denied(why) if why.contains("application")), "{refused}");
        assert!(refused.is_definite() && !refused.is_temporary());
    }
    assert_eq!(application.map().await.unwrap().members.len(), 2, "nothing of it was done");
    // Nor has it a state of the cluster held, which others' backups would find no room beside.
    let refused = application.moment().await.err().expect("it holds nothing").to_string();
    assert!(refused.contains("application"), "{refused}");

    let administrator = connect(authority.administrator("operator", hour).unwrap()).await.unwrap();
    administrator.with_deadline(Duration::from_secs(60)).remove_member(second).await.unwrap();
    cluster.shutdown(2).await;
    assert_eq!(administrator.map().await.unwrap().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_the_reason() {
    let mut cluster = Cluster::new();
    cluster.start(1).await;
    let stranger = Authority::generate("dev").unwrap();
    let issued = stranger.client("eve", Duration::from_secs(3600)).unwrap();
    let options = ClientOptions::new(issued.certificates().unwrap());
    let refused = Client::connect([cluster.address(1)], options).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");

    let mut other = cluster.config(1);
    other.listen.set_port(0);
    let busy = Node::start(other).await.unwrap_err();
    assert!(matches!(busy, StartError::Storage(dogsled::Error::InUse(_))), "{busy}");
    let mut everywhere = cluster.config(9);
    everywhere.listen = ([0, 0, 0, 0], 0).into();
    assert!(matches!(Node::start(everywhere).await, Err(StartError::Invalid(_))));
    let nobody = Client::connect(["127.0.0.1:1"], cluster.options()).await.unwrap_err();
    assert!(matches!(nobody, Error::Unavailable(_)), "{nobody}");
}
