//! Opening: what is there, where the log ends, and what is wrong with it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{BLOCK_SIZE, Disk, DiskFile, DiskMap, OpenMode};
use crate::error::{Error, Result};

use super::WalOptions;
use super::buffer::Buffer;
use super::format::{
    FIRST_FRAME, FLAG_CLOSED, FLAG_OPENING, FLAG_SEAL, FRAME_HEADER_SIZE, FrameHeader, HeaderFound, Kind,
    Opening, Records, SegmentHeader, frames_end, is_start_of_segment,
};
use super::segment::{FileName, Files, PrepareError, Reuse, Segment, parse_name, segment_path};
use super::streams::Streams;
use super::writer::{Frame, Pen, State, first_size, write_opening};

/// Bytes written again at once when opening.
const REWRITTEN_AT_ONCE: usize = 1 << 20;

/// Bytes read at once to find out whether the disk can.
const READ_AT_ONCE: usize = 1 << 20;

/// Blocks next to each other that the disk cannot read.
pub(super) struct Unreadable {
    /// In bytes.
    pub(super) place: Range<u64>,
    pub(super) error: io::Error,
}

/// A segment file as found.
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) length: u64,
    /// The whole file, or the beginning of one that seems to be unused.
    pub(super) map: DiskMap,
    /// What is zero in `map` because it cannot be read, in order.
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) header: Result<SegmentHeader, &'static str>,
    /// The opening frame, if it is sound.
    pub(super) opening: Option<(FrameHeader, Opening)>,
}

impl Found {
    pub(super) fn corrupt(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corrupt(&self.path, offset, what)
    }

    /// The frame header at `offset` if it is sound and was written in this life of the segment.
    pub(super) fn frame_header(&self, offset: u64) -> Option<FrameHeader> {
        let header = FrameHeader::decode(self.map.get(usize::try_from(offset).ok()?..)?)?;
        let epoch = self.header.as_ref().ok().map(|header| header.epoch);
        (header.segment == self.number && epoch.is_none_or(|epoch| header.epoch == epoch)).then_some(header)
    }

    /// The frame at `offset` if both its checksums match.
    pub(super) fn frame(&self, offset: u64) -> Option<(FrameHeader, &[u8])> {
        let header = self.frame_header(offset)?;
        let payload = header.payload(&self.map[offset as usize..])?;
        Some((header, payload))
    }

    /// Where frames end.
    pub(super) fn frames_end(&self) -> u64 {
        frames_end(self.map.len() as u64)
    }

    /// The segment's seal, if it is there and sound.
    pub(super) fn seal(&self) -> Option<FrameHeader> {
        let (header, _) = self.frame(frames_end(self.length))?;
        (header.flags & FLAG_SEAL != 0).then_some(header)
    }

    /// Sound frame headers of this life of the segment from `offset` on, wherever they lie.
    pub(super) fn headers_from(&self, offset: u64) -> impl Iterator<Item = (u64, FrameHeader)> + '_ {
        (offset..self.map.len() as u64)
            .step_by(BLOCK_SIZE)
            .filter_map(|offset| Some((offset, self.frame_header(offset)?)))
    }
}

/// How much is read of a segment that does not begin with an opening frame. A prepared segment
/// costs no more to open than this; in one whose opening was damaged, the frame behind the opening
/// lies within it (an opening of this length states more than 100,000 streams).
const LOOK_INTO_UNUSED: u64 = 4 << 20;

