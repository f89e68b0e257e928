//! Reservations: memory promised up front, so that a later allocation cannot fail. The end of
//! `GFP_NOFAIL`.
//!
//! An operation that must not fail half-way says first what it may consume for good in the worst case:
//! pages, and objects of slab caches. [`PagePool::reserve`] promises that, or fails while backing out is
//! still possible. After it, [`Reservation::page`] and [`Reservation::object`] return the thing itself.
//!
//! It is accounting, not preallocation: no frame is moved. The pool keeps one number, the frames that
//! are promised and not drawn yet, and by that much the watermarks of all other callers are higher. So
//! what is freed tops it up by itself, and only what goes through the handle dips in. Memory that can be
//! reclaimed and is read on the way (of a thousand blocks read, ten may be changed) is allocated in the
//! ordinary way and is not charged to it. Overestimating costs others some memory for a while;
//! what is left is given back with the handle.
//!
//! Invariants:
//! - The pool keeps at least what the handle still owes (*needed*): the pages left, and for each cache
//!   the pages that the objects left would need, each object of them on a page that nobody else takes
//!   slots from. So a draw finds a frame: see the invariants in `inner`.
//! - Nothing else can use it up: ordinary callers stop above it, charges are covered by the floor, another
//!   reservation adds to the number. An emergency scope that is entered in between changes nothing
//!   for the draw, which does not ask who is entitled.
//! - Frames in the magazines of other threads count as taken; nothing rests on them.
//!
//! With magazines, a draw takes a frame that this thread holds back, if there is one, and the pool's
//! number lags behind by up to 32 frames a handle while memory is plentiful: it is too high, never
//! too low. Below the low watermark, and without magazines, it is exact.
//!
//! Where the promise comes from follows the order of an allocation: from ordinary memory; else, if
//! the caller is entitled, as a whole from its reserve. Then the handle holds a charge of as many frames,
//! which goes over to the frames drawn (or is released, if an ordinary allocation would succeed by
//! then).
//!
//! A thread that waits for a reservation while it holds another one, or frames, holds and waits: that is
//! how looping allocations deadlock. Reserve once, for the worst case, before anything is taken;
//! [`Reservation::split`] hands a part to an inner scope.

mod promise;
mod spec;

use std::fmt;
use std::ptr::NonNull;

use crate::frame::{Frame, FrameId};
use crate::gfp::Gfp;
use crate::inner::{Caller, Inner};
use crate::magazine;
use crate::pool::PagePool;
use crate::queue::{Node, Want};
use crate::reclaim;
use crate::reserves::ReserveId;
use crate::slab::{SlabBox, SlabCache};
use crate::state::State;
use crate::stock::Section;
use crate::wait::{Deadline, Waiter};

use promise::charged_of;
pub(crate) use promise::promise_code;
pub use spec::{CACHES_MAX, ReservationSpec};
use spec::{Part, is_same};

/// Frames by which the pool's number may lag behind a handle, told in the module's text: bounds what others are kept from, and
/// shares a turn of the lock among as many draws. As much as a magazine gets at once; picked by eye.
const LAG_MAX: u32 = 32;

/// Why nothing was reserved. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReservationError {
    /// Too few frames are free above the watermark now, and the reserve that the caller may use has not
    /// enough left. Reclaim was asked to run.
    #[error("cannot reserve {wanted} frames: {free} free, others stop at {watermark}")]
    Short {
        /// Frames wanted.
        wanted: u32,
        /// Frames free.
        free: u32,
        /// The min watermark.
        watermark: u32,
    },
    /// More than the pool has above its floor and headroom: no waiting will help.
    #[error("cannot ever reserve {wanted} frames: {most} is the most this pool could")]
    TooLarge {
        /// Frames wanted.
        wanted: u32,
        /// Frames that could be reserved if nothing else was in use.
        most: u32,
    },
}

/// What a pool knows of its reservations; under its lock.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// Frames promised from ordinary memory and not drawn yet.
    pub(crate) frames: u32,
    peak: u32,
    granted: u64,
    failures: u64,
    waits: u64,
}

/// The counters of a pool's reservations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReservationStats {
    /// Frames promised from ordinary memory and not drawn yet. With magazines it lags: see the module.
    pub frames: u32,
    /// The most that this ever was.
    pub peak: u32,
    /// Reservations made.
    pub granted: u64,
    /// Attempts that failed, those of waiters included.
    pub failures: u64,
    /// Reservations that had to wait.
    pub waits: u64,
}

