//! A page of a slab cache: where its objects lie, and what its header says.
//!
//! ```text
//!   0         32            FIRST
//!   | Header  | (alignment) | slot | slot | slot | ...            | rest |
//!                             used   free   used   fresh: never used yet
//! ```
//!
//! A slot is at least two bytes: a free one holds the offset of the next free one there.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use super::core::Core;
use crate::PAGE_SIZE;
use crate::frame::{Frame, FrameId};
use crate::inner::Inner;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Where objects of one size and alignment lie in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotLayout {
    /// Offset of the first slot.
    pub(crate) first: u16,
    /// Bytes from one slot to the next.
    pub(crate) slot: u16,
    /// Slots of a page; 0 if none fits.
    pub(crate) per_page: u16,
}

impl SlotLayout {
    /// For objects of `size` bytes at multiples of `align`, a power of two.
    pub(crate) const fn new(size: usize, align: usize) -> SlotLayout {
        let align = if align > 2 { align } else { 2 };
        let size = if size > 2 { size } else { 2 };
        let slot = size.next_multiple_of(align);
        let mut first = size_of::<Header>().next_multiple_of(align);
        let per_page = PAGE_SIZE.saturating_sub(first) / slot;
        // Slots of whole lines begin at a line where that costs no slot: else threads that have neighbours
        // would share one.
        let at_a_line = first.next_multiple_of(LINE);
        if slot.is_multiple_of(LINE) && PAGE_SIZE.saturating_sub(at_a_line) / slot == per_page {
            first = at_a_line;
        }
        if per_page == 0 {
            return SlotLayout { first: 0, slot: 0, per_page: 0 };
        }
        SlotLayout { first: first as u16, slot: slot as u16, per_page: per_page as u16 }
    }

    /// Pages that hold `objects` objects.
    pub(crate) const fn pages(self, objects: u32) -> u32 {
        objects.div_ceil(self.per_page as u32)
    }
}

/// The lists of pages. Full ordinary pages are on none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// Has a free slot for anyone.
    Open = 0,
    /// Has a free slot, for entitled callers.
    Reserve = 1,
    /// Charged to a reserve and full.
    ReserveFull = 2,
    None = 3,
}

pub(super) const NIL: u32 = u32::MAX;

/// The page is charged to a reserve.
pub(super) const CHARGED: u8 = 1;
/// A reservation takes slots of this page, and nobody else: on no list, and kept when it is empty.
pub(super) const PINNED: u8 = 2;

/// The start of each page. `core` and `page` are constant while the page has a slot out.
pub(super) struct Header {
    pub(super) core: NonNull<Core>,
    pub(super) page: u32,
    /// [`CHARGED`], [`PINNED`]. Written under the lock, and while slots are out flags are only taken away: an
    /// owner of a slot who reads 0 without the lock knows it for good.
    pub(super) flags: AtomicU8,
    /// [`Core::place`], read here so that a free need not wait for the cache's own line. Constant, too.
    pub(super) place: u8,
    /// Apart from the rest, so that a reference to it, made under the lock, does not cover what is read
    /// without.
    pub(super) slots: Slots,
}

/// The part of a header that changes; touched under the lock only.
pub(super) struct Slots {
    pub(super) next: u32,
    pub(super) prev: u32,
    /// Offset of the first slot that was used and is free; 0 is none.
    pub(super) free: u16,
    /// Offset of the first slot that was never used.
    pub(super) fresh: u16,
    /// Slots out: with an owner, or in a thread's cache.
    pub(super) used: u16,
    pub(super) list: List,
}

const _: () = assert!(size_of::<Header>() == 32);

impl Header {
    /// The header of the page that `object` lies in.
    ///
    /// # Safety
    /// `object` is a slot of a slab page.
    #[inline]
    pub(super) unsafe fn of(object: NonNull<u8>) -> NonNull<Header> {
        let base = object.as_ptr().map_addr(|a| a & !(PAGE_SIZE - 1));
        // SAFETY: frames are page-aligned and not at address 0, and the object lies in one.
        unsafe { NonNull::new_unchecked(base.cast()) }
    }

    /// The cache's place in threads' tables.
    ///
    /// # Safety
    /// As for [`Header::constants`].
    #[inline]
    pub(super) unsafe fn place(this: NonNull<Header>) -> u8 {
        // SAFETY: as there.
        unsafe { ptr::addr_of!((*this.as_ptr()).place).read() }
    }

    /// The constant part: the cache and the page's frame.
    ///
    /// # Safety
    /// The page has a slot out that the caller owns.
    #[inline]
    pub(super) unsafe fn constants(this: NonNull<Header>) -> (NonNull<Core>, u32) {
        // SAFETY: the header is initialised while a slot is out; the fields are read in place, as
        // others may change under the lock.
        unsafe {
            (
                ptr::addr_of!((*this.as_ptr()).core).read(),
                ptr::addr_of!((*this.as_ptr()).page).read(),
            )
        }
    }

    /// Whether no thread may keep slots of the page, and others must not have them without asking.
    ///
    /// # Safety
    /// As for [`Header::flags`].
    #[inline]
    pub(super) unsafe fn is_special(this: NonNull<Header>) -> bool {
        // SAFETY: as there.
        unsafe { Header::flags(this) }.load(Ordering::Relaxed) != 0
    }

    /// The flags of a page.
    ///
    /// # Safety
    /// As for [`Header::constants`], for as long as the result is used; or the lock is held.
    #[inline]
    pub(super) unsafe fn flags<'a>(this: NonNull<Header>) -> &'a AtomicU8 {
        // SAFETY: initialised, as the caller promises; an atomic may be shared with those who write it
        // under the lock.
        unsafe { &*ptr::addr_of!((*this.as_ptr()).flags) }
    }
}

/// Pages without objects on their way back to the pool, outside the cache's lock: chained through their
/// headers, which nobody else looks at any more.
pub(super) struct EmptyPages {
    pool: NonNull<Inner>,
    head: u32,
}

impl EmptyPages {
    pub(super) fn none(pool: NonNull<Inner>) -> EmptyPages {
        EmptyPages { pool, head: NIL }
    }

    /// # Safety
    /// `page` is a frame of the pool that a cache owned and gives up here, with `header` on no list.
    pub(super) unsafe fn add(&mut self, page: u32, slots: &mut Slots) {
        slots.next = std::mem::replace(&mut self.head, page);
    }

    /// Gives them back; returns how many there were.
    pub(super) fn give_back(mut self) -> u32 {
        let mut pages = 0;
        while self.head != NIL {
            let page = self.head;
            // SAFETY: the frame is out and owned by this chain, which keeps the pool alive.
            let base = unsafe { self.pool.as_ref() }.region.data(page);
            // SAFETY: the header is still there, and nobody else reads it.
            let dirty = unsafe {
                let header = base.cast::<Header>().as_ptr();
                self.head = (*header).slots.next;
                usize::from((*header).slots.fresh)
            };
            // An object may have had padding, which is no initialised memory; what a frame holds is. So
            // the bytes that header and objects were in are written anew.
            // SAFETY: the page is ours, and `dirty` bytes from its start were used.
            unsafe { base.write_bytes(0, dirty) };
            // SAFETY: the frame was owned by the cache, which gave it to this chain.
            drop(unsafe { Frame::new(self.pool, FrameId(page)) });
            pages += 1;
        }
        pages
    }
}