/// The length of a segment's file and its bytes, with zeros for what cannot be read.
fn read(
    disk: &dyn Disk,
    path: &Path,
    number: u64,
    thorough: bool,
) -> io::Result<(u64, DiskMap, Vec<Unreadable>)> {
    let file = disk.open(path, OpenMode::Read)?;
    let length = file.length()?;
    let mut looked_at = length;
    if !thorough && length > LOOK_INTO_UNUSED {
        let mut first = [0; FRAME_HEADER_SIZE];
        // If this cannot be read, reading the rest says where.
        let read = file.read_at(FIRST_FRAME, &mut first);
        if read.is_ok() && FrameHeader::decode(&first).is_none_or(|header| header.segment != number) {
            looked_at = LOOK_INTO_UNUSED;
        }
    }
    // A page of a map that cannot be read ends the process with a signal when it is touched. So all is read once by a
    // call that returns an error; that brings the pages into memory, where the map finds them.
    let unreadable = find_unreadable(&*file, looked_at);
    if looked_at == length && unreadable.is_empty() {
        return Ok((length, file.map()?, unreadable));
    }
    let mut bytes = vec![0; looked_at as usize];
    let mut from = 0;
    let end = std::iter::once(looked_at..looked_at);
    for place in unreadable.iter().map(|one| one.place.clone()).chain(end) {
        file.read_at(from, &mut bytes[from as usize..place.start as usize])?;
        from = place.end;
    }
    Ok((length, DiskMap::new(bytes), unreadable))
}

/// Reads a file up to `end` and finds out which blocks of it cannot be read.
fn find_unreadable(file: &dyn DiskFile, end: u64) -> Vec<Unreadable> {
    let mut unreadable: Vec<Unreadable> = Vec::new();
    let mut buffer = vec![0; READ_AT_ONCE.min(end as usize)];
    for from in (0..end).step_by(READ_AT_ONCE) {
        let part = from..end.min(from + READ_AT_ONCE as u64);
        let length = (part.end - part.start) as usize;
        if file.read_at(from, &mut buffer[..length]).is_ok() {
            continue;
        }
        for start in part.clone().step_by(BLOCK_SIZE) {
            let place = start..part.end.min(start + BLOCK_SIZE as u64);
            let length = (place.end - place.start) as usize;
            match (file.read_at(start, &mut buffer[..length]), unreadable.last_mut()) {
                (Ok(()), _) => {}
                (Err(_), Some(last)) if last.place.end == start => last.place.end = place.end,
                (Err(error), _) => unreadable.push(Unreadable { place, error }),
            }
        }
    }
    unreadable
}

/// Reads a segment's header and opening. Refuses what is not ours to touch. `thorough` to have all
/// of it even if it seems unused or some of it cannot be read.
pub(super) fn examine(
    disk: &dyn Disk,
    directory: &Path,
    number: u64,
    database_id: Option<u128>,
    thorough: bool,
) -> Result<Found> {
    let path = segment_path(directory, number);
    let (length, map, mut unreadable) = read(disk, &path, number, thorough)
        .map_err(|error| Error::io(format!("reading {}", path.display()), error))?;
    if !thorough && !unreadable.is_empty() {
        let Unreadable { place, error } = unreadable.swap_remove(0);
        return Err(Error::io(format!("reading {} at {}", path.display(), place.start), error));
    }
    let foreign = |what: String| Err(Error::NotADatabase { path: path.clone(), what });
    let header = match SegmentHeader::decode(&map) {
        HeaderFound::OtherVersion(version) => {
            return foreign(format!(
                "this segment has format version {version} and this program reads version {}: use {} dogsled",
                super::FORMAT_VERSION,
                if version > super::FORMAT_VERSION { "a newer" } else { "an older" }
            ));
        }
        HeaderFound::Sound(header) if database_id.is_some_and(|id| header.database_id != id) => {
            return foreign(format!(
                "this segment belongs to another database (id {:032x}): move it out of the directory",
                header.database_id
            ));
        }
        HeaderFound::Sound(header) if header.number != number => Err("the header is of another segment"),
        HeaderFound::Sound(header)
            if header.size != length || !header.size.is_multiple_of(BLOCK_SIZE as u64) =>
        {
            Err("the file does not have the length its header says")
        }
        HeaderFound::Sound(header) => Ok(header),
        HeaderFound::Damaged(what) => Err(what),
    };
    let mut found = Found { number, path, length, map, unreadable, header, opening: None };
    if found.header.is_ok()
        && let Some((header, payload)) = found.frame(FIRST_FRAME)
        && header.flags & FLAG_OPENING != 0
        && let Some(opening) = Opening::decode(payload)
    {
        found.opening = Some((header, opening));
    }
    Ok(found)
}

