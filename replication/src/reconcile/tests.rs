//! From every state that a plan, or a plan that was given up, can leave, in whatever order things happen:
//! what is wanted is reached, and never are there fewer good replicas than there were or are wanted.

use super::*;
use crate::meta::MemberRecord;

/// A group as it really is, of which a [`View`] shows what its leader knows.
#[derive(Clone, Debug)]
struct Real {
    leader: NodeId,
    position: u64,
    voters: BTreeSet<NodeId>,
    /// The voters before, of a joint membership.
    before: Option<BTreeSet<NodeId>>,
    learners: BTreeSet<NodeId>,
    /// Who has everything.
    full: BTreeSet<NodeId>,
    /// Who has a replica at all.
    hosts: BTreeSet<NodeId>,
}

struct World {
    record: Record,
    groups: BTreeMap<u32, Real>,
    down: BTreeSet<NodeId>,
    /// Steps that were taken, or are still on their way, and may come again.
    late: Vec<Step>,
    random: u64,
}

fn member(state: MemberState) -> MemberRecord {
    let addresses = vec!["a:1".to_owned()];
    MemberRecord { state, weight: 100, zone: String::new(), addresses }
}

fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

impl World {
    fn new(seed: u64, members: u64, partitions: u32, replicas: u32) -> World {
        let members = (1..=members).map(|node| (NodeId(node), member(MemberState::Active))).collect();
        let record = Record::new(partitions, replicas, members).unwrap();
        let groups = BTreeMap::new();
        World { record, groups, down: BTreeSet::new(), late: Vec::new(), random: seed << 8 | 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    fn view(&self) -> View {
        let mut view = View::default();
        let all: BTreeSet<NodeId> = self
            .record
            .members
            .keys()
            .copied()
            .chain(self.groups.values().flat_map(|real| real.hosts.iter().copied()))
            .collect();
        for node in all.iter().filter(|node| !self.down.contains(node)) {
            if !self.record.members.contains_key(node) {
                continue;
            }
            let hosted = self.groups.iter().filter(|(_, real)| real.hosts.contains(node));
            view.hosts.insert(*node, hosted.map(|(group, _)| *group).collect());
        }
        for (group, real) in &self.groups {
            if self.down.contains(&real.leader) {
                continue;
            }
            let members = real.voters.iter().chain(&real.learners).chain(real.before.iter().flatten());
            let level = members.filter(|node| real.full.contains(node) && !self.down.contains(node));
            view.groups.insert(
                *group,
                Observed {
                    leader: real.leader,
                    membership: MembershipId { term: 1, leader: 1, position: real.position },
                    settled: true,
                    joint: real.before.is_some(),
                    voters: real.voters.iter().chain(real.before.iter().flatten()).copied().collect(),
                    learners: real.learners.clone(),
                    level: level.copied().collect(),
                },
            );
        }
        view
    }

    /// Takes a step as the group's leader would, or not.
    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin { group, members } => {
                let all: BTreeSet<NodeId> =
                    members.iter().copied().filter(|node| !self.down.contains(node)).collect();
                let Some(first) = all.first().copied() else { return };
                let voters: BTreeSet<NodeId> = members.iter().copied().collect();
                let real = self.groups.entry(*group).or_insert_with(|| Real {
                    leader: first,
                    position: 1,
                    full: voters.clone(),
                    voters,
                    before: None,
                    learners: BTreeSet::new(),
                    hosts: BTreeSet::new(),
                });
                real.hosts.extend(all);
            }
            Step::Record(change) => {
                if let Ok(Some(next)) = self.record.changed(change) {
                    self.record = next;
                }
            }
            Step::Lead { group, to } => {
                if let Some(real) = self.groups.get_mut(group)
                    && !self.down.contains(to)
                    && !self.down.contains(&real.leader)
                    && real.voters.contains(to)
                    && real.full.contains(to)
                {
                    real.leader = *to;
                }
            }
            Step::Change { group, based_on, change } => {
                let half_done = self.below(6) == 0;
                let down = self.down.clone();
                let Some(real) = self.groups.get_mut(group) else { return };
                // What the group refuses.
                if real.position != based_on.position || down.contains(&real.leader) {
                    return;
                }
                match change {
                    GroupChange::Begin { .. } => {}
                    GroupChange::Learners { nodes } => {
                        for (node, _) in nodes {
                            if down.contains(node) {
                                return;
                            }
                        }
                        for (node, _) in nodes {
                            if !real.hosts.contains(node) {
                                real.hosts.insert(*node);
                                real.full.remove(node);
                            }
                            if !real.voters.contains(node) {
                                real.learners.insert(*node);
                            }
                        }
                    }
                    GroupChange::Voters { voters, keep } => {
                        let voters: BTreeSet<NodeId> = voters.iter().copied().collect();
                        let good = |node: &&NodeId| real.full.contains(node) && !down.contains(node);
                        let enough = voters.iter().filter(good).count() * 2 > voters.len();
                        if !enough || !voters.difference(&real.voters).all(|node| good(&node)) {
                            return;
                        }
                        let gone: Vec<NodeId> = real.voters.difference(&voters).copied().collect();
                        real.learners.retain(|node| !voters.contains(node));
                        let before = std::mem::replace(&mut real.voters, voters);
                        real.before = half_done.then_some(before);
                        if *keep {
                            real.learners.extend(gone);
                        }
                    }
                    GroupChange::Remove { nodes } => {
                        assert!(
                            nodes.iter().all(|node| !real.voters.contains(node)),
                            "{change:?} of {real:?}"
                        );
                        real.learners.retain(|node| !nodes.contains(node));
                    }
                    GroupChange::Settle => real.before = None,
                }
                real.position += 1;
                if !real.voters.contains(&real.leader) && real.before.is_none() {
                    real.leader = *real.voters.first().expect("somebody votes");
                }
            }
        }
    }

