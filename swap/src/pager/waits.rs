//! Who waits for what, for the explanation of a stuck machine.

use super::Pager;
use crate::backend::{Op, RequestId, Slot, SwapBackend};
use crate::io_table::{Io, IoState, Wait};
use crate::page::{AreaId, PageId, TaskId};

/// Where an I/O of the pager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPhase {
    /// In the pager's queue.
    Queued,
    /// In the pager's queue after a failure, not due yet.
    BackingOff,
    /// With the backend, which tells more by [`SwapBackend::outstanding`].
    Submitted,
}

/// One edge of the wait-for graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagerWait {
    /// A task waits for a frame.
    Frame {
        /// Whose fault.
        task: TaskId,
        /// The page it touched.
        page: PageId,
    },
    /// A task waits for an I/O.
    Io {
        /// Whose fault.
        task: TaskId,
        /// The page it touched.
        page: PageId,
        /// The area.
        area: AreaId,
        /// The first slot of the request.
        slot: Slot,
        /// The request.
        request: RequestId,
        /// Which way the pages move.
        op: Op,
        /// Where it is.
        phase: IoPhase,
    },
    /// Reclaim waits for a write: its frames become free when it ends.
    Reclaim {
        /// The area.
        area: AreaId,
        /// The first slot of the request.
        slot: Slot,
        /// The request.
        request: RequestId,
        /// Frames it holds.
        pages: u32,
        /// Where it is.
        phase: IoPhase,
    },
    /// Reclaim has dirty pages and no slot for them.
    NoSlots,
}

fn phase(io: &Io) -> IoPhase {
    match io.state {
        IoState::Submitted => IoPhase::Submitted,
        _ if io.not_before > netswap_reserve::Time::ZERO => IoPhase::BackingOff,
        _ => IoPhase::Queued,
    }
}

impl<B: SwapBackend> Pager<B> {
    /// Calls `visit` for all that waits: tasks in the order of their ids, then reclaim.
    pub fn visit_waits(&self, visit: &mut dyn FnMut(PagerWait)) {
        for (task, entry) in self.tasks.iter().enumerate() {
            let (task, page) = (TaskId(task as u32), entry.page);
            match entry.wait {
                Wait::Nothing => {}
                Wait::Frame => visit(PagerWait::Frame { task, page }),
                Wait::Io(at) => {
                    let io = self.ios.get(at);
                    visit(PagerWait::Io {
                        task,
                        page,
                        area: io.area,
                        slot: io.first,
                        request: self.ios.request_id(at),
                        op: io.op,
                        phase: phase(io),
                    });
                }
            }
        }
        for (at, io) in self.ios.iter().filter(|(_, io)| io.op == Op::Write) {
            visit(PagerWait::Reclaim {
                area: io.area,
                slot: io.first,
                request: self.ios.request_id(at),
                pages: u32::from(io.count),
                phase: phase(io),
            });
        }
        if self.starved {
            visit(PagerWait::NoSlots);
        }
    }
}
