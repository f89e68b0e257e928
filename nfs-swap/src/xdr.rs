//! XDR (RFC 4506) over a head, a page vector and a tail.
//!
//! A message is built as in the sunrpc `xdr_buf`: a small *head* that holds the headers, the *pages*
//! that hold the bulk data and are never copied, and a *tail* that holds what follows the data (only
//! padding, in NFSv3). [`Encoder`] writes into a fixed buffer, [`Decoder`] reads from one and checks
//! every length. [`XdrBuf`] shows the three parts as one run of bytes, whether its pages are low or high.
//!
//! # Invariants
//! - Nothing here allocates, and nothing panics on what a peer sent.
//! - A decoded length is compared with its bound before it is used.

use netswap_net::SendVec;
use netswap_reserve::windows::{MapError, MapPage, Mapper};
use netswap_reserve::{Frame, PAGE_SIZE};

use crate::pages::{Piece, copy_out, piece};

/// Why bytes are not the XDR that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XdrError {
    /// The message ends too early.
    #[error("needs {need} bytes, has {have}")]
    Truncated {
        /// Bytes of the message needed to go on.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// A length is above its bound.
    #[error("length {len} is above {max}")]
    TooLong {
        /// The length the message claims.
        len: u32,
        /// Its bound.
        max: u32,
    },
    /// A boolean is neither 0 nor 1 (RFC 4506 section 4.4).
    #[error("{value} is no boolean")]
    BadBool {
        /// What was there.
        value: u32,
    },
    /// An enumeration has no such value (RFC 4506 section 4.3).
    #[error("{value} is no {name}")]
    BadEnum {
        /// The enumeration.
        name: &'static str,
        /// What was there.
        value: u32,
    },
    /// Bytes follow the message.
    #[error("{left} bytes follow the message")]
    Trailing {
        /// How many.
        left: usize,
    },
}

impl XdrError {
    /// The error in fixed words, for errors that must not allocate.
    pub fn what(self) -> &'static str {
        match self {
            XdrError::Truncated { .. } => "a message that ends too early",
            XdrError::TooLong { .. } => "a length above its bound",
            XdrError::BadBool { .. } => "a boolean that is neither 0 nor 1",
            XdrError::BadEnum { name, .. } => name,
            XdrError::Trailing { .. } => "bytes after the end of a message",
        }
    }
}

/// The buffer is too small for what is encoded into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is too small for the message")]
pub struct Full;

/// Zero bytes that pad `len` bytes of opaque data to a multiple of four (RFC 4506 section 4.9).
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// What padding is made of.
pub const ZEROS: [u8; 4] = [0; 4];

/// Writes XDR into a fixed buffer.
///
/// ```
/// use netswap_nfs::xdr::Encoder;
/// let mut buf = [0; 12];
/// let mut out = Encoder::new(&mut buf);
/// out.opaque(b"hello").unwrap();
/// assert_eq!(out.len(), 12);
/// assert_eq!(&buf, b"\0\0\0\x05hello\0\0\0");
/// ```
#[derive(Debug)]
pub struct Encoder<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl<'a> Encoder<'a> {
    /// Writes from the start of `buf`.
    pub fn new(buf: &'a mut [u8]) -> Encoder<'a> {
        Encoder { buf, at: 0 }
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.at
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Bytes as they are, without length or padding.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.at.checked_add(bytes.len()).ok_or(Full)?;
        self.buf.get_mut(self.at..end).ok_or(Full)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    /// An unsigned integer (section 4.2).
    ///
    /// # Errors
    /// When it does not fit.
    pub fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.raw(&value.to_be_bytes())
    }

    /// An unsigned hyper integer (section 4.5).
    ///
    /// # Errors
    /// When it does not fit.
    pub fn u64(&mut self, value: u64) -> Result<(), Full> {
        self.raw(&value.to_be_bytes())
    }

    /// A boolean (section 4.4).
    ///
    /// # Errors
    /// When it does not fit.
    pub fn bool(&mut self, value: bool) -> Result<(), Full> {
        self.u32(u32::from(value))
    }

    /// Variable-length opaque data or a string: length, bytes, padding (sections 4.10, 4.11).
    ///
    /// # Errors
    /// When it does not fit.
    pub fn opaque(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.u32(u32::try_from(bytes.len()).map_err(|_| Full)?)?;
        self.raw(bytes)?;
        self.raw(&ZEROS[..padding(bytes.len())])
    }
}

/// Reads XDR from a buffer. The position only moves forward, and never past the end.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes, at: 0 }
    }

    /// Bytes read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// `len` bytes as they are.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], XdrError> {
        let need = self.at.saturating_add(len);
        let have = self.bytes.len();
        let bytes = self.bytes.get(self.at..need).ok_or(XdrError::Truncated { need, have })?;
        self.at = need;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// An unsigned hyper integer.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Eight opaque bytes, as a verifier is.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn verifier(&mut self) -> Result<[u8; 8], XdrError> {
        self.array()
    }

    /// A boolean.
    ///
    /// # Errors
    /// When it is neither 0 nor 1, or too few bytes are left.
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(XdrError::BadBool { value }),
        }
    }

    /// Variable-length opaque data of at most `max` bytes. What the padding holds is not looked at:
    /// RFC 4506 wants zeros there, and a server that sends others does no harm.
    ///
    /// # Errors
    /// When it is longer than `max`, or too few bytes are left.
    pub fn opaque(&mut self, max: u32) -> Result<&'a [u8], XdrError> {
        let len = self.u32()?;
        if len > max {
            return Err(XdrError::TooLong { len, max });
        }
        let bytes = self.raw(len as usize)?;
        self.raw(padding(len as usize))?;
        Ok(bytes)
    }

    /// The end of the message.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(&self) -> Result<(), XdrError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(XdrError::Trailing { left }),
        }
    }
}

