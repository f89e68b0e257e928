//! ONC RPC version 2 (RFC 5531): call and reply headers, AUTH_SYS, record marking, the xid table.
//!
//! # Invariants
//! - A record is bounded before a byte of it is taken: its length is the sum of its fragments, and
//!   [`RecordReader`] refuses the mark that would take it over the bound.
//! - An xid names at most one call: its low bits are the call's place in the table, its high bits
//!   count the calls of that place. A retransmission keeps its xid, every other call has a new one.

use crate::xdr::{Decoder, Encoder, Full, XdrError};

/// The only RPC version there is (section 9).
pub const RPC_VERSION: u32 = 2;
/// Most bytes of a credential's or verifier's body (section 8.2).
pub const AUTH_BYTES_MAX: u32 = 400;
/// Most bytes of the machine name in AUTH_SYS (appendix A).
pub const MACHINE_NAME_MAX: usize = 255;
/// Bytes of a record mark (section 11).
pub const MARK_BYTES: usize = 4;
/// Bit of a record mark that says: this is the last fragment.
pub const LAST_FRAGMENT: u32 = 1 << 31;
/// Most fragments without a byte in one record; they make no progress, so they are bounded.
const EMPTY_FRAGMENTS_MAX: u32 = 16;

/// Program number of the portmapper (RFC 1833 section 3).
pub const PORTMAP: u32 = 100_000;
/// The version of it that is asked (section 3).
pub const PORTMAP_VERSION: u32 = 2;
/// Its port.
pub const PORTMAP_PORT: u16 = 111;
/// Its procedure that tells a port (section 3.2): 0 if the program is not registered.
pub const PORTMAP_GETPORT: u32 = 3;
/// TCP, as the portmapper names protocols.
pub const PORTMAP_TCP: u32 = 6;

/// `msg_type` of a call.
pub const CALL: u32 = 0;
/// `msg_type` of a reply.
pub const REPLY: u32 = 1;
/// `auth_flavor` without credentials.
pub const AUTH_NONE: u32 = 0;
/// `auth_flavor` with uid and gid (appendix A).
pub const AUTH_SYS: u32 = 1;

/// `accept_stat` (section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptStat {
    /// Executed.
    Success,
    /// The program is not served.
    ProgUnavail,
    /// Other versions of it are.
    ProgMismatch {
        /// The lowest.
        low: u32,
        /// The highest.
        high: u32,
    },
    /// The procedure does not exist.
    ProcUnavail,
    /// The arguments could not be decoded.
    GarbageArgs,
    /// The server has no memory, or the like.
    SystemErr,
}

impl AcceptStat {
    fn code(self) -> u32 {
        match self {
            AcceptStat::Success => 0,
            AcceptStat::ProgUnavail => 1,
            AcceptStat::ProgMismatch { .. } => 2,
            AcceptStat::ProcUnavail => 3,
            AcceptStat::GarbageArgs => 4,
            AcceptStat::SystemErr => 5,
        }
    }
}

/// What a reply's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStat {
    /// The call was looked at; the results follow if it is [`AcceptStat::Success`].
    Accepted(AcceptStat),
    /// `RPC_MISMATCH`: the server speaks other versions of RPC.
    RpcMismatch,
    /// `AUTH_ERROR` with its `auth_stat`.
    AuthError(u32),
}

impl ReplyStat {
    /// The code this is reported by in `StoreError::Refused`: above every `nfsstat3`, so that the
    /// two cannot be mistaken. `0x8000_0000` and the `accept_stat`; `0x8001_0000` for RPC_MISMATCH;
    /// `0x8002_0000` and the `auth_stat`.
    pub fn refused_code(self) -> u32 {
        match self {
            ReplyStat::Accepted(stat) => 0x8000_0000 | stat.code(),
            ReplyStat::RpcMismatch => 0x8001_0000,
            ReplyStat::AuthError(stat) => 0x8002_0000 | (stat & 0xffff),
        }
    }

