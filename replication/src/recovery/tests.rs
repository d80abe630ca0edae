//! Who goes on, and when nobody may.

use super::*;
use crate::meta::{Change, MemberRecord, MemberState};

fn record(members: u64, partitions: u32) -> Record {
    let member = |_| MemberRecord {
        state: MemberState::Active,
        weight: 100,
        zone: String::new(),
        addresses: vec!["a:1".to_owned()],
    };
    let members = (1..=members).map(|node| (NodeId(node), member(node))).collect();
    Record::new(partitions, 3, members).unwrap().changed(&Change::Formed).unwrap().unwrap()
}

fn ids(nodes: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
    nodes.into_iter().map(NodeId).collect()
}

fn group(group: u32, voters: &[NodeId], last: (u64, u64)) -> GroupStatus {
    GroupStatus {
        group,
        role: Role::Candidate,
        leader: None,
        term: last.0 + 3,
        voters: voters.to_vec(),
        learners: Vec::new(),
        membership: MembershipId { term: 1, leader: 1, position: 1 },
        settled: true,
        joint: false,
        configs: vec![voters.to_vec()],
        first: 1,
        last: last.1,
        newest: MembershipId { term: last.0, leader: 1, position: last.1 },
        committed: last.1 - 1,
        applied: last.1 - 1,
        durable: 0,
        level: None,
        load: 0,
        followers: Vec::new(),
        failure: None,
    }
}

fn status(node: u64, groups: Vec<GroupStatus>) -> (NodeId, NodeStatus) {
    let status = NodeStatus {
        node: NodeId(node),
        cluster: 7,
        members: Vec::new(),
        groups,
        wal_live_bytes: 0,
        wal_file_bytes: 0,
        wal_syncs: 0,
        tree_bytes: 0,
        disk_total_bytes: 0,
        disk_free_bytes: 0,
        disk_low_mark_bytes: 0,
        disk_is_low: false,
        redis: String::new(),
        failure: None,
    };
    (NodeId(node), status)
}

/// Each of these answers, and has what the record gives it; all logs are alike.
fn answers(record: &Record, nodes: &[u64]) -> BTreeMap<NodeId, NodeStatus> {
    let has = |node: u64| {
        let all =
            (0..=record.partitions()).filter(|group| record.replicas_of(*group).contains(&NodeId(node)));
        all.map(|number| group(number, record.replicas_of(number), (2, 10))).collect()
    };
    nodes.iter().map(|node| status(*node, has(*node))).collect()
}

