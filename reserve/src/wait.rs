//! Allocations that wait.
//!
//! A call that is refused queues, and then reclaims for itself while it waits (with the embedder's hooks,
//! see [`crate::reclaim`]) or sleeps. Whoever frees a frame, releases a charge or raises a limit hands frames
//! to those in the queue before the lock is given back, and wakes them outside of it. So:
//!
//! - Entitled callers are served first, and within a rank the first come first. A frame that a waiter
//!   reclaimed itself goes to whoever is first, too.
//! - Nobody comes in between. While the lock is free no waiter could be served, so a call that needs what
//!   a waiter needs is refused, be it made to wait (then it queues behind) or not (then it fails). Those
//!   who may go further do: atomic callers stop at a lower mark, entitled ones have their reserve.
//! - An entitled caller does not wait behind one whose reserve is used up, if its own is not.
//!
//! Reservations and changes of the reserve tree wait in a line of their own, behind all who wait for a frame:
//! see `inner::serve`. The rest is the same: who reclaims, who is woken by what, how it ends.
//!
//! Waiting uses no heap: the waiter's node is on its stack.

use std::time::{Duration, Instant};

use crate::frame::{Frame, FrameId};
use crate::gfp::Gfp;
use crate::inner::{Caller, Inner};
use crate::magazine;
use crate::pool::{AllocError, PagePool};
use crate::queue::{Line, Node, Want};
pub(crate) use crate::queue::{WaitQueue, Woken};
use crate::reclaim;
use crate::reserves::ReserveId;
use crate::slab;
use crate::state::State;
use crate::sync::thread;

/// How long a waiter that reclaimed nothing sleeps before it tries again, at first and at most; it is woken
/// at once if it is handed a frame. Picked by eye: a fast store answers within the first, and the kernel
/// waits as long as the second (`HZ/10`) when it throttles reclaim.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LAST: Duration = Duration::from_millis(100);

/// Until when an allocation may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Waits for ever if need be.
    pub const NEVER: Deadline = Deadline(None);

    fn has_passed(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// This, or `pause` from now if that is earlier.
    fn at_most(self, pause: Duration) -> Option<Instant> {
        let pause = Instant::now() + pause;
        Some(self.0.map_or(pause, |at| at.min(pause)))
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Deadline {
        Deadline(Some(at))
    }
}

impl From<Duration> for Deadline {
    /// So long from now; [`Deadline::NEVER`] if no clock counts so far.
    fn from(timeout: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(timeout))
    }
}

/// Why an allocation that may wait got no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// It was refused, and did not wait: its flags forbid that, or it was made from inside reclaim, where
    /// waiting would be waiting for oneself.
    #[error("{0}; this allocation cannot wait")]
    Refused(AllocError),
    /// The deadline passed.
    #[error("{refused}; waited {} ms, reclaimed {reclaims} times, which freed {freed} frames", waited.as_millis())]
    TimedOut {
        /// Why it was refused at last.
        refused: AllocError,
        /// How long it waited.
        waited: Duration,
        /// How often it called the reclaim hooks itself; 0 if there are none, or if it may not.
        reclaims: u32,
        /// Frames that the hooks said they freed then; they went to whoever was first in the queue.
        freed: u64,
    },
}

impl WaitError {
    /// Why the frame was refused at last.
    pub fn refused(&self) -> AllocError {
        match *self {
            WaitError::Refused(refused) | WaitError::TimedOut { refused, .. } => refused,
        }
    }
}