/// A message in three parts, borrowed: what sunrpc calls an `xdr_buf`.
///
/// The pages may be low or high. A message holds no window: [`XdrBuf::push_from`] shows what has an
/// address, for sending by page; [`XdrBuf::copy_from`] maps a page for as long as it copies it.
#[derive(Clone, Copy, Debug)]
pub struct XdrBuf<'a, P = Frame> {
    /// Headers and arguments before the bulk data.
    pub head: &'a [u8],
    /// The pages of the bulk data.
    pub pages: &'a [P],
    /// Where in the page vector the data begins, in bytes; may lie beyond the first page.
    pub page_base: usize,
    /// Length of the data in the page vector, in bytes.
    pub page_len: usize,
    /// What follows the data.
    pub tail: &'a [u8],
}

impl<'a, P: MapPage> XdrBuf<'a, P> {
    /// Bytes of all three parts.
    pub fn len(&self) -> usize {
        self.head.len() + self.page_len + self.tail.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends what follows the first `skip` bytes to `out`, slice by slice and without a copy.
    /// False if it stopped before the end: `out` is full, or a high page comes next.
    pub fn push_from(&self, skip: usize, out: &mut SendVec<'a>) -> bool {
        if let Some(head) = self.head.get(skip..).filter(|h| !h.is_empty())
            && out.try_push(head).is_err()
        {
            return false;
        }
        let mut at = skip.saturating_sub(self.head.len());
        while at < self.page_len {
            match piece(self.pages, self.page_base + at, self.page_len - at) {
                Piece::Low(bytes) => {
                    if out.try_push(bytes).is_err() {
                        return false;
                    }
                    at += bytes.len();
                }
                Piece::High => return false,
                Piece::None => break,
            }
        }
        let skip = skip.saturating_sub(self.head.len() + self.page_len);
        match self.tail.get(skip..).filter(|t| !t.is_empty()) {
            Some(tail) => out.try_push(tail).is_ok(),
            None => true,
        }
    }

    /// Copies what follows the first `skip` bytes to `out`, as much as fits, and says how much that
    /// was. A high page is mapped while it is copied.
    ///
    /// # Errors
    /// When not a byte could be copied, for want of a window.
    ///
    /// # Panics
    /// If a high page is not one of those that `mapper` can show.
    pub fn copy_from(
        &self,
        skip: usize,
        mapper: &mut impl Mapper,
        out: &mut [u8],
    ) -> Result<usize, MapError> {
        let head = self.head.get(skip..).unwrap_or_default();
        let mut done = head.len().min(out.len());
        out[..done].copy_from_slice(&head[..done]);
        let mut at = skip.saturating_sub(self.head.len());
        while at < self.page_len && done < out.len() {
            let start = (self.page_base + at) % PAGE_SIZE;
            let n = (PAGE_SIZE - start).min(self.page_len - at).min(out.len() - done);
            let to = &mut out[done..done + n];
            match copy_out(self.pages, self.page_base + at, to, mapper) {
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
                Ok(()) => {}
            }
            (at, done) = (at + n, done + n);
        }
        if at >= self.page_len {
            let skip = skip.saturating_sub(self.head.len() + self.page_len);
            let tail = self.tail.get(skip..).unwrap_or_default();
            let n = tail.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&tail[..n]);
            done += n;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netswap_reserve::windows::{Direct, HighPool, MapWindows, WindowsConfig};
    use netswap_reserve::{Gfp, PagePool, PoolConfig};

    #[test]
    fn the_example_of_rfc_4506_section_7_is_encoded_byte_for_byte() {
        // struct file { string filename<255>; filetype type = EXEC; string owner<32>; opaque data<>; }
        // with "sillyprog", kind EXEC (2), interpreter "lisp", owner "john", data "(quit)".
        let mut buf = [0xAA; 64];
        let mut out = Encoder::new(&mut buf);
        out.opaque(b"sillyprog").unwrap();
        out.u32(2).unwrap();
        out.opaque(b"lisp").unwrap();
        out.opaque(b"john").unwrap();
        out.opaque(b"(quit)").unwrap();
        let len = out.len();
        let expected: [u8; 48] = [
            0, 0, 0, 9, 0x73, 0x69, 0x6c, 0x6c, 0x79, 0x70, 0x72, 0x6f, 0x67, 0, 0, 0, //
            0, 0, 0, 2, 0, 0, 0, 4, 0x6c, 0x69, 0x73, 0x70, 0, 0, 0, 4, 0x6a, 0x6f, 0x68,
            0x6e, //
            0, 0, 0, 6, 0x28, 0x71, 0x75, 0x69, 0x74, 0x29, 0, 0,
        ];
        assert_eq!(&buf[..len], &expected);
        let mut dec = Decoder::new(&expected);
        assert_eq!(dec.opaque(255).unwrap(), b"sillyprog");
        assert_eq!(dec.u32().unwrap(), 2);
        assert_eq!(dec.opaque(4).unwrap(), b"lisp");
        assert_eq!(dec.opaque(32).unwrap(), b"john");
        assert_eq!(dec.opaque(u32::MAX).unwrap(), b"(quit)");
        dec.end().unwrap();
    }

    #[test]
    fn a_length_that_lies_is_an_error_and_nothing_is_read() {
        let mut dec = Decoder::new(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(dec.opaque(100), Err(XdrError::TooLong { len: u32::MAX, max: 100 }));
        let mut dec = Decoder::new(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(matches!(dec.opaque(u32::MAX), Err(XdrError::Truncated { .. })));
        // The padding counts as well.
        let mut dec = Decoder::new(&[0, 0, 0, 1, 9, 0, 0]);
        assert_eq!(dec.opaque(1), Err(XdrError::Truncated { need: 8, have: 7 }));
        assert_eq!(Decoder::new(&[0, 0, 0, 2]).bool(), Err(XdrError::BadBool { value: 2 }));
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut buf = [0; 6];
        let mut out = Encoder::new(&mut buf);
        out.u32(1).unwrap();
        assert_eq!(out.u32(2), Err(Full));
        assert_eq!(out.len(), 4);
    }

    #[test]
    fn a_page_vector_is_shown_from_any_byte_in_place() {
        let pool = PagePool::new(PoolConfig::new(128));
        let mut pages: Vec<Frame> = (0..3).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
        for (i, page) in pages.iter_mut().enumerate() {
            for (j, byte) in page.bytes_mut().iter_mut().enumerate() {
                *byte = (i * 31 + j) as u8;
            }
        }
        let flat: Vec<u8> = pages.iter().flat_map(|p| p.bytes().iter().copied()).collect();
        for (page_base, page_len) in [(0, 12288), (5, 12283), (4096, 4096), (4095, 2), (8191, 4097)]
        {
            let buf = XdrBuf {
                head: b"header",
                pages: &pages,
                page_base,
                page_len,
                tail: &ZEROS[..padding(page_len)],
            };
            let mut whole = b"header".to_vec();
            whole.extend_from_slice(&flat[page_base..page_base + page_len]);
            whole.extend_from_slice(&ZEROS[..padding(page_len)]);
            assert_eq!(buf.len(), whole.len());
            for skip in [0, 1, 5, 6, 7, 100, whole.len() - 1, whole.len()] {
                let skip = skip.min(whole.len());
                let mut out = SendVec::new();
                assert!(buf.push_from(skip, &mut out));
                assert!(out.iter().all(|piece| !piece.is_empty()));
                assert_eq!(out.concat(), whole[skip..], "base {page_base} skip {skip}");
                for room in [0, 1, 7, 4096, 5000, 20_000] {
                    let mut copy = vec![0; room];
                    let n = buf.copy_from(skip, &mut Direct, &mut copy).unwrap();
                    assert_eq!(n, room.min(whole.len() - skip));
                    assert_eq!(copy[..n], whole[skip..skip + n]);
                }
            }
        }
    }

    #[test]
    fn a_message_of_high_pages_is_copied_through_one_window_or_not_at_all() {
        let high = HighPool::new(3).unwrap();
        let mut windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
        let mut pages = [high.alloc().unwrap(), high.alloc().unwrap()];
        let data: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
        for (page, bytes) in pages.iter_mut().zip(data.chunks(PAGE_SIZE)) {
            windows.try_map_mut(page).unwrap().copy_from_slice(bytes);
        }
        let (page_base, page_len) = (4090, 101);
        let buf = XdrBuf { head: b"head", pages: &pages, page_base, page_len, tail: &[0; 3] };
        let whole = [b"head", &data[4090..4191], &[0; 3]].concat();
        for skip in 0..=whole.len() {
            let mut out = [0xEE; 200];
            let n = buf.copy_from(skip, &mut windows, &mut out).unwrap();
            assert_eq!(out[..n], whole[skip..]);
            assert_eq!(windows.usage().held, 0);
        }
        // Only what has an address can be sent by page.
        let mut sent = SendVec::new();
        assert!(!buf.push_from(0, &mut sent));
        assert_eq!(sent.concat(), b"head");
        // Without a window: the head, then nothing.
        let other = high.alloc().unwrap();
        let held = windows.try_map(&other).unwrap();
        let mut out = [0; 200];
        assert_eq!(buf.copy_from(1, &mut windows.clone(), &mut out), Ok(3));
        assert!(buf.copy_from(4, &mut windows.clone(), &mut out).is_err());
        drop(held);
    }
}
