//! What two addresses of one page mean on a virtually indexed cache: a model, and a checker.
//!
//! A page vector is filled through the pages' direct mapping and read through a contiguous range
//! ([`vmap`](crate::windows::vmap())). A cache that is indexed by physical addresses (PIPT) sees one page.
//! One that is indexed by virtual addresses (VIVT) sees two, and may hold a line of each: what was written
//! stays in a dirty line of the direct mapping, and what is read is a line of the range that was fetched
//! before. So after writing, and before *each* read that follows a write:
//!
//! 1. flush the direct mapping ([`AliasModel::flush_kernel_dcache_page`]): memory gets what was written;
//! 2. invalidate the range ([`AliasModel::invalidate_kernel_vmap_range`]): the next read asks memory.
//!
//! A new range has no lines yet, so a missing invalidation shows only when the range is read a second time:
//! the trap of a range that is mapped once, outside the loop that fills and reads it.
//!
//! The model keeps no bytes. Each line of a page has the number of its last write, and a copy in a cache
//! or in memory that of the write it knows. A read that finds an older number is stale, even if
//! the bytes happen to be the same. Nothing is evicted, so luck hides no missing flush; and with
//! [`AliasModel::speculative`] each line of the range is fetched whenever it can be, as a prefetcher may, so
//! luck hides no wrong order either. It is deterministic.

use std::fmt;
use std::ops::Range;

use crate::PAGE_SIZE;

/// Bytes of a cache line.
pub const LINE_BYTES: usize = 64;

const LINES: usize = PAGE_SIZE / LINE_BYTES;

/// How a cache finds its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Virtually indexed and tagged: two addresses of a page are two places in the cache.
    Vivt,
    /// Physically indexed and tagged: they are one.
    Pipt,
}

/// The two addresses of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The direct mapping, page by page.
    Direct,
    /// The contiguous range.
    Range,
}

/// What would have made a stale read right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The other address was not flushed after it was written: memory does not have the write.
    Flush,
    /// The address was not invalidated after the flush: its line was fetched before that.
    Invalidate,
    /// Both.
    Both,
}

/// A read found an old line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stale read through the {via}: page {page} line {line} is of write {found}, not {latest}; {missing}"
)]
pub struct StaleRead {
    /// Which address was read.
    pub via: Via,
    /// The page, by its place in the vector.
    pub page: usize,
    /// The line of the page.
    pub line: usize,
    /// The write that was found; 0 is none.
    pub found: u64,
    /// The last write.
    pub latest: u64,
    /// What was forgotten.
    pub missing: Missing,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Via::Direct => "direct mapping",
            Via::Range => "range",
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Flush => "the writer's address was not flushed",
            Missing::Invalidate => "the reader's address was not invalidated",
            Missing::Both => {
                "neither was the writer's address flushed nor the reader's invalidated"
            }
        })
    }
}

#[derive(Clone, Copy)]
struct Cached {
    write: u64,
    dirty: bool,
}

/// A page vector with two addresses, a cache, and memory behind it.
///
/// ```
/// use netswap_reserve::windows::alias::{AliasModel, Cache, Missing};
///
/// let mut model = AliasModel::new(Cache::Vivt, 2);
/// model.write_direct(0..8192);
/// model.flush_kernel_dcache_page(0);
/// model.flush_kernel_dcache_page(1);
/// model.read_range(0..8192)?; // the first read of a new range
///
/// model.write_direct(4096..4100);
/// model.flush_kernel_dcache_page(1);
/// let stale = model.read_range(0..8192).unwrap_err();
/// assert_eq!((stale.page, stale.line, stale.missing), (1, 0, Missing::Invalidate));
/// model.invalidate_kernel_vmap_range(0..8192);
/// model.read_range(0..8192)?;
/// # Ok::<(), netswap_reserve::windows::StaleRead>(())
/// ```
pub struct AliasModel {
    cache: Cache,
    speculative: bool,
    /// For each line of the vector: the last write to it, by either address.
    latest: Box<[u64]>,
    /// The write that memory knows.
    memory: Box<[u64]>,
    /// The lines in the cache, by the address they were fetched or written by.
    direct: Box<[Option<Cached>]>,
    range: Box<[Option<Cached>]>,
    writes: u64,
}

impl AliasModel {
    /// A vector of `pages` pages whose range was just mapped: nothing is in the cache.
    pub fn new(cache: Cache, pages: usize) -> AliasModel {
        let lines = pages * LINES;
        AliasModel {
            cache,
            speculative: false,
            latest: vec![0; lines].into_boxed_slice(),
            memory: vec![0; lines].into_boxed_slice(),
            direct: vec![None; lines].into_boxed_slice(),
            range: vec![None; lines].into_boxed_slice(),
            writes: 0,
        }
    }