/// Memory promised by a pool. Dropping it gives back what is left.
///
/// ```
/// use netswap_reserve::{Gfp, PagePool, PoolConfig, ReservationSpec, SlabCache};
///
/// let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(256) });
/// let entries = SlabCache::<[u64; 16]>::new(&pool);
///
/// // May fail, and nothing is half done.
/// let mut all = pool.reserve(ReservationSpec::pages(2).objects(&entries, 3))?;
///
/// // Somebody else takes all that can be had ...
/// let others: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
///
/// // ... and still, no `Result`.
/// let page = all.page();
/// let entry = all.object(&entries, [7; 16]);
/// assert_eq!((all.pages_left(), all.objects_left(&entries)), (1, 2));
/// # drop((page, entry, others));
/// # Ok::<(), netswap_reserve::ReservationError>(())
/// ```
#[must_use = "what is reserved is given back when this is dropped"]
pub struct Reservation<'c> {
    // Counted in the pool's `charges`, which keeps the pool alive.
    pool: NonNull<Inner>,
    pages: u32,
    /// Frames that the objects left need.
    for_objects: u32,
    /// Frames that the pool keeps for this: `pages + for_objects`, and the lag.
    backed: u32,
    /// The node that is charged with `backed`, if it is not ordinary memory.
    charged: Option<u16>,
    parts: [Option<Part<'c>>; CACHES_MAX],
}

// SAFETY: numbers, a pool that is usable from every thread and that the handle keeps alive, and shared
// references to caches that are `Sync`.
unsafe impl Send for Reservation<'_> {}
// SAFETY: as above; a shared handle gives out counters only.
unsafe impl Sync for Reservation<'_> {}

impl PagePool {
    /// Promises what `spec` says: from ordinary memory, else, if the ambient emergency scope is of this
    /// pool, from its reserve. Does not wait.
    ///
    /// # Errors
    /// When neither has enough for all of it. Nothing is reserved then.
    ///
    /// # Panics
    /// When a cache of `spec` is in another pool.
    pub fn reserve<'c>(
        &self,
        spec: ReservationSpec<'c>,
    ) -> Result<Reservation<'c>, ReservationError> {
        self.reserve_as(spec, self.ambient(Gfp::KERNEL))
    }

    /// As [`PagePool::reserve`] for a caller that is entitled to `reserve` whatever the ambient scope.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there, and when `reserve` is of another pool.
    pub fn reserve_from<'c>(
        &self,
        spec: ReservationSpec<'c>,
        reserve: ReserveId,
    ) -> Result<Reservation<'c>, ReservationError> {
        self.reserve_as(spec, Caller { entitled: Some(reserve), by_scope: false })
    }

    /// As [`PagePool::reserve`], but waits until `deadline` (a `Duration` or an `Instant`), and reclaims
    /// meanwhile, as [`PagePool::alloc_wait`] does. Waiters for reservations and for changes of the tree are
    /// served in order of arrival, entitled ones first; all who wait for a frame come before them.
    ///
    /// To be called before anything is taken that others may wait for: see the module.
    ///
    /// # Errors
    /// [`ReservationError::Short`] after the deadline, and at once from inside reclaim;
    /// [`ReservationError::TooLarge`] at once.
    ///
    /// # Panics
    /// As [`PagePool::reserve`].
    pub fn reserve_until<'c>(
        &self,
        spec: ReservationSpec<'c>,
        deadline: impl Into<Deadline>,
    ) -> Result<Reservation<'c>, ReservationError> {
        self.check(&spec);
        let (deadline, caller) = (deadline.into(), self.ambient(Gfp::KERNEL));
        let (inner, frames) = (self.inner(), spec.frames());
        let at_once = {
            let state = inner.lock();
            !state.waits.is_behind(caller) || inner.is_too_large(&state, frames, caller).is_some()
        };
        if at_once || reclaim::is_inside() {
            match self.reserve_as(spec, caller) {
                Err(ReservationError::Short { .. }) if !reclaim::is_inside() => {}
                done => return done,
            }
        }
        let node = Node::new(Want::Promise(frames), Gfp::KERNEL | reclaim::limits(), caller);
        let note = |state: &mut State| {
            state.reservations.waits += 1;
            if let Some(reserve) = caller.entitled {
                state.tree.note_wait(reserve.node(self.id()));
            }
        };
        let granted = match Waiter::served_or_queued(self, &node, note) {
            Ok(granted) => granted,
            Err(waiter) => match waiter.wait(deadline) {
                Ok(granted) => granted,
                Err(_) => return self.reserve_as(spec, caller),
            },
        };
        inner.tell_alarms();
        Ok(self.reservation(spec, charged_of(granted)))
    }

    fn reserve_as<'c>(
        &self,
        spec: ReservationSpec<'c>,
        caller: Caller,
    ) -> Result<Reservation<'c>, ReservationError> {
        self.check(&spec);
        let frames = spec.frames();
        let charged = match self.inner().promise(frames, caller) {
            // What threads hold back may be what is missing.
            Err(_) if magazine::gather(self.inner(), Gfp::KERNEL) => {
                self.inner().promise(frames, caller)?
            }
            other => other?,
        };
        Ok(self.reservation(spec, charged))
    }

    fn check(&self, spec: &ReservationSpec<'_>) {
        for part in spec.parts.iter().flatten() {
            assert!(part.cache.is_of(self.id()), "the cache is in another pool");
        }
    }

    /// The handle of a promise that was made.
    fn reservation<'c>(&self, spec: ReservationSpec<'c>, charged: Option<u16>) -> Reservation<'c> {
        let backed = spec.frames();
        Reservation {
            pool: self.raw(),
            pages: spec.pages,
            for_objects: backed - spec.pages,
            backed,
            charged,
            parts: spec.parts,
        }
    }

    /// What is reserved now, and what was.
    pub fn reservation_stats(&self) -> ReservationStats {
        let state = self.inner().lock();
        let Reservations { frames, peak, granted, failures, waits } = state.reservations;
        ReservationStats { frames, peak, granted, failures, waits }
    }
}

