//! Folding: successive accesses to one page become one.
//!
//! A processor fetches and touches data in two streams, which lackey prints interleaved; a run of
//! loads from one page is hidden among the fetches of the loop around it. So each stream, code and
//! data, has one open *run*: a page, the strongest kind seen, a count. An access to the page of
//! its stream's run joins it; any other closes that run and opens the next. A run goes out when it
//! is closed, but never before one that was opened earlier: closing a run first closes the other
//! stream's if that is older.
//!
//! Invariants:
//!
//! - Within a stream no two accesses change places: the runs, each written out `count` times, are
//!   the stream.
//! - Runs go out in the order of their first accesses. So the first touches of any two pages keep
//!   their order, across streams as well.
//! - On one page no two accesses of different streams change places: a run is not joined past a
//!   younger run of the other stream on the same page. A program that writes code, runs it and
//!   writes again is a write, a fetch and a write.
//! - An access is moved back by folding, to the start of its run, past accesses of the other
//!   stream to other pages alone; never forward.
//! - No write is lost: a run with a write in it has a kind that is a write.
//! - The counts of all runs sum up to the touches that came in; a run that is full is closed.

use super::{AccessKind, PageAccess};

/// Runs that can wait to be taken: each of the up to two page touches of an access closes up to
/// two, and so does the end of the text, which may follow it.
const OUT_MAX: usize = 2 * 2 + 2;

const NO_RUN: PageAccess = PageAccess { vpn: 0, kind: AccessKind::Fetch, count: 0 };

/// The two open runs, and those that are closed and not yet taken.
///
/// The caller takes all closed runs before it adds the next access; so [`OUT_MAX`] suffices.
#[derive(Debug)]
pub(super) struct Fold {
    /// Code, then data. A count of 0 says that the stream has no open run.
    open: [PageAccess; 2],
    /// Index of the run that was opened last.
    younger: usize,
    out: [PageAccess; OUT_MAX],
    out_head: usize,
    out_tail: usize,
    /// Runs closed so far.
    closed: u64,
}

impl Fold {
    pub(super) fn new() -> Fold {
        Fold {
            open: [NO_RUN; 2],
            younger: 0,
            out: [NO_RUN; OUT_MAX],
            out_head: 0,
            out_tail: 0,
            closed: 0,
        }
    }

    /// Adds one touch of page `vpn`.
    #[inline]
    pub(super) fn touch(&mut self, vpn: u64, kind: AccessKind) {
        let stream = usize::from(kind != AccessKind::Fetch);
        let other = self.open[1 - stream];
        let other_between = self.younger != stream && other.vpn == vpn && other.count != 0;
        let own = &mut self.open[stream];
        if own.vpn == vpn && own.count != 0 && own.count != u32::MAX && !other_between {
            own.count += 1;
            own.kind = own.kind.max(kind);
        } else {
            self.close(stream);
            self.open[stream] = PageAccess { vpn, kind, count: 1 };
            self.younger = stream;
        }
    }

    /// Closes both runs.
    pub(super) fn finish(&mut self) {
        // The younger takes the older with it.
        self.close(self.younger);
        self.close(1 - self.younger);
    }

    /// Runs closed so far.
    pub(super) fn closed(&self) -> u64 {
        self.closed
    }

    /// Whether there is a closed run to take.
    #[inline]
    pub(super) fn has_closed(&self) -> bool {
        self.out_head != self.out_tail
    }

    /// Takes the oldest closed run.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<PageAccess> {
        if self.out_head == self.out_tail {
            return None;
        }
        let run = self.out[self.out_head];
        self.out_head += 1;
        if self.out_head == self.out_tail {
            (self.out_head, self.out_tail) = (0, 0);
        }
        Some(run)
    }

    /// Closes the run of `stream`, if it has one, after the other stream's if that is older.
    fn close(&mut self, stream: usize) {
        if self.open[stream].count == 0 {
            return;
        }
        if self.younger == stream {
            self.put(1 - stream);
        }
        self.put(stream);
    }

    fn put(&mut self, stream: usize) {
        let run = std::mem::replace(&mut self.open[stream], NO_RUN);
        if run.count != 0 {
            self.out[self.out_tail] = run;
            self.out_tail += 1;
            self.closed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AccessKind::{Fetch, Load, Modify, Store};

    fn folded(touches: &[(u64, AccessKind)]) -> Vec<(u64, AccessKind, u32)> {
        let mut fold = Fold::new();
        let mut out = Vec::new();
        for (vpn, kind) in touches {
            fold.touch(*vpn, *kind);
            out.extend(std::iter::from_fn(|| fold.pop()));
        }
        fold.finish();
        out.extend(std::iter::from_fn(|| fold.pop()));
        assert_eq!(fold.closed(), out.len() as u64);
        out.into_iter().map(|run| (run.vpn, run.kind, run.count)).collect()
    }

    #[test]
    fn a_loop_over_a_page_is_two_runs() {
        let body = [(1, Fetch), (9, Load), (1, Fetch), (9, Store), (1, Fetch)];
        assert_eq!(folded(&body.repeat(10)), [(1, Fetch, 30), (9, Store, 20)]);
    }

    #[test]
    fn the_strongest_kind_stays_whatever_the_order() {
        assert_eq!(folded(&[(9, Modify), (9, Store), (9, Load)]), [(9, Modify, 3)]);
        assert_eq!(folded(&[(9, Load), (9, Store), (9, Load)]), [(9, Store, 3)]);
    }

    #[test]
    fn an_older_run_of_the_other_stream_goes_first_and_then_opens_again() {
        assert_eq!(
            folded(&[(1, Fetch), (8, Load), (1, Fetch), (9, Load), (1, Fetch), (7, Load)]),
            [(1, Fetch, 2), (8, Load, 1), (9, Load, 1), (1, Fetch, 1), (7, Load, 1)]
        );
    }

    #[test]
    fn a_younger_run_of_the_other_stream_stays_open() {
        // Data 9 is younger than code 1 and older than code 2: it waits for neither.
        assert_eq!(
            folded(&[(1, Fetch), (9, Load), (2, Fetch), (9, Store)]),
            [(1, Fetch, 1), (9, Store, 2), (2, Fetch, 1)]
        );
    }

    #[test]
    fn a_page_that_is_written_run_and_written_again_keeps_its_order() {
        assert_eq!(
            folded(&[(5, Store), (5, Fetch), (5, Fetch), (5, Store), (5, Store)]),
            [(5, Store, 1), (5, Fetch, 2), (5, Store, 2)]
        );
    }

    #[test]
    fn a_full_run_is_closed_and_counts_on_in_the_next() {
        let mut fold = Fold::new();
        fold.open[1] = PageAccess { vpn: 3, kind: Store, count: u32::MAX };
        fold.younger = 1;
        fold.touch(3, Load);
        assert_eq!(fold.pop(), Some(PageAccess { vpn: 3, kind: Store, count: u32::MAX }));
        fold.finish();
        assert_eq!(fold.pop(), Some(PageAccess { vpn: 3, kind: Load, count: 1 }));
        assert_eq!(fold.pop(), None);
    }
}
