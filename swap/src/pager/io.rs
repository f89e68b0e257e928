//! Requests: queues, submission, completion, and what is done when a store fails.
//!
//! Page-ins are submitted before page-outs, and page-outs leave a quarter of a store's depth free
//! for them.

use netswap_reserve::Time;

use super::{Pager, PagerEvent, queue_of};
use crate::area::{AreaState, FailurePolicy};
use crate::backend::{
    Completion, Op, PageVec, Request, Slot, StoreError, Stored, SubmitError, SwapBackend,
};
use crate::error::PageError;
use crate::frames::{MARKER, READAHEAD, REFERENCED};
use crate::io_table::IoState;
use crate::page::{AreaId, Mmu, NONE, PageId, Pte};

impl<B: SwapBackend> Pager<B> {
    /// Puts a new I/O at the end of its area's queue.
    pub(super) fn enqueue(&mut self, io: u16) {
        self.areas[usize::from(self.ios.get(io).area.0)].ios += 1;
        self.link(io);
    }

    fn link(&mut self, io: u16) {
        let entry = self.ios.get_mut(io);
        entry.state = IoState::Queued;
        entry.next = NONE;
        let queue = &mut self.areas[usize::from(entry.area.0)].queues[queue_of(entry.op)];
        match std::mem::replace(&mut queue.tail, u32::from(io)) {
            NONE => queue.head = u32::from(io),
            tail => self.ios.get_mut(tail as u16).next = u32::from(io),
        }
    }

    /// Takes an I/O out of its queue; `before` is the one before it.
    fn unlink_after(&mut self, io: u16, before: u32) {
        let entry = self.ios.get_mut(io);
        let next = entry.next;
        let queue = &mut self.areas[usize::from(entry.area.0)].queues[queue_of(entry.op)];
        entry.next = NONE;
        if queue.tail == u32::from(io) {
            queue.tail = before;
        }
        match before {
            NONE => queue.head = next,
            before => self.ios.get_mut(before as u16).next = next,
        }
        self.ios.set_not_before(io, Time::ZERO);
    }

    fn unlink(&mut self, io: u16) {
        let entry = self.ios.get(io);
        let (mut before, mut at) = (NONE, self.area(entry.area).queues[queue_of(entry.op)].head);
        while at != u32::from(io) {
            before = at;
            at = self.ios.get(at as u16).next;
        }
        self.unlink_after(io, before);
    }

    fn finish_io(&mut self, io: u16) {
        let area = self.ios.get(io).area;
        self.area_mut(area).ios -= 1;
        self.ios.free(io);
    }

    pub(super) fn submit_all(&mut self, now: Time) -> bool {
        let mut moved = false;
        for area in 0..self.areas.len() {
            moved |= self.submit(now, AreaId(area as u8));
        }
        moved
    }

    /// Submits what is queued and due, as far as the store takes it.
    pub(super) fn submit(&mut self, now: Time, id: AreaId) -> bool {
        let mut moved = false;
        for op in [Op::Read, Op::Write] {
            let (mut before, mut at) = (NONE, self.area(id).queues[queue_of(op)].head);
            while at != NONE {
                let io = at as u16;
                let entry = self.ios.get(io);
                at = entry.next;
                if entry.not_before > now {
                    before = u32::from(io);
                    continue;
                }
                if !entry.header && entry.pages().iter().all(|page| *page == NONE) {
                    self.unlink_after(io, before);
                    self.drop_io(io);
                    moved = true;
                    continue;
                }
                if !self.submit_one(now, io) {
                    break;
                }
                self.unlink_after(io, before);
                moved = true;
            }
        }
        moved
    }

    fn submit_one(&mut self, now: Time, io: u16) -> bool {
        let request_id = self.ios.request_id(io);
        let entry = self.ios.get_mut(io);
        let area = &mut self.areas[usize::from(entry.area.0)];
        let depth = area.backend.limits().in_flight;
        let writes_max = (depth - depth / 4).max(1);
        if entry.op == Op::Write && area.writes_submitted >= writes_max {
            return false;
        }
        let request = Request {
            id: request_id,
            op: entry.op,
            first: entry.first,
            pages: std::mem::take(&mut entry.frames),
            deadline: area.options.request_timeout.map(|timeout| now + timeout),
        };
        match area.backend.submit(now, request) {
            Ok(()) => {
                entry.state = IoState::Submitted;
                entry.attempts += 1;
                area.writes_submitted += usize::from(entry.op == Op::Write);
                true
            }
            Err(SubmitError::Full(request) | SubmitError::NotReady(request)) => {
                entry.frames = request.pages;
                false
            }
        }
    }

