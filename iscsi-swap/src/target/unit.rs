//! A logical unit: what a command does to its disk, once its data is there.

use std::io;

use netswap_swap::Disk;

use super::command::{Refusal, answer, check};
use crate::scsi::data::{UNMAP_DESCRIPTORS_MAX, UnitInfo, mode_sense, vpd};
use crate::scsi::{Cdb, Compare, Sense};

/// Bytes that are compared, or written again and again, at a time: whole blocks of either size.
const PIECE: usize = 4096;

/// What a unit is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitOptions {
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether UNMAP, and WRITE SAME with UNMAP, are taken; what they free reads as zero.
    pub thin: bool,
    /// Serial number, printable ASCII, which the unit's identity is made from too. By default it is
    /// that of the LUN.
    pub serial: Option<[u8; 16]>,
}

impl Default for UnitOptions {
    /// Blocks of 512 bytes, writable, fully provisioned.
    fn default() -> UnitOptions {
        UnitOptions { block_size: 512, read_only: false, thin: false, serial: None }
    }
}

#[derive(Debug)]
pub(super) struct Unit<D> {
    pub(super) lun: u16,
    pub(super) info: UnitInfo,
    pub(super) disk: D,
}

impl<D: Disk> Unit<D> {
    /// Bytes of data that a command takes from its initiator.
    pub(super) fn data_out(&self, cdb: &Cdb) -> u64 {
        let block = u64::from(self.info.block_size);
        match *cdb {
            Cdb::Write { blocks, .. }
            | Cdb::WriteVerify { blocks, .. }
            | Cdb::OrWrite { blocks, .. }
            | Cdb::Verify { blocks, compare: Compare::All, .. } => u64::from(blocks) * block,
            Cdb::Verify { blocks, compare: Compare::One, .. } if blocks > 0 => block,
            Cdb::CompareAndWrite { blocks, .. } => 2 * u64::from(blocks) * block,
            Cdb::WriteSame { no_data: false, .. } => block,
            Cdb::Unmap { list_len } => u64::from(list_len),
            _ => 0,
        }
    }

