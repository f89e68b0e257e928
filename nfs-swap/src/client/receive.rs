//! Replies, taken in place: headers into a small buffer, READ data straight into the request's pages.
//!
//! The buffers that the transport is shown never reach beyond what is known to come next, so page
//! data lands in pages. Once the head of a READ's reply is known, a transport that fills several buffers
//! at once is shown all its pages, and behind them room for the padding and the beginning of the next
//! record: one system call for all of these. Only when a peer cuts its records into odd fragments can a few data bytes
//! land in the header buffer; they are then copied to where they belong.

use std::io::IoSliceMut;

use netswap_net::RecvVec;
use netswap_net::ahead::Ahead;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::backend::BATCH_PAGES_MAX;

use super::ahead::Expected;
use super::calls::{Garbage, garbage};
use super::merge::{MERGED_PAGES_MAX, Spot};
use super::{CallState, NfsBackend, Verb};
use crate::message::{REPLY_HEAD_MAX, REPLY_PREFIX, head_needs};
use crate::pages::{arrivals, is_high, land, low_pieces};
use crate::proto::ReadOk;
use crate::rpc::{self, AcceptStat, MARK_BYTES, RecordNext, RecordReader, ReplyStat};
use crate::xdr::{Decoder, padding};

/// Bytes of the buffer in which marks and headers arrive.
const STAGE_BYTES: usize = 128;
/// What stands between attributes and data in a READ's reply: count, eof, length.
const READ_FIXED: usize = 12;

/// Where the bytes of the current record go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Into `head`, up to `need` bytes of it, which are then looked at.
    Head { need: usize },
    /// Into the pages of a call: `at` of its bytes are there, then `pad` bytes are skipped.
    Data { read: ReadOk, at: usize, pad: usize },
    /// Nowhere.
    Skip,
}

#[derive(Debug)]
pub(super) struct Receiver {
    reader: RecordReader,
    place: Place,
    /// The call this record answers, once that is known.
    call: Option<usize>,
    /// The member of it that was looked at last.
    pub(super) member: Option<usize>,
    head: Box<[u8]>,
    head_len: usize,
    stage: Box<[u8]>,
    /// What the transport was shown, if it was more than that. `None` only while it is read.
    pub(super) ahead: Option<Box<Ahead>>,
    pub(super) expected: Expected,
    /// Bytes of the stage that were last shown behind the pages.
    behind: usize,
    scratch: Box<[u8]>,
    /// Where data for high pages arrives; `bounced` bytes of it wait for a window. Nothing is taken from
    /// the stream meanwhile.
    bounce: Box<[u8]>,
    pub(super) bounced: usize,
}

/// Which buffer the transport is shown, and how much of it.
enum Shown {
    Stage(usize),
    Page { call: usize, at: usize, len: usize },
    Scratch(usize),
}

impl Receiver {
    /// For replies with the data of one request at most, or of a merged call.
    pub(super) fn new(rows: usize, high_pages: bool, merges: bool) -> Receiver {
        let pages = if merges { MERGED_PAGES_MAX } else { BATCH_PAGES_MAX };
        Receiver {
            reader: RecordReader::new(REPLY_HEAD_MAX + pages * PAGE_SIZE),
            place: Place::Head { need: REPLY_PREFIX },
            call: None,
            member: None,
            head: vec![0; REPLY_HEAD_MAX].into(),
            head_len: 0,
            stage: vec![0; STAGE_BYTES].into(),
            ahead: Some(Box::new(Ahead::new())),
            expected: Expected::new(rows),
            behind: 0,
            scratch: vec![0; PAGE_SIZE].into(),
            bounce: vec![0; if high_pages { PAGE_SIZE } else { 0 }].into(),
            bounced: 0,
        }
    }

    /// The stream begins anew.
    pub(super) fn reset(&mut self) {
        self.reader.reset();
        self.behind = 0;
        self.bounced = 0;
        self.expected.reset();
        if let Some(ahead) = &mut self.ahead {
            ahead.reset();
        }
        self.next_record();
    }

    fn next_record(&mut self) {
        self.place = Place::Head { need: REPLY_PREFIX };
        self.call = None;
        self.member = None;
        self.head_len = 0;
    }

    /// Call `i` has ended: what still comes for it goes nowhere.
    pub(super) fn forget(&mut self, i: usize) {
        if self.call == Some(i) {
            self.call = None;
            self.place = Place::Skip;
        }
    }

