//! Reading a directory of segments without opening it: for `wal dump`, `wal verify` and repair.

use std::path::Path;

use crate::disk::{BLOCK_SIZE, Disk};
use crate::error::{Corruption, Error, Result};

use super::StreamId;
use super::format::{FIRST_FRAME, FLAG_CLOSED, FLAG_OPENING, Kind, Records};
use super::recovery::{Found, Unreadable, check_seal, examine, names, read_all};

/// What a [record](Event::Record) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// An entry was appended; its bytes.
    Append,
    /// The entries after this index were removed.
    TruncateAfter,
    /// The entries up to this index were removed.
    PurgeTo,
    /// The register was replaced; its bytes.
    SetState,
}

/// What [`inspect`] comes across, in the order of the log.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A segment begins.
    Segment {
        /// Its file.
        file: &'a Path,
        /// Its number.
        number: u64,
        /// Its epoch, if the header is sound.
        epoch: Option<u64>,
        /// Length of the file.
        size: u64,
        /// Database it belongs to, if the header is sound.
        database_id: Option<u128>,
    },
    /// What a stream held when the segment was begun: of use when those before it are gone.
    Opening {
        /// The stream.
        stream: StreamId,
        /// Its first and last entry.
        bounds: Option<(u64, u64)>,
        /// Its register; empty for none.
        state: &'a [u8],
    },
    /// A sound frame begins; its records follow.
    Frame {
        /// Where in the file.
        offset: u64,
        /// Its group.
        group: u64,
        /// The last group known to be durable when it was written.
        durable: u64,
        /// Length of its payload.
        length: u32,
        /// Number of its records.
        records: u32,
        /// Written by an orderly shutdown.
        closed: bool,
    },
    /// A sound record.
    Record {
        /// What it does.
        kind: RecordKind,
        /// To which stream.
        stream: StreamId,
        /// With which index.
        index: u64,
        /// Bytes of an entry or a register.
        bytes: &'a [u8],
        /// Sound, but discarded when the database was opened: it lies behind a torn write.
        discarded: bool,
    },
    /// Bytes that should be a frame or a header and are not.
    Damage(&'a Corruption),
    /// The log ends with a write that was cut short. Nothing acknowledged was lost with it,
    /// unless the bytes were damaged later.
    TornTail {
        /// Its segment.
        file: &'a Path,
        /// Where it begins.
        offset: u64,
    },
}

/// What [`inspect`] found in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments with frames.
    pub segments: usize,
    /// Sound frames.
    pub frames: u64,
    /// Sound records.
    pub records: u64,
    /// Damaged places; empty for a sound WAL.
    pub damage: Vec<Corruption>,
    /// Groups that are missing, as ranges: first and last.
    pub lost_groups: Vec<(u64, u64)>,
    /// The first and the last entry of each stream that has any; empty unless nothing is damaged.
    pub bounds: Vec<(StreamId, u64, u64)>,
}

impl Summary {
    /// The first and the last entry of a stream.
    pub fn bounds(&self, stream: StreamId) -> Option<(u64, u64)> {
        self.bounds.iter().find(|(id, ..)| *id == stream).map(|(_, first, last)| (*first, *last))
    }
}

/// Reads all segments in `directory` and calls `f` with what is in them, sound or not. Changes
/// nothing, and goes on behind damage, to which belongs what the disk cannot read: to save what is sound, take the
/// [records](Event::Record) that are not discarded and leave out, per stream, what no longer
/// follows what is there.
///
/// Fails only if the directory cannot be read, holds a newer format, or `f` fails.
pub fn inspect(
    disk: &dyn Disk,
    directory: &Path,
    f: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Summary> {
    let mut found = Vec::new();
    for number in names(disk, directory)?.segments {
        found.push(examine(disk, directory, number, None, true)?);
    }
    let mut inspection = Inspection { f, summary: Summary::default(), next_group: None, told: 0 };
    for (at, segment) in found.iter().enumerate() {
        // Where a segment ends is said in the next one.
        inspection.segment(segment, found.get(at + 1))?;
    }
    if inspection.summary.damage.is_empty() {
        // What each frame by itself does not show: missing segments, or segments and records that
        // do not follow from those before.
        match read_all(found, directory) {
            Err(Error::Corrupt(corruption)) => inspection.damage(corruption)?,
            Err(error) => return Err(error),
            Ok(log) => {
                let streams = log.cursor.map(|cursor| cursor.streams).unwrap_or_default();
                let bounds = |id| streams.bounds(id).map(|(first, last)| (id, first, last));
                inspection.summary.bounds = streams.ids().into_iter().filter_map(bounds).collect();
            }
        }
    } else if let Some(at) = found.iter().rposition(|one| one.opening.is_some())
        && let Err(Error::Corrupt(corruption)) = check_seal(&found[at], &found[at + 1..])
    {
        inspection.damage(corruption)?;
    }
    Ok(inspection.summary)
}

struct Inspection<'a> {
    f: &'a mut dyn FnMut(Event<'_>) -> Result<()>,
    summary: Summary,
    /// The group that the next frame should have; `None` before the first.
    next_group: Option<u64>,
    /// What cannot be read of the segment was told up to this offset.
    told: u64,
}

