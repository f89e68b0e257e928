//! Data of one thread that others may reach now and then: a lock biased towards its owner.
//!
//! The owner enters with two plain stores and a load: no read-modify-write, no fence. Whoever else wants
//! in pays for both sides: it announces itself, has the kernel run a memory barrier on every CPU where a
//! thread of this process runs (`membarrier(2)`, private expedited), and waits until the owner is out.
//!
//! ```text
//!   owner                           visitor
//!   busy := true                    visited := true
//!   (the compiler may not swap)     membarrier: a full fence on every CPU
//!   visited?  no: go in             wait while busy
//!             yes: stay out         go in; visited := false
//!   busy := false
//! ```
//!
//! Why one at a time: the barrier falls somewhere into what the owner does. If after `busy := true`, the
//! visitor's wait sees it. If before, the owner's look at `visited` comes after the barrier, and sees that.
//!
//! Where the kernel has no such barrier ([`available`]) there can be no visitors, so nothing that
//! somebody else may need must be kept in such a place: the caller asks first.

use std::cell::UnsafeCell;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{self, asymmetric};

/// Whether visits are possible: asked of the kernel once, which registers the process for them.
pub(crate) fn available() -> bool {
    #[cfg(not(loom))]
    {
        use std::sync::OnceLock;
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(asymmetric::available)
    }
    // The model runs a full fence on both sides, see `own`; where the machine has no such pair of fences there
    // are no visits.
    #[cfg(loom)]
    true
}

/// A full fence on every CPU that runs a thread of this process: between the announcements of a visitor
/// and its waits. Costs some microseconds.
pub(crate) fn fence_everywhere() {
    assert!(available(), "visits are not possible on this kernel");
    asymmetric::heavy(cfg!(not(loom)));
}

/// A value of one thread that visitors may reach.
pub(crate) struct Biased<T> {
    busy: AtomicBool,
    visited: AtomicBool,
    value: UnsafeCell<T>,
}

impl<T> Biased<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Biased<T> {
        Biased {
            busy: AtomicBool::new(false),
            visited: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Biased<T> {
        Biased {
            busy: AtomicBool::new(false),
            visited: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `f` on the value, unless a visitor is there. `f` must be short, and wait for nothing: a
    /// visitor waits for it.
    ///
    /// # Safety
    /// One thread alone calls this for one value, and not from inside `f`.
    #[inline]
    pub(crate) unsafe fn own<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        /// Says that the owner is out, also if `f` panics.
        struct Out<'a>(&'a AtomicBool);
        impl Drop for Out<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        self.busy.store(true, Ordering::Relaxed);
        let _out = Out(&self.busy);
        // The other half of `fence_everywhere`.
        #[cfg(not(loom))]
        asymmetric::light();
        #[cfg(loom)]
        sync::atomic::fence(Ordering::SeqCst);
        // Acquire: what the last visitor did happened before.
        if self.visited.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the owner is in and no visitor is, as the head of this file shows. The reference is
        // shared: `f` cannot be entered twice, but a `peek` may run beside it.
        Some(f(unsafe { &*self.value.get() }))
    }

    /// Announces a visitor. [`fence_everywhere`] comes next, then [`Biased::visit`].
    ///
    /// # Safety
    /// One visitor at a time, and each announcement is followed by one visit.
    pub(crate) unsafe fn announce(&self) {
        self.visited.store(true, Ordering::Relaxed);
    }

    /// Whether a visitor is announced. Means something to visitors only.
    pub(crate) fn is_announced(&self) -> bool {
        self.visited.load(Ordering::Relaxed)
    }

    /// Waits for the owner to be out, runs `f` on the value, and lets the owner in again.
    ///
    /// # Safety
    /// After [`Biased::announce`] of the same visitor, with [`fence_everywhere`] between the two.
    pub(crate) unsafe fn visit<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let mut turns = 0u32;
        // Acquire: what the owner did happened before.
        while self.busy.load(Ordering::Acquire) {
            turns += 1;
            // An owner that lost its CPU needs one to come out.
            if turns.is_multiple_of(128) {
                sync::thread::yield_now();
            } else {
                sync::spin();
            }
            sync::see_latest(&self.busy);
        }
        // SAFETY: the owner is out and stays out while `visited` is set; there is one visitor.
        let result = f(unsafe { &*self.value.get() });
        self.visited.store(false, Ordering::Release);
        result
    }

