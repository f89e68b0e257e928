//! The listing as its transport sees it: bytes, PDUs, time.

use std::net::SocketAddr;

use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::Time;

use super::{Ask, DiscoveryError, IscsiDiscovery};
use crate::digest::{self, DIGEST_LEN, Digests};
use crate::login::{LOGIN_SEGMENT_MAX, LoginError, LoginStep, REDIRECTS_MAX};
use crate::pdu::{
    BHS_LEN, Bhs, DataIn, LoginRequest, LoginResponse, LogoutRequest, NopIn, NopOut, ResponsePdu,
    ScsiCommand, ScsiResponse, TAG_NONE, TextRequest, TextResponse, ahs_len, data_len, lun_bytes,
    opcode, opcode_of, padding,
};
use crate::scsi::Sense;
use crate::tx::TxPdu;
use crate::window::CmdWindow;

/// MaxRecvDataSegmentLength that is declared: the longest PDU is held as a whole.
pub(super) const SEGMENT_MAX: usize = 16384;
/// Header and digest, data and padding, and digest.
const PDU_MAX: usize = BHS_LEN + DIGEST_LEN + SEGMENT_MAX + 3 + DIGEST_LEN;

static SEND_TARGETS: &[u8] = b"SendTargets=All\0";

/// The data of a PDU in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxData {
    None,
    Login,
    SendTargets,
}

/// ```text
///   Idle --> Connecting --> Login --> Full --> Leaving --> Over
///              ^--------------+ redirected
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Idle,
    Connecting,
    Login,
    Full,
    /// The connection is being closed; then a redirection is followed, or it is over.
    Leaving {
        next: Option<SocketAddr>,
    },
    Over,
}

/// The PDU that is being received, as a whole.
#[derive(Debug)]
pub(super) struct Rx {
    bytes: Box<[u8; PDU_MAX]>,
    at: usize,
    /// Bytes up to which its length is known.
    need: usize,
    digests: Digests,
    /// Bytes of login text that earlier PDUs brought; they are in `text`.
    text_len: usize,
    text: Box<[u8; LOGIN_SEGMENT_MAX]>,
}

impl Rx {
    pub(super) fn new() -> Rx {
        Rx {
            bytes: Box::new([0; PDU_MAX]),
            at: 0,
            need: BHS_LEN,
            digests: Digests::default(),
            text_len: 0,
            text: Box::new([0; LOGIN_SEGMENT_MAX]),
        }
    }

    fn reset(&mut self) {
        (self.at, self.need, self.text_len) = (0, BHS_LEN, 0);
        self.digests = Digests::default();
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = [0; BHS_LEN];
        bhs.copy_from_slice(&self.bytes[..BHS_LEN]);
        bhs
    }

    /// Bytes of header and digest.
    fn head(&self) -> usize {
        BHS_LEN + if self.digests.header { DIGEST_LEN } else { 0 }
    }
}

fn garbage<T>(what: &'static str) -> Result<T, DiscoveryError> {
    Err(DiscoveryError::Garbage { what })
}

impl Session for IscsiDiscovery {
    fn handle_connected(&mut self, _now: Time) {
        if self.link != Link::Connecting {
            return;
        }
        self.link = Link::Login;
        self.rx.reset();
        self.tx.clear();
        self.window = CmdWindow::new(1);
        self.exp_stat_sn = 0;
        self.expect_first_stat_sn = true;
        match self.login.start() {
            Ok(()) => self.due = true,
            Err(error) => self.finish(Err(error.into())),
        }
    }

