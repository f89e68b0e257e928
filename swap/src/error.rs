//! What can go wrong, one enum an operation.

use std::fmt;
use std::sync::Arc;

use crate::backend::{Slot, StoreError};
use crate::page::AreaId;
use crate::signature::SignatureError;

/// Where a page was: area, slot and server, for messages. Cloning it allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The area.
    pub area: AreaId,
    /// Its name.
    pub name: Arc<str>,
    /// Its server, as [`crate::SwapBackend::server`] gives it.
    pub server: Arc<str>,
    /// The slot.
    pub slot: Slot,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "area {} slot {} on {}", self.name, self.slot.0, self.server)
    }
}

struct Because<'a>(&'a Option<StoreError>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

/// Why a page cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The page is not part of a mapping.
    #[error("the page is not mapped")]
    NotMapped,
    /// No frame can be freed, since every slot of every area is taken. None of them has failed.
    #[error("out of swap: no frame and no slot can be freed ({quarantined} slots are quarantined)")]
    OutOfSwap {
        /// Slots that are free of pages but must not be used again.
        quarantined: u32,
    },
    /// No frame can be freed, since an area has failed and no other has room.
    #[error(
        "area {name} on {server} failed ({error}), and no other area has room: no frame can be freed \
         ({quarantined} slots are quarantined)"
    )]
    AreaFailed {
        /// The area; of several that have failed, one of the highest priority.
        area: AreaId,
        /// Its name.
        name: Arc<str>,
        /// Its server.
        server: Arc<str>,
        /// What the store said when it was given up.
        error: StoreError,
        /// Slots, of all areas, that are free of pages but must not be used again.
        quarantined: u32,
    },
    /// What the store gives is not what was written there, however often it is read.
    #[error("{place}: the page is damaged, read {reads} times")]
    Damaged {
        /// Where.
        place: Place,
        /// How often it was read.
        reads: u32,
    },
    /// The store does not give the page.
    #[error("{place}: {error}")]
    Store {
        /// Where.
        place: Place,
        /// What the store said.
        error: StoreError,
    },
    /// The page could not be stored, or not be saved from its area, and was given up.
    #[error("{place}: the page was lost there{}", Because(cause))]
    Poisoned {
        /// Where.
        place: Place,
        /// What the store said of the last write that failed there, if one did.
        cause: Option<StoreError>,
    },
    /// The pager was shut down.
    #[error("the pager was shut down")]
    ShutDown,
}

/// Why an area was not taken into use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AreaError {
    /// It has no swap signature: it may hold someone's data.
    #[error("not a swap area: {0}")]
    Signature(SignatureError),
    /// The header says more pages than the store has slots.
    #[error("the header says {pages} pages, the store has {slots}")]
    TooShort {
        /// Pages by the header.
        pages: u64,
        /// Slots of the store.
        slots: u32,
    },
    /// The store failed before the area was on.
    #[error("the store failed: {0}")]
    Store(StoreError),
    /// The pager was shut down, or the area taken out before it was on.
    #[error("taken out before it was on")]
    Stopped,
}

/// Why an area was not taken out. It is on again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapoffError {
    /// The area is not on.
    #[error("the area is not on")]
    NotOn,
    /// Its pages fit nowhere else.
    #[error("{pages} pages have to move, there is room for {room}")]
    NoRoom {
        /// Pages that have no other place.
        pages: u32,
        /// Slots of other areas and frames above the high watermark that are free.
        room: u32,
    },
    /// A file mapping still uses it.
    #[error("{pages} pages of mapped files come from it")]
    InUse {
        /// Pages that still use it.
        pages: u32,
    },
    /// A page cannot be read back.
    #[error("{place}: {error}")]
    Unreadable {
        /// Where.
        place: Place,
        /// What the store said.
        error: StoreError,
    },
}

/// Why a mapping was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No range of page ids is free.
    #[error("no {pages} adjacent page ids are free of {max}")]
    NoPages {
        /// Pages wanted.
        pages: u32,
        /// [`crate::PagerConfig::max_pages`].
        max: u32,
    },
    /// The area is not an area of files that is on.
    #[error("the area is not a read-only area that is on")]
    NotAFileArea,
    /// The file is longer than the area.
    #[error("slots {first} to {end} are not all in the area of {slots}")]
    OutOfRange {
        /// First slot wanted.
        first: u32,
        /// One past the last slot wanted.
        end: u64,
        /// Slots of the area.
        slots: u32,
    },
}
