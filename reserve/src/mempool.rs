//! Mempools: a few objects or pages that are kept so that work already begun can go on, as the kernel's
//! `mempool_t`.
//!
//! ```text
//!   allocation ──> ordinary memory? ──> elements kept? ──> the reserve? ──> refused, counted
//!   free       ──> elements missing? keep it : back to the pool
//! ```
//!
//! Promise: of the elements that a mempool gives out, `min` can always be out at once, whatever memory does.
//! Those that it has kept, and those of them that are out, are `min` together: an ordinary allocation never
//! takes a kept element, and what is freed fills the gap first, whichever element it is. Only one that is
//! charged to a reserve is not kept, so that a reserve gets its frames back.
//!
//! A mempool promises that work goes on with `min` elements; it does not say that an element is free when
//! one is wanted and `min` are out. That is what a reservation is for.

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::PAGE_SIZE;
use crate::frame::Frame;
use crate::gfp::Gfp;
use crate::lock::SpinLock;
use crate::pool::{AllocError, PagePool};
use crate::reserves::ReserveId;
use crate::slab::{SlabBox, SlabCache, SlabError, SlabUsage};

/// How a mempool is set up.
#[derive(Clone, Copy, Debug)]
pub struct MempoolConfig {
    /// Elements that are kept: taken from ordinary memory when the mempool is made.
    pub min: u32,
    /// The reserve that is charged when neither ordinary memory nor kept elements are left. Without one
    /// that is up to the ambient scope and the flags of the call.
    pub reserve: Option<ReserveId>,
}

/// What a mempool has done. Allocations from ordinary memory are not counted: they touch nothing shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MempoolStats {
    /// Elements that it keeps when all are back.
    pub min: u32,
    /// Elements kept now.
    pub kept: u32,
    /// The fewest that were ever kept.
    pub kept_lowest: u32,
    /// Allocations served by kept elements.
    pub from_kept: u64,
    /// Allocations charged to a reserve.
    pub from_reserve: u64,
    /// Allocations refused.
    pub failures: u64,
}

/// What can be kept.
trait Element {
    fn is_charged(&self) -> bool;
}

impl Element for Frame {
    fn is_charged(&self) -> bool {
        self.charged_to().is_some()
    }
}

impl<T> Element for SlabBox<T> {
    fn is_charged(&self) -> bool {
        self.charged_to().is_some()
    }
}

/// The elements kept, and the order in which an allocation looks.
struct Kept<E> {
    min: u32,
    reserve: Option<ReserveId>,
    /// Length of `elements`, for frees that look without the lock. One that reads too high a number frees
    /// an element that could have been kept; whoever took one from here reads what it wrote itself, or
    /// what was handed over with the element, so the ones taken do come back.
    len: AtomicU32,
    state: SpinLock<State<E>>,
    from_reserve: AtomicU64,
    failures: AtomicU64,
}

struct State<E> {
    /// Its capacity is `min`.
    elements: Vec<E>,
    lowest: u32,
    taken: u64,
}

