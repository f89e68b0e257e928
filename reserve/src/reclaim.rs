//! Reclaim: how an embedder frees memory when the pool asks.
//!
//! ```text
//!   free frames
//!   high ──  background reclaim stops
//!   low  ──  background reclaim starts: a ReclaimThread is woken, or poll_reclaim says so
//!   min  ──  allocations that may wait queue, and reclaim for themselves: direct reclaim
//! ```
//!
//! The pool frees nothing itself: it calls [`Reclaim`] hooks, outside of all its locks.
//!
//! Rules, as in the kernel:
//! - *No re-entry.* An allocation made from inside a hook, of whatever pool, calls no hook and does not
//!   wait: it is served or refused at once (`PF_MEMALLOC`).
//! - *Limits go along.* The flags of the waiting call reach the direct hook, with those of the scopes that
//!   the thread is in ([`NoIoScope`], [`NoFsScope`]): a hook that would do I/O looks at
//!   [`Gfp::may_io`], one that would enter a filesystem at [`Gfp::may_fs`].
//! - *Turns are taken.* Once half of the floor is used, direct reclaimers wait until it is not (or until they
//!   are handed a frame), as many of them at once would use up what reclaim itself needs. Entitled callers never
//!   do. Background reclaim goes on.
//! - Reclaim needs memory, too: a hook enters the [`EmergencyScope`](crate::EmergencyScope) of its own
//!   reserve.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::gfp::Gfp;
use crate::lock::SpinLock;
use crate::magazine;
use crate::pool::PagePool;
use crate::slab;

/// What an embedder does to free memory. May be called from several threads at once.
pub trait Reclaim: Send + Sync {
    /// Frees up to about `wanted` frames, on the thread that does background reclaim. Returns how many
    /// came free.
    fn background(&self, pool: &PagePool, wanted: u32) -> u32;

    /// As [`Reclaim::background`], on the thread of an allocation that waits, which allows what `gfp`
    /// says. 0 if nothing can be done so: the caller then waits for others.
    fn direct(&self, pool: &PagePool, gfp: Gfp, wanted: u32) -> u32;
}

/// A hook's registration; dropping it takes the hook away. A call that has begun then still ends by itself.
#[must_use = "the hook is taken away when this is dropped"]
pub struct ReclaimHook {
    pool: PagePool,
    hook: Arc<dyn Reclaim>,
}

impl Drop for ReclaimHook {
    fn drop(&mut self) {
        self.pool.inner().reclaimers.remove(&self.hook);
    }
}

/// The hooks of a pool, and the thread to wake.
pub(crate) struct Reclaimers {
    hooks: Mutex<Vec<Arc<dyn Reclaim>>>,
    count: AtomicUsize,
    /// There is a thread to wake: what allocations look at.
    has_thread: AtomicBool,
    thread: SpinLock<Option<Thread>>,
    /// Between low and high: background reclaim has begun and not reached high. Belongs to whoever polls.
    running: AtomicBool,
}

impl Reclaimers {
    pub(crate) fn new() -> Reclaimers {
        Reclaimers {
            hooks: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
            has_thread: AtomicBool::new(false),
            thread: SpinLock::new(None),
            running: AtomicBool::new(false),
        }
    }

    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn hook(&self, i: usize) -> Option<Arc<dyn Reclaim>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).get(i).cloned()
    }

    fn add(&self, hook: Arc<dyn Reclaim>) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.push(hook);
        self.count.store(hooks.len(), Ordering::Relaxed);
    }

    fn remove(&self, hook: &Arc<dyn Reclaim>) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let at = hooks.iter().position(|h| Arc::ptr_eq(h, hook));
        let removed = at.map(|at| hooks.remove(at));
        self.count.store(hooks.len(), Ordering::Relaxed);
        drop(hooks);
        // The embedder's `Drop`, if this was the last of it, runs outside of the lock.
        drop(removed);
    }

    /// Calls hooks until `wanted` frames are said to be free.
    fn run(&self, wanted: u32, call: impl Fn(&dyn Reclaim, u32) -> u32) -> u32 {
        let _inside = Inside::enter();
        let mut freed = 0u32;
        let mut i = 0;
        while freed < wanted
            && let Some(hook) = self.hook(i)
        {
            freed = freed.saturating_add(call(&*hook, wanted - freed));
            i += 1;
        }
        freed
    }

    /// Wakes the reclaim thread, if there is one. Not under the pool's lock.
    #[inline]
    pub(crate) fn wake(&self) {
        if self.has_thread.load(Ordering::Relaxed) {
            self.wake_thread();
        }
    }

    #[cold]
    fn wake_thread(&self) {
        let thread = self.thread.lock().clone();
        if let Some(thread) = thread {
            thread.unpark();
        }
    }
}

/// Calls the direct hooks on behalf of a call with `gfp`.
pub(crate) fn direct(pool: &PagePool, gfp: Gfp, wanted: u32) -> u32 {
    let inner = pool.inner();
    inner.counters.direct_reclaims.add(1);
    let freed = inner.reclaimers.run(wanted, |hook, wanted| hook.direct(pool, gfp, wanted));
    inner.counters.direct_reclaimed.add(freed.into());
    freed
}

thread_local! {
    /// Whether a hook runs on this thread.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Scopes entered and not left: no I/O, no filesystem.
    static LIMITS: [Cell<u32>; 2] = const { [Cell::new(0), Cell::new(0)] };
}

/// Whether the current thread runs a reclaim hook.
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get)
}

struct Inside {
    before: bool,
}

