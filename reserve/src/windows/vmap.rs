//! `vmap`: a vector of pages as one contiguous range of bytes, as `vm_map_ram`.
//!
//! Each page is mapped a second time, at its place in the range. Only pages of a file can be; a low page
//! is refused, since its frame has its one address in the pool's region.
//!
//! While the range lives the pages are borrowed, so the compiler refuses to write them another way: the
//! alias that needs a flush and an invalidation on a virtually indexed cache cannot be made here. What
//! happens where it can is in [`alias`](crate::windows::alias).

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use rustix::io::Errno;

use crate::PAGE_SIZE;
use crate::windows::high::{HighPage, HighPool};
use crate::windows::page::{MapPage, MapPageMut, PageView, PageViewMut};
use crate::windows::space::{AddressRange, Refused};

/// Why pages could not be shown as one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmapError {
    /// There is no page to show.
    #[error("an empty vector has no range")]
    Empty,
    /// A page is low: it cannot be mapped a second time.
    #[error("page {at} of the vector is low and cannot be mapped a second time")]
    LowPage {
        /// Its place in the vector.
        at: usize,
    },
    /// A page is of another pool than the first one.
    #[error("page {at} of the vector is of another pool")]
    OtherPool {
        /// Its place in the vector.
        at: usize,
    },
    /// The system refused a mapping (`vm.max_map_count` bounds how many there may be).
    #[error("the system refused a mapping: {}", std::io::Error::from_raw_os_error(*code))]
    Refused {
        /// The system's error number.
        code: i32,
    },
}

struct Range {
    space: AddressRange,
    bytes: usize,
    // The file is open as long as the pages are; this keeps it for reports, and costs one count.
    _high: HighPool,
}

impl Range {
    /// Maps pages one after the other. They are borrowed as the caller says, for as long as `'p`: which is
    /// why each is asked for, also where its number would do.
    fn new<'p>(views: impl ExactSizeIterator<Item = PageView<'p>>) -> Result<Range, VmapError> {
        let refused = |Refused(code)| VmapError::Refused { code };
        let (bytes, mut views) = (views.len() * PAGE_SIZE, views);
        let count = u32::try_from(views.len()).map_err(|_| refused(Errno::NOMEM.into()))?;
        let first = number(views.next().ok_or(VmapError::Empty)?, 0)?;
        let high = HighPool { inner: first.pool.clone() };
        let space = AddressRange::reserve(count).map_err(refused)?;
        let map = |run: Run| {
            // SAFETY: the range is new, and nobody has seen its address.
            unsafe { space.map(run.at, run.pages, high.file(), run.index) }.map_err(refused)
        };
        // Neighbours in the file are mapped by one call.
        let mut run = Run { at: 0, pages: 1, index: first.index() };
        for (at, view) in views.enumerate() {
            let at = at + 1;
            let page = number(view, at)?;
            if !page.is_of(&high) {
                return Err(VmapError::OtherPool { at });
            }
            if page.index() == run.index + run.pages {
                run.pages += 1;
                continue;
            }
            map(run)?;
            run = Run { at: at as u32, pages: 1, index: page.index() };
        }
        map(run)?;
        Ok(Range { space, bytes, _high: high })
    }
}

/// Pages of the vector from `at` on that are neighbours in the file, from `index` on.
struct Run {
    at: u32,
    pages: u32,
    index: u32,
}

fn number(view: PageView<'_>, at: usize) -> Result<&HighPage, VmapError> {
    match view {
        PageView::High(page) => Ok(page),
        PageView::Low(_) => Err(VmapError::LowPage { at }),
    }
}

/// A page vector as one range, to be read. Dropping it unmaps the range.
pub struct Vmap<'p> {
    range: Range,
    _pages: PhantomData<&'p [u8]>,
}

/// A page vector as one range, to be read and written. Dropping it unmaps the range.
pub struct VmapMut<'p> {
    range: Range,
    _pages: PhantomData<&'p mut [u8]>,
}

/// Shows pages as one range, to be read.
///
/// ```
/// use netswap_reserve::PAGE_SIZE;
/// use netswap_reserve::windows::{HighPool, vmap, vmap_mut};
///
/// let high = HighPool::new(4)?;
/// let mut pages = [high.alloc()?, high.alloc()?];
/// vmap_mut(&mut pages)?[PAGE_SIZE - 2..][..4].copy_from_slice(b"over");
/// assert_eq!(&vmap(&pages)?[PAGE_SIZE - 2..][..4], b"over");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the vector is empty, a page of it is low, or the system refuses.
pub fn vmap<P: MapPage>(pages: &[P]) -> Result<Vmap<'_>, VmapError> {
    Ok(Vmap { range: Range::new(pages.iter().map(P::view))?, _pages: PhantomData })
}

/// Shows pages as one range, to be read and written.
///
/// # Errors
/// As [`vmap()`].
pub fn vmap_mut<P: MapPageMut>(pages: &mut [P]) -> Result<VmapMut<'_>, VmapError> {
    // A mutable borrow of each, so that none can be shared: a type may lie about `view`.
    let views = pages.iter_mut().map(|page| match page.view_mut() {
        PageViewMut::Low(bytes) => PageView::Low(bytes),
        PageViewMut::High(page) => PageView::High(page),
    });
    Ok(VmapMut { range: Range::new(views)?, _pages: PhantomData })
}

impl Range {
    fn slice(&self) -> &[u8] {
        // SAFETY: `new` mapped pages of the file over all `bytes` of the range; they stay mapped until it
        // is dropped, and the handle's lifetime keeps everybody from writing the pages meanwhile.
        unsafe { std::slice::from_raw_parts(self.space.address(0).as_ptr(), self.bytes) }
    }
}

impl Deref for Vmap<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.range.slice()
    }
}

impl Deref for VmapMut<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.range.slice()
    }
}

impl DerefMut for VmapMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `slice`; the pages are borrowed mutably for as long as `self` lives, so each is in
        // the range once and mapped nowhere else, and `self` is borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.range.space.address(0).as_ptr(), self.range.bytes)
        }
    }
}

impl fmt::Debug for Vmap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmap").field("bytes", &self.range.bytes).finish()
    }
}

impl fmt::Debug for VmapMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmapMut").field("bytes", &self.range.bytes).finish()
    }
}
