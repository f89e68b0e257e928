//! Ends: of charges, of the ownership of parked frames, and of the pool itself; the head of
//! [`crate::inner`] says who frees it.

use std::ptr::NonNull;

use super::Inner;
use crate::charge::Amount;
use crate::magazine;
use crate::region::PARKED;
use crate::sync::atomic::{Ordering, fence};
use crate::trace::TraceOp;

impl Inner {
    /// Releases a charge that is not a frame's, and frees the pool if that was the last of it.
    ///
    /// # Safety
    /// The caller is a live charge of `pool` over `amount` at `node`, and ends here.
    pub(crate) unsafe fn release_charge(pool: NonNull<Inner>, node: u16, amount: Amount) {
        let last = {
            // SAFETY: the charge is counted in `charges`, which keeps the pool alive until it is
            // taken off, under the lock that ends with this block.
            let inner = unsafe { pool.as_ref() };
            let mut guard = inner.lock();
            let state = &mut *guard;
            if state.recorder.is_some() {
                state.note(match amount {
                    Amount::Frames(frames) => TraceOp::Uncharge { node, frames },
                    Amount::Objects(objects) => TraceOp::UnchargeObjects { node, objects },
                });
            }
            let fell = match amount {
                Amount::Frames(n) => state.tree.uncharge(node, n),
                Amount::Objects(n) => state.tree.uncharge_objects(node, n),
            };
            if fell {
                inner.note_floor(state);
            }
            state.charges -= 1;
            inner.settle(guard)
        };
        if last {
            // SAFETY: closed, and everything is back.
            unsafe { Inner::destroy(pool) }
        }
    }

    /// Closes a pool whose last handle is gone: from now on the last thing that comes back frees it.
    ///
    /// # Safety
    /// `pool` is alive and no handle is left; the caller does not use it afterwards.
    pub(crate) unsafe fn close(pool: NonNull<Inner>) {
        let (last, out) = {
            // SAFETY: not closed yet, then `closing`, so nobody else frees it; after the last unlock it is
            // not touched.
            let inner = unsafe { pool.as_ref() };
            let mut guard = inner.lock();
            let state = &mut *guard;
            state.closed = true;
            state.closing = inner.magazine > 0;
            // Sequentially consistent with `park`: either it sees this, or the walk, which reads behind
            // the fence, sees its frame.
            inner.closed.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            inner.note_door(state);
            // Parked frames are owned by the pool, and nobody is left to ask for them.
            for index in 0..state.fresh {
                if inner.unpark(index) {
                    state.push(&inner.region, index);
                    inner.release(state, index);
                }
            }
            if state.closing {
                drop(guard);
                // No thread has to use the pool again for its frames to come back. The door is closed
                // for good.
                magazine::drain(inner);
                guard = inner.lock();
                guard.closing = false;
            }
            (guard.all_back(inner.config.frames), inner.config.frames - guard.free)
        };
        if last {
            // SAFETY: closed, and everything is back.
            unsafe { Inner::destroy(pool) }
        } else {
            tracing::warn!(
                frames = out,
                "a pool was dropped with frames still out; its memory stays mapped until they are back"
            );
        }
    }

    /// Marks a frame as owned by the pool. Returns whether the pool was closed meanwhile *and* left
    /// the frame to the caller, who then frees it.
    pub(crate) fn park(&self, index: u32) -> bool {
        // Release: what the owner wrote is seen by whoever takes the frame back.
        let before = self.region.meta[index as usize].flags.swap(PARKED, Ordering::SeqCst);
        debug_assert_eq!(before, 0);
        // The model checker takes sequentially consistent accesses for weaker than they are, but not fences.
        #[cfg(loom)]
        fence(Ordering::SeqCst);
        self.closed.load(Ordering::SeqCst) && self.unpark(index)
    }

    /// Takes the ownership of a parked frame; at most one of all who try gets it.
    pub(crate) fn unpark(&self, index: u32) -> bool {
        let flags = &self.region.meta[index as usize].flags;
        flags.load(Ordering::Relaxed) == PARKED
            && flags.compare_exchange(PARKED, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Frees the pool itself.
    ///
    /// # Safety
    /// `pool` is closed and everything is back, as said under the lock to this caller alone.
    #[cold]
    pub(crate) unsafe fn destroy(pool: NonNull<Inner>) {
        #[cfg(loom)]
        super::DESTROYED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // SAFETY: made by `Box::into_raw` in `PagePool::try_new`; the caller is the last to reach it.
        drop(unsafe { Box::from_raw(pool.as_ptr()) });
    }
}
