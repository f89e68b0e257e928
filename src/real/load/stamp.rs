//! What a verified load writes into a page, and what it says of one that comes back.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `netswpio` |
//! | 8..16 | seed |
//! | 16..20 | slot |
//! | 20..24 | generation: which write of this slot |
//! | 24..32 | run: tells the writes of one load from those of another with the same seed |
//! | 32..4088 | a pattern made of the four |
//! | 4088..4096 | CRC-64/NVME of the page with zeros here |
//!
//! All numbers are little-endian.

use std::fmt;

use netswap_reserve::PAGE_SIZE;
use netswap_swap::checksum;

const MAGIC: &[u8; 8] = b"netswpio";
const SUM_AT: usize = PAGE_SIZE - 8;

/// What is wrong with a page that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// No page of a verified load: it was never written by one, or wholly overwritten.
    NotOurs,
    /// The checksum is wrong.
    Damaged,
    /// It is the page of another slot.
    Slot {
        /// That slot.
        found: u32,
    },
    /// It is of a load with another seed.
    Seed {
        /// That seed.
        found: u64,
    },
    /// It is of an earlier load with this seed: what this one wrote is not there.
    Run,
    /// It is of another write than the last one.
    Generation {
        /// Of which.
        found: u32,
        /// Of which it should be.
        expected: u32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::NotOurs => {
                f.write_str("no page of a verified load: never written by one, or lost")
            }
            Mismatch::Damaged => f.write_str("the checksum is wrong"),
            Mismatch::Slot { found } => write!(f, "it is the page of slot {found}"),
            Mismatch::Seed { found } => write!(f, "it was written with --seed {found}"),
            Mismatch::Run => {
                f.write_str("it was written by an earlier run: the last write of this one is lost")
            }
            Mismatch::Generation { found, expected } => {
                write!(f, "it is write {found} of the slot, the last was {expected}")
            }
        }
    }
}

fn word<const N: usize>(page: &[u8; PAGE_SIZE], at: usize) -> [u8; N] {
    *page[at..].first_chunk().expect("the offset is a constant inside the page")
}

/// Whose pages these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) seed: u64,
    pub(super) run: u64,
}

/// Makes `page` write number `generation` of `slot`.
pub(super) fn stamp(page: &mut [u8; PAGE_SIZE], owner: Owner, slot: u32, generation: u32) {
    let Owner { seed, run } = owner;
    let mut state = seed ^ run.rotate_left(17) ^ (u64::from(slot) << 32 | u64::from(generation));
    for chunk in page[32..SUM_AT].as_chunks_mut::<8>().0 {
        // splitmix64's increment and the first half of its mixing: enough that no two pages share a run.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *chunk = mixed.to_le_bytes();
    }
    page[..8].copy_from_slice(MAGIC);
    page[8..16].copy_from_slice(&seed.to_le_bytes());
    page[16..20].copy_from_slice(&slot.to_le_bytes());
    page[20..24].copy_from_slice(&generation.to_le_bytes());
    page[24..32].copy_from_slice(&run.to_le_bytes());
    page[SUM_AT..].fill(0);
    let sum = checksum(page);
    page[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
}

/// Compares `page` with what slot `slot` must hold: write number `expected` of this run, or any of any run if that is not
/// known.
/// Its checksum is zero afterwards.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn verify(
    page: &mut [u8; PAGE_SIZE],
    owner: Owner,
    slot: u32,
    expected: Option<u32>,
) -> Result<(), Mismatch> {
    if &page[..8] != MAGIC {
        return Err(Mismatch::NotOurs);
    }
    let sum = u64::from_le_bytes(word(page, SUM_AT));
    page[SUM_AT..].fill(0);
    if checksum(page) != sum {
        return Err(Mismatch::Damaged);
    }
    let found = u32::from_le_bytes(word(page, 16));
    if found != slot {
        return Err(Mismatch::Slot { found });
    }
    let found = u64::from_le_bytes(word(page, 8));
    if found != owner.seed {
        return Err(Mismatch::Seed { found });
    }
    let found = u32::from_le_bytes(word(page, 20));
    match expected {
        Some(_) if u64::from_le_bytes(word(page, 24)) != owner.run => Err(Mismatch::Run),
        Some(expected) if expected != found => Err(Mismatch::Generation { found, expected }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(seed: u64) -> Owner {
        Owner { seed, run: 77 }
    }

    fn page(seed: u64, slot: u32, generation: u32) -> [u8; PAGE_SIZE] {
        let mut page = [0xa5; PAGE_SIZE];
        stamp(&mut page, owner(seed), slot, generation);
        page
    }

    #[test]
    fn a_page_is_what_was_written_and_nothing_else() {
        let verify = |page: &mut _, seed, slot, expected| verify(page, owner(seed), slot, expected);
        assert_eq!(verify(&mut page(1, 2, 3), 1, 2, Some(3)), Ok(()));
        assert_eq!(verify(&mut page(1, 2, 3), 1, 2, None), Ok(()));
        assert_eq!(verify(&mut page(1, 2, 3), 1, 5, None), Err(Mismatch::Slot { found: 2 }));
        assert_eq!(verify(&mut page(1, 2, 3), 9, 2, None), Err(Mismatch::Seed { found: 1 }));
        let old = Mismatch::Generation { found: 3, expected: 4 };
        assert_eq!(verify(&mut page(1, 2, 3), 1, 2, Some(4)), Err(old));
        assert_eq!(verify(&mut [0; PAGE_SIZE], 1, 2, None), Err(Mismatch::NotOurs));
    }

    #[test]
    fn what_an_earlier_run_wrote_is_not_what_this_one_wrote() {
        let later = Owner { seed: 1, run: 78 };
        assert_eq!(verify(&mut page(1, 2, 3), later, 2, None), Ok(()));
        assert_eq!(verify(&mut page(1, 2, 3), later, 2, Some(3)), Err(Mismatch::Run));
        let mut again = [0; PAGE_SIZE];
        stamp(&mut again, later, 2, 3);
        assert!(again[32..SUM_AT] != page(1, 2, 3)[32..SUM_AT]);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let good = page(7, 8, 9);
        for at in 0..PAGE_SIZE {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(verify(&mut bad, owner(7), 8, Some(9)).is_err(), "byte {at}");
        }
    }
}
