//! A global allocator that counts what a thread asks for while it is armed. Other threads, the test
//! harness's among them, do not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: Cell<u64> = const { Cell::new(0) };
}

pub struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn count() {
    // A thread that is ending has no counters any more.
    let _ = ARMED.try_with(|armed| {
        if armed.get() {
            CAUGHT.with(|caught| caught.set(caught.get() + 1));
        }
    });
}

/// Allocations while `work` runs.
pub fn allocations(work: impl FnOnce()) -> u64 {
    CAUGHT.with(|caught| caught.set(0));
    ARMED.with(|armed| armed.set(true));
    work();
    ARMED.with(|armed| armed.set(false));
    CAUGHT.with(Cell::get)
}