    /// The value, for what of it is atomic. Whatever is not must not be touched.
    ///
    /// # Safety
    /// The caller touches atomic fields only.
    pub(crate) unsafe fn peek(&self) -> &T {
        // SAFETY: all references to the value are shared ones; the rest is as the caller promises.
        unsafe { &*self.value.get() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const VISITS: u64 = 2_000;

    /// Owner and visitor each add to a number in two steps, which loses additions if the two overlap.
    /// Returns what was lost.
    fn lost(visit: impl Fn(&Biased<AtomicU64>)) -> u64 {
        let add = |n: &AtomicU64| n.store(n.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let (value, stop) = (Biased::new(AtomicU64::new(0)), AtomicBool::new(false));
        struct Shared(Biased<AtomicU64>);
        // SAFETY: what is inside is atomic, whoever touches it.
        unsafe impl Sync for Shared {}
        let value = Shared(value);
        let value = &value;
        let owned = std::thread::scope(|s| {
            let owner = s.spawn(|| {
                let mut owned = 0;
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: this thread alone is the owner.
                    owned += u64::from(unsafe { value.0.own(add) }.is_some());
                }
                owned
            });
            for _ in 0..VISITS {
                visit(&value.0);
            }
            stop.store(true, Ordering::Relaxed);
            owner.join().unwrap()
        });
        // SAFETY: an atomic.
        owned + VISITS - unsafe { value.0.peek() }.load(Ordering::Relaxed)
    }

    fn slow_add(n: &AtomicU64) {
        let before = n.load(Ordering::Relaxed);
        for _ in 0..50 {
            std::hint::spin_loop();
        }
        n.store(before + 1, Ordering::Relaxed);
    }

    #[test]
    fn owner_and_visitor_exclude_each_other() {
        if !available() {
            return;
        }
        let visit = |value: &Biased<AtomicU64>| {
            // SAFETY: one visitor, in the order that is demanded.
            unsafe {
                value.announce();
                fence_everywhere();
                value.visit(slow_add);
            }
        };
        assert_eq!(lost(visit), 0);
    }

    /// Canary: a visitor that does not announce itself loses additions.
    #[test]
    fn the_count_sees_an_overlap() {
        // SAFETY: what is touched is an atomic.
        let visit = |value: &Biased<AtomicU64>| slow_add(unsafe { value.peek() });
        // With one CPU a visit is seldom interrupted, so it may take a few rounds.
        assert!((0..200).any(|_| lost(visit) > 0));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Plain;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared(Biased<Plain>);
    // SAFETY: `Plain` reports under the model checker every access that is not ordered with the others.
    unsafe impl Sync for Shared {}
    // SAFETY: as above.
    unsafe impl Send for Shared {}

    /// An owner that goes in twice, a visitor that comes once with or without its fence.
    fn meet(fenced: bool) {
        crate::sync::model(move || {
            let shared = Arc::new(Shared(Biased::new(Plain::new(0))));
            let add = |n: &Plain| n.set(n.get() + 1);
            let owner = {
                let shared = shared.clone();
                thread::spawn(move || {
                    // SAFETY: this thread alone is the owner.
                    (0..2).filter(|_| unsafe { shared.0.own(add) }.is_some()).count() as u32
                })
            };
            // SAFETY: one visitor, in the order that is demanded (or, as a canary, not).
            unsafe {
                shared.0.announce();
                if fenced {
                    fence_everywhere();
                }
                shared.0.visit(add);
            }
            let owned = owner.join().unwrap();
            // SAFETY: nobody else is left.
            assert_eq!(unsafe { shared.0.peek() }.get(), owned + 1);
        });
    }

    #[test]
    fn loom_owner_and_visitor_exclude_each_other() {
        meet(true);
    }

    /// Canary: without the visitor's fence the model finds an overlap.
    #[test]
    #[should_panic]
    fn loom_a_visit_without_its_fence_is_found() {
        meet(false);
    }
}
