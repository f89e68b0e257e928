//! The mapped region of a pool, and the metadata of its frames in an array of its own.
//!
//! The metadata is dense so that a scan over it touches no page content, and so that a stray write
//! through a page cannot damage it.

use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::backing::{Backing, BackingConfig, BackingError};
use crate::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

/// Bytes of metadata that a pool keeps for each of its frames.
pub const META_BYTES_PER_FRAME: usize = 8;

/// What is known of one frame. While the frame is on the shared free list, `refs` is the link to the
/// next free one; nobody else looks at it then.
#[derive(Default)]
pub(crate) struct Meta {
    pub(crate) refs: AtomicU32,
    /// Node of the reserve tree that the frame is charged to, plus one; 0 is no charge.
    pub(crate) charge: AtomicU16,
    pub(crate) flags: AtomicU8,
    _spare: AtomicU8,
}

/// The pool owns the frame on behalf of whoever knows its id.
pub(crate) const PARKED: u8 = 1;
/// Used inside one call of `set_aside` only, to mark what is free.
pub(crate) const MARKED: u8 = 2;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Meta>() == META_BYTES_PER_FRAME);

pub(crate) struct Region {
    backing: Backing,
    pub(crate) meta: Box<[Meta]>,
}

impl Region {
    /// Maps `frames` frames of zeros.
    pub(crate) fn map(frames: u32, config: &BackingConfig) -> Result<Region, BackingError> {
        let bytes = (frames as usize).saturating_mul(PAGE_SIZE);
        let mut meta = Vec::new();
        meta.try_reserve_exact(frames as usize).map_err(|_| BackingError::TooLarge { bytes })?;
        meta.resize_with(frames as usize, Meta::default);
        Ok(Region { backing: Backing::new(bytes, config)?, meta: meta.into_boxed_slice() })
    }

    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The address of a frame. The region is page-aligned, so every frame is.
    #[inline]
    pub(crate) fn data(&self, index: u32) -> NonNull<u8> {
        debug_assert!((index as usize) < self.meta.len());
        // SAFETY: indices come from the free list, which holds numbers below `frames` only, so the
        // offset stays inside the mapping (whose length fits an isize, or mmap would have failed).
        unsafe { self.backing.base().add(index as usize * PAGE_SIZE) }
    }
}
