//! Certificates on disk: made, checked, refused with a reason, replaced while in use.

use std::time::{Duration, Instant};

use crate::common::*;
use dogsled_net::certs::{Authority, CertificateError, CertificateFiles, Certificates, dev_certificates};
use dogsled_net::{CertificateSource, ClientEndpoint, EndpointConfig, NetOptions};
use dogsled_replication::NodeId;

#[test]
fn what_is_saved_can_be_loaded_and_keys_are_private() {
    let directory = tempfile::tempdir().expect("a directory");
    Authority::generate("prod").expect("generated").save(directory.path()).expect("saved");
    let authority = Authority::load(directory.path()).expect("loaded");
    assert_eq!(authority.cluster(), "prod");
    let addresses = ["10.0.0.1".to_owned(), "db1.example.org".to_owned()];
    let node = authority.node(NodeId(3), &addresses, YEAR).expect("issued");
    let files = node.save(directory.path()).expect("saved");
    assert_eq!(files, CertificateFiles::of_node(directory.path(), NodeId(3)));
    let loaded = Certificates::load(&files).expect("loaded");
    loaded.check_node(NodeId(3)).expect("its node");
    assert_eq!(loaded.names().expect("names").cluster.as_deref(), Some("prod"));
    let client = authority.client("alice", YEAR).expect("issued").save(directory.path()).expect("saved");
    let loaded = Certificates::load(&client).expect("loaded");
    assert_eq!(loaded.names().expect("names").client.as_deref(), Some("alice"));
    assert!(matches!(loaded.check_node(NodeId(3)), Err(CertificateError::OtherNode { .. })));
    assert!(matches!(node.save(directory.path()), Err(CertificateError::Exists(_))));
    assert!(matches!(authority.save(directory.path()), Err(CertificateError::Exists(_))));
    #[cfg(unix)]
    for entry in std::fs::read_dir(directory.path()).expect("readable") {
        use std::os::unix::fs::PermissionsExt;
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        let secret = entry.path().extension().is_some_and(|extension| extension == "key");
        assert_eq!(mode & 0o077 == 0, secret, "{:?} has {mode:o}", entry.path());
    }
}

