//! Where a trace's bytes come from: as they are, or through a zstd decoder.
//!
//! The two are told apart by the first four bytes, never by a name. Text of lackey cannot begin
//! with either magic number. Errors of the stream below and errors of the compression are told
//! apart too: "the disk failed" and "the file is damaged" call for different things.

use std::io::{self, BufReader, Chain, Cursor, Read};

use super::TraceError;

/// `Magic_Number` of a zstd frame (RFC 8878, section 3.1.1), as it lies in the file.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// `Magic_Number` of a skippable frame (RFC 8878, section 3.1.2) but for the low four bits of its
/// first byte, which are free: parallel compressors put such a frame first.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

fn is_zstd(head: &[u8]) -> bool {
    match head {
        [first, rest @ ..] if rest == &SKIPPABLE_MAGIC[1..] => first & 0xf0 == SKIPPABLE_MAGIC[0],
        _ => head == ZSTD_MAGIC,
    }
}

/// The bytes that were read to tell the format, then the rest.
type Whole<R> = Chain<Cursor<Head>, R>;

/// Passes bytes on, and remembers whether an error came from below.
pub(super) struct Tap<R> {
    inner: R,
    failed: bool,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buf);
        self.failed = result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        result
    }
}

/// Up to four bytes.
#[derive(Clone, Copy)]
pub(super) struct Head {
    bytes: [u8; 4],
    len: usize,
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A stream of a trace's text.
pub(super) enum Source<R: Read> {
    Plain(Whole<R>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Tap<Whole<R>>>>),
}

impl<R: Read> Source<R> {
    /// Reads up to four bytes of `reader` and decides by them.
    pub(super) fn new(mut reader: R) -> Result<Source<R>, TraceError> {
        let failed = |source| TraceError::Read { line: 0, source };
        let mut head = Head { bytes: [0; 4], len: 0 };
        while head.len < head.bytes.len() {
            match reader.read(&mut head.bytes[head.len..]) {
                Ok(0) => break,
                Ok(n) => head.len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let zstd = is_zstd(head.as_ref());
        let whole = Cursor::new(head).chain(reader);
        if !zstd {
            return Ok(Source::Plain(whole));
        }
        let tap = Tap { inner: whole, failed: false };
        Ok(Source::Zstd(zstd::stream::read::Decoder::new(tap).map_err(failed)?))
    }

    pub(super) fn is_compressed(&self) -> bool {
        matches!(self, Source::Zstd(_))
    }

    /// Reads some of the text; 0 bytes are its end. `line` is the number of the last line read,
    /// for the error.
    pub(super) fn read(&mut self, buf: &mut [u8], line: u64) -> Result<usize, TraceError> {
        loop {
            let result = match self {
                Source::Plain(reader) => reader.read(buf),
                Source::Zstd(decoder) => decoder.read(buf),
            };
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => return Ok(n),
                Err(source) => return Err(self.error(source, line)),
            }
        }
    }

    fn error(&self, source: io::Error, line: u64) -> TraceError {
        match self {
            Source::Zstd(decoder) if !decoder.get_ref().get_ref().failed => {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    TraceError::Truncated { line }
                } else {
                    TraceError::Corrupt { line, source }
                }
            }
            _ => TraceError::Read { line, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magic_numbers_are_known_and_nothing_else() {
        assert!(is_zstd(&zstd::encode_all(&b"x"[..], 1).unwrap()[..4]));
        assert!(is_zstd(&[0x5f, 0x2a, 0x4d, 0x18]));
        for other in [&b"I  0"[..], b"", b"\x28\xb5\x2f", b"\x60\x2a\x4d\x18", b"==12"] {
            assert!(!is_zstd(other), "{other:?}");
        }
    }
}
