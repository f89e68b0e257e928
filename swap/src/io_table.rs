//! The fixed table of I/Os, and the table of tasks with what each waits for.

use netswap_reserve::Time;

use crate::backend::{BATCH_PAGES_MAX, Op, PageVec, RequestId, Slot};
use crate::page::{Access, AreaId, NONE, PageId};
use crate::readahead::Streams;

/// How far an I/O is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoState {
    Free,
    /// Waits in its area's queue, with its frames here.
    Queued,
    /// With the store, and the frames too.
    Submitted,
}

#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) state: IoState,
    pub(crate) op: Op,
    pub(crate) area: AreaId,
    /// Reads the header of its area.
    pub(crate) header: bool,
    pub(crate) count: u8,
    /// From this page on, pages are read ahead.
    pub(crate) ahead_from: u8,
    /// The page whose touch starts the next window, or `u8::MAX`.
    pub(crate) marker: u8,
    pub(crate) first: Slot,
    /// Whose content each frame is; [`NONE`] if it was unmapped meanwhile.
    pub(crate) pages: [u32; BATCH_PAGES_MAX],
    /// The generation each slot had when the I/O was made.
    pub(crate) generations: [u32; BATCH_PAGES_MAX],
    pub(crate) frames: PageVec,
    /// Times it was submitted.
    pub(crate) attempts: u32,
    /// Not to be submitted before this.
    pub(crate) not_before: Time,
    /// Tasks that wait for it.
    pub(crate) waiters: u32,
    /// The next in its queue or in the list of free ones.
    pub(crate) next: u32,
    /// Uses of this entry, part of the request id.
    use_count: u16,
}

impl Io {
    pub(crate) fn slot(&self, at: usize) -> Slot {
        Slot(self.first.0 + at as u32)
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages[..usize::from(self.count)]
    }
}

/// The I/Os of a pager; a fixed number.
#[derive(Debug)]
pub(crate) struct IoTable {
    ios: Box<[Io]>,
    free: u32,
    pub(crate) in_use: u32,
    pub(crate) writes: u32,
    /// Pages in write I/Os.
    pub(crate) writeback_pages: u32,
    pub(crate) writes_max: u32,
    /// Entries with a `not_before`.
    pub(crate) delayed: u32,
}

impl IoTable {
    pub(crate) fn new(reads: u32, writes: u32) -> IoTable {
        let n = reads + writes;
        assert!(n < u32::from(u16::MAX), "the table of I/Os has 16-bit indices");
        let ios = (0..n)
            .map(|i| Io {
                state: IoState::Free,
                op: Op::Read,
                area: AreaId(0),
                header: false,
                count: 0,
                ahead_from: 0,
                marker: u8::MAX,
                first: Slot(0),
                pages: [NONE; BATCH_PAGES_MAX],
                generations: [0; BATCH_PAGES_MAX],
                frames: PageVec::new(),
                attempts: 0,
                not_before: Time::ZERO,
                waiters: NONE,
                next: if i + 1 == n { NONE } else { i + 1 },
                use_count: 0,
            })
            .collect();
        IoTable {
            ios,
            free: 0,
            in_use: 0,
            writes: 0,
            writeback_pages: 0,
            writes_max: writes,
            delayed: 0,
        }
    }

    /// A free entry, if there is one for this kind: writes have a bound of their own.
    pub(crate) fn alloc(&mut self, op: Op, area: AreaId, first: Slot) -> Option<u16> {
        let reads = self.in_use - self.writes;
        let reads_max = self.ios.len() as u32 - self.writes_max;
        let full = match op {
            Op::Read => reads == reads_max,
            Op::Write => self.writes == self.writes_max,
        };
        if full {
            return None;
        }
        let at = self.free;
        let io = &mut self.ios[at as usize];
        self.free = io.next;
        self.in_use += 1;
        self.writes += u32::from(op == Op::Write);
        io.state = IoState::Queued;
        io.op = op;
        io.area = area;
        io.header = false;
        io.count = 0;
        io.ahead_from = u8::MAX;
        io.marker = u8::MAX;
        io.first = first;
        io.attempts = 0;
        io.not_before = Time::ZERO;
        io.waiters = NONE;
        io.next = NONE;
        io.use_count = io.use_count.wrapping_add(1);
        Some(at as u16)
    }

    /// Gives an entry back; its frames must be gone.
    pub(crate) fn free(&mut self, at: u16) {
        let io = &mut self.ios[usize::from(at)];
        assert!(io.state != IoState::Free && io.frames.is_empty() && io.waiters == NONE);
        io.state = IoState::Free;
        io.next = self.free;
        self.free = u32::from(at);
        self.in_use -= 1;
        if io.op == Op::Write {
            self.writes -= 1;
            self.writeback_pages -= u32::from(io.count);
        }
    }

    pub(crate) fn set_not_before(&mut self, at: u16, time: Time) {
        let before = std::mem::replace(&mut self.ios[usize::from(at)].not_before, time);
        self.delayed -= u32::from(before > Time::ZERO);
        self.delayed += u32::from(time > Time::ZERO);
    }

    pub(crate) fn get(&self, at: u16) -> &Io {
        &self.ios[usize::from(at)]
    }

    pub(crate) fn get_mut(&mut self, at: u16) -> &mut Io {
        &mut self.ios[usize::from(at)]
    }

    /// The entries in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &Io)> {
        let used = self.ios.iter().enumerate().filter(|(_, io)| io.state != IoState::Free);
        used.map(|(at, io)| (at as u16, io))
    }

    /// The id of the request that an entry submits.
    pub(crate) fn request_id(&self, at: u16) -> RequestId {
        RequestId(u32::from(self.get(at).use_count) << 16 | u32::from(at))
    }

    /// The submitted entry that a request id names, if it is not a stale one.
    pub(crate) fn find(&self, id: RequestId) -> Option<u16> {
        let at = id.0 as u16;
        let io = self.ios.get(usize::from(at))?;
        (io.state == IoState::Submitted && self.request_id(at) == id).then_some(at)
    }
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    Frame,
    Io(u16),
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) wait: Wait,
    pub(crate) page: PageId,
    pub(crate) access: Access,
    pub(crate) next: u32,
    pub(crate) streams: Streams,
}

impl Task {
    pub(crate) const NEW: Task = Task {
        wait: Wait::Nothing,
        page: PageId(0),
        access: Access::Read,
        next: NONE,
        streams: Streams::NEW,
    };
}
