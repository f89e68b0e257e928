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
//! # Layout
//!
//! A page starts with its own header; objects follow. So a cache has no tables that could have to grow,
//! and an object finds its page by clearing the low bits of its address. Slots that were used and are
//! free are linked through their first two bytes, by offset in the page.
//!
//! # Who owns what
//!
//! Header and free slots belong to the cache and are touched under its lock (`cache` in the header is
//! written before the first object is given out, and only read after). A used slot belongs to its
//! [`SlabBox`]. Objects keep the cache alive: it is freed by its handle or by the last object, whichever
//! goes later, decided under the lock. The lock order is cache, then pool.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use crate::PAGE_SIZE;
use crate::frame::{Frame, FrameId};
use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::lock::SpinLock;
use crate::pool::{AllocError, PagePool};
use crate::reserves::ReserveId;

/// How a cache is set up.
#[derive(Clone, Copy, Debug)]
pub struct SlabConfig {
    /// Ablation: without it, objects of reserve pages go to whoever asks.
    pub fairness: bool,
}

impl Default for SlabConfig {
    fn default() -> SlabConfig {
        SlabConfig { fairness: true }
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
/// assert_eq!(cache.usage().pages, 0);
/// # Ok::<(), netswap_reserve::SlabError<[u64; 8]>>(())
/// ```
pub struct SlabCache<T> {
    inner: NonNull<Inner<T>>,
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
    /// Pages, those charged to reserves included.
    pub pages: u32,
    /// Pages charged to reserves.
    pub reserve_pages: u32,
}

/// The lists of pages. Full ordinary pages are on none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// Has a free slot for anyone.
    Open = 0,
    /// Has a free slot, for entitled callers.
    Reserve = 1,
    /// Charged to a reserve and full.
    ReserveFull = 2,
    None = 3,
}

const NIL: u32 = u32::MAX;

struct Header<T> {
    cache: NonNull<Inner<T>>,
    page: u32,
    /// Apart from the rest, so that a reference to it, made under the lock, does not cover what is read
    /// without.
    slots: Slots,
}

/// The part of a header that changes; touched under the lock only.
struct Slots {
    next: u32,
    prev: u32,
    /// Offset of the first slot that was used and is free; 0 is none.
    free: u16,
    /// Offset of the first slot that was never used.
    fresh: u16,
    used: u16,
    list: List,
    charged: bool,
    /// A reservation takes slots of this page, and nobody else: on no list, and kept when it is empty.
    pinned: bool,
}

struct Inner<T> {
    pool: PagePool,
    fairness: bool,
    state: SpinLock<State>,
    _objects: PhantomData<T>,
}

struct State {
    heads: [u32; 3],
    usage: SlabUsage,
    /// The handle is gone.
    closed: bool,
}

// SAFETY: the cache is a pool handle and a lock over numbers; an object that is allocated on one thread
// may be dropped on another, which `T: Send` allows.
unsafe impl<T: Send> Send for SlabCache<T> {}
// SAFETY: as above; a shared cache gives out owned objects only.
unsafe impl<T: Send> Sync for SlabCache<T> {}
// SAFETY: the box owns its object, as `Box` does; the way back to the cache goes through its lock.
unsafe impl<T: Send> Send for SlabBox<T> {}
// SAFETY: a shared box gives a shared object, nothing else.
unsafe impl<T: Sync> Sync for SlabBox<T> {}

impl<T> SlabCache<T> {
    const ALIGN: usize = if align_of::<T>() > 2 { align_of::<T>() } else { 2 };
    const SLOT: usize = {
        let size = if size_of::<T>() > 2 { size_of::<T>() } else { 2 };
        size.next_multiple_of(Self::ALIGN)
    };
    const FIRST: usize = size_of::<Header<T>>().next_multiple_of(Self::ALIGN);

    /// Objects that fit a page.
    pub const PER_PAGE: u32 = ((PAGE_SIZE.saturating_sub(Self::FIRST)) / Self::SLOT) as u32;

    /// A cache in `pool`. Types that do not fit a page beside its header do not compile.
    pub fn new(pool: &PagePool) -> SlabCache<T> {
        SlabCache::with_config(pool, SlabConfig::default())
    }

