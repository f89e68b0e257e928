//! SCSI commands on the target's units.

use netswap_reserve::Time;
use netswap_swap::Disk;

use super::IscsiTarget;
use super::conn::{Outcome, SlotState};
use super::faults::{self, Drawn, Fault};
use crate::pdu::{ScsiCommand, lun_of};
use crate::scsi::data::{inquiry, report_luns};
use crate::scsi::{Cdb, Sense, SenseForm, status};

/// Why a command does not end with GOOD.
pub(super) type Refusal = (u8, Option<Sense>);

pub(super) fn check(sense: Sense) -> Refusal {
    (status::CHECK_CONDITION, Some(sense))
}

impl<D: Disk> IscsiTarget<D> {
    /// Takes a command into a slot: what it wants, and whether it fails before it begins.
    pub(super) fn begin_command(&mut self, index: usize, slot: usize, command: &ScsiCommand) {
        self.stats.commands += 1;
        let mut drawn = self.draw();
        let lun = lun_of(&command.lun);
        let unit = self.luns.iter().position(|l| Some(l.lun) == lun);
        let cdb = Cdb::parse(&command.cdb);
        match cdb {
            Cdb::Read { .. } => self.stats.reads += 1,
            Cdb::Write { .. } | Cdb::WriteVerify { .. } => self.stats.writes += 1,
            _ => {}
        }
        let refusal = self.refuse(index, &cdb, unit, command, &mut drawn);
        let bytes = unit.map_or(0, |u| self.luns[u].data_out(&cdb));
        // What is kept must fit the buffer, and so must whatever may come with it.
        let most = u64::from(self.config.transfer_max);
        let fits = bytes <= most && (!command.write || u64::from(command.expected) <= most);
        let refusal = refusal.and(if fits { Ok(()) } else { Err(check(Sense::INVALID_FIELD)) });
        let bytes = bytes as u32;
        let task = &mut self.conns[index].slots[slot];
        task.reset();
        task.state = SlotState::Collecting;
        task.immediate = command.immediate;
        task.itt = command.itt;
        task.lun_bytes = command.lun;
        task.unit = unit;
        task.cdb = cdb;
        task.read = command.read;
        task.write = command.write;
        task.expected = command.expected;
        task.drawn = drawn;
        if drawn.has(Fault::DescriptorSense) {
            task.form = Some(SenseForm::Descriptor);
        }
        task.response = u8::from(drawn.has(Fault::TargetFailure));
        for fault in [Fault::SmallR2t, Fault::SmallDataIn] {
            let moves = if fault == Fault::SmallR2t { command.write } else { command.read };
            if moves && task.drawn.take(fault) {
                self.counts.count(fault);
                task.piece_max = 512;
            }
        }
        match refusal {
            Err((status, sense)) => {
                task.outcome = Outcome { status, sense, moved: 0, wanted: command.expected };
            }
            Ok(()) => {
                task.keep = true;
                task.wanted = bytes.min(command.expected);
                task.outcome =
                    Outcome { status: status::GOOD, sense: None, moved: 0, wanted: bytes };
            }
        }
    }

    /// What stands against a command before any of its data is looked at.
    fn refuse(
        &mut self,
        index: usize,
        cdb: &Cdb,
        unit: Option<usize>,
        command: &ScsiCommand,
        drawn: &mut Drawn,
    ) -> Result<(), Refusal> {
        match drawn.take_one(&[Fault::Busy, Fault::TaskSetFull]) {
            Some(Fault::Busy) => {
                self.counts.count(Fault::Busy);
                return Err((status::BUSY, None));
            }
            Some(_) => {
                self.counts.count(Fault::TaskSetFull);
                return Err((status::TASK_SET_FULL, None));
            }
            None => {}
        }
        // SPC-4 sections 5.8 and 6.4: these are carried out whatever is pending, and on a LUN that
        // does not exist as well.
        let always =
            matches!(cdb, Cdb::Inquiry { .. } | Cdb::ReportLuns { .. } | Cdb::RequestSense { .. });
        let Some(unit) = unit else {
            return if always { Ok(()) } else { Err(check(Sense::NO_SUCH_LUN)) };
        };
        if always {
            return Ok(());
        }
        if let Some(sense) = self.conns[index].take_attention(unit) {
            return Err(check(sense));
        }
        if let Some(fault) = drawn.take_one(faults::ENDS) {
            self.counts.count(fault);
            // How it is said is looked at when it is.
            drawn.add(fault);
            return Err(faults::ending(fault));
        }
        let unit = &self.luns[unit];
        unit.refuse(cdb)?;
        // The header says that data moves the other way, or not at all; what is read then has nowhere to go,
        // which the residual says.
        let wants = unit.data_out(cdb) > 0;
        if wants && (!command.write || command.read) {
            return Err(check(Sense::INVALID_FIELD));
        }
        // These do one thing to all of their data: with too little or too much of it nothing is done.
        let exact = matches!(cdb, Cdb::CompareAndWrite { .. } | Cdb::WriteSame { .. });
        if exact && u64::from(command.expected) != unit.data_out(cdb) {
            return Err(check(Sense::INVALID_FIELD));
        }
        Ok(())
    }

