//! Where the *next* replies belong: heads, and the pages of READs in the order of their calls
//! (`netswap_net::ahead` has the reasons, and what happens when the guess was wrong).
//!
//! # The guess
//! The reply to a READ has a head as long as the last had, then all that was asked for; that to a WRITE is as long as
//! the last was.
//!
//! # Invariants
//! - Only pages of calls that wait for a reply are shown.

use std::collections::VecDeque;

use netswap_net::RecvVec;
use netswap_net::ahead::{Ahead, Next, Place as PagePlace, Reader};
use netswap_reserve::windows::{MapPageMut, Mapper, PageView, PageViewMut};
use netswap_reserve::{PAGE_SIZE, Time};

use super::calls::Garbage;
use super::merge::Spot;
use super::receive::Place;
use super::{CallState, NfsBackend, Verb};
use crate::message::REPLY_PREFIX;
use crate::pages::is_high;
use crate::rpc::{MARK_BYTES, RecordNext};
use crate::xdr::padding;

/// What replies are like, and which of them are due.
#[derive(Debug)]
pub(super) struct Expected {
    /// xids in the order in which their calls were sent; those that are not waited for any more are skipped.
    order: VecDeque<u32>,
    /// Bytes of a record up to the data of a READ, and of the reply to a WRITE, as they were last; 0 is not known.
    read_head: usize,
    write_reply: usize,
}

impl Expected {
    pub(super) fn new(rows: usize) -> Expected {
        Expected { order: VecDeque::with_capacity(2 * rows), read_head: 0, write_reply: 0 }
    }

    /// The stream begins anew.
    pub(super) fn reset(&mut self) {
        self.order.clear();
    }

    /// A READ's data began after so many bytes of a record in one fragment.
    pub(super) fn learn_read(&mut self, head: usize) {
        self.read_head = MARK_BYTES + head;
    }

    /// The reply to a WRITE had so many bytes.
    pub(super) fn learn_write(&mut self, len: usize) {
        self.write_reply = MARK_BYTES + len;
    }
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Call `i` was sent, for the first time on this connection.
    pub(super) fn expect_reply(&mut self, i: usize) {
        let xid = self.xids.xid(i);
        if self.rx.expected.order.len() == self.rx.expected.order.capacity() {
            let (xids, calls) = (&self.xids, &self.calls);
            self.rx.expected.order.retain(|xid| {
                xids.find(*xid).is_some_and(|i| matches!(calls[i].state, CallState::Sent { .. }))
            });
        }
        if self.rx.expected.order.len() < self.rx.expected.order.capacity() {
            self.rx.expected.order.push_back(xid);
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
        let Some(mut ahead) = self.rx.ahead.take() else { return false };
        ahead.clear();
        if self.rx.bounced == 0 {
            self.plan(&mut ahead);
        }
        let is_shown = ahead.seal();
        self.rx.ahead = Some(ahead);
        is_shown
    }

    /// Shows what [`Self::look_ahead`] has found.
    pub(super) fn show_ahead<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        let Some(ahead) = &mut self.rx.ahead else { return };
        let bytes_of = |page: &'a mut P| match page.view_mut() {
            PageViewMut::Low(bytes) => Some(&mut bytes[..]),
            PageViewMut::High(_) => None,
        };
        ahead.show(&mut self.calls, |call| &mut call.pages[..], bytes_of, out);
    }

    /// The first `n` bytes of what was shown are there. False if that was one buffer.
    pub(super) fn receive_ahead(&mut self, now: Time, n: usize) -> Result<bool, Garbage> {
        let Some(mut ahead) = self.rx.ahead.take_if(|ahead| ahead.is_shown()) else {
            return Ok(false);
        };
        let result = ahead.receive(&mut Reading { backend: self, now }, n);
        ahead.clear();
        let counts = ahead.stats();
        (self.stats.exchanged, self.stats.spilled_bytes) = (counts.exchanged, counts.spilled_bytes);
        self.rx.ahead = Some(ahead);
        result.map(|()| true)
    }

    fn plan(&mut self, ahead: &mut Ahead) {
        ahead.begin_answer();
        let at_hand = self.rx.call();
        match (self.rx.next(), self.rx.place()) {
            (RecordNext::Body(left), Place::Data { read, at, pad }) => {
                let len = left.min(read.count as usize - at);
                let Some(i) = at_hand.filter(|_| len > 0) else { return };
                let ends = self.rx.is_last() && left == len + pad;
                if self.plan_pages(ahead, i, at, len) && ends && ahead.stage(pad) {
                    self.plan_replies(ahead, at_hand);
                }
            }
            (RecordNext::Mark(missing), Place::Head { .. }) if self.rx.taken() == 0 => {
                self.plan_from(ahead, None, MARK_BYTES - missing);
            }
            (RecordNext::Body(_), Place::Head { .. }) if self.rx.is_last() => {
                self.plan_from(ahead, at_hand, MARK_BYTES + self.rx.head_len());
            }
            _ => {}
        }
    }

    /// Plans the rest of the reply at hand, of which `taken` bytes are there, and those that follow. If it is not
    /// known yet to which call it is, the first is likely.
    fn plan_from(&mut self, ahead: &mut Ahead, at_hand: Option<usize>, taken: usize) {
        let Some(i) = at_hand.or_else(|| self.first_awaited()) else { return };
        if self.plan_reply(ahead, i, taken) {
            self.plan_replies(ahead, Some(i));
        }
    }

    fn first_awaited(&mut self) -> Option<usize> {
        while let Some(xid) = self.rx.expected.order.front() {
            match self.awaited(*xid) {
                Some(i) => return Some(i),
                None => self.rx.expected.order.pop_front(),
            };
        }
        None
    }

    /// Plans replies in the order of the calls, but for that of call `but`.
    fn plan_replies(&mut self, ahead: &mut Ahead, but: Option<usize>) {
        // Calls that have ended leave the front.
        self.first_awaited();
        for at in 0..self.rx.expected.order.len() {
            let xid = self.rx.expected.order[at];
            let Some(i) = self.awaited(xid).filter(|i| Some(*i) != but) else { continue };
            if !ahead.begin_answer() {
                break;
            }
            if !self.plan_reply(ahead, i, 0) {
                return;
            }
        }
        // The least that any reply has, to find out whether there are more. If nothing more is asked for, what comes
        // nevertheless has no place of its own.
        ahead.stage(MARK_BYTES + REPLY_PREFIX);
    }

    /// Plans the reply to call `i`, of which `taken` bytes are there. False if not all of it was planned.
    fn plan_reply(&mut self, ahead: &mut Ahead, i: usize, taken: usize) -> bool {
        let is_read = self.calls[i].verb == Verb::Read;
        let head = match self.calls[i].verb {
            Verb::Read => self.rx.expected.read_head,
            Verb::Write => self.rx.expected.write_reply,
            _ => 0,
        };
        if head <= taken || !ahead.stage(head - taken) {
            return false;
        }
        let want = self.calls[i].want;
        !is_read || self.plan_pages(ahead, i, 0, want) && ahead.stage(padding(want))
    }

    /// Plans `len` bytes of the data of call `i`, from `at` on. False if not all of them.
    fn plan_pages(&mut self, ahead: &mut Ahead, i: usize, at: usize, len: usize) -> bool {
        let end = at + len;
        let mut at = at;
        // The member that was looked at last may be one of another call.
        self.rx.member = None;
        while at < end {
            let Spot::Row { row, at: byte, left } = self.locate(i, at) else { break };
            let (page, start) = (byte / PAGE_SIZE, byte % PAGE_SIZE);
            let len = (PAGE_SIZE - start).min(left).min(end - at);
            if self.calls[row].pages.get(page).is_none_or(is_high)
                || !ahead.page(PagePlace { row, page, at: start, len })
            {
                break;
            }
            at += len;
        }
        self.rx.member = None;
        at == end
    }
}

