//! The mapped region of a pool, and the metadata of its frames in an array of its own.
//!
//! The metadata is dense so that a scan over it touches no page content, and so that a stray write
//! through a page cannot damage it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::PAGE_SIZE;

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

const _: () = assert!(size_of::<Meta>() == META_BYTES_PER_FRAME);

pub(crate) struct Region {
    base: NonNull<u8>,
    bytes: usize,
    pub(crate) meta: Box<[Meta]>,
}

// SAFETY: `base` is an address that this value owns until it is dropped. What it points to is reached
// only through frames, and `pool` hands each frame to one owner at a time (or to readers only).
unsafe impl Send for Region {}
// SAFETY: as above; a shared `Region` gives out addresses, not references.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `frames` frames of zeros. The kernel commits a page when it is first touched.
    pub(crate) fn map(frames: u32) -> rustix::io::Result<Region> {
        let bytes = (frames as usize).checked_mul(PAGE_SIZE).ok_or(rustix::io::Errno::NOMEM)?;
        let mut meta = Vec::new();
        meta.try_reserve_exact(frames as usize).map_err(|_| rustix::io::Errno::NOMEM)?;
        meta.resize_with(frames as usize, Meta::default);
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists already.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Region { base, bytes, meta: meta.into_boxed_slice() })
    }

    /// The address of a frame. The region is page-aligned, so every frame is.
    #[inline]
    pub(crate) fn data(&self, index: u32) -> NonNull<u8> {
        debug_assert!((index as usize) < self.meta.len());
        // SAFETY: indices come from the free list, which holds numbers below `frames` only, so the
        // offset stays inside the mapping (whose length fits an isize, or mmap would have failed).
        unsafe { self.base.add(index as usize * PAGE_SIZE) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, unmapped nowhere else; the pool drops its region
        // only when every frame is back, so no reference into it is left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
