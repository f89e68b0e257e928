//! The emergency scope: entitlement of the current thread to one reserve, the `PF_MEMALLOC` of this
//! project.
//!
//! Invariants:
//! - The entitlement is the current thread's alone. Guard and saved scope are not `Send`, and a thread
//!   that is started inside starts with nothing.
//! - It never outlives its guard. Leaving a scope restores what was before it was entered, and so ends
//!   every scope that was entered inside and not left: one whose guard was forgotten, or is dropped
//!   later. Such a guard has nothing left to end, and dropping it does nothing.
//!
//! Each guard has a number: a serial, rising on a thread, and its depth. `top` is that of the innermost
//! scope: a guard that is dropped in turn finds its own number there. One that is not looks in `scopes`
//! whether it is still the scope at its depth, and if so ends those above it; if not, it was ended, or
//! belongs to another context. Below depth 8 a guard that comes out of turn ends its whole context:
//! early rather than late.
//!
//! A *context* is what [`EmergencyScope::save`] takes away and [`SavedScope::restore`] brings back: a
//! task of a simulated machine, for one. Guards belong to the context they were entered in; dropped
//! while another one runs, they end nothing there.

//!
//! # Where the open scopes were entered
//!
//! Each context keeps the place of [`EmergencyScope::enter`] beside the number of each of its scopes, for
//! [`EmergencyScope::open_here`] and [`EmergencyScope::open_everywhere`]: who holds the entitlement
//! that was forgotten? It is one more store on entry, of a constant. A thread adds its context to the
//! list of all threads when it enters its first scope. What is read of other threads is read while they
//! go on: each line was true at some moment, all of them together perhaps never. Scopes deeper than 8
//! are not told one by one.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use crate::pool::PagePool;
use crate::reserves::ReserveId;

/// Depths at which the scopes of a context are known one by one. Work item, session, socket and a
/// receive burst inside each other make four; twice that was picked by eye.
const DEPTHS: usize = 8;

/// The number of a guard: a serial, and in the low bits how many scopes there are with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number(u64);

impl Number {
    const DEPTH: u64 = 15;
    /// No scope at all.
    const NONE: Number = Number(0);

    /// The number that follows `serial`, inside `outer`. Depths from 15 on are told as 15.
    #[inline]
    fn inside(outer: Number, serial: Number) -> Number {
        let depth = ((outer.0 & Number::DEPTH) + 1).min(Number::DEPTH);
        Number((serial.0 | Number::DEPTH) + 1 + depth)
    }

    /// Scopes with this one; from 15 on 15.
    #[inline]
    fn depth(self) -> usize {
        (self.0 & Number::DEPTH) as usize
    }

    /// Scopes around this one.
    #[inline]
    fn around(self) -> usize {
        self.depth() - 1
    }
}

/// What a context may use, and the guard it has that from: two words, moved one by one, as a wider copy
/// of words just stored would wait for the store to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entitlement {
    /// The pool's id in the upper half, the reserve's node in the lower; 0 is none.
    who: u64,
    /// The innermost guard.
    top: Number,
}

const NOTHING: Entitlement = Entitlement { who: 0, top: Number::NONE };

/// Where a scope was entered; null where none was.
type Site = *mut Location<'static>;

/// The current context of a thread. Written by its own thread only. What others read is atomic, and read
/// and written relaxed, which costs what a plain access does.
struct Context {
    who: Cell<u64>,
    /// The number of the innermost guard.
    top: AtomicU64,
    /// The scope at each depth; what is deeper than `top` means nothing.
    scopes: [Cell<Number>; DEPTHS],
    /// Where each was entered.
    sites: [AtomicPtr<Location<'static>>; DEPTHS],
    /// The last number given out on this thread.
    last: Cell<Number>,
    thread: Cell<Option<ThreadId>>,
    /// The next in the list of all threads; read and written with that locked.
    next: Cell<*const Context>,
}

thread_local! {
    static CONTEXT: Context = const {
        Context {
            who: Cell::new(0),
            top: AtomicU64::new(0),
            scopes: [const { Cell::new(Number::NONE) }; DEPTHS],
            sites: [const { AtomicPtr::new(ptr::null_mut()) }; DEPTHS],
            last: Cell::new(Number::NONE),
            thread: Cell::new(None),
            next: Cell::new(ptr::null()),
        }
    };
    /// Takes the context off the list when the thread ends. Apart, so that the context itself has no
    /// destructor and is used without a check.
    static LISTED: Listed = const { Listed };
}

/// See [`crate::prepare_thread`]. A thread that is ending has no need of it.
pub(crate) fn prepare_thread() {
    let _ = LISTED.try_with(|_| ());
}

struct Listed;

impl Drop for Listed {
    fn drop(&mut self) {
        CONTEXT.with(|c| All::lock().remove(c));
    }
}

/// The contexts of all threads that have entered a scope: the first of them.
struct All(*const Context);

// SAFETY: the address of a context of some thread. It is followed with the list locked, while that
// thread is there, as it takes its context off the list before it ends; and only what is atomic, or not
// written any more, is read.
unsafe impl Send for All {}

static ALL: Mutex<All> = Mutex::new(All(ptr::null()));

impl All {
    fn lock() -> MutexGuard<'static, All> {
        ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self) -> impl Iterator<Item = &Context> {
        // SAFETY: contexts on the list are alive while it is locked, which `self` says it is; their
        // `next` is written with it locked.
        let follow = |at: *const Context| unsafe { at.as_ref() };
        std::iter::successors(follow(self.0), move |c| follow(c.next.get()))
    }

