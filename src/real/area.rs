//! The header of a store's area: whether it is there, and whether what is in the store may be overwritten.

use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::signature::{Header, SignatureError};
use netswap_swap::{Op, PageVec, Slot};

use super::error::TransferError;
use super::store::RealStore;

/// How long one page may take when nothing else is outstanding. Picked by eye: a server that restarts takes a
/// few seconds.
const PAGE_WITHIN: Span = Span::from_secs(30);

/// What is known of the slots of a store that are to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaFacts {
    /// The first slot behind the header.
    pub first_slot: u32,
    /// Slots from there on.
    pub slots: u32,
    /// The header, if there is one.
    pub header: Option<Header>,
}

/// Why what is in a store must not be overwritten.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// It has no header that could be read.
    #[error(
        "{server} has other content ({error}): make it an area by `netswap mkswap`, or say --force to \
         overwrite it"
    )]
    OtherContent {
        /// The store.
        server: String,
        /// What is wrong with the header.
        error: SignatureError,
    },
    /// It is shorter than when it was made an area.
    #[error(
        "{server} has {slots} pages, and the area in it {pages}: grow it to what it was, or make a shorter area by \
         `netswap mkswap --force`, which loses what is in it"
    )]
    CutShort {
        /// The store.
        server: String,
        /// Pages it has.
        slots: u32,
        /// Pages of the area, that of the header included.
        pages: u64,
    },
    /// A page could not be moved.
    #[error("{server}: {error}")]
    Transfer {
        /// The store.
        server: String,
        /// Why.
        error: TransferError,
    },
}

/// One page outside of any load, and the pool that it goes back to, which is to be dropped after it.
fn one_page() -> (PagePool, Frame) {
    // A pool has a headroom that ordinary callers leave alone.
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
    let page = pool.alloc(Gfp::KERNEL).expect("the pool is new");
    (pool, page)
}

/// Reads the page in slot 0.
///
/// # Errors
/// When it cannot be read.
pub fn read_header_page(store: &mut RealStore) -> Result<[u8; PAGE_SIZE], TransferError> {
    let (_pool, page) = one_page();
    let (pages, outcome) =
        store.transfer(Op::Read, Slot(0), PageVec::from_iter([page]), PAGE_WITHIN);
    outcome.map(|()| *pages[0].bytes())
}

/// Writes the page in slot 0.
///
/// # Errors
/// When it cannot be written.
pub fn write_header_page(
    store: &mut RealStore,
    page: &[u8; PAGE_SIZE],
) -> Result<(), TransferError> {
    let (_pool, mut frame) = one_page();
    frame.bytes_mut().copy_from_slice(page);
    store.transfer(Op::Write, Slot(0), PageVec::from_iter([frame]), PAGE_WITHIN).1
}

/// The slots of a store's area, to be read: as many as its header says, or all there are if it has none.
///
/// # Errors
/// When its first page cannot be read, or it is shorter than its area.
pub fn area_to_read(store: &mut RealStore) -> Result<AreaFacts, FitError> {
    let slots = store.slots();
    let header = match slots {
        // Not even room for a header.
        0 => None,
        _ => {
            let page = read_header_page(store).map_err(|error| FitError::Transfer {
                server: store.server().to_string(),
                error,
            })?;
            Header::parse(&page).ok()
        }
    };
    if let Some(header) = header.filter(|header| header.last_page >= slots) {
        let pages = u64::from(header.last_page) + 1;
        return Err(FitError::CutShort { server: store.server().to_string(), slots, pages });
    }
    let slots = header.map_or(slots.saturating_sub(1), |header| header.last_page);
    Ok(AreaFacts { first_slot: 1, slots, header })
}

/// Makes sure that the slots of `store` may be overwritten: it has a swap header, or was made by this
/// process and is given one, or `force` says that whatever is there may go.
///
/// # Errors
/// When it has other content, or was cut short, or its first page cannot be moved.
pub fn fit_to_write(store: &mut RealStore, force: bool) -> Result<AreaFacts, FitError> {
    let server = store.server().to_string();
    let failed = |error| FitError::Transfer { server: server.clone(), error };
    let slots = store.slots();
    if store.facts().is_new {
        let mut page = [0; PAGE_SIZE];
        Header::new(slots).write(&mut page);
        write_header_page(store, &page).map_err(failed)?;
    }
    let page = read_header_page(store).map_err(failed)?;
    match Header::parse(&page) {
        Ok(header) if header.last_page >= slots && !force => {
            let pages = u64::from(header.last_page) + 1;
            Err(FitError::CutShort { server, slots, pages })
        }
        Ok(header) => {
            // The header's own count, if the store is longer; the store's, if that is cut short and forced.
            let slots = header.last_page.min(slots.saturating_sub(1));
            Ok(AreaFacts { first_slot: 1, slots, header: Some(header) })
        }
        Err(_) if force => {
            Ok(AreaFacts { first_slot: 1, slots: slots.saturating_sub(1), header: None })
        }
        Err(error) => Err(FitError::OtherContent { server, error }),
    }
}
