//! [`Argument`]: a notation for what arguments a command takes, and what `COMMAND DOCS` tells of it.
//!
//! A syntax is a line of arguments with a space between them, as a reference of Redis would show it, but for what such a page
//! leaves to its reader: names, types, and what belongs together. That of `SET`, shortened:
//!
//! ```text
//! key#0 value [condition(NX|XX)@2.6.12] [GET@6.2.0] [expiration(EX=seconds:integer|KEEPTTL)]
//! ```
//!
//! An argument is one of these:
//!
//! ```text
//! value                a string; the word is only its name
//! seconds:integer      of another type: double, integer, pattern, unix-time
//! key#0                a key: the first that the command's specification of keys finds
//! NX                   a word that is said as it stands (a token), named `nx`
//! EX=seconds:integer   a token, and an argument behind it
//! pair(field value)    several, one behind the other (a block)
//! condition(NX|XX)     one of several
//! ```
//!
//! Behind it stand, in this order, `...` if it may come more than once, and `@6.2.0` if the command is older than it: the
//! version of Redis that has it first. In `[` and `]` is what may be left out. So `[EX=seconds:integer@2.6.12]` has all that
//! there is.
//!
//! There is one way to write each of them, and whatever is not such a line is an error of this program: all lines
//! stand in its [table](super::arguments), which a test reads through.
//!
//! Not here, as no command needs it: a token that is said again before each of several values, and arguments that are
//! deprecated.

use std::borrow::Cow;

use bytes::Bytes;
use dogsled_net::resp::Value;

/// What an argument may be besides a string.
const TYPES: [&str; 4] = ["double", "integer", "pattern", "unix-time"];

/// An argument, or several that have a common name.
#[derive(Debug)]
pub(super) struct Argument {
    pub(super) name: Cow<'static, str>,
    pub(super) kind: Kind,
    /// What is said before it, or in its place.
    pub(super) token: Option<&'static str>,
    /// Since which version of Redis, if the command is older.
    pub(super) since: Option<&'static str>,
    pub(super) is_optional: bool,
    pub(super) is_multiple: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A word of this type.
    Plain(&'static str),
    /// A key, found by the specification of this number.
    Key(i64),
    /// Nothing but the token.
    Token,
    /// One of these.
    OneOf(Vec<Argument>),
    /// All of these, one behind the other.
    Block(Vec<Argument>),
}

impl Kind {
    /// What Redis calls it.
    fn name(&self) -> &'static str {
        match *self {
            Kind::Plain(name) => name,
            Kind::Key(_) => "key",
            Kind::Token => "pure-token",
            Kind::OneOf(_) => "oneof",
            Kind::Block(_) => "block",
        }
    }
}

/// The arguments of a line, or what is wrong with it.
pub(super) fn parse(syntax: &'static str) -> Result<Vec<Argument>, String> {
    if syntax.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader { rest: syntax };
    let arguments = reader.list(" ")?;
    match reader.rest {
        "" => Ok(arguments),
        _ => Err(reader.missing("the end")),
    }
}

struct Reader {
    /// What was not read yet.
    rest: &'static str,
}

impl Reader {
    fn missing(&self, what: &str) -> String {
        format!("{what} is missing before \"{}\"", self.rest)
    }

    /// Goes past this, if it is what comes next.
    fn take(&mut self, mark: &str) -> bool {
        match self.rest.strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// All that comes next and consists of these.
    fn word(&mut self, what: &str, may_have: fn(char) -> bool) -> Result<&'static str, String> {
        let end = self.rest.find(|character: char| !may_have(character)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(self.missing(what));
        }
        self.rest = rest;
        Ok(word)
    }

    /// Several with this between them.
    fn list(&mut self, between: &str) -> Result<Vec<Argument>, String> {
        let mut list = vec![self.argument()?];
        while self.take(between) {
            list.push(self.argument()?);
        }
        Ok(list)
    }

