//! Where the memory comes from: one mapping of whole pages, by default private, anonymous and in huge
//! pages where the system has them.
//!
//! A simulation touches its memory when it first needs it. A real pager must not: a page that the
//! system commits in the middle of a page-out is an allocation on the path that frees memory. So a
//! backing can be *prefaulted* (committed when it is made) and *locked* (never paged out itself).
//!
//! NUMA is out of scope: the system places the pages, by the thread that touches them first.
//!
//! Invariant: `len` bytes from `base` are mapped, readable, writable and initialised (zeros at first)
//! from the making of a [`Backing`] to its drop.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

use crate::PAGE_SIZE;

/// Bytes of an explicit huge page: the common size of x86-64 and AArch64 with pages of 4 KiB.
pub const HUGE_PAGE_SIZE: usize = 2 << 20;

/// What kind of memory a [`Backing`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingKind {
    /// A private anonymous mapping.
    #[default]
    Anonymous,
    /// A memfd, mapped shared: its pages can be mapped a second time, also by another process.
    Memfd,
    /// The heap, for tests under tools that do not follow mappings. Knows no huge pages, and is
    /// neither prefaulted nor locked.
    Heap,
}

/// Whether pages of [`HUGE_PAGE_SIZE`] are asked for. They save most address translations where
/// whole pages are copied all over the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Not asked for.
    Never,
    /// The system is advised to use them and does as it can (`MADV_HUGEPAGE`).
    #[default]
    Transparent,
    /// From those that the administrator set aside (`MAP_HUGETLB`, `MFD_HUGETLB`); fails without.
    Explicit,
}

/// How a [`Backing`] is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackingConfig {
    /// What kind of memory.
    pub kind: BackingKind,
    /// Whether huge pages are asked for.
    pub huge: HugePages,
    /// Commit every page now (`MADV_POPULATE_WRITE`).
    pub prefault: bool,
    /// Keep every page in memory (`mlock`), which prefaults too.
    pub lock: bool,
}

/// Why memory could not be had as asked.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// More bytes than an address space holds.
    #[error("{bytes} bytes are more than can be mapped")]
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The heap has no options.
    #[error(
        "heap memory is neither locked nor prefaulted, and has no explicit huge pages: use a mapping"
    )]
    HeapOptions,
    /// The system refused the mapping.
    #[error("cannot map {bytes} bytes: {source}")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Too few explicit huge pages are set aside.
    #[error(
        "cannot have {pages} huge pages of 2 MiB: {source}. Set them aside with \
         'sysctl vm.nr_hugepages={pages}', or ask for transparent ones"
    )]
    HugePages {
        /// Huge pages needed.
        pages: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The pages could not be committed.
    #[error("cannot commit {bytes} bytes now: {source}")]
    Prefault {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The memory could not be locked.
    #[error(
        "cannot lock {bytes} bytes in memory: {source}. This process may lock {}; raise that with \
         'ulimit -l', 'LimitMEMLOCK=' of its systemd unit, or give it CAP_IPC_LOCK",
        Limit(*limit)
    )]
    Lock {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that this process may lock (`RLIMIT_MEMLOCK`); `None` is no limit.
        limit: Option<u64>,
        /// What the system said.
        source: io::Error,
    },
}

struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => f.write_str("any amount"),
        }
    }
}

/// Whole pages of zeros, owned, page-aligned. It gives out addresses, no references: who may touch
/// which page is for its owner to say. [`ZeroedBytes`] is the one to use as a slice.
#[derive(Debug)]
pub struct Backing {
    base: NonNull<u8>,
    len: usize,
    kind: BackingKind,
    fd: Option<OwnedFd>,
}

// SAFETY: a backing is an address range that it owns; it never touches the content itself.
unsafe impl Send for Backing {}
// SAFETY: as above; through a shared one only addresses can be had.
unsafe impl Sync for Backing {}