impl<E: Element> Kept<E> {
    fn fill(
        config: &MempoolConfig,
        one: impl FnMut() -> Result<E, AllocError>,
    ) -> Result<Kept<E>, AllocError> {
        let mut elements = Vec::with_capacity(config.min as usize);
        for element in std::iter::repeat_with(one).take(config.min as usize) {
            elements.push(element?);
        }
        Ok(Kept {
            min: config.min,
            reserve: config.reserve,
            len: AtomicU32::new(config.min),
            state: SpinLock::new(State { elements, lowest: config.min, taken: 0 }),
            from_reserve: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    fn take(&self) -> Option<E> {
        let mut state = self.state.lock();
        let element = state.elements.pop()?;
        let len = state.elements.len() as u32;
        state.lowest = state.lowest.min(len);
        state.taken += 1;
        self.len.store(len, Ordering::Relaxed);
        Some(element)
    }

    /// Keeps the element if one is missing, else frees it.
    #[inline]
    fn put(&self, element: E) {
        if self.len.load(Ordering::Relaxed) < self.min {
            self.refill(element);
        }
    }

    #[cold]
    fn refill(&self, element: E) {
        if element.is_charged() {
            return;
        }
        let mut state = self.state.lock();
        if state.elements.len() < self.min as usize {
            state.elements.push(element);
            self.len.store(state.elements.len() as u32, Ordering::Relaxed);
        } else {
            // Not under the lock.
            drop(state);
            drop(element);
        }
    }

    /// After ordinary memory has refused: a kept element, or what `last` gives for the reserve.
    #[cold]
    fn fall_back<V>(
        &self,
        refused: Refused<V>,
        last: impl FnOnce(Option<ReserveId>, V) -> Result<E, Refused<V>>,
    ) -> Result<(E, Option<V>), Refused<V>> {
        if let Some(element) = self.take() {
            return Ok((element, Some(refused.value)));
        }
        match last(self.reserve, refused.value) {
            Ok(element) => {
                if element.is_charged() {
                    self.from_reserve.fetch_add(1, Ordering::Relaxed);
                }
                Ok((element, None))
            }
            Err(refused) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(refused)
            }
        }
    }

    fn stats(&self) -> MempoolStats {
        let state = self.state.lock();
        MempoolStats {
            min: self.min,
            kept: state.elements.len() as u32,
            kept_lowest: state.lowest,
            from_kept: state.taken,
            from_reserve: self.from_reserve.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// Why not, and what was to be stored.
struct Refused<V> {
    error: AllocError,
    value: V,
}

/// Objects of a type, of which a minimum is kept.
///
/// ```
/// use netswap_reserve::{Gfp, Mempool, MempoolConfig, PagePool, PoolConfig};
///
/// let pool = PagePool::new(PoolConfig::new(256));
/// let requests = Mempool::<[u64; 8]>::new(&pool, MempoolConfig { min: 2, reserve: None })?;
/// // Memory is gone ...
/// let mut hog = Vec::new();
/// while let Ok(frame) = pool.alloc(Gfp::ATOMIC) {
///     hog.push(frame);
/// }
/// // ... and what is left of the cache's last page goes, too.
/// let mut others = Vec::new();
/// while requests.stats().kept == 2 {
///     others.push(requests.alloc(Gfp::KERNEL, [0; 8]).expect("not yet the last"));
/// }
/// let last = requests.alloc(Gfp::KERNEL, [1; 8]).expect("the second of two");
/// assert!(requests.alloc(Gfp::KERNEL, [2; 8]).is_err());
/// drop(last);
/// assert_eq!(requests.stats().kept, 1);
/// # Ok::<(), netswap_reserve::AllocError>(())
/// ```
pub struct Mempool<T> {
    shared: Arc<Objects<T>>,
}

type Slot<T> = SlabBox<MaybeUninit<T>>;

struct Objects<T> {
    // Before the cache, so that its last object is not what keeps the cache.
    kept: Kept<Slot<T>>,
    cache: SlabCache<MaybeUninit<T>>,
}

/// An object of a [`Mempool`], owned. Dropping it fills the mempool first.
pub struct MempoolBox<T> {
    /// Holds a value until the box is dropped.
    slot: ManuallyDrop<Slot<T>>,
    shared: Arc<Objects<T>>,
}

impl<T> Mempool<T> {
    /// A mempool with a cache of its own in `pool`.
    ///
    /// # Errors
    /// When ordinary memory does not have `config.min` objects.
    pub fn new(pool: &PagePool, config: MempoolConfig) -> Result<Mempool<T>, AllocError> {
        let cache = SlabCache::<MaybeUninit<T>>::new(pool);
        let one = || cache.alloc(ORDINARY, MaybeUninit::uninit()).map_err(|refused| refused.error);
        let kept = Kept::fill(&config, one)?;
        Ok(Mempool { shared: Arc::new(Objects { kept, cache }) })
    }

    /// One object: of ordinary memory as `gfp` allows, else a kept one, else of the reserve.
    ///
    /// # Errors
    /// When all three have none; `value` is handed back.
    pub fn alloc(&self, gfp: Gfp, value: T) -> Result<MempoolBox<T>, SlabError<T>> {
        let Objects { kept, cache } = &*self.shared;
        let refused = |refused: SlabError<MaybeUninit<T>>| Refused {
            error: refused.error,
            value: refused.value,
        };
        let slot = match cache.alloc(gfp | Gfp::NOMEMALLOC, MaybeUninit::new(value)) {
            Ok(slot) => slot,
            Err(first) => {
                let last = |reserve, value| match reserve {
                    Some(reserve) => cache.alloc_from(gfp, reserve, value).map_err(refused),
                    None => cache.alloc(gfp, value).map_err(refused),
                };
                match kept.fall_back(refused(first), last) {
                    Ok((slot, None)) => slot,
                    Ok((mut slot, Some(value))) => {
                        *slot = value;
                        slot
                    }
                    Err(Refused { error, value }) => {
                        // SAFETY: the value went around as it was made above.
                        return Err(SlabError { error, value: unsafe { value.assume_init() } });
                    }
                }
            }
        };
        Ok(MempoolBox { slot: ManuallyDrop::new(slot), shared: self.shared.clone() })
    }

    /// What it has done.
    pub fn stats(&self) -> MempoolStats {
        self.shared.kept.stats()
    }

    /// What its cache holds, kept objects included.
    pub fn usage(&self) -> SlabUsage {
        self.shared.cache.usage()
    }

    /// As [`SlabCache::shrink`]; kept elements stay.
    pub fn shrink(&self) -> u32 {
        self.shared.cache.shrink()
    }
}

/// Flags of an allocation that takes ordinary memory only.
const ORDINARY: Gfp = Gfp::NOMEMALLOC;

impl<T> MempoolBox<T> {
    /// The reserve that the object's page is charged to, if it is a reserve page.
    pub fn charged_to(&self) -> Option<ReserveId> {
        self.slot.charged_to()
    }
}

impl<T> Deref for MempoolBox<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the slot holds a value until the box is dropped.
        unsafe { self.slot.assume_init_ref() }
    }
}

impl<T> DerefMut for MempoolBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.slot.assume_init_mut() }
    }
}

