//! `EVAL`, `EVALSHA`, `SCRIPT`: the few scripts that locks are given back and prolonged with, and no others.
//!
//! There is no Lua here. But the lock of Redis's own documentation, and those of libraries that follow it (`r.lock()` of
//! redis-py), compare and delete with a script, and would not work without. So their texts are known, whatever space is between
//! their words, and whoever brings another text is told that it is not carried out.
//!
//! **It is atomic.** What the key is is read, and what is to be done is done by an entry that is carried out only if the key is
//! still of the version that it was *before* it was read. Otherwise it begins anew. So nothing is deleted or prolonged but
//! what had the caller's token in that moment: as `WATCH`, `GET`, `MULTI`, `DEL`, `EXEC`.
//!
//! What a hash of `EVALSHA` stands for is known to the node where the text came by, for as long as it runs, as in Redis.

use std::collections::VecDeque;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::strings::{StringAction, StringsFailure, StringsOperation, StringsReply, parse_integer};
use dogsled_storage::{SetIf, TreeId, When};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::database::{Database, failed, plain};
use super::describe::{SCRIPT_HELP, help};
use super::table::{Asked, Planned, Step, integer, is_word};
use crate::IVec;
use crate::cluster::Error;

/// What a script does if the value of its key is its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    /// Removes the key.
    Release,
    /// Sets its time to live to the second argument, in milliseconds.
    Reacquire,
    /// The same, or, if the third argument is `0`, adds as much to it; not to a key that stays.
    Extend,
}

/// The texts, as [`normal`] makes them.
const KNOWN: [(&str, Script); 5] = [
    // Redis's documentation of SET, and of distributed locks.
    (
        r#"if redis.call("get",KEYS[1])==ARGV[1]then return redis.call("del",KEYS[1])else return 0 end"#,
        Script::Release,
    ),
    (
        r#"if redis.call("get",KEYS[1])==ARGV[1]then return redis.call("pexpire",KEYS[1],ARGV[2])else return 0 end"#,
        Script::Reacquire,
    ),
    // redis-py's redis.lock.Lock.
    (
        r#"local token=redis.call("get",KEYS[1])if not token or token~=ARGV[1]then return 0 end redis.call("del",KEYS[1])return 1"#,
        Script::Release,
    ),
    (
        r#"local token=redis.call("get",KEYS[1])if not token or token~=ARGV[1]then return 0 end redis.call("pexpire",KEYS[1],ARGV[2])return 1"#,
        Script::Reacquire,
    ),
    (
        r#"local token=redis.call("get",KEYS[1])if not token or token~=ARGV[1]then return 0 end local expiration=redis.call("pttl",KEYS[1])if not expiration then expiration=0 end if expiration<0 then return 0 end local newttl=ARGV[2]if ARGV[3]=="0"then newttl=ARGV[2]+expiration end redis.call("pexpire",KEYS[1],newttl)return 1"#,
        Script::Extend,
    ),
];

/// Longer texts are none of these.
const LONGEST: usize = 4 << 10;
/// How many hashes are known, the latest.
const MOST: usize = 1024;

const OTHERS: &str = "ERR scripts are not carried out, but for those of Redis's documentation and of redis-py's Lock that \
                      give back or prolong a lock; see DOGSLED.LOCK";

const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";

/// A text without the spaces that mean nothing, and with quotes and names of commands written in one way.
fn normal(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    for part in text.split_ascii_whitespace() {
        if normal.ends_with(is_word) && part.starts_with(is_word) {
            normal.push(' ');
        }
        normal.push_str(part);
    }
    let mut normal = normal.replace('\'', "\"").replace(';', "");
    for name in ["\"get\"", "\"del\"", "\"pttl\"", "\"pexpire\""] {
        normal = normal.replace(&name.to_ascii_uppercase(), name);
    }
    normal
}

impl Script {
    fn parse(text: &[u8]) -> Option<Script> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= LONGEST)?;
        let normal = normal(text);
        KNOWN.iter().find(|(known, _)| *known == normal).map(|(_, script)| *script)
    }

    fn arguments(self) -> usize {
        match self {
            Script::Release => 1,
            // Without the last, the time is set.
            Script::Reacquire | Script::Extend => 2,
        }
    }
}

type Hash = [u8; 20];

/// What hashes stand for.
#[derive(Default)]
pub(super) struct Scripts(Mutex<VecDeque<(Hash, Script)>>);

