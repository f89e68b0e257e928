//! The grammar of one line of lackey's output.
//!
//! As `lackey` prints them (`lackey/lk_main.c` of valgrind):
//!
//! ```text
//! I  04001ab0,3        instruction fetch:  address in hex, size in bytes
//!  L 1ffeffe7e,8       load
//!  S 1fff000778,8      store
//!  M 0421e0f0,4        modify: a load and a store by one instruction
//! SB 0401ab70          a superblock was entered (--trace-superblocks=yes)
//! ==5620== Command:    valgrind's own words; also --5620-- and **5620**
//! ```
//!
//! The bytes are not trusted. Nothing here allocates, and no function looks at more of a line than
//! it needs.

use std::fmt;

use super::AccessKind;

/// Digits of the largest address.
const ADDRESS_DIGITS_MAX: usize = 16;

/// Bytes of the largest access that is believed. Lackey itself splits nothing and reports at most
/// 512; a page is the round number above it at which an access still touches no more than two pages.
pub(super) const ACCESS_BYTES_MAX: u64 = netswap_reserve::PAGE_SIZE as u64;

/// Digits of [`ACCESS_BYTES_MAX`].
const SIZE_DIGITS_MAX: usize = 4;

/// Bytes before the address.
const PREFIX_BYTES: usize = 3;

/// One access as the line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) kind: AccessKind,
    pub(super) address: u64,
    /// In bytes, 1 to [`ACCESS_BYTES_MAX`]; `address + size - 1` does not wrap.
    pub(super) size: u64,
}

/// What a well-formed line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Access(Access),
    Superblock,
    /// Blank, or valgrind's own words.
    Chatter,
}

/// Why a line is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// It starts with none of `I  `, ` L `, ` S `, ` M `, `SB ` and valgrind's own prefixes.
    UnknownKind,
    /// No address of 1 to 16 hexadecimal digits follows.
    BadAddress,
    /// No comma and size of 1 to 4096 in decimal digits follow.
    BadSize,
    /// The last byte of the access lies beyond the end of the address space.
    Wraps,
    /// Something follows what was complete.
    TrailingBytes,
    /// The line does not fit the reader's buffer.
    TooLong,
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LineFault::UnknownKind => "not a line of lackey",
            LineFault::BadAddress => "no address of 1 to 16 hexadecimal digits",
            LineFault::BadSize => "no size of 1 to 4096 after the address",
            LineFault::Wraps => "access beyond the end of the address space",
            LineFault::TrailingBytes => "bytes after the end of the record",
            LineFault::TooLong => "line too long",
        })
    }
}

/// Value of a hexadecimal digit, or [`NOT_HEX`]. A table, because this is the innermost loop.
static HEX: [u8; 256] = {
    let mut table = [NOT_HEX; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        table[b"0123456789ABCDEF"[i] as usize] = i as u8;
        i += 1;
    }
    table
};
const NOT_HEX: u8 = 0xff;

/// Reads hexadecimal digits from the start of `bytes`: the value and how many digits there were.
#[inline]
fn address(bytes: &[u8]) -> Result<(u64, usize), LineFault> {
    let mut value = 0_u64;
    let mut digits = 0;
    for byte in bytes {
        let digit = HEX[usize::from(*byte)];
        if digit == NOT_HEX {
            break;
        }
        if digits == ADDRESS_DIGITS_MAX {
            return Err(LineFault::BadAddress);
        }
        value = value << 4 | u64::from(digit);
        digits += 1;
    }
    if digits == 0 { Err(LineFault::BadAddress) } else { Ok((value, digits)) }
}

/// Reads the access that `bytes` start with: the access, and how many bytes it is long. What
/// follows it is not looked at; the caller decides whether the record may end there.
#[inline]
pub(super) fn access(bytes: &[u8]) -> Result<(Access, usize), LineFault> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(LineFault::UnknownKind);
    };
    let kind = match prefix {
        b"I  " => AccessKind::Fetch,
        b" L " => AccessKind::Load,
        b" S " => AccessKind::Store,
        b" M " => AccessKind::Modify,
        _ => return Err(LineFault::UnknownKind),
    };
    let (address, address_digits) = address(rest)?;
    let Some((b',', decimal)) = rest[address_digits..].split_first() else {
        return Err(LineFault::BadSize);
    };
    let mut size = 0_u64;
    let mut size_digits = 0;
    for byte in decimal {
        if !byte.is_ascii_digit() {
            break;
        }
        if size_digits == SIZE_DIGITS_MAX {
            return Err(LineFault::BadSize);
        }
        size = size * 10 + u64::from(byte - b'0');
        size_digits += 1;
    }
    // No digit leaves the size at 0, which is refused too.
    if size == 0 || size > ACCESS_BYTES_MAX {
        return Err(LineFault::BadSize);
    }
    if address.checked_add(size - 1).is_none() {
        return Err(LineFault::Wraps);
    }
    Ok((Access { kind, address, size }, PREFIX_BYTES + address_digits + 1 + size_digits))
}

