//! A range of address space that pages of a memfd are mapped into. All system calls of the windows that
//! change the address space are here.
//!
//! The range is reserved as a whole when it is made, by a mapping that nothing may touch, and given
//! back as a whole. In between, each change replaces a part of it by `MAP_FIXED`, so no part is ever
//! free for somebody else's mapping.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::PAGE_SIZE;
use crate::windows::high::Memfd;

/// The system refused a mapping: the number of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) i32);

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused(errno.raw_os_error())
    }
}

pub(super) struct AddressRange {
    base: NonNull<u8>,
    pages: u32,
    /// A change failed, and may have left a hole that by now belongs to somebody else: the range is
    /// never given back.
    broken: AtomicBool,
    #[cfg(test)]
    pub(super) fail_next: AtomicBool,
}

// SAFETY: the range owns addresses, not content. Who may touch what is mapped there is decided by the
// handles of the pages.
unsafe impl Send for AddressRange {}
// SAFETY: as above. Its users take turns at each page of the range (a lock, or one thread), and system
// calls on different pages of it do not disturb each other.
unsafe impl Sync for AddressRange {}

impl AddressRange {
    /// Reserves room for `pages` pages. Touching any of them is a fault until something is mapped.
    pub(super) fn reserve(pages: u32) -> Result<AddressRange, Refused> {
        let bytes = (pages as usize).checked_mul(PAGE_SIZE).ok_or(Refused::from(Errno::NOMEM))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        Ok(AddressRange {
            base: NonNull::new(base.cast()).ok_or(Refused::from(Errno::NOMEM))?,
            pages,
            broken: AtomicBool::new(false),
            #[cfg(test)]
            fail_next: AtomicBool::new(false),
        })
    }

    /// The address of a page of the range.
    #[inline]
    pub(super) fn address(&self, page: u32) -> NonNull<u8> {
        debug_assert!(page < self.pages);
        // SAFETY: `page` is below `pages` (the callers' tables have that size), so the offset stays
        // inside the reserved range, whose length fits an isize, or mmap would have failed.
        unsafe { self.base.add(page as usize * PAGE_SIZE) }
    }

    /// The address of a page of the range, as where a page of bytes is.
    #[inline]
    pub(super) fn page(&self, page: u32) -> NonNull<[u8; PAGE_SIZE]> {
        self.address(page).cast()
    }

    fn part(&self, first: u32, count: u32) -> (*mut c_void, usize) {
        assert!(u64::from(first) + u64::from(count) <= u64::from(self.pages));
        (self.address(first).as_ptr().cast(), count as usize * PAGE_SIZE)
    }

    /// Shows `count` pages of `file` from `file_page` on at `first` and after it. The page tables are
    /// filled at once, so that the first access is no fault.
    ///
    /// # Safety
    /// Nobody uses what was mapped at these pages of the range before.
    pub(super) unsafe fn map(
        &self,
        first: u32,
        count: u32,
        file: &Memfd,
        file_page: u32,
    ) -> Result<(), Refused> {
        let (address, bytes) = self.part(first, count);
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        self.planted_failure()?;
        // SAFETY: the part lies inside the range that this value reserved, so it replaces only what this
        // value mapped, which nobody uses (the caller). The file is as long as its page count says, and
        // sealed against shrinking, so no access to the mapping can be beyond its end.
        let mapped = unsafe {
            mmap(address, bytes, prot, flags, file.fd(), file_page as u64 * PAGE_SIZE as u64)
        };
        self.changed(mapped)
    }

    /// Takes away what is mapped at `count` pages of the range: touching them is a fault again.
    ///
    /// # Safety
    /// As for [`AddressRange::map`].
    pub(super) unsafe fn clear(&self, first: u32, count: u32) -> Result<(), Refused> {
        let (address, bytes) = self.part(first, count);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        self.planted_failure()?;
        // SAFETY: as in `map`; one call replaces the part, so it is ours all the time.
        let cleared = unsafe { mmap_anonymous(address, bytes, ProtFlags::empty(), flags) };
        self.changed(cleared)
    }

    fn changed(&self, result: rustix::io::Result<*mut c_void>) -> Result<(), Refused> {
        if result.is_err() {
            // Older kernels unmap what is there before they find that they cannot map.
            self.broken.store(true, Ordering::Relaxed);
        }
        Ok(result.map(|_| ())?)
    }

    #[cfg(test)]
    fn planted_failure(&self) -> Result<(), Refused> {
        match self.fail_next.swap(false, Ordering::Relaxed) {
            true => self.changed(Err(Errno::NOMEM)),
            false => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[inline]
    fn planted_failure(&self) -> Result<(), Refused> {
        Ok(())
    }
}

impl Drop for AddressRange {
    fn drop(&mut self) {
        if *self.broken.get_mut() {
            return;
        }
        let bytes = self.pages as usize * PAGE_SIZE;
        // SAFETY: reserved in `reserve` with this length and never given back in between; the handles
        // that show bytes of it borrow its owner, so none is left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_which_a_change_failed_is_kept_for_ever() {
        // Somebody else may live in the hole that an older kernel left in it.
        for broken in [false, true] {
            let range = AddressRange::reserve(3).unwrap();
            range.fail_next.store(broken, Ordering::Relaxed);
            // SAFETY: nothing was ever mapped there.
            assert_eq!(unsafe { range.clear(1, 1) }.is_err(), broken);
            let base = range.base;
            drop(range);
            // SAFETY: `FIXED_NOREPLACE` replaces nothing that is mapped.
            let again = unsafe {
                mmap_anonymous(
                    base.as_ptr().cast(),
                    3 * PAGE_SIZE,
                    ProtFlags::empty(),
                    MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
                )
            };
            // Where it was given back, another thread of the tests may have come first.
            assert!(!broken || again == Err(Errno::EXIST));
            if let Ok(base) = again {
                // SAFETY: mapped above, used by nobody.
                unsafe { munmap(base, 3 * PAGE_SIZE) }.unwrap();
            }
        }
    }
}
