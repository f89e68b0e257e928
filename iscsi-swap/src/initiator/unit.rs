//! What a logical unit tells about itself, and what follows from it.
//!
//! A page of vital product data that a unit has not got tells nothing: only what it says binds.

use netswap_reserve::PAGE_SIZE;
use netswap_swap::StoreError;
use netswap_swap::backend::BATCH_PAGES_MAX;

use super::WritePolicy;

/// How a write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// It is, when it is answered.
    Through,
    /// FUA on each.
    Fua,
    /// SYNCHRONIZE CACHE behind each.
    Sync,
}

/// What a unit has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// Bytes of a block; 0 until it is known.
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    /// Hash of the designators of the unit (VPD page 83h).
    pub(super) identity: Option<u64>,
    /// Most blocks of a command (VPD page B0h); 0 is no bound.
    pub(super) transfer_blocks: u32,
    /// Blocks may be without a place on its medium: LBPME (READ CAPACITY (16)).
    pub(super) is_thin: bool,
    /// What an UNMAP may have (VPD page B0h).
    pub(super) unmap: Option<UnmapLimits>,
    /// LBPU (VPD page B2h).
    pub(super) takes_unmap: bool,
    /// Whether it caches writes, takes FUA, and refuses writes (MODE SENSE).
    pub(super) modes: Option<Modes>,
}

/// Bounds of an UNMAP, and where what it frees had best begin and end (SBC-3 section 6.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapLimits {
    /// Most blocks of all ranges.
    pub blocks: u32,
    /// Most ranges.
    pub descriptors: u32,
    /// Blocks that are freed together; what is less is freed at most in part.
    pub granularity: u32,
    /// The first block at which so many begin.
    pub alignment: u32,
}

impl UnmapLimits {
    /// From VPD page B0h; `None` of a unit that gives none, and so takes no UNMAP.
    pub(super) fn parse(data: &[u8]) -> Option<UnmapLimits> {
        let limits = vpd(data, 0xb0)?;
        let word = |at: usize| {
            let word = limits.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_be_bytes)
        };
        let (blocks, descriptors, alignment) = (word(16), word(20), word(28));
        let granularity = word(24).max(1);
        // UGAVALID
        let alignment =
            if alignment >> 31 == 1 { (alignment & !(1 << 31)) % granularity } else { 0 };
        (blocks > 0 && descriptors > 0).then_some(UnmapLimits {
            blocks,
            descriptors,
            granularity,
            alignment,
        })
    }

    /// The part of `first..end` that is freed whole: what is left of it is not asked for.
    pub(super) fn inward(&self, first: u64, end: u64) -> std::ops::Range<u64> {
        let (by, at) = (u64::from(self.granularity), u64::from(self.alignment));
        let up = |lba: u64| match lba.checked_sub(at) {
            Some(past) => at.saturating_add(past.div_ceil(by).saturating_mul(by)),
            None => at,
        };
        let down = |lba: u64| lba.checked_sub(at).map_or(0, |past| at + past / by * by);
        up(first)..down(end)
    }
}

/// What the caching page and its header tell (SBC-3 sections 6.4.1 and 6.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) write_protected: bool,
    pub(super) takes_fua: bool,
    pub(super) caches_writes: bool,
}

impl Unit {
    /// Most bytes of a command, whole pages, at most `bound`.
    pub(super) fn transfer_max(&self, bound: u32) -> u32 {
        let unit = match self.transfer_blocks {
            0 => u32::MAX,
            blocks => blocks.saturating_mul(self.block_size),
        };
        let page = PAGE_SIZE as u32;
        (unit.min(bound) / page * page).max(page)
    }

    /// Most pages of a request.
    pub(super) fn batch_pages(&self) -> usize {
        self.transfer_max((BATCH_PAGES_MAX * PAGE_SIZE) as u32) as usize / PAGE_SIZE
    }

    pub(super) fn durability(&self, policy: WritePolicy) -> Durability {
        match (self.modes, policy) {
            (Some(modes), _) if !modes.caches_writes => Durability::Through,
            (Some(Modes { takes_fua: true, .. }) | None, WritePolicy::Fua) => Durability::Fua,
            _ => Durability::Sync,
        }
    }

    /// Slots of the unit.
    ///
    /// # Errors
    /// If pages are no whole number of its blocks.
    pub(super) fn slots(&self) -> Result<u32, StoreError> {
        let (size, page) = (self.block_size, PAGE_SIZE as u32);
        if size < 512 || size > page || !page.is_multiple_of(size) {
            return Err(StoreError::BlockSize { bytes: size });
        }
        Ok(u32::try_from(self.blocks / u64::from(page / size)).unwrap_or(u32::MAX))
    }

    /// What tells this unit from `before`, if anything does.
    pub(super) fn differs(&self, before: &Unit) -> Option<&'static str> {
        if before.identity.is_some() && self.identity != before.identity {
            Some("the unit's identification (VPD page 83h)")
        } else if self.block_size != before.block_size {
            Some("its block size")
        } else {
            (self.blocks != before.blocks).then_some("its length")
        }
    }
}