    /// Whether the program, or this version of it, is not served at this port.
    pub(crate) fn is_unserved(self) -> bool {
        use AcceptStat::{ProgMismatch, ProgUnavail};
        matches!(self, ReplyStat::Accepted(ProgUnavail | ProgMismatch { .. }))
    }
}

/// Who calls, for AUTH_SYS (appendix A).
#[derive(Clone, Debug)]
pub struct AuthSys {
    /// Any number the caller's machine likes.
    pub stamp: u32,
    /// Name of the caller's machine, at most [`MACHINE_NAME_MAX`] bytes.
    pub machine: String,
    /// Effective user.
    pub uid: u32,
    /// Effective group. No others are sent.
    pub gid: u32,
}

/// Writes the header of a call; its arguments follow.
///
/// # Errors
/// When it does not fit.
pub fn encode_call(
    out: &mut Encoder<'_>,
    xid: u32,
    (program, version, procedure): (u32, u32, u32),
    auth: &AuthSys,
) -> Result<(), Full> {
    for word in [xid, CALL, RPC_VERSION, program, version, procedure] {
        out.u32(word)?;
    }
    let machine = &auth.machine.as_bytes()[..auth.machine.len().min(MACHINE_NAME_MAX)];
    let body = 4 + 4 + machine.len() + crate::xdr::padding(machine.len()) + 4 + 4 + 4;
    out.u32(AUTH_SYS)?;
    out.u32(body as u32)?;
    out.u32(auth.stamp)?;
    out.opaque(machine)?;
    out.u32(auth.uid)?;
    out.u32(auth.gid)?;
    out.u32(0)?;
    out.u32(AUTH_NONE)?;
    out.u32(0)
}

/// The header of a call, as a server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallHeader {
    /// Names the call.
    pub xid: u32,
    /// RPC version, to be [`RPC_VERSION`].
    pub rpc_version: u32,
    /// Program.
    pub program: u32,
    /// Version of the program.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Flavor of the credential.
    pub flavor: u32,
}

/// Reads the header of a call. With another RPC version nothing behind it is read.
///
/// # Errors
/// When it is not a call.
pub fn decode_call(dec: &mut Decoder<'_>) -> Result<CallHeader, XdrError> {
    let xid = dec.u32()?;
    let value = dec.u32()?;
    if value != CALL {
        return Err(XdrError::BadEnum { name: "a message that is no call", value });
    }
    let rpc_version = dec.u32()?;
    let mut header =
        CallHeader { xid, rpc_version, program: 0, version: 0, procedure: 0, flavor: 0 };
    if rpc_version != RPC_VERSION {
        return Ok(header);
    }
    header.program = dec.u32()?;
    header.version = dec.u32()?;
    header.procedure = dec.u32()?;
    header.flavor = dec.u32()?;
    let body = dec.opaque(AUTH_BYTES_MAX)?;
    if header.flavor == AUTH_SYS {
        let mut body = Decoder::new(body);
        body.u32()?;
        body.opaque(MACHINE_NAME_MAX as u32)?;
        body.raw(8)?;
        let gids = body.u32()?;
        if gids > 16 {
            return Err(XdrError::TooLong { len: gids, max: 16 });
        }
        body.raw(4 * gids as usize)?;
        body.end()?;
    }
    dec.u32()?;
    dec.opaque(AUTH_BYTES_MAX)?;
    Ok(header)
}

/// Writes the header of a reply; the results follow if it is a success.
///
/// # Errors
/// When it does not fit.
pub fn encode_reply(out: &mut Encoder<'_>, xid: u32, stat: ReplyStat) -> Result<(), Full> {
    out.u32(xid)?;
    out.u32(REPLY)?;
    match stat {
        ReplyStat::Accepted(accepted) => {
            for word in [0, AUTH_NONE, 0, accepted.code()] {
                out.u32(word)?;
            }
            if let AcceptStat::ProgMismatch { low, high } = accepted {
                out.u32(low)?;
                out.u32(high)?;
            }
            Ok(())
        }
        ReplyStat::RpcMismatch => {
            [1, 0, RPC_VERSION, RPC_VERSION].into_iter().try_for_each(|word| out.u32(word))
        }
        ReplyStat::AuthError(why) => [1, 1, why].into_iter().try_for_each(|word| out.u32(word)),
    }
}

