//! Page vectors travel unmapped; bytes are touched where they are copied, one page at a time.
//!
//! This is what keeps windows short-lived: a call that is sent and waits for its reply holds pages, and
//! no window. A [`PageCursor`] reads or writes a stretch of a vector through whatever maps the pages
//! ([`Mapper`]), and has unmapped each page before the call returns.

use crate::PAGE_SIZE;
use crate::windows::error::MapError;
use crate::windows::local::LocalWindows;
use crate::windows::map::MapWindows;
use crate::windows::page::{MapPage, MapPageMut, PageView, PageViewMut};
use crate::windows::task::TaskWindows;

/// Something that shows the bytes of a page for the length of a call.
pub trait Mapper {
    /// Shows a page to `look`.
    ///
    /// # Errors
    /// When it cannot be mapped now; `look` was not called.
    fn with<P: MapPage + ?Sized, R>(
        &mut self,
        page: &P,
        look: impl FnOnce(&[u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError>;

    /// Shows a page to `change`, which may write it.
    ///
    /// # Errors
    /// When it cannot be mapped now; `change` was not called.
    fn with_mut<P: MapPageMut + ?Sized, R>(
        &mut self,
        page: &mut P,
        change: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError>;
}

macro_rules! mapper {
    ($(#[$doc:meta] $windows:ty: $map:ident, $map_mut:ident;)*) => {$(
        #[$doc]
        impl Mapper for $windows {
            #[inline]
            fn with<P: MapPage + ?Sized, R>(
                &mut self,
                page: &P,
                look: impl FnOnce(&[u8; PAGE_SIZE]) -> R,
            ) -> Result<R, MapError> {
                self.$map(page).map(|bytes| look(&bytes))
            }

            #[inline]
            fn with_mut<P: MapPageMut + ?Sized, R>(
                &mut self,
                page: &mut P,
                change: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R,
            ) -> Result<R, MapError> {
                self.$map_mut(page).map(|mut bytes| change(&mut bytes))
            }
        }
    )*};
}

mapper! {
    /// Maps without waiting; see [`MapWindows::try_map`].
    MapWindows: try_map, try_map_mut;
    /// Maps without waiting; see [`MapWindows::try_map`].
    &MapWindows: try_map, try_map_mut;
    /// Maps without waiting; see [`TaskWindows::try_map`].
    TaskWindows: try_map, try_map_mut;
    /// Maps without waiting; see [`TaskWindows::try_map`].
    &TaskWindows: try_map, try_map_mut;
    /// Maps in the next window of the stack; see [`LocalWindows::map`].
    LocalWindows: map, map_mut;
}

/// Shows low pages only: for who has no high ones, and wants no windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Mapper for Direct {
    #[inline]
    fn with<P: MapPage + ?Sized, R>(
        &mut self,
        page: &P,
        look: impl FnOnce(&[u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError> {
        match page.view() {
            PageView::Low(bytes) => Ok(look(bytes)),
            PageView::High(_) => Err(MapError::NoWindows),
        }
    }

    #[inline]
    fn with_mut<P: MapPageMut + ?Sized, R>(
        &mut self,
        page: &mut P,
        change: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError> {
        match page.view_mut() {
            PageViewMut::Low(bytes) => Ok(change(bytes)),
            PageViewMut::High(_) => Err(MapError::NoWindows),
        }
    }
}

/// Why bytes of a page vector could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// A page could not be mapped. The cursor has not moved.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The stretch ends before. The cursor has not moved.
    #[error("{wanted} bytes wanted, {remaining} left")]
    End {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes left.
        remaining: usize,
    },
    /// The bytes straddle pages, and the scratch buffer is too small to gather them.
    #[error("{wanted} bytes straddle pages, the scratch buffer holds {scratch}")]
    Scratch {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes the scratch buffer holds.
        scratch: usize,
    },
}

/// A place in a stretch of a page vector: bytes `page_base .. page_base + page_len` of it, as in an
/// `xdr_buf`.
///
/// ```
/// use netswap_reserve::windows::{HighPool, MapWindows, PageCursor, PageCursorMut, WindowsConfig};
///
/// let high = HighPool::new(4)?;
/// let mut windows = MapWindows::new(&high, WindowsConfig::new(1))?;
/// let mut pages = [high.alloc()?, high.alloc()?];
/// PageCursorMut::new(&mut pages, 4094, 100)?.copy_from(&mut windows, b"abcdef")?;
/// let mut cursor = PageCursor::new(&pages, 4095, 99)?;
/// let mut scratch = [0; 16];
/// // `bcd` straddles the two pages, so it is gathered; either way it is one slice.
/// cursor.take(&mut windows, 3, &mut scratch, |bytes| assert_eq!(bytes, b"bcd"))?;
/// cursor.take(&mut windows, 2, &mut scratch, |bytes| assert_eq!(bytes, b"ef"))?;
/// assert_eq!(windows.usage().held, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PageCursor<'p, P> {
    pages: &'p [P],
    rest: Rest,
}

impl<P> Clone for PageCursor<'_, P> {
    fn clone(&self) -> Self {
        PageCursor { ..*self }
    }
}

/// What is left of a stretch: bytes of the vector, counted from its start.
#[derive(Clone, Copy, Debug)]
struct Rest {
    at: usize,
    end: usize,
}

impl Rest {
    /// A whole stretch of a vector of `pages` pages.
    fn new(pages: usize, page_base: usize, page_len: usize) -> Result<Rest, CursorError> {
        let remaining = (pages * PAGE_SIZE).saturating_sub(page_base);
        if page_len > remaining {
            return Err(CursorError::End { wanted: page_len, remaining });
        }
        Ok(Rest { at: page_base, end: page_base + page_len })
    }

    fn len(self) -> usize {
        self.end - self.at
    }

    fn check(self, wanted: usize) -> Result<(), CursorError> {
        match self.len() {
            remaining if wanted > remaining => Err(CursorError::End { wanted, remaining }),
            _ => Ok(()),
        }
    }
}

/// The piece of the page at `at`: where in it, and how much up to `left`.
fn piece(at: usize, left: usize) -> (usize, std::ops::Range<usize>) {
    let start = at % PAGE_SIZE;
    (at / PAGE_SIZE, start..PAGE_SIZE.min(start + left))
}

impl<'p, P: MapPage> PageCursor<'p, P> {
    /// At the start of the stretch.
    ///
    /// # Errors
    /// [`CursorError::End`] when the pages end before the stretch does.
    pub fn new(
        pages: &'p [P],
        page_base: usize,
        page_len: usize,
    ) -> Result<PageCursor<'p, P>, CursorError> {
        let rest = Rest::new(pages.len(), page_base, page_len)?;
        Ok(PageCursor { pages, rest })
    }

    /// Bytes from here to the end of the stretch.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Where it is, in bytes from the start of the vector.
    pub fn position(&self) -> usize {
        self.rest.at
    }

    /// Passes over `bytes` without looking at them.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn skip(&mut self, bytes: usize) -> Result<(), CursorError> {
        self.rest.check(bytes)?;
        self.rest.at += bytes;
        Ok(())
    }

    /// Shows `look` the bytes from here on, page by page, at most `limit` and at most to the end; each
    /// page is mapped for the length of its call. Returns how many there were, and passes over them.
    ///
    /// # Errors
    /// When a page cannot be mapped. `look` may have been called for pages before it.
    pub fn for_each(
        &mut self,
        mapper: &mut impl Mapper,
        limit: usize,
        mut look: impl FnMut(&[u8]),
    ) -> Result<usize, CursorError> {
        let end = self.rest.at.saturating_add(limit).min(self.rest.end);
        let mut at = self.rest.at;
        while at < end {
            let (page, range) = piece(at, end - at);
            at += range.len();
            mapper.with(&self.pages[page], |bytes| look(&bytes[range]))?;
        }
        let passed = at - self.rest.at;
        self.rest.at = at;
        Ok(passed)
    }

    /// Fills `out` with the bytes from here on, and passes over them.
    ///
    /// # Errors
    /// When fewer are left, or a page cannot be mapped; then `out` may be written in part.
    pub fn copy_to(&mut self, mapper: &mut impl Mapper, out: &mut [u8]) -> Result<(), CursorError> {
        self.rest.check(out.len())?;
        let mut done = 0;
        self.for_each(mapper, out.len(), |bytes| {
            out[done..][..bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        })?;
        Ok(())
    }

    /// Shows `look` the next `len` bytes as one slice and passes over them: in place if they lie in one
    /// page, gathered in `scratch` if they straddle pages. No window is held afterwards.
    ///
    /// # Errors
    /// When fewer are left, a page cannot be mapped, or they do not fit `scratch`.
    pub fn take<R>(
        &mut self,
        mapper: &mut impl Mapper,
        len: usize,
        scratch: &mut [u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, CursorError> {
        self.rest.check(len)?;
        if len == 0 {
            return Ok(look(&[]));
        }
        let (page, range) = piece(self.rest.at, len);
        if range.len() == len {
            let seen = mapper.with(&self.pages[page], |bytes| look(&bytes[range]))?;
            self.rest.at += len;
            return Ok(seen);
        }
        let held = scratch.len();
        let gathered =
            scratch.get_mut(..len).ok_or(CursorError::Scratch { wanted: len, scratch: held })?;
        self.copy_to(mapper, gathered)?;
        Ok(look(gathered))
    }
}

/// As [`PageCursor`], to write.
#[derive(Debug)]
pub struct PageCursorMut<'p, P> {
    pages: &'p mut [P],
    rest: Rest,
}

impl<'p, P: MapPageMut> PageCursorMut<'p, P> {
    /// At the start of the stretch.
    ///
    /// # Errors
    /// [`CursorError::End`] when the pages end before the stretch does.
    pub fn new(
        pages: &'p mut [P],
        page_base: usize,
        page_len: usize,
    ) -> Result<PageCursorMut<'p, P>, CursorError> {
        let rest = Rest::new(pages.len(), page_base, page_len)?;
        Ok(PageCursorMut { pages, rest })
    }

    /// Bytes from here to the end of the stretch.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Where it is, in bytes from the start of the vector.
    pub fn position(&self) -> usize {
        self.rest.at
    }

    /// Writes `data` from here on, page by page, and passes over it.
    ///
    /// # Errors
    /// When fewer bytes are left, or a page cannot be mapped; then pages before it are written.
    pub fn copy_from(&mut self, mapper: &mut impl Mapper, data: &[u8]) -> Result<(), CursorError> {
        self.rest.check(data.len())?;
        let mut data = data;
        let mut at = self.rest.at;
        while !data.is_empty() {
            let (page, range) = piece(at, data.len());
            let (now, later) = data.split_at(range.len());
            at += range.len();
            mapper.with_mut(&mut self.pages[page], |bytes| bytes[range].copy_from_slice(now))?;
            data = later;
        }
        self.rest.at = at;
        Ok(())
    }

    /// Shows `change` the bytes from here to the end of the stretch or of the page, to be written in
    /// place; it says how many it wrote, and these are passed over.
    ///
    /// # Errors
    /// When the page cannot be mapped.
    pub fn with_piece(
        &mut self,
        mapper: &mut impl Mapper,
        change: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, CursorError> {
        if self.rest.len() == 0 {
            return Ok(0);
        }
        let (page, range) = piece(self.rest.at, self.rest.len());
        let room = range.len();
        let wrote = mapper.with_mut(&mut self.pages[page], |bytes| change(&mut bytes[range]))?;
        assert!(wrote <= room, "no more than was shown can have been written");
        self.rest.at += wrote;
        Ok(wrote)
    }
}
