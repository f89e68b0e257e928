//! What goes out, and in which order: answers and pings first, then data that the target waits for,
//! then commands as far as its window allows.

use arrayvec::ArrayVec;
use netswap_net::SendVec;
use netswap_reserve::Time;

use super::discard::Unmap;
use super::merge::push_pages;
use super::receive::Violation;
use super::task::{PROBE, Task, TaskState};
use super::unit::{Durability, shortest};
use super::{IscsiBackend, Link};
use crate::login::InitiatorLogin;
use crate::pdu::{DataOut, LoginRequest, LogoutRequest, NopOut, ScsiCommand, TAG_NONE, lun_bytes};
use crate::tx::{RING, TxPdu};

/// R2Ts that are remembered for one command, whatever was negotiated.
pub(super) const R2TS_MAX: u32 = 64;

/// With overtaking: bytes in the ring from which on it is not filled up, for nothing overtakes what is in it. Picked by
/// eye: two requests of the longest kind.
const RING_BYTES: usize = 128 * 1024;

/// The data of a PDU in the ring.
#[derive(Clone, Copy, Debug)]
pub(super) enum TxData {
    None,
    /// The text of the login request.
    Login,
    /// A command without data, or data of task `task` from byte `offset`.
    Task {
        task: u16,
        offset: u32,
    },
}

/// Data that a command owes: what may go unsolicited, or what an R2T asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    pub(super) task: u16,
    pub(super) ttt: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) data_sn: u32,
}

impl IscsiBackend {
    /// Fills the ring with what may be sent now, and makes the digests of the data in it.
    pub(super) fn refill(&mut self, now: Time) {
        self.fill(now);
        let (login, tasks, unmap) = (&self.login, &self.tasks, &self.unmap);
        self.tx.seal(|pdu, from, crc| {
            let mut out = SendVec::new();
            push_data(login, tasks, unmap, pdu, from, &mut out);
            crc.take(&out)
        });
    }

    fn fill(&mut self, now: Time) {
        let bound = if self.config.overtakes_max > 0 { RING_BYTES } else { usize::MAX };
        while self.tx.free() > 0 && self.tx.bytes() < bound {
            let sent = match self.link {
                Link::Login => self.send_login(),
                Link::Probe => {
                    self.send_pong()
                        || self.send_ping(now)
                        // The window may be shut until what was sent before is done.
                        || self.send_burst()
                        || self.send_command(now, Some(PROBE))
                }
                Link::Ready => {
                    self.send_pong()
                        || self.send_ping(now)
                        || self.send_tmf()
                        || self.send_read_first(now)
                        || self.send_burst()
                        || self.send_command(now, None)
                        || self.send_ack()
                }
                Link::LoggingOut => self.send_logout(),
                _ => false,
            };
            if !sent {
                return;
            }
        }
    }

    fn send_login(&mut self) -> bool {
        if !std::mem::take(&mut self.login_due) {
            return false;
        }
        let request = LoginRequest {
            itt: self.login_tag,
            cmd_sn: self.window.next(),
            exp_stat_sn: self.ack(),
            ..self.login.request(self.config.isid)
        };
        self.tx.push(TxPdu::new(request.build(), TxData::Login, request.data_len));
        true
    }

    /// What was received is acknowledged by the PDU that carries this.
    pub(super) fn ack(&mut self) -> u32 {
        self.acked_stat_sn = self.exp_stat_sn;
        self.ack_due = false;
        self.exp_stat_sn
    }

    /// Acknowledges by a NOP-Out that asks for nothing, when there is nothing else to send (section 11.18).
    fn send_ack(&mut self) -> bool {
        if !std::mem::take(&mut self.ack_due) || self.acked_stat_sn == self.exp_stat_sn {
            return false;
        }
        self.stats.acks += 1;
        self.push_nop([0; 8], TAG_NONE, TAG_NONE);
        true
    }

    /// A command that reads, before data of writes that the target has asked for. Data that goes unsolicited is not
    /// overtaken (section 4.2.5.2).
    fn send_read_first(&mut self, now: Time) -> bool {
        if self.passes >= self.config.overtakes_max
            || self.bursts.is_empty()
            || self.bursts.iter().any(|burst| burst.ttt == TAG_NONE)
            || !self.window.is_open()
        {
            return false;
        }
        let Some(index) = self.next_in_line(now, true) else { return false };
        self.passes += 1;
        self.issue(now, index)
    }

