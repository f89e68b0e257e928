//! Faults, and tasks that wait.

use netswap_reserve::{Frame, Gfp, Time};

use super::{Pager, PagerEvent};
use crate::area::AreaState;
use crate::backend::{BATCH_PAGES_MAX, Op, Slot, SwapBackend};
use crate::error::PageError;
use crate::frames::{HAS_SLOT, MAPPED, MARKER, READAHEAD, REFERENCED};
use crate::io_table::{IoState, Wait};
use crate::page::{Access, AreaId, Fault, Mmu, NONE, PageId, Pte, TaskId};

/// How far one attempt at a fault got.
enum Step {
    Done,
    NeedsFrame,
    NeedsIo(u16),
    Failed(PageError),
}

impl<B: SwapBackend> Pager<B> {
    /// A task touched a page that is not mapped, or not writable.
    ///
    /// # Panics
    /// If `task` is not below [`crate::PagerConfig::max_tasks`], or waits already.
    pub fn handle_fault(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        task: TaskId,
        page: PageId,
        access: Access,
    ) -> Fault {
        let entry = &mut self.tasks[task.0 as usize];
        assert_eq!(entry.wait, Wait::Nothing, "a task that waits cannot fault");
        entry.page = page;
        entry.access = access;
        // Whoever waits for a frame already is first.
        let may_alloc = self.frame_waiters.head == NONE;
        match self.step(now, mmu, task, may_alloc, true) {
            Step::Done => Fault::Done,
            Step::Failed(error) => Fault::Failed(error),
            Step::NeedsFrame => {
                self.stats.frame_waits += 1;
                self.wait_for_frame(task, false);
                Fault::Waits
            }
            Step::NeedsIo(io) => {
                self.wait_for_io(task, io);
                Fault::Waits
            }
        }
    }

    /// Forgets that a task waits: it was killed. Its I/O goes on.
    pub fn cancel_fault(&mut self, task: TaskId) {
        match self.tasks[task.0 as usize].wait {
            Wait::Nothing => {}
            Wait::Frame => {
                let mut rest =
                    std::mem::replace(&mut self.frame_waiters, crate::area::Queue::EMPTY).head;
                while rest != NONE {
                    let this = rest;
                    rest = self.tasks[this as usize].next;
                    if this != task.0 {
                        self.wait_for_frame(TaskId(this), false);
                    }
                }
            }
            Wait::Io(io) => {
                let mut rest = std::mem::replace(&mut self.ios.get_mut(io).waiters, NONE);
                while rest != NONE {
                    let this = rest;
                    rest = self.tasks[this as usize].next;
                    if this != task.0 {
                        self.wait_for_io(TaskId(this), io);
                    }
                }
            }
        }
        self.tasks[task.0 as usize].wait = Wait::Nothing;
        self.events.retain(|event| match event {
            PagerEvent::FaultDone { task: whose, .. }
            | PagerEvent::FaultFailed { task: whose, .. } => *whose != task,
            _ => true,
        });
    }

    fn wait_for_frame(&mut self, task: TaskId, first: bool) {
        let queue = &mut self.frame_waiters;
        let entry = &mut self.tasks[task.0 as usize];
        entry.wait = Wait::Frame;
        if first {
            entry.next = queue.head;
            queue.head = task.0;
            if queue.tail == NONE {
                queue.tail = task.0;
            }
            return;
        }
        entry.next = NONE;
        let tail = std::mem::replace(&mut queue.tail, task.0);
        match tail {
            NONE => queue.head = task.0,
            tail => self.tasks[tail as usize].next = task.0,
        }
    }

    pub(super) fn pop_frame_waiter(&mut self) -> Option<TaskId> {
        let head = self.frame_waiters.head;
        if head == NONE {
            return None;
        }
        let entry = &mut self.tasks[head as usize];
        entry.wait = Wait::Nothing;
        self.frame_waiters.head = entry.next;
        if entry.next == NONE {
            self.frame_waiters.tail = NONE;
        }
        Some(TaskId(head))
    }

