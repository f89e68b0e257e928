//! READDIR and READDIRPLUS over the one directory there is: `.`, `..`, then the files.
//!
//! A cookie is the number of entries up to and with its own. Files are only ever added at the end, so
//! cookies stay good; [`NfsServer::renew_cookies`] makes them bad on demand, which the cookie verifier
//! shows (RFC 1813 section 3.3.16).

use std::ops::Range;

use netswap_swap::Disk;

use super::exec::Object;
use super::{HANDLE_MAGIC, Name, NfsServer};
use crate::dir::{DirArgs, DirEntry, DirHead, DirProc, DirRecord};
use crate::proto::{FATTR_BYTES, Nfsstat3};
use crate::rpc::{LAST_FRAGMENT, MARK_BYTES};
use crate::xdr::{Encoder, padding};

/// Bytes of a reply before the `resok` that `max_count` counts: record mark, header, status.
const BEFORE_COUNT: usize = MARK_BYTES + 24 + 4;
/// Bytes that end a list: no entry follows, eof.
const END_BYTES: usize = 8;
/// What READDIRPLUS has more of an entry: attributes, and a handle of ours.
const PLUS_BYTES: usize = 4 + FATTR_BYTES + 4 + 4 + HANDLE_MAGIC.len() + 8;

impl<D: Disk> NfsServer<D> {
    /// The first entry at place `i` or behind it, with its place: a file that was removed has left a gap.
    fn entry(&self, i: usize) -> Option<(usize, Name, Object)> {
        let named = |name: &[u8]| name.iter().copied().collect();
        Some(match i {
            0 => (0, named(b"."), Object::Root),
            1 => (1, named(b".."), Object::Root),
            i => {
                let mut files = self.files.iter().enumerate().skip(i - 2);
                let (at, file) = files.find(|(_, file)| !file.is_removed)?;
                (at + 2, file.name.clone(), Object::File(at))
            }
        })
    }

    pub(super) fn read_dir(
        &mut self,
        buffer: Range<usize>,
        xid: u32,
        args: &DirArgs,
        procedure: DirProc,
    ) -> Result<Option<usize>, Nfsstat3> {
        if self.object(&args.dir)? != Object::Root {
            return Err(Nfsstat3::NotDir);
        }
        let cookieverf = self.cookie_generation.to_be_bytes();
        let first = usize::try_from(args.cookie).map_err(|_| Nfsstat3::BadCookie)?;
        if first > 0 && (args.cookieverf != cookieverf || first > self.files.len() + 2) {
            return Err(Nfsstat3::BadCookie);
        }
        self.stats.lists += 1;
        let head = DirHead { attrs: Some(self.attrs(Object::Root)), cookieverf };
        let Some(mut at) = self.succeed(buffer.clone(), xid, |out| head.encode(out)) else {
            return Ok(None);
        };
        // A record buffer has room for a READ of `rtmax` bytes.
        let end = BEFORE_COUNT + args.max_count.min(self.config.rtmax) as usize;
        let (mut i, mut names) = (first, 0);
        while let Some((place, name, object)) = self.entry(i) {
            // fileid, name and cookie: what `dir_count` counts.
            let name_bytes = 8 + 4 + name.len() + padding(name.len()) + 8;
            let plus = procedure == DirProc::ReadDirPlus;
            let whole = 4 + name_bytes + if plus { PLUS_BYTES } else { 0 };
            let enough = plus && i > first && names + name_bytes > args.dir_count as usize;
            if enough || at + whole + END_BYTES > end {
                break;
            }
            names += name_bytes;
            let attrs = self.attrs(object);
            let handle = Some(self.object_handle(object));
            let (fileid, cookie) = (attrs.fileid, place as u64 + 1);
            let entry = DirEntry { fileid, name: &name, cookie, attrs: Some(attrs), handle };
            at += self.append(buffer.clone(), at, DirRecord::Entry(entry), procedure)?;
            i = place + 1;
        }
        let eof = self.entry(i).is_none();
        if i == first && !eof || at + END_BYTES > end {
            return Err(Nfsstat3::TooSmall);
        }
        at += self.append(buffer.clone(), at, DirRecord::End { eof }, procedure)?;
        let mark = LAST_FRAGMENT | (at - MARK_BYTES) as u32;
        self.records.bytes_mut()[buffer][..MARK_BYTES].copy_from_slice(&mark.to_be_bytes());
        Ok(Some(at))
    }

    /// Encodes a record at byte `at` of a reply; gives its length.
    fn append(
        &mut self,
        buffer: Range<usize>,
        at: usize,
        record: DirRecord<'_>,
        procedure: DirProc,
    ) -> Result<usize, Nfsstat3> {
        let room = self.records.bytes_mut()[buffer].get_mut(at..).unwrap_or_default();
        let mut out = Encoder::new(room);
        record.encode(&mut out, procedure).map_err(|_| Nfsstat3::TooSmall)?;
        Ok(out.len())
    }
}
