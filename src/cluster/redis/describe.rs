//! What the server says of itself: `COMMAND`, `INFO`, and the `HELP` of commands that have others below them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::strings::parse_integer;

use super::arguments::arguments_of;
use super::link::Link;
use super::subcommands::Subcommand;
use super::syntax::{self, Argument, constant};
use super::table::{Asked, COMMANDS, CommandInfo, Planned, Step, find, is_word, syntax_error};
use super::{REDIS_VERSION, glob, tree_name};

/// How long the numbers of keys are waited for.
const KEYSPACE: Duration = Duration::from_secs(1);

fn words(flags: &str) -> Value {
    Value::Set(flags.split_whitespace().map(|flag| Value::Simple(flag.to_owned().into())).collect())
}

impl CommandInfo {
    fn has(&self, flag: &str) -> bool {
        self.flags.split_whitespace().any(|known| known == flag)
    }

    /// The categories of Redis's access lists, without their `@`.
    fn categories(&self) -> Vec<&'static str> {
        // Of these only what is below them has more.
        if self.flags.is_empty() {
            return vec!["slow"];
        }
        let group = match (self.name, self.group) {
            ("dbsize" | "flushall" | "flushdb", _) => "keyspace",
            ("command", _) => "connection",
            (_, "generic") => "keyspace",
            (_, "cluster") => "connection",
            (_, "transactions") => "transaction",
            (_, "server") => "",
            (_, group) => group,
        };
        let is_dangerous = matches!(self.name, "flushall" | "flushdb" | "info" | "keys");
        let told = [
            (self.has("readonly"), "read"),
            (self.has("write"), "write"),
            (!group.is_empty(), group),
            (true, if self.has("fast") { "fast" } else { "slow" }),
            (is_dangerous, "dangerous"),
        ];
        told.into_iter().filter(|(is_so, _)| *is_so).map(|(_, category)| category).collect()
    }

    /// What it costs here, as far as a client's choice may depend on it.
    fn complexity(&self) -> &'static str {
        match self.name {
            "client" | "cluster" | "config" | "pubsub" | "script" => "Depends on subcommand.",
            "exec" => "Depends on commands in the transaction",
            "eval" | "evalsha" => "Depends on the script that is executed.",
            "append" | "setrange" => {
                "O(N) where N is the length of the new value, which is written as a whole."
            }
            "copy" | "rename" | "renamenx" => {
                "O(N) where N is the length of the value, or of all fields of a hash; renaming a hash within a partition is O(1)."
            }
            "getrange" | "substr" => "O(N) where N is the length of the value.",
            "hgetall" | "hkeys" | "hvals" => "O(N) where N is the size of the hash.",
            "hdel" | "hmget" | "hmset" | "hset" => "O(N) where N is the number of fields that are named.",
            "keys" => "O(N) where N is the number of keys in the database that begin as the pattern does.",
            "scan" | "hscan" => "O(1) for every call. O(N) for a complete iteration.",
            "dbsize" => "O(N) where N is the number of partitions.",
            "flushdb" | "flushall" => "O(N) where N is the number of partitions; space is given back later.",
            "command" => "O(N) where N is the number of commands that are told.",
            "subscribe" | "psubscribe" | "unsubscribe" | "punsubscribe" => {
                "O(N) where N is the number of channels or patterns that are named."
            }
            "publish" => {
                "O(N+M) where N is the number of subscribers and M is the number of subscribed patterns."
            }
            _ if self.keys.1 == -1 => "O(N) where N is the number of keys that are named.",
            _ => "O(1)",
        }
    }

    fn described(&self) -> Value {
        let below = self.below().map(Subcommand::described).collect();
        described(self.name, self.arity, self.flags, self.keys, &self.categories(), below)
    }

    fn documented(&self) -> (Value, Value) {
        let about = [self.summary, self.since, self.group, self.complexity()];
        let below = self.below().map(Subcommand::documented).collect();
        (constant(self.name), documented(about, &arguments_of(self.name), below))
    }

    /// The keys of a request for it.
    fn keys_of(&self, arguments: &[Bytes]) -> Vec<Bytes> {
        if self.has("movablekeys") {
            // As Redis does where no key is needed: what is wrong with the number is not told.
            let count = arguments.get(2).and_then(|count| parse_integer(count));
            let count = count.and_then(|count| usize::try_from(count).ok());
            return count.and_then(|count| arguments[3..].get(..count)).unwrap_or_default().to_vec();
        }
        let (first, last, step) = self.keys;
        let last = if last < 0 { arguments.len() as i64 + last } else { last };
        let places = (first..=last).step_by(step.unsigned_abs().max(1) as usize);
        places.filter_map(|place| arguments.get(place as usize).cloned()).collect()
    }
}

