//! The reserve tree as a pool offers it: nodes, changes, charges, counters. [`crate::reserves`] is the
//! bookkeeping below.

use super::PagePool;
use crate::charge::{Amount, Charge};
use crate::gfp::Gfp;
use crate::inner::{CHANGE_MADE, Caller, Inner};
use crate::magazine;
use crate::queue::{Node, Want};
use crate::reclaim;
use crate::reserves::{self, Change, ReserveError, ReserveId, ReserveInfo};
use crate::state::State;
use crate::trace::TraceOp;
use crate::wait::{Deadline, Waiter};

impl PagePool {
    #[inline]
    fn node(&self, reserve: ReserveId) -> u16 {
        reserve.node(self.id())
    }

    /// Adds a node to the reserve tree, not yet connected: it promises nothing and cannot be
    /// charged until [`PagePool::connect`]. `limit` is what the node itself promises then.
    ///
    /// # Panics
    /// When `parent` is of another pool, or with more than 65,533 reserves.
    pub fn add_reserve(&self, parent: ReserveId, name: &str, limit: u32) -> ReserveId {
        let name = name.into();
        let parent = self.node(parent);
        let mut state = self.inner().lock();
        let node = state.tree.add(parent, name, limit);
        if state.recorder.is_some() {
            state.note(TraceOp::AddReserve { parent, own: limit });
        }
        ReserveId::new(self.id(), node)
    }

