//! What ends a long run from another thread, before its end: somebody has seen enough.
//!
//! Whoever waits for a store looks at it whenever it is woken, and being raised wakes it. What ends so is a
//! typed error, or a mark in a report; nothing is said to be done that was not.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netswap_net::kernel::Waker;

/// A wish to end early, which is there or not, and never taken back. Clones are of the same wish.
///
/// ```
/// use netswap::real::{Interrupt, OpenError, OpenOptions, RealStore, StoreUrl};
///
/// let options = OpenOptions::default();
/// options.interrupt.raise();
/// // Nobody answers at this address, and nobody waits for it either.
/// let url: StoreUrl = "nfs://192.0.2.1/export/area0".parse()?;
/// let error = RealStore::open(&url, &options).err().unwrap();
/// assert!(matches!(error, OpenError::Interrupted { .. }), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_raised: AtomicBool,
    /// The loops that are to look, each with a number of its own.
    wakers: Mutex<(u64, Vec<(u64, Waker)>)>,
}

impl Interrupt {
    /// From now on whoever looks ends early; the stores that were opened with it are woken.
    pub fn raise(&self) {
        self.0.is_raised.store(true, Ordering::SeqCst);
        let wakers = self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.1.iter().for_each(|(_, waker)| waker.wake());
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.is_raised.load(Ordering::SeqCst)
    }

    /// Wakes a loop when it is raised, until what is returned is dropped.
    pub(super) fn watch(&self, waker: Waker) -> Watching {
        let mut wakers = self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let id = wakers.0;
        wakers.0 += 1;
        wakers.1.push((id, waker));
        Watching { interrupt: self.clone(), id }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt").field(&self.is_raised()).finish()
    }
}

/// A loop that looks.
pub(super) struct Watching {
    interrupt: Interrupt,
    id: u64,
}

impl Watching {
    pub(super) fn is_raised(&self) -> bool {
        self.interrupt.is_raised()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut wakers = self.interrupt.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.1.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use netswap_net::kernel::{KernelConfig, KernelNet};
    use netswap_reserve::Time;

    use super::*;

    #[test]
    fn it_ends_a_wait_without_end_and_forgets_loops_that_are_gone() {
        let interrupt = Interrupt::default();
        let mut net = KernelNet::new(KernelConfig::new(1)).unwrap();
        let watching = interrupt.watch(net.waker());
        let gone = interrupt.watch(net.waker());
        drop(gone);
        assert_eq!(interrupt.0.wakers.lock().unwrap().1.len(), 1);
        assert!(!watching.is_raised());
        let clone = interrupt.clone();
        let raising = std::thread::spawn(move || clone.raise());
        // Without an end of its own.
        net.wait(Time::ZERO, None).unwrap();
        raising.join().unwrap();
        assert!(watching.is_raised());
    }
}