impl PagePool {
    /// One frame, as [`PagePool::alloc`] gives it; where that refuses, waits until a frame can be had or
    /// the deadline (a `Duration` or an `Instant`) passes. See [`crate::wait`] for who is served when.
    ///
    /// Meanwhile the call takes back the frames and free slab slots that threads keep, wakes background reclaim, and calls the
    /// direct reclaim hooks itself. It does not call them if it is entitled by its scope (that is what
    /// reclaim runs in), and takes turns with others once half of the floor is used.
    ///
    /// ```
    /// use std::time::Duration;
    /// use netswap_reserve::{Gfp, PagePool, PoolConfig, WaitError};
    ///
    /// let pool = PagePool::new(PoolConfig::new(64));
    /// let mut all: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    /// let error = pool.alloc_wait(Gfp::KERNEL, Duration::from_millis(1)).unwrap_err();
    /// assert!(matches!(error, WaitError::TimedOut { .. }));
    ///
    /// let other = pool.clone();
    /// let waiter = std::thread::spawn(move || other.alloc_wait(Gfp::KERNEL, Duration::from_secs(60)));
    /// drop(all.pop());
    /// assert!(waiter.join().unwrap().is_ok());
    /// ```
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] after the deadline; [`WaitError::Refused`] at once for a call that cannot
    /// wait.
    #[inline]
    pub fn alloc_wait(&self, gfp: Gfp, deadline: impl Into<Deadline>) -> Result<Frame, WaitError> {
        match self.alloc(gfp) {
            Ok(frame) => Ok(frame),
            Err(refused) => wait(self, gfp, self.ambient(gfp), deadline, refused),
        }
    }

    /// As [`PagePool::alloc_wait`] for a caller that is entitled to `reserve` whatever the ambient scope.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    #[inline]
    pub fn alloc_wait_from(
        &self,
        gfp: Gfp,
        reserve: ReserveId,
        deadline: impl Into<Deadline>,
    ) -> Result<Frame, WaitError> {
        let caller = Caller { entitled: Some(reserve), by_scope: false };
        match self.alloc_as(gfp, || caller) {
            Ok(frame) => Ok(frame),
            Err(refused) => wait(self, gfp, caller, deadline, refused),
        }
    }
}

#[cold]
fn wait(
    pool: &PagePool,
    gfp: Gfp,
    mut caller: Caller,
    deadline: impl Into<Deadline>,
    refused: AllocError,
) -> Result<Frame, WaitError> {
    // In this order, or a wait to its end could be told as a little shorter than was asked for.
    let (started, deadline) = (Instant::now(), deadline.into());
    let gfp = gfp | reclaim::limits();
    if !gfp.may_wait() || reclaim::is_inside() {
        return Err(WaitError::Refused(refused));
    }
    if gfp.contains(Gfp::NOMEMALLOC) {
        caller.entitled = None;
    }
    let inner = pool.inner();
    let node = Node::new(Want::Frame, gfp, caller);
    let (granted, refused) = {
        let mut guard = inner.lock();
        let state = &mut *guard;
        let taken = inner.take_now(state, gfp, caller);
        if state.recorder.is_some() {
            state.note(inner.op_alloc(gfp, caller, false, taken));
        }
        match taken {
            Ok((index, charge)) => {
                inner.note_plenty(state);
                drop(guard);
                if charge != 0 {
                    inner.note_pressure();
                }
                (Ok(index), refused)
            }
            Err(error) => {
                let waiter = Waiter::join(pool, &node, state);
                inner.counters.longest_queue.max(state.waits.len(Line::Frames).into());
                drop(guard);
                inner.counters.waits.add(1);
                (waiter.wait(deadline), error)
            }
        }
    };
    if caller.entitled.is_some() {
        inner.tell_alarms();
    }
    match granted {
        // SAFETY: the frame was taken off the list by this call, or for it by whoever granted it, once.
        Ok(index) => Ok(unsafe { Frame::new(pool.raw(), FrameId(index)) }),
        Err(Unserved { reclaims, freed }) => {
            inner.counters.timeouts.add(1);
            Err(WaitError::TimedOut { refused, waited: started.elapsed(), reclaims, freed })
        }
    }
}

/// What was done in vain until the deadline.
pub(crate) struct Unserved {
    reclaims: u32,
    freed: u64,
}

/// One who is in the queue, until it leaves, or is dropped by a hook that panics.
pub(crate) struct Waiter<'a> {
    pool: &'a PagePool,
    node: &'a Node,
}

