//! MOUNT version 3 (RFC 1813 section 5): from the path of an export to its root handle.

use crate::proto::{FileHandle, Nfsstat3, Outcome};
use crate::xdr::{Decoder, XdrError};

/// Program number of MOUNT (section 5.1).
pub const PROGRAM: u32 = 100_005;
/// Its version.
pub const VERSION: u32 = 3;
/// Most bytes of a path (`MNTPATHLEN`).
pub const PATH_BYTES_MAX: usize = 1024;
/// Most authentication flavors that are read from a reply; RFC 1813 has no bound.
pub const FLAVORS_MAX: u32 = 32;

/// Numbers of the procedures (section 5.2).
#[allow(missing_docs)]
pub mod procs {
    pub const NULL: u32 = 0;
    pub const MNT: u32 = 1;
    pub const DUMP: u32 = 2;
    pub const UMNT: u32 = 3;
    pub const UMNTALL: u32 = 4;
    pub const EXPORT: u32 = 5;
}

/// Reads the result of MNT (section 5.2.1): the root handle. `mountstat3` has the numbers of
/// `nfsstat3`, so it is reported as one. The flavors are read and not judged: a server that wants
/// another one than AUTH_SYS says so when it is called.
///
/// # Errors
/// When it is malformed.
pub fn decode_mnt(dec: &mut Decoder<'_>) -> Result<Outcome<FileHandle>, XdrError> {
    if let Some(status) = Nfsstat3::from_code(dec.u32()?)? {
        return Ok(Err(status));
    }
    let handle = FileHandle::decode(dec)?;
    let flavors = dec.u32()?;
    if flavors > FLAVORS_MAX {
        return Err(XdrError::TooLong { len: flavors, max: FLAVORS_MAX });
    }
    dec.raw(4 * flavors as usize)?;
    Ok(Ok(handle))
}
