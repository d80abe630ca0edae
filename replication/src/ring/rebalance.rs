//! From what was kept to where everything goes; see the [module](super) for the idea.
//!
//! In this order, each step only for members and partitions that need it:
//!
//! 1. Of a partition with too many replicas, or too many in a zone, those are dropped whose members
//!    have the most for their share.
//! 2. Places that are empty are filled, in the order of the ring, by members that are below their
//!    share.
//! 3. A member below its lower bound takes up to its share, partitions near to it on the ring first,
//!    from members that are above theirs.
//! 4. A member above its upper bound gives down to its share, those farthest from it on the ring first.
//!
//! What a step cannot do directly it does by the cheapest path of exchanges; and what would take more
//! than one movement is left as it is, if that is within the bounds.

use std::collections::{BTreeSet, VecDeque};

use super::placement::Member;
use super::points::{Points, beginning};
use super::share::Shares;

/// Takes the place of a member where a path begins at an empty place of a partition.
const NOBODY: u32 = u32::MAX;

/// A placement in the making. Members are numbered by their place in the list, partitions from 0.
pub(super) struct Work<'a> {
    shares: &'a Shares,
    points: Points,
    replicas: usize,
    /// Who held each partition before, of those that still can.
    before: Vec<Vec<u32>>,
    /// Who holds it now.
    slots: Vec<Vec<u32>>,
    /// What each member holds now.
    held: Vec<BTreeSet<u32>>,
    /// What each member should hold.
    target: Vec<u64>,
}

/// One replica's way from a member (or [`NOBODY`]) to another.
#[derive(Clone, Copy, Debug)]
struct Step {
    partition: u32,
    from: u32,
    to: u32,
}

/// Where paths may begin.
enum Source {
    /// At a partition that has a replica too few.
    Partition(u32),
    /// At members that have replicas to spare.
    Members(Vec<u32>),
}

