//! The inside of a pool: its free list, its counts and its tree of reserves, under one short lock.
//!
//! # Who keeps the region mapped
//!
//! A pool is reached through *holders*: [`PagePool`](crate::PagePool) handles, frames that are out
//! (including those in a thread's magazine, and parked ones), and charges. Handles are counted by an
//! atomic; frames and charges are counted under the lock anyway, so a frame needs no count of its own.
//! When the last handle goes it sets `closed` under the lock. From then on whoever gives something
//! back checks, under the same lock, whether everything is back, and the one who finds it so frees the
//! pool. It is the only one left: no handle exists to make new holders, and every other former holder
//! has given the lock back as its very last access. Nobody touches `Inner` after such an unlock.
//!
//! # Invariants under the lock
//!
//! - A frame that is free has no charge; nor has one in a magazine or a run.
//! - `free` = length of the list + frames never used yet; frames are in one place each.
//! - `free + charged >= floor + reserved`: each promised frame is free or in use by an entitled caller,
//!   so a charge that succeeds finds a frame, and so does a reservation (with the reserve ablated,
//!   floor and `charged` count as 0).

mod end;
mod serve;
mod stocks;

use std::ptr::NonNull;

use crate::frame::FrameId;
use crate::gfp::Gfp;
use crate::lock::{Guard, SpinLock};
use crate::pool::{AllocError, PoolConfig, PoolError};
use crate::reclaim::Reclaimers;
use crate::region::Region;
use crate::reservation::Reservations;
use crate::reserves::{ReserveId, Tree};
pub(crate) use crate::state::Caller;
use crate::state::{NIL, State, watermarks};
use crate::stats::Counters;
use crate::stock::{Door, STOCK_MAX};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::trace::{Taken, TraceOp};
use crate::wait::WaitQueue;
pub(crate) use serve::CHANGE_MADE;

/// What a thread may hold back at most; see [`PoolConfig::magazine`].
pub(crate) const MAGAZINE_MAX: usize = STOCK_MAX;

/// What all threads read and few write comes first, on lines of its own; the lock and what it guards
/// follow.
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

pub(crate) struct Inner {
    pub(crate) id: u32,
    /// Frames a thread may hold back: `config.magazine`, bounded.
    pub(crate) magazine: u32,
    pub(crate) region: Region,
    pub(crate) config: PoolConfig,
    pub(crate) handles: AtomicUsize,
    /// Open while free memory is above low and nobody drains: magazines may be used. Written under the
    /// lock.
    pub(crate) door: Door,
    /// The last handle is gone. Written once, under the lock.
    pub(crate) closed: AtomicBool,
    pub(crate) pressure: AtomicBool,
    pub(crate) reclaimers: Reclaimers,
    pub(crate) counters: Counters,
    pub(crate) state: Padded<SpinLock<State>>,
}