    pub(super) fn call(&self) -> Option<usize> {
        self.call
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// What comes next of the stream.
    pub(super) fn next(&self) -> RecordNext {
        self.reader.next()
    }

    pub(super) fn is_last(&self) -> bool {
        self.reader.is_last()
    }

    /// Bytes of the record that were taken.
    pub(super) fn taken(&self) -> usize {
        self.reader.taken()
    }

    pub(super) fn head_len(&self) -> usize {
        self.head_len
    }

    fn awaits_data(&self) -> bool {
        matches!(self.next(), RecordNext::Body(_))
            && matches!(self.place, Place::Data { read, at, .. } if at < read.count as usize)
    }

    /// Whether the reply to call `i` is being received.
    pub(super) fn is_for(&self, i: usize) -> bool {
        self.call == Some(i)
    }

    fn shown(&self) -> Shown {
        match (self.reader.next(), self.place, self.call) {
            (RecordNext::Body(left), Place::Data { read, at, .. }, Some(call))
                if at < read.count as usize =>
            {
                Shown::Page { call, at, len: left.min(read.count as usize - at) }
            }
            (RecordNext::Body(left), Place::Skip, _) => Shown::Scratch(left.min(PAGE_SIZE)),
            (RecordNext::Body(left), Place::Head { need }, _) => {
                Shown::Stage(left.min(need.saturating_sub(self.head_len)).clamp(1, STAGE_BYTES))
            }
            (RecordNext::Body(left), Place::Data { pad, .. }, _) => {
                Shown::Stage(left.min(pad).clamp(1, STAGE_BYTES))
            }
            // With the mark of a new record comes the least it can hold: one buffer less to fill.
            (RecordNext::Mark(missing), ..) if self.reader.is_fresh() => {
                Shown::Stage(missing + REPLY_PREFIX)
            }
            (RecordNext::Mark(missing), ..) => Shown::Stage(missing),
            (RecordNext::End, ..) => Shown::Stage(MARK_BYTES),
        }
    }

    /// Bytes that are known to follow `len` bytes of data, with which the record's pages are full: the
    /// padding, and if the record ends there the mark of the next with the least it can hold.
    fn follows(&self, len: usize) -> usize {
        let (RecordNext::Body(left), Place::Data { read, at, pad }) =
            (self.reader.next(), self.place)
        else {
            return 0;
        };
        if at + len != read.count as usize {
            return 0;
        }
        let ends = self.reader.is_last() && left == len + pad;
        pad.min(left - len) + if ends { MARK_BYTES + REPLY_PREFIX } else { 0 }
    }
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    pub(super) fn receive_into(&mut self) -> &mut [u8] {
        self.rx.behind = 0;
        if let Some(ahead) = &mut self.rx.ahead {
            ahead.clear();
        }
        if self.rx.bounced > 0 {
            return &mut [];
        }
        match self.rx.shown() {
            Shown::Stage(len) => &mut self.rx.stage[..len],
            Shown::Scratch(len) => &mut self.rx.scratch[..len],
            Shown::Page { call, at, len } => match self.locate(call, at) {
                Spot::Hole(n) => &mut self.rx.scratch[..n.min(len).min(PAGE_SIZE)],
                Spot::Row { row, at, left } => {
                    let pages = &mut self.calls[row].pages;
                    arrivals(pages, at, len.min(left), &mut self.rx.bounce)
                }
            },
        }
    }

    /// As [`Self::receive_into`], and what is known to come behind that.
    pub(super) fn receive_into_all<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        if self.look_ahead() {
            self.show_ahead(out);
            return;
        }
        let low = match self.rx.shown() {
            Shown::Page { call, at, len } if self.rx.bounced == 0 => match self.locate(call, at) {
                Spot::Row { row, at, left } => {
                    let first = self.calls[row].pages.get(at / PAGE_SIZE);
                    let is_low = first.is_some_and(|page| !is_high(page));
                    is_low.then_some((row, at, len.min(left)))
                }
                Spot::Hole(_) => None,
            },
            _ => None,
        };
        let Some((call, at, len)) = low else {
            let buffer = self.receive_into();
            if !buffer.is_empty() {
                // An empty vector has room for it.
                let _ = out.try_push(IoSliceMut::new(buffer));
            }
            return;
        };
        let follows = self.rx.follows(len);
        let all = low_pieces(&mut self.calls[call].pages, at, len, out);
        self.rx.behind = if all && !out.is_full() { follows } else { 0 };
        if self.rx.behind > 0 {
            // There is room: just looked.
            let _ = out.try_push(IoSliceMut::new(&mut self.rx.stage[..self.rx.behind]));
        }
    }

