//! Three processes of `dogsled serve`, of which one has its data on a file system that fills up: the
//! other two go on, it says what is wrong, and when there is space again it catches up by itself.
//!
//! The file system is a tmpfs in a mount namespace; the node is
//! started in there, and the host sees nothing of it. Where that is not permitted the test says so on
//! standard error, past the harness, and passes.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::cli_support::load::{Load, eventually, is_whole};
use crate::cli_support::small_disk::{POOR, SmallDisk, three_nodes};
use crate::cli_support::{Sandbox, skipped};
use dogsled::cluster::{CertificateFiles, Client, ClientOptions, NodeId};

const SIZE: u32 = 192;
const PATIENCE: Duration = Duration::from_secs(30);

/// Past the harness, which keeps what passing tests print to itself.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "cli_node_disk_full: {what}");
}

/// Why the poor node does not serve, if it says so.
async fn complaint(client: &Client) -> Option<String> {
    let status = client.node_status(Some(NodeId(POOR))).await.ok()?;
    status.failure.or_else(|| status.groups.into_iter().find_map(|group| group.failure))
}

#[test]
fn a_node_whose_disk_fills_is_not_missed_and_catches_up_when_there_is_space() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("small")).expect("a directory");
    let disk = match SmallDisk::new(&sandbox.path("small"), SIZE) {
        Ok(disk) => disk,
        Err(why) => {
            return skipped(&format!(
                "no file system to fill. {why}. It needs util-linux, and root or CAP_SYS_ADMIN."
            ));
        }
    };
    let (nodes, addresses) = three_nodes(&sandbox, &disk, |_, _| ());

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

        let filled = disk.fill().expect("it can be filled");
        say(&format!("filled with {filled} bytes"));
        let (bulk, value) = (client.tree("bulk"), vec![7; 64 << 10]);
        let (began, mut written, mut why) = (Instant::now(), 0, None);
        // What it has set aside is used up first.
        while why.is_none() {
            assert!(began.elapsed() < PATIENCE, "{written} values were written, and it does not complain");
            // The other two acknowledge it.
            bulk.insert(format!("{written}"), &value[..]).await.expect("there is a quorum with space");
            written += 1;
            if written % 50 == 0 {
                disk.fill().expect("it can be filled");
                why = complaint(&client).await;
            }
        }
        let why = why.expect("the loop ends with it");
        say(&format!("after {written} values: {why}"));
        assert!(why.contains("No space left"), "{why}");
        load.goes_on(200).await;
        for number in 0..50 {
            let key = format!("{}", written + number);
            bulk.insert(key, &value[..]).await.expect("there is a quorum with space");
        }

        disk.empty().expect("there was a filler");
        let began = Instant::now();
        // A group that failed a moment ago can be level enough while it still stands.
        eventually("the node has caught up by itself and complains no more", || async {
            is_whole(&client, 100).await && complaint(&client).await.is_none()
        })
        .await;
        say(&format!("caught up {:?} after there was space", began.elapsed()));
        load.goes_on(100).await;
        let told = load.stop().await;
        eventually("all three have all", || is_whole(&client, 0)).await;
        let reader = connect().await;
        told.check(&reader).await;
        assert_eq!(reader.tree("bulk").len().await.expect("a number"), written + 50);
        reader.close().await;
        client.close().await;
    });
    for served in nodes {
        assert_eq!(served.terminate(), 0);
    }
}