/// The page of vital product data, if it is the one that was asked for, without its header.
fn vpd(data: &[u8], page: u8) -> Option<&[u8]> {
    let [_, code, high, low, rest @ ..] = data else { return None };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    (*code == page).then_some(&rest[..len.min(rest.len())])
}

/// Hash of the designators that name the unit itself (SPC-4 section 7.8.6): those of its ports depend on the way to it.
pub(super) fn identity(data: &[u8]) -> Option<u64> {
    let mut rest = vpd(data, 0x83)?;
    let mut hash = None;
    while let [code, kind, _, len, tail @ ..] = rest {
        let len = usize::from(*len).min(tail.len());
        if kind & 0x30 == 0 {
            // FNV-1a.
            let add =
                |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            let before = add(hash.unwrap_or(0xcbf2_9ce4_8422_2325), &(code & 0x0f));
            hash = Some(tail[..len].iter().fold(add(before, kind), add));
        }
        rest = &tail[len..];
    }
    hash
}

/// MAXIMUM TRANSFER LENGTH of the block limits (SBC-3 section 6.6.3); 0 is none.
pub(super) fn transfer_blocks(data: &[u8]) -> u32 {
    let limits = vpd(data, 0xb0).unwrap_or_default();
    limits.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// LBPME of READ CAPACITY (16) (SBC-3 section 5.16.2).
pub(super) fn is_thin(data: &[u8]) -> bool {
    data.get(14).is_some_and(|byte| byte & 0x80 != 0)
}

/// LBPU of the logical block provisioning (SBC-3 section 6.6.4).
pub(super) fn takes_unmap(data: &[u8]) -> bool {
    vpd(data, 0xb2).and_then(|page| page.get(1)).is_some_and(|byte| byte & 0x80 != 0)
}

/// The answer to MODE SENSE (6) of the caching page.
pub(super) fn modes(data: &[u8]) -> Option<Modes> {
    let [_, _, device, descriptors, rest @ ..] = data else { return None };
    let page = rest.get(usize::from(*descriptors)..)?;
    let caching = page.get(..3).filter(|page| page[0] & 0x3f == 0x08)?;
    Some(Modes {
        write_protected: device & 0x80 != 0,
        takes_fua: device & 0x10 != 0,
        caches_writes: caching[2] & 0x04 != 0,
    })
}

/// READ CAPACITY (10): blocks, and their size. A unit with more blocks than it can say is as long as it can say.
pub(super) fn capacity_10(data: &[u8]) -> Option<(u64, u32)> {
    let last = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    let size = u32::from_be_bytes(data.get(4..8)?.try_into().ok()?);
    Some((u64::from(last) + 1, size))
}

/// The 10-byte form of a READ, WRITE or SYNCHRONIZE CACHE (16) that it has room for: old units have no other.
pub(super) fn shortest(cdb: [u8; 16]) -> [u8; 16] {
    let code = match cdb[0] {
        0x88 => 0x28,
        0x8a => 0x2a,
        0x91 => 0x35,
        _ => return cdb,
    };
    // Upper halves of the address and of the length.
    if cdb[2..6] != [0; 4] || cdb[10..12] != [0; 2] {
        return cdb;
    }
    let mut short = [0; 16];
    (short[0], short[1]) = (code, cdb[1]);
    short[2..6].copy_from_slice(&cdb[6..10]);
    short[7..9].copy_from_slice(&cdb[12..14]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::Cdb;

    #[test]
    fn the_short_form_is_taken_up_to_its_last_address() {
        for (lba, blocks, short) in [
            (0, 8, true),
            (0xffff_ffff, 0xffff, true),
            (0x1_0000_0000, 8, false),
            (8, 0x1_0000, false),
        ] {
            for cdb in [
                Cdb::Read { lba, blocks, fua: false },
                Cdb::Write { lba, blocks, fua: true },
                Cdb::SynchronizeCache { lba, blocks },
            ] {
                let built = shortest(cdb.build());
                assert_eq!(Cdb::parse(&built), cdb);
                assert_eq!(built[0] < 0x80, short, "{cdb:?}");
            }
        }
    }

    #[test]
    fn the_identity_is_that_of_the_unit_not_of_its_ports() {
        let page = |designators: &[&[u8]]| {
            let all = designators.concat();
            [&[0, 0x83, 0, all.len() as u8], all.as_slice()].concat()
        };
        let unit = [0x02, 0x01, 0, 3, b'a', b'b', b'c'];
        let other = [0x02, 0x01, 0, 3, b'a', b'b', b'd'];
        let port = [0x51, 0x94, 0, 4, 0, 0, 0, 1];
        let alone = identity(&page(&[&unit]));
        assert!(alone.is_some());
        assert_eq!(identity(&page(&[&port, &unit])), alone);
        assert_ne!(identity(&page(&[&other])), alone);
        assert_eq!(identity(&page(&[&port])), None);
        assert_eq!(identity(&[0, 0x80, 0, 0]), None);
        // A length that lies ends the list.
        assert!(identity(&[0, 0x83, 0xff, 0xff, 2, 1, 0, 200, 1]).is_some());
    }

    #[test]
    fn a_write_cache_decides_how_a_write_is_made_durable() {
        let page = |device, wce| [23, 0, device, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x88, 18, wce, 0];
        let unit = |device, wce| Unit { modes: modes(&page(device, wce)), ..Unit::default() };
        let how = |device, wce, policy| unit(device, wce).durability(policy);
        assert_eq!(how(0x10, 0x04, WritePolicy::Fua), Durability::Fua);
        assert_eq!(how(0x10, 0x04, WritePolicy::SyncCache), Durability::Sync);
        assert_eq!(how(0x00, 0x04, WritePolicy::Fua), Durability::Sync);
        assert_eq!(how(0x10, 0x00, WritePolicy::SyncCache), Durability::Through);
        assert!(modes(&page(0x90, 0)).unwrap().write_protected);
        assert_eq!(modes(&[3, 0, 0, 0]), None);
        assert_eq!(Unit::default().durability(WritePolicy::Fua), Durability::Fua);
    }

    #[test]
    fn blocks_that_pages_do_not_fit_are_refused_and_transfers_bounded() {
        for bytes in [0, 256, 513, 520, 4104, 8192] {
            let unit = Unit { block_size: bytes, blocks: 99, ..Unit::default() };
            assert_eq!(unit.slots(), Err(StoreError::BlockSize { bytes }));
        }
        let unit = Unit { block_size: 512, blocks: 64, transfer_blocks: 50, ..Unit::default() };
        assert_eq!(unit.slots(), Ok(8));
        assert_eq!((unit.transfer_max(1 << 20), unit.batch_pages()), (24576, 6));
        let none = Unit { transfer_blocks: 0, ..unit };
        assert_eq!((none.transfer_max(1 << 18), none.batch_pages()), (1 << 18, BATCH_PAGES_MAX));
        assert_eq!(Unit { transfer_blocks: 1, ..unit }.batch_pages(), 1);
        assert_eq!(
            none.differs(&Unit { identity: Some(1), ..none }),
            Some("the unit's identification (VPD page 83h)")
        );
        assert_eq!(none.differs(&Unit { blocks: 8, ..none }), Some("its length"));
        assert_eq!(none.differs(&none), None);
    }

    #[test]
    fn a_unit_takes_unmap_only_if_it_says_so_everywhere() {
        let mut page = [0; 64];
        page[..4].copy_from_slice(&[0, 0xb0, 0, 60]);
        assert_eq!(UnmapLimits::parse(&page), None, "no limits");
        page[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(UnmapLimits::parse(&page), None, "no descriptors");
        page[24..28].copy_from_slice(&9u32.to_be_bytes());
        let plain = UnmapLimits { blocks: u32::MAX, descriptors: 9, granularity: 1, alignment: 0 };
        assert_eq!(UnmapLimits::parse(&page), Some(plain));
        page[28..32].copy_from_slice(&16u32.to_be_bytes());
        page[32..36].copy_from_slice(&20u32.to_be_bytes());
        assert_eq!(UnmapLimits::parse(&page), Some(UnmapLimits { granularity: 16, ..plain }));
        page[32] = 0x80;
        let aligned = UnmapLimits { granularity: 16, alignment: 4, ..plain };
        assert_eq!(UnmapLimits::parse(&page), Some(aligned));
        assert!(is_thin(&[0x80; 15]) && !is_thin(&[0x7f; 32]) && !is_thin(&[0xff; 14]));
        assert!(takes_unmap(&[0, 0xb2, 0, 4, 0, 0x80, 2, 0]));
        assert!(!takes_unmap(&[0, 0xb2, 0, 4, 0, 0x7f, 2, 0]));
        assert!(!takes_unmap(&[0, 0xb2, 0, 1, 0, 0x80]), "beyond its length");
    }

    #[test]
    fn ranges_shrink_to_what_is_freed_whole() {
        let at = |granularity, alignment| UnmapLimits {
            blocks: 1,
            descriptors: 1,
            granularity,
            alignment,
        };
        assert_eq!(at(1, 0).inward(8, 16), 8..16);
        assert_eq!(at(8, 0).inward(8, 16), 8..16);
        assert_eq!(at(16, 0).inward(8, 40), 16..32);
        assert_eq!(at(16, 4).inward(0, 40), 4..36);
        assert!(at(16, 4).inward(24, 32).is_empty());
        assert!(at(u32::MAX, 7).inward(u64::MAX - 9, u64::MAX).is_empty());
    }

    #[test]
    fn damaged_pages_tell_nothing() {
        for len in 0..12 {
            let bytes = &[0xff; 12][..len];
            let _ = (identity(bytes), modes(bytes), capacity_10(bytes));
            assert_eq!((UnmapLimits::parse(bytes), takes_unmap(bytes)), (None, false));
            assert_eq!(transfer_blocks(bytes), 0);
        }
        assert_eq!(transfer_blocks(&[0, 0xb0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 0]), 256);
    }
}
