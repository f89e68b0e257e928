//! A promise as the pool keeps it: made, drawn from and taken back under the pool's lock.

use super::ReservationError;
use crate::inner::{Caller, Inner};
use crate::state::State;
use crate::stock::Section;
use crate::sync::atomic::Ordering;
use crate::trace::TraceOp;

/// What a waiter for a promise is told: the node charged, if any.
pub(crate) fn promise_code(charged: Option<u16>) -> u32 {
    charged.map_or(u32::MAX, u32::from)
}

pub(super) fn charged_of(code: u32) -> Option<u16> {
    u16::try_from(code).ok()
}

impl Inner {
    /// Promises `n` frames to a new handle, counted in `charges`. Returns the node charged, if any.
    pub(super) fn promise(&self, n: u32, caller: Caller) -> Result<Option<u16>, ReservationError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let charged = self.promise_now(state, n, caller);
        let error = match charged {
            Some(_) => None,
            None => {
                state.reservations.failures += 1;
                let (free, watermark) = (state.free, state.marks.min);
                let short = ReservationError::Short { wanted: n, free, watermark };
                let error = self.is_too_large(state, n, caller).unwrap_or(short);
                if state.recorder.is_some() {
                    let (who, outcome) = (self.who(caller), Err(error.into()));
                    state.note(TraceOp::Reserve { who, frames: n, outcome });
                }
                Some(error)
            }
        };
        let (alarm, short) = (state.tree.alarmed(), !state.plenty);
        drop(guard);
        // By matching: a nightly compiler of 2026-05 takes `None != Some(None)` for false.
        let pressed = !matches!(charged, Some(None));
        if pressed {
            self.note_pressure();
        }
        if short || pressed {
            self.reclaimers.wake();
        }
        if alarm {
            self.tell_alarms();
        }
        match (charged, error) {
            (Some(charged), _) => Ok(charged),
            (None, error) => Err(error.expect("a promise that is not made has a reason")),
        }
    }

    /// The same under the lock; `None` if it cannot be had now.
    pub(crate) fn promise_now(
        &self,
        state: &mut State,
        n: u32,
        caller: Caller,
    ) -> Option<Option<u16>> {
        let charged = match is_ordinary(state, n) {
            true => None,
            false => self.promise_entitled(state, n, caller)?,
        };
        if state.recorder.is_some() {
            let who = self.who(caller);
            state.note(TraceOp::Reserve { who, frames: n, outcome: Ok(charged) });
        }
        state.charges += 1;
        state.reservations.granted += 1;
        if charged.is_none() {
            state.reservations.frames += n;
            state.reservations.peak = state.reservations.peak.max(state.reservations.frames);
            self.note_floor(state);
        }
        Some(charged)
    }

    /// The same for an entitled caller: all of it as a charge. With the reserve ablated a scope may have
    /// all that is free, as ordinary memory, and a call nothing.
    fn promise_entitled(&self, state: &mut State, n: u32, caller: Caller) -> Option<Option<u16>> {
        let reserve = caller.entitled?;
        let node = reserve.node(self.id);
        if self.config.reserve {
            state.tree.charge(node, n).ok().map(|()| Some(node))
        } else {
            let there = state.free - state.reservations.frames;
            (caller.by_scope && there >= n).then_some(None)
        }
    }

    /// Whether [`Inner::promise_now`] would promise it, without doing or counting.
    pub(crate) fn is_promisable(&self, state: &State, n: u32, caller: Caller) -> bool {
        let Some(reserve) = caller.entitled.filter(|_| !is_ordinary(state, n)) else {
            return is_ordinary(state, n);
        };
        if self.config.reserve {
            state.tree.has_room(reserve.node(self.id), n)
        } else {
            caller.by_scope && state.free - state.reservations.frames >= n
        }
    }

    /// Whether no waiting helps.
    pub(super) fn is_too_large(
        &self,
        state: &State,
        n: u32,
        caller: Caller,
    ) -> Option<ReservationError> {
        let kept = state.marks.min - state.reservations.frames;
        let most = self.config.frames.saturating_sub(kept);
        (n > most && caller.entitled.is_none())
            .then_some(ReservationError::TooLarge { wanted: n, most })
    }

    /// Takes a promise back that nobody has a handle of. The caller has one of the pool.
    pub(crate) fn take_back_promise(&self, n: u32, code: u32) {
        self.give_back_promise(charged_of(code), n, 1);
    }

    /// Takes `n` frames off a promise, and `handles` that end with it off the pool's count; who waits is
    /// served. Returns whether the pool is closed and everything is back: then the caller frees it.
    pub(super) fn give_back_promise(&self, charged: Option<u16>, n: u32, handles: u64) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        self.take_back(state, charged, n);
        if state.recorder.is_some() {
            state.note_unreserve(charged, n);
        }
        state.charges -= handles;
        let woken = self.serve(state);
        self.note_plenty(state);
        let last = state.all_back(self.config.frames);
        drop(guard);
        woken.wake();
        last
    }

    /// A frame for a handle, and `lag` frames, one at least, off its promise.
    pub(super) fn draw(&self, charged: Option<u16>, lag: u32, stock: Option<&Section<'_>>) -> u32 {
        let mut guard = self.lock();
        let state = &mut *guard;
        let emptied = stock.map(|stock| self.unstock(state, stock));
        // Reserved frames are free, and charges are covered by the floor: see `inner`.
        assert!(state.free > 0, "a reservation is not covered");
        let ordinary = state.free > state.marks.min;
        let index = state.pop(&self.region);
        match charged {
            Some(node) if !ordinary => {
                // The charge goes over to the frame.
                self.region.meta[index as usize].charge.store(node + 1, Ordering::Relaxed);
                state.charged += 1;
                self.take_back(state, charged, lag - 1);
            }
            charged => self.take_back(state, charged, lag),
        }
        if state.recorder.is_some() {
            let over = charged.is_some() && !ordinary;
            state.note(TraceOp::Draw { from: charged, frame: index, charged: over });
            state.note_unreserve(charged, lag - 1);
        }
        state.lowest_free = state.lowest_free.min(state.free);
        let woken = self.serve(state);
        if let Some(stock) = stock {
            self.restock(state, stock);
        }
        self.note_plenty(state);
        drop(guard);
        if let Some(emptied) = emptied {
            emptied.wake();
        }
        woken.wake();
        index
    }

    /// Takes `n` frames off the promise of a handle.
    fn take_back(&self, state: &mut State, charged: Option<u16>, n: u32) {
        match charged {
            // The count is a sum over live handles, so it cannot fall below zero.
            None => state.reservations.frames -= n,
            Some(node) => {
                let _ = state.tree.uncharge(node, n);
            }
        }
        self.note_floor(state);
        self.note_plenty(state);
    }
}

/// As many ordinary allocations, one by one, would succeed.
fn is_ordinary(state: &State, n: u32) -> bool {
    u64::from(state.free) >= u64::from(state.marks.min) + u64::from(n)
}