impl<T> Drop for MempoolBox<T> {
    fn drop(&mut self) {
        /// Gives the slot back even if the value's own drop panics.
        struct GiveBack<'a, T>(Option<Slot<T>>, &'a Kept<Slot<T>>);
        impl<T> Drop for GiveBack<'_, T> {
            fn drop(&mut self) {
                self.0.take().into_iter().for_each(|slot| self.1.put(slot));
            }
        }
        // SAFETY: the box ends here and uses its slot no more.
        let slot = unsafe { ManuallyDrop::take(&mut self.slot) };
        let mut slot = GiveBack(Some(slot), &self.shared.kept);
        if let Some(slot) = &mut slot.0 {
            // SAFETY: the slot holds a value, which is dropped here once.
            unsafe { slot.assume_init_drop() };
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for MempoolBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> fmt::Debug for Mempool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mempool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Pages, of which a minimum is kept.
///
/// ```
/// use netswap_reserve::{Gfp, MempoolConfig, PageMempool, PagePool, PoolConfig};
///
/// let pool = PagePool::new(PoolConfig::new(256));
/// let pages = PageMempool::new(&pool, MempoolConfig { min: 1, reserve: None })?;
/// let hog: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
/// let mut page = pages.alloc(Gfp::KERNEL)?;
/// page.bytes_mut()[0] = 1;
/// assert!(pages.alloc(Gfp::KERNEL).is_err());
/// drop(page);
/// assert!(pages.alloc(Gfp::KERNEL).is_ok());
/// # Ok::<(), netswap_reserve::AllocError>(())
/// ```
pub struct PageMempool {
    shared: Arc<Pages>,
}

struct Pages {
    kept: Kept<Frame>,
    pool: PagePool,
}

/// A page of a [`PageMempool`], owned. Dropping it fills the mempool first.
pub struct MempoolPage {
    frame: ManuallyDrop<Frame>,
    shared: Arc<Pages>,
}

impl PageMempool {
    /// A mempool of pages of `pool`.
    ///
    /// # Errors
    /// When ordinary memory does not have `config.min` pages.
    pub fn new(pool: &PagePool, config: MempoolConfig) -> Result<PageMempool, AllocError> {
        let kept = Kept::fill(&config, || pool.alloc(ORDINARY))?;
        Ok(PageMempool { shared: Arc::new(Pages { kept, pool: pool.clone() }) })
    }

    /// One page, its content unspecified: of ordinary memory as `gfp` allows, else a kept one, else of the
    /// reserve.
    ///
    /// # Errors
    /// When all three have none.
    pub fn alloc(&self, gfp: Gfp) -> Result<MempoolPage, AllocError> {
        let Pages { kept, pool } = &*self.shared;
        let frame = match pool.alloc(gfp | Gfp::NOMEMALLOC) {
            Ok(frame) => frame,
            Err(error) => {
                let last = |reserve, ()| {
                    let frame = match reserve {
                        Some(reserve) => pool.alloc_from(gfp, reserve),
                        None => pool.alloc(gfp),
                    };
                    frame.map_err(|error| Refused { error, value: () })
                };
                let found = kept.fall_back(Refused { error, value: () }, last);
                found.map_err(|refused| refused.error)?.0
            }
        };
        Ok(MempoolPage { frame: ManuallyDrop::new(frame), shared: self.shared.clone() })
    }

    /// What it has done.
    pub fn stats(&self) -> MempoolStats {
        self.shared.kept.stats()
    }
}

impl MempoolPage {
    /// The content, to be written.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        self.frame.bytes_mut()
    }
}

impl Deref for MempoolPage {
    type Target = Frame;
    #[inline]
    fn deref(&self) -> &Frame {
        &self.frame
    }
}

impl Drop for MempoolPage {
    fn drop(&mut self) {
        // SAFETY: the handle ends here and uses its frame no more.
        self.shared.kept.put(unsafe { ManuallyDrop::take(&mut self.frame) });
    }
}

impl fmt::Debug for MempoolPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frame.fmt(f)
    }
}

impl fmt::Debug for PageMempool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMempool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
