//! What goes out on a connection of the target.

use netswap_net::SendVec;
use netswap_swap::Disk;

use super::conn::{Conn, Ctl, OpenR2t, Phase, SlotState, TaskSlot};
use super::faults::{self, Fault, FaultCounts};
use super::{IscsiTarget, SenseForm};
use crate::login::TargetLogin;
use crate::pdu::{
    AsyncMessage, BHS_LEN, Bhs, DataIn, LogoutResponse, NopIn, R2t, Reject, ScsiResponse, TAG_NONE,
    TaskManagementResponse,
};
use crate::scsi::{Sense, status};
use crate::tx::TxPdu;
use rand_xoshiro::Xoshiro256PlusPlus;

/// The data of a PDU in the ring.
#[derive(Clone, Copy, Debug)]
pub(super) enum TxData {
    None,
    /// A piece of login text.
    Login,
    /// A few bytes: sense, or a rejected header.
    Inline([u8; BHS_LEN]),
    /// The buffer of a slot, from a byte on.
    Slot {
        slot: u16,
        offset: u32,
    },
}

struct Dice<'a> {
    rng: &'a mut Xoshiro256PlusPlus,
    counts: &'a mut FaultCounts,
}

impl<D: Disk> IscsiTarget<D> {
    /// Fills the ring with what may be sent now. Room for two is kept: an answer may go out twice.
    pub(super) fn refill(&mut self, index: usize) {
        self.fill(index);
        let size = self.config.transfer_max as usize;
        let base = index * self.config.slots();
        let run: &[u8] = self.run.bytes_mut();
        let Conn { tx, login, .. } = &mut self.conns[index];
        tx.seal(|pdu, from, crc| {
            let mut out = SendVec::new();
            push_data((run, base, size), login, pdu, from, &mut out);
            crc.take(&out)
        });
    }

    fn fill(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let mut dice = Dice { rng: &mut self.rng, counts: &mut self.counts };
        while conn.tx.free() >= 2 {
            let sent = match conn.phase {
                Phase::Login | Phase::Closing => send_login(conn),
                Phase::Full => {
                    send_login(conn)
                        || super::text::send(conn)
                        || send_ctl(conn)
                        || send_r2t(conn, &mut dice)
                        || send_answer(conn, &mut dice, &self.config)
                }
                Phase::Closed | Phase::Dead => false,
            };
            if !sent {
                return;
            }
        }
    }

    pub(super) fn take_sent(&mut self, index: usize, n: usize) {
        let conn = &mut self.conns[index];
        let slots = &mut conn.slots;
        conn.tx.sent(n, |pdu| {
            let TxData::Slot { slot, .. } = pdu.data else { return };
            let task = &mut slots[usize::from(slot)];
            task.shown -= 1;
            if task.shown == 0 && task.state == SlotState::Sending {
                task.state = SlotState::Free;
            }
        });
    }

    pub(super) fn show<'a>(&'a mut self, index: usize, out: &mut SendVec<'a>) {
        let size = self.config.transfer_max as usize;
        let base = index * self.config.slots();
        let run: &'a [u8] = self.run.bytes_mut();
        let Conn { tx, login, .. } = &self.conns[index];
        tx.show(out, |pdu, from, out| push_data((run, base, size), login, pdu, from, out));
    }
}

/// Appends the data of a PDU from byte `from` on; whether it fitted. The slots of the connection begin
/// at number `base` of `run` and have `size` bytes each.
fn push_data<'a>(
    (run, base, size): (&'a [u8], usize, usize),
    login: &'a TargetLogin,
    pdu: &'a TxPdu<TxData>,
    from: usize,
    out: &mut SendVec<'a>,
) -> bool {
    let bytes: &'a [u8] = match &pdu.data {
        TxData::None => return true,
        TxData::Login => login.chunk(),
        TxData::Inline(bytes) => bytes,
        TxData::Slot { slot, offset } => {
            &run[(base + usize::from(*slot)) * size + *offset as usize..]
        }
    };
    out.try_push(&bytes[from..pdu.data_len as usize]).is_ok()
}

fn send_login(conn: &mut Conn) -> bool {
    let Some(mut reply) = conn.login_reply.take() else { return false };
    reply.sns = conn.status_sns();
    let len = reply.data_len;
    let data = if len > 0 { TxData::Login } else { TxData::None };
    conn.tx.push(TxPdu::new(reply.build(), data, len));
    // Digests begin behind the last response of the login (13.1).
    if conn.phase == Phase::Full {
        conn.tx.set_digests(conn.params.digests());
    }
    true
}