/// How much a path may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// None: it only exchanges what is not where it was before anyway, or returns to where it was.
    Nothing,
    /// One movement, and what costs nothing.
    OneMovement,
    /// Whatever it needs.
    Any,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        members: &[Member],
        shares: &'a Shares,
        kept: Vec<Vec<u32>>,
        replicas: usize,
    ) -> Work<'a> {
        let mut held = vec![BTreeSet::new(); members.len()];
        for (partition, slots) in kept.iter().enumerate() {
            for member in slots {
                held[*member as usize].insert(partition as u32);
            }
        }
        let loads: Vec<u64> = held.iter().map(|held| held.len() as u64).collect();
        let target = shares.targets(replicas, &loads);
        let points = Points::new(members);
        Work { shares, points, replicas, before: kept.clone(), slots: kept, held, target }
    }

    /// All steps. What each partition kept comes first, in the order that it had.
    pub(super) fn run(mut self) -> Vec<Vec<u32>> {
        self.drop_what_is_too_much();
        self.fill();
        let takers: Vec<u32> =
            self.members().filter(|member| self.load(*member) < self.low(*member)).collect();
        for taker in &takers {
            self.take(*taker);
        }
        for member in self.members() {
            if self.load(member) > self.high(member) {
                self.give(member, &takers);
            }
        }
        // What moved took the place of what it came from. Those who have the data come first.
        for (slots, before) in self.slots.iter_mut().zip(&self.before) {
            slots.sort_by_key(|member| before.iter().position(|kept| kept == member).unwrap_or(usize::MAX));
        }
        self.slots
    }

    fn drop_what_is_too_much(&mut self) {
        for partition in 0..self.slots.len() as u32 {
            let zone = |member: u32| self.shares.zone[member as usize];
            loop {
                let slots = &self.slots[partition as usize];
                let crowded = |member: &&u32| {
                    slots.iter().filter(|other| zone(**other) == zone(**member)).count() > self.shares.depth
                };
                let dropped = match slots.iter().filter(crowded).copied().reduce(|a, b| self.fuller(a, b)) {
                    Some(member) => member,
                    None if slots.len() > self.replicas => {
                        slots.iter().copied().reduce(|a, b| self.fuller(a, b)).expect("it has replicas")
                    }
                    None => break,
                };
                self.slots[partition as usize].retain(|member| *member != dropped);
                self.held[dropped as usize].remove(&partition);
            }
        }
    }

    fn fill(&mut self) {
        let mut left = Vec::new();
        for partition in 0..self.slots.len() as u32 {
            while self.slots[partition as usize].len() < self.replicas {
                let Some(to) = self.first_clockwise(partition, NOBODY, |work, m| work.is_below_share(m))
                else {
                    break;
                };
                self.apply(&[Step { partition, from: NOBODY, to }]);
            }
            for _ in self.slots[partition as usize].len()..self.replicas {
                left.push(partition);
            }
        }
        // A search that fails looks at everything. Where one does there is little to be won by more.
        let mut in_vain = false;
        for partition in left {
            let below_share = |work: &Self, member| work.is_below_share(member);
            if !in_vain {
                match self.path(Source::Partition(partition), below_share, Effort::OneMovement) {
                    Some(path) => {
                        self.apply(&path);
                        continue;
                    }
                    None => in_vain = true,
                }
            }
            let below_bound = |work: &Self, member| work.load(member) < work.high(member);
            match self.first_clockwise(partition, NOBODY, below_bound) {
                Some(to) => self.apply(&[Step { partition, from: NOBODY, to }]),
                None => self.must(Source::Partition(partition), below_bound),
            }
        }
    }

    fn take(&mut self, taker: u32) {
        let mut near: Vec<(u64, u32)> = (0..self.slots.len() as u32)
            .map(|partition| (self.distance(partition, taker), partition))
            .collect();
        near.sort_unstable();
        let here = |_: &Self, member| member == taker;
        // What must be given anyway comes first, then what is placed anew anyway, then what may be given.
        self.take_directly(taker, &near, Work::high);
        self.take_by_paths(taker, Work::high, Effort::OneMovement);
        self.take_by_paths(taker, Work::target, Effort::Nothing);
        self.take_directly(taker, &near, Work::target);
        self.take_by_paths(taker, Work::target, Effort::OneMovement);
        while self.load(taker) < self.low(taker) {
            self.must(self.those_above(Work::target), here);
        }
    }

    /// Takes what can be had from members above some bound, nearest first.
    fn take_directly(&mut self, taker: u32, near: &[(u64, u32)], bound: fn(&Self, u32) -> u64) {
        for (_, partition) in near {
            if !self.is_below_share(taker) {
                return;
            }
            let slots = self.slots[*partition as usize].iter().copied();
            let givers = slots.filter(|from| self.load(*from) > bound(self, *from));
            let able = givers.filter(|from| self.allows(*partition, *from, taker));
            if let Some(from) = able.reduce(|a, b| self.fuller(a, b)) {
                self.apply(&[Step { partition: *partition, from, to: taker }]);
            }
        }
    }

    fn take_by_paths(&mut self, taker: u32, bound: fn(&Self, u32) -> u64, effort: Effort) {
        while self.is_below_share(taker)
            && let Some(path) = self.path(self.those_above(bound), |_, member| member == taker, effort)
        {
            self.apply(&path);
        }
    }

    fn give(&mut self, giver: u32, takers: &[u32]) {
        let mut far: Vec<(u64, u32)> =
            self.held[giver as usize].iter().map(|p| (self.distance(*p, giver), *p)).collect();
        far.sort_unstable();
        far.reverse();
        // Who joined can take a little more rather than that replicas move between others.
        let taker_with_room =
            |work: &Self, member| takers.contains(&member) && work.load(member) < work.high(member);
        self.give_directly(giver, &far, Work::high, taker_with_room);
        self.give_by_paths(giver, Work::high, taker_with_room);
        if self.load(giver) <= self.high(giver) {
            return;
        }
        let below_share = |work: &Self, member| work.is_below_share(member);
        self.give_directly(giver, &far, Work::target, below_share);
        self.give_by_paths(giver, Work::target, below_share);
        while self.load(giver) > self.high(giver) {
            self.must(Source::Members(vec![giver]), below_share);
        }
    }

    fn give_directly(
        &mut self,
        giver: u32,
        far: &[(u64, u32)],
        down_to: fn(&Self, u32) -> u64,
        accept: impl Fn(&Self, u32) -> bool,
    ) {
        for (_, partition) in far {
            if self.load(giver) <= down_to(self, giver) || !self.members().any(|member| accept(self, member))
            {
                return;
            }
            if self.held[giver as usize].contains(partition)
                && let Some(to) = self.first_clockwise(*partition, giver, &accept)
            {
                self.apply(&[Step { partition: *partition, from: giver, to }]);
            }
        }
    }

    fn give_by_paths(
        &mut self,
        giver: u32,
        down_to: fn(&Self, u32) -> u64,
        accept: impl Fn(&Self, u32) -> bool,
    ) {
        while self.load(giver) > down_to(self, giver)
            && let Some(path) = self.path(Source::Members(vec![giver]), &accept, Effort::OneMovement)
        {
            self.apply(&path);
        }
    }

    /// Goes a path that exists; see the [module](super) for why.
    fn must(&mut self, source: Source, sink: impl Fn(&Self, u32) -> bool) {
        let path = self.path(source, sink, Effort::Any);
        self.apply(&path.expect("shares are a solution in fractions, so there is one in whole numbers"));
    }

    /// The path from a source to a sink that moves the fewest replicas.
    ///
    /// Members are the nodes of this graph, and an edge is a replica that may go from one to another.
    /// Edges through the same partition can get into each other's way, but never on a path of the fewest
    /// edges: if both cross zones, the first could have gone where the second does; if not, they
    /// concern different zones. So where the cheapest path meets a partition twice, the shortest is taken.
    fn path(&self, source: Source, sink: impl Fn(&Self, u32) -> bool, effort: Effort) -> Option<Vec<Step>> {
        let path = self.search(&source, &sink, effort, true)?;
        let mut partitions: Vec<u32> = path.iter().map(|step| step.partition).collect();
        partitions.sort_unstable();
        match (partitions.windows(2).any(|pair| pair[0] == pair[1]), effort) {
            (false, _) => Some(path),
            (true, Effort::Nothing | Effort::OneMovement) => None,
            (true, Effort::Any) => self.search(&source, &sink, effort, false),
        }
    }

    /// With `by_cost` the cheapest path, otherwise the one of the fewest edges. If the effort is limited,
    /// any within the limit.
    fn search(
        &self,
        source: &Source,
        sink: &impl Fn(&Self, u32) -> bool,
        effort: Effort,
        by_cost: bool,
    ) -> Option<Vec<Step>> {
        let mut search = Search {
            cost: vec![u32::MAX; self.held.len()],
            came: vec![None; self.held.len()],
            queue: VecDeque::new(),
        };
        let everybody: Vec<u32> = self.members().collect();
        // Either the first path found is good enough, or it is in the order of cost that ends are met.
        let stop_at_first = !by_cost || effort != Effort::Any;
        let most = match effort {
            Effort::Nothing => 0,
            Effort::OneMovement => 1,
            Effort::Any => u32::MAX,
        };
        let leave = |partition, from, so_far, search: &mut Search| {
            // With nothing left to spend, what is where it was can only go back to where another was.
            let before = &self.before[partition as usize];
            let must_be_free = so_far == most && (from == NOBODY || before.contains(&from));
            for to in if must_be_free { before } else { &everybody } {
                let to = *to;
                let step = Step { partition, from, to };
                let cost = if by_cost { u32::from(self.is_movement(step)) } else { 1 };
                if so_far + cost < search.cost[to as usize]
                    && so_far + cost <= most
                    && self.allows(partition, from, to)
                {
                    search.reach(step, so_far, cost);
                    if stop_at_first && sink(self, to) {
                        return Some(search.path_to(to));
                    }
                }
            }
            None
        };
        match source {
            Source::Members(members) => {
                for member in members {
                    search.cost[*member as usize] = 0;
                    search.queue.push_back((0, *member));
                }
            }
            Source::Partition(partition) => {
                if let Some(path) = leave(*partition, NOBODY, 0, &mut search) {
                    return Some(path);
                }
            }
        }
        while let Some((cost, member)) = search.queue.pop_front() {
            if cost > search.cost[member as usize] {
                continue;
            }
            if sink(self, member) {
                return Some(search.path_to(member));
            }
            for partition in &self.held[member as usize] {
                if let Some(path) = leave(*partition, member, cost, &mut search) {
                    return Some(path);
                }
            }
        }
        None
    }

    fn apply(&mut self, path: &[Step]) {
        for step in path {
            let Step { partition, from, to } = *step;
            assert!(self.allows(partition, from, to), "{step:?} of {path:?} is not allowed");
            let slots = &mut self.slots[partition as usize];
            match slots.iter_mut().find(|slot| **slot == from) {
                Some(slot) => *slot = to,
                None => slots.push(to),
            }
            if from != NOBODY {
                self.held[from as usize].remove(&partition);
            }
            self.held[to as usize].insert(partition);
        }
    }

    /// Whether a partition's replica may go from a member (or [`NOBODY`]) to another.
    fn allows(&self, partition: u32, from: u32, to: u32) -> bool {
        let slots = &self.slots[partition as usize];
        let zone = |member: u32| self.shares.zone[member as usize];
        let neighbours = slots.iter().filter(|member| **member != from && zone(**member) == zone(to)).count();
        neighbours < self.shares.depth && !slots.contains(&to)
    }

    /// Whether a step puts a replica where there was none, in place of one that was there.
    fn is_movement(&self, step: Step) -> bool {
        let before = &self.before[step.partition as usize];
        !before.contains(&step.to) && (step.from == NOBODY || before.contains(&step.from))
    }

    /// The first member clockwise from a partition to which it may go from another.
    fn first_clockwise(&self, partition: u32, from: u32, accept: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        let mut clockwise = self.points.clockwise(beginning(partition, self.slots.len() as u32));
        clockwise.find(|to| accept(self, *to) && self.allows(partition, from, *to))
    }

    fn distance(&self, partition: u32, member: u32) -> u64 {
        self.points.distance(beginning(partition, self.slots.len() as u32), member)
    }

    fn load(&self, member: u32) -> u64 {
        self.held[member as usize].len() as u64
    }

    fn target(&self, member: u32) -> u64 {
        self.target[member as usize]
    }

    fn low(&self, member: u32) -> u64 {
        self.shares.bounds[member as usize].0
    }

    fn high(&self, member: u32) -> u64 {
        self.shares.bounds[member as usize].1
    }

    fn is_below_share(&self, member: u32) -> bool {
        self.load(member) < self.target(member)
    }

    fn members(&self) -> std::ops::Range<u32> {
        0..self.held.len() as u32
    }

    fn those_above(&self, bound: fn(&Self, u32) -> u64) -> Source {
        Source::Members(self.members().filter(|member| self.load(*member) > bound(self, *member)).collect())
    }

    /// Which of two has more for its share; the second if neither.
    fn fuller(&self, a: u32, b: u32) -> u32 {
        let fill_of_a = self.load(a) * self.target(b);
        if fill_of_a > self.load(b) * self.target(a) { a } else { b }
    }
}

/// What a search has found so far.
struct Search {
    cost: Vec<u32>,
    came: Vec<Option<Step>>,
    /// Members to go on from, with the cost at which each was reached, in ascending order.
    queue: VecDeque<(u32, u32)>,
}

impl Search {
    fn reach(&mut self, step: Step, so_far: u32, cost: u32) {
        self.cost[step.to as usize] = so_far + cost;
        self.came[step.to as usize] = Some(step);
        match cost {
            0 => self.queue.push_front((so_far, step.to)),
            _ => self.queue.push_back((so_far + cost, step.to)),
        }
    }

    fn path_to(&self, mut member: u32) -> Vec<Step> {
        let mut path = Vec::new();
        while member != NOBODY
            && let Some(step) = self.came[member as usize]
        {
            path.push(step);
            member = step.from;
        }
        path.reverse();
        path
    }
}
