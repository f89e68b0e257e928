//! Magazines: a few frames that a thread holds back for its own next allocations.
//!
//! A frame taken from the magazine or put into it costs no atomic read-modify-write and no shared
//! cache line. Frames get in while memory is plentiful only (above the low watermark), in batches, and
//! count as taken. Once memory is short nobody may use a magazine: its thread gives it back when it next
//! allocates or frees, and whoever is refused a frame takes what is in the magazines of all threads, idle
//! ones too ([`drain`]). The protocol is that of [`crate::stock`].
//!
//! Each thread has one magazine for each of a few pools. The magazines are in the thread's own static
//! memory; a list of all threads that have some is kept under one lock, [`REGISTRY`], which is touched when a
//! thread first uses a pool, when it ends, and by drains; never to allocate or free.
//!
//! Invariants:
//! - *A magazine that is not empty keeps its pool alive*, as its frames are out. A pointer beside an empty
//!   magazine may dangle; it is compared, never followed.
//! - The `pool` of a magazine changes under the registry's lock only, so a drainer, which holds it, can
//!   trust what it reads there.
//! - A pool drains while its drainer holds the registry's lock. So whoever holds it finds no pool draining.
//! - Order of locks: registry, section of a stock, pool. The owner never takes the registry's lock inside a
//!   section, so a drainer's wait for a section is short.

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::gfp::Gfp;
use crate::inner::{Caller, Inner};
use crate::pool::{AllocError, PagePool};
use crate::stock::{Section, Stock};

/// Magazines of a thread; a thread that uses more pools at a time shares them out. A power of two.
const SLOTS: usize = 4;

/// On lines of its own: a thread's neighbours in memory may be another's.
#[repr(C, align(128))]
struct Magazine {
    pool: AtomicPtr<Inner>,
    stock: Stock,
}

/// What one thread has.
struct Owner {
    magazines: [Magazine; SLOTS],
    /// The list of all; under the registry's lock.
    next: Cell<*const Owner>,
    prev: Cell<*const Owner>,
    listed: Cell<bool>,
}

impl Owner {
    #[cfg(not(loom))]
    const fn new() -> Owner {
        Owner {
            magazines: [const { Magazine { pool: AtomicPtr::new(ptr::null_mut()), stock: Stock::new() } };
                SLOTS],
            next: Cell::new(ptr::null()),
            prev: Cell::new(ptr::null()),
            listed: Cell::new(false),
        }
    }

    #[inline]
    fn magazine(&self, pool: &Inner) -> &Magazine {
        &self.magazines[pool.id as usize % SLOTS]
    }
}

#[cfg(not(loom))]
thread_local! {
    static OWNER: Owner = const { Owner::new() };
}
#[cfg(loom)]
thread_local! {
    static OWNER: Owner = Owner {
        magazines: std::array::from_fn(|_| Magazine {
            pool: AtomicPtr::new(ptr::null_mut()),
            stock: Stock::new(),
        }),
        next: Cell::new(ptr::null()),
        prev: Cell::new(ptr::null()),
        listed: Cell::new(false),
    };
}

thread_local! {
    /// Has a destructor, which the magazines themselves must not have: they are used without a check
    /// whether the thread is ending. Touched when a magazine is taken for a pool.
    static AT_EXIT: GiveUpAtExit = const { GiveUpAtExit };
}

/// See [`crate::prepare_thread`]. A thread that is ending has no need of it.
pub(crate) fn prepare_thread() {
    let _ = AT_EXIT.try_with(|_| ());
}

struct GiveUpAtExit;

impl Drop for GiveUpAtExit {
    fn drop(&mut self) {
        OWNER.with(|owner| {
            registry().unlist(owner);
            // Nobody else can reach the magazines now. The lock is given back first: what follows may
            // free a pool that was closed.
            for magazine in &owner.magazines {
                let pool = magazine.pool.swap(ptr::null_mut(), Ordering::Relaxed);
                magazine.give_up(pool);
            }
        });
    }
}

/// The threads that have magazines.
struct Registry {
    first: *const Owner,
}

// SAFETY: the pointers are to static memory of threads that are alive: a thread takes itself off the list
// before its memory goes.
unsafe impl Send for Registry {}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { first: ptr::null() });

