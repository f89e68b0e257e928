//! Looking ahead: showing the transport where the *next* replies belong, before any byte of them has come.
//!
//! # Why
//! Page data goes straight from the kernel into pages, and which pages is said by the head of a reply. One
//! system call for each head and one for its pages would be most of what a page costs. But a server that
//! is not asked for anything odd answers in the order of the calls, and its heads all have one length. So
//! the transport is shown head, pages, head, pages, as they will probably come, and one call takes many replies.
//!
//! # When it was wrong
//! What arrives is read as a stream, whatever was expected. If whole pages have landed in pages of another request, the two
//! change owners: nothing is copied. If the data begins elsewhere, as heads have another length, all that is
//! not read yet is copied to a spill buffer and goes on from there. Either is counted, and less is shown the
//! next time.
//!
//! # Invariants
//! - A page is shown once, and only if its request waits for a reply. What is shown and not read yet is never a
//!   page in which data has arrived already.
//! - Nothing is written to a page while bytes that are not read yet lie in one that was shown, but in place.

use std::collections::VecDeque;
use std::io::IoSliceMut;

use arrayvec::ArrayVec;
use netswap_net::RecvVec;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Time};

use super::calls::Garbage;
use super::merge::{MERGED_PAGES_MAX, Spot};
use super::receive::Place;
use super::{CallState, NfsBackend, Verb};
use crate::message::REPLY_PREFIX;
use crate::pages::{is_high, low_pieces};
use crate::rpc::{MARK_BYTES, RecordNext};
use crate::xdr::padding;

/// Bytes for heads. Picked by eye: those of 32 replies.
pub(super) const STAGE_BYTES: usize = 4096;
/// Pages that are shown before the head of their reply has come. Picked by eye: 64 KiB a system call.
const AHEAD_PAGES_MAX: usize = 16;
/// Bytes that can be in a wrong place.
pub(super) const SPILL_BYTES: usize = STAGE_BYTES + AHEAD_PAGES_MAX * PAGE_SIZE;
/// Runs that are shown at once: pages of the reply at hand, pages ahead, and a head before each of them.
const RUNS_MAX: usize = MERGED_PAGES_MAX + 2 * AHEAD_PAGES_MAX + 2;

/// Where bytes arrive.
#[derive(Clone, Copy, Debug)]
enum Run {
    /// In the stage.
    Stage { at: usize, len: usize },
    /// In a page of a row.
    Page { row: u16, page: u8, at: u16, len: u16 },
}

impl Run {
    fn len(self) -> usize {
        match self {
            Run::Stage { len, .. } => len,
            Run::Page { len, .. } => usize::from(len),
        }
    }
}

#[derive(Debug)]
pub(super) struct Ahead {
    /// What was shown last, if it was more than a buffer.
    runs: ArrayVec<Run, RUNS_MAX>,
    /// The rows in it.
    rows: ArrayVec<(u16, u8), RUNS_MAX>,
    /// xids in the order in which their calls were sent; those that are not waited for any more are skipped.
    order: VecDeque<u32>,
    /// Bytes of a record up to the data of a READ, and of the reply to a WRITE, as they were last; 0 is not known.
    read_head: usize,
    write_reply: usize,
    /// How many replies are shown ahead; those that came the last time are a good guess.
    depth: usize,
    spill: Box<[u8]>,
}

/// What of the stage and of the pages ahead is in use.
struct Budget {
    stage: usize,
    pages: usize,
}

impl Ahead {
    pub(super) fn new(rows: usize) -> Ahead {
        Ahead {
            runs: ArrayVec::new(),
            rows: ArrayVec::new(),
            order: VecDeque::with_capacity(2 * rows),
            read_head: 0,
            write_reply: 0,
            depth: 1,
            spill: vec![0; SPILL_BYTES].into(),
        }
    }

    /// The stream begins anew.
    pub(super) fn reset(&mut self) {
        self.runs.clear();
        self.order.clear();
        self.depth = 1;
    }

    /// One buffer is shown instead.
    pub(super) fn forget_shown(&mut self) {
        self.runs.clear();
    }

    pub(super) fn is_shown(&self) -> bool {
        !self.runs.is_empty()
    }

    /// A READ's data began after so many bytes of a record in one fragment.
    pub(super) fn learn_read(&mut self, head: usize) {
        self.read_head = MARK_BYTES + head;
    }

    /// The reply to a WRITE had so many bytes.
    pub(super) fn learn_write(&mut self, len: usize) {
        self.write_reply = MARK_BYTES + len;
    }

