//! Who leads: one replica of each partition, so that leaders are spread as replicas are.
//!
//! A member that holds h replicas of partitions with r each leads h/r of them, rounded down or up. That
//! too is a flow, from partitions to the members that hold them: if each replica led its partition to
//! 1/r, everybody would have exactly that; so it is possible in whole numbers next to it. Who leads
//! stays who leads as far as that allows, and where it does not, leadership is passed along the shortest
//! chain of members, each of which takes one over and gives one up.

use std::collections::{BTreeSet, VecDeque};

/// Puts the leader of each partition before its other replicas. Who was first stays so if possible.
pub(super) fn spread(slots: &mut [Vec<u32>], members: usize) {
    let mut held = vec![0u64; members];
    let mut led = vec![BTreeSet::new(); members];
    for (partition, slots) in slots.iter().enumerate() {
        led[slots[0] as usize].insert(partition as u32);
        slots.iter().for_each(|member| held[*member as usize] += 1);
    }
    let replicas = slots[0].len() as u64;
    let bounds = held.iter().map(|held| (held / replicas, held.div_ceil(replicas))).collect();
    let mut leaders = Leaders { slots, led, bounds };
    for member in 0..members as u32 {
        while leaders.count(member) > leaders.bounds[member as usize].1 {
            // Best to those who have too few, which spares them a turn of their own.
            let chain =
                leaders.chain(&[member], 1, |leaders, m| leaders.count(m) < leaders.bounds[m as usize].0);
            let chain = chain.or_else(|| {
                leaders.chain(&[member], usize::MAX, |leaders, m| {
                    leaders.count(m) < leaders.bounds[m as usize].1
                })
            });
            leaders.pass_on(chain);
        }
    }
    for member in 0..members as u32 {
        while leaders.count(member) < leaders.bounds[member as usize].0 {
            let can_give = |m: &u32| leaders.count(*m) > leaders.bounds[*m as usize].0;
            let givers: Vec<u32> = (0..members as u32).filter(can_give).collect();
            let chain = leaders.chain(&givers, usize::MAX, |_, m| m == member);
            leaders.pass_on(chain);
        }
    }
}

struct Leaders<'a> {
    /// The first of each leads.
    slots: &'a mut [Vec<u32>],
    led: Vec<BTreeSet<u32>>,
    /// The least and the most that each member should lead.
    bounds: Vec<(u64, u64)>,
}

impl Leaders<'_> {
    fn count(&self, member: u32) -> u64 {
        self.led[member as usize].len() as u64
    }

    /// The shortest chain from one of some members to one that is looked for: partitions, and who is to
    /// lead each.
    fn chain(
        &self,
        from: &[u32],
        longest: usize,
        wanted: impl Fn(&Self, u32) -> bool,
    ) -> Option<Vec<(u32, u32)>> {
        let mut came: Vec<Option<(u32, u32)>> = vec![None; self.led.len()];
        let mut seen = vec![false; self.led.len()];
        let mut queue = VecDeque::new();
        for member in from {
            seen[*member as usize] = true;
            queue.push_back((*member, 0));
        }
        while let Some((member, length)) = queue.pop_front() {
            if length == longest {
                continue;
            }
            for partition in &self.led[member as usize] {
                for next in &self.slots[*partition as usize][1..] {
                    if std::mem::replace(&mut seen[*next as usize], true) {
                        continue;
                    }
                    came[*next as usize] = Some((*partition, member));
                    if wanted(self, *next) {
                        let (mut chain, mut end) = (Vec::new(), *next);
                        while let Some((partition, from)) = came[end as usize] {
                            chain.push((partition, end));
                            end = from;
                        }
                        return Some(chain);
                    }
                    queue.push_back((*next, length + 1));
                }
            }
        }
        None
    }

    fn pass_on(&mut self, chain: Option<Vec<(u32, u32)>>) {
        let chain = chain.expect("a leader of each replica's part is a solution, so one in whole numbers is");
        for (partition, to) in chain {
            let slots = &mut self.slots[partition as usize];
            let place = slots.iter().position(|member| *member == to).expect("it holds the partition");
            self.led[slots[0] as usize].remove(&partition);
            self.led[to as usize].insert(partition);
            slots[..=place].rotate_right(1);
        }
    }
}
