//! Magazines: a few frames that a thread holds back for its own next allocations.
//!
//! A frame taken from the magazine or put into it costs no atomic read-modify-write and no shared
//! cache line. Frames get in while memory is plentiful only (above the low watermark), in batches, and
//! count as taken: a magazine never holds what an emergency caller or a waiter could want.
//!
//! Each thread has one magazine for each of a few pools. The invariant that makes the raw pool pointer
//! sound: *a magazine that is not empty keeps its pool alive*, as its frames are out. A pointer beside
//! an empty magazine may dangle; it is compared, never followed.

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;

use crate::gfp::Gfp;
use crate::inner::{Caller, Inner, MAGAZINE_MAX};
use crate::pool::{AllocError, PagePool};

/// Magazines of a thread; a thread that uses more pools at a time shares them out. A power of two.
const SLOTS: usize = 4;

struct Magazine {
    pool: Cell<*const Inner>,
    len: Cell<u32>,
    frames: [Cell<u32>; MAGAZINE_MAX],
}

thread_local! {
    static MAGAZINES: [Magazine; SLOTS] = const {
        [const {
            Magazine {
                pool: Cell::new(ptr::null()),
                len: Cell::new(0),
                frames: [const { Cell::new(0) }; MAGAZINE_MAX],
            }
        }; SLOTS]
    };
    /// Has a destructor, which the magazines themselves must not have: they are used without a check
    /// whether the thread is ending. Touched whenever a magazine is taken for a pool.
    static AT_EXIT: FlushAtExit = const { FlushAtExit };
}

struct FlushAtExit;

impl Drop for FlushAtExit {
    fn drop(&mut self) {
        MAGAZINES.with(|all| all.iter().for_each(Magazine::give_up));
    }
}

impl Magazine {
    #[inline]
    fn is_of(&self, pool: &Inner) -> bool {
        ptr::eq(self.pool.get(), pool)
    }

    #[inline]
    fn pop(&self) -> Option<u32> {
        let len = self.len.get().checked_sub(1)?;
        self.len.set(len);
        Some(self.frames[len as usize].get())
    }

    #[inline]
    fn push(&self, index: u32) {
        let len = self.len.get();
        self.frames[len as usize].set(index);
        self.len.set(len + 1);
    }

    /// Puts the topmost `n` frames, or all there are, back on the shared list.
    fn flush(&self, n: u32) {
        let n = n.min(self.len.get());
        if n == 0 {
            return;
        }
        let Some(pool) = NonNull::new(self.pool.get().cast_mut()) else { return };
        let rest = self.len.get() - n;
        // Emptied first: when the frames are back the pool may be gone.
        self.len.set(rest);
        let frames = self.frames[rest as usize..(rest + n) as usize].iter().map(Cell::get);
        // SAFETY: the magazine was not empty, so its pool is alive; it owned these frames, and they
        // are no longer in it.
        unsafe { Inner::free_many(pool, frames) }
    }

    fn give_up(&self) {
        self.flush(u32::MAX);
        self.pool.set(ptr::null());
    }

    /// Takes this magazine for `pool`. Fails while the thread ends: nothing would flush it.
    #[cold]
    fn take_for(&self, pool: NonNull<Inner>) -> bool {
        if AT_EXIT.try_with(|_| ()).is_err() {
            return false;
        }
        self.give_up();
        self.pool.set(pool.as_ptr());
        true
    }

    /// Flushes the magazine if its pool was closed meanwhile.
    fn drop_if_closed(&self) {
        if self.len.get() > 0 {
            // SAFETY: the magazine is not empty, so its pool is alive.
            let closed = unsafe { (*self.pool.get()).closed.load(Ordering::Relaxed) };
            if closed {
                self.give_up();
            }
        }
    }
}

#[inline]
fn with<R>(pool: &Inner, f: impl FnOnce(&Magazine) -> R) -> R {
    MAGAZINES.with(|all| f(&all[pool.id as usize % SLOTS]))
}

/// A frame from the magazine, else from the shared list with a batch to refill the magazine.
#[inline]
pub(crate) fn take(
    pool: &PagePool,
    gfp: Gfp,
    caller: impl FnOnce() -> Caller,
) -> Result<u32, AllocError> {
    let inner = pool.inner();
    // A guess may not take what is short, even if this thread has it.
    let may = !gfp.contains(Gfp::SPECULATIVE) || inner.plenty.load(Ordering::Relaxed);
    // The closure is small, so that it and the access to the thread's own data are inlined.
    let quick =
        with(inner, |magazine| if magazine.is_of(inner) && may { magazine.pop() } else { None });
    match quick {
        Some(index) => Ok(index),
        None => refill(pool, gfp, caller()),
    }
}

#[cold]
fn refill(pool: &PagePool, gfp: Gfp, caller: Caller) -> Result<u32, AllocError> {
    MAGAZINES.with(|all| all.iter().for_each(Magazine::drop_if_closed));
    let inner = pool.inner();
    with(inner, |magazine| {
        let owned = magazine.is_of(inner) || magazine.take_for(pool.raw());
        // The magazine may not be empty here if the call is a guess; it stays within its size.
        let room = if owned { (inner.magazine / 2).saturating_sub(magazine.len.get()) } else { 0 };
        inner.take(gfp, caller, room, |index| magazine.push(index))
    })
}

/// Gives an uncharged frame back: to the magazine while memory is plentiful, else to the shared list,
/// where waiters see it.
///
/// # Safety
/// `pool` is alive, has magazines, and the caller owns its frame `index`, uncharged, and gives it up.
#[inline]
pub(crate) unsafe fn put(pool: NonNull<Inner>, index: u32) {
    // SAFETY: the frame is out, so the pool is alive; it stays so while the frame is in the magazine.
    let inner = unsafe { pool.as_ref() };
    let quick = |magazine: &Magazine| {
        let fits = magazine.is_of(inner) && magazine.len.get() < inner.magazine;
        if fits {
            magazine.push(index);
        }
        fits
    };
    let plenty = inner.plenty.load(Ordering::Relaxed);
    if !(plenty && (with(inner, quick) || put_with_room(pool, index))) {
        // SAFETY: as this function demands.
        unsafe { Inner::free_shared(pool, index) }
    }
}

/// Makes room in the magazine and puts the frame there; fails while the thread ends.
#[cold]
fn put_with_room(pool: NonNull<Inner>, index: u32) -> bool {
    MAGAZINES.with(|all| all.iter().for_each(Magazine::drop_if_closed));
    // SAFETY: called from `put`, whose frame is still out and keeps the pool alive.
    let inner = unsafe { pool.as_ref() };
    with(inner, |magazine| {
        let room = if magazine.is_of(inner) {
            // For the same reason this flush cannot be the one that frees the pool.
            magazine.flush(inner.magazine.div_ceil(2));
            true
        } else {
            magazine.take_for(pool)
        };
        if room {
            magazine.push(index);
        }
        room
    })
}

/// Frames of `pool` in this thread's magazine.
pub(crate) fn held(pool: &PagePool) -> u32 {
    let inner = pool.inner();
    if inner.magazine == 0 {
        return 0;
    }
    with(inner, |magazine| if magazine.is_of(inner) { magazine.len.get() } else { 0 })
}

/// Puts this thread's frames of `pool` back on the shared list.
pub(crate) fn flush(pool: &PagePool) {
    let inner = pool.inner();
    if inner.magazine > 0 {
        with(inner, |magazine| {
            if magazine.is_of(inner) {
                magazine.give_up();
            }
        });
    }
}