fn send_ctl(conn: &mut Conn) -> bool {
    let Some(ctl) = conn.ctl.pop_front() else { return false };
    let pdu = match ctl {
        Ctl::Reject { reason, bhs } => {
            let sns = conn.status_sns();
            let reject = Reject { reason, sns, data_sn: 0, data_len: BHS_LEN as u32 };
            TxPdu::new(reject.build(), TxData::Inline(bhs), BHS_LEN as u32)
        }
        Ctl::TaskManagement { itt, response, closes } => {
            if closes {
                conn.phase = Phase::Closing;
            }
            let sns = conn.status_sns();
            let answer = TaskManagementResponse { response, itt, sns };
            TxPdu::new(answer.build(), TxData::None, 0)
        }
        Ctl::Logout { itt, response } => {
            let sns = conn.status_sns();
            let answer = LogoutResponse { response, itt, sns, time2wait: 0, time2retain: 0 };
            if response == 0 {
                conn.phase = Phase::Closing;
            }
            TxPdu::new(answer.build(), TxData::None, 0)
        }
        Ctl::Ping => {
            let sns = conn.sns();
            let ttt = next_ttt(conn);
            let nop = NopIn { lun: [0; 8], itt: TAG_NONE, ttt, sns, data_len: 0 };
            TxPdu::new(nop.build(), TxData::None, 0)
        }
        Ctl::Window => {
            let sns = conn.sns();
            let nop = NopIn { lun: [0; 8], itt: TAG_NONE, ttt: TAG_NONE, sns, data_len: 0 };
            TxPdu::new(nop.build(), TxData::None, 0)
        }
        Ctl::UnitEvent { lun, sense } => {
            let sns = conn.status_sns();
            let (inline, data_len) = sense_segment(sense, SenseForm::Fixed);
            let (parameter1, parameter2, parameter3) = (0, 0, 0);
            let message =
                AsyncMessage { lun, sns, event: 0, parameter1, parameter2, parameter3, data_len };
            TxPdu::new(message.build(), TxData::Inline(inline), data_len)
        }
        Ctl::Async { event, parameters: [parameter1, parameter2, parameter3] } => {
            let sns = conn.status_sns();
            if matches!(event, 2 | 3) {
                conn.phase = Phase::Closing;
            }
            let lun = [0; 8];
            let message =
                AsyncMessage { lun, sns, event, parameter1, parameter2, parameter3, data_len: 0 };
            TxPdu::new(message.build(), TxData::None, 0)
        }
    };
    conn.tx.push(pdu);
    true
}

fn next_ttt(conn: &mut Conn) -> u32 {
    let ttt = conn.next_ttt;
    conn.next_ttt = (ttt + 1) % TAG_NONE;
    ttt
}

fn send_r2t(conn: &mut Conn, dice: &mut Dice<'_>) -> bool {
    let Some(slot) = conn.r2ts.pop_front() else { return false };
    let (sns, ttt) = (conn.sns(), next_ttt(conn));
    let max_burst = conn.params.max_burst();
    let task = &mut conn.slots[usize::from(slot)];
    let len = (task.wanted - task.asked_to).min(max_burst).min(task.piece_max);
    // Asked for by an entry before.
    if len == 0 || !task.keep || task.state != SlotState::Collecting {
        return true;
    }
    let offset = task.asked_to;
    let r2t =
        R2t { lun: task.lun_bytes, itt: task.itt, ttt, sns, r2t_sn: task.r2t_sn, offset, len };
    task.asked_to += len;
    task.r2t_sn += 1;
    task.open.push(OpenR2t { ttt, at: offset, end: offset + len, data_sn: 0 });
    let pdu = TxPdu::new(r2t.build(), TxData::None, 0);
    let pdu = spoil(task, pdu, dice);
    conn.tx.push(pdu);
    true
}

/// The next PDU of the answer whose turn it is.
fn send_answer(conn: &mut Conn, dice: &mut Dice<'_>, config: &super::TargetConfig) -> bool {
    let Some(slot) = conn.ready.front().copied() else { return false };
    let index = usize::from(slot);
    let task = &conn.slots[index];
    let moved = if task.read || task.nop { task.outcome.moved } else { 0 };
    let last;
    let pdu = if task.nop {
        last = true;
        finish(conn, index);
        nop_answer(conn, slot)
    } else if task.sent < moved {
        let (pdu, whole) = data_in(conn, slot, moved, config.status_with_data);
        last = whole;
        pdu
    } else {
        last = true;
        finish(conn, index);
        response(conn, slot, config.sense)
    };
    let task = &mut conn.slots[index];
    let pdu = spoil(task, pdu, dice);
    if task.drawn.take(Fault::CutInHeader) {
        dice.counts.count(Fault::CutInHeader);
        let mut cut = TxPdu::new(pdu.bhs, TxData::None, 0);
        cut.bhs_len = BHS_LEN as u8 / 2;
        conn.tx.push(cut);
        conn.phase = Phase::Closing;
        return true;
    }
    let twice = last && task.drawn.take(Fault::Twice);
    if twice {
        dice.counts.count(Fault::Twice);
    }
    let copies = if twice { 2 } else { 1 };
    if let TxData::Slot { .. } = pdu.data {
        task.shown += copies;
    }
    if twice {
        conn.tx.push(pdu.clone());
    }
    conn.tx.push(pdu);
    if last {
        conn.ready.pop_front();
        conn.release(index);
    }
    true
}