impl Inside {
    fn enter() -> Inside {
        Inside { before: INSIDE.with(|inside| inside.replace(true)) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(self.before));
    }
}

/// The flags that the current thread's scopes add to every call.
pub(crate) fn limits() -> Gfp {
    LIMITS.with(|[io, fs]| {
        let mut gfp = Gfp::empty();
        gfp.set(Gfp::NOIO, io.get() > 0);
        gfp.set(Gfp::NOFS, fs.get() > 0);
        gfp
    })
}

/// Until it is dropped, every waiting allocation of the current thread has [`Gfp::NOIO`]
/// (`memalloc_noio_save`): for code that holds what starting I/O would need. Scopes nest.
#[must_use = "the scope ends when the guard is dropped"]
#[derive(Debug)]
pub struct NoIoScope(PhantomData<*const ()>);

/// Until it is dropped, every waiting allocation of the current thread has [`Gfp::NOFS`]
/// (`memalloc_nofs_save`). Scopes nest.
#[must_use = "the scope ends when the guard is dropped"]
#[derive(Debug)]
pub struct NoFsScope(PhantomData<*const ()>);

impl NoIoScope {
    /// Enters the scope.
    pub fn enter() -> NoIoScope {
        LIMITS.with(|[io, _]| io.set(io.get() + 1));
        NoIoScope(PhantomData)
    }
}

impl Drop for NoIoScope {
    fn drop(&mut self) {
        LIMITS.with(|[io, _]| io.set(io.get() - 1));
    }
}

impl NoFsScope {
    /// Enters the scope.
    pub fn enter() -> NoFsScope {
        LIMITS.with(|[_, fs]| fs.set(fs.get() + 1));
        NoFsScope(PhantomData)
    }
}

impl Drop for NoFsScope {
    fn drop(&mut self) {
        LIMITS.with(|[_, fs]| fs.set(fs.get() - 1));
    }
}

impl PagePool {
    /// Registers a way to free memory, behind those that are registered already: hooks are asked in that
    /// order until enough is free. At start, as the table of hooks is on the heap.
    ///
    /// The hook is given the pool; a handle of its own would keep the pool alive for ever.
    pub fn register_reclaim(&self, hook: Arc<dyn Reclaim>) -> ReclaimHook {
        self.inner().reclaimers.add(hook.clone());
        ReclaimHook { pool: self.clone(), hook }
    }

    /// Frames that background reclaim should free now: from the moment that free memory is at low until it
    /// is at high, what is missing to high; else 0. For an embedder whose own loop reclaims; it calls
    /// its own code, or [`PagePool::reclaim`].
    pub fn poll_reclaim(&self) -> u32 {
        let inner = self.inner();
        let (free, marks) = {
            let state = inner.lock();
            (state.free, state.marks)
        };
        let running = &inner.reclaimers.running;
        if free >= marks.high {
            running.store(false, Ordering::Relaxed);
        } else if free <= marks.low {
            running.store(true, Ordering::Relaxed);
        }
        if running.load(Ordering::Relaxed) { marks.high.saturating_sub(free) } else { 0 }
    }

    /// One turn of background reclaim on this thread, if it is due ([`PagePool::poll_reclaim`]): takes back
    /// the frames and free slab slots that threads keep, then calls the hooks. Returns the frames that came free, by
    /// their word; 0 from inside a hook.
    pub fn reclaim(&self) -> u32 {
        if is_inside() || self.poll_reclaim() == 0 {
            return 0;
        }
        let inner = self.inner();
        let drained = magazine::drain(inner) + slab::take_back_all(inner);
        let wanted = self.poll_reclaim();
        if wanted == 0 {
            return drained;
        }
        inner.counters.background_reclaims.add(1);
        let freed = inner.reclaimers.run(wanted, |hook, wanted| hook.background(self, wanted));
        inner.counters.background_reclaimed.add(freed.into());
        drained.saturating_add(freed)
    }
}

/// A thread that does background reclaim for a pool: woken when free memory falls to low, and by whoever
/// is refused a frame; goes on until high, or until nothing more comes free. It holds a handle of the pool.
/// Dropping it ends the thread after the turn it is in.
pub struct ReclaimThread {
    pool: PagePool,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReclaimThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system starts no thread, or the pool has such a thread already
    /// ([`io::ErrorKind::AlreadyExists`]).
    pub fn spawn(pool: &PagePool) -> io::Result<ReclaimThread> {
        let reclaimers = &pool.inner().reclaimers;
        if reclaimers.has_thread.swap(true, Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the pool has a reclaim thread",
            ));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (own, stopped) = (pool.clone(), stop.clone());
        let started = thread::Builder::new().name("reclaim".into()).spawn(move || {
            *own.inner().reclaimers.thread.lock() = Some(thread::current());
            // Whoever is short from here on wakes this thread; whoever was before is seen in the loop.
            while !stopped.load(Ordering::Acquire) {
                if own.reclaim() == 0 {
                    thread::park();
                }
            }
        });
        match started {
            Ok(thread) => Ok(ReclaimThread { pool: pool.clone(), stop, thread: Some(thread) }),
            Err(error) => {
                reclaimers.has_thread.store(false, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Drop for ReclaimThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A hook that panicked has said so on its own thread.
            let _ = thread.join();
        }
        let reclaimers = &self.pool.inner().reclaimers;
        let thread = reclaimers.thread.lock().take();
        drop(thread);
        reclaimers.has_thread.store(false, Ordering::Relaxed);
    }
}