    /// Ends an I/O of pages that are all unmapped, which is in no queue and not with the store.
    fn drop_io(&mut self, io: u16) {
        let entry = self.ios.get_mut(io);
        entry.frames.clear();
        let (area, count, header) = (entry.area, usize::from(entry.count), entry.header);
        for at in 0..if header { 0 } else { count } {
            let slot = self.ios.get(io).slot(at);
            self.release_slot(area, slot);
        }
        self.finish_io(io);
    }

    /// Ends what is queued; at shutdown, when all pages are unmapped.
    pub(super) fn drop_queued(&mut self) {
        for area in 0..self.areas.len() {
            for op in [Op::Read, Op::Write] {
                loop {
                    let head = self.areas[area].queues[queue_of(op)].head;
                    if head == NONE {
                        break;
                    }
                    self.unlink_after(head as u16, NONE);
                    self.ios.get_mut(head as u16).waiters = NONE;
                    self.drop_io(head as u16);
                }
            }
        }
    }

    /// The store of an area has failed as a whole, and will not come back: nothing more is asked of it. What
    /// waits to be submitted ends as if it had been. False if there is nothing to end.
    pub(super) fn end_queued(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        id: AreaId,
        error: StoreError,
    ) -> bool {
        let mut moved = self.give_up_area(id, error);
        for op in [Op::Read, Op::Write] {
            loop {
                let head = self.area(id).queues[queue_of(op)].head;
                if head == NONE {
                    break;
                }
                moved = true;
                let io = head as u16;
                self.unlink_after(io, NONE);
                let pages = std::mem::take(&mut self.ios.get_mut(io).frames);
                match op {
                    _ if self.ios.get(io).header => self.finish_io(io),
                    Op::Read => self.read_failed(now, mmu, io, pages, error),
                    Op::Write => self.write_failed(now, mmu, io, pages, error),
                }
            }
        }
        moved
    }

    /// An area that is on takes no more pages; says so, once.
    fn give_up_area(&mut self, id: AreaId, error: StoreError) -> bool {
        let area = self.area_mut(id);
        let was_on = area.state == AreaState::On;
        if was_on {
            area.state = AreaState::Failed;
            area.failed_by = Some(error);
            tracing::warn!(area = &*area.name, %error, "area failed");
            self.events.push_back(PagerEvent::AreaFailed { area: id, error });
        }
        was_on
    }

    pub(super) fn retry_deadline(&self) -> Option<Time> {
        if self.ios.delayed == 0 {
            return None;
        }
        self.ios.iter().map(|(_, io)| io.not_before).filter(|at| *at > Time::ZERO).min()
    }

    pub(super) fn poll_completions(&mut self, now: Time, mmu: &mut impl Mmu) -> bool {
        let mut moved = false;
        for area in 0..self.areas.len() {
            self.see_fences(AreaId(area as u8));
            while let Some(completion) = self.areas[area].backend.poll_completion(now) {
                self.complete(now, mmu, AreaId(area as u8), completion);
                moved = true;
            }
        }
        moved
    }

    fn complete(&mut self, now: Time, mmu: &mut impl Mmu, area: AreaId, completion: Completion) {
        if self.complete_discard(area, &completion) {
            return;
        }
        let Completion { id, pages, outcome, is_loose } = completion;
        let Some(io) = self.ios.find(id).filter(|io| self.ios.get(*io).area == area) else {
            self.stats.stale_completions += 1;
            return;
        };
        let entry = self.ios.get(io);
        assert_eq!(
            pages.len(),
            usize::from(entry.count),
            "a backend gives back the pages it was given"
        );
        self.stuck_since = None;
        if outcome.is_err() {
            self.stats.store_errors += 1;
        }
        if entry.header {
            let error = outcome.err();
            self.finish_io(io);
            return self.complete_header(area, &pages[0], error);
        }
        match (entry.op, outcome) {
            (Op::Read, Ok(_)) => self.read_done(now, mmu, io, pages),
            (Op::Read, Err(error)) => self.read_failed(now, mmu, io, pages, error),
            (Op::Write, outcome) => {
                self.area_mut(area).writes_submitted -= 1;
                let may_be_late =
                    matches!(outcome, Ok(Stored { replayed: true }) | Err(StoreError::TimedOut));
                if (is_loose || may_be_late) && self.config.quarantine {
                    self.suspect(io);
                }
                match outcome {
                    Ok(_) => self.write_done(now, mmu, io, pages),
                    Err(error) => self.write_failed(now, mmu, io, pages, error),
                }
            }
        }
        if !self.waits_for_writes {
            self.reclaim_may_work();
        }
    }

    /// Takes the list of tasks that wait for an I/O.
    fn take_waiters(&mut self, io: u16) -> u32 {
        std::mem::replace(&mut self.ios.get_mut(io).waiters, NONE)
    }

