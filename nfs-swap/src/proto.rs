//! NFS version 3 (RFC 1813): the procedures, types and results that swapping needs.
//!
//! - here: numbers, status, handles, attributes; `results`: what procedures give.
//!
//! Each type has one `encode` and one `decode`, side by side, for both ends.

mod results;

use crate::xdr::{Decoder, Encoder, Full, XdrError};
pub use results::{
    CreateOk, FsInfoOk, LookupOk, Outcome, ReadOk, WriteOk, decode_commit, decode_getattr,
    decode_setattr,
};

/// Program number of NFS (section 2.1).
pub const PROGRAM: u32 = 100_003;
/// Its version.
pub const VERSION: u32 = 3;
/// Most bytes of a file handle (section 2.4, `NFS3_FHSIZE`).
pub const FH_BYTES_MAX: usize = 64;
/// Most bytes of a name that we send or serve; RFC 1813 leaves it to the server.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a [`Fattr3`].
pub const FATTR_BYTES: usize = 84;

/// Numbers of the procedures (section 3.3).
#[allow(missing_docs)]
pub mod procs {
    pub const NULL: u32 = 0;
    pub const GETATTR: u32 = 1;
    pub const SETATTR: u32 = 2;
    pub const LOOKUP: u32 = 3;
    pub const ACCESS: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 6;
    pub const WRITE: u32 = 7;
    pub const CREATE: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const SYMLINK: u32 = 10;
    pub const MKNOD: u32 = 11;
    pub const REMOVE: u32 = 12;
    pub const RMDIR: u32 = 13;
    pub const RENAME: u32 = 14;
    pub const LINK: u32 = 15;
    pub const READDIR: u32 = 16;
    pub const READDIRPLUS: u32 = 17;
    pub const FSSTAT: u32 = 18;
    pub const FSINFO: u32 = 19;
    pub const PATHCONF: u32 = 20;
    pub const COMMIT: u32 = 21;
}

macro_rules! nfsstat3 {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// `nfsstat3` (section 2.6), without `NFS3_OK`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, clippy::upper_case_acronyms)]
        #[repr(u32)]
        pub enum Nfsstat3 { $($name = $value,)* }

        impl Nfsstat3 {
            /// The status with this number; `None` for `NFS3_OK`.
            ///
            /// # Errors
            /// When there is no such status.
            pub fn from_code(code: u32) -> Result<Option<Nfsstat3>, XdrError> {
                match code {
                    0 => Ok(None),
                    $($value => Ok(Some(Nfsstat3::$name)),)*
                    value => Err(XdrError::BadEnum { name: "an unknown nfsstat3", value }),
                }
            }
        }
    };
}

nfsstat3! {
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    NxIo = 6,
    Acces = 13,
    Exist = 17,
    XDev = 18,
    NoDev = 19,
    NotDir = 20,
    IsDir = 21,
    Inval = 22,
    FBig = 27,
    NoSpc = 28,
    RoFs = 30,
    MLink = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    DQuot = 69,
    Stale = 70,
    Remote = 71,
    BadHandle = 10001,
    NotSync = 10002,
    BadCookie = 10003,
    NotSupp = 10004,
    TooSmall = 10005,
    ServerFault = 10006,
    BadType = 10007,
    Jukebox = 10008,
}

/// Reads a status: `Ok(Ok(()))` is `NFS3_OK`.
///
/// # Errors
/// When there is no such status.
pub fn decode_status(dec: &mut Decoder<'_>) -> Result<Result<(), Nfsstat3>, XdrError> {
    Ok(match Nfsstat3::from_code(dec.u32()?)? {
        None => Ok(()),
        Some(status) => Err(status),
    })
}

/// `nfs_fh3`: what a server names a file by. Copied around, never looked into by a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileHandle {
    len: u8,
    bytes: [u8; FH_BYTES_MAX],
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FileHandle {
    /// A handle without bytes, which names nothing.
    pub const EMPTY: FileHandle = FileHandle { len: 0, bytes: [0; FH_BYTES_MAX] };

    /// The handle of these bytes; `None` if they are too many.
    pub fn new(bytes: &[u8]) -> Option<FileHandle> {
        let mut handle = FileHandle { len: u8::try_from(bytes.len()).ok()?, ..FileHandle::EMPTY };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.opaque(self.as_bytes())
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is longer than [`FH_BYTES_MAX`], or cut off.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<FileHandle, XdrError> {
        let bytes = dec.opaque(FH_BYTES_MAX as u32)?;
        FileHandle::new(bytes)
            .ok_or(XdrError::TooLong { len: bytes.len() as u32, max: FH_BYTES_MAX as u32 })
    }
}

/// `ftype3` of a regular file.
pub const NF3REG: u32 = 1;
/// `ftype3` of a directory.
pub const NF3DIR: u32 = 2;

/// `fattr3` (section 2.6): the attributes of a file. Times are seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fattr3 {
    pub ftype: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub used: u64,
    pub rdev: u64,
    pub fsid: u64,
    pub fileid: u64,
    pub atime: (u32, u32),
    pub mtime: (u32, u32),
    pub ctime: (u32, u32),
}