impl<'c> Reservation<'c> {
    #[inline]
    fn inner(&self) -> &Inner {
        // SAFETY: this handle is counted in the pool's `charges`, so the pool is alive.
        unsafe { self.pool.as_ref() }
    }

    /// Pages that can still be drawn.
    #[inline]
    pub fn pages_left(&self) -> u32 {
        self.pages
    }

    /// Objects of `cache` that can still be drawn.
    pub fn objects_left<T>(&self, cache: &SlabCache<T>) -> u32 {
        self.part_of(cache).and_then(|at| self.parts[at]).map_or(0, |part| part.objects)
    }

    /// The reserve that the promise is charged to, if it is not ordinary memory.
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.charged.map(|node| ReserveId::new(self.inner().id, node))
    }

    fn part_of<T>(&self, cache: &SlabCache<T>) -> Option<usize> {
        self.parts.iter().position(|p| p.as_ref().is_some_and(|p| is_same(p.cache, cache)))
    }

    /// One of the pages. Its content is unspecified.
    ///
    /// # Panics
    /// When none is left: the spec was not the worst case. Who does not know uses
    /// [`Reservation::try_page`].
    #[inline]
    pub fn page(&mut self) -> Frame {
        self.try_page().expect("a reservation is drawn from no more often than its spec says")
    }

    /// One of the pages, if one is left. What the promise covers cannot fail, so `None` says only that
    /// it was used up.
    #[inline]
    pub fn try_page(&mut self) -> Option<Frame> {
        self.pages = self.pages.checked_sub(1)?;
        Some(self.draw())
    }

    /// One of the objects of `cache`.
    ///
    /// # Panics
    /// When none is left, or `cache` is not in the spec. Who does not know uses
    /// [`Reservation::try_object`].
    #[inline]
    pub fn object<T: Send>(&mut self, cache: &SlabCache<T>, value: T) -> SlabBox<T> {
        match self.try_object(cache, value) {
            Ok(object) => object,
            Err(_) => panic!("a reservation is drawn from no more often than its spec says"),
        }
    }

    /// One of the objects of `cache`, if one is left.
    ///
    /// # Errors
    /// Hands `value` back when none is left, or `cache` is not in the spec.
    pub fn try_object<T: Send>(&mut self, cache: &SlabCache<T>, value: T) -> Result<SlabBox<T>, T> {
        let Some(at) = self.part_of(cache) else { return Err(value) };
        let Some(part) = self.parts[at].filter(|part| part.objects > 0) else {
            return Err(value);
        };
        // A page that was drawn for this before; else the ordinary way, and the page is shared with
        // the cache's other objects; else a page of the reservation.
        let (page, value) = match part.page {
            Some(page) if part.slots > 0 => (page, value),
            _ => match cache.alloc(Gfp::NOMEMALLOC, value) {
                Ok(object) => {
                    self.update(at, |part| part.objects -= 1);
                    self.settle();
                    return Ok(object);
                }
                Err(error) => (self.next_page(at, cache), error.value),
            },
        };
        self.update(at, |part| {
            part.objects -= 1;
            part.slots -= 1;
        });
        // SAFETY: the page is pinned by this reservation, which had slots of it left.
        Ok(unsafe { cache.alloc_pinned(page, value) })
    }

    /// Draws a page for the objects of the part at `at`, which has objects left and no slots.
    fn next_page<T: Send>(&mut self, at: usize, cache: &SlabCache<T>) -> u32 {
        self.update(at, |part| {
            if let Some(full) = part.page.take() {
                // SAFETY: pinned by this reservation, which forgets it here.
                unsafe { part.cache.unpin_page(full) }
            }
        });
        // What `slots` takes off the frames needed: the one that is drawn.
        self.update(at, |part| part.slots = part.cache.per_page());
        let page = cache.pin(self.draw());
        self.update(at, |part| part.page = Some(page));
        page
    }

    /// Changes a part, and what its objects need with it. What is needed never grows.
    fn update(&mut self, at: usize, change: impl FnOnce(&mut Part<'c>)) {
        if let Some(part) = &mut self.parts[at] {
            let before = part.frames();
            change(part);
            self.for_objects -= before - part.frames();
        }
    }

    /// Frames that the pool keeps for this beyond what is needed.
    #[inline]
    fn lag(&self) -> u32 {
        self.backed - self.pages - self.for_objects
    }

    /// A frame for what the caller has just taken off `pages` or `for_objects`.
    #[inline]
    fn draw(&mut self) -> Frame {
        debug_assert!(self.lag() > 0);
        let inner = self.inner();
        let quick = self.charged.is_none() && self.lag() <= LAG_MAX;
        let index = match if quick { magazine::take(inner) } else { None } {
            Some(index) => index,
            None => self.draw_from_list(),
        };
        // SAFETY: the frame was taken out of this thread's magazine, or off the list, by this call.
        unsafe { Frame::new(self.pool, FrameId(index)) }
    }

    /// The same off the shared list. The pool's number is exact after it.
    #[inline(never)]
    fn draw_from_list(&mut self) -> u32 {
        let lag = self.lag();
        self.backed -= lag;
        let take = |stock: Option<&Section<'_>>| self.inner().draw(self.charged, lag, stock);
        // SAFETY: the pool is alive, as this handle is counted.
        unsafe { magazine::with_stock(self.pool, take) }
    }

    /// Tells the pool what is not needed any more, unless that can wait.
    #[inline]
    fn settle(&mut self) {
        let lag = self.lag();
        let inner = self.inner();
        let exact = inner.magazine == 0 || !inner.door.is_open();
        if lag > LAG_MAX || lag > 0 && exact {
            self.backed -= lag;
            self.inner().give_back_promise(self.charged, lag, 0);
        }
    }

    /// Hands `pages` of the pages to a reservation of its own, for an inner scope; `None` if fewer are
    /// left, and nothing is changed.
    pub fn split(&mut self, pages: u32) -> Option<Reservation<'static>> {
        self.pages = self.pages.checked_sub(pages)?;
        self.backed -= pages;
        self.inner().lock().charges += 1;
        Some(Reservation {
            pool: self.pool,
            pages,
            for_objects: 0,
            backed: pages,
            charged: self.charged,
            parts: [None; CACHES_MAX],
        })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        for part in self.parts.iter().flatten() {
            if let Some(page) = part.page {
                // SAFETY: pinned by this reservation, which ends here.
                unsafe { part.cache.unpin_page(page) }
            }
        }
        let last = self.inner().give_back_promise(self.charged, self.backed, 1);
        if last {
            // SAFETY: closed, and everything is back, as the lock has said to this caller alone.
            unsafe { Inner::destroy(self.pool) }
        }
    }
}

impl fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let objects: Vec<u32> = self.parts.iter().flatten().map(|part| part.objects).collect();
        f.debug_struct("Reservation")
            .field("pages", &self.pages)
            .field("objects", &objects)
            .field("charged_to", &self.charged_to())
            .finish()
    }
}
