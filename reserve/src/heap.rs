//! Memory of a pool for collections: the `Allocator` of the crate `allocator-api2`.
//!
//! So hashbrown's maps and allocator-api2's vectors live in pool memory, and on the floor of it if the heap
//! is entitled: a table that the paging path uses is paid from the reserve like everything else there. No
//! byte of a block comes from the process's own heap; the heap's own tables do, at start.
//!
//! | block | lies in | taken from the pool |
//! |---|---|---|
//! | no bytes | nothing | never |
//! | up to 2032 bytes | a slab slot of one of 23 size classes | a page at a time, when needed |
//! | up to a page | a page of its own | when needed |
//! | above a page, or aligned beyond one | contiguous frames of the *run area* | at start, see below |
//!
//! Contiguous frames cannot be had once memory is in use, so [`HeapConfig::run_frames`] of them are set
//! aside when the heap is made, and stay. They are given out first fit. When no run in there is long
//! enough, the allocation fails, and is counted ([`HeapUsage::run_failures`]); it never goes elsewhere. A
//! collection that is made at its full size at start takes its run then, and keeps it. One that grows by
//! doubling needs the old and the new block at once, except where the frames behind the old one are
//! free: then it grows in place.
//!
//! Where a block lies is told by its address: in the run area, at the start of a page (slots never are:
//! there is the header), or else in a slab page.

mod classes;
mod runs;

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use allocator_api2::alloc::{AllocError, Allocator};

pub use self::classes::HeapEstimate;
use self::classes::{CLASSES, Kind, kind};
use self::runs::RunArea;
use crate::PAGE_SIZE;
use crate::frame::Frame;
use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::pool::{self, PagePool};
use crate::reserves::ReserveId;
use crate::slab::{Core, RawCache, SlabConfig};

/// How a heap is set up.
#[derive(Clone, Copy, Debug)]
pub struct HeapConfig {
    /// What its allocations may do.
    pub gfp: Gfp,
    /// The reserve that every allocation is entitled to. Without one it is as the ambient scope and `gfp`
    /// say at each call.
    pub reserve: Option<ReserveId>,
    /// Frames set aside for blocks above a page, for as long as the heap lives.
    pub run_frames: u32,
    /// The caches of its size classes.
    pub slab: SlabConfig,
}

impl Default for HeapConfig {
    /// Ordinary memory, nothing set aside.
    fn default() -> HeapConfig {
        HeapConfig { gfp: Gfp::KERNEL, reserve: None, run_frames: 0, slab: SlabConfig::default() }
    }
}

/// A heap in a pool. Cloning gives another handle, as collections want one each; its memory goes back when
/// blocks are freed, and the run area when the last handle goes.
///
/// ```
/// use hashbrown::{DefaultHashBuilder, HashMap};
/// use netswap_reserve::{HeapConfig, PagePool, PoolConfig, ReserveHeap};
///
/// let pool = PagePool::new(PoolConfig::new(1024));
/// let heap = ReserveHeap::new(&pool, HeapConfig { run_frames: 64, ..HeapConfig::default() })?;
/// let hasher = DefaultHashBuilder::default();
/// let mut map = HashMap::with_capacity_and_hasher_in(1000, hasher, heap.clone());
/// map.insert(7u64, 49u64);
/// assert_eq!(map.get(&7), Some(&49));
/// // 2048 buckets of 16 bytes and their control bytes: a run.
/// assert_eq!(heap.usage().run_frames_used, 9);
/// // What does not fit is an error, not a visit to the process's heap.
/// assert!(map.try_reserve(100_000).is_err());
/// drop(map);
/// assert_eq!(heap.usage().run_frames_used, 0);
/// # Ok::<(), netswap_reserve::AllocError>(())
/// ```
#[derive(Clone)]
pub struct ReserveHeap {
    shared: Arc<Shared>,
}

struct Shared {
    caches: [RawCache; CLASSES],
    runs: RunArea,
    pool: PagePool,
    gfp: Gfp,
    reserve: Option<ReserveId>,
    whole_pages: AtomicU32,
    failures: AtomicU64,
    run_failures: AtomicU64,
}

/// What a heap holds, and what it could not give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUsage {
    /// Blocks in slots of size classes.
    pub objects: u32,
    /// Bytes of these slots; what was asked for is at most that.
    pub object_bytes: u64,
    /// Free slots that threads keep, see [`SlabUsage::cached`](crate::SlabUsage::cached).
    pub cached: u32,
    /// Pages that slots lie in, free slots included.
    pub slab_pages: u32,
    /// Blocks with a page of their own.
    pub whole_pages: u32,
    /// Frames of the run area.
    pub run_frames: u32,
    /// Frames of it that blocks have now.
    pub run_frames_used: u32,
    /// The most that they ever had at once.
    pub run_frames_peak: u32,
    /// The longest run that could be had now, in frames.
    pub run_frames_longest: u32,
    /// Allocations of at most a page that failed.
    pub failures: u64,
    /// Allocations that found no run long enough.
    pub run_failures: u64,
}

