//! [`COMMANDS`]: every command that there is, and what is known of it.

use std::fmt::Write as _;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::TreeId;
use dogsled_storage::strings::{StringAction, StringsFailure, StringsOperation, StringsReply, parse_integer};

use super::config;
use super::database::{Data, Refused, Shape, plain};
use super::link::{self, Link};
use super::locks::{self, Locking};
use super::pubsub::{self, Listen};
use super::scripts::{self, Scripted};
use super::whole::{self, Cursors, Whole};
use super::{DATABASES, describe, hashes, keys, slots, strings};
use crate::IVec;

/// A command, as far as it can be understood without the database and the connection.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// On keys.
    Data(Data),
    /// On a whole database.
    Whole(Whole),
    /// On a lock.
    Lock(Locking),
    /// On what the connection is told.
    Listen(Listen),
    /// On what the server says of itself.
    Info(Vec<Bytes>),
    /// A script.
    Script(Scripted),
    /// On where slots are.
    Slots(Vec<Bytes>),
    /// On the connection.
    Link(fn(&mut Link, &[Bytes]) -> Value, Vec<Bytes>),
    /// On the transaction that the connection is in, or is to be in.
    Multi(Multi, Vec<Bytes>),
}

/// What concerns a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multi {
    Begin,
    Execute,
    Discard,
    Watch,
    Unwatch,
}

/// What a command comes to, or why it is refused.
pub(super) type Planned = Result<Step, Value>;

/// A request, and where it is made.
pub(super) struct Asked<'a> {
    /// Of the command, in small letters.
    pub(super) name: String,
    /// All of the request, the name first.
    pub(super) arguments: &'a [Bytes],
    /// The number of the database.
    pub(super) database: TreeId,
    /// About the time it is.
    pub(super) now_ms: u64,
    /// Where scans go on.
    pub(super) cursors: &'a Cursors,
}

impl Asked<'_> {
    /// Nothing but why this is refused, told once the first argument was looked at.
    pub(super) fn refused(&self, kind: i64, absent: Value, why: Value) -> Step {
        let operation = self.operation(&self.arguments[1], StringAction::Kind);
        Step::Data(Data::new(vec![operation], Shape::Refused(Refused { kind, absent, why })))
    }

    /// An operation on a key of the database.
    pub(super) fn operation(&self, key: &Bytes, action: StringAction) -> StringsOperation {
        StringsOperation { tree: self.database, key: IVec::from(&key[..]), action }
    }
}

