//! The waiting line of a network backend: requests that wait for the wire, in order, found by the slots at which
//! they begin and end, and the policy by which the next one is chosen.
//!
//! # Policy
//! Page-ins are waited for, page-outs are not: a read goes before writes, each of which is overtaken so often at
//! most. A request with a neighbour that is outstanding is *in a stream*: while the wire is busy it waits, to be
//! merged with what comes next, as Nagle's algorithm holds small segments; requests without neighbours pass it so
//! often at most.
//!
//! Nothing here knows what a request is: rows are numbers of the backend's table. Each row is in one lane at
//! most. All operations but [`Waiting::new`] take constant time, as long as slots spread over the buckets.

use crate::backend::Slot;

/// No row.
pub const NONE: u16 = u16::MAX;

/// Requests without a neighbour that may go before one that waits for its neighbours. Picked by eye.
const PASSES_MAX: u32 = 64;

/// What is due to a request that waits: its place in the order of submission, and who went before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Order of submission.
    pub seq: u64,
    /// Reads that went before it, which is a write.
    pub overtaken: u32,
    /// Requests without neighbours that went before it while it waited for its own.
    pub passed: u32,
}

/// Who goes first, and how many may be on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Reads that may overtake a write; 0 keeps the order of submission.
    pub overtakes_max: u32,
    /// From so many requests on the wire on, one in a stream waits to be merged.
    pub merge_after: usize,
    /// Most requests on the wire.
    pub wire_max: usize,
}

/// Which queue a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// A read, not a write.
    pub is_read: bool,
    /// A neighbour of it is outstanding: when the wire is busy, it waits to be merged.
    pub in_stream: bool,
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

/// Requests that wait for the wire.
///
/// ```
/// use netswap_swap::Slot;
/// use netswap_swap::queue::{Lane, Waiting};
/// let mut waiting = Waiting::new(8);
/// let lane = Lane { is_read: false, in_stream: false };
/// waiting.push(3, Slot(40), 4, lane);
/// assert_eq!(waiting.ending_at(44, false), Some(3));
/// assert_eq!(waiting.front(lane), Some(3));
/// ```
#[derive(Debug)]
pub struct Waiting {
    links: Box<[Link]>,
    firsts: Box<[u16]>,
    ends: Box<[u16]>,
    /// First and last row of each lane.
    lanes: [(u16, u16); 4],
    len: usize,
}