    /// The first `n` bytes of what [`Self::receive_into`] or [`Self::receive_into_all`] gave are there.
    pub(super) fn receive(&mut self, now: Time, n: usize) {
        let result = match self.receive_ahead(now, n) {
            Ok(true) => Ok(()),
            Ok(false) => self.receive_shown(now, n),
            Err(what) => Err(what),
        };
        if let Err(what) = result {
            let about = self.rx.call;
            self.handle_garbage(now, about, what);
        }
    }

    /// The first `n` bytes of one buffer, or of pages and what is behind them, are there.
    fn receive_shown(&mut self, now: Time, n: usize) -> Result<(), Garbage> {
        match self.rx.shown() {
            Shown::Stage(len) => {
                assert!(n <= len, "more bytes received than were asked for");
                self.consume_stage(now, n)
            }
            Shown::Scratch(len) => {
                assert!(n <= len, "more bytes received than were asked for");
                self.advance(now, n)
            }
            Shown::Page { call, at, len } => {
                let behind = n.saturating_sub(len);
                assert!(behind <= self.rx.behind, "more bytes received than were asked for");
                let n = n - behind;
                if let Spot::Row { row, at, .. } = self.locate(call, at) {
                    let pages = &mut self.calls[row].pages;
                    if land(pages, at, n, &self.rx.bounce, &mut self.mapper).is_err() {
                        self.rx.bounced = n;
                        self.await_window(now);
                        return Ok(());
                    }
                }
                self.advance(now, n).and_then(|()| self.consume_stage(now, behind))
            }
        }
    }

    /// Tries again to move what waits for a window.
    #[cold]
    pub(super) fn receive_bounced(&mut self, now: Time) {
        if self.rx.bounced > 0 && self.link.is_open() {
            // If its call has ended meanwhile, the bytes go nowhere.
            let n = std::mem::take(&mut self.rx.bounced);
            self.receive(now, n);
        }
    }

    fn consume_stage(&mut self, now: Time, n: usize) -> Result<(), Garbage> {
        let stage = std::mem::take(&mut self.rx.stage);
        let result = self.consume(now, &stage[..n], false);
        self.rx.stage = stage;
        result.map(|_| ())
    }

    /// Reads bytes that are not where they belong; with `to_data`, up to data of pages. Says how many.
    pub(super) fn consume(
        &mut self,
        now: Time,
        mut bytes: &[u8],
        to_data: bool,
    ) -> Result<usize, Garbage> {
        let len = bytes.len();
        while !bytes.is_empty() && self.link.is_open() {
            if to_data && self.rx.awaits_data() {
                break;
            }
            let n = match self.rx.reader.next() {
                RecordNext::Mark(_) => {
                    let n = self.rx.reader.push_mark(bytes).map_err(|e| e.what())?;
                    self.end_if_whole(now)?;
                    n
                }
                RecordNext::Body(left) => {
                    let n = self.put(&bytes[..left.min(bytes.len())])?;
                    self.advance(now, n)?;
                    n
                }
                RecordNext::End => return Err("a record that does not end"),
            };
            if n == 0 {
                return Err("a record without progress");
            }
            bytes = &bytes[n..];
        }
        Ok(len - bytes.len())
    }

    /// Copies bytes that arrived in the stage to where they belong; says how many were taken.
    fn put(&mut self, bytes: &[u8]) -> Result<usize, Garbage> {
        match self.rx.place {
            Place::Skip => Ok(bytes.len()),
            Place::Head { need } => {
                let (at, room) = (self.rx.head_len, REPLY_HEAD_MAX - self.rx.head_len);
                let n = bytes.len().min(need.saturating_sub(at));
                if n > room {
                    return Err("a reply that is too long");
                }
                self.rx.head[at..at + n].copy_from_slice(&bytes[..n]);
                Ok(n)
            }
            Place::Data { read, at, pad } => {
                let left = read.count as usize - at;
                if left == 0 {
                    return if pad == 0 {
                        Err("bytes after the data of a READ")
                    } else {
                        Ok(bytes.len().min(pad))
                    };
                }
                let Some(i) = self.rx.call else { return Ok(bytes.len()) };
                let (row, at, left) = match self.locate(i, at) {
                    Spot::Hole(n) => return Ok(bytes.len().min(n).min(left)),
                    Spot::Row { row, at, left: here } => (row, at, left.min(here)),
                };
                let pages = &mut self.calls[row].pages;
                let buf = arrivals(pages, at, left.min(bytes.len()), &mut self.rx.bounce);
                let n = buf.len();
                buf.copy_from_slice(&bytes[..n]);
                land(pages, at, n, &self.rx.bounce, &mut self.mapper)
                    .map_err(|_| "fragments so odd that there is no window for them")?;
                Ok(n)
            }
        }
    }

