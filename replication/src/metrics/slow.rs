//! The slowest commands of late: what, in which tree, for how long. No keys and no values.
//!
//! Most commands are not among them, and find that out by reading one atomic: what the quickest of those
//! that are kept took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::nanoseconds;

/// How many are kept.
const KEPT: usize = 32;
/// For how long.
const KEEP_MS: u64 = 15 * 60_000;
/// What takes no longer is not slow.
const SLOW: Duration = Duration::from_millis(5);
/// Bytes of a tree's name that are kept.
const NAME: usize = 64;

/// A command, or a read, that took long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlowCommand {
    /// What it was, as the API calls it.
    pub operation: &'static str,
    /// Of which group.
    pub group: u32,
    /// The first tree that it named, as text, cut off if it is long; empty: none.
    pub tree: String,
    /// From its arrival at this node to the answer.
    pub took: Duration,
    /// When it was answered, in milliseconds since 1970.
    pub at_ms: u64,
}

impl SlowCommand {
    pub(super) fn new(
        operation: &'static str,
        group: u32,
        tree: Option<&[u8]>,
        took: Duration,
        at_ms: u64,
    ) -> SlowCommand {
        let tree = tree.unwrap_or_default();
        let mut name = String::from_utf8_lossy(&tree[..tree.len().min(NAME)]).into_owned();
        if tree.len() > NAME {
            name.push('…');
        }
        SlowCommand { operation, group, tree: name, took, at_ms }
    }
}

pub(super) struct SlowCommands {
    /// Nanoseconds; what takes no longer is not kept.
    limit: AtomicU64,
    kept: Mutex<Vec<SlowCommand>>,
}

impl Default for SlowCommands {
    fn default() -> SlowCommands {
        SlowCommands { limit: AtomicU64::new(nanoseconds(SLOW)), kept: Mutex::default() }
    }
}

impl SlowCommands {
    pub(super) fn is_slow(&self, took: Duration) -> bool {
        nanoseconds(took) > self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, command: SlowCommand) {
        let mut kept = self.kept.lock();
        let now_ms = command.at_ms;
        kept.push(command);
        self.tidy(&mut kept, now_ms);
    }

    /// The slowest first.
    pub(super) fn list(&self, now_ms: u64) -> Vec<SlowCommand> {
        let mut kept = self.kept.lock();
        self.tidy(&mut kept, now_ms);
        kept.clone()
    }

    fn tidy(&self, kept: &mut Vec<SlowCommand>, now_ms: u64) {
        kept.retain(|command| command.at_ms.saturating_add(KEEP_MS) >= now_ms);
        kept.sort_by_key(|command| std::cmp::Reverse(command.took));
        kept.truncate(KEPT);
        let limit = match kept.last() {
            Some(quickest) if kept.len() == KEPT => quickest.took,
            _ => SLOW,
        };
        self.limit.store(nanoseconds(limit), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(took_ms: u64, at_ms: u64) -> SlowCommand {
        SlowCommand::new("put", 1, Some(b"dogs"), Duration::from_millis(took_ms), at_ms)
    }

    #[test]
    fn the_slowest_stay_and_the_old_go() {
        let commands = SlowCommands::default();
        assert!(!commands.is_slow(SLOW) && commands.is_slow(SLOW * 2));
        for took in 10..10 + 2 * KEPT as u64 {
            commands.add(slow(took, 1_000));
        }
        let kept = commands.list(1_000);
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept.first(), Some(&slow(9 + 2 * KEPT as u64, 1_000)));
        let quickest = kept.last().expect("there are some").took;
        assert_eq!(quickest, Duration::from_millis(10 + KEPT as u64));
        assert!(!commands.is_slow(quickest) && commands.is_slow(quickest * 2));
        commands.add(slow(2_000, 1_000 + KEEP_MS / 2));
        assert_eq!(commands.list(1_001 + KEEP_MS), [slow(2_000, 1_000 + KEEP_MS / 2)]);
        assert!(commands.is_slow(SLOW * 2), "there is room again");
    }

    #[test]
    fn a_long_name_is_cut_off() {
        let name = [b'x'; 300];
        let command = SlowCommand::new("get", 1, Some(&name), SLOW, 0);
        assert_eq!(command.tree.chars().count(), NAME + 1);
        assert_eq!(SlowCommand::new("get", 1, None, SLOW, 0).tree, "");
    }
}