impl Scripts {
    /// Its hash, if the text is one of those that are known.
    fn keep(&self, text: &[u8]) -> Option<(Hash, Script)> {
        let script = Script::parse(text)?;
        let hash = sha1(text);
        let mut kept = self.0.lock();
        if !kept.iter().any(|(known, _)| *known == hash) {
            kept.truncate(MOST - 1);
            kept.push_front((hash, script));
        }
        Some((hash, script))
    }

    fn find(&self, hash: &[u8]) -> Option<Script> {
        let wanted = parse_hex(hash)?;
        let kept = self.0.lock();
        kept.iter().find(|(known, _)| *known == wanted).map(|(_, script)| *script)
    }
}

fn parse_hex(text: &[u8]) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        // Of two digits.
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(hash)
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-1, by which Redis names scripts; nothing depends on that it is hard to invert.
fn sha1(text: &[u8]) -> Hash {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text);
    digest.as_ref().try_into().expect("SHA-1 has 20 bytes")
}

/// A script that is to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Scripted {
    given: Given,
    database: TreeId,
    keys: Vec<Bytes>,
    arguments: Vec<Bytes>,
    now_ms: u64,
}

#[derive(Clone, Debug)]
enum Given {
    Text(Bytes),
    Hash(Bytes),
}

fn scripted(asked: &Asked<'_>, given: Given) -> Planned {
    let count = integer(&asked.arguments[2])?;
    let count = usize::try_from(count).map_err(|_| Value::error("ERR Number of keys can't be negative"))?;
    let rest = &asked.arguments[3..];
    let Some((keys, arguments)) = rest.split_at_checked(count) else {
        return Err(Value::error("ERR Number of keys can't be greater than number of args"));
    };
    let (database, now_ms) = (asked.database, asked.now_ms);
    Ok(Step::Script(Scripted { given, database, keys: keys.to_vec(), arguments: arguments.to_vec(), now_ms }))
}

pub(super) fn eval(asked: &Asked<'_>) -> Planned {
    scripted(asked, Given::Text(asked.arguments[1].clone()))
}

pub(super) fn eval_by_hash(asked: &Asked<'_>) -> Planned {
    // Before the number of keys is looked at, as Redis does.
    if asked.arguments[1].len() != 2 * size_of::<Hash>() {
        return Err(Value::error(NO_SCRIPT));
    }
    scripted(asked, Given::Hash(asked.arguments[1].clone()))
}