    /// What stands against a command on this unit before its data is looked at.
    pub(super) fn refuse(&self, cdb: &Cdb) -> Result<(), Refusal> {
        let info = &self.info;
        let in_range = |lba: u64, blocks: u32| match lba.checked_add(u64::from(blocks)) {
            Some(end) if end <= info.blocks => Ok(()),
            _ => Err(check(Sense::OUT_OF_RANGE)),
        };
        let at_most = |blocks: u32, most: u32| match blocks {
            n if n <= most => Ok(()),
            _ => Err(check(Sense::INVALID_FIELD)),
        };
        match *cdb {
            Cdb::Read { lba, blocks, .. } => {
                in_range(lba, blocks)?;
                at_most(blocks, info.transfer_max)
            }
            Cdb::Write { lba, blocks, .. }
            | Cdb::WriteVerify { lba, blocks }
            | Cdb::OrWrite { lba, blocks, .. } => {
                in_range(lba, blocks)?;
                at_most(blocks, info.transfer_max)?;
                self.writable()
            }
            Cdb::CompareAndWrite { lba, blocks, .. } => {
                in_range(lba, blocks)?;
                at_most(blocks, info.compare_max.into())?;
                self.writable()
            }
            Cdb::Verify { lba, blocks, compare } => {
                in_range(lba, blocks)?;
                if compare == Compare::All { at_most(blocks, info.transfer_max) } else { Ok(()) }
            }
            Cdb::WriteSame { lba, blocks, unmap, .. } => {
                // WSNZ, and more than the unit takes at once.
                at_most(blocks.wrapping_sub(1), info.unmap_max - 1)?;
                in_range(lba, blocks)?;
                if unmap && !info.thin {
                    return Err(check(Sense::INVALID_FIELD));
                }
                self.writable()
            }
            Cdb::Unmap { .. } if !info.thin => Err(check(Sense::INVALID_OPCODE)),
            Cdb::Unmap { .. } => self.writable(),
            Cdb::SynchronizeCache { lba, blocks } | Cdb::Prefetch { lba, blocks } => {
                in_range(lba, blocks)
            }
            // The medium cannot be taken out.
            Cdb::StartStop { load_eject: true, .. } | Cdb::Invalid => {
                Err(check(Sense::INVALID_FIELD))
            }
            Cdb::Unknown(_) => Err(check(Sense::INVALID_OPCODE)),
            _ => Ok(()),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.info.read_only { Err(check(Sense::WRITE_PROTECTED)) } else { Ok(()) }
    }

    /// Carries a command out that [`Unit::refuse`] has let through. `buf` holds `got` bytes of its data,
    /// and takes up to `expected` bytes of what it gives. Returns the bytes that move, and those
    /// that it is about.
    pub(super) fn execute(
        &mut self,
        cdb: &Cdb,
        buf: &mut [u8],
        got: usize,
        expected: usize,
    ) -> Result<(u32, u32), Refusal> {
        let wanted = self.data_out(cdb) as u32;
        let moved = got.min(wanted as usize);
        let at = |lba: u64| lba * u64::from(self.info.block_size);
        match *cdb {
            Cdb::Read { lba, blocks, .. } => {
                let bytes = blocks * self.info.block_size;
                let len = (bytes as usize).min(expected);
                let read = self.disk.read_at(at(lba), &mut buf[..len]);
                read.map_err(|_| check(Sense::READ_ERROR))?;
                return Ok((len as u32, bytes));
            }
            Cdb::Write { lba, fua, .. } => {
                let offset = at(lba);
                self.store(offset, &buf[..moved], fua)?;
            }
            // What was just written is what a read would give: there is no medium to check behind it.
            Cdb::WriteVerify { lba, .. } => {
                let offset = at(lba);
                self.store(offset, &buf[..moved], true)?;
            }
            Cdb::OrWrite { lba, fua, .. } => {
                let offset = at(lba);
                self.merge(offset, &mut buf[..moved])?;
                self.store(offset, &buf[..moved], fua)?;
            }
            Cdb::CompareAndWrite { lba, fua, .. } => {
                let offset = at(lba);
                let (old, new) = buf[..moved].split_at(moved / 2);
                self.compare(offset, old)?;
                self.store(offset, new, fua)?;
            }
            Cdb::Verify { lba, compare: Compare::All, .. } => {
                let offset = at(lba);
                self.compare(offset, &buf[..moved])?;
            }
            Cdb::Verify { lba, blocks, compare: Compare::One } if blocks > 0 => {
                let block = self.whole_block(buf, moved)?;
                for lba in lba..lba + u64::from(blocks) {
                    let offset = lba * u64::from(self.info.block_size);
                    self.compare(offset, &buf[..block])?;
                }
            }
            Cdb::WriteSame { lba, blocks, unmap, no_data } => {
                self.write_same(lba, blocks, unmap, (!no_data).then_some(&buf[..moved]))?;
            }
            Cdb::Unmap { list_len } => self.unmap(&buf[..moved], list_len as usize)?,
            Cdb::SynchronizeCache { .. } | Cdb::StartStop { start: false, .. } => {
                self.disk.flush().map_err(|e| write_error(&e))?;
            }
            Cdb::Inquiry { page, alloc } => {
                let len = vpd(buf, page.unwrap_or(0), &self.info);
                return Ok(answer(len.ok_or(check(Sense::INVALID_FIELD))?, alloc));
            }
            Cdb::ModeSense { ten, control, page, subpage, alloc } => {
                let len = mode_sense(buf, ten, control, page, subpage, &self.info);
                return Ok(answer(len.ok_or(check(Sense::INVALID_FIELD))?, alloc));
            }
            Cdb::ReadCapacity10 => {
                buf[..8].copy_from_slice(&self.info.capacity().build_10());
                return Ok(answer(8, 8));
            }
            Cdb::ReadCapacity16 { alloc } => {
                buf[..32].copy_from_slice(&self.info.capacity_16());
                return Ok(answer(32, alloc));
            }
            Cdb::TestUnitReady
            | Cdb::Verify { .. }
            | Cdb::Prefetch { .. }
            | Cdb::StartStop { .. }
            | Cdb::PreventAllow => {}
            Cdb::ReportLuns { .. } | Cdb::RequestSense { .. } | Cdb::Invalid => {
                return Err(check(Sense::INVALID_FIELD));
            }
            Cdb::Unknown(_) => return Err(check(Sense::INVALID_OPCODE)),
        }
        Ok((moved as u32, wanted))
    }

    fn store(&mut self, offset: u64, bytes: &[u8], fua: bool) -> Result<(), Refusal> {
        self.disk.write_at(offset, bytes).map_err(|e| write_error(&e))?;
        if fua {
            self.disk.flush().map_err(|e| write_error(&e))?;
        }
        Ok(())
    }

    /// Compares what is on the disk with `bytes`.
    fn compare(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let mut piece = [0; PIECE];
        for (i, want) in bytes.chunks(PIECE).enumerate() {
            let have = &mut piece[..want.len()];
            let read = self.disk.read_at(offset + (i * PIECE) as u64, have);
            read.map_err(|_| check(Sense::READ_ERROR))?;
            if have != want {
                return Err(check(Sense::MISCOMPARE));
            }
        }
        Ok(())
    }

    /// Adds the bits that are on the disk to `bytes`.
    fn merge(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        let mut piece = [0; PIECE];
        for (i, new) in bytes.chunks_mut(PIECE).enumerate() {
            let old = &mut piece[..new.len()];
            let read = self.disk.read_at(offset + (i * PIECE) as u64, old);
            read.map_err(|_| check(Sense::READ_ERROR))?;
            new.iter_mut().zip(old).for_each(|(new, old)| *new |= *old);
        }
        Ok(())
    }

    /// The length of a block, if one has come.
    fn whole_block(&self, buf: &[u8], moved: usize) -> Result<usize, Refusal> {
        let block = self.info.block_size as usize;
        match moved == block && buf.len() >= block {
            true => Ok(block),
            false => Err(check(Sense::INVALID_FIELD)),
        }
    }

    /// Writes `data` to each of the blocks, or zeros; frees them if they may be and are to read as zero.
    fn write_same(
        &mut self,
        lba: u64,
        blocks: u32,
        unmap: bool,
        data: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        let block = self.info.block_size as usize;
        let (start, len) = (lba * block as u64, u64::from(blocks) * block as u64);
        let mut piece = [0; PIECE];
        if let Some(data) = data {
            let block = self.whole_block(data, data.len())?;
            piece.chunks_mut(block).for_each(|place| place.copy_from_slice(data));
        }
        if unmap && piece.iter().all(|b| *b == 0) {
            return self.disk.discard(start, len).map_err(|e| write_error(&e));
        }
        let mut at = 0;
        while at < len {
            let n = (len - at).min(PIECE as u64) as usize;
            self.disk.write_at(start + at, &piece[..n]).map_err(|e| write_error(&e))?;
            at += n as u64;
        }
        Ok(())
    }

    /// UNMAP (SBC-3 section 5.28): all of its ranges, or none.
    fn unmap(&mut self, list: &[u8], list_len: usize) -> Result<(), Refusal> {
        if list_len == 0 {
            return Ok(());
        }
        if list_len < 8 || list.len() < list_len {
            return Err(check(Sense::LIST_LENGTH));
        }
        let stated = usize::from(u16::from_be_bytes([list[2], list[3]]));
        let ranges = list[8..].get(..stated).ok_or(check(Sense::LIST_LENGTH))?;
        let ranges = ranges.chunks_exact(16).map(|range| {
            let lba = range[..8].iter().fold(0, |n, byte| (n << 8) | u64::from(*byte));
            let blocks = range[8..12].iter().fold(0, |n, byte| (n << 8) | u64::from(*byte));
            (lba, blocks)
        });
        if ranges.len() > UNMAP_DESCRIPTORS_MAX as usize {
            return Err(check(Sense::INVALID_LIST));
        }
        let mut total = 0;
        for (lba, blocks) in ranges.clone() {
            total += blocks;
            if lba.checked_add(blocks).is_none_or(|end| end > self.info.blocks) {
                return Err(check(Sense::OUT_OF_RANGE));
            }
        }
        if total > u64::from(self.info.unmap_max) {
            return Err(check(Sense::INVALID_LIST));
        }
        let block = u64::from(self.info.block_size);
        for (lba, blocks) in ranges.filter(|(_, blocks)| *blocks > 0) {
            self.disk.discard(lba * block, blocks * block).map_err(|e| write_error(&e))?;
        }
        Ok(())
    }
}

fn write_error(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::StorageFull => check(Sense::NO_SPACE),
        _ => check(Sense::WRITE_ERROR),
    }
}