    fn wait_for_io(&mut self, task: TaskId, io: u16) {
        let waiters = &mut self.ios.get_mut(io).waiters;
        let entry = &mut self.tasks[task.0 as usize];
        entry.wait = Wait::Io(io);
        entry.next = std::mem::replace(waiters, task.0);
    }

    /// Serves tasks that wait for a frame, in order, as far as frames go.
    pub(super) fn serve_frame_waiters(&mut self, now: Time, mmu: &mut impl Mmu) -> bool {
        let mut moved = false;
        while self.frame_waiters.head != NONE {
            // Anything but an ordinary frame in hand is no reason to try.
            let Some(frame) = self.alloc_page(Gfp::KERNEL) else { break };
            drop(frame);
            let Some(task) = self.pop_frame_waiter() else { break };
            match self.step(now, mmu, task, true, false) {
                Step::NeedsFrame => {
                    self.wait_for_frame(task, true);
                    break;
                }
                step => self.end_wait(task, step),
            }
            self.stuck_since = None;
            moved = true;
        }
        moved
    }

    /// Tries again for the tasks of a list, which an I/O that ended had.
    pub(super) fn retry_waiters(&mut self, now: Time, mmu: &mut impl Mmu, mut list: u32) {
        while list != NONE {
            let task = TaskId(list);
            list = self.tasks[task.0 as usize].next;
            self.tasks[task.0 as usize].wait = Wait::Nothing;
            match self.step(now, mmu, task, true, true) {
                Step::NeedsFrame => self.wait_for_frame(task, false),
                step => self.end_wait(task, step),
            }
        }
    }

    fn end_wait(&mut self, task: TaskId, step: Step) {
        let page = self.tasks[task.0 as usize].page;
        match step {
            Step::Done => self.events.push_back(PagerEvent::FaultDone { task, page }),
            Step::Failed(error) => self.fail_task(task, error),
            Step::NeedsIo(io) => self.wait_for_io(task, io),
            Step::NeedsFrame => self.wait_for_frame(task, false),
        }
    }

    pub(super) fn fail_task(&mut self, task: TaskId, error: PageError) {
        let entry = &mut self.tasks[task.0 as usize];
        entry.wait = Wait::Nothing;
        self.events.push_back(PagerEvent::FaultFailed { task, page: entry.page, error });
    }

    /// Fails the tasks of a list that wait for `page`; gives the list of the others.
    pub(super) fn fail_waiters_of(&mut self, mut list: u32, page: u32, error: &PageError) -> u32 {
        let mut others = NONE;
        while list != NONE {
            let task = TaskId(list);
            list = self.tasks[task.0 as usize].next;
            if self.tasks[task.0 as usize].page.0 == page {
                self.fail_task(task, error.clone());
            } else {
                self.tasks[task.0 as usize].next = others;
                others = task.0;
            }
        }
        others
    }

    /// Whether a task of a list waits for `page`.
    pub(super) fn is_wanted(&self, mut list: u32, page: u32) -> bool {
        while list != NONE {
            let task = &self.tasks[list as usize];
            if task.page.0 == page {
                return true;
            }
            list = task.next;
        }
        false
    }

    /// Fails the faults that wait for pages that are mapped no more.
    pub(super) fn fail_unmapped_waiters(&mut self) {
        for task in 0..self.tasks.len() {
            let entry = &self.tasks[task];
            let unmapped = self.ptes.get(entry.page.0 as usize) == Some(&Pte::Unmapped);
            if entry.wait != Wait::Nothing && unmapped {
                self.cancel_fault(TaskId(task as u32));
                self.fail_task(TaskId(task as u32), PageError::NotMapped);
            }
        }
    }

