//! [`Caller`]: asks nodes for those who take locks and own keys; and [`LogTimes`]: what time the logs had where,
//! as far as anybody was told.
//!
//! A caller asks one node, and after an error another one, or the one that is said to lead. What it was told of an
//! entry's position and time it writes down: times must not go back within a log, and with them is judged
//! whether something was there for longer than it had to live, or for less, by the log's own time and at
//! exact positions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::{ClientReply, ClientRequest, ClusterError, Consistency, NodeId};
use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::{GroupCommand, GroupRead, GroupReadReply, GroupReply, IVec, Operation, SessionTag};
use parking_lot::Mutex;

use crate::random::Random;
use crate::trace::event;
use crate::workload::Shared;

/// For so long an answer is waited for.
const DEADLINE: Duration = Duration::from_millis(2_500);

/// See the [module](self); clones are the same.
#[derive(Clone, Default)]
pub struct LogTimes(Arc<Mutex<BTreeMap<u32, BTreeMap<u64, u64>>>>);

impl LogTimes {
    /// An entry was carried out in a group, where and when its answer says.
    pub fn note(&self, group: u32, reply: &GroupReply) {
        self.0.lock().entry(group).or_default().insert(reply.position, reply.time_ms);
    }

    /// The first position at which a group's log is known to have had that time, or a later one.
    pub fn reached(&self, group: u32, time_ms: u64) -> Option<u64> {
        let times = self.0.lock();
        times.get(&group)?.iter().find(|(_, time)| **time >= time_ms).map(|(position, _)| *position)
    }

    /// Whether a group's log is known not to have had that time yet, at a position.
    pub fn is_before(&self, group: u32, position: u64, time_ms: u64) -> bool {
        let times = self.0.lock();
        let later = times.get(&group).and_then(|times| times.range(position..).next());
        later.is_some_and(|(_, time)| *time < time_ms)
    }

    /// What must not be, in words.
    pub fn judge(&self) -> Vec<String> {
        let times = self.0.lock();
        let mut violations = Vec::new();
        for (group, times) in times.iter() {
            let pairs = times.iter().zip(times.iter().skip(1));
            let back = pairs.clone().find(|((_, before), (_, after))| after < before);
            if let Some(((first, before), (second, after))) = back {
                violations.push(format!(
                    "group {group}: the log's time is {before} at {first}, and {after} at {second}"
                ));
            }
        }
        violations
    }
}

/// See the [module](self).
pub struct Caller {
    /// Its number among all who ask.
    pub number: u64,
    /// What all of them share.
    pub shared: Arc<Shared>,
    /// What it decides by.
    pub random: Random,
    favourite: NodeId,
}

impl Caller {
    /// Somebody of that number, who draws its own random numbers.
    pub fn new(number: u64, mut random: Random, shared: Arc<Shared>) -> Caller {
        let favourite = *random.pick(&shared.nodes.lock());
        Caller { number, shared, random, favourite }
    }

