//! Local mappings: a few windows of one thread, last in first out, as `kmap_local_page`.
//!
//! They need no lock, are never full for others' sake and never wait. In return they belong to one
//! thread, and are given back in the opposite order; the borrow checker holds both. A mapping made inside
//! another one borrows it mutably:
//!
//! ```compile_fail,E0505
//! use netswap_reserve::windows::{HighPool, LocalWindows};
//! let high = HighPool::new(2).unwrap();
//! let mut local = LocalWindows::new(&high, 2).unwrap();
//! let (a, b) = (high.alloc().unwrap(), high.alloc().unwrap());
//! let mut outer = local.map(&a).unwrap();
//! let inner = outer.map(&b).unwrap();
//! drop(outer); // out of order
//! assert_eq!(inner[0], 0);
//! ```
//!
//! Two of the same depth would share a window, and cannot be made:
//!
//! ```compile_fail,E0499
//! use netswap_reserve::windows::{HighPool, LocalWindows};
//! let high = HighPool::new(2).unwrap();
//! let mut local = LocalWindows::new(&high, 2).unwrap();
//! let (a, b) = (high.alloc().unwrap(), high.alloc().unwrap());
//! let first = local.map(&a).unwrap();
//! let second = local.map(&b).unwrap();
//! assert_eq!(first[0], second[0]);
//! ```
//!
//! A mapping does not reach another thread:
//!
//! ```compile_fail,E0277
//! use netswap_reserve::windows::{HighPool, LocalWindows};
//! let high = HighPool::new(1).unwrap();
//! let mut local = LocalWindows::new(&high, 1).unwrap();
//! let page = high.alloc().unwrap();
//! let mapped = local.map(&page).unwrap();
//! std::thread::scope(|s| { s.spawn(move || mapped[0]); });
//! ```
//!
//! So it is not held over a point where a task may move to another thread:
//!
//! ```compile_fail
//! use netswap_reserve::windows::{HighPool, LocalWindows};
//! fn runs_on_any_thread(_: impl Future + Send) {}
//! let high = HighPool::new(1).unwrap();
//! runs_on_any_thread(async move {
//!     let mut local = LocalWindows::new(&high, 1).unwrap();
//!     let page = high.alloc().unwrap();
//!     let mapped = local.map(&page).unwrap();
//!     std::future::ready(()).await;
//!     assert_eq!(mapped[0], 0);
//! });
//! ```
//!
//! Nor does it outlive its page:
//!
//! ```compile_fail,E0505
//! use netswap_reserve::windows::{HighPool, LocalWindows};
//! let high = HighPool::new(1).unwrap();
//! let mut local = LocalWindows::new(&high, 1).unwrap();
//! let page = high.alloc().unwrap();
//! let mapped = local.map(&page).unwrap();
//! drop(page);
//! assert_eq!(mapped[0], 0);
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::windows::error::{MapError, WindowsError};
use crate::windows::high::{HighPage, HighPool};
use crate::windows::page::{MapPage, MapPageMut, PageView, PageViewMut};
use crate::windows::space::{AddressRange, Refused};
use crate::windows::state::NONE;

/// A stack of windows of the thread that made it.
///
/// ```
/// use netswap_reserve::windows::{HighPool, LocalWindows};
///
/// let high = HighPool::new(2)?;
/// let mut local = LocalWindows::new(&high, 2)?;
/// let (mut from, mut to) = (high.alloc()?, high.alloc()?);
/// local.map_mut(&mut from)?[..5].copy_from_slice(b"hello");
/// let mut source = local.map(&from)?;
/// let mut target = source.map_mut(&mut to)?;
/// let (outer, inner) = target.both();
/// inner.copy_from_slice(outer);
/// assert_eq!(&target[..5], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LocalWindows {
    high: HighPool,
    pub(super) range: AddressRange,
    /// What each window shows: they are not cleared when they are given back.
    shows: Box<[u32]>,
    used: u32,
    hits: u64,
    misses: u64,
    // The windows are one thread's.
    _thread: PhantomData<*mut ()>,
}

