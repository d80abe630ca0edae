//! What [`NodeMetrics`] has counted, as families.

use std::sync::atomic::Ordering;

use dogsled_storage::kind::{OperationKind, ReadKind};

use super::{Distribution, FAILURES, Family, NodeMetrics, REFUSALS, Stage};

/// Of more groups than this the histograms are added up: each group has nearly a hundred lines of them.
const GROUPS_APART: usize = 128;
/// The label of those that are added up.
const TOGETHER: &str = "all";

impl NodeMetrics {
    /// Everything that was counted here.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut families = vec![self.stages(), self.commands_by_group()];
        let mut commands = Family::histogram(
            "dogsled_command_duration_seconds",
            "Time from a command's arrival at its group's leader until its answer.",
        );
        for (kind, histogram) in OperationKind::ALL.iter().zip(&self.commands) {
            // Those that never happened are not told of: there are many, and each has two dozen lines.
            let read = histogram.read();
            if read.count() > 0 {
                commands.add(vec![("operation", kind.name().into())], read);
            }
        }
        families.push(commands);
        let mut reads = Family::histogram(
            "dogsled_read_duration_seconds",
            "Time from a read's arrival at the node that answered it until its answer.",
        );
        for (kind, histogram) in ReadKind::ALL.iter().zip(&self.reads) {
            let read = histogram.read();
            if read.count() > 0 {
                reads.add(vec![("operation", kind.name().into())], read);
            }
        }
        families.push(reads);
        let mut refused = Family::counter(
            "dogsled_commands_refused_total",
            "Commands that the state machine has refused, on the group's leader.",
        );
        for (reason, count) in REFUSALS.iter().zip(&self.refusals) {
            refused.add(vec![("reason", (*reason).into())], count.load(Ordering::Relaxed));
        }
        families.push(refused);
        let mut failed = Family::counter(
            "dogsled_requests_failed_total",
            "Requests that this node has answered with an error, by what the caller can do about it.",
        );
        for (reason, count) in FAILURES.iter().zip(&self.failures) {
            failed.add(vec![("reason", (*reason).into())], count.load(Ordering::Relaxed));
        }
        families.push(failed);
        families.push(
            Family::counter(
                "dogsled_acknowledged_lost_total",
                "Times that a log of this node lacked what the node had acknowledged to the group's leader.",
            )
            .of(self.losses.load(Ordering::Relaxed)),
        );
        let beside: Vec<_> = self.beside.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        families.extend(beside.iter().flat_map(|figures| figures.families()));
        families
    }

    fn stages(&self) -> Family {
        let mut family = Family::histogram(
            "dogsled_write_stage_duration_seconds",
            "Time that an entry spends in each stage of a write: queue, sync, replicate, apply.",
        );
        let groups = self.groups.lock();
        for stage in Stage::ALL {
            let mut together = Distribution::default();
            for (group, metrics) in groups.iter() {
                let read = metrics.stage(stage).read();
                if groups.len() > GROUPS_APART {
                    together.add(&read);
                } else if read.count() > 0 {
                    let labels = vec![("stage", stage.name().into()), ("group", group.to_string().into())];
                    family.add(labels, read);
                }
            }
            if together.count() > 0 {
                family.add(vec![("stage", stage.name().into()), ("group", TOGETHER.into())], together);
            }
        }
        family
    }

    fn commands_by_group(&self) -> Family {
        let mut family = Family::counter(
            "dogsled_commands_total",
            "Commands of clients, carried out by this node as their group's leader.",
        );
        let groups = self.groups.lock();
        let mut together = vec![0; OperationKind::ALL.len()];
        for (group, metrics) in groups.iter() {
            for ((kind, count), sum) in OperationKind::ALL.iter().zip(&metrics.commands).zip(&mut together) {
                let count = count.load(Ordering::Relaxed);
                *sum += count;
                if count > 0 && groups.len() <= GROUPS_APART {
                    let labels = vec![("operation", kind.name().into()), ("group", group.to_string().into())];
                    family.add(labels, count);
                }
            }
        }
        if groups.len() > GROUPS_APART {
            for (kind, sum) in OperationKind::ALL.iter().zip(together).filter(|(_, sum)| *sum > 0) {
                family.add(vec![("operation", kind.name().into()), ("group", TOGETHER.into())], sum);
            }
        }
        family
    }
}
