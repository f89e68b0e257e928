//! Traces of a pool: every operation that changes what is free, charged or promised, with its outcome.
//!
//! A trace replays a load without the program that made it: against this crate alone, against a naive
//! model, or as the start of a fuzzer's search. It is recorded ([`PagePool::record`](crate::PagePool::record)) from a pool whose
//! counts are exact ([`PoolConfig::magazine`] 0): what a thread's magazine gives and takes passes no
//! point at which all threads agree on an order. Operations are noted under the pool's lock, so the
//! order is the one in which they happened, whatever threads they came from; with no recording
//! running that costs one branch a turn.
//!
//! # What is in it
//!
//! Frames (allocated, freed, set aside, exchanged), the tree (added, connected, resized), charges, and
//! reservations. Not in it: parking, sharing and splitting, which move a handle and no count, and what is read
//! from the pool. Frames are named by their index. A burst is one operation a frame, all but the first marked
//! `more`.
//!
//! Reservations have no names. What the pool knows of them are the frames that it still owes, of ordinary
//! memory and of each node that is charged for it, so a draw says which of these it took from. A charge in bytes
//! is the frames that they fill. An object that is drawn is what it does to the pool: a page drawn, or a promise
//! that is needed no more.
//!
//! # The format, version 1
//!
//! ```text
//!   file      = header op* end
//!   header    = "nswalloc" version:u8 ablations:u8 frames headroom low_gap high_gap
//!   ablations = bit 0: no reserve, bit 1: no scope
//!   op        = code:4 bits (low), bits:4 (high), fields as below; numbers are LEB128, at most 2^32 - 1
//!   end       = code 0, operations before it (u64)
//!
//!   code           bits                            fields
//!   1 alloc        0: more, 1-2: who, 3: flags     [gfp] [node] outcome
//!   2 free         0: more                         frame
//!   3 exchange     0: done                         frame gfp
//!   4 add                                          parent own
//!   5 connect      0-1: 0 done, 1 in use, 2 short  node
//!   6 disconnect   as connect                      node
//!   7 resize       as connect                      node own
//!   8 charge       0: done, 1: objects             node number
//!   9 uncharge     1: objects                      node number
//!  10 set aside                                    frames outcome
//!  11 check                                        free floor usage-of-the-root
//!  12 reserve      0-1: who                        [node] frames promised
//!  13 draw         0: of a node, 1: charged        [node] frame
//!  14 unreserve    0: of a node                    [node] frames
//!  15 count                                        node objects-a-frame
//!
//!   who            0 nobody, 1 a scope, 2 the call; a node follows unless 0
//!   outcome        0 frame | 1 frame (charged) | 2 free watermark | 3 (used up) | 4 (exhausted)
//!   promised       0 | 1 (charged) | 2 free watermark | 5 the most that ever can be
//! ```
//!
//! All codes are taken: an operation more would be another version. Nodes are numbered from the root, 0, in the order in which they were added. A check is written now
//! and then, so that a replay that goes another way is noticed soon after.

mod reader;
mod record;
mod wire;

pub use reader::{TraceError, TraceReader};
pub(crate) use record::Recorder;
pub use record::{RECORD_BUFFER_MIN, RecordError, Recording};

use crate::gfp::Gfp;
use crate::pool::{AllocError, PoolConfig};
use crate::reservation::ReservationError;
use crate::reserves::ReserveError;

/// What a file begins with.
pub const MAGIC: [u8; 8] = *b"nswalloc";
/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 1;

/// The pool that a trace was recorded from: what of its [`PoolConfig`] decides an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceHeader {
    /// [`PoolConfig::frames`]
    pub frames: u32,
    /// [`PoolConfig::headroom`]
    pub headroom: u32,
    /// [`PoolConfig::low_gap`]
    pub low_gap: u32,
    /// [`PoolConfig::high_gap`]
    pub high_gap: u32,
    /// [`PoolConfig::reserve`]
    pub reserve: bool,
    /// [`PoolConfig::scope`]
    pub scope: bool,
}

impl TraceHeader {
    /// What a trace of a pool set up as `config` says of it.
    pub fn of(config: &PoolConfig) -> TraceHeader {
        let PoolConfig { frames, headroom, low_gap, high_gap, reserve, scope, .. } = *config;
        TraceHeader { frames, headroom, low_gap, high_gap, reserve, scope }
    }

    /// A pool to replay the trace against. Its counts are exact.
    pub fn pool_config(&self) -> PoolConfig {
        let TraceHeader { frames, headroom, low_gap, high_gap, reserve, scope } = *self;
        PoolConfig {
            headroom,
            low_gap,
            high_gap,
            magazine: 0,
            reserve,
            scope,
            ..PoolConfig::new(frames)
        }
    }
}