/// Names in the directory, by what they are.
#[derive(Default)]
pub(super) struct Names {
    pub(super) segments: Vec<u64>,
    spares: Vec<PathBuf>,
    filling: Vec<PathBuf>,
}

pub(super) fn names(disk: &dyn Disk, directory: &Path) -> Result<Names> {
    let listed =
        disk.list(directory).map_err(|error| Error::io(format!("listing {}", directory.display()), error))?;
    let mut names = Names::default();
    for name in listed {
        match parse_name(&name) {
            Some(FileName::Segment(number)) => names.segments.push(number),
            Some(FileName::Spare) => names.spares.push(directory.join(name)),
            Some(FileName::Filling) => names.filling.push(directory.join(name)),
            None => {}
        }
    }
    names.segments.sort_unstable();
    Ok(names)
}

/// Whether there are segments in a directory, by their names.
pub(crate) fn has_segments(disk: &dyn Disk, directory: &Path) -> Result<bool> {
    Ok(!names(disk, directory)?.segments.is_empty())
}

/// The files in a directory that bear names of ours, and whether they can be. A segment has our magic;
/// the contents of the others mean nothing.
pub(crate) fn files(disk: &dyn Disk, directory: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let names = names(disk, directory)?;
    let mut files = Vec::new();
    for number in names.segments {
        let path = segment_path(directory, number);
        let read = || -> io::Result<bool> {
            let file = disk.open(&path, OpenMode::Read)?;
            let length = file.length()?.min(FIRST_FRAME + FRAME_HEADER_SIZE as u64);
            let mut bytes = vec![0; length as usize];
            file.read_at(0, &mut bytes)?;
            Ok(is_start_of_segment(&bytes))
        };
        let is_ours = read().map_err(|error| Error::io(format!("reading {}", path.display()), error))?;
        files.push((path, is_ours));
    }
    files.extend(names.spares.into_iter().chain(names.filling).map(|path| (path, true)));
    Ok(files)
}

/// Where reading one segment has led to.
pub(super) struct Cursor {
    pub(super) streams: Streams,
    frames: std::collections::VecDeque<Frame>,
    next_group: u64,
    chain: u32,
    position: u64,
    closed: bool,
    /// The last group that is known to have been synced.
    durable: u64,
}

/// What opening came to.
pub(super) struct Recovered {
    pub(super) files: Files,
    pub(super) state: State,
    pub(super) pen: Pen,
    pub(super) created: bool,
}

pub(super) fn recover(disk: Arc<dyn Disk>, options: &WalOptions) -> Result<Recovered> {
    let directory = &options.directory;
    disk.create_directories(directory)
        .map_err(|error| Error::io(format!("creating {}", directory.display()), error))?;
    let names = names(&*disk, directory)?;
    let mut found = Vec::new();
    for number in &names.segments {
        found.push(examine(&*disk, directory, *number, Some(options.database_id), false)?);
    }
    // Everything is read, and judged, before anything is changed.
    let Log { stale, used, unused, cursor, dirty } = read_all(found, directory)?;
    let files = Files::new(disk, options)?;
    let Some(mut cursor) = cursor else {
        if options.must_exist {
            return Err(no_log(directory));
        }
        tidy(&files, names, &unused, None)?;
        return create(files);
    };
    let last = used.last().expect("something was read");
    let mut segments = BTreeMap::new();
    for one in &used {
        let mode = if one.number == last.number { OpenMode::Aligned } else { OpenMode::Read };
        let header = one.header.as_ref().expect("a used segment has a header");
        let file = files
            .disk
            .open(&one.path, mode)
            .map_err(|error| Error::io(format!("opening {}", one.path.display()), error))?;
        segments.insert(one.number, Arc::new(Segment::new(header, one.path.clone(), file)));
    }
    let active = Arc::clone(&segments[&last.number]);
    // What was read may still be in the page cache only (the process was killed, the machine was
    // not): from here on it counts as durable. Names too: a prepared segment's may not be.
    rewrite_unsynced(last, &cursor, &*active.file)?;
    files.sync_directory()?;
    // Only now: a seal must not outlive the opening that it speaks of.
    seal_again(&files, &used)?;

    let prepared = tidy(&files, names, &unused, Some(last.number + 1))?;
    for one in &stale {
        files.retire(&one.path, one.length, one.number, Reuse::Cold)?;
    }
    cursor.streams.group_taken();
    let mut state = new_state(Arc::clone(&active), cursor.streams, cursor.next_group);
    state.segments = segments;
    state.first_frame = cursor.next_group - cursor.frames.len() as u64;
    state.frames = cursor.frames;
    state.position = cursor.position;
    state.prepared = prepared;
    let mut pen = Pen { chain: cursor.chain, active, unsynced: false, release: None, closed: cursor.closed };
    if dirty {
        go_on_in_new_segment(&files, &mut state, &mut pen)?;
    }
    state.recycle_below = state.oldest_needed();
    Ok(Recovered { files, state, pen, created: false })
}

