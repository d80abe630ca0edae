//! [`arguments_of`]: which arguments every command takes, in the notation of [`syntax`](super::syntax).
//!
//! Names, types and tokens are those of Redis 7.0, in its order, so that what reads `COMMAND DOCS` (the hints of `redis-cli`, a
//! library that makes its functions from it) finds what it knows. `tests/redis/documents.rs` compares them with what
//! `redis-server` tells. What is not understood here is left out; of that there is only
//!
//! - `CLIENT LIST [TYPE …] [ID …]`: no connection is told of others.
//!
//! And these are not in Redis 7.0: the group `dogsled`, `CLIENT SETINFO` and `CLIENT NO-TOUCH`.
//!
//! What changes a Redis cluster (`CLUSTER MEET`) is refused here, but only after its arguments were counted; so they are told.

use super::syntax::{Argument, parse};

/// By full name, as `config|get`. Those that have others below them take no arguments themselves, and are not here.
#[rustfmt::skip]
const SYNTAXES: &[(&str, &str)] = &[
    ("append", "key#0 value"),
    ("asking", ""),
    ("auth", "[username@6.0.0] password"),
    ("client|getname", ""),
    ("client|help", ""),
    ("client|id", ""),
    ("client|info", ""),
    ("client|list", ""),
    ("client|no-evict", "enabled(ON|OFF)"),
    ("client|no-touch", "enabled(ON|OFF)"),
    ("client|setinfo", "attr(LIB-NAME=libname|LIB-VER=libver)"),
    ("client|setname", "connection-name"),
    ("cluster|addslots", "slot:integer..."),
    ("cluster|addslotsrange", "start-slot_end-slot(start-slot:integer end-slot:integer)..."),
    ("cluster|bumpepoch", ""),
    ("cluster|delslots", "slot:integer..."),
    ("cluster|delslotsrange", "start-slot_end-slot(start-slot:integer end-slot:integer)..."),
    ("cluster|failover", "[options(FORCE|TAKEOVER)]"),
    ("cluster|flushslots", ""),
    ("cluster|forget", "node-id"),
    ("cluster|help", ""),
    ("cluster|info", ""),
    ("cluster|keyslot", "key"),
    ("cluster|meet", "ip port:integer [cluster_bus_port:integer@4.0.0]"),
    ("cluster|myid", ""),
    ("cluster|nodes", ""),
    ("cluster|replicate", "node-id"),
    ("cluster|reset", "[hard_soft(HARD|SOFT)]"),
    ("cluster|saveconfig", ""),
    ("cluster|set-config-epoch", "config-epoch:integer"),
    ("cluster|setslot", "slot:integer subcommand(IMPORTING=node-id|MIGRATING=node-id|NODE=node-id|STABLE)"),
    ("cluster|shards", ""),
    ("cluster|slots", ""),
    ("command|count", ""),
    ("command|docs", "[command-name...]"),
    ("command|getkeys", ""),
    ("command|help", ""),
    ("command|info", "[command-name...]"),
    ("command|list", "[FILTERBY=filterby(MODULE=module-name|ACLCAT=category|PATTERN=pattern:pattern)]"),
    ("config|get", "parameter(parameter)..."),
    ("config|help", ""),
    ("config|set", "parameter_value(parameter value)..."),
    ("copy", "source#0 destination#1 [DB=destination-db:integer] [REPLACE]"),
    ("dbsize", ""),
    ("decr", "key#0"),
    ("decrby", "key#0 decrement:integer"),
    ("del", "key#0..."),
    ("discard", ""),
    ("dogsled.fenced", "name#0 token:integer command [arg...]"),
    ("dogsled.lock", "name#0 milliseconds:integer [how(acquire([OWNER=owner] [WAIT=milliseconds:integer])|RENEW=token:integer)]"),
    ("dogsled.unlock", "name#0 token:integer"),
    ("echo", "message"),
    ("eval", "script numkeys:integer [key#0...] [arg...]"),
    ("evalsha", "sha1 numkeys:integer [key#0...] [arg...]"),
    ("exec", ""),
    ("exists", "key#0..."),
    ("expire", "key#0 seconds:integer [condition(NX|XX|GT|LT)@7.0.0]"),
    ("expireat", "key#0 unix-time-seconds:unix-time [condition(NX|XX|GT|LT)@7.0.0]"),
    ("expiretime", "key#0"),
    ("flushall", "[async(ASYNC@4.0.0|SYNC@6.2.0)]"),
    ("flushdb", "[async(ASYNC@4.0.0|SYNC@6.2.0)]"),
    ("get", "key#0"),
    ("getdel", "key#0"),
    ("getex", "key#0 [expiration(EX=seconds:integer|PX=milliseconds:integer|EXAT=unix-time-seconds:unix-time|PXAT=unix-time-milliseconds:unix-time|PERSIST)]"),
    ("getrange", "key#0 start:integer end:integer"),
    ("getset", "key#0 value"),
    ("hdel", "key#0 field..."),
    ("hello", "[arguments(protover:integer [AUTH=username_password(username password)] [SETNAME=clientname])]"),
    ("hexists", "key#0 field"),
    ("hget", "key#0 field"),
    ("hgetall", "key#0"),
    ("hincrby", "key#0 field increment:integer"),
    ("hincrbyfloat", "key#0 field increment:double"),
    ("hkeys", "key#0"),
    ("hlen", "key#0"),
    ("hmget", "key#0 field..."),
    ("hmset", "key#0 field_value(field value)..."),
    ("hscan", "key#0 cursor:integer [MATCH=pattern:pattern] [COUNT=count:integer]"),
    ("hset", "key#0 field_value(field value)..."),
    ("hsetnx", "key#0 field value"),
    ("hstrlen", "key#0 field"),
    ("hvals", "key#0"),
    ("incr", "key#0"),
    ("incrby", "key#0 increment:integer"),
    ("incrbyfloat", "key#0 increment:double"),
    ("info", "[section...]"),
    ("keys", "pattern:pattern"),
    ("mget", "key#0..."),
    ("mset", "key_value(key#0 value)..."),
    ("msetnx", "key_value(key#0 value)..."),
    ("multi", ""),
    ("persist", "key#0"),
    ("pexpire", "key#0 milliseconds:integer [condition(NX|XX|GT|LT)@7.0.0]"),
    ("pexpireat", "key#0 unix-time-milliseconds:unix-time [condition(NX|XX|GT|LT)@7.0.0]"),
    ("pexpiretime", "key#0"),
    ("ping", "[message]"),
    ("psetex", "key#0 milliseconds:integer value"),
    ("psubscribe", "pattern(pattern:pattern)..."),
    ("pttl", "key#0"),
    ("publish", "channel message"),
    ("pubsub|channels", "[pattern:pattern]"),
    ("pubsub|help", ""),
    ("pubsub|numpat", ""),
    ("pubsub|numsub", "[channel...]"),
    ("punsubscribe", "[pattern:pattern...]"),
    ("quit", ""),
    ("randomkey", ""),
    ("readonly", ""),
    ("readwrite", ""),
    ("rename", "key#0 newkey#1"),
    ("renamenx", "key#0 newkey#1"),
    ("reset", ""),
    ("scan", "cursor:integer [MATCH=pattern:pattern] [COUNT=count:integer] [TYPE=type@6.0.0]"),
    ("script|exists", "sha1..."),
    ("script|flush", "[async(ASYNC|SYNC)@6.2.0]"),
    ("script|help", ""),
    ("script|load", "script"),
    ("select", "index:integer"),
    ("set", "key#0 value [condition(NX|XX)@2.6.12] [GET@6.2.0] [expiration(EX=seconds:integer@2.6.12|PX=milliseconds:integer@2.6.12|EXAT=unix-time-seconds:unix-time@6.2.0|PXAT=unix-time-milliseconds:unix-time@6.2.0|KEEPTTL@6.0.0)]"),
    ("setex", "key#0 seconds:integer value"),
    ("setnx", "key#0 value"),
    ("setrange", "key#0 offset:integer value"),
    ("strlen", "key#0"),
    ("subscribe", "channel..."),
    ("substr", "key#0 start:integer end:integer"),
    ("touch", "key#0..."),
    ("ttl", "key#0"),
    ("type", "key#0"),
    ("unlink", "key#0..."),
    ("unsubscribe", "[channel...]"),
    ("unwatch", ""),
    ("watch", "key#0..."),
];