/// The backend while it reads what was shown.
struct Reading<'a, P, M> {
    backend: &'a mut NfsBackend<P, M>,
    now: Time,
}

impl<P: MapPageMut, M: Mapper> Reader for Reading<'_, P, M> {
    type Error = Garbage;

    fn is_open(&self) -> bool {
        self.backend.link.is_open()
    }

    fn answers(&self) -> u64 {
        self.backend.stats.replies
    }

    fn read(&mut self, bytes: &[u8], to_data: bool) -> Result<usize, Garbage> {
        self.backend.consume(self.now, bytes, to_data)
    }

    fn next(&mut self) -> Next {
        let this = &mut *self.backend;
        let RecordNext::Body(body) = this.rx.next() else { return Next::Head };
        match (this.rx.place(), this.rx.call()) {
            (Place::Skip, _) => Next::Nowhere(body),
            (Place::Data { read, at, .. }, Some(call)) if at < read.count as usize => {
                let most = body.min(read.count as usize - at);
                match this.locate(call, at) {
                    Spot::Hole(n) => Next::Nowhere(n.min(most)),
                    Spot::Row { row, at: byte, left } => {
                        let at = byte % PAGE_SIZE;
                        let len = most.min(left).min(PAGE_SIZE - at);
                        Next::Page(PagePlace { row, page: byte / PAGE_SIZE, at, len })
                    }
                }
            }
            _ => Next::Head,
        }
    }

    fn arrived(&mut self, n: usize) -> Result<(), Garbage> {
        self.backend.advance(self.now, n)
    }

    fn exchange(&mut self, a: (usize, usize), b: (usize, usize)) {
        let calls = &mut self.backend.calls;
        if a.0 == b.0 {
            calls[a.0].pages.swap(a.1, b.1);
        } else if let Ok([x, y]) = calls.get_disjoint_mut([a.0, b.0]) {
            std::mem::swap(&mut x.pages[a.1], &mut y.pages[b.1]);
        }
    }

    fn page(&self, row: usize, page: usize) -> &[u8] {
        match self.backend.calls[row].pages[page].view() {
            PageView::Low(bytes) => bytes,
            PageView::High(_) => &[],
        }
    }
}