impl Inspection<'_> {
    fn damage(&mut self, corruption: Corruption) -> Result<()> {
        (self.f)(Event::Damage(&corruption))?;
        self.summary.damage.push(corruption);
        Ok(())
    }

    fn damage_at(&mut self, segment: &Found, offset: u64, what: &str) -> Result<()> {
        let (file, what) = (segment.path.clone(), what.to_owned());
        self.damage(Corruption { file, offset: Some(offset), what })
    }

    /// Tells of the blocks before `end` that the disk cannot read, unless that was done; whether there
    /// were any.
    fn unreadable(&mut self, segment: &Found, end: u64) -> Result<bool> {
        let told = self.told;
        self.told = told.max(end);
        let mut any = false;
        for one in segment.unreadable.iter().filter(|one| (told..end).contains(&one.place.start)) {
            any = true;
            let length = one.place.end - one.place.start;
            let what = format!("{length} bytes from here on cannot be read: {}", one.error);
            self.damage_at(segment, one.place.start, &what)?;
        }
        Ok(any)
    }

    fn segment(&mut self, segment: &Found, next: Option<&Found>) -> Result<()> {
        self.told = 0;
        let opened_next = next.and_then(|next| next.opening.as_ref());
        let mut frames = segment.headers_from(FIRST_FRAME).peekable();
        if frames.peek().is_none() && opened_next.is_none() {
            // Prepared, never used, as far as can be read.
            self.unreadable(segment, segment.length)?;
            return Ok(());
        }
        drop(frames);
        self.summary.segments += 1;
        let header = segment.header.as_ref().ok();
        (self.f)(Event::Segment {
            file: &segment.path,
            number: segment.number,
            epoch: header.map(|header| header.epoch),
            size: segment.length,
            database_id: header.map(|header| header.database_id),
        })?;
        if let Err(what) = segment.header
            && !self.unreadable(segment, FIRST_FRAME)?
        {
            self.damage_at(segment, 0, what)?;
        }
        match &segment.opening {
            Some((header, opening)) => {
                self.expect_group(header.group);
                for one in &opening.streams {
                    let state = &one.state;
                    (self.f)(Event::Opening { stream: one.stream, bounds: one.bounds, state })?;
                }
            }
            None if segment.header.is_ok()
                && !self.unreadable(segment, FIRST_FRAME + BLOCK_SIZE as u64)? =>
            {
                self.damage_at(segment, FIRST_FRAME, "the opening frame is damaged")?;
            }
            None => {}
        }
        let size = segment.frames_end();
        let end = opened_next
            .filter(|(_, opening)| opening.previous_segment == segment.number)
            .map(|(_, opening)| opening.previous_end);
        self.frames(segment, end.unwrap_or(size).min(size), end.is_some())?;
        self.unreadable(segment, segment.length)?;
        Ok(())
    }

    /// Notes a jump in the numbers of the groups.
    fn expect_group(&mut self, group: u64) {
        if let Some(expected) = self.next_group
            && group > expected
        {
            self.summary.lost_groups.push((expected, group - 1));
        }
        self.next_group = Some(group);
    }

    fn frames(&mut self, segment: &Found, end: u64, sealed: bool) -> Result<()> {
        let mut position = FIRST_FRAME;
        let mut discarded = false;
        while position < end {
            if let Some((header, payload)) = segment.frame(position) {
                if header.flags & FLAG_OPENING == 0 {
                    self.expect_group(header.group);
                    self.next_group = Some(header.group + 1);
                    self.summary.frames += 1;
                    (self.f)(Event::Frame {
                        offset: position,
                        group: header.group,
                        durable: header.durable,
                        length: header.payload_length,
                        records: header.records,
                        closed: header.flags & FLAG_CLOSED != 0,
                    })?;
                    self.records(segment, position, payload, discarded)?;
                }
                position += header.padded_length();
                continue;
            }
            // Look on for the next frame, as recovery does.
            let expected = self.next_group.unwrap_or(1);
            let mut later = segment
                .headers_from(position)
                .filter(|(_, header)| header.flags & FLAG_OPENING == 0 && header.group >= expected);
            let claims = |durable: u64| durable >= expected;
            let resume = segment
                .headers_from(position + BLOCK_SIZE as u64)
                .find(|(offset, _)| *offset < end && segment.frame(*offset).is_some())
                .map(|(offset, _)| offset);
            let reached = resume.unwrap_or(end);
            let is_unreadable = |one: &Unreadable| one.place.start < reached && one.place.end > position;
            if segment.unreadable.iter().any(is_unreadable) {
                // Not a write that was cut short: such a one can be read.
                self.unreadable(segment, reached)?;
            } else if sealed || later.any(|(_, header)| claims(header.durable)) {
                self.damage_at(segment, position, "a frame is damaged")?;
            } else if segment.frame_header(position).is_some() || resume.is_some() {
                (self.f)(Event::TornTail { file: &segment.path, offset: position })?;
                discarded = true;
            }
            match resume {
                Some(offset) => position = offset,
                None => break,
            }
        }
        Ok(())
    }

    fn records(&mut self, segment: &Found, offset: u64, payload: &[u8], discarded: bool) -> Result<()> {
        for record in Records::new(payload, 0) {
            match record {
                Ok(record) => {
                    self.summary.records += 1;
                    let kind = match record.kind {
                        Kind::Append => RecordKind::Append,
                        Kind::TruncateAfter => RecordKind::TruncateAfter,
                        Kind::PurgeTo => RecordKind::PurgeTo,
                        Kind::SetState => RecordKind::SetState,
                    };
                    (self.f)(Event::Record {
                        kind,
                        stream: record.stream,
                        index: record.index,
                        bytes: record.bytes,
                        discarded,
                    })?;
                }
                Err(_) => {
                    let what = "bytes that are no record in a frame whose checksum matches";
                    self.damage_at(segment, offset, what)?;
                }
            }
        }
        Ok(())
    }
}
