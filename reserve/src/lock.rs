//! A spin lock for sections of a few dozen instructions.
//!
//! One atomic read-modify-write to take, a plain store to give back: half of what `std::sync::Mutex`
//! needs when nobody else is there. Whoever has spun for a while lets other threads run, so a holder
//! that lost its CPU gets it back. Nothing under this lock calls out, allocates or blocks, except
//! where a comment at the call says that it happens at start only.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{self, Access, Exclusive};

/// Turns of the loop before the CPU is given away: about the length of the longest section.
/// Picked by eye.
#[cfg(not(loom))]
const SPINS: u32 = 128;

pub(crate) struct SpinLock<T> {
    taken: AtomicBool,
    value: Exclusive<T>,
}

// SAFETY: the value is reached only through a guard, and `taken` lets one guard exist at a time, so
// sharing the lock hands the value from thread to thread but never to two at once: `T: Send` is enough.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> SpinLock<T> {
        SpinLock { taken: AtomicBool::new(false), value: Exclusive::new(value) }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> SpinLock<T> {
        SpinLock { taken: AtomicBool::new(false), value: Exclusive::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        if self.swap() {
            self.wait();
        }
        Guard { access: ManuallyDrop::new(self.value.access()), lock: self }
    }

    /// Tries to take the lock. Returns whether it was taken.
    #[inline]
    fn swap(&self) -> bool {
        #[cfg(not(loom))]
        return self.taken.swap(true, Ordering::Acquire);
        // Without a store where it fails, which keeps the model small.
        #[cfg(loom)]
        return self
            .taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err();
    }

    #[cfg(loom)]
    fn wait(&self) {
        while self.swap() {
            sync::spin();
        }
    }

    #[cfg(not(loom))]
    #[cold]
    fn wait(&self) {
        let mut turns = 0;
        loop {
            // Reading alone leaves the cache line shared until there is something to win.
            while self.taken.load(Ordering::Relaxed) {
                turns += 1;
                if turns < SPINS {
                    sync::spin();
                } else {
                    turns = 0;
                    sync::thread::yield_now();
                }
            }
            if !self.swap() {
                return;
            }
        }
    }
}

pub(crate) struct Guard<'a, T> {
    // Ends before the lock is given back.
    access: ManuallyDrop<Access<T>>,
    lock: &'a SpinLock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so `taken` is set on its behalf and no other guard does.
        unsafe { self.access.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard itself is borrowed mutably.
        unsafe { self.access.get_mut() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped here once, and used nowhere after.
        unsafe { ManuallyDrop::drop(&mut self.access) }
        self.lock.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_many_threads_do_not_overlap() {
        let lock = SpinLock::new(0u64);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let mut value = lock.lock();
                        let before = *value;
                        *value = std::hint::black_box(before) + 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 80_000);
    }

    /// For `.ci/sanitize`, which shows that the thread sanitizer finds it: the lock is not taken.
    #[cfg(planted_race)]
    #[test]
    fn a_planted_race() {
        let lock = SpinLock::new(0u64);
        // Both at once: of a thread that has ended the sanitizer may know nothing any more.
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    // All of the lock, which threads may share; the closure would take its value alone.
                    let lock = &lock;
                    gate.wait();
                    for _ in 0..100_000 {
                        // SAFETY: none; that is the point.
                        let value = unsafe { lock.value.access().get_mut() };
                        *value = std::hint::black_box(*value) + 1;
                    }
                });
            }
        });
    }
}
