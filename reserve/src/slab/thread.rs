//! Threads' caches: a few free slots that a thread keeps in front of a slab cache.
//!
//! A slot taken from there or put there costs no lock and no atomic read-modify-write. Slots get in while
//! memory is plentiful only (above the low watermark) and are of ordinary pages only: a reserve page
//! never waits for a thread to become wholly free. What a thread keeps counts as out; others can take it
//! back at any time ([`take_back`], through [`crate::biased`]), and a cache does so before it takes a
//! page while memory is short, when it is shrunk, and when it ends; whoever waits for memory of a pool does so
//! for all its caches ([`take_back_all`]).
//!
//! Each thread has a table with one place for each of a few caches. A pointer to a cache in it is
//! followed only when slots lie beside it, which keep the cache alive; otherwise it may dangle, and is
//! compared only.
//!
//! All tables are on one list, under a lock that is held during visits and when a thread begins or ends.
//! Lock order: that list, then a cache, then the registry of magazines, then the pool. Nobody waits for anything inside a table.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::core::Core;
use crate::biased::{self, Biased};
use crate::inner::Inner;

/// Slots of one cache that a thread keeps at most: a place is four cache lines then, and found by a shift.
pub(super) const SLOTS: usize = 30;
const _: () = assert!(size_of::<Place>() == 256);

/// Bytes in the slots that a thread keeps of one cache: four pages. Picked by eye.
const BYTES: usize = 16 * 1024;

/// Places in a table. A heap has about twenty caches, one for each class of sizes.
pub(super) const PLACES: usize = 32;

/// Calls that a cache makes without this thread keeping its slots, before another that has its place
/// gives way. Picked by eye: what moving costs is that of some such calls.
const PATIENCE: u32 = 16;

/// What a thread keeps of a cache with such slots.
pub(super) fn slots_for(bytes: usize, wanted: u32) -> u32 {
    ((BYTES / bytes) as u32).min(wanted).clamp(2, SLOTS as u32)
}

struct Place {
    core: AtomicPtr<Core>,
    len: AtomicU32,
    misses: Cell<u32>,
    slots: [Cell<MaybeUninit<NonNull<u8>>>; SLOTS],
}

struct Table {
    places: Biased<[Place; PLACES]>,
    /// The place that a slot was put into last; the owner's alone. See [`push`].
    hot: Cell<u8>,
    /// The next table on the list, and whether this one is on it; touched under the list's lock. The
    /// owner alone writes `listed`.
    next: Cell<*const Table>,
    listed: Cell<bool>,
}

#[cfg(loom)]
thread_local! {
    static TABLE: Table = Table {
        places: Biased::new(std::array::from_fn(|_| Place {
            core: AtomicPtr::new(ptr::null_mut()),
            len: AtomicU32::new(0),
            misses: Cell::new(0),
            slots: [const { Cell::new(MaybeUninit::uninit()) }; SLOTS],
        })),
        hot: Cell::new(0),
        next: Cell::new(ptr::null()),
        listed: Cell::new(false),
    };
}

#[cfg(not(loom))]
thread_local! {
    static TABLE: Table = const {
        Table {
            places: Biased::new([const {
                Place {
                    core: AtomicPtr::new(ptr::null_mut()),
                    len: AtomicU32::new(0),
                    misses: Cell::new(0),
                    slots: [const { Cell::new(MaybeUninit::uninit()) }; SLOTS],
                }
            }; PLACES]),
            hot: Cell::new(0),
            next: Cell::new(ptr::null()),
            listed: Cell::new(false),
        }
    };
}

thread_local! {
    /// Has a destructor, which the table itself must not have: it is used without a check whether the
    /// thread is ending. Touched when the table is put on the list.
    static AT_EXIT: LeaveAtExit = const { LeaveAtExit };
}

/// See [`crate::prepare_thread`]. A thread that is ending has no need of it.
pub(crate) fn prepare_thread() {
    let _ = AT_EXIT.try_with(|_| ());
}

struct LeaveAtExit;

impl Drop for LeaveAtExit {
    fn drop(&mut self) {
        TABLE.with(Table::leave);
    }
}

