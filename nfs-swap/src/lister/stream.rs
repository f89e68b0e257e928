//! The session of a listing: one call at a time over a connection that may break.
//!
//! A call that stays unanswered is repeated, with its xid, on a new connection: listing changes nothing,
//! so there is no harm in a call that is executed twice.
//!
//! The list of entries goes from the stream straight into the page vector.

use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Span, Time};

use super::{GARBAGE_MAX, ListError, NfsLister, Step};
use crate::dir::DirHead;
use crate::link::Target;
use crate::message::{REPLY_HEAD_MAX, head_needs};
use crate::pages::{MAP_RETRY, arrivals, land};
use crate::rpc::{self, MARK_BYTES, RecordNext, RecordReader};
use crate::xdr::{Decoder, XdrError};

/// What stands between attributes and list in a reply: the cookie verifier.
const LIST_FIXED: usize = 8;
/// What a record begins with: by it alone a reply is known to be ours.
const XID_BYTES: usize = 4;

/// Where the call is.
///
/// ```text
///   Idle -> Pending <-> Sending -> Sent -> [Unread] -> Idle
///              ^                    |
///              +----- Backoff <-----+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    /// Encoded, waits for a connection.
    Pending,
    /// `sent` bytes are with the transport; `at` was the last progress.
    Sending {
        sent: usize,
        at: Time,
    },
    Sent {
        at: Time,
    },
    /// The list is there, and waits for a window to be looked at.
    Unread {
        head: DirHead,
        len: usize,
    },
    /// The server asked for patience.
    Backoff {
        until: Time,
    },
}

/// Where the bytes of the current record go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Into `head`, up to `need` bytes of it, which are then looked at.
    Head { need: usize },
    /// Into the pages.
    List,
    /// Nowhere: nobody waits for it.
    Skip,
}

#[derive(Debug)]
pub(super) struct Receiver {
    reader: RecordReader,
    mark: [u8; MARK_BYTES],
    place: Place,
    head: Box<[u8]>,
    head_len: usize,
    list_len: usize,
    list_max: usize,
    /// For what goes nowhere, and for what arrives for high pages; `bounced` bytes of that wait for a
    /// window. Nothing is taken from the stream meanwhile.
    scratch: Box<[u8]>,
    bounced: usize,
}

impl Receiver {
    pub(super) fn new(list_max: usize) -> Receiver {
        Receiver {
            reader: RecordReader::new(REPLY_HEAD_MAX + list_max),
            mark: [0; MARK_BYTES],
            place: Place::Head { need: XID_BYTES },
            head: vec![0; REPLY_HEAD_MAX].into(),
            head_len: 0,
            list_len: 0,
            list_max,
            scratch: vec![0; PAGE_SIZE].into(),
            bounced: 0,
        }
    }

    /// The next record begins.
    fn reset(&mut self) {
        self.reader.reset();
        self.place = Place::Head { need: XID_BYTES };
        self.head_len = 0;
        self.list_len = 0;
        self.bounced = 0;
    }
}

impl<P: MapPageMut, M: Mapper> NfsLister<P, M> {
    /// Queues the encoded call, or lets it wait for a connection.
    pub(super) fn enqueue(&mut self, now: Time) {
        self.phase = match self.link.is_open() {
            true => Phase::Sending { sent: 0, at: now },
            false => Phase::Pending,
        };
    }

    /// Gives up the connection by `action`, if there is one.
    fn drop_connection(&mut self, action: Action) {
        let half_sent = matches!(self.phase, Phase::Sending { sent: 1.., .. });
        self.link.give_up(if half_sent { Action::Abort } else { action });
        self.detach();
    }

    fn detach(&mut self) {
        if matches!(self.phase, Phase::Sending { .. } | Phase::Sent { .. }) {
            self.phase = Phase::Pending;
        }
        self.rx.reset();
    }

    /// No more calls are to be made.
    pub(super) fn hang_up(&mut self) {
        self.drop_connection(Action::Close);
        self.phase = Phase::Idle;
    }

    /// Closes the connection, to make the next call of the other service.
    pub(super) fn switch_to(&mut self, now: Time, target: Target) {
        self.link.switch_to(target);
        self.drop_connection(Action::Close);
        self.call_since = now;
        self.issue(now);
    }

    /// The server asks to try again later: under a new xid (RFC 1813 section 2.6).
    pub(super) fn back_off(&mut self, now: Time) {
        let until = now + self.config.jukebox_delay * (1 << self.jukebox.min(4));
        self.jukebox += 1;
        self.phase = Phase::Backoff { until };
    }

