//! High pages: memory that is not mapped anywhere until somebody looks at it.
//!
//! They are the pages of a memfd. Like the highmem of a 32-bit kernel, they cost no address space while
//! they travel, and are touched only through a window. A page is owned by one handle, and its number is
//! its place in the file, so what a window shows is decided by the number alone: a mapping that outlives
//! a handle shows the same page to the next owner of the number.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate};
use rustix::io::Errno;

use crate::PAGE_SIZE;
use crate::backing;
use crate::lock::SpinLock;

/// A memfd of a fixed number of pages.
pub(super) struct Memfd {
    fd: OwnedFd,
    pages: u32,
}

impl Memfd {
    /// Makes the file. With `commit` its memory is taken now, so that no access can fail for want of it.
    fn create(pages: u32, commit: bool) -> rustix::io::Result<Memfd> {
        let bytes = pages as usize * PAGE_SIZE;
        let fd = backing::memfd("netswap-high-pages", bytes, MemfdFlags::empty())?;
        if commit {
            fallocate(&fd, FallocateFlags::empty(), 0, bytes as u64)?;
        }
        Ok(Memfd { fd, pages })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a pool of high pages could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HighPoolError {
    /// A pool has at least one page, and at most 2^31.
    #[error("a pool of high pages has between 1 and 2^31 pages, not {pages}")]
    Size {
        /// Pages asked for.
        pages: u32,
    },
    /// The system refused the file or its memory.
    #[error("cannot make a memfd of {pages} pages: {source}")]
    Memfd {
        /// Pages asked for.
        pages: u32,
        /// What the system said.
        source: std::io::Error,
    },
}

/// All high pages are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {pages} high pages are in use")]
pub struct HighExhausted {
    /// Pages of the pool.
    pub pages: u32,
}

const END: u32 = u32::MAX;

struct FreePages {
    /// For a page that is free and was used before: the next such one.
    next: Box<[u32]>,
    first: u32,
    /// Pages from here on were never used.
    fresh: u32,
    out: u32,
}

pub(super) struct HighInner {
    pub(super) file: Memfd,
    free: SpinLock<FreePages>,
}

/// A bounded pool of high pages, in a memfd of its own. Cloning gives another handle.
///
/// ```
/// use netswap_reserve::windows::{HighPool, MapWindows, WindowsConfig};
///
/// let high = HighPool::new(64)?;
/// let windows = MapWindows::new(&high, WindowsConfig::new(8))?;
/// let mut page = high.alloc()?;
/// windows.try_map_mut(&mut page)?[..5].copy_from_slice(b"hello");
/// assert_eq!(&windows.try_map(&page)?[..5], b"hello");
/// assert_eq!(windows.counters().hits, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct HighPool {
    pub(super) inner: Arc<HighInner>,
}

impl HighPool {
    /// A pool of `pages` pages of zeros, whose memory is taken now.
    ///
    /// # Errors
    /// When the number is out of range, or the system has not the memory.
    pub fn new(pages: u32) -> Result<HighPool, HighPoolError> {
        HighPool::make(pages, true)
    }

    /// As [`HighPool::new`], but the system finds the memory for a page when it is first touched. When
    /// it has none then, the process gets a SIGBUS or is killed: for pools that swap nothing.
    ///
    /// # Errors
    /// When the number is out of range, or the system refuses the file.
    pub fn new_uncommitted(pages: u32) -> Result<HighPool, HighPoolError> {
        HighPool::make(pages, false)
    }

    fn make(pages: u32, commit: bool) -> Result<HighPool, HighPoolError> {
        if pages == 0 || pages > 1 << 31 {
            return Err(HighPoolError::Size { pages });
        }
        let failed = |errno: Errno| HighPoolError::Memfd { pages, source: errno.into() };
        let mut next = Vec::new();
        next.try_reserve_exact(pages as usize).map_err(|_| failed(Errno::NOMEM))?;
        next.resize(pages as usize, END);
        let file = Memfd::create(pages, commit).map_err(failed)?;
        let free = FreePages { next: next.into_boxed_slice(), first: END, fresh: 0, out: 0 };
        Ok(HighPool { inner: Arc::new(HighInner { file, free: SpinLock::new(free) }) })
    }

    /// Takes a page, with whatever bytes its last owner left in it (zeros at first). Never blocks.
    ///
    /// # Errors
    /// When all pages are out.
    pub fn alloc(&self) -> Result<HighPage, HighExhausted> {
        let mut free = self.inner.free.lock();
        let index = if free.first != END {
            let index = free.first;
            free.first = free.next[index as usize];
            index
        } else if free.fresh < self.inner.file.pages {
            free.fresh += 1;
            free.fresh - 1
        } else {
            return Err(HighExhausted { pages: self.inner.file.pages });
        };
        free.out += 1;
        drop(free);
        Ok(HighPage { pool: self.inner.clone(), index })
    }

    pub(super) fn file(&self) -> &Memfd {
        &self.inner.file
    }

    /// Pages of the pool.
    pub fn pages(&self) -> u32 {
        self.inner.file.pages
    }

    /// Pages that nobody owns.
    pub fn free_pages(&self) -> u32 {
        self.inner.file.pages - self.inner.free.lock().out
    }
}

impl fmt::Debug for HighPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HighPool")
            .field("pages", &self.pages())
            .field("free", &self.free_pages())
            .finish()
    }
}

/// One high page, owned. It has no address: see [`MapWindows`](crate::windows::MapWindows),
/// [`LocalWindows`](crate::windows::LocalWindows) and [`vmap`](crate::windows::vmap()). Dropping it frees
/// it.
pub struct HighPage {
    pub(super) pool: Arc<HighInner>,
    index: u32,
}

impl HighPage {
    /// Its number in the pool.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it is a page of `pool`.
    #[inline]
    pub fn is_of(&self, pool: &HighPool) -> bool {
        Arc::ptr_eq(&self.pool, &pool.inner)
    }
}

impl Drop for HighPage {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        free.next[self.index as usize] = free.first;
        free.first = self.index;
        free.out -= 1;
    }
}

impl fmt::Debug for HighPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HighPage").field("index", &self.index).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::ftruncate;

    #[test]
    fn a_pool_gives_each_page_to_one_owner_and_says_when_all_are_out() {
        let pool = HighPool::new(3).unwrap();
        let mut pages: Vec<HighPage> = (0..3).map(|_| pool.alloc().unwrap()).collect();
        let mut indices: Vec<u32> = pages.iter().map(HighPage::index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2]);
        assert_eq!(pool.alloc().unwrap_err(), HighExhausted { pages: 3 });
        let freed = pages.pop().unwrap().index();
        assert_eq!(pool.free_pages(), 1);
        let again = pool.alloc().unwrap();
        assert_eq!(again.index(), freed);
        drop((pages, again));
        assert_eq!(pool.free_pages(), 3);
    }

    #[test]
    fn a_pool_without_pages_or_with_too_many_is_refused() {
        assert!(matches!(HighPool::new(0), Err(HighPoolError::Size { pages: 0 })));
        assert!(matches!(HighPool::new(u32::MAX), Err(HighPoolError::Size { .. })));
    }

    #[test]
    fn the_file_cannot_be_made_shorter_so_no_mapping_ends_in_a_bus_error() {
        let pool = HighPool::new(2).unwrap();
        assert_eq!(ftruncate(pool.inner.file.fd(), 0), Err(Errno::PERM));
        assert_eq!(ftruncate(pool.inner.file.fd(), 1 << 20), Err(Errno::PERM));
    }
}
