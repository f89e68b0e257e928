//! A spin lock for sections of a few dozen instructions.
//!
//! One atomic read-modify-write to take, a plain store to give back: half of what `std::sync::Mutex`
//! needs when nobody else is there. Whoever has spun for a while lets other threads run, so a holder
//! that lost its CPU gets it back. Nothing under this lock calls out, allocates or blocks, except
//! where a comment at the call says that it happens at start only.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// Turns of the loop before the CPU is given away: about the length of the longest section.
/// Picked by eye.
const SPINS: u32 = 128;

pub(crate) struct SpinLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard, and `taken` lets one guard exist at a time, so
// sharing the lock hands the value from thread to thread but never to two at once: `T: Send` is enough.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) const fn new(value: T) -> SpinLock<T> {
        SpinLock { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        if self.taken.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard { lock: self }
    }

    #[cold]
    fn wait(&self) {
        let mut turns = 0;
        loop {
            // Reading alone leaves the cache line shared until there is something to win.
            while self.taken.load(Ordering::Relaxed) {
                turns += 1;
                if turns < SPINS {
                    std::hint::spin_loop();
                } else {
                    turns = 0;
                    std::thread::yield_now();
                }
            }
            if !self.taken.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

pub(crate) struct Guard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so `taken` is set on its behalf and no other guard does.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard itself is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
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
}
