//! Opening: what the B-tree holds, and what the WAL holds beyond it.
//!
//! The checkpoint record in the B-tree's file says up to which commit the trees are complete. An
//! embedded database replays the effects of all later commits from its WAL into a fresh overlay. A
//! [replica](crate::replica) logs nothing of its own: its state is that of the record, and whoever
//! keeps the log of its entries applies the later ones again.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::base::Base;
use crate::codec::decode_effects;
use crate::disk::Disk;
use crate::engine::{Committer, EMBEDDED_STREAM};
use crate::evaluate::Effect;
use crate::meta::{CHECKPOINT_ROW, Checkpoint, FOLDING_ROW, META_TABLE};
use crate::overlay::{Overlay, Readers};
use crate::state::State;
use crate::tree_file::map_redb_error;
use crate::wal::Wal;
use crate::{Error, Result};

/// Refuses a database whose WAL is gone: opening would make a new one and hide the loss.
pub(crate) fn require_wal(disk: &dyn Disk, wal: &Path) -> Result<()> {
    let is_there = match disk.list(wal) {
        Ok(_) => crate::wal::has_segments(disk, wal)?,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => false,
        Err(error) => return Err(Error::io(format!("listing {}", wal.display()), error)),
    };
    if is_there { Ok(()) } else { Err(crate::wal::no_log(wal)) }
}

/// Refuses a WAL that does not reach from the B-tree to where a checkpoint that has begun would end.
/// `bounds`: the first and the last commit in the WAL; `folding`: the last one that is being folded.
pub(crate) fn check_reach(
    wal: &Path,
    applied: u64,
    folding: Option<u64>,
    bounds: Option<(u64, u64)>,
) -> Result<()> {
    if let Some((first, _)) = bounds
        && first > applied + 1
    {
        let what = format!(
            "the WAL begins with commit {first} but the B-tree ends with commit {applied}; \
             commits between are missing"
        );
        return Err(Error::corrupt(wal, None, what));
    }
    let last = bounds.map_or(applied, |(_, last)| last.max(applied));
    if let Some(folding) = folding
        && folding > last
    {
        let what = format!(
            "the WAL ends with commit {last}, but a checkpoint has begun to fold commits up to {folding} \
             into the B-tree; the commits between are missing"
        );
        return Err(Error::corrupt(wal, None, what));
    }
    Ok(())
}

/// What an opened database begins with.
pub(crate) struct Recovered {
    pub(crate) state: State,
    pub(crate) committer: Committer,
}

/// The checkpoint record, or the default if there never was one; and that of a checkpoint after it
/// that was begun and not finished.
pub(crate) fn read_checkpoint(
    database: &redb::Database,
    path: &Path,
) -> Result<(Checkpoint, Option<Checkpoint>)> {
    use redb::ReadableDatabase;
    let transaction = database.begin_read().map_err(|error| map_redb_error(path, "reading", error))?;
    let table = match transaction.open_table(META_TABLE) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((Checkpoint::default(), None)),
        Err(error) => return Err(map_redb_error(path, "reading", error)),
    };
    let read = |row| {
        let row = table.get(row).map_err(|error| map_redb_error(path, "reading", error))?;
        row.map(|row| Checkpoint::decode(row.value(), path)).transpose()
    };
    let finished = read(CHECKPOINT_ROW)?.unwrap_or_default();
    let begun = read(FOLDING_ROW)?.filter(|begun| begun.applied > finished.applied);
    Ok((finished, begun))
}

/// Replays the WAL behind the checkpoint into a fresh overlay.
///
/// `retains`: what was folded already is counted, so that it is let go in time.
pub(crate) fn recover(
    wal: &Wal,
    checkpoint: Checkpoint,
    folding: Option<Checkpoint>,
    base: Base,
    wal_path: &Path,
    retains: bool,
) -> Result<Recovered> {
    let mut committer = Committer::new(checkpoint.applied, checkpoint.time_ms, checkpoint.next_id, retains);
    let from = checkpoint.applied + 1;
    let mut catalog = checkpoint.catalog;
    let overlay = Overlay::new(checkpoint.applied);
    let bounds = wal.first_index(EMBEDDED_STREAM).zip(wal.last_index(EMBEDDED_STREAM));
    check_reach(wal_path, checkpoint.applied, folding.as_ref().map(|folding| folding.applied), bounds)?;
    // The B-tree holds all that the WAL has left, and more: a damaged or older last segment. Those
    // entries go, because the next commit must follow the B-tree's last, not theirs.
    if wal.last_index(EMBEDDED_STREAM).is_some_and(|last| last < checkpoint.applied) {
        wal.purge_to(EMBEDDED_STREAM, checkpoint.applied)?;
    }
    let readers = Readers::default();
    let first = wal.first_index(EMBEDDED_STREAM).filter(|first| retains && *first < from);
    wal.replay(EMBEDDED_STREAM, first.unwrap_or(from), &mut |sequence, record| {
        committer.mark(sequence, record.len());
        if sequence < from {
            return Ok(());
        }
        let malformed = |error: crate::codec::Malformed| error.in_file(wal_path, 0);
        let (time_ms, effects) = decode_effects(record).map_err(malformed)?;
        let effects = effects.to_owned().map_err(malformed)?;
        if sequence != committer.sequence + 1 {
            return Err(Error::corrupt(
                wal_path,
                None,
                format!("commit {sequence} follows commit {}", committer.sequence),
            ));
        }
        // Also over slices of an unfinished checkpoint: what they hold is in this overlay, too.
        overlay.apply(sequence, &effects, &readers, |tree| base.length(tree) == 0, || {});
        for effect in &effects {
            match effect {
                Effect::CreateTree { id, name } => catalog.insert(*id, name.clone()),
                Effect::DropTree { id } => catalog.remove(*id),
                Effect::SetNextId { next } => committer.next_id = *next,
                Effect::Put { .. } | Effect::Remove { .. } | Effect::Tell { .. } | Effect::Clear { .. } => {}
            }
        }
        committer.sequence = sequence;
        committer.time_ms = committer.time_ms.max(time_ms);
        if let Some(folding) = folding.as_ref().filter(|folding| folding.applied == sequence) {
            overlay.set_lengths(|tree| (base.length(tree), folding.length(tree)));
        }
        Ok(())
    })?;
    let state =
        State { active: Arc::new(overlay), frozen: None, base: Arc::new(base), catalog: Arc::new(catalog) };
    Ok(Recovered { state, committer })
}

/// The state of the checkpoint record alone: all that a replica begins with.
pub(crate) fn at_checkpoint(checkpoint: Checkpoint, base: Base) -> Recovered {
    let mut committer = Committer::new(checkpoint.applied, checkpoint.time_ms, checkpoint.next_id, false);
    committer.note = checkpoint.note.unwrap_or_default();
    let state = State {
        active: Arc::new(Overlay::new(checkpoint.applied)),
        frozen: None,
        base: Arc::new(base),
        catalog: Arc::new(checkpoint.catalog),
    };
    Recovered { state, committer }
}
