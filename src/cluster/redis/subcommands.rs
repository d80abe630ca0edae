//! [`Subcommand`]: what stands below the commands that have others below them, as `CONFIG GET`.
//!
//! Redis looks up both words before it does anything else. So what is not there, or has another number of arguments, is
//! refused at once, also within `MULTI`, where `EXEC` then does nothing. What the arguments mean is for the commands.

use bytes::Bytes;
use dogsled_net::resp::Value;

use super::table::{CommandInfo, is_word, wrong_arity};

/// What is known of a subcommand.
pub(super) struct Subcommand {
    /// Of the command, in small letters.
    pub(super) command: &'static str,
    /// In small letters.
    pub(super) name: &'static str,
    /// How many arguments, both names among them; negative: at least so many.
    pub(super) arity: i64,
    /// Separated by spaces, as `COMMAND INFO` has them.
    pub(super) flags: &'static str,
    pub(super) since: &'static str,
    pub(super) summary: &'static str,
}

const fn row(
    command: &'static str,
    name: &'static str,
    arity: i64,
    flags: &'static str,
    since: &'static str,
    summary: &'static str,
) -> Subcommand {
    Subcommand { command, name, arity, flags, since, summary }
}

const HELP: &str = "loading stale";
const TALK: &str = "noscript loading stale";
const RULE: &str = "admin noscript loading stale";
const LOOK: &str = "stale";
const CHANGE: &str = "admin stale no_async_loading";
const LISTEN: &str = "pubsub loading stale";

const HELP_TEXT: &str = "Returns helpful text about the subcommands.";
const REFUSED: &str = "Is refused: the error says what changes this cluster instead.";

/// By command, and by name.
#[rustfmt::skip]
const SUBCOMMANDS: &[Subcommand] = &[
    row("client", "getname", 2, TALK, "2.6.9", "Returns the name of the connection."),
    row("client", "help", 2, HELP, "5.0.0", HELP_TEXT),
    row("client", "id", 2, TALK, "5.0.0", "Returns the number of the connection."),
    row("client", "info", 2, TALK, "6.2.0", "Returns information about the connection."),
    row("client", "list", -2, RULE, "2.4.0", "Returns information about the connection that asks, and no other."),
    row("client", "no-evict", 3, RULE, "7.0.0", "Is accepted; no connection is evicted."),
    row("client", "no-touch", 3, TALK, "7.2.0", "Is accepted; no read makes a key younger."),
    row("client", "setinfo", 4, TALK, "7.2.0", "Sets the name or version of the client's library."),
    row("client", "setname", 3, TALK, "2.6.9", "Sets the name of the connection."),
    row("cluster", "addslots", -3, CHANGE, "3.0.0", REFUSED),
    row("cluster", "addslotsrange", -4, CHANGE, "7.0.0", REFUSED),
    row("cluster", "bumpepoch", 2, CHANGE, "3.0.0", REFUSED),
    row("cluster", "delslots", -3, CHANGE, "3.0.0", REFUSED),
    row("cluster", "delslotsrange", -4, CHANGE, "7.0.0", REFUSED),
    row("cluster", "failover", -2, CHANGE, "3.0.0", REFUSED),
    row("cluster", "flushslots", 2, CHANGE, "3.0.0", REFUSED),
    row("cluster", "forget", 3, CHANGE, "3.0.0", REFUSED),
    row("cluster", "help", 2, HELP, "5.0.0", HELP_TEXT),
    row("cluster", "info", 2, LOOK, "3.0.0", "Returns the state of the cluster."),
    row("cluster", "keyslot", 3, LOOK, "3.0.0", "Returns the hash slot of a key."),
    row("cluster", "meet", -4, CHANGE, "3.0.0", REFUSED),
    row("cluster", "myid", 2, LOOK, "3.0.0", "Returns the name of the node."),
    row("cluster", "nodes", 2, LOOK, "3.0.0", "Returns the nodes and the slots that they lead, as lines of text."),
    row("cluster", "replicate", 3, CHANGE, "3.0.0", REFUSED),
    row("cluster", "reset", -2, "admin noscript stale", "3.0.0", REFUSED),
    row("cluster", "saveconfig", 2, CHANGE, "3.0.0", REFUSED),
    row("cluster", "set-config-epoch", 3, CHANGE, "3.0.0", REFUSED),
    row("cluster", "setslot", -4, CHANGE, "3.0.0", REFUSED),
    row("cluster", "shards", 2, LOOK, "7.0.0", "Returns the nodes and the slots that they lead."),
    row("cluster", "slots", 2, LOOK, "3.0.0", "Returns the slots and the nodes that lead them."),
    row("command", "count", 2, HELP, "2.8.13", "Returns the number of commands."),
    row("command", "docs", -2, HELP, "7.0.0", "Returns what commands do and which arguments they take."),
    row("command", "getkeys", -4, HELP, "2.8.13", "Returns the keys of a command with its arguments."),
    row("command", "help", 2, HELP, "5.0.0", HELP_TEXT),
    row("command", "info", -2, HELP, "2.8.13", "Returns the properties of commands."),
    row("command", "list", -2, HELP, "7.0.0", "Returns the names of commands."),
    row("config", "get", -3, RULE, "2.0.0", "Returns parameters whose names match patterns, and their values."),
    row("config", "help", 2, HELP, "5.0.0", HELP_TEXT),
    row("config", "set", -4, RULE, "2.0.0", "Sets which events are told of keys, for the whole cluster."),
    row("pubsub", "channels", -2, LISTEN, "2.8.0", "Returns the channels of this node that somebody is subscribed to."),
    row("pubsub", "help", 2, HELP, "6.2.0", HELP_TEXT),
    row("pubsub", "numpat", 2, LISTEN, "2.8.0", "Returns how many patterns are subscribed to at this node."),
    row("pubsub", "numsub", -2, LISTEN, "2.8.0", "Returns how many are subscribed to channels at this node."),
    row("script", "exists", -3, "noscript", "2.6.0", "Determines which scripts this node knows by their hashes."),
    row("script", "flush", -2, "noscript", "2.6.0", "Forgets the hashes of scripts at this node."),
    row("script", "help", 2, HELP, "5.0.0", HELP_TEXT),
    row("script", "load", 3, "noscript stale", "2.6.0", "Has this node know a script by its hash, without executing it."),
];