    fn handle_disconnected(&mut self, _now: Time, why: Disconnect) {
        match self.link {
            Link::Leaving { next: Some(remote) } => {
                self.link = Link::Idle;
                self.action = Some(Action::Connect { remote, same_port: false });
            }
            Link::Leaving { next: None } => self.link = Link::Over,
            Link::Over => {}
            _ => {
                self.finish(Err(DiscoveryError::Disconnected(why)));
                self.action = None;
                self.link = Link::Over;
            }
        }
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        match self.link {
            Link::Login | Link::Full => &mut self.rx.bytes[self.rx.at..self.rx.need],
            _ => &mut [],
        }
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        assert!(n <= self.recv_buffer().len(), "more was received than there was room for");
        self.rx.at += n;
        while n > 0 && self.rx.at == self.rx.need && matches!(self.link, Link::Login | Link::Full) {
            match self.advance(now) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.finish(Err(error)),
            }
        }
    }

    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        self.refill(now);
        let login = &self.login;
        self.tx.seal(|pdu, from, crc| crc.take(&[&data_of(login.text(), pdu.data)[from..]]));
        self.tx.show(out, |pdu, from, out| {
            let data = data_of(self.login.text(), pdu.data);
            data.is_empty() || out.try_push(&data[from..]).is_ok()
        });
    }

    fn handle_sent(&mut self, _now: Time, n: usize) {
        self.tx.sent(n, drop);
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        let action = self.action.take()?;
        if matches!(action, Action::Connect { .. }) {
            self.link = Link::Connecting;
        }
        Some(action)
    }

    fn poll_deadline(&self) -> Option<Time> {
        let wait = (self.due && self.not_before > Time::ZERO).then_some(self.not_before);
        match self.link {
            Link::Over => None,
            _ if self.end.is_some() => Some(self.give_up_at),
            _ => Some(wait.map_or(self.give_up_at, |wait| wait.min(self.give_up_at))),
        }
    }

    fn handle_deadline(&mut self, now: Time) {
        if now >= self.not_before {
            self.not_before = Time::ZERO;
        }
        if now < self.give_up_at || self.link == Link::Over {
            return;
        }
        match self.link {
            // An orderly close that does not come to its end.
            Link::Leaving { .. } => self.action = Some(Action::Abort),
            _ => self.finish(Err(DiscoveryError::TimedOut)),
        }
        // Once more, should nobody answer the abort.
        self.give_up_at = now + self.config.give_up_after;
    }
}

fn data_of(text: &[u8], data: TxData) -> &[u8] {
    match data {
        TxData::None => &[],
        TxData::Login => text,
        TxData::SendTargets => SEND_TARGETS,
    }
}

impl IscsiDiscovery {
    /// It has ended, and the connection is not needed any more.
    fn finish(&mut self, end: Result<(), DiscoveryError>) {
        self.due = false;
        let graceful = end.is_ok();
        if self.end.is_none() {
            self.end = Some(end);
        }
        match self.link {
            Link::Idle | Link::Over => self.link = Link::Over,
            Link::Leaving { .. } => self.link = Link::Leaving { next: None },
            _ => {
                self.tx.clear();
                self.link = Link::Leaving { next: None };
                self.action = Some(if graceful { Action::Close } else { Action::Abort });
            }
        }
    }

    fn refill(&mut self, now: Time) {
        if !self.due || now < self.not_before || self.tx.free() == 0 {
            return;
        }
        match self.link {
            Link::Login => self.send_login(),
            Link::Full => match self.ask {
                Ask::SendTargets => self.send_text(),
                Ask::Logout => self.send_logout(),
                _ => self.send_command(),
            },
            _ => {}
        }
    }

    fn next_tag(&mut self) -> u32 {
        self.tag = self.tag.wrapping_add(1) % TAG_NONE;
        self.tag
    }

    fn send_login(&mut self) {
        self.due = false;
        let request = LoginRequest {
            cmd_sn: self.window.next(),
            exp_stat_sn: self.exp_stat_sn,
            ..self.login.request(self.config.isid)
        };
        self.tx.push(TxPdu::new(request.build(), TxData::Login, request.data_len));
    }

    fn send_text(&mut self) {
        let Some(cmd_sn) = self.window.take() else { return };
        self.due = false;
        let new = self.ttt == TAG_NONE;
        if new {
            self.next_tag();
            self.data_len = 0;
        }
        let (data, len) = match new {
            true => (TxData::SendTargets, SEND_TARGETS.len() as u32),
            false => (TxData::None, 0),
        };
        let request = TextRequest {
            immediate: false,
            last: true,
            more: false,
            itt: self.tag,
            ttt: self.ttt,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            data_len: len,
        };
        self.tx.push(TxPdu::new(request.build(), data, len));
    }

    fn send_command(&mut self) {
        let Some((cdb, expected)) = self.cdb() else { return };
        let Some(cmd_sn) = self.window.take() else { return };
        self.due = false;
        (self.received, self.data_sn) = (0, 0);
        // REPORT LUNS goes to unit 0, which need not exist for it.
        let lun = if self.ask == Ask::ReportLuns { 0 } else { self.lun() };
        let command = ScsiCommand {
            immediate: false,
            last: true,
            read: true,
            write: false,
            attr: 1,
            lun: lun_bytes(lun),
            itt: self.next_tag(),
            expected,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            cdb: cdb.build(),
            data_len: 0,
        };
        self.tx.push(TxPdu::new(command.build(), TxData::None, 0));
    }

