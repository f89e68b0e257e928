//! Low and high pages alike: what can be mapped.
//!
//! A low page has an address already, so mapping it is free: no window, no lock, no waiting. Code that
//! is written against [`MapPage`] works for both and pays for windows only where there are high pages;
//! with a vector of [`Frame`]s the compiler removes the windows altogether.

use crate::PAGE_SIZE;
use crate::frame::{Frame, PageRef};
use crate::windows::high::HighPage;

/// Where a page's bytes are, to be read.
#[derive(Clone, Copy, Debug)]
pub enum PageView<'a> {
    /// Directly mapped: here.
    Low(&'a [u8; PAGE_SIZE]),
    /// Behind a window.
    High(&'a HighPage),
}

/// Where a page's bytes are, to be written.
#[derive(Debug)]
pub enum PageViewMut<'a> {
    /// Directly mapped: here.
    Low(&'a mut [u8; PAGE_SIZE]),
    /// Behind a window.
    High(&'a mut HighPage),
}

/// A page that can be mapped to be read.
pub trait MapPage {
    /// Where its bytes are.
    fn view(&self) -> PageView<'_>;
}

/// A page that can be mapped to be written.
pub trait MapPageMut: MapPage {
    /// Where its bytes are.
    fn view_mut(&mut self) -> PageViewMut<'_>;
}

impl MapPage for Frame {
    #[inline]
    fn view(&self) -> PageView<'_> {
        PageView::Low(self.bytes())
    }
}

impl MapPageMut for Frame {
    #[inline]
    fn view_mut(&mut self) -> PageViewMut<'_> {
        PageViewMut::Low(self.bytes_mut())
    }
}

impl MapPage for PageRef {
    #[inline]
    fn view(&self) -> PageView<'_> {
        PageView::Low(self.bytes())
    }
}

impl MapPage for HighPage {
    #[inline]
    fn view(&self) -> PageView<'_> {
        PageView::High(self)
    }
}

impl MapPageMut for HighPage {
    #[inline]
    fn view_mut(&mut self) -> PageViewMut<'_> {
        PageViewMut::High(self)
    }
}

impl<P: MapPage + ?Sized> MapPage for &P {
    #[inline]
    fn view(&self) -> PageView<'_> {
        (**self).view()
    }
}

impl<P: MapPage + ?Sized> MapPage for &mut P {
    #[inline]
    fn view(&self) -> PageView<'_> {
        (**self).view()
    }
}

impl<P: MapPageMut + ?Sized> MapPageMut for &mut P {
    #[inline]
    fn view_mut(&mut self) -> PageViewMut<'_> {
        (**self).view_mut()
    }
}

/// An owned page of either kind, for vectors that mix them.
#[derive(Debug)]
pub enum Page {
    /// A frame of a page pool.
    Low(Frame),
    /// A page of a high pool.
    High(HighPage),
}

impl Page {
    /// Whether mapping it takes a window.
    #[inline]
    pub fn is_high(&self) -> bool {
        matches!(self, Page::High(_))
    }
}

impl From<Frame> for Page {
    fn from(frame: Frame) -> Page {
        Page::Low(frame)
    }
}

impl From<HighPage> for Page {
    fn from(page: HighPage) -> Page {
        Page::High(page)
    }
}

impl MapPage for Page {
    #[inline]
    fn view(&self) -> PageView<'_> {
        match self {
            Page::Low(frame) => frame.view(),
            Page::High(page) => page.view(),
        }
    }
}

impl MapPageMut for Page {
    #[inline]
    fn view_mut(&mut self) -> PageViewMut<'_> {
        match self {
            Page::Low(frame) => frame.view_mut(),
            Page::High(page) => page.view_mut(),
        }
    }
}
