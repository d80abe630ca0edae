//! From the WAL's records to what they come to: which commits are applied, and their effects.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::tree::Tree;
use super::{LossKind, Repair, RepairOptions, RepairProgress};
use crate::codec::decode_effects;
use crate::directory::wal_path;
use crate::disk::Disk;
use crate::engine::EMBEDDED_STREAM;
use crate::evaluate::{Effect, Versioned};
use crate::verify::Damage;
use crate::wal::{Event, RecordKind, inspect, no_log};
use crate::{Error, IVec, Result, TreeId};

/// What the WAL says on top of the tree.
#[derive(Default)]
pub(super) struct Replay {
    /// The newest of each key that was touched.
    pub(super) keys: BTreeMap<(TreeId, IVec), Option<Versioned>>,
    /// Trees whose contents in the B-tree are gone.
    pub(super) cleared: HashSet<TreeId>,
    pub(super) created: BTreeMap<TreeId, IVec>,
    pub(super) dropped: HashSet<TreeId>,
    pub(super) next_id: Option<u64>,
    pub(super) time_ms: u64,
    pub(super) last: u64,
    pub(super) applied: u64,
}

impl Repair<'_> {
    /// Reads the WAL and works out what it says in all. `None`: there is no WAL.
    pub(super) fn wal(
        &mut self,
        disk: &dyn Disk,
        source: &Path,
        tree: &Tree,
        options: RepairOptions,
    ) -> Result<Option<Replay>> {
        let checkpoint = tree.checkpoint.as_ref();
        self.greatest_sequence = self.greatest_sequence.max(tree.folding);
        let directory = wal_path(source);
        let exists = disk
            .exists(&directory)
            .map_err(|error| Error::io(format!("looking for {}", directory.display()), error))?;
        if !exists {
            let what = "the directory is missing".to_owned();
            self.lose(LossKind::Commits, Damage { file: directory, offset: None, what, keys: None }, None);
            return Ok(None);
        }
        // Twice: the first time only to know where commits are missing, so that memory is needed
        // for what is applied and no more.
        let survey = self.survey(disk, &directory)?;
        let applied = checkpoint.map(|checkpoint| checkpoint.applied);
        let accepted = self.choose(&directory, &survey, applied, tree.folding, options);
        let mut replay = Replay {
            time_ms: checkpoint.map_or(0, |checkpoint| checkpoint.time_ms),
            last: applied.unwrap_or(0),
            ..Replay::default()
        };
        let mut commits = 0;
        let progress = &mut *self.progress;
        inspect(disk, &directory, &mut |event| {
            if let Event::Record { kind: RecordKind::Append, stream, index, bytes, discarded: false } = event
                && stream == EMBEDDED_STREAM
                && accepted.iter().any(|(first, last)| (*first..=*last).contains(&index))
                && let Ok((time_ms, effects)) = decode_effects(bytes)
                && let Ok(effects) = effects.to_owned()
            {
                replay.apply(index, time_ms, effects.as_ref());
                if applied.is_none_or(|applied| index > applied) {
                    replay.applied += 1;
                }
                commits += 1;
                if commits % 4096 == 0 {
                    progress(RepairProgress { commits, keys: 0 });
                }
            }
            Ok(())
        })?;
        self.report.commits_applied = replay.applied;
        Ok(Some(replay))
    }

    /// Where there are sound commits, and what is damaged.
    fn survey(&mut self, disk: &dyn Disk, directory: &Path) -> Result<Survey> {
        let mut survey = Survey::default();
        inspect(disk, directory, &mut |event| {
            survey.event(event);
            Ok(())
        })?;
        self.database_id = self.database_id.or(survey.database_id);
        self.greatest_sequence = self.greatest_sequence.max(survey.greatest);
        Ok(survey)
    }

    /// Which runs of commits are applied; what is not becomes a loss.
    fn choose(
        &mut self,
        directory: &Path,
        survey: &Survey,
        applied: Option<u64>,
        folding: u64,
        options: RepairOptions,
    ) -> Vec<(u64, u64)> {
        // Where the tree ends is not known if its record is lost. The log never began behind it; where
        // it began, its openings and what was purged since say, even if that segment is not there.
        let begins = survey.bounds.map(|(first, _)| first);
        let begins = begins.or(survey.runs.first().map(|run| run.first));
        let applied = applied.unwrap_or_else(|| begins.map_or(0, |first| first.saturating_sub(1)));
        let mut accepted = Vec::new();
        let mut next = applied + 1;
        let mut in_sequence = true;
        let mut unexplained = survey.damage.clone();
        for run in &survey.runs {
            // A run that ends before the tree does is left from recycling, or is followed by
            // commits that are lost and in the tree: it must not be put over those.
            if run.last + 1 < next {
                continue;
            }
            if run.first > next {
                let missing = survey.missing.iter().find(|damage| unexplained.contains(damage));
                let place = run.damage_before.as_ref().or(missing).cloned().unwrap_or_else(|| Damage {
                    file: directory.to_owned(),
                    offset: None,
                    what: "no segment holds them".to_owned(),
                    keys: None,
                });
                unexplained.retain(|damage| *damage != place);
                self.lose(LossKind::Commits, place, Some((next, run.first - 1)));
                in_sequence = false;
            }
            if in_sequence || options.apply_behind_gaps {
                accepted.push((run.first, run.last));
            } else {
                let what = "sound; apply them with the option to go on behind gaps".to_owned();
                let damage = Damage { file: run.file.clone(), offset: Some(run.offset), what, keys: None };
                self.lose(LossKind::CommitsBehindGap, damage, Some((run.first, run.last)));
            }
            next = next.max(run.last + 1);
        }
        let greatest = survey.greatest.max(folding);
        let end = (greatest >= next).then_some((next, greatest));
        // Nothing sound lies behind these, so it may not be known how many they held.
        let (at_end, harmless): (Vec<_>, Vec<_>) = unexplained
            .into_iter()
            .partition(|damage| survey.tail.contains(damage) || survey.missing.contains(damage));
        if folding >= next && at_end.is_empty() && survey.file != Path::new("") {
            let what = "a checkpoint had begun to fold them into the B-tree, which may hold some of their \
                        effects; no segment holds them";
            let (file, what) = (directory.to_owned(), what.to_owned());
            self.lose(LossKind::Commits, Damage { file, offset: None, what, keys: None }, end);
        }
        for damage in at_end {
            self.lose(LossKind::Commits, damage, end);
        }
        for damage in harmless {
            self.report.notes.push(damage.to_string());
        }
        if survey.file == Path::new("")
            && let Error::Corrupt(corruption) = no_log(directory)
        {
            self.lose(LossKind::Commits, corruption.into(), end);
        } else if !survey.closed {
            self.report.notes.push(format!(
                "the log does not end with an orderly shutdown: if there were commits after {}, they left no trace",
                next - 1
            ));
        }
        if let Some(damage) = &survey.torn {
            self.lose(LossKind::Tail, damage.clone(), end);
        }
        accepted
    }
}