    /// Something that happens by itself.
    fn happen(&mut self) {
        let groups: Vec<u32> = self.groups.keys().copied().collect();
        let group = groups[self.below(groups.len() as u64) as usize];
        let (what, pick) = (self.below(3), self.below(16) as usize);
        let down = self.down.clone();
        let wanted = self.record.replicas_of(group).to_vec();
        let Some(real) = self.groups.get_mut(&group) else { return };
        match what {
            // A learner gets on.
            0 | 1 => {
                let learners: Vec<NodeId> =
                    real.learners.iter().copied().filter(|n| !down.contains(n)).collect();
                if !learners.is_empty() {
                    let node = learners[pick % learners.len()];
                    if real.hosts.contains(&node) {
                        real.full.insert(node);
                    }
                }
            }
            // Somebody drops what is not wanted, if he is out.
            _ => {
                let out = |node: &NodeId| {
                    group != META_GROUP
                        && !wanted.contains(node)
                        && !real.voters.contains(node)
                        && !real.learners.contains(node)
                        && !real.before.iter().flatten().any(|before| before == node)
                };
                let out: Vec<NodeId> = real.hosts.iter().copied().filter(out).collect();
                for node in out {
                    real.hosts.remove(&node);
                    real.full.remove(&node);
                }
            }
        }
    }

    /// Leaders that are down are replaced, if a majority is up.
    fn elect(&mut self) {
        for real in self.groups.values_mut() {
            let majority = |voters: &BTreeSet<NodeId>| {
                let up = voters.iter().filter(|n| !self.down.contains(n) && real.full.contains(n)).count();
                up * 2 > voters.len()
            };
            if self.down.contains(&real.leader)
                && majority(&real.voters)
                && real.before.as_ref().is_none_or(majority)
            {
                let up = real.voters.iter().find(|n| !self.down.contains(n) && real.full.contains(n));
                real.leader = *up.expect("a majority is up");
            }
        }
    }

    fn check(&self, asked: &BTreeMap<u32, usize>) {
        for (group, real) in &self.groups {
            let good = |voters: &BTreeSet<NodeId>| voters.iter().filter(|n| real.full.contains(n)).count();
            let least = asked.get(group).copied().unwrap_or(1);
            assert!(good(&real.voters) >= least, "group {group}: {real:?}, and {least} were to be kept");
            assert!(real.before.iter().all(|before| good(before) >= least), "group {group}: {real:?}");
            assert_eq!(good(&real.voters), real.voters.len(), "group {group}: an empty voter: {real:?}");
        }
    }

