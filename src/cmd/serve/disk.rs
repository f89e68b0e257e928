//! What is served: a file of this machine, or memory.
//!
//! A file is read and written by `pread` and `pwrite`, and made durable by `fsync`, unless the user has
//! said that it need not be. It is locked, so that two servers cannot serve it at once. Memory has a
//! fixed bound; what lies beyond a shortened end is zero when the end moves back.

use std::cell::Cell;
use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use netswap::swap::{Disk, MemDisk};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Bytes of a block of `st_blocks` (stat(2)).
const STAT_BLOCK: u64 = 512;
/// Bytes that are zeroed at a time.
const ZEROS: [u8; 4096] = [0; 4096];

/// What stores the bytes of the served file.
pub(super) enum Served {
    File(FileDisk),
    Memory(Memory),
}

impl Served {
    /// What tells a file from every other one of this machine; `None` of memory.
    pub(super) fn identity(&self) -> io::Result<Option<u64>> {
        match self {
            Served::File(file) => file.identity().map(Some),
            Served::Memory(_) => Ok(None),
        }
    }

    /// Memory without a byte yet; a file as it is.
    pub(super) fn emptied(self) -> Served {
        match self {
            Served::Memory(memory) => Served::Memory(Memory { len: 0, ..memory }),
            file => file,
        }
    }
}

/// A file, or a block device.
pub(super) struct FileDisk {
    file: File,
    len: u64,
    /// It was seen to have no holes; nothing that is done here makes one.
    is_full: Cell<bool>,
    sync: bool,
}

impl FileDisk {
    /// Opens the file, and creates it if there is none. `size` is the length of one that is created, or empty.
    pub(super) fn open(path: &Path, size: Option<u64>, sync: bool) -> io::Result<FileDisk> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("neither a regular file nor a block device"));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process has locked it"),
            TryLockError::Error(error) => error,
        })?;
        let len = file.seek(SeekFrom::End(0))?;
        let mut disk = FileDisk { file, len, is_full: Cell::new(!kind.is_file()), sync };
        match size {
            Some(size) if len == 0 => disk.set_len(size)?,
            Some(size) if len != size => {
                let why = format!("it has {len} bytes already, not {size}");
                return Err(io::Error::other(why));
            }
            _ => {}
        }
        Ok(disk)
    }
}

/// Memory up to a bound, of which some is the file.
pub(super) struct Memory {
    disk: MemDisk,
    len: u64,
}

impl Memory {
    /// A file of `size` zero bytes, which cannot grow.
    pub(super) fn new(size: u64) -> io::Result<Memory> {
        let disk = MemDisk::try_new(size).map_err(io::Error::other)?;
        Ok(Memory { disk, len: size })
    }
}

/// A range has to be wholly inside the `file_len` bytes there are.
fn check_range(file_len: u64, offset: u64, len: usize) -> io::Result<()> {
    let end = offset.checked_add(len as u64);
    if end.is_some_and(|end| end <= file_len) {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Disk for Served {
    fn len(&self) -> u64 {
        match self {
            Served::File(file) => file.len,
            Served::Memory(memory) => memory.len,
        }
    }

    fn used(&self) -> u64 {
        match self {
            Served::File(file) if !file.is_full.get() => {
                let used = file.file.metadata().map_or(0, |meta| meta.blocks() * STAT_BLOCK);
                file.is_full.set(used >= file.len);
                used
            }
            _ => self.len(),
        }
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.len(), offset, buf.len())?;
        match self {
            Served::File(file) => file.file.read_exact_at(buf, offset),
            Served::Memory(memory) => memory.disk.read_at(offset, buf),
        }
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_range(self.len(), offset, buf.len())?;
        match self {
            Served::File(file) => file.file.write_all_at(buf, offset),
            Served::Memory(memory) => memory.disk.write_at(offset, buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Served::File(file) if file.sync => file.file.sync_all(),
            _ => Ok(()),
        }
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len());
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        match self {
            Served::File(file) => file.discard(offset, len),
            Served::Memory(memory) => memory.disk.discard(offset, len),
        }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        match self {
            Served::File(file) => file.set_len(len),
            Served::Memory(memory) => memory.set_len(len),
        }
    }
}

impl FileDisk {
    /// Makes a hole, or writes zeros where the file system has no holes.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, len) {
            Ok(()) => {
                self.is_full.set(false);
                Ok(())
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                let end = offset + len;
                let mut at = offset;
                while at < end {
                    let n = (end - at).min(ZEROS.len() as u64);
                    self.file.write_all_at(&ZEROS[..n as usize], at)?;
                    at += n;
                }
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// What tells this file from every other one of this machine.
    fn identity(&self) -> io::Result<u64> {
        let meta = self.file.metadata()?;
        Ok(meta.dev().rotate_left(48) ^ meta.ino())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        // New bytes are a hole.
        self.is_full.set(self.is_full.get() && len <= self.len);
        self.len = len;
        Ok(())
    }
}

impl Memory {
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len > self.disk.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut at = len;
        while at < self.len {
            let n = (self.len - at).min(ZEROS.len() as u64) as usize;
            self.disk.write_at(at, &ZEROS[..n])?;
            at += n as u64;
        }
        self.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(disk: &mut Served) {
        assert_eq!(disk.len(), 8192);
        disk.write_at(4090, &[7; 10]).unwrap();
        assert!(disk.write_at(8190, &[1; 3]).is_err(), "beyond the end");
        assert!(disk.read_at(u64::MAX, &mut [0]).is_err());
        disk.set_len(4095).unwrap();
        disk.set_len(8192).unwrap();
        let mut bytes = [9; 10];
        disk.read_at(4090, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7, 7, 7, 7, 0, 0, 0, 0, 0], "what was cut off is zero");
        disk.flush().unwrap();
    }

    #[test]
    fn a_file_and_memory_keep_what_is_written_and_nothing_beyond_their_end() {
        check(&mut Served::Memory(Memory::new(8192).unwrap()));
        let path = std::env::temp_dir().join(format!("netswap-served-{}", std::process::id()));
        let mut disk = Served::File(FileDisk::open(&path, Some(8192), true).unwrap());
        assert!(disk.used() < 8192, "a hole");
        check(&mut disk);
        for at in 0..2 {
            disk.write_at(at * 4096, &[1; 4096]).unwrap();
        }
        assert!(disk.used() >= 8192, "no hole");
        let again = |size| FileDisk::open(&path, size, true).err().map(|error| error.to_string());
        assert_eq!(again(None).as_deref(), Some("another process has locked it"));
        drop(disk);
        assert_eq!(again(Some(1)).as_deref(), Some("it has 8192 bytes already, not 1"));
        assert_eq!(again(Some(8192)), None);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_not_served() {
        assert!(FileDisk::open(Path::new("/dev/null"), None, true).is_err());
        assert!(FileDisk::open(Path::new("/"), None, true).is_err());
    }
}
