//! From frames back to the log: pure.

use std::collections::VecDeque;

use crate::log::format::Frame;
use crate::types::{Entry, LogId};

/// The log as far as it has been read.
#[derive(Debug)]
pub(crate) struct Replay {
    purged: Option<LogId>,
    entries: VecDeque<Entry>,
    /// The index that must come next; unknown until an entry was seen.
    next: Option<u64>,
}

impl Replay {
    /// Entries up to and with `purged` are skipped: their segment may outlive them.
    pub(crate) fn new(purged: Option<LogId>) -> Replay {
        Replay { purged, entries: VecDeque::new(), next: None }
    }

    pub(crate) fn apply(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Cut(from) => {
                while self.entries.back().is_some_and(|entry| entry.log_id.index >= from) {
                    self.entries.pop_back();
                }
                self.next = self.next.map(|next| next.min(from));
                Ok(())
            }
            Frame::Entries(entries) => entries.into_iter().try_for_each(|entry| self.push(entry)),
        }
    }

    fn push(&mut self, entry: Entry) -> Result<(), String> {
        let index = entry.log_id.index;
        if let Some(next) = self.next
            && next != index
        {
            return Err(format!("entry {index} follows where {next} should"));
        }
        if index >= self.first_kept() {
            self.entries.push_back(entry);
        }
        self.next = Some(index + 1);
        Ok(())
    }

    fn first_kept(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The entries behind the purged ones. Only now is it clear what they begin with: the oldest
    /// segment may begin with entries that a later one cuts.
    pub(crate) fn finish(self) -> Result<VecDeque<Entry>, String> {
        let first_kept = self.first_kept();
        match self.entries.front() {
            Some(entry) if entry.log_id.index != first_kept => {
                Err(format!("the log begins with entry {}, but {first_kept} is missing", entry.log_id.index))
            }
            _ => Ok(self.entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::types::log_id;

    fn entries(term: u64, range: std::ops::Range<u64>) -> Frame {
        Frame::Entries(range.map(|i| Entry { log_id: log_id(term, i), payload: EntryPayload::Blank }).collect())
    }

    fn replay(purged: Option<u64>, frames: Vec<Frame>) -> Result<Vec<(u64, u64)>, String> {
        let mut replay = Replay::new(purged.map(|index| log_id(1, index)));
        frames.into_iter().try_for_each(|frame| replay.apply(frame))?;
        Ok(replay.finish()?.iter().map(|e| (e.log_id.leader_id.term, e.log_id.index)).collect())
    }

    #[test]
    fn a_cut_voids_the_entries_behind_it() {
        let log = replay(None, vec![entries(1, 0..4), Frame::Cut(2), entries(3, 2..3)]);
        assert_eq!(log, Ok(vec![(1, 0), (1, 1), (3, 2)]));
    }

    #[test]
    fn purged_entries_are_skipped_even_when_they_were_cut_and_written_again() {
        let log = replay(Some(5), vec![Frame::Cut(2), entries(1, 2..8)]);
        assert_eq!(log, Ok(vec![(1, 6), (1, 7)]));
    }

    #[test]
    fn a_log_may_begin_with_entries_that_are_cut_later() {
        let log = replay(Some(5), vec![entries(1, 9..12), Frame::Cut(3), entries(2, 3..7)]);
        assert_eq!(log, Ok(vec![(2, 6)]));
    }

    #[test]
    fn a_hole_is_an_error() {
        assert!(replay(None, vec![entries(1, 0..2), entries(1, 3..4)]).is_err());
        assert!(replay(Some(5), vec![entries(1, 7..8)]).is_err());
        assert!(replay(None, vec![entries(1, 1..2)]).is_err());
    }
}