impl Subcommand {
    fn described(&self) -> Value {
        described(&self.full_name(), self.arity, self.flags, (0, 0, 0), &self.categories(), Vec::new())
    }

    /// As [`CommandInfo::complexity`].
    fn complexity(&self) -> &'static str {
        match (self.command, self.name) {
            ("cluster", "info" | "nodes" | "shards" | "slots") => "O(N) where N is the number of partitions.",
            ("cluster", "keyslot") => "O(N) where N is the length of the key.",
            ("command", "docs" | "info" | "list") => "O(N) where N is the number of commands that are told.",
            ("command", "getkeys") => "O(N) where N is the number of arguments of the command.",
            ("config", "get") => "O(N) where N is the number of patterns.",
            ("config", "set") => "O(N) where N is the number of partitions.",
            ("pubsub", "channels") => "O(N) where N is the number of channels with subscribers at this node.",
            ("pubsub", "numsub") => "O(N) where N is the number of channels that are named.",
            ("script", "exists") => "O(N) where N is the number of scripts that are named.",
            ("script", "flush") => "O(N) where N is the number of scripts that are known.",
            ("script", "load") => "O(N) where N is the length of the script.",
            _ => "O(1)",
        }
    }

    fn documented(&self) -> (Value, Value) {
        let name = self.full_name();
        let group = find(self.command.as_bytes()).map_or("", |command| command.group);
        let about = [self.summary, self.since, group, self.complexity()];
        let told = documented(about, &arguments_of(&name), Vec::new());
        (Value::text(name), told)
    }
}

/// What `COMMAND INFO` says of one.
fn described(
    name: &str,
    arity: i64,
    flags: &str,
    (first, last, step): (i64, i64, i64),
    categories: &[&str],
    below: Vec<Value>,
) -> Value {
    let categories = categories.iter().map(|name| Value::Simple(format!("@{name}").into()));
    Value::Array(vec![
        Value::text(name),
        Value::Integer(arity),
        words(flags),
        Value::Integer(first),
        Value::Integer(last),
        Value::Integer(step),
        Value::Set(categories.collect()),
        Value::Array(Vec::new()),
        Value::Array(Vec::new()),
        Value::Array(below),
    ])
}

