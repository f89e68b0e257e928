//! Page pool, emergency reserves and the emergency scope.
//!
//! Freeing memory by writing it out needs memory. This crate keeps some back for exactly that, and
//! accounts for every frame of it. Read it top down:
//!
//! - [`pool`]: [`PagePool`], all the memory a host may use, with watermarks and an emergency floor;
//! - [`frame`]: [`Frame`], [`PageRef`] and [`FrameRun`], what an allocation returns;
//! - [`reserves`]: the tree that divides the floor, and the charges against it;
//! - [`scope`]: the guard that entitles the current thread to one reserve;
//! - [`gfp`]: what an allocation may do;
//! - [`slab`]: objects smaller than a page, which respect the reserves;
//! - [`plan`]: how much must be set aside, as a sum of named terms;
//! - [`explain`]: the graph by which a stuck machine says why;
//! - [`trace`]: what was done to a pool, recorded, to be replayed without the program that did it;
//! - [`backing`]: where the memory comes from: anonymous, memfd, huge pages, locked or not;
//! - [`time`]: the integer clock that every state machine of netswap is driven by.

pub mod backing;
pub mod explain;
pub mod frame;
pub mod gfp;
mod inner;
mod lock;
mod magazine;
pub mod plan;
pub mod pool;
mod region;
pub mod reserves;
pub mod scope;
pub mod slab;
pub mod time;
pub mod trace;

pub use backing::{Backing, BackingConfig, BackingError, BackingKind, HugePages, ZeroedBytes};
pub use explain::{Verdict, WaitGraph};
pub use frame::{Frame, FrameId, FrameRun, PageRef};
pub use gfp::Gfp;
pub use plan::{InstalledPlan, PLAN_MARGIN_FRAMES, PlanTooLarge, ReservePlan};
pub use pool::{AllocError, PagePool, PoolConfig, PoolError, Watermarks};
pub use region::META_BYTES_PER_FRAME;
pub use reserves::{Charge, ReserveError, ReserveId, ReserveInfo};
pub use scope::{EmergencyScope, SavedScope};
pub use slab::{SlabBox, SlabCache, SlabConfig, SlabError, SlabUsage};
pub use time::{Span, Time};

/// Bytes of a page, the unit of paging. The only place that says 4096.
pub const PAGE_SIZE: usize = 4096;