    /// Notes each row with its first run, which its other runs follow, in the order of the rows. False if a row
    /// is there twice.
    fn sort_rows(&mut self) -> bool {
        self.rows.clear();
        let mut before = None;
        for (k, run) in self.runs.iter().enumerate() {
            let row = match run {
                Run::Page { row, .. } => Some(*row),
                Run::Stage { .. } => None,
            };
            if let Some(row) = row.filter(|_| row != before) {
                self.rows.push((row, k as u8));
            }
            before = row;
        }
        self.rows.sort_unstable();
        self.rows.windows(2).all(|pair| pair[0].0 != pair[1].0)
    }

    /// Shows `len` bytes of the stage, as far as there are so many. False if not.
    fn show_stage(&mut self, len: usize, budget: &mut Budget) -> bool {
        let len_now = len.min(STAGE_BYTES - budget.stage);
        if len_now > 0 {
            match self.runs.last_mut() {
                Some(Run::Stage { len, .. }) => *len += len_now,
                _ => {
                    let run = Run::Stage { at: budget.stage, len: len_now };
                    if self.runs.try_push(run).is_err() {
                        return false;
                    }
                }
            }
            budget.stage += len_now;
        }
        len_now == len
    }
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Call `i` was sent, for the first time on this connection.
    pub(super) fn expect_reply(&mut self, i: usize) {
        let xid = self.xids.xid(i);
        if self.rx.ahead.order.len() == self.rx.ahead.order.capacity() {
            let (xids, calls) = (&self.xids, &self.calls);
            self.rx.ahead.order.retain(|xid| {
                xids.find(*xid).is_some_and(|i| matches!(calls[i].state, CallState::Sent { .. }))
            });
        }
        if self.rx.ahead.order.len() < self.rx.ahead.order.capacity() {
            self.rx.ahead.order.push_back(xid);
        }
    }

    /// The call that waits for a reply under this xid.
    fn awaited(&self, xid: u32) -> Option<usize> {
        let i = self.xids.find(xid)?;
        matches!(self.calls[i].state, CallState::Sent { .. }).then_some(i)
    }

    /// Finds out where what comes next belongs, as far as that is known or likely. False if it is only known for
    /// one buffer.
    pub(super) fn look_ahead(&mut self) -> bool {
        self.rx.ahead.runs.clear();
        if self.rx.bounced > 0 || !self.plan_ahead() || !self.rx.ahead.sort_rows() {
            self.rx.ahead.runs.clear();
            return false;
        }
        true
    }

    /// Lays out the runs.
    fn plan_ahead(&mut self) -> bool {
        let mut budget = Budget { stage: 0, pages: 0 };
        let at_hand = self.rx.call();
        match (self.rx.next(), self.rx.place()) {
            (RecordNext::Body(left), Place::Data { read, at, pad }) => {
                let len = left.min(read.count as usize - at);
                let Some(i) = at_hand.filter(|_| len > 0) else { return false };
                let ends = self.rx.is_last() && left == len + pad;
                let all = self.plan_pages(i, at, len, &mut budget, MERGED_PAGES_MAX);
                budget.pages = 0;
                if all && ends && self.rx.ahead.show_stage(pad, &mut budget) {
                    self.plan_replies(at_hand, &mut budget);
                }
            }
            (RecordNext::Mark(missing), Place::Head { .. }) if self.rx.taken() == 0 => {
                self.plan_from(None, MARK_BYTES - missing, &mut budget);
            }
            (RecordNext::Body(_), Place::Head { .. }) if self.rx.is_last() => {
                self.plan_from(at_hand, MARK_BYTES + self.rx.head_len(), &mut budget);
            }
            _ => {}
        }
        self.rx.ahead.is_shown()
    }

    /// Plans the rest of the reply at hand, of which `taken` bytes are there, and those that follow. If it is not
    /// known yet to which call it is, the first is likely.
    fn plan_from(&mut self, at_hand: Option<usize>, taken: usize, budget: &mut Budget) {
        let Some(i) = at_hand.or_else(|| self.first_awaited()) else { return };
        if self.plan_reply(i, taken, budget) {
            self.plan_replies(Some(i), budget);
        }
    }

    fn first_awaited(&mut self) -> Option<usize> {
        while let Some(xid) = self.rx.ahead.order.front() {
            match self.awaited(*xid) {
                Some(i) => return Some(i),
                None => self.rx.ahead.order.pop_front(),
            };
        }
        None
    }

    /// Plans replies in the order of the calls, but for that of call `but`.
    fn plan_replies(&mut self, but: Option<usize>, budget: &mut Budget) {
        // Calls that have ended leave the front.
        self.first_awaited();
        let mut shown = 1;
        for at in 0..self.rx.ahead.order.len() {
            if shown >= self.rx.ahead.depth {
                // The least that any reply has, to find out that there are more.
                self.rx.ahead.show_stage(MARK_BYTES + REPLY_PREFIX, budget);
                return;
            }
            let xid = self.rx.ahead.order[at];
            let Some(i) = self.awaited(xid).filter(|i| Some(*i) != but) else { continue };
            shown += 1;
            if !self.plan_reply(i, 0, budget) {
                return;
            }
        }
        // Nothing more is asked for; what comes nevertheless has no place of its own.
        self.rx.ahead.show_stage(MARK_BYTES + REPLY_PREFIX, budget);
    }