/// The list of all tables.
struct Tables(*const Table);

// SAFETY: the tables on the list are there until their threads have taken them off it under its lock.
unsafe impl Send for Tables {}

static TABLES: Mutex<Tables> = Mutex::new(Tables(ptr::null()));

fn tables() -> MutexGuard<'static, Tables> {
    // Nothing inside panics; if it ever did, the list itself is changed in single steps.
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tables {
    fn iter(&self) -> impl Iterator<Item = &Table> {
        // SAFETY: a table on the list is there, and `next` is changed under the lock, which is held.
        std::iter::successors(unsafe { self.0.as_ref() }, |table| unsafe {
            table.next.get().as_ref()
        })
    }

    /// Announces a visit of each table whose places `concerns` is true of, and fences. Returns the places
    /// to be visited.
    ///
    /// # Safety
    /// `concerns` touches atomic fields only, and each of the places is visited before the lock of the
    /// list is given back.
    unsafe fn announce(
        &self,
        concerns: impl Fn(&[Place; PLACES]) -> bool,
    ) -> impl Iterator<Item = &Biased<[Place; PLACES]>> {
        let all = || self.iter().map(|table| &table.places);
        let mut any = false;
        for places in all() {
            // SAFETY: as the caller promises.
            if concerns(unsafe { places.peek() }) {
                // SAFETY: visitors hold the lock of the list, so there is one; the caller visits.
                unsafe { places.announce() };
                any = true;
            }
        }
        if any {
            biased::fence_everywhere();
        }
        all().filter(|places| places.is_announced())
    }
}

/// Slots that were taken out of a place, on their way back to their cache.
struct Taken {
    core: *mut Core,
    len: usize,
    slots: [MaybeUninit<NonNull<u8>>; SLOTS],
}

impl Taken {
    const fn none() -> Taken {
        Taken { core: ptr::null_mut(), len: 0, slots: [MaybeUninit::uninit(); SLOTS] }
    }

    /// Gives them back. Returns the pages that went back to the pool.
    fn give_back(self) -> u32 {
        let Some(core) = NonNull::new(self.core).filter(|_| self.len > 0) else { return 0 };
        // SAFETY: `Place::take` filled in the first `len`.
        let slots = unsafe {
            std::slice::from_raw_parts(self.slots.as_ptr().cast::<NonNull<u8>>(), self.len)
        };
        // SAFETY: these are slots of `core` that the place owned and that were taken out of it; they
        // keep the cache alive.
        unsafe { Core::free_many(core, slots) }
    }
}

impl Place {
    #[inline]
    fn is_of(&self, core: &Core) -> bool {
        ptr::eq(self.core.load(Ordering::Relaxed), core)
    }

    #[inline]
    fn pop(&self) -> Option<NonNull<u8>> {
        let len = self.len.load(Ordering::Relaxed).checked_sub(1)?;
        // SAFETY: `len` is at most SLOTS at any time, see `push`, and was above this one.
        let slot = unsafe { self.slots.get_unchecked(len as usize) }.get();
        self.len.store(len, Ordering::Relaxed);
        // SAFETY: `push` filled in what is below `len`.
        Some(unsafe { slot.assume_init() })
    }

    /// Puts a slot there if there is room.
    #[inline]
    fn push(&self, keep: u32, slot: NonNull<u8>) -> bool {
        let len = self.len.load(Ordering::Relaxed);
        if len >= keep {
            return false;
        }
        // SAFETY: `keep` is at most SLOTS, see `slots_for`.
        unsafe { self.slots.get_unchecked(len as usize) }.set(MaybeUninit::new(slot));
        self.len.store(len + 1, Ordering::Relaxed);
        true
    }

    /// Takes the topmost `n` slots, or all there are, out into `taken`.
    fn take(&self, n: u32, taken: &mut Taken) {
        let len = self.len.load(Ordering::Relaxed);
        let n = n.min(len);
        let rest = len - n;
        for (to, from) in taken.slots.iter_mut().zip(&self.slots[rest as usize..len as usize]) {
            *to = from.get();
        }
        taken.core = self.core.load(Ordering::Relaxed);
        taken.len = n as usize;
        self.len.store(rest, Ordering::Relaxed);
    }