    /// Connects a node with all below it: its frames are added to its limit and to those above it,
    /// which raises the floor. Secures the frames first, or fails and changes nothing. Connecting what
    /// is connected changes nothing.
    ///
    /// # Errors
    /// [`ReserveError::CannotSecure`] when too few frames are free; reclaim is asked to run.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn connect(&self, reserve: ReserveId) -> Result<(), ReserveError> {
        self.change(&Change::Connect(self.node(reserve)))
    }

    /// Disconnects a node with all below it: nothing can be charged to them any more, and their frames
    /// are taken from the limits, which lowers the floor. What is still charged stays promised: the
    /// limits and the floor fall by the rest now, and by each charge as it is released.
    ///
    /// # Errors
    /// None at present: a node whose charges are outstanding drains as described.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn disconnect(&self, reserve: ReserveId) -> Result<(), ReserveError> {
        self.change(&Change::Disconnect(self.node(reserve)))
    }

    /// Sets what a node itself promises (the `limit` of [`PagePool::add_reserve`]). All or nothing, as
    /// connecting is. [`ReserveId::ROOT`] may be given frames of its own this way.
    ///
    /// # Errors
    /// [`ReserveError::CannotSecure`] when raising needs more frames than are free;
    /// [`ReserveError::InUse`] when a limit would fall below what is charged.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn resize(&self, reserve: ReserveId, limit: u32) -> Result<(), ReserveError> {
        self.change(&Change::Resize(self.node(reserve), limit))
    }

    /// As [`PagePool::connect`], but waits until `deadline` (a `Duration` or an `Instant`) for the frames,
    /// and reclaims meanwhile, as [`PagePool::alloc_wait`] does. Waiters for changes and for reservations are
    /// served in order of arrival; all who wait for a frame come before them.
    ///
    /// # Errors
    /// [`ReserveError::CannotSecure`] when the frames could not be secured until `deadline`; at once if they
    /// never can be as the pool is too small, and from inside reclaim.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn connect_until(
        &self,
        reserve: ReserveId,
        deadline: impl Into<Deadline>,
    ) -> Result<(), ReserveError> {
        self.change_until(Change::Connect(self.node(reserve)), deadline.into())
    }

    /// As [`PagePool::resize`], but waits until `deadline` for the frames, as
    /// [`PagePool::connect_until`] does.
    ///
    /// # Errors
    /// As [`PagePool::resize`]. [`ReserveError::InUse`] comes at once.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn resize_until(
        &self,
        reserve: ReserveId,
        limit: u32,
        deadline: impl Into<Deadline>,
    ) -> Result<(), ReserveError> {
        self.change_until(Change::Resize(self.node(reserve), limit), deadline.into())
    }

    fn change_until(&self, change: Change, deadline: Deadline) -> Result<(), ReserveError> {
        let inner = self.inner();
        let caller = Caller { entitled: None, by_scope: false };
        let (more, waits) = {
            let mut state = inner.lock();
            let floor = state.tree.plan(&change)?;
            let more = floor.saturating_sub(state.tree.floor());
            let possible = floor <= self.frames() && !reclaim::is_inside();
            (more, possible && more > 0 && state.waits.is_behind(caller))
        };
        if !waits {
            match self.change(&change) {
                Err(ReserveError::CannotSecure { wanted, .. }) if self.may_secure(wanted) => {}
                done => return done,
            }
        }
        let gfp = Gfp::KERNEL | reclaim::limits();
        let node = Node::new(Want::Change(change, more), gfp, caller);
        let note = |state: &mut State| state.tree.note_wait(change.node());
        let granted = match Waiter::served_or_queued(self, &node, note) {
            Ok(granted) => granted,
            // After the deadline: one attempt more, which says what is missing.
            Err(waiter) => waiter.wait(deadline).unwrap_or(!CHANGE_MADE),
        };
        if granted == CHANGE_MADE {
            inner.tell_alarms();
            Ok(())
        } else {
            self.change(&change)
        }
    }

    /// Whether waiting can help to secure so many frames more.
    fn may_secure(&self, wanted: u32) -> bool {
        let floor = self.inner().lock().tree.floor();
        u64::from(floor) + u64::from(wanted) <= u64::from(self.frames()) && !reclaim::is_inside()
    }

    fn change(&self, change: &Change) -> Result<(), ReserveError> {
        match self.try_change(change) {
            // What threads hold back may be what is to be promised.
            Err(ReserveError::CannotSecure { .. })
                if magazine::gather(self.inner(), Gfp::KERNEL) =>
            {
                self.try_change(change)
            }
            other => other,
        }
    }

    fn try_change(&self, change: &Change) -> Result<(), ReserveError> {
        let inner = self.inner();
        let mut guard = inner.lock();
        let state = &mut *guard;
        let result = inner.change_now(state, change);
        state.note_change(change, &result);
        // A floor that falls is memory for others.
        let woken = inner.serve(state);
        inner.note_plenty(state);
        let (alarm, short) = (state.tree.alarmed(), !state.plenty);
        drop(guard);
        woken.wake();
        if matches!(result, Err(ReserveError::CannotSecure { .. })) {
            inner.note_pressure();
        }
        if short || result.is_err() {
            inner.reclaimers.wake();
        }
        if alarm {
            inner.tell_alarms();
        }
        result
    }

    /// Charges `frames` frames to `reserve` for something that is not a frame itself. No memory is
    /// taken; what it stands for must have been.
    ///
    /// # Errors
    /// [`ReserveError::AtLimit`] when the node or one above it would exceed its limit, or the node is
    /// not connected. Nothing is charged then.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    pub fn charge(&self, reserve: ReserveId, frames: u32) -> Result<Charge, ReserveError> {
        let node = self.node(reserve);
        self.charge_with(node, Amount::Frames(frames))?;
        Ok(Charge { pool: self.inner, node, frames })
    }

    /// Frames charged to `reserve` and below now.
    pub fn reserve_usage(&self, reserve: ReserveId) -> u32 {
        self.inner().lock().tree.counters(self.node(reserve)).0
    }

    /// The most frames that were ever charged to `reserve` and below at once.
    pub fn reserve_peak(&self, reserve: ReserveId) -> u32 {
        self.inner().lock().tree.counters(self.node(reserve)).1
    }

    /// What may be charged to `reserve` and below now, in frames: what the connected nodes there
    /// promise together. The root's limit is the floor.
    pub fn reserve_limit(&self, reserve: ReserveId) -> u32 {
        self.inner().lock().tree.counters(self.node(reserve)).2
    }

    /// Times that somebody waited for `reserve`.
    pub fn reserve_waits(&self, reserve: ReserveId) -> u64 {
        self.inner().lock().tree.waits(self.node(reserve))
    }

    /// Charges that `reserve` refused; each is counted at the node that was full.
    pub fn reserve_failures(&self, reserve: ReserveId) -> u64 {
        self.inner().lock().tree.counters(self.node(reserve)).3
    }

    /// The counters of every node, parents before children.
    pub fn reserve_info(&self) -> Vec<ReserveInfo> {
        loop {
            let nodes = self.inner().lock().tree.len();
            // Room is made outside the lock; whoever adds a node meanwhile makes us look again.
            let mut infos = Vec::with_capacity(nodes);
            let state = self.inner().lock();
            if state.tree.len() <= infos.capacity() {
                state.tree.info(self.id(), &mut infos);
                return infos;
            }
        }
    }

    /// The reserve tree for people to read, as `/proc/reserve_info` of the kernel patches shows it.
    pub fn reserve_report(&self) -> String {
        reserves::report(&self.reserve_info())
    }
}

impl Inner {
    /// Makes a change of the tree if its frames can be secured now; nothing is changed otherwise.
    pub(crate) fn change_now(
        &self,
        state: &mut State,
        change: &Change,
    ) -> Result<(), ReserveError> {
        let floor = state.tree.plan(change)?;
        let now = state.tree.floor();
        if floor > now && self.config.reserve && state.can_promise() < floor {
            return Err(ReserveError::CannotSecure {
                name: state.tree.name(change.node()),
                wanted: floor - now,
                free: state.free,
            });
        }
        state.tree.commit(change);
        self.note_floor(state);
        Ok(())
    }
}