    fn patience(&self) -> Span {
        self.config.request_timeout * (1 << self.timeouts.min(4))
    }

    fn wants_connection(&self) -> bool {
        self.phase == Phase::Pending
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Time) {
        if self.phase != Phase::Idle && self.call_since + self.config.give_up_after <= now {
            self.fail(ListError::TimedOut);
            return;
        }
        if self.map_retry_at.is_some_and(|at| at <= now) {
            self.map_retry_at = None;
            self.retry_windows(now);
        }
        match self.phase {
            Phase::Backoff { until } if until <= now => self.issue(now),
            Phase::Sent { at } | Phase::Sending { at, .. } if at + self.patience() <= now => {
                self.timeouts += 1;
                self.drop_connection(Action::Abort);
            }
            _ => {}
        }
        if self.link.is_late(now, self.config.request_timeout) {
            self.drop_connection(Action::Abort);
        }
    }

    /// There is no window to copy bytes, or to look at them.
    pub(super) fn await_window(&mut self, now: Time) {
        self.stats.map_waits += 1;
        self.map_retry_at = Some(now + MAP_RETRY);
    }

    /// Tries again what waits for a window.
    fn retry_windows(&mut self, now: Time) {
        let bounced = std::mem::take(&mut self.rx.bounced);
        if bounced > 0 {
            self.receive(now, bounced);
        } else if let Phase::Unread { head, len } = self.phase
            && let Err(what) = self.handle_list(now, head, len)
        {
            // The call is made again.
            self.phase = Phase::Pending;
            self.handle_garbage(what);
        }
    }

    /// `n` bytes have arrived where the next ones were to.
    fn receive(&mut self, now: Time, n: usize) {
        let result = match self.rx.reader.next() {
            RecordNext::Mark(_) => {
                let mark = self.rx.mark;
                let pushed = self.rx.reader.push_mark(&mark[..n]).map_err(|error| error.what());
                pushed.and_then(|_| self.end_if_whole(now))
            }
            _ if self.rx.place == Place::List => {
                let (pages, at) = (&mut self.pages, self.rx.list_len);
                if land(pages, at, n, &self.rx.scratch, &mut self.mapper).is_err() {
                    self.rx.bounced = n;
                    self.await_window(now);
                    return;
                }
                self.advance(now, n)
            }
            _ => self.advance(now, n),
        };
        if let Err(what) = result {
            self.handle_garbage(what);
        }
    }

    fn handle_garbage(&mut self, what: &'static str) {
        self.stats.garbage += 1;
        self.garbage += 1;
        tracing::warn!(server = %self.config.server, what, "garbage from the server");
        self.drop_connection(Action::Abort);
        if self.garbage >= GARBAGE_MAX {
            self.fail(ListError::Garbage { what });
        }
    }

    /// `n` bytes of the record are where they belong.
    fn advance(&mut self, now: Time, n: usize) -> Result<(), &'static str> {
        self.rx.reader.advance(n);
        match self.rx.place {
            Place::Skip => {}
            Place::List => self.rx.list_len += n,
            Place::Head { need } => {
                self.rx.head_len += n;
                if self.rx.head_len == need {
                    self.route()?;
                }
            }
        }
        if matches!(self.rx.reader.next(), RecordNext::Body(_)) {
            match self.rx.place {
                Place::List if self.rx.list_len == self.rx.list_max => {
                    return Err("a list longer than was asked for");
                }
                Place::Head { .. } if self.rx.head_len == REPLY_HEAD_MAX => {
                    return Err("a reply that is too long");
                }
                _ => {}
            }
        }
        self.end_if_whole(now)
    }

    /// Enough of the head has come to find out what it is.
    fn route(&mut self) -> Result<(), &'static str> {
        let head = &self.rx.head[..self.rx.head_len];
        if self.rx.head_len == XID_BYTES {
            // A late or double answer is nobody's, and so is one to a call that is not sent.
            if head != self.xid.to_be_bytes() || !matches!(self.phase, Phase::Sent { .. }) {
                self.rx.place = Place::Skip;
                return Ok(());
            }
        }
        let need = match self.step {
            Step::List => head_needs(head, LIST_FIXED),
            _ => Some(usize::MAX),
        };
        self.rx.place = match need {
            None => Place::List,
            // A head that does not fit is noticed when its buffer is full.
            Some(need) => Place::Head { need },
        };
        Ok(())
    }

    fn end_if_whole(&mut self, now: Time) -> Result<(), &'static str> {
        if self.rx.reader.next() != RecordNext::End {
            return Ok(());
        }
        let (head_len, list_len) = (self.rx.head_len, self.rx.list_len);
        let head = std::mem::take(&mut self.rx.head);
        let result = match self.rx.place {
            Place::Skip => Ok(()),
            Place::Head { .. } if head_len < XID_BYTES => Err("a message that ends too early"),
            Place::Head { .. } => self.handle_reply(now, &head[..head_len]),
            Place::List => match list_head(&head[..head_len]) {
                Ok(head) => self.handle_list(now, head, list_len),
                Err(what) => Err(what),
            },
        };
        self.rx.head = head;
        result?;
        self.rx.reset();
        Ok(())
    }
}

