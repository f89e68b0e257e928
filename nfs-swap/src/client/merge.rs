//! Merging: requests that wait for the wire and have adjacent slots go in one call.
//!
//! # When
//! A request that may be sent waits until the transport asks for bytes. So what was submitted in one go is merged at no
//! cost. While at least [`NfsConfig::merge_after`](super::NfsConfig) calls are on the wire, a request that
//! has a neighbour waits on, to be merged when a call is answered: as Nagle's algorithm holds small segments. One
//! without a neighbour never waits for others, unless [`NfsConfig::wire_max`](super::NfsConfig) calls are
//! on the wire.
//!
//! # A merged call
//! ```text
//!   row 7, the leader: Sent    row 2: Joined     row 9: Joined      `next` leads 7 -> 2 -> 9
//!   slots 40..44               slots 44..45      slots 45..61       one xid, one head: those of row 7
//! ```
//! Only the leader may have been done in part before. The call has bytes `from..from + want` of the file, whoever is
//! still there: a member whose deadline comes while the call is on the wire leaves a *hole*. Data for it goes
//! nowhere; a WRITE with a hole is never sent again, as its bytes are gone, and what is left of it is written
//! by new calls on a new connection. If the leader leaves, the next member takes its row, and with it the xid.
//!
//! # Invariants
//! - To the caller, and to the rule of conflicts, each member is a request of its own.
//! - What is not plain success takes the call apart first, and then means to each member what it
//!   means to a single one. A merged call that is refused says nothing about its members: they are asked
//!   for again, each alone.

