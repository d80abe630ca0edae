//! The record's bytes, and what it refuses.

use super::*;

fn member(weight: u32, zone: &str) -> MemberRecord {
    let addresses = vec!["a:1".to_owned()];
    MemberRecord { state: MemberState::Active, weight, zone: zone.to_owned(), addresses }
}

fn record(members: u64) -> Record {
    let members = (1..=members).map(|node| (NodeId(node), member(100, ""))).collect();
    let record = Record::new(4, 3, members).unwrap();
    record.changed(&Change::Formed).unwrap().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_record_keeps_its_bytes() {
    let members = BTreeMap::from([(NodeId(1), member(100, "z"))]);
    let mut record = Record::new(2, 3, members).unwrap();
    record.removed.insert(NodeId(7));
    let hash = TreeHash::Before { delimiter: b'/', occurrence: 2 };
    record.trees.insert("chat".into(), HashedTree { hash, in_force: true });
    let golden = "01 0100000000000000 03000000 01 00 04000000 0000000000000000 c027090000000000 \
                  01000000 0100000000000000 01 64000000 01000000 7a 01000000 03000000 613a31 \
                  01000000 0700000000000000 01000000 0100000000000000 \
                  01 01000000 02000000 01000000 0100000000000000 00 00 \
                  01000000 04000000 63686174 022f02 01";
    assert_eq!(hex(&record.encode()), golden.replace(' ', ""));
    assert_eq!(Record::decode(record.encode()).unwrap(), record);
    let bytes = record.encode();
    for position in 0..bytes.len() {
        assert!(Record::decode(bytes.slice(..position)).is_err());
        for value in [0, 1, 2, 127, 255] {
            let mut changed = bytes.to_vec();
            changed[position] = value;
            if let Ok(found) = Record::decode(changed.into()) {
                assert_eq!(Record::decode(found.encode()).unwrap(), found);
            }
        }
    }
}

#[test]
fn changes_keep_their_bytes() {
    let node = NodeId(4);
    let moves = |paused, moves, bytes_per_second, replace_after_ms| Change::Moves {
        paused,
        moves,
        bytes_per_second,
        replace_after_ms,
    };
    let changes = [
        (
            Change::Add { node, addresses: vec!["d:4".to_owned()], weight: 7, zone: "z".to_owned() },
            "01 0400000000000000 07000000 01000000 7a 01000000 03000000 643a34",
        ),
        (Change::Remove { node }, "02 0400000000000000"),
        (Change::Drain { node, on: true }, "03 0400000000000000 01"),
        (Change::Weight { node, weight: 9 }, "04 0400000000000000 09000000"),
        (Change::Replicas(5), "05 05000000"),
        (
            moves(Some(false), None, Some(0), Some(5)),
            "06 01 0000000000000000 00 0000000000000000 01 0000000000000000 01 0500000000000000",
        ),
        (
            moves(Some(true), Some(3), None, None),
            "06 01 0100000000000000 01 0300000000000000 00 0000000000000000 00 0000000000000000",
        ),
        (Change::Formed, "07"),
        (Change::Follows { node }, "08 0400000000000000"),
        (Change::Silent { node }, "09 0400000000000000"),
        (Change::Heard { node }, "0a 0400000000000000"),
        (Change::Gone { node }, "0b 0400000000000000"),
        (Change::Lost { nodes: vec![node, NodeId(5)] }, "0c 02000000 0400000000000000 0500000000000000"),
        (Change::HashTree { tree: "chat".into(), hash: TreeHash::First(258) }, "0d 04000000 63686174 010201"),
        (Change::TreeHashed { tree: "chat".into() }, "0e 04000000 63686174"),
        (
            Change::Leaders { leaders: vec![(3, node), (1, NodeId(2))] },
            "0f 02000000 03000000 0400000000000000 01000000 0200000000000000",
        ),
    ];
    for (change, golden) in changes {
        let mut bytes = Vec::new();
        change.put(&mut bytes);
        assert_eq!(hex(&bytes), golden.replace(' ', ""), "{change:?}");
        let mut take = Take::new(bytes.clone().into());
        assert_eq!(Change::take(&mut take).unwrap(), change);
        take.end().unwrap();
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 0xff;
            let _ = Change::take(&mut Take::new(changed.into()));
        }
    }
}

#[test]
fn a_member_comes_holds_its_share_and_goes_for_ever() {
    let node = NodeId(4);
    let add = Change::Add { node, addresses: vec!["d:4".to_owned()], weight: 100, zone: String::new() };
    let three = record(3);
    let joining = three.changed(&add).unwrap().unwrap();
    assert_eq!(joining.placement, three.placement, "it holds nothing before it follows");
    assert_eq!(joining.changed(&add), Ok(None));
    let four = joining.changed(&Change::Follows { node }).unwrap().unwrap();
    assert!(four.placement.loads()[&node].0 > 0);
    assert_eq!(four.epoch, three.epoch + 2);
    let leaving = four.changed(&Change::Remove { node }).unwrap().unwrap();
    assert!(!leaving.placement.loads().contains_key(&node));
    assert!(leaving.changed(&add).unwrap_err().contains("being taken out"));
    let gone = leaving.changed(&Change::Gone { node }).unwrap().unwrap();
    assert!(!gone.members.contains_key(&node));
    assert!(gone.changed(&add).unwrap_err().contains("never"));
    assert_eq!(gone.changed(&Change::Remove { node }), Ok(None), "whoever has not heard asks again");
    assert!(gone.changed(&Change::Remove { node: NodeId(9) }).unwrap_err().contains("no member"));
}