    pub(super) fn fail_all_waiters(&mut self) {
        for task in 0..self.tasks.len() as u32 {
            if self.tasks[task as usize].wait != Wait::Nothing {
                self.cancel_fault(TaskId(task));
                self.fail_task(TaskId(task), PageError::ShutDown);
            }
        }
    }

    /// One attempt at the fault that `task` has.
    fn step(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        task: TaskId,
        may_alloc: bool,
        direct: bool,
    ) -> Step {
        let (page, access) = {
            let entry = &self.tasks[task.0 as usize];
            (entry.page, entry.access)
        };
        if self.shut_down {
            return Step::Failed(PageError::ShutDown);
        }
        match self.ptes.get(page.0 as usize).copied().unwrap_or(Pte::Unmapped) {
            Pte::Unmapped => Step::Failed(PageError::NotMapped),
            Pte::Lost { area, slot } => {
                let lost = self.area(area);
                Step::Failed(PageError::Poisoned {
                    place: lost.place(area, slot),
                    cause: lost.poisoned_by,
                })
            }
            Pte::Zero => {
                let frame = may_alloc.then(|| self.frame_for_fault(now, mmu, direct)).flatten();
                let Some(mut frame) = frame else { return Step::NeedsFrame };
                frame.bytes_mut().fill(0);
                let frame = self.frames.put(frame, page, None);
                self.ptes[page.0 as usize] = Pte::Resident { frame };
                self.frames.set(frame, MAPPED | REFERENCED);
                mmu.map(page, true);
                self.stats.zero_faults += 1;
                Step::Done
            }
            Pte::Resident { frame } => {
                if self.frames.meta(frame).has(MARKER) {
                    self.frames.clear(frame, MARKER);
                    // Making room for the next window must not take this very page.
                    self.frames.isolate(frame);
                    self.read_next_window(now, mmu, task, page);
                    self.frames.push_head(frame, false);
                }
                self.map_resident(mmu, frame, page, access);
                Step::Done
            }
            Pte::Swapped { area, slot } if self.area(area).slots.is_damaged(slot) => {
                let place = self.area(area).place(area, slot);
                Step::Failed(PageError::Damaged { place, reads: crate::slots::REREADS_MAX + 1 })
            }
            Pte::Swapped { area, slot } => {
                if !may_alloc {
                    return Step::NeedsFrame;
                }
                let Some(frame) = self.frame_for_fault(now, mmu, direct) else {
                    return Step::NeedsFrame;
                };
                // Direct reclaim does not touch pages that are out, so the entry still holds.
                let max = if self.area(area).slots.is_single(slot) {
                    1
                } else {
                    self.config.readahead_pages
                };
                let window = self.tasks[task.0 as usize].streams.miss(page.0, max);
                self.reclaim_for_readahead(now, mmu, window);
                match self.read_window(now, page, area, slot, window, Some(frame)) {
                    Some((io, got)) => {
                        self.stats.major_faults += 1;
                        self.tasks[task.0 as usize].streams.cut(page.0 + got);
                        Step::NeedsIo(io)
                    }
                    None => Step::NeedsFrame,
                }
            }
            Pte::Busy { io, .. } => {
                let busy = self.ios.get(io);
                if busy.op == Op::Write {
                    self.stats.writeback_waits += 1;
                    if busy.state == IoState::Queued {
                        self.take_back_write(now, mmu, io);
                        self.stats.writes_taken_back += 1;
                        return self.step(now, mmu, task, may_alloc, direct);
                    }
                } else {
                    self.stats.major_faults += 1;
                }
                Step::NeedsIo(io)
            }
        }
    }

    /// A frame, after direct reclaim if it must be.
    fn frame_for_fault(&mut self, now: Time, mmu: &mut impl Mmu, direct: bool) -> Option<Frame> {
        let frame = self.alloc_page(Gfp::KERNEL);
        if frame.is_some() || !direct {
            return frame;
        }
        self.direct_reclaim(now, mmu);
        self.alloc_page(Gfp::KERNEL)
    }

