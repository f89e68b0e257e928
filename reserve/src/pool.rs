//! The page pool: all the memory that a host may use, with watermarks and an emergency floor.
//!
//! ```text
//!   free frames
//!   high ────  background reclaim stops
//!   low  ────  background reclaim starts; guesses (readahead) stop
//!   min  ────  ordinary allocations stop              = floor + reserved + headroom
//!   atomic ──  allocations that cannot wait stop      = floor + reserved + headroom / 2
//!   reserved   promised to reservations (see `reservation`), mostly 0
//!   floor ───  nothing but charged emergency allocations goes below
//!   0
//! ```
//!
//! The floor is an absolute number, the limit of the reserve tree's root: marks that are a share of
//! memory guarantee no minimum.
//!
//! A pool may be used from many threads. Decision, charge and frame are one step under one short spin
//! lock, so the floor holds whatever runs beside; with [`PoolConfig::magazine`] above 0 each thread
//! keeps a few frames for itself and does without the lock most of the time.

mod tree;

use std::fmt;
use std::ptr::NonNull;

use crate::backing::{Backing, BackingConfig, BackingError};
use crate::frame::{Frame, FrameId, FrameRun};
use crate::gfp::Gfp;
use crate::inner::Caller;
pub(crate) use crate::inner::Inner;
#[cfg(not(loom))]
use crate::inner::MAGAZINE_MAX;
use crate::magazine;
use crate::queue::Line;
use crate::reserves::ReserveId;
use crate::scope;
use crate::stats::PoolStats;
use crate::sync::atomic::Ordering;

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// All frames of the pool.
    pub frames: u32,
    /// Frames between the emergency floor and the min watermark.
    pub headroom: u32,
    /// Frames between min and low, where background reclaim starts.
    pub low_gap: u32,
    /// Frames between low and high, where background reclaim stops.
    pub high_gap: u32,
    /// Frames a thread may hold back for its own next allocations; at most 64 take effect. It does so
    /// above the low watermark only, and they count as taken. 0 keeps all counts exact at every
    /// instant, which a simulation wants.
    pub magazine: u32,
    /// Where the memory comes from.
    pub backing: BackingConfig,
    /// Ablation: without it there is no emergency floor, and an entitled *scope* may take every frame
    /// uncharged, as a kernel without reserves would let it; entitlement by a single call is worth
    /// nothing.
    pub reserve: bool,
    /// Ablation: without it, entering an emergency scope entitles to nothing.
    pub scope: bool,
}

impl PoolConfig {
    /// A pool of `frames` frames with watermarks in the proportions the kernel uses.
    pub fn new(frames: u32) -> PoolConfig {
        let headroom = (frames / 128).clamp(16, 1024);
        PoolConfig {
            frames,
            headroom,
            low_gap: headroom / 2,
            high_gap: headroom / 2,
            magazine: 32,
            backing: BackingConfig::default(),
            reserve: true,
            scope: true,
        }
    }
}

/// The watermarks of a pool, in free frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Only charged emergency allocations go below.
    pub floor: u32,
    /// Frames promised to reservations and not drawn yet. They lie above the floor and below the other
    /// marks.
    pub reserved: u32,
    /// Atomic allocations stop here: floor, reserved, and half of the headroom.
    pub atomic: u32,
    /// Ordinary allocations stop here: floor, reserved, and headroom.
    pub min: u32,
    /// Background reclaim starts below this.
    pub low: u32,
    /// Background reclaim stops here.
    pub high: u32,
}

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A pool has at least one frame.
    #[error("a pool needs at least one frame")]
    NoFrames,
    /// Frame numbers are below 2^32 - 1.
    #[error("{frames} frames are more than a pool can number")]
    TooManyFrames {
        /// Frames asked for.
        frames: u32,
    },
    /// The memory could not be had.
    #[error(transparent)]
    Backing(#[from] BackingError),
}

