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

use std::cell::Cell;
use std::marker::PhantomData;

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

    /// Scopes around this one.
    #[inline]
    fn around(self) -> usize {
        (self.0 & Number::DEPTH) as usize - 1
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

/// The current context of a thread.
struct Context {
    who: Cell<u64>,
    top: Cell<Number>,
    /// The scope at each depth; what is deeper than `top` means nothing.
    scopes: [Cell<Number>; DEPTHS],
    /// The last number given out on this thread.
    last: Cell<Number>,
}

thread_local! {
    static CONTEXT: Context = const {
        Context {
            who: Cell::new(0),
            top: Cell::new(Number::NONE),
            scopes: [const { Cell::new(Number::NONE) }; DEPTHS],
            last: Cell::new(Number::NONE),
        }
    };
}

impl Context {
    #[inline]
    fn current(&self) -> Entitlement {
        Entitlement { who: self.who.get(), top: self.top.get() }
    }

    #[inline]
    fn set(&self, to: Entitlement) {
        self.who.set(to.who);
        self.top.set(to.top);
    }

    /// The end of a scope that is not the innermost one of the current context.
    #[cold]
    fn out_of_turn(&self, guard: &EmergencyScope) {
        let around = guard.number.around();
        if around as u64 >= self.top.get().0 & Number::DEPTH {
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
    pub fn enter(pool: &PagePool, reserve: ReserveId) -> EmergencyScope {
        let inner = pool.inner();
        let node = reserve.node(inner.id);
        CONTEXT.with(|c| {
            let before = c.current();
            let number = Number::inside(before.top, c.last.get());
            c.last.set(number);
            if let Some(scope) = c.scopes.get(number.around()) {
                scope.set(number);
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

    /// Takes the current entitlement away, to be given back by [`SavedScope::restore`]: for other
    /// work that runs on this thread in between.
    #[inline]
    pub fn save() -> SavedScope {
        CONTEXT.with(|c| {
            let saved = SavedScope {
                entitlement: c.current(),
                scopes: std::array::from_fn(|depth| c.scopes[depth].get()),
                _not_send: PhantomData,
            };
            c.set(NOTHING);
            saved
        })
    }
}

impl Drop for EmergencyScope {
    #[inline]
    fn drop(&mut self) {
        CONTEXT.with(|c| {
            if c.top.get() == self.number {
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
    scopes: [Number; DEPTHS],
    _not_send: PhantomData<*const ()>,
}

impl SavedScope {
    /// An entitlement to nothing: what a fresh task starts with.
    pub fn none() -> SavedScope {
        SavedScope { entitlement: NOTHING, scopes: [Number::NONE; DEPTHS], _not_send: PhantomData }
    }

    /// Makes this the current entitlement.
    #[inline]
    pub fn restore(self) {
        CONTEXT.with(|c| {
            c.set(self.entitlement);
            for (scope, number) in c.scopes.iter().zip(self.scopes) {
                scope.set(number);
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
    fn a_pool_without_scopes_ignores_them() {
        let pool = PagePool::new(PoolConfig { scope: false, ..PoolConfig::new(64) });
        let _scope = EmergencyScope::enter(&pool, ReserveId::ROOT);
        assert!(!EmergencyScope::is_entitled(&pool));
    }
}