fn named(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

#[test]
fn of_the_survivors_the_one_with_the_newest_entry_goes_on() {
    let record = record(5, 1);
    let voters = ids(1..=5);
    let cases = [
        ([(2, 10), (2, 12)], 2, "the longer log of one term"),
        ([(3, 5), (2, 90)], 1, "a later term outweighs any length"),
        ([(2, 10), (2, 10)], 1, "either will do"),
    ];
    for (last, expected, what) in cases {
        let answers =
            [1, 2].map(|node: u64| status(node, vec![group(0, &voters, last[node as usize - 1])])).into();
        let found = plan(&record, &answers, &named(&[3, 4, 5])).unwrap();
        let group = &found.groups[0];
        assert_eq!(group.survivor, Some(NodeId(expected)), "{what}");
        assert_eq!((&group.lost, &group.others), (&ids([3, 4, 5]), &ids([3 - expected])), "{what}");
        assert_eq!(group.term, last[0].0.max(last[1].0) + 3, "{what}: what anybody knows counts");
    }
}

#[test]
fn nothing_is_given_up_while_there_is_a_quorum_or_somebody_who_may_know_better() {
    let record = record(5, 4);
    let plan = |alive: &[u64], lost: &[u64]| plan(&record, &answers(&record, alive), &named(lost));
    let refused = |alive: &[u64], lost: &[u64], why: &str| {
        let error = plan(alive, lost).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(&[1, 2, 3, 4], &[5], "every group has its quorum");
    refused(&[1, 2, 3, 4, 5], &[], "every group has its quorum");
    refused(&[1, 2], &[2, 3, 4, 5], "node 2 answers: it is not lost");
    refused(&[1, 2], &[3, 4], "node 5 does not answer and is not named");
    refused(&[1, 2], &[3, 4, 5, 9], "node 9 is no member");
    // To look, nobody has to be named.
    let seen = plan(&[1, 2], &[]).unwrap();
    assert_eq!((&seen.lost, seen.done), (&ids([3, 4, 5]), false));
    let meta = seen.groups.iter().find(|group| group.group == 0).unwrap();
    assert_eq!(meta.lost, ids([3, 4, 5]));
}

#[test]
fn a_group_that_keeps_its_quorum_is_left_alone_and_one_without_a_survivor_is_said_to_be_gone() {
    let record = record(6, 16);
    let lost = [NodeId(4), NodeId(5), NodeId(6)];
    let found = plan(&record, &answers(&record, &[1, 2, 3]), &lost.into()).unwrap();
    let mut seen = BTreeSet::new();
    for number in 0..=record.partitions() {
        let replicas = record.replicas_of(number);
        let dead = replicas.iter().filter(|node| lost.contains(node)).count();
        let group = found.groups.iter().find(|group| group.group == number);
        match dead * 2 < replicas.len() {
            true => assert_eq!(group, None, "group {number} of {replicas:?}"),
            false => {
                let group = group.unwrap();
                assert_eq!(
                    group.survivor.is_none(),
                    dead == replicas.len(),
                    "group {number} of {replicas:?}"
                );
                assert_eq!(group.lost.len(), dead);
                seen.insert(dead);
            }
        }
    }
    assert_eq!(seen, BTreeSet::from([2, 3]), "both kinds were there");
}

#[test]
fn half_a_change_of_members_needs_both_majorities() {
    let record = record(5, 1);
    let mut joint = group(0, &ids(1..=5), (2, 10));
    (joint.joint, joint.configs) = (true, vec![ids([1, 2]), ids([3, 4, 5])]);
    // Three of five, but only one of the two before.
    let answers = [1, 3, 4].map(|node| status(node, vec![joint.clone()])).into();
    assert_eq!(plan(&record, &answers, &named(&[2, 5])).unwrap().groups[0].group, 0);
    let other = group(1, record.replicas_of(1), (2, 10));
    let answers = [1, 2, 3, 4].map(|node| status(node, vec![joint.clone(), other.clone()])).into();
    assert!(plan(&record, &answers, &named(&[5])).unwrap_err().contains("its quorum"));
}

#[test]
fn a_replica_that_does_not_run_is_no_ground_to_give_up_the_others() {
    let record = record(3, 1);
    let mut down = group(0, &[], (2, 10));
    (down.role, down.configs) = (Role::Down, Vec::new());
    down.failure = Some("the disk is full".to_owned());
    let answers = [status(1, vec![down])].into();
    let error = plan(&record, &answers, &named(&[2, 3])).unwrap_err();
    assert!(error.contains("disk is full"), "{error}");
}

#[test]
fn a_replica_that_does_not_run_is_not_needed_where_the_others_have_their_quorum() {
    let record = record(5, 1);
    let meta = group(0, &ids([1, 4, 5]), (2, 10));
    let (sound, mut down) = (group(1, &ids([1, 2, 3]), (2, 10)), group(1, &[], (9, 99)));
    (down.role, down.configs, down.failure) =
        (Role::Down, Vec::new(), Some("its file is damaged".to_owned()));
    // Of those who vote in the meta group one is left, so something is to be recovered; of group 1 all but the one that is
    // down.
    let answers = |others: &[u64]| {
        let others = others.iter().map(|node| status(*node, vec![meta.clone(), sound.clone()]));
        others.chain([status(3, vec![meta.clone(), down.clone()])]).collect::<BTreeMap<_, _>>()
    };
    let planned = plan(&record, &answers(&[1, 2]), &named(&[4, 5])).unwrap();
    assert_eq!(planned.groups.iter().map(|group| group.group).collect::<Vec<_>>(), [0]);
    let error = plan(&record, &answers(&[1]), &named(&[2, 4, 5])).unwrap_err();
    assert!(error.contains("file is damaged"), "{error}");
    // One that has to have more before it votes is no majority of its own.
    let mut lone = group(1, &ids([1]), (2, 10));
    lone.failure = Some("it has to have 20 entries".to_owned());
    let answers = (1..=3).map(|node| {
        let mut groups = vec![meta.clone()];
        groups.extend((node == 1).then(|| lone.clone()));
        status(node, groups)
    });
    let planned = plan(&record, &answers.collect(), &named(&[4, 5])).unwrap();
    assert_eq!(planned.groups.iter().map(|group| group.group).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_could_be_lost_is_said_in_words() {
    let mut one = GroupRecovery {
        group: 3,
        survivor: Some(NodeId(1)),
        lost: ids([2, 3]),
        others: Vec::new(),
        last: MembershipId { term: 4, leader: 2, position: 57 },
        committed: 55,
        applied: 55,
        term: 4,
        led: false,
        level: Some(Duration::from_millis(1_500)),
    };
    assert_eq!(
        one.to_string(),
        "partition 3: node 1 goes on with 57 entries (term 4), of which 55 are known to be committed; lost is what 2, 3 \
         acknowledged after these (node 1 was level with its leader 1.5s ago)"
    );
    one.led = true;
    assert!(one.to_string().contains("node 1 led"), "{one}");
    one.survivor = None;
    assert!(one.to_string().contains("everything in it is lost"), "{one}");
}

#[test]
fn of_survivors_with_the_same_entries_the_one_that_leads_goes_on() {
    let record = record(5, 1);
    let voters = ids(1..=5);
    let leads = GroupStatus { role: Role::Leader, ..group(0, &voters, (4, 9)) };
    let follows = GroupStatus { role: Role::Follower, ..group(0, &voters, (4, 9)) };
    let newer = group(0, &voters, (4, 10));
    let lost = ids([1, 2, 4]).into_iter().collect();
    let survivor = |third: &GroupStatus, fifth: &GroupStatus| {
        let answers = [status(3, vec![third.clone()]), status(5, vec![fifth.clone()])].into();
        plan(&record, &answers, &lost).unwrap().groups[0].survivor.unwrap()
    };
    // Who follows is in touch with its leader, and would refuse: a leader that lost its majority leads on.
    assert_eq!(survivor(&follows, &leads), NodeId(5));
    assert_eq!(survivor(&leads, &follows), NodeId(3));
    assert_eq!(survivor(&newer, &leads), NodeId(3), "but not if it has less");
}

#[test]
fn a_group_that_only_a_silent_member_may_have_is_not_said_to_have_its_quorum() {
    let record = record(4, 1);
    // Group 1 was just moved to some who have nothing of it yet; who has it does not answer.
    let here = |node| status(node, vec![group(0, &ids([1, 2]), (4, 9))]);
    let answers: BTreeMap<NodeId, NodeStatus> = [here(1), here(2)].into();
    for (lost, expected) in [
        (&[4][..], "node 3 does not answer and is not named"),
        (&[], "group 1 yet"),
        (&[3, 4], "group 1 yet"),
    ] {
        let why = plan(&record, &answers, &named(lost)).unwrap_err();
        assert!(why.contains(expected), "{lost:?}: {why}");
    }
}
