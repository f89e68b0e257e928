//! The frames that hold pages: whose they are, which slot has a copy, and two lists by age.
//!
//! Frames are parked in the pool, so a frame costs no handle here. New pages enter the inactive
//! list at its head; reclaim works from its tail. A page that was accessed when reclaim came by goes
//! to the active list; the active list gives its oldest back while it is the longer one.
//!
//! Invariant: `meta[f].page` is not [`NONE`] exactly while frame `f` is held here.

use netswap_reserve::{Frame, FrameId, PAGE_SIZE, PagePool};

use crate::backend::Slot;
use crate::page::{AreaId, NONE, PageId};

/// Bytes of pager metadata that a frame of the pool costs.
pub const FRAME_BYTES: usize = size_of::<FrameMeta>();

/// The page is in the page tables.
pub(crate) const MAPPED: u8 = 1 << 0;
/// On the active list, else on the inactive one.
pub(crate) const ACTIVE: u8 = 1 << 1;
/// A slot holds a copy: dropping the frame needs no write.
pub(crate) const HAS_SLOT: u8 = 1 << 2;
/// Read ahead and not touched yet.
pub(crate) const READAHEAD: u8 = 1 << 3;
/// Just faulted in: reclaim passes once, whatever the page tables say.
pub(crate) const REFERENCED: u8 = 1 << 4;
/// On neither list: in the hands of reclaim.
pub(crate) const ISOLATED: u8 = 1 << 5;
/// When it is touched, the next window of readahead is due.
pub(crate) const MARKER: u8 = 1 << 6;

#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameMeta {
    pub(crate) page: u32,
    pub(crate) slot: Slot,
    prev: u32,
    next: u32,
    pub(crate) area: AreaId,
    pub(crate) flags: u8,
}

impl FrameMeta {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Where a copy of the page is.
    pub(crate) fn copy(&self) -> Option<(AreaId, Slot)> {
        self.has(HAS_SLOT).then_some((self.area, self.slot))
    }
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    len: u32,
}

const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };

/// The frames of a pool as far as the pager holds them.
#[derive(Debug)]
pub(crate) struct FrameTable {
    pool: PagePool,
    meta: Box<[FrameMeta]>,
    active: List,
    inactive: List,
    /// The frame whose content was looked at last, not parked while it is here.
    cursor: Option<Frame>,
}

impl FrameTable {
    pub(crate) fn new(pool: PagePool) -> FrameTable {
        let none = FrameMeta {
            page: NONE,
            slot: Slot(0),
            prev: NONE,
            next: NONE,
            area: AreaId(0),
            flags: 0,
        };
        let meta = vec![none; pool.frames() as usize].into();
        FrameTable { pool, meta, active: EMPTY, inactive: EMPTY, cursor: None }
    }

    pub(crate) fn meta(&self, frame: u32) -> &FrameMeta {
        &self.meta[frame as usize]
    }

    pub(crate) fn set(&mut self, frame: u32, flags: u8) {
        self.meta[frame as usize].flags |= flags;
    }

    pub(crate) fn clear(&mut self, frame: u32, flags: u8) {
        self.meta[frame as usize].flags &= !flags;
    }

    /// Frames of the pool.
    pub(crate) fn len(&self) -> u32 {
        self.meta.len() as u32
    }

    pub(crate) fn inactive_len(&self) -> u32 {
        self.inactive.len
    }

    pub(crate) fn active_len(&self) -> u32 {
        self.active.len
    }

    /// Takes a frame in as the content of `page`, at the head of the inactive list.
    pub(crate) fn put(&mut self, frame: Frame, page: PageId, copy: Option<(AreaId, Slot)>) -> u32 {
        let id = frame.park().index();
        let meta = &mut self.meta[id as usize];
        assert_eq!(meta.page, NONE, "a frame holds one page");
        meta.page = page.0;
        meta.flags = ISOLATED;
        if let Some((area, slot)) = copy {
            meta.flags |= HAS_SLOT;
            meta.area = area;
            meta.slot = slot;
        }
        self.push_head(id, false);
        id
    }

