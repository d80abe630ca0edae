//! [`Link`]: what belongs to one connection, and the commands on it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dogsled_net::resp::{Protocol, Value};
use dogsled_storage::TreeId;
use dogsled_storage::strings::parse_integer;

use super::REDIS_VERSION;
use super::describe::{CLIENT_HELP, PUBSUB_HELP, help};
use super::pubsub::LONGEST_PATTERN;
use super::server::Shared;
use super::slots::Redirected;
use super::table::{database_number, is_word, syntax_error, wrong_arity};

/// One connection.
pub(super) struct Link {
    pub(super) id: u64,
    pub(super) peer: String,
    pub(super) local: String,
    pub(super) begun: Instant,
    pub(super) protocol: Protocol,
    /// The number of the selected one.
    pub(super) database: TreeId,
    pub(super) is_authenticated: bool,
    /// Nothing more is read after this reply.
    pub(super) is_ending: bool,
    /// All that belongs to the connection is to be as at its beginning.
    pub(super) is_reset: bool,
    pub(super) redirected: Redirected,
    /// What only reads is answered by this node's replica, which may be old.
    pub(super) reads_here: bool,
    /// To how many channels and patterns it is subscribed.
    pub(super) subscribed: (usize, usize),
    name: Bytes,
    library: (Bytes, Bytes),
    pub(super) server: Arc<Shared>,
}

impl Link {
    pub(super) fn new(server: Arc<Shared>, id: u64, peer: String, local: String) -> Link {
        Link {
            id,
            peer,
            local,
            begun: Instant::now(),
            protocol: Protocol::Resp2,
            database: TreeId(0),
            is_authenticated: server.password.is_none(),
            is_ending: false,
            is_reset: false,
            redirected: Redirected::default(),
            reads_here: false,
            subscribed: (0, 0),
            name: Bytes::new(),
            library: (Bytes::new(), Bytes::new()),
            server,
        }
    }

    /// Whether these are the user's and password's.
    fn is_right(&self, user: &[u8], password: &[u8]) -> bool {
        let Some(wanted) = &self.server.password else { return user == b"default" };
        // In a time that does not tell how much was right.
        let differs = wanted.len() ^ password.len();
        let differs = wanted
            .bytes()
            .zip(password)
            .fold(differs, |differs, (one, other)| differs | usize::from(one ^ other));
        user == b"default" && differs == 0
    }

    fn authenticate(&mut self, user: &[u8], password: &[u8]) -> Result<(), Value> {
        if !self.is_right(user, password) {
            return Err(Value::error("WRONGPASS invalid username-password pair or user is disabled."));
        }
        self.is_authenticated = true;
        Ok(())
    }

    fn set_name(&mut self, name: &Bytes) -> Result<(), Value> {
        if !is_plain(name) {
            let what = "ERR Client names cannot contain spaces, newlines or special characters.";
            return Err(Value::error(what));
        }
        // Apart from the rest of what was read, which it would keep.
        self.name = Bytes::copy_from_slice(name);
        Ok(())
    }

    /// How many bytes it has named itself and its library with.
    pub(super) fn named(&self) -> usize {
        self.name.len() + self.library.0.len() + self.library.1.len()
    }

    /// What `CLIENT INFO` and `CLIENT LIST` say, in Redis's order, of the connection that asks: so it is not idle, and in no
    /// transaction but one that is being carried out.
    fn info(&self, subcommand: &str) -> String {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let (channels, patterns) = self.subscribed;
        format!(
            "id={} addr={} laddr={} fd=0 name={} age={} idle=0 flags={} db={} sub={channels} psub={patterns} ssub=0 \
             multi=-1 cmd=client|{subcommand} user=default resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.peer,
            self.local,
            text(&self.name),
            self.begun.elapsed().as_secs(),
            if channels + patterns > 0 { "P" } else { "N" },
            self.database.0,
            if self.protocol == Protocol::Resp3 { 3 } else { 2 },
            text(&self.library.0),
            text(&self.library.1),
        )
    }
}

