//! A connection as the transport sees it, and its login.

use netswap_net::{Action, Disconnect, RecvVec, SendVec, Session};
use netswap_reserve::Time;
use netswap_swap::Disk;

use super::conn::{Ctl, Phase, SlotState};
use super::{IscsiTarget, TargetSession};
use crate::login::{TargetStep, login_status, stage};
use crate::pdu::{LoginRequest, LoginResponse, Sns};
use crate::scsi::Sense;

impl<D: Disk> Session for TargetSession<'_, D> {
    fn handle_connected(&mut self, _now: Time) {
        let conn = &mut self.target.conns[self.index];
        conn.reset();
        conn.phase = Phase::Login;
    }

    fn handle_disconnected(&mut self, _now: Time, why: Disconnect) {
        tracing::debug!(connection = self.index, %why, "closed");
        self.target.conns[self.index].reset();
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        self.target.recv_buffer(self.index)
    }

    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        self.target.recv_buffers(self.index, out);
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        if n > 0 {
            self.target.take(now, self.index, n);
        }
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        self.target.refill(self.index);
        self.target.show(self.index, out);
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        self.target.take_sent(self.index, n);
        // A buffer may have become free for a command that was left unread.
        self.target.resume(now, self.index);
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        self.target.refill(self.index);
        let conn = &mut self.target.conns[self.index];
        if conn.phase == Phase::Closing && conn.tx.is_empty() && conn.login_reply.is_none() {
            conn.phase = Phase::Dead;
            return Some(Action::Close);
        }
        conn.action.take()
    }

    fn poll_deadline(&self) -> Option<Time> {
        self.target.conns[self.index].next_due()
    }

    fn handle_deadline(&mut self, now: Time) {
        let conn = &mut self.target.conns[self.index];
        if conn.patience_ends().is_some_and(|at| at <= now) {
            tracing::warn!(connection = self.index, "data of aborted tasks did not come");
            conn.abort();
            return;
        }
        if conn.shut_until.is_some_and(|at| at <= now) {
            conn.shut_until = None;
            conn.push_script(Ctl::Window);
        }
        for slot in 0..conn.slots.len() {
            let task = &mut conn.slots[slot];
            if matches!(task.state, SlotState::Waiting { due } if due <= now) {
                task.state = SlotState::Ready;
                conn.ready.push_back(slot as u16);
            }
            let asks = task.state == SlotState::Collecting;
            if asks && task.r2t_due.take_if(|due| *due <= now).is_some() {
                conn.queue_r2ts(slot);
            }
        }
    }
}

impl<D: Disk> IscsiTarget<D> {
    /// A login request whose text has arrived.
    pub(super) fn take_login(&mut self, index: usize, request: &LoginRequest) {
        let conn = &mut self.conns[index];
        let first = conn.login.initiator().is_empty();
        if first {
            conn.open_window(request.cmd_sn);
            conn.isid = request.isid;
        }
        let csg = request.csg;
        let step = if request.tsih != 0 {
            // Section 6.3.6: it would join a session, but sessions here have one connection.
            let known = self.conns.iter().any(|c| c.phase == Phase::Full);
            TargetStep::Fail(match known {
                true => login_status::TOO_MANY_CONNECTIONS,
                false => login_status::NO_SESSION,
            })
        } else if let Some(moved) = &self.moved {
            conn.login.redirect(&moved.address, moved.permanent)
        } else {
            conn.login.handle(request, &self.config.name)
        };
        let mut reply = LoginResponse {
            transit: false,
            more: false,
            csg,
            nsg: 0,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: 0,
            itt: request.itt,
            sns: Sns::default(),
            status: login_status::SUCCESS,
            data_len: 0,
        };
        let phase = match step {
            TargetStep::Fail(status) => {
                tracing::debug!(connection = index, status, "login refused");
                reply.status = status;
                Phase::Closing
            }
            TargetStep::Reply { nsg, more } => {
                reply.more = more;
                reply.transit = nsg.is_some();
                reply.nsg = nsg.unwrap_or(0);
                match nsg {
                    Some(stage::FULL_FEATURE) => {
                        reply.tsih = self.begin_session(index);
                        Phase::Full
                    }
                    _ => Phase::Login,
                }
            }
        };
        let conn = &mut self.conns[index];
        if matches!(reply.status >> 8, 0 | 1) {
            reply.data_len = conn.login.chunk().len() as u32;
        }
        conn.phase = phase;
        conn.login_reply = Some(reply);
    }

    /// The login is complete: the session that had the initiator's name and ISID before is
    /// reinstated, its tasks are gone (section 6.3.5).
    fn begin_session(&mut self, index: usize) -> u16 {
        for other in (0..self.conns.len()).filter(|other| *other != index) {
            let [new, old] = self.conns.get_disjoint_mut([index, other]).expect("two connections");
            let same = old.isid == new.isid && old.login.initiator() == new.login.initiator();
            if old.phase == Phase::Full && same {
                tracing::debug!(connection = other, "session reinstated");
                old.abort();
            }
        }
        self.stats.logins += 1;
        let tsih = self.next_tsih;
        self.next_tsih = self.next_tsih.checked_add(1).unwrap_or(1);
        let conn = &mut self.conns[index];
        conn.params = conn.login.params();
        conn.rx.set_digests(conn.params.digests());
        for unit in &mut conn.attention {
            unit.clear();
            unit.extend(self.restarted.then_some(Sense::RESET));
        }
        tsih
    }
}