impl LocalWindows {
    /// A stack of `depth` windows: so many mappings inside each other.
    ///
    /// # Errors
    /// When the number is out of range, or the system refuses the address space.
    pub fn new(high: &HighPool, depth: u32) -> Result<LocalWindows, WindowsError> {
        if depth == 0 || depth > 1 << 20 {
            return Err(WindowsError::Size { windows: depth });
        }
        let range = AddressRange::reserve(depth)
            .map_err(|Refused(code)| WindowsError::Reserve { windows: depth, code })?;
        Ok(LocalWindows {
            high: high.clone(),
            range,
            shows: vec![NONE; depth as usize].into_boxed_slice(),
            used: 0,
            hits: 0,
            misses: 0,
            _thread: PhantomData,
        })
    }

    /// Maps a page to be read. Never waits.
    ///
    /// # Errors
    /// [`MapError::TooDeep`] when all windows are in use.
    pub fn map<'a, P: MapPage + ?Sized>(
        &'a mut self,
        page: &'a P,
    ) -> Result<LocalMap<'a>, MapError> {
        self.open(page.view(), None)
    }

    /// Maps a page to be written. Never waits.
    ///
    /// # Errors
    /// [`MapError::TooDeep`] when all windows are in use.
    pub fn map_mut<'a, P: MapPageMut + ?Sized>(
        &'a mut self,
        page: &'a mut P,
    ) -> Result<LocalMapMut<'a>, MapError> {
        self.open_mut(page.view_mut(), None)
    }

    /// Windows in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Mappings of a page that its window still showed.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Mappings that took an `mmap`.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    fn open<'a>(
        &'a mut self,
        view: PageView<'a>,
        outer: Option<NonNull<[u8; PAGE_SIZE]>>,
    ) -> Result<LocalMap<'a>, MapError> {
        let (bytes, high) = match view {
            PageView::Low(bytes) => (NonNull::from(bytes), false),
            PageView::High(page) => (self.push(page)?, true),
        };
        Ok(LocalMap { open: Open { windows: self, bytes, outer, high }, _page: PhantomData })
    }

    fn open_mut<'a>(
        &'a mut self,
        view: PageViewMut<'a>,
        outer: Option<NonNull<[u8; PAGE_SIZE]>>,
    ) -> Result<LocalMapMut<'a>, MapError> {
        let (bytes, high) = match view {
            PageViewMut::Low(bytes) => (NonNull::from(bytes), false),
            PageViewMut::High(page) => (self.push(page)?, true),
        };
        Ok(LocalMapMut { open: Open { windows: self, bytes, outer, high }, _page: PhantomData })
    }

    /// Shows a page in the next window of the stack.
    #[inline]
    fn push(&mut self, page: &HighPage) -> Result<NonNull<[u8; PAGE_SIZE]>, MapError> {
        if !page.is_of(&self.high) {
            return Err(MapError::OtherPool);
        }
        let window = self.used;
        match self.shows.get(window as usize) {
            None => return Err(MapError::TooDeep { depth: window }),
            Some(&shown) if shown == page.index() => self.hits += 1,
            Some(_) => self.show(window, page.index())?,
        }
        self.used += 1;
        Ok(self.range.page(window))
    }

    #[cold]
    fn show(&mut self, window: u32, page: u32) -> Result<(), MapError> {
        // Whatever comes of it, the window shows this no more.
        self.shows[window as usize] = NONE;
        // SAFETY: the window is above all that are in use: a mapping borrows this stack mutably for as
        // long as it lives, so none that used the window before is left.
        let mapped = unsafe { self.range.map(window, 1, self.high.file(), page) };
        mapped.map_err(|Refused(code)| MapError::Refused { code })?;
        self.shows[window as usize] = page;
        self.misses += 1;
        Ok(())
    }
}

impl fmt::Debug for LocalWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalWindows")
            .field("depth", &self.shows.len())
            .field("used", &self.used)
            .field("hits", &self.hits)
            .field("misses", &self.misses)
            .finish()
    }
}