impl Backing {
    /// At least `bytes` bytes, rounded up to whole pages (huge ones if explicit).
    ///
    /// # Errors
    /// When the memory cannot be had as `config` says; nothing is kept then.
    pub fn new(bytes: usize, config: &BackingConfig) -> Result<Backing, BackingError> {
        let unit = if config.huge == HugePages::Explicit { HUGE_PAGE_SIZE } else { PAGE_SIZE };
        let len =
            bytes.max(1).checked_next_multiple_of(unit).filter(|len| *len <= isize::MAX as usize);
        let len = len.ok_or(BackingError::TooLarge { bytes })?;
        let backing = match config.kind {
            BackingKind::Anonymous => Backing::anonymous(len, config.huge)?,
            BackingKind::Memfd => Backing::memfd(len, config.huge)?,
            BackingKind::Heap => {
                if config.lock || config.prefault || config.huge == HugePages::Explicit {
                    return Err(BackingError::HeapOptions);
                }
                return Backing::heap(len);
            }
        };
        let start = backing.base.as_ptr().cast();
        if config.huge == HugePages::Transparent {
            // Advice: a system without huge pages refuses it, and small pages serve as well.
            // SAFETY: the range is this mapping's own, and the advice changes no content.
            let _ = unsafe { madvise(start, len, Advice::LinuxHugepage) };
        }
        if config.prefault {
            // SAFETY: as above.
            unsafe { madvise(start, len, Advice::LinuxPopulateWrite) }
                .map_err(|errno| BackingError::Prefault { bytes: len, source: errno.into() })?;
        }
        if config.lock {
            // SAFETY: as above.
            unsafe { mlock(start, len) }.map_err(|errno| BackingError::Lock {
                bytes: len,
                limit: getrlimit(Resource::Memlock).current,
                source: errno.into(),
            })?;
        }
        Ok(backing)
    }

    fn anonymous(len: usize, huge: HugePages) -> Result<Backing, BackingError> {
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if huge == HugePages::Explicit {
            // Without NORESERVE the system sets the huge pages aside here, instead of killing the
            // process when it touches one that is not there.
            flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        }
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists already.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let base = base.map_err(|errno| map_error(errno, len, huge))?;
        Backing::mapped(base.cast(), len, BackingKind::Anonymous, None)
    }

    fn memfd(len: usize, huge: HugePages) -> Result<Backing, BackingError> {
        let mut flags = MemfdFlags::empty();
        if huge == HugePages::Explicit {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let map = |fd: &OwnedFd| {
            // SAFETY: as in `anonymous`; the file is this backing's own.
            unsafe {
                mmap(
                    std::ptr::null_mut(),
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED,
                    fd,
                    0,
                )
            }
        };
        let made = memfd("netswap pool", len, flags).and_then(|fd| Ok((map(&fd)?, fd)));
        let (base, fd) = made.map_err(|errno| map_error(errno, len, huge))?;
        Backing::mapped(base.cast(), len, BackingKind::Memfd, Some(fd))
    }

    fn mapped(
        base: *mut u8,
        len: usize,
        kind: BackingKind,
        fd: Option<OwnedFd>,
    ) -> Result<Backing, BackingError> {
        let base = NonNull::new(base);
        let base = base.ok_or_else(|| map_error(Errno::NOMEM, len, HugePages::Never))?;
        Ok(Backing { base, len, kind, fd })
    }

    fn heap(len: usize) -> Result<Backing, BackingError> {
        let layout = heap_layout(len);
        // SAFETY: the layout has at least one page.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) });
        let base = base.ok_or_else(|| map_error(Errno::NOMEM, len, HugePages::Never))?;
        Ok(Backing { base, len, kind: BackingKind::Heap, fd: None })
    }

    /// Where it begins: page-aligned, readable and writable for [`Backing::len`] bytes.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes, whole pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a backing has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The memfd behind it, to be mapped again or handed to another process; `None` for other kinds.
    ///
    /// # Safety
    /// Nobody may change, through the descriptor or another mapping of it, bytes that somebody holds a
    /// reference to. (Its length is sealed.)
    pub unsafe fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.kind == BackingKind::Heap {
            // SAFETY: allocated in `heap` with this layout, freed nowhere else.
            unsafe { dealloc(self.base.as_ptr(), heap_layout(self.len)) };
            return;
        }
        // SAFETY: mapped with this length and unmapped nowhere else; who owns the backing has seen to
        // it that no reference into it is left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A memfd of `len` bytes of zeros. An access beyond the end of a mapped file is a SIGBUS, so its end is
/// sealed where it is.
pub(crate) fn memfd(name: &str, len: usize, flags: MemfdFlags) -> rustix::io::Result<OwnedFd> {
    let fd = memfd_create(name, flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn heap_layout(len: usize) -> Layout {
    Layout::from_size_align(len, PAGE_SIZE).expect("checked when it was made")
}

fn map_error(errno: Errno, bytes: usize, huge: HugePages) -> BackingError {
    match huge {
        HugePages::Explicit => {
            BackingError::HugePages { pages: bytes / HUGE_PAGE_SIZE, source: errno.into() }
        }
        _ => BackingError::Map { bytes, source: errno.into() },
    }
}

/// A slice of zeros in huge pages where the system has them; costs memory only once touched. For
/// large tables and disks in memory.
///
/// ```
/// use netswap_reserve::ZeroedBytes;
///
/// let mut disk = ZeroedBytes::new(1 << 30)?;
/// disk[4096] = 1;
/// assert_eq!(disk[4095..4098], [0, 1, 0]);
/// # Ok::<(), netswap_reserve::BackingError>(())
/// ```
pub struct ZeroedBytes {
    backing: Option<Backing>,
    len: usize,
}

impl ZeroedBytes {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// When so much cannot be mapped.
    pub fn new(len: usize) -> Result<ZeroedBytes, BackingError> {
        ZeroedBytes::with_config(len, &BackingConfig::default())
    }

    /// `len` bytes of zeros, from where `config` says.
    ///
    /// # Errors
    /// When the memory cannot be had so.
    pub fn with_config(len: usize, config: &BackingConfig) -> Result<ZeroedBytes, BackingError> {
        let backing = if len == 0 { None } else { Some(Backing::new(len, config)?) };
        Ok(ZeroedBytes { backing, len })
    }
}

impl Deref for ZeroedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let Some(backing) = &self.backing else { return &[] };
        // SAFETY: `len` initialised bytes of a private mapping that this value owns and that can be
        // changed through it alone, borrowed as long as the result is.
        unsafe { std::slice::from_raw_parts(backing.base().as_ptr(), self.len) }
    }
}

impl DerefMut for ZeroedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(backing) = &self.backing else { return &mut [] };
        // SAFETY: as in `deref`, and this value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(backing.base().as_ptr(), self.len) }
    }
}