    fn remove(&mut self, context: &Context) {
        if ptr::eq(self.0, context) {
            self.0 = context.next.get();
            return;
        }
        let before = self.each().find(|c| ptr::eq(c.next.get(), context));
        if let Some(before) = before {
            before.next.set(context.next.get());
        }
    }
}

impl Context {
    #[inline]
    fn top(&self) -> Number {
        Number(self.top.load(Ordering::Relaxed))
    }

    #[inline]
    fn current(&self) -> Entitlement {
        Entitlement { who: self.who.get(), top: self.top() }
    }

    #[inline]
    fn set(&self, to: Entitlement) {
        self.who.set(to.who);
        self.top.store(to.top.0, Ordering::Relaxed);
    }

    /// Puts the context on the list of all threads; before its first scope.
    #[cold]
    fn list(&self) {
        // A thread that is ending could not take it off again.
        if LISTED.try_with(|_| ()).is_ok() {
            self.thread.set(Some(std::thread::current().id()));
            let mut all = All::lock();
            self.next.set(all.0);
            all.0 = self;
        }
    }

    /// Scopes that are open, as far as they are known one by one.
    fn open(&self) -> usize {
        self.top().depth().min(DEPTHS)
    }

    /// Where they were entered, outermost first.
    fn report(&self, out: &mut Vec<OpenScope>) {
        let Some(thread) = self.thread.get() else { return };
        for (depth, site) in self.sites[..self.open()].iter().enumerate() {
            // SAFETY: null, or from a `&'static Location`.
            if let Some(entered) = unsafe { site.load(Ordering::Relaxed).as_ref() } {
                out.push(OpenScope { thread, depth, entered });
            }
        }
    }

    /// The end of a scope that is not the innermost one of the current context.
    #[cold]
    fn out_of_turn(&self, guard: &EmergencyScope) {
        let around = guard.number.around();
        if around >= self.top().depth() {
            return;
        }
        match self.scopes.get(around) {
            Some(scope) if scope.get() == guard.number => self.set(guard.before),
            Some(_) => {}
            None => self.set(NOTHING),
        }
    }
}

/// The reserve of the pool with this id that the current thread is entitled to.
#[inline]
pub(crate) fn current(pool: u32) -> Option<ReserveId> {
    let who = CONTEXT.with(|c| c.who.get());
    ((who >> 32) as u32 == pool).then(|| ReserveId::new(pool, who as u16))
}

/// A scope that is open, and where it was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenScope {
    /// The thread.
    pub thread: ThreadId,
    /// Scopes around it, in the current context of the thread.
    pub depth: usize,
    /// The call of [`EmergencyScope::enter`].
    pub entered: &'static Location<'static>,
}

impl fmt::Display for OpenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, depth {}: entered at {}", self.thread, self.depth, self.entered)
    }
}

/// Guard of the entitlement; leaving it restores what was before. Not `Send`:
///
/// ```compile_fail,E0277
/// use netswap_reserve::{EmergencyScope, PagePool, PoolConfig, ReserveId};
/// let pool = PagePool::new(PoolConfig::new(64));
/// let scope = EmergencyScope::enter(&pool, ReserveId::ROOT);
/// std::thread::spawn(move || drop(scope));
/// ```
///
/// ```
/// use netswap_reserve::{EmergencyScope, PagePool, PoolConfig, ReserveId};
/// let pool = PagePool::new(PoolConfig::new(64));
/// {
///     let _scope = EmergencyScope::enter(&pool, ReserveId::ROOT);
///     assert!(EmergencyScope::is_entitled(&pool));
/// }
/// assert!(!EmergencyScope::is_entitled(&pool));
/// ```
#[derive(Debug)]
#[must_use = "the scope ends when the guard is dropped"]
pub struct EmergencyScope {
    before: Entitlement,
    number: Number,
    _not_send: PhantomData<*const ()>,
}