fn registry() -> MutexGuard<'static, Registry> {
    // Every change of the list is complete before anything could panic.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    fn list(&mut self, owner: &Owner) {
        if owner.listed.replace(true) {
            return;
        }
        owner.next.set(self.first);
        owner.prev.set(ptr::null());
        // SAFETY: listed owners are alive, and their links belong to the holder of this lock.
        if let Some(first) = unsafe { self.first.as_ref() } {
            first.prev.set(owner);
        }
        self.first = owner;
    }

    fn unlist(&mut self, owner: &Owner) {
        if !owner.listed.replace(false) {
            return;
        }
        let (prev, next) = (owner.prev.get(), owner.next.get());
        // SAFETY: as in `list`.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.next.set(next),
            None => self.first = next,
        }
        // SAFETY: as in `list`.
        if let Some(next) = unsafe { next.as_ref() } {
            next.prev.set(prev);
        }
    }

    fn owners(&self) -> impl Iterator<Item = &Owner> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            // SAFETY: as in `list`.
            let owner = unsafe { at.as_ref() }?;
            at = owner.next.get();
            Some(owner)
        })
    }
}

impl Magazine {
    #[inline]
    fn is_of(&self, pool: &Inner) -> bool {
        ptr::eq(self.pool.load(Ordering::Relaxed), pool)
    }

    /// Frees what is in the stock, of `pool`. The caller is the owner and no drainer can come.
    fn give_up(&self, pool: *mut Inner) {
        let section = self.stock.enter();
        if let Some(pool) = NonNull::new(pool).filter(|_| section.len() > 0) {
            // SAFETY: the magazine was not empty, so its pool is alive; it owned these frames, and each
            // is out of it when it is put on the list.
            unsafe { Inner::free_many(pool, self.stock.empty()) }
        }
    }

    /// Takes this magazine of the current thread for `pool`. Fails while the thread ends, as nothing
    /// would empty it then, and while somebody drains.
    #[cold]
    fn take_for(&self, owner: &Owner, pool: NonNull<Inner>) -> bool {
        if AT_EXIT.try_with(|_| ()).is_err() {
            return false;
        }
        let Ok(mut registry) = REGISTRY.try_lock() else { return false };
        registry.list(owner);
        // A pool that was closed is not freed by this, so nothing of the embedder runs under the lock:
        // either its last handle still waits to drain it, or it has, and left nothing here.
        self.give_up(self.pool.load(Ordering::Relaxed));
        self.pool.store(pool.as_ptr(), Ordering::Relaxed);
        true
    }
}

/// A frame from the magazine, if there is one and memory is plentiful.
#[inline]
pub(crate) fn take(inner: &Inner) -> Option<u32> {
    if !inner.door.is_open_to_stocks() {
        return None;
    }
    // The closure is small, so that it and the access to the thread's own data are inlined.
    OWNER.with(|owner| {
        let magazine = owner.magazine(inner);
        if magazine.is_of(inner) { magazine.stock.pop(&inner.door) } else { None }
    })
}

/// A frame from the shared list, with a batch to refill the magazine. Nobody stocks what is short: then it is
/// the frame alone, as for all packets of a flood.
#[cold]
pub(crate) fn refill(pool: &PagePool, gfp: Gfp, caller: Caller) -> Result<u32, AllocError> {
    take_and_stock(pool, gfp, caller).or_else(|error| retry(pool, gfp, caller, error))
}

/// For who was refused with `error`: what is in the magazines of all threads, if anything is.
#[cold]
pub(crate) fn retry(
    pool: &PagePool,
    gfp: Gfp,
    caller: Caller,
    error: AllocError,
) -> Result<u32, AllocError> {
    if gather(pool.inner(), gfp) { pool.inner().take(gfp, caller) } else { Err(error) }
}

#[inline(never)]
fn take_and_stock(pool: &PagePool, gfp: Gfp, caller: Caller) -> Result<u32, AllocError> {
    let inner = pool.inner();
    OWNER.with(|owner| {
        let magazine = owner.magazine(inner);
        if magazine.is_of(inner) || magazine.take_for(owner, pool.raw()) {
            inner.take_and_stock(gfp, caller, &magazine.stock.enter())
        } else {
            inner.take(gfp, caller)
        }
    })
}

