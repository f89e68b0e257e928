//! Slab caches: objects smaller than a page, made of frames of a pool, that respect its reserves.
//!
//! The trap: an emergency allocation takes a whole page from the reserve for one object. If the rest of
//! that page were given to whoever asks next, ordinary callers would eat the reserve a slot at a time,
//! and the next emergency would find the page full and the reserve used up. So (*fairness*):
//!
//! - A page that was charged to a reserve is a *reserve page*. Its objects go only to entitled callers,
//!   until the page is wholly free. All that time the page is charged.
//! - Unless ordinary memory comes back first: then the page is *exchanged*. Its content cannot move, so
//!   the accounting does: if an ordinary allocation of a frame would succeed, the page counts as that
//!   frame and its charge is released. It is an ordinary page from then on. Every allocation that would
//!   use a reserve page tries this first, and [`SlabCache::try_exchange`] does it on request.
//!
//! ```text
//!                       charged frame                    last object freed
//!   allocation ───────> reserve page ──────────────────> frame, then charge, back to the pool
//!        │                  │ exchange: free > watermark       ▲
//!        └───────────> ordinary page ──────────────────────────┘
//!          ordinary frame
//! ```
//!
//! # Threads
//!
//! In a pool with magazines each thread keeps a few free slots of a cache for itself, and allocates and
//! frees without a lock or a shared write most of the time. Slots of reserve pages are never kept so, and
//! nothing more is kept once free memory is below the low watermark. What is kept holds pages back: at
//! most [`SlabConfig::thread_slots`] slots a thread, each possibly the only one out of its page. It is
//! taken back from all threads by [`SlabCache::shrink`], by the cache itself before it takes a page while
//! memory is short, by whoever waits for memory of the pool, by background reclaim, and when thread or cache
//! end. So while memory is plentiful a cache may hold more pages
//! than its objects need; when a page is short, it does not.

mod core;
mod page;
mod thread;

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use crate::frame::Frame;
use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::pool::{AllocError, PagePool};
use crate::reserves::ReserveId;

pub(crate) use self::core::{Core, RawCache};
pub(crate) use self::page::SlotLayout;
pub(crate) use self::thread::{prepare_thread, take_back_all};

/// How a cache is set up.
#[derive(Clone, Copy, Debug)]
pub struct SlabConfig {
    /// Ablation: without it, objects of reserve pages go to whoever asks.
    pub fairness: bool,
    /// Free slots that a thread may keep for its own next allocations; at most 30 and 16 KiB of them
    /// take effect, 0 is none. In a pool whose [`magazine`](crate::PoolConfig::magazine) is 0 no thread
    /// keeps any, and all counts are exact.
    pub thread_slots: u32,
}

impl Default for SlabConfig {
    fn default() -> SlabConfig {
        SlabConfig { fairness: true, thread_slots: 30 }
    }
}

/// Objects of one type in pages of a pool.
///
/// ```
/// use netswap_reserve::{Gfp, PagePool, PoolConfig, SlabCache};
///
/// let pool = PagePool::new(PoolConfig::new(256));
/// let cache = SlabCache::<[u64; 8]>::new(&pool);
/// let mut object = cache.alloc(Gfp::KERNEL, [0; 8])?;
/// object[3] = 7;
/// assert_eq!((cache.usage().objects, cache.usage().pages), (1, 1));
/// drop(object);
/// // The thread keeps the slot, until somebody wants the page.
/// assert_eq!((cache.usage().objects, cache.usage().pages), (0, 1));
/// assert_eq!(cache.shrink(), 1);
/// assert_eq!(cache.usage().pages, 0);
/// # Ok::<(), netswap_reserve::SlabError<[u64; 8]>>(())
/// ```
pub struct SlabCache<T> {
    raw: RawCache,
    _objects: PhantomData<T>,
}

/// An object of a [`SlabCache`], owned. Dropping it gives its slot back.
pub struct SlabBox<T> {
    object: NonNull<T>,
    _owns: PhantomData<T>,
}