#[derive(Clone, Copy)]
enum Handler {
    Plan(fn(&Asked<'_>) -> Planned),
    Link(fn(&mut Link, &[Bytes]) -> Value),
    Multi(Multi),
}

/// How much of a command is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Support {
    Full,
    /// But for this.
    Partial(&'static str),
}
use Support::{Full, Partial};

/// What is known of a command.
pub(super) struct CommandInfo {
    /// In small letters.
    pub(super) name: &'static str,
    /// How many arguments, the name among them; negative: at least so many.
    pub(super) arity: i64,
    /// Separated by spaces, as `COMMAND INFO` has them.
    pub(super) flags: &'static str,
    /// The first key, the last, and the step between them.
    pub(super) keys: (i64, i64, i64),
    pub(super) since: &'static str,
    pub(super) group: &'static str,
    pub(super) summary: &'static str,
    handler: Handler,
    support: Support,
}

#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn row(
    name: &'static str,
    arity: i64,
    flags: &'static str,
    keys: (i64, i64, i64),
    since: &'static str,
    group: &'static str,
    handler: Handler,
    support: Support,
    summary: &'static str,
) -> CommandInfo {
    CommandInfo { name, arity, flags, keys, since, group, summary, handler, support }
}

const NONE: (i64, i64, i64) = (0, 0, 0);
const ONE: (i64, i64, i64) = (1, 1, 1);
const TWO: (i64, i64, i64) = (1, 2, 1);
const ALL: (i64, i64, i64) = (1, -1, 1);
const PAIRS: (i64, i64, i64) = (1, -1, 2);

const fn plan(plan: fn(&Asked<'_>) -> Planned) -> Handler {
    Handler::Plan(plan)
}
const fn link(link: fn(&mut Link, &[Bytes]) -> Value) -> Handler {
    Handler::Link(link)
}

const READ: &str = "readonly fast";
const WRITE: &str = "write denyoom";
const FAST: &str = "write denyoom fast";
const TIME: &str = "write fast";
const LISTEN: &str = "pubsub noscript loading stale";
const TALK: &str = "noscript loading stale fast allow_busy";
const FREE: &str = "noscript loading stale fast no_auth allow_busy";
const SCRIPT: &str = "noscript stale skip_monitor no_mandatory_keys movablekeys";

const LOCKS: Support = Partial(
    "scripts that give back or prolong a lock, as Redis's documentation and redis-py's `Lock` write them, and no others; not within MULTI",
);

const MANY: Support =
    Partial("as of one moment, if the values of a partition take up to 16 MiB; at most 512 MiB");
const ORDER: Support = Partial(
    "in the order of the fields' bytes; at most 512 MiB, and 16 MiB from a node that does not lead the partition: HSCAN tells more",
);
const CARRIED: Support = Partial("a hash of more than 16 MiB stays in its partition (`{tag}`)");
const FLOAT: Support = Partial("as INCRBYFLOAT");
const WATCHED: Support = Partial("that an absent key came and went again does not count");
const NOT_IN_MULTI: &str = "not within MULTI";
const WHOLE_IN_MULTI: &str = "partition after partition, not of one moment; within MULTI before the transaction's moment, if it stands before all that writes, otherwise behind it";

/// By name.
#[rustfmt::skip]
pub(super) const COMMANDS: &[CommandInfo] = &[
    row("append", 3, FAST, ONE, "2.0.0", "string", plan(strings::append), Full, "Appends a string to the value of a key."),
    row("asking", 1, "fast", NONE, "3.0.0", "cluster", link(slots::knows), Partial("nothing is ever on its way between nodes"), "Signals that a cluster client is following an -ASK redirect."),
    row("auth", -2, FREE, NONE, "1.0.0", "connection", link(link::auth), Partial("the user `default` only"), "Authenticates the connection."),
    row("client", -2, "", NONE, "2.4.0", "connection", link(link::client), Partial("ID, GETNAME, SETNAME, SETINFO, INFO, LIST (of the own connection, also by ID and TYPE), NO-EVICT, NO-TOUCH"), "Commands on client connections."),
    row("cluster", -2, "", NONE, "3.0.0", "cluster", plan(slots::plan), Partial("SLOTS, SHARDS, NODES, INFO, MYID, KEYSLOT; replicas in SLOTS for a connection that has said READONLY; what changes a cluster names the command of `dogsled` that does"), "Commands on where keys are."),
    row("command", -1, "loading stale", NONE, "2.8.13", "server", link(describe::command), Partial("COUNT, DOCS (without history), GETKEYS, INFO (without key specifications), LIST"), "Returns detailed information about commands."),
    row("config", -2, "", NONE, "2.0.0", "server", plan(config::config), Partial("GET, of a few parameters; SET, of `notify-keyspace-events`, which is of the whole cluster; within MULTI that is as FLUSHDB"), "Commands on the server's configuration."),
    row("copy", -3, WRITE, TWO, "6.2.0", "generic", plan(keys::copy), CARRIED, "Copies the value of a key to a new key."),
    row("dbsize", 1, READ, NONE, "1.0.0", "server", plan(whole::size), Partial(WHOLE_IN_MULTI), "Returns the number of keys in the database."),
    row("decr", 2, FAST, ONE, "1.0.0", "string", plan(strings::decrement), Full, "Decrements the integer value of a key by one."),
    row("decrby", 3, FAST, ONE, "1.0.0", "string", plan(strings::decrement_by), Full, "Decrements the integer value of a key by a number."),
    row("del", -2, "write", ALL, "1.0.0", "generic", plan(keys::delete), Full, "Deletes one or more keys."),
    row("discard", 1, TALK, NONE, "2.0.0", "transactions", Handler::Multi(Multi::Discard), Full, "Discards a transaction."),
    row("dogsled.fenced", -4, WRITE, ONE, "0.1.0", "dogsled", plan(locks::fenced), Full, "Executes a command on keys only while a lock is held under a fencing token."),
    row("dogsled.lock", -3, "write", ONE, "0.1.0", "dogsled", plan(locks::lock), Full, "Acquires a lock for a time, and returns the fencing token; or renews it."),
    row("dogsled.unlock", 3, TIME, ONE, "0.1.0", "dogsled", plan(locks::unlock), Full, "Releases a lock that is held under a fencing token."),
    row("echo", 2, "loading stale fast", NONE, "1.0.0", "connection", link(link::echo), Full, "Returns the given string."),
    row("eval", -3, SCRIPT, NONE, "2.6.0", "scripting", plan(scripts::eval), LOCKS, "Executes a server-side Lua script."),
    row("evalsha", -3, SCRIPT, NONE, "2.6.0", "scripting", plan(scripts::eval_by_hash), LOCKS, "Executes a server-side Lua script by SHA1 digest."),
    row("exec", 1, "noscript loading stale skip_slowlog", NONE, "1.2.0", "transactions", Handler::Multi(Multi::Execute), Full, "Executes all commands in a transaction."),
    row("exists", -2, READ, ALL, "1.0.0", "generic", plan(keys::exists), Full, "Determines whether one or more keys exist."),
    row("expire", -3, TIME, ONE, "1.0.0", "generic", plan(keys::expire), Full, "Sets the expiration time of a key in seconds."),
    row("expireat", -3, TIME, ONE, "1.2.0", "generic", plan(keys::expire_at), Full, "Sets the expiration time of a key to a Unix timestamp."),
    row("expiretime", 2, READ, ONE, "7.0.0", "generic", plan(keys::expires_second), Full, "Returns the expiration time of a key as a Unix timestamp."),
    row("flushall", -1, "write", NONE, "1.0.0", "server", plan(whole::flush_all), Partial("as FLUSHDB; trees that are no databases of Redis stay"), "Removes all keys from all databases."),
    row("flushdb", -1, "write", NONE, "1.0.0", "server", plan(whole::flush), Partial("each partition at a moment of its own; within MULTI what is behind it is a transaction of its own, which `WATCH` does not guard, and whose commands tell themselves if nothing of it was done"), "Removes all keys from the current database."),
    row("get", 2, READ, ONE, "1.0.0", "string", plan(strings::get), Full, "Returns the string value of a key."),
    row("getdel", 2, TIME, ONE, "6.2.0", "string", plan(strings::get_and_delete), Full, "Returns the string value of a key after deleting the key."),
    row("getex", -2, TIME, ONE, "6.2.0", "string", plan(strings::get_and_expire), Full, "Returns the string value of a key after setting its expiration time."),
    row("getrange", 4, "readonly", ONE, "2.4.0", "string", plan(strings::range), Full, "Returns a substring of the string stored at a key."),
    row("getset", 3, FAST, ONE, "1.0.0", "string", plan(strings::get_and_set), Full, "Returns the previous string value of a key after setting it to a new value."),
    row("hdel", -3, TIME, ONE, "2.0.0", "hash", plan(hashes::delete), Full, "Deletes one or more fields of a hash."),
    row("hello", -1, FREE, NONE, "6.0.0", "connection", link(link::hello), Full, "Handshakes with the server."),
    row("hexists", 3, READ, ONE, "2.0.0", "hash", plan(hashes::exists), Full, "Determines whether a field exists in a hash."),
    row("hget", 3, READ, ONE, "2.0.0", "hash", plan(hashes::get), Full, "Returns the value of a field in a hash."),
    row("hgetall", 2, "readonly", ONE, "2.0.0", "hash", plan(hashes::all), ORDER, "Returns all fields and values in a hash."),
    row("hincrby", 4, FAST, ONE, "2.0.0", "hash", plan(hashes::increment_by), Full, "Increments the integer value of a field in a hash by a number."),
    row("hincrbyfloat", 4, FAST, ONE, "2.6.0", "hash", plan(hashes::increment_by_float), FLOAT, "Increments the floating point value of a field by a number."),
    row("hkeys", 2, "readonly", ONE, "2.0.0", "hash", plan(hashes::keys), ORDER, "Returns all fields in a hash."),
    row("hlen", 2, READ, ONE, "2.0.0", "hash", plan(hashes::length), Full, "Returns the number of fields in a hash."),
    row("hmget", -3, READ, ONE, "2.0.0", "hash", plan(hashes::get_many), Full, "Returns the values of all fields asked for."),
    row("hmset", -4, FAST, ONE, "2.0.0", "hash", plan(hashes::set_many), Full, "Sets the values of multiple fields."),
    row("hscan", -3, "readonly", ONE, "2.8.0", "hash", plan(hashes::scan), Partial("a cursor is known to the node that gave it, as one of its latest 16,384, others are errors; COUNT counts up to 10,000; within MULTI over several partitions all is told at once"), "Iterates over fields and values of a hash."),
    row("hset", -4, FAST, ONE, "2.0.0", "hash", plan(hashes::set), Full, "Creates or modifies the value of a field in a hash."),
    row("hsetnx", 4, FAST, ONE, "2.0.0", "hash", plan(hashes::set_if_absent), Full, "Sets the value of a field in a hash only when the field doesn't exist."),
    row("hstrlen", 3, READ, ONE, "3.2.0", "hash", plan(hashes::value_length), Full, "Returns the length of the value of a field."),
    row("hvals", 2, "readonly", ONE, "2.0.0", "hash", plan(hashes::values), ORDER, "Returns all values in a hash."),
    row("incr", 2, FAST, ONE, "1.0.0", "string", plan(strings::increment), Full, "Increments the integer value of a key by one."),
    row("incrby", 3, FAST, ONE, "1.0.0", "string", plan(strings::increment_by), Full, "Increments the integer value of a key by a number."),
    row("incrbyfloat", 3, FAST, ONE, "2.6.0", "string", plan(strings::increment_by_float), Partial("decimal, exactly, to 17 places: without the rounding of a `long double`; below 1.8e308, texts of up to 1,024 bytes; no hexadecimal numbers"), "Increments the floating point value of a key by a number."),
    row("info", -1, "loading stale", NONE, "1.0.0", "server", plan(describe::plan_info), Partial("server, clients, memory (of the whole process, as the system counts it), stats, replication, cluster, keyspace (how many keys; of their times to live always 0)"), "Returns information and statistics about the server."),
    row("keys", 2, "readonly", NONE, "1.0.0", "generic", plan(whole::keys), Partial(WHOLE_IN_MULTI), "Returns all key names that match a pattern."),
    row("mget", -2, READ, ALL, "1.0.0", "string", plan(strings::get_many), MANY, "Returns the string values of one or more keys."),
    row("mset", -3, WRITE, PAIRS, "1.0.1", "string", plan(strings::set_many), Full, "Sets the string values of one or more keys."),
    row("msetnx", -3, WRITE, PAIRS, "1.0.1", "string", plan(strings::set_many_if_absent), Full, "Sets the string values of one or more keys only when all keys don't exist."),
    row("multi", 1, TALK, NONE, "1.2.0", "transactions", Handler::Multi(Multi::Begin), Full, "Starts a transaction."),
    row("persist", 2, TIME, ONE, "2.2.0", "generic", plan(keys::persist), Full, "Removes the expiration time of a key."),
    row("pexpire", -3, TIME, ONE, "2.6.0", "generic", plan(keys::expire_milliseconds), Full, "Sets the expiration time of a key in milliseconds."),
    row("pexpireat", -3, TIME, ONE, "2.6.0", "generic", plan(keys::expire_at_milliseconds), Full, "Sets the expiration time of a key to a Unix milliseconds timestamp."),
    row("pexpiretime", 2, READ, ONE, "7.0.0", "generic", plan(keys::expires_millisecond), Full, "Returns the expiration time of a key as a Unix milliseconds timestamp."),
    row("ping", -1, "fast", NONE, "1.0.0", "connection", link(link::ping), Full, "Returns the server's liveliness response."),
    row("psetex", 4, WRITE, ONE, "2.6.0", "string", plan(strings::set_with_milliseconds), Full, "Sets both string value and expiration time in milliseconds of a key."),
    row("psubscribe", -2, LISTEN, NONE, "2.0.0", "pubsub", plan(pubsub::subscribe_to_patterns), Partial(NOT_IN_MULTI), "Listens for messages published to channels that match one or more patterns."),
    row("pttl", 2, READ, ONE, "2.6.0", "generic", plan(keys::milliseconds_left), Full, "Returns the expiration time in milliseconds of a key."),
    row("publish", 3, "pubsub loading stale fast", NONE, "2.0.0", "pubsub", plan(pubsub::publish), Partial("the reply counts who is subscribed at this node; all nodes' subscribers get it, the connection itself behind the replies to what it sent with it"), "Posts a message to a channel."),
    row("pubsub", -2, "", NONE, "2.8.0", "pubsub", link(link::pubsub), Partial("CHANNELS, NUMSUB, NUMPAT, of this node"), "Commands on subscriptions."),
    row("punsubscribe", -1, LISTEN, NONE, "2.0.0", "pubsub", plan(pubsub::unsubscribe_from_patterns), Partial(NOT_IN_MULTI), "Stops listening to messages published to channels that match one or more patterns."),
    row("quit", -1, FREE, NONE, "1.0.0", "connection", link(link::quit), Full, "Closes the connection."),
    row("randomkey", 1, "readonly", NONE, "1.0.0", "generic", plan(whole::random_key), Partial("where there are many, keys near gaps come more often; within MULTI as KEYS"), "Returns a random key name from the database."),
    row("readonly", 1, "loading stale fast", NONE, "3.0.0", "cluster", link(slots::read_only), Partial("the node that the connection is to answers what only reads keys, as its replica has them: they may be old, of several keys each for itself; if it has none of the partition, another node's; `KEYS`, `SCAN`, `DBSIZE`, `WATCH`, `MULTI` and what writes stay as they are; not with `--redis-moved off`"), "Enables read-only queries for a connection to a Redis Cluster replica node."),
    row("readwrite", 1, "loading stale fast", NONE, "3.0.0", "cluster", link(slots::read_write), Full, "Enables read-write queries for a connection to a Redis Cluster replica node."),
    row("rename", 3, "write", TWO, "1.0.0", "generic", plan(keys::rename), CARRIED, "Renames a key and overwrites the destination."),
    row("renamenx", 3, TIME, TWO, "1.0.0", "generic", plan(keys::rename_if_absent), CARRIED, "Renames a key only when the target key name doesn't exist."),
    row("reset", 1, FREE, NONE, "6.2.0", "connection", link(link::reset), Full, "Resets the connection."),
    row("scan", -2, "readonly", NONE, "2.8.0", "generic", plan(whole::scan), Partial("a cursor is known to the node that gave it, as one of its latest 16,384, others are errors; COUNT counts up to 10,000; within MULTI as KEYS"), "Iterates over the key names in the database."),
    row("script", -2, "", NONE, "2.6.0", "scripting", link(scripts::script), Partial("LOAD, EXISTS, FLUSH, of the scripts that EVAL carries out"), "Commands on scripts."),
    row("select", 2, "loading stale fast", NONE, "1.0.0", "connection", link(link::select), Full, "Changes the selected database."),
    row("set", -3, WRITE, ONE, "1.0.0", "string", plan(strings::set), Full, "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist."),
    row("setex", 4, WRITE, ONE, "2.0.0", "string", plan(strings::set_with_seconds), Full, "Sets the string value and expiration time of a key."),
    row("setnx", 3, FAST, ONE, "1.0.0", "string", plan(strings::set_if_absent), Full, "Set the string value of a key only when the key doesn't exist."),
    row("setrange", 4, WRITE, ONE, "2.2.0", "string", plan(strings::overwrite), Full, "Overwrites a part of a string value with another by an offset."),
    row("strlen", 2, READ, ONE, "2.2.0", "string", plan(strings::length), Full, "Returns the length of a string value."),
    row("subscribe", -2, LISTEN, NONE, "2.0.0", "pubsub", plan(pubsub::subscribe), Partial(NOT_IN_MULTI), "Listens for messages published to channels."),
    row("substr", 4, "readonly", ONE, "1.0.0", "string", plan(strings::range), Full, "Returns a substring from a string value."),
    row("touch", -2, READ, ALL, "3.2.1", "generic", plan(keys::exists), Full, "Returns the number of existing keys out of those specified."),
    row("ttl", 2, READ, ONE, "1.0.0", "generic", plan(keys::seconds_left), Full, "Returns the expiration time in seconds of a key."),
    row("type", 2, READ, ONE, "1.0.0", "generic", plan(keys::kind), Full, "Determines the type of value stored at a key."),
    row("unlink", -2, "write fast", ALL, "4.0.0", "generic", plan(keys::delete), Full, "Deletes one or more keys."),
    row("unsubscribe", -1, LISTEN, NONE, "2.0.0", "pubsub", plan(pubsub::unsubscribe), Partial(NOT_IN_MULTI), "Stops listening to messages posted to channels."),
    row("unwatch", 1, TALK, NONE, "2.2.0", "transactions", Handler::Multi(Multi::Unwatch), Full, "Forgets about watched keys of a transaction."),
    row("watch", -2, TALK, ALL, "2.2.0", "transactions", Handler::Multi(Multi::Watch), WATCHED, "Monitors changes to keys to determine the execution of a transaction."),
];

/// What Redis 7.0 has and is not here, by its groups. A client is told that the command is unknown.
const ABSENT: &[(&str, &str)] = &[
    ("string", "lcs"),
    ("generic", "dump migrate move object restore sort sort_ro wait"),
    ("bitmap", "bitcount bitfield bitfield_ro bitop bitpos getbit setbit"),
    ("hash", "hrandfield"),
    (
        "list",
        "blmove blmpop blpop brpop brpoplpush lindex linsert llen lmove lmpop lpop lpos lpush lpushx lrange lrem lset ltrim rpop rpoplpush rpush rpushx",
    ),
    (
        "set",
        "sadd scard sdiff sdiffstore sinter sintercard sinterstore sismember smembers smismember smove spop srandmember srem sscan sunion sunionstore",
    ),
    (
        "sorted-set",
        "bzmpop bzpopmax bzpopmin zadd zcard zcount zdiff zdiffstore zincrby zinter zintercard zinterstore zlexcount zmpop zmscore zpopmax zpopmin zrandmember zrange zrangebylex zrangebyscore zrangestore zrank zrem zremrangebylex zremrangebyrank zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion zunionstore",
    ),
    (
        "stream",
        "xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread xreadgroup xrevrange xsetid xtrim",
    ),
    ("hyperloglog", "pfadd pfcount pfdebug pfmerge pfselftest"),
    (
        "geo",
        "geoadd geodist geohash geopos georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore",
    ),
    ("pubsub", "spublish ssubscribe sunsubscribe"),
    ("scripting", "eval_ro evalsha_ro fcall fcall_ro function"),
    (
        "server",
        "acl bgrewriteaof bgsave debug failover lastsave latency lolwut memory module monitor psync replconf replicaof restore-asking role save shutdown slaveof slowlog swapdb sync time",
    ),
];

/// The command of a name in whatever letters.
pub(super) fn find(name: &[u8]) -> Option<&'static CommandInfo> {
    // None is longer.
    let mut lower = [0; 16];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let at = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(lower)).ok()?;
    Some(&COMMANDS[at])
}

