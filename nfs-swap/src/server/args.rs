//! Calls as the server reads them: from the bytes of a record to an operation with its arguments.

use super::Name;
use crate::dir::{DirArgs, DirProc};
use crate::mount;
use crate::proto::{self, FileHandle, NAME_BYTES_MAX, Sattr3, StableHow, procs};
use crate::rpc::{self, AUTH_NONE, AUTH_SYS, AcceptStat, RPC_VERSION, ReplyStat};
use crate::xdr::{Decoder, XdrError};

/// `AUTH_BADCRED` is for what cannot be read, `AUTH_REJECTEDCRED` for flavors we do not serve.
const AUTH_REJECTED_CRED: u32 = 2;
/// A call with its arguments, independent of the buffer it came in.
pub(super) enum Op {
    Null,
    /// Of this program.
    GetPort(u32),
    Mnt {
        known: bool,
    },
    Export,
    GetAttr(FileHandle),
    SetAttr(FileHandle, Sattr3, Option<(u32, u32)>),
    Lookup(FileHandle, Name),
    Access(FileHandle, u32),
    Read(FileHandle, u64, u32),
    /// With the place of the data in the record.
    Write(FileHandle, u64, StableHow, std::ops::Range<usize>),
    Create(FileHandle, Name, u32, Sattr3),
    FsStat(FileHandle),
    FsInfo(FileHandle),
    PathConf(FileHandle),
    Commit(FileHandle),
    ReadDir(DirArgs, DirProc),
    /// A procedure that is not served, and how many zero words follow its status.
    NotSupported(usize),
}

/// Why a call is not executed.
pub(super) enum Refusal {
    Stat(ReplyStat),
    Args,
}

impl From<XdrError> for Refusal {
    fn from(_: XdrError) -> Refusal {
        Refusal::Args
    }
}

fn decode_name(dec: &mut Decoder<'_>) -> Result<Name, XdrError> {
    let bytes = dec.opaque(NAME_BYTES_MAX as u32)?;
    Ok(bytes.iter().copied().collect())
}

/// Decodes the arguments of a call, to its last byte.
pub(super) fn decode_op(
    dec: &mut Decoder<'_>,
    header: &rpc::CallHeader,
    export: &[u8],
) -> Result<Op, Refusal> {
    if header.rpc_version != RPC_VERSION {
        return Err(Refusal::Stat(ReplyStat::RpcMismatch));
    }
    let accepted = |stat| Err(Refusal::Stat(ReplyStat::Accepted(stat)));
    let version = match header.program {
        proto::PROGRAM => proto::VERSION,
        mount::PROGRAM => mount::VERSION,
        rpc::PORTMAP => rpc::PORTMAP_VERSION,
        _ => return accepted(AcceptStat::ProgUnavail),
    };
    if header.version != version {
        return accepted(AcceptStat::ProgMismatch { low: version, high: version });
    }
    if header.flavor != AUTH_SYS && header.flavor != AUTH_NONE {
        return Err(Refusal::Stat(ReplyStat::AuthError(AUTH_REJECTED_CRED)));
    }
    let op = if header.program == rpc::PORTMAP {
        match header.procedure {
            0 => Op::Null,
            rpc::PORTMAP_GETPORT => {
                let program = dec.u32()?;
                dec.raw(12)?;
                Op::GetPort(program)
            }
            _ => return accepted(AcceptStat::ProcUnavail),
        }
    } else if header.program == mount::PROGRAM {
        match header.procedure {
            mount::procs::NULL => Op::Null,
            mount::procs::MNT => {
                let path = dec.opaque(mount::PATH_BYTES_MAX as u32)?;
                Op::Mnt { known: path == export }
            }
            mount::procs::UMNT => {
                dec.opaque(mount::PATH_BYTES_MAX as u32)?;
                Op::Null
            }
            mount::procs::UMNTALL => Op::Null,
            mount::procs::EXPORT => Op::Export,
            _ => return accepted(AcceptStat::ProcUnavail),
        }
    } else {
        match header.procedure {
            procs::READLINK => return Ok(Op::NotSupported(1)),
            procs::MKDIR | procs::SYMLINK | procs::MKNOD | procs::REMOVE | procs::RMDIR => {
                return Ok(Op::NotSupported(2));
            }
            procs::RENAME => return Ok(Op::NotSupported(4)),
            procs::LINK => return Ok(Op::NotSupported(3)),
            procedure => decode_nfs(dec, procedure)?,
        }
    };
    dec.end()?;
    Ok(op)
}

fn decode_nfs(dec: &mut Decoder<'_>, procedure: u32) -> Result<Op, Refusal> {
    Ok(match procedure {
        procs::NULL => Op::Null,
        procs::GETATTR => Op::GetAttr(FileHandle::decode(dec)?),
        procs::SETATTR => {
            let file = FileHandle::decode(dec)?;
            let attrs = Sattr3::decode(dec)?;
            let guard = if dec.bool()? { Some((dec.u32()?, dec.u32()?)) } else { None };
            Op::SetAttr(file, attrs, guard)
        }
        procs::LOOKUP => Op::Lookup(FileHandle::decode(dec)?, decode_name(dec)?),
        procs::ACCESS => Op::Access(FileHandle::decode(dec)?, dec.u32()?),
        procs::READ => Op::Read(FileHandle::decode(dec)?, dec.u64()?, dec.u32()?),
        procs::WRITE => {
            let file = FileHandle::decode(dec)?;
            let offset = dec.u64()?;
            let count = dec.u32()?;
            let stable = StableHow::decode(dec)?;
            let at = dec.position() + 4;
            let data = dec.opaque(u32::MAX)?;
            if data.len() != count as usize {
                return Err(Refusal::Args);
            }
            Op::Write(file, offset, stable, at..at + data.len())
        }
        procs::CREATE => {
            let dir = FileHandle::decode(dec)?;
            let name = decode_name(dec)?;
            let attrs_of = |dec: &mut Decoder<'_>| Sattr3::decode(dec);
            match dec.u32()? {
                how @ (0 | 1) => Op::Create(dir, name, how, attrs_of(dec)?),
                2 => {
                    dec.raw(8)?;
                    Op::Create(dir, name, 2, Sattr3::default())
                }
                _ => return Err(Refusal::Args),
            }
        }
        procs::READDIR => Op::ReadDir(DirArgs::decode(dec, DirProc::ReadDir)?, DirProc::ReadDir),
        procs::READDIRPLUS => {
            Op::ReadDir(DirArgs::decode(dec, DirProc::ReadDirPlus)?, DirProc::ReadDirPlus)
        }
        procs::FSSTAT => Op::FsStat(FileHandle::decode(dec)?),
        procs::FSINFO => Op::FsInfo(FileHandle::decode(dec)?),
        procs::PATHCONF => Op::PathConf(FileHandle::decode(dec)?),
        procs::COMMIT => {
            let file = FileHandle::decode(dec)?;
            dec.raw(12)?;
            Op::Commit(file)
        }
        _ => return Err(Refusal::Stat(ReplyStat::Accepted(AcceptStat::ProcUnavail))),
    })
}
