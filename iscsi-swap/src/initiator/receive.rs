//! What comes in: where its bytes belong, and whether a PDU is one that may come now.
//!
//! A header is checked before a byte of its data is taken, so that no byte counts for a page that it does
//! not belong to, wherever it has landed (`ahead`). The effects of a PDU follow when all of it has arrived.

use netswap_net::Action;
use netswap_net::ahead::Ahead;
use netswap_reserve::{PAGE_SIZE, Span, Time};

use super::ahead::Expected;
use super::merge::{each_slice, locate};
use super::notice::RejectReason;
use super::send::{Burst, R2TS_MAX};
use super::task::{PROBE, TAG_BITS, Task, TaskState};
use super::verdict::Ending;
use super::{IscsiBackend, Link};
use crate::digest::{self, Crc, DIGEST_LEN, Digests};
use crate::login::{LOGIN_SEGMENT_MAX, LoginError};
use crate::pdu::{
    BHS_LEN, Bhs, DataIn, LogoutResponse, NopIn, PduError, R2t, ResponsePdu, ScsiResponse,
    TAG_NONE, ahs_len, opcode, padding,
};

/// Bytes of set-up data that are looked at.
pub(super) const PROBE_LEN: usize = 256;

/// How a target broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error(transparent)]
    Header(#[from] PduError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("additional header segment in a response")]
    Ahs,
    #[error("data segment is longer than was declared")]
    DataSegmentLength,
    #[error("StatSN is not the next one")]
    StatSn,
    #[error("no such task")]
    Tag,
    #[error("DataSN is not the next one")]
    DataSn,
    #[error("buffer offset is not the next one")]
    Offset,
    #[error("more data than was asked for")]
    TooMuchData,
    #[error("data for a command that reads none")]
    Direction,
    #[error("R2TSN is not the next one")]
    R2tSn,
    #[error("R2T that asks for too much, or more R2Ts than were agreed")]
    R2t,
    #[error("command ended with data missing and no residual")]
    MissingData,
    #[error("PDU that cannot come in this phase")]
    Phase,
    #[error("more pings than can be answered")]
    Pings,
    #[error("sense data longer than its segment")]
    Sense,
    #[error("PDU rejected by the target: {0}")]
    Rejected(RejectReason),
    #[error("header digest is wrong")]
    HeaderDigest,
    #[error("data digest is wrong")]
    DataDigest,
    #[error("target found a data digest wrong")]
    DigestRejected,
}

impl Violation {
    /// Whether bytes were damaged on their way, which is not the fault of a side or a command.
    pub(super) fn is_damage(self) -> bool {
        matches!(self, Violation::HeaderDigest | Violation::DataDigest | Violation::DigestRejected)
    }

    /// For `StoreError::Garbage`.
    pub(super) fn what(self) -> &'static str {
        match self {
            Violation::Header(PduError::Opcode(_)) => "unknown opcode",
            Violation::Header(PduError::Flags { .. }) => "flags that are not allowed",
            Violation::Header(PduError::Field { .. }) => "field with a value that is not allowed",
            Violation::Login(_) => "login that breaks the rules",
            Violation::Ahs => "additional header segment in a response",
            Violation::DataSegmentLength => "data segment longer than was declared",
            Violation::StatSn => "wrong StatSN",
            Violation::Tag => "answer to no task",
            Violation::DataSn => "wrong DataSN",
            Violation::Offset => "wrong buffer offset",
            Violation::TooMuchData => "more data than was asked for",
            Violation::Direction => "data for a command that reads none",
            Violation::R2tSn => "wrong R2TSN",
            Violation::R2t => "R2T beyond what was agreed",
            Violation::MissingData => "data missing without a residual",
            Violation::Phase => "PDU that cannot come in this phase",
            Violation::Pings => "flood of pings",
            Violation::Sense => "sense data longer than its segment",
            Violation::Rejected(reason) => reason.what(),
            Violation::HeaderDigest => "wrong header digest",
            Violation::DataDigest | Violation::DigestRejected => "wrong data digest",
        }
    }
}