    /// A cache in `pool` as `config` says.
    pub fn with_config(pool: &PagePool, config: SlabConfig) -> SlabCache<T> {
        const { assert!(Self::PER_PAGE > 0, "the object does not fit a page") };
        let inner = Inner {
            pool: pool.clone(),
            fairness: config.fairness,
            state: SpinLock::new(State {
                heads: [NIL; 3],
                usage: SlabUsage::default(),
                closed: false,
            }),
            _objects: PhantomData,
        };
        SlabCache { inner: NonNull::from(Box::leak(Box::new(inner))) }
    }

    /// Pages that hold `objects` objects: exactly what a fresh cache takes for so many.
    pub const fn estimate_pages(objects: u32) -> u32 {
        objects.div_ceil(Self::PER_PAGE)
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: the cache is not freed before its handle has gone.
        unsafe { self.inner.as_ref() }
    }

    /// What the cache holds now.
    pub fn usage(&self) -> SlabUsage {
        self.inner().state.lock().usage
    }

    /// One object. Entitled as [`PagePool::alloc`] is, by the ambient scope or by `gfp`.
    ///
    /// # Errors
    /// When no slot is there for this caller and no page can be had; `value` is handed back.
    #[inline]
    pub fn alloc(&self, gfp: Gfp, value: T) -> Result<SlabBox<T>, SlabError<T>> {
        let caller = self.inner().pool.ambient(gfp);
        self.alloc_as(gfp, caller, value)
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
        self.alloc_as(gfp, Caller { entitled: Some(reserve), by_scope: false }, value)
    }

    fn alloc_as(&self, gfp: Gfp, caller: Caller, value: T) -> Result<SlabBox<T>, SlabError<T>> {
        let inner = self.inner();
        let mut guard = inner.state.lock();
        let page = match self.page_for(&mut guard, gfp, caller) {
            Ok(page) => page,
            Err(error) => {
                drop(guard);
                return Err(SlabError { error, value });
            }
        };
        // SAFETY: `page_for` returned a page of this cache with a free slot, under the lock.
        let object = unsafe { inner.take_slot(&mut guard, page) };
        drop(guard);
        // SAFETY: the slot is aligned and large enough for a T, and nobody else has it.
        unsafe { object.write(value) };
        Ok(SlabBox { object, _owns: PhantomData })
    }

    /// A page with a slot for this caller: an ordinary one, else one that can be exchanged, else a
    /// reserve page if the caller is entitled, else a new one.
    fn page_for(&self, state: &mut State, gfp: Gfp, caller: Caller) -> Result<u32, AllocError> {
        let inner = self.inner();
        let [open, reserve, _] = state.heads;
        if open != NIL {
            return Ok(open);
        }
        if reserve != NIL {
            // SAFETY: a page on a list of this cache, under the lock.
            if unsafe { inner.exchange(state, reserve, gfp) } {
                return Ok(reserve);
            }
            if caller.entitled.is_some() && !gfp.contains(Gfp::NOMEMALLOC) {
                return Ok(reserve);
            }
        }
        let frame = inner.pool.alloc_as(gfp, || caller)?;
        Ok(self.add_page(state, frame))
    }

    fn add_page(&self, state: &mut State, frame: Frame) -> u32 {
        let inner = self.inner();
        let charged = frame.charged_to().is_some();
        let page = ManuallyDrop::new(frame).id().index();
        let header = Header {
            cache: self.inner,
            page,
            slots: Slots {
                next: NIL,
                prev: NIL,
                free: 0,
                fresh: Self::FIRST as u16,
                used: 0,
                list: List::None,
                charged,
                pinned: false,
            },
        };
        // SAFETY: the frame was just allocated and is owned by this cache now; it is page-aligned, and
        // the header fits.
        unsafe { inner.header(page).write(header) };
        state.usage.pages += 1;
        state.usage.reserve_pages += u32::from(charged);
        // SAFETY: the header is initialised and on no list.
        unsafe { inner.relist(state, page) };
        page
    }

    /// The pool's id.
    pub(crate) fn pool_id(&self) -> u32 {
        self.inner().pool.id()
    }