/// A log as found.
pub(super) struct Log {
    /// Segments before a gap, left from recycling.
    stale: Vec<Found>,
    used: Vec<Found>,
    /// Prepared and never opened.
    unused: Vec<Found>,
    /// Where reading ended; `None` if there is no log yet.
    pub(super) cursor: Option<Cursor>,
    /// There is a torn tail.
    dirty: bool,
}

/// Reads and judges a log, without changing anything.
pub(super) fn read_all(found: Vec<Found>, directory: &Path) -> Result<Log> {
    let (used, unused) = split_used(found)?;
    if used.is_empty() {
        return Ok(Log { stale: used, used: Vec::new(), unused, cursor: None, dirty: false });
    }
    let (stale, used) = contiguous(used)?;
    let cursor = scan(&used)?;
    let last = used.last().expect("one is used");
    let dirty = end_of_log(last, &cursor)?;
    check_seal(last, &unused)?;
    if let Some((stream, index)) = cursor.streams.elsewhere() {
        return Err(Error::corrupt(
            segment_path(directory, used[0].number - 1),
            None,
            format!("the segment is missing; it holds entry {index} of stream {}", stream.0),
        ));
    }
    Ok(Log { stale, used, unused, cursor: Some(cursor), dirty })
}

/// Where a log must be, there is none.
pub(crate) fn no_log(directory: &Path) -> Error {
    Error::corrupt(
        directory,
        None,
        "the WAL's segments are missing, and with them what was committed since the last checkpoint; \
         put them back if you can",
    )
}

/// Seals the segments whose seal a power cut took: it was written behind the next one's opening, but
/// not synced.
fn seal_again(files: &Files, used: &[Found]) -> Result<()> {
    for pair in used.windows(2) {
        let [one, next] = pair else { unreachable!("a window of two") };
        if one.seal().is_some() {
            continue;
        }
        let header = one.header.as_ref().expect("a used segment has a header");
        let (opening, _) = next.opening.as_ref().expect("a used segment has an opening");
        let file = files
            .disk
            .open(&one.path, OpenMode::Aligned)
            .map_err(|error| Error::io(format!("opening {}", one.path.display()), error))?;
        let segment = Segment::new(header, one.path.clone(), file);
        segment.write_seal(opening.group, opening.previous)?;
        segment.sync_seal()?;
    }
    Ok(())
}

/// Refuses a log that ends with a sealed segment: what it goes on in is not there.
pub(super) fn check_seal(last: &Found, unused: &[Found]) -> Result<()> {
    let Some(seal) = last.seal() else { return Ok(()) };
    let next = last.number + 1;
    let missing = segment_path(last.path.parent().unwrap_or(Path::new("")), next);
    Err(match unused.iter().find(|one| one.number == next) {
        Some(one) => one.corrupt(
            FIRST_FRAME,
            format!("the opening frame is lost; group {} was written after it", seal.group),
        ),
        None => Error::corrupt(
            missing,
            None,
            format!("the segment is missing; the log goes on in it with group {}", seal.group),
        ),
    })
}