impl Replay {
    fn apply(&mut self, sequence: u64, time_ms: u64, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Put { tree, key, value, .. } => {
                    let put = Versioned { version: sequence, value: value.clone() };
                    self.keys.insert((*tree, key.clone()), Some(put));
                }
                Effect::Remove { tree, key } => {
                    self.keys.insert((*tree, key.clone()), None);
                }
                Effect::Clear { tree } => self.clear(*tree),
                Effect::CreateTree { id, name } => {
                    self.created.insert(*id, name.clone());
                    self.dropped.remove(id);
                }
                Effect::DropTree { id } => {
                    self.clear(*id);
                    self.created.remove(id);
                    self.dropped.insert(*id);
                }
                Effect::SetNextId { next } => self.next_id = Some(*next),
                Effect::Tell { .. } => {}
            }
        }
        self.last = self.last.max(sequence);
        self.time_ms = self.time_ms.max(time_ms);
    }

    fn clear(&mut self, tree: TreeId) {
        self.cleared.insert(tree);
        let from = (tree, IVec::new());
        let mut tail = self.keys.split_off(&from);
        if let Some(next) = tree.0.checked_add(1) {
            let mut behind = tail.split_off(&(TreeId(next), IVec::new()));
            self.keys.append(&mut behind);
        }
    }
}

