//! A request on its way, and what the protocol has to remember of it.

use std::ops::Range;

use netswap_reserve::{PAGE_SIZE, Span, Time};
use netswap_swap::queue::{NONE, Turn};
use netswap_swap::{PageVec, RequestId, Run, Slot, StoreError, Stored};

use super::verdict::Ending;
use crate::scsi::Cdb;

/// The task that serves the set-up: its data goes to a small buffer, not to pages.
pub(super) const PROBE: usize = 0;

/// Low bits of a tag: the index in the task table. 1000 requests, a discard, the probe, and one for the login.
pub(super) const TAG_BITS: u32 = 10;

/// ```text
///   Free --> Queued <--> Sent --> Ended --> Free
///            ^ |  |                 ^  ^
///            | v  +-----------------+  |
///           Joined --------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskState {
    Free,
    /// Waits to be issued.
    Queued,
    /// Its command is in the ring, or was sent.
    Sent,
    /// Is part of the command of another.
    Joined {
        leader: u16,
    },
    /// Has its outcome.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// UNMAP: its slots and its data are not here, but in `discard::Unmap`.
    Discard,
    /// What is asked of the unit before it is used.
    Probe(ProbeStep),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeStep {
    /// TEST UNIT READY.
    Ready,
    /// INQUIRY: whether it is a disk.
    Inquiry,
    /// READ CAPACITY (16).
    Capacity,
    /// READ CAPACITY (10), if the unit has no other.
    Capacity10,
    /// VPD page 83h: who it is.
    Identity,
    /// VPD page B0h: what it takes at once.
    Limits,
    /// VPD page B2h: whether it takes UNMAP, if what it said before lets it.
    Provisioning,
    /// MODE SENSE, caching page.
    Caching,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Command,
    /// The write is done, its SYNCHRONIZE CACHE is not.
    Sync,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) state: TaskState,
    pub(super) id: RequestId,
    pub(super) kind: Kind,
    pub(super) step: Step,
    pub(super) first: Slot,
    /// Expected data transfer length of `Step::Command`, that of all members of a merged command.
    pub(super) len: u32,
    pub(super) pages: PageVec,
    pub(super) deadline: Option<Time>,
    /// Its place in the order of submission, and who went before it.
    pub(super) turn: Turn,
    /// The next member of its command.
    pub(super) next: u16,
    /// Not to be merged: as part of a command it was refused.
    pub(super) alone: bool,
    /// An earlier request may have a slot in common with it.
    pub(super) may_conflict: bool,
    /// Counts as touching its slots.
    pub(super) touches: bool,
    /// Counts as a command on the wire.
    pub(super) on_wire: bool,
    pub(super) tag: u32,
    pub(super) cmd_sn: u32,
    /// When an answer is overdue.
    pub(super) due: Time,
    /// The connection over which it was last sent and not answered; 0 is none.
    pub(super) sent_over: u32,
    /// The last one before that over which it was sent and not answered.
    pub(super) left_over: u32,
    /// It was answered while PDUs in the ring show pages of its members: taken up when they are sent.
    pub(super) ending: Option<Ending>,
    /// The unit lost its cache since the write was done: after its SYNCHRONIZE CACHE it starts over.
    pub(super) stale: bool,
    /// Its SYNCHRONIZE CACHE is that of writes in several places: over the whole unit.
    pub(super) whole: bool,
    /// Not to be issued before.
    pub(super) retry_at: Time,
    pub(super) backoff: Span,
    /// Bytes that Data-In has brought; they come in order.
    pub(super) received: u32,
    /// DataSN of the next Data-In.
    pub(super) data_sn: u32,
    /// R2TSN of the next R2T.
    pub(super) r2t_sn: u32,
    /// Bytes that were sent unsolicited or asked for by R2T; those come in order too.
    pub(super) asked_to: u32,
    /// Its entries in the queue of bursts.
    pub(super) bursts: u16,
    /// Its PDUs in the ring, which may show its pages.
    pub(super) shown: u16,
    /// Times that it was aborted for want of an answer.
    pub(super) timeouts: u8,
    /// Garbage answers in a row.
    pub(super) garbage: u8,
    /// Retries in a row that are counted, for conditions that should pass.
    pub(super) retries: u8,
    pub(super) outcome: Result<Stored, StoreError>,
}