    /// Plans the reply to call `i`, of which `taken` bytes are there. False if not all of it was shown.
    fn plan_reply(&mut self, i: usize, taken: usize, budget: &mut Budget) -> bool {
        let is_read = self.calls[i].verb == Verb::Read;
        let head = match self.calls[i].verb {
            Verb::Read => self.rx.ahead.read_head,
            Verb::Write => self.rx.ahead.write_reply,
            _ => 0,
        };
        if head <= taken || !self.rx.ahead.show_stage(head - taken, budget) {
            return false;
        }
        if !is_read {
            return true;
        }
        let want = self.calls[i].want;
        self.plan_pages(i, 0, want, budget, AHEAD_PAGES_MAX)
            && self.rx.ahead.show_stage(padding(want), budget)
    }

    /// Plans `len` bytes of the data of call `i`, from `at` on. False if not all of them.
    fn plan_pages(
        &mut self,
        i: usize,
        at: usize,
        len: usize,
        budget: &mut Budget,
        pages_max: usize,
    ) -> bool {
        let end = at + len;
        let mut at = at;
        // The member that was looked at last may be one of another call.
        self.rx.member = None;
        while at < end {
            let Spot::Row { row, at: byte, left } = self.locate(i, at) else { break };
            let (page, start) = (byte / PAGE_SIZE, byte % PAGE_SIZE);
            let len = (PAGE_SIZE - start).min(left).min(end - at);
            if budget.pages == pages_max || self.calls[row].pages.get(page).is_none_or(is_high) {
                break;
            }
            let run =
                Run::Page { row: row as u16, page: page as u8, at: start as u16, len: len as u16 };
            if self.rx.ahead.runs.try_push(run).is_err() {
                break;
            }
            budget.pages += 1;
            at += len;
        }
        self.rx.member = None;
        at == end
    }

    /// Shows the runs that are planned. The rows are borrowed in their own order, and put in that of the runs.
    pub(super) fn show_runs<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        let mut pages: [Option<&'a mut [P]>; RUNS_MAX] = [const { None }; RUNS_MAX];
        let (mut rest, mut base) = (&mut self.calls[..], 0);
        for (row, k) in self.rx.ahead.rows.iter().copied() {
            let (head, tail) = rest.split_at_mut(usize::from(row) + 1 - base);
            pages[usize::from(k)] = head.last_mut().map(|call| &mut call.pages[..]);
            (rest, base) = (tail, usize::from(row) + 1);
        }
        let (ahead, mut stage) = (&self.rx.ahead, &mut self.rx.stage[..]);
        let mut current: &'a mut [P] = &mut [];
        let mut current_base = 0;
        for (k, run) in ahead.runs.iter().enumerate() {
            let all = match *run {
                Run::Stage { len, .. } => {
                    let (now, later) = std::mem::take(&mut stage).split_at_mut(len);
                    stage = later;
                    out.try_push(IoSliceMut::new(now)).is_ok()
                }
                Run::Page { page, at, len, .. } => {
                    if let Some(of_row) = pages[k].take() {
                        (current, current_base) = (of_row, 0);
                    }
                    let skip = usize::from(page) - current_base;
                    let (_, from_here) = std::mem::take(&mut current).split_at_mut(skip);
                    let (here, later) = from_here.split_at_mut(1);
                    (current, current_base) = (later, usize::from(page) + 1);
                    low_pieces(here, usize::from(at), usize::from(len), out)
                }
            };
            if !all {
                return;
            }
        }
    }

    /// The first `n` bytes of what [`Self::show_ahead`] has shown are there.
    pub(super) fn receive_ahead(&mut self, now: Time, n: usize) -> Result<(), Garbage> {
        let replies = self.stats.replies;
        let mut left = n;
        for k in 0..self.rx.ahead.runs.len() {
            if left == 0 || !self.link.is_open() {
                break;
            }
            let run = self.rx.ahead.runs[k];
            let here = left.min(run.len());
            let done = match run {
                Run::Stage { at, .. } => self.read_stage(now, at..at + here, left == here)?,
                Run::Page { .. } => self.read_page(now, k, here, left == here)?,
            };
            left -= done;
            if done < here && self.link.is_open() {
                self.rx.ahead.depth = 1;
                return self.read_spilled(now, k, done, left);
            }
        }
        // As many as came now, and one to find out whether there are more.
        let came = (self.stats.replies - replies) as usize;
        let full = left == 0 && n > 0 && came >= self.rx.ahead.depth;
        let depth = if full { self.rx.ahead.depth * 2 } else { came + 1 };
        self.rx.ahead.depth = depth.clamp(2, 64);
        self.rx.ahead.runs.clear();
        Ok(())
    }

