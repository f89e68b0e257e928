//! What comes in on a connection of the target.
//!
//! A breach of the protocol resets the connection: at error recovery level 0 that is what is left of
//! every other answer (RFC 7143 section 7.1.4.4).

mod place;

use std::ops::Range;

use netswap_reserve::Time;
use netswap_swap::Disk;

use super::conn::{Conn, Ctl, Phase, SlotState, TaskSlot};
use super::faults::Fault;
use super::{CTL_MAX, IscsiTarget};
use crate::digest::{Crc, DIGEST_LEN, Digests};
use crate::login::LOGIN_SEGMENT_MAX;
use crate::pdu::{
    BHS_LEN, Bhs, DataOut, NopOut, PduError, RequestPdu, ScsiCommand, TAG_NONE, ahs_len, data_len,
    opcode, opcode_of, padding, reject,
};
use crate::window::before;

/// Data that is thrown away goes here, a piece at a time.
const SINK: usize = 4096;

/// How an initiator broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    #[error(transparent)]
    Header(#[from] PduError),
    #[error("data segment is longer than was declared")]
    DataSegmentLength,
    #[error("PDU that cannot come in this phase")]
    Phase,
    #[error("CmdSN leaves a gap")]
    CmdSn,
    #[error("task tag is in use")]
    TagInUse,
    #[error("immediate data that was not agreed")]
    Immediate,
    #[error("unsolicited data that was not agreed")]
    Unsolicited,
    #[error("target transfer tag of no open R2T")]
    TransferTag,
    #[error("buffer offset is not the next one")]
    Offset,
    #[error("more data than was asked for")]
    TooMuchData,
    #[error("sequence of data ends early")]
    EndsEarly,
    #[error("sequence of data does not end")]
    EndsLate,
    #[error("text that cannot be read or answered")]
    Text,
    #[error("header digest is wrong")]
    HeaderDigest,
    #[error("data digest is wrong")]
    DataDigest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dest {
    /// The text buffer of the login.
    Text,
    /// The buffer of a command, from a byte on.
    Slot {
        slot: usize,
        offset: usize,
    },
    Sink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Header,
    /// The header is here, but there is no room for its command yet.
    Held,
    Ahs {
        len: usize,
    },
    Data {
        dest: Dest,
        len: usize,
    },
    Padding {
        len: usize,
    },
    HeaderDigest,
    DataDigest,
}

/// What the PDU at hand does when all of it has arrived.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    None,
    Login,
    /// The command in a slot has all the data that came with it.
    Command {
        slot: usize,
    },
    DataOut {
        slot: usize,
    },
    Nop {
        slot: usize,
    },
    Logout {
        itt: u32,
        reason: u8,
    },
    TaskManagement,
    Reject {
        reason: u8,
    },
    Text {
        /// Not the continuation of one before.
        fresh: bool,
        itt: u32,
    },
}

#[derive(Debug)]
pub(super) struct TargetRx {
    pub(super) bhs: Bhs,
    pdu: Option<RequestPdu>,
    part: Part,
    at: usize,
    effect: Effect,
    /// Where the data goes once the additional header segments are through.
    dest: Dest,
    sink: Box<[u8; SINK]>,
    /// Which digests there are.
    digests: Digests,
    /// The digest that has arrived.
    digest: [u8; DIGEST_LEN],
    /// That of header or data so far.
    crc: Crc,
    /// Bytes behind a header that have come with it, and which of them have their place yet to find.
    ahead: Vec<u8>,
    staged: Range<usize>,
}