/// No slot could be had. The value is handed back.
pub struct SlabError<T> {
    /// Why.
    pub error: AllocError,
    /// What was to be stored.
    pub value: T,
}

impl<T> fmt::Debug for SlabError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SlabError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no object: {}", self.error)
    }
}

impl<T> std::error::Error for SlabError<T> {}

/// What a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabUsage {
    /// Objects in use.
    pub objects: u32,
    /// Free slots that threads keep for themselves. Exact while no thread allocates or frees.
    pub cached: u32,
    /// Pages, those charged to reserves included.
    pub pages: u32,
    /// Pages charged to reserves.
    pub reserve_pages: u32,
}

// SAFETY: the cache gives out owned objects only; one that is allocated on one thread may be dropped on
// another, which `T: Send` allows.
unsafe impl<T: Send> Send for SlabCache<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SlabCache<T> {}
// SAFETY: the box owns its object, as `Box` does; the way back to the cache is made for any thread.
unsafe impl<T: Send> Send for SlabBox<T> {}
// SAFETY: a shared box gives a shared object, nothing else.
unsafe impl<T: Sync> Sync for SlabBox<T> {}

impl<T> SlabCache<T> {
    const LAYOUT: SlotLayout = SlotLayout::new(size_of::<T>(), align_of::<T>());

    /// Objects that fit a page.
    pub const PER_PAGE: u32 = Self::LAYOUT.per_page as u32;

    /// A cache in `pool`. Types that do not fit a page beside its header do not compile.
    pub fn new(pool: &PagePool) -> SlabCache<T> {
        SlabCache::with_config(pool, SlabConfig::default())
    }

    /// A cache in `pool` as `config` says.
    pub fn with_config(pool: &PagePool, config: SlabConfig) -> SlabCache<T> {
        const { assert!(Self::PER_PAGE > 0, "the object does not fit a page") };
        let raw = RawCache::new(pool, Self::LAYOUT, &config);
        SlabCache { raw, _objects: PhantomData }
    }

    /// The most pages that `objects` objects, the most that are ever in use at once, can need in a cache
    /// that was empty; exact, as so many are needed when all are in use.
    ///
    /// It holds whatever is freed and allocated in between, and for any mix of callers: a page is added
    /// only when no slot is free that the caller may have, and a reserve page with a free slot that it
    /// may not have is exchanged at the moment when an ordinary page could be had.
    ///
    /// What threads keep comes on top while memory is plentiful: not above
    /// `estimate_pages(objects + threads * thread_slots)`. Before a page is taken while memory is short,
    /// it is taken back. Threads that allocate and free at that very moment may each delay one object.
    pub const fn estimate_pages(objects: u32) -> u32 {
        Self::LAYOUT.pages(objects)
    }

    /// What the cache holds now.
    pub fn usage(&self) -> SlabUsage {
        self.raw.usage()
    }

    /// Takes back the free slots that threads keep, of all threads, and gives pages that are wholly free
    /// back to the pool. Returns how many. To be called when memory is short and nobody waits for it: those
    /// who wait do the same for all caches of the pool. Takes some microseconds when a thread kept slots, else next to nothing.
    pub fn shrink(&self) -> u32 {
        self.raw.shrink()
    }

    /// The pool's id.
    pub(crate) fn pool_id(&self) -> u32 {
        self.raw.core().pool.id()
    }

    /// As [`Core::pin`].
    pub(crate) fn pin(&self, frame: Frame) -> u32 {
        self.raw.core().pin(frame)
    }

    /// An object in a pinned page.
    ///
    /// # Safety
    /// As for [`Core::alloc_pinned`].
    pub(crate) unsafe fn alloc_pinned(&self, page: u32, value: T) -> SlabBox<T> {
        // SAFETY: as this function demands.
        let object = unsafe { self.raw.core().alloc_pinned(page) }.cast::<T>();
        // SAFETY: as in `alloc_as`.
        unsafe { object.write(value) };
        SlabBox { object, _owns: PhantomData }
    }