    fn read_done(&mut self, now: Time, mmu: &mut impl Mmu, io: u16, pages: PageVec) {
        let waiters = self.take_waiters(io);
        let area = self.ios.get(io).area;
        self.stats.read_requests += 1;
        for (at, frame) in pages.into_iter().enumerate() {
            let entry = self.ios.get(io);
            let (page, slot) = (entry.pages[at], entry.slot(at));
            if page == NONE {
                self.release_slot(area, slot);
                continue;
            }
            let slots = &mut self.areas[usize::from(area.0)].slots;
            let current = slots.generation(slot) == entry.generations[at];
            if !current || slots.checksum(slot) != super::checksum(frame.bytes()) {
                self.stats.checksum_errors += 1;
                if slots.read_failed(slot) {
                    self.stats.rereads += 1;
                } else {
                    self.stats.damaged_pages += 1;
                }
                self.ptes[page as usize] = Pte::Swapped { area, slot };
                continue;
            }
            slots.read_matched(slot);
            let mut flags =
                if at >= usize::from(entry.ahead_from) { READAHEAD | REFERENCED } else { 0 };
            flags |= if at == usize::from(entry.marker) { MARKER } else { 0 };
            flags |= if self.is_wanted(waiters, page) { REFERENCED } else { 0 };
            self.stats.page_ins += 1;
            self.stats.verified_pages += 1;
            let frame = self.frames.put(frame, PageId(page), Some((area, slot)));
            self.frames.set(frame, flags);
            self.ptes[page as usize] = Pte::Resident { frame };
            if self.area(area).state == AreaState::Leaving {
                self.drop_copy(frame);
            }
        }
        self.finish_io(io);
        self.retry_waiters(now, mmu, waiters);
    }

    fn read_failed(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        io: u16,
        pages: PageVec,
        error: StoreError,
    ) {
        let entry = self.ios.get(io);
        let (area, slot, page, attempts) =
            (entry.area, entry.first, entry.pages[0], entry.attempts);
        let single = entry.count == 1 && page != NONE;
        let bad_answer = matches!(
            error,
            StoreError::ShortRead { .. }
                | StoreError::OutOfRange { .. }
                | StoreError::Garbage { .. }
        );
        let leaving = self.area(area).state == AreaState::Leaving;
        if single
            && !bad_answer
            && (leaving || self.ios.get(io).waiters != NONE)
            && let Some(wait) = self.area(area).backoff(attempts)
        {
            return self.retry(io, pages, now + wait);
        }
        drop(pages);
        let mut waiters = self.take_waiters(io);
        for at in 0..usize::from(self.ios.get(io).count) {
            let entry = self.ios.get(io);
            let (page, slot) = (entry.pages[at], entry.slot(at));
            if page == NONE {
                self.release_slot(area, slot);
            } else {
                self.ptes[page as usize] = Pte::Swapped { area, slot };
                // One bad page must not take its neighbours along: each is read by itself.
                self.area_mut(area).slots.set_single(slot);
            }
        }
        self.finish_io(io);
        if single {
            let again = bad_answer && self.area_mut(area).slots.read_failed(slot);
            if again {
                self.stats.rereads += 1;
            } else {
                self.area_mut(area).slots.forget_failures(slot);
                if leaving {
                    self.area_mut(area).leave_error = Some((slot, error));
                }
                let place = self.area(area).place(area, slot);
                tracing::warn!(%place, %error, "page cannot be read");
                waiters = self.fail_waiters_of(waiters, page, &PageError::Store { place, error });
            }
        }
        self.retry_waiters(now, mmu, waiters);
    }

    /// The same request once more, not before `at`.
    fn retry(&mut self, io: u16, pages: PageVec, at: Time) {
        self.stats.retries += 1;
        self.ios.get_mut(io).frames = pages;
        self.ios.set_not_before(io, at);
        self.link(io);
    }

    /// A late copy of this write may still be carried out: its slots go to quarantine when they are free.
    fn suspect(&mut self, io: u16) {
        let entry = self.ios.get(io);
        let (area, count) = (entry.area, usize::from(entry.count));
        for at in 0..count {
            let slot = self.ios.get(io).slot(at);
            self.area_mut(area).slots.set_suspect(slot);
        }
    }

