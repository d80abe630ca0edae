//! Sessions of a web application: typed trees, an index kept by transactions, expiry by range.
//!
//!     cargo run --example session_store

use dogsled::transaction::{TransactionResult, Transactional};
use dogsled::typed::{KeyEncode, value};
use dogsled::{Config, Db, Result, TypedTree};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Session {
    user: String,
    expires: u64,
}

struct Sessions {
    by_token: TypedTree<String, Session>,
    /// The same sessions in the order in which they expire; always in step with the other tree,
    /// because both are written by one transaction.
    by_expiry: TypedTree<(u64, String), ()>,
}

impl Sessions {
    fn open(db: &Db) -> Result<Sessions> {
        Ok(Sessions {
            by_token: db.open_typed_tree("sessions")?,
            by_expiry: db.open_typed_tree("sessions by expiry")?,
        })
    }

    /// Starts a session, or extends it.
    fn touch(&self, token: &str, session: &Session) -> TransactionResult<()> {
        (self.by_token.tree(), self.by_expiry.tree()).transaction(|(by_token, by_expiry)| {
            if let Some(old) = by_token.insert(token.to_key(), value::encode(session)?)? {
                let old: Session = value::decode(&old)?;
                by_expiry.remove((old.expires, token.to_owned()).to_key())?;
            }
            by_expiry.insert((session.expires, token.to_owned()).to_key(), value::encode(&())?)?;
            Ok(())
        })
    }

    /// Removes what has expired; looks at nothing else.
    fn expire(&self, now: u64) -> TransactionResult<usize> {
        (self.by_token.tree(), self.by_expiry.tree()).transaction(|(by_token, by_expiry)| {
            let mut expired = Vec::new();
            for key in by_expiry.range(..(now, String::new()).to_key()).keys() {
                expired.push(key?);
            }
            for key in &expired {
                by_expiry.remove(key)?;
                // The key is the time, 8 bytes, and the token.
                by_token.remove(&key[8..])?;
            }
            Ok(expired.len())
        })
    }
}

fn main() -> TransactionResult<()> {
    let db = Config::new().temporary(true).open()?;
    let sessions = Sessions::open(&db)?;
    for (token, user, expires) in [("t1", "ann", 100), ("t2", "bo", 200), ("t3", "cy", 300)] {
        sessions.touch(token, &Session { user: user.to_owned(), expires })?;
    }
    sessions.touch("t1", &Session { user: "ann".to_owned(), expires: 400 })?;

    assert_eq!(sessions.expire(250)?, 1);
    assert_eq!(sessions.by_token.get("t2")?, None);
    assert_eq!(sessions.by_token.len(), sessions.by_expiry.len());
    for entry in &sessions.by_token.iter().collect::<Result<Vec<_>>>()? {
        println!("{}: {} until {}", entry.0, entry.1.user, entry.1.expires);
    }
    Ok(())
}