#[test]
fn voters_of_the_meta_group_are_an_odd_number_and_stay() {
    for (members, voters) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5)] {
        assert_eq!(record(members).meta_voters.len(), voters, "{members}");
    }
    let five = record(5);
    let without = five.changed(&Change::Remove { node: NodeId(2) }).unwrap().unwrap();
    assert_eq!(without.meta_voters, [NodeId(1), NodeId(3), NodeId(4)]);
    let mut members: BTreeMap<_, _> = (1..=5).map(|node| (NodeId(node), member(100, "one"))).collect();
    for node in [4, 5] {
        members.insert(NodeId(node), member(100, &format!("zone {node}")));
    }
    members.remove(&NodeId(3));
    let zones = Record::new(4, 3, members).unwrap();
    assert_eq!(zones.meta_voters, [NodeId(1), NodeId(4), NodeId(5)], "distinct zones first");
}

#[test]
fn no_zone_has_a_majority_of_the_meta_groups_voters_if_another_can_have_one_of_them() {
    let of_zones = |zones: &[&str]| -> BTreeMap<_, _> {
        let node = |(index, zone): (usize, &&str)| (NodeId(index as u64 + 1), member(100, zone));
        zones.iter().enumerate().map(node).collect()
    };
    let most = |record: &Record| {
        let zones = record.meta_voters.iter().map(|voter| &record.members[voter].zone);
        let mut count = BTreeMap::new();
        zones.for_each(|zone| *count.entry(zone).or_insert(0) += 1);
        count.into_values().max().unwrap()
    };
    let nine = Record::new(4, 3, of_zones(&["a", "a", "a", "b", "b", "b", "c", "c", "c"])).unwrap();
    assert_eq!((nine.meta_voters.len(), most(&nine)), (5, 2));
    // One zone came first; the others take over what is too much of it, and no more.
    let mut grown = Record::new(4, 3, of_zones(&["a", "a", "a"])).unwrap();
    grown = grown.changed(&Change::Formed).unwrap().unwrap();
    for (node, zone) in [(4, "b"), (5, "c"), (6, "b")] {
        let before = grown.meta_voters.clone();
        let (addresses, zone) = (vec![format!("host:{node}")], zone.to_owned());
        let add = Change::Add { node: NodeId(node), addresses, weight: 100, zone };
        let joining = grown.changed(&add).unwrap().unwrap();
        grown = joining.changed(&Change::Follows { node: NodeId(node) }).unwrap().unwrap();
        let stayed = grown.meta_voters.iter().filter(|voter| before.contains(voter)).count();
        assert!(stayed + 1 >= before.len(), "{before:?} became {:?}", grown.meta_voters);
    }
    assert_eq!((grown.meta_voters.len(), most(&grown)), (5, 2));
    let two = Record::new(4, 3, of_zones(&["a", "a", "a", "a", "b"])).unwrap();
    assert_eq!((two.meta_voters.len(), most(&two)), (5, 4), "there is nobody else");
}

#[test]
fn what_is_hashed_of_a_tree_is_chosen_once() {
    let record = record(3);
    let slash = TreeHash::Before { delimiter: b'/', occurrence: 1 };
    let choose = |hash| Change::HashTree { tree: "chat".into(), hash };
    assert_eq!(record.changed(&choose(TreeHash::Whole)), Ok(None), "that is so already");
    let chosen = record.changed(&choose(slash)).unwrap().unwrap();
    assert_eq!((chosen.epoch, chosen.tree_hash(b"chat")), (record.epoch + 1, None), "not in force yet");
    assert_eq!(chosen.changed(&choose(slash)), Ok(None), "whoever was interrupted asks again");
    for other in [TreeHash::Whole, TreeHash::First(4), TreeHash::Before { delimiter: b'/', occurrence: 2 }] {
        assert!(chosen.changed(&choose(other)).unwrap_err().contains("for ever"), "{other}");
    }
    let done = Change::TreeHashed { tree: "chat".into() };
    assert!(record.changed(&done).is_err(), "nothing was chosen");
    let in_force = chosen.changed(&done).unwrap().unwrap();
    assert_eq!(in_force.tree_hash(b"chat"), Some(slash));
    assert_eq!(in_force.changed(&done), Ok(None));
    assert_eq!(in_force.changed(&choose(slash)), Ok(None));
    assert!(in_force.changed(&choose(TreeHash::First(4))).is_err());
    assert_eq!(Record::decode(in_force.encode()).unwrap(), in_force);
    let names: [&[u8]; 4] = [b"", b"__sled__default", b"__dogsled__locks", &[b'x'; 1025]];
    for name in names {
        let change = Change::HashTree { tree: name.into(), hash: slash };
        assert!(record.changed(&change).is_err(), "{}", name.escape_ascii());
    }
    for hash in [TreeHash::First(0), TreeHash::Before { delimiter: b'/', occurrence: 0 }] {
        assert!(record.changed(&choose(hash)).is_err(), "{hash:?}");
    }
}