/// Where the data of the PDU at hand goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dest {
    /// The small buffer, from a byte on.
    Small(usize),
    /// The pages of a task, from a byte on.
    Pages { task: usize, offset: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Header,
    HeaderDigest,
    Data { dest: Dest, len: usize },
    Padding { len: usize },
    DataDigest,
}

/// The PDU that is being received.
#[derive(Debug)]
pub(super) struct Receiver {
    bhs: Bhs,
    pub(super) pdu: Option<ResponsePdu>,
    pub(super) part: Part,
    /// Bytes of `part` that have arrived.
    pub(super) at: usize,
    /// What the transport was shown, if it was more than a buffer. `None` only while that is read.
    pub(super) ahead: Option<Box<Ahead>>,
    pub(super) expected: Expected,
    /// Bytes that the transport was shown last.
    pub(super) shown: usize,
    pad: [u8; 4],
    /// Which digests there are.
    pub(super) digests: Digests,
    /// The digest that has arrived.
    digest: [u8; DIGEST_LEN],
    /// That of the data so far.
    crc: Crc,
    /// Login text (which may span PDUs), sense, set-up data.
    small: Box<[u8; LOGIN_SEGMENT_MAX]>,
    /// Bytes of login text that earlier PDUs brought.
    text_len: usize,
}

