//! The SCSI commands that swap needs (SPC-4, SBC-3), as command descriptor blocks both ways.

pub mod data;
mod op;
mod sense;

pub use sense::{SENSE_LEN_MAX, Sense, SenseForm};

/// SCSI status codes (SAM-5 section 5.3.1).
pub mod status {
    /// GOOD.
    pub const GOOD: u8 = 0x00;
    /// CHECK CONDITION.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// BUSY.
    pub const BUSY: u8 = 0x08;
    /// RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// TASK SET FULL.
    pub const TASK_SET_FULL: u8 = 0x28;
    /// TASK ABORTED.
    pub const TASK_ABORTED: u8 = 0x40;
}

/// A command descriptor block, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cdb {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// Whether the descriptor form is asked for.
        descriptor: bool,
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// INQUIRY.
    Inquiry {
        /// The vital product data page, or `None` for the standard data.
        page: Option<u8>,
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// MODE SENSE (6) or (10).
    ModeSense {
        /// Whether it is the 10-byte form, whose header is longer.
        ten: bool,
        /// Page control: 0 current, 1 changeable, 2 default, 3 saved.
        control: u8,
        /// Page code.
        page: u8,
        /// Subpage code.
        subpage: u8,
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// READ (6), (10), (12) or (16).
    Read {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether it must come from the medium.
        fua: bool,
    },
    /// WRITE (6), (10), (12) or (16).
    Write {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether it must be on the medium before it ends.
        fua: bool,
    },
    /// SYNCHRONIZE CACHE (10) or (16).
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Blocks; 0 is to the end.
        blocks: u32,
    },
    /// VERIFY (10), (12) or (16).
    Verify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// What the blocks are compared with.
        compare: Compare,
    },
    /// WRITE AND VERIFY (10), (12) or (16).
    WriteVerify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
    },
    /// WRITE SAME (10) or (16): one block, written to many.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether the blocks may be deallocated, if they then read as what was sent.
        unmap: bool,
        /// Whether no block is sent: zeros are written.
        no_data: bool,
    },
    /// UNMAP.
    Unmap {
        /// Bytes of the parameter list.
        list_len: u32,
    },
    /// COMPARE AND WRITE: twice so many blocks are sent.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether it must be on the medium before it ends.
        fua: bool,
    },
    /// ORWRITE (16).
    OrWrite {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether it must be on the medium before it ends.
        fua: bool,
    },
    /// PRE-FETCH (10) or (16).
    Prefetch {
        /// First block.
        lba: u64,
        /// Blocks; 0 is to the end.
        blocks: u32,
    },
    /// START STOP UNIT.
    StartStop {
        /// START.
        start: bool,
        /// LOEJ.
        load_eject: bool,
        /// POWER CONDITION.
        power: u8,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL.
    PreventAllow,
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// A field has a value that is not taken.
    Invalid,
    /// Another operation code.
    Unknown(u8),
}

/// What VERIFY compares the blocks with (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Nothing: they are only to be readable.
    Nothing,
    /// As many blocks that are sent.
    All,
    /// One block that is sent.
    One,
}

fn at16(cdb: &[u8; 16], at: usize) -> u32 {
    u32::from(u16::from_be_bytes([cdb[at], cdb[at + 1]]))
}

