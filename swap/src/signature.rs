//! The header of a swap area, as `mkswap` writes it into slot 0.
//!
//! Layout (Linux `include/linux/swap.h`, `union swap_header`): 1024 bytes for boot blocks, then, in
//! the byte order of the machine, version, last page, count of bad pages (u32 each), UUID and label
//! (16 bytes each), 468 bytes of padding, the bad pages (u32 each); the last 10 bytes of the page
//! are the signature. Only little-endian headers of 4096-byte pages are taken.

use netswap_reserve::PAGE_SIZE;

/// What the last ten bytes of the header page say.
pub const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
/// The most bad pages a header can list.
pub const BAD_PAGES_MAX: usize = (SIGNATURE_AT - BAD_PAGES_AT) / 4;

const SIGNATURE_AT: usize = PAGE_SIZE - 10;
const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const BAD_COUNT_AT: usize = 1032;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;
const BAD_PAGES_AT: usize = 1536;

/// Why a page is not the header of a swap area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signature is not there.
    #[error("no SWAPSPACE2 signature")]
    Missing,
    /// The header was written by a machine of the other byte order.
    #[error("the header is of the other byte order")]
    ByteOrder,
    /// Not version 1.
    #[error("version {version} instead of 1")]
    Version {
        /// The version.
        version: u32,
    },
    /// No page to use.
    #[error("the area has no pages")]
    Empty,
    /// More bad pages than the header has room for, or one that is not in the area.
    #[error("the list of bad pages is wrong")]
    BadPages,
}

/// A swap header.
///
/// ```
/// use netswap_swap::signature::Header;
/// let mut page = [0; 4096];
/// Header::new(1024).write(&mut page);
/// assert_eq!(Header::parse(&page).unwrap().last_page, 1023);
/// assert!(Header::parse(&[0; 4096]).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The last usable page; the first is 1.
    pub last_page: u32,
    /// How many bad pages the header lists.
    pub bad_pages: u32,
    /// The area's UUID.
    pub uuid: [u8; 16],
    /// The area's label, padded with zeros.
    pub label: [u8; 16],
}

impl Header {
    /// The header of an area of `slots` slots, that of the header included; no UUID, no label.
    pub fn new(slots: u32) -> Header {
        Header { last_page: slots.saturating_sub(1), bad_pages: 0, uuid: [0; 16], label: [0; 16] }
    }

    /// Checks a page that was read from slot 0.
    ///
    /// # Errors
    /// If it is not a header; bad pages are checked as well.
    pub fn parse(page: &[u8; PAGE_SIZE]) -> Result<Header, SignatureError> {
        if &page[SIGNATURE_AT..] != SIGNATURE {
            return Err(SignatureError::Missing);
        }
        let version = word(page, VERSION_AT);
        if version == 1u32.swap_bytes() {
            return Err(SignatureError::ByteOrder);
        }
        if version != 1 {
            return Err(SignatureError::Version { version });
        }
        let mut header = Header::new(0);
        header.last_page = word(page, LAST_PAGE_AT);
        header.bad_pages = word(page, BAD_COUNT_AT);
        header.uuid.copy_from_slice(&page[UUID_AT..LABEL_AT]);
        header.label.copy_from_slice(&page[LABEL_AT..LABEL_AT + 16]);
        if header.last_page == 0 {
            return Err(SignatureError::Empty);
        }
        if header.bad_pages as usize > BAD_PAGES_MAX
            || bad_pages(page).any(|bad| bad == 0 || bad > header.last_page)
        {
            return Err(SignatureError::BadPages);
        }
        Ok(header)
    }

    /// Writes the header into a page; bad pages are none.
    pub fn write(&self, page: &mut [u8; PAGE_SIZE]) {
        page.fill(0);
        page[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1u32.to_le_bytes());
        page[LAST_PAGE_AT..LAST_PAGE_AT + 4].copy_from_slice(&self.last_page.to_le_bytes());
        page[UUID_AT..LABEL_AT].copy_from_slice(&self.uuid);
        page[LABEL_AT..LABEL_AT + 16].copy_from_slice(&self.label);
        page[SIGNATURE_AT..].copy_from_slice(SIGNATURE);
    }
}

/// The bad pages a header lists.
pub fn bad_pages(page: &[u8; PAGE_SIZE]) -> impl Iterator<Item = u32> + '_ {
    let count = (word(page, BAD_COUNT_AT) as usize).min(BAD_PAGES_MAX);
    (0..count).map(|i| word(page, BAD_PAGES_AT + 4 * i))
}

fn word(page: &[u8; PAGE_SIZE], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that `mkswap -U 01234567-89ab-cdef-0123-456789abcdef -L netswap` (util-linux
    /// 2.38.1) wrote for a file of 1 MiB: 1024 to 1068 and the last ten; the others are zero.
    const MKSWAP: &[u8; 44] = b"\x01\0\0\0\xff\0\0\0\0\0\0\0\
        \x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef\
        netswap\0\0\0\0\0\0\0\0\0";

    fn real() -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[1024..1068].copy_from_slice(MKSWAP);
        page[4086..].copy_from_slice(b"SWAPSPACE2");
        page
    }

    #[test]
    fn a_header_made_by_mkswap_is_recognised_and_written_byte_for_byte() {
        let header = Header::parse(&real()).unwrap();
        assert_eq!(header.last_page, 255);
        assert_eq!(&header.label[..8], b"netswap\0");
        let mut page = [7; PAGE_SIZE];
        header.write(&mut page);
        assert_eq!(page, real());
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        assert_eq!(Header::parse(&[0; PAGE_SIZE]), Err(SignatureError::Missing));
        let with = |at: usize, value: u32| {
            let mut page = real();
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Header::parse(&page)
        };
        assert_eq!(with(VERSION_AT, 2), Err(SignatureError::Version { version: 2 }));
        assert_eq!(with(VERSION_AT, 1 << 24), Err(SignatureError::ByteOrder));
        assert_eq!(with(LAST_PAGE_AT, 0), Err(SignatureError::Empty));
        assert_eq!(with(BAD_COUNT_AT, u32::MAX), Err(SignatureError::BadPages));
        assert_eq!(with(BAD_COUNT_AT, 1), Err(SignatureError::BadPages), "page 0 cannot be bad");
    }
}
