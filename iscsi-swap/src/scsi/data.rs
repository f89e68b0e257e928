//! Parameter data of the commands: capacity, INQUIRY and its pages, mode pages, LUN list.

use crate::pdu::lun_bytes;

/// Bytes of READ CAPACITY (16) data that are looked at.
pub const CAPACITY_LEN: usize = 32;

/// Bytes of standard INQUIRY data.
pub const INQUIRY_LEN: usize = 96;

/// What a logical unit tells about itself.
#[derive(Clone, Debug)]
pub struct UnitInfo {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether blocks can be deallocated, and then read as zero.
    pub thin: bool,
    /// Most blocks of one command.
    pub transfer_max: u32,
    /// Most blocks of an UNMAP or a WRITE SAME.
    pub unmap_max: u32,
    /// Most blocks of a COMPARE AND WRITE.
    pub compare_max: u8,
    /// Serial number, printable ASCII.
    pub serial: [u8; 16],
}

impl UnitInfo {
    /// A locally assigned name of 60 bits behind the 3 that says so (SPC-4 section 7.8.6.6.4): FNV-1a of
    /// the serial number.
    fn naa(&self) -> u64 {
        let hash = self.serial.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (3 << 60) | (hash >> 4)
    }

    /// The data of READ CAPACITY (16).
    pub fn capacity_16(&self) -> [u8; CAPACITY_LEN] {
        let mut out = self.capacity().build();
        // Blocks of the unit in 4096 bytes, as a power of two: what is smaller is read, changed and written.
        out[13] = (4096 / self.block_size.clamp(1, 4096)).ilog2() as u8;
        // LBPME and LBPRZ.
        out[14] = if self.thin { 0xc0 } else { 0 };
        out
    }

    /// Blocks, and their size.
    pub fn capacity(&self) -> Capacity {
        Capacity { blocks: self.blocks, block_size: self.block_size }
    }
}

/// What READ CAPACITY (16) tells (SBC-3 section 5.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of the unit.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
}

impl Capacity {
    /// Reads the data; `None` if it is too short or says that there are 2^64 blocks.
    pub fn parse(bytes: &[u8]) -> Option<Capacity> {
        let last = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let block_size = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
        Some(Capacity { blocks: last.checked_add(1)?, block_size })
    }

    /// The data.
    pub fn build(&self) -> [u8; CAPACITY_LEN] {
        let mut out = [0; CAPACITY_LEN];
        out[..8].copy_from_slice(&self.blocks.saturating_sub(1).to_be_bytes());
        out[8..12].copy_from_slice(&self.block_size.to_be_bytes());
        out
    }

    /// The data of READ CAPACITY (10), which tells units of 2^32 blocks and more to ask for (16).
    pub fn build_10(&self) -> [u8; 8] {
        let last = u32::try_from(self.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut out = [0; 8];
        out[..4].copy_from_slice(&last.to_be_bytes());
        out[4..].copy_from_slice(&self.block_size.to_be_bytes());
        out
    }
}

/// Whether standard INQUIRY data is that of a connected direct-access block device (SPC-4 6.4.2).
pub fn is_disk(inquiry: &[u8]) -> bool {
    inquiry.first() == Some(&0)
}

/// Bytes being laid out in a buffer; what does not fit is only counted, as an allocation length cuts.
struct Layout<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Layout<'_> {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.buf.get_mut(self.len) {
                *place = *byte;
            }
            self.len += 1;
        }
    }

    fn zeros(&mut self, n: usize) {
        for _ in 0..n {
            self.put(&[0]);
        }
    }
}

const VENDOR: &[u8; 8] = b"NETSWAP ";
const PRODUCT: &[u8; 16] = b"SWAP DISK       ";
const PAGES: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];

/// Descriptors that an UNMAP may have.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Standard INQUIRY data into `buf`; `present` is whether the LUN exists. Returns its length.
pub fn inquiry(buf: &mut [u8], present: bool) -> usize {
    let mut out = Layout { buf, len: 0 };
    let device = if present { 0x00 } else { 0x7f };
    // SPC-4 data, response data format 2 with hierarchical LUNs, command queuing.
    out.put(&[device, 0, 6, 0x12, INQUIRY_LEN as u8 - 5, 0, 0, 2]);
    out.put(VENDOR);
    out.put(PRODUCT);
    out.put(b"0001");
    out.zeros(22);
    // Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3.
    out.put(&[0x00, 0xa0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xc0]);
    out.zeros(INQUIRY_LEN - 66);
    out.len
}