    /// More data of a command has arrived: ask for what is missing, or carry the command out.
    pub(super) fn data_arrived(&mut self, now: Time, index: usize, slot: usize) {
        let conn = &mut self.conns[index];
        let task = &mut conn.slots[slot];
        if task.state == SlotState::Aborting {
            if task.open.is_empty() {
                conn.drop_task(slot);
                conn.settle_functions();
            }
            return;
        }
        if task.unsolicited.is_some() {
            return;
        }
        if task.keep && task.asked_to < task.wanted {
            if task.drawn.take(Fault::LateR2t) {
                self.counts.count(Fault::LateR2t);
                task.r2t_due = Some(now + self.config.faults.late_by);
            }
            if task.r2t_due.is_none() {
                conn.queue_r2ts(slot);
            }
            return;
        }
        if !task.open.is_empty() {
            return;
        }
        if task.keep && !task.drawn.has(Fault::Silent) {
            self.execute(index, slot);
        }
        if !self.conns[index].slots[slot].drawn.is_empty() && !self.misbehave(now, index, slot) {
            return;
        }
        let late = self.config.faults.late_by;
        let conn = &mut self.conns[index];
        let task = &mut conn.slots[slot];
        if task.drawn.take(Fault::Late) {
            self.counts.count(Fault::Late);
            task.state = SlotState::Waiting { due: now + late };
        } else {
            task.state = SlotState::Ready;
            conn.ready.push_back(slot as u16);
        }
    }

    fn execute(&mut self, index: usize, slot: usize) {
        let size = self.config.transfer_max as usize;
        let start = (index * self.config.slots() + slot) * size;
        let buf = &mut self.run.bytes_mut()[start..start + size];
        let conn = &mut self.conns[index];
        let unit = conn.slots[slot].unit;
        // REQUEST SENSE tells, and so ends, a unit attention (SPC-4 section 6.39).
        let attention = match (conn.slots[slot].cdb, unit) {
            (Cdb::RequestSense { .. }, Some(unit)) => conn.take_attention(unit),
            _ => None,
        };
        let task = &mut conn.slots[slot];
        let expected = task.expected as usize;
        let outcome = match task.cdb {
            // 0 and 2 ask for the same, 1 for well-known units, of which there are none.
            Cdb::ReportLuns { select: 0 | 2, alloc } => {
                Ok(answer(report_luns(buf, self.luns.iter().map(|l| l.lun)), alloc))
            }
            Cdb::ReportLuns { select: 1, alloc } => {
                Ok(answer(report_luns(buf, std::iter::empty()), alloc))
            }
            Cdb::ReportLuns { .. } => Err(check(Sense::INVALID_FIELD)),
            Cdb::RequestSense { descriptor, alloc } => {
                let form = match descriptor {
                    true => crate::scsi::SenseForm::Descriptor,
                    false => crate::scsi::SenseForm::Fixed,
                };
                let none = match unit {
                    Some(_) => attention.unwrap_or(Sense::NONE),
                    None => Sense::NO_SUCH_LUN,
                };
                let sense = none.build(form);
                buf[..sense.len()].copy_from_slice(&sense);
                Ok(answer(sense.len(), alloc))
            }
            Cdb::Inquiry { page: None, alloc } => {
                Ok(answer(inquiry(buf, task.unit.is_some()), alloc))
            }
            _ => match task.unit {
                Some(unit) => {
                    let got = task.wanted as usize;
                    let takes = if task.read { expected } else { 0 };
                    self.luns[unit].execute(&task.cdb, buf, got, takes)
                }
                None => Err(check(Sense::NO_SUCH_LUN)),
            },
        };
        match outcome {
            Ok((moved, wanted)) => {
                task.outcome.moved = moved.min(task.expected);
                task.outcome.wanted = wanted;
                if task.write && !task.read && matches!(task.cdb, Cdb::Read { .. }) {
                    // No place for any of it, and nothing was done with what came.
                    task.expected = 0;
                }
            }
            Err((status, sense)) => {
                task.outcome = Outcome { status, sense, moved: 0, wanted: task.expected };
            }
        }
    }
}

/// Parameter data of `len` bytes under an allocation length: what is sent, and what there is of it.
pub(super) fn answer(len: usize, alloc: u32) -> (u32, u32) {
    let n = (len as u32).min(alloc);
    (n, n)
}
