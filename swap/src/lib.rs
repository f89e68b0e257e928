//! Swap areas, slots, reclaim and the pager, over any store. SKELETON.
#![forbid(unsafe_code)]

pub mod backend;
pub mod disk;
pub mod lackey;

pub use backend::{
    BackendLimits, BackendState, Completion, Op, Outstanding, PageVec, Phase, Request, RequestId,
    Slot, StoreError, Stored, SubmitError, SwapBackend,
};
pub use disk::{Disk, MemDisk};
pub use lackey::{AccessKind, LackeyReader, PageAccess, TraceError, TraceStats};
