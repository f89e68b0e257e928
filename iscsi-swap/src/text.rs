//! `key=value` pairs (RFC 7143 sections 6.1 and 6.2), read from and written to fixed buffers.

use std::str;

/// Longest key name (section 6.1).
pub const KEY_LEN_MAX: usize = 63;

/// What is wrong with a text segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The last pair has no NUL behind it.
    #[error("text does not end in NUL")]
    Unterminated,
    /// A pair without `=`.
    #[error("text pair without =")]
    NoEquals,
    /// A key that is empty, too long, or has characters a key may not have.
    #[error("bad key name in text")]
    Key,
    /// A value that is not UTF-8.
    #[error("text value is not UTF-8")]
    Value,
    /// The buffer is full.
    #[error("text is longer than {max} bytes")]
    TooLong {
        /// What fits.
        max: usize,
    },
}

/// The pairs of a text segment. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

/// Reads the pairs of `text`. Empty pairs (runs of NUL) are skipped: padding may look like them.
pub fn pairs(text: &[u8]) -> Pairs<'_> {
    Pairs { rest: text }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, &'a str), TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|b| *b != 0)?;
        let rest = &self.rest[start..];
        let Some(end) = rest.iter().position(|b| *b == 0) else {
            self.rest = &[];
            return Some(Err(TextError::Unterminated));
        };
        let pair = parse_pair(&rest[..end]);
        self.rest = if pair.is_ok() { &rest[end + 1..] } else { &[] };
        Some(pair)
    }
}

fn parse_pair(pair: &[u8]) -> Result<(&str, &str), TextError> {
    let equals = pair.iter().position(|b| *b == b'=').ok_or(TextError::NoEquals)?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    // Section 6.1: letters, digits, dot, minus, plus, at, underscore, and # in extension keys.
    let good = |b: &u8| b.is_ascii_alphanumeric() || b".-+@_#".contains(b);
    if key.is_empty() || key.len() > KEY_LEN_MAX || !key.iter().all(good) {
        return Err(TextError::Key);
    }
    let key = str::from_utf8(key).map_err(|_| TextError::Key)?;
    Ok((key, str::from_utf8(value).map_err(|_| TextError::Value)?))
}

/// A numerical value: decimal, or hexadecimal after 0x (section 6.1).
pub fn number(value: &str) -> Option<u32> {
    let hex = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((value, 10), |hex| (hex, 16));
    // `from_str_radix` takes a sign, a text value may not have one.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// A boolean value.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// Writes pairs into a fixed buffer.
#[derive(Debug)]
pub struct TextWriter<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> TextWriter<'a> {
    /// A writer that fills `buf` from its start.
    pub fn new(buf: &'a mut [u8]) -> TextWriter<'a> {
        TextWriter { buf, len: 0 }
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes `key=value` and its NUL.
    ///
    /// # Errors
    /// If it does not fit; then nothing is written.
    pub fn push(&mut self, key: &str, value: &str) -> Result<(), TextError> {
        let max = self.buf.len();
        let end = self.len + key.len() + value.len() + 2;
        let room = self.buf.get_mut(self.len..end).ok_or(TextError::TooLong { max })?;
        let (left, right) = room.split_at_mut(key.len());
        left.copy_from_slice(key.as_bytes());
        right[0] = b'=';
        right[1..=value.len()].copy_from_slice(value.as_bytes());
        right[value.len() + 1] = 0;
        self.len = end;
        Ok(())
    }

    /// Writes a pair with a binary value, in hexadecimal digits (section 6.1).
    ///
    /// # Errors
    /// As [`TextWriter::push`].
    pub fn push_hex(&mut self, key: &str, value: &[u8]) -> Result<(), TextError> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let max = self.buf.len();
        let end = self.len + key.len() + 2 * value.len() + 4;
        let room = self.buf.get_mut(self.len..end).ok_or(TextError::TooLong { max })?;
        let (left, right) = room.split_at_mut(key.len());
        left.copy_from_slice(key.as_bytes());
        right[..3].copy_from_slice(b"=0x");
        for (pair, byte) in right[3..].chunks_exact_mut(2).zip(value) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        right[3 + 2 * value.len()] = 0;
        self.len = end;
        Ok(())
    }

    /// Writes a boolean pair.
    ///
    /// # Errors
    /// As [`TextWriter::push`].
    pub fn push_bool(&mut self, key: &str, value: bool) -> Result<(), TextError> {
        self.push(key, if value { "Yes" } else { "No" })
    }

    /// Writes a numerical pair.
    ///
    /// # Errors
    /// As [`TextWriter::push`].
    pub fn push_number(&mut self, key: &str, value: u32) -> Result<(), TextError> {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut left = value;
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.push(key, str::from_utf8(&digits[at..]).expect("digits are ASCII"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut buf = [0xff; 64];
        let mut writer = TextWriter::new(&mut buf);
        writer.push_bool("InitialR2T", true).unwrap();
        writer.push_number("MaxBurstLength", 4_294_967_295).unwrap();
        writer.push_number("X#zero", 0).unwrap();
        assert_eq!(writer.push("k", "0123456789abcdef"), Err(TextError::TooLong { max: 64 }));
        let len = writer.len();
        assert_eq!(&buf[..len], b"InitialR2T=Yes\0MaxBurstLength=4294967295\0X#zero=0\0");
        let got: Vec<_> = pairs(&buf[..len]).map(Result::unwrap).collect();
        assert_eq!(got[0], ("InitialR2T", "Yes"));
        assert_eq!(number(got[1].1), Some(u32::MAX));
        assert_eq!(got.len(), 3);
    }

    #[test]
    fn binary_values_are_written_in_hex_or_not_at_all() {
        let mut buf = [0xff; 12];
        let mut writer = TextWriter::new(&mut buf);
        writer.push_hex("R", &[0x0a, 0xf1]).unwrap();
        assert_eq!(writer.push_hex("R", &[]), Err(TextError::TooLong { max: 12 }));
        let len = writer.len();
        assert_eq!(&buf[..len], b"R=0x0af1\0");
    }

    #[test]
    fn malformed_text_has_an_error_each() {
        let long = [b"k".repeat(64).as_slice(), b"=\0"].concat();
        let first = |text| pairs(text).find_map(Result::err);
        assert_eq!(first(b"a=b"), Some(TextError::Unterminated));
        assert_eq!(first(b"a=b\0cd\0"), Some(TextError::NoEquals));
        assert_eq!(first(b"=b\0"), Some(TextError::Key));
        assert_eq!(first(b"a b=c\0"), Some(TextError::Key));
        assert_eq!(first(&long), Some(TextError::Key));
        assert_eq!(first(b"a=\xff\0"), Some(TextError::Value));
        assert_eq!(first(b"a=b\0\0\0"), None);
    }

    #[test]
    fn numbers_are_decimal_or_hex_without_a_sign() {
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("10"), Some(10));
        for bad in ["", "0x", "+1", "-1", "1a", "4294967296", "0x+1"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
