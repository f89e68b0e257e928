//! Mappings: ranges of pages, and slots that they give up.

use std::ops::Range;

use netswap_reserve::Time;

use super::Pager;
use crate::area::AreaState;
use crate::backend::{Slot, SwapBackend};
use crate::error::MapError;
use crate::frames::{HAS_SLOT, MAPPED, READAHEAD};
use crate::page::{AreaId, Mmu, NONE, PageId, Pte};

impl<B: SwapBackend> Pager<B> {
    /// Maps `pages` pages of zeros.
    ///
    /// # Panics
    /// If they do not fit [`crate::PagerConfig::max_pages`]; [`Pager::try_map_anonymous`] does not.
    pub fn map_anonymous(&mut self, pages: u32) -> Range<PageId> {
        self.try_map_anonymous(pages).expect("the mappings fit the pager")
    }

    /// Maps `pages` pages of zeros.
    ///
    /// # Errors
    /// If no such range of page ids is free.
    pub fn try_map_anonymous(&mut self, pages: u32) -> Result<Range<PageId>, MapError> {
        let range = self.find_range(pages)?;
        self.ptes[range.start as usize..range.end as usize].fill(Pte::Zero);
        Ok(PageId(range.start)..PageId(range.end))
    }

    /// Maps `pages` pages of the file that a read-only area holds, from slot `first` on; `checksum`
    /// gives the [`crate::checksum`] of each by its number in the mapping. A page that is written
    /// becomes private to the mapping.
    ///
    /// # Panics
    /// As [`Pager::try_map_file`] has errors.
    pub fn map_file(
        &mut self,
        area: AreaId,
        first: Slot,
        pages: u32,
        checksum: &dyn Fn(u32) -> u64,
    ) -> Range<PageId> {
        self.try_map_file(area, first, pages, checksum).expect("the file can be mapped")
    }

    /// As [`Pager::map_file`].
    ///
    /// # Errors
    /// If the area is not a read-only area that is on, or is shorter, or no range of ids is free.
    pub fn try_map_file(
        &mut self,
        area: AreaId,
        first: Slot,
        pages: u32,
        checksum: &dyn Fn(u32) -> u64,
    ) -> Result<Range<PageId>, MapError> {
        let found = self.areas.get(usize::from(area.0));
        let Some(file) = found.filter(|a| a.options.read_only && a.state == AreaState::On) else {
            return Err(MapError::NotAFileArea);
        };
        let (end, slots) = (u64::from(first.0) + u64::from(pages), file.slots.len());
        if end > u64::from(slots) {
            return Err(MapError::OutOfRange { first: first.0, end, slots });
        }
        let range = self.find_range(pages)?;
        for i in 0..pages {
            let slot = Slot(first.0 + i);
            self.area_mut(area).slots.set_checksum(slot, checksum(i));
            self.ptes[(range.start + i) as usize] = Pte::Swapped { area, slot };
        }
        Ok(PageId(range.start)..PageId(range.end))
    }

    /// A free range of page ids, from the end of the last one on, then from the start.
    fn find_range(&mut self, pages: u32) -> Result<Range<u32>, MapError> {
        let max = self.config.max_pages;
        let none = MapError::NoPages { pages, max };
        if pages == 0 || pages > max {
            return Err(none);
        }
        for start in [self.map_cursor, 0] {
            let mut run = start;
            for page in start..max {
                if self.ptes[page as usize] != Pte::Unmapped {
                    run = page + 1;
                } else if page + 1 - run == pages {
                    self.map_cursor = page + 1;
                    return Ok(run..page + 1);
                }
            }
        }
        Err(none)
    }

    /// Ends mappings: frees their frames and slots, those in requests when the request ends. Faults
    /// that wait for one of the pages fail with [`crate::PageError::NotMapped`].
    pub fn unmap(&mut self, now: Time, mmu: &mut impl Mmu, range: Range<PageId>) {
        let _ = now;
        for page in range.start.0..range.end.0.min(self.config.max_pages) {
            match std::mem::replace(&mut self.ptes[page as usize], Pte::Unmapped) {
                Pte::Unmapped | Pte::Zero | Pte::Lost { .. } => {}
                Pte::Resident { frame } => {
                    let meta = *self.frames.meta(frame);
                    if meta.has(MAPPED) {
                        mmu.unmap(PageId(page));
                    }
                    self.stats.readahead_unused += u64::from(meta.has(READAHEAD));
                    if let Some((area, slot)) = meta.copy() {
                        self.release_slot(area, slot);
                    }
                    drop(self.frames.take(frame));
                }
                Pte::Swapped { area, slot } => self.release_slot(area, slot),
                Pte::Busy { io, at } => self.ios.get_mut(io).pages[usize::from(at)] = NONE,
            }
        }
        self.reclaim_may_work();
        self.fail_unmapped_waiters();
    }

    /// Gives a slot back to its area, to be discarded if that is wanted; a slot of a file is not the pager's to give.
    pub(super) fn release_slot(&mut self, id: AreaId, slot: Slot) {
        if self.release_unwritten(id, slot) {
            self.gather(id, slot);
        }
    }

    /// As [`Pager::release_slot`], of a slot that nothing was written to since it was taken. Whether it is free.
    pub(super) fn release_unwritten(&mut self, id: AreaId, slot: Slot) -> bool {
        let area = self.area_mut(id);
        if area.options.read_only {
            return false;
        }
        let quarantined = area.slots.release(slot);
        if quarantined {
            self.note_quarantined(id, 1);
        }
        self.reclaim_may_work();
        !quarantined
    }

    /// So many slots of the area went to quarantine: says so once, if they are too many now.
    pub(super) fn note_quarantined(&mut self, id: AreaId, slots: u32) {
        self.stats.quarantined_slots += u64::from(slots);
        let area = self.area_mut(id);
        let in_quarantine = area.slots.quarantined();
        if !area.quarantine_told && in_quarantine > area.quarantine_max() {
            area.quarantine_told = true;
            self.events
                .push_back(super::PagerEvent::QuarantineFull { area: id, slots: in_quarantine });
        }
    }

    /// Gives up the copy that a resident page has in a slot.
    pub(super) fn drop_copy(&mut self, frame: u32) {
        if let Some((area, slot)) = self.frames.meta(frame).copy() {
            self.frames.clear(frame, HAS_SLOT);
            self.release_slot(area, slot);
        }
    }
}
