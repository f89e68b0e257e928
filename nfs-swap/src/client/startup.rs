//! The control calls: from nothing to the handle, the size and the limits of the swap file; and to a
//! new handle when the old one is stale.
//!
//! # A file that is gone
//! The server has it no more if a LOOKUP after a stale handle finds nothing, or a file of another `fileid` (RFC 1813
//! section 2.6: it is what tells files of a file system apart; Linux's client goes by it as well), or if handles
//! are stale as often as they are fetched. Then the backend fails as a whole: nothing of what was stored
//! there can be read, and what has its name now is somebody else's. Anything else that a remount meets, an export that
//! is refused for one, may pass, and is told to who waited only.
//!
//! One control call is outstanding at a time. Like any other it is repeated, with its xid, when the
//! connection is lost; so a CREATE may be executed twice, which is why it is an UNCHECKED one.

use std::ops::Range;

use netswap_net::Action;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::{BackendState, Gone, StoreError};

use super::calls::{Garbage, garbage, store_error};
use super::{CallState, NfsBackend, NfsConfig, STALE_MAX};
use crate::link::Target;
use crate::message::encode_message;
use crate::mount;
use crate::proto::{
    self, CreateOk, Fattr3, FileHandle, FsInfoOk, LookupOk, NF3REG, Nfsstat3, Sattr3, procs,
};
use crate::rpc::{self, ReplyStat};
use crate::xdr::{Decoder, Encoder, Full};

/// What the control call does, or does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// GETPORT of NFS.
    NfsPort,
    /// GETPORT of MOUNT.
    MountPort,
    Null,
    Mnt,
    Lookup,
    Create,
    SetSize,
    FsInfo,
    GetAttr,
    Commit,
    /// A COMMIT for its verifier alone: whether the server restarted.
    Verify,
    /// The handle that was fetched last is stale, too: waits before the next is fetched.
    Rest,
    /// Nothing to do.
    Idle,
}

/// Permission bits of a file that is created: pages of memory are nobody else's business.
const MODE: u32 = 0o600;

/// Beginnings of the export that MOUNT is asked for beside the whole, at most.
const SEARCHES_MAX: u32 = 16;

/// Where a client connects first, and what it does there.
pub(super) fn first(config: &NfsConfig) -> (Target, Step) {
    match (config.portmap, config.mount) {
        (Some(_), _) if config.server.port() == 0 => (Target::Portmap, Step::NfsPort),
        (Some(_), Some(mount)) if mount.port() == 0 => (Target::Portmap, Step::MountPort),
        (_, Some(_)) => (Target::Mount, Step::Mnt),
        (_, None) => (Target::Nfs, Step::Null),
    }
}

/// The names of a path, as ranges of it.
pub(super) fn components(path: &str) -> Box<[Range<usize>]> {
    let mut start = 0;
    let mut names = Vec::new();
    for name in path.split('/') {
        if !name.is_empty() {
            names.push(start..start + name.len());
        }
        start += name.len() + 1;
    }
    names.into()
}