    /// Takes everything, and leaves the place to any cache.
    fn vacate(&self, taken: &mut Taken) {
        self.take(u32::MAX, taken);
        self.core.store(ptr::null_mut(), Ordering::Relaxed);
        self.misses.set(0);
    }
}

impl Table {
    #[inline]
    fn own<R>(&self, place: u8, f: impl FnOnce(&Place) -> R) -> Option<R> {
        // SAFETY: `own` is called on the current thread's table only, and what runs inside takes slots
        // in and out, which does not come here again.
        unsafe { self.places.own(|places| f(&places[usize::from(place) % PLACES])) }
    }

    /// Puts the table on the list. Fails while the thread ends: nobody would take it off.
    fn enlist(&self) -> bool {
        if AT_EXIT.try_with(|_| ()).is_err() {
            return false;
        }
        if !self.listed.get() {
            let mut tables = tables();
            self.next.set(tables.0);
            tables.0 = self;
            self.listed.set(true);
        }
        true
    }

    /// The end of the thread: everything back, and off the list. Both under the list's lock, so that
    /// whoever takes back from all threads finds each slot here or in its cache.
    fn leave(&self) {
        let mut tables = tables();
        for place in 0..PLACES {
            let mut taken = Taken::none();
            // SAFETY: as in `own`. Visitors hold the lock.
            unsafe { self.places.own(|places| places[place].vacate(&mut taken)) };
            taken.give_back();
        }
        let me: *const Table = self;
        if ptr::eq(tables.0, me) {
            tables.0 = self.next.get();
        } else if let Some(before) = tables.iter().find(|t| ptr::eq(t.next.get(), me)) {
            before.next.set(self.next.get());
        }
        self.listed.set(false);
    }
}

/// A slot that this thread keeps.
#[inline]
pub(super) fn pop(core: &Core) -> Option<NonNull<u8>> {
    TABLE.with(|table| {
        table.own(core.place, |place| if place.is_of(core) { place.pop() } else { None }).flatten()
    })
}

/// Keeps a slot of an ordinary page, if there is room. Returns whether that was done: then the cache may be
/// gone at once.
///
/// The place that was used last is tried first, as it is known without the object. So a CPU that guesses
/// that right need not wait for the header to know how many slots are kept: that halves the time of a pair.
#[inline]
pub(super) fn push(core: &Core, place: u8, slot: NonNull<u8>) -> bool {
    TABLE.with(|table| {
        // SAFETY: as in `Table::own`.
        let quick = unsafe {
            table.places.own(|places| {
                let hot = &places[usize::from(table.hot.get()) % PLACES];
                if hot.is_of(core) {
                    return hot.push(core.keep, slot);
                }
                table.hot.set(place);
                let p = &places[usize::from(place) % PLACES];
                p.is_of(core) && p.push(core.keep, slot)
            })
        };
        quick == Some(true)
    })
}

/// Makes room and puts the slot there.
///
/// # Safety
/// `slot` is an ordinary slot of `core` that is out, and given up if true is returned.
#[cold]
pub(super) unsafe fn push_with_room(core: NonNull<Core>, slot: NonNull<u8>) -> bool {
    // SAFETY: the slot is out, so the cache is alive until it is pushed.
    let this = unsafe { core.as_ref() };
    let mut taken = Taken::none();
    let mine = TABLE.with(|table| {
        table.own(this.place, |place| {
            let mine = place.is_of(this);
            if mine {
                place.take(this.keep.div_ceil(2), &mut taken);
                place.push(this.keep, slot);
            }
            mine
        })
    });
    match mine {
        // The slot may be gone already, and the cache with it, but for those that were taken.
        Some(true) => {
            taken.give_back();
            true
        }
        // SAFETY: the slot is out, of an ordinary page, and given up if kept.
        Some(false) => unsafe { this.start_keeping(slot) },
        None => false,
    }
}

