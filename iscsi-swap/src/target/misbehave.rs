//! What a fault does when its command was carried out and is about to be answered.

use netswap_reserve::Time;
use netswap_swap::Disk;

use super::IscsiTarget;
use super::conn::{Conn, Ctl, R2TS_MAX, SlotState};
use super::faults::Fault;
use crate::scsi::{Cdb, Sense, status};

/// What comes before an answer.
const AHEAD: &[Fault] = &[
    Fault::Ping,
    Fault::UnitEvent,
    Fault::LogoutRequest,
    Fault::Renegotiate,
    Fault::DropConnection,
    Fault::DropSession,
];

impl Conn {
    /// One entry for each R2T that a command may have open and has not, nor is about to have.
    pub(super) fn queue_r2ts(&mut self, slot: usize) {
        let queued = self.r2ts.iter().filter(|s| usize::from(**s) == slot).count();
        let most = (self.params.max_outstanding_r2t() as usize).min(R2TS_MAX);
        for _ in self.slots[slot].open.len() + queued..most {
            self.r2ts.push_back(slot as u16);
        }
    }
}

impl<D: Disk> IscsiTarget<D> {
    /// Makes the faults that are due for a command. Returns whether it is answered.
    pub(super) fn misbehave(&mut self, now: Time, index: usize, slot: usize) -> bool {
        let late_by = self.config.faults.late_by;
        let conn = &mut self.conns[index];
        let task = &mut conn.slots[slot];
        let (mut drawn, unit, lun) = (task.drawn, task.unit, task.lun_bytes);
        if drawn.take(Fault::Cut) {
            self.counts.count(Fault::Cut);
            conn.abort();
            return false;
        }
        if drawn.take(Fault::Silent) {
            self.counts.count(Fault::Silent);
            // Until it is aborted, or its session ends.
            task.state = SlotState::Waiting { due: Time::MAX };
            task.drawn = drawn;
            return false;
        }
        let good = task.outcome.status == status::GOOD;
        if drawn.has(Fault::ShortRead) && matches!(task.cdb, Cdb::Read { .. }) && good {
            drawn.take(Fault::ShortRead);
            self.counts.count(Fault::ShortRead);
            let block = unit.map_or(1, |u| self.luns[u].info.block_size);
            let half = task.outcome.moved / 2;
            task.outcome.moved = half - half % block;
            task.outcome.wanted = task.outcome.moved;
        }
        if drawn.has(Fault::WrongResidual) {
            self.counts.count(Fault::WrongResidual);
        }
        task.drawn = drawn;
        for fault in AHEAD {
            if !conn.slots[slot].drawn.take(*fault) {
                continue;
            }
            self.counts.count(*fault);
            // Parameter3 is how many seconds the initiator has (RFC 7143 section 11.9.1).
            conn.push_script(match fault {
                Fault::Ping => Ctl::Ping,
                Fault::UnitEvent => Ctl::UnitEvent { lun, sense: Sense::CAPACITY_CHANGED },
                Fault::LogoutRequest => Ctl::Async { event: 1, parameters: [0, 0, 3] },
                Fault::Renegotiate => Ctl::Async { event: 4, parameters: [0, 0, 3] },
                Fault::DropConnection => Ctl::Async { event: 2, parameters: [0; 3] },
                _ => Ctl::Async { event: 3, parameters: [0; 3] },
            });
        }
        if conn.slots[slot].drawn.take(Fault::CloseWindow) {
            self.counts.count(Fault::CloseWindow);
            conn.shut_until = Some(now + late_by);
        }
        let drawn = &mut self.conns[index].slots[slot].drawn;
        let (resets, changes) = (drawn.take(Fault::ResetUnit), drawn.take(Fault::CapacityChanged));
        let Some(lun) = unit.map(|unit| self.luns[unit].lun) else { return true };
        if changes {
            self.counts.count(Fault::CapacityChanged);
            self.attend(lun, Sense::CAPACITY_CHANGED);
        }
        if resets {
            // With the others goes the task at hand.
            self.counts.count(Fault::ResetUnit);
            self.reset_unit(lun);
        }
        !resets
    }
}
