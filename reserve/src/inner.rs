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
//! - `free + charged >= floor`: each promised frame is free or in use by an entitled caller, so a
//!   charge that succeeds finds a frame (with the reserve ablated, floor counts as 0 and this is void).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::frame::FrameId;
use crate::gfp::Gfp;
use crate::lock::{Guard, SpinLock};
use crate::pool::{AllocError, PoolConfig, PoolError, Watermarks};
use crate::region::{MARKED, PARKED, Region};
use crate::reserves::{Change, ReserveError, ReserveId, Tree};
use crate::trace::{Recorder, Taken, TraceOp, Who};

/// The end of the free list.
const NIL: u32 = u32::MAX;

/// What a thread may hold back at most; see [`PoolConfig::magazine`].
pub(crate) const MAGAZINE_MAX: usize = 64;

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
    /// Free memory is above low and the pool is open: magazines may be used. Written under the lock.
    pub(crate) plenty: AtomicBool,
    /// The last handle is gone. Written once, under the lock.
    pub(crate) closed: AtomicBool,
    pub(crate) pressure: AtomicBool,
    pub(crate) state: Padded<SpinLock<State>>,
}

pub(crate) struct State {
    head: u32,
    /// Frames from here on were never used. They are contiguous, which runs set aside at start want.
    fresh: u32,
    pub(crate) free: u32,
    pub(crate) lowest_free: u32,
    /// Frames that are out and charged.
    charged: u32,
    pub(crate) frees: u64,
    /// Live `Charge` objects, which hold no frame.
    pub(crate) charges: u64,
    pub(crate) closed: bool,
    plenty: bool,
    pub(crate) marks: Watermarks,
    pub(crate) tree: Tree,
    /// Notes every operation, if somebody records them.
    pub(crate) recorder: Option<Box<Recorder>>,
}

/// Who asks, apart from the flags of the call.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    /// The reserve it may use.
    pub(crate) entitled: Option<ReserveId>,
    /// Whether that comes from the ambient scope.
    pub(crate) by_scope: bool,
}