    /// The fewest replicas that each group may have from now on.
    fn least(&self) -> BTreeMap<u32, usize> {
        let least = |(group, real): (&u32, &Real)| {
            let voters = real.before.iter().map(BTreeSet::len).chain([real.voters.len()]).min();
            (*group, voters.unwrap_or(0).min(self.record.replicas_of(*group).len()))
        };
        self.groups.iter().map(least).collect()
    }

    fn is_reached(&self) -> bool {
        is_reached(&self.record, &self.view()) && next_steps(&self.record, &self.view()).is_empty()
    }

    /// One round of the driver, of which any part may get lost, or come later.
    fn round(&mut self, faulty: bool) {
        let steps = next_steps(&self.record, &self.view());
        for step in steps {
            match if faulty { self.below(5) } else { 4 } {
                // Lost.
                0 => {}
                1 => self.late.push(step),
                2 => {
                    self.take(&step);
                    self.late.push(step);
                }
                _ => self.take(&step),
            }
        }
        if faulty && !self.late.is_empty() && self.below(3) == 0 {
            let at = self.below(self.late.len() as u64) as usize;
            let step = self.late.swap_remove(at);
            // The record is changed by compare-and-swap: one that comes late fails.
            if !matches!(step, Step::Record(_)) {
                self.take(&step);
            }
        }
    }

    fn reach(&mut self, what: &str) {
        let least = self.least();
        for _ in 0..2_000 {
            if self.is_reached() {
                return;
            }
            self.round(false);
            self.happen();
            self.elect();
            self.check(&least);
        }
        panic!(
            "{what}: never reached: {:?}\n{:#?}\nnext: {:?}",
            self.record,
            self.groups,
            next_steps(&self.record, &self.view())
        );
    }

    fn made(seed: u64, members: u64, partitions: u32, replicas: u32) -> World {
        let mut world = World::new(seed, members, partitions, replicas);
        // Group 0 is begun by whoever makes the cluster.
        let voters = world.record.meta_voters.iter().copied().collect::<BTreeSet<_>>();
        world.groups.insert(
            META_GROUP,
            Real {
                leader: *voters.first().unwrap(),
                position: 1,
                full: voters.clone(),
                voters,
                before: None,
                learners: BTreeSet::new(),
                hosts: world.record.members.keys().copied().collect(),
            },
        );
        world.reach("making it");
        world
    }

    fn change(&mut self, change: &Change) -> bool {
        match self.record.changed(change) {
            Ok(Some(next)) => {
                self.record = next;
                true
            }
            _ => false,
        }
    }
}

#[test]
fn every_plan_is_carried_through_from_wherever_it_was_left() {
    for seed in 0..400 {
        let members = 1 + seed % 6;
        let mut world = World::made(seed, members, 1 + (seed % 5) as u32, 1 + (seed % 3) as u32);
        let mut newest = members;
        for _ in 0..12 {
            let node = NodeId(1 + world.below(newest));
            let change = match world.below(9) {
                0..3 => {
                    newest += 1;
                    Change::Add {
                        node: NodeId(newest),
                        addresses: vec!["a:1".to_owned()],
                        weight: 100,
                        zone: ["", "x", "y"][world.below(3) as usize].to_owned(),
                    }
                }
                3 | 4 => Change::Remove { node },
                5 => Change::Drain { node, on: true },
                6 => Change::Drain { node, on: false },
                7 => Change::Weight { node, weight: 1 + world.below(300) as u32 },
                _ => Change::Replicas(1 + world.below(4) as u32),
            };
            world.change(&change);
            let least = world.least();
            // Some way towards it, through whatever happens; then the next change comes.
            for _ in 0..world.below(30) {
                if world.below(6) == 0 && world.down.is_empty() {
                    let down = NodeId(1 + world.below(newest));
                    world.down.insert(down);
                } else if world.below(4) == 0 {
                    world.down.clear();
                }
                world.round(true);
                world.happen();
                world.elect();
                world.check(&least);
            }
            world.down.clear();
            world.elect();
        }
        world.reach(&format!("seed {seed}"));
    }
}