#[test]
fn names_that_would_be_other_identities_are_refused() {
    let authority = authority();
    for name in ["", "Alice", "a b", "-a", "a.", "a..b", "é", "a/b", &"x".repeat(61)] {
        assert!(matches!(authority.client(name, YEAR), Err(CertificateError::BadName { .. })), "{name:?}");
    }
    for name in ["", "a b", "-", "Prod", &"x".repeat(41)] {
        assert!(matches!(Authority::generate(name), Err(CertificateError::BadName { .. })), "{name:?}");
    }
    for address in ["node-4.dogsled", "NODE-4.dogsled", "a b", "", "10.0.0.1:7000"] {
        let issued = authority.node(NodeId(1), &[address.to_owned()], YEAR);
        assert!(matches!(issued, Err(CertificateError::BadName { .. })), "{address:?}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_reason() {
    let expired = authority().node(NodeId(1), &[], Duration::ZERO).expect("issued");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(matches!(expired.certificates(), Err(CertificateError::Expired { .. })));
    let sound = authority().node(NodeId(1), &[], YEAR).expect("issued");
    let other = Authority::generate("test").expect("generated");
    let error =
        Certificates::from_pem(other.certificate(), &sound.certificate, &sound.key).expect_err("refused");
    assert!(matches!(error, CertificateError::WrongAuthority { .. }), "{error}");
    let another = authority().node(NodeId(1), &[], YEAR).expect("issued");
    let error = Certificates::from_pem(&sound.ca, &sound.certificate, &another.key).expect_err("refused");
    assert!(error.to_string().contains("do not belong together"), "{error}");
    let error = Certificates::from_pem(&sound.ca, "nothing", &sound.key).expect_err("refused");
    assert!(matches!(error, CertificateError::Malformed { .. }), "{error}");
    let error = Certificates::from_pem(&sound.ca, &sound.certificate, "nothing").expect_err("refused");
    assert!(matches!(error, CertificateError::Malformed { .. }), "{error}");
    let missing = CertificateFiles::of_node("/nonexistent".as_ref(), NodeId(1));
    let error = Certificates::load(&missing).expect_err("refused");
    assert!(error.to_string().contains("/nonexistent/ca.crt"), "{error}");
}

#[test]
fn development_certificates_are_made_once_and_said_loudly() {
    let (log, _guard) = Log::capture();
    let directory = tempfile::tempdir().expect("a directory");
    let files = dev_certificates(directory.path(), NodeId(1), &["localhost".to_owned()]).expect("made");
    Certificates::load(&files).expect("sound").check_node(NodeId(1)).expect("its node");
    let before = std::fs::read(&files.certificate).expect("readable");
    assert_eq!(dev_certificates(directory.path(), NodeId(1), &[]).expect("there"), files);
    assert_eq!(std::fs::read(&files.certificate).expect("readable"), before);
    let second = dev_certificates(directory.path(), NodeId(2), &[]).expect("made");
    assert_eq!(second.ca, files.ca);
    Certificates::load(&second).expect("of the same authority");
    Certificates::load(&CertificateFiles::of_client(&directory.path().join("dev-certs"), "dev"))
        .expect("a client");
    assert!(log.text().contains("DEVELOPMENT CERTIFICATES"));
}

#[tokio::test]
async fn replaced_files_are_used_for_new_connections_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = Authority::generate("test").expect("generated");
    let files = old.node(NodeId(1), &[], YEAR).expect("issued").save(directory.path()).expect("saved");
    let polled = EndpointConfig {
        certificates: CertificateSource::Files(files.clone()),
        options: NetOptions { certificate_poll: Some(Duration::from_millis(20)), ..options() },
        ..config(1)
    };
    let (one, two) = (TestNode::start(polled), TestNode::node(2));
    one.knows(2, &two);
    two.knows(1, &one);
    assert!(one.ask(2, "x").await.is_err(), "of different authorities");
    // Half-way replaced: nothing changes, and nothing breaks.
    std::fs::write(&files.ca, authority().certificate()).expect("written");
    assert!(matches!(one.endpoint.reload(), Err(CertificateError::WrongAuthority { .. })));
    authority().node(NodeId(1), &[], YEAR).expect("issued").replace(directory.path()).expect("replaced");
    for (from, to, id) in [(&one, &two, 2), (&two, &one, 1)] {
        let began = Instant::now();
        while from.ask(id, "now").await.is_err() {
            assert!(began.elapsed() < 10 * SECOND, "never reloaded");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(to.service.seen.lock().iter().any(|(_, _, body)| body == "now"));
    }
}

#[tokio::test]
async fn a_client_uses_replaced_files_for_its_next_connection() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = Authority::generate("test").expect("generated");
    let files = old.client("alice", YEAR).expect("issued").save(directory.path()).expect("saved");
    let endpoint =
        ClientEndpoint::open(&CertificateSource::Files(files.clone()), options()).expect("a socket");
    let node = TestNode::node(1);
    let reached = async || endpoint.connect(&[node.address()], CLUSTER).await;
    assert!(reached().await.is_err(), "of different authorities");
    // Half-way replaced.
    std::fs::write(&files.ca, authority().certificate()).expect("written");
    assert!(reached().await.is_err());
    authority().client("alice", YEAR).expect("issued").replace(directory.path()).expect("replaced");
    let connection = reached().await.expect("the new ones are used");
    assert_eq!(connection.request("on".into(), PATIENCE).await, Ok("on".into()));

    // What cannot be used, or is of another cluster, takes the place of nothing.
    let other = Authority::generate("other").expect("generated");
    std::fs::write(&files.ca, [authority().certificate(), other.certificate()].concat()).expect("written");
    other.client("alice", YEAR).expect("issued").replace(directory.path()).expect("replaced");
    reached().await.expect("the old ones stay");
    std::fs::write(&files.certificate, "nothing").expect("written");
    reached().await.expect("the old ones stay");
    authority().client("bob", YEAR).expect("issued").replace(directory.path()).expect("of another name");
    std::fs::rename(directory.path().join("client-bob.key"), &files.key).expect("renamed");
    std::fs::rename(directory.path().join("client-bob.crt"), &files.certificate).expect("renamed");
    let connection = reached().await.expect("the newest are used");
    assert_eq!(connection.request("on".into(), PATIENCE).await, Ok("on".into()));
    assert_eq!(*node.service.clients.lock(), ["alice", "bob"]);
}
