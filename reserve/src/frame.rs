//! What an allocation returns: an owned frame, a shared page, a contiguous run.
//!
//! Each is a bare address of the pool and a number. None counts a reference of the pool when it is made
//! or dropped: the pool knows how many frames are out and stays until they are back.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::gfp::Gfp;
use crate::magazine;
use crate::pool::{Inner, PagePool};
use crate::region::Meta;
use crate::reserves::ReserveId;
use crate::sync::atomic::Ordering;

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
pub struct Frame {
    // The frame is out, which keeps the pool alive.
    pool: NonNull<Inner>,
    id: FrameId,
}

// SAFETY: a frame is owned by one handle; what it reaches of the pool besides its own page is made for
// use from many threads.
unsafe impl Send for Frame {}
// SAFETY: a shared `Frame` gives read access to the page alone, and nobody writes it meanwhile.
unsafe impl Sync for Frame {}

impl Frame {
    /// # Safety
    /// The caller owns the frame `id` of `pool`, which is out, and passes the ownership on.
    #[inline]
    pub(crate) unsafe fn new(pool: NonNull<Inner>, id: FrameId) -> Frame {
        Frame { pool, id }
    }

    #[inline]
    fn pool(&self) -> &Inner {
        // SAFETY: the frame is out as long as this handle is, and keeps the pool alive.
        unsafe { self.pool.as_ref() }
    }

    #[inline]
    fn meta(&self) -> &Meta {
        &self.pool().region.meta[self.id.0 as usize]
    }

    #[inline]
    fn data(&self) -> NonNull<[u8; PAGE_SIZE]> {
        self.pool().region.data(self.id.0).cast()
    }

    /// Which frame of its pool this is.
    #[inline]
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// The reserve this frame is charged to, if it is an emergency allocation.
    #[inline]
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.pool().charged_to(self.id)
    }

    /// Makes an ordinary frame of an emergency one, if the ordinary allocation that `gfp` describes
    /// would succeed now: its charge is released, and it counts as the frame which that allocation
    /// would have taken. Returns whether the frame is ordinary now.
    pub fn exchange(&mut self, gfp: Gfp) -> bool {
        self.pool().exchange(self.id.0, gfp)
    }

    /// Whether this is a frame of `pool`.
    #[inline]
    pub fn is_of(&self, pool: &PagePool) -> bool {
        self.pool == pool.raw()
    }

    /// The content.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: the frame is owned by this handle, so nothing writes it while `self` is borrowed;
        // the region outlives the handle and is initialised: zeros at first, bytes ever after.
        unsafe { self.data().as_ref() }
    }

    /// The content, to be written.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the frame is owned by this handle alone, which is borrowed mutably.
        unsafe { self.data().as_mut() }
    }

    /// Leaves the ownership of the frame with its pool, under its id: for tables that hold many
    /// frames in four bytes each. [`PagePool::unpark`] takes it back; a frame that is still parked
    /// when the last handle of the pool goes is freed then.
    pub fn park(self) -> FrameId {
        let this = ManuallyDrop::new(self);
        if this.pool().park(this.id.0) {
            // The last handle went at this moment: nobody can ask for the frame again.
            drop(ManuallyDrop::into_inner(this));
            return FrameId(u32::MAX);
        }
        this.id
    }

    /// Shares the frame read-only.
    #[inline]
    pub fn share(self) -> PageRef {
        self.meta().refs.store(1, Ordering::Relaxed);
        PageRef { frame: ManuallyDrop::new(self) }
    }

    /// Gives up the handle of a frame of `pool`; a frame of another pool is freed.
    #[inline]
    pub(crate) fn into_id_of(self, pool: &PagePool) -> Option<FrameId> {
        self.is_of(pool).then(|| ManuallyDrop::new(self).id)
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        let charged = self.meta().charge.load(Ordering::Relaxed) != 0;
        let may_keep = self.pool().door.is_open_to_stocks() && !charged;
        // SAFETY: the handle owns the frame, which is not charged, and ends here.
        if !(may_keep && unsafe { magazine::keep(self.pool, self.id.0) }) {
            // SAFETY: the handle owns the frame, which was not kept, and ends here.
            unsafe { free(self.pool, self.id.0, charged) }
        }
    }
}

/// Out of line, so that the way into the magazine stays short.
///
/// # Safety
/// The caller owns the frame `index` of `pool` and gives it up; `charged` says whether it is charged.
#[inline(never)]
unsafe fn free(pool: NonNull<Inner>, index: u32, charged: bool) {
    // SAFETY: the frame is out, so the pool is alive.
    if charged || unsafe { pool.as_ref() }.magazine == 0 {
        // SAFETY: as this function demands.
        unsafe { Inner::free_shared(pool, index) }
    } else {
        // SAFETY: as this function demands.
        unsafe { magazine::put_back(pool, index) }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("pool", &self.pool().id)
            .field("id", &self.id.0)
            .field("charged_to", &self.charged_to())
            .finish()
    }
}

