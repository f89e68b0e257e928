//! What is told of a load: how far it is, what it did, what went wrong.

use std::fmt;
use std::time::Duration;

use arrayvec::ArrayVec;
use hdrhistogram::Histogram;
use netswap_net::kernel::KernelError;
use netswap_reserve::{PoolError, Span};
use netswap_swap::{BackendState, Op, StoreError};

use super::stamp::Mismatch;

/// Faults that are told one by one; the others are counted.
pub const FAULTS_TOLD: usize = 8;

/// Something that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFault {
    /// A page was not what had been written.
    Page {
        /// Where.
        slot: u32,
        /// What is wrong with it.
        mismatch: Mismatch,
    },
    /// The store did not do it.
    Store {
        /// What was asked for.
        op: Op,
        /// Where.
        slot: u32,
        /// Why.
        error: StoreError,
    },
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadFault::Page { slot, mismatch } => write!(f, "slot {slot}: {mismatch}"),
            LoadFault::Store { op: Op::Read, slot, error } => {
                write!(f, "READ of slot {slot}: {error}")
            }
            LoadFault::Store { op: Op::Write, slot, error } => {
                write!(f, "WRITE of slot {slot}: {error}")
            }
        }
    }
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadProgress {
    /// The share that is done, from 0 to 1: of the load, then of reading back.
    pub share: f64,
    /// Operations that ended well.
    pub ops: u64,
    /// What was written is being read back.
    pub is_reading_back: bool,
}

/// Why a load ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No memory for what may be outstanding.
    #[error("no memory for the pages of {depth} operations: {source}")]
    Pool {
        /// Operations.
        depth: usize,
        /// Why.
        source: PoolError,
    },
    /// There is not one whole block.
    #[error("{slots} slots beside the header do not hold one block of {block_pages} pages")]
    TooSmall {
        /// Slots there are.
        slots: u32,
        /// Pages of a block.
        block_pages: usize,
    },
    /// The event loop does not turn any more.
    #[error(transparent)]
    Net(#[from] KernelError),
    /// The store takes nothing any more.
    #[error("the store takes no requests any more: {}", why(.0))]
    Store(BackendState),
    /// The server is gone while pages are read back.
    #[error(
        "{reads} reads in a row were not answered in time: the server is taken for gone, and what is left is not read \
         back"
    )]
    NotReadBack {
        /// How many.
        reads: usize,
    },
    /// Somebody has seen enough ([`crate::real::Interrupt`]).
    #[error("interrupted")]
    Interrupted,
    /// No slot may be written any more.
    #[error(
        "all {slots} slots are quarantined: a late copy of a write may still reach each of them; a restart \
         of the server, or a new run, makes them usable again"
    )]
    Quarantined {
        /// How many.
        slots: u32,
    },
}

fn why(state: &BackendState) -> &dyn fmt::Display {
    match state {
        BackendState::Failed(error) => error,
        BackendState::Starting => &"it is not ready yet",
        BackendState::Ready { .. } => &"as many are outstanding as it takes",
        BackendState::Stopped => &"it was shut down",
    }
}

/// What a load did.
#[derive(Clone)]
pub struct LoadReport {
    /// Operations that ended well, by kind.
    pub reads: u64,
    /// As above.
    pub writes: u64,
    /// Pages of these.
    pub pages: u64,
    /// What the client made of them for the server: fewer, if it merged some.
    pub requests: u64,
    /// Pages that were compared, and were right.
    pub pages_verified: u64,
    /// Pages that were not.
    pub pages_wrong: u64,
    /// Pages that were written, and could not be read back at the end.
    pub pages_unverified: u64,
    /// Operations that the store did not do.
    pub store_errors: u64,
    /// The first of the faults; when they are too many, one of a page takes the place of one of the store.
    pub faults: ArrayVec<LoadFault, FAULTS_TOLD>,
    /// From the first submission to the last completion.
    pub elapsed: Span,
    /// The longest time in which no operation ended well.
    pub longest_pause: Span,
    /// Processor time of this thread meanwhile: user and system.
    pub cpu: Duration,
    /// From submission to completion, in nanoseconds.
    pub read_latency: Histogram<u64>,
    /// As above.
    pub write_latency: Histogram<u64>,
    /// Slots in quarantine at the end.
    pub quarantined: u32,
    /// Why it ended early, if it did.
    pub ended_early: Option<String>,
}

impl fmt::Debug for LoadReport {
    /// Without the thousands of counts of a histogram.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadReport")
            .field("reads", &self.reads)
            .field("writes", &self.writes)
            .field("requests", &self.requests)
            .field("pages_verified", &self.pages_verified)
            .field("pages_wrong", &self.pages_wrong)
            .field("pages_unverified", &self.pages_unverified)
            .field("store_errors", &self.store_errors)
            .field("faults", &self.faults)
            .field("elapsed", &self.elapsed)
            .field("longest_pause", &self.longest_pause)
            .field("quarantined", &self.quarantined)
            .field("ended_early", &self.ended_early)
            .finish_non_exhaustive()
    }
}

impl LoadReport {
    pub(super) fn new() -> LoadReport {
        let latency = || {
            // A day in nanoseconds, three significant digits: nothing to grow later.
            Histogram::new_with_bounds(1, 86_400_000_000_000, 3).expect("the bounds are in order")
        };
        LoadReport {
            reads: 0,
            writes: 0,
            pages: 0,
            requests: 0,
            pages_verified: 0,
            pages_wrong: 0,
            pages_unverified: 0,
            store_errors: 0,
            faults: ArrayVec::new(),
            elapsed: Span::ZERO,
            longest_pause: Span::ZERO,
            cpu: Duration::ZERO,
            read_latency: latency(),
            write_latency: latency(),
            quarantined: 0,
            ended_early: None,
        }
    }

    /// Faults that are not among those that are told.
    pub fn untold(&self) -> u64 {
        (self.pages_wrong + self.store_errors).saturating_sub(self.faults.len() as u64)
    }

    /// Operations that ended well.
    pub fn ops(&self) -> u64 {
        self.reads + self.writes
    }

    /// Whether every operation ended well and every page was right.
    pub fn is_fine(&self) -> bool {
        self.pages_wrong == 0 && self.store_errors == 0 && self.ended_early.is_none()
    }

    pub(super) fn tell(&mut self, fault: LoadFault) {
        // A full list is enough to begin with; all are counted. A page that is wrong says more than an error.
        let is_page = |fault: &LoadFault| matches!(fault, LoadFault::Page { .. });
        if !self.faults.is_full() {
            self.faults.push(fault);
        } else if is_page(&fault)
            && let Some(least) = self.faults.iter_mut().rfind(|told| !is_page(told))
        {
            *least = fault;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_hide_a_page_that_is_wrong() {
        let mut report = LoadReport::new();
        for slot in 0..20 {
            let error = StoreError::TimedOut;
            report.store_errors += 1;
            report.tell(LoadFault::Store { op: Op::Write, slot, error });
        }
        let wrong = LoadFault::Page { slot: 99, mismatch: Mismatch::Damaged };
        report.pages_wrong += 1;
        report.tell(wrong);
        assert!(report.faults.contains(&wrong) && report.faults.len() == FAULTS_TOLD);
        assert_eq!(report.untold(), 21 - FAULTS_TOLD as u64);
    }
}