    fn write_done(&mut self, now: Time, mmu: &mut impl Mmu, io: u16, pages: PageVec) {
        let waiters = self.take_waiters(io);
        let area = self.ios.get(io).area;
        self.area_mut(area).write_failures = 0;
        self.stats.write_requests += 1;
        self.stats.page_outs += pages.len() as u64;
        for (at, frame) in pages.into_iter().enumerate() {
            let entry = self.ios.get(io);
            let (page, slot) = (entry.pages[at], entry.slot(at));
            if page == NONE {
                self.release_slot(area, slot);
            } else if self.is_wanted(waiters, page) {
                let frame = self.frames.put(frame, PageId(page), Some((area, slot)));
                self.frames.set(frame, REFERENCED);
                self.ptes[page as usize] = Pte::Resident { frame };
            } else {
                self.ptes[page as usize] = Pte::Swapped { area, slot };
            }
        }
        self.finish_io(io);
        self.retry_waiters(now, mmu, waiters);
    }

    fn write_failed(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        io: u16,
        pages: PageVec,
        error: StoreError,
    ) {
        let entry = self.ios.get(io);
        let (id, attempts) = (entry.area, entry.attempts);
        let wanted = entry.waiters != NONE;
        let area = self.area_mut(id);
        area.write_failures += 1;
        tracing::debug!(area = &*area.name, %error, attempts, "page-out failed");
        let policy = area.options.on_failure;
        let of_the_area =
            matches!(policy, FailurePolicy::FailOver { .. }) || error == StoreError::NoSpace;
        let wait = area.backoff(if of_the_area { area.write_failures } else { attempts });
        let leaves = self.area(id).state == AreaState::Off || self.shut_down;
        match (error, policy, wait) {
            _ if leaves => self.take_back(now, mmu, io, pages),
            (StoreError::NoSpace, ..) => {
                self.area_mut(id).full_until = now + wait.unwrap_or(super::areas::FULL_RETRY);
                self.take_back(now, mmu, io, pages);
            }
            (_, FailurePolicy::Poison, _) => {
                self.area_mut(id).poisoned_by = Some(error);
                self.poison(now, mmu, io, pages);
            }
            // A late copy may still arrive: the pages go to fresh slots.
            (StoreError::TimedOut, _, Some(_)) => self.take_back(now, mmu, io, pages),
            // Nobody waits for a store while the page is in memory.
            (_, _, Some(_)) if wanted => self.take_back(now, mmu, io, pages),
            (_, _, Some(wait)) => self.retry(io, pages, now + wait),
            (_, _, None) => self.fail_over(now, mmu, io, pages, error),
        }
    }

    /// The store failed too often: its area takes no more pages, and these go elsewhere.
    fn fail_over(
        &mut self,
        now: Time,
        mmu: &mut impl Mmu,
        io: u16,
        pages: PageVec,
        error: StoreError,
    ) {
        let id = self.ios.get(io).area;
        self.stats.failed_over += pages.len() as u64;
        self.take_back(now, mmu, io, pages);
        loop {
            let head = self.area(id).queues[queue_of(Op::Write)].head;
            if head == NONE {
                break;
            }
            self.stats.failed_over += u64::from(self.ios.get(head as u16).count);
            self.take_back_write(now, mmu, head as u16);
        }
        self.give_up_area(id, error);
    }

    /// Gives up the pages of a failed write, and frees their frames.
    fn poison(&mut self, now: Time, mmu: &mut impl Mmu, io: u16, pages: PageVec) {
        drop(pages);
        let waiters = self.take_waiters(io);
        let area = self.ios.get(io).area;
        for at in 0..usize::from(self.ios.get(io).count) {
            let entry = self.ios.get(io);
            let (page, slot) = (entry.pages[at], entry.slot(at));
            if page != NONE {
                self.ptes[page as usize] = Pte::Lost { area, slot };
                self.stats.poisoned_pages += 1;
            }
            self.release_slot(area, slot);
        }
        self.finish_io(io);
        self.retry_waiters(now, mmu, waiters);
    }

    /// Takes a write back that waits in its queue: its pages are resident again.
    pub(super) fn take_back_write(&mut self, now: Time, mmu: &mut impl Mmu, io: u16) {
        self.unlink(io);
        let pages = std::mem::take(&mut self.ios.get_mut(io).frames);
        self.take_back(now, mmu, io, pages);
    }

    fn take_back(&mut self, now: Time, mmu: &mut impl Mmu, io: u16, pages: PageVec) {
        let waiters = self.take_waiters(io);
        let (area, attempts) = (self.ios.get(io).area, self.ios.get(io).attempts);
        for (at, frame) in pages.into_iter().enumerate() {
            let entry = self.ios.get(io);
            let (page, slot): (u32, Slot) = (entry.pages[at], entry.slot(at));
            if page != NONE {
                let frame = self.frames.put(frame, PageId(page), None);
                self.ptes[page as usize] = Pte::Resident { frame };
            }
            if attempts > 0 {
                self.release_slot(area, slot);
            } else {
                self.release_unwritten(area, slot);
            }
        }
        self.finish_io(io);
        self.retry_waiters(now, mmu, waiters);
    }
}