impl Waiting {
    /// A line for rows below `rows`, with all the memory it will ever use.
    pub fn new(rows: usize) -> Waiting {
        let buckets = (rows * 2).next_power_of_two();
        Waiting {
            links: vec![UNLINKED; rows].into(),
            firsts: vec![NONE; buckets].into(),
            ends: vec![NONE; buckets].into(),
            lanes: [(NONE, NONE); 4],
            len: 0,
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn bucket(&self, slot: u64) -> usize {
        slot as usize & (self.firsts.len() - 1)
    }

    /// Puts `row`, whose slots are these, at the end of a lane.
    ///
    /// # Panics
    /// If it waits already.
    pub fn push(&mut self, row: usize, first: Slot, pages: usize, lane: Lane) {
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
    pub fn remove(&mut self, row: usize) -> bool {
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
    pub fn front(&self, lane: Lane) -> Option<usize> {
        let row = self.lanes[lane.index()].0;
        (row != NONE).then_some(usize::from(row))
    }

    /// The row that goes next, while `wire` requests are on the wire. `turn` tells what is due to a row.
    pub fn next(
        &self,
        policy: &Policy,
        wire: usize,
        turn: impl Fn(usize) -> Turn,
    ) -> Option<usize> {
        if self.is_empty() || wire >= policy.wire_max {
            return None;
        }
        let of = |is_read| self.next_of(is_read, policy, wire, &turn);
        let (Some(r), Some(w)) = (of(true), of(false)) else { return of(true).or(of(false)) };
        let overtakes = match policy.overtakes_max {
            0 => turn(r).seq < turn(w).seq,
            most => turn(w).overtaken < most,
        };
        Some(if overtakes { r } else { w })
    }

    /// The read, or write, that goes next among its kind.
    pub fn next_of(
        &self,
        is_read: bool,
        policy: &Policy,
        wire: usize,
        turn: impl Fn(usize) -> Turn,
    ) -> Option<usize> {
        let free = self.front(Lane { is_read, in_stream: false });
        let held = self.front(Lane { is_read, in_stream: true });
        let (Some(f), Some(h)) = (free, held) else {
            return free.or_else(|| held.filter(|_| wire < policy.merge_after));
        };
        let first = if turn(f).seq < turn(h).seq { f } else { h };
        let may = wire < policy.merge_after || turn(h).passed >= PASSES_MAX;
        Some(if may { first } else { f })
    }

    /// A read, or a write, that begins at this slot.
    pub fn beginning_at(&self, slot: u64, is_read: bool) -> Option<usize> {
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

    /// A read, or a write, whose last slot is before this one.
    pub fn ending_at(&self, slot: u64, is_read: bool) -> Option<usize> {
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

/// How many outstanding reads and writes touch a slot, or another that shares its counter: a filter
/// before the search for conflicts. 0 is certain, anything else is to be looked at.
#[derive(Debug)]
pub struct Touched {
    /// Reads, then writes.
    counts: Box<[[u16; 2]]>,
}

impl Touched {
    /// 64 counters a request: with requests of one page, one search in 64 is for nothing. Picked by eye.
    pub fn new(rows: usize) -> Touched {
        let counters = (rows * 64).next_power_of_two().min(1 << 16);
        Touched { counts: vec![[0; 2]; counters].into() }
    }

    fn at(&self, slot: u64) -> usize {
        slot as usize & (self.counts.len() - 1)
    }

    /// Counts a request.
    pub fn add(&mut self, slots: std::ops::Range<u64>, is_read: bool) {
        for slot in slots {
            let at = self.at(slot);
            self.counts[at][usize::from(!is_read)] += 1;
        }
    }

    /// Counts it no more.
    pub fn remove(&mut self, slots: std::ops::Range<u64>, is_read: bool) {
        for slot in slots {
            let at = self.at(slot);
            self.counts[at][usize::from(!is_read)] -= 1;
        }
    }

    /// Whether a request of this kind to these slots may be in conflict with one that was added.
    pub fn may_conflict(&self, slots: std::ops::Range<u64>, is_read: bool) -> bool {
        slots
            .map(|slot| self.counts[self.at(slot)])
            .any(|[reads, writes]| writes > 0 || (!is_read && reads > 0))
    }

    /// Whether a request of this kind may touch the slot.
    pub fn has(&self, slot: u64, is_read: bool) -> bool {
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
    fn page_ins_go_first_and_page_outs_are_overtaken_so_often_at_most() {
        let mut waiting = Waiting::new(4);
        let read = Lane { is_read: true, in_stream: false };
        waiting.push(0, Slot(0), 1, FREE);
        waiting.push(1, Slot(9), 1, read);
        let turns = [Turn { seq: 0, overtaken: 2, passed: 0 }, Turn { seq: 1, ..Turn::default() }];
        let next = |overtakes_max, wire| {
            let policy = Policy { overtakes_max, merge_after: 4, wire_max: 8 };
            waiting.next(&policy, wire, |row| turns[row])
        };
        assert_eq!(
            (next(0, 0), next(2, 0), next(3, 0), next(3, 8)),
            (Some(0), Some(0), Some(1), None)
        );
    }

    #[test]
    fn one_in_a_stream_waits_while_the_wire_is_busy_and_is_not_passed_for_ever() {
        let mut waiting = Waiting::new(4);
        waiting.push(0, Slot(0), 1, Lane { is_read: false, in_stream: true });
        let policy = Policy { overtakes_max: 0, merge_after: 2, wire_max: 8 };
        let turn = |passed| move |row| Turn { seq: row as u64, overtaken: 0, passed };
        assert_eq!(waiting.next(&policy, 1, turn(0)), Some(0));
        assert_eq!(waiting.next(&policy, 2, turn(0)), None);
        waiting.push(1, Slot(9), 1, FREE);
        assert_eq!(waiting.next(&policy, 2, turn(0)), Some(1));
        assert_eq!(waiting.next(&policy, 2, turn(PASSES_MAX)), Some(0));
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