    /// As [`Core::unpin`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn unpin(&self, page: u32) {
        // SAFETY: as this function demands.
        unsafe { self.raw.core().unpin(page) }
    }

    /// Exchanges reserve pages for ordinary memory as far as there is some: see the module. Returns
    /// how many pages were exchanged. To be called when reclaim has made progress.
    pub fn try_exchange(&self, gfp: Gfp) -> u32 {
        self.raw.try_exchange(gfp)
    }

    /// One object. Entitled as [`PagePool::alloc`] is, by the ambient scope or by `gfp`.
    ///
    /// # Errors
    /// When no slot is there for this caller and no page can be had; `value` is handed back.
    #[inline]
    pub fn alloc(&self, gfp: Gfp, value: T) -> Result<SlabBox<T>, SlabError<T>> {
        let core = self.raw.core();
        self.alloc_as(gfp, || core.ambient(gfp), value)
    }

    /// One object for a caller that is entitled to `reserve` whatever the ambient scope.
    ///
    /// # Errors
    /// As [`SlabCache::alloc`].
    ///
    /// # Panics
    /// When `reserve` is of another pool and is needed.
    #[inline]
    pub fn alloc_from(
        &self,
        gfp: Gfp,
        reserve: ReserveId,
        value: T,
    ) -> Result<SlabBox<T>, SlabError<T>> {
        self.alloc_as(gfp, || Caller { entitled: Some(reserve), by_scope: false }, value)
    }

    #[inline]
    fn alloc_as(
        &self,
        gfp: Gfp,
        caller: impl FnOnce() -> Caller,
        value: T,
    ) -> Result<SlabBox<T>, SlabError<T>> {
        match self.raw.core().alloc(gfp, caller) {
            Ok(object) => {
                let object = object.cast::<T>();
                // SAFETY: the slot is aligned and large enough for a T, and nobody else has it.
                unsafe { object.write(value) };
                Ok(SlabBox { object, _owns: PhantomData })
            }
            Err(error) => Err(SlabError { error, value }),
        }
    }
}

impl<T> fmt::Debug for SlabCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabCache").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl<T> SlabBox<T> {
    /// The reserve that the object's page is charged to, if it is a reserve page.
    pub fn charged_to(&self) -> Option<ReserveId> {
        // SAFETY: the box owns its slot, and is borrowed.
        unsafe { self::core::charged_to(self.object.cast()) }
    }

    /// The value, out of its slot, which is given back.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the slot holds a value that this box owned; it is read once, as the box is not
        // dropped, and the slot is given back without dropping it.
        unsafe {
            let value = this.object.read();
            Core::free(this.object.cast());
            value
        }
    }
}

impl<T> Deref for SlabBox<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the box owns the value in its slot.
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for SlabBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the box owns the value and is borrowed mutably.
        unsafe { self.object.as_mut() }
    }
}

impl<T> Drop for SlabBox<T> {
    #[inline]
    fn drop(&mut self) {
        /// Gives the slot back even if the value's own drop panics.
        struct GiveBack(NonNull<u8>);
        impl Drop for GiveBack {
            #[inline]
            fn drop(&mut self) {
                // SAFETY: the value was dropped, as far as it could be, and the box ends here.
                unsafe { Core::free(self.0) }
            }
        }
        // Without a guard the address stays in a register, which a pair notices.
        if !std::mem::needs_drop::<T>() {
            // SAFETY: the value needs no drop, and the box ends here.
            return unsafe { Core::free(self.object.cast()) };
        }
        let _give_back = GiveBack(self.object.cast());
        // SAFETY: the box owns the value and ends here.
        unsafe { ptr::drop_in_place(self.object.as_ptr()) }
    }
}

impl<T: fmt::Debug> fmt::Debug for SlabBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests;
