//! What threads meet on, in one place: the machine's own primitives, or those of the model checker.
//!
//! Built with `--cfg loom`, the protocols of this crate (the lock, the magazines' doors, the waiters'
//! hand-over, the end of a pool) run on loom's atomics, and the tests named `loom_*` try every order in which
//! threads may meet there, and every value that the memory model lets them read.

#[cfg(not(loom))]
pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence,
    };
}
#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence,
    };
}

#[cfg(not(loom))]
pub(crate) mod thread {
    pub(crate) use std::thread::{Thread, current, park, yield_now};

    /// Parks until woken, or until `deadline`, or for no reason.
    pub(crate) fn park_until(deadline: Option<std::time::Instant>) {
        match deadline {
            None => park(),
            Some(at) => {
                std::thread::park_timeout(at.saturating_duration_since(std::time::Instant::now()));
            }
        }
    }
}
#[cfg(loom)]
pub(crate) mod thread {
    pub(crate) use loom::thread::{Thread, current, park, yield_now};

    /// The model has no clock: parks until woken.
    pub(crate) fn park_until(_: Option<std::time::Instant>) {
        park();
    }
}

/// One turn of a loop that waits for another thread.
#[inline]
pub(crate) fn spin() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// A value that one thread at a time may touch. The model checker stops where two might.
pub(crate) struct Exclusive<T> {
    #[cfg(not(loom))]
    value: std::cell::UnsafeCell<T>,
    #[cfg(loom)]
    value: loom::cell::UnsafeCell<T>,
}

impl<T> Exclusive<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Exclusive<T> {
        Exclusive { value: std::cell::UnsafeCell::new(value) }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Exclusive<T> {
        Exclusive { value: loom::cell::UnsafeCell::new(value) }
    }

    /// The value, for as long as the access lives.
    #[inline]
    pub(crate) fn access(&self) -> Access<T> {
        #[cfg(not(loom))]
        return Access { value: self.value.get() };
        #[cfg(loom)]
        return Access { value: self.value.get_mut() };
    }
}

/// An access to an [`Exclusive`] value. Whoever follows the pointer must be alone with it.
pub(crate) struct Access<T> {
    #[cfg(not(loom))]
    value: *mut T,
    #[cfg(loom)]
    value: loom::cell::MutPtr<T>,
}

impl<T> Access<T> {
    /// # Safety
    /// No other access of the value is alive, and the cell outlives the reference.
    #[inline]
    pub(crate) unsafe fn get<'a>(&self) -> &'a T {
        #[cfg(not(loom))]
        // SAFETY: as this function demands.
        return unsafe { &*self.value };
        #[cfg(loom)]
        // SAFETY: as this function demands.
        return self.value.with(|p| unsafe { &*p });
    }

    /// # Safety
    /// As for [`Access::get`], and no other reference from this access is alive.
    #[inline]
    pub(crate) unsafe fn get_mut<'a>(&self) -> &'a mut T {
        #[cfg(not(loom))]
        // SAFETY: as this function demands.
        return unsafe { &mut *self.value };
        #[cfg(loom)]
        // SAFETY: as this function demands.
        return self.value.with(|p| unsafe { &mut *p });
    }
}

pub(crate) mod asymmetric {
    //! A pair of fences of unequal price, for a flag that one thread sets all the time and others look at
    //! rarely. Between a store and a load each side runs its fence; then at least one of the two sees
    //! what the other stored. [`light`] only keeps the compiler from swapping the two: the processor may,
    //! until [`heavy`] makes every processor that runs a thread of this process pass a full barrier
    //! (`membarrier(2)`, `MEMBARRIER_CMD_PRIVATE_EXPEDITED`). Where the system lacks that, both sides have
    //! to run full fences.

    use super::atomic::{Ordering, fence};

    /// Whether this process has the cheap pair. A pool asks once and tells both
    /// sides, so that they never disagree.
    pub(crate) fn available() -> bool {
        #[cfg(not(any(loom, miri)))]
        {
            use rustix::thread::{
                MembarrierCommand, MembarrierQuery, membarrier, membarrier_query,
            };
            // Registering twice does no harm.
            membarrier_query().contains(MembarrierQuery::PRIVATE_EXPEDITED)
                && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
        }
        // The model checkers know fences, not system calls.
        #[cfg(any(loom, miri))]
        false
    }

    /// The frequent side's fence where the pair is [`available`].
    #[inline]
    pub(crate) fn light() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// The rare side's fence. `cheap` is what [`available`] said.
    #[cold]
    pub(crate) fn heavy(cheap: bool) {
        fence(Ordering::SeqCst);
        #[cfg(not(any(loom, miri)))]
        if cheap {
            use rustix::thread::{MembarrierCommand, membarrier};
            let done = membarrier(MembarrierCommand::PrivateExpedited);
            // Without the barrier two threads could own one frame: better to stop.
            assert!(done.is_ok(), "membarrier worked when it was registered, and now does not");
        }
        #[cfg(any(loom, miri))]
        assert!(!cheap);
    }
}

/// A number that one thread at a time may touch, shared by agreement. The model checker stops where two
/// might; outside of it a mistake is a wrong number and no undefined behaviour.
pub(crate) struct Plain {
    #[cfg(not(loom))]
    value: atomic::AtomicU32,
    #[cfg(loom)]
    value: loom::cell::Cell<u32>,
}

// SAFETY: under the model checker only, which reports every access that is not ordered with the others.
#[cfg(loom)]
unsafe impl Sync for Plain {}

impl Plain {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: u32) -> Plain {
        Plain { value: atomic::AtomicU32::new(value) }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: u32) -> Plain {
        Plain { value: loom::cell::Cell::new(value) }
    }

    #[inline]
    pub(crate) fn get(&self) -> u32 {
        #[cfg(not(loom))]
        return self.value.load(atomic::Ordering::Relaxed);
        #[cfg(loom)]
        return self.value.get();
    }

    #[inline]
    pub(crate) fn set(&self, value: u32) {
        #[cfg(not(loom))]
        self.value.store(value, atomic::Ordering::Relaxed);
        #[cfg(loom)]
        self.value.set(value);
    }
}

/// For a loop that waits for a flag. The model checker lets a plain load see an old value for ever, which
/// no processor does; the first look is left to it.
#[inline]
pub(crate) fn see_latest(flag: &atomic::AtomicBool) {
    #[cfg(loom)]
    let _ =
        flag.compare_exchange(false, false, atomic::Ordering::AcqRel, atomic::Ordering::Acquire);
    #[cfg(not(loom))]
    let _ = flag;
}

/// Runs a model. Orders with more than two preemptions are left out: the planted faults need no more, and a
/// loop that waits for a flag could be preempted for ever.
#[cfg(all(test, loom))]
pub(crate) fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(f);
}
