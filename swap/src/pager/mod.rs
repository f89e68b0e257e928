//! The pager: which pages are resident, and the moving of the others, as a state machine.
//!
//! Faults go in by [`Pager::handle_fault`]; [`Pager::poll`] carries on with everything else and gives
//! what happened. It does no I/O, takes no lock over a call, reads no clock; after it was made (and
//! an area taken into use) it allocates nothing but page frames. Page frames never come from a
//! reserve: they are what reclaim makes free.
//!
//! One subject a file: [`fault`](self) handling in `fault.rs`, requests in `io.rs`, freeing of frames
//! in `reclaim.rs`, areas in `areas.rs`, `swapoff` in `swapoff.rs`, mappings in `mapping.rs`, discards in
//! `discard.rs`.
//!
//! Invariants:
//! - a page has one entry, a frame one page, an I/O owns the frames of its pages;
//! - a slot is in use exactly while an entry, a frame's copy or an I/O names it;
//! - a slot that is in a discard, or waits for one, is neither in use nor free;
//! - a page that is mapped writable has no slot; a page with a slot is clean;
//! - a task that waits is in exactly one list: for a frame, or of one I/O.

mod areas;
mod discard;
mod fault;
mod io;
mod mapping;
mod reclaim;
mod swapoff;
mod waits;

use std::collections::VecDeque;

use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, Span, Time};

use crate::area::{AREAS_MAX, Area, AreaState, Queue};
use crate::backend::{BATCH_PAGES_MAX, Op, StoreError, SwapBackend};
use crate::error::{AreaError, PageError, SwapoffError};
use crate::frames::FrameTable;
use crate::io_table::{IoTable, Task};
use crate::page::{AreaId, Mmu, PageId, Pte, TaskId};
use crate::slots::CLUSTER;
use crate::stats::PagerStats;

pub use waits::{IoPhase, PagerWait};

/// How pages are allocated: never from a reserve, whatever the ambient scope.
const PAGE_GFP: Gfp = Gfp::KERNEL.union(Gfp::NOMEMALLOC);

/// The sizes and bounds of a pager. All tables are sized by them at start.
#[derive(Clone, Copy, Debug)]
pub struct PagerConfig {
    /// Tasks; ids are below.
    pub max_tasks: u32,
    /// Pages of all mappings together.
    pub max_pages: u32,
    /// Pages of a readahead window, the faulting one included; 0 and 1 are no readahead, 16 the most.
    pub readahead_pages: u8,
    /// Pages being written at once, queued ones included: the bound that keeps page-outs from
    /// delaying page-ins by more than so much. At most a quarter of the pool is taken.
    pub writeback_pages: u32,
    /// How long nothing can be freed, for want of slots, before the fault that waits longest fails.
    pub oom_after: Span,
    /// Slots that a late copy of a write may still reach are kept from other pages. Off, it is an
    /// ablation: a late copy damages the page that has the slot then, and its checksum finds that.
    pub quarantine: bool,
}

impl PagerConfig {
    /// A pager of this size with the defaults: windows of 16 pages, 256 pages being written, 1 s.
    pub fn new(max_tasks: u32, max_pages: u32) -> PagerConfig {
        PagerConfig {
            max_tasks,
            max_pages,
            readahead_pages: BATCH_PAGES_MAX as u8,
            writeback_pages: 256,
            oom_after: Span::from_secs(1),
            quarantine: true,
        }
    }
}

/// What happened, as [`Pager::poll`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PagerEvent {
    /// A fault that waited has ended: the page is mapped.
    FaultDone {
        /// Whose fault.
        task: TaskId,
        /// The page.
        page: PageId,
    },
    /// A fault that waited has failed.
    FaultFailed {
        /// Whose fault.
        task: TaskId,
        /// The page.
        page: PageId,
        /// Why.
        error: PageError,
    },
    /// The area is in use.
    AreaOn {
        /// Which.
        area: AreaId,
    },
    /// The area was not taken into use.
    AreaRefused {
        /// Which.
        area: AreaId,
        /// Why.
        error: AreaError,
    },
    /// The area takes no more pages, since its store failed too often (fail over), or as a whole.
    AreaFailed {
        /// Which.
        area: AreaId,
        /// The last failure.
        error: StoreError,
    },
    /// The area was taken out.
    AreaOff {
        /// Which.
        area: AreaId,
    },
    /// The area could not be taken out and is in use again.
    SwapoffRefused {
        /// Which.
        area: AreaId,
        /// Why.
        error: SwapoffError,
    },
    /// More slots are in quarantine than the area may have: it takes no more pages.
    QuarantineFull {
        /// Which.
        area: AreaId,
        /// Slots in quarantine.
        slots: u32,
    },
}