    fn argument(&mut self) -> Result<Argument, String> {
        let is_optional = self.take("[");
        let token = match self.rest.starts_with(|character: char| character.is_ascii_uppercase()) {
            true => Some(self.word("a token", is_of_token)?),
            false => None,
        };
        let is_followed = token.is_none() || self.take("=");
        let (name, kind) = match token {
            Some(token) if !is_followed => (Cow::Owned(token.to_ascii_lowercase()), Kind::Token),
            _ => {
                let name = self.word("a name", is_of_name)?;
                (Cow::Borrowed(name), self.kind()?)
            }
        };
        let is_multiple = self.take("...");
        let since = match self.take("@") {
            true => Some(self.version()?),
            false => None,
        };
        if is_optional && !self.take("]") {
            return Err(self.missing("]"));
        }
        Ok(Argument { name, kind, token, since, is_optional, is_multiple })
    }

    fn kind(&mut self) -> Result<Kind, String> {
        if self.take("(") {
            return self.group();
        }
        if self.take("#") {
            let number = self.word("a number", |character| character.is_ascii_digit())?;
            let number: i64 = number.parse().map_err(|_| format!("{number} is too large"))?;
            return Ok(Kind::Key(number));
        }
        if !self.take(":") {
            return Ok(Kind::Plain("string"));
        }
        let kind = self.word("a type", is_of_name)?;
        match TYPES.contains(&kind) {
            true => Ok(Kind::Plain(kind)),
            false => Err(format!("{kind} is no type")),
        }
    }

    /// What is within parentheses. What is behind the first tells which of both kinds it is.
    fn group(&mut self) -> Result<Kind, String> {
        let mut within = vec![self.argument()?];
        let is_choice = self.take("|");
        if is_choice {
            within.extend(self.list("|")?);
        } else if self.take(" ") {
            within.extend(self.list(" ")?);
        }
        if !self.take(")") {
            return Err(self.missing(")"));
        }
        Ok(if is_choice { Kind::OneOf(within) } else { Kind::Block(within) })
    }

    fn version(&mut self) -> Result<&'static str, String> {
        let version = self.word("a version", |character| character.is_ascii_digit() || character == '.')?;
        let has_three = version.split('.').count() == 3;
        match has_three && version.split('.').all(|number| !number.is_empty()) {
            true => Ok(version),
            false => Err(format!("{version} is no version")),
        }
    }
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit() || matches!(character, '-' | '_')
}

fn is_of_token(character: char) -> bool {
    character.is_ascii_uppercase() || character == '-'
}

/// Text that is part of the program, of which no reply needs a copy.
pub(super) fn constant(text: &'static str) -> Value {
    Value::Bulk(Bytes::from_static(text.as_bytes()))
}

/// What `COMMAND DOCS` tells of them.
pub(super) fn documented(arguments: &[Argument]) -> Value {
    Value::Array(arguments.iter().map(Argument::documented).collect())
}

