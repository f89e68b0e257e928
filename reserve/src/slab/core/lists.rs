//! The pages of a cache: where they come from, on which list each is, and when they go.
//!
//! A list holds the pages that the same callers may take slots of ([`List`]); a page that is full, or pinned
//! by a reservation, is on none where slots are looked for. All this is under the cache's lock.

use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Core, State};
use crate::frame::Frame;
use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::pool::AllocError;
use crate::slab::page::{CHARGED, EmptyPages, Header, List, NIL, PINNED, Slots};

impl Core {
    /// A page with a slot for this caller: an ordinary one, else one that can be exchanged, else a
    /// reserve page if the caller is entitled, else a new one.
    pub(super) fn page_for(
        &self,
        state: &mut State,
        gfp: Gfp,
        caller: Caller,
    ) -> Result<u32, AllocError> {
        let [open, reserve, _] = state.heads;
        if open != NIL {
            return Ok(open);
        }
        if reserve != NIL {
            // SAFETY: a page on a list of this cache, under the lock.
            if unsafe { self.exchange(state, reserve, gfp) } {
                return Ok(reserve);
            }
            if caller.entitled.is_some() && !gfp.contains(Gfp::NOMEMALLOC) {
                return Ok(reserve);
            }
        }
        let frame = self.pool.alloc_as(gfp, || caller)?;
        Ok(self.add_page(state, frame))
    }

    fn add_page(&self, state: &mut State, frame: Frame) -> u32 {
        let charged = frame.charged_to().is_some();
        let page = ManuallyDrop::new(frame).id().index();
        let header = Header {
            core: NonNull::from(self),
            page,
            flags: AtomicU8::new(if charged { CHARGED } else { 0 }),
            place: self.place,
            slots: Slots {
                next: NIL,
                prev: NIL,
                free: 0,
                fresh: self.layout.first,
                used: 0,
                list: List::None,
            },
        };
        // SAFETY: the frame was just allocated and is owned by this cache now; it is page-aligned, and
        // the header fits.
        unsafe { self.header(page).write(header) };
        state.pages += 1;
        state.reserve_pages += u32::from(charged);
        // SAFETY: the header is initialised and on no list.
        unsafe { self.relist(state, page) };
        page
    }

    /// Gives a page up that is wholly free now. It goes to `empty`; but one such page stays as a spare while
    /// memory is plentiful, so that a load that swings around a page's worth of objects does not move a
    /// page each time.
    ///
    /// # Safety
    /// `page` is a page of this cache without a slot out, not pinned, and the caller holds the lock that
    /// `state` comes from.
    pub(super) unsafe fn retire(
        &self,
        state: &mut State,
        page: u32,
        charged: bool,
        empty: &mut EmptyPages,
    ) {
        if state.may_keep && state.spare == NIL && !charged && self.pool.plenty() {
            state.spare = page;
            state.kept = true;
        } else {
            // SAFETY: as this function demands.
            unsafe { self.drop_page(state, page, charged, empty) };
        }
    }

    /// Gives a page up that has no slot out.
    ///
    /// # Safety
    /// `page` is such a page of this cache, and the caller holds the lock that `state` comes from.
    unsafe fn drop_page(
        &self,
        state: &mut State,
        page: u32,
        charged: bool,
        empty: &mut EmptyPages,
    ) {
        // SAFETY: as this function demands.
        unsafe { self.unlist(state, page) };
        state.pages -= 1;
        state.reserve_pages -= u32::from(charged);
        // SAFETY: the frame was the cache's, which forgets it here.
        unsafe { empty.add(page, self.slots(page)) };
    }

    /// Makes a frame of the pool a page that nobody but the caller takes slots of, until [`Core::unpin`].
    pub(crate) fn pin(&self, frame: Frame) -> u32 {
        debug_assert!(frame.is_of(&self.pool));
        let mut state = self.state.lock();
        let page = self.add_page(&mut state, frame);
        // SAFETY: a page of this cache, under the lock, for both.
        unsafe {
            Header::flags(self.header(page)).fetch_or(PINNED, Ordering::Relaxed);
            self.relist(&mut state, page);
        }
        page
    }

    /// A slot of a pinned page.
    ///
    /// # Safety
    /// The caller has pinned `page` of this cache, and taken fewer slots of it than it has.
    pub(crate) unsafe fn alloc_pinned(&self, page: u32) -> NonNull<u8> {
        let mut state = self.state.lock();
        // SAFETY: a page of this cache with a free slot, under the lock.
        unsafe { self.take_slot(&mut state, page) }
    }

    /// Makes a pinned page one like the others.
    ///
    /// # Safety
    /// The caller has pinned `page` of this cache, and does not use it any more.
    pub(crate) unsafe fn unpin(&self, page: u32) {
        let mut empty = EmptyPages::none(self.pool.raw());
        let mut state = self.state.lock();
        // SAFETY: a page of this cache, under the lock; no reference to its slots lives on.
        unsafe {
            let flags = Header::flags(self.header(page));
            flags.fetch_and(!PINNED, Ordering::Relaxed);
            self.relist(&mut state, page);
            if self.slots(page).used == 0 {
                let charged = flags.load(Ordering::Relaxed) & CHARGED != 0;
                self.retire(&mut state, page, charged, &mut empty);
            }
        }
        drop(state);
        empty.give_back();
    }

    /// Gives the spare page back, if there is one; returns whether.
    pub(in crate::slab) fn drop_spare(&self) -> bool {
        let mut empty = EmptyPages::none(self.pool.raw());
        let mut state = self.state.lock();
        let spare = std::mem::replace(&mut state.spare, NIL);
        if spare != NIL {
            // SAFETY: a spare page is an ordinary one of this cache without a slot out; under the lock.
            unsafe { self.drop_page(&mut state, spare, false, &mut empty) };
        }
        drop(state);
        empty.give_back() > 0
    }

    /// Makes an ordinary page of a reserve page if ordinary memory is back.
    ///
    /// # Safety
    /// As for [`Core::relist`].
    pub(super) unsafe fn exchange(&self, state: &mut State, page: u32, gfp: Gfp) -> bool {
        if !self.pool.inner().exchange(page, gfp) {
            return false;
        }
        // SAFETY: under the lock.
        unsafe { Header::flags(self.header(page)) }.fetch_and(!CHARGED, Ordering::Relaxed);
        state.reserve_pages -= 1;
        // SAFETY: as this function demands.
        unsafe { self.relist(state, page) };
        true
    }

    /// Puts a page on the list where it belongs now.
    ///
    /// # Safety
    /// `page` is a page of this cache, and the caller holds the lock that `state` comes from.
    pub(super) unsafe fn relist(&self, state: &mut State, page: u32) {
        // SAFETY: as this function demands.
        unsafe { self.unlist(state, page) };
        // SAFETY: under the lock.
        let flags = unsafe { Header::flags(self.header(page)) }.load(Ordering::Relaxed);
        // SAFETY: as in `take_slot`.
        let slots = unsafe { self.slots(page) };
        let full = slots.used == self.layout.per_page;
        slots.list = match (flags & CHARGED != 0 && self.fairness, full) {
            _ if flags & PINNED != 0 => List::None,
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
    /// As for [`Core::relist`].
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
}