/// What `COMMAND DOCS` says of one: the summary, since when it is there, the group, what it costs, and the rest.
fn documented(about: [&'static str; 4], arguments: &[Argument], below: Vec<(Value, Value)>) -> Value {
    let names = ["summary", "since", "group", "complexity"];
    let about = names.into_iter().zip(about);
    let mut told: Vec<_> = about.map(|(name, text)| (constant(name), constant(text))).collect();
    if !arguments.is_empty() {
        told.push((constant("arguments"), syntax::documented(arguments)));
    }
    if !below.is_empty() {
        told.push((constant("subcommands"), Value::Map(below)));
    }
    Value::Map(told)
}

/// The names of those whose name and categories are as wanted, and of what is below each.
fn names(is_wanted: impl Fn(&str, &[&str]) -> bool) -> Value {
    let all = COMMANDS.iter().flat_map(|command| {
        let own = (command.name.to_owned(), command.categories());
        std::iter::once(own).chain(command.below().map(|below| (below.full_name(), below.categories())))
    });
    let wanted = all.filter(|(name, categories)| is_wanted(name, categories));
    Value::Array(wanted.map(|(name, _)| Value::text(name)).collect())
}

fn keys_of(arguments: &[Bytes]) -> Value {
    let told = || {
        let command = find(&arguments[0]).ok_or("ERR Invalid command specified")?;
        if arguments.len() > 1 && command.has_below() && command.find_below(arguments).is_none() {
            return Err("ERR Invalid command specified");
        }
        if command.keys.0 == 0 && !command.has("movablekeys") {
            return Err("ERR The command has no key arguments");
        }
        let arity = command.check(arguments);
        arity.map_err(|_| "ERR Invalid number of arguments specified for command")?;
        Ok(command.keys_of(arguments))
    };
    match told() {
        Ok(keys) => Value::Array(keys.into_iter().map(Value::Bulk).collect()),
        Err(refused) => Value::error(refused),
    }
}

/// `COMMAND`.
pub(super) fn command(_: &mut Link, arguments: &[Bytes]) -> Value {
    let Some(subcommand) = arguments.get(1) else {
        return Value::Array(COMMANDS.iter().map(CommandInfo::described).collect());
    };
    let is = |word: &str| is_word(subcommand, word);
    match &arguments[2..] {
        [] if is("COUNT") => Value::Integer(COMMANDS.len() as i64),
        [] if is("HELP") => help("COMMAND", COMMAND_HELP),
        [] if is("LIST") => names(|_, _| true),
        [by, what, of] if is("LIST") && is_word(by, "FILTERBY") => {
            let lower = of.to_ascii_lowercase();
            match () {
                // There are no modules.
                () if is_word(what, "MODULE") => names(|_, _| false),
                () if is_word(what, "ACLCAT") => {
                    names(|_, categories| categories.iter().any(|category| category.as_bytes() == lower))
                }
                () if is_word(what, "PATTERN") => names(|name, _| glob::matches(&lower, name.as_bytes())),
                () => syntax_error(),
            }
        }
        [_, ..] if is("LIST") => syntax_error(),
        request @ [_, _, ..] if is("GETKEYS") => keys_of(request),
        [] if is("INFO") => Value::Array(COMMANDS.iter().map(CommandInfo::described).collect()),
        names if names.len() > MOST_NAMES && (is("INFO") || is("DOCS")) => {
            Value::error(format!("ERR at most {MOST_NAMES} commands are described at a time"))
        }
        names if is("INFO") => {
            let below = |name: &Bytes| Subcommand::find(name).map(Subcommand::described);
            let told = |name: &Bytes| find(name).map(CommandInfo::described).or_else(|| below(name));
            Value::Array(names.iter().map(|name| told(name).unwrap_or(Value::Null)).collect())
        }
        [] if is("DOCS") => Value::Map(COMMANDS.iter().map(CommandInfo::documented).collect()),
        names if is("DOCS") => {
            let below = |name: &Bytes| Subcommand::find(name).map(Subcommand::documented);
            let told = |name: &Bytes| find(name).map(CommandInfo::documented).or_else(|| below(name));
            Value::Map(names.iter().filter_map(told).collect())
        }
        _ => syntax_error(),
    }
}

/// So that what is told of them is bounded.
const MOST_NAMES: usize = 1024;

/// What is below a command, and what it does.
type Help = &'static [(&'static str, &'static str)];

const COMMAND_HELP: Help = &[
    ("(no subcommand)", "Return details about all commands."),
    ("COUNT", "Return the total number of commands in this server."),
    ("LIST [FILTERBY (MODULE <name>|ACLCAT <category>|PATTERN <pattern>)]", "Return the names of commands."),
    ("INFO [<command-name> ...]", "Return details about multiple commands."),
    ("DOCS [<command-name> ...]", "Return documentation details about multiple commands."),
    ("GETKEYS <full-command>", "Return the keys from a full command."),
];
pub(super) const CLIENT_HELP: Help = &[
    ("GETNAME", "Return the name of the current connection."),
    ("ID", "Return the ID of the current connection."),
    ("INFO", "Return information about the current client connection."),
    ("LIST", "Return information about the current client connection."),
    ("NO-EVICT (ON|OFF)", "Accepted; no connection is evicted."),
    ("NO-TOUCH (ON|OFF)", "Accepted; no read makes a key younger."),
    ("SETINFO (LIB-NAME|LIB-VER) <value>", "Tell the name or version of the client's library."),
    ("SETNAME <name>", "Assign the name <name> to the current connection."),
];
pub(super) const CONFIG_HELP: Help = &[
    ("GET <pattern>", "Return parameters matching the glob-like <pattern> and their values."),
    ("SET notify-keyspace-events <letters>", "Set which events are told of keys, for the whole cluster."),
];
pub(super) const SCRIPT_HELP: Help = &[
    ("EXISTS <sha1> [<sha1> ...]", "Return information about which scripts this node knows by their hashes."),
    ("FLUSH [ASYNC|SYNC]", "Forget the hashes of scripts at this node."),
    ("LOAD <script>", "Have this node know a script by its hash, without executing it."),
];
pub(super) const PUBSUB_HELP: Help = &[
    ("CHANNELS [<pattern>]", "Return the active channels of this node matching a <pattern> (default: '*')."),
    ("NUMPAT", "Return number of subscriptions to patterns at this node."),
    ("NUMSUB [<channel> ...]", "Return the number of subscribers at this node for the specified channels."),
];

/// The lines that `HELP` answers.
pub(super) fn help(command: &str, below: Help) -> Value {
    let first = format!("{command} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    let lines = below.iter().chain(&[("HELP", "Prints this help.")]);
    let lines = lines.flat_map(|(name, what)| [(*name).to_owned(), format!("    {what}")]);
    Value::Array(std::iter::once(first).chain(lines).map(|line| Value::Simple(line.into())).collect())
}

/// `INFO`.
pub(super) fn plan_info(asked: &Asked<'_>) -> Planned {
    Ok(Step::Info(asked.arguments.to_vec()))
}

/// Answers `INFO`.
pub(super) async fn info(link: &Link, arguments: &[Bytes]) -> Value {
    let asked = &arguments[1..];
    let wanted = |name: &str| {
        let all = ["all", "everything", "default"];
        asked.is_empty()
            || asked.iter().any(|word| is_word(word, name) || all.iter().any(|all| is_word(word, all)))
    };
    let mut texts = Vec::new();
    let mut tell = |name: &str, text: &dyn Fn() -> String| {
        if wanted(name) {
            texts.push(text());
        }
    };
    let server = &link.server;
    tell("server", &|| {
        format!(
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:{}\r\ndogsled_version:{}\r\nprocess_id:{}\r\n\
             tcp_port:{}\r\nuptime_in_seconds:{}\r\n",
            server.mode(),
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            server.address.port(),
            server.begun.elapsed().as_secs(),
        )
    });
    tell("clients", &|| {
        let connected = server.connected.load(Ordering::Relaxed);
        format!("# Clients\r\nconnected_clients:{connected}\r\nmaxclients:{}\r\n", server.max_connections)
    });
    tell("memory", &|| memory() + &format!("dogsled_held_for_clients:{}\r\n", server.held.bytes()));
    tell("stats", &|| {
        format!(
            "# Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\nrejected_connections:{}\r\n\
             pubsub_channels:{}\r\npubsub_patterns:{}\r\n",
            server.received(),
            server.commands.load(Ordering::Relaxed),
            server.rejected.load(Ordering::Relaxed),
            server.database.hub.channels(None).len(),
            server.database.hub.patterns(),
        )
    });
    tell("replication", &|| "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n".to_owned());
    tell("cluster", &|| server.topology.info());
    if wanted("keyspace") {
        let sizes = tokio::time::timeout(KEYSPACE, keyspace(link)).await;
        // Without a majority nobody knows; a client that wants to know other things is not to wait for that.
        texts.push(format!("# Keyspace\r\n{}", sizes.unwrap_or_default()));
    }
    Value::Verbatim(texts.join("\r\n"))
}

/// What the process holds, as the system counts it.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let mut text = "# Memory\r\n".to_owned();
    for (name, found) in
        [("used_memory", "VmRSS"), ("used_memory_rss", "VmRSS"), ("used_memory_peak", "VmHWM")]
    {
        // Elsewhere than on Linux it is not said.
        if let Some(bytes) = bytes(found) {
            text += &format!("{name}:{bytes}\r\n");
        }
    }
    text + "maxmemory:0\r\nmaxmemory_policy:noeviction\r\n"
}

/// How many keys the databases have that have some.
async fn keyspace(link: &Link) -> String {
    let client = &link.server.database.client;
    let Ok(names) = client.tree_names().await else { return String::new() };
    let mut text = String::new();
    for number in 0..super::DATABASES {
        let name = tree_name(number);
        if !names.contains(&name) {
            continue;
        }
        if let Ok(keys @ 1..) = client.tree(name).len().await {
            // How many of them have a time to live nobody counts.
            text += &format!("db{number}:keys={keys},expires=0,avg_ttl=0\r\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_the_command_has_them() {
        let keys = |line: &str| {
            let words: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            match keys_of(&words) {
                Value::Array(keys) => keys.len() as i64,
                Value::Error(_) => -1,
                other => panic!("{other:?}"),
            }
        };
        for (line, count) in [
            ("GET a", 1),
            ("MSET a 1 b 2 c 3", 3),
            ("DEL a b c d", 4),
            ("RENAME a b", 2),
            ("EVAL x 2 a b c", 2),
            ("EVAL x 0 a", 0),
            ("EVAL x 9 a", 0),
            ("PING a", -1),
            ("nonsense a", -1),
        ] {
            assert_eq!(keys(line), count, "{line}");
        }
    }
}
