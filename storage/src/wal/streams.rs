//! What every stream holds, and in which groups: the index in memory.

use std::collections::{BTreeMap, VecDeque};

use super::StreamId;
use super::format::{OPENING_FIXED, OPENING_PER_STREAM, Opening, StreamOpening};

/// The group of entries that lie in a segment older than any that is there.
pub(super) const ELSEWHERE: u64 = 0;

/// Consecutive entries of one stream within one group.
///
/// The index knows runs, not entries: a group of a thousand small records costs 32 bytes. A reader
/// walks the payload from the run's position; entries cut off a run's front by a purge are skipped
/// on the way, and those cut off its end by a truncation are never reached, because whatever is
/// appended after a truncation begins a run of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) group: u64,
    /// Where in the group's payload its first record begins.
    pub(super) position: u32,
}

#[derive(Default)]
struct Stream {
    runs: VecDeque<Run>,
    state: Vec<u8>,
    /// The last group that changed it, for [`Streams::before`].
    touched: u64,
    /// The next append begins a new run.
    cut: bool,
    /// Bytes set aside for it in [`Streams::opening_bound`].
    counted: usize,
}

impl Stream {
    fn bounds(&self) -> Option<(u64, u64)> {
        Some((self.runs.front()?.first, self.runs.back()?.last))
    }
}

#[derive(Default)]
pub(super) struct Streams {
    streams: BTreeMap<StreamId, Stream>,
    /// The streams that the pending group changes, as they were before it.
    before: Vec<StreamOpening>,
    bound: usize,
}

impl Streams {
    /// The index that the stream's next entry must have; `None` if any will do.
    pub(super) fn next_index(&self, stream: StreamId) -> Option<u64> {
        let (_, last) = self.streams.get(&stream)?.bounds()?;
        Some(last + 1)
    }

    pub(super) fn bounds(&self, stream: StreamId) -> Option<(u64, u64)> {
        self.streams.get(&stream)?.bounds()
    }

    pub(super) fn state(&self, stream: StreamId) -> Option<&[u8]> {
        Some(self.streams.get(&stream)?.state.as_slice()).filter(|state| !state.is_empty())
    }

    /// Streams that hold anything.
    pub(super) fn ids(&self) -> Vec<StreamId> {
        let holds = |(id, stream): (&StreamId, &Stream)| {
            (!stream.runs.is_empty() || !stream.state.is_empty()).then_some(*id)
        };
        self.streams.iter().filter_map(holds).collect()
    }

    /// An upper bound of the bytes of [`Streams::opening`], whatever group it is made for.
    pub(super) fn opening_bound(&self) -> usize {
        OPENING_FIXED + self.bound
    }

    fn touch(&mut self, id: StreamId, group: u64, state_length: usize) -> &mut Stream {
        let stream = self.streams.entry(id).or_default();
        if stream.touched != group {
            stream.touched = group;
            let (bounds, state) = (stream.bounds(), stream.state.clone());
            self.before.push(StreamOpening { stream: id, bounds, state });
        }
        // Registers change size within narrow limits: count the largest ever seen.
        let size = OPENING_PER_STREAM + state_length.max(stream.state.len());
        if size > stream.counted {
            self.bound += size - stream.counted;
            stream.counted = size;
        }
        stream
    }

    /// Appends an entry that is known to be next.
    pub(super) fn append(&mut self, id: StreamId, index: u64, group: u64, position: usize) {
        let stream = match self.streams.get_mut(&id) {
            Some(stream) if stream.touched == group => stream,
            _ => self.touch(id, group, 0),
        };
        match stream.runs.back_mut() {
            Some(run) if run.group == group && !stream.cut => {
                assert!(run.last + 1 == index, "{id:?}: entry {index} appended behind {}", run.last);
                run.last = index;
            }
            last => {
                if let Some(last) = last {
                    assert!(last.last + 1 == index, "{id:?}: entry {index} appended behind {}", last.last);
                }
                let position = u32::try_from(position).expect("a payload is below 4 GiB");
                stream.runs.push_back(Run { first: index, last: index, group, position });
                stream.cut = false;
            }
        }
    }

    pub(super) fn truncate_after(&mut self, id: StreamId, index: u64, group: u64) {
        let stream = self.touch(id, group, 0);
        while stream.runs.back().is_some_and(|run| run.first > index) {
            stream.runs.pop_back();
        }
        if let Some(run) = stream.runs.back_mut() {
            run.last = run.last.min(index);
        }
        stream.cut = true;
    }

    pub(super) fn purge_to(&mut self, id: StreamId, index: u64, group: u64) {
        let stream = self.touch(id, group, 0);
        while stream.runs.front().is_some_and(|run| run.last <= index) {
            stream.runs.pop_front();
        }
        if let Some(run) = stream.runs.front_mut() {
            run.first = run.first.max(index + 1);
        }
    }

    pub(super) fn set_state(&mut self, id: StreamId, state: &[u8], group: u64) {
        let stream = self.touch(id, group, state.len());
        stream.state.clear();
        stream.state.extend_from_slice(state);
    }