impl Argument {
    /// What it is, in Redis's order.
    fn documented(&self) -> Value {
        let mut told =
            vec![(constant("name"), Value::text(&self.name)), (constant("type"), constant(self.kind.name()))];
        if let Kind::Key(number) = self.kind {
            told.push((constant("key_spec_index"), Value::Integer(number)));
        }
        if let Some(token) = self.token {
            told.push((constant("token"), constant(token)));
        }
        if let Some(since) = self.since {
            told.push((constant("since"), constant(since)));
        }
        let flags = [(self.is_optional, "optional"), (self.is_multiple, "multiple")];
        let flags = flags.into_iter().filter(|(is_so, _)| *is_so);
        let flags: Vec<Value> = flags.map(|(_, flag)| Value::Simple(Cow::Borrowed(flag))).collect();
        if !flags.is_empty() {
            told.push((constant("flags"), Value::Set(flags)));
        }
        if let Kind::OneOf(within) | Kind::Block(within) = &self.kind {
            told.push((constant("arguments"), documented(within)));
        }
        Value::Map(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply in one line.
    fn shown(value: &Value) -> String {
        let all = |values: &[Value]| values.iter().map(shown).collect::<Vec<_>>().join(" ");
        match value {
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Simple(text) => format!("+{text}"),
            Value::Integer(number) => number.to_string(),
            Value::Array(values) => format!("[{}]", all(values)),
            Value::Set(values) => format!("<{}>", all(values)),
            Value::Map(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| format!("{} {}", shown(key), shown(value)));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(" "))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_is_told_as_redis_tells_it() {
        for (syntax, told) in [
            ("", "[]"),
            ("value", "[{name value type string}]"),
            ("node-id", "[{name node-id type string}]"),
            ("a b", "[{name a type string} {name b type string}]"),
            ("count:integer", "[{name count type integer}]"),
            ("at:unix-time", "[{name at type unix-time}]"),
            ("newkey#1", "[{name newkey type key key_spec_index 1}]"),
            ("NX", "[{name nx type pure-token token NX}]"),
            ("LIB-NAME=x", "[{name x type string token LIB-NAME}]"),
            ("EX=seconds:integer", "[{name seconds type integer token EX}]"),
            ("[a]", "[{name a type string flags <+optional>}]"),
            ("a...", "[{name a type string flags <+multiple>}]"),
            ("[key#0...]", "[{name key type key key_spec_index 0 flags <+optional +multiple>}]"),
            ("[a@7.0.15]", "[{name a type string since 7.0.15 flags <+optional>}]"),
            ("GET@6.2.0", "[{name get type pure-token token GET since 6.2.0}]"),
            ("p(p)", "[{name p type block arguments [{name p type string}]}]"),
            (
                "field_value(field value)...",
                "[{name field_value type block flags <+multiple> arguments [{name field type string} {name value type string}]}]",
            ),
            (
                "[c(A|B=b|d)@2.6.12] e",
                "[{name c type oneof since 2.6.12 flags <+optional> arguments [{name a type pure-token token A} \
                 {name b type string token B} {name d type string}]} {name e type string}]",
            ),
            (
                "[A=a([B=b(c|d)...] e)]",
                "[{name a type block token A flags <+optional> arguments [{name b type oneof token B flags <+optional +multiple> \
                 arguments [{name c type string} {name d type string}]} {name e type string}]}]",
            ),
        ] {
            let arguments = parse(syntax).unwrap_or_else(|wrong| panic!("{syntax}: {wrong}"));
            assert_eq!(shown(&documented(&arguments)), told, "{syntax}");
        }
    }

    #[test]
    fn what_is_no_such_line_is_refused() {
        for (syntax, wrong) in [
            (" ", "a name is missing before \" \""),
            ("a  b", "a name is missing before \" b\""),
            ("a ", "a name is missing before \"\""),
            ("a|b", "the end is missing before \"|b\""),
            ("a]", "the end is missing before \"]\""),
            ("[a", "] is missing before \"\""),
            ("[[a]]", "a name is missing before \"[a]]\""),
            ("a=b", "the end is missing before \"=b\""),
            ("Ab", "the end is missing before \"b\""),
            ("A=", "a name is missing before \"\""),
            ("A=B", "a name is missing before \"B\""),
            ("a:", "a type is missing before \"\""),
            ("a:string", "string is no type"),
            ("a:number", "number is no type"),
            ("a#", "a number is missing before \"\""),
            ("a#x", "a number is missing before \"x\""),
            ("a#99999999999999999999", "99999999999999999999 is too large"),
            ("a()", "a name is missing before \")\""),
            ("a(b", ") is missing before \"\""),
            ("a(b|c d)", ") is missing before \" d)\""),
            ("a(b c|d)", ") is missing before \"|d)\""),
            ("a(b|)", "a name is missing before \")\""),
            ("a....", "the end is missing before \".\""),
            ("a@", "a version is missing before \"\""),
            ("a@7.0", "7.0 is no version"),
            ("a@7..0", "7..0 is no version"),
            ("a@7.0.0...", "7.0.0... is no version"),
            ("\u{e9}", "a name is missing before \"\u{e9}\""),
        ] {
            assert_eq!(parse(syntax).expect_err(syntax), wrong, "{syntax}");
        }
    }
}
