//! Swap areas, slots, reclaim and the pager, over any store.
//!
//! Read it top down:
//!
//! - [`pager`]: [`Pager`], the state machine that decides which pages are resident and moves the
//!   others; faults go in, events come out;
//! - [`page`]: names, and [`Mmu`], the page tables as the pager sees them;
//! - [`area`]: areas, their states and failure policies; [`signature`]: the header that tells one;
//! - [`slots`]: which page gets which slot;
//! - [`backend`]: [`SwapBackend`], what stores an area's pages; [`mem_backend`]: one in memory, with
//!   faults to order; [`conformance`]: the tests that every backend has to pass;
//! - [`queue`], [`fence`]: what network backends share: the line of what waits for the wire, and the proof that
//!   no late copy of a write is left;
//! - [`error`], [`stats`]: what can go wrong, and what happened;
//! - [`disk`]: what embedded servers store their bytes on;
//! - [`lackey`]: the memory accesses of real programs.
#![forbid(unsafe_code)]

pub mod area;

pub mod backend;
pub mod conformance;
pub mod disk;
pub mod error;
pub mod fence;
mod frames;
mod gathered;
mod io_table;
pub mod lackey;
pub mod machine;
pub mod mem_backend;
pub mod page;
pub mod pager;
pub mod queue;
mod readahead;
pub mod signature;
pub mod slots;
pub mod stats;

pub use area::{AREAS_MAX, AreaInfo, AreaOptions, AreaState, FailurePolicy};

pub use backend::{
    BackendLimits, BackendState, Completion, DISCARD_RUNS_MAX, Discard, DiscardLimits, Gone, Op,
    Outstanding, PageVec, Phase, Request, RequestId, Run, RunVec, Slot, StoreError, Stored,
    SubmitError, SwapBackend,
};
pub use disk::{Disk, MemDisk};
pub use error::{AreaError, MapError, PageError, Place, SwapoffError};
pub use frames::FRAME_BYTES;
pub use lackey::{AccessKind, LackeyReader, PageAccess, TraceError, TraceStats};
pub use mem_backend::{MemBackend, MemFaults};
pub use page::{Access, AreaId, Fault, Mmu, PageId, TaskId};
pub use pager::{IoPhase, Pager, PagerConfig, PagerEvent, PagerWait, checksum};
pub use slots::SLOT_BYTES;
pub use stats::PagerStats;