/// `SCRIPT`.
pub(super) fn script(link: &mut super::link::Link, arguments: &[Bytes]) -> Value {
    let scripts = &link.server.database.scripts;
    let is = |word: &str| is_word(&arguments[1], word);
    match &arguments[2..] {
        [text] if is("LOAD") => match scripts.keep(text) {
            Some((hash, _)) => Value::text(hex(&hash)),
            None => Value::error(OTHERS),
        },
        hashes @ [_, ..] if is("EXISTS") => {
            let is_known = |hash: &Bytes| Value::Integer(i64::from(scripts.find(hash).is_some()));
            Value::Array(hashes.iter().map(is_known).collect())
        }
        [] if is("FLUSH") => {
            scripts.0.lock().clear();
            Value::OK
        }
        [how] if is("FLUSH") && (is_word(how, "ASYNC") || is_word(how, "SYNC")) => {
            scripts.0.lock().clear();
            Value::OK
        }
        [] if is("HELP") => help("SCRIPT", SCRIPT_HELP),
        _ => Value::error("ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
    }
}

impl Database {
    /// Carries out a script that is known.
    pub(super) async fn script(&self, asked: &Scripted) -> Value {
        let script = match &asked.given {
            Given::Text(text) => match self.scripts.keep(text) {
                Some((_, script)) => script,
                None => return Value::error(OTHERS),
            },
            Given::Hash(hash) => match self.scripts.find(hash) {
                Some(script) => script,
                None => return Value::error(NO_SCRIPT),
            },
        };
        let (Some(key), true) = (asked.keys.first(), asked.arguments.len() >= script.arguments()) else {
            let what = format!("ERR this script has a key and {} arguments", script.arguments());
            return Value::error(what);
        };
        let until = self.client.until();
        loop {
            match self.attempt(script, asked, &IVec::from(&key[..])).await {
                Ok(Some(value)) => return value,
                Ok(None) if Instant::now() < until => {}
                Ok(None) => return failed(&Error::Unavailable("other writers came between".to_owned())),
                Err(refused) => return refused,
            }
        }
    }

    /// `None`: the key has changed meanwhile.
    async fn attempt(&self, script: Script, asked: &Scripted, key: &IVec) -> Result<Option<Value>, Value> {
        // Before what it guards is read.
        let watched = self.watch(asked.database, key.clone()).await.map_err(|error| failed(&error))?;
        let on = |action| StringsOperation { tree: asked.database, key: key.clone(), action };
        let partitions = self.partitions().await.map_err(|error| failed(&error))?;
        let reads = [on(StringAction::Get), on(StringAction::Expires)];
        let told = self.look_at_all(partitions, &reads.each_ref()).await.map_err(|error| failed(&error))?;
        let (value, expires) = match &told[..] {
            [StringsReply::Value(Some(value)), StringsReply::Expires { at_ms, .. }] => {
                (value, at_ms.flatten())
            }
            [wrong @ StringsReply::Failed(StringsFailure::WrongKind), _] => return Ok(Some(plain(wrong))),
            _ => return Ok(Some(Value::Integer(0))),
        };
        if value[..] != asked.arguments[0][..] {
            return Ok(Some(Value::Integer(0)));
        }
        let action = match script {
            Script::Release => StringAction::Delete,
            // It stays, and has no time that could be longer.
            Script::Extend if expires.is_none() => return Ok(Some(Value::Integer(0))),
            Script::Reacquire | Script::Extend => {
                let time = parse_integer(&asked.arguments[1]);
                let time = time.ok_or_else(|| plain(&StringsReply::Failed(StringsFailure::NotAnInteger)))?;
                let adds = script == Script::Extend
                    && asked.arguments.get(2).is_some_and(|adds| adds[..] == b"0"[..]);
                let when = match (adds, expires) {
                    (true, Some(at_ms)) => at_ms.checked_add_signed(time).map(When::At),
                    _ if time <= 0 => Some(When::At(0)),
                    _ => Some(When::After(time.unsigned_abs())),
                };
                let latest = i64::MAX as u64 - asked.now_ms;
                let is_sound =
                    |when: &When| !matches!(when, When::After(time) | When::At(time) if *time > latest);
                let when = when.filter(is_sound);
                let when =
                    when.ok_or_else(|| Value::error("ERR invalid expire time in 'pexpire' command"))?;
                StringAction::Expire { when, only: SetIf::Always, only_some: false }
            }
        };
        let done = self.carry_out(&[watched], &[], vec![on(action)]).await?;
        Ok(done.map(|replies| replies.first().map_or(Value::Null, plain)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_redis() {
        for (text, hash) in [
            ("", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("return 1", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        ] {
            assert_eq!(hex(&sha1(text.as_bytes())), hash, "{text}");
        }
        let long = "a".repeat(1_000_000);
        assert_eq!(hex(&sha1(long.as_bytes())), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
    }

    #[test]
    fn scripts_are_known_by_their_words_and_no_others_are() {
        for (text, script) in [
            (
                "if redis.call(\"get\",KEYS[1]) == ARGV[1] then\n    return redis.call(\"del\",KEYS[1])\nelse\n    return 0\nend",
                Some(Script::Release),
            ),
            (
                "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end\n",
                Some(Script::Release),
            ),
            (
                "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end",
                Some(Script::Reacquire),
            ),
            (
                "if redis.call('get', KEYS[1]) == ARGV[2] then return redis.call('del', KEYS[1]) else return 0 end",
                None,
            ),
            (
                "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[2]) else return 0 end",
                None,
            ),
            (
                "if redis.call('get', keys[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end",
                None,
            ),
            ("return 1", None),
            ("", None),
        ] {
            assert_eq!(Script::parse(text.as_bytes()), script, "{text}");
        }
        for (known, script) in KNOWN {
            assert_eq!(normal(known), known);
            assert_eq!(Script::parse(known.as_bytes()), Some(script));
        }
    }

    #[test]
    fn what_a_hash_stands_for_is_kept_within_a_bound() {
        let scripts = Scripts::default();
        assert!(
            scripts.keep(b"return 1").is_none() && scripts.find(hex(&sha1(b"return 1")).as_bytes()).is_none()
        );
        let spaced = |spaces: usize| format!("{}{}", " ".repeat(spaces), KNOWN[0].0);
        for spaces in 0..MOST + 10 {
            assert!(scripts.keep(spaced(spaces).as_bytes()).is_some(), "{spaces} spaces");
        }
        assert_eq!(scripts.0.lock().len(), MOST);
        let hash = hex(&sha1(spaced(MOST).as_bytes())).to_ascii_uppercase();
        assert_eq!(scripts.find(hash.as_bytes()), Some(Script::Release));
        assert_eq!(scripts.find(hex(&sha1(spaced(0).as_bytes())).as_bytes()), None);
    }
}