/// Whether this thread may keep slots of this cache: its place is its own or empty. A place that another
/// cache has is taken over when this one has missed it for a while.
pub(super) fn claim(core: &Core) -> bool {
    let mut taken = Taken::none();
    let ours = TABLE.with(|table| {
        table.enlist()
            && table.own(core.place, |place| {
                let owner = place.core.load(Ordering::Relaxed);
                if ptr::eq(owner, core) || owner.is_null() {
                    return true;
                }
                place.misses.set(place.misses.get() + 1);
                let give_way =
                    place.len.load(Ordering::Relaxed) == 0 || place.misses.get() >= PATIENCE;
                if give_way {
                    place.vacate(&mut taken);
                }
                give_way
            }) == Some(true)
    });
    taken.give_back();
    ours
}

/// Fills this thread's place up to half with what `next` gives, if it is this cache's or nobody's. To be
/// called under the cache's lock, so that no visit that has begun is missed; `next` waits for nothing.
pub(super) fn refill(core: &Core, mut next: impl FnMut() -> Option<NonNull<u8>>) {
    TABLE.with(|table| {
        table.own(core.place, |place| {
            let owner = place.core.load(Ordering::Relaxed);
            if owner.is_null() {
                place.core.store(ptr::from_ref(core).cast_mut(), Ordering::Relaxed);
            } else if !ptr::eq(owner, core) {
                return;
            }
            while place.len.load(Ordering::Relaxed) < core.keep / 2
                && let Some(slot) = next()
            {
                place.push(core.keep, slot);
            }
        })
    });
}

/// Slots of this cache that threads keep; those that they move meanwhile may be missed.
pub(super) fn kept(core: &Core) -> u32 {
    let tables = tables();
    let of = |table: &Table| {
        // SAFETY: `core` and `len` are atomics, and nothing else is touched.
        let place = unsafe { &table.places.peek()[usize::from(core.place)] };
        if place.is_of(core) { place.len.load(Ordering::Relaxed) } else { 0 }
    };
    tables.iter().map(of).sum()
}

/// Takes back what any thread keeps of this cache, whose handle is there. Returns the pages that went
/// back to the pool. A thread that began to keep slots under the cache's lock before this call is seen.
pub(super) fn take_back(core: &Core) -> u32 {
    let tables = tables();
    let at = usize::from(core.place);
    let mut pages = 0;
    // A place that becomes this cache's only now is that of a thread that began after this call.
    // SAFETY: `core` is an atomic, and nothing else is touched; all are visited.
    for places in unsafe { tables.announce(|places| places[at].is_of(core)) } {
        let mut taken = Taken::none();
        // SAFETY: announced and fenced above.
        unsafe {
            places.visit(|places| {
                let place = &places[at];
                if place.is_of(core) {
                    place.vacate(&mut taken);
                }
            });
        }
        pages += taken.give_back();
    }
    pages
}

/// Takes back what any thread keeps of all caches in a pool, and the spare pages of these caches. Returns the
/// pages that went back. For whoever waits, who holds no lock.
#[cold]
pub(crate) fn take_back_all(pool: &Inner) -> u32 {
    if pool.magazine == 0 || !biased::available() {
        return 0;
    }
    let tables = tables();
    let any =
        |places: &[Place; PLACES]| places.iter().any(|place| place.len.load(Ordering::Relaxed) > 0);
    let mut pages = 0;
    // SAFETY: `len` is an atomic, and nothing else is touched; all are visited.
    for places in unsafe { tables.announce(any) } {
        let take = |places: &[Place; PLACES]| {
            for place in places.iter().filter(|p| p.len.load(Ordering::Relaxed) > 0) {
                // SAFETY: slots lie beside the pointer, which keep the cache alive.
                let Some(core) = (unsafe { place.core.load(Ordering::Relaxed).as_ref() }) else {
                    continue;
                };
                if ptr::eq(core.pool.inner(), pool) {
                    let mut taken = Taken::none();
                    place.vacate(&mut taken);
                    // First, as the cache may end with its last slot.
                    pages += u32::from(core.drop_spare());
                    pages += taken.give_back();
                }
            }
        };
        // SAFETY: announced and fenced above. The owner waits for nothing meanwhile: it goes its slow way.
        unsafe { places.visit(take) };
    }
    pages
}
