//! What a pool's lock guards: the free list, the counts, the marks, the tree of reserves and the queue.
//!
//! Plain bookkeeping. Who may do what when is decided in [`crate::inner`], whose header has the invariants.

use crate::gfp::Gfp;
use crate::pool::{PoolConfig, Watermarks};
use crate::region::{MARKED, Region};
use crate::reservation::Reservations;
use crate::reserves::{ReserveId, Tree};
use crate::sync::atomic::Ordering;
use crate::trace::Recorder;
use crate::wait::WaitQueue;

/// The end of the free list.
pub(crate) const NIL: u32 = u32::MAX;

pub(crate) struct State {
    pub(crate) head: u32,
    /// Frames from here on were never used. They are contiguous, which runs set aside at start want.
    pub(crate) fresh: u32,
    pub(crate) free: u32,
    pub(crate) lowest_free: u32,
    /// Frames that are out and charged.
    pub(crate) charged: u32,
    pub(crate) frees: u64,
    /// Live charges and reservations, which hold no frame.
    pub(crate) charges: u64,
    pub(crate) closed: bool,
    /// The last handle is gone and has yet to empty the magazines: it keeps the pool alive.
    pub(crate) closing: bool,
    /// The door is open while more frames than this are free: low, or no number at all while somebody
    /// drains and once the pool is closed.
    pub(crate) open_above: u32,
    /// What the door says.
    pub(crate) plenty: bool,
    /// Somebody takes what is in the magazines.
    pub(crate) draining: bool,
    /// There is nothing in any magazine, and will not be before `plenty`.
    pub(crate) drained: bool,
    /// Who waits for a frame. When the lock is given back none of them could be served.
    pub(crate) waits: WaitQueue,
    pub(crate) marks: Watermarks,
    pub(crate) tree: Tree,
    pub(crate) reservations: Reservations,
    /// Notes every operation, if somebody records them.
    pub(crate) recorder: Option<Box<Recorder>>,
}

/// Who asks, apart from the flags of the call.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    /// The reserve it may use.
    pub(crate) entitled: Option<ReserveId>,
    /// Whether that comes from the ambient scope.
    pub(crate) by_scope: bool,
}

impl State {
    #[inline]
    pub(crate) fn watermark(&self, gfp: Gfp) -> u32 {
        if gfp.contains(Gfp::ATOMIC) {
            self.marks.atomic
        } else if gfp.contains(Gfp::SPECULATIVE) {
            self.marks.low
        } else {
            self.marks.min
        }
    }

    /// Whether everything that a closed pool gave out is back.
    pub(crate) fn all_back(&self, frames: u32) -> bool {
        self.closed && !self.closing && self.free == frames && self.charges == 0
    }

    /// Frames that could be promised: those free and not reserved, and those in use by entitled callers
    /// already.
    pub(crate) fn can_promise(&self) -> u32 {
        self.free + self.charged - self.reservations.frames
    }

    /// Whether half of the floor is used: then direct reclaim takes turns, so that the rest is left to those
    /// who are entitled (`throttle_direct_reclaim` in the kernel's `mm/vmscan.c`).
    pub(crate) fn is_half_used(&self) -> bool {
        let floor = self.tree.floor();
        floor > 0 && u64::from(self.tree.counters(0).0) * 2 >= u64::from(floor)
    }

    /// Takes a frame; the caller has checked that one is free.
    #[inline]
    pub(crate) fn pop(&mut self, region: &Region) -> u32 {
        debug_assert!(self.free > 0);
        self.free -= 1;
        if self.head != NIL {
            let index = self.head;
            let meta = &region.meta[index as usize];
            self.head = meta.refs.load(Ordering::Relaxed);
            index
        } else {
            let index = self.fresh;
            self.fresh += 1;
            index
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, region: &Region, index: u32) {
        region.meta[index as usize].refs.store(self.head, Ordering::Relaxed);
        self.head = index;
        self.free += 1;
    }

    pub(crate) fn pop_run(&mut self, region: &Region, n: u32) -> Option<u32> {
        if n <= region.meta.len() as u32 - self.fresh {
            let first = self.fresh;
            self.fresh += n;
            self.free -= n;
            return Some(first);
        }
        // Marks what is on the list, looks for a run of marks (or of frames never used), and links
        // the list anew without it.
        let mut at = self.head;
        while at != NIL {
            let meta = &region.meta[at as usize];
            meta.flags.store(MARKED, Ordering::Relaxed);
            at = meta.refs.load(Ordering::Relaxed);
        }
        let mut length = 0;
        let mut end = 0;
        for (index, meta) in region.meta.iter().enumerate() {
            let free = index as u32 >= self.fresh || meta.flags.load(Ordering::Relaxed) == MARKED;
            length = if free { length + 1 } else { 0 };
            if length == n {
                end = index as u32 + 1;
                break;
            }
        }
        let run = end.saturating_sub(n)..end;
        let (mut at, mut last) = (self.head, NIL);
        self.head = NIL;
        while at != NIL {
            let meta = &region.meta[at as usize];
            meta.flags.store(0, Ordering::Relaxed);
            let next = meta.refs.load(Ordering::Relaxed);
            if !run.contains(&at) {
                match last {
                    NIL => self.head = at,
                    last => region.meta[last as usize].refs.store(at, Ordering::Relaxed),
                }
                meta.refs.store(NIL, Ordering::Relaxed);
                last = at;
            }
            at = next;
        }
        if run.is_empty() {
            return None;
        }
        self.fresh = self.fresh.max(run.end);
        self.free -= n;
        Some(run.start)
    }
}

/// Whether the owner of a stock, in its section, may touch it: nobody drains, and whoever starts to will wait
/// for the end of the section.
pub(crate) fn stock_is_ours(state: &State) -> bool {
    !state.draining
}

pub(crate) fn watermarks(config: &PoolConfig, promised: u32, reserved: u32) -> Watermarks {
    let floor = if config.reserve { promised } else { 0 };
    let kept = floor.saturating_add(reserved);
    let min = kept.saturating_add(config.headroom);
    let low = min.saturating_add(config.low_gap);
    Watermarks {
        floor,
        reserved,
        atomic: kept.saturating_add(config.headroom / 2),
        min,
        low,
        high: low.saturating_add(config.high_gap),
    }
}
