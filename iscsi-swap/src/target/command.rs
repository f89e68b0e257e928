//! SCSI commands on the target's units.

use netswap_reserve::Time;
use netswap_swap::Disk;

use super::conn::{Outcome, SlotState};
use super::faults::{self, FaultEnd};
use super::{IscsiTarget, Lun};
use crate::pdu::{ScsiCommand, lun_of};
use crate::scsi::data::{Capacity, inquiry, mode_sense, report_luns, vpd};
use crate::scsi::{Cdb, Sense, status};

/// Why a command does not end with GOOD.
type Refusal = (u8, Option<Sense>);

fn check(sense: Sense) -> Refusal {
    (status::CHECK_CONDITION, Some(sense))
}

impl<D: Disk> IscsiTarget<D> {
    /// Takes a command into a slot: what it wants, and whether it fails before it begins.
    pub(super) fn begin_command(&mut self, index: usize, slot: usize, command: &ScsiCommand) {
        let drawn = faults::draw(&mut self.rng, &self.config.faults);
        let lun = lun_of(&command.lun);
        let unit = self.luns.iter().position(|l| Some(l.lun) == lun);
        let cdb = Cdb::parse(&command.cdb);
        let refusal = self.refuse(index, &cdb, unit, command, drawn.end);
        // Data that may come must fit the buffer.
        let fits = !command.write || command.expected <= self.config.transfer_max;
        let refusal = refusal.and(if fits { Ok(()) } else { Err(check(Sense::INVALID_FIELD)) });
        let block = unit.map_or(512, |u| self.luns[u].info.block_size);
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
        match refusal {
            Err((status, sense)) => {
                task.outcome = Outcome { status, sense, moved: 0, wanted: command.expected };
            }
            Ok(()) => {
                let blocks = match cdb {
                    Cdb::Write { blocks, .. } => blocks,
                    _ => 0,
                };
                let bytes = blocks * block;
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
        fault: Option<FaultEnd>,
    ) -> Result<(), Refusal> {
        match fault {
            Some(FaultEnd::Busy) => {
                self.counts.busy += 1;
                return Err((status::BUSY, None));
            }
            Some(FaultEnd::TaskSetFull) => {
                self.counts.task_set_full += 1;
                return Err((status::TASK_SET_FULL, None));
            }
            _ => {}
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
        if std::mem::take(&mut self.conns[index].attention[unit]) {
            return Err(check(Sense::RESET));
        }
        if fault == Some(FaultEnd::CheckCondition) {
            self.counts.check_condition += 1;
            return Err(check(Sense::RESET));
        }
        let info = &self.luns[unit].info;
        let in_range = |lba: u64, blocks: u32| {
            lba.checked_add(u64::from(blocks)).is_some_and(|end| end <= info.blocks)
        };
        match *cdb {
            Cdb::Read { lba, blocks, .. } | Cdb::Write { lba, blocks, .. } => {
                let writes = matches!(cdb, Cdb::Write { .. });
                if !in_range(lba, blocks) {
                    return Err(check(Sense::OUT_OF_RANGE));
                }
                if blocks > info.transfer_max {
                    return Err(check(Sense::INVALID_FIELD));
                }
                if writes && info.read_only {
                    return Err(check(Sense::WRITE_PROTECTED));
                }
                if blocks > 0 && (writes != command.write || writes == command.read) {
                    // The header says that data moves the other way, or not at all.
                    return Err(check(Sense::INVALID_FIELD));
                }
            }
            Cdb::SynchronizeCache { lba, blocks } if !in_range(lba, blocks) => {
                return Err(check(Sense::OUT_OF_RANGE));
            }
            Cdb::Invalid => return Err(check(Sense::INVALID_FIELD)),
            Cdb::Unknown(_) => return Err(check(Sense::INVALID_OPCODE)),
            _ => {}
        }
        Ok(())
    }

    /// More data of a command has arrived: ask for what is missing, or carry the command out.
    pub(super) fn data_arrived(&mut self, now: Time, index: usize, slot: usize) {
        let conn = &mut self.conns[index];
        let task = &mut conn.slots[slot];
        if task.unsolicited.is_some() {
            return;
        }
        if task.keep && task.asked_to < task.wanted {
            // One entry for each R2T that may be open and is not, nor is about to be.
            let queued = conn.r2ts.iter().filter(|s| usize::from(**s) == slot).count();
            let most = (conn.params.max_outstanding_r2t() as usize).min(super::conn::R2TS_MAX);
            for _ in task.open.len() + queued..most {
                conn.r2ts.push_back(slot as u16);
            }
            return;
        }
        if !task.open.is_empty() {
            return;
        }
        if task.keep {
            self.execute(index, slot);
        }
        let late = self.config.faults.late_by;
        let conn = &mut self.conns[index];
        let task = &mut conn.slots[slot];
        if task.drawn.late {
            self.counts.late += 1;
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
        let task = &mut self.conns[index].slots[slot];
        let expected = task.expected as usize;
        let outcome = match task.cdb {
            Cdb::ReportLuns { alloc } => {
                Ok(answer(report_luns(buf, self.luns.iter().map(|l| l.lun)), alloc))
            }
            Cdb::RequestSense { descriptor, alloc } => {
                let form = match descriptor {
                    true => crate::scsi::SenseForm::Descriptor,
                    false => crate::scsi::SenseForm::Fixed,
                };
                let none = match task.unit {
                    Some(_) => Sense::NONE,
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
                Some(unit) => on_unit(&mut self.luns[unit], &task.cdb, buf, expected),
                None => Err(check(Sense::NO_SUCH_LUN)),
            },
        };
        match outcome {
            Ok((moved, wanted)) => {
                task.outcome.moved = moved.min(task.expected);
                task.outcome.wanted = wanted;
            }
            Err((status, sense)) => {
                task.outcome = Outcome { status, sense, moved: 0, wanted: task.expected };
            }
        }
    }
}

/// Parameter data of `len` bytes under an allocation length: what is sent, and what there is of it.
fn answer(len: usize, alloc: u32) -> (u32, u32) {
    let n = (len as u32).min(alloc);
    (n, n)
}

/// A command that has a unit: bytes that move, and bytes that it is about.
fn on_unit<D: Disk>(
    lun: &mut Lun<D>,
    cdb: &Cdb,
    buf: &mut [u8],
    expected: usize,
) -> Result<(u32, u32), Refusal> {
    let block = lun.info.block_size;
    let capacity = Capacity { blocks: lun.info.blocks, block_size: block };
    let put = |buf: &mut [u8], bytes: &[u8]| buf[..bytes.len()].copy_from_slice(bytes);
    match *cdb {
        Cdb::Read { lba, blocks, .. } => {
            let bytes = blocks * block;
            let len = (bytes as usize).min(expected);
            let read = lun.disk.read_at(lba * u64::from(block), &mut buf[..len]);
            read.map_err(|_| check(Sense::READ_ERROR))?;
            Ok((len as u32, bytes))
        }
        Cdb::Write { lba, blocks, fua } => {
            let bytes = blocks * block;
            let len = (bytes as usize).min(expected);
            lun.disk.write_at(lba * u64::from(block), &buf[..len]).map_err(|e| write_error(&e))?;
            if fua {
                lun.disk.flush().map_err(|e| write_error(&e))?;
            }
            Ok((len as u32, bytes))
        }
        Cdb::SynchronizeCache { .. } => {
            lun.disk.flush().map_err(|e| write_error(&e))?;
            Ok((0, 0))
        }
        Cdb::TestUnitReady => Ok((0, 0)),
        Cdb::Inquiry { page, alloc } => {
            let len = vpd(buf, page.unwrap_or(0), &lun.info);
            Ok(answer(len.ok_or(check(Sense::INVALID_FIELD))?, alloc))
        }
        Cdb::ModeSense { ten, control, page, subpage, alloc } => {
            let len = mode_sense(buf, ten, control, page, subpage, &lun.info);
            Ok(answer(len.ok_or(check(Sense::INVALID_FIELD))?, alloc))
        }
        Cdb::ReadCapacity10 => {
            put(buf, &capacity.build_10());
            Ok(answer(8, 8))
        }
        Cdb::ReadCapacity16 { alloc } => {
            put(buf, &capacity.build());
            Ok(answer(32, alloc))
        }
        Cdb::ReportLuns { .. } | Cdb::RequestSense { .. } | Cdb::Invalid => {
            Err(check(Sense::INVALID_FIELD))
        }
        Cdb::Unknown(_) => Err(check(Sense::INVALID_OPCODE)),
    }
}

fn write_error(error: &std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::StorageFull => check(Sense::NO_SPACE),
        _ => check(Sense::WRITE_ERROR),
    }
}