impl EmergencyScope {
    /// Entitles the current thread to `reserve` of `pool` until the guard is dropped. In a pool whose
    /// scope is ablated this does nothing.
    ///
    /// # Panics
    /// When `reserve` is of another pool.
    #[inline]
    #[track_caller]
    pub fn enter(pool: &PagePool, reserve: ReserveId) -> EmergencyScope {
        let inner = pool.inner();
        let node = reserve.node(inner.id);
        let site = ptr::from_ref(Location::caller()).cast_mut();
        CONTEXT.with(|c| {
            let (before, last) = (c.current(), c.last.get());
            if last == Number::NONE {
                c.list();
            }
            let number = Number::inside(before.top, last);
            c.last.set(number);
            let depth = number.around();
            if depth < DEPTHS {
                c.scopes[depth].set(number);
                c.sites[depth].store(site, Ordering::Relaxed);
            }
            let who = u64::from(inner.id) << 32 | u64::from(node);
            let who = if inner.config.scope { who } else { before.who };
            c.set(Entitlement { who, top: number });
            EmergencyScope { before, number, _not_send: PhantomData }
        })
    }

    /// Whether the current thread is entitled to a reserve of `pool`.
    #[inline]
    pub fn is_entitled(pool: &PagePool) -> bool {
        current(pool.id()).is_some()
    }

    /// The scopes that are open in the current context of this thread, outermost first.
    pub fn open_here() -> Vec<OpenScope> {
        let mut open = Vec::new();
        CONTEXT.with(|c| c.report(&mut open));
        open
    }

    /// The scopes that are open on all threads, in their current contexts: for people who look for one
    /// that was forgotten.
    pub fn open_everywhere() -> Vec<OpenScope> {
        let mut open = Vec::new();
        All::lock().each().for_each(|c| c.report(&mut open));
        open
    }

    /// Takes the current entitlement away, to be given back by [`SavedScope::restore`]: for other
    /// work that runs on this thread in between.
    #[inline]
    pub fn save() -> SavedScope {
        CONTEXT.with(|c| {
            let mut saved = SavedScope { entitlement: c.current(), ..SavedScope::none() };
            for depth in 0..c.open() {
                let site = c.sites[depth].load(Ordering::Relaxed);
                saved.scopes[depth].write((c.scopes[depth].get(), site));
            }
            c.set(NOTHING);
            saved
        })
    }
}

impl Drop for EmergencyScope {
    #[inline]
    fn drop(&mut self) {
        CONTEXT.with(|c| {
            if c.top() == self.number {
                c.set(self.before);
            } else {
                c.out_of_turn(self);
            }
        });
    }
}

/// An entitlement taken away by [`EmergencyScope::save`]. Not `Send`, as the scope is not.
#[derive(Debug)]
#[must_use = "the entitlement is lost unless it is restored"]
pub struct SavedScope {
    entitlement: Entitlement,
    /// As many as `entitlement.top` is deep are initialised: the rest is not worth copying.
    scopes: [MaybeUninit<(Number, Site)>; DEPTHS],
    _not_send: PhantomData<*const ()>,
}

impl SavedScope {
    /// An entitlement to nothing: what a fresh task starts with.
    pub const fn none() -> SavedScope {
        SavedScope {
            entitlement: NOTHING,
            scopes: [const { MaybeUninit::uninit() }; DEPTHS],
            _not_send: PhantomData,
        }
    }