    /// Maps a page that is in memory; a write gives up the copy that a slot has of it.
    fn map_resident(&mut self, mmu: &mut impl Mmu, frame: u32, page: PageId, access: Access) {
        let meta = *self.frames.meta(frame);
        self.stats.readahead_used += u64::from(meta.has(READAHEAD));
        if meta.has(MAPPED) && meta.has(HAS_SLOT) && access == Access::Write {
            self.stats.write_faults += 1;
        } else {
            self.stats.minor_faults += 1;
        }
        if access == Access::Write {
            self.drop_copy(frame);
        }
        self.frames.clear(frame, READAHEAD);
        self.frames.set(frame, MAPPED | REFERENCED);
        mmu.map(page, !self.frames.meta(frame).has(HAS_SLOT));
    }

    /// Starts to read up to `window` pages from `page` on, as far as their slots are adjacent and
    /// memory is plentiful. The frame of the first may be handed in. Gives the I/O and the number of
    /// pages; `None` if there is no frame or no free I/O.
    pub(super) fn read_window(
        &mut self,
        now: Time,
        page: PageId,
        area: AreaId,
        slot: Slot,
        window: u8,
        frame: Option<Frame>,
    ) -> Option<(u16, u32)> {
        let demanded = frame.is_some();
        let limit = self.area(area).backend.limits().batch_pages.clamp(1, BATCH_PAGES_MAX);
        let window = usize::from(window).min(limit);
        let io = self.ios.alloc(Op::Read, area, slot)?;
        let mut next = frame.or_else(|| self.alloc_page(Gfp::SPECULATIVE));
        let mut count = 0;
        while let Some(frame) = next.take() {
            let at = page.0 + count;
            let slot = Slot(slot.0 + count);
            let generation = self.area(area).slots.generation(slot);
            let entry = self.ios.get_mut(io);
            entry.pages[count as usize] = at;
            entry.generations[count as usize] = generation;
            entry.frames.push(frame);
            entry.count += 1;
            self.ptes[at as usize] = Pte::Busy { io, at: count as u8 };
            count += 1;
            let follows = self.ptes.get(at as usize + 1).copied();
            let slots = &self.area(area).slots;
            let adjacent = Slot(slot.0 + 1);
            if (count as usize) < window
                && follows == Some(Pte::Swapped { area, slot: adjacent })
                && !slots.is_single(adjacent)
            {
                next = self.alloc_page(Gfp::SPECULATIVE);
            }
        }
        if count == 0 {
            self.ios.free(io);
            return None;
        }
        let entry = self.ios.get_mut(io);
        entry.ahead_from = u8::from(demanded);
        if window > 1 && count > u32::from(demanded) {
            // Touching the first page read ahead makes the next window due.
            entry.marker = u8::from(demanded);
        }
        self.stats.readahead_pages += u64::from(count) - u64::from(demanded);
        self.enqueue(io);
        self.submit(now, area);
        Some((io, count))
    }

    /// Reads the window after the one of which `page` is the marked page.
    fn read_next_window(&mut self, now: Time, mmu: &mut impl Mmu, task: TaskId, page: PageId) {
        let max = self.config.readahead_pages;
        let Some((first, window)) = self.tasks[task.0 as usize].streams.ahead(page.0, max) else {
            return;
        };
        let got = match self.ptes.get(first as usize).copied() {
            Some(Pte::Swapped { area, slot })
                if self.area(area).state != AreaState::Off
                    && !self.area(area).slots.is_single(slot) =>
            {
                self.reclaim_for_readahead(now, mmu, window);
                self.read_window(now, PageId(first), area, slot, window, None).map_or(0, |(_, n)| n)
            }
            _ => 0,
        };
        self.tasks[task.0 as usize].streams.cut(first + got);
    }
}