impl Task {
    pub(super) fn is_active(&self) -> bool {
        matches!(self.state, TaskState::Queued | TaskState::Sent | TaskState::Joined { .. })
    }

    /// Whether it is in no merged command.
    pub(super) fn is_single(&self) -> bool {
        self.next == NONE && !matches!(self.state, TaskState::Joined { .. })
    }

    /// Bytes of its own pages.
    pub(super) fn own_len(&self) -> u32 {
        (self.pages.len() * PAGE_SIZE) as u32
    }

    pub(super) fn slots(&self) -> Range<u64> {
        let first = u64::from(self.first.0);
        first..first + self.pages.len() as u64
    }

    /// Whether one of the two must wait for the other: a slot in common, and a write among them.
    /// `discarded` are the slots of the one that is a discard; there is one at most.
    pub(super) fn conflicts(&self, other: &Task, discarded: &[Run]) -> bool {
        let other = match (self.kind, other.kind) {
            (Kind::Discard, Kind::Discard) => return false,
            (Kind::Discard, _) => other,
            (_, Kind::Discard) => self,
            _ => return self.overlaps(other),
        };
        let slots = other.slots();
        discarded.iter().any(|run| {
            let first = u64::from(run.first.0);
            first < slots.end && slots.start < first + u64::from(run.slots)
        })
    }

    fn overlaps(&self, other: &Task) -> bool {
        let (a, b) = (self.slots(), other.slots());
        (self.kind == Kind::Write || other.kind == Kind::Write)
            && a.start < b.end
            && b.start < a.end
    }

    /// The command, for a unit with blocks of `block_size` bytes.
    pub(super) fn cdb(&self, block_size: u32, fua: bool) -> Cdb {
        let scale = (PAGE_SIZE as u32).checked_div(block_size).unwrap_or(1);
        let lba = u64::from(self.first.0) * u64::from(scale);
        let blocks = self.len / PAGE_SIZE as u32 * scale;
        let vpd = |page| Cdb::Inquiry { page: Some(page), alloc: self.len };
        match (self.kind, self.step) {
            (Kind::Read, _) => Cdb::Read { lba, blocks, fua: false },
            (Kind::Write, Step::Command) => Cdb::Write { lba, blocks, fua },
            (Kind::Write, Step::Sync) if self.whole => Cdb::SynchronizeCache { lba: 0, blocks: 0 },
            (Kind::Write, Step::Sync) => Cdb::SynchronizeCache { lba, blocks },
            (Kind::Discard, _) => Cdb::Unmap { list_len: self.len },
            (Kind::Probe(ProbeStep::Ready), _) => Cdb::TestUnitReady,
            (Kind::Probe(ProbeStep::Inquiry), _) => Cdb::Inquiry { page: None, alloc: self.len },
            (Kind::Probe(ProbeStep::Capacity), _) => Cdb::ReadCapacity16 { alloc: self.len },
            (Kind::Probe(ProbeStep::Capacity10), _) => Cdb::ReadCapacity10,
            (Kind::Probe(ProbeStep::Identity), _) => vpd(0x83),
            (Kind::Probe(ProbeStep::Limits), _) => vpd(0xb0),
            (Kind::Probe(ProbeStep::Provisioning), _) => vpd(0xb2),
            (Kind::Probe(ProbeStep::Caching), _) => {
                Cdb::ModeSense { ten: false, control: 0, page: 8, subpage: 0, alloc: self.len }
            }
        }
    }

    /// Whether the step at hand receives data.
    pub(super) fn reads(&self) -> bool {
        match self.kind {
            Kind::Read => true,
            Kind::Write | Kind::Discard => false,
            Kind::Probe(_) => self.len > 0,
        }
    }

    /// Whether the step at hand sends data.
    pub(super) fn writes(&self) -> bool {
        self.kind == Kind::Discard || self.kind == Kind::Write && self.step == Step::Command
    }

    pub(super) fn verb(&self) -> &'static str {
        self.cdb(PAGE_SIZE as u32, false).verb()
    }

    /// Forgets what the last issue of the command has transferred.
    pub(super) fn rewind(&mut self) {
        self.received = 0;
        self.data_sn = 0;
        self.r2t_sn = 0;
        self.asked_to = 0;
    }
}