    /// Makes a frame of the cache's pool a page that nobody but the caller takes slots of, until
    /// [`SlabCache::unpin`].
    pub(crate) fn pin(&self, frame: Frame) -> u32 {
        let inner = self.inner();
        debug_assert!(frame.is_of(&inner.pool));
        let mut state = inner.state.lock();
        let page = self.add_page(&mut state, frame);
        // SAFETY: a page of this cache, under the lock.
        unsafe {
            inner.slots(page).pinned = true;
            inner.relist(&mut state, page);
        }
        page
    }

    /// An object in a pinned page.
    ///
    /// # Safety
    /// The caller has pinned `page` of this cache and taken fewer than [`SlabCache::PER_PAGE`] slots
    /// of it.
    pub(crate) unsafe fn alloc_pinned(&self, page: u32, value: T) -> SlabBox<T> {
        let inner = self.inner();
        let mut state = inner.state.lock();
        // SAFETY: a page of this cache with a free slot, under the lock.
        let object = unsafe { inner.take_slot(&mut state, page) };
        drop(state);
        // SAFETY: as in `alloc_as`.
        unsafe { object.write(value) };
        SlabBox { object, _owns: PhantomData }
    }

    /// Makes a pinned page one like the others.
    ///
    /// # Safety
    /// The caller has pinned `page` of this cache, and does not use it any more.
    pub(crate) unsafe fn unpin(&self, page: u32) {
        let inner = self.inner();
        let mut state = inner.state.lock();
        // SAFETY: a page of this cache, under the lock; no other reference to its slots lives.
        let slots = unsafe { inner.slots(page) };
        slots.pinned = false;
        let empty = if slots.used == 0 {
            // SAFETY: as above, and it has no object.
            Some(unsafe { inner.retire(&mut state, page) })
        } else {
            // SAFETY: as above.
            unsafe { inner.relist(&mut state, page) };
            None
        };
        drop(state);
        drop(empty);
    }

    /// Exchanges reserve pages for ordinary memory as far as there is some: see the module. Returns
    /// how many pages were exchanged. To be called when reclaim has made progress.
    pub fn try_exchange(&self, gfp: Gfp) -> u32 {
        let inner = self.inner();
        let mut exchanged = 0;
        loop {
            // One page at a turn of the lock: there may be many.
            let mut state = inner.state.lock();
            let [_, partial, full] = state.heads;
            let page = if partial != NIL { partial } else { full };
            // SAFETY: a page on a list of this cache, under the lock.
            if page == NIL || !unsafe { inner.exchange(&mut state, page, gfp) } {
                return exchanged;
            }
            exchanged += 1;
        }
    }
}

impl<T> Inner<T> {
    fn header(&self, page: u32) -> NonNull<Header<T>> {
        self.pool.inner().region.data(page).cast()
    }

    /// # Safety
    /// `page` is a page of this cache, and the lock is held while the result is used. No two results
    /// for one page are used in turns.
    #[expect(clippy::mut_from_ref, reason = "the lock that the caller holds makes it exclusive")]
    unsafe fn slots(&self, page: u32) -> &mut Slots {
        // SAFETY: the header is initialised as long as the page is the cache's, and `slots` of it is
        // reached under the lock only.
        unsafe { &mut (*self.header(page).as_ptr()).slots }
    }

    /// # Safety
    /// `page` is a page of this cache, and the caller holds the lock that `state` comes from.
    unsafe fn take_slot(&self, state: &mut State, page: u32) -> NonNull<T> {
        let base = self.pool.inner().region.data(page);
        // SAFETY: the header of a page of this cache, which the lock makes ours. No reference to it
        // lives across a call that makes another.
        let slots = unsafe { self.slots(page) };
        let offset = if slots.free != 0 {
            let offset = slots.free;
            // SAFETY: a free slot of this page; its first two bytes hold the link.
            slots.free = unsafe { base.add(usize::from(offset)).cast::<u16>().read() };
            offset
        } else {
            let offset = slots.fresh;
            slots.fresh += SlabCache::<T>::SLOT as u16;
            offset
        };
        slots.used += 1;
        state.usage.objects += 1;
        if u32::from(slots.used) == SlabCache::<T>::PER_PAGE {
            // SAFETY: as this function demands.
            unsafe { self.relist(state, page) };
        }
        // SAFETY: the offset of a slot lies inside the page.
        unsafe { base.add(usize::from(offset)) }.cast()
    }