    fn send_logout(&mut self) {
        self.due = false;
        let logout = LogoutRequest {
            immediate: true,
            reason: 0,
            itt: self.next_tag(),
            cid: 0,
            cmd_sn: self.window.next(),
            exp_stat_sn: self.exp_stat_sn,
        };
        self.tx.push(TxPdu::new(logout.build(), TxData::None, 0));
    }

    /// All bytes that were needed are here: asks for more of the PDU, or takes it. Whether to go on.
    fn advance(&mut self, now: Time) -> Result<bool, DiscoveryError> {
        let head = self.rx.head();
        if self.rx.need < head {
            self.rx.need = head;
            return Ok(false);
        }
        let bhs = self.rx.bhs();
        let len = data_len(&bhs);
        let padded = len + padding(len);
        if self.rx.at == head {
            if self.rx.digests.header && self.rx.bytes[BHS_LEN..head] != digest::of(&bhs) {
                return garbage("wrong header digest");
            }
            if ahs_len(&bhs) != 0 || len > SEGMENT_MAX {
                return garbage("data segment longer than was declared");
            }
            if len > 0 {
                self.rx.need = head + padded + if self.rx.digests.data { DIGEST_LEN } else { 0 };
                return Ok(false);
            }
        }
        let data = &self.rx.bytes[head..head + padded];
        let behind = &self.rx.bytes[head + padded..self.rx.need];
        if !behind.is_empty() && behind != digest::of(data) {
            return garbage("wrong data digest");
        }
        (self.rx.at, self.rx.need) = (0, BHS_LEN);
        self.take(now, &bhs, (head, len))?;
        Ok(true)
    }

    /// A PDU with `len` bytes of data that begin at `from`.
    fn take(
        &mut self,
        now: Time,
        bhs: &Bhs,
        (from, len): (usize, usize),
    ) -> Result<(), DiscoveryError> {
        let malformed = |_| DiscoveryError::Garbage { what: "header that is not of the protocol" };
        if opcode_of(bhs) == opcode::TEXT_RESPONSE && self.link == Link::Full {
            let text = TextResponse::parse(bhs).map_err(malformed)?;
            self.status(true, text.sns)?;
            return self.take_text(&text, (from, len));
        }
        let pdu = ResponsePdu::parse(bhs).map_err(malformed)?;
        if let ResponsePdu::Login(login) = pdu {
            return self.take_login(&login, (from, len));
        }
        if self.link != Link::Full {
            return garbage("PDU that cannot come in this phase");
        }
        self.status(pdu.bears_status(), pdu.sns())?;
        match pdu {
            ResponsePdu::DataIn(data) => self.take_data(now, &data, from),
            ResponsePdu::ScsiResponse(response) => self.take_response(now, &response, (from, len)),
            ResponsePdu::NopIn(nop) => self.take_ping(&nop),
            ResponsePdu::Logout(logout) if logout.itt == self.tag && self.ask == Ask::Logout => {
                self.finish(Ok(()));
                Ok(())
            }
            ResponsePdu::Reject(_) => garbage("PDU rejected"),
            // A logout is asked for; or the connection is dropped, which will be seen.
            ResponsePdu::Async(_) => Ok(()),
            _ => garbage("answer to nothing that was asked"),
        }
    }

    fn status(&mut self, bears: bool, sns: crate::pdu::Sns) -> Result<(), DiscoveryError> {
        self.window.update(sns.exp_cmd_sn, sns.max_cmd_sn);
        if bears {
            if sns.stat_sn != self.exp_stat_sn {
                return garbage("wrong StatSN");
            }
            self.exp_stat_sn = sns.stat_sn.wrapping_add(1);
        }
        Ok(())
    }

