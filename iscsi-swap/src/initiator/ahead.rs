//! Where the *next* answers belong: headers, and the pages of READs in the order of their commands
//! (`netswap_net::ahead` has the reasons, and what happens when the guess was wrong).
//!
//! # The guess
//! A READ is answered by Data-Ins that are as long as the target has made them before, the last of them with the
//! status, unless the target was seen to send a SCSI Response for it. Anything else is answered by one header. Digests
//! stand where they were agreed on. Whatever comes instead is read as it is: what a header says is checked before a
//! byte counts as data of a command, wherever it lies by then.
//!
//! # Invariants
//! - Only pages of READs that were sent and have not ended are shown, from the first byte on that has not come; all
//!   that they hold until then is of no account, as a READ ends well only when each byte of it has come.

use std::collections::VecDeque;

use netswap_net::RecvVec;
use netswap_net::ahead::{Ahead, Next, Place, Reader};
use netswap_reserve::{PAGE_SIZE, Time};

use super::merge::locate;
use super::receive::{Dest, Part, Violation};
use super::task::PROBE;
use super::{IscsiBackend, Link};
use crate::digest::DIGEST_LEN;
use crate::pdu::{BHS_LEN, DataIn, ResponsePdu, padding};

/// What the target's answers are like, and which of them are due.
#[derive(Debug)]
pub(super) struct Expected {
    /// Tags in the order in which their commands were sent; those that have ended are skipped.
    order: VecDeque<u32>,
    /// Bytes of a Data-In, if there are as many.
    segment: usize,
    /// The last Data-In bears the status.
    collapses: bool,
    /// PDUs that have come.
    pub(super) pdus: u64,
}

impl Expected {
    pub(super) fn new(tasks: usize) -> Expected {
        let order = VecDeque::with_capacity(2 * tasks);
        Expected { order, segment: usize::MAX, collapses: true, pdus: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.order.clear();
        self.segment = usize::MAX;
        self.collapses = true;
    }

    /// A Data-In has come, of a command that lacked `left` bytes.
    pub(super) fn learn_data_in(&mut self, data: &DataIn, left: u32) {
        let len = data.data_len as usize;
        if data.data_len < left && len > 0 {
            self.segment = len;
        } else {
            self.segment = self.segment.max(len);
        }
        self.collapses |= data.status.is_some();
    }

    /// A READ of which all data had come was ended by a SCSI Response.
    pub(super) fn learn_response(&mut self) {
        self.collapses = false;
    }
}

impl IscsiBackend {
    /// Task `index` was issued.
    pub(super) fn expect_answer(&mut self, index: usize) {
        if index == PROBE {
            return;
        }
        let mut order = std::mem::take(&mut self.rx.expected.order);
        if order.len() == order.capacity() {
            order.retain(|tag| self.sent_task(*tag).is_ok());
        }
        if order.len() < order.capacity() {
            order.push_back(self.tasks[index].tag);
        }
        self.rx.expected.order = order;
    }

    /// Finds out where what comes next belongs, as far as that is known or likely. False if it is only known for
    /// one buffer.
    pub(super) fn look_ahead(&mut self) -> bool {
        let Some(mut ahead) = self.rx.ahead.take() else { return false };
        ahead.clear();
        if self.link == Link::Ready {
            self.plan(&mut ahead);
        }
        let is_shown = ahead.seal();
        self.rx.shown = ahead.bytes();
        self.rx.ahead = Some(ahead);
        is_shown
    }

    /// Shows what [`Self::look_ahead`] has found.
    pub(super) fn show_ahead<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        let Some(ahead) = &mut self.rx.ahead else { return };
        ahead.show(
            &mut self.tasks,
            |task| &mut task.pages[..],
            |page| Some(&mut page.bytes_mut()[..]),
            out,
        );
    }

    /// The first `n` bytes of what was shown are there. False if that was one buffer.
    pub(super) fn receive_ahead(&mut self, now: Time, n: usize) -> Result<bool, Violation> {
        let Some(mut ahead) = self.rx.ahead.take_if(|ahead| ahead.is_shown()) else {
            return Ok(false);
        };
        let result = ahead.receive(&mut Reading { backend: self, now }, n);
        ahead.clear();
        self.rx.ahead = Some(ahead);
        result.map(|()| true)
    }

    /// Bytes of a header with its digest, and of what stands behind data.
    fn head_len(&self) -> usize {
        BHS_LEN + if self.rx.digests.header { DIGEST_LEN } else { 0 }
    }

    fn tail_len(&self, len: usize) -> usize {
        padding(len) + if self.rx.digests.data { DIGEST_LEN } else { 0 }
    }

    fn plan(&mut self, ahead: &mut Ahead) {
        match self.rx.part {
            Part::Header => {
                ahead.begin_answer();
                // The one that has got data goes on, or else the first comes.
                let at_hand = self.rx.tag().and_then(|tag| self.sent_task(tag).ok());
                let at_hand = at_hand.filter(|index| self.tasks[*index].received > 0);
                let Some(index) = at_hand.or_else(|| self.first_awaited()) else {
                    ahead.stage(BHS_LEN - self.rx.at);
                    return;
                };
                let from = self.tasks[index].received as usize;
                if self.plan_answer(ahead, index, from, self.rx.at) {
                    self.plan_answers(ahead, index);
                }
            }
            Part::Data { dest: Dest::Pages { task, offset }, len } => {
                ahead.begin_answer();
                let end = offset + len;
                if !self.plan_pages(ahead, task, offset + self.rx.at, end)
                    || !ahead.stage(self.tail_len(len))
                {
                    return;
                }
                let ends =
                    matches!(self.rx.pdu, Some(ResponsePdu::DataIn(d)) if d.status.is_some());
                if ends || self.plan_answer(ahead, task, end, 0) {
                    self.plan_answers(ahead, task);
                }
            }
            // A few bytes, and seldom by themselves.
            _ => {}
        }
    }