/// Why a frame could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Free memory is at the caller's watermark, and it is not entitled to a reserve.
    #[error("{free} frames free, this allocation stops at {watermark}")]
    AtWatermark {
        /// Frames free.
        free: u32,
        /// The watermark this caller stops at.
        watermark: u32,
    },
    /// The caller is entitled, but its reserve is used up (or not connected).
    #[error("the reserve this allocation is entitled to is used up")]
    ReserveUsedUp {
        /// The reserve that was to be charged.
        reserve: ReserveId,
    },
    /// No frame is free at all; for a run: no contiguous frames are.
    #[error("no frame is free")]
    Exhausted,
}

/// All the memory that a host, real or simulated, may use. Cloning gives another handle.
///
/// When the last handle goes while frames or charges are still out, the memory stays mapped until they
/// are back, and a warning is traced. Frames that are parked go with the last handle.
///
/// ```
/// use netswap_reserve::{EmergencyScope, Gfp, PagePool, PoolConfig, ReserveId};
///
/// let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(256) });
/// let out = pool.add_reserve(ReserveId::ROOT, "swap.out", 8);
/// pool.connect(out)?;
///
/// // Ordinary callers take what is there, down to min ...
/// let mut taken = Vec::new();
/// while let Ok(frame) = pool.alloc(Gfp::KERNEL) {
///     taken.push(frame);
/// }
/// assert_eq!(pool.free_frames(), pool.watermarks().min);
///
/// // ... and work that frees memory goes on below.
/// let _scope = EmergencyScope::enter(&pool, out);
/// let frame = pool.alloc(Gfp::KERNEL)?;
/// assert_eq!(frame.charged_to(), Some(out));
/// assert_eq!(pool.reserve_usage(out), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PagePool {
    // Counted in `handles`, which keeps the pool alive.
    inner: NonNull<Inner>,
}

// SAFETY: a handle is an address of `Inner`, which is made of atomics, a lock and a region that hands
// each frame to one owner; every method may run on any thread beside any other.
unsafe impl Send for PagePool {}
// SAFETY: as above.
unsafe impl Sync for PagePool {}