/// Who made an allocation, and the node of the reserve it was entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Not entitled.
    Nobody,
    /// Entitled by the ambient scope.
    Scope(u16),
    /// Entitled by the call: a reserve named, or [`Gfp::MEMALLOC`] (the root).
    Call(u16),
}

impl Who {
    /// The node, if entitled.
    pub fn node(self) -> Option<u16> {
        match self {
            Who::Nobody => None,
            Who::Scope(node) | Who::Call(node) => Some(node),
        }
    }
}

/// A frame that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its index.
    pub frame: u32,
    /// Whether it was charged to the reserve that the caller was entitled to.
    pub charged: bool,
}

/// Why no frame was given out: [`AllocError`] without the name of the reserve, which the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`AllocError::AtWatermark`]
    AtWatermark {
        /// Frames free.
        free: u32,
        /// Where the caller stops.
        watermark: u32,
    },
    /// [`AllocError::ReserveUsedUp`]
    ReserveUsedUp,
    /// [`AllocError::Exhausted`]
    Exhausted,
}

impl From<AllocError> for Refusal {
    fn from(error: AllocError) -> Refusal {
        match error {
            AllocError::AtWatermark { free, watermark } => Refusal::AtWatermark { free, watermark },
            AllocError::ReserveUsedUp { .. } => Refusal::ReserveUsedUp,
            AllocError::Exhausted => Refusal::Exhausted,
        }
    }
}

/// Why nothing was reserved: [`ReservationError`] without what was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReserved {
    /// [`ReservationError::Short`]
    Short {
        /// Frames free.
        free: u32,
        /// The min watermark.
        watermark: u32,
    },
    /// [`ReservationError::TooLarge`]
    TooLarge {
        /// Frames that could be reserved if nothing else was in use.
        most: u32,
    },
}

impl From<ReservationError> for NotReserved {
    fn from(error: ReservationError) -> NotReserved {
        match error {
            ReservationError::Short { free, watermark, .. } => {
                NotReserved::Short { free, watermark }
            }
            ReservationError::TooLarge { most, .. } => NotReserved::TooLarge { most },
        }
    }
}

/// What became of a change of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was made.
    Done,
    /// [`ReserveError::InUse`]
    InUse,
    /// [`ReserveError::CannotSecure`]
    CannotSecure,
}

impl Changed {
    /// What `result` of [`PagePool::connect`](crate::PagePool::connect) and its like says.
    pub fn of(result: &Result<(), ReserveError>) -> Changed {
        match result {
            Ok(()) => Changed::Done,
            Err(ReserveError::InUse { .. }) => Changed::InUse,
            Err(_) => Changed::CannotSecure,
        }
    }
}

/// One operation of a pool, with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the calls, which say what they mean")]
pub enum TraceOp {
    /// One frame. `more`: at the same turn of the lock as the allocation before it.
    Alloc { gfp: Gfp, who: Who, more: bool, outcome: Result<Taken, Refusal> },
    /// A frame came back. `more`: at the same turn of the lock as the one before it.
    Free { frame: u32, more: bool },
    /// A charged frame was to become an ordinary one.
    Exchange { frame: u32, gfp: Gfp, done: bool },
    /// A node was added; its number is the next one.
    AddReserve { parent: u16, own: u32 },
    /// A node was to be connected.
    Connect { node: u16, changed: Changed },
    /// A node was to be disconnected.
    Disconnect { node: u16, changed: Changed },
    /// A node's own frames were to be set.
    Resize { node: u16, own: u32, changed: Changed },
    /// A charge of something that is not a frame.
    Charge { node: u16, frames: u32, done: bool },
    /// The end of such a charge.
    Uncharge { node: u16, frames: u32 },
    /// A node was told how many objects share a frame.
    CountObjects { node: u16, per_frame: u32 },
    /// A charge of objects.
    ChargeObjects { node: u16, objects: u32, done: bool },
    /// The end of such a charge.
    UnchargeObjects { node: u16, objects: u32 },
    /// Frames were to be promised to a reservation; the node that is charged for them, if one is.
    Reserve { who: Who, frames: u32, outcome: Result<Option<u16>, NotReserved> },
    /// A frame was drawn from what is promised `from` a node, or (`None`) from ordinary memory. `charged`:
    /// the charge went over to the frame.
    Draw { from: Option<u16>, frame: u32, charged: bool },
    /// A promise, or a part of it, that ended without a frame.
    Unreserve { from: Option<u16>, frames: u32 },
    /// A run was to be set aside; its first frame.
    SetAside { frames: u32, outcome: Result<u32, Refusal> },
    /// No operation: what the pool showed at this point.
    Check { free: u32, floor: u32, usage: u32 },
}
