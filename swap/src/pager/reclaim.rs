//! Reclaim: frames are freed by dropping clean pages and zero pages, and by writing dirty ones.
//!
//! It needs no memory: victims are gathered in an array, requests come from the fixed table, and the
//! frame that is written is the frame that becomes free.

use arrayvec::ArrayVec;
use netswap_reserve::{Span, Time};

use super::Pager;
use crate::area::AreaState;
use crate::backend::{BATCH_PAGES_MAX, Op, Slot, SwapBackend};
use crate::error::PageError;
use crate::frames::{HAS_SLOT, ISOLATED, MAPPED, READAHEAD, REFERENCED};
use crate::page::{AreaId, Mmu, NONE, PageId, Pte};

/// Dirty pages gathered before they are given slots.
const VICTIMS: usize = 64;
/// Frames that direct reclaim tries to free (the kernel's `SWAP_CLUSTER_MAX`).
const DIRECT: u32 = 32;
/// Dirty pages that a scan passes over when no more may be written.
const SKIPS_MAX: u32 = 128;
/// A scan that ended at dirty pages which may not be written yet is followed by the next when this share
/// of the pages that may be on their way to the store has got there. Picked by eye.
const WRITE_ROOM: u32 = 8;
/// The first and the longest wait after a scan that freed nothing. Picked by eye.
const RESCAN_FIRST: Span = Span::from_millis(10);
const RESCAN_MAX: Span = Span::from_secs(1);

type Victims = ArrayVec<u32, VICTIMS>;

impl<B: SwapBackend> Pager<B> {
    /// Frees frames from the low watermark up to the high one.
    pub(super) fn background_reclaim(&mut self, now: Time, mmu: &mut impl Mmu) -> bool {
        if now >= self.next_scan {
            // A deadline that has come is none, or whoever drives this would be called back at once.
            self.next_scan = Time::ZERO;
        }
        let most = self.config.writeback_pages;
        if self.waits_for_writes && self.ios.writeback_pages <= most - most / WRITE_ROOM {
            self.waits_for_writes = false;
            self.next_scan = Time::ZERO;
        }
        let pressure = self.pool.take_pressure();
        let marks = self.pool.watermarks();
        let free = self.pool.free_frames();
        let waiting = self.frame_waiters.head != NONE;
        if free >= marks.high && !waiting {
            self.reclaiming = false;
            return false;
        }
        self.reclaiming |= free < marks.low || pressure || waiting;
        let want = marks.high.saturating_sub(free).max(u32::from(waiting));
        let want = want.saturating_sub(self.ios.writeback_pages);
        if !self.reclaiming || want == 0 || now < self.next_scan {
            return false;
        }
        self.scan(now, mmu, want) > 0
    }

    /// Frees frames for a fault that found none.
    pub(super) fn direct_reclaim(&mut self, now: Time, mmu: &mut impl Mmu) {
        self.reclaim(now, mmu, DIRECT);
    }

    /// Frees `want` frames, or begins to, for an allocation that is none of the pager's own: what direct
    /// reclaim is to a fault. Does nothing soon after a scan that freed nothing.
    pub fn reclaim(&mut self, now: Time, mmu: &mut impl Mmu, want: u32) {
        if want > 0 && now >= self.next_scan {
            self.stats.direct_reclaims += 1;
            self.scan(now, mmu, want);
        }
    }

    fn scan(&mut self, now: Time, mmu: &mut impl Mmu, want: u32) -> u32 {
        self.waits_for_writes = false;
        let (done, no_slots) = self.shrink(now, mmu, want);
        self.starved = done == 0 && no_slots;
        if done > 0 {
            self.rescan = RESCAN_FIRST;
            self.next_scan = if self.waits_for_writes { now + RESCAN_FIRST } else { Time::ZERO };
        } else {
            self.next_scan = now + self.rescan;
            self.rescan = (self.rescan * 2).min(RESCAN_MAX);
        }
        done
    }

