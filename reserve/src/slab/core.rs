//! The untyped inside of a slab cache: its pages, and who gets a slot of which.
//!
//! # Who owns what
//!
//! Headers and free slots belong to the cache and are touched under its lock (what of a header is read
//! without it, see [`Header`]). A slot that is out belongs to its owner or lies in a thread's cache
//! ([`thread`]). Slots that are out keep the cache alive: it is freed by its handle or by the last slot,
//! whichever goes later, decided under the lock. The lock order is cache, then pool; threads are never
//! visited under either.

mod lists;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::page::{CHARGED, EmptyPages, Header, List, NIL, PINNED, SlotLayout, Slots};
use super::{SlabConfig, SlabUsage, thread};
use crate::frame::FrameId;
use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::lock::SpinLock;
use crate::pool::{AllocError, PagePool};
use crate::{PAGE_SIZE, biased};

/// A cache of slots of one layout: the only handle of its [`Core`].
pub(crate) struct RawCache {
    core: NonNull<Core>,
}

// SAFETY: the cache is a pool handle and a lock over numbers; slots are addresses that are handed to one
// owner each. What lies in a slot is the business of whoever wraps this.
unsafe impl Send for RawCache {}
// SAFETY: as above.
unsafe impl Sync for RawCache {}

pub(crate) struct Core {
    pub(super) pool: PagePool,
    layout: SlotLayout,
    fairness: bool,
    /// Slots that a thread may keep; 0: none, every count is exact.
    pub(super) keep: u32,
    /// This cache's place in every thread's table.
    pub(super) place: u8,
    state: SpinLock<State>,
}

struct State {
    heads: [u32; 3],
    /// Slots that are out: with owners, or in threads' caches.
    out: u32,
    pages: u32,
    reserve_pages: u32,
    /// A wholly free page that is kept, on the open list.
    spare: u32,
    /// Some thread may keep slots, or there is a spare page, since all was last taken back.
    kept: bool,
    /// That is allowed: the cache is not exact, and the handle is there.
    may_keep: bool,
    /// The handle is gone.
    closed: bool,
}

impl RawCache {
    /// A cache of slots of this layout, of which at least one fits a page.
    pub(crate) fn new(pool: &PagePool, layout: SlotLayout, config: &SlabConfig) -> RawCache {
        /// Neighbours in time are neighbours in the table, so the caches of one user do not collide.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(layout.per_page > 0, "the object does not fit a page");
        let keep = match config.thread_slots {
            // Visits must be possible: what a thread keeps may be needed by others.
            1.. if pool.inner().magazine > 0 && biased::available() => {
                thread::slots_for(layout.slot.into(), config.thread_slots)
            }
            _ => 0,
        };
        let core = Core {
            pool: pool.clone(),
            layout,
            fairness: config.fairness,
            keep,
            place: NEXT.fetch_add(1, Ordering::Relaxed) as u8 % thread::PLACES as u8,
            state: SpinLock::new(State {
                heads: [NIL; 3],
                out: 0,
                pages: 0,
                reserve_pages: 0,
                spare: NIL,
                kept: false,
                may_keep: keep > 0,
                closed: false,
            }),
        };
        RawCache { core: NonNull::from(Box::leak(Box::new(core))) }
    }

    #[inline]
    pub(crate) fn core(&self) -> &Core {
        // SAFETY: the cache is not freed before its handle has gone.
        unsafe { self.core.as_ref() }
    }

    pub(crate) fn usage(&self) -> SlabUsage {
        let core = self.core();
        let usage = {
            let state = core.state.lock();
            SlabUsage {
                objects: state.out,
                cached: 0,
                pages: state.pages,
                reserve_pages: state.reserve_pages,
            }
        };
        let cached = if core.keep > 0 { thread::kept(core).min(usage.objects) } else { 0 };
        SlabUsage { objects: usage.objects - cached, cached, ..usage }
    }

    /// Takes back what threads keep. Returns the pages that went back to the pool.
    pub(crate) fn shrink(&self) -> u32 {
        let core = self.core();
        let kept = std::mem::take(&mut core.state.lock().kept);
        // The threads first: a page that becomes free by that may become the spare one.
        if kept { thread::take_back(core) + u32::from(core.drop_spare()) } else { 0 }
    }

    /// Exchanges reserve pages for ordinary memory as far as there is some.
    pub(crate) fn try_exchange(&self, gfp: Gfp) -> u32 {
        let core = self.core();
        let mut exchanged = 0;
        loop {
            // One page at a turn of the lock: there may be many.
            let mut state = core.state.lock();
            let [_, partial, full] = state.heads;
            let page = if partial != NIL { partial } else { full };
            // SAFETY: a page on a list of this cache, under the lock.
            if page == NIL || !unsafe { core.exchange(&mut state, page, gfp) } {
                return exchanged;
            }
            exchanged += 1;
        }
    }
}