impl Fattr3 {
    /// Writes the attributes.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        for word in [self.ftype, self.mode, self.nlink, self.uid, self.gid] {
            out.u32(word)?;
        }
        for word in [self.size, self.used, self.rdev, self.fsid, self.fileid] {
            out.u64(word)?;
        }
        for (seconds, nanos) in [self.atime, self.mtime, self.ctime] {
            out.u32(seconds)?;
            out.u32(nanos)?;
        }
        Ok(())
    }

    /// Reads attributes.
    ///
    /// # Errors
    /// When the file type is unknown, or they are cut off.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Fattr3, XdrError> {
        let ftype = dec.u32()?;
        if !(1..=7).contains(&ftype) {
            return Err(XdrError::BadEnum { name: "an unknown ftype3", value: ftype });
        }
        Ok(Fattr3 {
            ftype,
            mode: dec.u32()?,
            nlink: dec.u32()?,
            uid: dec.u32()?,
            gid: dec.u32()?,
            size: dec.u64()?,
            used: dec.u64()?,
            rdev: dec.u64()?,
            fsid: dec.u64()?,
            fileid: dec.u64()?,
            atime: (dec.u32()?, dec.u32()?),
            mtime: (dec.u32()?, dec.u32()?),
            ctime: (dec.u32()?, dec.u32()?),
        })
    }
}

/// Writes a `post_op_attr`.
///
/// # Errors
/// When it does not fit.
pub fn encode_post_op(out: &mut Encoder<'_>, attrs: Option<&Fattr3>) -> Result<(), Full> {
    out.bool(attrs.is_some())?;
    attrs.map_or(Ok(()), |attrs| attrs.encode(out))
}

/// Reads a `post_op_attr`.
///
/// # Errors
/// When it is malformed.
pub fn decode_post_op(dec: &mut Decoder<'_>) -> Result<Option<Fattr3>, XdrError> {
    if dec.bool()? { Fattr3::decode(dec).map(Some) } else { Ok(None) }
}

/// Writes `wcc_data` without attributes from before the operation.
///
/// # Errors
/// When it does not fit.
pub fn encode_wcc(out: &mut Encoder<'_>, after: Option<&Fattr3>) -> Result<(), Full> {
    out.bool(false)?;
    encode_post_op(out, after)
}

/// Reads `wcc_data` and gives the attributes after the operation.
///
/// # Errors
/// When it is malformed.
pub fn decode_wcc(dec: &mut Decoder<'_>) -> Result<Option<Fattr3>, XdrError> {
    if dec.bool()? {
        // wcc_attr: size, mtime, ctime.
        dec.raw(24)?;
    }
    decode_post_op(dec)
}

/// `stable_how` (section 3.3.7). Ordered: a later one promises more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StableHow {
    /// May be lost until COMMIT.
    Unstable = 0,
    /// The data is stable, the attributes perhaps not.
    DataSync = 1,
    /// All is stable.
    FileSync = 2,
}

impl StableHow {
    /// Reads it.
    ///
    /// # Errors
    /// When there is no such value.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<StableHow, XdrError> {
        match dec.u32()? {
            0 => Ok(StableHow::Unstable),
            1 => Ok(StableHow::DataSync),
            2 => Ok(StableHow::FileSync),
            value => Err(XdrError::BadEnum { name: "an unknown stable_how", value }),
        }
    }
}

/// `sattr3`: attributes to be set. Times are not set by us; as a server they are read and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sattr3 {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of the file in bytes.
    pub size: Option<u64>,
}

impl Sattr3 {
    /// Writes it.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        for field in [self.mode, self.uid, self.gid] {
            out.bool(field.is_some())?;
            field.map_or(Ok(()), |value| out.u32(value))?;
        }
        out.bool(self.size.is_some())?;
        self.size.map_or(Ok(()), |size| out.u64(size))?;
        // DONT_CHANGE, for atime and for mtime.
        out.u32(0)?;
        out.u32(0)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Sattr3, XdrError> {
        let mut word = || -> Result<Option<u32>, XdrError> {
            if dec.bool()? { dec.u32().map(Some) } else { Ok(None) }
        };
        let (mode, uid, gid) = (word()?, word()?, word()?);
        let size = if dec.bool()? { Some(dec.u64()?) } else { None };
        for _ in 0..2 {
            match dec.u32()? {
                0 | 1 => {}
                2 => {
                    dec.raw(8)?;
                }
                value => return Err(XdrError::BadEnum { name: "an unknown time_how", value }),
            }
        }
        Ok(Sattr3 { mode, uid, gid, size })
    }
}
