//! The procedures. A call is decoded from a record buffer and executed; the reply takes its place in
//! the same buffer, so that no second one is needed and READ data goes from the disk to where it is
//! sent from.

use std::io;

use netswap_reserve::PAGE_SIZE;
use netswap_swap::Disk;

use super::args::{Op, Refusal, decode_op};
use super::{File, HANDLE_MAGIC, Name, NfsServer, Undo, cache, faults};
use crate::proto::{
    self, CreateOk, Fattr3, FileHandle, FsInfoOk, LookupOk, NAME_BYTES_MAX, NF3DIR, NF3REG,
    Nfsstat3, ReadOk, Sattr3, StableHow, WriteOk, encode_post_op, encode_wcc, procs,
};
use crate::rpc::{self, AUTH_SYS, AcceptStat, LAST_FRAGMENT, MARK_BYTES, ReplyStat};
use crate::xdr::{Decoder, Encoder, Full, padding};

/// Place of the export's root directory among the handles; files follow.
const ROOT: u32 = 0;

/// What a handle names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    Root,
    File(usize),
}

impl<D: Disk> NfsServer<D> {
    /// Executes the call of `len` bytes in a record buffer; gives the length of the reply that is
    /// there then, its mark included: 0 if there is no reply. `None` if it is no call at all.
    pub(super) fn execute(
        &mut self,
        connection: usize,
        record: usize,
        len: usize,
    ) -> Option<usize> {
        let start = (connection * self.config.records + record) * self.record_bytes;
        let buffer = start..start + self.record_bytes;
        let call = &self.records.bytes_mut()[start + MARK_BYTES..start + MARK_BYTES + len];
        let mut dec = Decoder::new(call);
        let header = rpc::decode_call(&mut dec).ok()?;
        let decoded = decode_op(&mut dec, &header, self.config.export.as_bytes());
        let (op, stat) = match decoded {
            Ok(op) => (Some(op), ReplyStat::Accepted(AcceptStat::Success)),
            Err(Refusal::Stat(stat)) => (None, stat),
            Err(Refusal::Args) => (None, ReplyStat::Accepted(AcceptStat::GarbageArgs)),
        };
        let Some(op) = op else {
            self.stats.bad_calls += 1;
            return self.reply(buffer, |out| rpc::encode_reply(out, header.xid, stat));
        };
        self.stats.calls += 1;
        let changes = match &op {
            Op::Write(.., data) => Some(data.start),
            Op::Create(..) | Op::SetAttr(..) => Some(call.len()),
            _ => None,
        };
        let hash = changes.map(|end| cache::hash(&call[..end]));
        if let Some(hash) = hash
            && let Some(reply) = self.connections[connection].cache.find(header.xid, hash)
        {
            self.stats.cached += 1;
            let reply_len = reply.len();
            self.records.bytes_mut()[start..start + reply_len].copy_from_slice(reply);
            return Some(reply_len);
        }
        if let Op::Write(file, offset, _, data) = &op {
            let data = start + MARK_BYTES + data.start..start + MARK_BYTES + data.end;
            if self.hold(*file, *offset, data) {
                return Some(0);
            }
        }
        let is_nfs = header.program == proto::PROGRAM && header.procedure != procs::NULL;
        let jukebox = is_nfs && faults::happens(&mut self.rng, self.config.faults.jukebox_ppm);
        if jukebox {
            self.counts.jukebox += 1;
            return self.fail(buffer, header.xid, &op, Nfsstat3::Jukebox);
        }
        let len = self.carry_out(buffer, header.xid, op)?;
        if let Some(hash) = hash {
            let reply = &self.records.bytes_mut()[start..start + len];
            self.connections[connection].cache.remember(header.xid, hash, reply);
        }
        Some(len)
    }

    /// Encodes a reply into a record buffer.
    fn reply(
        &mut self,
        buffer: std::ops::Range<usize>,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<(), Full>,
    ) -> Option<usize> {
        let (mark, body) = self.records.bytes_mut()[buffer].split_at_mut(MARK_BYTES);
        let mut out = Encoder::new(body);
        encode(&mut out).ok()?;
        let len = out.len();
        mark.copy_from_slice(&(LAST_FRAGMENT | len as u32).to_be_bytes());
        Some(MARK_BYTES + len)
    }

