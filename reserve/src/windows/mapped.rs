//! A mapped page: what stands for its bytes while a window of [`MapWindows`](crate::windows::MapWindows)
//! shows it, or for a low page's own.
//!
//! It borrows the windows and the page for as long as it lives, so the window cannot be cleared and the page
//! neither freed nor, if the mapping is to be written, seen by anybody else.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::windows::map::Hold;

/// A page mapped to be read: its bytes. Dropping it unmaps. It may go to another thread.
pub struct Mapped<'a> {
    bytes: NonNull<[u8; PAGE_SIZE]>,
    // None for a low page.
    _hold: Option<Hold<'a>>,
    _page: PhantomData<&'a [u8; PAGE_SIZE]>,
}

// SAFETY: it stands for a `&[u8; PAGE_SIZE]`, which may be sent; the accounts are under a lock.
unsafe impl Send for Mapped<'_> {}
// SAFETY: as above; a shared one gives read access alone.
unsafe impl Sync for Mapped<'_> {}

/// A page mapped to be read and written. Dropping it unmaps. It may go to another thread.
pub struct MappedMut<'a> {
    bytes: NonNull<[u8; PAGE_SIZE]>,
    _hold: Option<Hold<'a>>,
    _page: PhantomData<&'a mut [u8; PAGE_SIZE]>,
}

// SAFETY: it stands for a `&mut [u8; PAGE_SIZE]`, which may be sent; the accounts are under a lock.
unsafe impl Send for MappedMut<'_> {}
// SAFETY: as above; a shared one gives read access alone.
unsafe impl Sync for MappedMut<'_> {}

impl<'a> Mapped<'a> {
    #[inline]
    pub(super) fn low(bytes: &'a [u8; PAGE_SIZE]) -> Mapped<'a> {
        Mapped { bytes: NonNull::from(bytes), _hold: None, _page: PhantomData }
    }

    #[inline]
    pub(super) fn high(hold: Hold<'a>) -> Mapped<'a> {
        let bytes = hold.page();
        Mapped { bytes, _hold: Some(hold), _page: PhantomData }
    }
}

impl Deref for Mapped<'_> {
    type Target = [u8; PAGE_SIZE];
    #[inline]
    fn deref(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: a low page's own reference, or a window that is held as long as `self` lives and shows
        // the page, initialised as all pages of a file are. The page is borrowed for as long, so nobody
        // writes it.
        unsafe { self.bytes.as_ref() }
    }
}

impl<'a> MappedMut<'a> {
    #[inline]
    pub(super) fn low(bytes: &'a mut [u8; PAGE_SIZE]) -> MappedMut<'a> {
        MappedMut { bytes: NonNull::from(bytes), _hold: None, _page: PhantomData }
    }

    #[inline]
    pub(super) fn high(hold: Hold<'a>) -> MappedMut<'a> {
        let bytes = hold.page();
        MappedMut { bytes, _hold: Some(hold), _page: PhantomData }
    }
}

impl Deref for MappedMut<'_> {
    type Target = [u8; PAGE_SIZE];
    #[inline]
    fn deref(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: as for `Mapped`, and the page is borrowed mutably for as long as `self` lives.
        unsafe { self.bytes.as_ref() }
    }
}

impl DerefMut for MappedMut<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the page is borrowed mutably for as long as `self` lives, so no other mapping of it
        // lives, whichever way it was made; and `self` is borrowed mutably.
        unsafe { self.bytes.as_mut() }
    }
}

impl fmt::Debug for Mapped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("high", &self._hold.is_some()).finish()
    }
}

impl fmt::Debug for MappedMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedMut").field("high", &self._hold.is_some()).finish()
    }
}