impl Link {
    /// What `CLIENT LIST` says if this connection is among those that are asked for.
    fn listed(&self, is_asked_for: bool) -> String {
        if is_asked_for { self.info("list") } else { String::new() }
    }
}

/// Visible ASCII without spaces.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

pub(super) fn ping(_: &mut Link, arguments: &[Bytes]) -> Value {
    match arguments {
        [_] => Value::Simple("PONG".into()),
        [_, text] => Value::Bulk(text.clone()),
        _ => wrong_arity("ping"),
    }
}

pub(super) fn echo(_: &mut Link, arguments: &[Bytes]) -> Value {
    Value::Bulk(arguments[1].clone())
}

pub(super) fn quit(link: &mut Link, _: &[Bytes]) -> Value {
    link.is_ending = true;
    Value::OK
}

pub(super) fn reset(link: &mut Link, _: &[Bytes]) -> Value {
    link.protocol = Protocol::Resp2;
    link.database = TreeId(0);
    link.is_authenticated = link.server.password.is_none();
    link.name = Bytes::new();
    link.redirected = Redirected::default();
    link.reads_here = false;
    link.subscribed = (0, 0);
    link.is_reset = true;
    Value::Simple("RESET".into())
}

pub(super) fn select(link: &mut Link, arguments: &[Bytes]) -> Value {
    match database_number(&arguments[1]) {
        Ok(Some(database)) => {
            link.database = database;
            Value::OK
        }
        Ok(None) => Value::error("ERR DB index is out of range"),
        Err(refused) => refused,
    }
}

pub(super) fn auth(link: &mut Link, arguments: &[Bytes]) -> Value {
    let (user, password) = match arguments {
        [_, _] if link.server.password.is_none() => {
            return Value::error(
                "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                 your configuration is correct?",
            );
        }
        [_, password] => (&b"default"[..], password),
        [_, user, password] => (&user[..], password),
        _ => return syntax_error(),
    };
    match link.authenticate(user, password) {
        Ok(()) => Value::OK,
        Err(refused) => refused,
    }
}

pub(super) fn hello(link: &mut Link, arguments: &[Bytes]) -> Value {
    let mut protocol = link.protocol;
    if let Some(version) = arguments.get(1) {
        protocol = match parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Value::error("NOPROTO unsupported protocol version"),
            None => return Value::error("ERR Protocol version is not an integer or out of range"),
        };
    }
    let mut options = arguments.get(2..).unwrap_or_default();
    while let [option, rest @ ..] = options {
        options = match rest {
            [user, password, rest @ ..] if is_word(option, "AUTH") => {
                if let Err(refused) = link.authenticate(user, password) {
                    return refused;
                }
                rest
            }
            [wanted, rest @ ..] if is_word(option, "SETNAME") => {
                // Whatever becomes of the options behind it, as in Redis.
                if let Err(refused) = link.set_name(wanted) {
                    return refused;
                }
                rest
            }
            _ => {
                let option = String::from_utf8_lossy(option);
                return Value::error(format!("ERR Syntax error in HELLO option '{option}'"));
            }
        };
    }
    if !link.is_authenticated {
        return Value::error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH \
             <user> <pass> option can be used to authenticate the client and select the RESP protocol version at \
             the same time",
        );
    }
    link.protocol = protocol;
    let number = if protocol == Protocol::Resp3 { 3 } else { 2 };
    let pair = |key: &str, value: Value| (Value::text(key), value);
    Value::Map(vec![
        pair("server", Value::text("redis")),
        pair("version", Value::text(REDIS_VERSION)),
        pair("proto", Value::Integer(number)),
        pair("id", Value::Integer(link.id as i64)),
        pair("mode", Value::text(link.server.mode())),
        pair("role", Value::text("master")),
        pair("modules", Value::Array(Vec::new())),
    ])
}