    /// Does nothing for a time between two, in milliseconds.
    pub async fn dawdle(&mut self, from: u64, to: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.between(from, to))).await;
    }

    async fn ask(&mut self, request: &ClientRequest) -> Option<ClientReply> {
        let answer = self.shared.network.ask(self.number, self.favourite, request.encode(), DEADLINE).await;
        let reply = match answer {
            Ok(bytes) => self.readable(ClientReply::decode(bytes)),
            Err(_) => None,
        };
        match reply {
            Some(ClientReply::Error(ClusterError::NotLeader { leader: Some(leader), .. })) => {
                self.favourite = leader;
                None
            }
            Some(ClientReply::Error(ClusterError::Invalid(what))) => {
                self.violation(format!("node {} found a request invalid: {what}", self.favourite));
                None
            }
            Some(ClientReply::Error(_)) | None => {
                self.favourite = *self.random.pick(&self.shared.nodes.lock());
                None
            }
            reply => reply,
        }
    }

    fn violation(&self, what: String) {
        event!(self.shared.trace, "caller {}: VIOLATION: {what}", self.number);
        self.shared.violations.lock().push(format!("caller {}: {what}", self.number));
    }

    /// What was decoded. That it cannot be is not the world's fault: no way changes what it carries.
    fn readable<T, E: std::fmt::Display>(&self, decoded: Result<T, E>) -> Option<T> {
        let told = |error| self.violation(format!("an answer cannot be read: {error}"));
        decoded.map_err(told).ok()
    }

    /// Has something done once; `None` if that is not heard of, whether it was done or not.
    pub async fn once(&mut self, group: u32, trees: &[&str], operation: Operation) -> Option<GroupReply> {
        self.under(None, group, trees, operation).await
    }

    async fn under(
        &mut self,
        session: Option<SessionTag>,
        group: u32,
        trees: &[&str],
        operation: Operation,
    ) -> Option<GroupReply> {
        let trees = trees.iter().map(|tree| IVec::from(*tree)).collect();
        let command = GroupCommand { session, time_ms: 0, trees, operation };
        let request = ClientRequest::Submit {
            group,
            deadline: Duration::from_secs(2),
            command: encode_group_command(&command).ok()?.into(),
        };
        let reply = match self.ask(&request).await? {
            ClientReply::Applied(reply) => self.readable(decode_group_reply(&reply))?,
            other => {
                self.violation(format!("a command was answered by {other:?}"));
                return None;
            }
        };
        self.shared.log.note(group, &reply);
        Some(reply)
    }

    /// Has something done that may be done again, until that is heard of or it was asked for so often.
    pub async fn often(
        &mut self,
        tries: u64,
        group: u32,
        trees: &[&str],
        operation: &Operation,
    ) -> Option<GroupReply> {
        for _ in 0..tries {
            if let Some(reply) = self.once(group, trees, operation.clone()).await {
                return Some(reply);
            }
            self.dawdle(5, 150).await;
        }
        None
    }

    /// Has something done once, as that command of a session, until that is heard of or it was asked for so often.
    pub async fn numbered(
        &mut self,
        tries: u64,
        group: u32,
        trees: &[&str],
        tag: SessionTag,
        operation: &Operation,
    ) -> Option<GroupReply> {
        for _ in 0..tries {
            if let Some(reply) = self.under(Some(tag), group, trees, operation.clone()).await {
                return Some(reply);
            }
            self.dawdle(5, 150).await;
        }
        None
    }

    /// Reads what is the newest; the answer, and the position of the last entry that it includes.
    pub async fn read(&mut self, group: u32, read: &GroupRead) -> Option<(GroupReadReply, u64)> {
        let request = ClientRequest::Read {
            group,
            deadline: Duration::ZERO,
            consistency: Consistency::Linearizable,
            read: encode_group_read(read).ok()?.into(),
        };
        match self.ask(&request).await? {
            ClientReply::Read { reply, position, .. } => {
                Some((self.readable(decode_group_read_reply(&reply))?, position))
            }
            other => {
                self.violation(format!("a read was answered by {other:?}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(times: &[(u64, u64)]) -> LogTimes {
        let log = LogTimes::default();
        for (position, time_ms) in times {
            log.note(1, &GroupReply { position: *position, time_ms: *time_ms, result: Err(refusal()) });
        }
        log
    }

    fn refusal() -> dogsled_storage::Refusal {
        dogsled_storage::Refusal::Malformed(String::new())
    }

    #[test]
    fn what_time_it_was_is_known_by_position() {
        let log = told(&[(10, 100), (12, 150), (20, 150), (21, 300)]);
        assert_eq!(log.judge(), Vec::<String>::new());
        assert_eq!(
            (log.reached(1, 150), log.reached(1, 151), log.reached(1, 301)),
            (Some(12), Some(21), None)
        );
        // At 13 it was not 200 yet, because at 20 it was not; at 21 it was. Of what comes behind nothing is known.
        assert!(log.is_before(1, 13, 200) && log.is_before(1, 20, 200) && !log.is_before(1, 21, 200));
        assert!(!log.is_before(1, 22, 1_000) && !log.is_before(2, 13, 200));
    }

    #[test]
    fn time_that_goes_back_is_told() {
        assert_eq!(told(&[(10, 100), (12, 99)]).judge().len(), 1);
    }
}