    /// `n` bytes of the record are where they belong.
    pub(super) fn advance(&mut self, now: Time, n: usize) -> Result<(), Garbage> {
        self.rx.reader.advance(n);
        match &mut self.rx.place {
            Place::Skip => {}
            Place::Head { need } => {
                self.rx.head_len += n;
                if self.rx.head_len >= *need {
                    self.route()?;
                }
            }
            Place::Data { read, at, pad } => {
                if *at < read.count as usize {
                    *at += n;
                } else {
                    *pad -= n;
                }
            }
        }
        self.end_if_whole(now)
    }

    /// Enough of the head has come to find out whose reply this is, and where its data goes.
    fn route(&mut self) -> Result<(), Garbage> {
        let head = &self.rx.head[..self.rx.head_len];
        if self.rx.call.is_none() {
            let mut dec = Decoder::new(head);
            let xid = dec.u32().map_err(garbage)?;
            let Some(i) = self.xids.find(xid) else {
                self.stats.unknown_xids += 1;
                self.rx.place = Place::Skip;
                return Ok(());
            };
            let half_sent = self.is_half_sent(i);
            match self.calls[i].state {
                CallState::Sent { .. } => {}
                CallState::Queued if self.calls[i].sends > 0 && !half_sent => {
                    // The answer came before the repetition: that is not needed any more.
                    self.unqueue(i);
                    self.calls[i].state = CallState::Sent { at: self.received_at };
                    let due = self.received_at + self.patience(&self.calls[i]);
                    self.arm(due);
                }
                _ => {
                    self.stats.early_replies += 1;
                    self.rx.place = Place::Skip;
                    return Ok(());
                }
            }
            self.rx.call = Some(i);
        }
        let Some(i) = self.rx.call else { return Ok(()) };
        if self.calls[i].verb != Verb::Read {
            self.rx.place = Place::Head { need: usize::MAX };
            return Ok(());
        }
        let head = &self.rx.head[..self.rx.head_len];
        match head_needs(head, READ_FIXED) {
            Some(need) if need <= REPLY_HEAD_MAX || need == usize::MAX => {
                self.rx.place = Place::Head { need };
            }
            Some(_) => return Err("a reply that is too long"),
            None => {
                let mut dec = Decoder::new(head);
                let (_, stat) = rpc::decode_reply(&mut dec).map_err(garbage)?;
                debug_assert_eq!(stat, ReplyStat::Accepted(AcceptStat::Success));
                let max = self.calls[i].want as u32;
                let Ok(read) = ReadOk::decode(&mut dec, max).map_err(garbage)? else {
                    return Err("a READ that failed and did not");
                };
                dec.end().map_err(garbage)?;
                let pad = padding(read.count as usize);
                self.rx.expected.learn_read(self.rx.head_len);
                self.rx.place = Place::Data { read, at: 0, pad };
            }
        }
        Ok(())
    }

    fn end_if_whole(&mut self, now: Time) -> Result<(), Garbage> {
        if self.rx.reader.next() != RecordNext::End {
            return Ok(());
        }
        if matches!(self.rx.place, Place::Head { .. }) && self.rx.call.is_none() {
            self.route()?;
        }
        let (place, call) = (self.rx.place, self.rx.call);
        let head_len = self.rx.head_len;
        match (place, call) {
            (Place::Head { .. }, Some(i)) => {
                if self.calls[i].verb == Verb::Read {
                    self.read_without_data(i, head_len)?;
                }
                if self.calls[i].verb == Verb::Write {
                    self.rx.expected.learn_write(head_len);
                }
                let head = std::mem::take(&mut self.rx.head);
                let result = self.handle_reply(now, i, &head[..head_len]);
                self.rx.head = head;
                result?;
            }
            (Place::Data { read, at, pad }, Some(i)) => {
                if at < read.count as usize || pad > 0 {
                    return Err("a READ with less data than it says");
                }
                self.handle_read(now, i, read);
            }
            _ => {}
        }
        self.rx.reader.reset();
        self.rx.next_record();
        Ok(())
    }

    /// A READ's record ended in its head: it must have failed.
    fn read_without_data(&self, i: usize, head_len: usize) -> Result<(), Garbage> {
        let mut dec = Decoder::new(&self.rx.head[..head_len]);
        let (_, stat) = rpc::decode_reply(&mut dec).map_err(garbage)?;
        if stat == ReplyStat::Accepted(AcceptStat::Success)
            && ReadOk::decode(&mut dec, self.calls[i].want as u32).map_err(garbage)?.is_ok()
        {
            return Err("a READ without its data");
        }
        Ok(())
    }
}