/// Calls `take` in a section of this thread's stock of the pool, if the thread has or gets one, for who
/// takes a frame in another way than [`refill`].
///
/// # Safety
/// `pool` is alive.
pub(crate) unsafe fn with_stock<R>(
    pool: NonNull<Inner>,
    take: impl FnOnce(Option<&Section<'_>>) -> R,
) -> R {
    // SAFETY: as this function demands.
    let inner = unsafe { pool.as_ref() };
    if inner.magazine == 0 {
        return take(None);
    }
    OWNER.with(|owner| {
        let magazine = owner.magazine(inner);
        if magazine.is_of(inner) || magazine.take_for(owner, pool) {
            take(Some(&magazine.stock.enter()))
        } else {
            take(None)
        }
    })
}

/// Puts an uncharged frame into the magazine, if it has room and memory is plentiful. Returns whether it
/// did; then the pool may be gone.
///
/// # Safety
/// `pool` is alive, and the caller owns its frame `index`, uncharged, and gives it up if
/// this returns true.
#[inline]
pub(crate) unsafe fn keep(pool: NonNull<Inner>, index: u32) -> bool {
    OWNER.with(|owner| {
        // SAFETY: the frame is out, so the pool is alive. Once the frame is in the magazine somebody may
        // take it from there and free the pool: `push` is the last to look at it.
        let inner = unsafe { pool.as_ref() };
        let magazine = owner.magazine(inner);
        magazine.is_of(inner) && magazine.stock.push(&inner.door, inner.magazine, index)
    })
}

/// Frees a frame that [`keep`] did not keep: makes room for the next ones, or empties the magazine if
/// memory is short.
///
/// # Safety
/// `pool` is alive, has magazines, and the caller owns its frame `index`, uncharged, and gives it up.
#[cold]
pub(crate) unsafe fn put_back(pool: NonNull<Inner>, index: u32) {
    OWNER.with(|owner| {
        // SAFETY: the frame is out, so the pool is alive, until it is put on the list.
        let inner = unsafe { pool.as_ref() };
        let magazine = owner.magazine(inner);
        if magazine.is_of(inner) || (inner.door.is_open() && magazine.take_for(owner, pool)) {
            let section = magazine.stock.enter();
            // SAFETY: the caller owns the frame; the section is that of this thread's stock of the pool.
            unsafe { Inner::free_with_stock(pool, index, &section) }
        } else {
            // SAFETY: as this function demands.
            unsafe { Inner::free_shared(pool, index) }
        }
    });
}

/// Puts the frames in all threads' magazines of `pool` back on the shared list, from where waiters get
/// them first. Returns how many there were. Afterwards nothing gets into a magazine before free memory is
/// above low again, so that asking a second time is cheap.
#[cold]
pub(crate) fn drain(pool: &Inner) -> u32 {
    if pool.magazine == 0 || pool.lock().drained {
        return 0;
    }
    let registry = registry();
    if !pool.start_drain() {
        return 0;
    }
    pool.door.barrier();
    let mut frames = 0;
    for owner in registry.owners() {
        let magazine = owner.magazine(pool);
        if magazine.is_of(pool) {
            magazine.stock.wait_idle();
            // Whoever drains keeps the pool alive, so this is not what frees it.
            frames += pool.put_drained(&magazine.stock);
        }
    }
    pool.end_drain(frames);
    frames
}

/// For who was refused what `gfp` describes: [`drain`]s. Returns whether a second look may find more; also
/// when it was another drainer, since the refusal, who put frames on the list.
#[cold]
pub(crate) fn gather(pool: &Inner, gfp: Gfp) -> bool {
    let is_there_more = || {
        let state = pool.lock();
        state.free > state.watermark(gfp)
    };
    pool.magazine > 0 && (drain(pool) > 0 || is_there_more())
}

/// Frames of `pool` in this thread's magazine.
pub(crate) fn held(pool: &PagePool) -> u32 {
    let inner = pool.inner();
    if inner.magazine == 0 {
        return 0;
    }
    OWNER.with(|owner| {
        let magazine = owner.magazine(inner);
        if magazine.is_of(inner) { magazine.stock.len_hint() } else { 0 }
    })
}

/// Puts this thread's frames of `pool` back on the shared list.
pub(crate) fn flush(pool: &PagePool) {
    let inner = pool.inner();
    if inner.magazine > 0 {
        OWNER.with(|owner| {
            let magazine = owner.magazine(inner);
            if magazine.is_of(inner) {
                // Waits for a drainer, which may be about to do the same.
                let _registry = registry();
                magazine.give_up(pool.raw().as_ptr());
            }
        });
    }
}
