//! What the embedded servers store their bytes on: a flat disk.

use std::io;

use netswap_reserve::{BackingConfig, BackingError, ZeroedBytes};

/// Bytes that are zeroed at a time.
static ZEROS: [u8; 16384] = [0; 16384];

/// A flat range of bytes that keeps what is written to it.
pub trait Disk {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it takes of what stores it: fewer than its length if there are holes that were never written.
    fn used(&self) -> u64 {
        self.len()
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the range is not wholly on the disk, or the device's error.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Stores `buf` at `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the range is not wholly on the disk, or the device's error.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The device's error.
    fn flush(&mut self) -> io::Result<()>;

    /// Makes `len` bytes from `offset` read as zero. A disk that can, gives back what they took.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while at < end {
            let n = (end - at).min(ZEROS.len() as u64) as usize;
            self.write_at(at, &ZEROS[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Makes the disk `len` bytes long; new bytes are zero.
    ///
    /// # Errors
    /// If it cannot have that length.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// A disk in memory, for simulations: it survives a server's restart, not the process's.
#[derive(Debug)]
pub struct MemDisk {
    bytes: ZeroedBytes,
}

impl MemDisk {
    /// A disk of `len` zero bytes. They cost memory only once written.
    ///
    /// # Panics
    /// When so much cannot be mapped; [`MemDisk::try_new`] says it.
    pub fn new(len: u64) -> MemDisk {
        MemDisk::try_new(len).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A disk of `len` zero bytes. They cost memory only once written.
    ///
    /// # Errors
    /// When so much cannot be mapped.
    pub fn try_new(len: u64) -> Result<MemDisk, BackingError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(MemDisk { bytes: ZeroedBytes::new(len)? })
    }

    /// As [`MemDisk::try_new`], its memory committed now: nothing is left to do when it is written.
    ///
    /// # Errors
    /// When so much cannot be had.
    pub fn prefaulted(len: u64) -> Result<MemDisk, BackingError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let config = BackingConfig { prefault: true, ..BackingConfig::default() };
        Ok(MemDisk { bytes: ZeroedBytes::with_config(len, &config)? })
    }

    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|s| s.checked_add(len)).filter(|end| *end <= self.bytes.len());
        match (start, end) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Disk for MemDisk {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, buf.len())?;
        buf.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let range = self.range(offset, buf.len())?;
        self.bytes[range].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut disk = MemDisk::try_new(len).map_err(io::Error::other)?;
        let kept = disk.bytes.len().min(self.bytes.len());
        disk.bytes[..kept].copy_from_slice(&self.bytes[..kept]);
        *self = disk;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_not_wholly_on_the_disk_is_an_error_and_changes_nothing() {
        let mut disk = MemDisk::new(100);
        assert!(disk.write_at(90, &[1; 11]).is_err());
        assert!(disk.write_at(u64::MAX, &[1]).is_err());
        let mut buf = [9; 100];
        disk.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [0; 100]);
    }
}
