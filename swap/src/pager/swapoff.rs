//! Taking an area out: every page that is only there is read back, and leaves for other areas or
//! stays in memory. If that does not fit, the area is on again and says so.

use netswap_reserve::{Gfp, Time};

use super::{Pager, PagerEvent};
use crate::area::AreaState;
use crate::backend::SwapBackend;
use crate::error::SwapoffError;
use crate::page::{AreaId, Mmu, PageId, Pte};

/// Reads of a leaving area at once. Picked by eye: they take frames that tasks want too.
const MOVES_MAX: u32 = 4;
/// Entries looked at in one go.
const LOOK_MAX: u32 = 4096;

impl<B: SwapBackend> Pager<B> {
    /// Takes an area out (`swapoff`). Ends by [`PagerEvent::AreaOff`], or by
    /// [`PagerEvent::SwapoffRefused`], after which the area is as it was.
    pub fn swapoff(&mut self, now: Time, area: AreaId) {
        self.give_back_gathered();
        let refused = match self.areas.get(usize::from(area.0)).map(|a| a.state) {
            Some(AreaState::On | AreaState::Failed) => self.must_stay(now, area),
            Some(AreaState::Starting | AreaState::Checking) => {
                self.area_mut(area).state = AreaState::Leaving;
                return;
            }
            _ => Some(SwapoffError::NotOn),
        };
        if let Some(error) = refused {
            self.events.push_back(PagerEvent::SwapoffRefused { area, error });
            return;
        }
        let entry = self.area_mut(area);
        entry.leave_from = entry.state;
        entry.state = AreaState::Leaving;
        entry.leave_cursor = 0;
        entry.leave_error = None;
    }

    /// Why an area cannot be taken out, as far as that is known beforehand.
    fn must_stay(&self, now: Time, id: AreaId) -> Option<SwapoffError> {
        let read_only = self.area(id).options.read_only;
        let mut pages = 0;
        for pte in &self.ptes {
            pages += u32::from(match *pte {
                Pte::Swapped { area, .. } => area == id,
                Pte::Busy { io, .. } => self.ios.get(io).area == id,
                Pte::Resident { frame } => {
                    read_only && self.frames.meta(frame).copy().is_some_and(|(area, _)| area == id)
                }
                _ => false,
            });
        }
        if read_only {
            return (pages > 0).then_some(SwapoffError::InUse { pages });
        }
        let room = self.room_elsewhere(now, id);
        (pages > room).then_some(SwapoffError::NoRoom { pages, room })
    }

    /// Slots of other areas, and frames above the high watermark.
    fn room_elsewhere(&self, now: Time, id: AreaId) -> u32 {
        let frames = self.pool.free_frames().saturating_sub(self.pool.watermarks().high);
        let others = self.by_priority.iter().filter(|other| **other != id);
        frames.saturating_add(others.map(|other| self.area(*other).room(now)).sum())
    }

    pub(super) fn poll_swapoff(&mut self, now: Time, mmu: &mut impl Mmu) -> bool {
        let mut moved = false;
        for at in 0..self.areas.len() {
            if self.areas[at].state == AreaState::Leaving {
                moved |= self.leave(now, mmu, AreaId(at as u8));
            }
        }
        moved
    }

    fn leave(&mut self, now: Time, mmu: &mut impl Mmu, id: AreaId) -> bool {
        let area = self.area_mut(id);
        if let Some((slot, error)) = area.leave_error.take() {
            let place = self.area(id).place(id, slot);
            return self.stay(id, SwapoffError::Unreadable { place, error });
        }
        if area.slots.used() == 0 && area.ios == 0 {
            area.state = AreaState::Off;
            area.backend.shutdown(now);
            self.by_priority.retain(|other| *other != id);
            self.events.push_back(PagerEvent::AreaOff { area: id });
            return true;
        }
        let mut moved = false;
        for _ in 0..LOOK_MAX.min(self.config.max_pages) {
            let page = self.area(id).leave_cursor;
            match self.ptes[page as usize] {
                Pte::Swapped { area, slot }
                    if area == id && self.area(id).slots.is_damaged(slot) =>
                {
                    self.ptes[page as usize] = Pte::Lost { area, slot };
                    self.release_slot(area, slot);
                }
                Pte::Swapped { area, slot } if area == id => {
                    if self.area(id).ios >= MOVES_MAX {
                        return moved;
                    }
                    let Some(frame) = self.alloc_page(Gfp::KERNEL) else {
                        return moved | self.leave_for_want_of_memory(now, mmu, id);
                    };
                    let window = self.config.readahead_pages;
                    let single = self.area(id).slots.is_single(slot);
                    let window = if single { 1 } else { window };
                    if self
                        .read_window(now, PageId(page), area, slot, window, Some(frame))
                        .is_none()
                    {
                        return moved;
                    }
                    moved = true;
                }
                Pte::Resident { frame }
                    if self.frames.meta(frame).copy().is_some_and(|(area, _)| area == id) =>
                {
                    self.drop_copy(frame);
                    moved = true;
                }
                _ => {}
            }
            self.area_mut(id).leave_cursor = (page + 1) % self.config.max_pages;
        }
        moved
    }

    /// No frame for the next page. If reclaim finds none either, there is no room.
    fn leave_for_want_of_memory(&mut self, now: Time, mmu: &mut impl Mmu, id: AreaId) -> bool {
        self.direct_reclaim(now, mmu);
        let moves = self.ios.writes > 0 || self.area(id).ios > 0 || self.is_discarding();
        if !self.starved || moves {
            return false;
        }
        let (pages, room) = (self.area(id).slots.used(), self.room_elsewhere(now, id));
        self.stay(id, SwapoffError::NoRoom { pages, room })
    }

    fn stay(&mut self, id: AreaId, error: SwapoffError) -> bool {
        let area = self.area_mut(id);
        area.state = area.leave_from;
        self.events.push_back(PagerEvent::SwapoffRefused { area: id, error });
        self.reclaim_may_work();
        true
    }
}