impl TargetRx {
    pub(super) fn new() -> TargetRx {
        TargetRx {
            bhs: [0; BHS_LEN],
            pdu: None,
            part: Part::Header,
            at: 0,
            effect: Effect::None,
            dest: Dest::Sink,
            sink: Box::new([0; SINK]),
            digests: Digests::default(),
            digest: [0; DIGEST_LEN],
            crc: Crc::new(),
            ahead: vec![0; place::AHEAD],
            staged: 0..0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.pdu = None;
        self.part = Part::Header;
        self.at = 0;
        self.effect = Effect::None;
        self.digests = Digests::default();
        self.staged = 0..0;
    }

    /// PDUs from now on have these digests.
    pub(super) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Goes on to the next part of the PDU.
    fn next(&mut self, part: Part) -> Result<(), Breach> {
        self.part = part;
        self.at = 0;
        Ok(())
    }
}

impl<D: Disk> IscsiTarget<D> {
    /// Looks again at a header that was left waiting.
    pub(super) fn resume(&mut self, now: Time, index: usize) {
        if self.conns[index].rx.part != Part::Held {
            return;
        }
        if let Err(breach) = self.header(now, index) {
            self.breach(index, breach);
        }
        self.place_staged(now, index);
    }

    fn breach(&mut self, index: usize, breach: Breach) {
        tracing::warn!(connection = index, %breach, "resetting the connection");
        match breach {
            Breach::HeaderDigest | Breach::DataDigest => self.digest_errors += 1,
            _ => self.protocol_errors += 1,
        }
        self.conns[index].abort();
    }

    fn advance(&mut self, now: Time, index: usize) -> Result<(), Breach> {
        let rx = &mut self.conns[index].rx;
        match rx.part {
            Part::Header if rx.at == BHS_LEN && rx.digests.header => match ahs_len(&rx.bhs) {
                0 => rx.next(Part::HeaderDigest),
                len => rx.next(Part::Ahs { len }),
            },
            Part::Header if rx.at == BHS_LEN => self.header(now, index),
            Part::Ahs { len } if rx.at == len && rx.digests.header => rx.next(Part::HeaderDigest),
            Part::Ahs { len } if rx.at == len => self.begin_data(now, index),
            Part::HeaderDigest if rx.at == DIGEST_LEN => {
                if rx.digest != rx.crc.finish() {
                    return Err(Breach::HeaderDigest);
                }
                self.header(now, index)
            }
            Part::Data { len, dest } if rx.at == len => {
                if dest == Dest::Text {
                    self.conns[index].login.received(len);
                }
                match padding(len) {
                    0 => self.data_arrived_whole(now, index),
                    len => self.conns[index].rx.next(Part::Padding { len }),
                }
            }
            Part::Padding { len } if rx.at == len => self.data_arrived_whole(now, index),
            Part::DataDigest if rx.at == DIGEST_LEN => {
                if rx.digest != rx.crc.finish() {
                    return Err(Breach::DataDigest);
                }
                self.finish(now, index)
            }
            _ => Ok(()),
        }
    }

    /// Data and padding are here.
    fn data_arrived_whole(&mut self, now: Time, index: usize) -> Result<(), Breach> {
        let rx = &mut self.conns[index].rx;
        match rx.digests.data {
            true => rx.next(Part::DataDigest),
            false => self.finish(now, index),
        }
    }

    fn header(&mut self, now: Time, index: usize) -> Result<(), Breach> {
        let bhs = self.conns[index].rx.bhs;
        let pdu = RequestPdu::parse(&bhs)?;
        let len = data_len(&bhs);
        let Some((effect, dest)) = self.check(index, &pdu, len)? else {
            self.conns[index].rx.part = Part::Held;
            return Ok(());
        };
        let rx = &mut self.conns[index].rx;
        rx.pdu = Some(pdu);
        rx.effect = effect;
        rx.dest = dest;
        rx.at = 0;
        match ahs_len(&bhs) {
            0 => self.begin_data(now, index),
            // With a digest they have come before the header could be looked at.
            _ if rx.digests.header => self.begin_data(now, index),
            len => rx.next(Part::Ahs { len }),
        }
    }

    fn begin_data(&mut self, now: Time, index: usize) -> Result<(), Breach> {
        let rx = &mut self.conns[index].rx;
        rx.at = 0;
        match data_len(&rx.bhs) {
            0 => self.finish(now, index),
            len => {
                rx.crc = Crc::new();
                rx.part = Part::Data { dest: rx.dest, len };
                Ok(())
            }
        }
    }