    fn send_pong(&mut self) -> bool {
        let Some((lun, ttt)) = self.pongs.pop_at(0) else { return false };
        self.stats.pings_answered += 1;
        self.push_nop(lun, TAG_NONE, ttt);
        true
    }

    fn send_ping(&mut self, now: Time) -> bool {
        if !std::mem::take(&mut self.ping_due) {
            return false;
        }
        let tag = self.make_tag(self.tasks.len());
        self.ping_tag = Some(tag);
        self.ping_since = now;
        self.stats.pings_sent += 1;
        self.push_nop([0; 8], tag, TAG_NONE);
        self.arm(now + self.config.request_timeout);
        true
    }

    fn push_nop(&mut self, lun: [u8; 8], itt: u32, ttt: u32) {
        let exp_stat_sn = self.ack();
        let nop = NopOut {
            immediate: true,
            lun,
            itt,
            ttt,
            cmd_sn: self.window.next(),
            exp_stat_sn,
            data_len: 0,
        };
        self.tx.push(TxPdu::new(nop.build(), TxData::None, 0));
    }

    fn send_logout(&mut self) -> bool {
        if !std::mem::take(&mut self.logout_due) {
            return false;
        }
        let tag = self.make_tag(self.tasks.len());
        self.logout_tag = Some(tag);
        let exp_stat_sn = self.ack();
        let logout = LogoutRequest {
            immediate: true,
            reason: 0,
            itt: tag,
            cid: 0,
            cmd_sn: self.window.next(),
            exp_stat_sn,
        };
        self.tx.push(TxPdu::new(logout.build(), TxData::None, 0));
        true
    }

    /// The next Data-Out of the oldest burst. Unsolicited bursts are in the order of their commands,
    /// and no later command overtakes them (section 4.2.5.2).
    fn send_burst(&mut self) -> bool {
        let exp_stat_sn = self.exp_stat_sn;
        let Some(burst) = self.bursts.front_mut() else { return false };
        let len = burst.len.min(self.params.recv_peer);
        let last = len == burst.len;
        let task = &mut self.tasks[usize::from(burst.task)];
        let lun = if burst.ttt == TAG_NONE { [0; 8] } else { lun_bytes(self.config.lun) };
        let pdu = DataOut {
            last,
            lun,
            itt: task.tag,
            ttt: burst.ttt,
            exp_stat_sn,
            data_sn: burst.data_sn,
            offset: burst.offset,
            data_len: len,
        };
        let data = TxData::Task { task: burst.task, offset: burst.offset };
        burst.offset += len;
        burst.len -= len;
        burst.data_sn += 1;
        task.shown += 1;
        if last {
            task.bursts -= 1;
            self.bursts.pop_front();
        }
        self.tx.push(TxPdu::new(pdu.build(), data, len));
        self.passes = 0;
        self.ack();
        true
    }

    /// Issues the task `only`, or the first that waits and may go.
    fn send_command(&mut self, now: Time, only: Option<usize>) -> bool {
        if !self.window.is_open() {
            return false;
        }
        match self.next_command(now, only) {
            Some(index) => self.issue(now, index),
            None => false,
        }
    }

