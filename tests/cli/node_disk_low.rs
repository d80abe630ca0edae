//! Nodes whose disks are nearly full: a lone one refuses what stores something before its disk is full, serves
//! everything else, and goes on by itself when there is space; one of three leaves leading to the others, and
//! nobody who writes notices.
//!
//! As in `node_disk_full`, the file system is a tmpfs in a mount namespace; where that is not permitted the
//! tests say so on standard error, past the harness, and pass.

use std::time::{Duration, Instant};

use crate::cli_support::http::{Metrics, get};
use crate::cli_support::load::{Load, eventually, is_whole};
use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::small_disk::{POOR, SmallDisk, three_nodes};
use crate::cli_support::{Run, Sandbox, run, skipped};
use dogsled::cluster::{CertificateFiles, Client, ClientOptions, MemberStatus, NodeId, NodeStatus, Role};

const MIB: u64 = 1 << 20;
/// Of the small file system, in MiB.
const SIZE: u32 = 192;
/// Below so many MiB a node of these tests refuses writes.
const LOW: u64 = 48;

const PATIENCE: Duration = Duration::from_secs(10);

fn small_disk(sandbox: &Sandbox) -> Option<SmallDisk> {
    std::fs::create_dir(sandbox.path("small")).expect("a directory");
    match SmallDisk::new(&sandbox.path("small"), SIZE) {
        Ok(disk) => Some(disk),
        Err(why) => {
            skipped(&format!(
                "no file system to fill. {why}. It needs util-linux, and root or CAP_SYS_ADMIN."
            ));
            None
        }
    }
}