    /// What the PDU does and where its data goes; `None` while there is no room for it.
    fn check(
        &mut self,
        index: usize,
        pdu: &RequestPdu,
        len: usize,
    ) -> Result<Option<(Effect, Dest)>, Breach> {
        let conn = &mut self.conns[index];
        if let RequestPdu::Login(_) = pdu {
            if conn.phase != Phase::Login {
                return Err(Breach::Phase);
            }
            if len > LOGIN_SEGMENT_MAX || conn.login.room(len).is_none() {
                return Err(Breach::DataSegmentLength);
            }
            return Ok(Some((Effect::Login, Dest::Text)));
        }
        if conn.phase != Phase::Full {
            return Err(Breach::Phase);
        }
        if len > conn.params.recv_own as usize {
            return Err(Breach::DataSegmentLength);
        }
        // Two places stay for pings and messages that the owner of the target sends, and one for each
        // function that waits.
        if conn.ctl.len() + conn.waiting.len() + 2 >= CTL_MAX {
            return Ok(None);
        }
        let is_text = opcode_of(&conn.rx.bhs) == opcode::TEXT_REQUEST;
        // 4.3: a discovery session has no tasks.
        let allowed = matches!(pdu, RequestPdu::NopOut(_) | RequestPdu::Logout(_)) || is_text;
        if conn.login.is_discovery() && !allowed {
            return Err(Breach::Phase);
        }
        if is_text {
            return super::text::check(conn, len);
        }
        match pdu {
            RequestPdu::ScsiCommand(command) => self.check_command(index, command),
            RequestPdu::DataOut(data) => check_data_out(conn, data).map(Some),
            RequestPdu::NopOut(nop) => self.check_nop(index, nop),
            RequestPdu::TaskManagement(request) => {
                let effect = Effect::TaskManagement;
                Ok(Some(numbered(conn, request.immediate, request.cmd_sn, effect)?))
            }
            RequestPdu::Logout(request) => {
                let effect = Effect::Logout { itt: request.itt, reason: request.reason };
                Ok(Some(numbered(conn, request.immediate, request.cmd_sn, effect)?))
            }
            RequestPdu::Unsupported { immediate, cmd_sn, .. } => {
                let effect = Effect::Reject { reason: reject::NOT_SUPPORTED };
                Ok(Some(numbered(conn, *immediate, *cmd_sn, effect)?))
            }
            RequestPdu::Login(_) => Err(Breach::Phase),
        }
    }

    fn check_command(
        &mut self,
        index: usize,
        command: &ScsiCommand,
    ) -> Result<Option<(Effect, Dest)>, Breach> {
        let conn = &mut self.conns[index];
        if !command.immediate && !in_order(conn, command.cmd_sn)? {
            return Ok(Some((Effect::None, Dest::Sink)));
        }
        let params = conn.params;
        if command.data_len > 0 {
            let agreed = command.write && params.immediate_data();
            let most = params.first_burst().min(command.expected);
            if !agreed || command.data_len > most {
                return Err(Breach::Immediate);
            }
        }
        if !command.last && params.initial_r2t() {
            return Err(Breach::Unsolicited);
        }
        let Some(slot) = free_slot(conn, command.itt)? else { return Ok(None) };
        if command.immediate && too_many_immediate(conn) {
            let effect = Effect::Reject { reason: reject::TOO_MANY_IMMEDIATE };
            return Ok(Some((effect, Dest::Sink)));
        }
        if !command.immediate {
            conn.exp_cmd_sn = conn.exp_cmd_sn.wrapping_add(1);
        }
        self.begin_command(index, slot, command);
        let task = &mut self.conns[index].slots[slot];
        if task.drawn.take(Fault::Reject) {
            self.counts.count(Fault::Reject);
            task.reset();
            let effect = Effect::Reject { reason: reject::PROTOCOL_ERROR };
            return Ok(Some((effect, Dest::Sink)));
        }
        // What is kept fits the buffer: a longer command was refused.
        let dest = if task.keep { Dest::Slot { slot, offset: 0 } } else { Dest::Sink };
        Ok(Some((Effect::Command { slot }, dest)))
    }