    /// The same with a prefetcher: a line of the range is fetched as soon as it is not in the cache.
    pub fn speculative(mut self) -> AliasModel {
        self.speculative = true;
        self.prefetch();
        self
    }

    /// Where the lines of an address are: in a physically indexed cache, all in one place.
    fn lines(&mut self, via: Via) -> &mut [Option<Cached>] {
        match (self.cache, via) {
            (Cache::Pipt, _) | (Cache::Vivt, Via::Direct) => &mut self.direct,
            (Cache::Vivt, Via::Range) => &mut self.range,
        }
    }

    /// The lines that `bytes` of the vector touch.
    fn touched(&self, bytes: Range<usize>) -> Range<usize> {
        assert!(bytes.end <= self.latest.len() * LINE_BYTES, "the range ends with the vector");
        if bytes.is_empty() {
            0..0
        } else {
            bytes.start / LINE_BYTES..bytes.end.div_ceil(LINE_BYTES)
        }
    }

    fn write(&mut self, via: Via, bytes: Range<usize>) {
        self.writes += 1;
        let write = self.writes;
        for line in self.touched(bytes) {
            self.latest[line] = write;
            self.lines(via)[line] = Some(Cached { write, dirty: true });
        }
        self.prefetch();
    }

    fn read(&mut self, via: Via, bytes: Range<usize>) -> Result<(), StaleRead> {
        for line in self.touched(bytes) {
            let (memory, latest) = (self.memory[line], self.latest[line]);
            let place = &mut self.lines(via)[line];
            let was_there = place.is_some();
            let found = place.get_or_insert(Cached { write: memory, dirty: false }).write;
            if found != latest {
                let missing = match (was_there, memory == latest) {
                    (true, true) => Missing::Invalidate,
                    (true, false) => Missing::Both,
                    (false, _) => Missing::Flush,
                };
                let (page, line) = (line / LINES, line % LINES);
                return Err(StaleRead { via, page, line, found, latest, missing });
            }
        }
        Ok(())
    }

    /// Writes dirty lines back, and drops all.
    fn flush(&mut self, via: Via, bytes: Range<usize>) {
        for line in self.touched(bytes) {
            if let Some(cached) = self.lines(via)[line].take()
                && cached.dirty
            {
                self.memory[line] = cached.write;
            }
        }
        self.prefetch();
    }

    fn prefetch(&mut self) {
        if self.speculative {
            for line in 0..self.latest.len() {
                let memory = self.memory[line];
                self.lines(Via::Range)[line].get_or_insert(Cached { write: memory, dirty: false });
            }
        }
    }

    /// Writes `bytes` of the vector through the direct mapping.
    ///
    /// # Panics
    /// This and all others: when the bytes reach beyond the vector.
    pub fn write_direct(&mut self, bytes: Range<usize>) {
        self.write(Via::Direct, bytes);
    }

    /// Writes `bytes` of the vector through the range.
    pub fn write_range(&mut self, bytes: Range<usize>) {
        self.write(Via::Range, bytes);
    }

    /// Reads `bytes` of the vector through the direct mapping.
    ///
    /// # Errors
    /// When one of the lines is not what was written last; the first one is told.
    pub fn read_direct(&mut self, bytes: Range<usize>) -> Result<(), StaleRead> {
        self.read(Via::Direct, bytes)
    }

    /// Reads `bytes` of the vector through the range.
    ///
    /// # Errors
    /// When one of the lines is not what was written last; the first one is told.
    pub fn read_range(&mut self, bytes: Range<usize>) -> Result<(), StaleRead> {
        self.read(Via::Range, bytes)
    }

    /// Writes back and drops the lines of a page's direct mapping.
    pub fn flush_kernel_dcache_page(&mut self, page: usize) {
        self.flush(Via::Direct, page * PAGE_SIZE..(page + 1) * PAGE_SIZE);
    }

    /// Writes back and drops the lines of the range: before a device, or the direct mapping, reads.
    pub fn flush_kernel_vmap_range(&mut self, bytes: Range<usize>) {
        self.flush(Via::Range, bytes);
    }

    /// Drops the lines of the range; what was written through it and not flushed is lost. On a physically
    /// indexed cache there is nothing to do, and the kernel does nothing.
    pub fn invalidate_kernel_vmap_range(&mut self, bytes: Range<usize>) {
        if self.cache == Cache::Vivt {
            for line in self.touched(bytes) {
                self.range[line] = None;
            }
            self.prefetch();
        }
    }
}

impl fmt::Debug for AliasModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AliasModel")
            .field("cache", &self.cache)
            .field("pages", &(self.latest.len() / LINES))
            .field("writes", &self.writes)
            .finish()
    }
}
