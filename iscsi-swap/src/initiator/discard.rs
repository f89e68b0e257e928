//! Discards, as UNMAP (SBC-3 section 5.28), of units that say they take it.
//!
//! | asked at each login | needed |
//! |---|---|
//! | READ CAPACITY (16) | LBPME |
//! | VPD page B0h | a most of blocks and of descriptors that are not 0 |
//! | VPD page B2h | LBPU |
//!
//! Some say so and do not: the first that is refused as an unknown command, or with an invalid field, is the last.
//!
//! One discard at a time has a task of its own behind those of the requests, which takes part in everything
//! that they do: CmdSN, unsolicited data and R2Ts, timers, ABORT TASK, issue in the next session, late copies. What differs
//! is here: its slots are several runs, its data a parameter list instead of pages, and it waits until nothing else
//! does; but not for ever, for what has a slot in common with it waits for it.
//!
//! # Invariants
//! - The parameter list does not change while a PDU in the ring shows it: the task is not free before.
//! - The runs are those that the table of touched slots counts, as long as the task touches them.

use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::backend::DISCARD_RUNS_MAX;
use netswap_swap::queue::{Touched, Turn};
use netswap_swap::{
    BackendState, Discard, DiscardLimits, Run, RunVec, StoreError, Stored, SwapBackend,
};

use super::IscsiBackend;
use super::task::{Kind, Task, TaskState};
use crate::scsi::Sense;

/// Most slots of one UNMAP, whatever the unit takes. Picked by eye: 16 MiB, as other targets take long for more.
const SLOTS_MAX: u32 = 4096;
/// Commands that may go before it while it waits. Picked by eye.
const PASSES_MAX: u32 = 64;
/// Bytes before the descriptors of the parameter list, and of one.
const HEAD_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// The discard that there may be.
#[derive(Debug)]
pub(super) struct Unmap {
    /// Its row in the table of tasks; `None` if there never is one.
    row: Option<usize>,
    runs: RunVec,
    list: [u8; HEAD_LEN + DISCARD_RUNS_MAX * DESCRIPTOR_LEN],
    /// Commands that went before it.
    passed: u32,
    /// The unit has refused one.
    is_refused: bool,
}

impl Unmap {
    pub(super) fn new(row: Option<usize>) -> Unmap {
        let list = [0; HEAD_LEN + DISCARD_RUNS_MAX * DESCRIPTOR_LEN];
        Unmap { row, runs: RunVec::new(), list, passed: 0, is_refused: false }
    }

    /// Whether this is its row.
    pub(super) fn is_at(&self, index: usize) -> bool {
        self.row == Some(index)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn list(&self) -> &[u8] {
        &self.list
    }

    pub(super) fn slots(&self) -> u32 {
        self.runs.iter().map(|run| run.slots).sum()
    }

    /// The command of another task is issued.
    pub(super) fn was_passed_by(&mut self, index: usize) {
        if self.row.is_some() && !self.is_at(index) {
            self.passed = self.passed.saturating_add(1);
        }
    }

    /// Whether it has waited long enough.
    pub(super) fn is_due(&self) -> bool {
        self.row.is_some() && self.passed >= PASSES_MAX
    }

    /// Its slots are not touched any more.
    pub(super) fn forget(&self, touched: &mut Touched) {
        self.runs.iter().for_each(|run| touched.remove(range(run), false));
    }

    /// Lays the parameter list out: `ranges` are first blocks and ends. Returns its length.
    fn lay_out(&mut self, ranges: impl Iterator<Item = std::ops::Range<u64>>) -> usize {
        let mut len = HEAD_LEN;
        for range in ranges {
            let descriptor = &mut self.list[len..len + DESCRIPTOR_LEN];
            descriptor.fill(0);
            descriptor[..8].copy_from_slice(&range.start.to_be_bytes());
            descriptor[8..12].copy_from_slice(&((range.end - range.start) as u32).to_be_bytes());
            len += DESCRIPTOR_LEN;
        }
        self.list[..HEAD_LEN].fill(0);
        // Of what follows each field.
        self.list[..2].copy_from_slice(&((len - 2) as u16).to_be_bytes());
        self.list[2..4].copy_from_slice(&((len - HEAD_LEN) as u16).to_be_bytes());
        len
    }
}

fn range(run: &Run) -> std::ops::Range<u64> {
    let first = u64::from(run.first.0);
    first..first + u64::from(run.slots)
}

impl IscsiBackend {
    pub(super) fn discard_limits(&self) -> Option<DiscardLimits> {
        self.unmap.row?;
        let BackendState::Ready { .. } = self.state else { return None };
        let unmap = self.unmap_limits().filter(|_| self.unit.block_size > 0)?;
        let runs = (unmap.descriptors as usize).min(DISCARD_RUNS_MAX);
        let slots = (unmap.blocks / (PAGE_SIZE as u32 / self.unit.block_size)).min(SLOTS_MAX);
        (slots > 0).then_some(DiscardLimits { runs, slots })
    }