    fn check_nop(&mut self, index: usize, nop: &NopOut) -> Result<Option<(Effect, Dest)>, Breach> {
        let fits = nop.data_len <= self.config.transfer_max;
        let conn = &mut self.conns[index];
        if nop.itt == TAG_NONE {
            conn.pongs += u64::from(nop.ttt != TAG_NONE);
            return Ok(Some((Effect::None, Dest::Sink)));
        }
        if !nop.immediate && !in_order(conn, nop.cmd_sn)? {
            return Ok(Some((Effect::None, Dest::Sink)));
        }
        let Some(slot) = free_slot(conn, nop.itt)? else { return Ok(None) };
        if !fits || (nop.immediate && too_many_immediate(conn)) {
            let effect = Effect::Reject { reason: reject::TOO_MANY_IMMEDIATE };
            return Ok(Some((effect, Dest::Sink)));
        }
        if !nop.immediate {
            conn.exp_cmd_sn = conn.exp_cmd_sn.wrapping_add(1);
        }
        let task = &mut conn.slots[slot];
        task.reset();
        task.state = SlotState::Collecting;
        task.nop = true;
        task.immediate = nop.immediate;
        task.itt = nop.itt;
        task.lun_bytes = nop.lun;
        // Section 11.19: the ping data comes back, as far as the initiator takes it.
        task.outcome.moved = nop.data_len.min(conn.params.recv_peer);
        Ok(Some((Effect::Nop { slot }, Dest::Slot { slot, offset: 0 })))
    }