/// The range of pages that a cluster of slots serves, and where.
#[derive(Clone, Copy, Debug)]
struct Hint {
    cluster: u32,
    area: AreaId,
}

/// The pager. See the module's description.
///
/// ```
/// use netswap_reserve::{PagePool, PoolConfig, Time};
/// use netswap_swap::*;
///
/// struct OnePage(Option<PageId>);
/// impl Mmu for OnePage {
///     fn map(&mut self, page: PageId, _writable: bool) { self.0 = Some(page) }
///     fn unmap(&mut self, _page: PageId) -> bool { self.0.take().is_some() }
///     fn test_and_clear_accessed(&mut self, _page: PageId) -> bool { false }
/// }
///
/// let pool = PagePool::new(PoolConfig::new(256));
/// let mut pager: Pager<MemBackend> = Pager::new(pool, PagerConfig::new(1, 64));
/// let mut mmu = OnePage(None);
/// let pages = pager.map_anonymous(4);
/// let fault = pager.handle_fault(Time::ZERO, &mut mmu, TaskId(0), pages.start, Access::Write);
/// assert_eq!(fault, Fault::Done);
/// assert_eq!(mmu.0, Some(pages.start));
/// pager.page(pages.start).unwrap()[0] = 1;
/// ```
#[derive(Debug)]
pub struct Pager<B> {
    pool: PagePool,
    config: PagerConfig,
    ptes: Box<[Pte]>,
    hints: Box<[Hint]>,
    frames: FrameTable,
    ios: IoTable,
    tasks: Box<[Task]>,
    /// Tasks that wait for a frame (or for an I/O entry), in order.
    frame_waiters: Queue,
    areas: Vec<Area<B>>,
    /// Areas by priority, highest first.
    by_priority: Vec<AreaId>,
    events: VecDeque<PagerEvent>,
    stats: PagerStats,
    /// Background reclaim runs until the high watermark.
    reclaiming: bool,
    /// The last full scan of reclaim freed nothing: no other before this, unless something changed.
    next_scan: Time,
    /// The last scan ended at dirty pages: the next need not wait so long once there is room to write.
    waits_for_writes: bool,
    /// The wait after the next scan that frees nothing.
    rescan: Span,
    /// That scan passed over dirty pages since no slot was to be had.
    starved: bool,
    /// When reclaim had nothing left to do for want of slots, since when.
    stuck_since: Option<Time>,
    /// The clock hand that gives up slots of clean pages.
    slot_hand: u32,
    /// The last mapping ended here.
    map_cursor: u32,
    shut_down: bool,
}

impl<B: SwapBackend> Pager<B> {
    /// A pager over `pool`.
    ///
    /// # Panics
    /// If `config` asks for more I/Os than fit 16 bits: about 60,000 tasks.
    pub fn new(pool: PagePool, config: PagerConfig) -> Pager<B> {
        // The first use of the checksum finds out what the processor can do.
        checksum(&[0; PAGE_SIZE]);
        let readahead_pages = config.readahead_pages.clamp(1, BATCH_PAGES_MAX as u8);
        // Most of memory has to stay where tasks can touch it.
        let writeback_pages = config.writeback_pages.min(pool.frames() / 4).max(1);
        let config = PagerConfig { readahead_pages, writeback_pages, ..config };
        // A read for each task, one read ahead for each, and the header of each area.
        let reads = 2 * config.max_tasks + AREAS_MAX as u32;
        // Half-filled batches must not make the bound of pages unreachable.
        let writes = (config.writeback_pages / 4).clamp(4, 1024);
        let regions = config.max_pages.div_ceil(CLUSTER) as usize;
        Pager {
            ptes: vec![Pte::Unmapped; config.max_pages as usize].into(),
            hints: vec![Hint { cluster: u32::MAX, area: AreaId(0) }; regions].into(),
            frames: FrameTable::new(pool.clone()),
            ios: IoTable::new(reads, writes),
            tasks: vec![Task::NEW; config.max_tasks as usize].into(),
            frame_waiters: Queue::EMPTY,
            areas: Vec::with_capacity(AREAS_MAX),
            by_priority: Vec::with_capacity(AREAS_MAX),
            events: VecDeque::with_capacity(config.max_tasks as usize + 8 * AREAS_MAX),
            stats: PagerStats::default(),
            reclaiming: false,
            next_scan: Time::ZERO,
            waits_for_writes: false,
            rescan: Span::from_millis(10),
            starved: false,
            stuck_since: None,
            slot_hand: 0,
            map_cursor: 0,
            shut_down: false,
            pool,
            config,
        }
    }