#[test]
fn a_lone_node_refuses_writes_before_its_disk_is_full_and_goes_on_when_there_is_space() {
    let sandbox = Sandbox::new();
    let Some(disk) = small_disk(&sandbox) else { return };
    let (address, http) = (free_address(), free_address());
    let mut command = disk.command(env!("CARGO_BIN_EXE_dogsled"));
    command.args(["serve", "--json", "--data", &sandbox.argument("small/data"), "--partitions", "2"]);
    command.args(["--listen", &address, "--http", &http, "--disk-low", &format!("{LOW}M")]);
    let mut served = Served::start(command, &sandbox.path("log"));
    served.says("\"serving\"");
    // The certificates of the client lie in there, too.
    std::fs::create_dir(sandbox.path("certs")).expect("a directory");
    let made = disk.seen_from_outside("data/dev-certs");
    for file in std::fs::read_dir(made).expect("certificates") {
        let file = file.expect("an entry");
        std::fs::copy(file.path(), sandbox.path("certs").join(file.file_name())).expect("a copy");
    }
    let (value, certs) = ("v".repeat(32 << 10), sandbox.argument("certs"));
    let dogsled = |arguments: &[&str]| -> Run {
        let mut command = sandbox.bare(&["--connect", &address, "--certs", &certs]);
        command.args(arguments);
        run(command)
    };
    let low = || {
        let metrics = Metrics::parse(&get(&http, "/metrics").body);
        assert_eq!(metrics.samples["dogsled_disk_low_mark_bytes"], (LOW * MIB) as f64);
        (metrics.samples["dogsled_disk_low"] == 1.0, metrics.samples["dogsled_disk_free_bytes"] as u64)
    };
    for key in ["a", "b", "c"] {
        dogsled(&["put", key, &value]).ok();
    }
    let (is_low, free) = low();
    assert!(!is_low && free > LOW * MIB, "{free} bytes are free");

    disk.take(free - (LOW - 16) * MIB).expect("there is as much");
    let refused = || dogsled(&["put", "d", &value]);
    let until = Instant::now() + PATIENCE;
    while refused().code == 0 {
        assert!(Instant::now() < until, "it does not refuse: {:?}", low());
    }
    refused().fails_saying(5, &["nothing was done", "nearly full", "go on by themselves"]);
    dogsled(&["counter", "add", "n", "1"]).fails_saying(5, &["nearly full"]);
    // An answer is given again for half a second.
    let until_it_is = |wanted: bool| {
        let until = Instant::now() + PATIENCE;
        while low().0 != wanted {
            assert!(Instant::now() < until, "the metrics do not say so: {:?}", low());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until_it_is(true);
    // It is no failure: it is ready, answers, and removes.
    assert_eq!(get(&http, "/readyz").code, 200);
    let status = dogsled(&["status"]).ok();
    assert!(status.contains("low on disk space") && status.contains("less than 48"), "{status}");
    let status: serde_json::Value = serde_json::from_str(&dogsled(&["status", "--json"]).ok()).expect("JSON");
    assert_eq!(status["members"][0]["disk_is_low"], true, "{status}");
    assert_eq!(dogsled(&["get", "a"]).ok().trim_end(), value);
    dogsled(&["del", "b"]).ok();
    dogsled(&["get", "b"]).fails(1);
    for _ in 0..20 {
        refused().fails(5);
    }
    let (_, left) = low();
    assert!(left > 8 * MIB, "refused writes fill the disk: {left} bytes are free");

    disk.empty().expect("there was a filler");
    let until = Instant::now() + PATIENCE;
    while dogsled(&["put", "d", &value]).code != 0 {
        assert!(Instant::now() < until, "it does not go on: {:?}", low());
    }
    until_it_is(false);
    dogsled(&["counter", "add", "n", "1"]).ok();
    assert_eq!(served.terminate(), 0);
}

fn poor(members: &[MemberStatus]) -> Option<&NodeStatus> {
    members.iter().find(|member| member.node == NodeId(POOR)).and_then(|member| member.status.as_ref().ok())
}

fn leads(status: &NodeStatus) -> usize {
    status.groups.iter().filter(|group| group.role == Role::Leader).count()
}

#[test]
fn one_of_three_that_is_low_leads_nothing_and_no_writer_notices() {
    let sandbox = Sandbox::new();
    let Some(disk) = small_disk(&sandbox) else { return };
    // The others' file system may have any size.
    let low = |node| if node == POOR { format!("{LOW}M") } else { "0".to_owned() };
    let (nodes, addresses) = three_nodes(&sandbox, &disk, |node, command| {
        command.env("DOGSLED_DISK_LOW", low(node));
    });
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let connect = async || {
            let files = CertificateFiles::of_client(&sandbox.path("certs"), "admin");
            let options = ClientOptions::from_files(&files).expect("certificates of a client");
            Client::connect(addresses.clone(), options).await.expect("a client")
        };
        let client = connect().await;
        eventually("all three are level", || is_whole(&client, 100)).await;
        let load = Load::start(&client, "small", 4);
        load.goes_on(100).await;
        eventually("it leads its share", async || {
            client.status().await.is_ok_and(|members| poor(&members).is_some_and(|poor| leads(poor) >= 1))
        })
        .await;

        let members = client.status().await.expect("they answer");
        let free = poor(&members).expect("it answers").disk_free_bytes;
        disk.take(free - (LOW - 12) * MIB).expect("there is as much");
        eventually("it says so and leads nothing", async || {
            let members = client.status().await.unwrap_or_default();
            poor(&members).is_some_and(|poor| poor.disk_is_low && leads(poor) == 0)
        })
        .await;
        load.goes_on(200).await;
        // It follows all the same, and is not chosen again by those who spread leadership. It may win an election, and
        // hands over what it leads at once.
        let mut looks = 0;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let members = client.status().await.expect("they answer");
            looks += u32::from(poor(&members).is_some_and(|poor| leads(poor) > 0));
        }
        assert!(looks <= 10, "it leads some group again, in {looks} of 30 looks");
        eventually("it leads nothing", async || {
            let members = client.status().await.unwrap_or_default();
            poor(&members).is_some_and(|poor| leads(poor) == 0)
        })
        .await;
        eventually("it is level", || is_whole(&client, 100)).await;
        load.goes_on(100).await;

        disk.empty().expect("there was a filler");
        eventually("it leads again", async || {
            let members = client.status().await.unwrap_or_default();
            poor(&members).is_some_and(|poor| !poor.disk_is_low && leads(poor) >= 1)
        })
        .await;
        load.goes_on(100).await;
        let told = load.stop().await;
        let reader = connect().await;
        told.check(&reader).await;
        reader.close().await;
        client.close().await;
    });
    for served in nodes {
        assert_eq!(served.terminate(), 0);
    }
}