    /// Reads bytes that lie in the stage, up to page data: that would be written to a page, unless nothing lies
    /// in one as these are the `last` bytes. Says how many.
    fn read_stage(
        &mut self,
        now: Time,
        range: std::ops::Range<usize>,
        last: bool,
    ) -> Result<usize, Garbage> {
        let stage = std::mem::take(&mut self.rx.stage);
        let result = self.consume(now, &stage[range], !last);
        self.rx.stage = stage;
        result
    }

    /// Reads `here` bytes that lie in a page, as far as they are page data that is there already or can be by
    /// an exchange of pages. Says how many.
    fn read_page(
        &mut self,
        now: Time,
        k: usize,
        here: usize,
        last: bool,
    ) -> Result<usize, Garbage> {
        let mut done = 0;
        while done < here && self.link.is_open() {
            let Run::Page { row, page, at, .. } = self.rx.ahead.runs[k] else { break };
            let start = usize::from(at) + done;
            let (RecordNext::Body(body), place) = (self.rx.next(), self.rx.place()) else { break };
            let n = match (place, self.rx.call()) {
                (Place::Skip, _) => body.min(here - done),
                (Place::Data { read, at, .. }, Some(call)) if at < read.count as usize => {
                    let most = body.min(read.count as usize - at).min(here - done);
                    match self.locate(call, at) {
                        Spot::Hole(n) => n.min(most),
                        Spot::Row { row: of, at: byte, left } => {
                            let n = most.min(left).min(PAGE_SIZE - byte % PAGE_SIZE);
                            let is_here = (of, byte)
                                == (usize::from(row), usize::from(page) * PAGE_SIZE + start);
                            if !is_here {
                                let aligned = start == 0 && byte % PAGE_SIZE == 0;
                                // Bytes behind the data would move with it.
                                let whole = n == PAGE_SIZE || last && n == here - done;
                                if !aligned || !whole {
                                    break;
                                }
                                self.exchange(k, of, byte / PAGE_SIZE);
                            }
                            n
                        }
                    }
                }
                _ => break,
            };
            self.advance(now, n)?;
            done += n;
        }
        Ok(done)
    }

    /// The page of run `k` is what belongs to `page` of row `of`, and takes its place.
    fn exchange(&mut self, k: usize, of: usize, page: usize) {
        let run = self.rx.ahead.runs[k];
        let Run::Page { row, page: wrong, .. } = run else { return };
        let (row, wrong) = (usize::from(row), usize::from(wrong));
        self.stats.exchanged += 1;
        if row == of {
            self.calls[row].pages.swap(wrong, page);
        } else if let Ok([a, b]) = self.calls.get_disjoint_mut([row, of]) {
            std::mem::swap(&mut a.pages[wrong], &mut b.pages[page]);
        }
        // What was to arrive in the other page arrives in the same memory, which is here now.
        for later in self.rx.ahead.runs.iter_mut().skip(k + 1) {
            if let Run::Page { row: at, page: of_page, .. } = later
                && (usize::from(*at), usize::from(*of_page)) == (of, page)
            {
                (*at, *of_page) = (row as u16, wrong as u8);
            }
        }
    }

    /// Reads the `left` bytes from byte `skip` of run `k` on from a copy.
    #[cold]
    fn read_spilled(
        &mut self,
        now: Time,
        k: usize,
        skip: usize,
        left: usize,
    ) -> Result<(), Garbage> {
        let (mut skip, mut len) = (skip, 0);
        for run in &self.rx.ahead.runs[k..] {
            let n = (run.len() - skip).min(left - len);
            let from = match *run {
                Run::Stage { at, .. } => &self.rx.stage[at + skip..at + skip + n],
                Run::Page { row, page, at, .. } => {
                    let start = usize::from(at) + skip;
                    match self.calls[usize::from(row)].pages[usize::from(page)].view_mut() {
                        netswap_reserve::windows::PageViewMut::Low(bytes) => {
                            &bytes[start..start + n]
                        }
                        netswap_reserve::windows::PageViewMut::High(_) => &[],
                    }
                }
            };
            let Some(to) = self.rx.ahead.spill.get_mut(len..len + n) else {
                return Err("more bytes in wrong places than were shown");
            };
            to.copy_from_slice(from);
            (skip, len) = (0, len + n);
        }
        self.rx.ahead.runs.clear();
        self.stats.spilled_bytes += len as u64;
        let spill = std::mem::take(&mut self.rx.ahead.spill);
        let result = self.consume(now, &spill[..len], false);
        self.rx.ahead.spill = spill;
        result.map(|_| ())
    }
}
