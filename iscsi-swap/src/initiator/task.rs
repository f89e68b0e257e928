//! A request on its way, and what the protocol has to remember of it.

use netswap_reserve::{PAGE_SIZE, Span, Time};
use netswap_swap::{PageVec, RequestId, Slot, StoreError, Stored};

use crate::scsi::Cdb;

/// The task that serves the set-up: its data goes to a small buffer, not to pages.
pub(super) const PROBE: usize = 0;

/// Low bits of a tag: the index in the task table. 1000 requests, the probe, and one for the login.
pub(super) const TAG_BITS: u32 = 10;

/// ```text
///   Free --> Queued <--> Sent --> Ended --> Free
///              +--------------------^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskState {
    Free,
    /// Waits to be issued.
    Queued,
    /// Its command is in the ring, or was sent.
    Sent,
    /// Has its outcome.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// TEST UNIT READY, then INQUIRY, then READ CAPACITY.
    Probe(ProbeStep),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeStep {
    Ready,
    Inquiry,
    Capacity,
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
    /// Expected data transfer length of `Step::Command`.
    pub(super) len: u32,
    pub(super) pages: PageVec,
    pub(super) deadline: Option<Time>,
    /// Order of submission.
    pub(super) seq: u64,
    pub(super) tag: u32,
    pub(super) sent_at: Time,
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
    /// Garbage answers in a row.
    pub(super) garbage: u8,
    /// Retries in a row that are counted, for conditions that should pass.
    pub(super) retries: u8,
    pub(super) outcome: Result<Stored, StoreError>,
}

impl Task {
    pub(super) fn is_active(&self) -> bool {
        matches!(self.state, TaskState::Queued | TaskState::Sent)
    }

    /// Whether one of the two must wait for the other: a slot in common, and a write among them.
    pub(super) fn conflicts(&self, other: &Task) -> bool {
        let end = |t: &Task| u64::from(t.first.0) + t.pages.len() as u64;
        (self.kind == Kind::Write || other.kind == Kind::Write)
            && u64::from(self.first.0) < end(other)
            && u64::from(other.first.0) < end(self)
    }

    /// The command, for a unit with blocks of `block_size` bytes.
    pub(super) fn cdb(&self, block_size: u32, fua: bool) -> Cdb {
        let scale = (PAGE_SIZE as u32).checked_div(block_size).unwrap_or(1);
        let lba = u64::from(self.first.0) * u64::from(scale);
        let blocks = self.pages.len() as u32 * scale;
        match (self.kind, self.step) {
            (Kind::Read, _) => Cdb::Read { lba, blocks, fua: false },
            (Kind::Write, Step::Command) => Cdb::Write { lba, blocks, fua },
            (Kind::Write, Step::Sync) => Cdb::SynchronizeCache { lba, blocks },
            (Kind::Probe(ProbeStep::Ready), _) => Cdb::TestUnitReady,
            (Kind::Probe(ProbeStep::Inquiry), _) => Cdb::Inquiry { page: None, alloc: self.len },
            (Kind::Probe(ProbeStep::Capacity), _) => Cdb::ReadCapacity16 { alloc: self.len },
        }
    }

    /// Whether the step at hand receives data.
    pub(super) fn reads(&self) -> bool {
        match self.kind {
            Kind::Read => true,
            Kind::Write => false,
            Kind::Probe(_) => self.len > 0,
        }
    }

    /// Whether the step at hand sends data.
    pub(super) fn writes(&self) -> bool {
        self.kind == Kind::Write && self.step == Step::Command
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