fn at32(cdb: &[u8; 16], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn at64(cdb: &[u8; 16], at: usize) -> u64 {
    (u64::from(at32(cdb, at)) << 32) | u64::from(at32(cdb, at + 4))
}

/// VERIFY; BYTCHK 2 is reserved.
fn verify(cdb: &[u8; 16], lba: u64, blocks: u32) -> Cdb {
    let compare = match (cdb[1] >> 1) & 3 {
        0 => Compare::Nothing,
        1 => Compare::All,
        3 => Compare::One,
        _ => return Cdb::Invalid,
    };
    Cdb::Verify { lba, blocks, compare }
}

/// WRITE AND VERIFY; BYTCHK asks for a comparison of what was just written, 2 and 3 are reserved.
fn write_verify(cdb: &[u8; 16], lba: u64, blocks: u32) -> Cdb {
    match (cdb[1] >> 1) & 3 {
        0 | 1 => Cdb::WriteVerify { lba, blocks },
        _ => Cdb::Invalid,
    }
}

fn is_anchored(cdb: &[u8; 16]) -> bool {
    let bit = if cdb[0] == op::UNMAP { 0x01 } else { 0x10 };
    cdb[1] & bit != 0
}

impl Cdb {
    /// Reads a block. What is not known comes back as [`Cdb::Unknown`], never as an error: the
    /// answer to it is a CHECK CONDITION.
    pub fn parse(cdb: &[u8; 16]) -> Cdb {
        let fua = cdb[1] & 0x08 != 0;
        let short = (u64::from(at32(cdb, 2)), at16(cdb, 7));
        let long = (at64(cdb, 2), at32(cdb, 10));
        let twelve = at32(cdb, 6);
        // 21 bits of address; 0 blocks are 256.
        let six = (
            u64::from(at32(cdb, 0) & 0x001f_ffff),
            if cdb[4] == 0 { 256 } else { u32::from(cdb[4]) },
        );
        match cdb[0] {
            op::TEST_UNIT_READY => Cdb::TestUnitReady,
            op::REQUEST_SENSE => {
                Cdb::RequestSense { descriptor: cdb[1] & 1 != 0, alloc: u32::from(cdb[4]) }
            }
            op::INQUIRY => {
                let alloc = at16(cdb, 3);
                match (cdb[1] & 1 != 0, cdb[2]) {
                    (true, page) => Cdb::Inquiry { page: Some(page), alloc },
                    (false, 0) => Cdb::Inquiry { page: None, alloc },
                    (false, _) => Cdb::Invalid,
                }
            }
            code @ (op::MODE_SENSE_6 | op::MODE_SENSE_10) => Cdb::ModeSense {
                ten: code == op::MODE_SENSE_10,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                alloc: if code == op::MODE_SENSE_10 { at16(cdb, 7) } else { u32::from(cdb[4]) },
            },
            op::READ_CAPACITY_10 => Cdb::ReadCapacity10,
            // The upper three bits of byte 1 ask for protection information, which no disk here has.
            code if op::is_protected(code) && cdb[1] & 0xe0 != 0 => Cdb::Invalid,
            op::READ_6 => Cdb::Read { lba: six.0, blocks: six.1, fua: false },
            op::WRITE_6 => Cdb::Write { lba: six.0, blocks: six.1, fua: false },
            op::READ_10 => Cdb::Read { lba: short.0, blocks: short.1, fua },
            op::READ_12 => Cdb::Read { lba: short.0, blocks: twelve, fua },
            op::READ_16 => Cdb::Read { lba: long.0, blocks: long.1, fua },
            op::WRITE_10 => Cdb::Write { lba: short.0, blocks: short.1, fua },
            op::WRITE_12 => Cdb::Write { lba: short.0, blocks: twelve, fua },
            op::WRITE_16 => Cdb::Write { lba: long.0, blocks: long.1, fua },
            op::VERIFY_10 => verify(cdb, short.0, short.1),
            op::VERIFY_12 => verify(cdb, short.0, twelve),
            op::VERIFY_16 => verify(cdb, long.0, long.1),
            op::WRITE_VERIFY_10 => write_verify(cdb, short.0, short.1),
            op::WRITE_VERIFY_12 => write_verify(cdb, short.0, twelve),
            op::WRITE_VERIFY_16 => write_verify(cdb, long.0, long.1),
            // ANCHOR asks for a state that no disk here has.
            op::WRITE_SAME_10 | op::WRITE_SAME_16 | op::UNMAP if is_anchored(cdb) => Cdb::Invalid,
            op::WRITE_SAME_10 => Cdb::WriteSame {
                lba: short.0,
                blocks: short.1,
                unmap: cdb[1] & 0x08 != 0,
                no_data: false,
            },
            op::WRITE_SAME_16 => Cdb::WriteSame {
                lba: long.0,
                blocks: long.1,
                unmap: cdb[1] & 0x08 != 0,
                no_data: cdb[1] & 0x01 != 0,
            },
            op::UNMAP => Cdb::Unmap { list_len: at16(cdb, 7) },
            op::COMPARE_AND_WRITE => {
                Cdb::CompareAndWrite { lba: long.0, blocks: u32::from(cdb[13]), fua }
            }
            op::ORWRITE => Cdb::OrWrite { lba: long.0, blocks: long.1, fua },
            op::PREFETCH_10 => Cdb::Prefetch { lba: short.0, blocks: short.1 },
            op::PREFETCH_16 => Cdb::Prefetch { lba: long.0, blocks: long.1 },
            op::START_STOP_UNIT => Cdb::StartStop {
                start: cdb[4] & 1 != 0,
                load_eject: cdb[4] & 2 != 0,
                power: cdb[4] >> 4,
            },
            op::PREVENT_ALLOW => Cdb::PreventAllow,
            op::SYNCHRONIZE_CACHE_10 => Cdb::SynchronizeCache { lba: short.0, blocks: short.1 },
            op::SYNCHRONIZE_CACHE_16 => Cdb::SynchronizeCache { lba: long.0, blocks: long.1 },
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == 0x10 => {
                Cdb::ReadCapacity16 { alloc: at32(cdb, 10) }
            }
            op::SERVICE_ACTION_IN_16 => Cdb::Invalid,
            op::REPORT_LUNS => Cdb::ReportLuns { select: cdb[2], alloc: at32(cdb, 6) },
            other => Cdb::Unknown(other),
        }
    }

    /// The block: the 16-byte form where there is one.
    ///
    /// # Panics
    /// For [`Cdb::Invalid`] and [`Cdb::Unknown`], and for lengths that do not fit the block.
    pub fn build(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        let byte = |len: u32| u8::try_from(len).expect("allocation length fits a byte");
        let word = |len: u32| u16::try_from(len).expect("allocation length fits two bytes");
        let mut range = |code: u8, fua: bool, lba: u64, blocks: u32| {
            cdb[0] = code;
            cdb[1] = u8::from(fua) << 3;
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        };
        match *self {
            Cdb::TestUnitReady => {}
            Cdb::RequestSense { descriptor, alloc } => {
                cdb[0] = op::REQUEST_SENSE;
                cdb[1] = u8::from(descriptor);
                cdb[4] = byte(alloc);
            }
            Cdb::Inquiry { page, alloc } => {
                cdb[0] = op::INQUIRY;
                cdb[1] = u8::from(page.is_some());
                cdb[2] = page.unwrap_or(0);
                cdb[3..5].copy_from_slice(&word(alloc).to_be_bytes());
            }
            Cdb::ModeSense { ten, control, page, subpage, alloc } => {
                cdb[0] = if ten { op::MODE_SENSE_10 } else { op::MODE_SENSE_6 };
                cdb[2] = (control << 6) | (page & 0x3f);
                cdb[3] = subpage;
                if ten {
                    cdb[7..9].copy_from_slice(&word(alloc).to_be_bytes());
                } else {
                    cdb[4] = byte(alloc);
                }
            }
            Cdb::ReadCapacity10 => cdb[0] = op::READ_CAPACITY_10,
            Cdb::ReadCapacity16 { alloc } => {
                cdb[0] = op::SERVICE_ACTION_IN_16;
                cdb[1] = 0x10;
                cdb[10..14].copy_from_slice(&alloc.to_be_bytes());
            }
            Cdb::Read { lba, blocks, fua } => range(op::READ_16, fua, lba, blocks),
            Cdb::Write { lba, blocks, fua } => range(op::WRITE_16, fua, lba, blocks),
            Cdb::SynchronizeCache { lba, blocks } => {
                range(op::SYNCHRONIZE_CACHE_16, false, lba, blocks);
            }
            Cdb::Verify { lba, blocks, compare } => {
                range(op::VERIFY_16, false, lba, blocks);
                cdb[1] = match compare {
                    Compare::Nothing => 0,
                    Compare::All => 1 << 1,
                    Compare::One => 3 << 1,
                };
            }
            Cdb::WriteVerify { lba, blocks } => range(op::WRITE_VERIFY_16, false, lba, blocks),
            Cdb::WriteSame { lba, blocks, unmap, no_data } => {
                range(op::WRITE_SAME_16, unmap, lba, blocks);
                cdb[1] |= u8::from(no_data);
            }
            Cdb::Unmap { list_len } => {
                cdb[0] = op::UNMAP;
                cdb[7..9].copy_from_slice(&word(list_len).to_be_bytes());
            }
            Cdb::CompareAndWrite { lba, blocks, fua } => {
                range(op::COMPARE_AND_WRITE, fua, lba, 0);
                cdb[13] = byte(blocks);
            }
            Cdb::OrWrite { lba, blocks, fua } => range(op::ORWRITE, fua, lba, blocks),
            Cdb::Prefetch { lba, blocks } => range(op::PREFETCH_16, false, lba, blocks),
            Cdb::StartStop { start, load_eject, power } => {
                cdb[0] = op::START_STOP_UNIT;
                cdb[4] = u8::from(start) | (u8::from(load_eject) << 1) | (power << 4);
            }
            Cdb::PreventAllow => cdb[0] = op::PREVENT_ALLOW,
            Cdb::ReportLuns { select, alloc } => {
                cdb[0] = op::REPORT_LUNS;
                cdb[2] = select;
                cdb[6..10].copy_from_slice(&alloc.to_be_bytes());
            }
            Cdb::Invalid | Cdb::Unknown(_) => panic!("there is no block for {self:?}"),
        }
        cdb
    }

    /// The command's name, for messages.
    pub fn verb(&self) -> &'static str {
        match self {
            Cdb::TestUnitReady => "TEST UNIT READY",
            Cdb::RequestSense { .. } => "REQUEST SENSE",
            Cdb::Inquiry { .. } => "INQUIRY",
            Cdb::ModeSense { .. } => "MODE SENSE",
            Cdb::ReadCapacity10 | Cdb::ReadCapacity16 { .. } => "READ CAPACITY",
            Cdb::Read { .. } => "READ",
            Cdb::Write { .. } => "WRITE",
            Cdb::SynchronizeCache { .. } => "SYNCHRONIZE CACHE",
            Cdb::Verify { .. } => "VERIFY",
            Cdb::WriteVerify { .. } => "WRITE AND VERIFY",
            Cdb::WriteSame { .. } => "WRITE SAME",
            Cdb::Unmap { .. } => "UNMAP",
            Cdb::CompareAndWrite { .. } => "COMPARE AND WRITE",
            Cdb::OrWrite { .. } => "ORWRITE",
            Cdb::Prefetch { .. } => "PRE-FETCH",
            Cdb::StartStop { .. } => "START STOP UNIT",
            Cdb::PreventAllow => "PREVENT ALLOW MEDIUM REMOVAL",
            Cdb::ReportLuns { .. } => "REPORT LUNS",
            Cdb::Invalid | Cdb::Unknown(_) => "unknown command",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_as_they_were_built() {
        let (lba, blocks) = (0x0102_0304_0506_0708, 0x090a_0b0c);
        for cdb in [
            Cdb::TestUnitReady,
            Cdb::RequestSense { descriptor: true, alloc: 252 },
            Cdb::Inquiry { page: None, alloc: 96 },
            Cdb::Inquiry { page: Some(0xb0), alloc: 255 },
            Cdb::ModeSense { ten: false, control: 0, page: 8, subpage: 0, alloc: 192 },
            Cdb::ModeSense { ten: true, control: 2, page: 0x3f, subpage: 0xff, alloc: 1024 },
            Cdb::ReadCapacity10,
            Cdb::ReadCapacity16 { alloc: 32 },
            Cdb::Read { lba, blocks, fua: false },
            Cdb::Write { lba, blocks, fua: true },
            Cdb::SynchronizeCache { lba, blocks },
            Cdb::ReportLuns { select: 2, alloc: 4096 },
            Cdb::Verify { lba, blocks, compare: Compare::Nothing },
            Cdb::Verify { lba, blocks, compare: Compare::All },
            Cdb::Verify { lba, blocks, compare: Compare::One },
            Cdb::WriteVerify { lba, blocks },
            Cdb::WriteSame { lba, blocks, unmap: true, no_data: false },
            Cdb::WriteSame { lba, blocks, unmap: false, no_data: true },
            Cdb::Unmap { list_len: 24 },
            Cdb::CompareAndWrite { lba, blocks: 255, fua: true },
            Cdb::OrWrite { lba, blocks, fua: true },
            Cdb::Prefetch { lba, blocks },
            Cdb::StartStop { start: true, load_eject: false, power: 3 },
            Cdb::PreventAllow,
        ] {
            assert_eq!(Cdb::parse(&cdb.build()), cdb);
        }
    }

    #[test]
    fn the_shorter_forms_are_read_and_what_no_disk_here_has_is_invalid() {
        let parse = |bytes: &[u8]| {
            let mut cdb = [0; 16];
            cdb[..bytes.len()].copy_from_slice(bytes);
            Cdb::parse(&cdb)
        };
        let read = |lba, blocks| Cdb::Read { lba, blocks, fua: false };
        assert_eq!(parse(&[0x08, 0x1f, 2, 3, 4, 0]), read(0x1f_0203, 4));
        assert_eq!(parse(&[0x08, 0xe0, 0, 1, 0, 0]), read(1, 256));
        assert_eq!(parse(&[0xa8, 0, 0, 0, 0, 5, 0, 1, 0, 2]), read(5, 0x1_0002));
        // RDPROTECT, a reserved BYTCHK, ANCHOR of both commands that have it.
        assert_eq!(parse(&[0x28, 0x20]), Cdb::Invalid);
        assert_eq!(parse(&[0x2f, 0x04]), Cdb::Invalid);
        assert_eq!(parse(&[0x42, 0x01]), Cdb::Invalid);
        assert_eq!(parse(&[0x41, 0x10]), Cdb::Invalid);
    }

    #[test]
    fn a_write_16_with_fua_is_these_bytes() {
        let cdb = Cdb::Write { lba: 0x1_0000_0008, blocks: 8, fua: true }.build();
        assert_eq!(cdb, [0x8a, 0x08, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    }
}
