//! READDIR and READDIRPLUS (RFC 1813 sections 3.3.16, 3.3.17): arguments, results, and a reader of the
//! list of entries that takes it from a page vector.
//!
//! The list arrives in pages, and its records have any length, so some lie across the end of a page.
//! [`DirReader`] decodes a record in its page if it ends there, and otherwise copies it to a scratch
//! buffer first, as it does with what lies in high pages. No second, contiguous mapping of the pages is
//! made, so there is nothing that could differ from them (the trouble of `vm_map_ram` on caches that are
//! indexed virtually).
//!
//! # Invariants
//! - A record is at most [`RECORD_BYTES_MAX`] long: every length in it is bounded before it is used.
//! - A name has 1 to 255 bytes, and neither `/` nor NUL among them: it is one step of a path.
//! - The reader gives the same entries and the same error as decoding a contiguous copy would.

use netswap_reserve::windows::{MapError, MapPage, Mapper};

use crate::pages::{Piece, copy_out, piece};
use crate::proto::{
    self, FATTR_BYTES, FH_BYTES_MAX, Fattr3, FileHandle, NAME_BYTES_MAX, Outcome, decode_post_op,
    encode_post_op, procs,
};
use crate::xdr::{Decoder, Encoder, Full, XdrError, padding};

/// Longest record of a list: entry_follows 4, fileid 8, name 4 + 256, cookie 8, attributes 4 + 84, handle
/// 4 + 4 + 64.
pub const RECORD_BYTES_MAX: usize =
    4 + 8 + 4 + NAME_BYTES_MAX + padding(NAME_BYTES_MAX) + 8 + 4 + FATTR_BYTES + 8 + FH_BYTES_MAX;

/// Which of the two procedures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirProc {
    /// Names and file numbers.
    ReadDir,
    /// Attributes and handles too.
    ReadDirPlus,
}

impl DirProc {
    /// The number of the procedure.
    pub fn number(self) -> u32 {
        match self {
            DirProc::ReadDir => procs::READDIR,
            DirProc::ReadDirPlus => procs::READDIRPLUS,
        }
    }
}

/// Why a list of entries is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirError {
    /// It is malformed.
    #[error(transparent)]
    Xdr(#[from] XdrError),
    /// An entry's name is empty, or holds `/` or NUL.
    #[error("a name that is no name")]
    BadName,
    /// The list lies in a high page, and there is no window for it now. Nothing is wrong with it.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl DirError {
    /// The error in fixed words.
    pub fn what(self) -> &'static str {
        match self {
            DirError::Xdr(error) => error.what(),
            DirError::BadName => "a name that is empty or holds a slash or NUL",
            DirError::Map(_) => "a page that cannot be mapped",
        }
    }
}

/// `READDIR3args` and `READDIRPLUS3args`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirArgs {
    /// The directory.
    pub dir: FileHandle,
    /// The cookie of the last entry that is known, or 0.
    pub cookie: u64,
    /// The verifier it came with, or zeros.
    pub cookieverf: [u8; 8],
    /// Most bytes of names, cookies and file numbers. READDIRPLUS only; READDIR reads it as `max_count`.
    pub dir_count: u32,
    /// Most bytes of the whole `resok`.
    pub max_count: u32,
}

impl DirArgs {
    /// Writes the arguments.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn encode(&self, out: &mut Encoder<'_>, procedure: DirProc) -> Result<(), Full> {
        self.dir.encode(out)?;
        out.u64(self.cookie)?;
        out.raw(&self.cookieverf)?;
        if procedure == DirProc::ReadDirPlus {
            out.u32(self.dir_count)?;
        }
        out.u32(self.max_count)
    }

    /// Reads the arguments.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn decode(dec: &mut Decoder<'_>, procedure: DirProc) -> Result<DirArgs, XdrError> {
        let dir = FileHandle::decode(dec)?;
        let cookie = dec.u64()?;
        let cookieverf = dec.verifier()?;
        let first = dec.u32()?;
        let max_count = if procedure == DirProc::ReadDirPlus { dec.u32()? } else { first };
        Ok(DirArgs { dir, cookie, cookieverf, dir_count: first, max_count })
    }
}

/// What stands before the list in a reply: the same for both procedures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirHead {
    /// Attributes of the directory.
    pub attrs: Option<Fattr3>,
    /// To be given with each cookie of this reply.
    pub cookieverf: [u8; 8],
}

impl DirHead {
    /// Writes everything before the list.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        encode_post_op(out, self.attrs.as_ref())?;
        out.raw(&self.cookieverf)
    }

    /// Reads everything before the list, which follows.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Outcome<DirHead>, XdrError> {
        let status = proto::decode_status(dec)?;
        let attrs = decode_post_op(dec)?;
        if let Err(status) = status {
            return Ok(Err(status));
        }
        Ok(Ok(DirHead { attrs, cookieverf: dec.verifier()? }))
    }
}

