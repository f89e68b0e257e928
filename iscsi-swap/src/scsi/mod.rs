//! The SCSI commands that swap needs (SPC-4, SBC-3), as command descriptor blocks both ways.

pub mod data;
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

mod op {
    pub(super) const TEST_UNIT_READY: u8 = 0x00;
    pub(super) const REQUEST_SENSE: u8 = 0x03;
    pub(super) const INQUIRY: u8 = 0x12;
    pub(super) const MODE_SENSE_6: u8 = 0x1a;
    pub(super) const READ_CAPACITY_10: u8 = 0x25;
    pub(super) const READ_10: u8 = 0x28;
    pub(super) const WRITE_10: u8 = 0x2a;
    pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(super) const MODE_SENSE_10: u8 = 0x5a;
    pub(super) const READ_16: u8 = 0x88;
    pub(super) const WRITE_16: u8 = 0x8a;
    pub(super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub(super) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(super) const REPORT_LUNS: u8 = 0xa0;
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
    /// READ (10) or (16).
    Read {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether it must come from the medium.
        fua: bool,
    },
    /// WRITE (10) or (16).
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
    /// REPORT LUNS.
    ReportLuns {
        /// Allocation length in bytes.
        alloc: u32,
    },
    /// A field has a value that is not taken.
    Invalid,
    /// Another operation code.
    Unknown(u8),
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

impl Cdb {
    /// Reads a block. What is not known comes back as [`Cdb::Unknown`], never as an error: the
    /// answer to it is a CHECK CONDITION.
    pub fn parse(cdb: &[u8; 16]) -> Cdb {
        let fua = cdb[1] & 0x08 != 0;
        let short = (u64::from(at32(cdb, 2)), at16(cdb, 7));
        let long = (at64(cdb, 2), at32(cdb, 10));
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
            op::READ_10 | op::READ_16 | op::WRITE_10 | op::WRITE_16 if cdb[1] & 0xe0 != 0 => {
                Cdb::Invalid
            }
            op::READ_10 => Cdb::Read { lba: short.0, blocks: short.1, fua },
            op::READ_16 => Cdb::Read { lba: long.0, blocks: long.1, fua },
            op::WRITE_10 => Cdb::Write { lba: short.0, blocks: short.1, fua },
            op::WRITE_16 => Cdb::Write { lba: long.0, blocks: long.1, fua },
            op::SYNCHRONIZE_CACHE_10 => Cdb::SynchronizeCache { lba: short.0, blocks: short.1 },
            op::SYNCHRONIZE_CACHE_16 => Cdb::SynchronizeCache { lba: long.0, blocks: long.1 },
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == 0x10 => {
                Cdb::ReadCapacity16 { alloc: at32(cdb, 10) }
            }
            op::SERVICE_ACTION_IN_16 => Cdb::Invalid,
            op::REPORT_LUNS => Cdb::ReportLuns { alloc: at32(cdb, 6) },
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
            Cdb::ReportLuns { alloc } => {
                cdb[0] = op::REPORT_LUNS;
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
            Cdb::ReportLuns { alloc: 4096 },
        ] {
            assert_eq!(Cdb::parse(&cdb.build()), cdb);
        }
    }

    #[test]
    fn a_write_16_with_fua_is_these_bytes() {
        let cdb = Cdb::Write { lba: 0x1_0000_0008, blocks: 8, fua: true }.build();
        assert_eq!(cdb, [0x8a, 0x08, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    }
}
