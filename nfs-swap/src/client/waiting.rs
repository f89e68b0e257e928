//! Requests that wait for the wire: in order, and found by the slots at which they begin and end.
//!
//! Nothing here knows what a request is: rows are numbers of the call table. Each row is in one queue at
//! most. All operations but [`Waiting::new`] take constant time, as long as slots spread over the buckets.

use netswap_swap::Slot;

/// No row.
pub(super) const NONE: u16 = u16::MAX;

/// Which queue a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    /// A READ, not a WRITE.
    pub(super) is_read: bool,
    /// A neighbour of it is outstanding: when the wire is busy, it waits to be merged.
    pub(super) in_stream: bool,
}

impl Lane {
    fn index(self) -> usize {
        usize::from(self.is_read) * 2 + usize::from(self.in_stream)
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u16,
    next: u16,
    /// Next row in the bucket of its first slot, and of the slot behind its last.
    by_first: u16,
    by_end: u16,
    first: u64,
    end: u64,
    lane: Option<Lane>,
}

const UNLINKED: Link =
    Link { prev: NONE, next: NONE, by_first: NONE, by_end: NONE, first: 0, end: 0, lane: None };

#[derive(Debug)]
pub(super) struct Waiting {
    links: Box<[Link]>,
    firsts: Box<[u16]>,
    ends: Box<[u16]>,
    /// First and last row of each lane.
    lanes: [(u16, u16); 4],
    len: usize,
}

impl Waiting {
    pub(super) fn new(rows: usize) -> Waiting {
        let buckets = (rows * 2).next_power_of_two();
        Waiting {
            links: vec![UNLINKED; rows].into(),
            firsts: vec![NONE; buckets].into(),
            ends: vec![NONE; buckets].into(),
            lanes: [(NONE, NONE); 4],
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn bucket(&self, slot: u64) -> usize {
        slot as usize & (self.firsts.len() - 1)
    }

    /// Puts `row`, whose slots are these, at the end of a lane.
    pub(super) fn push(&mut self, row: usize, first: Slot, pages: usize, lane: Lane) {
        let (first, at) = (u64::from(first.0), row as u16);
        let end = first + pages as u64;
        assert!(self.links[row].lane.is_none(), "a row that waits twice");
        let (a, b) = (self.bucket(first), self.bucket(end));
        let last = self.lanes[lane.index()].1;
        self.links[row] = Link {
            prev: last,
            next: NONE,
            by_first: std::mem::replace(&mut self.firsts[a], at),
            by_end: std::mem::replace(&mut self.ends[b], at),
            first,
            end,
            lane: Some(lane),
        };
        match last {
            NONE => self.lanes[lane.index()].0 = at,
            last => self.links[usize::from(last)].next = at,
        }
        self.lanes[lane.index()].1 = at;
        self.len += 1;
    }

    /// Takes `row` out of its lane, wherever it is. False if it is in none.
    pub(super) fn remove(&mut self, row: usize) -> bool {
        let at = row as u16;
        let link = std::mem::replace(&mut self.links[row], UNLINKED);
        let Some(lane) = link.lane else { return false };
        match link.prev {
            NONE => self.lanes[lane.index()].0 = link.next,
            prev => self.links[usize::from(prev)].next = link.next,
        }
        match link.next {
            NONE => self.lanes[lane.index()].1 = link.prev,
            next => self.links[usize::from(next)].prev = link.prev,
        }
        let (a, b) = (self.bucket(link.first), self.bucket(link.end));
        let mut from = &mut self.firsts[a];
        while *from != at {
            from = &mut self.links[usize::from(*from)].by_first;
        }
        *from = link.by_first;
        let mut from = &mut self.ends[b];
        while *from != at {
            from = &mut self.links[usize::from(*from)].by_end;
        }
        *from = link.by_end;
        self.len -= 1;
        true
    }

    /// The row that has waited longest in a lane.
    pub(super) fn front(&self, lane: Lane) -> Option<usize> {
        let row = self.lanes[lane.index()].0;
        (row != NONE).then_some(usize::from(row))
    }

    /// A READ, or a WRITE, that begins at this slot.
    pub(super) fn beginning_at(&self, slot: u64, is_read: bool) -> Option<usize> {
        let mut row = self.firsts[self.bucket(slot)];
        while row != NONE {
            let link = &self.links[usize::from(row)];
            if link.first == slot && link.lane.is_some_and(|lane| lane.is_read == is_read) {
                return Some(usize::from(row));
            }
            row = link.by_first;
        }
        None
    }

    /// A READ, or a WRITE, whose last slot is before this one.
    pub(super) fn ending_at(&self, slot: u64, is_read: bool) -> Option<usize> {
        let mut row = self.ends[self.bucket(slot)];
        while row != NONE {
            let link = &self.links[usize::from(row)];
            if link.end == slot && link.lane.is_some_and(|lane| lane.is_read == is_read) {
                return Some(usize::from(row));
            }
            row = link.by_end;
        }
        None
    }
}

/// How many outstanding READs and WRITEs touch a slot, or another that shares its counter: a filter
/// before the search for conflicts. 0 is certain, anything else is to be looked at.
#[derive(Debug)]
pub(super) struct Touched {
    /// READs in the low half, WRITEs in the high half.
    counts: Box<[[u16; 2]]>,
}

impl Touched {
    /// 64 counters a request: with requests of one page, one search in 64 is for nothing. Picked by eye.
    pub(super) fn new(rows: usize) -> Touched {
        let counters = (rows * 64).next_power_of_two().min(1 << 16);
        Touched { counts: vec![[0; 2]; counters].into() }
    }

    fn at(&self, slot: u64) -> usize {
        slot as usize & (self.counts.len() - 1)
    }

    pub(super) fn add(&mut self, slots: std::ops::Range<u64>, is_read: bool) {
        for slot in slots {
            let at = self.at(slot);
            self.counts[at][usize::from(!is_read)] += 1;
        }
    }

    pub(super) fn remove(&mut self, slots: std::ops::Range<u64>, is_read: bool) {
        for slot in slots {
            let at = self.at(slot);
            self.counts[at][usize::from(!is_read)] -= 1;
        }
    }

    /// Whether a request of this kind to these slots may be in conflict with one that was added.
    pub(super) fn may_conflict(&self, slots: std::ops::Range<u64>, is_read: bool) -> bool {
        slots
            .map(|slot| self.counts[self.at(slot)])
            .any(|[reads, writes]| writes > 0 || (!is_read && reads > 0))
    }

    /// Whether a request of this kind may touch the slot.
    pub(super) fn has(&self, slot: u64, is_read: bool) -> bool {
        self.counts[self.at(slot)][usize::from(!is_read)] > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: Lane = Lane { is_read: false, in_stream: false };

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn rows_are_found_as_in_a_plain_list(
            steps in proptest::collection::vec((0..16usize, 0..40u32, 1..5usize, any::<[bool; 2]>()), 1..200)
        ) {
            let mut waiting = Waiting::new(16);
            let mut naive: Vec<(usize, u64, u64, Lane)> = vec![];
            for (row, first, pages, [is_read, in_stream]) in steps {
                let lane = Lane { is_read, in_stream };
                if let Some(at) = naive.iter().position(|entry| entry.0 == row) {
                    naive.remove(at);
                    prop_assert!(waiting.remove(row));
                } else {
                    prop_assert!(!waiting.remove(row));
                    waiting.push(row, Slot(first), pages, lane);
                    naive.push((row, u64::from(first), u64::from(first) + pages as u64, lane));
                }
                prop_assert_eq!(waiting.is_empty(), naive.is_empty());
                let oldest = naive.iter().find(|entry| entry.3 == lane).map(|entry| entry.0);
                prop_assert_eq!(waiting.front(lane), oldest);
                let slot = u64::from(first);
                let begins: Vec<usize> = naive.iter()
                    .filter(|e| e.1 == slot && e.3.is_read == is_read).map(|e| e.0).collect();
                let ends: Vec<usize> = naive.iter()
                    .filter(|e| e.2 == slot && e.3.is_read == is_read).map(|e| e.0).collect();
                prop_assert_eq!(waiting.beginning_at(slot, is_read).is_some(), !begins.is_empty());
                prop_assert!(waiting.beginning_at(slot, is_read).is_none_or(|row| begins.contains(&row)));
                prop_assert_eq!(waiting.ending_at(slot, is_read).is_some(), !ends.is_empty());
                prop_assert!(waiting.ending_at(slot, is_read).is_none_or(|row| ends.contains(&row)));
            }
        }
    }

    #[test]
    #[should_panic(expected = "waits twice")]
    fn a_row_waits_once() {
        let mut waiting = Waiting::new(2);
        waiting.push(1, Slot(0), 1, FREE);
        waiting.push(1, Slot(0), 1, FREE);
    }

    #[test]
    fn the_filter_never_misses_a_conflict_and_forgets_what_has_ended() {
        let mut touched = Touched::new(1);
        touched.add(10..12, true);
        assert!(!touched.may_conflict(11..12, true) && touched.may_conflict(11..12, false));
        assert!(touched.has(10, true) && !touched.has(10, false) && !touched.has(12, true));
        touched.add(20..21, false);
        assert!(touched.may_conflict(18..21, true));
        // 64 counters: slot 74 shares one with 10.
        assert!(touched.may_conflict(74..75, false));
        touched.remove(10..12, true);
        touched.remove(20..21, false);
        assert!((0..64).all(|slot| !touched.may_conflict(slot..slot + 1, false)));
    }
}