impl Receiver {
    pub(super) fn new(tasks: usize) -> Receiver {
        Receiver {
            bhs: [0; BHS_LEN],
            pdu: None,
            part: Part::Header,
            at: 0,
            ahead: Some(Box::new(Ahead::new())),
            expected: Expected::new(tasks),
            shown: 0,
            pad: [0; 4],
            digests: Digests::default(),
            digest: [0; DIGEST_LEN],
            crc: Crc::new(),
            small: Box::new([0; LOGIN_SEGMENT_MAX]),
            text_len: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.pdu = None;
        self.part = Part::Header;
        self.at = 0;
        self.text_len = 0;
        self.digests = Digests::default();
        self.expected.reset();
        if let Some(ahead) = &mut self.ahead {
            ahead.reset();
        }
    }

    /// PDUs from now on have these digests.
    pub(super) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// `n` more bytes have arrived in the buffer: they go into the digest of the data.
    fn digest_arrived(&mut self, tasks: &[Task], n: usize) {
        if !self.digests.data {
            return;
        }
        let at = self.at;
        match self.part {
            Part::Data { dest: Dest::Small(start), .. } => {
                self.crc.update(&self.small[start + at..start + at + n]);
            }
            Part::Data { dest: Dest::Pages { task, offset }, .. } => {
                let from = offset + at;
                each_slice(tasks, task, from, from + n, |bytes| {
                    self.crc.update(bytes);
                    true
                });
            }
            Part::Padding { .. } => self.crc.update(&self.pad[at..at + n]),
            Part::Header | Part::HeaderDigest | Part::DataDigest => {}
        }
    }

    /// The tag that the PDU at hand names a command by.
    pub(super) fn tag(&self) -> Option<u32> {
        match self.pdu? {
            ResponsePdu::ScsiResponse(p) => Some(p.itt),
            ResponsePdu::DataIn(p) => Some(p.itt),
            ResponsePdu::R2t(p) => Some(p.itt),
            // The header that was rejected.
            ResponsePdu::Reject(p) => match self.data(p.data_len).first_chunk::<BHS_LEN>() {
                Some(bhs) if matches!(bhs[0] & 0x3f, opcode::SCSI_COMMAND | opcode::DATA_OUT) => {
                    Some(crate::pdu::itt_of(bhs))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Where the next bytes belong, as far as these are in one piece.
    pub(super) fn buffer<'a>(&'a mut self, tasks: &'a mut [Task]) -> &'a mut [u8] {
        let at = self.at;
        let Receiver { shown, bhs, small, pad, digest, .. } = self;
        let buffer = match self.part {
            Part::Header => &mut bhs[at..],
            Part::Data { dest: Dest::Small(start), len } => &mut small[start + at..start + len],
            Part::Data { dest: Dest::Pages { task, offset }, len } => {
                let (row, from) = locate(tasks, task, offset + at);
                let in_page = from % PAGE_SIZE;
                let n = (PAGE_SIZE - in_page).min(len - at);
                let page = tasks[row].pages[from / PAGE_SIZE].bytes_mut();
                &mut page[in_page..in_page + n]
            }
            Part::Padding { len } => &mut pad[at..len],
            Part::HeaderDigest | Part::DataDigest => &mut digest[at..],
        };
        *shown = buffer.len();
        buffer
    }

    /// The first bytes of the small buffer.
    pub(super) fn small_data(&self, len: usize) -> &[u8] {
        &self.small[..len]
    }

    pub(super) fn data(&self, len: u32) -> &[u8] {
        &self.small[..(len as usize).min(LOGIN_SEGMENT_MAX)]
    }
}

impl IscsiBackend {
    /// `n` bytes have arrived in the buffer.
    pub(super) fn receive(&mut self, now: Time, n: usize) -> Result<(), Violation> {
        self.rx.digest_arrived(&self.tasks, n);
        self.rx.at += n;
        match self.rx.part {
            Part::Header if self.rx.at == BHS_LEN => match self.rx.digests.header {
                true => self.next_part(Part::HeaderDigest),
                false => self.receive_header(now),
            },
            Part::HeaderDigest if self.rx.at == DIGEST_LEN => {
                if self.rx.digest != digest::of(&self.rx.bhs) {
                    // Nothing in it names a command.
                    self.rx.pdu = None;
                    return Err(Violation::HeaderDigest);
                }
                self.receive_header(now)
            }
            Part::Data { len, .. } if self.rx.at == len => match padding(len) {
                0 => self.data_arrived(now),
                len => self.next_part(Part::Padding { len }),
            },
            Part::Padding { len } if self.rx.at == len => self.data_arrived(now),
            Part::DataDigest if self.rx.at == DIGEST_LEN => {
                if self.rx.digest != self.rx.crc.finish() {
                    return Err(Violation::DataDigest);
                }
                self.finish_pdu(now)
            }
            _ => Ok(()),
        }
    }

    fn next_part(&mut self, part: Part) -> Result<(), Violation> {
        self.rx.part = part;
        self.rx.at = 0;
        Ok(())
    }

    /// Data and padding are here.
    fn data_arrived(&mut self, now: Time) -> Result<(), Violation> {
        match self.rx.digests.data {
            true => self.next_part(Part::DataDigest),
            false => self.finish_pdu(now),
        }
    }

    fn receive_header(&mut self, now: Time) -> Result<(), Violation> {
        self.rx.at = 0;
        self.rx.pdu = None;
        let pdu = ResponsePdu::parse(&self.rx.bhs)?;
        if ahs_len(&self.rx.bhs) != 0 {
            return Err(Violation::Ahs);
        }
        self.rx.pdu = Some(pdu);
        let len = crate::pdu::data_len(&self.rx.bhs);
        let dest = self.check(&pdu, len)?;
        if len == 0 {
            return self.finish_pdu(now);
        }
        if self.rx.digests.data {
            self.rx.crc = Crc::new();
        }
        self.rx.part = Part::Data { dest, len };
        Ok(())
    }

    /// Whether this PDU may come now, and where its data goes.
    fn check(&mut self, pdu: &ResponsePdu, len: usize) -> Result<Dest, Violation> {
        if let ResponsePdu::Login(login) = pdu {
            return self.check_login(login, len);
        }
        if self.link == Link::Login {
            return Err(Violation::Phase);
        }
        if pdu.bears_status() && pdu.sns().stat_sn != self.exp_stat_sn {
            return Err(Violation::StatSn);
        }
        if len > self.params.recv_own as usize {
            return Err(Violation::DataSegmentLength);
        }
        match pdu {
            ResponsePdu::DataIn(data) => return self.check_data_in(data),
            ResponsePdu::R2t(r2t) => self.check_r2t(r2t)?,
            ResponsePdu::ScsiResponse(response) => {
                self.sent_task(response.itt)?;
            }
            ResponsePdu::NopIn(nop) if nop.itt != TAG_NONE && Some(nop.itt) != self.ping_tag => {
                return Err(Violation::Tag);
            }
            ResponsePdu::Logout(logout) if Some(logout.itt) != self.logout_tag => {
                return Err(Violation::Tag);
            }
            ResponsePdu::TaskManagement(answer) if !self.is_tmf(answer.itt) => {
                return Err(Violation::Tag);
            }
            _ => {}
        }
        if len > LOGIN_SEGMENT_MAX { Err(Violation::DataSegmentLength) } else { Ok(Dest::Small(0)) }
    }

    fn check_login(
        &mut self,
        login: &crate::pdu::LoginResponse,
        len: usize,
    ) -> Result<Dest, Violation> {
        if self.link != Link::Login || self.login_due {
            return Err(Violation::Phase);
        }
        if login.itt != self.login_tag {
            return Err(Violation::Tag);
        }
        let start = self.rx.text_len;
        if len > LOGIN_SEGMENT_MAX - start {
            return Err(Violation::DataSegmentLength);
        }
        Ok(Dest::Small(start))
    }

    /// The task that was sent with this tag and has not ended.
    pub(super) fn sent_task(&self, tag: u32) -> Result<usize, Violation> {
        let index = (tag & ((1 << TAG_BITS) - 1)) as usize;
        let task = self.tasks.get(index).ok_or(Violation::Tag)?;
        if task.tag != tag || task.state != TaskState::Sent {
            return Err(Violation::Tag);
        }
        Ok(index)
    }

    fn check_data_in(&mut self, data: &DataIn) -> Result<Dest, Violation> {
        let index = self.sent_task(data.itt)?;
        let task = &self.tasks[index];
        if !task.reads() {
            return Err(Violation::Direction);
        }
        if data.data_sn != task.data_sn {
            return Err(Violation::DataSn);
        }
        if data.offset != task.received {
            return Err(Violation::Offset);
        }
        if data.data_len > task.len - task.received {
            return Err(Violation::TooMuchData);
        }
        let offset = data.offset as usize;
        Ok(match index {
            PROBE => Dest::Small(offset),
            task => Dest::Pages { task, offset },
        })
    }

    fn check_r2t(&mut self, r2t: &R2t) -> Result<(), Violation> {
        let index = self.sent_task(r2t.itt)?;
        let task = &self.tasks[index];
        if !task.writes() {
            return Err(Violation::Direction);
        }
        if r2t.r2t_sn != task.r2t_sn {
            return Err(Violation::R2tSn);
        }
        if r2t.offset != task.asked_to {
            return Err(Violation::Offset);
        }
        let open = self.bursts.iter().filter(|b| usize::from(b.task) == index);
        let open = open.filter(|b| b.ttt != TAG_NONE).count() as u32;
        let most = self.params.max_outstanding_r2t().min(R2TS_MAX);
        if open >= most || r2t.len > self.params.max_burst() || r2t.len > task.len - task.asked_to {
            return Err(Violation::R2t);
        }
        Ok(())
    }

    /// All of the PDU has arrived: its effects.
    fn finish_pdu(&mut self, now: Time) -> Result<(), Violation> {
        self.rx.part = Part::Header;
        self.rx.at = 0;
        self.rx.expected.pdus += 1;
        let Some(pdu) = self.rx.pdu else { return Ok(()) };
        if let ResponsePdu::Login(login) = pdu {
            return self.finish_login_pdu(now, &login);
        }
        let sns = pdu.sns();
        self.window.update(sns.exp_cmd_sn, sns.max_cmd_sn);
        if pdu.bears_status() {
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
            if let Some(after) = self.config.ack_after {
                self.arm(now + after);
            }
        }
        match pdu {
            ResponsePdu::DataIn(data) => self.take_data_in(now, &data),
            ResponsePdu::ScsiResponse(response) => self.take_response(now, &response),
            ResponsePdu::R2t(r2t) => self.take_r2t(now, &r2t),
            ResponsePdu::NopIn(nop) => self.take_nop(&nop),
            ResponsePdu::Logout(logout) => self.take_logout(now, &logout),
            ResponsePdu::Async(message) => self.take_async(now, &message),
            ResponsePdu::Reject(reject) => self.take_reject(now, &reject),
            ResponsePdu::TaskManagement(answer) => {
                self.take_task_management(now, answer.response);
                Ok(())
            }
            ResponsePdu::Login(_) => Err(Violation::Phase),
        }
    }

    fn finish_login_pdu(
        &mut self,
        now: Time,
        login: &crate::pdu::LoginResponse,
    ) -> Result<(), Violation> {
        if login.status == 0 {
            let sns = login.sns;
            if self.expect_first_stat_sn {
                self.expect_first_stat_sn = false;
            } else if sns.stat_sn != self.exp_stat_sn {
                return Err(Violation::StatSn);
            }
            self.exp_stat_sn = sns.stat_sn.wrapping_add(1);
            self.window.update(sns.exp_cmd_sn, sns.max_cmd_sn);
        }
        let len = self.rx.text_len + login.data_len as usize;
        if login.more && login.status == 0 {
            self.rx.text_len = len;
            self.login.handle_more(login)?;
            self.login_due = true;
            return Ok(());
        }
        self.rx.text_len = 0;
        let step = self.login.handle(login, &self.rx.small[..len]);
        self.take_login_step(now, login, step)
    }

    fn take_data_in(&mut self, now: Time, data: &DataIn) -> Result<(), Violation> {
        let index = self.sent_task(data.itt)?;
        let task = &mut self.tasks[index];
        if index != PROBE {
            self.rx.expected.learn_data_in(data, task.len - task.received);
        }
        task.received += data.data_len;
        task.data_sn = task.data_sn.wrapping_add(1);
        // A command that moves is not overdue.
        task.due = now + self.config.request_timeout;
        let Some(status) = data.status else { return Ok(()) };
        let ending = Ending {
            response: 0,
            status,
            overflow: data.overflow,
            underflow: data.underflow,
            residual: data.residual,
            sense: None,
        };
        self.conclude(now, index, ending)
    }

    fn take_response(&mut self, now: Time, response: &ScsiResponse) -> Result<(), Violation> {
        let index = self.sent_task(response.itt)?;
        let task = &self.tasks[index];
        if index != PROBE && task.reads() && task.received == task.len {
            self.rx.expected.learn_response();
        }
        let sense = self.sense(response.data_len)?;
        let ending = Ending {
            response: response.response,
            status: response.status,
            overflow: response.overflow,
            underflow: response.underflow,
            residual: response.residual,
            sense,
        };
        self.conclude(now, index, ending)
    }

    fn take_r2t(&mut self, now: Time, r2t: &R2t) -> Result<(), Violation> {
        let index = self.sent_task(r2t.itt)?;
        let task = &mut self.tasks[index];
        task.r2t_sn = task.r2t_sn.wrapping_add(1);
        task.asked_to += r2t.len;
        task.bursts += 1;
        task.due = now + self.config.request_timeout;
        self.stats.r2ts += 1;
        let burst = Burst {
            task: index as u16,
            ttt: r2t.ttt,
            offset: r2t.offset,
            len: r2t.len,
            data_sn: 0,
        };
        self.bursts.push_back(burst);
        Ok(())
    }

    fn take_nop(&mut self, nop: &NopIn) -> Result<(), Violation> {
        if nop.itt != TAG_NONE {
            self.ping_tag = None;
        }
        if nop.ttt != TAG_NONE {
            self.pongs.try_push((nop.lun, nop.ttt)).map_err(|_| Violation::Pings)?;
        }
        Ok(())
    }

    fn take_logout(&mut self, now: Time, logout: &LogoutResponse) -> Result<(), Violation> {
        self.logout_tag = None;
        self.wait_before_connect(now, logout.time2wait);
        self.leave(now, Action::Close);
        Ok(())
    }

    pub(super) fn wait_before_connect(&mut self, now: Time, seconds: u16) {
        // A wait that a target asks for is bounded as DefaultTime2Wait is (13.15).
        self.not_before = now + Span::from_secs(u64::from(seconds.min(3600)));
    }
}