    /// Takes the frame out.
    pub(crate) fn take(&mut self, frame: u32) -> Frame {
        self.isolate(frame);
        assert_ne!(self.meta[frame as usize].page, NONE, "the frame is held here");
        self.meta[frame as usize].page = NONE;
        self.meta[frame as usize].flags = 0;
        let id = FrameId::from_index(frame);
        match self.cursor.take() {
            Some(held) if held.id() == id => held,
            other => {
                self.cursor = other;
                self.pool.unpark(id).expect("a held frame is parked")
            }
        }
    }

    /// The content of a held frame.
    pub(crate) fn bytes(&mut self, frame: u32) -> &mut [u8; PAGE_SIZE] {
        let id = FrameId::from_index(frame);
        if self.cursor.as_ref().is_none_or(|held| held.id() != id) {
            if let Some(held) = self.cursor.take() {
                held.park();
            }
            self.cursor = Some(self.pool.unpark(id).expect("a held frame is parked"));
        }
        self.cursor.as_mut().expect("just set").bytes_mut()
    }

    /// The oldest frame of the inactive, or of the active list.
    pub(crate) fn oldest(&self, active: bool) -> Option<u32> {
        let tail = if active { self.active.tail } else { self.inactive.tail };
        (tail != NONE).then_some(tail)
    }

    /// Takes the frame off its list; it stays held.
    pub(crate) fn isolate(&mut self, frame: u32) {
        let FrameMeta { prev, next, flags, .. } = self.meta[frame as usize];
        if flags & ISOLATED != 0 {
            return;
        }
        let list = if flags & ACTIVE != 0 { &mut self.active } else { &mut self.inactive };
        list.len -= 1;
        match prev {
            NONE => list.head = next,
            prev => self.meta[prev as usize].next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => self.meta[next as usize].prev = prev,
        }
        self.meta[frame as usize].flags |= ISOLATED;
    }

    /// Puts an isolated frame at the young end of a list.
    pub(crate) fn push_head(&mut self, frame: u32, active: bool) {
        let list = if active { &mut self.active } else { &mut self.inactive };
        let old = std::mem::replace(&mut list.head, frame);
        list.len += 1;
        if old == NONE {
            list.tail = frame;
        } else {
            self.meta[old as usize].prev = frame;
        }
        let meta = &mut self.meta[frame as usize];
        assert!(meta.has(ISOLATED), "a frame is on one list");
        meta.prev = NONE;
        meta.next = old;
        meta.flags &= !(ISOLATED | ACTIVE);
        meta.flags |= if active { ACTIVE } else { 0 };
    }

    /// Moves a frame to the young end of a list.
    pub(crate) fn rotate(&mut self, frame: u32, active: bool) {
        self.isolate(frame);
        self.push_head(frame, active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netswap_reserve::{Gfp, PoolConfig};

    #[test]
    fn a_frame_costs_at_most_24_bytes() {
        const { assert!(FRAME_BYTES <= 24) };
    }

    #[test]
    fn frames_leave_in_the_order_they_came_and_keep_their_content() {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
        let mut frames = FrameTable::new(pool.clone());
        for page in 0..8 {
            let frame = pool.alloc(Gfp::KERNEL).unwrap();
            let id = frames.put(frame, PageId(page), None);
            frames.bytes(id).fill(page as u8);
        }
        let first = frames.oldest(false).unwrap();
        frames.rotate(first, true);
        for page in 1..8 {
            let frame = frames.oldest(false).unwrap();
            assert_eq!(frames.meta(frame).page, page);
            assert_eq!(frames.take(frame).bytes()[99], page as u8);
        }
        assert_eq!((frames.inactive_len(), frames.active_len()), (0, 1));
        assert_eq!(frames.take(first).bytes()[0], 0);
        assert_eq!(pool.free_frames(), 64);
    }
}