    /// Looks at pages, oldest first, until `want` frames are free or on their way to the store.
    /// Gives how many, and whether dirty pages were passed over since no slot was to be had.
    fn shrink(&mut self, now: Time, mmu: &mut impl Mmu, want: u32) -> (u32, bool) {
        let mut victims = Victims::new();
        let (mut freed, mut written, mut skips, mut no_slots) = (0, 0, 0, false);
        // Twice: the first pass may find every page accessed, and clears that.
        let mut budget = 2 * self.resident_pages() + 1;
        while freed + written + (victims.len() as u32) < want && budget > 0 && skips < SKIPS_MAX {
            budget -= 1;
            let from_active = self.frames.active_len() > self.frames.inactive_len();
            let Some(frame) = self.frames.oldest(from_active) else { break };
            self.stats.scanned += 1;
            let page = PageId(self.frames.meta(frame).page);
            let accessed = self.accessed(mmu, frame, page);
            if from_active || accessed {
                self.frames.rotate(frame, accessed);
                continue;
            }
            let writing = self.ios.writeback_pages + victims.len() as u32;
            if !self.frames.meta(frame).has(HAS_SLOT) && writing >= self.config.writeback_pages {
                self.frames.rotate(frame, false);
                skips += 1;
                // The oldest pages are dirty. To look again for each page that gets written would cost
                // more than all else when memory is large.
                self.waits_for_writes = skips == SKIPS_MAX;
                continue;
            }
            if self.frames.meta(frame).has(MAPPED) {
                self.frames.clear(frame, MAPPED);
                if mmu.unmap(page) {
                    self.drop_copy(frame);
                }
            }
            if let Some((area, slot)) = self.frames.meta(frame).copy() {
                self.ptes[page.0 as usize] = Pte::Swapped { area, slot };
                self.stats.clean_drops += 1;
                self.free_page(frame);
                freed += 1;
            } else if self.frames.bytes(frame).iter().all(|byte| *byte == 0) {
                self.ptes[page.0 as usize] = Pte::Zero;
                self.stats.zero_pages_not_stored += 1;
                self.free_page(frame);
                freed += 1;
            } else if !self.make_room(now, victims.len() as u32 + 1) {
                self.frames.rotate(frame, false);
                self.stats.skipped_no_slot += 1;
                no_slots = true;
            } else {
                self.frames.isolate(frame);
                victims.push(frame);
                freed += self.gather_neighbours(now, mmu, page, &mut victims);
                if victims.is_full() {
                    written += self.write_out(now, &mut victims);
                }
            }
        }
        written += self.write_out(now, &mut victims);
        (freed + written, no_slots)
    }

    /// Adds the pages around a victim that are as cold and as dirty: one request then writes them
    /// all. Tasks that fill memory at the same time leave their pages interleaved in the lists, so
    /// age alone would give requests of one page. Gives the zero pages that it freed.
    fn gather_neighbours(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        page: PageId,
        victims: &mut Victims,
    ) -> u32 {
        let first = page.0 - page.0 % BATCH_PAGES_MAX as u32;
        let end = (first + BATCH_PAGES_MAX as u32).min(self.config.max_pages);
        let mut freed = 0;
        for page in (first..end).map(PageId) {
            let Pte::Resident { frame } = self.ptes[page.0 as usize] else { continue };
            if self.frames.meta(frame).has(HAS_SLOT | ISOLATED) {
                continue;
            }
            let writing = self.ios.writeback_pages + victims.len() as u32;
            let room = self.slot_room(now) > victims.len() as u32;
            if victims.is_full() || writing >= self.config.writeback_pages || !room {
                break;
            }
            if self.accessed(mmu, frame, page) {
                self.frames.set(frame, REFERENCED);
                continue;
            }
            if self.frames.meta(frame).has(MAPPED) {
                self.frames.clear(frame, MAPPED);
                mmu.unmap(page);
            }
            if self.frames.bytes(frame).iter().all(|byte| *byte == 0) {
                self.ptes[page.0 as usize] = Pte::Zero;
                self.stats.zero_pages_not_stored += 1;
                self.free_page(frame);
                freed += 1;
            } else {
                self.frames.isolate(frame);
                victims.push(frame);
            }
        }
        freed
    }

    /// Makes room for a window of readahead, at the cost of the oldest pages.
    pub(super) fn reclaim_for_readahead(&mut self, now: Time, mmu: &mut impl Mmu, window: u8) {
        let free = self.pool.free_frames();
        let want = (self.pool.watermarks().low + u32::from(window)).saturating_sub(free);
        if window > 1 && want > 0 && now >= self.next_scan {
            self.scan(now, mmu, want);
        }
    }

    fn accessed(&mut self, mmu: &mut impl Mmu, frame: u32, page: PageId) -> bool {
        let meta = self.frames.meta(frame);
        let referenced = meta.has(REFERENCED);
        let accessed = meta.has(MAPPED) && mmu.test_and_clear_accessed(page);
        self.frames.clear(frame, REFERENCED);
        referenced || accessed
    }

    fn free_page(&mut self, frame: u32) {
        self.stats.readahead_unused += u64::from(self.frames.meta(frame).has(READAHEAD));
        drop(self.frames.take(frame));
    }

