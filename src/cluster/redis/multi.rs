//! What a client has queued between `MULTI` and `EXEC`, and how it is carried out.
//!
//! ```text
//! reads of a whole database ─► what is on keys: one moment ─► the rest, in order   ╮ for each part; FLUSHDB and
//!                                                                                  ╯ its like stand between parts
//! ```
//!
//! What is on keys, in any partitions, happens at one moment, under the locks that `DOGSLED.FENCED` names. Whatever else
//! Redis allows there (`SCAN`, `INFO`, `SELECT`) is answered at its place. What is told, whatever tells it, is bounded.

use std::mem;

use bytes::Bytes;
use dogsled_net::resp::{Protocol, Value};
use dogsled_storage::{Fence, TreeId};

use super::connection::held;
use super::database::{Data, MOST_IN_REPLY, TOO_MUCH, Watched};
use super::held::Collected;
use super::link::Link;
use super::table::{Planned, Step};
use super::whole::Whole;
use super::{describe, slots};

/// Replies that are no larger take no room that would have to be looked for.
const SMALL: usize = 4 << 10;
/// The most commands of a transaction.
const MOST_QUEUED: usize = 64 << 10;

/// What waits for `EXEC`.
struct Queued {
    step: Planned,
    /// Where, for what is of a whole database.
    database: TreeId,
}

impl Queue {
    /// Whether a fence and what is not done under it would come together.
    fn would_cut_a_fence(&self, step: &Step) -> bool {
        (cuts(step) && self.has_fence) || (is_fenced(step) && self.has_cut)
    }
}

/// Whether it is of all partitions and writes, so that what is behind it is a transaction of its own.
fn cuts(step: &Step) -> bool {
    matches!(step, Step::Whole(whole) if whole.writes())
}

fn is_fenced(step: &Step) -> bool {
    matches!(step, Step::Data(data) if data.fence.is_some())
}

impl Queued {
    fn cuts(&self) -> bool {
        self.step.as_ref().is_ok_and(cuts)
    }

    fn data(&self) -> Option<&Data> {
        match &self.step {
            Ok(Step::Data(data)) => Some(data),
            _ => None,
        }
    }
}

/// What came of a part of a transaction.
enum Carried {
    Out,
    /// What was watched has changed.
    Not,
    /// Nothing of the whole transaction was done.
    Refused(Value),
}

/// A transaction that is being put together.
pub(super) struct Queue {
    steps: Vec<Queued>,
    /// Where a `SELECT` within it leads.
    pub(super) database: TreeId,
    /// Something was refused, so that nothing is to be done.
    is_spoilt: bool,
    /// What its commands take.
    pub(super) bytes: usize,
    /// What came so far: something under a lock, something that cuts it.
    has_fence: bool,
    has_cut: bool,
}

impl Queue {
    pub(super) fn new(database: TreeId) -> Queue {
        let (steps, bytes) = (Vec::new(), 0);
        Queue { steps, database, is_spoilt: false, bytes, has_fence: false, has_cut: false }
    }

    /// Something was refused: `EXEC` does nothing.
    pub(super) fn spoil(&mut self) {
        self.is_spoilt = true;
    }

    /// Queues a command, if there is room for it and it may stand here; `selects`: it is a `SELECT`.
    pub(super) fn push(
        &mut self,
        planned: Planned,
        request: &[Bytes],
        selects: bool,
        limit: usize,
    ) -> Result<(), Value> {
        self.bytes += request.iter().map(|argument| argument.len() + 64).sum::<usize>();
        let refused = match &planned {
            Ok(Step::Lock(_) | Step::Listen(_) | Step::Script(_)) => {
                let name = String::from_utf8_lossy(&request[0]).to_ascii_uppercase();
                Some(format!("ERR {name} cannot be within MULTI"))
            }
            Ok(step) if self.would_cut_a_fence(step) => Some(
                "ERR FLUSHDB, FLUSHALL and CONFIG SET cannot be within one MULTI with DOGSLED.FENCED: they are carried out \
                 apart, whether the lock is held or not"
                    .to_owned(),
            ),
            _ if self.steps.len() >= MOST_QUEUED => {
                Some(format!("ERR more than {MOST_QUEUED} commands in MULTI"))
            }
            _ if self.bytes > limit => {
                Some("ERR the commands in MULTI are too large".to_owned())
            }
            _ => None,
        };
        if let Some(refused) = refused {
            self.is_spoilt = true;
            return Err(Value::error(refused));
        }
        // Nothing of it will be carried out, and nothing of it is kept.
        if self.is_spoilt {
            self.bytes = 0;
            self.steps = Vec::new();
            return Ok(());
        }
        if let Ok(step) = &planned {
            self.has_fence |= is_fenced(step);
            self.has_cut |= cuts(step);
        }
        let database = self.database;
        if selects
            && let Some(number) = dogsled_storage::strings::parse_integer(&request[1])
            && let Ok(number) = u32::try_from(number)
            && number < super::DATABASES
        {
            self.database = TreeId(number);
        }
        self.steps.push(Queued { step: planned, database });
        Ok(())
    }

