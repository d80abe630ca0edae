//! A group has as many trees as fit into the first chunk of its snapshot, and no more.

use dogsled_storage::codec::encode_group_command;
use dogsled_storage::command::{MAX_NAME_LENGTH, MAX_TREES_WEIGHT, TREE_WEIGHT};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::seal::seal_of;
use dogsled_storage::{
    Answer, ChunkPosition, Command, GroupCommand, GroupRead, GroupReadReply, IVec, Operation, Refusal,
    Replica, TreeId,
};

use crate::replicas::{open_wal, options};

fn apply(replica: &Replica, trees: Vec<IVec>, command: Command) -> Result<Answer, Refusal> {
    let command = GroupCommand { session: None, time_ms: 1, trees, operation: Operation::Command(command) };
    let position = replica.applied().position + 1;
    replica.apply(position, None, &encode_group_command(&command).unwrap()).unwrap().result
}

/// The name of a tree, as long as names may be.
fn name(number: usize) -> IVec {
    let name = format!("{number:0MAX_NAME_LENGTH$}");
    name.as_str().into()
}

#[test]
fn more_trees_than_a_snapshot_can_name_are_refused_and_all_others_go_on() {
    let disk = SimulatedDisk::new(1);
    let replica = Replica::open(options(&disk, 1), open_wal(&disk).unwrap()).unwrap();
    let most = MAX_TREES_WEIGHT / (MAX_NAME_LENGTH + TREE_WEIGHT);
    let insert = || Command::Insert { tree: TreeId(0), key: "k".into(), value: "v".into() };
    let mut made = 0;
    let refusal = loop {
        // Made by a name, and by a write.
        let done = match made % 2 {
            0 => apply(&replica, Vec::new(), Command::CreateTree { name: name(made) }),
            _ => apply(&replica, vec![name(made)], insert()),
        };
        match done {
            Ok(_) => made += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(&refusal, Refusal::Invalid(what) if what.contains("drop trees")), "{refusal:?}");
    // Those of its own count too.
    assert!((most - 1..=most).contains(&made), "{made} of {most}");
    let refused = apply(&replica, vec![name(made)], insert());
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    // What is not written to is not made, and may be read.
    let clear = apply(&replica, vec![name(made)], Command::ClearTree { tree: TreeId(0) });
    assert!(clear.is_ok(), "{clear:?}");
    apply(&replica, vec![name(0)], insert()).unwrap();
    // A seal says that a tree lives elsewhere; that has to be possible for all that there are.
    apply(&replica, Vec::new(), Command::CreateTree { name: seal_of(b"elsewhere") }).unwrap();

    let listed = replica.read(&GroupRead::Trees).unwrap();
    assert!(matches!(&listed, GroupReadReply::Trees(names) if names.len() >= made), "{listed:?}");
    let chunk = replica.snapshot().chunk(&ChunkPosition::default(), 1 << 20).unwrap();
    assert!(chunk.bytes.len() < MAX_TREES_WEIGHT + (1 << 20), "{}", chunk.bytes.len());

    apply(&replica, Vec::new(), Command::DropTree { name: name(0) }).unwrap();
    apply(&replica, vec![name(made)], insert()).unwrap();
}