/// A run of commits without a gap.
#[derive(Clone, Debug)]
struct Run {
    first: u64,
    last: u64,
    file: PathBuf,
    offset: u64,
    /// The damage met just before it.
    damage_before: Option<Damage>,
}

/// What [`inspect`] tells, without the bytes.
#[derive(Default)]
struct Survey {
    runs: Vec<Run>,
    damage: Vec<Damage>,
    /// Damage behind which there is nothing sound.
    tail: Vec<Damage>,
    /// Segments that are not there.
    missing: Vec<Damage>,
    /// The first and the last commit that the log holds, or would if no segment were missing.
    bounds: Option<(u64, u64)>,
    torn: Option<Damage>,
    database_id: Option<u128>,
    greatest: u64,
    /// The last frame was written by an orderly shutdown.
    closed: bool,
    file: PathBuf,
    frame: u64,
}

impl Survey {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Segment { file, database_id, .. } => {
                self.file = file.to_owned();
                self.frame = 0;
                self.closed = false;
                self.database_id = self.database_id.or(database_id);
            }
            Event::Opening { stream, bounds, .. } if stream == EMBEDDED_STREAM => {
                self.greatest = self.greatest.max(bounds.map_or(0, |(_, last)| last));
                self.bounds = bounds;
            }
            Event::Frame { offset, closed, .. } => {
                self.frame = offset;
                self.closed = closed;
            }
            Event::Record { kind, stream, index, bytes, discarded } if stream == EMBEDDED_STREAM => {
                self.greatest = self.greatest.max(index);
                if !discarded {
                    self.move_bounds(kind, index);
                }
                if kind != RecordKind::Append || discarded {
                    return;
                }
                let decoded = decode_effects(bytes).and_then(|(_, effects)| effects.to_owned());
                match decoded {
                    Ok(_) => self.commit(index),
                    Err(error) => {
                        if let Error::Corrupt(corruption) = error.in_file(&self.file, self.frame) {
                            self.damaged(corruption.into());
                        }
                    }
                }
            }
            Event::Damage(corruption) if corruption.offset.is_none() => {
                self.missing.push(corruption.clone().into());
                self.damage.push(corruption.clone().into());
            }
            Event::Damage(corruption) => self.damaged(corruption.clone().into()),
            Event::TornTail { file, offset } => {
                self.torn = Some(Damage {
                    file: file.to_owned(),
                    offset: Some(offset),
                    what: "a write that was cut short".to_owned(),
                    keys: None,
                });
            }
            _ => {}
        }
    }

    fn move_bounds(&mut self, kind: RecordKind, index: u64) {
        let bounds = self.bounds;
        self.bounds = match kind {
            RecordKind::Append => Some(bounds.map_or((index, index), |(first, _)| (first, index))),
            RecordKind::PurgeTo => bounds.map(|(first, last)| (first.max(index.saturating_add(1)), last)),
            RecordKind::TruncateAfter => bounds.map(|(first, last)| (first, last.min(index))),
            RecordKind::SetState => bounds,
        }
        .filter(|(first, last)| first <= last);
    }

    fn damaged(&mut self, damage: Damage) {
        self.tail.push(damage.clone());
        self.damage.push(damage);
    }

    fn commit(&mut self, index: u64) {
        match self.runs.last_mut() {
            Some(run) if run.last + 1 == index => run.last = index,
            // An older life of the log cannot follow a newer one.
            Some(run) if index <= run.last => return,
            _ => self.runs.push(Run {
                first: index,
                last: index,
                file: self.file.clone(),
                offset: self.frame,
                damage_before: self.tail.first().cloned(),
            }),
        }
        self.tail.clear();
    }
}