    /// Makes this the current entitlement.
    #[inline]
    pub fn restore(self) {
        CONTEXT.with(|c| {
            c.set(self.entitlement);
            for depth in 0..c.open() {
                // SAFETY: the entitlement was saved with as many scopes as it is deep.
                let (scope, site) = unsafe { self.scopes[depth].assume_init() };
                c.scopes[depth].set(scope);
                c.sites[depth].store(site, Ordering::Relaxed);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolConfig;

    fn pool() -> (PagePool, ReserveId, ReserveId) {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
        let a = pool.add_reserve(ReserveId::ROOT, "a", 4);
        let b = pool.add_reserve(ReserveId::ROOT, "b", 4);
        (pool, a, b)
    }

    #[test]
    fn scopes_nest_and_restore() {
        let (pool, a, b) = pool();
        let outer = EmergencyScope::enter(&pool, a);
        {
            let _inner = EmergencyScope::enter(&pool, b);
            assert_eq!(current(pool.id()), Some(b));
        }
        assert_eq!(current(pool.id()), Some(a));
        drop(outer);
        assert_eq!(current(pool.id()), None);
    }

    #[test]
    fn a_forgotten_guard_ends_with_the_scope_around_it() {
        let (pool, a, b) = pool();
        let outer = EmergencyScope::enter(&pool, a);
        {
            let middle = EmergencyScope::enter(&pool, a);
            std::mem::forget(EmergencyScope::enter(&pool, b));
            drop(middle);
        }
        assert_eq!(current(pool.id()), Some(a));
        drop(outer);
        assert_eq!(current(pool.id()), None);
    }

    #[test]
    fn guards_dropped_in_the_wrong_order_leave_nothing_behind() {
        let (pool, a, b) = pool();
        let first = EmergencyScope::enter(&pool, a);
        let second = EmergencyScope::enter(&pool, b);
        drop(first);
        assert_eq!(current(pool.id()), None, "the outer scope ends the inner one");
        let third = EmergencyScope::enter(&pool, a);
        drop(second);
        assert_eq!(current(pool.id()), Some(a), "a guard that was ended ends nobody else's");
        drop(third);
        assert_eq!(current(pool.id()), None);
    }

    #[test]
    fn contexts_that_take_turns_keep_their_own() {
        let (pool, a, b) = pool();
        let guard_a = EmergencyScope::enter(&pool, a);
        let saved_a = EmergencyScope::save();
        let guard_b = EmergencyScope::enter(&pool, b);
        let saved_b = EmergencyScope::save();
        saved_a.restore();
        assert_eq!(current(pool.id()), Some(a));
        drop(guard_a);
        assert_eq!(current(pool.id()), None);
        let saved_a = EmergencyScope::save();
        saved_b.restore();
        assert_eq!(current(pool.id()), Some(b));
        drop(guard_b);
        assert_eq!(current(pool.id()), None);
        saved_a.restore();
    }

    #[test]
    fn a_guard_dropped_in_another_context_ends_nothing_there() {
        let (pool, a, b) = pool();
        let guard_a = EmergencyScope::enter(&pool, a);
        let saved_a = EmergencyScope::save();
        let guard_b = EmergencyScope::enter(&pool, b);
        drop(guard_a);
        assert_eq!(current(pool.id()), Some(b));
        drop(guard_b);
        assert_eq!(current(pool.id()), None);
        drop(saved_a);
    }

    #[test]
    fn open_scopes_are_told_by_where_they_were_entered() {
        let (pool, a, b) = pool();
        let lines = || -> Vec<u32> {
            EmergencyScope::open_here().iter().map(|o| o.entered.line()).collect()
        };
        assert_eq!(lines(), []);
        let here = line!();
        let outer = EmergencyScope::enter(&pool, a);
        let inner = EmergencyScope::enter(&pool, b);
        assert_eq!(lines(), [here + 1, here + 2]);
        drop(inner);
        assert_eq!(lines(), [here + 1]);
        let saved = EmergencyScope::save();
        assert_eq!(lines(), [], "of the current context only");
        let other = EmergencyScope::enter(&pool, b);
        assert_eq!(lines(), [here + 8]);
        drop(other);
        saved.restore();
        assert_eq!(lines(), [here + 1]);
        let scope = EmergencyScope::open_here()[0];
        assert!(scope.to_string().ends_with(&format!("scope.rs:{}:21", here + 1)), "{scope}");
        drop(outer);
        assert_eq!(lines(), []);
    }

    #[test]
    fn deep_scopes_are_counted_and_not_told() {
        let (pool, a, _) = pool();
        let scopes: Vec<_> = (0..20).map(|_| EmergencyScope::enter(&pool, a)).collect();
        assert_eq!(EmergencyScope::open_here().len(), DEPTHS);
        scopes.into_iter().rev().for_each(drop);
        assert_eq!(EmergencyScope::open_here(), []);
    }

    #[test]
    fn scopes_of_other_threads_are_told_until_they_end() {
        let (pool, a, _) = pool();
        let told = |id| EmergencyScope::open_everywhere().iter().filter(|o| o.thread == id).count();
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            let other = s.spawn(|| {
                let scope = EmergencyScope::enter(&pool, a);
                gate.wait();
                gate.wait();
                drop(scope);
                gate.wait();
                gate.wait();
                std::mem::forget(EmergencyScope::enter(&pool, a));
            });
            let id = other.thread().id();
            gate.wait();
            assert_eq!(told(id), 1);
            gate.wait();
            gate.wait();
            assert_eq!(told(id), 0);
            gate.wait();
            other.join().unwrap();
            assert_eq!(told(id), 0, "a thread that has ended has no scopes");
        });
    }

    #[test]
    fn a_pool_without_scopes_ignores_them() {
        let pool = PagePool::new(PoolConfig { scope: false, ..PoolConfig::new(64) });
        let _scope = EmergencyScope::enter(&pool, ReserveId::ROOT);
        assert!(!EmergencyScope::is_entitled(&pool));
    }
}