impl Drop for RawCache {
    fn drop(&mut self) {
        let core = self.core();
        let kept = {
            let mut state = core.state.lock();
            state.may_keep = false;
            std::mem::take(&mut state.kept)
        };
        // From here on no thread keeps a slot: what is out is with owners.
        if kept {
            thread::take_back(core);
            core.drop_spare();
        }
        let last = {
            let mut state = core.state.lock();
            state.closed = true;
            state.out == 0
        };
        if last {
            // SAFETY: the handle ends here, and no slot is out.
            unsafe { Core::destroy(self.core) }
        }
    }
}

impl Core {
    /// Who a call with `gfp` is, by scope and flags.
    #[inline]
    pub(crate) fn ambient(&self, gfp: Gfp) -> Caller {
        self.pool.ambient(gfp)
    }

    /// A slot. The fast way is the thread's own cache, whose slots are of ordinary pages and anyone's.
    #[inline]
    pub(crate) fn alloc(
        &self,
        gfp: Gfp,
        caller: impl FnOnce() -> Caller,
    ) -> Result<NonNull<u8>, AllocError> {
        if self.keep != 0
            && let Some(object) = thread::pop(self)
        {
            return Ok(object);
        }
        self.alloc_shared(gfp, caller())
    }

    /// A slot of the shared lists, and some for the thread's cache while memory is plentiful.
    #[inline(never)]
    fn alloc_shared(&self, gfp: Gfp, caller: Caller) -> Result<NonNull<u8>, AllocError> {
        let keeps = self.keep != 0 && self.pool.plenty() && thread::claim(self);
        let mut guard = self.state.lock();
        // Memory is short and a page would be needed: first whatever other threads keep. Below low no
        // thread is given more, so this does not come again and again.
        if guard.kept && guard.heads[List::Open as usize] == NIL && !self.pool.plenty() {
            // No page is open, so none is spare.
            guard.kept = false;
            drop(guard);
            thread::take_back(self);
            guard = self.state.lock();
        }
        let state = &mut *guard;
        let page = self.page_for(state, gfp, caller)?;
        // SAFETY: `page_for` returned a page of this cache with a free slot, under the lock.
        let object = unsafe { self.take_slot(state, page) };
        if keeps && state.may_keep {
            state.kept = true;
            // Within this closure nothing waits, as `refill` demands.
            thread::refill(self, || {
                let page = state.heads[List::Open as usize];
                // Without fairness reserve pages are open, too; no thread keeps slots of those.
                // SAFETY: a page on a list of this cache, under the lock.
                let ordinary = page != NIL && unsafe { !Header::is_special(self.header(page)) };
                // SAFETY: the page is open, so it has a free slot; the lock is held.
                ordinary.then(|| unsafe { self.take_slot(state, page) })
            });
        }
        Ok(object)
    }

    /// Bytes of a slot.
    ///
    /// # Safety
    /// `object` is a slot of a cache that is out, and stays so during the call.
    pub(crate) unsafe fn slot_of(object: NonNull<u8>) -> usize {
        // SAFETY: as in `free`.
        unsafe { Header::constants(Header::of(object)).0.as_ref() }.layout.slot.into()
    }

    /// Takes a slot back, whose content was dropped.
    ///
    /// # Safety
    /// `object` came from [`Core::alloc`] of any cache, is out, and given up here.
    #[inline]
    pub(crate) unsafe fn free(object: NonNull<u8>) {
        // SAFETY: the slot is out and ours, so its page's header is there.
        let header = unsafe { Header::of(object) };
        // SAFETY: as above; and the slot keeps the cache alive until it is given back.
        let ((core, _), place, special) = unsafe {
            let special = Header::is_special(header);
            (Header::constants(header), Header::place(header), special)
        };
        // SAFETY: as above.
        let this = unsafe { core.as_ref() };
        let may_keep = this.keep != 0 && !special && this.pool.plenty();
        if !(may_keep && thread::push(this, place, object)) {
            // SAFETY: as this function demands.
            unsafe { Core::free_slow(core, object, may_keep) }
        }
    }

    /// # Safety
    /// `object` is a slot of `core` that is out, and given up here; an ordinary one if `may_keep`.
    #[inline(never)]
    unsafe fn free_slow(core: NonNull<Core>, object: NonNull<u8>, may_keep: bool) {
        // SAFETY: as this function demands.
        if may_keep && unsafe { thread::push_with_room(core, object) } {
            return;
        }
        // SAFETY: as this function demands.
        unsafe { Core::free_many(core, &[object]) };
    }