/// Reads the header of a reply: its xid, and what it says.
///
/// # Errors
/// When it is not a reply.
pub fn decode_reply(dec: &mut Decoder<'_>) -> Result<(u32, ReplyStat), XdrError> {
    let xid = dec.u32()?;
    let value = dec.u32()?;
    if value != REPLY {
        return Err(XdrError::BadEnum { name: "a message that is no reply", value });
    }
    let stat = match dec.u32()? {
        0 => {
            dec.u32()?;
            dec.opaque(AUTH_BYTES_MAX)?;
            ReplyStat::Accepted(match dec.u32()? {
                0 => AcceptStat::Success,
                1 => AcceptStat::ProgUnavail,
                2 => AcceptStat::ProgMismatch { low: dec.u32()?, high: dec.u32()? },
                3 => AcceptStat::ProcUnavail,
                4 => AcceptStat::GarbageArgs,
                5 => AcceptStat::SystemErr,
                value => return Err(XdrError::BadEnum { name: "an unknown accept_stat", value }),
            })
        }
        1 => match dec.u32()? {
            0 => {
                dec.u32()?;
                dec.u32()?;
                ReplyStat::RpcMismatch
            }
            1 => ReplyStat::AuthError(dec.u32()?),
            value => return Err(XdrError::BadEnum { name: "an unknown reject_stat", value }),
        },
        value => return Err(XdrError::BadEnum { name: "an unknown reply_stat", value }),
    };
    Ok((xid, stat))
}

/// Why a record cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It would be longer than anything that may come.
    #[error("a record of more than {max} bytes")]
    TooLong {
        /// The bound.
        max: usize,
    },
    /// It has too many fragments without a byte.
    #[error("a record of empty fragments")]
    Empty,
}

impl RecordError {
    /// The error in fixed words.
    pub fn what(self) -> &'static str {
        match self {
            RecordError::TooLong { .. } => "a record mark above the longest record",
            RecordError::Empty => "a record of empty fragments",
        }
    }
}

/// What of a record comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordNext {
    /// This many bytes of a record mark.
    Mark(usize),
    /// At most this many bytes of the record itself.
    Body(usize),
    /// Nothing, the record is whole.
    End,
}

/// Takes record marks out of a stream (section 11). It sees how long a record's pieces are, never
/// the bytes themselves, so that these can go straight to where they belong.
#[derive(Clone, Debug)]
pub struct RecordReader {
    mark: [u8; MARK_BYTES],
    mark_len: usize,
    left: usize,
    last: bool,
    /// Bytes of the record so far, and as its marks announce.
    taken: usize,
    announced: usize,
    empty: u32,
    max: usize,
}

impl RecordReader {
    /// Reads records of at most `max` bytes.
    pub fn new(max: usize) -> RecordReader {
        RecordReader {
            mark: [0; MARK_BYTES],
            mark_len: 0,
            left: 0,
            last: false,
            taken: 0,
            announced: 0,
            empty: 0,
            max,
        }
    }

    /// Forgets the record it is in: the stream begins anew.
    pub fn reset(&mut self) {
        *self = RecordReader::new(self.max);
    }

    /// Sets the bound on a record, in bytes.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Whether not a byte of the next record has come.
    pub fn is_fresh(&self) -> bool {
        self.mark_len == 0 && self.taken == 0 && self.announced == 0
    }

    /// Bytes of the record that were taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Whether the fragment at hand is the last of its record.
    pub fn is_last(&self) -> bool {
        self.mark_len == MARK_BYTES && self.last
    }