impl ReserveHeap {
    /// A heap in `pool` as `config` says. To be made at start, as the run area needs contiguous frames.
    ///
    /// # Errors
    /// As [`PagePool::set_aside`], when the run area cannot be had.
    ///
    /// # Panics
    /// When `config.reserve` is of another pool: at the first allocation that needs it.
    pub fn new(pool: &PagePool, config: HeapConfig) -> Result<ReserveHeap, pool::AllocError> {
        let runs = RunArea::new(pool, config.run_frames)?;
        let cache = |class| RawCache::new(pool, classes::slots(class), &config.slab);
        let shared = Shared {
            caches: std::array::from_fn(cache),
            runs,
            pool: pool.clone(),
            gfp: config.gfp,
            reserve: config.reserve,
            whole_pages: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            run_failures: AtomicU64::new(0),
        };
        Ok(ReserveHeap { shared: Arc::new(shared) })
    }

    /// The most pages and frames of runs that blocks of these layouts need in an empty heap, each
    /// counted as often as there are such blocks at once. Exact when all of them are there.
    pub fn estimate(layouts: impl IntoIterator<Item = Layout>) -> HeapEstimate {
        classes::estimate(layouts)
    }

    /// Pages that suffice for any blocks of `smallest` to [`PAGE_SIZE`] bytes, of `bytes` bytes together
    /// and aligned to 16 at most, allocated in an empty heap: never too few. Up to about twice what
    /// `bytes` alone would fill, more where `smallest` is below 16; [`ReserveHeap::estimate`] knows better.
    ///
    /// Blocks that were freed leave room for others of their size class only, so blocks that come and go
    /// count with the most bytes that each class ever has.
    pub fn estimate_pages_for_bytes(bytes: usize, smallest: usize) -> u32 {
        classes::estimate_bytes(bytes, smallest)
    }

    /// What it holds now. Walks over the run area under its lock: for reports.
    pub fn usage(&self) -> HeapUsage {
        let shared = &*self.shared;
        let (used, peak, longest) = shared.runs.usage();
        let mut usage = HeapUsage {
            whole_pages: shared.whole_pages.load(Ordering::Relaxed),
            run_frames: shared.runs.frames(),
            run_frames_used: used,
            run_frames_peak: peak,
            run_frames_longest: longest,
            failures: shared.failures.load(Ordering::Relaxed),
            run_failures: shared.run_failures.load(Ordering::Relaxed),
            ..HeapUsage::default()
        };
        for (class, cache) in shared.caches.iter().enumerate() {
            let of = cache.usage();
            usage.objects += of.objects;
            usage.object_bytes += u64::from(of.objects) * u64::from(classes::slots(class).slot);
            usage.cached += of.cached;
            usage.slab_pages += of.pages;
        }
        usage
    }

    /// Takes back free slots that threads keep, as [`SlabCache::shrink`](crate::SlabCache::shrink) does.
    /// Returns the pages that went back to the pool.
    pub fn shrink_caches(&self) -> u32 {
        self.shared.caches.iter().map(RawCache::shrink).sum()
    }
}

impl Shared {
    fn caller(&self) -> Caller {
        match self.reserve {
            Some(_) => Caller { entitled: self.reserve, by_scope: false },
            None => self.pool.ambient(self.gfp),
        }
    }

    fn alloc(&self, layout: Layout) -> Option<NonNull<[u8]>> {
        let kind = kind(layout);
        let block = match kind {
            // Not null, and aligned; nobody reads it.
            Kind::Nothing => NonNull::without_provenance(layout.align().try_into().ok()?),
            Kind::Slot(class) => {
                let core = self.caches[usize::from(class)].core();
                core.alloc(self.gfp, || self.caller()).ok()?
            }
            Kind::Page => {
                let frame = self.pool.alloc_as(self.gfp, || self.caller()).ok()?;
                self.whole_pages.fetch_add(1, Ordering::Relaxed);
                self.pool.inner().region.data(std::mem::ManuallyDrop::new(frame).id().index())
            }
            Kind::Run(frames) => self.runs.alloc(frames, layout.align())?,
        };
        Some(NonNull::slice_from_raw_parts(block, kind.bytes()))
    }

    #[cold]
    fn failed(&self, layout: Layout) -> AllocError {
        let run = matches!(kind(layout), Kind::Run(_));
        let counter = if run { &self.run_failures } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
        AllocError
    }