    fn finish(&mut self, now: Time, index: usize) -> Result<(), Breach> {
        let conn = &mut self.conns[index];
        conn.rx.part = Part::Header;
        conn.rx.at = 0;
        let (effect, pdu) = (conn.rx.effect, conn.rx.pdu);
        match (effect, pdu) {
            (Effect::Login, Some(RequestPdu::Login(request))) => self.take_login(index, &request),
            (Effect::Command { slot }, Some(RequestPdu::ScsiCommand(command))) => {
                let task = &mut self.conns[index].slots[slot];
                task.asked_to = command.data_len;
                if !command.last {
                    task.unsolicited = Some((command.data_len, 0));
                }
                self.data_arrived(now, index, slot);
            }
            (Effect::DataOut { slot }, Some(RequestPdu::DataOut(data))) => {
                take_data_out(&mut self.conns[index], slot, &data)?;
                self.data_arrived(now, index, slot);
            }
            (Effect::Nop { slot }, _) => {
                conn.slots[slot].state = SlotState::Ready;
                conn.ready.push_back(slot as u16);
            }
            (Effect::Logout { itt, reason }, _) => {
                let response = if reason <= 1 { 0 } else { 2 };
                conn.ctl.push_back(Ctl::Logout { itt, response });
            }
            (Effect::TaskManagement, Some(RequestPdu::TaskManagement(request))) => {
                self.manage(now, index, &request);
            }
            (Effect::Text { fresh, itt }, _) => self.take_text(index, fresh, itt)?,
            (Effect::Reject { reason }, _) => {
                let bhs = conn.rx.bhs;
                conn.ctl.push_back(Ctl::Reject { reason, bhs });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a numbered command is the next one. One outside the window is ignored, one that leaves a
/// gap cannot come on the only connection of a session (section 4.2.2.1).
fn in_order(conn: &Conn, cmd_sn: u32) -> Result<bool, Breach> {
    if before(cmd_sn, conn.exp_cmd_sn) || before(conn.max_cmd_sn, cmd_sn) {
        return Ok(false);
    }
    if cmd_sn == conn.exp_cmd_sn { Ok(true) } else { Err(Breach::CmdSn) }
}

pub(super) fn numbered(
    conn: &mut Conn,
    immediate: bool,
    cmd_sn: u32,
    effect: Effect,
) -> Result<(Effect, Dest), Breach> {
    if !immediate {
        if !in_order(conn, cmd_sn)? {
            return Ok((Effect::None, Dest::Sink));
        }
        conn.exp_cmd_sn = conn.exp_cmd_sn.wrapping_add(1);
    }
    Ok((effect, Dest::Sink))
}

fn too_many_immediate(conn: &Conn) -> bool {
    let immediate = conn.slots.iter().filter(|s| s.immediate && s.is_unanswered()).count();
    immediate + 1 >= super::SPARE_SLOTS
}

/// A free slot for a command with this tag.
fn free_slot(conn: &Conn, itt: u32) -> Result<Option<usize>, Breach> {
    if conn.slots.iter().any(|s| s.is_unanswered() && s.itt == itt) {
        return Err(Breach::TagInUse);
    }
    Ok(conn.slots.iter().position(|s| s.state == SlotState::Free))
}

/// Where the data of a Data-Out goes, if it is one that may come now.
fn check_data_out(conn: &mut Conn, data: &DataOut) -> Result<(Effect, Dest), Breach> {
    let first_burst = conn.params.first_burst();
    let collects =
        |s: &TaskSlot| matches!(s.state, SlotState::Collecting | SlotState::Aborting) && !s.nop;
    let slot = conn.slots.iter().position(|s| collects(s) && s.itt == data.itt);
    // The command was ignored or has ended: its data is not wanted any more.
    let Some(slot) = slot else { return Ok((Effect::None, Dest::Sink)) };
    let task = &mut conn.slots[slot];
    let (at, end, data_sn) = match (data.ttt, task.unsolicited) {
        (TAG_NONE, Some((at, data_sn))) => (at, first_burst.min(task.expected), data_sn),
        (TAG_NONE, None) => return Err(Breach::Unsolicited),
        (ttt, _) => match task.open.first() {
            // Section 13.19: sequences come in the order in which they were asked for.
            Some(open) if open.ttt == ttt => (open.at, open.end, open.data_sn),
            _ => return Err(Breach::TransferTag),
        },
    };
    if data.data_sn != data_sn && !task.garbled {
        tracing::debug!(itt = data.itt, got = data.data_sn, want = data_sn, "DataSN");
        task.garble();
    }
    // What belongs to a task that has failed only has to come to an end.
    if task.garbled || task.state == SlotState::Aborting {
        return Ok((Effect::DataOut { slot }, Dest::Sink));
    }
    if data.offset != at {
        return Err(Breach::Offset);
    }
    if data.data_len > end - at {
        return Err(Breach::TooMuchData);
    }
    let whole = at + data.data_len == end;
    if data.ttt != TAG_NONE && data.last != whole {
        return Err(if data.last { Breach::EndsEarly } else { Breach::EndsLate });
    }
    let offset = at as usize;
    let dest = if task.keep { Dest::Slot { slot, offset } } else { Dest::Sink };
    Ok((Effect::DataOut { slot }, dest))
}

fn take_data_out(conn: &mut Conn, slot: usize, data: &DataOut) -> Result<(), Breach> {
    let task = &mut conn.slots[slot];
    if data.ttt == TAG_NONE {
        let at = if task.garbled { task.asked_to } else { data.offset + data.data_len };
        task.asked_to = at;
        task.unsolicited = (!data.last).then_some((at, data.data_sn.wrapping_add(1)));
        return Ok(());
    }
    let open = task.open.first_mut().ok_or(Breach::TransferTag)?;
    open.at = open.at.saturating_add(data.data_len);
    open.data_sn = open.data_sn.wrapping_add(1);
    if data.last {
        task.open.remove(0);
    }
    Ok(())
}
