//! Bytes of page vectors. Low pages are shown in place. High ones, which no address belongs to, are
//! mapped around each copy and at no other time: a call that waits for a server holds pages, and no
//! window (`netswap_reserve::windows`).
//!
//! What is sent from a high page is copied to a *stage*, what arrives for one into a *bounce* buffer
//! and from there into the page: those are the two places where the kernel maps pages of an RPC, in
//! `sock_sendmsg` and where the reply is copied. With a vector of [`Frame`](netswap_reserve::Frame)s
//! the compiler leaves nothing of it.

use std::io::IoSliceMut;

use netswap_net::RecvVec;
use netswap_reserve::windows::{MapError, MapPage, MapPageMut, Mapper, PageView, PageViewMut};
use netswap_reserve::{PAGE_SIZE, Span};

/// When a window is asked for again that could not be had. Picked by eye: a window is held for the
/// copy of a page, about a microsecond; whoever holds them all for longer is not in a hurry.
pub(crate) const MAP_RETRY: Span = Span::from_millis(1);
/// Bytes of a stage. Picked by eye: four pages a turn keep a socket busy.
pub(crate) const STAGE_BYTES: usize = 4 * PAGE_SIZE;

/// Bytes of a page vector that lie in one page.
pub(crate) enum Piece<'a> {
    /// Here.
    Low(&'a [u8]),
    /// Behind a window.
    High,
    /// Beyond the last page.
    None,
}

/// The bytes of a page vector from `at` on, at most `limit` and at most to the end of that page.
#[inline]
pub(crate) fn piece<P: MapPage>(pages: &[P], at: usize, limit: usize) -> Piece<'_> {
    let start = at % PAGE_SIZE;
    let end = PAGE_SIZE.min(start.saturating_add(limit));
    match pages.get(at / PAGE_SIZE).map(MapPage::view) {
        None => Piece::None,
        Some(PageView::Low(bytes)) => Piece::Low(&bytes[start..end]),
        Some(PageView::High(_)) => Piece::High,
    }
}

/// Whether a page needs a window.
#[inline]
pub(crate) fn is_high<P: MapPage>(page: &P) -> bool {
    matches!(page.view(), PageView::High(_))
}

/// Where the bytes of a page vector from `at` on arrive, at most `limit` of them and at most to the end
/// of that page: there, or in `bounce` if the page needs a window. [`land`] moves them on.
#[inline]
pub(crate) fn arrivals<'x, P: MapPageMut>(
    pages: &'x mut [P],
    at: usize,
    limit: usize,
    bounce: &'x mut [u8],
) -> &'x mut [u8] {
    let start = at % PAGE_SIZE;
    let end = PAGE_SIZE.min(start.saturating_add(limit));
    match pages.get_mut(at / PAGE_SIZE).map(MapPageMut::view_mut) {
        None => &mut [],
        Some(PageViewMut::Low(bytes)) => &mut bytes[start..end],
        Some(PageViewMut::High(_)) => &mut bounce[..end - start],
    }
}

/// Appends where `len` bytes of a page vector from `at` on arrive, one slice a page, up to the first high
/// one; says whether that is all of them.
pub(crate) fn low_pieces<'x, P: MapPageMut>(
    pages: &'x mut [P],
    at: usize,
    len: usize,
    out: &mut RecvVec<'x>,
) -> bool {
    let (mut start, mut left) = (at % PAGE_SIZE, len);
    for page in pages.iter_mut().skip(at / PAGE_SIZE) {
        let end = PAGE_SIZE.min(start.saturating_add(left));
        let PageViewMut::Low(bytes) = page.view_mut() else { break };
        if left == 0 || out.try_push(IoSliceMut::new(&mut bytes[start..end])).is_err() {
            break;
        }
        left -= end - start;
        start = 0;
    }
    left == 0
}

/// The first `n` bytes of what [`arrivals`] gave are there: those of a high page go where they belong.
///
/// # Errors
/// When there is no window now. The bytes stay in `bounce`.
#[inline]
pub(crate) fn land<P: MapPageMut>(
    pages: &mut [P],
    at: usize,
    n: usize,
    bounce: &[u8],
    mapper: &mut impl Mapper,
) -> Result<(), MapError> {
    let start = at % PAGE_SIZE;
    match pages.get_mut(at / PAGE_SIZE) {
        Some(page) if is_high(page) => mapper
            .with_mut(page, |bytes| bytes[start..start + n].copy_from_slice(&bounce[..n]))
            .map_err(only_now),
        _ => Ok(()),
    }
}

/// Copies bytes of a page vector, from byte `at` on, until `out` is full.
///
/// # Errors
/// When there is no window now; `out` may be written in part.
///
/// # Panics
/// If the pages end before.
pub(crate) fn copy_out<P: MapPage>(
    pages: &[P],
    at: usize,
    out: &mut [u8],
    mapper: &mut impl Mapper,
) -> Result<(), MapError> {
    let mut done = 0;
    while done < out.len() {
        let (page, start) = ((at + done) / PAGE_SIZE, (at + done) % PAGE_SIZE);
        let n = (PAGE_SIZE - start).min(out.len() - done);
        let to = &mut out[done..done + n];
        mapper
            .with(&pages[page], |bytes| to.copy_from_slice(&bytes[start..start + n]))
            .map_err(only_now)?;
        done += n;
    }
    Ok(())
}

/// Passes on an error that time may cure.
///
/// # Panics
/// If it cannot: high pages without windows, or with those of another pool, are the caller's mistake.
fn only_now(error: MapError) -> MapError {
    assert!(
        !matches!(error, MapError::NoWindows | MapError::OtherPool),
        "a page that can never be mapped: {error}"
    );
    error
}