    /// # Safety
    /// `block` is one of this heap that `layout` fits, and given up here.
    unsafe fn free(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        if let Some(frame) = self.runs.frame_of(block) {
            self.runs.free(frame, layout.size().div_ceil(PAGE_SIZE) as u32);
        } else if block.addr().get().is_multiple_of(PAGE_SIZE) {
            self.whole_pages.fetch_sub(1, Ordering::Relaxed);
            // A frame's bytes are initialised; what lay here may have had padding.
            // SAFETY: the block is a page of its own, a frame that this heap owned and gives up.
            unsafe {
                block.write_bytes(0, PAGE_SIZE);
                drop(Frame::new(self.pool.raw(), runs::frame_at(&self.pool, block)));
            }
        } else {
            // SAFETY: everything else is a slot of one of the caches.
            unsafe { Core::free(block) }
        }
    }

    /// The bytes that a block has, in place.
    ///
    /// # Safety
    /// `block` is one of this heap that `layout` fits.
    unsafe fn room(&self, block: NonNull<u8>, layout: Layout) -> usize {
        if layout.size() == 0 {
            0
        } else if self.runs.frame_of(block).is_some() {
            layout.size().next_multiple_of(PAGE_SIZE)
        } else if block.addr().get().is_multiple_of(PAGE_SIZE) {
            PAGE_SIZE
        } else {
            // SAFETY: everything else is a slot of one of the caches, and out.
            unsafe { Core::slot_of(block) }
        }
    }

    /// Makes a run of `room` bytes so many pages that `size` bytes fit, in place. `None` if the block is
    /// not a run, or the frames behind it are taken.
    fn resize_run(&self, block: NonNull<u8>, room: usize, size: usize) -> Option<NonNull<[u8]>> {
        let start = self.runs.frame_of(block)?;
        let want = u32::try_from(size.div_ceil(PAGE_SIZE)).ok()?;
        let done = self.runs.resize(start, (room / PAGE_SIZE) as u32, want);
        done.then(|| NonNull::slice_from_raw_parts(block, want as usize * PAGE_SIZE))
    }

    /// A new block with what is in the old one, which is freed.
    ///
    /// # Safety
    /// `block` is one of this heap that `old` fits, and given up if a new one is returned.
    unsafe fn relocate(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<NonNull<[u8]>> {
        let to = self.alloc(new)?;
        // SAFETY: both blocks have so many bytes, and the new one is nobody else's.
        unsafe {
            block.copy_to_nonoverlapping(to.cast(), old.size().min(new.size()));
            self.free(block, old);
        }
        Some(to)
    }
}

// SAFETY: a block is a slot, a frame or a run that was taken out of the pool and is not given out again
// until it is freed; moving or cloning the handle moves no block; all clones share one `Shared`, so any of
// them frees what another allocated. Blocks are valid until the last handle goes, and those that are
// forgotten even longer.
unsafe impl Allocator for ReserveHeap {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.shared.alloc(layout).ok_or_else(|| self.shared.failed(layout))
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: as the trait demands of the caller.
        unsafe { self.shared.free(block, layout) }
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let shared = &*self.shared;
        let aligned = block.addr().get().is_multiple_of(new.align());
        // SAFETY: as the trait demands of the caller.
        let room = unsafe { shared.room(block, old) };
        if aligned && new.size() <= room {
            return Ok(NonNull::slice_from_raw_parts(block, room));
        }
        if aligned
            && old.size() > 0
            && let Some(grown) = shared.resize_run(block, room, new.size())
        {
            return Ok(grown);
        }
        // SAFETY: as the trait demands of the caller.
        unsafe { shared.relocate(block, old, new) }.ok_or_else(|| shared.failed(new))
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as the trait demands of the caller.
        let grown = unsafe { self.grow(block, old, new) }?;
        // SAFETY: the block has `grown.len()` bytes, of which the first `old.size()` are kept.
        unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, grown.len() - old.size()) };
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let shared = &*self.shared;
        // SAFETY: as the trait demands of the caller.
        let room = unsafe { shared.room(block, old) };
        let in_place = block.addr().get().is_multiple_of(new.align()) && new.size() > 0;
        // Half of the room is worth a move; less is not. If there is nowhere to go, it stays.
        if !in_place || kind(new).bytes() <= room / 2 && !matches!(kind(new), Kind::Run(_)) {
            // SAFETY: as the trait demands of the caller.
            match unsafe { shared.relocate(block, old, new) } {
                Some(to) => return Ok(to),
                None if !in_place => return Err(shared.failed(new)),
                None => {}
            }
        }
        let shrunk = shared.resize_run(block, room, new.size());
        Ok(shrunk.unwrap_or_else(|| NonNull::slice_from_raw_parts(block, room)))
    }
}

impl fmt::Debug for ReserveHeap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReserveHeap").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