fn encode_get_port(out: &mut Encoder<'_>, program: u32, version: u32) -> Result<(), Full> {
    for word in [program, version, rpc::PORTMAP_TCP, 0] {
        out.u32(word)?;
    }
    Ok(())
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Encodes and queues the call of the current step.
    pub(super) fn begin_step(&mut self, now: Time) {
        let i = self.control();
        let xid = self.xids.assign(i);
        let get_port = (rpc::PORTMAP, rpc::PORTMAP_VERSION, rpc::PORTMAP_GETPORT);
        let procedure = match self.step {
            Step::NfsPort | Step::MountPort => get_port,
            Step::Null => (proto::PROGRAM, proto::VERSION, procs::NULL),
            Step::Mnt => (mount::PROGRAM, mount::VERSION, mount::procs::MNT),
            Step::Lookup => (proto::PROGRAM, proto::VERSION, procs::LOOKUP),
            Step::Create => (proto::PROGRAM, proto::VERSION, procs::CREATE),
            Step::SetSize => (proto::PROGRAM, proto::VERSION, procs::SETATTR),
            Step::FsInfo => (proto::PROGRAM, proto::VERSION, procs::FSINFO),
            Step::GetAttr => (proto::PROGRAM, proto::VERSION, procs::GETATTR),
            Step::Commit | Step::Verify => (proto::PROGRAM, proto::VERSION, procs::COMMIT),
            Step::Rest => return self.begin_remount(now),
            Step::Idle => return,
        };
        let head = self.head_range(i);
        let (step, auth, config) = (self.step, &self.auth, &self.config);
        let (root, dir, file) = (self.root, self.dir, self.file);
        let name = self.names[self.components[self.component].clone()].as_bytes();
        let export = match (self.refused, self.mounted) {
            (None, _) => config.export.as_bytes(),
            (_, 0) => b"/",
            (_, n) => self.names[..self.components[n - 1].end].as_bytes(),
        };
        let size = config.create_bytes;
        let head_len = encode_message(&mut self.heads[head], 0, |out| {
            rpc::encode_call(out, xid, procedure, auth)?;
            match step {
                Step::Null | Step::Rest | Step::Idle => Ok(()),
                Step::NfsPort => encode_get_port(out, proto::PROGRAM, proto::VERSION),
                Step::MountPort => encode_get_port(out, mount::PROGRAM, mount::VERSION),
                Step::Mnt => out.opaque(export),
                Step::Lookup => {
                    dir.encode(out)?;
                    out.opaque(name)
                }
                Step::Create => {
                    dir.encode(out)?;
                    out.opaque(name)?;
                    // UNCHECKED
                    out.u32(0)?;
                    Sattr3 { mode: Some(MODE), ..Sattr3::default() }.encode(out)
                }
                Step::SetSize => {
                    file.encode(out)?;
                    Sattr3 { size, ..Sattr3::default() }.encode(out)?;
                    out.bool(false)
                }
                Step::FsInfo => root.encode(out),
                Step::GetAttr => file.encode(out),
                Step::Commit | Step::Verify => {
                    file.encode(out)?;
                    // Offset and count 0: the whole file.
                    out.u64(0)?;
                    out.u32(0)
                }
            }
        });
        let call = &mut self.calls[i];
        call.head_len = head_len;
        call.sends = 0;
        call.timeouts = 0;
        call.deadline = Time::MAX;
        self.enqueue(now, i);
    }

    fn go_to(&mut self, now: Time, step: Step) {
        self.calls[self.control()].jukebox = 0;
        self.step = step;
        self.begin_step(now);
    }

    fn control_done(&mut self) {
        let i = self.control();
        self.good_reply(i);
        self.release(i);
        self.calls[i].state = CallState::Free;
    }

    /// The result of the control call.
    pub(super) fn handle_control(
        &mut self,
        now: Time,
        mut dec: Decoder<'_>,
    ) -> Result<(), Garbage> {
        let dec = &mut dec;
        // Everything is decoded to its end before anything changes.
        let status = match self.step {
            Step::Idle | Step::Rest => return Err("a reply to no call"),
            Step::NfsPort | Step::MountPort => {
                let port = dec.u32().map_err(garbage)?;
                dec.end().map_err(garbage)?;
                let Ok(port) = u16::try_from(port) else { return Err("a port above 65535") };
                self.control_done();
                self.found_port(now, port);
                return Ok(());
            }
            Step::Null => {
                dec.end().map_err(garbage)?;
                self.control_done();
                let mounted = self.root != FileHandle::EMPTY;
                if mounted {
                    self.start_lookup(now);
                } else {
                    self.go_to(now, Step::Mnt);
                }
                return Ok(());
            }
            Step::Mnt => {
                let mounted = mount::decode_mnt(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                if let Err(status) = mounted
                    && self.search_export(status)
                {
                    self.go_to(now, Step::Mnt);
                    return Ok(());
                }
                // If nothing of it is an export, it is the whole that is reported.
                let mounted = mounted.map_err(|status| self.refused.unwrap_or(status));
                mounted.map(|root| {
                    self.root = root;
                    if self.link.target() == Target::Mount {
                        self.step = Step::Null;
                        self.switch_to(Target::Nfs);
                    } else {
                        self.start_lookup(now);
                    }
                })
            }
            Step::Lookup => {
                let found = LookupOk::decode(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                let last = self.component + 1 == self.components.len();
                match found {
                    Ok(found) if last => {
                        self.file = found.object;
                        let next = if self.remount { Step::GetAttr } else { Step::FsInfo };
                        self.go_to(now, next);
                        Ok(())
                    }
                    Ok(found) => {
                        self.dir = found.object;
                        self.component += 1;
                        self.go_to(now, Step::Lookup);
                        Ok(())
                    }
                    Err(Nfsstat3::NoEnt)
                        if last && !self.remount && self.config.create_bytes.is_some() =>
                    {
                        self.go_to(now, Step::Create);
                        Ok(())
                    }
                    Err(status) => Err(status),
                }
            }
            Step::Create => {
                let created = CreateOk::decode(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                created.map(|created| match created.object {
                    Some(file) => {
                        self.file = file;
                        self.go_to(now, Step::SetSize);
                    }
                    None => self.go_to(now, Step::Lookup),
                })
            }
            Step::SetSize => {
                let set = proto::decode_setattr(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                set.map(|()| {
                    self.sized = true;
                    let next = if self.read_chunk == 0 { Step::FsInfo } else { Step::GetAttr };
                    self.go_to(now, next);
                })
            }
            Step::FsInfo => {
                let info = FsInfoOk::decode(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                if info.is_ok_and(|info| info.rtmax == 0 || info.wtmax == 0) {
                    return Err("an FSINFO that allows no READ or no WRITE");
                }
                self.control_done();
                info.map(|info| {
                    self.fs_info = Some(info);
                    self.set_limits(info.rtmax, info.wtmax);
                    self.go_to(now, Step::GetAttr);
                })
            }
            Step::GetAttr => {
                let attrs = proto::decode_getattr(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                match attrs {
                    Ok(attrs) if self.remount && !self.is_same_file(&attrs) => {
                        self.lose(now, Gone::Replaced);
                        Ok(())
                    }
                    Ok(attrs) if attrs.ftype != NF3REG => Err(Nfsstat3::Inval),
                    Ok(attrs) => {
                        self.file_attrs = Some(attrs);
                        self.sized_up(now, attrs.size);
                        Ok(())
                    }
                    Err(status) => Err(status),
                }
            }
            Step::Verify => {
                let commit = proto::decode_commit(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                commit.map(|verifier| {
                    self.see_verifier(now, verifier);
                    self.end_verify(now);
                })
            }
            Step::Commit => {
                let commit = proto::decode_commit(dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                self.control_done();
                commit.map(|verifier| {
                    self.see_verifier(now, verifier);
                    self.step = Step::Idle;
                    self.state = BackendState::Ready { slots: self.slots };
                })
            }
        };
        match status {
            Ok(()) => {}
            // Who needs the file will learn the same.
            Err(_) if self.step == Step::Verify => self.end_verify(now),
            Err(Nfsstat3::Jukebox) => {
                let i = self.control();
                self.stats.jukebox += 1;
                self.back_off(now, i);
            }
            Err(Nfsstat3::NoEnt) if self.remount && self.step == Step::Lookup => {
                self.lose(now, Gone::Removed);
            }
            Err(Nfsstat3::Stale) if self.remount && self.stale_streak < STALE_MAX => {
                self.begin_remount(now);
            }
            Err(Nfsstat3::Stale) if self.remount => self.lose(now, Gone::Stale),
            Err(status) => self.control_failed(now, store_error(status)),
        }
        Ok(())
    }

    /// Whether a file that was looked up again is the one that was found first.
    fn is_same_file(&self, attrs: &Fattr3) -> bool {
        let fileid = self.file_attrs.map(|first| first.fileid);
        attrs.ftype == NF3REG && fileid.is_none_or(|fileid| fileid == attrs.fileid)
    }

    /// The server has the file no more: everything ends.
    pub(super) fn lose(&mut self, now: Time, how: Gone) {
        let error = StoreError::Gone { how };
        tracing::error!(server = %self.config.label, %error);
        self.end(now, BackendState::Failed(error), error);
    }

    /// The verifier was looked at, or cannot be had. Whoever met a stale handle meanwhile has waited.
    fn end_verify(&mut self, now: Time) {
        self.step = Step::Idle;
        if std::mem::take(&mut self.remount) {
            self.begin_remount(now);
        }
    }

    /// The portmapper has answered: 0 is a program that it does not know.
    fn found_port(&mut self, now: Time, port: u16) {
        if port == 0 {
            let (program, version) = match self.step {
                Step::MountPort => ("MOUNT", mount::VERSION),
                _ => ("NFS", proto::VERSION),
            };
            self.control_failed(now, StoreError::Unregistered { program, version });
            return;
        }
        match (self.step, &mut self.config.mount) {
            (Step::MountPort, Some(mount)) => mount.set_port(port),
            _ => self.config.server.set_port(port),
        }
        let (target, step) = first(&self.config);
        if target == Target::Portmap {
            self.go_to(now, step);
        } else {
            self.step = step;
            self.switch_to(target);
        }
    }

    /// What it means that call `i` was refused as a whole.
    pub(super) fn call_refused(&self, i: usize, stat: ReplyStat) -> StoreError {
        if i != self.control() || !stat.is_unserved() {
            return StoreError::Refused { code: stat.refused_code() };
        }
        let (program, version) = match self.step {
            Step::NfsPort | Step::MountPort => ("PORTMAP", rpc::PORTMAP_VERSION),
            Step::Mnt => ("MOUNT", mount::VERSION),
            _ => ("NFS", proto::VERSION),
        };
        StoreError::NotServed { program, version }
    }

    /// MOUNT refused the export: whether less of it is to be tried, which is prepared then.
    fn search_export(&mut self, status: Nfsstat3) -> bool {
        let is_no_export = matches!(
            status,
            Nfsstat3::NoEnt | Nfsstat3::Acces | Nfsstat3::Perm | Nfsstat3::NotDir | Nfsstat3::Inval
        );
        let goes_on = self.config.search_export
            && !self.remount
            && is_no_export
            && self.mounted > 0
            && self.searches < SEARCHES_MAX;
        if goes_on {
            self.refused.get_or_insert(status);
            self.searches += 1;
            self.mounted -= 1;
        }
        goes_on
    }

    fn start_lookup(&mut self, now: Time) {
        self.component = self.mounted;
        self.dir = self.root;
        self.go_to(now, Step::Lookup);
    }

    /// The file's size is known.
    fn sized_up(&mut self, now: Time, size: u64) {
        if size == 0 && !self.sized && !self.remount && self.config.create_bytes.is_some() {
            self.go_to(now, Step::SetSize);
            return;
        }
        if self.remount {
            self.remount = false;
            self.step = Step::Idle;
            self.handle_generation = self.handle_generation.wrapping_add(1);
            for i in 0..self.calls.len() {
                if self.calls[i].state == CallState::Stale {
                    self.reissue(now, i);
                }
            }
            return;
        }
        self.slots = u32::try_from(size / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        if self.slots == 0 {
            self.control_failed(now, StoreError::OutOfRange { slot: 0 });
        } else {
            self.go_to(now, Step::Commit);
        }
    }

    /// A handle is stale: fetches a new one, unless that is being done.
    pub(super) fn start_remount(&mut self, now: Time) {
        if self.remount {
            return;
        }
        if self.step == Step::Verify {
            self.remount = true;
        } else {
            self.begin_remount(now);
        }
    }

    /// Fetches a new handle; after a while, if the last one was good for nothing.
    fn begin_remount(&mut self, now: Time) {
        self.remount = true;
        if self.stale_streak > 0 && self.step != Step::Rest {
            let i = self.control();
            let until = now + self.config.jukebox_delay * (1 << (self.stale_streak - 1).min(4));
            self.step = Step::Rest;
            self.calls[i].state = CallState::Backoff { until };
            self.arm(until);
            return;
        }
        self.stale_streak += 1;
        self.stats.remounts += 1;
        self.root = FileHandle::EMPTY;
        if self.config.mount.is_some() {
            self.step = Step::Mnt;
            self.switch_to(Target::Mount);
        } else {
            self.go_to(now, Step::Mnt);
        }
    }

    /// What the control call was for cannot be done.
    pub(super) fn control_failed(&mut self, now: Time, error: StoreError) {
        let i = self.control();
        if self.step == Step::Verify {
            if self.calls[i].state == CallState::Queued {
                self.unqueue(i);
            }
            self.rx.forget(i);
            self.release(i);
            self.calls[i].state = CallState::Free;
            self.end_verify(now);
        } else if self.remount {
            // The file is not to be had any more; those who waited for it learn that it is stale.
            if self.calls[i].state == CallState::Queued {
                self.unqueue(i);
            }
            self.rx.forget(i);
            self.release(i);
            self.calls[i].state = CallState::Free;
            self.remount = false;
            self.stale_streak = 0;
            self.step = Step::Idle;
            for i in 0..self.calls.len() {
                if self.calls[i].state == CallState::Stale {
                    let code = Nfsstat3::Stale as u32;
                    self.refuse(now, i, StoreError::Refused { code });
                }
            }
            if self.link.target() == Target::Mount {
                self.switch_to(Target::Nfs);
            }
        } else {
            self.end(now, BackendState::Failed(error), error);
        }
    }

    /// Closes the connection to open one to the other service.
    fn switch_to(&mut self, target: Target) {
        self.link.switch_to(target);
        let half_sent = self.sent_front > 0;
        self.drop_connection(if half_sent { Action::Abort } else { Action::Close });
    }
}