fn new_state(active: Arc<Segment>, streams: Streams, group: u64) -> State {
    State {
        pending: Buffer::new(BLOCK_SIZE),
        pending_records: 0,
        group,
        in_flight: None,
        idle_buffer: Some(Buffer::new(BLOCK_SIZE)),
        streams,
        frames: std::collections::VecDeque::new(),
        first_frame: group,
        segments: BTreeMap::from([(active.number, Arc::clone(&active))]),
        position: FIRST_FRAME,
        opened: active.number,
        active,
        prepared: None,
        wanted: 0,
        failures: 0,
        failure: None,
        shrinking: false,
        released: false,
        unsynced_seals: Vec::new(),
        recycle_below: 0,
        stopping: false,
    }
}

fn prepare_now(files: &Files, number: u64, size: u64) -> Result<Arc<Segment>> {
    files.prepare(number, size).map_err(|error| match error {
        PrepareError::Clean(error) | PrepareError::InDoubt(error) => error,
        PrepareError::Stopped => unreachable!("nobody stops a WAL that is being opened"),
    })
}

fn create(files: Files) -> Result<Recovered> {
    let active = prepare_now(&files, 1, first_size(files.segment_size))?;
    let (chain, position) = write_opening(&active, &Opening::default(), 1, 0)?;
    let mut state = new_state(Arc::clone(&active), Streams::default(), 1);
    state.position = position;
    let pen = Pen { chain, active, unsynced: false, release: None, closed: false };
    Ok(Recovered { files, state, pen, created: true })
}

/// Makes the frames durable that may not be.
///
/// A sync alone does not: after one that failed, the kernel takes the pages for clean, so that the
/// next process reads from them what the disk never got, and syncs nothing. They are written again,
/// as they are, so that a block torn meanwhile is the same in both halves.
fn rewrite_unsynced(last: &Found, cursor: &Cursor, file: &dyn DiskFile) -> Result<()> {
    let failed = |error| Error::io(format!("writing {} again", last.path.display()), error);
    let (first, end) = (cursor.unsynced_from(last.number) as usize, cursor.position as usize);
    for from in (first..end).step_by(REWRITTEN_AT_ONCE) {
        let part = &last.map[from..end.min(from + REWRITTEN_AT_ONCE)];
        let mut buffer = Buffer::zeros(part.len());
        buffer.frame_mut().copy_from_slice(part);
        file.write_at(from as u64, buffer.frame()).map_err(failed)?;
    }
    file.sync().map_err(failed)
}

/// Behind a torn tail nothing is appended: the new segment's opening says where the log ended, so
/// that the tail is known for one for ever.
fn go_on_in_new_segment(files: &Files, state: &mut State, pen: &mut Pen) -> Result<()> {
    let opening = state.streams.opening(state.active.number, state.position);
    let needed = FIRST_FRAME + (opening.encode().len() + 4 * BLOCK_SIZE) as u64;
    let next = match state.prepared.take() {
        Some(next) if next.size >= needed => next,
        too_short => {
            if let Some(old) = too_short {
                files.retire(&old.path, old.size, old.number, Reuse::Cold)?;
                files.sync_directory()?;
            }
            let size = state.next_size(files.segment_size).max(needed.next_multiple_of(BLOCK_SIZE as u64));
            prepare_now(files, state.active.number + 1, size)?
        }
    };
    let (chain, position) = write_opening(&next, &opening, state.group, pen.chain)?;
    state.active.write_seal(state.group, pen.chain)?;
    state.active.sync_seal()?;
    state.segments.insert(next.number, Arc::clone(&next));
    state.active = Arc::clone(&next);
    state.opened = next.number;
    state.position = position;
    *pen = Pen { chain, active: next, unsynced: false, release: None, closed: false };
    Ok(())
}

