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
    /// Whether it caches writes, takes FUA, and refuses writes (MODE SENSE).
    pub(super) modes: Option<Modes>,
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
    fn damaged_pages_tell_nothing() {
        for len in 0..12 {
            let bytes = &[0xff; 12][..len];
            let _ = (identity(bytes), modes(bytes), capacity_10(bytes));
            assert_eq!(transfer_blocks(bytes), 0);
        }
        assert_eq!(transfer_blocks(&[0, 0xb0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 0]), 256);
    }
}
