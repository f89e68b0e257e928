//! Page pool, emergency reserves and the emergency scope.
//!
//! Freeing memory by writing it out needs memory. This crate keeps some back for exactly that, and
//! accounts for every frame of it. Read it top down:
//!
//! - [`pool`]: [`PagePool`], all the memory a host may use, with watermarks and an emergency floor;
//! - [`frame`]: [`Frame`], [`PageRef`] and [`FrameRun`], what an allocation returns;
//! - [`reserves`]: the tree that divides the floor, and the charges against it;
//! - [`charge`]: charges in pages, bytes and objects, for what is not a frame;
//! - [`reservation`]: memory promised up front, so that later allocations cannot fail;
//! - [`scope`]: the guard that entitles the current thread to one reserve;
//! - [`gfp`]: what an allocation may do;
//! - [`wait`]: allocations that wait, and in which order they are served;
//! - [`reclaim`]: how an embedder frees memory when the pool asks, in the background and for a waiter;
//! - [`slab`]: objects smaller than a page, which respect the reserves;
//! - [`mempool`]: objects and pages of which a minimum is kept;
//! - [`heap`]: memory of a pool for collections;
//! - [`plan`]: how much must be set aside, as a sum of named terms;
//! - [`windows`]: pages without an address of their own, and how they are touched;
//! - [`explain`]: the graph by which a stuck machine says why;
//! - [`trace`]: what was done to a pool, recorded, to be replayed without the program that did it;
//! - [`backing`]: where the memory comes from: anonymous, memfd, huge pages, locked or not;
//! - [`socket_memory`]: kernel memory set aside for a socket, where the kernel offers that;
//! - [`time`]: the integer clock that every state machine of netswap is driven by.

mod alarm;
pub mod backing;
mod biased;
pub mod charge;
pub mod explain;
pub mod frame;
pub mod gfp;
pub mod heap;
mod inner;
mod lock;
mod magazine;
pub mod mempool;
pub mod plan;
pub mod pool;
mod queue;
pub mod reclaim;
mod region;
pub mod reservation;
pub mod reserves;
pub mod scope;
pub mod slab;
pub mod socket_memory;
mod state;
pub mod stats;
mod stock;
mod sync;
mod thread;
pub mod time;
pub mod trace;
pub mod wait;
pub mod windows;

pub use backing::{Backing, BackingConfig, BackingError, BackingKind, HugePages, ZeroedBytes};
pub use charge::{Charge, ObjectCharge};
pub use explain::{Verdict, WaitGraph};
pub use frame::{Frame, FrameId, FrameRun, PageRef};
pub use gfp::Gfp;
pub use heap::{HeapConfig, HeapEstimate, HeapUsage, ReserveHeap};
pub use mempool::{Mempool, MempoolBox, MempoolConfig, MempoolPage, MempoolStats, PageMempool};
pub use plan::{InstalledPlan, PLAN_MARGIN_FRAMES, PlanTooLarge, ReservePlan};
pub use pool::{AllocError, PagePool, PoolConfig, PoolError, Watermarks};
pub use reclaim::{NoFsScope, NoIoScope, Reclaim, ReclaimHook, ReclaimThread};
pub use region::META_BYTES_PER_FRAME;
pub use reservation::{Reservation, ReservationError, ReservationSpec, ReservationStats};
pub use reserves::{ReserveError, ReserveId, ReserveInfo};
pub use scope::{EmergencyScope, OpenScope, SavedScope};
pub use slab::{SlabBox, SlabCache, SlabConfig, SlabError, SlabUsage};
pub use stats::PoolStats;
pub use thread::prepare_thread;
pub use time::{Span, Time};
pub use wait::{Deadline, WaitError};

/// Bytes of a page, the unit of paging. The only place that says 4096.
pub const PAGE_SIZE: usize = 4096;
