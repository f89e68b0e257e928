//! What a reservation is asked for: pages, and objects of caches of any type.

use std::fmt;
use std::ptr;

use crate::slab::SlabCache;

/// Caches that one spec can name. Picked by eye: a file system's operation needs three or four.
pub const CACHES_MAX: usize = 4;

/// What an operation may consume for good, in the worst case.
///
/// ```
/// use netswap_reserve::{PagePool, PoolConfig, ReservationSpec, SlabCache};
///
/// let pool = PagePool::new(PoolConfig::new(256));
/// let inodes = SlabCache::<[u64; 32]>::new(&pool);
/// let spec = ReservationSpec::pages(4).objects(&inodes, 20);
/// assert_eq!(spec.frames(), 4 + 2, "15 such objects fit a page");
/// ```
#[derive(Clone, Copy)]
pub struct ReservationSpec<'c> {
    pub(super) pages: u32,
    pub(super) parts: [Option<Part<'c>>; CACHES_MAX],
}

/// The objects of one cache in a spec, or in a reservation.
#[derive(Clone, Copy)]
pub(super) struct Part<'c> {
    pub(super) cache: &'c (dyn Reservable + Sync),
    /// Objects left.
    pub(super) objects: u32,
    /// The page of the cache that only this reservation takes slots from, and how many are left of it.
    pub(super) page: Option<u32>,
    pub(super) slots: u32,
}

impl Part<'_> {
    /// Frames that the objects left need in the worst case.
    pub(super) fn frames(&self) -> u32 {
        self.objects.saturating_sub(self.slots).div_ceil(self.cache.per_page())
    }
}

/// A cache of any type.
pub(super) trait Reservable {
    fn per_page(&self) -> u32;
    fn is_of(&self, pool: u32) -> bool;
    /// # Safety
    /// `page` was pinned by the caller, who gives it up.
    unsafe fn unpin_page(&self, page: u32);
}

impl<T: Send> Reservable for SlabCache<T> {
    fn per_page(&self) -> u32 {
        Self::PER_PAGE
    }

    fn is_of(&self, pool: u32) -> bool {
        self.pool_id() == pool
    }

    unsafe fn unpin_page(&self, page: u32) {
        // SAFETY: as this function demands.
        unsafe { self.unpin(page) }
    }
}

impl ReservationSpec<'static> {
    /// `pages` pages.
    pub const fn pages(pages: u32) -> ReservationSpec<'static> {
        ReservationSpec { pages, parts: [None; CACHES_MAX] }
    }
}

impl<'c> ReservationSpec<'c> {
    /// And `objects` objects of `cache`; of one cache they add up.
    ///
    /// # Panics
    /// With more than [`CACHES_MAX`] caches.
    #[must_use]
    pub fn objects<'b, T: Send>(self, cache: &'b SlabCache<T>, objects: u32) -> ReservationSpec<'b>
    where
        'c: 'b,
    {
        let mut spec: ReservationSpec<'b> = self;
        let at = spec.parts.iter().position(|p| match p {
            Some(part) => is_same(part.cache, cache),
            None => true,
        });
        let at = at.unwrap_or_else(|| panic!("a spec names at most {CACHES_MAX} caches"));
        let part = spec.parts[at].get_or_insert(Part { cache, objects: 0, page: None, slots: 0 });
        part.objects = part.objects.saturating_add(objects);
        spec
    }

    /// The frames that are promised for it. A sum above 2^32 - 1 stays there: no pool is that large.
    pub fn frames(&self) -> u32 {
        let parts = self.parts.iter().flatten();
        parts.fold(self.pages, |sum, part| sum.saturating_add(part.frames()))
    }
}

impl fmt::Debug for ReservationSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let objects: Vec<u32> = self.parts.iter().flatten().map(|part| part.objects).collect();
        f.debug_struct("ReservationSpec")
            .field("pages", &self.pages)
            .field("objects", &objects)
            .finish()
    }
}

pub(super) fn is_same<T>(a: &dyn Reservable, b: &SlabCache<T>) -> bool {
    ptr::eq(ptr::from_ref(a).cast::<()>(), ptr::from_ref(b).cast())
}