    /// Carries out a transaction. What is on keys is done at one moment; but what writes to all partitions
    /// (`FLUSHDB`) cuts it: what is behind that is another moment, and whether it fails is told command by command.
    pub(super) async fn execute(self, link: &mut Link, mut watched: Vec<Watched>) -> Value {
        if self.is_spoilt {
            return Value::error("EXECABORT Transaction discarded because of previous errors.");
        }
        let mut rest = self.steps;
        let mut values = Vec::with_capacity(rest.len());
        let told = link.server.held.collect();
        loop {
            let end = rest.iter().position(Queued::cuts).unwrap_or(rest.len());
            let later = rest.split_off(end);
            match execute_part(link, rest, &mem::take(&mut watched), &mut values, &told).await {
                Carried::Out => {}
                Carried::Not => return Value::NullArray,
                Carried::Refused(refused) => return refused,
            }
            let mut later = later.into_iter();
            let Some(cut) = later.next() else { return Value::Array(values) };
            values.push(answer_step(link, cut, &told).await);
            rest = later.collect();
        }
    }
}

/// Carries out what is on keys at one moment. Reads of a whole database that come before anything is written are done before
/// it, others behind it: within it there is no view of all partitions.
async fn execute_part(
    link: &mut Link,
    steps: Vec<Queued>,
    watched: &[Watched],
    values: &mut Vec<Value>,
    told: &Collected,
) -> Carried {
    let operations: Vec<_> =
        steps.iter().filter_map(Queued::data).flat_map(|data| data.operations.iter().cloned()).collect();
    let mut fences: Vec<Fence> = Vec::new();
    for fence in steps.iter().filter_map(|step| step.data()?.fence.as_ref()) {
        if !fences.contains(fence) {
            fences.push(fence.clone());
        }
    }
    let is_write = |step: &Queued| step.data().is_some_and(|data| !data.is_read());
    let first_write = steps.iter().position(is_write).unwrap_or(0);
    let mut left = Vec::with_capacity(steps.len());
    for (index, step) in steps.into_iter().enumerate() {
        let value = match &step.step {
            Ok(Step::Whole(whole)) if index < first_write => {
                Some(answer_whole(link, step.database, whole, told).await)
            }
            _ => None,
        };
        left.push((step, value));
    }
    let mut replies = Vec::new();
    let mut refused = None;
    if !operations.is_empty() || !watched.is_empty() {
        match link.server.database.carry_out(watched, &fences, operations).await {
            Ok(Some(found)) => replies = found,
            Ok(None) => return Carried::Not,
            // Of a part that comes later some was done before.
            Err(error) if values.is_empty() => return Carried::Refused(error),
            Err(error) => refused = Some(error),
        }
    }
    let mut replies = replies.into_iter();
    for (step, value) in left {
        let value = match (value, step.data(), &refused) {
            (Some(value), ..) => value,
            (None, Some(_), Some(refused)) => refused.clone(),
            (None, Some(data), None) => {
                let own: Vec<_> = replies.by_ref().take(data.operations.len()).collect();
                let value = data.reply(&link.server.database, &own);
                // It has been done.
                let _ = told.add(held(&value));
                value
            }
            (None, None, _) => {
                let before = link.protocol;
                let value = answer_step(link, step, told).await;
                if link.protocol != before {
                    keep_written(values, before);
                }
                value
            }
        };
        values.push(value);
    }
    Carried::Out
}

/// Carries out what is not on keys, at its place in a transaction.
async fn answer_step(link: &mut Link, queued: Queued, told: &Collected) -> Value {
    let value = match queued.step {
        Err(refused) => return refused,
        Ok(Step::Link(..) | Step::Slots(_) | Step::Info(_)) if told.bytes() > MOST_IN_REPLY => {
            return Value::error(TOO_MUCH);
        }
        Ok(Step::Link(answer, arguments)) => answer(link, &arguments),
        Ok(Step::Slots(arguments)) => slots::cluster(link, &arguments).await,
        Ok(Step::Info(arguments)) => describe::info(link, &arguments).await,
        Ok(Step::Whole(whole)) => return answer_whole(link, queued.database, &whole, told).await,
        // Of these only UNWATCH is queued, and EXEC has done as much already.
        Ok(Step::Multi(..)) => Value::OK,
        Ok(Step::Data(_)) => unreachable!("carried out together"),
        Ok(Step::Lock(_) | Step::Listen(_) | Step::Script(_)) => {
            unreachable!("refused when it was queued")
        }
    };
    bounded(value, told)
}

/// A reply within a transaction, if there is room for it beside what was told before. A small one always has: it may say
/// that something was done.
fn bounded(value: Value, told: &Collected) -> Value {
    let bytes = held(&value);
    match told.add(bytes) || bytes <= SMALL {
        true => value,
        false => Value::error(TOO_MUCH),
    }
}

/// Answers what is of a whole database within a transaction, if not too much was told so before.
async fn answer_whole(link: &Link, database: TreeId, whole: &Whole, told: &Collected) -> Value {
    if !whole.writes() && told.bytes() > MOST_IN_REPLY {
        return Value::error(TOO_MUCH);
    }
    let value = link.server.database.whole(database.0, whole).await;
    bounded(value, told)
}

/// What was answered within a transaction before `HELLO` is written as it was to be then.
fn keep_written(values: &mut [Value], protocol: Protocol) {
    for value in values {
        let mut bytes = Vec::new();
        value.encode(protocol, &mut bytes);
        *value = Value::Encoded(bytes.into());
    }
}