/// What stands before a list: its head buffer is full up to there.
fn list_head(head: &[u8]) -> Result<DirHead, &'static str> {
    let mut dec = Decoder::new(head);
    rpc::decode_reply(&mut dec).map_err(XdrError::what)?;
    match DirHead::decode(&mut dec).map_err(XdrError::what)? {
        Ok(head) => Ok(head),
        Err(_) => Err("a list that failed and did not"),
    }
}

impl<P: MapPageMut, M: Mapper> Session for NfsLister<P, M> {
    fn handle_connected(&mut self, now: Time) {
        if !self.link.handle_connected() {
            return;
        }
        self.rx.reset();
        if self.phase == Phase::Pending {
            self.enqueue(now);
        }
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        if !self.link.is_switching() {
            tracing::debug!(server = %self.config.server, %why, "disconnected");
        }
        self.detach();
        self.link.handle_disconnected(now, self.config.reconnect_max);
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        if !self.link.is_open() {
            return &mut [];
        }
        let rx = &mut self.rx;
        if rx.bounced > 0 {
            return &mut [];
        }
        match (rx.reader.next(), rx.place) {
            (RecordNext::Mark(missing), _) => &mut rx.mark[..missing],
            (RecordNext::End, _) => &mut [],
            (RecordNext::Body(left), Place::Head { need }) => {
                let end = need.min(rx.head_len + left).min(rx.head.len());
                &mut rx.head[rx.head_len..end]
            }
            (RecordNext::Body(left), Place::List) => {
                arrivals(&mut self.pages, rx.list_len, left, &mut rx.scratch)
            }
            (RecordNext::Body(left), Place::Skip) => {
                let n = left.min(rx.scratch.len());
                &mut rx.scratch[..n]
            }
        }
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        if n == 0 {
            return;
        }
        assert!(n <= self.recv_buffer().len(), "more bytes received than were asked for");
        self.receive(now, n);
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        if let (true, Phase::Sending { sent, .. }) = (self.link.is_open(), self.phase) {
            // One piece always fits; if not, it is shown the next time.
            let _ = out.try_push(&self.head[sent..self.head_len]);
        }
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        if n == 0 {
            return;
        }
        let Phase::Sending { sent, .. } = self.phase else {
            panic!("more bytes taken than were shown");
        };
        let sent = sent + n;
        assert!(sent <= self.head_len, "more bytes taken than were shown");
        self.phase = if sent == self.head_len {
            self.stats.calls += 1;
            Phase::Sent { at: now }
        } else {
            Phase::Sending { sent, at: now }
        };
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        let wanted = self.wants_connection();
        let remote = match (self.link.target(), self.config.mount) {
            (Target::Mount, Some(mount)) => mount,
            _ => self.config.server,
        };
        self.link.poll_action(now, wanted, remote)
    }

    fn poll_deadline(&self) -> Option<Time> {
        let retry = self.map_retry_at;
        if self.phase == Phase::Idle {
            return retry;
        }
        let of_call = match self.phase {
            Phase::Backoff { until } => until,
            Phase::Sent { at } | Phase::Sending { at, .. } => at + self.patience(),
            Phase::Pending | Phase::Unread { .. } | Phase::Idle => Time::MAX,
        };
        let of_conn = self.link.deadline(self.wants_connection(), self.config.request_timeout);
        let give_up = self.call_since + self.config.give_up_after;
        Some(of_call.min(of_conn).min(give_up).min(retry.unwrap_or(Time::MAX)))
    }

    fn handle_deadline(&mut self, now: Time) {
        self.tick(now);
    }
}