impl Inner {
    pub(crate) fn new(config: PoolConfig) -> Result<Inner, PoolError> {
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
        let marks = watermarks(&config, 0);
        let plenty = config.frames > marks.low;
        Ok(Inner {
            id,
            magazine: config.magazine.min(MAGAZINE_MAX as u32),
            region,
            handles: AtomicUsize::new(1),
            plenty: AtomicBool::new(plenty),
            closed: AtomicBool::new(false),
            pressure: AtomicBool::new(false),
            state: Padded(SpinLock::new(State {
                head: NIL,
                fresh: 0,
                free: config.frames,
                lowest_free: config.frames,
                charged: 0,
                frees: 0,
                charges: 0,
                closed: false,
                plenty,
                marks,
                tree: Tree::new(),
                recorder: None,
            })),
            config,
        })
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, State> {
        self.state.0.lock()
    }

    /// Takes one frame off the shared list, and up to `extra` more for the caller's magazine, which go
    /// to `stock`: only while memory is above low, so that no thread hoards what is short.
    #[inline]
    pub(crate) fn take(
        &self,
        gfp: Gfp,
        caller: Caller,
        extra: u32,
        stock: impl FnMut(u32),
    ) -> Result<u32, AllocError> {
        let guard = self.lock();
        if guard.recorder.is_some() {
            let Caller { entitled, by_scope } = caller;
            let entitled = entitled.map_or(u64::MAX, ReserveId::pack);
            return self.take_noted(guard, gfp, entitled, by_scope, extra, stock);
        }
        self.take_locked::<false>(guard, gfp, caller, extra, stock)
    }

    /// A copy of its own, so that what is noted costs the other one neither room nor registers. For the same
    /// reason the caller comes in pieces that fit registers: as a whole it would be stored for every call.
    #[cold]
    #[inline(never)]
    fn take_noted(
        &self,
        guard: Guard<'_, State>,
        gfp: Gfp,
        entitled: u64,
        by_scope: bool,
        extra: u32,
        stock: impl FnMut(u32),
    ) -> Result<u32, AllocError> {
        let entitled = (entitled != u64::MAX).then(|| ReserveId::unpack(entitled));
        let caller = Caller { entitled, by_scope };
        self.take_locked::<true>(guard, gfp, caller, extra, stock)
    }

    #[inline(always)]
    fn take_locked<const NOTED: bool>(
        &self,
        mut guard: Guard<'_, State>,
        gfp: Gfp,
        caller: Caller,
        extra: u32,
        mut stock: impl FnMut(u32),
    ) -> Result<u32, AllocError> {
        let state = &mut *guard;
        let charge = match self.admit(state, gfp, caller) {
            Ok(charge) => charge,
            Err(error) => {
                if NOTED {
                    state.note_and_check(self.op_alloc(gfp, caller, false, Err(error)));
                }
                drop(guard);
                self.note_pressure();
                return Err(error);
            }
        };
        let index = state.pop(&self.region);
        if charge != 0 {
            self.region.meta[index as usize].charge.store(charge, Ordering::Relaxed);
            state.charged += 1;
            self.note_pressure();
        } else if extra > 0 {
            for _ in 0..extra.min(state.free.saturating_sub(state.marks.low)) {
                stock(state.pop(&self.region));
            }
        }
        state.lowest_free = state.lowest_free.min(state.free);
        self.note_plenty(state);
        if NOTED {
            state.note_and_check(self.op_alloc(gfp, caller, false, Ok((index, charge))));
        }
        drop(guard);
        Ok(index)
    }

    /// An allocation, as a trace has it.
    #[cold]
    fn op_alloc(
        &self,
        gfp: Gfp,
        caller: Caller,
        more: bool,
        result: Result<(u32, u16), AllocError>,
    ) -> TraceOp {
        let who = match caller.entitled.map(|reserve| reserve.node(self.id)) {
            None => Who::Nobody,
            Some(node) if caller.by_scope => Who::Scope(node),
            Some(node) => Who::Call(node),
        };
        let taken = |(frame, charge)| Taken { frame, charged: charge != 0 };
        TraceOp::Alloc { gfp, who, more, outcome: result.map(taken).map_err(Into::into) }
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
            let entitled = entitled.map_or(u64::MAX, ReserveId::pack);
            return self.take_burst_noted(guard, gfp, entitled, by_scope, n, out);
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
        let entitled = (entitled != u64::MAX).then(|| ReserveId::unpack(entitled));
        let caller = Caller { entitled, by_scope };
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
            dipped = true;
        }
        for i in together.map_or(0, |(_, k)| k as usize)..n {
            match self.admit(state, gfp, caller) {
                Ok(charge) => {
                    let index = state.pop(&self.region);
                    if charge != 0 {
                        let meta = &self.region.meta[index as usize];
                        meta.charge.store(charge, Ordering::Relaxed);
                        state.charged += 1;
                        dipped = true;
                    }
                    if NOTED {
                        state.note(self.op_alloc(gfp, caller, i > 0, Ok((index, charge))));
                    }
                    out(index);
                }
                Err(error) => {
                    if NOTED {
                        state.note(self.op_alloc(gfp, caller, i > 0, Err(error)));
                    }
                    result = Err(error);
                    break;
                }
            }
        }
        state.lowest_free = state.lowest_free.min(state.free);
        self.note_plenty(state);
        drop(guard);
        if dipped || result.is_err() {
            self.note_pressure();
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
    #[inline]
    fn admit(&self, state: &mut State, gfp: Gfp, caller: Caller) -> Result<u16, AllocError> {
        let watermark = state.watermark(gfp);
        if state.free > watermark {
            return Ok(0);
        }
        let free = state.free;
        match caller.entitled.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            None => Err(AllocError::AtWatermark { free, watermark }),
            // Asked before the charge, so there is no charge to give back.
            Some(_) if free == 0 => Err(AllocError::Exhausted),
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
        true
    }

    #[inline]
    pub(crate) fn note_pressure(&self) {
        self.pressure.store(true, Ordering::Relaxed);
    }

    /// Tells the readers of `plenty` when it changes; the line stays shared as long as it does not.
    #[inline]
    pub(crate) fn note_plenty(&self, state: &mut State) {
        let plenty = state.free > state.marks.low && !state.closed;
        if plenty != state.plenty {
            state.plenty = plenty;
            self.plenty.store(plenty, Ordering::Relaxed);
        }
    }

    /// Follows a floor that moved.
    pub(crate) fn note_floor(&self, state: &mut State) {
        state.marks = watermarks(&self.config, state.tree.floor());
        self.note_plenty(state);
    }

    /// Makes a change of the tree, or fails and changes nothing.
    pub(crate) fn change(&self, state: &mut State, change: &Change) -> Result<(), ReserveError> {
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
        state.lowest_free = state.lowest_free.min(state.free);
        self.note_plenty(state);
        if state.recorder.is_some() {
            state.note(TraceOp::SetAside { frames: n, outcome: result.map_err(Into::into) });
        }
        drop(guard);
        if result.is_err() {
            self.note_pressure();
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

    /// Releases the charge of a `Charge`, and frees the pool if that was the last of it.
    ///
    /// # Safety
    /// The caller is a live `Charge` of `pool` over `n` frames at `node`, and ends here.
    pub(crate) unsafe fn release_charge(pool: NonNull<Inner>, node: u16, n: u32) {
        let last = {
            // SAFETY: the charge is counted in `charges`, which keeps the pool alive until it is
            // taken off, under the lock that ends with this block.
            let inner = unsafe { pool.as_ref() };
            let mut guard = inner.lock();
            let state = &mut *guard;
            if state.recorder.is_some() {
                state.note(TraceOp::Uncharge { node, frames: n });
            }
            if state.tree.uncharge(node, n) {
                inner.note_floor(state);
            }
            state.charges -= 1;
            state.all_back(inner.config.frames)
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
            // SAFETY: not closed yet, so nobody else frees it; after the unlock it is not touched.
            let inner = unsafe { pool.as_ref() };
            let mut guard = inner.lock();
            let state = &mut *guard;
            state.closed = true;
            // Sequentially consistent with `park`: either it sees this, or the walk sees its frame.
            inner.closed.store(true, Ordering::SeqCst);
            inner.note_plenty(state);
            // Parked frames are owned by the pool, and nobody is left to ask for them.
            for index in 0..state.fresh {
                if inner.unpark(index) {
                    state.push(&inner.region, index);
                    inner.release(state, index);
                }
            }
            (state.all_back(inner.config.frames), inner.config.frames - state.free)
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
    unsafe fn destroy(pool: NonNull<Inner>) {
        // SAFETY: made by `Box::into_raw` in `PagePool::try_new`; the caller is the last to reach it.
        drop(unsafe { Box::from_raw(pool.as_ptr()) });
    }
}

impl State {
    #[inline]
    fn watermark(&self, gfp: Gfp) -> u32 {
        if gfp.contains(Gfp::ATOMIC) {
            self.marks.atomic
        } else if gfp.contains(Gfp::SPECULATIVE) {
            self.marks.low
        } else {
            self.marks.min
        }
    }

    /// Whether everything that a closed pool gave out is back.
    fn all_back(&self, frames: u32) -> bool {
        self.closed && self.free == frames && self.charges == 0
    }

    /// Frames that could be promised: those free, and those in use by entitled callers already.
    pub(crate) fn can_promise(&self) -> u32 {
        self.free + self.charged
    }

    /// Takes a frame; the caller has checked that one is free.
    #[inline]
    fn pop(&mut self, region: &Region) -> u32 {
        debug_assert!(self.free > 0);
        self.free -= 1;
        if self.head != NIL {
            let index = self.head;
            let meta = &region.meta[index as usize];
            self.head = meta.refs.load(Ordering::Relaxed);
            index
        } else {
            let index = self.fresh;
            self.fresh += 1;
            index
        }
    }

    #[inline]
    fn push(&mut self, region: &Region, index: u32) {
        region.meta[index as usize].refs.store(self.head, Ordering::Relaxed);
        self.head = index;
        self.free += 1;
    }

    fn pop_run(&mut self, region: &Region, n: u32) -> Option<u32> {
        if n <= region.meta.len() as u32 - self.fresh {
            let first = self.fresh;
            self.fresh += n;
            self.free -= n;
            return Some(first);
        }
        // Marks what is on the list, looks for a run of marks (or of frames never used), and links
        // the list anew without it.
        let mut at = self.head;
        while at != NIL {
            let meta = &region.meta[at as usize];
            meta.flags.store(MARKED, Ordering::Relaxed);
            at = meta.refs.load(Ordering::Relaxed);
        }
        let mut length = 0;
        let mut end = 0;
        for (index, meta) in region.meta.iter().enumerate() {
            let free = index as u32 >= self.fresh || meta.flags.load(Ordering::Relaxed) == MARKED;
            length = if free { length + 1 } else { 0 };
            if length == n {
                end = index as u32 + 1;
                break;
            }
        }
        let run = end.saturating_sub(n)..end;
        let (mut at, mut last) = (self.head, NIL);
        self.head = NIL;
        while at != NIL {
            let meta = &region.meta[at as usize];
            meta.flags.store(0, Ordering::Relaxed);
            let next = meta.refs.load(Ordering::Relaxed);
            if !run.contains(&at) {
                match last {
                    NIL => self.head = at,
                    last => region.meta[last as usize].refs.store(at, Ordering::Relaxed),
                }
                meta.refs.store(NIL, Ordering::Relaxed);
                last = at;
            }
            at = next;
        }
        if run.is_empty() {
            return None;
        }
        self.fresh = self.fresh.max(run.end);
        self.free -= n;
        Some(run.start)
    }
}

fn watermarks(config: &PoolConfig, promised: u32) -> Watermarks {
    let floor = if config.reserve { promised } else { 0 };
    let min = floor.saturating_add(config.headroom);
    let low = min.saturating_add(config.low_gap);
    Watermarks {
        floor,
        atomic: floor.saturating_add(config.headroom / 2),
        min,
        low,
        high: low.saturating_add(config.high_gap),
    }
}