    fn first_awaited(&mut self) -> Option<usize> {
        while let Some(tag) = self.rx.expected.order.front() {
            match self.sent_task(*tag) {
                Ok(index) => return Some(index),
                Err(_) => self.rx.expected.order.pop_front(),
            };
        }
        None
    }

    /// Plans answers in the order of the commands, but for that to `but`, and a header behind them, to find out
    /// whether there is more.
    fn plan_answers(&mut self, ahead: &mut Ahead, but: usize) {
        self.first_awaited();
        for tag in &self.rx.expected.order {
            let Ok(index) = self.sent_task(*tag) else { continue };
            if index == but {
                continue;
            }
            if !ahead.begin_answer() {
                break;
            }
            let from = self.tasks[index].received as usize;
            if !self.plan_answer(ahead, index, from, 0) {
                return;
            }
        }
        ahead.stage(self.head_len());
    }

    /// Plans the answer to task `index`, whose data has come up to `from`, and `taken` bytes behind. False if not
    /// all of it was planned.
    fn plan_answer(&self, ahead: &mut Ahead, index: usize, from: usize, taken: usize) -> bool {
        let (task, expected) = (&self.tasks[index], &self.rx.expected);
        let len = if task.reads() { task.len as usize } else { 0 };
        let (mut at, mut taken) = (from, taken);
        while at < len {
            let segment = expected.segment.min(len - at);
            if !ahead.stage(self.head_len() - taken)
                || !self.plan_pages(ahead, index, at, at + segment)
                || !ahead.stage(self.tail_len(segment))
            {
                return false;
            }
            (at, taken) = (at + segment, 0);
        }
        len > from && expected.collapses || ahead.stage(self.head_len() - taken)
    }

    /// Plans the bytes `from..end` of the command of `leader`. False if not all of them.
    fn plan_pages(&self, ahead: &mut Ahead, leader: usize, from: usize, end: usize) -> bool {
        if from >= end {
            return true;
        }
        let (mut row, mut at) = locate(&self.tasks, leader, from);
        let mut left = end - from;
        while left > 0 {
            let task = &self.tasks[row];
            if at == task.pages.len() * PAGE_SIZE {
                (row, at) = (usize::from(task.next), 0);
                continue;
            }
            let start = at % PAGE_SIZE;
            let len = (PAGE_SIZE - start).min(left);
            if !ahead.page(Place { row, page: at / PAGE_SIZE, at: start, len }) {
                return false;
            }
            (at, left) = (at + len, left - len);
        }
        true
    }
}

/// The backend while it reads what was shown.
struct Reading<'a> {
    backend: &'a mut IscsiBackend,
    now: Time,
}

impl Reader for Reading<'_> {
    type Error = Violation;

    fn is_open(&self) -> bool {
        self.backend.is_receiving()
    }

    fn answers(&self) -> u64 {
        self.backend.rx.expected.pdus
    }

    fn read(&mut self, bytes: &[u8], to_data: bool) -> Result<usize, Violation> {
        let this = &mut *self.backend;
        let mut rest = bytes;
        while !rest.is_empty() && this.is_receiving() {
            let is_data = matches!(this.rx.part, Part::Data { dest: Dest::Pages { .. }, .. });
            if is_data && to_data {
                break;
            }
            let place = this.rx.buffer(&mut this.tasks);
            let n = place.len().min(rest.len());
            place[..n].copy_from_slice(&rest[..n]);
            if is_data {
                this.stats.copied_bytes += n as u64;
            }
            this.receive(self.now, n)?;
            rest = &rest[n..];
        }
        Ok(bytes.len() - rest.len())
    }

    fn next(&mut self) -> Next {
        let this = &*self.backend;
        let Part::Data { dest: Dest::Pages { task, offset }, len } = this.rx.part else {
            return Next::Head;
        };
        let (row, byte) = locate(&this.tasks, task, offset + this.rx.at);
        let at = byte % PAGE_SIZE;
        let len = (PAGE_SIZE - at).min(len - this.rx.at);
        Next::Page(Place { row, page: byte / PAGE_SIZE, at, len })
    }

    fn arrived(&mut self, n: usize) -> Result<(), Violation> {
        self.backend.receive(self.now, n)
    }

    fn exchange(&mut self, a: (usize, usize), b: (usize, usize)) {
        self.backend.stats.exchanged += 1;
        let tasks = &mut self.backend.tasks;
        if a.0 == b.0 {
            tasks[a.0].pages.swap(a.1, b.1);
        } else if let Ok([x, y]) = tasks.get_disjoint_mut([a.0, b.0]) {
            std::mem::swap(&mut x.pages[a.1], &mut y.pages[b.1]);
        }
    }

    fn page(&self, row: usize, page: usize) -> &[u8] {
        self.backend.tasks[row].pages[page].bytes()
    }
}