/// The arguments of a command, or of one that is below it, by its full name in small letters.
pub(super) fn arguments_of(full_name: &str) -> Vec<Argument> {
    let found = SYNTAXES.binary_search_by_key(&full_name, |(name, _)| *name);
    let syntax = found.map_or("", |at| SYNTAXES[at].1);
    parse(syntax).unwrap_or_else(|wrong| panic!("the arguments of {full_name}: {wrong}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::syntax::Kind;
    use super::super::table::COMMANDS;
    use super::*;

    /// Full names, arities, and how many words of those are the name.
    fn all() -> Vec<(String, i64, i64)> {
        let mut all = Vec::new();
        for command in COMMANDS {
            let below: Vec<_> = command.below().map(|below| (below.full_name(), below.arity, 2)).collect();
            if below.is_empty() {
                all.push((command.name.to_owned(), command.arity, 1));
            }
            all.extend(below);
        }
        all
    }

    fn within(argument: &Argument) -> &[Argument] {
        match &argument.kind {
            Kind::OneOf(within) | Kind::Block(within) => within,
            Kind::Plain(_) | Kind::Key(_) | Kind::Token => &[],
        }
    }

    /// How many words these are at least.
    fn least(arguments: &[Argument]) -> i64 {
        arguments.iter().map(least_of).sum()
    }

    fn least_of(argument: &Argument) -> i64 {
        let own = match &argument.kind {
            _ if argument.is_optional => return 0,
            Kind::Plain(_) | Kind::Key(_) => 1,
            Kind::Token => 0,
            Kind::Block(within) => least(within),
            Kind::OneOf(within) => within.iter().map(least_of).min().expect("one of several"),
        };
        own + i64::from(argument.token.is_some())
    }

    fn may_be_more(argument: &Argument) -> bool {
        argument.is_optional || argument.is_multiple || within(argument).iter().any(may_be_more)
    }

    #[test]
    fn every_command_has_its_line_and_every_line_can_be_read() {
        let mut names: Vec<String> = all().into_iter().map(|(name, ..)| name).collect();
        names.sort();
        let known: Vec<&str> = SYNTAXES.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, names);
        for (name, syntax) in SYNTAXES {
            let arguments = parse(syntax).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            assert_eq!(arguments.is_empty(), syntax.is_empty(), "{name}");
        }
    }

    #[test]
    fn arguments_are_as_many_as_are_counted() {
        for (name, arity, words) in all() {
            let arguments = arguments_of(&name);
            // Of this one Redis 7.0 tells none, though it asks for two.
            if name == "command|getkeys" {
                assert!(arguments.is_empty(), "{arguments:?}");
                continue;
            }
            assert_eq!(words + least(&arguments), arity.abs(), "{name}");
            if arity > 0 {
                assert!(!arguments.iter().any(may_be_more), "{name}: {arguments:?}");
            }
        }
    }

    #[test]
    fn keys_are_told_of_commands_that_have_keys() {
        fn add_keys(arguments: &[Argument], found: &mut BTreeSet<i64>) {
            for argument in arguments {
                if let Kind::Key(number) = argument.kind {
                    found.insert(number);
                }
                add_keys(within(argument), found);
            }
        }
        for command in COMMANDS {
            let mut found = BTreeSet::new();
            add_keys(&arguments_of(command.name), &mut found);
            let expected: &[i64] = match command.keys {
                (1, 2, 1) => &[0, 1],
                (0, ..) if !command.flags.contains("movablekeys") => &[],
                _ => &[0],
            };
            assert!(found.iter().eq(expected), "{} has {found:?}", command.name);
        }
    }
}
