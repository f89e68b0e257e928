//! The stock of a magazine: a few frames that one thread uses without any read-modify-write, and that
//! another thread can nevertheless take away.
//!
//! The owner works in short *sections*, between setting `busy` and clearing it. A pool has one flag for all
//! its stocks, `open`. A drainer closes the flag, waits until the owner is not in a section, and has the
//! stock for itself until it opens the flag again.
//!
//! ```text
//!   owner                          drainer (one at a time)
//!   busy = true                    open = false
//!   light fence                    heavy fence
//!   open?  no: clear busy, leave   wait until not busy
//!          yes: pop or push        take what is there
//!   busy = false (release)         open = true (under the pool's lock)
//! ```
//!
//! Of the two stores before the fences at least one is seen after them: either the owner finds the flag
//! closed, or the drainer finds the owner busy and waits. The owner's fence costs nothing (see
//! [`asymmetric`]).
//!
//! # Who may touch `len` and `frames`
//!
//! - The owner, in a section in which it saw `open`;
//! - the owner, in a section in which it saw under the pool's lock that nobody drains ([`Stock::enter`]);
//! - the drainer, from its wait until it says under the pool's lock that it is done.
//!
//! The tests named `loom_*` at the foot check that no two of these overlap.

use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use crate::sync::{self, Plain, asymmetric};

/// Frames of a stock at most; see [`PoolConfig::magazine`](crate::PoolConfig::magazine).
#[cfg(not(loom))]
pub(crate) const STOCK_MAX: usize = 64;
/// The model checker needs no more to see an order go wrong.
#[cfg(loom)]
pub(crate) const STOCK_MAX: usize = 2;

/// The flag that all stocks of a pool look at, and which fences go with it.
pub(crate) struct Door {
    state: AtomicU8,
    /// What `state` is while the door is open.
    open: u8,
}

const CLOSED: u8 = 0;
/// Open, and the owner's fence is for the compiler only.
const OPEN: u8 = 1;
/// Open, and the owner's fence is a full one. Known from the same word, so that the quick way looks at one
/// word only.
const OPEN_FENCED: u8 = 3;
/// Open for a pool that has no stocks: to these it looks closed, from the same word again.
const OPEN_NO_STOCKS: u8 = 2;
/// Set in what is open to stocks.
const STOCKS: u8 = 1;

impl Door {
    /// The door of a pool that has stocks or none.
    pub(crate) fn new(open: bool, stocks: bool) -> Door {
        let when_open = match (stocks, asymmetric::available()) {
            (false, _) => OPEN_NO_STOCKS,
            (true, true) => OPEN,
            (true, false) => OPEN_FENCED,
        };
        let door = Door { state: AtomicU8::new(CLOSED), open: when_open };
        door.set(open);
        door
    }

    /// Release: an owner that sees the door open sees what the last drainer left.
    pub(crate) fn set(&self, open: bool) {
        self.state.store(if open { self.open } else { CLOSED }, Ordering::Release);
    }

    /// A hint, as it may change at once.
    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) != CLOSED
    }

    /// Whether the pool has stocks and they may be used; a hint as well.
    #[inline]
    pub(crate) fn is_open_to_stocks(&self) -> bool {
        self.state.load(Ordering::Relaxed) & STOCKS != 0
    }

    /// Whether the owner, who is busy, may touch its stock.
    #[inline]
    fn admits(&self) -> bool {
        asymmetric::light();
        // Acquire: what a drainer did is seen by whoever sees the door open again.
        self.state.load(Ordering::Acquire) == OPEN || self.admits_fenced()
    }

    #[cold]
    fn admits_fenced(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Acquire) != CLOSED
    }

    /// After the door was closed: from here on an owner is busy, or sees it closed.
    pub(crate) fn barrier(&self) {
        asymmetric::heavy(self.open != OPEN_FENCED);
    }
}

#[repr(C)]
pub(crate) struct Stock {
    busy: AtomicBool,
    len: Plain,
    frames: [Plain; STOCK_MAX],
}

impl Stock {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Stock {
        Stock {
            busy: AtomicBool::new(false),
            len: Plain::new(0),
            frames: [const { Plain::new(0) }; STOCK_MAX],
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Stock {
        Stock {
            busy: AtomicBool::new(false),
            len: Plain::new(0),
            frames: std::array::from_fn(|_| Plain::new(0)),
        }
    }

    /// The owner takes a frame, if the door is open and there is one.
    #[inline]
    pub(crate) fn pop(&self, door: &Door) -> Option<u32> {
        self.quick(door, || self.pop_any())
    }

    /// The owner puts a frame in, if the door is open and fewer than `most` are there.
    #[inline]
    pub(crate) fn push(&self, door: &Door, most: u32, frame: u32) -> bool {
        let put = || {
            let len = self.len.get();
            let fits = len < most;
            if fits {
                self.set(len, frame);
            }
            fits.then_some(())
        };
        self.quick(door, put).is_some()
    }

    #[inline]
    fn quick<R>(&self, door: &Door, section: impl FnOnce() -> Option<R>) -> Option<R> {
        self.busy.store(true, Ordering::Relaxed);
        let result = if door.admits() { section() } else { None };
        // Release: a drainer that sees this sees the section.
        self.busy.store(false, Ordering::Release);
        result
    }

    /// The owner enters a section without looking at the door. It has to ask under the pool's lock
    /// whether somebody drains before it uses what it gets.
    pub(crate) fn enter(&self) -> Section<'_> {
        self.busy.store(true, Ordering::Relaxed);
        Section { stock: self }
    }

    /// The drainer waits for the owner's section to end. Before: the door closed, the barrier passed.
    pub(crate) fn wait_idle(&self) {
        let mut turns = 0u32;
        while self.busy.load(Ordering::Acquire) {
            turns += 1;
            // An owner that lost its CPU in a section needs one to leave it.
            if turns.is_multiple_of(128) {
                sync::thread::yield_now()
            } else {
                sync::spin()
            }
            sync::see_latest(&self.busy);
        }
    }

    /// The number of frames, for the owner itself; a drainer may be about to take them.
    pub(crate) fn len_hint(&self) -> u32 {
        self.len.get()
    }

    #[inline]
    fn pop_any(&self) -> Option<u32> {
        let len = self.len.get().checked_sub(1)?;
        self.len.set(len);
        Some(self.frames[len as usize % STOCK_MAX].get())
    }

    #[inline]
    fn push_any(&self, frame: u32) {
        self.set(self.len.get(), frame);
    }

    /// Puts a frame on top of `len` others.
    #[inline]
    fn set(&self, len: u32, frame: u32) {
        debug_assert!(len < STOCK_MAX as u32);
        self.frames[len as usize % STOCK_MAX].set(frame);
        self.len.set(len + 1);
    }

    /// All frames, one by one, for a caller that may touch the stock.
    pub(crate) fn empty(&self) -> impl Iterator<Item = u32> {
        std::iter::from_fn(|| self.pop_any())
    }
}

/// The owner's section, until dropped.
pub(crate) struct Section<'a> {
    stock: &'a Stock,
}

impl Section<'_> {
    pub(crate) fn len(&self) -> u32 {
        self.stock.len.get()
    }

    pub(crate) fn pop(&self) -> Option<u32> {
        self.stock.pop_any()
    }

    pub(crate) fn push(&self, frame: u32) {
        self.stock.push_any(frame);
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.stock.busy.store(false, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