/// Pools freed so far, for the models.
#[cfg(loom)]
pub(crate) static DESTROYED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Inner {
    pub(crate) fn new(config: PoolConfig) -> Result<Inner, PoolError> {
        use std::sync::atomic::AtomicU32;
        static NEXT: AtomicU32 = AtomicU32::new(1);
        if config.frames == 0 {
            return Err(PoolError::NoFrames);
        }
        if config.frames == NIL {
            return Err(PoolError::TooManyFrames { frames: config.frames });
        }
        let region = Region::map(config.frames, &config.backing)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(id != 0, "a process makes fewer than 2^32 pools");
        let marks = watermarks(&config, 0, 0);
        let plenty = config.frames > marks.low;
        Ok(Inner {
            id,
            magazine: config.magazine.min(MAGAZINE_MAX as u32),
            region,
            handles: AtomicUsize::new(1),
            door: Door::new(plenty, config.magazine > 0),
            closed: AtomicBool::new(false),
            pressure: AtomicBool::new(false),
            reclaimers: Reclaimers::new(),
            counters: Counters::default(),
            state: Padded(SpinLock::new(State {
                head: NIL,
                fresh: 0,
                free: config.frames,
                lowest_free: config.frames,
                charged: 0,
                frees: 0,
                charges: 0,
                closed: false,
                closing: false,
                open_above: marks.low,
                plenty,
                draining: false,
                drained: !plenty,
                waits: WaitQueue::new(),
                marks,
                tree: Tree::new(),
                reservations: Reservations::default(),
                recorder: None,
            })),
            config,
        })
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, State> {
        self.state.0.lock()
    }

    /// Takes one frame off the shared list.
    #[inline]
    pub(crate) fn take(&self, gfp: Gfp, caller: Caller) -> Result<u32, AllocError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.recorder.is_some() {
            let Caller { entitled, by_scope } = caller;
            return self.take_noted(guard, gfp, pack(entitled), by_scope);
        }
        if state.free <= state.watermark(gfp) {
            return self.take_entitled(guard, gfp, caller);
        }
        let index = state.pop(&self.region);
        state.lowest_free = state.lowest_free.min(state.free);
        let short = self.note_plenty(state);
        drop(guard);
        if short {
            self.reclaimers.wake();
        }
        Ok(index)
    }

    /// A copy of its own, so that what is noted costs the other one neither room nor registers. For the same
    /// reason the caller comes in pieces that fit registers: as a whole it would be stored for every call.
    #[cold]
    #[inline(never)]
    fn take_noted(
        &self,
        mut guard: Guard<'_, State>,
        gfp: Gfp,
        entitled: u64,
        by_scope: bool,
    ) -> Result<u32, AllocError> {
        let caller = Caller { entitled: unpack(entitled), by_scope };
        let state = &mut *guard;
        let taken = self.take_now(state, gfp, caller);
        state.note_and_check(self.op_alloc(gfp, caller, false, taken));
        let short = self.note_plenty(state);
        let alarm = state.tree.alarmed();
        drop(guard);
        self.note_taken(&taken, short, alarm);
        taken.map(|(index, _)| index)
    }

    /// An allocation, as a trace has it.
    #[cold]
    pub(crate) fn op_alloc(
        &self,
        gfp: Gfp,
        caller: Caller,
        more: bool,
        result: Result<(u32, u16), AllocError>,
    ) -> TraceOp {
        let who = self.who(caller);
        let taken = |(frame, charge)| Taken { frame, charged: charge != 0 };
        TraceOp::Alloc { gfp, who, more, outcome: result.map(taken).map_err(Into::into) }
    }

    /// The part of [`Inner::take`] that an ordinary allocation does not come to.
    #[inline]
    fn take_entitled(
        &self,
        mut guard: Guard<'_, State>,
        gfp: Gfp,
        caller: Caller,
    ) -> Result<u32, AllocError> {
        let state = &mut *guard;
        let charge = match self.admit(state, gfp, caller) {
            Ok(charge) => charge,
            Err(error) => {
                let alarm = state.tree.alarmed();
                drop(guard);
                self.note_taken(&Err(error), false, alarm);
                return Err(error);
            }
        };
        let index = state.pop(&self.region);
        if charge != 0 {
            self.region.meta[index as usize].charge.store(charge, Ordering::Relaxed);
            state.charged += 1;
        }
        // At or below min memory was short before: no door is to be closed.
        state.lowest_free = state.lowest_free.min(state.free);
        let alarm = state.tree.alarmed();
        drop(guard);
        if charge != 0 {
            self.note_pressure();
            self.reclaimers.wake();
        }
        if alarm {
            self.tell_alarms();
        }
        Ok(index)
    }

    /// What follows an attempt, after the lock: memory became short, a reserve was charged, a node has
    /// passed a level, nothing was to be had.
    #[inline]
    fn note_taken(&self, taken: &Result<(u32, u16), AllocError>, short: bool, alarm: bool) {
        let pressed = !matches!(taken, Ok((_, 0)));
        if pressed {
            self.note_pressure();
        }
        if pressed || short {
            self.reclaimers.wake();
        }
        if alarm {
            self.tell_alarms();
        }
    }

    /// Takes one frame if the caller may have it, with what it was charged to.
    #[inline(always)]
    pub(crate) fn take_now(
        &self,
        state: &mut State,
        gfp: Gfp,
        caller: Caller,
    ) -> Result<(u32, u16), AllocError> {
        let charge = self.admit(state, gfp, caller)?;
        let index = state.pop(&self.region);
        if charge != 0 {
            self.region.meta[index as usize].charge.store(charge, Ordering::Relaxed);
            state.charged += 1;
        }
        state.lowest_free = state.lowest_free.min(state.free);
        Ok((index, charge))
    }

    /// As [`Inner::take`] for `n` frames at one turn of the lock, each admitted by itself. Stops at the
    /// first that is refused.
    pub(crate) fn take_burst(
        &self,
        gfp: Gfp,
        caller: Caller,
        n: usize,
        out: impl FnMut(u32),
    ) -> Result<(), AllocError> {
        let guard = self.lock();
        if guard.recorder.is_some() {
            let Caller { entitled, by_scope } = caller;
            return self.take_burst_noted(guard, gfp, pack(entitled), by_scope, n, out);
        }
        self.take_burst_locked::<false>(guard, gfp, caller, n, out)
    }

    #[cold]
    #[inline(never)]
    fn take_burst_noted(
        &self,
        guard: Guard<'_, State>,
        gfp: Gfp,
        entitled: u64,
        by_scope: bool,
        n: usize,
        out: impl FnMut(u32),
    ) -> Result<(), AllocError> {
        let caller = Caller { entitled: unpack(entitled), by_scope };
        self.take_burst_locked::<true>(guard, gfp, caller, n, out)
    }

    #[inline(always)]
    fn take_burst_locked<const NOTED: bool>(
        &self,
        mut guard: Guard<'_, State>,
        gfp: Gfp,
        caller: Caller,
        n: usize,
        mut out: impl FnMut(u32),
    ) -> Result<(), AllocError> {
        let state = &mut *guard;
        let mut result = Ok(());
        let mut dipped = false;
        let together = self.admit_together(state, gfp, caller, n);
        if let Some((charge, k)) = together {
            for i in 0..k {
                let index = state.pop(&self.region);
                self.region.meta[index as usize].charge.store(charge, Ordering::Relaxed);
                if NOTED {
                    state.note(self.op_alloc(gfp, caller, i > 0, Ok((index, charge))));
                }
                out(index);
            }
            state.lowest_free = state.lowest_free.min(state.free);
            dipped = true;
        }
        for i in together.map_or(0, |(_, k)| k as usize)..n {
            let taken = self.take_now(state, gfp, caller);
            if NOTED {
                state.note(self.op_alloc(gfp, caller, i > 0, taken));
            }
            match taken {
                Ok((index, charge)) => {
                    dipped |= charge != 0;
                    out(index);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let short = self.note_plenty(state);
        let alarm = dipped && state.tree.alarmed();
        drop(guard);
        if dipped || result.is_err() {
            self.note_pressure();
        }
        if dipped || result.is_err() || short {
            self.reclaimers.wake();
        }
        if alarm {
            self.tell_alarms();
        }
        result
    }

    /// The common case of a burst at the floor: nothing is left for ordinary callers, and the reserve
    /// has room for all `n`. One charge of all is the same as `n` charges of one. `None` if it is not
    /// this case, with nothing changed (and no failure counted).
    #[inline]
    fn admit_together(
        &self,
        state: &mut State,
        gfp: Gfp,
        caller: Caller,
        n: usize,
    ) -> Option<(u16, u32)> {
        let n = u32::try_from(n).ok().filter(|n| *n > 0)?;
        let reserve = caller.entitled.filter(|_| !gfp.contains(Gfp::NOMEMALLOC))?;
        if state.free > state.watermark(gfp) || state.free < n || !self.config.reserve {
            return None;
        }
        let node = reserve.node(self.id);
        if !state.tree.has_room(node, n) {
            return None;
        }
        state.tree.charge(node, n).ok()?;
        state.charged += n;
        Some((node + 1, n))
    }

    /// Decides whether the caller may take a frame, in the order of the promise: ordinary first, then
    /// the charge, then the frame. Returns what to write into the frame's `charge`.
    #[inline(always)]
    fn admit(&self, state: &mut State, gfp: Gfp, caller: Caller) -> Result<u16, AllocError> {
        let watermark = state.watermark(gfp);
        if state.free > watermark {
            return Ok(0);
        }
        let free = state.free;
        match caller.entitled.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            None => Err(AllocError::AtWatermark { free, watermark }),
            // Asked before the charge, so there is no charge to give back. What is reserved is not there
            // for others.
            Some(_) if free <= state.reservations.frames => Err(AllocError::Exhausted),
            // Ablated: what a kernel without reserves does. A scope takes anything, a call nothing.
            Some(_) if !self.config.reserve && caller.by_scope => Ok(0),
            Some(_) if !self.config.reserve => Err(AllocError::AtWatermark { free, watermark }),
            Some(reserve) => {
                let node = reserve.node(self.id);
                match state.tree.charge(node, 1) {
                    Ok(()) => Ok(node + 1),
                    Err(_) => Err(AllocError::ReserveUsedUp { reserve }),
                }
            }
        }
    }

    /// Whether the ordinary allocation that `gfp` describes would succeed now; then the charge of the
    /// frame is released, and the frame counts as the one that the allocation would have taken.
    pub(crate) fn exchange(&self, index: u32, gfp: Gfp) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        if self.region.meta[index as usize].charge.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let done = state.free > state.watermark(gfp);
        if state.recorder.is_some() {
            state.note(TraceOp::Exchange { frame: index, gfp, done });
        }
        if !done {
            drop(guard);
            self.note_pressure();
            return false;
        }
        self.release(state, index);
        let woken = self.serve(state);
        self.note_plenty(state);
        drop(guard);
        woken.wake();
        true
    }

    #[inline]
    pub(crate) fn note_pressure(&self) {
        self.pressure.store(true, Ordering::Relaxed);
    }

    /// Opens or closes the door when free memory crosses low; its line stays shared as long as it does
    /// not. Returns whether memory just became short.
    #[inline]
    pub(crate) fn note_plenty(&self, state: &mut State) -> bool {
        let plenty = state.free > state.open_above;
        if plenty == state.plenty {
            return false;
        }
        state.plenty = plenty;
        state.drained &= !plenty;
        self.door.set(plenty);
        !plenty
    }

    /// Follows a change of what opens the door.
    fn note_door(&self, state: &mut State) {
        let shut = state.closed || state.draining;
        state.open_above = if shut { u32::MAX } else { state.marks.low };
        self.note_plenty(state);
    }

    /// Follows a floor that moved.
    pub(crate) fn note_floor(&self, state: &mut State) {
        state.marks = watermarks(&self.config, state.tree.floor(), state.reservations.frames);
        self.note_door(state);
    }

    pub(crate) fn charged_to(&self, id: FrameId) -> Option<ReserveId> {
        let charge = self.region.meta[id.0 as usize].charge.load(Ordering::Relaxed);
        charge.checked_sub(1).map(|node| ReserveId::new(self.id, node))
    }

    /// Puts frames back on the shared list, each before its charge is released. Returns whether the
    /// pool is closed and everything is back: then the caller is the last one and frees it.
    #[inline]
    pub(crate) fn put(&self, indices: impl IntoIterator<Item = u32>) -> bool {
        let guard = self.lock();
        if guard.recorder.is_some() {
            return self.put_noted(guard, indices);
        }
        self.put_locked::<false>(guard, indices)
    }

    #[cold]
    #[inline(never)]
    fn put_noted(&self, guard: Guard<'_, State>, indices: impl IntoIterator<Item = u32>) -> bool {
        self.put_locked::<true>(guard, indices)
    }

    #[inline(always)]
    fn put_locked<const NOTED: bool>(
        &self,
        mut guard: Guard<'_, State>,
        indices: impl IntoIterator<Item = u32>,
    ) -> bool {
        let state = &mut *guard;
        // Frames in a row that are charged to one node are released together, after they are back.
        let (mut run, mut length) = (0, 0);
        let mut more = false;
        for index in indices {
            if NOTED {
                state.note(TraceOp::Free { frame: index, more });
                more = true;
            }
            state.push(&self.region, index);
            state.frees += 1;
            let meta = &self.region.meta[index as usize];
            let charge = meta.charge.load(Ordering::Relaxed);
            if charge != 0 {
                meta.charge.store(0, Ordering::Relaxed);
            }
            if charge != run {
                self.release_run(state, run, length);
                (run, length) = (charge, 0);
            }
            length += 1;
        }
        self.release_run(state, run, length);
        if !state.waits.is_empty() {
            return self.settle(guard);
        }
        self.note_plenty(state);
        state.all_back(self.config.frames)
    }

    /// Releases the charge of a frame, if it has one.
    #[inline]
    fn release(&self, state: &mut State, index: u32) {
        let meta = &self.region.meta[index as usize];
        let charge = meta.charge.load(Ordering::Relaxed);
        if charge != 0 {
            meta.charge.store(0, Ordering::Relaxed);
            self.release_run(state, charge, 1);
        }
    }

    /// Releases what `n` frames had in their `charge`.
    #[inline]
    fn release_run(&self, state: &mut State, charge: u16, n: u32) {
        if charge != 0 {
            state.charged -= n;
            if state.tree.uncharge(charge - 1, n) {
                self.note_floor(state);
            }
        }
    }

    /// Finds `n` contiguous free frames and takes them off the list; at start, where a walk over the
    /// list under the lock disturbs nobody.
    pub(crate) fn take_run(&self, n: u32) -> Result<u32, AllocError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (free, watermark) = (state.free, state.marks.min);
        let result = if u64::from(free) < u64::from(watermark) + u64::from(n) {
            Err(AllocError::AtWatermark { free, watermark })
        } else {
            state.pop_run(&self.region, n).ok_or(AllocError::Exhausted)
        };
        if state.recorder.is_some() {
            state.note(TraceOp::SetAside { frames: n, outcome: result.map_err(Into::into) });
        }
        state.lowest_free = state.lowest_free.min(state.free);
        let short = self.note_plenty(state);
        drop(guard);
        if result.is_err() {
            self.note_pressure();
        }
        if result.is_err() || short {
            self.reclaimers.wake();
        }
        result
    }

    /// Frees a frame whose handle ended, and the pool with it if that was the last.
    ///
    /// # Safety
    /// `pool` is alive, the caller owns the frame `index` of it and gives it up here.
    #[inline]
    pub(crate) unsafe fn free_shared(pool: NonNull<Inner>, index: u32) {
        // SAFETY: the frame is out, which keeps the pool alive until it is put back.
        let last = unsafe { pool.as_ref() }.put([index]);
        if last {
            // SAFETY: `put` said that the pool is closed and everything is back.
            unsafe { Inner::destroy(pool) }
        }
    }

    /// As [`Inner::free_shared`] for a number of frames at one turn of the lock.
    ///
    /// # Safety
    /// As there, for each of them; there is at least one.
    pub(crate) unsafe fn free_many(pool: NonNull<Inner>, indices: impl IntoIterator<Item = u32>) {
        // SAFETY: as in `free_shared`.
        let last = unsafe { pool.as_ref() }.put(indices);
        if last {
            // SAFETY: as in `free_shared`.
            unsafe { Inner::destroy(pool) }
        }
    }
}

/// Who is entitled, in one register.
#[inline]
fn pack(entitled: Option<ReserveId>) -> u64 {
    entitled.map_or(u64::MAX, ReserveId::pack)
}

#[inline]
fn unpack(packed: u64) -> Option<ReserveId> {
    (packed != u64::MAX).then(|| ReserveId::unpack(packed))
}
