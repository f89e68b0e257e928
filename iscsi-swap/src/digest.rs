//! Digests of headers and data: CRC32C (RFC 7143 sections 11.2.3 and 13.1), over bytes as they lie.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Bytes of a digest.
pub(crate) const DIGEST_LEN: usize = 4;

/// A digest being made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc(crc_fast::Digest);

impl Crc {
    pub(crate) fn new() -> Crc {
        Crc(crc_fast::Digest::new(Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes all of `slices`; how many bytes that were.
    pub(crate) fn take(&mut self, slices: &[&[u8]]) -> usize {
        slices.iter().for_each(|slice| self.0.update(slice));
        slices.iter().map(|slice| slice.len()).sum()
    }

    /// The digest as it stands on the wire: the polynomial's highest power first in each byte, which
    /// for the reflected CRC is its least significant byte first.
    pub(crate) fn finish(&self) -> [u8; DIGEST_LEN] {
        (self.0.finalize() as u32).to_le_bytes()
    }
}

/// The digest of one piece.
pub(crate) fn of(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    (crc_fast::checksum(Crc32Iscsi, bytes) as u32).to_le_bytes()
}

/// Which parts of a PDU have a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        for (bytes, want) in [
            (&[0; 32][..], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&up, [0x4e, 0x79, 0xdd, 0x46]),
            (&down, [0x5c, 0xdb, 0x3f, 0x11]),
        ] {
            assert_eq!(of(bytes), want);
            let mut crc = Crc::new();
            bytes.chunks(5).for_each(|piece| crc.update(piece));
            assert_eq!(crc.finish(), want);
        }
    }
}
