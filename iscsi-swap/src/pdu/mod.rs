//! The basic header segment: 48 bytes in front of every PDU (RFC 7143 section 11.2).
//!
//! Each PDU is a plain struct with `parse` and `build`. Parsing reads fixed offsets of a fixed-size
//! array, so it cannot run out of bounds; what can be wrong is a value, and each has its error.
//! Reserved bits are sent as zero and not looked at (RFC 7143 section 11.1).
//! Lengths that a header states are only reported here; who receives the PDU bounds them.

mod request;
mod response;
mod text;

pub use request::{
    DataOut, LoginRequest, LogoutRequest, NopOut, RequestPdu, ScsiCommand, TaskManagementRequest,
};
pub use response::{
    AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, R2t, Reject, ResponsePdu,
    ScsiResponse, Sns, TaskManagementResponse,
};
pub use text::{TextRequest, TextResponse};

/// Bytes of a basic header segment.
pub const BHS_LEN: usize = 48;

/// A basic header segment.
pub type Bhs = [u8; BHS_LEN];

/// The tag that names no task (RFC 7143 section 11.2.1.8).
pub const TAG_NONE: u32 = 0xffff_ffff;

/// Opcodes (RFC 7143 section 11.2.1.2).
pub mod opcode {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TASK_MANAGEMENT_REQUEST: u8 = 0x02;
    /// Login Request.
    pub const LOGIN_REQUEST: u8 = 0x03;
    /// Text Request.
    pub const TEXT_REQUEST: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT_REQUEST: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Login Response.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
}

/// Reasons of a Reject (RFC 7143 section 11.17.1).
pub mod reject {
    /// A data digest is wrong; the PDU was thrown away.
    pub const DATA_DIGEST: u8 = 0x02;
    /// A PDU that breaks the protocol.
    pub const PROTOCOL_ERROR: u8 = 0x04;
    /// The command is not supported.
    pub const NOT_SUPPORTED: u8 = 0x05;
    /// Too many immediate commands.
    pub const TOO_MANY_IMMEDIATE: u8 = 0x06;
}

/// What a header says that it may not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// An opcode that the other side does not send.
    #[error("unknown opcode {0:#x}")]
    Opcode(u8),
    /// Flags that exclude each other, or lack one that is due.
    #[error("flags {flags:#x} are not allowed in opcode {opcode:#x}")]
    Flags {
        /// The PDU's opcode.
        opcode: u8,
        /// Its second byte.
        flags: u8,
    },
    /// A field whose value is not allowed.
    #[error("{field} must not be {value:#x}")]
    Field {
        /// The field's name in the RFC.
        field: &'static str,
        /// Its value.
        value: u32,
    },
}

/// Bytes that bring `len` to a multiple of four (RFC 7143 section 11.2.3).
pub const fn padding(len: usize) -> usize {
    (4 - len % 4) % 4
}

/// The opcode, without the immediate bit.
pub fn opcode_of(bhs: &Bhs) -> u8 {
    bhs[0] & 0x3f
}

/// Bytes of additional header segments that follow the header.
pub fn ahs_len(bhs: &Bhs) -> usize {
    usize::from(bhs[4]) * 4
}

/// DataSegmentLength: bytes of data that follow, without padding. At most 2^24 - 1.
pub fn data_len(bhs: &Bhs) -> usize {
    (usize::from(bhs[5]) << 16) | (usize::from(bhs[6]) << 8) | usize::from(bhs[7])
}

/// The initiator task tag.
pub fn itt_of(bhs: &Bhs) -> u32 {
    get32(bhs, 16)
}

pub(crate) fn set_data_len(bhs: &mut Bhs, len: u32) {
    debug_assert!(len < 1 << 24);
    bhs[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
}

pub(crate) fn get16(bhs: &Bhs, at: usize) -> u16 {
    u16::from_be_bytes([bhs[at], bhs[at + 1]])
}

pub(crate) fn get32(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn get_array<const N: usize>(bhs: &Bhs, at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bhs[at..at + N]);
    out
}

pub(crate) fn put16(bhs: &mut Bhs, at: usize, value: u16) {
    bhs[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put32(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put(bhs: &mut Bhs, at: usize, bytes: &[u8]) {
    bhs[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A LUN as the eight bytes of a PDU: peripheral device addressing below 256, flat space addressing
/// above (SAM-5 section 4.7).
///
/// # Panics
/// If `lun` is above 16383.
pub fn lun_bytes(lun: u16) -> [u8; 8] {
    assert!(lun < 1 << 14, "a LUN has 14 bits");
    let mut out = [0; 8];
    let flat = if lun < 256 { lun } else { lun | 0x4000 };
    out[..2].copy_from_slice(&flat.to_be_bytes());
    out
}

/// The LUN in the eight bytes of a PDU, if it is a single-level one on bus 0.
pub fn lun_of(bytes: &[u8; 8]) -> Option<u16> {
    let first = u16::from_be_bytes([bytes[0], bytes[1]]);
    let single = bytes[2..].iter().all(|b| *b == 0);
    match first >> 14 {
        0 if first < 256 && single => Some(first),
        1 if single => Some(first & 0x3fff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_fills_up_to_four() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }

    #[test]
    fn luns_come_back_and_foreign_forms_are_none() {
        for lun in [0, 1, 255, 256, 16383] {
            assert_eq!(lun_of(&lun_bytes(lun)), Some(lun));
        }
        assert_eq!(lun_of(&[0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_of(&[0, 1, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(lun_of(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