/// `entry3` or `entryplus3`: a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Number of the file in its file system.
    pub fileid: u64,
    /// Its name. Any bytes but `/` and NUL.
    pub name: &'a [u8],
    /// From where to go on behind this entry.
    pub cookie: u64,
    /// Its attributes. READDIRPLUS only, and only if the server cares to tell.
    pub attrs: Option<Fattr3>,
    /// Its handle. As above.
    pub handle: Option<FileHandle>,
}

/// One record of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirRecord<'a> {
    /// An entry.
    Entry(DirEntry<'a>),
    /// The end of this list; `eof`: and of the directory.
    End {
        /// No entry is left.
        eof: bool,
    },
}

impl<'a> DirRecord<'a> {
    /// Writes the record.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>, procedure: DirProc) -> Result<(), Full> {
        match self {
            DirRecord::End { eof } => {
                out.bool(false)?;
                out.bool(*eof)
            }
            DirRecord::Entry(entry) => {
                out.bool(true)?;
                out.u64(entry.fileid)?;
                out.opaque(entry.name)?;
                out.u64(entry.cookie)?;
                if procedure == DirProc::ReadDirPlus {
                    encode_post_op(out, entry.attrs.as_ref())?;
                    out.bool(entry.handle.is_some())?;
                    entry.handle.map_or(Ok(()), |handle| handle.encode(out))?;
                }
                Ok(())
            }
        }
    }

    /// Reads a record from contiguous bytes.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'a>, procedure: DirProc) -> Result<DirRecord<'a>, DirError> {
        if !dec.bool()? {
            return Ok(DirRecord::End { eof: dec.bool()? });
        }
        let fileid = dec.u64()?;
        let name = dec.opaque(NAME_BYTES_MAX as u32)?;
        let cookie = dec.u64()?;
        let (mut attrs, mut handle) = (None, None);
        if procedure == DirProc::ReadDirPlus {
            attrs = decode_post_op(dec)?;
            handle = if dec.bool()? { Some(FileHandle::decode(dec)?) } else { None };
        }
        if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(DirError::BadName);
        }
        Ok(DirRecord::Entry(DirEntry { fileid, name, cookie, attrs, handle }))
    }
}

/// Reads the records of a list from a page vector, one by one.
///
/// ```
/// use netswap_nfs::dir::{DirEntry, DirProc, DirReader, DirRecord};
/// use netswap_nfs::xdr::Encoder;
/// use netswap_reserve::windows::Direct;
/// use netswap_reserve::{Gfp, PagePool, PoolConfig};
///
/// let pool = PagePool::new(PoolConfig::new(128));
/// let mut page = pool.alloc(Gfp::KERNEL).unwrap();
/// let entry = DirEntry { fileid: 2, name: b"area0", cookie: 7, attrs: None, handle: None };
/// let mut out = Encoder::new(page.bytes_mut());
/// DirRecord::Entry(entry).encode(&mut out, DirProc::ReadDir).unwrap();
/// DirRecord::End { eof: true }.encode(&mut out, DirProc::ReadDir).unwrap();
/// let len = out.len();
///
/// let pages = [page];
/// let mut list = DirReader::new(0, len, DirProc::ReadDir);
/// assert_eq!(list.next(&pages, &mut Direct), Ok(DirRecord::Entry(entry)));
/// assert_eq!(list.next(&pages, &mut Direct), Ok(DirRecord::End { eof: true }));
/// ```
#[derive(Debug)]
pub struct DirReader {
    base: usize,
    /// Bytes of the list, and those that were read.
    len: usize,
    at: usize,
    procedure: DirProc,
    scratch: [u8; RECORD_BYTES_MAX],
}

impl DirReader {
    /// Reads the list of `len` bytes that begins at byte `base` of a page vector.
    pub fn new(base: usize, len: usize, procedure: DirProc) -> DirReader {
        DirReader { base, len, at: 0, procedure, scratch: [0; RECORD_BYTES_MAX] }
    }

    /// Bytes of the list that were read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Starts again at the first record.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// The next record. The [`DirRecord::End`] is the last one; nothing may follow it. Shown in place if
    /// it lies in one low page, else from the scratch buffer; no window is held afterwards.
    ///
    /// # Errors
    /// When the record is malformed, or bytes follow the end, or there is no window for its page.
    /// Stays where it was then.
    ///
    /// # Panics
    /// If `pages` end before the list does, or one is not of those that `mapper` can show.
    pub fn next<'s, P: MapPage>(
        &'s mut self,
        pages: &'s [P],
        mapper: &mut impl Mapper,
    ) -> Result<DirRecord<'s>, DirError> {
        let left = self.len - self.at;
        if let Piece::Low(here) = piece(pages, self.base + self.at, left) {
            let mut dec = Decoder::new(here);
            match DirRecord::decode(&mut dec, self.procedure) {
                // It goes on in the next page.
                Err(DirError::Xdr(XdrError::Truncated { .. })) if here.len() < left => {}
                record => return finish(record, dec.position(), &mut self.at, self.len),
            }
        }
        let n = left.min(RECORD_BYTES_MAX);
        copy_out(pages, self.base + self.at, &mut self.scratch[..n], mapper)?;
        let mut dec = Decoder::new(&self.scratch[..n]);
        let record = DirRecord::decode(&mut dec, self.procedure);
        finish(record, dec.position(), &mut self.at, self.len)
    }
}