/// The command counts as answered from here on: its answer tells of the window without it.
fn finish(conn: &mut Conn, index: usize) {
    conn.slots[index].state = SlotState::Sending;
    conn.answered();
}

fn nop_answer(conn: &mut Conn, slot: u16) -> TxPdu<TxData> {
    let sns = conn.status_sns();
    let task = &conn.slots[usize::from(slot)];
    let len = task.outcome.moved;
    let nop = NopIn { lun: task.lun_bytes, itt: task.itt, ttt: TAG_NONE, sns, data_len: len };
    TxPdu::new(nop.build(), TxData::Slot { slot, offset: 0 }, len)
}

/// Overflow and underflow (section 11.4.5.1).
fn residual(task: &TaskSlot) -> (bool, bool, u32) {
    let (wanted, expected) = (task.outcome.wanted, task.expected);
    if task.drawn.has(Fault::WrongResidual) {
        return (false, true, 512);
    }
    match task.outcome.status {
        status::GOOD if wanted > expected => (true, false, wanted - expected),
        status::GOOD if wanted < expected => (false, true, expected - wanted),
        status::GOOD => (false, false, 0),
        _ => (false, expected > 0, expected),
    }
}

/// The next Data-In, and whether it ends the command.
fn data_in(conn: &mut Conn, slot: u16, moved: u32, with_status: bool) -> (TxPdu<TxData>, bool) {
    let index = usize::from(slot);
    let params = conn.params;
    let offset = conn.slots[index].sent;
    let burst_end = (offset / params.max_burst() + 1).saturating_mul(params.max_burst());
    let piece_max = params.recv_peer.min(conn.slots[index].piece_max);
    let len = (moved - offset).min(piece_max).min(burst_end - offset);
    let end = offset + len;
    let whole = end == moved && with_status;
    let sns = match whole {
        true => {
            finish(conn, index);
            conn.status_sns()
        }
        false => conn.sns(),
    };
    let task = &mut conn.slots[index];
    task.sent = end;
    let (overflow, underflow, residual) = residual(task);
    let pdu = DataIn {
        last: end == moved || end == burst_end,
        acknowledge: false,
        overflow: whole && overflow,
        underflow: whole && underflow,
        status: whole.then_some(task.outcome.status),
        lun: [0; 8],
        itt: task.itt,
        ttt: TAG_NONE,
        sns,
        data_sn: task.data_sn,
        offset,
        residual: if whole { residual } else { 0 },
        data_len: len,
    };
    task.data_sn += 1;
    (TxPdu::new(pdu.build(), TxData::Slot { slot, offset }, len), whole)
}

fn response(conn: &mut Conn, slot: u16, form: SenseForm) -> TxPdu<TxData> {
    let sns = conn.status_sns();
    let task = &conn.slots[usize::from(slot)];
    let (overflow, underflow, residual) = residual(task);
    let form = task.form.unwrap_or(form);
    let (mut inline, len) =
        task.outcome.sense.map_or(([0; BHS_LEN], 0), |sense| sense_segment(sense, form));
    if task.drawn.has(Fault::LyingSense) {
        inline[..2].copy_from_slice(&0x7fff_u16.to_be_bytes());
    }
    let answer = ScsiResponse {
        overflow,
        underflow,
        response: task.response,
        status: task.outcome.status,
        itt: task.itt,
        sns,
        exp_data_sn: task.data_sn + task.r2t_sn,
        residual,
        data_len: len,
    };
    let data = if len > 0 { TxData::Inline(inline) } else { TxData::None };
    TxPdu::new(answer.build(), data, len)
}

/// The data segment that tells `sense` (section 11.4.7), and its length.
fn sense_segment(sense: Sense, form: SenseForm) -> (Bhs, u32) {
    let mut inline = [0; BHS_LEN];
    let sense = sense.build(form);
    if sense.is_empty() {
        return (inline, 0);
    }
    inline[..2].copy_from_slice(&(sense.len() as u16).to_be_bytes());
    inline[2..2 + sense.len()].copy_from_slice(&sense);
    (inline, 2 + sense.len() as u32)
}

/// Ruins the first PDU of a command for which garbage was drawn.
fn spoil(task: &mut TaskSlot, mut pdu: TxPdu<TxData>, dice: &mut Dice<'_>) -> TxPdu<TxData> {
    if task.drawn.take(Fault::HeaderDigest) {
        dice.counts.count(Fault::HeaderDigest);
        pdu.bad.header = true;
    }
    if pdu.data_len > 0 && task.drawn.take(Fault::DataDigest) {
        dice.counts.count(Fault::DataDigest);
        pdu.bad.data = true;
    }
    if !task.drawn.take(Fault::Garbage) {
        return pdu;
    }
    let mut bhs: Bhs = pdu.bhs;
    let (len, with_data) = faults::ruin(dice.rng, dice.counts, &mut bhs);
    pdu.bhs = bhs;
    pdu.bhs_len = len as u8;
    if !with_data {
        pdu.data = TxData::None;
        pdu.data_len = 0;
    }
    pdu
}
