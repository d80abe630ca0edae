//! Locks with leases, as commands.

use bincode::{Decode, Encode};

use crate::evaluate::{Context, Outcome, View};
use crate::{IVec, Result};

/// An operation of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockCommand {}

/// What the caller is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockReply {}

impl LockCommand {
    /// The lock's name.
    pub fn name(&self) -> &IVec {
        match *self {}
    }
}

/// See [`crate::evaluate`].
pub fn evaluate(_view: &impl View, _context: &Context, command: &LockCommand) -> Result<Outcome> {
    match *command {}
}