use netswap_net::{Action, SendVec};
use netswap_reserve::windows::{MapPage, MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::queue::{Lane, NONE, Policy};

use super::{Call, CallState, NfsBackend, NfsConfig, Verb, total_bytes};
use crate::link::Target;
use crate::pages::is_high;
use crate::xdr::{XdrBuf, ZEROS, padding};

/// Most pages of a merged call. Picked by eye: what a turn of the transport moves, and what a page-in may have to
/// wait for.
pub(super) const MERGED_PAGES_MAX: usize = 64;

/// Where a byte of a call belongs.
pub(super) enum Spot {
    /// At byte `at` of the pages of `row`, which go on for `left` bytes of the call.
    Row { row: usize, at: usize, left: usize },
    /// To nobody, for so many bytes.
    Hole(usize),
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Whether the call of `i` is not simply the request of `i`.
    pub(super) fn is_merged(&self, i: usize) -> bool {
        self.calls[i].next != NONE || self.calls[i].holes
    }

    /// The xid of `i` means nothing from now on.
    pub(super) fn release(&mut self, i: usize) {
        self.xids.release(i);
        self.wire -= usize::from(std::mem::take(&mut self.calls[i].on_wire));
    }

    /// Request `i` may be sent as soon as there is room on the wire.
    pub(super) fn await_wire(&mut self, now: Time, i: usize) {
        self.release(i);
        if !self.is_sending() {
            self.progress_at = now;
            self.arm(now + self.config.request_timeout);
        }
        let call = &mut self.calls[i];
        call.state = CallState::Waiting;
        (call.holes, call.next) = (false, NONE);
        let (slots, is_read) = (call.slots(), call.verb == Verb::Read);
        let in_stream = self.config.merge
            && !call.alone
            && (self.touched.has(slots.end, is_read)
                || slots.start.checked_sub(1).is_some_and(|slot| self.touched.has(slot, is_read)));
        self.waiting.push(i, call.first, call.pages.len(), Lane { is_read, in_stream });
    }

    /// Makes calls of what waits, as far as the wire has room for them.
    #[inline]
    pub(super) fn dispatch(&mut self, now: Time) {
        while !self.waiting.is_empty() && self.link.target() == Target::Nfs {
            let Some(i) = self.next_for_wire() else { return };
            self.waiting.remove(i);
            self.count_passed(i);
            let leader = if self.config.merge && !self.calls[i].alone { self.merge(i) } else { i };
            self.encode(now, leader);
        }
    }

    /// Whether something waits that could be sent.
    pub(super) fn is_held_up(&self) -> bool {
        self.link.target() == Target::Nfs && self.next_for_wire().is_some()
    }

    /// The request for which the next call is made.
    fn next_for_wire(&self) -> Option<usize> {
        self.waiting.next(&self.policy(), self.wire, |row| self.calls[row].turn)
    }

    fn policy(&self) -> Policy {
        let NfsConfig { overtakes_max, merge_after, wire_max, .. } = self.config;
        Policy { overtakes_max, merge_after, wire_max }
    }

    /// Request `i` goes before those that it may go before only so often.
    fn count_passed(&mut self, i: usize) {
        let is_read = self.calls[i].verb == Verb::Read;
        if let Some(held) = self.waiting.front(Lane { is_read, in_stream: true }) {
            self.calls[held].turn.passed += 1;
        }
        if !is_read {
            return;
        }
        let turn = |row: usize| self.calls[row].turn;
        if let Some(write) = self.waiting.next_of(false, &self.policy(), self.wire, turn) {
            self.calls[write].turn.overtaken += 1;
        }
    }

    /// Joins request `i`, which waited until now, with its neighbours that wait. Returns the leader.
    fn merge(&mut self, i: usize) -> usize {
        let is_read = self.calls[i].verb == Verb::Read;
        let chunk = if is_read { self.read_merged } else { self.write_merged };
        let stable = self.config.write.stable_how(self.calls[i].rewrites);
        let fits = |this: &Self, row: usize, bytes: usize| {
            let call = &this.calls[row];
            let same = is_read || this.config.write.stable_how(call.rewrites) == stable;
            !call.alone && same && bytes + total_bytes(call) - call.done <= chunk
        };
        let mut bytes = total_bytes(&self.calls[i]) - self.calls[i].done;
        let mut leader = i;
        while self.calls[leader].done == 0
            && let Some(row) = self.waiting.ending_at(self.calls[leader].slots().start, is_read)
            && fits(self, row, bytes)
        {
            bytes += total_bytes(&self.calls[row]) - self.calls[row].done;
            self.waiting.remove(row);
            self.calls[row].next = leader as u16;
            leader = row;
        }
        let mut last = i;
        while let Some(row) = self.waiting.beginning_at(self.calls[last].slots().end, is_read)
            && self.calls[row].done == 0
            && fits(self, row, bytes)
        {
            bytes += total_bytes(&self.calls[row]);
            self.waiting.remove(row);
            self.calls[last].next = row as u16;
            last = row;
        }
        let mut row = self.calls[leader].next;
        self.stats.merged += u64::from(row != NONE);
        while row != NONE {
            let member = &mut self.calls[usize::from(row)];
            member.state = CallState::Joined { leader: leader as u16 };
            self.stats.joined += 1;
            row = member.next;
        }
        leader
    }

    /// Bytes of the file that the next call of `i` is for, those of its members included.
    pub(super) fn extent(&self, i: usize) -> (u64, usize) {
        let call = &self.calls[i];
        let chunk = if call.verb == Verb::Read { self.read_chunk } else { self.write_chunk };
        let mut bytes = total_bytes(call) - call.done;
        if call.next == NONE {
            bytes = bytes.min(chunk);
        }
        let mut row = call.next;
        while row != NONE {
            bytes += total_bytes(&self.calls[usize::from(row)]);
            row = self.calls[usize::from(row)].next;
        }
        (call.first.offset() + call.done as u64, bytes)
    }

    /// Bytes of the whole message of call `i`.
    pub(super) fn message_len(&self, i: usize) -> usize {
        let call = &self.calls[i];
        let is_write = call.verb == Verb::Write;
        call.head_len + if is_write { call.want + padding(call.want) } else { 0 }
    }

    /// Appends what follows the first `skip` bytes of the message of call `i`. False if it stopped before the end.
    pub(super) fn push_message<'a>(&'a self, i: usize, skip: usize, out: &mut SendVec<'a>) -> bool {
        let heads = &self.heads[self.head_range(i)];
        parts(&self.calls, heads, i, skip, |part, skip| part.push_from(skip, out))
    }

    /// Whether a page of the message of call `i` needs a window.
    pub(super) fn sends_high(&self, i: usize) -> bool {
        let heads = &self.heads[self.head_range(i)];
        !parts(&self.calls, heads, i, 0, |part, _| !part.pages.iter().any(is_high))
    }

    /// Copies some of what is left of call `i`, which is the first to be sent, from its pages to the stage. Says
    /// how much; nothing if there is no window now.
    #[cold]
    pub(super) fn fill_stage(&mut self, now: Time, i: usize) -> usize {
        let heads = &self.heads[self.head_range(i)];
        let mut copied = Ok(0);
        parts(&self.calls, heads, i, self.sent_front, |part, skip| {
            copied = part.copy_from(skip, &mut self.mapper, &mut self.stage);
            false
        });
        copied.unwrap_or_else(|_| {
            self.await_window(now);
            0
        })
    }

    /// Where byte `at` of the data of call `i` belongs.
    pub(super) fn locate(&mut self, i: usize, at: usize) -> Spot {
        let (byte, end) =
            (self.calls[i].from + at as u64, self.calls[i].from + self.calls[i].want as u64);
        let from = self.rx.member.filter(|row| self.calls[*row].first.offset() <= byte);
        let mut row = from.unwrap_or(i);
        loop {
            let call = &self.calls[row];
            let start = call.first.offset();
            let past = start + total_bytes(call) as u64;
            if byte < start {
                return Spot::Hole((start.min(end) - byte) as usize);
            }
            if byte < past {
                let (at, left) = ((byte - start) as usize, (past.min(end) - byte) as usize);
                self.rx.member = Some(row);
                return Spot::Row { row, at, left };
            }
            if call.next == NONE {
                return Spot::Hole((end - byte) as usize);
            }
            row = usize::from(call.next);
        }
    }

    /// Ends call `i`, which is answered, or will never be, and calls `each` for each of its requests, which
    /// is a single one then, and not on the wire.
    pub(super) fn take_apart(&mut self, i: usize, mut each: impl FnMut(&mut Self, usize)) {
        if !self.is_merged(i) {
            each(self, i);
            return;
        }
        self.rx.forget(i);
        self.release(i);
        let Call { sends, sent_over, handle_generation, garbage, .. } = self.calls[i];
        let mut row = i as u16;
        while row != NONE {
            let at = usize::from(row);
            let call = &mut self.calls[at];
            row = std::mem::replace(&mut call.next, NONE);
            call.state = CallState::Pending;
            call.holes = false;
            (call.sends, call.sent_over) = (sends, sent_over);
            (call.handle_generation, call.garbage) = (handle_generation, garbage);
            self.let_go(at);
            each(self, at);
        }
    }

    /// Call `i` was sent once more: a copy of it, and of its members, has no answer.
    pub(super) fn let_all_go(&mut self, i: usize) {
        let Call { sends, sent_over, mut next, .. } = self.calls[i];
        self.let_go(i);
        while next != NONE {
            let at = usize::from(next);
            (self.calls[at].sends, self.calls[at].sent_over) = (sends, sent_over);
            self.let_go(at);
            next = self.calls[at].next;
        }
    }

    /// Takes apart what is merged, before all of it ends. The connection is gone.
    pub(super) fn take_all_apart(&mut self) {
        for i in 0..self.requests() {
            let is_member = matches!(self.calls[i].state, CallState::Joined { .. });
            if !is_member && self.is_merged(i) {
                self.take_apart(i, |_, _| ());
            }
        }
    }

    /// The deadline of request `i` has come: takes it out of its call, if that has others. Returns the row
    /// where the request is then; it is not in any queue of calls, nor half sent.
    pub(super) fn leave(&mut self, now: Time, i: usize) -> usize {
        let leader = match self.calls[i].state {
            CallState::Joined { leader } => usize::from(leader),
            _ => i,
        };
        if self.is_half_sent(leader) {
            self.drop_connection(Action::Abort);
        }
        // A WRITE that had a hole is taken apart by that.
        if !matches!(self.calls[i].state, CallState::Joined { .. }) && self.calls[i].next == NONE {
            return i;
        }
        let call = &self.calls[leader];
        let is_out = call.sends > 0 && call.sent_over == self.connection && self.link.is_open();
        if call.state == CallState::Queued {
            self.unqueue(leader);
            if is_out {
                // The copy that is on the wire is waited for. If it stays out, so does the connection not.
                self.calls[leader].state = CallState::Sent { at: now };
                let due = now + self.patience(&self.calls[leader]);
                self.arm(due);
            }
        }
        if !matches!(self.calls[leader].state, CallState::Sent { .. }) {
            self.take_apart(leader, |this, row| {
                if row != i {
                    this.issue(now, row);
                }
            });
            return i;
        }
        self.make_hole(leader, i)
    }

    /// Takes request `i` out of a call that is on the wire, which goes on without it.
    fn make_hole(&mut self, leader: usize, i: usize) -> usize {
        self.rx.member = None;
        let Call { sends, sent_over, .. } = self.calls[leader];
        let gone = if i == leader {
            let next = usize::from(self.calls[i].next);
            self.hand_over(i, next);
            next
        } else {
            let mut before = leader;
            while usize::from(self.calls[before].next) != i {
                before = usize::from(self.calls[before].next);
            }
            self.calls[before].next = self.calls[i].next;
            i
        };
        self.calls[leader].holes = true;
        let call = &mut self.calls[gone];
        call.next = NONE;
        call.state = CallState::Pending;
        (call.sends, call.sent_over) = (sends, sent_over);
        gone
    }

    /// The requests of two rows change places. What belongs to the call stays with the row.
    fn hand_over(&mut self, leader: usize, member: usize) {
        let Ok([a, b]) = self.calls.get_disjoint_mut([leader, member]) else { return };
        std::mem::swap(a, b);
        std::mem::swap(&mut a.state, &mut b.state);
        std::mem::swap(&mut a.from, &mut b.from);
        std::mem::swap(&mut a.want, &mut b.want);
        std::mem::swap(&mut a.head_len, &mut b.head_len);
        std::mem::swap(&mut a.sends, &mut b.sends);
        std::mem::swap(&mut a.sent_over, &mut b.sent_over);
        std::mem::swap(&mut a.timeouts, &mut b.timeouts);
        std::mem::swap(&mut a.garbage, &mut b.garbage);
        std::mem::swap(&mut a.handle_generation, &mut b.handle_generation);
        std::mem::swap(&mut a.on_wire, &mut b.on_wire);
        std::mem::swap(&mut a.holes, &mut b.holes);
    }
}

