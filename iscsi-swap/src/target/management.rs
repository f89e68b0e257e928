//! Task management (RFC 7143 sections 4.2.3 and 11.5), and the unit attentions that it leaves behind.
//!
//! Commands are carried out as soon as their data is there, so what can be aborted waits for data, is late on
//! purpose, or has an answer that is not wholly sent. A session has one connection, on which everything is
//! in order: a function covers what has come before it.
//!
//! A function that aborts several tasks waits until the data that was asked for by R2T has come from its
//! initiator, as section 4.2.3.3 wants; when it does not come, the connection is reset. Tasks of others end at
//! once, without a word (TAS is 0): they hear of it by a unit attention.

use arrayvec::ArrayVec;
use netswap_reserve::{Span, Time};
use netswap_swap::Disk;

use super::IscsiTarget;
use super::conn::{Conn, Ctl, Phase, SlotState};
use crate::pdu::{TaskManagementRequest, lun_of};
use crate::scsi::Sense;

/// Functions that may wait at once; more are rejected. Picked by eye.
pub(super) const WAITING_MAX: usize = 4;

/// How long a function waits for data that was asked for. Picked by eye: long for a link, short for an
/// initiator that is about to reset the session anyway.
const PATIENCE: Span = Span::from_secs(5);

/// Functions (section 11.5.1).
pub mod function {
    /// ABORT TASK.
    pub const ABORT_TASK: u8 = 1;
    /// ABORT TASK SET.
    pub const ABORT_TASK_SET: u8 = 2;
    /// CLEAR ACA.
    pub const CLEAR_ACA: u8 = 3;
    /// CLEAR TASK SET.
    pub const CLEAR_TASK_SET: u8 = 4;
    /// LOGICAL UNIT RESET.
    pub const LUN_RESET: u8 = 5;
    /// TARGET WARM RESET.
    pub const WARM_RESET: u8 = 6;
    /// TARGET COLD RESET.
    pub const COLD_RESET: u8 = 7;
    /// TASK REASSIGN.
    pub const TASK_REASSIGN: u8 = 8;
}

/// Responses (section 11.6.1).
mod response {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_TASK: u8 = 1;
    pub(super) const NO_LUN: u8 = 2;
    pub(super) const NO_REASSIGNMENT: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
    pub(super) const REJECTED: u8 = 255;
}

/// A function that waits for data of the tasks that it has aborted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    itt: u32,
    closes: bool,
    until: Time,
}

/// Unit attentions that a session has yet to hear from a unit, oldest first.
pub(super) type Attentions = ArrayVec<Sense, 4>;

impl Conn {
    /// The session is to hear `sense` from a unit. A reset tells all that was to be told before.
    pub(super) fn attend(&mut self, unit: usize, sense: Sense) {
        let pending = &mut self.attention[unit];
        if sense == Sense::RESET {
            pending.clear();
        }
        if !pending.contains(&sense) {
            // What does not fit is the fifth thing to hear at once.
            let _ = pending.try_push(sense);
        }
    }

    /// The oldest unit attention of a unit.
    pub(super) fn take_attention(&mut self, unit: usize) -> Option<Sense> {
        self.attention.get_mut(unit)?.pop_at(0)
    }

    /// Ends the tasks that `covers` names, without an answer. If `waits`, those whose data was asked for
    /// stay until it has come. Returns whether there are such.
    fn end_tasks(&mut self, waits: bool, covers: impl Fn(&super::conn::TaskSlot) -> bool) -> bool {
        let mut open = false;
        for slot in 0..self.slots.len() {
            let task = &mut self.slots[slot];
            if !task.is_unanswered() || !covers(task) {
                continue;
            }
            if waits && task.state != SlotState::Ready && !task.open.is_empty() {
                task.state = SlotState::Aborting;
                task.keep = false;
                open = true;
            } else {
                self.drop_task(slot);
            }
        }
        open
    }

    /// Forgets a task that gets no answer.
    pub(super) fn drop_task(&mut self, slot: usize) {
        self.ready.retain(|s| usize::from(*s) != slot);
        self.r2ts.retain(|s| usize::from(*s) != slot);
        let task = &mut self.slots[slot];
        // What is in the ring shows its buffer until it is sent.
        task.state = SlotState::Sending;
        task.open.clear();
        task.unsolicited = None;
        self.release(slot);
    }

    /// Answers the functions that have waited, once nothing is left to wait for.
    pub(super) fn settle_functions(&mut self) {
        if self.slots.iter().any(|s| s.state == SlotState::Aborting) {
            return;
        }
        for Waiting { itt, closes, .. } in std::mem::take(&mut self.waiting) {
            self.ctl.push_back(Ctl::TaskManagement { itt, response: response::COMPLETE, closes });
        }
    }