/// What a local mapping of either kind is made of.
struct Open<'a> {
    windows: &'a mut LocalWindows,
    bytes: NonNull<[u8; PAGE_SIZE]>,
    /// The page of the mapping that this one is inside of.
    outer: Option<NonNull<[u8; PAGE_SIZE]>>,
    /// Whether it has a window.
    high: bool,
}

impl Drop for Open<'_> {
    #[inline]
    fn drop(&mut self) {
        self.windows.used -= u32::from(self.high);
    }
}

impl Open<'_> {
    #[inline]
    fn outer(&self) -> Option<&[u8; PAGE_SIZE]> {
        // SAFETY: the outer mapping is borrowed mutably for as long as this one lives, so its page stays
        // mapped and nobody writes it; its window is another one than ours.
        self.outer.map(|bytes| unsafe { bytes.as_ref() })
    }
}

/// A page mapped by this thread, to be read.
pub struct LocalMap<'a> {
    open: Open<'a>,
    _page: PhantomData<&'a [u8; PAGE_SIZE]>,
}

/// A page mapped by this thread, to be read and written.
pub struct LocalMapMut<'a> {
    open: Open<'a>,
    _page: PhantomData<&'a mut [u8; PAGE_SIZE]>,
}

macro_rules! nesting {
    ($mapping:ident) => {
        impl $mapping<'_> {
            /// Maps another page inside this mapping, to be read. It ends before this one.
            ///
            /// # Errors
            /// [`MapError::TooDeep`] when all windows are in use.
            pub fn map<'b, P: MapPage + ?Sized>(
                &'b mut self,
                page: &'b P,
            ) -> Result<LocalMap<'b>, MapError> {
                self.open.windows.open(page.view(), Some(self.open.bytes))
            }

            /// Maps another page inside this mapping, to be written. It ends before this one.
            ///
            /// # Errors
            /// [`MapError::TooDeep`] when all windows are in use.
            pub fn map_mut<'b, P: MapPageMut + ?Sized>(
                &'b mut self,
                page: &'b mut P,
            ) -> Result<LocalMapMut<'b>, MapError> {
                self.open.windows.open_mut(page.view_mut(), Some(self.open.bytes))
            }

            /// The page of the mapping that this one is inside of, if it is.
            pub fn outer(&self) -> Option<&[u8; PAGE_SIZE]> {
                self.open.outer()
            }
        }

        impl Deref for $mapping<'_> {
            type Target = [u8; PAGE_SIZE];
            #[inline]
            fn deref(&self) -> &[u8; PAGE_SIZE] {
                // SAFETY: a low page's own reference, or a window that is in use as long as `self` lives
                // and shows the page. The page is borrowed for as long, so nobody else writes it.
                unsafe { self.open.bytes.as_ref() }
            }
        }

        impl fmt::Debug for $mapping<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($mapping))
                    .field("high", &self.open.high)
                    .field("inside", &self.open.outer.is_some())
                    .finish()
            }
        }
    };
}

nesting!(LocalMap);
nesting!(LocalMapMut);

impl DerefMut for LocalMapMut<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the page is borrowed mutably for as long as `self` lives, so this is the only mapping of
        // it, and `self` is borrowed mutably.
        unsafe { self.open.bytes.as_mut() }
    }
}

impl LocalMapMut<'_> {
    /// The page of the outer mapping, and this one to be written: for a copy.
    ///
    /// # Panics
    /// When the mapping is not inside another one.
    pub fn both(&mut self) -> (&[u8; PAGE_SIZE], &mut [u8; PAGE_SIZE]) {
        let outer = self.open.outer.expect("a mapping inside another one");
        // SAFETY: as in `outer` and `deref_mut`. The pages differ: ours is borrowed mutably for as long as
        // this mapping lives, the outer one for longer.
        unsafe { (outer.as_ref(), self.open.bytes.as_mut()) }
    }
}