    /// What comes next.
    pub fn next(&self) -> RecordNext {
        if self.mark_len < MARK_BYTES {
            RecordNext::Mark(MARK_BYTES - self.mark_len)
        } else if self.left > 0 {
            RecordNext::Body(self.left)
        } else {
            RecordNext::End
        }
    }

    /// Takes bytes of a record mark from the start of `bytes` and says how many.
    ///
    /// # Errors
    /// When the record would be too long.
    pub fn push_mark(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        let n = bytes.len().min(MARK_BYTES - self.mark_len);
        self.mark[self.mark_len..self.mark_len + n].copy_from_slice(&bytes[..n]);
        self.mark_len += n;
        if self.mark_len == MARK_BYTES {
            let mark = u32::from_be_bytes(self.mark);
            self.left = (mark & !LAST_FRAGMENT) as usize;
            self.last = mark & LAST_FRAGMENT != 0;
            self.announced = self.announced.saturating_add(self.left);
            if self.announced > self.max {
                return Err(RecordError::TooLong { max: self.max });
            }
            if self.left == 0 {
                self.empty += 1;
                if self.empty > EMPTY_FRAGMENTS_MAX {
                    return Err(RecordError::Empty);
                }
            }
            self.next_fragment();
        }
        Ok(n)
    }

    /// `n` bytes of the record were taken.
    ///
    /// # Panics
    /// If the fragment has fewer.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.left, "more bytes than the fragment has");
        self.left -= n;
        self.taken += n;
        self.next_fragment();
    }

    fn next_fragment(&mut self) {
        if self.left == 0 && !self.last {
            self.mark_len = 0;
        }
    }
}

/// The xids of outstanding calls, in a table of fixed size.
#[derive(Debug)]
pub struct XidTable {
    places: Box<[Place]>,
    bits: u32,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    count: u32,
    live: bool,
}

impl XidTable {
    /// A table of `places` calls. `first` sets where the xids begin: a caller that starts again
    /// should begin elsewhere, so that a server does not take a new call for an old one.
    ///
    /// # Panics
    /// If there are more than 65,536 places.
    pub fn new(places: usize, first: u32) -> XidTable {
        assert!(places <= 1 << 16, "an xid table of {places} places");
        let bits = places.next_power_of_two().trailing_zeros();
        let count = first >> bits;
        XidTable { places: vec![Place { count, live: false }; places].into(), bits }
    }

    /// A new xid for the call at `place`; its old one means nothing from now on.
    pub fn assign(&mut self, place: usize) -> u32 {
        let entry = &mut self.places[place];
        entry.count = entry.count.wrapping_add(1) & (u32::MAX >> self.bits);
        entry.live = true;
        self.xid(place)
    }

    /// The xid the call at `place` has or had last.
    pub fn xid(&self, place: usize) -> u32 {
        (self.places[place].count << self.bits) | place as u32
    }

    /// The call at `place` has ended.
    pub fn release(&mut self, place: usize) {
        self.places[place].live = false;
    }