/// Moves on behind a record of `read` bytes; positions in errors count from the start of the list.
fn finish<'s>(
    record: Result<DirRecord<'s>, DirError>,
    read: usize,
    at: &mut usize,
    len: usize,
) -> Result<DirRecord<'s>, DirError> {
    match record {
        Err(DirError::Xdr(XdrError::Truncated { need, .. })) => {
            Err(XdrError::Truncated { need: *at + need, have: len }.into())
        }
        Ok(DirRecord::End { .. }) if *at + read < len => {
            Err(XdrError::Trailing { left: len - *at - read }.into())
        }
        Ok(record) => {
            *at += read;
            Ok(record)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_record_is_as_long_as_it_may_be() {
        let attrs = Fattr3 {
            ftype: 1,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            rdev: 0,
            fsid: 0,
            fileid: 0,
            atime: (0, 0),
            mtime: (0, 0),
            ctime: (0, 0),
        };
        let entry = DirEntry {
            fileid: 1,
            name: &[b'n'; NAME_BYTES_MAX],
            cookie: 1,
            attrs: Some(attrs),
            handle: FileHandle::new(&[7; FH_BYTES_MAX]),
        };
        let mut buf = [0; RECORD_BYTES_MAX];
        let mut out = Encoder::new(&mut buf);
        DirRecord::Entry(entry).encode(&mut out, DirProc::ReadDirPlus).unwrap();
        assert_eq!(out.len(), RECORD_BYTES_MAX);
        let mut dec = Decoder::new(&buf);
        let back = DirRecord::decode(&mut dec, DirProc::ReadDirPlus);
        assert_eq!(back, Ok(DirRecord::Entry(entry)));
    }

    #[test]
    fn a_list_is_the_bytes_of_rfc_1813() {
        let words: [&[u8]; 8] = [
            &1u32.to_be_bytes(),
            &0x0102_0304_0506_0708u64.to_be_bytes(),
            b"\0\0\0\x05area0\0\0\0",
            &9u64.to_be_bytes(),
            // READDIRPLUS: no attributes; a handle of three bytes.
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9, 0],
            &1u32.to_be_bytes(),
            &[0; 8],
            b"\0\0\0\x01/\0\0\0",
        ];
        let bytes = words.concat();
        let mut dec = Decoder::new(&bytes);
        let entry = DirEntry {
            fileid: 0x0102_0304_0506_0708,
            name: b"area0",
            cookie: 9,
            attrs: None,
            handle: FileHandle::new(&[7, 8, 9]),
        };
        let plus = DirProc::ReadDirPlus;
        assert_eq!(DirRecord::decode(&mut dec, plus), Ok(DirRecord::Entry(entry)));
        let cut = DirRecord::decode(&mut dec, plus);
        assert!(matches!(cut, Err(DirError::Xdr(XdrError::Truncated { .. }))));
        let whole = [&bytes[bytes.len() - 20..], &[0; 16]].concat();
        assert_eq!(DirRecord::decode(&mut Decoder::new(&whole), plus), Err(DirError::BadName));
        let end = [0, 0, 0, 0, 0, 0, 0, 2];
        let error = DirRecord::decode(&mut Decoder::new(&end), plus);
        assert_eq!(error, Err(XdrError::BadBool { value: 2 }.into()));
    }

    #[test]
    fn arguments_are_the_bytes_of_rfc_1813() {
        let dir = FileHandle::new(b"root").unwrap();
        let args = DirArgs { dir, cookie: 5, cookieverf: [9; 8], dir_count: 512, max_count: 4096 };
        for (procedure, counts) in [
            (DirProc::ReadDir, &[0, 0, 16, 0][..]),
            (DirProc::ReadDirPlus, &[0, 0, 2, 0, 0, 0, 16, 0]),
        ] {
            let mut buf = [0; 64];
            let mut out = Encoder::new(&mut buf);
            args.encode(&mut out, procedure).unwrap();
            let len = out.len();
            let expected = [b"\0\0\0\x04root", &5u64.to_be_bytes()[..], &[9; 8], counts].concat();
            assert_eq!(buf[..len], expected);
            let back = DirArgs::decode(&mut Decoder::new(&buf[..len]), procedure).unwrap();
            assert_eq!((back.dir, back.cookie, back.cookieverf), (dir, 5, [9; 8]));
            assert_eq!(back.max_count, 4096);
        }
    }
}