/// A frame shared read-only, counted: the last reference frees it. Its charge goes with it.
pub struct PageRef {
    // Counted in the frame's `refs`; the handle ends with the last reference.
    frame: ManuallyDrop<Frame>,
}

impl PageRef {
    /// Which frame of its pool this is.
    #[inline]
    pub fn id(&self) -> FrameId {
        self.frame.id
    }

    /// The content.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        self.frame.bytes()
    }

    /// The reserve the frame is charged to, if it is an emergency allocation.
    #[inline]
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.frame.charged_to()
    }

    /// References to the frame now; others may come and go meanwhile, unless it is 1.
    #[inline]
    pub fn references(&self) -> u32 {
        self.frame.meta().refs.load(Ordering::Relaxed)
    }

    /// Whether this is the only reference. Acquire: what others read happened before.
    #[inline]
    fn is_sole(&self) -> bool {
        self.frame.meta().refs.load(Ordering::Acquire) == 1
    }

    /// The content to be written, if this is the only reference.
    #[inline]
    pub fn bytes_mut(&mut self) -> Option<&mut [u8; PAGE_SIZE]> {
        self.is_sole().then(|| self.frame.bytes_mut())
    }

    /// The frame itself again, if this is the only reference.
    ///
    /// # Errors
    /// Hands the reference back when there are others.
    #[inline]
    pub fn try_unshare(self) -> Result<Frame, PageRef> {
        if !self.is_sole() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used or dropped again, so the handle is taken out once.
        Ok(unsafe { ManuallyDrop::take(&mut this.frame) })
    }
}

impl Clone for PageRef {
    #[inline]
    fn clone(&self) -> PageRef {
        let before = self.frame.meta().refs.fetch_add(1, Ordering::Relaxed);
        // 2^31 references cannot be reached by handles that fit memory, only by forgetting them.
        assert!(before < u32::MAX / 2, "too many references to one page");
        // SAFETY: the new reference is counted, and the handle ends with the last of them.
        PageRef { frame: ManuallyDrop::new(unsafe { Frame::new(self.frame.pool, self.frame.id) }) }
    }
}

impl Drop for PageRef {
    #[inline]
    fn drop(&mut self) {
        // A sole reference needs no read-modify-write: nobody else is there to clone or drop one.
        if !self.is_sole() {
            if self.frame.meta().refs.fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            // What others did with the page happened before. A load, as the thread sanitizer knows no
            // fences.
            self.frame.meta().refs.load(Ordering::Acquire);
        }
        // SAFETY: `self` is being dropped and this was the last reference.
        unsafe { ManuallyDrop::drop(&mut self.frame) }
    }
}

impl fmt::Debug for PageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRef")
            .field("frame", &*self.frame)
            .field("references", &self.references())
            .finish()
    }
}

/// Contiguous frames set aside at start: one slice of `frames * PAGE_SIZE` bytes.
#[derive(Debug)]
pub struct FrameRun {
    pool: PagePool,
    first: FrameId,
    frames: u32,
}

impl FrameRun {
    /// # Safety
    /// The caller owns the frames `first .. first + frames` of `pool` and passes the ownership on.
    pub(crate) unsafe fn new(pool: PagePool, first: FrameId, frames: u32) -> FrameRun {
        FrameRun { pool, first, frames }
    }

    /// The first frame of it.
    pub(crate) fn first(&self) -> FrameId {
        self.first
    }

    /// The frames in it.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        let data = self.pool.inner().region.data(self.first.0);
        let len = self.frames as usize * PAGE_SIZE;
        // SAFETY: the run owns `frames` contiguous frames of the region, initialised, which nobody
        // writes while it is borrowed.
        unsafe { std::slice::from_raw_parts(data.as_ptr(), len) }
    }

    /// The content, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let data = self.pool.inner().region.data(self.first.0);
        let len = self.frames as usize * PAGE_SIZE;
        // SAFETY: the run owns `frames` contiguous frames of the region and is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), len) }
    }
}

impl Drop for FrameRun {
    fn drop(&mut self) {
        if self.frames > 0 {
            let frames = self.first.0..self.first.0 + self.frames;
            // SAFETY: the run owned these frames and ends here. Its pool handle is still there, so
            // this is not what frees the pool.
            unsafe { Inner::free_many(self.pool.raw(), frames) }
        }
    }
}
