//! What is kept of a thread, made ahead of time.
//!
//! The first scope, magazine or kept slab object of a thread has the C library note what is to be done when the
//! thread ends (`__cxa_thread_atexit_impl`), and for each such note it takes a few bytes of its heap: unseen by
//! Rust's global allocator, and once for each thread. Under pressure even that may be too much.

/// Has what the C library keeps of a thread that uses a pool made now. To be called at start on a thread that pages;
/// after it, nothing in this crate takes heap memory but what says so.
///
/// ```
/// std::thread::spawn(|| {
///     netswap_reserve::prepare_thread();
///     // From here on the thread may enter scopes and allocate.
/// })
/// .join()
/// .unwrap();
/// ```
pub fn prepare_thread() {
    crate::scope::prepare_thread();
    crate::magazine::prepare_thread();
    crate::slab::prepare_thread();
}