impl<'a> Waiter<'a> {
    /// Queues a new node, of this thread. `state` is that of the pool.
    pub(crate) fn join(pool: &'a PagePool, node: &'a Node, state: &mut State) -> Waiter<'a> {
        // SAFETY: the node is borrowed by the `Waiter` that is made here, which takes it off or waits for
        // its wake-up before it ends; its maker is the current thread.
        unsafe { state.waits.join(node) }
        Waiter { pool, node }
    }

    /// Grants what `node` wants at once, if it is its turn; else queues it, and `note`s that under the same
    /// turn of the lock.
    pub(crate) fn served_or_queued(
        pool: &'a PagePool,
        node: &'a Node,
        note: impl FnOnce(&mut State),
    ) -> Result<u32, Waiter<'a>> {
        let inner = pool.inner();
        let mut guard = inner.lock();
        let state = &mut *guard;
        let is_behind = state.waits.is_behind(node.caller);
        let granted = if is_behind { None } else { inner.grant_now(state, node) };
        granted.ok_or_else(|| {
            let waiter = Waiter::join(pool, node, state);
            note(state);
            waiter
        })
    }

    /// Waits, and reclaims meanwhile, until what is wanted was granted, or the deadline: then it has
    /// left.
    pub(crate) fn wait(self, deadline: Deadline) -> Result<u32, Unserved> {
        let (inner, node, gfp) = (self.pool.inner(), self.node, self.node.gfp);
        inner.note_pressure();
        // Only now: what is freed from here on reaches this waiter, so nothing can hide from it.
        magazine::drain(inner);
        slab::take_back_all(inner);
        inner.reclaimers.wake();
        let mut tried = Unserved { reclaims: 0, freed: 0 };
        let mut pause = PAUSE_FIRST;
        loop {
            if node.granted().is_some() {
                return Ok(self.into_grant());
            }
            if deadline.has_passed() {
                break;
            }
            if node.caller.by_scope || !inner.reclaimers.any() {
                thread::park_until(deadline.0);
                continue;
            }
            if !node.is_entitled() && self.throttle(deadline) {
                continue;
            }
            let before = self.pool.frees();
            let wanted = inner.wanted();
            tried.reclaims += 1;
            tried.freed += u64::from(reclaim::direct(self.pool, gfp, wanted));
            if self.pool.frees() != before {
                pause = PAUSE_FIRST;
            } else if node.granted().is_none() {
                inner.reclaimers.wake();
                thread::park_until(deadline.at_most(pause));
                pause = (pause * 2).min(PAUSE_LAST);
            }
        }
        if self.leave() {
            std::mem::forget(self);
            Err(tried)
        } else {
            Ok(self.into_grant())
        }
    }

    /// What was granted.
    fn into_grant(self) -> u32 {
        let grant = self.node.wait_woken();
        std::mem::forget(self);
        grant
    }

    /// Leaves the queue; false if something was granted meanwhile.
    fn leave(&self) -> bool {
        let inner = self.pool.inner();
        let mut guard = inner.lock();
        let left = guard.waits.leave(self.node);
        // Those behind it may want less.
        let woken = inner.serve(&mut guard);
        inner.note_plenty(&mut guard);
        drop(guard);
        woken.wake();
        left
    }

    /// Waits while half of the floor is used. Returns whether it did; then things may look different.
    fn throttle(&self, deadline: Deadline) -> bool {
        let inner = self.pool.inner();
        let turn = Node::new(Want::Frame, self.node.gfp, self.node.caller);
        {
            let mut state = inner.lock();
            if !state.is_half_used() {
                return false;
            }
            // SAFETY: `turn` stays in this call until it is off the list or woken, see below.
            unsafe { state.waits.join_throttle(&turn) }
        }
        inner.counters.throttled.add(1);
        // Nothing in this loop can panic before the node is off the list.
        while turn.granted().is_none() && self.node.granted().is_none() && !deadline.has_passed() {
            thread::park_until(deadline.0);
        }
        if !inner.lock().waits.leave_throttle(&turn) {
            turn.wait_woken();
        }
        true
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.leave() {
            return;
        }
        // Granted to a waiter that is unwinding, which gives it up.
        let (grant, pool) = (self.node.wait_woken(), self.pool.raw());
        match self.node.want {
            // SAFETY: whoever granted the frame took it off the list for this waiter, once.
            Want::Frame => unsafe { Inner::free_shared(pool, grant) },
            Want::Promise(frames) => self.pool.inner().take_back_promise(frames, grant),
            // Made is made.
            Want::Change(..) => {}
        }
    }
}
