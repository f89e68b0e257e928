//! Charges that are not frames: what stands for memory that was taken elsewhere.
//!
//! | charged in | with | frames it counts as |
//! |---|---|---|
//! | pages | [`PagePool::charge`] | as many |
//! | bytes | [`PagePool::charge_bytes`] | each charge ceil(bytes / [`PAGE_SIZE`]), for itself |
//! | objects | [`PagePool::charge_objects`] | all of a node together ceil(objects / objects a frame) |
//!
//! Bytes are rounded up charge by charge, since nothing is known of what they share a page with: two
//! charges of 100 bytes are two frames, so what they stand for is never more than what is charged.
//! Objects are those of a slab cache, which do share pages: a node counts them together, and what it
//! counts is exactly what a fresh cache takes for so many
//! ([`SlabCache::estimate_pages`](crate::SlabCache::estimate_pages)). Pages that objects leave behind
//! partly used are the cache's matter: pages that it took from a reserve are charged as pages.
//!
//! A charge ends with its one owner, so none can be released twice.

use std::fmt;
use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::pool::{Inner, PagePool};
use crate::reserves::{ReserveError, ReserveId};
use crate::trace::TraceOp;

impl PagePool {
    /// Charges the frames that `bytes` bytes fill, rounded up, to `reserve`: see the module.
    ///
    /// # Errors
    /// As [`PagePool::charge`]. More bytes than frames can be numbered for are over any limit.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn charge_bytes(&self, reserve: ReserveId, bytes: usize) -> Result<Charge, ReserveError> {
        self.charge(reserve, u32::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX))
    }

    /// Lets `reserve` count objects of which `per_frame` share a frame
    /// ([`SlabCache::PER_PAGE`](crate::SlabCache::PER_PAGE)). To be called at start.
    ///
    /// # Panics
    /// With 0; when `reserve` has objects of another size charged, or is of another pool.
    pub fn count_objects(&self, reserve: ReserveId, per_frame: u32) {
        let node = reserve.node(self.id());
        let mut state = self.inner().lock();
        state.tree.count_objects(node, per_frame);
        if state.recorder.is_some() {
            state.note(TraceOp::CountObjects { node, per_frame });
        }
    }

    /// Charges `objects` objects to `reserve`: the frames that they need beyond those that its objects
    /// have already.
    ///
    /// ```
    /// use netswap_reserve::{PagePool, PoolConfig, ReserveId};
    ///
    /// let pool = PagePool::new(PoolConfig::new(256));
    /// let neighbours = pool.add_reserve(ReserveId::ROOT, "net.neigh", 2);
    /// pool.count_objects(neighbours, 30);
    /// pool.connect(neighbours)?;
    ///
    /// let some = pool.charge_objects(neighbours, 20)?;
    /// let more = pool.charge_objects(neighbours, 40)?;
    /// assert_eq!(pool.reserve_usage(neighbours), 2, "60 objects fill two frames exactly");
    /// assert!(pool.charge_objects(neighbours, 1).is_err());
    /// drop(some);
    /// assert_eq!((more.objects(), pool.reserve_usage(neighbours)), (40, 2));
    /// # Ok::<(), netswap_reserve::ReserveError>(())
    /// ```
    ///
    /// # Errors
    /// As [`PagePool::charge`].
    ///
    /// # Panics
    /// When `reserve` does not count objects, or is of another pool.
    pub fn charge_objects(
        &self,
        reserve: ReserveId,
        objects: u32,
    ) -> Result<ObjectCharge, ReserveError> {
        let node = reserve.node(self.id());
        self.charge_with(node, Amount::Objects(objects))?;
        Ok(ObjectCharge { pool: self.raw(), node, objects })
    }

    /// Charges, and counts the charge that keeps the pool alive.
    pub(crate) fn charge_with(&self, node: u16, amount: Amount) -> Result<(), ReserveError> {
        let inner = self.inner();
        let mut state = inner.lock();
        let charged = match amount {
            Amount::Frames(n) => state.tree.charge(node, n),
            Amount::Objects(n) => state.tree.charge_objects(node, n),
        };
        if state.recorder.is_some() {
            let done = charged.is_ok();
            state.note(match amount {
                Amount::Frames(frames) => TraceOp::Charge { node, frames, done },
                Amount::Objects(objects) => TraceOp::ChargeObjects { node, objects, done },
            });
        }
        match charged {
            Ok(()) => {
                state.charges += 1;
                let alarm = state.tree.alarmed();
                drop(state);
                if alarm {
                    inner.tell_alarms();
                }
                Ok(())
            }
            Err(at) => {
                let (usage, _, limit, _) = state.tree.counters(at);
                Err(ReserveError::AtLimit { name: state.tree.name(at), usage, limit })
            }
        }
    }
}

/// Frames charged to a reserve for something that is not a frame of the pool itself, such as objects
/// whose memory was taken before. Dropping it releases the charge, so none can be released twice.
///
/// Made by [`PagePool::charge`] and [`PagePool::charge_bytes`].
#[must_use = "the charge is released when this is dropped"]
pub struct Charge {
    // Counted in the pool's `charges`, which keeps the pool alive.
    pub(crate) pool: NonNull<Inner>,
    pub(crate) node: u16,
    pub(crate) frames: u32,
}

// SAFETY: a charge is a number and a pool that is itself usable from every thread; the pool lives at
// least as long as the charge, which it counts.
unsafe impl Send for Charge {}
// SAFETY: as above; nothing can be changed through a shared charge.
unsafe impl Sync for Charge {}

impl Charge {
    /// Frames charged.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The reserve that is charged.
    pub fn reserve(&self) -> ReserveId {
        // SAFETY: this charge is counted by its pool, which therefore exists.
        ReserveId::new(unsafe { self.pool.as_ref() }.id, self.node)
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge")
            .field("reserve", &self.reserve())
            .field("frames", &self.frames)
            .finish()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY: this charge is counted by its pool and is released here, once.
        unsafe { Inner::release_charge(self.pool, self.node, Amount::Frames(self.frames)) }
    }
}

/// What a charge gives back.
pub(crate) enum Amount {
    Frames(u32),
    Objects(u32),
}

/// Objects charged to a reserve that counts them. Dropping it releases the charge.
///
/// Made by [`PagePool::charge_objects`].
#[must_use = "the charge is released when this is dropped"]
pub struct ObjectCharge {
    // Counted in the pool's `charges`, which keeps the pool alive.
    pool: NonNull<Inner>,
    node: u16,
    objects: u32,
}

// SAFETY: as for `Charge`.
unsafe impl Send for ObjectCharge {}
// SAFETY: as for `Charge`.
unsafe impl Sync for ObjectCharge {}

impl ObjectCharge {
    /// Objects charged.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// The reserve that is charged.
    pub fn reserve(&self) -> ReserveId {
        // SAFETY: this charge is counted by its pool, which therefore exists.
        ReserveId::new(unsafe { self.pool.as_ref() }.id, self.node)
    }
}

impl fmt::Debug for ObjectCharge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectCharge")
            .field("reserve", &self.reserve())
            .field("objects", &self.objects)
            .finish()
    }
}

impl Drop for ObjectCharge {
    fn drop(&mut self) {
        // SAFETY: this charge is counted by its pool and is released here, once.
        unsafe { Inner::release_charge(self.pool, self.node, Amount::Objects(self.objects)) }
    }
}
