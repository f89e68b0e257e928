//! Between the threads' magazines and the shared list: how they are filled, emptied and drained.
//!
//! Whoever touches a stock here is its owner in a section, and has seen under the lock that nobody drains,
//! or is the drainer; see [`crate::stock`].

use std::ptr::NonNull;

use super::Inner;
use crate::gfp::Gfp;
use crate::pool::AllocError;
use crate::state::{Caller, State, stock_is_ours};
use crate::stock::{Section, Stock};
use crate::wait::Woken;

impl Inner {
    /// As [`Inner::take`], in a section of the caller's own stock: that gets a few frames more while memory
    /// is above low, and is emptied while it is not, so that no thread hoards what is short.
    #[cold]
    pub(crate) fn take_and_stock(
        &self,
        gfp: Gfp,
        caller: Caller,
        stock: &Section<'_>,
    ) -> Result<u32, AllocError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let woken = self.unstock(state, stock);
        let taken = self.take_now(state, gfp, caller);
        if taken.is_ok() {
            self.restock(state, stock);
        }
        let short = self.note_plenty(state);
        let alarm = state.tree.alarmed();
        drop(guard);
        woken.wake();
        self.note_taken(&taken, short, alarm);
        taken.map(|(index, _)| index)
    }

    /// Empties the caller's own stock while memory is short.
    pub(crate) fn unstock(&self, state: &mut State, stock: &Section<'_>) -> Woken {
        if state.plenty || !stock_is_ours(state) {
            return Woken::none();
        }
        self.put_stock(state, stock, 0);
        self.serve(state)
    }

    /// Gives the caller's own stock a few frames more while memory is above low.
    pub(crate) fn restock(&self, state: &mut State, stock: &Section<'_>) {
        if state.plenty {
            let room = (self.magazine / 2).saturating_sub(stock.len());
            for _ in 0..room.min(state.free.saturating_sub(state.marks.low)) {
                stock.push(state.pop(&self.region));
            }
            state.lowest_free = state.lowest_free.min(state.free);
        }
    }

    /// Puts the frames of the caller's own stock on the list, all but `keep`.
    fn put_stock(&self, state: &mut State, stock: &Section<'_>, keep: u32) {
        while stock.len() > keep
            && let Some(index) = stock.pop()
        {
            state.push(&self.region, index);
            state.frees += 1;
        }
    }

    /// As [`Inner::free_shared`], and makes room in the caller's own stock: half of it goes too, or all
    /// while memory is short.
    ///
    /// # Safety
    /// As there; `stock` is a section of the calling thread's stock of this pool.
    pub(crate) unsafe fn free_with_stock(pool: NonNull<Inner>, index: u32, stock: &Section<'_>) {
        let last = {
            // SAFETY: the frame is out, which keeps the pool alive until it is put back.
            let inner = unsafe { pool.as_ref() };
            let mut guard = inner.lock();
            let state = &mut *guard;
            if stock_is_ours(state) {
                let keep = if state.plenty { inner.magazine / 2 } else { 0 };
                inner.put_stock(state, stock, keep);
            }
            state.push(&inner.region, index);
            state.frees += 1;
            inner.settle(guard)
        };
        if last {
            // SAFETY: closed, and everything is back.
            unsafe { Inner::destroy(pool) }
        }
    }

    /// Closes the door for a drainer, if there may be something to drain.
    pub(crate) fn start_drain(&self) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.drained {
            return false;
        }
        debug_assert!(!state.draining, "a drainer holds the lock of the registry");
        state.draining = true;
        self.note_door(state);
        true
    }

    /// Puts what is in a stock on the list, for the drainer.
    pub(crate) fn put_drained(&self, stock: &Stock) -> u32 {
        let mut guard = self.lock();
        let state = &mut *guard;
        let before = state.frees;
        for index in stock.empty() {
            state.push(&self.region, index);
            state.frees += 1;
        }
        let frames = (state.frees - before) as u32;
        let woken = self.serve(state);
        drop(guard);
        woken.wake();
        frames
    }

    /// The end of a drain: the door may open again.
    pub(crate) fn end_drain(&self, frames: u32) {
        self.counters.drains.add(1);
        self.counters.drained_frames.add(frames.into());
        let mut guard = self.lock();
        guard.draining = false;
        guard.drained = true;
        self.note_door(&mut guard);
    }
}