    /// The place of the outstanding call that has this xid.
    pub fn find(&self, xid: u32) -> Option<usize> {
        let place = (xid & ((1 << self.bits) - 1)) as usize;
        let entry = self.places.get(place)?;
        (entry.live && self.xid(place) == xid).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_header_is_the_bytes_of_rfc_5531() {
        let auth = AuthSys { stamp: 0x01020304, machine: "krypton".into(), uid: 515, gid: 4 };
        let mut buf = [0; 128];
        let mut out = Encoder::new(&mut buf);
        encode_call(&mut out, 0x11223344, (100003, 3, 6), &auth).unwrap();
        let len = out.len();
        let expected: [u8; 68] = [
            0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0, 0, 0, 0, 2, // xid, CALL, RPC version
            0, 1, 0x86, 0xa3, 0, 0, 0, 3, 0, 0, 0, 6, // NFS, version 3, READ
            0, 0, 0, 1, 0, 0, 0, 28, // AUTH_SYS, length of its body
            1, 2, 3, 4, 0, 0, 0, 7, b'k', b'r', b'y', b'p', b't', b'o', b'n',
            0, // stamp, name
            0, 0, 2, 3, 0, 0, 0, 4, 0, 0, 0, 0, // uid, gid, no groups
            0, 0, 0, 0, 0, 0, 0, 0, // verifier: AUTH_NONE, no body
        ];
        assert_eq!(&buf[..len], &expected);
        let header = decode_call(&mut Decoder::new(&expected)).unwrap();
        assert_eq!((header.xid, header.program, header.procedure), (0x11223344, 100003, 6));
    }

    #[test]
    fn every_reply_header_comes_back_as_it_was_written() {
        use AcceptStat::*;
        let accepted = [
            Success,
            ProgUnavail,
            ProgMismatch { low: 2, high: 3 },
            ProcUnavail,
            GarbageArgs,
            SystemErr,
        ];
        let all = accepted
            .map(ReplyStat::Accepted)
            .into_iter()
            .chain([ReplyStat::RpcMismatch, ReplyStat::AuthError(5)]);
        for stat in all {
            let mut buf = [0; 64];
            let mut out = Encoder::new(&mut buf);
            encode_reply(&mut out, 9, stat).unwrap();
            let len = out.len();
            let mut dec = Decoder::new(&buf[..len]);
            assert_eq!(decode_reply(&mut dec), Ok((9, stat)));
            dec.end().unwrap();
        }
    }

    #[test]
    fn fragments_of_any_size_make_one_record() {
        let mut reader = RecordReader::new(100);
        let mut stream: &[u8] = &[
            0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0x80, 0, 0, 2, 5, 6, 0x80, 0, 0, 1, 7,
        ];
        let mut records = vec![vec![]];
        while !stream.is_empty() {
            match reader.next() {
                RecordNext::Mark(_) => {
                    let n = reader.push_mark(&stream[..1]).unwrap();
                    stream = &stream[n..];
                }
                RecordNext::Body(left) => {
                    let n = left.min(2);
                    records.last_mut().unwrap().extend_from_slice(&stream[..n]);
                    stream = &stream[n..];
                    reader.advance(n);
                }
                RecordNext::End => {
                    records.push(vec![]);
                    reader.reset();
                }
            }
        }
        assert_eq!(records, [vec![1, 2, 3, 4, 5, 6], vec![7]]);
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_at_its_mark() {
        let mut reader = RecordReader::new(100);
        assert_eq!(reader.push_mark(&[0, 0, 0, 60]), Ok(4));
        reader.advance(60);
        assert_eq!(reader.push_mark(&[0x80, 0, 0, 41]), Err(RecordError::TooLong { max: 100 }));
        let mut reader = RecordReader::new(100);
        assert_eq!(reader.push_mark(&[0xff; 4]), Err(RecordError::TooLong { max: 100 }));
        let mut reader = RecordReader::new(100);
        let end = (0..1000).find_map(|_| reader.push_mark(&[0; 4]).err());
        assert_eq!(end, Some(RecordError::Empty));
    }

    #[test]
    fn an_xid_finds_its_call_only_while_it_is_outstanding() {
        let mut table = XidTable::new(33, u32::MAX - 1);
        let first = table.assign(7);
        assert_eq!(table.find(first), Some(7));
        let second = table.assign(7);
        assert_ne!(first, second);
        assert_eq!(table.find(first), None);
        assert_eq!(table.find(second), Some(7));
        table.release(7);
        assert_eq!(table.find(second), None);
        assert_eq!(table.find(63), None, "a place beyond the table");
        let mut seen = std::collections::BTreeSet::new();
        for place in 0..33 {
            for _ in 0..100 {
                assert!(seen.insert(table.assign(place)));
            }
        }
    }
}
