//! Writes the seeds, `corpus/<target>/*`: `cargo +nightly run --example make_seeds`, in the
//! directory `fuzz`. They are committed; run it again when a format changes.

use std::fs;
use std::path::Path;

use dogsled_fuzz::node::{To, World, runtime, start};
use dogsled_fuzz::sound_database;
use dogsled_net::wire::{
    Answer, ClientHello, FrameKind, FrameWriter, Hello, Verdict, WIRE_VERSION, encode_answer,
    encode_client_hello, encode_hello,
};
use dogsled_replication::{ClientIdentity, Lane, NodeId, Service};
use dogsled_storage::codec::{encode_command, encode_effects};
use dogsled_storage::command::{KeyRead, RangeRead};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::lock::{FencingToken, LockCommand};
use dogsled_storage::{Command, Context, IVec, TreeId, Write};

fn save(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new("corpus").join(target);
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join(name), bytes).expect("a file");
}

fn commands() -> Vec<Command> {
    let tree = TreeId::DEFAULT;
    let key = || IVec::from("key");
    let write = |value: Option<&str>| Write { tree, key: key(), value: value.map(IVec::from) };
    vec![
        Command::CreateTree { name: "users".into() },
        Command::DropTree { name: "users".into() },
        Command::ClearTree { tree },
        Command::Insert { tree, key: key(), value: "value".into() },
        Command::Remove { tree, key: key() },
        Command::CompareAndSwap { tree, key: key(), old: None, new: Some("value".into()) },
        Command::Batch { writes: vec![write(Some("one")), write(None), write(Some("two"))] },
        Command::Pop { tree, last: true },
        Command::Transact {
            reads: vec![KeyRead { tree, key: key(), version: 3 }],
            ranges: vec![RangeRead { tree, low: key(), high: None, count: 2, fingerprint: 9 }],
            writes: vec![write(Some("value"))],
            expiries: vec![],
        },
        Command::ReserveIds { count: 300 },
        Command::Counter(CounterCommand::AddWithin { name: "n".into(), delta: -1, min: 0, max: 9 }),
        Command::Lock(LockCommand::TryAcquire { name: "l".into(), owner: "me".into(), lease_ms: 500 }),
        Command::Lock(LockCommand::Renew {
            name: "l".into(),
            owner: "me".into(),
            token: FencingToken(70_000),
            lease_ms: 1,
        }),
    ]
}

/// What is exchanged on the wire: greetings, frames, and every request and its reply.
fn wire(world: &World) {
    let (cluster, max_body) = (world.cluster, 1 << 20);
    let (from, to) = (NodeId(2), NodeId(1));
    let hello = Hello { cluster, from, to, incarnation: 5, max_body, lane: Lane::Data };
    save("wire_decode", "hello", &encode_hello(&hello));
    save("wire_decode", "client-hello", &encode_client_hello(&ClientHello { cluster, max_body }));
    let refusal = Answer {
        version: WIRE_VERSION,
        verdict: Verdict::Busy,
        cluster,
        node: to,
        incarnation: 6,
        max_body,
        reason: "full".to_owned(),
    };
    save("wire_decode", "answer", &encode_answer(&refusal));
    let mut writer = FrameWriter::default();
    let kinds = [FrameKind::Request, FrameKind::Reply, FrameKind::Failed, FrameKind::Item, FrameKind::End];
    for (id, kind) in kinds.into_iter().enumerate() {
        writer.push(kind, id as u64, vec![b'b'; id * 20].into());
    }
    save("wire_decode", "frames", &writer.chunks().concat());
    let client = ClientIdentity { name: "fuzzer".into(), administrator: true };
    runtime().block_on(async {
        let node = start(&world.disk.duplicate()).await;
        for (number, (to, body)) in world.requests.iter().enumerate() {
            save("wire_decode", &format!("request-{number:02}"), body);
            let answer = match to {
                To::Peer => node.peer_request(from, Lane::Data, body.clone()),
                To::Client => node.client_request(&client, body.clone()),
                To::Stream => continue,
            };
            let limit = std::time::Duration::from_secs(5);
            if let Ok(answer) = tokio::time::timeout(limit, answer).await {
                save("wire_decode", &format!("reply-{number:02}"), &answer);
            }
        }
        node.halt().await.expect("a sound disk");
    });
}

/// Each request as it is, and in two runs the requests of peers and of clients one after the other.
fn handler(world: &World) {
    let mut runs = [Vec::new(), Vec::new()];
    for (number, (to, _)) in world.requests.iter().enumerate() {
        // (kind, request, no patches).
        let chosen = [64, number as u8, 0];
        save("rpc_handler", &format!("{number:02}"), &chosen);
        runs[usize::from(*to == To::Peer)].extend(chosen);
    }
    for (run, name) in runs.iter().zip(["clients", "peers"]) {
        save("rpc_handler", name, run);
    }
}

fn main() {
    let world = World::new();
    wire(&world);
    handler(&world);
    let mut model = dogsled_storage::model::ModelState::new();
    for (number, command) in commands().into_iter().enumerate() {
        let bytes = encode_command(&command).expect("within the limit");
        save("command_decode", &format!("{number:02}"), &bytes);
        let context = Context { sequence: model.sequence() + 1, time_ms: 1_000 };
        if let Ok(outcome) = dogsled_storage::evaluate::evaluate(&model, &context, &command) {
            let mut bytes = Vec::new();
            encode_effects(1_000, &outcome.effects, &mut bytes);
            save("effects_decode", &format!("{number:02}"), &bytes);
        }
        let _ = model.execute(1_000, &command);
    }
    let sound = sound_database();
    for path in sound.disk.files() {
        let content = sound.disk.content(&path).expect("a file");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if !name.ends_with(".wal") {
            continue;
        }
        // The header with the opening, and the first frame: beginnings are enough to start from.
        let end = content.len().min(12 << 10);
        let mut raw = vec![0];
        raw.extend_from_slice(&content[..end]);
        save("wal_recovery", &name, &raw);
        save("wal_frame", &name, &content[4096..8192]);
    }
    // (file, kind, place…): patches, copies, zeros, cuts, losses in each of the first files.
    for file in 0..6u8 {
        for kind in 0..8u8 {
            let bytes = [1, file, kind, 0x40, 0x11, 0, 0, 0x55, 0x90, 0x20, 0, 0, 1, 2, 3, 4];
            save("wal_recovery", &format!("damage-{file}-{kind}"), &bytes);
            let bytes = [0, file, kind, 0x40, 0x11, 0, 0, 0x55, 0x90, 0x20, 0, 0, 1, 2, 3, 4];
            save("repair", &format!("damage-{file}-{kind}"), &bytes);
        }
    }
    for (number, step) in [7u8, 11, 13, 29, 31].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..200u32).map(|at| (at * u32::from(step) + at / 7) as u8).collect();
        save("database_operations", &format!("{number}"), &bytes);
    }
}