    /// Sends the command of task `index`, which is in no queue. The window is open.
    fn issue(&mut self, now: Time, index: usize) -> bool {
        let Some(cmd_sn) = self.window.take() else { return false };
        self.tasks[index].tag = self.make_tag(index);
        let fua = self.unit.durability(self.config.write_policy) == Durability::Fua;
        let params = self.params;
        let exp_stat_sn = self.ack();
        if self.tasks[index].writes() {
            let connection = self.connection;
            self.each_member(index, |this, row| {
                let task = &mut this.tasks[row];
                task.left_over = task.left_over.max(task.sent_over);
                task.sent_over = connection;
            });
        }
        if index != PROBE {
            self.tasks[index].on_wire = true;
            self.wire += 1;
            self.unmap.was_passed_by(index);
        }
        let task = &mut self.tasks[index];
        task.rewind();
        task.state = TaskState::Sent;
        task.cmd_sn = cmd_sn;
        task.due = now + self.config.request_timeout;
        task.shown += 1;
        let writes = task.writes();
        let first_burst = task.len.min(params.first_burst());
        let immediate = match writes && params.immediate_data() {
            true => first_burst.min(params.recv_peer),
            false => 0,
        };
        let unsolicited = match writes && !params.initial_r2t() {
            true => first_burst - immediate,
            false => 0,
        };
        task.asked_to = immediate + unsolicited;
        let reads = task.reads();
        let bhs = ScsiCommand {
            immediate: false,
            last: unsolicited == 0,
            read: reads,
            write: writes,
            attr: 1,
            lun: lun_bytes(self.config.lun),
            itt: task.tag,
            expected: if reads || writes { task.len } else { 0 },
            cmd_sn,
            exp_stat_sn,
            cdb: shortest(task.cdb(self.unit.block_size, fua).build()),
            data_len: immediate,
        }
        .build();
        let index = index as u16;
        if unsolicited > 0 {
            task.bursts += 1;
            let (offset, len) = (immediate, unsolicited);
            self.bursts.push_back(Burst { task: index, ttt: TAG_NONE, offset, len, data_sn: 0 });
        }
        self.tx.push(TxPdu::new(bhs, TxData::Task { task: index, offset: 0 }, immediate));
        self.expect_answer(usize::from(index));
        self.arm(now + self.config.request_timeout);
        true
    }

    fn next_command(&mut self, now: Time, only: Option<usize>) -> Option<usize> {
        if let Some(index) = only {
            let task = &self.tasks[index];
            return (task.state == TaskState::Queued && task.retry_at <= now).then_some(index);
        }
        if self.unmap.is_due()
            && let Some(row) = self.next_discard(now)
        {
            return Some(row);
        }
        match self.next_request(now) {
            // What waits for the wire, or to be merged, goes first.
            None if self.waiting.is_empty() => self.next_discard(now),
            next => next,
        }
    }

    fn next_request(&mut self, now: Time) -> Option<usize> {
        if self.queues {
            return self.next_sync().or_else(|| self.next_in_line(now, false));
        }
        let at = (0..self.queue.len()).find(|at| self.may_go(now, usize::from(self.queue[*at])))?;
        self.queue.remove(at).map(usize::from)
    }

    /// `n` bytes of what was shown are with the transport.
    pub(super) fn take_sent(&mut self, now: Time, n: usize) -> Result<(), Violation> {
        let (tasks, done) = (&mut self.tasks, &mut self.done);
        let mut drained: ArrayVec<u16, RING> = ArrayVec::new();
        self.tx.sent(n, |pdu| {
            let TxData::Task { task: index, .. } = pdu.data else { return };
            let task = &mut tasks[usize::from(index)];
            task.shown -= 1;
            if task.shown == 0 && task.state == TaskState::Ended {
                done.push_back(index);
            }
            if task.shown == 0 && task.ending.is_some() {
                drained.push(index);
            }
        });
        for index in drained {
            let index = usize::from(index);
            if let Some(ending) = self.tasks[index].ending.take() {
                self.conclude(now, index, ending)?;
            }
        }
        Ok(())
    }

    /// Shows the ring: headers, and slices of the pages themselves.
    pub(super) fn show<'a>(&'a self, out: &mut SendVec<'a>) {
        self.tx.show(out, |pdu, from, out| {
            push_data(&self.login, &self.tasks, &self.unmap, pdu, from, out)
        });
    }
}

/// Appends the data of a PDU from byte `from` on; whether all fitted.
fn push_data<'a>(
    login: &'a InitiatorLogin,
    tasks: &'a [Task],
    unmap: &'a Unmap,
    pdu: &'a TxPdu<TxData>,
    from: usize,
    out: &mut SendVec<'a>,
) -> bool {
    match pdu.data {
        TxData::None => true,
        TxData::Login => {
            let text = &login.text()[..pdu.data_len as usize];
            out.try_push(&text[from..]).is_ok()
        }
        TxData::Task { task, offset } => {
            let end = offset as usize + pdu.data_len as usize;
            if unmap.is_at(task.into()) {
                let list = &unmap.list()[offset as usize + from..end];
                return list.is_empty() || out.try_push(list).is_ok();
            }
            push_pages(tasks, usize::from(task), offset as usize + from, end, out)
        }
    }
}
