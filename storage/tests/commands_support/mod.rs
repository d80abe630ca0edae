//! What the tests of commands share: scripts that people can read, and random commands.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use dogsled_storage::codec::Listed;
use dogsled_storage::codec::{decode_command, decode_effects, encode_command, encode_effects};
use dogsled_storage::command::{KeyRead, RangeRead};
use dogsled_storage::compare::{Comparison, Condition};
use dogsled_storage::counter::{CounterAddition, CounterCommand, CounterReply};
use dogsled_storage::evaluate::evaluate;
use dogsled_storage::hashes::{HashAction, HashId};
use dogsled_storage::lock::{self, FencingToken, LockCommand, LockReply, LockRequest};
use dogsled_storage::model::ModelState;
use dogsled_storage::strings::{SetOnly, StringAction, StringsOperation};
use dogsled_storage::{
    Command, Context, Effect, Error, ExpiryCommand, IVec, Reply, SessionId, SetIf, TreeId, When, Write,
};

/// A state with the log it came from. Every command and every effect goes through its encoding.
#[derive(Default)]
pub struct Logged {
    pub state: ModelState,
    pub time_ms: u64,
    log: Vec<(u64, Vec<u8>)>,
}

impl Logged {
    pub fn execute(&mut self, command: &Command) -> Result<Reply, Error> {
        let command = decode_command(&encode_command(command)?)?;
        command.check_limits()?;
        let context = Context { sequence: self.state.sequence() + 1, time_ms: self.time_ms };
        let outcome = evaluate(&self.state, &context, &command)?;
        if !outcome.effects.is_empty() {
            let mut record = Vec::new();
            encode_effects(self.time_ms, &outcome.effects, &mut record);
            let (_, effects) = decode_effects(&record).expect("what was just encoded");
            let effects = effects.to_owned().expect("what was just encoded");
            assert_eq!(effects, outcome.effects);
            self.state.apply(context.sequence, &effects);
            self.log.push((context.sequence, record));
        }
        Ok(outcome.reply)
    }

    /// Forgets the state and applies the log to an empty one.
    pub fn reopen(&mut self) {
        let mut replayed = ModelState::new();
        for (sequence, record) in &self.log {
            let (_, effects) = decode_effects(record).expect("a record of the log");
            replayed.apply(*sequence, &effects.to_owned().expect("a record of the log"));
        }
        assert_eq!(replayed, self.state, "the log gives another state than was there");
        self.state = replayed;
    }
}

/// Runs a script, one command per line with what it comes to behind `=>`, and compares.
///
/// ```text
/// at 1000                                 the log's time from here on
/// reopen                                  replay the log
/// ann takes door for 500   => acquired 1 until 1500 | held by ann, token 1, until 1500
/// ann renews door 1 for 500               => renewed until 1500 | not held
/// ann releases door 1                     => released | not held
/// expire door                             => expired | held … | not held
/// ann waits for door for 500              => as takes | waits as 3 until 2000
/// semaphore 2 ann takes 1 of door for 500 delay 0 waits 0     with all that can be asked for
/// ticket 3 still waits for door           => waits as 3 until 2000 | acquired … | not held
/// ticket 3 leaves door                    => released | not held
/// settle                                  => 0 keys, 1 locks
/// set seats 4 if 7                        => swapped | stands at 6
/// who door                                => ann, token 1, until 1500 | nobody
/// add seats -3 [within 0 9]               => 4 | overflow at 7 | out of bounds at 7
/// get seats, set seats 4, remove seats    => 7 | none
/// raw counters seats 616263               the bytes in hex, stored as they are
/// ```
pub fn check(script: &str) {
    let mut logged = Logged::default();
    let (mut expected, mut found) = (String::new(), String::new());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let command = line.split("=>").next().unwrap().trim();
        let outcome = run(&mut logged, command);
        let pad = line.split_inclusive("=>").next().unwrap().trim_end_matches("=>");
        expected += &format!("{line}\n");
        found += &match outcome {
            Some(outcome) => format!("{pad}=> {outcome}\n"),
            None => format!("{line}\n"),
        };
    }
    assert!(found == expected, "\nexpected:\n{expected}\nfound:\n{found}");
    logged.reopen();
}