    /// Carries on: completions, reclaim, tasks that wait, areas. To be called after anything was
    /// handed in, when frames may have come back to the pool, and at [`Pager::poll_deadline`]; until
    /// it gives `None`.
    pub fn poll(&mut self, now: Time, mmu: &mut impl Mmu) -> Option<PagerEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let mut moved = self.poll_areas(now, mmu);
            moved |= self.poll_completions(now, mmu);
            moved |= self.serve_frame_waiters(now, mmu);
            moved |= self.background_reclaim(now, mmu);
            moved |= self.poll_swapoff(now, mmu);
            moved |= self.submit_all(now);
            moved |= self.poll_discards(now);
            moved |= self.poll_out_of_swap(now);
            if !moved && self.events.is_empty() {
                return None;
            }
        }
    }

    /// When [`Pager::poll`] wants to be called at the latest.
    pub fn poll_deadline(&self) -> Option<Time> {
        let backends = self.areas.iter().filter_map(|area| area.backend.poll_deadline());
        let retries = self.retry_deadline();
        let stuck = self.stuck_since.map(|since| since + self.config.oom_after);
        let waiting = self.frame_waiters.head != crate::page::NONE;
        let scan = (waiting && self.next_scan > Time::ZERO).then_some(self.next_scan);
        let checks = self.check_deadline();
        let discards = self.discard_deadline();
        backends.chain(retries).chain(stuck).chain(scan).chain(checks).chain(discards).min()
    }

    /// The content of a resident page; `None` if it is not resident. The pager believes that a page
    /// is only changed while it is mapped writable.
    pub fn page(&mut self, page: PageId) -> Option<&mut [u8; PAGE_SIZE]> {
        match *self.ptes.get(page.0 as usize)? {
            Pte::Resident { frame } => Some(self.frames.bytes(frame)),
            _ => None,
        }
    }

    /// The pool that its frames are of.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// What it did so far.
    pub fn stats(&self) -> &PagerStats {
        &self.stats
    }

    /// Pages in requests that write them out, queued or with the store.
    pub fn writeback_pages(&self) -> u32 {
        self.ios.writeback_pages
    }

    /// Whether no request is queued or with a store.
    pub fn is_idle(&self) -> bool {
        self.ios.in_use == 0 && !self.is_discarding()
    }

    /// Pages in memory (those in requests not counted).
    pub fn resident_pages(&self) -> u32 {
        self.frames.active_len() + self.frames.inactive_len()
    }

    /// Ends everything: backends are shut down, tasks that wait fail, all mappings go. Poll until
    /// `None` afterwards for the frames that stores still have.
    pub fn shutdown(&mut self, now: Time, mmu: &mut impl Mmu) {
        self.shut_down = true;
        self.give_back_gathered();
        for area in &mut self.areas {
            if matches!(area.state, AreaState::Starting | AreaState::Checking) {
                area.state = AreaState::Off;
            }
            area.backend.shutdown(now);
        }
        self.unmap(now, mmu, PageId(0)..PageId(self.config.max_pages));
        self.drop_queued();
        self.fail_all_waiters();
    }

    fn alloc_page(&self, gfp: Gfp) -> Option<Frame> {
        self.pool.alloc(PAGE_GFP | gfp).ok()
    }

    fn area(&self, id: AreaId) -> &Area<B> {
        &self.areas[usize::from(id.0)]
    }

    fn area_mut(&mut self, id: AreaId) -> &mut Area<B> {
        &mut self.areas[usize::from(id.0)]
    }

    /// Something changed that may let reclaim free frames again.
    fn reclaim_may_work(&mut self) {
        self.next_scan = Time::ZERO;
        self.rescan = Span::from_millis(10);
    }
}

/// The checksum of a page: CRC-64/NVME.
pub fn checksum(page: &[u8; PAGE_SIZE]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, page)
}

/// The index of an operation's queue.
fn queue_of(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write => 1,
    }
}
