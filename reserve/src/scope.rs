//! The emergency scope: entitlement of the current thread to one reserve. SKELETON: to be deepened.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::pool::PagePool;
use crate::reserves::ReserveId;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entitlement {
    pub(crate) pool: u32,
    pub(crate) reserve: ReserveId,
}

thread_local! {
    static CURRENT: Cell<Option<Entitlement>> = const { Cell::new(None) };
}

pub(crate) fn current() -> Option<Entitlement> {
    CURRENT.get()
}

/// Guard of the entitlement; leaving it restores what was before. Not `Send`.
#[must_use = "the scope ends when the guard is dropped"]
pub struct EmergencyScope {
    before: Option<Entitlement>,
    _not_send: PhantomData<*const ()>,
}

impl EmergencyScope {
    /// Entitles the current thread to `reserve` of `pool` until the guard is dropped.
    pub fn enter(pool: &PagePool, reserve: ReserveId) -> EmergencyScope {
        let before = CURRENT.replace(Some(Entitlement { pool: pool.id(), reserve }));
        EmergencyScope { before, _not_send: PhantomData }
    }

    /// Whether the current thread is entitled to a reserve of `pool`.
    pub fn is_entitled(pool: &PagePool) -> bool {
        current().is_some_and(|e| e.pool == pool.id())
    }

    /// Takes the current entitlement away, to be given back by [`SavedScope::restore`]: for other
    /// work that runs on this thread in between.
    pub fn save() -> SavedScope {
        SavedScope { entitlement: CURRENT.replace(None) }
    }
}

impl Drop for EmergencyScope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// An entitlement taken away by [`EmergencyScope::save`].
#[derive(Debug)]
#[must_use = "the entitlement is lost unless it is restored"]
pub struct SavedScope {
    entitlement: Option<Entitlement>,
}

impl SavedScope {
    /// An entitlement to nothing: what a fresh task starts with.
    pub fn none() -> SavedScope {
        SavedScope { entitlement: None }
    }

    /// Makes this the current entitlement.
    pub fn restore(self) {
        CURRENT.set(self.entitlement);
    }
}