    /// Takes slots back at one turn of the lock. Returns the pages that went back to the pool.
    ///
    /// # Safety
    /// Each of `objects` is a slot of `core` that is out, and given up here. There is at least one.
    #[inline]
    pub(super) unsafe fn free_many(core: NonNull<Core>, objects: &[NonNull<u8>]) -> u32 {
        let (empty, last) = {
            // SAFETY: these slots are counted, which keeps the cache alive until the lock is given back;
            // after that, only if this call is the last.
            let this = unsafe { core.as_ref() };
            let mut empty = EmptyPages::none(this.pool.raw());
            let mut state = this.state.lock();
            for &object in objects {
                // SAFETY: the slots are the caller's own, and given up here; the lock is held.
                unsafe { this.put_slot(&mut state, object, &mut empty) };
            }
            (empty, state.closed && state.out == 0)
        };
        // The frames keep the pool alive, whatever becomes of the cache.
        let pages = empty.give_back();
        if last {
            // SAFETY: closed with nothing out, as the lock has said to this caller alone.
            unsafe { Core::destroy(core) }
        }
        pages
    }

    /// Lets this thread keep `object`, the first slot since it keeps any of this cache.
    /// Returns whether it does.
    ///
    /// # Safety
    /// `object` is an ordinary slot of this cache that is out, and given up here if true is returned.
    #[cold]
    pub(super) unsafe fn start_keeping(&self, object: NonNull<u8>) -> bool {
        if !thread::claim(self) {
            return false;
        }
        let mut state = self.state.lock();
        if !state.may_keep {
            return false;
        }
        state.kept = true;
        let mut object = Some(object);
        thread::refill(self, || object.take());
        object.is_none()
    }

    fn header(&self, page: u32) -> NonNull<Header> {
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
    /// `page` is a page of this cache with a free slot, and the caller holds the lock that `state` comes
    /// from.
    unsafe fn take_slot(&self, state: &mut State, page: u32) -> NonNull<u8> {
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
            slots.fresh += self.layout.slot;
            offset
        };
        slots.used += 1;
        state.out += 1;
        if page == state.spare {
            state.spare = NIL;
        }
        if slots.used == self.layout.per_page {
            // SAFETY: as this function demands.
            unsafe { self.relist(state, page) };
        }
        // SAFETY: the offset of a slot lies inside the page.
        unsafe { base.add(usize::from(offset)) }
    }

    /// Takes the slot at `object` back. Its page is retired if it is wholly free now and not pinned.
    ///
    /// # Safety
    /// `object` is a slot of this cache that is out, and given up here; the caller holds the lock that
    /// `state` comes from.
    unsafe fn put_slot(&self, state: &mut State, object: NonNull<u8>, empty: &mut EmptyPages) {
        // SAFETY: the slot is out, so its page's header is there and these fields constant.
        let (header, page) = unsafe {
            let header = Header::of(object);
            (header, Header::constants(header).1)
        };
        let offset = (object.as_ptr() as usize % PAGE_SIZE) as u16;
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        // SAFETY: the slot is ours again, at least two bytes and aligned for them.
        unsafe { object.cast::<u16>().write(slots.free) };
        slots.free = offset;
        let was_full = slots.used == self.layout.per_page;
        slots.used -= 1;
        let used = slots.used;
        state.out -= 1;
        if was_full {
            // SAFETY: as this function demands.
            unsafe { self.relist(state, page) };
        }
        if used == 0 {
            // SAFETY: under the lock.
            let flags = unsafe { Header::flags(header) }.load(Ordering::Relaxed);
            if flags & PINNED == 0 {
                // SAFETY: as this function demands; no slot of the page is out.
                unsafe { self.retire(state, page, flags & CHARGED != 0, empty) };
            }
        }
    }

    /// # Safety
    /// The cache has neither a handle nor a slot out, as its lock has said to this caller alone.
    #[cold]
    unsafe fn destroy(core: NonNull<Core>) {
        // SAFETY: made by `Box::leak` in `RawCache::new`; the caller is the last to reach it.
        drop(unsafe { Box::from_raw(core.as_ptr()) });
    }
}

/// The reserve that the page of a slot is charged to, if it is a reserve page.
///
/// # Safety
/// `object` is a slot of a cache that is out, and stays so during the call.
pub(super) unsafe fn charged_to(object: NonNull<u8>) -> Option<crate::reserves::ReserveId> {
    // SAFETY: as in `Core::free`.
    unsafe {
        let (core, page) = Header::constants(Header::of(object));
        core.as_ref().pool.inner().charged_to(FrameId(page))
    }
}
