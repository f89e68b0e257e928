//! Serving those who wait: what they want is given to them under the lock, by whoever makes it possible.
//!
//! Two lines. Frames come first, as many as there are waiters who can have one. Then promises (reservations
//! and changes of the reserve tree), of which only the first in line is looked at, so that one that wants much
//! is not overtaken by those behind it that want little. Nothing is put by for it: a waiter that collects
//! frames while others starve for them is how deadlocks are made.

use super::Inner;
use crate::gfp::Gfp;
use crate::lock::Guard;
use crate::queue::{Line, Node, Want};
use crate::reservation::promise_code;
use crate::reserves::ReserveError;
use crate::state::{Caller, State};
use crate::wait::Woken;

/// What a waiter for a change of the tree is told.
pub(crate) const CHANGE_MADE: u32 = 0;
const CHANGE_REFUSED: u32 = 1;

impl Inner {
    /// Whether the caller could take a frame now: what `admit` would say, without doing or counting.
    fn admissible(&self, state: &State, gfp: Gfp, caller: Caller) -> bool {
        if state.free > state.watermark(gfp) {
            return true;
        }
        let reserve = match caller.entitled.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            Some(reserve) if state.free > state.reservations.frames => reserve,
            _ => return false,
        };
        if self.config.reserve {
            state.tree.has_room(reserve.node(self.id), 1)
        } else {
            caller.by_scope
        }
    }

    /// Frames that have to come free for all who wait to be served.
    pub(crate) fn wanted(&self) -> u32 {
        let state = self.lock();
        let wanted = u64::from(state.marks.min) + state.waits.wanted();
        u32::try_from(wanted).unwrap_or(u32::MAX).saturating_sub(state.free).max(1)
    }

    /// Hands frames to whoever waits and can be served now, in order. Everything that frees a frame,
    /// releases a charge or changes a limit calls this before it gives the lock back, and wakes afterwards:
    /// so nobody comes in between, and nobody who waits could be served while the lock is free.
    #[inline]
    pub(crate) fn serve(&self, state: &mut State) -> Woken {
        if state.waits.is_empty() { Woken::none() } else { self.serve_some(state) }
    }

    #[cold]
    fn serve_some(&self, state: &mut State) -> Woken {
        let mut woken = Woken::none();
        self.serve_line(state, Line::Frames, &mut woken);
        // A change that lowers the floor may serve those who were passed over.
        while self.serve_line(state, Line::Promises, &mut woken)
            && self.serve_line(state, Line::Frames, &mut woken)
        {}
        if !state.is_half_used() {
            state.waits.end_throttle(&mut woken);
        }
        woken
    }

    /// Returns whether anybody was served.
    fn serve_line(&self, state: &mut State, line: Line, woken: &mut Woken) -> bool {
        let mut any = false;
        let mut next = state.waits.first(line);
        while let Some(waiter) = next {
            next = waiter.next();
            if let Some(grant) = self.grant_now(state, &waiter) {
                state.waits.grant(waiter, grant, woken);
                any = true;
            } else if !waiter.is_entitled() {
                // Those behind it want no less, or have to wait for their turn. An entitled one may be of
                // another reserve.
                break;
            }
        }
        any
    }

    /// Gives a waiter what it wants if it can have it now: what [`Node::granted`] tells it.
    ///
    /// [`Node::granted`]: crate::queue::Node::granted
    pub(crate) fn grant_now(&self, state: &mut State, waiter: &Node) -> Option<u32> {
        let caller = waiter.caller;
        match &waiter.want {
            Want::Frame => {
                if !self.admissible(state, waiter.gfp, caller) {
                    return None;
                }
                let taken = self.take_now(state, waiter.gfp, caller);
                if state.recorder.is_some() {
                    state.note(self.op_alloc(waiter.gfp, caller, false, taken));
                }
                let (index, charge) = taken.expect("an admissible caller is admitted");
                if charge != 0 {
                    self.note_pressure();
                }
                self.counters.handed_over.add(1);
                Some(index)
            }
            Want::Promise(frames) => {
                if !self.is_promisable(state, *frames, caller) {
                    return None;
                }
                let charged = self.promise_now(state, *frames, caller);
                Some(promise_code(charged.expect("what is promisable is promised")))
            }
            Want::Change(change, _) => match self.change_now(state, change) {
                Ok(()) => {
                    state.note_change(change, &Ok(()));
                    Some(CHANGE_MADE)
                }
                Err(ReserveError::CannotSecure { .. }) => None,
                // Somebody else has changed the tree: the waiter sees for itself.
                Err(_) => Some(CHANGE_REFUSED),
            },
        }
    }

    /// Serves those who wait, gives the lock back and wakes them. Returns whether the pool is closed and
    /// everything is back: then the caller is the last one and frees it.
    #[inline(never)]
    pub(super) fn settle(&self, mut guard: Guard<'_, State>) -> bool {
        let woken = self.serve(&mut guard);
        self.note_plenty(&mut guard);
        let last = guard.all_back(self.config.frames);
        drop(guard);
        woken.wake();
        last
    }
}