    #[allow(clippy::result_large_err, reason = "as in SwapBackend::discard")]
    pub(super) fn take_discard(&mut self, discard: Discard) -> Result<(), Discard> {
        let (Some(index), Some(limits), Some(unit), Some(slots)) =
            (self.unmap.row, self.discard_limits(), self.unit.unmap, self.slots())
        else {
            return Err(discard);
        };
        let fits = !discard.runs.is_empty()
            && discard.runs.len() <= limits.runs
            && discard.runs.iter().map(|run| u64::from(run.slots)).sum::<u64>()
                <= u64::from(limits.slots);
        if self.tasks[index].state != TaskState::Free || !fits {
            return Err(discard);
        }
        let Discard { id, runs, deadline } = discard;
        let scale = u64::from(PAGE_SIZE as u32 / self.unit.block_size);
        let blocks = |run: &Run| unit.inward(range(run).start * scale, range(run).end * scale);
        let ranges = runs.iter().map(blocks).filter(|range| !range.is_empty());
        let len = self.unmap.lay_out(ranges);
        let (turn, first) = (Turn { seq: self.next_seq, ..Turn::default() }, runs[0].first);
        self.next_seq += 1;
        (self.unmap.runs, self.unmap.passed) = (runs, 0);
        let kind = Kind::Discard;
        self.tasks[index] =
            Task { id, kind, first, len: len as u32, deadline, turn, ..Task::default() };
        let beyond = self.unmap.runs.iter().find(|run| range(run).end > u64::from(slots));
        if let Some(run) = beyond {
            let slot = run.first.0.max(slots);
            self.end(index, Err(StoreError::OutOfRange { slot }));
            return Ok(());
        }
        if len == HEAD_LEN {
            // Nothing of it would be freed whole.
            self.end(index, Ok(Stored { replayed: false }));
            return Ok(());
        }
        if let Some(at) = deadline {
            self.arm(at);
        }
        let ranges = self.unmap.runs.iter().map(range);
        let may_conflict = ranges.clone().any(|slots| self.touched.may_conflict(slots, false));
        ranges.for_each(|slots| self.touched.add(slots, false));
        (self.tasks[index].may_conflict, self.tasks[index].touches) = (may_conflict, true);
        self.enqueue(index);
        Ok(())
    }

    /// Its task, if it may be issued now.
    pub(super) fn next_discard(&mut self, now: Time) -> Option<usize> {
        let row = self.unmap.row?;
        let may = self.tasks[row].state == TaskState::Queued
            && self.wire < self.config.wire_max
            && self.may_go(now, row);
        may.then_some(row)
    }

    /// It was carried out.
    pub(super) fn discard_done(&mut self, index: usize) {
        self.stats.unmaps += 1;
        self.stats.unmapped_slots += u64::from(self.unmap.slots());
        self.end(index, Ok(Stored { replayed: false }));
    }

    /// It was refused, or failed.
    pub(super) fn discard_failed(&mut self, index: usize, error: StoreError) {
        self.stats.unmaps_failed += 1;
        let unknown = [Sense::INVALID_OPCODE, Sense::INVALID_FIELD].map(Sense::code);
        if let StoreError::Refused { code } = error
            && unknown.contains(&code)
        {
            tracing::info!(server = %self.server(), "the unit takes no UNMAP, though it says so");
            self.unmap.is_refused = true;
        }
        self.end(index, Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_list_is_these_bytes() {
        let mut unmap = Unmap::new(Some(1));
        unmap.list.fill(0xee);
        let len = unmap.lay_out([8..16, 0x1_0000_0000..0x1_0000_0102].into_iter());
        assert_eq!(len, 40);
        let want = [
            [0, 38, 0, 32, 0, 0, 0, 0].as_slice(),
            &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0],
        ];
        assert_eq!(unmap.list[..len], want.concat());
        assert_eq!(unmap.lay_out(std::iter::empty()), HEAD_LEN);
    }
}