fn run(logged: &mut Logged, line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number =
        |word: &str| word.parse::<u64>().unwrap_or_else(|_| panic!("no number {word:?} in {line:?}"));
    let signed =
        |word: &str| word.parse::<i64>().unwrap_or_else(|_| panic!("no number {word:?} in {line:?}"));
    let text = |word: &str| IVec::from(word);
    let token = |word: &str| FencingToken(number(word));
    let command = match words[..] {
        ["at", time_ms] => {
            logged.time_ms = number(time_ms);
            return None;
        }
        ["reopen"] => {
            logged.reopen();
            return None;
        }
        ["raw", tree, key, hex] => {
            let tree = match tree {
                "counters" => TreeId::COUNTERS,
                "locks" => TreeId::LOCKS,
                other => panic!("no tree {other}"),
            };
            let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
            let value = (0..hex.len()).step_by(2).map(digits).collect();
            logged.execute(&Command::Insert { tree, key: text(key), value }).expect("an insert");
            return None;
        }
        ["who", name] => {
            return Some(match lock::holder(&logged.state, logged.time_ms, name.as_bytes()) {
                Ok(Some(holder)) => {
                    let owner = String::from_utf8_lossy(&holder.owner).into_owned();
                    format!("{owner}, token {}, until {}", holder.token, holder.expires_ms)
                }
                Ok(None) => "nobody".to_owned(),
                Err(error) => error.to_string(),
            });
        }
        [owner, "takes", name, "for", lease] => Command::Lock(LockCommand::TryAcquire {
            name: text(name),
            owner: text(owner),
            lease_ms: number(lease),
        }),
        [owner, "renews", name, held, "for", lease] => Command::Lock(LockCommand::Renew {
            name: text(name),
            owner: text(owner),
            token: token(held),
            lease_ms: number(lease),
        }),
        [owner, "releases", name, held] => {
            Command::Lock(LockCommand::Release { name: text(name), owner: text(owner), token: token(held) })
        }
        ["expire", name] => Command::Lock(LockCommand::Expire { name: text(name) }),
        ["add", name, delta] => {
            Command::Counter(CounterCommand::Add { name: text(name), delta: signed(delta) })
        }
        ["add", name, delta, "within", min, max] => Command::Counter(CounterCommand::AddWithin {
            name: text(name),
            delta: signed(delta),
            min: signed(min),
            max: signed(max),
        }),
        ["get", name] => Command::Counter(CounterCommand::Get { name: text(name) }),
        ["set", name, value] => {
            Command::Counter(CounterCommand::Set { name: text(name), value: signed(value) })
        }
        ["set", name, value, "if", expected] => Command::Counter(CounterCommand::SetIf {
            name: text(name),
            expected: signed(expected),
            value: signed(value),
        }),
        ["settle"] => Command::SettleDue { limit: 100 },
        [
            "semaphore",
            capacity,
            owner,
            "takes",
            permits,
            "of",
            name,
            "for",
            lease,
            "delay",
            delay,
            "waits",
            wait,
        ] => {
            let request = LockRequest {
                permits: if permits == "all" { u32::MAX } else { number(permits) as u32 },
                capacity: if capacity == "rw" { lock::READ_WRITE } else { number(capacity) as u32 },
                lease_ms: number(lease),
                delay_ms: number(delay),
            };
            let (name, owner, wait_ms) = (text(name), text(owner), number(wait));
            Command::Lock(LockCommand::Acquire { name, owner, request, wait_ms })
        }
        [owner, "waits", "for", name, "for", lease] => Command::Lock(LockCommand::Acquire {
            name: text(name),
            owner: text(owner),
            request: LockRequest::exclusive(number(lease)),
            wait_ms: 1000,
        }),
        ["ticket", ticket, "still", "waits", "for", name] => {
            Command::Lock(LockCommand::RenewWait { name: text(name), ticket: number(ticket), wait_ms: 1000 })
        }
        ["ticket", ticket, "leaves", name] => {
            Command::Lock(LockCommand::CancelWait { name: text(name), ticket: number(ticket) })
        }
        ["remove", name] => Command::Counter(CounterCommand::Remove { name: text(name) }),
        _ => panic!("what is {line:?}?"),
    };
    Some(match logged.execute(&command) {
        Ok(Reply::Counter(reply)) => match reply {
            CounterReply::Added { value } => value.to_string(),
            CounterReply::Overflow { current } => format!("overflow at {current}"),
            CounterReply::OutOfBounds { current } => format!("out of bounds at {current}"),
            CounterReply::Swapped(Ok(())) => "swapped".to_owned(),
            CounterReply::Swapped(Err(current)) => format!("stands at {current}"),
            CounterReply::Value(value) | CounterReply::Previous(value) => {
                value.map_or("none".to_owned(), |value| value.to_string())
            }
        },
        Ok(Reply::Lock(reply)) => match reply {
            LockReply::Acquired { token, expires_ms } => format!("acquired {token} until {expires_ms}"),
            LockReply::Held { holder, token, expires_ms } => {
                format!("held by {}, token {token}, until {expires_ms}", String::from_utf8_lossy(&holder))
            }
            LockReply::Renewed { expires_ms } => format!("renewed until {expires_ms}"),
            LockReply::NotHeld => "not held".to_owned(),
            LockReply::Released => "released".to_owned(),
            LockReply::Expired => "expired".to_owned(),
            LockReply::Waiting { ticket, expires_ms } => format!("waits as {ticket} until {expires_ms}"),
        },
        Ok(Reply::Settled { keys, locks, .. }) => format!("{keys} keys, {locks} locks"),
        Ok(other) => panic!("{other:?} for {line:?}"),
        Err(error) => error.to_string(),
    })
}

