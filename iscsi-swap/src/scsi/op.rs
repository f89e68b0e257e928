//! Operation codes (SPC-4 table 149, SBC-3 table 15).

pub(super) const TEST_UNIT_READY: u8 = 0x00;
pub(super) const REQUEST_SENSE: u8 = 0x03;
pub(super) const READ_6: u8 = 0x08;
pub(super) const WRITE_6: u8 = 0x0a;
pub(super) const INQUIRY: u8 = 0x12;
pub(super) const MODE_SENSE_6: u8 = 0x1a;
pub(super) const START_STOP_UNIT: u8 = 0x1b;
pub(super) const PREVENT_ALLOW: u8 = 0x1e;
pub(super) const READ_CAPACITY_10: u8 = 0x25;
pub(super) const READ_10: u8 = 0x28;
pub(super) const WRITE_10: u8 = 0x2a;
pub(super) const WRITE_VERIFY_10: u8 = 0x2e;
pub(super) const VERIFY_10: u8 = 0x2f;
pub(super) const PREFETCH_10: u8 = 0x34;
pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub(super) const WRITE_SAME_10: u8 = 0x41;
pub(super) const UNMAP: u8 = 0x42;
pub(super) const MODE_SENSE_10: u8 = 0x5a;
pub(super) const READ_16: u8 = 0x88;
pub(super) const COMPARE_AND_WRITE: u8 = 0x89;
pub(super) const WRITE_16: u8 = 0x8a;
pub(super) const ORWRITE: u8 = 0x8b;
pub(super) const WRITE_VERIFY_16: u8 = 0x8e;
pub(super) const VERIFY_16: u8 = 0x8f;
pub(super) const PREFETCH_16: u8 = 0x90;
pub(super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
pub(super) const WRITE_SAME_16: u8 = 0x93;
pub(super) const SERVICE_ACTION_IN_16: u8 = 0x9e;
pub(super) const REPORT_LUNS: u8 = 0xa0;
pub(super) const READ_12: u8 = 0xa8;
pub(super) const WRITE_12: u8 = 0xaa;
pub(super) const WRITE_VERIFY_12: u8 = 0xae;
pub(super) const VERIFY_12: u8 = 0xaf;

/// Whether the upper three bits of byte 1 are RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT. The
/// 6-byte forms have a part of the address there.
pub(super) fn is_protected(code: u8) -> bool {
    matches!(
        code,
        READ_10
            | READ_12
            | READ_16
            | WRITE_10
            | WRITE_12
            | WRITE_16
            | VERIFY_10
            | VERIFY_12
            | VERIFY_16
            | WRITE_VERIFY_10
            | WRITE_VERIFY_12
            | WRITE_VERIFY_16
            | WRITE_SAME_10
            | WRITE_SAME_16
            | COMPARE_AND_WRITE
            | ORWRITE
    )
}