    pub(super) fn succeed(
        &mut self,
        buffer: std::ops::Range<usize>,
        xid: u32,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<(), Full>,
    ) -> Option<usize> {
        self.reply(buffer, |out| {
            rpc::encode_reply(out, xid, ReplyStat::Accepted(AcceptStat::Success))?;
            encode(out)
        })
    }

    /// A failed reply has only absent attributes behind its status.
    fn fail(
        &mut self,
        buffer: std::ops::Range<usize>,
        xid: u32,
        op: &Op,
        status: Nfsstat3,
    ) -> Option<usize> {
        let absent = match op {
            Op::Null | Op::GetPort(_) | Op::Mnt { .. } | Op::Export | Op::GetAttr(_) => 0,
            Op::Lookup(..) | Op::Access(..) | Op::Read(..) => 1,
            Op::FsStat(_) | Op::FsInfo(_) | Op::PathConf(_) | Op::ReadDir(..) => 1,
            Op::SetAttr(..) | Op::Write(..) | Op::Create(..) | Op::Commit(_) => 2,
            Op::NotSupported(words) => *words,
        };
        self.succeed(buffer, xid, |out| {
            out.u32(status as u32)?;
            (0..absent).try_for_each(|_| out.u32(0))
        })
    }

    fn carry_out(&mut self, buffer: std::ops::Range<usize>, xid: u32, op: Op) -> Option<usize> {
        let result = match &op {
            Op::Null => return self.succeed(buffer, xid, |_| Ok(())),
            Op::GetPort(program) => {
                let port = match (*program, self.config.ports) {
                    (proto::PROGRAM, Some((nfs, _))) => nfs,
                    (crate::mount::PROGRAM, Some((_, mount))) => mount,
                    _ => 0,
                };
                return self.succeed(buffer, xid, |out| out.u32(port.into()));
            }
            Op::Export => return self.export(buffer, xid),
            Op::Mnt { known: true } => {
                let root = self.handle_of(ROOT);
                return self.succeed(buffer, xid, |out| {
                    out.u32(0)?;
                    root.encode(out)?;
                    out.u32(1)?;
                    out.u32(AUTH_SYS)
                });
            }
            Op::Mnt { known: false } => Err(Nfsstat3::NoEnt),
            Op::NotSupported(_) => Err(Nfsstat3::NotSupp),
            Op::GetAttr(file) => self.object(file).map(|object| {
                let attrs = self.attrs(object);
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    attrs.encode(out)
                })
            }),
            Op::SetAttr(file, attrs, guard) => self.set_attr(file, attrs, *guard).map(|after| {
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    encode_wcc(out, Some(&after))
                })
            }),
            Op::Lookup(dir, name) => self
                .lookup(dir, name)
                .map(|found| self.succeed(buffer.clone(), xid, |out| found.encode(out))),
            Op::Access(file, wanted) => self.object(file).map(|object| {
                let attrs = self.attrs(object);
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    encode_post_op(out, Some(&attrs))?;
                    // All but EXECUTE.
                    out.u32(wanted & 0x1f)
                })
            }),
            Op::Read(file, offset, count) => self.read(buffer.clone(), xid, file, *offset, *count),
            Op::Write(file, offset, stable, data) => {
                let data =
                    buffer.start + MARK_BYTES + data.start..buffer.start + MARK_BYTES + data.end;
                self.write(file, *offset, *stable, data)
                    .map(|written| self.succeed(buffer.clone(), xid, |out| written.encode(out)))
            }
            Op::Create(dir, name, how, attrs) => self
                .create(dir, name, *how, attrs)
                .map(|made| self.succeed(buffer.clone(), xid, |out| made.encode(out))),
            Op::FsStat(file) => self.object(file).map(|_| {
                let total = self.config.file_bytes_max;
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    encode_post_op(out, None)?;
                    for word in [total, total, total, 1024, 512, 512] {
                        out.u64(word)?;
                    }
                    out.u32(0)
                })
            }),
            Op::FsInfo(file) => self.object(file).map(|_| {
                let info = FsInfoOk {
                    rtmax: self.config.rtmax,
                    wtmax: self.config.wtmax,
                    rtpref: self.config.rtmax,
                    wtpref: self.config.wtmax,
                    max_file_bytes: self.config.file_bytes_max,
                };
                self.succeed(buffer.clone(), xid, |out| info.encode(out))
            }),
            Op::PathConf(file) => self.object(file).map(|object| {
                let attrs = self.attrs(object);
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    encode_post_op(out, Some(&attrs))?;
                    // linkmax, name_max, no_trunc, chown_restricted, not case_insensitive, case_preserving
                    for word in [1, NAME_BYTES_MAX as u32, 1, 1, 0, 1] {
                        out.u32(word)?;
                    }
                    Ok(())
                })
            }),
            Op::ReadDir(args, procedure) => self.read_dir(buffer.clone(), xid, args, *procedure),
            Op::Commit(file) => self.commit(file).map(|attrs| {
                let verifier = self.verifier();
                self.succeed(buffer.clone(), xid, |out| {
                    out.u32(0)?;
                    encode_wcc(out, Some(&attrs))?;
                    out.raw(&verifier)
                })
            }),
        };
        match result {
            Ok(len) => len,
            Err(status) => self.fail(buffer, xid, &op, status),
        }
    }

    fn export(&mut self, buffer: std::ops::Range<usize>, xid: u32) -> Option<usize> {
        let (mark, body) = self.records.bytes_mut()[buffer].split_at_mut(MARK_BYTES);
        let mut out = Encoder::new(body);
        rpc::encode_reply(&mut out, xid, ReplyStat::Accepted(AcceptStat::Success)).ok()?;
        // One export, for everybody: no groups; then the end of the list.
        out.bool(true).ok()?;
        out.opaque(self.config.export.as_bytes()).ok()?;
        out.bool(false).ok()?;
        out.bool(false).ok()?;
        mark.copy_from_slice(&(LAST_FRAGMENT | out.len() as u32).to_be_bytes());
        Some(MARK_BYTES + out.len())
    }

    pub(super) fn object(&self, handle: &FileHandle) -> Result<Object, Nfsstat3> {
        let mut dec = Decoder::new(handle.as_bytes());
        let fields = (dec.raw(HANDLE_MAGIC.len()), dec.u32(), dec.u32(), dec.end());
        let (Ok(HANDLE_MAGIC), Ok(generation), Ok(place), Ok(())) = fields else {
            return Err(Nfsstat3::BadHandle);
        };
        if generation != self.generation {
            return Err(Nfsstat3::Stale);
        }
        match place {
            ROOT => Ok(Object::Root),
            place => match self.files.get(place as usize - 1) {
                Some(file) if !file.is_removed => Ok(Object::File(place as usize - 1)),
                _ => Err(Nfsstat3::Stale),
            },
        }
    }

    fn file(&self, handle: &FileHandle) -> Result<usize, Nfsstat3> {
        match self.object(handle)? {
            Object::File(i) => Ok(i),
            Object::Root => Err(Nfsstat3::IsDir),
        }
    }

    pub(super) fn attrs(&self, object: Object) -> Fattr3 {
        let (ftype, mode, size, used, fileid) = match object {
            Object::Root => (NF3DIR, 0o755, 4096, 4096, 1),
            Object::File(i) => {
                let disk = &self.files[i].disk;
                (NF3REG, 0o600, disk.len(), disk.used(), i as u64 + 2)
            }
        };
        Fattr3 {
            ftype,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            size,
            used,
            rdev: 0,
            fsid: 1,
            fileid,
            atime: (0, 0),
            mtime: (0, 0),
            ctime: (0, 0),
        }
    }

    fn set_attr(
        &mut self,
        handle: &FileHandle,
        attrs: &Sattr3,
        guard: Option<(u32, u32)>,
    ) -> Result<Fattr3, Nfsstat3> {
        let object = self.object(handle)?;
        if guard.is_some_and(|ctime| ctime != self.attrs(object).ctime) {
            return Err(Nfsstat3::NotSync);
        }
        match (object, attrs.size) {
            (Object::Root, Some(_)) => return Err(Nfsstat3::IsDir),
            (Object::File(i), Some(size)) => self.set_size(i, size)?,
            _ => {}
        }
        Ok(self.attrs(object))
    }

    fn set_size(&mut self, i: usize, size: u64) -> Result<(), Nfsstat3> {
        if size > self.config.file_bytes_max {
            return Err(Nfsstat3::FBig);
        }
        self.commit_all()?;
        let disk = &mut self.files[i].disk;
        disk.set_len(size).map_err(status_of)?;
        disk.flush().map_err(status_of)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.files.iter().position(|file| !file.is_removed && file.name.as_slice() == name)
    }

    fn lookup(&self, dir: &FileHandle, name: &Name) -> Result<LookupOk, Nfsstat3> {
        if self.object(dir)? != Object::Root {
            return Err(Nfsstat3::NotDir);
        }
        let object = match name.as_slice() {
            b"." | b".." => Object::Root,
            name => Object::File(self.find(name).ok_or(Nfsstat3::NoEnt)?),
        };
        Ok(LookupOk { object: self.object_handle(object), attrs: Some(self.attrs(object)) })
    }

    pub(super) fn object_handle(&self, object: Object) -> FileHandle {
        match object {
            Object::Root => self.handle_of(ROOT),
            Object::File(i) => self.handle_of(i as u32 + 1),
        }
    }

    fn create(
        &mut self,
        dir: &FileHandle,
        name: &Name,
        how: u32,
        attrs: &Sattr3,
    ) -> Result<CreateOk, Nfsstat3> {
        if self.object(dir)? != Object::Root {
            return Err(Nfsstat3::NotDir);
        }
        if name.is_empty() || matches!(name.as_slice(), b"." | b"..") || name.contains(&b'/') {
            return Err(Nfsstat3::Acces);
        }
        let i = match (self.find(name), how) {
            // EXCLUSIVE
            (_, 2) => return Err(Nfsstat3::NotSupp),
            // GUARDED
            (Some(_), 1) => return Err(Nfsstat3::Exist),
            (Some(i), _) => i,
            (None, _) => {
                if self.files.len() >= self.config.files {
                    return Err(Nfsstat3::NoSpc);
                }
                let fits = |spare: &(Option<Name>, D)| spare.0.as_ref().is_none_or(|of| of == name);
                let spare = self.spares.iter().rposition(fits).ok_or(Nfsstat3::NoSpc)?;
                let (_, disk) = self.spares.remove(spare);
                self.files.push(File { name: name.clone(), disk, is_removed: false });
                self.files.len() - 1
            }
        };
        if let Some(size) = attrs.size {
            self.set_size(i, size)?;
        }
        let object = Object::File(i);
        Ok(CreateOk { object: Some(self.object_handle(object)), attrs: Some(self.attrs(object)) })
    }

    fn read(
        &mut self,
        buffer: std::ops::Range<usize>,
        xid: u32,
        handle: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Option<usize>, Nfsstat3> {
        let i = self.file(handle)?;
        self.stats.reads += 1;
        let left = self.files[i].disk.len().saturating_sub(offset);
        let mut count = u64::from(count.min(self.config.rtmax)).min(left) as u32;
        if count > 1 && faults::happens(&mut self.rng, self.config.faults.short_read_ppm) {
            self.counts.short_reads += 1;
            count = faults::fewer(&mut self.rng, count);
        }
        let eof = u64::from(count) >= left;
        let read = ReadOk { attrs: Some(self.attrs(Object::File(i))), count, eof };
        let Some(at) = self.succeed(buffer.clone(), xid, |out| read.encode(out)) else {
            return Ok(None);
        };
        let (len, pad) = (count as usize, padding(count as usize));
        let bytes = &mut self.records.bytes_mut()[buffer];
        let data = bytes.get_mut(at..at + len + pad).ok_or(Nfsstat3::ServerFault)?;
        data[len..].fill(0);
        if len > 0 {
            self.files[i].disk.read_at(offset, &mut data[..len]).map_err(status_of)?;
        }
        let whole = at + len + pad;
        let mark = LAST_FRAGMENT | (whole - MARK_BYTES) as u32;
        bytes[..MARK_BYTES].copy_from_slice(&mark.to_be_bytes());
        Ok(Some(whole))
    }

    fn write(
        &mut self,
        handle: &FileHandle,
        offset: u64,
        stable: StableHow,
        data: std::ops::Range<usize>,
    ) -> Result<WriteOk, Nfsstat3> {
        let i = self.file(handle)?;
        self.stats.writes += 1;
        self.forget_by_chance();
        let mut count = data.len().min(self.config.wtmax as usize);
        if count > 1 && faults::happens(&mut self.rng, self.config.faults.short_write_ppm) {
            self.counts.short_writes += 1;
            count = faults::fewer(&mut self.rng, count as u32) as usize;
        }
        let end = offset.checked_add(count as u64).ok_or(Nfsstat3::FBig)?;
        let weak = stable > StableHow::Unstable
            && self.config.takes_unstable()
            && faults::happens(&mut self.rng, self.config.faults.weak_ppm);
        self.counts.weak += u64::from(weak);
        let stable = match stable {
            _ if weak => StableHow::Unstable,
            _ if !self.config.takes_unstable() => StableHow::FileSync,
            stable => stable,
        };
        let len = self.files[i].disk.len();
        if count > 0 && end > len && end > self.config.file_bytes_max {
            return Err(Nfsstat3::FBig);
        }
        if stable == StableHow::Unstable && count > 0 && self.config.keep_old {
            self.remember_old(i, offset, count, len)?;
        }
        let disk = &mut self.files[i].disk;
        if count > 0 {
            if end > len {
                disk.set_len(end).map_err(status_of)?;
            }
            let data = &self.records.bytes_mut()[data.start..data.start + count];
            disk.write_at(offset, data).map_err(status_of)?;
        }
        let committed = if stable == StableHow::Unstable {
            StableHow::Unstable
        } else {
            self.commit_all()?;
            StableHow::FileSync
        };
        Ok(WriteOk {
            attrs: Some(self.attrs(Object::File(i))),
            count: count as u32,
            committed,
            verifier: self.verifier(),
        })
    }

    /// Keeps what an UNSTABLE write is about to overwrite, so that a restart can lose the write.
    fn remember_old(
        &mut self,
        file: usize,
        offset: u64,
        count: usize,
        file_len: u64,
    ) -> Result<(), Nfsstat3> {
        if self.undo.len() == self.config.unstable {
            self.commit_all()?;
        }
        let at = self.undo.len() * self.config.undo_frames() * PAGE_SIZE;
        let Some(bytes) = &mut self.undo_bytes else { return Err(Nfsstat3::ServerFault) };
        // What lies beyond the end of the file goes away with it.
        let len = (file_len.saturating_sub(offset)).min(count as u64) as usize;
        let old = &mut bytes.bytes_mut()[at..at + len];
        self.files[file].disk.read_at(offset.min(file_len), old).map_err(status_of)?;
        self.undo.push(Undo { file, offset, len, file_len });
        Ok(())
    }

    fn forget_by_chance(&mut self) {
        if faults::happens(&mut self.rng, self.config.faults.forget_ppm) {
            self.counts.forgotten += 1;
            self.forget_uncommitted();
        }
    }

    /// Makes everything stable that is not.
    fn commit_all(&mut self) -> Result<(), Nfsstat3> {
        for file in &mut self.files {
            file.disk.flush().map_err(status_of)?;
        }
        self.undo.clear();
        Ok(())
    }

    fn commit(&mut self, handle: &FileHandle) -> Result<Fattr3, Nfsstat3> {
        let i = self.file(handle)?;
        self.forget_by_chance();
        self.commit_all()?;
        Ok(self.attrs(Object::File(i)))
    }
}

fn status_of(error: io::Error) -> Nfsstat3 {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge => Nfsstat3::NoSpc,
        io::ErrorKind::ReadOnlyFilesystem => Nfsstat3::RoFs,
        _ => Nfsstat3::Io,
    }
}