/// Whether a line that begins with `line` is blank or valgrind's own: `==PID==`, `--PID--` or
/// `**PID**`, and `==PID:THREAD==` as some versions print it. A program under test may print such
/// a line too; it is then skipped like valgrind's.
pub(super) fn is_chatter(line: &[u8]) -> bool {
    let Some((mark @ (b"==" | b"--" | b"**"), rest)) = line.split_first_chunk::<2>() else {
        return line.trim_ascii().is_empty();
    };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit() || **b == b':').count();
    digits > 0 && rest[digits..].starts_with(mark)
}

/// Reads a whole line, without its newline.
///
/// # Errors
/// What is wrong with it.
pub(super) fn line(line: &[u8]) -> Result<Line, LineFault> {
    // A trace that went through a tool for another system ends its lines in CR LF.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if let Some(rest) = line.strip_prefix(b"SB ") {
        let (_, digits) = address(rest)?;
        return if digits == rest.len() {
            Ok(Line::Superblock)
        } else {
            Err(LineFault::TrailingBytes)
        };
    }
    match access(line) {
        Ok((access, len)) if len == line.len() => Ok(Line::Access(access)),
        Ok(_) => Err(LineFault::TrailingBytes),
        Err(LineFault::UnknownKind) if is_chatter(line) => Ok(Line::Chatter),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(kind: AccessKind, address: u64, size: u64) -> Result<Line, LineFault> {
        Ok(Line::Access(Access { kind, address, size }))
    }

    #[test]
    fn each_kind_of_line_is_read() {
        assert_eq!(line(b"I  0401ab70,3"), parsed(AccessKind::Fetch, 0x0401_ab70, 3));
        assert_eq!(line(b" L 1ffeffe7e,8"), parsed(AccessKind::Load, 0x1_ffef_fe7e, 8));
        assert_eq!(line(b" S 1fff000778,16"), parsed(AccessKind::Store, 0x1f_ff00_0778, 16));
        assert_eq!(line(b" M 0421E0F0,4\r"), parsed(AccessKind::Modify, 0x0421_e0f0, 4));
        assert_eq!(line(b"SB 0401ab70"), Ok(Line::Superblock));
        for chatter in
            ["", "  ", "\t  ", "\r", "==1== x", "--12345-- y", "**7** z", "==1:2== w", "==99=="]
        {
            assert_eq!(line(chatter.as_bytes()), Ok(Line::Chatter), "{chatter:?}");
        }
    }

    #[test]
    fn the_bounds_are_inclusive() {
        assert_eq!(
            line(b" L ffffffffffffffff,1"),
            parsed(AccessKind::Load, u64::MAX, 1),
            "the last byte"
        );
        assert_eq!(line(b" L ffffffffffffffff,2"), Err(LineFault::Wraps));
        assert_eq!(line(b" L 0,4096"), parsed(AccessKind::Load, 0, 4096));
        assert_eq!(line(b" L 0,4097"), Err(LineFault::BadSize));
        assert_eq!(line(b" L 0,00001"), Err(LineFault::BadSize), "5 digits");
        assert_eq!(line(b" L 00000000000000001,1"), Err(LineFault::BadAddress), "17 digits");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, fault) in [
            ("hello", LineFault::UnknownKind),
            ("I 0401ab70,3", LineFault::UnknownKind),
            ("L 0401ab70,3", LineFault::UnknownKind),
            ("I", LineFault::UnknownKind),
            ("== 5 ==", LineFault::UnknownKind),
            (" ==5== x", LineFault::UnknownKind),
            ("==5=", LineFault::UnknownKind),
            ("====", LineFault::UnknownKind),
            ("==5-- x", LineFault::UnknownKind),
            ("I  ", LineFault::BadAddress),
            ("I  ,3", LineFault::BadAddress),
            ("I  -401ab70,3", LineFault::BadAddress),
            ("SB ", LineFault::BadAddress),
            ("I  0401ab70", LineFault::BadSize),
            ("I  0401ab70,", LineFault::BadSize),
            ("I  0401ab70,0", LineFault::BadSize),
            ("I  0401ab70,x", LineFault::BadSize),
            ("I  0401ab7g,3", LineFault::BadSize),
            ("I  0401ab70,3 ", LineFault::TrailingBytes),
            ("I  0401ab70,3I  0401ab73,5", LineFault::TrailingBytes),
            ("SB 0401ab70,3", LineFault::TrailingBytes),
        ] {
            assert_eq!(line(text.as_bytes()), Err(fault), "{text:?}");
        }
    }
}
