//! The state machine of a group.

/// What came of an entry.
#[derive(Debug, Default)]
pub(crate) struct AppliedReply;