    /// Takes the slot at `object` back. Returns the page's frame if it is wholly free now, and whether
    /// the cache has no handle and no object left.
    ///
    /// # Safety
    /// `object` is a slot of `page`, in use, whose content was dropped; `page` is one of this cache,
    /// and the caller holds the lock that `state` comes from.
    unsafe fn put_slot(
        &self,
        state: &mut State,
        page: u32,
        object: NonNull<u8>,
    ) -> (Option<EmptyPage>, bool) {
        let offset = (object.as_ptr() as usize % PAGE_SIZE) as u16;
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        // SAFETY: the slot is ours again, at least two bytes and aligned for them.
        unsafe { object.cast::<u16>().write(slots.free) };
        slots.free = offset;
        let was_full = u32::from(slots.used) == SlabCache::<T>::PER_PAGE;
        slots.used -= 1;
        state.usage.objects -= 1;
        let mut empty = None;
        if slots.used == 0 && !slots.pinned {
            // SAFETY: as this function demands; it has no object.
            empty = Some(unsafe { self.retire(state, page) });
        } else if was_full {
            // SAFETY: as this function demands.
            unsafe { self.relist(state, page) };
        }
        (empty, state.closed && state.usage.objects == 0)
    }

    /// Takes a page without objects out of the cache.
    ///
    /// # Safety
    /// `page` is a page of this cache without an object, and the caller holds the lock that `state`
    /// comes from.
    unsafe fn retire(&self, state: &mut State, page: u32) -> EmptyPage {
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        let (charged, dirty) = (slots.charged, usize::from(slots.fresh));
        // SAFETY: as this function demands.
        unsafe { self.unlist(state, page) };
        state.usage.pages -= 1;
        state.usage.reserve_pages -= u32::from(charged);
        // SAFETY: the frame was owned by the cache, which forgets it here.
        let frame = unsafe { Frame::new(self.pool.raw(), FrameId(page)) };
        EmptyPage { base: self.pool.inner().region.data(page), dirty, _frame: frame }
    }

    /// Makes an ordinary page of a reserve page if ordinary memory is back.
    ///
    /// # Safety
    /// As for [`Inner::relist`].
    unsafe fn exchange(&self, state: &mut State, page: u32, gfp: Gfp) -> bool {
        if !self.pool.inner().exchange(page, gfp) {
            return false;
        }
        // SAFETY: as in `take_slot`.
        unsafe { self.slots(page) }.charged = false;
        state.usage.reserve_pages -= 1;
        // SAFETY: as this function demands.
        unsafe { self.relist(state, page) };
        true
    }

    /// Puts a page on the list where it belongs now.
    ///
    /// # Safety
    /// `page` is a page of this cache, and the caller holds the lock that `state` comes from.
    unsafe fn relist(&self, state: &mut State, page: u32) {
        // SAFETY: as this function demands.
        unsafe { self.unlist(state, page) };
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        let full = u32::from(slots.used) == SlabCache::<T>::PER_PAGE;
        slots.list = match (slots.charged && self.fairness, full) {
            _ if slots.pinned => List::None,
            (false, false) => List::Open,
            (false, true) => List::None,
            (true, false) => List::Reserve,
            (true, true) => List::ReserveFull,
        };
        if slots.list == List::None {
            return;
        }
        let head = &mut state.heads[slots.list as usize];
        slots.prev = NIL;
        slots.next = *head;
        let next = std::mem::replace(head, page);
        if next != NIL {
            // SAFETY: a page on a list of this cache, and another than `page`.
            unsafe { self.slots(next) }.prev = page;
        }
    }

    /// # Safety
    /// As for [`Inner::relist`].
    unsafe fn unlist(&self, state: &mut State, page: u32) {
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        if slots.list == List::None {
            return;
        }
        let (list, next, prev) = (slots.list as usize, slots.next, slots.prev);
        slots.list = List::None;
        match prev {
            NIL => state.heads[list] = next,
            // SAFETY: a page on a list of this cache, and another than `page`.
            _ => unsafe { self.slots(prev) }.next = next,
        }
        if next != NIL {
            // SAFETY: as above.
            unsafe { self.slots(next) }.prev = prev;
        }
    }