/// Splits off the segments, at the end, that were prepared and never opened.
fn split_used(found: Vec<Found>) -> Result<(Vec<Found>, Vec<Found>)> {
    let used = found.iter().rposition(|one| one.opening.is_some()).map_or(0, |at| at + 1);
    let mut found = found;
    let unused = found.split_off(used);
    for one in &unused {
        if let Err(what) = one.header {
            // No crash leaves this: a segment gets its name when its header and length are durable.
            return Err(one.corrupt(0, what));
        } else if let Some((offset, _)) =
            one.headers_from(FIRST_FRAME).find(|(_, header)| header.flags & FLAG_OPENING == 0)
        {
            // The opening was durable before this frame was written.
            return Err(one.corrupt(
                FIRST_FRAME,
                format!("the opening frame is damaged; a frame at {offset} was written after it"),
            ));
        }
    }
    let before = found.last().map_or(0, |one| one.number);
    for (expected, one) in (before + 1..).zip(&unused) {
        if one.number != expected {
            let directory = one.path.parent().unwrap_or(Path::new(""));
            let missing = segment_path(directory, expected);
            return Err(Error::corrupt(
                missing,
                None,
                format!("the segment is missing; {} was made after it", one.path.display()),
            ));
        }
    }
    Ok((found, unused))
}

/// Splits off the segments before the last gap. They are left from recycling if nothing in the
/// others needs them; whether it does is found out by reading those.
fn contiguous(mut used: Vec<Found>) -> Result<(Vec<Found>, Vec<Found>)> {
    let gap = (1..used.len()).rev().find(|at| used[*at - 1].number + 1 != used[*at].number).unwrap_or(0);
    let rest = used.split_off(gap);
    for one in &rest {
        if let Err(what) = one.header {
            return Err(one.corrupt(0, what));
        }
        if one.opening.is_none() {
            return Err(one.corrupt(FIRST_FRAME, "the opening frame is damaged"));
        }
    }
    Ok((used, rest))
}

/// Reads every frame of the used segments; in the last one as far as they are sound.
fn scan(used: &[Found]) -> Result<Cursor> {
    let (header, opening) = used[0].opening.as_ref().expect("a used segment has an opening");
    let mut cursor = Cursor {
        streams: Streams::start_from(opening),
        frames: std::collections::VecDeque::new(),
        next_group: header.group,
        chain: 0,
        position: FIRST_FRAME,
        closed: false,
        durable: header.durable,
    };
    for (at, segment) in used.iter().enumerate() {
        let (header, _) = segment.opening.as_ref().expect("a used segment has an opening");
        cursor.chain = header.crc;
        // An opening says that all before it is durable, but not that nothing was behind it.
        cursor.closed = false;
        cursor.position = FIRST_FRAME + header.padded_length();
        let next = used.get(at + 1).map(|next| {
            let (header, opening) = next.opening.as_ref().expect("a used segment has an opening");
            (next, header, opening)
        });
        let end = next.map_or(segment.frames_end(), |(_, _, opening)| opening.previous_end);
        while cursor.position < end && cursor.read_frame(segment)? {}
        let Some((next, header, opening)) = next else { break };
        if cursor.position != end {
            return Err(segment.corrupt(
                cursor.position,
                format!("group {} is damaged; the segment is whole up to {end}", cursor.next_group),
            ));
        }
        let continues = opening.previous_segment == segment.number
            && header.previous == cursor.chain
            && header.group == cursor.next_group
            && opening.streams == cursor.streams.opening(segment.number, end).streams;
        if !continues {
            return Err(next.corrupt(FIRST_FRAME, "the segment does not continue the one before it"));
        }
    }
    Ok(cursor)
}

impl Cursor {
    /// Where in the last segment the first frame lies that may not be durable.
    fn unsynced_from(&self, segment: u64) -> u64 {
        let first_group = self.next_group - self.frames.len() as u64;
        let known = (self.durable + 1).saturating_sub(first_group);
        match self.frames.back() {
            Some(frame) if frame.segment == segment => {}
            // Its opening is durable before anything follows it, and nothing does.
            _ => return FIRST_FRAME,
        }
        let mut unsynced = self.frames.iter().skip(known as usize);
        unsynced.find(|frame| frame.segment == segment).map_or(self.position, |frame| frame.offset())
    }