    /// The pending group was taken: later changes belong to the next one.
    pub(super) fn group_taken(&mut self) {
        self.before.clear();
    }

    /// What the streams held before the pending group.
    pub(super) fn opening(&self, previous_segment: u64, previous_end: u64) -> Opening {
        let mut all: BTreeMap<StreamId, StreamOpening> = self
            .streams
            .iter()
            .map(|(id, stream)| {
                let (bounds, state) = (stream.bounds(), stream.state.clone());
                (*id, StreamOpening { stream: *id, bounds, state })
            })
            .collect();
        for before in &self.before {
            all.insert(before.stream, before.clone());
        }
        let streams = all.into_values().filter(|one| one.bounds.is_some() || !one.state.is_empty()).collect();
        Opening { previous_segment, previous_end, streams }
    }

    /// Begins with what an opening says, for want of the segments before it.
    pub(super) fn start_from(opening: &Opening) -> Streams {
        let mut streams = Streams::default();
        for one in &opening.streams {
            let stream = streams.touch(one.stream, ELSEWHERE, one.state.len());
            stream.state.clone_from(&one.state);
            let elsewhere = |(first, last)| Run { first, last, group: ELSEWHERE, position: 0 };
            stream.runs.extend(one.bounds.map(elsewhere));
            // What is appended next is not elsewhere.
            stream.cut = true;
        }
        streams.before.clear();
        streams
    }

    /// The run that holds an entry.
    pub(super) fn find(&self, id: StreamId, index: u64) -> Option<Run> {
        let runs = &self.streams.get(&id)?.runs;
        let run = runs.get(runs.partition_point(|run| run.last < index))?;
        (run.first <= index).then_some(*run)
    }

    /// The oldest group that some stream still needs.
    pub(super) fn oldest_group(&self) -> Option<u64> {
        self.streams.values().filter_map(|stream| Some(stream.runs.front()?.group)).min()
    }

    /// A stream with entries in segments that are not there, and the first of them.
    pub(super) fn elsewhere(&self) -> Option<(StreamId, u64)> {
        self.streams.iter().find_map(|(id, stream)| {
            let run = stream.runs.front()?;
            (run.group == ELSEWHERE).then_some((*id, run.first))
        })
    }

    /// Runs are in order, adjacent and not empty.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        for (id, stream) in &self.streams {
            let mut last: Option<Run> = None;
            for run in &stream.runs {
                assert!(run.first <= run.last, "{id:?}: {run:?} is empty");
                if let Some(last) = last {
                    assert!(last.last + 1 == run.first, "{id:?}: a gap between {last:?} and {run:?}");
                    assert!(last.group <= run.group, "{id:?}: {run:?} is older than {last:?}");
                }
                last = Some(*run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: StreamId = StreamId(1);

    #[test]
    fn an_entry_appended_after_a_truncation_is_found_behind_the_one_it_replaces() {
        let mut streams = Streams::default();
        for index in 5..=7 {
            streams.append(ONE, index, 1, (index * 10) as usize);
        }
        streams.truncate_after(ONE, 5, 1);
        streams.append(ONE, 6, 1, 200);
        streams.check_invariants();
        assert_eq!(streams.find(ONE, 5), Some(Run { first: 5, last: 5, group: 1, position: 50 }));
        assert_eq!(streams.find(ONE, 6), Some(Run { first: 6, last: 6, group: 1, position: 200 }));
        assert_eq!(streams.find(ONE, 7), None);
    }

    #[test]
    fn an_opening_states_what_was_before_the_pending_group() {
        let mut streams = Streams::default();
        streams.append(ONE, 1, 1, 0);
        streams.set_state(ONE, b"old", 1);
        streams.group_taken();
        streams.append(ONE, 2, 2, 0);
        streams.set_state(ONE, b"newer", 2);
        streams.append(StreamId(2), 9, 2, 0);
        let opening = streams.opening(3, 4096);
        let old = StreamOpening { stream: ONE, bounds: Some((1, 1)), state: b"old".to_vec() };
        assert_eq!(opening.streams, [old]);
        assert!(opening.encode().len() <= streams.opening_bound());
        streams.group_taken();
        assert_eq!(streams.opening(3, 4096).streams.len(), 2);
    }

    #[test]
    fn purging_everything_leaves_an_empty_stream_that_takes_any_index() {
        let mut streams = Streams::default();
        streams.append(ONE, 1, 1, 0);
        streams.append(ONE, 2, 2, 0);
        streams.purge_to(ONE, 1, 3);
        assert_eq!(streams.bounds(ONE), Some((2, 2)));
        assert_eq!(streams.oldest_group(), Some(2));
        streams.purge_to(ONE, 100, 3);
        assert_eq!(streams.bounds(ONE), None);
        assert_eq!(streams.next_index(ONE), None);
        streams.append(ONE, 50, 4, 0);
        assert_eq!(streams.bounds(ONE), Some((50, 50)));
    }
}