    /// Whether `slots` slots can be given out, after giving up those of clean resident pages.
    fn make_room(&mut self, now: Time, slots: u32) -> bool {
        if self.slot_room(now) >= slots {
            return true;
        }
        let mut wanted = VICTIMS;
        for _ in 0..self.frames.len() {
            if wanted == 0 {
                break;
            }
            self.slot_hand = (self.slot_hand + 1) % self.frames.len();
            let meta = *self.frames.meta(self.slot_hand);
            let Some((area, _)) = meta.copy().filter(|_| meta.page != NONE) else { continue };
            let area = self.area(area);
            if area.state == AreaState::On && !area.options.read_only {
                self.drop_copy(self.slot_hand);
                self.stats.slots_given_up += 1;
                wanted -= 1;
            }
        }
        self.slot_room(now) >= slots
    }

    /// Gives the victims slots and queues their writes. Gives the pages that are on their way; the
    /// others go back to the inactive list.
    fn write_out(&mut self, now: Time, victims: &mut Victims) -> u32 {
        victims.sort_unstable_by_key(|frame| self.frames.meta(*frame).page);
        let mut written = 0;
        let mut open: Option<u16> = None;
        let mut last: Option<(u32, AreaId, Slot)> = None;
        for frame in victims.drain(..) {
            let page = self.frames.meta(frame).page;
            let after =
                last.filter(|(before, ..)| before + 1 == page).map(|(_, area, slot)| (area, slot));
            let Some((area, slot)) = self.alloc_slot(now, PageId(page), after) else {
                self.frames.push_head(frame, false);
                continue;
            };
            last = Some((page, area, slot));
            if let Some(io) = open
                && !self.may_join(io, area, slot)
            {
                self.enqueue(io);
                open = None;
            }
            let Some(io) = open.or_else(|| self.ios.alloc(Op::Write, area, slot)) else {
                self.release_unwritten(area, slot);
                self.frames.push_head(frame, false);
                continue;
            };
            open = Some(io);
            self.add_to_write(io, frame, page);
            written += 1;
        }
        if let Some(io) = open {
            self.enqueue(io);
        }
        self.submit_all(now);
        written
    }

    fn may_join(&self, io: u16, area: AreaId, slot: Slot) -> bool {
        let entry = self.ios.get(io);
        let limit = self.area(area).backend.limits().batch_pages.clamp(1, BATCH_PAGES_MAX);
        entry.area == area
            && usize::from(entry.count) < limit
            && entry.slot(usize::from(entry.count)) == slot
    }

    fn add_to_write(&mut self, io: u16, frame: u32, page: u32) {
        let frame = self.frames.take(frame);
        let checksum = super::checksum(frame.bytes());
        let entry = self.ios.get_mut(io);
        let at = usize::from(entry.count);
        let (area, slot) = (entry.area, entry.slot(at));
        let slots = &mut self.areas[usize::from(area.0)].slots;
        slots.set_checksum(slot, checksum);
        entry.pages[at] = page;
        entry.generations[at] = slots.generation(slot);
        entry.frames.push(frame);
        entry.count += 1;
        self.ios.writeback_pages += 1;
        self.ptes[page as usize] = Pte::Busy { io, at: at as u8 };
    }

    /// The rule of running out: a fault waits for a frame, the last full scan freed nothing since no
    /// slot was to be had, nothing is being written, and no request ended, for
    /// [`crate::PagerConfig::oom_after`]. Then the fault that waits longest fails; and again after
    /// as long, if that did not help.
    pub(super) fn poll_out_of_swap(&mut self, now: Time) -> bool {
        // A discard that ends makes slots free, as a write that ends makes frames free.
        let moves = self.ios.writes > 0 || self.is_discarding();
        if !self.starved || self.frame_waiters.head == NONE || moves {
            self.stuck_since = None;
            return false;
        }
        let since = *self.stuck_since.get_or_insert(now);
        if now.since(since) < self.config.oom_after {
            return false;
        }
        self.stuck_since = None;
        let Some(task) = self.pop_frame_waiter() else { return false };
        let quarantined = self.areas.iter().map(|area| area.slots.quarantined()).sum();
        self.stats.out_of_swap += 1;
        let error = self.failed_area(quarantined).unwrap_or(PageError::OutOfSwap { quarantined });
        self.fail_task(task, error);
        true
    }

    /// The area whose failure has left too few slots.
    fn failed_area(&self, quarantined: u32) -> Option<PageError> {
        let failed = |id: &AreaId| self.area(*id).state == AreaState::Failed;
        let id = self.by_priority.iter().copied().find(failed)?;
        let area = self.area(id);
        let (name, server) = (area.name.clone(), area.server.clone());
        Some(PageError::AreaFailed { area: id, name, server, error: area.failed_by?, quarantined })
    }
}
