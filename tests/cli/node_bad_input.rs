//! What a node and its clients say when they are told something wrong: a message that names it, and an
//! exit code that a script can tell apart.

use std::net::UdpSocket;
use std::process::Command;

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Run, Sandbox, run};

/// A run of `serve` that is to end by itself.
fn serve(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    let mut command: Command = sandbox.bare(&["serve", "--log-level", "off"]);
    command.args(arguments);
    run(command)
}

/// The complaint of a node that has said where it listens, and then failed.
#[track_caller]
fn gives_up(run: Run, code: i32, parts: &[&str]) {
    assert_eq!(run.code, code, "{run:?}");
    for part in parts {
        assert!(run.stderr.contains(part), "{part:?} is not in {run:?}");
    }
}

fn one_node(sandbox: &Sandbox) -> (Served, String) {
    let address = free_address();
    let served = sandbox.serving(&["--certs", "certs", "--data", "data-1", "--listen", &address]);
    (served, address)
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_key_and_line() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("dogsled.toml", "node = 1\n# Where to listen\nlissten = \"127.0.0.1:7400\"\n");
    serve(&sandbox, &["--config", &file]).fails_saying(2, &["dogsled.toml", "line 3", "lissten"]);
    serve(&sandbox, &["--config", "missing.toml"]).fails_saying(5, &["missing.toml"]);
    serve(&sandbox, &["--members", "1=a:1,1=b:1"]).fails_saying(2, &["node 1 twice"]);
    serve(&sandbox, &["--node", "4", "--members", "1=a:1,2=b:1"])
        .fails_saying(2, &["this is node 4", "1, 2"]);
    serve(&sandbox, &["--listen", "0.0.0.0:0"]).fails_saying(2, &["--advertise"]);
    let mut wrong = sandbox.bare(&["serve", "--log-level", "loud"]);
    wrong.env("DOGSLED_NODE", "2");
    run(wrong).fails_saying(2, &["loud"]);
    assert!(!sandbox.path("dogsled-data").exists());
}

#[test]
fn certificates_that_are_wrong_are_refused() {
    let sandbox = Sandbox::new();
    serve(&sandbox, &["--certs", "certs"])
        .fails_saying(11, &["certs/", "dogsled certs node 1 --certs certs"]);
    sandbox.run_bare(&["certs", "node", "1"]).fails_saying(11, &["dogsled certs ca"]);
    sandbox.certificates(&[1, 2]);
    sandbox.run_bare(&["certs", "ca"]).fails_saying(8, &["not overwritten"]);
    sandbox.run_bare(&["certs", "node", "1"]).fails_saying(8, &["--replace"]);
    sandbox.run_bare(&["certs", "node", "1", "--replace"]).ok();
    sandbox.run_bare(&["certs", "client", "No Name"]).fails_saying(2, &["No Name"]);

    // Another node's, under this node's name.
    for kind in ["crt", "key"] {
        std::fs::copy(
            sandbox.path(&format!("certs/node-2.{kind}")),
            sandbox.path(&format!("certs/node-3.{kind}")),
        )
        .expect("a copy");
    }
    serve(&sandbox, &["--certs", "certs", "--node", "3", "--listen", "127.0.0.1:0"])
        .fails_saying(11, &["node 2, not of node 3"]);

    // Of another authority.
    sandbox.run_bare(&["--certs", "other", "certs", "ca"]).ok();
    sandbox.run_bare(&["--certs", "other", "certs", "client"]).ok();
    sandbox.run_bare(&["--certs", "other", "certs", "node", "2"]).ok();
    let (_served, address) = one_node(&sandbox);
    let with = |more: &[&str]| sandbox.run_bare(&[&["--connect", &address][..], more].concat());
    with(&["--timeout", "5", "--certs", "other", "get", "key"]).fails_saying(9, &["certificate"]);
    with(&["--certs", "certs", "put", "key", "value"]).ok();
    with(&["get", "key"]).fails_saying(11, &["dev-certs", "--certs"]);
    sandbox.run_bare(&["certs", "client", "web"]).ok();
    with(&["--certs", "certs", "get", "key"]).fails_saying(2, &["admin, web", "--client"]);
    assert_eq!(with(&["--certs", "certs", "--client", "web", "get", "key"]).ok(), "value\n");
    let arguments =
        ["--certs", "other", "--node", "2", "--listen", "127.0.0.1:0", "--join", &address, "--timeout", "5"];
    gives_up(serve(&sandbox, &arguments), 9, &["not become a member", "certificate"]);
    std::fs::copy(sandbox.path("other/ca.crt"), sandbox.path("certs/ca.crt")).expect("a copy");
    serve(&sandbox, &["--certs", "certs", "--node", "2"]).fails_saying(11, &["not signed by the trusted"]);
}

#[test]
fn a_directory_that_is_another_s_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2]);
    let (served, address) = one_node(&sandbox);
    let elsewhere = ["--certs", "certs", "--listen", "127.0.0.1:0"];
    let with = |more: &[&str]| serve(&sandbox, &[&elsewhere[..], more].concat());
    with(&["--data", "data-1"]).fails_saying(3, &["data-1", "in use"]);

    // Of another cluster: node 2 has made one of its own.
    let alone =
        sandbox.serving(&["--certs", "certs", "--node", "2", "--data", "data-2", "--listen", "127.0.0.1:0"]);
    assert_eq!(alone.terminate(), 0);
    let other = ["--node", "2", "--data", "data-2", "--join", &address, "--timeout", "5"];
    gives_up(with(&other), 7, &["belongs to the cluster", "were named to"]);

    // A second node 1, with nothing on its disk.
    let twin = ["--node", "1", "--data", "data-twin", "--join", &address, "--timeout", "5"];
    gives_up(with(&twin), 8, &["node id 1 is taken", &address, "new id"]);
    // And one that does not join, but was named as a first member of a cluster that is made already.
    let members = format!("2=127.0.0.1:9,1={address}");
    let late = ["--node", "2", "--data", "data-late", "--members", &members, "--advertise", "127.0.0.1:9"];
    gives_up(with(&late), 8, &["was made without node 2", "--join"]);

    assert_eq!(served.terminate(), 0);
    with(&["--data", "data-1", "--node", "2"]).fails_saying(7, &["belongs to node 1, not to node 2"]);
    sandbox.run(&["put", "key", "value"]).ok();
    with(&["--data", &sandbox.argument("db")]).fails_saying(7, &["embedded database", "dogsled import"]);
}

#[test]
fn an_address_that_is_taken_or_dead_is_named() {
    let sandbox = Sandbox::new();
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    serve(&sandbox, &["--listen", &address]).fails_saying(3, &[&address, "--listen"]);

    sandbox.certificates(&[1]);
    let dead = free_address();
    let with = |more: &[&str]| {
        let connect = ["--certs", "certs", "--connect", &dead, "--timeout", "1"];
        sandbox.run_bare(&[&connect[..], more].concat())
    };
    with(&["get", "key"]).fails_saying(9, &[&dead, "nothing was done"]);
    with(&["status"]).fails_saying(9, &[&dead]);
    with(&["verify"]).fails_saying(2, &["--connect"]);
    with(&["-d", "db", "get", "key"]).fails_saying(2, &["--dir and --connect"]);
    let mut both = sandbox.bare(&["get", "key"]);
    both.env("DOGSLED_DIR", "db").env("DOGSLED_CONNECT", &dead);
    run(both).fails_saying(2, &["DOGSLED_DIR and DOGSLED_CONNECT"]);
    sandbox.run_bare(&["get", "key"]).fails_saying(2, &["--dir", "--connect"]);
}
