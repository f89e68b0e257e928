//! The page tables of the simulated machine, and what each page should hold.

use netswap_reserve::PAGE_SIZE;

use super::pattern;
use crate::backend::Slot;
use crate::{Access, Mmu, PageId};

const PRESENT: u8 = 1 << 0;
const WRITABLE: u8 = 1 << 1;
const ACCESSED: u8 = 1 << 2;
const DIRTY: u8 = 1 << 3;
const FILE: u8 = 1 << 4;

/// One entry a page: the bits that hardware keeps, and the version of the content last written.
/// Never more than eight bytes a page, as the tables of a machine with a large overcommit are long.
pub struct PageTables {
    seed: u64,
    bits: Vec<u8>,
    /// Times the page was written; for a file page not yet written, its slot.
    versions: Vec<u32>,
}

impl PageTables {
    pub(super) fn new(seed: u64) -> PageTables {
        PageTables { seed, bits: Vec::new(), versions: Vec::new() }
    }

    /// Makes room for the pages below `end`.
    pub(super) fn cover(&mut self, end: PageId) {
        let end = end.0 as usize;
        if self.bits.len() < end {
            self.bits.resize(end, 0);
            self.versions.resize(end, 0);
        }
    }

    pub(super) fn set_file(&mut self, page: PageId, slot: Slot) {
        self.bits[page.0 as usize] |= FILE;
        self.versions[page.0 as usize] = slot.0;
    }

    pub(super) fn allows(&self, page: PageId, access: Access) -> bool {
        let wanted = match access {
            Access::Read => PRESENT,
            Access::Write => PRESENT | WRITABLE,
        };
        self.bits[page.0 as usize] & wanted == wanted
    }

    pub(super) fn touch(&mut self, page: PageId, access: Access) {
        self.bits[page.0 as usize] |= match access {
            Access::Read => ACCESSED,
            Access::Write => ACCESSED | DIRTY,
        };
    }

    fn key(&self, page: PageId) -> u64 {
        let version = self.versions[page.0 as usize];
        if self.bits[page.0 as usize] & FILE != 0 {
            pattern::file_key(version)
        } else {
            pattern::page_key(self.seed, page.0, version)
        }
    }

    /// Whether `bytes` is what was last written to `page`.
    pub(super) fn verify(&self, page: PageId, bytes: &[u8; PAGE_SIZE]) -> bool {
        pattern::matches(bytes, self.key(page))
    }

    /// Writes the next version of `page`.
    pub(super) fn write(&mut self, page: PageId, bytes: &mut [u8; PAGE_SIZE]) {
        let i = page.0 as usize;
        if self.bits[i] & FILE != 0 {
            self.bits[i] &= !FILE;
            self.versions[i] = 0;
        }
        self.versions[i] += 1;
        pattern::fill(bytes, self.key(page));
    }
}

impl Mmu for PageTables {
    fn map(&mut self, page: PageId, writable: bool) {
        let bits = &mut self.bits[page.0 as usize];
        *bits = (*bits & FILE) | PRESENT | if writable { WRITABLE } else { 0 };
    }

    fn unmap(&mut self, page: PageId) -> bool {
        let bits = &mut self.bits[page.0 as usize];
        let dirty = *bits & DIRTY != 0;
        *bits &= FILE;
        dirty
    }

    fn test_and_clear_accessed(&mut self, page: PageId) -> bool {
        let bits = &mut self.bits[page.0 as usize];
        let accessed = *bits & ACCESSED != 0;
        *bits &= !ACCESSED;
        accessed
    }
}
