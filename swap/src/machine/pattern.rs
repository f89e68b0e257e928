//! The content of simulated pages: made from a key, checked against it, never stored twice.

use std::io;

use netswap_reserve::PAGE_SIZE;

use crate::disk::Disk;

/// One page in this many is written as zeros, so that zero pages occur.
const ZERO_PAGE_ONE_IN: u64 = 64;

/// The key of version `version` of page `page`. Version 0 is the zero page.
pub fn page_key(seed: u64, page: u32, version: u32) -> u64 {
    if version == 0 {
        return 0;
    }
    let key = mix(seed ^ (u64::from(page) << 32 | u64::from(version)));
    if key.is_multiple_of(ZERO_PAGE_ONE_IN) { 0 } else { key }
}

/// The finaliser of splitmix64: every bit of the input reaches every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn word(key: u64, i: usize) -> u64 {
    key.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) & mask(key)
}

/// Key 0 is the page of zeros.
fn mask(key: u64) -> u64 {
    if key == 0 { 0 } else { u64::MAX }
}

/// Makes `page` the page of `key`.
pub(super) fn fill(page: &mut [u8; PAGE_SIZE], key: u64) {
    for (i, bytes) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = word(key, i).to_le_bytes();
    }
}

/// Whether every byte of `page` is that of the page of `key`.
pub(super) fn matches(page: &[u8; PAGE_SIZE], key: u64) -> bool {
    let differing = page
        .as_chunks::<8>()
        .0
        .iter()
        .enumerate()
        .fold(0, |acc, (i, bytes)| acc | (u64::from_le_bytes(*bytes) ^ word(key, i)));
    differing == 0
}

const FILE_SEED: u64 = 0x0066_696c_6570_6167;

/// The key of the page in slot `slot` of a file area.
pub(super) fn file_key(slot: u32) -> u64 {
    page_key(FILE_SEED, slot, 1)
}

/// The checksum of the page in slot `slot` of a file area.
pub(super) fn file_page_checksum(slot: u32) -> u64 {
    let mut page = [0; PAGE_SIZE];
    fill(&mut page, file_key(slot));
    crate::checksum(&page)
}

/// A disk whose content is made as it is read: the file area of a simulated machine, read-only.
#[derive(Debug)]
pub struct PatternDisk {
    pages: u32,
}

impl PatternDisk {
    /// A disk of `pages` pages.
    pub fn new(pages: u32) -> PatternDisk {
        PatternDisk { pages }
    }
}

impl Disk for PatternDisk {
    fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE_SIZE as u64
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let mut page = [0; PAGE_SIZE];
            fill(&mut page, file_key((at / PAGE_SIZE as u64) as u32));
            let from = (at % PAGE_SIZE as u64) as usize;
            let n = rest.len().min(PAGE_SIZE - from);
            rest[..n].copy_from_slice(&page[from..from + n]);
            rest = &mut rest[n..];
            at += n as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_matches_its_own_key_and_no_other() {
        let mut page = [0; PAGE_SIZE];
        assert!(matches(&page, 0));
        fill(&mut page, 7);
        assert!(matches(&page, 7));
        assert!(!matches(&page, 8));
        page[4095] ^= 1;
        assert!(!matches(&page, 7));
    }

    #[test]
    fn versions_of_a_page_differ_and_some_are_zero() {
        let keys: Vec<u64> = (1..1000).map(|v| page_key(3, 5, v)).collect();
        let zeros = keys.iter().filter(|k| **k == 0).count();
        assert!((5..40).contains(&zeros), "{zeros}");
        let mut nonzero: Vec<u64> = keys.into_iter().filter(|k| *k != 0).collect();
        let n = nonzero.len();
        nonzero.sort_unstable();
        nonzero.dedup();
        assert_eq!(nonzero.len(), n);
    }

    #[test]
    fn a_pattern_disk_reads_the_same_across_page_borders_as_page_by_page() {
        let mut disk = PatternDisk::new(3);
        let mut whole = vec![0; 3 * PAGE_SIZE];
        disk.read_at(0, &mut whole).unwrap();
        let mut part = [0; 100];
        disk.read_at(PAGE_SIZE as u64 - 50, &mut part).unwrap();
        assert_eq!(part, whole[PAGE_SIZE - 50..PAGE_SIZE + 50]);
        assert!(disk.read_at(3 * PAGE_SIZE as u64 - 50, &mut part).is_err());
    }
}
