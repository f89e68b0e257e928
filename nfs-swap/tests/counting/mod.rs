//! Counts the heap allocations of a thread while it is armed: those of Rust, and those of C code, `getaddrinfo`
//! for one, which a `#[global_allocator]` never sees.
//!
//! Rust's are counted by a global allocator. For all there are, the test binary defines `malloc` and its kin itself: the
//! dynamic linker takes the program's before the C library's, for the C library too, and they pass each call on
//! to glibc's own names. Memory comes from glibc as ever, so its `free` needs no counterpart here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

thread_local! {
    // Constants without a destructor: touching them allocates nothing.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static RUST: Cell<u64> = const { Cell::new(0) };
    static ALL: Cell<u64> = const { Cell::new(0) };
}

/// Allocations of a thread. What Rust asks for, it asks the C library for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heap {
    pub(crate) rust: u64,
    /// Rust's and C's.
    pub(crate) all: u64,
}

/// None at all.
pub(crate) const NOTHING: Heap = Heap { rust: 0, all: 0 };

fn count(of: &'static std::thread::LocalKey<Cell<u64>>) {
    if ARMED.get() {
        of.set(of.get() + 1);
    }
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&RUST);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(&RUST);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(&RUST);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: names and types are those that glibc has had since version 2.0 (malloc/malloc.c).
unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(ptr: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

/// `malloc(3)`.
///
/// # Safety
/// As there.
// SAFETY: it does what the C library's function of this name does.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    count(&ALL);
    // SAFETY: the caller's promise is passed on.
    unsafe { __libc_malloc(size) }
}

/// `calloc(3)`.
///
/// # Safety
/// As there.
// SAFETY: it does what the C library's function of this name does.
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(number: usize, size: usize) -> *mut c_void {
    count(&ALL);
    // SAFETY: the caller's promise is passed on.
    unsafe { __libc_calloc(number, size) }
}

/// `realloc(3)`.
///
/// # Safety
/// As there.
// SAFETY: it does what the C library's function of this name does.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(ptr: *mut c_void, size: usize) -> *mut c_void {
    count(&ALL);
    // SAFETY: the caller's promise is passed on; `ptr` came from glibc, as all memory does.
    unsafe { __libc_realloc(ptr, size) }
}

/// `aligned_alloc(3)`.
///
/// # Safety
/// As there.
// SAFETY: it does what the C library's function of this name does.
#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    count(&ALL);
    // SAFETY: the caller's promise is passed on.
    unsafe { __libc_memalign(align, size) }
}

/// `posix_memalign(3)`.
///
/// # Safety
/// As there.
// SAFETY: it does what the C library's function of this name does.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    const ENOMEM: c_int = 12;
    count(&ALL);
    // SAFETY: the caller's promise is passed on.
    let memory = unsafe { __libc_memalign(align, size) };
    if memory.is_null() {
        return ENOMEM;
    }
    // SAFETY: the caller gives a place for a pointer.
    unsafe { *out = memory };
    0
}

/// Allocations of this thread while `work` runs.
pub(crate) fn allocations(work: impl FnOnce()) -> Heap {
    RUST.set(0);
    ALL.set(0);
    ARMED.set(true);
    work();
    ARMED.set(false);
    Heap { rust: RUST.get(), all: ALL.get() }
}

/// Panics if a planted allocation is not counted: of Rust, of each kind, or of C.
pub(crate) fn must_catch_planted_ones() {
    use std::hint::black_box;
    use std::net::ToSocketAddrs;

    let one = Heap { rust: 1, all: 1 };
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), one);
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 100]))), one);
    let mut vec = Vec::with_capacity(1);
    assert_eq!(allocations(|| vec.extend(black_box([1, 2, 3]))), one);
    #[repr(align(4096))]
    struct Page(u8);
    let page = || assert_eq!(black_box(Box::new(Page(1))).0, 1);
    assert_eq!(allocations(page), one);
    // The resolver is C code with a heap of its own needs.
    let resolved = allocations(|| drop(black_box(("localhost", 2049).to_socket_addrs())));
    assert!(resolved.all > resolved.rust, "{resolved:?}");
    assert_eq!(allocations(|| ()), NOTHING);
}
