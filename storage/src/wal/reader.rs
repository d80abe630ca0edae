//! Reading entries back: from the pending group, the one in flight, or a segment.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::IVec;
use crate::error::{Error, Result};

use super::StreamId;
use super::buffer::Buffer;
use super::format::{FRAME_HEADER_SIZE, FrameHeader, Kind, Records};
use super::segment::Segment;
use super::streams::Run;
use super::writer::{Frame, Shared, State};

/// No more is read at once, whatever the caller's limit.
const MAX_READ: usize = 1 << 30;

/// Where a run's group was found.
enum Place {
    Pending,
    InFlight(Arc<RwLock<Buffer>>),
    Written { segment: Arc<Segment>, frame: Frame },
}

impl State {
    fn locate(&self, stream: StreamId, index: u64) -> Option<(Run, Place)> {
        let run = self.streams.find(stream, index)?;
        let place = match &self.in_flight {
            _ if run.group == self.group => Place::Pending,
            Some((group, buffer)) if *group == run.group => Place::InFlight(Arc::clone(buffer)),
            _ => {
                let frame = self.frames[(run.group - self.first_frame) as usize];
                Place::Written { segment: Arc::clone(&self.segments[&frame.segment]), frame }
            }
        };
        Some((run, place))
    }
}

/// Reads a frame and checks both its checksums: what rotted since it was written is reported,
/// never returned.
fn read_frame(segment: &Segment, frame: Frame) -> Result<Vec<u8>> {
    let offset = frame.offset();
    let length = FRAME_HEADER_SIZE + frame.payload_length as usize;
    let bytes = segment
        .bytes(offset, length)
        .map_err(|error| Error::io(format!("reading {} at {offset}", segment.path.display()), error))?;
    let sound = FrameHeader::decode(&bytes)
        .is_some_and(|header| header.epoch == segment.epoch && header.payload(&bytes).is_some());
    if sound {
        Ok(bytes)
    } else {
        let what = "a frame that was sound when it was written no longer matches its checksum";
        Err(Error::corrupt(&segment.path, offset, what))
    }
}

/// Calls `f` with the entries of `run` from `from` on, until it returns `false`; the index after
/// the last entry seen.
fn entries_of<'a>(
    payload: &'a [u8],
    stream: StreamId,
    run: Run,
    from: u64,
    mut f: impl FnMut(u64, &'a [u8]) -> Result<bool>,
) -> Result<(u64, bool)> {
    let mut next = from;
    for record in Records::new(payload, run.position as usize) {
        // Checksums were verified and recovery has parsed it, so only a bug leads here.
        let record =
            record.unwrap_or_else(|at| panic!("no record at {} of group {}", at.position, run.group));
        if record.kind != Kind::Append || record.stream != stream || record.index != next {
            continue;
        }
        if !f(next, record.bytes)? {
            return Ok((next, false));
        }
        next += 1;
        if next > run.last {
            return Ok((next, true));
        }
    }
    panic!("entry {next} of {stream:?} is not in group {} as {run:?} says", run.group);
}

/// Entries copied out one behind the other.
#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    /// Index and end of each.
    ends: Vec<(u64, usize)>,
}

impl Collected {
    fn into_entries(self) -> Vec<(u64, IVec)> {
        let base: Arc<[u8]> = self.bytes.into();
        let mut start = 0;
        let entry = |(index, end): (u64, usize)| {
            let entry = IVec::from_shared(&base, start, end - start);
            start = end;
            (index, entry)
        };
        self.ends.into_iter().map(entry).collect()
    }
}

impl Shared {
    pub(super) fn read(
        &self,
        stream: StreamId,
        from: u64,
        to_exclusive: u64,
        limit_bytes: usize,
    ) -> Result<Vec<(u64, IVec)>> {
        let limit = limit_bytes.min(MAX_READ);
        let mut collected = Collected::default();
        let mut next = from;
        while next < to_exclusive {
            self.check_poison()?;
            let state = self.state.lock();
            let Some((run, place)) = state.locate(stream, next) else {
                match state.streams.bounds(stream) {
                    // Purged, before the call or between two runs.
                    Some((first, _)) if next < first => return Err(Error::Compacted { oldest: first }),
                    _ => break,
                }
            };
            let collect = |index: u64, bytes: &[u8]| {
                let full = !collected.ends.is_empty() && collected.bytes.len() + bytes.len() > limit;
                if index >= to_exclusive || full {
                    return Ok(false);
                }
                collected.bytes.extend_from_slice(bytes);
                collected.ends.push((index, collected.bytes.len()));
                Ok(true)
            };
            let (reached, more) = match place {
                Place::Pending => entries_of(state.pending.payload(), stream, run, next, collect)?,
                Place::InFlight(buffer) => {
                    drop(state);
                    entries_of(buffer.read().payload(), stream, run, next, collect)?
                }
                Place::Written { segment, frame } => {
                    drop(state);
                    let bytes = read_frame(&segment, frame)?;
                    entries_of(&bytes[FRAME_HEADER_SIZE..], stream, run, next, collect)?
                }
            };
            next = reached;
            if !more {
                break;
            }
        }
        Ok(collected.into_entries())
    }

    pub(super) fn replay(
        &self,
        stream: StreamId,
        from: u64,
        f: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut next = match self.state.lock().streams.bounds(stream) {
            Some((first, _)) => from.max(first),
            None => return Ok(()),
        };
        loop {
            self.check_poison()?;
            let (run, place) = {
                let state = self.state.lock();
                match state.locate(stream, next) {
                    Some(found) => found,
                    None => match state.streams.bounds(stream) {
                        Some((first, _)) if next < first => return Err(Error::Compacted { oldest: first }),
                        _ => return Ok(()),
                    },
                }
            };
            let Place::Written { segment, frame } = place else {
                // The callback may take its time: not with a buffer of the writer in hand.
                self.write_out_to(run.group)?;
                continue;
            };
            let bytes = read_frame(&segment, frame)?;
            let each = |index: u64, entry: &[u8]| f(index, entry).map(|()| true);
            next = entries_of(&bytes[FRAME_HEADER_SIZE..], stream, run, next, each)?.0;
        }
    }
}