/// A vital product data page into `buf`; `None` if there is no such page. Returns its length.
pub fn vpd(buf: &mut [u8], page: u8, unit: &UnitInfo) -> Option<usize> {
    let mut out = Layout { buf, len: 0 };
    let head = |out: &mut Layout<'_>, len: u16| {
        let len = len.to_be_bytes();
        out.put(&[0, page, len[0], len[1]]);
    };
    match page {
        0x00 => {
            head(&mut out, PAGES.len() as u16);
            out.put(&PAGES);
        }
        0x80 => {
            head(&mut out, 16);
            out.put(&unit.serial);
        }
        0x83 => {
            // T10 vendor identification, ASCII, and NAA, locally assigned: both of the logical unit.
            head(&mut out, 4 + 24 + 4 + 8);
            out.put(&[0x02, 0x01, 0x00, 24]);
            out.put(VENDOR);
            out.put(&unit.serial);
            out.put(&[0x01, 0x03, 0x00, 8]);
            out.put(&unit.naa().to_be_bytes());
        }
        0xb0 => {
            head(&mut out, 0x3c);
            // WSNZ: a WRITE SAME says how many blocks it means.
            out.put(&[1, unit.compare_max]);
            out.put(&(4096 / unit.block_size.clamp(1, 4096)).to_be_bytes()[2..]);
            out.put(&unit.transfer_max.to_be_bytes());
            out.put(&unit.transfer_max.to_be_bytes());
            out.zeros(4);
            let (blocks, descriptors) =
                if unit.thin { (unit.unmap_max, UNMAP_DESCRIPTORS_MAX) } else { (0, 0) };
            out.put(&blocks.to_be_bytes());
            out.put(&descriptors.to_be_bytes());
            // What is deallocated need not begin or end anywhere.
            out.zeros(8);
            out.put(&u64::from(unit.unmap_max).to_be_bytes());
            out.zeros(0x3c - 40);
        }
        0xb1 => {
            head(&mut out, 0x3c);
            // Not a rotating medium.
            out.put(&[0, 1]);
            out.zeros(0x3c - 2);
        }
        0xb2 => {
            head(&mut out, 4);
            // Thin: LBPU, LBPWS, LBPWS10, LBPRZ, provisioning type 2. Else fully provisioned.
            out.put(&if unit.thin { [0, 0xe4, 2, 0] } else { [0; 4] });
        }
        _ => return None,
    }
    Some(out.len)
}

/// Mode parameters into `buf`: the caching page (08h), the control page (0Ah), or both as all pages
/// (3Fh); `None` if another page is asked for. Returns their length.
pub fn mode_sense(
    buf: &mut [u8],
    ten: bool,
    control: u8,
    page: u8,
    subpage: u8,
    unit: &UnitInfo,
) -> Option<usize> {
    let (caching, general) = match (page, subpage) {
        (0x08, 0) => (true, false),
        (0x0a, 0) => (false, true),
        (0x3f, 0 | 0xff) => (true, true),
        _ => return None,
    };
    // Saved values do not exist.
    if control == 3 {
        return None;
    }
    let pages = u8::from(caching) * 20 + u8::from(general) * 12;
    let mut out = Layout { buf, len: 0 };
    // Write protect, and DPOFUA: reads and writes take FUA.
    let device = (u8::from(unit.read_only) << 7) | 0x10;
    if ten {
        out.put(&[0, 6 + pages, 0, device, 0, 0, 0, 0]);
    } else {
        out.put(&[3 + pages, 0, device, 0]);
    }
    // Of the changeable values (control 1) there are none.
    let current = control != 1;
    if caching {
        // A write cache is on: what is written without FUA is safe after SYNCHRONIZE CACHE.
        out.put(&[0x08, 18, u8::from(current) << 2]);
        out.zeros(17);
    }
    if general {
        // Unrestricted reordering: simple tasks are carried out in any order.
        out.put(&[0x0a, 10, 0, u8::from(current) << 4]);
        out.zeros(8);
    }
    Some(out.len)
}

/// The LUN list into `buf`. Returns its length.
pub fn report_luns(buf: &mut [u8], luns: impl Iterator<Item = u16> + Clone) -> usize {
    let mut out = Layout { buf, len: 0 };
    out.put(&(luns.clone().count() as u32 * 8).to_be_bytes());
    out.zeros(4);
    for lun in luns {
        out.put(&lun_bytes(lun));
    }
    out.len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> UnitInfo {
        UnitInfo {
            block_size: 512,
            blocks: 1 << 33,
            read_only: false,
            thin: true,
            transfer_max: 128,
            unmap_max: 4096,
            compare_max: 64,
            serial: *b"0000000000000001",
        }
    }

    #[test]
    fn capacity_comes_back_and_the_short_form_points_to_the_long_one() {
        let capacity = Capacity { blocks: 1 << 33, block_size: 512 };
        assert_eq!(Capacity::parse(&capacity.build()), Some(capacity));
        assert_eq!(capacity.build_10()[..4], [0xff; 4]);
        assert_eq!(Capacity::parse(&[0; 11]), None);
        assert_eq!(Capacity::parse(&[0xff; 32]), None);
    }

    #[test]
    fn pages_are_as_long_as_they_say() {
        let mut buf = [0; 256];
        for page in PAGES {
            let len = vpd(&mut buf, page, &unit()).unwrap();
            assert_eq!(usize::from(u16::from_be_bytes([buf[2], buf[3]])), len - 4);
            assert_eq!(buf[1], page);
        }
        assert_eq!(vpd(&mut buf, 0xb3, &unit()), None);
        assert_eq!(inquiry(&mut buf, true), INQUIRY_LEN);
        assert!(is_disk(&buf));
        assert_eq!(mode_sense(&mut buf, false, 0, 8, 0, &unit()).unwrap(), 24);
        assert_eq!(buf[0], 23);
        assert_eq!(mode_sense(&mut buf, true, 0, 0x3f, 0, &unit()).unwrap(), 40);
        assert_eq!((buf[1], buf[8], buf[28]), (38, 0x08, 0x0a));
        assert_eq!(mode_sense(&mut buf, true, 0, 1, 0, &unit()), None);
    }

    #[test]
    fn a_short_buffer_cuts_and_the_length_stays_whole() {
        let mut buf = [0xee; 4];
        assert_eq!(inquiry(&mut buf, false), INQUIRY_LEN);
        assert_eq!(buf, [0x7f, 0, 6, 0x12]);
        assert_eq!(report_luns(&mut buf, [0, 1].into_iter()), 24);
    }
}