impl fmt::Debug for ZeroedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZeroedBytes").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(backing: &Backing) {
        for offset in (0..backing.len()).step_by(PAGE_SIZE) {
            // SAFETY: inside the backing, which nobody else touches.
            unsafe {
                let at = backing.base().add(offset);
                assert_eq!(at.read(), 0);
                at.write(1);
            }
        }
    }

    #[test]
    fn every_kind_is_whole_pages_of_zeros() {
        for kind in [BackingKind::Anonymous, BackingKind::Memfd, BackingKind::Heap] {
            let backing =
                Backing::new(5 * PAGE_SIZE + 1, &BackingConfig { kind, ..Default::default() });
            let backing = backing.unwrap();
            assert_eq!(backing.len(), 6 * PAGE_SIZE);
            assert_eq!(backing.base().as_ptr() as usize % PAGE_SIZE, 0);
            touch(&backing);
        }
    }

    #[test]
    fn prefaulted_and_locked_memory_is_resident() {
        let config = BackingConfig { prefault: true, lock: true, ..Default::default() };
        let backing = match Backing::new(16 * PAGE_SIZE, &config) {
            Err(BackingError::Lock { limit: Some(limit), .. })
                if limit < (16 * PAGE_SIZE) as u64 =>
            {
                println!("skipped: this process may lock {limit} bytes only");
                return;
            }
            other => other.unwrap(),
        };
        let locked = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = locked.lines().find(|l| l.starts_with("VmLck:")).unwrap();
        assert!(!locked.contains(" 0 kB"), "{locked}");
        touch(&backing);
    }

    #[test]
    fn a_memfd_can_be_mapped_a_second_time() {
        let config = BackingConfig { kind: BackingKind::Memfd, ..Default::default() };
        let backing = Backing::new(PAGE_SIZE, &config).unwrap();
        // SAFETY: nobody holds a reference into the backing, and the file keeps its length.
        let fd = unsafe { backing.fd() }.unwrap();
        rustix::io::pwrite(fd, &[7], 100).unwrap();
        // SAFETY: inside the backing, and nobody writes meanwhile.
        assert_eq!(unsafe { backing.base().add(100).read() }, 7);
    }

    #[test]
    fn errors_say_what_to_do() {
        let huge = BackingConfig { huge: HugePages::Explicit, ..Default::default() };
        // Far more than any machine sets aside.
        let error = Backing::new(1 << 46, &huge).unwrap_err().to_string();
        assert!(error.contains("sysctl vm.nr_hugepages="), "{error}");
        let heap = BackingConfig { kind: BackingKind::Heap, lock: true, ..Default::default() };
        assert!(matches!(Backing::new(1, &heap), Err(BackingError::HeapOptions)));
        assert!(matches!(
            Backing::new(usize::MAX, &BackingConfig::default()),
            Err(BackingError::TooLarge { .. })
        ));
        let lock = BackingError::Lock {
            bytes: 1 << 30,
            limit: Some(8 << 20),
            source: Errno::NOMEM.into(),
        };
        let lock = lock.to_string();
        assert!(lock.contains("8388608 bytes") && lock.contains("ulimit -l"), "{lock}");
    }
}