impl PagePool {
    /// A pool as `config` says.
    ///
    /// # Panics
    /// Where [`PagePool::try_new`] fails: with no frames, or if the memory cannot be mapped.
    pub fn new(config: PoolConfig) -> PagePool {
        match PagePool::try_new(config) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// A pool as `config` says. The region is mapped here; the system commits it when it is touched, or
    /// at once if [`PoolConfig::backing`] says so.
    ///
    /// # Errors
    /// When `config` asks for no frames, or for more than can be mapped.
    pub fn try_new(config: PoolConfig) -> Result<PagePool, PoolError> {
        #[cfg(not(loom))]
        const {
            assert!(MAGAZINE_MAX == 64, "the documentation of `magazine` says 64")
        };
        let inner = NonNull::from(Box::leak(Box::new(Inner::new(config)?)));
        Ok(PagePool { inner })
    }

    #[inline]
    pub(crate) fn inner(&self) -> &Inner {
        // SAFETY: this handle is counted, so the pool is alive at least as long as `self`.
        unsafe { self.inner.as_ref() }
    }

    #[inline]
    pub(crate) fn raw(&self) -> NonNull<Inner> {
        self.inner
    }

    #[inline]
    pub(crate) fn id(&self) -> u32 {
        self.inner().id
    }

    /// The memory that the frames lie in, in the order of their ids.
    pub fn backing(&self) -> &Backing {
        self.inner().region.backing()
    }

    /// All frames of the pool.
    pub fn frames(&self) -> u32 {
        self.inner().config.frames
    }

    /// Frames free now, those that this thread holds back included (but not those of other threads).
    pub fn free_frames(&self) -> u32 {
        let held = magazine::held(self);
        self.inner().lock().free + held
    }

    /// The fewest frames that were ever free on the shared list.
    pub fn lowest_free(&self) -> u32 {
        self.inner().lock().lowest_free
    }

    /// Counts every frame that comes back to the shared list: whoever waits for memory looks again
    /// when it has moved. What a thread keeps back is not counted, which happens above low only, where
    /// nobody waits.
    pub fn frees(&self) -> u64 {
        self.inner().lock().frees
    }

    /// Whether an allocation failed, or had to use a reserve, since the last call: reclaim should run.
    pub fn take_pressure(&self) -> bool {
        let pressure = &self.inner().pressure;
        pressure.load(Ordering::Relaxed) && pressure.swap(false, Ordering::Relaxed)
    }

    /// What the pool has gone through: waits, reclaim, drains.
    pub fn stats(&self) -> PoolStats {
        let waiting = self.inner().lock().waits.len(Line::Frames);
        self.inner().counters.stats(waiting)
    }

    /// The watermarks as they are now; they move with the floor.
    pub fn watermarks(&self) -> Watermarks {
        self.inner().lock().marks
    }

    /// Puts the frames that this thread holds back onto the shared list. A thread that ends does so by
    /// itself.
    pub fn flush_magazine(&self) {
        magazine::flush(self);
    }

    /// One frame, its content unspecified. Entitled if the ambient scope is of this pool or `gfp` has
    /// [`Gfp::MEMALLOC`] (then of the whole floor); [`Gfp::NOMEMALLOC`] beats both.
    ///
    /// # Errors
    /// When free memory is at the caller's watermark and it is not entitled, or its reserve is used up.
    #[inline]
    pub fn alloc(&self, gfp: Gfp) -> Result<Frame, AllocError> {
        self.alloc_as(gfp, || self.ambient(gfp))
    }

    /// One frame for a caller that is entitled to `reserve` whatever the ambient scope: the per-call
    /// entitlement, as the receive ring uses it.
    ///
    /// # Errors
    /// As [`PagePool::alloc`].
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    #[inline]
    pub fn alloc_from(&self, gfp: Gfp, reserve: ReserveId) -> Result<Frame, AllocError> {
        self.alloc_as(gfp, || Caller { entitled: Some(reserve), by_scope: false })
    }

    /// Up to `n` frames for one turn of the lock, each as [`PagePool::alloc_from`] would give it;
    /// `out` gets them as they come.
    ///
    /// # Errors
    /// Why the first frame that could not be had was refused; those before it were given.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn alloc_burst_from(
        &self,
        gfp: Gfp,
        reserve: ReserveId,
        n: usize,
        mut out: impl FnMut(Frame),
    ) -> Result<(), AllocError> {
        let caller = Caller { entitled: Some(reserve), by_scope: false };
        let mut left = n;
        while left > 0 {
            // `out` is the caller's code and never runs under the lock.
            let mut indices = [0; BURST];
            let mut got = 0;
            let result = self.inner().take_burst(gfp, caller, left.min(BURST), |index| {
                indices[got] = index;
                got += 1;
            });
            for &index in &indices[..got] {
                // SAFETY: `take_burst` handed these frames to this call, each once.
                out(unsafe { Frame::new(self.inner, FrameId(index)) });
            }
            left -= got;
            match result {
                // Others may hold back what this caller lacks; it does so once.
                Err(_) if magazine::gather(self.inner(), gfp) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Frees frames at one turn of the lock for many. Frames of another pool are freed there.
    pub fn free_burst(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut indices = [0; BURST];
        let mut held = 0;
        let flush = |indices: &[u32]| {
            if !indices.is_empty() {
                // SAFETY: these frames are of this pool, and their handles were given up below.
                unsafe { Inner::free_many(self.inner, indices.iter().copied()) }
            }
        };
        for frame in frames {
            if let Some(id) = frame.into_id_of(self) {
                indices[held] = id.0;
                held += 1;
                if held == BURST {
                    flush(&indices);
                    held = 0;
                }
            }
        }
        flush(&indices[..held]);
    }

    /// Who a call with `gfp` is, by scope and flags.
    #[inline]
    pub(crate) fn ambient(&self, gfp: Gfp) -> Caller {
        let ambient = scope::current(self.id());
        let call = gfp.contains(Gfp::MEMALLOC).then_some(ReserveId::ROOT);
        Caller { entitled: ambient.or(call), by_scope: ambient.is_some() }
    }

    /// Whether free memory is above the low watermark and nobody drains, as last written under the lock.
    #[inline]
    pub(crate) fn plenty(&self) -> bool {
        self.inner().door.is_open()
    }

    // A call of its own: inlined, its result would be copied through memory once more.
    #[inline(never)]
    pub(crate) fn alloc_as(
        &self,
        gfp: Gfp,
        caller: impl FnOnce() -> Caller,
    ) -> Result<Frame, AllocError> {
        if let Some(index) = magazine::take(self.inner()) {
            // SAFETY: the frame was taken out of this thread's magazine by this call.
            return Ok(unsafe { Frame::new(self.inner, FrameId(index)) });
        }
        self.alloc_shared(gfp, caller)
    }

    /// Out of line, so that the way through the magazine stays short.
    #[inline(never)]
    fn alloc_shared(&self, gfp: Gfp, caller: impl FnOnce() -> Caller) -> Result<Frame, AllocError> {
        let (inner, caller) = (self.inner(), caller());
        let index = if inner.door.is_open_to_stocks() {
            magazine::refill(self, gfp, caller)
        } else {
            inner.take(gfp, caller).or_else(|error| magazine::retry(self, gfp, caller, error))
        }?;
        // SAFETY: the frame was taken off the list by this call.
        Ok(unsafe { Frame::new(self.inner, FrameId(index)) })
    }

    /// Takes `frames` contiguous frames out of the pool for good, for buffers that live as long as
    /// their owner: they come back when the run is dropped. To be called at start: it may walk over
    /// the whole pool under the lock.
    ///
    /// # Errors
    /// When no contiguous frames are free above the min watermark. Nothing is changed then.
    pub fn set_aside(&self, frames: u32) -> Result<FrameRun, AllocError> {
        let first = match self.take_run(frames) {
            Err(_) if magazine::gather(self.inner(), Gfp::KERNEL) => self.take_run(frames),
            other => other,
        }?;
        // SAFETY: `take_run` handed these frames to this call; of an empty run none is used.
        Ok(unsafe { FrameRun::new(self.clone(), FrameId(first), frames) })
    }

    fn take_run(&self, frames: u32) -> Result<u32, AllocError> {
        if frames == 0 { Ok(0) } else { self.inner().take_run(frames) }
    }

    /// Takes back the ownership of a frame that was parked by [`Frame::park`]; `None` if `id` is not
    /// parked (or is not of this pool), so ownership cannot be taken twice.
    #[inline]
    pub fn unpark(&self, id: FrameId) -> Option<Frame> {
        if id.0 >= self.frames() || !self.inner().unpark(id.0) {
            return None;
        }
        // SAFETY: the frame was parked, which left its ownership with the pool, and `unpark` gives it
        // to one caller only.
        Some(unsafe { Frame::new(self.inner, id) })
    }
}

/// Frames that one turn of the lock moves at most: bounds how long it is held. Picked by eye, as long
/// as a device burst.
const BURST: usize = 32;

impl Clone for PagePool {
    #[inline]
    fn clone(&self) -> PagePool {
        let before = self.inner().handles.fetch_add(1, Ordering::Relaxed);
        assert!(before < usize::MAX / 2, "too many handles of one pool");
        PagePool { inner: self.inner }
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        if self.inner().handles.fetch_sub(1, Ordering::Release) == 1 {
            // Whatever the other handles did happened before this. A load, as the thread sanitizer knows no
            // fences.
            self.inner().handles.load(Ordering::Acquire);
            // SAFETY: that was the last handle, and it is not used again.
            unsafe { Inner::close(self.inner) }
        }
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}: {} of {} frames free", self.id(), self.free_frames(), self.frames())
    }
}

#[cfg(test)]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