pub(super) fn client(link: &mut Link, arguments: &[Bytes]) -> Value {
    let is = |word: &str| is_word(&arguments[1], word);
    match &arguments[2..] {
        [] if is("HELP") => help("CLIENT", CLIENT_HELP),
        [] if is("ID") => Value::Integer(link.id as i64),
        [] if is("GETNAME") && link.name.is_empty() => Value::Null,
        [] if is("GETNAME") => Value::Bulk(link.name.clone()),
        [name] if is("SETNAME") => match link.set_name(name) {
            Ok(()) => Value::OK,
            Err(refused) => refused,
        },
        [what, value] if is("SETINFO") => {
            let place = match () {
                () if is_word(what, "LIB-NAME") => &mut link.library.0,
                () if is_word(what, "LIB-VER") => &mut link.library.1,
                () => {
                    let what = String::from_utf8_lossy(what);
                    return Value::error(format!("ERR Unrecognized option '{what}'"));
                }
            };
            if !is_plain(value) {
                let what = String::from_utf8_lossy(what).to_ascii_lowercase();
                return Value::error(format!(
                    "ERR {what} cannot contain spaces, newlines or special characters."
                ));
            }
            *place = Bytes::copy_from_slice(value);
            Value::OK
        }
        [] if is("INFO") => Value::Verbatim(link.info("info")),
        [] if is("LIST") => Value::Verbatim(link.info("list")),
        // Nothing of a connection is evicted here, and no read makes a key younger.
        [on] if is("NO-EVICT") || is("NO-TOUCH") => match is_word(on, "ON") || is_word(on, "OFF") {
            true => Value::OK,
            false => syntax_error(),
        },
        [what, ids @ ..] if is("LIST") && is_word(what, "ID") && !ids.is_empty() => {
            let ids: Option<Vec<i64>> = ids.iter().map(|id| parse_integer(id).filter(|id| *id > 0)).collect();
            match ids {
                None => Value::error("ERR Invalid client ID"),
                Some(ids) => Value::Verbatim(link.listed(ids.contains(&(link.id as i64)))),
            }
        }
        [what, kind] if is("LIST") && is_word(what, "TYPE") => {
            let (channels, patterns) = link.subscribed;
            let own = if channels + patterns > 0 { "pubsub" } else { "normal" };
            let kinds = ["normal", "master", "replica", "slave", "pubsub"];
            match kinds.into_iter().find(|known| is_word(kind, known)) {
                None => {
                    let kind = String::from_utf8_lossy(kind);
                    Value::error(format!("ERR Unknown client type '{kind}'"))
                }
                Some(known) => Value::Verbatim(link.listed(known == own)),
            }
        }
        // Of LIST, what it does not know either.
        _ => syntax_error(),
    }
}

pub(super) fn pubsub(link: &mut Link, arguments: &[Bytes]) -> Value {
    let hub = &link.server.database.hub;
    let is = |word: &str| is_word(&arguments[1], word);
    let channels = |pattern| Value::Array(hub.channels(pattern).into_iter().map(Value::Bulk).collect());
    match &arguments[2..] {
        [] if is("HELP") => help("PUBSUB", PUBSUB_HELP),
        [] if is("CHANNELS") => channels(None),
        [pattern] if is("CHANNELS") && pattern.len() > LONGEST_PATTERN => {
            Value::error(format!("ERR a pattern of more than {LONGEST_PATTERN} bytes"))
        }
        [pattern] if is("CHANNELS") => channels(Some(&pattern[..])),
        [] if is("NUMPAT") => Value::Integer(hub.patterns() as i64),
        names if is("NUMSUB") => {
            let count = |name: &Bytes| Value::Integer(hub.subscribers(name) as i64);
            Value::Array(names.iter().flat_map(|name| [Value::Bulk(name.clone()), count(name)]).collect())
        }
        _ => {
            let name = String::from_utf8_lossy(&arguments[1]);
            let what = "unknown subcommand or wrong number of arguments for";
            Value::error(format!("ERR {what} '{name}'. Try PUBSUB HELP."))
        }
    }
}
