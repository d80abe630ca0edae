//! Atomic counters, as commands.

use bincode::{Decode, Encode};

use crate::evaluate::{Context, Outcome, View};
use crate::{IVec, Result};

/// An operation of a counter.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CounterCommand {}

/// What the caller is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CounterReply {}

impl CounterCommand {
    /// The counter's name.
    pub fn name(&self) -> &IVec {
        match *self {}
    }
}

/// See [`crate::evaluate`].
pub fn evaluate(_view: &impl View, _context: &Context, command: &CounterCommand) -> Result<Outcome> {
    match *command {}
}