impl CommandInfo {
    /// Whether it may be asked before a client has said who it is.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.name, "auth" | "hello" | "quit" | "reset")
    }

    /// Understands a request for it that has the right number of arguments.
    pub(super) fn plan(
        &self,
        arguments: &[Bytes],
        database: TreeId,
        now_ms: u64,
        cursors: &Cursors,
    ) -> Planned {
        match self.handler {
            Handler::Plan(plan) => {
                let asked = Asked { name: self.name.to_owned(), arguments, database, now_ms, cursors };
                match plan(&asked)? {
                    Step::Data(data) if data.operations.iter().any(StringsOperation::brings_too_long) => {
                        Err(plain(&StringsReply::Failed(StringsFailure::TooLong)))
                    }
                    step => Ok(step),
                }
            }
            Handler::Link(link) => Ok(Step::Link(link, arguments.to_vec())),
            Handler::Multi(multi) => Ok(Step::Multi(multi, arguments.to_vec())),
        }
    }
}

/// Whether an argument is this word, in whatever letters.
pub(super) fn is_word(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// A whole number.
pub(super) fn integer(argument: &[u8]) -> Result<i64, Value> {
    parse_integer(argument).ok_or_else(|| Value::error("ERR value is not an integer or out of range"))
}

/// The number of a database, which `None` says that there is not.
pub(super) fn database_number(argument: &[u8]) -> Result<Option<TreeId>, Value> {
    let number = i32::try_from(integer(argument)?).map_err(|_| {
        let (least, most) = (i32::MIN, i32::MAX);
        Value::error(format!("ERR value is out of range, value must between {least} and {most}"))
    })?;
    Ok(u32::try_from(number).ok().filter(|number| *number < DATABASES).map(TreeId))
}

pub(super) fn syntax_error() -> Value {
    Value::error("ERR syntax error")
}

pub(super) fn wrong_arity(name: &str) -> Value {
    Value::error(format!("ERR wrong number of arguments for '{name}' command"))
}

/// Of the name, and of the arguments together, so many bytes are told.
const TOLD: usize = 128;

/// What is said of a command that there is not.
pub(super) fn unknown(arguments: &[Bytes]) -> Value {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = &arguments[0][..arguments[0].len().min(TOLD)];
    let mut told = String::new();
    for argument in &arguments[1..] {
        if told.len() >= TOLD {
            break;
        }
        let part = &argument[..argument.len().min(TOLD - told.len())];
        let _ = write!(told, "'{}' ", shown(part));
    }
    Value::error(format!("ERR unknown command '{}', with args beginning with: {told}", shown(name)))
}

/// Which of Redis's commands there are: a page, made from the same table that commands are looked up in.
pub fn support() -> String {
    let mut page = "\
# Redis's commands

Written by `DOGSLED_BLESS=1 cargo test --workspace --test redis` from `src/cluster/redis/table.rs`; the test fails
if the two differ. The commands and their replies are those of Redis 7.0, but for those of the group `dogsled`:

- `DOGSLED.LOCK name milliseconds [OWNER owner] [WAIT milliseconds]` takes a lock for so long, and answers the
  fencing token of the grant: a number larger than those of all grants before. Null: somebody else holds it, also after
  having waited for so long. `DOGSLED.LOCK name milliseconds RENEW token` starts the time anew; null: the lock is not
  held under this token any more.
- `DOGSLED.UNLOCK name token` gives it back: 1, or 0 if it was not held under this token any more.
- `DOGSLED.FENCED name token command [argument ...]` carries out a command on keys if the lock is held under this token in
  that very moment, else it is the error `LOCKNOTHELD`, and so is all of `EXEC` if it is within `MULTI`. Locks do not
  lie in Redis's slots, so that is a transaction over partitions, as a rule.

Locks are not keys; they are those of `dogsled lock`.

**Several partitions.** `MSET`, `MSETNX`, `DEL`, `UNLINK`, `MGET`, `EXISTS`, `TOUCH`, `RENAME`, `RENAMENX`, `COPY` and `EXEC` may be of keys of any
partitions, and then are a transaction over them: all of it or nothing. If others write the same keys all the time and
always come between, it is given up after some attempts: the error begins with `CLUSTERDOWN`, nothing was done, and the same
command may be sent again. Keys with a common `{tag}` are of one partition, and what is on them is never refused for that.

**Times to live.** When the time of a key is over, it is gone for all that writes. What only reads may show it for about a tenth
of a second longer, if nobody writes to its partition meanwhile.

**Reads that may be old.** What is read is the newest, whichever node is asked, and that takes a majority. `READONLY` asks for less:
until `READWRITE` or `RESET`, `GET`, `MGET`, `STRLEN`, `GETRANGE`, `EXISTS`, `TYPE`, `TTL` and its kin, `HGET` and all other
commands that read keys are answered by the replica of the node that the connection is to, as that is: also
while it is cut off from the others, at no cost for them, and never with `MOVED`. What the same connection wrote just before may not be
in it. `CLUSTER SLOTS` tells such a connection of replicas, so that `RedisCluster(read_from_replicas=True)` of redis-py uses them.

**Limits that Redis has not, or has larger.** Keys and fields: 64 KiB. Values: 16,252,928 bytes, as `CONFIG GET proto-max-bulk-len`
tells: so many fit one command of a partition, which has 16 MiB, with their key. What would be longer is refused as Redis refuses it, and so is
`MSET`, `HSET` or `EXEC` that brings more than 16 MiB for one partition. An argument of more than 17 MiB is a protocol error, and the connection is
closed. What `EXEC` answers with: 16 MiB of one partition, else it is refused and nothing is done. A command, or all of a `MULTI`: 256 MiB
together. A command: 1,048,576 arguments. `MULTI`: 65,536 commands. A
pipeline may be sent as a whole before its replies are read; of what is not answered yet, 64 MiB are taken, the rest when replies are read. `WATCH`: 16,384 keys. What one `MULTI` copies with `COPY`: 64 MiB; what it
writes anew, by `APPEND` and `SETRANGE`, by `RENAME`, and by giving a string another time to live: 1 GiB; what all of its commands look at: 2 GiB.
Patterns of `KEYS`, `SCAN` and `HSCAN`: 1 KiB. Channels: 4 KiB; patterns of `PSUBSCRIBE`: 256 bytes, 16 KiB together; a connection: 16,384
subscriptions, whose names have 1 MiB together. `SCAN` and `HSCAN` look at 10,000 keys at a time, whatever `COUNT` says.

What is published at a node comes to subscribers at all nodes, at most once, in one order for each channel; `PUBLISH` and
`PUBSUB` count those at their own node, as in Redis's cluster. A message is an entry of the log of the channel's
partition: it costs what a small `SET` costs, needs a quorum, and leaves nothing. A connection for which more than 32 MiB
wait, or more than 8 MiB for a minute, is closed.

Of keys (`CONFIG SET notify-keyspace-events`, for the whole cluster and for good) is told what Redis tells of the
commands that are there, and of `expired` keys: the letters `K E A g $ h x n` mean something, the others are taken. An
event is told with the change itself, at all nodes; those of keys of one partition in their order. What writes by other
means than Redis's protocol tells nothing but `expired`; and a command, or a transaction, on keys of several partitions is
told as what it made of each: `set`, `del`, `hset`, `hdel`, `expire`, `persist`, where one on keys of one
(`{tag}`) is told as `incrby` or `rename_to`.

| command | group | |
|---|---|---|
"
    .to_owned();
    let mut rows: Vec<(String, &str, String)> = Vec::new();
    for command in COMMANDS {
        let support = match command.support {
            Full => "full".to_owned(),
            Partial(how) => format!("partial: {how}"),
        };
        rows.push((command.name.to_ascii_uppercase(), command.group, support));
    }
    for (group, names) in ABSENT {
        rows.extend(names.split(' ').map(|name| (name.to_ascii_uppercase(), *group, "absent".to_owned())));
    }
    rows.sort();
    for (name, group, support) in rows {
        let _ = writeln!(page, "| {name} | {group} | {support} |");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_and_no_absent_one_is() {
        for command in COMMANDS {
            let found = find(command.name.to_ascii_uppercase().as_bytes()).expect(command.name);
            assert_eq!(found.name, command.name);
        }
        for name in ABSENT.iter().flat_map(|(_, names)| names.split(' ')) {
            assert!(find(name.as_bytes()).is_none(), "{name} is there");
        }
    }

    #[test]
    fn an_unknown_command_is_told_as_redis_does() {
        let words = |words: &[&str]| -> Vec<Bytes> {
            words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
        };
        let told = |value: &[&str]| match unknown(&words(value)) {
            Value::Error(text) => text.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&["foo"]), "ERR unknown command 'foo', with args beginning with: ");
        assert_eq!(told(&["foo", "a", "b"]), "ERR unknown command 'foo', with args beginning with: 'a' 'b' ");
        assert!(told(&["foo", &"a".repeat(1_000), &"b".repeat(1_000)]).len() < 250);
    }
}