    /// Reads the frame at the position, if it is sound and the next one.
    fn read_frame(&mut self, segment: &Found) -> Result<bool> {
        let Some((header, payload)) = segment.frame(self.position) else { return Ok(false) };
        if header.group != self.next_group
            || header.previous != self.chain
            || header.flags & (FLAG_OPENING | FLAG_SEAL) != 0
            || self.position + header.padded_length() > segment.frames_end()
        {
            return Ok(false);
        }
        self.apply(segment, &header, payload)?;
        self.frames.push_back(Frame::new(segment.number, self.position, payload.len()));
        self.next_group += 1;
        self.chain = header.crc;
        self.position += header.padded_length();
        self.closed = header.flags & FLAG_CLOSED != 0;
        self.durable = header.durable;
        Ok(true)
    }

    fn apply(&mut self, segment: &Found, header: &FrameHeader, payload: &[u8]) -> Result<()> {
        // The checksums match, so what does not fit was written so: by a bug, or not by us.
        let nonsense = |position: usize, what: &str| {
            let at = self.position + (FRAME_HEADER_SIZE + position) as u64;
            segment.corrupt(at, format!("{what}, although the checksum of group {} matches", header.group))
        };
        let mut records = Records::new(payload, 0);
        let mut count = 0;
        loop {
            let position = records.position();
            let record = match records.next() {
                None => break,
                Some(record) => record.map_err(|at| nonsense(at.position, "these bytes are no record"))?,
            };
            count += 1;
            match record.kind {
                Kind::Append => {
                    let next = self.streams.next_index(record.stream);
                    if next.is_some_and(|next| next != record.index) || record.index == u64::MAX {
                        return Err(nonsense(
                            position,
                            "the entry does not follow the last one of its stream",
                        ));
                    }
                    self.streams.append(record.stream, record.index, header.group, position);
                }
                Kind::TruncateAfter => {
                    self.streams.truncate_after(record.stream, record.index, header.group);
                }
                Kind::PurgeTo => self.streams.purge_to(record.stream, record.index, header.group),
                Kind::SetState => self.streams.set_state(record.stream, record.bytes, header.group),
            }
        }
        if count != header.records {
            return Err(nonsense(0, "the frame does not hold as many records as it says"));
        }
        self.streams.group_taken();
        Ok(())
    }
}

/// The end-of-log rule: is what lies at the cursor a torn tail, or damage? `true` if there is a
/// tail that must not be appended behind.
fn end_of_log(last: &Found, cursor: &Cursor) -> Result<bool> {
    let mut tail = false;
    for (offset, header) in last.headers_from(cursor.position) {
        tail = true;
        if header.durable >= cursor.next_group {
            return Err(last.corrupt(
                cursor.position,
                format!(
                    "group {} is damaged; the frame at {offset} says that it was durable",
                    cursor.next_group
                ),
            ));
        }
    }
    Ok(tail)
}

/// Removes or puts aside what is not in use. Returns the segment prepared as `next`, if there is
/// one that can be used as it is.
fn tidy(files: &Files, names: Names, unused: &[Found], next: Option<u64>) -> Result<Option<Arc<Segment>>> {
    for path in &names.filling {
        let removed = files.disk.remove(path);
        removed.map_err(|error| Error::io(format!("removing {}", path.display()), error))?;
    }
    for path in names.spares {
        files.adopt_spare(path)?;
    }
    let mut prepared = None;
    let mut renamed = !names.filling.is_empty();
    for one in unused {
        match &one.header {
            Ok(header) if Some(one.number) == next && one.headers_from(FIRST_FRAME).next().is_none() => {
                let file = files
                    .disk
                    .open(&one.path, OpenMode::Aligned)
                    .map_err(|error| Error::io(format!("opening {}", one.path.display()), error))?;
                prepared = Some(Arc::new(Segment::new(header, one.path.clone(), file)));
            }
            _ => {
                files.retire(&one.path, one.length, one.number, Reuse::Cold)?;
                renamed = true;
            }
        }
    }
    if renamed {
        files.sync_directory()?;
    }
    Ok(prepared)
}
