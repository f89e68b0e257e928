//! Results of procedures (RFC 1813 section 3.3). Each is written by the server and read by the client, here side by side;
//! of a procedure that failed there is only what the RFC puts behind the status.

use super::{
    Fattr3, FileHandle, Nfsstat3, StableHow, decode_post_op, decode_status, decode_wcc,
    encode_post_op, encode_wcc,
};
use crate::xdr::{Decoder, Encoder, Full, XdrError};

/// What a procedure gave: its result, or the status it failed with.
pub type Outcome<T> = Result<T, Nfsstat3>;

/// `LOOKUP3res` (section 3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupOk {
    /// The file's handle.
    pub object: FileHandle,
    /// Its attributes.
    pub attrs: Option<Fattr3>,
}

impl LookupOk {
    /// Writes the result, without attributes of the directory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        self.object.encode(out)?;
        encode_post_op(out, self.attrs.as_ref())?;
        encode_post_op(out, None)
    }

    /// Reads the result.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Outcome<LookupOk>, XdrError> {
        if let Err(status) = decode_status(dec)? {
            decode_post_op(dec)?;
            return Ok(Err(status));
        }
        let object = FileHandle::decode(dec)?;
        let attrs = decode_post_op(dec)?;
        decode_post_op(dec)?;
        Ok(Ok(LookupOk { object, attrs }))
    }
}

/// `READ3res` (section 3.3.6) up to the length of the data, which follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOk {
    /// Attributes of the file.
    pub attrs: Option<Fattr3>,
    /// Bytes read.
    pub count: u32,
    /// The read ended at the end of the file.
    pub eof: bool,
}

impl ReadOk {
    /// Writes everything before the data.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        encode_post_op(out, self.attrs.as_ref())?;
        out.u32(self.count)?;
        out.bool(self.eof)?;
        out.u32(self.count)
    }

    /// Reads everything before the data, of which at most `max` bytes were asked for.
    ///
    /// # Errors
    /// When it is malformed, or the two counts it holds differ or are above `max`.
    pub fn decode(dec: &mut Decoder<'_>, max: u32) -> Result<Outcome<ReadOk>, XdrError> {
        if let Err(status) = decode_status(dec)? {
            decode_post_op(dec)?;
            return Ok(Err(status));
        }
        let attrs = decode_post_op(dec)?;
        let count = dec.u32()?;
        let eof = dec.bool()?;
        let len = dec.u32()?;
        if count > max || len > max {
            return Err(XdrError::TooLong { len: count.max(len), max });
        }
        if count != len {
            return Err(XdrError::BadEnum { name: "a READ with two lengths", value: len });
        }
        Ok(Ok(ReadOk { attrs, count, eof }))
    }
}

/// `WRITE3res` (section 3.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOk {
    /// Attributes of the file.
    pub attrs: Option<Fattr3>,
    /// Bytes written.
    pub count: u32,
    /// How stable they are.
    pub committed: StableHow,
    /// Changes when the server may have lost what was not stable.
    pub verifier: [u8; 8],
}

impl WriteOk {
    /// Writes the result.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        encode_wcc(out, self.attrs.as_ref())?;
        out.u32(self.count)?;
        out.u32(self.committed as u32)?;
        out.raw(&self.verifier)
    }

    /// Reads the result.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Outcome<WriteOk>, XdrError> {
        let status = decode_status(dec)?;
        let attrs = decode_wcc(dec)?;
        if let Err(status) = status {
            return Ok(Err(status));
        }
        Ok(Ok(WriteOk {
            attrs,
            count: dec.u32()?,
            committed: StableHow::decode(dec)?,
            verifier: dec.verifier()?,
        }))
    }
}

/// `CREATE3res` (section 3.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOk {
    /// The file's handle, if the server cares to tell.
    pub object: Option<FileHandle>,
    /// Its attributes.
    pub attrs: Option<Fattr3>,
}

impl CreateOk {
    /// Writes the result.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        out.bool(self.object.is_some())?;
        self.object.map_or(Ok(()), |object| object.encode(out))?;
        encode_post_op(out, self.attrs.as_ref())?;
        encode_wcc(out, None)
    }

    /// Reads the result.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Outcome<CreateOk>, XdrError> {
        if let Err(status) = decode_status(dec)? {
            decode_wcc(dec)?;
            return Ok(Err(status));
        }
        let object = if dec.bool()? { Some(FileHandle::decode(dec)?) } else { None };
        let attrs = decode_post_op(dec)?;
        decode_wcc(dec)?;
        Ok(Ok(CreateOk { object, attrs }))
    }
}

/// `FSINFO3res` (section 3.3.19), as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsInfoOk {
    /// Most bytes of one READ.
    pub rtmax: u32,
    /// Most bytes of one WRITE.
    pub wtmax: u32,
    /// Bytes of a READ that the server likes best.
    pub rtpref: u32,
    /// Bytes of a WRITE that the server likes best.
    pub wtpref: u32,
    /// Most bytes of a file.
    pub max_file_bytes: u64,
}

impl FsInfoOk {
    /// Writes the result: multiples are of 4 bytes.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, out: &mut Encoder<'_>) -> Result<(), Full> {
        out.u32(0)?;
        encode_post_op(out, None)?;
        for word in [self.rtmax, self.rtpref, 4, self.wtmax, self.wtpref, 4, 4096] {
            out.u32(word)?;
        }
        out.u64(self.max_file_bytes)?;
        // time_delta of one second, then FSF3_HOMOGENEOUS and FSF3_CANSETTIME off, no links.
        [1, 0, 0].into_iter().try_for_each(|word| out.u32(word))
    }

    /// Reads the result.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(dec: &mut Decoder<'_>) -> Result<Outcome<FsInfoOk>, XdrError> {
        let status = decode_status(dec)?;
        decode_post_op(dec)?;
        if let Err(status) = status {
            return Ok(Err(status));
        }
        let rtmax = dec.u32()?;
        let rtpref = dec.u32()?;
        dec.raw(4)?;
        let wtmax = dec.u32()?;
        let wtpref = dec.u32()?;
        dec.raw(8)?;
        let max_file_bytes = dec.u64()?;
        dec.raw(12)?;
        Ok(Ok(FsInfoOk { rtmax, wtmax, rtpref, wtpref, max_file_bytes }))
    }
}

/// Reads `GETATTR3res` (section 3.3.1).
///
/// # Errors
/// When it is malformed.
pub fn decode_getattr(dec: &mut Decoder<'_>) -> Result<Outcome<Fattr3>, XdrError> {
    match decode_status(dec)? {
        Ok(()) => Fattr3::decode(dec).map(Ok),
        Err(status) => Ok(Err(status)),
    }
}

/// Reads `SETATTR3res` (section 3.3.2).
///
/// # Errors
/// When it is malformed.
pub fn decode_setattr(dec: &mut Decoder<'_>) -> Result<Outcome<()>, XdrError> {
    let status = decode_status(dec)?;
    decode_wcc(dec)?;
    Ok(status)
}

/// Reads `COMMIT3res` (section 3.3.21): the write verifier.
///
/// # Errors
/// When it is malformed.
pub fn decode_commit(dec: &mut Decoder<'_>) -> Result<Outcome<[u8; 8]>, XdrError> {
    let status = decode_status(dec)?;
    decode_wcc(dec)?;
    match status {
        Ok(()) => dec.verifier().map(Ok),
        Err(status) => Ok(Err(status)),
    }
}