/// A small generator (SplitMix64): a test names its seed when it fails, and needs no dependency.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// A number of any magnitude, with the borders of encodings more often than chance would.
    pub fn number(&mut self) -> u64 {
        const BORDERS: [u64; 12] =
            [0, 1, 127, 128, 250, 251, 16_383, 16_384, 65_535, 65_536, u32::MAX as u64, u64::MAX];
        match self.below(3) {
            0 => BORDERS[self.below(BORDERS.len() as u64) as usize],
            _ => self.next() >> self.below(64),
        }
    }

    pub fn signed(&mut self) -> i64 {
        match self.below(8) {
            0 => i64::MIN,
            1 => i64::MAX,
            _ => self.number() as i64,
        }
    }

    /// Bytes; lengths around the inline limit of `IVec` and the borders of varints happen.
    pub fn bytes(&mut self) -> IVec {
        let length = match self.below(8) {
            0 => 0,
            1..=4 => self.below(40),
            5 => 120 + self.below(20),
            6 => 245 + self.below(15),
            _ => self.below(20_000),
        };
        (0..length).map(|_| self.next() as u8).collect()
    }

    pub fn tree(&mut self) -> TreeId {
        TreeId(self.number() as u32)
    }

    fn option<T>(&mut self, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
        if self.coin() { Some(make(self)) } else { None }
    }

    fn list<T>(&mut self, mut make: impl FnMut(&mut Random) -> T) -> Vec<T> {
        (0..self.below(5)).map(|_| make(self)).collect()
    }

    fn write(&mut self) -> Write {
        Write { tree: self.tree(), key: self.bytes(), value: self.option(Random::bytes) }
    }

    fn comparison(&mut self) -> Comparison {
        let condition = match self.below(7) {
            0 => Condition::Present,
            1 => Condition::Absent,
            2 => Condition::Is(self.bytes()),
            3 => Condition::IsNot(self.bytes()),
            4 => Condition::Less(self.bytes()),
            5 => Condition::Greater(self.bytes()),
            _ => Condition::Version(self.number()),
        };
        Comparison { tree: self.tree(), key: self.bytes(), condition }
    }

    fn strings_operation(&mut self) -> StringsOperation {
        let when = |r: &mut Random| {
            let number = r.number();
            [When::Keep, When::At(number), When::After(number)][r.below(3) as usize]
        };
        let action = match self.below(21) {
            0 => StringAction::Get,
            1 => StringAction::Length,
            2 => StringAction::Range { start: self.signed(), end: self.signed() },
            3 => StringAction::Exists,
            4 => StringAction::Expires,
            5 => {
                let only = [SetOnly::Always, SetOnly::Absent, SetOnly::Present, SetOnly::AsRequired];
                let only = only[self.below(4) as usize];
                StringAction::Set { value: self.bytes(), only, when: self.option(when), get: self.coin() }
            }
            6 => StringAction::RequireAbsent { first: self.coin() },
            7 => StringAction::Delete,
            8 => StringAction::Take,
            9 => StringAction::GetAndExpire { when: self.option(when) },
            10 => StringAction::Append { value: self.bytes() },
            11 => StringAction::Overwrite { offset: self.number(), value: self.bytes() },
            12 => StringAction::Add { delta: self.signed() },
            13 => StringAction::AddFloat { delta: self.bytes() },
            14 => StringAction::Expire { when: when(self), only: SetIf::Later, only_some: self.coin() },
            15 => StringAction::Persist,
            16 => StringAction::Kind,
            17 => StringAction::Clear,
            18 => {
                let (base, ordinal) = (self.number(), self.below(9) as u32);
                StringAction::Suspect { id: HashId { base, ordinal } }
            }
            19 => StringAction::Hash(self.hash_action()),
            _ => {
                let (tree, key) = (self.tree(), self.bytes());
                StringAction::Transfer { tree, key, copy: self.coin(), replace: self.coin() }
            }
        };
        StringsOperation { tree: self.tree(), key: self.bytes(), action }
    }

    fn hash_action(&mut self) -> HashAction {
        let fields = |r: &mut Random| Listed((0..r.below(4)).map(|_| r.bytes()).collect());
        match self.below(12) {
            0 => {
                let pairs = (0..self.below(4)).map(|_| (self.bytes(), self.bytes())).collect();
                HashAction::Set { pairs: Listed(pairs) }
            }
            1 => HashAction::SetAbsent { field: self.bytes(), value: self.bytes() },
            2 => HashAction::Get { field: self.bytes() },
            3 => HashAction::GetMany { fields: fields(self) },
            4 => HashAction::Delete { fields: fields(self) },
            5 => HashAction::Exists { field: self.bytes() },
            6 => HashAction::Length,
            7 => HashAction::ValueLength { field: self.bytes() },
            8 => HashAction::All,
            9 => HashAction::Page { after: self.option(Random::bytes), limit: self.below(300) as u32 },
            10 => HashAction::Add { field: self.bytes(), delta: self.signed() },
            _ => HashAction::AddFloat { field: self.bytes(), delta: self.bytes() },
        }
    }

    /// Any command at all, most of which no state would accept.
    pub fn command(&mut self) -> Command {
        let (tree, key, value) = (self.tree(), self.bytes(), self.bytes());
        let (name, owner, token) = (self.bytes(), self.bytes(), FencingToken(self.number()));
        let (delta, lease_ms) = (self.signed(), self.number());
        match self.below(29) {
            27 | 28 => Command::Strings {
                watched: self.list(|r| KeyRead { tree: r.tree(), key: r.bytes(), version: r.number() }),
                operations: self.list(Random::strings_operation),
            },
            26 => Command::Compare {
                comparisons: self.list(Random::comparison),
                then: self.list(Random::write),
                otherwise: self.list(Random::write),
            },
            20 => Command::Put { tree, key, value },
            21 => Command::CountMany {
                additions: self.list(|r| CounterAddition { name: r.bytes(), delta: r.signed() }),
            },
            22 => Command::SettleDue { limit: self.number() as u32 },
            23 => {
                let when = match self.below(3) {
                    0 => When::After(self.number()),
                    1 => When::At(self.number()),
                    _ => When::Keep,
                };
                Command::Expiry(match self.below(10) {
                    0 => ExpiryCommand::Insert { tree, key, value, when },
                    1 => ExpiryCommand::Swap { tree, key, old: self.option(Random::bytes), new: value, when },
                    2 => ExpiryCommand::Set { tree, key, when, only: SetIf::Later },
                    3 => ExpiryCommand::Clear { tree, key },
                    4 => ExpiryCommand::Get { tree, key },
                    5 => ExpiryCommand::Lock { tree, command: LockCommand::Release { name, owner, token } },
                    6 => ExpiryCommand::Held { tree, key, token },
                    7 => ExpiryCommand::Lives { tree, key, at_ms: self.option(Random::number) },
                    8 => {
                        let session = self.option(|random| SessionId(random.number().into()));
                        ExpiryCommand::Owned { tree, key, value, session, is_numbered: self.below(2) == 0 }
                    }
                    _ => {
                        let actions = (0..self.below(4)).map(|_| self.strings_operation().action);
                        ExpiryCommand::Strings { tree, key, actions: Listed(actions.collect()) }
                    }
                })
            }
            24 => Command::Counter(CounterCommand::SetIf { name, expected: delta, value: self.signed() }),
            25 => {
                let request = LockRequest {
                    permits: self.number() as u32,
                    capacity: self.number() as u32,
                    lease_ms,
                    delay_ms: self.number(),
                };
                Command::Lock(match self.below(3) {
                    0 => LockCommand::Acquire { name, owner, request, wait_ms: self.number() },
                    1 => LockCommand::RenewWait { name, ticket: self.number(), wait_ms: self.number() },
                    _ => LockCommand::CancelWait { name, ticket: self.number() },
                })
            }
            0 => Command::CreateTree { name },
            1 => Command::DropTree { name },
            2 => Command::ClearTree { tree },
            3 => Command::Insert { tree, key, value },
            4 => Command::Remove { tree, key },
            5 => Command::CompareAndSwap {
                tree,
                key,
                old: self.option(Random::bytes),
                new: self.option(Random::bytes),
            },
            6 | 7 => Command::Batch { writes: self.list(Random::write) },
            8 => Command::Pop { tree, last: self.coin() },
            9 | 10 => Command::Transact {
                reads: self.list(|r| KeyRead { tree: r.tree(), key: r.bytes(), version: r.number() }),
                ranges: self.list(|r| RangeRead {
                    tree: r.tree(),
                    low: r.bytes(),
                    high: r.option(Random::bytes),
                    count: r.number(),
                    fingerprint: r.next(),
                }),
                writes: self.list(Random::write),
                expiries: self.list(|r| ExpiryCommand::Insert {
                    tree: r.tree(),
                    key: r.bytes(),
                    value: r.bytes(),
                    when: When::After(r.number()),
                }),
            },
            11 => Command::ReserveIds { count: self.number() },
            12 => Command::Counter(CounterCommand::Add { name, delta }),
            13 => Command::Counter(CounterCommand::AddWithin {
                name,
                delta,
                min: self.signed(),
                max: self.signed(),
            }),
            14 => Command::Counter(CounterCommand::Get { name }),
            15 => Command::Counter(CounterCommand::Set { name, value: delta }),
            16 => Command::Counter(CounterCommand::Remove { name }),
            17 => Command::Lock(LockCommand::TryAcquire { name, owner, lease_ms }),
            18 => Command::Lock(LockCommand::Renew { name, owner, token, lease_ms }),
            _ if self.coin() => Command::Lock(LockCommand::Release { name, owner, token }),
            _ => Command::Lock(LockCommand::Expire { name }),
        }
    }

    pub fn effect(&mut self) -> Effect {
        let (tree, key) = (self.tree(), self.bytes());
        match self.below(10) {
            0..=3 => Effect::Put {
                tree,
                key,
                value: self.bytes(),
                fresh: [None, Some(false), Some(true)][self.below(3) as usize],
            },
            4 => Effect::Remove { tree, key },
            5 => Effect::Clear { tree },
            6 => Effect::CreateTree { id: tree, name: key },
            7 => Effect::DropTree { id: tree },
            8 => Effect::Tell { tree, key, value: self.bytes() },
            _ => Effect::SetNextId { next: self.number() },
        }
    }
}