    /// When a function has waited for too long.
    pub(super) fn patience_ends(&self) -> Option<Time> {
        self.waiting.iter().map(|w| w.until).min()
    }
}

impl<D: Disk> IscsiTarget<D> {
    /// Carries a function out; its answer follows at once or when the data of its tasks has come.
    pub(super) fn manage(&mut self, now: Time, index: usize, request: &TaskManagementRequest) {
        self.stats.task_management += 1;
        let done = self.run_function(index, request);
        let conn = &mut self.conns[index];
        let itt = request.itt;
        let closes = request.function == function::COLD_RESET;
        let response = match done {
            Ok(false) => response::COMPLETE,
            Ok(true) => match conn.waiting.try_push(Waiting { itt, closes, until: now + PATIENCE })
            {
                Ok(()) => return,
                Err(_) => response::REJECTED,
            },
            Err(response) => response,
        };
        conn.ctl.push_back(Ctl::TaskManagement { itt, response, closes: closes && done.is_ok() });
    }

    /// Whether data has to be waited for, or the response that refuses.
    fn run_function(&mut self, index: usize, request: &TaskManagementRequest) -> Result<bool, u8> {
        let lun = lun_of(&request.lun);
        let unit = self.luns.iter().position(|l| Some(l.lun) == lun).ok_or(response::NO_LUN);
        match request.function {
            function::ABORT_TASK => self.abort_task(index, unit?, request.referenced),
            function::ABORT_TASK_SET => {
                let unit = unit?;
                Ok(self.conns[index].end_tasks(true, |task| task.unit == Some(unit)))
            }
            function::CLEAR_TASK_SET => Ok(self.clear(index, &[unit?], Sense::CLEARED)),
            function::LUN_RESET => Ok(self.clear(index, &[unit?], Sense::RESET)),
            function::WARM_RESET => Ok(self.reset_all(index)),
            function::COLD_RESET => {
                let waits = self.reset_all(index);
                // As after power on: every session ends, and the next ones hear of it.
                self.restarted = true;
                for (other, conn) in self.conns.iter_mut().enumerate() {
                    if other != index {
                        conn.abort();
                    }
                }
                Ok(waits)
            }
            function::TASK_REASSIGN => Err(response::NO_REASSIGNMENT),
            // There is no ACA, and no others are known.
            _ => Err(response::NOT_SUPPORTED),
        }
    }

    fn abort_task(&mut self, index: usize, unit: usize, itt: u32) -> Result<bool, u8> {
        let conn = &mut self.conns[index];
        if conn.waiting.iter().any(|w| w.itt == itt) {
            return Err(response::REJECTED);
        }
        let matches = |s: &super::conn::TaskSlot| s.itt == itt && s.unit == Some(unit);
        let slot = conn.slots.iter().position(|s| {
            s.is_unanswered() && s.state != SlotState::Aborting && (s.nop || matches(s))
        });
        // Nothing comes late on the only connection: a tag that is not here was answered, or never sent.
        let slot = slot.filter(|slot| conn.slots[*slot].itt == itt).ok_or(response::NO_TASK)?;
        conn.drop_task(slot);
        Ok(false)
    }

    /// Ends the tasks of all sessions on these units, and lets them hear `sense`.
    fn clear(&mut self, index: usize, units: &[usize], sense: Sense) -> bool {
        let mut waits = false;
        for (other, conn) in self.conns.iter_mut().enumerate() {
            if conn.phase != Phase::Full {
                continue;
            }
            let is_issuer = other == index;
            waits |= conn.end_tasks(is_issuer, |t| t.unit.is_some_and(|u| units.contains(&u)));
            // Who clears a task set knows; of a reset every session hears (SAM-5 section 6.3.3).
            for unit in units.iter().filter(|_| !is_issuer || sense == Sense::RESET) {
                conn.attend(*unit, sense);
            }
        }
        waits
    }

    fn reset_all(&mut self, index: usize) -> bool {
        (0..self.luns.len())
            .fold(false, |waits, unit| self.clear(index, &[unit], Sense::RESET) | waits)
    }

    /// Resets a unit as another initiator, or the operator, would: its tasks end without an answer, and
    /// every session hears 06/29/00. Does nothing where there is no such unit.
    pub fn reset_unit(&mut self, lun: u16) {
        if let Some(unit) = self.luns.iter().position(|l| l.lun == lun) {
            // Nobody is the issuer.
            self.clear(usize::MAX, &[unit], Sense::RESET);
        }
    }

    /// Every session is to hear `sense` from a unit with its next command. Does nothing where there
    /// is no such unit.
    pub fn attend(&mut self, lun: u16, sense: Sense) {
        let Some(unit) = self.luns.iter().position(|l| l.lun == lun) else { return };
        for conn in self.conns.iter_mut().filter(|c| c.phase == Phase::Full) {
            conn.attend(unit, sense);
        }
    }
}