/// Shows `visit` the message of call `i`, whose head is in `head`, record mark included, in parts, from the
/// one that has byte `skip` of it, until `visit` says that it has enough; with each, how much of it is skipped.
/// False if it had enough.
fn parts<'a, P: MapPage>(
    calls: &'a [Call<P>],
    head: &'a [u8],
    i: usize,
    mut skip: usize,
    mut visit: impl FnMut(XdrBuf<'a, P>, usize) -> bool,
) -> bool {
    let call = &calls[i];
    let mut head = &head[..call.head_len];
    if call.verb != Verb::Write {
        return visit(XdrBuf { head, pages: &[], page_base: 0, page_len: 0, tail: &[] }, skip);
    }
    assert!(!call.holes, "a WRITE whose bytes are gone");
    let (mut row, mut left) = (i, call.want);
    loop {
        let Call { pages, done, next, .. } = &calls[row];
        let page_len = left.min(pages.len() * PAGE_SIZE - done);
        left -= page_len;
        let tail = if left == 0 { &ZEROS[..padding(call.want)] } else { &[] };
        let part = XdrBuf { head, pages, page_base: *done, page_len, tail };
        let len = part.len();
        if skip < len && !visit(part, skip) {
            return false;
        }
        if left == 0 || *next == NONE {
            return true;
        }
        skip = skip.saturating_sub(len);
        head = &[];
        row = usize::from(*next);
    }
}