    fn take_login(
        &mut self,
        login: &LoginResponse,
        (from, len): (usize, usize),
    ) -> Result<(), DiscoveryError> {
        if self.link != Link::Login || self.due || login.itt != 0 {
            return garbage("login response that answers nothing");
        }
        if login.status == 0 {
            self.window.update(login.sns.exp_cmd_sn, login.sns.max_cmd_sn);
            if !std::mem::take(&mut self.expect_first_stat_sn)
                && login.sns.stat_sn != self.exp_stat_sn
            {
                return garbage("wrong StatSN");
            }
            self.exp_stat_sn = login.sns.stat_sn.wrapping_add(1);
        }
        let start = self.rx.text_len;
        let Some(room) = self.rx.text.get_mut(start..start + len) else {
            return garbage("login text longer than 8192 bytes");
        };
        room.copy_from_slice(&self.rx.bytes[from..from + len]);
        if login.more && login.status == 0 {
            self.rx.text_len = start + len;
            self.login.handle_more(login)?;
            self.due = true;
            return Ok(());
        }
        self.rx.text_len = 0;
        match self.login.handle(login, &self.rx.text[..start + len])? {
            LoginStep::Again => self.due = true,
            LoginStep::Done(params) => {
                self.params = params;
                self.link = Link::Full;
                self.rx.digests = params.digests();
                self.tx.set_digests(params.digests());
                self.ask(self.ask);
            }
            LoginStep::Moved { to, .. } => {
                self.redirects += 1;
                if self.redirects > REDIRECTS_MAX {
                    return Err(LoginError::TooManyRedirects.into());
                }
                self.tx.clear();
                self.link = Link::Leaving { next: Some(to) };
                self.action = Some(Action::Abort);
            }
        }
        Ok(())
    }

    fn take_text(
        &mut self,
        text: &TextResponse,
        (from, len): (usize, usize),
    ) -> Result<(), DiscoveryError> {
        if self.ask != Ask::SendTargets || self.due || text.itt != self.tag {
            return garbage("answer to nothing that was asked");
        }
        // What goes on for ever without a byte is no list.
        if len == 0 && !text.last {
            return garbage("piece of a list without text");
        }
        let (what, max) = ("bytes", super::TEXT_BYTES_MAX);
        let end = self.data_len + len;
        let room = self.data.get_mut(self.data_len..end);
        let room = room.ok_or(DiscoveryError::TooMany { what, max })?;
        room.copy_from_slice(&self.rx.bytes[from..from + len]);
        self.data_len = end;
        if text.last {
            return self.text_complete();
        }
        self.ttt = text.ttt;
        self.due = true;
        Ok(())
    }

    /// Whether `itt` is that of the command that was asked.
    fn is_asked(&self, itt: u32) -> bool {
        self.cdb().is_some() && !self.due && self.found.is_none() && itt == self.tag
    }

    fn take_data(&mut self, now: Time, data: &DataIn, from: usize) -> Result<(), DiscoveryError> {
        let (_, expected) = self.cdb().unwrap_or((crate::scsi::Cdb::TestUnitReady, 0));
        let end = self.received + data.data_len as usize;
        let fits = end <= expected as usize && data.offset as usize == self.received;
        if !self.is_asked(data.itt) || !fits || data.data_sn != self.data_sn {
            return garbage("data that was not asked for");
        }
        let bytes = &self.rx.bytes[from..from + data.data_len as usize];
        self.data[self.received..end].copy_from_slice(bytes);
        self.received = end;
        self.data_sn = self.data_sn.wrapping_add(1);
        match data.status {
            Some(status) => self.answered(now, status, None),
            None => Ok(()),
        }
    }

    fn take_response(
        &mut self,
        now: Time,
        response: &ScsiResponse,
        (from, len): (usize, usize),
    ) -> Result<(), DiscoveryError> {
        if !self.is_asked(response.itt) {
            return garbage("answer to nothing that was asked");
        }
        if response.response != 0 {
            return garbage("command that the target could not carry out");
        }
        let sense = match &self.rx.bytes[from..from + len] {
            [high, low, rest @ ..] => {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                rest.get(..len).and_then(Sense::parse)
            }
            _ => None,
        };
        self.answered(now, response.status, sense)
    }

    fn take_ping(&mut self, nop: &NopIn) -> Result<(), DiscoveryError> {
        if nop.ttt == TAG_NONE {
            return Ok(());
        }
        if self.tx.free() < 2 {
            return garbage("flood of pings");
        }
        let pong = NopOut {
            immediate: true,
            lun: nop.lun,
            itt: TAG_NONE,
            ttt: nop.ttt,
            cmd_sn: self.window.next(),
            exp_stat_sn: self.exp_stat_sn,
            data_len: 0,
        };
        self.tx.push(TxPdu::new(pong.build(), TxData::None, 0));
        Ok(())
    }
}