#[test]
fn at_most_so_many_partitions_are_copied_at_a_time() {
    let mut world = World::made(1, 3, 12, 3);
    world.record.settings.moves = 2;
    world.change(&Change::Add {
        node: NodeId(4),
        addresses: vec!["a:1".to_owned()],
        weight: 100,
        zone: String::new(),
    });
    let mut most = 0;
    for _ in 0..2_000 {
        if world.is_reached() {
            break;
        }
        world.round(false);
        let copying = (1..=12).filter(|group| !world.groups[group].learners.is_empty()).count();
        most = most.max(copying);
        world.happen();
    }
    assert!(world.is_reached());
    assert_eq!(most, 2);
}

#[test]
fn while_movement_is_paused_only_halves_of_changes_are_completed() {
    let mut world = World::made(1, 4, 4, 3);
    world.change(&Change::Remove { node: NodeId(4) });
    world.record.settings.paused = true;
    let real = world.groups.get_mut(&1).unwrap();
    real.before = Some(real.voters.clone());
    let steps = next_steps(&world.record, &world.view());
    let of_partitions: Vec<&Step> = steps
        .iter()
        .filter(|step| !matches!(step, Step::Change { group: 0, .. } | Step::Record(_)))
        .collect();
    assert!(
        matches!(of_partitions[..], [Step::Change { group: 1, change: GroupChange::Settle, .. }]),
        "{of_partitions:?}"
    );
}

#[test]
fn leadership_goes_before_the_replica_that_leads() {
    let mut world = World::made(1, 4, 1, 3);
    let real = &world.groups[&1];
    let leaving = real.leader;
    assert!(world.change(&Change::Remove { node: leaving }));
    let mut led = Vec::new();
    for _ in 0..200 {
        let real = &world.groups[&1];
        led.push((real.leader, real.voters.contains(&leaving)));
        world.round(false);
        world.happen();
    }
    let last_led = led.iter().rposition(|(leader, _)| *leader == leaving).unwrap();
    let first_out = led.iter().position(|(_, votes)| !*votes).unwrap();
    assert!(last_led < first_out, "it led until round {last_led}, and voted until round {first_out}");
}

/// Whoever has lost a disk comes back under a new id, and the old one is taken out afterwards: what the
/// new one gets must not wait for the old one.
#[test]
fn a_member_gets_its_share_although_another_is_down_for_good() {
    for dead in 1..=3 {
        let mut world = World::made(1, 3, 6, 3);
        world.down.insert(NodeId(dead));
        world.elect();
        let least = world.groups.keys().map(|group| (*group, 3)).collect();
        let zone = String::new();
        world.change(&Change::Add { node: NodeId(4), addresses: vec!["d:4".to_owned()], weight: 100, zone });
        let votes = |world: &World| {
            let mine = (1..=6).filter(|group| world.record.replicas_of(*group).contains(&NodeId(4)));
            let mine: Vec<u32> = mine.collect();
            !mine.is_empty() && mine.iter().all(|group| world.groups[group].voters.contains(&NodeId(4)))
        };
        for _ in 0..500 {
            world.round(false);
            world.happen();
            world.check(&least);
        }
        assert!(votes(&world), "without node {dead}: {:#?}", world.groups);
        world.change(&Change::Remove { node: NodeId(dead) });
        world.reach("taking it out");
    }
}

#[test]
fn a_member_that_is_silent_is_replaced_only_after_a_while_and_only_if_enough_are_left() {
    let mut world = World::made(1, 4, 2, 3);
    let after = world.record.settings.replace_after;
    let mut view = world.view();
    view.silent.insert(NodeId(4), after - Duration::from_secs(1));
    assert_eq!(next_steps(&world.record, &view), []);
    view.silent.insert(NodeId(4), after);
    assert_eq!(next_steps(&world.record, &view), [Step::Record(Change::Silent { node: NodeId(4) })]);
    world.change(&Change::Remove { node: NodeId(1) });
    world.reach("removing one");
    let mut view = world.view();
    view.silent.insert(NodeId(4), after);
    assert_eq!(next_steps(&world.record, &view), [], "three are left for three replicas");
    assert_eq!(ids([2, 3, 4]), world.record.members.keys().copied().collect());
}