    /// # Safety
    /// The cache has neither a handle nor an object left, as its lock has said to this caller alone.
    #[cold]
    unsafe fn destroy(cache: NonNull<Inner<T>>) {
        // SAFETY: made by `Box::leak` in `with_config`; the caller is the last to reach it.
        drop(unsafe { Box::from_raw(cache.as_ptr()) });
    }
}

/// A page without objects on its way back to the pool, outside the cache's lock.
struct EmptyPage {
    base: NonNull<u8>,
    dirty: usize,
    _frame: Frame,
}

impl Drop for EmptyPage {
    fn drop(&mut self) {
        // An object may have had padding, which is no initialised memory; what a frame holds is. So the
        // bytes that objects were in are written anew.
        // SAFETY: the page is owned by `_frame`, dropped after this; `dirty` bytes of it were used.
        unsafe { self.base.write_bytes(0, self.dirty) };
    }
}

impl<T> Drop for SlabCache<T> {
    fn drop(&mut self) {
        let last = {
            let mut state = self.inner().state.lock();
            state.closed = true;
            state.usage.objects == 0
        };
        if last {
            // SAFETY: the handle ends here, and no object is left.
            unsafe { Inner::destroy(self.inner) }
        }
    }
}

impl<T> fmt::Debug for SlabCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabCache").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl<T> SlabBox<T> {
    /// The header of the object's page.
    fn header(&self) -> NonNull<Header<T>> {
        let base = self.object.as_ptr().map_addr(|a| a & !(PAGE_SIZE - 1));
        // SAFETY: frames are page-aligned and not at address 0, and the object lies in one.
        unsafe { NonNull::new_unchecked(base.cast()) }
    }

    /// The reserve that the object's page is charged to, if it is a reserve page.
    pub fn charged_to(&self) -> Option<ReserveId> {
        let header = self.header();
        // SAFETY: as in `give_back`: the object keeps page and cache, and these fields are constant.
        let (cache, page) = unsafe {
            (
                ptr::addr_of!((*header.as_ptr()).cache).read(),
                ptr::addr_of!((*header.as_ptr()).page).read(),
            )
        };
        // SAFETY: as above.
        unsafe { cache.as_ref() }.pool.inner().charged_to(FrameId(page))
    }

    /// The value, out of its slot, which is given back.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the slot holds a value that this box owned; it is read once, as the box is not
        // dropped, and the slot is given back without dropping it.
        unsafe {
            let value = this.object.read();
            this.give_back();
            value
        }
    }

    /// Gives the slot back to its cache.
    ///
    /// # Safety
    /// The value was dropped or moved out, and the box is not used again.
    unsafe fn give_back(&self) {
        let header = self.header();
        // SAFETY: the page has an object, so its header is there; `cache` and `page` are constant as
        // long as it has. They are read in place, as other fields may change under the lock.
        let (cache, page) = unsafe {
            (
                ptr::addr_of!((*header.as_ptr()).cache).read(),
                ptr::addr_of!((*header.as_ptr()).page).read(),
            )
        };
        let (empty, last) = {
            // SAFETY: this object is counted, which keeps the cache alive until the lock is given
            // back; after that, only if this call is the last.
            let inner = unsafe { cache.as_ref() };
            let mut state = inner.state.lock();
            // SAFETY: the slot is this box's own, and given up here; the lock is held.
            unsafe { inner.put_slot(&mut state, page, self.object.cast()) }
        };
        drop(empty);
        if last {
            // SAFETY: `put_slot` said so.
            unsafe { Inner::destroy(cache) }
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
    fn drop(&mut self) {
        /// Gives the slot back even if the value's own drop panics.
        struct GiveBack<'a, T>(&'a SlabBox<T>);
        impl<T> Drop for GiveBack<'_, T> {
            fn drop(&mut self) {
                // SAFETY: the value was dropped, as far as it could be, and the box ends here.
                unsafe { self.0.give_back() }
            }
        }
        let object = self.object.as_ptr();
        let _give_back = GiveBack(self);
        // SAFETY: the box owns the value and ends here.
        unsafe { ptr::drop_in_place(object) }
    }
}

impl<T: fmt::Debug> fmt::Debug for SlabBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests;
