//! What an allocation returns: an owned frame, a shared page, a contiguous run. SKELETON.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::PAGE_SIZE;
use crate::pool::{Inner, PagePool};
use crate::reserves::ReserveId;

/// Names a frame of a pool: its index in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub(crate) u32);

impl FrameId {
    /// The index in the pool's region, below [`PagePool::frames`].
    pub fn index(self) -> u32 {
        self.0
    }

    /// The frame with this index; whether it exists is checked where it is used.
    pub fn from_index(index: u32) -> FrameId {
        FrameId(index)
    }
}

/// One frame, owned. Dropping it frees the frame, then releases its charge.
#[derive(Debug)]
pub struct Frame {
    pool: Arc<Inner>,
    id: FrameId,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pool {}", self.id)
    }
}

impl Frame {
    pub(crate) fn new(pool: &Arc<Inner>, id: FrameId) -> Frame {
        Frame { pool: pool.clone(), id }
    }

    /// Which frame of its pool this is.
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// The reserve this frame is charged to, if it is an emergency allocation.
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.pool.charged_to(self.id)
    }

    /// The content.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        let data: NonNull<[u8; PAGE_SIZE]> = self.pool.data(self.id).cast();
        // SAFETY: the frame is owned by this handle, so nothing writes it while `self` is borrowed;
        // the region outlives the handle and is initialised.
        unsafe { data.as_ref() }
    }

    /// The content, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        let mut data: NonNull<[u8; PAGE_SIZE]> = self.pool.data(self.id).cast();
        // SAFETY: the frame is owned by this handle alone, which is borrowed mutably.
        unsafe { data.as_mut() }
    }

    /// Leaves the ownership of the frame with its pool, under its id: for tables that hold many
    /// frames in four bytes each. [`PagePool::unpark`] takes it back.
    pub fn park(self) -> FrameId {
        let id = self.id;
        self.pool.park(id);
        // The count of the pool handle is given back, the frame is not freed.
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never used again, so the Arc is read out exactly once.
        drop(unsafe { std::ptr::read(&this.pool) });
        id
    }

    /// Shares the frame read-only.
    pub fn share(self) -> PageRef {
        PageRef { frame: std::mem::ManuallyDrop::new(self) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.pool.free(self.id);
    }
}

/// A frame shared read-only, counted: the last reference frees it. Its charge goes with it.
#[derive(Debug)]
pub struct PageRef {
    frame: std::mem::ManuallyDrop<Frame>,
}

impl PageRef {
    /// The content.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        self.frame.bytes()
    }

    /// The reserve the frame is charged to, if it is an emergency allocation.
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.frame.charged_to()
    }

    /// The content to be written, if this is the only reference.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8; PAGE_SIZE]> {
        let refs = &self.frame.pool.refs[self.frame.id.0 as usize];
        (refs.load(Ordering::Acquire) == 1).then(|| self.frame.bytes_mut())
    }
}

impl Clone for PageRef {
    fn clone(&self) -> PageRef {
        self.frame.pool.refs[self.frame.id.0 as usize].fetch_add(1, Ordering::Relaxed);
        PageRef { frame: std::mem::ManuallyDrop::new(Frame::new(&self.frame.pool, self.frame.id)) }
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        let refs = &self.frame.pool.refs[self.frame.id.0 as usize];
        if refs.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: `self` is being dropped and this was the last reference.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.frame) }
        } else {
            // SAFETY: only the pool handle is given back; the frame lives on in other references.
            drop(unsafe { std::ptr::read(&self.frame.pool) });
        }
    }
}

/// Contiguous frames set aside at start: one slice of `frames * PAGE_SIZE` bytes.
#[derive(Debug)]
pub struct FrameRun {
    pool: PagePool,
    first: FrameId,
    frames: u32,
}

impl std::fmt::Debug for PagePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FrameRun {
    pub(crate) fn new(pool: PagePool, first: FrameId, frames: u32) -> FrameRun {
        FrameRun { pool, first, frames }
    }

    /// The frames in it.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The content.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let data = self.pool.0.data(self.first);
        let len = self.frames as usize * PAGE_SIZE;
        // SAFETY: the run owns `frames` contiguous frames of the region and is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), len) }
    }
}

impl Drop for FrameRun {
    fn drop(&mut self) {
        self.pool.0.free_run(self.first, self.frames);
    }
}