impl Subcommand {
    /// As Redis calls it: `config|get`.
    pub(super) fn full_name(&self) -> String {
        format!("{}|{}", self.command, self.name)
    }

    /// That of a full name, in whatever letters.
    pub(super) fn find(full_name: &[u8]) -> Option<&'static Subcommand> {
        let at = full_name.iter().position(|byte| *byte == b'|')?;
        let (command, name) = (&full_name[..at], &full_name[at + 1..]);
        SUBCOMMANDS.iter().find(|below| is_word(command, below.command) && is_word(name, below.name))
    }

    /// The categories of Redis's access lists, without their `@`.
    pub(super) fn categories(&self) -> Vec<&'static str> {
        let has = |flag: &str| self.flags.split_whitespace().any(|known| known == flag);
        let told = [
            (has("pubsub"), "pubsub"),
            (has("admin"), "admin"),
            (true, "slow"),
            (has("admin"), "dangerous"),
            (matches!(self.command, "client" | "command"), "connection"),
            (self.command == "script", "scripting"),
        ];
        told.into_iter().filter(|(is_so, _)| *is_so).map(|(_, category)| category).collect()
    }
}

fn is_arity(arity: i64, count: usize) -> bool {
    let count = count as i64;
    if arity < 0 { count >= -arity } else { count == arity }
}

impl CommandInfo {
    /// Whether others are below it. Asked for every request, so not by looking through the table.
    pub(super) fn has_below(&self) -> bool {
        matches!(self.name, "client" | "cluster" | "command" | "config" | "pubsub" | "script")
    }

    /// Those below it.
    pub(super) fn below(&self) -> impl Iterator<Item = &'static Subcommand> {
        SUBCOMMANDS.iter().filter(|below| below.command == self.name)
    }

    pub(super) fn find_below(&self, request: &[Bytes]) -> Option<&'static Subcommand> {
        let name = request.get(1).filter(|_| self.has_below())?;
        self.below().find(|below| is_word(name, below.name))
    }

    /// What Redis calls what a request asks for.
    pub(super) fn full_name(&self, request: &[Bytes]) -> String {
        self.find_below(request).map_or_else(|| self.name.to_owned(), Subcommand::full_name)
    }

    /// Whether there is what a request for it asks for, and that with so many arguments.
    pub(super) fn check(&self, request: &[Bytes]) -> Result<(), Value> {
        let right = match (self.find_below(request), request.get(1)) {
            (Some(below), _) => is_arity(below.arity, request.len()),
            (None, Some(name)) if self.has_below() => {
                let name = String::from_utf8_lossy(&name[..name.len().min(128)]);
                let command = self.name.to_ascii_uppercase();
                let what = format!("ERR unknown subcommand '{name}'. Try {command} HELP.");
                return Err(Value::error(what));
            }
            _ => is_arity(self.arity, request.len()),
        };
        if right { Ok(()) } else { Err(wrong_arity(&self.full_name(request))) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{COMMANDS, find};
    use super::*;

    #[test]
    fn every_subcommand_is_below_a_command_that_has_such() {
        for below in SUBCOMMANDS {
            let command = find(below.command.as_bytes()).expect(below.command);
            assert!(command.has_below(), "{}", below.command);
            let found = Subcommand::find(below.full_name().to_ascii_uppercase().as_bytes());
            assert_eq!(found.expect(below.name).full_name(), below.full_name());
        }
        for command in COMMANDS {
            assert_eq!(command.has_below(), command.below().next().is_some(), "{}", command.name);
        }
        let names: Vec<String> = SUBCOMMANDS.iter().map(Subcommand::full_name).collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn what_is_not_there_or_has_other_arguments_is_refused_as_by_redis() {
        let check = |line: &str| {
            let request: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            match find(&request[0]).expect(line).check(&request) {
                Ok(()) => String::new(),
                Err(Value::Error(text)) => text.into_owned(),
                Err(other) => panic!("{other:?}"),
            }
        };
        for (line, refused) in [
            ("GET a", ""),
            ("GET", "ERR wrong number of arguments for 'get' command"),
            ("CONFIG", "ERR wrong number of arguments for 'config' command"),
            ("CONFIG GET", "ERR wrong number of arguments for 'config|get' command"),
            ("CONFIG GET a b", ""),
            ("CONFIG Foo", "ERR unknown subcommand 'Foo'. Try CONFIG HELP."),
            ("CLIENT id x", "ERR wrong number of arguments for 'client|id' command"),
            ("CLIENT NO-EVICT foo", ""),
            ("COMMAND", ""),
            ("COMMAND GETKEYS GET", "ERR wrong number of arguments for 'command|getkeys' command"),
        ] {
            assert_eq!(check(line), refused, "{line}");
        }
    }
}
